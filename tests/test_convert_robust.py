"""`zoo.convert` and `zoo.load` on bad input, bad output folders, and when killed: one error of ours, no harm."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import kills
import numpy as np
import pytest
from attacks import gguf_files, h5_files, torch_files
from checkpoints import copy_of, tensors, write_tensors

import zoo
from converters import atomic
from converters.atomic import replacing
from converters.formats import safetensors
from zoo.errors import ConfigError, FormatError, SourceError, UnsafeFile, WeightsError, ZooError

FILES = {
    "safetensors": "model.safetensors",
    "torch": "pytorch_model.bin",
    "tf-h5": "tf_model.h5",
    "flax": "flax_model.msgpack",
    "npz": "model.npz",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ALBERT whose graph is packaged, with random weights."""
    return kills.make(tmp_path_factory.mktemp("source") / "model", 0)


@pytest.fixture(scope="module")
def forms(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model in every form; a GGUF file of another, which is only ever damaged."""
    root = tmp_path_factory.mktemp("forms")
    found = {form: zoo.convert(source, root / form, form).folder or root for form in FILES}
    shutil.copytree(source, root / "gguf", ignore=shutil.ignore_patterns("*.safetensors"))
    (root / "gguf" / "model.gguf").write_bytes(gguf_files.GOOD)
    return {**found, "gguf": root / "gguf"}


@pytest.fixture
def bad(tmp_path: Path, forms: dict[str, Path]) -> Callable[[str], Path]:
    """A copy of a form's weights, to be damaged; the folder has its config beside them."""

    def copy(form: str) -> Path:
        return shutil.copytree(forms[form], tmp_path / form) / FILES.get(form, "model.gguf")

    return copy


def refused(model: Path, *words: str, error: type[ZooError] = ZooError) -> None:
    """Both converting and loading end in an error that holds the words, and nothing is written."""
    out = model.parent / "out of it" / "out"
    for act in (lambda: zoo.convert(model, out, "npz"), lambda: zoo.load(model, "numpy")):
        with pytest.raises(error) as caught:
            act()
        for word in words:
            assert word in str(caught.value)
    assert not out.exists()
    assert not out.parent.exists() or not list(out.parent.iterdir())


# Damage

IMPOSTORS = {
    "empty": b"",
    "git lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n",
    "html page": b"<!DOCTYPE html><html><body>404</body></html>",
}


@pytest.mark.parametrize("kind", [*IMPOSTORS, "truncated", "a few bytes"])
@pytest.mark.parametrize("form", [*FILES, "gguf"])
def test_damaged_files(form: str, kind: str, bad: Callable[[str], Path]) -> None:
    path = bad(form)
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) * 2 // 3], "a few bytes": whole[:9]}.get(kind, b""))
    if kind in IMPOSTORS:
        path.write_bytes(IMPOSTORS[kind])
    refused(path.parent, path.name, error=FormatError)


LEAST = {"safetensors": 5, "torch": 10, "tf-h5": 2, "flax": 2, "npz": 10, "gguf": 10}  # refused of the 12 below


@pytest.mark.parametrize("form", LEAST)
def test_flipped_bits_give_only_our_errors(form: str, bad: Callable[[str], Path], tmp_path: Path) -> None:
    path = bad(form)
    whole = path.read_bytes()
    random_, refusals, head = random.Random(0), 0, 64 if form == "flax" else 4096
    for number in range(12):
        data = bytearray(whole)
        for _ in range(random_.choice([1, 2, 8])):  # most of them where the names and sizes are
            data[random_.randrange(len(data) if number % 3 == 0 else min(len(data), head))] ^= 1 << random_.randrange(8)
        path.write_bytes(data)
        out = tmp_path / f"out{number}"
        try:
            zoo.convert(path.parent, out, "npz")
        except ZooError:
            assert not out.exists()
            refusals += 1
        else:
            shutil.rmtree(out)
    assert refusals >= LEAST[form]
    assert [item.name for item in tmp_path.iterdir()] == [form]


