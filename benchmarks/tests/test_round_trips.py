"""A → B → A for every pair of forms: a sample of what benchmarks/check_round_trips.py does with every class."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import pytest
import safetensors.numpy

from converters import open_checkpoint
from converters.checkpoint import Checkpoint, MemoryCheckpoint
from converters.formats import npz
from zoo.convert import convert

FOLDER = Path(__file__).parents[1]
SAMPLE = (
    "xlm-roberta_tied-XLMRobertaForCausalLM",  # its head comes before its base model
    "bert_apart-BertForMaskedLM",  # an output layer of its own, and a bias with two names
    "wav2vec2_stable-Wav2Vec2ForCTC",  # weight norms
    "regnet-RegNetModel",  # convolutions, statistics of batches
)


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    for needed in ("transformers", "h5py", "tensorstore"):
        pytest.importorskip(needed)
    sys.path.insert(0, str(FOLDER))
    try:
        with mock.patch.dict(os.environ):  # what a script sets for itself is not for the tests that follow
            import check_round_trips

        yield check_round_trips
    finally:
        sys.path.remove(str(FOLDER))


def build(script: ModuleType, name: str, folder: Path) -> Path:
    models = {model.name: model for family in script.FAMILIES for model in script.models_of(family)}
    script.build(models[name], folder)
    return folder


def tensors(folder: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(folder) as checkpoint:
        return {name: np.array(array) for name, array in checkpoint.items()}


@pytest.mark.parametrize("name", SAMPLE)
def test_there_and_back_between_all_forms(name: str, script: ModuleType, tmp_path: Path) -> None:
    models = {model.name: model for family in script.FAMILIES for model in script.models_of(family)}
    found = script.Trips(tmp_path).of(models[name])
    forms = len(found["forms"])
    assert forms >= 6 and not found["broken"]
    assert found["pairs"] == {"same": forms * (forms - 1)}
    assert "differs" not in found["back"]


def test_a_lost_tensor_and_a_changed_one_are_seen(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script itself: a writer that drops a bias, and one that changes a value."""
    model = next(model for model in script.models_of("bert") if model.cls == "BertModel")
    write = npz.write

    def spoiled(path: Path, checkpoint: Checkpoint, metadata: object) -> None:
        arrays = {name: np.array(array) for name, array in checkpoint.items()}
        arrays["pooler.dense.bias"][0] += 1
        del arrays["embeddings.token_type_embeddings.weight"]
        write(path, MemoryCheckpoint(arrays), metadata)

    monkeypatch.setattr("converters.formats.npz.write", spoiled)
    found = script.Trips(tmp_path).of(model)
    differing = {tuple(pair.split()) for pair in found["differs"]}
    for form in set(found["forms"]) - {"npz"}:
        assert {("npz", form), (form, "npz")} <= differing


def test_a_tied_weight_is_saved_under_its_published_name(script: ModuleType, tmp_path: Path) -> None:
    folder = build(script, SAMPLE[0], tmp_path / "in")
    names = set(tensors(folder))
    assert "roberta.embeddings.word_embeddings.weight" in names and "lm_head.decoder.weight" not in names
    convert(folder, tmp_path / "tf", "tf-h5")
    for source in (folder, tmp_path / "tf"):
        convert(source, tmp_path / "out", overwrite=True)
        assert set(tensors(tmp_path / "out")) == names


def test_a_bias_that_outputs_need_takes_the_place_of_one_that_they_do_not(script: ModuleType, tmp_path: Path) -> None:
    """transformers 5 has two biases where the output layer is not tied, and uses the one that transformers 4 lacks."""
    folder = build(script, SAMPLE[1], tmp_path / "in")
    saved = tensors(folder)
    saved["cls.predictions.decoder.bias"] += 1
    safetensors.numpy.save_file(saved, folder / "model.safetensors")
    done = convert(folder, tmp_path / "out", "flax", verify=True)
    assert np.array_equal(tensors(tmp_path / "out")["cls/predictions/bias"], saved["cls.predictions.decoder.bias"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert list(done.dropped) == ["cls.predictions.bias"]
