"""What importing does not import, and what asking for a missing framework says: each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "tensorflow",
    "jax",
    "jaxlib",
    "keras",
    "transformers",
    "huggingface_hub",
    "safetensors",
    "tokenizers",
)

# An installed package made to look like one that is not: no finder finds it.
BLOCK = """
import sys

class Without:
    def __init__(self, finder, names):
        self.finder, self.names = finder, names
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in self.names else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

def block(*names):
    sys.meta_path[:] = [Without(finder, names) for finder in sys.meta_path]
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments] if arguments else [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)


def imported(code: str) -> set[str]:
    done = run(f"import sys, json\n{code}\nprint('\\n' + json.dumps(sorted(sys.modules)))")
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def exits(arguments: list[str]) -> str:
    return f"import zoo.cli\ntry: zoo.cli.main({arguments!r})\nexcept SystemExit as e: assert not e.code, e.code"


@pytest.mark.parametrize(
    "code",
    [
        "import zoo",
        "import zoo; dir(zoo); zoo.load; zoo.verify; zoo.capture; zoo.available; zoo.info; zoo.Model",
        "import zoo; zoo.available(); zoo.info('bert-base'); zoo.info('hf://a/b')",
        "import zoo.backends; assert zoo.backends.installed('numpy')",
        exits(["list"]),
        exits(["list", "--json", "--backend", "jax"]),
        exits(["info", "minilm"]),
        exits(["--help"]),
    ],
    ids=["import", "names", "catalogue", "backends", "list", "list --json", "info", "help"],
)
def test_no_framework_is_imported(code: str) -> None:
    assert not imported(code) & set(HEAVY)


def test_the_check_itself_sees_a_framework() -> None:
    assert "jax" in imported("from zoo.backends import get_backend; get_backend('jax')")


def test_listing_needs_no_numpy() -> None:
    """NumPy alone would take a third of the time that `zoo list` may have."""
    assert "numpy" not in imported(exits(["list"]))


@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow", "keras"])
def test_a_missing_framework_is_named_with_its_extra(backend: str) -> None:
    code = f"""{BLOCK}
block({backend!r})
import zoo
from zoo.errors import MissingFramework
try:
    zoo.load("minilm", {backend!r})
except MissingFramework as error:
    assert isinstance(error, ImportError)
    print(error)
assert "not installed" in set(zoo.info("minilm").backends.values())
assert not zoo.available({backend!r})
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert f"anyzoo[{backend}]" in done.stdout


def test_a_native_engine_that_is_not_built_says_how_it_is() -> None:
    code = """
import zoo
from zoo import frameworks
from zoo.native import library
frameworks.SUFFIXES = library.SUFFIXES = (".not-there",)
try:
    zoo.load("minilm", "native")
except zoo.ZooError as error:
    assert isinstance(error, ImportError)
    print(error)
assert "not installed" in set(zoo.info("minilm").backends.values())
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert "C++20 compiler" in done.stdout


def test_the_native_engine_needs_no_framework() -> None:
    loaded = imported("from zoo.backends import get_backend; get_backend('native')")
    assert "zoo.native.library" in loaded and not loaded & set(HEAVY)


def test_without_any_framework_zoo_lists_what_is_there() -> None:
    names = ("torch", "jax", "jaxlib", "tensorflow", "keras", "transformers")
    done = run(f"{BLOCK}\nblock{names!r}\nimport zoo.cli\nzoo.cli.main(['list', '--backend', 'numpy'])")
    assert done.returncode == 0, done.stderr
    assert "Not installed: torch (pip install 'anyzoo[torch]')" in done.stdout
    assert "made on first load" not in done.stdout


def test_a_model_without_a_packaged_graph_says_that_torch_is_needed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 7}')
    save_file({"x": np.zeros(1)}, tmp_path / "model.safetensors")
    done = run(
        f"{BLOCK}\nblock('torch', 'transformers')\nimport zoo\n"
        f"try: zoo.load({str(tmp_path)!r}, 'numpy')\nexcept zoo.ZooError as error: print(type(error).__name__, error)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("MissingFramework") and "anyzoo[capture]" in done.stdout


def test_python_m_zoo() -> None:
    done = run("", "-m", "zoo", "info", "no-such-model")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: no model named 'no-such-model'") and "Traceback" not in done.stderr
