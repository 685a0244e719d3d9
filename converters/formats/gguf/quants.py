"""ggml's number types: their sizes, and quantised blocks to and from float32, bit for bit as ggml does it.

A quantised row is a sequence of blocks, each a few scales and the small integers that they scale.
Source of the layouts: ggml/src/ggml-common.h and ggml-quants.c in https://github.com/ggml-org/llama.cpp.
The arithmetic is float32 in ggml's order, so that every program that reads a file gets the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from zoo.errors import FormatError

__all__ = ["DEQUANTISABLE", "PLAIN", "TYPES", "GgmlType", "dequantise", "q8_0_error", "quantise_q8_0"]


class GgmlType(NamedTuple):
    """A number type: so many values in so many bytes."""

    name: str
    values: int
    nbytes: int


TYPES: Mapping[int, GgmlType] = MappingProxyType(
    {
        0: GgmlType("F32", 1, 4),
        1: GgmlType("F16", 1, 2),
        2: GgmlType("Q4_0", 32, 18),
        3: GgmlType("Q4_1", 32, 20),
        6: GgmlType("Q5_0", 32, 22),
        7: GgmlType("Q5_1", 32, 24),
        8: GgmlType("Q8_0", 32, 34),
        9: GgmlType("Q8_1", 32, 40),
        10: GgmlType("Q2_K", 256, 84),
        11: GgmlType("Q3_K", 256, 110),
        12: GgmlType("Q4_K", 256, 144),
        13: GgmlType("Q5_K", 256, 176),
        14: GgmlType("Q6_K", 256, 210),
        15: GgmlType("Q8_K", 256, 292),
        16: GgmlType("IQ2_XXS", 256, 66),
        17: GgmlType("IQ2_XS", 256, 74),
        18: GgmlType("IQ3_XXS", 256, 98),
        19: GgmlType("IQ1_S", 256, 50),
        20: GgmlType("IQ4_NL", 32, 18),
        21: GgmlType("IQ3_S", 256, 110),
        22: GgmlType("IQ2_S", 256, 82),
        23: GgmlType("IQ4_XS", 256, 136),
        24: GgmlType("I8", 1, 1),
        25: GgmlType("I16", 1, 2),
        26: GgmlType("I32", 1, 4),
        27: GgmlType("I64", 1, 8),
        28: GgmlType("F64", 1, 8),
        29: GgmlType("IQ1_M", 256, 56),
        30: GgmlType("BF16", 1, 2),
        34: GgmlType("TQ1_0", 256, 54),
        35: GgmlType("TQ2_0", 256, 66),
        39: GgmlType("MXFP4", 32, 17),
        40: GgmlType("NVFP4", 64, 36),
        41: GgmlType("Q1_0", 128, 18),
    }
)
"""Every type of ggml by its number."""

PLAIN: Mapping[str, str] = MappingProxyType(
    {
        "F32": "float32",
        "F16": "float16",
        "BF16": "bfloat16",
        "F64": "float64",
        "I8": "int8",
        "I16": "int16",
        "I32": "int32",
        "I64": "int64",
    }
)
"""Types that are stored as they are -> dtype."""

CHUNK = 1 << 20
"""How many values are dequantised at a time, to keep what lies between bytes and result small."""


def dequantise(blocks: np.ndarray, kind: GgmlType) -> np.ndarray:
    """Quantised blocks as numbers.

    Args:
        blocks: uint8, [number of blocks, kind.nbytes].
        kind: a type in `DEQUANTISABLE`.

    Returns:
        float32, [number of blocks, kind.values].
    """
    out = np.empty((len(blocks), kind.values), np.float32)
    step = CHUNK // kind.values
    with np.errstate(all="ignore"):  # scales may be infinite: the result is then ggml's, too
        for start in range(0, len(blocks), step):
            out[start : start + step] = DEQUANTISABLE[kind.name](blocks[start : start + step])
    return out


def quantise_q8_0(values: np.ndarray) -> np.ndarray:
    """float32 [number of blocks, 32] as Q8_0 blocks: uint8 [number of blocks, 34].

    Raises:
        FormatError: a value is not finite, or so large that a block's scale does not fit float16.
    """
    largest = np.abs(values).max(axis=1, keepdims=True, initial=0)
    with np.errstate(all="ignore"):  # the inverse of a tiny scale is infinite; the stored scale is then zero
        scales = largest / np.float32(127)
        halves = scales.astype("<f2")
        if not np.isfinite(halves).all():
            raise FormatError(
                "Q8_0 holds finite values only", expected="at most 65504 * 127 in size", got=float(largest.max())
            )
        scaled = values * np.where(scales == 0, np.float32(0), np.float32(1) / scales)
        size = np.abs(scaled)
        down = np.floor(size)
        rounded = np.copysign(down + (size - down >= 0.5), scaled)  # halves away from zero, as C's roundf
        return np.concatenate([halves.view(np.uint8), rounded.astype(np.int8).view(np.uint8)], axis=1)


def q8_0_error(largest: float) -> float:
    """How far a value may be from what Q8_0 makes of it, where none of its tensor is larger than `largest`.

    Half a step of a block, and the rounding of the step itself to float16, of which there may be 127.
    """
    step = largest / 127
    return step / 2 + 127 * max(step * 2.0**-11, 2.0**-25)


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at a byte of every block, as float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """[n, bytes] -> [n, 2 * bytes]: the low halves of the bytes, then the high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _bits(packed: np.ndarray) -> np.ndarray:
    """[n, 4] -> [n, 32]: every bit, lowest first, at the place of a fifth bit."""
    return np.unpackbits(packed, axis=1, bitorder="little") << 4


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    return (_nibbles(blocks[:, 2:]).astype(np.float32) - np.float32(8)) * _half(blocks, 0)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    return _nibbles(blocks[:, 4:]).astype(np.float32) * _half(blocks, 0) + _half(blocks, 2)


