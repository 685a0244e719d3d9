"""Every output of 36 kinds of model on every backend against the transformers module in float64.

A graph is captured once, at batch 2 and length 7, and run at that size and two others, padded rows included. A
backend may be `FACTORS` times as far from float64 as torch in float32 itself is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from tolerances import FLOOR, SMALLEST_STD

from zoo.arrays import to_numpy
from zoo.backends.execute import Program
from zoo.model import Package
from zoo.tolerances import FACTORS

BACKENDS = ("numpy", "torch", "jax", "tensorflow", "keras", "native")
SIZES = ((3, 11), (2, 7), (1, 6))

CASES = [
    pytest.param(model_type, backend, id=f"{model_type}-{backend}", marks=pytest.mark.xdist_group(model_type))
    for model_type in tiny.TYPES
    for backend in BACKENDS
]


@functools.lru_cache(maxsize=2)
def references(model_type: str) -> list[tuple[dict[str, np.ndarray], dict[str, tuple[np.ndarray, Any, float]]]]:
    """Per size: inputs, and per output the float64 values, which of them count, and how far torch's float32 is off."""
    exact, single = tiny.build(model_type, torch.float64), tiny.build(model_type)
    found = []
    for size in SIZES:
        inputs = tiny.inputs(model_type, *size)
        masks = tiny.output_mask(model_type, inputs) or {}
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        with torch.no_grad():
            own = flat(single(**tensors))
            values = flat(exact(**{n: x.double() if x.is_floating_point() else x for n, x in tensors.items()}))
        outputs = {}
        for name, value in values.items():
            mask = masks.get(name, slice(None))
            outputs[name] = (value, mask, error(own[name], value, mask))
        found.append((inputs, outputs))
    return found


def flat(tree: Mapping[str, Any], path: str = "") -> dict[str, np.ndarray]:
    """Tensors by name, nested ones joined by dots."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{path}{key}."))
        elif value is not None:
            found[f"{path}{key}"] = value.numpy()
    return found


def error(got: np.ndarray, reference: np.ndarray, mask: Any) -> float:
    return float(np.abs(got.astype(np.float64) - reference)[mask].max() / np.abs(reference[mask]).max())


@pytest.mark.parametrize(("model_type", "backend"), CASES)
def test_outputs_are_those_of_transformers_in_float64(
    captured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, model_type: str, backend: str
) -> None:
    model = Package(*captured(model_type)).load(backend)
    runs = counted(monkeypatch)
    samples = references(model_type)
    # what torch's float32 is off by at one size alone is an accident of the rounding there
    torchs = {name: max(expected[name][2] for _, expected in samples) for name in samples[0][1]}
    for index, (inputs, expected) in enumerate(samples):
        with optimized() if model_type == "bert" and not index else nullcontext():
            outputs = {name: to_numpy(value) for name, value in model(**inputs).items()}
        assert outputs.keys() == expected.keys()
        for name, (reference, mask, _) in expected.items():
            assert outputs[name].shape == reference.shape, name
            values = reference[mask]
            scale = values.std() if values.size > 1 else abs(values).max()  # one image's score of one text
            assert scale > SMALLEST_STD, f"{name} is as good as constant: anything would agree"
            off = error(outputs[name], reference, mask)
            allowed = max(FACTORS[backend, "float32"] * torchs[name], FLOOR)
            assert off <= allowed, f"{name} of {SIZES[index]} is off by {off:.2g}, torch by {torchs[name]:.2g}"
    if backend == "tensorflow":
        assert len(runs) == 1, "one tf.function with None dims serves all sizes"


def counted(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows when a model's operations are gone through in Python, run or traced; not where ids alone are looked at."""
    runs: list[None] = []
    run = Program.__call__

    def counting(self: Program, *args: Any) -> Any:
        if self.graph.params:
            runs.append(None)
        return run(self, *args)

    monkeypatch.setattr(Program, "__call__", counting)
    return runs


@contextmanager
def optimized() -> Iterator[None]:
    """XLA with all of its passes, as users have it."""
    import jax

    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
