"""A hook of MkDocs: tables of docs/ are made of benchmarks/results when the site is built, so that they cannot differ.

A line `<!-- results: NAME [PART] -->` becomes the table of benchmarks/results/NAME.json, with the command that wrote it
and the machine; `<!-- sweep -->` the counts of the sweep over architectures; `<!-- commands -->` what typer says of the
command line.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARK = re.compile(r"^<!-- (results|sweep|checks|versions|commands)(?:: (\w+)(?: ([^>]+?))?)? -->$", re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """The picture that benchmarks/plot.py drew is one of the site's."""
    picture = (RESULTS / "native.svg").read_text("utf-8")
    files.append(File.generated(config, "images/native.svg", content=picture))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Marks become tables.

    Raises:
        PluginError: there is no such result.
    """
    made = {"sweep": sweep, "checks": checks, "versions": versions, "commands": commands}
    return MARK.sub(lambda found: made[found[1]]() if found[1] in made else results(found[2], found[3] or ""), markdown)


def results(name: str, part: str) -> str:
    """The table of a result, or of a part of it."""
    path = RESULTS / f"{name}.json"
    if not path.is_file() or (name, part) not in TABLES:
        raise PluginError(f"no table of results {name} {part}")
    data = json.loads(path.read_text("utf-8"))
    return TABLES[name, part](data["result"]) + "\n\n" + said(data)


def said(data: Mapping[str, Any]) -> str:
    """The command, the machine and the versions that a result came from."""
    facts = data["environment"]
    command = facts["command"]
    script = command.split(",")[0].split()[0]
    folder = next(f for f in ("benchmarks", "tests/oracle") if (ROOT / f / script).is_file())
    versions = facts.get("versions", {})
    words = [f"`python {folder}/{command}`"]
    if "cpu" in facts:
        words.append(f"{facts['cores']} cores of {facts['cpu']}, CPU only")
    if versions:
        shown = ("torch", "tensorflow-cpu", "jax", "keras", "onnxruntime", "openvino", "transformers", "numpy")
        words.append(", ".join(f"{name} {versions[name]}" for name in shown if versions.get(name)))
    return f"*{'; '.join(words)}.*"


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table of Markdown."""
    head = list(head)
    lines = [head, ["---", *("--:" for _ in head[1:])], *([shown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(cell: Any) -> str:
    """A number in three digits, a missing one as nothing."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.1e}" if cell and abs(cell) < 1e-3 else f"{cell:.3g}" if abs(cell) < 1000 else f"{cell:,.0f}"
    if isinstance(cell, int):
        return f"{cell:,}"
    return str(cell).replace("|", "\\|")


def by_columns(result: Mapping[str, Mapping[str, Any]], what: str, columns: Iterable[str] | None = None) -> str:
    """One row per entry; the columns are those that any has, or the ones named."""
    names = list(columns or dict.fromkeys(key for row in result.values() for key, cell in row.items() if plain(cell)))
    return table((what, *names), ((key, *(row.get(name) for name in names)) for key, row in result.items()))


def plain(cell: Any) -> bool:
    return isinstance(cell, (int, float, str))


def facts(result: Mapping[str, Any]) -> str:
    """Names and values, one a row; what is nested has its path as name."""
    return table(("what", "measured"), flat(result))


def flat(result: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in result.items():
        name = f"{path}, {key}" if path else str(key)
        if isinstance(value, Mapping):
            yield from flat(value, name)
        elif plain(value) or value is None:
            yield name, value


def ratios(result: Mapping[str, Any]) -> str:
    """Time relative to torch eager's of the same run, per model and shape."""
    models = result["models"]
    names = [n for n in dict.fromkeys(name for row in models.values() for name in row) if n != "torch eager"]
    rows = (
        (
            model,
            row["torch eager"]["ms"],
            *(row.get(name, {}).get("ratio to torch eager") for name in names),
            row["native"].get("of peak"),
        )
        for model, row in models.items()
    )
    return table(("model and shape", "torch eager, ms", *names, "native, share of peak"), rows)


def of_shapes(key: str) -> Callable[[Mapping[str, Any]], str]:
    """A number per shape and backend."""

    def made(result: Mapping[str, Any]) -> str:
        names = list(dict.fromkeys(name for row in result.values() for name in row))
        return table(
            ("shape", *names), ((shape, *(row.get(n, {}).get(key) for n in names)) for shape, row in result.items())
        )

    return made


def kernels(result: Mapping[str, Any]) -> str:
    """How many times as fast our kernels are as the framework's own, per framework and number of threads."""
    runs = {name: {kernel(row): row["ratio"] for row in run["rows"]} for name, run in result.items()}
    rows = (
        (key, *(run.get(key) for run in runs.values()))
        for key in dict.fromkeys(k for run in runs.values() for k in run)
    )
    return table(("kernel, sizes", *runs), rows)


def kernel(row: Mapping[str, Any]) -> str:
    return f"{row['kernel']} {'×'.join(map(str, row['sizes']))} {row['dtype']}"


def mixed(result: Mapping[str, Any]) -> str:
    """How many times as fast texts are in the order they come in as others are, these in either order."""
    rows = [
        (corpus, order, found["tokens a text"], *(number for who, number in times.items() if who != "native"))
        for corpus, found in result["corpora"].items()
        for order, times in found["native in arrival order is faster by"].items()
    ]
    first = next(iter(result["corpora"].values()))["native in arrival order is faster by"]["arrival"]
    others = [f"faster than {who} by" for who in first if who != "native"]
    return table(("texts", "theirs in order of", "tokens a text", *others), rows)


def hostile(result: Mapping[str, Any]) -> str:
    """Cases and what became of them, per form."""
    kinds = sorted({kind for form in result["forms"].values() for kind in form["counts"]})
    rows = (
        (n, f["cases"], *(f["counts"].get(k, 0) for k in kinds), sum(map(len, f["bad"].values())))
        for n, f in result["forms"].items()
    )
    totals = ", ".join(f"{name} {count}" for name, count in result["total"].items())
    return table(("form", "cases", *kinds, "bad"), rows) + f"\n\nIn all: {totals}."


def attacks(result: Mapping[str, Any]) -> str:
    """The slowest and the largest of the files of each form, and those that broke a rule."""
    rows = (
        (
            name, form["files"], form["seconds"]["most"], form["memory"]["most"] / 1e6,
            len(form["over the limits"]), len(form["without an error of ours that names the file"]),
        )
        for name, form in result.items()
    )  # fmt: skip
    return table(("form", "files", "most seconds", "most MB", "over the limits", "without an error of ours"), rows)


def finetune(result: Mapping[str, Any]) -> str:
    """Accuracy per framework, the mean and each seed's, and the share of the commonest class."""
    rows = [
        (name, row["mean accuracy"], *row["of each seed"])
        for name, row in result["summary"].items()
        if isinstance(row, Mapping)
    ]
    commonest = result["summary"]["commonest class"]
    rows.append(("always the commonest class", sum(commonest) / len(commonest), *commonest))
    return table(("framework", "mean", *(f"seed {number}" for number in range(len(commonest)))), rows)


def forms(result: Mapping[str, Any]) -> str:
    """How many fields of a config each program says, per form and type."""
    kinds = list(dict.fromkeys(found["status"] for fields in result.values() for found in fields.values()))
    rows = (
        (name, *(sum(found["status"] == kind for found in fields.values()) for kind in kinds))
        for name, fields in result.items()
    )
    return table(("form/type", *kinds), rows)


def exported(result: Mapping[str, Any]) -> str:
    """Packaged graphs that compute the same through jax.export with symbolic shapes, and why the others do not."""
    answers = [list(found.values()) if isinstance(found, Mapping) else [found] for found in result.values()]
    same = sum(all(isinstance(a, float) and a == 0 for a in found) for found in answers)
    reasons = Counter(
        next(str(a) for a in found if isinstance(a, str)) for found in answers if any(map(is_text, found))
    )
    rows = [
        ("the same, bit for bit", same),
        *((NOT_RUN.get(reason, reason), count) for reason, count in reasons.items()),
    ]
    return table((f"of {len(answers)} packaged graphs", "graphs"), rows)


NOT_RUN = {"exported": "exported, and not run, for their size"}


def is_text(answer: Any) -> bool:
    return isinstance(answer, str)


def memory(result: Mapping[str, Any]) -> str:
    """Peak of loading, over the size of the file."""
    rows = (
        (name, row["file"] / 1e6, (row["peak"] - row["baseline"]) / 1e6, row["peak above baseline / file"])
        for name, row in result.items()
    )
    return table(("backend", "file, MB", "peak beyond the framework, MB", "over the file's size"), rows)


def sweep() -> str:
    """What the sweep over transformers' architectures found, per backend: base models, then heads."""
    from zoo.catalogue import swept, verdict
    from zoo.coverage import coverage

    places = swept()
    rows = []
    for what, of in (("base models", True), ("task heads", False)):
        chosen = [row for row in coverage().rows if (row.task == "feature-extraction") is of]
        found = [sum(verdict(row, place) == "matches" for row in chosen) for place in places]
        counts = len(chosen), sum(row.built for row in chosen), sum(row.captured for row in chosen)
        rows.append((what, *counts, *found))
    versions = ", ".join(f"{name} {version}" for name, version in coverage().versions.items())
    head = ("", "in transformers", "built and run by it", "captured", *(f"match on {place}" for place in places))
    return f"{table(head, rows)}\n\n*`make coverage`; {versions}.*"


def checks() -> str:
    """What else the sweep asked of base models: share of those that it could ask."""
    from zoo.coverage import coverage

    base = [row for row in coverage().rows if row.task == "feature-extraction"]
    captured = [row for row in base if row.captured]

    def share(answers: Iterable[bool | None]) -> str:
        given = [answer for answer in answers if answer is not None]
        return f"{sum(given)} of {len(given)} ({sum(given) / len(given):.1%})"

    rows = [("checkpoints that transformers writes of them load", *[share(row.loads for row in captured)] * 2)]
    for what, name in {
        "right at another batch size, with the same graph": "batch",
        "right at another length, with the same graph": "length",
        "gradients within 1e-4 of torch's, or within 4 times torch's own error of float64's": "gradients",
    }.items():
        found = ([getattr(row.on(place), name) for row in captured if row.on(place).matches] for place in PLACES)
        rows.append((what, *map(share, found)))
    kept_back = [row.first for row in base if row.held_out and row.built]
    rows.append(
        (
            "of a third of the types set aside, right at their first run",
            *(share(f.get(p, False) for f in kept_back) for p in PLACES),
        )
    )
    return table(("of those captured", *PLACES), rows)


PLACES = ("jax", "tensorflow")


def versions() -> str:
    """The newest frameworks that a part of the tests passed beside, on each Python; nothing where none are recorded."""
    path = RESULTS / "versions.json"
    if not path.is_file():
        return ""
    runs = list(json.loads(path.read_text("utf-8")).values())
    names = list(dict.fromkeys(name for run in runs for name in run["versions"]))
    rows = []
    for run in runs:
        passed, failed = (sum(part[what] for part in run["tests"].values()) for what in ("passed", "failed"))
        found = (run["versions"].get(name) for name in names)
        rows.append((run["python"], *found, f"{passed} of {passed + failed}"))
    return f"{table(('Python', *names, 'tests passed'), rows)}\n\n*`python benchmarks/check_versions.py`.*"


def commands() -> str:
    """Every command with its options, without the title."""
    command = [sys.executable, "-m", "typer", "zoo.cli", "utils", "docs", "--name", "zoo"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return text.partition("\n")[2]


TABLES: dict[tuple[str, str], Callable[[Any], str]] = {
    ("native", ""): ratios,
    ("native_2_threads", ""): ratios,
    ("native", "accuracy"): lambda result: by_columns(
        {name: row for name, row in result["accuracy"].items() if isinstance(row, Mapping)}, "linear layers in"
    ),
    ("bert", ""): of_shapes("ratio to torch eager"),
    ("bert", "first"): of_shapes("first call s"),
    ("kernels", ""): kernels,
    ("capture", ""): lambda result: by_columns(result, "model"),
    ("memory", ""): memory,
    ("convert", ""): lambda result: by_columns(
        {name: row for name, row in result.items() if isinstance(row, Mapping)}, "way"
    ),
    ("dtypes", ""): lambda result: table(result["summary"][0], (list(row.values()) for row in result["summary"])),
    ("mixed_lengths", ""): mixed,
    ("startup", ""): lambda result: by_columns(
        {name: row for name, row in result.items() if isinstance(row, Mapping)}, "process"
    ),
    ("finetune", ""): finetune,
    ("other_zoos", ""): facts,
    ("hostile", ""): hostile,
    ("attacks", ""): attacks,
    ("fields_of_forms", ""): forms,
    ("jax_export", ""): exported,
    ("keras_hub", ""): facts,
    ("real_weights", ""): lambda result: table(
        ("name", "from", "form", "bytes"), ((r["name"], r["source"], r["form"], r["bytes"]) for r in result)
    ),
    ("round_trips", ""): lambda result: facts(
        {
            what: result["totals"][what]
            for what in ("families", "models", "pairs", "original to a form and back", "models that a form holds")
        }
    ),
}
