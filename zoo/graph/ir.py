"""The intermediate representation: SSA over ATen-level operations, as plain data.

A `Graph` holds named inputs with symbolic dims, parameters under their checkpoint's names, small constants, nodes in
execution order and named outputs. Sizes are integer values of the graph like any other, so one graph serves every
batch size and length. Nothing here executes a model; nothing here imports a framework.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from zoo.dtypes import DTYPES, DType
from zoo.errors import GraphError
from zoo.graph.stored import Stored, check_stored

__all__ = [
    "DTYPES",
    "DType",
    "Dim",
    "Graph",
    "Input",
    "Node",
    "Param",
    "Ref",
    "ValueInfo",
    "map_refs",
    "refs",
]

Dim = int | str
"""A size: a number, or the name of a symbol ("batch") or an expression over symbols ("4*batch")."""


@dataclass(frozen=True, slots=True)
class Ref:
    """A use of a value: an input, a parameter, a constant or a node's result, by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class ValueInfo:
    """What is known of a node's result: dtype and dims; a size has the dtype "size" and no dims."""

    dtype: str
    shape: tuple[Dim, ...] = ()


@dataclass(frozen=True, slots=True)
class Input:
    """A named input.

    Args:
        name: as the model's forward calls it.
        dtype: one of `DTYPES`.
        shape: sizes and symbols; the same symbol in two inputs means the same size.
        default: the number an absent input is filled with, or None where it is required. The shape then follows
            from the symbols the other inputs bind.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    default: int | float | None = None


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter or buffer, under the name that the torch checkpoint gives it.

    `aliases` are tied to it: names that nodes use for the same array. A checkpoint that holds another array under an
    alias unties it: the alias becomes a parameter of its own, and no node changes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    trainable: bool = True
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: `op` is torch's name with its overload ("add.Tensor", "linear"), args in its schema's order."""

    op: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[str, ...]
    infos: tuple[ValueInfo, ...]

    @property
    def name(self) -> str:
        """The name errors use: its first result; its operation where it has none (an empty dim taken apart)."""
        return self.outputs[0] if self.outputs else self.op


