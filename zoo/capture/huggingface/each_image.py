"""Images of one size, as many as there are, each computed by itself.

Models that take images of any size loop over them, and a trace has as many turns as the example has images. Where the
sizes are part of the graph all images are of one size: what is computed of one, under `torch.vmap`, holds for each of
them. Its rules need their number, so a model is traced twice, with two images and with three, and what in its graph
grows with the number follows from an input's size.

In these names a sound is an image, too.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch._C import _functorch as functorch
from torch._functorch import predispatch
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from zoo.capture.rewrites import names_in, plain_forward, replaced
from zoo.errors import CaptureError
from zoo.graph.ir import Graph, Input, Node, Ref, ValueInfo
from zoo.graph.passes import simplify

__all__ = ["COUNTS", "any_number", "counting_axis", "each_by_itself", "is_counted", "is_traced"]

COUNTS = (2, 3)
"""How many images a model is traced with."""


def counting_axis(one: Any, several: Any) -> int | None:
    """The axis of an input that is longer the more images there are, or None."""
    if isinstance(one, torch.Tensor) and isinstance(several, torch.Tensor) and one.ndim == several.ndim:
        return next((axis for axis, (a, b) in enumerate(zip(one.shape, several.shape, strict=True)) if a != b), None)
    both_lists = isinstance(one, (list, tuple)) and isinstance(several, (list, tuple))
    return 0 if both_lists and len(one) != len(several) else None


def is_counted(one: Any, several: Any, count: int) -> bool:
    """Whether an input is the same for any number of images, or as many times as long as for one."""
    axis = counting_axis(one, several)
    return axis is None or not isinstance(several, torch.Tensor) or several.shape[axis] == count * one.shape[axis]


def is_traced(value: Any) -> bool:
    """Whether it is a size or a tensor that has no value while a model is traced."""
    if isinstance(value, torch.Tensor) and functorch.is_batchedtensor(value):
        return is_traced(functorch.get_unwrapped(value))
    return isinstance(value, (FakeTensor, torch.SymInt))


# --- one by one -----------------------------------------------------------------------------------------------------

_METHODS = ("get_image_features", "get_audio_features")


@contextmanager
def each_by_itself(
    module: torch.nn.Module, one: Mapping[str, Any], several: Mapping[str, Any], count: int
) -> Iterator[None]:
    """While it is traced, the part of a model that sees takes its images one by one.

    Args:
        one: the model's inputs for one image, and what is computed of them before.
        several: those for `count` images of the same size, traced or fixed.
    """
    with ExitStack() as stack:
        for part, name in _parts(module):
            each = _each(getattr(part, name), one, several, count)
            if part is module:  # a class's, as in `rewritten`
                stack.enter_context(replaced(type(part), name, _method(getattr(type(part), name), each)))
            else:
                stack.enter_context(replaced(part, name, each))
        stack.enter_context(_Joined())
        yield


def _parts(module: Any) -> list[tuple[Any, str]]:
    """What takes images: the model's own method, or else its parts that do, or else itself."""
    base = getattr(module, "base_model", module)
    methods = [(base, name) for name in _METHODS if name in names_in(plain_forward(base))]
    if methods:
        return methods  # of a model that a head is on, too
    reads = "input_ids" in inspect.signature(base.forward).parameters
    inner = [part for part in base.children() if "pixel_values" in inspect.signature(part.forward).parameters]
    return [(part, "forward") for part in inner] if reads and inner else [(base, "forward")]


