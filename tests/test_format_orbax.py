"""Orbax checkpoints both ways against Orbax itself, bit for bit, and damaged ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from converters import DTYPES
from converters.checkpoint import Checkpoint, MemoryCheckpoint
from zoo.errors import FormatError, SourceError, UnsafeFile, ZooError

pytest.importorskip("tensorstore")
ocp = pytest.importorskip("orbax.checkpoint")
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from converters.formats import orbax  # noqa: E402
from converters.formats.orbax import open_file, recognises_folder, write  # noqa: E402

STORED = sorted(DTYPES.keys() - {"float8_e8m0fnu"})


def tree() -> dict:
    random_ = np.random.default_rng(0)
    return {
        "params": {
            "dense": {
                "kernel": jnp.asarray(random_.standard_normal((3, 4)), jnp.float32),
                "bias": jnp.ones(4, jnp.bfloat16),
            },
            "layers": [jnp.zeros((2, 2), jnp.float16), jnp.array(3)],
            "dotted.key": np.arange(3),
        },
        "mask": np.array([True, False]),
        "step": 5,
        "nothing": {},
        "text": "hello",
    }


def flat(given: dict) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(given)
    names = {"/".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path): leaf for path, leaf in leaves}
    return {name: np.asarray(leaf) for name, leaf in names.items() if not isinstance(leaf, str)}


def assert_holds(checkpoint: Checkpoint, expected: dict[str, np.ndarray]) -> None:
    assert checkpoint.infos.keys() == expected.keys()
    for name, array in expected.items():
        got, info = checkpoint.read(name), checkpoint.infos[name]
        assert got.shape == info.shape == array.shape, name
        assert got.dtype == DTYPES[info.dtype] == array.dtype, name
        assert got.tobytes() == array.tobytes(), name
        assert not got.flags.writeable


@pytest.fixture(scope="module", params=["ocdbt", "zarr folders", "zarr 3"])
def saved(request, tmp_path_factory) -> Path:
    """The tree as Orbax writes it, in each of its layouts."""
    path = tmp_path_factory.mktemp("orbax") / "check #1? 100%20 é"
    options = {"ocdbt": {}, "zarr folders": {"use_ocdbt": False}, "zarr 3": {"use_zarr3": True}}[request.param]
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(path, tree())
    return path


def test_reads_what_orbax_wrote(saved):
    assert recognises_folder(saved) and recognises_folder(saved.parent) and not recognises_folder(saved / "d")
    for path in (saved, saved.parent):
        with open_file(path) as checkpoint:
            assert checkpoint.path == saved
            assert_holds(checkpoint, flat(tree()))
            assert checkpoint.metadata["not_tensors"] == {"nothing": "Dict", "text": "string"}


def test_reads_a_standard_checkpoint(tmp_path):
    given = {k: v for k, v in tree().items() if k != "text"}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a", given)
        checkpointer.wait_until_finished()
    with open_file(tmp_path / "a") as checkpoint:
        assert_holds(checkpoint, flat(given))
    (tmp_path / "a" / "_METADATA").unlink()  # as versions before 0.4 left it
    with open_file(tmp_path / "a") as checkpoint:
        assert checkpoint.read("params/dense/kernel").tobytes() == flat(given)["params/dense/kernel"].tobytes()


def arrays() -> dict[str, np.ndarray]:
    base = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    found = {
        "params/dense/kernel": base,
        "bert.encoder.layer.0.weight": base * 2,
        "transposed": base.T,
        "strided": base[1:5, ::2],
        "scalar": np.array(3.5, np.float32),
        "zeros": np.zeros((3, 3), np.float32),
        "ünïcode": np.ones(1, np.float32),
    }
    return found | {f"dtypes/{name}": np.arange(5).astype(DTYPES[name]) for name in STORED}


def nested(given: dict[str, np.ndarray]) -> dict:
    out: dict = {}
    for name, array in given.items():
        *folders, last = name.split("/")
        place = out
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = array
    return out


def test_orbax_reads_what_we_wrote(tmp_path):
    given = arrays()
    path = tmp_path / "checkpoint"
    write(path, MemoryCheckpoint(given | {"big-endian": given["transposed"].astype(">f4")}), {"who": "me"})
    given["big-endian"] = given["transposed"]
    with open_file(path) as checkpoint:
        assert_holds(checkpoint, given)
    with ocp.PyTreeCheckpointer() as checkpointer:
        restored = flat(checkpointer.restore(path))
    assert restored.keys() == given.keys()
    for name, array in given.items():
        assert restored[name].dtype == array.dtype and restored[name].shape == array.shape, name
        assert restored[name].tobytes() == array.tobytes(), name
    with ocp.StandardCheckpointer() as checkpointer:
        restored = flat(checkpointer.restore(path, nested(given)))
    assert all(restored[name].tobytes() == array.tobytes() for name, array in given.items())


def test_large_arrays_go_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(orbax, "BLOCK", 4096)
    big = np.random.default_rng(0).standard_normal((301, 40)).astype(np.float32)

    class Pieces(MemoryCheckpoint):
        def blocks(self, name, size=0):
            yield from super().blocks(name, 7 * 160)

    write(tmp_path / "a", Pieces({"big": big}))
    with open_file(tmp_path / "a") as checkpoint:
        assert checkpoint.read("big").tobytes() == big.tobytes()
        pieces = list(checkpoint.blocks("big", 10_000))
        assert [len(piece) for piece in pieces] == [50, 50, 50, 50, 50, 50, 1]
        assert np.concatenate(pieces).tobytes() == big.tobytes()
        assert len(list(checkpoint.blocks("big", 1))) == -(-301 // 25)
    with ocp.PyTreeCheckpointer() as checkpointer:
        assert checkpointer.restore(tmp_path / "a")["big"].tobytes() == big.tobytes()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a", "a/b"], "cannot stand"),
        (["a/b", "a.b"], "cannot stand"),
        (["a//b"], "cannot stand"),
        (["/a"], "cannot stand"),
        ([".."], "cannot stand"),
        (["x" * 5000], "cannot be stored"),
    ],
)
def test_names_that_cannot_be_written(names, words, tmp_path):
    with pytest.raises(FormatError, match=words):
        write(tmp_path / "a", MemoryCheckpoint({name: np.ones(1) for name in names}))


def test_empty_tensors_cannot_be_written(tmp_path):
    with pytest.raises(FormatError, match="empty"):
        write(tmp_path / "a", MemoryCheckpoint({"a": np.ones((0, 3))}))


# --- damaged and hostile ---


@pytest.fixture
def folder(tmp_path) -> Path:
    """Folders of zarr 2, as Orbax writes them."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(tmp_path / "a", {"w": np.arange(1000.0).reshape(10, 100), "v": np.ones(3)})
    return tmp_path / "a"


