"""Where kernels are called and their results allocated."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.native import library as lib

__all__ = ["call", "copied", "empty"]


def call(args: Any, *used: Any) -> None:
    """Run a kernel. `used` is what its pointers point into."""
    lib.run(args)


def empty(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    return np.empty(shape, dtype)


def copied(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x)
