"""The table of operations, what is known of each, and the decorator that fills it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import inspect

    from zoo.graph.ir import Node

__all__ = ["OPS", "Moves", "Op", "Traits", "base", "op", "spelling", "traits_of"]


class Moves(Enum):
    """How an operation that computes nothing makes its result of its arguments' values."""

    RESHAPE = "all of the first argument's values in their order, in other dims"
    PERMUTE = "all of them, each once, in another order"
    REPEAT = "all of them, each once or more"
    TAKE = "some of them"
    JOIN = "all values of several arguments"
    CHOOSE = "at each place a value of one of the arguments"


@dataclass(frozen=True)
class Traits:
    """What is known of an operation. Tests hold each claim by value on the operation's cases.

    Args:
        elementwise: each value of each result is computed from the values at its place, the arguments broadcast.
        boolean: the results are bool, whatever the arguments are.
        moves: how values are moved, if nothing is computed.
        along: the parameter that names the dims (one, a tuple, or with None or () all) along which values meet: at
            other dims each result depends on the first argument's values at its place alone, and on all other
            arguments as a whole.
        reduces: those dims are gone from the results, or have the size 1.
        writes: the result is the first argument, of its shape and dtype, with other values at some or all places.
        draws: the result depends on a key that a call passes, too.
        size: the result is a size, no array.
        by_shape: of the first argument the shape alone matters.
        whole: capture keeps it as it is, though torch can take it apart.
        same_as: another operation that means the same, once memory is no part of the meaning; capture writes that.
        recorded: the function takes `infos`, what a graph records of the results: it decides where sizes are not known.
    """

    elementwise: bool = False
    boolean: bool = False
    moves: Moves | None = None
    along: str | None = None
    reduces: bool = False
    writes: bool = False
    draws: bool = False
    size: bool = False
    by_shape: bool = False
    whole: bool = False
    same_as: str | None = None
    recorded: bool = False

    @property
    def keeps_values(self) -> bool:
        """Whether the results have all values of the first argument, and no others."""
        return self.moves in (Moves.RESHAPE, Moves.PERMUTE, Moves.REPEAT)


@dataclass(frozen=True)
class Op:
    """One operation: torch's name with its overload, the function over `xp` that defines it, what is known of it."""

    name: str
    function: Callable[..., Any]
    traits: Traits = Traits()

    @cached_property
    def signature(self) -> inspect.Signature:
        """The function's; looked at when a graph uses the operation, since there are hundreds of them."""
        import inspect

        whole = inspect.signature(self.function)
        return whole.replace(parameters=[p for name, p in whole.parameters.items() if name != "infos"])

    def arguments(self, node: Node) -> Mapping[str, Any]:
        """A node's arguments by parameter, those it leaves out included."""
        bound = self.signature.bind(None, *node.args, **node.kwargs)
        bound.apply_defaults()
        return bound.arguments

    def dims(self, node: Node, rank: int) -> tuple[int, ...]:
        """The dims of the first argument, which has `rank` of them, that `Traits.along` is about, counted from 0."""
        assert self.traits.along is not None
        given = self.arguments(node)[self.traits.along]
        if given is None or given == ():
            return tuple(range(rank))
        return tuple(dim % rank for dim in (given if isinstance(given, tuple) else (given,)))


OPS: dict[str, Op] = {}

_NOTHING = Traits()


def traits_of(name: str) -> Traits:
    """What is known of an operation; nothing of one that is not in the table."""
    found = OPS.get(name)
    return _NOTHING if found is None else found.traits


def base(name: str) -> str:
    """An operation's name without its overload."""
    return name.partition(".")[0]


def spelling(name: str) -> str:
    """The one name of operations that mean the same, see `Traits.same_as`."""
    return traits_of(name).same_as or name


def op(*names: str, **traits: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function `f(xp, *args)` as the definition of torch's operations `names`; `traits` as in `Traits`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            if name in OPS:
                raise ValueError(f"the operation {name} is defined twice")
            OPS[name] = Op(name, function, Traits(**traits))
        return function

    return register
