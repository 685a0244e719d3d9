"""Sharded checkpoints: an index.json whose `weight_map` says which file of the folder holds each tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from converters.checkpoint import BLOCK, Checkpoint, TensorInfo, refuse_impostor, strict_json
from zoo.errors import FormatError, SourceError, UnsafeFile

__all__ = ["MAX_INDEX", "ShardedCheckpoint", "open_index", "shard_path"]

MAX_INDEX = 1 << 25
"""Bytes: some 300,000 tensors; an index takes eight times its size in memory."""


def open_index(path: Path, open_file: Callable[[Path], Checkpoint]) -> ShardedCheckpoint:
    """Opens all shards that a Hugging Face index names.

    Only what `weight_map` lists is part of the checkpoint; a shard's other tensors are left alone.

    Args:
        path: model.safetensors.index.json or pytorch_model.bin.index.json.
        open_file: opens one shard.

    Raises:
        UnsafeFile: a shard's name leads out of the folder.
        FormatError: the index is not one; a shard, or a tensor in it, is missing (all are listed).
        SourceError: the index cannot be read.
    """
    try:
        if path.stat().st_size > MAX_INDEX:
            raise FormatError("the index is too long", where=path, expected=f"at most {MAX_INDEX} bytes")
        raw = path.read_bytes()
    except OSError as error:
        raise SourceError("the index cannot be read", where=path, got=error) from error
    refuse_impostor(path, raw[:512])
    index = strict_json(raw, path, "the index")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise FormatError("the index has no weight_map of tensor names to file names", where=path)
    extra = index.get("metadata")

    shards = _open_shards(path, list(dict.fromkeys(weight_map.values())), open_file)
    try:
        stored = {name: _stored_name(name, shards[shard]) for name, shard in weight_map.items()}
        absent = [f"{name} ({weight_map[name]})" for name, found in stored.items() if found is None]
        if absent:
            raise FormatError(
                f"{len(absent)} tensors are not in the shards that the index names",
                where=path,
                got=", ".join(absent),
                do="the shards and the index are of different versions: download them again",
            )
    except BaseException:
        _close_all(shards)
        raise
    found = {name: (weight_map[name], own) for name, own in stored.items() if own is not None}
    return ShardedCheckpoint(path, found, shards, extra if isinstance(extra, dict) else {})


class ShardedCheckpoint(Checkpoint):
    """Several files as one checkpoint; `infos[name].file` is the shard."""

    format = "sharded"

    def __init__(
        self,
        path: Path,
        places: Mapping[str, tuple[str, str]],
        shards: Mapping[str, Checkpoint],
        metadata: Mapping[str, Any],
    ) -> None:
        merged: dict[str, Any] = {}
        for shard in shards.values():
            merged.update(shard.metadata)
        merged.update(metadata)
        infos = {name: replace(shards[shard].infos[own], name=name) for name, (shard, own) in places.items()}
        super().__init__(path, infos, metadata=merged, aliases=_aliases(places, shards))
        self._places = places
        self._shards = dict(shards)

    def check_reads(self) -> None:
        for shard in self._shards.values():
            shard.check_reads()

    def check(self) -> str:
        found = [shard.check() for shard in self._shards.values()]
        return (
            f"{found[0]} and so on in {len(found)} files"
            if len(found) > 1 and all(found)
            else ", ".join(filter(None, found))
        )

    def _read(self, info: TensorInfo) -> np.ndarray:
        shard, own = self._places[info.name]
        return self._shards[shard].read(own)

    def blocks(self, name: str, size: int = BLOCK) -> Iterator[np.ndarray]:
        shard, own = self._places[name]
        return self._shards[shard].blocks(own, size)

    def _close(self) -> None:
        _close_all(self._shards)
        self._shards.clear()


def shard_path(index: Path, name: str) -> Path:
    """The file that an index means by `name`, which must be inside the index's folder.

    A folder of the Hugging Face cache (models--*/snapshots/<revision>) holds links into models--*/blobs, so
    there the whole `models--*` folder counts as inside. Links that lead elsewhere are refused.

    Raises:
        UnsafeFile: the name is absolute, climbs with `..`, or is a link out of the folder.
    """
    windows = PureWindowsPath(name)
    parts = PurePosixPath(name).parts
    # Both kinds of path on every system: what is refused must not depend on where it is loaded.
    if not parts or "\0" in name or name.startswith("/") or windows.anchor or ".." in windows.parts:
        raise UnsafeFile(
            "a shard's name leads out of the checkpoint's folder",
            where=index,
            expected="a file name",
            got=repr(name),
        )
    folder = index.parent.resolve()
    target = (folder / name).resolve()
    allowed = folder
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        allowed = folder.parent.parent
    if not target.is_relative_to(allowed):
        raise UnsafeFile(
            "a shard is a link out of the checkpoint's folder",
            where=folder / name,
            expected=f"a file in {allowed}",
            got=target,
            do="replace the link by the file itself",
        )
    return folder / name


def _stored_name(name: str, shard: Checkpoint) -> str | None:
    """What a shard calls a tensor: as the index does, or, in files of TensorFlow, without the first part."""
    short = name.partition("/")[2]
    return next((own for own in (name, short) if own in shard.infos), None)


def _open_shards(index: Path, names: list[str], open_file: Callable[[Path], Checkpoint]) -> dict[str, Checkpoint]:
    paths = {name: shard_path(index, name) for name in names}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        raise FormatError(
            f"{len(missing)} of {len(names)} shards are missing",
            where=index,
            got=", ".join(missing),
            do="download them into the same folder",
        )
    shards: dict[str, Checkpoint] = {}
    try:
        for name, path in paths.items():
            shards[name] = open_file(path)
    except BaseException:
        _close_all(shards)
        raise
    return shards


def _close_all(shards: Mapping[str, Checkpoint]) -> None:
    for shard in shards.values():
        shard.close()


def _aliases(places: Mapping[str, tuple[str, str]], shards: Mapping[str, Checkpoint]) -> dict[str, str]:
    """The shards' ties between tensors that the index has; the first name in its order leads."""
    first: dict[tuple[str, str], str] = {}
    aliases: dict[str, str] = {}
    for name, (shard, own) in places.items():
        leader = first.setdefault((shard, shards[shard].aliases.get(own, own)), name)
        if leader != name:
            aliases[name] = leader
    return aliases
