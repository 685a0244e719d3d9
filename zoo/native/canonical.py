"""One spelling for what models write in several: attention, GELU, and layers over rows of all tokens.

The ops are the op table's, before and after; each pass takes a graph and returns another that computes the same, but
for rounding. Packing (`zoo.native.packing`) and the passes that join nodes (`zoo.native.passes`) need to know one
spelling alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from zoo.graph.dims import broadcast
from zoo.graph.facts import Facts
from zoo.graph.ir import Dim, DType, Graph, Node, Ref, ValueInfo, map_refs, refs
from zoo.graph.passes import simplify
from zoo.native.passes import rewritten
from zoo.ops import spelling, traits_of

__all__ = ["canonical"]


def canonical(graph: Graph) -> Graph:
    """The graph after all of these passes."""
    before = graph
    for run in (by_tokens, gelus, attentions):
        graph = run(graph)
    return graph if graph is before else simplify(graph)


# --- GELU -----------------------------------------------------------------------------------------------------------


def gelus(graph: Graph) -> Graph:
    """0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))) and 0.5 x (1 + erf(x / √2)) -> gelu."""

    def rule(values: Facts, node: Node) -> Any:
        if not values.is_float(Ref(node.name)):
            return None
        for half, factor in (node.args, node.args[::-1]):
            halved = values.made_by(half, "mul.Tensor", "div.Tensor")
            plus = values.made_by(factor, "add.Tensor")
            curve = values.made_by(plus.args[0], "tanh", "erf") if plus and plus.args[1:] == (1,) else None
            if halved is None or plus is None or curve is None:
                continue
            x = halved.args[0]
            inner = values.makers.get(curve.args[0].name)
            if inner is None or halved.args[1] != (0.5 if halved.op == "mul.Tensor" else 2):
                continue
            within = list(_cubic(values, inner, x) if curve.op == "tanh" else _over_root(inner, x))
            chain = [*within, curve, plus]
            if not within or not all(values.only_for(a, b) for a, b in zip(chain, [*chain[1:], node], strict=True)):
                continue
            if values.only_for(halved, node):
                approximate = {"approximate": "tanh"} if curve.op == "tanh" else {}
                return Node("gelu", (x,), approximate, node.outputs, node.infos), [*chain, halved]
        return None

    return rewritten(graph, ("mul.Tensor",), rule)


def _cubic(values: Facts, scaled: Node, x: Ref) -> Iterator[Node]:
    """The nodes of √(2/π) (x + 0.044715 x³), each for the next alone; none if it is not that."""
    total = values.made_by(scaled.args[0], "add.Tensor")
    term = values.made_by(total.args[1], "mul.Tensor") if total and total.args[0] == x else None
    cube = values.made_by(term.args[0], "pow.Tensor_Scalar") if term else None
    if total is None or term is None or cube is None or scaled.op != "mul.Tensor" or cube.args != (x, 3):
        return
    if _near(scaled.args[1], 0.7978845608028654) and _near(term.args[1], 0.044715):
        yield from (cube, term, total, scaled)


def _over_root(scaled: Node, x: Ref) -> Iterator[Node]:
    factor = {"div.Tensor": 1.4142135623730951, "mul.Tensor": 0.7071067811865476}.get(scaled.op)
    if factor is not None and scaled.args[0] == x and _near(scaled.args[1], factor):
        yield scaled


def _near(value: Any, expected: float) -> bool:
    return isinstance(value, float) and abs(value - expected) < 1e-7


# --- attention ------------------------------------------------------------------------------------------------------

_HIDES = -1e30
"""A score that this, or less, is added to or put in place of counts for nothing."""


@dataclass(slots=True)
class _Scores:
    """softmax's argument taken apart: scale * query @ keys, and what is added to it, first to last."""

    query: Ref
    keys: Ref
    scale: float
    added: list[Any]
    nodes: list[Node]


