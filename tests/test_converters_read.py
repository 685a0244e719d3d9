"""Reading checkpoints: every value against torch's or safetensors' own reader, and every attack refused.

Nothing here has a tolerance: readers move bytes, so they agree exactly.
"""

from __future__ import annotations

import builtins
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from attacks import safetensors_files, torch_files
from attacks.torch_files import Call, Storage, pickled, write_legacy, write_zip

from converters import DTYPES, Checkpoint, open_checkpoint, save_safetensors
from converters.atomic import replacing
from converters.checkpoint import MemoryCheckpoint
from converters.formats.safetensors import write as write_safetensors
from converters.formats.torch import read as torch_pickle
from zoo.errors import FormatError, SourceError, UnsafeFile, WeightsError, ZooError

ROOT = Path(__file__).resolve().parents[1]
REBUILD = torch._utils._rebuild_tensor_v2


def tensors() -> dict[str, torch.Tensor]:
    """One tensor of every kind that torch.save stores plainly."""
    random_ = torch.Generator().manual_seed(0)
    base = torch.randn(6, 5, generator=random_)
    embedding = torch.randn(7, 3, generator=random_)
    found = {
        "float32": base,
        "transposed": base.t(),
        "slice": base[1:5, ::2],
        "row": base[3],
        "embedding.weight": embedding,
        "lm_head.weight": embedding,
        "parameter": torch.nn.Parameter(torch.randn(3, 2, generator=random_)),
        "expanded": torch.arange(3.0).expand(4, 3),
        "scalar": torch.tensor(3.5),
        "counter": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "empty inside": torch.zeros(2, 0, 3),
        "permuted": torch.arange(24, dtype=torch.int16).reshape(2, 3, 4).permute(2, 0, 1),
        "bool": torch.tensor([True, False, True]),
        "ünïcode": torch.ones(1),
    }
    for name in DTYPES.keys() - {"float32", "bool"}:
        integers = torch.arange(1, 6, dtype=torch.float64)
        found[name] = integers.to(getattr(torch, name))
    return found


