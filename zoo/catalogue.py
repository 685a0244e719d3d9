"""What can be loaded here, what a sweep verified, and what is known of a model before anything is downloaded.

Answers come from the registry, the index of packaged graphs, the sweep's findings and the folders themselves. No
framework is imported.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zoo.coverage import Row, coverage
from zoo.errors import UnknownModel
from zoo.frameworks import BACKENDS, backend_name, installed
from zoo.registry import Entry, SourceRef, entries, parse

if TYPE_CHECKING:
    from zoo.graph.ir import Graph

__all__ = [
    "Availability",
    "Info",
    "Status",
    "Verdict",
    "architectures",
    "available",
    "describe",
    "info",
    "reason",
    "row_to_json",
    "swept",
    "verdict",
    "verified_as",
]

GRAPHS = Path(__file__).parent / "graphs"
"""As in `zoo.configured`; importing that takes NumPy, and a good part of the time that `zoo list` may take."""

Status = Literal["graph", "capture", "needs torch", "not installed"]
"""How a model gets onto a backend here. In this order: its graph is packaged, so torch is not needed; it is captured
once, by torch and transformers; it would have to be captured, and they are not installed; the framework is missing."""

RUNS: tuple[Status, ...] = ("graph", "capture")

BASE = "feature-extraction"
"""The sweep's task of a base model, whatever it takes."""

Verdict = Literal["matches", "runs", "captured", "fails", "not built"]
"""What the sweep found of an architecture on a backend. In this order: outputs are within tolerance of float64; it ran
outside the tolerance; there is a graph, which did not run there; there is no graph; transformers does not build it."""


@dataclass(frozen=True, slots=True)
class Availability:
    """One registry entry on this machine.

    Args:
        name: what `zoo.load` takes.
        model_type: transformers' `model_type`.
        task: the one that `backends` speaks of.
        parameters: how many its graph has, None where no graph is packaged.
        backends: backend -> how the model gets there.
        verified: backend -> what the sweep found there for this type and task, built tiny; empty if it has no such row.
    """

    name: str
    model_type: str
    task: str
    parameters: int | None
    backends: Mapping[str, Status]
    verified: Mapping[str, Verdict] = field(default_factory=dict)

    def runs_on(self, backend: str) -> bool:
        """Whether `zoo.load(name, backend)` can work here, its weights being had."""
        return self.backends[backend] in RUNS

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Info:
    """What is known of a model without downloading anything; what is not known is None or empty.

    Args:
        name: the registry's name, else the reference itself.
        kind: "registry", "hub", "wheel", "local", or "type" for a model type that the sweep knows.
        aliases: other names of the same checkpoint.
        model_type: transformers' `model_type`.
        architecture: the class that the checkpoint was saved from.
        task: what it does.
        modality: "text", "image" …
        sources: where its files can be had, best first.
        license: SPDX id as its source states it.
        parameters: how many trainable numbers the graph has.
        published_parameters: the number that its authors state, and `parameters_source` where.
        config_sources: where the config was read.
        files: file name -> sha256 where a source states it.
        graphs: packaged graphs: file -> task.
        inputs: name -> dtype and shape.
        outputs: name -> dtype and shape.
        ops: op -> how often the graph uses it.
        backends: backend -> how the model gets there.
        models: the registry's models of a type.
        verified: what the sweep found for the type, the model's own task first.
    """

    name: str
    kind: str
    aliases: tuple[str, ...] = ()
    model_type: str | None = None
    architecture: str | None = None
    task: str | None = None
    modality: str | None = None
    sources: tuple[str, ...] = ()
    license: str | None = None
    parameters: int | None = None
    published_parameters: int | None = None
    parameters_source: str | None = None
    config_sources: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    graphs: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    ops: Mapping[str, int] = field(default_factory=dict)
    backends: Mapping[str, Status] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    verified: tuple[Row, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        found = {name: getattr(self, name) for name in self.__slots__}
        found["verified"] = [row_to_json(row) for row in self.verified]
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in found.items()}


