"""Partitioned variables of TensorFlow's checkpoints: which box of the tensor each part is, and the parts' keys.

Source: tensorflow/core/framework/tensor_slice.proto, tensorflow/core/util/saved_tensor_slice_util.cc and
tensorflow/core/lib/strings/ordered_code.cc in https://github.com/tensorflow/tensorflow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from converters.checkpoint import AGAIN, TensorInfo, tensor_info
from converters.formats.protobuf import Message
from zoo.errors import FormatError

__all__ = ["Box", "box_info", "check_boxes", "data_type", "dimensions", "read_box", "slice_key"]

Box = tuple[tuple[int, int], ...]
"""(start, length) along every axis; length -1: the whole axis."""

MAX_PARTS = 1024
_TYPES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    7: "string",
    8: "complex64",
    9: "int64",
    10: "bool",
    11: "qint8",
    12: "quint8",
    13: "qint32",
    14: "bfloat16",
    15: "qint16",
    16: "quint16",
    17: "uint16",
    18: "complex128",
    19: "float16",
    20: "resource",
    21: "variant",
    22: "uint32",
    23: "uint64",
    24: "float8_e5m2",
    25: "float8_e4m3fn",
    26: "float8_e4m3fnuz",
    27: "float8_e4m3b11fnuz",
    28: "float8_e5m2fnuz",
    29: "int4",
    30: "uint4",
    31: "int2",
    32: "uint2",
}
NUMBERS = {name: number for number, name in _TYPES.items()}
"""dtype -> TensorFlow's number for it (tensorflow/core/framework/types.proto)."""


def data_type(number: int) -> str:
    """TensorFlow's name of a dtype."""
    return _TYPES.get(number, f"number {number}")


def dimensions(shape: Message | None, name: str, path: Path) -> list[int]:
    """The sizes in a TensorShapeProto (fields 2 and 3); a scalar's is empty or left out."""
    if shape is None:
        return []
    sizes = [dim.integer(1) for dim in shape.messages(2, (1,), "a dimension")]
    if shape.integer(3) or any(size < 0 for size in sizes):
        raise FormatError("a tensor's shape is not known", where=f"{path}, tensor {name!r}", got=sizes[:64], do=AGAIN)
    return sizes


def read_box(part: Message) -> Box:
    """A TensorSliceProto (field 1)."""
    return tuple((extent.integer(1), extent.integer(2, -1)) for extent in part.messages(1, (1, 2), "an extent"))


def slice_key(name: str, box: Box) -> bytes:
    """The key under which a part's data stands: an encoding that sorts as (name, box) does."""
    escaped = name.encode().replace(b"\0", b"\0\xff")
    rank = len(box).to_bytes((len(box).bit_length() + 7) // 8, "big")
    numbers = b"".join(_signed(number) for pair in box for number in pair)
    return b"\0" + escaped + b"\0\1" + bytes([len(rank)]) + rank + numbers


def box_info(info: TensorInfo, box: Box) -> TensorInfo:
    """The part as a tensor of its own."""
    shape = [size if length < 0 else length for (_, length), size in zip(box, info.shape, strict=True)]
    return tensor_info(info.name, shape, info.dtype, info.file)


def check_boxes(info: TensorInfo, boxes: Sequence[Box]) -> None:
    """Whether the parts lie in the tensor, apart from each other, and fill it.

    Raises:
        FormatError: naming file and tensor.
    """
    where = f"{info.file}, tensor {info.name!r}"
    if len(boxes) > MAX_PARTS:
        raise FormatError("a variable is in too many parts", where=where, expected=MAX_PARTS, got=len(boxes))
    ranges: list[list[tuple[int, int]]] = []
    for box in boxes:
        if len(box) != len(info.shape):
            raise FormatError("a part of a variable has another rank", where=where, got=str(box)[:200], do=AGAIN)
        ends = [(s, s + (n if length < 0 else length)) for (s, length), n in zip(box, info.shape, strict=True)]
        if any(not 0 <= s <= e <= n for (s, e), n in zip(ends, info.shape, strict=True)):
            raise FormatError("a part of a variable lies outside it", where=where, got=str(box)[:200], do=AGAIN)
        for other in ranges:
            if all(max(a[0], b[0]) < min(a[1], b[1]) for a, b in zip(ends, other, strict=True)):
                raise FormatError("two parts of a variable overlap", where=where, got=str(box)[:200], do=AGAIN)
        ranges.append(ends)
    held = sum(math.prod(e - s for s, e in ends) for ends in ranges)
    if held != math.prod(info.shape):
        raise FormatError(
            "parts of a variable are missing", where=where, expected=f"{math.prod(info.shape)} values", got=held
        )


def _signed(value: int) -> bytes:
    """OrderedCode's signed number: n bytes hold 7n - 1 bits, their count stands in the highest bits."""
    size = next(n for n in range(1, 11) if -(1 << 7 * n - 1) <= value < 1 << 7 * n - 1)
    header = ((1 << size) - 1) << (8 * size - size)
    if size == 1:
        return bytes([(value & 0xFF) ^ 0x80])
    return ((value & ((1 << 8 * size) - 1)) ^ header).to_bytes(size, "big")
