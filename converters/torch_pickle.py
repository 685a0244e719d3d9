"""PyTorch's own checkpoints (.bin, .pt, .pth, .ckpt), read without torch and without trusting them.

Both formats of `torch.save`: the zip archive (data.pkl, one stored entry per storage; since 1.6), and the
stream before it (magic number, pickles, then the storages one after another). The pickle is read in a
confined process (`converters.unpickle_child`), which only lists tensors; this process checks the list
against the file and maps it.
Source: torch/serialization.py, https://docs.pytorch.org/docs/stable/notes/serialization.html.

Names: a state dict's own keys; nested dicts and lists are joined with dots. If all tensors lie under one
key of the outermost dict (`{"state_dict": {...}, "epoch": 3}`), the names leave that key out, and
`TorchCheckpoint.wrapper` tells it. With tensors under two keys (a model and an optimizer), both stay in the
names. A file that is one bare tensor has the name "tensor". What is not a tensor stands in `metadata` by
its whole path.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO

import numpy as np

from converters.checkpoint import (
    AGAIN,
    DTYPES,
    Checkpoint,
    TensorInfo,
    array_view,
    is_size,
    is_sizes,
    map_file,
    refuse_impostor,
    tensor_info,
)
from zoo.errors import FormatError, SourceError, UnsafeFile

__all__ = ["SUFFIXES", "TorchCheckpoint", "open_file", "recognises"]

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")

CPU_SECONDS = 5
"""CPU time for the pickle; a state dict of 100,000 tensors takes about one second."""
WALL_SECONDS = 30
MEMORY = 1 << 30
MAX_PICKLE = 1 << 26
MAX_INFLATION = 16
"""How much larger than the file its compressed entries may claim to be (weights hardly compress)."""


def recognises(head: bytes) -> bool:
    """Whether a file that begins so is one of torch's: a zip archive, or the legacy magic number."""
    return head.startswith((_ZIP, _LEGACY)) or (head[:1] == b"\x80" and head[2:14] == _LEGACY[2:])


def open_file(path: Path) -> TorchCheckpoint:
    """Opens one file of `torch.save`, listing its tensors and reading none.

    Raises:
        UnsafeFile: the pickle asks for anything but tensors, or an archive member's name leaves the archive.
        FormatError: truncated, corrupt, not torch's, or a tensor that does not fit its storage.
        SourceError: the file cannot be read.
    """
    data = map_file(path)
    head = bytes(data[:512])
    refuse_impostor(path, head)
    if head.startswith(_ZIP):
        listing, storages, byteorder = _open_zip(path, data)
    elif recognises(head):
        listing, storages, byteorder = _open_legacy(path, data)
    else:
        tar = bytes(data[257:262]) == b"ustar"
        raise FormatError(
            "the file is a PyTorch archive from before 0.2" if tar else "the file is not a PyTorch checkpoint",
            where=path,
            expected="a zip archive or PyTorch's magic number",
            got=f"beginning {head[:16]!r}",
            do="load it with torch and save it again, best as safetensors",
        )
    return _checkpoint(path, listing, storages, byteorder)


class TorchCheckpoint(Checkpoint):
    """One file of `torch.save`.

    Attributes:
        wrapper: the key of the dict that held all tensors, "" if they stood at the top.
    """

    format = "torch"

    def __init__(
        self,
        path: Path,
        infos: Mapping[str, TensorInfo],
        places: Mapping[str, _Place],
        storages: Mapping[str, _Storage],
        byteorder: str,
        *,
        wrapper: str,
        metadata: Mapping[str, Any],
        aliases: Mapping[str, str],
    ) -> None:
        super().__init__(path, infos, metadata=metadata, aliases=aliases)
        self.wrapper = wrapper
        self._places = places
        self._storages = dict(storages)
        self._byteorder = byteorder

    def _read(self, info: TensorInfo) -> np.ndarray:
        place = self._places[info.name]
        data = self._storages[place.key].bytes(info.file)
        start = place.offset * DTYPES[info.dtype].itemsize
        return array_view(data, info, start, place.strides, self._byteorder)

    def _close(self) -> None:
        self._storages.clear()


