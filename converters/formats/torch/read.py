"""PyTorch's own checkpoints (.bin, .pt, .pth, .ckpt), read without torch and without trusting them.

Both formats of `torch.save`: the zip archive (data.pkl, one stored entry per storage; since 1.6), and the
stream before it (magic number, pickles, then the storages one after another). The pickle is read in a
confined process (`converters.processes.unpickle_child`), which only lists tensors; this process checks the list
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
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from converters import processes
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
from converters.formats.torch.write import write
from converters.formats.zips import MAGIC, Member, checked_members, open_zip
from zoo.errors import FormatError, SourceError, UnsafeFile

__all__ = ["SUFFIXES", "TorchCheckpoint", "open_file", "recognises", "write"]

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")

CPU_SECONDS = 5
"""CPU time for a long pickle; a state dict of 100,000 tensors takes about one second."""
WALL_SECONDS = 30
MEMORY = 1 << 30
MAX_PICKLE = 1 << 26


def recognises(head: bytes) -> bool:
    """Whether a file that begins so is one of torch's: a zip archive, or the legacy magic number."""
    return head.startswith((MAGIC, _LEGACY)) or (head[:1] == b"\x80" and head[2:14] == _LEGACY[2:])


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
    if head.startswith(MAGIC):
        members = open_zip(path, data)
        listing, storages, byteorder = _open_zip(path, members)
    elif recognises(head):
        members = {}
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
    return _checkpoint(path, listing, storages, byteorder, members)


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
        storages: Mapping[str, Member],
        byteorder: str,
        members: Mapping[str, Member],
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
        self._members = dict(members)
        self._checked: set[str] = set()

    def check(self) -> str:
        return checked_members(self.path, self._members.values())

    def _read(self, info: TensorInfo) -> np.ndarray:
        place = self._places[info.name]
        # Once: whoever has an array of this storage may have changed it since, in its own memory.
        check = self._checks_reads and place.key not in self._checked
        data = self._storages[place.key].read(info.file, check=check)
        self._checked.add(place.key)
        start = place.offset * DTYPES[info.dtype].itemsize
        return array_view(data, info, start, place.strides, self._byteorder)

    def _close(self) -> None:
        self._storages.clear()
        self._members.clear()


_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # the magic number, pickled
_RESAVE = "if you trust its author, load it with torch and save its tensors as safetensors; else leave it alone"
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


_Opened = tuple[dict[str, Any], dict[str, Member], str]  # listing, storages, byte order


def _open_zip(path: Path, members: Mapping[str, Member]) -> _Opened:
    root = _root(path, members)
    pickled = _small(members[f"{root}/data.pkl"], MAX_PICKLE, path)
    order = members.get(f"{root}/byteorder")
    byteorder = _small(order, 16, path).decode("ascii", "replace") if order else "little"
    if byteorder not in ("little", "big"):
        raise FormatError("unknown byte order", where=path, expected="little or big", got=repr(byteorder))

    listing = _list_tensors(path, "zip", pickled)
    storages = {}
    for key, (dtype, numel) in listing["storages"].items():
        member = members.get(f"{root}/data/{key}")
        need = numel * _SIZES.get(dtype, 1)
        if member is None or member.size < need:
            raise FormatError(
                f"storage {key!r} is missing or too short",
                where=path,
                expected=f"{need} bytes",
                got=member and f"{member.size} bytes",
                do=AGAIN,
            )
        storages[key] = member
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
        storages[key] = Member(key, data[position + 8 : position + 8 + size], size)
        position += 8 + size
    return listing, storages, "little"


def _checkpoint(
    path: Path,
    listing: Mapping[str, Any],
    storages: Mapping[str, Member],
    byteorder: str,
    members: Mapping[str, Member],
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
        members,
        wrapper=min(tops) if wrapped else "",
        metadata={".".join(names): value for names, value in listing["other"]},
        aliases=aliases,
    )


def _check_place(
    info: TensorInfo, file_size: int, storage: Member | None, offset: object, strides: object
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


def _root(path: Path, members: Mapping[str, Member]) -> str:
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


def _small(member: Member, limit: int, path: Path) -> bytes:
    if member.size > limit:
        raise FormatError(f"{member.name!r} is too long", where=path, expected=f"{limit} bytes", got=member.size)
    return bytes(member.read(path, check=True))


def _list_tensors(path: Path, kind: str, source: bytes | BinaryIO) -> dict[str, Any]:
    """What the confined process reports of the pickle, its types checked: nothing it says is trusted."""
    child = Path(processes.__file__).with_name("unpickle_child.py")
    size = len(source) if isinstance(source, bytes) else os.fstat(source.fileno()).st_size
    cpu = min(CPU_SECONDS, 1.25 + size / (1 << 20))  # a pickle of ten thousand tensors has one megabyte
    command = [sys.executable or "python3", "-I", "-S", str(child), kind, str(cpu), str(MEMORY)]
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
            expected=f"at most {cpu:.3g} s and {MEMORY >> 20} MiB",
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
