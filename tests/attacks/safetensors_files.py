"""Safetensors files that are wrong in one way each: name -> (bytes, text that the error must hold)."""

from __future__ import annotations

import json


def raw(header: dict | bytes, body: bytes = b"") -> bytes:
    """A safetensors file with any header at all."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(begin: object, end: object, shape: object = (2,), dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD = raw({"a": entry(0, 8), "b": entry(8, 16)}, bytes(16))

BROKEN: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "empty"),
    "git lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n",
        "git lfs pull",
    ),
    "html page": (b"<!DOCTYPE html><html><body>404</body></html>", "/resolve/"),
    "shorter than the length": (b"\x01\x02", "truncated"),
    "truncated header": (GOOD[:30], "truncated"),
    "truncated body": (GOOD[:-1], "truncated"),
    "trailing bytes": (GOOD + b"\0", "no tensor claims"),
    "absurd header length": (b"\xff" * 8 + b"{}", "truncated"),
    "header length of an exabyte": ((1 << 60).to_bytes(8, "little") + b"{" + bytes(99), "truncated"),
    "header that is no object": (raw(b"[1, 2]"), "not safetensors"),
    "header that is no JSON": (raw(b"{nope}"), "JSON"),
    "header that is not UTF-8": (raw(b'{"\xff": 1}'), "JSON"),
    "header nested too deeply": (raw(b'{"a":' + b"[" * 200_000), "JSON"),
    "number of a million digits": (raw(b'{"a":' + b"9" * 1_000_000 + b"}"), "JSON"),
    "duplicate names": (
        raw(b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 8)).encode(),) * 2), bytes(8)),
        "duplicate",
    ),
    "duplicate fields": (
        raw(b'{"a":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        "duplicate",
    ),
    "overlap": (raw({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "overlaps"),
    "same range twice": (raw({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)), "overlaps"),
    "hole": (raw({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20)), "hole"),
    "out of the file": (raw({"a": entry(0, 1 << 40, [1 << 38])}, bytes(8)), "truncated"),
    "begin after end": (raw({"a": entry(8, 0)}, bytes(8)), "do not fit"),
    "negative offset": (raw({"a": entry(-8, 0)}, bytes(8)), "do not fit"),
    "offset that is no integer": (raw({"a": entry(0.0, 8.0)}, bytes(8)), "do not fit"),
    "three offsets": (raw({"a": {**entry(0, 8), "data_offsets": [0, 8, 8]}}, bytes(8)), "do not fit"),
    "size that does not fit the shape": (raw({"a": entry(0, 8, [3])}, bytes(8)), "do not fit"),
    "negative dimension": (raw({"a": entry(0, 8, [-1, -2])}, bytes(8)), "sizes"),
    "boolean dimension": (raw({"a": entry(0, 4, [True])}, bytes(4)), "sizes"),
    "shape that overflows": (raw({"a": entry(0, 0, [1 << 62, 1 << 62])}), "sizes"),
    "empty shape that overflows": (raw({"a": entry(0, 0, [0, 1 << 62])}), "sizes"),
    "a hundred dimensions": (raw({"a": entry(0, 4, [1] * 100)}, bytes(4)), "sizes"),
    "shape that is text": (raw({"a": entry(0, 8, "2")}, bytes(8)), "sizes"),
    "wrong dtype": (raw({"a": entry(0, 8, dtype="F33")}, bytes(8)), "dtype"),
    "dtype that is a list": (raw({"a": entry(0, 8, dtype=["F32"])}, bytes(8)), "dtype"),
    "dtype of half a byte": (raw({"a": entry(0, 1, dtype="F4")}, bytes(1)), "dtype"),
    "entry without offsets": (raw({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)), "no tensor"),
    "entry that is a number": (raw({"a": 3}, bytes(8)), "no tensor"),
    "metadata that is not text": (raw({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata that is a list": (raw({"__metadata__": [1]}), "__metadata__"),
}
