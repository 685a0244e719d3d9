"""The graph's file format: versioned JSON, gzip-compressed; one file, constants included, so it is whole or not there.

Constants are kept as [dtype, shape, base64 of the bytes]: most are a few numbers, and the large ones are masks that
compress a thousandfold, which they would not in a file that is to be memory-mapped.

Reading never executes anything: the JSON is parsed, every op looked up in the table of known names, every argument
checked against the op's signature. In the JSON a string that starts with "%" is a use of a value, "@" a dtype, "=" a
string; other numbers that JSON cannot spell are {"f": "inf"}.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.arrays import numpy_dtype
from zoo.errors import FormatError, GraphError, UnsupportedOp
from zoo.files import write_whole
from zoo.graph.ir import DTYPES, DType, Graph, Input, Node, Param, Ref, ValueInfo
from zoo.graph.stored import Box, Stored

__all__ = ["FORMAT", "from_json", "load_graph", "save_graph", "to_json"]

FORMAT = 1
_LIMIT = 1 << 27  # bytes of JSON a graph may unpack to: the largest packaged one needs 9 % of it, nearly all constants
_VALUES = 6_000_000  # values in it, each of which takes more room than its text: the largest packaged one has 45,000
_PIECE = 1 << 20
_DEPTH = 8  # how deep an argument's lists may nest: captured ones nest twice
_AGAIN = "capture the model again with `zoo capture`"


def save_graph(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write `graph` to `path` (".json.gz"), whole or not at all; equal graphs give equal bytes."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, filename="", compresslevel=9) as stream:
        stream.write(to_json(graph).encode())
    write_whole(Path(path), packed.getvalue())


def load_graph(path: str | os.PathLike[str]) -> Graph:
    """Read and check a graph file.

    Raises:
        FormatError: the file is not a graph, is truncated or of another version.
        GraphError, UnsupportedOp: it is a graph, but one that no capture writes; the node is named.
    """
    path = Path(path)
    try:
        text = bytearray()
        with gzip.open(path, "rb") as stream:
            while (room := _LIMIT + 1 - len(text)) and (piece := stream.read(min(_PIECE, room))):
                text += piece
    except FileNotFoundError:
        raise FormatError("no graph file", where=path, do="check the path, or capture with `zoo capture`") from None
    except (OSError, EOFError, zlib.error) as error:
        raise FormatError(
            "the graph file is truncated or not gzip-compressed JSON",
            where=path,
            got=f"{type(error).__name__}: {error}",
            do=f"fetch it again, or {_AGAIN}",
        ) from error
    return from_json(bytes(text), path)


def to_json(graph: Graph) -> str:
    """The graph as JSON text, constants included."""
    return json.dumps(_encode(graph), separators=(",", ":"), allow_nan=False)


def from_json(text: str | bytes, where: object) -> Graph:
    """The graph of `to_json`'s text, checked as `load_graph` says; `where` is for errors."""
    signs = (",", "[", "{") if isinstance(text, str) else (b",", b"[", b"{")
    values = sum(map(text.count, signs))  # type: ignore[arg-type]
    if len(text) > _LIMIT or values > _VALUES:
        raise FormatError(
            "the graph file unpacks to more than any graph needs",
            where=where,
            expected=f"at most {_LIMIT} bytes and {_VALUES} values",
            got=f"{len(text)} bytes, {values} values",
            do="do not use it: it was made to fill the memory",
        )
    data = _parsed(text, where)
    if not isinstance(data, dict) or data.get("format") != FORMAT or data["format"] is True:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise FormatError(
            "not a graph file of a version this release reads",
            where=where,
            expected=f"format {FORMAT}",
            got=found,
            do=_AGAIN,
        )
    try:
        graph = _decode(data)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FormatError(
            "the graph file's fields are not what the format says",
            where=where,
            got=f"{type(error).__name__}: {error}",
            do=_AGAIN,
        ) from error
    try:
        graph.validate()
        _check_ops(graph)
    except GraphError as error:
        raise type(error)(
            error.what,
            where=f"{error.where} of {where}",
            expected=error.expected,
            got=error.got,
            do=error.do or _AGAIN,
        ) from None
    return graph


def _parsed(text: str | bytes, where: object) -> Any:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("an object has a key twice")
        return found

    def no_constants(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constants)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise FormatError(
            "the graph file is truncated or not gzip-compressed JSON",
            where=where,
            got=f"{type(error).__name__}: {error}",
            do=f"fetch it again, or {_AGAIN}",
        ) from error


def _encode(graph: Graph) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "meta": graph.meta,
        "symbols": {name: list(bounds) for name, bounds in graph.symbols.items()},
        "inputs": [[i.name, i.dtype, list(i.shape), i.default] for i in graph.inputs],
        "params": [[p.name, p.dtype, list(p.shape), p.trainable, list(p.aliases)] for p in graph.params.values()],
        "constants": {name: _encode_array(array) for name, array in sorted(graph.constants.items())},
        "nodes": [
            [
                node.op,
                [_encode_arg(arg) for arg in node.args],
                {key: _encode_arg(arg) for key, arg in node.kwargs.items()},
                [[name, info.dtype, list(info.shape)] for name, info in zip(node.outputs, node.infos, strict=True)],
            ]
            for node in graph.nodes
        ],
        "outputs": {name: value.name for name, value in graph.outputs.items()},
        **({"stored": [_encode_stored(group) for group in graph.stored]} if graph.stored else {}),
    }


