"""What errors advise can be done: commands, options, extras and functions that they name exist, printed whole."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import zoo
from zoo import backends
from zoo.cli import app

ROOT = Path(__file__).parents[1]
Run = Callable[..., tuple[int, str, str]]

SOURCES = sorted([*(ROOT / "zoo").rglob("*.py"), *(ROOT / "converters").rglob("*.py"), ROOT / "README.md"])


def texts() -> Iterator[tuple[Path, str]]:
    """Every text in the code, parts of f-strings included, and the README."""
    for path in SOURCES:
        if path.suffix == ".md":
            yield path, path.read_text("utf-8")
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield path, "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path, node.value


def found(pattern: str) -> set[str]:
    return {match for _, text in texts() for match in re.findall(pattern, text)}


def test_extras_that_messages_name_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = {extra for group in found(r"anyzoo\\?\[([a-z][\w,]*)\]") for extra in group.split(",")}
    assert {"capture", "convert", "all"} <= named <= set(extras)
    assert set(backends.BACKENDS) - {"numpy", "native"} <= set(extras)


def test_commands_and_their_options_that_messages_name_exist() -> None:
    group = typer.main.get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    named = found(r"`zoo ([a-z]+)")
    assert {"info", "capture"} <= named <= set(commands)
    options = {option for command in commands.values() for param in command.params for option in param.opts}
    for command, option in found(r"`zoo ([a-z]+)[^`\n]* (--[a-z][a-z-]+)[^`\n]*`"):
        assert option in {opt for param in commands[command].params for opt in param.opts}, (command, option)
    assert {"--raw", "--overwrite", "--task", "--dtype"} <= options


def test_functions_that_messages_name_exist() -> None:
    for name in found(r"\bzoo\.([a-z_]+)\("):
        assert hasattr(zoo, name), name
    assert not found(r"(files=\[)"), "no public function takes it"


def test_several_extras_are_named_at_once(tmp_path: Path) -> None:
    """A TensorFlow file of a class without a packaged graph needs two to be read; Keras needs a framework beside it."""
    import h5py

    source = tmp_path / "in"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 7}')
    with h5py.File(source / "tf_model.h5", "w") as file:
        file["bert/bert/x:0"] = [1.0]
    code = """
import importlib.util, sys
gone = {"torch", "transformers", "h5py", "keras", "jax", "tensorflow"}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in gone:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocker())
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.partition(".")[0] in gone else real(name, package)
import zoo
for job in (lambda: zoo.load("in", "numpy"), lambda: zoo.convert("in", "out"),
            lambda: zoo.load("minilm", "keras"), lambda: zoo.load("minilm", "jax")):
    try:
        job()
    except zoo.ZooError as error:
        print(str(error.do))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    load, convert, keras, jax = done.stdout.splitlines()
    assert "anyzoo[capture,convert]" in load and "anyzoo[capture,convert]" in convert
    assert "anyzoo[keras,jax]" in keras and "anyzoo[jax]" in jax and "anyzoo[jax,capture]" in jax


def test_brackets_reach_the_terminal(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """rich takes [jax] for a style and prints nothing of it."""
    monkeypatch.setitem(backends.BACKENDS, "jax", ("no_such_framework",))
    code, _, err = run("run", "minilm", "text", "--backend", "jax")
    assert code == 2 and "pip install 'anyzoo[jax]'" in err
    code, out, _ = run("list", "--backend", "numpy")
    assert code == 0 and "pip install 'anyzoo[jax]'" in out
    odd = tmp_path / "[bold]odd[bold] [x]"
    odd.mkdir()
    (odd / "config.json").write_text("{}")
    for command in (["inspect", odd], ["convert", odd, tmp_path / "out"], ["verify", odd]):
        code, _, err = run(*command)
        assert code == 2 and "[bold]odd[bold] [x]" in err


def test_reports_show_what_to_install_whole() -> None:
    from rich.console import Console

    from zoo.adapters.check import KernelReport

    missing = {"jax": "pip install 'anyzoo[jax]'"}
    reports: list[Any] = [
        zoo.Report("m", "float32", {}, missing=missing),
        zoo.BenchReport("m", "torch", 1, 1, {}, missing=missing),
        KernelReport("avx2", missing=missing),
    ]
    for report in reports:
        console = Console(width=250)
        with console.capture() as shown:
            console.print(report.table())
        assert "pip install 'anyzoo[jax]'" in shown.get()
        with pytest.raises(zoo.ZooError, match=r"anyzoo\[\w+\]"):
            report.raise_for_failure() if hasattr(report, "raise_for_failure") else zoo.bench("minilm", [])