def _method(own: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """A function in the place of a class's own method."""

    @functools.wraps(own)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return method


def _each(
    method: Callable[..., Any], one: Mapping[str, Any], several: Mapping[str, Any], count: int
) -> Callable[..., Any]:
    signature = inspect.signature(method)

    @functools.wraps(method)
    def each(*args: Any, **kwargs: Any) -> Any:
        given = dict(signature.bind(*args, **kwargs).arguments)
        for name, parameter in signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                given.update(given.pop(name, {}))
        apart: dict[str, torch.Tensor] = {}
        alike = dict(given)
        for name, value in given.items():
            source = _source(name, value, several)
            axis = counting_axis(one.get(source), several.get(source)) if source else None
            if axis is None or source is None:
                continue
            if isinstance(value, torch.Tensor) and is_traced(value):
                if axis:  # MiniCPM-V's, side by side in one image: what its windows make of one is not that of all
                    raise CaptureError("images do not follow one another in the first dim", where=name, got=axis)
                apart[name] = value.reshape(count, one[source].shape[0], *value.shape[1:])
            else:
                alike[name] = one[source]
        if not apart:
            return method(*args, **kwargs)
        together = None
        with suppress(Exception):  # what it is made for is that this cannot be traced
            together = method(*args, **kwargs)
        return _joined(_mapped(lambda tensors: method(**{**alike, **tensors}), apart, count), together, count)

    return each


def _source(name: str, value: Any, several: Mapping[str, Any]) -> str | None:
    """Which of the model's inputs an argument is, or what is made of it place by place."""
    if not isinstance(value, torch.Tensor):
        return next((key for key, item in several.items() if item is value and isinstance(value, (list, tuple))), None)
    if is_traced(value):
        shape = [dim if isinstance(dim, int) else None for dim in value.shape]  # a text's length would be guarded
        found = [key for key, item in several.items() if isinstance(item, torch.Tensor) and list(item.shape) == shape]
    else:
        found = [key for key, item in several.items() if item is value]
    if not found:
        raise CaptureError("a part of the model takes what no input is", where=name, got=tuple(value.shape))
    return name if name in found else found[0]


def _mapped(image: Callable[[dict[str, torch.Tensor]], Any], apart: dict[str, torch.Tensor], count: int) -> Any:
    """What `image` makes of each image, with a dim more that counts them."""
    seen: list[Any] = []

    def mapped(tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        leaves, tree = pytree.tree_flatten(image(tensors))
        seen[:] = leaves, tree
        return tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))

    with _Whole(count):
        results = iter(torch.vmap(mapped)(apart))
    leaves, tree = seen
    return pytree.tree_unflatten([next(results) if isinstance(x, torch.Tensor) else x for x in leaves], tree)


def _joined(each: Any, together: Any, count: int) -> Any:
    """What was made of each image, as it is when all are taken together: one after the other, or in a list.

    Args:
        each: has a dim more that counts them.
        together: what the model makes of all, or None where that cannot be traced: what it calls features is then a
            list, and all else is one after the other.
    """
    if isinstance(each, MutableMapping):
        for name, value in each.items():
            known = together.get(name) if isinstance(together, Mapping) else None
            if known is None and name == "pooler_output" and isinstance(value, (list, tuple)):
                known = [None] * count
            each[name] = _joined(value, known, count)
        return each
    if isinstance(each, (list, tuple)):
        known = together if isinstance(together, (list, tuple)) else [None] * len(each)
        if len(each) == 1 and len(known) == count:
            return _Apart(each[0])
        return tuple(_joined(*pair, count) for pair in zip(each, known, strict=True))
    if not isinstance(each, torch.Tensor):
        return each
    axis = 0 if together is None else counting_axis(each[0], together)
    found = each if axis is None else each.movedim(0, axis).flatten(axis, axis + 1)
    if axis is None or (together is not None and found.shape != together.shape):
        shape = tuple(together.shape)
        raise CaptureError("what is made of images is not that of each", expected=shape, got=tuple(each.shape))
    return found


class _Apart(list[torch.Tensor]):
    """A tensor for each image, in a list; they are one tensor still."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__(tensor)
        self.tensor = tensor


class _Joined(TorchFunctionMode):
    """What is joined again was not taken apart."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.cat and isinstance(args[0], _Apart) and (*args[1:], *kwargs.values()) in ((), (0,)):
            return args[0].tensor.flatten(0, 1)
        return func(*args, **kwargs)


