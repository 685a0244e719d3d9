"""Checksums that files hold, or that are known of them: a changed byte is noticed wherever the form can tell."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import kills
import numpy as np
import pytest
import torch
from checkpoints import tensors

import zoo
from zoo.errors import ChecksumError, FormatError

# What notices a changed weight: loading with the file mapped, loading where it is copied, converting, `--files`.
NOTICED = {
    "npz": ("mapped", "copied", "converted", "raw", "files"),
    "keras-model": ("mapped", "copied", "converted", "raw", "files"),
    "tf-checkpoint": ("mapped", "copied", "converted", "raw", "files"),
    "torch": ("copied", "converted", "raw", "files"),
    "safetensors": (),
    "flax": (),
    "tf-h5": (),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ALBERT whose graph is packaged, with random weights."""
    return kills.make(tmp_path_factory.mktemp("source") / "model", 0)


@pytest.fixture(scope="module")
def forms(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("forms")

    def form(name: str) -> Path:
        if not (root / name).exists():
            zoo.convert(source, root / name, name)
        (root / name / "conversion.json").unlink(missing_ok=True)  # what it says of the files has its own test
        return root / name

    return form


def words(source: Path) -> np.ndarray:
    """The table of words, which every form stores as it is."""
    (name,) = [name for name in tensors(source) if name.endswith("word_embeddings.weight")]
    return tensors(source)[name]


def change_a_weight(folder: Path, array: np.ndarray) -> Path:
    """Turns one bit of the one place in the folder where an array's bytes are; the file's times stay."""
    raw = array.tobytes()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = bytearray(path.read_bytes())
        if (at := data.find(raw)) >= 0:
            data[at + 3] ^= 1
            stat = path.stat()
            path.write_bytes(data)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            return path
    raise AssertionError("the array is in no file")


@pytest.mark.parametrize("form", NOTICED)
def test_a_changed_weight(form: str, source: Path, forms: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(forms(form), tmp_path / "copy")
    assert zoo.check_files(folder).ok
    path = change_a_weight(folder, words(source))
    acts = {
        "mapped": lambda: zoo.load(folder, "numpy"),
        "copied": lambda: zoo.load(folder, "jax"),
        "converted": lambda: zoo.convert(folder, tmp_path / "out", "npz", verify=True),
        "raw": lambda: zoo.convert(folder, tmp_path / "raw", "npz", raw=True),
        "files": lambda: zoo.check_files(folder).raise_for_failure(),
    }
    noticed = []
    for name, act in acts.items():
        try:
            act()
        except (FormatError, ChecksumError) as error:
            assert path.name.split(".")[0] in str(error)
            noticed.append(name)
    assert tuple(noticed) == NOTICED[form]
    assert (tmp_path / "out").exists() == (tmp_path / "raw").exists() == ("converted" not in noticed)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_byte_of_an_npz_s_arrays_counts(method: int, tmp_path: Path) -> None:
    from converters import open_checkpoint

    array = np.random.default_rng(0).integers(0, 99, 40, np.int32)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive, archive.open("a.npy", "w") as member:
        np.lib.format.write_array(member, array)
    whole = (tmp_path / "a.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        (info,) = archive.infolist()
    for at in range(30 + len(info.filename), info.compress_size):
        data = bytearray(whole)
        data[at] ^= 0x10
        (tmp_path / "b.npz").write_bytes(data)
        try:
            with open_checkpoint(tmp_path / "b.npz") as checkpoint:
                found = checkpoint.read("a")
        except FormatError:
            continue
        assert np.array_equal(found, array), at  # bits that the method does not need, if any


def test_what_is_trained_in_place_is_not_taken_for_damage(tmp_path: Path) -> None:
    from converters import open_checkpoint

    np.savez(tmp_path / "a.npz", a=np.ones(9, np.float32))
    with open_checkpoint(tmp_path / "a.npz") as checkpoint:
        array = checkpoint.read("a")
        ctypes.memset(array.ctypes.data, 0, array.nbytes)  # the mapping is private, and torch writes into it
        assert checkpoint.read("a").tolist() == [0] * 9


def test_torch_may_leave_checksums_out(tmp_path: Path) -> None:
    from converters import open_checkpoint

    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        assert checkpoint.read("a").tolist() == [1] * 3
    report = zoo.check_files(tmp_path / "a.pt")
    assert report.ok and report.rows[0].compared == ""


def test_hashes_that_the_hub_stated(source: Path, tmp_path: Path) -> None:
    """A snapshot of the hub's cache, by its path: large files are named by their sha256."""
    raw = (source / "model.safetensors").read_bytes()
    blob = tmp_path / "models--a--b" / "blobs" / hashlib.sha256(raw).hexdigest()
    snapshot = tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    blob.parent.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    blob.write_bytes(raw)
    (snapshot / "model.safetensors").symlink_to(os.path.relpath(blob, snapshot))
    shutil.copy(source / "config.json", snapshot)
    report = zoo.check_files(snapshot)
    assert report.ok
    assert {row.file: row.compared for row in report.rows} == {
        "config.json": "",
        "model.safetensors": "sha256 of the hub",
    }
    change_a_weight(tmp_path / "models--a--b" / "blobs", words(source))
    with pytest.raises(ChecksumError, match=r"model\.safetensors: sha256 is .*, not " + blob.name):
        zoo.check_files(snapshot).raise_for_failure()  # though size and time are as before


def test_hashes_that_a_conversion_recorded(source: Path, tmp_path: Path) -> None:
    folder = zoo.convert(source, tmp_path / "out", "safetensors").folder
    assert folder is not None
    record = json.loads((folder / "conversion.json").read_text())
    if "files" not in record:
        record["files"] = {
            name: {"sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()}
            for name in ("config.json", "model.safetensors")
        }
        (folder / "conversion.json").write_text(json.dumps(record))
    rows = {row.file: row for row in zoo.check_files(folder).rows}
    assert rows["model.safetensors"].compared == "sha256 of the conversion"
    change_a_weight(folder, words(source))
    report = zoo.check_files(folder)
    assert [row.file for row in report.rows if row.reason] == ["model.safetensors"]


def test_on_the_command_line(
    run: Callable[..., tuple[int, str, str]], source: Path, forms: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(forms("torch"), tmp_path / "copy")
    code, out, _ = run("verify", folder, "--files")
    assert code == 0 and "CRC-32 of" in out and "all right: 1 of" in out
    change_a_weight(folder, words(source))
    code, out, err = run("verify", folder, "--files", "--json")
    assert code == 1 and "pytorch_model.bin" in err
    assert [row["file"] for row in json.loads(out)["files"] if not row["ok"]] == ["pytorch_model.bin"]
    assert run("verify", "--files")[0] == 2
