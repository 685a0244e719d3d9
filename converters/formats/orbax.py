"""Orbax checkpoints, JAX's: a folder of zarr arrays, each in a folder of its own or all in one OCDBT store.

T5X's, from which Orbax came, are read, too: a msgpack file "checkpoint" beside folders of zarr arrays, whose names
are the tree's keys joined by dots ("target.encoder.layers_0.mlp.wo.kernel"). What the msgpack file itself holds (the
step, and whatever else was not spread over devices) is not read.

Read and written through tensorstore, on which Orbax itself stands; neither Orbax nor JAX is needed. Some hostile files
end a process in which tensorstore reads them, so that happens in one of its own (`orbax_child`). Source:
https://orbax.readthedocs.io/en/latest/guides/checkpoint/checkpoint_format.html, and for the arrays
https://google.github.io/tensorstore/driver/zarr/index.html and .../kvstore/ocdbt/index.html.

Names are the tree's keys joined by "/" ("params/dense/kernel"); keys of lists are their numbers. Leaves that are
no arrays (text, None, empty dicts) stand in `metadata["not_tensors"]` with their kind. Where the tree lies in a
subfolder ("default", "params", "state"), the folder above it may be given as long as there is only one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from converters.checkpoint import (
    AGAIN,
    BLOCK,
    NO_METADATA,
    Checkpoint,
    TensorInfo,
    array_view,
    is_sizes,
    strict_json,
    tensor_info,
)
from converters.processes.orbax_child import MAX_ARRAYS, leaves
from converters.processes.reader import Reader
from zoo.errors import FormatError, MissingFramework, SourceError, UnsafeFile

__all__ = ["SUFFIXES", "OrbaxCheckpoint", "open_file", "recognises", "recognises_folder", "write"]

SUFFIXES: tuple[str, ...] = ()
MAX_INFLATION = 64
"""How much larger than the folder its arrays may claim to be: weights hardly compress, zeros of optimizers do."""
MAX_METADATA = 1 << 25
MAX_FILES = 1 << 18
MAX_CHUNKS = 1 << 20
MEMORY = 1 << 29
"""Address space for listing: mostly the stacks of tensorstore's threads."""
CPU_SECONDS, ARRAY_SECONDS, MAX_CPU_SECONDS = 5, 0.005, 120
"""CPU time for listing, for each array, and for all of them."""
ARRAY_WALL_SECONDS = 0.02
DO = "if the checkpoint is yours, restore it with Orbax and save it again"


def recognises(head: bytes) -> bool:
    """Never: an Orbax checkpoint is a folder."""
    return False


def recognises_folder(folder: Path) -> bool:
    """Whether a folder is an Orbax checkpoint, or holds just one."""
    return _tree_folder(folder) is not None


def open_file(path: Path) -> OrbaxCheckpoint:
    """Opens a checkpoint of Orbax, listing its arrays and reading none.

    Args:
        path: the folder with `_METADATA`, or the one above it.

    Raises:
        FormatError: damaged, or arrays that claim far more than the folder holds.
        UnsafeFile: a link or a name leads out of the folder.
        SourceError: there is no checkpoint.
        MissingFramework: tensorstore is not installed.
    """
    folder = _tree_folder(path)
    if folder is None:
        raise SourceError("the folder is no Orbax checkpoint", where=path, expected="_METADATA and zarr arrays")
    held = _held_bytes(folder)
    names, others, zarr3 = _listed(folder)
    reader = _reader(folder, names, zarr3)
    try:
        infos, rows, guarded = _check(
            folder, reader.listing(ARRAY_WALL_SECONDS * len(names or ()))["arrays"], names, held
        )
    except BaseException:
        reader.close()
        raise
    return OrbaxCheckpoint(folder, infos, rows, guarded, reader, {"not_tensors": others})


