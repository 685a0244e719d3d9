"""The command line: what it prints, in which form, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tolerances import TOLERANCES

import zoo
from zoo import cli, registry
from zoo.backends import BACKENDS

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"the cat dog sat ran on mat home a red blue sky".split()]
LABELS = {0: "dull", 1: "fine", 2: "great"}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny BERTs as transformers saves them, with a vocabulary of twelve words."""
    root = tmp_path_factory.mktemp("checkpoints")
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20,
        max_position_embeddings=32, id2label=LABELS,
    )  # fmt: skip
    found = {}
    for name, cls in (
        ("base", transformers.BertModel),
        ("mask", transformers.BertForMaskedLM),
        ("classify", transformers.BertForSequenceClassification),
    ):
        torch.manual_seed(0)
        found[name] = root / name
        module = cls(config)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
        module.save_pretrained(found[name])
        (found[name] / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return found


@pytest.fixture(scope="session")
def package(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model as `zoo capture` writes it."""
    folder = tmp_path_factory.mktemp("packages") / "base"
    with pytest.raises(SystemExit) as caught:
        cli.main(["capture", str(checkpoints["base"]), "-o", str(folder)])
    assert not caught.value.code
    return folder


# --- list and info ---


def test_list_shows_every_model(run: Run) -> None:
    code, out, err = run("list")
    assert code == 0 and not err
    for name in registry.entries():
        assert any(line.split()[0] == name for line in out.splitlines() if line)
    assert f"{len(registry.entries())} models" in out


def test_list_as_json(run: Run) -> None:
    code, out, _ = run("list", "--json")
    found = json.loads(out)
    assert code == 0 and [item["name"] for item in found] == sorted(registry.entries())
    assert set(found[0]["backends"]) == set(BACKENDS)
    assert {how for item in found for how in item["backends"].values()} <= {"graph", "capture"}


def test_list_of_a_task_and_a_backend(run: Run) -> None:
    _, out, _ = run("list", "--task", "fill-mask", "--backend", "tf", "--json")
    found = json.loads(out)
    own = {entry.name for entry in registry.entries().values() if entry.task == "fill-mask"}
    assert own <= {item["name"] for item in found} and {item["task"] for item in found} == {"fill-mask"}


def test_what_the_index_says_is_what_loading_finds() -> None:
    """A model is listed as packaged if and only if its own config leads to a packaged graph."""
    from zoo.configured import find_packaged

    listed = {item.name for item in zoo.available() if "graph" in item.backends.values()}
    found = {
        entry.name
        for entry in registry.entries().values()
        if entry.has_config and find_packaged(entry.config(), entry.head) is not None
    }
    assert listed == found


def test_availability_follows_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo import catalogue

    facts = {"model_type": "bert", "class": "BertModel", "task": "feature-extraction", "dtype": "float32",
             "parameters": 12, "entries": ["minilm"]}  # fmt: skip
    (tmp_path / "index.json").write_text(json.dumps({"a.json.gz": facts, "b.json.gz": facts | {"dtype": "float16"}}))
    monkeypatch.setattr(catalogue, "GRAPHS", tmp_path)
    for cached in (catalogue._index, catalogue._graphs):
        monkeypatch.setattr(catalogue, cached.__name__, cached.__wrapped__)
    found = {item.name: item for item in catalogue.available()}
    assert found["minilm"].parameters == 12 and found["minilm"].backends["jax"] == "graph"
    assert found["bert-base"].parameters is None and found["bert-base"].backends["jax"] == "capture"
    assert found["minilm"].runs_on("jax")


def test_info_of_a_registry_entry(run: Run) -> None:
    code, out, _ = run("info", "All-MiniLM-L6-v2", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["name"], found["model_type"], found["license"]) == ("minilm", "bert", "apache-2.0")
    assert found["sources"][0].startswith("wheel://") and "model.safetensors" in found["files"]
    code, out, _ = run("info", "minilm")
    assert code == 0 and "apache-2.0" in out and "wheel://" in out


def test_info_of_a_package(run: Run, package: Path) -> None:
    code, out, _ = run("info", package, "--json")
    found = json.loads(out)
    assert (
        code == 0 and found["kind"] == "local" and found["parameters"] == zoo.load(package, "numpy").parameter_count()
    )
    assert found["inputs"]["attention_mask"] == "int64 [batch, sequence], 1 where left out"
    assert found["outputs"]["last_hidden_state"] == "float32 [batch, sequence, 16]"
    assert found["ops"]["embedding"] == 3 and found["backends"]["jax"] == "graph"


def test_info_of_a_hub_reference_downloads_nothing(run: Run) -> None:
    code, out, _ = run("info", "hf://org/some-model@main", "--json")
    found = json.loads(out)
    assert code == 0 and (found["kind"], found["name"]) == ("hub", "org/some-model") and found["parameters"] is None


def test_info_says_first_what_people_ask_first(run: Run) -> None:
    _, first, _ = run("info", "minilm")
    assert 'zoo.load("minilm")' in first and "22,713,216" in first and "matches" in first
    assert "53aa5117" not in first and "--all" in first
    _, everything, _ = run("info", "minilm", "--all")
    assert "53aa5117" in everything.replace("\n", "") and "scaled_dot_product_attention" in everything


# --- what a terminal shows ---


@pytest.mark.parametrize(
    "arguments", [["list"], ["list", "--types"], ["list", "--missing"], ["info", "minilm"], ["info", "minilm", "--all"]]
)
def test_nothing_is_wider_than_the_terminal(run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(*arguments)
    assert code == 0 and max(map(len, out.splitlines())) <= 80


def test_a_narrow_list_says_what_was_verified(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run("list")
    assert next(line for line in out.splitlines() if line.startswith("bert-base ")).split()[1:] == [
        "fill-mask",
        "matches",
    ]


def test_a_narrow_verdict_stays(run: Run, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run("verify", package, "-b", "numpy,native")
    rows = [line for line in out.splitlines() if "last_hidden_state" in line]
    assert code == 0 and len(rows) == 2 and all("│ ok │" in line for line in rows)
    assert max(map(len, out.splitlines())) <= 80 and "all right on numpy, native" in out


def test_a_folder_of_a_registrys_name_is_not_passed_over_in_silence(
    run: Run, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minilm").symlink_to(package)
    code, out, err = run("info", "minilm")
    assert code == 0 and "22,713,216" in out and "'./minilm'" in err
    _, out, err = run("info", "./minilm")
    assert "22,713,216" not in out and not err
    assert registry.passed_over("minilm") and not registry.passed_over("bert-base")


# --- run ---


@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow", "numpy"])
def test_run_embeds(run: Run, package: Path, backend: str) -> None:
    texts = ["the cat sat", "a red sky", "the cat sat"]
    code, out, _ = run("run", package, *texts, "--backend", backend, "--json")
    found = json.loads(out)
    assert code == 0 and found["backend"] == backend
    vectors = np.array([result["embedding"] for result in found["results"]])
    expected = zoo.load(package, "numpy").embed(texts)
    assert vectors.shape == (3, 16) and np.abs(vectors - expected).max() <= 1e-5 * np.abs(expected).max()
    similarities = np.array(found["similarities"])
    assert similarities[0, 2] == pytest.approx(1) and similarities[0, 1] < 0.999


def test_run_says_that_a_text_is_a_file(run: Run, package: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("the cat sat")
    code, out, err = run("run", package, str(tmp_path / "notes.txt"), "the " * 2000, "\0", "-b", "numpy", "--json")
    assert code == 0 and "notes.txt" in err.replace("\n", "") and "file" in err
    assert json.loads(out)["results"][0]["text"] == str(tmp_path / "notes.txt")
    _, _, err = run("run", package, "the cat sat", "-b", "numpy")
    assert "file" not in err


def test_run_as_text(run: Run, package: Path) -> None:
    code, out, _ = run("run", package, "the cat sat", "a red sky", "-b", "jax")
    assert code == 0 and "16 numbers" in out and "cosine similarities" in out and "[MASK]" not in out


def test_run_fills_a_mask(run: Run, checkpoints: dict[str, Path]) -> None:
    code, out, _ = run("run", checkpoints["mask"], "the [MASK] sat on the mat", "--top-k", 3, "--json")
    (group,) = json.loads(out)["results"][0]["answers"]
    assert code == 0 and len(group["top"]) == 3
    module = transformers.BertForMaskedLM.from_pretrained(checkpoints["mask"]).eval()
    ids = torch.tensor([[2, *(WORDS.index(word) for word in "the [MASK] sat on the mat".split()), 3]])
    with torch.no_grad():
        best = module(ids).logits[0, 2].softmax(-1).topk(3)
    assert [answer["label"] for answer in group["top"]] == [WORDS[i] for i in best.indices]
    assert [answer["score"] for answer in group["top"]] == pytest.approx(best.values.tolist(), rel=1e-4)


def test_run_without_a_mask_in_the_text(run: Run, checkpoints: dict[str, Path]) -> None:
    code, out, err = run("run", checkpoints["mask"], "the cat sat")
    assert code == 2 and not out and "no mask to fill" in err and "[MASK]" in err


def test_run_classifies(run: Run, checkpoints: dict[str, Path]) -> None:
    texts = ["the cat sat on the mat", "a dog"]  # of two lengths, so padding matters
    code, out, _ = run("run", checkpoints["classify"], *texts, "--json")
    answers = [result["answers"][0]["top"] for result in json.loads(out)["results"]]
    assert code == 0 and all({answer["label"] for answer in top} == set(LABELS.values()) for top in answers)
    module = transformers.BertForSequenceClassification.from_pretrained(checkpoints["classify"]).eval()
    with torch.no_grad():
        scores = module(torch.tensor([[2, WORDS.index("a"), WORDS.index("dog"), 3]])).logits[0].softmax(-1)
    for answer in answers[1]:
        index = next(i for i, label in LABELS.items() if label == answer["label"])
        assert answer["score"] == pytest.approx(float(scores[index]), rel=1e-4)


def test_run_of_an_image_model_says_so_before_fetching(run: Run) -> None:
    code, out, err = run("run", "resnet-50", "a cat")
    assert code == 2 and not out and "models that take a text" in err and "zoo.load" in err


@pytest.mark.parametrize("texts", [[1, 2], None, [["the", "cat"]], [b"the cat"]])
def test_what_is_no_text_is_named(package: Path, texts: Any) -> None:
    with pytest.raises(zoo.ZooError, match="not a text"):
        zoo.load(package, "numpy").embed(texts)


def test_run_without_a_text(run: Run) -> None:
    code, _, err = run("run", "minilm")
    assert code == 2 and "no text" in err


# --- verify ---


def test_verify_passes(run: Run, package: Path) -> None:
    code, out, err = run("verify", package, "--backend", "numpy,torch,jax,tensorflow", "--gradients", "--json")
    found = json.loads(out)
    assert code == 0 and found["ok"] is True, err
    assert [row["backend"] for row in found["rows"]][::2] == ["torch", "jax", "tensorflow", "numpy"]
    assert [row["backend"] for row in found["gradients"]] == ["torch", "jax", "tensorflow"]


def test_verify_fails_with_the_worst_tensors_name(run: Run, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.backends import jax as backend

    monkeypatch.setitem(backend._OVERRIDES, "gelu", lambda x, **options: 0 * x)
    code, out, err = run("verify", package, "-b", "jax,numpy", "--json")
    found = json.loads(out)
    wrong = {row["output"] for row in found["rows"] if not row["ok"]}
    assert code == 1 and found["ok"] is False and wrong == {"last_hidden_state", "pooler_output"}
    assert "on jax: relative error" in err and any(f"where: {name}[" in err for name in wrong)
    assert "expected:" in err and "got:" in err and "Traceback" not in err


# --- bench ---


def test_bench_gives_ratios(run: Run, package: Path) -> None:
    import os

    cores, number = os.sched_getaffinity(0), torch.get_num_threads()
    code, out, err = run("bench", package, "-b", "native,torch,jax", "--shapes", "1x4,2x7", "--rounds", 3, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["against"] == "torch" and found["threads"] == 1 and found["rounds"] == 3
    assert [row["backend"] for row in found["rows"]] == ["torch", "jax", "native"] * 2
    assert [row["shapes"]["input_ids"] for row in found["rows"][::3]] == [[1, 4], [2, 7]]
    for row in found["rows"]:
        torch_ms = next(r["ms"] for r in found["rows"] if r["backend"] == "torch" and r["shapes"] == row["shapes"])
        assert row["reason"] == "" and row["ms"] > 0 and row["ratio"] == pytest.approx(torch_ms / row["ms"])
        assert row["difference"] <= TOLERANCES[row["backend"], "float32"]
    assert os.sched_getaffinity(0) == cores and torch.get_num_threads() == number


def test_bench_as_text(run: Run, package: Path) -> None:
    code, out, _ = run("bench", package, "--backends", "native", "--shapes", "2x5", "--rounds", 1)
    assert code == 0 and "times as fast as native" in out and "2×5" in out and "1.00" in out


def test_bench_says_what_fails(run: Run, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.backends import jax as backend

    def broken(graph: object) -> object:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(backend, "compile_graph", broken)
    code, out, _ = run("bench", package, "-b", "jax,native", "--shapes", "1x4", "--rounds", 1, "--json")
    rows = {row["backend"]: row for row in json.loads(out)["rows"]}
    assert code == 0 and "no such thing" in rows["jax"]["reason"] and rows["jax"]["ms"] is None
    assert rows["native"]["ms"] > 0 and rows["native"]["ratio"] is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-b", "natvie"], "did you mean 'native'"),
        (["--shapes", "8*128"], "ROWSxTOKENS"),
        (["--shapes", "0x4"], "1 or more"),
    ],
)
def test_bench_refuses(run: Run, package: Path, options: list[str], said: str) -> None:
    code, _, err = run("bench", package, *options)
    assert code == 2 and said in err and "Traceback" not in err


# --- errors ---


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["info", "bert-bse"], "bert-base"),
        (["info", "berrt"], "near: bert-base"),
        (["run", "no-such-model", "text"], "no model named"),
        (["run", "minilm", "text", "--backend", "torhc"], "did you mean 'torch'"),
        (["verify", "minilm", "--backend", "jax,nothing"], "no backend 'nothing'"),
        (["list", "--task", "cooking"], "no task 'cooking'"),
        (["info", "wheel://no-version/folder"], "pin the version"),
        (["capture", "./nowhere", "-o", "x"], "no such file or folder"),
    ],
)
def test_errors_are_short_and_end_with_2(run: Run, arguments: list[str], said: str) -> None:
    code, out, err = run(*arguments)
    assert code == 2 and not out and err.startswith("error: ") and said in err and "Traceback" not in err


@pytest.mark.parametrize("arguments", [["lst"], ["list", "--no-such"], ["capture", "x"]])
def test_usage_errors_end_with_2(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert code == 2 and not out and "Usage" in err


def test_an_error_of_ours_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what was foreseen is put in one line."""

    def broken(*args: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("zoo.registry.parse", broken)
    with pytest.raises(KeyError, match="a bug"):
        cli.main(["verify", "minilm"])


def test_progress_bars(capsys: pytest.CaptureFixture[str]) -> None:
    from zoo.console import progress_bars

    with progress_bars() as progress:
        progress("model.safetensors", 0, None)
        progress("model.safetensors", 512, 1024)
        progress("model.safetensors", 1024, 1024)
    assert not capsys.readouterr().out


def test_the_version_is_that_of_the_package(run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("--version") == (0, f"anyzoo {zoo.__version__}\n", "")
    assert zoo.__version__ == version("anyzoo")
