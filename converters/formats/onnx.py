"""The weights of an ONNX model: its graph's initializers, read from the mapped file without the onnx library.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto and, for data kept in other files,
https://onnx.ai/onnx/repo-docs/ExternalData.html. `metadata` holds the producer, opsets, the names of the graph's
inputs and outputs, the model's own properties, and in "products" what the graph says of a matrix: its name -> that of
the MatMul that multiplies by it, and the initializers that are added to the result. Text, 4-bit and other tensors that
NumPy has no dtype for are not listed; they stand in `metadata["not_tensors"]` with their dtype. Nothing of the graph is
run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from converters.checkpoint import (
    AGAIN,
    DTYPES,
    Checkpoint,
    TensorInfo,
    array_view,
    map_file,
    refuse_impostor,
    tensor_info,
)
from converters.formats.protobuf import Budget, Message, read_varint
from zoo.errors import FormatError, SourceError, UnsafeFile, WeightsError

__all__ = ["SUFFIXES", "OnnxCheckpoint", "open_file", "recognises"]

SUFFIXES = (".onnx",)


def recognises(head: bytes) -> bool:
    """Whether a file that begins so is a ModelProto: its first field the IR version, then the producer or graph."""
    if len(head) < 4 or head[0] != 0x08 or not 0 < head[1] < 64:
        return False
    found = read_varint(head, 3)
    if head[2] not in (0x12, 0x3A) or found is None:
        return False
    return head[2] == 0x3A or (found[0] < 256 and head[found[1] : found[1] + found[0]].isascii())


def open_file(path: Path) -> OnnxCheckpoint:
    """Opens an .onnx file, checking its list of initializers and where their data lies, and reading none.

    Raises:
        FormatError: truncated, corrupt, no ONNX model, or a tensor whose data does not fit its shape.
        UnsafeFile: data in a file outside the model's folder.
        SourceError: a file is missing or unreadable.
    """
    data = map_file(path)
    refuse_impostor(path, bytes(data[:512]))
    model = Message(data, (1, 2, 3, 5, 7, 8, 14), Budget(path), "the model")
    graph = model.message(7, (1, 2, 5, 11, 12, 15), "the graph")
    if graph is None:
        do = "give the .onnx file itself"
        raise FormatError("the file is not an ONNX model: it has no graph", where=path, do=do)
    if graph.views(15):
        raise FormatError("sparse initializers are not read", where=path, got=f"{len(graph.views(15))} of them")
    infos: dict[str, TensorInfo] = {}
    values: dict[str, _Values] = {}
    others: dict[str, str] = {}
    files: dict[str, memoryview] = {}
    for tensor in graph.messages(5, (1, 2, 3, *_FIELDS.values(), 8, 9, 13, 14), "an initializer"):
        name, number = tensor.text(8), tensor.integer(2)
        if name in infos or name in others:
            raise FormatError(f"two tensors are named {name[:80]!r}", where=path, do=AGAIN)
        if tensor.views(3):
            raise FormatError("a tensor in segments is not read", where=f"{path}, tensor {name!r}")
        dtype = _TYPES.get(number, f"number {number}")
        if dtype not in DTYPES:
            others[name] = dtype
            continue
        infos[name] = info = tensor_info(name, tensor.integers(1, 64).tolist(), dtype, path)
        values[name] = _values(info, tensor, files)
    metadata: dict[str, Any] = {
        "producer": " ".join(filter(None, (model.text(2), model.text(3)))),
        "ir_version": model.integer(1),
        "opset": {opset.text(1) or "ai.onnx": opset.integer(2) for opset in model.messages(8, (1, 2), "an opset")},
        "graph": graph.text(2),
        "inputs": [v.text(1) for v in graph.messages(11, (1,), "an input") if v.text(1) not in infos],
        "outputs": [v.text(1) for v in graph.messages(12, (1,), "an output")],
        "not_tensors": others,
        "products": _products(graph, infos),
    }
    for pair in model.messages(14, (1, 2), "a property"):
        metadata.setdefault(pair.text(1), _property(pair))
    return OnnxCheckpoint(path, infos, values, metadata)


class OnnxCheckpoint(Checkpoint):
    """The initializers of one ONNX model; `read` returns views of what is stored as raw bytes."""

    format = "onnx"

    def __init__(
        self, path: Path, infos: Mapping[str, TensorInfo], values: Mapping[str, _Values], metadata: Mapping[str, Any]
    ) -> None:
        super().__init__(path, infos, metadata=metadata)
        self._values = dict(values)

    def read(self, name: str) -> np.ndarray:
        dtype = self.metadata["not_tensors"].get(name)
        if dtype is not None:
            raise WeightsError(
                f"the tensor {name!r} is of {dtype}, which is not read",
                where=self.path,
                expected=", ".join(name for name in _TYPES.values() if name in DTYPES),
            )
        return super().read(name)

    def _read(self, info: TensorInfo) -> np.ndarray:
        values = self._values[info.name]
        if isinstance(values, memoryview):
            return array_view(values, info, 0)
        field = _field_of(info.dtype)
        if field in _FLOATS:
            joined = values.fixed(_FIELDS[field], DTYPES[field].itemsize)
            if len(joined) != info.nbytes:
                raise _wrong_size(info, f"{len(joined)} bytes")
            return array_view(joined, info, 0)
        numbers = values.integers(_FIELDS[field], _count(info))
        if len(numbers) != _count(info):
            raise _wrong_size(info, f"{len(numbers)} values")
        if field == "int32" and info.dtype not in ("int32", "int16", "int8", "bool"):
            # Unsigned numbers, and the bits of small floats.
            numbers = numbers.astype(f"u{DTYPES[info.dtype].itemsize}").view(DTYPES[info.dtype])
        return numbers.astype(DTYPES[info.dtype], copy=False).reshape(info.shape)

    def _close(self) -> None:
        self._values.clear()


_Values = memoryview | Message
"""A tensor's bytes as they are, or the message that holds its numbers one by one."""

