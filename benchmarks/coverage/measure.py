"""One class of transformers, built tiny: captured, run on every backend, and compared with itself in float64."""

from __future__ import annotations

import copy
import gc
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shrink import draw, tiny_config

from zoo.arrays import to_numpy
from zoo.capture.huggingface import capture_config, model_class
from zoo.capture.huggingface.inputs import example_inputs, prepared_inputs
from zoo.capture.torch_export import named_leaves
from zoo.coverage import Cell, Row
from zoo.graph.ir import Graph
from zoo.loading import assemble
from zoo.model import Model, read_json
from zoo.tolerances import CEILINGS, FLOORS, VACUOUS, tolerance
from zoo.verify import GRADIENTS_OF, compare_gradients, loss_weights, on_backend, run, said

__all__ = ["BACKENDS", "COMPARED", "measure", "with_gradients", "without_gradients"]

BACKENDS = ("numpy", "torch", "jax", "tensorflow", "keras", "native")
"""In this order: the cheapest first, torch before TensorFlow is imported."""

COMPARED = ("jax", "tensorflow")
"""Whose gradients are compared with float64's, or those that torch finds of the same graph."""

_RESIZED = ("jax", "tensorflow")
"""Where a graph is also run at another batch size and another length."""

Arrays = dict[str, np.ndarray]


class _Built:
    """The tiny model in torch, in float32 and, where it can be had, in float64."""

    def __init__(self, model_type: str, task: str) -> None:
        self.config, self.task = tiny_config(model_type), task
        cls = model_class(self.config, task)
        torch.manual_seed(0)
        self.module = draw(cls._from_config(self.config)).eval()
        # With no padding some models' quick attention ignores a mask that their own plain attention applies.
        self.module.set_attn_implementation("eager")
        self.wide = copy.deepcopy(self.module).double()
        self.fixed: dict[str, int] = {}

    def captured(self) -> Graph:
        """The graph; if it holds for one length alone, inputs have that from now on."""
        graph = capture_config(self.config, self.task)
        length = _length(graph)
        self.fixed = {"length": length} if isinstance(length, int) else {}
        return graph

    def inputs(self, **sizes: int) -> dict[str, torch.Tensor]:
        """Example inputs; another seed than capture's, so that no value of those can be part of the graph."""
        return example_inputs(self.module, seed=1, **{**self.fixed, **sizes})

    def outputs(self, inputs: Mapping[str, torch.Tensor]) -> tuple[Arrays, Arrays | None]:
        """What the module makes of the inputs in float32, and in float64 or None."""
        narrow = _outputs(self.module, inputs)
        try:
            found = _outputs(self.wide, _widened(inputs))
        except Exception:  # it mixes dtypes of its own
            return narrow, None
        # a mask of float32's lowest number that is scaled, say, overflows to infinity only in float64
        same = all(np.array_equal(_finite(narrow[name]), _finite(found[name])) for name in narrow)
        return narrow, found if same else None


def measure(model_type: str, task: str, backends: tuple[str, ...] = BACKENDS, gradients: bool = True) -> Row:
    """Everything the sweep asks of one class."""
    started = time.process_time()
    row = Row(model_type, task)
    try:
        built = _Built(model_type, task)
        row = replace(row, architecture=type(built.module).__name__)
        inputs = built.inputs()
        narrow, _ = built.outputs(inputs)
        if not any(array.dtype.kind == "f" and np.isfinite(array).any() for array in narrow.values()):
            raise ValueError("no output is a finite number")
    except Exception as error:
        return replace(row, reason=f"transformers: {_line(error)}", seconds=time.process_time() - started)
    row = replace(
        row,
        built=True,
        inputs={n: f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for n, t in inputs.items()},
        parameters=sum(p.numel() for p in built.module.parameters()),
    )
    try:
        graph = built.captured()
    except Exception as error:
        return replace(row, reason=_line(error), seconds=time.process_time() - started)
    row = replace(row, captured=True, ops=graph.op_counts())
    with tempfile.TemporaryDirectory() as folder:
        try:
            source = _loaded(built, graph, Path(folder))
            row = replace(row, loads=True)
        except Exception as error:
            row = replace(row, reason=f"checkpoint: {_line(error)}")
            source = _direct(built, graph)
        row = replace(row, cells=_cells(built, source, backends))
        if gradients:
            row = replace(row, cells=_with_gradients(built, source, row.cells))
    return replace(row, seconds=round(time.process_time() - started, 1))


def with_gradients(row: Row) -> Row:
    """A row that was measured without its gradients, and these; the class is built and captured again."""
    started = time.process_time()
    try:
        built = _Built(row.model_type, row.task)
        source = _direct(built, built.captured())
        row = replace(row, cells=_with_gradients(built, source, row.cells))
    except Exception as error:
        row = without_gradients(row, _line(error))
    return replace(row, seconds=round(row.seconds + time.process_time() - started, 1))


