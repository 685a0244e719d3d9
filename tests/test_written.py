"""Writing where something is already: only what we wrote, and nobody changed since, gives way; all else stays."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import checkpoints
import kills
import numpy as np
import pytest

import zoo
from zoo import cli
from zoo.errors import ConfigError, SourceError, ZooError

Write = Callable[..., object]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkpoints.save(tmp_path_factory.mktemp("source") / "bert-cls", "bert-cls")
    (folder / "vocab.txt").write_text("[PAD]\n")
    return folder


@pytest.fixture(params=["convert", "save", "capture"])
def write(request: pytest.FixtureRequest, source: Path) -> Write:
    """(folder, overwrite=…) writes there, each in its own way."""
    if request.param == "convert":
        return lambda folder, **options: zoo.convert(source, folder, "npz", **options)
    if request.param == "save":
        return zoo.load(source, "numpy").save
    return zoo.capture(source).save


def test_the_list_says_what_was_written(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "out")
    found = kills.digests(tmp_path / "out") or {}
    listed = json.loads((tmp_path / "out" / "conversion.json").read_text())["files"]
    assert {name: state["sha256"] for name, state in listed.items()} == {
        name: digest for name, digest in found.items() if name != "conversion.json"
    }
    assert all((tmp_path / "out" / name).stat().st_size == state["size"] for name, state in listed.items())


def test_other_files_stay(write: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out)
    (out / "notes.txt").write_text("mine")
    (out / "notes.txt").chmod(0o400)
    (out / "deep" / "er").mkdir(parents=True)
    (out / "deep" / "er" / "thesis.tex").write_text("years")
    (out / "empty").mkdir()
    (out / "link").symlink_to("nowhere")
    before = kills.digests(out)
    with pytest.raises(ConfigError, match="--overwrite") as caught:
        write(out)
    assert str(out) in str(caught.value) and kills.digests(out) == before
    write(out, overwrite=True)
    assert kills.digests(out) == before
    assert (out / "empty").is_dir() and os.readlink(out / "link") == "nowhere"
    assert (out / "notes.txt").stat().st_mode & 0o777 == 0o400
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_changed_file_is_refused_by_name(write: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out)
    (out / "vocab.txt").write_text("[UNK]\n")  # of the same size
    before = kills.digests(out)
    with pytest.raises(ConfigError, match=r"vocab\.txt"):
        write(out, overwrite=True)
    assert kills.digests(out) == before
    (out / "vocab.txt").unlink()
    (out / "vocab.txt").symlink_to("config.json")
    with pytest.raises(ConfigError, match=r"vocab\.txt"):
        write(out, overwrite=True)
    (out / "vocab.txt").unlink()  # what is gone is no loss
    write(out, overwrite=True)
    assert (out / "vocab.txt").read_text() == "[PAD]\n"


@pytest.mark.parametrize("record", [None, "{", "[]", "{}", '{"files": 3}', '{"to": "npz", "tensors": 2}'])
def test_without_a_list_all_stays(record: str | None, write: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.npz").write_text("mine")
    if record is not None:
        (out / "conversion.json").write_text(record)
    before = kills.digests(out)
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="something else"):
            write(out, overwrite=overwrite)
    assert kills.digests(out) == before


def test_a_list_that_lies(write: Write, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    for listed in ({"../victim": {}}, {"a.txt": None}, {"a.txt": {"size": "4", "sha256": 0}}):
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        (out / "a.txt").write_text("mine")
        (out / "conversion.json").write_text(json.dumps({"files": listed}))
        if "a.txt" in listed:
            with pytest.raises(ConfigError, match=r"a\.txt"):
                write(out, overwrite=True)
        else:
            write(out, overwrite=True)
        assert (out / "a.txt").read_text() == (tmp_path / "victim").read_text() == "mine"


def test_a_file_of_the_user_with_a_name_that_is_needed(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    zoo.convert(source, out, "npz")
    (out / "model.safetensors").write_text("mine")
    before = kills.digests(out)
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        zoo.convert(source, out, "safetensors", overwrite=True)
    (out / "model.safetensors").unlink()
    (out / "model.safetensors").mkdir()
    (out / "model.safetensors" / "mine").write_text("years")
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        zoo.convert(source, out, "safetensors", overwrite=True)
    assert (out / "model.safetensors" / "mine").read_text() == "years"
    assert before is not None and (kills.digests(out) or {}).items() >= {
        (name, digest) for name, digest in before.items() if name != "model.safetensors"
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_old_weights_go_where_the_form_changes(source: Path, tmp_path: Path) -> None:
    """Shards and folders among them; two files of weights in a folder could not be told apart."""
    pytest.importorskip("tensorstore")
    out = tmp_path / "out"
    for form, options in (("orbax", {}), ("safetensors", {"shard_size": 20_000}), ("flax", {}), ("orbax", {})):
        zoo.convert(source, out, form, overwrite=True, **options)
        listed = json.loads((out / "conversion.json").read_text())["files"]
        assert {*listed, "conversion.json"} == set(kills.digests(out) or {})
        again = zoo.load(out, "numpy")
        assert set(again.params) == set(zoo.load(source, "numpy").params)
    (out / "checkpoint" / "mine.txt").write_text("years")
    zoo.convert(source, out, "npz", overwrite=True)
    assert (out / "checkpoint" / "mine.txt").read_text() == "years"
    assert not (out / "checkpoint" / "_METADATA").exists()


def test_a_failure_leaves_all_of_it(
    write: Write, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write(out)
    (out / "mine.txt").write_text("years")
    before = kills.digests(out)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for place in ("converters.formats.npz.write", "converters.formats.safetensors.write"):
        monkeypatch.setattr(place, full)
    with pytest.raises(SourceError, match="No space left") as caught:
        write(out, overwrite=True)
    assert str(out) in str(caught.value)
    assert kills.digests(out) == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_where_the_folder_should_be(write: Write, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    for out in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(ZooError):
            write(out, overwrite=True)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_link_to_the_folder_stays_one(write: Write, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    write(tmp_path / "out")
    (tmp_path / "disk" / "mine.txt").write_text("years")
    write(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").is_symlink() and (tmp_path / "disk" / "mine.txt").read_text() == "years"


def test_the_command_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def code(*arguments: object) -> int:
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        return int(end.value.code or 0)

    for command in (("convert", source, tmp_path / "a"), ("capture", source, "-o", tmp_path / "b")):
        assert code(*command) == 0
        (Path(str(command[-1])) / "mine.txt").write_text("years")
        assert code(*command) == 2 and "--overwrite" in capsys.readouterr().err
        assert code(*command, "--overwrite") == 0
        assert (Path(str(command[-1])) / "mine.txt").read_text() == "years"
    page = tmp_path / "page.html"
    page.write_text("mine")
    assert code("list", "--html", page) == 2 and page.read_text() == "mine"
    assert code("list", "--html", page, "--overwrite") == 0 and "<html" in page.read_text("utf-8")
    assert code("list", "--overwrite") == 2
    assert np.allclose(
        zoo.load(tmp_path / "b", "numpy")(**checkpoints.inputs_of("bert-cls")).logits,
        zoo.load(source, "numpy")(**checkpoints.inputs_of("bert-cls")).logits,
    )


def test_what_another_program_writes_meanwhile_stays(source: Path, tmp_path: Path) -> None:
    """Files that came between the look through the old folder and the exchange went with it: 219 of 300."""
    out = tmp_path / "out"
    zoo.convert(source, out, "flax")
    over = threading.Event()
    written: dict[Path, str] = {}

    def write() -> None:
        (out / "deep").mkdir()
        while not over.is_set():
            number = len(written)
            path = out / ("deep" if number % 3 else "") / f"log{number}.txt"
            try:
                path.write_text(str(number))
            except FileNotFoundError:
                continue  # the folders are changing places
            written[path] = str(number)
            time.sleep(0.0005)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for form in ("npz", "flax", "safetensors"):
            zoo.convert(source, out, form, overwrite=True)
    finally:
        over.set()
        thread.join()
    assert len(written) > 20
    assert {path: path.read_text() for path in written if path.is_file()} == written
    assert (out / "model.safetensors").is_file() and not (out / "flax_model.msgpack").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
