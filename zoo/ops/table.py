"""The table of operations and the decorator that fills it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import inspect

__all__ = ["OPS", "Op", "op"]


@dataclass(frozen=True)
class Op:
    """One operation: torch's name with its overload, and the function over `xp` that defines it."""

    name: str
    function: Callable[..., Any]

    @cached_property
    def signature(self) -> inspect.Signature:
        """The function's; looked at when a graph uses the operation, since there are hundreds of them."""
        import inspect

        return inspect.signature(self.function)


OPS: dict[str, Op] = {}


def op(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function `f(xp, *args)` as the definition of torch's operations `names`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            if name in OPS:
                raise ValueError(f"the operation {name} is defined twice")
            OPS[name] = Op(name, function)
        return function

    return register
