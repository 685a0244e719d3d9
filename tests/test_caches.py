"""Caches: what is damaged there is made again, what cannot be kept is said, and processes do not meet."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import checkpoints
import pytest

import zoo
from zoo.graph.io import load_graph, save_graph


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save(tmp_path_factory.mktemp("source") / "bert-cls", "bert-cls")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "graphs"


def works(source: Path) -> zoo.Model:
    model, inputs = zoo.load(source, "numpy"), checkpoints.inputs_of("bert-cls")
    expected = checkpoints.reference(source, "bert-cls", inputs)["logits"]
    assert abs(model(**inputs).logits - expected).max() <= 1e-12 * abs(expected).max()
    return model


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda whole: whole[: len(whole) // 2],
    "garbage": lambda whole: b"\x00garbage" * 99,
    "an unknown operation": lambda whole: gzip.compress(gzip.decompress(whole).replace(b'"linear"', b'"linger"')),
}


def test_a_damaged_graph_is_captured_again(source: Path, cache: Path) -> None:
    assert not works(source).notes
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    for damage in DAMAGE.values():
        kept.write_bytes(damage(whole))
        assert not works(source).notes
        assert kept.read_bytes() == whole and list(cache.iterdir()) == [kept]


def test_a_folder_in_the_place_of_the_graph(source: Path, cache: Path) -> None:
    works(source)
    (kept,) = cache.iterdir()
    kept.unlink()
    (kept / "mine").mkdir(parents=True)
    assert any("kept" in note for note in works(source).notes)
    assert (kept / "mine").is_dir() and list(cache.iterdir()) == [kept]


def no_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("mine")


def read_only(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.geteuid():
        pytest.skip("nothing is read-only for root")
    cache.mkdir(parents=True)
    cache.chmod(0o500)


def full(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)


@pytest.mark.parametrize("obstacle", [no_folder, read_only, full])
def test_a_cache_that_cannot_be_written_is_a_note(
    obstacle: Callable[[Path, pytest.MonkeyPatch], None], source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    obstacle(cache, monkeypatch)
    (note,) = works(source).notes
    assert "kept" in note and "ZOO_CACHE" in note
    assert not cache.is_dir() or not list(cache.iterdir())


def test_saves_at_the_same_time(source: Path, tmp_path: Path) -> None:
    """Threads and processes, all to one file, while it is read."""
    path = tmp_path / "cache" / "graph.json.gz"
    graph = zoo.load(source, "numpy").graph
    save_graph(graph, path)
    other = tmp_path / "other.json.gz"
    save_graph(graph, other)
    script = (
        "import sys; from zoo.graph.io import *; g = load_graph(sys.argv[1])\n"
        "for _ in range(20): save_graph(g, sys.argv[2])"
    )
    command = [sys.executable, "-c", script, str(other), str(path)]
    children = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    failed: list[BaseException] = []

    def save() -> None:
        try:
            for _ in range(10):
                save_graph(graph, path)
                load_graph(path)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=save) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for child in children:
        assert not child.communicate()[1] and child.returncode == 0
    assert path.read_bytes() == other.read_bytes() and list(path.parent.iterdir()) == [path]
