"""What a backend is: the names that each module of this package has, and what they promise.

A backend is a module, so that its framework is imported when it is asked for and not before. What a framework has no
use for is None there. tests/test_backends.py holds every module to this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from zoo.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from zoo.graph.ir import Graph
    from zoo.inputs import Arrays

__all__ = ["Backend", "Compiled", "compiled", "refuse"]


class Compiled(Protocol):
    """A graph ready to run. Threads may share it.

    Attributes:
        packed: the same, where outputs at padding do not matter: real tokens alone may be computed, and 0 left there.
    """

    packed: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]

    def __call__(self, params: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs by name, as the backend's arrays, of parameters and inputs by theirs."""


class Backend(Protocol):
    """A module of `zoo.backends`.

    Attributes:
        COPIES: whether `params_from` copies, so that the checkpoint's pages are not needed any more.
        IN_PLACE: whether training writes into the arrays that `params_from` was given.
        TRAINED: the attribute of a parameter that says whether it is trained, if there is one.
        INPUTS: what `zoo.inputs` needs to take arrays of any kind, and to tell the backend's own.
        replaced: (old, value) -> what stands in `m.params` after a value was put there; None if that is a plain dict.
        copied: (value, dtype) -> the backend's own array, where `m.params` is a plain dict; else None.
        widened: (array, dtype) -> NumPy's, as wide as the graph's parameter, where the framework narrows; else None.
        held: (module, graph) -> the parameters inside the framework's own module, where it has some; else None.
    """

    COPIES: bool
    IN_PLACE: bool
    TRAINED: str | None
    INPUTS: Arrays
    replaced: Callable[[Any, Any], Any] | None
    copied: Callable[[Any, str], Any] | None
    widened: Callable[[Any, str], np.ndarray] | None
    held: Callable[[Any, Graph], Any] | None

    def compile_graph(
        self,
        graph: Graph,
        *,
        operations: Mapping[str, Callable[..., Any]] | None = None,
        source: Graph | None = None,
        precision: str = "float32",
    ) -> Compiled:
        """The graph as a function.

        Args:
            operations: stand in for the backend's own of those names.
            source: the graph without them, whose sizes are bounded.
            precision: of products with parameters; the results are float32 all the same.

        Raises:
            ConfigError: the backend has no such operations or precision.
        """

    def params_from(self, arrays: Mapping[str, np.ndarray], graph: Graph) -> dict[str, Any]:
        """Weights by canonical name as the backend's own arrays."""

    def key_from(self, rng: Any) -> Any:
        """The key that dropout draws from, of a seed or of what the framework keeps randomness in."""

    def module_of(self, model: Any) -> Any:
        """The framework's own object over a model's parameters."""

    def evaluating(self) -> AbstractContextManager[Any]:
        """What a call that trains nothing runs under."""


def compiled(function: Any, packed: Callable[..., Any] | None = None) -> Compiled:
    """A function (params, inputs) -> outputs as the contract has it; without `packed` padding is computed, too."""
    function.packed = packed or function
    return function


def refuse(
    backend: str, operations: Mapping[str, Callable[..., Any]] | None = None, precision: str = "float32"
) -> None:
    """Nothing where these are the usual ones.

    Raises:
        ConfigError: they are others, and the backend has none.
    """
    if operations:
        raise ConfigError(f"{backend} takes no operations in place of its own", got=", ".join(operations))
    if precision != "float32":
        raise ConfigError(f"{backend} has no products of another precision", expected="float32", got=precision)
