"""Zip archives as containers of tensors: members checked against the file, and mapped where they are stored.

`zipfile` reads the central directory; nothing that the directory says is believed before it was compared with
the file. Stored members are views of the mapping, deflated ones are inflated on demand, never beyond their
declared size, which is bounded by the file's own.
Source: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT (4.3.7 local header, 4.3.12 central directory).
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np

from converters.checkpoint import AGAIN, BLOCK, release
from zoo.errors import FormatError, SourceError, UnsafeFile

__all__ = ["MAGIC", "MAX_INFLATION", "Member", "checked_members", "leaves_archive", "open_zip"]

MAGIC = b"PK\x03\x04"

MAX_INFLATION = 16
"""How much larger than the file its compressed members may claim to be (weights hardly compress)."""

MAX_DIRECTORY = 1 << 22
"""Bytes of the central directory; 40,000 members with names of 60 characters fit."""

_STEP = 1 << 16  # compressed bytes at a time: what zlib does not take of them is copied
_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError)


@dataclass(frozen=True, slots=True)
class Member:
    """The bytes of one member as they lie in the file, and what the directory says of them."""

    name: str
    data: memoryview
    size: int
    crc: int | None = None
    """None where the archive's writer left checksums out, as torch does when it is told to."""
    deflated: bool = False

    def read(self, path: Path, *, check: bool = False) -> memoryview:
        """All its bytes: a view of the file if they are stored, else a new buffer.

        Args:
            path: stands in errors.
            check: compare the checksum of stored bytes, too, which reads them all; inflated ones always are.

        Raises:
            FormatError: they do not inflate to the declared size, or have another checksum.
        """
        if not self.deflated:
            if check:
                self.check(path)
            return self.data
        try:
            found = _inflate(self.data, self.size)
        except zlib.error as error:
            raise FormatError(f"{self.name!r} is corrupt", where=path, got=error, do=AGAIN) from error
        if found is None or self.crc not in (None, zlib.crc32(found)):
            raise self._corrupt(path, "another number of bytes" if found is None else "another checksum")
        return found

    def check(self, path: Path) -> bool:
        """Whether there is a checksum to compare its bytes with; they are let go as they are read.

        Raises:
            FormatError: the checksum is another one.
        """
        if self.deflated:
            self.read(path)
        elif self.crc is not None:
            crc = 0
            for start in range(0, len(self.data), BLOCK):
                piece = self.data[start : start + BLOCK]
                crc = zlib.crc32(piece, crc)
                release(np.frombuffer(piece, np.uint8))
            if crc != self.crc:
                raise self._corrupt(path, "another checksum")
        return self.crc is not None

    def _corrupt(self, path: Path, got: str) -> FormatError:
        return FormatError(
            f"{self.name!r} is corrupt",
            where=path,
            expected=f"{self.size} bytes with the checksum of the archive's directory",
            got=got,
            do=AGAIN,
        )

    def head(self, path: Path, size: int) -> bytes:
        """At most its first `size` bytes, unchecked; raises like `read`."""
        if not self.deflated:
            return bytes(self.data[:size])
        try:
            return zlib.decompressobj(-15).decompress(self.data[: size + _STEP], size)
        except zlib.error as error:
            raise FormatError(f"{self.name!r} is corrupt", where=path, got=error, do=AGAIN) from error


def open_zip(path: Path, data: memoryview) -> dict[str, Member]:
    """Every member of the archive by its name, in the order of the file; folders are left out.

    Args:
        path: the file.
        data: the same, mapped.

    Raises:
        UnsafeFile: a member's name leaves the archive.
        FormatError: not a zip archive; a name that stands twice; a member that is encrypted, overlaps another, lies
            outside the file or claims to be far larger.
        SourceError: the file cannot be read.
    """
    try:
        with _Bounded(path) as f, zipfile.ZipFile(f) as archive:
            infos = _by_name(path, archive)
            found = _checked(path, data, infos, archive.start_dir)
    except FormatError:
        raise
    except OSError as error:
        raise SourceError("the file cannot be read", where=path, got=error) from error
    except _ERRORS as error:
        raise FormatError("the file is truncated or not a zip archive", where=path, got=error, do=AGAIN) from error
    return found


