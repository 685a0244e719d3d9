"""TensorFlow's checkpoints, read and written without TensorFlow: prefix.index and prefix.data-00000-of-00001.

The index is a sorted table (`sstable`) of tensor name -> BundleEntryProto; the data files hold the
tensors' bytes as they are, so that they are mapped. Source: tensorflow/core/protobuf/tensor_bundle.proto and
tensorflow/core/util/tensor_bundle/tensor_bundle.cc in https://github.com/tensorflow/tensorflow. The single-file
checkpoints of TensorFlow before 0.12 go to `converters.formats.tensorflow.bundle_v1`.

Names: those of the checkpoint. TF1's are the variables' ("bert/embeddings/word_embeddings"); TF2's are paths of
attributes ("model/layer/kernel/.ATTRIBUTES/VARIABLE_VALUE"), and `metadata["full_names"]` maps them to the
variables' own names where the checkpoint's object graph stores them. Entries that are no tensors of numbers stand
in `metadata["not_tensors"]` with their dtype (strings, such as the object graph).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np

from converters.checkpoint import (
    AGAIN,
    BLOCK,
    DTYPES,
    NO_METADATA,
    Checkpoint,
    TensorInfo,
    array_view,
    is_size,
    little_endian,
    map_file,
    read_head,
    refuse_impostor,
    release,
    tensor_info,
)
from converters.formats.protobuf import Budget, Message, read_varint
from converters.formats.tensorflow import bundle_v1 as tensor_bundle_v1
from converters.formats.tensorflow.slices import (
    NUMBERS,
    Box,
    box_info,
    check_boxes,
    data_type,
    dimensions,
    read_box,
    slice_key,
)
from converters.formats.tensorflow.sstable import crc32c, entries, mask, table, varint
from zoo.errors import FormatError, SourceError, UnsafeFile

__all__ = ["SUFFIXES", "TensorBundle", "open_file", "prefix_of", "recognises", "write"]

SUFFIXES = (".index",)
ALIGNMENT = 64
"""Of every tensor in a data file that is written here, so that it maps aligned; TensorFlow wants none."""
MAX_SHARDS = 1 << 14
MAX_INDEX = 1 << 27
MAX_GRAPH = 1 << 26


def recognises(head: bytes) -> bool:
    """Whether a file that begins so is an index, a file before 0.12, or the text file called `checkpoint`."""
    if head.startswith(b"model_checkpoint_path:"):
        return True
    # A table begins with its first entry: the empty key, the length of its value, the value's first field.
    found = read_varint(head, 2) if head.startswith(b"\0\0") else None
    return bool(found and 0 < found[0] < 1 << 30 and head[found[1] : found[1] + 1] in (b"\x08", b"\x0a"))


def prefix_of(path: Path) -> Path | None:
    """The prefix of a checkpoint of several files that `path` names: its index, its prefix, or `checkpoint`.

    Returns:
        None where there is no such checkpoint.

    Raises:
        UnsafeFile: the text file `checkpoint` leads out of its folder.
    """
    if path.name == "checkpoint" and path.is_file():
        path = path.with_name(_latest(path))
    prefix = path.with_name(path.name.removesuffix(".index"))
    return prefix if prefix.name and prefix.with_name(f"{prefix.name}.index").is_file() else None


def open_file(path: Path) -> Checkpoint:
    """Opens a checkpoint of TensorFlow, checking its index and where every tensor lies, and reading none.

    Args:
        path: the .index file, the prefix, or the text file `checkpoint` beside them.

    Raises:
        FormatError: truncated, corrupt, no checkpoint, or a tensor outside its data file.
        SourceError: a file is missing or unreadable.
        UnsafeFile: the text file `checkpoint` leads out of its folder.
        MissingFramework: the package google-crc32c is not installed.
    """
    prefix = prefix_of(path)
    index = prefix.with_name(f"{prefix.name}.index") if prefix else path
    refuse_impostor(index, read_head(index))
    data = map_file(index)
    pairs = entries(data, index)
    first = next(pairs, None)
    if first is None or first[0]:
        raise FormatError("the table is no checkpoint: it has no header", where=index, got=first and first[0][:80])
    if bytes(first[1][:1]) == b"\x0a":
        return tensor_bundle_v1.open_table(index, first[1], pairs)
    if prefix is None:
        raise FormatError("the index's name does not end in .index", where=index, do="give it its own name again")
    if len(data) > MAX_INDEX:
        raise FormatError("the index is too long", where=index, expected=f"{MAX_INDEX} bytes", got=len(data))
    return _Opener(prefix, index, first[1]).open(pairs)


class TensorBundle(Checkpoint):
    """A checkpoint of TensorFlow; `read` returns views of the data files, having checked the tensor's checksum."""

    format = "tensorflow"

    def __init__(
        self,
        path: Path,
        infos: Mapping[str, TensorInfo],
        places: Mapping[str, Sequence[_Part]],
        shards: Mapping[int, memoryview],
        byteorder: str,
        metadata: Mapping[str, Any],
    ) -> None:
        super().__init__(path, infos, metadata=metadata)
        self._places = places
        self._shards = dict(shards)
        self._byteorder = byteorder

    def check(self) -> str:
        for _, array in self.items():
            release(array)
        return f"CRC-32C of the index and of {len(self.infos)} tensors"

    def _read(self, info: TensorInfo) -> np.ndarray:
        parts = self._places[info.name]
        if len(parts) == 1 and parts[0].box is None:
            return self._part(info, parts[0])
        array = np.zeros(info.shape, DTYPES[info.dtype])
        for part in parts:
            assert part.box is not None
            piece = self._part(box_info(info, part.box), part)
            array[tuple(slice(s, s + n) for (s, _), n in zip(part.box, piece.shape, strict=True))] = piece
            release(piece)
        return array

    def _part(self, info: TensorInfo, part: _Part) -> np.ndarray:
        shard = self._shards[part.shard]
        crc = 0
        for start in range(part.offset, part.offset + info.nbytes, BLOCK):
            piece = np.frombuffer(shard, np.uint8, min(BLOCK, part.offset + info.nbytes - start), start)
            crc = crc32c(piece, crc)
            release(piece)
        if mask(crc) != part.crc:
            raise FormatError(
                "a tensor's bytes are damaged: their checksum is wrong",
                where=f"{self.path}, tensor {info.name!r}",
                expected=f"{part.crc:08x}",
                got=f"{mask(crc):08x}",
                do=AGAIN,
            )
        return array_view(shard, info, part.offset, byteorder=self._byteorder)

    def _close(self) -> None:
        self._shards.clear()


