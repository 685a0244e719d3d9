"""GGUF, llama.cpp's format: typed key/values, then tensors, which may be quantised; versions 2 and 3.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The header is parsed here, over the mapped
file and with every count checked against the bytes that are left: the `gguf` library loops as often as a file says.

Shapes are NumPy's, so the reverse of ggml's. Quantised tensors read as float32 (`converters.formats.gguf.quants`); what
they are in the file stands in `metadata["ggml_types"]` (tensor name -> F32, Q4_1, ...). The file's own key/values
stand in `metadata` by their keys, their types ("uint32", "array[string]", ...) in `metadata["gguf_types"]`;
`write` takes both, so that writing a checkpoint with its own metadata keeps every type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from converters.checkpoint import (
    AGAIN,
    BLOCK,
    NO_METADATA,
    Checkpoint,
    TensorInfo,
    array_view,
    is_size,
    little_endian,
    map_file,
    refuse_impostor,
    release,
    tensor_info,
)
from converters.formats.gguf.header import Header, TensorEntry, encode, read_header
from converters.formats.gguf.quants import DEQUANTISABLE, PLAIN, TYPES, GgmlType, dequantise, quantise_q8_0
from zoo.errors import FormatError

__all__ = ["SUFFIXES", "GgufCheckpoint", "open_file", "recognises", "write"]

SUFFIXES = (".gguf",)
ALIGNMENT = 32


def recognises(head: bytes) -> bool:
    """Whether a file that begins so is GGUF."""
    return head.startswith(b"GGUF")


def open_file(path: Path) -> GgufCheckpoint:
    """Opens a .gguf file, checking its header and where every tensor lies, and reading none.

    What is checked is all that the format lets one check: it has no checksums, so a changed byte of a tensor goes
    unnoticed, but bytes that are missing, put in or too many do not.

    Raises:
        FormatError: truncated, corrupt, big-endian, of version 1, a tensor outside the file, or bytes of no tensor.
        SourceError: the file cannot be read.
    """
    data = map_file(path)
    refuse_impostor(path, bytes(data[:512]))
    header = read_header(data, path)
    alignment = header.values.get("general.alignment", ALIGNMENT)
    _check_alignment(alignment, path)
    body = data[min(len(data), -(-header.end // alignment) * alignment) :]
    infos: dict[str, TensorInfo] = {}
    kinds: dict[str, GgmlType] = {}
    ranges: list[tuple[int, int, str]] = []
    for entry in header.tensors:
        info, kind = _check_entry(path, entry)
        size = info.nbytes // 4 // kind.values * kind.nbytes if kind.name not in PLAIN else info.nbytes
        if entry.offset % alignment or entry.offset + size > len(body):
            raise FormatError(
                f"tensor {info.name!r} reaches outside the file, or is not aligned",
                where=path,
                expected=f"a multiple of {alignment}, and {size} bytes of the {len(body)} that hold tensors",
                got=f"offset {entry.offset}",
                do=AGAIN,
            )
        infos[info.name], kinds[info.name] = info, kind
        ranges.append((entry.offset, entry.offset + size, info.name))
    _check_places(path, ranges, alignment, len(body), sized=all(kind.nbytes for kind in kinds.values()))
    return GgufCheckpoint(path, infos, kinds, {name: start for start, _, name in ranges}, body, header)


class GgufCheckpoint(Checkpoint):
    """One GGUF file; `read` returns views of plain tensors, and new float32 arrays of quantised ones."""

    format = "gguf"

    def __init__(
        self,
        path: Path,
        infos: Mapping[str, TensorInfo],
        kinds: Mapping[str, GgmlType],
        starts: Mapping[str, int],
        body: memoryview,
        header: Header,
    ) -> None:
        super().__init__(path, infos)
        types = {"ggml_types": {name: kind.name for name, kind in kinds.items()}, "gguf_types": dict(header.types)}
        self.metadata = _Metadata(header.values, types)
        self._kinds = kinds
        self._starts = starts
        self._body = body

    def blocks(self, name: str, size: int = BLOCK) -> Iterator[np.ndarray]:
        info = self.infos.get(name)
        if info is None or self._closed or self._kinds[name].name in PLAIN or info.nbytes <= size:
            yield from super().blocks(name, size)
            return
        # Pieces along the first axis hold whole quantised blocks, which run along the last.
        raw = self._quantised(info)
        kind = self._kinds[name]
        unit = 1 if len(info.shape) > 1 else kind.values
        blocks_each = len(raw) * unit // info.shape[0]
        step = max(1, size * info.shape[0] // info.nbytes // unit) * blocks_each
        for start in range(0, len(raw), step):
            piece = raw[start : start + step]
            yield dequantise(piece, kind).reshape(-1, *info.shape[1:])
            release(piece)

    def _read(self, info: TensorInfo) -> np.ndarray:
        if self._kinds[info.name].name in PLAIN:
            return array_view(self._body, info, self._starts[info.name])
        raw = self._quantised(info)
        array = dequantise(raw, self._kinds[info.name]).reshape(info.shape)
        release(raw)
        return array

    def _quantised(self, info: TensorInfo) -> np.ndarray:
        """The tensor's blocks: uint8 [number of blocks, bytes of one]."""
        kind = self._kinds[info.name]
        if kind.name not in DEQUANTISABLE:
            raise FormatError(
                f"tensors of ggml's type {kind.name} cannot be read",
                where=f"{self.path}, tensor {info.name!r}",
                expected=", ".join([*PLAIN, *DEQUANTISABLE]),
                got=kind.name,
                do="take a file of another quantisation of the same model, best F16 or Q8_0",
            )
        count = info.nbytes // 4 // kind.values
        return np.frombuffer(self._body, np.uint8, count * kind.nbytes, self._starts[info.name]).reshape(count, -1)

    def _close(self) -> None:
        self._body = memoryview(b"")


