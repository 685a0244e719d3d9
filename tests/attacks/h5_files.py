"""HDF5 files that lie, lead elsewhere or hold what is no tensor: name -> (how to write it, words of its error)."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

NUMBERS = np.arange(6.0, dtype=np.float32)


def _linked(link: Any) -> Callable[[h5py.File], None]:
    def make(f: h5py.File) -> None:
        f["a"] = NUMBERS
        f["g/b"] = link

    return make


def _virtual(f: h5py.File) -> None:
    layout = h5py.VirtualLayout((6,), "f4")
    layout[:] = h5py.VirtualSource(f"{f.filename}.other", "x", (6,))
    f.create_virtual_dataset("g/b", layout)


def _unlimited_virtual(f: h5py.File) -> None:
    layout = h5py.VirtualLayout((6,), "f4", maxshape=(None,))
    source = h5py.VirtualSource("/etc/passwd", "x", (6,), maxshape=(None,))
    layout[: h5s.UNLIMITED] = source[: h5s.UNLIMITED]
    f.create_virtual_dataset("g/b", layout)


def _external(f: h5py.File) -> None:
    f.create_dataset("g/b", (6,), "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


UNSAFE: dict[str, Callable[[h5py.File], None]] = {
    "soft link": _linked(h5py.SoftLink("/a")),
    "soft link to nothing": _linked(h5py.SoftLink("/nothing")),
    "external link": _linked(h5py.ExternalLink("/etc/passwd", "/x")),
    "virtual dataset": _virtual,
    "virtual dataset without end": _unlimited_virtual,
    "external storage": _external,
}


def _dataset(*args: Any, **options: Any) -> Callable[[h5py.File], None]:
    def make(f: h5py.File) -> None:
        f.create_dataset("g/b", *args, **options)

    return make


def _one_chunk(f: h5py.File) -> None:
    f.create_dataset("g/b", (1 << 40,), "f4", chunks=(256,))[:256] = 1


def _deep(f: h5py.File) -> None:
    f["/".join("g" * 200)] = NUMBERS


def _cycle(f: h5py.File) -> None:
    f["a/b/c"] = NUMBERS
    f["a/b/again"] = f["a"]


def _root_cycle(f: h5py.File) -> None:
    f["g"] = f["/"]


def _diamonds(f: h5py.File) -> None:
    group = f
    for _ in range(30):
        left = group.create_group("left")
        group["right"] = left
        group = left


def _not_utf8(f: h5py.File) -> None:
    h5d.create(f.id, b"\xff\xfe", h5t.IEEE_F32LE, h5s.create_simple((3,)))


def _missing_weight(f: h5py.File) -> None:
    f["a/k"] = NUMBERS
    f.attrs["layer_names"] = [b"a"]
    f["a"].attrs["weight_names"] = [b"k", b"bias"]


def _missing_layer(f: h5py.File) -> None:
    f["a/k"] = NUMBERS
    f.attrs["layer_names"] = [b"a", b"b"]


def _odd_float(f: h5py.File) -> None:
    kind = h5t.IEEE_F32LE.copy()
    kind.set_ebias(100)
    h5d.create(f.id, b"b", kind, h5s.create_simple((3,)))


BROKEN: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "chunks that are not there": (_dataset((1 << 40,), "f4", chunks=(1 << 16,)), "far larger"),
    "one chunk of very many": (_one_chunk, "far larger"),
    "small, but not there": (_dataset((4096,), "f4", chunks=(1024,), compression="gzip"), "far larger"),
    "contiguous, never written": (_dataset((1 << 40,), "f4"), "far larger"),
    "one number, never written": (_dataset((), "f4"), "far larger"),
    "chunks beyond memory": (_dataset((1 << 30,), "f4", chunks=(1 << 28,)), "too large"),
    "nested too deeply": (_deep, "too deeply"),
    "group inside itself": (_cycle, "inside itself"),
    "root inside itself": (_root_cycle, "inside itself"),
    "two to the thirtieth paths": (_diamonds, "two names"),
    "name that is no text": (_not_utf8, "UTF-8"),
    "weight that is not there": (_missing_weight, "a/bias"),
    "layer that is not there": (_missing_layer, "'b'"),
    "compound": (_dataset(data=np.zeros(3, [("x", "f4"), ("y", "i4")])), "not supported"),
    "complex": (_dataset(data=np.zeros(3, np.complex64)), "not supported"),
    "opaque": (_dataset(data=np.zeros(3, "V2")), "not supported"),
    "sequences": (_dataset((3,), h5py.vlen_dtype(np.float32)), "not supported"),
    "enumeration": (_dataset((3,), h5py.enum_dtype({"A": 0, "B": 1}, "i1")), "not supported"),
    "references": (_dataset((3,), h5py.ref_dtype), "not supported"),
    "arrays": (_dataset((3,), np.dtype(("f4", (2,)))), "not supported"),
    "long double": (_dataset((3,), np.longdouble), "not supported"),
    "float of no standard": (_odd_float, "not supported"),
    "nothing": (_dataset(data=h5py.Empty("f4")), "no values"),
    "lossy filter": (_dataset(data=np.arange(64), chunks=(8,), scaleoffset=0), "unsupported way"),
}


def write(path: Path, make: Callable[[h5py.File], None]) -> Path:
    with h5py.File(path, "w") as f:
        make(f)
    return path


def with_chunk(path: Path, raw: bytes, **options: Any) -> Path:
    """A compressed dataset "b" of a thousand bytes, whose one chunk is `raw` instead."""
    with h5py.File(path, "w") as f:
        dataset = f.create_dataset("b", (1000,), "u1", chunks=(1000,), compression="gzip", **options)
        dataset.id.write_direct_chunk((0,), raw)
    return path


def deflated_zeros(size: int) -> bytes:
    pack = zlib.compressobj(1)
    block = bytes(1 << 20)
    return b"".join([pack.compress(block) for _ in range(size >> 20)]) + pack.flush()


def moved(path: Path, place: Callable[[int, int], int]) -> Path:
    """Two contiguous datasets; the second is said to begin at `place` of (where the first does, size of the file)."""
    with h5py.File(path, "w") as f:
        f["a"], f["b"] = NUMBERS, -NUMBERS
        first, second = f["a"].id.get_offset(), f["b"].id.get_offset()
    data = path.read_bytes()
    old = second.to_bytes(8, "little")
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, place(first, len(data)).to_bytes(8, "little")))
    return path


def compact(f: h5py.File, name: str, values: np.ndarray) -> None:
    """A dataset that lies in its object's header."""
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_layout(h5d.COMPACT)
    kind, space = h5t.py_create(values.dtype), h5s.create_simple(values.shape)
    h5d.create(f.id, name.encode(), kind, space, plist).write(h5s.ALL, h5s.ALL, values)
