"""PyTorch: the graph's operations are torch's own, so running one is running the exported program."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from zoo.backends.execute import Program
from zoo.graph.ir import Graph
from zoo.ops import OPS

__all__ = ["GraphModule", "compile_graph", "module_of", "params_from"]


COPIES = False
"""Whether `params_from` copies, so that the checkpoint's pages are not needed any more."""


def compile_graph(graph: Graph, operations: Mapping[str, Callable[..., Any]] | None = None) -> Any:
    """A function (params, inputs) -> outputs on tensors; `operations` stand in for torch's own of those names."""
    given = operations or {}
    program = Program(graph, lambda name: given.get(name) or _resolve(name), lambda dtype: getattr(torch, dtype.name))
    constants = {name: tensor_from(array) for name, array in graph.constants.items()}

    def apply(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        device = next(iter(params.values())).device if params else torch.device("cpu")
        placed = constants if device.type == "cpu" else {name: c.to(device) for name, c in constants.items()}
        inputs = {name: torch.as_tensor(value, device=device) for name, value in inputs.items()}
        with torch.device(device):
            return program(params, inputs, placed)

    return apply


def params_from(arrays: Mapping[str, np.ndarray], graph: Graph) -> dict[str, torch.nn.Parameter]:
    """Parameters over the checkpoint's own memory: nothing is copied, and a change to one is never written to disk."""
    return {
        name: torch.nn.Parameter(tensor_from(array), requires_grad=graph.params[name].trainable)
        for name, array in arrays.items()
    }


def module_of(model: Any) -> torch.nn.Module:
    """The transformers module itself where transformers knows the class, else an nn.Module around the graph."""
    return model._native_module() or GraphModule(model.graph, model.params)


class GraphModule(torch.nn.Module):
    """A graph as an nn.Module: parameters under their canonical names, forward(**inputs) -> dict of outputs."""

    def __init__(self, graph: Graph, params: Mapping[str, torch.nn.Parameter]) -> None:
        super().__init__()
        self.graph = graph
        self._apply_graph = compile_graph(graph)
        self._keys = {name: name.replace(".", "\N{MIDDLE DOT}") for name in params}
        for name, tensor in params.items():
            if graph.params[name].trainable:
                self.register_parameter(self._keys[name], tensor)
            else:
                self.register_buffer(self._keys[name], tensor.detach())

    def forward(self, **inputs: Any) -> dict[str, Any]:
        return self._apply_graph({name: getattr(self, key) for name, key in self._keys.items()}, inputs)


def tensor_from(array: np.ndarray) -> torch.Tensor:
    """The array's memory as a tensor, bfloat16 included."""
    with warnings.catch_warnings():
        # the memory is a private mapping or another's array; torch warns that it might be written to
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        if str(array.dtype) == "bfloat16":
            return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(array if array.flags.c_contiguous or array.ndim else np.ascontiguousarray(array))


class _Sizes:
    """What the size operations need of a namespace, on ints and SymInts."""

    @staticmethod
    def size_equal(a: Any, b: Any) -> Any:
        return a == b

    @staticmethod
    def size_where(condition: Any, a: Any, b: Any) -> Any:
        return torch.sym_ite(condition, a, b)

    @staticmethod
    def size_int(a: Any) -> Any:
        return torch.sym_int(a)

    @staticmethod
    def shape(x: Any) -> Any:
        return x.shape

    @staticmethod
    def logical_not(a: Any) -> Any:
        return torch.sym_not(a)

    @staticmethod
    def cast(a: Any, dtype: str) -> Any:
        return torch.sym_float(a)


def _resolve(name: str) -> Callable[..., Any]:
    if name.startswith("sym.") or name == "sym_size.int":
        definition = OPS[name].function
        return lambda *args: definition(_Sizes, *args)
    if name in ("view", "_unsafe_view"):
        return torch.ops.aten.reshape.default  # copies were dropped, so a view may no longer be possible
    if name == "dropout":
        return torch.ops.aten.dropout.default
    space, _, rest = name.rpartition("::")
    base, _, overload = rest.partition(".")
    return operator.attrgetter(f"{base}.{overload or 'default'}")(getattr(torch.ops, space or "aten"))
