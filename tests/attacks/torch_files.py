"""Torch checkpoints made by hand: any pickle, any storages, any zip."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class Storage:
    """Pickles as torch's reference to a storage; `view` is the legacy format's (key, offset, size)."""

    def __init__(self, kind: Any, key: Any, numel: Any, view: Any = None) -> None:
        self.kind, self.key, self.numel, self.view = kind, key, numel, view


def pickled(value: Any, *, legacy: bool = False, protocol: int = 2) -> bytes:
    out = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if isinstance(obj, Storage):
                reference = ("storage", obj.kind, obj.key, "cpu", obj.numel)
                return (*reference, obj.view) if legacy else reference
            return None

    Pickler(out, protocol).dump(value)
    return out.getvalue()


def write_zip(
    path: Path,
    pickle_bytes: bytes,
    storages: dict[str, bytes] | None = None,
    *,
    root: str = "archive",
    byteorder: str | None = "little",
    extra: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """A zip checkpoint around a pickle; `extra` members are named as they are, outside `root` or not."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", pickle_bytes)
        if byteorder is not None:
            archive.writestr(f"{root}/byteorder", byteorder)
        for key, data in (storages or {}).items():
            archive.writestr(f"{root}/data/{key}", data)
        archive.writestr(f"{root}/version", "3\n")
        for name, data in (extra or {}).items():
            archive.writestr(name, data)
    return path


def write_legacy(path: Path, pickle_bytes: bytes, storages: dict[str, tuple[int, bytes]] | None = None) -> Path:
    """A legacy checkpoint around a pickle; storages are key -> (number of values, bytes)."""
    system = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {}}
    data = b"".join(pickle.dumps(x, protocol=2) for x in (MAGIC, PROTOCOL, system))
    data += pickle_bytes + pickle.dumps(list(storages or {}), protocol=2)
    for numel, raw in (storages or {}).values():
        data += struct.pack("<q", numel) + raw
    path.write_bytes(data)
    return path


def raw_global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def nested(open_: bytes, close: bytes, depth: int) -> bytes:
    return b"\x80\x02" + open_ * depth + close * depth + b"."


def shared_lists(depth: int) -> bytes:
    """A list of ten references to a list of ten references ...: 10**depth leaves in a few hundred bytes."""
    value: list = []
    for _ in range(depth):
        value = [value] * 10
    return pickle.dumps({"a": value}, protocol=2)


def slow_hash(depth: int) -> bytes:
    """A dict key whose hash takes 2**depth steps: tuples do not remember theirs."""
    # ( ) memo 0; then get 0 twice, tuple, memo 0 again ...; used as the key of a dict.
    body = b")q\x00" + b"0h\x00h\x00\x86q\x00" * depth
    return b"\x80\x02}" + body + b"K\x01s."


RESOURCE_BOMBS = {
    "memo index of 2**31": b"\x80\x02}r\xff\xff\xff\x7f.",
    "text of 2**62 bytes": b"\x80\x04\x8d" + (1 << 62).to_bytes(8, "little") + b"x.",
    "bytes of 2**31": b"\x80\x04B\xff\xff\xff\x7fx.",
    "integer of 2**31 bytes": b"\x80\x02\x8b\xff\xff\xff\x7fx.",
    "lists a million deep": nested(b"]", b"a", 1_000_000)[:-2] + b".",
    "tuples a million deep": b"\x80\x02)" + b"\x85" * 1_000_000 + b".",
    "tuples a million deep as a key": b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.",
    "ten to the fortieth leaves": shared_lists(40),
    "dict that holds itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    "one long name a million times": (
        b"\x80\x02}q\x00X\x00\x00\x10\x00" + b"n" * (1 << 20) + b"]q\x01(" + b"K\x01" * 200_000 + b"es."
    ),
}
