"""The TensorFlow models of transformers 4 (tf_model.h5): layer/class/path/to/kernel:0.

The HDF5 group of the layer and the first part of a weight's name (the class) say nothing about the weight; files in
shards have no groups. "_._3" stands for a numbered part, "mlm___cls" for "cls". A weight that layers share is stored
in the group of each.
Source: the files themselves, and transformers 4.57 modeling_tf_pytorch_utils.py for what the marks mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from converters.checkpoint import Checkpoint
from converters.dialects import hf_names, transformers4
from converters.dialects.shared import KERNELS, kernel_steps, merge
from converters.view import Concatenate, Layout, Recipe

__all__ = [
    "NAME",
    "SAYS_CONFIG",
    "canonical",
    "canonical_name",
    "foreign",
    "foreign_config",
    "knows",
    "metadata",
    "recognises",
    "shard_names",
    "understood",
    "unties",
]

NAME = "hf-tf"

SAYS_CONFIG = True

_LEAVES = {
    **dict.fromkeys(KERNELS, "weight"),
    "gamma": "weight",
    "embeddings": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}

# Where TensorFlow's layers are nested in another way than torch's modules.
_IRREGULAR: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        # A separable convolution is one layer of Keras and two modules of torch.
        (r"(.*)\.key_conv_attn_layer\.depthwise_kernel", r"\1.key_conv_attn_layer.depthwise.weight"),
        (r"(.*)\.key_conv_attn_layer\.pointwise_kernel", r"\1.key_conv_attn_layer.pointwise.weight"),
        # A dual encoder holds whole models, base class included.
        (r"(text_model|vision_model)\.(?:bert|roberta|distilbert|electra|albert|vit|deit|clip)\.(.*)", r"\1.\2"),
    )
)


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether every tensor is named like a variable of TensorFlow, under a layer and a class of transformers."""
    names = list(checkpoint.infos)
    if checkpoint.format == "sharded":
        suffixes = {info.file.suffix for info in checkpoint.infos.values()}
        return suffixes in ({".h5"}, {".safetensors"}) and all(name.endswith(":0") for name in names)
    if checkpoint.format == "safetensors":
        return checkpoint.metadata.get("format") == "tf" and all(name.endswith(":0") for name in names)
    return (
        checkpoint.format == "h5"
        and all(name.endswith(":0") for name in names)
        and any(re.match(r"[^/]+/tf_?[a-z0-9_]+/", name) for name in names)
    )


def canonical(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """Canonical name -> recipe, for every tensor of the file."""
    return merge(checkpoint, _pairs(checkpoint))


def foreign(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """Name -> recipe, for every place in which transformers 4 keeps the tensors of the config's class."""
    return hf_names.foreign("tf", checkpoint, config)


def foreign_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json in the spelling of transformers 4, which alone reads these files."""
    return transformers4.spelled(config)


def understood(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of what the class of transformers 4 computes."""
    return transformers4.understood("tf", config)


def unties(config: Mapping[str, Any]) -> bool:
    """Whether the class of transformers 4 has an output layer of its own even where the config ties it."""
    return ("tf", config.get("model_type")) in transformers4.UNTIED


def knows(config: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether the config's class has a place for a tensor in transformers 4, by its torch name."""
    return hf_names.knows("tf", config)


def metadata(
    config: Mapping[str, Any], texts: Mapping[str, str] | None = None, checkpoint: Checkpoint | None = None
) -> dict[str, str]:
    """What transformers 4 looks for beside the weights: it warns of layers that the file does not list."""
    empty = hf_names.empty_layers(config)
    return {"empty_layers": "\n".join(empty)} if empty else {}


def shard_names(path: str) -> tuple[str, str]:
    """What a tensor is called in the index of a file in shards, and in the shard itself: without the layer's group,
    and there without the class, unless transformers would keep it.
    """
    name = path.partition("/")[2]
    return name, name if "model." in name or "/" not in name else name.partition("/")[2]


def canonical_name(path: str, lead: int = 2) -> str:
    """The torch name of a weight: "bert/tf_bert_model/bert/encoder/layer_._0/output/dense/kernel:0" is
    "bert.encoder.layer.0.output.dense.weight".

    Args:
        lead: how many parts stand before the weight's own: the group and the class, where there is more than it.
    """
    group, parts = max(lead - 1, 0), path.removesuffix(":0").split("/")
    parts = parts[group:]
    parts = parts[1:] if lead and len(parts) > 1 else parts
    parts = "/".join(part.rpartition("___")[2] for part in parts).replace("_._", "/").split("/")
    name = ".".join(filter(None, parts))
    for pattern, irregular in _IRREGULAR:
        name = pattern.sub(irregular, name)
    head, _, leaf = name.rpartition(".")
    leaf = _LEAVES.get(leaf, leaf)
    return f"{head}.{leaf}" if head else leaf


def _pairs(checkpoint: Checkpoint) -> Iterator[tuple[str, Recipe]]:
    for path, info in checkpoint.infos.items():
        leaf = path.removesuffix(":0").rpartition("/")[2]
        if path.endswith("/predictions/decoder/bias:0") and _never_set(checkpoint, path):
            continue
        steps: tuple[Layout, ...] = kernel_steps(leaf, len(info.shape)) if leaf in KERNELS else ()
        yield canonical_name(path, _lead(checkpoint, path)), Recipe(path, steps)


def _lead(checkpoint: Checkpoint, path: str) -> int:
    """How many parts stand before a weight's own: files in shards have no group, one of safetensors no class either,
    unless the name has "model." in it.
    """
    if checkpoint.format == "sharded":
        return 1
    if checkpoint.format == "safetensors":
        return 1 if "model." in path else 0
    return 2


def _never_set(checkpoint: Checkpoint, path: str) -> bool:
    """ALBERT's head computes with decoder/bias and keeps predictions/bias beside it; in torch they are one. A file
    that transformers made of a torch checkpoint holds the values in the latter and zeros in the former.
    """
    twin = path.replace("/decoder/bias:0", "/bias:0")
    return twin in checkpoint.infos and not checkpoint.read(path).any()
