"""Dropout, whose randomness is a key that the call passes; without one nothing is dropped.

What is dropped follows from the key, from the operation's number in its graph and from the element's position alone,
in whole-number arithmetic: one key drops the same elements on every framework.

A key is int32 [2]. Every step that mixes it is murmur3's finalizer (Austin Appleby, public domain,
https://github.com/aappleby/smhasher/blob/master/src/MurmurHash3.cpp, fmix32), a bijection of 32-bit numbers.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from zoo.errors import InputError
from zoo.ops.table import op

__all__ = ["kept", "key_of"]


@op("dropout", draws=True, whole=True)
def dropout(xp: Any, x: Any, p: float, train: bool, *, rng: Any = None) -> Any:
    """Each element is zeroed with probability p, the others divided by 1 - p; `rng` is (key, number of the op)."""
    return _dropped(xp, x, p, xp.shape(x), rng) if train and p and rng is not None else x


@op("feature_dropout", draws=True, whole=True)
def feature_dropout(xp: Any, x: Any, p: float, train: bool, *, rng: Any = None) -> Any:
    """Dropout of whole channels of [N, C, *]."""
    if not train or not p or rng is None:
        return x
    return _dropped(xp, x, p, (*xp.shape(x)[:2], *(1,) * (xp.ndim(x) - 2)), rng)


@op("alpha_dropout", draws=True, whole=True)
def alpha_dropout(xp: Any, x: Any, p: float, train: bool, *, rng: Any = None) -> Any:
    """Dropout that keeps mean and variance of self-normalising networks: https://arxiv.org/abs/1706.02515."""
    if not train or not p or rng is None:
        return x
    low, dtype = -1.7580993408473766, xp.dtype(x)  # what SELU tends to: -scale * alpha
    scale = 1 / math.sqrt((1 - p) * (1 + p * low * low)) if p < 1 else 0.0
    on = xp.cast(kept(xp, rng, xp.shape(x), p), dtype)
    shift = xp.subtract(xp.asarray(scale * low * (1 - p), dtype), xp.multiply(on, xp.asarray(scale * low, dtype)))
    return xp.add(xp.multiply(x, xp.multiply(on, xp.asarray(scale, dtype))), shift)


def kept(xp: Any, rng: Any, shape: Any, p: float) -> Any:
    """bool `shape`: which elements dropout of probability p keeps."""
    key, number = rng
    salts = [xp.slice(key, 0, i, i + 1) for i in (0, 1)]
    salts[0] = _mixed(xp, xp.add(salts[0], _int32(xp, _STEP * (number + 1))))
    # a step apart from the first: elements would otherwise meet the salt that they were mixed with, and cancel
    salts[1] = _mixed(xp, xp.add(xp.bitwise_xor(salts[1], salts[0]), _int32(xp, _STEP)))
    bits = xp.arange(0, math.prod(shape), 1, "int32")
    for salt in salts:  # once alone would give two keys the same numbers, a few places apart
        bits = _mixed(xp, xp.bitwise_xor(bits, salt))
    if p >= 1:
        return xp.full(shape, False, "bool")
    # a number from -2^31 to 2^31 - 1 is below the bound with probability p
    return xp.reshape(xp.greater_equal(bits, _int32(xp, round(p * 2**32) - 2**31)), shape)


def key_of(seed: Any) -> np.ndarray:
    """The key, int32 [2], of a seed: a whole number, of which 64 bits count, or two of 32 bits each.

    Raises:
        InputError: it is something else.
    """
    try:
        words = [operator.index(part) for part in np.asarray(seed, object).reshape(-1).tolist()]
    except TypeError:
        words = []
    if len(words) not in (1, 2):
        raise InputError(
            "randomness comes from a seed, or from what the framework keeps it in",
            where="rng",
            expected="a whole number, two, a torch.Generator, a JAX key, a tf.random.Generator, …",
            got=repr(seed)[:80],
        )
    if len(words) == 1:
        words = [words[0], words[0] >> 32]
    return np.array([word & 0xFFFFFFFF for word in words], np.uint32).view(np.int32)


def _dropped(xp: Any, x: Any, p: float, shape: Any, rng: Any) -> Any:
    scale = 1 / (1 - p) if p < 1 else 0.0
    noise = xp.multiply(xp.cast(kept(xp, rng, shape, p), xp.dtype(x)), xp.asarray(scale, xp.dtype(x)))
    return xp.multiply(x, noise)


_STEP = 0x9E3779B9  # 2^32 over the golden ratio: numbers of operations, far apart


def _mixed(xp: Any, x: Any) -> Any:
    x = xp.bitwise_xor(x, _shifted(xp, x, 16))
    x = xp.multiply(x, _int32(xp, 0x85EBCA6B))
    x = xp.bitwise_xor(x, _shifted(xp, x, 13))
    x = xp.multiply(x, _int32(xp, 0xC2B2AE35))
    return xp.bitwise_xor(x, _shifted(xp, x, 16))


def _shifted(xp: Any, x: Any, places: int) -> Any:
    """x >> places without its sign."""
    return xp.bitwise_and(xp.right_shift(x, _int32(xp, places)), _int32(xp, 2 ** (32 - places) - 1))


def _int32(xp: Any, number: int) -> Any:
    """A number modulo 2^32, as an array of one dim: NumPy warns of scalars that wrap around."""
    return xp.asarray([(number + 2**31) % 2**32 - 2**31], "int32")
