"""Operations that fold dims away, and scans along one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from zoo.dtypes import DType
from zoo.ops.dtypes import is_integer, to_float, to_wide
from zoo.ops.table import op


@op("sum", "sum.dim_IntList", along="dim", reduces=True)
def sum_(xp: Any, x: Any, dim: Any = None, keepdim: bool = False, *, dtype: DType | None = None) -> Any:
    return xp.sum(_accumulated(xp, x, dtype), _axes(xp, x, dim), keepdim)


@op("mean", "mean.dim", along="dim", reduces=True)
def mean(xp: Any, x: Any, dim: Any = None, keepdim: bool = False, *, dtype: DType | None = None) -> Any:
    x = xp.cast(x, dtype.name) if dtype else x
    return xp.mean(to_float(xp, x), _axes(xp, x, dim), keepdim)


@op("prod", "prod.dim_int", along="dim", reduces=True)
def prod(xp: Any, x: Any, dim: Any = None, keepdim: bool = False, *, dtype: DType | None = None) -> Any:
    return xp.prod(_accumulated(xp, x, dtype), _axes(xp, x, dim), keepdim)


@op("amax", along="dim", reduces=True)
def amax(xp: Any, x: Any, dim: Any = (), keepdim: bool = False) -> Any:
    return xp.max(x, _axes(xp, x, dim), keepdim)


@op("amin", along="dim", reduces=True)
def amin(xp: Any, x: Any, dim: Any = (), keepdim: bool = False) -> Any:
    return xp.min(x, _axes(xp, x, dim), keepdim)


@op("max")
def max_(xp: Any, x: Any) -> Any:
    return xp.max(x, _axes(xp, x, None), False)


@op("min")
def min_(xp: Any, x: Any) -> Any:
    return xp.min(x, _axes(xp, x, None), False)


@op("max.dim", along="dim", reduces=True)
def max_dim(xp: Any, x: Any, dim: int, keepdim: bool = False) -> Any:
    return amax(xp, x, (dim,), keepdim), argmax(xp, x, dim, keepdim)


@op("min.dim", along="dim", reduces=True)
def min_dim(xp: Any, x: Any, dim: int, keepdim: bool = False) -> Any:
    return amin(xp, x, (dim,), keepdim), argmin(xp, x, dim, keepdim)


@op("argmax", along="dim", reduces=True)
def argmax(xp: Any, x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    return _arg(xp, xp.argmax, x, dim, keepdim)


@op("argmin", along="dim", reduces=True)
def argmin(xp: Any, x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    return _arg(xp, xp.argmin, x, dim, keepdim)


@op("any", "any.dim", along="dim", reduces=True)
@op("any.dims")  # to which () means none
def any_(xp: Any, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """Unlike other reductions, over no dims at all if `dim` is empty."""
    x = xp.cast(x, "bool")
    return x if dim == () else xp.any(x, _axes(xp, x, dim), keepdim)


@op("all", "all.dim", along="dim", reduces=True)
@op("all.dims")
def all_(xp: Any, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """Unlike other reductions, over no dims at all if `dim` is empty."""
    x = xp.cast(x, "bool")
    return x if dim == () else xp.all(x, _axes(xp, x, dim), keepdim)


@op("var.correction", "var.dim", along="dim", reduces=True, whole=True)
def var(xp: Any, x: Any, dim: Any = None, correction: Any = None, keepdim: bool = False) -> Any:
    """`correction` is also var.dim's flag `unbiased`: 1 or 0."""
    correction = 1 if correction is None else float(correction)
    dtype, x = xp.dtype(x), to_wide(xp, x)
    axes = _axes(xp, x, dim)
    centred = xp.subtract(x, xp.mean(x, axes, True))
    total = xp.sum(xp.multiply(centred, centred), axes, keepdim)
    count = xp.cast(xp.asarray(math.prod(xp.shape(x)[a] for a in axes), "int64"), xp.dtype(x))
    free = xp.maximum(xp.subtract(count, xp.asarray(correction, xp.dtype(x))), xp.asarray(0, xp.dtype(x)))
    return xp.cast(xp.divide(total, free), dtype)


@op("std.correction", "std.dim", along="dim", reduces=True, whole=True)
def std(xp: Any, x: Any, dim: Any = None, correction: Any = None, keepdim: bool = False) -> Any:
    return _root(xp, var(xp, x, dim, correction, keepdim))


@op("var_mean.correction", along="dim", reduces=True)
def var_mean(xp: Any, x: Any, dim: Any = None, correction: Any = None, keepdim: bool = False) -> Any:
    return var(xp, x, dim, correction, keepdim), mean(xp, x, dim, keepdim)