# Files that attack


def external_link(folder: Path) -> Path:
    with h5py.File(folder / "tf_model.h5", "w") as file:
        h5_files.UNSAFE["external link"](file)
    return folder / "tf_model.h5"


def pickle_that_calls(folder: Path) -> Path:
    attack = torch_files.pickled({"a": torch_files.Call(os.system, f"touch '{folder / 'it ran'}'")})
    return torch_files.write_zip(folder / "pytorch_model.bin", attack)


def zip_bomb(folder: Path) -> Path:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,)}" % (1 << 22)
    header = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n"
    with zipfile.ZipFile(folder / "model.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", header + bytes(1 << 24))
    return folder / "model.npz"


def shard_outside(folder: Path) -> Path:
    index = {"weight_map": {"a": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "model.safetensors.index.json"


def link_outside(folder: Path) -> Path:
    (folder / "model.safetensors").symlink_to(folder.parent / "secret.safetensors")
    (folder.parent / "secret.safetensors").write_bytes(b"secret")
    return folder / "model.safetensors"


def name_twice(folder: Path) -> Path:
    entry = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = b"{" + entry + b"," + entry + b"}"
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    return folder / "model.safetensors"


def key_twice(folder: Path) -> Path:
    (folder / "flax_model.msgpack").write_bytes(b"\x82\xa1a\xc0\xa1a\xc0")
    return folder / "flax_model.msgpack"


def endless_array(folder: Path) -> Path:
    (folder / "model.gguf").write_bytes(gguf_files.BROKEN["array of 2**60 strings"][0])
    return folder / "model.gguf"


@pytest.mark.parametrize(
    ("attack", "error"),
    [
        (external_link, UnsafeFile),
        (pickle_that_calls, UnsafeFile),
        (zip_bomb, FormatError),
        (shard_outside, UnsafeFile),
        (link_outside, UnsafeFile),
        (name_twice, FormatError),
        (key_twice, FormatError),
        (endless_array, FormatError),
    ],
)
def test_attacks(attack: Callable[[Path], Path], error: type[ZooError], source: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(source, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    path = attack(folder)
    refused(folder, path.name, error=error)
    assert not (folder / "it ran").exists()


# Tensors that are wrong


def wide(arrays: dict[str, np.ndarray]) -> str:
    name = next(name for name, array in arrays.items() if array.ndim == 2)
    arrays[name] = arrays[name].T.copy()
    return name


def gone(arrays: dict[str, np.ndarray]) -> str:
    name = next(name for name in arrays if "attention" in name)
    del arrays[name]
    return name


def strange(arrays: dict[str, np.ndarray]) -> str:
    name = next(name for name in arrays if "attention" in name).rpartition(".")[0] + ".surplus"
    arrays[name] = np.zeros(3, np.float32)
    return name


@pytest.mark.parametrize("change", [wide, gone, strange])
def test_tensors_that_do_not_fit_are_named(change: Any, source: Path, tmp_path: Path) -> None:
    names: list[str] = []
    folder = copy_of(source, tmp_path / "model", lambda arrays: names.append(change(arrays)))
    refused(folder, "model.safetensors", names[0], error=WeightsError)


def test_nan_is_told_or_refused(source: Path, tmp_path: Path) -> None:
    arrays = tensors(source)
    name = next(name for name, array in arrays.items() if array.ndim == 2)
    arrays[name][0, 0] = np.nan
    folder = write_tensors(shutil.copytree(source, tmp_path / "model"), arrays)
    done = zoo.convert(folder, tmp_path / "out", "npz", verify=True)
    assert done.nans == [name]
    with np.load(tmp_path / "out" / "model.npz") as written:
        assert written[name].tobytes() == arrays[name].tobytes()
    before = kills.digests(tmp_path / "out")
    with pytest.raises(WeightsError, match=name):
        zoo.convert(folder, tmp_path / "out", "npz", strict=True, overwrite=True)
    assert kills.digests(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


# Where the output must not go


def test_the_source_is_never_replaced(source: Path, tmp_path: Path) -> None:
    model = zoo.convert(source, tmp_path / "a" / "model", "npz").folder  # a folder that conversions may replace
    assert model is not None
    (tmp_path / "link").symlink_to(model)
    file, before = model / "model.npz", kills.digests(model)
    for place, out in (
        (model, model),
        (model, model / "out"),
        (model, tmp_path / "link"),
        (tmp_path / "link", model),
        (file, model),
        (model, model.parent / "." / "model"),
    ):
        with pytest.raises(ConfigError, match="in the place of the checkpoint"):
            zoo.convert(place, out, "safetensors")
        assert kills.digests(model) == before and (tmp_path / "link").is_symlink()
    with pytest.raises(ConfigError):
        zoo.convert(model, model.parent, "safetensors")
    zoo.convert(file, model / "out", "safetensors")  # beside a file is where people put it
    assert kills.digests(model / "out") is not None


def test_a_folder_that_holds_something_else_stays(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    (tmp_path / "file").write_text("years")
    for out in (tmp_path / "mine", tmp_path / "file"):
        with pytest.raises(ConfigError, match="something else"):
            zoo.convert(source, out)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == (tmp_path / "file").read_text() == "years"


def test_folders_that_cannot_be_written(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ZooError, match="file"):
        zoo.convert(source, tmp_path / "file" / "out")
    if os.name == "posix" and os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(SourceError, match="cannot be written"):
            zoo.convert(source, tmp_path / "locked" / "out")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors, "little_endian", full)
        with pytest.raises(SourceError, match="cannot be written") as caught:
            zoo.convert(source, tmp_path / "out")
        assert str(tmp_path / "out") in str(caught.value)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(SourceError, match="not enough room"):
        zoo.convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_to_the_output_stays_a_link(source: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for _ in range(2):
        zoo.convert(source, tmp_path / "out", "npz", overwrite=True)
        assert (tmp_path / "out").is_symlink() and (tmp_path / "disk" / "model.npz").is_file()


# Killed


def test_killed_at_any_moment(tmp_path: Path) -> None:
    seen = kills.kill_often(tmp_path, 6, "safetensors")
    assert seen["old"] + seen["new"] + seen["none"] == 6 and seen["left over"]


@pytest.fixture
def left(tmp_path: Path) -> Iterator[Path]:
    """What a killed process leaves of a write to "out": a folder that nobody has locked."""
    work, lock = atomic._workplace(tmp_path / "out")
    if lock is not None:
        os.close(lock)
    (work / "out").mkdir()
    (work / "out" / "half").write_text("ha")
    yield work


def write(path: Path, text: str) -> None:
    with replacing(path) as fresh:
        fresh.mkdir()
        (fresh / "a").write_text(text)


@pytest.mark.skipif(sys.platform == "win32", reason="without locks nobody knows whose a folder is")
def test_what_is_left_over_goes_with_the_next_write(left: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", "1")
    write(tmp_path / "out.2", "1")
    assert (left / "out" / "half").exists()
    write(tmp_path / "out", "1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out", "out.2"]


def test_somebody_else_s_work_stays(tmp_path: Path) -> None:
    with replacing(tmp_path / "out") as first:
        first.mkdir()
        write(tmp_path / "out", "second")
        (first / "a").write_text("first")
    assert (tmp_path / "out" / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(sys.platform == "win32", reason="without locks nobody knows whose a folder is")
def test_an_old_folder_moved_aside_comes_back(left: Path, tmp_path: Path) -> None:
    (left / atomic._OLD).mkdir()
    (left / atomic._OLD / "a").write_text("old")
    with pytest.raises(RuntimeError, match="stop"), replacing(tmp_path / "out"):
        raise RuntimeError("stop")
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