@pytest.fixture
def ours(tmp_path) -> Path:
    """Folders of zarr 3, as we write them."""
    write(tmp_path / "ours", MemoryCheckpoint({"w": np.arange(1000.0).reshape(10, 100), "v": np.ones(3)}))
    return tmp_path / "ours"


def test_every_chunk_that_we_write_has_a_checksum(ours):
    with open_file(ours) as checkpoint:
        assert checkpoint.check() == "CRC-32C of the chunks of 2 arrays"
    (chunk,) = [path for path in (ours / "w").rglob("*") if path.is_file() and path.name != "zarr.json"]
    whole = chunk.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        chunk.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with open_file(ours) as checkpoint, pytest.raises(FormatError, match="tensor 'w'"):
            checkpoint.read("w")


def chunks_of(*sizes: int) -> dict[str, object]:
    return {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": sizes}}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": [1 << 40, 100], **chunks_of(10, 100)}, "far larger|do not fit"),
        ({"shape": [1 << 24, 1 << 24], **chunks_of(1 << 20, 1 << 20)}, "far larger"),
        ({"shape": [1 << 62, 100]}, "w'"),
        (chunks_of(1 << 40, 100), "do not fit"),
        ({"shape": [1 << 21, 1], **chunks_of(1, 1)}, "do not fit|far larger"),
        (chunks_of(0, 0), "w'"),
        ({"data_type": "r64"}, "w'"),
        ({"codecs": [{"name": "pickle"}]}, "w'"),
        ({"shape": "x"}, "w'"),
    ],
)
def test_arrays_of_zarr_3_that_lie(changes, words, ours):
    change(ours / "w" / "zarr.json", **changes)
    with pytest.raises(FormatError, match=words) as caught:
        open_file(ours)
    assert str(ours) in str(caught.value)


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": [1 << 40, 100], "chunks": [10, 100]}, "far larger|do not fit"),
        ({"shape": [1 << 24, 1 << 24], "chunks": [1 << 20, 1 << 20]}, "far larger"),
        ({"shape": [1 << 62, 100]}, "w'"),
        ({"chunks": [1 << 40, 100]}, "do not fit"),
        ({"shape": [1 << 21, 1], "chunks": [1, 1]}, "do not fit|far larger"),
        ({"chunks": [0, 0]}, "w'"),
        ({"dtype": "|O"}, "w'"),
        ({"dtype": "|S8"}, "w'"),
        ({"compressor": {"id": "pickle"}}, "w'"),
        ({"shape": "x"}, "w'"),
    ],
)
def test_arrays_that_lie(changes, words, folder):
    change(folder / "w" / ".zarray", **changes)
    with pytest.raises(FormatError, match=words) as caught:
        open_file(folder)
    assert str(folder) in str(caught.value)


