"""The native engine: kernels in C++ where there is one, the op table over NumPy in float32 elsewhere; no framework."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from zoo.arrays import numpy_dtype, to_numpy
from zoo.backends.base import Compiled, compiled, refuse
from zoo.backends.bounds import Bounds
from zoo.backends.execute import naming_nodes, resolve_over
from zoo.backends.namespace import Namespace
from zoo.backends.numpy_namespace import NumpyNamespace
from zoo.backends.taped import Taped, same
from zoo.errors import UnsupportedOp
from zoo.graph import passes
from zoo.graph.ir import Graph
from zoo.graph.passes.canonicalize import canonicalized
from zoo.graph.passes.fuse import fused
from zoo.inputs import NUMPY
from zoo.native import kernels
from zoo.native.kernels import supported
from zoo.native.library import library
from zoo.native.packing import PACKED, NotPacked, mask_inputs, packed
from zoo.native.tape import taped

__all__ = [
    "INPUTS",
    "NativeNamespace",
    "compile_graph",
    "evaluating",
    "key_from",
    "module_of",
    "namespace",
    "params_from",
    "replaced",
]

library()  # what is not there is said when the backend is asked for

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
    """A function (params, inputs) -> outputs on NumPy arrays, in the graph's own dtype. Threads may share it.

    Its attribute `packed` is the same without padding (`zoo.native.packing`): outputs are 0 there. A graph or call that
    cannot do without goes the usual way.

    Args:
        graph: what to compute.
        precision: of the float32 products with parameters (linear layers), the results being float32 all the same:
            "float32", "bfloat16", or "int8" (weights scaled per output, activations per row). Below float32, attention
            multiplies in bfloat16 where the processor does.
    """
    refuse("native", operations)
    weights = Weights(precision, {param.name: numpy_dtype(param.dtype) for param in graph.params.values()})
    bounds = Bounds(graph)
    graph = canonicalized(passes.evaluating(graph))

    def program_of(graph: Graph) -> Taped:
        return Taped(fused(graph), {**DIRECT, **weights.direct}, resolve_over(_XP, {}))

    program = program_of(graph)
    masks = [item.name for item in mask_inputs(graph)]

    @functools.cache
    def without_padding() -> Taped | None:
        found = packed(graph)
        return None if found is None else program_of(found)

    def apply(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        inputs = {name: np.asarray(array) for name, array in inputs.items()}
        watch = bounds.check(inputs)
        params = weights.fixed(params)
        with np.errstate(all="ignore"), naming_nodes():
            return program(params, inputs, watch)

    def apply_packed(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        # a call without padding needs no other program
        padded = any(not np.all(inputs[name]) for name in masks if name in inputs)
        found = without_padding() if padded else None
        if found is not None:
            inputs = {name: np.asarray(array) for name, array in inputs.items()}
            watch = bounds.check(inputs)
            params = weights.fixed(params)
            with np.errstate(all="ignore"), naming_nodes():
                try:
                    return found.once(params, inputs, watch)
                except NotPacked:
                    pass
        return apply(params, inputs)

    return compiled(apply, apply_packed)


def params_from(arrays: Mapping[str, np.ndarray], graph: Graph) -> dict[str, np.ndarray]:
    """The checkpoint's arrays, read-only: weights are packed once, so a change to one would not be seen."""
    views = {name: array.view() for name, array in arrays.items()}
    for view in views.values():
        view.flags.writeable = False
    return views


def replaced(old: np.ndarray, value: Any) -> np.ndarray:
    """A read-only copy, in the array's dtype, of a value that is put in its place."""
    new = np.array(to_numpy(value), dtype=old.dtype, order="C")
    new.flags.writeable = False
    return new


def key_from(rng: Any) -> Any:
    """There is no training here. UnsupportedOp, always."""
    raise UnsupportedOp("the native engine has no dropout: it evaluates only", where="rng", do="train on a framework")


