"""What is true of some model types alone, and neither their config nor their module shows: special_cases.json.

Rules come first: a name of a model type or class stands nowhere else in this package. Each case says why it is one, and
the file of which version of transformers that was found. Read without torch or transformers, since loading asks, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = ["special_case"]


@cache
def special_case(name: str) -> Mapping[str, Any]:
    """The model types or classes that a case is of: type -> what the case says of it, True where it says no more.

    Raises:
        KeyError: there is no such case.
    """
    types = _cases()[name]["types"]
    return MappingProxyType(types if isinstance(types, dict) else dict.fromkeys(types, True))


@cache
def _cases() -> Mapping[str, Any]:
    return json.loads((Path(__file__).parent / "special_cases.json").read_text("utf-8"))["cases"]
