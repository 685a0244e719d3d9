"""Selections by a mask without sizes that depend on data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from zoo.graph.facts import Facts
from zoo.graph.ir import DType, Graph, Node, Ref, ValueInfo, refs
from zoo.ops import OPS, spelling, traits_of

__all__ = ["with_all_rows"]

Infos = Mapping[str, ValueInfo]


def with_all_rows(graph: Graph) -> Graph:
    """`x[mask]` as all rows of x, the selected ones first, where its rows only go back into masked places.

    A layer for some of the tokens takes them out, computes each by itself and puts them back, at the mask or at as many
    places of another. The further rows are put nowhere, and no size depends on how many are selected. A mask some of
    whose rows go another way stays as it is.
    """
    infos = Facts(graph).infos
    masks = {mask for node in graph.nodes if (mask := _selecting(node, infos))}
    masks = {mask for mask in masks if _go_back(graph, mask, infos)}
    nodes: list[Node] = []
    for node in graph.nodes:
        nodes += _all_rows(node, infos) if _selecting(node, infos) in masks else [node]
    return replace(graph, nodes=nodes) if masks else graph


def _selecting(node: Node, infos: Infos) -> str | None:
    """The mask by which a node selects rows."""
    if node.op != "index.Tensor" or len(node.args[1]) != 1:
        return None
    mask = node.args[1][0]
    return mask.name if isinstance(mask, Ref) and infos[mask.name].dtype == "bool" else None


def _all_rows(node: Node, infos: Infos) -> list[Node]:
    """x[mask] as the rows at the mask, then the others, in operations of the table."""
    x, (mask,) = node.args
    kept = len(infos[mask.name].shape)
    name = node.name
    result: list[Node] = []

    def emit(what: str, info: ValueInfo, op: str, *args: Any, **kwargs: Any) -> Ref:
        result.append(Node(op, args, kwargs, (f"{name}.{what}",), (info,)))
        return Ref(f"{name}.{what}")

    inner = tuple(
        size if isinstance(size, int) else emit(f"size{axis}", ValueInfo("size"), "sym_size.int", x, axis)
        for axis, size in enumerate(infos[x.name].shape)
        if axis >= kept
    )
    count = f"{name}.rows"  # as many as the mask has elements
    bools, numbers = ValueInfo("bool", (count,)), ValueInfo("int64", (count,))
    others = emit("others", bools, "logical_not", emit("mask", bools, "view", mask, (-1,)))
    ranks = emit("ranks", numbers, "_to_copy", others, dtype=DType("int64"))
    order = emit("order", numbers, "argsort.stable", ranks, stable=True)
    whole = ValueInfo(infos[x.name].dtype, (count, *infos[x.name].shape[kept:]))
    rows = emit("rows", whole, "view", x, (-1, *inner))
    return [*result, replace(node, op="index_select", args=(rows, 0, order), kwargs={})]


def _go_back(graph: Graph, mask: str, infos: Infos) -> bool:
    """Whether what a mask selects stays rows by itself, up to where other masked places take them."""
    rows: set[str] = set()
    counts: set[str] = set()  # sizes that are how many rows there are
    for node in graph.nodes:
        used = {ref.name for ref in refs((node.args, node.kwargs))}
        if _selecting(node, infos) == mask and not used & rows:
            rows.add(node.name)
        elif not used & (rows | counts) or _takes(node, rows, infos):
            continue
        elif node.op == "sym_size.int" and node.args[1] == 0:
            counts.add(node.name)
        elif _keeps_rows(node, rows, counts, infos):
            rows.update(node.outputs)
        elif node.op != "sym_size.int":
            return False
    return not (rows | counts) & {ref.name for ref in refs(graph.outputs)}


def _takes(node: Node, rows: set[str], infos: Infos) -> bool:
    """Whether a node puts the first rows into places of a mask, and uses them for nothing else."""
    if node.op not in ("masked_scatter", "index_put"):
        return False
    x, places, source, *_ = node.args
    if node.op == "index_put" and (len(places) != 1 or infos[places[0].name].dtype != "bool"):
        return False
    return source.name in rows and not any(ref.name in rows for ref in refs((x, places)))


def _keeps_rows(node: Node, rows: set[str], counts: set[str], infos: Infos) -> bool:
    """Whether each row of the result comes from the same row of what is selected, and no other."""
    args, traits = node.args, traits_of(node.op)
    is_view = spelling(node.op) == "view"
    if any(ref.name in counts for ref in refs((args, node.kwargs))) and not is_view:
        return False
    of_rows = [ref.name for ref in refs((args, node.kwargs)) if ref.name in rows]
    ndim = max(len(infos[ref].shape) for ref in of_rows) if of_rows else 0
    if traits.elementwise:
        for ref in refs((args, node.kwargs)):
            shape = infos[ref.name].shape
            if (len(shape) != ndim) if ref.name in rows else (len(shape) >= ndim and shape[0] != 1):
                return False
        return True
    first = isinstance(args[0], Ref) and args[0].name in rows
    if not first or len(of_rows) != 1:
        return False
    if node.op == "linear":
        return ndim > 1
    if node.op in ("layer_norm", "rms_norm"):
        return len(args[1]) < ndim
    if traits.along is not None:
        return 0 not in OPS[node.op].dims(node, ndim)
    if node.op == "unsqueeze":
        return bool(args[1] % (ndim + 1))
    if node.op == "transpose.int":
        return bool(args[1] % ndim and args[2] % ndim)
    if is_view:
        head, *sizes = args[1]
        counted = head == -1 or (isinstance(head, Ref) and head.name in counts)
        same = infos[args[0].name].shape[0] == node.infos[0].shape[0]
        return counted and same and not any(ref.name in counts for ref in refs(tuple(sizes)))
    return False
