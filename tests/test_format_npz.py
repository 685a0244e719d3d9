"""NumPy's npz: read as NumPy reads it, written as `np.savez` writes it, and every hostile archive refused."""

from __future__ import annotations

import io
import random
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.lib import format as npy

from converters import DTYPES
from converters.checkpoint import MemoryCheckpoint
from converters.formats import npz, zips
from zoo.errors import FormatError, UnsafeFile, ZooError

SAVED = [name for name in DTYPES if not name.startswith("float8")]


def arrays() -> dict[str, np.ndarray]:
    found = {name: np.arange(6).reshape(2, 3).astype(DTYPES[name]) for name in SAVED}
    found |= {"0d": np.array(2.5, np.float32), "empty": np.zeros((0, 3), np.float16)}
    return found | {"params/a/é": np.arange(5.0), "x.npy": np.ones(1), "wide": np.zeros((1,) * 30 + (9,), np.int8)}


def loaded(path: Path) -> dict[str, np.ndarray]:
    """What NumPy reads, bfloat16 restored by hand."""
    with np.load(path, allow_pickle=False) as file:
        found = dict(file)
    return {name: a.view(ml_dtypes.bfloat16) if a.dtype == "V2" else a for name, a in found.items()}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_what_numpy_reads(save, tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    values = arrays() | {"fortran": np.asfortranarray(base), "big": base.astype(">f4"), "cube": base.reshape(2, 3, 4).T}
    values["big_complex"] = base.astype(">c8")
    save(tmp_path / "a.npz", **values)
    expected = loaded(tmp_path / "a.npz")
    with npz.open_file(tmp_path / "a.npz") as checkpoint:
        assert list(checkpoint.infos) == list(expected) == list(values)
        for name, array in checkpoint.items():
            info = checkpoint.infos[name]
            assert array.shape == info.shape == expected[name].shape, name
            assert array.dtype == DTYPES[info.dtype] == expected[name].dtype.newbyteorder("="), name
            assert array.tobytes() == expected[name].astype(array.dtype).tobytes(), name
            assert not array.flags.writeable, name
        assert checkpoint.read("fortran").flags.f_contiguous
        shared = np.shares_memory(checkpoint.read("cube"), checkpoint.read("cube"))
        assert shared == (save is np.savez)


def test_writes_what_numpy_writes(tmp_path):
    values = {name: array for name, array in arrays().items() if name != "x.npy"}
    np.savez(tmp_path / "theirs.npz", **values)
    npz.write(tmp_path / "ours.npz", MemoryCheckpoint(values), {"format": "pt"})
    assert (tmp_path / "ours.npz").read_bytes() == (tmp_path / "theirs.npz").read_bytes()
    assert npz.recognises((tmp_path / "ours.npz").read_bytes()[:512])


def test_round_trips(tmp_path):
    values = arrays()
    npz.write(tmp_path / "a.npz", MemoryCheckpoint(values))
    with npz.open_file(tmp_path / "a.npz") as checkpoint:
        npz.write(tmp_path / "b.npz", checkpoint)
        for name, value in values.items():
            assert checkpoint.read(name).tobytes() == value.tobytes() and checkpoint.infos[name].shape == value.shape
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    values = {"t": base.T, "s": base[::2, 1::3], "big": base.astype(">f4"), "bf": base.astype(ml_dtypes.bfloat16).T}
    npz.write(tmp_path / "c.npz", MemoryCheckpoint(values))
    for name, array in loaded(tmp_path / "c.npz").items():
        np.testing.assert_array_equal(array, values[name])


def test_fixtures_match_numpy(fixtures):
    paths = sorted(fixtures.glob("*/*.npz"))
    assert len(paths) > 6
    for path in paths:
        expected = loaded(path)
        with npz.open_file(path) as checkpoint:
            assert list(checkpoint.infos) == list(expected)
            for name, array in checkpoint.items():
                assert array.tobytes() == expected[name].tobytes() and array.dtype == expected[name].dtype, name


def test_writing_holds_one_tensor_at_a_time(tmp_path):
    size = 1 << 22

    class Made(MemoryCheckpoint):
        def _read(self, info):
            return np.full(info.shape, int(info.name[1:]), np.float32)

    made = Made({f"t{i}": np.broadcast_to(np.float32(0), size // 4) for i in range(8)})
    tracemalloc.start()
    npz.write(tmp_path / "a.npz", made)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * size
    with npz.open_file(tmp_path / "a.npz") as checkpoint:
        assert [int(checkpoint.read(f"t{i}")[-1]) for i in range(8)] == list(range(8))


def test_a_deflated_array_is_held_once(tmp_path):
    values = np.random.default_rng(0).integers(0, 1 << 20, 1 << 22, dtype=np.int32)
    np.savez_compressed(tmp_path / "a.npz", a=values)
    with npz.open_file(tmp_path / "a.npz") as checkpoint:
        tracemalloc.start()
        assert checkpoint.read("a").tobytes() == values.tobytes()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 3.5 * values.nbytes  # one copy is tobytes's, one what the other side compares with


@pytest.mark.parametrize("name", ["../a", "/a", "a\\b", "C:/a", "a\0b", "\ud800", "n" * 70_000])
def test_names_that_no_archive_can_hold(name, tmp_path):
    with pytest.raises(FormatError, match=r"archive|valid text"):
        npz.write(tmp_path / "a.npz", MemoryCheckpoint({name: np.zeros(1)}))
    assert not (tmp_path / "a.npz").exists()


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name not in SAVED])
def test_dtypes_that_npz_lacks(dtype, tmp_path):
    with pytest.raises(FormatError, match=dtype):
        npz.write(tmp_path / "a.npz", MemoryCheckpoint({"a": np.zeros(2, DTYPES[dtype])}))


# --- hostile archives ---


def member(descr: object = "<f4", shape: object = (2,), fortran: object = False, data: bytes = bytes(8)) -> bytes:
    """A .npy file with any header."""
    return raw_member(repr({"descr": descr, "fortran_order": fortran, "shape": shape}).encode() + b"\n", data)


def raw_member(header: bytes, data: bytes = bytes(8), version: bytes = b"\x01\x00", length: bytes = b"") -> bytes:
    size = 2 if version[0] == 1 else 4
    return b"\x93NUMPY" + version + (length or len(header).to_bytes(size, "little")) + header + data


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def test_a_hand_made_array_is_read(tmp_path):
    path = archive(tmp_path / "a.npz", {"a.npy": member(data=np.float32([1, 2]).tobytes()), "folder/": b""})
    with npz.open_file(path) as checkpoint:
        assert checkpoint.read("a").tolist() == [1, 2] and list(checkpoint.infos) == ["a"]


@pytest.mark.parametrize("descr", ["|V2", "<V2"])
def test_bfloat16_as_numpy_stores_it(descr, tmp_path):
    data = np.array([1.5, -2], ml_dtypes.bfloat16)
    with npz.open_file(archive(tmp_path / "a.npz", {"a.npy": member(descr, data=data.tobytes())})) as checkpoint:
        assert checkpoint.infos["a"].dtype == "bfloat16"
        np.testing.assert_array_equal(checkpoint.read("a"), data)


def test_headers_of_other_versions(tmp_path):
    python2 = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2L,)}\n"
    header = python2.replace(b"L", b"")
    members = {"a.npy": raw_member(python2), "b.npy": raw_member(header, version=b"\x02\x00")}
    members["c.npy"] = raw_member(header, version=b"\x03\x00")
    with npz.open_file(archive(tmp_path / "a.npz", members)) as checkpoint:
        assert [checkpoint.read(name).tolist() for name in "abc"] == [[0, 0]] * 3


