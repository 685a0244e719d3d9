"""The dtypes of a graph, by torch's names."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DTYPES", "DType"]

DTYPES = (
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
    "complex64",
    "complex128",
)
"""Every dtype that a value can have."""


@dataclass(frozen=True, slots=True)
class DType:
    """A dtype as an argument of a node, by torch's name ("float32")."""

    name: str
