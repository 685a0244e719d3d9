"""Checkpoints made of another one: tensors under other names, in another layout, in another dtype, or only some.

A view reads nothing until it is asked for a tensor, and then only what that tensor is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.checkpoint import BLOCK, DTYPES, Checkpoint, TensorInfo, copy_into, packed, release, tensor_info
from zoo.errors import FormatError, WeightsError

__all__ = [
    "Cast",
    "Concatenate",
    "Difference",
    "Layout",
    "Permute",
    "Piece",
    "Pieces",
    "Recipe",
    "Reshape",
    "RotaryRows",
    "Rows",
    "Shift",
    "Subset",
    "View",
    "ZeroRows",
    "is_float",
    "origins",
]


class Layout:
    """One step of rearranging a tensor's values. All but `Shift` keep every value as it is."""

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a tensor of `shape` gets."""
        raise NotImplementedError

    def apply(self, array: np.ndarray) -> np.ndarray:
        """The array rearranged."""
        raise NotImplementedError

    def inverse(self, shape: tuple[int, ...]) -> Layout:
        """The step that undoes this one on what a tensor of `shape` became."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Permute(Layout):
    """Axes in another order, as `np.transpose` takes them."""

    axes: tuple[int, ...]

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) != len(self.axes):
            raise FormatError("a tensor has the wrong number of dims", expected=len(self.axes), got=list(shape))
        return tuple(shape[axis] for axis in self.axes)

    def apply(self, array: np.ndarray) -> np.ndarray:
        return array.transpose(self.axes)

    def inverse(self, shape: tuple[int, ...]) -> Layout:
        return Permute(tuple(int(axis) for axis in np.argsort(self.axes)))


@dataclass(frozen=True, slots=True)
class Reshape(Layout):
    """The same values in another shape, row-major."""

    to: tuple[int, ...]

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if np.prod(shape, dtype=object) != np.prod(self.to, dtype=object):
            raise FormatError("a tensor has the wrong number of values", expected=list(self.to), got=list(shape))
        return self.to

    def apply(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(self.to)

    def inverse(self, shape: tuple[int, ...]) -> Layout:
        return Reshape(shape)


@dataclass(frozen=True, slots=True)
class Rows(Layout):
    """A range of the first axis: a part of tensors that another dialect keeps fused. It has no inverse."""

    start: int
    stop: int

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not shape or not 0 <= self.start <= self.stop <= shape[0]:
            raise FormatError("a tensor has too few rows", expected=self.stop, got=list(shape))
        return (self.stop - self.start, *shape[1:])

    def apply(self, array: np.ndarray) -> np.ndarray:
        return array[self.start : self.stop]


@dataclass(frozen=True, slots=True)
class ZeroRows(Layout):
    """Rows of zeros before the first: places that one program keeps in a table and never looks up."""

    count: int

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0] + self.count, *shape[1:])

    def apply(self, array: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros((self.count, *array.shape[1:]), array.dtype), array])

    def inverse(self, shape: tuple[int, ...]) -> Layout:
        return Rows(self.count, shape[0] + self.count)


@dataclass(frozen=True, slots=True)
class RotaryRows(Layout):
    """The rows of queries or keys, in another order within each head, for another form of the same rotary embedding.

    Args:
        heads: how many heads the rows are of.
        halves: True from pairs (row 2i turns with 2i + 1: Meta, llama.cpp) to halves (row i turns with i + half a head:
            Hugging Face); False for the way back.
    """

    heads: int
    halves: bool = True

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not shape or self.heads < 1 or shape[0] % (2 * self.heads):
            raise FormatError("rows do not divide into pairs of heads", expected=f"{self.heads} heads", got=list(shape))
        return shape

    def apply(self, array: np.ndarray) -> np.ndarray:
        half = len(array) // self.heads // 2
        split = (half, 2) if self.halves else (2, half)
        return array.reshape(self.heads, *split, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)

    def inverse(self, shape: tuple[int, ...]) -> Layout:
        return RotaryRows(self.heads, not self.halves)


