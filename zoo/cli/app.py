"""The Typer application that each command adds itself to, and the options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["AsJson", "Backend", "DType", "Mmap", "Name", "Overwrite", "Task", "app"]

app = typer.Typer(
    help="Any pretrained model, unchanged and proven equal, on PyTorch, TensorFlow, JAX, Keras 3 or NumPy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(help="A registry name, hf://org/name, wheel://DIST==VERSION/folder or a folder.")]
Backend = Annotated[str, typer.Option("--backend", "-b", help="torch, jax, tensorflow, keras, numpy or native.")]
Task = Annotated[str | None, typer.Option("--task", "-t", help="By the hub's name, such as fill-mask.")]
DType = Annotated[str, typer.Option(help="float32, bfloat16 or float16, or auto: the checkpoint's own.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what was written there before, nothing else.")]
Mmap = Annotated[bool, typer.Option("--mmap/--no-mmap", help="Map files, or read them: safe if others cut them.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON.")]


def _version(asked: bool) -> None:
    if asked:
        import zoo

        print(f"anyzoo {zoo.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Any pretrained model, unchanged and proven equal, on PyTorch, TensorFlow, JAX, Keras 3 or NumPy."""
