"""Google's image models in npz: Vision Transformer and AugReg ("Transformer/encoderblock_0/…"), and Big Vision's.

Layers are numbered as Flax numbered them when they were published: attention, second norm and MLP of the older ones
are MultiHeadDotProductAttention_1, LayerNorm_2 and MlpBlock_3, of Big Vision's …_0, LayerNorm_1 and MlpBlock_0.
Attention has an axis for the heads, so files tell their number. Models that were trained in a scan over their layers
hold the layers stacked ("encoderblock/…"); what is written has them apart. Big Vision's models without a class token
have no counterpart in Hugging Face's ViT; both towers together are its SigLIP.
Their GELU is the tanh approximation and their norms' epsilon 1e-6, Flax's defaults, whatever other configs say.
Sources: vit_jax/models_vit.py in https://github.com/google-research/vision_transformer, big_vision/models/vit.py and
models/proj/image_text/{two_towers,text_transformer}.py in https://github.com/google-research/big_vision.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from converters.checkpoint import Checkpoint
from converters.dialects import vision
from converters.dialects.fields import Fields
from converters.dialects.shared import Dropped
from converters.dialects.tables import Row, Table
from converters.view import Concatenate, Recipe, Reshape, Rows, View
from zoo.errors import ConfigError

__all__ = ["DROPPED", "NAME", "canonical", "config", "foreign", "recognises", "understood"]

NAME = "big-vision"

DROPPED: Dropped = (
    (r"(opt/)?(state|step)/.*|opt/(?!target/).*|.*/mask_token", "state of the training"),
    (r"(.*\.)?position_ids", "the model counts them itself"),
)

_GELU = "gelu_pytorch_tanh"
_FIXED = {"hidden_act": _GELU, "layer_norm_eps": 1e-6}
_LABELS = ("id2label", "label2id", "num_labels")
_TOWER = Fields(
    _FIXED,
    (
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size"),
        *("num_channels", "vocab_size", "max_position_embeddings", "projection_size", *_LABELS),
    ),
)
_BLOCK = re.compile(r"encoderblock(_0)?/MultiHeadDotProductAttention_([01])/query/kernel")
_STACKED = "/encoderblock/"


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether there is a patch embedding, and a first layer as Flax numbers its parts."""
    names = checkpoint.infos
    return any(name.endswith("embedding/kernel") for name in names) and any(map(_BLOCK.search, names))