def available(backend: str | None = None, task: str | None = None) -> list[Availability]:
    """The registry's models, by name.

    Args:
        backend: only models that can be loaded on it here and now.
        task: only models that serve it: their own task, or one that a graph is packaged for.

    Raises:
        UnknownBackend: no such backend.
        ConfigError: no such task.
    """
    wanted = None
    if task is not None:
        from zoo.tasks import task_name

        wanted = task_name(task)
    own = None if backend is None else backend_name(backend)
    graphs = _graphs()
    statuses = {packaged: _statuses(packaged) for packaged in (True, False)}
    found = []
    for entry in entries().values():
        mine = graphs.get(entry.name, {})
        serves = next((facts for facts in mine.values() if facts["task"] == wanted), None) if wanted else None
        if wanted in (None, entry.task):
            serves = next((facts for facts in mine.values() if _is_own(entry, facts)), None)
        elif serves is None:
            continue
        item = Availability(
            entry.name,
            entry.model_type,
            wanted or entry.task,
            serves.get("parameters") if serves else None,
            statuses[serves is not None],
            _verdicts(verified_as(entry, wanted)),
        )
        if own is None or item.runs_on(own):
            found.append(item)
    return sorted(found, key=lambda item: item.name)


def info(name: str | os.PathLike[str]) -> Info:
    """What is known of a registry entry or a model type; of anything else, what can be said without downloading.

    Args:
        name: what `zoo.load` takes, or transformers' `model_type`.

    Raises:
        UnknownModel, SourceError, UnsafeFile: as `zoo.registry.parse`.
        ConfigError, FormatError: a folder's config or graph cannot be read.
    """
    try:
        found = parse(name)
    except UnknownModel:
        rows = _of_type(str(name))
        if not rows:
            raise
        models = tuple(sorted(entry.name for entry in entries().values() if entry.model_type == name))
        return Info(str(name), "type", model_type=str(name), models=models, verified=rows)
    if isinstance(found, Entry):
        return _of_entry(found)
    if found.kind == "local":
        return _of_folder(found)
    return Info(found.location, found.kind, sources=(found.uri,), backends=_statuses(False))


def architectures(backend: str | None = None, task: str | None = None, *, missing: bool = False) -> list[Row]:
    """The architectures of the sweep, by model type and task.

    Args:
        backend: only those that match there.
        task: only heads of this task; "feature-extraction" is the base model.
        missing: list those that do not match instead: on `backend`, or on any that was swept.

    Raises:
        UnknownBackend: no such backend.
        ConfigError: no such task.
    """
    wanted = None
    if task is not None:
        from zoo.tasks import task_name

        wanted = task_name(task)
    places = swept() if backend is None else (backend_name(backend),)

    def belongs(row: Row) -> bool:
        right = [verdict(row, place) == "matches" for place in places]
        return not all(right) if missing else backend is None or all(right)

    return [row for row in coverage().rows if wanted in (None, row.task) and belongs(row)]


def verdict(row: Row, backend: str) -> Verdict:
    """What the sweep found of an architecture on a backend."""
    if not row.built:
        return "not built"
    if not row.captured:
        return "fails"
    cell = row.on(backend)
    return "matches" if cell.matches else "runs" if cell.runs else "captured"


def reason(row: Row, backend: str) -> str:
    """Why it does not match there, in one line; empty if it does."""
    if verdict(row, backend) == "matches":
        return ""
    return row.on(backend).reason or row.reason or ("" if backend in row.cells else "not tried")


def describe(row: Row, backend: str) -> str:
    """All that was checked of an architecture on a backend, in one line."""
    cell, found = row.on(backend), verdict(row, backend)
    said = [found if cell.error is None else f"{found}, error {cell.error:.1e} of {cell.allowed or 0:.1e} allowed"]
    if cell.gradients is not None:
        worst = "" if cell.gradient_error is None else f", error {cell.gradient_error:.1e}"
        said.append(f"gradients {'match' if cell.gradients else 'differ'}{worst}")
    why = cell.reason or reason(row, backend)
    one_length = cell.length is False and "where: input_ids" in " ".join(why.split())
    for what, right in (("batch size", cell.batch), ("length", cell.length)):
        if what == "length" and one_length:
            said.append("its graph holds for one length: captured once for each that is asked for, which needs torch")
        elif right is not None:
            said.append(f"{'right' if right else 'wrong'} at another {what}")
    return "; ".join([*said, *([why] if why and not one_length else [])])


@cache
def swept() -> tuple[str, ...]:
    """The backends that the sweep ran on, in the usual order."""
    found = {backend for row in coverage().rows for backend in row.cells}
    return tuple(backend for backend in BACKENDS if backend in found)


def verified_as(entry: Entry, task: str | None = None) -> Row | None:
    """The sweep's row of what an entry is loaded as: of its own class, else of its task; None if it has no such row."""
    rows, wanted = _of_type(entry.model_type), task or entry.task
    if entry.head is None and wanted == entry.task:
        for row in rows:
            if row.architecture == entry.architecture:
                return row
    names = (wanted, BASE) if wanted.endswith(BASE) else (wanted,)
    return next((row for name in names for row in rows if row.task == name), None)