def write(path: Path, checkpoint: Checkpoint, metadata: Mapping[str, str] = NO_METADATA) -> None:
    """Writes a checkpoint as TF1 does, its names as keys and no object graph, one block of one tensor at a time.

    Two files: path.data-00000-of-00001, then path.index. A checkpoint written half has no index, but to write whole
    or not at all, write into a new folder, and let `converters.atomic.replacing` put that in its place.
    `tf.train.load_checkpoint(path)` reads it; there is no text file `checkpoint` to make it the folder's latest.

    Args:
        path: the prefix (or the name of its index) of new files in a folder that exists.
        checkpoint: its tensors, of dtypes in `DTYPES` except float8_e8m0fnu.
        metadata: not kept, the format has no place for it.

    Raises:
        FormatError: a dtype or a name that the format lacks.
        MissingFramework: the package google-crc32c is not installed.
    """
    prefix = path.with_name(path.name.removesuffix(".index"))
    for info in checkpoint.infos.values():
        where = f"{prefix}, tensor {info.name!r}"
        if info.dtype not in NUMBERS:
            raise FormatError(f"TensorFlow has no dtype {info.dtype}", where=where)
        if not info.name or info.name.startswith("\0") or len(info.name.encode()) > 1 << 12:
            raise FormatError("TensorFlow's checkpoints cannot hold a tensor of that name", where=where)
    # One shard, little-endian, version 1: what TensorFlow itself writes.
    index = {b"": _number(1, 1) + _bytes(3, _number(1, 1))}
    crc32c(b"")  # before anything is written: the package may be missing
    with prefix.with_name(_shard_name(prefix, 0, 1)).open("xb") as out:
        for info in checkpoint.infos.values():
            out.write(bytes(-out.tell() % ALIGNMENT))
            start, crc = out.tell(), 0
            for block in checkpoint.blocks(info.name):
                raw = little_endian(block)
                crc = crc32c(raw, crc)
                out.write(raw)
            index[info.name.encode()] = _entry(info, start, mask(crc))
    with prefix.with_name(f"{prefix.name}.index").open("xb") as out:
        out.write(table(index))


