"""config.json as transformers 4 spells it, and what its TensorFlow and Flax classes make of it.

Only transformers up to 4.57 reads their files. It knows no rope_parameters and takes 10000 where rope_theta is missing.
Some of its classes compute with a number of their own, whatever config.json says: Flax's Llama has 10000 in its code.
Source: configuration_*.py of transformers 4.57.6 and 5.23; `FIXED` was found by running each class with other values,
tests/oracle/find_fields.py, benchmarks/results/fields_of_transformers4.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converters.dialects.fields import Fields

__all__ = ["FIXED", "UNTIED", "spelled", "understood"]

_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}

_ATTENTION = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
_EPS = {"layer_norm_eps": 1e-5}
_NO_DECODER = {"is_decoder": False}
_EXACT_GELU = {"hidden_act": "gelu"}
_PADDING = {"pad_token_id": 1}  # positions count from the number after it

FIXED: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "flax": {
        "llama": _ROPE,
        "mistral": _ROPE,
        "gemma": _ROPE,
        "gpt2": _ATTENTION,
        "resnet": {"downsample_in_bottleneck": False},
        "xglm": _PADDING,
        "wav2vec2": _EPS,
        **dict.fromkeys(("ElectraForMaskedLM", "ElectraForCausalLM"), _EXACT_GELU),
    },
    "tf": {
        "gpt2": _ATTENTION,
        "resnet": {"downsample_in_bottleneck": False, "hidden_act": "relu"},
        "openai-gpt": {"afn": "gelu"},
        "ctrl": {"layer_norm_epsilon": 1e-6},
        "wav2vec2": _EPS,
        "hubert": _EPS,
        **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), _PADDING),
        **dict.fromkeys(("convbert", "mobilebert", "mpnet", "roformer"), _NO_DECODER),
    },
}
"""Framework -> model type, or class of torch -> field -> what its class computes with, in part at least."""

_EQUAL_HEADS = {("flax", "llama"), ("flax", "mistral"), ("tf", "mistral")}
"""Classes that divide the width evenly among their heads, whatever head_dim says."""

UNTIED = {("flax", "llama"), ("flax", "mistral"), ("tf", "mistral"), ("tf", "gptj")}
"""Classes with an output layer of their own, whatever tie_word_embeddings says."""

_LOCAL = ("rope_local_base_freq", "local_rope_theta")
_SCALING = ("t5", "longt5", "mt5")
"""Model types where transformers 4 scales what the output layer takes unless it is untied."""


def spelled(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config, nested ones included, under the names that transformers 4 has for its fields."""
    found = {
        key: spelled(value) if isinstance(value, Mapping) and "model_type" in value else value
        for key, value in config.items()
    }
    kind = found.get("model_type")
    found |= _rotary(found.pop("rope_parameters", None), kind)
    if kind == "gemma":
        found["hidden_activation"] = _gemma_activation(found.get("hidden_act"))
    if kind in _SCALING and found.pop("scale_decoder_outputs", None) is False:
        found["tie_word_embeddings"] = False
    return found


def understood(framework: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of what a class of TensorFlow ("tf") or Flax ("flax") computes, of the config.json beside it."""
    kind = str(config.get("model_type"))
    cls = next(iter(config.get("architectures") or ()), "")
    fixed = {**FIXED[framework].get(kind, {}), **FIXED[framework].get(cls, {})}
    found = dict(config)
    if "rope_parameters" in fixed:
        found = {key: value for key, value in found.items() if key not in ("rope_theta", "rope_scaling")}
    if (framework, kind) in _EQUAL_HEADS and found.get("head_dim") is not None:
        fixed["head_dim"] = found["hidden_size"] // found["num_attention_heads"]
    if kind == "gemma":
        fixed["hidden_act"] = _gemma_activation(found.pop("hidden_activation", None))
    return Fields(fixed).understood(found)


def _gemma_activation(name: Any) -> Any:
    """Gemma's "gelu" always meant the approximation, in either version."""
    return "gelu_pytorch_tanh" if name in (None, "gelu") else name


def _rotary(rope: Any, kind: Any) -> dict[str, Any]:
    """rope_theta, rope_scaling and partial_rotary_factor of rope_parameters; of one for each kind of layer, too."""
    if not isinstance(rope, Mapping):
        return {}
    if isinstance(rope.get("full_attention"), Mapping):
        local = rope.get("sliding_attention")
        found = _rotary(rope["full_attention"], kind)
        if kind == "modernbert":
            found["global_rope_theta"] = found.pop("rope_theta", 10000.0)
        if isinstance(local, Mapping) and "rope_theta" in local:
            found[_LOCAL[kind == "modernbert"]] = local["rope_theta"]
        return found
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor", "type")}
    found = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    found["rope_scaling"] = scaling if scaling.get("rope_type", "default") != "default" else None
    return found
