"""TensorFlow: variables in a tf.Module, a graph as one tf.function with None dims.

Sizes that are None while a function is traced are int32 scalars; everything that takes sizes accepts them.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from zoo.arrays import to_numpy
from zoo.backends.base import Compiled, compiled, refuse
from zoo.backends.bounds import Bounds
from zoo.backends.execute import Program, disagreement, resolve_over
from zoo.backends.namespace import BINARY, UNARY, Namespace
from zoo.backends.numpy_namespace import all_inside, clipped
from zoo.graph.ir import Graph, Node, ValueInfo
from zoo.graph.passes import RNG, keyed
from zoo.inputs import Arrays, named, prepare_inputs
from zoo.ops import size as size_ops
from zoo.ops.random import key_of
from zoo.params import HeldVariables
from zoo.trees import register_trees

__all__ = [
    "INPUTS",
    "Module",
    "TensorflowNamespace",
    "compile_graph",
    "evaluating",
    "held",
    "key_from",
    "module_of",
    "namespace",
    "params_from",
    "replaced",
]

register_trees()

COPIES = True
"""Whether `params_from` copies, so that the checkpoint's pages are not needed any more."""

IN_PLACE = False
"""Whether training writes into the arrays that `params_from` was given."""

TRAINED = None
copied = None
widened = None  # no use for these here: see zoo.backends.base