_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


class _Part(NamedTuple):
    """Where a tensor, or the box of one, lies."""

    shard: int
    offset: int
    crc: int
    box: Box | None = None


class _Opener:
    """One checkpoint being opened."""

    def __init__(self, prefix: Path, index: Path, header: memoryview) -> None:
        self.prefix, self.index = prefix, index
        found = Message(header, (1, 2), Budget(index), "the header")
        self.count, order = found.integer(1), found.integer(2)
        if not 0 < self.count <= MAX_SHARDS or order not in (0, 1):
            raise FormatError("the header is corrupt", where=index, got=f"{self.count} files, order {order}", do=AGAIN)
        self.byteorder = "big" if order else "little"
        self.shards: dict[int, memoryview] = {}

    def open(self, pairs: Iterator[tuple[bytes, memoryview]]) -> TensorBundle:
        raw = dict(pairs)
        infos: dict[str, TensorInfo] = {}
        places: dict[str, list[_Part]] = {}
        others: dict[str, str] = {}
        full_names: dict[str, str] = {}
        for key, value in raw.items():
            if key.startswith(b"\0"):  # parts of variables, found from their whole
                continue
            try:
                name = key.decode()
            except UnicodeDecodeError as error:
                raise FormatError("a tensor's name is not UTF-8", where=self.index, got=key[:80], do=AGAIN) from error
            entry = self.entry(value, name)
            dtype = data_type(entry.integer(1))
            if dtype not in DTYPES:
                others[name] = dtype
                if name == _GRAPH and dtype == "string":
                    full_names = self.full_names(entry)
                continue
            shape = entry.message(2, (2, 3), "a shape")
            info = tensor_info(name, dimensions(shape, name, self.index), dtype, self.prefix)
            infos[name] = info
            boxes = [read_box(part) for part in entry.messages(7, (1,), "a part")]
            if not boxes:
                places[name] = [self.part(info, entry)]
                continue
            check_boxes(info, boxes)
            places[name] = []
            for box in boxes:
                found = raw.get(slice_key(name, box))
                if found is None:
                    where = f"{self.index}, tensor {name!r}"
                    raise FormatError("a part of a variable is missing", where=where, got=str(box)[:200], do=AGAIN)
                places[name].append(self.part(box_info(info, box), self.entry(found, name), box))
        metadata = {"full_names": full_names, "not_tensors": others}
        return TensorBundle(self.index, infos, places, self.shards, self.byteorder, metadata)

    def entry(self, value: memoryview, name: str) -> Message:
        return Message(value, range(1, 8), Budget(self.index, 1 << 16), f"the entry of {name!r}")

    def part(self, info: TensorInfo, entry: Message, box: Box | None = None) -> _Part:
        """Where an entry's bytes lie, having checked that they do."""
        shard, offset, size = entry.integer(3), entry.integer(4), entry.integer(5)
        if size != info.nbytes:
            raise FormatError(
                "a tensor's bytes do not fit its shape",
                where=f"{self.index}, tensor {info.name!r}",
                expected=f"{info.nbytes} bytes for {info.dtype} {list(info.shape)}",
                got=f"{size} bytes",
                do=AGAIN,
            )
        self.check_range(info.name, shard, offset, size)
        return _Part(shard, offset, int.from_bytes(entry.fixed(6, 4)[-4:], "little"), box)

    def check_range(self, name: str, shard: int, offset: int, size: int) -> None:
        if not 0 <= shard < self.count:
            where = f"{self.index}, tensor {name!r}"
            raise FormatError("no data file has that number", where=where, expected=f"0 to {self.count - 1}", got=shard)
        if shard not in self.shards:
            path = self.prefix.with_name(_shard_name(self.prefix, shard, self.count))
            if not path.exists():
                raise SourceError(
                    "a data file of the checkpoint is missing",
                    where=path,
                    expected=f"{self.count} files beside {self.index.name}",
                    do="download it, too",
                )
            self.shards[shard] = map_file(path) if path.stat().st_size else memoryview(b"")
        held = len(self.shards[shard])
        if not is_size(offset) or not is_size(size) or offset + size > held:
            raise FormatError(
                f"tensor {name!r} reaches outside its data file",
                where=_shard_name(self.prefix, shard, self.count),
                expected=f"at most {held} bytes",
                got=f"{size} bytes at {offset}",
                do=AGAIN,
            )

    def full_names(self, entry: Message) -> dict[str, str]:
        """Key -> the variable's own name, from a TrackableObjectGraph."""
        shard, offset, size = entry.integer(3), entry.integer(4), entry.integer(5)
        self.check_range(_GRAPH, shard, offset, size)
        if size > MAX_GRAPH:
            raise FormatError("the object graph is too long", where=self.index, expected=MAX_GRAPH, got=size)
        data = self.shards[shard][offset : offset + size]
        found = read_varint(data, 0)  # one string: its length, the length's checksum, its bytes
        if found is None or found[1] + 4 + found[0] != size:
            raise FormatError("the object graph is truncated", where=self.index, do=AGAIN)
        budget = Budget(self.index, 1 << 21)
        names: dict[str, str] = {}
        for node in Message(data[found[1] + 4 :], (1,), budget, "the object graph").messages(1, (2,), "an object"):
            for attribute in node.messages(2, (1, 2, 3), "an attribute"):
                if attribute.text(2) and attribute.text(3):
                    names[attribute.text(3)] = attribute.text(2)
        return names


