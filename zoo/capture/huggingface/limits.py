"""What a config.json may ask for: nothing of a hub, and no more than the checkpoint beside it can hold.

A config is data that somebody else wrote. transformers reads some of its fields as places to fetch code or weights from
(attention kernels, remote code, backbones), and builds whatever sizes it names. Here such fields are taken out, and
sizes are compared with the file's before anything is built.
"""

from __future__ import annotations

import functools
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.errors import ConfigError, ZooError

__all__ = ["Bounded", "Size", "check_counts", "harmless", "refusing", "without_hub"]


class Size(NamedTuple):
    """How much a checkpoint holds: how many tensors, and how many numbers in them."""

    tensors: int
    numbers: int


_REACHING = (
    "auto_map", "trust_remote_code", "code_revision", "custom_pipelines", "use_kernels", "kernel_config",
    "fusion_config", "name_or_path", "_name_or_path", "_commit_hash", "use_pretrained_backbone", "pretrained",
    "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "transformers_weights", "distributed_config",
)  # fmt: skip
"""Fields of which transformers or timm fetches something, or decides to run what it fetched."""

_CHOOSING = ("attn_implementation", "experts_implementation")
"""Parts of names of fields that choose an implementation: one with a "/" is a repository of kernels."""

_DEPTH = 64  # how deep configs may nest: real ones do thrice


