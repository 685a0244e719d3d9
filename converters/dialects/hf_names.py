"""Where transformers 4 keeps each tensor of a class in its TensorFlow and its Flax files, as found by value.

hf_names.json.gz is {"tf" | "flax": {class: {torch name: ["layout|name", …]}}}, with {} for the numbers of layers, where
they only count; a tensor that several layers of TensorFlow share is in several places. "class?field=value" has what is
called otherwise if the config says so. Under the name "" are TensorFlow's layers without weights, which its files list.
tests/oracle/make_tables.py derives it from files that transformers 4.57 wrote.
"""

from __future__ import annotations

import difflib
import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from converters.checkpoint import Checkpoint, TensorInfo
from converters.dialects.shared import kernel_steps
from converters.view import Concatenate, Layout, Permute, Recipe, Reshape
from zoo.errors import FormatError, WeightsError
from zoo.graph.computed import is_computed

__all__ = ["classes", "empty_layers", "foreign", "knows"]

_TABLE = Path(__file__).with_name("hf_names.json.gz")
_NUMBER = re.compile(r"(?<![A-Za-z0-9:])\d+(?![A-Za-z0-9])")


def classes(kind: str) -> list[str]:
    """The classes that can be written as "tf" or "flax"."""
    return sorted({name.partition("?")[0] for name in _table()[kind]})


def empty_layers(config: Mapping[str, Any]) -> list[str]:
    """The layers without weights that a TensorFlow file of the config's class lists."""
    return (_names("tf", config) or {}).get("", [])


def knows(kind: str, config: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether the class of a config has a place for a tensor, by its torch name."""
    table = _names(kind, config) or {}
    return lambda name: any(True for _ in _places(table, name))


def foreign(kind: str, checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """The names and layouts in which transformers 4 loads canonical tensors.

    Args:
        kind: "tf" or "flax".
        checkpoint: the tensors of the class that config["architectures"] names first, under its own names.
        config: the model's config.json.

    Raises:
        FormatError: transformers 4 has no such class.
        WeightsError: the class has no place for some tensors; all are named.
    """
    name = _class(config)
    table = _names(kind, config)
    if table is None:
        raise FormatError(
            f"transformers 4 has no {name} for {'TensorFlow' if kind == 'tf' else 'Flax'}, or its names are not known",
            where=checkpoint.path,
            expected=f"one of its {len(classes(kind))} classes, such as "
            + ", ".join(difflib.get_close_matches(name, classes(kind), 5, 0.3)),
            do="convert to another form, or load the model's head or base class that exists there: --task",
        )
    found: dict[str, Recipe | Concatenate] = {}
    homeless = []
    for info in checkpoint.infos.values():
        if is_computed(info.name):
            continue
        places = list(_places(table, info.name))
        tied = checkpoint.aliases.get(info.name)
        if not places and not (tied and any(True for _ in _places(table, tied))):
            homeless.append(info.name)
        for layout, place in places:
            found[place] = Recipe(info.name, _steps(layout, info))
    if homeless:
        raise WeightsError(
            f"{name} of transformers 4 has no place for {len(homeless)} tensors",
            where=checkpoint.path,
            got=", ".join(homeless),
            do="convert to safetensors or another form that keeps every tensor",
        )
    return found


def _class(config: Mapping[str, Any]) -> str:
    return str(next(iter(config.get("architectures") or []), None))


def _names(kind: str, config: Mapping[str, Any]) -> Mapping[str, list[str]] | None:
    name = _class(config)
    for key, names in _table()[kind].items():
        own, _, condition = key.partition("?")
        field, _, value = condition.partition("=")
        if own == name and condition and str(config.get(field)) == value:
            return names
    return _table()[kind].get(name)


def _places(table: Mapping[str, list[str]], name: str) -> Iterator[tuple[str, str]]:
    """(layout, name there) for each place of a tensor; numbers that the table spells out win over those that count."""
    numbers = _NUMBER.findall(name)
    for free in range(len(numbers) + 1):
        template = _NUMBER.sub("{}", name, count=free) if free else name
        if template in table:
            for place in table[template]:
                layout, _, there = place.partition("|")
                yield layout, there.format(*numbers[:free])
            return


def _steps(layout: str, info: TensorInfo) -> tuple[Layout, ...]:
    """From torch's layout to the one that the table names."""
    rank = len(info.shape)
    if layout == "":
        return ()
    if layout == "row":
        return (Reshape((1, *info.shape)),)
    if layout == "vector":
        return (Reshape(info.shape[:1]),)
    if layout in ("kernel", "kernel1d", "kernel2d"):
        read = kernel_steps("kernel", rank)
    else:
        read = (Permute(tuple(map(int, layout.removeprefix("permute")))),)
    # What is read by a permutation is written by its inverse, and needs no shape for that.
    return tuple(step.inverse(info.shape) for step in read)


@cache
def _table() -> dict[str, dict[str, dict[str, list[str]]]]:
    return json.loads(gzip.decompress(_TABLE.read_bytes()))