def value_bytes(tensor: torch.Tensor) -> bytes:
    """A tensor's values, packed, without going through the reader under test."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_equal(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    assert list(checkpoint.infos) == list(expected)
    for name, tensor in expected.items():
        info, array = checkpoint.infos[name], checkpoint.read(name)
        assert info.shape == array.shape == tuple(tensor.shape), name
        assert f"torch.{info.dtype}" == str(tensor.dtype), name
        assert array.dtype == DTYPES[info.dtype], name
        assert info.nbytes == array.nbytes == tensor.numel() * tensor.element_size(), name
        assert array.tobytes() == value_bytes(tensor), name
        assert not array.flags.writeable, name


# --- safetensors ---


def test_safetensors_reads_what_the_library_wrote(tmp_path):
    plain = {k: v.detach().contiguous().clone() for k, v in tensors().items() if k != "complex128"}
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(plain, path, metadata={"format": "pt"})
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.metadata == {"format": "pt"} and not checkpoint.aliases
        assert_equal(checkpoint, dict(sorted(plain.items(), key=lambda kv: list(checkpoint.infos).index(kv[0]))))


@pytest.mark.parametrize("model", ["bert-mlm", "gpt2", "resnet", "roberta-cls", "t5", "vit"])
def test_fixtures_match_the_library(model, fixtures):
    folder = fixtures / model / "torch"
    expected = safetensors.torch.load_file(folder / "model.safetensors")
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.infos.keys() == expected.keys()
        assert_equal(checkpoint, {name: expected[name] for name in checkpoint.infos})


def test_a_whole_load_allocates_next_to_nothing(tmp_path):
    size = 1 << 24
    big = {f"layer.{i}": np.full(size // 16, i, np.float32) for i in range(8)}
    safetensors.numpy.save_file(big, tmp_path / "a.safetensors")
    torch.save({k: torch.from_numpy(v) for k, v in big.items()}, tmp_path / "a.pt")
    del big
    for name in ("a.safetensors", "a.pt"):
        tracemalloc.start()
        with open_checkpoint(tmp_path / name) as checkpoint:
            arrays = dict(checkpoint.items())
            assert all(float(arrays[f"layer.{i}"].max()) == i for i in range(8))
            assert np.shares_memory(arrays["layer.1"], checkpoint.read("layer.1"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < size / 8, f"{name}: {peak} bytes for a file of {2 * size}"


def test_views_outlive_the_checkpoint_and_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"a": np.arange(5)}, path)
    with open_checkpoint(path) as checkpoint:
        array = checkpoint.read("a")
    path.unlink()
    assert array.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(SourceError, match="closed"):
        checkpoint.read("a")


def test_unknown_name_suggests_near_ones(tmp_path):
    safetensors.numpy.save_file({"encoder.weight": np.zeros(1)}, tmp_path / "a.safetensors")
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(WeightsError, match=r"encoder\.weight\?"):
        checkpoint.read("encoder.weigth")


@pytest.mark.parametrize("case", safetensors_files.BROKEN)
def test_broken_safetensors_is_refused(case, tmp_path):
    data, words = safetensors_files.BROKEN[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(FormatError, match=words) as caught:
        open_checkpoint(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert peak < 20 * len(data) + 200_000


def test_the_library_agrees_on_what_is_broken(tmp_path):
    # What we refuse and the library takes: duplicates it resolves silently, shapes beyond NumPy, text checks.
    ours_only = {
        "duplicate names",
        "empty shape that overflows",
        "a hundred dimensions",
        "dtype of half a byte",
    }
    for case, (data, _) in safetensors_files.BROKEN.items():
        if case in ours_only:
            continue
        with pytest.raises(safetensors.SafetensorError):
            safetensors.deserialize(data)
    safetensors.deserialize(safetensors_files.GOOD)
    (tmp_path / "a.safetensors").write_bytes(safetensors_files.GOOD)
    assert len(open_checkpoint(tmp_path).infos) == 2


# --- writing ---


def arrays() -> dict[str, np.ndarray]:
    found = {name: np.arange(5).astype(dtype) for name, dtype in DTYPES.items() if name != "complex128"}
    found |= {"b scalar": np.array(2.5, np.float32), "a empty": np.zeros((0, 3), np.float16)}
    found["é"] = np.arange(6, dtype=np.int32).reshape(2, 3)
    return found


def test_saved_bytes_are_the_library_s(tmp_path):
    path = tmp_path / "a.safetensors"
    values = {k: v for k, v in arrays().items() if k not in ("uint16", "complex64")}  # 0.8 cannot save these two
    save_safetensors(path, values, {"format": "pt"})
    assert path.read_bytes() == safetensors.numpy.save(values, {"format": "pt"})
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_saving_packs_any_layout(tmp_path):
    path = tmp_path / "a.safetensors"
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    values = {
        "t": base.T,
        "s": base[::2, 1::3],
        "big": base.astype(">f4"),
        "bf": base.astype(ml_dtypes.bfloat16).T,
    }
    values |= {"u16": base.astype(np.uint16), "c": base.astype(np.complex64)}
    save_safetensors(path, values)
    with open_checkpoint(path) as checkpoint:
        for name, value in values.items():
            np.testing.assert_array_equal(checkpoint.read(name), value)
    read = safetensors.torch.load_file(path)
    assert read["t"].tolist() == base.T.tolist() and read["big"].tolist() == base.tolist()


def test_saving_holds_one_tensor_at_a_time(tmp_path):
    size = 1 << 22

    class Made(Mapping):
        def __getitem__(self, name):
            return np.full(size // 4, int(name[1:]), np.float32)

        def __iter__(self):
            return (f"t{i}" for i in range(8))

        def __len__(self):
            return 8

    tracemalloc.start()
    save_safetensors(tmp_path / "a.safetensors", Made())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * size
    with open_checkpoint(tmp_path) as checkpoint:
        assert [int(checkpoint.read(f"t{i}")[-1]) for i in range(8)] == list(range(8))


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.safetensors"
    save_safetensors(path, {"a": np.zeros(3)})
    before = path.read_bytes()

    class Broken(MemoryCheckpoint):
        def _read(self, info):
            if info.name == "b":
                raise RuntimeError("stop")
            return super()._read(info)

    with pytest.raises(RuntimeError, match="stop"), replacing(path) as fresh:
        write_safetensors(fresh, Broken({"a": np.ones(3), "b": np.ones(3)}))
    for wrong in (
        {"a": np.zeros(2, object)},
        {"a": np.zeros(2, np.complex128)},
        {"__metadata__": np.zeros(1)},
    ):
        with pytest.raises(FormatError):
            save_safetensors(path, wrong)
    with pytest.raises(FormatError, match="text"):
        save_safetensors(path, {"a": np.zeros(1)}, {"step": 3})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_saving_over_the_file_being_read(tmp_path):
    path = tmp_path / "a.safetensors"
    save_safetensors(path, {"a": np.arange(4)})
    with open_checkpoint(path) as checkpoint:
        save_safetensors(path, {"a": checkpoint.read("a") + 1})
        assert checkpoint.read("a").tolist() == [0, 1, 2, 3]
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read("a").tolist() == [1, 2, 3, 4]


# --- torch ---


@pytest.fixture(params=["zip", "legacy"])
def save(request):
    def save_(value: object, path: Path) -> Path:
        torch.save(value, path, _use_new_zipfile_serialization=request.param == "zip")
        return path

    save_.legacy = request.param == "legacy"
    return save_


def test_torch_files_match_torch(save, tmp_path):
    values = tensors()
    if save.legacy:  # torch 2.13 writes these into legacy files, but cannot read them back: see the next test
        values = {k: v for k, v in values.items() if v.dtype not in torch.storage._new_dtypes()}
    path = save(values, tmp_path / "pytorch_model.bin")
    expected = torch.load(path, weights_only=True)
    with open_checkpoint(tmp_path) as checkpoint:
        assert_equal(checkpoint, expected)
        assert checkpoint.aliases == {"lm_head.weight": "embedding.weight"}
        assert np.shares_memory(checkpoint.read("lm_head.weight"), checkpoint.read("embedding.weight"))
        assert np.shares_memory(checkpoint.read("float32"), checkpoint.read("transposed"))
        assert checkpoint.wrapper == "" and checkpoint.format == "torch"


def test_untyped_storages(save, tmp_path):
    values = {k: v for k, v in tensors().items() if v.dtype in torch.storage._new_dtypes()}
    assert len(values) == 8
    with open_checkpoint(save(values, tmp_path / "a.pt")) as checkpoint:
        assert_equal(checkpoint, values)


def test_state_dict_of_a_module(save, tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 4))
    path = save(module.state_dict(), tmp_path / "a.pth")
    with open_checkpoint(path) as checkpoint:
        assert_equal(checkpoint, module.state_dict())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning:torch")
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(protocol, tmp_path):
    torch.save(tensors(), tmp_path / "a.pt", pickle_protocol=protocol)
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        assert_equal(checkpoint, torch.load(tmp_path / "a.pt", weights_only=False))


def test_names_of_nested_dicts(save, tmp_path):
    def names(value):
        with open_checkpoint(save(value, tmp_path / "a.pt")) as checkpoint:
            return list(checkpoint.infos), checkpoint.wrapper, dict(checkpoint.metadata)

    t = torch.ones(2)
    assert names({"a.b": t, "c": {"d": t}}) == (["a.b", "c.d"], "", {})
    wrapped = {
        "state_dict": {"a": t, "b": {"c": t}},
        "epoch": 3,
        "args": {"lr": 0.1, "name": "x", "none": None},
    }
    meta = {"epoch": 3, "args.lr": 0.1, "args.name": "x", "args.none": None}
    assert names(wrapped) == (["a", "b.c"], "state_dict", meta)
    training = {"model": {"a": t}, "optimizer": {"state": {0: {"exp_avg": t}}, "lr": 1}}
    assert names(training) == (["model.a", "optimizer.state.0.exp_avg"], "", {"optimizer.lr": 1})
    assert names([t, {"a": t}]) == (["0", "1.a"], "", {})
    assert names(t) == (["tensor"], "", {})
    assert names({"epoch": 3}) == ([], "", {"epoch": 3})


def test_plain_values_beside_tensors(save, tmp_path):
    t = torch.ones(2)
    rest = {"dtype": torch.float16, "size": t.shape, "bytes": b"x", "np": np.float64(0.5), "big": 1 << 70}
    with open_checkpoint(save({"a": t, **rest}, tmp_path / "a.pt")) as checkpoint:
        assert checkpoint.metadata == {
            "dtype": "torch.float16",
            "size.0": 2,
            "bytes": "<bytes>",
            "np": "<numpy scalar>",
            "big": "<int>",
        }


def test_two_tensors_of_one_name(save, tmp_path):
    path = save({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1), "c": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(FormatError, match=r"'a\.b'"):
        open_checkpoint(path)


def test_compressed_zip(tmp_path):
    values = tensors()
    torch.save(values, tmp_path / "stored.pt")
    deflated = zipfile.ZipFile(tmp_path / "deflated.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "stored.pt") as old, deflated as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with open_checkpoint(tmp_path / "deflated.pt") as checkpoint:
        assert_equal(checkpoint, torch.load(tmp_path / "stored.pt", weights_only=True))


def test_big_endian_file(tmp_path):
    """Written as a big-endian machine would; torch swaps it on reading, too."""
    values = {
        "f": (torch.FloatStorage, ">f4", torch.tensor([1.5, -2.0, 3.25])),
        "l": (torch.LongStorage, ">i8", torch.tensor([1, -2, 3])),
        "h": (torch.HalfStorage, ">f2", torch.tensor([1.5, 2, 3], dtype=torch.float16)),
        "b": (torch.BoolStorage, "?", torch.tensor([True, False, True])),
    }
    state = {k: Call(REBUILD, Storage(kind, k, 3), 0, (3,), (1,), False, {}) for k, (kind, *_) in values.items()}
    state["bf"] = Call(REBUILD, Storage(torch.BFloat16Storage, "bf", 2), 0, (2,), (1,), False, {})
    data = {k: tensor.numpy().astype(order).tobytes() for k, (_, order, tensor) in values.items()}
    data["bf"] = b"\x3f\xc0\xc0\x00"  # 1.5, -2.0
    path = write_zip(tmp_path / "a.pt", pickled(state), data, byteorder="big")
    expected = {k: tensor for k, (_, _, tensor) in values.items()} | {"bf": torch.tensor([1.5, -2.0]).bfloat16()}
    assert all(torch.equal(v, expected[k]) for k, v in torch.load(path, weights_only=True).items())
    with open_checkpoint(path) as checkpoint:
        assert_equal(checkpoint, expected)


def test_legacy_storage_views(tmp_path):
    """Files from before 0.4 store a view of a storage as (key, offset, size); torch still reads them."""
    data = np.arange(10, dtype=np.float32)
    storage = Storage(torch.FloatStorage, "root", 10, ("view", 4, 6))
    state = {"a": Call(REBUILD, storage, 1, (2, 2), (2, 1), False, {})}
    path = write_legacy(tmp_path / "a.bin", pickled(state, legacy=True), {"root": (10, data.tobytes())})
    with open_checkpoint(path) as checkpoint:
        assert_equal(checkpoint, torch.load(path, weights_only=True))
        assert checkpoint.read("a").tolist() == [[5, 6], [7, 8]]


def test_tensors_that_are_not_plain_are_listed(tmp_path):
    state = {"ok": torch.ones(1), "sparse": torch.eye(2).to_sparse(), "meta": torch.empty(2, device="meta")}
    state["conj"] = torch.ones(2, dtype=torch.complex64).conj()
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(FormatError) as caught:
        open_checkpoint(tmp_path / "a.pt")
    assert all(word in str(caught.value) for word in ("3 tensors", "sparse", "meta", "conj"))
    assert "ok" not in str(caught.value).split("got:")[1].split("(")[0]


# --- shards ---


def write_shards(folder: Path, kind: str = "safetensors", **changes: object) -> dict[str, torch.Tensor]:
    stem = {"safetensors": "model", "bin": "pytorch_model"}[kind]
    tied = torch.randn(3, 2)
    parts = [{"a": torch.arange(4.0), "z": torch.ones(2, dtype=torch.bfloat16)}, {"tied": tied, "emb": tied}]
    if kind == "safetensors":
        parts[1]["emb"] = tied.clone()
    weight_map = {}
    for i, part in enumerate(parts, 1):
        name = f"{stem}-0000{i}-of-00002.{kind}"
        (safetensors.torch.save_file if kind == "safetensors" else torch.save)(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 44}, "weight_map": {**weight_map, **changes}}
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
    return parts[0] | parts[1]


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_sharded(kind, tmp_path):
    expected = write_shards(tmp_path, kind)
    with open_checkpoint(tmp_path) as checkpoint:
        assert_equal(checkpoint, expected)
        assert checkpoint.metadata["total_size"] == 44
        assert checkpoint.aliases == ({"emb": "tied"} if kind == "bin" else {})
        assert checkpoint.infos["emb"].file.name.endswith(f"-00002-of-00002.{kind}")
    with pytest.raises(SourceError, match="closed"):
        checkpoint.read("a")


def test_missing_shards_and_tensors_are_all_listed(tmp_path):
    write_shards(tmp_path, x="model-00001-of-00002.safetensors", y="model-00002-of-00002.safetensors")
    with pytest.raises(FormatError, match=r"x \(model-00001.*y \(model-00002"):
        open_checkpoint(tmp_path)
    write_shards(tmp_path, x="gone-1.safetensors", y="gone-2.safetensors")
    with pytest.raises(FormatError, match=r"2 of 4 shards.*\n.*\n.*gone-1\.safetensors, gone-2\.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "a/../../secret.safetensors",
        "..\\secret",
        "C:\\secret",
        "",
        "a\0b",
    ],
)
def test_shard_names_stay_in_the_folder(name, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    safetensors.numpy.save_file({"x": np.zeros(1)}, tmp_path / "secret.safetensors")
    write_shards(folder, x=name)
    with pytest.raises(UnsafeFile, match="leads out"):
        open_checkpoint(folder)


def test_a_shard_that_links_out_is_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    safetensors.numpy.save_file({"x": np.zeros(1)}, tmp_path / "secret.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    write_shards(folder, x="link.safetensors")
    with pytest.raises(UnsafeFile, match="link"):
        open_checkpoint(folder)
    (folder / "link.safetensors").unlink()
    (folder / "link.safetensors").symlink_to("/etc")
    with pytest.raises(UnsafeFile, match="link"):
        open_checkpoint(folder)


def hub_cache(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A snapshot as huggingface_hub lays it out: links into blobs."""
    repo = tmp_path / "hub" / "models--org--name"
    snapshot = repo / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    expected = write_shards(snapshot)
    for i, file in enumerate(sorted(snapshot.iterdir())):
        blob = repo / "blobs" / f"{i:064x}"
        file.rename(blob)
        file.symlink_to(Path("../../blobs") / blob.name)
    return snapshot, expected


