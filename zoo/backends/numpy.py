"""The reference: every graph in float64 on NumPy, with nothing but the op table's own definitions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np

from zoo.arrays import to_numpy
from zoo.backends.base import Compiled, compiled, refuse
from zoo.backends.execute import Program, naming_nodes, resolve_over
from zoo.backends.namespace import Namespace
from zoo.backends.numpy_namespace import NumpyNamespace, widest
from zoo.graph.ir import Graph
from zoo.inputs import NUMPY
from zoo.ops.random import key_of

__all__ = [
    "INPUTS",
    "NumpyNamespace",
    "compile_graph",
    "evaluating",
    "key_from",
    "namespace",
    "params_from",
    "replaced",
]


COPIES = False
"""Whether `params_from` copies, so that the checkpoint's pages are not needed any more."""

IN_PLACE = False
"""Whether training writes into the arrays that `params_from` was given."""

TRAINED = None
copied = None
widened = None
held = None  # no use for these here: see zoo.backends.base


def compile_graph(
    graph: Graph,
    *,
    operations: Mapping[str, Callable[..., Any]] | None = None,
    source: Graph | None = None,
    precision: str = "float32",
) -> Compiled:
    """A function (params, inputs) -> outputs that computes in float64, whatever the graph's dtype."""
    refuse("numpy", operations, precision)
    program = Program(graph, resolve_over(_XP, {}))
    constants = {name: widest(array) for name, array in graph.constants.items()}

    def apply(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        with np.errstate(all="ignore"):
            weights = {name: widest(array) for name, array in params.items()}
            given = {name: widest(np.asarray(array)) for name, array in inputs.items()}
            with naming_nodes():
                return program(weights, given, constants)

    return compiled(apply)


def params_from(arrays: Mapping[str, np.ndarray], graph: Graph) -> dict[str, np.ndarray]:
    """The checkpoint's arrays themselves: read-only views, widened only while a call runs."""
    return dict(arrays)


def replaced(old: np.ndarray, value: Any) -> np.ndarray:
    """A copy of a value that is put in an array's place; floats of other widths are kept: all are widened in calls."""
    new = np.array(to_numpy(value), order="C")
    floats = all(array.dtype.kind in "fV" for array in (old, new))  # ml_dtypes' are of kind V
    return new if floats else new.astype(old.dtype)


def key_from(rng: Any) -> np.ndarray:
    """A call's key, int32 [2], of a seed (a number or two) or of a NumPy Generator, from which it is drawn."""
    return key_of(rng.integers(2**32, size=2) if isinstance(rng, np.random.Generator) else rng)


INPUTS = NUMPY
"""What a call's inputs need of NumPy."""

evaluating = nullcontext
"""What a call without `rng` runs under."""


def module_of(model: Any) -> Any:
    """There is no framework: the function (params, inputs) -> outputs."""
    return model.apply


def namespace() -> Namespace:
    """The namespace this backend computes with."""
    return _XP


_XP = NumpyNamespace(widen=True)
