"""The processes that read pickles, HDF5 and Orbax, seen from inside: native code in them can do nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from converters.processes import confined

ROOT = Path(__file__).parents[1]

# Calls of the C library, as code that has taken the process over would make them: no audit hook sees those.
INSIDE = """
import ctypes, errno, json, os, sys
sys.path.append({converters!r})
import confined
libc = ctypes.CDLL(None)
libc.__errno_location.restype = ctypes.POINTER(ctypes.c_int)
place, parent, here = libc.__errno_location(), os.getppid(), os.getpid()
calls = {{name: getattr(libc, name) for name in
         ("open", "socket", "execve", "fork", "kill", "unlink", "ptrace", "mmap", "syscall", "truncate", "symlink")}}
calls["mmap"].restype = ctypes.c_void_p
calls["mmap"].argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
folder = {folder!r}
walls = confined.confine(60, 1 << 40, None, folder)
found = {{}}
def call(what, name, *args):
    place[0] = 0
    got = calls[name](*args)
    if name == "fork" and got == 0:
        os._exit(0)
    found[what] = "done" if got not in (-1, 2 ** 64 - 1) else errno.errorcode.get(place[0], str(place[0]))
call("read inside", "open", {inside!r}, os.O_RDONLY)
call("read outside", "open", {outside!r}, os.O_RDONLY)
call("write inside", "open", {new!r}, os.O_CREAT | os.O_WRONLY, 0o600)
call("write outside", "open", {outside!r}, os.O_RDWR)
call("truncate", "truncate", {outside!r}, 0)
call("remove", "unlink", {inside!r})
call("link", "symlink", {outside!r}, {new!r})
call("internet", "socket", 2, 1, 0)
call("unix socket", "socket", 1, 1, 0)
call("program", "execve", b"/bin/true", None, None)
call("process", "fork")
call("signal", "kill", parent, 0)
call("trace", "ptrace", 16, parent, None, None)
call("machine code", "mmap", None, 4096, 7, 0x22, -1, 0)
call("memory", "mmap", None, 4096, 3, 0x22, -1, 0)
os.write(1, json.dumps([walls, found]).encode())
"""


@pytest.mark.parametrize("with_a_folder", [False, True])
def test_native_code_inside_can_do_nothing(with_a_folder: bool, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "inside").write_text("x")
    (tmp_path / "outside").write_text("x")
    code = INSIDE.format(
        converters=str(ROOT / "converters" / "processes"),
        folder=str(folder) if with_a_folder else None,
        inside=os.fsencode(folder / "inside"),
        outside=os.fsencode(tmp_path / "outside"),
        new=os.fsencode(folder / "new"),
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=True)
    walls, found = json.loads(done.stdout)
    if "seccomp" not in walls:
        pytest.skip(f"the kernel here has only {walls or 'neither wall'}")
    allowed = {"memory", "read inside"} if with_a_folder else {"memory"}
    if "landlock" not in walls and with_a_folder:
        allowed.add("read outside")
    assert {what for what, result in found.items() if result == "done"} == allowed
    assert {result for result in found.values() if result != "done"} <= {"EPERM", "EACCES"}
    assert (folder / "inside").read_text() == (tmp_path / "outside").read_text() == "x"


# A filter of our own first: to the processes that come after it, the kernel has neither Landlock nor seccomp.
WITHOUT = """
import ctypes, struct, sys
numbers, prctl = {numbers!r}, {prctl!r}
steps = [(0x20, 0, 0, 0)]
steps += [step for number in numbers for step in ((0x15, 0, 1, number), (6, 0, 0, 0x50000 | 38))]
steps += [(0x15, 0, 3, prctl), (0x20, 0, 0, 16), (0x15, 0, 1, 22), (6, 0, 0, 0x50000 | 22), (6, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(steps), ctypes.addressof(code)))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
sys.path.insert(0, {root!r})
from converters.processes import confined
from converters import open_checkpoint
assert not confined._landlock(None)
for path in sys.argv[1:]:
    with open_checkpoint(path) as checkpoint:
        print(checkpoint.read("a").tolist())
"""


@pytest.mark.skipif(confined._machine() is None, reason="no such walls on this system")
def test_kernels_without_walls_read_all_the_same(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=np.ones(2, np.float32), chunks=(1,), compression="gzip")
    machine = confined._machine()
    code = WITHOUT.format(
        numbers=(444, 445, 446, 317 if machine == "x86_64" else 277),
        prctl=157 if machine == "x86_64" else 167,
        root=str(ROOT),
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.pt"), str(tmp_path / "a.h5")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "assert libc.prctl" in done.stderr:
        pytest.skip("the kernel here has no seccomp")
    assert done.stdout.split("\n")[:2] == ["[1.0, 1.0]"] * 2, done.stderr
