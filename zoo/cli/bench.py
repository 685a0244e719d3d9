"""`zoo bench`: how fast a model runs on several backends."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from zoo.cli.app import AsJson, DType, Name, Task, app
from zoo.cli.output import tell_passed_over, write_json
from zoo.console import console, import_frameworks, progress_bars
from zoo.errors import InputError


@app.command("bench")
def bench_model(
    name: Name,
    backends: Annotated[str, typer.Option("--backends", "-b", help="all, or names with commas.")] = "all",
    task: Task = None,
    dtype: DType = "float32",
    shapes: Annotated[str, typer.Option(metavar="ROWSxTOKENS,…", help="Sizes of the inputs.")] = "1x16,1x128,8x128",
    rounds: Annotated[int, typer.Option(min=1, help="Calls whose median is taken.")] = 11,
    threads: Annotated[int, typer.Option(min=1, help="Of each backend; as many cores are used.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Time a model on several backends in turn, on this machine: milliseconds, and ratios to torch."""
    from zoo.bench import bench
    from zoo.frameworks import BACKENDS, backend_name
    from zoo.registry import parse

    wanted = None if backends == "all" else [backend_name(part.strip()) for part in backends.split(",")]
    sizes = [re.fullmatch(r"\s*(\d+)x(\d+)\s*", part) for part in shapes.split(",")]
    if not all(sizes):
        raise InputError("not sizes of inputs", where="--shapes", expected="ROWSxTOKENS, as 8x128", got=shapes)
    tell_passed_over(name)
    parse(name)  # a wrong name is said before frameworks are imported
    import_frameworks(wanted or list(BACKENDS))
    with progress_bars() as progress:
        report = bench(
            name, wanted, task=task, dtype=dtype, shapes=[(int(found[1]), int(found[2])) for found in sizes if found],
            rounds=rounds, threads=threads, progress=progress,
        )  # fmt: skip
    if as_json:
        write_json(report.to_json())
    else:
        console().print(report.table())
