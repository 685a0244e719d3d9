"""A model's arrays by name: what may stand among them, and how they stay those of the framework's own module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from zoo.arrays import dtype_name, is_spread, to_numpy
from zoo.errors import WeightsError
from zoo.graph.ir import Graph, Param

__all__ = ["HeldVariables", "Params", "check_params", "complete", "narrowed", "split"]


class Params(dict):
    """Arrays by name over what a framework's own module holds: each side sees what the other replaces.

    Reading asks the module. Assigning an array puts a copy of it there; names and shapes are the graph's. What cannot
    change, as an array of JAX, and a torch.nn.Parameter, which an optimizer may hold, are taken themselves.
    Copies, `|` and pickles are plain dicts. Without arguments it is a dict like any other.

    Args:
        arrays: by name.
        expected: the graph's record of each.
        replace: (array before, new value) -> the array that stands for the value, which owns its memory, or the
            framework's variable, which has it now.
    """

    held: Any = None
    """Once there is a module: reads and writes its arrays by name (`zoo.backends.torch.Held`, `HeldVariables`)."""

    def __init__(
        self,
        arrays: Mapping[str, Any] | None = None,
        expected: Mapping[str, Param] | None = None,
        replace: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        super().__init__(arrays or {})
        self._expected, self._replace = expected, replace

    def refresh(self) -> None:
        """Take what the module holds now. WeightsError if it is no longer a module of this graph."""
        if self.held is not None:
            super().update(self.held.read(list(super().keys()), whole=True))

    def __getitem__(self, name: str) -> Any:
        if self.held is not None and name in self:
            return self.held.read([name])[name]
        return super().__getitem__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        if self._expected is None or self._replace is None:
            super().__setitem__(name, value)
            return
        param = self._expected.get(name)
        if param is None or name not in self:
            raise WeightsError("the model has no such parameter", where=name, do="see the names in m.params, m.buffers")
        _check_whole(name, value)
        shape = tuple(value.shape) if hasattr(value, "shape") else to_numpy(value).shape
        if shape != param.shape:
            raise WeightsError("a parameter has another shape", where=name, expected=list(param.shape), got=list(shape))
        new = self._replace(self[name], value)
        if self.held is not None:
            self.held.write(name, new)
        super().__setitem__(name, new)

    def __delitem__(self, name: str) -> None:
        if self._expected is not None:
            raise WeightsError("a parameter cannot be taken out of a model", where=name, do="take it out of a copy")
        super().__delitem__(name)

    def pop(self, name: str, *default: Any) -> Any:
        self.__delitem__(name)

    def popitem(self) -> Any:
        self.__delitem__("")

    def clear(self) -> None:
        self.__delitem__("")

    def setdefault(self, name: str, default: Any = None) -> Any:
        if name not in self:
            self[name] = default
        return self[name]

    def update(self, *others: Any, **named: Any) -> None:
        for name, value in dict(*others, **named).items():
            self[name] = value

    def __ior__(self, other: Any) -> Params:
        self.update(other)
        return self

    def __or__(self, other: Any) -> dict[str, Any]:  # type: ignore[override]
        return self.copy() | dict(other)

    def __ror__(self, other: Any) -> dict[str, Any]:  # type: ignore[override]
        return dict(other) | self.copy()

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401 (that would be this method)

    def __iter__(self) -> Iterator[str]:  # with one of its own, dict(self) and {**self} read through, too
        self.refresh()
        return super().__iter__()

    def values(self) -> Any:
        self.refresh()
        return super().values()

    def items(self) -> Any:
        self.refresh()
        return super().items()

    def copy(self) -> dict[str, Any]:
        return dict(self.items())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (self.copy(),)


class HeldVariables:
    """What a module of variables holds: they are assigned to, so none may be put in another's place.

    Args:
        now: gives the module's variables by name.
    """

    def __init__(self, now: Callable[[], Mapping[str, Any]]) -> None:
        self._now, self._variables = now, dict(now())

    def read(self, names: Iterable[str], whole: bool = False) -> dict[str, Any]:
        """The variables; with `whole` those of the module are compared. WeightsError names what was replaced."""
        now = self._now() if whole else self._variables
        wrong = [name for name, variable in self._variables.items() if now.get(name) is not variable]
        if wrong:
            raise WeightsError(
                "variables of m.module were replaced, which its functions may not see",
                where=", ".join(wrong[:5]),
                do="assign to m.params instead: m.params[name] = array",
            )
        return {name: self._variables[name] for name in names}

    def write(self, name: str, variable: Any) -> None:
        """Nothing: the variable is the module's and has its value."""


