"""JAX: parameters are a flat dict pytree, a graph is a pure function of (params, inputs)."""

from __future__ import annotations

import contextlib
import functools
import string
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo.arrays import numpy_dtype, to_numpy
from zoo.backends.base import Compiled, compiled, refuse
from zoo.backends.bounds import Watch
from zoo.backends.execute import Program, disagreement, resolve_over
from zoo.backends.namespace import BINARY, UNARY, Namespace
from zoo.backends.numpy_namespace import all_inside, clipped, start_of
from zoo.errors import UnsupportedOp
from zoo.graph.ir import Graph, Node, ValueInfo
from zoo.graph.passes import with_all_rows
from zoo.inputs import Arrays
from zoo.ops import size as size_ops
from zoo.ops.random import key_of
from zoo.trees import register_trees

__all__ = [
    "INPUTS",
    "JaxNamespace",
    "compile_graph",
    "copied",
    "evaluating",
    "key_from",
    "module_of",
    "namespace",
    "params_from",
    "put",
    "widened",
]

register_trees()

COPIES = True
"""Whether `params_from` copies, so that the checkpoint's pages are not needed any more."""

IN_PLACE = False
"""Whether training writes into the arrays that `params_from` was given."""

TRAINED = None
replaced = None
held = None  # no use for these here: see zoo.backends.base


