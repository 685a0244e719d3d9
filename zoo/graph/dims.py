"""Dims: sizes as numbers, symbols, or expressions over symbols as a trace prints them ("4*batch", "((height//14))**2").

Expressions are read, never run: whole numbers, names, + - * // % **, and the functions that torch's printer uses.
"""

from __future__ import annotations

import ast
import functools
import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zoo.errors import GraphError
from zoo.graph.ir import Dim

__all__ = ["broadcast", "evaluate", "symbols"]

_LONGEST = 20_000
"""Characters of an expression; the longest that a capture wrote has 900."""

_LARGEST = 1 << 63
"""What a size, and each number on the way to it, stays below."""


def evaluate(dim: Dim, sizes: Mapping[str, int]) -> int:
    """A dim as a number.

    Args:
        dim: a size, a symbol or an expression.
        sizes: of the symbols; others may be in it.

    Raises:
        GraphError: it has a symbol that `sizes` lacks, is no such expression, or comes to no size below 2⁶³.
    """
    if isinstance(dim, int):
        return dim
    try:
        found = _value(_parsed(dim), sizes)
    except KeyError as error:
        got = f"{error.args[0]} in {_short(dim)}"
        raise GraphError("a dim has a symbol of no known size", expected=", ".join(sizes), got=got) from None
    except (_Refused, ZeroDivisionError, RecursionError) as error:
        raise GraphError("a dim comes to no size", got=f"{_short(dim)}: {error}") from None
    return found


def symbols(dim: Dim) -> frozenset[str]:
    """The symbols that a dim depends on.

    Raises:
        GraphError: it is no such expression.
    """
    if isinstance(dim, int):
        return frozenset()
    try:
        return frozenset(_names(_parsed(dim)))
    except (_Refused, RecursionError) as error:
        raise GraphError("a dim comes to no size", got=f"{_short(dim)}: {error}") from None


def broadcast(one: Sequence[Dim], other: Sequence[Dim]) -> tuple[Dim, ...]:
    """The shape that two shapes of one operation's arguments broadcast to."""
    pairs = itertools.zip_longest(reversed(one), reversed(other), fillvalue=1)
    return tuple(j if i == 1 else i for i, j in pairs)[::-1]


class _Refused(Exception):
    """What is in an expression and cannot be."""


@functools.lru_cache(4096)
def _parsed(dim: str) -> Any:
    """An expression as a number, a name, or (function, arguments); _Refused where it is none."""
    if len(dim) > _LONGEST:
        raise _Refused("it is too long")
    try:
        return _tree(ast.parse(dim.strip(), mode="eval").body)
    except (SyntaxError, ValueError, MemoryError):
        raise _Refused("it is no expression") from None


def _tree(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=inner, attr=last) if isinstance(name := _tree(inner), str):
            return f"{name}.{last}"
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return operator.neg, (_tree(inner),)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)], (_tree(left), _tree(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS and args:
            return _FUNCTIONS[name], tuple(map(_tree, args))
    raise _Refused(f"{type(node).__name__} is not known there")


def _value(tree: Any, sizes: Mapping[str, int]) -> int:
    if isinstance(tree, tuple):
        function, parts = tree
        try:
            value = function(*[_value(part, sizes) for part in parts])
        except TypeError as error:  # a function with another number of arguments
            raise _Refused(error) from None
    else:
        value = sizes[tree] if isinstance(tree, str) else tree
    if not -_LARGEST < value < _LARGEST:
        raise _Refused("it is too large")
    return value


def _names(tree: Any) -> set[str]:
    if isinstance(tree, tuple):
        return set().union(*map(_names, tree[1]))
    return {tree} if isinstance(tree, str) else set()


def _power(base: int, exponent: int) -> int:
    if not 0 <= exponent < 64:
        raise _Refused("an exponent is too large")
    return base**exponent


def _divided(dividend: int, divisor: int) -> int:
    """Printed where the trace knows that nothing is left."""
    whole, left = divmod(dividend, divisor)
    if left:
        raise _Refused("a division leaves a rest")
    return whole


_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Div: _divided,
    ast.Pow: _power,
}
_FUNCTIONS: dict[str, Callable[..., int]] = {
    "Max": lambda *sizes: max(sizes),
    "Min": lambda *sizes: min(sizes),
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "FloorDiv": operator.floordiv,
    "CleanDiv": _divided,
    "PowByNatural": _power,
}


def _short(dim: str) -> str:
    return dim if len(dim) <= 100 else f"{dim[:100]}…"
