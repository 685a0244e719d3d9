"""Operations that move elements without changing them."""

from __future__ import annotations

import itertools
import math
from typing import Any

from zoo.dtypes import DType
from zoo.ops import size as size_ops
from zoo.ops.dtypes import is_integer, result_type
from zoo.ops.size import known, number
from zoo.ops.table import Moves, op

_END = 2**63 - 1  # what torch.export writes for "to the end"


@op("view", "_reshape_alias", moves=Moves.RESHAPE)
@op("reshape", "_unsafe_view", moves=Moves.RESHAPE, same_as="view")
def view(xp: Any, x: Any, size: Any, stride: Any = None) -> Any:
    if any(known(d, 0) for d in xp.shape(x)) and any(known(d, -1) for d in size):
        rest = math.prod(d for d in size if not known(d, -1))
        size = tuple(math.prod(xp.shape(x)) // rest if known(d, -1) else d for d in size)
    return xp.reshape(x, size)


@op("view.dtype")
def view_dtype(xp: Any, x: Any, dtype: DType) -> Any:
    """The same bits read as another dtype of the same width."""
    return xp.bitcast(x, dtype.name)


@op("flatten.using_ints", moves=Moves.RESHAPE)
def flatten(xp: Any, x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    if not xp.ndim(x):
        return xp.reshape(x, (1,))
    start, end = start_dim % xp.ndim(x), end_dim % xp.ndim(x)
    shape = xp.shape(x)
    return xp.reshape(x, (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]))


@op("unflatten.int", moves=Moves.RESHAPE)
def unflatten(xp: Any, x: Any, dim: int, sizes: Any) -> Any:
    shape = xp.shape(x)
    dim %= xp.ndim(x)
    return view(xp, x, (*shape[:dim], *sizes, *shape[dim + 1 :]))


@op("permute", "permute_copy", moves=Moves.PERMUTE)
def permute(xp: Any, x: Any, dims: Any) -> Any:
    return xp.permute(x, tuple(d % xp.ndim(x) for d in dims))


@op("transpose.int", moves=Moves.PERMUTE, whole=True)
def transpose(xp: Any, x: Any, dim0: int, dim1: int) -> Any:
    if not xp.ndim(x):
        return x
    axes = list(range(xp.ndim(x)))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return xp.permute(x, tuple(axes))


@op("t", moves=Moves.PERMUTE)
def t(xp: Any, x: Any) -> Any:
    return x if xp.ndim(x) < 2 else xp.permute(x, (1, 0))


@op("numpy_T", moves=Moves.PERMUTE)
def reverse_dims(xp: Any, x: Any) -> Any:
    return xp.permute(x, tuple(reversed(range(xp.ndim(x)))))


@op("mT", moves=Moves.PERMUTE)
def matrix_transpose(xp: Any, x: Any) -> Any:
    return transpose(xp, x, -2, -1)


@op("movedim.intlist", "movedim.int", moves=Moves.PERMUTE)
def movedim(xp: Any, x: Any, source: Any, destination: Any) -> Any:
    ndim = xp.ndim(x)
    source = [d % ndim for d in ((source,) if isinstance(source, int) else source)]
    destination = [d % ndim for d in ((destination,) if isinstance(destination, int) else destination)]
    axes = [d for d in range(ndim) if d not in source]
    for to, origin in sorted(zip(destination, source, strict=True)):
        axes.insert(to, origin)
    return xp.permute(x, tuple(axes))


@op("unsqueeze", "unsqueeze_copy", moves=Moves.RESHAPE)
def unsqueeze(xp: Any, x: Any, dim: int) -> Any:
    return xp.expand_dims(x, dim % (xp.ndim(x) + 1))


@op("squeeze", "squeeze.dim", "squeeze.dims", moves=Moves.RESHAPE, recorded=True)
def squeeze(xp: Any, x: Any, dim: Any = None, *, infos: Any = None) -> Any:
    """Only dims of size 1 go. Of those whose sizes are not known, what the graph records of the result decides."""
    shape = xp.shape(x)
    if not shape:
        return x
    axes = {a % len(shape) for a in (range(len(shape)) if dim is None else (dim,) if isinstance(dim, int) else dim)}
    gone = {a for a in axes if known(shape[a], 1)}
    unknown = sorted(a for a in axes if not known(shape[a]))
    if unknown and infos is None:
        number(shape[unknown[0]], "squeeze")
    if unknown:
        more = len(shape) - len(gone) - len(infos[0].shape)
        if more == len(unknown):
            gone.update(unknown)
        elif more:  # some of several: those that the record has no place for
            gone.update(_left_out(shape, gone, unknown, infos[0].shape, more))
    return xp.squeeze(x, tuple(sorted(gone))) if gone else x


def _left_out(shape: Any, gone: set[int], unknown: list[int], recorded: Any, count: int) -> tuple[int, ...]:
    """Which `count` of the unknown dims are not in the recorded shape; the first choice that fits."""
    for choice in itertools.combinations(unknown, count):
        stay = [size for axis, size in enumerate(shape) if axis not in gone and axis not in choice]
        if all(not known(a) or not known(b) or a == b for a, b in zip(stay, recorded, strict=False)):
            return choice
    return ()


@op("expand", "expand_copy", moves=Moves.REPEAT)
def expand(xp: Any, x: Any, size: Any, *, implicit: bool = False) -> Any:
    own = xp.shape(x)
    new = len(size) - len(own)
    target = tuple(own[i - new] if known(d, -1) else d for i, d in enumerate(size))
    return xp.broadcast_to(x, target)


@op("expand_as", moves=Moves.REPEAT)
def expand_as(xp: Any, x: Any, other: Any) -> Any:
    return xp.broadcast_to(x, xp.shape(other))


@op("broadcast_to", moves=Moves.REPEAT)
def broadcast_to(xp: Any, x: Any, size: Any) -> Any:
    return expand(xp, x, size)


@op("view_as", "reshape_as", moves=Moves.RESHAPE)
def view_as(xp: Any, x: Any, other: Any) -> Any:
    return xp.reshape(x, xp.shape(other))


@op("broadcast_tensors")
def broadcast_tensors(xp: Any, tensors: Any) -> Any:
    ndim = max(xp.ndim(x) for x in tensors)
    target: list[Any] = [1] * ndim
    for x in tensors:
        for axis, size in enumerate(xp.shape(x), ndim - xp.ndim(x)):
            target[axis] = size_ops.joint(xp, target[axis], size)
    return tuple(xp.broadcast_to(x, tuple(target)) for x in tensors)


@op("repeat", moves=Moves.REPEAT)
def repeat(xp: Any, x: Any, repeats: Any) -> Any:
    new = len(repeats) - xp.ndim(x)
    shape = (1,) * new + tuple(xp.shape(x))
    interleaved = [d for size in shape for d in (1, size)]
    spread = [d for count, size in zip(repeats, shape, strict=True) for d in (count, size)]
    result = xp.broadcast_to(xp.reshape(x, tuple(interleaved)), tuple(spread))
    return xp.reshape(result, tuple(count * size for count, size in zip(repeats, shape, strict=True)))


@op("tile", moves=Moves.REPEAT)
def tile(xp: Any, x: Any, dims: Any) -> Any:
    return repeat(xp, x, (1,) * (xp.ndim(x) - len(dims)) + tuple(dims))


@op("repeat_interleave.self_int", moves=Moves.REPEAT)
def repeat_interleave(xp: Any, x: Any, repeats: Any, dim: int | None = None, *, output_size: Any = None) -> Any:
    if dim is None:
        x, dim = xp.reshape(x, (-1,)), 0
    dim %= xp.ndim(x)
    shape = xp.shape(x)
    spread = xp.broadcast_to(xp.expand_dims(x, dim + 1), (*shape[: dim + 1], repeats, *shape[dim + 1 :]))
    return xp.reshape(spread, (*shape[:dim], shape[dim] * repeats, *shape[dim + 1 :]))


@op("meshgrid", "meshgrid.indexing")
def meshgrid(xp: Any, tensors: Any, *, indexing: str = "ij") -> Any:
    """Each of 0-D or 1-D tensors along an axis of its own; "xy" has the first two axes the other way round."""
    sizes = [xp.shape(x)[0] if xp.ndim(x) else 1 for x in tensors]
    axes = list(range(len(tensors)))
    if indexing == "xy" and len(tensors) > 1:
        axes[:2] = 1, 0
    shape = tuple(sizes[axes.index(i)] for i in range(len(sizes)))
    grids = []
    for axis, size, x in zip(axes, sizes, tensors, strict=True):
        along = tuple(size if i == axis else 1 for i in range(len(sizes)))
        grids.append(xp.broadcast_to(xp.reshape(x, along), shape))
    return tuple(grids)


@op("cat", moves=Moves.JOIN)
def cat(xp: Any, tensors: Any, dim: int = 0) -> Any:
    dtype = result_type(xp, *tensors)
    # torch lets an empty 1-D tensor join any others
    ndim = max(xp.ndim(x) for x in tensors)
    real = [x for x in tensors if xp.ndim(x) == ndim]
    for x in tensors:
        if xp.ndim(x) != ndim and number(xp.shape(x)[0], "cat of arrays of one dim and of more"):
            raise ValueError(f"cat of arrays of {ndim} dims with one of shape {tuple(xp.shape(x))}")
    parts = [xp.cast(x, dtype) for x in real]
    return parts[0] if len(parts) == 1 else xp.concat(parts, dim % xp.ndim(parts[0]))


@op("stack", moves=Moves.JOIN)
def stack(xp: Any, tensors: Any, dim: int = 0) -> Any:
    return cat(xp, [unsqueeze(xp, x, dim) for x in tensors], dim)


@op("slice.Tensor", "slice_copy.Tensor", moves=Moves.TAKE, along="dim")
def slice_(xp: Any, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    end = None if known(end) and end >= _END else end
    return xp.slice(x, dim % xp.ndim(x), 0 if start is None else start, end, step)


@op("narrow", moves=Moves.TAKE, along="dim")
def narrow(xp: Any, x: Any, dim: int, start: Any, length: Any) -> Any:
    return xp.slice(x, dim % xp.ndim(x), start, start + length)


@op("select.int", "select_copy.int", moves=Moves.TAKE, along="dim")
def select(xp: Any, x: Any, dim: int, index: Any) -> Any:
    dim %= xp.ndim(x)
    size = xp.shape(x)[dim]
    if known(index) and known(size) and not -size <= index < size:
        raise IndexError(f"index {index} of a dim of size {size}")
    if known(index, -1):
        return xp.squeeze(xp.slice(x, dim, -1, None), (dim,))
    if xp.reaches(size, index):
        return xp.squeeze(xp.slice(x, dim, index, index + 1), (dim,))
    return picked(xp, x, xp.asarray(index, "int64"), dim)


def picked(xp: Any, x: Any, index: Any, dim: int) -> Any:
    """`x` along `dim` at an index that data or symbols decide, negative from the end: NaN where there is none."""
    index, valid = xp.inside(from_end(xp, index, xp.shape(x)[dim]), xp.shape(x)[dim])
    return spoiled(xp, xp.take(x, index, dim), valid)


def from_end(xp: Any, index: Any, size: Any) -> Any:
    """Negative indices count from the end."""
    index = index if xp.dtype(index) in ("int32", "int64") else xp.cast(index, "int64")
    zero = xp.asarray(0, xp.dtype(index))
    return xp.where(xp.less(index, zero), xp.add(index, xp.asarray(size, xp.dtype(index))), index)


def spoiled(xp: Any, x: Any, valid: Any) -> Any:
    """`x` with NaN, or the smallest whole number, where an index was outside; `valid` is None where none can be."""
    if valid is None:
        return x
    dtype = xp.dtype(x)
    blank = False if dtype == "bool" else -(2**63) if is_integer(dtype) else math.nan
    return xp.where(valid, x, xp.asarray(blank, dtype))


@op("split_with_sizes", "split_with_sizes_copy", "split.sizes", moves=Moves.TAKE, along="dim")
def split_with_sizes(xp: Any, x: Any, split_sizes: Any, dim: int = 0) -> Any:
    parts, start = [], 0
    for size in split_sizes:
        parts.append(xp.slice(x, dim % xp.ndim(x), start, start + size))
        start = start + size
    return tuple(parts)


@op("split.Tensor", "split_copy.Tensor", moves=Moves.TAKE, along="dim")
def split(xp: Any, x: Any, split_size: Any, dim: int = 0) -> Any:
    length, split_size = number(xp.shape(x)[dim], "split"), number(split_size, "split")
    starts = range(0, max(length, 1), split_size)  # nothing splits into one part of nothing
    return tuple(xp.slice(x, dim % xp.ndim(x), start, min(start + split_size, length)) for start in starts)


@op("chunk", moves=Moves.TAKE, along="dim", recorded=True)
def chunk(xp: Any, x: Any, chunks: int, dim: int = 0, *, infos: Any = None) -> Any:
    """Where the length is not known there are as many parts as the graph records."""
    dim %= xp.ndim(x)
    length = xp.shape(x)[dim]
    if infos is None or known(length):
        length = number(length, "chunk")
        xp.parts(chunks)
        return split(xp, x, -(-length // chunks), dim) if length else (x,) * chunks
    size = -(-length // chunks)
    return tuple(xp.slice(x, dim, i * size, (i + 1) * size) for i in range(len(infos)))


@op("unbind.int", moves=Moves.TAKE, along="dim", whole=True)
def unbind(xp: Any, x: Any, dim: int = 0) -> Any:
    return tuple(select(xp, x, dim, i) for i in range(number(xp.shape(x)[dim], "unbind")))


@op("flip", moves=Moves.PERMUTE, along="dims")
def flip(xp: Any, x: Any, dims: Any) -> Any:
    return xp.flip(x, tuple(d % xp.ndim(x) for d in dims))


@op("roll", moves=Moves.PERMUTE, whole=True)
def roll(xp: Any, x: Any, shifts: Any, dims: Any = ()) -> Any:
    shifts = (shifts,) if not isinstance(shifts, (tuple, list)) else shifts
    dims = (dims,) if isinstance(dims, int) else dims
    if not dims:
        return xp.reshape(roll(xp, xp.reshape(x, (-1,)), shifts, (0,)), xp.shape(x))
    for shift, dim in zip(shifts, dims, strict=True):
        dim %= xp.ndim(x)
        size = xp.shape(x)[dim]
        cut = (size - shift) % size_ops.max_(xp, size, 1)
        x = xp.concat([xp.slice(x, dim, cut, None), xp.slice(x, dim, 0, cut)], dim)
    return x


@op("constant_pad_nd", whole=True)
def constant_pad(xp: Any, x: Any, pad: Any, value: Any = 0) -> Any:
    """`pad` runs from the last dim backwards, (before, after) each; negative amounts cut."""
    widths: list[tuple[Any, Any]] = [(0, 0)] * xp.ndim(x)
    for i in range(len(pad) // 2):
        before, after = pad[2 * i], pad[2 * i + 1]
        axis = xp.ndim(x) - 1 - i
        if known(before) and before < 0:
            x, before = xp.slice(x, axis, -before, None), 0
        if known(after) and after < 0:
            x, after = xp.slice(x, axis, 0, after), 0
        widths[axis] = (before, after)
    if all(known(w, 0) for pair in widths for w in pair):
        return x
    return xp.pad(x, widths, value)


@op("pad", whole=True)
def pad_(xp: Any, x: Any, pad: Any, mode: str = "constant", value: Any = None) -> Any:
    if mode == "constant":
        return constant_pad(xp, x, pad, 0 if value is None else value)
    return {"reflect": reflection_pad, "replicate": replication_pad, "circular": circular_pad}[mode](xp, x, pad)


@op("reflection_pad1d", "reflection_pad2d", whole=True)
@op("reflection_pad3d")
def reflection_pad(xp: Any, x: Any, padding: Any) -> Any:
    for axis, before, after in _pads(xp, x, padding):
        size = xp.shape(x)[axis]
        left = xp.flip(xp.slice(x, axis, 1, before + 1), (axis,))
        right = xp.flip(xp.slice(x, axis, size - 1 - after, size - 1), (axis,))
        x = xp.concat([left, x, right], axis)
    return x


@op("replication_pad1d", "replication_pad2d", whole=True)
@op("replication_pad3d")
def replication_pad(xp: Any, x: Any, padding: Any) -> Any:
    for axis, before, after in _pads(xp, x, padding):
        size = xp.shape(x)[axis]
        index = xp.arange(-before, size + after, 1, "int64")
        low, high = xp.asarray(0, "int64"), xp.asarray(size - 1, "int64")
        x = xp.take(x, xp.minimum(xp.maximum(index, low), high), axis)
    return x


def circular_pad(xp: Any, x: Any, padding: Any) -> Any:
    for axis, before, after in _pads(xp, x, padding):
        size = xp.shape(x)[axis]
        x = xp.concat([xp.slice(x, axis, size - before, None), x, xp.slice(x, axis, 0, after)], axis)
    return x


@op("unfold")
def unfold(xp: Any, x: Any, dimension: int, size: int, step: int) -> Any:
    """Windows of `size` every `step` along a dim, as a new last dim."""
    axis = dimension % xp.ndim(x)
    count = (xp.shape(x)[axis] - size) // step + 1
    columns = [xp.slice(x, axis, i, i + (count - 1) * step + 1, step) for i in range(size)]
    return xp.concat([xp.expand_dims(column, xp.ndim(x)) for column in columns], xp.ndim(x))


@op("im2col")
def im2col(xp: Any, x: Any, kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> Any:
    """[N, C, H, W] -> [N, C * kh * kw, L], or both without N: torch.nn.Unfold."""
    *lead, c, _, _ = xp.shape(x)
    axes = (len(lead) + 1, len(lead) + 2)
    x = xp.pad(x, [(0, 0)] * axes[0] + [(p, p) for p in padding], 0)
    counts = [
        (xp.shape(x)[axis] - d * (k - 1) - 1) // s + 1
        for axis, k, d, s in zip(axes, kernel_size, dilation, stride, strict=True)
    ]
    patches = []
    xp.parts(math.prod(kernel_size))
    for tap in itertools.product(*map(range, kernel_size)):
        part = x
        for axis, i, d, s, count in zip(axes, tap, dilation, stride, counts, strict=True):
            part = xp.slice(part, axis, i * d, i * d + (count - 1) * s + 1, s)
        patches.append(xp.reshape(part, (*lead, c, 1, counts[0] * counts[1])))
    return xp.reshape(xp.concat(patches, axes[0]), (*lead, c * math.prod(kernel_size), counts[0] * counts[1]))


@op("pixel_shuffle", moves=Moves.PERMUTE, whole=True)
def pixel_shuffle(xp: Any, x: Any, upscale_factor: int) -> Any:
    *lead, c, h, w = xp.shape(x)
    r, n = upscale_factor, len(lead)
    x = xp.reshape(x, (*lead, c // (r * r), r, r, h, w))
    x = xp.permute(x, (*range(n), n, n + 3, n + 1, n + 4, n + 2))
    return xp.reshape(x, (*lead, c // (r * r), h * r, w * r))


@op("pixel_unshuffle", moves=Moves.PERMUTE, whole=True)
def pixel_unshuffle(xp: Any, x: Any, downscale_factor: int) -> Any:
    *lead, c, h, w = xp.shape(x)
    r, n = downscale_factor, len(lead)
    x = xp.reshape(x, (*lead, c, h // r, r, w // r, r))
    x = xp.permute(x, (*range(n), n, n + 2, n + 4, n + 1, n + 3))
    return xp.reshape(x, (*lead, c * r * r, h // r, w // r))


@op("diagonal", "diagonal_copy", moves=Moves.TAKE)
def diagonal(xp: Any, x: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    ndim = xp.ndim(x)
    dim1, dim2 = dim1 % ndim, dim2 % ndim
    rest = tuple(d for d in range(ndim) if d not in (dim1, dim2))
    x = xp.permute(x, (*rest, dim1, dim2))
    *lead, rows, columns = xp.shape(x)
    flat = xp.reshape(x, (*lead, rows * columns))
    return xp.take(flat, diagonal_positions(xp, rows, columns, offset), len(lead))


def diagonal_positions(xp: Any, rows: Any, columns: Any, offset: int) -> Any:
    """Where the elements of a diagonal lie among all of a matrix, row after row."""
    length = size_ops.min_(xp, rows + min(offset, 0), columns - max(offset, 0))
    steps = xp.arange(0, size_ops.max_(xp, length, 0), 1, "int64")
    row = xp.add(steps, xp.asarray(max(-offset, 0), "int64"))
    column = xp.add(steps, xp.asarray(max(offset, 0), "int64"))
    return xp.add(xp.multiply(row, xp.asarray(columns, "int64")), column)


@op("as_strided", "as_strided_copy")
def as_strided(xp: Any, x: Any, size: Any, stride: Any, storage_offset: Any = None) -> Any:
    """Of a contiguous `x`: element (i, j, …) is flat[offset + i*stride0 + j*stride1 + …]."""
    index = xp.asarray(storage_offset or 0, "int64")
    for axis, (length, step) in enumerate(zip(size, stride, strict=True)):
        steps = xp.multiply(xp.arange(0, length, 1, "int64"), xp.asarray(step, "int64"))
        index = xp.add(index, xp.reshape(steps, (-1,) + (1,) * (len(size) - 1 - axis)))
    return xp.take(xp.reshape(x, (-1,)), index, 0)


def _pads(xp: Any, x: Any, padding: Any) -> list[tuple[int, Any, Any]]:
    return [(xp.ndim(x) - 1 - i, padding[2 * i], padding[2 * i + 1]) for i in range(len(padding) // 2)]
