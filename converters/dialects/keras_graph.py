"""The weights that our own Keras models save (.weights.h5, .keras): vars/ and the canonical name, in torch's layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converters.checkpoint import Checkpoint
from converters.view import Concatenate, Recipe

__all__ = ["NAME", "canonical", "foreign", "recognises"]

NAME = "keras"

_GROUP = "vars/"


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether every tensor lies in the one group of variables, under a name instead of Keras's numbers."""
    names = checkpoint.infos
    return bool(names) and all(name.startswith(_GROUP) and not name[len(_GROUP) :].isdigit() for name in names)


def canonical(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """Canonical name -> recipe, for every tensor of the file."""
    return {name.removeprefix(_GROUP): Recipe(name) for name in checkpoint.infos}


def foreign(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """Name -> recipe, for `load_weights` of `zoo.load(..., backend="keras").module`."""
    return {_GROUP + name: Recipe(name) for name in checkpoint.infos}
