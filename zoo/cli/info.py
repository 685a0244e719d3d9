"""`zoo info`: what is known of a model before anything is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.app import AsJson, app
from zoo.cli.output import tell_passed_over, write_json
from zoo.console import console, plain

if TYPE_CHECKING:
    from zoo.catalogue import Info

_NameOrType = Annotated[str, typer.Argument(metavar="NAME", help="What `zoo run` takes, or a model type such as bert.")]


@app.command("info")
def show_info(
    name: _NameOrType,
    everything: Annotated[bool, typer.Option("--all", help="Hashes, sources of facts, ops, other heads, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """What is known of a model without downloading it, and what was verified of its architecture."""
    from zoo.catalogue import info

    tell_passed_over(name)
    known = info(name)
    if as_json:
        write_json(known.to_json())
        return
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in (_all(known) if everything else _first(known)).items():
        if value:
            table.add_row(key.replace("_", " "), plain(value))
    console().print(table)
    if not everything:
        console().print("[dim]zoo info --all: hashes, sources of facts, ops, every head that was verified[/]")


def _first(known: Info) -> dict[str, str]:
    """What people ask first: what it is, where it comes from, how it is called, and whether it is right."""
    from zoo.catalogue import describe, swept

    ways: dict[str, list[str]] = {}
    for backend, status in known.backends.items():
        ways.setdefault(_STATUS[status], []).append(backend)
    runs = "\n".join(f"{', '.join(backends)}: {way}" for way, backends in ways.items())
    verified, swept_heads = "", known.verified if known.kind == "type" else known.verified[:1]
    for row in swept_heads:
        said: dict[str, list[str]] = {}
        for place in swept():
            said.setdefault(describe(row, place), []).append(place)
        verified += f"{row.task} ({row.architecture}), built tiny\n"
        verified += "".join(f"  {', '.join(places)}: {what}\n" for what, places in said.items())
    if others := [row.task for row in known.verified if row not in swept_heads]:
        verified += f"other heads: {', '.join(dict.fromkeys(others))}"
    load = f'zoo.load("{known.name}")' if known.kind == "registry" else ""
    if known.kind in ("hub", "wheel", "local"):
        load = f'zoo.load("{known.sources[0]}")'
    parameters = "" if known.parameters is None else f"{known.parameters:,}"
    return {
        "name": known.name,
        "also": ", ".join(known.aliases),
        "type": ", ".join(filter(None, (known.model_type, known.architecture))),
        "task": ", ".join(filter(None, (known.task, known.modality))),
        "parameters": parameters,
        "license": known.license or "",
        "load": load,
        "inputs": _lines(known.inputs),
        "outputs": _lines(known.outputs),
        "runs here": runs,
        "verified": verified.rstrip(),
        "models": ", ".join(known.models),
        "sources": "\n".join(known.sources),
    }


_STATUS = {
    "graph": "its graph is packaged",
    "capture": "captured once, on the first load",
    "needs torch": "needs torch and transformers to capture it",
    "not installed": "not installed",
}


def _all(known: Info) -> dict[str, str]:
    """Every field."""
    from zoo.catalogue import describe, swept

    found: dict[str, str] = {}
    for key, value in known.to_json().items():
        if key == "verified":
            found[key] = "\n\n".join(
                "\n".join(
                    [f"{row.task} ({row.architecture})", *(f"  {place}: {describe(row, place)}" for place in swept())]
                )
                for row in known.verified
            )
        elif key == "ops":
            found[key] = ", ".join(f"{op} {count}" for op, count in value.items())
        elif isinstance(value, dict):
            found[key] = _lines(value)
        elif isinstance(value, (list, tuple)):
            found[key] = (", " if key == "models" else "\n").join(value)
        elif value is not None:
            found[key] = f"{value:,}" if isinstance(value, int) else str(value)
    return found


def _lines(facts: Mapping[str, object]) -> str:
    return "\n".join(f"{name}: {fact}" for name, fact in facts.items())
