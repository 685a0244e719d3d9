"""Reading and writing elements by index, sorting, counting."""

from __future__ import annotations

import math
from typing import Any

from zoo.ops.dtypes import is_float, promote
from zoo.ops.reduce import on_scalars
from zoo.ops.shape import broadcast_tensors, diagonal_positions, from_end, spoiled
from zoo.ops.size import known
from zoo.ops.table import Moves, op

_REDUCTIONS = {
    "sum": "add",
    "add": "add",
    "mean": "add",
    "prod": "multiply",
    "multiply": "multiply",
    "amax": "max",
    "amin": "min",
}
"""torch's names of scatter's reductions, and the namespace's."""


@op("embedding", whole=True)
def embedding(
    xp: Any, weight: Any, indices: Any, padding_idx: int = -1, scale_grad: bool = False, sparse: bool = False
) -> Any:
    """The row `padding_idx`, unless that is negative, gets no gradient. Of an id outside the table there is NaN."""
    indices, valid = xp.inside(indices, xp.shape(weight)[0])
    rows = xp.take(weight, indices, 0)
    rows = spoiled(xp, rows, valid if valid is None else xp.expand_dims(valid, xp.ndim(valid)))
    if padding_idx < 0:
        return rows
    padded = xp.expand_dims(xp.equal(indices, xp.asarray(padding_idx, xp.dtype(indices))), xp.ndim(indices))
    return xp.where(padded, xp.stop_gradient(rows), rows)


@op("index_select", moves=Moves.TAKE, along="dim")
def index_select(xp: Any, x: Any, dim: int, index: Any) -> Any:
    if not xp.ndim(x):
        return x
    dim %= xp.ndim(x)
    index = xp.reshape(from_end(xp, index, xp.shape(x)[dim]), (-1,))  # one number is a list of one
    index, valid = xp.inside(index, xp.shape(x)[dim])
    if valid is not None:
        valid = xp.reshape(valid, (-1,) + (1,) * (xp.ndim(x) - 1 - dim))
    return spoiled(xp, xp.take(x, index, dim), valid)


@op("gather", moves=Moves.TAKE)
def gather(xp: Any, x: Any, dim: int, index: Any, *, sparse_grad: bool = False) -> Any:
    """As torch.gather: the other dims of `index` may be shorter than those of `x`."""
    if not xp.ndim(x):
        return x
    dim %= xp.ndim(x)
    for axis in range(xp.ndim(x)):
        if axis != dim and not _same_size(xp.shape(x)[axis], xp.shape(index)[axis]):
            x = xp.slice(x, axis, 0, xp.shape(index)[axis])
    index, valid = xp.inside(index, xp.shape(x)[dim])
    return spoiled(xp, xp.take_along_axis(x, index, dim), valid)


@op("take_along_dim", moves=Moves.TAKE)
def take_along_dim(xp: Any, x: Any, indices: Any, dim: int | None = None) -> Any:
    """As gather, but the other dims of the two broadcast."""
    if dim is None:
        x, indices, dim = xp.reshape(x, (-1,)), xp.reshape(indices, (-1,)), 0
    dim %= xp.ndim(x)
    indices, valid = xp.inside(from_end(xp, indices, xp.shape(x)[dim]), xp.shape(x)[dim])
    return spoiled(xp, xp.take_along_axis(x, indices, dim), valid)


@op("index.Tensor", "_unsafe_index.Tensor", moves=Moves.TAKE)
def index(xp: Any, x: Any, indices: Any) -> Any:
    """x[indices] with None for a whole dim; index arrays that are apart put their dims first, as in NumPy."""
    if any(i is not None and xp.dtype(i) == "bool" for i in indices):
        return xp.index_mask(x, indices)
    indices, valid = _positions(xp, x, indices)
    if valid is not None:  # its dims are followed by those of `x` after the last index, or all where indices are apart
        axes = [axis for axis, i in enumerate(indices) if i is not None]
        together = axes[-1] - axes[0] + 1 == len(axes)
        after = xp.ndim(x) - 1 - axes[-1] if together else xp.ndim(x) - len(axes)
        valid = xp.reshape(valid, (*xp.shape(valid), *((1,) * after)))
    return spoiled(xp, xp.index(x, indices), valid)


