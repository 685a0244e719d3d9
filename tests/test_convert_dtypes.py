"""zoo convert and save: every floating-point tensor gets the dtype that was asked for, and config.json says which."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from tolerances import TOLERANCES

import zoo
from converters import open_checkpoint
from zoo.errors import FormatError

KINDS = {
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


def stored(folder: Path, kind: str, model: str = "llama") -> tuple[Path, dict[str, np.ndarray]]:
    """A checkpoint whose matrices are of that dtype, norms float32; the folder and what its numbers are."""
    checkpoints.save(folder, model)
    arrays = checkpoints.tensors(folder)
    for name, array in arrays.items():
        if array.ndim > 1:
            arrays[name] = array.astype(KINDS[kind])
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    return folder, {name: array.astype(np.float64) for name, array in arrays.items()}


def said(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    return {key: config[key] for key in ("dtype", "torch_dtype") if key in config}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_float_becomes_the_dtype(kind: str, dtype: str, tmp_path: Path) -> None:
    source, values = stored(tmp_path / "in", kind)
    zoo.convert(source, tmp_path / "out", dtype=dtype, verify=True)
    with open_checkpoint(tmp_path / "out") as file:
        for name, array in file.items():
            assert file.infos[name].dtype == dtype, name
            with np.errstate(over="ignore"):
                want = values[name].astype(np.float32 if kind != "float64" else np.float64).astype(array.dtype)
            assert np.array_equal(array, want), name
    assert said(tmp_path / "out") == {"dtype": dtype}


@pytest.mark.parametrize("form", ["torch", "flax", "npz", "gguf", "orbax", "keras"])
def test_float8_in_every_form(form: str, tmp_path: Path) -> None:
    source, _ = stored(tmp_path / "in", "float8_e4m3fn")
    zoo.convert(source, tmp_path / "out", form, dtype="float32", verify=True)
    with open_checkpoint(tmp_path / "out") as file:
        assert {info.dtype for info in file.infos.values()} == {"float32"}
    assert said(tmp_path / "out") == {"torch_dtype" if form in ("flax", "orbax") else "dtype": "float32"}
    if form in ("npz", "gguf", "keras"):  # which have none, and say how to go on
        with pytest.raises(FormatError, match="--dtype"):
            zoo.convert(source, tmp_path / "as-is", form)


def test_what_llama_cpp_has_no_kernels_for_is_float32(tmp_path: Path) -> None:
    """Rows that do not divide into Q8_0's blocks stay what they are, unless that is float8; float64 never does."""
    for kind, dtype in (("float8_e5m2", "q8_0"), ("float64", None)):
        source, values = stored(tmp_path / kind, kind, "gpt2")
        zoo.convert(source, tmp_path / f"{kind}-out", "gguf", dtype=dtype, verify=True)
        with open_checkpoint(tmp_path / f"{kind}-out") as file:
            assert set(file.metadata["ggml_types"].values()) <= {"F32", "Q8_0"}
            assert np.array_equal(file.read("token_embd.weight"), values["transformer.wte.weight"].astype(np.float32))


def test_float8_loads_in_a_dtype_that_models_compute_in(tmp_path: Path) -> None:
    source, values = stored(tmp_path / "in", "float8_e4m3fn")
    plain = checkpoints.copy_of(source, tmp_path / "plain")
    checkpoints.write_tensors(plain, {name: array.astype(np.float32) for name, array in values.items()})
    inputs = checkpoints.inputs_of("llama")
    wanted = checkpoints.reference(plain, "llama", inputs)["logits"]
    for options in ({}, {"dtype": "auto"}):
        model = zoo.load(source, "torch", **options)
        found = model(**inputs).logits.detach().double().numpy()
        assert np.abs(found - wanted).max() <= TOLERANCES["torch", "float32"] * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        ({"torch_dtype": "float32"}, {"torch_dtype": "bfloat16"}),
        ({"dtype": "float32", "torch_dtype": "float32"}, {"dtype": "bfloat16", "torch_dtype": "bfloat16"}),
        ({"transformers_version": "4.57.0"}, {"torch_dtype": "bfloat16"}),
        ({"transformers_version": "5.23.0"}, {"dtype": "bfloat16"}),
        ({"dtype": None}, {"dtype": "bfloat16"}),
    ],
)
def test_config_json_says_it_under_the_name_it_had(
    before: dict[str, Any], after: dict[str, Any], tmp_path: Path
) -> None:
    source = checkpoints.save(tmp_path / "in", "bert")
    config = json.loads((source / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("dtype", "transformers_version")}
    (source / "config.json").write_text(json.dumps(config | before))
    zoo.convert(source, tmp_path / "out", dtype="bfloat16")
    assert said(tmp_path / "out") == after
    zoo.convert(source, tmp_path / "same")
    assert said(tmp_path / "same") == {key: value for key, value in before.items() if "dtype" in key}
    # and a package in another dtype says its own
    zoo.load(source, "numpy", dtype="bfloat16").save(tmp_path / "package")
    assert said(tmp_path / "package") == after
    assert zoo.load(tmp_path / "package", "numpy").graph.meta["dtype"] == "bfloat16"


def test_nested_configs_say_it_too(tmp_path: Path) -> None:
    import tiny
    import transformers

    config = tiny.config("clip")
    transformers.CLIPModel(config).save_pretrained(tmp_path / "in")
    said_before = json.loads((tmp_path / "in" / "config.json").read_text())
    said_before["text_config"]["dtype"] = "float32"
    said_before["vision_config"].pop("dtype", None)
    (tmp_path / "in" / "config.json").write_text(json.dumps(said_before))
    zoo.convert(tmp_path / "in", tmp_path / "out", dtype="float16")
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (found["dtype"], found["text_config"]["dtype"]) == ("float16", "float16")
    assert "dtype" not in found["vision_config"]
