"""Anyzoo: any pretrained model, unchanged and proven equal, on PyTorch, TensorFlow, JAX, Keras 3 or NumPy.

    import zoo
    model = zoo.load("minilm", backend="jax")
    model.embed(["a cat", "a kitten"])

Importing this package imports no framework.
"""

from __future__ import annotations

import sys
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any

from zoo.errors import ZooError

if TYPE_CHECKING:
    from zoo.bench import BenchReport, bench
    from zoo.catalogue import architectures, available, info
    from zoo.checksums import FilesReport, check_files
    from zoo.convert import Conversion, convert, verify_conversion
    from zoo.loading import capture, load
    from zoo.model import Model, Output, Package
    from zoo.verify import Report, verify

__all__ = [
    "BenchReport",
    "Conversion",
    "FilesReport",
    "Model",
    "Output",
    "Package",
    "Report",
    "ZooError",
    "architectures",
    "available",
    "bench",
    "capture",
    "check_files",
    "convert",
    "info",
    "load",
    "verify",
    "verify_conversion",
]
__version__ = "0.1.0.dev0"

_LAZY = {
    "load": "zoo.loading",
    "capture": "zoo.loading",
    "convert": "zoo.convert",
    "Conversion": "zoo.convert",
    "verify_conversion": "zoo.convert",
    "check_files": "zoo.checksums",
    "FilesReport": "zoo.checksums",
    "Model": "zoo.model",
    "Output": "zoo.model",
    "Package": "zoo.model",
    "bench": "zoo.bench",
    "BenchReport": "zoo.bench",
    "verify": "zoo.verify",
    "Report": "zoo.verify",
    "architectures": "zoo.catalogue",
    "available": "zoo.catalogue",
    "info": "zoo.catalogue",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


class _Package(ModuleType):
    """`zoo.bench`, `zoo.capture`, `zoo.convert` and `zoo.verify` stay the functions when such modules are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _LAZY and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def _register() -> None:
    """A .keras file with a graph in it loads wherever zoo and Keras were imported, in either order.

    Keras has to be told of the class, and imports nobody's modules by itself while it loads. Where it is not imported
    yet, a finder waits for it: it finds what the others find, and goes when Keras was told.
    """
    keras = sys.modules.get("keras")
    if keras is None:
        sys.meta_path.insert(0, _WaitsForKeras())
    elif hasattr(keras, "saving"):  # whole, and Keras 3: nothing is imported for it
        _tell_keras()


def _tell_keras() -> None:
    import importlib

    try:
        importlib.import_module("zoo.backends.keras")
    except (ImportError, AttributeError, ZooError):  # another Keras, or one that its backend is missing for
        pass


class _WaitsForKeras(threading.local):
    """What the other finders find of Keras, which tells it once it has run."""

    looking = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "keras" or self.looking:
            return None
        from importlib.util import find_spec

        self.looking = True
        try:
            spec = find_spec(name)
        except ValueError:  # a module that somebody made, without a spec
            return None
        finally:
            self.looking = False
        execute = getattr(getattr(spec, "loader", None), "exec_module", None)
        if spec is None or execute is None:
            return spec

        def executed(module: ModuleType) -> None:
            execute(module)
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
            _tell_keras()

        spec.loader.exec_module = executed  # type: ignore[method-assign, union-attr]
        return spec


_register()
