"""llama.cpp's names (GGUF): token_embd.weight, blk.0.attn_q.weight, output_norm.weight.

Layouts are torch's, but for GPT-2's layers, which are [out, in] here and [in, out] in Hugging Face's Conv1D. The
architecture "llama" (Mixtral's, too) has the rows of queries and keys in pairs, as Meta has; the others keep Hugging
Face's order. The matrices of a layer's experts are one tensor.
Gemma's norms are stored with 1 added: reading subtracts it and writing adds it, in float32. That rounds, so it is the
one step here that does not keep every bit of a tensor; what the model computes stays the same to the last bit wherever
the stored value is 1/2 or more, since Hugging Face's Gemma adds the same 1 itself.
Sources: names from gguf-py's constants.py (TENSOR_NAMES) and tensor_mapping.py, the rest from convert_hf_to_gguf.py,
both in https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from converters.checkpoint import Checkpoint, TensorInfo
from converters.dialects.gguf_config import architecture_of, computed, config, scaling_tensors
from converters.dialects.gguf_config import config as derived
from converters.dialects.gguf_config import metadata as model_metadata
from converters.dialects.gguf_config import notes as model_notes
from converters.dialects.shared import Dropped
from converters.dialects.tabled import read, write
from converters.dialects.tables import Row, Table
from converters.formats.gguf.tokenizer import tokenizer_json
from converters.formats.gguf.vocabulary import pooling, tokenizer_config, vocabulary
from converters.view import Cast, Concatenate, Layout, Made, Permute, Recipe, RotaryRows, Shift, is_float
from zoo.errors import ConfigError, WeightsError

__all__ = [
    "DROPPED",
    "NAME",
    "canonical",
    "config",
    "foreign",
    "metadata",
    "notes",
    "recognises",
    "stored_as",
    "tokenizer",
    "tokenizer_settings",
    "understood",
    "widened",
]

NAME = "gguf"

DROPPED: Dropped = (
    (r"rope_freqs\.weight|rope_factors_(long|short)\.weight", "the config's rope_scaling says the same"),
    (r"blk\.\d+\.attn_rot_embd\.weight|(.*\.)?rotary_emb\.inv_freq", "the model computes it from the config"),
    (r"(.*\.)?position_ids|(transformer\.)?h\.\d+\.attn\.(masked_)?bias", "the model computes it"),
    (r"(bert\.)?pooler\.dense\.(weight|bias)", "llama.cpp's BERT has no pooler"),
)


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the token embedding has llama.cpp's name."""
    return "token_embd.weight" in checkpoint.infos


