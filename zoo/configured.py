"""From a config to its graph: a packaged one, one that was captured before, or one captured now."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.errors import CaptureError, ConfigError, InputError, MissingFramework, WeightsError, ZooError
from zoo.graph.io import load_graph, save_graph
from zoo.graph.ir import Graph
from zoo.graph.key import differences

if TYPE_CHECKING:
    from zoo.capture.huggingface.limits import Size
    from zoo.model import Model

__all__ = [
    "GRAPHS",
    "at_length",
    "find_graph",
    "find_packaged",
    "fitting",
    "fixed_length",
    "full_task",
    "graph_for",
    "need_torch",
]

log = logging.getLogger(__name__)

GRAPHS = Path(__file__).parent / "graphs"
"""The packaged graphs, and index.json that says which is which."""

_LACKING = 64
"""Up to so many tensors may be missing when capture starts: it shows which of them the outputs need."""

_CAPTURE = 2
"""Counts up when capture records more than it did: graphs that were kept before are captured again."""


def graph_for(
    config: Mapping[str, Any],
    task: str | None,
    dtype: str,
    train: bool = False,
    length: int | None = None,
    place: Path | None = None,
    notes: list[str] | None = None,
) -> Graph:
    """The graph of a config: packaged, captured before, or captured now; with `length` of texts of that many tokens.

    Args:
        place: the checkpoint that it is for: a config that does not fit it is refused before it is captured.
        notes: gets what the user should know: that the graph could not be kept.

    Raises:
        MissingFramework: it has to be captured, and torch or transformers is not installed.
        ConfigError: the config's fields do not make a model, or one that the checkpoint cannot hold.
    """
    graph = None if train or length else find_graph(config, task, dtype)  # the packaged ones evaluate only
    if graph is not None:
        return graph
    cached = _cache_path(config, task, dtype, train, length)
    if (kept := _kept(cached)) is not None:
        return kept
    need_torch()
    graph = captured(config, task, dtype, train, length, place)
    try:
        save_graph(graph, cached)
    except OSError as error:
        note = f"the captured graph cannot be kept, the next load captures it again: {error}; ZOO_CACHE moves the cache"
        log.warning("%s", note)
        if notes is not None:
            notes.append(note)
    return graph


def find_graph(config: Mapping[str, Any], task: str | None = None, dtype: str = "float32") -> Graph | None:
    """The packaged graph that this config's network is, or None."""
    file = find_packaged(config, task, dtype)
    if file is None:
        return None
    graph = load_graph(GRAPHS / file)
    return replace(graph, meta={**graph.meta, "config": _records(GRAPHS)[file]})


def find_packaged(config: Mapping[str, Any], task: str | None = None, dtype: str = "float32") -> str | None:
    """The file of the packaged graph that this config's network is, or None.

    Without a task it is the graph of the class that the config names as its own, or of the base model if it names
    none.

    Raises:
        ConfigError: a field is of a wrong type.
    """
    if not (GRAPHS / "index.json").is_file():
        return None
    wanted = full_task(task)
    architectures = config.get("architectures") or []
    if not (isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)):
        raise ConfigError("not a list of classes", where="config.json, architectures", got=architectures)
    if task is None and not architectures:
        wanted = "feature-extraction"
    for file, facts in json.loads((GRAPHS / "index.json").read_text()).items():
        if facts["model_type"] != config.get("model_type") or facts["dtype"] != dtype:
            continue
        if facts["task"] != wanted if wanted else facts["class"] not in architectures:
            continue
        try:
            if not differences(config, _records(GRAPHS)[file]):
                return file
        except (TypeError, ValueError, AttributeError) as error:
            what = "the config's fields are not of the types that they should be"
            raise ConfigError(what, where="config.json", got=f"{type(error).__name__}: {error}") from error
    return None


@cache
def _records(folder: Path) -> dict[str, Any]:
    """Packaged graph -> the shaping fields of its config."""
    return json.loads(gzip.decompress((folder / "configs.json.gz").read_bytes()))


def at_length(model: Model, length: int) -> Graph:
    """A graph of another length over the same parameters, for a model whose own graph is of one length alone.

    Raises:
        InputError: the model has no config to capture it from, what captures it is not installed, or it cannot be
            captured at that length either.
    """
    from converters.checkpoint import MemoryCheckpoint
    from zoo.weights import fit, prune, untie

    own, meta = fixed_length(model.graph), model.graph.meta
    where = f"input_ids of {length} tokens"
    advice = f"pass {own} tokens"
    if "model_type" not in model.config:
        raise InputError(
            "the graph holds for one length alone, and the model has no config to capture another from",
            where=where,
            expected=f"{own} tokens",
            do=f"{advice}, or load the model from its checkpoint",
        )
    try:
        graph = graph_for(
            model.config, meta.get("task"), meta.get("dtype", "float32"), bool(meta.get("train")), length=length
        )
    except (MissingFramework, CaptureError) as error:
        raise InputError(
            "the graph holds for one length alone, and cannot be captured at another here",
            where=where,
            expected=f"{own} tokens",
            got=error,
            do=f"{advice}, or pip install 'anyzoo[capture]'",
        ) from error
    if fixed_length(graph) not in (None, length):
        raise InputError(
            "the model cannot be captured at this length", where=where, expected=f"{own} tokens", do=advice
        )
    # no values: what the checkpoint kept apart or lacked shows in the names and shapes of the parameters
    blank = {p.name: np.broadcast_to(np.zeros((), np.uint8), p.shape) for p in model.graph.params.values()}
    graph = untie(graph, MemoryCheckpoint(blank))
    graph, _ = prune(
        graph, fit(graph, {name: array.shape for name, array in blank.items()}, where, strict=False), where
    )
    return graph


