"""Speed: one model, one set of inputs, several backends in turn on this machine; medians and ratios."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.arrays import to_numpy
from zoo.backends import BACKENDS, backend_name, get_backend, how_to_install, installed
from zoo.errors import InputError
from zoo.model import Model, Package, prepare_inputs
from zoo.samples import is_mask, sample_inputs
from zoo.verify import REFERENCE, inference, on_backend, said, weights_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from zoo.sources import Progress

__all__ = ["SHAPES", "BenchReport", "BenchRow", "bench"]

SHAPES = ((1, 16), (1, 128), (8, 128))
"""Rows and tokens that are timed by default."""

FIRST = "torch"
"""What others are compared with where it is measured; otherwise it is the first backend."""


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One backend at one shape.

    Args:
        backend: whose time.
        shapes: input -> its shape.
        ms: median milliseconds of a call once warm, its outputs on the host.
        ratio: how many times as fast as the backend that all are compared with.
        difference: largest difference of the first output from that one's, over its largest value.
        reason: why there is no time; empty if there is one.
    """

    backend: str
    shapes: dict[str, tuple[int, ...]]
    ms: float | None = None
    ratio: float | None = None
    difference: float | None = None
    reason: str = ""


@dataclass(slots=True)
class BenchReport:
    """What `bench` measured.

    Args:
        model: what ran.
        against: the backend that ratios refer to.
        threads: how many each backend had.
        rounds: calls whose median a row is.
        machine: processor, Python and versions of packages.
        rows: by shape, then by backend.
        missing: backends that were left out -> what would install them.
    """

    model: str
    against: str
    threads: int
    rounds: int
    machine: dict[str, str]
    rows: list[BenchRow] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON knows it."""
        return asdict(self)

    def table(self) -> RenderableType:
        """The report for a terminal, by rich."""
        from rich.table import Table

        from zoo.console import plain

        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        table = Table(title=f"{plain(self.model)}: {threads}, medians of {self.rounds}", title_justify="left")
        table.add_column("input", no_wrap=True)
        table.add_column("backend", no_wrap=True)
        for column in ("ms", f"times as fast as {self.against}", "difference"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("")
        for row in self.rows:
            shape = "×".join(map(str, next(iter(row.shapes.values()))))
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            ms = "" if row.ms is None else f"{row.ms:.2f}"
            difference = "" if row.difference is None else f"{row.difference:.1e}"
            table.add_row(shape, row.backend, ms, ratio, difference, plain(row.reason))
        for name, extra in self.missing.items():
            table.add_row("", name, "", "", "", plain(f"not installed ({extra})"), style="dim")
        return table


def bench(
    model: str | os.PathLike[str] | Model | Package,
    backends: Sequence[str] | None = None,
    *,
    task: str | None = None,
    dtype: str = "float32",
    shapes: Sequence[tuple[int, int]] = SHAPES,
    rounds: int = 11,
    threads: int = 1,
    progress: Progress | None = None,
) -> BenchReport:
    """Time a model on several backends, in turn, so that a slow moment of the machine hits all of them.

    Meanwhile the process runs on as many cores as there are threads, and each framework is told their number. A
    framework that has already computed something keeps the threads it has.

    Args:
        model: what `zoo.load` takes, a loaded model, or a package.
        backends: which; None takes all that are installed, but for NumPy in float64, and lists the others as missing.
        task: as for `zoo.load`.
        dtype: as for `zoo.load`.
        shapes: rows and tokens of each set of inputs; images and audio have rows alone. Nothing is padded.
        rounds: calls of each backend at each shape, after three to warm up.
        threads: of each backend.
        progress: as for `zoo.load`.

    Raises:
        MissingFramework, UnknownBackend: a backend asked for by name is not there.
        InputError: rows, tokens, rounds or threads below 1.
        ZooError: whatever `zoo.load` raises.
    """
    for what, number in (("rounds", rounds), ("threads", threads), *(("shapes", n) for pair in shapes for n in pair)):
        if number < 1:
            raise InputError("not a number to measure with", where=what, expected="1 or more", got=number)
    asked = [name for name in BACKENDS if name != REFERENCE] if backends is None else list(map(backend_name, backends))
    names = [name for name in BACKENDS if name in asked]  # torch before tensorflow: the other order has crashed
    for name in names if backends is not None else ():
        if not installed(name):
            get_backend(name)  # raises
    present = [name for name in names if installed(name)]
    if not present:
        raise InputError(
            "there is no backend to measure",
            do=how_to_install("jax") + ", or another backend's extra; or name a backend",
        )
    against = FIRST if FIRST in present else present[0]
    with _pinned(threads, present):
        source = weights_of(model, task, dtype, progress)
        missing = {name: how_to_install(name) for name in names if name not in present}
        report = BenchReport(source.name, against, threads, rounds, _machine(), missing=missing)
        models = {name: on_backend(source, name) for name in present}
        seen = []
        for batch, length in shapes:
            feed = prepare_inputs(source.graph.inputs, source.graph.symbols, _inputs(source, batch, length))
            sizes = {name: tuple(array.shape) for name, array in feed.items()}
            if sizes not in seen:
                seen.append(sizes)
                report.rows += _measured(models, feed, sizes, rounds, against)
    return report


def _inputs(source: Model, batch: int, length: int) -> dict[str, Any]:
    inputs = sample_inputs(source, 0, batch, length)
    masks = [item.name for item in source.graph.inputs if is_mask(item)]
    return {name: np.ones_like(array) if name in masks else array for name, array in inputs.items()}


def _measured(
    models: dict[str, Model], feed: dict[str, Any], sizes: dict[str, tuple[int, ...]], rounds: int, against: str
) -> list[BenchRow]:
    outputs: dict[str, np.ndarray] = {}
    failed: dict[str, str] = {}
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(-3, rounds):
        for name, model in models.items():
            if name in failed:
                continue
            try:
                with inference(name):
                    started = time.perf_counter()
                    found = [to_numpy(value) for value in model(**feed).values()]
                    elapsed = time.perf_counter() - started
            except Exception as error:
                failed[name] = said(error)
                continue
            outputs[name] = found[0]
            if turn >= 0:
                times[name].append(elapsed)
    seconds = {name: statistics.median(own) for name, own in times.items() if name not in failed}
    rows = []
    for name in models:
        if name in failed:
            rows.append(BenchRow(name, sizes, reason=failed[name]))
            continue
        ratio = seconds[against] / seconds[name] if against in seconds else None
        difference = _difference(outputs[name], outputs[against]) if against in seconds else None
        rows.append(BenchRow(name, sizes, seconds[name] * 1e3, ratio, difference))
    return rows


def _difference(got: np.ndarray, expected: np.ndarray) -> float:
    wide = expected.astype(np.complex128 if expected.dtype.kind == "c" else np.float64)
    return float(np.abs(got - wide).max(initial=0) / max(np.abs(wide).max(initial=0), 1e-30))


@contextmanager
def _pinned(threads: int, backends: Sequence[str]) -> Iterator[None]:
    """So many cores for this process and threads for each framework; as it was afterwards."""
    undo: list[Callable[[], Any]] = []
    told = {
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"), str(threads)),
        "TF_NUM_INTEROP_THREADS": "1",
    }
    if threads == 1:
        told["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        if hasattr(os, "sched_setaffinity"):
            allowed = os.sched_getaffinity(0)
            undo.append(partial(os.sched_setaffinity, 0, allowed))
            os.sched_setaffinity(0, sorted(allowed)[:threads])
        if "torch" in backends or "torch" in sys.modules:
            import torch

            undo.append(partial(torch.set_num_threads, torch.get_num_threads()))
            torch.set_num_threads(threads)
        if "native" in backends:
            from zoo.native import library

            undo.append(partial(library.set_threads, library.get_threads()))
            library.set_threads(threads)
        yield
    finally:
        for step in reversed(undo):
            step()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _machine() -> dict[str, str]:
    found = {"processor": _processor(), "python": platform.python_version()}
    for package in ("anyzoo", "torch", "jax", "tensorflow", "keras", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
