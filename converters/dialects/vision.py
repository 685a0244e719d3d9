"""The config.json of image models, from the shapes of their tensors under canonical names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from converters.dialects.fields import Fields

__all__ = ["mobilenet_v2_config", "mobilenet_v2_fields", "resnet_config", "resnet_fields", "vit_config", "vit_fields"]

Shapes = Mapping[str, tuple[int, ...]]

# Width -> heads. Every published ViT and DINOv2 of these widths has them: the tensors do not tell.
# https://github.com/google-research/vision_transformer (Ti, S, B, L, H), https://github.com/facebookresearch/dinov2 (g)
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1536: 24}

_MULTIPLIERS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
_CHANNELS = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)


def resnet_config(shapes: Shapes, *, downsample_in_bottleneck: bool = False) -> dict[str, Any] | None:
    """The config of a ResNet of four stages.

    Args:
        shapes: by canonical name.
        downsample_in_bottleneck: whether the first convolution of a bottleneck has the stride, not the 3×3.
    """
    last = "layer.2" if "resnet.encoder.stages.0.layers.0.layer.2.convolution.weight" in shapes else "layer.1"
    stages = [_count(shapes, f"resnet.encoder.stages.{stage}.layers.") for stage in range(4)]
    stem = shapes.get("resnet.embedder.embedder.convolution.weight")
    if stem is None or not all(stages):
        return None
    widths = [shapes[f"resnet.encoder.stages.{s}.layers.0.{last}.convolution.weight"][0] for s in range(4)]
    return {
        "model_type": "resnet",
        "num_channels": stem[1],
        "embedding_size": stem[0],
        "hidden_sizes": widths,
        "depths": stages,
        "layer_type": "bottleneck" if last == "layer.2" else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": downsample_in_bottleneck,
        **_head(shapes, "classifier.1.weight", "ResNet"),
    }


def mobilenet_v2_config(shapes: Shapes, *, eps: float, tf_padding: bool) -> dict[str, Any] | None:
    """The config of a MobileNetV2 of one of the published widths; None for any other.

    Args:
        shapes: by canonical name.
        eps: of its batch norms.
        tf_padding: whether strides pad as TensorFlow's "same" does.
    """
    base = "mobilenet_v2."
    names = [f"{base}conv_stem.reduce_1x1", *(f"{base}layer.{i}.reduce_1x1" for i in range(16))]
    widths = [shapes.get(f"{name}.convolution.weight", (0,))[0] for name in names]
    multiplier = next((m for m in _MULTIPLIERS if widths == [_multiple(c * m) for c in _CHANNELS]), None)
    if multiplier is None:
        return None
    return {
        "model_type": "mobilenet_v2",
        "num_channels": shapes[f"{base}conv_stem.first_conv.convolution.weight"][1],
        "image_size": 224,
        "depth_multiplier": multiplier,
        **_MOBILENET_V2,
        "tf_padding": tf_padding,
        "layer_norm_eps": eps,
        **_head(shapes, "classifier.weight", "MobileNetV2"),
    }


def vit_config(shapes: Shapes, *, eps: float, model_type: str = "vit") -> dict[str, Any] | None:
    """The config of a ViT, distilled DeiT or DINOv2; None where the number of heads or the image size is not known.

    Args:
        shapes: by canonical name.
        eps: of its layer norms.
        model_type: "vit", "deit", "dinov2" or "dinov2_with_registers".
    """
    base = f"{model_type}."
    patch = shapes.get(f"{base}embeddings.patch_embeddings.projection.weight")
    positions = shapes.get(f"{base}embeddings.position_embeddings")
    if patch is None or positions is None:
        return None
    width, channels, size = patch[:3]
    side = math.isqrt(positions[1] - 1 - (model_type == "deit"))
    if width not in _HEADS or side * side != positions[1] - 1 - (model_type == "deit"):
        return None
    common = {
        "model_type": model_type,
        "hidden_size": width,
        "num_hidden_layers": _count(shapes, f"{base}encoder.layer."),
        "num_attention_heads": _HEADS[width],
        "num_channels": channels,
        "image_size": side * size,
        "patch_size": size,
        "hidden_act": "gelu",
        "layer_norm_eps": eps,
        "qkv_bias": f"{base}encoder.layer.0.attention.attention.query.bias" in shapes,
    }
    if not model_type.startswith("dinov2"):
        hidden = shapes.get(f"{base}encoder.layer.0.intermediate.dense.weight", (0,))[0]
        head = (
            _head(shapes, "cls_classifier.weight", "DeiT", "ForImageClassificationWithTeacher")
            if model_type == "deit"
            else _head(shapes, "classifier.weight", "ViT")
        )
        return common | {"intermediate_size": hidden} | head
    made = common | {
        "mlp_ratio": 4,
        "use_swiglu_ffn": f"{base}encoder.layer.0.mlp.weights_in.weight" in shapes,
        "layerscale_value": 1.0,
        "apply_layernorm": True,
        "architectures": ["Dinov2WithRegistersModel" if model_type.endswith("registers") else "Dinov2Model"],
    }
    registers = shapes.get(f"{base}embeddings.register_tokens")
    return made | ({"num_register_tokens": registers[1]} if registers else {})


def resnet_fields(*, downsample_in_bottleneck: bool = False) -> Fields:
    """What programs that take a ResNet's sizes make of Hugging Face's config; see `resnet_config`."""
    fixed = {"hidden_act": "relu", "downsample_in_first_stage": False}
    return Fields(
        fixed | {"downsample_in_bottleneck": downsample_in_bottleneck},
        (*_LABELS, "num_channels", "embedding_size", "hidden_sizes", "depths", "layer_type"),
    )


def mobilenet_v2_fields(*, eps: float, tf_padding: bool) -> Fields:
    """What programs that take a MobileNetV2's width make of Hugging Face's config; see `mobilenet_v2_config`."""
    return Fields(
        _MOBILENET_V2 | {"tf_padding": tf_padding, "layer_norm_eps": eps},
        (*_LABELS, "num_channels", "image_size", "depth_multiplier"),
    )


def vit_fields(*, eps: float, act: str = "gelu", biased: bool = False) -> Fields:
    """What programs that take the sizes of a ViT, DeiT or DINOv2 make of Hugging Face's config; see `vit_config`.

    Args:
        eps, act: of its layer norms and its MLPs.
        biased: whether queries, keys and values always have a bias.
    """
    fixed = {"hidden_act": act, "layer_norm_eps": eps, "apply_layernorm": True} | ({"qkv_bias": True} if biased else {})
    return Fields(fixed, (*_LABELS, *_VIT, *(() if biased else ("qkv_bias",))))


_LABELS = ("id2label", "label2id", "num_labels")
_VIT = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_channels", "image_size"),
    *("patch_size", "mlp_ratio", "use_swiglu_ffn", "num_register_tokens", "use_mask_token"),
)
_MOBILENET_V2 = {
    "depth_divisible_by": 8,
    "min_depth": 8,
    "expand_ratio": 6.0,
    "output_stride": 32,
    "first_layer_is_expansion": True,
    "finegrained_output": True,
    "hidden_act": "relu6",
}


def _head(shapes: Shapes, name: str, family: str, task: str = "ForImageClassification") -> dict[str, Any]:
    if name not in shapes:
        return {"architectures": [f"{family}Model"]}
    return {"architectures": [family + task], "num_labels": shapes[name][0]}


def _count(shapes: Shapes, start: str) -> int:
    """How many numbered layers there are under a name."""
    return len({name[len(start) :].partition(".")[0] for name in shapes if name.startswith(start)})


def _multiple(width: float) -> int:
    """The multiple of 8 next to a width, not more than a tenth below it (MobileNet's make_divisible)."""
    found = max(8, int(width + 4) // 8 * 8)
    return found + 8 if found < 0.9 * width else found
