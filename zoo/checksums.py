"""A checkpoint's files against every checksum that there is of them: bytes only, nothing is run and nothing built."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import ChecksumError, UnsafeFile, ZooError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from zoo.sources import Progress

__all__ = ["FileRow", "FilesReport", "check_files"]


@dataclass(frozen=True, slots=True)
class FileRow:
    """What was found out about one file.

    Args:
        file: its name in the checkpoint's folder.
        nbytes: its size.
        compared: with what its bytes were compared; empty where there is nothing to compare them with, so that damage
            which leaves the file readable cannot be seen.
        reason: why it is not right; empty if nothing is known against it.
    """

    file: str
    nbytes: int
    compared: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class FilesReport:
    """A row for each file that belongs to a checkpoint; `ok` if none is damaged as far as can be told."""

    model: str
    folder: Path
    rows: tuple[FileRow, ...]

    @property
    def ok(self) -> bool:
        """Whether no file is known to be damaged."""
        return not any(row.reason for row in self.rows)

    def raise_for_failure(self) -> None:
        """Nothing if all is right.

        Raises:
            ChecksumError: naming each file that is damaged, and why.
        """
        if not self.ok:
            raise ChecksumError(
                "files of the checkpoint are damaged",
                where=self.folder,
                got="; ".join(f"{row.file}: {row.reason}" for row in self.rows if row.reason),
                do="download or write them again",
            )

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        rows = [asdict(row) | {"ok": not row.reason} for row in self.rows]
        return {"model": self.model, "folder": str(self.folder), "ok": self.ok, "files": rows}

    def table(self) -> RenderableType:
        """The report for a terminal, by rich."""
        from rich.table import Table

        from zoo.console import plain

        table = Table(title=plain(str(self.folder)), title_justify="left")
        table.add_column("file", overflow="fold")
        table.add_column("bytes", justify="right", no_wrap=True)
        table.add_column("compared with", overflow="fold")
        table.add_column("", overflow="fold")
        for row in self.rows:
            verdict = row.reason or ("right" if row.compared else "nothing to compare it with")
            table.add_row(plain(row.file), f"{row.nbytes:,}", plain(row.compared), plain(verdict))
        return table


def check_files(
    model: str | os.PathLike[str], *, offline: bool | None = None, progress: Progress | None = None
) -> FilesReport:
    """Read a checkpoint's files and compare all that there are checksums of.

    Compared are sha256, where the registry, the hub, the wheel or an earlier conversion states it, and the checksums
    that formats hold themselves: CRC-32 of zip archives (npz, torch, .keras), CRC-32C of TensorFlow's checkpoints,
    Fletcher-32 of HDF5's chunks, CRC-32C of zarr 3's chunks and of OCDBT's tables (Orbax). safetensors, GGUF, msgpack,
    ONNX and plain HDF5 hold none: unless their sha256 is known, only damage to the list of tensors is noticed.

    Args:
        model: what `zoo.load` takes: a name, "hf://org/name", a folder, a file of weights.
        offline: as for `zoo.load`.
        progress: as for `zoo.load`.

    Raises:
        SourceError: the files cannot be had.
        ChecksumError: a download is not the file that was asked for.
    """
    from zoo.loading import fetch_checkpoint
    from zoo.registry import Entry, parse
    from zoo.sources.local import companions, names_in

    found = parse(model)
    place, name = fetch_checkpoint(found, offline, progress)
    root = place if place.is_dir() else place.parent
    known = {
        file: ("registry", f"sha256:{value}")
        for file, value in (found.files if isinstance(found, Entry) else {}).items()
    }
    known = {**_stated(root), **known}
    weights = dict(_weights(place))
    present = [place.name] if place.is_file() else names_in(root)
    wanted = [file for file in present if file in known or file in companions(present)]
    wanted += [file for file, (by, _) in known.items() if by == "conversion"]  # those of deeper folders, too
    rows = [_row(root, file, known.get(file), weights) for file in dict.fromkeys([*wanted, *weights])]
    return FilesReport(name, place, tuple(rows))


def _row(root: Path, file: str, known: tuple[str, str] | None, weights: Mapping[str, Path]) -> FileRow:
    from converters import open_checkpoint
    from zoo.sources.local import digest, inside

    path = weights.get(file) or inside(root, file)
    if not path.exists():
        return FileRow(file, 0, reason="it is missing")
    nbytes = _size(path)
    compared: list[str] = []
    try:
        if known is not None and path.is_file():
            by, (kind, _, expected) = known[0], known[1].partition(":")
            got = digest(path, "git-sha1" if kind == "git-sha1" else "sha256", again=True)
            compared.append(f"{kind} of the {by}")
            if got != expected:
                return FileRow(file, nbytes, ", ".join(compared), f"{kind} is {got}, not {expected}")
        if file in weights:
            with open_checkpoint(path) as checkpoint:
                compared += filter(None, [checkpoint.check()])
    except UnsafeFile:
        raise
    except ZooError as error:
        return FileRow(
            file, nbytes, ", ".join(compared), error.what if error.got is None else f"{error.what}: {error.got}"
        )
    except OSError as error:
        return FileRow(file, nbytes, ", ".join(compared), f"it cannot be read: {error}")
    return FileRow(file, nbytes, ", ".join(compared))


def _weights(place: Path) -> Iterator[tuple[str, Path]]:
    """Names and paths of the files of weights; of a checkpoint that is a folder, the folder."""
    from converters import FOLDERS
    from converters.folder import is_index, weights_in
    from zoo.sources.local import inside, names_in, shards

    if place.is_file():
        root, name = place.parent, place.name
    elif any(format_.recognises_folder(place) for format_ in FOLDERS):
        yield ".", place
        return
    else:
        root = place
        found = weights_in([file for file in names_in(place) if "/" not in file], place)
        if found is None:
            return
        name = found
    if not is_index(name):
        yield name, root / name
        return
    for shard in shards(root / name):
        yield shard, inside(root, shard)


def _stated(root: Path) -> dict[str, tuple[str, str]]:
    """File -> who states its hash, and the hash as kind:hex: the hub, the wheel that it is from, or our own record."""
    from zoo.sources import hub, local, wheel

    found: dict[str, tuple[str, str]] = {}
    for by, source in (("conversion", local), ("wheel", wheel), ("hub", hub)):
        found |= {file: (by, value) for file, value in source.stated(root).items()}
    return found


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.is_file() else 0