def write(path: Path, checkpoint: Checkpoint, metadata: Mapping[str, Any] = NO_METADATA) -> None:
    """Writes a GGUF file of version 3, holding one block of one tensor at a time in memory.

    Args:
        path: a new file.
        checkpoint: its tensors, of dtypes float16, bfloat16, float32, float64, int8, int16, int32, int64.
            llama.cpp itself takes names of at most 63 bytes, and at most four dimensions.
        metadata: key -> str, bool, int, float, or a list or array of one of these. Integers are written as uint32
            (in lists as int32, as llama.cpp's own writer does), wider or signed where they need to be; floats as
            float32; NumPy's values as what they are. Two keys are instructions and are not written: "gguf_types",
            key -> type ("uint64", "array[string]", ...) where it matters; "ggml_types", tensor name -> F32, F16,
            BF16 or Q8_0 (rows of a multiple of 32 values), for tensors of floating dtype that are to be converted.

    Raises:
        FormatError: a dtype, type or value that cannot be written so.
    """
    given = dict(metadata)
    wanted, types = given.pop("ggml_types", {}), given.pop("gguf_types", {})
    alignment = given.get("general.alignment", ALIGNMENT)
    _check_alignment(alignment, path)
    kinds = {info.name: _written_as(path, info, wanted.get(info.name)) for info in checkpoint.infos.values()}
    entries: list[TensorEntry] = []
    position = 0
    for name, number in kinds.items():
        shape, kind = checkpoint.infos[name].shape, TYPES[number]
        entries.append(TensorEntry(name, shape[::-1], number, position))
        size = int(np.prod(shape, dtype=object)) // kind.values * kind.nbytes
        position += -(-size // alignment) * alignment
    with path.open("xb") as out:
        out.write(encode(path, given, types, entries))
        out.write(bytes(-out.tell() % alignment))
        for name, number in kinds.items():
            for raw in _converted(checkpoint, name, TYPES[number]):
                out.write(raw)
            out.write(bytes(-out.tell() % alignment))


_NUMBERS = {kind.name: number for number, kind in TYPES.items()}
_KIND_OF = {dtype: name for name, dtype in PLAIN.items()}
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_WRITABLE = ("F32", "F16", "BF16", "Q8_0")


class _Metadata(Mapping[str, Any]):
    """The file's key/values, of which long arrays are decoded when they are asked for."""

    def __init__(self, values: Mapping[str, Any], types: Mapping[str, Any]) -> None:
        self._values, self._types = values, MappingProxyType(dict(types))

    def __getitem__(self, key: str) -> Any:
        return self._types[key] if key in self._types else self._values[key]

    def __iter__(self) -> Iterator[str]:
        yield from (key for key in self._values if key not in self._types)
        yield from self._types

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _check_alignment(alignment: object, path: Path) -> None:
    if not is_size(alignment) or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise FormatError("general.alignment is no power of two from 8 to 2**20", where=path, got=str(alignment)[:80])


def _check_entry(path: Path, entry: TensorEntry) -> tuple[TensorInfo, GgmlType]:
    kind = TYPES.get(entry.kind, GgmlType(f"number {entry.kind}", 1, 0))  # its size is not known; reading refuses it
    info = tensor_info(entry.name, list(entry.shape[::-1]), PLAIN.get(kind.name, "float32"), path)
    if (info.shape[-1] if info.shape else 1) % kind.values:
        raise FormatError(
            f"tensor {entry.name!r} has rows of no whole number of quantised blocks",
            where=path,
            expected=f"a multiple of {kind.values} values for {kind.name}",
            got=info.shape,
            do=AGAIN,
        )
    return info, kind


def _check_places(path: Path, ranges: list[tuple[int, int, str]], alignment: int, size: int, sized: bool) -> None:
    """Each tensor has to begin where the one before it ends, and the file where the last does, but for padding.

    The format has no checksums: this is how bytes that were put in, or left out, are found.

    Args:
        ranges: first byte, the byte after the last, and name of each tensor, in the `size` bytes that hold tensors.
        sized: whether the size of every tensor is known.
    """
    end, before = 0, "the header"
    for start, stop, name in sorted(ranges):
        if start < end:
            raise FormatError(f"tensor {name!r} overlaps another", where=path, got=f"offset {start}", do=AGAIN)
        if sized and start != _padded(end, alignment):
            raise FormatError(
                f"there are bytes between {before} and tensor {name!r} that belong to neither",
                where=path,
                expected=f"offset {_padded(end, alignment)}",
                got=f"offset {start}",
                do=AGAIN,
            )
        end, before = stop, f"tensor {name!r}"
    if sized and size not in (end, _padded(end, alignment)):
        raise FormatError(
            f"the file does not end where {before} does: bytes were put in, or follow it",
            where=path,
            expected=f"{end} bytes of tensors, or {_padded(end, alignment)} with padding",
            got=size,
            do=AGAIN,
        )


def _padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _written_as(path: Path, info: TensorInfo, wanted: str | None) -> int:
    """The number of the ggml type that a tensor is to be written as."""
    own = _KIND_OF.get(info.dtype)
    where = f"{path}, tensor {info.name!r}"
    if own is None:
        do = "choose one, as with --dtype float32" if info.dtype.startswith("float8") else None
        raise FormatError(f"GGUF has no dtype {info.dtype}", where=where, expected=", ".join(_KIND_OF), do=do)
    if wanted is None or wanted == own:
        return _NUMBERS[own]
    if wanted not in _WRITABLE or info.dtype not in _FLOATS:
        raise FormatError(
            f"a tensor of {info.dtype} cannot be written as {wanted}",
            where=where,
            expected=f"{', '.join(_WRITABLE)}, for floating dtypes",
            do="choose one of these in ggml_types, or leave the tensor out of it",
        )
    kind = TYPES[_NUMBERS[wanted]]
    if (info.shape[-1] if info.shape else 1) % kind.values:
        raise FormatError(
            "a row does not divide into quantised blocks",
            where=where,
            expected=f"a multiple of {kind.values} values for {wanted}",
            got=info.shape,
            do="leave the tensor out of ggml_types",
        )
    return _NUMBERS[wanted]


def _converted(checkpoint: Checkpoint, name: str, kind: GgmlType) -> Iterator[bytes | memoryview]:
    """The bytes of a tensor as `kind`, block by block."""
    rest = np.empty(0, np.float32)
    for block in checkpoint.blocks(name):
        if kind.name in PLAIN:
            with np.errstate(over="ignore"):  # float16 becomes infinite beyond its range
                yield little_endian(block.astype(PLAIN[kind.name], copy=False))
            continue
        flat = block.astype(np.float32, copy=False).reshape(-1)
        flat = np.concatenate([rest, flat]) if len(rest) else flat
        whole = len(flat) // kind.values * kind.values  # a piece of a one-dimensional tensor may end inside a block
        rest = flat[whole:].copy()
        try:
            yield quantise_q8_0(flat[:whole].reshape(-1, kind.values)).data
        except FormatError as error:
            where = f"{checkpoint.path}, tensor {name!r}"
            do = "leave the tensor out of ggml_types"
            raise FormatError(error.what, where=where, expected=error.expected, got=error.got, do=do) from error
