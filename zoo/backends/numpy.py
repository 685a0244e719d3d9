"""The reference: every graph in float64 on NumPy, with nothing but the op table's own definitions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from zoo.backends.execute import Program, resolve_over
from zoo.backends.namespace import BINARY, UNARY, Namespace
from zoo.graph.ir import Graph

__all__ = ["NumpyNamespace", "compile_graph", "namespace", "params_from"]


COPIES = False
"""Whether `params_from` copies, so that the checkpoint's pages are not needed any more."""


def compile_graph(graph: Graph) -> Any:
    """A function (params, inputs) -> outputs that computes in float64, whatever the graph's dtype."""
    program = Program(graph, resolve_over(_XP, {}))
    constants = {name: _widened(array) for name, array in graph.constants.items()}

    def apply(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        with np.errstate(all="ignore"):
            return program(
                {name: _widened(array) for name, array in params.items()},
                {name: _widened(np.asarray(array)) for name, array in inputs.items()},
                constants,
            )

    return apply


def params_from(arrays: Mapping[str, np.ndarray], graph: Graph) -> dict[str, np.ndarray]:
    """The checkpoint's arrays themselves: read-only views, widened only while a call runs."""
    return dict(arrays)


def module_of(model: Any) -> Any:
    """There is no framework: the function (params, inputs) -> outputs."""
    return model.apply


class NumpyNamespace(Namespace):
    """NumPy; with `widen`, every float dtype is computed and kept as float64."""

    def __init__(self, widen: bool) -> None:
        self.widen = widen

    def _np(self, dtype: str) -> Any:
        if self.widen:
            dtype = _WIDE.get(dtype, dtype)
        return ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)

    def asarray(self, x: Any, dtype: str | None = None) -> Any:
        if dtype is None:
            return np.asarray(x)
        if isinstance(x, (np.ndarray, np.generic)):
            return self.cast(x, dtype)
        return np.asarray(_clipped(x, dtype)).astype(self._np(dtype))

    def cast(self, x: Any, dtype: str) -> Any:
        return np.asarray(x).astype(self._np(dtype), copy=False)

    def bitcast(self, x: Any, dtype: str) -> Any:
        return np.asarray(x).view(self._np(dtype))

    def dtype(self, x: Any) -> str:
        return str(x.dtype)

    def full(self, shape: Any, value: Any, dtype: str) -> Any:
        return np.broadcast_to(self.asarray(value, dtype), tuple(shape)) if len(shape) else self.asarray(value, dtype)

    def arange(self, start: Any, stop: Any, step: Any, dtype: str) -> Any:
        return np.arange(start, stop, step).astype(self._np(dtype))

    def reshape(self, x: Any, shape: Any) -> Any:
        return np.reshape(x, tuple(shape))

    def permute(self, x: Any, axes: Sequence[int]) -> Any:
        return np.transpose(x, axes)

    def expand_dims(self, x: Any, axis: int) -> Any:
        return np.expand_dims(x, axis)

    def squeeze(self, x: Any, axes: Sequence[int]) -> Any:
        return np.squeeze(x, tuple(axes))

    def broadcast_to(self, x: Any, shape: Any) -> Any:
        return np.broadcast_to(x, tuple(shape))

    def concat(self, xs: Sequence[Any], axis: int) -> Any:
        return np.concatenate(xs, axis)

    def slice(self, x: Any, axis: int, start: Any, stop: Any, step: int = 1) -> Any:
        return x[(slice(None),) * axis + (slice(start, stop, step),)]

    def pad(self, x: Any, widths: Sequence[tuple[Any, Any]], value: Any) -> Any:
        return np.pad(x, widths, constant_values=value)

    def flip(self, x: Any, axes: Sequence[int]) -> Any:
        return np.flip(x, tuple(axes))

    def take(self, x: Any, index: Any, axis: int) -> Any:
        return np.take(x, index, axis)

    def take_along_axis(self, x: Any, index: Any, axis: int) -> Any:
        return np.take_along_axis(x, index, axis)

    def index(self, x: Any, indices: Sequence[Any]) -> Any:
        return x[tuple(slice(None) if i is None else i for i in indices)]

    def index_mask(self, x: Any, indices: Sequence[Any]) -> Any:
        return self.index(x, indices)

    def nonzero(self, x: Any) -> Any:
        return np.argwhere(x)

    def index_put(self, x: Any, indices: Sequence[Any], values: Any, accumulate: bool) -> Any:
        result = np.array(x)
        where = tuple(slice(None) if i is None else i for i in indices)
        if accumulate:
            np.add.at(result, where, values)
        else:
            result[where] = values
        return result

    def scatter(self, x: Any, axis: int, index: Any, src: Any, mode: str) -> Any:
        result = np.array(x)
        if not result.ndim:
            return self.scatter(result[None], 0, np.reshape(index, (1,)), np.reshape(src, (1,)), mode)[0]
        where = list(np.indices(index.shape, sparse=True))
        where[axis] = index
        src = np.broadcast_to(src, index.shape) if not np.ndim(src) else src[tuple(slice(n) for n in index.shape)]
        if mode == "set":
            result[tuple(where)] = src
        else:
            {"add": np.add, "multiply": np.multiply, "max": np.maximum, "min": np.minimum}[mode].at(
                result, tuple(where), src
            )
        return result

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        return np.where(condition, x, y)

    def complex(self, real: Any, imag: Any) -> Any:
        return real + 1j * imag

    def sum(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return np.sum(x, tuple(axes), keepdims=keepdims, dtype=x.dtype)

    def mean(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return np.mean(x, tuple(axes), keepdims=keepdims)

    def prod(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return np.prod(x, tuple(axes), keepdims=keepdims, dtype=x.dtype)

    def max(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return np.max(x, tuple(axes), keepdims=keepdims)

    def min(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return np.min(x, tuple(axes), keepdims=keepdims)

    def any(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return np.any(x, tuple(axes), keepdims=keepdims)

    def all(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return np.all(x, tuple(axes), keepdims=keepdims)

    def argmax(self, x: Any, axis: int) -> Any:
        return np.argmax(x, axis)

    def argmin(self, x: Any, axis: int) -> Any:
        return np.argmin(x, axis)

    def argsort(self, x: Any, axis: int, descending: bool) -> Any:
        if not np.ndim(x):
            return np.asarray(0)
        if not descending:
            return np.argsort(x, axis, kind="stable")
        # stable and descending: sort the reversed array, whose ties are reversed, too, and turn both round
        size = x.shape[axis]
        return size - 1 - np.flip(np.argsort(np.flip(x, axis), axis, kind="stable"), axis)

    def cumsum(self, x: Any, axis: int) -> Any:
        return np.cumsum(x, axis, dtype=x.dtype)

    def cumprod(self, x: Any, axis: int) -> Any:
        return np.cumprod(x, axis, dtype=x.dtype)

    def matmul(self, x: Any, y: Any) -> Any:
        return np.matmul(x, y)

    def linear(self, x: Any, weight: Any) -> Any:
        return np.matmul(x, weight.T)

    def einsum(self, equation: str, *xs: Any) -> Any:
        return np.einsum(equation, *xs, optimize=True)

    def conv(
        self,
        x: Any,
        weight: Any,
        stride: Sequence[int],
        padding: Sequence[tuple[Any, Any]],
        dilation: Sequence[int],
        groups: int,
    ) -> Any:
        batch, channels = x.shape[:2]
        out, per_group, *kernel = weight.shape
        windows = self._windows(x, kernel, stride, padding, dilation, 0)
        sizes = windows.shape[2 : 2 + len(kernel)]
        columns = np.moveaxis(windows.reshape(batch, groups, per_group, *sizes, *kernel), range(3, 3 + len(kernel)), range(-len(kernel), 0))
        columns = columns.reshape(batch, groups, per_group * math.prod(kernel), math.prod(sizes))
        result = np.matmul(weight.reshape(groups, out // groups, per_group * math.prod(kernel)), columns)
        return result.reshape(batch, out, *sizes)

    def max_pool(self, x: Any, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[tuple[Any, Any]]) -> Any:
        low = -np.inf if np.issubdtype(x.dtype, np.floating) else np.iinfo(x.dtype).min
        windows = self._windows(x, kernel, stride, padding, (1,) * len(kernel), low)
        return np.max(windows, tuple(range(-len(kernel), 0)))

    def sum_pool(self, x: Any, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[tuple[Any, Any]]) -> Any:
        windows = self._windows(x, kernel, stride, padding, (1,) * len(kernel), 0)
        return np.sum(windows, tuple(range(-len(kernel), 0)))

    def _windows(self, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, value: Any) -> Any:
        """[N, C, *out, *kernel], a view."""
        x = np.pad(x, [(0, 0), (0, 0), *padding], constant_values=value)
        reach = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
        axes = tuple(range(2, 2 + len(kernel)))
        windows = np.lib.stride_tricks.sliding_window_view(x, reach, axes)
        steps = tuple(slice(None, None, s) for s in stride)
        taps = tuple(slice(None, None, d) for d in dilation)
        return windows[(slice(None), slice(None), *steps, *taps)]


def _erf(x: Any) -> Any:
    return _ERF(x).astype(x.dtype)


def _sigmoid(x: Any) -> Any:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x)))).astype(x.dtype)


_ERF = np.vectorize(math.erf, otypes=[np.float64])
_OWN = {
    "erf": _erf,
    "sigmoid": _sigmoid,
    "round": np.rint,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "atan2": np.arctan2,
    "bitwise_not": np.invert,
}
for _name in (*UNARY, *BINARY):
    setattr(NumpyNamespace, _name, staticmethod(_OWN.get(_name) or getattr(np, _name)))


_WIDE = {"float16": "float64", "bfloat16": "float64", "float32": "float64", "complex64": "complex128"}


def _widened(array: Any) -> Any:
    wide = _WIDE.get(str(array.dtype))
    return array if wide is None else array.astype(wide)


def _clipped(x: Any, dtype: str) -> Any:
    """Numbers beyond an integer dtype's range, which torch writes for "no limit", at its end."""
    if type(x) is int and dtype.startswith(("int", "uint")):
        info = np.iinfo(dtype)
        return min(max(x, info.min), info.max)
    return x


def namespace() -> Namespace:
    """The namespace this backend computes with."""
    return _XP


_XP = NumpyNamespace(widen=True)
