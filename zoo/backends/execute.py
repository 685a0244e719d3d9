"""Running a graph's nodes one after another: eagerly, or while a framework traces."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from zoo.backends.bounds import Bounds, Watch
from zoo.errors import InputError, OutsideError, UnsupportedOp, ZooError
from zoo.graph.ir import DType, Graph, Node, Ref, ValueInfo, map_refs, param_ref, refs
from zoo.ops import OPS
from zoo.ops.size import known

__all__ = ["Program", "disagreement", "resolve_over"]


def resolve_over(xp: Any, overrides: Mapping[str, Callable[..., Any]]) -> Callable[[str], Callable[..., Any]]:
    """How a backend finds an op's function: its own override, else the table's definition over `xp`."""

    def resolve(name: str) -> Callable[..., Any]:
        own = overrides.get(name)
        if own is not None:
            return own
        definition = OPS[name].function

        def function(*args: Any, **kwargs: Any) -> Any:
            return definition(xp, *args, **kwargs)

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


class Program:
    """A graph with each op's function looked up and the last use of each value known.

    Args:
        graph: what to run.
        resolve: op name to function; raises KeyError for an op the backend lacks.
        dtype: what a `DType` argument becomes (the table takes it as it is; torch wants its own).
        hold: a result as it goes on, given what the graph records of it; by default as it is.
        source: the same in operations of the table alone, where `graph` has others: from it follows what a run takes.
    """

    def __init__(
        self,
        graph: Graph,
        resolve: Callable[[str], Callable[..., Any]],
        dtype: Callable[[DType], Any] | None = None,
        hold: Callable[[Node, Any, ValueInfo], Any] | None = None,
        source: Graph | None = None,
    ) -> None:
        last: dict[str, int] = {}
        for position, node in enumerate(graph.nodes):
            last.update((ref.name, position) for ref in refs((node.args, node.kwargs)))
        kept = {ref.name for ref in graph.outputs.values()}
        local = {name for node in graph.nodes for name in node.outputs}
        self.graph = graph
        self.bounds = Bounds(source or graph)
        self.hold = hold or _held
        self.steps = []
        for position, node in enumerate(graph.nodes):
            try:
                function = resolve(node.op)
            except (KeyError, AttributeError):
                raise UnsupportedOp(
                    "this backend lacks an operation", where=f"node {node.name!r}", got=node.op
                ) from None
            args, kwargs = node.args, dict(node.kwargs)
            if getattr(function, "recorded", False):
                function = functools.partial(function, infos=node.infos)
            if dtype is not None:
                args, kwargs = _map_dtypes(dtype, args), _map_dtypes(dtype, kwargs)
            used = {ref.name for ref in refs((args, kwargs))}
            dead = [
                n for n in {*used, *node.outputs} if n in local and n not in kept and last.get(n, position) == position
            ]
            self.steps.append((node, function, args, kwargs, tuple(dead)))

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
    ) -> dict[str, Any]:
        """The same of inputs that were checked, or cannot be."""
        values = self.values(params, inputs, constants)
        for position in range(len(self.steps)):
            self.step(position, values, watch)
        return {name: values[ref.name] for name, ref in self.graph.outputs.items()}

    def watched(self, inputs: Mapping[str, Any]) -> Watch | None:
        """What `step` needs where nodes depend on data. LimitError where the graph takes too much."""
        watch = self.bounds.check(inputs)
        if watch is not None and self.bounds.graph is not self.graph:  # its positions are those of another graph
            watch.nodes = frozenset(range(len(self.steps)))
        return watch

    def values(
        self, params: Mapping[str, Any], inputs: Mapping[str, Any], constants: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What there is before the first step, by the names that nodes refer to it with."""
        values: dict[str, Any] = {**constants, **inputs}
        for param in self.graph.params.values():
            for name in (param.name, *param.aliases):
                values[param_ref(name)] = params[param.name]
        return values

    def step(self, position: int, values: dict[str, Any], watch: Watch | None = None) -> None:
        """Run one node: its results join `values`, and what no later node uses leaves them."""
        node, function, args, kwargs, dead = self.steps[position]

        def value(ref: Ref) -> Any:
            return values[ref.name]

        if watch is not None and position in watch.nodes:
            watch.before(node, map_refs(value, node.args), map_refs(value, node.kwargs))
        try:
            result = function(*map_refs(value, args), **map_refs(value, kwargs))
        except ZooError:
            raise
        except Exception as error:
            where = f"node {node.name!r} ({node.op}) of the graph, inputs {_shapes(args, values)}"
            if isinstance(error, IndexError) or "out of bounds" in str(error):
                raise OutsideError("an index is outside what it points into", where=where, got=error) from error
            if any(_unknown(values.get(ref.name)) for ref in refs((args, kwargs))):
                raise UnsupportedOp(
                    "this operation cannot be traced with sizes that are not known",
                    where=where,
                    got=f"{type(error).__name__}: {error}",
                    do="give the inputs' dims fixed sizes",
                ) from error
            error.add_note(f"in {where}")
            raise
        results = (result,) if len(node.outputs) == 1 and not isinstance(result, (tuple, list)) else result
        if len(results) > len(node.outputs):
            got = f"{len(results)} results"
            raise disagreement(node, ValueInfo(f"{len(node.outputs)} results"), got)
        for name, value, info in zip(node.outputs, results, node.infos, strict=False):
            values[name] = self.hold(node, value, info)
        for name in dead:
            values.pop(name, None)


def _held(node: Node, value: Any, info: ValueInfo) -> Any:
    return value


def _unknown(value: Any) -> bool:
    """Whether a value's shape, or a value that is a size, is not all numbers while a framework traces."""
    shape = getattr(value, "shape", None)
    if shape is None:
        return value is not None and not isinstance(value, (bool, int, float))
    return getattr(shape, "rank", 0) is None or not all(known(size) for size in shape)


def _map_dtypes(function: Callable[[DType], Any], tree: Any) -> Any:
    if isinstance(tree, DType):
        return function(tree)
    if isinstance(tree, tuple):
        return tuple(_map_dtypes(function, item) for item in tree)
    if isinstance(tree, dict):
        return {key: _map_dtypes(function, item) for key, item in tree.items()}
    return tree


def _shapes(args: Any, values: Mapping[str, Any]) -> str:
    found = []
    for ref in refs(args):
        array = values.get(ref.name)
        shape = getattr(array, "shape", ())
        known = getattr(shape, "rank", 0) is not None  # TensorFlow's may not even have a rank
        found.append(f"{ref.name}: {getattr(array, 'dtype', '')}{tuple(shape) if known else shape}")
    return ", ".join(found)