def test_hub_cache_snapshot(tmp_path):
    snapshot, expected = hub_cache(tmp_path)
    with open_checkpoint(snapshot) as checkpoint:
        assert_equal(checkpoint, expected)
    (tmp_path / "link").symlink_to(tmp_path / "hub")  # a cache that is itself reached over a link
    with open_checkpoint(tmp_path / "link" / snapshot.relative_to(tmp_path / "hub")) as checkpoint:
        assert_equal(checkpoint, expected)


def test_hub_cache_link_to_another_model_is_refused(tmp_path):
    snapshot, _ = hub_cache(tmp_path)
    other = tmp_path / "hub" / "models--org--other" / "blobs"
    other.mkdir(parents=True)
    safetensors.numpy.save_file({"a": np.zeros(1), "z": np.zeros(1)}, other / "00")
    shard = snapshot / "model-00001-of-00002.safetensors"
    shard.unlink()
    shard.symlink_to(other / "00")
    with pytest.raises(UnsafeFile, match="link"):
        open_checkpoint(snapshot)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "weight_map"),
        ('{"weight_map": {"a": 3}}', "weight_map"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "duplicate"),
        ("[1]", "not a JSON object"),
        ("", "empty"),
        ("version https://git-lfs.github.com/spec/v1", "LFS"),
    ],
)
def test_broken_index(text, words, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(FormatError, match=words):
        open_checkpoint(tmp_path)


# --- which file, which format ---


def test_what_a_folder_opens(tmp_path):
    with pytest.raises(SourceError, match="no checkpoint"):
        open_checkpoint(tmp_path)
    with pytest.raises(SourceError, match="cannot be read"):
        open_checkpoint(tmp_path / "missing.safetensors")
    steps = ["pytorch_model.bin.index.json", "pytorch_model.bin", "other.safetensors"]
    steps += ["model.safetensors.index.json", "model.safetensors"]
    for name in steps:
        if name.endswith("index.json"):
            write_shards(tmp_path, name.split(".")[1])
        elif name.endswith("bin"):
            torch.save({"a": torch.ones(1)}, tmp_path / name)
        else:
            safetensors.numpy.save_file({"a": np.zeros(1)}, tmp_path / name)
        with open_checkpoint(tmp_path) as checkpoint:
            assert checkpoint.path.name == name
    for name in steps:
        (tmp_path / name).unlink()
    with pytest.raises(SourceError, match=r"several.*\n.*\n.*\n.*model-00001-of-00002\.safetensors, model-00002"):
        open_checkpoint(tmp_path)


def test_contents_decide_except_under_a_safetensors_name(tmp_path):
    safetensors.numpy.save_file({"a": np.arange(3)}, tmp_path / "weights.bin")
    with open_checkpoint(tmp_path / "weights.bin") as checkpoint:
        assert checkpoint.format == "safetensors"
    torch.save({"a": torch.ones(1)}, tmp_path / "weights")
    with open_checkpoint(tmp_path / "weights") as checkpoint:
        assert checkpoint.format == "torch"
    shutil.copy(tmp_path / "weights", tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match="not safetensors"):
        open_checkpoint(tmp_path / "model.safetensors")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(FormatError, match="no format"):
        open_checkpoint(tmp_path / "notes.txt")
    (tmp_path / "a.bin").write_text("hello")
    with pytest.raises(FormatError, match="not a PyTorch checkpoint"):
        open_checkpoint(tmp_path / "a.bin")


@pytest.mark.parametrize("case", ["empty file", "git lfs pointer", "html page"])
def test_torch_impostors(case, tmp_path):
    data, words = safetensors_files.BROKEN[case]
    (tmp_path / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(FormatError, match=words):
        open_checkpoint(tmp_path)


def test_importing_converters_imports_no_framework():
    code = (
        "import sys, converters\n"
        "banned = {'torch', 'jax', 'tensorflow', 'keras', 'flax', 'h5py', 'transformers', 'safetensors'}\n"
        "assert not banned & set(sys.modules), banned & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# --- pickles that attack ---


def write(kind: str, path: Path, pickle_bytes: bytes) -> Path:
    return (write_zip if kind == "zip" else write_legacy)(path, pickle_bytes)


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_os_system_does_not_run(kind, protocol, tmp_path):
    marker = tmp_path / "it ran"
    attack = pickled({"a": Call(os.system, f"touch '{marker}'")}, protocol=protocol)
    path = write(kind, tmp_path / "pytorch_model.bin", attack)
    with pytest.raises(UnsafeFile, match=rf"{os.name}\.system"):
        open_checkpoint(path)
    assert not marker.exists()
    pickle.loads(attack)
    assert marker.exists(), "the attack is real: plain pickle runs it"


@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (pickled(Call(builtins.eval, "1+1")), "builtins.eval"),
        (pickled(Call(builtins.exec, "1+1")), "builtins.exec"),
        (pickled(Call(builtins.getattr, {}, "clear")), "builtins.getattr"),
        (pickled(Call(builtins.__import__, "os")), "builtins.__import__"),
        (pickled(Call(subprocess.Popen, ["true"]), protocol=4), "subprocess.Popen"),
        (pickled(Call(torch.load, "x")), "torch.serialization.load"),
        (pickled({"model": torch.nn.ReLU()}), "torch.nn.modules.activation.ReLU"),
        (b"\x80\x04" + b"\x8c\x08builtins\x8c\x0eeval.__class__\x93.", "builtins.eval.__class__"),
        (b"\x80\x04" + b"\x8c\x05torch\x8c\x0fSize.__reduce__\x93.", "torch.Size.__reduce__"),
        (b"(S'true'\nios\nsystem\n.", "os.system"),  # the INST opcode
        (b"\x80\x02(cos\nsystem\nS'true'\no.", "os.system"),  # the OBJ opcode
        (b"\x80\x02c__builtin__\neval\n.", "builtins.eval"),  # Python 2's name
        (b"\x80\x02ctorch\nEvilStorage\n.", "torch.EvilStorage"),
        (b"\x80\x02cevil\nFloatStorage\n.", "evil.FloatStorage"),
        (b"\x80\x02c__main__\nUnpickler\n.", "__main__.Unpickler"),
        (b"\x80\x02c__main__\nGLOBALS\n.", "__main__.GLOBALS"),
    ],
)
def test_globals_outside_the_list_are_named(attack, named, tmp_path):
    with pytest.raises(UnsafeFile, match=named.replace(".", r"\.")):
        open_checkpoint(write_zip(tmp_path / "a.pt", attack))


@pytest.mark.parametrize(
    "attack",
    [
        # Setting attributes on what an allowed name stands for, then calling it.
        b"\x80\x02ctorch\nSize\n}X\x08\x00\x00\x00functionK\x01sb)R.",
        b"\x80\x02ctorch\nSize\nN}X\x08\x00\x00\x00functionK\x01s\x86b)R.",
        b"\x80\x02ctorch\nfloat32\nN}X\x08\x00\x00\x00__call__K\x01s\x86b)R.",
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02ctorch\nSize\n)\x81.",  # NEWOBJ of what is no class
        b"\x80\x02\x82\x01.",  # the extension registry
        b"\x80\x02K\x01Q.",  # a persistent id that is no storage
        b"\x80\x02(X\x07\x00\x00\x00storageK\x01K\x01K\x01K\x01tQ.",
        b"\x80\x02.",
        b"\x80\x02}",
        b"",
        b"\xff\xff",
    ],
)
def test_malformed_pickles(attack, tmp_path):
    with pytest.raises(FormatError):
        open_checkpoint(write_zip(tmp_path / "a.pt", attack))


