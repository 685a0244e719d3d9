"""What the tensors of a class's checkpoints are made of, found by watching transformers convert them on saving.

The conversion runs on meta tensors, so it costs no memory at any size; what each operation does to the places of values
is followed here. A conversion that computes, rather than rearranges, is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.errors import CaptureError, GraphError
from zoo.graph.stored import Box, Stored, check_stored, packed_strides

__all__ = ["conversions"]

Factors = tuple[tuple[int, int], ...]
"""An axis as digits, the slowest first: (size, how far apart in the parameter neighbours are)."""


def conversions(
    convert: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]], state: Mapping[str, torch.Tensor]
) -> tuple[dict[str, str], list[Stored]]:
    """How a function from a module's tensors to those of a checkpoint renames and rearranges them.

    Args:
        convert: gets tensors of the shapes of `state` that hold no values.
        state: by the module's names.

    Returns:
        The module's name -> the checkpoint's, of tensors that are the same but for the name; groups of all others, with
        the module's names for parameters. Tensors that do not hold all values of a parameter once are left out.

    Raises:
        CaptureError: the conversion does something else with values than to move them.
    """
    empty = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in state.items()}
    places = _Places()
    for name, tensor in empty.items():
        places.put(tensor, [_Part(name, 0, (0,) * tensor.ndim, _axes(tensor.shape))] if tensor.numel() else [])
    with places:
        saved = convert(dict(empty))
    same = {id(tensor): name for name, tensor in empty.items()}
    renamed: dict[str, str] = {}
    made: dict[str, tuple[tuple[int, ...], list[_Part]]] = {}
    for name, tensor in saved.items():
        if id(tensor) in same:
            renamed[same[id(tensor)]] = name
        else:
            made[name] = (tuple(tensor.shape), places.of(tensor))
    for name, (shape, parts) in list(made.items()):
        own = _whole(shape, parts, state)
        if own is not None and sum(part.source == own for _, others in made.values() for part in others) == 1:
            renamed[own] = name
            del made[name]
    return renamed, _groups(made, {name: tuple(tensor.shape) for name, tensor in state.items()})


@dataclass(frozen=True)
class _Part:
    """Values of a tensor that come from one parameter.

    Args:
        source: the parameter.
        offset: where in it the first value lies.
        starts: where in the tensor the part begins, along each axis.
        axes: its extent along each.
    """

    source: str
    offset: int
    starts: tuple[int, ...]
    axes: tuple[Factors, ...]

    def size(self, axis: int) -> int:
        return math.prod(size for size, _ in self.axes[axis])

    def moved(self, axis: int, by: int) -> _Part:
        return replace(self, starts=_with(self.starts, axis, self.starts[axis] + by))


class _Places(TorchDispatchMode):
    """Follows where values go."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, tuple[torch.Tensor, list[_Part]]] = {}  # the tensor too: ids are reused otherwise

    def put(self, tensor: torch.Tensor, parts: list[_Part]) -> None:
        self._known[id(tensor)] = (tensor, parts)

    def of(self, tensor: torch.Tensor) -> list[_Part]:
        found = self._known.get(id(tensor))
        if found is None:
            raise CaptureError("a conversion of the checkpoint makes a tensor of its own")
        return found[1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        rule = _RULES.get(name)
        if rule is None:
            raise CaptureError("a conversion of the checkpoint does more than to move values", got=name)
        results = list(result) if isinstance(result, (tuple, list)) else [result]
        first = args[0]
        tensors = list(first) if isinstance(first, (tuple, list)) else [first]
        arguments = [*args[1:], *kwargs.values()]
        made = rule([self.of(tensor) for tensor in tensors], tensors, results, arguments)
        for tensor, parts in zip(results, made, strict=True):
            self.put(tensor, parts)
        return result


Rule = Callable[[list[list[_Part]], list[torch.Tensor], list[torch.Tensor], list[Any]], list[list[_Part]]]


def _same(parts: list[list[_Part]], before: list[torch.Tensor], after: list[torch.Tensor], rest: Any) -> Any:
    if before[0].dtype != after[0].dtype:
        raise CaptureError("a conversion of the checkpoint changes the dtype", got=after[0].dtype)
    return parts


def _permuted(parts: list[list[_Part]], before: list[torch.Tensor], after: Any, rest: list[Any]) -> Any:
    order = list(range(before[0].ndim))
    if len(rest) == 2:  # two axes change places
        one, other = (axis % len(order) for axis in rest)
        order[one], order[other] = other, one
    elif rest:
        order = [axis % len(order) for axis in rest[0]]
    else:
        order.reverse()
    return [
        [
            replace(part, starts=tuple(part.starts[a] for a in order), axes=tuple(part.axes[a] for a in order))
            for part in parts[0]
        ]
    ]


def _cut_apart(parts: list[list[_Part]], before: list[torch.Tensor], after: list[torch.Tensor], rest: list[Any]) -> Any:
    """Pieces along one axis, one after the other."""
    axis = (rest[1] if len(rest) > 1 else 0) % before[0].ndim
    made, start = [], 0
    for piece in after:
        stop = start + piece.shape[axis]
        made.append([cut.moved(axis, -start) for part in parts[0] for cut in _between(part, axis, start, stop)])
        start = stop
    return made


def _sliced(parts: list[list[_Part]], before: list[torch.Tensor], after: list[torch.Tensor], rest: list[Any]) -> Any:
    defaults: tuple[Any, ...] = (0, None, None, 1)
    axis, start, stop, step = (*rest, *defaults[len(rest) :])
    axis %= before[0].ndim
    start, stop, step = slice(start, stop, step).indices(before[0].shape[axis])
    if step != 1:
        raise CaptureError("a conversion of the checkpoint takes every so many values", got=step)
    return [[cut.moved(axis, -start) for part in parts[0] for cut in _between(part, axis, start, stop)]]


def _taken_out(parts: list[list[_Part]], before: list[torch.Tensor], after: list[torch.Tensor], rest: list[Any]) -> Any:
    """One position of an axis, or each: the axis is gone."""
    axis = (rest[0] if rest else 0) % before[0].ndim
    numbers = range(len(after)) if len(rest) < 2 else [rest[1] % before[0].shape[axis]]
    return [
        [_without(cut, axis) for part in parts[0] for cut in _between(part, axis, number, number + 1)]
        for number in numbers
    ]


def _joined(parts: list[list[_Part]], before: list[torch.Tensor], after: Any, rest: list[Any]) -> Any:
    axis = (rest[0] if rest else 0) % before[0].ndim
    made, start = [], 0
    for own, tensor in zip(parts, before, strict=True):
        made += [part.moved(axis, start) for part in own]
        start += tensor.shape[axis]
    return [made]


def _stacked(parts: list[list[_Part]], before: list[torch.Tensor], after: list[torch.Tensor], rest: list[Any]) -> Any:
    axis = (rest[0] if rest else 0) % after[0].ndim
    return [[_inserted(part, axis, number) for number, own in enumerate(parts) for part in own]]


def _reshaped(parts: list[list[_Part]], before: list[torch.Tensor], after: list[torch.Tensor], rest: Any) -> Any:
    old, new = tuple(before[0].shape), tuple(after[0].shape)
    return [[made for part in parts[0] for made in _in_shape(part, old, new)]]


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("detach", "alias", "clone", "contiguous", "_to_copy"), _same),
    **dict.fromkeys(("permute", "transpose", "t"), _permuted),
    **dict.fromkeys(("split", "split_with_sizes", "split_copy", "chunk"), _cut_apart),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze"), _reshaped),
    **dict.fromkeys(("select", "unbind"), _taken_out),
    "slice": _sliced,
    "cat": _joined,
    "stack": _stacked,
}


