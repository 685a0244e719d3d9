"""Lists the datasets of an HDF5 file, and streams those that cannot be mapped, in a process that can do nothing else.

Not imported: `formats.hdf5.read` runs it by path, as `python -I h5_child.py FILE START SIZE MEMORY CPU FOLDER...`: the
HDF5 file is SIZE bytes from START on in FILE (a descriptor's number, or a path where none can be inherited); FOLDERs
hold h5py and NumPy. HDF5's C library crashes or hangs on some hostile files: hence the process, its limits
(`converters.processes.confined`), and no descriptor for it to open another file with.

stdout is frames: one byte, a length of 8 bytes, little-endian, and as many bytes. First the listing, JSON:

    {"refused": [kind, what, name, got]}    the file is "unsafe" or of a wrong "format"
    datasets   [[name, shape, dtype, byte order, address, offset, bytes stored, bytes and rows of a chunk, whether
               it has checksums], ...] in order; the offset is null where nothing can be mapped; one address is one
               dataset, whatever its names
    metadata   {name: text or list of texts}
    empty      layers without weights

then, for each line [name, start, stop] of stdin, the bytes of those rows as the file has them, row-major, in pieces.
A frame that begins with "e" is an error, in words.
Source of the format: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html; of the attributes that order
Keras' weights: keras/src/legacy/saving/legacy_h5_format.py, and transformers 4's modeling_tf_utils.py for its shards.
"""

from __future__ import annotations

import encodings.ascii  # noqa: F401  # h5py asks for it later, when nothing can be imported any more
import io
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator
from typing import Any

for _name in [name for name in os.environ if name.startswith("HDF5_")]:
    del os.environ[_name]
os.environ["HDF5_PLUGIN_PRELOAD"] = "::"  # HDF5's way to say: load no plugin, whatever filter the file asks for
os.environ["OPENBLAS_NUM_THREADS"] = "1"
if __package__:
    from converters.processes.confined import address_space, confine, renew
else:  # run by path: see unpickle_child
    sys.path += [*sys.argv[6:], os.path.dirname(os.path.abspath(__file__))]
    from confined import address_space, confine, renew  # type: ignore[no-redef]

    sys.path.pop()

import h5py  # noqa: E402
import numpy as np  # noqa: E402
from h5py import h5, h5a, h5d, h5g, h5l, h5o, h5p, h5s, h5t  # noqa: E402

FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
KERAS_LISTS = ("layer_names", "weight_names")
MAX_DEPTH, MAX_CHARS, MAX_TEXT = 64, 1 << 24, 1 << 22
MAX_CHUNK = 1 << 28
PIECE = 1 << 24
CACHE = 1 << 26
"""Bytes of decompressed chunks that HDF5 keeps, so that neighbouring pieces do not decompress them again."""
MOST = CACHE + 2 * PIECE + 3 * MAX_CHUNK
"""Address space that a read may use beyond what listing may: HDF5 holds a chunk whole, and more than once."""
BYTES_PER_SECOND = 20_000_000
"""Slower than any file decompresses."""


class Refused(Exception):
    """Why a file is not read: "unsafe" or "format"; what is wrong; the name concerned; what stands there."""


def main(place: str, start: int, size: int, memory: int, cpu: float) -> None:
    given = place.isdigit()
    file = open(int(place) if given else place, "rb", buffering=0, closefd=not given)  # noqa: SIM115  # kept open
    memory += address_space()
    confine(60, memory, memory + MOST)
    renew(cpu, memory)  # counts from here: how long the imports took is not the file's doing
    root = None
    try:
        root = open_root(Window(file, start, size))
        text = json.dumps(Listing(root).as_json())
    except Refused as error:
        text = json.dumps({"refused": error.args})
    except Exception as error:  # a damaged file can make HDF5 say anything
        text = json.dumps({"refused": ("format", "HDF5 cannot read the file", None, words(error))})
    send(b"l", text.encode())
    for line in sys.stdin.buffer:
        try:
            name, first, stop = json.loads(line)
            for piece in rows(root, name, first, stop, memory):
                send(b"d", piece)
        except Exception as error:
            send(b"e", words(error).encode())
    os._exit(0)  # nothing to clean up, and no destructor of a damaged file to run


