"""HDF5 weights: Keras 2 and 3, transformers' tf_model.h5, and the weights inside Keras 3's .keras archives.

HDF5's C library crashes or hangs on some hostile files, so a confined process (`h5_child`) lists the
datasets; this process checks the list against the file and maps it. Datasets that do not lie in the file in one piece
(chunked, compressed) are streamed from that process, which then lives as long as the checkpoint.

Names: the whole paths of the datasets. Order: Keras' own (layer_names and weight_names) where the file has it, else
the file's. Metadata: the root's text attributes (backend, keras_version, model_config ...), small datasets of text,
`empty_layers` (the layers without weights, one per line), and config.json and metadata.json of a .keras archive.
Source: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html, keras/src/saving/saving_lib.py,
keras/src/legacy/saving/legacy_h5_format.py.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from converters.checkpoint import (
    AGAIN,
    BLOCK,
    Checkpoint,
    TensorInfo,
    array_view,
    is_size,
    map_file,
    refuse_impostor,
    tensor_info,
)
from converters.formats.hdf5.write import write
from converters.formats.zips import MAGIC as ZIP
from converters.formats.zips import Member, checked_members, open_zip
from converters.processes.reader import Reader
from zoo.errors import FormatError, SourceError

__all__ = ["SUFFIXES", "H5Checkpoint", "open_file", "recognises", "write"]

SUFFIXES = (".h5", ".hdf5", ".keras")

MAGIC = b"\x89HDF\r\n\x1a\n"
MAX_RATIO = 1100
"""How much larger than its stored bytes a dataset may be; deflate reaches 1032."""
MAX_TEXT = 1 << 24
CPU_SECONDS = 1.25
"""CPU time for listing, and one second more for each 2 MB: 10,000 datasets are 15 MB and take about one second."""
MAX_CPU_SECONDS = 20
MEMORY = 1 << 26
_STEP = 1 << 16  # compressed bytes at a time: what zlib does not take of them is copied


def recognises(head: bytes) -> bool:
    """Whether a file that begins so is HDF5, or an archive that begins with a member of Keras' own."""
    return head.startswith(MAGIC) or (head.startswith(ZIP) and head[30:].startswith(_KERAS_MEMBERS))


def open_file(path: Path) -> H5Checkpoint:
    """Opens an HDF5 file or a .keras archive, listing its tensors and reading none.

    Raises:
        UnsafeFile: a link, a virtual dataset or external storage: something that leads elsewhere.
        FormatError: truncated, corrupt, not HDF5, or a dataset that is no plain tensor.
        MissingFramework: h5py is not installed.
        SourceError: the file cannot be read.
    """
    data = map_file(path)
    refuse_impostor(path, bytes(data[:512]))
    if bytes(data[:4]) == ZIP:
        return _open_archive(path, data)
    with _reopened(path) as file:
        return _open(path, file, data, 0, {})