def without_gradients(row: Row, reason: str) -> Row:
    """A row whose gradients could not be measured."""
    cells = dict(row.cells)
    for name in COMPARED:
        if row.on(name).matches:
            cells[name] = replace(cells[name], gradients=False, reason=cells[name].reason or f"gradient: {reason}")
    return replace(row, cells=cells)


def _loaded(built: _Built, graph: Graph, folder: Path) -> Model:
    """The model of the checkpoint that transformers writes."""
    built.module.save_pretrained(folder)
    return assemble(folder.name, "numpy", graph, folder, read_json(folder / "config.json"), strict=True)


def _direct(built: _Built, graph: Graph) -> Model:
    """The model of the module's own tensors, no checkpoint between."""
    from zoo.backends import get_backend

    state = {name: to_numpy(tensor) for name, tensor in built.module.state_dict().items()}
    renamed = graph.meta.get("renamed", {})
    params = {name: state[renamed.get(name, name)] for name in graph.params}
    backend = get_backend("numpy")
    return Model(type(built.module).__name__, "numpy", graph, params, built.config.to_dict(), Path(), _backend=backend)


def _cells(built: _Built, source: Model, backends: tuple[str, ...]) -> dict[str, Cell]:
    cases = {"": built.inputs(), "batch": built.inputs(batch=3)}
    if _length(source.graph) is not None:
        cases["length"] = built.inputs(length=9)
    prepared = {name: _fitting(source.graph, built.module, inputs) for name, inputs in cases.items()}
    truths, yardsticks = {}, {}
    for name, inputs in cases.items():
        narrow, wide = built.outputs(inputs)
        truths[name] = wide or _graph_in_float64(source, prepared[name], narrow)
        yardsticks[name] = {key: _distance(narrow[key], value) for key, value in truths[name].items()}
    cells = {}
    for backend in backends:
        cell = Cell()
        try:
            model = source if backend == "numpy" else on_backend(source, backend)
            cell = _compared(backend, run(model, prepared[""])[0], truths[""], yardsticks[""])
        except Exception as error:
            cells[backend] = replace(cell, reason=_line(error))
            continue
        if backend in _RESIZED and cell.matches:
            for name in list(cases)[1:]:
                cell = _resized(cell, name, backend, model, prepared[name], truths[name], yardsticks[name])
        cells[backend] = cell
        del model
        gc.collect()
    return cells


def _with_gradients(built: _Built, source: Model, cells: Mapping[str, Cell]) -> dict[str, Cell]:
    """The cells of backends that match, with what their gradients are beside torch's."""
    found = {name: _of_outputs_alone(cell) for name, cell in cells.items()}
    inputs = built.inputs()
    narrow, wide = built.outputs(inputs)
    truth = wide or narrow
    main = next((key for key, value in truth.items() if value.dtype.kind == "f" and not _vacuous(value)), None)
    if main not in source.graph.outputs:
        return found
    feed = _fitting(source.graph, built.module, inputs)
    weights = loss_weights(truth[main], None, 0)
    slopes: dict[str, Any] = {}
    for backend in cells:
        if backend in GRADIENTS_OF and cells[backend].matches:
            try:
                slopes[backend] = GRADIENTS_OF[backend](on_backend(source, backend), feed, main, weights)
            except Exception as error:
                slopes[backend] = error
            gc.collect()
    exact = _exact_gradients(built, source, slopes, inputs, main, weights) if wide else None
    for slope in compare_gradients(slopes, "float32", exact):
        if slope.backend != "torch" or slope.reason:
            cell = found[slope.backend]
            found[slope.backend] = replace(
                cell,
                gradients=not slope.reason,
                gradient_error=_rounded(getattr(slope, "relative", None)),
                reason=cell.reason or (f"gradient: {slope.reason}" if slope.reason else ""),
            )
    return found


def _exact_gradients(
    built: _Built,
    source: Model,
    slopes: Mapping[str, Any],
    inputs: Mapping[str, torch.Tensor],
    main: str,
    weights: np.ndarray,
) -> Arrays | None:
    """The module's own in float64, if those of the graph on one of the backends confirm them; else None."""
    renamed = source.graph.meta.get("renamed", {})
    own = dict(built.wide.named_parameters(remove_duplicate=False))
    try:
        names = {name: own[renamed.get(name, name)] for name in slopes["torch"]}
        output = dict(_leaves(built.wide, _widened(inputs)))[main]
        loss = (output.square() * torch.from_numpy(weights)).sum()
        found = torch.autograd.grad(loss, list(names.values()), allow_unused=True)
    except Exception:  # torch's gradients of the graph failed, or what is trained has other names in the module
        return None
    exact = {n: np.zeros(p.shape) if s is None else s.numpy() for (n, p), s in zip(names.items(), found, strict=True)}
    alone = (next(compare_gradients({name: slope}, "float32", exact)) for name, slope in slopes.items())
    return exact if any(slope.ok for slope in alone) else None


