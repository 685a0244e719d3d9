"""What a process does to itself before it reads a file that may be hostile: gives up all that reading does not need.

Imported by the scripts that run in a process of their own (`unpickle_child`, `h5_child`), which are started by path
with `python -I`, so this imports nothing outside the standard library.
"""

from __future__ import annotations

import os
import signal
import sys

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["Unsafe", "address_space", "confine", "end_after", "renew"]

DENIED = (
    "open",
    "import",
    "exec",
    "compile",
    "os.",
    "subprocess.",
    "socket.",
    "ctypes.",
    "pickle.",
    "shutil.",
)
UNLIMITED = -1


class Unsafe(Exception):
    """The file asks for something that reading it must never do, or reached what the audit hook forbids."""


def confine(cpu: int, memory: int, most: int | None = None) -> None:
    """Bounds CPU seconds and bytes of address space; forbids new files, writes, imports and processes.

    Args:
        cpu: seconds of CPU time, those already used included.
        memory: bytes of address space, those already used included.
        most: how far `renew` may raise `memory` later on, and CPU time without bound; not at all if None.
    """
    _limit("CPU", cpu, cpu if most is None else UNLIMITED)
    _limit("AS", memory, memory if most is None else most)
    # No free descriptor below 3: whatever a C library wants to open, it cannot.
    for name, limit in {"FSIZE": 0, "CORE": 0, "NOFILE": 3, "NPROC": 0}.items():
        _limit(name, limit, limit)

    def deny(event: str, args: tuple) -> None:
        if event.startswith(DENIED):
            raise Unsafe(event)

    sys.addaudithook(deny)


def renew(cpu: float, memory: int) -> None:
    """Grants `cpu` seconds of CPU time from now on, whatever was left, and `memory` bytes of address space in all."""
    if resource is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit("CPU", int(used.ru_utime + used.ru_stime + cpu) + 2, UNLIMITED)
        _limit("AS", memory, None)
        end_after(cpu)  # the limit counts whole seconds


def end_after(cpu: float) -> None:
    """Lets a signal end the process after `cpu` more seconds of CPU time, where the system has such a timer."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, cpu)


def address_space() -> int:
    """Bytes of address space in use; a generous guess where the system does not tell."""
    try:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 1 << 30


def _limit(name: str, soft: int, hard: int | None) -> None:
    try:
        kind = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(kind, (soft, resource.getrlimit(kind)[1] if hard is None else hard))
    except (AttributeError, ValueError, OSError):
        pass  # not on this system, or held lower already