def row_to_json(row: Row) -> dict[str, Any]:
    """A row's fields as JSON knows them, and the verdicts on the backends that were swept."""
    return {**asdict(row), "verified": _verdicts(row)}


def _of_entry(entry: Entry) -> Info:
    mine = _graphs().get(entry.name, {})
    own = next((file for file, facts in mine.items() if _is_own(entry, facts)), None)
    return Info(
        name=entry.name,
        kind="registry",
        aliases=entry.aliases,
        model_type=entry.model_type,
        architecture=entry.architecture,
        task=entry.task,
        modality=entry.modality,
        sources=entry.sources,
        license=entry.license,
        published_parameters=entry.published_parameters,
        parameters_source=entry.parameters_source,
        config_sources=entry.config_sources,
        files=entry.files,
        graphs={file: facts["task"] for file, facts in mine.items()},
        backends=_statuses(own is not None),
        verified=_of_type(entry.model_type, verified_as(entry)),
        **_of_graph(GRAPHS / own if own else None),
    )


def _of_folder(found: SourceRef) -> Info:
    from zoo.configured import find_graph
    from zoo.files import read_json
    from zoo.model import GRAPH_FILE

    folder = Path(found.location)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    graph: Path | Graph | None = folder / GRAPH_FILE if (folder / GRAPH_FILE).is_file() else None
    if graph is None and config:
        graph = find_graph(config)
    name = (config.get("architectures") or [None])[0]
    own = next((row for row in _of_type(config.get("model_type")) if row.architecture == name), None)
    return Info(
        name=folder.name,
        kind="local",
        model_type=config.get("model_type"),
        architecture=name,
        sources=(found.uri,),
        backends=_statuses(graph is not None),
        verified=_of_type(config.get("model_type"), own),
        **_of_graph(graph),
    )


def _of_graph(graph: Path | Graph | None) -> dict[str, Any]:
    """The fields that a graph answers."""
    if graph is None:
        return {}
    if isinstance(graph, Path):
        from zoo.graph.io import load_graph

        graph = load_graph(graph)
    shapes = {item.name: (item.dtype, item.shape) for item in graph.inputs}
    for node in graph.nodes:
        shapes.update((name, (value.dtype, value.shape)) for name, value in zip(node.outputs, node.infos, strict=True))

    def spelled(name: str) -> str:
        dtype, shape = shapes.get(name, ("", ()))
        return f"{dtype} [{', '.join(map(str, shape))}]" if dtype else ""

    return {
        "parameters": graph.parameter_count(),
        "inputs": {
            item.name: spelled(item.name) + ("" if item.default is None else f", {item.default} where left out")
            for item in graph.inputs
        },
        "outputs": {name: spelled(ref.name) for name, ref in graph.outputs.items()},
        "ops": graph.op_counts(),
    }


@cache
def _by_type() -> Mapping[str, tuple[Row, ...]]:
    found: dict[str, list[Row]] = {}
    for row in coverage().rows:
        found.setdefault(row.model_type, []).append(row)
    return {name: tuple(rows) for name, rows in found.items()}


def _of_type(model_type: str | None, first: Row | None = None) -> tuple[Row, ...]:
    """The rows of a model type, one of them before the others."""
    return tuple(sorted(_by_type().get(model_type or "", ()), key=lambda row: row is not first))


def _verdicts(row: Row | None) -> dict[str, Verdict]:
    return {} if row is None else {backend: verdict(row, backend) for backend in swept()}


@cache
def _index() -> Mapping[str, Any]:
    try:
        return json.loads((GRAPHS / "index.json").read_text("utf-8"))
    except FileNotFoundError:
        return {}


@cache
def _graphs() -> dict[str, dict[str, Any]]:
    """Entry -> file -> facts, float32 only: what `zoo.load` takes without a dtype."""
    found: dict[str, dict[str, Any]] = {}
    for file, facts in _index().items():
        if facts["dtype"] == "float32":
            for name in facts.get("entries", ()):
                found.setdefault(name, {})[file] = facts
    return found


def _is_own(entry: Entry, facts: Mapping[str, Any]) -> bool:
    """Whether `zoo.load(name)`, no task given, takes this graph."""
    from zoo.tasks import task_name

    return facts["task"] == task_name(entry.head) if entry.head else facts["class"] == entry.architecture


def _statuses(packaged: bool) -> Mapping[str, Status]:
    torch = all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))
    here: Status = "graph" if packaged else "capture" if torch else "needs torch"
    return {name: here if installed(name) else "not installed" for name in BACKENDS}