_ZIP = b"PK\x03\x04"
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # the magic number, pickled
_RESAVE = "if you trust its author, load it with torch and save its tensors as safetensors; else leave it alone"
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError)
_SIZES = {
    name: dtype.itemsize for name, dtype in DTYPES.items()
} | {  # not readable as tensors, but a legacy file must be walked past them
    "qint8": 1,
    "quint8": 1,
    "qint32": 4,
    "quint4x2": 1,
    "quint2x4": 1,
}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies in its storage; offset and strides count values."""

    key: str
    offset: int
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Storage:
    """The bytes of one storage: as stored, or deflated to `size` bytes of checksum `crc`."""

    data: memoryview
    size: int
    crc: int | None = None

    def bytes(self, path: Path) -> memoryview:
        if self.crc is None:
            return self.data
        try:
            raw = zlib.decompressobj(-15).decompress(self.data, self.size + 1)
        except zlib.error as error:
            raise FormatError("a compressed storage is corrupt", where=path, got=error, do=AGAIN) from error
        if len(raw) != self.size or zlib.crc32(raw) != self.crc:
            raise FormatError(
                "a compressed storage is corrupt",
                where=path,
                expected=f"{self.size} bytes with the checksum of the archive's directory",
                got=f"{len(raw)} bytes or more",
                do=AGAIN,
            )
        return memoryview(raw)


_Opened = tuple[dict[str, Any], dict[str, _Storage], str]  # listing, storages, byte order


def _open_zip(path: Path, data: memoryview) -> _Opened:
    try:
        with path.open("rb") as f, zipfile.ZipFile(f) as archive:
            members = _members(path, archive)
            root = _root(path, members)
            _check_ranges(path, data, members, archive.start_dir)
            pickled = _small(archive, members[f"{root}/data.pkl"], MAX_PICKLE, path)
            order = members.get(f"{root}/byteorder")
            byteorder = _small(archive, order, 16, path).decode("ascii", "replace") if order else "little"
    except OSError as error:
        raise SourceError("the file cannot be read", where=path, got=error) from error
    except FormatError:
        raise
    except (*_ZIP_ERRORS, ValueError) as error:
        raise FormatError("the file is truncated or not a zip archive", where=path, got=error, do=AGAIN) from error
    if byteorder not in ("little", "big"):
        raise FormatError("unknown byte order", where=path, expected="little or big", got=repr(byteorder))

    listing = _list_tensors(path, "zip", pickled)
    storages = {}
    for key, (dtype, numel) in listing["storages"].items():
        member = members.get(f"{root}/data/{key}")
        need = numel * _SIZES.get(dtype, 1)
        if member is None or member.file_size < need:
            raise FormatError(
                f"storage {key!r} is missing or too short",
                where=path,
                expected=f"{need} bytes",
                got=member and f"{member.file_size} bytes",
                do=AGAIN,
            )
        start, size = _payload(path, data, member), member.compress_size
        crc = member.CRC if member.compress_type == zipfile.ZIP_DEFLATED else None
        storages[key] = _Storage(data[start : start + size], member.file_size, crc)
    return listing, storages, byteorder


def _open_legacy(path: Path, data: memoryview) -> _Opened:
    with path.open("rb") as f:
        listing = _list_tensors(path, "legacy", f)
    keys: Any = listing["keys"]
    position: int = listing["start"]
    strings = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not strings or sorted(keys) != sorted(listing["storages"]):
        raise FormatError("the file's list of storages is wrong", where=path, do=AGAIN)
    storages = {}
    for key in keys:
        dtype, numel = listing["storages"][key]
        stored = int.from_bytes(data[position : position + 8], "little", signed=True)
        size = numel * _SIZES.get(dtype, 1)
        if position + 8 > len(data) or stored != numel or position + 8 + size > len(data):
            raise FormatError(
                f"storage {key!r} is truncated or of the wrong size",
                where=path,
                expected=f"{numel} values of {dtype} in {size} bytes",
                got=f"{stored} values, {max(0, len(data) - position - 8)} bytes left in the file",
                do=AGAIN,
            )
        storages[key] = _Storage(data[position + 8 : position + 8 + size], size)
        position += 8 + size
    return listing, storages, "little"


def _checkpoint(
    path: Path, listing: Mapping[str, Any], storages: Mapping[str, _Storage], byteorder: str
) -> TorchCheckpoint:
    if listing["unsupported"]:
        raise FormatError(
            f"{len(listing['unsupported'])} tensors are not plain dense ones",
            where=path,
            got=", ".join(f"{'.'.join(names)} ({kind})" for names, kind in listing["unsupported"]),
            do="load it with torch, make them dense and save it again",
        )
    tensors = listing["tensors"]
    tops = {names[0] for names, *_ in tensors if len(names) > 1}
    wrapped = len(tops) == 1 and all(len(names) > 1 for names, *_ in tensors)
    size = path.stat().st_size
    infos: dict[str, TensorInfo] = {}
    places: dict[str, _Place] = {}
    first: dict[object, str] = {}
    aliases: dict[str, str] = {}
    for names, key, dtype, offset, shape, strides in tensors:
        name = ".".join(names[wrapped:]) or "tensor"
        if name in infos:
            raise FormatError(f"two tensors are named {name!r}", where=path, do="rename one and save the file again")
        infos[name] = info = tensor_info(name, shape, dtype, path)
        places[name] = _Place(key, *_check_place(info, size, storages.get(key), offset, strides))
        leader = first.setdefault((dtype, info.shape, places[name]), name)
        if leader != name:
            aliases[name] = leader
    return TorchCheckpoint(
        path,
        infos,
        places,
        storages,
        byteorder,
        wrapper=min(tops) if wrapped else "",
        metadata={".".join(names): value for names, value in listing["other"]},
        aliases=aliases,
    )


def _check_place(
    info: TensorInfo, file_size: int, storage: _Storage | None, offset: object, strides: object
) -> tuple[int, tuple[int, ...]]:
    """The offset and strides of a tensor, having checked that all its values lie in its storage."""
    size = storage.size if storage else 0
    if is_size(offset) and is_sizes(strides) and len(strides) == len(info.shape):
        last = offset + sum((dim - 1) * stride for dim, stride in zip(info.shape, strides, strict=True))
        inside = (last + 1) * DTYPES[info.dtype].itemsize <= size
        # An expanded tensor (stride 0) can claim any size: it may repeat values, but not outgrow its file.
        if storage and (not info.nbytes or (inside and info.nbytes <= max(size, file_size))):
            return offset, tuple(strides)
    raise FormatError(
        "a tensor does not fit its storage",
        where=f"{info.file}, tensor {info.name!r}",
        expected=f"at most {size} bytes",
        got=f"shape {info.shape}, strides {str(strides)[:80]}, offset {str(offset)[:40]} of {info.dtype}",
        do=AGAIN,
    )


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name, windows = member.orig_filename, PureWindowsPath(member.orig_filename)
        if windows.anchor or ".." in windows.parts or "\\" in name or "\0" in name:
            raise UnsafeFile("an archive member's name leaves the archive", where=path, got=repr(name), do=_RESAVE)
        if name in members:
            raise FormatError(f"the archive holds {name!r} twice", where=path, do=AGAIN)
        members[name] = member
    return members


def _root(path: Path, members: Mapping[str, zipfile.ZipInfo]) -> str:
    """The archive's one top folder, named after the file it was first saved to."""
    roots = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
    roots = [root for root in roots if root and "/" not in root]
    if len(roots) != 1:
        raise FormatError(
            "the zip archive is not a PyTorch checkpoint",
            where=path,
            expected="one data.pkl in one folder",
            got=", ".join(list(members)[:8]),
            do="if it is a zip of checkpoints, or a torch.export archive, unpack or convert it first",
        )
    if f"{roots[0]}/constants.pkl" in members:
        raise FormatError(
            "the file is a TorchScript program, not a checkpoint",
            where=path,
            do="load it with torch.jit.load and save its state_dict() as safetensors",
        )
    return roots[0]