def _shard_name(prefix: Path, shard: int, count: int) -> str:
    return f"{prefix.name}.data-{shard:05d}-of-{count:05d}"


def _latest(path: Path) -> str:
    """The prefix that the text file `checkpoint` names, a file name in its folder."""
    text = read_head(path, 1 << 16).decode("utf-8", "replace")
    found = re.search(r'^model_checkpoint_path:\s*"([^"\n]*)"', text, re.MULTILINE)
    if not found:
        raise FormatError("the file names no checkpoint", where=path, expected="model_checkpoint_path", got=text[:80])
    name = found[1]
    # Where it was written it may have stood under an absolute path; of that, the name counts.
    given = PureWindowsPath(name) if "\\" in name else PurePosixPath(name)
    if given.name in ("", "..") or (not given.anchor and len(given.parts) != 1):
        raise UnsafeFile("the checkpoint's name leads out of its folder", where=path, got=name)
    return given.name


def _entry(info: TensorInfo, offset: int, crc: int) -> bytes:
    """A BundleEntryProto, its fields in the order of their numbers, defaults left out."""
    shape = b"".join(_bytes(2, _number(1, size)) for size in info.shape)
    raw = _number(1, NUMBERS[info.dtype]) + _bytes(2, shape) + _number(4, offset) + _number(5, info.nbytes)
    return raw + bytes([6 << 3 | 5]) + crc.to_bytes(4, "little")


def _number(field: int, value: int) -> bytes:
    return bytes([field << 3]) + varint(value) if value else b""


def _bytes(field: int, value: bytes) -> bytes:
    return bytes([field << 3 | 2]) + varint(len(value)) + value
