"""Dropout of a graph that was captured for training: taken out, or given the key that a call passes."""

from __future__ import annotations

from dataclasses import replace

from zoo.errors import ConfigError
from zoo.graph.ir import Graph, Input, Ref, map_refs
from zoo.graph.passes.simplify import drops, simplify

__all__ = ["RNG", "evaluating", "keyed"]

RNG = "rng"
"""The input that holds the key: int32 [2]."""

_P = 4  # where attention has its probability among the arguments


def evaluating(graph: Graph) -> Graph:
    """The graph without its dropout: what capture in evaluation gives."""
    if not graph.meta.get("train"):
        return graph
    renamed: dict[str, Ref] = {}

    def current(ref: Ref) -> Ref:
        return renamed.get(ref.name, ref)

    nodes = []
    for old in graph.nodes:
        node = replace(old, args=map_refs(current, old.args), kwargs=map_refs(current, old.kwargs))
        if drops(node) and node.op != "scaled_dot_product_attention":
            renamed[node.outputs[0]] = node.args[0]
            continue
        if drops(node):
            head, rest = node.args[:_P], node.args[_P + 1 :]
            kwargs = {key: value for key, value in node.kwargs.items() if key != "dropout_p"}
            node = replace(node, args=(*head, 0.0, *rest) if rest else head, kwargs=kwargs)
        nodes.append(node)
    outputs = {name: current(ref) for name, ref in graph.outputs.items()}
    meta = {key: value for key, value in graph.meta.items() if not key.startswith("train")}
    return simplify(replace(graph, nodes=nodes, outputs=outputs, meta=meta))


def keyed(graph: Graph) -> Graph:
    """The graph with one input more, the key, from which every dropout draws by its number.

    Raises:
        ConfigError: the graph was captured for evaluation.
    """
    if not graph.meta.get("train"):
        raise ConfigError(
            "the model was captured for evaluation: there is no dropout in it for a key to steer",
            where=RNG,
            do="load or capture it with train=True",
        )
    numbers = {node.name: number for number, node in enumerate(filter(drops, graph.nodes))}
    nodes = [
        replace(node, kwargs={**node.kwargs, "rng": (Ref(RNG), numbers[node.name])}) if node.name in numbers else node
        for node in graph.nodes
    ]
    return replace(graph, inputs=(*graph.inputs, Input(RNG, "int32", (2,))), nodes=nodes)