def _check_ranges(path: Path, data: memoryview, members: Mapping[str, zipfile.ZipInfo], directory: int) -> None:
    """Every member is stored or deflated, inside the file, apart from the others, and not a bomb."""
    position = claimed = 0
    for name, member in sorted(members.items(), key=lambda item: item[1].header_offset):
        stored = member.compress_type == zipfile.ZIP_STORED
        if member.flag_bits & 1 or not (stored or member.compress_type == zipfile.ZIP_DEFLATED):
            raise FormatError(f"{name!r} is encrypted or compressed in an unknown way", where=path)
        start = _payload(path, data, member)
        end = start + member.compress_size
        if member.header_offset < position or end > directory or (stored and member.file_size != end - start):
            raise FormatError(f"{name!r} overlaps another member or reaches outside the file", where=path, do=AGAIN)
        position = end
        claimed += 0 if stored else member.file_size
    if claimed > MAX_INFLATION * len(data):
        raise FormatError(
            "the archive's members claim to be far larger than the file",
            where=path,
            expected=f"at most {MAX_INFLATION * len(data)} bytes",
            got=f"{claimed} bytes",
            do="if the file is yours, save it uncompressed, as torch.save does",
        )


def _payload(path: Path, data: memoryview, member: zipfile.ZipInfo) -> int:
    """Where a member's bytes start: after its local header, the name again, and an extra field of its own."""
    at = member.header_offset
    header = bytes(data[at : at + 30])
    if len(header) < 30 or header[:4] != _ZIP:
        raise FormatError(f"{member.filename!r} has no local header", where=path, do=AGAIN)
    name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    if bytes(data[at + 30 : at + 30 + name]) != member.orig_filename.encode(
        "utf-8" if member.flag_bits & 0x800 else "cp437"
    ):
        raise FormatError(f"{member.filename!r} has another name in its local header", where=path, do=AGAIN)
    return at + 30 + name + extra


