"""What training programs put around a model's tensors is taken off: `module.`, `state_dict`, an optimizer beside them.

A wrapper is known by what it leads to: the names under it are those of the model's parameters, all of them. No list of
programs decides, so that nested ones need no entry of their own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from converters.dialects import canonical
from converters.dialects.shared import same_values
from converters.marks import (
    ADAPTER_ADVICE,
    NOT_APPLIED,
    NOT_READ,
    QUANTISED_ADVICE,
    adapter_tensors,
    is_average,
    is_float8,
    told_by,
    why_beside,
)
from converters.view import Recipe, Subset, View, origins
from zoo.errors import WeightsError, ZooError
from zoo.graph.computed import is_computed
from zoo.graph.ir import Graph
from zoo.weights import expected_shapes, lacking, main_needs

__all__ = ["Unwrapped", "unwrapped"]


@dataclass(frozen=True, slots=True)
class Unwrapped:
    """A file's tensors without what was around them.

    Args:
        raw: under the names that they have inside, those beside the model left out.
        read: under canonical names; `raw` itself if those are the same.
        notes: what was taken off.
        left: tensor of the file -> why it is none of the model's.
    """

    raw: Any
    read: Any
    notes: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)

    def told(self) -> list[str]:
        """The notes, with what was left out by kinds: optimizers hold hundreds of tensors."""
        found = list(self.notes)
        for why in dict.fromkeys(self.left.values()):
            tops = Counter(re.split(r"[./]", name)[0] for name, reason in self.left.items() if reason == why)
            shown = ", ".join(f"{count} under {top!r}" if count > 1 else repr(top) for top, count in tops.items())
            found.append(f"tensors are not used, {shown}: {why}")
        return found


def unwrapped(file: Any, config: Mapping[str, Any], graph: Graph) -> Unwrapped:
    """The tensors of a file as the graph's model names them.

    Args:
        file: a checkpoint; closed with what is returned.
        config: the model's config.json.

    Raises:
        WeightsError: the file holds the parameters several times, and it is not clear which are meant; or in parts that
            have to be put together; or an adapter beside them.
        FormatError, ConfigError: what the file's dialect says, where nothing leads to the model.
    """
    expected = expected_shapes(graph)
    plain, error = _tried(file, config, graph, expected)
    found = plain
    if plain is None or plain.lacks:
        main = main_needs(graph)
        if plain is None or plain.lacks & main:
            found = _best(file, config, graph, expected, main, plain) or plain
    if found is not None and found.lacks and any("_flat_param" in name for name in file.infos):
        raise WeightsError(
            "the file holds FSDP's flattened parameters, each the numbers of several",
            where=file.path,
            got=", ".join([name for name in file.infos if "_flat_param" in name][:3]),
            do="save a full state dict: torch.distributed.checkpoint.state_dict.get_model_state_dict with "
            "StateDictOptions(full_state_dict=True)",
        )
    if found is not None and found.lacks & main_needs(graph):
        _refuse_lists(file, len(found.lacks))
    if found is None:
        assert error is not None
        raise error
    return _finished(file, found, expected)


def _refuse_lists(file: Any, lacking: int) -> None:
    """Lists of tensors without names, in the order of a module's parameters: nothing in the file says which is which,
    and shapes do not, since many parameters have the same.

    Raises:
        WeightsError: naming the lists, where one may hold the parameters that lack.
    """
    lists = Counter(match[1] for name in file.infos if (match := _NUMBERED.fullmatch(name)))
    top = repr(file.wrapper) if getattr(file, "wrapper", "") else "no name"
    several = [name for name, count in lists.items() if 2 * count > max(lacking, 2)]
    if several:
        raise WeightsError(
            "the file holds tensors by number, without the parameters' names",
            where=file.path,
            got=", ".join(f"{lists[name]} under {repr(name) if name else top}" for name in several),
            do="put them into the module that they are of (torch_ema: ema.copy_to(model.parameters())) and save "
            "model.state_dict()",
        )


_NUMBERED = re.compile(r"(|.*[./])(?:arr_)?\d+")


_MARKERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""Modules that torch.compile, FSDP, activation checkpointing and DeepSpeed put around others, anywhere in a name."""

_MOST = 64
"""How many prefixes are tried: real files have a handful that enough tensors share."""


class _Inside(View):
    """Tensors under the names that they have inside a wrapper; in all else like the file."""

    def __init__(self, source: Any, names: Mapping[str, str]) -> None:
        super().__init__(source, {name: Recipe(own) for name, own in names.items()})
        self.format = source.format


@dataclass(frozen=True, slots=True)
class _Reading:
    """One way to read a file.

    Args:
        prefix: what was taken off.
        names: inner name -> the file's, {} for the file as it is.
        raw, read: as in `Unwrapped`.
        lacks: parameters that no tensor serves.
    """

    prefix: str
    names: Mapping[str, str]
    raw: Any
    read: Any
    lacks: frozenset[str]


def _best(
    file: Any,
    config: Mapping[str, Any],
    graph: Graph,
    expected: Mapping[str, Any],
    main: set[str],
    plain: _Reading | None,
) -> _Reading | None:
    """The way that leads to the most parameters, if it is better than to read the file as it is."""
    near: list[_Reading] = []
    for names in _spelled(list(file.infos)):
        readings = []
        for prefix in _prefixes(names.values(), len(graph.params)):
            inner = {short[len(prefix) :]: own for own, short in names.items() if short.startswith(prefix)}
            found, _ = _tried(file, config, graph, expected, prefix, inner)
            if found is not None and (plain is None or found.lacks < plain.lacks):
                readings.append(found)
        whole = [found for found in readings if not found.lacks & main]
        if whole:
            return _chosen(file, whole)
        near += readings
    # Not all, but most: what is said to lack is then what really does.
    best = min(near, key=lambda found: (is_average(found.prefix), len(found.lacks), len(found.prefix)), default=None)
    return best if best is not None and 2 * len(best.lacks) < len(graph.params) else None


