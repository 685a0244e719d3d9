"""While a model is traced: what its Python decides by tensors' values, or spells out for other exporters, as tensors.

Each rewrite is found by how a module is written, never by its name, holds while it is traced, and computes the same.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from zoo.errors import CaptureError

__all__ = ["Rewrites", "names_in", "plain_forward", "replaced", "rewritten"]


@dataclass
class Rewrites:
    """What is said otherwise while a module is traced, besides what always is.

    Args:
        masked: transformers made a mask of ones for attention to everything, where it makes none untraced.
        unmasked: it makes none when traced either; some models cannot do with one.
    """

    masked: bool = False
    unmasked: bool = False


@contextmanager
def rewritten(module: torch.nn.Module) -> Iterator[Rewrites]:
    """The module as it can be traced; what it was before, after it."""
    rewrites = Rewrites()
    with ExitStack() as stack:
        stack.enter_context(replaced(torch.nn.Module, "to", _to))
        for part in module.modules():
            forward = plain_forward(part)
            if {"nonzero", "index_add_"} <= names_in(forward) and _loops(part):
                stack.enter_context(replaced(part, "forward", _of_experts(part, forward)))
            elif {"topk", "tolist"} <= names_in(forward):
                stack.enter_context(replaced(part, "forward", _counting(part, forward)))
            elif _splits(part, forward):
                stack.enter_context(replaced(part, "forward", _under(_Groups, part, forward)))
            elif lines := _guarded_writes(forward):
                guarded = functools.partial(_Guarded, forward.__code__, lines)
                stack.enter_context(replaced(part, "forward", _under(guarded, part, forward)))
            elif _clamps(part, forward):
                stack.enter_context(replaced(part, "forward", _under(_Clamping, part, forward)))
            check = getattr(type(part), _CHECKED, None)
            if check and {"numel", "ValueError"} <= names_in(check):
                stack.enter_context(replaced(part, _CHECKED, _under(_Agreeing, part, check)))
        if masks := sys.modules.get("transformers.masking_utils"):
            stack.enter_context(replaced(masks, _SKIPPED, _skipped(getattr(masks, _SKIPPED), rewrites)))
        if caches := sys.modules.get("transformers.cache_utils"):
            cls = type(module)  # not the module's own: transformers' exporter replaces and deletes that
            stack.enter_context(replaced(cls, "forward", _without(caches.Cache, cls.forward)))
        yield rewrites


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of a module or an object, otherwise while this lasts."""
    own, old = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, old)
        else:
            delattr(owner, name)


def plain_forward(part: torch.nn.Module) -> Callable[..., Any]:
    """The class's own forward, under what transformers puts around it."""
    return inspect.unwrap(type(part).forward)


def names_in(function: Any) -> set[str]:
    """What a function's code speaks of, that of the functions and comprehensions in it included."""
    code = getattr(function, "__code__", function)
    if not isinstance(code, CodeType):
        return set()
    return set(code.co_names).union(*map(names_in, code.co_consts))


# --- moves ----------------------------------------------------------------------------------------------------------

_module_to = torch.nn.Module.to


def _to(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
    """`nn.Module.to`, which does nothing for a dtype that the module has: a trace refuses to swap parameters."""
    if len(args) == 1 and isinstance(args[0], torch.dtype) and not kwargs:
        tensors = [*self.parameters(), *self.buffers()]
        if all(tensor.dtype == args[0] for tensor in tensors if tensor.is_floating_point()):
            return self
    return _module_to(self, *args, **kwargs)


# --- caches -----------------------------------------------------------------------------------------------------------


def _without(kind: type, forward: Callable[..., Any]) -> Callable[..., Any]:
    """A cache that a model hands out though it was told to use none is no output."""

    @functools.wraps(forward)
    def without(*args: Any, **kwargs: Any) -> Any:
        found = forward(*args, **kwargs)
        if isinstance(found, Mapping) and any(isinstance(value, kind) for value in found.values()):
            return {name: value for name, value in found.items() if not isinstance(value, kind)}
        return found

    return without


# --- what a mask selects ----------------------------------------------------------------------------------------------


def _guarded_writes(forward: Callable[..., Any]) -> set[int]:
    """The lines of a function that ask whether a mask has any, only to write where it has."""
    if "any" not in names_in(forward):
        return set()
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(forward)))
    except (OSError, SyntaxError):  # without source
        return set()
    first = forward.__code__.co_firstlineno
    return {first + node.lineno - 1 for node in ast.walk(tree) if isinstance(node, ast.If) and _is_guarded(node)}


def _is_guarded(node: ast.If) -> bool:
    match node.test:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=mask), attr="any"), args=[], keywords=[]):
            return not node.orelse and all(_writes_at(mask, statement) for statement in node.body)
    return False


