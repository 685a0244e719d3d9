"""Tiny torch reference models of 36 transformers model types, their inputs, and which outputs to compare.

The sizes of a config differ from each other, from the batch sizes 2 and 3, and from the lengths 7 and 11
(less 2 in a decoder), so that a missed transpose or two mixed-up axes fail by shape or by value. Left equal:
matrices that are square by nature (hidden × hidden). Every weight is drawn here: a fresh model has norm
weights of 1 and biases of 0, and a backend that drops either would still agree with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig


def _without(sizes: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in sizes.items() if key != name}


_TEXT: dict[str, Any] = {
    "hidden_size": 24,  # 4 heads of 6
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "vocab_size": 61,
    "max_position_embeddings": 31,
}
_LLAMA = _TEXT | {"num_attention_heads": 8, "num_key_value_heads": 4, "bos_token_id": 1, "eos_token_id": 2}
_SEQ2SEQ: dict[str, Any] = {
    "d_model": 48,  # 4 heads of 12 in the encoder, 8 of 6 in the decoder
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 53,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "vocab_size": 61,
}
_VISION: dict[str, Any] = {
    "hidden_size": 48,  # 4 heads of 12
    "num_attention_heads": 4,
    "intermediate_size": 61,
    "num_hidden_layers": 2,
    "image_size": (40, 56),  # 5 × 7 patches
    "patch_size": 8,
    "num_channels": 6,
}
_SQUARE = _VISION | {"num_attention_heads": 6, "image_size": 40, "patch_size": 10, "num_channels": 5}
_AUDIO = _without(_TEXT, "max_position_embeddings") | {
    "conv_dim": (10, 14, 18),
    "conv_kernel": (10, 6, 4),
    "conv_stride": (5, 4, 3),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
# As published: an end of 2 makes CLIP take the highest id's place for the end of the text.
_CLIP_IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_NO_TYPES = {"type_vocab_size": 1}  # as published: one token type, which nobody passes

_CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _TEXT,
    "roberta": _TEXT | {"type_vocab_size": 2},
    "xlm-roberta": _TEXT | _NO_TYPES,
    "camembert": _TEXT | _NO_TYPES,
    "distilbert": {
        "dim": 24,
        "n_heads": 4,
        "hidden_dim": 37,
        "n_layers": 2,
        "vocab_size": 61,
        "max_position_embeddings": 31,
    },
    "albert": _TEXT | {"embedding_size": 14},
    "electra": _TEXT | {"embedding_size": 14},
    "mpnet": _TEXT,
    "deberta": _TEXT
    | {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_biased_input": False,
        "max_relative_positions": 19,
        "pooler_hidden_size": 24,
    },
    "deberta-v2": _TEXT
    | {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "position_buckets": 5,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "pooler_hidden_size": 24,
    },
    "modernbert": _TEXT
    | {
        "global_attn_every_n_layers": 2,
        "local_attention": 6,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "layoutlm": _TEXT | {"max_2d_position_embeddings": 43},
    "gpt2": {
        "n_embd": 24,
        "n_head": 4,
        "n_inner": 37,
        "n_layer": 2,
        "vocab_size": 61,
        "n_positions": 31,
        "bos_token_id": 2,
        "eos_token_id": 2,
    },
    "gpt_neox": _TEXT
    | {
        "hidden_size": 48,  # 4 heads of 12 dims, 6 of them rotated
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    },
    "llama": _LLAMA | {"hidden_size": 48},  # 8 heads of 6, 4 key-value heads
    "qwen2": _LLAMA | {"hidden_size": 48},
    "qwen3": _LLAMA | {"hidden_size": 40, "head_dim": 6},  # 8 heads of 6 make 48, not 40
    "mistral": _LLAMA | {"hidden_size": 40, "head_dim": 6, "sliding_window": 4},
    "gemma3_text": _LLAMA
    | {
        "hidden_size": 40,
        "head_dim": 6,
        "query_pre_attn_scalar": 5,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "opt": _without(_TEXT, "intermediate_size") | {"ffn_dim": 37, "word_embed_proj_dim": 14},
    "bloom": {"hidden_size": 48, "n_head": 6, "n_layer": 2, "vocab_size": 61},  # slopes of no power of two
    "t5": {
        "d_model": 40,  # 4 heads of 6 make 24
        "d_kv": 6,
        "num_heads": 4,
        "d_ff": 37,
        "num_layers": 2,
        "num_decoder_layers": 3,
        "vocab_size": 61,
        "relative_attention_num_buckets": 10,
        "relative_attention_max_distance": 13,
    },
    "bart": _SEQ2SEQ | {"max_position_embeddings": 31},
    "marian": _SEQ2SEQ
    | {
        "max_position_embeddings": 31,
        "activation_function": "swish",
        "scale_embedding": True,
        "decoder_vocab_size": 61,
        "pad_token_id": 60,
        "decoder_start_token_id": 60,
    },
    "vit": _VISION,
    "deit": _VISION,
    "dinov2": {  # made for 6 × 6 patches and given others: positions are interpolated, as in published ones
        "hidden_size": 48,
        "num_attention_heads": 4,
        "mlp_ratio": 3,
        "num_hidden_layers": 2,
        "image_size": 24,
        "patch_size": 4,
        "num_channels": 3,
    },
    "beit": _VISION | {"use_relative_position_bias": True},
    "swin": {  # 11 × 15 patches: windows of 4 need padding in both stages
        "image_size": (22, 30),
        "patch_size": 2,
        "num_channels": 5,
        "embed_dim": 24,
        "depths": [2, 2],
        "num_heads": [4, 8],
        "window_size": 4,
        "mlp_ratio": 2.5,
    },
    "convnext": {"num_channels": 5, "num_stages": 3, "hidden_sizes": [12, 20, 28], "depths": [1, 2, 1]},
    "resnet": {"num_channels": 5, "embedding_size": 14, "hidden_sizes": [16, 24, 40], "depths": [1, 2, 1]},
    "clip": {
        "text_config": _TEXT | _CLIP_IDS | {"projection_dim": 20},
        "vision_config": _SQUARE | {"projection_dim": 20},
        "projection_dim": 20,
    },
    "siglip": {
        "text_config": _TEXT | _CLIP_IDS | {"projection_size": 48},
        "vision_config": _SQUARE,
    },
    "wav2vec2": _AUDIO | {"feat_extract_norm": "group"},  # over all samples: padded ones reach the others
    "hubert": _AUDIO | {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True},
    "whisper": _SEQ2SEQ
    | {
        "num_mel_bins": 10,
        "max_source_positions": 23,
        "max_target_positions": 31,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "decoder_start_token_id": 3,
        "begin_suppress_tokens": None,
    },
}

TYPES: tuple[str, ...] = tuple(_CONFIGS)

_TOKEN_TYPES = {"bert", "roberta", "albert", "electra", "layoutlm"}
_CAUSAL = {"gpt2", "gpt_neox", "llama", "qwen2", "qwen3", "mistral", "gemma3_text", "opt", "bloom", "clip"}
_SCALED = {"gemma3_text", "marian"}  # multiply what they embed by √D
_SEQ2SEQ_TEXT = {"t5", "bart", "marian"}
_AUDIO_TYPES = {"wav2vec2": ("last_hidden_state", "extract_features"), "hubert": ("last_hidden_state",)}
_IMAGES = {"vit", "deit", "dinov2", "beit", "swin", "convnext", "resnet", "clip", "siglip"}
# Of models that take any size. Swin does, too, but branches on what is left over when its windows are laid out.
_IMAGE_SIZES: dict[str, Callable[[int], tuple[int, int]]] = {
    "dinov2": lambda length: (20, 4 * length + 12),
    "convnext": lambda length: (4 * length + 16, 6 * length + 16),
    "resnet": lambda length: (4 * length + 16, 6 * length + 16),
}


def config(model_type: str) -> PretrainedConfig:
    """A tiny config with the flags of published checkpoints and no key-value cache among the outputs."""
    made = AutoConfig.for_model(model_type, **_CONFIGS[model_type])
    if hasattr(made, "use_cache"):
        made.use_cache = False
    return made


def build(model_type: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """The base model in eval mode; its values depend on the seed alone (drawn in float32, then cast)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(config(model_type), dtype=torch.float32)
    generator = torch.Generator().manual_seed(1000 * seed + TYPES.index(model_type))
    seen: set[int] = set()  # a tied weight is drawn once, in place
    with torch.no_grad():
        for path, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad and id(parameter) not in seen:  # no gradient: a table of sinusoids
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(_draw(module, f"{path}.{name}", parameter, noise))
                seen.add(id(parameter))
            for name, buffer in module.named_buffers(recurse=False):
                if name == "running_mean":
                    buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
                elif name == "running_var":
                    buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
        if model_type in _SCALED:
            embedding = model.get_input_embeddings().weight
            embedding /= embedding.shape[1] ** 0.5
    return model.to(dtype).eval()


