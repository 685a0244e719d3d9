"""NumPy as the op table's `xp`, in float64 and the widest integers where these differ."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo.arrays import numpy_dtype, numpy_name
from zoo.backends.namespace import BINARY, UNARY, Namespace
from zoo.errors import OutsideError

__all__ = ["NumpyNamespace", "all_inside", "clipped", "start_of", "widest"]


class NumpyNamespace(Namespace):
    """NumPy; with `widen`, every float dtype is computed and kept as float64."""

    def __init__(self, widen: bool) -> None:
        self.widen = widen

    def _np(self, dtype: str) -> Any:
        if self.widen:
            dtype = _WIDE.get(dtype, dtype)
        return numpy_dtype(dtype)

    def asarray(self, x: Any, dtype: str | None = None) -> Any:
        if dtype is None:
            return np.asarray(x)
        if isinstance(x, (np.ndarray, np.generic)):
            return self.cast(x, dtype)
        return np.asarray(clipped(x, dtype)).astype(self._np(dtype))

    def cast(self, x: Any, dtype: str) -> Any:
        return np.asarray(x).astype(self._np(dtype), copy=False)

    def bitcast(self, x: Any, dtype: str) -> Any:
        return np.asarray(x).view(self._np(dtype))

    def dtype(self, x: Any) -> str:
        return numpy_name(x.dtype)

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

    def size_joint(self, a: Any, b: Any) -> Any:
        return a  # there are numbers alone

    def inside(self, index: Any, size: Any) -> tuple[Any, Any]:
        return all_inside(index, size), None

    def index(self, x: Any, indices: Sequence[Any]) -> Any:
        return x[tuple(slice(None) if i is None else i for i in indices)]

    def index_mask(self, x: Any, indices: Sequence[Any]) -> Any:
        return self.index(x, indices)

    def nonzero(self, x: Any) -> Any:
        return np.argwhere(x)

    def index_put(self, x: Any, indices: Sequence[Any], values: Any, accumulate: bool) -> Any:
        result = np.array(x)
        where: Any = tuple(slice(None) if i is None else i for i in indices)
        if accumulate:
            np.add.at(result, where, values)
        else:
            result[where] = values
        return result

    def scatter(self, x: Any, axis: int, index: Any, src: Any, mode: str) -> Any:
        result = np.array(x)
        if not result.ndim:
            return self.scatter(result[None], 0, np.reshape(index, (1,)), np.reshape(src, (1,)), mode)[0]
        where: list[Any] = list(np.indices(index.shape, sparse=True))
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
        result = np.empty(np.broadcast_shapes(np.shape(real), np.shape(imag)), np.result_type(real.dtype, np.complex64))
        result.real, result.imag = real, imag
        return result

    def sum(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return np.sum(x, tuple(axes), keepdims=keepdims, dtype=_summed(x.dtype)).astype(x.dtype)

    def mean(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        count = math.prod(x.shape[axis] for axis in axes)
        total = np.sum(x, tuple(axes), keepdims=keepdims, dtype=_summed(x.dtype))
        return np.divide(total, np.asarray(count, total.dtype)).astype(x.dtype)

    def prod(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return np.prod(x, tuple(axes), keepdims=keepdims, dtype=x.dtype)

    def max(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return np.max(x, tuple(axes), keepdims=keepdims, **start_of(x, -1))

    def min(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return np.min(x, tuple(axes), keepdims=keepdims, **start_of(x, 1))

    def any(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return np.any(x, tuple(axes), keepdims=keepdims)

    def all(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return np.all(x, tuple(axes), keepdims=keepdims)

    def argmax(self, x: Any, axis: int) -> Any:
        return np.argmax(x, axis)

    def argmin(self, x: Any, axis: int) -> Any:
        return np.argmin(x, axis)

    def argsort(self, x: Any, axis: int, descending: bool) -> Any:
        x = x.astype(np.float32) if numpy_name(x.dtype) == "bfloat16" else x  # of which NumPy sorts NaN anywhere
        if not descending:
            return np.argsort(x, axis, kind="stable")
        # stable and descending: sort the reversed array, whose ties are reversed, too, and turn both round
        size = x.shape[axis]
        return size - 1 - np.flip(np.argsort(np.flip(x, axis), axis, kind="stable"), axis)

    def cumsum(self, x: Any, axis: int) -> Any:
        return np.cumsum(x, axis, dtype=_summed(x.dtype)).astype(x.dtype)

    def cumprod(self, x: Any, axis: int) -> Any:
        return np.cumprod(x, axis, dtype=x.dtype)

    def cummax(self, x: Any, axis: int) -> Any:
        return np.maximum.accumulate(x, axis)

    def matmul(self, x: Any, y: Any) -> Any:
        return np.asarray(np.matmul(x, y)).astype(x.dtype, copy=False)  # bfloat16 becomes float32 there

    def linear(self, x: Any, weight: Any) -> Any:
        return self.matmul(x, weight.T)

    def einsum(self, equation: str, *xs: Any) -> Any:
        dtype = xs[0].dtype
        wide = [x.astype(np.float32) for x in xs] if str(dtype) == "bfloat16" else xs  # which einsum does not take
        return np.asarray(np.einsum(equation, *wide, optimize=True)).astype(dtype, copy=False)

    def grouped_matmul(self, x: Any, weight: Any, ends: Any) -> Any:
        result = np.zeros((x.shape[0], weight.shape[2]), x.dtype)
        start = 0
        for matrix, end in zip(weight, ends, strict=True):
            result[start:end] = self.matmul(x[start:end], matrix)
            start = end
        return result

    def conv(
        self,
        x: Any,
        weight: Any,
        stride: Sequence[int],
        padding: Sequence[tuple[Any, Any]],
        dilation: Sequence[int],
        groups: int,
    ) -> Any:
        batch = x.shape[0]
        out, per_group, *kernel = weight.shape
        windows = self._windows(x, kernel, stride, padding, dilation, 0)
        sizes = windows.shape[2 : 2 + len(kernel)]
        split = windows.reshape(batch, groups, per_group, *sizes, *kernel)
        columns = np.moveaxis(split, range(3, 3 + len(kernel)), range(-len(kernel), 0))
        columns = columns.reshape(batch, groups, per_group * math.prod(kernel), math.prod(sizes))
        result = self.matmul(weight.reshape(groups, out // groups, per_group * math.prod(kernel)), columns)
        return result.reshape(batch, out, *sizes)

    def fft(self, x: Any, axis: int, forward: bool) -> Any:
        return np.fft.fft(x, axis=axis) if forward else np.fft.ifft(x, axis=axis, norm="forward")

    def max_pool(self, x: Any, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[tuple[Any, Any]]) -> Any:
        low = np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf
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

    def solve(self, a: Any, b: Any) -> Any:
        return np.linalg.solve(a, b)

    def solve_triangular(self, a: Any, b: Any, lower: bool) -> Any:
        return np.linalg.solve(np.tril(a) if lower else np.triu(a), b)

    def cholesky(self, x: Any) -> Any:
        return np.linalg.cholesky(x)

    def slogdet(self, x: Any) -> tuple[Any, Any]:
        first, second = np.linalg.slogdet(x)
        return first, second

    def eigh(self, x: Any) -> tuple[Any, Any]:
        first, second = np.linalg.eigh(x)
        return first, second

    def svd(self, x: Any, full: bool) -> tuple[Any, Any, Any]:
        u, s, vh = np.linalg.svd(x, full)
        return u, s, vh

    def qr(self, x: Any, full: bool) -> tuple[Any, Any]:
        q, r = np.linalg.qr(x, "complete" if full else "reduced")
        return q, r


def all_inside(index: Any, size: int) -> Any:
    """`index`. OutsideError if a number in it is not in 0 … size - 1."""
    numbers = np.asarray(index)
    if numbers.size and not (numbers.min() >= 0 and numbers.max() < size):
        raise OutsideError(
            "an index is outside what it points into",
            expected=f"0 to {size - 1}" if size else "none: there is nothing",
            got=f"{numbers.min()} to {numbers.max()}",
        )
    return index


def _erf(x: Any) -> Any:
    """erf to about one unit in the last place, by Taylor's series around the nearest point of a grid."""
    values = np.ravel(x).astype(np.float64)
    for start in range(0, values.size, _BLOCK):  # a block at a time stays in the cache: three times as fast
        block = values[start : start + _BLOCK]
        # beyond 6 it is 1 in float64; NaN picks the last point and stays NaN through the offset
        size = np.minimum(np.abs(block), 6.0)
        point = np.rint(np.fmin(size, 6.0) * _GRID).astype(np.intp)
        offset = size - point / _GRID
        result = _TAYLOR[-1].take(point)
        for coefficients in _TAYLOR[-2::-1]:
            result *= offset
            result += coefficients.take(point)
        np.copysign(result, block, out=block)
    return values.reshape(np.shape(x)).astype(x.dtype)