def _between(part: _Part, axis: int, start: int, stop: int) -> list[_Part]:
    """What of a part lies in a range of an axis."""
    first = part.starts[axis]
    low, high = max(start, first), min(stop, first + part.size(axis))
    if low >= high:
        return []
    return [
        replace(
            part,
            offset=part.offset + offset,
            starts=_with(part.starts, axis, first + begin),
            axes=_with(part.axes, axis, factors),
        )
        for begin, offset, factors in _range(part.axes[axis], low - first, high - first)
    ]


def _range(factors: Factors, low: int, high: int) -> list[tuple[int, int, Factors]]:
    """A range of an axis, as few parts as it takes: where each begins, its offset in the parameter, its extent."""
    if len(factors) < 2:
        size, stride = factors[0] if factors else (1, 0)
        return [(low, low * stride, factors if (low, high) == (0, size) else ((high - low, stride),))]
    (_, stride), rest = factors[0], factors[1:]
    inner = math.prod(size for size, _ in rest)
    found: list[tuple[int, int, Factors]] = []
    while low < high:
        row, within = divmod(low, inner)
        rows = (high - low) // inner if not within else 0
        if rows:  # whole rows
            found.append((low, row * stride, ((rows, stride), *rest)))
            low += rows * inner
            continue
        end = min(high, (row + 1) * inner)
        for begin, offset, own in _range(rest, within, end - row * inner):
            found.append((row * inner + begin, row * stride + offset, own))
        low = end
    return found