def test_damaged_chunks_are_found_when_they_are_read(folder):
    chunk = folder / "w" / "0.0"
    whole = chunk.read_bytes()
    for data in (whole[:-20], whole[:20] + b"\xff" * 20 + whole[40:], b""):
        chunk.write_bytes(data)
        with open_file(folder) as checkpoint, pytest.raises(FormatError, match="tensor 'w'"):
            checkpoint.read("w")
    shutil.rmtree(folder / "w")
    with pytest.raises(FormatError, match="tensor 'w'"):
        open_file(folder)


@pytest.mark.parametrize(
    ("tree", "error"),
    [
        ("not json", FormatError),
        ([], FormatError),
        ({}, FormatError),
        ({"tree_metadata": []}, FormatError),
        ({"tree_metadata": {"a": 3}}, FormatError),
        ({"tree_metadata": {"a": {"key_metadata": [{"key": 3}], "value_metadata": {"value_type": "x"}}}}, FormatError),
        ({"tree_metadata": {"a": {"key_metadata": [], "value_metadata": {"value_type": "scalar"}}}}, UnsafeFile),
        *(
            (
                {"tree_metadata": {"a": {"key_metadata": [{"key": key}], "value_metadata": {"value_type": "scalar"}}}},
                UnsafeFile,
            )
            for key in ("../w", "/w", "x/../../w", "a\\b", "a\0b", ".", "..")
        ),
    ],
)
def test_descriptions_that_lie(tree, error, folder):
    (folder / "_METADATA").write_text(tree if isinstance(tree, str) else json.dumps(tree))
    with pytest.raises(error) as caught:
        open_file(folder)
    assert str(folder) in str(caught.value)


NESTED = {"lists": "[" * 100_000, "objects": '{"a":' * 100_000, "a field": '{"shape":' + "[" * 100_000}


@pytest.mark.parametrize("text", NESTED.values(), ids=NESTED)
def test_nested_json_ends_no_process_of_ours(text, folder, ours):
    """tensorstore's parser overflows the stack; here it was the user's process that ended, by SIGSEGV."""
    for path in (folder / "w" / ".zarray", ours / "w" / "zarr.json"):
        assert path.is_file()
        path.write_text(text)
        with pytest.raises(FormatError, match=r"'w' is missing or damaged|brought its reader down"):
            open_file(path.parents[1])


