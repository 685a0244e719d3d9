"""The safetensors format: an 8-byte little-endian header length, a JSON header, then the tensors' bytes.

Source: https://github.com/huggingface/safetensors#format. The header is parsed here because the library's
NumPy reader copies every tensor; its rules (and its writer's layout, byte for byte) are kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.checkpoint import (
    AGAIN,
    NO_METADATA,
    Checkpoint,
    MappedCheckpoint,
    MemoryCheckpoint,
    TensorInfo,
    is_sizes,
    little_endian,
    map_file,
    refuse_impostor,
    strict_json,
    tensor_info,
)
from zoo.errors import FormatError

__all__ = ["SUFFIXES", "SafetensorsCheckpoint", "open_file", "recognises", "save_safetensors", "write"]

SUFFIXES = (".safetensors",)
MAX_HEADER = 100_000_000  # the library's own limit


def recognises(head: bytes) -> bool:
    """Whether a file that begins so is safetensors: a plausible header length, then a JSON object."""
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER


def open_file(path: Path) -> SafetensorsCheckpoint:
    """Opens one .safetensors file, checking its whole header and reading no tensor.

    Raises:
        FormatError: truncated, not safetensors, or a header that breaks the format's rules.
        SourceError: the file cannot be read.
    """
    data = map_file(path)
    refuse_impostor(path, bytes(data[:512]))
    if len(data) < 8:
        raise FormatError("the file is truncated", where=path, expected="8 bytes or more", got=len(data), do=AGAIN)
    length = int.from_bytes(data[:8], "little")
    if length > min(MAX_HEADER, len(data) - 8) or bytes(data[8:9]) != b"{":
        raise FormatError(
            "the file is truncated or not safetensors",
            where=path,
            expected=f"a JSON header of at most {min(MAX_HEADER, len(data) - 8)} bytes",
            got=f"header length {length}, then {bytes(data[8:24])!r}",
            do=AGAIN,
        )
    header = strict_json(data[8 : 8 + length], path, "the safetensors header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError("__metadata__ must map text to text", where=path, do=AGAIN)
    body = data[8 + length :]
    infos, starts = _check_entries(path, header, len(body))
    return SafetensorsCheckpoint(path, infos, body, starts, metadata)


class SafetensorsCheckpoint(MappedCheckpoint):
    """One safetensors file; `read` returns zero-copy views."""

    format = "safetensors"


def write(path: Path, checkpoint: Checkpoint, metadata: Mapping[str, str] = NO_METADATA) -> None:
    """Writes a safetensors file, holding one block of one tensor at a time in memory.

    The library's writer wants every tensor contiguous and alive at once. The bytes are those that it would write.

    Args:
        path: a new file.
        checkpoint: its tensors, of dtypes in `DTYPES` except complex128.
        metadata: text to text.

    Raises:
        FormatError: a reserved name, a dtype that the format lacks, metadata that is not text.
    """
    if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise FormatError("metadata must map text to text", where=path, got=dict(metadata))
    infos = _in_order(path, checkpoint)
    header = _header(path, infos, metadata)
    with path.open("xb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
        for info in infos:
            for block in checkpoint.blocks(info.name):
                out.write(little_endian(block))


def save_safetensors(
    path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] = NO_METADATA
) -> None:
    """Writes arrays as a safetensors file, whole or not at all; see `write`."""
    from converters.atomic import replacing

    with replacing(Path(path)) as fresh:
        write(fresh, MemoryCheckpoint(arrays, Path(path)), metadata)


# Format name -> our name, in the order of the library's enum: its writer puts the last ones first, which
# keeps every tensor aligned to its own item size.
_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
_CODES = {name: code for code, name in _NAMES.items()}
_RANK = {code: rank for rank, code in enumerate(_NAMES)}


def _check_entries(path: Path, header: Mapping[str, Any], size: int) -> tuple[dict[str, TensorInfo], dict[str, int]]:
    """Every entry's info and start, having checked that together they cover the body exactly once."""
    infos: dict[str, TensorInfo] = {}
    ranges: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        infos[name], begin = _check_entry(path, name, entry)
        ranges.append((begin, begin + infos[name].nbytes, name))
    position = 0
    for begin, end, name in sorted(ranges):
        if begin != position:
            kind = "overlaps the tensor before it" if begin < position else "leaves a hole before it"
            raise FormatError(
                f"tensor {name!r} {kind}",
                where=path,
                expected=f"start {position}",
                got=f"start {begin}",
                do=AGAIN,
            )
        position = end
    if position != size:
        what = "the file is truncated" if position > size else "the file has bytes that no tensor claims"
        raise FormatError(what, where=path, expected=f"{position} bytes of tensors", got=f"{size}", do=AGAIN)
    return infos, {name: begin for begin, _, name in ranges}


def _check_entry(path: Path, name: str, entry: object) -> tuple[TensorInfo, int]:
    where = f"{path}, tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        wanted = "dtype, shape, data_offsets"
        raise FormatError("a header entry is no tensor", where=where, expected=wanted, got=str(entry)[:200], do=AGAIN)
    code, offsets = entry["dtype"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _NAMES:
        raise FormatError("unknown or unsupported dtype", where=where, expected=", ".join(_NAMES), got=code)
    info = tensor_info(name, entry["shape"], _NAMES[code], path)
    if not is_sizes(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != info.nbytes:
        raise FormatError(
            "a tensor's bytes do not fit its shape",
            where=where,
            expected=f"{info.nbytes} bytes for {code} {list(info.shape)}",
            got=f"data_offsets {str(offsets)[:80]}",
            do=AGAIN,
        )
    return info, offsets[0]


def _in_order(path: Path, checkpoint: Checkpoint) -> list[TensorInfo]:
    for info in checkpoint.infos.values():
        if info.name == "__metadata__":
            raise FormatError(f"{info.name!r} is a reserved name", where=path, do="rename the tensor")
        if info.dtype not in _CODES:
            raise FormatError(
                f"safetensors has no dtype {info.dtype}",
                where=f"{path}, tensor {info.name!r}",
                expected=", ".join(_CODES),
            )
    return sorted(checkpoint.infos.values(), key=lambda info: (-_RANK[_CODES[info.dtype]], info.name))


def _header(path: Path, infos: list[TensorInfo], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for info in infos:
        header[info.name] = {
            "dtype": _CODES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [position, position + info.nbytes],
        }
        position += info.nbytes
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # so that the first tensor is aligned
    if len(raw) > MAX_HEADER:
        raise FormatError("the header is too long", where=path, expected=f"{MAX_HEADER} bytes", got=len(raw))
    return raw
