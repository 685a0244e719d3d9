"""Text out of files that is made to harm: what a terminal obeys, what no encoding holds, what parsers fall over."""

from __future__ import annotations

import errno
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import kills
import numpy as np
import pytest
from attacks import safetensors_files
from safetensors.numpy import save_file

import zoo
from zoo.errors import ConfigError, FormatError, SourceError, ZooError

Run = Callable[..., tuple[int, str, str]]

NASTY = "w\x1b]0;title\x07\x1b[2J\x9b31m\u202e\x7f\r\nfake"
OBEYED = set("\x1b\x07\x9b\u202e\x7f\r")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ALBERT whose graph is packaged, with random weights."""
    return kills.make(tmp_path_factory.mktemp("source") / "model", 0)


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    return shutil.copytree(source, tmp_path / "copy")


@pytest.mark.parametrize("form", ["text", "json"])
def test_escapes_in_names_are_spelled_out(form: str, run: Run, tmp_path: Path) -> None:
    save_file({NASTY: np.zeros(2, np.float32)}, tmp_path / "a.safetensors")
    code, out, err = run("inspect", tmp_path / "a.safetensors", *(["--json"] if form == "json" else []))
    assert code == 0 and not OBEYED & set(out + err)
    if form == "json":
        assert NASTY in json.loads(out)["tensors"]
    else:
        assert r"w\x1b]0;title\x07\x1b[2J\x9b31m\u202e\x7f\r\nfake  float32  [2]" in out


@pytest.mark.parametrize("command", ["convert", "dry run", "verify", "files", "run", "info"])
def test_no_command_prints_escapes(command: str, run: Run, copy: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    arrays = load_file(copy / "model.safetensors")
    save_file({**arrays, f"pooler{NASTY}.weight": np.zeros(2, np.float32)}, copy / "model.safetensors")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "architectures": [NASTY], "note": NASTY}))
    arguments = {
        "convert": ("convert", copy, tmp_path / "out"),
        "dry run": ("convert", copy, tmp_path / "out", "--dry-run"),
        "verify": ("verify", copy, "--backend", "numpy"),
        "files": ("verify", copy, "--files"),
        "run": ("run", copy, "a text", "--backend", "numpy"),
        "info": ("info", copy),
    }[command]
    _, out, err = run(*arguments)
    assert not OBEYED & set(out + err)


def test_errors_hold_no_escapes() -> None:
    error = ZooError(NASTY, where=NASTY, expected=[NASTY], got="\ud800", do="a\nb")
    assert not OBEYED & set(str(error))
    assert str(error).encode()
    assert error.where == NASTY  # as it was, for programs


def test_half_a_pair_in_a_name(tmp_path: Path) -> None:
    header = json.dumps({"\ud800": safetensors_files.entry(0, 8)}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(FormatError, match="not valid JSON"):
        zoo.convert(tmp_path / "a.safetensors", tmp_path / "out", "npz")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 100_000,
        '{"model_type": "\\ud800"}',
        "\x00",
        "[]",
        '{"model_type": 1' + "0" * 5000 + "}",
    ],
    ids=["lists", "objects", "surrogate", "zero", "list", "number"],
)
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "modules.json"])
def test_json_that_is_none(file: str, text: str, copy: Path, tmp_path: Path, run: Run) -> None:
    (copy / file).write_text(text)
    tokenizer = copy / "tokenizer.json"
    if (file, text) == ("modules.json", "[]"):
        (copy / file).write_text("3")  # an empty list is one of modules
    if not tokenizer.is_file():
        tokenizer.write_text(json.dumps(WORDS))
    with pytest.raises(ZooError, match=file.replace(".", r"\.")):
        zoo.load(copy, "numpy", "feature-extraction").embed(["a"])
    assert run("run", copy, "a", "--backend", "numpy")[0] == 2


WORDS = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "b"},
}


def test_a_tokenizer_of_nonsense(copy: Path) -> None:
    model = zoo.load(copy, "numpy", "feature-extraction")
    (copy / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": "x"}}')
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        model.embed(["a"])


def test_a_tokenizer_that_cannot_take_a_text(copy: Path) -> None:
    words = {**WORDS, "model": {**WORDS["model"], "unk_token": "none"}}  # type: ignore[dict-item]
    (copy / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ConfigError, match="cannot take these texts"):
        zoo.load(copy, "numpy", "feature-extraction").embed(["never seen"])


def test_a_full_disk(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    model = zoo.load(copy, "numpy", "feature-extraction")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("converters.formats.safetensors.write", full)
    for act in (lambda: model.save(tmp_path / "saved"), lambda: zoo.convert(copy, tmp_path / "saved")):
        with pytest.raises(SourceError, match=r"saved[\s\S]*No space left"):
            act()
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    code, _, err = run("convert", copy, tmp_path / "saved")
    assert code == 2 and "No space left" in err and "Traceback" not in err