def send(kind: bytes, data: Any) -> None:
    view = memoryview(data)
    sys.stdout.buffer.write(kind + view.nbytes.to_bytes(8, "little"))
    sys.stdout.buffer.write(view)
    sys.stdout.buffer.flush()


def words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:400].encode("utf-8", "replace").decode()


class Window(io.RawIOBase):
    """Part of a file as a file, for h5py to read: HDF5 itself opens nothing."""

    def __init__(self, file: Any, start: int, size: int) -> None:
        self.file, self.start, self.size, self.at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self.at < 0 or self.at + len(view) > self.size:
            raise OSError("a read reaches outside the file")
        done = 0
        while done < len(view):
            self.file.seek(self.start + self.at + done)
            got = self.file.readinto(view[done:])
            if not got:
                raise OSError("the file became shorter")
            done += got
        self.at += done
        return done


def open_root(file: Window) -> Any:
    """The root group; HDF5 keeps fewer of the objects that it has read than it would, 32 MB of them and more."""
    opened = h5py.File(file, "r").id
    config = opened.get_mdc_config()
    config.set_initial_size, config.initial_size, config.max_size = True, 1 << 20, 1 << 21
    opened.set_mdc_config(config)
    return h5g.open(opened, b"/")


class Listing:
    """Everything that the file's groups name, checked where only HDF5 can."""

    def __init__(self, root: Any) -> None:
        self.types = plain_types()
        self.datasets: dict[str, list[Any]] = {}
        self.lists: dict[tuple[str, str], list[str]] = {}
        self.metadata: dict[str, Any] = {}
        self.groups = {h5o.get_info(root).addr}
        self.paths = {""}
        self.chars = 0
        self.add_texts(root)
        self.walk(root, "", 0)
        if ("model_weights", "layer_names") in self.lists:
            self.add_texts(h5o.open(root, b"model_weights"))

    def as_json(self) -> dict[str, Any]:
        rank = {name: i for i, name in enumerate(self.keras_order())}
        entries = [[name, *entry] for name, entry in self.datasets.items()]
        entries.sort(key=lambda entry: rank.get(entry[0], len(rank)))
        top = "model_weights" if ("model_weights", "layer_names") in self.lists else ""
        empty = [path for (path, key), names in self.lists.items() if key == "weight_names" and not names]
        empty = [path[len(top) :].lstrip("/") for path in empty if path.startswith(top)]
        return {"datasets": entries, "metadata": self.metadata, "empty": [path for path in empty if path]}

    def walk(self, group: Any, path: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise Refused("format", "groups are nested too deeply", path[:200], f"more than {MAX_DEPTH} levels")
        for key in KERAS_LISTS:
            names = split_texts(group, key)
            if names is not None:
                self.lists[path, key] = names
        for raw, kind in links(group):
            name = join(path, link_name(raw, path))
            self.chars += len(name)
            if self.chars > MAX_CHARS:
                raise Refused("format", "its names are too long to list", None, f"more than {MAX_CHARS} characters")
            if kind != h5l.TYPE_HARD:
                what = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "a link to another file"}
                raise Refused("unsafe", "a name is a link", name, what.get(kind, f"a link of type {kind}"))
            child = h5o.open(group, raw)
            if isinstance(child, h5g.GroupID):
                address = h5o.get_info(child).addr
                if address in self.groups:
                    raise Refused("format", "a group stands under two names, or inside itself", name, None)
                self.groups.add(address)
                self.paths.add(name)
                self.walk(child, name, depth + 1)
            elif isinstance(child, h5d.DatasetID):
                self.add_dataset(child, name)

    def add_dataset(self, dataset: Any, name: str) -> None:
        plist = dataset.get_create_plist()
        layout = plist.get_layout()
        # Before anything is asked of the dataset: virtual ones look for their files to tell their shape.
        if layout == h5d.VIRTUAL:
            raise Refused("unsafe", "a dataset's values are taken from other files", name, "a virtual dataset")
        if plist.get_external_count():
            raise Refused("unsafe", "a dataset's values are taken from other files", name, "external storage")
        kind = dataset.get_type()
        if kind.get_class() == h5t.STRING:
            self.metadata[name] = text_value(dataset)
            return
        dtype, order = self.dtype(dataset, kind, name)
        if dataset.shape is None:
            raise Refused("format", "a dataset has no values at all", name, "an empty dataspace")
        chunk = math.prod(plist.get_chunk()) * kind.get_size() if layout == h5d.CHUNKED else 0
        filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
        if not FILTERS.keys() >= set(filters):
            raise Refused("format", "a dataset is compressed in an unsupported way", name, f"HDF5 filters {filters}")
        if chunk > MAX_CHUNK:
            raise Refused("format", "a dataset's chunks are too large", name, f"{chunk} bytes, not {MAX_CHUNK} or less")
        offset = dataset.get_offset() if layout == h5d.CONTIGUOUS else None
        address, stored = h5o.get_info(dataset).addr, dataset.get_storage_size()
        rows = plist.get_chunk()[0] if chunk else 1
        self.datasets[name] = [list(dataset.shape), dtype, order, address, offset, stored, chunk, rows, 3 in filters]

    def dtype(self, dataset: Any, kind: Any, name: str) -> tuple[str, str]:
        """Our name of a dataset's type and its byte order."""
        for plain, found, order in self.types.get((kind.get_class(), kind.get_size()), ()):
            if plain == kind:
                return found, order
        if kind.get_class() == h5t.ENUM and kind.get_size() == 1 and kind.dtype == np.bool_:
            return "bool", "little"
        if kind.get_class() == h5t.OPAQUE and kind.get_size() == 2:
            marked = h5a.exists(dataset, b"dtype") and texts(h5a.open(dataset, b"dtype")) == ["bfloat16"]
            # Keras 3 leaves the mark out of files laid out as Keras 2 did; it has no other opaque type of two bytes.
            if marked or self.lists:
                return "bfloat16", "little"
        raise Refused("format", "a dataset's type is not supported", name, words(TypeError(kind.dtype))[11:])

    def keras_order(self) -> list[str]:
        """Names in the order of Keras' lists; transformers' shards list datasets where Keras lists layers."""
        found: dict[str, None] = {}
        weights = [path for path, key in self.lists if key == "weight_names"]
        for (path, key), layers in self.lists.items():
            for layer in (join(path, name) for name in layers if key == "layer_names"):
                if layer in self.datasets:
                    found[layer] = None
                elif (layer, "weight_names") in self.lists:
                    found.update(dict.fromkeys(self.weights(layer)))
                elif layer not in self.paths:
                    raise Refused("format", "layer_names lists a layer that is not there", layer, None)
        for path in weights:
            found.update(dict.fromkeys(self.weights(path)))
        return list(found)

    def weights(self, path: str) -> list[str]:
        names = [join(path, name) for name in self.lists[path, "weight_names"]]
        for name in names:
            if name not in self.datasets:
                raise Refused("format", "weight_names lists a dataset that is not there", name, None)
        return names

    def add_texts(self, group: Any) -> None:
        """The group's own text attributes, but for Keras' lists."""
        for i in range(h5a.get_num_attrs(group)):
            attribute = h5a.open(group, index=i)
            name = attribute.name.decode("utf-8", "backslashreplace")
            found = None if name.rstrip("0123456789") in KERAS_LISTS else texts(attribute)
            if found is not None:
                self.metadata.setdefault(name, found[0] if attribute.shape == () and found else found)


