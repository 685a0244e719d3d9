"""TensorFlow's checkpoints from before 0.12: one sorted table whose values hold the tensors.

The entry of the empty key lists the tensors, every other one is a part of one. Source:
tensorflow/core/util/saved_tensor_slice.proto and tensorflow/core/framework/tensor.proto in
https://github.com/tensorflow/tensorflow. `converters.formats.tensorflow.bundle` opens them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.checkpoint import AGAIN, DTYPES, Checkpoint, TensorInfo, array_view, tensor_info
from converters.formats.protobuf import Budget, Message
from converters.formats.tensorflow.slices import Box, box_info, check_boxes, data_type, dimensions, read_box, slice_key
from zoo.errors import FormatError

__all__ = ["TensorTable", "open_table"]


def open_table(path: Path, header: memoryview, pairs: Iterator[tuple[bytes, memoryview]]) -> TensorTable:
    """Opens a checkpoint whose table was found to be of this kind.

    Args:
        path: the file.
        header: the value of the empty key.
        pairs: the table's other keys and values.

    Raises:
        FormatError: corrupt, or a part of a tensor is missing or of the wrong size.
    """
    meta = Message(header, (1,), Budget(path), "the header").message(1, (1,), "the list of tensors")
    values = dict(pairs)
    infos: dict[str, TensorInfo] = {}
    parts: dict[str, list[tuple[Box, Message]]] = {}
    others: dict[str, str] = {}
    for listed in meta.messages(1, (1, 2, 3, 4), "a tensor") if meta else ():
        name, dtype = listed.text(1), data_type(listed.integer(3))
        if name in infos or name in others:
            raise FormatError(f"two tensors are named {name[:80]!r}", where=path, do=AGAIN)
        if dtype not in DTYPES:
            others[name] = dtype
            continue
        shape = dimensions(listed.message(2, (2, 3), "a shape"), name, path)
        infos[name] = info = tensor_info(name, shape, dtype, path)
        boxes = [read_box(part) for part in listed.messages(4, (1,), "a part")]
        check_boxes(info, boxes)
        parts[name] = []
        for box in boxes:
            value = values.get(slice_key(name, box))
            if value is None:
                where = f"{path}, tensor {name!r}"
                raise FormatError("a part of a tensor is missing", where=where, got=str(box)[:200], do=AGAIN)
            parts[name].append((box, _data(value, box_info(info, box))))
    return TensorTable(path, infos, parts, {"not_tensors": others})


class TensorTable(Checkpoint):
    """A checkpoint in one file; `read` returns views of floats that were saved whole."""

    format = "tensorflow-v1"

    def __init__(
        self,
        path: Path,
        infos: Mapping[str, TensorInfo],
        parts: Mapping[str, Sequence[tuple[Box, Message]]],
        metadata: Mapping[str, Any],
    ) -> None:
        super().__init__(path, infos, metadata=metadata)
        self._parts = dict(parts)

    def check(self) -> str:
        return "CRC-32C of the table"  # compared when it was opened: the tensors lie in the table itself

    def _read(self, info: TensorInfo) -> np.ndarray:
        parts = self._parts[info.name]
        if len(parts) == 1:
            return _values(info, parts[0][1])
        array = np.zeros(info.shape, DTYPES[info.dtype])
        for box, tensor in parts:
            piece = _values(box_info(info, box), tensor)
            array[tuple(slice(s, s + n) for (s, _), n in zip(box, piece.shape, strict=True))] = piece
        return array

    def _close(self) -> None:
        self._parts.clear()


# dtype -> the field of a TensorProto that holds its values.
_FIELDS = {"float32": 5, "float64": 6, "complex64": 9, "int64": 10, "bool": 11, "complex128": 12}
_FIELDS |= dict.fromkeys(("float16", "bfloat16"), 13)
_FIELDS |= dict.fromkeys(("int32", "uint8", "int16", "int8", "uint16"), 7) | {"uint32": 16, "uint64": 17}
_AS_THEY_ARE = ("float32", "float64", "complex64", "complex128")


def _data(value: memoryview, info: TensorInfo) -> Message:
    """The part's TensorProto, having checked that it may hold as many values as it should."""
    entry = Message(value, (2,), Budget(info.file), f"the entry of {info.name!r}").message(2, (3,), "a part")
    field = _FIELDS.get(info.dtype, 4)
    tensor = entry.message(3, (4, field), "a part's tensor") if entry else None
    if tensor is None or tensor.size(field) < _count(info):
        raise _wrong_count(info, tensor.size(field) if tensor else 0)
    return tensor


def _values(info: TensorInfo, tensor: Message) -> np.ndarray:
    field = _FIELDS.get(info.dtype, 4)
    if info.dtype in _AS_THEY_ARE:
        # Complex numbers are two numbers each; a single number may stand unpacked.
        data = tensor.fixed(field, DTYPES[info.dtype].itemsize // (2 if info.dtype.startswith("complex") else 1))
        if len(data) != info.nbytes:
            raise _wrong_count(info, len(data))
        return array_view(data, info, 0)
    numbers = tensor.integers(field, _count(info))
    if len(numbers) != _count(info):
        raise _wrong_count(info, len(numbers))
    if info.dtype in ("float16", "bfloat16"):  # their bits
        return numbers.astype(np.uint16).view(DTYPES[info.dtype]).reshape(info.shape)
    return numbers.astype(DTYPES[info.dtype]).reshape(info.shape)


def _count(info: TensorInfo) -> int:
    return info.nbytes // DTYPES[info.dtype].itemsize


def _wrong_count(info: TensorInfo, got: int) -> FormatError:
    return FormatError(
        "a part of a tensor has the wrong number of values",
        where=f"{info.file}, tensor {info.name!r}",
        expected=f"{_count(info)} of {info.dtype}",
        got=f"{got} bytes or values",
        do=AGAIN,
    )