def _writes_at(mask: str, statement: ast.stmt) -> bool:
    match statement:
        case ast.Assign(targets=[ast.Subscript(value=ast.Name(), slice=ast.Name(id=written))]):
            return written == mask
    return False


class _Guarded(TorchFunctionMode):
    """A write where a mask has any is none where it has none: it need not be asked."""

    def __init__(self, code: CodeType, lines: set[int]) -> None:
        super().__init__()
        self.code, self.lines = code, lines

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.any and isinstance(args[0], FakeTensor):
            frame = sys._getframe()
            while frame.f_back and frame.f_code is not self.code:
                frame = frame.f_back
            if frame.f_lineno in self.lines:
                return True
        return func(*args, **(kwargs or {}))


def _clamps(part: torch.nn.Module, forward: Callable[..., Any]) -> bool:
    """Whether a forward looks at its values and clamps them if some are not finite, as many do in float16."""
    names = names_in(forward)
    looks = "clamp" in names and "where" not in names and not {"isfinite", "isinf"}.isdisjoint(names)
    return looks and any(param.dtype == torch.float16 for param in part.parameters())


class _Clamping(TorchFunctionMode):
    """What is clamped if its values ask for it: both are computed, and one is chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.mask: Any = None
        self.asked: Any = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in (torch.isfinite, torch.isinf) and args[0].dtype == torch.float16:
            self.mask = found
        elif func in (torch.Tensor.all, torch.Tensor.any) and args[0] is self.mask:
            self.asked = found if func is torch.Tensor.any else ~found
            return func is torch.Tensor.any  # the branch that clamps
        elif func is torch.clamp and self.asked is not None:
            asked, self.asked = self.asked, None
            return torch.where(asked, found, args[0])
        return found


_CHECKED = "get_placeholder_mask"


class _Agreeing(TorchFunctionMode):
    """As many places as there are features for them, which a model checks: the tracer learns it so."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.Tensor.numel and isinstance(found, torch.SymInt) and free_unbacked_symbols(found):
            return _Number(found)
        return found


class _Number:
    """How many values a mask selects, which is what it is compared with."""

    def __init__(self, size: torch.SymInt) -> None:
        self.size = size

    def __ne__(self, other: Any) -> bool:
        torch._check(self.size == getattr(other, "size", other))
        return False


# --- masks of ones ----------------------------------------------------------------------------------------------------

_SKIPPED = "_ignore_bidirectional_mask_sdpa"


def _skipped(asked: Callable[..., bool], rewrites: Rewrites) -> Callable[..., bool]:
    """transformers' own rule, which makes no exception of a trace where no value decides."""

    def skipped(padding_mask: Any, kv_length: Any, local_attention_size: Any = None) -> bool:
        if padding_mask is not None or local_attention_size is not None:
            return asked(padding_mask, kv_length, local_attention_size)
        rewrites.masked = True
        return rewrites.unmasked

    return skipped


# --- experts ----------------------------------------------------------------------------------------------------------


def _loops(part: Any) -> bool:
    """Whether the class's own forward is what runs: transformers has others, and uses them unless told not to."""
    return not hasattr(part, "_is_expert_parallel") or part.config._experts_implementation == "eager"


