"""Running a graph's nodes one after another: eagerly, or while a framework traces."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from zoo.backends.bounds import Bounds, Watch
from zoo.errors import GraphError, InputError, OutsideError, UnsupportedOp, ZooError
from zoo.graph.facts import Facts, used
from zoo.graph.ir import DType, Graph, Node, Ref, ValueInfo, map_refs, refs
from zoo.ops import OPS
from zoo.ops.size import known

__all__ = ["Program", "disagreement", "naming_nodes", "resolve_over"]


def resolve_over(xp: Any, overrides: Mapping[str, Callable[..., Any]]) -> Callable[[str], Callable[..., Any]]:
    """How a backend finds an op's function: its own override, else the table's definition over `xp`."""

    def resolve(name: str) -> Callable[..., Any]:
        own = overrides.get(name)
        if own is not None:
            return own
        function = functools.partial(OPS[name].function, xp)
        function.recorded = OPS[name].traits.recorded  # type: ignore[attr-defined]
        return function

    return resolve


def disagreement(node: Node, info: ValueInfo, got: object) -> ZooError:
    """What to raise where a result is not as the graph records it: the capture took some size to be another."""
    return InputError(
        "a result has another form than the captured graph records",
        where=f"node {node.name!r} ({node.op})",
        expected=f"{info.dtype} [{', '.join(map(str, info.shape))}]",
        got=got,
        do="an input's size may be 1 where the model was captured for larger ones; capture it at the size that is used",
    )


@contextmanager
def naming_nodes() -> Iterator[None]:
    """Errors of computing at once, with nothing being traced, as ours: they name the node.

    A graph whose nodes do not fit each other can make NumPy and what is built on it raise anything.

    Raises:
        GraphError: with the node, its inputs' shapes, and what was raised.
    """
    try:
        yield
    except (ZooError, MemoryError):
        raise
    except Exception as error:
        where = "; ".join(getattr(error, "__notes__", ())) or None
        what = "a node of the graph cannot be computed"
        raise GraphError(what, where=where, got=f"{type(error).__name__}: {error}") from error


class Program:
    """A graph as a flat list of steps: functions looked up, values at places of one list, their last uses known.

    Args:
        graph: what to run.
        resolve: op name to function; raises KeyError for an op the backend lacks.
        dtype: what a `DType` argument becomes (the table takes it as it is; torch wants its own).
        hold: a result as it goes on, given what the graph records of it; by default as it is.
        source: the same in operations of the table alone, where `graph` has others: from it follows what a run takes.
        also: the further keywords that a node's function is called with; a run is given their values.
    """

    def __init__(
        self,
        graph: Graph,
        resolve: Callable[[str], Callable[..., Any]],
        dtype: Callable[[DType], Any] | None = None,
        hold: Callable[[Node, Any, ValueInfo], Any] | None = None,
        source: Graph | None = None,
        also: Callable[[Node], Sequence[str]] = lambda node: (),
    ) -> None:
        facts = Facts(graph)
        self.graph = graph
        self.bounds = Bounds(source or graph)
        self.hold = hold
        self._params = [param.name for param in graph.params.values() for _ in (param.name, *param.aliases)]
        self._inputs = [item.name for item in graph.inputs if item.name in facts.users or item.name in facts.outputs]
        self._constants = list(graph.constants)
        self.places = {
            name: place for place, name in enumerate([*facts.params, *self._inputs, *self._constants, *facts.makers])
        }
        """Value -> its place in the list of values: parameters, inputs, constants, then results."""
        self._results = [None] * len(facts.makers)
        self._sizes = {name for name, info in facts.infos.items() if info.dtype == "size"}
        self._outputs = [self.places[ref.name] for ref in graph.outputs.values()]
        self._also = sorted({name for node in graph.nodes for name in also(node)})
        more = {name: _Place(len(self.places) + number) for number, name in enumerate(self._also)}
        self.uses = [tuple(self.places[name] for name in used(node)) for node in graph.nodes]
        """The places that each step takes values from."""
        self.steps: list[_Step] = []
        for position, node in enumerate(graph.nodes):
            try:
                function = resolve(node.op)
            except (KeyError, AttributeError):
                raise UnsupportedOp(
                    "this backend lacks an operation", where=f"node {node.name!r}", got=node.op
                ) from None
            if getattr(function, "recorded", False):
                function = functools.partial(function, infos=node.infos)
            last = facts.last_uses
            dead = [
                self.places[name]
                for name in {*used(node), *node.outputs}
                if name in facts.makers and name not in facts.outputs and last.get(name, position) == position
            ]
            args = _places(self.places, dtype, node.args)
            kwargs = _places(self.places, dtype, dict(node.kwargs)) | {name: more[name] for name in also(node)}
            self.steps.append(
                (
                    function,
                    _constant(args),
                    *_holes(enumerate(args)),
                    _constant(kwargs),
                    *_holes(kwargs.items()),
                    self.places[node.outputs[0]] if node.outputs else -1,  # a dim of no size is taken apart to nothing
                    tuple(self.places[name] for name in node.outputs),
                    tuple(dead),
                )
            )

    def __call__(
        self, params: Mapping[str, Any], inputs: Mapping[str, Any], constants: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Outputs by name; `params` by canonical name, `inputs` and `constants` by theirs.

        Raises:
            LimitError: with inputs of these shapes the graph takes more than there is; it names the node.
        """
        return self.run(params, inputs, constants, self.watched(inputs))

    def run(
        self,
        params: Mapping[str, Any],
        inputs: Mapping[str, Any],
        constants: Mapping[str, Any],
        watch: Watch | None = None,
        **also: Any,
    ) -> dict[str, Any]:
        """The same of inputs that were checked, or cannot be; `also` are the values of the further keywords."""
        values = self.values(params, inputs, constants, **also)
        self.advance(values, 0, len(self.steps), watch)
        return self.outputs(values)

    def watched(self, inputs: Mapping[str, Any]) -> Watch | None:
        """What steps need where nodes depend on data. LimitError where the graph takes too much."""
        watch = self.bounds.check(inputs)
        if watch is not None and self.bounds.graph is not self.graph:  # its positions are those of another graph
            watch.nodes = frozenset(range(len(self.steps)))
        return watch

    def values(
        self, params: Mapping[str, Any], inputs: Mapping[str, Any], constants: Mapping[str, Any], **also: Any
    ) -> list[Any]:
        """What there is before the first step, at the places that the steps take it from."""
        return [
            *map(params.__getitem__, self._params),
            *map(inputs.__getitem__, self._inputs),
            *map(constants.__getitem__, self._constants),
            *self._results,
            *map(also.__getitem__, self._also),
        ]

    def outputs(self, values: Sequence[Any]) -> dict[str, Any]:
        """Outputs by name, after the last step."""
        return dict(zip(self.graph.outputs, map(values.__getitem__, self._outputs), strict=True))

    def advance(
        self,
        values: list[Any],
        start: int,
        stop: int,
        watch: Watch | None = None,
        call: Callable[..., Any] | None = None,
    ) -> None:
        """Run some of the steps: their results join `values`, and what no later one takes leaves them.

        Nothing is called here but the steps' own functions: what they take is put together in this loop.

        Args:
            watch: is told of the nodes that depend on data, before they are run.
            call: what a step does instead of its function's call; it gets the step's position, arguments and keywords.
        """
        position, hold = start, self.hold
        try:
            for position in range(start, stop):
                function, given, holes, lists, trees, named, own, more, deep, place, places, dead = self.steps[position]
                args = given.copy()
                for index, source in holes:
                    args[index] = values[source]
                for index, items, inner in lists:
                    items = items.copy()
                    for at, source in inner:
                        items[at] = values[source]
                    args[index] = tuple(items)
                for index, tree in trees:
                    args[index] = _filled(tree, values)
                kwargs = named
                if own or more or deep:
                    kwargs = named.copy()
                    for key, source in own:
                        kwargs[key] = values[source]
                    for key, items, inner in more:
                        items = items.copy()
                        for at, source in inner:
                            items[at] = values[source]
                        kwargs[key] = tuple(items)
                    for key, tree in deep:
                        kwargs[key] = _filled(tree, values)
                if watch is not None and position in watch.nodes:
                    self._tell(watch, position, values)
                result = function(*args, **kwargs) if call is None else call(position, args, kwargs)
                if hold is None and len(places) == 1 and not isinstance(result, (tuple, list)):
                    values[place] = result
                else:
                    self._keep(position, result, values)
                args = items = result = None  # what is dead is gone before the next step wants memory
                if kwargs is not named:
                    kwargs = None
                for place in dead:
                    values[place] = None
        except ZooError:
            raise
        except Exception as error:
            self._explain(position, values, error)
            raise

    def _tell(self, watch: Watch, position: int, values: Sequence[Any]) -> None:
        def value(ref: Ref) -> Any:
            return values[self.places[ref.name]]

        node = self.graph.nodes[position]
        watch.before(node, map_refs(value, node.args), map_refs(value, node.kwargs))

    def _keep(self, position: int, result: Any, values: list[Any]) -> None:
        node, places = self.graph.nodes[position], self.steps[position][-2]
        results = (result,) if len(places) == 1 and not isinstance(result, (tuple, list)) else result
        if len(results) > len(places):
            raise disagreement(node, ValueInfo(f"{len(places)} results"), f"{len(results)} results")
        for place, value, info in zip(places, results, node.infos, strict=False):
            values[place] = value if self.hold is None else self.hold(node, value, info)

    def _explain(self, position: int, values: Sequence[Any], error: Exception) -> None:
        """Say of which node an error is; raise one of ours where it is of a known kind."""
        node = self.graph.nodes[position]
        taken = {name: values[self.places[name]] for name in used(node)}
        where = f"node {node.name!r} ({node.op}) of the graph, inputs {_shapes(node.args, taken)}"
        if isinstance(error, IndexError) or "out of bounds" in str(error):
            raise OutsideError("an index is outside what it points into", where=where, got=error) from error
        if any(_unknown(value, name in self._sizes) for name, value in taken.items()):
            raise UnsupportedOp(
                "this operation cannot be traced with sizes that are not known",
                where=where,
                got=f"{type(error).__name__}: {error}",
                do="give the inputs' dims fixed sizes",
            ) from error
        error.add_note(f"in {where}")


