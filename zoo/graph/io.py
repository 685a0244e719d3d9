"""The graph's file format: versioned JSON, gzip-compressed, with its constants in a safetensors file beside it.

Reading never executes anything: the JSON is parsed, every op looked up in the table of known names, every argument
checked against the op's signature. In the JSON a string that starts with "%" is a use of a value, "@" a dtype, "=" a
string; other numbers that JSON cannot spell are {"f": "inf"}.
"""

from __future__ import annotations

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

from zoo.errors import FormatError, GraphError, UnsupportedOp
from zoo.graph.ir import DType, Graph, Input, Node, Param, Ref, ValueInfo

__all__ = ["FORMAT", "load_graph", "save_graph"]

FORMAT = 1
_LIMIT = 1 << 29  # bytes of JSON a graph may unpack to: the largest captured so far needs under 2 % of it


def save_graph(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write `graph` to `path` (".json.gz") and, where it has constants, a ".safetensors" file of the same stem.

    The bytes depend on the graph alone: equal graphs give equal files.
    """
    path = Path(path)
    text = json.dumps(_encode(graph), separators=(",", ":"), allow_nan=False, sort_keys=False)
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, filename="", compresslevel=9) as stream:
        stream.write(text.encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    if graph.constants:
        from converters import save_safetensors

        save_safetensors(constants_path(path), dict(sorted(graph.constants.items())))
    else:
        constants_path(path).unlink(missing_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(packed.getvalue())
    os.replace(temporary, path)


def load_graph(path: str | os.PathLike[str]) -> Graph:
    """Read and check a graph file.

    Raises:
        FormatError: the file is not a graph, is truncated or of another version.
        GraphError, UnsupportedOp: it is a graph, but one that no capture writes; the node is named.
    """
    path = Path(path)
    data = _read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise FormatError(
            "not a graph file of a version this release reads",
            where=path,
            expected=f"format {FORMAT}",
            got=found,
            do="capture the model again with `zoo capture`",
        )
    constants: dict[str, np.ndarray] = {}
    if constants_path(path).exists():
        from converters import open_checkpoint

        checkpoint = open_checkpoint(constants_path(path))
        constants = {name: checkpoint.read(name) for name in checkpoint.infos}
    try:
        graph = _decode(data, constants)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, GraphError):
            raise
        raise FormatError(
            "the graph file's fields are not what the format says",
            where=path,
            got=f"{type(error).__name__}: {error}",
            do="capture the model again with `zoo capture`",
        ) from error
    expected = data.get("constants", [])
    if sorted(expected) != sorted(constants):
        raise FormatError(
            "the constants file does not belong to this graph",
            where=constants_path(path),
            expected=sorted(expected),
            got=sorted(constants),
        )
    graph.validate()
    _check_ops(graph)
    return graph


def constants_path(path: Path) -> Path:
    """Where the constants of the graph at `path` are kept."""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".json") + ".safetensors")


def _read_json(path: Path) -> Any:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("an object has a key twice")
        return found

    try:
        with gzip.open(path, "rb") as stream:
            text = stream.read(_LIMIT + 1)
        if len(text) > _LIMIT:
            raise FormatError("the graph file unpacks to more than any graph needs", where=path, expected=_LIMIT)
        return json.loads(text, object_pairs_hook=no_duplicates)
    except FileNotFoundError:
        raise FormatError("no graph file", where=path, do="check the path, or capture with `zoo capture`") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, ValueError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(
            "the graph file is truncated or not gzip-compressed JSON", where=path, got=f"{type(error).__name__}: {error}"
        ) from error


def _encode(graph: Graph) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "meta": graph.meta,
        "symbols": {name: list(bounds) for name, bounds in graph.symbols.items()},
        "inputs": [[i.name, i.dtype, list(i.shape), i.default] for i in graph.inputs],
        "params": [[p.name, p.dtype, list(p.shape), p.trainable, list(p.aliases)] for p in graph.params.values()],
        "constants": sorted(graph.constants),
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
    }


def _decode(data: Mapping[str, Any], constants: dict[str, np.ndarray]) -> Graph:
    return Graph(
        inputs=tuple(
            Input(_text(name), _text(dtype), _shape(shape), default) for name, dtype, shape, default in data["inputs"]
        ),
        params={
            _text(name): Param(
                name, _text(dtype), tuple(_count(d) for d in shape), bool(trainable), tuple(map(_text, aliases))
            )
            for name, dtype, shape, trainable, aliases in data["params"]
        },
        constants=constants,
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
        symbols={name: (_count(low), None if high is None else _count(high)) for name, (low, high) in data["symbols"].items()},
        meta=dict(data["meta"]),
    )


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


def _decode_arg(arg: Any) -> Any:
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
        return tuple(_decode_arg(item) for item in arg)
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
                do="update anyzoo, or report the operation: `zoo capture` lists what a model needs",
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
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"expected a size, got {value!r}")
    return value


def _shape(shape: Any) -> tuple[int | str, ...]:
    return tuple(dim if isinstance(dim, str) else _count(dim) for dim in shape)
