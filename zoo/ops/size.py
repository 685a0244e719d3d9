"""Arithmetic on sizes: whole numbers that follow from the inputs' dims, named `sym.*` after torch's SymInt.

A size is a Python int wherever shapes are known while the graph is run, a symbol where JAX exports with symbolic
shapes, and a scalar integer array where TensorFlow traces with None dims; so only operators that all have are used.
`known` and `number` tell them apart: nothing else asks for the type of a size.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Any, TypeGuard

import numpy as np

from zoo.errors import LimitError, UnsupportedOp
from zoo.ops.dtypes import is_float
from zoo.ops.table import op

_BITS = 128
"""Of a power of whole numbers, at most."""


def known(size: Any, *values: int) -> TypeGuard[int]:
    """Whether a size is a number now (one of `values`, if any are given), no symbol and no scalar array."""
    return isinstance(size, int) and (not values or size in values)


def number(size: Any, what: str) -> int:
    """A size that must be a number now.

    Raises:
        UnsupportedOp: it is a symbol, or known only when the compiled program runs.
    """
    if not known(size):
        raise UnsupportedOp(
            f"{what} needs a size that is a number while the graph is traced",
            expected="a number",
            got=f"{type(size).__name__} {size}",
            do="give the input's dim a fixed size",
        )
    return size


@op("sym_size.int", size=True, by_shape=True)
def sym_size(xp: Any, x: Any, dim: int) -> Any:
    return xp.shape(x)[dim]


@op("sym_numel", size=True, by_shape=True)
def sym_numel(xp: Any, x: Any) -> Any:
    return math.prod(xp.shape(x))


@op("sym.add", size=True)
def add(xp: Any, a: Any, b: Any) -> Any:
    a, b = _alike(xp, a, b)
    return a + b


@op("sym.sub", size=True)
def sub(xp: Any, a: Any, b: Any) -> Any:
    a, b = _alike(xp, a, b)
    return a - b


@op("sym.mul", size=True)
def mul(xp: Any, a: Any, b: Any) -> Any:
    a, b = _alike(xp, a, b)
    return a * b


@op("sym.floordiv", size=True)
def floordiv(xp: Any, a: Any, b: Any) -> Any:
    a, b = _alike(xp, a, b)
    return a // b


@op("sym.truediv", size=True)
def truediv(xp: Any, a: Any, b: Any) -> Any:
    a, b = _alike(xp, a, b)
    return a / b


@op("sym.mod", size=True)
def mod(xp: Any, a: Any, b: Any) -> Any:
    a, b = _alike(xp, a, b)
    return a % b


@op("sym.pow", size=True)
def pow_(xp: Any, a: Any, b: Any) -> Any:
    a, b = _alike(xp, a, b)
    if isinstance(a, int) and isinstance(b, int) and a.bit_length() * b > _BITS:
        raise LimitError(
            "a power is larger than any size", expected=f"{_BITS} bits", got=f"about {a.bit_length()} * {b}"
        )
    return a**b


@op("sym.neg", size=True)
def neg(xp: Any, a: Any) -> Any:
    return -a


@op("sym.eq", size=True)
def eq(xp: Any, a: Any, b: Any) -> Any:
    return xp.size_equal(*_alike(xp, a, b))


@op("sym.ne", size=True)
def ne(xp: Any, a: Any, b: Any) -> Any:
    return not_(xp, eq(xp, a, b))


@op("sym.lt", size=True)
def lt(xp: Any, a: Any, b: Any) -> Any:
    a, b = _alike(xp, a, b)
    return a < b


@op("sym.le", size=True)
def le(xp: Any, a: Any, b: Any) -> Any:
    a, b = _alike(xp, a, b)
    return a <= b


@op("sym.gt", size=True)
def gt(xp: Any, a: Any, b: Any) -> Any:
    a, b = _alike(xp, a, b)
    return a > b


@op("sym.ge", size=True)
def ge(xp: Any, a: Any, b: Any) -> Any:
    a, b = _alike(xp, a, b)
    return a >= b


@op("sym.and", size=True)
def and_(xp: Any, a: Any, b: Any) -> Any:
    return a & b


@op("sym.or", size=True)
def or_(xp: Any, a: Any, b: Any) -> Any:
    return a | b


@op("sym.not", size=True)
def not_(xp: Any, a: Any) -> Any:
    return not a if isinstance(a, bool) else xp.logical_not(a)


@op("sym.ite", size=True)
def ite(xp: Any, condition: Any, a: Any, b: Any) -> Any:
    if isinstance(condition, bool):
        return a if condition else b
    return xp.size_where(condition, a, b)


@op("sym.max", size=True)
def max_(xp: Any, *sizes: Any) -> Any:
    return functools.reduce(xp.size_max, sizes)


@op("sym.min", size=True)
def min_(xp: Any, *sizes: Any) -> Any:
    return functools.reduce(xp.size_min, sizes)


@op("sym.sum", size=True)
def sum_(xp: Any, sizes: Any) -> Any:
    result = 0
    for size in sizes:
        result = result + size
    return result


@op("sym.int", size=True)
def int_(xp: Any, a: Any) -> Any:
    return xp.size_int(a)


@op("sym.float", size=True)
def float_(xp: Any, a: Any) -> Any:
    return a * 1.0 if known(a) else xp.cast(a, "float64")


@op("sym.floor", size=True)
def floor(xp: Any, a: Any) -> Any:
    return xp.size_int(a) if known(a) else xp.size_int(a // 1)


@op("sym.ceil", size=True)
def ceil(xp: Any, a: Any) -> Any:
    return -floor(xp, -a)


@op("sym.round", size=True)
def round_(xp: Any, a: Any) -> Any:
    return round(a) if isinstance(a, (int, float)) else xp.size_int(xp.round(a))


@op("sym.sqrt", size=True)
def sqrt(xp: Any, a: Any) -> Any:
    return pow_(xp, a, 0.5)


def scaled(xp: Any, size: Any, factor: float) -> Any:
    """The whole number below size * factor, as a product of floats has it."""
    near = None if known(size) else _ratio(factor)
    return xp.size_int(mul(xp, size, factor)) if near is None else size * near.numerator // near.denominator


@functools.cache
def _ratio(factor: float) -> Fraction | None:
    """Whole numbers that multiply and divide every size as the float does, if they are small: of symbols there are no
    floats."""
    near = Fraction(factor).limit_denominator(1 << 10)
    sizes = np.arange(1, 1 << 16)
    alike = np.floor(sizes * factor) == sizes * near.numerator // near.denominator
    return near if alike.all() else None


def joint(xp: Any, a: Any, b: Any) -> Any:
    """The size that `a` and `b` broadcast to."""
    if known(a, 1) or known(b, 1):
        return b if known(a, 1) else a
    return a if known(a) else b if known(b) else xp.size_joint(a, b)


def _alike(xp: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Both as float64 if one is a float and one an array: TensorFlow takes no float to an integer tensor."""
    arrays = [v for v in (a, b) if hasattr(v, "dtype")]
    if arrays and (isinstance(a, float) or isinstance(b, float) or any(is_float(xp.dtype(v)) for v in arrays)):
        return xp.asarray(a, "float64"), xp.asarray(b, "float64")
    return a, b
