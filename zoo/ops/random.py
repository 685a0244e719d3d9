"""Operations that a captured graph may hold but that draw nothing when a model is evaluated."""

from __future__ import annotations

from typing import Any

from zoo.ops.table import op


@op("dropout", "alpha_dropout", "feature_dropout")
def dropout(xp: Any, x: Any, p: float, train: bool) -> Any:
    if train and p:
        raise NotImplementedError("dropout in a graph captured for training")
    return x