INPUTS = NUMPY
"""What a call's inputs need of NumPy."""

evaluating = nullcontext
"""What a call without `rng` runs under."""


def module_of(model: Any) -> Any:
    """There is no framework: the function (params, inputs) -> outputs."""
    return model.apply


AT_ONCE = 16 << 20
"""Largest weight (bytes) that the first call uses unpacked; each thread that did keeps a copy."""


class Weights:
    """Parameters in the kernels' layout: packed when first used, and kept while they are the same arrays."""

    def __init__(self, precision: str, dtypes: Mapping[str, np.dtype]) -> None:
        self.precision, self.dtypes = precision, dtypes
        self.pack = [functools.partial(_pack_all, precision, turned) for turned in (False, True)]
        self.params: list[Any] = []
        self.known: dict[tuple[int, ...], tuple[tuple[Any, ...], Any]] = {}
        self.met: set[int] = set()
        self.direct: dict[str, Callable[..., Any]] = {"native::linear": self.linear, "native::conv": self.conv}
        if precision != "float32":  # scores are too sensitive for int8
            attention = functools.partial(_attention, precision="bfloat16")
            self.direct |= dict.fromkeys(("scaled_dot_product_attention", "native::attention"), attention)
            self.direct["native::within"] = functools.partial(PACKED["native::within"], precision="bfloat16")

    def fixed(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parameters in the graph's dtypes, with copies of those that may be written to: what is packed of them
        would not see it.

        What was packed is forgotten if they are not those of the call before.
        """
        if not same(list(params.values()), self.params):
            params = {
                name: array.astype(dtype) if array.flags.writeable or array.dtype != dtype else array
                for name, array in params.items()
                for dtype in (self.dtypes[name],)
            }
            self.params, self.known, self.met = list(params.values()), {}, set()
        return params

    def at_once(self, weights: Sequence[np.ndarray]) -> bool:
        """Whether to multiply by weights as they lie, the first time: it takes less than to pack them."""
        if self.precision != "float32" or taped() or id(weights[0]) in self.met:
            return False
        self.met.add(id(weights[0]))
        return all(weight.nbytes <= AT_ONCE for weight in weights)

    def made(self, function: Callable[..., Any], *arrays: Any) -> Any:
        """function(*arrays), computed once."""
        key = (id(function), *map(id, arrays))
        found = self.known.get(key)
        if found is None or any(a is not b for a, b in zip(found[0], arrays, strict=True)):
            found = self.known[key] = arrays, function(*arrays)
        return found[1]

    def linear(self, x: Any, weights: Any, biases: Any, turned: bool, activation: str, residual: Any) -> Any:
        if self.at_once(weights):
            found = tuple(
                kernels.linear(x, weight.T if turned else weight, bias, activation, residual)
                for weight, bias in zip(weights, biases or [None] * len(weights), strict=True)
            )
            return found if len(found) > 1 else found[0]
        packed = self.made(self.pack[turned], *weights)
        bias = self.made(_join, *biases) if biases else None
        result = kernels.linear(x, packed, bias, activation, residual)
        if len(weights) == 1:
            return result
        sizes = [weight.shape[int(turned)] for weight in weights]
        ends = itertools.accumulate(sizes)
        return tuple(result[..., end - size : end] for end, size in zip(ends, sizes, strict=True))

    def conv(
        self,
        x: Any,
        weight: Any,
        bias: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        batch_norm: Any,
        activation: str,
        residual: Any,
    ) -> Any:
        dims = weight.ndim - 2
        stride, padding, dilation = (_each(v, dims) for v in (stride, padding, dilation))
        if batch_norm is not None:
            weight, bias = self.made(_fold(batch_norm[4]), weight, bias, *batch_norm[:4])
        depthwise = weight.shape[1] == 1 and len(weight) == groups and residual is None
        packed = None
        if depthwise:
            weight = self.made(kernels.lay_depthwise, weight)
        else:
            packed = self.made(_pack_conv(groups, {*stride, *dilation} == {1}), weight)
        pairs = [p if isinstance(p, tuple) else (p, p) for p in padding]
        return kernels.conv(x, weight, stride, pairs, dilation, groups, packed, bias, activation, residual)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    value = value if isinstance(value, tuple) else (value,)
    return value * dims if len(value) == 1 else value


def _pack_all(precision: str, turned: bool, *weights: np.ndarray) -> kernels.Packed:
    """The weights below each other; they are [out, in] or, if `turned`, [in, out]."""
    whole = weights[0] if len(weights) == 1 else np.concatenate(weights, axis=int(turned))
    return kernels.pack_weight(whole.T if turned else whole, precision)


def _join(*arrays: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))


@functools.cache
def _pack_conv(groups: int, by_one: bool) -> Callable[[np.ndarray], kernels.Packed]:
    return lambda weight: kernels.pack_conv(weight, groups, by_one)


@functools.cache
def _fold(eps: float) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """A batch norm's scale and shift in the weight and the bias of the convolution before it, computed in float64."""

    def fold(weight: Any, bias: Any, scale: Any, shift: Any, mean: Any, variance: Any) -> tuple[np.ndarray, np.ndarray]:
        factor = (1 if scale is None else scale) / np.sqrt(variance.astype(np.float64) + eps)
        moved = ((0 if bias is None else bias) - mean) * factor + (0 if shift is None else shift)
        wide = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        return wide.astype(np.float32), moved.astype(np.float32)

    return fold


class NativeNamespace(NumpyNamespace):
    """NumPy in the dtypes as they are, with our kernels where there is one."""

    def __init__(self) -> None:
        super().__init__(widen=False)

    def matmul(self, x: Any, y: Any) -> Any:
        if _half(x, y):
            return self.matmul(self.cast(x, "float32"), self.cast(y, "float32")).astype(x.dtype)
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
        if _half(x, weight):
            wide = self.cast(x, "float32"), self.cast(weight, "float32")
            return self.conv(*wide, stride, padding, dilation, groups).astype(x.dtype)
        if not supported(x, weight) or x.ndim > 4:
            return super().conv(x, weight, stride, padding, dilation, groups)
        return kernels.conv(x, weight, stride, padding, dilation, groups)

    def max_pool(self, x: Any, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[tuple[Any, Any]]) -> Any:
        if _half(x):
            return self.max_pool(self.cast(x, "float32"), kernel, stride, padding).astype(x.dtype)
        if not supported(x) or x.ndim > 4:
            return super().max_pool(x, kernel, stride, padding)
        return kernels.pool(x, kernel, stride, padding, False)

    def sum_pool(self, x: Any, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[tuple[Any, Any]]) -> Any:
        if _half(x):
            return self.sum_pool(self.cast(x, "float32"), kernel, stride, padding).astype(x.dtype)
        if not supported(x) or x.ndim > 4:
            return super().sum_pool(x, kernel, stride, padding)
        return kernels.pool(x, kernel, stride, padding, True)


def _half(*arrays: Any) -> bool:
    """Whether all are of half precision: products of such are summed in float32."""
    return all(str(getattr(x, "dtype", "")) in ("bfloat16", "float16") for x in arrays)


def _elementwise(name: str) -> Any:
    inherited = getattr(NumpyNamespace, name)
    return staticmethod(lambda x: kernels.unary(x, name) if supported(x) else inherited(x))


for _name in ("exp", "erf", "tanh", "sigmoid"):
    setattr(NativeNamespace, _name, _elementwise(_name))


def namespace() -> Namespace:
    """The namespace this backend computes with."""
    return _XP


_XP = NativeNamespace()


# What a kernel does as a whole; NotImplemented leaves the arguments to the op table.


def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """A weight that is no parameter but computed."""
    if not supported(x, weight, bias) or weight.ndim != 2 or not 2 <= x.ndim <= 5:
        return NotImplemented
    if bias is not None and bias.shape != weight.shape[:1]:
        return NotImplemented
    return kernels.linear(x, weight, bias)


def _matmul(x: Any, y: Any) -> Any:
    if not supported(x, y) or not (2 <= x.ndim <= 5 and 2 <= y.ndim <= 5):
        return NotImplemented
    return kernels.matmul(x, y)


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
    precision: str = "float32",
) -> Any:
    if not supported(query, key, value) or not query.ndim == key.ndim == value.ndim == 4:
        return NotImplemented
    batch = np.broadcast_shapes(query.shape[:1], key.shape[:1], value.shape[:1])
    query, key, value = (np.broadcast_to(x, batch + x.shape[1:]) for x in (query, key, value))
    mask = attn_mask
    if mask is not None and not isinstance(mask, kernels.PreparedMask):
        mask = kernels.PreparedMask(mask)
    return kernels.attention(query, key, value, mask, is_causal, scale, precision)


