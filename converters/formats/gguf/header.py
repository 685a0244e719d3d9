"""The header of a GGUF file, both ways: typed key/values and the list of tensors.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Numbers are little-endian, strings a 64-bit
length and UTF-8. Bytes of a string that are no UTF-8 (some vocabularies hold such) survive a round trip as
surrogate escapes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from converters.checkpoint import AGAIN
from zoo.errors import FormatError

__all__ = ["Header", "TensorEntry", "encode", "read_header"]

MAX_ITEMS = 1 << 22
"""How many strings and nested arrays a header may hold in all; the largest vocabularies hold some 300,000."""
MAX_TENSORS = 1 << 16
MAX_KEYS = 1 << 16
MAX_DEPTH = 4


class TensorEntry(NamedTuple):
    """A tensor as the header lists it; `shape` in ggml's order, `kind` a number of `gguf_quants.TYPES`."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


class Header(NamedTuple):
    """What `read_header` found; `end` is the byte after it."""

    values: Mapping[str, Any]
    types: Mapping[str, str]
    tensors: list[TensorEntry]
    end: int


def read_header(data: memoryview, path: Path) -> Header:
    """Parses and checks everything before the tensors.

    Raises:
        FormatError: truncated, of another version or byte order, counts that the file cannot hold.
    """
    at = _Cursor(data, path)
    if bytes(data[:4]) != b"GGUF":
        raise FormatError("the file is not GGUF", where=path, expected="b'GGUF'", got=repr(bytes(data[:4])))
    at.position = 4
    version = at.number("I")
    if not version & 0xFFFF:
        raise FormatError(
            "the file is a big-endian GGUF",
            where=path,
            do="take the little-endian file of the same model, or convert it with gguf_convert_endian.py of llama.cpp",
        )
    if version not in (2, 3):
        do = "write the file again with a present llama.cpp"
        raise FormatError("unknown version of GGUF", where=path, expected="2 or 3", got=version, do=do)
    tensors, keys = at.number("Q"), at.number("Q")
    at.check_count(keys, 13, MAX_KEYS, "key/values")
    at.check_count(tensors, 24, MAX_TENSORS, "tensors")
    values = _Values(data)
    types: dict[str, str] = {}
    for _ in range(keys):
        key = at.text("a key")
        if key in types:
            raise FormatError(f"the key {key[:80]!r} stands twice in the file", where=path, do=AGAIN)
        start = at.position
        types[key] = at.skip_value()
        values.places[key] = start
    entries: dict[str, TensorEntry] = {}
    for _ in range(tensors):
        entry = at.tensor()
        if entry.name in entries:
            raise FormatError(f"two tensors are named {entry.name[:80]!r}", where=path, do=AGAIN)
        entries[entry.name] = entry
    return Header(values, types, list(entries.values()), at.position)


def encode(path: Path, values: Mapping[str, Any], types: Mapping[str, str], tensors: list[TensorEntry]) -> bytes:
    """The bytes of a header of version 3.

    Args:
        path: stands in errors.
        values: key -> value.
        types: key -> type, where it is not to be derived from the value.
        tensors: in the order of their offsets.

    Raises:
        FormatError: a value that has no type in GGUF, or not the one given.
    """
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values)))
    for key, value in values.items():
        try:
            kind = types.get(key) or _type_of(value)
            out += _string(key) + _encode_value(value, kind)
        except (ValueError, TypeError, KeyError, OverflowError, AttributeError, struct.error) as error:
            raise FormatError(
                f"the value of {key!r} cannot be written to GGUF",
                where=path,
                expected=f"{types.get(key) or 'text, bool, number, or a list of one of these'}",
                got=f"{type(value).__name__} ({error})",
                do="leave the key out, or give a value of that type",
            ) from error
    for entry in tensors:
        rank = len(entry.shape)
        out += _string(entry.name) + struct.pack(f"<I{rank}QIQ", rank, *entry.shape, entry.kind, entry.offset)
    return bytes(out)