def plain_types() -> dict[tuple[int, int], list[tuple[Any, str, str]]]:
    """(class, size) -> the HDF5 types of it that we read, our names of them, and their byte orders."""
    found: dict[tuple[int, int], list[tuple[Any, str, str]]] = {}
    for end, order in (("LE", "little"), ("BE", "big")):
        types = {f"float{bits}": f"IEEE_F{bits}{end}" for bits in (16, 32, 64)}
        types |= {f"int{bits}": f"STD_I{bits}{end}" for bits in (8, 16, 32, 64)}
        types |= {f"uint{bits}": f"STD_U{bits}{end}" for bits in (8, 16, 32, 64)}
        kinds = {name: getattr(h5t, constant) for name, constant in types.items()}
        # bfloat16 has no name in HDF5 before 2.0; what later versions write has this layout.
        brain = kinds["bfloat16"] = kinds["float16"].copy()
        brain.set_fields(15, 7, 8, 0, 7)
        brain.set_ebias(127)
        for name, kind in kinds.items():
            found.setdefault((kind.get_class(), kind.get_size()), []).append((kind, name, order))
    return found


def links(group: Any) -> list[tuple[bytes, int]]:
    """(name, type) of everything in a group, in h5py's order."""
    found: list[tuple[bytes, int]] = []
    tracked = group.get_create_plist().get_link_creation_order() & h5p.CRT_ORDER_TRACKED
    index = h5.INDEX_CRT_ORDER if tracked else h5.INDEX_NAME
    group.links.iterate(lambda name, info: found.append((name, info.type)), info=True, idx_type=index)
    return found