def _norm(x: Any, residual: Any, cols: int, weight: Any, bias: Any, eps: float, rms: bool) -> Any:
    return kernels.norm(x, cols, weight, bias, eps, rms, residual)


def _layer_norm(
    x: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn: bool = True
) -> Any:
    if not supported(x, weight, bias) or not x.size:
        return NotImplemented
    return kernels.norm(x, math.prod(normalized_shape), weight, bias, eps)[0]


def _softmax(x: Any, dim: int, *rest: Any, **options: Any) -> Any:
    if not supported(x) or not x.size or not x.ndim or dim % x.ndim != x.ndim - 1 or any(rest) or any(options.values()):
        return NotImplemented
    return kernels.softmax(x)


def _embedding(table: Any, index: Any, *rest: Any) -> Any:
    return kernels.embedding(table, index) if table.ndim == 2 else NotImplemented


def _unary(name: str) -> Callable[..., Any]:
    return lambda x: kernels.unary(x, name) if supported(x) else NotImplemented


def _gelu(x: Any, approximate: str = "none") -> Any:
    if not supported(x):
        return NotImplemented
    return kernels.unary(x, "gelu_tanh" if approximate == "tanh" else "gelu")


def _binary(name: str) -> Callable[..., Any]:
    def function(x: Any, y: Any, *rest: Any, **options: Any) -> Any:
        if rest or options or not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim > 6:
            return NotImplemented
        if isinstance(y, (int, float)):
            y = np.float32(y).reshape(())
        if not isinstance(y, np.ndarray) or y.dtype != np.float32 or y.ndim > 6:
            return NotImplemented
        return kernels.binary(x, y, name)

    return function