def checked_members(path: Path, members: Iterable[Member]) -> str:
    """What was compared: every member's bytes with its checksum; nothing where the archive has none.

    Raises:
        FormatError: a member has another one; it is named.
    """
    count = sum([member.check(path) for member in members])
    return f"CRC-32 of {count} members" if count else ""


def leaves_archive(name: str) -> bool:
    """Whether a member of that name would lie outside the folder that its archive is unpacked to, on any system."""
    windows = PureWindowsPath(name)
    return bool(windows.anchor) or ".." in windows.parts or "\\" in name or "\0" in name


class _Bounded(io.FileIO):
    """A file of which no read is larger than `MAX_DIRECTORY`: zipfile reads as much as the archive claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        limit = 1 << 17 if size is None or size < 0 else size  # "the rest", where only a comment can be left
        if limit > MAX_DIRECTORY:
            raise FormatError(
                "the archive's directory is too long",
                where=self.name,
                expected=f"at most {MAX_DIRECTORY} bytes",
                got=size,
            )
        return super().read(limit) or b""


def _by_name(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.orig_filename
        if leaves_archive(name):
            raise UnsafeFile(
                "an archive member's name leaves the archive",
                where=path,
                got=repr(name),
                do="leave the file alone: no honest program writes such a name",
            )
        if name in members:
            raise FormatError(f"the archive holds {name!r} twice", where=path, do=AGAIN)
        members[name] = member
    return members


def _checked(path: Path, data: memoryview, members: Mapping[str, zipfile.ZipInfo], directory: int) -> dict[str, Member]:
    """Every member, having checked that it is stored or deflated, inside the file, apart from the others, no bomb."""
    position = claimed = 0
    found: dict[str, Member] = {}
    # torch leaves checksums out where `torch.serialization.set_crc32_options(False)` says so: each is 0 then.
    summed = any(member.CRC for member in members.values())
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
        if not name.endswith("/"):
            found[name] = Member(name, data[start:end], member.file_size, member.CRC if summed else None, not stored)
    if claimed > MAX_INFLATION * len(data):
        raise FormatError(
            "the archive's members claim to be far larger than the file",
            where=path,
            expected=f"at most {MAX_INFLATION * len(data)} bytes",
            got=f"{claimed} bytes",
            do="if the file is yours, save it uncompressed",
        )
    return found


def _payload(path: Path, data: memoryview, member: zipfile.ZipInfo) -> int:
    """Where a member's bytes start: after its local header, the name again, and an extra field of its own."""
    at = member.header_offset
    header = bytes(data[at : at + 30])
    if len(header) < 30 or header[:4] != MAGIC:
        raise FormatError(f"{member.filename!r} has no local header", where=path, do=AGAIN)
    name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    if bytes(data[at + 30 : at + 30 + name]) != member.orig_filename.encode(
        "utf-8" if member.flag_bits & 0x800 else "cp437"
    ):
        raise FormatError(f"{member.filename!r} has another name in its local header", where=path, do=AGAIN)
    return at + 30 + name + extra


def _inflate(data: memoryview, size: int) -> memoryview | None:
    """The inflated bytes, or None if there are more or fewer of them than `size`."""
    # Into one buffer, piece by piece: a single call would hold everything twice.
    whole = np.empty(size, np.uint8).data
    inflater = zlib.decompressobj(-15)
    position = taken = 0
    pending = b""
    while not inflater.eof:
        if not pending:
            pending = bytes(data[taken : taken + _STEP])
            taken += len(pending)
        piece = inflater.decompress(pending, BLOCK)
        if position + len(piece) > size or not (piece or pending):
            return None
        whole[position : position + len(piece)] = piece
        position += len(piece)
        pending = inflater.unconsumed_tail
    return whole if position == size else None
