"""What follows from a graph: who makes a value, who uses it, what is known of it, and what depends on what.

Graphs are data that nothing changes: a pass returns another. So facts are of one graph, computed when first asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from zoo.graph.ir import Graph, Node, Param, Ref, ValueInfo, param_ref, refs

__all__ = ["Facts", "used"]


def used(node: Node) -> tuple[str, ...]:
    """The values that a node takes, each once, in the order of its arguments."""
    return tuple(dict.fromkeys([ref.name for ref in refs((node.args, node.kwargs))]))


class Facts:
    """The facts of a graph.

    Args:
        graph: must not change while it is asked about.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    @cached_property
    def makers(self) -> dict[str, Node]:
        """Value -> the node whose result it is, in the order of execution; inputs, parameters, constants have none."""
        return {name: node for node in self.graph.nodes for name in node.outputs}

    @cached_property
    def positions(self) -> dict[str, int]:
        """Value -> its node's place among the nodes."""
        return {name: place for place, node in enumerate(self.graph.nodes) for name in node.outputs}

    @cached_property
    def users(self) -> dict[str, list[Node]]:
        """Value -> the nodes that take it, each once, in order; one that none takes is not there."""
        found: dict[str, list[Node]] = {}
        for node in self.graph.nodes:
            for name in used(node):
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def last_uses(self) -> dict[str, int]:
        """Value -> the place of the last node that takes it."""
        return {name: place for place, node in enumerate(self.graph.nodes) for name in used(node)}

    @cached_property
    def outputs(self) -> frozenset[str]:
        """The values that the graph returns."""
        return frozenset(ref.name for ref in self.graph.outputs.values())

    @cached_property
    def params(self) -> dict[str, Param]:
        """Value -> the parameter that it is, by its name and by its aliases."""
        named = self.graph.params.values()
        return {param_ref(name): param for param in named for name in (param.name, *param.aliases)}

    @cached_property
    def infos(self) -> dict[str, ValueInfo]:
        """Value -> its dtype and shape: of inputs, parameters, constants and results."""
        found = {item.name: ValueInfo(item.dtype, item.shape) for item in self.graph.inputs}
        found |= {name: ValueInfo(param.dtype, param.shape) for name, param in self.params.items()}
        found |= {name: ValueInfo(str(array.dtype), array.shape) for name, array in self.graph.constants.items()}
        for node in self.graph.nodes:
            found.update(zip(node.outputs, node.infos, strict=True))
        return found

    @cached_property
    def sources(self) -> dict[str, frozenset[str]]:
        """Value -> the parameters that it is computed from, as values under their canonical names."""
        found = {item.name: frozenset[str]() for item in self.graph.inputs}
        found |= {name: frozenset((param_ref(param.name),)) for name, param in self.params.items()}
        found |= {name: frozenset[str]() for name in self.graph.constants}
        for node in self.graph.nodes:
            behind = frozenset[str]().union(*[found[name] for name in used(node)])
            found.update(dict.fromkeys(node.outputs, behind))
        return found

    def needed(self, names: Iterable[str]) -> list[Node]:
        """The nodes that values are computed by, in order."""
        wanted, kept = set(names), []
        for node in reversed(self.graph.nodes):
            if not wanted.isdisjoint(node.outputs):
                wanted.update(used(node))
                kept.append(node)
        return kept[::-1]

    def reached(self, names: Iterable[str]) -> set[str]:
        """These values, and all that is computed from any of them."""
        found = set(names)
        for node in self.graph.nodes:
            if not found.isdisjoint(used(node)):
                found.update(node.outputs)
        return found

    def made_by(self, value: Any, *ops: str) -> Node | None:
        """The node of one of these ops whose first result a value is."""
        node = self.makers.get(value.name) if isinstance(value, Ref) else None
        return node if node is not None and node.op in ops and node.name == value.name else None

    def only_for(self, node: Node, user: Node) -> bool:
        """Whether nobody but `user` takes the node's first result, and nobody any other."""
        first, *others = node.outputs
        if any(name in self.outputs or self.users.get(name) for name in others):
            return False
        return first not in self.outputs and all(other is user for other in self.users.get(first, ()))

    def is_param(self, value: Any, ndim: int | None = None) -> bool:
        """Whether a value is a float32 parameter, of so many dims."""
        param = self.params.get(value.name) if isinstance(value, Ref) else None
        return param is not None and param.dtype == "float32" and ndim in (None, len(param.shape))

    def is_float(self, value: Any) -> bool:
        """Whether it is a float32 array."""
        info = self.infos.get(value.name) if isinstance(value, Ref) else None
        return info is not None and info.dtype == "float32"

    def same_shape(self, a: Any, b: Any) -> bool:
        """Whether both are float32 arrays of one shape."""
        return self.is_float(a) and self.is_float(b) and self.infos[a.name].shape == self.infos[b.name].shape
