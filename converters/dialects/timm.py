"""timm's ViT, distilled DeiT and DINOv2, and DINOv2 as its authors' own files spell it. ResNets: see `torchvision`.

Source: state dicts of timm 1.0.31 (models/vision_transformer.py, deit.py: layer norm eps 1e-6, GELU by erf) and of
https://github.com/facebookresearch/dinov2. timm's DINOv2 with registers is not among them: it has added the class
token's position to the token, and the other form keeps the two apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converters.checkpoint import Checkpoint
from converters.dialects import torchvision, vision
from converters.dialects.tables import Row, Table
from converters.view import Concatenate, Recipe
from zoo.errors import ConfigError

__all__ = ["NAME", "canonical", "config", "foreign", "recognises", "understood"]

NAME = "timm"

_MARKS = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight")


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the names are those of a ViT with fused queries, keys and values."""
    return all(name in checkpoint.infos for name in _MARKS)


def canonical(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """Canonical name -> recipe, for every tensor of the file."""
    return _TABLES[_kind(checkpoint)].canonical(checkpoint)


def foreign(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """timm's name -> recipe; for DINOv2 with registers its authors' name.

    Raises:
        ConfigError: timm has no such model, or it is not known here.
    """
    kind = str(config.get("model_type"))
    if kind == "resnet":
        return torchvision.foreign(checkpoint, config)
    if kind not in _TABLES:
        raise ConfigError(
            "timm's names of this model are not known",
            where=checkpoint.path,
            expected=", ".join(["resnet", *_TABLES]),
            got=kind,
        )
    return _TABLES[kind].foreign(checkpoint)


def config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The config of a checkpoint: what the tensors' shapes say, and what the published models of its width have."""
    kind = _kind(checkpoint)
    shapes = _TABLES[kind].shapes(checkpoint)
    return vision.vit_config(shapes, eps=1e-6, model_type=kind)


def understood(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of what timm's model of these sizes computes."""
    fields = vision.resnet_fields() if config.get("model_type") == "resnet" else vision.vit_fields(eps=1e-6)
    return fields.understood(config)


def _kind(checkpoint: Checkpoint) -> str:
    if "dist_token" in checkpoint.infos:
        return "deit"
    if "blocks.0.ls1.gamma" in checkpoint.infos:
        return "dinov2_with_registers" if "register_tokens" in checkpoint.infos else "dinov2"
    return "vit"


def _both(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}.{leaf}", f"{theirs}.{leaf}") for leaf in ("weight", "bias")]


def _attention(base: str) -> list[Row]:
    """What all of them share: embeddings, attention, the last norm."""
    layer = f"{base}encoder.layer.{{}}.attention."
    rows = [
        Row(f"{base}embeddings.cls_token", "cls_token"),
        Row(f"{base}embeddings.position_embeddings", "pos_embed"),
        *_both(f"{base}embeddings.patch_embeddings.projection", "patch_embed.proj"),
        *_both(f"{layer}output.dense", "blocks.{}.attn.proj"),
        *_both(f"{base}layernorm", "norm"),
    ]
    for leaf in ("weight", "bias"):
        parts = tuple(f"{layer}attention.{part}.{leaf}" for part in ("query", "key", "value"))
        rows.append(Row(parts, f"blocks.{{}}.attn.qkv.{leaf}"))
    return rows


def _vit(base: str) -> list[Row]:
    layer = f"{base}encoder.layer.{{}}."
    return [
        *_attention(base),
        *_both(f"{layer}layernorm_before", "blocks.{}.norm1"),
        *_both(f"{layer}layernorm_after", "blocks.{}.norm2"),
        *_both(f"{layer}intermediate.dense", "blocks.{}.mlp.fc1"),
        *_both(f"{layer}output.dense", "blocks.{}.mlp.fc2"),
    ]


def _dinov2(base: str) -> list[Row]:
    layer = f"{base}encoder.layer.{{}}."
    return [
        *_attention(base),
        Row(f"{base}embeddings.mask_token", "mask_token"),
        Row(f"{layer}layer_scale1.lambda1", "blocks.{}.ls1.gamma"),
        Row(f"{layer}layer_scale2.lambda1", "blocks.{}.ls2.gamma"),
        *(
            row
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
            for row in _both(layer + part, f"blocks.{{}}.{part}")
        ),
        # The giant one's gated MLP.
        *_both(f"{layer}mlp.weights_in", "blocks.{}.mlp.w12"),
        *_both(f"{layer}mlp.weights_out", "blocks.{}.mlp.w3"),
        # The same as transformers 5 has them, apart.
        *(
            Row((f"{layer}mlp.gate_proj.{leaf}", f"{layer}mlp.up_proj.{leaf}"), f"blocks.{{}}.mlp.w12.{leaf}")
            for leaf in ("weight", "bias")
        ),
    ]


def _table(kind: str, rows: list[Row]) -> Table:
    return Table(rows, prefix=f"{kind}.")


_TABLES: dict[str, Table] = {
    "vit": _table("vit", [*_vit("vit."), *_both("classifier", "head")]),
    "deit": _table(
        "deit",
        [
            *_vit("deit."),
            Row("deit.embeddings.distillation_token", "dist_token"),
            *_both("cls_classifier", "head"),
            *_both("distillation_classifier", "head_dist"),
        ],
    ),
    "dinov2": _table("dinov2", _dinov2("dinov2.")),
    "dinov2_with_registers": _table(
        "dinov2_with_registers",
        [
            *_dinov2("dinov2_with_registers."),
            Row("dinov2_with_registers.embeddings.register_tokens", "register_tokens"),
        ],
    ),
}
