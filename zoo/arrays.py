"""Arrays as NumPy has them, and dtypes by the names that torch, NumPy and ml_dtypes share."""

from __future__ import annotations

import functools
import mmap
from typing import Any

import numpy as np

__all__ = ["dtype_name", "is_spread", "numpy_dtype", "numpy_name", "owned", "to_numpy"]


@functools.cache
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


def dtype_name(dtype: Any) -> str:
    """The name of NumPy's, torch's or TensorFlow's dtype: "float32", "bfloat16", …"""
    if isinstance(dtype, np.dtype):
        return numpy_name(dtype)
    return getattr(dtype, "name", None) or str(dtype).removeprefix("torch.")


@functools.cache
def numpy_name(dtype: np.dtype) -> str:
    """The name of NumPy's dtype, which takes NumPy itself a dozen calls."""
    return dtype.name


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


def is_spread(value: Any) -> bool:
    """Whether a tensor of torch's lies in parts on several processes: a DTensor, which FSDP2 makes, or its shards."""
    return any(kind.__name__ == "DTensor" for kind in type(value).__mro__) or hasattr(value, "_local_shards")


def owned(array: np.ndarray) -> np.ndarray:
    """The array, read-only, and copied unless nothing can write to its memory; a mapped file stays mapped."""
    end: Any = array
    while isinstance(end, np.ndarray) and end.base is not None:
        end = end.base
    end = end.obj if isinstance(end, memoryview) else end
    constant = not end.flags.writeable if isinstance(end, np.ndarray) else isinstance(end, (mmap.mmap, bytes))
    if array.flags.writeable or not constant:
        array = np.array(array, order="C")
        array.flags.writeable = False
    return array


def _strided() -> Any:
    import torch

    return torch.strided
