"""Parity: one model, one set of inputs, every backend against float64 and against PyTorch; outputs and gradients."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.arrays import to_numpy
from zoo.backends import get_backend
from zoo.errors import InputError, VerifyError, ZooError
from zoo.frameworks import BACKENDS, backend_name, how_to_install, installed
from zoo.graph.ir import Graph, Ref
from zoo.model import Model, Package, prepare_inputs
from zoo.samples import fitting, is_mask
from zoo.tolerances import FLOORS, VACUOUS, gradient_tolerance, tolerance

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from zoo.sources import Progress

__all__ = ["GradientRow", "OutputRow", "Report", "verify"]

REFERENCE = "numpy"
YARDSTICK = "torch"
DIFFERENTIABLE = ("torch", "jax", "tensorflow")


@dataclass(frozen=True, slots=True)
class OutputRow:
    """One output of one backend. Errors are absolute, and relative to the reference's largest value.

    Args:
        backend: whose output.
        output: its name; empty where the backend failed before it gave any.
        max_abs: largest absolute error against float64, at `position`, where `expected` should be and `got` is.
        relative: `max_abs` over the reference's largest absolute value.
        versus_torch: largest difference from PyTorch's output, relative likewise; None without PyTorch.
        tolerance: what `relative` may be.
        scale: standard deviation of the reference.
        seconds: time of one call once warm.
        reason: why it is not right; empty if it is.
    """

    backend: str
    output: str
    max_abs: float | None = None
    relative: float | None = None
    versus_torch: float | None = None
    tolerance: float | None = None
    scale: float | None = None
    seconds: float | None = None
    position: tuple[int, ...] = ()
    expected: float | None = None
    got: float | None = None
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether the output is right."""
        return not self.reason