_NAMES = (
    *("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool", "string", "array"),
    *("uint64", "int64", "float64"),
)
"""A value's type -> its number."""
_STRUCT = {name: np.dtype(name).newbyteorder("<") for name in _NAMES if name not in ("string", "array")}
_STRING, _ARRAY = _NAMES.index("string"), _NAMES.index("array")


class _Cursor:
    """A position in the header that never passes the end of the file."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data, self.path, self.position, self.items = data, path, 0, 0

    def take(self, size: int, what: str) -> int:
        """Steps over `size` bytes; returns where they began."""
        start = self.position
        if size > len(self.data) - start:
            raise FormatError(
                f"the file is truncated or corrupt: {what} reaches past its end",
                where=self.path,
                expected=f"at most {len(self.data) - start} bytes at byte {start}",
                got=size,
                do=AGAIN,
            )
        self.position = start + size
        return start

    def number(self, code: str) -> int:
        start = self.take(struct.calcsize(code), "a number")
        return struct.unpack_from("<" + code, self.data, start)[0]

    def text(self, what: str) -> str:
        size = self.number("Q")
        start = self.take(size, what)
        if size > 1 << 16:
            raise FormatError(f"{what} is too long", where=self.path, expected="65536 bytes", got=size, do=AGAIN)
        try:
            return str(self.data[start : start + size], "utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{what} is not UTF-8", where=self.path, got=error, do=AGAIN) from error

    def check_count(self, count: int, size: int, limit: int, what: str) -> None:
        """Whether `count` things of at least `size` bytes can follow."""
        most = min(limit, (len(self.data) - self.position) // size)
        if count > most:
            raise FormatError(
                f"the file claims more {what} than it can hold",
                where=self.path,
                expected=f"at most {most}",
                got=count,
                do=AGAIN,
            )

    def skip_value(self) -> str:
        """Steps over a value and its type; returns the type's name."""
        kind = self.number("I")
        return self._skip(kind, 0)

    def tensor(self) -> TensorEntry:
        name = self.text("a tensor's name")
        rank = self.number("I")
        if rank > 64:
            raise FormatError(f"tensor {name[:80]!r} has too many dimensions", where=self.path, got=rank, do=AGAIN)
        start = self.take(8 * rank + 12, "a tensor's shape")
        *shape, kind, offset = struct.unpack_from(f"<{rank}QIQ", self.data, start)
        return TensorEntry(name, tuple(shape), kind, offset)

    def _skip(self, kind: int, depth: int) -> str:
        if kind >= len(_NAMES):
            raise FormatError("a value is of an unknown type", where=self.path, got=f"number {kind}", do=AGAIN)
        name = _NAMES[kind]
        if name in _STRUCT:
            self.take(_STRUCT[name].itemsize, "a value")
            return name
        if name == "string":
            self.take(self.number("Q"), "a string")
            return name
        inner, count = self.number("I"), self.number("Q")
        if inner < len(_NAMES) and _NAMES[inner] in _STRUCT:
            self.take(count * _STRUCT[_NAMES[inner]].itemsize, "an array")
            return f"array[{_NAMES[inner]}]"
        self.items += count
        if depth >= MAX_DEPTH or inner > _ARRAY or self.items > MAX_ITEMS:
            raise FormatError(
                "an array is nested too deeply, too long or of an unknown type",
                where=self.path,
                expected=f"{MAX_DEPTH} levels, {MAX_ITEMS} strings",
                got=f"type {inner}, {count} items",
                do=AGAIN,
            )
        self.check_count(count, 8, MAX_ITEMS, "items of an array")
        if inner == _STRING:
            self._skip_strings(count)
            return "array[string]"
        kinds = {self._skip(_ARRAY, depth + 1) for _ in range(count)}
        return f"array[{kinds.pop() if len(kinds) == 1 else 'array'}]"

    def _skip_strings(self, count: int) -> None:
        """`take` in a loop, without what makes that slow: a vocabulary is most of a header."""
        unpack, data, at, end = struct.Struct("<Q").unpack_from, self.data, self.position, len(self.data)
        for _ in range(count):
            if at + 8 > end:
                break
            at += 8 + unpack(data, at)[0]
        self.take(at - self.position if at <= end else len(data) + 1, "an array of strings")


