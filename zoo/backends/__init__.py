"""Where a graph runs. Each backend is one module, imported only when it is asked for.

A backend module has the functions of `zoo.backends.base.Backend`. Importing this package imports no framework.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from zoo.errors import MissingFramework, UnknownBackend

__all__ = ["BACKENDS", "backend_name", "get_backend", "how_to_install", "installed", "lacks_capture"]

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
        from zoo.native.library import find

        return find() is not None
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


def get_backend(name: str) -> ModuleType:
    """The backend module `name`.

    Raises:
        UnknownBackend: no such backend.
        MissingFramework: its framework is not installed; the error says what to install.
    """
    name = backend_name(name)
    if name != "native" and not installed(name):  # that one says itself what is missing
        raise MissingFramework(
            f"the backend {name!r} needs a framework that is not installed",
            expected=", ".join(BACKENDS[name]),
            do=how_to_install(name)
            + (f"; for a model without a packaged graph {how_to_install(name, 'capture')}" if lacks_capture() else ""),
        )
    return importlib.import_module(f"zoo.backends.{name}")
