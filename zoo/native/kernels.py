"""The kernels as functions of NumPy arrays, float32 unless said otherwise. Results are new arrays.

Dims: B batch, H heads, T queries, S keys, D width of a head, E width of a value.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo.errors import InputError, ZooError
from zoo.native import library as lib
from zoo.native.tape import call, empty, step

__all__ = [
    "Packed",
    "PreparedMask",
    "attention",
    "binary",
    "conv",
    "copy",
    "embedding",
    "lay_depthwise",
    "linear",
    "matmul",
    "norm",
    "pack_conv",
    "pack_weight",
    "pool",
    "softmax",
    "supported",
    "unary",
]

F32 = np.dtype(np.float32)

FILLING = 16
"""From so many channels on vectors of channels are well filled."""


def supported(*arrays: Any) -> bool:
    """Whether kernels take all of these: float32 arrays, None being none."""
    return all(x is None or (isinstance(x, np.ndarray) and x.dtype == F32) for x in arrays)


class Packed:
    """A matrix in the library's own layout; freed with the object. `shape` is (n, k) as the weight's.

    Of a convolution's, `layout` says how images lie in memory (`library.PLANES` and its like).
    """

    __slots__ = ("__weakref__", "handle", "layout", "shape")

    def __init__(self, handle: int | None, shape: tuple[int, int], layout: int | None = None) -> None:
        if not handle:
            raise MemoryError(f"no memory to pack a weight of shape {shape}")
        self.handle, self.shape, self.layout = handle, shape, layout
        weakref.finalize(self, lib.library().zoo_packed_free, handle)


def pack_weight(weight: np.ndarray, precision: str = "float32") -> Packed:
    """The weight of a linear layer, [out, in], for products in one of `PRECISIONS`; what goes in and out is float32.

    Raises:
        ZooError: no such precision, or the weight is not float32.
    """
    if precision not in lib.PRECISIONS:
        raise ZooError("products are not computed in this", expected=", ".join(lib.PRECISIONS), got=precision)
    if not supported(weight) or weight.ndim != 2:
        got = f"{getattr(weight, 'dtype', type(weight).__name__)} {list(np.shape(weight))}"
        raise ZooError("this weight cannot be packed", expected="float32 [out, in]", got=got)
    weight = _sound(weight)
    n, k = weight.shape
    row, col = _strides(weight)
    handle = lib.library().zoo_pack_right_as(weight.ctypes.data, k, n, col, row, lib.PRECISIONS[precision])
    return Packed(handle, (n, k))


def pack_conv(weight: np.ndarray, groups: int, by_one: bool = False) -> Packed:
    """The weight of a convolution, [out, in / groups, *kernel], in the layout that suits it.

    Args:
        by_one: whether stride and dilation are 1. If it is 3 x 3, it is packed for fewer multiplications then: slower
            to pack, and an infinity or a NaN in the image spoils some more pixels around it.
    """
    weight = _contiguous(weight)
    out, channels, *kernel = weight.shape
    layout = lib.LAST if out // groups >= FILLING else lib.PLANES
    if by_one and layout == lib.LAST and kernel == [3, 3] and channels >= FILLING:
        layout = lib.WINOGRAD
    handle = lib.library().zoo_pack_conv(weight.ctypes.data, groups, out // groups, channels, math.prod(kernel), layout)
    return Packed(handle, (out, channels * math.prod(kernel)), layout)


def lay_depthwise(weight: np.ndarray) -> np.ndarray:
    """The weight of a convolution of each channel by itself, [C, 1, *kernel], in the order of memory that is read."""
    if len(weight) < FILLING:
        return _contiguous(weight)
    last = (*range(1, weight.ndim), 0)
    return _contiguous(weight.transpose(last)).transpose(weight.ndim - 1, *range(weight.ndim - 1))


def linear(
    x: np.ndarray,
    weight: Packed | np.ndarray,
    bias: np.ndarray | None = None,
    activation: str = "none",
    residual: np.ndarray | None = None,
) -> np.ndarray:
    """activation(x weight.T + bias) + residual; x [..., in], weight [out, in], residual [..., out]."""
    n, k = weight.shape
    if x.shape[-1] != k:
        raise ValueError(f"a linear layer of {k} inputs is given {x.shape[-1]}")
    x, lda = _rows(x)
    out = empty((*x.shape[:-1], n))
    ldr = 0
    if residual is not None:
        residual, ldr = _rows(np.broadcast_to(residual, out.shape))
    if bias is not None:
        bias = _sized(bias, n, "bias")
    m, added = math.prod(x.shape[:-1]), (_address(bias), _address(residual), ldr)
    args: ctypes.Structure
    if isinstance(weight, Packed):
        args = lib.Linear(
            x.ctypes.data, m, k, lda, weight.handle, *added, out.ctypes.data, n, lib.ACTIVATIONS[activation]
        )  # fmt: skip
    else:
        weight = _sound(weight)
        row, col = _strides(weight)
        args = lib.Matmul(
            x.ctypes.data, weight.ctypes.data, out.ctypes.data, (1, 1, 1), (0, 0, 0), (0, 0, 0), m, n, k, lda, 1,
            col, row, *added, lib.ACTIVATIONS[activation],
        )  # fmt: skip
    call(args, x, weight, bias, residual, out)
    return out


def matmul(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """np.matmul of arrays with two to five dims."""
    (m, k), (k2, n) = x.shape[-2:], y.shape[-2:]
    if k != k2:
        raise ValueError(f"matmul of {x.shape} and {y.shape}")
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    x, y = _sound(x), _sound(y)
    out = empty((*batch, m, n))
    x, y = (np.broadcast_to(v, (*batch, *v.shape[-2:])) for v in (x, y))
    lead = (1,) * (3 - len(batch))
    a_strides, b_strides = _strides(x), _strides(y)
    none = (0,) * (3 - len(batch))
    call(
        lib.Matmul(
            x.ctypes.data, y.ctypes.data, out.ctypes.data, (*lead, *batch), (*none, *a_strides[:-2]),
            (*none, *b_strides[:-2]), m, n, k, *a_strides[-2:], *b_strides[-2:],
        ),
        x, y, out,
    )  # fmt: skip
    return out


class PreparedMask:
    """An attention mask as the kernel takes it: nothing at all where it masks nothing, one row where all are equal."""

    def __init__(self, mask: np.ndarray) -> None:
        self.struct = lib.Mask()
        self.array: np.ndarray | None = None
        step(self.fill, mask)

    def fill(self, mask: np.ndarray) -> None:
        """Take a mask's values (bool, or floats to add), [B, H, T, S] or what broadcasts to it."""
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        # dims that are broadcast hold one row of numbers
        mask = mask[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in mask.strides)]
        self.array, self.struct.data, self.struct.causal = None, None, 0
        if mask.dtype == bool:
            if mask.all():
                return
            if _is_causal(mask):
                self.struct.causal = 1
                return
        elif not mask.any():
            return
        if mask.shape[2] > 1 and (mask == mask[:, :, :1]).all():
            mask = mask[:, :, :1]
        if mask.dtype == bool:
            mask = np.where(mask, np.float32(0), np.float32(-np.inf))
        mask = mask.astype(np.float32, copy=False)
        # scores are computed transposed, so numbers of neighbouring queries lie side by side
        self.array = np.ascontiguousarray(mask.swapaxes(2, 3)).swapaxes(2, 3)
        sizes = zip(_strides(self.array), self.array.shape, strict=True)
        self.struct.data = self.array.ctypes.data
        self.struct.stride[:] = [0 if size == 1 else stride for stride, size in sizes]


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: PreparedMask | None = None,
    causal: bool = False,
    scale: float | None = None,
    precision: str = "float32",
    offsets: np.ndarray | None = None,
) -> np.ndarray:
    """softmax(q k.T * scale + mask) v of [B, H, T, D], [B, G, S, D], [B, G, S, E], each of G heads serving H / G.

    With `causal` a query sees the keys up to its own position, and the mask is not read. With "bfloat16" as the
    precision both products are of numbers rounded to it, where there are instructions for that.

    With `offsets` (int64, in ascending order) B is 1, and T and S are sequences one after another, each of which sees
    itself alone: number b is offsets[b] to offsets[b + 1]. The mask is that of one sequence, counted from its start,
    and reaches the longest.

    The result [B, H, T, E] lies in memory as [B, T, H, E], which is how models go on.
    """
    batch, heads, queries, width = q.shape
    kv_heads, keys, value_width = v.shape[1:]
    if k.shape != (batch, kv_heads, keys, width) or v.shape[0] != batch or heads % kv_heads:
        raise ValueError(f"attention of {q.shape}, {k.shape} and {v.shape}")
    sizes = (batch, heads, queries, keys)
    if offsets is not None:
        if batch != 1 or queries != keys:
            raise ValueError(f"attention within sequences of {q.shape} and {k.shape}")
        offsets = np.ascontiguousarray(offsets, np.int64)
        batch = len(offsets) - 1
        longest = int(np.diff(offsets).max(initial=0))
        sizes = (1, heads, longest, longest)
    if mask is not None and mask.array is not None and not causal:
        for axis, (size, wanted) in enumerate(zip(mask.array.shape, sizes, strict=True)):
            # of one sequence among several it may reach further than the longest
            if size not in (1, wanted) and (offsets is None or axis < 2 or size < wanted):
                raise ValueError(f"an attention mask of {mask.array.shape} for {sizes}")
    q, k, v = (_inner(x) for x in (q, k, v))
    out = empty((q.shape[0], queries, heads, value_width)).transpose(0, 2, 1, 3)
    struct = mask.struct if mask is not None and not causal else lib.Mask(causal=causal)
    call(
        lib.Attention(
            q.ctypes.data, k.ctypes.data, v.ctypes.data, ctypes.pointer(struct), out.ctypes.data, batch, heads,
            heads // kv_heads, queries, keys, width, value_width, _strides(q)[:3], _strides(k)[:3], _strides(v)[:3],
            _strides(out)[:3], 1 / math.sqrt(width) if scale is None else scale, lib.PRECISIONS[precision],
            _address(offsets),
        ),
        q, k, v, mask, struct, out, offsets,
    )  # fmt: skip
    return out


