"""How commands write results: columns, JSON, reports."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from zoo.console import console, plain, say, show_error
from zoo.errors import ZooError

if TYPE_CHECKING:
    from zoo.adapters.check import KernelReport
    from zoo.checksums import FilesReport
    from zoo.verify import Report

__all__ = ["columns_here", "fits", "say_wrapped", "tell", "tell_passed_over", "write_columns", "write_json"]


def tell(report: Report | KernelReport | FilesReport, as_json: bool, well: str) -> None:
    """A report on stdout, with `well` under it if it is all right, else exit code 1."""
    if as_json:
        write_json(report.to_json())
    else:
        console().print(report.table())
    if not report.ok:
        try:
            report.raise_for_failure()
        except ZooError as error:
            show_error(error)
        raise typer.Exit(1)
    if not as_json:
        console().print(f"[green]{well}[/]")


def columns_here() -> int | None:
    """How many columns the terminal has; None where stdout is none, and nothing needs to be cut."""
    if os.environ.get("COLUMNS", "").isdigit():
        return int(os.environ["COLUMNS"])
    return os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else None


def write_columns(rows: Sequence[Sequence[str]], right: int | None = None) -> None:
    """Plain text: drawing a table with rich would take as long as all the rest of `zoo list`."""
    widths = _widths(rows)
    for row in rows:
        cells = [
            cell.rjust(width) if number == right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        say("  ".join(cells).rstrip())


def fits(rows: Sequence[Sequence[str]]) -> bool:
    """Whether no line of `write_columns(rows)` would be broken by the terminal."""
    here, widths = columns_here(), _widths(rows)
    return here is None or sum(widths) + 2 * (len(widths) - 1) <= here


def tell_passed_over(name: str | None) -> None:
    """On stderr, that something here has the name of a registry's model that is taken instead."""
    from zoo.registry import passed_over

    for note in passed_over(name):
        console(stderr=True).print(f"[yellow]note:[/] {plain(note)}", soft_wrap=True)


def say_wrapped(text: str, indent: str = "") -> None:
    """A sentence, broken where the terminal ends."""
    width = columns_here()
    for line in (
        [indent + text] if width is None else textwrap.wrap(text, width, initial_indent=indent, subsequent_indent="  ")
    ):
        say(line)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]  # none without rows


def write_json(value: Any) -> None:
    """Names as they are, but for what a terminal would obey: JSON's own escapes say the same."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    print(re.sub(r"[^\n -~]", lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text))
