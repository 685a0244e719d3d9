"""The compiled library through ctypes: its structs as zoo_native.h declares them, and calls that raise."""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import POINTER, Structure, byref, c_char_p, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

from zoo.errors import ConfigError, MissingFramework, OutsideError, ZooError
from zoo.frameworks import SUFFIXES, find_library, how_to_install

__all__ = [
    "ACTIVATIONS",
    "BINARY",
    "ISAS",
    "KERNELS",
    "PRECISIONS",
    "fail",
    "float32_isa",
    "get_isa",
    "get_threads",
    "library",
    "run",
    "set_isa",
    "set_threads",
]

ABI = 5

_ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "exp", "erf", "relu6")
ACTIVATIONS = {name: number for number, name in enumerate(_ACTIVATIONS)}

PRECISIONS = {name: number for number, name in enumerate(("float32", "bfloat16", "int8"))}
"""What products with packed weights are computed in."""

PLANES, LAST, WINOGRAD = range(3)
"""What a convolution's weights are packed for: images [N, C, H, W], [N, H, W, C], and those with fewer products."""

ISAS = ("base", "avx2", "avx512", "avx512_vnni", "avx512_bf16")
"""Instruction sets; the last two are AVX-512 with instructions for int8, and for int8 and bfloat16."""

BINARY = {
    **{name: number for number, name in enumerate(("copy", "add", "sub", "mul", "div"))},
    **{name: 100 + ACTIVATIONS[name] for name in ("relu", "gelu", "gelu_tanh", "silu", "sigmoid")},
}
"""Operations of two arrays; an activation's is activation(a) * b."""


@functools.cache
def library() -> ctypes.CDLL:
    """The library, loaded once.

    Raises:
        MissingFramework: it was not built, or is of another version than this package.
        ConfigError: ZOO_NATIVE_ISA names what is not there.
    """
    path = find_library()
    if path is None:
        raise MissingFramework(
            "the native engine is not built",
            expected=f"libzoo_native{SUFFIXES[0]} in {Path(__file__).parent}",
            do=how_to_install("native"),
        )
    loaded = ctypes.CDLL(str(path))
    loaded.zoo_abi.restype = c_int64
    if loaded.zoo_abi() != ABI:
        raise MissingFramework(
            "the native engine is of another version",
            where=path,
            expected=ABI,
            got=loaded.zoo_abi(),
            do="install anyzoo again",
        )
    loaded.zoo_pack_right.restype = c_void_p
    loaded.zoo_pack_right.argtypes = [c_void_p, c_int64, c_int64, c_int64, c_int64]
    loaded.zoo_pack_right_as.restype = c_void_p
    loaded.zoo_pack_right_as.argtypes = [c_void_p, c_int64, c_int64, c_int64, c_int64, c_int32]
    loaded.zoo_pack_conv.restype = c_void_p
    loaded.zoo_pack_conv.argtypes = [c_void_p, c_int64, c_int64, c_int64, c_int64, c_int32]
    loaded.zoo_packed_free.argtypes = [c_void_p]
    loaded.zoo_packed_free.restype = None
    loaded.zoo_packed_bytes.argtypes = [c_void_p]
    loaded.zoo_packed_bytes.restype = c_int64
    loaded.zoo_set_threads.argtypes = [c_int64]
    loaded.zoo_get_threads.restype = c_int64
    loaded.zoo_set_isa.argtypes = [c_char_p]
    loaded.zoo_get_isa.restype = c_char_p
    loaded.zoo_run.argtypes = [c_void_p, c_int64, POINTER(c_int64)]
    for struct in KERNELS:
        getattr(loaded, struct.kernel).argtypes = [c_void_p]
    asked, taken = os.environ.get("ZOO_NATIVE_ISA"), loaded.zoo_get_isa().decode()
    if asked and asked != taken:
        raise ConfigError(
            "no such instruction set on this machine",
            where="the environment variable ZOO_NATIVE_ISA",
            expected=f"one of {', '.join(ISAS)} that the processor has",
            got=asked,
            do=f"unset it; {taken} would be taken",
        )
    return loaded


def run(args: Any) -> None:
    """Call the kernel that a struct of arguments belongs to; other Python threads run meanwhile."""
    status = getattr(library(), args.kernel)(byref(args))
    if status:
        fail(status, args.kernel, args)


def fail(status: int, kernel: str, args: Structure) -> None:
    """Raise what a kernel's status means, with its sizes."""
    if status == 2:
        raise MemoryError(f"{kernel}: no memory left")
    if status == 3:
        raise OutsideError(f"an index is outside the table's {args.rows} rows", where=kernel)
    sizes = {name: getattr(args, name) for name, kind, *_ in args._fields_ if kind in (c_int64, c_int32)}
    raise ZooError("the native engine refuses these arguments", where=kernel, got=sizes)


def set_threads(threads: int) -> None:
    """How many threads kernels use; 0: as many as this process may run on."""
    if library().zoo_set_threads(threads):
        raise ValueError(f"not a number of threads: {threads}")


def get_threads() -> int:
    return int(library().zoo_get_threads())


def set_isa(name: str) -> None:
    """Take the kernels of an instruction set, one of `ISAS`. What is packed keeps the one it has.

    Raises:
        ZooError: this machine lacks it, or the build does.
    """
    if library().zoo_set_isa(name.encode()):
        raise ZooError("no such instruction set on this machine", expected=", ".join(ISAS), got=name)


