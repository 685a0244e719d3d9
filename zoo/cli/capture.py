"""`zoo capture`: a model as a folder that needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.app import DType, Overwrite, Task, app
from zoo.cli.output import tell_passed_over
from zoo.console import console, plain


@app.command("capture")
def capture_model(
    source: Annotated[str, typer.Argument(metavar="SRC", help="What `zoo run` takes as NAME.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new folder.")],
    task: Task = None,
    dtype: DType = "float32",
    train: Annotated[bool, typer.Option(help="Keep dropout, for training.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Capture a model as a folder that loads on every backend without torch (needs torch and transformers)."""
    from zoo.loading import capture
    from zoo.written import may_write

    tell_passed_over(source)
    may_write(output, overwrite)  # said before the long part
    written = capture(source, task=task, dtype=dtype, train=train).save(output, overwrite=overwrite)
    console().print(f"wrote {plain(str(written))}", soft_wrap=True)