def attentions(graph: Graph) -> Graph:
    """softmax(scale * q @ kᵀ + bias) @ v of [batch, heads, sequence, width] -> scaled_dot_product_attention.

    The sum of what is added to the scores of every layer is computed once; `where(mask, scores, lowest)` adds, too.
    """
    if not any(node.op in _SOFTMAX for node in graph.nodes):
        return graph
    values = Facts(graph)
    found: dict[int, tuple[Node, _Scores]] = {}
    for node in graph.nodes:
        weights = values.made_by(node.args[0], *_SOFTMAX) if node.op == "matmul" else None
        if weights is None or not _over_the_last(weights) or not values.only_for(weights, node):
            continue
        scores = _taken_apart(values, weights)
        if scores is not None and _in_heads(values, scores.query, scores.keys, node.args[1]):
            found[id(node)] = weights, scores
    if not found:
        return graph
    gone = {id(old) for weights, scores in found.values() for old in (weights, *scores.nodes)}
    made: dict[Any, Ref] = {}
    nodes: list[Node] = []

    def emit(op: str, info: ValueInfo, *args: Any) -> Ref:
        key = (op, *args)
        if key not in made:
            made[key] = Ref(f"{op} of attention {len(made)}")
            nodes.append(Node(op, args, {}, (made[key].name,), (info,)))
        return made[key]

    for node in graph.nodes:
        if id(node) in gone:
            continue
        if id(node) in found:
            weights, scores = found[id(node)]
            mask, info = None, ValueInfo("float32")
            for term in scores.added:
                shape = values.infos[term[1].name if isinstance(term, tuple) else term.name].shape
                new = emit(term[0], ValueInfo("float32", shape), *term[1:]) if isinstance(term, tuple) else term
                info = ValueInfo("float32", broadcast(info.shape, shape))
                mask = new if mask is None else emit("add.Tensor", info, mask, new)
            transposed = values.made_by(scores.keys, "transpose.int", "mT")
            if transposed is not None and sorted(dim % 4 for dim in transposed.args[1:]) in ([], [2, 3]):
                keys = transposed.args[0]
            else:
                *lead, width, length = values.infos[scores.keys.name].shape
                keys = emit("transpose.int", ValueInfo("float32", (*lead, length, width)), scores.keys, -1, -2)
            args = (scores.query, keys, node.args[1], mask)
            node = replace(node, op="scaled_dot_product_attention", args=args, kwargs={"scale": scores.scale})
        nodes.append(node)
    return replace(graph, nodes=nodes)


_SOFTMAX = ("softmax.int", "_softmax")


def _over_the_last(softmax: Node) -> bool:
    options = (*softmax.args[2:], *softmax.kwargs.values())
    return softmax.args[1] in (-1, 3) and all(option in (None, False, DType("float32")) for option in options)


def _in_heads(values: Facts, *given: Any) -> bool:
    """Whether these are float32 [batch, heads, …], of the same batch and heads."""
    shapes = [values.infos[ref.name].shape for ref in given if values.is_float(ref)]
    return len(shapes) == len(given) and {len(shape) for shape in shapes} == {4} and len({x[:2] for x in shapes}) == 1


def _taken_apart(values: Facts, softmax: Node) -> _Scores | None:
    added: list[Any] = []
    nodes: list[Node] = []
    scale, user, at = 1.0, softmax, softmax.args[0]
    while True:
        node = values.makers.get(at.name)
        if node is None or node.kwargs or not values.is_float(at) or not values.only_for(node, user):
            return None
        nodes.append(node)
        if node.op == "matmul":
            return _Scores(*node.args, scale, added[::-1], nodes) if len(node.args) == 2 else None
        step = _step(values, node)
        if step is None:
            return None
        at, term = step
        if isinstance(term, float):
            scale *= term
        elif scale != 1:
            return None  # what is added here is scaled, too
        else:
            added.append(term)
        user = node


def _step(values: Facts, node: Node) -> tuple[Ref, Any] | None:
    """The scores before a node, and the number it multiplies them by or what it adds: a value, or (op, arguments)."""
    if len(node.args) < 2:
        return None
    first, second = node.args[:2]
    if node.op == "add.Tensor" and isinstance(first, Ref) and isinstance(second, Ref):
        for scores, other in ((first, second), (second, first)):
            maker = values.makers.get(scores.name)
            if maker is not None and maker.op in _STEPS and values.infos[scores.name] == node.infos[0]:
                return (scores, other) if values.is_float(other) else None
    elif node.op in ("mul.Tensor", "div.Tensor") and isinstance(second, (int, float)) and second:
        return first, float(second) if node.op == "mul.Tensor" else 1 / second
    elif node.op in _WHERE:
        scores, other = node.args[1:]
        if _number(values, other) <= _HIDES:
            return scores, ("where.Scalar", first, 0.0, _number(values, other))
        if _number(values, scores) <= _HIDES:
            return other, ("where.Scalar", first, _number(values, scores), 0.0)
    return None


_WHERE = ("where.self", "where.ScalarSelf", "where.ScalarOther")
_STEPS = ("matmul", "add.Tensor", "mul.Tensor", "div.Tensor", *_WHERE)


def _number(values: Facts, ref: Any) -> float:
    """The number that a value without dims holds; NaN of one that is not known."""
    if isinstance(ref, float):
        return ref
    made = values.made_by(ref, "scalar_tensor", "full")
    if made is not None and not values.infos[ref.name].shape:
        return float(made.args[-1])
    constant = values.graph.constants.get(ref.name) if isinstance(ref, Ref) else None
    return float(constant) if constant is not None and constant.ndim == 0 else float("nan")


# --- rows of all tokens ---------------------------------------------------------------------------------------------


def by_tokens(graph: Graph) -> Graph:
    """x.view(-1, n), layers over those rows, and .view(batch, sequence, m) -> the layers over [batch, sequence, n].

    An addmm is a product and a sum then. What is not made tokens of again stays rows.
    """
    if not any(_joins(node) for node in graph.nodes):
        return graph
    rows = _Rows(graph)
    return rows.graph() if rows.back else graph


