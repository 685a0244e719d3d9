"""The Flax models of transformers 4 (flax_model.msgpack): path/to/kernel; path.to.kernel in safetensors.

Models with batch normalisation keep two trees, "params" and "batch_stats".
Source: the files themselves; https://flax-linen.readthedocs.io for the layouts of its layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from converters.checkpoint import Checkpoint
from converters.dialects import hf_names, transformers4
from converters.dialects.shared import KERNELS, kernel_steps, merge
from converters.view import Concatenate, Recipe, Subset

__all__ = [
    "NAME",
    "SAYS_CONFIG",
    "canonical",
    "canonical_name",
    "foreign",
    "foreign_config",
    "knows",
    "recognises",
    "understood",
    "unties",
]

NAME = "hf-flax"

SAYS_CONFIG = True

_COLLECTIONS = ("params", "batch_stats")
_LEAVES = {
    **dict.fromkeys(KERNELS, "weight"),
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether it is a tree of names in Flax's own serialisation, in one file or in shards, or such a tree in Orbax."""
    if checkpoint.format == "orbax":
        return any(name.rpartition("/")[2] in ("kernel", "scale", "embedding") for name in checkpoint.infos)
    if checkpoint.metadata.get("format") == "flax":  # what transformers' Flax classes wrote as safetensors
        return checkpoint.format in ("safetensors", "sharded")
    return checkpoint.format == "flax" or (
        checkpoint.format == "sharded" and all(info.file.suffix == ".msgpack" for info in checkpoint.infos.values())
    )


def canonical(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """Canonical name -> recipe, for every tensor of the file."""
    return merge(checkpoint, _pairs(checkpoint))


def foreign(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """Name -> recipe, for every place in which transformers 4 keeps the tensors of the config's class."""
    if config.get("model_type") in _SINUSOIDAL:
        stored = [name for name in checkpoint.infos if not name.endswith("coder.embed_positions.weight")]
        checkpoint = Subset(checkpoint, stored)
    return hf_names.foreign("flax", checkpoint, config)


def foreign_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json in the spelling of transformers 4, which alone reads these files."""
    return transformers4.spelled(config)


def understood(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of what the class of transformers 4 computes."""
    return transformers4.understood("flax", config)


def unties(config: Mapping[str, Any]) -> bool:
    """Whether the class of transformers 4 has an output layer of its own even where the config ties it."""
    return ("flax", config.get("model_type")) in transformers4.UNTIED


def knows(config: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether the config's class has a place for a tensor in transformers 4, by its torch name."""
    return hf_names.knows("flax", config)


def canonical_name(path: str) -> str:
    """The torch name of a weight: "bert/encoder/layer/0/output/LayerNorm/scale" is
    "bert.encoder.layer.0.output.LayerNorm.weight".
    """
    # The plain blocks of ResNet are called layer_0, those with a bottleneck 0.
    parts = re.sub(r"/layer/layer_(\d+)/", r"/layer/\1/", path).split("/")
    if parts[0] in _COLLECTIONS:
        parts = parts[1:]
    return ".".join([*parts[:-1], _LEAVES.get(parts[-1], parts[-1])])


_SINUSOIDAL = ("marian", "pegasus", "roformer")
"""Models whose tables of positions Flax computes; torch keeps some of them as weights."""


def _pairs(checkpoint: Checkpoint) -> Iterator[tuple[str, Recipe]]:
    dotted = checkpoint.metadata.get("format") == "flax"
    for path, info in checkpoint.infos.items():
        name = path.replace(".", "/") if dotted else path
        leaf = name.rpartition("/")[2]
        yield canonical_name(name), Recipe(path, kernel_steps(leaf, len(info.shape)) if leaf in KERNELS else ())