def _erf_taylor(degree: int) -> np.ndarray:
    """[degree + 1, points]: erf's derivatives over n! at multiples of 1 / _GRID from 0 to 6.

    erf' is 2/sqrt(pi) exp(-x²), and each further derivative follows from the two before it:
    erf^(n+2) = -2x erf^(n+1) - 2n erf^(n).
    """
    x = np.arange(6 * _GRID + 1) / _GRID
    derivatives = [np.array([math.erf(v) for v in x]), 2 / math.sqrt(math.pi) * np.exp(-x * x)]
    derivatives.append(-2 * x * derivatives[1])
    for n in range(1, degree - 1):
        derivatives.append(-2 * x * derivatives[n + 1] - 2 * n * derivatives[n])
    return np.stack([d / math.factorial(n) for n, d in enumerate(derivatives)])


def _erfinv(x: Any) -> Any:
    """Newton's method, from S. Winitzki's approximation by elementary functions (0.147 is its constant)."""
    values = np.asarray(x, np.float64)
    log = np.log1p(-values * values)
    first = 2 / (math.pi * 0.147) + log / 2
    result = np.copysign(np.sqrt(np.sqrt(first * first - log / 0.147) - first), values)
    for _ in range(3):
        # the smaller of erf's two ends is known to more digits
        off = np.sign(values) * ((1 - np.abs(values)) - _erfc(np.abs(result)))
        step = off * (math.sqrt(math.pi) / 2) * np.exp(result * result)
        result = result - np.where(np.isfinite(step), step, 0)
    return result.astype(x.dtype)