@op("index_put", "_unsafe_index_put", writes=True)
def index_put(xp: Any, x: Any, indices: Any, values: Any, accumulate: bool = False) -> Any:
    values = xp.cast(values, xp.dtype(x))
    if len(indices) == 1 and indices[0] is not None and xp.dtype(indices[0]) == "bool":
        mask = indices[0]
        inner = xp.ndim(x) - xp.ndim(mask)
        if xp.ndim(values) > inner:
            values = _in_turn(xp, mask, values, inner)
        mask = xp.reshape(mask, (*xp.shape(mask), *((1,) * inner)))
        return xp.where(mask, xp.add(x, values) if accumulate else values, x)
    indices, valid = _positions(xp, x, indices)
    return _written(xp, xp.index_put(x, indices, values, accumulate), valid)


@op("masked_select", moves=Moves.TAKE)
def masked_select(xp: Any, x: Any, mask: Any) -> Any:
    x, mask = broadcast_tensors(xp, (x, mask))
    return xp.index_mask(x, [mask])


@op("nonzero")
def nonzero(xp: Any, x: Any) -> Any:
    return xp.nonzero(x)


@op("scatter.src", "scatter.value", writes=True)
def scatter(xp: Any, x: Any, dim: int, index: Any, src: Any) -> Any:
    return _scattered(xp, x, dim % max(xp.ndim(x), 1), index, xp.asarray(src, xp.dtype(x)), "set")


@op("scatter_add", writes=True)
def scatter_add(xp: Any, x: Any, dim: int, index: Any, src: Any) -> Any:
    return _scattered(xp, x, dim % max(xp.ndim(x), 1), index, src, "add")


@op("scatter_reduce.two", "scatter.reduce", writes=True)
def scatter_reduce(xp: Any, x: Any, dim: int, index: Any, src: Any, reduce: str, *, include_self: bool = True) -> Any:
    dim %= max(xp.ndim(x), 1)
    kind = _REDUCTIONS[reduce]
    index, valid = xp.inside(index, xp.shape(x)[dim] if xp.ndim(x) else 1)
    if not include_self:
        neutral = {"add": 0, "multiply": 1, "max": -math.inf, "min": math.inf}[kind]
        if not is_float(xp.dtype(x)) and not math.isfinite(neutral):
            neutral = 2**63 - 1 if neutral > 0 else -(2**63)  # cut to the dtype's own range
        if xp.dtype(src) == "bool":
            neutral = neutral > 0
        blank = xp.broadcast_to(xp.asarray(neutral, xp.dtype(src)), xp.shape(src))
        x = xp.scatter(x, dim, index, blank, "set")
    result = xp.scatter(x, dim, index, src, kind)
    if reduce != "mean":
        return _written(xp, result, valid)
    count = xp.full(xp.shape(x), 1 if include_self else 0, xp.dtype(x))
    count = xp.scatter(count, dim, index, xp.full(xp.shape(src), 1, xp.dtype(x)), "add")
    return _written(xp, xp.divide(result, xp.maximum(count, xp.asarray(1, xp.dtype(x)))), valid)


@op("index_add", writes=True)
def index_add(xp: Any, x: Any, dim: int, index: Any, source: Any, *, alpha: Any = 1) -> Any:
    source = source if alpha == 1 else xp.multiply(source, xp.asarray(alpha, xp.dtype(source)))
    return _put_along(xp, x, dim % xp.ndim(x), index, source, True)


@op("index_copy", writes=True)
def index_copy(xp: Any, x: Any, dim: int, index: Any, source: Any) -> Any:
    return _put_along(xp, x, dim % xp.ndim(x), index, source, False)


@op("index_reduce", writes=True)
def index_reduce(xp: Any, x: Any, dim: int, index: Any, source: Any, reduce: str, *, include_self: bool = True) -> Any:
    dim %= xp.ndim(x)
    shape = tuple(-1 if a == dim else 1 for a in range(xp.ndim(x)))
    spread = xp.broadcast_to(xp.reshape(index, shape), xp.shape(source))
    return scatter_reduce(xp, x, dim, spread, source, reduce, include_self=include_self)