@dataclass(frozen=True, slots=True)
class Shift(Layout):
    """Every value plus a number, computed in float32 and rounded as float32 addition rounds.

    Its inverse gives the same values back only where neither sum was rounded.
    """

    by: float

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def apply(self, array: np.ndarray) -> np.ndarray:
        return (array.astype(np.float32) + np.float32(self.by)).astype(array.dtype)

    def inverse(self, shape: tuple[int, ...]) -> Layout:
        return Shift(-self.by)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one tensor comes out of another: a source, and the steps that its values go through."""

    source: str
    steps: tuple[Layout, ...] = ()

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        for step in self.steps:
            shape = step.shape(shape)
        return shape

    def make(self, checkpoint: Checkpoint) -> np.ndarray:
        array = checkpoint.read(self.source)
        for step in self.steps:
            array = step.apply(array)
        return array

    def inverse(self, name: str, shape: tuple[int, ...]) -> Recipe:
        """How the source, of `shape`, comes back out of the tensor `name` that this recipe makes."""
        steps: list[Layout] = []
        for step in self.steps:
            steps.append(step.inverse(shape))
            shape = step.shape(shape)
        return Recipe(name, tuple(reversed(steps)))


@dataclass(frozen=True, slots=True)
class Concatenate:
    """Several recipes' tensors joined along the first axis, then rearranged: fused weights."""

    parts: tuple[Recipe, ...]
    steps: tuple[Layout, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference(Concatenate):
    """The first of two recipes' tensors minus the second, rounded once to their dtype, then rearranged."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of values that goes from one place to another, each in packed row-major values.

    Args:
        source: the tensor that it is taken from, which has `shape`.
        sizes: of the box's axes.
        taken, put: the offset, then a stride for each axis, there and in what is made.
    """

    source: str
    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    taken: tuple[int, ...]
    put: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pieces:
    """A tensor of boxes out of others that cover it; whoever makes one has checked that they lie inside."""

    to: tuple[int, ...]
    parts: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor that no file holds because its program computes it: a function that gives it."""

    shape: tuple[int, ...]
    dtype: str
    make: Callable[[], np.ndarray]


class View(Checkpoint):
    """A checkpoint whose tensors are made from another's.

    Args:
        source: closed with the view.
        recipes: name -> how it is made.
        aliases: names that are the same tensor, where the source does not say so itself.
    """

    format = "view"

    def __init__(
        self,
        source: Checkpoint,
        recipes: Mapping[str, Recipe | Concatenate | Pieces | Made],
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        infos = {name: _info(source, name, recipe) for name, recipe in recipes.items()}
        super().__init__(source.path, infos, metadata=source.metadata, aliases=aliases or _aliases(source, recipes))
        self.source = source
        self._recipes = dict(recipes)
        self._last: tuple[str, np.ndarray] | None = None

    def exact(self, name: str) -> bool:
        recipe = self._recipes[name]
        steps = () if isinstance(recipe, (Made, Pieces)) else recipe.steps
        computed = isinstance(recipe, Difference) or any(isinstance(step, Shift) for step in steps)
        return not computed and all(map(self.source.exact, self.sources(name)))

    def sources(self, name: str) -> list[str]:
        """The source's tensors that a tensor is made of."""
        recipe = self._recipes[name]
        if isinstance(recipe, Made):
            return []
        parts = (recipe,) if isinstance(recipe, Recipe) else recipe.parts
        return list(dict.fromkeys(part.source for part in parts))

    def _read(self, info: TensorInfo) -> np.ndarray:
        recipe = self._recipes[info.name]
        if isinstance(recipe, Recipe):
            return recipe.make(self.source).view()
        if isinstance(recipe, Made):
            return recipe.make()
        if isinstance(recipe, Pieces):
            return self._pieced(recipe, DTYPES[info.dtype])
        if isinstance(recipe, Difference):
            parts = [part.make(self.source) for part in recipe.parts]
            first, second = (part.astype(np.float64) for part in parts)
            array = np.asarray(first - second).astype(parts[0].dtype)
        else:
            array = self._joined(recipe.parts)
        for step in recipe.steps:
            array = step.apply(array)
        return array

    def _joined(self, parts: Sequence[Recipe]) -> np.ndarray:
        """The parts' tensors along the first axis, one after the other in memory."""
        infos = [self.source.infos[part.source] for part in parts]
        shapes = [part.shape(info.shape) for part, info in zip(parts, infos, strict=True)]
        array = np.empty((sum(shape[0] for shape in shapes), *shapes[0][1:]), DTYPES[infos[0].dtype])
        row = 0
        for part, shape in zip(parts, shapes, strict=True):
            copy_into(array[row : row + shape[0]], part.make(self.source))
            row += shape[0]
        return array

    def _pieced(self, recipe: Pieces, dtype: np.dtype) -> np.ndarray:
        """The boxes put where they belong. Zeros, should boxes overlap that a file gave: never another's memory."""
        array = np.zeros(recipe.to, dtype)
        for part in recipe.parts:
            if self._last is None or self._last[0] != part.source:
                self._last = None  # one at a time: tensor by tensor of a layer's experts asks for the same again
                self._last = (part.source, packed(self.source.read(part.source)))
            box = _boxed(self._last[1], part.sizes, part.taken)
            _boxed(array, part.sizes, part.put)[...] = box
        if self._last is not None:
            release(self._last[1])
        return array

    def blocks(self, name: str, size: int = BLOCK) -> Iterator[np.ndarray]:
        recipe = self._recipes.get(name)
        if isinstance(recipe, Recipe) and not recipe.steps:
            return self.source.blocks(recipe.source, size)  # formats that stream are not made to read it whole
        return super().blocks(name, size)

    def _close(self) -> None:
        self._last = None
        self.source.close()


class Subset(View):
    """Some of a checkpoint's tensors, in the order given."""

    def __init__(self, source: Checkpoint, names: Collection[str]) -> None:
        kept = set(names)
        aliases = {a: b for a, b in source.aliases.items() if a in kept and b in kept}
        super().__init__(source, {name: Recipe(name) for name in names}, aliases)


class Cast(Checkpoint):
    """A checkpoint with its floating-point tensors in another dtype.

    Args:
        source: closed with the view.
        dtype: "float32", "float16" or "bfloat16", of all or tensor by tensor; rounding is to nearest, ties to even.
    """

    format = "cast"

    def __init__(self, source: Checkpoint, dtype: str | Mapping[str, str]) -> None:
        infos = {
            name: tensor_info(
                name,
                list(info.shape),
                (dtype if isinstance(dtype, str) else dtype[name]) if is_float(info) else info.dtype,
                info.file,
            )
            for name, info in source.infos.items()
        }
        super().__init__(source.path, infos, metadata=source.metadata, aliases=source.aliases)
        self.source = source

    def exact(self, name: str) -> bool:
        return self.source.exact(name)

    def sources(self, name: str) -> list[str]:
        """The source's tensors that a tensor is made of: itself."""
        return [name]

    def _read(self, info: TensorInfo) -> np.ndarray:
        return _cast(self.source.read(info.name), info)

    def blocks(self, name: str, size: int = BLOCK) -> Iterator[np.ndarray]:
        info = self.infos[name]
        for block in self.source.blocks(name, size):
            yield _cast(block, info)

    def _close(self) -> None:
        self.source.close()


def _cast(array: np.ndarray, info: TensorInfo) -> np.ndarray:
    """Overflow to infinity is for whoever asked for the dtype to see; NaN and infinity stay what they are."""
    with np.errstate(over="ignore"):
        return array.astype(DTYPES[info.dtype], copy=False).view()


def origins(view: Checkpoint, name: str, bottom: Checkpoint | None = None) -> list[str]:
    """The tensors of `bottom` (of the file, if it is not given) that one tensor of a view is made of."""
    if view is bottom or not isinstance(view, (View, Cast)):
        return [name]
    return [origin for source in view.sources(name) for origin in origins(view.source, source, bottom)]


def is_float(info: TensorInfo) -> bool:
    """Whether a tensor is of a dtype that `Cast` changes: the floating-point ones, those of 8 bits, too."""
    return info.dtype in ("float16", "bfloat16", "float32", "float64") or info.dtype.startswith("float8")


def _boxed(array: np.ndarray, sizes: tuple[int, ...], place: tuple[int, ...]) -> np.ndarray:
    """A box of a packed array's values, as a view of it."""
    offset, *strides = (step * array.itemsize for step in place)
    return np.ndarray(sizes, array.dtype, array.reshape(-1).view(np.uint8).data, offset, strides)


def _info(source: Checkpoint, name: str, recipe: Recipe | Concatenate | Pieces | Made) -> TensorInfo:
    if isinstance(recipe, Made):
        return tensor_info(name, list(recipe.shape), recipe.dtype, source.path)
    if isinstance(recipe, Pieces):
        return _info_of_pieces(source, name, recipe)
    parts: Sequence[Recipe] = (recipe,) if isinstance(recipe, Recipe) else recipe.parts
    shapes, dtypes = [], set()
    for part in parts:
        info = source.infos.get(part.source)
        if info is None:
            raise WeightsError(f"no tensor named {part.source!r}", where=source.path, expected=f"for {name!r}")
        shapes.append(part.shape(info.shape))
        dtypes.add(info.dtype)
    same = 0 if isinstance(recipe, Difference) else 1
    if len(dtypes) > 1 or len({shape[same:] for shape in shapes}) > 1:
        raise FormatError(
            "tensors that belong together differ in dtype or shape",
            where=f"{source.path}, for {name!r}",
            got=", ".join(f"{part.source} {list(shape)}" for part, shape in zip(parts, shapes, strict=True)),
        )
    shape = shapes[0]
    if not isinstance(recipe, Recipe):
        if same:
            shape = (sum(one[0] for one in shapes), *shape[1:])
        for step in recipe.steps:
            shape = step.shape(shape)
    file: Path = source.infos[parts[0].source].file
    return tensor_info(name, list(shape), dtypes.pop(), file)


def _info_of_pieces(source: Checkpoint, name: str, recipe: Pieces) -> TensorInfo:
    infos = {part.source: source.infos[part.source] for part in recipe.parts}
    for part in recipe.parts:
        if infos[part.source].shape != part.shape:
            raise FormatError(
                "a tensor has another shape than is to be rearranged",
                where=f"{source.path}, tensor {part.source!r}",
                expected=list(part.shape),
                got=list(infos[part.source].shape),
            )
    dtypes = {info.dtype for info in infos.values()}
    if len(dtypes) > 1:
        raise FormatError(
            "tensors that belong together differ in dtype",
            where=f"{source.path}, for {name!r}",
            got=", ".join(f"{own} {info.dtype}" for own, info in infos.items()),
        )
    return tensor_info(name, list(recipe.to), dtypes.pop(), source.path)


def _aliases(source: Checkpoint, recipes: Mapping[str, Recipe | Concatenate | Pieces | Made]) -> dict[str, str]:
    """Ties: tensors made in the same way of the same source, or of the source's own aliases."""
    first: dict[object, str] = {}
    aliases = {}
    for name, recipe in recipes.items():
        if isinstance(recipe, Recipe):
            leader = first.setdefault((source.aliases.get(recipe.source, recipe.source), recipe.steps), name)
            if leader != name:
                aliases[name] = leader
    return aliases