def _each(function: Any) -> Any:
    """A function of Python's math module on every element, in float64."""
    return lambda x: np.vectorize(function, otypes=[np.float64])(np.asarray(x, np.float64)).astype(x.dtype)


def _log_gamma(x: float) -> float:
    if math.isinf(x) or (x <= 0 and x == math.floor(x)):
        return math.inf
    return math.lgamma(x)


_erfc = _each(math.erfc)


def _sigmoid(x: Any) -> Any:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x)))).astype(x.dtype)


_BLOCK = 16384

_GRID = 512

_TAYLOR = _erf_taylor(5)  # offsets are at most 1/1024, so what is left out is below 1e-19

_OWN: dict[str, Any] = {
    "erf": _erf,
    "erfc": _erfc,
    "erfinv": _erfinv,
    "lgamma": _each(_log_gamma),
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


def start_of(x: Any, sign: int) -> dict[str, Any]:
    """What the largest (sign -1) or smallest (1) of nothing is, which NumPy and JAX must be told."""
    if x.size or x.dtype.kind == "b":
        return {}
    if x.dtype.kind in "iu":
        return {"initial": np.iinfo(x.dtype).min if sign < 0 else np.iinfo(x.dtype).max}
    return {"initial": sign * np.inf}


def _summed(dtype: Any) -> Any:
    """What sums of a dtype are taken in."""
    return np.float32 if str(dtype) in ("float16", "bfloat16") else dtype


def widest(array: Any) -> Any:
    wide = _WIDE.get(numpy_name(array.dtype))
    return array if wide is None else array.astype(wide)


def clipped(x: Any, dtype: str) -> Any:
    """Numbers beyond an integer dtype's range, which torch writes for "no limit", at its end."""
    if type(x) is int and dtype.startswith(("int", "uint")):
        low, high = _range(dtype)
        return min(max(x, low), high)
    return x


@functools.cache
def _range(dtype: str) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)
