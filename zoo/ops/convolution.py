"""Convolutions over [N, C, *spatial], with weights [out, in / groups, *kernel]."""

from __future__ import annotations

from typing import Any

from zoo.ops.table import op


@op("conv1d", "conv2d", "conv3d", "conv1d.padding", "conv2d.padding", "conv3d.padding", whole=True)
def conv(
    xp: Any,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    dims = xp.ndim(weight) - 2
    batched = xp.ndim(x) == dims + 2
    x = x if batched else xp.expand_dims(x, 0)
    stride, dilation = _tuple(stride, dims), _tuple(dilation, dims)
    kernel = xp.shape(weight)[2:]
    if padding == "same":
        # torch puts the odd one after
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pairs = [(total // 2, total - total // 2) for total in totals]
    else:
        pairs = [(p, p) for p in _tuple(0 if padding == "valid" else padding, dims)]
    result = _biased(xp, xp.conv(x, weight, stride, pairs, dilation, groups), bias)
    return result if batched else xp.squeeze(result, (0,))


@op("conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input", whole=True)
def conv_transpose(
    xp: Any,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """The gradient of a convolution: weights are [in, out / groups, *kernel]."""
    dims = xp.ndim(weight) - 2
    batched = xp.ndim(x) == dims + 2
    x = x if batched else xp.expand_dims(x, 0)
    stride, padding, output_padding, dilation = (_tuple(v, dims) for v in (stride, padding, output_padding, dilation))
    spread = _spread(xp, x, stride)
    channels_in, per_group, *kernel = xp.shape(weight)
    flipped = xp.flip(weight, tuple(range(2, dims + 2)))
    flipped = xp.reshape(flipped, (groups, channels_in // groups, per_group, *kernel))
    flipped = xp.permute(flipped, (0, 2, 1, *range(3, dims + 3)))
    flipped = xp.reshape(flipped, (groups * per_group, channels_in // groups, *kernel))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    pairs = [(r - p, r - p + o) for r, p, o in zip(reach, padding, output_padding, strict=True)]
    cuts = [(max(-low, 0), max(-high, 0)) for low, high in pairs]
    pairs = [(max(low, 0), max(high, 0)) for low, high in pairs]
    for axis, (low, high) in enumerate(cuts, 2):
        if low or high:
            spread = xp.slice(spread, axis, low, xp.shape(spread)[axis] - high)
    result = _biased(xp, xp.conv(spread, flipped, (1,) * dims, pairs, dilation, groups), bias)
    return result if batched else xp.squeeze(result, (0,))


@op("convolution")
def convolution(
    xp: Any,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Any:
    if transposed:
        return conv_transpose(xp, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(xp, x, weight, bias, stride, padding, dilation, groups)


def _biased(xp: Any, x: Any, bias: Any) -> Any:
    return x if bias is None else xp.add(x, xp.reshape(bias, (-1,) + (1,) * (xp.ndim(x) - 2)))


def _spread(xp: Any, x: Any, stride: tuple[int, ...]) -> Any:
    """`x` with stride - 1 zeros between neighbours."""
    for axis, step in enumerate(stride, 2):
        if step == 1:
            continue
        shape = xp.shape(x)
        size = shape[axis]
        widths = [(0, step - 1 if a == axis + 1 else 0) for a in range(len(shape) + 1)]
        x = xp.pad(xp.expand_dims(x, axis + 1), widths, 0)
        x = xp.reshape(x, (*shape[:axis], size * step, *shape[axis + 1 :]))
        x = xp.slice(x, axis, 0, size * step - (step - 1))
    return x


def _tuple(value: Any, dims: int) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        return (value,) * dims
    return tuple(value) * dims if len(value) == 1 else tuple(value)
