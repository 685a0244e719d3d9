"""llama2.c's files: every byte of the file is in exactly one tensor, and headers that lie are refused."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from converters.formats import llama2c
from zoo.errors import FormatError, ZooError

DIM, HIDDEN, LAYERS, HEADS, KV, VOCAB, LENGTH = 8, 12, 3, 4, 2, 7, 5
SIZES = (DIM, HIDDEN, LAYERS, HEADS, KV, VOCAB, LENGTH)
SHAPES = {
    "tok_embeddings.weight": (VOCAB, DIM),
    "attention_norm": (DIM,),
    "attention.wq": (DIM, DIM),
    "attention.wk": (DIM // 2, DIM),
    "attention.wv": (DIM // 2, DIM),
    "attention.wo": (DIM, DIM),
    "ffn_norm": (DIM,),
    "feed_forward.w1": (HIDDEN, DIM),
    "feed_forward.w2": (DIM, HIDDEN),
    "feed_forward.w3": (HIDDEN, DIM),
    "norm.weight": (DIM,),
    "freqs_cos": (LENGTH, 1),
    "freqs_sin": (LENGTH, 1),
    "output.weight": (VOCAB, DIM),
}
VERSION_1 = [
    *("attention_norm", "ffn_norm", "norm.weight", "tok_embeddings.weight"),
    *("attention.wq", "attention.wk", "attention.wv", "attention.wo"),
    *("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "output.weight"),
]


def model(version: int, shared: bool) -> tuple[bytes, dict[str, np.ndarray]]:
    """A file as llama2.c's export.py writes it, and its tensors in the file's order."""
    order = [name for name in (VERSION_1 if version else SHAPES) if not (shared and name == "output.weight")]
    values: dict[str, np.ndarray] = {}
    random_ = np.random.default_rng(0)
    for kind in order:
        layered = kind.startswith(("attention", "ffn", "feed"))
        for name in [f"layers.{i}.{kind}.weight" for i in range(LAYERS)] if layered else [kind]:
            values[name] = random_.standard_normal(SHAPES[kind], np.float32)
    if version:
        head = struct.pack("<Ii7iB", 0x616B3432, version, *SIZES, shared).ljust(256, b"\0")
    else:
        head = struct.pack("<7i", *SIZES[:5], VOCAB if shared else -VOCAB, LENGTH)
    return head + b"".join(value.tobytes() for value in values.values()), values


def stored(folder: Path, data: bytes) -> Path:
    path = folder / "model.bin"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("version", [0, 1])
def test_reads_every_tensor(version, shared, tmp_path):
    data, values = model(version, shared)
    assert llama2c.recognises(data[:512])
    with llama2c.open_file(stored(tmp_path, data)) as checkpoint:
        names = list(values) + (["output.weight"] if shared else [])
        assert list(checkpoint.infos) == names and checkpoint.format == "llama2c"
        for name, value in values.items():
            array = checkpoint.read(name)
            assert checkpoint.infos[name].dtype == "float32" and array.dtype == np.float32
            assert array.shape == value.shape and array.tobytes() == value.tobytes(), name
        assert checkpoint.aliases == ({"output.weight": "tok_embeddings.weight"} if shared else {})
        if shared:
            assert np.shares_memory(checkpoint.read("output.weight"), checkpoint.read("tok_embeddings.weight"))
        keys = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
        assert checkpoint.metadata == dict(zip(keys, SIZES, strict=True)) | {"version": version, "shared": int(shared)}
        assert all(type(value) is int for value in checkpoint.metadata.values())


def test_a_whole_model(fixtures):
    path = fixtures / "llama" / "model.bin"
    raw = path.read_bytes()
    assert llama2c.recognises(raw[:512])
    with llama2c.open_file(path) as checkpoint:
        whole = b"".join(array.tobytes() for name, array in checkpoint.items() if name not in checkpoint.aliases)
        assert raw[:28] + whole == raw
        assert checkpoint.metadata["vocab_size"] == 440 and "trailing_bytes" not in checkpoint.metadata
        assert checkpoint.infos["layers.2.attention.wk.weight"].shape == (16, 32)
        # The tables of the rotary embedding, near the file's end, tell that everything before them was found.
        cosines, sines = checkpoint.read("freqs_cos"), checkpoint.read("freqs_sin")
        assert cosines.shape == (64, 2) and (cosines[0] == 1).all() and (sines[0] == 0).all()
        assert ((cosines**2 + sines**2).round(4) == 1).all()


def test_a_tokenizer_after_the_model(tmp_path):
    data, values = model(0, True)
    with llama2c.open_file(stored(tmp_path, data + b"tokenizer")) as checkpoint:
        assert checkpoint.metadata["trailing_bytes"] == 9
        assert all(checkpoint.read(name).tobytes() == value.tobytes() for name, value in values.items())


def sizes(**changes: int) -> bytes:
    names = ("dim", "hidden", "layers", "heads", "kv", "vocab", "length")
    return struct.pack("<7i", *(dict(zip(names, SIZES, strict=True)) | changes).values())


BODY = model(0, True)[0][28:]
V1 = model(1, True)[0]
HOSTILE = {
    "nothing": (b"", "empty"),
    "a few bytes": (b"\x08\0\0\0", "sizes"),
    "a header only": (sizes(), "truncated"),
    "one byte short": (sizes() + BODY[:-1], "truncated"),
    "more after the model than in it": (sizes() + BODY * 3, "no tensor claims"),
    "a classifier that is not there": (sizes(vocab=-VOCAB) + BODY, "truncated"),
    "zero layers": (sizes(layers=0) + BODY, "sizes"),
    "negative width": (sizes(dim=-8) + BODY, "sizes"),
    "no words": (sizes(vocab=0) + BODY, "sizes"),
    "vocabulary of -2**31": (sizes(vocab=-(1 << 31)) + BODY, "sizes"),
    "huge": (sizes(dim=65536, hidden=1 << 20, layers=1024, vocab=1 << 22, length=1 << 24) + BODY, "truncated"),
    "heads that do not divide": (sizes(heads=3) + BODY, "sizes"),
    "groups that do not divide": (sizes(kv=3) + BODY, "sizes"),
    "heads of odd width": (sizes(dim=12, heads=4) + BODY, "sizes"),
    "version 2": (V1[:4] + b"\x02\0\0\0" + V1[8:], "int8"),
    "version 3": (V1[:4] + b"\x03\0\0\0" + V1[8:], "unknown version"),
    "version 1: truncated": (V1[:-1], "truncated"),
    "version 1: in the header": (V1[:40], "sizes"),
    "version 1: four bytes": (V1[:4], "version 0"),
    "version 1: trailing": (V1 + b"\0", "no tensor claims"),
    "version 1: flag of 2": (V1[:36] + b"\x02" + V1[37:], "sizes"),
    "version 1: negative vocabulary": (V1[:28] + struct.pack("<i", -VOCAB) + V1[32:], "sizes"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(case, tmp_path):
    data, words = HOSTILE[case]
    path = stored(tmp_path, data)
    tracemalloc.start()
    with pytest.raises(FormatError, match=words) as caught:
        llama2c.open_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in str(caught.value) and peak < 1 << 20


def test_damage(tmp_path):
    random_ = random.Random(0)
    for version, least in ((0, 55), (1, 60)):
        refused = 0
        whole, _ = model(version, True)
        for _ in range(100):
            data = bytearray(whole)
            for _ in range(random_.choice([1, 1, 2, 8])):
                data[random_.randrange(64)] = random_.randrange(256)
            try:
                with llama2c.open_file(stored(tmp_path, bytes(data))) as checkpoint:
                    assert sum(array.nbytes for _, array in checkpoint.items()) <= 2 * len(data)
            except ZooError:
                refused += 1
        assert refused >= least


def test_recognises_nothing_else():
    others = [b"", b"24k", sizes()[:27], bytes(64), b"PK\x03\x04" * 16, b"GGUF" + struct.pack("<IQQ", 3, 100, 20) * 3]
    others += [struct.pack("<Q", 4000) + b'{"__metadata__":{"format":"pt"}}' * 4, b"\x89HDF\r\n\x1a\n" + bytes(64)]
    others += [b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" + b"." * 64, b"\x81\xa1a" * 20]
    assert not any(map(llama2c.recognises, others))
