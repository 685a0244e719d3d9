"""The configs of keras-hub's backbones and Hugging Face's, each from the other; see `keras_hub`.

What a backbone's code fixes (eps, GELU) is said here as the backbone does it.
Source: keras_hub/src/models/*/*_backbone.py of keras-hub 0.32 and the configuration_*.py of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zoo.errors import ConfigError

__all__ = ["BACKBONES", "from_preset", "to_preset"]

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Backbone:
    """A class of keras-hub.

    Args:
        name: the class.
        folder: of keras_hub/src/models.
        model_type: Hugging Face's.
        architecture: the transformers class that computes the same.
        fields: keras-hub's field -> Hugging Face's, of the same value.
        fixed: what the backbone's code says of Hugging Face's fields.
    """

    name: str
    folder: str
    model_type: str
    architecture: str
    fields: Mapping[str, str]
    fixed: Mapping[str, Any] = field(default_factory=dict)


def from_preset(preset: Config, where: object) -> dict[str, Any]:
    """Hugging Face's config of a preset's config.json.

    Raises:
        ConfigError: a backbone that is not known here, or an option of it that Hugging Face's model lacks.
    """
    name = str(preset.get("registered_name", "")).rpartition(">")[2]
    own = preset.get("config") or {}
    backbone = _find(name, own)
    if backbone is None:
        known = sorted({one.name for one in BACKBONES})
        raise ConfigError("the preset's backbone is not known", where=where, expected=", ".join(known), got=name)
    found = {"model_type": backbone.model_type, "architectures": [backbone.architecture], **backbone.fixed}
    found |= {theirs: own[ours] for ours, theirs in backbone.fields.items() if own.get(ours) is not None}
    return found | _special(backbone, own, where)


def to_preset(config: Config, where: object) -> dict[str, Any]:
    """The config.json of a preset for Hugging Face's config.

    Raises:
        ConfigError: keras-hub has no backbone for it that is known here.
    """
    kind = config.get("model_type")
    backbone = next((one for one in BACKBONES if one.model_type == kind), None)
    if backbone is None:
        known = sorted({one.model_type for one in BACKBONES})
        raise ConfigError("keras-hub has no such backbone", where=where, expected=", ".join(known), got=kind)
    for name, value in _EQUAL.get(backbone.model_type, {}).items():
        wanted = config.get(value) if isinstance(value, str) else value
        if config.get(name, wanted) != wanted:
            raise ConfigError(
                f"keras-hub's {backbone.name} has no such {name}",
                where=f"config.json, {name}",
                expected=wanted,
                got=config[name],
            )
    own = {ours: config[theirs] for ours, theirs in backbone.fields.items() if config.get(theirs) is not None}
    own |= _special_back(backbone, config, own)
    return {
        "module": f"keras_hub.src.models.{backbone.folder}.{backbone.folder}_backbone",
        "class_name": backbone.name,
        "config": {"name": f"{backbone.folder}_backbone", "trainable": True, **own},
        "registered_name": f"keras_hub>{backbone.name}",
    }


def _find(name: str, own: Config) -> Backbone | None:
    kind = "gemma2" if own.get("use_post_ffw_norm") else None
    found = [one for one in BACKBONES if one.name == name]
    return next((one for one in found if kind and one.model_type == kind), found[0] if found else None)


def _special(backbone: Backbone, own: Config, where: object) -> dict[str, Any]:
    """What is not the same value under another name."""
    kind = backbone.model_type
    if kind in ("roberta", "xlm-roberta"):  # two rows of the table stand before the first position
        return {"max_position_embeddings": own["max_sequence_length"] + 2}
    if kind == "albert" and (own.get("num_groups", 1), own.get("num_inner_repetitions", 1)) != (1, 1):
        raise ConfigError("ALBERT with several groups of layers is not known", where=where, expected="one group")
    if kind == "llama":
        if own.get("rope_frequency_adjustment_factor") or own.get("rope_position_scaling_factor", 1.0) != 1.0:
            raise ConfigError("scaled rotary positions are not known", where=where, got=own)
        theta = float(own.get("rope_max_wavelength", 10000))
        return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}, "rope_theta": theta}
    if kind in ("gemma", "gemma2"):
        if (eps := own.get("layer_norm_epsilon", _GEMMA_EPS)) != _GEMMA_EPS:
            raise ConfigError(
                "keras-hub's Gemma takes this eps for its last norm alone; Hugging Face's has one for all",
                where=f"{where}, layer_norm_epsilon",
                expected=_GEMMA_EPS,
                got=eps,
            )
        found: dict[str, Any] = {"intermediate_size": own["intermediate_dim"] // 2}  # keras-hub counts both halves
        if kind == "gemma2":
            heads = own["num_query_heads"]
            by_head = own.get("query_head_dim_normalize", True)
            found["query_pre_attn_scalar"] = own["head_dim"] if by_head else own["hidden_dim"] // heads
            layers = range(own["num_layers"])
            sliding = own.get("use_sliding_window_attention")
            names = ("full_attention", "sliding_attention")
            found["layer_types"] = [names[bool(sliding) and layer % 2 == 0] for layer in layers]
            for name in ("final_logit_softcapping", "attn_logit_softcapping"):
                found[name] = own.get(name.replace("softcapping", "soft_cap").replace("attn", "attention"))
        return found
    if kind == "t5":
        kinds = {"relu": "relu", "silu": "silu", "gelu": "gelu_python"}
        activation = own.get("activation", "relu")
        if "gelu_approximate" in str(activation):
            kinds[str(activation)] = "gelu"  # transformers takes "gated-gelu" for the approximation
        gate = "gated-" if own.get("use_gated_activation", True) else ""
        if not gate and "gelu_approximate" in str(activation):
            kinds[str(activation)] = "gelu_new"
        return {"feed_forward_proj": gate + kinds[str(activation)]}
    if kind == "vit":
        size, patch = own["image_shape"], own["patch_size"]
        options = ("use_class_token", "use_mlp_bias", "use_mha_bias")
        if size[0] != size[1] or not all(own.get(name, True) for name in options):
            raise ConfigError("a ViT of this form is not known", where=where, got=own)
        return {
            "image_size": size[0],
            "num_channels": size[2],
            "patch_size": patch[0] if isinstance(patch, list) else patch,
        }
    if kind == "whisper":
        layers, heads, wide = own["num_layers"], own["num_heads"], own["intermediate_dim"]
        found = {"max_source_positions": own["max_encoder_sequence_length"] // 2, "num_hidden_layers": layers}
        for part in ("encoder", "decoder"):
            found |= {f"{part}_layers": layers, f"{part}_attention_heads": heads, f"{part}_ffn_dim": wide}
        if own["vocabulary_size"] <= 50257:  # less than any published one: the usual padding is no token of it
            found["pad_token_id"] = None
        return found
    return {}


_EQUAL: Mapping[str, Mapping[str, Any]] = {
    "t5": {
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "num_decoder_layers": "num_layers",
    },
    "vit": {"qkv_bias": True},  # without it keras-hub leaves out the output's bias, too
    "whisper": {
        "decoder_layers": "encoder_layers",
        "decoder_attention_heads": "encoder_attention_heads",
        "decoder_ffn_dim": "encoder_ffn_dim",
    },
}
"""Fields that have one value in a backbone, or that of another field."""


def _special_back(backbone: Backbone, config: Config, own: Config) -> dict[str, Any]:
    kind = backbone.model_type
    if kind in ("roberta", "xlm-roberta"):
        return {"max_sequence_length": config["max_position_embeddings"] - 2}
    if kind == "gpt2":
        return {"intermediate_dim": config.get("n_inner") or 4 * config["n_embd"]}
    if kind == "llama":
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise ConfigError(
                "scaled rotary positions are not known for keras-hub",
                where="config.json, rope_parameters",
                expected="rope_type default",
                got=rope,
            )
        return {
            "rope_max_wavelength": rope.get("rope_theta", config.get("rope_theta", 10000.0)),
            "num_key_value_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
            "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        }
    if kind in ("gemma", "gemma2"):
        found: dict[str, Any] = {"intermediate_dim": 2 * config["intermediate_size"], "layer_norm_epsilon": _GEMMA_EPS}
        if kind == "gemma2":
            found |= {
                "query_head_dim_normalize": config["query_pre_attn_scalar"] == config["head_dim"],
                "use_post_ffw_norm": True,
                "use_post_attention_norm": True,
                "use_sliding_window_attention": "sliding_attention"
                in config.get("layer_types", ("sliding_attention",)),
                "final_logit_soft_cap": config.get("final_logit_softcapping"),
                "attention_logit_soft_cap": config.get("attn_logit_softcapping"),
            }
        return found
    if kind == "t5":
        form = str(config.get("feed_forward_proj", "relu"))
        approximate = {
            "module": "builtins",
            "class_name": "function",
            "config": "gelu_approximate",
            "registered_name": "keras_hub>gelu_approximate",
        }
        act = form.rpartition("-")[2]
        return {
            "use_gated_activation": form.startswith("gated"),
            "activation": approximate if act in ("gelu", "gelu_new") else {"gelu_python": "gelu"}.get(act, act),
        }
    if kind == "vit":
        size, patch = config["image_size"], config["patch_size"]
        shape = [size, size, config.get("num_channels", 3)]
        return {"image_shape": shape, "patch_size": [patch, patch], "use_mha_bias": True}
    if kind == "whisper":
        return {
            "num_layers": config["encoder_layers"],
            "num_heads": config["encoder_attention_heads"],
            "intermediate_dim": config["encoder_ffn_dim"],
            "max_encoder_sequence_length": 2 * config["max_source_positions"],
        }
    return {}


_ENCODER = {
    "vocabulary_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
}
_DECODER = {
    "vocabulary_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_query_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "hidden_dim": "hidden_size",
}
_LLAMA = _DECODER | {"layer_norm_epsilon": "rms_norm_eps", "intermediate_dim": "intermediate_size"}
_GEMMA = _DECODER | {"head_dim": "head_dim"}
_GEMMA_EPS = 1e-6  # its blocks compute with it, whatever the preset says
_GEMMA_FIXED = {"hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "rms_norm_eps": _GEMMA_EPS}
_TANH = {"hidden_act": "gelu_new", "layer_norm_eps": 1e-12}
_ROBERTA = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "type_vocab_size": 1, "pad_token_id": 1}

BACKBONES: tuple[Backbone, ...] = (
    Backbone(
        "BertBackbone", "bert", "bert", "BertModel", _ENCODER | {"num_segments": "type_vocab_size"}, _TANH
    ),
    Backbone("RobertaBackbone", "roberta", "roberta", "RobertaModel", _ENCODER, _ROBERTA),
    Backbone("XLMRobertaBackbone", "xlm_roberta", "xlm-roberta", "XLMRobertaModel", _ENCODER, _ROBERTA),
    Backbone(
        "DistilBertBackbone",
        "distil_bert",
        "distilbert",
        "DistilBertModel",
        {
            "vocabulary_size": "vocab_size",
            "num_layers": "n_layers",
            "num_heads": "n_heads",
            "hidden_dim": "dim",
            "intermediate_dim": "hidden_dim",
            "max_sequence_length": "max_position_embeddings",
        },
        {"activation": "gelu"},
    ),
    Backbone(
        "AlbertBackbone",
        "albert",
        "albert",
        "AlbertModel",
        _ENCODER | {"embedding_dim": "embedding_size", "num_segments": "type_vocab_size"},
        _TANH | {"num_hidden_groups": 1, "inner_group_num": 1},
    ),
    Backbone(
        "GPT2Backbone",
        "gpt2",
        "gpt2",
        "GPT2LMHeadModel",
        {
            "vocabulary_size": "vocab_size",
            "num_layers": "n_layer",
            "num_heads": "n_head",
            "hidden_dim": "n_embd",
            "intermediate_dim": "n_inner",
            "max_sequence_length": "n_positions",
        },
        {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5},
    ),
    Backbone(
        "LlamaBackbone",
        "llama",
        "llama",
        "LlamaForCausalLM",
        _LLAMA | {"tie_word_embeddings": "tie_word_embeddings"},
        {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False},
    ),
    Backbone(
        "GemmaBackbone",
        "gemma",
        "gemma",
        "GemmaForCausalLM",
        _GEMMA,
        _GEMMA_FIXED | {"hidden_act": "gelu_pytorch_tanh"},
    ),
    Backbone(
        "GemmaBackbone",
        "gemma",
        "gemma2",
        "Gemma2ForCausalLM",
        _GEMMA | {"sliding_window_size": "sliding_window"},
        _GEMMA_FIXED,
    ),
    Backbone(
        "T5Backbone",
        "t5",
        "t5",
        "T5Model",
        {
            "vocabulary_size": "vocab_size",
            "num_layers": "num_layers",
            "num_heads": "num_heads",
            "hidden_dim": "d_model",
            "intermediate_dim": "d_ff",
            "key_value_dim": "d_kv",
            "layer_norm_epsilon": "layer_norm_epsilon",
            "tie_embedding_weights": "tie_word_embeddings",
        },
        {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
    ),
    Backbone(
        "ViTBackbone",
        "vit",
        "vit",
        "ViTModel",
        {
            "num_layers": "num_hidden_layers",
            "num_heads": "num_attention_heads",
            "hidden_dim": "hidden_size",
            "mlp_dim": "intermediate_size",
            "layer_norm_epsilon": "layer_norm_eps",
        },
        {"hidden_act": "gelu", "qkv_bias": True},
    ),
    Backbone(
        "WhisperBackbone",
        "whisper",
        "whisper",
        "WhisperModel",
        {
            "vocabulary_size": "vocab_size",
            "hidden_dim": "d_model",
            "num_mels": "num_mel_bins",
            "max_decoder_sequence_length": "max_target_positions",
        },
        {"activation_function": "gelu"},
    ),
)  # fmt: skip
"""Every backbone that is known here; of two with one name, the first without post-norms."""