@pytest.mark.parametrize("case", torch_files.RESOURCE_BOMBS)
def test_resource_bombs(case, tmp_path):
    with pytest.raises(FormatError):
        open_checkpoint(write_zip(tmp_path / "a.pt", torch_files.RESOURCE_BOMBS[case]))


def test_cpu_time_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_pickle, "CPU_SECONDS", 1)
    monkeypatch.setattr(torch_pickle, "WALL_SECONDS", 20)
    with pytest.raises(FormatError, match="brought its reader down"):
        open_checkpoint(write_zip(tmp_path / "a.pt", torch_files.slow_hash(60)))
    monkeypatch.setattr(torch_pickle, "CPU_SECONDS", 60)
    monkeypatch.setattr(torch_pickle, "WALL_SECONDS", 0.5)
    with pytest.raises(FormatError, match="too long"):
        open_checkpoint(tmp_path / "a.pt")


@pytest.mark.skipif(sys.platform != "linux", reason="resource limits are checked on Linux")
@pytest.mark.parametrize(
    "action",
    [
        "import os; os.system('true')",
        "import subprocess; subprocess.run(['true'])",
        "open({path!r}, 'w')",
        "import os; os.open({path!r}, os.O_CREAT | os.O_WRONLY)",
        "import os; os.fork()",
        "import socket; socket.socket()",
        "import ctypes",
        "exec('1')",
        "import pickle; pickle.loads(b'cos\\nsystem\\n.')",
    ],
)
def test_the_reader_process_can_do_nothing_anyway(action, tmp_path):
    """The second wall, tried from inside: as if a pickle had got past the list of globals."""
    marker = tmp_path / "it ran"
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'converters' / 'processes')!r})\n"
        "import os, subprocess, socket, pickle, unpickle_child\n"
        "unpickle_child.confine(5, 1 << 30)\n"
        f"try:\n    {action.format(path=str(marker))}\n"
        "except unpickle_child.Unsafe as e:\n    sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, check=False)
    assert done.returncode == 7, done.stderr.decode()
    assert not marker.exists()