@dataclass(slots=True)
class Graph:
    """A model as data.

    Args:
        inputs: what a call passes, in order.
        params: weights by canonical name.
        constants: small arrays that no checkpoint holds (rotary tables, position ids), by name.
        nodes: in execution order; each result has one definition.
        outputs: name to value, in the order the model returns them; "past.0" names an element of a tuple.
        symbols: the range (low, high or None) of each symbol that the inputs' dims use.
        stored: parameters whose values checkpoints divide among tensors otherwise.
        meta: facts about the capture: dtype, class, config, versions.
    """

    inputs: tuple[Input, ...]
    params: dict[str, Param]
    constants: dict[str, np.ndarray]
    nodes: list[Node]
    outputs: dict[str, Any]
    symbols: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    stored: tuple[Stored, ...] = ()

    def op_counts(self) -> dict[str, int]:
        """How often each op is used, most used first."""
        counts: dict[str, int] = {}
        for node in self.nodes:
            counts[node.op] = counts.get(node.op, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def parameter_count(self) -> int:
        """How many trainable numbers the model has, tied ones once."""
        return sum(int(np.prod(p.shape, dtype=np.int64)) for p in self.params.values() if p.trainable)

    def trains(self, param: str) -> bool:
        """Whether training changes a parameter: no buffer, no whole numbers, no table that its class keeps as it is."""
        found = self.params[param]
        floating = found.dtype.startswith(("float", "bfloat", "complex"))
        return found.trainable and floating and param not in self.meta.get("sinusoids", ())

    def uses(self, param: str) -> list[tuple[Node, int]]:
        """The nodes that take a parameter directly, by its name or an alias, each with the argument's position."""
        names = {param_ref(name) for name in (param, *self.params[param].aliases)}
        return [
            (node, position)
            for node in self.nodes
            for position, arg in enumerate(node.args)
            if isinstance(arg, Ref) and arg.name in names
        ]

    def keeping(self, params: Collection[str]) -> Graph:
        """The graph with these of its parameters alone; nothing else is left out."""
        return replace(
            self,
            params={name: param for name, param in self.params.items() if name in params},
            stored=tuple(group for group in self.stored if all(name in params for name in group.params)),
        )

    def validate(self) -> None:
        """Check that every value is defined once and before its use; GraphError names the node otherwise."""
        defined = set()

        def define(name: str, where: str) -> None:
            if name in defined:
                raise GraphError("a value is defined twice", where=where, got=name)
            defined.add(name)

        for symbol, (low, high) in self.symbols.items():
            if high is not None and high < low:
                raise GraphError("a symbol has no size left", where=f"symbol {symbol!r}", got=f"{low} to {high}")
        for item in self.inputs:
            define(item.name, f"input {item.name!r}")
            _known_dtype(item.dtype, f"input {item.name!r}")
            for dim in item.shape:
                if isinstance(dim, str) and dim not in self.symbols:
                    raise GraphError("an input's dim is not a known symbol", where=f"input {item.name!r}", got=dim)
        names: set[str] = set()
        for param in self.params.values():
            _known_dtype(param.dtype, f"parameter {param.name!r}")
            for name in (param.name, *param.aliases):
                define(param_ref(name), f"parameter {param.name!r}")
                if name in names:
                    raise GraphError("two parameters have one name", where="params", got=name)
                names.add(name)
        check_stored(self.stored, {param.name: param.shape for param in self.params.values()})
        for name, array in self.constants.items():
            define(name, f"constant {name!r}")
            _known_dtype(str(array.dtype), f"constant {name!r}")
        for node in self.nodes:
            where = f"node {node.name!r} ({node.op})" if node.outputs else f"node ({node.op})"
            for ref in refs((node.args, node.kwargs)):
                if ref.name not in defined:
                    raise GraphError("a node uses a value that nothing defines before it", where=where, got=ref.name)
            for name in _dtypes((node.args, node.kwargs)):
                _known_dtype(name, where)
            if not node.outputs:
                raise GraphError("a node has no result", where=where)
            if len(node.outputs) != len(node.infos):
                raise GraphError(
                    "a node has not one info per result",
                    where=where,
                    expected=len(node.outputs),
                    got=len(node.infos),
                )
            for name, info in zip(node.outputs, node.infos, strict=True):
                define(name, where)
                if info.dtype != "size":
                    _known_dtype(info.dtype, where)
        if not self.outputs:
            raise GraphError("the graph has no outputs", where="outputs")
        for name, value in self.outputs.items():
            if not isinstance(value, Ref) or value.name not in defined:
                raise GraphError("an output is not a value of the graph", where=f"output {name!r}", got=value)


def param_ref(name: str) -> str:
    """The value name under which nodes use the parameter `name`; keeps parameters apart from inputs."""
    return f"p:{name}"


def refs(tree: Any) -> Iterator[Ref]:
    """Every `Ref` in a tree of tuples, lists and mappings, left to right."""
    found: list[Ref] = []
    _collect(tree, Ref, found)
    return iter(found)


def _collect(tree: Any, wanted: type, found: list[Any]) -> None:
    """Passes look at each argument of a graph many times: the types that trees are made of are asked for by name."""
    kind = type(tree)
    if kind is wanted:
        found.append(tree)
    elif kind is tuple or kind is list:
        for item in tree:
            _collect(item, wanted, found)
    elif kind is dict or isinstance(tree, Mapping):
        for item in tree.values():
            _collect(item, wanted, found)


def _dtypes(tree: Any) -> Iterator[str]:
    found: list[DType] = []
    _collect(tree, DType, found)
    return (dtype.name for dtype in found)


def map_refs(function: Any, tree: Any) -> Any:
    """`tree` with every `Ref` replaced by `function(ref)`."""
    kind = type(tree)
    if kind is Ref:
        return function(tree)
    if kind is tuple or kind is list:
        return tuple([map_refs(function, item) for item in tree])
    if kind is dict or isinstance(tree, Mapping):
        return {key: map_refs(function, item) for key, item in tree.items()}
    return tree


def _known_dtype(dtype: str, where: str) -> None:
    if dtype not in DTYPES:
        raise GraphError("unknown dtype", where=where, expected=f"one of {', '.join(DTYPES)}", got=dtype)
