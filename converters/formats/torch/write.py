"""Writing PyTorch's zip archive without torch: a pickle put together opcode by opcode, then one member per storage.

The pickle is, byte for byte, the one that `torch.save` makes of an OrderedDict of tensors, so that
`torch.load(path, weights_only=True)` reads it; the storages are stored, each aligned to 64 bytes, as torch's are.
Source: torch/serialization.py (`_save`), torch/_tensor.py (`_reduce_ex_internal`), Python's pickletools.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from converters.checkpoint import NO_METADATA, Checkpoint, TensorInfo, little_endian
from zoo.errors import FormatError

__all__ = ["write"]

ALIGNMENT = 64
LARGE = zipfile.ZIP64_LIMIT  # bytes of a member beyond which its sizes take 64 bits


def write(path: Path, checkpoint: Checkpoint, metadata: Mapping[str, str] = NO_METADATA) -> None:
    """Writes a file of `torch.save`, holding one block of one tensor at a time in memory.

    The file holds an OrderedDict of contiguous CPU tensors. Those that are aliases of each other share a storage.

    Args:
        path: a new file.
        checkpoint: its tensors, of any dtype in `DTYPES`.
        metadata: left out: the format has no place for it beside the tensors.

    Raises:
        FormatError: a name that is not valid text.
    """
    leaders = {name: _leader(checkpoint, info) for name, info in checkpoint.infos.items()}
    keys = {leader: str(key) for key, leader in enumerate(dict.fromkeys(leaders.values()))}
    pickled = _state_dict(path, checkpoint, {name: keys[leader] for name, leader in leaders.items()})
    with path.open("xb") as out, zipfile.ZipFile(out, "w") as archive:
        archive.writestr(_member(out.tell(), "data.pkl"), pickled)
        archive.writestr(_member(out.tell(), "byteorder"), b"little")
        for name, key in keys.items():
            large = checkpoint.infos[name].nbytes > LARGE
            with archive.open(_member(out.tell(), f"data/{key}", large), "w", force_zip64=large) as member:
                for block in checkpoint.blocks(name):
                    member.write(little_endian(block))
        archive.writestr(_member(out.tell(), "version"), b"3\n")
        for info in archive.infolist():
            info.extra = b""  # the padding stands in the local headers only


# Our dtype -> the storage class of torch; the other dtypes, which came later, have untyped storages.
_STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "complex128": "ComplexDoubleStorage",
    "complex64": "ComplexFloatStorage",
}
_BATCH = 1000  # items that Python's pickler puts into a dict at once


def _leader(checkpoint: Checkpoint, info: TensorInfo) -> str:
    """The tensor whose storage this one shares: itself, unless it is all of another under a second name."""
    first = checkpoint.infos.get(checkpoint.aliases.get(info.name, ""))
    same = first is not None and (first.shape, first.dtype) == (info.shape, info.dtype)
    return first.name if first is not None and same else info.name


def _member(start: int, name: str, large: bool = False) -> zipfile.ZipInfo:
    """A member whose bytes are aligned, its local header being written at `start`."""
    info = zipfile.ZipInfo(f"archive/{name}")
    header = 30 + len(info.filename) + 4 + (20 if large else 0)
    padding = -(start + header) % ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    return info


def _state_dict(path: Path, checkpoint: Checkpoint, keys: Mapping[str, str]) -> bytes:
    out = _Pickle()
    out.new_ordered_dict()
    infos = list(checkpoint.infos.values())
    for start in range(0, len(infos), _BATCH):
        batch = infos[start : start + _BATCH]
        out.code += b"(" if len(batch) > 1 else b""
        for info in batch:
            try:
                out.text(info.name)
            except UnicodeEncodeError as error:
                raise FormatError("a tensor's name is not valid text", where=path, got=repr(info.name)) from error
            out.tensor(info, keys[info.name])
        out.code += b"u" if len(batch) > 1 else b"s"
    return bytes(out.code + b".")


class _Pickle:
    """Opcodes of protocol 2, each object remembered ("put") the way that Python's pickler does it."""

    def __init__(self) -> None:
        self.code = bytearray(b"\x80\x02")
        self.puts = 0
        self.known: dict[object, int] = {}

    def tensor(self, info: TensorInfo, key: str) -> None:
        """A call of torch's function that makes a contiguous tensor of a storage."""
        typed = info.dtype in _STORAGES
        self.name("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3")
        self.code += b"(("
        self.known_text("storage")
        if typed:
            self.name("torch", _STORAGES[info.dtype])
        else:
            self.name("torch.storage", "UntypedStorage")
        self.known_text(key)
        self.known_text("cpu")
        self.integer(math.prod(info.shape) if typed else info.nbytes)
        self.code += b"t"
        self.put()
        self.code += b"Q"
        self.integer(0)  # the offset
        self.integers(info.shape)
        # torch counts an empty axis as one when it computes strides
        self.integers([math.prod(max(1, dim) for dim in info.shape[i + 1 :]) for i in range(len(info.shape))])
        self.code += b"\x89"  # requires no gradient
        self.new_ordered_dict()  # no hooks
        if not typed:
            self.name("torch", info.dtype)
        self.code += b"t"
        self.put()
        self.code += b"R"
        self.put()

    def new_ordered_dict(self) -> None:
        self.name("collections", "OrderedDict")
        self.code += b")R"
        self.put()

    def name(self, module: str, name: str) -> None:
        self.once((module, name), f"c{module}\n{name}\n".encode())

    def known_text(self, text: str) -> None:
        self.once(text, _text(text))

    def text(self, text: str) -> None:
        self.code += _text(text)
        self.put()

    def integer(self, value: int) -> None:
        if value < 1 << 8:
            self.code += b"K" + value.to_bytes(1, "little")
        elif value < 1 << 16:
            self.code += b"M" + value.to_bytes(2, "little")
        elif value < 1 << 31:
            self.code += b"J" + value.to_bytes(4, "little")
        else:
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little")
            self.code += b"\x8a" + bytes([len(raw)]) + raw

    def integers(self, values: Sequence[int]) -> None:
        if not values:
            self.code += b")"
            return
        self.code += b"(" if len(values) > 3 else b""
        for value in values:
            self.integer(value)
        self.code += b"t" if len(values) > 3 else bytes([0x84 + len(values)])
        self.put()

    def once(self, key: object, code: bytes) -> None:
        """The object of that key: made and remembered the first time, got from the memo later."""
        if (at := self.known.get(key)) is None:
            self.known[key] = self.puts
            self.code += code
            self.put()
        else:
            self.code += b"h" + bytes([at]) if at < 1 << 8 else b"j" + struct.pack("<I", at)

    def put(self) -> None:
        at = self.puts
        self.code += b"q" + bytes([at]) if at < 1 << 8 else b"r" + struct.pack("<I", at)
        self.puts += 1


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw
