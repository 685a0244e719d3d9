"""How exact each backend is in float32, bfloat16 and float16, beside PyTorch's own modules in the same dtype.

    python benchmarks/bench_dtypes.py [--types bert llama] [--backends jax native] [--dtypes bfloat16]

Tiny models of the kinds that tests/tiny.py makes, their weights drawn in float32 and rounded to the dtype. The truth is
transformers' module in float64 with those rounded weights, so that what is measured is the computation; torch's own
error is that of transformers' module in the dtype. Errors are the largest of an output over the output's largest value,
the worst output of a model counting; a ratio is a backend's error over torch's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import warnings
from pathlib import Path

from common import RESULTS, on_threads, record

on_threads(1)
os.environ.setdefault("KERAS_BACKEND", "jax")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from zoo.arrays import to_numpy  # noqa: E402
from zoo.capture.huggingface import _dynamic  # noqa: E402
from zoo.capture.huggingface.classes import quiet as _quiet  # noqa: E402
from zoo.capture.torch_export import capture_module  # noqa: E402
from zoo.errors import CaptureError  # noqa: E402
from zoo.model import Package  # noqa: E402
from zoo.tolerances import FLOORS  # noqa: E402

TYPES = "bert albert deberta-v2 modernbert gpt2 llama qwen3 gemma3_text bloom t5 bart vit convnext clip whisper".split()
BACKENDS = ("torch", "jax", "tensorflow", "keras", "native")
SIZE = (3, 11)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--backends", nargs="+", default=BACKENDS)
    parser.add_argument("--dtypes", nargs="+", default=list(FLOORS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    cells = []
    for dtype in options.dtypes:
        for model_type in options.types:
            cells += measured(model_type, dtype, options.backends)
    summary = summarised(cells)
    for row in summary:
        print(" ".join(f"{key}={value}" for key, value in row.items()))
    if options.types == TYPES and options.dtypes == list(FLOORS):
        print("written to", record("dtypes", {"summary": summary, "models": cells}).relative_to(RESULTS.parent))


def measured(model_type: str, dtype: str, backends: list[str]) -> list[dict]:
    """One cell per backend: its error, torch's and their ratio, or why there is none."""
    drawn, config = tiny.build(model_type), tiny.config(model_type)
    own, exact = (
        transformers.AutoModel.from_config(config, dtype=d).eval() for d in (getattr(torch, dtype), torch.float64)
    )
    own.load_state_dict(drawn.state_dict())
    exact.load_state_dict(own.state_dict())
    given = {name: torch.from_numpy(x) for name, x in tiny.inputs(model_type, *SIZE).items()}
    given = {name: x.to(own.dtype) if x.is_floating_point() else x for name, x in given.items()}
    masks = tiny.output_mask(model_type, tiny.inputs(model_type, *SIZE)) or {}
    with torch.no_grad():
        truth = flat(exact(**{n: x.double() if x.is_floating_point() else x for n, x in given.items()}))
        base = worst(flat(own(**given)), truth, masks)
    try:
        with _quiet():
            graph = capture_module(own, given, _dynamic(given, config))
    except CaptureError as failure:
        said = " ".join(str(failure).split())[:300]
        return [{"model": model_type, "dtype": dtype, "backend": backend, "failure": said} for backend in backends]
    state = own.state_dict()
    package = Package(graph, {name: to_numpy(state[name]) for name in graph.params})
    cells = []
    for backend in backends:
        cell = {"model": model_type, "dtype": dtype, "backend": backend, "torch": float(f"{base:.3g}")}
        try:
            with torch.no_grad():
                outputs = package.load(backend)(**{name: to_numpy(x) for name, x in given.items()})
            error = worst({n: to_numpy(x) for n, x in outputs.items()}, truth, masks)
            cell |= {"error": float(f"{error:.3g}"), "ratio": float(f"{error / base:.3g}")}
        except Exception as failure:
            cell["failure"] = f"{type(failure).__name__}: {failure}".splitlines()[0][:200]
        cells.append(cell)
        print(cell, flush=True)
    return cells


def flat(tree, path: str = "") -> dict[str, np.ndarray]:
    """Tensors by name, nested ones joined by dots."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, torch.Tensor):
            found[f"{path}{key}"] = to_numpy(value)
        elif hasattr(value, "items"):
            found |= flat(value, f"{path}{key}.")
    return found


def worst(outputs: dict[str, np.ndarray], truth: dict[str, np.ndarray], masks: dict[str, np.ndarray]) -> float:
    """The largest relative error of any output, positions of padding left out."""
    found = []
    for name, value in truth.items():
        counted = masks.get(name, np.ones(value.shape[:1], bool))
        difference = np.abs(outputs[name].astype(np.float64) - value)[counted]
        found.append(float(difference.max() / np.abs(value[counted]).max()))
    return max(found)


def summarised(cells: list[dict]) -> list[dict]:
    """Per dtype and backend: how many models ran, the median and largest error, and how that compares with torch's."""
    rows = []
    for dtype, backend in dict.fromkeys((cell["dtype"], cell["backend"]) for cell in cells):
        here = [cell for cell in cells if (cell["dtype"], cell["backend"]) == (dtype, backend)]
        ran = [cell for cell in here if "error" in cell]
        row = {"dtype": dtype, "backend": backend, "models": len(here), "ran": len(ran)}
        if ran:
            errors, ratios = [cell["error"] for cell in ran], [cell["ratio"] for cell in ran]
            row |= {"median error": float(f"{statistics.median(errors):.2g}"), "largest error": max(errors)}
            row |= {"torch's median": float(f"{statistics.median(cell['torch'] for cell in ran):.2g}")}
            row |= {"median ratio": float(f"{statistics.median(ratios):.2g}"), "largest ratio": max(ratios)}
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