def harmless(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A config's fields without those that reach out, at every depth.

    Raises:
        ConfigError: it nests too deep, or its backbone is a place and not an architecture.
    """
    return _harmless(fields, 0)


def _harmless(tree: Any, depth: int) -> Any:
    if depth > _DEPTH:
        raise ConfigError("the config nests too deep", where="config.json", expected=f"at most {_DEPTH} levels")
    if isinstance(tree, Mapping):
        for name in ("backbone", "architecture"):  # timm reads a scheme before the name: hf-hub:, local-dir:
            if isinstance(value := tree.get(name), str) and ":" in value:
                raise ConfigError(
                    "the config fetches its backbone",
                    where=f"config.json, {name}",
                    expected="the name of an architecture",
                    got=value,
                )
        return {key: _harmless(value, depth + 1) for key, value in tree.items() if not _reaches(key)}
    return [_harmless(item, depth + 1) for item in tree] if isinstance(tree, list) else tree


def _reaches(key: Any) -> bool:
    return isinstance(key, str) and (key in _REACHING or any(part in key for part in _CHOOSING))


_inside = threading.local()


@contextmanager
def without_hub() -> Iterator[None]:
    """transformers asks no hub in this thread: neither for a backbone's config nor for kernels to run."""
    _guard()
    before = getattr(_inside, "depth", 0)
    _inside.depth = before + 1
    try:
        yield
    finally:
        _inside.depth = before


class _NoHub:
    """What transformers' backbones get for the hub."""

    def repo_exists(self, name: str, *_: Any, **__: Any) -> bool:
        if "/" in str(name):
            raise ConfigError(
                "the config names a backbone of the hub, whose config would have to be fetched",
                where="config.json, backbone",
                got=name,
                do="put that repository's config.json under backbone_config",
            )
        return False  # an architecture of timm

    def __getattr__(self, name: str) -> Any:
        raise ConfigError("the config asks for something of the hub", where="config.json", got=name)


@functools.cache
def _guard() -> None:
    from transformers import backbone_utils
    from transformers.integrations import hub_kernels

    def no_kernel(name: str, *_: Any, **__: Any) -> Any:
        raise FileNotFoundError(f"the kernel {name!r} is not fetched")

    for module, name, instead in ((backbone_utils, "hf_api", lambda: _NoHub()), (hub_kernels, "get_kernel", no_kernel)):
        own = getattr(module, name, None)
        if own is not None:
            setattr(module, name, _unless_inside(own, instead))


def _unless_inside(own: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(own)
    def called(*args: Any, **options: Any) -> Any:
        return (instead if getattr(_inside, "depth", 0) else own)(*args, **options)

    return called


_LAYERS = re.compile(r"(.*_)?(layers?|blocks?|depths?|repeats?|group_num)")
_COUNTS = re.compile(r"(num|n)_.*|(.*_)?(labels|heads|experts)")
_MANY = 256  # layers that may share their tensors
_FREE = 1 << 16  # what any model may have beside what a file holds


def check_counts(fields: Mapping[str, Any], size: Size) -> None:
    """Compare numbers of layers, labels and the like with what a checkpoint holds.

    Raises:
        ConfigError: naming the field.
    """
    for name, value in _numbers(fields, ""):
        leaf = name.rpartition(".")[2]
        if _LAYERS.fullmatch(leaf) and value > max(_MANY, size.tensors):
            raise _too_much(name, value, f"the checkpoint has {size.tensors} tensors")
        if _COUNTS.fullmatch(leaf) and value > max(size.numbers, _FREE):
            raise _too_much(name, value, f"the checkpoint has {size.numbers} numbers")


def _too_much(name: str, value: int, has: str) -> ConfigError:
    return ConfigError(
        "the config asks for more than the checkpoint holds",
        where=f"config.json, {name}",
        expected=has,
        got=value,
        do="check that the config belongs to these weights",
    )


def _numbers(tree: Any, at: str) -> Iterator[tuple[str, int]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _numbers(value, f"{at}.{key}" if at else str(key))
    elif isinstance(tree, list):
        for item in tree:
            yield from _numbers(item, at)
    elif isinstance(tree, int) and not isinstance(tree, bool):
        yield at, tree


class Bounded(TorchDispatchMode):
    """Refuses to make tensors larger than a model of a checkpoint's size, or than an example, can need.

    Args:
        fields: the config's, to name those that a refused size comes from.
        size: of the checkpoint; None where nothing but examples is made.
        kind: the error.
    """

    def __init__(self, fields: Mapping[str, Any], size: Size | None, kind: type[ZooError] = ConfigError) -> None:
        super().__init__()
        self.fields, self.kind = fields, kind
        tensors, numbers = size or Size(0, 0)
        self.largest = 4 * numbers + (1 << 26)
        self.most = 8 * numbers + (1 << 28)
        self.count = 16 * tensors + (1 << 13)
        self.made = self.tensors = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shape = next((arg for arg in args if isinstance(arg, (list, tuple)) and _is_shape(arg)), None)
        if shape is not None and not any(isinstance(leaf, torch.Tensor) for leaf in pytree.arg_tree_leaves(*args)):
            self.take(tuple(shape), math.prod(shape))
        elif func._schema.name == "aten::arange":
            numbers = [arg for arg in args if isinstance(arg, (int, float))]
            start, stop, step = (0, *numbers[:1], 1) if len(numbers) == 1 else (*numbers, 1)[:3]
            self.take((), int(abs((stop - start) / (step or 1))))
        return func(*args, **(kwargs or {}))

    def take(self, shape: tuple[int, ...], numbers: int) -> None:
        self.made += numbers
        self.tensors += 1
        if numbers <= self.largest and self.made <= self.most and self.tensors <= self.count:
            return
        sizes = {value for value in (*shape, numbers) if value > 1}
        named = [f"{name} = {value}" for name, value in _numbers(self.fields, "") if value in sizes]
        what = f"a tensor of {list(shape) or numbers}" if numbers > self.largest else f"{self.tensors} tensors"
        raise self.kind(
            "the config asks for more than the checkpoint holds",
            where=", ".join(("config.json", *named[:8])),
            expected=f"at most {self.largest} numbers in a tensor, {self.most} in {self.count} tensors",
            got=what,
            do="check that the config belongs to these weights",
        )


def _is_shape(arg: Any) -> bool:
    return all(isinstance(item, int) and not isinstance(item, bool) for item in arg)


@contextmanager
def refusing(fields: Mapping[str, Any], what: str, kind: type[ZooError] = ConfigError) -> Iterator[None]:
    """Whatever transformers raises when a config's fields are of wrong types or sizes is an error that names them."""
    try:
        yield
    except ZooError:
        raise
    except Exception as error:
        raise kind(
            what, where=_where(error, fields), got=f"{type(error).__name__}: {error}", do="correct the config"
        ) from error


def _where(error: BaseException, fields: Mapping[str, Any]) -> str:
    """The fields that the line which failed reads, as far as it shows."""
    import linecache

    names: list[str] = []
    trace = error.__traceback__
    while trace is not None:
        line = linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        if found := [name for name in re.findall(r"(?:config|self)\.(\w+)", line) if name in fields]:
            names = found
        trace = trace.tb_next
    if isinstance(error, KeyError) and error.args and isinstance(error.args[0], str):
        names += [name for name, value in fields.items() if value == error.args[0]]
    said = re.findall(r"\w+", str(error))
    names += [name for name in fields if name in said]
    return ", ".join(["config.json", *dict.fromkeys(f"{name} = {_short(fields[name])}" for name in names)])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
