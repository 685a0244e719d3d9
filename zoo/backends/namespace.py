"""The namespace `xp` that the op table is written over: Array-API names plus what models need besides.

Every backend subclasses `Namespace` and has exactly these methods with these signatures. Arrays are the framework's
own; dtypes are torch's names ("float32"); axes are never negative unless said so; a size is an int, or where shapes are
not known while the graph is built a symbol (JAX) or a scalar array (TensorFlow). Methods with a body here are right for
every framework and are overridden where a framework has something better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Namespace"]


class Namespace:
    """Operations over one framework's arrays."""

    # Arrays and their facts

    def asarray(self, x: Any, dtype: str | None = None) -> Any:
        """`x` (array, number, size or nested list) as an array of `dtype`."""
        raise NotImplementedError

    def cast(self, x: Any, dtype: str) -> Any:
        """`x` in another dtype; floats are cut towards zero to become integers."""
        raise NotImplementedError

    def bitcast(self, x: Any, dtype: str) -> Any:
        raise NotImplementedError

    def dtype(self, x: Any) -> str:
        raise NotImplementedError

    def ndim(self, x: Any) -> int:
        return len(x.shape)

    def shape(self, x: Any) -> tuple[Any, ...]:
        return tuple(x.shape)

    def full(self, shape: Any, value: Any, dtype: str) -> Any:
        raise NotImplementedError

    def arange(self, start: Any, stop: Any, step: Any, dtype: str) -> Any:
        raise NotImplementedError

    # Sizes

    def size_equal(self, a: Any, b: Any) -> Any:
        return a == b

    def size_where(self, condition: Any, a: Any, b: Any) -> Any:
        return a if condition else b

    def size_max(self, a: Any, b: Any) -> Any:
        return max(a, b)

    def size_min(self, a: Any, b: Any) -> Any:
        return min(a, b)

    def reaches(self, size: Any, index: Any) -> bool:
        """Whether an index is a number below a size, as far as can be seen; if not, data or symbols decide."""
        return True

    def size_joint(self, a: Any, b: Any) -> Any:
        """What two sizes broadcast to of which neither is a number."""
        raise NotImplementedError

    def size_int(self, a: Any) -> Any:
        """The whole number below (towards zero) a size or a product of sizes and floats."""
        return int(a)

    def parts(self, count: Any) -> None:
        """Said by an operation before Python goes through so many parts of it. Here nothing is to be done."""

    # Moving elements

    def reshape(self, x: Any, shape: Any) -> Any:
        raise NotImplementedError

    def permute(self, x: Any, axes: Sequence[int]) -> Any:
        raise NotImplementedError

    def expand_dims(self, x: Any, axis: int) -> Any:
        raise NotImplementedError

    def squeeze(self, x: Any, axes: Sequence[int]) -> Any:
        raise NotImplementedError

    def broadcast_to(self, x: Any, shape: Any) -> Any:
        raise NotImplementedError

    def concat(self, xs: Sequence[Any], axis: int) -> Any:
        raise NotImplementedError

    def stack(self, xs: Sequence[Any], axis: int) -> Any:
        """`axis` may be -1."""
        axis = axis % (self.ndim(xs[0]) + 1)
        return self.concat([self.expand_dims(x, axis) for x in xs], axis)

    def slice(self, x: Any, axis: int, start: Any, stop: Any, step: int = 1) -> Any:
        """x[start:stop:step] along `axis`, by Python's rules; sizes may be negative or beyond the end."""
        raise NotImplementedError

    def pad(self, x: Any, widths: Sequence[tuple[Any, Any]], value: Any) -> Any:
        raise NotImplementedError

    def flip(self, x: Any, axes: Sequence[int]) -> Any:
        raise NotImplementedError

    def take(self, x: Any, index: Any, axis: int) -> Any:
        """`x` along `axis` at `index` (not negative), whose dims replace the axis; `axis` may be -1."""
        raise NotImplementedError

    def take_along_axis(self, x: Any, index: Any, axis: int) -> Any:
        raise NotImplementedError

    def inside(self, index: Any, size: Any) -> tuple[Any, Any]:
        """Indices that data decide, made safe to read and write at: (`index`, None) if all are known to be in
        0 … size - 1, an InputError if one is known not to be; else 0 for those outside, and which are inside."""
        raise NotImplementedError

    def index(self, x: Any, indices: Sequence[Any]) -> Any:
        """x[indices] by NumPy's rules; None stands for a whole axis; indices are integers, not negative."""
        raise NotImplementedError

    def index_mask(self, x: Any, indices: Sequence[Any]) -> Any:
        """x[indices] with bool masks: the result's size depends on the values."""
        raise NotImplementedError

    def nonzero(self, x: Any) -> Any:
        """[count, ndim] positions of the true elements."""
        raise NotImplementedError

    def index_put(self, x: Any, indices: Sequence[Any], values: Any, accumulate: bool) -> Any:
        """`x` with x[indices] = values, or += where `accumulate`."""
        raise NotImplementedError

    def scatter(self, x: Any, axis: int, index: Any, src: Any, mode: str) -> Any:
        """torch.scatter: x[..., index[..., i, ...], ...] (set, add, multiply, max, min)= src[..., i, ...]."""
        raise NotImplementedError

    # Element by element

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        raise NotImplementedError

    def rsqrt(self, x: Any) -> Any:
        return self.divide(self.asarray(1, self.dtype(x)), self.sqrt(x))  # type: ignore[attr-defined]

    def stop_gradient(self, x: Any) -> Any:
        """`x`, as a constant to whoever asks for gradients."""
        return x

    def complex(self, real: Any, imag: Any) -> Any:
        raise NotImplementedError

    # Folding dims; sums of half precision are taken in float32

    def sum(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        raise NotImplementedError

    def mean(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        raise NotImplementedError

    def prod(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        raise NotImplementedError

    def max(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        raise NotImplementedError

    def min(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        raise NotImplementedError

    def any(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        raise NotImplementedError

    def all(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        raise NotImplementedError

    def argmax(self, x: Any, axis: int) -> Any:
        raise NotImplementedError

    def argmin(self, x: Any, axis: int) -> Any:
        raise NotImplementedError

    def argsort(self, x: Any, axis: int, descending: bool) -> Any:
        """Stable; NaN counts as the largest."""
        raise NotImplementedError

    def cumsum(self, x: Any, axis: int) -> Any:
        raise NotImplementedError

    def cumprod(self, x: Any, axis: int) -> Any:
        raise NotImplementedError

    def cummax(self, x: Any, axis: int) -> Any:
        """The largest so far; NaN counts as the largest."""
        raise NotImplementedError

    def softmax(self, x: Any, axis: int) -> Any:
        top = self.max(x, (axis,), True)
        powers = self.exp(self.subtract(x, top))  # type: ignore[attr-defined]
        return self.divide(powers, self.sum(powers, (axis,), True))  # type: ignore[attr-defined]

    # Products and windows

    def matmul(self, x: Any, y: Any) -> Any:
        raise NotImplementedError

    def linear(self, x: Any, weight: Any) -> Any:
        """x @ weight.T with weight [out, in]."""
        raise NotImplementedError

    def einsum(self, equation: str, *xs: Any) -> Any:
        raise NotImplementedError

    def grouped_matmul(self, x: Any, weight: Any, ends: Any) -> Any:
        """x [S, K] in runs of rows that end at `ends` [E], each times its own of weight [E, K, N]; zeros after."""
        raise NotImplementedError

    def conv(
        self,
        x: Any,
        weight: Any,
        stride: Sequence[int],
        padding: Sequence[tuple[Any, Any]],
        dilation: Sequence[int],
        groups: int,
    ) -> Any:
        """Cross-correlation of [N, C, *spatial] with [O, C / groups, *kernel]."""
        raise NotImplementedError

    def fft(self, x: Any, axis: int, forward: bool) -> Any:
        """The discrete Fourier transform of complex numbers, or the inverse one; neither is divided by anything."""
        raise NotImplementedError

    def max_pool(self, x: Any, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[tuple[Any, Any]]) -> Any:
        raise NotImplementedError

    def sum_pool(self, x: Any, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[tuple[Any, Any]]) -> Any:
        raise NotImplementedError

    # Linear algebra over [..., n, n]; all operands have the same leading dims

    def solve(self, a: Any, b: Any) -> Any:
        raise NotImplementedError

    def solve_triangular(self, a: Any, b: Any, lower: bool) -> Any:
        """Only the triangle of `a` that is named is read."""
        raise NotImplementedError

    def cholesky(self, x: Any) -> Any:
        """The lower factor; only the lower triangle of `x` is read."""
        raise NotImplementedError

    def slogdet(self, x: Any) -> tuple[Any, Any]:
        raise NotImplementedError

    def eigh(self, x: Any) -> tuple[Any, Any]:
        """Eigenvalues upwards and vectors; only the lower triangle of `x` is read."""
        raise NotImplementedError

    def svd(self, x: Any, full: bool) -> tuple[Any, Any, Any]:
        """(U, S, V^H)."""
        raise NotImplementedError

    def qr(self, x: Any, full: bool) -> tuple[Any, Any]:
        raise NotImplementedError


UNARY = (
    "abs negative sign exp expm1 log log1p log2 sqrt sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf "
    "erfc erfinv lgamma sigmoid floor ceil round trunc logical_not bitwise_not real imag conj"
).split()
BINARY = (
    "add subtract multiply divide floor_divide remainder power maximum minimum atan2 equal not_equal less less_equal "
    "greater greater_equal logical_and logical_or bitwise_and bitwise_or bitwise_xor left_shift right_shift"
).split()
