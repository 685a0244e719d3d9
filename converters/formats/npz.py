"""NumPy's .npz: a zip archive of .npy members, as JAX code of Google's (T5X, Big Vision) publishes its weights.

Names are the members' without ".npy". Stored members are read as views of the file, deflated ones are inflated
when they are read. NumPy knows no bfloat16: `np.savez` writes it as raw values of two bytes ("<V2", formerly
"|V2"), and such arrays are read as bfloat16. Its other raw types are ambiguous, and refused.
Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.checkpoint import (
    AGAIN,
    DTYPES,
    NO_METADATA,
    Checkpoint,
    TensorInfo,
    array_view,
    little_endian,
    map_file,
    refuse_impostor,
    tensor_info,
)
from converters.formats.zips import MAGIC, Member, checked_members, leaves_archive, open_zip
from zoo.errors import FormatError, UnsafeFile

__all__ = ["SUFFIXES", "NpzCheckpoint", "open_file", "recognises", "write"]

SUFFIXES = (".npz",)

MAX_HEADER = 10_000
"""Characters of a .npy header: NumPy's own limit, for the sake of Python's parser."""


def recognises(head: bytes) -> bool:
    """Whether a file that begins so is a zip archive whose first member is a .npy file."""
    return head.startswith(MAGIC) and head[30 : 30 + int.from_bytes(head[26:28], "little")].endswith(b".npy")


def open_file(path: Path) -> NpzCheckpoint:
    """Opens one .npz file, checking its directory and every array's header, and reading no array.

    Raises:
        UnsafeFile: an array of Python objects, which is a pickle; a member's name that leaves the archive.
        FormatError: truncated, corrupt, not a zip of arrays, or an array that does not fill its member.
        SourceError: the file cannot be read.
    """
    data = map_file(path)
    refuse_impostor(path, bytes(data[:512]))
    infos: dict[str, TensorInfo] = {}
    places: dict[str, _Place] = {}
    for name, member in open_zip(path, data).items():
        if not name.endswith(".npy"):
            raise FormatError("the archive holds something that is no array", where=path, expected="*.npy", got=name)
        name = name.removesuffix(".npy")
        infos[name], places[name] = _check_header(path, name, member)
    return NpzCheckpoint(path, infos, places)


class NpzCheckpoint(Checkpoint):
    """One .npz file; `read` returns views of arrays that are stored as they are, their checksums compared."""

    format = "npz"

    def __init__(self, path: Path, infos: Mapping[str, TensorInfo], places: Mapping[str, _Place]) -> None:
        super().__init__(path, infos)
        self._places = dict(places)
        self._checked: set[str] = set()

    def check(self) -> str:
        return checked_members(self.path, (member for member, *_ in self._places.values()))

    def _read(self, info: TensorInfo) -> np.ndarray:
        member, start, strides, byteorder = self._places[info.name]
        # Once: whoever has the array may have changed it since, in its own memory.
        data = member.read(info.file, check=info.name not in self._checked)
        self._checked.add(info.name)
        return array_view(data, info, start, strides, byteorder)

    def _close(self) -> None:
        self._places.clear()


def write(path: Path, checkpoint: Checkpoint, metadata: Mapping[str, str] = NO_METADATA) -> None:
    """Writes the .npz file that `np.savez` writes, holding one block of one tensor at a time in memory.

    Args:
        path: a new file.
        checkpoint: its tensors, of dtypes in `DTYPES` except the 8-bit floats; bfloat16 becomes "<V2".
        metadata: left out: the format has no place for it.

    Raises:
        FormatError: a dtype that the format lacks, a name that cannot be a member's.
    """
    for info in checkpoint.infos.values():
        _check_writable(path, info)
    with path.open("xb") as out, zipfile.ZipFile(out, "w") as archive:
        for info in checkpoint.infos.values():
            with archive.open(f"{info.name}.npy", "w", force_zip64=True) as member:
                header = {"descr": _descr(info.dtype), "fortran_order": False, "shape": info.shape}
                np.lib.format.write_array_header_1_0(member, header)
                for block in checkpoint.blocks(info.name):
                    member.write(little_endian(block))


_Place = tuple[Member, int, tuple[int, ...] | None, str]  # the member; the array's start, strides and byte order


def _check_header(path: Path, name: str, member: Member) -> tuple[TensorInfo, _Place]:
    where = f"{path}, tensor {name!r}"
    head = io.BytesIO(member.head(path, MAX_HEADER + 16))
    try:
        version = np.lib.format.read_magic(head)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers of Python 2 end in "L", which NumPy reads and reports
            if version not in ((1, 0), (2, 0), (3, 0)):
                raise ValueError(f"unknown version {version}")
            if version == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(head, MAX_HEADER)
            else:  # 3.0 differs for the names of fields only, which no tensor has
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(head, MAX_HEADER)
    except Exception as error:  # the header is a Python literal: its parser can raise anything
        why = str(error)[:200] or type(error).__name__
        raise FormatError("an array's header is corrupt or too long", where=where, got=why, do=AGAIN) from error
    if dtype.hasobject:
        raise UnsafeFile(
            "an array of Python objects is a pickle, which can run code",
            where=where,
            expected="an array of numbers",
            do="if you trust its author, load it with NumPy and save its tensors as safetensors; else leave it alone",
        )
    raw = dtype == np.dtype("V2")
    info = tensor_info(name, list(shape), "bfloat16" if raw else dtype.name, path)
    start = head.tell()
    if member.size != start + info.nbytes:
        raise FormatError(
            "an array does not fill its member",
            where=where,
            expected=f"{start + info.nbytes} bytes for {dtype.str} {shape}",
            got=f"{member.size} bytes",
            do=AGAIN,
        )
    strides = tuple(_fortran(shape)) if fortran else None
    return info, (member, start, strides, "big" if dtype.str[0] == ">" else "little")


def _fortran(shape: tuple[int, ...]) -> list[int]:
    """Strides in values of an array whose first axis varies fastest."""
    strides, step = [], 1
    for dim in shape:
        strides.append(step)
        step *= dim
    return strides


def _descr(dtype: str) -> Any:
    return "<V2" if dtype == "bfloat16" else DTYPES[dtype].newbyteorder("<").str


def _check_writable(path: Path, info: TensorInfo) -> None:
    where = f"{path}, tensor {info.name!r}"
    if info.dtype.startswith("float8"):
        raise FormatError(f"npz has no dtype {info.dtype}", where=where, do="choose another, as with --dtype float32")
    # zipfile would cut a name at a null byte, and turn this system's separator into a slash.
    raw = info.name.encode(errors="replace")
    valid = raw.decode() == info.name and len(raw) < 1 << 15
    if not valid or leaves_archive(f"{info.name}.npy") or info.name.startswith("/"):
        raise FormatError("the name cannot be that of a file in an archive", where=where, do="rename the tensor")
