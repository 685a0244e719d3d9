"""A module as it is captured: without wrappers, called by its inputs' names; and whose its tensors are."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from zoo.arrays import is_spread
from zoo.errors import CaptureError

__all__ = ["Outside", "called", "memory", "tensors_of", "trainable", "unwrapped"]


@contextmanager
def unwrapped(module: Any) -> Iterator[torch.nn.Module]:
    """The module inside torch.compile, DataParallel, DistributedDataParallel and AveragedModel, also of its parts:
    these change how it is run and what its parameters are called, not what it computes.

    Raises:
        CaptureError: it is no module, or one whose parameters are spread over processes.
    """
    if not isinstance(module, torch.nn.Module):
        raise CaptureError(
            "only a module can be captured",
            expected="a torch.nn.Module, an ExportedProgram, or what zoo.load takes",
            got=type(module).__name__,
            do="put the computation into the forward of a torch.nn.Module",
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise CaptureError(
            "a module of TorchScript cannot be captured",
            where=type(module).__name__,
            do="capture the nn.Module that it was made from",
        )
    module = _inner(module)
    swapped = []
    try:
        for parent in list(module.modules()):
            for name, part in list(parent._modules.items()):
                if part is not None and (inner := _inner(part)) is not part:
                    swapped.append((parent, name, part))
                    parent._modules[name] = inner
        for name, tensor in tensors_of(module).items():
            if is_spread(tensor):
                raise CaptureError(
                    "a parameter is spread over several processes",
                    where=name,
                    got=type(tensor).__name__,
                    do="gather the whole model in one process first",
                )
        yield module
    finally:
        for parent, name, part in swapped:
            parent._modules[name] = part


def _inner(module: torch.nn.Module) -> torch.nn.Module:
    while True:
        kind = type(module).__name__
        if kind == "FullyShardedDataParallel":
            raise CaptureError(
                "the parameters are spread over several processes",
                where=kind,
                do="gather the whole model in one process first",
            )
        name = _WRAPPERS.get(f"{type(module).__module__}.{kind}")
        inner = getattr(module, name) if name else None
        if not isinstance(inner, torch.nn.Module):
            return module
        module = inner


_WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
}
"""Class -> what holds the module that it calls."""


@contextmanager
def called(module: torch.nn.Module, inputs: Mapping[str, Any]) -> Iterator[list[str]]:
    """The module's forward takes `inputs` by name, whatever it is declared with.

    What a forward(*args) or forward(x, /) takes by position is handed over in the order of `inputs`. The names are
    given that only a forward's **kwargs took: nothing says that it knows them.

    Raises:
        CaptureError: the forward has no such input.
    """
    forward = module.forward
    declared = inspect.signature(forward).parameters
    kinds = [parameter.kind for parameter in declared.values()]
    named = [
        name for name, parameter in declared.items() if parameter.kind in (_EITHER, inspect.Parameter.KEYWORD_ONLY)
    ]
    by_position = [name for name, parameter in declared.items() if parameter.kind == inspect.Parameter.POSITIONAL_ONLY]
    other = [name for name in inputs if name not in named and name not in by_position]
    if not other and not any(name in inputs for name in by_position):
        yield []
        return
    loose = inspect.Parameter.VAR_KEYWORD in kinds
    if other and not loose and inspect.Parameter.VAR_POSITIONAL not in kinds:
        lacking = [
            repr(name)
            for name in (*by_position, *named)
            if declared[name].default is inspect.Parameter.empty and name not in inputs
        ]
        raise CaptureError(
            "the module's forward has no such input",
            where=type(module).__name__,
            expected=", ".join([*by_position, *named]),
            got=", ".join(other) + (f"; without its argument: {', '.join(lacking)}" if lacking else ""),
        )
    first = [name for name in by_position if name in inputs]
    if other and not loose:  # what stands before *args has to be given by position, too
        first += [name for name in declared if declared[name].kind == _EITHER and name in inputs]
        first += other

    def by_name(**given: Any) -> Any:
        return forward(*[given.pop(name) for name in first], **given)

    by_name.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in inputs]
    )
    before = vars(module).get("forward")
    vars(module)["forward"] = by_name  # past the __setattr__ of classes that have their own
    try:
        yield other if loose else []
    finally:
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before


_EITHER = inspect.Parameter.POSITIONAL_OR_KEYWORD


def tensors_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers by every name that they have."""
    for part in list(module.modules()):
        part.named_parameters()  # Keras registers its variables when it is first asked for them
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def trainable(module: torch.nn.Module) -> set[str]:
    """The parameters that training changes, by name: all but those that hold no floats, that Keras says are none, or
    that are frozen while others are not. A module that is frozen as a whole is so for inference.
    """
    params = dict(module.named_parameters(remove_duplicate=False))
    frozen = {name for name, tensor in params.items() if not tensor.requires_grad}
    if len(frozen) == len(params):
        frozen = {name for name in frozen if "_torch_params" in name.split(".")}  # where Keras keeps its variables
    return {name for name, tensor in params.items() if name not in frozen and tensor.is_floating_point()}


