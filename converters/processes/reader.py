"""A confined process that reads files for us, seen from outside: started, asked, timed and ended.

For C libraries that crash, hang or fill the memory on some hostile files: HDF5 (`h5_child`) and tensorstore
(`orbax_child`). Each of those scripts says what it answers; nothing of it is trusted.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from converters.checkpoint import AGAIN
from zoo.errors import FormatError, MissingFramework, SourceError, UnsafeFile

__all__ = ["Reader", "home_of"]

WALL_SECONDS = 30
BYTES_PER_SECOND = 5_000_000
"""A read may take a second for as many bytes, besides `WALL_SECONDS`."""
MAX_LISTING = 1 << 27


class Reader:
    """A process that holds one file or folder open; ends with `close`, or with the last reference to it.

    Args:
        path: stands in errors.
        script: a file of this package, run as `python -I script ARGUMENTS... FOLDERS...`.
        arguments: what the script takes.
        packages: what it imports; they are not imported here.
        inherit: descriptors that it gets.
        question: its first line of input, if it waits for one.

    Raises:
        MissingFramework: a package is not installed.
        SourceError: Python cannot be started.
    """

    def __init__(
        self,
        path: Path,
        script: str,
        arguments: Sequence[object],
        packages: Sequence[str],
        *,
        inherit: Sequence[int] = (),
        question: object = None,
    ) -> None:
        self._path = path
        self._lock = threading.Lock()
        child = Path(__file__).with_name(script)
        folders = dict.fromkeys([*map(home_of, packages), Path(np.__file__).parents[1]])
        # One arena: those of threads would take more address space than they use.
        environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        try:
            self._process = subprocess.Popen(
                [sys.executable or "python3", "-I", str(child), *map(str, arguments), *map(str, folders)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=inherit,
                env=environment,
            )
        except OSError as error:
            raise SourceError("Python could not be started to read the file", where=path, got=error) from error
        _widen(self._stdout)
        self._alarm = _Alarm(self._process)
        self._end = weakref.finalize(self, _end, self._process)
        if question is not None:
            with self._alarm.set(WALL_SECONDS):
                self._ask(question, None)

    def listing(self, more: float = 0) -> dict[str, Any]:
        """What the file holds; asked once, first of all. It may take `more` seconds than `WALL_SECONDS`.

        Raises:
            UnsafeFile: the file leads elsewhere.
            FormatError: it cannot be read, or brought the process down.
        """
        with self._lock, self._alarm.set(WALL_SECONDS + more):
            kind, size = self._header(None)
            if kind != b"l" or size > MAX_LISTING:
                self._process.kill()  # what else it sends is of no use
                raise FormatError("the file holds too many tensors to list", where=self._path, got=f"{size} bytes")
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
            self._ask([name, first, stop], name)
            done = 0
            while done < len(out):
                kind, size = self._header(name)
                if kind == b"e":
                    raise FormatError(
                        "a tensor cannot be read",
                        where=where,
                        got=self._stdout.read(min(size, 1 << 16)).decode(errors="replace"),
                        do=AGAIN,
                    )
                if size > len(out) - done or not size:
                    self._process.kill()  # what else it has sent is of no use
                    raise FormatError("a tensor is not of the size declared", where=where, do=AGAIN)
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

    def _ask(self, question: object, name: str | None) -> None:
        try:
            self._stdin.write(json.dumps(question).encode() + b"\n")
            self._stdin.flush()
        except OSError as error:
            raise self._dead(name) from error

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


def home_of(package: str) -> Path:
    """The folder that a package is installed in; the package is not imported.

    Raises:
        MissingFramework: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingFramework(f"files of this kind need {package}", do="pip install 'anyzoo[convert]'")
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


def _widen(pipe: Any) -> None:
    """Lets a pipe hold a megabyte, where the system can: the two processes then change places less often."""
    try:
        import fcntl

        fcntl.fcntl(pipe.fileno(), getattr(fcntl, "F_SETPIPE_SZ"), 1 << 20)  # noqa: B009  # Linux alone has it
    except (ImportError, AttributeError, OSError):
        pass


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                pass  # what was not sent is not needed any more
    process.wait()
