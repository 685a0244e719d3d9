"""TensorFlow.js models: every weight bit for bit, dequantised as TensorFlow.js does it, hostile manifests refused."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.formats.tensorflow import tfjs
from zoo.errors import FormatError, SourceError, UnsafeFile, ZooError


def entry(name: str, array: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "dtype": str(array.dtype), **more}


def model(folder: Path, groups: Any, shards: dict[str, bytes] | None = None, **more: Any) -> Path:
    for name, data in (shards or {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    path = folder / "model.json"
    path.write_text(json.dumps({"format": "layers-model", **more, "weightsManifest": groups}))
    return path


def arrays() -> dict[str, np.ndarray]:
    kinds = ("float32", "int32", "complex64", "uint8", "uint16", "float16")
    found = {f"kind/{name}": np.arange(6).reshape(2, 3).astype(name) for name in kinds}
    found |= {"bool": np.array([True, False, True]), "0d": np.array(2.5, np.float32), "empty": np.zeros((0, 3), "f4")}
    return found | {"last": np.linspace(0, 1, 50, dtype=np.float32)}


@pytest.mark.parametrize("size", [7, 64, 10_000])
def test_reads_every_dtype_across_shards(size, tmp_path):
    values = arrays()
    data = b"".join(value.tobytes() for value in values.values())
    shards = {f"group1-shard{i}.bin": data[at : at + size] for i, at in enumerate(range(0, len(data), size))}
    other = np.arange(3, dtype=np.int32)
    groups = [{"paths": list(shards), "weights": [entry(*item) for item in values.items()]}]
    groups += [{"paths": ["sub/group2"], "weights": [entry("other", other)]}, {"paths": ["none"], "weights": []}]
    shards |= {"sub/group2": other.tobytes(), "none": b""}
    path = model(tmp_path, groups, shards, generatedBy="keras", modelTopology={"a": [1]}, signature={"x": 1})
    assert tfjs.recognises(path.read_bytes()[:512])
    with tfjs.open_file(path) as checkpoint:
        assert list(checkpoint.infos) == [*values, "other"]
        for name, value in (values | {"other": other}).items():
            array = checkpoint.read(name)
            assert array.dtype == value.dtype and array.shape == value.shape == checkpoint.infos[name].shape, name
            assert array.tobytes() == value.tobytes() and not array.flags.writeable, name
        whole = size > len(data)
        assert np.shares_memory(checkpoint.read("last"), checkpoint.read("last")) == whole
        assert checkpoint.metadata == {"format": "layers-model", "generatedBy": "keras", "modelTopology": '{"a": [1]}'}
        array = checkpoint.read("last")
    assert array.tobytes() == values["last"].tobytes()
    with pytest.raises(SourceError, match="closed"):
        checkpoint.read("last")


# sha256 of what decodeWeights of @tensorflow/tfjs-core 4.22.0 gives for the bytes and numbers below.
DEQUANTISED = {
    "u8": "8adad08dfbd4d0dab7eccea16a78e51c5913cc8e4b8583d7e9f4f8e382b04887",
    "u16": "c8e9f65d1c187cc53576a03474a82d57c713f25cb8b3491f8f6f93c2ff77f0ad",
    "i8": "f9b86c89f36c5fee104ff507ba45e7a026f03f6486cbac815481cfb4929a64ec",
    "i16": "e7a92bb120264969d61f8898536a282770f6155dc24b12f383bbe4e4f46857d6",
    "f16": "3d0abb528e93e510c90d963cd94caf02dc63f2ba68cc4965a50e667f6142dc53",
}


def test_dequantises_as_tensorflow_js_does(tmp_path):
    u8 = bytes(range(256))
    u16 = np.array([i * 257 + i % 7 & 0xFFFF for i in range(256)], "<u2").tobytes()
    halves = [0, 0x8000, 1, 0x3FF, 0x400, 0x3C00, 0xBC00, 0x7BFF, 0x7C00, 0xFC00, 0x3555, 0x83FF]
    f16 = np.array(halves, "<u2").tobytes()
    quantised = {
        "u8": ([256], "float32", {"dtype": "uint8", "scale": 0.0123456789, "min": -1.3579}),
        "u16": ([16, 16], "float32", {"dtype": "uint16", "scale": 3.21e-5, "min": 0.7}),
        "i8": ([256], "int32", {"dtype": "uint8", "scale": 0.5, "min": -63}),
        "i16": ([256], "int32", {"dtype": "uint16", "scale": 1.7, "min": -40000.25}),
        "f16": ([12], "float32", {"dtype": "float16"}),
        "none": ([0, 2], "float32", {"dtype": "uint8", "scale": 1, "min": 0}),
        "0d": ([], "int32", {"dtype": "uint8", "scale": 2, "min": 0}),
    }
    weights = [{"name": n, "shape": s, "dtype": d, "quantization": q} for n, (s, d, q) in quantised.items()]
    data = u8 + u16 + u8 + u16 + f16 + b"\x15"
    path = model(tmp_path, [{"paths": ["a", "b"], "weights": weights}], {"a": data[:300], "b": data[300:]})
    with tfjs.open_file(path) as checkpoint:
        for name, (shape, dtype, _) in quantised.items():
            array = checkpoint.read(name)
            assert list(array.shape) == shape and array.dtype == dtype == checkpoint.infos[name].dtype
            assert checkpoint.infos[name].nbytes == array.nbytes
            if name in DEQUANTISED:
                assert hashlib.sha256(array.tobytes()).hexdigest() == DEQUANTISED[name], name
        assert checkpoint.read("0d") == 42


def test_integers_that_do_not_fit(tmp_path):
    weight = entry("a", np.zeros(2, np.int32), quantization={"dtype": "uint8", "scale": 1e9, "min": 0})
    groups = [{"paths": ["a"], "weights": [weight]}]
    with tfjs.open_file(model(tmp_path, groups, {"a": b"\1\2"})) as checkpoint:
        assert checkpoint.read("a").tolist() == [10**9, 2 * 10**9]
    with (
        tfjs.open_file(model(tmp_path, groups, {"a": b"\1\3"})) as checkpoint,
        pytest.raises(FormatError, match=r"int32(.|\n)*'a'"),
    ):
        checkpoint.read("a")


def test_a_large_topology_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(tfjs, "MAX_TOPOLOGY", 10)
    groups = [{"paths": ["a"], "weights": [entry("a", np.zeros(1, np.uint8))]}]
    with tfjs.open_file(model(tmp_path, groups, {"a": b"\0"}, modelTopology={"layers": [1, 2, 3]})) as checkpoint:
        assert checkpoint.metadata == {"format": "layers-model"}


def test_a_shard_that_changes(tmp_path):
    groups = [{"paths": ["a"], "weights": [entry("a", np.zeros(4, np.uint8))]}]
    with tfjs.open_file(model(tmp_path, groups, {"a": bytes(4)})) as checkpoint:
        (tmp_path / "a").write_bytes(bytes(3))
        with pytest.raises(FormatError, match="changed"):
            checkpoint.read("a")


# --- hostile manifests; the folder has shards "a" of 8 bytes and "b" of 4 ---


def one(**changes: Any) -> list[Any]:
    weight = {"name": "w", "shape": [2], "dtype": "float32"} | changes
    return [{"paths": ["a"], "weights": [{k: v for k, v in weight.items() if v is not ...}]}]


def quantised(dtype: str = "float32", **said: Any) -> list[Any]:
    return one(shape=[8], dtype=dtype, quantization={"dtype": "uint8", "scale": 1, "min": 0} | said)


W = {"name": "w", "shape": [2], "dtype": "float32"}
HOSTILE = {
    "no manifest": (None, "no weightsManifest"),
    "empty manifest": ([], "no weightsManifest"),
    "a manifest of text": ("a", "no weightsManifest"),
    "a group of text": (["a"], "no paths or weights"),
    "no paths": ([{"weights": [W]}], "no paths or weights"),
    "no weights": ([{"paths": ["a"]}], "no paths or weights"),
    "paths of numbers": ([{"paths": [1], "weights": [W]}], "no paths or weights"),
    "missing shards": ([{"paths": ["a", "x", "y"], "weights": [W]}], "2 of 3 shards are missing"),
    "a folder as a shard": ([{"paths": ["folder"], "weights": [W]}], "missing"),
    "a shard twice": ([{"paths": ["a", "a"], "weights": [W]}], "twice"),
    "a shard in two groups": ([{"paths": ["a"], "weights": [W]}] * 2, "twice"),
    "a weight twice": (
        [{"paths": ["a"], "weights": [W]}, {"paths": ["b"], "weights": [W | {"shape": [1]}]}],
        "two weights are named 'w'",
    ),
    "a weight of text": ([{"paths": ["a"], "weights": ["w"]}], "no name"),
    "no name": (one(name=...), "no name"),
    "no shape": (one(shape=...), "list of sizes"),
    "no dtype": (one(dtype=...), "dtype"),
    "a list as dtype": (one(dtype=[1]), "dtype"),
    "strings": (one(dtype="string"), "dtype"),
    "int64": (one(dtype="int64"), "dtype"),
    "too long": (one(shape=[3]), "longer or shorter"),
    "too short": (one(shape=[1]), "longer or shorter"),
    "huge": (one(shape=[1 << 50]), "longer or shorter"),
    "overflow": (one(shape=[1 << 62, 1 << 62]), "list of sizes"),
    "negative": (one(shape=[-1, -2]), "list of sizes"),
    "fractions": (one(shape=[2.0]), "list of sizes"),
    "unknown quantisation": (one(quantization={"dtype": "int8", "scale": 1, "min": 0}), "quantisation"),
    "quantisation of bool": (one(shape=[8], dtype="bool", quantization={"dtype": "uint8"}), "quantisation"),
    "quantisation of text": (one(quantization="uint8"), "quantisation"),
    "no scale": (quantised(scale=None), "quantisation"),
    "scale of text": (quantised(scale="1"), "quantisation"),
    "scale of NaN": (quantised(scale=float("nan")), "quantisation"),
    "min of infinity": (quantised(min=float("-inf")), "quantisation"),
    "min beyond float64": (quantised(min=10**400), "quantisation"),
    "float16 of int32": (one(dtype="int32", quantization={"dtype": "float16"}), "quantisation"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_manifests(case, tmp_path):
    groups, words = HOSTILE[case]
    (tmp_path / "folder").mkdir()
    refused(model(tmp_path, groups, {"a": bytes(8), "b": bytes(4)}), words)


def refused(path: Path, words: str, error: type[ZooError] = FormatError) -> None:
    tracemalloc.start()
    with pytest.raises(error, match=words) as caught:
        tfjs.open_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path.parent) in str(caught.value) and peak < 64 << 20


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "x/../../a", "..\\a", "C:\\a", "", "a\0b", "link"])
def test_shards_stay_in_the_folder(name, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "a").write_bytes(bytes(8))
    (folder / "link").symlink_to(tmp_path / "a")
    refused(model(folder, [{"paths": [name], "weights": [W]}]), "leads out|link", UnsafeFile)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("<html>", "web page"),
        ("version https://git-lfs.github.com/spec/v1", "LFS"),
        ('{"weightsManifest": [', "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"weightsManifest": [], "weightsManifest": []}', "duplicate"),
        ('{"weightsManifest": ' + "[" * 100_000, "not valid JSON"),
        ('{"weightsManifest": ' + "[" + "[]," * 1_000_000 + "[]]}", "too long"),
        ('{"weightsManifest": ["' + "x" * (1 << 23) + '"]}', "too long"),
        ('{"weightsManifest": [{}' + ', {"":1}' * 130_000 + "]}", "no paths or weights"),
    ],
    ids=range(10),
)
def test_broken_json(text, words, tmp_path):
    path = tmp_path / "model.json"
    path.write_text(text)
    refused(path, words)
    with pytest.raises(SourceError):
        tfjs.open_file(tmp_path / "missing.json")


def test_recognises():
    assert tfjs.recognises(b'{"format": "layers-model", "modelTopology": {')
    assert tfjs.recognises(b'\xef\xbb\xbf {"weightsManifest":[')
    for head in (b"", b"{}", b'["modelTopology"]', b'{"weight_map": {', b'{"architectures": ["BertModel"]'):
        assert not tfjs.recognises(head)
