"""torchvision's ResNet (timm's is spelled the same), MobileNetV2 and ViT.

Source: state dicts of torchvision 0.29 (models/resnet.py, mobilenetv2.py, vision_transformer.py), whose modules give
the facts that no tensor tells: batch norm eps 1e-5, layer norm eps 1e-6, GELU by erf, ResNet's stride on the 3×3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converters.checkpoint import Checkpoint
from converters.dialects import vision
from converters.dialects.tables import Row, Table
from converters.view import Concatenate, Recipe
from zoo.errors import ConfigError

__all__ = ["NAME", "canonical", "config", "foreign", "recognises", "understood"]

NAME = "torchvision"

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_BLOCKS = "encoder.layers.encoder_layer_{}."


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the names are those of one of its models."""
    return _kind(checkpoint) is not None


def canonical(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """Canonical name -> recipe, for every tensor of the file."""
    return _TABLES[str(_kind(checkpoint))].canonical(checkpoint)


def foreign(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """torchvision's name -> recipe.

    Raises:
        ConfigError: torchvision has no such model.
    """
    table = _TABLES.get(str(config.get("model_type")))
    if table is None:
        raise ConfigError(
            "torchvision has no such model",
            where=checkpoint.path,
            expected=", ".join(_TABLES),
            got=config.get("model_type"),
        )
    return table.foreign(checkpoint)


def config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The config of a checkpoint: what the tensors' shapes say, and what torchvision's modules fix."""
    kind = str(_kind(checkpoint))
    shapes = _TABLES[kind].shapes(checkpoint)
    if kind == "resnet":
        return vision.resnet_config(shapes)
    if kind == "mobilenet_v2":
        return vision.mobilenet_v2_config(shapes, eps=1e-5, tf_padding=False)
    return vision.vit_config(shapes, eps=1e-6)


def understood(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of what torchvision's model of these sizes computes."""
    kind = config.get("model_type")
    if kind == "resnet":
        return vision.resnet_fields().understood(config)
    if kind == "mobilenet_v2":
        return vision.mobilenet_v2_fields(eps=1e-5, tf_padding=False).understood(config)
    return vision.vit_fields(eps=1e-6, biased=True).understood(config)


def _kind(checkpoint: Checkpoint) -> str | None:
    marks = {
        "resnet": ("conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight"),
        "mobilenet_v2": ("features.0.0.weight", "features.18.1.running_mean", "features.1.conv.0.0.weight"),
        "vit": ("class_token", "conv_proj.weight", "encoder.layers.encoder_layer_0.ln_1.weight"),
    }
    return next((kind for kind, names in marks.items() if all(name in checkpoint.infos for name in names)), None)


def _conv_norm(ours: str, convolution: str, norm: str) -> list[Row]:
    """A convolution and the batch norm after it."""
    norms = [Row(f"{ours}normalization.{leaf}", f"{norm}.{leaf}") for leaf in _NORM]
    return [Row(f"{ours}convolution.weight", f"{convolution}.weight"), *norms]


def _both(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}.{leaf}", f"{theirs}.{leaf}") for leaf in ("weight", "bias")]


def _resnet() -> list[Row]:
    rows = _conv_norm("resnet.embedder.embedder.", "conv1", "bn1")
    for stage in range(4):
        ours, theirs = f"resnet.encoder.stages.{stage}.layers.{{}}.", f"layer{stage + 1}.{{}}."
        for i in range(3):
            rows += _conv_norm(f"{ours}layer.{i}.", f"{theirs}conv{i + 1}", f"{theirs}bn{i + 1}")
        rows += _conv_norm(f"{ours}shortcut.", f"{theirs}downsample.0", f"{theirs}downsample.1")
    return [*rows, *_both("classifier.1", "fc")]


def _mobilenet_v2() -> list[Row]:
    ours, stem = "mobilenet_v2.", "mobilenet_v2.conv_stem."
    rows = [
        *_conv_norm(f"{stem}first_conv.", "features.0.0", "features.0.1"),
        *_conv_norm(f"{stem}conv_3x3.", "features.1.conv.0.0", "features.1.conv.0.1"),
        *_conv_norm(f"{stem}reduce_1x1.", "features.1.conv.1", "features.1.conv.2"),
        *_conv_norm(f"{ours}conv_1x1.", "features.18.0", "features.18.1"),
        *_both("classifier", "classifier.1"),
    ]
    for layer in range(16):
        block, own = f"features.{layer + 2}.conv.", f"{ours}layer.{layer}."
        rows += _conv_norm(f"{own}expand_1x1.", f"{block}0.0", f"{block}0.1")
        rows += _conv_norm(f"{own}conv_3x3.", f"{block}1.0", f"{block}1.1")
        rows += _conv_norm(f"{own}reduce_1x1.", f"{block}2", f"{block}3")
    return rows


def _vit() -> list[Row]:
    layer = "vit.encoder.layer.{}."
    rows = [
        Row("vit.embeddings.cls_token", "class_token"),
        Row("vit.embeddings.position_embeddings", "encoder.pos_embedding"),
        *_both("vit.embeddings.patch_embeddings.projection", "conv_proj"),
        *_both(f"{layer}layernorm_before", f"{_BLOCKS}ln_1"),
        *_both(f"{layer}attention.output.dense", f"{_BLOCKS}self_attention.out_proj"),
        *_both(f"{layer}layernorm_after", f"{_BLOCKS}ln_2"),
        *_both(f"{layer}intermediate.dense", f"{_BLOCKS}mlp.0"),
        *_both(f"{layer}output.dense", f"{_BLOCKS}mlp.3"),
        # As in the files published before torchvision 0.12, which it still loads.
        *_both(f"{layer}intermediate.dense", f"{_BLOCKS}mlp.linear_1"),
        *_both(f"{layer}output.dense", f"{_BLOCKS}mlp.linear_2"),
        *_both("vit.layernorm", "encoder.ln"),
        *_both("classifier", "heads.head"),
    ]
    for leaf in ("weight", "bias"):
        parts = tuple(f"{layer}attention.attention.{part}.{leaf}" for part in ("query", "key", "value"))
        rows.append(Row(parts, f"{_BLOCKS}self_attention.in_proj_{leaf}"))
    return rows


_TABLES: dict[str, Table] = {
    "resnet": Table(_resnet(), prefix="resnet."),
    "mobilenet_v2": Table(_mobilenet_v2(), prefix="mobilenet_v2."),
    "vit": Table(_vit(), prefix="vit."),
}
