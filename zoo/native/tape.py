"""A run of a graph as a list of kernel calls with fixed addresses, to be run again on other values of the same shapes.

The first run with inputs of some shapes goes through the graph in Python and records; later ones copy the inputs into
place and let the library run the list. What depends on shapes and parameters alone is computed while recording and
kept. Views cost nothing then, being addresses. Results of dead values give their memory to later ones, as NumPy's own
reference counts tell.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from zoo.native import library as lib

__all__ = ["Scratch", "Tape", "call", "empty", "owner", "recording", "step", "taped", "unowned"]

_LOCAL = threading.local()


def call(args: Any, *used: Any) -> None:
    """Run a kernel, and record it if a tape runs. `used` is what its pointers point into."""
    lib.run(args)
    tape = _LOCAL.__dict__.get("tape")
    if tape is not None:
        tape.add_kernel(args, used)


def empty(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """Memory for a result: the tape's, if one runs."""
    tape = _LOCAL.__dict__.get("tape")
    return np.empty(shape, dtype) if tape is None else tape.memory.empty(shape, np.dtype(dtype))


def taped() -> bool:
    """Whether what this thread does is kept for other calls."""
    tape = _LOCAL.__dict__.get("tape")
    return tape is not None and not isinstance(tape, Scratch)


def step(function: Callable[..., Any], *arrays: Any) -> None:
    """Call function(*arrays), which works in place, and record it."""
    function(*arrays)
    tape = _LOCAL.__dict__.get("tape")
    if tape is not None:
        tape.add_step(function, arrays)


class recording:
    """While it is open, kernels that this thread calls go onto a tape (none: onto no tape)."""

    def __init__(self, tape: Tape | None) -> None:
        self.tape = tape

    def __enter__(self) -> None:
        self.before = _LOCAL.__dict__.get("tape")
        _LOCAL.tape = self.tape

    def __exit__(self, *_: Any) -> None:
        _LOCAL.tape = self.before


class Tape:
    """Recorded steps, the memory they work on, and where inputs go in and outputs come out."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.inputs: dict[str, np.ndarray] = {}
        self.outputs: dict[str, np.ndarray] = {}
        self.kept: list[Any] = []
        self.segments: list[Any] = []  # a list of kernels' arguments, or (function, arrays)

    def add_kernel(self, args: Any, used: tuple[Any, ...]) -> None:
        self.kept.extend(x for x in used if x is not None and owner(x) is None)
        if not self.segments or not isinstance(self.segments[-1], list):
            self.segments.append([])
        self.segments[-1].append(args)

    def add_step(self, function: Callable[..., Any], arrays: tuple[Any, ...]) -> None:
        self.segments.append((function, tuple(unowned(x) for x in arrays)))

    def finish(self, outputs: dict[str, np.ndarray]) -> None:
        """Turn the recorded kernels into arrays that the library runs through."""
        self.outputs = {name: unowned(array) for name, array in outputs.items()}
        loaded = lib.library()
        self.program: list[Any] = []
        for segment in self.segments:
            if not isinstance(segment, list):
                self.program.append(segment)
                continue
            steps = (lib.Step * len(segment))()
            for place, args in zip(steps, segment, strict=True):
                place.kernel_address = ctypes.cast(getattr(loaded, args.kernel), ctypes.c_void_p).value
                place.args = ctypes.addressof(args)
            self.program.append((steps, segment))

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, array in inputs.items():
            np.copyto(self.inputs[name], array)
        failed = ctypes.c_int64()
        zoo_run = lib.library().zoo_run
        for first, second in self.program:
            if callable(first):
                first(*second)
                continue
            status = zoo_run(first, len(second), failed)
            if status:
                args = second[failed.value]
                lib.fail(status, args.kernel, args)
        return {name: array.copy() for name, array in self.outputs.items()}

    def bytes(self) -> int:
        return self.memory.bytes + sum(x.nbytes for x in self.kept if isinstance(x, np.ndarray) and x.base is None)


class Scratch(Tape):
    """No recording, only memory that one run leaves to the next, whatever its shapes."""

    def add_kernel(self, args: Any, used: tuple[Any, ...]) -> None:
        pass

    def add_step(self, function: Callable[..., Any], arrays: tuple[Any, ...]) -> None:
        pass


class Memory:
    """Memory that is lent to arrays and comes back when the last view of one is gone."""

    def __init__(self) -> None:
        self.free: list[np.ndarray] = []
        self.bytes = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        fitting = [raw for raw in self.free if count <= raw.size <= 2 * count + 4096]
        if fitting:
            raw = min(fitting, key=len)
            self.free = [x for x in self.free if x is not raw]
        else:
            raw = _aligned(count)
            self.bytes += raw.size
        return np.asarray(_Lent(raw, self))[:count].view(dtype).reshape(shape)


class _Lent:
    """Owns a piece of memory until it dies; NumPy keeps it as the base of every view."""

    def __init__(self, raw: np.ndarray, memory: Memory) -> None:
        self.raw, self.memory = raw, memory
        self.__array_interface__ = raw.__array_interface__

    def __del__(self) -> None:
        self.memory.free.append(self.raw)


def owner(x: Any) -> _Lent | None:
    """Who lent an array's memory."""
    while isinstance(x, np.ndarray):
        x = x.base
    return x if isinstance(x, _Lent) else None


def unowned(x: Any) -> Any:
    """The same array without a claim on lent memory: what is recorded must not keep it from being lent again."""
    lent = owner(x)
    if lent is None:
        return x
    offset = x.ctypes.data - lent.raw.ctypes.data
    return np.ndarray(x.shape, x.dtype, lent.raw, offset, x.strides)


def _aligned(count: int) -> np.ndarray:
    count = max(-(-count // 64) * 64, 64)
    raw = np.empty(count + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count]
