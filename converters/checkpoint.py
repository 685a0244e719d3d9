"""What every checkpoint format shares: `Checkpoint`, `TensorInfo`, dtypes, mapping files, strict JSON.

A format is one file of this package. It holds these names, and nothing else public is needed:

    SUFFIXES: tuple[str, ...]                   file names that claim this format
    def recognises(head: bytes) -> bool         whether a file beginning with `head` (512 bytes) is of it
    def open_file(path: Path) -> Checkpoint     validate the file's directory of tensors; read no tensor
    def write(path: Path, checkpoint: Checkpoint, metadata: Mapping[str, str] = {}) -> None
                                                where the format can be written: to a path that does not exist yet

and a subclass of `Checkpoint` whose `_read` returns one tensor. A writer takes each tensor from
`checkpoint.blocks`, one after the other, so that memory stays bounded; `converters.atomic.replacing` gives it the
path and renames what it wrote. What a checkpoint holds under other names or in another layout is itself a
checkpoint (`converters.dialects`), so a conversion is `write(path, view of what open_file gave)`.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeGuard

import numpy as np

from zoo.arrays import numpy_dtype
from zoo.errors import FormatError, SourceError, WeightsError

__all__ = [
    "AGAIN",
    "BLOCK",
    "DTYPES",
    "NO_METADATA",
    "Checkpoint",
    "Mapped",
    "MappedCheckpoint",
    "MemoryCheckpoint",
    "TensorInfo",
    "array_view",
    "copy_into",
    "in_step",
    "is_size",
    "is_sizes",
    "is_text",
    "little_endian",
    "map_file",
    "mapped",
    "packed",
    "read_head",
    "refuse_impostor",
    "release",
    "strict_json",
    "tensor_info",
    "unmapped",
]

BLOCK = 1 << 22
"""How many bytes of a tensor a writer takes at a time: few enough to stay in a processor's cache on their way."""

AGAIN = "the file is damaged or was written by a faulty program: download or write it again"