def _in_shape(part: _Part, old: tuple[int, ...], new: tuple[int, ...]) -> list[_Part]:
    """A part of a tensor that gets another shape."""
    parts = [part]
    shape = list(old)
    for axis, size in enumerate(new):
        # one axis after the other: joined with those behind it until it is long enough, then divided
        while axis >= len(shape) or shape[axis] % size or (shape[axis] < size):
            if axis >= len(shape):
                parts = [_inserted(one, axis, 0) for one in parts]
                shape.insert(axis, 1)
            else:
                parts = [made for one in parts for made in _merged(one, axis, shape)]
                shape[axis : axis + 2] = [shape[axis] * shape[axis + 1]]
        if shape[axis] != size:
            inner = shape[axis] // size
            parts = [made for one in parts for made in _divided(one, axis, inner)]
            shape[axis : axis + 1] = [size, inner]
    for _ in range(len(new), len(shape)):  # sizes of 1
        parts = [_without(one, len(new)) for one in parts]
    return parts


def _merged(part: _Part, axis: int, shape: Sequence[int]) -> list[_Part]:
    """An axis and the next as one."""
    inner = shape[axis + 1]
    if part.size(axis) > 1 and part.size(axis + 1) != inner:  # rows that are not whole: each by itself
        first = part.starts[axis]
        rows = range(first, first + part.size(axis))
        return [
            made for row in rows for cut in _between(part, axis, row, row + 1) for made in _merged(cut, axis, shape)
        ]
    start = part.starts[axis] * inner + part.starts[axis + 1]
    together = (*part.axes[axis], *part.axes[axis + 1])
    return [
        replace(
            part,
            starts=(*part.starts[:axis], start, *part.starts[axis + 2 :]),
            axes=(*part.axes[:axis], _plain(together), *part.axes[axis + 2 :]),
        )
    ]