@op("put", writes=True)
def put(xp: Any, x: Any, index: Any, source: Any, accumulate: bool = False) -> Any:
    """Into the elements of `x` counted through."""
    flat, index = xp.reshape(x, (-1,)), xp.reshape(index, (-1,))
    where = from_end(xp, index, xp.shape(flat)[0])
    return xp.reshape(_put_along(xp, flat, 0, where, xp.reshape(source, (-1,)), accumulate), xp.shape(x))


@op("diagonal_scatter", writes=True)
def diagonal_scatter(xp: Any, x: Any, src: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    ndim = xp.ndim(x)
    order = (*(d for d in range(ndim) if d not in (dim1 % ndim, dim2 % ndim)), dim1 % ndim, dim2 % ndim)
    turned = xp.permute(x, order)
    *lead, rows, columns = xp.shape(turned)
    where = diagonal_positions(xp, rows, columns, offset)
    flat = xp.reshape(turned, (*lead, rows * columns))
    flat = xp.index_put(flat, [*[None] * len(lead), where], xp.cast(src, xp.dtype(x)), False)
    return xp.permute(xp.reshape(flat, xp.shape(turned)), tuple(order.index(d) for d in range(ndim)))


@op("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(
    xp: Any,
    weight: Any,
    indices: Any,
    offsets: Any,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Any = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> Any:
    """Sum (mode 0), mean (1) or largest (2) of the rows of each bag; the further results, for a gradient, are left out.

    Bag b holds the indices from offsets[b] up to offsets[b + 1].
    """
    if include_last_offset:
        offsets = xp.slice(offsets, 0, 0, xp.shape(offsets)[0] - 1)
    rows = embedding(xp, weight, indices)
    bags, dtype = xp.shape(offsets)[0], xp.dtype(weight)
    places = xp.expand_dims(xp.arange(0, xp.shape(indices)[0], 1, xp.dtype(offsets)), 1)
    started = xp.sum(xp.cast(xp.less_equal(offsets, places), "int64"), (1,), True)
    bag = xp.broadcast_to(xp.subtract(started, xp.asarray(1, "int64")), xp.shape(rows))
    counts = xp.cast(xp.expand_dims(xp.not_equal(indices, xp.asarray(padding_idx, xp.dtype(indices))), 1), dtype)
    sizes = xp.scatter(
        xp.full((bags, xp.shape(weight)[1]), 0, dtype), 0, bag, xp.broadcast_to(counts, xp.shape(rows)), "add"
    )
    if per_sample_weights is not None:
        rows = xp.multiply(rows, xp.expand_dims(per_sample_weights, 1))
    zero, one = xp.asarray(0, dtype), xp.asarray(1, dtype)
    if mode == 2:
        low = xp.asarray(-math.inf, dtype)
        rows = xp.where(xp.equal(counts, zero), low, rows)
        top = xp.scatter(xp.broadcast_to(low, xp.shape(sizes)), 0, bag, rows, "max")
        return (xp.where(xp.equal(sizes, zero), zero, top),)
    rows = xp.where(xp.equal(counts, zero), zero, rows)
    total = xp.scatter(xp.full(xp.shape(sizes), 0, dtype), 0, bag, rows, "add")
    return (xp.divide(total, xp.maximum(sizes, one)) if mode == 1 else total,)


@op("masked_scatter", writes=True)
def masked_scatter(xp: Any, x: Any, mask: Any, source: Any) -> Any:
    """The n-th true position takes the n-th element of `source`."""
    mask = xp.broadcast_to(mask, xp.shape(x))
    return xp.where(mask, _in_turn(xp, mask, xp.reshape(source, (-1,)), 0), x)


def _in_turn(xp: Any, mask: Any, values: Any, inner: int) -> Any:
    """The n-th row of `values`, of `inner` dims after broadcasting, at the n-th true position; anything elsewhere.

    One row serves all positions. No size depends on how many positions are true.
    """
    count = xp.shape(values)[0]
    values = xp.pad(values, [(0, 1), *[(0, 0)] * (xp.ndim(values) - 1)], 0)  # none at all: no position is true
    order = xp.subtract(xp.cumsum(xp.cast(xp.reshape(mask, (-1,)), "int64"), 0), xp.asarray(1, "int64"))
    order = xp.minimum(xp.maximum(order, xp.asarray(0, "int64")), xp.asarray(count - 1, "int64"))
    order = xp.maximum(order, xp.asarray(0, "int64"))
    sizes = xp.shape(values)[1:]
    return xp.reshape(xp.take(values, order, 0), (*xp.shape(mask), *((1,) * (inner - len(sizes))), *sizes))


@op("slice_scatter", writes=True)
def slice_scatter(xp: Any, x: Any, src: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    dim %= xp.ndim(x)
    positions = xp.slice(xp.arange(0, xp.shape(x)[dim], 1, "int64"), 0, 0 if start is None else start, _end(end), step)
    return xp.index_put(x, [None] * dim + [positions], xp.cast(src, xp.dtype(x)), False)


@op("select_scatter", writes=True)
def select_scatter(xp: Any, x: Any, src: Any, dim: int, index: Any) -> Any:
    dim %= xp.ndim(x)
    size = xp.shape(x)[dim]
    shape = [1] * xp.ndim(x)
    shape[dim] = size
    index, valid = xp.inside(from_end(xp, xp.asarray(index, "int64"), size), size)
    here = xp.reshape(xp.equal(xp.arange(0, size, 1, "int64"), index), tuple(shape))
    return _written(xp, xp.where(here, xp.expand_dims(xp.cast(src, xp.dtype(x)), dim), x), valid)


@op("sort", "sort.stable")
@on_scalars
def sort(xp: Any, x: Any, *args: Any, dim: int = -1, descending: bool = False, stable: bool = True) -> Any:
    """(values, indices). sort takes (dim, descending), sort.stable (stable=, dim=, descending=)."""
    if args and not isinstance(args[0], bool):
        dim, *args = args  # type: ignore[assignment]
    if args:
        descending = args[0]
    dim %= xp.ndim(x)
    order = xp.argsort(x, dim, descending)
    return xp.take_along_axis(x, order, dim), order


@op("argsort", "argsort.stable", along="dim")
@on_scalars
def argsort(xp: Any, x: Any, dim: int = -1, descending: bool = False, *, stable: bool = True) -> Any:
    return xp.argsort(x, dim % xp.ndim(x), descending)


@op("topk", along="dim")
@on_scalars
def topk(xp: Any, x: Any, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    dim %= xp.ndim(x)
    order = xp.slice(xp.argsort(x, dim, largest), dim, 0, k)
    return xp.take_along_axis(x, order, dim), order


@op("kthvalue", along="dim", reduces=True)
def kthvalue(xp: Any, x: Any, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    dim %= xp.ndim(x)
    order = xp.slice(xp.argsort(x, dim, False), dim, k - 1, k)
    values = xp.take_along_axis(x, order, dim)
    return (values, order) if keepdim else (xp.squeeze(values, (dim,)), xp.squeeze(order, (dim,)))


@op("median.dim", along="dim", reduces=True)
@on_scalars
def median_dim(xp: Any, x: Any, dim: int, keepdim: bool = False) -> Any:
    """(values, indices) of the middle element, the lower of two; NaN if there is one."""
    return _middle(xp, x, dim, keepdim, ignore_nan=False)


@op("nanmedian.dim", along="dim", reduces=True)
@on_scalars
def nanmedian_dim(xp: Any, x: Any, dim: int, keepdim: bool = False) -> Any:
    """(values, indices) of the middle of what is not NaN, the lower of two."""
    return _middle(xp, x, dim, keepdim, ignore_nan=True)


@op("median")
def median(xp: Any, x: Any) -> Any:
    return _middle(xp, xp.reshape(x, (-1,)), 0, False, ignore_nan=False)[0]


@op("nanmedian")
def nanmedian(xp: Any, x: Any) -> Any:
    return _middle(xp, xp.reshape(x, (-1,)), 0, False, ignore_nan=True)[0]


def _middle(xp: Any, x: Any, dim: int, keepdim: bool, ignore_nan: bool) -> Any:
    dim %= xp.ndim(x)
    order = xp.argsort(x, dim, False)  # NaN comes last
    numbers = xp.sum(xp.cast(xp.equal(x, x), "int64"), (dim,), True)
    last = xp.asarray(xp.shape(x)[dim] - 1, "int64")
    zero, one, two = (xp.asarray(v, "int64") for v in (0, 1, 2))
    middle = xp.floor_divide(xp.maximum(xp.subtract(numbers, one), zero), two)
    if not ignore_nan:
        middle = xp.where(xp.less_equal(numbers, last), numbers, middle)
    where = xp.take_along_axis(order, middle, dim)
    values = xp.take_along_axis(x, where, dim)
    return (values, where) if keepdim else (xp.squeeze(values, (dim,)), xp.squeeze(where, (dim,)))


@op("one_hot", whole=True)
def one_hot(xp: Any, x: Any, num_classes: int) -> Any:
    x, valid = xp.inside(x, num_classes)
    hot = xp.cast(xp.equal(xp.expand_dims(x, xp.ndim(x)), xp.arange(0, num_classes, 1, "int64")), "int64")
    return spoiled(xp, hot, valid if valid is None else xp.expand_dims(valid, xp.ndim(valid)))


@op("bucketize.Tensor", "bucketize.Scalar")
def bucketize(xp: Any, x: Any, boundaries: Any, *, out_int32: bool = False, right: bool = False) -> Any:
    boundaries, x = promote(xp, boundaries, x)
    dtype = "int32" if out_int32 else "int64"
    # those not above rather than those below: NaN comes after every boundary
    above = (xp.greater if right else xp.greater_equal)(boundaries, xp.expand_dims(x, xp.ndim(x)))
    count = xp.sum(xp.cast(above, dtype), (xp.ndim(x),), False)
    return xp.subtract(xp.asarray(xp.shape(boundaries)[-1], dtype), count)


@op("searchsorted.Tensor")
def searchsorted(
    xp: Any,
    sorted_sequence: Any,
    x: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Any = None,
) -> Any:
    if sorter is not None:
        sorted_sequence = xp.take_along_axis(sorted_sequence, sorter, xp.ndim(sorter) - 1)
    if xp.ndim(sorted_sequence) > 1:
        sorted_sequence = xp.expand_dims(sorted_sequence, xp.ndim(sorted_sequence) - 1)
    return bucketize(xp, x, sorted_sequence, out_int32=out_int32, right=right or side == "right")


@op("searchsorted.Scalar")
def searchsorted_scalar(xp: Any, sorted_sequence: Any, x: Any, **options: Any) -> Any:
    return searchsorted(xp, sorted_sequence, xp.full((), x, xp.dtype(sorted_sequence)), **options)


@op("bincount")
def bincount(xp: Any, x: Any, weights: Any = None, minlength: int = 0) -> Any:
    """How often each number occurs, or the sum of its weights; there are as many results as the largest asks for."""
    longest = xp.max(xp.concat([xp.cast(x, "int64"), xp.full((1,), minlength - 1, "int64")], 0), (0,), False)
    size = xp.size_int(xp.add(longest, xp.asarray(1, "int64")))
    if weights is None:
        weights = xp.full(xp.shape(x), 1, "int64")
    elif xp.dtype(weights) != "float32":
        weights = xp.cast(weights, "float64")
    return xp.scatter(xp.full((size,), 0, xp.dtype(weights)), 0, xp.cast(x, "int64"), weights, "add")


@op("repeat_interleave.Tensor")
def repeat_interleave_tensor(xp: Any, repeats: Any, *, output_size: Any = None) -> Any:
    """[0] * repeats[0] + [1] * repeats[1] + …; their count depends on the values unless it is given."""
    ends = xp.cumsum(xp.cast(repeats, "int64"), 0)
    if output_size is None:
        output_size = xp.size_int(xp.sum(xp.cast(repeats, "int64"), (0,), False))
    steps = xp.expand_dims(xp.arange(0, output_size, 1, "int64"), 1)
    return xp.cast(xp.sum(xp.cast(xp.less_equal(ends, steps), "int64"), (1,), False), xp.dtype(repeats))


@op("repeat_interleave.self_Tensor")
def repeat_interleave_by(xp: Any, x: Any, repeats: Any, dim: int | None = None, *, output_size: Any = None) -> Any:
    """Each part of `x` along `dim` as many times as `repeats`, [n] or a number for all of them, says."""
    if dim is None:
        x, dim = xp.reshape(x, (-1,)), 0
    dim %= xp.ndim(x)
    repeats = xp.broadcast_to(xp.reshape(repeats, (-1,)), (xp.shape(x)[dim],))
    return xp.take(x, repeat_interleave_tensor(xp, repeats, output_size=output_size), dim)


@op("histc")
def histc(xp: Any, x: Any, bins: int = 100, min: float = 0, max: float = 0) -> Any:
    """Counts of `bins` equal ranges from `min` to `max`, or over the whole range of `x` if those are equal."""
    dtype = xp.dtype(x)
    flat = xp.reshape(x, (-1,))
    low, high = xp.asarray(min, dtype), xp.asarray(max, dtype)
    if min == max:
        low, high = xp.min(flat, (0,), False), xp.max(flat, (0,), False)
        alone, one = xp.equal(low, high), xp.asarray(1, dtype)
        low, high = xp.where(alone, xp.subtract(low, one), low), xp.where(alone, xp.add(high, one), high)
    width = xp.divide(xp.subtract(high, low), xp.asarray(bins, dtype))
    bin_of = xp.cast(xp.floor(xp.divide(xp.subtract(flat, low), width)), "int64")
    bin_of = xp.minimum(bin_of, xp.asarray(bins - 1, "int64"))
    inside = xp.logical_and(xp.greater_equal(flat, low), xp.less_equal(flat, high))
    hits = xp.equal(xp.expand_dims(bin_of, 1), xp.arange(0, bins, 1, "int64"))
    return xp.sum(xp.cast(xp.logical_and(hits, xp.expand_dims(inside, 1)), dtype), (0,), False)


def _positions(xp: Any, x: Any, indices: Any) -> tuple[list[Any], Any]:
    """`indices` counted from the start, and which are inside; masks, which may take several dims each, as they are."""
    result, axis, valid = [], 0, None
    for i in indices:
        mask = i is not None and xp.dtype(i) == "bool"
        if i is not None and not mask:
            size = xp.shape(x)[axis]
            i, inside = xp.inside(from_end(xp, i, size), size)
            valid = inside if valid is None else valid if inside is None else xp.logical_and(valid, inside)
        result.append(i)
        axis += xp.ndim(i) if mask else 1
    return result, valid


def _put_along(xp: Any, x: Any, dim: int, index: Any, source: Any, accumulate: bool) -> Any:
    index, valid = xp.inside(index, xp.shape(x)[dim])
    return _written(xp, xp.index_put(x, [None] * dim + [index], source, accumulate), valid)


def _scattered(xp: Any, x: Any, dim: int, index: Any, src: Any, mode: str) -> Any:
    index, valid = xp.inside(index, xp.shape(x)[dim] if xp.ndim(x) else 1)
    return _written(xp, xp.scatter(x, dim, index, src, mode), valid)


def _written(xp: Any, x: Any, valid: Any) -> Any:
    """What was written into, wholly NaN if a position was outside: nothing says what should have been there."""
    return spoiled(xp, x, valid if valid is None else xp.all(valid, tuple(range(xp.ndim(valid))), False))


def _same_size(a: Any, b: Any) -> bool:
    return a is b or (known(a) and known(b, a))


def _end(end: Any) -> Any:
    return None if known(end) and end >= 2**63 - 1 else end