_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
    17: "float8_e4m3fn",
    18: "float8_e4m3fnuz",
    19: "float8_e5m2",
    20: "float8_e5m2fnuz",
    21: "uint4",
    22: "int4",
    23: "float4_e2m1fn",
    24: "float8_e8m0fnu",
    25: "uint2",
    26: "int2",
    27: "float6_e2m3fn",
    28: "float6_e3m2fn",
}
# The fields of a TensorProto that hold numbers, by what they hold.
_FIELDS = {"float32": 4, "int32": 5, "int64": 7, "float64": 10, "uint64": 11}
_HELD_IN = {"float32": "float32", "complex64": "float32", "float64": "float64", "complex128": "float64"}
_HELD_IN |= {"int64": "int64", "uint32": "uint64", "uint64": "uint64"}
_FLOATS = ("float32", "float64")


def _field_of(dtype: str) -> str:
    return _HELD_IN.get(dtype, "int32")


def _count(info: TensorInfo) -> int:
    return info.nbytes // DTYPES[info.dtype].itemsize


def _values(info: TensorInfo, tensor: Message, files: dict[str, memoryview]) -> _Values:
    """Where a tensor's values are, having checked that they can be as many as its shape says."""
    if tensor.integer(14):
        return _external(info, tensor, files)
    raw = tensor.view(9)
    field = _field_of(info.dtype)
    number = _FIELDS[field]
    if raw is None and field in _FLOATS and tensor.count(number) == 1:
        raw = tensor.fixed(number, DTYPES[field].itemsize)
    if raw is None:
        if tensor.size(number) < _count(info):
            raise _wrong_size(info, f"{tensor.size(number)} bytes of numbers")
        return tensor
    if len(raw) != info.nbytes:
        raise _wrong_size(info, f"{len(raw)} bytes")
    return raw


def _external(info: TensorInfo, tensor: Message, files: dict[str, memoryview]) -> memoryview:
    """The bytes of a tensor that lie in another file of the model's folder."""
    where = f"{info.file}, tensor {info.name!r}"
    entries = {pair.text(1): pair.text(2) for pair in tensor.messages(13, (1, 2), "a place of data")}
    location = entries.get("location", "")
    if location not in files:
        files[location] = map_file(_inside(info.file, location, where))
    data = files[location]
    offset, length = (entries.get(key, "") for key in ("offset", "length"))
    if not all(text.isascii() and (text.isdigit() or not text) and len(text) < 20 for text in (offset, length)):
        raise FormatError("offset and length must be numbers", where=where, got=f"{offset!r}, {length!r}", do=AGAIN)
    start = int(offset or 0)
    size = int(length) if length else info.nbytes
    if size != info.nbytes:
        raise _wrong_size(info, f"length {size}")
    if start + size > len(data):
        raise FormatError(
            "a tensor reaches outside its data file",
            where=f"{where}, in {location!r}",
            expected=f"at most {len(data)} bytes",
            got=f"{size} bytes at {start}",
            do=AGAIN,
        )
    return data[start : start + size]


def _inside(model: Path, location: str, where: str) -> Path:
    """The file at a location relative to the model's folder."""
    windows = PureWindowsPath(location)
    if not location or windows.anchor or "\\" in location or "\0" in location or ".." in windows.parts:
        raise UnsafeFile("a tensor's data lies outside the model's folder", where=where, got=repr(location)[:200])
    path = model.parent / PurePosixPath(location)
    # A cache may keep both files as links into one store; a link that leads elsewhere is refused.
    folders = {model.parent.resolve(), model.resolve().parent}
    if not any(folder in path.resolve().parents for folder in folders):
        raise UnsafeFile("a tensor's data lies outside the model's folder", where=where, got=str(path.resolve()))
    if not path.is_file():
        raise SourceError("a data file of the model is missing", where=path, do="download it, too")
    return path


def _products(graph: Message, infos: Mapping[str, TensorInfo]) -> dict[str, tuple[str, list[str]]]:
    """Initializer -> the name of the first MatMul that has it as second factor, and what is added to the result."""
    products: dict[str, tuple[str, str]] = {}
    added: dict[str, list[str]] = {}
    for node in graph.messages(1, (1, 2, 3, 4), "a node"):
        kind, inputs = node.text(4), node.texts(1) if node.count(1) == 2 else []
        if kind == "MatMul" and inputs and inputs[1] in infos and node.count(2):
            products.setdefault(inputs[1], (node.text(3), node.texts(2)[0]))
        elif kind == "Add" and inputs:
            for one, other in (inputs, inputs[::-1]):
                if other in infos:
                    added.setdefault(one, []).append(other)
    return {name: (node, added.get(result, [])) for name, (node, result) in products.items()}


def _property(pair: Message) -> str:
    """A property's value; those too long to be text (some carry whole classes of labels) are cut."""
    value = pair.view(2)
    return str(value[: 1 << 16], "utf-8", "replace") if value is not None else ""


def _wrong_size(info: TensorInfo, got: str) -> FormatError:
    return FormatError(
        "a tensor's data does not fit its shape",
        where=f"{info.file}, tensor {info.name!r}",
        expected=f"{_count(info)} values ({info.nbytes} bytes) for {info.dtype} {list(info.shape)}",
        got=got,
        do=AGAIN,
    )