def compile_graph(
    graph: Graph,
    *,
    operations: Mapping[str, Callable[..., Any]] | None = None,
    source: Graph | None = None,
    precision: str = "float32",
) -> Compiled:
    """A function (params, inputs) -> outputs on tensors or variables: one tf.function, traced once with None dims.

    `operations` stand in for the table's of those names, and `source` is the graph without them.
    """
    refuse("tensorflow", precision=precision)
    run, bounds = _runner(graph, operations, source)
    params = {p.name: tf.TensorSpec(p.shape, p.dtype) for p in graph.params.values()}
    traced = tf.function(run, autograph=False, input_signature=[params, _signature(graph)])

    def apply(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        bounds.check(inputs)  # of sizes that the traced function has no numbers for
        # reading a variable under a tape is what ties its gradient to it
        tensors = {name: tf.cast(params[name], param.dtype) for name, param in graph.params.items()}
        return traced(tensors, {name: tf.convert_to_tensor(value) for name, value in inputs.items()})

    return compiled(apply)


def params_from(arrays: Mapping[str, np.ndarray], graph: Graph) -> dict[str, tf.Variable]:
    """One variable per parameter, each a copy of the checkpoint's array (TensorFlow owns what it may change)."""
    return {
        name: tf.Variable(array, name=_variable_name(name), trainable=graph.trains(name))
        for name, array in arrays.items()
    }


def replaced(old: tf.Variable, value: Any) -> tf.Variable:
    """The variable itself, of that value: its module's functions hold it."""
    value = value if INPUTS.own(value) else to_numpy(value)
    old.assign(tf.cast(value, old.dtype))
    return old


evaluating = contextlib.nullcontext
"""What a call without `rng` runs under."""


def key_from(rng: Any) -> tf.Tensor:
    """A call's key, int32 [2], of a seed (a number or two, tensors too) or of a tf.random.Generator."""
    if isinstance(rng, tf.random.Generator):
        return rng.uniform_full_int((2,), tf.int32)
    if not isinstance(rng, (tf.Tensor, tf.Variable)):
        return tf.constant(key_of(rng))
    wide = tf.cast(rng, tf.int64)
    if not rng.shape.rank:
        wide = tf.stack([wide, tf.bitwise.right_shift(wide, tf.constant(32, tf.int64))])
    return tf.bitcast(tf.cast(wide & 0xFFFFFFFF, tf.uint32), tf.int32)


def module_of(model: Any) -> Module:
    """The model as a tf.Module: variables, `__call__`, and a `serving_default` signature for SavedModel."""
    return Module(model.graph, model.state)


class Module(tf.Module):
    """A graph and its variables as TensorFlow knows a model.

    `tf.saved_model.save(module, path, signatures=module.signatures())` needs Anyzoo no more when it is loaded. What is
    loaded takes, when it is called, what the module took: int32 and int64, with inputs that may be left out or without.

    Raises:
        InputError: at a call, an input is unknown, missing, or of a wrong dtype or shape.
    """

    def __init__(self, graph: Graph, params: Mapping[str, tf.Variable]) -> None:
        super().__init__(name="model")
        self._graph = graph
        # a list: TensorFlow's checkpoint names would otherwise be made of the dots in the parameters' names
        self._names = list(params)
        self.weights = [params[name] for name in self._names]
        self._bounds = Bounds(graph)
        self.call = self._traced(graph)
        self.call_training = self._traced(keyed(graph)) if graph.meta.get("train") else None
        # not what a call of this object runs, which takes more than tensors, but what is saved for calls of the loaded
        self.__call__ = tf.function(self._called, autograph=False)  # type: ignore[method-assign]

    def _traced(self, graph: Graph) -> Any:
        apply, _ = _runner(graph)

        def call(inputs: Mapping[str, Any]) -> dict[str, Any]:
            return apply(dict(zip(self._names, self.weights, strict=True)), inputs)

        return tf.function(call, autograph=False, input_signature=[_signature(graph)], reduce_retracing=True)

    def __call__(self, *unnamed: Any, rng: Any = None, **inputs: Any) -> dict[str, Any]:
        named(self._graph.inputs, unnamed)
        prepared = self._prepared(inputs)
        if rng is None or self.call_training is None:
            return self.call(prepared)
        return self.call_training({**prepared, RNG: key_from(rng)})

    def _called(self, **inputs: Any) -> dict[str, Any]:
        return self.call(self._prepared(inputs))

    def _prepared(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        found = prepare_inputs(self._graph.inputs, self._graph.symbols, inputs, INPUTS)
        self._bounds.check(found)
        return {name: tf.convert_to_tensor(value) for name, value in found.items()}

    def signatures(self) -> dict[str, Any]:
        """What a SavedModel serves: `serving_default` from all inputs by name to outputs by name; `required`, where
        some may be left out, from the others alone. Ids are int64.
        """
        served = {}
        optional = [item.name for item in self._graph.inputs if item.default is not None]
        for left_out in _subsets(optional):
            for integer in (tf.int64, tf.int32):
                spec = {
                    name: tf.TensorSpec(s.shape, integer if s.dtype == tf.int64 else s.dtype, name=name)
                    for name, s in _signature(self._graph).items()
                    if name not in left_out
                }
                served[left_out, integer] = self.__call__.get_concrete_function(**spec)  # type: ignore[attr-defined]
        names = {tuple(optional): "required", (): "serving_default"}
        return {name: served[left_out, tf.int64] for left_out, name in names.items()}


def held(module: Module, graph: Graph) -> HeldVariables:
    """What the module holds."""
    return HeldVariables(lambda: dict(zip(module._names, module.weights, strict=False)))


_MOST = 4
"""Of more inputs that may be left out than this, a loaded SavedModel takes all or none."""


def _subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    sizes = range(len(names) + 1) if len(names) <= _MOST else (0, len(names))
    return [subset for size in sizes for subset in itertools.combinations(names, size)]


class TensorflowNamespace(Namespace):
    """tf's functions; a dim that is None while tracing is a scalar tensor in `shape`."""

    def asarray(self, x: Any, dtype: str | None = None) -> Any:
        if dtype is None:
            return tf.convert_to_tensor(x)
        if isinstance(x, (tf.Tensor, tf.Variable)):
            return self.cast(x, dtype)
        if isinstance(x, (list, tuple)) and any(isinstance(v, tf.Tensor) for v in x):
            return tf.stack([self.cast(v, dtype) for v in x])
        return tf.constant(np.asarray(clipped(x, dtype)), tf.as_dtype(dtype))

    def cast(self, x: Any, dtype: str) -> Any:
        x = tf.convert_to_tensor(x)
        if dtype == "bool" and x.dtype != tf.bool:
            return tf.not_equal(x, tf.zeros((), x.dtype))
        return tf.cast(x, dtype)

    def bitcast(self, x: Any, dtype: str) -> Any:
        return tf.bitcast(x, dtype)

    def dtype(self, x: Any) -> str:
        return x.dtype.name

    def ndim(self, x: Any) -> int:
        return x.shape.rank

    def shape(self, x: Any) -> tuple[Any, ...]:
        static = x.shape.as_list()
        if None not in static:
            return tuple(static)
        dynamic = tf.shape(x)
        return tuple(dynamic[i] if size is None else size for i, size in enumerate(static))

    def full(self, shape: Any, value: Any, dtype: str) -> Any:
        return tf.fill(_sizes(shape), self.asarray(value, dtype)) if len(shape) else self.asarray(value, dtype)

    def arange(self, start: Any, stop: Any, step: Any, dtype: str) -> Any:
        if any(isinstance(v, float) for v in (start, stop, step)):
            return tf.cast(tf.range(start, stop, step, dtype=tf.float64), dtype)
        return tf.cast(tf.range(_size(start), _size(stop), _size(step)), dtype)

    def size_equal(self, a: Any, b: Any) -> Any:
        return tf.equal(a, b) if isinstance(a, tf.Tensor) or isinstance(b, tf.Tensor) else a == b

    def size_where(self, condition: Any, a: Any, b: Any) -> Any:
        dtype = self._joint_dtype(a, b)
        return tf.where(condition, tf.cast(a, dtype), tf.cast(b, dtype))

    def size_max(self, a: Any, b: Any) -> Any:
        return self._extreme(max, tf.maximum, a, b)

    def size_min(self, a: Any, b: Any) -> Any:
        return self._extreme(min, tf.minimum, a, b)

    def _extreme(self, of_numbers: Any, of_tensors: Any, a: Any, b: Any) -> Any:
        if not any(isinstance(v, tf.Tensor) for v in (a, b)):
            return of_numbers(a, b)
        dtype = self._joint_dtype(a, b)
        return of_tensors(tf.cast(a, dtype), tf.cast(b, dtype))

    def _joint_dtype(self, a: Any, b: Any) -> Any:
        floats = any(v.dtype.is_floating if isinstance(v, tf.Tensor) else isinstance(v, float) for v in (a, b))
        return tf.float64 if floats else tf.int32

    def size_joint(self, a: Any, b: Any) -> Any:
        return a if a is b else tf.where(tf.equal(a, 1), b, a)

    def size_int(self, a: Any) -> Any:
        return tf.cast(a, tf.int32) if isinstance(a, tf.Tensor) else int(a)

    def reshape(self, x: Any, shape: Any) -> Any:
        return tf.reshape(x, _sizes(shape))

    def permute(self, x: Any, axes: Sequence[int]) -> Any:
        return tf.transpose(x, axes)

    def expand_dims(self, x: Any, axis: int) -> Any:
        return tf.expand_dims(x, axis)

    def squeeze(self, x: Any, axes: Sequence[int]) -> Any:
        return tf.squeeze(x, list(axes)) if axes else x

    def broadcast_to(self, x: Any, shape: Any) -> Any:
        # sizes that are tensors have no truth value: only a wholly known shape can be seen to be x's own
        known = all(size_ops.known(size) for size in shape)
        return x if known and list(shape) == x.shape.as_list() else tf.broadcast_to(x, _sizes(shape))

    def concat(self, xs: Sequence[Any], axis: int) -> Any:
        return tf.concat(xs, axis)

    def slice(self, x: Any, axis: int, start: Any, stop: Any, step: int = 1) -> Any:
        result = x[(slice(None),) * axis + (slice(start, stop, step),)]
        if result.shape.rank is None:  # of a step that is no number yet TensorFlow says nothing
            result.set_shape([None if at == axis else size for at, size in enumerate(x.shape)])
        return result

    def pad(self, x: Any, widths: Sequence[tuple[Any, Any]], value: Any) -> Any:
        return tf.pad(x, _sizes([_sizes(pair) for pair in widths]), constant_values=self.asarray(value, x.dtype.name))

    def flip(self, x: Any, axes: Sequence[int]) -> Any:
        return tf.reverse(x, list(axes))

    def take(self, x: Any, index: Any, axis: int) -> Any:
        return tf.gather(x, index, axis=axis)

    def take_along_axis(self, x: Any, index: Any, axis: int) -> Any:
        if axis == x.shape.rank - 1:
            lead = [size_ops.joint(self, m, n) for m, n in zip(self.shape(x)[:-1], self.shape(index)[:-1], strict=True)]
            x = self.broadcast_to(x, (*lead, self.shape(x)[-1]))
            index = self.broadcast_to(index, (*lead, self.shape(index)[-1]))
            return tf.gather(x, index, axis=-1, batch_dims=x.shape.rank - 1)
        order = [a for a in range(x.shape.rank) if a != axis] + [axis]
        back = [order.index(a) for a in range(x.shape.rank)]
        moved = self.take_along_axis(tf.transpose(x, order), tf.transpose(index, order), x.shape.rank - 1)
        return tf.transpose(moved, back)

    def inside(self, index: Any, size: Any) -> tuple[Any, Any]:
        known = tf.get_static_value(index)
        if known is not None and size_ops.known(size):
            all_inside(known, size)
            return index, None
        limit = tf.cast(size, index.dtype)
        valid = tf.logical_and(tf.greater_equal(index, tf.zeros((), index.dtype)), tf.less(index, limit))
        return tf.where(valid, index, tf.zeros((), index.dtype)), valid

    def index(self, x: Any, indices: Sequence[Any]) -> Any:
        axes = [axis for axis, i in enumerate(indices) if i is not None]
        if len(axes) == 1:
            return tf.gather(x, indices[axes[0]], axis=axes[0])
        rest = [axis for axis in range(x.shape.rank) if axis not in axes]
        where = self._broadcast([indices[axis] for axis in axes])
        picked = tf.gather_nd(tf.transpose(x, [*axes, *rest]), tf.stack(where, -1))
        if axes != list(range(axes[0], axes[-1] + 1)):
            return picked  # index arrays apart from each other put their dims first
        moved, before = where[0].shape.rank, axes[0]
        order = [*range(moved, moved + before), *range(moved), *range(moved + before, picked.shape.rank)]
        return tf.transpose(picked, order)

    def index_mask(self, x: Any, indices: Sequence[Any]) -> Any:
        return tf.boolean_mask(x, indices[0]) if len(indices) == 1 else self.index(x, _unmasked(indices))

    def nonzero(self, x: Any) -> Any:
        return tf.where(self.cast(x, "bool"))

    def index_put(self, x: Any, indices: Sequence[Any], values: Any, accumulate: bool) -> Any:
        indices = _unmasked(indices)
        axes = [axis for axis, i in enumerate(indices) if i is not None]
        rest = [axis for axis in range(x.shape.rank) if axis not in axes]
        order = [*axes, *rest]
        where = self._broadcast([tf.cast(indices[axis], tf.int64) for axis in axes])
        sizes = [self.shape(x)[axis] for axis in rest]
        # index arrays side by side keep their place: `before` whole dims of the values come before theirs
        before = axes[0] if axes == list(range(axes[0], axes[-1] + 1)) else 0
        values = self.broadcast_to(values, [*sizes[:before], *self.shape(where[0]), *sizes[before:]])
        if not where[0].shape.rank:  # a scatter needs positions in a list, be it of one
            where, values = [w[None] for w in where], tf.expand_dims(values, before)
        lead = where[0].shape.rank
        front = [*range(before, before + lead), *range(before), *range(before + lead, lead + len(rest))]
        update = tf.tensor_scatter_nd_add if accumulate else tf.tensor_scatter_nd_update
        result = update(tf.transpose(x, order), tf.stack(where, -1), tf.transpose(values, front))
        return tf.transpose(result, [order.index(a) for a in range(x.shape.rank)])

    def scatter(self, x: Any, axis: int, index: Any, src: Any, mode: str) -> Any:
        if x.dtype == tf.bool and mode != "set":  # no kernels of its own
            return tf.cast(self.scatter(tf.cast(x, tf.int32), axis, index, tf.cast(src, tf.int32), mode), tf.bool)
        if not x.shape.rank:
            return self.scatter(x[None], 0, tf.reshape(index, [1]), tf.reshape(src, [1]), mode)[0]
        sizes = self.shape(index)
        grid = tf.meshgrid(*[tf.range(size) for size in sizes], indexing="ij")
        where = [tf.cast(g, tf.int64) for g in grid]
        where[axis] = tf.cast(index, tf.int64)
        if src.shape.rank:
            src = src[tuple(slice(size) for size in sizes)]
        src = tf.broadcast_to(src, _sizes(sizes))
        if mode == "multiply":
            return self._scatter_multiply(x, tf.stack(where, -1), src)
        update = {
            "set": tf.tensor_scatter_nd_update,
            "add": tf.tensor_scatter_nd_add,
            "max": tf.tensor_scatter_nd_max,
            "min": tf.tensor_scatter_nd_min,
        }[mode]
        return update(x, tf.stack(where, -1), src)

    def _scatter_multiply(self, x: Any, where: Any, src: Any) -> Any:
        """TensorFlow has no such scatter: one product over the updates of each flat position."""
        sizes = tf.cast(tf.shape(x), tf.int64)
        strides = tf.math.cumprod(sizes, exclusive=True, reverse=True)
        flat = tf.reshape(tf.reduce_sum(where * strides, -1), [-1])
        factors = tf.math.unsorted_segment_prod(tf.reshape(src, [-1]), flat, tf.reduce_prod(sizes))
        return x * tf.reshape(factors, tf.shape(x))

    def _broadcast(self, arrays: list[Any]) -> list[Any]:
        if len(arrays) == 1:
            return arrays
        dtype = tf.int64 if any(a.dtype == tf.int64 for a in arrays) else arrays[0].dtype
        if all(a.shape.is_fully_defined() for a in arrays):
            shape = functools.reduce(tf.broadcast_static_shape, (a.shape for a in arrays))
        else:
            shape = functools.reduce(tf.broadcast_dynamic_shape, (tf.shape(a) for a in arrays))
        return [tf.broadcast_to(tf.cast(a, dtype), shape) for a in arrays]

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        return tf.where(condition, x, y)

    def rsqrt(self, x: Any) -> Any:
        return tf.math.rsqrt(x)

    def stop_gradient(self, x: Any) -> Any:
        return tf.stop_gradient(x)

    def complex(self, real: Any, imag: Any) -> Any:
        return tf.complex(real, imag)

    def sum(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return tf.reduce_sum(x, list(axes), keepdims)

    def mean(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        if x.dtype in (tf.float16, tf.bfloat16):
            return tf.cast(tf.reduce_mean(tf.cast(x, tf.float32), list(axes), keepdims), x.dtype)
        return tf.reduce_mean(x, list(axes), keepdims)

    def prod(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return tf.reduce_prod(x, list(axes), keepdims)

    def max(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return (tf.reduce_any if x.dtype == tf.bool else tf.reduce_max)(x, list(axes), keepdims)

    def min(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return (tf.reduce_all if x.dtype == tf.bool else tf.reduce_min)(x, list(axes), keepdims)

    def any(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return tf.reduce_any(x, list(axes), keepdims)

    def all(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return tf.reduce_all(x, list(axes), keepdims)

    def argmax(self, x: Any, axis: int) -> Any:
        return tf.argmax(_replaced_nan(x, np.inf), axis)

    def argmin(self, x: Any, axis: int) -> Any:
        return tf.argmin(_replaced_nan(x, -np.inf), axis)

    def argsort(self, x: Any, axis: int, descending: bool) -> Any:
        x = tf.cast(x, tf.int8) if x.dtype == tf.bool else x
        direction = "DESCENDING" if descending else "ASCENDING"
        order = tf.argsort(_replaced_nan(x, np.inf), axis, direction, stable=True)
        if x.dtype.is_floating:  # NaN counts as larger than infinity, too
            unknown = self.take_along_axis(tf.cast(tf.math.is_nan(x), tf.int32), order, axis)
            order = self.take_along_axis(order, tf.argsort(unknown, axis, direction, stable=True), axis)
        return tf.cast(order, tf.int64)

    def cumsum(self, x: Any, axis: int) -> Any:
        return tf.cumsum(x, axis)

    def cumprod(self, x: Any, axis: int) -> Any:
        return tf.math.cumprod(x, axis)

    def cummax(self, x: Any, axis: int) -> Any:
        """TensorFlow has no such scan: the largest of twice as many neighbours in each step."""
        size = tf.shape(x)[axis]
        low = x.dtype.min if x.dtype.is_integer else -np.inf

        def step(reach: Any, x: Any) -> Any:
            widths = [(reach, 0) if a == axis else (0, 0) for a in range(x.shape.rank)]
            moved = self.slice(self.pad(x, widths, low), axis, 0, size)
            return reach * 2, tf.ensure_shape(tf.maximum(x, moved), x.shape)

        return tf.while_loop(lambda reach, x: reach < size, step, (tf.constant(1), x))[1]

    def softmax(self, x: Any, axis: int) -> Any:
        # TensorFlow's kernel stops at arrays of more dims
        return tf.nn.softmax(x, axis) if x.shape.rank <= 5 else super().softmax(x, axis)

    def matmul(self, x: Any, y: Any) -> Any:
        if x.shape.rank == 1 and y.shape.rank == 1:
            return tf.reduce_sum(x * y)
        if x.shape.rank == 1:
            return tf.squeeze(tf.matmul(x[None], y), [-2])
        if y.shape.rank == 1:
            return tf.linalg.matvec(x, y)
        if y.shape.rank == 2 and x.shape.rank > 2:
            return self._rows(x, y, False)
        return tf.matmul(x, y)

    def linear(self, x: Any, weight: Any) -> Any:
        return self._rows(x, weight, True)

    def _rows(self, x: Any, weight: Any, transposed: bool) -> Any:
        """One product of matrices: TensorFlow's batched one is slower and repeats the weight."""
        out = weight.shape[0 if transposed else 1]
        if x.shape.rank == 2:
            return tf.matmul(x, weight, transpose_b=transposed)
        sizes = self.shape(x)
        flat = tf.matmul(tf.reshape(x, [-1, sizes[-1]]), weight, transpose_b=transposed)
        return tf.reshape(flat, _sizes((*sizes[:-1], tf.shape(weight)[0 if transposed else 1] if out is None else out)))

    def einsum(self, equation: str, *xs: Any) -> Any:
        return tf.einsum(equation, *xs)

    def grouped_matmul(self, x: Any, weight: Any, ends: Any) -> Any:
        starts = tf.concat([tf.zeros_like(ends[:1]), ends[:-1]], 0)
        parts = [tf.matmul(x[starts[e] : ends[e]], weight[e]) for e in range(weight.shape[0])]
        rest = tf.shape(x)[0] - tf.cast(ends[-1], tf.int32)
        parts.append(tf.zeros([rest, weight.shape[2]], x.dtype))
        return tf.ensure_shape(tf.concat(parts, 0), [x.shape[0], weight.shape[2]])

    def conv(
        self,
        x: Any,
        weight: Any,
        stride: Sequence[int],
        padding: Sequence[tuple[Any, Any]],
        dilation: Sequence[int],
        groups: int,
    ) -> Any:
        """On a CPU TensorFlow convolves channels-last only, and groups only one by one or depthwise."""
        dims = len(stride)
        if not size_ops.known(groups):  # as many as the batch has samples: one after another
            sizes = self.shape(x)
            parts = self.reshape(x, (sizes[0], groups, sizes[1] // groups, *sizes[2:]))
            weights = self.reshape(weight, (groups, self.shape(weight)[0] // groups, *self.shape(weight)[1:]))
            parts = tf.map_fn(
                lambda pair: self.conv(pair[0], pair[1], stride, padding, dilation, 1),
                (tf.transpose(parts, [1, 0, *range(2, dims + 3)]), weights),
                fn_output_signature=x.dtype,
            )
            result = tf.transpose(parts, [1, 0, *range(2, dims + 3)])
            sizes = self.shape(result)
            return self.reshape(result, (sizes[0], sizes[1] * sizes[2], *sizes[3:]))
        if dims == 1:
            wide = self.conv(
                tf.expand_dims(x, 2),
                tf.expand_dims(weight, 2),
                (1, *stride),
                ((0, 0), *padding),
                (1, *dilation),
                groups,
            )
            return tf.squeeze(wide, [2])
        if any(not size_ops.known(p, 0) for pair in padding for p in pair):
            x = self.pad(x, [(0, 0), (0, 0), *padding], 0)
        last = tf.transpose(x, [0, *range(2, dims + 2), 1])
        kernel = tf.transpose(weight, [*range(2, dims + 2), 1, 0])  # [*kernel, in / groups, out]
        out = weight.shape[0]
        # TensorFlow does not stride and dilate at once: then every result is computed and some are kept
        steps = [1] * dims if max(dilation) > 1 else list(stride)
        if groups > 1 and weight.shape[1] == 1 and dims == 2 and steps[0] == steps[1] and out % groups == 0:
            taps = tf.reshape(kernel, [*kernel.shape[:2], groups, out // groups])
            result = tf.nn.depthwise_conv2d(last, taps, [1, *steps, 1], "VALID", dilations=list(dilation))
        elif groups > 1:
            parts = zip(tf.split(last, groups, -1), tf.split(kernel, groups, -1), strict=True)
            convolved = [tf.nn.convolution(p, k, steps, "VALID", dilations=list(dilation)) for p, k in parts]
            result = tf.concat(convolved, -1)
        else:
            result = tf.nn.convolution(last, kernel, steps, "VALID", dilations=list(dilation))
        if steps != list(stride):
            result = result[(slice(None), *(slice(None, None, step) for step in stride))]
        return tf.transpose(result, [0, dims + 1, *range(1, dims + 1)])

    def fft(self, x: Any, axis: int, forward: bool) -> Any:
        order = [*(a for a in range(x.shape.rank) if a != axis), axis]
        last = tf.transpose(x, order)
        if forward:
            last = tf.signal.fft(last)
        else:
            last = tf.signal.ifft(last) * tf.cast(tf.shape(last)[-1], x.dtype)
        return tf.transpose(last, [order.index(a) for a in range(x.shape.rank)])

    def max_pool(self, x: Any, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[tuple[Any, Any]]) -> Any:
        if len(kernel) == 3 and x.dtype not in (tf.float32, tf.bfloat16):  # of which alone TensorFlow pools volumes
            return self._pool_volume(x, kernel, stride, padding)
        low = -np.inf if x.dtype.is_floating else x.dtype.min
        return self._pool(tf.nn.max_pool, x, kernel, stride, padding, low)

    def _pool_volume(self, x: Any, kernel: Any, stride: Any, padding: Any) -> Any:
        """The largest of each plane's windows, then of those along the depth."""
        B, C, D, H, W = self.shape(x)
        planes = self.max_pool(self.reshape(x, (B, C * D, H, W)), kernel[1:], stride[1:], padding[1:])
        H, W = self.shape(planes)[2:]
        columns = self.reshape(planes, (B, C, D, H * W))
        columns = self.max_pool(columns, (kernel[0], 1), (stride[0], 1), (padding[0], (0, 0)))
        return self.reshape(columns, (B, C, self.shape(columns)[2], H, W))

    def sum_pool(self, x: Any, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[tuple[Any, Any]]) -> Any:
        mean = self._pool(tf.nn.avg_pool, x, kernel, stride, padding, 0)
        return mean * tf.constant(float(np.prod(kernel)), x.dtype)

    def _pool(self, function: Any, x: Any, kernel: Any, stride: Any, padding: Any, value: Any) -> Any:
        dims = len(kernel)
        if dims == 1:
            wide = self._pool(function, tf.expand_dims(x, 2), (1, *kernel), (1, *stride), ((0, 0), *padding), value)
            return tf.squeeze(wide, [2])
        if any(not size_ops.known(p, 0) for pair in padding for p in pair):
            x = self.pad(x, [(0, 0), (0, 0), *padding], value)
        last = tf.transpose(x, [0, *range(2, dims + 2), 1])
        result = function(last, list(kernel), list(stride), "VALID")
        return tf.transpose(result, [0, dims + 1, *range(1, dims + 1)])

    def solve(self, a: Any, b: Any) -> Any:
        return tf.linalg.solve(a, b)

    def solve_triangular(self, a: Any, b: Any, lower: bool) -> Any:
        return tf.linalg.triangular_solve(a, b, lower)

    def cholesky(self, x: Any) -> Any:
        return tf.linalg.cholesky(x)

    def slogdet(self, x: Any) -> tuple[Any, Any]:
        return tuple(tf.linalg.slogdet(x))

    def eigh(self, x: Any) -> tuple[Any, Any]:
        return tuple(tf.linalg.eigh(x))

    def svd(self, x: Any, full: bool) -> tuple[Any, Any, Any]:
        s, u, v = tf.linalg.svd(x, full)
        return u, s, tf.linalg.adjoint(v)

    def qr(self, x: Any, full: bool) -> tuple[Any, Any]:
        return tuple(tf.linalg.qr(x, full))


def namespace() -> Namespace:
    """The namespace this backend computes with."""
    return _XP


def _runner(
    graph: Graph, operations: Mapping[str, Callable[..., Any]] | None = None, source: Graph | None = None
) -> tuple[Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]], Bounds]:
    """The graph's operations on tensors, to be called while a tf.function is traced, and what they take."""
    functions = {**_OVERRIDES, **(operations or {})}
    program = Program(graph, resolve_over(_XP, functions), hold=_held, source=source)

    def run(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        constants = {name: tf.constant(array) for name, array in graph.constants.items()}
        return program({name: tf.convert_to_tensor(p) for name, p in params.items()}, inputs, constants)

    return run, program.bounds


def _held(node: Node, value: Any, info: ValueInfo) -> Any:
    """A result with what the graph records of it: the sizes that are numbers, which TensorFlow may have lost."""
    if info.dtype == "size":
        return value
    value = tf.convert_to_tensor(value)
    try:
        value.set_shape([size if isinstance(size, int) else None for size in info.shape])
        agree = value.dtype.name == info.dtype
    except ValueError:
        agree = False
    if not agree:
        raise disagreement(node, info, f"{value.dtype.name} {value.shape}")
    return value


def _replaced_nan(x: Any, value: float) -> Any:
    """TensorFlow passes over NaN where torch and NumPy stop at it."""
    return tf.where(tf.math.is_nan(x), tf.constant(value, x.dtype), x) if x.dtype.is_floating else x


def _of_bools(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that TensorFlow lacks for bools, on them as numbers."""

    def wrapped(x: Any, y: Any) -> Any:
        if x.dtype != tf.bool:
            return function(x, y)
        return tf.cast(function(tf.cast(x, tf.int8), tf.cast(y, tf.int8)), tf.bool)

    return wrapped


def _wide(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that TensorFlow lacks for half precision."""

    def wrapped(x: Any) -> Any:
        half = x.dtype in (tf.float16, tf.bfloat16)
        return tf.cast(function(tf.cast(x, tf.float32)), x.dtype) if half else function(x)

    return wrapped


def _unmasked(indices: Sequence[Any]) -> list[Any]:
    """Each bool mask as the positions of its true elements, one array per dim."""
    positions: list[Any] = []
    for i in indices:
        if i is None or i.dtype != tf.bool:
            positions.append(i)
        else:
            positions.extend(tf.unstack(tf.where(i), i.shape.rank, axis=1))
    return positions


def _size(size: Any) -> Any:
    return tf.cast(size, tf.int32)


def _sizes(shape: Any) -> Any:
    """A shape as TensorFlow takes it: a list of numbers, or one int32 tensor if a size is a tensor."""
    shape = list(shape)
    if any(isinstance(size, tf.Tensor) for size in shape):
        return tf.stack([tf.cast(size, tf.int32) for size in shape])
    return shape


def _signature(graph: Graph) -> dict[str, tf.TensorSpec]:
    return {
        item.name: tf.TensorSpec(
            [size if isinstance(size, int) else None for size in item.shape], item.dtype, name=item.name
        )
        for item in graph.inputs
    }


def _variable_name(name: str) -> str:
    allowed = string.ascii_letters + string.digits + "_.-/"
    return "".join(c if c in allowed else "_" for c in name)


def _topk(x: Any, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """tf.math.top_k is a good deal faster than a full sort, and breaks ties the same way."""
    if not largest or not x.shape.rank or dim % x.shape.rank != x.shape.rank - 1 or x.dtype == tf.bool:
        from zoo.ops.index import topk

        return topk(_XP, x, k, dim, largest, sorted)
    values, indices = tf.math.top_k(x, k, sorted=True)
    return values, tf.cast(indices, tf.int64)


def _gelu(x: Any, *, approximate: str = "none") -> Any:
    return tf.nn.gelu(x, approximate == "tanh")


_ORDERED = ("maximum", "minimum", "less", "less_equal", "greater", "greater_equal")
_OWN: dict[str, Any] = {
    "round": tf.round,
    "floor_divide": tf.math.floordiv,
    "remainder": tf.math.floormod,
    "power": tf.pow,
    "trunc": lambda x: tf.where(x < 0, tf.math.ceil(x), tf.math.floor(x)),
    "logical_not": lambda x: tf.logical_not(x if x.dtype == tf.bool else tf.not_equal(x, tf.zeros((), x.dtype))),
    "log2": lambda x: tf.math.log(x) / tf.constant(np.log(2.0), x.dtype),
    "erfinv": _wide(tf.math.erfinv),
    "lgamma": _wide(tf.math.lgamma),
    "bitwise_not": tf.bitwise.invert,
    "bitwise_and": tf.bitwise.bitwise_and,
    "bitwise_or": tf.bitwise.bitwise_or,
    "bitwise_xor": tf.bitwise.bitwise_xor,
    "left_shift": tf.bitwise.left_shift,
    "right_shift": tf.bitwise.right_shift,
    **{name: _of_bools(getattr(tf.math, name)) for name in _ORDERED},
}
for _name in (*UNARY, *BINARY):
    _function = _OWN.get(_name) or getattr(tf.math, _name, None) or getattr(tf, _name)
    setattr(TensorflowNamespace, _name, staticmethod(_function))

_XP = TensorflowNamespace()


def _ranked(x: Any, rank: int) -> Any:
    return tf.ensure_shape(x, [None] * rank) if x.shape.rank is None else x


INPUTS = Arrays(
    own=lambda x: isinstance(x, (tf.Tensor, tf.Variable)), shape=_XP.shape, cast=_XP.cast, full=_XP.full, ranked=_ranked
)
"""What a call's inputs need of TensorFlow."""
_OVERRIDES: dict[str, Callable[..., Any]] = {"topk": _topk, "gelu": _gelu, "relu": tf.nn.relu}