def _decode(data: Mapping[str, Any]) -> Graph:
    params = [
        Param(_text(name), _text(dtype), tuple(map(_count, shape)), bool(trainable), tuple(map(_text, aliases)))
        for name, dtype, shape, trainable, aliases in data["params"]
    ]
    if len({param.name for param in params}) != len(params):
        raise ValueError("two parameters have one name")
    return Graph(
        inputs=tuple(
            Input(_text(name), _text(dtype), _shape(shape), _number(default))
            for name, dtype, shape, default in data["inputs"]
        ),
        params={param.name: param for param in params},
        constants={_text(name): _decode_array(*packed) for name, packed in data["constants"].items()},
        nodes=[
            Node(
                _text(op),
                tuple(_decode_arg(arg) for arg in args),
                {_text(key): _decode_arg(arg) for key, arg in kwargs.items()},
                tuple(_text(name) for name, _, _ in results),
                tuple(ValueInfo(_text(dtype), _shape(shape)) for _, dtype, shape in results),
            )
            for op, args, kwargs, results in data["nodes"]
        ],
        outputs={name: Ref(_text(value)) for name, value in data["outputs"].items()},
        symbols={
            name: (_count(low), None if high is None else _count(high)) for name, (low, high) in data["symbols"].items()
        },
        meta=dict(data["meta"]),
        stored=tuple(_decode_stored(*group) for group in data.get("stored", ())),
    )


def _encode_array(array: np.ndarray) -> list[Any]:
    return [str(array.dtype), list(array.shape), base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()]


def _decode_array(dtype: str, shape: Any, packed: str) -> np.ndarray:
    """Read-only; the bytes must be exactly as many as the shape needs."""
    if dtype not in DTYPES:
        raise ValueError(f"expected a dtype, got {dtype!r}")
    kind = numpy_dtype(dtype)
    return np.frombuffer(base64.b64decode(packed, validate=True), kind).reshape([_count(d) for d in shape])


def _encode_stored(group: Stored) -> list[Any]:
    return [
        [[name, list(shape)] for name, shape in group.tensors.items()],
        list(group.params),
        [[b.tensor, b.param, list(b.sizes), list(b.in_tensor), list(b.in_param)] for b in group.boxes],
    ]


def _decode_stored(tensors: Any, params: Any, boxes: Any) -> Stored:
    found = Stored(
        {_text(name): tuple(map(_count, shape)) for name, shape in tensors},
        tuple(map(_text, params)),
        tuple(
            Box(_count(tensor), _count(param), *(tuple(map(_count, numbers)) for numbers in places))
            for tensor, param, *places in boxes
        ),
    )
    if len(found.tensors) != len(tensors):
        raise ValueError("two tensors of a group have one name")
    return found


def _encode_arg(arg: Any) -> Any:
    if isinstance(arg, Ref):
        return "%" + arg.name
    if isinstance(arg, DType):
        return "@" + arg.name
    if isinstance(arg, str):
        return "=" + arg
    if isinstance(arg, (tuple, list)):
        return [_encode_arg(item) for item in arg]
    if isinstance(arg, float) and not math.isfinite(arg):
        return {"f": repr(arg)}
    if arg is None or isinstance(arg, (bool, int, float)):
        return arg
    raise GraphError("an argument of this kind cannot be stored in a graph", got=f"{type(arg).__name__}: {arg!r}")


def _decode_arg(arg: Any, depth: int = _DEPTH) -> Any:
    if isinstance(arg, str):
        kind, text = arg[:1], arg[1:]
        if kind == "%":
            return Ref(text)
        if kind == "@":
            return DType(text)
        if kind == "=":
            return text
        raise ValueError(f"the argument {arg!r} has no kind")
    if isinstance(arg, list):
        if not depth:
            raise ValueError(f"the lists of an argument are more than {_DEPTH} deep")
        return tuple(_decode_arg(item, depth - 1) for item in arg)
    if isinstance(arg, dict):
        if arg.keys() != {"f"} or arg["f"] not in ("inf", "-inf", "nan"):
            raise ValueError(f"the argument {arg!r} is no number")
        return float(arg["f"])
    return arg


def _check_ops(graph: Graph) -> None:
    from zoo.ops import OPS

    for node in graph.nodes:
        where = f"node {node.name!r}" if node.outputs else "a node without results"
        op = OPS.get(node.op)
        if op is None:
            raise UnsupportedOp(
                "unknown operation",
                where=where,
                got=node.op,
                do="update anyzoo, or report the operation",
            )
        try:
            op.signature.bind(None, *node.args, **node.kwargs)
        except TypeError as error:
            raise GraphError(
                "an operation has the wrong arguments",
                where=f"{where} ({node.op})",
                expected=str(op.signature),
                got=str(error),
            ) from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a name, got {value!r}")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"expected a size, got {value!r}")
    return value


def _number(value: Any) -> int | float | None:
    if value is not None and not isinstance(value, (int, float)):
        raise TypeError(f"expected a number, got {value!r}")
    return value


def _shape(shape: Any) -> tuple[int | str, ...]:
    return tuple(dim if isinstance(dim, str) else _count(dim) for dim in shape)
