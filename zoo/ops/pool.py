"""Pooling over [N, C, *spatial] or [C, *spatial]."""

from __future__ import annotations

import math
from functools import reduce
from itertools import product
from typing import Any

from zoo.ops import size as size_ops
from zoo.ops.convolution import _tuple
from zoo.ops.dtypes import is_float
from zoo.ops.table import op

_DIMS = {"1d": 1, "2d": 2, "3d": 3}


@op("max_pool1d", whole=True)
def max_pool1d(
    xp: Any, x: Any, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Any:
    return _max_pool(xp, x, 1, kernel_size, stride, padding, dilation, ceil_mode)


@op("max_pool2d", whole=True)
def max_pool2d(
    xp: Any, x: Any, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Any:
    return _max_pool(xp, x, 2, kernel_size, stride, padding, dilation, ceil_mode)


@op("max_pool3d", whole=True)
def max_pool3d(
    xp: Any, x: Any, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Any:
    return _max_pool(xp, x, 3, kernel_size, stride, padding, dilation, ceil_mode)


@op("max_pool2d_with_indices", "max_pool3d_with_indices")
def max_pool_with_indices(
    xp: Any, x: Any, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Any:
    """Values, and for each the flat position it came from: of equal ones the first, of NaN the last."""
    dims = len(kernel_size)
    values = _max_pool(xp, x, dims, kernel_size, stride, padding, dilation, ceil_mode)
    lead = xp.ndim(x) - dims
    sizes, counts = xp.shape(x)[lead:], xp.shape(values)[lead:]
    plane = xp.reshape(x, (*xp.shape(x)[:lead], math.prod(sizes)))
    window = _window(dims, kernel_size, stride, padding, dilation)
    index, found = xp.full(xp.shape(values), 0, "int64"), xp.full(xp.shape(values), False, "bool")
    xp.parts(math.prod(window[0]))
    for tap in product(*(range(k) for k in window[0])):
        flat, inside = xp.asarray(0, "int64"), xp.asarray(True, "bool")
        for axis, (i, size, count, _, s, p, d) in enumerate(zip(tap, sizes, counts, *window, strict=True)):
            at = xp.reshape(_positions(xp, count, s, i * d - p), (-1,) + (1,) * (dims - 1 - axis))
            flat = xp.add(xp.multiply(flat, xp.asarray(size, "int64")), at)
            inside = xp.logical_and(inside, _within(xp, at, size))
        here = xp.take(plane, xp.where(inside, flat, xp.asarray(0, "int64")), lead)
        hit = xp.logical_and(xp.equal(here, values), xp.logical_not(found))
        index = xp.where(xp.logical_and(inside, xp.logical_or(hit, xp.not_equal(here, here))), flat, index)
        found = xp.logical_or(found, xp.logical_and(inside, hit))
    return values, index


@op("avg_pool1d", whole=True)
def avg_pool1d(
    xp: Any,
    x: Any,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:
    return _avg_pool(xp, x, 1, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


@op("avg_pool2d", whole=True)
def avg_pool2d(
    xp: Any,
    x: Any,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    return _avg_pool(xp, x, 2, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


@op("avg_pool3d", whole=True)
def avg_pool3d(
    xp: Any,
    x: Any,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    return _avg_pool(xp, x, 3, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _adaptive(name: str, reduction: str) -> None:
    def function(xp: Any, x: Any, output_size: Any) -> Any:
        dims = _DIMS[name[-2:]]
        for axis, target in enumerate(_tuple(output_size, dims), xp.ndim(x) - dims):
            x = _adaptive_axis(xp, x, axis, target, getattr(xp, reduction))
        return x

    op(name, whole=not name.startswith("_"))(function)


for _name in ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"):
    _adaptive(_name, "mean")
_adaptive("_adaptive_avg_pool2d", "mean")
_adaptive("_adaptive_avg_pool3d", "mean")


@op("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", whole=True)
def adaptive_max_pool(xp: Any, x: Any, output_size: Any) -> Any:
    """Values, and for each the flat position it came from: the first of equal ones."""
    dims = len(output_size)
    lead = xp.ndim(x) - dims
    sizes = xp.shape(x)[lead:]
    values, indices = [], []
    xp.parts(math.prod(output_size))
    for cell in product(*(range(n) for n in output_size)):
        window, starts = x, []
        for axis, (i, size, n) in enumerate(zip(cell, sizes, output_size, strict=True), lead):
            starts.append(i * size // n)
            window = xp.slice(window, axis, starts[-1], -(-(i + 1) * size // n))
        spans = xp.shape(window)[lead:]
        window = xp.reshape(window, (*xp.shape(x)[:lead], math.prod(spans)))
        rest = xp.argmax(window, lead)
        values.append(xp.max(window, (lead,), True))
        steps = []
        for span, start in zip(reversed(spans), reversed(starts), strict=True):
            span = xp.asarray(span, "int64")
            steps.append(xp.add(xp.remainder(rest, span), xp.asarray(start, "int64")))
            rest = xp.floor_divide(rest, span)
        flat = xp.asarray(0, "int64")
        for step, size in zip(reversed(steps), sizes, strict=True):
            flat = xp.add(xp.multiply(flat, xp.asarray(size, "int64")), xp.cast(step, "int64"))
        indices.append(xp.expand_dims(flat, lead))
    shape = (*xp.shape(x)[:lead], *output_size)
    return xp.reshape(xp.concat(values, lead), shape), xp.reshape(xp.concat(indices, lead), shape)


def _max_pool(
    xp: Any, x: Any, dims: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> Any:
    kernel, stride, padding, dilation = _window(dims, kernel, stride, padding, dilation)
    x, shape = _batched(xp, x, dims)
    pairs = _pads(xp, x, kernel, stride, padding, dilation, ceil_mode)
    low = -math.inf if is_float(xp.dtype(x)) else -(2**63)  # cut to the dtype's own range
    if any(d != 1 for d in dilation):
        result = None
        xp.parts(math.prod(kernel))
        x = xp.pad(x, [(0, 0), (0, 0), *pairs], low)
        for offsets in product(*(range(k) for k in kernel)):
            part = x
            for axis, (offset, d, k, s) in enumerate(zip(offsets, dilation, kernel, stride, strict=True), 2):
                count = (xp.shape(x)[axis] - d * (k - 1) - 1) // s + 1
                part = xp.slice(part, axis, offset * d, offset * d + (count - 1) * s + 1, s)
            result = part if result is None else xp.maximum(result, part)
    else:
        result = xp.max_pool(x, kernel, stride, pairs)
    return result if shape is None else xp.squeeze(result, (0,))


def _avg_pool(
    xp: Any,
    x: Any,
    dims: int,
    kernel: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Any:
    kernel, stride, padding, dilation = _window(dims, kernel, stride, padding, 1)
    x, shape = _batched(xp, x, dims)
    pairs = _pads(xp, x, kernel, stride, padding, dilation, ceil_mode)
    total = xp.sum_pool(x, kernel, stride, pairs)
    if divisor is None:
        counts = [
            _covered(xp, xp.shape(total)[axis], xp.shape(x)[axis], k, s, p, count_include_pad, dims + 1 - axis)
            for axis, (k, s, p) in enumerate(zip(kernel, stride, padding, strict=True), 2)
        ]
        result = xp.divide(total, xp.cast(reduce(xp.multiply, counts), xp.dtype(x)))
    else:
        result = xp.divide(total, xp.asarray(divisor, xp.dtype(x)))
    return result if shape is None else xp.squeeze(result, (0,))


def _covered(xp: Any, count: Any, size: Any, kernel: int, stride: int, pad: int, include_pad: bool, after: int) -> Any:
    """How many elements each of `count` windows averages, with `after` dims to follow.

    The padding asked for may count; what ceil_mode adds beyond it never does.
    """
    margin = pad if include_pad else 0
    first = _positions(xp, count, stride, -pad)
    last = xp.minimum(xp.add(first, xp.asarray(kernel, "int64")), xp.asarray(size + margin, "int64"))
    covered = xp.subtract(last, xp.maximum(first, xp.asarray(-margin, "int64")))
    return xp.reshape(covered, (-1,) + (1,) * after)


def _window(dims: int, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Any:
    kernel = _tuple(kernel, dims)
    stride = kernel if isinstance(stride, (tuple, list)) and not stride else _tuple(stride, dims)
    return kernel, stride, _tuple(padding, dims), _tuple(dilation, dims)


def _batched(xp: Any, x: Any, dims: int) -> tuple[Any, Any]:
    return (x, None) if xp.ndim(x) == dims + 2 else (xp.expand_dims(x, 0), True)


def _pads(xp: Any, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Any:
    pairs = []
    for size, k, s, p, d in zip(xp.shape(x)[2:], kernel, stride, padding, dilation, strict=True):
        after = p
        if ceil_mode:
            span = size + 2 * p - d * (k - 1) - 1
            # a window may not start in the padding after
            steps = size_ops.min_(xp, -(-span // s), (size + p - 1) // s)
            after = size_ops.max_(xp, steps * s + d * (k - 1) + 1 - size - p, 0)
        pairs.append((p, after))
    return pairs


def _adaptive_axis(xp: Any, x: Any, axis: int, target: Any, reduction: Any) -> Any:
    size = xp.shape(x)[axis]
    target = size_ops.number(target, "adaptive pooling")
    if target == 1:
        return reduction(x, (axis,), True)
    if size_ops.known(size, target):
        return x
    if size_ops.known(size) and size % target == 0:
        shape = xp.shape(x)
        return reduction(xp.reshape(x, (*shape[:axis], target, size // target, *shape[axis + 1 :])), (axis + 1,), False)
    cells = [xp.slice(x, axis, i * size // target, -(-(i + 1) * size // target)) for i in range(target)]
    return xp.concat([reduction(cell, (axis,), True) for cell in cells], axis)


def _positions(xp: Any, count: Any, step: int, offset: int) -> Any:
    steps = xp.multiply(xp.arange(0, count, 1, "int64"), xp.asarray(step, "int64"))
    return xp.add(steps, xp.asarray(offset, "int64"))


def _within(xp: Any, index: Any, size: Any) -> Any:
    low = xp.greater_equal(index, xp.asarray(0, "int64"))
    return xp.logical_and(low, xp.less(index, xp.asarray(size, "int64")))