def inputs(model_type: str, batch: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """What the forward takes: ids and masks int64 [B, T] (a decoder's T is 2 less), pixel_values float32
    [B, C, H, W], input_values float32 [B, 400 T], input_features float32 [B, mels, frames].

    The last of several rows is padded on the right. That alone leaves a causal model free to ignore its mask,
    so of three rows or more the first is padded on the left there (bloom's has a gap instead: its softmax is
    always in float32, where a float64 model's mask of a whole row overflows to NaN)."""
    made, rng = config(model_type), np.random.default_rng([seed, batch, length])
    if model_type == "whisper":
        features = 2 * _smooth(rng, batch, made.num_mel_bins, 2 * made.max_source_positions)
        return {"input_features": features, "decoder_input_ids": _ids(rng, made, batch, length - 2)}
    if model_type in _AUDIO_TYPES:
        mask = _mask(batch, 400 * length)
        samples = rng.normal(size=mask.shape) * mask
        return {"input_values": samples.astype(np.float32), "attention_mask": mask}
    result: dict[str, np.ndarray] = {}
    if model_type in _IMAGES:
        vision = getattr(made, "vision_config", made)
        size = _IMAGE_SIZES[model_type](length) if model_type in _IMAGE_SIZES else vision.image_size
        height, width = (size, size) if isinstance(size, int) else size
        result["pixel_values"] = _smooth(rng, batch, vision.num_channels, height, width)
        if vision is made:
            return result
    text = getattr(made, "text_config", made)
    mask = _mask(batch, length, gap=(int(model_type == "bloom") if model_type in _CAUSAL else None))
    if model_type == "siglip":  # pools the last position: padded on the left, where that one is a token
        mask = np.ascontiguousarray(mask[:, ::-1])
    ids = _ids(rng, text, batch, length)
    if model_type == "clip":
        ids[np.arange(batch), length - 1 - mask[:, ::-1].argmax(1)] = text.vocab_size - 1
    pad = getattr(text, "pad_token_id", None) or 0
    result |= {"input_ids": np.where(mask == 1, ids, pad), "attention_mask": mask}
    if model_type in _TOKEN_TYPES:
        starts = rng.integers(1, length - 2, size=(batch, 1))
        result["token_type_ids"] = (np.arange(length) >= starts).astype(np.int64)
    if model_type == "layoutlm":
        corners = rng.integers(0, made.max_2d_position_embeddings, size=(batch, length, 2, 2))
        result["bbox"] = np.sort(corners, axis=2).reshape(batch, length, 4)  # x0, y0, x1, y1
    if model_type in _SEQ2SEQ_TEXT:
        mask = _mask(batch, length - 2, gap=0)
        result["decoder_input_ids"] = np.where(mask == 1, _ids(rng, text, batch, length - 2), pad)
        result["decoder_attention_mask"] = mask
    return result


def output_mask(model_type: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """Which positions of an output hold a value worth comparing, bool [B, T] by output name (nested names
    joined by dots). An output not named is compared whole; None: all are."""
    if "attention_mask" not in inputs:
        return None
    mask = inputs["attention_mask"]
    if model_type in _AUDIO_TYPES:
        made, frames, kept = config(model_type), mask.shape[1], mask.sum(1, keepdims=True)
        for kernel, stride in zip(made.conv_kernel, made.conv_stride, strict=True):
            frames, kept = (frames - kernel) // stride + 1, (kept - kernel) // stride + 1
        return dict.fromkeys(_AUDIO_TYPES[model_type], np.arange(frames) < kept)
    if model_type in _SEQ2SEQ_TEXT:
        decoder = inputs["decoder_attention_mask"]
        return {"last_hidden_state": decoder == 1, "encoder_last_hidden_state": mask == 1}
    name = "text_model_output.last_hidden_state" if model_type in _IMAGES else "last_hidden_state"
    return {name: mask == 1}


# Queries and keys in modules of their own (not T5's, whose scores are not divided), then all in one.
_SCORES = re.compile(r"(attn\.[qk]|query|key|[qk]_(proj|lin)|(query|key|pos|pos_q)_proj)\.weight$")
_EXTRA = re.compile(r"(position_embeddings?|token_type_embeddings)\.weight$")  # added to those of the tokens
_FUSED = re.compile(r"(c_attn|query_key_value|Wqkv|in_proj)[._]weight$")


def _draw(module: nn.Module, path: str, old: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """A parameter's value from unit noise: outputs keep a scale near 1, attention scores one well above it."""
    kind, name = type(module).__name__, path.rpartition(".")[2]
    if name.endswith("bias"):
        return 0.2 * noise
    if "Norm" in kind:  # around what a fresh one has: 1, or 0 where the module adds the 1 itself
        return old + 0.3 * noise
    if name == "original0":  # weight_norm's lengths, [1, 1, kernel]: those of a weight drawn as below
        return (1 + 0.3 * noise) * (module.original1.shape[0] / noise.numel()) ** 0.5
    if name == "logit_scale":
        return 2.5 + 0.3 * noise
    if any(part in name for part in ("lambda", "gamma", "layer_scale")):
        return 1 + 0.3 * noise
    if isinstance(module, nn.Embedding) or name == "relative_position_bias_table":
        return 0.5 * noise if _EXTRA.search(path) else noise
    if noise.ndim < 2 or ("weight" not in name and name != "original1"):
        return 0.5 * noise  # class tokens, positions
    fan_in = noise.shape[0] if kind == "Conv1D" else noise[0].numel()
    variance = 3.0 if _SCORES.search(path) else 2.0 if _FUSED.search(path) else 1.0
    return noise * (variance / fan_in) ** 0.5


def _mask(batch: int, length: int, gap: int | None = None) -> np.ndarray:
    """Ones, int64 [B, T], with zeros in the last third (two at least) of the last of several rows, and at two
    positions from `gap` on in the first of three rows or more."""
    mask = np.ones((batch, length), dtype=np.int64)
    if batch > 1:
        mask[-1, length - max(2, length // 3) :] = 0
    if gap is not None and batch > 2:
        mask[0, gap : gap + 2] = 0
    return mask


def _ids(rng: np.random.Generator, made: PretrainedConfig, batch: int, length: int) -> np.ndarray:
    """Ordinary tokens: none of the special ids, which are the first four or the last one."""
    return rng.integers(4, made.vocab_size - 1, size=(batch, length))


def _smooth(rng: np.random.Generator, batch: int, channels: int, *sizes: int) -> np.ndarray:
    """Noise float32 [B, C, ...] with parts that vary along fewer axes: plain noise has the same mean anywhere."""
    ones = [1] * len(sizes)
    shapes = [ones, list(sizes), *([*ones[:i], n, *ones[i + 1 :]] for i, n in enumerate(sizes))]
    result = sum(rng.normal(size=(batch, channels, *shape)) for shape in shapes)
    return (0.5 * result).astype(np.float32)
