"""TensorFlow's checkpoints and SavedModels, both ways against TensorFlow itself, bit for bit; and damaged ones."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from converters import DTYPES
from converters.atomic import replacing
from converters.checkpoint import Checkpoint, MemoryCheckpoint
from zoo.errors import FormatError, SourceError, UnsafeFile, ZooError

tf = pytest.importorskip("tensorflow")
pytest.importorskip("google_crc32c")

from attacks import bundle_files  # noqa: E402

from converters.formats.tensorflow import bundle as tensor_bundle  # noqa: E402
from converters.formats.tensorflow import saved_model, sstable  # noqa: E402
from converters.formats.tensorflow.bundle import open_file, prefix_of, recognises, write  # noqa: E402

WRITABLE = sorted(DTYPES.keys() - {"float8_e8m0fnu"})


def arrays() -> dict[str, np.ndarray]:
    """One array of every dtype, and of every kind of shape and layout."""
    random_ = np.random.default_rng(0)
    base = random_.standard_normal((6, 5)).astype(np.float32)
    found = {
        "bert/embeddings/word_embeddings": base,
        "bert/embeddings/word_embeddings/adam_m": base * 2,
        "transposed": base.T,
        "strided": base[1:5, ::2],
        "big-endian": base.astype(">f4"),
        "big-endian complex": base[0].astype(">c8"),
        "scalar": np.array(3.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "ünïcode": np.ones(1, np.float32),
        "long" + "x" * 300: np.ones((1, 1, 1, 1, 1), np.float32),
    }
    return found | {name: np.arange(5).astype(DTYPES[name]) for name in WRITABLE}


def assert_holds(checkpoint: Checkpoint, expected: dict[str, np.ndarray]) -> None:
    assert checkpoint.infos.keys() == expected.keys()
    for name, array in expected.items():
        got, info = checkpoint.read(name), checkpoint.infos[name]
        assert got.shape == info.shape == array.shape, name
        assert got.dtype == DTYPES[info.dtype] == array.dtype.newbyteorder("="), name
        assert got.tobytes() == array.astype(got.dtype).tobytes(), name
        assert not got.flags.writeable


def save_v2(prefix: Path, given: dict[str, np.ndarray], slices: list[str] | None = None, names=None) -> Path:
    tensors = [tf.constant(array) for array in given.values()]
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names or list(given),
        shape_and_slices=slices or [""] * len(given),
        tensors=tensors,
    )
    return prefix


def test_reads_what_tensorflow_wrote(tmp_path):
    given = {k: v.astype(v.dtype.newbyteorder("=")) for k, v in arrays().items() if not k.endswith("fnuz")}
    prefix = save_v2(tmp_path / "model.ckpt-7", given | {"text": np.array([b"a", b"bc"], object)})
    index = tmp_path / "model.ckpt-7.index"
    assert recognises(index.read_bytes()[:512])
    for path in (prefix, index):
        with open_file(path) as checkpoint:
            assert_holds(checkpoint, given)
            assert checkpoint.path == index
            assert checkpoint.metadata["not_tensors"] == {"text": "string"}
            assert not checkpoint.read("float32").flags.owndata


@pytest.mark.parametrize("name", sorted(set(WRITABLE)))
def test_the_numbers_of_dtypes_are_tensorflows(name):
    from converters.formats.tensorflow.slices import NUMBERS

    assert tf.as_dtype(name).as_datatype_enum == NUMBERS[name]


def test_tensorflow_reads_what_we_wrote(tmp_path):
    prefix, given = tmp_path / "bert_model.ckpt", arrays()
    write(prefix, MemoryCheckpoint(given))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "bert_model.ckpt.data-00000-of-00001",
        "bert_model.ckpt.index",
    ]
    reader = tf.train.load_checkpoint(str(prefix))
    assert reader.get_variable_to_shape_map() == {name: list(array.shape) for name, array in given.items()}
    for name, array in given.items():
        if name.endswith(("fnuz", "complex")):  # TensorFlow cannot make arrays of them
            continue
        got = reader.get_tensor(name)
        got = np.asarray(got)
        assert got.shape == array.shape and got.tobytes() == array.astype(got.dtype).tobytes(), name
    with open_file(prefix) as checkpoint:
        assert_holds(checkpoint, given)
        assert all(checkpoint.read(name).ctypes.data % 64 == 0 for name in given if given[name].size)
    restored = tf.compat.v1.train.NewCheckpointReader(str(prefix)).get_tensor("bert/embeddings/word_embeddings")
    assert restored.tobytes() == given["bert/embeddings/word_embeddings"].tobytes()


def test_many_tensors_need_several_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(sstable, "BLOCK_SIZE", 1000)
    given = {f"layer_{i}/{'kernel' if i % 2 else 'bias'}": np.full(3, i, np.float32) for i in range(300)}
    write(tmp_path / "many", MemoryCheckpoint(given))
    reader = tf.train.load_checkpoint(str(tmp_path / "many"))
    assert {name: reader.get_tensor(name).tolist() for name in given} == {k: v.tolist() for k, v in given.items()}
    with open_file(tmp_path / "many") as checkpoint:
        assert_holds(checkpoint, given)


def test_writing_streams_and_may_be_atomic(tmp_path):
    (tmp_path / "a").mkdir()
    big = np.zeros((256, 1 << 16), np.float32)
    with open_file(save_v2(tmp_path / "a" / "big", {"big": big})) as checkpoint:
        tracemalloc.start()
        with replacing(tmp_path / "out") as fresh:
            fresh.mkdir()
            write(fresh / "model.index", checkpoint)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1 << 22
    with open_file(tmp_path / "out" / "model") as checkpoint:
        assert checkpoint.read("big").tobytes() == big.tobytes()


@pytest.mark.parametrize(
    ("name", "dtype", "words"),
    [("a", "float8_e8m0fnu", "no dtype"), ("", "float32", "that name"), ("x" * 5000, "float32", "that name")],
)
def test_what_cannot_be_written(name, dtype, words, tmp_path):
    with pytest.raises(FormatError, match=words):
        write(tmp_path / "m", MemoryCheckpoint({name: np.zeros(1, DTYPES[dtype])}))
    assert not list(tmp_path.iterdir())


# --- TF2: paths of attributes, with the variables' own names in the object graph ---


def test_a_module_that_tf_train_checkpoint_wrote(tmp_path):
    class Layer(tf.Module):
        def __init__(self) -> None:
            super().__init__(name="layer")
            with self.name_scope:
                self.kernel = tf.Variable(tf.random.normal((3, 4)), name="weights")
            self.steps = [tf.Variable(7, dtype=tf.int64, name="steps")]

    module = Layer()
    prefix = Path(tf.train.Checkpoint(model=module).save(str(tmp_path / "ckpt")))
    kernel = "model/kernel/.ATTRIBUTES/VARIABLE_VALUE"
    with open_file(prefix) as checkpoint:
        assert checkpoint.infos.keys() == {
            kernel,
            "model/steps/0/.ATTRIBUTES/VARIABLE_VALUE",
            "save_counter/.ATTRIBUTES/VARIABLE_VALUE",
        }
        assert checkpoint.read(kernel).tobytes() == module.kernel.numpy().tobytes()
        names = checkpoint.metadata["full_names"]
        assert names[kernel] == module.kernel.name.removesuffix(":0") == "layer/weights"
        assert names["model/steps/0/.ATTRIBUTES/VARIABLE_VALUE"] == "steps"
        assert checkpoint.metadata["not_tensors"] == {"_CHECKPOINTABLE_OBJECT_GRAPH": "string"}
    assert prefix_of(tmp_path / "checkpoint") == prefix
    with open_file(tmp_path / "checkpoint") as checkpoint:
        assert kernel in checkpoint.infos


def test_optimizer_slots_are_listed(tmp_path):
    variable = tf.Variable([1.0, 2.0], name="v")
    root = tf.train.Checkpoint(v=variable)
    optimizer = tf.compat.v1.train.AdamOptimizer()
    optimizer.apply_gradients([(tf.constant([0.5, 0.5]), variable)])
    root.optimizer = optimizer
    with open_file(Path(root.save(str(tmp_path / "ckpt")))) as checkpoint:
        slot = "v/.OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE"
        expected = optimizer.get_slot(variable, "m").numpy()
        assert checkpoint.read(slot).tobytes() == expected.tobytes()
        assert checkpoint.metadata["full_names"][slot] == "v/Adam"


def test_saved_model(tmp_path):
    module = tf.Module()
    module.kernel = tf.Variable([[1.0, 2.0]], name="dense/kernel")
    tf.saved_model.save(module, str(tmp_path / "model"))
    assert saved_model.recognises_folder(tmp_path / "model") and not saved_model.recognises_folder(tmp_path)
    for path in (tmp_path / "model", tmp_path / "model" / "saved_model.pb"):
        with saved_model.open_file(path) as checkpoint:
            assert checkpoint.read("kernel/.ATTRIBUTES/VARIABLE_VALUE").tolist() == [[1.0, 2.0]]
            assert checkpoint.metadata["full_names"] == {"kernel/.ATTRIBUTES/VARIABLE_VALUE": "dense/kernel"}
    (tmp_path / "model" / "variables" / "variables.index").unlink()
    with pytest.raises(SourceError, match="no variables"):
        saved_model.open_file(tmp_path / "model")


# --- partitioned variables, several data files, other byte orders, V1 ---


def test_partitioned_variables(tmp_path):
    whole = np.arange(4 * 200, dtype=np.float32).reshape(4, 200)
    pieces = {"a": whole[:2], "b": whole[2:, :70], "c": whole[2:, 70:]}
    slices = ["4 200 0,2:-", "4 200 2,2:0,70", "4 200 2,2:70,130"]
    save_v2(tmp_path / "part", pieces, slices, ["w", "w", "w"])
    with open_file(tmp_path / "part") as checkpoint:
        assert_holds(checkpoint, {"w": whole})


@pytest.mark.parametrize("start", [0, 1, 63, 64, 8191, 8192, 1 << 20, (1 << 20) - 1, 1 << 27])
def test_parts_at_any_offset(start, tmp_path):
    """The keys of parts encode offsets in a variable number of bytes."""
    total = start + 3
    slices = [f"{total} 0 0,{start}:-", f"{total} 0 {start},3:-"] if start else [f"{total} 0 0,3:-"]
    given = {"a": np.zeros((start, 0), np.float32), "b": np.zeros((3, 0), np.float32)}
    given = given if start else {"b": given["b"]}
    save_v2(tmp_path / "part", given, slices, ["w"] * len(given))
    with open_file(tmp_path / "part") as checkpoint:
        assert checkpoint.read("w").shape == (total, 0)


def test_several_data_files(tmp_path):
    for i in range(3):
        save_v2(tmp_path / f"s{i}", {f"v{i}": np.full(4, i, np.float32)})
    prefixes = [str(tmp_path / f"s{i}") for i in range(3)]
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=prefixes, destination_prefix=str(tmp_path / "m"))
    with open_file(tmp_path / "m") as checkpoint:
        assert_holds(checkpoint, {f"v{i}": np.full(4, i, np.float32) for i in range(3)})
    (tmp_path / "m.data-00001-of-00003").unlink()
    with pytest.raises(SourceError, match=r"m\.data-00001-of-00003"):
        open_file(tmp_path / "m")


def test_big_endian_and_compressed(tmp_path):
    """No writer of these is to be had here; the bytes are built after the specification."""
    data = np.arange(4, dtype=">f4").tobytes()
    header = bundle_files.HEADER + bundle_files.field(2, 1)
    raw = bundle_files.index({b"a": bundle_files.entry(crc=bundle_files.masked(data))}, header)
    with open_file(bundle_files.save(tmp_path, raw, data)) as checkpoint:
        assert checkpoint.read("a").tolist() == [0, 1, 2, 3]
    pairs = bundle_files.item(0, b"", bundle_files.HEADER) + bundle_files.item(0, b"a", bundle_files.entry())
    plain = bundle_files.block(pairs)
    packed = bundle_files.snappy(len(plain), bytes([60 << 2, len(plain) - 1]), plain)
    with open_file(bundle_files.save(tmp_path, bundle_files.table(packed, kind=1))) as checkpoint:
        assert checkpoint.read("a").tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("packed", "plain"),
    [
        (b"\x00", b""),
        (b"\x03\x08abc", b"abc"),
        (b"\x09\x08abc\x09\x03", b"abcabcabc"),  # a copy that overlaps itself: 6 bytes, 3 back
        (b"\x07\x08abc\x0e\x03\x00", b"abcabca"),  # the same with two bytes of offset, 4 long
        (b"\x08\x08abc\x13\x01\x00\x00\x00", b"abcccccc"),  # and with four
        (b"\x46\xf0\x44" + b"x" * 69 + b"\x01\x01"[:0] + b"", None),
    ],
)
def test_snappy(packed, plain):
    if plain is None:
        with pytest.raises(FormatError):
            sstable.unsnappy(memoryview(packed), Path("x"), 100)
    else:
        assert sstable.unsnappy(memoryview(packed), Path("x"), 100) == plain


def test_checkpoints_before_0_12(tmp_path):
    names = ["float32", "float64", "int32", "uint8", "int16", "int8", "int64", "bool", "uint16", "float16"]
    given = {name: np.arange(-1 if name[0] in "fi" else 0, 4).astype(name) for name in names}
    given |= {"complex64": np.array([1j, 2], np.complex64), "complex128": np.array([1j, 2], np.complex128)}
    given |= {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 3), np.float32)}
    given |= {"matrix": np.arange(12.0).reshape(3, 4), "bert/kernel": np.ones((2, 2), np.float32)}
    path = tmp_path / "model.ckpt"
    tf.raw_ops.Save(filename=str(path), tensor_names=list(given), data=[tf.constant(v) for v in given.values()])
    assert recognises(path.read_bytes()[:512])
    with open_file(path) as checkpoint:
        assert_holds(checkpoint, given)
        assert not checkpoint.read("matrix").flags.owndata
    whole = np.arange(300, dtype=np.int32).reshape(3, 100)
    tf.raw_ops.SaveSlices(
        filename=str(path),
        tensor_names=["w", "w"],
        shapes_and_slices=["3 100 -:0,70", "3 100 -:70,30"],
        data=[tf.constant(whole[:, :70]), tf.constant(whole[:, 70:])],
    )
    with open_file(path) as checkpoint:
        assert_holds(checkpoint, {"w": whole})


def test_damage_to_a_checkpoint_before_0_12(tmp_path):
    """Damage that keeps the blocks' checksums: entries that lie."""
    b = bundle_files
    meta = b.field(1, b"w") + b.field(2, b.shape(4)) + b.field(3, 1) + b.field(4, b.field(1, b""))
    key = b"\0w\0\1\1\1\x80\x7f"
    part = b.field(2, b.field(1, b"w") + b.field(3, b.field(5, bytes(16))))

    def attempt(meta: bytes, value: bytes = part, key: bytes = key) -> list:
        items = b.item(0, b"", b.field(1, b.field(1, meta))) + b.item(0, key, value)
        (tmp_path / "m").write_bytes(b.table(b.block(items)))
        with open_file(tmp_path / "m") as checkpoint:
            return checkpoint.read("w").tolist()

    assert attempt(meta) == [0, 0, 0, 0]
    huge = b.field(1, b"w") + b.field(2, b.shape(1 << 50)) + b.field(3, 9) + b.field(4, b.field(1, b""))
    ints = b.field(1, b"w") + b.field(2, b.shape(4)) + b.field(3, 9) + b.field(4, b.field(1, b""))
    for bad in [
        {"meta": meta, "key": b"\0x\0\1\1\1\x80\x7f"},
        {"meta": meta, "value": b""},
        {"meta": meta, "value": b.field(2, b.field(3, b.field(5, bytes(12))))},
        {"meta": huge},
        {"meta": huge, "value": b.field(2, b.field(3, b.field(10, bytes(16))))},
        {"meta": ints, "value": b.field(2, b.field(3, b.field(10, bytes(5))))},
        {"meta": ints, "value": b.field(2, b.field(3, b.field(10, b"\xff" * 5)))},
        {"meta": b.field(1, b"w") + b.field(2, b.shape(4)) + b.field(3, 1)},
    ]:
        with pytest.raises(FormatError):
            attempt(**bad)


