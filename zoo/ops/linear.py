"""Matrix products and attention.

Dims: B batch, H heads, T queries, S keys, D width of a head.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from zoo.ops.dtypes import promote
from zoo.ops.random import dropout
from zoo.ops.reduce import norm, safe_softmax, softmax
from zoo.ops.size import known
from zoo.ops.table import op


@op("linear", whole=True)
def linear(xp: Any, x: Any, weight: Any, bias: Any = None) -> Any:
    """x @ weight.T + bias, with weight [out, in], or [in] for one output that has no dim."""
    result = xp.linear(x, weight) if xp.ndim(weight) == 2 else mv(xp, x, weight)
    return result if bias is None else xp.add(result, bias)


@op("matmul", whole=True)
@op("mm", "bmm")
def matmul(xp: Any, x: Any, y: Any) -> Any:
    return xp.matmul(x, y)


@op("mv", "dot")
def mv(xp: Any, x: Any, y: Any) -> Any:
    return xp.sum(xp.multiply(x, y), (xp.ndim(x) - 1,), False)


@op("outer")
def outer(xp: Any, x: Any, y: Any) -> Any:
    x, y = promote(xp, x, y)
    return xp.multiply(xp.expand_dims(x, 1), xp.expand_dims(y, 0))


@op("addmm")
def addmm(xp: Any, x: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    return _add_product(xp, x, xp.matmul(a, b), beta, alpha)


@op("baddbmm")
def baddbmm(xp: Any, x: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    return _add_product(xp, x, xp.matmul(a, b), beta, alpha)


@op("addmv")
def addmv(xp: Any, x: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    return _add_product(xp, x, mv(xp, a, b), beta, alpha)


@op("addbmm")
def addbmm(xp: Any, x: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    return _add_product(xp, x, xp.sum(xp.matmul(a, b), (0,), False), beta, alpha)


@op("transformers::grouped_mm_fallback")
def grouped_matmul(xp: Any, x: Any, weight: Any, ends: Any) -> Any:
    """Rows [S, K] sorted by group, each times the matrix of its group among [E, K, N]; group e ends at ends[e].

    Source: transformers' integrations/moe.py, where mixtures of experts use it.
    """
    return xp.grouped_matmul(x, weight, ends)


@op("_grouped_mm")
def grouped_mm(xp: Any, x: Any, y: Any, offs: Any = None, bias: Any = None, out_dtype: Any = None) -> Any:
    """torch.nn.functional.grouped_mm: groups of rows if `y` alone is batched, a batched product if both are."""
    if bias is not None or (offs is None) != (xp.ndim(x) == 3) or xp.ndim(y) != 3:
        raise NotImplementedError("grouped_mm of a batched first and a plain second matrix, or with a bias")
    result = xp.matmul(x, y) if offs is None else xp.grouped_matmul(x, y, offs)
    return result if out_dtype is None else xp.cast(result, out_dtype.name)


@op("_cdist_forward")
def cdist(xp: Any, x: Any, y: Any, p: float, compute_mode: int | None = None) -> Any:
    """[..., P, R] distances between the rows of [..., P, M] and [..., R, M], by their differences."""
    ndim = max(xp.ndim(x), xp.ndim(y))
    gap = xp.abs(xp.subtract(xp.expand_dims(x, xp.ndim(x) - 1), xp.expand_dims(y, xp.ndim(y) - 2)))
    return norm(xp, gap, p, (ndim,), False)


@op("_pdist_forward")
def pdist(xp: Any, x: Any, p: float = 2.0) -> Any:
    """Distances of the rows above one another: the upper triangle of cdist(x, x), row after row."""
    rows = xp.shape(x)[0]
    if known(rows):
        xp.parts(rows * rows >> 8)
        places = [xp.asarray(place, "int64") for place in np.triu_indices(rows, 1)]
    else:  # pair n is of row i where the rows before have n pairs at most between them
        after = xp.arange(rows - 1, -1, -1, "int64")
        ends = xp.cumsum(after, 0)
        numbers = xp.arange(0, rows * (rows - 1) // 2, 1, "int64")
        above = xp.cast(xp.less_equal(ends, xp.expand_dims(numbers, 1)), "int64")
        row = xp.sum(above, (1,), False)
        left = xp.subtract(xp.take(ends, row, 0), numbers)  # pairs of the row from this one on
        places = [row, xp.subtract(xp.asarray(rows, "int64"), left)]
    first, second = (xp.take(x, place, 0) for place in places)
    return norm(xp, xp.abs(xp.subtract(first, second)), p, (1,), False)


@op("bilinear", whole=True)
def bilinear(xp: Any, x: Any, y: Any, weight: Any, bias: Any = None) -> Any:
    result = xp.einsum("...i,oij,...j->...o", x, weight, y)
    return result if bias is None else xp.add(result, bias)


@op("einsum", whole=True)
def einsum(xp: Any, equation: str, tensors: Any, path: Any = None) -> Any:
    return xp.einsum(equation.replace(" ", ""), *promote(xp, *tensors))


@op("scaled_dot_product_attention", whole=True)
def scaled_dot_product_attention(
    xp: Any,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    rng: Any = None,
) -> Any:
    """softmax(query key^T * scale + mask) value over [..., H, T, D], [..., H, S, D], [..., H, S, E].

    A query that may see no key gives zeros, as torch's own kernel does. With `enable_gqa` the keys and values have
    fewer heads than the queries, each serving a run of them. With `rng` the softmax goes through dropout.
    """
    if enable_gqa:
        key, value = (_repeat_heads(xp, kv, xp.shape(query)[-3]) for kv in (key, value))
    dtype = xp.dtype(query)
    factor = xp.rsqrt(xp.asarray(xp.shape(query)[-1], dtype)) if scale is None else xp.asarray(scale, dtype)
    scores = xp.multiply(xp.matmul(query, _swap(xp, key)), factor)
    if is_causal:
        rows = xp.reshape(xp.arange(0, xp.shape(query)[-2], 1, "int64"), (-1, 1))
        attn_mask = xp.less_equal(xp.arange(0, xp.shape(key)[-2], 1, "int64"), rows)
    if attn_mask is None:
        return xp.matmul(dropout(xp, softmax(xp, scores, -1), dropout_p, True, rng=rng), value)
    if xp.dtype(attn_mask) == "bool":
        scores = xp.where(attn_mask, scores, xp.asarray(-math.inf, dtype))
    else:
        scores = xp.add(scores, xp.cast(attn_mask, dtype))
    return xp.matmul(dropout(xp, safe_softmax(xp, scores, -1), dropout_p, True, rng=rng), value)


def _add_product(xp: Any, x: Any, product: Any, beta: Any, alpha: Any) -> Any:
    if alpha != 1:
        product = xp.multiply(product, xp.asarray(alpha, xp.dtype(product)))
    if beta == 0:
        return product
    return xp.add(x if beta == 1 else xp.multiply(x, xp.asarray(beta, xp.dtype(x))), product)


def _swap(xp: Any, x: Any) -> Any:
    ndim = xp.ndim(x)
    return xp.permute(x, (*range(ndim - 2), ndim - 1, ndim - 2))


def _repeat_heads(xp: Any, x: Any, heads: Any) -> Any:
    *lead, own, length, width = xp.shape(x)
    if known(own) and known(heads, own):
        return x
    spread = xp.broadcast_to(xp.expand_dims(x, len(lead) + 1), (*lead, own, heads // own, length, width))
    return xp.reshape(spread, (*lead, heads, length, width))
