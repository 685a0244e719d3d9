"""The table of operations and the decorator that fills it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["OPS", "Op", "op"]


@dataclass(frozen=True, slots=True)
class Op:
    """One operation: torch's name with its overload, and the function over `xp` that defines it."""

    name: str
    function: Callable[..., Any]
    signature: inspect.Signature


OPS: dict[str, Op] = {}


def op(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function `f(xp, *args)` as the definition of torch's operations `names`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)
        for name in names:
            if name in OPS:
                raise ValueError(f"the operation {name} is defined twice")
            OPS[name] = Op(name, function, signature)
        return function

    return register
