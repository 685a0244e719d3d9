"""Where a graph runs. Each backend is one module, imported only when it is asked for.

A backend module has the names of `zoo.backends.base.Backend`. Importing this package imports no framework.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from zoo.errors import MissingFramework
from zoo.frameworks import BACKENDS, backend_name, how_to_install, installed, lacks_capture

__all__ = ["BACKENDS", "backend_name", "get_backend", "how_to_install", "installed", "lacks_capture"]


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