@op("linalg_vector_norm", along="dim", reduces=True)
@op("norm.ScalarOpt_dim", along="dim", reduces=True, whole=True)
def vector_norm(
    xp: Any, x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: DType | None = None
) -> Any:
    name = dtype.name if dtype else xp.dtype(x)
    size, axes = xp.abs(to_wide(xp, xp.cast(x, name))), _axes(xp, x, dim)
    return xp.cast(norm(xp, size, 2 if ord is None else ord, axes, keepdim), name)


def norm(xp: Any, x: Any, order: float, axes: tuple[int, ...], keepdim: bool) -> Any:
    """The norm of `x`, which is not negative."""
    if order == math.inf:
        return xp.max(x, axes, keepdim)
    if order == -math.inf:
        return xp.min(x, axes, keepdim)
    if order == 0:
        return xp.sum(xp.cast(xp.not_equal(x, xp.asarray(0, xp.dtype(x))), xp.dtype(x)), axes, keepdim)
    if order == 1:
        return xp.sum(x, axes, keepdim)
    if order == 2:
        return _root(xp, xp.sum(xp.multiply(x, x), axes, keepdim))
    power = xp.asarray(order, xp.dtype(x))
    return xp.power(xp.sum(xp.power(x, power), axes, keepdim), xp.asarray(1 / order, xp.dtype(x)))


def _root(xp: Any, x: Any) -> Any:
    """The square root with gradient 0 at 0, where that of a plain one is infinite: as torch has it for norms."""
    zero = xp.asarray(0, xp.dtype(x))
    nothing = xp.equal(x, zero)
    return xp.where(nothing, zero, xp.sqrt(xp.where(nothing, xp.asarray(1, xp.dtype(x)), x)))


@op("logsumexp", along="dim", reduces=True, whole=True)
def logsumexp(xp: Any, x: Any, dim: Any, keepdim: bool = False) -> Any:
    x, axes = to_float(xp, x), _axes(xp, x, dim)
    top, log = _log_sum(xp, to_wide(xp, x), axes)
    result = xp.cast(xp.add(log, top), xp.dtype(x))
    return result if keepdim else xp.squeeze(result, axes)


