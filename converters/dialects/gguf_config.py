"""Between GGUF's metadata and a model's config.json, both ways, from one table.

Sources: the keys from https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and gguf-py's constants.py; what
llama.cpp takes for granted (Gemma's scales and windows, Llama 3's frequencies) from its sources, src/llama-model.cpp
and convert_hf_to_gguf.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.checkpoint import Checkpoint
from zoo.errors import ConfigError

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "architecture_of",
    "computed",
    "config",
    "metadata",
    "notes",
    "scaling_tensors",
]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A general.architecture of GGUF.

    Args:
        model_type: Hugging Face's.
        cls: the class whose checkpoint it is.
        fields: the key after the architecture's name -> field of the config.
        sliding: the model type where every layer has a sliding window, if that is another one.
        experts: the model type where there are experts, and its class, if that is another one.
        fixed: fields that the architecture implies.
    """

    model_type: str
    cls: str
    fields: Mapping[str, str]
    sliding: str | None = None
    experts: tuple[str, str] | None = None
    fixed: Mapping[str, Any] | None = None


_SIZES = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_DECODER = _SIZES | {
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_WINDOW = {"attention.sliding_window": "sliding_window"}
_CAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
_EXPERTS = {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}
_QWEN_EXPERTS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_SHARED_EXPERT = {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"}
_EVERY_LAYER = {"decoder_sparse_step": 1, "mlp_only_layers": []}
_GPT2 = {
    "context_length": "n_positions",
    "block_count": "n_layer",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_GEMMA3 = {"sliding_window_pattern": 6}
_LOCAL_THETA = {"rope.freq_base_swa": "rope_local_base_freq"}
_TANH = {"hidden_activation": "gelu_pytorch_tanh"}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(
        "llama",
        "LlamaForCausalLM",
        _DECODER | _WINDOW | _EXPERTS,
        sliding="mistral",
        experts=("mixtral", "MixtralForCausalLM"),
    ),
    "qwen2moe": Architecture(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        _DECODER | _QWEN_EXPERTS | _SHARED_EXPERT,
        fixed=_EVERY_LAYER | {"norm_topk_prob": False},
    ),
    "qwen3moe": Architecture(
        "qwen3_moe", "Qwen3MoeForCausalLM", _DECODER | _QWEN_EXPERTS, fixed=_EVERY_LAYER | {"norm_topk_prob": True}
    ),
    "nomic-bert": Architecture(
        "nomic_bert",
        "NomicBertModel",
        _SIZES | {"attention.layer_norm_epsilon": "layer_norm_eps", "rope.freq_base": "rope_theta"},
    ),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", _DECODER),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", _DECODER),
    "gemma": Architecture("gemma", "GemmaForCausalLM", _DECODER, fixed=_TANH),
    "gemma2": Architecture("gemma2", "Gemma2ForCausalLM", _DECODER | _WINDOW | _CAPS, fixed=_TANH),
    "gemma3": Architecture(
        "gemma3_text", "Gemma3ForCausalLM", _DECODER | _WINDOW | _LOCAL_THETA, fixed=_TANH | _GEMMA3
    ),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", _DECODER | _WINDOW),
    "gpt2": Architecture("gpt2", "GPT2LMHeadModel", _GPT2),
    "bert": Architecture("bert", "BertModel", _SIZES | {"attention.layer_norm_epsilon": "layer_norm_eps"}),
}

_WHOLE_HEADS = frozenset(ARCHITECTURES) - {"phi3"}

_NEEDED = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count")
_TOKENS = {
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}


def config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The config.json that follows from a GGUF file; None where it does not say what it is.

    Raises:
        ConfigError: an architecture that is not known here, sizes that are missing, experts, or a scaling of the
            rotary embedding that is none of linear, yarn, longrope and Llama 3's.
    """
    name = checkpoint.metadata.get("general.architecture")
    if name is None:
        return None
    architecture = ARCHITECTURES.get(name)
    experts = checkpoint.metadata.get(f"{name}.expert_count")
    if architecture is None or (experts and "expert_count" not in architecture.fields):
        raise ConfigError(
            "no config can be derived for this architecture",
            where=checkpoint.path,
            expected=", ".join(ARCHITECTURES) + (", without experts" if experts else ""),
            got=name,
            do="add the model's config.json",
        )
    values = {
        key.removeprefix(f"{name}."): _plain(value)
        for key, value in checkpoint.metadata.items()
        if key.startswith(f"{name}.")
    }
    lacking = [f"{name}.{key}" for key in _NEEDED if type(values.get(key)) is not int or values[key] < 1]
    if lacking:
        raise ConfigError("sizes are missing in the metadata", where=checkpoint.path, expected=", ".join(lacking))
    found: dict[str, Any] = {"architectures": [architecture.cls], "model_type": architecture.model_type}
    found |= {field: values[key] for key, field in architecture.fields.items() if values.get(key) is not None}
    found |= {field: checkpoint.metadata[key] for key, field in _TOKENS.items() if key in checkpoint.metadata}
    found["vocab_size"] = _rows(checkpoint, "token_embd.weight")
    found |= architecture.fixed or {}
    if name != "phi3":
        found.pop("pad_token_id", None)  # the others' networks do not depend on it, and Phi3Config has a number for it
    if name in ("bert", "nomic-bert"):
        found["type_vocab_size"] = _rows(checkpoint, "token_types.weight")
    elif name == "gpt2":
        found["tie_word_embeddings"] = "output.weight" not in checkpoint.infos
        if found["n_inner"] == 4 * found["n_embd"]:
            del found["n_inner"]  # as published: the class multiplies
    else:
        _complete_decoder(found, name, values, checkpoint)
    return found


def metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """The key/values that describe a model, without its tokenizer, for writing a GGUF file.

    Raises:
        ConfigError: a model type or a scaling that llama.cpp does not have, or keeps in tensors of its own.
    """
    name = architecture_of(config)
    architecture = ARCHITECTURES[name]
    fields = _flat(config)
    fields.setdefault("num_key_value_heads", fields.get("num_attention_heads"))
    if name.startswith("qwen") and fields.get("use_sliding_window"):
        raise ConfigError(
            "llama.cpp has no sliding windows in this model", expected="use_sliding_window false", got=True
        )
    if name in _WHOLE_HEADS and fields.get("partial_rotary_factor", 1) != 1:
        raise ConfigError(
            "llama.cpp rotates whole heads in this model",
            where="config.json, partial_rotary_factor",
            expected=1,
            got=fields["partial_rotary_factor"],
        )
    if name == "gpt2" and fields.get("n_inner") is None:
        fields["n_inner"] = 4 * fields["n_embd"]
    if name in ("gemma2", "gemma3"):
        _check_scale(name, fields)
    if name in ("qwen2moe", "qwen3moe"):
        _check_experts(name, fields)
    found: dict[str, Any] = {"general.architecture": name}
    found |= {f"{name}.{k}": fields[field] for k, field in architecture.fields.items() if fields.get(field) is not None}
    found |= {f"{name}.{key}": value for key, value in _scaling_keys(name, fields)}
    if "rope.freq_base" in architecture.fields:
        found[f"{name}.rope.dimension_count"] = _rotated(fields)
        found[f"{name}.rope.freq_base"] = float(fields.get("rope_theta") or 10000.0)
        if f"{name}.attention.key_length" in found:
            found[f"{name}.attention.value_length"] = found[f"{name}.attention.key_length"]
    if name in ("bert", "nomic-bert"):
        found[f"{name}.attention.causal"] = False
        found["tokenizer.ggml.token_type_count"] = fields.get("type_vocab_size", 2)  # llama.cpp loads none without it
    return found | {key: fields[field] for key, field in _TOKENS.items() if type(fields.get(field)) is int}


def computed(config: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The config that follows from a file, as what llama.cpp computes from it.

    It has no sliding windows in the architectures "llama" and "phi3": one that is no shorter than the longest text
    makes no difference. In its BERT every "gelu" is the tanh approximation.

    Args:
        config: what `config` derived.
        own: the config of the model that the file was written from.
    """
    name, found = architecture_of(config), dict(config)
    if name in ("llama", "phi3"):
        window, longest = own.get("sliding_window"), own.get("max_position_embeddings")
        idle = type(window) is int and type(longest) is int and window >= longest
        found["sliding_window"] = window if idle else None
    if name == "bert":
        found["hidden_act"] = "gelu_pytorch_tanh"
    if name == "gemma3":  # as transformers 5 spells it, one for each kind of layer
        every, layers = found.pop("sliding_window_pattern"), found["num_hidden_layers"]
        scaling = found.pop("rope_scaling", None) or {"rope_type": "default"}
        theta, local = found.pop("rope_theta"), found.pop("rope_local_base_freq")
        found["rope_parameters"] = {
            "full_attention": scaling | {"rope_theta": theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        }
        found["layer_types"] = [
            "sliding_attention" if (number + 1) % every else "full_attention" for number in range(layers)
        ]
    return found


def notes(config: Mapping[str, Any]) -> list[str]:
    """What llama.cpp does otherwise for reasons that lie with its user."""
    fields = _flat(config)
    if _rope_scaling(fields)["rope_type"] != "longrope":
        return []
    original = fields.get("original_max_position_embeddings") or _rope_scaling(fields).get(
        "original_max_position_embeddings"
    )
    return [f"llama.cpp takes long_factor wherever its context is longer than {original}, not where the text is"]


def scaling_tensors(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What llama.cpp keeps of a rotary embedding's scaling in tensors: what each frequency is divided by, float32."""
    name, fields = architecture_of(config), _flat(config)
    scaling = _rope_scaling(fields)
    if scaling["rope_type"] == "llama3":
        divisors = _llama3_divisors(_rotated(fields) // 2, float(fields.get("rope_theta") or 10000.0), scaling)
        return {"rope_freqs.weight": divisors.astype(np.float32)}
    if scaling["rope_type"] == "longrope" and name == "phi3":
        return {
            f"rope_factors_{which}.weight": np.asarray(scaling[f"{which}_factor"], np.float32)
            for which in ("long", "short")
        }
    return {}


def architecture_of(config: Mapping[str, Any]) -> str:
    """llama.cpp's name of a model type.

    Raises:
        ConfigError: it has none that is known here.
    """
    model_type = config.get("model_type")
    for name, architecture in ARCHITECTURES.items():
        if model_type in (architecture.model_type, architecture.sliding, (architecture.experts or [None])[0]):
            return name
    known = ", ".join(architecture.model_type for architecture in ARCHITECTURES.values())
    raise ConfigError("no architecture of llama.cpp is known for this model type", expected=known, got=model_type)


def _complete_decoder(found: dict[str, Any], name: str, values: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """What a decoder's config has besides sizes, and what llama.cpp takes for granted where a key is missing."""
    found.setdefault("num_key_value_heads", found["num_attention_heads"])
    found.setdefault("rope_theta", 10000.0)
    found["tie_word_embeddings"] = "output.weight" not in checkpoint.infos
    equal = found["hidden_size"] // found["num_attention_heads"]
    rotated = values.get("rope.dimension_count")
    if name == "phi3":
        if rotated is not None and rotated != found.get("head_dim", equal):
            found["partial_rotary_factor"] = rotated / found.get("head_dim", equal)
    elif rotated is not None:
        found.setdefault("head_dim", rotated)
    if name in ("llama", "qwen2", "qwen2moe", "phi3") and found.get("head_dim") == equal:
        del found["head_dim"]
    if name.startswith("qwen"):  # as published; llama.cpp has no windows in these
        found |= {"use_sliding_window": False, "max_window_layers": found["num_hidden_layers"]}
    if name in ("llama", "qwen3", "qwen3moe") and "blk.0.attn_q.bias" in checkpoint.infos:
        found["attention_bias"] = True
    if name == "llama" and "blk.0.ffn_down.bias" in checkpoint.infos:
        found["mlp_bias"] = True
    if name == "llama" and found.get("num_local_experts"):
        found |= {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
    elif name == "llama" and "sliding_window" in found:
        found |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    if name == "gemma3":
        found.setdefault("rope_local_base_freq", 10000.0)
    if name in ("gemma2", "gemma3"):
        found["query_pre_attn_scalar"] = _query_scale(name, found)
    scaling = _scaling(name, values, checkpoint)
    if scaling:
        found["rope_scaling"] = scaling
    if "long_factor" in scaling and "rope.scaling.original_context_length" in values:
        found["original_max_position_embeddings"] = values["rope.scaling.original_context_length"]


def _query_scale(name: str, fields: Mapping[str, Any]) -> int:
    """What Gemma's scores are divided by the root of: llama.cpp knows the 27B models by their number of layers."""
    if fields["num_hidden_layers"] == {"gemma2": 46, "gemma3": 62}[name]:
        return fields["hidden_size"] // fields["num_attention_heads"]
    return fields.get("head_dim", 256)


def _check_scale(name: str, fields: Mapping[str, Any]) -> None:
    expected, got = _query_scale(name, fields), fields.get("query_pre_attn_scalar", 256)
    if expected != got:
        raise ConfigError("llama.cpp would scale the attention otherwise", where=name, expected=expected, got=got)


def _check_experts(name: str, fields: Mapping[str, Any]) -> None:
    implied = ARCHITECTURES[name].fixed or {}
    differing = {key: fields[key] for key in implied if key in fields and fields[key] != implied[key]}
    if differing:
        raise ConfigError("llama.cpp would choose experts otherwise", where=name, expected=implied, got=differing)


def _scaling(name: str, values: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    kind = values.get("rope.scaling.type", "none")
    factor = values.get("rope.scaling.factor", values.get("rope.scale_linear"))
    if "rope_factors_long.weight" in checkpoint.infos:
        short, long = (
            [float(str(value)) for value in checkpoint.read(f"rope_factors_{which}.weight").reshape(-1)]
            for which in ("short", "long")
        )
        return {"type": "longrope", "short_factor": short, "long_factor": long}
    if "rope_freqs.weight" in checkpoint.infos:
        return _llama3(checkpoint, name, values)
    if kind == "none" and factor in (None, 1.0, 0.0):
        return {}
    if kind in ("linear", "none") and factor:
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and factor:
        original = values.get("rope.scaling.original_context_length")
        return {"rope_type": "yarn", "factor": factor} | (
            {} if original is None else {"original_max_position_embeddings": original}
        )
    raise ConfigError(
        "the rotary embedding is scaled in a way that is not known here",
        where=checkpoint.path,
        expected="linear, yarn, longrope or Llama 3's",
        got=kind,
        do="add the model's config.json",
    )


def _llama3(checkpoint: Checkpoint, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 3's scaling from its divisors of the frequencies: only the factor differs between published models."""
    stored = checkpoint.read("rope_freqs.weight").reshape(-1)
    if np.all(stored == 1):
        return {}
    theta = values.get("rope.freq_base", 10000.0)
    half = len(stored)
    # The slowest frequency is divided by the factor itself, or by less where heads are so small that none is that slow.
    share, part = float(_llama3_shares(half, theta, _LLAMA3)[-1]), 1 / float(stored[-1])
    factor = (1 - share) / (part - share) if share < part else 1.0
    scaling = {"rope_type": "llama3", "factor": round(factor, 4), **_LLAMA3}
    expected = _llama3_divisors(half, theta, scaling)
    if not np.allclose(stored, expected, rtol=1e-4):  # the file has float32, from single precision
        raise ConfigError(
            "rope_freqs.weight is no scaling of Llama 3's",
            where=checkpoint.path,
            expected=f"low_freq_factor 1, high_freq_factor 4, 8192 positions, rope.freq_base {theta}",
            got=str(stored[:8]),
            do="add the model's config.json",
        )
    return scaling


_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What all published Llama 3 have. A file holds nothing but the divisors, of which these cannot be told."""


def _llama3_divisors(half: int, theta: float, scaling: Mapping[str, Any]) -> np.ndarray:
    """[half]: what Llama 3 divides each frequency by, from 1 for the fast ones to the factor for the slow ones."""
    shares = _llama3_shares(half, theta, scaling)
    return 1 / ((1 - shares) / scaling["factor"] + shares)


def _llama3_shares(half: int, theta: float, scaling: Mapping[str, Any]) -> np.ndarray:
    """[half]: how much of each frequency stays as it was, 1 for the fast ones."""
    lengths = 2 * math.pi * theta ** (np.arange(half) / half)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    return np.clip((scaling["original_max_position_embeddings"] / lengths - low) / (high - low), 0, 1)


def _rope_scaling(fields: Mapping[str, Any]) -> dict[str, Any]:
    scaling = dict(fields.get("rope_scaling") or {})
    kind = scaling.pop("type", "default")
    return {"rope_type": kind} | scaling


def _rotated(fields: Mapping[str, Any]) -> int:
    """How many features of a head are rotated."""
    size = fields.get("head_dim") or fields["hidden_size"] // fields["num_attention_heads"]
    return int(size * fields.get("partial_rotary_factor", 1))


def _scaling_keys(name: str, fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    scaling = _rope_scaling(fields)
    kind = scaling["rope_type"]
    original = scaling.get("original_max_position_embeddings", fields.get("original_max_position_embeddings"))
    needed = {"linear": ("factor",), "yarn": ("factor",), "llama3": ("factor", *_LLAMA3)}
    lacking = [key for key in needed.get(kind, ()) if type(scaling.get(key)) not in (int, float)]
    if lacking:
        raise ConfigError("the rotary embedding's scaling lacks a number", where="config.json", expected=lacking)
    if kind in ("linear", "yarn"):
        yield "rope.scaling.type", kind
        yield "rope.scaling.factor", float(scaling["factor"])
        if kind == "yarn" and original is not None:
            yield "rope.scaling.original_context_length", original
    elif kind == "llama3" and all(float(scaling[key]) == value for key, value in _LLAMA3.items()):
        return  # all in a tensor
    elif kind == "longrope" and name == "phi3":
        size, longest = _rotated(fields) // 2, fields.get("max_position_embeddings")
        lists = [scaling.get(f"{which}_factor") for which in ("long", "short")]
        if not all(isinstance(one, list) and len(one) == size for one in lists) or not original or not longest:
            raise ConfigError(
                "the rotary embedding's scaling is not whole",
                where="config.json",
                expected=f"short_factor and long_factor of {size} numbers, and original_max_position_embeddings",
                got=scaling,
            )
        factor = scaling.get("factor") or longest / original
        default = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        yield "rope.scaling.original_context_length", original
        yield "rope.scaling.attn_factor", float(scaling.get("attention_factor") or default)
    elif kind != "default":
        raise ConfigError(
            f"llama.cpp has no scaling of the rotary embedding as this {kind!r}",
            where="config.json, rope_scaling",
            expected=f"none, linear, yarn, Llama 3's ({_LLAMA3}), or in Phi 3 longrope",
            got=scaling,
        )


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with rope_theta and rope_scaling, as published ones have them, where it has rope_parameters."""
    fields = dict(config)
    rope = _mapping(fields.pop("rope_parameters", None))
    if "full_attention" in rope:  # Gemma 3: one for each kind of layer
        local = _mapping(rope.get("sliding_attention"))
        fields["rope_local_base_freq"] = local.get("rope_theta", 10000.0)
        rope = _mapping(rope["full_attention"])
    if "rope_theta" in rope:
        fields["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        fields["rope_scaling"] = rope
    if "partial_rotary_factor" in rope:
        fields["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if fields.get("use_sliding_window") is False:
        fields["sliding_window"] = None
    for name, other in (("num_experts", "num_local_experts"), ("num_local_experts", "num_experts")):
        if other in fields:
            fields.setdefault(name, fields[other])  # transformers 4 and 5 name them differently for one model
    return fields


def _mapping(value: Any) -> Mapping[str, Any]:
    """Fields of the rotary embedding, none where there are none.

    Raises:
        ConfigError: they are something else.
    """
    if value and not isinstance(value, Mapping):
        raise ConfigError(
            "the fields of the rotary embedding are no object", where="config.json, rope_parameters", got=value
        )
    return value or {}


def _plain(value: Any) -> Any:
    """A float as the shortest decimal that is the same float32: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _rows(checkpoint: Checkpoint, name: str) -> int:
    info = checkpoint.infos.get(name)
    if info is None or not info.shape:
        raise ConfigError(f"no tensor named {name!r}, which the config would be derived from", where=checkpoint.path)
    return info.shape[0]
