"""`zoo.load` of what is in memory, and `zoo.verify` of graphs that do not run at every size that they name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")
import torch
import transformers
from tolerances import TOLERANCES
from torch import nn

import zoo
from zoo.arrays import to_numpy
from zoo.errors import ConfigError, InputError

BACKENDS = ("numpy", "torch", "jax", "tensorflow", "keras", "native")
IDS = np.random.default_rng(0).integers(0, 61, (2, 7))


@pytest.fixture(scope="module")
def bert() -> transformers.BertForSequenceClassification:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=61, hidden_size=24, num_attention_heads=4, intermediate_size=37, num_hidden_layers=2, num_labels=5
    )
    return transformers.BertForSequenceClassification(config).eval()


def logits(module: Any) -> np.ndarray:
    with torch.no_grad():
        return module(input_ids=torch.from_numpy(IDS)).logits.double().numpy()


def assert_same(model: Any, expected: np.ndarray, backend: str) -> None:
    error = np.abs(to_numpy(model(input_ids=IDS)["logits"]) - expected).max()
    assert error <= TOLERANCES[backend, "float32"] * np.abs(expected).max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_module_of_transformers(backend: str, bert: Any, tmp_path: Path) -> None:
    model, before = zoo.load(bert, backend), logits(bert)
    assert_same(model, before, backend)
    with torch.no_grad():
        bert.classifier.weight.mul_(2)  # the model has weights of its own
    assert_same(model, before, backend)
    assert_same(zoo.load(bert, backend), logits(bert), backend)
    assert_same(zoo.load(model.save(tmp_path / "p"), "numpy"), before, "numpy")


def test_a_module_in_wrappers_and_another_dtype(bert: Any) -> None:
    assert_same(zoo.load(nn.DataParallel(bert), "numpy"), logits(bert), "numpy")
    assert zoo.load(bert, "numpy", dtype="bfloat16").graph.meta["dtype"] == "bfloat16"
    base = zoo.load(bert, "numpy", task="feature-extraction")
    with torch.no_grad():
        expected = bert.bert(torch.from_numpy(IDS)).last_hidden_state.double().numpy()
    found = to_numpy(base(input_ids=IDS)["last_hidden_state"])
    assert np.abs(found - expected).max() <= TOLERANCES["numpy", "float32"] * np.abs(expected).max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_package(backend: str, bert: Any) -> None:
    package = zoo.load(bert, "numpy").package()
    assert_same(zoo.load(package, backend), logits(bert), backend)


def test_a_package_holds_one_model(bert: Any) -> None:
    package = zoo.load(bert, "numpy").package()
    for asked in ({"task": "fill-mask"}, {"dtype": "float16"}, {"train": True}):
        with pytest.raises(ConfigError, match="package"):
            zoo.load(package, "numpy", **asked)
    assert_same(zoo.load(package, "numpy", task="text-classification", dtype="auto"), logits(bert), "numpy")
    assert zoo.load(package, "native", dtype="int8")(input_ids=IDS)["logits"].shape == (2, 5)


def test_what_cannot_be_loaded_says_what_to_do(bert: Any) -> None:
    class Own(transformers.BertModel):
        pass

    for module in (nn.Linear(2, 3), Own(bert.config)):
        with pytest.raises(ConfigError, match=r"zoo\.capture"):
            zoo.load(module)
    for other in (3, None, b"folder", ["folder"], {"model": 1}, object()):
        with pytest.raises(ConfigError, match=type(other).__name__):
            zoo.load(other)
    with pytest.raises(ConfigError, match="dtype"):
        zoo.load(bert, dtype="float8")


class Placed(nn.Module):
    """An image's columns and what is added to each."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(40))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values.tanh() + self.table


def placed(**meta: Any) -> zoo.Package:
    """A graph that says less of its sizes than it needs, as where Python computed them."""
    package = zoo.capture(Placed(), pixel_values=torch.randn(2, 3, 5, 40))
    (item,) = package.graph.inputs
    graph = replace(
        package.graph,
        inputs=(replace(item, shape=("batch", 3, "height", "width")),),
        symbols={"batch": (1, None), "height": (1, None), "width": (2, None)},
        meta={**package.graph.meta, **meta},
    )
    return zoo.Package(graph, package.arrays)


def test_verify_takes_sizes_that_fit() -> None:
    report = zoo.verify(placed(example={"batch": 2, "height": 5, "width": 40}), ["numpy", "jax", "native"])
    assert report.ok and report.inputs == {"pixel_values": "float32 [2, 3, 5, 40]"}


def test_a_capture_keeps_the_sizes_of_its_example() -> None:
    graph = zoo.capture(nn.Tanh(), input=torch.randn(3, 7)).graph
    assert sorted(graph.meta["example"].values()) == [3, 7]
    assert graph.meta["example"].keys() == graph.symbols.keys()


def test_what_fits_at_no_size_is_a_verdict() -> None:
    report = zoo.verify(placed(example={}), ["numpy", "jax"], gradients=True)
    assert not report.ok and [row.backend for row in report.rows] == ["jax", "numpy"]
    assert all("broadcast" in row.reason for row in report.rows)
    report.table(), report.to_json()
    with pytest.raises(InputError, match="no such input"):
        zoo.verify(placed(example={}), ["numpy"], inputs={"pixels": np.zeros(3)})