def canonical(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """Canonical name -> recipe, for every tensor of the file but the training's.

    Raises:
        WeightsError: tensors that no such model has; all are named.
    """
    apart = _apart(checkpoint)
    found = _table(*_kind(checkpoint)).canonical(View(checkpoint, apart), bare=_headless(checkpoint))
    return {name: _through(recipe, apart) for name, recipe in found.items()}


def foreign(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """Google's name -> recipe: of AugReg's ViT, or of Big Vision's SigLIP.

    Raises:
        ConfigError: another model type.
        WeightsError: tensors that have no place there, such as a pooler; all are named.
    """
    kind = str(config.get("model_type"))
    if kind not in ("vit", "siglip"):
        raise ConfigError("Google published no such model in npz", expected="vit, siglip", got=kind)
    parts = [config] if kind == "vit" else [config.get(f"{part}_config") or {} for part in ("vision", "text")]
    heads = {name: part.get("num_attention_heads", 12) for name, part in zip(("img", "txt"), parts, strict=False)}
    table = replace(_table(kind, "" if kind == "vit" else "params/", 1 if kind == "vit" else 0), heads=heads)
    return table.foreign(checkpoint)


def config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Hugging Face's config of what the file's model computes; None for a Big Vision model that is no SigLIP or ViT."""
    kind, lead, number = _kind(checkpoint)
    shapes = {name: info.shape for name, info in View(checkpoint, _apart(checkpoint)).infos.items()}
    if kind == "siglip":
        return _siglip_config(shapes, lead)
    if f"{lead}cls" not in shapes:
        return None
    positions = shapes[f"{lead}Transformer/posembed_input/pos_embedding" if number else f"{lead}pos_embedding"]
    patch = shapes[f"{lead}embedding/kernel"]
    labels = shapes.get(f"{lead}head/kernel")
    head = {"architectures": ["ViTModel"]} if labels is None else {"architectures": ["ViTForImageClassification"]}
    return {
        "model_type": "vit",
        **head,
        **_encoder(shapes, f"{lead}Transformer/"),
        **_image(patch, positions[1] - number),
        "qkv_bias": True,
        **({} if labels is None else {"num_labels": labels[1]}),
    }


def understood(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of what Google's programs compute: the approximate GELU, norms with eps 1e-6."""
    if config.get("model_type") == "vit":
        return vision.vit_fields(eps=1e-6, act=_GELU, biased=True).understood(config)
    parts = ("text_config", "vision_config")
    said = {key: value for key, value in config.items() if key in ("model_type", "architectures", *_LABELS)}
    return said | {part: _TOWER.understood(config.get(part) or {}) for part in parts}


def _kind(checkpoint: Checkpoint) -> tuple[str, str, int]:
    """Model type, what stands before all names, and the number of the attention layer in a block."""
    found = {name: match for name in checkpoint.infos if (match := _BLOCK.search(name))}
    image = next((name for name in found if "img/" in name), next(iter(found)))
    lead = image[: found[image].start()].removesuffix("Transformer/")
    number = int(found[image][2])
    if lead.endswith("img/"):
        return "siglip", lead.removesuffix("img/"), number
    return "vit", lead, number


def _headless(checkpoint: Checkpoint) -> bool:
    """Whether the file is a ViT without its classifier, whose names in torch have no prefix."""
    return not any(name.endswith("head/kernel") for name in checkpoint.infos)


def _apart(checkpoint: Checkpoint) -> dict[str, Recipe]:
    """The file's weights with each layer by itself."""
    found: dict[str, Recipe] = {}
    for name, info in checkpoint.infos.items():
        if any(re.fullmatch(pattern, name) for pattern, _ in DROPPED):
            continue
        if _STACKED not in name:
            found[name] = Recipe(name)
            continue
        for layer in range(info.shape[0]):
            own = name.replace(_STACKED, f"/encoderblock_{layer}/")
            found[own] = Recipe(name, (Rows(layer, layer + 1), Reshape(info.shape[1:])))
    return found


def _through(recipe: Recipe | Concatenate, apart: Mapping[str, Recipe]) -> Recipe | Concatenate:
    """A recipe over the file itself, of one over its layers apart."""
    if isinstance(recipe, Concatenate):
        return replace(recipe, parts=tuple(_before(part, apart) for part in recipe.parts))
    return _before(recipe, apart)


def _before(recipe: Recipe, apart: Mapping[str, Recipe]) -> Recipe:
    first = apart[recipe.source]
    return Recipe(first.source, first.steps + recipe.steps)


def _table(kind: str, lead: str, number: int) -> Table:
    rows = _vit(lead, number) if kind == "vit" else _siglip(lead)
    return Table([*rows], prefix="vit." if kind == "vit" else "")


def _dense(ours: str, theirs: str, kind: str = "dense", heads: str = "img") -> Iterator[Row]:
    yield Row(f"{ours}.weight", f"{theirs}/kernel", kind, heads)
    yield Row(f"{ours}.bias", f"{theirs}/bias", "heads_bias" if kind == "heads" else "same", heads)


def _norm(ours: str, theirs: str) -> Iterator[Row]:
    yield Row(f"{ours}.weight", f"{theirs}/scale")
    yield Row(f"{ours}.bias", f"{theirs}/bias")


def _vit(lead: str, number: int) -> Iterator[Row]:
    yield Row("vit.embeddings.cls_token", f"{lead}cls")
    if number:
        yield Row("vit.embeddings.position_embeddings", f"{lead}Transformer/posembed_input/pos_embedding")
    else:
        yield Row("vit.embeddings.position_embeddings", f"{lead}pos_embedding", "patches")
    yield from _dense("vit.embeddings.patch_embeddings.projection", f"{lead}embedding", "conv")
    yield from _norm("vit.layernorm", f"{lead}Transformer/encoder_norm")
    yield from _dense("vit.pooler.dense", f"{lead}pre_logits")
    yield from _dense("classifier", f"{lead}head")
    ours, theirs = "vit.encoder.layer.{}", f"{lead}Transformer/encoderblock_{{}}"
    attention = f"{theirs}/MultiHeadDotProductAttention_{number}"
    for part in ("query", "key", "value"):
        yield from _dense(f"{ours}.attention.attention.{part}", f"{attention}/{part}", "heads")
    yield from _dense(f"{ours}.attention.output.dense", f"{attention}/out", "heads_out")
    second, mlp = ("LayerNorm_2", "MlpBlock_3") if number else ("LayerNorm_1", "MlpBlock_0")
    yield from _norm(f"{ours}.layernorm_before", f"{theirs}/LayerNorm_0")
    yield from _norm(f"{ours}.layernorm_after", f"{theirs}/{second}")
    yield from _dense(f"{ours}.intermediate.dense", f"{theirs}/{mlp}/Dense_0")
    yield from _dense(f"{ours}.output.dense", f"{theirs}/{mlp}/Dense_1")


def _siglip(lead: str) -> Iterator[Row]:
    yield Row("logit_scale", f"{lead}t")
    yield Row("logit_bias", f"{lead}b")
    image, text = f"{lead}img", f"{lead}txt"
    yield from _dense("vision_model.embeddings.patch_embedding", f"{image}/embedding", "conv")
    yield Row("vision_model.embeddings.position_embedding.weight", f"{image}/pos_embedding", "pointwise")
    yield from _siglip_encoder("vision_model", f"{image}/Transformer", "img")
    yield from _norm("vision_model.post_layernorm", f"{image}/Transformer/encoder_norm")
    ours, theirs = "vision_model.head", f"{image}/MAPHead_0"
    yield Row(f"{ours}.probe", f"{theirs}/probe")
    parts = [f"{theirs}/MultiHeadDotProductAttention_0/{part}" for part in ("query", "key", "value")]
    yield Row(f"{ours}.attention.in_proj_weight", tuple(f"{part}/kernel" for part in parts), "heads", "img")
    yield Row(f"{ours}.attention.in_proj_bias", tuple(f"{part}/bias" for part in parts), "heads_bias", "img")
    yield from _dense(f"{ours}.attention.out_proj", f"{theirs}/MultiHeadDotProductAttention_0/out", "heads_out")
    yield from _norm(f"{ours}.layernorm", f"{theirs}/LayerNorm_0")
    for number in (0, 1):
        yield from _dense(f"{ours}.mlp.fc{number + 1}", f"{theirs}/MlpBlock_0/Dense_{number}")
    yield Row("text_model.embeddings.token_embedding.weight", f"{text}/Embed_0/embedding")
    yield Row("text_model.embeddings.position_embedding.weight", f"{text}/pos_embedding", "pointwise")
    yield from _siglip_encoder("text_model", f"{text}/Encoder_0", "txt")
    yield from _norm("text_model.final_layer_norm", f"{text}/Encoder_0/encoder_norm")
    yield from _dense("text_model.head", f"{text}/head")


def _siglip_encoder(ours: str, theirs: str, heads: str) -> Iterator[Row]:
    ours, theirs = f"{ours}.encoder.layers.{{}}", f"{theirs}/encoderblock_{{}}"
    attention = f"{theirs}/MultiHeadDotProductAttention_0"
    for own, part in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
        yield from _dense(f"{ours}.self_attn.{own}", f"{attention}/{part}", "heads", heads)
    yield from _dense(f"{ours}.self_attn.out_proj", f"{attention}/out", "heads_out", heads)
    for number in (0, 1):
        yield from _norm(f"{ours}.layer_norm{number + 1}", f"{theirs}/LayerNorm_{number}")
        yield from _dense(f"{ours}.mlp.fc{number + 1}", f"{theirs}/MlpBlock_0/Dense_{number}")


def _siglip_config(shapes: Mapping[str, tuple[int, ...]], lead: str) -> dict[str, Any] | None:
    words, places = shapes.get(f"{lead}txt/Embed_0/embedding"), shapes.get(f"{lead}txt/pos_embedding")
    positions, head = shapes.get(f"{lead}img/pos_embedding"), shapes.get(f"{lead}txt/head/kernel")
    if words is None or places is None or positions is None or head is None:
        return None  # one tower alone, or another kind of text model
    image = _encoder(shapes, f"{lead}img/Transformer/") | _image(shapes[f"{lead}img/embedding/kernel"], positions[1])
    text = _encoder(shapes, f"{lead}txt/Encoder_0/") | {"vocab_size": words[0], "max_position_embeddings": places[1]}
    return {
        "model_type": "siglip",
        "architectures": ["SiglipModel"],
        "vision_config": {"model_type": "siglip_vision_model", **image},
        "text_config": {"model_type": "siglip_text_model", "projection_size": head[1], **text},
    }


def _encoder(shapes: Mapping[str, tuple[int, ...]], start: str) -> dict[str, Any]:
    first = next(name for name in shapes if name.startswith(start) and name.endswith("/query/kernel"))
    dense = next(name for name in shapes if name.startswith(start) and name.endswith("/Dense_0/kernel"))
    width, heads, _ = shapes[first]
    return {
        "hidden_size": width,
        "num_hidden_layers": sum(
            re.fullmatch(rf"{start}encoderblock_\d+/LayerNorm_0/bias", name) is not None for name in shapes
        ),
        "num_attention_heads": heads,
        "intermediate_size": shapes[dense][1],
        **_FIXED,
    }


def _image(patch: tuple[int, ...], places: int) -> dict[str, Any]:
    side = math.isqrt(places)
    if side * side != places or patch[0] != patch[1]:
        raise ConfigError("the image is no square of square patches", got=f"{places} patches of {list(patch[:2])}")
    return {"image_size": side * patch[0], "patch_size": patch[0], "num_channels": patch[2]}
