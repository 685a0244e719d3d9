"""The native engine's kernels against float64, on every instruction set of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tolerances import TOLERANCES

from zoo.arrays import numpy_dtype
from zoo.backends import get_backend
from zoo.errors import ZooError
from zoo.native import kernels, library
from zoo.tolerances import FACTORS

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=library.ISAS, autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = library.get_isa()
    try:
        library.set_isa(request.param)
    except ZooError:
        pytest.skip(f"this machine has no {request.param}")
    yield request.param
    library.set_isa(before)


@pytest.fixture(params=(1, 3), ids=("thread", "threads"))
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = library.get_threads()
    library.set_threads(request.param)
    yield request.param
    library.set_threads(before)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def close(got: np.ndarray, truth: np.ndarray) -> None:
    """Within the table's tolerance of the largest number; NaN and infinities in the same places."""
    assert got.dtype == np.float32 and got.shape == truth.shape
    assert (np.isnan(got) == np.isnan(truth)).all()
    infinite = np.isinf(truth)
    assert (got[infinite] == truth[infinite]).all()
    finite = np.isfinite(truth)
    if finite.any():
        scale = max(np.abs(truth[finite]).max(), 1e-30)
        assert np.abs(got - truth, where=finite, out=np.zeros(truth.shape)).max() <= limit() * scale


def limit() -> float:
    return TOLERANCES["native", "float32"]


def erf(x: np.ndarray) -> np.ndarray:
    from math import erf as exact

    return np.vectorize(exact, otypes=[float])(x) if x.size else x


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


EXACT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x * sigmoid(x),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "exp": np.exp,
    "erf": erf,
    "relu6": lambda x: np.clip(x, 0, 6),
}


@pytest.mark.parametrize(
    ("m", "k", "n"),
    [
        (0, 5, 7), (3, 0, 5), (4, 6, 0), (1, 1, 1), (1, 64, 33), (2, 3, 31), (5, 257, 32), (13, 7, 65), (14, 16, 32),
        (15, 17, 33), (29, 300, 100), (128, 96, 48), (257, 31, 3), (700, 1100, 40),
    ],
)  # fmt: skip
def test_linear(threads: int, m: int, k: int, n: int) -> None:
    x, weight, bias, residual = numbers(m, k), numbers(n, k, seed=1), numbers(n), numbers(m, n, seed=2)
    packed = kernels.pack_weight(weight)
    truth = x.astype(np.float64) @ weight.T.astype(np.float64)
    close(kernels.linear(x, packed), truth)
    close(kernels.linear(x, packed, bias), truth + bias)
    whole = kernels.linear(x, packed, bias, "gelu", residual)
    close(whole, EXACT["gelu"](truth + bias) + residual)
    for as_it_lies in (weight, np.asfortranarray(weight)):
        assert np.array_equal(kernels.linear(x, as_it_lies, bias, "gelu", residual), whole)


@pytest.mark.parametrize("activation", sorted(library.ACTIVATIONS))
def test_linear_with_an_activation(activation: str) -> None:
    x, weight, bias = numbers(17, 19), 0.2 * numbers(37, 19, seed=1), numbers(37)
    truth = EXACT[activation](x.astype(np.float64) @ weight.T + bias)
    close(kernels.linear(x, kernels.pack_weight(weight), bias, activation), truth)


def test_linear_of_what_is_not_contiguous() -> None:
    base, weight = numbers(4, 6, 90), numbers(11, 30)
    for x in (
        base[:, :, 30:60],
        base[:, ::2, 3:33],
        base[1:2, :, :30],
        base[:, :, :60:2],
        base.transpose(2, 0, 1)[:30].T,
    ):
        x = x.reshape(x.shape) if x.shape[-1] == 30 else x
        close(kernels.linear(x, kernels.pack_weight(weight)), x.astype(np.float64) @ weight.T)
    transposed = np.asfortranarray(weight)
    close(kernels.linear(base[..., :30], kernels.pack_weight(transposed)), base[..., :30].astype(np.float64) @ weight.T)


def test_not_a_number_and_infinity_stay_where_they_are() -> None:
    x, weight = numbers(9, 20), numbers(40, 20)
    x[2, 3], x[5, 7] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        close(kernels.linear(x, kernels.pack_weight(weight)), x.astype(np.float64) @ weight.T.astype(np.float64))
    got, _ = kernels.norm(x, 20, None, None, 1e-5)
    assert np.isnan(got[[2, 5]]).all() and np.isfinite(np.delete(got, [2, 5], 0)).all()
    got = kernels.softmax(x)
    assert np.isnan(got[[2, 5]]).all() and np.isfinite(np.delete(got, [2, 5], 0)).all()


LOW_SIZES = [
    (0, 5, 7), (3, 0, 5), (4, 6, 0), (1, 1, 1), (1, 64, 33), (2, 3, 31), (5, 257, 32), (13, 7, 65), (14, 16, 32),
    (29, 300, 100), (128, 96, 48), (257, 31, 3), (60, 1100, 40), (2, 70000, 3),
]  # fmt: skip


