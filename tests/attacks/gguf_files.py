"""GGUF files that are wrong in one way each: name -> (bytes, text that the error must hold)."""

from __future__ import annotations

import struct

HUGE = 1 << 60


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str = "a", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def raw(
    pairs: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    body: bytes = bytes(32),
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A GGUF file with any header at all."""
    pairs, tensors = pairs or [], [tensor()] if tensors is None else tensors
    header = struct.pack("<4sIQQ", b"GGUF", version, *(counts or (len(tensors), len(pairs))))
    header += b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + body


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


GOOD = raw(
    [pair("a", 8, text("b")), pair("n", 9, array(8, 2, text("x") + text("y")))],
    [tensor(), tensor("b", (4, 4), 0, 32)],
    bytes(96),
)

BROKEN: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "empty"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "git lfs pull"),
    "html page": (b"<!DOCTYPE html><html><body>404</body></html>", "/resolve/"),
    "not GGUF": (b"GGML" + bytes(100), "not GGUF"),
    "only the magic": (b"GGUF", "truncated"),
    "version 1": (raw(version=1), "unknown version"),
    "version 9": (raw(version=9), "unknown version"),
    "big-endian": (raw(version=3 << 24), "big-endian"),
    "2**60 keys": (raw(counts=(1, HUGE)), "more key/values"),
    "2**60 tensors": (raw(counts=(HUGE, 0)), "more tensors"),
    "a million tensors": (raw(counts=(1_000_000, 0), body=bytes(1 << 20)), "more tensors"),
    "string of 2**60 bytes": (raw([pair("a", 8, struct.pack("<Q", HUGE))]), "past its end"),
    "string of 2**64 - 1 bytes": (raw([pair("a", 8, b"\xff" * 8)]), "past its end"),
    "key of 2**60 bytes": (raw([struct.pack("<Q", HUGE)]), "past its end"),
    "key of a megabyte": (raw([pair(b"k" * (1 << 20), 0, b"\0")]), "too long"),
    "key that is no UTF-8": (raw([pair(b"\xff", 0, b"\0")]), "not UTF-8"),
    "key twice": (raw([pair("k", 0, b"\0"), pair("k", 0, b"\0")]), "twice"),
    "array of 2**60 numbers": (raw([pair("a", 9, array(4, HUGE))]), "past its end"),
    "array of 2**62 numbers": (raw([pair("a", 9, array(10, 1 << 62))]), "past its end"),
    "array of 2**60 strings": (raw([pair("a", 9, array(8, HUGE))]), "too long"),
    "array of 2**60 arrays": (raw([pair("a", 9, array(9, HUGE))]), "too long"),
    "array of a million strings": (raw([pair("a", 9, array(8, 1_000_000))]), "can hold"),
    "array of strings, one of them huge": (
        raw([pair("a", 9, array(8, 3, text("x") + struct.pack("<Q", HUGE)))], body=bytes(4096)),
        "past its end",
    ),
    "arrays nested too deeply": (raw([pair("a", 9, array(9, 1) * 50 + array(0, 1, b"\0"))]), "nested"),
    "array of an unknown type": (raw([pair("a", 9, array(77, 1, bytes(8)))]), "unknown type"),
    "value of an unknown type": (raw([pair("a", 77, bytes(8))]), "unknown type"),
    "alignment of zero": (raw([pair("general.alignment", 4, struct.pack("<I", 0))]), "power of two"),
    "alignment of 24": (raw([pair("general.alignment", 4, struct.pack("<I", 24))]), "power of two"),
    "alignment that is text": (raw([pair("general.alignment", 8, text("x"))]), "power of two"),
    "alignment of 2 GB": (raw([pair("general.alignment", 4, struct.pack("<I", 1 << 31))]), "power of two"),
    "tensor of 2**60 values": (raw(tensors=[tensor(shape=(HUGE,))]), "not a list of sizes"),
    "tensor of 2**40 values": (raw(tensors=[tensor(shape=(1 << 40,))]), "outside the file"),
    "shape that overflows": (raw(tensors=[tensor(shape=(1 << 32, 1 << 32))]), "not a list of sizes"),
    "empty shape that overflows": (raw(tensors=[tensor(shape=(0, 1 << 62))]), "not a list of sizes"),
    "2**32 - 1 dimensions": (raw(tensors=[text("a") + b"\xff" * 4 + bytes(20)]), "too many dimensions"),
    "quantised tensor of 2**40 values": (raw(tensors=[tensor(shape=(1 << 40,), kind=3)]), "outside the file"),
    "quantised rows of half a block": (raw(tensors=[tensor(shape=(16, 4), kind=3)]), "whole number"),
    "quantised scalar": (raw(tensors=[tensor(shape=(), kind=3)]), "whole number"),
    "offset of 2**63": (raw(tensors=[tensor(offset=1 << 63)]), "outside the file"),
    "offset that is not aligned": (raw(tensors=[tensor(offset=4)]), "not aligned"),
    "no body": (raw(body=b""), "outside the file"),
    "name twice": (raw(tensors=[tensor(), tensor(offset=32)]), "two tensors"),
    "name that is no UTF-8": (raw(tensors=[tensor().replace(b"a", b"\xff")]), "not UTF-8"),
    "overlap": (raw(tensors=[tensor("a", (16,)), tensor("b", (4,), 0, 32)], body=bytes(64)), "overlaps"),
    "one byte more": (GOOD + b"\0", "does not end where"),
    "a block more": (GOOD + bytes(32), "does not end where"),
    "bytes of no tensor": (raw(body=bytes(64)), "does not end where"),
    "one byte put in before the tensors": (GOOD[:-96] + b"\0" + GOOD[-96:], "does not end where"),
    "a gap between tensors": (
        raw(tensors=[tensor("a"), tensor("b", (4,), 0, 64)], body=bytes(96)),
        "belong to neither",
    ),
    "a gap before the first": (raw(tensors=[tensor("a", (4,), 0, 32)], body=bytes(64)), "belong to neither"),
}
