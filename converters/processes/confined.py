"""What a process does to itself before it reads a file that may be hostile: gives up all that reading does not need.

Imported by the scripts that run in a process of their own (`unpickle_child`, `h5_child`, `orbax_child`), which are
started by path with `python -I`, so this imports nothing outside the standard library.

Four walls, each for itself where the system has it: limits (`setrlimit`), an audit hook against Python code, and
against native code, whose memory a file may have taken over, Linux's seccomp (a list of the system calls that are
allowed: no new files, no sockets, no programs, no processes) and Landlock (no path but one folder, no TCP, no signals).
Where the kernel lacks one, or a container denies it, reading goes on without.
Sources: https://docs.kernel.org/userspace-api/seccomp_filter.html, https://docs.kernel.org/userspace-api/landlock.html,
and the kernel's syscall tables (arch/x86/entry/syscalls/syscall_64.tbl, scripts/syscall.tbl).
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from typing import Any

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


def confine(cpu: int, memory: int, most: int | None = None, folder: str | None = None) -> tuple[str, ...]:
    """Bounds CPU seconds and bytes of address space; forbids new files, writes, imports and processes.

    Args:
        cpu: seconds of CPU time, those already used included.
        memory: bytes of address space, those already used included.
        most: how far `renew` may raise `memory` later on, and CPU time without bound; not at all if None.
        folder: what lies in it may be opened for reading, and threads may be started; nothing and none if None.

    Returns:
        Which of the kernel's walls stand: "landlock", "seccomp".
    """
    known = set(sys.modules)
    walls = ["landlock"] if _landlock(folder) else []
    _limit("CPU", cpu, cpu if most is None else UNLIMITED)
    _limit("AS", memory, memory if most is None else most)
    # No free descriptor below 3: whatever a C library wants to open, it cannot.
    for name, limit in {"FSIZE": 0, "CORE": 0, **({"NOFILE": 3, "NPROC": 0} if folder is None else {})}.items():
        _limit(name, limit, limit)
    if _seccomp(_FOR_ALL if folder is None else {**_FOR_ALL, **_WITH_A_FOLDER}):
        walls.append("seccomp")
    for name in [name for name in sys.modules if name not in known]:
        del sys.modules[name]  # ctypes: with it Python code could do what only native code can do now

    def deny(event: str, args: tuple) -> None:
        if event.startswith(DENIED):
            raise Unsafe(event)

    sys.addaudithook(deny)
    return tuple(walls)


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


# System calls that reading needs, with their numbers on x86-64 and on 64-bit ARM (-1: not there), and what an argument,
# counted from 0, must be: "no" bits of a mask, "all" of them, or a value that it "is". Any other fails with EPERM: code
# that tries something for speed's sake does without it.
_Rule = tuple[int, int] | tuple[int, int, int, str, int]
_EXEC = 4  # PROT_EXEC
_FOR_ALL: dict[str, _Rule] = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "preadv": (295, 69),
    "lseek": (8, 62), "close": (3, 57), "fstat": (5, 80), "newfstatat": (262, 79), "fadvise64": (221, 223),
    "mmap": (9, 222, 2, "no", _EXEC), "mprotect": (10, 226, 2, "no", _EXEC), "munmap": (11, 215),
    "mremap": (25, 216), "madvise": (28, 233), "brk": (12, 214), "futex": (202, 98), "membarrier": (324, 283),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "getcpu": (309, 168), "sysinfo": (99, 179),
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "gettimeofday": (96, 169), "time": (201, -1), "times": (100, 153), "getrandom": (318, 278), "uname": (63, 160),
    "getpid": (39, 172), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176),
    "getegid": (108, 177), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132), "getitimer": (36, 102), "setitimer": (38, 103), "getrusage": (98, 165),
    "getrlimit": (97, 163), "setrlimit": (160, 164), "prlimit64": (302, 261, 0, "is", 0), "poll": (7, -1),
    "ppoll": (271, 73), "restart_syscall": (219, 128), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | getattr(os, "O_CREAT", 0) | getattr(os, "O_TRUNC", 0) | getattr(os, "O_APPEND", 0)
_THREAD = 0x10000  # CLONE_THREAD
_WITH_A_FOLDER: dict[str, _Rule] = {
    "open": (2, -1, 1, "no", _WRITES), "openat": (257, 56, 2, "no", _WRITES), "stat": (4, -1), "lstat": (6, -1),
    "access": (21, -1), "faccessat": (269, 48), "faccessat2": (439, 439), "statx": (332, 291), "readlink": (89, -1),
    "readlinkat": (267, 78), "getdents64": (217, 61), "getcwd": (79, 17), "statfs": (137, 43), "fstatfs": (138, 44),
    "preadv2": (327, 286), "fcntl": (72, 25), "clone": (56, 220, 0, "all", _THREAD), "set_tid_address": (218, 96),
    "set_robust_list": (273, 99), "rseq": (334, 293), "eventfd2": (290, 19), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21), "epoll_wait": (232, -1), "epoll_pwait": (281, 22),
}  # fmt: skip
_MISSING = (435, 437)  # clone3 and openat2 take pointers, whose targets no filter sees: libraries do without them

_EPERM, _ENOSYS = 1, 38
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # machine -> column above, AUDIT_ARCH_*


def _seccomp(rules: dict[str, _Rule]) -> bool:
    """Whether the kernel now refuses every system call but those of the rules, in all threads, for good."""
    machine, libc = _machine(), _libc()
    if machine is None or libc is None:
        return False
    column, architecture = _ARCHITECTURES[machine]
    load, equal, any_bit, end = 0x20, 0x15, 0x45, 0x06  # BPF: ld [k], jeq k, jset k, ret k
    allow, refuse = (end, 0, 0, 0x7FFF0000), (end, 0, 0, 0x50000 | _EPERM)
    steps = [(load, 0, 0, 4), (equal, 1, 0, architecture), refuse, (load, 0, 0, 0)]
    for number in _MISSING:
        steps += [(equal, 0, 1, number), (end, 0, 0, 0x50000 | _ENOSYS)]
    for rule in rules.values():
        number = (rule[0], rule[1])[column]
        if number < 0:
            continue
        if len(rule) == 2:
            steps += [(equal, 0, 1, number), allow]
            continue
        _, _, argument, how, bits = rule
        test, good = {"no": (any_bit, False), "all": (any_bit, True), "is": (equal, True)}[how]
        steps += [(equal, 0, 4, number), (load, 0, 0, 16 + 8 * argument), (test, 0, 1, bits)]
        steps += [allow, refuse] if good else [refuse, allow]
    steps.append(refuse)
    import ctypes

    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(steps), ctypes.addressof(code)))
    if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        return False
    seccomp, every_thread = (317, 277)[column], 1
    if libc.syscall(seccomp, 1, every_thread, program) == 0:  # SECCOMP_SET_MODE_FILTER
        return True
    return libc.prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP: before Linux 3.17


def _landlock(folder: str | None) -> bool:
    """Whether this thread, and those that it starts, can open nothing now but to read what lies in the folder."""
    libc = _libc()
    if libc is None or _machine() is None:
        return False
    create, add_rule, restrict = 444, 445, 446
    version = libc.syscall(create, None, 0, 1)
    if version < 1:
        return False
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    asked = struct.pack("<QQQ", files, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]  # TCP, sockets, signals
    ruleset = libc.syscall(create, asked, len(asked), 0)
    if ruleset < 0:
        return False
    place = -1
    try:
        if folder is not None:
            place = os.open(folder, os.O_RDONLY | getattr(os, "O_PATH", 0) | getattr(os, "O_CLOEXEC", 0))
            read_file, read_folder = 4, 8
            if libc.syscall(add_rule, ruleset, 1, struct.pack("<Qi", read_file | read_folder, place), 0):
                return False
        return libc.prctl(38, 1, 0, 0, 0) == 0 and libc.syscall(restrict, ruleset, 0) == 0
    except OSError:
        return False
    finally:
        for number in (ruleset, place):
            if number >= 0:
                os.close(number)


def _machine() -> str | None:
    """The kind of processor, if it is one whose system calls are listed above."""
    name = os.uname().machine if sys.platform == "linux" and sys.maxsize > 1 << 32 else ""
    return name if name in _ARCHITECTURES else None


def _libc() -> Any:
    """The C library, or None where Python was built without ctypes or the library has no such call."""
    try:
        import ctypes

        libc = ctypes.CDLL(None)
        libc.syscall.restype = ctypes.c_long
    except (ImportError, OSError, AttributeError, TypeError):
        return None
    return libc


def _limit(name: str, soft: int, hard: int | None) -> None:
    try:
        kind = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(kind, (soft, resource.getrlimit(kind)[1] if hard is None else hard))
    except (AttributeError, ValueError, OSError):
        pass  # not on this system, or held lower already
