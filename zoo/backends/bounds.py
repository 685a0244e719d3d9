"""What a run of a graph takes, found before anything is run: a graph is data, and a few bytes of it can ask for ages.

The op table's own definitions are run over `Shapes`, a namespace whose arrays have a shape and no elements. So whatever
an operation makes on the way to its result is counted, too, and there is no second list of operations. Counted are the
elements of each array, of all that are held at once, and steps: roughly the elements that are read, multiplied or
written, and a fixed number for each call. An operation whose sizes depend on data is counted just before it is run.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from zoo.arrays import to_numpy
from zoo.backends.namespace import BINARY, UNARY, Namespace
from zoo.errors import LimitError, ZooError
from zoo.graph.ir import Graph, Node, map_refs, param_ref, refs
from zoo.limits import PART, Limits, refused, written
from zoo.ops import OPS

__all__ = ["Bounds", "Need", "Watch"]

_KEPT = 4096  # sets of shapes that are known to be within the limits; calls whose outcome is known


class Bounds:
    """What a graph takes, compared with the limits for the inputs that it gets.

    Args:
        graph: what is run.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._known: OrderedDict[Any, frozenset[int]] = OrderedDict()
        self._outcomes: dict[Any, _Outcome] = {}
        self._held = sum(math.prod(param.shape) for param in graph.params.values())
        self._held += sum(array.size for array in graph.constants.values())
        self._widest = max((size for param in graph.params.values() for size in param.shape), default=1)

    def check(self, inputs: Mapping[str, Any]) -> Watch | None:
        """Refuse a run that takes too much; of shapes that were checked before it costs next to nothing.

        Args:
            inputs: arrays by name. A size that is no number (while a framework traces) counts as the smallest that the
                graph allows.

        Returns:
            What is to be told of the nodes that depend on data, when they are run; None where none does.

        Raises:
            LimitError: naming the node that takes more than there is.
        """
        key = tuple([(name, _shape(array)) for name, array in inputs.items()])
        found = self._known.get(key)
        if found is None:
            shapes = {name: self._sizes(name, shape) for name, shape in key}
            found = self._walk(shapes, self.limits(shapes), Need())
            self._known[key] = found
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        if not found:
            return None
        return Watch(found, self.limits({name: self._sizes(name, shape) for name, shape in key}))

    def need(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Need, frozenset[int]]:
        """What the graph takes with inputs of these shapes, and where that depends on data, by the nodes' positions."""
        limits = self.limits(shapes)
        limits.elements = limits.live = limits.steps = limits.parts = math.inf
        need = Need()
        return need, self._walk(shapes, limits, need)

    def limits(self, shapes: Mapping[str, tuple[int, ...]]) -> Limits:
        """What the graph may take with inputs of these shapes."""
        return Limits(self._held, self._widest, len(self.graph.nodes), list(shapes.values()))

    def _sizes(self, name: str, shape: Sequence[Any]) -> tuple[int, ...]:
        """A shape with numbers for the sizes that are none."""
        declared = next((item.shape for item in self.graph.inputs if item.name == name), ())
        small = [max(self.graph.symbols.get(dim, (1,))[0], 1) if isinstance(dim, str) else dim for dim in declared]
        return tuple(size if size is not None else small[axis] for axis, size in enumerate(shape))

    def _walk(self, shapes: Mapping[str, tuple[int, ...]], limits: Limits, need: Need) -> frozenset[int]:
        """The nodes, by position, whose results depend on data, or which the backend will find do not fit."""
        graph, meter = self.graph, _Meter(limits, need)
        xp = Shapes(meter)
        dtypes = {item.name: item.dtype for item in graph.inputs}
        values: dict[str, Any] = {n: Shadow(a.shape, str(a.dtype)) for n, a in graph.constants.items()}
        values.update((name, Shadow(shape, dtypes.get(name, "int32"))) for name, shape in shapes.items())
        for param in graph.params.values():
            shadow = Shadow(tuple(param.shape), param.dtype)
            values.update((param_ref(name), shadow) for name in (param.name, *param.aliases))
        unknown = set()
        for position, step in enumerate(self._steps):
            result = None
            if step.used <= values.keys():
                given = [values[name] for name in step.names]
                result = self._found(xp, step, given)
                given = []
            if result is None:
                unknown.add(position)
            else:
                values.update(zip(step.node.outputs, result, strict=False))
            result = None
            for name in step.dead:
                values.pop(name, None)
        return frozenset(unknown)

    @cached_property
    def _steps(self) -> list[_Step]:
        steps = [_Step(node) for node in self.graph.nodes]
        last = {name: position for position, step in enumerate(steps) for name in step.used}
        kept = {ref.name for ref in self.graph.outputs.values()}
        for position, step in enumerate(steps):
            names = step.used.union(step.node.outputs) - kept
            step.dead = tuple(name for name in names if last.get(name, position) == position)
        return steps

    def _found(self, xp: Shapes, step: _Step, given: list[Any]) -> tuple[Any, ...] | None:
        """As `_results`; a call like one before is not gone through again: a model's layers are alike."""
        key = (step.call, *[_facts(value) for value in given])
        outcome = self._outcomes.get(key)
        if outcome is not None and (found := outcome.again(xp.meter, given)) is not None:
            return found
        meter = xp.meter
        meter.peak, meter.most, steps, held = meter.held, 0, meter.need.steps, meter.held
        at_hand = iter(given)
        args, kwargs = (map_refs(lambda ref: next(at_hand), tree) for tree in (step.node.args, step.node.kwargs))
        result = _results(xp, step.node, args, kwargs)
        if result is not None:
            if len(self._outcomes) >= _KEPT:
                self._outcomes.clear()
            self._outcomes[key] = _Outcome(meter, steps, held, given, result)
        return result


