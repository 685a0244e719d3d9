"""Writing HDF5: as Keras 2 and transformers lay weights out, or plainly, as Keras 3 does.

Source: keras/src/legacy/saving/legacy_h5_format.py and keras/src/saving/saving_lib.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.checkpoint import DTYPES, NO_METADATA, Checkpoint, TensorInfo, little_endian
from converters.processes.reader import home_of
from zoo.errors import FormatError

__all__ = ["write"]

MAX_ATTRIBUTE = 64512
"""Bytes of one attribute; Keras splits its lists at this size, below HDF5's own limit of 64 KB."""


def write(path: Path, checkpoint: Checkpoint, metadata: Mapping[str, str] = NO_METADATA) -> None:
    """Writes an HDF5 file, holding one block of one tensor at a time in memory.

    With "keras_version" in the metadata the file is laid out as Keras 2 and transformers do: the first part of each
    name is its layer, the root (or, for whole models, the group model_weights) lists the layers and each layer its
    weights. "empty_layers" then names layers without weights, one per line. With "shard" in it the root lists every
    tensor by its whole path, as in the shards of transformers. Else the names alone make the groups.
    All other metadata becomes text attributes of the root.

    Args:
        path: a new file.
        checkpoint: its tensors, of dtypes in `DTYPES` except float8 and complex ones; names are paths with "/".
        metadata: text to text.

    Raises:
        FormatError: a dtype that is not written, a name that cannot be a path, metadata that is not text.
        MissingFramework: h5py is not installed.
    """
    home_of("h5py")
    import h5py

    _check(path, checkpoint, metadata)
    keras = "keras_version" in metadata
    top = "model_weights" if keras and any(name.startswith("model_weights/") for name in checkpoint.infos) else ""
    layers = _layers(path, checkpoint, metadata, top) if keras else {}
    # Aligned, so that what is mapped later is aligned, too.
    with h5py.File(path, "x", alignment_threshold=1024, alignment_interval=64) as file:
        for key in metadata.keys() - {"empty_layers", "shard"}:
            file.attrs[key] = metadata[key].encode()
        if keras:
            group = file.require_group(top or "/")
            for key in metadata.keys() & {"backend", "keras_version"}:
                group.attrs[key] = metadata[key].encode()
            _save_list(group, "layer_names", [name for where, name in layers if where == top and name not in _UNLISTED])
        for (where, layer), names in layers.items():
            _save_list(file.require_group(f"{where}/{layer}"), "weight_names", names)
        if "shard" in metadata:
            _save_list(file, "layer_names", list(checkpoint.infos))
        for info in checkpoint.infos.values():
            _write_tensor(file, checkpoint, info)


_UNLISTED = ("top_level_model_weights", "optimizer_weights")  # groups that Keras writes beside the layers
_DTYPES = {name for name, dtype in DTYPES.items() if not name.startswith("float8") and dtype.kind != "c"}


def _write_tensor(file: Any, checkpoint: Checkpoint, info: TensorInfo) -> None:
    from h5py import h5s

    leader = checkpoint.aliases.get(info.name)
    if leader is not None and leader in file:
        file[info.name] = file[leader]  # one dataset under two names, where Keras would write it twice
        return
    brain = info.dtype == "bfloat16"
    dtype = np.dtype("V2") if brain else DTYPES[info.dtype].newbyteorder("<")
    dataset = file.create_dataset(info.name, info.shape, dtype)
    if brain:
        dataset.attrs["dtype"] = "bfloat16"
    if not info.nbytes:
        return
    # The bytes go in as they are: h5py would convert some types, and knows no bfloat16.
    kind, space, row = dataset.id.get_type(), dataset.id.get_space(), 0
    for block in checkpoint.blocks(info.name):
        raw = np.frombuffer(little_endian(block), np.uint8)
        if not info.shape:
            dataset.id.write(h5s.ALL, h5s.ALL, raw, kind)
            return
        space.select_hyperslab((row, *(0 for _ in info.shape[1:])), block.shape)
        dataset.id.write(h5s.create_simple(block.shape), space, raw, kind)
        row += len(block)


def _check(path: Path, checkpoint: Checkpoint, metadata: Mapping[str, str]) -> None:
    texts = [text for pair in metadata.items() for text in pair]
    if not all(isinstance(text, str) and "\0" not in text for text in texts):
        raise FormatError("metadata must map text to text", where=path, got=dict(metadata))
    reserved = [key for key in metadata if not key or key.rstrip("0123456789") in ("layer_names", "weight_names")]
    if reserved:
        raise FormatError(
            "a metadata key is reserved", where=path, got=reserved, do="leave it out: it is written anyway"
        )
    groups = {parent for name in checkpoint.infos for parent in _parents(name)}
    for info in checkpoint.infos.values():
        where = f"{path}, tensor {info.name!r}"
        if info.dtype not in _DTYPES:
            do = "choose one, as with --dtype float32" if info.dtype.startswith("float8") else None
            raise FormatError(
                f"HDF5 weights have no dtype {info.dtype}", where=where, expected=", ".join(_DTYPES), do=do
            )
        if any(part in ("", ".") or "\0" in part for part in info.name.split("/")):
            raise FormatError("a name is no path", where=where, expected="parts between slashes", do="rename it")
        if info.name in groups:
            raise FormatError("a name is that of a tensor and of a group", where=where, do="rename one of them")
        if len(info.shape) > 32:
            raise FormatError("HDF5 has at most 32 axes", where=where, got=len(info.shape))


def _parents(name: str) -> Iterable[str]:
    parts = name.split("/")
    return ("/".join(parts[:i]) for i in range(1, len(parts)))


def _layers(
    path: Path, checkpoint: Checkpoint, metadata: Mapping[str, str], top: str
) -> dict[tuple[str, str], list[str]]:
    """(group of the layers, layer) -> the names of its weights within it, all in the checkpoint's order.

    Layers are in the group `top`; what is outside, as an optimizer's weights are, has lists of its own.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for name in checkpoint.infos:
        where = top if top and name.startswith(f"{top}/") else ""
        layer, slash, weight = name[len(where) :].lstrip("/").partition("/")
        if not slash:
            raise FormatError(
                "a tensor is in no layer", where=f"{path}, tensor {name!r}", expected="layer/weight", do="rename it"
            )
        found.setdefault((where, layer), []).append(weight)
    for layer in filter(None, metadata.get("empty_layers", "").split("\n")):
        found.setdefault((top, layer), [])
    return found


def _save_list(group: Any, name: str, texts: list[str]) -> None:
    """A list of texts as an attribute, split as Keras splits one that is too long."""
    raw = np.asarray([text.encode() for text in texts])  # no texts: an empty array of floats, as in Keras
    if raw.itemsize > MAX_ATTRIBUTE:
        raise FormatError("a name is too long", where=group.name, expected=f"{MAX_ATTRIBUTE} bytes", got=raw.itemsize)
    parts = math.ceil(len(raw) / (MAX_ATTRIBUTE // raw.itemsize))
    if parts < 2:
        group.attrs[name] = raw
        return
    for i, part in enumerate(np.array_split(raw, parts)):
        group.attrs[f"{name}{i}"] = part
