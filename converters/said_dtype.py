"""The dtype of a checkpoint's numbers, as its config.json says it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from converters.checkpoint import TensorInfo
from converters.view import is_float

__all__ = ["most_floats", "saying_dtype"]


def most_floats(infos: Iterable[TensorInfo]) -> str | None:
    """The dtype that most of the floating-point numbers have; None where there are none."""
    counts: dict[str, int] = {}
    for info in filter(is_float, infos):
        counts[info.dtype] = counts.get(info.dtype, 0) + math.prod(info.shape)
    return max(counts, key=lambda dtype: counts[dtype], default=None)


def saying_dtype(config: Mapping[str, Any], dtype: str | None, *, old: bool = False) -> dict[str, Any]:
    """A config that says a dtype under the name that its reader knows; nested configs, too, where they say one.

    Args:
        dtype: None leaves the one that it says.
        old: transformers 4 alone reads it, which knows it as torch_dtype.
    """
    return _saying(config, dtype, old, nested=False)


_SPELLINGS = ("torch_dtype", "dtype")


def _saying(config: Mapping[str, Any], dtype: str | None, old: bool, nested: bool) -> dict[str, Any]:
    said = next((config[key] for key in _SPELLINGS if config.get(key) is not None), None)
    there = [key for key in _SPELLINGS if key in config]
    if old or (not there and str(config.get("transformers_version")).startswith("4.")):
        there = ["torch_dtype"]
    found = {key: value for key, value in config.items() if key in there or key not in _SPELLINGS}
    value = said if dtype is None or (nested and said is None) else dtype
    if value is not None:
        found |= dict.fromkeys(there or ["dtype"], value)
    for key, inner in found.items():
        if isinstance(inner, Mapping) and "model_type" in inner:
            found[key] = _saying(inner, dtype, old, nested=True)
    return found