HOSTILE = {
    "objects": (member("|O"), "pickle"),
    "objects in fields": (member([("a", "<i4"), ("b", "|O")]), "pickle"),
    "fields": (member([("a", "<i4"), ("b", "<f4")], (1,)), "dtype"),
    "text": (member("<U1"), "dtype"),
    "times": (member("<M8[s]", (1,)), "dtype"),
    "raw bytes": (member("|V1", (8,)), "dtype"),
    "unknown dtype": (member("<q9"), "header"),
    "huge dtype": (member("|V2000000000", (1,)), "dtype"),
    "too short": (member(shape=(3,)), "fill"),
    "too long": (member(shape=(1,)), "fill"),
    "huge": (member(shape=(1 << 40,)), "fill"),
    "shape that overflows": (member(shape=(1 << 62, 1 << 62)), "list of sizes"),
    "negative": (member(shape=(-1, -2)), "list of sizes"),
    "shape of bools": (member(shape=(True, 2)), "list of sizes"),
    "shape of floats": (member(shape=(2.0,)), "header"),
    "shape of text": (member(shape="ab"), "header"),
    "sixty-five axes": (member(shape=(1,) * 64 + (2,)), "list of sizes"),
    "order of text": (member(fortran="yes"), "header"),
    "no array": (b"hello", "header"),
    "empty": (b"", "header"),
    "only a magic number": (b"\x93NUMPY\x01\x00", "header"),
    "version 9": (raw_member(b"{}", version=b"\x09\x00"), "unknown version"),
    "header beyond the member": (raw_member(b"{}", length=b"\xff\xff"), "header"),
    "header of 2**32": (raw_member(b"{}", version=b"\x02\x00", length=b"\xff" * 4), "header"),
    "long header": (raw_member(b"{" + b" " * 60_000 + b"}\n"), "header"),
    "nested header": (raw_member(b"(" * 9000 + b")" * 900 + b"\n"), "header"),
    "minus signs": (raw_member(b"-" * 9000 + b"1\n"), "header"),
    "a call": (raw_member(b"__import__('os').system('true')\n"), "header"),
    "missing key": (raw_member(b"{'descr': '<f4', 'shape': (2,)}\n"), "header"),
}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_arrays(case, compression, tmp_path, monkeypatch):
    monkeypatch.setattr(zips, "MAX_INFLATION", 1000)
    data, words = HOSTILE[case]
    path = archive(tmp_path / "a.npz", {"good.npy": member(), "bad.npy": data}, compression)
    tracemalloc.start()
    with pytest.raises(UnsafeFile if "objects" in case else FormatError, match=words) as caught:
        npz.open_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in str(caught.value) and "'bad'" in str(caught.value)
    assert peak < 16 << 20