def _spelled(names: list[str]) -> Iterator[dict[str, str]]:
    """The file's names -> without modules that are around others: those that are nothing else, then `module`, too."""
    known: dict[str, str] = {}
    for markers in (_MARKERS, (*_MARKERS, "module")):
        short = {name: _without(name, markers) for name in names}
        if short != known and len(set(short.values())) == len(short):
            yield short
        known = short


def _without(name: str, markers: Iterable[str]) -> str:
    return re.sub(rf"(?:(?<=^)|(?<=[./]))(?:{'|'.join(markers)})[./]", "", name)


def _prefixes(names: Iterable[str], params: int) -> list[str]:
    """What enough names begin with to hold a model, shortest first; "" among them."""
    counts: Counter[str] = Counter()
    for name in names:
        counts.update(name[: found.end()] for found in re.finditer(r"[./]", name))
    enough = [prefix for prefix, count in counts.items() if 4 * count >= params]
    return ["", *sorted(enough, key=lambda prefix: (len(re.findall(r"[./]", prefix)), prefix))[:_MOST]]


def _tried(
    file: Any,
    config: Mapping[str, Any],
    graph: Graph,
    expected: Mapping[str, Any],
    prefix: str = "",
    names: Mapping[str, str] = MappingProxyType({}),
) -> tuple[_Reading | None, ZooError | None]:
    """The file read so, or why that cannot be."""
    raw = _Inside(file, names) if names else file
    try:
        same = all(name in expected or is_computed(name) for name in raw.infos)
        read = raw if same else canonical(raw, config, expected)
    except ZooError as error:
        return None, error
    return _Reading(prefix, names, raw, read, frozenset(lacking(graph, read.infos))), None


def _chosen(file: Any, readings: list[_Reading]) -> _Reading:
    """Of several ways to all parameters the one that is meant: weights rather than their average, the outermost.

    Raises:
        WeightsError: several are as good, and hold other values.
    """
    known = [found for found in readings if not _is_trainers(found.prefix)] or readings
    known = [found for found in known if not is_average(found.prefix)] or known
    best = min(known, key=lambda found: (len(found.lacks), len(re.findall(r"[./]", found.prefix)), found.prefix))
    rivals = [
        found.prefix
        for found in known
        if not found.prefix.startswith(best.prefix)
        and not best.prefix.startswith(found.prefix)
        and len(found.lacks) == len(best.lacks)
        and not _equal(file, best, found)
    ]
    if rivals:
        raise WeightsError(
            "the file holds the model's parameters several times, and they differ",
            where=file.path,
            got="under " + " and ".join(repr(prefix) for prefix in sorted([best.prefix, *rivals])),
            do="save those that are meant to a file of their own",
        )
    return best


def _equal(file: Any, one: _Reading, other: _Reading) -> bool:
    shared = one.names.keys() & other.names.keys()
    return all(same_values(file, one.names[name], other.names[name]) for name in shared)


def _is_trainers(prefix: str) -> bool:
    return why_beside(f"{prefix}x") is not None and not is_average(prefix)


def _finished(file: Any, reading: _Reading, expected: Mapping[str, Any]) -> Unwrapped:
    """The reading without a trainer's own tensors, and what is to be said of it."""
    tops = {name.partition(".")[0] for name in expected}
    strays = {
        name: why
        for name in reading.read.infos
        if name not in expected and not is_computed(name) and (why := why_beside(name, tops)) is not None
    }
    left = {own: why for name, why in strays.items() for own in origins(reading.read, name, file)}
    inside = set(reading.names.values()) if reading.names else set(file.infos)
    beside = f"it is not under {reading.prefix!r}, where the model's parameters are"
    left |= {name: why_beside(name, tops) or beside for name in file.infos if name not in inside}
    outside = [name for name, why in left.items() if why == beside]
    if adapters := adapter_tensors(outside):
        raise WeightsError(NOT_APPLIED, where=file.path, got=", ".join(adapters[:3]), do=ADAPTER_ADVICE)
    short = {name for one in (file, reading.raw) for name, info in one.infos.items() if is_float8(info.dtype)}
    if scales := [name for name in told_by(outside, short - set(outside)) if name not in short]:
        raise WeightsError(NOT_READ, where=file.path, got=", ".join(scales[:3]), do=QUANTISED_ADVICE)
    notes = []
    wrapper = getattr(file, "wrapper", "")
    if prefix := (f"{wrapper}." if wrapper else "") + reading.prefix:
        notes.append(f"the model's tensors were read from under {prefix!r}")
    marks = [mark for mark in (*_MARKERS, "module") if _taken_out(mark, reading)]
    if marks:
        notes.append(f"{', '.join(map(repr, marks))} was taken out of the tensors' names")
    raw, read = reading.raw, reading.read
    if strays:
        read = Subset(read, [name for name in read.infos if name not in strays])
        raw = read if reading.read is reading.raw else raw
    return Unwrapped(raw, read, tuple(notes), left)


def _taken_out(mark: str, reading: _Reading) -> bool:
    """Whether a module was taken out of names, not only off with the prefix."""
    before = re.split(r"[./]", reading.prefix).count(mark)
    return any(
        re.split(r"[./]", own).count(mark) > re.split(r"[./]", short).count(mark) + before
        for short, own in reading.names.items()
    )