class OrbaxCheckpoint(Checkpoint):
    """One Orbax checkpoint; `read` returns new arrays, `blocks` reads one row of chunks after the other."""

    format = "orbax"

    def __init__(
        self,
        path: Path,
        infos: Mapping[str, TensorInfo],
        rows: Mapping[str, int],
        guarded: int,
        reader: Reader,
        metadata: Mapping[str, Any],
    ) -> None:
        super().__init__(path, infos, metadata=metadata)
        self._chunk_rows = dict(rows)
        self._guarded = guarded
        self._reader = reader

    def blocks(self, name: str, size: int = BLOCK) -> Iterator[np.ndarray]:
        info, rows = self.infos.get(name), self._chunk_rows.get(name, 0)
        if self._closed or info is None or not rows or info.nbytes <= size or rows >= info.shape[0]:
            yield from super().blocks(name, size)
            return
        # A chunk is decompressed as a whole, so pieces begin and end where chunks do.
        step = max(1, size * info.shape[0] // info.nbytes // rows) * rows
        for start in range(0, info.shape[0], step):
            yield self._rows(info, start, min(start + step, info.shape[0]))

    def check(self) -> str:
        """See `Checkpoint.check`: zarr 3's chunks may have checksums, and the tables of an OCDBT store do."""
        for name in self.infos:
            for _ in self.blocks(name):
                pass
        found = [f"CRC-32C of the chunks of {self._guarded} arrays"] if self._guarded else []
        found += ["CRC-32C of the store's tables"] if (self.path / "manifest.ocdbt").is_file() else []
        return ", ".join(found)

    def _read(self, info: TensorInfo) -> np.ndarray:
        return self._rows(info, 0, info.shape[0] if info.shape else 1)

    def _rows(self, info: TensorInfo, first: int, stop: int) -> np.ndarray:
        """Rows of an array; the whole of it where it has no axes."""
        shape = (stop - first, *info.shape[1:]) if info.shape else ()
        part = replace(info, shape=shape, nbytes=info.nbytes // (info.shape[0] if shape else 1) * (stop - first))
        buffer = np.empty(part.nbytes, np.uint8).data
        self._reader.read(info.name, first, stop, buffer)
        return array_view(buffer, part, 0)

    def _close(self) -> None:
        self._reader.close()


def write(path: Path, checkpoint: Checkpoint, metadata: Mapping[str, str] = NO_METADATA) -> None:
    """Writes a checkpoint that Orbax restores, one folder of zarr 3 per array, holding one block at a time in memory.

    Each chunk has a checksum (CRC-32C), which whoever reads it compares.

    Args:
        path: a new folder.
        checkpoint: its tensors; "/" in a name parts the keys of nested dicts, dots stay in a key.
        metadata: kept as Orbax's custom metadata.

    Raises:
        FormatError: names that cannot be a tree's, an empty tensor (Orbax refuses those), a dtype zarr lacks.
        MissingFramework: tensorstore is not installed.
    """
    ts = _tensorstore()
    _check_tree(path, checkpoint.infos)
    path.mkdir()
    for info in checkpoint.infos.values():
        step = max(1, BLOCK * (info.shape[0] if info.shape else 1) // info.nbytes)
        chunk = [min(step, info.shape[0]), *info.shape[1:]] if info.shape else []
        spec: dict[str, Any] = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{os.path.abspath(path / _stored(info.name))}/"},
            "metadata": {
                "shape": list(info.shape),
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
                "codecs": _CODECS,
            },
            "dtype": info.dtype,
            "create": True,
            "open": False,
            # A chunk of nothing but zeros must be there, too: an absent one has no value.
            "store_data_equal_to_fill_value": True,
        }
        array = _result(ts.open(spec), path, info.name)
        # Blocks may begin anywhere; a chunk is written when all of it is there.
        start = 0
        for rows in _in_chunks(checkpoint.blocks(info.name), min(step, info.shape[0]) if info.shape else 0):
            target = array[start : start + len(rows)] if info.shape else array
            _result(target.write(rows), path, info.name)
            start += len(rows) if info.shape else 0
    described = {"tree_metadata": {}, "use_ocdbt": False, "use_zarr3": True} | {
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": dict(metadata) or None,
    }
    described["tree_metadata"] = {str(tuple(n.split("/"))): _leaf(info) for n, info in checkpoint.infos.items()}
    (path / "_METADATA").write_text(json.dumps(described))
    handler = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"
    (path / "_CHECKPOINT_METADATA").write_text(json.dumps({"item_handlers": handler, "metrics": {}}))


_CODECS: list[dict[str, Any]] = [
    {"name": "bytes", "configuration": {"endian": "little"}},
    {"name": "zstd", "configuration": {"level": 1}},
    {"name": "crc32c"},  # zarr 2's chunks cannot have a checksum, and zstd's own is not written
]


def _tensorstore() -> Any:
    try:
        import tensorstore
    except ImportError as error:
        raise MissingFramework(
            "Orbax's checkpoints need the package tensorstore", do="pip install 'anyzoo[convert]'"
        ) from error
    return tensorstore


def _tree_folder(folder: Path) -> Path | None:
    """The folder that holds the tree: this one, or its only subfolder that does."""
    if not folder.is_dir():
        return None
    if _is_tree(folder):
        return folder
    found = [sub for sub in sorted(folder.iterdir())[:64] if sub.is_dir() and not sub.is_symlink() and _is_tree(sub)]
    return found[0] if len(found) == 1 else None


def _is_tree(folder: Path) -> bool:
    return (folder / "_METADATA").is_file() or (folder / "manifest.ocdbt").is_file() or _is_t5x(folder)


def _is_t5x(folder: Path) -> bool:
    return (folder / "checkpoint").is_file() and next(folder.glob("target.*/.zarray"), None) is not None


def _held_bytes(folder: Path) -> int:
    """The size of all files, having checked that no link leads out of the folder."""
    held = count = 0
    root = folder.resolve()
    for base, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(base, name)
            count += 1
            if count > MAX_FILES:
                raise FormatError("the folder holds too many files", where=folder, expected=MAX_FILES)
            if path.is_symlink() and root not in path.resolve().parents:
                do = "if you trust it, copy the folder with what its links lead to (cp -rL)"
                raise UnsafeFile("a link leads out of the checkpoint", where=path, got=path.resolve(), do=do)
        held += sum(os.stat(os.path.join(base, name)).st_size for name in files)
    return held


def _listed(folder: Path) -> tuple[dict[str, str] | None, dict[str, str], bool | None]:
    """Name -> key in the store of every array, the leaves that are no arrays, and whether it is zarr 3.

    None where the store has no description, and only itself knows what it holds.
    """
    path = folder / "_METADATA"
    if not path.is_file():
        return (_found_beside(folder), {}, False) if _is_t5x(folder) else (None, {}, None)
    if path.stat().st_size > MAX_METADATA:
        raise FormatError("the tree's description is too long", where=path, expected=f"{MAX_METADATA} bytes")
    described = strict_json(path.read_bytes(), path, "the tree's description")
    tree = described.get("tree_metadata")
    if not isinstance(tree, dict) or len(tree) > MAX_ARRAYS:
        raise FormatError("the tree's description is damaged", where=path, expected="tree_metadata", do=AGAIN)
    names: dict[str, str] = {}
    others: dict[str, str] = {}
    for leaf in tree.values():
        try:
            keys = [entry["key"] for entry in leaf["key_metadata"]]
            kind, skipped = leaf["value_metadata"]["value_type"], leaf["value_metadata"].get("skip_deserialize")
        except (TypeError, KeyError, AttributeError) as error:
            raise FormatError("a leaf's description is damaged", where=path, got=str(leaf)[:200], do=AGAIN) from error
        if not all(isinstance(key, str) for key in (*keys, kind)):
            raise FormatError("a leaf's keys are no text", where=path, got=str(keys)[:200], do=AGAIN)
        name = "/".join(keys)
        if name in names or name in others:
            raise FormatError(f"two leaves are named {name[:80]!r}", where=path, do="rename one and save it again")
        if skipped or kind not in ("jax.Array", "np.ndarray", "scalar"):
            others[name] = kind
            continue
        names[name] = _safe(".".join(keys), path)
    return names, others, bool(described.get("use_zarr3"))


def _found_beside(folder: Path) -> dict[str, str]:
    """The arrays of a T5X checkpoint."""
    found = sorted(path.parent.name for path in folder.glob("*/.zarray"))
    if len(found) > MAX_ARRAYS:
        raise FormatError("the folder holds too many arrays", where=folder, expected=MAX_ARRAYS)
    return {key.replace(".", "/"): _safe(key, folder) for key in found}


def _safe(key: str, where: Path) -> str:
    if leaves(key):
        raise UnsafeFile("an array's name leads out of the checkpoint", where=where, got=repr(key)[:200])
    return key


def _reader(folder: Path, names: Mapping[str, str] | None, zarr3: bool | None) -> Reader:
    """The process that reads the checkpoint's arrays, those of all the store if they have no names yet."""
    cpu = min(CPU_SECONDS + ARRAY_SECONDS * (MAX_ARRAYS if names is None else len(names)), MAX_CPU_SECONDS)
    return Reader(
        folder, "orbax_child.py", [os.path.abspath(folder), MEMORY, cpu], ["tensorstore", "ml_dtypes"],
        question=[names, zarr3],
    )  # fmt: skip


def _check(
    folder: Path, arrays: list[list[Any]], names: Mapping[str, str] | None, held: int
) -> tuple[dict[str, TensorInfo], dict[str, int], int]:
    """Infos, how many rows a chunk has, and how many arrays have checksums; what was listed is checked against the
    size of the folder.
    """
    infos: dict[str, TensorInfo] = {}
    rows: dict[str, int] = {}
    claimed = 0
    for name, shape, dtype, read, write, _ in arrays:
        infos[name] = info = tensor_info(name, shape, dtype, folder)
        rows[name] = read[0] if read else 0
        for chunk in (read, write):
            _check_chunk(info, chunk)
        claimed += info.nbytes
        if claimed > MAX_INFLATION * held:
            raise FormatError(
                "the arrays claim to be far larger than the folder",
                where=f"{folder}, tensor {name!r}",
                expected=f"at most {MAX_INFLATION * held} bytes",
                got=f"{claimed} bytes",
                do=DO,
            )
    if len(infos) != len(arrays) or (names is not None and infos.keys() != names.keys()):
        raise FormatError("the arrays listed are not those of the tree", where=folder, do=AGAIN)
    return infos, rows, sum(guarded is True for *_, guarded in arrays)


def _result(future: Any, folder: Path, name: str) -> Any:
    try:
        return future.result()
    except (ValueError, OSError, RuntimeError, NotImplementedError, KeyError, MemoryError, OverflowError) as error:
        where = f"{folder}, tensor {name!r}" if name else str(folder)
        what = "an array is missing, damaged, or cannot be stored"
        raise FormatError(what, where=where, got=str(error)[:500], do=AGAIN) from error


def _check_chunk(info: TensorInfo, sizes: object) -> None:
    """Whether chunks are no larger than the array, and not so many that reading it would never end."""
    pairs = list(zip(sizes, info.shape, strict=False)) if is_sizes(sizes) else [(1 << 63, 1)]
    if any(size > max(n, 1) for size, n in pairs) or math.prod(-(-n // max(s, 1)) for s, n in pairs) > MAX_CHUNKS:
        raise FormatError(
            "an array's chunks do not fit it",
            where=f"{info.file}, tensor {info.name!r}",
            expected=f"at most {MAX_CHUNKS} chunks, none larger than {list(info.shape)}",
            got=str(sizes)[:200],
            do=DO,
        )


def _stored(name: str) -> str:
    return name.replace("/", ".")


def _check_tree(path: Path, infos: Mapping[str, TensorInfo]) -> None:
    stored: dict[str, str] = {}
    for name, info in infos.items():
        parents = name.split("/")[:-1]
        clash = next((p for i in range(len(parents)) if (p := "/".join(parents[: i + 1])) in infos), None)
        clash = clash or stored.setdefault(_stored(name), name)
        if clash != name or not all(name.split("/")) or "\\" in name or "\0" in name or _stored(name) in (".", ".."):
            raise FormatError(f"the name {name!r} cannot stand in a tree", where=path, got=f"beside {clash!r}")
        if not info.nbytes:
            where = f"{path}, tensor {name!r}"
            raise FormatError("Orbax cannot hold empty tensors", where=where, got=info.shape, do="leave it out")


def _in_chunks(blocks: Iterator[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """Blocks of any number of rows as blocks of a multiple of `rows`, the last one excepted."""
    rest: np.ndarray | None = None
    for block in blocks:
        native = block.astype(block.dtype.newbyteorder("="), copy=False)
        if not rows:
            yield native
            continue
        whole = native if rest is None or not len(rest) else np.concatenate([rest, native])
        cut = len(whole) // rows * rows
        if cut:
            yield whole[:cut]
        rest = whole[cut:]
    if rest is not None and len(rest):
        yield rest


def _leaf(info: TensorInfo) -> dict[str, Any]:
    return {
        "key_metadata": [{"key": key, "key_type": 2} for key in info.name.split("/")],
        "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False, "write_shape": list(info.shape)},
    }
