"""The native engine: kernels in C++ where there is one, the op table over NumPy in float32 elsewhere; no framework."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from zoo.backends.execute import Program, resolve_over
from zoo.backends.namespace import Namespace
from zoo.backends.numpy import NumpyNamespace
from zoo.graph.ir import Graph
from zoo.native import kernels
from zoo.native.kernels import supported
from zoo.native.library import library
from zoo.ops import OPS

__all__ = ["NativeNamespace", "compile_graph", "module_of", "namespace", "params_from"]

library()  # what is not there is said when the backend is asked for

COPIES = False
"""Whether `params_from` copies, so that the checkpoint's pages are not needed any more."""


def compile_graph(graph: Graph) -> Any:
    """A function (params, inputs) -> outputs on NumPy arrays, in the graph's own dtype."""
    weights = _Weights()
    program = Program(graph, resolve_over(_XP, {**_OVERRIDES, "linear": weights.linear}))

    def apply(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        weights.take(params)
        with np.errstate(all="ignore"):
            outputs = program(params, {name: np.asarray(array) for name, array in inputs.items()}, graph.constants)
        return {name: np.asarray(array) for name, array in outputs.items()}

    return apply


def params_from(arrays: Mapping[str, np.ndarray], graph: Graph) -> dict[str, np.ndarray]:
    """The checkpoint's arrays, read-only: weights are packed once, so a change to one would not be seen."""
    views = {name: array.view() for name, array in arrays.items()}
    for view in views.values():
        view.flags.writeable = False
    return views


def module_of(model: Any) -> Any:
    """There is no framework: the function (params, inputs) -> outputs."""
    return model.apply


class _Weights:
    """Parameters in the kernels' layout, packed when first used and kept while the parameter is the same array."""

    def __init__(self) -> None:
        self.params: dict[int, np.ndarray] = {}
        self.packed: dict[tuple[Any, ...], tuple[np.ndarray, kernels.Packed]] = {}

    def take(self, params: Mapping[str, np.ndarray]) -> None:
        self.params = {id(array): array for array in params.values()}

    def linear(self, x: Any, weight: Any, bias: Any = None) -> Any:
        if not supported(x, weight, bias) or weight.ndim != 2 or x.ndim < 1:
            return OPS["linear"].function(_XP, x, weight, bias)
        return kernels.linear(x, self.weight(weight), bias)

    def weight(self, weight: np.ndarray) -> kernels.Packed:
        if id(weight) not in self.params:
            return kernels.pack_weight(weight)
        known = self.packed.get((id(weight),))
        if known is None or known[0] is not weight:
            known = self.packed[(id(weight),)] = weight, kernels.pack_weight(weight)
        return known[1]


class NativeNamespace(NumpyNamespace):
    """NumPy in the dtypes as they are, with our kernels where there is one."""

    def __init__(self) -> None:
        super().__init__(widen=False)

    def matmul(self, x: Any, y: Any) -> Any:
        if supported(x, y) and x.ndim > 1 and y.ndim > 1 and x.size and y.size:
            return kernels.matmul(x, y)
        return super().matmul(x, y)

    def softmax(self, x: Any, axis: int) -> Any:
        if supported(x) and x.size and axis % x.ndim == x.ndim - 1:
            return kernels.softmax(x)
        return super().softmax(x, axis)

    def conv(
        self,
        x: Any,
        weight: Any,
        stride: Sequence[int],
        padding: Sequence[tuple[Any, Any]],
        dilation: Sequence[int],
        groups: int,
    ) -> Any:
        if not supported(x, weight) or x.ndim > 4:
            return super().conv(x, weight, stride, padding, dilation, groups)
        return kernels.conv(x, weight, stride, padding, dilation, groups)

    def max_pool(self, x: Any, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[tuple[Any, Any]]) -> Any:
        if not supported(x) or x.ndim > 4:
            return super().max_pool(x, kernel, stride, padding)
        return kernels.pool(x, kernel, stride, padding, False)

    def sum_pool(self, x: Any, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[tuple[Any, Any]]) -> Any:
        if not supported(x) or x.ndim > 4:
            return super().sum_pool(x, kernel, stride, padding)
        return kernels.pool(x, kernel, stride, padding, True)


def _elementwise(name: str) -> Any:
    inherited = getattr(NumpyNamespace, name)
    return staticmethod(lambda x: kernels.unary(x, name) if supported(x) else inherited(x))


for _name in ("exp", "erf", "tanh", "sigmoid"):
    setattr(NativeNamespace, _name, _elementwise(_name))


def namespace() -> Namespace:
    """The namespace this backend computes with."""
    return _XP


_XP = NativeNamespace()


def _activation(name: str) -> Callable[..., Any]:
    definition = OPS[name].function
    return lambda x: kernels.unary(x, name) if supported(x) else definition(_XP, x)


def _gelu(x: Any, approximate: str = "none") -> Any:
    if not supported(x):
        return OPS["gelu"].function(_XP, x, approximate=approximate)
    return kernels.unary(x, "gelu_tanh" if approximate == "tanh" else "gelu")


def _layer_norm(
    x: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn: bool = True
) -> Any:
    cols = math.prod(normalized_shape)
    if not supported(x, weight, bias) or not x.size:
        return OPS["layer_norm"].function(_XP, x, normalized_shape, weight, bias, eps)
    return kernels.norm(x, cols, weight, bias, eps)[0]


def _rms_norm(x: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    cols = math.prod(normalized_shape)
    if not supported(x, weight) or not x.size:
        return OPS["rms_norm"].function(_XP, x, normalized_shape, weight, eps)
    return kernels.norm(x, cols, weight, None, 2**-23 if eps is None else eps, rms=True)[0]


def _embedding(table: Any, index: Any, *rest: Any) -> Any:
    return kernels.embedding(table, index)


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
) -> Any:
    dims = {x.ndim for x in (query, key, value)}
    if not supported(query, key, value) or dims not in ({3}, {4}) or not query.size or not key.size:
        definition = OPS["scaled_dot_product_attention"].function
        return definition(_XP, query, key, value, attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa)
    mask = attn_mask
    if dims == {3}:
        query, key, value = query[:, None], key[:, None], value[:, None]
        mask = mask[:, None] if mask is not None and mask.ndim == 3 else mask
    lead = np.broadcast_shapes(query.shape[:1], key.shape[:1], value.shape[:1])
    query, key, value = (np.broadcast_to(x, lead + x.shape[1:]) for x in (query, key, value))
    if mask is not None and not isinstance(mask, kernels.PreparedMask):
        mask = kernels.PreparedMask(mask if mask.dtype == bool else mask.astype(np.float32, copy=False))
    result = kernels.attention(query, key, value, mask, is_causal, scale)
    return result[:, 0] if dims == {3} else result


_OVERRIDES: dict[str, Callable[..., Any]] = {
    **{name: _activation(name) for name in ("relu", "silu")},
    "gelu": _gelu,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "embedding": _embedding,
    "scaled_dot_product_attention": _attention,
}
