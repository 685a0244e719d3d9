"""Normalisations. Statistics of half-precision inputs are taken in float32, as torch's kernels do."""

from __future__ import annotations

import math
from typing import Any

from zoo.ops.dtypes import to_wide
from zoo.ops.reduce import norm
from zoo.ops.table import op


@op("layer_norm", whole=True)
def layer_norm(
    xp: Any, x: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn: bool = True
) -> Any:
    """https://arxiv.org/abs/1607.06450, over the last len(normalized_shape) dims."""
    return _normed(xp, x, len(normalized_shape), weight, bias, eps)[0]


@op("native_layer_norm")
def native_layer_norm(xp: Any, x: Any, normalized_shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    return _normed(xp, x, len(normalized_shape), weight, bias, eps)


@op("rms_norm", whole=True)
def rms_norm(xp: Any, x: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    """https://arxiv.org/abs/1910.07467."""
    dtype, wide = xp.dtype(x), to_wide(xp, x)
    axes = tuple(range(xp.ndim(x) - len(normalized_shape), xp.ndim(x)))
    if eps is None:
        eps = 2**-52 if dtype == "float64" else 2**-23  # of the dtype that torch computes in
    square = xp.mean(xp.multiply(wide, wide), axes, True)
    result = xp.multiply(wide, xp.rsqrt(xp.add(square, xp.asarray(eps, xp.dtype(wide)))))
    result = xp.cast(result, dtype)
    return result if weight is None else xp.multiply(result, weight)


@op("group_norm", whole=True)
def group_norm(
    xp: Any, x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn: bool = True
) -> Any:
    """https://arxiv.org/abs/1803.08494, over [N, C, *]."""
    shape = xp.shape(x)
    grouped = xp.reshape(x, (shape[0], num_groups, shape[1] // num_groups * math.prod(shape[2:])))
    result = xp.reshape(_normed(xp, grouped, 1, None, None, eps)[0], shape)
    return _per_channel(xp, result, weight, bias)


@op("native_group_norm")
def native_group_norm(xp: Any, x: Any, weight: Any, bias: Any, N: Any, C: Any, HxW: Any, group: int, eps: float) -> Any:
    shape = xp.shape(x)
    grouped = xp.reshape(x, (shape[0], group, shape[1] // group * math.prod(shape[2:])))
    result, mean, rstd = _normed(xp, grouped, 1, None, None, eps)
    result = _per_channel(xp, xp.reshape(result, shape), weight, bias)
    return result, xp.squeeze(mean, (2,)), xp.squeeze(rstd, (2,))


@op("instance_norm", whole=True)
def instance_norm(
    xp: Any,
    x: Any,
    weight: Any = None,
    bias: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    if not use_input_stats:
        return batch_norm(xp, x, weight, bias, running_mean, running_var, False, momentum, eps)
    return _per_channel(xp, _normed(xp, x, xp.ndim(x) - 2, None, None, eps)[0], weight, bias)


@op("batch_norm", whole=True)
def batch_norm(
    xp: Any,
    x: Any,
    weight: Any = None,
    bias: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    """https://arxiv.org/abs/1502.03167 over [N, C, *]; running statistics are read, never written."""
    wide = to_wide(xp, x)
    if training or running_mean is None:
        axes = (0, *range(2, xp.ndim(x)))
        mean = xp.mean(wide, axes, False)
        centred = xp.subtract(wide, _channel(xp, mean, xp.ndim(x)))
        variance = xp.mean(xp.multiply(centred, centred), axes, False)
    else:
        mean, variance = (xp.cast(v, xp.dtype(wide)) for v in (running_mean, running_var))
    scale = xp.rsqrt(xp.add(variance, xp.asarray(eps, xp.dtype(wide))))
    result = xp.multiply(xp.subtract(wide, _channel(xp, mean, xp.ndim(x))), _channel(xp, scale, xp.ndim(x)))
    return xp.cast(_per_channel(xp, result, weight, bias), xp.dtype(x))


@op("_native_batch_norm_legit_no_training")
def batch_norm_no_training(
    xp: Any, x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: float, eps: float
) -> Any:
    result = batch_norm(xp, x, weight, bias, running_mean, running_var, False, momentum, eps)
    empty = xp.full((0,), 0, xp.dtype(running_mean))
    return result, empty, empty


@op("_weight_norm")
def weight_norm(xp: Any, v: Any, g: Any, dim: int = 0) -> Any:
    """`v` with the norms `g` along `dim`, or with one norm if that is -1 (Salimans and Kingma, 2016)."""
    wide = to_wide(xp, v)
    axes = tuple(axis for axis in range(xp.ndim(v)) if axis != dim)
    scale = xp.divide(xp.cast(g, xp.dtype(wide)), norm(xp, wide, 2, axes, True))
    return xp.cast(xp.multiply(wide, scale), xp.dtype(v))


def _normed(xp: Any, x: Any, dims: int, weight: Any, bias: Any, eps: float) -> tuple[Any, ...]:
    """(result, mean, 1/std) over the last `dims` dims."""
    wide = to_wide(xp, x)
    axes = tuple(range(xp.ndim(x) - dims, xp.ndim(x)))
    mean = xp.mean(wide, axes, True)
    centred = xp.subtract(wide, mean)
    variance = xp.mean(xp.multiply(centred, centred), axes, True)
    rstd = xp.rsqrt(xp.add(variance, xp.asarray(eps, xp.dtype(wide))))
    result = xp.multiply(centred, rstd)
    if weight is not None:
        result = xp.multiply(result, xp.cast(weight, xp.dtype(wide)))
    if bias is not None:
        result = xp.add(result, xp.cast(bias, xp.dtype(wide)))
    return tuple(xp.cast(v, xp.dtype(x)) for v in (result, mean, rstd))


def _channel(xp: Any, x: Any, ndim: int) -> Any:
    """[C] as [C, 1, …], to go with [N, C, *]."""
    return xp.reshape(x, (-1,) + (1,) * (ndim - 2))


def _per_channel(xp: Any, x: Any, weight: Any, bias: Any) -> Any:
    if weight is not None:
        x = xp.multiply(x, _channel(xp, xp.cast(weight, xp.dtype(x)), xp.ndim(x)))
    if bias is not None:
        x = xp.add(x, _channel(xp, xp.cast(bias, xp.dtype(x)), xp.ndim(x)))
    return x
