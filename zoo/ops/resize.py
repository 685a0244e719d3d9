"""Interpolation over [N, C, *spatial], one axis at a time, as products with small weight matrices or as gathers.

Source: torch.nn.functional.interpolate's documentation; the coordinate maps are those of its `align_corners` note.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

from zoo.ops import size as size_ops
from zoo.ops.dtypes import to_wide
from zoo.ops.table import op


def _register(dims: str, mode: str, *names: str) -> None:
    count = int(dims[0])

    def plain(xp: Any, x: Any, output_size: Any, *args: Any) -> Any:
        """(output_size, [align_corners], scales…)"""
        align = bool(args[0]) if not mode.startswith("nearest") and args else False
        scales = args if mode.startswith("nearest") else args[1:]
        return _resize(xp, x, count, mode, output_size, align, scales)

    def vec(xp: Any, x: Any, output_size: Any, *args: Any) -> Any:
        """(output_size or None, [align_corners], scale_factors or None)"""
        align = bool(args[0]) if not mode.startswith("nearest") and args else False
        factors: Any = args[-1] if len(args) > (not mode.startswith("nearest")) else None
        if output_size is None:
            sizes = xp.shape(x)[-count:]
            output_size = [size_ops.scaled(xp, s, f) for s, f in zip(sizes, factors, strict=True)]
        return _resize(xp, x, count, mode, output_size, align, factors or ())

    for name in names:
        op(name, whole=True)(plain)
        op(f"{name}.vec", whole=True)(vec)


_register("1d", "nearest", "upsample_nearest1d")
_register("2d", "nearest", "upsample_nearest2d")
_register("3d", "nearest", "upsample_nearest3d")
_register("1d", "nearest_exact", "_upsample_nearest_exact1d")
_register("2d", "nearest_exact", "_upsample_nearest_exact2d")
_register("3d", "nearest_exact", "_upsample_nearest_exact3d")
_register("1d", "linear", "upsample_linear1d")
_register("2d", "linear", "upsample_bilinear2d")
_register("3d", "linear", "upsample_trilinear3d")
_register("2d", "cubic", "upsample_bicubic2d")
_register("2d", "linear_aa", "_upsample_bilinear2d_aa")
_register("2d", "cubic_aa", "_upsample_bicubic2d_aa")


@op("grid_sampler_2d", "grid_sampler_3d", "grid_sampler", whole=True)
def grid_sampler(
    xp: Any, x: Any, grid: Any, interpolation_mode: int = 0, padding_mode: int = 0, align_corners: bool = False
) -> Any:
    """[N, C, *sizes] sampled at grid [N, *out, dims], whose positions (x, y, z) lie in [-1, 1].

    Interpolation is 0 linear, 1 nearest, 2 cubic (of planes only); outside are 0 zeros, 1 the border, 2 reflections.
    """
    dims, dtype = xp.ndim(x) - 2, xp.dtype(x)
    n, c, *sizes = xp.shape(x)
    out = xp.shape(grid)[1:-1]
    count = math.prod(out)
    flat = xp.reshape(x, (n, c, math.prod(sizes)))
    one, zero = xp.asarray(1, dtype), xp.asarray(0, dtype)
    widths = [xp.cast(xp.asarray(size, "int64"), dtype) for size in sizes]

    def padded(position: Any, width: Any) -> Any:
        if padding_mode == 2:
            position = _reflected(xp, position, width, align_corners)
        return position if padding_mode == 0 else xp.minimum(xp.maximum(position, zero), xp.subtract(width, one))

    def pixels(axis: int) -> Any:
        """Positions along an axis of `x`, in elements; the grid names the last axis first."""
        position = xp.squeeze(xp.slice(grid, dims + 1, dims - 1 - axis, dims - axis), (dims + 1,))
        shifted, half = xp.add(position, one), xp.asarray(0.5, dtype)
        if align_corners:
            return xp.multiply(xp.multiply(shifted, half), xp.subtract(widths[axis], one))
        return xp.multiply(xp.subtract(xp.multiply(shifted, widths[axis]), one), half)

    def picked(cells: Any, weight: Any) -> Any:
        """weight * x at whole-numbered cells, one array of them per axis; nothing where they are outside."""
        index, inside = xp.asarray(0, "int64"), xp.asarray(True, "bool")
        for cell, size, width in zip(cells, sizes, widths, strict=True):
            low, high = xp.greater_equal(cell, zero), xp.less(cell, width)
            inside = xp.logical_and(inside, xp.logical_and(low, high))
            kept = xp.cast(xp.where(xp.logical_and(low, high), cell, zero), "int64")
            index = xp.add(xp.multiply(index, xp.asarray(size, "int64")), kept)
        index = xp.broadcast_to(xp.reshape(index, (n, 1, count)), (n, c, count))
        values = xp.reshape(xp.take_along_axis(flat, index, 2), (n, c, *out))
        return xp.multiply(values, xp.expand_dims(xp.where(inside, weight, zero), 1))

    # per axis: the cells along it that take part, and their weights
    taps: list[list[tuple[Any, Any]]] = []
    for axis, width in enumerate(widths):
        if interpolation_mode == 2:
            position = pixels(axis)
            base = xp.floor(position)
            rest = xp.subtract(position, base)
            steps = [xp.asarray(k, dtype) for k in (-1, 0, 1, 2)]
            weights = [_cubic(xp, xp.abs(xp.subtract(rest, k)), dtype, -0.75) for k in steps]
            taps.append([(padded(xp.add(base, k), width), w) for k, w in zip(steps, weights, strict=True)])
            continue
        position = padded(pixels(axis), width)
        if interpolation_mode == 1:
            taps.append([(xp.round(position), one)])
        else:
            base = xp.floor(position)
            rest = xp.subtract(position, base)
            taps.append([(base, xp.subtract(one, rest)), (xp.add(base, one), rest)])
    parts = []
    for choice in itertools.product(*taps):
        weight = functools.reduce(xp.multiply, [w for _, w in choice])
        parts.append(picked([cell for cell, _ in choice], weight))
    return functools.reduce(xp.add, parts)


def _resize(xp: Any, x: Any, dims: int, mode: str, output_size: Any, align: bool, scales: Any) -> Any:
    dtype = xp.dtype(x)
    x = x if mode.startswith("nearest") else to_wide(xp, x)
    for i, target in enumerate(output_size):
        axis = xp.ndim(x) - dims + i
        scale = scales[i] if i < len(scales) else None
        size = xp.shape(x)[axis]
        if size_ops.known(size) and size_ops.known(target, size) and scale in (None, 1.0):
            continue
        if mode.startswith("nearest"):
            ratio = _ratio(xp, size, target, False, scale)
            steps = xp.cast(xp.arange(0, target, 1, "int64"), "float32")
            steps = xp.add(steps, xp.asarray(0.5, "float32")) if mode == "nearest_exact" else steps
            index = xp.cast(xp.floor(xp.multiply(steps, xp.asarray(ratio, "float32"))), "int64")
            x = xp.take(x, xp.minimum(index, xp.asarray(size - 1, "int64")), axis)
        elif mode.endswith("_aa"):
            moved = xp.permute(x, (*(a for a in range(xp.ndim(x)) if a != axis), axis))
            moved = xp.linear(moved, _weights(xp, xp.dtype(x), size, target, mode, scale, align))
            order = list(range(xp.ndim(x) - 1))
            order.insert(axis, xp.ndim(x) - 1)
            x = xp.permute(moved, tuple(order))
        else:
            shape = tuple(-1 if a == axis else 1 for a in range(xp.ndim(x)))
            taps = _taps(xp, xp.dtype(x), size, target, mode, align, scale)
            parts = [xp.multiply(xp.take(x, index, axis), xp.reshape(weight, shape)) for index, weight in taps]
            x = functools.reduce(xp.add, parts)
    return xp.cast(x, dtype)


def _taps(xp: Any, dtype: str, size: Any, target: Any, mode: str, align: bool, scale: Any) -> list[tuple[Any, Any]]:
    """The source elements of each result, nearest to the left first, and what each contributes."""
    ratio = xp.asarray(_ratio(xp, size, target, align, scale), dtype)
    out = xp.cast(xp.arange(0, target, 1, "int64"), dtype)
    half, one, zero = xp.asarray(0.5, dtype), xp.asarray(1, dtype), xp.asarray(0, dtype)
    position = xp.multiply(out, ratio) if align else xp.subtract(xp.multiply(xp.add(out, half), ratio), half)
    if mode == "linear":
        position = xp.maximum(position, zero)
    base = xp.floor(position)
    rest = xp.subtract(position, base)
    if mode == "linear":
        taps = [(0, xp.subtract(one, rest)), (1, rest)]
    else:
        taps = [(k, _cubic(xp, xp.abs(xp.subtract(rest, xp.asarray(k, dtype))), dtype, -0.75)) for k in (-1, 0, 1, 2)]
    last, first, base = xp.asarray(size - 1, "int64"), xp.asarray(0, "int64"), xp.cast(base, "int64")
    return [(xp.minimum(xp.maximum(xp.add(base, xp.asarray(k, "int64")), first), last), w) for k, w in taps]


def _weights(xp: Any, dtype: str, size: Any, target: Any, mode: str, scale: Any, align: bool) -> Any:
    """[target, size]: what each source element contributes to each result, whose reach grows as the image shrinks."""
    ratio = xp.asarray(_ratio(xp, size, target, align, scale), dtype)
    out = xp.cast(xp.expand_dims(xp.arange(0, target, 1, "int64"), 1), dtype)
    source = xp.cast(xp.expand_dims(xp.arange(0, size, 1, "int64"), 0), dtype)
    half, one = xp.asarray(0.5, dtype), xp.asarray(1, dtype)
    centre = xp.subtract(xp.multiply(xp.add(out, half), ratio), half)
    distance = xp.abs(xp.divide(xp.subtract(source, centre), xp.maximum(ratio, one)))
    if mode == "cubic_aa":
        kernel = _cubic(xp, distance, dtype, -0.5)
    else:
        kernel = xp.maximum(xp.subtract(one, distance), xp.asarray(0, dtype))
    return xp.divide(kernel, xp.sum(kernel, (1,), True))


def _ratio(xp: Any, size: Any, target: Any, align: bool, scale: Any) -> Any:
    """How far the source moves for one step of the result."""
    if align:
        return (size - 1) / size_ops.max_(xp, target - 1, 1)
    return 1.0 / scale if scale is not None and scale > 0 else size / target


def _cubic(xp: Any, distance: Any, dtype: str, a: float) -> Any:
    """Keys' cubic convolution kernel, https://doi.org/10.1109/TASSP.1981.1163711."""

    def poly(*coefficients: float) -> Any:
        result = xp.full(xp.shape(distance), coefficients[0], dtype)
        for c in coefficients[1:]:
            result = xp.add(xp.multiply(result, distance), xp.asarray(c, dtype))
        return result

    near = poly(a + 2, -(a + 3), 0, 1)
    far = poly(a, -5 * a, 8 * a, -4 * a)
    zero = xp.asarray(0, dtype)
    far = xp.where(xp.less(distance, xp.asarray(2, dtype)), far, zero)
    return xp.where(xp.less_equal(distance, xp.asarray(1, dtype)), near, far)


def _reflected(xp: Any, position: Any, size: Any, align: bool) -> Any:
    dtype = xp.dtype(position)
    one = xp.asarray(1, dtype)
    low = xp.asarray(0 if align else -0.5, dtype)
    span = xp.subtract(size, one) if align else size
    offset = xp.abs(xp.subtract(position, low))
    span = xp.maximum(span, xp.asarray(2**-23, dtype))  # of one element there is none
    flips = xp.floor(xp.divide(offset, span))
    extra = xp.subtract(offset, xp.multiply(flips, span))
    even = xp.equal(xp.remainder(flips, xp.asarray(2, dtype)), xp.asarray(0, dtype))
    position = xp.where(even, xp.add(extra, low), xp.add(xp.subtract(span, extra), low))
    return xp.minimum(xp.maximum(position, xp.asarray(0, dtype)), xp.subtract(size, one))
