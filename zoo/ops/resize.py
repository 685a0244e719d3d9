"""Interpolation over [N, C, *spatial], one axis at a time, as products with small weight matrices or as gathers.

Source: torch.nn.functional.interpolate's documentation; the coordinate maps are those of its `align_corners` note.
"""

from __future__ import annotations

from typing import Any

from zoo.ops import size as size_ops
from zoo.ops.table import op


def _register(dims: str, mode: str, *names: str) -> None:
    count = int(dims[0])

    def plain(xp: Any, x: Any, output_size: Any, *args: Any) -> Any:
        """(output_size, [align_corners], scales…)"""
        align = bool(args[0]) if mode != "nearest" and args else False
        scales = args[1:] if mode != "nearest" else args
        return _resize(xp, x, count, mode, output_size, align, scales)

    def vec(xp: Any, x: Any, output_size: Any, *args: Any) -> Any:
        """(output_size or None, [align_corners], scale_factors or None)"""
        align = bool(args[0]) if mode != "nearest" and args else False
        factors: Any = args[-1] if len(args) > (mode != "nearest") else None
        if output_size is None:
            sizes = xp.shape(x)[-count:]
            output_size = [xp.size_int(size_ops.mul(xp, s, f)) for s, f in zip(sizes, factors, strict=True)]
        return _resize(xp, x, count, mode, output_size, align, factors or ())

    for name in names:
        op(name)(plain)
        op(f"{name}.vec")(vec)


_register("1d", "nearest", "upsample_nearest1d")
_register("2d", "nearest", "upsample_nearest2d")
_register("3d", "nearest", "upsample_nearest3d")
_register("1d", "linear", "upsample_linear1d")
_register("2d", "linear", "upsample_bilinear2d")
_register("3d", "linear", "upsample_trilinear3d")
_register("2d", "cubic", "upsample_bicubic2d")
_register("2d", "linear_aa", "_upsample_bilinear2d_aa")
_register("2d", "cubic_aa", "_upsample_bicubic2d_aa")


@op("grid_sampler_2d", "grid_sampler")
def grid_sampler_2d(
    xp: Any, x: Any, grid: Any, interpolation_mode: int = 0, padding_mode: int = 0, align_corners: bool = False
) -> Any:
    """[N, C, H, W] sampled at grid [N, h, w, 2] of (x, y) in [-1, 1]; 0 bilinear, 1 nearest; 0 zeros, 1 border."""
    if interpolation_mode not in (0, 1):
        raise NotImplementedError("sampling a grid by cubic interpolation")
    n, c, height, width = xp.shape(x)
    _, rows, columns, _ = xp.shape(grid)
    dtype = xp.dtype(x)

    def pixels(axis: int, size: Any) -> Any:
        position = xp.squeeze(xp.slice(grid, 3, axis, axis + 1), (3,))
        size_f = xp.cast(xp.asarray(size, "int64"), dtype)
        half, one = xp.asarray(0.5, dtype), xp.asarray(1, dtype)
        if align_corners:
            position = xp.multiply(xp.multiply(xp.add(position, one), half), xp.subtract(size_f, one))
        else:
            position = xp.multiply(xp.subtract(xp.multiply(xp.add(position, one), size_f), one), half)
        if padding_mode == 1:
            position = xp.minimum(xp.maximum(position, xp.asarray(0, dtype)), xp.subtract(size_f, one))
        if padding_mode == 2:
            position = _reflected(xp, position, size_f, align_corners)
        return position

    px, py = pixels(0, width), pixels(1, height)
    flat = xp.reshape(x, (n, c, height * width))

    def corner(row: Any, column: Any, weight: Any) -> Any:
        row, column = xp.cast(row, "int64"), xp.cast(column, "int64")
        low, h, w = xp.asarray(0, "int64"), xp.asarray(height - 1, "int64"), xp.asarray(width - 1, "int64")
        inside = xp.logical_and(xp.greater_equal(row, low), xp.less_equal(row, h))
        inside = xp.logical_and(inside, xp.logical_and(xp.greater_equal(column, low), xp.less_equal(column, w)))
        row, column = xp.minimum(xp.maximum(row, low), h), xp.minimum(xp.maximum(column, low), w)
        index = xp.add(xp.multiply(row, xp.asarray(width, "int64")), column)
        index = xp.broadcast_to(xp.reshape(index, (n, 1, rows * columns)), (n, c, rows * columns))
        picked = xp.reshape(xp.take_along_axis(flat, index, 2), (n, c, rows, columns))
        weight = xp.where(inside, weight, xp.asarray(0, dtype))
        return xp.multiply(picked, xp.expand_dims(weight, 1))

    if interpolation_mode == 1:
        return corner(xp.round(py), xp.round(px), xp.full(xp.shape(px), 1, dtype))
    x0, y0, one = xp.floor(px), xp.floor(py), xp.asarray(1, dtype)
    x1, y1 = xp.add(x0, one), xp.add(y0, one)
    parts = [
        corner(y0, x0, xp.multiply(xp.subtract(x1, px), xp.subtract(y1, py))),
        corner(y0, x1, xp.multiply(xp.subtract(px, x0), xp.subtract(y1, py))),
        corner(y1, x0, xp.multiply(xp.subtract(x1, px), xp.subtract(py, y0))),
        corner(y1, x1, xp.multiply(xp.subtract(px, x0), xp.subtract(py, y0))),
    ]
    return xp.add(xp.add(parts[0], parts[1]), xp.add(parts[2], parts[3]))


