"""The sweep over transformers' architectures: what it calls right, and tiny models that it found hard."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from zoo.coverage import Cell, Coverage, Row

FOLDER = Path(__file__).parents[1] / "coverage"


@pytest.fixture(scope="module")
def measure():
    sys.path.insert(0, str(FOLDER))
    try:
        import measure

        yield measure
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def plausible():
    sys.path.insert(0, str(FOLDER))
    try:
        import check_plausible

        yield check_plausible
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def sweep():
    spec = importlib.util.spec_from_file_location("coverage_sweep", FOLDER / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Each for what others lack: packed images of a fixed size under a head, routed experts whose checkpoint has each apart,
# a scan in chunks, image sizes read as numbers, attention in parts as long as each image, strides that are buffers.
HARD = {
    "qwen2_vl": "image-text-to-text",
    **dict.fromkeys(
        ("qwen3_moe", "mamba2", "llava_next", "hunyuan_vl_vision", "pocket_tts_audio_tokenizer"), "feature-extraction"
    ),
}


@pytest.mark.parametrize(("model_type", "task"), HARD.items())
def test_hard_architectures_equal_transformers_in_float64(measure, model_type, task):
    row = measure.measure(model_type, task, ("numpy", "torch", "native"), gradients=False)
    assert row.built, row.reason
    assert row.captured, row.reason
    assert row.loads, row.reason
    assert {name: cell.reason for name, cell in row.cells.items()} == dict.fromkeys(row.cells, "")
    assert all(cell.matches for cell in row.cells.values())


def test_a_scan_in_chunks_runs_at_other_lengths(measure):
    row = measure.measure("mamba2", "feature-extraction", ("jax",), gradients=False)
    assert row.on("jax") == replace(row.on("jax"), matches=True, batch=True, length=True, reason="")


def test_several_texts_of_each_row_and_gradients_on_their_own(measure):
    row = measure.measure("albert", "multiple-choice", ("torch", "jax"), gradients=False)
    assert row.inputs["input_ids"] == "int64 [2, 3, 6]"
    assert row.on("jax") == replace(row.on("jax"), matches=True, batch=True, length=True, gradients=None, reason="")
    again = measure.with_gradients(row)
    assert again.on("jax") == replace(row.on("jax"), gradients=True, gradient_error=again.on("jax").gradient_error)
    assert 0 < again.on("jax").gradient_error < 1e-4
    assert again.on("torch") == row.on("torch")


def test_packed_images_of_other_sizes_see_only_themselves(measure):
    """Captured with two of one size; norms of queries and keys come before the images are told apart."""
    built = measure._Built("glm_ocr_vision", "feature-extraction")
    graph = measure.capture_config(built.config, "feature-extraction")
    inputs = built.inputs()
    grid = torch.tensor([[1, 4, 4], [1, 2, 6], [2, 2, 2]])
    rows = torch.randn(int(grid.prod(1).sum()), inputs["hidden_states"].shape[1], generator=torch.manual_seed(0))
    inputs = {**inputs, "grid_thw": grid, "hidden_states": rows}
    narrow, truth = built.outputs(inputs)
    feed = measure._fitting(graph, built.module, inputs)
    got = measure.run(measure._direct(built, graph), feed)[0]
    cell = measure._compared(
        "numpy", got, truth, {name: measure._distance(narrow[name], truth[name]) for name in truth}
    )
    assert cell.matches, cell.reason


def test_a_wrong_output_does_not_match(measure):
    truth = {"logits": np.array([[1.0, -2.0], [3.0, 0.5]])}
    right = measure._compared("jax", truth, truth, {"logits": 1e-7})
    assert right == Cell(True, True, 0.0, right.allowed)
    for wrong, reason in (
        (truth["logits"] + 1e-3, "relative error"),
        (truth["logits"].T[:1], "shape"),
        (np.where(truth["logits"] == 3.0, np.nan, truth["logits"]), "relative error inf"),
    ):
        cell = measure._compared("jax", {"logits": wrong}, truth, {"logits": 1e-7})
        assert cell.runs
        assert not cell.matches
        assert reason in cell.reason
    assert "missing" in measure._compared("jax", {}, truth, {"logits": 1e-7}).reason


def test_the_lowest_number_of_a_dtype_stands_for_no_number(measure):
    truth = {"logits": np.array([[1.0, -2.0, np.finfo(np.float64).min]])}
    got = {"logits": np.array([[1.0, -2.0, np.finfo(np.float32).min]])}
    assert measure._compared("jax", got, truth, {"logits": 0.0}).matches
    assert not measure._compared("jax", {"logits": np.array([[1.0, -2.0, 3.0]])}, truth, {"logits": 0.0}).matches


def test_a_graph_of_one_length_is_asked_for_that_length(measure):
    built = measure._Built("canine", "feature-extraction")
    graph = built.captured()
    assert built.inputs()["input_ids"].shape[1] == graph.inputs[0].shape[1]
    assert built.inputs(length=9)["input_ids"].shape[1] == 9


def test_a_constant_output_says_nothing_but_must_agree(measure):
    constant, varied = np.full((2, 3), 4.0), np.arange(6.0).reshape(2, 3)
    alone = measure._compared("jax", {"mask": constant}, {"mask": constant}, {"mask": 0.0})
    assert alone.reason.startswith("there is nothing to compare")
    truth = {"mask": constant, "logits": varied}
    assert measure._compared("jax", truth, truth, dict.fromkeys(truth, 0.0)).matches
    other = {**truth, "mask": constant + 1}
    assert not measure._compared("jax", other, truth, dict.fromkeys(truth, 0.0)).matches


def test_whole_numbers_are_compared_exactly(measure):
    ids, varied = np.array([3, 7, 9]), np.arange(3.0)
    truth = {"indices": ids, "values": varied}
    assert measure._compared("jax", truth, truth, dict.fromkeys(truth, 1e-3)).matches
    off = {**truth, "indices": np.array([3, 7, 8])}
    assert not measure._compared("jax", off, truth, dict.fromkeys(truth, 1e-3)).matches


def test_the_last_finding_of_a_class_counts_and_the_first_of_one_held_out_is_kept(sweep, tmp_path, monkeypatch):
    missed = Row("made_up", "feature-extraction", built=True, captured=True, cells={"jax": Cell(True)})
    hit = replace(missed, cells={"jax": Cell(True, True)})
    path = tmp_path / "found.jsonl"
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in (missed, hit)))
    monkeypatch.setattr(sweep, "held_out", lambda types: {"made_up"})
    monkeypatch.setattr(sweep, "FOUND", path)
    for committed in ((), (replace(missed, held_out=True, first={"jax": False}),), (replace(hit, task="other"),)):
        monkeypatch.setattr(sweep, "read", lambda rows=committed: Coverage({}, rows))
        found = next(row for row in sweep._rows() if row.task == "feature-extraction")
        assert found.on("jax").matches
        assert found.held_out
        assert found.first == {"jax": False}


def test_a_third_of_the_unseen_types_is_held_out(sweep):
    seen = set(json.loads(sweep.SEEN.read_text()))
    types = {f"type_{i}" for i in range(30)} | seen
    aside = sweep.held_out(types)
    assert len(aside) == 10
    assert not aside & seen
    assert aside == sweep.held_out(sorted(types))


def test_what_bounds_a_hostile_config_takes_every_bundled_one(plausible):
    """Each beside a checkpoint of exactly its model's size."""
    found = {name: plausible.refusals(config) for name, config in plausible.configs([], bundled=True)}
    assert len(found) > 100
    assert {name: why for name, why in found.items() if why != []} == {}