def norm(
    x: np.ndarray,
    cols: int,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    eps: float,
    rms: bool = False,
    residual: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(the norm of x + residual over runs of `cols` numbers, x + residual itself)."""
    x, stride = _rows(x) if x.shape[-1] == cols else (_contiguous(x), cols)
    stride_residual = 0
    total = x
    if residual is not None:
        residual, stride_residual = _rows(np.broadcast_to(residual, x.shape))
        total = empty(x.shape)
    out = empty(x.shape)
    weight, bias = (None if v is None else _sized(v, cols, "weight or bias") for v in (weight, bias))
    if cols <= 0 or x.size % cols:
        raise ValueError(f"a norm of runs of {cols} numbers is given {x.shape}")
    call(
        lib.Norm(
            x.ctypes.data, _address(residual), _address(weight), _address(bias),
            None if residual is None else total.ctypes.data, out.ctypes.data, x.size // cols, cols,
            stride, stride_residual, eps, rms,
        ),
        x, residual, weight, bias, total, out,
    )  # fmt: skip
    return out, total


def softmax(x: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    x = _contiguous(x)
    out = empty(x.shape)
    rows = x.size // x.shape[-1] if x.size else 0
    call(lib.Softmax(x.ctypes.data, out.ctypes.data, rows, x.shape[-1]), x, out)
    return out


def unary(x: np.ndarray, op: str) -> np.ndarray:
    """One of `ACTIVATIONS`, element by element; the result has the order of memory that `x` has."""
    order, back = _order(x, x.ndim)
    x = _contiguous(x.transpose(order))
    out = empty(x.shape)
    call(lib.Unary(x.ctypes.data, out.ctypes.data, x.size, lib.ACTIVATIONS[op]), x, out)
    return out.transpose(back)


def binary(a: np.ndarray, b: np.ndarray, op: str) -> np.ndarray:
    """One of `BINARY`, element by element, with NumPy's broadcasting; up to six dims once joined.

    The result has the order of memory of the first array that has its shape.
    """
    shape = np.broadcast_shapes(a.shape, b.shape)
    order, back = _order(a if a.shape == shape or b.shape != shape else b, len(shape))
    a, b = (np.broadcast_to(_sound(x), shape).transpose(order) for x in (a, b))
    out = empty(a.shape)
    sizes, a_strides, b_strides = _joined(a.shape, _strides(a), _strides(b))
    call(
        lib.Binary(a.ctypes.data, b.ctypes.data, out.ctypes.data, sizes, a_strides, b_strides, lib.BINARY[op]),
        a, b, out,
    )  # fmt: skip
    return out.transpose(back)


def copy(x: np.ndarray) -> np.ndarray:
    """The array without gaps."""
    out = empty(x.shape, x.dtype)
    if x.dtype != F32 or x.ndim > 6 or not x.flags.aligned:
        step(np.copyto, out, x)
        return out
    sizes, strides, _ = _joined(x.shape, _strides(x), _strides(x))
    call(lib.Binary(x.ctypes.data, None, out.ctypes.data, sizes, strides, strides, lib.BINARY["copy"]), x, out)
    return out


def embedding(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Rows of a table [rows, width] of any dtype."""
    table = np.ascontiguousarray(table)
    out = empty((*index.shape, table.shape[1]), table.dtype)
    if index.dtype != np.int64 or not index.flags.c_contiguous or not index.flags.aligned:
        given, index = index, empty(index.shape, np.int64)
        step(np.copyto, index, given)
    call(
        lib.Embedding(
            table.ctypes.data, index.ctypes.data, out.ctypes.data, table.shape[0], table.shape[1] * table.itemsize,
            index.size,
        ),
        table, index, out,
    )  # fmt: skip
    return out


def conv(
    x: np.ndarray,
    weight: np.ndarray,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
    packed: Packed | None = None,
    bias: np.ndarray | None = None,
    activation: str = "none",
    residual: np.ndarray | None = None,
) -> np.ndarray:
    """Cross-correlation of [N, C, H, W] or [N, C, W] with [O, C / groups, *kernel], then bias, residual, activation.

    Where it is quicker so, the result lies in memory as [N, H, W, O], which is how the next one wants it.
    """
    if x.ndim == 3:
        x, weight = x[:, :, None], weight[:, :, None]
        residual = None if residual is None else residual[:, :, None]
        wide = conv(
            x, weight, (1, *stride), ((0, 0), *padding), (1, *dilation), groups, packed, bias, activation, residual
        )
        return wide[:, :, 0]
    batch, channels, height, width = x.shape
    out_channels, per_group, *kernel = weight.shape
    if per_group * groups != channels:
        raise ValueError(f"a convolution of {per_group * groups} channels is given {channels}")
    sizes = tuple(
        (n + low + high - d * (k - 1) - 1) // s + 1
        for n, (low, high), d, k, s in zip((height, width), padding, dilation, kernel, stride, strict=True)
    )
    if min(sizes) < 0:
        raise ValueError(f"a window of {kernel} does not fit {(height, width)}")
    bias = None if bias is None else _sized(bias, out_channels, "bias")
    if packed is not None and packed.shape != (out_channels, per_group * math.prod(kernel)):
        raise ValueError(f"a weight of {packed.shape}, packed, for one of {weight.shape}")
    before = tuple(low for low, _ in padding)
    if per_group == 1 and out_channels == channels and residual is None:
        last = channels >= FILLING
        x, out = _laid(x, last), _image((batch, out_channels, *sizes), last)
        weight = lay_depthwise(weight)
        call(
            lib.Depthwise(
                x.ctypes.data, weight.ctypes.data, _address(bias), out.ctypes.data, *x.shape, tuple(kernel),
                tuple(stride), before, tuple(dilation), sizes, lib.ACTIVATIONS[activation], last,
            ),
            x, weight, bias, out,
        )  # fmt: skip
        return out
    packed = packed or pack_conv(weight, groups)
    last = packed.layout != lib.PLANES
    x, out = _laid(x, last), _image((batch, out_channels, *sizes), last)
    if residual is not None:
        residual = _laid(np.broadcast_to(residual, out.shape), last)
    call(
        lib.Conv(
            x.ctypes.data, packed.handle, _address(bias), _address(residual), out.ctypes.data, *x.shape, out_channels,
            groups, tuple(kernel), tuple(stride), before, tuple(dilation), sizes, lib.ACTIVATIONS[activation],
        ),
        x, packed, bias, residual, out,
    )  # fmt: skip
    return out


def pool(
    x: np.ndarray, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[tuple[int, int]], sum: bool
) -> np.ndarray:
    """The largest number of each window of [N, C, H, W] or [N, C, W], or the sum of its numbers."""
    if x.ndim == 3:
        return pool(x[:, :, None], (1, *kernel), (1, *stride), ((0, 0), *padding), sum)[:, :, 0]
    sizes = tuple(
        (n + low + high - k) // s + 1 for n, (low, high), k, s in zip(x.shape[2:], padding, kernel, stride, strict=True)
    )
    if min(sizes) < 0:
        raise ValueError(f"a window of {tuple(kernel)} does not fit {x.shape[2:]}")
    last = x.shape[1] >= FILLING and _is_last(x)
    x, out = _laid(x, last), _image((*x.shape[:2], *sizes), last)
    call(
        lib.Pool(
            x.ctypes.data, out.ctypes.data, *x.shape, tuple(kernel), tuple(stride),
            tuple(low for low, _ in padding), sizes, sum, last,
        ),
        x, out,
    )  # fmt: skip
    return out


def _is_last(x: np.ndarray) -> bool:
    """Whether an image [N, C, H, W] lies in memory as [N, H, W, C]."""
    return x.flags.aligned and x.transpose(0, 2, 3, 1).flags.c_contiguous


def _image(shape: tuple[int, ...], last: bool) -> np.ndarray:
    """Memory for an image [N, C, H, W], with the channels last or not."""
    n, c, h, w = shape
    return empty((n, h, w, c)).transpose(0, 3, 1, 2) if last else empty(shape)


def _laid(x: np.ndarray, last: bool) -> np.ndarray:
    """An image [N, C, H, W] in that order of memory, copied if it is not."""
    return _contiguous(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if last else _contiguous(x)


def _address(x: np.ndarray | None) -> int | None:
    return None if x is None else x.ctypes.data


def _strides(x: np.ndarray) -> tuple[int, ...]:
    """In elements."""
    return tuple(stride // x.itemsize for stride in x.strides)


def _sound(x: np.ndarray) -> np.ndarray:
    """`x`, its numbers where a float32 may lie."""
    if x.dtype != F32:
        raise InputError("the native engine's kernels take float32 alone", got=f"{x.dtype} {list(x.shape)}")
    return x if x.flags.aligned else copy(x)


def _sized(x: np.ndarray, size: int, what: str) -> np.ndarray:
    if x.size != size:
        raise ValueError(f"a {what} of {x.shape} where {size} numbers are needed")
    return _contiguous(x)


def _contiguous(x: np.ndarray) -> np.ndarray:
    x = _sound(x)
    return x if x.flags.c_contiguous else copy(x)


def _order(x: np.ndarray, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes as they lie in memory, the outermost first, and those that put them back; of fewer dims, as they are."""
    order = tuple(range(ndim))
    if x.flags.c_contiguous or x.ndim != ndim:
        return order, order
    moved = tuple(sorted(order, key=lambda axis: -abs(x.strides[axis]) if x.shape[axis] > 1 else 0))
    return moved, tuple(map(moved.index, order))


def _inner(x: np.ndarray) -> np.ndarray:
    """`x`, its last dim without gaps."""
    x = _sound(x)
    return x if x.strides[-1] == x.itemsize or x.shape[-1] == 1 else copy(x)


def _rows(x: np.ndarray) -> tuple[np.ndarray, int]:
    """`x` and the distance between its rows (all dims but the last), copied if they are not at equal distances."""
    x = _sound(x)
    if x.flags.c_contiguous:
        return x, x.shape[-1]
    if x.strides[-1] == x.itemsize and x.strides[0] > 0:
        step = None
        for size, stride in zip(x.shape[-2::-1], x.strides[-2::-1], strict=True):
            if size == 1:
                continue
            if step is None:
                first, step = stride, stride
            if stride != step:
                break
            step = stride * size
        else:
            return (x, first // x.itemsize) if step is not None else (x, x.shape[-1])
    return copy(x), x.shape[-1]


def _joined(shape: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> Any:
    """Shape and strides in six dims, neighbours joined where both arrays go on at the same step."""
    dims: list[list[int]] = []
    for size, step_a, step_b in zip(shape, a, b, strict=True):
        if size == 1 and dims:
            continue
        if dims and dims[-1][1] == size * step_a and dims[-1][2] == size * step_b:
            dims[-1] = [dims[-1][0] * size, step_a, step_b]
        else:
            dims.append([size, step_a, step_b])
    if len(dims) > 6:
        raise ValueError(f"more than six dims: {shape}")
    dims = [[1, 0, 0]] * (6 - len(dims)) + dims
    return tuple(tuple(dim[i] for dim in dims) for i in range(3))


def _is_causal(mask: np.ndarray) -> bool:
    rows, cols = mask.shape[2:]
    return rows > 1 and bool((mask == np.tri(rows, cols, dtype=bool)).all())
