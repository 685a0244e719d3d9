"""zoo convert: any form into any other and back without a changed bit, and what it refuses.

The checkpoints are those that transformers 4.57 wrote for torch, TensorFlow and Flax, and one of llama2.c.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import shutil
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import msgpack as msgpack_library
import numpy as np
import pytest
import safetensors.numpy
from conftest import FIXTURES
from tolerances import TOLERANCES

import zoo
from converters import open_checkpoint
from converters.checkpoint import Checkpoint, MemoryCheckpoint
from converters.targets import TARGETS
from zoo.arrays import numpy_dtype, to_numpy
from zoo.convert import Conversion, convert
from zoo.errors import ConfigError, FormatError, SourceError, VerifyError, WeightsError, ZooError

TRIPLES = ("bert-mlm", "roberta-cls", "gpt2", "t5", "vit", "resnet")
LLAMA = "llama"
FAMILIES = (*TRIPLES, LLAMA)
FORMS = (
    "safetensors",
    "torch",
    "tf-h5",
    "flax",
    "npz",
    "keras-model",
    *(["orbax"] if importlib.util.find_spec("tensorstore") else []),
)
MADE = [(f, form) for f in FAMILIES for form in FORMS if (f, form) != (LLAMA, "tf-h5")]
"""What is tried; transformers 4 has no Llama for TensorFlow."""
BACKENDS = ("torch", "jax", "tensorflow", "keras", "numpy")
SHARDED = ("safetensors", "torch", "tf-h5", "flax")
LIMIT = 20_000  # bytes: a few shards of these models

# bert-mlm, and one of its tensors
NAME = "bert.encoder.layer.0.output.dense.weight"

Bits = dict[str, tuple[str, tuple[int, ...], bytes]]


def by_family(*rows: tuple[Any, ...]) -> list[Any]:
    """Parameters whose first one is a family: one process has all of a family, so its graph is captured once."""
    return [pytest.param(*row, marks=pytest.mark.xdist_group(row[0]), id="-".join(map(str, row))) for row in rows]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """(family, form) -> a folder with it, converted from the checkpoint of torch or llama2.c; once per process."""
    root = tmp_path_factory.mktemp("made")

    @functools.cache
    def make(family: str, form: str) -> Path:
        convert(source(family), root / family / form, form)
        return root / family / form

    return make


@pytest.fixture
def bert() -> Path:
    """The masked language model as transformers wrote it for torch."""
    return source("bert-mlm")


def often_enough(family: str, *forms: str) -> bool:
    """Orbax is a folder of many files, each flushed to the disk, in Flax's names and layouts; .keras is a HDF5 file in
    an archive: with every other form for a model of text and one of images, with safetensors for all.
    """
    return not {"orbax", "keras-model"} & set(forms) or "safetensors" in forms or family in ("bert-mlm", "resnet")


def source(family: str, framework: str = "torch") -> Path:
    return FIXTURES / family / (framework if family != LLAMA else "model.bin")


def bits(folder: Path) -> Bits:
    """Every tensor of a checkpoint, by name, as dtype, shape and bytes."""
    with open_checkpoint(folder) as checkpoint:
        return {
            name: (str(array.dtype), array.shape, np.ascontiguousarray(array).tobytes())
            for name, array in checkpoint.items()
        }


def changed(folder: Path, to: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> Path:
    """A copy of a checkpoint whose tensors `change` has altered."""
    shutil.copytree(folder, to)
    arrays = safetensors.numpy.load_file(to / "model.safetensors")
    change(arrays)
    safetensors.numpy.save_file(arrays, to / "model.safetensors")
    return to


def inputs_of(family: str, model: zoo.Model) -> dict[str, np.ndarray]:
    if family == LLAMA:
        return {"input_ids": np.random.default_rng(0).integers(3, 440, (2, 9))}
    with np.load(FIXTURES / family / "inputs.npz") as file:
        return {item.name: file[item.name] for item in model.graph.inputs if item.name in file}


def assert_reproduces(model: zoo.Model, family: str, backend: str) -> None:
    """The model computes what torch did, at positions that are not padding."""
    inputs = inputs_of(family, model)
    found = model(**inputs)
    mask = inputs.get("attention_mask")
    with np.load(FIXTURES / family / "torch_out.npz") as file:
        expected = dict(file)
    assert set(expected) <= set(found)
    for name, wanted in expected.items():
        got = to_numpy(found[name]).astype(np.float64)
        assert got.shape == wanted.shape, name
        if mask is not None and mask.shape == got.shape[:2]:
            got, wanted = got[mask == 1], wanted[mask == 1]
        assert np.abs(got - wanted).max() <= TOLERANCES[backend, "float32"] * np.abs(wanted).max(), name


# --- there and back ---


@pytest.mark.parametrize(
    ("family", "form", "other"),
    by_family(*((f, a, b) for f, a in MADE for g, b in MADE if f == g and a != b and often_enough(f, a, b))),
)
def test_every_form_becomes_every_other(
    family: str, form: str, other: str, made: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """Out of any form the same tensors come, bit for bit, as out of the original.

    As that holds for (A, B) and for (B, A), A -> B -> A gives A again: each of the 30 round trips is two of these.
    """
    direct = made(family, other)
    convert(made(family, form), tmp_path / "out", other)
    assert bits(tmp_path / "out") == bits(direct)


@pytest.mark.parametrize(("family", "form"), by_family(*MADE))
def test_there_and_back_from_the_original(
    family: str, form: str, made: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """Every tensor that transformers wrote, and only those, comes back; what torch computes itself is left out."""
    there = made(family, form)
    back = convert(there, tmp_path / "back", "safetensors")
    first = bits(made(LLAMA, "safetensors") if family == LLAMA else source(family))
    first = {name: value for name, value in first.items() if not name.endswith(("num_batches_tracked", "position_ids"))}
    assert bits(tmp_path / "back") == first and back.folder == tmp_path / "back"


@pytest.mark.parametrize(("family", "form"), by_family(*MADE))
def test_each_form_loads_and_computes_the_same(family: str, form: str, made: Callable[[str, str], Path]) -> None:
    model = zoo.load(made(family, form), "numpy")
    if family != LLAMA:
        assert_reproduces(model, family, "numpy")
        return
    inputs = inputs_of(family, model)
    original = zoo.load(source(family), "numpy")
    assert all(np.array_equal(original.params[name], value) for name, value in model.params.items())
    # a matrix that lies otherwise in memory may be summed in another order
    expected = original(**inputs)
    for name, value in model(**inputs).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-12 * np.abs(expected[name]).max())


# --- files of TensorFlow and Flax ---


@pytest.mark.parametrize(("family", "backend"), by_family(*((f, backend) for f in TRIPLES for backend in BACKENDS)))
def test_files_of_tensorflow_and_flax_load_on_every_backend(family: str, backend: str) -> None:
    """Both give the backend the same parameters, and they compute what torch did."""
    tf, flax = (zoo.load(source(family, framework), backend) for framework in ("tf", "flax"))
    assert set(tf.params) == set(flax.params)
    for name, value in tf.params.items():
        assert np.array_equal(to_numpy(value), to_numpy(flax.params[name])), name
    assert_reproduces(tf, family, backend)


@pytest.mark.parametrize("family", by_family(*((f,) for f in TRIPLES)))
def test_writes_the_tensors_that_tensorflow_wrote(family: str, made: Callable[[str, str], Path]) -> None:
    """The same layers, the same weights in each, the same bits; read by h5py."""
    theirs = keras_tensors(source(family, "tf") / "tf_model.h5")
    ours = keras_tensors(made(family, "tf-h5") / "tf_model.h5")
    assert list(ours) and set(ours) == set(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype and ours[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("family", by_family(*((f,) for f in TRIPLES)))
def test_writes_the_tensors_that_flax_wrote(family: str, made: Callable[[str, str], Path]) -> None:
    """The same tree, the same bits; read by the msgpack library."""
    theirs = flax_tensors(source(family, "flax") / "flax_model.msgpack")
    ours = flax_tensors(made(family, "flax") / "flax_model.msgpack")
    assert list(ours) and set(ours) == set(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype and ours[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("family", by_family(("bert-mlm",), ("resnet",)))
def test_keras_opens_an_archive(family: str, made: Callable[[str, str], Path], tmp_path: Path) -> None:
    """keras.saving.load_model makes the whole model of the one file; so does zoo.load, with no config beside it."""
    keras = pytest.importorskip("keras")
    import zoo.backends.keras  # registers the class

    path = made(family, "keras-model") / "model.keras"
    model = keras.saving.load_model(path)
    inputs = inputs_of(family, zoo.load(source(family), "numpy"))
    found = {name: np.asarray(keras.ops.convert_to_numpy(value)) for name, value in model(inputs).items()}
    with np.load(FIXTURES / family / "torch_out.npz") as file:
        mask = inputs.get("attention_mask", np.ones(1))
        for name, wanted in file.items():
            kept = mask == 1 if mask.shape == wanted.shape[:2] else ...
            worst = np.abs(found[name][kept] - wanted[kept]).max()
            assert worst <= TOLERANCES["keras", "float32"] * np.abs(wanted[kept]).max(), name
    alone = shutil.copy(path, tmp_path / "alone.keras")
    assert_reproduces(zoo.load(alone, "numpy"), family, "numpy")


def test_an_archive_whose_graph_is_damaged(made: Callable[[str, str], Path], tmp_path: Path) -> None:
    path = made("bert-mlm", "keras-model") / "model.keras"
    with zipfile.ZipFile(path) as good, zipfile.ZipFile(tmp_path / "bad.keras", "w") as bad:
        for name in good.namelist():
            text = good.read(name)
            bad.writestr(name, text.replace(b"layer_norm", b"evil_norm") if name == "config.json" else text)
    with pytest.raises(ZooError, match=r"evil|op"):
        zoo.load(tmp_path / "bad.keras", "numpy")


def keras_tensors(path: Path) -> dict[str, np.ndarray]:
    """A file of Keras 2 by its own lists; whatever no list has is missing here."""
    with h5py.File(path) as file:
        assert "keras_version" in file.attrs and file.attrs["backend"] in (b"tensorflow", "tensorflow")
        layers = {name: texts(file[name], "weight_names") for name in texts(file, "layer_names")}
        return {f"{layer}/{name}": file[layer][name][()] for layer, names in layers.items() for name in names}


def texts(group: h5py.Group, key: str) -> list[str]:
    """A list of texts, whether it is stored as bytes, as Keras does, or as text, as h5py does."""
    return [item.decode() if isinstance(item, bytes) else str(item) for item in group.attrs[key]]


def flax_tensors(path: Path) -> dict[str, np.ndarray]:
    def array(code: int, data: bytes) -> np.ndarray:
        assert code == 1
        shape, dtype, raw = msgpack_library.unpackb(data, raw=True)
        return np.frombuffer(raw, dtype.decode()).reshape(shape)

    def flat(tree: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
        for key, value in tree.items():
            yield from flat(value, f"{path}{key}/") if isinstance(value, dict) else [(path + key, value)]

    return dict(flat(msgpack_library.unpackb(path.read_bytes(), ext_hook=array)))


# --- shards and dtypes ---


@pytest.mark.parametrize("form", SHARDED)
def test_shards(form: str, bert: Path, made: Callable[[str, str], Path], tmp_path: Path) -> None:
    """Several files below the limit and an index, which read as the one file does."""
    convert(bert, tmp_path / "out", form, shard_size=LIMIT, verify=True)
    stem, suffix = TARGETS[form].file.split(".", 1)
    shards = sorted(tmp_path.glob(f"out/{stem}-*.{suffix}"))
    assert len(shards) > 2 and shards[0].name == f"{stem}-00001-of-{len(shards):05d}.{suffix}"
    assert not (tmp_path / "out" / TARGETS[form].file).exists()
    index = json.loads((tmp_path / "out" / f"{TARGETS[form].file}.index.json").read_text())
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert set(checkpoint.infos) == set(index["weight_map"])
        assert index["metadata"]["total_size"] == sum(info.nbytes for info in checkpoint.infos.values())
        for shard in shards:
            inside = [info.nbytes for info in checkpoint.infos.values() if info.file == shard]
            assert sum(inside) <= LIMIT or len(inside) == 1
    assert_reproduces(zoo.load(tmp_path / "out", "numpy"), "bert-mlm", "numpy")
    convert(tmp_path / "out", tmp_path / "back", "safetensors")
    assert bits(tmp_path / "back") == bits(made("bert-mlm", "safetensors"))


def test_shards_of_tensorflow_list_their_tensors(bert: Path, tmp_path: Path) -> None:
    """transformers 4 reads what the root's layer_names lists: in shards, the datasets themselves."""
    convert(bert, tmp_path / "out", "tf-h5", shard_size=LIMIT)
    for path in tmp_path.glob("out/*.h5"):
        with h5py.File(path) as file:
            found: list[str] = []
            file.visititems(lambda name, item, found=found: found.append(name) if hasattr(item, "shape") else None)
            assert sorted(texts(file, "layer_names")) == sorted(found) and set(file.attrs) == {"layer_names"}


