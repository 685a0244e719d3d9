"""Two-way tables of names: one row says how a foreign program spells and lays out what the torch checkpoint holds.

A name may hold "{}", a number that both sides share, and "{_}", the same number as Keras counts: nothing for 0, "_1"
for 1. A row with several names on one side stands for tensors that the other side keeps fused along the first axis.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from converters.checkpoint import Checkpoint
from converters.view import Concatenate, Layout, Permute, Recipe, Reshape, Rows, View, ZeroRows
from zoo.errors import WeightsError

__all__ = ["KINDS", "Kind", "Row", "Table"]

Shape = tuple[int, ...]


_NOT_THE_MODELS = (
    "the model has no place for tensors",
    "check that the weights are of the model that the config describes",
)
_NOT_THE_FORMS = (
    "the form has no place for tensors",
    'choose another form, or the model without its head (task "feature-extraction")',
)
"""What is said of tensors that one side does not know, and what to do."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How a kind of tensor is laid out elsewhere.

    Args:
        steps: from the foreign tensor, of this shape, to torch's layout.
        stored: the foreign shape of a tensor that has this shape in torch; the second argument is the number of heads.
    """

    steps: Callable[[Shape], tuple[Layout, ...]]
    stored: Callable[[Shape, int], Shape]


KINDS: Mapping[str, Kind] = {
    "same": Kind(lambda s: (), lambda s, h: s),
    # Dense layers [in, out].
    "dense": Kind(lambda s: (Permute((1, 0)),), lambda s, h: s[::-1]),
    # GPT-2's dense layers are convolutions of size 1 [1, in, out], which Hugging Face has as [in, out].
    "pointwise": Kind(lambda s: (Reshape(s[1:]),), lambda s, h: (1, *s)),
    # Convolutions along a line [size, in, out] and on a plane [height, width, in, out].
    "conv1d": Kind(lambda s: (Permute((2, 1, 0)),), lambda s, h: s[::-1]),
    "conv": Kind(lambda s: (Permute((3, 2, 0, 1)),), lambda s, h: (*s[2:], s[1], s[0])),
    # Depthwise [height, width, in, 1]: torch has [in, 1, height, width].
    "depthwise": Kind(lambda s: (Permute((2, 3, 0, 1)),), lambda s, h: (*s[2:], *s[:2])),
    # Attention by heads: projections [in, heads, size] with biases [heads, size], output [heads, size, out].
    "heads": Kind(
        lambda s: (Reshape((s[0], s[1] * s[2])), Permute((1, 0))), lambda s, h: (s[1], h, s[0] // h)
    ),
    "heads_bias": Kind(lambda s: (Reshape((s[0] * s[1],)),), lambda s, h: (h, s[0] // h)),
    "heads_out": Kind(lambda s: (Reshape((s[0] * s[1], s[2])), Permute((1, 0))), lambda s, h: (h, s[1] // h, s[0])),
    # The same with the heads first, [heads, in, size].
    "heads_first": Kind(
        lambda s: (Permute((0, 2, 1)), Reshape((s[0] * s[2], s[1]))), lambda s, h: (h, s[1], s[0] // h)
    ),
    # Matrices of all experts, [experts, out, in], where torch joins two along the second axis.
    "experts": Kind(lambda s: (Permute((1, 0, 2)),), lambda s, h: (s[1], s[0], s[2])),
    # A table of positions, [length, size], where torch has an axis for the batch.
    "batched": Kind(lambda s: (Reshape((1, *s)),), lambda s, h: s[1:]),
    # The same of patches alone, where torch has one of zeros for the class token.
    "patches": Kind(
        lambda s: (Reshape(s[1:]), ZeroRows(1), Reshape((1, s[1] + 1, s[2]))), lambda s, h: (1, s[1] - 1, s[2])
    ),
    # One without RoBERTa's two rows before the first position, of which it uses neither for a token.
    "positions": Kind(lambda s: (ZeroRows(2),), lambda s, h: (s[0] - 2, *s[1:])),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor, or the parts of a fused one.

    Args:
        ours: canonical name, or the names of the parts.
        theirs: the foreign name, or the names of the parts.
        kind: of `KINDS`; of each part where the foreign side is in parts.
        heads: which number of heads, for kinds that have one: a key of `Table.heads`.
        after: steps on the canonical side once the parts are joined.
    """

    ours: str | tuple[str, ...]
    theirs: str | tuple[str, ...]
    kind: str = "same"
    heads: str = "heads"
    after: tuple[Layout, ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows, and what they leave open.

    Args:
        rows: where several have the same canonical name, all are read and the first is written.
        prefix: of the base model; canonical names are taken with and without it.
        heads: how many heads attention has, for writing.
        computed: pattern of names on either side that are no weights.
    """

    rows: Sequence[Row]
    prefix: str = ""
    heads: Mapping[str, int] | None = None
    computed: str | None = None

    def knows(self, name: str) -> bool:
        """Whether a foreign name is in the table."""
        return self._theirs(name) is not None

    def canonical(self, checkpoint: Checkpoint, *, bare: bool = True) -> dict[str, Recipe | Concatenate]:
        """Canonical name -> how it is made of foreign tensors.

        Args:
            checkpoint: the foreign one.
            bare: take the prefix off where all names have it, as checkpoints of a base model are published.

        Raises:
            WeightsError: foreign tensors that have no place in the canonical model; all are named.
        """
        found: dict[str, Recipe | Concatenate] = {}
        for name, row, part, numbers in self._matched(checkpoint, self._theirs, *_NOT_THE_MODELS):
            kind = KINDS[row.kind]
            if not isinstance(row.theirs, str):
                if part == 0:
                    names = [_fill(theirs, numbers) for theirs in row.theirs]
                    parts = tuple(Recipe(n, kind.steps(_shape(checkpoint, n))) for n in names)
                    found[_fill(_one(row.ours), numbers)] = Concatenate(parts, row.after)
                continue
            shape = checkpoint.infos[name].shape
            ours = (row.ours,) if isinstance(row.ours, str) else row.ours
            rows = shape[0] // len(ours) if shape else 0
            for i, own in enumerate(ours):
                steps = kind.steps(shape) if len(ours) == 1 else (Rows(i * rows, (i + 1) * rows),)
                found[_fill(own, numbers)] = Recipe(name, (*steps, *row.after))
        if bare and all(name.startswith(self.prefix) for name in found):
            return {name.removeprefix(self.prefix): recipe for name, recipe in found.items()}
        return found

    def foreign(self, checkpoint: Checkpoint) -> dict[str, Recipe | Concatenate]:
        """Foreign name -> how it is made of canonical tensors.

        Raises:
            WeightsError: canonical tensors that have no place there; all are named.
        """
        found: dict[str, Recipe | Concatenate] = {}
        for name, row, part, numbers in self._matched(checkpoint, self._ours, *_NOT_THE_FORMS):
            if not isinstance(row.ours, str):
                if part == 0:
                    lead = "" if name == _fill(row.ours[0], numbers) else self.prefix
                    names = [_fill(own, numbers).removeprefix(lead) for own in row.ours]
                    found[_fill(_one(row.theirs), numbers)] = Concatenate(tuple(map(Recipe, names)))
                continue
            shape, undone = checkpoint.infos[name].shape, Recipe(name)
            if row.after:
                stored = Recipe("", row.after).shape(shape)  # each of these steps is its own inverse
                undone = Recipe("", row.after).inverse(name, stored)
                shape = stored
            theirs = (row.theirs,) if isinstance(row.theirs, str) else row.theirs
            rows = shape[0] // len(theirs) if shape else 0
            for i, foreign in enumerate(theirs):
                cut: tuple[Layout, ...] = () if len(theirs) == 1 else (Rows(i * rows, (i + 1) * rows),)
                steps = (*undone.steps, *cut, *self._back(row, (rows, *shape[1:]) if cut else shape))
                found[_fill(foreign, numbers)] = Recipe(name, steps)
        return found

    def shapes(self, checkpoint: Checkpoint) -> dict[str, Shape]:
        """Canonical name, always with the prefix, -> shape, of a foreign checkpoint's tensors."""
        view = View(checkpoint, self.canonical(checkpoint, bare=False))
        return {name: info.shape for name, info in view.infos.items()}

    def _back(self, row: Row, shape: Shape) -> tuple[Layout, ...]:
        """The steps from torch's layout, of this shape, to the foreign one."""
        kind = KINDS[row.kind]
        stored = kind.stored(shape, (self.heads or {}).get(row.heads, 1))
        return Recipe("", kind.steps(stored)).inverse("", stored).steps

    def _matched(
        self, checkpoint: Checkpoint, find: Callable[[str], _Match | None], what: str, do: str
    ) -> Iterator[tuple[str, Row, int, tuple[str, ...]]]:
        matches, homeless = [], []
        for name in checkpoint.infos:
            match = find(name)
            if match is not None:
                matches.append((name, *match))
            elif not (self.computed and re.search(self.computed, name)):
                homeless.append(name)
        if homeless:
            raise WeightsError(what, where=checkpoint.path, got=", ".join(homeless), do=do)
        yield from matches

    def _theirs(self, name: str) -> _Match | None:
        return self._foreign_index.find(name)

    def _ours(self, name: str) -> _Match | None:
        return self._own_index.find(name) or (self._own_index.find(self.prefix + name) if self.prefix else None)

    @cached_property
    def _foreign_index(self) -> _Index:
        return _Index((row.theirs, row) for row in self.rows)

    @cached_property
    def _own_index(self) -> _Index:
        return _Index((row.ours, row) for row in self.rows)


_Match = tuple[Row, int, tuple[str, ...]]


class _Index:
    """Templates by the name with every number taken out, so that a name is tried against a few only."""

    def __init__(self, pairs: Iterable[tuple[str | tuple[str, ...], Row]]) -> None:
        self._found: dict[str, list[tuple[re.Pattern[str], Row, int]]] = {}
        for templates, row in pairs:
            for part, template in enumerate((templates,) if isinstance(templates, str) else templates):
                bare = _bare(template.replace("{_}", "").replace("{}", "0"))
                self._found.setdefault(bare, []).append((_pattern(template), row, part))

    def find(self, name: str) -> _Match | None:
        for pattern, row, part in self._found.get(_bare(name), ()):
            match = pattern.fullmatch(name)
            if match:
                return row, part, tuple((group or "_0").removeprefix("_") for group in match.groups())
        return None


def _bare(name: str) -> str:
    return re.sub(r"_?\d+", "", name)


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{_\}", r"(_[1-9]\d*)?").replace(r"\{\}", r"(0|[1-9]\d*)"))


def _fill(template: str, numbers: Iterable[str]) -> str:
    values = iter(numbers)
    return re.sub(
        r"\{_?\}", lambda m: _counted(next(values)) if m[0] == "{_}" else next(values), template
    )  # fmt: skip


def _counted(number: str) -> str:
    return "" if number == "0" else f"_{number}"


def _one(names: str | tuple[str, ...]) -> str:
    if not isinstance(names, str):
        raise TypeError(f"a row may be fused on one side only: {names}")
    return names


def _shape(checkpoint: Checkpoint, name: str) -> Shape:
    if name not in checkpoint.infos:
        raise WeightsError(f"no tensor named {name!r}, a part of a fused one", where=checkpoint.path)
    return checkpoint.infos[name].shape
