"""A folder that we write: whole or not at all, with a list of its files, and never over a file that is not ours.

The list says how large each file was and its sha256. Writing there again replaces only what the list names and nobody
has changed since; whatever else somebody put into the folder stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from converters.atomic import replacing
from zoo.errors import ConfigError, SourceError, ZooError

__all__ = ["RECORD", "may_write", "refused_by_system", "writing"]

RECORD = "conversion.json"
"""What a folder says of where it came from, with the list of its files."""

_ANEW = "choose another folder, or move yours away"


def may_write(folder: Path, overwrite: bool) -> set[str]:
    """The files of ours in a folder, which may be replaced; none where there is no folder, or an empty one.

    Raises:
        ConfigError: it holds something, and is not to be overwritten, or has no list of ours, or files of the list
            were changed; these are named.
        SourceError: it cannot be looked at.
    """
    with refused_by_system(folder):
        if not folder.exists() and not folder.is_symlink():
            return set()
        if not folder.is_dir():
            raise ConfigError("the folder holds something else", where=folder, got="no folder", do="name a new folder")
        if not any(folder.iterdir()):
            return set()
        listed = _listed(folder)
        if listed is None:
            raise ConfigError(
                "the folder holds something else",
                where=folder,
                got=f"no {RECORD} with a list of files",
                do="choose an empty or a new folder",
            )
        if not overwrite:
            raise ConfigError(
                "the folder holds what was written before",
                where=folder,
                do="choose a new folder, or overwrite (--overwrite, overwrite=True): "
                f"only the files that its {RECORD} lists are replaced",
            )
        ours = {name: path for name, path in _files(folder) if name in listed}
        if changed := [name for name, path in ours.items() if _state(path) != listed[name]]:
            raise ConfigError(
                "files were changed since they were written, and are not overwritten",
                where=folder,
                got=_some(changed),
                do=_ANEW,
            )
        return {*ours, RECORD}


@contextmanager
def writing(folder: Path, overwrite: bool) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A new folder to write into, and a dict for what its `RECORD` is to say; the target's place is taken at the end.

    What the target holds beside the files of its list comes along, as it is. `may_write` says what is refused; the
    caller asks it before a long work, and the end of the block asks again.

    Raises:
        ConfigError: as `may_write` says, or a file that is not of the list has the name of one that is written.
        SourceError: the system refuses to write; the target is as it was.
    """
    with refused_by_system(folder):
        real = folder.resolve()
        real.parent.mkdir(parents=True, exist_ok=True)
        ours: set[str] = set()

        def bring(fresh: Path) -> None:
            ours.update(may_write(real, overwrite))
            if real.is_dir():
                _bring_along(real, fresh, ours)

        # The folder may be written to meanwhile: what comes after others were brought along is found in the old one.
        with replacing(real, last=bring, after=lambda old: _bring_late(old, real, ours)) as fresh:
            fresh.mkdir()
            record: dict[str, Any] = {}
            yield fresh, record
            files = {path.relative_to(fresh).as_posix(): _state(path) for path in sorted(fresh.rglob("*"))}
            record["files"] = {name: state for name, state in files.items() if state is not None and name != RECORD}
            (fresh / RECORD).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
            may_write(real, overwrite)


@contextmanager
def refused_by_system(where: Path) -> Iterator[None]:
    """What the system refuses (no permission, a full disk) is an error of ours that names the output."""
    try:
        yield
    except ZooError:
        raise
    except OSError as error:
        raise SourceError(
            "the output cannot be written", where=where, got=error, do="choose another place, or make room"
        ) from error


def _listed(folder: Path) -> Mapping[str, Any] | None:
    """What the folder's list says of each file; None if there is no list."""
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    files = record.get("files") if isinstance(record, dict) else None
    return files if isinstance(files, dict) else None


def _bring_along(old: Path, fresh: Path, ours: set[str]) -> None:
    """What somebody else put into the old folder, as hard links where the filesystem has them."""
    theirs = [(name, path) for name, path in _files(old) if name not in ours]
    if clashes := [name for name, path in theirs if _taken(fresh, name, path)]:
        raise ConfigError(
            f"files that {RECORD} does not list have the names of files that are written",
            where=old,
            got=_some(clashes),
            do=_ANEW,
        )
    for name, path in theirs:
        whole = path.is_dir() and not path.is_symlink()
        _make_folders(old, fresh, name if whole else name.rpartition("/")[0])
        if path.is_symlink():
            (fresh / name).symlink_to(path.readlink(), target_is_directory=path.is_dir())
        elif not whole:
            try:
                os.link(path, fresh / name)
            except OSError:
                shutil.copy2(path, fresh / name)
                with (fresh / name).open("rb") as copied:
                    os.fsync(copied.fileno())


def _bring_late(old: Path, new: Path, ours: set[str]) -> None:
    """What others put into the old folder between its look-through and the exchange, or replaced there.

    Another of our writers may have been there just before: what it listed is ours, too.
    """
    for name, path in [*_files(old)]:
        if name in ours or name == RECORD or name in (_listed(old) or ()) or (path.is_dir() and not path.is_symlink()):
            continue
        target = new / name
        if name in (_listed(new) or ()):  # of the name of a file that was just written: both stay
            target = target.with_name(f"{target.name}.orig")
        if path.is_symlink() or (target.exists() and (target.is_dir() or target.samefile(path))):
            continue  # links were brought along; the same file
        if target.exists() and target.stat().st_mtime_ns >= path.stat().st_mtime_ns:
            continue
        try:
            _make_folders(old, new, name.rpartition("/")[0])
            path.replace(target)
        except FileNotFoundError:
            continue  # whoever wrote it took it away again


def _taken(fresh: Path, name: str, path: Path) -> bool:
    """Whether a file cannot stand beside what is written; a folder may hold files of both."""
    above = any((fresh / part).exists() and not (fresh / part).is_dir() for part in Path(name).parents)
    both = (fresh / name).is_dir() and path.is_dir() and not path.is_symlink()
    return above or ((fresh / name).exists() and not both)


def _make_folders(old: Path, fresh: Path, name: str) -> None:
    for part in (*reversed(Path(name).parents), Path(name)):
        if not (fresh / part).exists():
            (fresh / part).mkdir()
            shutil.copystat(old / part, fresh / part)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file and link of a folder by its relative path, and those folders that hold nothing."""

    def fail(error: OSError) -> None:
        raise error

    for root, folders, files in os.walk(folder, onerror=fail):
        here = Path(root)
        links = [name for name in folders if (here / name).is_symlink()]
        for name in (*links, *files):
            yield (here / name).relative_to(folder).as_posix(), here / name
        if not folders and not files and here != folder:
            yield here.relative_to(folder).as_posix(), here


def _state(path: Path) -> dict[str, Any] | None:
    """A file's size and sha256; None of what is no plain file."""
    if path.is_symlink() or not path.is_file():
        return None
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": found}


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