def _of_outputs_alone(cell: Cell) -> Cell:
    """Without what an earlier run found of its gradients."""
    reason = "" if cell.reason.startswith("gradient: ") else cell.reason
    return replace(cell, gradients=None, gradient_error=None, reason=reason)


def _graph_in_float64(source: Model, feed: Arrays, narrow: Arrays) -> Arrays:
    """The graph's own float64, if the module's float32 confirms it; else that float32."""
    try:
        wide = run(source, feed)[0]
    except Exception:
        return narrow
    right = all(_distance(wide.get(name), value) <= CEILINGS["float32"] for name, value in narrow.items())
    return {name: wide[name] for name in narrow} if right else narrow


def _resized(
    cell: Cell, name: str, backend: str, model: Model, feed: Any, truth: Arrays, yardstick: Mapping[str, float | None]
) -> Cell:
    try:
        again = _compared(backend, run(model, feed)[0], truth, yardstick)
        failed = again.reason
    except Exception as error:
        failed = _line(error)
    return replace(cell, **{name: not failed}, reason=cell.reason or (f"{name}: {failed}" if failed else ""))


def _compared(backend: str, outputs: Arrays, truth: Arrays, yardsticks: Mapping[str, float | None]) -> Cell:
    """The worst output decides; one that is the same everywhere counts for nothing but must be the same."""
    worst: tuple[float, float] = (0.0, FLOORS["float32"])
    reason = ""
    compared = 0
    for name, expected in truth.items():
        got = outputs.get(name)
        if got is None:
            reason = reason or f"output {name} is missing"
            continue
        if got.shape != expected.shape:
            reason = reason or f"output {name}: expected the shape {list(expected.shape)}, got {list(got.shape)}"
            continue
        error = _distance(got, expected)
        allowed = 0.0 if expected.dtype.kind in "iub" else tolerance(backend, "float32", yardsticks[name])
        if _vacuous(expected):
            allowed = max(allowed, FLOORS["float32"])
        else:
            compared += 1
        if error > allowed:
            reason = reason or f"output {name}: relative error {error:.2g}, at most {allowed:.2g} is right"
        if error / (allowed or 1) > worst[0] / worst[1]:
            worst = (error, allowed or 1)
    if not compared and not reason:
        reason = "there is nothing to compare: every output is constant"
    return Cell(True, not reason, _rounded(worst[0]), _rounded(worst[1]), reason=reason)


def _distance(got: np.ndarray | None, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest value; infinite where one is finite and the other is not."""
    if got is None or got.shape != expected.shape:
        return float("inf")
    finite = _finite(expected)
    if not np.array_equal(finite, _finite(got)):
        return float("inf")
    values = expected[finite].astype(np.float64)
    if not values.size:
        return 0.0
    difference = float(np.abs(got[finite] - values).max())
    return difference / (float(np.abs(values).max()) or 1.0)


def _finite(array: np.ndarray) -> np.ndarray:
    """Where it is a number, and not the lowest of its dtype, which a model writes for -inf."""
    return np.abs(array) < np.finfo(np.float32).max


def _vacuous(array: np.ndarray) -> bool:
    values = array[_finite(array)]
    if values.size < 2 or array.dtype.kind in "iub":
        return values.size == 0
    return float(values.std()) <= VACUOUS * float(np.abs(values).max())


def _fitting(graph: Graph, module: Any, inputs: Mapping[str, torch.Tensor]) -> Arrays:
    """The graph's inputs; what transformers computes before an export where the graph was captured with that."""
    names = {item.name for item in graph.inputs}
    if not names <= inputs.keys():
        inputs = prepared_inputs(module, inputs)
    return {name: to_numpy(tensor) for name, tensor in inputs.items() if name in names}


def _length(graph: Graph) -> Any:
    """How many tokens a graph takes, a number or a symbol; None if it takes no rows of them."""
    return next((item.shape[1] for item in graph.inputs if item.name == "input_ids" and len(item.shape) > 1), None)


def _widened(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}


def _leaves(module: Any, inputs: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    found = module(**{name: tensor.clone() for name, tensor in inputs.items()})
    leaves = named_leaves(found, "" if isinstance(found, Mapping) else "output")
    return [(path, value) for path, value in leaves if isinstance(value, torch.Tensor)]


def _outputs(module: Any, inputs: Mapping[str, torch.Tensor]) -> Arrays:
    with torch.no_grad():
        return {path: _wide(to_numpy(value)) for path, value in _leaves(module, inputs)}


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.int64) if array.dtype.kind in "iub" else array.astype(
        np.complex128 if array.dtype.kind == "c" else np.float64)  # fmt: skip


def _line(error: Exception) -> str:
    """What failed and in which node, in one line."""
    first, *rest = said(error).split("\n  in node")
    return " ".join((first[:300] + "".join(f" in node{note}" for note in rest)).split())[:500]


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.3g}")


def as_dict(row: Row) -> dict[str, Any]:
    """The row as JSON knows it."""
    return asdict(row)
