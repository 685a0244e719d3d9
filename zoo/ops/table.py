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
    recorded: bool = False
    """Whether the function takes `infos`, what a graph records of the results: it decides where sizes are not known."""

    @cached_property
    def signature(self) -> inspect.Signature:
        """The function's; looked at when a graph uses the operation, since there are hundreds of them."""
        import inspect

        whole = inspect.signature(self.function)
        return whole.replace(parameters=[p for name, p in whole.parameters.items() if name != "infos"])


OPS: dict[str, Op] = {}


def op(*names: str, recorded: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function `f(xp, *args)` as the definition of torch's operations `names`; `recorded` as in `Op`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            if name in OPS:
                raise ValueError(f"the operation {name} is defined twice")
            OPS[name] = Op(name, function, recorded)
        return function

    return register
