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
from zoo.graph.passes import RNG, keyed
from zoo.ops import OPS
from zoo.ops.random import key_of

__all__ = ["GraphModule", "compile_graph", "key_from", "module_of", "params_from"]


COPIES = False
"""Whether `params_from` copies, so that the checkpoint's pages are not needed any more."""

IN_PLACE = True
"""Whether training writes into the arrays that `params_from` was given."""


def compile_graph(graph: Graph, operations: Mapping[str, Callable[..., Any]] | None = None) -> Any:
    """A function (params, inputs) -> outputs on tensors; `operations` stand in for torch's own of those names."""
    given = operations or {}
    program = Program(graph, lambda name: given.get(name) or _resolve(name), lambda dtype: getattr(torch, dtype.name))
    constants = {name: tensor_from(array) for name, array in graph.constants.items()}

    def apply(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        device = next(iter(params.values())).device if params else torch.device("cpu")
        placed = constants if device.type == "cpu" else {name: c.to(device) for name, c in constants.items()}
        inputs = {name: _placed(value, device) for name, value in inputs.items()}
        with torch.device(device):
            return program(params, inputs, placed)

    return apply


def params_from(arrays: Mapping[str, np.ndarray], graph: Graph) -> dict[str, torch.nn.Parameter]:
    """Parameters over the checkpoint's own memory: nothing is copied, and a change to one is never written to disk."""
    tensors = {name: tensor_from(array) for name, array in arrays.items()}
    return {
        name: torch.nn.Parameter(
            tensor, graph.params[name].trainable and (tensor.is_floating_point() or tensor.is_complex())
        )
        for name, tensor in tensors.items()
    }


def key_from(rng: Any) -> torch.Tensor:
    """A call's key, int32 [2], of a seed (a number or two) or of a torch.Generator, from which it is drawn."""
    if isinstance(rng, torch.Generator):
        return torch.randint(-(2**31), 2**31, (2,), generator=rng, device=rng.device).to(torch.int32)
    return torch.from_numpy(key_of(rng.tolist() if isinstance(rng, torch.Tensor) else rng))


def module_of(model: Any) -> torch.nn.Module:
    """The transformers module itself where transformers knows the class, else an nn.Module around the graph.

    Either is in evaluation mode, as transformers' own loading leaves it.
    """
    return model._native_module() or GraphModule(model.graph, model.params).eval()


class GraphModule(torch.nn.Module):
    """A graph as an nn.Module: parameters under their canonical names, forward(**inputs) -> dict of outputs.

    In training mode a graph captured for training drops by torch's global generator, or by `rng`.
    """

    def __init__(self, graph: Graph, params: Mapping[str, torch.nn.Parameter]) -> None:
        super().__init__()
        self.graph = graph
        self._apply_graph = compile_graph(graph)
        self._apply_keyed = compile_graph(keyed(graph)) if graph.meta.get("train") else None
        self._keys = {name: name.replace(".", "\N{MIDDLE DOT}") for name in params}
        for name, tensor in params.items():
            if graph.params[name].trainable:
                self.register_parameter(self._keys[name], tensor)
            else:
                self.register_buffer(self._keys[name], tensor.detach())

    def forward(self, *, rng: Any = None, **inputs: Any) -> dict[str, Any]:
        params = {name: getattr(self, key) for name, key in self._keys.items()}
        if self._apply_keyed is None or not self.training:
            return self._apply_graph(params, inputs)
        return self._apply_keyed(params, {**inputs, RNG: key_from(torch.default_generator if rng is None else rng)})


def _placed(value: Any, device: torch.device) -> torch.Tensor:
    tensor = tensor_from(value) if isinstance(value, np.ndarray) else torch.as_tensor(value)
    return tensor.to(device)


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
    def size_max(a: Any, b: Any) -> Any:
        return torch.sym_max(a, b)

    @staticmethod
    def size_min(a: Any, b: Any) -> Any:
        return torch.sym_min(a, b)

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


class _Int32:
    """What the definition of dropout needs of a namespace."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def asarray(self, x: Any, dtype: str) -> Any:
        return torch.tensor(x, dtype=getattr(torch, dtype), device=self.device)

    def arange(self, start: Any, stop: Any, step: Any, dtype: str) -> Any:
        return torch.arange(start, stop, step, dtype=getattr(torch, dtype), device=self.device)

    def full(self, shape: Any, value: Any, dtype: str) -> Any:
        return torch.full(shape, value, dtype=getattr(torch, dtype), device=self.device)

    def slice(self, x: Any, axis: int, start: Any, stop: Any) -> Any:
        return x.narrow(axis, start, stop - start)

    def cast(self, x: Any, dtype: str) -> Any:
        return x.to(getattr(torch, dtype))

    dtype = staticmethod(lambda x: str(x.dtype).removeprefix("torch."))
    shape = staticmethod(lambda x: x.shape)
    ndim = staticmethod(lambda x: x.ndim)
    add, subtract, multiply = map(staticmethod, (torch.add, torch.subtract, torch.multiply))
    bitwise_and, bitwise_xor = staticmethod(torch.bitwise_and), staticmethod(torch.bitwise_xor)
    right_shift, greater_equal = staticmethod(torch.bitwise_right_shift), staticmethod(torch.greater_equal)
    reshape = staticmethod(torch.reshape)


def _dropout(name: str) -> Callable[..., Any]:
    definition = OPS[name].function
    return lambda x, p, train, *, rng=None: definition(_Int32(x.device), x, p, train, rng=rng)


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    rng: Any = None,
) -> Any:
    if rng is None:
        return torch.ops.aten.scaled_dot_product_attention.default(
            query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    # torch's kernels draw what they drop themselves
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = _dropout("dropout")(torch.ops.aten._safe_softmax(scores, -1), dropout_p, True, rng=rng)
    return weights @ value


def _grouped_matmul(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """What transformers registers under its own name, which a packaged graph must run without."""
    parts = list(x.tensor_split(ends.cpu().long()))
    products = [part @ matrix for part, matrix in zip(parts, weight, strict=False)]
    return torch.cat([*products, parts[-1].new_zeros(len(parts[-1]), weight.shape[2])])


_WITHOUT_DERIVATIVE: dict[str, Callable[..., Any]] = {
    "copy": lambda x, src: src.to(x.dtype).expand(x.shape),
    "view_as_complex_copy": torch.view_as_complex,
}
"""What an export makes of operations that have a derivative, and which itself has none -> one that has."""


def _resolve(name: str) -> Callable[..., Any]:
    if name.startswith("sym.") or name == "sym_size.int":
        definition = OPS[name].function
        return lambda *args: definition(_Sizes, *args)
    if name in ("view", "_unsafe_view"):
        return torch.ops.aten.reshape.default  # copies were dropped, so a view may no longer be possible
    if name in ("dropout", "feature_dropout", "alpha_dropout"):
        return _dropout(name)
    if name == "scaled_dot_product_attention":
        return _attention
    if name == "transformers::grouped_mm_fallback":
        return _grouped_matmul
    if name in _WITHOUT_DERIVATIVE:
        return _WITHOUT_DERIVATIVE[name]
    space, _, rest = name.rpartition("::")
    base, _, overload = rest.partition(".")
    return operator.attrgetter(f"{base}.{overload or 'default'}")(getattr(torch.ops, space or "aten"))
