"""keras-hub's backbones: model.weights.h5 of a preset, "layers/transformer_encoder_1/…/vars/0", beside its config.json.

Layers count from nothing: transformer_encoder, transformer_encoder_1, …; a layer's variables are numbered in the order
in which it made them. Attention kernels have an axis for the heads. Names alone do not tell the families apart, the
preset's config.json does. What a backbone computes may differ from what the config of the model that it was made from
says (BERT's GELU is the tanh approximation here), so `config` states what the backbone does.
Source: the backbones of keras-hub 0.32 and the files that they write. Older files say "_layer_checkpoint_dependencies"
for "layers": keras/src/saving/saving_lib.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from converters.checkpoint import Checkpoint, strict_json
from converters.dialects import keras_hub_configs, keras_hub_tables
from converters.view import Concatenate, Difference, Recipe, Rows, Subset, View
from zoo.errors import ConfigError, WeightsError

__all__ = ["DROPPED", "NAME", "canonical", "config", "foreign", "foreign_config", "recognises", "understood"]

NAME = "keras-hub"

DROPPED = (
    (r"(^|\.)position_ids$", "the numbers from 0, which the model counts itself"),
    (r"^(roberta\.)?embeddings\.token_type_embeddings\.weight$", "RoBERTa's only token type, an embedding of zeros"),
)

_OLD = "_layer_checkpoint_dependencies/"
_POSITIONS = "layers/token_and_position_embedding/position_embedding/vars/0"
_TOKENS = "layers/reversible_embedding/vars/0"
_HEAD = "layers/reversible_embedding/vars/1"
_ROBERTA = ("roberta", "xlm-roberta")
# Classes of a base model alone, whose checkpoints have no prefix; the others are decoders with their output layer.
_BARE = (*_ROBERTA, "bert", "distilbert", "albert", "gpt2", "t5", "vit", "whisper")

_BOTH = ("t5", "whisper")


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the names are Keras 3's, and a preset's config.json lies beside."""
    names = checkpoint.infos
    if not names or not all(name.startswith(("layers/", _OLD)) and "/vars/" in f"/{name}" for name in names):
        return False
    return _preset(checkpoint) is not None


def canonical(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """Canonical name -> recipe, for every tensor of the file.

    Args:
        checkpoint: a preset's model.weights.h5.
        config: Hugging Face's; where it has no model_type, the one that follows from the preset's.
    """
    if "model_type" not in config:
        config = _derived(checkpoint)
    names = {name.replace(_OLD, "layers/", 1): name for name in checkpoint.infos}
    kind = config["model_type"]
    today = View(checkpoint, {name: Recipe(own) for name, own in names.items()})
    found = keras_hub_tables.table(config).canonical(today, bare=kind in _BARE)
    if kind in _ROBERTA:
        row = Recipe(_POSITIONS, (Rows(0, 1),))
        found["embeddings.token_type_embeddings.weight"] = Difference((row, row))  # zeros
    return {name: _renamed(recipe, names) for name, recipe in found.items()}


def foreign(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """keras-hub's name -> recipe; `foreign_config` gives the config.json that belongs beside.

    Raises:
        ConfigError: keras-hub has no such backbone.
        WeightsError: tensors without a place, heads among them; a RoBERTa with token types; half of a T5 or Whisper.
    """
    kind = config.get("model_type")
    keras_hub_configs.to_preset(config, checkpoint.path)  # refuses what the preset cannot say
    for part in ("encoder", "decoder") if kind in _BOTH else ():
        if not any(name.removeprefix("model.").startswith(f"{part}.") for name in checkpoint.infos):
            raise WeightsError(
                f"keras-hub has this model with encoder and decoder only; there is no {part}", where=checkpoint.path
            )
    kept = [name for name in checkpoint.infos if checkpoint.aliases.get(name, name) == name]
    if kind in _ROBERTA:
        types = [name for name in kept if name.endswith("embeddings.token_type_embeddings.weight")]
        if any(checkpoint.read(name).any() for name in types):
            raise WeightsError(
                "keras-hub's RoBERTa has no token types",
                where=f"{checkpoint.path}, tensor {types[0]!r}",
                expected="zeros",
            )
        kept = [name for name in kept if name not in types]
    found = keras_hub_tables.table(config).foreign(Subset(checkpoint, kept))
    if kind in ("llama", "t5") and config.get("tie_word_embeddings", kind == "t5"):
        found.pop(_HEAD, None)
    return found


def config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Hugging Face's config of what the preset says, also of query_head_dim_normalize, which keras-hub 0.32 ignores."""
    return None if _preset(checkpoint) is None else _derived(checkpoint)


def foreign_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The preset's config.json for Hugging Face's config.

    Fields that a backbone's code fixes (eps, the form of GELU) are not checked here: `understood` says them.

    Raises:
        ConfigError: keras-hub has no such backbone.
    """
    return keras_hub_configs.to_preset(config, "config.json")


def understood(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    """Hugging Face's config of what the backbone of a preset's config.json computes."""
    if "registered_name" not in config:
        config = keras_hub_configs.to_preset(config, "config.json")
    found = keras_hub_configs.from_preset(config, checkpoint.path)
    if "query_pre_attn_scalar" in found:  # keras-hub's block does not hand query_head_dim_normalize on to its attention
        found["query_pre_attn_scalar"] = found["head_dim"]
    return _tied(found, checkpoint)


def _preset(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The preset's config.json, if it is keras-hub's."""
    path = checkpoint.path.parent / "config.json"
    if not path.is_file() or path.stat().st_size > 1 << 20:
        return None
    found = strict_json(path.read_bytes(), path, "the config")
    return found if str(found.get("registered_name", "")).startswith(("keras_hub>", "keras_nlp>")) else None


def _derived(checkpoint: Checkpoint) -> dict[str, Any]:
    preset = _preset(checkpoint)
    if preset is None:
        raise ConfigError(
            "weights of keras-hub need the preset's config.json",
            where=checkpoint.path.parent,
            expected="config.json with a registered_name of keras_hub",
        )
    return _tied(keras_hub_configs.from_preset(preset, checkpoint.path.parent / "config.json"), checkpoint)


def _tied(found: dict[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    if found["model_type"] == "llama":  # the preset does not say so: its config is written without
        found["tie_word_embeddings"] = not any(name.endswith(_HEAD.partition("/")[2]) for name in checkpoint.infos)
    return found


def _renamed(recipe: Recipe | Concatenate, names: Mapping[str, str]) -> Recipe | Concatenate:
    if isinstance(recipe, Recipe):
        return replace(recipe, source=names[recipe.source])
    return replace(recipe, parts=tuple(replace(part, source=names[part.source]) for part in recipe.parts))
