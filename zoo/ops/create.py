"""Operations that make arrays from numbers and sizes."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.dtypes import DType
from zoo.ops import size as size_ops
from zoo.ops.dtypes import FLOAT, is_float
from zoo.ops.table import op


@op("full")
def full(xp: Any, size: Any, fill_value: Any, *, dtype: DType | None = None) -> Any:
    return xp.full(size, fill_value, _named(dtype, fill_value))


@op("full_like", by_shape=True)
def full_like(xp: Any, x: Any, fill_value: Any, *, dtype: DType | None = None) -> Any:
    return xp.full(xp.shape(x), fill_value, dtype.name if dtype else xp.dtype(x))


@op("new_full", by_shape=True)
def new_full(xp: Any, x: Any, size: Any, fill_value: Any, *, dtype: DType | None = None) -> Any:
    return xp.full(size, fill_value, dtype.name if dtype else xp.dtype(x))


@op("fill.Scalar", "fill.Tensor", writes=True)
def fill(xp: Any, x: Any, value: Any) -> Any:
    return xp.broadcast_to(xp.asarray(value, xp.dtype(x)), xp.shape(x))


def _constant(name: str, value: int) -> None:
    op(name)(lambda xp, size, *, dtype=None: xp.full(size, value, dtype.name if dtype else FLOAT))
    op(f"{name}_like", by_shape=True)(
        lambda xp, x, *, dtype=None: xp.full(xp.shape(x), value, dtype.name if dtype else xp.dtype(x))
    )
    op(f"new_{name}", by_shape=True)(
        lambda xp, x, size, *, dtype=None: xp.full(size, value, dtype.name if dtype else xp.dtype(x))
    )


_constant("zeros", 0)
_constant("ones", 1)


# what "empty" holds is not said: zeros are one right answer, and always the same one
@op("empty_like", by_shape=True)
def empty_like(xp: Any, x: Any, *, dtype: DType | None = None) -> Any:
    return full_like(xp, x, 0, dtype=dtype)


@op("new_empty", by_shape=True)
def new_empty(xp: Any, x: Any, size: Any, *, dtype: DType | None = None) -> Any:
    return new_full(xp, x, size, 0, dtype=dtype)


@op("empty.memory_format", "empty_permuted")
def empty(xp: Any, size: Any, physical_layout: Any = None, *, dtype: DType | None = None) -> Any:
    return xp.full(size, 0, dtype.name if dtype else FLOAT)


@op("new_empty_strided", by_shape=True)
def new_empty_strided(xp: Any, x: Any, size: Any, stride: Any, *, dtype: DType | None = None) -> Any:
    return xp.full(size, 0, dtype.name if dtype else xp.dtype(x))


@op("scalar_tensor")
def scalar_tensor(xp: Any, value: Any, *, dtype: DType | None = None) -> Any:
    return xp.full((), value, dtype.name if dtype else FLOAT)


@op("arange.start_step")
def arange_start_step(xp: Any, start: Any, end: Any, step: Any = 1, *, dtype: DType | None = None) -> Any:
    floats = any(isinstance(v, float) for v in (start, end, step))
    return xp.arange(start, end, step, dtype.name if dtype else FLOAT if floats else "int64")


@op("arange.start")
def arange_start(xp: Any, start: Any, end: Any, *, dtype: DType | None = None) -> Any:
    return arange_start_step(xp, start, end, 1, dtype=dtype)


@op("arange")
def arange(xp: Any, end: Any, *, dtype: DType | None = None) -> Any:
    return arange_start_step(xp, 0, end, 1, dtype=dtype)


@op("linspace")
def linspace(xp: Any, start: Any, end: Any, steps: Any, *, dtype: DType | None = None) -> Any:
    name = dtype.name if dtype else FLOAT
    wide = name if is_float(name) else FLOAT
    gap = xp.divide(xp.asarray(end - start, wide), xp.asarray(size_ops.max_(xp, steps - 1, 1), wide))
    return xp.cast(xp.add(xp.asarray(start, wide), xp.multiply(xp.arange(0, steps, 1, wide), gap)), name)


@op("eye", "eye.m")
def eye(xp: Any, n: Any, m: Any = None, *, dtype: DType | None = None) -> Any:
    rows = xp.reshape(xp.arange(0, n, 1, "int64"), (-1, 1))
    columns = xp.arange(0, n if m is None else m, 1, "int64")
    return xp.cast(xp.equal(rows, columns), dtype.name if dtype else FLOAT)


@op("tril")
def tril(xp: Any, x: Any, diagonal: int = 0) -> Any:
    return xp.where(_triangle(xp, x, diagonal), x, xp.asarray(0, xp.dtype(x)))


@op("triu")
def triu(xp: Any, x: Any, diagonal: int = 0) -> Any:
    return xp.where(_triangle(xp, x, diagonal - 1), xp.asarray(0, xp.dtype(x)), x)


@op("tril_indices")
def tril_indices(xp: Any, row: int, col: int, offset: int = 0, *, dtype: DType | None = None) -> Any:
    row, col = size_ops.number(row, "tril_indices"), size_ops.number(col, "tril_indices")
    xp.parts(row * col >> 8)
    return xp.asarray(np.stack(np.tril_indices(row, offset, col)), dtype.name if dtype else "int64")


@op("triu_indices")
def triu_indices(xp: Any, row: int, col: int, offset: int = 0, *, dtype: DType | None = None) -> Any:
    row, col = size_ops.number(row, "triu_indices"), size_ops.number(col, "triu_indices")
    xp.parts(row * col >> 8)
    return xp.asarray(np.stack(np.triu_indices(row, offset, col)), dtype.name if dtype else "int64")


def _triangle(xp: Any, x: Any, diagonal: int) -> Any:
    """Whether column <= row + diagonal, over the last two dims."""
    rows, columns = xp.shape(x)[-2:]
    row_index = xp.reshape(xp.arange(0, rows, 1, "int64"), (-1, 1))
    limit = xp.add(row_index, xp.asarray(diagonal, "int64"))
    return xp.less_equal(xp.arange(0, columns, 1, "int64"), limit)


def _named(dtype: DType | None, value: Any) -> str:
    if dtype is not None:
        return dtype.name
    return "bool" if isinstance(value, bool) else FLOAT if isinstance(value, float) else "int64"