def link_name(raw: bytes, path: str) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise Refused("format", "a name is not UTF-8", path, repr(raw[:200])) from None
    if name in ("", ".") or "/" in name:
        raise Refused("format", "a name is not one", path, repr(name[:200]))
    return name


def join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def split_texts(group: Any, name: str) -> list[str] | None:
    """A list of texts that Keras may have split into name0, name1 ...: an attribute holds at most 64 KB."""
    if h5a.exists(group, name.encode()):
        return texts(h5a.open(group, name.encode()))
    found: list[str] = []
    for i in itertools.count():
        key = f"{name}{i}".encode()
        if not h5a.exists(group, key):
            return found if i else None
        found += texts(h5a.open(group, key)) or []
    return None


def texts(attribute: Any) -> list[str] | None:
    """An attribute's texts; None if it holds something else, or too much."""
    if attribute.shape is None or 0 in attribute.shape:
        return []
    if attribute.get_type().get_class() != h5t.STRING or attribute.get_storage_size() > MAX_TEXT:
        return None
    values = np.empty(attribute.shape, attribute.dtype)
    attribute.read(values)
    return decoded(values)


def text_value(dataset: Any) -> object:
    """What metadata tells of a dataset of texts: the texts if they are few."""
    shape = dataset.shape or ()
    if math.prod(shape) * dataset.get_type().get_size() <= MAX_TEXT:
        values = np.empty(shape, dataset.dtype)
        dataset.read(h5s.ALL, h5s.ALL, values)
        found = decoded(values)
        if found is not None:
            return found if shape else found[0]
    return f"<text of shape {shape}>"


def decoded(values: np.ndarray) -> list[str] | None:
    items = values.reshape(-1).tolist()
    if sum(map(len, items)) > MAX_TEXT:
        return None
    return [item.decode("utf-8", "backslashreplace") if isinstance(item, bytes) else str(item) for item in items]


def rows(root: Any, name: str, first: int, stop: int, memory: int) -> Iterator[np.ndarray]:
    """Bytes of the rows from `first` to `stop`, as they are in the file but for its filters, in pieces."""
    dataset = h5d.open(root, name.encode())
    kind, shape, plist = dataset.get_type(), dataset.shape, dataset.get_create_plist()
    chunk = math.prod(plist.get_chunk()) * kind.get_size() if plist.get_layout() == h5d.CHUNKED else 0
    size = (stop - first) * math.prod(shape[1:]) * kind.get_size()
    cache = min(CACHE, math.prod(shape) * kind.get_size() + chunk)
    access = h5p.create(h5p.DATASET_ACCESS)
    access.set_chunk_cache(521, cache, 0.75)
    del dataset  # HDF5 takes the cache's size from whoever opens it first
    dataset = h5d.open(root, name.encode(), access)
    # A small dataset gets little: its chunks may decompress to far more than they should.
    renew(1.25 + size / BYTES_PER_SECOND, memory + cache + 2 * min(PIECE, size) + 3 * chunk)
    if not shape:
        values = np.empty(kind.get_size(), np.uint8)
        dataset.read(h5s.ALL, h5s.ALL, values, kind)
        yield values
        return
    space = dataset.get_space()
    for start, count in slabs(shape, first, stop, kind.get_size()):
        values = np.empty(math.prod(count) * kind.get_size(), np.uint8)
        space.select_hyperslab(start, count)
        dataset.read(h5s.create_simple(count), space, values, kind)
        yield values


def slabs(
    shape: tuple[int, ...], first: int, stop: int, size: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(start, count) of pieces of at most `PIECE` bytes which, one after the other, are the rows in order."""
    row = math.prod(shape[1:]) * size
    if row > PIECE and len(shape) > 1:
        for i in range(first, stop):
            for start, count in slabs(shape[1:], 0, shape[1], size):
                yield (i, *start), (1, *count)
        return
    step = max(1, PIECE // row)
    for i in range(first, stop, step):
        yield (i, *(0 for _ in shape[1:])), (min(step, stop - i), *shape[1:])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