_Step = tuple[Any, ...]
"""Function; positional arguments, holes in them to fill: (index, place), (index, tuple, its holes), (index, tree);
the same of keywords; the first result's place, all results' places, those of values that are dead after it."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where among the values one is that stands in a tree of arguments."""

    place: int


def _places(places: Mapping[str, int], dtype: Callable[[DType], Any] | None, tree: Any) -> Any:
    """A tree of arguments with places for values, and the backend's dtypes."""
    if isinstance(tree, Ref):
        return _Place(places[tree.name])
    if isinstance(tree, DType):
        return tree if dtype is None else dtype(tree)
    if isinstance(tree, (tuple, list)):
        return tuple([_places(places, dtype, item) for item in tree])
    if isinstance(tree, Mapping):
        return {key: _places(places, dtype, item) for key, item in tree.items()}
    return tree


def _constant(given: Any) -> Any:
    """What is to be copied for each call."""
    return dict(given) if isinstance(given, dict) else list(given)


def _holes(items: Iterable[tuple[Any, Any]]) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """Where values go: as an argument, in a tuple that is one, or anywhere in a tree."""
    plain, lists, trees = [], [], []
    for key, item in items:
        if isinstance(item, _Place):
            plain.append((key, item.place))
        elif _has_place(item):
            if isinstance(item, tuple) and not any(isinstance(x, (tuple, dict)) for x in item):
                inner = tuple((at, x.place) for at, x in enumerate(item) if isinstance(x, _Place))
                lists.append((key, list(item), inner))
            else:
                trees.append((key, item))
    return tuple(plain), tuple(lists), tuple(trees)