def _small(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int, path: Path) -> bytes:
    if member.file_size > limit:
        raise FormatError(
            f"{member.filename!r} is too long", where=path, expected=f"{limit} bytes", got=member.file_size
        )
    with archive.open(member) as f:
        return f.read(limit + 1)


def _list_tensors(path: Path, kind: str, source: bytes | BinaryIO) -> dict[str, Any]:
    """What the confined process reports of the pickle, its types checked: nothing it says is trusted."""
    child = Path(__file__).with_name("unpickle_child.py")
    command = [sys.executable or "python3", "-I", "-S", str(child), kind, str(CPU_SECONDS), str(MEMORY)]
    given: dict[str, Any] = {"input": source} if isinstance(source, bytes) else {"stdin": source}
    try:
        done = subprocess.run(command, capture_output=True, timeout=WALL_SECONDS, check=False, **given)
    except subprocess.TimeoutExpired as error:
        raise FormatError(
            "the pickle takes too long to read", where=path, expected=f"{WALL_SECONDS} s", do=_RESAVE
        ) from error
    except OSError as error:
        raise SourceError("Python could not be started to read the pickle", where=sys.executable, got=error) from error
    if done.returncode:
        why = f"signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
        raise FormatError(
            "the pickle brought its reader down: it is corrupt, or made to exhaust time or memory",
            where=path,
            expected=f"at most {CPU_SECONDS} s and {MEMORY >> 20} MiB",
            got=f"{why} {done.stderr[-200:].decode(errors='replace')}".strip(),
            do=_RESAVE,
        )
    listing = json.loads(done.stdout)
    if "unsafe" in listing:
        raise UnsafeFile(
            "the pickle asks for something that is not a tensor",
            where=path,
            got=listing["unsafe"],
            expected="tensors and plain values",
            do=_RESAVE,
        )
    if "error" in listing:
        raise FormatError("the pickle cannot be read", where=path, got=listing["error"], do=AGAIN)
    if not all(is_size(numel) for _, numel in listing["storages"].values()):
        raise FormatError("a storage's size is not a number", where=path, do=AGAIN)
    return listing