class _DTypes(Mapping[str, np.dtype]):
    """Those that NumPy does not have itself come from ml_dtypes, which is imported when one is asked for."""

    names = (
        *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )

    def __getitem__(self, name: str) -> np.dtype:
        if name not in self.names:
            raise KeyError(name)
        return numpy_dtype(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


DTYPES: Mapping[str, np.dtype] = _DTypes()
"""Every dtype a checkpoint may hold, by the name that torch, NumPy and ml_dtypes share."""


NO_METADATA: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a checkpoint says of one tensor; `nbytes` is the size of its values, packed."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: Path


class Checkpoint(ABC):
    """Named tensors in a file or in several, read one at a time; a context manager.

    Attributes:
        path: the file, or the index of a sharded checkpoint.
        infos: tensor name -> `TensorInfo`, in the file's order; tied tensors stand under each of their names.
        metadata: whatever else the file says, by (dotted) name.
        aliases: second name -> first name, for tensors that are the same bytes of the file.
    """

    format: str

    def __init__(
        self,
        path: Path,
        infos: Mapping[str, TensorInfo],
        *,
        metadata: Mapping[str, Any] | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self.infos: Mapping[str, TensorInfo] = MappingProxyType(dict(infos))
        self.metadata: Mapping[str, Any] = MappingProxyType(dict(metadata or {}))
        self.aliases: Mapping[str, str] = MappingProxyType(dict(aliases or {}))
        self._closed = False
        self._checks_reads = False

    def check_reads(self) -> None:
        """From now on `read` and `blocks` compare checksums of bytes that stay mapped, too, for callers who copy them.

        Bytes that a format unpacks, or that lie in a member of an archive of their own (npz, .keras), always are.
        """
        self._checks_reads = True

    def check(self) -> str:
        """Reads all that the file holds a checksum of and compares it; see `zoo.check_files`.

        Returns:
            What was compared, in words; empty where the format holds no checksums.

        Raises:
            FormatError: something has another checksum.
        """
        return ""

    def read(self, name: str) -> np.ndarray:
        """The tensor's values: a read-only array of `infos[name].shape` and dtype.

        A view of the mapped file wherever the file stores the values as they are (safetensors, uncompressed
        torch files of this machine's byte order); else one new array. A view may be strided, and unaligned
        (`flags.aligned`) where the format does not align its data. It stays valid after `close`; meanwhile
        the file must not be overwritten in place (replacing it by a rename is fine).

        Raises:
            WeightsError: no tensor of that name.
            FormatError: the stored values do not decompress to what was declared.
            SourceError: the checkpoint was closed.
        """
        if self._closed:
            raise SourceError("the checkpoint is closed", where=self.path, do="read inside the `with` block")
        info = self.infos.get(name)
        if info is None:
            import difflib

            near = difflib.get_close_matches(name, self.infos, 3)
            raise WeightsError(
                f"no tensor named {name!r}",
                where=self.path,
                got=f"{len(self.infos)} others",
                do=_did_you(near),
            )
        array = self._read(info)
        array.flags.writeable = False
        return array

    def blocks(self, name: str, size: int = BLOCK) -> Iterator[np.ndarray]:
        """The tensor in pieces along its first axis, for writers: each contiguous, about `size` bytes, in order.

        Joined along the first axis they are the tensor; one without axes is one piece, an empty one is one empty
        piece. What a piece was mapped from is let go once the next is asked for.
        """
        array = self.read(name)
        # A piece of a transposed array takes a little from every page of the file: fewer pieces are read faster.
        if array.ndim and array.strides[0] != max(array.strides):
            size *= 4
        if array.nbytes <= size or not array.ndim:
            yield packed(array)
            release(array)
            return
        rows = max(1, size * len(array) // array.nbytes)
        for start in range(0, len(array), rows):
            piece = array[start : start + rows]
            yield packed(piece)
            release(piece)

    def exact(self, name: str) -> bool:
        """Whether a tensor's values are as some file holds them, or rearranged; not where a dialect computes them."""
        return True

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every (name, tensor), one at a time, in the file's order; tied tensors under each name."""
        for name in self.infos:
            yield name, self.read(name)

    def close(self) -> None:
        """Lets the files go. Arrays already read stay valid: the last one unmaps its file."""
        self._closed = True
        self._close()

    @abstractmethod
    def _read(self, info: TensorInfo) -> np.ndarray: ...

    @abstractmethod
    def _close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        size = sum(info.nbytes for name, info in self.infos.items() if name not in self.aliases)
        return f"<{self.format} {str(self.path)!r}: {len(self.infos)} tensors, {size / 1e6:.1f} MB>"


class MappedCheckpoint(Checkpoint):
    """A file whose tensors lie in it packed and little-endian, so that `read` returns views.

    Args:
        data: the file, or its part with the tensors, mapped.
        starts: name -> where in `data` its values begin, in bytes.
    """

    def __init__(
        self,
        path: Path,
        infos: Mapping[str, TensorInfo],
        data: memoryview,
        starts: Mapping[str, int],
        metadata: Mapping[str, Any],
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(path, infos, metadata=metadata, aliases=aliases)
        self._data = data
        self._starts = starts

    def _read(self, info: TensorInfo) -> np.ndarray:
        return array_view(self._data, info, self._starts[info.name])

    def _close(self) -> None:
        self._data = memoryview(b"")


class MemoryCheckpoint(Checkpoint):
    """Arrays as a checkpoint, so that they can be written like any other.

    Args:
        arrays: name -> array, of a dtype in `DTYPES`.
        path: stands in errors.
    """

    format = "memory"

    def __init__(self, arrays: Mapping[str, np.ndarray], path: Path = Path("memory")) -> None:
        infos = {n: tensor_info(n, list(array.shape), array.dtype.name, path) for n, array in arrays.items()}
        super().__init__(path, infos)
        self._arrays = arrays

    def _read(self, info: TensorInfo) -> np.ndarray:
        return self._arrays[info.name].view()

    def _close(self) -> None:
        self._arrays = {}


def in_step(one: Iterator[np.ndarray], other: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of pieces with the same rows, out of the pieces of two tensors of one shape, however each was cut."""
    y = np.empty(0)
    for x in one:
        if not x.ndim:
            yield x, next(other)
            continue
        while len(x):
            y = y if len(y) else next(other)
            rows = min(len(x), len(y))
            yield x[:rows], y[:rows]
            x, y = x[rows:], y[rows:]


def map_file(path: Path) -> memoryview:
    """The whole file as bytes, mapped; unmapped when the last view of it goes. Inside `unmapped` it is read instead.

    The mapping is private: a framework that trains on the arrays in place changes its own memory, never the file.
    The mapping is never closed by hand: NumPy arrays do not lock the buffer that they are made on, so an
    explicit close would leave them dangling. A file that another program cuts short while it is mapped ends the process
    (SIGBUS) when a page beyond its new end is touched.
    """
    try:
        with path.open("rb") as f:
            facts = os.fstat(f.fileno())
            if not facts.st_size:
                raise FormatError("the file is empty", where=path, do="download it again")
            if _UNMAPPED.get():
                whole = bytearray(facts.st_size)
                if f.readinto(whole) != facts.st_size:
                    raise SourceError("the file was cut short while it was read", where=path)
                return memoryview(whole)
            mapping = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
            start = np.frombuffer(mapping, np.uint8).ctypes.data
            _MAPPINGS[mapping] = start, len(mapping), path.resolve(), facts.st_mtime_ns
            return memoryview(mapping)
    except OSError as error:
        raise SourceError("the file cannot be read", where=path, got=error) from error


_MAPPINGS: MutableMapping[mmap.mmap, tuple[int, int, Path, int]] = weakref.WeakKeyDictionary()
"""What is mapped now: where in memory, how many bytes, of which file, and when that was last written."""

_UNMAPPED: ContextVar[bool] = ContextVar("unmapped", default=False)


@contextmanager
def unmapped(wanted: bool = True) -> Iterator[None]:
    """Files that are opened inside are read into memory as a whole, if that is wanted, and can be cut or taken away."""
    token = _UNMAPPED.set(wanted)
    try:
        yield
    finally:
        _UNMAPPED.reset(token)


@dataclass(frozen=True, slots=True)
class Mapped:
    """An array that lies in a file: what a pickle holds of one that is mapped and has not been written to.

    Args:
        path, size, written: the file, its bytes, and when it was last written (nanoseconds).
        offset: where the array begins.
        shape, dtype: the array's.
    """

    path: Path
    size: int
    written: int
    offset: int
    shape: tuple[int, ...]
    dtype: str

    def read(self, files: dict[Path, memoryview]) -> np.ndarray:
        """The array, out of a mapping of its own: `files` has those made so far.

        Raises:
            SourceError: the file is gone, or is another by now.
        """
        try:
            facts = self.path.stat()
        except OSError as error:
            raise self._changed(error) from None
        if (facts.st_size, facts.st_mtime_ns) != (self.size, self.written):
            raise self._changed("another size or time")
        if self.path not in files:
            files[self.path] = map_file(self.path)
        data = files[self.path]
        count = math.prod(self.shape)
        return np.frombuffer(data, DTYPES[self.dtype], count, self.offset).reshape(self.shape)

    def _changed(self, got: object) -> SourceError:
        return SourceError(
            "a pickled model refers to a file that is not what it was",
            where=self.path,
            got=got,
            do="keep the file, or pickle a model that was loaded with mmap=False, which holds its arrays itself",
        )


def mapped(array: np.ndarray) -> Mapped | None:
    """The place in a file that an array is mapped from, or None if there is none or either has been written to."""
    if not array.flags.c_contiguous or not array.nbytes:
        return None
    at = array.__array_interface__["data"][0]
    for start, size, path, written in list(_MAPPINGS.values()):
        if start <= at and at + array.nbytes <= start + size:
            found = Mapped(path, size, written, at - start, array.shape, str(array.dtype))
            return found if _untouched(found, array) else None
    return None


def _untouched(place: Mapped, array: np.ndarray) -> bool:
    values = array.reshape(-1).view(np.uint8)
    try:
        with place.path.open("rb") as f:
            facts = os.fstat(f.fileno())
            if (facts.st_size, facts.st_mtime_ns) != (place.size, place.written):
                return False
            f.seek(place.offset)
            return all(
                f.read(len(block)) == block.tobytes()
                for block in (values[i : i + BLOCK] for i in range(0, len(values), BLOCK))
            )
    except OSError:
        return False


def release(array: np.ndarray) -> None:
    """Tells the system that the pages under a mapped array are not needed now; they come back when they are read.

    For arrays that were copied elsewhere and not written to: mapped pages count as memory in use until then.
    """
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    mapping = base.obj if isinstance(base, memoryview) else base
    if not isinstance(mapping, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED") or not array.nbytes:
        return
    origin = np.frombuffer(mapping, np.uint8).ctypes.data
    low, high = np.lib.array_utils.byte_bounds(array)
    first = (low - origin) - (low - origin) % mmap.PAGESIZE
    mapping.madvise(mmap.MADV_DONTNEED, first, high - origin - first)


def packed(array: np.ndarray) -> np.ndarray:
    """The array itself if it is row-major without gaps, else a copy that is."""
    if array.flags.c_contiguous:
        return array
    out = np.empty(array.shape, array.dtype)
    copy_into(out, array)
    return out


def copy_into(out: np.ndarray, array: np.ndarray) -> None:
    """Copies an array of any layout into a row-major one, letting go of what it was mapped from as it goes.

    NumPy copies a transposed array value by value along its columns, and a cache line of 64 bytes is fetched for each.
    Taking as many columns at a time as fill a cache line is about five times as fast.
    """
    step = max(1, 64 // array.itemsize)
    if array.ndim < 2 or array.strides[-1] == array.itemsize or array.shape[-1] <= step:
        out[...] = array
        release(array)
        return
    columns, slowest = array.shape[-1], array.strides[-1] == max(array.strides)
    let_go = 0
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        out[..., start:stop] = array[..., start:stop]
        if slowest and (stop == columns or (stop - let_go) * array.strides[-1] >= BLOCK // 2):
            release(array[..., let_go:stop])
            let_go = stop


def array_view(
    data: memoryview,
    info: TensorInfo,
    offset: int,
    strides: Sequence[int] | None = None,
    byteorder: str = "little",
) -> np.ndarray:
    """A view of `data` from byte `offset` on as the tensor `info`; a copy only if bytes must be swapped.

    Args:
        data: bytes of the file.
        info: gives shape and dtype.
        offset: where the first value stands, in bytes.
        strides: in values, not bytes; packed row-major if not given. Not negative.
        byteorder: of the file, "little" or "big".

    Raises:
        FormatError: a value would lie outside `data`.
    """
    dtype = DTYPES[info.dtype]
    if not info.nbytes:
        return np.empty(info.shape, dtype)
    size = dtype.itemsize
    if strides is None:
        strides = [math.prod(info.shape[i + 1 :]) for i in range(len(info.shape))]
    last = sum((dim - 1) * stride for dim, stride in zip(info.shape, strides, strict=True))
    if offset < 0 or min(strides, default=0) < 0 or offset + (last + 1) * size > len(data):
        raise FormatError(
            f"tensor {info.name!r} reaches outside its data",
            where=info.file,
            expected=f"at most {len(data)} bytes",
            got=f"offset {offset}, shape {info.shape}, strides {tuple(strides)} of {info.dtype}",
        )
    array = np.ndarray(info.shape, dtype, data, offset, [stride * size for stride in strides])
    if byteorder == sys.byteorder:
        return array
    # Complex numbers swap by halves; ml_dtypes know no byte order, hence the detour over unsigned integers.
    unit = np.dtype(f"u{size // 2 if dtype.kind == 'c' else size}")
    packed = np.array(array, order="C", ndmin=1)
    return packed.view(unit).byteswap(inplace=True).view(dtype).reshape(info.shape)


def little_endian(array: np.ndarray) -> memoryview:
    """The values of a contiguous array as bytes to write, little-endian."""
    swapped = array.dtype.byteorder == ">" or (sys.byteorder == "big" and array.dtype.itemsize > 1)
    return (array.byteswap() if swapped else array).reshape(-1).view(np.uint8).data


def tensor_info(name: str, shape: object, dtype: object, file: Path) -> TensorInfo:
    """What a file says of a tensor, checked: shape a list of sizes, dtype one of `DTYPES`, below 2**63 bytes.

    Raises:
        FormatError: naming file and tensor.
    """
    where = f"{file}, tensor {name!r}"
    if not is_text(name):
        raise FormatError("a tensor's name is not valid text", where=file, got=ascii(name)[:200], do=AGAIN)
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError("unknown or unsupported dtype", where=where, expected=", ".join(DTYPES), got=dtype)
    # NumPy counts the other dims of an empty array, too, and has at most 64 of them.
    if not is_sizes(shape) or len(shape) > 64 or math.prod(filter(None, shape)) >= 1 << 59:
        raise FormatError("a shape is not a list of sizes", where=where, got=str(shape)[:200], do=AGAIN)
    return TensorInfo(name, tuple(shape), dtype, math.prod(shape) * DTYPES[dtype].itemsize, file)


def is_text(value: str) -> bool:
    """Whether text has no half of a UTF-16 pair in it, which neither a file nor a terminal can hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_size(value: object) -> TypeGuard[int]:
    """Whether a value out of a file is an integer from 0 to 2**63 - 1; True and False are none."""
    return type(value) is int and 0 <= value < 1 << 63


def is_sizes(value: object) -> TypeGuard[list[int]]:
    """Whether a value out of a file is a list of sizes."""
    return isinstance(value, list) and all(map(is_size, value))


def read_head(path: Path, size: int = 512) -> bytes:
    """The file's first bytes.

    Raises:
        SourceError: the file is missing or unreadable.
    """
    try:
        with path.open("rb") as f:
            return f.read(size)
    except OSError as error:
        raise SourceError("the file cannot be read", where=path, got=error) from error


def refuse_impostor(path: Path, head: bytes) -> None:
    """Refuses what often lies where weights should be: nothing, a Git LFS pointer, a web page.

    Raises:
        FormatError: naming the file and what to do.
    """
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        what, do = "the file is empty", "download it again"
    elif text.startswith(b"version https://git-lfs"):
        what = "the file is a Git LFS pointer, not the weights"
        do = "run `git lfs install && git lfs pull` in its repository, or download the file itself"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        what = "the file is a web page, not weights"
        do = "download the raw file (on the Hugging Face hub: /resolve/ instead of /blob/ in the address)"
    else:
        return
    raise FormatError(what, where=path, got=head[:60] or None, do=do)


def strict_json(raw: bytes | memoryview, path: Path, what: str) -> dict[str, Any]:
    """A JSON object, refusing what parsers disagree on: duplicate keys, and text that is not UTF-8.

    Raises:
        FormatError: naming the file and `what` part of it was read.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = sorted({k for k, _ in pairs if k in seen or seen.add(k)})  # type: ignore[func-returns-value]
            raise FormatError(f"duplicate names in {what}: {twice[:8]!r}", where=path, do=AGAIN)
        return found

    try:
        text = str(raw, "utf-8")
        found = json.loads(text, object_pairs_hook=unique)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()  # an escape may be half of a UTF-16 pair
    except FormatError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        raise FormatError(f"{what} is not valid JSON", where=path, got=error, do=AGAIN) from error
    if not isinstance(found, dict):
        raise FormatError(f"{what} is not a JSON object", where=path, got=type(found).__name__, do=AGAIN)
    return found


def _did_you(near: list[str]) -> str | None:
    return f"did you mean {', '.join(near)}?" if near else None