def rounded(x: np.ndarray) -> np.ndarray:
    """To bfloat16, as ml_dtypes does it."""
    return x.astype(numpy_dtype("bfloat16")).astype(np.float64)


def slack(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """How far a product may be off whose x is rounded to 255 steps of each row's range, and weight to 127 of each
    output's largest: half a step of the one times the other, and half a step of both."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    step_x = (x.max(1, initial=0) - x.min(1, initial=0))[:, None] / 255
    step_w = np.abs(weight).max(1, initial=0) / 127
    sums_x, sums_w = np.abs(x).sum(1, keepdims=True), np.abs(weight).sum(1)
    return 0.5 * (step_x * sums_w + sums_x * step_w) + x.shape[1] * step_x * step_w / 4


def low(x: np.ndarray, weight: np.ndarray, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """The product in float64 of what the precision makes of its numbers, and how far from it each result may be."""
    if precision == "bfloat16" or x.shape[1] > 65536:  # sums of more int8s need not fit
        truth = rounded(x) @ rounded(weight).T
        return truth, np.full(truth.shape, limit() * np.abs(truth).max(initial=0))
    truth = x.astype(np.float64) @ weight.T.astype(np.float64)
    return truth, 1.001 * slack(x, weight) + limit() * np.abs(truth).max(initial=0)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize(("m", "k", "n"), LOW_SIZES)
def test_linear_in_less_than_float32(threads: int, m: int, k: int, n: int, precision: str) -> None:
    # rows and outputs of different sizes, ranges that are not around 0
    x = (numbers(m, k) + 0.3) * np.geomspace(1e-3, 1e3, max(m, 1), dtype=np.float32)[:m, None]
    weight = numbers(n, k, seed=1) * np.geomspace(1e-2, 1e2, max(n, 1), dtype=np.float32)[:n, None]
    bias, residual = numbers(n), numbers(m, n, seed=2)
    truth, within = low(x, weight, precision)
    for packed in (kernels.pack_weight(w, precision) for w in (weight, np.asfortranarray(weight))):
        got = kernels.linear(x, packed)
        assert got.dtype == np.float32 and got.shape == truth.shape
        assert (np.abs(got - truth) <= within).all()
    # what comes after the product is float32's
    after = kernels.linear(x, packed, bias, "gelu", residual)
    close(after, EXACT["gelu"](got.astype(np.float64) + bias) + residual)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_rows_are_multiplied_alike_wherever_they_stand(precision: str) -> None:
    base, weight = numbers(3, 40, 90), numbers(50, 30, seed=1)
    packed = kernels.pack_weight(weight, precision)
    together = kernels.linear(base[..., :30], packed)
    for i in range(3):
        for rows in (slice(0, 1), slice(5, 29)):
            assert np.array_equal(kernels.linear(base[i, rows, :30], packed), together[i, rows])


def test_int8_of_what_cannot_be_scaled() -> None:
    x, weight = numbers(9, 20), numbers(40, 20)
    x[2, 3], x[5, 7], x[6] = np.nan, np.inf, 0
    x[7] = 1e-40
    weight[4, 5], weight[8] = -np.inf, 0
    got = kernels.linear(x, kernels.pack_weight(weight, "int8"))
    assert np.isnan(got[[2, 5]]).all() and np.isnan(got[:, 4]).all()
    kept = np.delete(np.delete(got, [2, 5], 0), 4, 1)
    assert np.isfinite(kept).all() and (got[[6, 7]][:, [3, 8]] == 0).all()


def test_bfloat16_keeps_what_is_not_finite_where_it_is() -> None:
    x, weight = numbers(9, 20), numbers(40, 20)
    x[2, 3], x[5, 7] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        close(kernels.linear(x, kernels.pack_weight(weight, "bfloat16")), rounded(x) @ rounded(weight).T)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4), (4, 5)), ((2, 3, 17, 9), (2, 3, 9, 33)), ((2, 1, 7, 70), (3, 70, 2)), ((5, 1, 8), (5, 8, 1)),
        ((2, 2, 2, 3, 4), (2, 2, 2, 4, 3)), ((1, 100, 40), (6, 40, 40)),
    ],
)  # fmt: skip
def test_matmul(threads: int, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    x, y = numbers(*a), numbers(*b, seed=1)
    close(kernels.matmul(x, y), x.astype(np.float64) @ y.astype(np.float64))
    swapped = np.ascontiguousarray(y.swapaxes(-1, -2)).swapaxes(-1, -2)
    close(kernels.matmul(np.asfortranarray(x), swapped), x.astype(np.float64) @ y.astype(np.float64))


def reference_attention(q: Any, k: Any, v: Any, mask: Any, causal: bool, scale: float) -> np.ndarray:
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.swapaxes(-1, -2) * scale
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
    top = scores.max(-1, keepdims=True, initial=-np.inf)
    powers = np.exp(scores - np.where(np.isinf(top), 0, top))
    total = powers.sum(-1, keepdims=True)
    return powers / np.where(total == 0, 1, total) @ v


@pytest.mark.parametrize("kind", ["none", "causal", "padding", "full", "additive", "triangle", "per head"])
@pytest.mark.parametrize(
    ("batch", "heads", "groups", "queries", "keys", "width", "value_width"),
    [
        (2, 4, 4, 11, 11, 8, 8), (1, 2, 1, 1, 9, 64, 64), (2, 3, 3, 4, 300, 24, 17), (1, 6, 2, 37, 37, 5, 7),
        (1, 2, 2, 70, 530, 33, 40), (3, 1, 1, 33, 1, 16, 16),
    ],
)  # fmt: skip
def test_attention(
    threads: int, kind: str, batch: int, heads: int, groups: int, queries: int, keys: int, width: int, value_width: int
) -> None:
    rng = np.random.default_rng(3)
    q, k = 2 * numbers(batch, heads, queries, width), numbers(batch, groups, keys, width, seed=1)
    v = numbers(batch, keys, groups, value_width, seed=2).transpose(0, 2, 1, 3)
    mask: np.ndarray | None = None
    if kind == "padding":
        mask = np.broadcast_to(np.arange(keys) < rng.integers(0, keys + 1, (batch, 1, 1, 1)), (batch, 1, queries, keys))
    elif kind == "full":
        mask = rng.random((batch, 1, queries, keys)) < 0.7
        mask[:, :, 0] = False
    elif kind == "additive":
        mask = rng.standard_normal((1, heads, queries, keys)).astype(np.float32)
    elif kind == "triangle":
        mask = np.tri(queries, keys, dtype=bool)
    elif kind == "per head":
        mask = np.where(rng.random((heads, 1, keys)) < 0.8, 0, -np.inf).astype(np.float32)
    for scale in (width**-0.5, 0.3):
        truth = reference_attention(q, k, v, mask, kind == "causal", scale)
        prepared = None if mask is None else kernels.PreparedMask(mask)
        close(kernels.attention(q, k, v, prepared, kind == "causal", scale), truth)
        got = kernels.attention(q, k, v, prepared, kind == "causal", scale, "bfloat16")
        assert np.abs(got - truth).max() <= TOLERANCES["native", "bfloat16"] * np.abs(truth).max()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("queries", [1, 40])
def test_attention_at_the_ends_of_float32(queries: int, precision: str) -> None:
    """Scores that leave one key alone, scales of 0 and below, masks of the lowest number, where all weigh the same."""
    q, k, v = numbers(1, 2, queries, 16), numbers(1, 2, 300, 16, seed=1), numbers(1, 2, 300, 8, seed=2)
    limit = 1e-5 if precision == "float32" else TOLERANCES["native", "bfloat16"]
    lowest = np.full((1, 1, queries, 300), np.finfo(np.float32).min, np.float32)
    lowest[:, :, :, :3] = np.where(np.arange(queries)[:, None] % 2, 0, lowest[:, :, :, :3])
    for factor, scale, mask in ((1e10, 0.25, None), (1, 0.0, None), (1, -0.5, None), (1, 0.25, lowest)):
        wide = reference_attention(factor * q, factor * k, v, None, False, scale)
        if mask is not None:
            wide = np.where(
                np.arange(queries)[:, None] % 2,
                reference_attention(q, k[:, :, :3], v[:, :, :3], None, False, scale),
                v.astype(np.float64).mean(2, keepdims=True),
            )
        prepared = None if mask is None else kernels.PreparedMask(mask)
        got = kernels.attention(np.float32(factor) * q, np.float32(factor) * k, v, prepared, False, scale, precision)
        assert np.abs(got - wide).max() <= limit * np.abs(wide).max()


def test_a_mask_that_masks_nothing_costs_nothing() -> None:
    assert kernels.PreparedMask(np.ones((2, 1, 5, 7), bool)).array is None
    causal = kernels.PreparedMask(np.broadcast_to(np.tri(5, dtype=bool), (2, 1, 5, 5)))
    assert causal.array is None and causal.struct.causal
    padding = np.arange(7) < np.array([[[[3]]], [[[7]]]])
    array = kernels.PreparedMask(np.broadcast_to(padding, (2, 1, 5, 7))).array
    assert array is not None and array.shape == (2, 1, 1, 7)


@pytest.mark.parametrize("cols", [1, 3, 16, 24, 63, 64, 65, 768, 1000])
@pytest.mark.parametrize("rms", [False, True])
def test_norm(threads: int, cols: int, rms: bool) -> None:
    x, residual = 3 + numbers(2, 37, cols), numbers(2, 37, cols, seed=1)
    weight, bias = numbers(cols), None if rms else numbers(cols, seed=2)
    for other in (None, residual):
        exact = x.astype(np.float64) + (0 if other is None else other)
        centred = exact if rms else exact - exact.mean(-1, keepdims=True)
        truth = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + (0 if rms else bias)
        got, total = kernels.norm(x, cols, weight, bias, 1e-5, rms, other)
        close(got, truth)
        close(total, exact)
    close(kernels.norm(x[:, ::3], cols, None, None, 1e-5, True)[0], rms_of(x[:, ::3]))


def rms_of(x: np.ndarray) -> np.ndarray:
    exact = x.astype(np.float64)
    return exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5)


@pytest.mark.parametrize("cols", [1, 2, 15, 16, 17, 100, 1000])
def test_softmax(cols: int) -> None:
    x = 5 * numbers(7, cols)
    if cols > 2:
        x[0, :2] = -np.inf
    powers = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    close(kernels.softmax(x), powers / powers.sum(-1, keepdims=True))


@pytest.mark.parametrize("name", sorted(library.ACTIVATIONS))
def test_unary(threads: int, name: str) -> None:
    # the largest relative error over the range that matters, not only relative to the largest value
    x = np.concatenate([np.linspace(-12, 12, 50001), np.geomspace(1e-30, 80, 5001), -np.geomspace(1e-30, 80, 5001)])
    x = np.concatenate([x.astype(np.float32), np.float32([0.0, -0.0])])
    truth = EXACT[name](x.astype(np.float64))
    got = kernels.unary(x, name)
    size = np.maximum(np.abs(truth), np.abs(x) * 1e-1 if name.startswith(("gelu", "silu")) else 1e-30)
    assert (np.abs(got - truth) <= 1e-1 * limit() * size + 1e-37).all()
    with np.errstate(all="ignore"):
        assert np.isnan(kernels.unary(np.float32([np.nan]), name)).all()
        large = np.float32([np.inf, 200]) if name == "exp" else np.float32([50.0])
        close(kernels.unary(large, name), EXACT[name](large.astype(np.float64)).astype(np.float32))
    assert kernels.unary(np.empty((0, 3), np.float32), name).shape == (0, 3)


@pytest.mark.parametrize("op", sorted(library.BINARY))
def test_binary(threads: int, op: str) -> None:
    for a, b in (
        (numbers(3, 50), numbers(50, seed=1)),
        (numbers(200, 7, 9).transpose(2, 0, 1), numbers(9, 1, 1)),
        (numbers(4, 1, 5, 1), numbers(1, 6, 1, 33)),
        (numbers(2, 3, 40)[:, ::2, ::-3], numbers(40)[::3]),
        (numbers(20000), numbers(20000, seed=1)),
        (numbers(), numbers(3, 4)),
        (numbers(0, 3), numbers(3)),
    ):
        exact = a.astype(np.float64)
        if op == "copy":
            close(kernels.copy(a), exact)
            continue
        basic: dict[str, Any] = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}
        close(kernels.binary(a, b, op), basic[op](exact, b) if op in basic else EXACT[op](exact) * b)


def reference_conv(x: Any, w: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> np.ndarray:
    return (
        get_backend("numpy")
        .namespace()
        .conv(x.astype(np.float64), w.astype(np.float64), stride, padding, dilation, groups)
    )


@pytest.mark.parametrize(
    ("x", "w", "stride", "padding", "dilation", "groups"),
    [
        ((2, 3, 9, 11), (5, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
        ((1, 8, 40, 50), (16, 8, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
        ((1, 3, 33, 31), (20, 3, 7, 7), (2, 2), ((3, 3), (3, 3)), (1, 1), 1),
        ((2, 6, 8, 8), (9, 2, 3, 2), (2, 1), ((0, 1), (2, 0)), (2, 3), 3),
        ((1, 130, 5, 6), (31, 130, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
        ((2, 7, 40), (12, 7, 5), (3,), ((2, 1),), (2,), 1),
        ((2, 10, 19, 40), (10, 1, 7, 7), (1, 1), ((3, 3), (3, 3)), (1, 1), 10),
        ((1, 5, 9, 9), (5, 1, 3, 3), (2, 2), ((1, 1), (0, 1)), (1, 2), 5),
        ((1, 16, 30), (16, 1, 4), (1,), ((3, 0),), (1,), 16),
    ],
)  # fmt: skip
def test_conv(threads: int, x: Any, w: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> None:
    image, weight = numbers(*x), numbers(*w, seed=1)
    truth = reference_conv(image, weight, stride, padding, dilation, groups)
    close(kernels.conv(image, weight, stride, padding, dilation, groups), truth)
    bias, residual = numbers(w[0]), numbers(*truth.shape, seed=2)
    per_channel = bias.reshape(-1, *[1] * (len(x) - 2))
    got = kernels.conv(image, weight, stride, padding, dilation, groups, bias=bias, activation="relu")
    close(got, np.maximum(truth + per_channel, 0))
    got = kernels.conv(
        image, weight, stride, padding, dilation, groups, bias=bias, activation="relu", residual=residual
    )
    close(got, np.maximum(truth + per_channel + residual, 0))


def last(x: np.ndarray) -> np.ndarray:
    """The same array, its channels side by side in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


ONE, SAME, NONE = (1, 1), ((1, 1), (1, 1)), ((0, 0), (0, 0))


@pytest.mark.parametrize(
    ("x", "w", "stride", "padding", "dilation", "groups"),
    [
        ((2, 3, 33, 31), (35, 3, 7, 7), (2, 2), ((3, 3), (3, 3)), ONE, 1),
        ((2, 19, 7, 7), (33, 19, 1, 1), ONE, NONE, ONE, 1),
        ((1, 33, 15, 14), (40, 33, 1, 1), (2, 3), NONE, ONE, 1),
        ((1, 16, 30, 31), (96, 16, 3, 3), (2, 2), SAME, ONE, 1),
        ((1, 20, 9, 12), (17, 20, 3, 2), (2, 1), ((0, 1), (2, 0)), (2, 3), 1),
        ((2, 36, 8, 9), (54, 12, 3, 3), (1, 2), SAME, ONE, 3),
        ((1, 600, 3, 4), (16, 600, 1, 2), ONE, NONE, ONE, 1),
        ((2, 24, 40), (20, 24, 5), (3,), ((2, 1),), (2,), 1),
        ((1, 8, 9, 9), (70, 8, 3, 3), ONE, SAME, ONE, 1),
        # fewer multiplications
        ((2, 32, 14, 14), (64, 32, 3, 3), ONE, SAME, ONE, 1),
        ((1, 300, 7, 5), (17, 300, 3, 3), ONE, SAME, ONE, 1),
        ((1, 17, 1, 1), (33, 17, 3, 3), ONE, SAME, ONE, 1),
        ((2, 40, 9, 3), (40, 20, 3, 3), ONE, ((0, 2), (3, 0)), ONE, 2),
        ((1, 16, 3, 40), (16, 16, 3, 3), ONE, NONE, ONE, 1),
    ],
)  # fmt: skip
def test_conv_with_the_channels_last(
    threads: int, x: Any, w: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> None:
    image, weight, bias = numbers(*x), numbers(*w, seed=1), numbers(w[0])
    convolved = reference_conv(image, weight, stride, padding, dilation, groups)
    truth = convolved + bias.reshape(-1, *[1] * (len(x) - 2))
    residual = numbers(*truth.shape, seed=2)
    by_one = {*stride, *dilation} == {1}
    packed = kernels.pack_conv(weight, groups, by_one)
    windows = by_one and w[2:] == (3, 3) and w[1] >= 16
    assert packed.layout == (library.WINOGRAD if windows else library.LAST)
    for given, other in ((image, residual), (last(image), last(residual))):
        args = given, weight, stride, padding, dilation, groups
        got = kernels.conv(*args, packed, bias, "gelu", other)
        close(got, EXACT["gelu"](truth + residual))
        assert np.moveaxis(got, 1, -1).flags.c_contiguous
        close(kernels.conv(*args, packed), convolved)
        close(kernels.conv(*args, None, bias, "relu"), np.maximum(truth, 0))


@pytest.mark.parametrize("channels", [16, 96, 256, 520])
def test_fewer_multiplications_are_nearly_as_exact(channels: int) -> None:
    """Of numbers that are all positive, the worst there are."""
    image, weight = np.abs(numbers(1, channels, 14, 14)), np.abs(numbers(32, channels, 3, 3, seed=1))
    args = image, weight, ONE, SAME, ONE, 1
    truth = reference_conv(*args)
    one, other = (
        np.abs(kernels.conv(*args, kernels.pack_conv(weight, 1, by_one)) - truth).max() for by_one in (True, False)
    )
    assert one <= FACTORS["native", "float32"] * other


@pytest.mark.parametrize("size", [(0, 32, 5, 5), (1, 32, 1, 1), (2, 32, 2, 0)])
def test_conv_of_next_to_nothing(size: Any) -> None:
    image = last(numbers(*size))
    for out, kernel, padding in ((16, 1, 0), (16, 3, 1), (20, 3, 2)):
        if size[-1] + 2 * padding < kernel:
            continue
        weight, around = numbers(out, 32, kernel, kernel), ((padding, padding),) * 2
        packed = kernels.pack_conv(weight, 1, by_one=True)
        args = image, weight, ONE, around, ONE, 1
        close(kernels.conv(*args, packed, numbers(out)), reference_conv(*args) + numbers(out).reshape(-1, 1, 1))


@pytest.mark.parametrize(
    ("x", "kernel", "stride", "padding", "dilation"),
    [
        ((2, 30, 9, 11), (3, 3), ONE, SAME, ONE),
        ((1, 17, 12, 9), (5, 2), (2, 1), ((2, 0), (1, 1)), (1, 2)),
        ((1, 64, 7, 7), (7, 7), ONE, ((3, 3), (3, 3)), ONE),
        ((2, 20, 30), (4,), (3,), ((3, 0),), (2,)),
    ],
)  # fmt: skip
def test_channels_by_themselves_with_the_channels_last(
    threads: int, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any
) -> None:
    image, weight, bias = numbers(*x), numbers(x[1], 1, *kernel, seed=1), numbers(x[1])
    truth = reference_conv(image, weight, stride, padding, dilation, x[1]) + bias.reshape(-1, *[1] * (len(x) - 2))
    laid = kernels.lay_depthwise(weight)
    assert np.array_equal(laid, weight) and np.shares_memory(kernels.lay_depthwise(laid), laid)
    for given in (image, last(image)):
        got = kernels.conv(given, laid, stride, padding, dilation, x[1], bias=bias, activation="silu")
        close(got, EXACT["silu"](truth))
        assert np.moveaxis(got, 1, -1).flags.c_contiguous


def test_results_keep_the_order_of_memory() -> None:
    """So that nothing is copied between convolutions."""
    image = last(numbers(2, 20, 5, 6))
    scale, other = numbers(2, 20, 1, 1), numbers(2, 20, 5, 6)
    for got, truth in (
        (kernels.unary(image, "relu"), np.maximum(image, 0)),
        (kernels.binary(image, scale, "mul"), image.astype(np.float64) * scale),
        (kernels.binary(scale, image, "sub"), scale - image.astype(np.float64)),
        (kernels.binary(image, other, "add"), image.astype(np.float64) + other),
        (kernels.pool(image, (2, 2), (2, 2), NONE, False), None),
    ):
        if truth is not None:
            close(got, truth)
        assert got.transpose(0, 2, 3, 1).flags.c_contiguous
    close(kernels.binary(other, image, "div"), other.astype(np.float64) / image)
    for order in ((3, 0, 1, 2), (0, 2, 3, 1), (2, 1, 0, 3), (1, 0, 3, 2)):
        moved = numbers(3, 70, 5, 300).transpose(order)
        copied = kernels.copy(moved)
        assert copied.flags.c_contiguous and np.array_equal(copied, moved)
        close(kernels.unary(moved[:, ::-1], "silu"), EXACT["silu"](moved[:, ::-1].astype(np.float64)))


@pytest.mark.parametrize("total", [False, True])
def test_pool(threads: int, total: bool) -> None:
    for shape, kernel, stride, padding in (
        ((2, 3, 9, 11), (3, 3), (2, 2), ((1, 1), (1, 1))),
        ((1, 5, 8, 8), (2, 3), (1, 2), ((0, 0), (1, 0))),
        ((2, 4, 17), (5,), (5,), ((0, 3),)),
        ((2, 19, 9, 11), (3, 3), (2, 2), ((1, 1), (1, 1))),
    ):
        x = numbers(*shape)
        x[0, 0, 0] = np.nan
        reference = get_backend("numpy").namespace()
        method = reference.sum_pool if total else reference.max_pool
        truth = method(x.astype(np.float64), kernel, stride, padding)
        close(kernels.pool(x, kernel, stride, padding, total), truth)
        close(kernels.pool(last(x), kernel, stride, padding, total), truth)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_summed_in_float32_and_stays_half(dtype: str) -> None:
    native, exact = get_backend("native").namespace(), get_backend("numpy").namespace()
    x, w = numbers(2, 3, 9, 8).astype(numpy_dtype(dtype)), numbers(5, 3, 2, 2).astype(numpy_dtype(dtype))
    one, two, none = (1, 1), (2, 2), ((0, 0), (0, 0))
    for method, args in (
        ("conv", (x, w, one, none, one, 1)),
        ("max_pool", (x, two, two, none)),
        ("sum_pool", (x, two, two, none)),
        ("matmul", (x, x.swapaxes(2, 3))),
    ):
        got = getattr(native, method)(*args)
        wide = (a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in args)
        truth = getattr(exact, method)(*wide)
        assert got.dtype == numpy_dtype(dtype)
        assert np.abs(got.astype(np.float64) - truth).max() <= TOLERANCES["native", dtype] * np.abs(truth).max()


def test_embedding() -> None:
    table = numbers(9, 5)
    index = np.array([[0, 8, 3], [3, 3, 1]])
    assert (kernels.embedding(table, index) == table[index]).all()
    assert (kernels.embedding(table.astype(np.float16), index[:0]) == table.astype(np.float16)[index[:0]]).all()
    for wrong in (-1, 9):
        with pytest.raises(IndexError, match="9 rows"):
            kernels.embedding(table, np.array([wrong]))


def test_what_does_not_fit_is_an_error() -> None:
    packed = kernels.pack_weight(numbers(4, 6))
    with pytest.raises(ValueError, match="6 inputs is given 5"):
        kernels.linear(numbers(3, 5), packed)
    with pytest.raises(ZooError, match="zoo_linear"):
        library.run(library.Linear(m=1, k=5, b=packed.handle))
    with pytest.raises(ZooError, match="float32, bfloat16, int8"):
        kernels.pack_weight(numbers(4, 6), "int4")
    for wrong in (numbers(4, 6).astype(np.float64), numbers(4, 6).astype(np.int8), numbers(2, 4, 6)):
        with pytest.raises(ZooError, match=r"cannot be packed[\s\S]*float32 \[out, in\]"):
            kernels.pack_weight(wrong, "int8")
    assert not library.library().zoo_pack_right_as(numbers(4, 6).ctypes.data, 6, 4, 1, 6, 3)
    assert not library.library().zoo_pack_right_as(None, 6, 4, 1, 6, 2)
    with pytest.raises(ZooError, match="zoo_attention"):
        library.run(library.Attention(kv_group=1, precision=library.PRECISIONS["int8"]))
    convolution = kernels.pack_conv(numbers(4, 6, 1, 1), 1)
    with pytest.raises(ZooError, match="zoo_linear"):
        library.run(library.Linear(m=1, k=6, b=convolution.handle))
    with pytest.raises(ZooError, match="zoo_conv"):
        library.run(library.Conv(weight=packed.handle, groups=1, channels=6, out_channels=4))
    with pytest.raises(ZooError, match="avx"):
        library.set_isa("mmx")
    with pytest.raises(ValueError, match="threads"):
        library.set_threads(-1)


def misaligned(x: np.ndarray) -> np.ndarray:
    """The same numbers, none of them where a float32 may lie."""
    raw = np.zeros(x.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(x.tobytes(), np.uint8)
    moved = raw[1:].view(x.dtype).reshape(x.shape)
    assert not moved.flags.aligned
    return moved


def packed_fields(x: np.ndarray) -> np.ndarray:
    """The same numbers as a field of records of five bytes: their distance is no whole number of them."""
    records = np.zeros(x.shape, np.dtype([("flag", "i1"), ("number", x.dtype)]))
    records["number"] = x
    return records["number"]


@pytest.mark.parametrize("moved", [misaligned, packed_fields])
def test_arrays_that_lie_anywhere(moved: Callable[[np.ndarray], np.ndarray]) -> None:
    x, w, bias = numbers(6, 40), numbers(40, 40, seed=1), numbers(40, seed=2)
    heads, image = numbers(2, 3, 7, 8), numbers(1, 3, 6, 7)
    kernel = numbers(5, 3, 3, 3)
    one, none = (1, 1), ((0, 0), (0, 0))
    for function, given in (
        (lambda x, w, b: kernels.linear(x, kernels.pack_weight(w), b, "gelu", x), (x, w, bias)),
        (lambda x, w, b: kernels.linear(x, w, b, "gelu", x), (x, w, bias)),
        (kernels.matmul, (x, w)),
        (lambda x, w, b: kernels.norm(x, 40, b, b, 1e-5, False, x)[0], (x, w, bias)),
        (kernels.softmax, (x,)),
        (lambda x: kernels.unary(x, "tanh"), (x,)),
        (lambda x, b: kernels.binary(x, b, "mul"), (x, bias)),
        (kernels.copy, (x,)),
        (kernels.attention, (heads, heads, heads)),
        (lambda x, w: kernels.conv(x, w, one, none, one, 1), (image, kernel)),
        (lambda x, w: kernels.conv(x, w, one, none, one, 3), (image, kernel[:3, :1])),
        (lambda x: kernels.pool(x, (2, 2), one, none, True), (image,)),
        (lambda table: kernels.embedding(table, np.array([3, 1])), (x,)),
    ):
        got, expected = function(*map(moved, given)), function(*given)
        assert np.array_equal(got, expected)
    assert np.array_equal(kernels.embedding(x, moved(np.array([3, 1]))), x[[3, 1]])


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_another_dtype_is_an_error(dtype: Any) -> None:
    x, good = np.ones((4, 8), dtype), np.ones((4, 8), np.float32)
    packed = kernels.pack_weight(good)
    for call in (
        lambda: kernels.linear(x, packed),
        lambda: kernels.linear(good, packed, x[0, :4]),
        lambda: kernels.matmul(good, x.T),
        lambda: kernels.norm(good, 8, x[0], None, 1e-5),
        lambda: kernels.softmax(x),
        lambda: kernels.unary(x, "exp"),
        lambda: kernels.binary(good, x, "add"),
        lambda: kernels.attention(*[x.reshape(1, 1, 4, 8)] * 3),
        lambda: kernels.pack_weight(x),
    ):
        with pytest.raises(ZooError, match=np.dtype(dtype).name):
            call()


def test_sizes_that_contradict_each_other_are_an_error() -> None:
    x, packed = numbers(3, 6), kernels.pack_weight(numbers(4, 6))
    image, weight = numbers(1, 2, 5, 5), numbers(3, 2, 2, 2)
    heads = numbers(2, 3, 7, 8)
    one, none = (1, 1), ((0, 0), (0, 0))
    for call in (
        lambda: kernels.linear(x, packed, numbers(3)),
        lambda: kernels.linear(x, packed, residual=numbers(2, 4)),
        lambda: kernels.matmul(x, x),
        lambda: kernels.norm(x, 6, numbers(5), None, 1e-5),
        lambda: kernels.norm(x, 5, None, None, 1e-5),
        lambda: kernels.norm(x, 0, None, None, 1e-5),
        lambda: kernels.norm(x, 6, None, None, 1e-5, residual=numbers(3, 5)),
        lambda: kernels.binary(x, numbers(5), "add"),
        lambda: kernels.attention(heads, heads[:, :, :5], heads),
        lambda: kernels.attention(heads, heads[:, :2], heads[:, :2]),
        lambda: kernels.attention(heads, heads, heads, kernels.PreparedMask(numbers(7, 6))),
        lambda: kernels.attention(heads, heads, heads, kernels.PreparedMask(numbers(2, 2, 7, 7))),
        lambda: kernels.conv(image, weight, one, none, one, 1, bias=numbers(2)),
        lambda: kernels.conv(image, weight, one, none, one, 1, residual=numbers(1, 3, 5, 5)),
        lambda: kernels.conv(image, weight, one, none, one, 1, packed=kernels.pack_conv(numbers(3, 2, 1, 1), 1)),
        lambda: kernels.conv(image, numbers(3, 2, 9, 9), one, none, one, 1),
        lambda: kernels.pool(image, (9, 9), one, none, False),
    ):
        with pytest.raises(ValueError):
            call()


def test_nothing_in_is_nothing_out() -> None:
    none, weight = numbers(0, 6), kernels.pack_weight(numbers(4, 6))
    assert kernels.linear(none, weight).shape == (0, 4)
    assert kernels.matmul(none, numbers(6, 0)).shape == (0, 0)
    assert not kernels.matmul(numbers(2, 0), numbers(0, 3)).any()
    assert kernels.norm(none, 6, None, None, 1e-5)[0].shape == (0, 6)
    assert kernels.softmax(numbers(3, 0)).shape == (3, 0)
    assert kernels.binary(none, numbers(6), "add").shape == (0, 6)
    assert kernels.attention(*[numbers(2, 3, 0, 8)] * 3).shape == (2, 3, 0, 8)
    assert kernels.embedding(numbers(5, 3), np.zeros((0, 2), np.int64)).shape == (0, 2, 3)
    image = numbers(0, 2, 5, 5)
    assert kernels.conv(image, numbers(3, 2, 2, 2), (1, 1), ((0, 0), (0, 0)), (1, 1), 1).shape == (0, 3, 4, 4)
    assert kernels.pool(image, (2, 2), (1, 1), ((0, 0), (0, 0)), False).shape == (0, 2, 4, 4)


def test_more_than_memory_is_an_error() -> None:
    loaded, x = library.library(), numbers(4)
    assert not loaded.zoo_pack_right(x.ctypes.data, 1 << 40, 1 << 40, 1, 1)
    assert not loaded.zoo_pack_conv(x.ctypes.data, 1 << 30, 1 << 20, 1 << 30, 1, library.PLANES)
    with pytest.raises(MemoryError):
        kernels.binary(np.broadcast_to(x[0], (1 << 23, 1 << 23)), x[:1], "add")


def test_calls_from_many_threads() -> None:
    x, weight = numbers(50, 200), numbers(300, 200)
    packed, failures = kernels.pack_weight(weight), []
    truth = kernels.linear(x, packed)

    def work() -> None:
        for _ in range(30):
            if not (kernels.linear(x, packed) == truth).all():
                failures.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def test_a_fork_after_use() -> None:
    code = """
import os, numpy as np
from zoo.native import kernels, library
from zoo.tolerances import FACTORS
library.set_threads(3)
x = np.ones((200, 300), np.float32)
packed = kernels.pack_weight(x)
kernels.linear(x, packed)
child = os.fork()
if child == 0:
    os._exit(int(kernels.linear(x, packed)[0, 0] != 300))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT, timeout=60)


def test_the_environment_chooses_the_instruction_set(isa: str) -> None:
    code = "from zoo.native import library; print(library.get_isa())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"ZOO_NATIVE_ISA": isa}, capture_output=True, text=True
    )
    assert done.stdout.strip() == isa


def test_an_instruction_set_that_is_not_there_is_named() -> None:
    code = "from zoo.native import library; library.library()"
    environment = os.environ | {"ZOO_NATIVE_ISA": "foo"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "ZOO_NATIVE_ISA" in done.stderr and "got: foo" in done.stderr