class _Step:
    """A node, the values that it uses in order, and those that nothing uses after it."""

    __slots__ = ("call", "dead", "names", "node", "used")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.names = tuple(ref.name for ref in refs((node.args, node.kwargs)))
        self.used = frozenset(self.names)
        self.dead: tuple[str, ...] = ()
        self.call = node.op + repr(map_refs(lambda ref: "%", (node.args, node.kwargs)))  # but for the values


class _Outcome:
    """What a call took, and its results: sizes as they are, arrays as (shape, dtype, place, elements). The place is
    that of the memory they lie in, among the arguments and then the new ones; -1 for what is never counted.
    """

    __slots__ = ("most", "parts", "peak", "results", "steps")

    def __init__(self, meter: _Meter, steps: int, held: int, given: list[Any], result: tuple[Any, ...]) -> None:
        self.steps, self.parts = meter.need.steps - steps, meter.parts
        self.most, self.peak = meter.most, meter.peak - held
        stores = [getattr(value, "storage", None) for value in given]
        self.results: list[Any] = []
        for item in result:
            if not isinstance(item, Shadow):
                self.results.append(item)
                continue
            place = -1
            if item.storage is not None:
                if not any(storage is item.storage for storage in stores):
                    stores.append(item.storage)
                place = next(number for number, storage in enumerate(stores) if storage is item.storage)
            self.results.append((item.shape, item.dtype, place, item.storage.elements if item.storage else 0))

    def again(self, meter: _Meter, given: list[Any]) -> tuple[Any, ...] | None:
        """The results; None where there is not enough left, which the call itself is to say."""
        need, limits = meter.need, meter.limits
        steps, live = need.steps + self.steps, meter.held + self.peak
        if steps > limits.steps or live > limits.live or self.most > limits.elements or self.parts > limits.parts:
            return None
        need.steps, need.live = steps, max(need.live, live)
        need.elements, need.parts = max(need.elements, self.most), max(need.parts, self.parts)
        stores = [getattr(value, "storage", None) for value in given]
        results: list[Any] = []
        for item in self.results:
            if not isinstance(item, tuple):
                results.append(item)
                continue
            shape, dtype, place, elements = item
            if place == len(stores):
                stores.append(_Storage(meter, elements))
            results.append(Shadow(shape, dtype, None if place < 0 else stores[place]))
        return tuple(results)


def _facts(value: Any) -> Any:
    """What a call's outcome depends on of a value."""
    if not isinstance(value, Shadow):
        return type(value), value
    return value.shape, value.dtype, value.storage.elements if value.storage else -1


