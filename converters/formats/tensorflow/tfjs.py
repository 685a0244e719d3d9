"""TensorFlow.js models: model.json, whose `weightsManifest` lists tensors and the binary shards that hold them.

Each group of the manifest has paths, whose files are joined, and weights, which lie in them one after the other;
a tensor may begin in one file and end in the next. Quantised weights are read as what TensorFlow.js makes of them:
float16 widened, 8- and 16-bit integers times scale plus min, computed in float64 and rounded once.
Sources: tfjs-core/src/io/types.ts (`WeightsManifestConfig`), io_utils.ts (`decodeWeight`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from converters.checkpoint import (
    AGAIN,
    DTYPES,
    Checkpoint,
    TensorInfo,
    array_view,
    map_file,
    refuse_impostor,
    release,
    strict_json,
    tensor_info,
)
from converters.sharded import shard_path
from zoo.errors import FormatError, SourceError

__all__ = ["SUFFIXES", "TfjsCheckpoint", "open_file", "recognises"]

SUFFIXES: tuple[str, ...] = ()  # ".json" says nothing

MAX_JSON = 1 << 23
MAX_VALUES = 400_000
"""Commas and brackets in model.json: parsed, each value takes up to a hundred times its text."""
MAX_TOPOLOGY = 1 << 20
"""Characters of a network's description that are kept in `metadata["modelTopology"]`."""


def recognises(head: bytes) -> bool:
    """Whether a file that begins so is a JSON object with one of the first keys of a model.json."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return text.startswith(b"{") and any(f'"{key}"'.encode() in text for key in ("modelTopology", "weightsManifest"))


def open_file(path: Path) -> TfjsCheckpoint:
    """Opens a model.json, checking that its shards are there and as long as its weights, and reading none.

    `metadata` has what the file says besides (format, generatedBy, convertedBy, ...) where that is text or a number,
    and modelTopology as JSON text unless it is longer than `MAX_TOPOLOGY`.

    Raises:
        UnsafeFile: a shard's path leads out of the folder.
        FormatError: not such a file; shards missing (all are listed) or of the wrong size; a weight that is text.
        SourceError: a file cannot be read.
    """
    model = _parse(path)
    manifest = model.pop("weightsManifest", None)
    groups = [_check_group(path, group) for group in manifest] if isinstance(manifest, list) else []
    if not groups:
        raise FormatError("the file has no weightsManifest", where=path, expected="a TensorFlow.js model.json")
    sizes = _sizes(path, [name for names, _ in groups for name in names])
    infos: dict[str, TensorInfo] = {}
    places: dict[str, _Place] = {}
    for names, weights in groups:
        shards = [(shard_path(path, name), sizes[name]) for name in names]
        position = 0
        for weight in weights:
            info, place = _check_weight(path, weight, shards, position)
            if info.name in infos:
                raise FormatError(f"two weights are named {info.name!r}", where=path, do=AGAIN)
            infos[info.name], places[info.name] = info, place
            position += place.size
        total = sum(size for _, size in shards)
        if position != total:
            raise FormatError(
                "the shards of a group are longer or shorter than its weights",
                where=f"{path}, {', '.join(names)[:200]}",
                expected=f"{position} bytes",
                got=f"{total} bytes",
                do="download the model's files again",
            )
    return TfjsCheckpoint(path, infos, places, _metadata(model))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a weight's bytes lie: `size` of them, `start` bytes into the shards of its group, joined."""

    shards: list[tuple[Path, int]]
    start: int
    size: int
    stored: str
    scale: float | None
    shift: float


class TfjsCheckpoint(Checkpoint):
    """A model.json and its shards; `read` returns views of weights that lie in one shard as they are."""

    format = "tfjs"

    def __init__(
        self, path: Path, infos: Mapping[str, TensorInfo], places: Mapping[str, _Place], metadata: Mapping[str, Any]
    ) -> None:
        super().__init__(path, infos, metadata=metadata)
        self._places = places
        self._maps: dict[Path, memoryview] = {}

    def _read(self, info: TensorInfo) -> np.ndarray:
        place = self._places[info.name]
        data = self._bytes(place)
        if place.stored == info.dtype:
            return array_view(data, info, 0)
        values = np.frombuffer(data, np.dtype(place.stored).newbyteorder("<")).reshape(info.shape)
        if place.scale is None:
            return values.astype(np.float32)
        # One entry for each integer that there can be: less memory than the computation takes for a large tensor.
        table = np.arange(1 << 8 * values.itemsize) * place.scale + place.shift
        if info.dtype == "int32":
            table = np.floor(table) + (table - np.floor(table) >= 0.5)  # as JavaScript rounds
            used = values.max(initial=0)
            if not -(2**31) <= min(table[0], table[used]) <= max(table[0], table[used]) < 2**31:
                raise FormatError("a quantised weight does not fit int32", where=f"{info.file}, tensor {info.name!r}")
            table = np.clip(table, -(2**31), 2**31 - 1)
        with np.errstate(over="ignore"):
            table = table.astype(info.dtype)
        found = np.empty(values.size, table.dtype)
        flat = values.reshape(-1)
        for start in range(0, len(flat), _STEP):  # indices take eight bytes each
            found[start : start + _STEP] = table[flat[start : start + _STEP]]
        return found.reshape(info.shape)

    def _bytes(self, place: _Place) -> memoryview:
        parts: list[memoryview] = []
        before = 0
        for shard, size in place.shards:
            first, last = max(0, place.start - before), min(size, place.start + place.size - before)
            if first < last:
                parts.append(self._map(shard, size)[first:last])
            before += size
        if len(parts) == 1:
            return parts[0]
        whole = np.empty(place.size, np.uint8)
        position = 0
        for part in parts:
            array = np.frombuffer(part, np.uint8)
            whole[position : position + len(part)] = array
            release(array)
            position += len(part)
        return whole.data

    def _map(self, shard: Path, size: int) -> memoryview:
        if shard not in self._maps:
            data = map_file(shard)
            if len(data) != size:
                raise FormatError("a shard was changed meanwhile", where=shard, expected=size, got=len(data))
            self._maps[shard] = data
        return self._maps[shard]

    def _close(self) -> None:
        self._maps.clear()


