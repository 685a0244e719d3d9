"""Arithmetic on sizes: whole numbers that follow from the inputs' dims, named `sym.*` after torch's SymInt.

A size is a Python int wherever shapes are known while the graph is run (JAX, NumPy, torch), and a scalar integer
array where they are not (TensorFlow with None dims), so only operators that both have are used.
"""

from __future__ import annotations

import math
from typing import Any

from zoo.ops.dtypes import is_float
from zoo.ops.table import op


@op("sym_size.int")
def sym_size(xp: Any, x: Any, dim: int) -> Any:
    return xp.shape(x)[dim]


@op("sym_numel")
def sym_numel(xp: Any, x: Any) -> Any:
    return math.prod(xp.shape(x))


@op("sym.add")
def add(xp: Any, a: Any, b: Any) -> Any:
    a, b = _alike(xp, a, b)
    return a + b


@op("sym.sub")
def sub(xp: Any, a: Any, b: Any) -> Any:
    a, b = _alike(xp, a, b)
    return a - b


@op("sym.mul")
def mul(xp: Any, a: Any, b: Any) -> Any:
    a, b = _alike(xp, a, b)
    return a * b


@op("sym.floordiv")
def floordiv(xp: Any, a: Any, b: Any) -> Any:
    a, b = _alike(xp, a, b)
    return a // b


@op("sym.truediv")
def truediv(xp: Any, a: Any, b: Any) -> Any:
    a, b = _alike(xp, a, b)
    return a / b


@op("sym.mod")
def mod(xp: Any, a: Any, b: Any) -> Any:
    a, b = _alike(xp, a, b)
    return a % b


@op("sym.pow")
def pow_(xp: Any, a: Any, b: Any) -> Any:
    a, b = _alike(xp, a, b)
    return a**b


@op("sym.neg")
def neg(xp: Any, a: Any) -> Any:
    return -a


@op("sym.eq")
def eq(xp: Any, a: Any, b: Any) -> Any:
    return xp.size_equal(*_alike(xp, a, b))


@op("sym.ne")
def ne(xp: Any, a: Any, b: Any) -> Any:
    return not_(xp, eq(xp, a, b))


@op("sym.lt")
def lt(xp: Any, a: Any, b: Any) -> Any:
    a, b = _alike(xp, a, b)
    return a < b


@op("sym.le")
def le(xp: Any, a: Any, b: Any) -> Any:
    a, b = _alike(xp, a, b)
    return a <= b


@op("sym.gt")
def gt(xp: Any, a: Any, b: Any) -> Any:
    a, b = _alike(xp, a, b)
    return a > b


@op("sym.ge")
def ge(xp: Any, a: Any, b: Any) -> Any:
    a, b = _alike(xp, a, b)
    return a >= b


@op("sym.and")
def and_(xp: Any, a: Any, b: Any) -> Any:
    return a & b


@op("sym.or")
def or_(xp: Any, a: Any, b: Any) -> Any:
    return a | b


@op("sym.not")
def not_(xp: Any, a: Any) -> Any:
    return not a if isinstance(a, bool) else xp.logical_not(a)


@op("sym.ite")
def ite(xp: Any, condition: Any, a: Any, b: Any) -> Any:
    if isinstance(condition, bool):
        return a if condition else b
    return xp.size_where(condition, a, b)


@op("sym.max")
def max_(xp: Any, *sizes: Any) -> Any:
    result = sizes[0]
    for other in sizes[1:]:
        result = ite(xp, ge(xp, result, other), result, other)
    return result


@op("sym.min")
def min_(xp: Any, *sizes: Any) -> Any:
    result = sizes[0]
    for other in sizes[1:]:
        result = ite(xp, le(xp, result, other), result, other)
    return result


@op("sym.sum")
def sum_(xp: Any, sizes: Any) -> Any:
    result = 0
    for size in sizes:
        result = result + size
    return result


@op("sym.int")
def int_(xp: Any, a: Any) -> Any:
    return xp.size_int(a)


@op("sym.float")
def float_(xp: Any, a: Any) -> Any:
    return a * 1.0 if isinstance(a, int) else xp.cast(a, "float64")


@op("sym.floor")
def floor(xp: Any, a: Any) -> Any:
    return xp.size_int(a) if isinstance(a, int) else xp.size_int(a // 1)


@op("sym.ceil")
def ceil(xp: Any, a: Any) -> Any:
    return -floor(xp, -a)


@op("sym.round")
def round_(xp: Any, a: Any) -> Any:
    return round(a) if isinstance(a, (int, float)) else xp.size_int(xp.round(a))


@op("sym.sqrt")
def sqrt(xp: Any, a: Any) -> Any:
    return pow_(xp, a, 0.5)


def _alike(xp: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Both as float64 if one is a float and one an array: TensorFlow takes no float to an integer tensor."""
    arrays = [v for v in (a, b) if hasattr(v, "dtype")]
    if arrays and (isinstance(a, float) or isinstance(b, float) or any(is_float(xp.dtype(v)) for v in arrays)):
        return xp.asarray(a, "float64"), xp.asarray(b, "float64")
    return a, b