class Watch:
    """One run of a graph some of whose nodes depend on data.

    Args:
        nodes: those, by position.
        limits: for the run.
    """

    def __init__(self, nodes: frozenset[int], limits: Limits) -> None:
        self.nodes = nodes
        self._meter = _Meter(limits, Need())

    def before(self, node: Node, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Refuse a node that takes too much with these arguments; of sizes that are no numbers nothing is known.

        Raises:
            LimitError: naming it.
        """
        if node.op not in OPS:
            return
        try:
            given = _shadows(args), _shadows(kwargs)
        except TypeError:
            return
        xp = Shapes(self._meter)
        if _results(xp, node, *given) is None and xp.asked and (size := _counted(node, args, kwargs)) is not None:
            xp.size = size
            _results(xp, node, *given)


class Need:
    """What a run takes: the largest array, all at once at most, steps, and the parts of the node that has most."""

    def __init__(self) -> None:
        self.elements = self.live = self.steps = self.parts = 0


class Shadow:
    """An array without elements."""

    __slots__ = ("dtype", "shape", "storage")

    def __init__(self, shape: tuple[int, ...], dtype: str, storage: _Storage | None = None) -> None:
        self.shape, self.dtype, self.storage = shape, dtype, storage


class _Storage:
    """Memory that is held as long as an array lies in it."""

    __slots__ = ("elements", "meter")

    def __init__(self, meter: _Meter, elements: int) -> None:
        self.meter, self.elements = meter, elements
        meter.held += elements

    def __del__(self) -> None:
        self.meter.held -= self.elements


class _Meter:
    """What has been taken so far."""

    def __init__(self, limits: Limits, need: Need) -> None:
        self.limits, self.need = limits, need
        self.held = self.parts = 0
        self.peak = self.most = 0  # of the node alone

    def array(self, shape: tuple[int, ...], dtype: str, steps: int = 0) -> Shadow:
        """A new array, made in so many steps besides writing it."""
        elements = 1
        for size in shape:
            if size < 0:
                raise ValueError(f"a size of {size}")
            elements *= size
        self.took(elements + steps)
        need, limits = self.need, self.limits
        if elements > need.elements:
            need.elements = elements
            if elements > limits.elements:
                raise _Refused(
                    f"an array [{', '.join(map(written, shape))}] of {written(elements)} elements", limits.elements
                )
        storage = _Storage(self, elements)
        self.most, self.peak = max(self.most, elements), max(self.peak, self.held)
        if self.held > need.live:
            need.live = self.held
            if self.held > limits.live:
                raise _Refused(f"arrays of {written(self.held)} elements at once", limits.live)
        return Shadow(shape, dtype, storage)

    def took(self, steps: int, parts: int = 1) -> None:
        need, limits = self.need, self.limits
        self.parts += parts
        if self.parts > need.parts:
            need.parts = self.parts
            if self.parts > limits.parts:
                raise _Refused(f"{written(self.parts)} parts, one after another", limits.parts)
        need.steps += steps + PART * parts
        if need.steps > limits.steps:
            raise _Refused(f"{written(need.steps)} steps, with the nodes before it", limits.steps)


class _Refused(Exception):
    """More is asked for than there is: what, and the limit."""


class _DependsOnData(Exception):
    """A size follows from elements."""


def _results(xp: Shapes, node: Node, args: Any, kwargs: Any) -> tuple[Any, ...] | None:
    """A node's, without their elements; None where they depend on data, or the backend will find what does not fit."""
    op = OPS[node.op]
    if op.traits.recorded:
        kwargs = {**kwargs, "infos": node.infos}
    xp.meter.parts = 0
    where = f"node {node.name!r} ({node.op})"
    try:
        found = op.function(xp, *args, **kwargs)
    except _Refused as error:
        raise refused(where, *error.args) from None
    except LimitError as error:
        raise refused(where, error.got, error.expected) from None
    except (ZooError, _DependsOnData, *_MISFITS):
        return None
    result = tuple(found) if isinstance(found, (tuple, list)) else (found,)
    for size in result:
        if isinstance(size, int) and size.bit_length() > 64:
            raise refused(where, f"a size of {size.bit_length()} bits", "64 bits")
    return result


def _counted(node: Node, args: Any, kwargs: Mapping[str, Any]) -> int | None:
    """The size that an operation finds among elements, by NumPy; None where they are being traced."""
    from zoo.backends.numpy_namespace import NumpyNamespace

    class Found(Exception):
        pass

    class Counting(NumpyNamespace):
        def size_int(self, a: Any) -> Any:
            raise Found(int(a))

    def known(tree: Any) -> Any:
        if isinstance(tree, (tuple, list)):
            return tuple(map(known, tree))
        return to_numpy(tree) if hasattr(tree, "shape") else tree

    try:
        OPS[node.op].function(Counting(widen=False), *known(args), **{key: known(arg) for key, arg in kwargs.items()})
    except Found as found:
        return found.args[0]
    except Exception:  # each framework has an error of its own for arrays without values
        return None
    return None


_MISFITS = (
    *(TypeError, ValueError, ArithmeticError, LookupError, AttributeError, NotImplementedError, RecursionError),
)  # fmt: skip


def _shape(array: Any) -> tuple[int | None, ...]:
    """Its sizes, None for those that are no numbers."""
    shape = array.shape
    try:
        return tuple([size if type(size) is int else None for size in shape])
    except ValueError:  # TensorFlow's may have no rank
        return ()


def _shadows(tree: Any) -> Any:
    """Arguments with a shadow for every array; TypeError where a size is no number."""
    if isinstance(tree, (tuple, list)):
        return tuple(_shadows(item) for item in tree)
    if isinstance(tree, Mapping):
        return {key: _shadows(item) for key, item in tree.items()}
    if not hasattr(tree, "shape"):
        return tree
    shape = [size for size in _shape(tree) if size is not None]
    if len(shape) < len(tree.shape):
        raise TypeError(f"a shape of {tree.shape}")
    return Shadow(tuple(shape), getattr(tree.dtype, "name", None) or str(tree.dtype).rpartition(".")[2])


def _joint(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    first = shapes[0]
    if all(shape == first for shape in shapes):
        return first
    rank = max(map(len, shapes))
    result = [1] * rank
    for shape in shapes:
        for axis, size in enumerate(shape, rank - len(shape)):
            if size != 1:
                if result[axis] not in (1, size):
                    raise ValueError(f"{shapes} do not broadcast")
                result[axis] = size
    return tuple(result)


class Shapes(Namespace):
    """Operations on arrays without elements. What lies in another array's memory takes a call and nothing else."""

    def __init__(self, meter: _Meter) -> None:
        self.meter = meter
        self.asked = False
        self.size: int | None = None  # what `size_int` finds among elements

    def _new(self, shape: Sequence[Any], dtype: str, steps: int = 0) -> Shadow:
        return self.meter.array(tuple(map(_size, shape)), dtype, steps)

    def _view(self, x: Shadow, shape: Sequence[int]) -> Shadow:
        self.meter.took(0)
        return Shadow(tuple(shape), x.dtype, x.storage)

    def asarray(self, x: Any, dtype: str | None = None) -> Any:
        if isinstance(x, Shadow):
            return x if dtype is None else self.cast(x, dtype)
        if isinstance(x, np.ndarray):
            return self._new(x.shape, dtype or str(x.dtype))
        if isinstance(x, (list, tuple)):
            inner: tuple[int, ...] = ()
            if x and isinstance(x[0], (list, tuple)):
                inner = (len(x[0]),)
            return self._new((len(x), *inner), dtype or "int64")
        return self._new((), dtype or ("float32" if isinstance(x, float) else "int64"))

    def cast(self, x: Any, dtype: str) -> Any:
        x = self.asarray(x)
        return x if x.dtype == dtype else self._new(x.shape, dtype)

    def bitcast(self, x: Any, dtype: str) -> Any:
        result = self._view(x, x.shape)
        result.dtype = dtype
        return result

    def dtype(self, x: Any) -> str:
        return x.dtype

    def full(self, shape: Any, value: Any, dtype: str) -> Any:
        return self._new(shape, dtype)

    def parts(self, count: int) -> None:
        self.meter.took(0, _size(count))

    def arange(self, start: Any, stop: Any, step: Any, dtype: str) -> Any:
        if any(isinstance(end, Shadow) for end in (start, stop, step)):
            raise _DependsOnData
        return self._new((max(math.ceil((stop - start) / step), 0),), dtype)

    def size_int(self, a: Any) -> Any:
        if not isinstance(a, Shadow):
            return int(a)
        self.asked = True
        if self.size is None:
            raise _DependsOnData
        return self.size

    def size_joint(self, a: Any, b: Any) -> Any:
        return a

    def reshape(self, x: Any, shape: Any) -> Any:
        sizes = [_size(size) for size in shape] if not isinstance(shape, int) else [shape]
        elements = math.prod(x.shape)
        if -1 in sizes:
            rest = math.prod(size for size in sizes if size != -1)
            sizes[sizes.index(-1)] = elements // rest if rest else 0
        if math.prod(sizes) != elements or min(sizes, default=0) < 0:
            raise ValueError(f"{x.shape} as {sizes}")
        held = x.storage.elements if x.storage else elements
        return self._view(x, sizes) if held >= elements else self._new(sizes, x.dtype)

    def permute(self, x: Any, axes: Sequence[int]) -> Any:
        if sorted(axes) != list(range(len(x.shape))):
            raise ValueError(f"axes {axes}")
        return self._view(x, [x.shape[axis] for axis in axes])

    def expand_dims(self, x: Any, axis: int) -> Any:
        return self._view(x, (*x.shape[:axis], 1, *x.shape[axis:]))

    def squeeze(self, x: Any, axes: Sequence[int]) -> Any:
        if any(x.shape[axis] != 1 for axis in axes):
            raise ValueError(f"{x.shape} without {axes}")
        return self._view(x, [size for axis, size in enumerate(x.shape) if axis not in axes])

    def broadcast_to(self, x: Any, shape: Any) -> Any:
        target = tuple(map(_size, shape))
        if _joint(x.shape, target) != target or min(target, default=0) < 0:
            raise ValueError(f"{x.shape} to {target}")
        result = self._view(x, target)
        result.storage = result.storage or _Storage(self.meter, math.prod(x.shape))
        return result

    def concat(self, xs: Sequence[Any], axis: int) -> Any:
        first = xs[0].shape
        for x in xs:
            if len(x.shape) != len(first) or x.shape[:axis] != first[:axis] or x.shape[axis + 1 :] != first[axis + 1 :]:
                raise ValueError("concat of shapes that differ")
        return self._new((*first[:axis], sum(x.shape[axis] for x in xs), *first[axis + 1 :]), xs[0].dtype, len(xs))

    def slice(self, x: Any, axis: int, start: Any, stop: Any, step: int = 1) -> Any:
        if any(isinstance(end, Shadow) for end in (start, stop, step)):
            raise _DependsOnData
        size = len(range(*slice(start, stop, step).indices(x.shape[axis])))
        return self._view(x, (*x.shape[:axis], size, *x.shape[axis + 1 :]))

    def pad(self, x: Any, widths: Sequence[tuple[Any, Any]], value: Any) -> Any:
        if len(widths) != len(x.shape) or any(width < 0 for pair in widths for width in pair):
            raise ValueError(f"{x.shape} padded by {widths}")
        return self._new([low + size + high for size, (low, high) in zip(x.shape, widths, strict=True)], x.dtype)

    def flip(self, x: Any, axes: Sequence[int]) -> Any:
        return self._new(x.shape, x.dtype)

    def take(self, x: Any, index: Any, axis: int) -> Any:
        axis %= len(x.shape)
        inner = index.shape if isinstance(index, Shadow) else ()
        return self._new((*x.shape[:axis], *inner, *x.shape[axis + 1 :]), x.dtype)

    def take_along_axis(self, x: Any, index: Any, axis: int) -> Any:
        lead = _joint(x.shape[:axis], index.shape[:axis])
        after = _joint(x.shape[axis + 1 :], index.shape[axis + 1 :])
        return self._new((*lead, index.shape[axis], *after), x.dtype)

    def inside(self, index: Any, size: Any) -> tuple[Any, Any]:
        self.meter.took(2 * math.prod(index.shape))
        return index, None

    def index(self, x: Any, indices: Sequence[Any]) -> Any:
        axes = [axis for axis, i in enumerate(indices) if i is not None]
        found = _joint(*(indices[axis].shape for axis in axes))
        rest = [size for axis, size in enumerate(x.shape) if axis not in axes]
        before = axes[0] if axes == list(range(axes[0], axes[-1] + 1)) else 0
        return self._new((*rest[:before], *found, *rest[before:]), x.dtype)

    def index_mask(self, x: Any, indices: Sequence[Any]) -> Any:
        raise _DependsOnData

    def nonzero(self, x: Any) -> Any:
        raise _DependsOnData

    def index_put(self, x: Any, indices: Sequence[Any], values: Any, accumulate: bool) -> Any:
        found = _joint(*(i.shape for i in indices if i is not None))
        rest = [size for axis, size in enumerate(x.shape) if axis >= len(indices) or indices[axis] is None]
        return self._new(x.shape, x.dtype, 4 * math.prod(found) * math.prod(rest))

    def scatter(self, x: Any, axis: int, index: Any, src: Any, mode: str) -> Any:
        return self._new(x.shape, x.dtype, 4 * math.prod(index.shape))

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        return self._new(_joint(condition.shape, x.shape, y.shape), x.dtype)

    def complex(self, real: Any, imag: Any) -> Any:
        dtype = "complex128" if real.dtype == "float64" else "complex64"
        return self._new(_joint(real.shape, imag.shape), dtype)

    def _folded(self, x: Any, axes: Sequence[int], keepdims: bool, dtype: str | None = None) -> Any:
        rank = len(x.shape)
        gone = {axis % rank for axis in axes} if rank else set()
        shape = [1 if a in gone else size for a, size in enumerate(x.shape) if keepdims or a not in gone]
        return self._new(shape, dtype or x.dtype, math.prod(x.shape))

    def sum(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return self._folded(x, axes, keepdims)

    mean = prod = max = min = sum

    def any(self, x: Any, axes: Sequence[int], keepdims: bool) -> Any:
        return self._folded(x, axes, keepdims, "bool")

    all = any

    def argmax(self, x: Any, axis: int) -> Any:
        return self._folded(x, (axis,), False, "int64")

    argmin = argmax

    def argsort(self, x: Any, axis: int, descending: bool) -> Any:
        return self._new(x.shape, "int64", math.prod(x.shape) * x.shape[axis].bit_length())

    def cumsum(self, x: Any, axis: int) -> Any:
        return self._new(x.shape, x.dtype)

    cumprod = cummax = cumsum

    def matmul(self, x: Any, y: Any) -> Any:
        left = x.shape if len(x.shape) > 1 else (1, *x.shape)
        right = y.shape if len(y.shape) > 1 else (*y.shape, 1)
        if left[-1] != right[-2]:
            raise ValueError(f"{x.shape} times {y.shape}")
        shape = [*_joint(left[:-2], right[:-2]), left[-2], right[-1]]
        steps = math.prod(shape) * left[-1]
        if len(x.shape) == 1:
            del shape[-2]
        if len(y.shape) == 1:
            del shape[-1]
        return self._new(shape, x.dtype, steps)

    def linear(self, x: Any, weight: Any) -> Any:
        if x.shape[-1] != weight.shape[1]:
            raise ValueError(f"{x.shape} times {weight.shape}")
        return self._new((*x.shape[:-1], weight.shape[0]), x.dtype, math.prod(x.shape) * weight.shape[0])

    def einsum(self, equation: str, *xs: Any) -> Any:
        return _einsum(self, equation, xs)

    def grouped_matmul(self, x: Any, weight: Any, ends: Any) -> Any:
        columns = weight.shape[2]
        self.meter.took(0, weight.shape[0])
        return self._new((x.shape[0], columns), x.dtype, math.prod(x.shape) * columns)

    def conv(
        self,
        x: Any,
        weight: Any,
        stride: Sequence[int],
        padding: Sequence[tuple[Any, Any]],
        dilation: Sequence[int],
        groups: int,
    ) -> Any:
        out, per_group, *kernel = weight.shape
        padded = self.pad(x, [(0, 0), (0, 0), *padding], 0)
        sizes = _windows(padded.shape[2:], kernel, stride, dilation)
        if x.shape[1] != per_group * groups or out % groups:
            raise ValueError(f"convolution of {x.shape} with {weight.shape}")
        return self._new((x.shape[0], out, *sizes), x.dtype, x.shape[0] * math.prod(sizes) * math.prod(weight.shape))

    def fft(self, x: Any, axis: int, forward: bool) -> Any:
        return self._new(x.shape, x.dtype, math.prod(x.shape) * x.shape[axis].bit_length())

    def max_pool(self, x: Any, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[tuple[Any, Any]]) -> Any:
        padded = self.pad(x, [(0, 0), (0, 0), *padding], 0)
        sizes = _windows(padded.shape[2:], kernel, stride, [1] * len(kernel))
        shape = (*x.shape[:2], *sizes)
        return self._new(shape, x.dtype, math.prod(shape) * math.prod(kernel))

    sum_pool = max_pool

    def solve(self, a: Any, b: Any) -> Any:
        return self._new(b.shape, b.dtype, math.prod(a.shape) * (a.shape[-1] + b.shape[-1]))

    def solve_triangular(self, a: Any, b: Any, lower: bool) -> Any:
        return self.solve(a, b)

    def cholesky(self, x: Any) -> Any:
        return self._new(x.shape, x.dtype, math.prod(x.shape) * x.shape[-1])

    def slogdet(self, x: Any) -> tuple[Any, Any]:
        self.meter.took(math.prod(x.shape) * x.shape[-1])
        return self._new(x.shape[:-2], x.dtype), self._new(x.shape[:-2], _real(x.dtype))

    def eigh(self, x: Any) -> tuple[Any, Any]:
        self.meter.took(16 * math.prod(x.shape) * x.shape[-1])
        return self._new(x.shape[:-1], _real(x.dtype)), self._new(x.shape, x.dtype)

    def svd(self, x: Any, full: bool) -> tuple[Any, Any, Any]:
        *lead, rows, columns = x.shape
        short = min(rows, columns)
        self.meter.took(16 * math.prod(x.shape) * max(rows, columns))
        left, right = (rows, columns) if full else (short, short)
        parts = (*lead, rows, left), (*lead, right, columns)
        return self._new(parts[0], x.dtype), self._new((*lead, short), _real(x.dtype)), self._new(parts[1], x.dtype)

    def qr(self, x: Any, full: bool) -> tuple[Any, Any]:
        *lead, rows, columns = x.shape
        inner = rows if full else min(rows, columns)
        self.meter.took(4 * math.prod(x.shape) * max(rows, columns))
        return self._new((*lead, rows, inner), x.dtype), self._new((*lead, inner, columns), x.dtype)


def _size(size: Any) -> int:
    if isinstance(size, Shadow):
        raise _DependsOnData
    if not isinstance(size, int):
        raise TypeError(f"a size of {size}")
    return size


def _windows(sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[int]:
    return [
        max((size - d * (k - 1) - 1) // s + 1, 0) for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True)
    ]


def _real(dtype: str) -> str:
    return {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)


def _einsum(xp: Shapes, equation: str, xs: Sequence[Any]) -> Shadow:
    """Two at a time from the left; a letter goes as soon as nothing after it has it."""
    given, _, result = equation.partition("->")
    terms = given.split(",")
    rank = max(len(x.shape) - len(term.replace("...", "")) for term, x in zip(terms, xs, strict=True))
    dots = "".join(map(chr, range(0x4E00, 0x4E00 + max(rank, 0))))  # letters for what "..." stands for
    sizes: dict[str, int] = {}
    names = []
    for term, x in zip(terms, xs, strict=True):
        own = len(x.shape) - len(term.replace("...", ""))
        spelled = term.replace("...", dots[len(dots) - own :] if own else "")
        for letter, size in zip(spelled, x.shape, strict=True):
            sizes[letter] = max(sizes.get(letter, 1), size)
        names.append(spelled)
    if "->" not in equation:
        whole = "".join(names)
        result = "..." + "".join(sorted(c for c in set(whole) if whole.count(c) == 1 and c not in dots))
    result = result.replace("...", dots)
    left = set(names[0])
    for number, name in enumerate(names[1:], 1):
        every = left | set(name)
        left = every & set(result).union(*names[number + 1 :])
        xp._new([sizes[letter] for letter in left], xs[0].dtype, math.prod(sizes[letter] for letter in every))
    xp.meter.took(math.prod(sizes[letter] for letter in left))
    return xp._new([sizes[letter] for letter in result], xs[0].dtype)


_BOOLS = frozenset("equal not_equal less less_equal greater greater_equal logical_and logical_or logical_not".split())


def _unary(name: str) -> Any:
    def function(self: Shapes, x: Any) -> Any:
        dtype = "bool" if name in _BOOLS else _real(x.dtype) if name in ("abs", "real", "imag") else x.dtype
        return self._new(x.shape, dtype)

    return function


def _binary(name: str) -> Any:
    def function(self: Shapes, x: Any, y: Any) -> Any:
        x, y = self.asarray(x), self.asarray(y)
        return self._new(_joint(x.shape, y.shape), "bool" if name in _BOOLS else x.dtype)

    return function


for _name in UNARY:
    setattr(Shapes, _name, _unary(_name))
for _name in BINARY:
    setattr(Shapes, _name, _binary(_name))