def fixed_length(graph: Graph) -> int | None:
    """How many tokens the texts have that a graph of a transformers model takes; None where any number will do."""
    shapes = (item.shape for item in graph.inputs if item.name == "input_ids" and "model_type" in graph.meta)
    return next((shape[1] for shape in shapes if len(shape) == 2 and isinstance(shape[1], int)), None)


def _kept(path: Path) -> Graph | None:
    """A graph that was captured before; None where there is none, or one that cannot be read and is captured again."""
    try:
        return load_graph(path) if path.exists() else None
    except (ZooError, OSError) as error:
        log.warning("the graph kept in %s cannot be read, it is captured again: %s", path, error)
        return None


def captured(
    config: Mapping[str, Any], task: str | None, dtype: str, train: bool, length: int | None, place: Path | None
) -> Graph:
    """The graph of a config, which the checkpoint must have the sizes for."""
    from zoo.capture.huggingface import capture_config, config_from, parameters_of

    size = None if place is None else fitting(config, place)
    built = config_from(config)
    if place is not None:
        _check_served(parameters_of(built, task, size=size), config, place)
    return capture_config(config_from(config), task, dtype, train=train, length=length, size=size)


def fitting(config: Mapping[str, Any], place: Path) -> Size:
    """The size of a checkpoint, of which the config's counts ask no more.

    Raises:
        ConfigError: naming the field that does.
    """
    from converters import open_checkpoint
    from zoo.capture.huggingface.limits import Size, check_counts

    with open_checkpoint(place) as checkpoint:
        size = Size(len(checkpoint.infos), sum(math.prod(info.shape) for info in checkpoint.infos.values()))
    check_counts(config, size)
    return size


def _check_served(parameters: Graph, config: Mapping[str, Any], place: Path) -> None:
    """A checkpoint that lacks most of a model's tensors is not of this config: to capture that may take long.

    Raises:
        WeightsError: naming the tensors.
    """
    from converters import open_checkpoint
    from zoo.weights import fit, gathered
    from zoo.wrapping import unwrapped

    with open_checkpoint(place) as raw:
        try:
            opened = unwrapped(raw, config, parameters)
            checkpoint = gathered(parameters, opened.read, as_published=opened.read is opened.raw)
            shapes = {name: info.shape for name, info in checkpoint.infos.items()}
            missing = fit(parameters, shapes, raw.path, strict=False).missing
        except ZooError:
            return  # said with the graph, which may need less
    if len(missing) > max(_LACKING, 3 * len(parameters.params) // 4):
        shown = ", ".join(missing[:10])
        raise WeightsError(
            f"the checkpoint lacks {len(missing)} of the {len(parameters.params)} tensors that the config asks for",
            where=place,
            got=f"without {shown} and {len(missing) - 10} more",
            do="check that the weights belong to this config and task",
        )


def need_torch(place: Path | None = None) -> None:
    """Raises MissingFramework where torch or transformers is not installed, which capturing needs.

    Args:
        place: a checkpoint, so that the error names what reading it lacks, too.
    """
    from converters import open_checkpoint
    from zoo.frameworks import how_to_install, lacks_capture

    if lacking := lacks_capture():
        also = []
        if place is not None:
            try:
                open_checkpoint(place).close()
            except MissingFramework:
                also.append("convert")
        raise MissingFramework(
            "no packaged graph fits this model, and capturing it needs torch and transformers once",
            expected="torch, transformers",
            got=f"without {' and '.join(lacking)}",
            do=f"{how_to_install('capture', *also)}, or capture it elsewhere with `zoo capture` and load the package",
        )


def _cache_path(
    config: Mapping[str, Any], task: str | None, dtype: str, train: bool, length: int | None = None
) -> Path:
    """Where a graph captured on this machine is kept; the versions that made it are part of the key."""
    from importlib.metadata import version

    from zoo.graph.io import FORMAT
    from zoo.sources import cache_root

    versions = []
    for package in ("torch", "transformers"):
        try:
            versions.append(version(package))
        except ImportError:
            versions.append("none")
    parts = [
        FORMAT,
        _CAPTURE,
        versions,
        full_task(task),
        dtype,
        config,
        *(["train"] * train),
        *([length] if length else []),
    ]
    key = json.dumps(parts, sort_keys=True)
    kind = re.sub(r"[^\w.-]", "_", str(config.get("model_type", "model")), flags=re.ASCII)[:64]
    name = f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json.gz"
    return cache_root() / "graphs" / name


def full_task(task: str | None) -> str | None:
    from zoo.tasks import task_name

    return None if task is None else task_name(task)
