"""Reading and writing with a `Table`: what is dropped, what keeps its own name, what is tied, and the base's prefix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from converters.checkpoint import Checkpoint
from converters.dialects.shared import Dropped, same_values, why_dropped
from converters.dialects.tables import Table
from converters.view import Concatenate, Recipe, Subset

__all__ = ["dropped_names", "read", "write"]


def dropped_names(checkpoint: Checkpoint, dropped: Dropped) -> dict[str, str]:
    """Tensor -> why it is left out, for those that a pattern matches."""
    reasons = {name: why_dropped(name, dropped) for name in checkpoint.infos}
    return {name: why for name, why in reasons.items() if why is not None}


def read(
    table: Table, checkpoint: Checkpoint, config: Mapping[str, Any], dropped: Dropped
) -> dict[str, Recipe | Concatenate]:
    """Canonical name -> recipe. Tensors that the table does not know keep their names."""
    gone = dropped_names(checkpoint, dropped)
    known = [name for name in checkpoint.infos if name not in gone and table.knows(name)]
    found = table.canonical(Subset(checkpoint, known), bare=False)
    if _is_base(config):
        found = {name.removeprefix(table.prefix): recipe for name, recipe in found.items()}
    return found | {name: Recipe(name) for name in checkpoint.infos if name not in gone and name not in known}


def write(
    table: Table, checkpoint: Checkpoint, ties: Iterable[tuple[str, str]], dropped: Dropped
) -> dict[str, Recipe | Concatenate]:
    """Foreign name -> recipe.

    Args:
        table: of the model.
        checkpoint: canonical.
        ties: (second name, first name) of weights that the model may share: the second is left out where it is equal.
        dropped: as in `read`.

    Raises:
        WeightsError: tensors that have no place there; all are named.
    """
    gone = set(dropped_names(checkpoint, dropped)) | set(_tied(table, checkpoint, ties))
    return table.foreign(Subset(checkpoint, [name for name in checkpoint.infos if name not in gone]))


def _tied(table: Table, checkpoint: Checkpoint, ties: Iterable[tuple[str, str]]) -> Iterator[str]:
    for second, first in ties:
        if second not in checkpoint.infos:
            continue
        leader = next((name for name in (first, first.removeprefix(table.prefix)) if name in checkpoint.infos), None)
        if leader is not None and same_values(checkpoint, leader, second):
            yield second


def _is_base(config: Mapping[str, Any]) -> bool:
    """Whether the model is a base model, whose own checkpoints have no prefix: BertModel, not GPT2LMHeadModel."""
    classes = config.get("architectures") or []
    return len(classes) == 1 and bool(re.fullmatch(r"(?!.*(LMHead|DoubleHeads)Model)\w+Model", classes[0]))
