"""Meta's names for Llama, which llama2.c keeps: layers.0.attention.wq.weight, tok_embeddings.weight.

Layouts are torch's. The rows of queries and keys are in pairs, since Meta's rotary embedding turns neighbours.
Sources: https://github.com/meta-llama/llama (llama/model.py) for the names, its params.json for the config of a
consolidated.00.pth, https://github.com/karpathy/llama2.c (model.py, run.c, tokenizer.py) for what the header leaves
out: a rotary base of 10000 and an epsilon of 1e-5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converters.checkpoint import Checkpoint, is_size, strict_json
from converters.dialects.shared import Dropped
from converters.dialects.tabled import read, write
from converters.dialects.tables import Row, Table
from converters.formats.gguf.sentencepiece import read_llama2c
from converters.view import Concatenate, Recipe, RotaryRows
from zoo.errors import ConfigError

__all__ = ["DROPPED", "NAME", "canonical", "config", "foreign", "recognises", "tokenizer"]

NAME = "llama2.c"

DROPPED: Dropped = (
    (r"freqs_cos|freqs_sin|rope\.freqs|(.*\.)?rotary_emb\.inv_freq", "the model computes it from the config"),
)

MAX_TOKENIZER = 1 << 26
"""Bytes of a tokenizer; Llama's has half a million."""

PARAMS = "params.json"
"""Beside Meta's own checkpoints."""


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the names are Meta's, in whatever format."""
    return {"tok_embeddings.weight", "layers.0.attention.wq.weight"} <= checkpoint.infos.keys()


def config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The config.json that follows from llama2.c's header, or from params.json and the tensors' shapes.

    None where neither is there.

    Raises:
        ConfigError: a model in several parts, experts, or frequencies scaled in an unstated way.
    """
    values = checkpoint.metadata if "n_heads" in checkpoint.metadata else _params(checkpoint)
    if values is None:
        return None
    vocabulary, width = checkpoint.infos["tok_embeddings.weight"].shape
    heads, layers = values.get("n_heads"), values.get("n_layers")
    hidden = checkpoint.infos.get("layers.0.feed_forward.w1.weight")
    if not is_size(heads) or not heads or not is_size(layers) or values.get("dim") != width or hidden is None:
        raise ConfigError(
            "the sizes do not describe these tensors",
            where=checkpoint.path,
            expected="dim, n_layers, n_heads of a Llama whose tensors are all in this file",
            got=f"dim {values.get('dim')}, {layers} layers, {heads} heads for an embedding of {vocabulary} x {width}",
            do="join the parts of a model that is in several (consolidated.00.pth, .01, ...) first",
        )
    if values.get("use_scaled_rope"):
        raise ConfigError(
            "params.json says that the rotary frequencies are scaled, and not how",
            where=checkpoint.path.parent / PARAMS,
            do="add the model's config.json, which has rope_scaling",
        )
    found = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": hidden.shape[0],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": values.get("n_kv_heads") or heads,
        "vocab_size": vocabulary,
        "rms_norm_eps": values.get("norm_eps", 1e-5),
        "rope_theta": values.get("rope_theta", 10000.0),
        "tie_word_embeddings": "output.weight" not in checkpoint.infos or "output.weight" in checkpoint.aliases,
    }
    if "seq_len" in values:
        found["max_position_embeddings"] = values["seq_len"]
    return found


def tokenizer(checkpoint: Checkpoint) -> str | None:
    """The tokenizer.json of llama2.c's tokenizer.bin, beside the model or appended to it."""
    if checkpoint.format != "llama2c":
        return None
    beside, trailing = checkpoint.path.parent / "tokenizer.bin", checkpoint.metadata.get("trailing_bytes", 0)
    path, start = (beside, 0) if beside.is_file() else (checkpoint.path, checkpoint.path.stat().st_size - trailing)
    if path is checkpoint.path and not trailing:
        return None
    with path.open("rb") as file:
        file.seek(start)
        return read_llama2c(file.read(MAX_TOKENIZER), checkpoint.metadata["vocab_size"])


def canonical(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """Canonical name -> recipe.

    Raises:
        ConfigError: the config lacks the number of heads.
    """
    return read(_table(config), checkpoint, config, DROPPED)


def foreign(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """Meta's name -> recipe; an output layer equal to the embedding is left out.

    Raises:
        ConfigError: another model type, or no number of heads.
        WeightsError: tensors that Meta's Llama does not have.
    """
    if config.get("model_type") not in ("llama", "mistral"):
        raise ConfigError("Meta's names are those of Llama", expected="llama, mistral", got=config.get("model_type"))
    return write(_table(config), checkpoint, (("lm_head.weight", "model.embed_tokens.weight"),), DROPPED)


_NAMES = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
    "model.layers.{}.input_layernorm.weight": "layers.{}.attention_norm.weight",
    "model.layers.{}.post_attention_layernorm.weight": "layers.{}.ffn_norm.weight",
    "model.layers.{}.self_attn.v_proj.weight": "layers.{}.attention.wv.weight",
    "model.layers.{}.self_attn.o_proj.weight": "layers.{}.attention.wo.weight",
    "model.layers.{}.mlp.gate_proj.weight": "layers.{}.feed_forward.w1.weight",
    "model.layers.{}.mlp.down_proj.weight": "layers.{}.feed_forward.w2.weight",
    "model.layers.{}.mlp.up_proj.weight": "layers.{}.feed_forward.w3.weight",
}


def _table(config: Mapping[str, Any]) -> Table:
    heads = config.get("num_attention_heads")
    key_heads = config.get("num_key_value_heads") or heads
    if not is_size(heads) or not is_size(key_heads):
        raise ConfigError("the config lacks num_attention_heads", expected="how many heads queries and keys have")
    turned = (("q_proj", "wq", heads), ("k_proj", "wk", key_heads))
    rows = [Row(own, name) for own, name in _NAMES.items()]
    rows += [
        Row(
            f"model.layers.{{}}.self_attn.{own}.weight",
            f"layers.{{}}.attention.{name}.weight",
            after=(RotaryRows(count),),
        )
        for own, name, count in turned
    ]
    return Table(rows, prefix="model.")


def _params(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    path = checkpoint.path.parent / PARAMS
    return strict_json(path.read_bytes(), path, PARAMS) if path.is_file() else None
