"""Passes over a graph that join what one kernel does. Each takes a graph and returns another that computes the same.

Nodes that they make, all float32:

    native::linear  (x, weights, biases, turned, activation, residual): one result per weight; weights are [out, in] or,
                    if turned, [in, out]; biases () where there are none
    native::conv    (x, weight, bias, stride, padding, dilation, groups, batch norm or None, activation, residual); of
                    padding a number for each dim or a pair, before and after
    native::norm    (x, residual, cols, weight, bias, eps, rms): the norm of x + residual, and x + residual
    native::gated   (x, y, activation): activation(x) * y
    native::mask    (mask): an attention mask as the kernel wants it
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Container
from typing import Any

from zoo.graph.facts import Facts
from zoo.graph.ir import Graph, Node, Ref, ValueInfo

__all__ = ["PASSES", "fused"]


def fused(graph: Graph) -> Graph:
    """The graph after all passes."""
    for run in PASSES:
        graph = run(graph)
    return graph


def rewritten(
    graph: Graph, ops: Container[str], rule: Callable[[Facts, Node], tuple[Node, list[Node]] | None]
) -> Graph:
    """The graph with each node that `rule` gives a new one for replaced, and the nodes that it has joined gone.

    It is asked for nodes of these ops, in order.
    """
    if not any(node.op in ops for node in graph.nodes):
        return graph
    nodes = list(graph.nodes)
    values = Facts(graph)
    replaced: dict[int, Node] = {}
    gone: set[int] = set()
    for node in nodes:
        found = rule(values, node) if node.op in ops else None
        if found is None:
            continue
        new, joined = found
        if any(id(old) in gone or id(old) in replaced for old in joined):
            continue
        replaced[id(node)] = new
        gone.update(id(old) for old in joined)
    if not replaced:
        return graph
    kept = [replaced.get(id(node), node) for node in nodes if id(node) not in gone]
    return dataclasses.replace(graph, nodes=kept)


def linears(graph: Graph) -> Graph:
    """linear, addmm and matmul with a matrix, on parameters -> native::linear; also one to which a bias is added."""

    def rule(values: Facts, node: Node) -> Any:
        x, weight, *rest = (*node.args[1:], node.args[0]) if node.op == "addmm" else node.args
        if not values.is_float(x) or not values.is_param(weight, 2) or len(values.infos[x.name].shape) < 2:
            return None
        bias = rest[0] if rest else node.kwargs.get("bias")
        if node.op == "addmm" and node.kwargs:  # scaled
            return None
        if bias is not None and not values.is_param(bias, 1):
            return None
        args = (x, (weight,), () if bias is None else (bias,), node.op != "linear", "none", None)
        return dataclasses.replace(node, op="native::linear", args=args, kwargs={}), []

    def biases(values: Facts, node: Node) -> Any:
        for x, bias in (node.args, node.args[::-1]) if len(node.args) == 2 and not node.kwargs else ():
            before = values.made_by(x, "native::linear")
            if before is None or before.args[2] or not values.is_param(bias, 1) or not values.only_for(before, node):
                continue
            if values.params[bias.name].shape == node.infos[0].shape[-1:]:
                args = (*before.args[:2], (bias,), *before.args[3:])
                return dataclasses.replace(before, args=args, outputs=node.outputs, infos=node.infos), [before]
        return None

    return rewritten(rewritten(graph, ("linear", "addmm", "matmul", "mm"), rule), ("add.Tensor",), biases)


def gates(graph: Graph) -> Graph:
    """activation(x) * y -> native::gated."""

    def rule(values: Facts, node: Node) -> Any:
        if node.op != "mul.Tensor" or not values.is_float(Ref(node.name)):
            return None
        for x, y in (node.args, node.args[::-1]):
            active = values.made_by(x, *_ACTIVATIONS)
            if active is None or active.op == "tanh" or not values.only_for(active, node):
                continue
            if values.same_shape(active.args[0], y):
                args = (active.args[0], y, _activation(active))
                return Node("native::gated", args, {}, node.outputs, node.infos), [active]
        return None

    return rewritten(graph, ("mul.Tensor",), rule)


def activations(graph: Graph) -> Graph:
    """linear or convolution, then an activation -> one node."""

    def rule(values: Facts, node: Node) -> Any:
        if node.op == "hardtanh" and (node.args[1:] != (0.0, 6.0) or node.kwargs):
            return None
        before = values.made_by(node.args[0], "native::linear", "native::conv")
        if before is None or len(before.outputs) > 1 or before.args[-2] != "none" or not values.only_for(before, node):
            return None
        if before.op == "native::linear" and before.args[-1] is not None:
            return None
        args = (*before.args[:-2], _activation(node), before.args[-1])
        return dataclasses.replace(before, args=args, outputs=node.outputs, infos=node.infos), [before]

    return rewritten(graph, (*_ACTIVATIONS, "relu6", "hardtanh"), rule)


def residuals(graph: Graph) -> Graph:
    """linear or convolution, then a sum -> one node."""

    def rule(values: Facts, node: Node) -> Any:
        if node.op != "add.Tensor" or len(node.args) != 2 or node.kwargs:
            return None
        candidates = []
        for x, other in (node.args, node.args[::-1]):
            before = values.made_by(x, "native::linear", "native::conv")
            if before is None or len(before.outputs) > 1 or before.args[-1] is not None:
                continue
            if before.op == "native::conv" and before.args[-2] != "none":
                continue
            if values.only_for(before, node) and values.same_shape(x, other) and x != other:
                candidates.append((values.positions[x.name], before, other))
        if not candidates:
            return None
        _, before, other = max(candidates, key=lambda found: found[0])
        args = (*before.args[:-1], other)
        return dataclasses.replace(before, args=args, outputs=node.outputs, infos=node.infos), [before]

    return rewritten(graph, ("add.Tensor",), rule)


def projections(graph: Graph) -> Graph:
    """Linears of one input, as queries, keys and values are -> one product for all."""
    values = Facts(graph)
    groups: dict[Any, list[Node]] = {}
    for node in graph.nodes:
        if node.op == "native::linear" and len(node.outputs) == 1 and node.args[4:] == ("none", None):
            groups.setdefault((node.args[0].name, len(node.args[2]), node.args[3]), []).append(node)
    first: dict[int, Node] = {}
    gone: set[int] = set()
    for nodes in groups.values():
        if len(nodes) < 2 or any(node.infos[0].shape[:-1] != nodes[0].infos[0].shape[:-1] for node in nodes):
            continue
        weights = tuple(node.args[1][0] for node in nodes)
        turned = nodes[0].args[3]
        if len({values.params[w.name].shape[0 if turned else 1] for w in weights}) > 1:
            continue
        args = (nodes[0].args[0], weights, tuple(b for node in nodes for b in node.args[2]), turned, "none", None)
        names, infos = tuple(node.name for node in nodes), tuple(node.infos[0] for node in nodes)
        first[id(nodes[0])] = Node("native::linear", args, {}, names, infos)
        gone.update(id(node) for node in nodes[1:])
    kept = [first.get(id(node), node) for node in graph.nodes if id(node) not in gone]
    return dataclasses.replace(graph, nodes=kept)


def rms_norms(graph: Graph) -> Graph:
    """x * rsqrt(mean(x²) + eps) * weight, as exported -> native::norm."""

    def scaled(values: Facts, node: Node) -> Any:
        """(x, eps, the nodes joined) if `node` is x * rsqrt(mean(x²) + eps)."""
        for x, factor in (node.args, node.args[::-1]):
            root = values.made_by(factor, "rsqrt")
            plus = values.made_by(root.args[0], "add.Tensor", "add.Scalar") if root else None
            mean = values.made_by(plus.args[0], "mean.dim") if plus and isinstance(plus.args[1], float) else None
            square = values.made_by(mean.args[0], "pow.Tensor_Scalar") if mean else None
            if root is None or plus is None or mean is None or square is None or not values.is_float(x):
                continue
            if mean.args[1:] != ((-1,), True) or mean.kwargs or square.args != (x, 2):
                continue
            chain = [square, mean, plus, root, node]
            if all(values.only_for(a, b) for a, b in itertools.pairwise(chain)):
                return x, plus.args[1], chain[:-1]
        return None

    def rule(values: Facts, node: Node) -> Any:
        if node.op != "mul.Tensor" or not values.is_float(Ref(node.name)):
            return None
        cols = node.infos[0].shape[-1] if node.infos[0].shape else None
        if not isinstance(cols, int):
            return None
        for weight, inner in (node.args, node.args[::-1]):
            product = values.made_by(inner, "mul.Tensor")
            if product is None or not values.only_for(product, node) or not values.is_float(weight):
                continue
            found = scaled(values, product)
            if found is not None and values.infos[weight.name].shape == (cols,):
                x, eps, joined = found
                args = (x, None, cols, weight, None, eps, True)
                return _norm(node, args), [*joined, product]
        return None

    return rewritten(graph, ("mul.Tensor",), rule)


def norms(graph: Graph) -> Graph:
    """layer_norm and rms_norm over the last dim, and the sum before one -> native::norm."""

    def rule(values: Facts, node: Node) -> Any:
        if node.op not in ("layer_norm", "rms_norm") or not values.is_float(node.args[0]) or len(node.args[1]) != 1:
            return None
        if node.op == "layer_norm":
            x, (cols,), weight, bias, eps = (*node.args, None, None, 1e-5)[:5] if len(node.args) < 5 else node.args[:5]
        else:
            x, (cols,), weight, eps = (*node.args, None, None)[:4] if len(node.args) < 4 else node.args[:4]
            bias = None
        if node.kwargs or not isinstance(cols, int):
            return None
        if any(v is not None and not values.is_float(v) for v in (weight, bias)):
            return None
        eps = 2**-23 if eps is None else eps
        return _norm(node, (x, None, cols, weight, bias, eps, node.op == "rms_norm")), []

    def sums(values: Facts, node: Node) -> Any:
        if node.op != "native::norm" or node.args[1] is not None:
            return None
        add = values.made_by(node.args[0], "add.Tensor")
        if add is None or len(add.args) != 2 or add.kwargs or not values.same_shape(*add.args):
            return None
        # the sum is made where the norm is: nobody may want it before
        start = values.positions[node.name]
        if any(values.positions[user.name] < start for user in values.users[add.name]):
            return None
        args = (*add.args, *node.args[2:])
        outputs = (node.name, add.name)
        return Node("native::norm", args, {}, outputs, (node.infos[0], add.infos[0])), [add]

    return rewritten(rewritten(graph, ("layer_norm", "rms_norm"), rule), ("native::norm",), sums)


def masks(graph: Graph) -> Graph:
    """What is added to attention scores is prepared once for all layers."""
    values = Facts(graph)
    made: dict[str, str] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        heads = [values.infos[ref.name] for ref in node.args[:3] if values.is_float(ref)] if _attends(node) else []
        if len(heads) == 3 and all(len(info.shape) == 4 for info in heads):
            mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
            if isinstance(mask, Ref):
                if mask.name not in made:
                    made[mask.name] = f"mask of {mask.name}"
                    info = (ValueInfo("float32", ()),)
                    nodes.append(Node("native::mask", (mask,), {}, (made[mask.name],), info))
                new = Ref(made[mask.name])
                args, kwargs = node.args, dict(node.kwargs)
                if len(args) > 3:
                    args = (*args[:3], new, *args[4:])
                else:
                    kwargs["attn_mask"] = new
                node = dataclasses.replace(node, op="native::attention", args=args, kwargs=kwargs)
        nodes.append(node)
    return dataclasses.replace(graph, nodes=nodes)


def convolutions(graph: Graph) -> Graph:
    """Convolutions on parameters, with the zeros around their input and the batch norm after them -> native::conv."""

    def plain(values: Facts, node: Node) -> Any:
        if node.op not in ("conv1d", "conv2d") or node.kwargs or not values.is_float(node.args[0]):
            return None
        given = [*node.args, *(None, 1, 0, 1, 1)[len(node.args) - 2 :]]
        x, weight, bias, stride, padding, dilation, groups = given
        dims = 1 if node.op == "conv1d" else 2
        if not values.is_param(weight, dims + 2) or (bias is not None and not values.is_param(bias, 1)):
            return None
        if len(values.infos[x.name].shape) != dims + 2:
            return None
        args = (x, weight, bias, stride, padding, dilation, groups, None, "none", None)
        return dataclasses.replace(node, op="native::conv", args=args), []

    def padded(values: Facts, node: Node) -> Any:
        pad = values.made_by(node.args[0], "pad")
        if pad is None or pad.kwargs or not values.only_for(pad, node) or pad.args[2:] not in _ZEROS:
            return None
        sizes, dims = pad.args[1], len(values.infos[node.name].shape) - 2
        if len(sizes) > 2 * dims or any(not isinstance(n, int) or n < 0 for n in sizes):
            return None
        sizes = (*sizes, *[0] * (2 * dims - len(sizes)))  # before and after, from the last dim on
        given = node.args[4] if isinstance(node.args[4], tuple) else (node.args[4],)
        given = given * dims if len(given) == 1 else given
        around = tuple((own + sizes[-2 * i - 2], own + sizes[-2 * i - 1]) for i, own in enumerate(given))
        args = (pad.args[0], *node.args[1:4], around, *node.args[5:])
        return dataclasses.replace(node, args=args), [pad]

    def folded(values: Facts, node: Node) -> Any:
        if node.kwargs or len(node.args) != _BATCH_NORMS[node.op]:
            return None
        x, scale, shift, mean, variance, *training, _, eps = node.args[:8]
        if any(training):
            return None
        conv = values.made_by(x, "native::conv")
        if conv is None or conv.args[7:] != (None, "none", None) or not values.only_for(conv, node):
            return None
        if any(v is not None and not values.is_param(v, 1) for v in (scale, shift, mean, variance)):
            return None
        if any(name in values.outputs or values.users.get(name) for name in node.outputs[1:]):
            return None
        args = (*conv.args[:7], (scale, shift, mean, variance, eps), "none", None)
        return dataclasses.replace(conv, args=args, outputs=node.outputs[:1], infos=node.infos[:1]), [conv]

    graph = rewritten(graph, ("conv1d", "conv2d"), plain)
    return rewritten(rewritten(graph, ("native::conv",), padded), _BATCH_NORMS, folded)


_ZEROS = ((), ("constant",), ("constant", None), ("constant", 0.0))
"""What padding with zeros has after the sizes."""
_BATCH_NORMS = {"_native_batch_norm_legit_no_training": 7, "batch_norm": 9}
"""Op -> how many arguments it has: the second has whether it trains before the last three."""

_ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "sigmoid")


def _activation(node: Node) -> str:
    if node.op == "hardtanh":
        return "relu6"
    tanh = "tanh" in (*node.args[1:], node.kwargs.get("approximate"))
    return "gelu_tanh" if node.op == "gelu" and tanh else node.op


def _attends(node: Node) -> bool:
    return node.op == "scaled_dot_product_attention"


def _norm(node: Node, args: tuple[Any, ...]) -> Node:
    return Node("native::norm", args, {}, (node.name, f"sum before {node.name}"), (node.infos[0], node.infos[0]))


PASSES = (gates, linears, convolutions, residuals, activations, rms_norms, norms, projections, masks)
"""In the order they run."""