def _q5_0(blocks: np.ndarray) -> np.ndarray:
    values = _nibbles(blocks[:, 6:]) | _bits(blocks[:, 2:6])
    return (values.astype(np.float32) - np.float32(16)) * _half(blocks, 0)


def _q5_1(blocks: np.ndarray) -> np.ndarray:
    values = _nibbles(blocks[:, 8:]) | _bits(blocks[:, 4:8])
    return values.astype(np.float32) * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _half(blocks, 0)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    return _scale_and_shift(blocks, _by_pairs(blocks[:, 16:144]))


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    high = blocks[:, 16:48].reshape(-1, 1, 32)
    fifth = (high >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1)) & 1
    return _scale_and_shift(blocks, _by_pairs(blocks[:, 48:176]) | fifth << 4)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    # Two halves of 128 values: 64 bytes of low four bits and 32 bytes of high two bits each.
    low = blocks[:, :128].reshape(-1, 2, 64)
    parts = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    high = (high >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)) & 3
    values = (parts | high << 4).reshape(-1, 16, 16).astype(np.float32) - np.float32(32)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32) * _half(blocks, 208)
    return (values * scales[:, :, None]).reshape(-1, 256)


def _by_pairs(packed: np.ndarray) -> np.ndarray:
    """[n, 128] -> [n, 8, 32]: each 32 bytes hold one group of values in their low halves and the next in the high."""
    groups = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([groups & 15, groups >> 4], axis=2).reshape(-1, 8, 32)


def _scale_and_shift(blocks: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Q4_K and Q5_K: eight groups of 32 values, each with a six-bit scale and a six-bit minimum in bytes 4 to 16."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6) << 4], axis=1).astype(np.float32)
    lows = np.concatenate([second & 63, third >> 4 | (second >> 6) << 4], axis=1).astype(np.float32)
    scales, lows = scales * _half(blocks, 0), lows * _half(blocks, 2)
    return (values.astype(np.float32) * scales[:, :, None] - lows[:, :, None]).reshape(-1, 256)


DEQUANTISABLE: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {
        "Q4_0": _q4_0,
        "Q4_1": _q4_1,
        "Q5_0": _q5_0,
        "Q5_1": _q5_1,
        "Q8_0": _q8_0,
        "Q4_K": _q4_k,
        "Q5_K": _q5_k,
        "Q6_K": _q6_k,
    }
)
"""Quantised types that can be read: blocks [n, bytes] -> values [n, values per block]."""