# TensorFlow.js decodes the first three; its Python converter also writes the others.
_PLAIN = ("float32", "int32", "bool", "complex64", "uint8", "uint16", "float16")
_STEP = 1 << 20
_QUANTISED = {"uint8": ("float32", "int32"), "uint16": ("float32", "int32"), "float16": ("float32",)}


def _parse(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        raw = path.read_bytes() if size <= MAX_JSON else b""
    except OSError as error:
        raise SourceError("the file cannot be read", where=path, got=error) from error
    if size > MAX_JSON or sum(map(raw.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise FormatError(
            "the model.json is too long",
            where=path,
            expected=f"at most {MAX_JSON} bytes and {MAX_VALUES} values",
            got=f"{size} bytes",
        )
    refuse_impostor(path, raw[:512])
    return strict_json(raw, path, "the model.json")


def _check_group(path: Path, group: object) -> tuple[list[str], list[Any]]:
    names, weights = (group.get("paths"), group.get("weights")) if isinstance(group, dict) else (None, None)
    if not isinstance(names, list) or not isinstance(weights, list) or not all(isinstance(n, str) for n in names):
        raise FormatError(
            "a group of the weightsManifest has no paths or weights", where=path, got=str(group)[:200], do=AGAIN
        )
    return names, weights


def _sizes(path: Path, names: list[str]) -> dict[str, int]:
    """Every shard's size; a shard belongs to one group, once."""
    if len(set(names)) != len(names):
        raise FormatError("the weightsManifest names a shard twice", where=path, do=AGAIN)
    sizes = {}
    missing = []
    for name in names:
        shard = shard_path(path, name)
        if shard.is_file():
            sizes[name] = shard.stat().st_size
        else:
            missing.append(name)
    if missing:
        raise FormatError(
            f"{len(missing)} of {len(names)} shards are missing",
            where=path,
            got=", ".join(missing),
            do="download them into the same folder",
        )
    return sizes


def _check_weight(
    path: Path, weight: object, shards: list[tuple[Path, int]], position: int
) -> tuple[TensorInfo, _Place]:
    name = weight.get("name") if isinstance(weight, dict) else None
    if not isinstance(weight, dict) or not isinstance(name, str):
        raise FormatError("a weight of the weightsManifest has no name", where=path, got=str(weight)[:200], do=AGAIN)
    where = f"{path}, tensor {name!r}"
    dtype, quantisation = weight.get("dtype"), weight.get("quantization")
    if dtype not in _PLAIN:
        raise FormatError("unknown or unsupported dtype", where=where, expected=", ".join(_PLAIN), got=dtype)
    info = tensor_info(name, weight.get("shape"), dtype, path)
    stored, scale, shift = dtype, None, 0.0
    if quantisation is not None:
        stored, scale, shift = _check_quantisation(where, dtype, quantisation)
    size = math.prod(info.shape) * DTYPES[stored].itemsize
    return info, _Place(shards, position, size, stored, scale, shift)


def _check_quantisation(where: str, dtype: str, said: object) -> tuple[str, float | None, float]:
    """The dtype that is stored, scale and shift; no scale for float16."""
    stored = said.get("dtype") if isinstance(said, dict) else None
    if isinstance(said, dict) and isinstance(stored, str) and dtype in _QUANTISED.get(stored, ()):
        if stored == "float16":
            return stored, None, 0.0
        scale, shift = said.get("scale"), said.get("min")
        if _is_number(scale) and _is_number(shift):
            return stored, float(scale), float(shift)
    raise FormatError(
        "unknown quantisation",
        where=where,
        expected="float16 of float32; or uint8 or uint16 of float32 or int32, with numbers min and scale",
        got=f"{str(said)[:200]} of {dtype}",
    )


def _is_number(value: object) -> TypeGuard[float]:
    return type(value) in (int, float) and abs(value) < 1e300  # type: ignore[arg-type]


def _metadata(model: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in model.items() if isinstance(value, str | int | float)}
    topology = json.dumps(model["modelTopology"]) if model.get("modelTopology") else ""
    if 0 < len(topology) <= MAX_TOPOLOGY:
        found["modelTopology"] = topology
    return found