def _joins(node: Node) -> bool:
    """Whether a view makes rows of all dims but the last."""
    match node.args:
        case (_, (-1, _)):
            return spelling(node.op) == "view"
    return False


class _Rows:
    """Values that are rows of tokens.

    Attributes:
        lead: rows -> the dims that were joined.
        starts: the views that make rows.
        back: the views that make tokens of rows again.
        wanted: rows that such a view is made of.
    """

    def __init__(self, graph: Graph) -> None:
        self.source, self.values = graph, Facts(graph)
        self.lead: dict[str, tuple[Dim, ...]] = {}
        self.starts: set[str] = set()
        self.back: set[str] = set()
        for node in graph.nodes:
            self.look(node)
        self.wanted: set[str] = set()
        for node in reversed(graph.nodes):
            if node.name in self.back or node.name in self.wanted:
                self.wanted |= {ref.name for ref in refs((node.args, node.kwargs)) if ref.name in self.lead}

    def look(self, node: Node) -> None:
        first = node.args[0] if node.args else None
        shape = node.infos[0].shape
        if spelling(node.op) == "view" and isinstance(first, Ref) and first.name in self.lead:
            lead = self.lead[first.name]
            if shape[:-1] == lead and shape[-1] == self.shape(first)[-1]:
                self.back.add(node.name)
        elif _joins(node) and isinstance(first, Ref):
            old = self.shape(first)
            if len(old) > 2 and isinstance(old[-1], int) and old[-1] == shape[-1] and self.values.is_float(first):
                self.lead[node.name] = old[:-1]
                self.starts.add(node.name)
        elif len(node.outputs) == 1 and len(shape) == 2 and isinstance(shape[-1], int):
            leads = {self.lead[ref.name] for ref in refs((node.args, node.kwargs)) if ref.name in self.lead}
            if len(leads) == 1 and self.by_row(node):
                self.lead[node.name] = leads.pop()

    def by_row(self, node: Node) -> bool:
        """Whether each row of the result is made of that row alone."""

        def apart(*args: Any) -> bool:
            return not any(ref.name in self.lead for ref in refs(args))

        if node.op == "addmm":
            bias, x, weight = node.args
            return not node.kwargs and x.name in self.lead and apart(bias, weight) and len(self.shape(bias)) == 1
        if node.op in ("linear", "mm", "matmul"):
            weight = node.args[1]
            return node.args[0].name in self.lead and apart(node.args[1:], node.kwargs) and len(self.shape(weight)) == 2
        if node.op == "layer_norm":
            return len(node.args[1]) == 1 and apart(node.args[1:], node.kwargs)
        if not traits_of(node.op).elementwise:
            return False
        others = [ref for ref in refs((node.args, node.kwargs)) if ref.name not in self.lead]
        return all(len(self.shape(ref)) < 2 for ref in others)

    def shape(self, ref: Ref) -> tuple[Dim, ...]:
        return self.values.infos[ref.name].shape

    def graph(self) -> Graph:
        tokens: dict[str, Ref] = {}
        nodes: list[Node] = []

        def current(ref: Ref) -> Ref:
            return tokens[ref.name] if ref.name in self.back else ref

        def of_tokens(ref: Ref) -> Ref:
            return tokens[ref.name] if ref.name in self.wanted else current(ref)

        def with_refs(node: Node, take: Any) -> Node:
            return replace(node, args=map_refs(take, node.args), kwargs=map_refs(take, node.kwargs))

        for node in self.source.nodes:
            if node.name in self.back:
                tokens[node.name] = of_tokens(node.args[0])
            elif node.name in self.starts:
                nodes.append(with_refs(node, current))  # dropped if nobody needs rows
                tokens[node.name] = nodes[-1].args[0]
            elif node.name in self.wanted:
                nodes += self.over_tokens(with_refs(node, of_tokens))
                tokens[node.name] = Ref(nodes[-1].name)
                rows = (tokens[node.name], (-1, node.infos[0].shape[-1]))
                nodes.append(Node("view", rows, {}, node.outputs, node.infos))
            else:
                nodes.append(with_refs(node, current))
        outputs = {name: current(ref) for name, ref in self.source.outputs.items()}
        return replace(self.source, nodes=nodes, outputs=outputs)

    def over_tokens(self, node: Node) -> Iterator[Node]:
        info = ValueInfo(node.infos[0].dtype, (*self.lead[node.name], node.infos[0].shape[-1]))
        name = f"{node.name} of tokens"
        if node.op in ("addmm", "mm", "matmul"):
            *bias, x, weight = node.args
            product = f"{name}, product" if bias else name
            yield Node("matmul", (x, weight), {}, (product,), (info,))
            if bias:
                yield Node("add.Tensor", (Ref(product), *bias), {}, (name,), (info,))
        else:
            yield replace(node, outputs=(name,), infos=(info,))