def compile_graph(
    graph: Graph,
    *,
    operations: Mapping[str, Callable[..., Any]] | None = None,
    source: Graph | None = None,
    precision: str = "float32",
) -> Compiled:
    """A pure function (params, inputs) -> outputs, jitted; traced again for each new set of shapes.

    A graph with sizes that depend on the inputs' values is compiled in parts instead, which needs those values:
    `jax.grad` with respect to params works, the caller's own `jax.jit` is refused. `operations` stand in for the
    table's of those names, and `source` is the graph without them.
    """
    refuse("jax", precision=precision)
    functions = {**_OVERRIDES, **(operations or {})}
    source = None if source is None else with_all_rows(source)
    program = Program(with_all_rows(graph), resolve_over(_XP, functions), hold=_held, source=source)
    # kept as NumPy arrays: they become constants of the compiled program, on whatever device it is for
    constants = dict(graph.constants)
    parts: _Parts | None = None

    @jax.jit
    def run(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        return program(params, inputs, {name: jnp.asarray(array) for name, array in constants.items()})

    def apply(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        nonlocal parts
        if parts is None:
            try:
                results = run(params, inputs)  # a pytree: JAX hands dicts back sorted
                return {name: results[name] for name in graph.outputs}
            except _SizeOfValues:
                parts = _Parts(program)
        return parts(params, inputs, constants)

    return compiled(apply)


class _Parts:
    """A graph compiled in parts, between which there are values that decide sizes.

    The nodes whose results have such a size run as they are; they are found by tracing what is before them.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._alone: set[int] = set()
        self._compiled: dict[Any, tuple[Callable[..., Any], dict[int, Any]]] = {}

    def __call__(
        self, params: Mapping[str, Any], inputs: Mapping[str, Any], constants: Mapping[str, Any]
    ) -> dict[str, Any]:
        watch = self.program.watched(inputs)
        given, fixed = ({name: jnp.asarray(x) for name, x in arrays.items()} for arrays in (inputs, constants))
        values = self.program.values(params, given, fixed)
        start, end = 0, len(self.program.steps)
        while start < end:
            stop = min((position for position in self._alone if position >= start), default=end)
            try:
                if stop > start:
                    for place, value in self._part(start, stop, values, watch).items():
                        values[place] = value
            except _SizeOfValues as error:
                self._alone.add(error.position)
                continue
            if stop < end:
                self.program.advance(values, stop, stop + 1, watch)
            start = stop + 1
        return self.program.outputs(values)

    def _part(self, start: int, stop: int, values: Sequence[Any], watch: Watch | None) -> dict[int, Any]:
        """Results of some nodes that later ones use. Sizes are Python's numbers, and part of what is compiled."""
        needed = set().union(*self.program.uses[start:stop])
        given = {place: values[place] for place in needed if values[place] is not None}
        arrays = {place: value for place, value in given.items() if isinstance(value, (jax.Array, np.ndarray))}
        sizes = {place: value for place, value in given.items() if place not in arrays}
        shapes = tuple((place, value.shape, value.dtype) for place, value in sorted(arrays.items()))
        key = (start, stop, tuple(sorted(sizes.items())), shapes)
        if key not in self._compiled:
            found: dict[int, Any] = {}
            traced = functools.partial(self._traced, start, stop, sizes, found, watch)
            self._compiled[key] = jax.jit(traced), found
        function, found = self._compiled[key]
        return {**function(arrays), **found}

    def _traced(
        self,
        start: int,
        stop: int,
        sizes: Mapping[int, Any],
        found: dict[int, Any],
        watch: Watch | None,
        arrays: Mapping[int, Any],
    ) -> dict[int, Any]:
        values: list[Any] = [None] * len(self.program.places)
        for place, value in {**arrays, **sizes}.items():
            values[place] = value
        for position in range(start, stop):
            try:
                self.program.advance(values, position, position + 1, watch)
            except _SizeOfValues as error:
                error.position = position
                raise
        made = [self.program.places[n] for node in self.program.graph.nodes[start:stop] for n in node.outputs]
        later = {place: values[place] for place in made if values[place] is not None}  # what none after uses is gone
        found.update((place, value) for place, value in later.items() if not isinstance(value, jax.Array))
        return {place: value for place, value in later.items() if place not in found}


def params_from(arrays: Mapping[str, np.ndarray], graph: Graph) -> dict[str, jax.Array]:
    """JAX arrays of the checkpoint's. On a CPU JAX uses suitably aligned memory where it lies, else copies once.

    Without x64 JAX has nothing of 64 bits: of what becomes narrower a copy is kept, for `widened`.
    """
    return {name: put(array) for name, array in arrays.items()}


def put(array: np.ndarray) -> jax.Array:
    """A JAX array of one of the checkpoint's, as `params_from` makes it; integers stay within what JAX has."""
    narrow = jax.dtypes.canonicalize_dtype(array.dtype)
    if narrow == array.dtype:
        return jax.device_put(array)
    limits = np.iinfo(narrow) if narrow.kind in "iu" else None
    within = array if limits is None else np.clip(array, limits.min, limits.max)
    with np.errstate(over="ignore"):
        made = jax.device_put(within.astype(narrow))
    _WIDER[id(made)] = np.array(array)
    weakref.finalize(made, _WIDER.pop, id(made), None).atexit = False
    return made


_WIDER: dict[int, np.ndarray] = {}
"""By the id of an array that lives: what it was before JAX narrowed it."""


def copied(value: Any, dtype: str) -> jax.Array:
    """A JAX array, in memory of its own, of another's."""
    return jnp.array(np.array(to_numpy(value)), jax.dtypes.canonicalize_dtype(numpy_dtype(dtype)))


def widened(value: jax.Array, dtype: str) -> np.ndarray:
    """An array for a file in which it has `dtype`: as it was loaded, or as wide if it was computed since."""
    if (loaded := _WIDER.get(id(value))) is not None:
        return loaded
    array, wide = to_numpy(value), numpy_dtype(dtype)
    narrowed = array.dtype != wide and array.dtype == jax.dtypes.canonicalize_dtype(wide)
    return array.astype(wide) if narrowed else array


def key_from(rng: Any) -> jax.Array:
    """A call's key, int32 [2], of a jax.random key, typed or raw, or of a seed (a number or two); may be traced."""
    if not isinstance(rng, jax.Array):
        return jnp.asarray(key_of(rng))
    if jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        rng = jax.random.key_data(rng)
    if rng.ndim == 0:
        rng = jnp.stack([rng, rng >> 32 if rng.dtype.itemsize == 8 else jnp.where(rng < 0, -1, 0).astype(rng.dtype)])
    rng = rng[-2:]  # the generator "rbg" has keys of four
    return rng if rng.dtype == jnp.int32 else lax.bitcast_convert_type(rng.astype(jnp.uint32), jnp.int32)


evaluating = contextlib.nullcontext
"""What a call without `rng` runs under."""


def module_of(model: Any) -> Callable[..., Any]:
    """The pure function `apply(params, **inputs)`: JAX has no modules of its own."""
    return model.apply


class JaxNamespace(Namespace):
    """jax.numpy and jax.lax. Without x64, int64 is int32 and float64 is float32, as everywhere in JAX."""

    def _dtype(self, dtype: str) -> Any:
        return jnp.bfloat16 if dtype == "bfloat16" else jax.dtypes.canonicalize_dtype(dtype)

    def asarray(self, x: Any, dtype: str | None = None) -> Any:
        if dtype is None:
            return jnp.asarray(x)
        name = self._dtype(dtype)
        return jnp.asarray(clipped(x, str(np.dtype(name)))).astype(name)

    def cast(self, x: Any, dtype: str) -> Any:
        return jnp.asarray(x).astype(self._dtype(dtype))

    def bitcast(self, x: Any, dtype: str) -> Any:
        return lax.bitcast_convert_type(x, self._dtype(dtype))

    def dtype(self, x: Any) -> str:
        return str(x.dtype)

    def full(self, shape: Any, value: Any, dtype: str) -> Any:
        return jnp.broadcast_to(self.asarray(value, dtype), tuple(shape))

    def arange(self, start: Any, stop: Any, step: Any, dtype: str) -> Any:
        return jnp.arange(start, stop, step, dtype=self._dtype(dtype))

    def size_equal(self, a: Any, b: Any) -> Any:
        """JAX itself says False of symbols that may be equal."""
        if (size_ops.known(a) and size_ops.known(b)) or a == b or not (_is_size(a) and _is_size(b)):
            return a == b
        for low, high in ((a, b), (b, a)):
            with contextlib.suppress(jax.errors.InconclusiveDimensionOperation):
                if low < high:
                    return False
        raise _undecided(f"{a} == {b}")

    def size_max(self, a: Any, b: Any) -> Any:
        return jax.core.max_dim(a, b) if _is_size(a) and _is_size(b) else max(a, b)

    def size_min(self, a: Any, b: Any) -> Any:
        return jax.core.min_dim(a, b) if _is_size(a) and _is_size(b) else min(a, b)

    def reaches(self, size: Any, index: Any) -> bool:
        try:
            return _is_size(index) and bool(index < size if index >= 0 else -index <= size)
        except jax.errors.InconclusiveDimensionOperation:
            return False

    def size_joint(self, a: Any, b: Any) -> Any:
        if a == b:
            return a
        raise _undecided(f"{a} and {b} broadcast")

    def size_int(self, a: Any) -> Any:
        return a if jax.export.is_symbolic_dim(a) else int(_known(a, "an operation"))

    def reshape(self, x: Any, shape: Any) -> Any:
        return jnp.reshape(x, tuple(shape))

    def permute(self, x: Any, axes: Sequence[int]) -> Any:
        return jnp.transpose(x, axes)

    def expand_dims(self, x: Any, axis: int) -> Any:
        return jnp.expand_dims(x, axis)

    def squeeze(self, x: Any, axes: Sequence[int]) -> Any:
        return jnp.squeeze(x, tuple(axes))

    def broadcast_to(self, x: Any, shape: Any) -> Any:
        return jnp.broadcast_to(x, tuple(shape))

    def concat(self, xs: Sequence[Any], axis: int) -> Any:
        return jnp.concatenate(xs, axis)

    def slice(self, x: Any, axis: int, start: Any, stop: Any, step: int = 1) -> Any:
        ends = (x.shape[axis], start, stop, step)
        if all(i is None or size_ops.known(i) for i in ends):
            low, high, _ = slice(start, stop).indices(x.shape[axis])
            return lax.slice_in_dim(x, low, max(high, low), step, axis)
        for end in ends:
            if end is not None and not _is_size(end):
                _known(end, "a slice")
        return x[(slice(None),) * axis + (slice(start, stop, step),)]

    def pad(self, x: Any, widths: Sequence[tuple[Any, Any]], value: Any) -> Any:
        return jnp.pad(x, widths, constant_values=value)

    def flip(self, x: Any, axes: Sequence[int]) -> Any:
        return jnp.flip(x, tuple(axes))

    def take(self, x: Any, index: Any, axis: int) -> Any:
        return jnp.take(x, index, axis, mode="clip")

    def take_along_axis(self, x: Any, index: Any, axis: int) -> Any:
        return jnp.take_along_axis(x, index, axis, mode="clip")

    def inside(self, index: Any, size: Any) -> tuple[Any, Any]:
        if size_ops.known(size) and not isinstance(index, jax.core.Tracer):
            return all_inside(index, size), None
        valid = (index >= 0) & (index < size)
        return jnp.where(valid, index, 0), valid

    def index(self, x: Any, indices: Sequence[Any]) -> Any:
        return x[tuple(slice(None) if i is None else i for i in indices)]

    def index_mask(self, x: Any, indices: Sequence[Any]) -> Any:
        for mask in indices:
            _known(mask, "indexing with a mask")
        return self.index(x, indices)

    def nonzero(self, x: Any) -> Any:
        return jnp.argwhere(_known(x, "nonzero"))

    def index_put(self, x: Any, indices: Sequence[Any], values: Any, accumulate: bool) -> Any:
        at = x.at[tuple(slice(None) if i is None else i for i in indices)]
        if accumulate and x.dtype == bool:  # JAX adds no truth values
            return at.max(values)
        return at.add(values) if accumulate else at.set(values)

    def scatter(self, x: Any, axis: int, index: Any, src: Any, mode: str) -> Any:
        if not x.ndim:
            return self.scatter(x[None], 0, jnp.reshape(index, (1,)), jnp.reshape(src, (1,)), mode)[0]
        where = [
            jnp.reshape(jnp.arange(size), [size if a == along else 1 for a in range(index.ndim)])
            for along, size in enumerate(index.shape)
        ]
        where[axis] = index
        src = _corner(self, src, index.shape) if src.ndim else src
        if x.dtype == bool:  # JAX neither adds nor multiplies truth values
            mode = {"add": "max", "multiply": "min"}.get(mode, mode)
        return getattr(x.at[tuple(where)], mode)(src)

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        return jnp.where(condition, x, y)

    def rsqrt(self, x: Any) -> Any:
        return lax.rsqrt(x)

    def stop_gradient(self, x: Any) -> Any:
        return lax.stop_gradient(x)

    def complex(self, real: Any, imag: Any) -> Any:
        return lax.complex(real, imag)

    def sum(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return jnp.sum(x, tuple(axes), keepdims=keepdims, dtype=x.dtype)

    def mean(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return jnp.mean(x, tuple(axes), keepdims=keepdims)

    def prod(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return jnp.prod(x, tuple(axes), keepdims=keepdims, dtype=x.dtype)

    def max(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return jnp.max(x, tuple(axes), keepdims=keepdims, **start_of(x, -1))

    def min(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return jnp.min(x, tuple(axes), keepdims=keepdims, **start_of(x, 1))

    def any(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return jnp.any(x, tuple(axes), keepdims=keepdims)

    def all(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return jnp.all(x, tuple(axes), keepdims=keepdims)

    def argmax(self, x: Any, axis: int) -> Any:
        return jnp.argmax(x, axis)

    def argmin(self, x: Any, axis: int) -> Any:
        return jnp.argmin(x, axis)

    def argsort(self, x: Any, axis: int, descending: bool) -> Any:
        return jnp.argsort(x, axis, stable=True, descending=descending)

    def cumsum(self, x: Any, axis: int) -> Any:
        return jnp.cumsum(x, axis, dtype=x.dtype)

    def cumprod(self, x: Any, axis: int) -> Any:
        return jnp.cumprod(x, axis, dtype=x.dtype)

    def cummax(self, x: Any, axis: int) -> Any:
        return lax.cummax(x, axis)

    def softmax(self, x: Any, axis: int) -> Any:
        return jax.nn.softmax(x, axis)

    def matmul(self, x: Any, y: Any) -> Any:
        return jnp.matmul(x, y)

    def linear(self, x: Any, weight: Any) -> Any:
        return lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())))

    def einsum(self, equation: str, *xs: Any) -> Any:
        return jnp.einsum(equation, *xs)

    def grouped_matmul(self, x: Any, weight: Any, ends: Any) -> Any:
        return lax.ragged_dot(x, weight, jnp.diff(ends, prepend=0).astype(jnp.int32))

    def conv(
        self,
        x: Any,
        weight: Any,
        stride: Sequence[int],
        padding: Sequence[tuple[Any, Any]],
        dilation: Sequence[int],
        groups: int,
    ) -> Any:
        letters = string.ascii_lowercase[: len(stride)]
        return lax.conv_general_dilated(
            x,
            weight,
            tuple(stride),
            list(padding),
            rhs_dilation=tuple(dilation),
            dimension_numbers=(f"NC{letters}", f"OI{letters}", f"NC{letters}"),
            feature_group_count=groups,
        )

    def fft(self, x: Any, axis: int, forward: bool) -> Any:
        size = x.shape[axis]
        if not size_ops.known(size):  # JAX's has a size that is a number: here is the sum as it stands
            steps = jnp.arange(size)
            turns = (jnp.outer(steps, steps) % size) / size * (-2 if forward else 2) * np.pi
            return jnp.moveaxis(jnp.moveaxis(x, axis, -1) @ lax.complex(jnp.cos(turns), jnp.sin(turns)), -1, axis)
        return jnp.fft.fft(x, axis=axis) if forward else jnp.fft.ifft(x, axis=axis, norm="forward")

    def max_pool(self, x: Any, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[tuple[Any, Any]]) -> Any:
        low = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
        return self._pool(x, np.asarray(low, x.dtype), lax.max, kernel, stride, padding)

    def sum_pool(self, x: Any, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[tuple[Any, Any]]) -> Any:
        return self._pool(x, np.asarray(0, x.dtype), lax.add, kernel, stride, padding)

    def _pool(self, x: Any, start: Any, fold: Any, kernel: Any, stride: Any, padding: Any) -> Any:
        return lax.reduce_window(x, start, fold, (1, 1, *kernel), (1, 1, *stride), ((0, 0), (0, 0), *padding))

    def solve(self, a: Any, b: Any) -> Any:
        return jnp.linalg.solve(a, b)

    def solve_triangular(self, a: Any, b: Any, lower: bool) -> Any:
        return lax.linalg.triangular_solve(a, b, left_side=True, lower=lower)

    def cholesky(self, x: Any) -> Any:
        return lax.linalg.cholesky(jnp.tril(x), symmetrize_input=False)

    def slogdet(self, x: Any) -> tuple[Any, Any]:
        return tuple(jnp.linalg.slogdet(x))

    def eigh(self, x: Any) -> tuple[Any, Any]:
        return tuple(jnp.linalg.eigh(x, UPLO="L", symmetrize_input=False))

    def svd(self, x: Any, full: bool) -> tuple[Any, Any, Any]:
        return tuple(jnp.linalg.svd(x, full))

    def qr(self, x: Any, full: bool) -> tuple[Any, Any]:
        return tuple(jnp.linalg.qr(x, "complete" if full else "reduced"))


_OWN: dict[str, Any] = {
    "erf": lax.erf,
    "erfc": lax.erfc,
    "erfinv": lax.erf_inv,
    "lgamma": lax.lgamma,
    "sigmoid": jax.nn.sigmoid,
    "asin": jnp.arcsin,
    "acos": jnp.arccos,
    "atan": jnp.arctan,
    "asinh": jnp.arcsinh,
    "acosh": jnp.arccosh,
    "atanh": jnp.arctanh,
    "atan2": jnp.arctan2,
    "round": jnp.rint,
    "bitwise_not": jnp.invert,
}
for _name in (*UNARY, *BINARY):
    setattr(JaxNamespace, _name, staticmethod(_OWN.get(_name) or getattr(jnp, _name)))

_XP = JaxNamespace()


def _held(node: Node, value: Any, info: ValueInfo) -> Any:
    """A result, which must have the rank and dtype that the graph records."""
    if info.dtype == "size":
        return value
    if jnp.ndim(value) != len(info.shape) or jnp.result_type(value) != _XP._dtype(info.dtype):
        raise disagreement(node, info, f"{value.dtype} {list(value.shape)}")
    return value


def _is_size(value: Any) -> bool:
    """Whether it is a number or a symbol of jax.export, and no array."""
    return isinstance(value, (int, np.integer)) or jax.export.is_symbolic_dim(value)


def _corner(xp: JaxNamespace, x: Any, sizes: Sequence[Any]) -> Any:
    """The first elements of each dim."""
    for axis, size in enumerate(sizes):
        x = xp.slice(x, axis, 0, size)
    return x


def _undecided(what: str) -> UnsupportedOp:
    return UnsupportedOp(
        "what to compute depends on whether sizes are equal, which symbols do not say",
        expected="sizes or bounds of symbols that decide it",
        got=what,
        do="give the dim a fixed size, or the symbol a bound, as in jax.export.symbolic_shape(..., constraints=[...])",
    )


def _full(shape: Any, value: Any, dtype: str) -> Any:
    known = all(isinstance(size, int) for size in shape)
    return np.full(tuple(shape), value, dtype) if known else _XP.full(shape, value, dtype)


INPUTS = Arrays(own=lambda x: isinstance(x, jax.Array), shape=_XP.shape, cast=_XP.cast, full=_full)
"""What a call's inputs need of JAX."""


def _topk(x: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """lax.top_k is a good deal faster than a full sort, and breaks ties the same way."""
    if not largest or not x.ndim or dim % x.ndim != x.ndim - 1:
        from zoo.ops.index import topk

        return topk(_XP, x, k, dim, largest, sorted)
    return tuple(lax.top_k(x, k))


_OVERRIDES: dict[str, Callable[..., Any]] = {"topk": _topk}


class _SizeOfValues(UnsupportedOp):
    """A size depends on values that are only being traced."""

    position = -1
    """The node's place in the graph."""


def _known(x: Any, what: str) -> Any:
    """`x`, unless JAX is tracing and the result's size would depend on its values."""
    if isinstance(x, jax.core.Tracer):
        raise _SizeOfValues(
            f"{what} gives an array whose size depends on the data, which JAX cannot compile",
            expected="sizes that follow from the inputs' dims",
            do="call the model outside of jax.jit and jax.vmap, with arrays that are known",
        )
    return x


def namespace() -> Namespace:
    """The namespace this backend computes with."""
    return _XP