@dataclass(frozen=True, slots=True)
class GradientRow:
    """The gradients of one backend: of sum(weights * main output ** 2) by every trainable parameter.

    Args:
        backend: whose gradients.
        reference: whose they are compared with.
        parameter: the one that differs most.
        relative: its largest difference over the largest of the reference's gradient there.
        tolerance: what `relative` may be.
        parameters: how many were compared.
        expected: the reference's value where the difference is largest, and `got` the backend's.
        reason: why it is not right; empty if it is.
    """

    backend: str
    reference: str
    parameter: str = ""
    relative: float | None = None
    tolerance: float | None = None
    parameters: int = 0
    position: tuple[int, ...] = ()
    expected: float | None = None
    got: float | None = None
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether the gradients are right."""
        return not self.reason


@dataclass(slots=True)
class Report:
    """What `verify` found.

    Args:
        model: what was verified.
        dtype: of the computation.
        inputs: name -> dtype and shape of what was passed.
        rows: one per backend and output.
        gradients: one per backend, if they were asked for.
        missing: backends that were left out -> what would install them.
    """

    model: str
    dtype: str
    inputs: dict[str, str]
    rows: list[OutputRow] = field(default_factory=list)
    gradients: list[GradientRow] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every row is right, and there is one."""
        return bool(self.rows) and not self.failures

    @property
    def failures(self) -> list[OutputRow | GradientRow]:
        """The rows that are not right, worst first."""

        def badness(row: OutputRow | GradientRow) -> float:
            if row.relative is None or row.tolerance is None or not np.isfinite(row.relative):
                return np.inf
            return row.relative / max(row.tolerance, 1e-300)

        rows: list[OutputRow | GradientRow] = [*self.rows, *self.gradients]
        return sorted((row for row in rows if not row.ok), key=badness, reverse=True)

    def raise_for_failure(self) -> None:
        """Nothing if all is right.

        Raises:
            VerifyError: naming the worst failure's backend, tensor and position, with what was expected and found.
        """
        if self.ok:
            return
        if not self.failures:
            raise VerifyError(
                "nothing was compared", where=self.model, do=how_to_install("jax") + ", or another backend's extra"
            )
        worst = self.failures[0]
        tensor, what = _tensor(worst), worst.reason
        others = len(self.failures) - 1
        raise VerifyError(
            f"{self.model} on {worst.backend}: {what}" + (f" (and {others} more)" if others else ""),
            where=tensor or worst.backend,
            expected=worst.expected,
            got=worst.got,
        )

    def to_json(self) -> dict[str, Any]:
        """The report as JSON knows it; a number that is not finite is text."""
        return {
            "model": self.model,
            "dtype": self.dtype,
            "ok": self.ok,
            "inputs": self.inputs,
            "rows": [_plain(asdict(row)) | {"ok": row.ok} for row in self.rows],
            "gradients": [_plain(asdict(row)) | {"ok": row.ok} for row in self.gradients],
            "missing": self.missing,
        }

    def table(self) -> RenderableType:
        """The report for a terminal, by rich; with fewer columns where the terminal is narrow."""
        from rich.console import Group

        from zoo.console import Layouts

        wide, narrow = self._outputs(True), self._outputs(False)
        return Group(Layouts(wide, narrow), *([self._gradients()] if self.gradients else []))

    def _outputs(self, wide: bool) -> Table:
        from rich.table import Table

        from zoo.console import plain

        table = Table(title=f"{plain(self.model)}, {self.dtype}: error against float64", title_justify="left")
        table.add_column("backend", no_wrap=True)
        table.add_column("output", no_wrap=wide, overflow="ellipsis" if wide else "fold")
        columns = ["max abs", "relative", "allowed", "vs torch", "scale", "ms"] if wide else ["relative", "allowed"]
        for column in columns:
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("", min_width=2, overflow="fold")
        for row in self.rows:
            numbers = {
                "max abs": row.max_abs,
                "relative": row.relative,
                "allowed": row.tolerance,
                "vs torch": row.versus_torch,
                "scale": row.scale,
            }
            cells = [_short(numbers[column]) for column in columns if column in numbers]
            if wide:
                cells.append("" if row.seconds is None else f"{row.seconds * 1e3:.1f}")
            table.add_row(row.backend, plain(row.output), *cells, _verdict(row))
        for name, extra in self.missing.items():
            table.add_row(name, *[""] * (1 + len(columns)), plain(f"not installed ({extra})"), style="dim")
        return table

    def _gradients(self) -> Table:
        from rich.table import Table

        from zoo.console import plain

        table = Table(title="gradients", title_justify="left")
        for column in ("backend", "against", "parameters", "worst parameter", "relative", "allowed", ""):
            right = column in ("parameters", "relative", "allowed")
            table.add_column(
                column,
                justify="right" if right else "left",
                no_wrap=column != "worst parameter" and column != "",
                overflow="fold",
                min_width=2,
            )
        for item in self.gradients:
            cells = (item.backend, item.reference, str(item.parameters), plain(item.parameter))
            table.add_row(*cells, _short(item.relative), _short(item.tolerance), _verdict(item))
        return table

    def checked(self) -> str:
        """What was found right, and what was not looked at: for the line under a table."""
        from zoo.console import all_right

        return all_right((row.backend for row in self.rows), self.missing)


