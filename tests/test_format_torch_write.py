"""Torch files written without torch: its weights-only reader takes them, and their pickle is the one it would write."""

from __future__ import annotations

import collections
import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from converters import DTYPES, open_checkpoint
from converters.checkpoint import Checkpoint, MemoryCheckpoint
from converters.formats.torch import read as torch_pickle
from converters.formats.torch import write as torch_write
from zoo.errors import FormatError


class Tied(MemoryCheckpoint):
    """Arrays of which some are told to be aliases of others."""

    def __init__(self, arrays: dict[str, np.ndarray], aliases: dict[str, str]) -> None:
        super().__init__(arrays)
        self.aliases = aliases


def arrays() -> dict[str, np.ndarray]:
    found = {name: np.arange(6).reshape(2, 3).astype(dtype) for name, dtype in DTYPES.items()}
    found |= {"0d": np.array(2.5, np.float32), "0d.int": np.array(7), "empty": np.zeros((0, 4), np.float16)}
    found |= {"empty inside": np.zeros((2, 0, 3), np.uint32), "ünïcode 😀": np.ones(1)}
    found |= {"five axes": np.ones((1, 2, 1, 300, 1), np.float32), "long": np.zeros(70_000, np.int8)}
    return found


def written(path: Path, checkpoint: Checkpoint) -> Path:
    torch_pickle.write(path, checkpoint)
    return path


def value_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("mapped", [False, True])
def test_torch_reads_every_dtype(mapped, tmp_path):
    values = arrays()
    path = written(tmp_path / "pytorch_model.bin", MemoryCheckpoint(values))
    state = torch.load(path, weights_only=True, mmap=mapped)
    assert type(state) is collections.OrderedDict and list(state) == list(values)
    for name, value in values.items():
        tensor = state[name]
        assert str(tensor.dtype) == f"torch.{value.dtype.name}" and tuple(tensor.shape) == value.shape, name
        assert value_bytes(tensor) == value.tobytes() and tensor.is_contiguous() and not tensor.requires_grad, name


def test_the_pickle_is_torch_s(tmp_path):
    values = arrays() | {f"layer.{i}.weight": np.full((i % 3, 2), i, np.float32) for i in range(1200)}
    path = written(tmp_path / "a.pt", MemoryCheckpoint(values))
    state = collections.OrderedDict((k, v.clone()) for k, v in torch.load(path, weights_only=True).items())
    other = io.BytesIO()
    torch.save(state, other)
    with zipfile.ZipFile(other) as archive:
        expected = {name: archive.read(name) for name in archive.namelist()}
    ours = members(path)
    # These describe torch's own layout of the file, from which it may compute where storages begin.
    for name in ("archive/.format_version", "archive/.storage_alignment", "archive/.data/serialization_id"):
        assert name not in ours and expected.pop(name)
    assert ours == expected


@pytest.mark.parametrize("count", [0, 1, 2, 999, 1000, 1001, 2001])
def test_the_pickle_is_torch_s_for_any_number_of_tensors(count, tmp_path):
    values = {f"{i}": np.zeros(0, np.float32) for i in range(count)}
    path = written(tmp_path / "a.pt", MemoryCheckpoint(values))
    other = io.BytesIO()
    torch.save(collections.OrderedDict((name, torch.zeros(0)) for name in values), other)
    with zipfile.ZipFile(other) as archive:
        assert members(path)["archive/data.pkl"] == archive.read("archive/data.pkl")


def test_a_module_s_state_dict(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 4))
    values = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    loaded = torch.load(written(tmp_path / "a.pt", MemoryCheckpoint(values)), weights_only=True)
    fresh = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 4))
    fresh.load_state_dict(loaded)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), fresh.parameters(), strict=True))


def test_our_reader_reads_it(tmp_path):
    values = arrays()
    with open_checkpoint(written(tmp_path / "a.pt", MemoryCheckpoint(values))) as checkpoint:
        assert list(checkpoint.infos) == list(values) and not checkpoint.metadata and checkpoint.wrapper == ""
        for name, value in values.items():
            array = checkpoint.read(name)
            assert array.dtype == value.dtype and array.shape == value.shape, name
            assert array.tobytes() == value.tobytes(), name
        again = written(tmp_path / "b.pt", checkpoint)
    assert again.read_bytes() == (tmp_path / "a.pt").read_bytes()