class _Whole(TorchFunctionMode):
    """Operations that vmap would take apart, or do image by image, are done outside of it for all images."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, torch.Tensor)]
        apart = [functorch.is_batchedtensor(tensor) for tensor in tensors]
        if func is _ATTENTION:
            if any(apart) and all(x.ndim == 4 or not own for x, own in zip(tensors, apart, strict=True)):
                return self._attention(*args, **kwargs)
        elif func is F.multi_head_attention_forward:
            if any(apart):
                return self._heads(**inspect.signature(func).bind(*args, **kwargs).arguments)
        elif func in _OF_ROWS and apart and apart[0] and not any(apart[1:]) and tensors[0] is args[0]:
            ndim = _OF_ROWS[func]
            if ndim in (None, args[0].ndim):
                return self._rows(ndim is not None, lambda x: func(x, *args[1:], **kwargs), args[0])
        return func(*args, **kwargs)

    def _rows(self, joined: bool, compute: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """What is computed of each row, or of all images' rows in one batch."""
        if not joined:
            return self._outside(compute, x)
        rows = (self.count, x.shape[0])
        return self._outside(lambda x: compute(x.flatten(0, 1)).unflatten(0, rows), x)

    def _attention(
        self, query: Any, key: Any, value: Any, attn_mask: Any = None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        rows = query.shape[0]
        apart = [x is not None and functorch.is_batchedtensor(x) for x in (query, key, value, attn_mask)]

        def joined(x: Any, apart: bool) -> Any:
            if x is None or (not apart and (x.ndim < 4 or x.shape[0] == 1)):
                return x
            if apart:
                return x.expand(self.count, rows, *x.shape[2:]).flatten(0, 1)
            return x.repeat(self.count, 1, 1, 1)

        def attention(*given: Any) -> torch.Tensor:
            found = _ATTENTION(*map(joined, given, apart), *args, **kwargs)
            return found.unflatten(0, (self.count, rows))

        return self._outside(attention, query, key, value, attn_mask)

    def _heads(self, query: torch.Tensor, **others: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`nn.MultiheadAttention`'s function, whose rows are the second dim and a mask's first."""
        others["query"] = query
        places = {"query": 1, "key": 1, "value": 1, "attn_mask": 0, "key_padding_mask": 0}
        rows = {name: axis for name, axis in places.items() if others.get(name) is not None}
        apart = [functorch.is_batchedtensor(others[name]) for name in rows]

        def attend(*given: torch.Tensor) -> torch.Tensor:
            for (name, axis), x, own in zip(rows.items(), given, apart, strict=True):
                x = x if own else x.expand(self.count, *x.shape)
                others[name] = x.movedim(0, axis).flatten(axis, axis + 1)
            found, _ = F.multi_head_attention_forward(**{**others, "need_weights": False})
            return found.unflatten(1, (self.count, -1)).movedim(1, 0)

        return self._outside(attend, *(others[name] for name in rows)), None

    def _outside(self, compute: Callable[..., torch.Tensor], *given: Any) -> torch.Tensor:
        """What is computed of all images' tensors at once: the vmap ends before it and begins anew after it."""
        level = functorch.current_level()
        given = tuple(
            predispatch._remove_batch_dim(x, level, self.count, 0)
            if isinstance(x, torch.Tensor) and functorch.is_batchedtensor(x)
            else x
            for x in given
        )
        predispatch._vmap_decrement_nesting()
        try:
            found = compute(*given)
        finally:
            predispatch._vmap_increment_nesting(self.count, "error")
        return predispatch._add_batch_dim(found, 0, level)


_ATTENTION = F.scaled_dot_product_attention  # transformers replaces it for an export by what calls it

_OF_ROWS = {F.linear: None, F.layer_norm: None, F.rms_norm: None, F.conv1d: 3, F.conv2d: 4, F.conv3d: 5}
"""Operations that do the same with each row of their first argument: of any number of dims, or with this many."""


# --- any number -----------------------------------------------------------------------------------------------------


def any_number(graphs: Sequence[Graph], name_dim: Callable[[str, int, int], str]) -> Graph:
    """The graph of any number of images, from those of `COUNTS`: they differ in numbers that are so many times theirs.

    Args:
        name_dim: names the dim of an input, from its name, the axis and how many dims it has.

    Raises:
        CaptureError: they differ in anything else.
    """
    few, more = graphs
    return _Joining(few, more, name_dim).graph()


class _Joining:
    """One walk over two graphs."""

    def __init__(self, few: Graph, more: Graph, name_dim: Callable[[str, int, int], str]) -> None:
        self.few, self.more, self.name_dim = few, more, name_dim
        self.symbol = ""
        self.counted = ("", 0, 0)  # the first input that has images, the axis, and how long it is for each
        self.sizes: dict[int, Node] = {}
        self.names: dict[str, str] = {}  # of the constants

    def graph(self) -> Graph:
        few, more = self.few, self.more
        self._same("names", [i.name for i in few.inputs], [i.name for i in more.inputs])
        self._same("parameters", few.params, more.params)
        self._same("outputs", few.outputs, more.outputs)
        self._same("number of constants", len(few.constants), len(more.constants))
        for name, other in zip(few.constants, more.constants, strict=True):
            array, same = few.constants[name], more.constants[other]
            if not np.array_equal(array, same, equal_nan=array.dtype.kind == "f"):
                raise _different(f"constant {name}", array.shape, same.shape)
            self.names[other] = name
        symbols = {**few.symbols}
        inputs = tuple(self._input(*pair, symbols) for pair in zip(few.inputs, more.inputs, strict=True))
        if not self.symbol:
            raise _different("inputs", "a size that counts images", "none")
        self._same("nodes", len(few.nodes), len(more.nodes))
        nodes = [self._node(*pair) for pair in zip(few.nodes, more.nodes, strict=True)]
        return simplify(replace(few, inputs=inputs, nodes=[*self.sizes.values(), *nodes], symbols=symbols))

    def _input(self, few: Input, more: Input, symbols: dict[str, tuple[int, int | None]]) -> Input:
        shape = list(few.shape)
        for axis, (a, b) in enumerate(zip(few.shape, more.shape, strict=True)):
            each = self._each(a, b, f"input {few.name}")
            if each is None:
                continue
            dim = self.name_dim(few.name, axis, len(shape))
            dim = dim if dim not in symbols and each == 1 else f"{few.name}_{axis}"
            shape[axis] = dim
            symbols[dim] = (each, None)
            if not self.symbol:
                self.symbol, self.counted = dim, (few.name, axis, each)
        return replace(few, shape=tuple(shape))

    def _node(self, few: Node, more: Node) -> Node:
        where = f"node {few.name} ({few.op})"
        self._same(where, (few.op, few.outputs), (more.op, more.outputs))
        infos = tuple(
            ValueInfo(a.dtype, tuple(self._dim(*dims, where) for dims in zip(a.shape, b.shape, strict=True)))
            for a, b in zip(few.infos, more.infos, strict=True)
        )
        args = self._tree(few.args, more.args, where)
        return replace(few, args=args, kwargs=self._tree(few.kwargs, more.kwargs, where), infos=infos)

    def _tree(self, few: Any, more: Any, where: str) -> Any:
        if isinstance(few, Mapping) and isinstance(more, Mapping) and few.keys() == more.keys():
            return {key: self._tree(value, more[key], where) for key, value in few.items()}
        if isinstance(few, tuple) and isinstance(more, tuple) and len(few) == len(more):
            return tuple(self._tree(a, b, where) for a, b in zip(few, more, strict=True))
        if isinstance(more, Ref):
            more = Ref(self.names.get(more.name, more.name))
        each = self._each(few, more, where)
        return few if each is None else self._size(each)

    def _dim(self, few: Any, more: Any, where: str) -> Any:
        each = self._each(few, more, where)
        if each is None:
            return few
        own = self.counted[2]
        times, rest = divmod(each, own)
        if rest:
            return f"{each}*({self.symbol}//{own})"
        return self.symbol if times == 1 else f"{times}*{self.symbol}"

    def _each(self, few: Any, more: Any, where: str) -> int | None:
        """How much of a number is there for each image, or None where it is the same for any number of them."""
        if type(few) is type(more) and few == more:
            return None
        if type(few) is not int or type(more) is not int or few % COUNTS[0] or few * COUNTS[1] != more * COUNTS[0]:
            raise _different(where, few, more)
        return few // COUNTS[0]

    def _size(self, each: int) -> Ref:
        name, axis, own = self.counted
        steps: list[tuple[int, str, tuple[Any, ...]]] = [(own, "sym_size.int", (Ref(name), axis))]
        if own != 1:
            steps.append((1, "sym.floordiv", (Ref(f"images.{own}"), own)))
        if each not in (1, own):
            steps.append((each, "sym.mul", (Ref("images.1"), each)))
        for count, op, args in steps:
            info = (ValueInfo("size"),)
            self.sizes.setdefault(count, Node(op, args, {}, (f"images.{count}",), info))
        return Ref(f"images.{each}")

    @staticmethod
    def _same(where: str, few: Any, more: Any) -> None:
        if few != more:
            raise _different(where, few, more)


def _different(where: str, few: Any, more: Any) -> CaptureError:
    return CaptureError(
        "the model does not do the same for each image",
        where=where,
        expected=f"with {COUNTS[0]}: {few}"[:200],
        got=f"with {COUNTS[1]}: {more}"[:200],
    )