def _max_pool(
    x: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Any:
    sizes = [v if isinstance(v, tuple) else (v, v) for v in (kernel, stride or kernel, padding, dilation)]
    if not supported(x) or x.ndim != 4 or ceil_mode or any(len(v) != 2 for v in sizes) or set(sizes[3]) != {1}:
        return NotImplemented
    return kernels.pool(x, sizes[0], sizes[1], [(p, p) for p in sizes[2]], False)


DIRECT: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm"), _matmul),
    **dict.fromkeys(("scaled_dot_product_attention", "native::attention"), _attention),
    "layer_norm": _layer_norm,
    **dict.fromkeys(("softmax.int", "_softmax"), _softmax),
    "embedding": _embedding,
    **{name: _unary(name) for name in ("relu", "silu", "tanh", "sigmoid", "exp", "erf")},
    "gelu": _gelu,
    **{f"{name}.{kind}": _binary(name) for name in ("add", "sub", "mul", "div") for kind in ("Tensor", "Scalar")},
    "max_pool2d": _max_pool,
    "native::norm": _norm,
    "native::gated": kernels.binary,
    "native::mask": kernels.PreparedMask,
    **PACKED,
}
"""Operations that are kernels as a whole, in the table's names and in those of `zoo.graph.passes.fuse`."""
