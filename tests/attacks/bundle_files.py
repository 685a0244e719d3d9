"""TensorFlow checkpoints that are wrong in one way each, and the parts to build any."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import google_crc32c
from attacks.protobuf_bytes import field, varint

MAGIC = bytes.fromhex("57fb808b247547db")


def masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")


def fixed(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 5) + value


def shape(*sizes: int) -> bytes:
    return b"".join(field(2, field(1, size)) for size in sizes)


def entry(
    size: int = 16, dtype: int = 1, dims: tuple[int, ...] = (4,), shard: int = 0, offset: int = 0, crc: bytes = b""
) -> bytes:
    raw = field(1, dtype) + field(2, shape(*dims)) + field(3, shard) + field(4, offset) + field(5, size)
    return raw + fixed(6, crc or masked(bytes(16)))


def item(shared: int, key: bytes, value: bytes) -> bytes:
    return varint(shared) + varint(len(key)) + varint(len(value)) + key + value


def block(items: bytes, restarts: bytes = struct.pack("<II", 0, 1)) -> bytes:
    return items + restarts


def table(*blocks: bytes, kind: int = 0, index: bytes | None = None, crc: bytes | None = None) -> bytes:
    """A table of these raw blocks; of the index, the keys do not matter to a reader that reads everything."""
    out, handles = b"", b""
    for raw in blocks:
        handles += item(0, b"z", varint(len(out)) + varint(len(raw)))
        out += raw + bytes([kind]) + (crc or masked(raw + bytes([kind])))
    index = block(handles) if index is None else index
    place = varint(len(out)) + varint(len(index))
    out += index + b"\0" + masked(index + b"\0")
    return out + (place + place).ljust(40, b"\0") + MAGIC


HEADER = field(1, 1) + field(3, field(1, 1))


def index(entries: Mapping[bytes, bytes], header: bytes = HEADER) -> bytes:
    pairs = {b"": header, **entries}
    return table(block(b"".join(item(0, key, value) for key, value in pairs.items())))


DATA = bytes(16)
GOOD = index({b"a": entry()})


def save(folder: Path, raw: bytes, data: bytes | None = DATA) -> Path:
    path = folder / "m.index"
    path.write_bytes(raw)
    if data is not None:
        (folder / "m.data-00000-of-00001").write_bytes(data)
    return path


def snappy(size: int, *elements: bytes) -> bytes:
    return varint(size) + b"".join(elements)


HUGE = 1 << 60
_BOMB = snappy(1 << 24, bytes([0, 0]), *[bytes([0xFE, 1, 0])] * (1 << 12))

BROKEN: dict[str, tuple[Callable[[], bytes] | bytes, str]] = {
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "git lfs pull"),
    "html page": (b"<!DOCTYPE html><html><body>404</body></html>", "/resolve/"),
    "too short": (b"\0\0\6\x08\1", "truncated"),
    "no magic": (GOOD[:-1] + b"\0", "truncated"),
    "only a footer": (bytes(40) + MAGIC, "corrupt"),
    "footer of noise": (b"\xff" * 40 + MAGIC, "corrupt"),
    "index block out of the file": ((varint(1 << 40) + varint(9)).ljust(40, b"\0") + MAGIC, "corrupt"),
    "index block of 2**60 bytes": ((varint(0) + varint(HUGE)).ljust(40, b"\0") + MAGIC, "corrupt"),
    "data block out of the file": (table(index=block(item(0, b"z", varint(HUGE) + varint(4)))), "corrupt"),
    "handle that is cut off": (table(index=block(item(0, b"z", b"\xff"))), "index is corrupt"),
    "flipped bit": (GOOD[:5] + bytes([GOOD[5] ^ 1]) + GOOD[6:], "checksum"),
    "wrong checksum": (table(block(item(0, b"", HEADER)), crc=b"1234"), "checksum"),
    "unknown compression": (table(block(item(0, b"", HEADER)), kind=7), "compression"),
    "empty table": (table(), "no header"),
    "no header": (table(block(item(0, b"a", entry()))), "no header"),
    "block too short": (table(b"\0\0"), "restart"),
    "2**32 - 1 restarts": (table(block(item(0, b"", HEADER), b"\xff" * 4)), "restart"),
    "key out of its block": (table(block(item(0, b"", HEADER) + varint(0) + varint(99) + b"\0")), "an entry of"),
    "value of 2**60 bytes": (table(block(b"\0\0" + varint(HUGE))), "an entry of"),
    "more shared than there was": (table(block(item(0, b"", HEADER) + item(3, b"a", b""))), "an entry of"),
    "keys out of order": (index({b"b": entry(), b"a": entry()}), "not in order"),
    "key twice": (table(block(item(0, b"", HEADER) + item(0, b"a", entry()) * 2)), "not in order"),
    "key of a megabyte": (index({b"a" * (1 << 20): entry()}), "an entry of"),
    "keys that repeat each other": (
        lambda: table(block(item(0, b"", HEADER) + item(0, b"a" * 8000, b"") + item(8000, b"", b"") * 100_000)),
        "order|too long keys",
    ),
    "keys that grow": (
        lambda: table(block(item(0, b"", HEADER) + b"".join(item(i, b"a", b"") for i in range(8191)))),
        "too long keys",
    ),
    "snappy of 2**60 bytes": (table(snappy(HUGE), kind=1), "too long"),
    "snappy bomb": (table(_BOMB, kind=1), "too long"),
    "snappy that is cut off": (table(snappy(4, b"\x0c\0"), kind=1), "compressed block is corrupt"),
    "snappy that copies from before": (table(snappy(4, b"\x01\x05"), kind=1), "compressed block is corrupt"),
    "header of noise": (index({}, b"\x08\xff"), "cut off"),
    "2**31 data files": (index({}, field(1, 1 << 31)), "header is corrupt"),
    "no data files": (index({}, b"\x08\0"), "header is corrupt"),
    "unknown byte order": (index({}, field(1, 1) + field(2, 3)), "header is corrupt"),
    "name that is no UTF-8": (index({b"\xff": entry()}), "not UTF-8"),
    "entry of noise": (index({b"a": b"\xff" * 20}), "cut off"),
    "entry with a group": (index({b"a": b"\x0b"}), "wire type"),
    "entry with field 0": (index({b"a": b"\0\0"}), "field number"),
    "dtype that is bytes": (index({b"a": field(1, b"x")}), "bytes where a number"),
    "shape that is a number": (index({b"a": field(1, 1) + field(2, 1)}), "number where bytes"),
    "size that does not fit": (index({b"a": entry(12)}), "do not fit"),
    "outside the data": (index({b"a": entry(20, dims=(5,))}), "reaches outside"),
    "offset outside the data": (index({b"a": entry(offset=1)}), "reaches outside"),
    "negative offset": (index({b"a": entry(offset=(1 << 64) - 8)}), "reaches outside"),
    "tensor of 2**50 bytes": (index({b"a": entry(1 << 50, dims=(1 << 48,))}), "reaches outside"),
    "shape that overflows": (index({b"a": entry(dims=(1 << 32, 1 << 32))}), "not a list of sizes"),
    "empty shape that overflows": (index({b"a": entry(0, dims=(0, 1 << 62))}), "not a list of sizes"),
    "negative dimension": (index({b"a": entry(dims=((1 << 64) - 4,))}), "not known"),
    "unknown rank": (index({b"a": field(1, 1) + field(2, field(3, 1))}), "not known"),
    "data file 7": (index({b"a": entry(shard=7)}), "no data file"),
    "part that is missing": (index({b"a": entry(0) + field(7, field(1, b""))}), "part of a variable is missing"),
    "part outside": (index({b"a": entry(0) + field(7, field(1, field(1, 2) + field(2, 3)))}), "outside it"),
    "part of another rank": (index({b"a": entry(0) + field(7, field(1, b"") * 2)}), "another rank"),
    "part that is negative": (index({b"a": entry(0) + field(7, field(1, field(1, (1 << 64) - 1)))}), "outside it"),
    "parts that overlap": (index({b"a": entry(0) + field(7, field(1, b"")) * 2}), "overlap"),
    "parts that leave a hole": (index({b"a": entry(0) + field(7, field(1, field(2, 3)))}), "are missing"),
    "parts without number": (
        index({b"a": entry(0, dims=(5000,)) + field(7, field(1, field(2, 0))) * 5000}),
        "too many parts",
    ),
    "object graph outside": (
        index({b"_CHECKPOINTABLE_OBJECT_GRAPH": entry(99, 7, ())}),
        "reaches outside",
    ),
    "object graph that is cut off": (index({b"_CHECKPOINTABLE_OBJECT_GRAPH": entry(16, 7, ())}), "truncated"),
}