def test_a_large_limit_makes_one_file(bert: Path, tmp_path: Path) -> None:
    convert(bert, tmp_path / "out", shard_size=10**9)
    assert not list(tmp_path.glob("out/*.index.json")) and (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("form", FORMS)
def test_dtypes_round_as_numpy_does(
    form: str, dtype: str, bert: Path, made: Callable[[str, str], Path], tmp_path: Path
) -> None:
    convert(bert, tmp_path / "out", form, dtype=dtype, verify=True)
    with open_checkpoint(made("bert-mlm", form)) as exact, open_checkpoint(tmp_path / "out") as rounded:
        assert set(exact.infos) == set(rounded.infos)
        for name, value in exact.items():
            wanted = value.astype(numpy_dtype(dtype))
            found = rounded.read(name)
            assert found.dtype == wanted.dtype and found.tobytes() == wanted.tobytes(), name


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16", "q8_0"])
def test_gguf_has_the_types_that_llama_cpp_wants(dtype: str | None, tmp_path: Path) -> None:
    """Vectors in float32, matrices as asked for, all as the gguf package itself rounds them."""
    gguf = pytest.importorskip("gguf")
    done = convert(source(LLAMA), tmp_path / "out", "gguf", dtype=dtype, verify=True)
    assert done.verified == "every tensor and the outputs"
    convert(source(LLAMA), tmp_path / "exact", "gguf")
    wanted = {"bfloat16": "BF16", "float16": "F16", "q8_0": "Q8_0"}.get(dtype or "", "F32")
    seen = set()
    with open_checkpoint(tmp_path / "exact") as exact, open_checkpoint(tmp_path / "out") as ours:
        for tensor in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors:
            whole = exact.read(tensor.name)
            blocks = wanted == "Q8_0" and whole.shape[-1] % 32
            kind = "F32" if whole.ndim == 1 or blocks else wanted
            assert tensor.tensor_type.name == kind, tensor.name
            rounded = gguf.quants.quantize(whole, tensor.tensor_type)
            assert np.array_equal(tensor.data.view(np.uint8), rounded.view(np.uint8)), tensor.name
            back = gguf.quants.dequantize(rounded, tensor.tensor_type)
            assert np.array_equal(ours.read(tensor.name).astype(np.float32), back), tensor.name
            seen.add((kind, whole.ndim))
    assert seen >= {("F32", 1), (wanted, 2)}
    size = (tmp_path / "out" / "model.gguf").stat().st_size
    assert done.nbytes <= size < done.nbytes + 40_000  # the header, and what aligns


def test_q8_0_is_verified_and_ggufs_alone(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="float32, bfloat16, float16") as caught:
        convert(bert, tmp_path / "out", dtype="q8_0")
    assert "q8_0" in str(caught.value)
    module = importlib.import_module("converters.formats.gguf.read")
    quantise = module.quantise_q8_0

    def wrong(values: np.ndarray) -> np.ndarray:
        made = quantise(values)
        made[0, 2] += 2  # two steps off, in the first value of a tensor
        return made

    monkeypatch.setattr(module, "quantise_q8_0", wrong)
    with pytest.raises(VerifyError, match="not what it was"):
        convert(source(LLAMA), tmp_path / "out", "gguf", dtype="q8_0", verify=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("framework", "form"), [("tf", "tf-h5"), ("tf", "flax"), ("flax", "flax"), ("flax", "tf-h5")])
def test_verify_between_tensorflow_and_flax(framework: str, form: str, tmp_path: Path) -> None:
    """What is left out is named as the file names it, and is what the file holds twice."""
    done = convert(source("bert-mlm", framework), tmp_path / "out", form, verify=True)
    assert done.verified == "every tensor and the outputs"
    with open_checkpoint(source("bert-mlm", framework)) as checkpoint:
        assert set(done.dropped) <= set(checkpoint.infos)
    assert set(done.dropped.values()) <= {"another tensor holds the same"}


# --- names that transformers 5 has lost ---


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        ("ViTMAEForPreTraining", {"decoder_hidden_size": 12, "decoder_num_attention_heads": 3}),
        ("Data2VecVisionForSemanticSegmentation", {"out_indices": [0, 1, 2, 3], "pool_scales": [1, 2]}),
    ],
)
def test_modules_that_transformers_5_renamed_keep_their_published_names(
    cls: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    """transformers 4's own files have a place for each name; what transformers 5 saves can be read as well."""
    transformers = pytest.importorskip("transformers")
    from converters.dialects import hf_names
    from zoo.capture.huggingface import parameters_of
    from zoo.graph.computed import is_computed
    from zoo.weights import fit

    sizes = {"hidden_size": 12, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 16}
    made = getattr(transformers, cls)
    config = made.config_class(**sizes, **fields, image_size=32, patch_size=8, architectures=[cls])
    graph = parameters_of(config)
    known = hf_names.knows("tf", config.to_dict())
    assert not [name for name in graph.params if not known(name) and not is_computed(name)]
    made(config).save_pretrained(tmp_path / "in")
    with open_checkpoint(tmp_path / "in") as saved:
        found = fit(graph, {name: info.shape for name, info in saved.infos.items()}, tmp_path)
    assert not [name for name in found.missing if not is_computed(name)]


# --- nothing by halves ---


def test_a_dry_run_writes_nothing(bert: Path, tmp_path: Path) -> None:
    planned = convert(bert, tmp_path / "out", "flax", dry_run=True)
    assert not list(tmp_path.iterdir()) and planned.folder is None
    done = convert(bert, tmp_path / "out", "flax")
    assert (done.names, done.dropped, done.nbytes) == (planned.names, planned.dropped, planned.nbytes)
    assert done.names["bert/encoder/layer/0/output/dense/kernel"] == NAME
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert set(done.names) == set(checkpoint.infos)


@pytest.mark.parametrize("form", FORMS)
def test_verify_passes(form: str, bert: Path, tmp_path: Path) -> None:
    assert convert(bert, tmp_path / "out", form, verify=True).verified == "every tensor and the outputs"


@pytest.mark.parametrize("form", FORMS)
def test_verify_catches_a_changed_value(form: str, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit of one value, which no output would show."""
    module = importlib.import_module(f"converters.formats.{TARGETS[form].format}")
    write = module.write

    def flipped(path: Path, checkpoint: Checkpoint, metadata: Any) -> None:
        arrays = {name: np.array(array) for name, array in checkpoint.items()}
        norm = arrays[next(name for name in arrays if "encoder" in name and "LayerNorm" in name)]
        norm.view(np.uint32)[-1] ^= 1
        write(path, MemoryCheckpoint(arrays), metadata)

    monkeypatch.setattr(module, "write", flipped)
    with pytest.raises(VerifyError, match=r"LayerNorm(.|\n)*bit for bit"):
        convert(bert, tmp_path / "out", form, verify=True)
    assert not list(tmp_path.iterdir())


def test_nan_is_told_or_refused(bert: Path, tmp_path: Path) -> None:
    def spoil(arrays: dict[str, np.ndarray]) -> None:
        arrays[NAME][3, 1] = np.nan

    folder = changed(bert, tmp_path / "in", spoil)
    assert convert(folder, tmp_path / "out").nans == [NAME]
    assert convert(bert, tmp_path / "clean").nans == []
    with pytest.raises(WeightsError, match="NaN") as caught:
        convert(folder, tmp_path / "strict", strict=True)
    assert NAME in str(caught.value) and not (tmp_path / "strict").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "clean"}


def test_what_is_said_of_a_conversion(bert: Path, tmp_path: Path) -> None:
    done = convert(bert, tmp_path / "out", "tf-h5", dtype="float16")
    assert done.folder == tmp_path / "out"
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert (record["from"], record["to"], record["dtype"]) == ("hf-torch", "tf-h5", "float16")
    assert record["source"] == "model.safetensors" and record["tensors"] == len(done.names)
    assert record["dropped"] == done.dropped
    assert json.loads(json.dumps(done.to_json()))["target"] == "tf-h5"


def test_companions_travel(bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "in")
    theirs = {
        "generation_config.json": '{"max_length": 7}',
        "tokenizer_config.json": '{"do_lower_case": true}',
        "special_tokens_map.json": "{}",
        "vocab.txt": "[PAD]\n",
        "preprocessor_config.json": "{}",
    }
    strangers = ("custom.py", "training_args.bin", "notes.md", "tsconfig.json", "my_config.json", "design-tokens.json")
    for name, text in (theirs | dict.fromkeys(strangers, "x")).items():
        (folder / name).write_text(text)
    convert(folder, tmp_path / "out", "flax")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*theirs, "config.json", "conversion.json", "flax_model.msgpack"}
    assert all((tmp_path / "out" / name).read_text() == text for name, text in theirs.items())
    config, original = (json.loads((place / "config.json").read_text()) for place in (tmp_path / "out", folder))
    original["torch_dtype"] = original.pop("dtype")  # transformers 4 alone reads Flax, and knows it so
    assert config == original


def test_a_base_model_of_a_head_says_so_in_its_config(bert: Path, tmp_path: Path) -> None:
    done = convert(bert, tmp_path / "out", "flax", task="feature-extraction")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["BertModel"]
    assert not any(name.startswith("cls") for name in done.names)
    assert any(name.startswith("cls.predictions") for name in done.dropped)


# --- refused ---


def test_a_folder_with_other_things_is_left_alone(bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    convert(bert, out)  # empty: fine
    convert(bert, out, "npz", overwrite=True)  # our own: replaced
    assert {path.name for path in out.iterdir()} == {"config.json", "conversion.json", "model.npz"}
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    for taken in (other, other / "thesis.txt"):
        with pytest.raises(ConfigError, match="holds something else") as caught:
            convert(bert, taken)
        assert str(taken) in str(caught.value)
    assert [path.name for path in other.iterdir()] == ["thesis.txt"] and (other / "thesis.txt").read_text() == "mine"


def test_a_failure_leaves_the_old_conversion(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(bert, tmp_path / "out")
    before = bits(tmp_path / "out")
    monkeypatch.setattr("converters.formats.npz.write", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(SourceError, match="cannot be written"):
        convert(bert, tmp_path / "out", "npz", overwrite=True)
    assert bits(tmp_path / "out") == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_unknown_form_lists_the_known(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        convert(bert, tmp_path / "out", "caffe")
    assert all(form in str(caught.value) for form in TARGETS)


def test_a_class_that_transformers_4_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no LlamaForCausalLM for TensorFlow"):
        convert(source(LLAMA), tmp_path / "out", "tf-h5")
    assert not list(tmp_path.iterdir())


def test_not_enough_room(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(total=1, used=1, free=1000))
    with pytest.raises(SourceError, match="not enough room"):
        convert(bert, tmp_path / "deep" / "out")
    assert not list(tmp_path.iterdir())
    assert convert(bert, tmp_path / "out", dry_run=True).nbytes  # which needs none


@pytest.mark.parametrize("form", ["safetensors", "tf-h5", "flax"])
def test_leftovers_inside_a_layer_are_refused(form: str, bert: Path, tmp_path: Path) -> None:
    extra = [f"bert.encoder.layer.{layer}.attention.self.extra.weight" for layer in (0, 1)]
    folder = changed(bert, tmp_path / "in", lambda arrays: arrays.update(dict.fromkeys(extra, np.zeros(3, np.float32))))
    with pytest.raises(WeightsError) as caught:
        convert(folder, tmp_path / "out", form)
    assert all(name in str(caught.value) for name in extra) and not (tmp_path / "out").exists()


def test_a_part_of_another_task_is_kept_or_dropped_with_a_reason(bert: Path, tmp_path: Path) -> None:
    pooler = {"bert.pooler.dense.bias": np.arange(3, dtype=np.float32)}
    folder = changed(bert, tmp_path / "in", lambda arrays: arrays.update(pooler))
    kept = convert(folder, tmp_path / "kept")
    assert "bert.pooler.dense.bias" in kept.names and bits(tmp_path / "kept") == bits(folder)
    dropped = convert(folder, tmp_path / "dropped", "flax").dropped
    assert dropped == {"bert.pooler.dense.bias": "belongs to a part that this task does not have"}


def test_a_missing_tensor_is_named(bert: Path, tmp_path: Path) -> None:
    folder = changed(bert, tmp_path / "in", lambda arrays: arrays.pop(NAME))
    with pytest.raises(WeightsError, match=NAME):
        convert(folder, tmp_path / "out", "flax")


# --- the command line ---


def test_cli_dry_run_prints_the_table(bert: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    code, out, _ = run("convert", bert, tmp_path / "out", "--to", "tf-h5", "--dry-run")
    assert code == 0 and not (tmp_path / "out").exists()
    line = next(line for line in out.splitlines() if line.startswith(NAME))
    assert line.split() == [NAME, "->", "bert/tf_bert_for_masked_lm/bert/encoder/layer_._0/output/dense/kernel:0"]
    assert "would write" in out and "hf-torch to tf-h5" in out


def test_cli_writes_shards_and_json(bert: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    code, out, _ = run("convert", bert, tmp_path / "out", "--to", "flax", "--shard-size", "20kB", "--json")
    told = json.loads(out)
    assert code == 0 and told["folder"] == str(tmp_path / "out") and told["target"] == "flax"
    assert set(told) == {field.name for field in Conversion.__dataclass_fields__.values()}
    assert len(list((tmp_path / "out").glob("*.msgpack"))) > 2
    code, out, _ = run("convert", bert, tmp_path / "verified", "--verify")
    assert code == 0 and "wrote" in out and "compared" in out


@pytest.mark.parametrize("arguments", [["--to", "caffe"], ["--shard-size", "many"]])
def test_cli_refuses(arguments: list[str], bert: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    code, out, err = run("convert", bert, tmp_path / "out", *arguments)
    assert code == 2 and not out and arguments[1] in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("framework", "file", "format_", "dialect", "name", "shape"),
    [
        ("torch", "model.safetensors", "safetensors", "hf-torch", NAME, None),
        ("tf", "tf_model.h5", "h5", "hf-tf", "bert/encoder/layer_._0/output/dense/kernel:0", (1, 0)),
        ("flax", "flax_model.msgpack", "flax", "hf-flax", "bert/encoder/layer/0/output/dense/kernel", (1, 0)),
    ],
)
def test_cli_inspect(
    framework: str, file: str, format_: str, dialect: str, name: str, shape: Any, bert: Path, run: Callable[..., Any]
) -> None:
    own = safetensors.numpy.load_file(bert / "model.safetensors")[NAME].shape
    wanted = [own[axis] for axis in shape or (0, 1)]
    for place in (source("bert-mlm", framework), source("bert-mlm", framework) / file):
        code, out, _ = run("inspect", place, "--json")
        told = json.loads(out)
        assert code == 0 and (told["format"], told["dialect"]) == (format_, dialect)
        found = [facts for key, facts in told["tensors"].items() if key.endswith(name)]
        assert found == [{"dtype": "float32", "shape": wanted}]
    code, out, _ = run("inspect", place)
    assert code == 0 and out.splitlines()[-1].endswith("MB") and f"{format_}, {dialect}" in out
    assert any(line.split()[0].endswith(name) and str(wanted) in line for line in out.splitlines() if line)


def test_files_can_be_read_instead_of_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mmap

    import checkpoints

    from zoo.cli import main

    source = checkpoints.save(tmp_path / "source", "bert")
    mapped = []
    real = mmap.mmap

    class Counted(real):  # type: ignore[misc, valid-type]
        def __new__(cls, *arguments: Any, **named: Any) -> Any:
            mapped.append(arguments)
            return real.__new__(cls, *arguments, **named)

    monkeypatch.setattr(mmap, "mmap", Counted)
    zoo.convert(source, tmp_path / "mapped")
    assert mapped
    mapped.clear()
    zoo.convert(source, tmp_path / "read", mmap=False)
    for command in (["convert", str(source), str(tmp_path / "again")], ["verify", str(source), "-b", "numpy"]):
        with pytest.raises(SystemExit) as done:
            main([*command, "--no-mmap"])
        assert not done.value.code
    assert not mapped
