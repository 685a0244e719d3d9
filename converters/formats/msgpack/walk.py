"""A strict walker over one MessagePack value in a mapped file, of which it copies keys and plain values only.

Everything is checked against the bytes that are left before it is believed: lengths, counts, UTF-8. Maps become
dicts, arrays dicts by position ("0", "1", ..., as Flax writes lists), Flax's extension types an `Array` that tells
where the bytes lie. See `converters.formats.msgpack.read`.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from converters.checkpoint import AGAIN
from zoo.errors import FormatError

__all__ = ["CHUNKED", "MAX_DEPTH", "MAX_ITEMS", "Array", "Walker"]

CHUNKED = "__msgpack_chunked_array__"

MAX_DEPTH = 64
MAX_ITEMS = 1 << 17
"""How many maps, keys and axes of arrays a file may have in all; a model in one file has some thousands."""
MAX_TEXT = 1 << 12
"""Bytes of a key, and of a text that is kept whole."""
MAX_PLAIN = 1 << 24
"""Bytes of memory for keys and plain values."""


class Array(NamedTuple):
    """An array of the file: what it says of itself, and where its `size` bytes start."""

    shape: tuple[int, ...]
    dtype: str
    start: int
    size: int


class Walker:
    """Reads the one value that a file holds.

    Args:
        path: stands in errors.
        data: the file, mapped.
    """

    def __init__(self, path: Path, data: memoryview) -> None:
        self._path = path
        self._data = data
        self._at = 0
        self._end = len(data)
        self._items = MAX_ITEMS
        self._plain = MAX_PLAIN
        self._keys: list[str] = []

    def whole(self) -> dict[str, Any]:
        """The file's map, to its last byte.

        Raises:
            FormatError: truncated, not MessagePack, not a map, or more than one value.
        """
        found = self._value()
        if not isinstance(found, dict):
            self._refuse("the file holds no map of names to arrays", got=type(found).__name__)
        if self._at != self._end:
            self._refuse("the file has bytes after its end", expected=f"{self._at} bytes", got=f"{self._end}")
        return found

    def _value(self) -> Any:
        code = self._take(1)[0]
        if code < 0x80:
            return code
        if code >= 0xE0:
            return code - 0x100
        if code < 0x90:
            return self._map(code & 0xF)
        if code < 0xA0:
            return self._list(code & 0xF)
        if code < 0xC0:
            return self._text(code & 0x1F)
        if code in _PLAIN:
            return _PLAIN[code]
        if code in _NUMBERS:
            kind, size = _NUMBERS[code]
            return struct.unpack(kind, self._take(size))[0]
        if code in _FIXED_EXTENSIONS:
            return self._extension(_FIXED_EXTENSIONS[code])
        if code not in _LENGTHS:
            self._refuse("the file is not MessagePack", got=f"byte 0x{code:02x} at {self._at - 1}")
        kind, size = _LENGTHS[code]
        length = int.from_bytes(self._take(size), "big")
        if kind == "bin":
            self._skip(length)
            return "<bytes>"
        reader = {"str": self._text, "array": self._list, "map": self._map, "ext": self._extension}[kind]
        return reader(length)

    def _map(self, count: int) -> dict[str, Any]:
        self._enter(count, 2)
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self._key()
            if key in found:
                self._refuse(f"the key {key!r} stands twice in one map")
            self._keys[-1] = key
            found[key] = self._value()
        self._keys.pop()
        return found

    def _list(self, count: int) -> dict[str, Any]:
        self._enter(count, 1)
        found = {}
        for position in range(count):
            self._keys[-1] = str(position)
            found[str(position)] = self._value()
        self._keys.pop()
        return found

    def _enter(self, count: int, least: int) -> None:
        """Before a map or list: whether the bytes that are left can hold it, at `least` bytes an item."""
        self._items -= count + 1
        if count * least > self._end - self._at:
            self._refuse("the file is truncated", expected=f"{count} items", got=f"{self._end - self._at} bytes")
        if self._items < 0 or len(self._keys) >= MAX_DEPTH:
            self._refuse(
                "the file has too many names, or maps in maps",
                expected=f"at most {MAX_ITEMS} names, {MAX_DEPTH} deep",
            )
        self._keys.append("")

    def _key(self) -> str:
        code = self._take(1)[0]
        if 0xA0 <= code < 0xC0:
            length = code & 0x1F
        elif 0xD9 <= code <= 0xDB:
            length = int.from_bytes(self._take(1 << (code - 0xD9)), "big")
        else:
            self._refuse("a key is not text", got=f"byte 0x{code:02x} at {self._at - 1}")
        if length > MAX_TEXT:
            self._refuse("a key is too long", expected=f"at most {MAX_TEXT} bytes", got=length)
        key = self._text(length)
        if "/" in key:
            self._refuse(f"the key {key[:80]!r} holds a slash, which separates keys in names", do="rename it")
        return key

    def _text(self, length: int) -> str:
        if length > 256 * MAX_TEXT:
            self._refuse("a text is too long", expected=f"at most {256 * MAX_TEXT} bytes", got=length)
        try:
            text = str(self._take(length), "utf-8")
        except UnicodeDecodeError as error:
            self._refuse("a text is not UTF-8", got=error)
        text = text if length <= MAX_TEXT else text[: MAX_TEXT // 4] + "…"
        self._plain -= sys.getsizeof(text)
        if self._plain < 0:
            self._refuse("the file's keys and texts are too long", expected=f"at most {MAX_PLAIN} bytes")
        return text

    def _extension(self, length: int) -> Any:
        kind = self._take(1)[0]
        start = self._at
        self._skip(length)
        if kind not in (1, 2, 3):
            self._refuse("unknown extension type", expected="1, 2 or 3, those of Flax", got=kind)
        self._at, end, self._end = start, self._end, start + length
        found = self._complex() if kind == 2 else self._array()
        if self._at != self._end:
            self._refuse("an array or number has bytes after its end", got=f"{self._end - self._at} bytes")
        self._end = end
        return found

    def _array(self) -> Array:
        three, code = self._take(2)
        if three != 0x93 or not (0x90 <= code < 0xA0 or code == 0xDC):
            self._refuse("an array does not say its shape, dtype and bytes")
        rank = int.from_bytes(self._take(2), "big") if code == 0xDC else code & 0xF
        self._items -= rank
        if rank > 64 or self._items < 0:
            self._refuse("an array has too many axes", expected="at most 64", got=rank)
        shape = tuple(self._size() for _ in range(rank))
        code = self._take(1)[0]
        named = 0xA0 <= code < 0xC0
        dtype = self._text(code & 0x1F) if named else ""
        code = self._take(1)[0]
        if not named or code not in (0xC4, 0xC5, 0xC6):
            self._refuse("an array does not say its shape, dtype and bytes")
        size = int.from_bytes(self._take(1 << (code - 0xC4)), "big")
        start = self._at
        self._skip(size)
        return Array(shape, sys.intern(dtype), start, size)

    def _size(self) -> int:
        code = self._take(1)[0]
        if code < 0x80:
            return code
        if not 0xCC <= code <= 0xCF:
            self._refuse("a shape is not a list of sizes", got=f"byte 0x{code:02x} at {self._at - 1}")
        return int.from_bytes(self._take(1 << (code - 0xCC)), "big")

    def _complex(self) -> str:
        raw = bytes(self._take(19)) if self._end - self._at == 19 else b""
        if len(raw) != 19 or raw[0] != 0x92 or raw[1] != 0xCB or raw[10] != 0xCB:
            self._refuse("a complex number is not two floats")
        real, imaginary = struct.unpack(">xxdxd", raw)
        return str(complex(real, imaginary))

    def _take(self, size: int) -> memoryview:
        start = self._at
        self._skip(size)
        return self._data[start : self._at]

    def _skip(self, size: int) -> None:
        if size > self._end - self._at:
            whole = self._end == len(self._data)
            self._refuse(
                "the file is truncated" if whole else "an array is longer than the place it has",
                expected=f"{size} bytes at {self._at}",
                got=f"{self._end - self._at}",
            )
        self._at += size

    def _refuse(self, what: str, *, expected: object = None, got: object = None, do: str = AGAIN) -> NoReturn:
        keys = "/".join(filter(None, self._keys))[:200]
        where = f"{self._path}, tensor {keys!r}" if keys else self._path
        raise FormatError(what, where=where, expected=expected, got=got, do=do)


_PLAIN = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
    0xCA: (">f", 4),
    0xCB: (">d", 8),
    0xCC: (">B", 1),
    0xCD: (">H", 2),
    0xCE: (">I", 4),
    0xCF: (">Q", 8),
    0xD0: (">b", 1),
    0xD1: (">h", 2),
    0xD2: (">i", 4),
    0xD3: (">q", 8),
}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_LENGTHS = {
    first + i: (kind, size)
    for kind, first, sizes in (
        ("bin", 0xC4, (1, 2, 4)),
        ("ext", 0xC7, (1, 2, 4)),
        ("str", 0xD9, (1, 2, 4)),
        ("array", 0xDC, (2, 4)),
        ("map", 0xDE, (2, 4)),
    )
    for i, size in enumerate(sizes)
}