def get_isa() -> str:
    return str(library().zoo_get_isa().decode())


def float32_isa() -> str:
    """The instruction set whose float32 kernels are in use: those for int8 and bfloat16 add nothing to them."""
    return get_isa().split("_")[0]


class Linear(Structure):
    kernel = "zoo_linear"
    _fields_ = [
        ("a", c_void_p), ("m", c_int64), ("k", c_int64), ("lda", c_int64), ("b", c_void_p), ("bias", c_void_p),
        ("residual", c_void_p), ("ldr", c_int64), ("c", c_void_p), ("ldc", c_int64), ("activation", c_int32),
    ]  # fmt: skip


class Matmul(Structure):
    kernel = "zoo_matmul"
    _fields_ = [
        ("a", c_void_p), ("b", c_void_p), ("c", c_void_p), ("batch", c_int64 * 3), ("a_batch", c_int64 * 3),
        ("b_batch", c_int64 * 3), ("m", c_int64), ("n", c_int64), ("k", c_int64), ("a_row", c_int64),
        ("a_col", c_int64), ("b_row", c_int64), ("b_col", c_int64), ("bias", c_void_p), ("residual", c_void_p),
        ("ldr", c_int64), ("activation", c_int32),
    ]  # fmt: skip


class Mask(Structure):
    _fields_ = [("data", c_void_p), ("stride", c_int64 * 4), ("causal", c_int32)]


class Attention(Structure):
    kernel = "zoo_attention"
    _fields_ = [
        ("q", c_void_p), ("k", c_void_p), ("v", c_void_p), ("mask", POINTER(Mask)), ("out", c_void_p),
        ("batch", c_int64), ("heads", c_int64), ("kv_group", c_int64), ("queries", c_int64), ("keys", c_int64),
        ("width", c_int64), ("value_width", c_int64), ("q_stride", c_int64 * 3), ("k_stride", c_int64 * 3),
        ("v_stride", c_int64 * 3), ("out_stride", c_int64 * 3), ("scale", c_float), ("precision", c_int32),
        ("offsets", c_void_p),
    ]  # fmt: skip


class Norm(Structure):
    kernel = "zoo_norm"
    _fields_ = [
        ("x", c_void_p), ("residual", c_void_p), ("weight", c_void_p), ("bias", c_void_p), ("sum", c_void_p),
        ("out", c_void_p), ("rows", c_int64), ("cols", c_int64), ("stride_x", c_int64),
        ("stride_residual", c_int64), ("eps", c_float), ("rms", c_int32),
    ]  # fmt: skip


class Softmax(Structure):
    kernel = "zoo_softmax"
    _fields_ = [("x", c_void_p), ("out", c_void_p), ("rows", c_int64), ("cols", c_int64)]


class Unary(Structure):
    kernel = "zoo_unary"
    _fields_ = [("x", c_void_p), ("out", c_void_p), ("n", c_int64), ("op", c_int32)]


class Binary(Structure):
    kernel = "zoo_binary"
    _fields_ = [
        ("a", c_void_p), ("b", c_void_p), ("out", c_void_p), ("shape", c_int64 * 6), ("a_stride", c_int64 * 6),
        ("b_stride", c_int64 * 6), ("op", c_int32),
    ]  # fmt: skip


class Embedding(Structure):
    kernel = "zoo_embedding"
    _fields_ = [
        ("table", c_void_p), ("index", c_void_p), ("out", c_void_p), ("rows", c_int64), ("row_bytes", c_int64),
        ("n", c_int64),
    ]  # fmt: skip


class Conv(Structure):
    kernel = "zoo_conv"
    _fields_ = [
        ("x", c_void_p), ("weight", c_void_p), ("bias", c_void_p), ("residual", c_void_p), ("out", c_void_p),
        ("batch", c_int64), ("channels", c_int64), ("height", c_int64), ("width", c_int64), ("out_channels", c_int64),
        ("groups", c_int64), ("kernel_size", c_int64 * 2), ("stride", c_int64 * 2), ("pad_before", c_int64 * 2),
        ("dilation", c_int64 * 2), ("out_size", c_int64 * 2), ("activation", c_int32),
    ]  # fmt: skip


class Depthwise(Structure):
    kernel = "zoo_depthwise"
    _fields_ = [
        ("x", c_void_p), ("weight", c_void_p), ("bias", c_void_p), ("out", c_void_p), ("batch", c_int64),
        ("channels", c_int64), ("height", c_int64), ("width", c_int64), ("kernel_size", c_int64 * 2),
        ("stride", c_int64 * 2), ("pad_before", c_int64 * 2), ("dilation", c_int64 * 2), ("out_size", c_int64 * 2),
        ("activation", c_int32), ("last", c_int32),
    ]  # fmt: skip


class Pool(Structure):
    kernel = "zoo_pool"
    _fields_ = [
        ("x", c_void_p), ("out", c_void_p), ("batch", c_int64), ("channels", c_int64), ("height", c_int64),
        ("width", c_int64), ("kernel_size", c_int64 * 2), ("stride", c_int64 * 2), ("pad_before", c_int64 * 2),
        ("out_size", c_int64 * 2), ("sum", c_int32), ("last", c_int32),
    ]  # fmt: skip


class Step(Structure):
    _fields_ = [("kernel_address", c_void_p), ("args", c_void_p)]


KERNELS = (Linear, Matmul, Attention, Norm, Softmax, Unary, Binary, Embedding, Conv, Depthwise, Pool)
