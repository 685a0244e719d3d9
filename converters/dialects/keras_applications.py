"""keras.applications' ResNet and MobileNetV2, in the h5 files of Keras 2 and 3 and in TensorFlow.js.

Keras' ResNets have biases on their convolutions and another eps in their batch norms than Hugging Face's ResNet, which
has a place for neither. Both go into the running statistics, mean - bias and variance + the difference of eps: the
same function, but arithmetic instead of a rearrangement, so these tensors do not come back bit for bit. What is written
has biases of zero. The models take images as keras.applications prepares them (ResNet: BGR, less the ImageNet mean).
Source: keras/src/applications/resnet.py and mobilenet_v2.py, and for the names before them keras-applications 1.0.4
and the files themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from converters.checkpoint import Checkpoint
from converters.dialects import vision
from converters.dialects.tables import Row, Table
from converters.view import Concatenate, Difference, Recipe, Shift, View
from zoo.errors import ConfigError, FormatError

__all__ = ["DROPPED", "NAME", "canonical", "config", "foreign", "recognises", "understood"]

NAME = "keras-applications"

DROPPED = (
    (r"\.num_batches_tracked$", "a count of training steps, which Keras does not keep"),
    (r"^optimizer_weights/", "the state of the optimizer, which is no part of the model"),
)

_EPS = 1.001e-5
_OLD_EPS = 1e-3  # in the versions that named ResNet's layers res2a_branch2a
_TORCH_EPS = 1e-5  # of nn.BatchNorm2d, which HF's ResNet leaves as it is
_DEPTHS = (3, 8, 36, 3)  # the most blocks of a stage, those of ResNet-152
_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the layers are named as those of one of its models, in the layout of Keras 2."""
    return _kind(_short_names(checkpoint)) is not None


