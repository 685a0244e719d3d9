"""Flax's .msgpack checkpoints: nested maps of names to arrays, read from the mapped file without copies.

An array is MessagePack's extension type 1, whose payload is itself MessagePack: (shape, name of the dtype, bytes).
Type 3 is a NumPy scalar in the same form; type 2 is a complex number, (real, imaginary). An array above 1 GiB is a
map {"__msgpack_chunked_array__": true, "shape": {"0": n, ...}, "chunks": {"0": flat array, ...}}.
Sources: flax/serialization.py; https://github.com/msgpack/msgpack/blob/master/spec.md. The msgpack library would
read everything into memory, hence the walker here.

Names are the keys joined by "/" ("params/encoder/layer/0/kernel"), positions in the case of lists. What is not an
array (a step count, an empty map) stands in `metadata` by its whole name.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.checkpoint import (
    AGAIN,
    DTYPES,
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
from converters.formats.msgpack.walk import CHUNKED, Array, Walker
from zoo.errors import FormatError

__all__ = ["SUFFIXES", "FlaxCheckpoint", "open_file", "recognises", "write"]

SUFFIXES = (".msgpack",)

MAX_CHUNK = 1 << 30
"""Bytes of an array beyond which Flax writes it in chunks (`MAX_CHUNK_SIZE`)."""

MAX_NAMES = 1 << 24
"""Bytes that all names may take together: maps can repeat a long prefix far more often than the file holds it."""


def recognises(head: bytes) -> bool:
    """Whether a file that begins so is a MessagePack map whose first key is text."""
    first = head[0] if head else 0
    key = head[{0xDE: 3, 0xDF: 5}.get(first, 1) :]
    if not (0x81 <= first <= 0x8F or first in (0xDE, 0xDF)) or len(key) < 2:
        return False
    if key[0] == 0xD9:
        key, length = key[2:], key[1]
    elif 0xA0 <= key[0] <= 0xBF:
        key, length = key[1:], key[0] & 0x1F
    else:
        return False
    try:
        return key[:length].decode().isprintable()
    except UnicodeDecodeError:
        return False


def open_file(path: Path) -> FlaxCheckpoint:
    """Opens one file of `flax.serialization`, walking all of its maps and reading no array.

    Raises:
        FormatError: truncated, not such a file, keys that stand twice, arrays that do not fit their bytes.
        SourceError: the file cannot be read.
    """
    data = map_file(path)
    refuse_impostor(path, bytes(data[:512]))
    tree = Walker(path, data).whole()
    infos: dict[str, TensorInfo] = {}
    places: dict[str, list[int]] = {}
    chunks: dict[str, list[int]] = {}
    metadata: dict[str, Any] = {}
    budget = MAX_NAMES
    for name, leaf in _leaves(tree, ""):
        budget -= sys.getsizeof(name)
        if budget < 0:
            raise FormatError("the file's names are too long", where=path, expected=f"at most {MAX_NAMES} bytes")
        if isinstance(leaf, Array):
            infos[name], places[name] = _info(path, name, leaf), [leaf.start]
        elif isinstance(leaf, dict) and CHUNKED in leaf:
            infos[name], places[name], chunks[name] = _unchunk(path, name, leaf)
        else:
            metadata[name] = leaf
    return FlaxCheckpoint(path, infos, data, places, chunks, metadata)


class FlaxCheckpoint(Checkpoint):
    """One Flax file; `read` returns views, and a new array for one that is stored in chunks."""

    format = "flax"

    def __init__(
        self,
        path: Path,
        infos: Mapping[str, TensorInfo],
        data: memoryview,
        places: Mapping[str, list[int]],
        chunks: Mapping[str, list[int]],
        metadata: Mapping[str, Any],
    ) -> None:
        super().__init__(path, infos, metadata=metadata)
        self._data = data
        self._places = places
        self._chunks = chunks

    def _read(self, info: TensorInfo) -> np.ndarray:
        starts = self._places[info.name]
        if info.name not in self._chunks:
            return array_view(self._data, info, starts[0])
        whole = np.empty(info.nbytes, np.uint8)
        position = 0
        for start, size in zip(starts, self._chunks[info.name], strict=True):
            part = np.frombuffer(self._data, np.uint8, size, start)
            whole[position : position + size] = part
            release(part)
            position += size
        return array_view(whole.data, info, 0)

    def _close(self) -> None:
        self._data = memoryview(b"")


def write(path: Path, checkpoint: Checkpoint, metadata: Mapping[str, str] = NO_METADATA) -> None:
    """Writes the file that `flax.serialization.to_bytes` gives, holding one block of one tensor at a time in memory.

    Args:
        path: a new file.
        checkpoint: its tensors, of any dtype in `DTYPES`; "/" in a name separates the keys of nested maps, which
            stand in the order of their first tensors.
        metadata: left out: the format has no place for it.

    Raises:
        FormatError: a tensor whose name is also that of a map, a name that is not valid text.
    """
    tree: dict[str, Any] = {}
    for info in checkpoint.infos.values():
        *parents, last = info.name.split("/")
        node: Any = tree
        for key in parents:
            node = node.setdefault(key, {})
            if isinstance(node, TensorInfo):
                break
        if isinstance(node, TensorInfo) or last in node or CHUNKED in (*parents, last):
            raise FormatError(
                "a tensor's name is also that of a group of tensors, or reserved",
                where=f"{path}, tensor {info.name!r}",
                do="rename one of them",
            )
        node[last] = info
    with path.open("xb") as out:
        for piece in _packed(path, tree, checkpoint):
            out.write(piece)


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value and CHUNKED not in value:
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _info(path: Path, name: str, array: Array, shape: Sequence[int] | None = None) -> TensorInfo:
    info = tensor_info(name, list(array.shape if shape is None else shape), array.dtype, path)
    if shape is None and info.nbytes != array.size:
        raise FormatError(
            "an array's bytes do not fit its shape",
            where=f"{path}, tensor {name!r}",
            expected=f"{info.nbytes} bytes for {info.dtype} {list(info.shape)}",
            got=f"{array.size} bytes",
            do=AGAIN,
        )
    return info


def _unchunk(path: Path, name: str, node: Mapping[str, Any]) -> tuple[TensorInfo, list[int], list[int]]:
    """The info of an array in chunks, and where these start and how long they are."""
    shape, chunks = _numbered(node.get("shape")), _numbered(node.get("chunks"))
    arrays = [chunk for chunk in chunks or () if isinstance(chunk, Array)]
    if (
        set(node) == {CHUNKED, "shape", "chunks"}
        and node[CHUNKED] is True
        and shape is not None
        and all(map(is_size, shape))
        and arrays
        and len(arrays) == len(chunks or ())
        and len({array.dtype for array in arrays}) == 1
        and all(_info(path, name, array) for array in arrays)
    ):
        info = _info(path, name, arrays[0], shape)
        if info.nbytes == sum(array.size for array in arrays):
            return info, [array.start for array in arrays], [array.size for array in arrays]
    raise FormatError(
        "an array in chunks is not whole",
        where=f"{path}, tensor {name!r}",
        expected="a shape, and chunks of one dtype that fill it",
        got=f"shape {str(shape)[:80]}, {len(chunks or ())} chunks",
        do=AGAIN,
    )


def _numbered(node: object) -> list[Any] | None:
    """The values of {"0": first, "1": second, ...}."""
    if not isinstance(node, dict) or set(node) != {str(i) for i in range(len(node))}:
        return None
    return [node[str(i)] for i in range(len(node))]


def _packed(path: Path, tree: Mapping[str, Any], checkpoint: Checkpoint) -> Iterator[bytes | memoryview]:
    yield _head(len(tree), 0x80, 16, 0xDE)
    for key, node in tree.items():
        try:
            yield _text(key)
        except UnicodeEncodeError as error:
            raise FormatError("a tensor's name is not valid text", where=path, got=repr(key)) from error
        if not isinstance(node, TensorInfo):
            yield from _packed(path, node, checkpoint)
        elif node.nbytes <= MAX_CHUNK:
            yield _array_head(node.shape, node.dtype, node.nbytes)
            yield from map(little_endian, checkpoint.blocks(node.name))
        else:
            yield from _chunked(node, checkpoint)


def _chunked(info: TensorInfo, checkpoint: Checkpoint) -> Iterator[bytes | memoryview]:
    size = DTYPES[info.dtype].itemsize
    step = max(1, MAX_CHUNK // size) * size
    yield _head(3, 0x80, 16, 0xDE) + _text(CHUNKED) + b"\xc3"
    yield _text("shape") + _head(len(info.shape), 0x80, 16, 0xDE)
    yield b"".join(_text(str(i)) + _integer(dim) for i, dim in enumerate(info.shape))
    yield _text("chunks") + _head(-(-info.nbytes // step), 0x80, 16, 0xDE)
    position = 0
    for block in checkpoint.blocks(info.name):
        rest = little_endian(block)
        while rest:
            if position % step == 0:
                length = min(step, info.nbytes - position)
                yield _text(str(position // step)) + _array_head((length // size,), info.dtype, length)
            piece = rest[: step - position % step]
            yield piece
            position += len(piece)
            rest = rest[len(piece) :]


def _array_head(shape: Sequence[int], dtype: str, size: int) -> bytes:
    """What stands before an array's bytes: the extension's type and length, the shape, the dtype, their length."""
    inner = _head(3, 0x90, 16, 0xDC) + _head(len(shape), 0x90, 16, 0xDC)
    inner += b"".join(map(_integer, shape)) + _text(dtype) + _length(size, 0xC4)
    total = len(inner) + size
    fixed = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}.get(total)
    return (bytes([fixed]) if fixed else _length(total, 0xC7)) + b"\x01" + inner


def _head(count: int, fixed: int, below: int, code: int) -> bytes:
    """The head of a map or array: `fixed` plus a small count, or one of the two codes from `code` on."""
    if count < below:
        return bytes([fixed + count])
    return struct.pack(">BH", code, count) if count < 1 << 16 else struct.pack(">BI", code + 1, count)


def _length(size: int, code: int) -> bytes:
    """One of the three codes from `code` on, and a length of 8, 16 or 32 bits."""
    if size < 1 << 8:
        return struct.pack(">BB", code, size)
    return struct.pack(">BH", code + 1, size) if size < 1 << 16 else struct.pack(">BI", code + 2, size)


def _text(text: str) -> bytes:
    raw = text.encode()
    return (bytes([0xA0 + len(raw)]) if len(raw) < 32 else _length(len(raw), 0xD9)) + raw


def _integer(value: int) -> bytes:
    if value < 1 << 7:
        return bytes([value])
    if value < 1 << 32:
        return _length(value, 0xCC)
    return struct.pack(">BQ", 0xCF, value)
