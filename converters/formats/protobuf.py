"""Protocol-buffer messages as their wire format gives them: numbered fields, without a schema or a library.

Source: https://protobuf.dev/programming-guides/encoding/. Nothing is copied: what a field holds is a view of the
mapped file, however long. A message keeps only the fields that its reader names, and all messages of a file
together may have no more than `MAX_FIELDS` fields.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from converters.checkpoint import AGAIN
from zoo.errors import FormatError

__all__ = ["Budget", "Message", "read_varint"]

MAX_FIELDS = 1 << 18
"""Fields of all messages of one file; large graphs have some ten thousand nodes and tensors."""


class Budget:
    """How many more fields a file may have, shared by its messages."""

    def __init__(self, path: Path, fields: int = MAX_FIELDS) -> None:
        self.path, self.left, self.most = path, fields, fields


class Message:
    """One message, its fields by number; of a field given several times, a single value is the last.

    Args:
        data: the message's bytes.
        wanted: the numbers of the fields to keep.
        budget: shared by all messages of the file.
        what: the message in words, for errors.

    Raises:
        FormatError: truncated or malformed, or too many fields; the methods, too, when a field is of another kind.
    """

    def __init__(self, data: memoryview, wanted: Collection[int], budget: Budget, what: str) -> None:
        self.budget, self.what = budget, what
        self._fields: dict[int, list[int | memoryview]] = {number: [] for number in wanted}
        for number, value in self._walk(data):
            if number in self._fields:
                self._fields[number].append(value)

    def views(self, number: int) -> list[memoryview]:
        """Every value of a field of bytes, text, messages or packed numbers."""
        found = self._fields[number]
        for value in found:
            if not isinstance(value, memoryview):
                raise self._wrong(f"field {number} is a number where bytes should be")
        return found  # type: ignore[return-value]

    def view(self, number: int) -> memoryview | None:
        """A field of bytes, None where it is not given."""
        found = self.views(number)
        return found[-1] if found else None

    def text(self, number: int, default: str = "") -> str:
        """A field of text."""
        found = self.view(number)
        return default if found is None else self.decoded(found)

    def texts(self, number: int) -> list[str]:
        """Every value of a field of text."""
        return [self.decoded(view) for view in self.views(number)]

    def integer(self, number: int, default: int = 0) -> int:
        """A field that is one integer: signed, as int32, int64, enum and bool are."""
        found = self._fields[number]
        if not found:
            return default
        if isinstance(found[-1], memoryview):
            raise self._wrong(f"field {number} is bytes where a number should be")
        return found[-1] - (found[-1] >> 63 << 64)

    def count(self, number: int) -> int:
        """How often a field is given."""
        return len(self._fields[number])

    def size(self, number: int) -> int:
        """How many bytes a field has in all, a number that is not packed counting as one."""
        return sum(len(value) if isinstance(value, memoryview) else 1 for value in self._fields[number])

    def integers(self, number: int, most: int) -> np.ndarray:
        """A repeated field of integers, packed or not, as int64; at most so many."""
        parts = []
        for value in self._fields[number]:
            if isinstance(value, memoryview):
                parts.append(self._unpack(value, most))
            else:
                parts.append(np.array([value], np.uint64).view(np.int64))
            most -= len(parts[-1])
            if most < 0:
                raise self._wrong(f"field {number} has too many values")
        return np.concatenate(parts) if len(parts) > 1 else parts[0] if parts else np.empty(0, np.int64)

    def fixed(self, number: int, size: int) -> memoryview:
        """A repeated field of fixed-size numbers, packed or not, as their bytes; a view if packed at once."""
        parts = [v if isinstance(v, memoryview) else v.to_bytes(size, "little") for v in self._fields[number]]
        return memoryview(parts[0]) if len(parts) == 1 else memoryview(b"".join(parts))

    def message(self, number: int, wanted: Collection[int], what: str) -> Message | None:
        """A field that is a message, None where it is not given."""
        found = self.view(number)
        return None if found is None else Message(found, wanted, self.budget, what)

    def messages(self, number: int, wanted: Collection[int], what: str) -> Iterator[Message]:
        """Every value of a field of messages."""
        return (Message(view, wanted, self.budget, what) for view in self.views(number))

    def decoded(self, view: memoryview) -> str:
        """Bytes as text; at most 64 KiB, since text here is names."""
        if len(view) > 1 << 16:
            raise self._wrong(f"a text of {len(view)} bytes is too long")
        try:
            return str(view, "utf-8")
        except UnicodeDecodeError as error:
            raise self._wrong(f"a text is not UTF-8: {error}") from error

    def _walk(self, data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
        at, end, budget = 0, len(data), self.budget
        while at < end:
            budget.left -= 1
            if budget.left < 0:
                raise FormatError("the file has too many fields", where=budget.path, expected=budget.most, do=AGAIN)
            tag, at = self._varint(data, at)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 1 << 29:
                raise self._wrong(f"field number {number}")
            if wire == 0:
                value, at = self._varint(data, at)
                yield number, value
                continue
            if wire == 2:
                size, at = self._varint(data, at)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise self._wrong(f"wire type {wire} of field {number}")
            if size > end - at:
                raise self._wrong(f"field {number} claims {size} bytes of the {end - at} that are left")
            piece = data[at : at + size]
            yield number, piece if wire == 2 else int.from_bytes(piece, "little")
            at += size

    def _varint(self, data: memoryview, at: int) -> tuple[int, int]:
        if at < len(data) and data[at] < 128:  # as nearly all are
            return data[at], at + 1
        found = read_varint(data, at)
        if found is None:
            raise self._wrong("a number is cut off or longer than 64 bits")
        return found

    def _unpack(self, data: memoryview, most: int) -> np.ndarray:
        """Packed varints, all at once."""
        raw = np.frombuffer(data, np.uint8)
        if len(raw) > 10 * most:
            raise self._wrong(f"{len(raw)} bytes for {most} numbers")
        ends = np.flatnonzero(raw < 128)
        starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
        lengths = ends - starts + 1
        if (len(raw) and (not len(ends) or ends[-1] != len(raw) - 1)) or lengths.max(initial=0) > 10:
            raise self._wrong("a number is cut off or longer than 64 bits")
        values = np.zeros(len(ends), np.uint64)
        for i in range(lengths.max(initial=0)):
            longer = lengths > i
            values[longer] |= (raw[starts[longer] + i] & 127).astype(np.uint64) << np.uint64(7 * i)
        return values.view(np.int64)

    def _wrong(self, what: str) -> FormatError:
        return FormatError(f"{self.what} is corrupt: {what}", where=self.budget.path, do=AGAIN)


def read_varint(data: memoryview | bytes, at: int) -> tuple[int, int] | None:
    """The unsigned number of at most 64 bits at a byte, and the byte after it; None where there is none."""
    value = 0
    for i, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return (value, at + i + 1) if value < 1 << 64 else None
    return None
