"""zoo convert --raw: tensors alone, of any format that is read, under the names that they have there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.numpy
import torch  # before tensorflow

import zoo
from zoo.errors import ConfigError, VerifyError


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "dense/kernel": rng.normal(size=(3, 4)).astype(np.float32),
        "dense/bias": rng.normal(size=4).astype(np.float16),
        "steps": np.array([7, 8], np.int64),
    }


def written(folder: Path, form: str) -> dict[str, np.ndarray]:
    """What a library of its own reads."""
    if form == "npz":
        with np.load(folder / "model.npz") as found:
            return dict(found)
    if form == "torch":
        return {name: tensor.numpy() for name, tensor in torch.load(folder / "pytorch_model.bin").items()}
    return safetensors.numpy.load_file(folder / "model.safetensors")


def assert_alone(folder: Path, form: str, expected: dict[str, np.ndarray]) -> None:
    found = written(folder, form)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape, found[name].tobytes()) == (
            array.dtype,
            array.shape,
            array.tobytes(),
        )
    assert len(list(folder.iterdir())) == 2 and (folder / "conversion.json").is_file()


@pytest.mark.parametrize("form", ["safetensors", "npz", "torch"])
def test_a_users_hdf5_file(form: str, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "user.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
    done = zoo.convert(tmp_path / "user.h5", tmp_path / "out", form, raw=True, verify=True)
    assert_alone(tmp_path / "out", form, arrays)
    assert done.verified == "every tensor" and done.names == {name: name for name in done.names}
    assert zoo.verify_conversion(tmp_path / "user.h5", tmp_path / "out") == "every tensor"


@pytest.mark.parametrize("file", ["m.keras", "m.weights.h5"])
def test_a_model_of_keras(file: str, tmp_path: Path) -> None:
    import keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.BatchNormalization()])
    (model.save if file == "m.keras" else model.save_weights)(tmp_path / file)
    zoo.convert(tmp_path / file, tmp_path / "out", "npz", raw=True, verify=True)
    found = written(tmp_path / "out", "npz")
    expected = sorted(np.asarray(value).tobytes() for value in model.get_weights())
    assert sorted(array.tobytes() for array in found.values()) == expected


def test_an_object_graph_of_tensorflow(tmp_path: Path) -> None:
    import tensorflow as tf

    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    tf.train.Checkpoint(layer=tf.train.Checkpoint(kernel=tf.Variable(values))).save(str(tmp_path / "tf" / "ckpt"))
    for number, source in enumerate((tmp_path / "tf", tmp_path / "tf" / "ckpt-1", tmp_path / "tf" / "ckpt-1.index")):
        zoo.convert(source, tmp_path / f"out{number}", "safetensors", raw=True, verify=True)
        found = written(tmp_path / f"out{number}", "safetensors")
        assert np.array_equal(found["layer/kernel/.ATTRIBUTES/VARIABLE_VALUE"], values)


def test_orbax(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    pytest.importorskip("tensorstore")
    from converters.checkpoint import MemoryCheckpoint
    from converters.formats import orbax

    orbax.write(tmp_path / "tree", MemoryCheckpoint(arrays))
    zoo.convert(tmp_path / "tree", tmp_path / "out", "npz", raw=True, verify=True)
    assert_alone(tmp_path / "out", "npz", arrays)


def test_what_a_model_could_not_be_converted_from(tmp_path: Path) -> None:
    """Quantised tensors, and an adapter, keep their names and dtypes."""
    tensors = {
        "q_proj.qweight": np.arange(12, dtype=np.int32).reshape(3, 4),
        "q_proj.scales": np.ones(3, np.float16),
        "q_proj.lora_A.weight": np.ones((2, 3), np.float32),
    }
    safetensors.numpy.save_file(tensors, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    zoo.convert(tmp_path / "adapter_model.safetensors", tmp_path / "out", raw=True, verify=True)
    assert_alone(tmp_path / "out", "safetensors", tensors)


def test_a_dtype_rounds_numbers_alone(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    zoo.convert(tmp_path / "a.npz", tmp_path / "out", raw=True, dtype="float16", verify=True)
    expected = {name: array if array.dtype == np.int64 else array.astype(np.float16) for name, array in arrays.items()}
    assert_alone(tmp_path / "out", "safetensors", expected)


def test_shards_and_a_dry_run(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    done = zoo.convert(tmp_path / "a.npz", tmp_path / "dry", raw=True, dry_run=True)
    assert not (tmp_path / "dry").exists() and set(done.names) == set(arrays)
    zoo.convert(tmp_path / "a.npz", tmp_path / "out", raw=True, shard_size=30, verify=True)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(arrays) and len(set(index["weight_map"].values())) > 1


def test_verify_notices_a_changed_tensor(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    zoo.convert(tmp_path / "a.npz", tmp_path / "out", raw=True)
    safetensors.numpy.save_file({**arrays, "steps": arrays["steps"] + 1}, tmp_path / "out" / "model.safetensors")
    with pytest.raises(VerifyError, match="steps"):
        zoo.verify_conversion(tmp_path / "a.npz", tmp_path / "out")
    safetensors.numpy.save_file({"steps": arrays["steps"]}, tmp_path / "out" / "model.safetensors")
    with pytest.raises(VerifyError, match="dense"):
        zoo.verify_conversion(tmp_path / "a.npz", tmp_path / "out")


@pytest.mark.parametrize("options", [{"to": "flax"}, {"to": "gguf"}, {"task": "fill-mask"}, {"dtype": "q8_0"}])
def test_what_goes_not_with_tensors_alone(
    options: dict[str, Any], arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ConfigError):
        zoo.convert(tmp_path / "a.npz", tmp_path / "out", raw=True, **options)
    assert not (tmp_path / "out").exists()


def test_without_a_config_the_error_says_so(
    arrays: dict[str, np.ndarray], run: Callable[..., Any], tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    code, _, err = run("convert", tmp_path / "a.npz", tmp_path / "out")
    assert code == 2 and "--raw" in err
    (tmp_path / "config.json").write_text('{"layers": 3}')
    code, _, err = run("convert", tmp_path / "a.npz", tmp_path / "out")
    assert code == 2 and "--raw" in err and "model_type" in err and "newer transformers" not in err
    code, out, err = run("convert", tmp_path / "a.npz", tmp_path / "out", "--raw", "--verify", "--to", "npz")
    assert code == 0 and "every tensor compared" in out
    assert_alone(tmp_path / "out", "npz", arrays)
