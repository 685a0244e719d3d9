"""The weights of models that torch.onnx exported, whose matrices have lost their names.

A dense layer becomes MatMul, with its weight transposed and called "onnx::MatMul_123", and Add, with its bias under its
own name: the bias says what the weight is. Without a bias the node's name does, which is the path of the module. What
was wrapped around the model for the export ("model.0.auto_model.") stands before every name and goes.
Source: torch/onnx of PyTorch 1.13 to 2.13, and the files that it writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any

from converters.checkpoint import Checkpoint
from converters.dialects.shared import Dropped, why_dropped
from converters.view import Concatenate, Permute, Recipe
from zoo.errors import FormatError

__all__ = ["DROPPED", "NAME", "canonical", "recognises"]

NAME = "onnx"

_PRODUCT = r"onnx::MatMul_\d+"
DROPPED: Dropped = ((rf"(?!{_PRODUCT}$)(onnx::|/).*|\d+", "a constant of the graph, no weight of a module"),)


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether it is an ONNX model."""
    return checkpoint.format == "onnx"


def canonical(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """Canonical name -> recipe. A matrix that nothing names keeps its own name.

    Raises:
        FormatError: two matrices would have the same name.
    """
    found: dict[str, Recipe | Concatenate] = {}
    for name in checkpoint.infos:
        if why_dropped(name, DROPPED) is not None:
            continue
        own, recipe = name, Recipe(name)
        product = checkpoint.metadata["products"].get(name) if re.fullmatch(_PRODUCT, name) else None
        weight = None if product is None else _weight(*product)
        if weight is not None and len(checkpoint.infos[name].shape) == 2:
            own, recipe = weight, Recipe(name, (Permute((1, 0)),))
        if own in found:
            raise FormatError(f"two tensors would be named {own!r}", where=f"{checkpoint.path}, tensor {name!r}")
        found[own] = recipe
    around = _around(found)
    return {name.removeprefix(around): recipe for name, recipe in found.items()}


def _weight(node: str, added: Iterable[str]) -> str | None:
    """The name of the weight of a MatMul, from what is added to its result, else from its own name, if it has one."""
    bias = next((name for name in added if name.endswith(".bias")), None)
    if bias is not None:
        return bias.removesuffix("bias") + "weight"
    parts = node.strip("/").split("/")[:-1]
    # A child of a container that was called itself has the container's name again: "model/model.0".
    kept = [part for part, after in zip(parts, [*parts[1:], ""], strict=False) if not after.startswith(f"{part}.")]
    return ".".join([*kept, "weight"]) if kept else None


def _around(names: Iterable[str]) -> str:
    """The modules that stand before every name."""
    modules = [name.split(".")[:-2] for name in names if not re.fullmatch(_PRODUCT, name)]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*modules, strict=False))
    return "".join(f"{parts[0]}." for parts in shared)
