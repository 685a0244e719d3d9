"""Models of which a graph holds for one length of text alone: one is captured for each length that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")
import jax
import torch
import transformers
from tolerances import TOLERANCES

import zoo
from zoo.arrays import to_numpy
from zoo.errors import CaptureError, InputError

LENGTHS = (6, 9)


@pytest.fixture(scope="module")
def funnel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.FunnelConfig(
        vocab_size=50, block_sizes=[1, 1], d_model=16, n_head=2, d_head=8, d_inner=24, num_decoder_layers=1
    )
    folder = tmp_path_factory.mktemp("funnel")
    transformers.FunnelModel(config).save_pretrained(folder / "m")
    return folder / "m"


def inputs_of(length: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(length).integers(1, 50, (2, length))
    mask = np.ones((2, length), np.int64)
    mask[1, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def truth(folder: Path, length: int) -> np.ndarray:
    module = transformers.FunnelModel.from_pretrained(folder).eval().double()
    with torch.no_grad():
        found = module(**{name: torch.from_numpy(array) for name, array in inputs_of(length).items()})
    return found.last_hidden_state.numpy()


def assert_right(found: Any, folder: Path, length: int, backend: str) -> None:
    expected = truth(folder, length)
    error = np.abs(to_numpy(found["last_hidden_state"]) - expected).max()
    assert error <= TOLERANCES[backend, "float32"] * np.abs(expected).max()


@pytest.mark.parametrize("backend", ["numpy", "jax", "torch", "tensorflow", "keras", "native"])
def test_each_length_is_captured_when_it_is_met(backend: str, funnel: Path) -> None:
    model = zoo.load(funnel, backend)
    assert any("one length" in note for note in model.notes)
    for length in LENGTHS:
        assert_right(model(**inputs_of(length)), funnel, length, backend)
    as_lists = {name: array.tolist() for name, array in inputs_of(9).items()}
    assert_right(model(**as_lists), funnel, 9, backend)
    if backend == "jax":
        step = jax.jit(lambda params, inputs: model.apply(params, **inputs))
        assert_right(step(model.params, inputs_of(9)), funnel, 9, backend)


def test_all_lengths_have_the_same_parameters(funnel: Path) -> None:
    model = zoo.load(funnel, "torch")
    before = to_numpy(model(**inputs_of(9))["last_hidden_state"]).copy()
    with torch.no_grad():
        for param in model.params.values():
            param.mul_(0.5)
    assert np.abs(to_numpy(model(**inputs_of(9))["last_hidden_state"]) - before).max() > 0.01


def test_a_package_is_of_the_length_that_is_asked_for(funnel: Path, tmp_path: Path) -> None:
    package = zoo.capture(funnel, input_ids=np.zeros((2, 9), int))
    assert package.graph.inputs[0].shape == ("batch", 9)
    folder = package.save(tmp_path / "p")
    model = zoo.load(folder, "numpy")
    assert_right(model(**inputs_of(9)), funnel, 9, "numpy")
    assert_right(model(**inputs_of(5)), funnel, 5, "numpy")
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="9 tokens"):
        zoo.load(folder, "numpy")(**inputs_of(5))
    with pytest.raises(CaptureError, match="attention_mask"):
        zoo.capture(funnel, **inputs_of(9))


def test_info_says_so() -> None:
    from zoo.catalogue import describe

    rows = [row for row in zoo.info("funnel").verified if row.task == "feature-extraction"]
    assert rows and all("once for each" in describe(row, "jax") for row in rows)
