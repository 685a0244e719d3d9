"""Operations that fold dims away, and scans along one."""

from __future__ import annotations

import math
from typing import Any

from zoo.graph.ir import DType
from zoo.ops.dtypes import is_integer, to_float
from zoo.ops.table import op


@op("sum", "sum.dim_IntList")
def sum_(xp: Any, x: Any, dim: Any = None, keepdim: bool = False, *, dtype: DType | None = None) -> Any:
    return xp.sum(_accumulated(xp, x, dtype), _axes(xp, x, dim), keepdim)


@op("mean", "mean.dim")
def mean(xp: Any, x: Any, dim: Any = None, keepdim: bool = False, *, dtype: DType | None = None) -> Any:
    x = xp.cast(x, dtype.name) if dtype else x
    return xp.mean(to_float(xp, x), _axes(xp, x, dim), keepdim)


@op("prod", "prod.dim_int")
def prod(xp: Any, x: Any, dim: Any = None, keepdim: bool = False, *, dtype: DType | None = None) -> Any:
    return xp.prod(_accumulated(xp, x, dtype), _axes(xp, x, dim), keepdim)


@op("amax")
def amax(xp: Any, x: Any, dim: Any = (), keepdim: bool = False) -> Any:
    return xp.max(x, _axes(xp, x, dim), keepdim)


@op("amin")
def amin(xp: Any, x: Any, dim: Any = (), keepdim: bool = False) -> Any:
    return xp.min(x, _axes(xp, x, dim), keepdim)


@op("max")
def max_(xp: Any, x: Any) -> Any:
    return xp.max(x, _axes(xp, x, None), False)


@op("min")
def min_(xp: Any, x: Any) -> Any:
    return xp.min(x, _axes(xp, x, None), False)


@op("max.dim")
def max_dim(xp: Any, x: Any, dim: int, keepdim: bool = False) -> Any:
    return amax(xp, x, (dim,), keepdim), argmax(xp, x, dim, keepdim)


@op("min.dim")
def min_dim(xp: Any, x: Any, dim: int, keepdim: bool = False) -> Any:
    return amin(xp, x, (dim,), keepdim), argmin(xp, x, dim, keepdim)


@op("argmax")
def argmax(xp: Any, x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    return _arg(xp, xp.argmax, x, dim, keepdim)


@op("argmin")
def argmin(xp: Any, x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    return _arg(xp, xp.argmin, x, dim, keepdim)


@op("any", "any.dim", "any.dims")
def any_(xp: Any, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return xp.any(xp.cast(x, "bool"), _axes(xp, x, dim), keepdim)


@op("all", "all.dim", "all.dims")
def all_(xp: Any, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return xp.all(xp.cast(x, "bool"), _axes(xp, x, dim), keepdim)


@op("var.correction", "var.dim")
def var(xp: Any, x: Any, dim: Any = None, correction: Any = None, keepdim: bool = False) -> Any:
    correction = 1 if correction is None else float(correction)
    axes = _axes(xp, x, dim)
    centred = xp.subtract(x, xp.mean(x, axes, True))
    total = xp.sum(xp.multiply(centred, centred), axes, keepdim)
    count = xp.cast(xp.asarray(math.prod(xp.shape(x)[a] for a in axes), "int64"), xp.dtype(x))
    return xp.divide(total, xp.subtract(count, xp.asarray(correction, xp.dtype(x))))


@op("std.correction", "std.dim")
def std(xp: Any, x: Any, dim: Any = None, correction: Any = None, keepdim: bool = False) -> Any:
    return xp.sqrt(var(xp, x, dim, correction, keepdim))


@op("var_mean.correction")
def var_mean(xp: Any, x: Any, dim: Any = None, correction: Any = None, keepdim: bool = False) -> Any:
    return var(xp, x, dim, correction, keepdim), mean(xp, x, dim, keepdim)


@op("linalg_vector_norm", "norm.ScalarOpt_dim")
def vector_norm(
    xp: Any, x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: DType | None = None
) -> Any:
    x = xp.abs(xp.cast(x, dtype.name) if dtype else x)
    axes = _axes(xp, x, dim)
    ord = 2 if ord is None else ord
    if ord == math.inf:
        return xp.max(x, axes, keepdim)
    if ord == -math.inf:
        return xp.min(x, axes, keepdim)
    if ord == 0:
        return xp.sum(xp.cast(xp.not_equal(x, xp.asarray(0, xp.dtype(x))), xp.dtype(x)), axes, keepdim)
    if ord == 1:
        return xp.sum(x, axes, keepdim)
    if ord == 2:
        return xp.sqrt(xp.sum(xp.multiply(x, x), axes, keepdim))
    power = xp.asarray(ord, xp.dtype(x))
    return xp.power(xp.sum(xp.power(x, power), axes, keepdim), xp.asarray(1 / ord, xp.dtype(x)))


@op("logsumexp")
def logsumexp(xp: Any, x: Any, dim: Any, keepdim: bool = False) -> Any:
    axes = _axes(xp, x, dim)
    top = xp.max(x, axes, True)
    finite = xp.less(xp.abs(top), xp.asarray(math.inf, xp.dtype(x)))
    top = xp.where(finite, top, xp.asarray(0, xp.dtype(x)))
    result = xp.add(xp.log(xp.sum(xp.exp(xp.subtract(x, top)), axes, True)), top)
    return result if keepdim else xp.squeeze(result, axes)


@op("softmax.int", "_softmax")
def softmax(xp: Any, x: Any, dim: int, dtype: Any = None) -> Any:
    """`dtype` is softmax.int's; _softmax passes its flag for half to float there, which is False on a CPU."""
    x = xp.cast(x, dtype.name) if isinstance(dtype, DType) else x
    return xp.softmax(to_float(xp, x), dim % max(xp.ndim(x), 1))


@op("_safe_softmax")
def safe_softmax(xp: Any, x: Any, dim: int, dtype: DType | None = None) -> Any:
    """Zeros where a whole row is -inf."""
    result = softmax(xp, x, dim, dtype)
    masked = xp.all(xp.equal(x, xp.asarray(-math.inf, xp.dtype(x))), (dim % xp.ndim(x),), True)
    return xp.where(masked, xp.asarray(0, xp.dtype(result)), result)


@op("log_softmax.int", "_log_softmax")
def log_softmax(xp: Any, x: Any, dim: int, dtype: Any = None) -> Any:
    x = xp.cast(x, dtype.name) if isinstance(dtype, DType) else x
    return xp.subtract(x, logsumexp(xp, x, (dim,), True))


@op("cumsum")
def cumsum(xp: Any, x: Any, dim: int, *, dtype: DType | None = None) -> Any:
    x = _accumulated(xp, x, dtype)
    return xp.cumsum(x, dim % xp.ndim(x)) if xp.ndim(x) else x


@op("cumprod")
def cumprod(xp: Any, x: Any, dim: int, *, dtype: DType | None = None) -> Any:
    x = _accumulated(xp, x, dtype)
    return xp.cumprod(x, dim % xp.ndim(x)) if xp.ndim(x) else x


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


