"""`zoo inspect`: the tensors of a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from zoo.cli.app import AsJson, app
from zoo.cli.output import write_columns, write_json
from zoo.console import say
from zoo.errors import printable


@app.command("inspect")
def inspect_file(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A file of weights, a folder, or a name.")],
    as_json: AsJson = False,
) -> None:
    """What is in a checkpoint: its tensors' names, shapes and dtypes, and how they are spelled. Loads no tensor."""
    from converters import open_checkpoint
    from converters.dialects import dialect_of
    from zoo.loading import fetch_checkpoint
    from zoo.registry import parse

    place, _ = fetch_checkpoint(parse(source))
    with open_checkpoint(place) as checkpoint:
        dialect = dialect_of(checkpoint)
        facts = {
            "path": str(checkpoint.path),
            "format": checkpoint.format,
            "dialect": dialect.NAME if dialect else "hf-torch",
            "tensors": {
                name: {"dtype": info.dtype, "shape": list(info.shape)} for name, info in checkpoint.infos.items()
            },
            "tied": dict(checkpoint.aliases),
        }
        size = sum(info.nbytes for name, info in checkpoint.infos.items() if name not in checkpoint.aliases)
    if as_json:
        write_json(facts)
        return
    rows = [(printable(name), info.dtype, str(list(info.shape))) for name, info in checkpoint.infos.items()]
    write_columns(rows)
    say(f"\n{facts['path']}: {facts['format']}, {facts['dialect']}, {len(rows)} tensors, {size / 1e6:.1f} MB")
