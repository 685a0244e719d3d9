"""The confined process that reads an HDF5 file, seen from outside: started, asked, timed and ended.

What it answers is in `converters.h5_child`; nothing it says is trusted.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from converters.checkpoint import AGAIN
from zoo.errors import FormatError, MissingFramework, SourceError, UnsafeFile

__all__ = ["Reader", "require_h5py"]

CPU_SECONDS = 1.25
"""CPU time for listing, and one second more for each 2 MB: 10,000 datasets are 15 MB and take about one second."""
MAX_CPU_SECONDS = 20
WALL_SECONDS = 30
BYTES_PER_SECOND = 5_000_000
"""A read may take a second for as many bytes, besides `WALL_SECONDS`."""
MEMORY = 1 << 26
MAX_LISTING = 1 << 27


class Reader:
    """A process that holds one HDF5 file open; ends with `close`, or with the last reference to it.

    Args:
        path: stands in errors.
        file: holds the HDF5 file; the process inherits it.
        start: where in `file` the HDF5 file begins.
        size: how many bytes it has.

    Raises:
        MissingFramework: h5py is not installed.
        SourceError: Python cannot be started.
    """

    def __init__(self, path: Path, file: IO[bytes], start: int, size: int) -> None:
        self._path = path
        self._lock = threading.Lock()
        inherits = os.name == "posix"
        place = str(file.fileno()) if inherits else file.name
        cpu = min(CPU_SECONDS + size / (1 << 21), MAX_CPU_SECONDS)
        memory = MEMORY + min(2 * size, 1 << 30)
        child = Path(__file__).with_name("h5_child.py")
        command = [sys.executable or "python3", "-I", str(child), place, str(start), str(size), str(memory), str(cpu)]
        try:
            self._process = subprocess.Popen(
                [*command, str(require_h5py()), str(Path(np.__file__).parents[1])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(file.fileno(),) if inherits else (),
            )
        except OSError as error:
            raise SourceError("Python could not be started to read the file", where=path, got=error) from error
        self._alarm = _Alarm(self._process)
        self._end = weakref.finalize(self, _end, self._process)

    def listing(self) -> dict[str, Any]:
        """What the file holds; asked once, first of all.

        Raises:
            UnsafeFile: the file leads elsewhere.
            FormatError: it cannot be read, or brought the process down.
        """
        with self._lock, self._alarm.set(WALL_SECONDS):
            kind, size = self._header(None)
            if kind != b"l" or size > MAX_LISTING:
                raise FormatError("the file holds too many datasets to list", where=self._path, got=f"{size} bytes")
            raw = self._stdout.read(size)
            if len(raw) < size:
                raise self._dead(None)
        listing = json.loads(raw)
        if "refused" not in listing:
            return listing
        kind, what, name, got = listing["refused"]
        where = self._path if name is None else f"{self._path}, {name!r}"
        if kind == "unsafe":
            raise UnsafeFile(
                what,
                where=where,
                expected="tensors that lie in the file itself",
                got=got,
                do="if you trust its author, copy the dataset itself to that place, for example with h5py; "
                "else leave the file alone",
            )
        raise FormatError(what, where=where, got=got, do=AGAIN)

    def read(self, name: str, first: int, stop: int, out: memoryview) -> None:
        """Fills `out` with the bytes of a dataset's rows, as they are in the file.

        Raises:
            FormatError: they cannot be read, take too long, or brought the process down.
        """
        where = f"{self._path}, tensor {name!r}"
        with self._lock, self._alarm.set(WALL_SECONDS + len(out) // BYTES_PER_SECOND):
            try:
                self._stdin.write(json.dumps([name, first, stop]).encode() + b"\n")
                self._stdin.flush()
            except OSError as error:
                raise self._dead(name) from error
            done = 0
            while done < len(out):
                kind, size = self._header(name)
                if kind == b"e":
                    raise FormatError(
                        "HDF5 cannot read a dataset",
                        where=where,
                        got=self._stdout.read(min(size, 1 << 16)).decode(errors="replace"),
                        do=AGAIN,
                    )
                if size > len(out) - done or not size:
                    self._process.kill()  # what else it has sent is of no use
                    raise FormatError("a dataset is not of the size declared", where=where, do=AGAIN)
                if self._stdout.readinto(out[done : done + size]) < size:
                    raise self._dead(name)
                done += size

    def close(self) -> None:
        """Ends the process."""
        self._end()

    @property
    def _stdin(self) -> Any:
        return self._process.stdin

    @property
    def _stdout(self) -> Any:
        return self._process.stdout

    def _header(self, name: str | None) -> tuple[bytes, int]:
        raw = self._stdout.read(9)
        if len(raw) < 9:
            raise self._dead(name)
        return raw[:1], int.from_bytes(raw[1:], "little")

    def _dead(self, name: str | None) -> FormatError:
        self._process.kill()
        code = self._process.wait()
        if self._alarm.expired:
            what, got = "the file takes too long to read", None
        else:
            what = "the file brought its reader down: it is corrupt, or made to exhaust time or memory"
            got = f"signal {-code}" if code < 0 else f"exit status {code}"
        where = self._path if name is None else f"{self._path}, tensor {name!r}"
        return FormatError(what, where=where, got=got, do=AGAIN)


def require_h5py() -> Path:
    """The folder that h5py is installed in; h5py is not imported.

    Raises:
        MissingFramework: it is not installed.
    """
    spec = importlib.util.find_spec("h5py")
    if spec is None or spec.origin is None:
        raise MissingFramework("HDF5 files need h5py", do="pip install 'anyzoo[convert]'")
    return Path(spec.origin).parents[1]


class _Alarm:
    """Kills a process that takes longer than it was given; holds no `Reader`, whose end it would delay."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.expired = False
        self._process = process

    @contextmanager
    def set(self, seconds: float) -> Iterator[None]:
        timer = threading.Timer(seconds, self._ring)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _ring(self) -> None:
        self.expired = True
        self._process.kill()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                pass  # what was not sent is not needed any more
    process.wait()
