"""ONNX files that torch itself exports: every weight gets its name and layout back."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
onnx = pytest.importorskip("onnx")

import zoo  # noqa: E402
from converters import open_checkpoint  # noqa: E402
from converters.dialects import dialect_of  # noqa: E402
from converters.dialects import onnx as dialect  # noqa: E402
from converters.view import View  # noqa: E402
from zoo.errors import WeightsError  # noqa: E402


class Wrapped(torch.nn.Module):
    """As sentence-transformers has a model, inside a Sequential."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = torch.nn.Sequential(torch.nn.ModuleDict({"auto_model": model}))

    def forward(self, *inputs: Any) -> Any:
        return self.model[0]["auto_model"](*inputs)


def exported(folder: Path, kind: str, wrap: bool) -> tuple[Any, Path]:
    """A tiny model, and its export by torch, constants folded."""
    model = tiny.build(kind)
    inputs = {name: torch.from_numpy(value) for name, value in tiny.inputs(kind, 2, 7).items()}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**model.config.to_dict(), "architectures": [type(model).__name__]}))
    forward, names = model.forward, list(inputs)
    model.forward = lambda *given: forward(**dict(zip(names, given, strict=True)))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = Wrapped(model) if wrap else model
        torch.onnx.export(module.eval(), tuple(inputs.values()), folder / "model.onnx", input_names=names, dynamo=False)
    return model, folder / "model.onnx"


@pytest.mark.parametrize(("kind", "wrap"), [("bert", False), ("bert", True), ("t5", False), ("distilbert", True)])
def test_every_weight_has_its_name_again(kind: str, wrap: bool, tmp_path: Path) -> None:
    model, path = exported(tmp_path / "in", kind, wrap)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    with open_checkpoint(path) as checkpoint:
        assert dialect_of(checkpoint) is dialect
        assert any(name.startswith("onnx::MatMul") for name in checkpoint.infos)
        found = {name: np.array(array) for name, array in View(checkpoint, dialect.canonical(checkpoint, {})).items()}
    assert set(found) <= set(state)
    for name, array in found.items():
        assert array.dtype == state[name].dtype and np.array_equal(array, state[name]), name
    tied = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "pooler.dense.weight", "pooler.dense.bias")
    assert set(state) - set(found) <= set(tied)  # the first output needs no pooler, and export leaves out the rest
    done = zoo.convert(path, tmp_path / "out", verify=True)
    assert done.dialect == "onnx" and done.verified == "every tensor and the outputs"
    dense = next(name for name in found if name.endswith(".weight") and found[name].ndim == 2 and "0" in name)
    assert done.names[dense].startswith("onnx::MatMul") or dense in done.names[dense]


def test_a_matrix_that_nothing_names_is_refused(tmp_path: Path) -> None:
    """Its node has no name, and no bias is added: the conversion names what it has no place for."""
    _, path = exported(tmp_path / "in", "t5", False)
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == "MatMul" and "/SelfAttention/q/" in node.name:
            node.name = ""
    onnx.save(model, path)
    with pytest.raises(WeightsError, match=r"SelfAttention\.q\.weight"):
        zoo.convert(path, tmp_path / "out")


def test_constants_are_left_out_with_a_reason(tmp_path: Path) -> None:
    _, path = exported(tmp_path / "in", "bert", False)
    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1.0], np.float32), "onnx::Add_7"))
    onnx.save(model, path)
    done = zoo.convert(path, tmp_path / "out")
    assert done.dropped == {"onnx::Add_7": "a constant of the graph, no weight of a module"}