def _of_experts(part: torch.nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a module that loops over those of its experts that some token was sent to."""
    from transformers.integrations.moe import grouped_mm_experts_forward

    if _is_grouped(part):

        def grouped(*args: Any, **kwargs: Any) -> Any:
            return grouped_mm_experts_forward(part, *args, **kwargs)

        return grouped

    return _under(_AllHit, part, forward)


def _under(
    mode: Callable[[], TorchFunctionMode], part: torch.nn.Module, forward: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(getattr(part, forward.__name__))
    def under(*args: Any, **kwargs: Any) -> Any:
        with mode():
            return forward(part, *args, **kwargs)

    return under


def _is_grouped(part: Any) -> bool:
    """Whether transformers' product of groups of tokens computes what the loop does: it knows the weights' layout, and
    the loop, which may compute in a wider dtype, has none but theirs.
    """
    weights = [getattr(part, name, None) for name in ("gate_up_proj", "down_proj")]
    return hasattr(part, "_is_expert_parallel") and all(
        isinstance(weight, torch.nn.Parameter) and weight.ndim == 3 and weight.dtype == torch.float32
        for weight in weights
    )


class _AllHit(TorchFunctionMode):
    """Experts all take all tokens, and what those that were not sent to one make of them is not added.

    Of the loop over `nonzero()` of the experts, each turn asks `torch.where` of its mask for places and tokens: it gets
    all of them, and where it adds its rows at those tokens, zeros where the mask is not set. An expert's row depends on
    its token alone, so the other rows are as they were. Anything else that such a loop could do is refused.
    """

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[tuple[torch.Tensor, torch.Tensor]] = []  # tokens -> which of them the mask has

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.nonzero, torch.nonzero) and args[0].ndim == 1 and isinstance(args[0].shape[0], int):
            return _Hits(args[0].shape[0])
        if func is torch.where and len(args) == 1 and not kwargs:
            return self._where(args[0])
        if func is torch.Tensor.index_add_:
            return self._add(*args, **kwargs)
        leaves = pytree.tree_leaves((args, kwargs))
        if leaves and _is_known(leaves[0]) and not any(isinstance(leaf, FakeTensor) for leaf in leaves):
            with unset_fake_temporarily(), disable_proxy_modes_tracing():  # which expert it is has a value
                return func(*args, **kwargs)
        if func is torch.Tensor.__getitem__ and _is_known(args[1]):
            # a mask may have a row more than there are experts, which no token is in
            expert = min(int(args[1]), args[0].shape[0] - 1)
            return args[0][expert] if args[1].ndim == 0 else args[0][expert : expert + 1]
        return func(*args, **kwargs)

    def _where(self, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if mask.ndim != 2:
            raise _refused("places in a mask that is not [places, tokens]")
        places, tokens = mask.shape
        numbers = torch.arange(places * tokens, device=mask.device)
        token = numbers % tokens
        self.masks.append((token, mask.reshape(-1) != 0))
        return torch.div(numbers, tokens, rounding_mode="floor"), token

    def _add(self, into: torch.Tensor, dim: int, index: torch.Tensor, source: torch.Tensor, **more: Any) -> Any:
        mask = next((mask for token, mask in self.masks if token is index), None)
        if mask is None or dim != 0:
            raise _refused("adding rows at other places than the tokens")
        sent = mask.reshape(-1, *(1 for _ in source.shape[1:]))
        return torch.Tensor.index_add_(into, dim, index, torch.where(sent, source, torch.zeros_like(source)), **more)


class _Hits:
    """The numbers of the experts, each in a tensor of one; all that can be done with it is to loop over it."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[torch.Tensor]:
        with unset_fake_temporarily(), disable_proxy_modes_tracing():
            numbers = [torch.tensor([number]) for number in range(self.count)]
        return iter(numbers)


def _is_known(value: Any) -> bool:
    """Whether it is a single whole number with a value, in a tensor."""
    return (
        isinstance(value, torch.Tensor)
        and not isinstance(value, (FakeTensor, torch.nn.Parameter))
        and value.numel() == 1
        and value.ndim <= 1
        and not value.is_floating_point()
    )


def _counting(part: torch.nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a module that counts the tokens of each expert in a list: the counts stay a tensor."""

    def counting(*args: Any, **kwargs: Any) -> Any:
        tolist = FakeTensor.tolist  # a method of its own, which no mode sees
        with replaced(FakeTensor, "tolist", lambda self: self if self.ndim == 1 else tolist(self)):
            return forward(part, *args, **kwargs)

    return counting


def _splits(part: torch.nn.Module, forward: Callable[..., Any]) -> bool:
    """Whether it has a matrix for each of the parts that it splits the tokens into."""
    stacked = any(weight.ndim == 3 for weight in part.parameters(recurse=False))
    return {"split", "linear", "cat"} <= names_in(forward) and stacked


class _Groups(TorchFunctionMode):
    """What is split by a tensor of counts is multiplied in one product of groups."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.split and isinstance(args[1], torch.Tensor):
            if (args[2] if len(args) > 2 else kwargs.get("dim", 0)) != 0:
                raise _refused("tokens that are not the first dim")
            return [_Group(args[0], args[1], number) for number in range(args[1].shape[0])]
        return func(*args, **kwargs)


@dataclass
class _Group:
    """The tokens of one expert, which can only be multiplied by its matrix, then joined with those of all others."""

    tokens: torch.Tensor
    counts: torch.Tensor
    number: int
    weight: torch.Tensor | None = None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from transformers.integrations.moe import _grouped_linear

        if func is torch.nn.functional.linear and len(args) == 2 and not kwargs and args[0].weight is None:
            return cls(args[0].tokens, args[0].counts, args[0].number, args[1])
        if func is torch.cat and (args[1:] or (0,)) == (0,) and (kwargs or {}).get("dim", 0) == 0:
            groups = args[0]
            first = groups[0]
            same = all(group.tokens is first.tokens and group.counts is first.counts for group in groups)
            if same and [group.number for group in groups] == list(range(first.counts.shape[0])):
                ends = torch.cumsum(first.counts, 0, dtype=torch.int32)
                return _grouped_linear(first.tokens, torch.stack([group.weight for group in groups]), ends)
        raise _refused(f"{getattr(func, '__name__', func)} of the tokens of one expert")


def _refused(what: str) -> CaptureError:
    return CaptureError(
        "the model loops over its experts in a way that is not known",
        got=what,
        do="give the tokens of each expert to torch.nn.functional.grouped_mm",
    )