# --- damaged and hostile ---


@pytest.mark.parametrize("case", bundle_files.BROKEN)
def test_broken_files(case, tmp_path):
    data, words = bundle_files.BROKEN[case]
    path = bundle_files.save(tmp_path, data() if callable(data) else data)
    tracemalloc.start()
    with pytest.raises(FormatError, match=words) as caught:
        open_file(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(tmp_path) in str(caught.value) or "m.data" in str(caught.value)
    assert peak < 1 << 25


def test_a_damaged_tensor_is_found_when_it_is_read(tmp_path):
    save_v2(tmp_path / "m", {"a": np.arange(100.0), "b": np.ones(3)})
    data = tmp_path / "m.data-00000-of-00001"
    raw = bytearray(data.read_bytes())
    raw[50] ^= 4
    data.write_bytes(raw)
    with open_file(tmp_path / "m") as checkpoint:
        assert checkpoint.read("b").tolist() == [1, 1, 1]
        with pytest.raises(FormatError, match="checksum") as caught:
            checkpoint.read("a")
        assert "tensor 'a'" in str(caught.value)
    data.write_bytes(raw[:-1])
    with pytest.raises(FormatError, match="outside its data file"):
        open_file(tmp_path / "m")


def test_missing_files(tmp_path):
    with pytest.raises(SourceError):
        open_file(tmp_path / "nothing")
    bundle_files.save(tmp_path, bundle_files.GOOD, None)
    with pytest.raises(SourceError, match=r"m\.data-00000-of-00001"):
        open_file(tmp_path / "m.index")
    (tmp_path / "other").write_bytes(bundle_files.GOOD)
    with pytest.raises(FormatError, match="does not end"):
        open_file(tmp_path / "other")


@pytest.mark.parametrize("name", ["../m", "a/../../m", "..", "", "sub/m", "..\\m"])
def test_the_text_file_stays_in_its_folder(name, tmp_path):
    bundle_files.save(tmp_path, bundle_files.GOOD)
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\n')
    with pytest.raises(UnsafeFile, match="leads out"):
        open_file(tmp_path / "checkpoint")


@pytest.mark.parametrize("name", ["m", "/elsewhere/m", "C:\\elsewhere\\m"])
def test_the_text_file_finds_the_latest(name, tmp_path):
    bundle_files.save(tmp_path, bundle_files.GOOD)
    text = f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "x"\n'
    (tmp_path / "checkpoint").write_text(text)
    assert recognises(text.encode())
    with open_file(tmp_path / "checkpoint") as checkpoint:
        assert list(checkpoint.infos) == ["a"]
    (tmp_path / "checkpoint").write_text("nothing")
    with pytest.raises(FormatError, match="names no checkpoint"):
        tensor_bundle.open_file(tmp_path / "checkpoint")


def test_random_damage_gives_only_our_errors(tmp_path):
    """Damage in the index with its checksums made good again: the parser must stand alone."""
    random_, refused = random.Random(0), 0
    pairs = bundle_files.item(0, b"", bundle_files.HEADER) + bundle_files.item(0, b"a", bundle_files.entry())
    for _ in range(400):
        raw = bytearray(bundle_files.block(pairs))
        for _ in range(random_.choice([1, 1, 2, 8])):
            raw[random_.randrange(len(raw))] = random_.randrange(256)
        path = bundle_files.save(tmp_path, bundle_files.table(bytes(raw)))
        try:
            with open_file(path) as checkpoint:
                for _, array in checkpoint.items():
                    array.tobytes()
        except ZooError:
            refused += 1
    assert refused >= 310