def test_aliases_share_a_storage(tmp_path):
    base = np.arange(6, dtype=np.float32).reshape(2, 3)
    values = {"emb": base, "other": np.ones(2, np.int64), "head": base, "flat": base.reshape(6), "gone": base}
    checkpoint = Tied(values, {"head": "emb", "flat": "emb", "gone": "missing"})
    path = written(tmp_path / "a.pt", checkpoint)
    state = torch.load(path, weights_only=True)
    assert state["head"].data_ptr() == state["emb"].data_ptr()
    assert len({state[name].data_ptr() for name in ("emb", "other", "flat", "gone")}) == 4  # shapes differ, or no such
    assert all(value_bytes(state[name]) == value.tobytes() for name, value in values.items())
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.aliases == {"head": "emb"}
    tied = torch.arange(6.0).reshape(2, 3)
    parts = {
        "emb": tied,
        "other": torch.ones(2, dtype=torch.int64),
        "head": tied.detach(),
        "flat": tied.reshape(6).clone(),
    }
    other = io.BytesIO()
    torch.save(collections.OrderedDict(parts), other)
    del values["gone"]
    path = written(tmp_path / "b.pt", Tied(values, {"head": "emb", "flat": "emb"}))
    with zipfile.ZipFile(other) as archive:
        assert members(path)["archive/data.pkl"] == archive.read("archive/data.pkl")


@pytest.mark.parametrize("large", [zipfile.ZIP64_LIMIT, 16])
def test_storages_are_aligned(large, tmp_path, monkeypatch):
    """With 16 as the limit, most storages have the header of a large one."""
    monkeypatch.setattr(torch_write, "LARGE", large)
    path = written(tmp_path / "a.pt", MemoryCheckpoint(arrays()))
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
            assert (info.header_offset + 30 + name + extra) % 64 == 0, info.filename
            assert info.compress_type == zipfile.ZIP_STORED
            if info.filename.startswith("archive/data/"):
                assert (info.extract_version == 45) == (info.file_size > large), info.filename
    for mapped in (False, True):
        state = torch.load(path, weights_only=True, mmap=mapped)
        assert all(value_bytes(state[name]) == value.tobytes() for name, value in arrays().items())
    with open_checkpoint(path) as checkpoint:
        assert all(checkpoint.read(name).tobytes() == value.tobytes() for name, value in arrays().items())


def test_any_layout_is_written(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    values = {"t": base.T, "s": base[::2, 1::3], "big": base.astype(">f4"), "bf": base.astype(ml_dtypes.bfloat16).T}
    state = torch.load(written(tmp_path / "a.pt", MemoryCheckpoint(values)), weights_only=True)
    for name, value in values.items():
        assert state[name].tolist() == value.tolist(), name


def test_large_numbers_in_the_pickle():
    """Sizes beyond 31 bits, which no test can store, against Python's pickler."""
    import pickle

    for value in (0, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**39, 2**40, 2**62):
        out = torch_write._Pickle()
        out.integer(value)
        assert bytes(out.code) + b"." == pickle.dumps(value, protocol=2)


def test_writing_holds_one_tensor_at_a_time(tmp_path):
    size = 1 << 22

    class Made(MemoryCheckpoint):
        def _read(self, info):
            return np.full(info.shape, int(info.name[1:]), np.float32)

    made = Made({f"t{i}": np.broadcast_to(np.float32(0), size // 4) for i in range(8)})
    tracemalloc.start()
    torch_pickle.write(tmp_path / "a.pt", made)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * size
    assert [int(t[-1]) for t in torch.load(tmp_path / "a.pt", weights_only=True).values()] == list(range(8))


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(FormatError, match="not valid text"):
        written(tmp_path / "a.pt", MemoryCheckpoint({"\ud800": np.zeros(1)}))
    assert not (tmp_path / "a.pt").exists()
    written(tmp_path / "a.pt", MemoryCheckpoint({"a": np.zeros(1)}))
    with pytest.raises(FileExistsError):
        written(tmp_path / "a.pt", MemoryCheckpoint({"a": np.ones(1)}))
