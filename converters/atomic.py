"""Writing that happens whole or not at all: in a folder beside the target, flushed to the disk, then put in its place.

Whoever writes holds a lock on that folder, which ends with the process. What a killed process left is thus known to be
nobody's, and is removed by the next one that writes to the same place.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import secrets
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["replacing"]


@contextmanager
def replacing(
    path: Path, *, last: Callable[[Path], object] = bool, after: Callable[[Path], object] = bool
) -> Iterator[Path]:
    """A path for a new file or folder, which takes `path`'s place when the block ends well.

    What stood at `path` stays whole until then, and both change places in one step: whoever looks, or whenever the
    process is killed, there is the old or the new. (Where the system cannot exchange two folders, the old one is moved
    aside for a moment; if the process is killed just then, the next one that writes there puts it back.) When the
    block raises, nothing is left of what it wrote.

    Args:
        path: a file or a folder; its parent must exist.
        last: called with what was written once it is on the disk, just before it takes its place.
        after: called with the folder that stood there, before it is removed.
    """
    path = path.absolute()
    _remove_left(path)
    work, lock = _workplace(path)
    fresh = work / path.name
    try:
        with _flushing(work):
            yield fresh
        _sync(fresh)
        last(fresh)
        for folder in [item for item in (fresh, *fresh.rglob("*")) if item.is_dir() and not item.is_symlink()]:
            _sync_folder(folder)
        _swap(fresh, path)
        for old in (fresh, work / _OLD):
            if old.is_dir():
                after(old)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def _flushing(folder: Path) -> Iterator[None]:
    """Flushes what is written in the folder while more is written: the disk need not wait for the end."""
    over = threading.Event()

    def flush() -> None:
        while not over.wait(_PAUSE):
            try:
                for path in folder.rglob("*"):
                    fd = os.open(path, os.O_RDONLY)
                    try:
                        getattr(os, "fdatasync", os.fsync)(fd)
                    finally:
                        os.close(fd)
            except OSError:
                pass  # something is gone already, or cannot be flushed: `_sync` is what counts

    thread = threading.Thread(target=flush, daemon=True)
    if os.name == "posix":
        thread.start()
    try:
        yield
    finally:
        over.set()
        if thread.is_alive():
            thread.join()


_PAUSE = 0.2


def _prefix(path: Path) -> str:
    """What the names of a target's workplaces begin with: its own name as far as it is short, and a hash of all."""
    return f".{path.name[:48]}.{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}."


def _workplace(path: Path) -> tuple[Path, int | None]:
    """A new folder beside `path`, and the descriptor that holds the lock on it, where the system has such locks."""
    while True:
        work = path.with_name(f"{_prefix(path)}{secrets.token_hex(8)}.tmp")
        work.mkdir()
        try:
            lock = _locked(work)
        except BlockingIOError:
            continue
        if work.exists():  # else somebody took it for left over before it was locked
            return work, lock
        if lock is not None:
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """A descriptor that locks the folder until it is closed or the process ends; None if there are no such locks.

    Raises:
        BlockingIOError: somebody holds the lock.
    """
    if fcntl is None:
        return None
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise
    except OSError:  # not on this filesystem
        os.close(fd)
        return None
    return fd


def _remove_left(path: Path) -> None:
    """Removes what processes left that were killed while they wrote to `path`: folders that nobody has locked."""
    name = re.compile(re.escape(_prefix(path)) + r"[0-9a-f]{16}\.tmp")
    for work in [item for item in path.parent.iterdir() if name.fullmatch(item.name)]:
        try:
            lock = _locked(work)
        except BlockingIOError:
            continue  # somebody is writing there
        if lock is None:
            continue
        try:
            if (work / _OLD).exists() and not path.exists():
                (work / _OLD).replace(path)
            shutil.rmtree(work, ignore_errors=True)
        finally:
            os.close(lock)


_OLD = ".old"


def _sync(path: Path) -> None:
    """Flushes a file, or every file of a folder, to the disk; one that must not be opened was not written here."""
    for item in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if item.is_symlink():
            continue
        if item.is_file():
            try:
                with item.open("rb" if os.name == "posix" else "rb+") as f:
                    os.fsync(f.fileno())
            except PermissionError:
                if os.name == "posix" and item.stat().st_nlink == 1:
                    raise
        elif item.is_dir():
            _sync_folder(item)
    if path.is_dir():
        _sync_folder(path)


def _swap(fresh: Path, target: Path) -> None:
    """Puts `fresh` in the target's place; a folder cannot be renamed over another that holds something."""
    if not (target.is_dir() and any(target.iterdir())):
        if target.is_dir() and not (os.name == "posix" and fresh.is_dir()):
            target.rmdir()
        fresh.replace(target)
        return
    if _exchange(fresh, target):
        return
    old = fresh.with_name(_OLD)
    target.replace(old)
    try:
        fresh.replace(target)
    except BaseException:
        old.replace(target)
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Lets two folders change names in one step; False where the system or the filesystem cannot."""
    if os.name != "posix":
        return False
    libc, names = ctypes.CDLL(None), (os.fsencode(one), os.fsencode(other))
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE: linux/fcntl.h, linux/fs.h
        return libc.renameat2(here, names[0], here, names[1], exchange) == 0
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        return libc.renamex_np(*names, 2) == 0  # RENAME_SWAP: sys/stdio.h
    return False


def _sync_folder(folder: Path) -> None:
    """Makes names durable, where a folder can be opened (not on Windows)."""
    if os.name == "posix":
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