def canonical(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """Canonical name -> recipe; head counts come from the file's metadata, or else from the config.

    Raises:
        ConfigError: an architecture that is not known here, or no number of heads.
    """
    architecture = checkpoint.metadata.get("general.architecture")
    if architecture is None:
        architecture = architecture_of(config)
    return read(_table(architecture, config, checkpoint.metadata), checkpoint, config, DROPPED)


def foreign(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate | Made]:
    """llama.cpp's name -> recipe.

    Raises:
        ConfigError: a model type that is not known here, or no number of heads.
        WeightsError: tensors that llama.cpp has no name or no place for, or Gemma's norms in less than float32.
    """
    architecture = architecture_of(config)
    table = _table(architecture, config, {})
    ties = (("lm_head.weight", "model.embed_tokens.weight"), ("lm_head.weight", "transformer.wte.weight"))
    if architecture in _GEMMA:
        _need_float32(checkpoint)
    found: dict[str, Recipe | Concatenate | Made] = dict(write(table, checkpoint, ties, DROPPED))
    lacking = [name for name in found if re.fullmatch(_ABSENT.get(architecture, "(?!)"), name)]
    if lacking:
        raise WeightsError(
            f"llama.cpp's {architecture} has no place for tensors of this model",
            where=checkpoint.path,
            got=", ".join(lacking),
            do="convert to a form that has, such as safetensors",
        )
    for name, array in scaling_tensors(config).items():
        found[name] = Made(array.shape, array.dtype.name, array.view)
    return found


def widened(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Checkpoint:
    """The same with Gemma's norms in float32, since less cannot hold them with 1 added."""
    if architecture_of(config) not in _GEMMA or not _narrow_norms(checkpoint):
        return checkpoint
    narrow = _narrow_norms(checkpoint)
    return Cast(
        checkpoint, {name: "float32" if name in narrow else info.dtype for name, info in checkpoint.infos.items()}
    )


def metadata(
    config: Mapping[str, Any], texts: Mapping[str, str] | None = None, checkpoint: Checkpoint | None = None
) -> dict[str, Any]:
    """The key/values of a GGUF file: the model's, and those of its tokenizer.

    Args:
        texts: of the tokenizer's files, by name; None leaves the tokenizer out.
        checkpoint: a view of this form; its embedding says how many tokens there have to be.
    """
    found = model_metadata(config)
    return found if texts is None else found | _vocabulary(config, texts, checkpoint)[0]


def notes(config: Mapping[str, Any], texts: Mapping[str, str], checkpoint: Checkpoint) -> list[str]:
    """What llama.cpp will do otherwise, mostly with the text it is given; the arguments are those of `metadata`."""
    return [*model_notes(config), *_vocabulary(config, texts, checkpoint)[1]]


def understood(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of what llama.cpp computes, which reads the file alone; `_NOTHING` is no part of that."""
    same = {name: config[name] for name in _NOTHING if name in config}
    found = derived(checkpoint)
    return {**(config if found is None else computed(found, config)), **same}


def stored_as(info: TensorInfo, dtype: str | None) -> str:
    """The dtype in which llama.cpp wants a tensor: its kernels take vectors, and some tables, in float32 alone."""
    if not is_float(info):
        return info.dtype
    if len(info.shape) < 2 or info.name.endswith(_IN_FLOAT32):
        return "float32"
    own = "float32" if info.dtype not in _KERNELS else info.dtype
    if dtype == "q8_0" and info.shape[-1] % 32:
        return own  # a row is no whole number of blocks
    return dtype or (own if info.dtype == "float64" else info.dtype)


def tokenizer_settings(checkpoint: Checkpoint) -> str | None:
    """The tokenizer_config.json that a file's key/values describe: special tokens and chat templates."""
    return tokenizer_config(checkpoint.metadata)


def tokenizer(checkpoint: Checkpoint) -> str | None:
    """The tokenizer.json that a file's key/values describe, for BPE of bytes, SentencePiece's and WordPiece."""
    return tokenizer_json(checkpoint.metadata)


_NOTHING = ("bos_token_id", "eos_token_id", "pad_token_id", "max_window_layers")
"""Ids of tokens, and where windows begin in models that are written only if they have none."""

# From prepare_tensors of convert_hf_to_gguf.py.
_IN_FLOAT32 = ("_norm.weight", "position_embd.weight", "token_types.weight", "ffn_gate_inp.weight")

_KERNELS = ("float32", "bfloat16", "float16")
"""What llama.cpp multiplies with: a file can hold float64, and it has no kernel for that."""

_GEMMA = ("gemma", "gemma2", "gemma3")

_NO_BIAS = r".*\.bias"
_ABSENT = {
    **dict.fromkeys(_GEMMA, rf"output\.weight|{_NO_BIAS}"),  # the embedding is the output layer, always
    **dict.fromkeys(("qwen3", "qwen3moe", "phi3"), _NO_BIAS),
    **dict.fromkeys(("qwen2", "qwen2moe"), r"blk\.\d+\.(?!attn_[qkv]\.).*\.bias"),
}
"""Architecture -> what llama.cpp's code for it never asks for; it refuses a file with tensors left over."""

_SHARED = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.{}.self_attn.o_proj": "blk.{}.attn_output",
    "model.layers.{}.mlp.down_proj": "blk.{}.ffn_down",
    "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
    "model.layers.{}.post_attention_layernorm": "blk.{}.ffn_norm",
}
_DECODER = _SHARED | {
    "model.layers.{}.self_attn.q_proj": "blk.{}.attn_q",
    "model.layers.{}.self_attn.k_proj": "blk.{}.attn_k",
    "model.layers.{}.self_attn.v_proj": "blk.{}.attn_v",
    "model.layers.{}.mlp.gate_proj": "blk.{}.ffn_gate",
    "model.layers.{}.mlp.up_proj": "blk.{}.ffn_up",
}
_PHI3 = _SHARED | {
    "model.layers.{}.self_attn.qkv_proj": "blk.{}.attn_qkv",
    "model.layers.{}.mlp.gate_up_proj": "blk.{}.ffn_up",
}
_HEAD_NORMS = {
    "model.layers.{}.self_attn.q_norm": "blk.{}.attn_q_norm",
    "model.layers.{}.self_attn.k_norm": "blk.{}.attn_k_norm",
}
_FOUR_NORMS = {
    "model.layers.{}.post_attention_layernorm": "blk.{}.post_attention_norm",
    "model.layers.{}.pre_feedforward_layernorm": "blk.{}.ffn_norm",
    "model.layers.{}.post_feedforward_layernorm": "blk.{}.post_ffw_norm",
}
_GPT2 = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
    "transformer.h.{}.ln_1": "blk.{}.attn_norm",
    "transformer.h.{}.attn.c_attn": "blk.{}.attn_qkv",
    "transformer.h.{}.attn.c_proj": "blk.{}.attn_output",
    "transformer.h.{}.ln_2": "blk.{}.ffn_norm",
    "transformer.h.{}.mlp.c_fc": "blk.{}.ffn_up",
    "transformer.h.{}.mlp.c_proj": "blk.{}.ffn_down",
}
_BERT = {
    "bert.embeddings.word_embeddings": "token_embd",
    "bert.embeddings.position_embeddings": "position_embd",
    "bert.embeddings.token_type_embeddings": "token_types",
    "bert.embeddings.LayerNorm": "token_embd_norm",
    "bert.encoder.layer.{}.attention.self.query": "blk.{}.attn_q",
    "bert.encoder.layer.{}.attention.self.key": "blk.{}.attn_k",
    "bert.encoder.layer.{}.attention.self.value": "blk.{}.attn_v",
    "bert.encoder.layer.{}.attention.output.dense": "blk.{}.attn_output",
    "bert.encoder.layer.{}.attention.output.LayerNorm": "blk.{}.attn_output_norm",
    "bert.encoder.layer.{}.intermediate.dense": "blk.{}.ffn_up",
    "bert.encoder.layer.{}.output.dense": "blk.{}.ffn_down",
    "bert.encoder.layer.{}.output.LayerNorm": "blk.{}.layer_output_norm",
}
_NOMIC = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": "token_types",
    "emb_ln": "token_embd_norm",
    "encoder.layers.{}.attn.out_proj": "blk.{}.attn_output",
    "encoder.layers.{}.norm1": "blk.{}.attn_output_norm",
    "encoder.layers.{}.mlp.fc11": "blk.{}.ffn_up",
    "encoder.layers.{}.mlp.fc12": "blk.{}.ffn_gate",
    "encoder.layers.{}.mlp.fc2": "blk.{}.ffn_down",
    "encoder.layers.{}.norm2": "blk.{}.layer_output_norm",
}
_EXPERTS = {"model.layers.{}.mlp.gate": "blk.{}.ffn_gate_inp"}
_MIXTRAL = {"model.layers.{}.block_sparse_moe.gate": "blk.{}.ffn_gate_inp"}
_SHARED_EXPERT = {
    f"model.layers.{{}}.mlp.shared_expert.{part}_proj": f"blk.{{}}.ffn_{part}_shexp" for part in ("gate", "up", "down")
}
# What is not a weight or bias of the same name: experts, [experts, out, in], and projections that are joined here.
_FURTHER: Mapping[str, Row] = {
    "gate_up": Row(
        "model.layers.{}.mlp.experts.gate_up_proj",
        ("blk.{}.ffn_gate_exps.weight", "blk.{}.ffn_up_exps.weight"),
        "experts",
        after=(Permute((1, 0, 2)),),
    ),
    "down": Row("model.layers.{}.mlp.experts.down_proj", "blk.{}.ffn_down_exps.weight"),
    "shared": Row("model.layers.{}.mlp.shared_expert_gate.weight", "blk.{}.ffn_gate_inp_shexp.weight", "batched"),
    "qkv": Row(tuple(f"layers.{{}}.self_attn.{part}_proj.weight" for part in "qkv"), "blk.{}.attn_qkv.weight"),
}
_NAMES: Mapping[str, Mapping[str, str]] = {
    "llama": _DECODER | _MIXTRAL,
    "qwen2moe": _DECODER | _EXPERTS | _SHARED_EXPERT,
    "qwen3moe": _DECODER | _EXPERTS | _HEAD_NORMS,
    "nomic-bert": _NOMIC,
    "qwen2": _DECODER,
    "qwen3": _DECODER | _HEAD_NORMS,
    "gemma": _DECODER,
    "gemma2": _DECODER | _FOUR_NORMS,
    "gemma3": _DECODER | _FOUR_NORMS | _HEAD_NORMS,
    "phi3": _PHI3,
    "gpt2": _GPT2,
    "bert": _BERT,
}
_ROWS = {
    "llama": ("gate_up", "down"),
    "qwen2moe": ("gate_up", "down", "shared"),
    "qwen3moe": ("gate_up", "down"),
    "nomic-bert": ("qkv",),
}
_PREFIXES = {"gpt2": "transformer.", "bert": "bert.", "nomic-bert": ""}


