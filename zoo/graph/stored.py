"""How checkpoints divide values among tensors otherwise than the parameters do: experts apart, projections joined.

Transposing, splitting, joining and interleaving all come down to one thing: a box of values lies at one place in a
tensor and at another in a parameter, each with an offset and a stride for every axis of the box. So that is what is
kept, as numbers alone, and it reads the same in both directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from zoo.errors import GraphError

__all__ = ["Box", "Stored", "check_stored"]

_AXES = 64  # NumPy's own limit

Place = tuple[int, ...]
"""Where a box lies in packed row-major values: the offset, then a stride for each of its axes, counted in values."""


@dataclass(frozen=True, slots=True)
class Box:
    """Values that a tensor and a parameter share.

    Args:
        tensor, param: which of the group's.
        sizes: of the box's axes.
        in_tensor, in_param: where they lie.
    """

    tensor: int
    param: int
    sizes: tuple[int, ...]
    in_tensor: Place
    in_param: Place

    @property
    def count(self) -> int:
        """How many values it has."""
        return math.prod(self.sizes)


@dataclass(frozen=True, slots=True)
class Stored:
    """A group of tensors of a checkpoint that hold the values of a group of parameters.

    Args:
        tensors: the name that a checkpoint gives each -> its shape.
        params: canonical names of parameters.
        boxes: cover every tensor and every parameter, each value once.
    """

    tensors: Mapping[str, tuple[int, ...]]
    params: tuple[str, ...]
    boxes: tuple[Box, ...]


def check_stored(groups: Sequence[Stored], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that groups cover their tensors and parameters and reach nowhere else.

    Args:
        groups: of one graph.
        shapes: of the graph's parameters.

    Raises:
        GraphError: naming the tensor or the parameter.
    """
    seen_tensors: set[str] = set()
    seen_params: set[str] = set()
    for group in groups:
        for own, seen in ((tuple(group.tensors), seen_tensors), (group.params, seen_params)):
            for name in own:
                if name in seen:
                    raise GraphError("a tensor or parameter is in two groups", where="stored", got=name)
                seen.add(name)
        for name in group.params:
            if name not in shapes:
                raise GraphError("a tensor is of an unknown parameter", where="stored", got=name)
        sizes = [math.prod(shape) for shape in group.tensors.values()]
        params = [math.prod(shapes[name]) for name in group.params]
        covered = [[0] * len(sizes), [0] * len(params)]
        for box in group.boxes:
            if not (0 <= box.tensor < len(sizes) and 0 <= box.param < len(params)):
                raise GraphError("a box is of no tensor of its group", where=_named(group), got=box)
            axes = len(box.sizes)
            if axes > _AXES or min(box.sizes, default=1) < 1:
                raise GraphError("a box has no such sizes", where=_named(group), got=list(box.sizes))
            for place, size in ((box.in_tensor, sizes[box.tensor]), (box.in_param, params[box.param])):
                if len(place) != axes + 1 or min(place) < 0 or _last(box.sizes, place) >= size:
                    raise GraphError(
                        "a box reaches outside its tensor",
                        where=_named(group),
                        expected=f"an offset and {axes} strides within {size} values",
                        got=f"{list(box.sizes)} at {list(place)}",
                    )
            covered[0][box.tensor] += box.count
            covered[1][box.param] += box.count
        names, totals = (*group.tensors, *group.params), (*sizes, *params)
        for name, size, count in zip(names, totals, (*covered[0], *covered[1]), strict=True):
            if count != size or not size:
                raise GraphError(
                    "boxes do not cover a tensor once",
                    where=f"stored, {name!r}",
                    expected=f"{size or 'some'} values",
                    got=count,
                )


def packed_strides(shape: Sequence[int]) -> Iterator[int]:
    """How many values apart neighbours along each axis are."""
    for axis in range(len(shape)):
        yield math.prod(shape[axis + 1 :])


def _last(sizes: Sequence[int], place: Place) -> int:
    return place[0] + sum((size - 1) * stride for size, stride in zip(sizes, place[1:], strict=True))


def _named(group: Stored) -> str:
    return f"stored, {next(iter(group.tensors), '')!r}"
