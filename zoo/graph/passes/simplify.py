"""Drop what does nothing, merge what is computed twice, remove what is not used, number the rest."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from zoo.graph.facts import Facts, used
from zoo.graph.ir import Graph, Node, Ref, map_refs
from zoo.ops import OPS, traits_of

__all__ = ["drops", "simplify"]


def simplify(graph: Graph) -> Graph:
    """The same graph with identities and repeats removed, unused values dropped and results named v0, v1, …"""
    graph = _merge_repeats(graph)
    graph = _drop_unused(graph)
    return _renumber(graph)


def drops(node: Node) -> bool:
    """Whether a node drops something in training."""
    if node.op == "scaled_dot_product_attention":
        return bool(node.kwargs.get("dropout_p", dict(enumerate(node.args)).get(4)))
    return traits_of(node.op).draws


def _merge_repeats(graph: Graph) -> Graph:
    """One node for equal (op, args); an identity's uses become uses of its argument."""
    renamed: dict[str, str] = {}
    seen: dict[Any, Node] = {}
    nodes = []
    dtypes = {item.name: item.dtype for item in graph.inputs}

    def current(ref: Ref) -> Ref:
        return Ref(renamed.get(ref.name, ref.name))

    for old in graph.nodes:
        node = replace(old, args=map_refs(current, old.args), kwargs=map_refs(current, old.kwargs))
        dtypes.update((name, info.dtype) for name, info in zip(node.outputs, node.infos, strict=True))
        if _is_identity(node, dtypes):
            renamed[node.outputs[0]] = node.args[0].name
            continue
        key = _key((node.op, node.args, node.kwargs))
        twin = seen.get(key) if _is_function(node) else None
        if twin is not None:
            renamed.update(zip(node.outputs, twin.outputs, strict=True))
            continue
        seen[key] = node
        nodes.append(node)
    outputs = {name: current(value) for name, value in graph.outputs.items()}
    return replace(graph, nodes=nodes, outputs=outputs)


def _is_function(node: Node) -> bool:
    """Whether the result follows from the arguments alone, so that equal nodes may be one; unknown ones may draw."""
    return (node.op in OPS or "::" in node.op) and not drops(node)


def _is_identity(node: Node, dtypes: dict[str, str]) -> bool:
    if node.kwargs:
        return False
    if node.op == "slice.Tensor":
        start, end, step = (dict(enumerate(node.args)).get(i, default) for i, default in ((2, None), (3, None), (4, 1)))
        return start in (0, None) and end in (None, 2**63 - 1) and step == 1
    if node.op in ("add.Tensor", "sub.Tensor"):
        # the int 0 keeps an integer's value and dtype; a bool would become an int, and -0.0 + 0 is 0.0
        return type(node.args[1]) is int and node.args[1] == 0 and dtypes.get(node.args[0].name) == "int64"
    return False


def _key(tree: Any) -> Any:
    """Hashable, and apart for 1, 1.0 and True, which Python calls equal."""
    if isinstance(tree, (tuple, list)):
        return tuple(_key(item) for item in tree)
    if isinstance(tree, dict):
        return tuple((key, _key(item)) for key, item in sorted(tree.items()))
    return type(tree), repr(tree)


def _drop_unused(graph: Graph) -> Graph:
    facts = Facts(graph)
    kept = facts.needed(facts.outputs)
    wanted = facts.outputs.union(*map(used, kept))
    constants = {name: array for name, array in graph.constants.items() if name in wanted}
    return replace(graph, nodes=kept, constants=constants)


def _renumber(graph: Graph) -> Graph:
    renamed: dict[str, str] = {}
    taken = {item.name for item in graph.inputs}  # a forward may have an argument "v0"
    free = (name for name in map("v{}".format, itertools.count()) if name not in taken)

    def current(ref: Ref) -> Ref:
        return Ref(renamed.get(ref.name, ref.name))

    nodes = []
    for node in graph.nodes:
        args, kwargs = map_refs(current, node.args), map_refs(current, node.kwargs)
        for name in node.outputs:
            renamed[name] = next(free)
        nodes.append(replace(node, args=args, kwargs=kwargs, outputs=tuple(renamed[n] for n in node.outputs)))
    return replace(graph, nodes=nodes, outputs={name: current(ref) for name, ref in graph.outputs.items()})
