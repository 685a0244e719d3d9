"""Which frameworks there are, which are installed here, and how to install the others. Imports none of them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from zoo.errors import UnknownBackend

__all__ = ["BACKENDS", "SUFFIXES", "backend_name", "find_library", "how_to_install", "installed", "lacks_capture"]

SUFFIXES = (".so", ".dylib")
"""What compiled libraries are called at the end."""

BACKENDS: dict[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "jax": ("jax",),
    "tensorflow": ("tensorflow",),
    "keras": ("keras",),
    "numpy": ("numpy",),
    "native": (),  # its library is part of the package
}
"""Backend name -> the packages it needs; the extra of the same name installs them."""

_ALIASES = {"tf": "tensorflow", "pytorch": "torch", "flax": "jax", "np": "numpy"}


def installed(name: str) -> bool:
    """Whether the backend's framework can be imported; imports nothing."""
    if name == "native":
        return find_library() is not None
    return all(importlib.util.find_spec(package) is not None for package in BACKENDS[name])


def how_to_install(*names: str) -> str:
    """What brings extras that are not installed, all at once: backends, "capture", "convert".

    Keras computes on another framework: one comes along where there is none.
    """
    if names == ("native",):
        return "a wheel of anyzoo, or a C++20 compiler and pip install --force-reinstall anyzoo"
    extras = list(dict.fromkeys(name for name in names if name not in ("numpy", "native")))
    if "keras" in extras and not any(name in extras or installed(name) for name in ("jax", "tensorflow", "torch")):
        extras.append("jax")
    return f"pip install 'anyzoo[{','.join(extras)}]'"


def lacks_capture() -> list[str]:
    """The packages that capturing a model needs and that are not installed."""
    return [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]


def backend_name(name: str) -> str:
    """A backend's own name: "tf" -> "tensorflow". UnknownBackend where there is none."""
    name = _ALIASES.get(name, name)
    if name not in BACKENDS:
        import difflib

        near = difflib.get_close_matches(str(name), [*BACKENDS, *_ALIASES], n=1)
        raise UnknownBackend(
            f"there is no backend {name!r}",
            expected=f"one of {', '.join(BACKENDS)}",
            do=f"did you mean {near[0]!r}?" if near else None,
        )
    return name


def find_library(part: str = "native") -> Path | None:
    """A library's file: in the package, or, of an editable install, where the build put it. Loads nothing.

    Args:
        part: "native" is the engine, a framework's name its adapter.
    """
    folders = [Path(__file__).parent / "native", *(Path(place) / "zoo" / "native" for place in sys.path)]
    names = [f"libzoo_{part}{suffix}" for suffix in SUFFIXES]
    return next((path for folder in folders for name in names if (path := folder / name).is_file()), None)
