"""`zoo list`: the registry's models, or the architectures that a sweep verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.app import AsJson, Task, app
from zoo.cli.output import columns_here, fits, say_wrapped, write_columns, write_json
from zoo.console import console, plain, say
from zoo.errors import InputError

if TYPE_CHECKING:
    from zoo.coverage import Row

_AnyBackend = Annotated[str | None, typer.Option("--backend", "-b", help="Only models that load on it here.")]


@app.command("list")
def list_models(
    backend: _AnyBackend = None,
    task: Task = None,
    types: Annotated[
        bool, typer.Option("--types", help="Architectures instead of models, as a sweep found them.")
    ] = False,
    missing: Annotated[bool, typer.Option("--missing", help="Architectures that do not match, and why.")] = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write all of it as one page.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="The page may replace a file.")] = False,
    as_json: AsJson = False,
) -> None:
    """The models of the registry: how each gets onto the backends here, and where its architecture was verified."""
    if html is not None:
        if backend or task or types or missing or as_json:
            raise InputError("--html goes with no other option", do="write the page and filter it there")
        from zoo.page import write_page

        write_page(html, overwrite=overwrite)
        console().print(f"wrote {plain(str(html))}", soft_wrap=True)
    elif overwrite:
        raise InputError("--overwrite goes with --html", do="zoo list --html FILE --overwrite")
    elif types or missing:
        _list_architectures(backend, task, missing, as_json)
    else:
        _list_models(backend, task, as_json)


def _list_models(backend: str | None, task: str | None, as_json: bool) -> None:
    from zoo.catalogue import RUNS, available, swept
    from zoo.frameworks import BACKENDS, how_to_install, installed

    models = available(backend, task)
    if as_json:
        write_json([model.to_json() for model in models])
        return
    rows = [("name", "type", "task", "parameters", "graph", *swept())]
    for model in models:
        graph = next(_GRAPH[how] for how in (*RUNS, "needs torch") if how in model.backends.values())
        found = (model.verified.get(name, "") for name in swept())
        rows.append((model.name, model.model_type, model.task, _count(model.parameters), graph, *found))
    if fits(rows):
        write_columns(rows, right=3)
    else:
        together = [("name", "task", "verified", "parameters", "graph")]
        for row, model in zip(rows[1:], models, strict=True):
            together.append((row[0], row[2], _together(model.verified), row[3], row[4]))
        write_columns(_cut(together), right=3)
    here = [name for name in BACKENDS if installed(name)]
    say(f"\n{len(models)} models. Frameworks here: {', '.join(here)}")
    lacking = [f"{name} ({how_to_install(name)})" for name in BACKENDS if name not in here]
    if lacking:
        say_wrapped(f"Not installed: {', '.join(lacking)}")
    say(_SWEPT if swept() else _NOT_SWEPT)


def _together(verified: Mapping[str, str]) -> str:
    """What was found on all backends, in few words: "matches", or "5 of 6" where it matches on some."""
    found = list(verified.values())
    if len(set(found)) <= 1:
        return "".join(found[:1])
    return f"{found.count('matches')} of {len(found)}"


def _cut(rows: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
    """Without the last columns that a terminal has no room for; two always stay."""
    while len(rows[0]) > 2 and not fits(rows):
        rows = [row[:-1] for row in rows]
    return rows


_GRAPH = {"graph": "packaged", "capture": "made on first load", "needs torch": "needs torch, transformers"}
_SWEPT = (
    "matches: its architecture, built tiny, is within tolerance of float64 there;\n"
    "runs: it is not; captured: its graph did not run there; fails: it has none.\n"
    "`zoo info NAME` says why; `zoo list --types` lists all architectures."
)
_NOT_SWEPT = "No sweep over architectures comes with this installation."


def _list_architectures(backend: str | None, task: str | None, missing: bool, as_json: bool) -> None:
    from zoo.catalogue import architectures, row_to_json, swept, verdict
    from zoo.coverage import coverage
    from zoo.frameworks import backend_name

    found = architectures(backend, task, missing=missing)
    if as_json:
        write_json([row_to_json(row) for row in found])
        return
    if not swept():
        say(_NOT_SWEPT)
        return
    places = swept() if backend is None else (backend_name(backend),)
    if missing:
        _write_missing(found, places)
    else:
        rows = [("type", "task", *places)]
        rows += [(row.model_type, row.task, *(verdict(row, place) for place in places)) for row in found]
        if not fits(rows):
            together = (_together({place: verdict(row, place) for place in places}) for row in found)
            rows = [
                ("type", "task", "verified"),
                *((*row[:2], said) for row, said in zip(rows[1:], together, strict=True)),
            ]
        write_columns(rows)
    types = len({row.model_type for row in found})
    versions = ", ".join(f"{name} {version}" for name, version in coverage().versions.items())
    say()
    say_wrapped(f"{len(found)} heads of {types} types, each built tiny. Found with {versions}.")


def _write_missing(found: Sequence[Row], places: Sequence[str]) -> None:
    """Each architecture that does not match: where, what was found, and why."""
    from zoo.catalogue import reason, verdict

    rows = [("type", "task", "backends", "found", "reason")]
    for row in found:
        same: dict[tuple[str, str], list[str]] = {}
        for place in places:
            if verdict(row, place) != "matches":
                same.setdefault((verdict(row, place), reason(row, place)), []).append(place)
        for (what, why), where in same.items():
            rows.append((row.model_type, row.task, ", ".join(where), what, why))
    if columns_here() is None:  # a file or a pipe
        write_columns(rows)
        return
    for model_type, task, backends, what, why in rows[1:]:  # a reason can be longer than any line
        say_wrapped(f"{model_type}, {task}: {what} on {backends}")
        say_wrapped(why, indent="  ")


def _count(parameters: int | None) -> str:
    if parameters is None:
        return ""
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"
