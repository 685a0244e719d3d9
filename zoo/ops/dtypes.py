"""PyTorch's type promotion, over dtype names.

Source: torch documentation, "Tensor Attributes: torch.dtype" (categories; tensors with dims before zero-dim tensors
before Python numbers).
"""

from __future__ import annotations

from typing import Any

from zoo.errors import GraphError

__all__ = [
    "FLOAT",
    "is_complex",
    "is_float",
    "is_integer",
    "promote",
    "promote_types",
    "result_type",
    "to_float",
    "to_wide",
]

FLOAT = "float32"
"""The dtype that an integer becomes when an operation needs floats (torch's default dtype)."""

_NUMBERS = {bool: "bool", int: "int64", float: FLOAT}
_INTEGERS = ("uint8", "int8", "int16", "int32", "int64")
_UNSIGNED = ("uint16", "uint32", "uint64")  # which torch computes with alone
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_COMPLEX = ("complex64", "complex128")


def is_float(dtype: str) -> bool:
    return dtype in _FLOATS


def is_complex(dtype: str) -> bool:
    return dtype in _COMPLEX


def is_integer(dtype: str) -> bool:
    """Whether values are whole numbers, bool included."""
    return dtype in _INTEGERS or dtype in _UNSIGNED or dtype == "bool"


def promote_types(a: str, b: str) -> str:
    """The dtype that holds values of both, as torch.promote_types says.

    Raises:
        GraphError: torch has none for uint16, uint32 and uint64 beside another dtype of whole numbers.
    """
    if a == b:
        return a
    if _category(a) > _category(b):
        a, b = b, a
    if _category(a) < _category(b):
        if is_complex(b) and a == "float64":
            return "complex128"
        return b
    if {a, b} == {"float16", "bfloat16"}:
        return "float32"
    if "uint8" in (a, b):
        other = b if a == "uint8" else a
        return "int16" if other == "int8" else other
    if a in _UNSIGNED or b in _UNSIGNED:
        raise GraphError("torch has no common dtype of these", got=f"{a}, {b}")
    order = _INTEGERS if a in _INTEGERS else _FLOATS if a in _FLOATS else _COMPLEX
    return max(a, b, key=order.index)


def result_type(xp: Any, *args: Any) -> str:
    """The dtype of an elementwise operation's result on arrays and Python numbers."""
    by_priority: list[str | None] = [None, None, None]  # arrays with dims, zero-dim arrays, numbers
    for arg in args:
        if type(arg) in _NUMBERS:  # exact: NumPy's float64 scalar is a float, too
            level, dtype = 2, _NUMBERS[type(arg)]
        elif not hasattr(arg, "shape"):  # a size that is a symbol
            level, dtype = 2, "int64"
        else:
            level, dtype = (0 if xp.ndim(arg) else 1), xp.dtype(arg)
        known = by_priority[level]
        by_priority[level] = dtype if known is None else promote_types(known, dtype)
    result: str | None = None
    for lower in by_priority:
        if lower is None or (result is not None and _category(lower) <= _category(result)):
            continue  # a lower level matters only when its category is higher
        # floats that become complex keep their width; a float number next to integers is the default
        result = _COMPLEX[result == "float64"] if result is not None and is_float(result) else lower
    assert result is not None
    return result


def promote(xp: Any, *args: Any) -> tuple[Any, ...]:
    """`args` as arrays of their common dtype."""
    dtype = result_type(xp, *args)
    return tuple(xp.asarray(arg, dtype) for arg in args)


def to_float(xp: Any, x: Any) -> Any:
    """`x`, or `x` in the default float dtype if it holds integers."""
    return xp.cast(x, FLOAT) if is_integer(xp.dtype(x)) else x


def to_wide(xp: Any, x: Any) -> Any:
    """`x`, or `x` in float32 if it is of half precision: what torch's kernels sum and exponentiate in."""
    return xp.cast(x, "float32") if xp.dtype(x) in ("float16", "bfloat16") else x


def _category(dtype: str) -> int:
    if dtype == "bool":
        return 0
    return 1 if is_integer(dtype) else 2 if dtype in _FLOATS else 3
