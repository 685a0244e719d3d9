"""A batch of mixed lengths without its padding: the graph over the real tokens of all sequences, one after another.

`packed` looks for the input that says which tokens are real, and follows what is computed from the tokens. As long as
each number of a result comes from numbers of the same token (linear layers, norms, activations, what is broadcast over
tokens), a result [batch, sequence, …] may as well be computed as [1, rows, …], the rows being the real tokens.
Attention stays within a sequence by offsets. All that is not computed from packed values (masks, positions, ids) is
computed as ever and its rows are taken out where they meet packed ones, so it needs no proof. One node that does
anything else with packed tokens (a convolution or a mean over them), and the graph is not packed at all.

That padding takes no part in attention is checked at each call, by the masks' own values: real queries see no key that
is padding, and the rest of the mask is the same for all sequences. Otherwise, or if padding is not at the end of each
sequence, the call is `NotPacked` and goes the usual way.

Nodes made here:

    native::sequences (mask): offsets [batch + 1], and of each row its sequence and its position
    native::pack      (x, sequence, positions, batch axis or None, sequence axis or None, and those of the result)
    native::first     (x, offsets, sequence axis): the first token of each sequence
    native::unpack    (x, mask, sequence, positions, batch axis, sequence axis): padding is 0
    native::common    (mask, offsets): the part of an attention mask that sequences share, as the kernel takes it
    native::within    (q, k, v, mask, offsets, causal, scale): attention within sequences
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from zoo.errors import GraphError
from zoo.graph.dims import symbols
from zoo.graph.facts import Facts
from zoo.graph.ir import Dim, Graph, Input, Node, Ref, ValueInfo, map_refs, refs
from zoo.graph.passes import simplify
from zoo.native import kernels
from zoo.ops import OPS, Moves, traits_of

__all__ = ["PACKED", "NotPacked", "mask_inputs", "packed"]


class NotPacked(Exception):
    """A call whose padding takes part in what is computed, or lies elsewhere than at the end."""


class _Unproven(Exception):
    """A node that may mix tokens."""


def mask_inputs(graph: Graph) -> list[Input]:
    """The inputs that may say which tokens are real: [batch, sequence], all ones if left out."""
    return [
        item
        for item in graph.inputs
        if (item.default == 1 or item.name == "attention_mask")
        and len(item.shape) == len(set(item.shape)) == 2
        and all(isinstance(dim, str) for dim in item.shape)
    ]


def packed(graph: Graph) -> Graph | None:
    """The graph over real tokens alone; None if that is not proven right.

    Outputs are in the shapes of the graph's own, 0 at padding.

    Args:
        graph: in the op table's names, as `zoo.native.canonical` spells them.
    """
    for item in mask_inputs(graph):
        try:
            return _Packing(graph, item).graph()
        except _Unproven:
            continue
    return None


_NORMS = ("layer_norm", "rms_norm")


class _Packing:
    """A graph on the way to being packed. `axes` holds the axes (batch, sequence) of packed values, by their names."""

    def __init__(self, graph: Graph, mask: Input) -> None:
        self.source, self.mask = graph, Ref(mask.name)
        self.batch, self.sequence = mask.shape
        self.infos = Facts(graph).infos
        self.axes: dict[str, tuple[int, int]] = {}
        self.nodes: list[Node] = []
        self.made: dict[Any, Ref] = {}
        index = ValueInfo("int64", ("rows",))
        names = ("offsets of sequences", "sequences of rows", "positions of rows")
        self.offsets, self.rows, self.positions = map(Ref, names)
        self.nodes.append(Node("native::sequences", (self.mask,), {}, names, (index, index, index)))

    def graph(self) -> Graph:
        for node in self.source.nodes:
            if self.starts(node) or any(ref.name in self.axes for ref in refs((node.args, node.kwargs))):
                self.add(node)
            else:
                self.nodes.append(node)
        self.check_mask()
        outputs = {name: self.unpacked(ref) for name, ref in self.source.outputs.items()}
        return simplify(replace(self.source, nodes=self.nodes, outputs=outputs))

    def starts(self, node: Node) -> bool:
        """Whether a node is worth packing though nothing before it is: a look-up by ids, or a layer over tokens."""
        if node.op not in ("embedding", "linear", *_NORMS):
            return False
        tokens = node.args[1 if node.op == "embedding" else 0]
        shape = self.shape(tokens)
        return shape[:2] == (self.batch, self.sequence) and len(shape) == (2 if node.op == "embedding" else 3)

    def check_mask(self) -> None:
        """Some attention is masked by the input: else there is no telling what it means."""
        reached = Facts(self.source).reached([self.mask.name])
        if not any(node.op == "native::common" and node.args[0].name in reached for node in self.nodes):
            raise _Unproven

    def add(self, node: Node) -> None:
        """The packed form of a node."""
        first = node.args[0] if node.args else None
        if node.op == "sym_size.int":
            self.size(node)
        elif node.op == "scaled_dot_product_attention":
            self.attention(node)
        elif node.op == "embedding":
            table, ids, *rest = node.args
            rank = len(self.shape(ids))
            axes = self.axes.get(getattr(ids, "name", ""), (0, 1))
            self.plain(table)
            self.put(node, axes, (table, self.aligned(ids, rank, axes), *rest))
        elif traits_of(node.op).elementwise:
            self.elementwise(node)
        elif node.op == "cat" and isinstance(first, tuple):
            self.elementwise(node)
            self.not_tokens(node.args[1] if len(node.args) > 1 else 0, self.axes[node.name], node.infos[0].shape)
        elif not isinstance(first, Ref):
            raise _Unproven
        else:
            self.by_rows(node, first)

    def by_rows(self, node: Node, first: Ref) -> None:
        """A node of one packed value, which the others know nothing of."""
        args, rank, traits = node.args, len(self.shape(first)), traits_of(node.op)
        resizes = node.op == "expand" or traits.moves is Moves.RESHAPE
        axes = self.axes.get(first.name, (0, 1))
        for ref in refs((args[1:], node.kwargs)):
            if not resizes:
                self.plain(ref)
        x = self.aligned(first, rank, axes)
        b, s = axes
        if node.op == "linear" or (node.op == "matmul" and len(self.shape(args[1])) == 2):
            self.not_tokens(-1, axes, self.shape(first))
            self.put(node, axes, (x, *args[1:]))
        elif node.op in _NORMS:
            if len(args[1]) >= rank - max(axes):
                raise _Unproven
            self.put(node, axes, (x, *args[1:]))
        elif node.op == "select.int" and args[1] % rank == s and args[2] == 0:
            if b > s:
                raise _Unproven
            # from here on there is one row per sequence again, as there ever was
            self.nodes.append(replace(node, op="native::first", args=(x, self.offsets, s, b)))
        elif traits.along is not None:
            gone = {self.not_tokens(dim, axes, self.shape(first)) for dim in OPS[node.op].dims(node, rank)}
            if len(node.infos[0].shape) < rank:
                axes = (b - sum(dim < b for dim in gone), s - sum(dim < s for dim in gone))
            self.put(node, axes, (x, *args[1:]))
        elif node.op == "expand":
            self.expand(node, x, axes)
        elif (moved := self.moved(node, axes, rank)) is not None:
            self.put(node, moved, (x, *args[1:]))
        elif resizes:
            self.view(node, x, axes)
        else:
            raise _Unproven

    def moved(self, node: Node, axes: tuple[int, int], rank: int) -> tuple[int, int] | None:
        """Where tokens are after a node that makes dims change places, come and go; None of another node."""
        order = list(range(rank))
        if node.op == "transpose.int":
            i, j = (dim % rank for dim in node.args[1:3])
            order[i], order[j] = order[j], order[i]
        elif node.op == "permute":
            order = [dim % rank for dim in node.args[1]]
        elif node.op == "unsqueeze":
            order.insert(node.args[1] % (rank + 1), -1)
        elif node.op in ("squeeze.dim", "squeeze.dims"):
            dims = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
            gone = {self.not_tokens(dim, axes, self.shape(node.args[0])) for dim in dims}
            if any(self.shape(node.args[0])[dim] != 1 for dim in gone):
                raise _Unproven
            order = [dim for dim in order if dim not in gone]
        else:
            return None
        return order.index(axes[0]), order.index(axes[1])

    def elementwise(self, node: Node) -> None:
        rank = len(node.infos[0].shape)
        packs = [ref for ref in refs((node.args, node.kwargs)) if ref.name in self.axes]
        found = set()
        for ref in packs:
            b, s = self.axes[ref.name]
            new = rank - len(self.shape(ref))
            found.add((b + new, s + new))
        if len(found) != 1:
            raise _Unproven
        axes = found.pop()

        def take(ref: Ref) -> Ref:
            return self.aligned(ref, rank, axes)

        self.put(node, axes, map_refs(take, node.args), map_refs(take, node.kwargs))

    def view(self, node: Node, x: Ref, axes: tuple[int, int]) -> None:
        """Other dims may be joined and split; tokens stay: what is before, between and after them fills the same."""
        old, new = self.shape(node.args[0]), node.infos[0].shape
        if self.batch not in new or self.sequence not in new:
            raise _Unproven
        b, s = new.index(self.batch), new.index(self.sequence)

        def runs(shape: tuple[Dim, ...], first: int, second: int) -> list[int]:
            parts = shape[:first], shape[first + 1 : second], shape[second + 1 :]
            numbers = [[dim for dim in part if isinstance(dim, int)] for part in parts]
            if first > second or sum(map(len, numbers)) != len(shape) - 2:
                raise _Unproven
            return [math.prod(part) for part in numbers]

        if runs(old, *axes) != runs(new, b, s):
            raise _Unproven
        size = tuple(1 if axis == b else -1 if axis == s else dim for axis, dim in enumerate(new))
        self.put(replace(node, op="view"), (b, s), (x, size))

    def expand(self, node: Node, x: Ref, axes: tuple[int, int]) -> None:
        new = node.infos[0].shape
        b, s = (axis + len(new) - len(self.shape(node.args[0])) for axis in axes)
        size = tuple(-1 if axis in (b, s) else dim for axis, dim in enumerate(new))
        if any(isinstance(dim, str) for dim in size):
            raise _Unproven
        self.put(node, (b, s), (x, size))

    def size(self, node: Node) -> None:
        """Sizes are those of the padded batch: what needs them is not packed."""
        x, dim = node.args
        b, s = self.axes[x.name]
        dim %= len(self.shape(x))
        args = (self.mask, (b, s).index(dim)) if dim in (b, s) else (x, dim)
        self.nodes.append(replace(node, args=args))

    def attention(self, node: Node) -> None:
        given = dict(zip(("q", "k", "v", "attn_mask", "dropout_p", "is_causal"), node.args, strict=False))
        given |= node.kwargs
        parts = [given[name] for name in "qkv" if isinstance(given.get(name), Ref)]
        if [self.axes.get(ref.name) for ref in parts] != [(0, 2)] * 3:
            raise _Unproven
        if any(len(self.shape(ref)) != 4 or self.infos[ref.name].dtype != "float32" for ref in parts):
            raise _Unproven
        mask, causal = given.get("attn_mask"), bool(given.get("is_causal"))
        if given.get("dropout_p") or (mask is None and not causal):
            raise _Unproven
        if isinstance(mask, Ref):
            self.plain(mask, tokens=True)
            mask = self.emit("native::common", ValueInfo("float32"), mask, self.offsets)
        args = (*parts, mask, self.offsets, causal, given.get("scale"))
        self.put(replace(node, op="native::within", kwargs={}), (0, 2), args)

    def aligned(self, ref: Ref, rank: int, axes: tuple[int, int]) -> Ref:
        """A value as it meets packed ones of some rank: packed if it is one per token, sequence or position."""
        if ref.name in self.axes:
            return ref
        shape = self.shape(ref)
        b, s = (axis + len(shape) - rank for axis in axes)
        for axis, dim in enumerate(shape):
            own = {b: self.batch, s: self.sequence}.get(axis, dim if isinstance(dim, int) else None)
            if dim != own and not (axis in (b, s) and dim == 1):
                raise _Unproven
        by_batch = b >= 0 and shape[b] == self.batch
        by_sequence = s >= 0 and shape[s] == self.sequence
        if not by_batch and not by_sequence:
            return ref
        if by_batch and s < 0:
            raise _Unproven
        info = ValueInfo(self.infos[ref.name].dtype, self.packed_shape(shape, (b, s)))
        where = (b if by_batch else None, s if by_sequence else None, b, s)
        return self.emit("native::pack", info, ref, self.rows, self.positions, *where)

    def unpacked(self, ref: Ref) -> Ref:
        if ref.name not in self.axes:
            return ref
        return self.emit(
            "native::unpack", self.infos[ref.name], ref, self.mask, self.rows, self.positions, *self.axes[ref.name]
        )

    def put(self, node: Node, axes: tuple[int, int], args: Any, kwargs: Any = None) -> None:
        """Add a packed node, all of whose results have their tokens at `axes` and nowhere else."""
        infos = []
        for name, info in zip(node.outputs, node.infos, strict=True):
            if (info.shape[axes[0]], info.shape[axes[1]]) != (self.batch, self.sequence):
                raise _Unproven
            if any(self.mentioned(dim) for axis, dim in enumerate(info.shape) if axis not in axes):
                raise _Unproven
            self.axes[name] = axes
            infos.append(ValueInfo(info.dtype, self.packed_shape(info.shape, axes)))
        kwargs = node.kwargs if kwargs is None else kwargs
        self.nodes.append(replace(node, args=args, kwargs=kwargs, infos=tuple(infos)))

    def emit(self, op: str, info: ValueInfo, *args: Any) -> Ref:
        key = (op, *args)
        if key not in self.made:
            self.made[key] = Ref(f"{op} {len(self.made)}")
            self.nodes.append(Node(op, args, {}, (self.made[key].name,), (info,)))
        return self.made[key]

    def shape(self, ref: Any) -> tuple[Dim, ...]:
        """The shape that a value has in the padded batch."""
        return self.infos[ref.name].shape if isinstance(ref, Ref) else ()

    def packed_shape(self, shape: tuple[Dim, ...], axes: tuple[int, int]) -> tuple[Dim, ...]:
        new: dict[int, Dim] = {axes[0]: 1, axes[1]: "rows"}
        return tuple(new.get(axis, dim) for axis, dim in enumerate(shape))

    def plain(self, ref: Any, tokens: bool = False) -> None:
        """A value that is not packed, and (unless `tokens`) has nothing to do with tokens."""
        if not isinstance(ref, Ref):
            return
        if ref.name in self.axes or (not tokens and any(map(self.mentioned, self.shape(ref)))):
            raise _Unproven

    def mentioned(self, dim: Dim) -> bool:
        try:
            return not symbols(dim).isdisjoint({self.batch, self.sequence})
        except GraphError:  # who knows
            return True

    def not_tokens(self, dim: Any, axes: tuple[int, int], shape: tuple[Dim, ...]) -> int:
        """A dim counted from the front, which is not one of tokens."""
        if not isinstance(dim, int) or dim % len(shape) in axes:
            raise _Unproven
        return dim % len(shape)


def _sequences(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    real = mask != 0
    lengths = real.sum(1)
    if not real.size or lengths.min() < 1 or not np.array_equal(real, np.arange(real.shape[1]) < lengths[:, None]):
        raise NotPacked
    rows, positions = np.nonzero(real)
    return np.concatenate([[0], np.cumsum(lengths)]), rows, positions


def _pack(
    x: np.ndarray, rows: np.ndarray, positions: np.ndarray, batch: int | None, sequence: int | None, b: int, s: int
) -> np.ndarray:
    if batch is None:
        assert sequence is not None
        return np.take(x, positions, axis=sequence)
    if sequence is None:
        return np.take(x, rows, axis=batch).swapaxes(b, s)
    return np.moveaxis(np.moveaxis(x, (b, s), (0, 1))[rows, positions][None], (0, 1), (b, s))


def _unpack(x: np.ndarray, mask: np.ndarray, rows: np.ndarray, positions: np.ndarray, b: int, s: int) -> np.ndarray:
    shape = list(x.shape)
    shape[b], shape[s] = mask.shape
    result = np.zeros(shape, x.dtype)
    np.moveaxis(result, (b, s), (0, 1))[rows, positions] = np.moveaxis(x, (b, s), (0, 1))[0]
    return result


def _first(x: np.ndarray, offsets: np.ndarray, s: int, b: int) -> np.ndarray:
    return np.squeeze(np.take(x, offsets[:-1], axis=s).swapaxes(b, s), axis=s)


_NOTHING = -1e30
"""Added to a score it leaves nothing: the exponential of the difference to any other is 0 in float32."""


def _common(mask: np.ndarray, offsets: np.ndarray) -> kernels.PreparedMask:
    lengths = np.diff(offsets)
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    mask = mask[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in mask.strides[:3])]
    if mask.shape[3] < lengths.max():
        raise NotPacked  # one number for all keys hides none
    longest = int(lengths.argmax())
    base = mask[longest if len(mask) > 1 else 0, :, : lengths[longest], : lengths[longest]]
    for number, length in enumerate(lengths):
        own = mask[number if len(mask) > 1 else 0, :, :length]
        padding = own[..., length:]
        hidden = not padding.any() if mask.dtype == bool else bool((padding <= _NOTHING).all())
        if not hidden or not np.array_equal(own[..., :length], base[:, :length, :length]):
            raise NotPacked
    return kernels.PreparedMask(base[None])


def _within(
    q: Any, k: Any, v: Any, mask: Any, offsets: Any, causal: bool, scale: float | None, precision: str = "float32"
) -> np.ndarray:
    return kernels.attention(q, k, v, mask, causal, scale, precision, offsets)


PACKED: dict[str, Callable[..., Any]] = {
    "native::sequences": _sequences,
    "native::pack": _pack,
    "native::unpack": _unpack,
    "native::first": _first,
    "native::common": _common,
    "native::within": _within,
}