def canonical(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """Canonical name -> recipe, for every tensor of the file."""
    return _canonical(checkpoint, bare=True)


def foreign(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """Keras' path, "layer/layer/variable:0", -> recipe; convolutions of a ResNet get biases of zero.

    Raises:
        ConfigError: keras.applications has no such model.
    """
    kind = config.get("model_type")
    right = {
        "resnet": config.get("downsample_in_bottleneck") and config.get("layer_type") == "bottleneck",
        "mobilenet_v2": config.get("tf_padding", True),
    }
    if not right.get(str(kind)):
        raise ConfigError(
            "keras.applications has no such model",
            where=checkpoint.path,
            expected="mobilenet_v2 with tf_padding, or resnet with bottlenecks and downsample_in_bottleneck",
            got=kind,
        )
    found = _table(str(kind)).foreign(checkpoint)
    if kind == "resnet":
        found = dict(sorted(_with_biases(found), key=lambda item: _place(item[0])))
    return {_long(name): recipe for name, recipe in found.items()}


def config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The config of a checkpoint: what the tensors' shapes say, and what keras.applications' models have."""
    names = _short_names(checkpoint)
    shapes = {name: info.shape for name, info in View(checkpoint, _canonical(checkpoint, bare=False)).infos.items()}
    if _kind(names) == "resnet":
        return vision.resnet_config(shapes, downsample_in_bottleneck=True)
    return vision.mobilenet_v2_config(shapes, eps=1e-3, tf_padding=True)


def understood(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of what the model of keras.applications of these sizes computes."""
    if config.get("model_type") == "resnet":
        return vision.resnet_fields(downsample_in_bottleneck=True).understood(config)
    return vision.mobilenet_v2_fields(eps=1e-3, tf_padding=True).understood(config)


def _canonical(checkpoint: Checkpoint, bare: bool) -> dict[str, Recipe | Concatenate]:
    names = _short_names(checkpoint)
    kind = str(_kind(names))
    short = View(checkpoint, {name: Recipe(own) for name, own in names.items()})
    found = _table(kind).canonical(short, bare=bare)
    if kind == "resnet":
        found = _without_biases(found, _eps(checkpoint, names) - _TORCH_EPS)
    return {name: _renamed(recipe, names) for name, recipe in found.items()}


def _kind(names: Mapping[str, str]) -> str | None:
    if "conv2_block1_1_conv/kernel" in names or "res2a_branch2a/kernel" in names:
        return "resnet"
    first = ("mobl0_conv_0_project/kernel", "expanded_conv_project/kernel")
    return "mobilenet_v2" if "Conv1/kernel" in names and any(name in names for name in first) else None


def _short_names(checkpoint: Checkpoint) -> dict[str, str]:
    """ "layer/variable" -> the name in the file, [model_weights/]layer/layer/variable[:0]."""
    names = (name for name in checkpoint.infos if not re.search(DROPPED[1][0], name))
    return {"/".join(name.removesuffix(":0").split("/")[-2:]): name for name in names}


def _long(name: str) -> str:
    layer, _, variable = name.rpartition("/")
    return f"{layer}/{layer}/{variable}:0"


def _renamed(recipe: Recipe | Concatenate, names: Mapping[str, str]) -> Recipe | Concatenate:
    if isinstance(recipe, Recipe):
        return replace(recipe, source=names[recipe.source])
    return replace(recipe, parts=tuple(replace(part, source=names[part.source]) for part in recipe.parts))


def _eps(checkpoint: Checkpoint, names: Mapping[str, str]) -> float:
    """The batch norms' eps: what the file's own description of the model says, else what the names' version had."""
    text = checkpoint.metadata.get("model_config") or checkpoint.metadata.get("modelTopology") or ""
    found = set(re.findall(r'"epsilon": ?([0-9.eE+-]+)', text if isinstance(text, str) else json.dumps(text)))
    if len(found) > 1:
        raise FormatError(
            "the model's batch norms have several eps", where=checkpoint.path, expected="one", got=", ".join(found)
        )
    if found:
        return float(found.pop())
    return _OLD_EPS if "res2a_branch2a/kernel" in names else _EPS


def _without_biases(found: Mapping[str, Recipe | Concatenate], shift: float) -> dict[str, Recipe | Concatenate]:
    kept = dict(found)
    for name, recipe in found.items():
        if name.endswith("running_var") and isinstance(recipe, Recipe):
            kept[name] = replace(recipe, steps=(Shift(shift),))
        if name.endswith("convolution.bias") and isinstance(recipe, Recipe):
            mean = name.replace("convolution.bias", "normalization.running_mean")
            before = found[mean]
            assert isinstance(before, Recipe)
            kept[mean] = Difference((before, recipe))
            del kept[name]
    return kept


def _with_biases(found: Mapping[str, Recipe | Concatenate]) -> Iterator[tuple[str, Recipe | Concatenate]]:
    for name, recipe in found.items():
        if name.endswith("moving_variance") and isinstance(recipe, Recipe):
            recipe = replace(recipe, steps=(Shift(_TORCH_EPS - _EPS),))
        yield name, recipe
        if name.endswith("_conv/kernel"):
            mean = found[name.replace("_conv/kernel", "_bn/moving_mean")]
            assert isinstance(mean, Recipe)
            yield name.replace("kernel", "bias"), Difference((mean, mean))


_BLOCK = ("1_conv", "1_bn", "2_conv", "2_bn", "0_conv", "3_conv", "0_bn", "3_bn")


def _place(name: str) -> tuple[int, ...]:
    """Where Keras' model has the layer: `load_weights` of these files goes by order, not by names."""
    found = re.fullmatch(r"conv(\d+)_block(\d+)_(\w+)/\w+", name)
    if found is None:
        return (99,) if name.startswith("predictions/") else (1, "conv1_bn/" in name)
    stage, block, layer = found.groups()
    return int(stage), int(block), _BLOCK.index(layer)


@cache
def _table(kind: str) -> Table:
    rows = _resnet() if kind == "resnet" else _mobilenet_v2()
    return Table(list(rows), prefix=f"{kind}.", computed=DROPPED[0][0])


def _conv_norm(ours: str, convolution: str, norm: str, variable: str = "kernel", kind: str = "conv") -> Iterator[Row]:
    yield Row(f"{ours}convolution.weight", f"{convolution}/{variable}", kind)
    yield from (Row(f"{ours}normalization.{own}", f"{norm}/{leaf}") for own, leaf in _NORM.items())


def _dense(ours: str, *layers: str) -> Iterator[Row]:
    for layer in layers:
        yield Row(f"{ours}.weight", f"{layer}/kernel", "dense")
        yield Row(f"{ours}.bias", f"{layer}/bias")


def _resnet() -> Iterator[Row]:
    def convolution(ours: str, layer: str, norm: str) -> Iterator[Row]:
        yield from _conv_norm(ours, layer, norm)
        yield Row(f"{ours}convolution.bias", f"{layer}/bias")

    stem = "resnet.embedder.embedder."
    yield from convolution(stem, "conv1_conv", "conv1_bn")
    yield from convolution(stem, "conv1", "bn_conv1")
    for stage, depth in enumerate(_DEPTHS):
        for block in range(depth):
            ours = f"resnet.encoder.stages.{stage}.layers.{block}."
            layer = f"conv{stage + 2}_block{block + 1}_"
            old = f"{stage + 2}{chr(ord('a') + block)}_branch" if block < 6 else None
            places = {f"{ours}layer.{i}.": (str(i + 1), f"2{'abc'[i]}") for i in range(3)}
            places[f"{ours}shortcut."] = ("0", "1")
            for place, (number, branch) in places.items():
                yield from convolution(place, f"{layer}{number}_conv", f"{layer}{number}_bn")
                if old:
                    yield from convolution(place, f"res{old}{branch}", f"bn{old}{branch}")
    yield from _dense("classifier.1", "predictions", "probs", "fc1000")


def _mobilenet_v2() -> Iterator[Row]:
    base, stem = "mobilenet_v2.", "mobilenet_v2.conv_stem."
    yield from _conv_norm(f"{stem}first_conv.", "Conv1", "bn_Conv1")
    yield from _conv_norm(f"{base}conv_1x1.", "Conv_1", "Conv_1_bn")
    yield from _dense("classifier", "predictions", "Logits")
    for block in range(17):
        ours = f"{base}layer.{block - 1}." if block else stem
        layer = f"block_{block}_" if block else "expanded_conv_"
        for own, part in (("expand_1x1.", "expand"), ("conv_3x3.", "depthwise"), ("reduce_1x1.", "project")):
            if part == "expand" and not block:
                continue
            old, norm = f"mobl{block}_conv_{block}_{part}", f"bn{block}_conv_{block}_bn_{part}"
            kind = "depthwise" if part == "depthwise" else "conv"
            for variable in ("depthwise_kernel", "kernel")[kind == "conv" :]:  # Keras 2's name, and Keras 3's
                yield from _conv_norm(f"{ours}{own}", f"{layer}{part}", f"{layer}{part}_BN", variable, kind)
                yield from _conv_norm(f"{ours}{own}", old, norm, variable, kind)