class H5Checkpoint(Checkpoint):
    """One HDF5 file; `read` returns views of contiguous datasets, and copies of the others."""

    format = "h5"

    def __init__(
        self,
        path: Path,
        infos: Mapping[str, TensorInfo],
        places: Mapping[str, _Place],
        data: memoryview,
        reader: Reader | None,
        *,
        member: Member | None,
        metadata: Mapping[str, Any],
        aliases: Mapping[str, str],
    ) -> None:
        super().__init__(path, infos, metadata=metadata, aliases=aliases)
        self._places = places
        self._data = data
        self._reader = reader
        self._member = member
        self._unchecked = member is not None

    def check(self) -> str:
        """See `Checkpoint.check`: the archive's checksum, and those that HDF5 keeps of chunks where asked to."""
        found = [checked_members(self.path, [self._member])] if self._member is not None else []
        self._unchecked = False
        guarded = [name for name, place in self._places.items() if place.guarded and name not in self.aliases]
        for name in guarded:
            for _ in self.blocks(name):
                pass
        found += [f"Fletcher-32 of {len(guarded)} datasets"] if guarded else []
        return ", ".join(filter(None, found))

    def blocks(self, name: str, size: int = BLOCK) -> Iterator[np.ndarray]:
        """See `Checkpoint.blocks`; a streamed dataset is never whole in memory."""
        place, info = self._places.get(name), self.infos.get(name)
        if self._closed or info is None or place is None or place.offset is not None or info.nbytes <= size:
            yield from super().blocks(name, size)
            return
        count = info.shape[0] if info.shape else 1
        step = max(1, size * count // info.nbytes)
        # Whole chunks at a time, else each is decompressed more than once.
        step = max(place.rows, step // place.rows * place.rows) if place.rows <= 4 * step else step
        for first in range(0, count, step):
            yield self._rows(info, place, first, min(count, first + step))

    def _read(self, info: TensorInfo) -> np.ndarray:
        self._check_member()
        place = self._places[info.name]
        if place.offset is not None:
            return array_view(self._data, info, place.offset, None, place.byteorder)
        return self._rows(info, place, 0, info.shape[0] if info.shape else 1)

    def _rows(self, info: TensorInfo, place: _Place, first: int, stop: int) -> np.ndarray:
        """Rows out of a streamed dataset; the whole of it where it has no axes."""
        self._check_member()
        shape = (stop - first, *info.shape[1:]) if info.shape else ()
        part = replace(info, shape=shape, nbytes=info.nbytes // (info.shape[0] if shape else 1) * (stop - first))
        buffer = np.empty(part.nbytes, np.uint8).data
        assert self._reader is not None  # there is one whenever a dataset is streamed
        self._reader.read(info.name, first, stop, buffer)
        return array_view(buffer, part, 0, None, place.byteorder)

    def _check_member(self) -> None:
        """Once, before the first tensor: HDF5 in an archive has the archive's checksum, and is read whole."""
        if self._unchecked and self._member is not None:
            self._member.check(self.path)
        self._unchecked = False

    def _close(self) -> None:
        self._data = memoryview(b"")
        self._member = None
        if self._reader is not None:
            self._reader.close()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a dataset's bytes are; no offset if they are to be streamed, best by as many rows as a chunk has.

    `guarded` if HDF5 compares checksums of its chunks.
    """

    offset: int | None
    byteorder: str
    rows: int
    guarded: bool


_WEIGHTS = "model.weights.h5"
_TEXTS = ("metadata.json", "config.json")
_KERAS_MEMBERS = tuple(name.encode() for name in (*_TEXTS, _WEIGHTS))


def _open_archive(path: Path, data: memoryview) -> H5Checkpoint:
    members = open_zip(path, data)
    weights = members.get(_WEIGHTS)
    if weights is None:
        raise FormatError(
            "the archive is no Keras model with HDF5 weights", where=path, expected=_WEIGHTS, got=list(members)[:8]
        )
    metadata = {}
    for member in (members[name] for name in _TEXTS if name in members):
        if member.size > MAX_TEXT:
            raise FormatError(f"{member.name!r} is too long", where=path, expected=MAX_TEXT, got=member.size)
        metadata[member.name] = bytes(member.read(path, check=True)).decode("utf-8", "backslashreplace")
    if not weights.size:
        raise FormatError(f"{_WEIGHTS!r} is empty", where=path, do=AGAIN)
    if not weights.deflated:
        with _reopened(path) as file:
            return _open(path, file, weights.data, _address(weights.data) - _address(data), metadata, weights)
    with tempfile.TemporaryFile() as spool:
        _inflate(path, weights, spool)
        mapped = memoryview(mmap.mmap(spool.fileno(), weights.size, access=mmap.ACCESS_COPY))
        return _open(path, spool, mapped, 0, metadata)


def _reopened(path: Path) -> IO[bytes]:
    """A file that was mapped before, for the other process."""
    try:
        return path.open("rb")
    except OSError as error:
        raise SourceError("the file cannot be read", where=path, got=error) from error


def _inflate(path: Path, member: Member, out: IO[bytes]) -> None:
    """Writes a deflated member to a file: exactly as many bytes as were declared, of the declared checksum."""
    inflater = zlib.decompressobj(-15)
    size = crc = taken = 0
    pending = b""
    try:
        while size <= member.size and not inflater.eof and (pending or taken < len(member.data)):
            if not pending:
                pending = bytes(member.data[taken : taken + _STEP])
                taken += len(pending)
            piece = inflater.decompress(pending, BLOCK)
            pending = inflater.unconsumed_tail
            size, crc = size + len(piece), zlib.crc32(piece, crc)
            out.write(piece)
    except zlib.error as error:
        raise FormatError(f"{member.name!r} is corrupt", where=path, got=error, do=AGAIN) from error
    if size != member.size or member.crc not in (None, crc):
        raise FormatError(
            f"{member.name!r} is corrupt",
            where=path,
            expected=f"{member.size} bytes with the checksum of the archive's directory",
            got=f"{size} bytes or more, checksum {crc:08x}",
            do=AGAIN,
        )
    out.flush()


def _open(
    path: Path,
    file: IO[bytes],
    data: memoryview,
    start: int,
    metadata: Mapping[str, Any],
    member: Member | None = None,
) -> H5Checkpoint:
    """The checkpoint of an HDF5 file that is `data`, the bytes of `file` from `start` on, a stored member perhaps."""
    reader: Reader | None = _reader(path, file, start, len(data))
    assert reader is not None
    try:
        listing = reader.listing()
        infos, places, aliases = _check(path, listing["datasets"], len(data))
    except BaseException:
        reader.close()
        raise
    if all(place.offset is not None for place in places.values()):
        reader.close()
        reader = None
    found = {**listing["metadata"], **metadata}
    if listing["empty"]:
        found["empty_layers"] = "\n".join(listing["empty"])
    return H5Checkpoint(path, infos, places, data, reader, member=member, metadata=found, aliases=aliases)


def _reader(path: Path, file: IO[bytes], start: int, size: int) -> Reader:
    """The process that reads the HDF5 file that begins at `start` in `file`, which it inherits."""
    inherits = os.name == "posix"
    place = file.fileno() if inherits else file.name
    cpu = min(CPU_SECONDS + size / (1 << 21), MAX_CPU_SECONDS)
    memory = MEMORY + min(2 * size, 1 << 30)
    inherit = (file.fileno(),) if inherits else ()
    return Reader(path, "h5_child.py", [place, start, size, memory, cpu], ["h5py"], inherit=inherit)


def _check(
    path: Path, datasets: list[list[Any]], size: int
) -> tuple[dict[str, TensorInfo], dict[str, _Place], dict[str, str]]:
    """Infos, places and aliases, having checked what was listed against the size of the file."""
    infos: dict[str, TensorInfo] = {}
    places: dict[str, _Place] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    ranges: list[tuple[int, int, str]] = []
    streamed = 0
    for name, shape, dtype, byteorder, address, offset, stored, chunk, rows, guarded in datasets:
        infos[name] = info = tensor_info(name, shape, dtype, path)
        numbers = (address, stored, chunk, rows, offset or 0)
        if byteorder not in ("little", "big") or not all(map(is_size, numbers)) or not rows:
            raise FormatError("a dataset's place is no place", where=f"{path}, tensor {name!r}", do=AGAIN)
        places[name] = _Place(offset if info.nbytes else 0, byteorder, rows, guarded is True)
        if first.setdefault(address, name) != name:
            aliases[name] = first[address]
        elif info.nbytes and offset is not None:
            ranges.append((offset, offset + info.nbytes, name))
        elif info.nbytes:
            streamed += stored
            if max(info.nbytes, chunk) > MAX_RATIO * stored or streamed > size:
                raise FormatError(
                    "a dataset claims to be far larger than what the file holds of it",
                    where=f"{path}, tensor {name!r}",
                    expected=f"at most {MAX_RATIO} times the stored bytes, and those in a file of {size} bytes",
                    got=f"{info.nbytes} bytes in chunks of {chunk}, {stored} bytes stored",
                    do=AGAIN,
                )
    position, before = 0, ""
    for begin, end, name in sorted(ranges):
        if begin < position or end > size:
            raise FormatError(
                f"a dataset overlaps {before!r}" if begin < position else "a dataset reaches outside the file",
                where=f"{path}, tensor {name!r}",
                expected=f"{end - begin} bytes between {position} and {size}",
                got=f"bytes {begin} to {end}",
                do=AGAIN,
            )
        position, before = end, name
    return infos, places, aliases


def _address(data: memoryview) -> int:
    return np.frombuffer(data, np.uint8).ctypes.data