def _divided(part: _Part, axis: int, inner: int) -> list[_Part]:
    """An axis as two, of which the second has `inner` values."""
    start, size = part.starts[axis], part.size(axis)
    found = None
    if start % inner == 0 and size % inner == 0:
        found = _digits(part.axes[axis], inner)
        starts = (start // inner, 0)
    elif start // inner == (start + size - 1) // inner:
        found = ((), part.axes[axis])
        starts = (start // inner, start % inner)
    if found is None:
        rows = range(start // inner, (start + size - 1) // inner + 1)
        cuts = [cut for row in rows for cut in _between(part, axis, row * inner, (row + 1) * inner)]
        return [made for cut in cuts for made in _divided(cut, axis, inner)]
    return [
        replace(
            part,
            starts=(*part.starts[:axis], *starts, *part.starts[axis + 1 :]),
            axes=(*part.axes[:axis], *found, *part.axes[axis + 1 :]),
        )
    ]


def _digits(factors: Factors, inner: int) -> tuple[Factors, Factors] | None:
    """The slow and the fast digits of an axis, of which the fast ones make `inner`; None if one lies across."""
    slow, left = list(factors), inner
    fast: list[tuple[int, int]] = []
    while left > 1:
        size, stride = slow.pop()
        if left % size == 0:
            fast.insert(0, (size, stride))
            left //= size
        elif size % left == 0:
            fast.insert(0, (left, stride))
            slow.append((size // left, stride * left))
            left = 1
        else:
            return None
    return tuple(slow), tuple(fast)


def _plain(factors: Factors) -> Factors:
    """Digits joined where one goes on as the next."""
    found: list[tuple[int, int]] = []
    for size, stride in factors:
        if size == 1:
            continue
        if found and found[-1][1] == size * stride:
            found[-1] = (found[-1][0] * size, stride)
        else:
            found.append((size, stride))
    return tuple(found)


def _axes(shape: Sequence[int]) -> tuple[Factors, ...]:
    return tuple(((size, stride),) for size, stride in zip(shape, packed_strides(shape), strict=True))


def _inserted(part: _Part, axis: int, start: int) -> _Part:
    return replace(
        part,
        starts=(*part.starts[:axis], start, *part.starts[axis:]),
        axes=(*part.axes[:axis], (), *part.axes[axis:]),
    )


def _without(part: _Part, axis: int) -> _Part:
    return replace(
        part,
        starts=(*part.starts[:axis], *part.starts[axis + 1 :]),
        axes=(*part.axes[:axis], *part.axes[axis + 1 :]),
    )


def _with(items: tuple[Any, ...], at: int, item: Any) -> tuple[Any, ...]:
    return (*items[:at], item, *items[at + 1 :])


def _whole(shape: tuple[int, ...], parts: list[_Part], state: Mapping[str, torch.Tensor]) -> str | None:
    """The parameter that a tensor is, value for value and in its shape."""
    if len(parts) != 1 or shape != tuple(state[parts[0].source].shape):
        return None
    box = _box(0, 0, shape, parts[0])
    return parts[0].source if box.count == math.prod(shape) and box.in_tensor == box.in_param else None


def _box(tensor: int, param: int, shape: Sequence[int], part: _Part) -> Box:
    """A part of a tensor as where its values lie at both ends, with as few axes as that takes."""
    offset = 0
    axes: list[tuple[int, int, int]] = []  # size, stride in the tensor, stride in the parameter
    for start, factors, step in zip(part.starts, part.axes, packed_strides(shape), strict=True):
        offset += start * step
        inner = math.prod(size for size, _ in factors)
        for size, stride in factors:
            inner //= size
            if size == 1:
                continue
            own = step * inner
            if axes and axes[-1][1:] == (size * own, size * stride):
                axes[-1] = (axes[-1][0] * size, own, stride)
            else:
                axes.append((size, own, stride))
    sizes = tuple(size for size, _, _ in axes)
    return Box(tensor, param, sizes, (offset, *(own for _, own, _ in axes)), (part.offset, *(p for _, _, p in axes)))


def _groups(
    made: Mapping[str, tuple[tuple[int, ...], list[_Part]]], shapes: Mapping[str, tuple[int, ...]]
) -> list[Stored]:
    """Tensors that share a parameter, and parameters that share a tensor, belong together."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    for name, (_, parts) in made.items():
        for part in parts:
            leader[find(f"p:{part.source}")] = find(f"t:{name}")
    members: dict[str, list[str]] = {}
    for name in made:
        members.setdefault(find(f"t:{name}"), []).append(name)
    groups = []
    for names in members.values():
        params = list(dict.fromkeys(part.source for name in names for part in made[name][1]))
        numbers = {name: number for number, name in enumerate(params)}
        boxes = tuple(
            _box(number, numbers[part.source], made[name][0], part)
            for number, name in enumerate(names)
            for part in made[name][1]
        )
        group = Stored({name: made[name][0] for name in names}, tuple(params), boxes)
        try:
            check_stored([group], shapes)
        except GraphError:
            continue  # values are left out or repeated: there is no way back
        groups.append(group)
    return groups
