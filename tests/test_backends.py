"""Every backend is what the contract says: the same names with the same signatures."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from zoo.backends import BACKENDS, get_backend
from zoo.backends.base import Backend
from zoo.errors import ConfigError
from zoo.graph.ir import Graph

NAMES = sorted({*Backend.__annotations__, *(name for name in vars(Backend) if not name.startswith("_"))})

EMPTY = Graph((), {}, {}, [], {})


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_has_the_names_of_the_contract(name: str) -> None:
    module = get_backend(name)
    assert len(NAMES) == 13 and not [what for what in NAMES if not hasattr(module, what)]
    for what in ("compile_graph", "params_from", "key_from", "module_of"):
        expected = list(inspect.signature(getattr(Backend, what)).parameters.values())[1:]
        got = list(inspect.signature(getattr(module, what)).parameters.values())
        assert [(p.name, p.kind, p.default) for p in got] == [(p.name, p.kind, p.default) for p in expected], what


@pytest.mark.parametrize("name", BACKENDS)
def test_what_is_compiled_is_called_in_both_ways(name: str) -> None:
    run: Any = get_backend(name).compile_graph(EMPTY)
    assert run({}, {}) == run.packed({}, {}) == {}


@pytest.mark.parametrize("name", BACKENDS)
def test_what_a_backend_has_not_is_refused(name: str) -> None:
    compile_graph = get_backend(name).compile_graph
    if name != "native":
        with pytest.raises(ConfigError, match="float32"):
            compile_graph(EMPTY, precision="int8")
    if name in ("keras", "numpy", "native"):
        with pytest.raises(ConfigError, match="relu"):
            compile_graph(EMPTY, operations={"relu": abs})
