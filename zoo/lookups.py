"""What a graph looks up in its tables, and whether the numbers of a call are in them: token ids, positions.

Where positions follow from lengths, or from ids and masks, the whole numbers are computed as the graph does it.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from zoo.arrays import to_numpy
from zoo.errors import OutsideError, ZooError
from zoo.graph.facts import Facts
from zoo.graph.ir import Graph, Node, Ref, param_ref, refs
from zoo.ops import traits_of

__all__ = ["Lookups"]

_LARGEST = 1 << 22
"""An index of more numbers than this is not computed ahead of a call: the backends check it themselves."""

_KEPT = 64


class Lookups:
    """The lookups of a graph whose indices are inputs, or follow from whole-numbered inputs and sizes alone."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.direct: dict[str, int] = {}  # input -> rows of its smallest table
        self.computed: list[tuple[str, int, str, tuple[Node, ...], frozenset[str], bool]] = []
        self._known: OrderedDict[Any, None] = OrderedDict()  # lengths whose positions are in their tables
        self._programs: dict[str, Any] = {}
        rows = {param_ref(n): (p.shape[0], n) for p in graph.params.values() for n in (p.name, *p.aliases) if p.shape}
        makers = Facts(graph).makers
        inputs = {item.name: item for item in graph.inputs}
        found: dict[tuple[str, str], None] = {}
        for node in graph.nodes:
            for table, index in _tables(node):
                if table in rows:
                    found[table, index] = None
        for table, index in found:
            limit, name = rows[table]
            while index in makers and _same_numbers(makers[index]):
                index = makers[index].args[0].name
            if index in inputs:
                self.direct[index] = min(limit, self.direct.get(index, limit))
                continue
            nodes = _behind(index, makers, inputs, graph.constants)
            if nodes is not None:
                read, values = _reads(nodes, inputs)
                self.computed.append((index, limit, name, nodes, read, values))

    def check(self, inputs: Mapping[str, Any], values: bool = True) -> None:
        """OutsideError if an id or a position is outside its table. What is only being traced is not looked at.

        Args:
            inputs: all inputs of a call.
            values: whether to compute what follows from values; what follows from lengths alone always is.
        """
        numbers = {name: self._number(name, inputs) for name in self.direct}
        for name, limit in self.direct.items():
            ids = numbers[name]
            if ids is not None and ids.size and not (ids.min() >= 0 and ids.max() < limit):
                raise OutsideError(
                    "an id is outside the model's table",
                    where=name,
                    expected=f"0 to {limit - 1}",
                    got=f"{ids.min()} to {ids.max()}",
                    do="use the tokenizer that the model was trained with",
                )
        for index, limit, table, nodes, read, by_value in self.computed:
            if by_value and not values:
                continue
            shapes = {name: tuple(inputs[name].shape) for name in read}
            sizes = set(itertools.chain.from_iterable(shapes.values()))
            if not set(map(type, sizes)) <= {int} or math.prod(sizes) > _LARGEST:
                continue
            key = (index, limit, tuple(sorted(shapes.items())))
            if not by_value and key in self._known:
                continue
            given: dict[str, Any] = {}
            for name, shape in shapes.items():
                given[name] = self._number(name, inputs) if by_value else np.broadcast_to(np.int64(0), shape)
            if any(array is None for array in given.values()):
                continue
            found = self._computed(index, nodes, given)
            if found is None:
                continue
            if found.size and not (found.min() >= 0 and found.max() < limit):
                what = "is too long for" if not by_value else "leads to indices outside"
                raise OutsideError(
                    f"an input {what} the model's table {table!r}",
                    where=", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()),
                    expected=f"positions from 0 to {limit - 1}",
                    got=f"{found.min()} to {found.max()}",
                    do="cut the input: the tokenizer truncates to the model's length",
                )
            if not by_value:
                self._known[key] = None
                while len(self._known) > _KEPT:
                    self._known.popitem(last=False)

    def _number(self, name: str, inputs: Mapping[str, Any]) -> np.ndarray | None:
        """An input's numbers, or None where it is being traced."""
        try:
            return to_numpy(inputs[name])
        except Exception:  # each framework has an error of its own for arrays without values
            return None

    def _computed(self, index: str, nodes: tuple[Node, ...], inputs: Mapping[str, Any]) -> np.ndarray | None:
        if index not in self._programs:
            from zoo.backends.execute import Program, resolve_over
            from zoo.backends.numpy_namespace import NumpyNamespace

            used = tuple(item for item in self.graph.inputs if item.name in inputs)
            part = Graph(used, {}, self.graph.constants, list(nodes), {"index": Ref(index)})
            self._programs[index] = Program(part, resolve_over(NumpyNamespace(widen=False), {}))
        program = self._programs[index]
        try:
            with np.errstate(all="ignore"):
                return np.asarray(program({}, inputs, self.graph.constants)["index"])
        except (ZooError, ValueError, TypeError, IndexError):
            return None  # sizes that do not fit each other: the backend says so


def _tables(node: Node) -> list[tuple[str, str]]:
    """(table, index) of what a node looks up by rows."""
    args = node.args
    if node.op == "embedding" and all(isinstance(arg, Ref) for arg in args[:2]):
        return [(args[0].name, args[1].name)]
    if node.op == "index_select" and args[1] == 0 and all(isinstance(arg, Ref) for arg in (args[0], args[2])):
        return [(args[0].name, args[2].name)]
    if node.op in ("index.Tensor", "_unsafe_index.Tensor") and isinstance(args[0], Ref) and isinstance(args[1][0], Ref):
        return [(args[0].name, args[1][0].name)]
    return []


def _same_numbers(node: Node) -> bool:
    """Whether the result has the numbers of the first argument."""
    return (traits_of(node.op).keeps_values or node.op == "_to_copy") and isinstance(node.args[0], Ref)


def _behind(
    index: str, makers: Mapping[str, Node], inputs: Mapping[str, Any], constants: Mapping[str, Any]
) -> tuple[Node, ...] | None:
    """The nodes that an index is computed by, in order; None if weights or floats of the call have a part in it."""
    found: set[int] = set()
    seen: set[tuple[str, bool]] = set()
    rest = [(index, False)]
    while rest:
        name, sizes = rest.pop()
        if (name, sizes) in seen or name in constants:
            continue
        seen.add((name, sizes))
        if name in inputs:
            if not sizes and not inputs[name].dtype.startswith(("int", "bool")):
                return None
            continue
        node = makers.get(name)
        if node is None:
            return None
        found.add(id(node))
        rest += [(ref.name, _of_shape(node)) for ref in refs((node.args, node.kwargs))]
    return tuple(node for node in {id(node): node for node in makers.values()}.values() if id(node) in found)


def _of_shape(node: Node) -> bool:
    """Whether the result is a size that follows from a shape."""
    known = traits_of(node.op)
    return known.size and known.by_shape


def _reads(nodes: tuple[Node, ...], inputs: Mapping[str, Any]) -> tuple[frozenset[str], bool]:
    """The inputs that nodes use, and whether any is used for more than its sizes."""
    read: set[str] = set()
    values = False
    for node in nodes:
        named = {ref.name for ref in refs((node.args, node.kwargs))} & inputs.keys()
        read |= named
        values |= bool(named) and not _of_shape(node)
    return frozenset(read), values
