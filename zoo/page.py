"""One page of what was verified where: self-contained, searchable, and a plain table where there is no JavaScript.

Everything on it comes from the sweep's findings and the registry. The frame, its style and script are `page.html`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from statistics import median

from converters.atomic import replacing
from zoo.catalogue import BASE, Availability, Verdict, available, describe, swept, verdict, verified_as
from zoo.coverage import Row, coverage
from zoo.errors import ConfigError
from zoo.registry import find
from zoo.written import refused_by_system

__all__ = ["render", "write_page"]

TEMPLATE = Path(__file__).parent / "page.html"

STYLES: dict[Verdict, str] = {
    "matches": "m", "runs": "r", "captured": "c", "fails": "f", "not built": "n",
}  # fmt: skip
"""Verdict -> its class in the page's style."""

BINS = 4
"""Bins per power of ten in the plot of errors."""


def write_page(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write the page to a file, whole or not at all.

    Args:
        path: a new file.
        overwrite: there may be a file, which the page replaces.

    Raises:
        ConfigError: no sweep comes with this installation, or something has the page's name.
        SourceError: the file cannot be written.
    """
    out, text = Path(path), render()
    with refused_by_system(out):
        if (out.exists() or out.is_symlink()) and not (overwrite and out.is_file()):
            raise ConfigError(
                "there is a file, or a folder, of that name",
                where=out,
                do="choose another name" + (", or --overwrite" if out.is_file() else ""),
            )
        with replacing(out.resolve()) as fresh:
            fresh.write_text(text, "utf-8")


def render() -> str:
    """The page as HTML; it refers to nothing outside itself.

    Raises:
        ConfigError: no sweep comes with this installation.
    """
    if not coverage().rows:
        raise ConfigError(
            "there is nothing to show: no sweep over architectures comes with this installation",
            expected=Path(__file__).parent / "coverage.json.gz",
        )
    rows, models = coverage().rows, available()
    parts = {
        "summary": _summary(rows, models),
        "torch_only": _torch_only(_bases(rows)),
        "shares": _shares(_bases(rows)),
        "by_task": _by_task(rows),
        "errors": _errors(rows),
        "head": "".join(f'<th scope="col">{escape(name)}</th>' for name in swept()),
        "matrix": "\n".join(map(_architecture, rows)),
        "models": "\n".join(map(_model, models)),
        "matrix_filters": _filters("matrix", "type, class or reason", (row.task for row in rows)),
        "registry_filters": _filters("registry", "name, type or licence", (model.task for model in models)),
        "versions": "".join(
            f"<dt>{escape(name)}</dt><dd>{escape(version)}</dd>" for name, version in coverage().versions.items()
        ),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], TEMPLATE.read_text("utf-8"))


# The table of architectures, and that of models


def _architecture(row: Row) -> str:
    cells = "".join(_cell(verdict(row, name), describe(row, name)) for name in swept())
    return (
        f'<tr data-task="{escape(row.task)}"><th scope="row">{escape(row.model_type)}</th><td>{escape(row.task)}</td>'
        f"{cells}<td>{escape(row.architecture)}</td></tr>"
    )


def _model(model: Availability) -> str:
    entry = find(model.name)
    row = verified_as(entry)
    graph = "packaged" if "graph" in model.backends.values() else "made on first load"
    parameters = "" if model.parameters is None else f"{model.parameters:,}"
    cells = "".join(_cell(verdict(row, name), describe(row, name)) if row else "<td></td>" for name in swept())
    return (
        f'<tr data-task="{escape(model.task)}"><th scope="row">{escape(model.name)}</th>'
        f"<td>{escape(model.model_type)}</td><td>{escape(model.task)}</td>{cells}"
        f"<td class=number>{parameters}</td><td>{graph}</td><td>{escape(entry.license or '')}</td></tr>"
    )


def _cell(found: Verdict, why: str) -> str:
    return f'<td class="{STYLES[found]}" title="{escape(why)}">{found}</td>'


def _filters(table: str, hint: str, tasks: Iterable[str]) -> str:
    """What the script shows above a table, and acts on."""
    choices = {
        "Task": ("task", "all tasks", sorted(set(tasks))),
        "Framework": ("on", "any framework", swept()),
        "Found": ("found", "anything", STYLES),
    }
    selects = "\n".join(
        f'<label>{label} <select name="{name}"><option value="">{first}</option>'
        + ('<option value="!matches">does not match</option>' if name == "found" else "")
        + "".join(f"<option>{escape(value)}</option>" for value in values)
        + "</select></label>"
        for label, (name, first, values) in choices.items()
    )
    return (
        f'<form class="filters" data-table="{table}" hidden>\n<label>Search <input type="search" name="q" '
        f'placeholder="{hint}" autocomplete="off" spellcheck="false"></label>\n{selects}\n'
        '<button type="reset">Clear</button>\n<output aria-live="polite"></output>\n</form>'
    )


# Numbers and charts


def _bases(rows: Sequence[Row]) -> list[Row]:
    """The base models that transformers itself builds and runs: what shares are shares of."""
    return [row for row in rows if row.task == BASE and row.built]


def _summary(rows: Sequence[Row], models: Sequence[Availability]) -> str:
    bases = _bases(rows)
    captured = sum(row.captured for row in bases)
    facts = [
        (f"{len(bases):,}", "model types that transformers builds"),
        (f"{captured:,}", f"of them captured, {_percent(captured, len(bases))}"),
    ]
    for name in swept():
        count = _matches(bases, name)
        facts.append((f"{count:,}", f"match on {name}, {_percent(count, len(bases))}"))
    facts += [(f"{len(rows):,}", "heads in all"), (f"{len(models):,}", "checkpoints in the registry")]
    return "".join(f"<li><b>{number}</b> {escape(what)}</li>" for number, what in facts)


def _torch_only(bases: Sequence[Row]) -> str:
    """The question of the age, answered from the data alone."""
    others = [name for name in swept() if name in ("jax", "tensorflow", "keras")]
    freed = sum(any(verdict(row, name) == "matches" for name in others) for row in bases)
    version = coverage().versions.get("transformers", "")
    bars = ""
    if version.partition(".")[0].isdigit() and int(version.partition(".")[0]) >= 5:  # the first without TF and Flax
        bars = _bar(f"transformers {version}", [("n", len(bases))], len(bases), f"{len(bases)} torch-only")
    left = len(bases) - freed
    return bars + _bar(
        "with Anyzoo", [("m", freed), ("n", left)], len(bases),
        f"{freed} on {', '.join(others) or 'no other'} too; {left} torch-only",
    )  # fmt: skip


def _shares(bases: Sequence[Row]) -> str:
    lines = []
    for name in swept():
        counts = [(style, sum(verdict(row, name) == what for row in bases)) for what, style in STYLES.items()]
        said = ", ".join(f"{what} {count}" for what, (_, count) in zip(STYLES, counts, strict=True) if count)
        lines.append(_bar(name, counts, len(bases), said))
    return "".join(lines)


def _bar(name: str, counts: Sequence[tuple[str, int]], total: int, said: str) -> str:
    """A row of a chart: a stacked bar from 0 to 100 %, with its numbers in words beside it."""
    drawn, at = [], 0.0
    for style, count in counts:
        width = 100 * count / max(total, 1)
        drawn.append(f'<rect class="{style}" x="{at:.3f}" width="{width:.3f}" height="10"/>')
        at += width
    return (
        f'<tr><th scope="row">{escape(name)}</th><td><svg class=bar viewBox="0 0 100 10" preserveAspectRatio="none" '
        f'role="img" aria-label="{escape(said)}">{"".join(drawn)}</svg></td><td>{escape(said)}</td></tr>'
    )


def _by_task(rows: Sequence[Row]) -> str:
    lines = []
    for task in sorted({row.task for row in rows}):
        built = [row for row in rows if row.task == task and row.built]
        captured = sum(row.captured for row in built)
        shares = [captured, *(_matches(built, name) for name in swept())]
        cells = "".join(f"<td class=number>{_percent(share, len(built))}</td>" for share in shares)
        lines.append(f'<tr><th scope="row">{escape(task)}</th><td class=number>{len(built)}</td>{cells}</tr>')
    return "".join(lines)


def _errors(rows: Sequence[Row]) -> str:
    """For each backend a histogram of errors on a log scale, over a strip of those that are too large."""
    right: dict[str, list[float]] = {name: [] for name in swept()}
    wrong: dict[str, list[tuple[float, Row]]] = {name: [] for name in swept()}
    for row in rows:
        for name in swept():
            cell = row.on(name)
            if cell.error is not None and verdict(row, name) == "matches":
                right[name].append(_log(cell.error))
            elif cell.error is not None:
                wrong[name].append((_log(cell.error), row))
    logs = [log for found in right.values() for log in found] + [log for found in wrong.values() for log, _ in found]
    if not logs:
        return "<p>The sweep holds no errors.</p>"
    low, high = math.floor(min(logs)), math.floor(max(logs)) + 1
    highest = max(1, *(count for name in swept() for count in _histogram(right[name], low, high)))
    plots = "".join(_plot(name, right[name], wrong[name], low, high, highest) for name in swept())
    ticks = "".join(
        f'<span style="left:{100 * (power - low) / (high - low):.2f}%">10<sup>{power}</sup></span>'
        for power in range(low, high + 1)
    )
    return f'{plots}<div class="axis" aria-hidden="true"><i></i><div>{ticks}</div></div>'


def _plot(
    name: str, right: Sequence[float], wrong: Sequence[tuple[float, Row]], low: int, high: int, highest: int
) -> str:
    width = 100 / (BINS * (high - low))
    bars = "".join(
        f'<rect class="m" x="{i * width:.3f}" y="{40 - height:.2f}" width="{0.92 * width:.3f}" height="{height:.2f}"/>'
        for i, height in enumerate(40 * count / highest for count in _histogram(right, low, high))
        if height
    )
    marks = "".join(
        f'<rect class="f" x="{min(100 * (log - low) / (high - low), 99.7):.3f}" y="43" width="0.3" height="7">'
        f"<title>{escape(f'{row.model_type}, {row.task}: {row.on(name).error:.1e}')}</title></rect>"
        for log, row in wrong
    )
    said = f"{len(right)} match"
    said += f", median {10 ** median(right):.1e}, largest {10 ** max(right):.1e}" if right else ""
    said += f"; {len(wrong)} too large" if wrong else ""
    return (
        f'<div class="plot"><div><b>{escape(name)}</b><br>{said}</div><svg viewBox="0 0 100 50" '
        f'preserveAspectRatio="none" role="img" aria-label="{escape(name)}: {said}">{bars}{marks}</svg></div>'
    )


def _histogram(logs: Iterable[float], low: int, high: int) -> list[int]:
    counts = [0] * (BINS * (high - low))
    for log in logs:
        counts[int(BINS * (log - low))] += 1
    return counts


def _log(error: float) -> float:
    """The power of ten; what is exact stands with the smallest that is told apart, what is not finite with 10."""
    return math.log10(min(max(error, 1e-12), 10.0)) if math.isfinite(error) else 1.0


def _matches(rows: Iterable[Row], backend: str) -> int:
    return sum(verdict(row, backend) == "matches" for row in rows)


def _percent(part: int, whole: int) -> str:
    """Rounded down: 100 % means all of them."""
    return f"{math.floor(1000 * part / whole) / 10:g}\N{NO-BREAK SPACE}%" if whole else "–"