def test_nested_json_inside_a_store(tmp_path):
    ts = pytest.importorskip("tensorstore")
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a", {"w": np.arange(9.0)})
    files = {"driver": "file", "path": f"{tmp_path / 'a'}/"}
    store = ts.KvStore.open({"driver": "ocdbt", "base": files}).result()
    (key,) = [key for key in store.list().result() if key.endswith((b".zarray", b"zarr.json"))]
    store.write(key, NESTED["lists"].encode()).result()
    with pytest.raises(FormatError, match=r"'w' is missing or damaged|brought its reader down"):
        open_file(tmp_path / "a")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_reading_before_and_after_a_fork(folder):
    code = (
        "import os, sys; from converters import open_checkpoint\n"
        "read = lambda: open_checkpoint(sys.argv[1]).read('v').tolist()\n"
        "assert read() == [1, 1, 1]\n"
        "child = os.fork()\n"
        "print(read(), flush=True)\n"
        "if not child: os._exit(0)\n"
        "print(os.waitpid(child, 0)[1])\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[1], check=True
    )
    assert sorted(done.stdout.split("\n")) == ["", "0", "[1.0, 1.0, 1.0]", "[1.0, 1.0, 1.0]"]


def test_a_process_that_ends(folder):
    with open_file(folder) as checkpoint:
        checkpoint._reader._process.kill()
        with pytest.raises(FormatError, match="brought its reader down"):
            checkpoint.read("w")


@pytest.mark.parametrize("codecs", [[], [{"name": "crc32c"}]])
def test_checksums_of_zarr_3(codecs, tmp_path):
    ts = pytest.importorskip("tensorstore")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=True)) as checkpointer:
        checkpointer.save(tmp_path / "a", {"w": np.arange(9.0)})
    files = {"driver": "file", "path": f"{tmp_path / 'a' / 'w'}/"}
    metadata = {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, *codecs], "shape": [9]}
    spec = {"driver": "zarr3", "kvstore": files, "metadata": metadata, "dtype": "float64"}
    ts.open({**spec, "create": True, "delete_existing": True}).result().write(np.arange(9.0)).result()
    (chunk,) = [path for path in (tmp_path / "a" / "w").rglob("*") if path.is_file() and path.name != "zarr.json"]
    data = bytearray(chunk.read_bytes())
    data[70] ^= 1
    with open_file(tmp_path / "a") as checkpoint:
        assert checkpoint.check() == ("CRC-32C of the chunks of 1 arrays" if codecs else "")
    chunk.write_bytes(data)
    with open_file(tmp_path / "a") as checkpoint:
        if codecs:
            with pytest.raises(FormatError, match="tensor 'w'"):
                checkpoint.check()
        else:
            assert checkpoint.read("w").tolist() != list(range(9))  # what no reader can tell


def test_links_out_of_the_folder(folder, tmp_path):
    secret = tmp_path / "secret"
    shutil.move(folder / "w", secret)
    (folder / "w").symlink_to("../secret")
    with pytest.raises(UnsafeFile, match="leads out"):
        open_file(folder)


def test_no_checkpoint(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        assert not recognises_folder(path)
        with pytest.raises(SourceError, match="no Orbax checkpoint"):
            open_file(path)


def test_random_damage_to_a_store_gives_only_our_errors(tmp_path):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a", {"w": np.arange(1000.0)})
    random_, tried, refused = np.random.default_rng(0), 0, 0
    files = [path for path in sorted((tmp_path / "a").rglob("*")) if path.is_file()]
    for path in files:
        whole = path.read_bytes()
        for _ in range(5 if whole else 0):  # each is read in a process of its own
            tried, data = tried + 1, bytearray(whole)
            data[random_.integers(len(data))] ^= 1 << int(random_.integers(8))
            path.write_bytes(data if random_.random() < 0.7 else data[: int(random_.integers(len(data)))])
            try:
                with open_file(tmp_path / "a") as checkpoint:
                    for _, array in checkpoint.items():
                        array.tobytes()
            except ZooError:
                refused += 1
        path.write_bytes(whole)
    assert refused >= tried // 5