def test_saved_pickles_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([print, {}], object))
    with pytest.raises(UnsafeFile, match="pickle"):
        npz.open_file(tmp_path / "a.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_hostile_archives(tmp_path):
    def refused(path: Path, words: str, error: type[ZooError] = FormatError) -> None:
        tracemalloc.start()
        with pytest.raises(error, match=words) as caught:
            npz.open_file(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert str(path) in str(caught.value) and peak < 64 << 20

    refused(archive(tmp_path / "a.npz", {"../a.npy": member()}), "leaves", UnsafeFile)
    refused(archive(tmp_path / "b.npz", {"a.txt": b"x"}), "no array")
    refused(archive(tmp_path / "c.npz", {"a.npy": member()}, zipfile.ZIP_LZMA), "unknown way")
    bomb = member(shape=(1 << 22,), data=bytes(1 << 24))
    refused(archive(tmp_path / "d.npz", {"a.npy": bomb}, zipfile.ZIP_DEFLATED), "far larger")
    with zipfile.ZipFile(tmp_path / "e.npz", "w") as file:
        file.writestr("a.npy", member())
        file.writestr("a.npy", member())
    refused(tmp_path / "e.npz", "twice")
    refused(archive(tmp_path / "f.npz", {f"{i}.npy": b"" for i in range(90_000)}), "directory is too long")
    for name, data in (("g.npz", b""), ("h.npz", b"PK\x03\x04"), ("i.npz", b"<html>"), ("j.npz", b"\x93NUMPY" * 9)):
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, "empty|zip|web page")


def test_damage(tmp_path):
    path = tmp_path / "a.npz"
    values = {"a": np.arange(6.0), "b": np.ones((2, 2), np.int16)}
    random_ = random.Random(0)
    for save in (np.savez, np.savez_compressed):
        save(path, **values)
        whole = path.read_bytes()
        for size in range(0, len(whole), 7):
            path.write_bytes(whole[:size])
            with pytest.raises(FormatError):
                npz.open_file(path)
        refused = 0
        for _ in range(400):
            data = bytearray(whole)
            for _ in range(random_.choice([1, 1, 2, 8])):
                data[random_.randrange(len(data))] = random_.randrange(256)
            path.write_bytes(data)
            try:
                with npz.open_file(path) as checkpoint:
                    assert sum(array.nbytes for _, array in checkpoint.items()) <= 16 * len(data)
            except ZooError:
                refused += 1
        assert refused >= 300


def test_recognises_archives_of_arrays():
    buffer = io.BytesIO()
    np.savez(buffer, **{"params/" + "x" * 300: np.zeros(1)})
    assert npz.recognises(buffer.getvalue()[:512])
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("archive/data.pkl", b".")
    assert not npz.recognises(other.getvalue()[:512])
    for head in (b"", b"PK\x03\x04", npy.MAGIC_PREFIX):
        assert not npz.recognises(head)