def verify(
    model: str | os.PathLike[str] | Model | Package,
    backends: Sequence[str] | None = None,
    *,
    task: str | None = None,
    gradients: bool = False,
    seed: int = 0,
    batch: int = 3,
    length: int = 17,
    dtype: str = "float32",
    inputs: Mapping[str, Any] | None = None,
    mmap: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Run a model on several backends and compare every output with a float64 run, and with PyTorch.

    The inputs are drawn from a seed to fit the graph: ids within the vocabulary, noise for images and audio, the last
    row of a batch padded. Padded positions are not compared. An output that is zero or constant is a failure: there
    agreement says nothing. The weights are read once; one backend's model is freed before the next.

    Args:
        model: what `zoo.load` takes, a loaded model (its weights as they are now), or a package.
        backends: which; None takes all that are installed and lists the others as missing.
        task: as for `zoo.load`.
        gradients: compare also the gradients by every trainable parameter between torch, JAX and TensorFlow.
        seed: of the inputs.
        batch: rows of the inputs.
        length: tokens of the inputs, less where the model takes fewer.
        dtype: as for `zoo.load`.
        inputs: arrays to use instead of drawn ones, by name.
        mmap: as for `zoo.load`.
        progress: as for `zoo.load`.

    Raises:
        MissingFramework, UnknownBackend: a backend asked for by name is not there.
        InputError: `inputs` do not fit the graph, or none can be drawn that do.
        ZooError: whatever `zoo.load` raises.
    """
    asked = list(BACKENDS) if backends is None else [backend_name(name) for name in backends]
    names = [name for name in BACKENDS if name in asked]  # torch before tensorflow: the other order has crashed
    for name in names if backends is not None else ():
        if not installed(name):
            get_backend(name)  # raises
    present = [name for name in names if installed(name)]
    source = weights_of(model, task, dtype, progress, mmap)
    graph = source.graph
    computed = graph.meta.get("dtype", dtype)
    report = Report(
        source.name,
        computed if computed in FLOORS else "float32",
        {},
        missing={name: how_to_install(name) for name in names if name not in present},
    )

    def referred(drawn: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray], float]:
        prepared = prepare_inputs(graph.inputs, graph.symbols, drawn)
        return prepared, *run(source, prepared)

    try:
        _, (feed, reference, seconds) = fitting(source, referred, seed, batch, length, inputs)
    except InputError as error:
        if error.__cause__ is None or not present:  # the inputs' names or shapes are wrong
            raise
        why = f"the float64 reference does not run: {said(error.__cause__)}"
        report.rows = [OutputRow(name, "", reason=why) for name in present]
        return report
    report.inputs = {name: f"{value.dtype} {list(value.shape)}" for name, value in feed.items()}
    masks = {name: _selection(graph, ref, feed) for name, ref in graph.outputs.items()}
    measured: dict[str, dict[str, float]] = {}
    torch_outputs: dict[str, np.ndarray] | None = None
    found: dict[str, list[OutputRow]] = {}
    slopes: dict[str, Any] = {}
    wanted = [name for name in DIFFERENTIABLE if name in present] if gradients else []
    main = next(iter(graph.outputs))
    # torch runs even if nobody asked: its error is the yardstick
    for name in [n for n in BACKENDS if n in present or (n == YARDSTICK and installed(n))]:
        if name == REFERENCE:
            outputs, elapsed = reference, seconds
        else:
            try:
                candidate = on_backend(source, name)
                outputs, elapsed = run(candidate, feed)
            except Exception as error:
                found[name] = [OutputRow(name, "", reason=said(error))]
                continue
        try:
            if name == YARDSTICK:
                torch_outputs = outputs
                measured = {key: errors(outputs, reference, key, masks[key]) for key in graph.outputs if key in outputs}
            if name in present:
                allowed = (torch_outputs, measured, masks, elapsed, report.dtype)
                found[name] = [_row(name, key, outputs, reference, *allowed) for key in graph.outputs]
        except Exception as error:  # outputs of a kind that cannot be compared
            found[name] = [OutputRow(name, "", reason=said(error))]
        if name in wanted:
            try:
                weights = loss_weights(reference[main], masks[main], seed)
                slopes[name] = GRADIENTS_OF[name](candidate, feed, main, weights)
            except Exception as error:
                slopes[name] = error
        candidate = None  # type: ignore[assignment]
        gc.collect()
    report.rows = [row for name in names for row in found.get(name, ())]
    report.gradients = list(compare_gradients(slopes, report.dtype))
    return report


def weights_of(model: Any, task: str | None, dtype: str, progress: Progress | None, mmap: bool = True) -> Model:
    """The model on NumPy: its arrays serve every backend."""
    from zoo.loading import load
    from zoo.model import model_from

    if isinstance(model, Package):
        return model_from(model, REFERENCE)
    if not isinstance(model, Model):
        return load(model, REFERENCE, task, dtype=dtype, mmap=mmap, progress=progress)
    if model.backend == REFERENCE:
        return model
    params = {name: to_numpy(value) for name, value in model.state.items()}
    return Model(
        model.name, REFERENCE, model.graph, params, model.config, model.folder, _backend=get_backend(REFERENCE)
    )


def on_backend(source: Model, backend: str) -> Model:
    module = get_backend(backend)
    params = module.params_from(source.state, source.graph)
    return Model(source.name, backend, source.graph, params, source.config, source.folder, _backend=module)


def run(model: Model, feed: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], float]:
    """Outputs as float64 (complex128, or as they are), and the median time of a call once warm."""
    times = []
    with inference(model.backend):
        for _ in range(1 if model.backend == REFERENCE else 4):  # NumPy has nothing to warm up, and takes its time
            started = time.perf_counter()
            outputs = {name: to_numpy(value) for name, value in model(**feed).items()}
            times.append(time.perf_counter() - started)
    return {name: _wide(array) for name, array in outputs.items()}, float(np.median(times[1:] or times))


@contextmanager
def inference(backend: str) -> Iterator[None]:
    if backend != YARDSTICK:
        yield
        return
    import torch

    with torch.no_grad():
        yield


def _wide(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind in "biu":
        return array.astype(np.int64)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _row(
    backend: str,
    output: str,
    outputs: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    torch_outputs: Mapping[str, np.ndarray] | None,
    measured: Mapping[str, Mapping[str, Any]],
    masks: Mapping[str, np.ndarray | None],
    seconds: float,
    dtype: str,
) -> OutputRow:
    truth, yardstick, mask = reference[output], measured.get(output), masks[output]
    if output not in outputs or outputs[output].shape != truth.shape:
        got = list(outputs[output].shape) if output in outputs else "nothing"
        return OutputRow(backend, output, reason=f"expected the shape {list(truth.shape)}, got {got}", seconds=seconds)
    error = errors(outputs, reference, output, mask)
    versus_torch = None
    if torch_outputs is not None and output in torch_outputs and torch_outputs[output].shape == truth.shape:
        versus_torch = errors(outputs, torch_outputs, output, mask)["relative"]
    allowed = tolerance(backend, dtype, yardstick["relative"] if yardstick else None)
    if truth.dtype == np.int64:
        allowed = 0.0
    return OutputRow(
        backend,
        output,
        error["max_abs"],
        error["relative"],
        versus_torch,
        allowed,
        error["scale"],
        seconds,
        error["position"],
        error["expected"],
        error["got"],
        _reason(error, allowed, truth),
    )


def _reason(error: Mapping[str, Any], allowed: float, truth: np.ndarray) -> str:
    if not error["count"]:
        return "there is nothing to compare: the float64 reference has no finite value"
    if truth.dtype != np.int64 and error["largest"] < 1e-9:
        return "there is nothing to compare: the float64 reference is zero"
    if truth.dtype != np.int64 and error["count"] > 1 and error["scale"] <= VACUOUS * error["largest"]:
        return "there is nothing to compare: the float64 reference is constant"
    if error["stray"]:
        return "it has values that are not finite where float64's are, or the other way round"
    if not error["relative"] <= allowed:
        return f"relative error {error['relative']:.2g}, at most {allowed:.2g} is right"
    return ""


def errors(
    outputs: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray], name: str, mask: np.ndarray | None
) -> dict[str, Any]:
    """How an output differs from its reference where `mask` holds; "stray" if one is finite where the other is not."""
    found, truth = outputs[name], reference[name]
    chosen = np.ones(truth.shape, bool) if mask is None else np.broadcast_to(mask, truth.shape)
    if found.shape != truth.shape:
        return {"relative": np.inf}
    both = chosen & np.isfinite(truth) & np.isfinite(found)
    stray = bool(np.any(chosen & (np.isfinite(truth) != np.isfinite(found))))
    values = truth[both]
    largest = float(np.abs(values).max(initial=0.0))
    difference = np.where(both, np.abs(np.where(both, found, 0) - np.where(both, truth, 0)), -1.0)
    position: tuple[int, ...] = ()
    max_abs = 0.0
    if values.size:
        position = tuple(int(i) for i in np.unravel_index(int(difference.argmax()), truth.shape))
        max_abs = float(difference[position])
    if stray:
        wrong = chosen & (np.isfinite(truth) != np.isfinite(found))
        position, max_abs = tuple(int(i) for i in np.argwhere(wrong)[0]), np.inf
    return {
        "max_abs": max_abs,
        "relative": max_abs / largest if largest else (np.inf if max_abs else 0.0),
        "largest": largest,
        "scale": float(np.std(values)) if values.size else 0.0,
        "count": int(values.size),
        "stray": stray,
        "position": position,
        "expected": _number(truth, position) if truth.size else None,
        "got": _number(found, position) if truth.size else None,
    }


def _number(array: np.ndarray, position: tuple[int, ...]) -> float:
    value = array[position]
    return float(np.abs(value)) if np.iscomplexobj(value) else float(value)


def _selection(graph: Graph, ref: Ref, feed: Mapping[str, Any]) -> np.ndarray | None:
    """Which positions of an output are no padding, broadcastable to it; None: all, as far as the graph's dims tell."""
    dims = _dims(graph, ref.name)
    chosen: np.ndarray | None = None
    for item in graph.inputs:
        if not is_mask(item) or item.name not in feed:
            continue
        mask = np.asarray(to_numpy(feed[item.name])).astype(bool)
        rows, columns = item.shape
        for axis, dim in enumerate(dims):
            if dim != columns or not isinstance(dim, str) or rows not in dims[:axis]:
                continue
            shape = [1] * len(dims)
            shape[dims.index(rows)], shape[axis] = mask.shape
            part = mask.reshape(shape)
            chosen = part if chosen is None else chosen & part
    return chosen


def _dims(graph: Graph, name: str) -> tuple[Any, ...]:
    for item in graph.inputs:
        if item.name == name:
            return item.shape
    for node in graph.nodes:
        if name in node.outputs:
            return node.infos[node.outputs.index(name)].shape
    return ()


# --- gradients ------------------------------------------------------------------------------------------------------


def loss_weights(truth: np.ndarray, mask: np.ndarray | None, seed: int) -> np.ndarray:
    """Fixed weights of the loss, 0 where padded: without them a normalised output has the same loss whatever it is."""
    weights = np.random.default_rng([seed, 1]).standard_normal(truth.shape)
    return (weights if mask is None else weights * mask).astype(np.float32)


def _trainable(model: Model) -> list[str]:
    return list(model.params)


def _torch_gradients(model: Model, feed: Mapping[str, Any], main: str, weights: np.ndarray) -> dict[str, np.ndarray]:
    import torch

    names = _trainable(model)
    output = model.apply(model.params, **feed)[main].float()
    loss = (output.square() * torch.from_numpy(weights).to(output.device)).sum()
    slopes = torch.autograd.grad(loss, [model.params[name] for name in names], allow_unused=True)
    return {
        n: to_numpy(torch.zeros_like(model.params[n]) if s is None else s) for n, s in zip(names, slopes, strict=True)
    }


def _jax_gradients(model: Model, feed: Mapping[str, Any], main: str, weights: np.ndarray) -> dict[str, np.ndarray]:
    import jax
    import jax.numpy as jnp

    names = _trainable(model)

    def loss(trained: Mapping[str, Any]) -> Any:
        output = model.apply(trained, **feed)[main].astype(jnp.float32)
        return jnp.sum(jnp.square(output) * weights)

    return {n: to_numpy(slope) for n, slope in jax.grad(loss)({name: model.params[name] for name in names}).items()}


def _tensorflow_gradients(
    model: Model, feed: Mapping[str, Any], main: str, weights: np.ndarray
) -> dict[str, np.ndarray]:
    import tensorflow as tf

    names = _trainable(model)
    with tf.GradientTape() as tape:
        output = tf.cast(model.apply(model.params, **feed)[main], tf.float32)
        loss = tf.reduce_sum(tf.square(output) * weights)
    slopes = tape.gradient(loss, [model.params[n] for n in names], unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return {name: to_numpy(tf.convert_to_tensor(slope)) for name, slope in zip(names, slopes, strict=True)}


GRADIENTS_OF: dict[str, Callable[..., dict[str, np.ndarray]]] = {
    "torch": _torch_gradients,
    "jax": _jax_gradients,
    "tensorflow": _tensorflow_gradients,
}


def compare_gradients(
    slopes: Mapping[str, Any], dtype: str, exact: Mapping[str, np.ndarray] | None = None
) -> Iterator[GradientRow]:
    """Each backend's gradients against those of the first that has them, which is torch where it is installed.

    Given exact ones they are what all are compared with, and torch's own error is the yardstick.
    """
    first = next((name for name, found in slopes.items() if not isinstance(found, Exception)), "")
    reference = first if exact is None else "float64"
    chosen = slopes.get(first, {}) if exact is None else exact
    truth = {key: np.asarray(value, np.float64) for key, value in chosen.items()}
    largest = {key: float(np.abs(value).max(initial=0.0)) for key, value in truth.items()}
    # A gradient that is zero but for rounding (a key's bias shifts all scores alike) has no scale of its own.
    least = 1e-3 * max(largest.values(), default=0.0)
    yardstick = None
    for name, found in slopes.items():
        if isinstance(found, Exception):
            yield GradientRow(name, reference, reason=said(found))
            continue
        if not least:
            yield GradientRow(
                name, reference, parameters=len(truth), reason="there is nothing to compare: all are zero"
            )
            continue
        worst: tuple[float, str, tuple[int, ...], float, float] = (-1.0, "", (), 0.0, 0.0)
        for key, expected in truth.items():
            got = np.broadcast_to(np.asarray(found[key], np.float64), expected.shape)
            difference = np.nan_to_num(np.abs(got - expected), nan=np.inf)
            if not difference.size:
                continue
            at = tuple(int(i) for i in np.unravel_index(int(difference.argmax()), difference.shape))
            relative = float(difference[at]) / max(largest[key], least)
            if relative > worst[0]:
                worst = (relative, key, at, float(expected[at]), float(got[at]))
        if exact is not None and name == YARDSTICK:
            yardstick = worst[0]
        allowed = gradient_tolerance(name, dtype, yardstick)
        wrong = "" if worst[0] <= allowed else f"relative difference {worst[0]:.2g}, at most {allowed:.2g} is right"
        yield GradientRow(name, reference, worst[1], worst[0], allowed, len(truth), worst[2], worst[3], worst[4], wrong)


# --- words ----------------------------------------------------------------------------------------------------------


def _tensor(row: OutputRow | GradientRow) -> str:
    if isinstance(row, GradientRow):
        name = f"gradient of {row.parameter}" if row.parameter else "gradients"
    else:
        name = row.output
    return f"{name}[{', '.join(map(str, row.position))}]" if row.position else name


def said(error: BaseException) -> str:
    if isinstance(error, ZooError):
        return str(error)
    lines = [f"{type(error).__name__}: {error}".strip().split("\n")[0]]
    # the first note says in which node; frameworks add theirs after it
    lines += [note.strip().split("\n")[0] for note in getattr(error, "__notes__", ()) if note.startswith("in node")]
    return "\n  ".join(lines)


def _verdict(row: OutputRow | GradientRow) -> str:
    from zoo.console import plain

    return "[green]ok[/]" if row.ok else f"[red]{plain(row.reason)}[/]"


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}" if value else "0"


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, float) and not np.isfinite(v) else v for k, v in values.items()}
