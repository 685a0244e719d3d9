"""Writing that happens whole or not at all: under another name, flushed to the disk, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` for a new file or folder, which takes `path`'s place when the block ends well.

    What stood at `path` stays whole until then. A folder that is replaced is moved aside for the moment between two
    renames, and comes back if the second fails. When the block raises, nothing is left of what it wrote.

    Args:
        path: a file or a folder; its parent must exist.
    """
    fresh = path.with_name(f".{path.name[:64]}.{secrets.token_hex(8)}.tmp")
    try:
        yield fresh
        _sync(fresh)
        _swap(fresh, path)
        _sync_folder(path.parent)
    finally:
        if fresh.is_dir():
            shutil.rmtree(fresh, ignore_errors=True)
        else:
            fresh.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flushes a file, or every file of a folder, to the disk."""
    for item in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if item.is_file():
            with item.open("rb+") as f:
                os.fsync(f.fileno())
        else:
            _sync_folder(item)
    if path.is_dir():
        _sync_folder(path)


def _swap(fresh: Path, target: Path) -> None:
    """Puts `fresh` in the target's place; a folder cannot be renamed over another that holds something."""
    if not (target.is_dir() and any(target.iterdir())):
        if target.is_dir():
            target.rmdir()
        fresh.replace(target)
        return
    old = fresh.with_name(f"{fresh.name}.old")
    target.replace(old)
    try:
        fresh.replace(target)
    except BaseException:
        old.replace(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Makes names durable, where a folder can be opened (not on Windows)."""
    if os.name == "posix":
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