# --- tensors and archives that lie ---

BIG = 1 << 40


@pytest.mark.parametrize(
    ("numel", "offset", "shape", "strides"),
    [
        (4, 0, (5,), (1,)),
        (4, 1, (4,), (1,)),
        (4, 5, (1,), (1,)),
        (4, -1, (2,), (1,)),
        (4, 0, (2, 2), (3, 1)),
        (4, 0, (2,), (-1,)),
        (4, 0, (-2,), (1,)),
        (4, 0, (2,), (1, 1)),
        (4, 0, (BIG,), (0,)),
        (4, 0, (BIG, BIG), (1, 1)),
        (4, 0, (0, 1 << 62), (1, 1)),
        (4, 0, (1,) * 65, (1,) * 65),
        (4, 0, (2.0,), (1,)),
        (4, 0, (True,), (1,)),
        (4, "0", (2,), (1,)),
        (4, 0, "ab", (1, 1)),
        (BIG, 0, (4,), (1,)),
        (-4, 0, (4,), (1,)),
        ("4", 0, (4,), (1,)),
        (1 << 63, 0, (4,), (1,)),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_tensors_outside_their_storage(kind, numel, offset, shape, strides, tmp_path):
    storage = Storage(torch.FloatStorage, "0", numel)
    attack = pickled({"a": Call(REBUILD, storage, offset, shape, strides, False, {})}, legacy=kind == "legacy")
    path = tmp_path / "a.pt"
    if kind == "zip":
        write_zip(path, attack, {"0": bytes(16)})
    else:
        write_legacy(path, attack, {"0": (4, bytes(16))})
    with pytest.raises(FormatError) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)


def one_tensor(key: str = "0", numel: int = 4, **options: bool) -> bytes:
    return pickled(
        {"a": Call(REBUILD, Storage(torch.FloatStorage, key, numel), 0, (numel,), (1,), False, {})}, **options
    )


@pytest.mark.parametrize("key", ["1", "../version", "/etc/passwd", "x" * 100_000])
def test_missing_storages(key, tmp_path):
    with pytest.raises(FormatError, match="missing"):
        open_checkpoint(write_zip(tmp_path / "a.pt", one_tensor(key), {"0": bytes(16)}))
    path = write_legacy(tmp_path / "b.pt", one_tensor(key, legacy=True), {"0": (4, bytes(16))})
    with pytest.raises(FormatError, match="list of storages"):
        open_checkpoint(path)


def test_truncated_torch_files(save, tmp_path):
    path = save({"a": torch.arange(100.0), "b": torch.ones(3)}, tmp_path / "a.pt")
    whole = path.read_bytes()
    for size in [1, 10, 14, 40, 200, len(whole) // 2, len(whole) - 30, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError):
            open_checkpoint(path)


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "C:/evil", "archive/data/..\\evil"])
def test_zip_member_names(name, tmp_path):
    with pytest.raises(UnsafeFile, match="leaves the archive"):
        open_checkpoint(write_zip(tmp_path / "a.pt", one_tensor(), {"0": bytes(16)}, extra={name: b"x"}))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"extra": {"other/data.pkl": b"."}}, "one data.pkl"),
        ({"root": "a/b"}, "one data.pkl"),
        ({"extra": {"archive/constants.pkl": b"."}}, "TorchScript"),
        ({"byteorder": "middle"}, "byte order"),
        ({"compression": zipfile.ZIP_BZIP2}, "unknown way"),
    ],
)
def test_other_zip_archives(options, words, tmp_path):
    with pytest.raises(FormatError, match=words):
        open_checkpoint(write_zip(tmp_path / "a.pt", one_tensor(), {"0": bytes(16)}, **options))


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_zip_with_a_name_twice(tmp_path):
    path = write_zip(tmp_path / "a.pt", one_tensor(), {"0": bytes(16)}, extra={"archive/data.pkl": b"."})
    with pytest.raises(FormatError, match="twice"):
        open_checkpoint(path)


