"""Our kernels on an NVIDIA GPU, without a framework: memory through the driver (libcuda), kernels from libzoo_cuda.

A call is prepared from NumPy arrays, which are copied to the GPU; running it enqueues a kernel there and nothing else:

    with Gpu() as gpu:
        call = softmax(gpu, x)
        call()
        (out,) = call.results()

Arrays are float32 or bfloat16 (ml_dtypes'), one dtype in a call; sums are float32.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from ctypes import Structure, byref, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from zoo.errors import MissingFramework, ZooError
from zoo.frameworks import find_library, how_to_install
from zoo.native.library import ACTIVATIONS, Attention, Mask, Norm, Softmax

__all__ = ["Call", "Gpu", "attention", "gated", "norm", "rotary", "softmax"]

DTYPES = {"float32": 0, "bfloat16": 1}
"""Elements, by their number in zoo_cuda.h."""

_DRIVER = "libcuda.so.1"
_STATUS = {1: "it refuses these arguments", 2: "no memory left", 4: "CUDA refuses the launch"}


class Gated(Structure):
    _fields_ = [
        ("x", c_void_p), ("y", c_void_p), ("out", c_void_p), ("rows", c_int64), ("cols", c_int64),
        ("stride_x", c_int64), ("stride_y", c_int64), ("op", c_int32),
    ]  # fmt: skip


class Rotary(Structure):
    _fields_ = [
        ("qkv", c_void_p), ("cos", c_void_p), ("sin", c_void_p), ("q", c_void_p), ("k", c_void_p), ("v", c_void_p),
        ("batch", c_int64), ("tokens", c_int64), ("heads", c_int64), ("kv_heads", c_int64), ("width", c_int64),
        ("rotary", c_int64), ("angles_per_batch", c_int32),
    ]  # fmt: skip


class Gpu:
    """One GPU: its memory, its clock, and the kernels compiled for it. What was put there is freed at the end.

    Args:
        ordinal: which GPU, as the driver counts.
        driver: the driver's library.
        kernels: that of our kernels; None takes the one that belongs to this package.

    Raises:
        MissingFramework: there is no driver or no GPU, or the kernels were not built (that needs nvcc).
    """

    def __init__(self, ordinal: int = 0, driver: str | Path = _DRIVER, kernels: str | Path | None = None) -> None:
        path = find_library("cuda") if kernels is None else Path(kernels)
        if path is None:
            raise MissingFramework(
                "the CUDA kernels are not built", expected="nvcc where anyzoo is built", do=how_to_install("native")
            )
        try:
            self._driver = ctypes.CDLL(str(driver))
        except OSError as error:
            raise MissingFramework("there is no driver of an NVIDIA GPU", expected=driver, got=str(error)) from None
        self.kernels = ctypes.CDLL(str(path))
        device, self._context = c_int(), c_void_p()
        if self._driver.cuInit(0) or self._driver.cuDeviceGet(byref(device), ordinal):
            raise MissingFramework("there is no such NVIDIA GPU", expected=f"number {ordinal}")
        self._device = device.value
        self._ask("cuDevicePrimaryCtxRetain", byref(self._context), device)
        self._ask("cuCtxSetCurrent", self._context)
        name = ctypes.create_string_buffer(256)
        self._ask("cuDeviceGetName", name, len(name), device)
        self.name = name.value.decode()
        self._held: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()
        self._ask("cuDevicePrimaryCtxRelease_v2", self._device)

    def _ask(self, function: str, *args: Any) -> None:
        status = getattr(self._driver, function)(*args)
        if status:
            text = c_char_p()
            self._driver.cuGetErrorString(status, byref(text))
            raise ZooError("the GPU's driver reports an error", where=function, got=(text.value or b"?").decode())

    def empty(self, shape: Sequence[int], dtype: np.dtype) -> int:
        """The address of as much memory as an array takes."""
        address = c_uint64()
        self._ask("cuMemAlloc_v2", byref(address), c_size_t(max(math.prod(shape), 1) * dtype.itemsize))
        self._held.append(address.value)
        return address.value

    def put(self, array: np.ndarray | None) -> int | None:
        """The address of a copy of an array, contiguous."""
        if array is None:
            return None
        address = self.empty(array.shape, array.dtype)
        array = np.ascontiguousarray(array)
        self._ask("cuMemcpyHtoD_v2", c_uint64(address), c_void_p(array.ctypes.data), c_size_t(array.nbytes))
        return address

    def get(self, address: int, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """The array at an address, once all that was enqueued is done."""
        array = np.empty(shape, dtype)
        self._ask("cuCtxSynchronize")
        self._ask("cuMemcpyDtoH_v2", c_void_p(array.ctypes.data), c_uint64(address), c_size_t(array.nbytes))
        return array

    def free(self) -> None:
        """Give back what was put there."""
        while self._held:
            self._ask("cuMemFree_v2", c_uint64(self._held.pop()))

    def seconds(self, call: Callable[[], None], count: int) -> float:
        """Of the GPU's time that one of `count` calls in a row takes, by the driver's events."""
        events = [c_void_p(), c_void_p()]
        for event in events:
            self._ask("cuEventCreate", byref(event), 0)
        try:
            self._ask("cuEventRecord", events[0], None)
            for _ in range(count):
                call()
            self._ask("cuEventRecord", events[1], None)
            self._ask("cuEventSynchronize", events[1])
            elapsed = c_float()
            self._ask("cuEventElapsedTime", byref(elapsed), *events)
        finally:
            for event in events:
                self._ask("cuEventDestroy_v2", event)
        return elapsed.value / 1e3 / count


@dataclass(frozen=True, slots=True)
class Call:
    """A kernel with its arguments on a GPU.

    Args:
        gpu: where.
        kernel: its name in zoo_cuda.h.
        args: its struct, and what else it takes before the stream.
        outputs: addresses, shapes and dtypes of what it writes.
    """

    gpu: Gpu
    kernel: str
    args: tuple[Any, ...]
    outputs: tuple[tuple[int, tuple[int, ...], np.dtype], ...]

    def __call__(self) -> None:
        """Enqueue it.

        Raises:
            ZooError: the kernel refuses its arguments, or CUDA the launch.
        """
        struct, *rest = self.args
        status = getattr(self.gpu.kernels, self.kernel)(byref(struct), *rest, None)
        if status:
            sizes = {n: getattr(struct, n) for n, kind, *_ in struct._fields_ if kind in (c_int64, c_int32)}
            raise ZooError(
                _STATUS.get(status, f"status {status}"), where=f"{self.kernel} on {self.gpu.name}", got=sizes
            )

    def results(self) -> tuple[np.ndarray, ...]:
        """What it wrote, copied from the GPU."""
        return tuple(self.gpu.get(*output) for output in self.outputs)


def norm(gpu: Gpu, x: Any, residual: Any, weight: Any, bias: Any, eps: float, rms: bool) -> Call:
    """The norm of x + residual over the last dim, and that sum if there is a residual; x is [rows, cols]."""
    rows, cols = x.shape
    out = _output(gpu, x.shape, x.dtype)
    total = () if residual is None else (_output(gpu, x.shape, x.dtype),)
    given = (gpu.put(a) for a in (x, residual, weight, bias))
    args = Norm(*given, total[0][0] if total else None, out[0], rows, cols, cols, cols, eps, rms)
    return Call(gpu, "zoo_cuda_norm", (args, _dtype(x)), (out, *total))


def softmax(gpu: Gpu, x: np.ndarray) -> Call:
    """Over the last dim of [rows, cols]."""
    out = _output(gpu, x.shape, x.dtype)
    return Call(gpu, "zoo_cuda_softmax", (Softmax(gpu.put(x), out[0], *x.shape), _dtype(x)), (out,))


def gated(gpu: Gpu, x: np.ndarray, y: np.ndarray, activation: str) -> Call:
    """activation(x) * y, both [rows, cols]."""
    rows, cols = x.shape
    out = _output(gpu, x.shape, x.dtype)
    args = Gated(gpu.put(x), gpu.put(y), out[0], rows, cols, cols, cols, ACTIVATIONS[activation])
    return Call(gpu, "zoo_cuda_gated", (args, _dtype(x)), (out,))


def rotary(gpu: Gpu, qkv: np.ndarray, cos: np.ndarray, sin: np.ndarray, heads: int, kv_heads: int) -> Call:
    """[B, T, (heads + 2 kv_heads) D] as q [B, heads, T, D], k and v [B, kv_heads, T, D], q and k turned.

    The angles' cosines and sines are float32 [T, rotary] or [B, T, rotary], over the first `rotary` of D.
    """
    batch, tokens, size = qkv.shape
    width = size // (heads + 2 * kv_heads)
    q, k, v = (_output(gpu, (batch, n, tokens, width), qkv.dtype) for n in (heads, kv_heads, kv_heads))
    given = (gpu.put(qkv), gpu.put(cos), gpu.put(sin), q[0], k[0], v[0])
    args = Rotary(*given, batch, tokens, heads, kv_heads, width, cos.shape[-1], cos.ndim == 3)
    return Call(gpu, "zoo_cuda_rotary", (args, _dtype(qkv)), (q, k, v))


def attention(
    gpu: Gpu, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None, causal: bool, scale: float | None
) -> Call:
    """[B, T, H, D], [B, S, G, D] and [B, S, G, D] of bfloat16 -> [B, T, H, D], as a model's projections lie in memory.

    Args:
        mask: float32 that is added to the scores, or truth values that say which keys are seen; its four dims are
            those of [B, H, T, S], or 1.
    """
    batch, queries, heads, width = q.shape
    _, keys, groups, _ = k.shape
    out = _output(gpu, q.shape, q.dtype)
    if mask is not None:
        mask = np.where(mask, np.float32(0), np.float32(-np.inf)) if mask.dtype == bool else np.ascontiguousarray(mask)
    steps = (
        () if mask is None else tuple(0 if n == 1 else s // 4 for n, s in zip(mask.shape, mask.strides, strict=True))
    )
    added = Mask(gpu.put(mask), (c_int64 * 4)(*steps), causal)
    args = Attention(
        gpu.put(q), gpu.put(k), gpu.put(v), ctypes.pointer(added), out[0], batch, heads, heads // groups, queries, keys,
        width, v.shape[-1], _steps(q), _steps(k), _steps(v), _steps(q),
        1 / math.sqrt(width) if scale is None else scale, 0, None,
    )  # fmt: skip
    return Call(gpu, "zoo_cuda_attention", (args,), (out,))


def _output(gpu: Gpu, shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, tuple[int, ...], np.dtype]:
    return gpu.empty(shape, dtype), shape, dtype


def _dtype(array: np.ndarray) -> int:
    if array.dtype.name not in DTYPES:
        raise ZooError("no CUDA kernel for these elements", expected=", ".join(DTYPES), got=array.dtype.name)
    return DTYPES[array.dtype.name]


def _steps(array: np.ndarray) -> Any:
    """Elements between the entries of B, H and T of a contiguous [B, T, H, D]."""
    _, tokens, heads, width = array.shape
    return (c_int64 * 3)(tokens * heads * width, width, heads * width)