def on_scalars(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have `function(xp, x, …)`, which works along a dim, take a zero-dim `x` as an array of one element."""

    @functools.wraps(function)
    def wrapped(xp: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        if xp.ndim(x):
            return function(xp, x, *args, **kwargs)
        result = function(xp, xp.expand_dims(x, 0), *args, **kwargs)
        return tuple(xp.squeeze(r, (0,)) for r in result) if isinstance(result, tuple) else xp.squeeze(result, (0,))

    return wrapped


@op("softmax.int", along="dim", whole=True)
@op("_softmax", along="dim")
@on_scalars
def softmax(xp: Any, x: Any, dim: int, dtype: Any = None) -> Any:
    """`dtype` is softmax.int's; _softmax passes its flag for half to float there, which is False on a CPU."""
    x = to_float(xp, xp.cast(x, dtype.name) if isinstance(dtype, DType) else x)
    return xp.cast(xp.softmax(to_wide(xp, x), dim % xp.ndim(x)), xp.dtype(x))


@op("_safe_softmax", along="dim")
@on_scalars
def safe_softmax(xp: Any, x: Any, dim: int, dtype: DType | None = None) -> Any:
    """Zeros where a whole row is -inf."""
    nothing, zero = xp.asarray(-math.inf, xp.dtype(x)), xp.asarray(0, xp.dtype(x))
    blind = xp.equal(xp.max(x, (dim % xp.ndim(x),), True), nothing)
    # the softmax of such a row would be 0/0, and its gradient NaN even where the result is replaced: keep it finite
    result = softmax(xp, xp.where(blind, zero, x), dim, dtype)
    return xp.where(blind, xp.asarray(0, xp.dtype(result)), result)


@op("log_softmax.int", along="dim", whole=True)
@op("_log_softmax", along="dim")
@on_scalars
def log_softmax(xp: Any, x: Any, dim: int, dtype: Any = None) -> Any:
    x = to_float(xp, xp.cast(x, dtype.name) if isinstance(dtype, DType) else x)
    wide = to_wide(xp, x)
    axes = _axes(xp, x, dim)
    # the largest is taken away first: what is left is small, and keeps the digits of the logarithm
    rest = xp.subtract(wide, xp.max(wide, axes, True))
    return xp.cast(xp.subtract(rest, xp.log(xp.sum(xp.exp(rest), axes, True))), xp.dtype(x))


@op("cumsum", along="dim", whole=True)
@on_scalars
def cumsum(xp: Any, x: Any, dim: int, *, dtype: DType | None = None) -> Any:
    return xp.cumsum(_accumulated(xp, x, dtype), dim % xp.ndim(x))


@op("cumprod", along="dim", whole=True)
@on_scalars
def cumprod(xp: Any, x: Any, dim: int, *, dtype: DType | None = None) -> Any:
    return xp.cumprod(_accumulated(xp, x, dtype), dim % xp.ndim(x))


@op("cummax", along="dim")
@on_scalars
def cummax(xp: Any, x: Any, dim: int) -> Any:
    """(values, indices); of equal ones the last counts, and NaN is the largest."""
    dim %= xp.ndim(x)
    if xp.dtype(x) == "bool":
        return _running(xp, x, xp.cast(xp.cummax(xp.cast(x, "uint8"), dim), "bool"), dim)
    return _running(xp, x, xp.cummax(x, dim), dim)


@op("cummin", along="dim")
@on_scalars
def cummin(xp: Any, x: Any, dim: int) -> Any:
    """(values, indices); of equal ones the last counts, and NaN is the smallest."""
    dim %= xp.ndim(x)
    if xp.dtype(x) == "bool":
        return _running(xp, x, xp.logical_not(xp.cummax(xp.cast(xp.logical_not(x), "uint8"), dim)), dim)
    if is_integer(xp.dtype(x)):  # the complement turns the order of whole numbers round without overflow
        return _running(xp, x, xp.bitwise_not(xp.cummax(xp.bitwise_not(x), dim)), dim)
    return _running(xp, x, xp.negative(xp.cummax(xp.negative(x), dim)), dim)


@op("logcumsumexp", along="dim")
@on_scalars
def logcumsumexp(xp: Any, x: Any, dim: int) -> Any:
    """Each sum has a largest element of its own, so all pairs of positions are formed."""
    dim %= xp.ndim(x)
    dtype, last = xp.dtype(x), xp.ndim(x)
    steps = xp.arange(0, xp.shape(x)[dim], 1, "int64")
    order = (*(a for a in range(last) if a != dim), dim)
    wide = xp.expand_dims(xp.permute(to_wide(xp, to_float(xp, x)), order), last - 1)
    before = xp.less_equal(steps, xp.expand_dims(steps, 1))
    top, log = _log_sum(xp, xp.where(before, wide, xp.asarray(-math.inf, xp.dtype(wide))), (last,))
    result = xp.cast(xp.squeeze(xp.add(top, log), (last,)), dtype)
    return xp.permute(result, tuple(order.index(a) for a in range(last)))


def _running(xp: Any, x: Any, top: Any, dim: int) -> tuple[Any, Any]:
    """Running extremes and where they came from, the values taken from there so that their gradient goes there."""
    shape = tuple(-1 if a == dim else 1 for a in range(xp.ndim(x)))
    steps = xp.reshape(xp.arange(0, xp.shape(x)[dim], 1, "int64"), shape)
    reached = xp.logical_or(xp.equal(x, top), xp.not_equal(x, x))
    where = xp.cummax(xp.where(reached, xp.broadcast_to(steps, xp.shape(x)), xp.asarray(0, "int64")), dim)
    return xp.take_along_axis(x, where, dim), where


def _log_sum(xp: Any, x: Any, axes: tuple[int, ...]) -> tuple[Any, Any]:
    """The largest element, 0 if that is infinite, and log(sum(exp(x - largest))), with the axes kept."""
    top = xp.max(x, axes, True)
    finite = xp.less(xp.abs(top), xp.asarray(math.inf, xp.dtype(x)))
    top = xp.where(finite, top, xp.asarray(0, xp.dtype(x)))
    return top, xp.log(xp.sum(xp.exp(xp.subtract(x, top)), axes, True))


def _axes(xp: Any, x: Any, dim: Any) -> tuple[int, ...]:
    """torch's dim argument as axes; none given means all."""
    ndim = xp.ndim(x)
    if dim is None or (isinstance(dim, (tuple, list)) and not dim):
        return tuple(range(ndim))
    if not ndim:
        return ()
    return tuple(sorted(d % ndim for d in ((dim,) if isinstance(dim, int) else dim)))


def _accumulated(xp: Any, x: Any, dtype: DType | None) -> Any:
    """torch sums integers as int64."""
    if dtype is not None:
        return xp.cast(x, dtype.name)
    return xp.cast(x, "int64") if is_integer(xp.dtype(x)) else x


def _arg(xp: Any, function: Any, x: Any, dim: int | None, keepdim: bool) -> Any:
    if dim is None:
        result = function(xp.reshape(x, (-1,)), 0)
        return xp.reshape(result, (1,) * xp.ndim(x)) if keepdim else result
    if not xp.ndim(x):
        return xp.full((), 0, "int64")
    result = function(x, dim % xp.ndim(x))
    return xp.expand_dims(result, dim % xp.ndim(x)) if keepdim else result
