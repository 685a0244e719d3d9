"""What the classes of a model type call their parts, out of transformers' own source: it is read, never imported."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

__all__ = ["known_parts"]


@cache
def known_parts(model_type: str, class_name: str) -> frozenset[str] | None:
    """The names of all modules and parameters that the classes of a model type give themselves, heads included.

    Importing the classes would bring torch into a process that may have no use for it, and take seconds.

    Args:
        model_type: as config.json has it.
        class_name: one of its classes, for model types whose folder has another name.

    Returns:
        None where transformers is not installed, or has no such class.
    """
    spec = find_spec("transformers")
    for place in (spec and spec.submodule_search_locations) or ():
        root = Path(place) / "models"
        likely = sorted((root / model_type.replace("-", "_")).glob("modeling_*.py"))
        for file in (*likely, *sorted(root.glob("*/modeling_*.py"))):
            if f"class {class_name}(" in file.read_text("utf-8"):
                texts = (path.read_text("utf-8") for path in file.parent.glob("modeling_*.py"))
                return frozenset(name for text in texts for name in _OWN.findall(text))
    return None


_OWN = re.compile(r"\bself\.(\w+)\s*(?::[^=\n]+)?=[^=]")
