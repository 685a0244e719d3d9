"""What a sweep verified: as Python answers it, and as `zoo list` and `zoo info` print it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sweep import BROKEN, EVIL, RIGHT, SWEEP, WRONG

import zoo
from zoo.catalogue import describe, reason, swept, verdict
from zoo.coverage import Coverage, Row, read
from zoo.errors import ConfigError, UnknownBackend, UnknownModel

ROOT = Path(__file__).parents[1]
BASE, MASKED, DINO, UNCAPTURED, UNBUILT, ODD = SWEEP.rows

Run = Callable[..., tuple[int, str, str]]


# Verdicts


@pytest.mark.parametrize(
    ("row", "backend", "found", "why"),
    [
        (BASE, "jax", "matches", ""),
        (MASKED, "jax", "runs", "logits are off by 4.2e-03"),
        (MASKED, "tensorflow", "captured", "UnsupportedOp: histc"),
        (DINO, "tensorflow", "captured", "not tried"),
        (UNCAPTURED, "jax", "fails", "data-dependent: if mask.all():"),
        (UNBUILT, "jax", "not built", "ImportError: rwkv is not installed"),
    ],
)
def test_verdict_and_reason(row: Row, backend: str, found: str, why: str) -> None:
    assert (verdict(row, backend), reason(row, backend)) == (found, why)
    assert describe(row, backend).startswith(found) and describe(row, backend).endswith(why)


def test_a_description_holds_every_check() -> None:
    assert describe(BASE, "jax") == (
        "matches, error 3.1e-07 of 1.0e-05 allowed; gradients match, error 2.0e-07; "
        "right at another batch size; right at another length"
    )
    assert describe(MASKED, "jax") == "runs, error 4.2e-03 of 1.0e-05 allowed; logits are off by 4.2e-03"


def test_a_match_that_fails_elsewhere_says_so() -> None:
    from dataclasses import replace

    cell = replace(RIGHT, length=False, gradients=False, reason="another length: shapes differ")
    said = describe(replace(BASE, cells={"jax": cell}), "jax")
    assert "gradients differ" in said and "wrong at another length" in said and said.endswith("shapes differ")


# Python


@pytest.mark.usefixtures("sweep")
def test_available_says_what_was_verified_of_type_and_task() -> None:
    found = {item.name: dict(item.verified) for item in zoo.available()}
    assert found["bert-base"] == {"torch": "matches", "jax": "runs", "tensorflow": "captured"}
    assert found["minilm"] == {"torch": "matches", "jax": "matches", "tensorflow": "matches"}  # the base model
    assert found["dinov2-base"] == {"torch": "matches", "jax": "matches", "tensorflow": "captured"}  # by images, too
    assert (
        found["gpt2"] == {}
    )  # its language model is not in the sweep, and the base model's result is not taken for it
    assert found["t5-small"] == {}
    task = {item.name: dict(item.verified) for item in zoo.available(task="feature-extraction")}
    assert task["bert-base"]["jax"] == "matches"


@pytest.mark.usefixtures("sweep")
def test_architectures() -> None:
    assert zoo.architectures() == list(SWEEP.rows)
    assert zoo.architectures("tf") == [BASE]
    assert zoo.architectures("jax", "base") == [BASE, DINO]
    assert zoo.architectures(task="masked-lm") == [MASKED, ODD]
    assert zoo.architectures(missing=True) == [MASKED, DINO, UNCAPTURED, UNBUILT, ODD]
    assert zoo.architectures("torch", missing=True) == [UNCAPTURED, UNBUILT]
    with pytest.raises(UnknownBackend):
        zoo.architectures("tensorfolw")
    with pytest.raises(ConfigError, match="cooking"):
        zoo.architectures(task="cooking")


@pytest.mark.usefixtures("sweep")
def test_info_of_a_type_and_of_a_model() -> None:
    found = zoo.info("bert")
    assert (found.kind, found.model_type) == ("type", "bert") and "bert-base" in found.models
    assert found.verified == (BASE, MASKED)
    assert zoo.info("bert-base").verified == (MASKED, BASE)  # its own task first
    assert zoo.info("minilm").verified == (BASE, MASKED)
    assert zoo.info("t5-small").verified == ()
    assert zoo.info("gpt2").kind == "registry"  # a name wins over a type
    with pytest.raises(UnknownModel):
        zoo.info("brt")


@pytest.mark.usefixtures("sweep")
def test_info_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}')
    assert zoo.info(tmp_path).verified == (MASKED, BASE)


@pytest.mark.usefixtures("no_sweep")
def test_without_a_sweep(run: Run) -> None:
    assert zoo.architectures() == [] and swept() == ()
    assert all(item.verified == {} for item in zoo.available())
    with pytest.raises(UnknownModel):
        zoo.info("bert")
    for arguments in (["list"], ["list", "--types"], ["list", "--missing"]):
        code, out, _ = run(*arguments)
        assert code == 0 and "No sweep over architectures" in out
    code, out, err = run("list", "--html", "page.html")
    assert code == 2 and not out and "no sweep" in err and not Path("page.html").exists()


def test_a_sweep_keeps_what_it_holds(tmp_path: Path) -> None:
    SWEEP.write(tmp_path / "a.gz")
    assert read(tmp_path / "a.gz") == SWEEP
    SWEEP.write(tmp_path / "b.gz")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert read(tmp_path / "none.gz") == Coverage({}, ())


# The command line


@pytest.mark.usefixtures("sweep")
def test_list_shows_what_was_verified(run: Run) -> None:
    code, out, err = run("list")
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert code == 0 and not err
    assert lines["name"][-3:] == ["torch", "jax", "tensorflow"]
    assert lines["bert-base"][-3:] == ["matches", "runs", "captured"]
    assert lines["t5-small"][-1] in ("packaged", "load")
    found = {item["name"]: item for item in json.loads(run("list", "--json")[1])}
    assert found["bert-base"]["verified"] == {"torch": "matches", "jax": "runs", "tensorflow": "captured"}


@pytest.mark.usefixtures("sweep")
def test_list_of_types(run: Run) -> None:
    code, out, _ = run("list", "--types")
    lines = out.splitlines()
    assert code == 0 and lines[0].split() == ["type", "task", "torch", "jax", "tensorflow"]
    assert lines[2].split() == ["bert", "fill-mask", "matches", "runs", "captured"]
    assert "6 heads of 5 types" in out and "transformers 5.23.0" in out
    _, out, _ = run("list", "--types", "--backend", "tf", "--task", "base")
    assert [line.split() for line in out.splitlines()[:2]] == [
        ["type", "task", "tensorflow"], ["bert", "feature-extraction", "matches"],
    ]  # fmt: skip


@pytest.mark.usefixtures("sweep")
def test_list_of_what_is_missing_has_the_reasons(run: Run) -> None:
    code, out, _ = run("list", "--missing")
    assert code == 0
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in out.splitlines()]
    assert ["bert", "fill-mask", "jax", "runs", "logits are off by 4.2e-03"] in rows
    assert ["bert", "fill-mask", "tensorflow", "captured", "UnsupportedOp: histc"] in rows
    assert ["gpt2", "feature-extraction", "torch, jax, tensorflow", "fails", "data-dependent: if mask.all():"] in rows
    assert ["rwkv", "feature-extraction", "torch, jax, tensorflow", "not built", UNBUILT.reason] in rows
    _, out, _ = run("list", "--missing", "--backend", "torch")
    assert "histc" not in out and "data-dependent" in out


@pytest.mark.usefixtures("sweep")
def test_types_as_json_are_the_sweep(run: Run) -> None:
    found = json.loads(run("list", "--types", "--json")[1])
    verified = [row.pop("verified") for row in found]
    assert found == SWEEP.to_json()["rows"]
    assert verified[1] == {"torch": "matches", "jax": "runs", "tensorflow": "captured"}
    assert [row["model_type"] for row in json.loads(run("list", "--missing", "--json")[1])][-1] == EVIL


@pytest.mark.usefixtures("sweep")
@pytest.mark.parametrize("name", ["bert", "bert-base"])
def test_info_tells_errors_and_reasons(name: str, run: Run) -> None:
    code, out, _ = run("info", name)
    flat = " ".join(out.split())
    assert code == 0 and "fill-mask (BertForMaskedLM)" in flat
    assert f"jax: {describe(MASKED, 'jax')}" in flat and f"tensorflow: {BROKEN.reason}" not in flat
    assert f"tensorflow: captured; {BROKEN.reason}" in flat and WRONG.reason in flat
    found = json.loads(run("info", name, "--json")[1])
    assert {row["task"] for row in found["verified"]} == {"fill-mask", "feature-extraction"}
    assert found["verified"][0]["cells"]["jax"]["error"] in (3.1e-7, 4.2e-3)


@pytest.mark.parametrize("option", [["--types"], ["--json"], ["--backend", "jax"], ["--missing"]])
def test_the_page_goes_with_no_other_option(option: list[str], run: Run) -> None:
    code, _, err = run("list", "--html", "page.html", *option)
    assert code == 2 and "--html" in err and not Path("page.html").exists()


def test_listing_a_sweep_imports_no_numpy(tmp_path: Path) -> None:
    SWEEP.write(tmp_path / "sweep.gz")
    code = f"""
import sys, zoo.cli, zoo.coverage
from pathlib import Path
found = zoo.coverage.read(Path({str(tmp_path / "sweep.gz")!r}))
zoo.coverage.read = lambda: found
try: zoo.cli.main(["list"])
except SystemExit as end: assert not end.code
assert not {{"numpy", "torch", "tensorflow", "jax"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "captured" in done.stdout