def test_zip_bomb(tmp_path):
    bomb = one_tensor(numel=1 << 22)
    path = write_zip(tmp_path / "a.pt", bomb, {"0": bytes(1 << 24)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match="far larger"):
        open_checkpoint(path)


def test_pickle_bomb_in_a_zip(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_pickle, "MAX_PICKLE", 1000)
    with pytest.raises(FormatError, match="too long"):
        open_checkpoint(write_zip(tmp_path / "a.pt", one_tensor() + bytes(2000), {"0": bytes(16)}))


def patched(path: Path, member: str, *, local: dict[int, bytes] | None = None, central: dict[int, bytes]) -> Path:
    """Overwrites bytes of a member's headers, at offsets from their signatures."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info, directory = archive.getinfo(member), archive.start_dir
    at = data.index(member.encode(), directory) - 46
    for start, changes in ((info.header_offset, local or {}), (at, central)):
        for offset, value in changes.items():
            data[start + offset : start + offset + len(value)] = value
    path.write_bytes(data)
    return path


def u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def test_lying_zip_headers(tmp_path):
    def fresh(name: str, compression: int = zipfile.ZIP_STORED) -> Path:
        values = np.random.default_rng(0).bytes(4096)
        return write_zip(tmp_path / name, one_tensor(numel=1024), {"0": values}, compression=compression)

    cases = [
        patched(fresh("larger"), "archive/data/0", central={20: u32(1 << 30), 24: u32(1 << 30)}),
        patched(fresh("size only"), "archive/data/0", central={24: u32(1 << 30)}),
        patched(fresh("overlap"), "archive/version", central={42: u32(0)}),
        patched(fresh("nowhere"), "archive/data/0", central={42: u32(1 << 30)}),
        patched(fresh("renamed"), "archive/data/0", local={30: b"x"}, central={}),
        patched(fresh("encrypted"), "archive/data/0", central={8: b"\x01"}),
    ]
    for path in cases:
        with pytest.raises(FormatError) as caught:
            open_checkpoint(path)
        assert str(path) in str(caught.value), path


def test_corrupt_compressed_storage(tmp_path):
    values = np.random.default_rng(0).bytes(4096)
    deflated = {"compression": zipfile.ZIP_DEFLATED}
    path = write_zip(tmp_path / "a.pt", one_tensor(numel=1024), {"0": values}, **deflated)
    patched(path, "archive/data/0", central={16: u32(12345)})  # another checksum
    with open_checkpoint(path) as checkpoint, pytest.raises(FormatError, match="corrupt"):
        checkpoint.read("a")
    path = write_zip(tmp_path / "b.pt", one_tensor(numel=1024), {"0": values}, **deflated)
    patched(path, "archive/data/0", central={24: u32(8000)})  # more bytes than there are
    with open_checkpoint(path) as checkpoint, pytest.raises(FormatError, match="corrupt"):
        checkpoint.read("a")


LEAST = {"safetensors": 300, "zip": 30, "legacy": 45}  # what is refused at least of the damaged files below


@pytest.mark.parametrize("kind", LEAST)
def test_random_damage_gives_only_our_errors(kind, tmp_path):
    """Any byte of the directory may be wrong: what follows is a ZooError, or tensors inside the file."""
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt")
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    random_, refused = random.Random(0), 0
    for _ in range(400 if kind == "safetensors" else 60):
        data = bytearray(whole)
        for _ in range(random_.choice([1, 1, 2, 8])):
            data[random_.randrange(len(data))] = random_.randrange(256)
        path.write_bytes(data)
        try:
            with open_checkpoint(path) as checkpoint:
                for _, array in checkpoint.items():
                    assert array.nbytes <= len(whole)
                    array.tobytes()
        except ZooError:
            refused += 1
    assert refused >= LEAST[kind]