Memory = tuple[Any, ...]


def memory(tensor: torch.Tensor) -> Memory | None:
    """What two tensors have in common that are the same numbers at the same place; None where there are none."""
    start = _start(tensor)
    if start is None:
        return None
    return start, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _start(tensor: torch.Tensor) -> int | None:
    from torch._subclasses.fake_tensor import FakeTensor

    if isinstance(tensor, FakeTensor) or tensor.is_meta or tensor.layout != torch.strided or not tensor.numel():
        return None
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):  # subclasses that only wrap others
        return None


class Outside:
    """The memory of every tensor in this process that training may change, looked for once."""

    def __init__(self, registered: Mapping[str, torch.Tensor]) -> None:
        self._registered = {_start(tensor): name for name, tensor in registered.items()}
        self._others: set[int | None] | None = None

    def check(self, name: str, tensor: torch.Tensor, owner: torch.nn.Module | None) -> None:
        """Nothing if `tensor`, which is to be a constant of a graph, is one.

        Raises:
            CaptureError: it is a part of a parameter, or what training changes without being registered as such.
        """
        start = _start(tensor)
        if start is None:
            return
        if start in self._registered:
            raise CaptureError(
                "the module keeps a view of one of its parameters, which would become a constant",
                where=_path_to(owner, tensor) or name,
                got=f"{list(tensor.shape)} of {self._registered[start]}",
                do="take the view in forward",
            )
        if self._others is None:
            self._others = {
                _start(other)
                for other in gc.get_objects()
                if issubclass(type(other), torch.Tensor) and other.requires_grad
            }
        if tensor.requires_grad or start in self._others:
            raise CaptureError(
                "the module computes with a trainable tensor that is not one of its parameters",
                where=_path_to(owner, tensor) or name,
                got=f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}",
                do="register it (nn.Parameter, nn.ParameterList, nn.ModuleList), compute it in forward, "
                "or detach it if it is a constant",
            )


def _path_to(module: torch.nn.Module | None, tensor: torch.Tensor) -> str | None:
    """How Python reaches a tensor from a module: "heads[0].weight"; None if it does not by attributes and lists."""
    wanted, seen = memory(tensor), set()
    pending: list[tuple[str, Any]] = [("", module)] if module is not None else []
    while pending:
        path, found = pending.pop(0)
        if isinstance(found, torch.Tensor):
            if memory(found) == wanted:
                return path
            continue
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, torch.nn.Module):
            parts = {**vars(found), **found._parameters, **found._buffers, **found._modules}
            pending += [(f"{path}.{name}" if path else name, part) for name, part in parts.items() if name[:1] != "_"]
        elif isinstance(found, Mapping):
            pending += [(f"{path}[{key!r}]", part) for key, part in found.items()]
        elif isinstance(found, (list, tuple)):
            pending += [(f"{path}[{index}]", part) for index, part in enumerate(found)]
    return None
