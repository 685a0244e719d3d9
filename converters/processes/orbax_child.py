"""Lists the arrays of an Orbax checkpoint, and reads them, in a process that can do nothing else.

`formats.orbax` runs it by path, as `python -I orbax_child.py FOLDER MEMORY CPU PACKAGES...`; PACKAGES are folders
that hold tensorstore and NumPy. tensorstore overflows the stack on nested JSON, and ends in a process that was forked
from one that had used it: hence a process, with its limits (`confined`); on Linux it can open nothing but
what lies in FOLDER, for reading.

stdin begins with a line [keys, zarr3]: {name: key in the store}, or null for all of a store without a description; and
whether the arrays are zarr 3, or null. stdout is frames: one byte, a length of 8 bytes, little-endian, and as many
bytes. First the listing, JSON:

    {"refused": [kind, what, name, got]}    the checkpoint is "unsafe" or of a wrong "format"
    arrays     [[name, shape, dtype, chunk that is read at a time, chunk that is stored, whether chunks have
               checksums], ...], in order

then, for each line [name, start, stop] of stdin, the bytes of those rows, row-major and little-endian, in pieces. A
frame that begins with "e" is an error, in words.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from typing import Any

if __package__:
    from converters.processes.confined import address_space, confine, renew
else:  # run by path: see unpickle_child
    sys.path += [*sys.argv[4:], os.path.dirname(os.path.abspath(__file__))]
    from confined import address_space, confine, renew  # type: ignore[no-redef]

    sys.path.pop()

MAX_ARRAYS = 1 << 16
PIECE = 1 << 25
MOST = 1 << 46
"""Address space that `renew` may grant for one read."""
CHUNKS = 8
"""As many chunks may be held at once: tensorstore reads some ahead, and holds each packed and unpacked."""
BYTES_PER_SECOND = 20_000_000
AT_ONCE = 64


class Refused(Exception):
    """Why a checkpoint is not read: "unsafe" or "format"; what is wrong; the name concerned; what stands there."""


def main(folder: str, memory: int, cpu: float) -> None:
    import numpy  # noqa: F401  # what tensorstore imports has to be there before nothing can be imported any more
    import tensorstore

    memory += address_space()
    confine(60, memory, memory + MOST, folder)
    renew(cpu, memory)  # counts from here: how long the imports took is not the file's doing
    store: Store | None = None
    try:
        keys, zarr3 = json.loads(sys.stdin.buffer.readline())
        store = Store(tensorstore, folder, zarr3)
        listing: dict[str, Any] = {"arrays": store.listing(keys)}
    except Refused as error:
        listing = {"refused": error.args}
    except Exception as error:  # damage can make tensorstore say anything
        listing = {"refused": ("format", "tensorstore cannot read the checkpoint", None, words(error))}
    send(b"l", json.dumps(listing).encode())
    for line in sys.stdin.buffer:
        try:
            name, first, stop = json.loads(line)
            assert store is not None
            for piece in store.rows(name, first, stop, memory):
                send(b"d", piece)
        except Exception as error:
            send(b"e", words(error).encode())
    os._exit(0)  # nothing to clean up, and no thread to wait for


class Store:
    """The checkpoint's arrays; only these specifications are opened, none out of the checkpoint."""

    def __init__(self, tensorstore: Any, folder: str, zarr3: bool | None) -> None:
        self.ts, self.zarr3 = tensorstore, zarr3
        # A folder's files as a store: it refuses keys with "..", whatever an OCDBT manifest may ask for.
        self.files = {"driver": "file", "path": f"{os.path.abspath(folder)}/"}
        self.ocdbt = os.path.isfile(os.path.join(folder, "manifest.ocdbt"))
        self.context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 1 << 24}})
        self.keys: dict[str, str] = {}
        self.last: tuple[str, Any] = ("", None)

    def listing(self, keys: dict[str, str] | None) -> list[list[Any]]:
        self.keys = keys = self.found() if keys is None else keys
        found = []
        names = list(keys)
        for start in range(0, len(names), AT_ONCE):
            opened = [(name, self.open(keys[name])) for name in names[start : start + AT_ONCE]]
            for name, future in opened:
                try:
                    array = future.result()
                except Exception as error:
                    what = f"tensor {name!r} is missing or damaged"
                    raise Refused("format", what, None, words(error)) from None
                layout = array.chunk_layout
                chunks = [[int(n) for n in chunk.shape or ()] for chunk in (layout.read_chunk, layout.write_chunk)]
                guarded = "crc32c" in json.dumps(array.spec().to_json().get("metadata"))
                found.append([name, [int(n) for n in array.shape], array.dtype.name, *chunks, guarded])
        return found

    def found(self) -> dict[str, str]:
        """The arrays of a store without a description, as old versions wrote it."""
        kvstore = self.ts.KvStore.open({"driver": "ocdbt", "base": self.files}, context=self.context).result()
        names = {}
        for raw in kvstore.list().result():
            key, _, last = raw.decode("utf-8", "replace").rpartition("/")
            if last in (".zarray", "zarr.json") and key:
                if leaves(key):
                    raise Refused("unsafe", "an array's name leads out of the checkpoint", None, repr(key)[:200])
                names[key.replace(".", "/")] = key
            if len(names) > MAX_ARRAYS:
                raise Refused("format", "the store holds too many arrays", None, f"more than {MAX_ARRAYS}")
        return names

    def open(self, key: str) -> Any:
        """A future of the array under a key."""
        if self.ocdbt:
            kvstore: dict[str, Any] = {"driver": "ocdbt", "base": self.files, "path": f"{key}/"}
        else:
            kvstore = {**self.files, "path": f"{self.files['path']}{key}/"}
        driver = "auto" if self.zarr3 is None else "zarr3" if self.zarr3 else "zarr"
        spec: dict[str, Any] = {"driver": driver, "kvstore": kvstore} | ({} if self.zarr3 is None else {"open": True})
        return self.ts.open(spec, read=True, context=self.context)

    def rows(self, name: str, first: int, stop: int, memory: int) -> Iterator[Any]:
        """Bytes of the rows from `first` to `stop` of an array, in pieces that end where chunks do."""
        if self.last[0] != name:
            self.last = (name, self.open(self.keys[name]).result())
        array = self.last[1]
        size = array.dtype.numpy_dtype.itemsize
        chunk = [int(n) for n in array.chunk_layout.read_chunk.shape or ()]
        row = math.prod(array.shape[1:]) * size
        # A chunk is decompressed as a whole, so pieces begin and end where chunks do.
        step = max(1, PIECE // max(row, 1) // max(chunk[0], 1)) * max(chunk[0], 1) if array.shape else 1
        piece = min(step, stop - first) * row
        renew(2 + (stop - first) * row / BYTES_PER_SECOND, memory + 3 * piece + CHUNKS * math.prod(chunk) * size)
        if not array.shape:
            yield data_of(array.read().result())
            return
        for start in range(first, stop, step):
            yield data_of(array[start : min(start + step, stop)].read().result())


def data_of(array: Any) -> Any:
    """The array's bytes, row-major and little-endian."""
    import numpy

    packed = numpy.ascontiguousarray(array).reshape(-1)
    if packed.dtype.byteorder == ">" or (packed.dtype.byteorder == "=" and sys.byteorder == "big"):
        packed = packed.byteswap()
    return packed.view(numpy.uint8).data


def leaves(key: str) -> bool:
    """Whether a key is none of a store's, or would lead out of its folder."""
    parts = key.split("/")
    return not key or key.startswith("/") or "\\" in key or "\0" in key or any(p in ("", ".", "..") for p in parts)


def send(kind: bytes, data: Any) -> None:
    view = memoryview(data)
    sys.stdout.buffer.write(kind + view.nbytes.to_bytes(8, "little"))
    sys.stdout.buffer.write(view)
    sys.stdout.buffer.flush()


def words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500].encode("utf-8", "replace").decode()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