def _vocabulary(
    config: Mapping[str, Any], texts: Mapping[str, str], checkpoint: Checkpoint | None
) -> tuple[dict[str, Any], list[str]]:
    embedding = None if checkpoint is None else checkpoint.infos.get("token_embd.weight")
    rows = embedding.shape[0] if embedding is not None and embedding.shape else None
    architecture = architecture_of(config)
    (found, notes), (pooled, further) = vocabulary(texts, config, rows, architecture), pooling(texts, architecture)
    return found | pooled, [*notes, *further]


def _table(architecture: str, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> Table:
    if architecture not in _NAMES:
        raise ConfigError("no names are known for this architecture", expected=", ".join(_NAMES), got=architecture)
    rows = [_FURTHER[row] for row in _ROWS.get(architecture, ())]
    for own, name in _NAMES[architecture].items():
        after: tuple[Layout, ...] = ()
        if architecture == "llama" and own.endswith(("q_proj", "k_proj")):
            after = (RotaryRows(_heads(config, metadata, own.endswith("k_proj"))),)
        transposed = architecture == "gpt2" and ".c_" in own
        norm: tuple[Layout, ...] = (Shift(-1.0),) if architecture in _GEMMA and own.endswith("norm") else after
        rows.append(Row(f"{own}.weight", f"{name}.weight", "dense" if transposed else "same", after=norm))
        rows.append(Row(f"{own}.bias", f"{name}.bias", after=after))
    return Table(rows, prefix=_PREFIXES.get(architecture, "model."))


def _heads(config: Mapping[str, Any], metadata: Mapping[str, Any], keys: bool) -> int:
    """How many heads the queries have, or the keys and values."""
    found = metadata.get("llama.attention.head_count", config.get("num_attention_heads"))
    if keys:
        own = metadata.get("llama.attention.head_count_kv", config.get("num_key_value_heads"))
        found = found if own is None else own
    if type(found) is not int or found < 1:
        raise ConfigError(
            "the rows of queries and keys cannot be put in order without the number of heads",
            expected="llama.attention.head_count in the file, or num_attention_heads in the config: one number",
            got=found,
        )
    return found


def _narrow_norms(checkpoint: Checkpoint) -> list[str]:
    return [name for name, info in checkpoint.infos.items() if "norm" in name and info.dtype != "float32"]


def _need_float32(checkpoint: Checkpoint) -> None:
    if wrong := _narrow_norms(checkpoint):
        raise WeightsError(
            "Gemma's norms are stored with 1 added, which less than float32 cannot hold",
            where=checkpoint.path,
            got=f"{checkpoint.infos[wrong[0]].dtype} in {', '.join(wrong[:4])}",
        )
