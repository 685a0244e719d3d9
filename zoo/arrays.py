"""Arrays as NumPy has them, and dtypes by the names that torch, NumPy and ml_dtypes share."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["numpy_dtype", "to_numpy"]


def numpy_dtype(name: str) -> np.dtype:
    """The NumPy dtype of a name: "float32", "bfloat16", "float8_e4m3fn" …

    Raises:
        TypeError: no such dtype.
    """
    if name in _NUMPYS:
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name, None) or name)


_NUMPYS = frozenset(
    "float64 float32 float16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool complex64 complex128".split()
)


def to_numpy(value: Any) -> np.ndarray:
    """A framework's array as NumPy's: on any device, bfloat16 included, with or without a gradient."""
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if hasattr(getattr(value, "value", None), "dtype"):  # keras.Variable: of Keras's own backend
        value = value.value
    if hasattr(value, "detach"):  # torch
        value = value.detach().cpu()
        if value.layout is not _strided():
            value = value.to_dense()
        value = value.resolve_conj().resolve_neg()
        if str(value.dtype) == "torch.bfloat16":
            import torch

            return value.contiguous().view(torch.uint16).numpy().view(numpy_dtype("bfloat16"))
    if hasattr(value, "numpy"):
        return np.asarray(value.numpy())
    return np.asarray(value)


def _strided() -> Any:
    import torch

    return torch.strided