def _has_place(tree: Any) -> bool:
    if isinstance(tree, dict):
        return any(map(_has_place, tree.values()))
    return any(map(_has_place, tree)) if isinstance(tree, tuple) else isinstance(tree, _Place)


def _filled(tree: Any, values: Sequence[Any]) -> Any:
    if isinstance(tree, _Place):
        return values[tree.place]
    if isinstance(tree, tuple):
        return tuple([_filled(item, values) for item in tree])
    if isinstance(tree, dict):
        return {key: _filled(item, values) for key, item in tree.items()}
    return tree


def _unknown(value: Any, size: bool) -> bool:
    """Whether a value's shape, or a value that is a size, is not all numbers while a framework traces."""
    shape = getattr(value, "shape", None)
    if shape is None:
        return size and not isinstance(value, (bool, int, float))
    return getattr(shape, "rank", 0) is None or not all(known(size) for size in shape)


def _shapes(args: Any, values: Mapping[str, Any]) -> str:
    found = []
    for ref in refs(args):
        array = values.get(ref.name)
        shape = getattr(array, "shape", ())
        known = getattr(shape, "rank", 0) is not None  # TensorFlow's may not even have a rank
        found.append(f"{ref.name}: {getattr(array, 'dtype', '')}{tuple(shape) if known else shape}")
    return ", ".join(found)