class _Values(Mapping[str, Any]):
    """Key -> value, decoded from the (checked) header when it is asked for."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.places: dict[str, int] = {}

    def __getitem__(self, key: str) -> Any:
        at = self.places[key]
        return self._value(struct.unpack_from("<I", self.data, at)[0], at + 4)[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def _value(self, kind: int, at: int) -> tuple[Any, int]:
        """A value of a type at a byte, and the byte after it."""
        if kind == _STRING:
            size = struct.unpack_from("<Q", self.data, at)[0]
            return str(self.data[at + 8 : at + 8 + size], "utf-8", "surrogateescape"), at + 8 + size
        if kind != _ARRAY:
            dtype = _STRUCT[_NAMES[kind]]
            return np.frombuffer(self.data, dtype, 1, at)[0].item(), at + dtype.itemsize
        inner, count = struct.unpack_from("<IQ", self.data, at)
        at += 12
        if inner not in (_STRING, _ARRAY):
            dtype = _STRUCT[_NAMES[inner]]
            return np.frombuffer(self.data, dtype, count, at).tolist(), at + count * dtype.itemsize
        found = []
        for _ in range(count):
            value, at = self._value(inner, at)
            found.append(value)
        return found, at


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _encode_value(value: Any, kind: str) -> bytes:
    """A value with its type before it."""
    if not kind.startswith("array["):
        return struct.pack("<I", _NAMES.index(kind)) + _encode_items([value], kind)
    inner = kind[6:-1]
    number = _ARRAY if inner.startswith("array") else _NAMES.index(inner)
    return struct.pack("<IIQ", _ARRAY, number, len(value)) + _encode_items(value, inner)


def _encode_items(items: Sequence[Any] | np.ndarray, kind: str) -> bytes:
    """Values without their type, as they stand in an array."""
    if kind == "string":
        return b"".join(map(_string, items))
    if kind.startswith("array"):  # a nested array carries its own type, but not that it is an array
        return b"".join(_encode_value(item, _type_of(item) if kind == "array" else kind)[4:] for item in items)
    dtype = _STRUCT[kind]
    given = np.asarray(items)
    if given.ndim != 1 or (given.dtype.kind not in "biuf" and len(given)):
        raise TypeError(f"not {kind}")
    if dtype.kind == "b" and not set(given.tolist()) <= {0, 1}:
        raise ValueError("neither true nor false")
    with np.errstate(over="ignore"):
        written = given.astype(dtype)
    lost = written.tolist() != given.tolist() if dtype.kind in "iu" else np.isinf(written).sum() > np.isinf(given).sum()
    if lost:
        raise ValueError(f"out of the range of {kind}")
    return written.tobytes()


def _type_of(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"array[{'string' if value.dtype.kind == 'U' else value.dtype.name}]"
    if isinstance(value, (list, tuple)):
        if value and isinstance(value[0], (list, tuple)):
            kinds = {_type_of(item) for item in value}
            return f"array[{kinds.pop() if len(kinds) == 1 else 'array'}]"
        return f"array[{_scalar_type(value, 'int32')}]"
    return _scalar_type([value], "uint32")


def _scalar_type(values: Sequence[Any], integer: str) -> str:
    """The type that holds all of some values, `integer` for whole numbers where it can."""
    if all(isinstance(value, str) for value in values):
        return "string"
    if all(isinstance(value, (bool, np.bool_)) for value in values):
        return "bool"
    if all(isinstance(value, np.generic) for value in values):
        return np.result_type(*values).name
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        names = (integer, "int32", "uint32", "int64", "uint64")
        bounds = {name: np.iinfo(name) for name in names}
        fits = (n for n in names if all(bounds[n].min <= value <= bounds[n].max for value in values))
        return next(fits, "uint64")  # which refuses them
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return "float32"
    raise TypeError("no type in GGUF")