def split(graph: Graph, arrays: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays that are trained, and those that are not."""
    trained = {name: array for name, array in arrays.items() if graph.trains(name)}
    return trained, {name: array for name, array in arrays.items() if name not in trained}


def complete(graph: Graph, given: Mapping[str, Any], own: Mapping[str, Any], is_array: Callable[[Any], bool]) -> Any:
    """Arrays for all of the graph's parameters, in its order: those given, and buffers that were not from `own`.

    Args:
        own: the model's arrays; only others are checked.
        is_array: whether a value is of the framework. What is not becomes NumPy's.

    Raises:
        WeightsError: names or shapes are not the graph's; all are listed. Or an array is spread over processes.
    """
    if not isinstance(given, Mapping):
        raise WeightsError("parameters are a mapping of names to arrays", got=type(given).__name__, do="pass m.params")
    arrays: dict[str, Any] = {}
    wrong = len(given.keys() - graph.params.keys()) > 0
    for name, param in graph.params.items():
        if name in given:
            value = given[name]
            if value is not own.get(name):
                _check_whole(name, value)
                value = value if is_array(value) else to_numpy(value)
                wrong = wrong or tuple(value.shape) != param.shape
        elif name in own and not graph.trains(name):
            value = own[name]
        else:
            wrong = True
            continue
        arrays[name] = value
    if wrong:
        unknown = {name: () for name in given if name not in graph.params}
        shapes = {name: tuple(value.shape) for name, value in arrays.items()}
        check_params(graph, {**shapes, **unknown}, "the parameters given")
    return arrays


def narrowed(graph: Graph, params: Mapping[str, Any]) -> list[str]:
    """What a framework holds in fewer bits than the checkpoint: JAX does, unless x64 is on. Integers stay exact."""
    narrow: dict[tuple[str, str], int] = {}
    for param in graph.params.values():
        if param.dtype in ("float64", "complex128") and (held := dtype_name(params[param.name].dtype)) != param.dtype:
            narrow[param.dtype, held] = narrow.get((param.dtype, held), 0) + 1
    return [
        f"{count} parameters of {wide} are computed in {held}: JAX has nothing of 64 bits unless jax_enable_x64 is on"
        for (wide, held), count in narrow.items()
    ]


def _check_whole(name: str, value: Any) -> None:
    if is_spread(value):
        raise WeightsError(
            "a parameter is spread over several processes",
            where=name,
            got=type(value).__name__,
            do="give the whole array: full_tensor() gathers it",
        )


def check_params(graph: Graph, shapes: Mapping[str, tuple[int, ...]], where: object) -> None:
    """WeightsError if names or shapes are not those of the graph's parameters; all are listed."""

    def listed(params: list[Param]) -> str:
        return ", ".join(f"{p.name} {list(p.shape)}" for p in params)

    missing = [p for p in graph.params.values() if p.name not in shapes]
    misshaped = [p for p in graph.params.values() if p.name in shapes and tuple(shapes[p.name]) != p.shape]
    unexpected = [name for name in shapes if name not in graph.params]
    if missing or misshaped or unexpected:
        import difflib

        near = [n for name in unexpected for n in difflib.get_close_matches(str(name), list(graph.params), 1)]
        got = [f"no {p.name}" for p in missing] + [f"{p.name} {list(shapes[p.name])}" for p in misshaped]
        raise WeightsError(
            "the weights do not belong to this graph",
            where=where,
            expected=listed([*missing, *misshaped]) or None,
            got=", ".join([*got, *(f"unexpected {name}" for name in unexpected)]),
            do=f"did you mean {', '.join(map(repr, near))}?" if near else None,
        )
