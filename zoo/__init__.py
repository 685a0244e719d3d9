"""Anyzoo: any pretrained model, unchanged and proven equal, on PyTorch, TensorFlow, JAX, Keras 3 or NumPy.

    import zoo
    model = zoo.load("minilm", backend="jax")
    model.embed(["a cat", "a kitten"])

Importing this package imports no framework.
"""

from __future__ import annotations

import sys
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
