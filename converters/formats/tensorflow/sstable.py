"""TensorFlow's sorted table of keys and values (LevelDB's), read from a mapped file, and written.

Blocks of prefix-compressed entries, a block that is the index of the others, a footer. Source:
tensorflow/core/lib/io/table_format.txt, format.cc, block.cc and block_builder.cc in
https://github.com/tensorflow/tensorflow; Snappy: https://github.com/google/snappy/blob/main/format_description.txt.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from converters.checkpoint import AGAIN
from converters.formats.protobuf import read_varint
from zoo.errors import FormatError, MissingFramework

__all__ = ["MAGIC", "crc32c", "entries", "mask", "table", "unsnappy", "varint"]

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
MAX_ENTRIES = 1 << 17
MAX_KEY = 1 << 13
MAX_KEYS = 1 << 24
"""Bytes of all keys together: entries repeat the beginning of the key before them for nothing."""
MAX_INFLATED = 1 << 24
"""Bytes that compressed blocks may hold; TensorFlow itself does not compress."""
FOOTER = 48
BLOCK_SIZE = 1 << 18
RESTART = 16


def entries(data: memoryview, path: Path) -> Iterator[tuple[bytes, memoryview]]:
    """Every key and value of a table, in order; values are views of the file where it is not compressed.

    Raises:
        FormatError: truncated, corrupt, a wrong checksum, or keys that are not in order.
    """
    table_ = _Table(data, path)
    last: bytes | None = None
    for _, handle in table_.block(table_.index):
        for key, value in table_.block(_Handle.read(handle, path)):
            if last is not None and key <= last:
                raise FormatError("the table's keys are not in order", where=path, got=key[:80], do=AGAIN)
            last = key
            yield key, value


def table(pairs: Mapping[bytes, bytes]) -> bytes:
    """The bytes of a table of these keys and values."""
    out, index, block = bytearray(), _Builder(), _Builder()
    for key in sorted(pairs):
        block.add(key, pairs[key])
        if len(block.out) >= BLOCK_SIZE:
            index.add(key, _append(out, block))
            block = _Builder()
    if block.count:
        index.add(block.last, _append(out, block))
    handles = _append(out, _Builder()) + _append(out, index)  # the first block would hold statistics; none are
    return bytes(out + handles.ljust(FOOTER - 8, b"\0") + MAGIC)


def crc32c(data: Any, start: int = 0) -> int:
    """The CRC-32C of bytes or of a NumPy array, continued from `start`.

    Raises:
        MissingFramework: google-crc32c is not installed.
    """
    try:
        import google_crc32c
    except ImportError as error:
        raise MissingFramework(
            "TensorFlow's checkpoints need the package google-crc32c for their checksums",
            do="pip install 'anyzoo[convert]'",
        ) from error
    return google_crc32c.extend(start, data if isinstance(data, bytes) else np.frombuffer(data, np.uint8))


def mask(crc: int) -> int:
    """A checksum as it is stored: changed, so that checksums of data that hold checksums stay good ones."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value: int) -> bytes:
    """An unsigned number in groups of seven bits."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out + bytes([value]))


def unsnappy(data: memoryview, path: Path, limit: int) -> bytes:
    """The bytes that Snappy compressed, at most `limit`.

    Raises:
        FormatError: corrupt, or longer than `limit`.
    """
    size, at = read_varint(data, 0) or (limit + 1, 0)
    # Three bytes copy at most 64, so that a longer claim cannot be true.
    if size > min(limit, 22 * len(data)):
        raise FormatError("a compressed block is too long", where=path, expected=f"at most {limit}", got=size, do=AGAIN)
    out = bytearray()
    while at < len(data):
        tag, at = data[at], at + 1
        length, kind = tag >> 2, tag & 3
        if kind == 0:  # bytes as they are
            extra = max(0, length - 59)
            if extra:
                length, at = int.from_bytes(data[at : at + extra], "little"), at + extra
            literal = data[at : at + length + 1]
            if len(literal) != length + 1:
                break
            out += literal
            at += length + 1
        else:  # a repetition
            extra = (1, 2, 4)[kind - 1]
            offset = int.from_bytes(data[at : at + extra], "little")
            at += extra
            if kind == 1:
                offset, length = tag >> 5 << 8 | offset, (length & 7) + 3
            length += 1
            if not 0 < offset <= len(out) or at > len(data):
                break
            start = len(out) - offset
            out += (out[start : start + length] * (length // offset + 1))[:length]
        if len(out) > size:
            break
    if at != len(data) or len(out) != size:
        raise FormatError("a compressed block is corrupt", where=path, do=AGAIN)
    return bytes(out)


class _Handle(NamedTuple):
    """Where a block lies, and where the handle itself ended."""

    offset: int
    size: int
    after: int

    @classmethod
    def read(cls, data: memoryview, path: Path, at: int = 0) -> _Handle:
        first = read_varint(data, at)
        second = first and read_varint(data, first[1])
        if not first or not second:
            raise FormatError("the table's index is corrupt", where=path, do=AGAIN)
        return cls(first[0], *second)


class _Table:
    def __init__(self, data: memoryview, path: Path) -> None:
        if len(data) < FOOTER or bytes(data[-8:]) != MAGIC:
            raise FormatError(
                "the file is truncated, or no TensorFlow checkpoint",
                where=path,
                expected=f"a footer ending in {MAGIC.hex()}",
                got=bytes(data[-8:]).hex(),
                do=AGAIN,
            )
        self.data, self.path = data, path
        self.inflatable, self.keys, self.count = MAX_INFLATED, MAX_KEYS, MAX_ENTRIES
        footer = data[-FOOTER:-8]
        self.index = _Handle.read(footer, path, _Handle.read(footer, path).after)

    def block(self, handle: _Handle) -> Iterator[tuple[bytes, memoryview]]:
        """The entries of a block."""
        data = self._contents(handle)
        restarts = int.from_bytes(data[-4:], "little") if len(data) >= 4 else len(data)
        end = len(data) - 4 - 4 * restarts
        if end < 0:
            raise self._corrupt("its restart points reach outside")
        key, at = b"", 0
        while at < end:
            sizes = []
            for _ in range(3):
                found = read_varint(data, at)
                if found is None:
                    raise self._corrupt("a length is cut off")
                sizes.append(found[0])
                at = found[1]
            shared, fresh, size = sizes
            if shared > len(key) or shared + fresh > MAX_KEY or at + fresh + size > end:
                raise self._corrupt(f"an entry of {shared} + {fresh} and {size} bytes at {at}")
            key = key[:shared] + data[at : at + fresh]
            at += fresh + size
            self.keys -= len(key)
            self.count -= 1
            if self.keys < 0 or self.count < 0:
                raise FormatError(
                    "the table has too many or too long keys",
                    where=self.path,
                    expected=f"{MAX_ENTRIES} keys of {MAX_KEYS} bytes in all",
                )
            yield key, data[at - size : at]

    def _contents(self, handle: _Handle) -> memoryview:
        end = handle.offset + handle.size
        if end + 5 > len(self.data) - FOOTER:
            raise self._corrupt(f"{handle.size} bytes at {handle.offset} of {len(self.data)}")
        kind, stored = self.data[end], int.from_bytes(self.data[end + 1 : end + 5], "little")
        if stored != mask(crc32c(self.data[handle.offset : end + 1])):
            raise self._corrupt("its checksum is wrong")
        data = self.data[handle.offset : end]
        if kind == 0:
            return data
        if kind != 1:
            raise self._corrupt(f"unknown compression {kind}")
        inflated = unsnappy(data, self.path, self.inflatable)
        self.inflatable -= len(inflated)
        return memoryview(inflated)

    def _corrupt(self, what: str) -> FormatError:
        return FormatError(f"a block of the table is corrupt: {what}", where=self.path, do=AGAIN)


class _Builder:
    """One block in the making."""

    def __init__(self) -> None:
        self.out, self.restarts, self.count, self.last = bytearray(), [0], 0, b""

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self.count and self.count % RESTART == 0:
            self.restarts.append(len(self.out))
        else:
            most = min(len(key), len(self.last))
            shared = next((i for i in range(most) if key[i] != self.last[i]), most)
        self.out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        self.count += 1
        self.last = key


def _append(out: bytearray, block: _Builder) -> bytes:
    """Appends a block to a file; returns its handle."""
    raw = bytes(block.out) + struct.pack(f"<{len(block.restarts) + 1}I", *block.restarts, len(block.restarts))
    handle = varint(len(out)) + varint(len(raw))
    raw += b"\0"  # not compressed
    out += raw + mask(crc32c(raw)).to_bytes(4, "little")
    return handle
