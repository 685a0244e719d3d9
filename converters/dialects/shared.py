"""What dialects share: the layout of TensorFlow's, Keras's and Flax's kernels, and tensors that are stored twice."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from converters.checkpoint import Checkpoint, in_step
from converters.view import Concatenate, Layout, Permute, Recipe
from zoo.errors import FormatError

__all__ = ["KERNELS", "Dropped", "kernel_steps", "merge", "same_values", "why_dropped"]

Dropped = tuple[tuple[str, str], ...]
"""(pattern of whole names on either side, why tensors of that name are not needed)."""

KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel", "recurrent_kernel")
"""The last parts of names that promise this layout."""


def kernel_steps(leaf: str, rank: int) -> tuple[Layout, ...]:
    """From a kernel to torch's layout.

    Args:
        leaf: one of `KERNELS`.
        rank: 2 for dense layers [in, out]; 3, 4, 5 for convolutions [*sizes, in, out], depthwise [*sizes, in, times].

    Returns:
        Steps to [out, in], [out, in, *sizes]; depthwise [in * times, 1, *sizes] where times is 1.
    """
    if rank < 2:
        return ()
    sizes = tuple(range(rank - 2))
    if leaf == "depthwise_kernel":
        return (Permute((rank - 2, rank - 1, *sizes)),)
    return (Permute((rank - 1, rank - 2, *sizes)),)


def why_dropped(name: str, dropped: Dropped) -> str | None:
    """Why a tensor of this name is not needed; None where no pattern says so."""
    return next((why for pattern, why in dropped if re.fullmatch(pattern, name)), None)


def merge(checkpoint: Checkpoint, pairs: Iterable[tuple[str, Recipe]]) -> dict[str, Recipe | Concatenate]:
    """Recipes by name; a tensor that a checkpoint stores several times must be the same each time.

    Raises:
        FormatError: two tensors of one name differ.
    """
    found: dict[str, Recipe | Concatenate] = {}
    for name, recipe in pairs:
        known = found.setdefault(name, recipe)
        if (
            known is not recipe
            and isinstance(known, Recipe)
            and not same_values(checkpoint, known.source, recipe.source)
        ):
            raise FormatError(
                f"the checkpoint holds {name!r} twice, and the two differ",
                where=checkpoint.path,
                got=f"{known.source} and {recipe.source}",
                do="remove the one that is not meant",
            )
    return found


def same_values(checkpoint: Checkpoint, a: str, b: str) -> bool:
    """Whether two tensors of a checkpoint have the same shape, dtype and values."""
    if checkpoint.aliases.get(a, a) == checkpoint.aliases.get(b, b):
        return True
    one, other = checkpoint.infos[a], checkpoint.infos[b]
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return all(_same(x, y) for x, y in in_step(checkpoint.blocks(a), checkpoint.blocks(b)))


def _same(x: np.ndarray, y: np.ndarray) -> bool:
    """Equal bits are equal values, and found so much faster."""
    if x.ndim and np.array_equal(x.view(np.uint8), y.view(np.uint8)):
        return True
    return np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