def _resize(xp: Any, x: Any, dims: int, mode: str, output_size: Any, align: bool, scales: Any) -> Any:
    for i, target in enumerate(output_size):
        axis = xp.ndim(x) - dims + i
        scale = scales[i] if i < len(scales) else None
        size = xp.shape(x)[axis]
        if isinstance(size, int) and isinstance(target, int) and size == target and scale in (None, 1.0):
            continue
        if mode == "nearest":
            ratio = _ratio(xp, size, target, False, scale)
            steps = xp.cast(xp.arange(0, target, 1, "int64"), "float32")
            index = xp.cast(xp.floor(xp.multiply(steps, xp.asarray(ratio, "float32"))), "int64")
            x = xp.take(x, xp.minimum(index, xp.asarray(size - 1, "int64")), axis)
        else:
            weights = _weights(xp, xp.dtype(x), size, target, mode, align, scale)
            moved = xp.permute(x, (*(a for a in range(xp.ndim(x)) if a != axis), axis))
            moved = xp.linear(moved, weights)
            order = list(range(xp.ndim(x) - 1))
            order.insert(axis, xp.ndim(x) - 1)
            x = xp.permute(moved, tuple(order))
    return x


def _weights(xp: Any, dtype: str, size: Any, target: Any, mode: str, align: bool, scale: Any) -> Any:
    """[target, size]: what each source element contributes to each result."""
    wide = "float64" if dtype == "float64" else "float32"
    ratio = xp.asarray(_ratio(xp, size, target, align, scale), wide)
    out = xp.cast(xp.expand_dims(xp.arange(0, target, 1, "int64"), 1), wide)
    source = xp.cast(xp.expand_dims(xp.arange(0, size, 1, "int64"), 0), wide)
    half, one, zero = xp.asarray(0.5, wide), xp.asarray(1, wide), xp.asarray(0, wide)
    top = xp.cast(xp.asarray(size - 1, "int64"), wide)
    if mode.endswith("_aa"):
        stretch = xp.maximum(ratio, one)
        centre = xp.subtract(xp.multiply(xp.add(out, half), ratio), half)
        distance = xp.abs(xp.divide(xp.subtract(source, centre), stretch))
        cubic = mode == "cubic_aa"
        kernel = _cubic(xp, distance, wide, -0.5) if cubic else xp.maximum(xp.subtract(one, distance), zero)
        return xp.cast(xp.divide(kernel, xp.sum(kernel, (1,), True)), dtype)
    if align:
        position = xp.multiply(out, ratio)
    else:
        position = xp.subtract(xp.multiply(xp.add(out, half), ratio), half)
        if mode == "linear":
            position = xp.maximum(position, zero)
    base = xp.floor(position)
    rest = xp.subtract(position, base)
    if mode == "linear":
        taps = [(0, xp.subtract(one, rest)), (1, rest)]
    else:
        taps = [(k, _cubic(xp, xp.abs(xp.subtract(rest, xp.asarray(k, wide))), wide, -0.75)) for k in (-1, 0, 1, 2)]
    total = None
    for offset, weight in taps:
        at = xp.minimum(xp.maximum(xp.add(base, xp.asarray(offset, wide)), zero), top)
        part = xp.multiply(xp.cast(xp.equal(at, source), wide), weight)
        total = part if total is None else xp.add(total, part)
    return xp.cast(total, dtype)


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
    flips = xp.floor(xp.divide(offset, span))
    extra = xp.subtract(offset, xp.multiply(flips, span))
    even = xp.equal(xp.remainder(flips, xp.asarray(2, dtype)), xp.asarray(0, dtype))
    position = xp.where(even, xp.add(extra, low), xp.add(xp.subtract(span, extra), low))
    return xp.minimum(xp.maximum(position, xp.asarray(0, dtype)), xp.subtract(size, one))
