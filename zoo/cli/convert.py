"""`zoo convert`: a checkpoint in another framework's form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.app import AsJson, Mmap, Overwrite, Task, app
from zoo.cli.output import tell_passed_over, write_columns, write_json
from zoo.console import console, plain, progress_bars, say
from zoo.errors import InputError, printable

_FORMS = (
    "safetensors, torch, tf-h5, flax, npz, gguf, tf-checkpoint, orbax, keras, keras-model, keras-hub, "
    "keras-applications, big-vision, torchvision or timm."
)


@app.command("convert")
def convert_model(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A name, hf://org/name, a folder or a file of weights.")],
    output: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    to: Annotated[str, typer.Option("--to", metavar="FORM", help=_FORMS)] = "safetensors",
    task: Task = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16, for gguf also q8_0; as it is by default.")
    ] = None,
    shard_size: Annotated[str | None, typer.Option(metavar="SIZE", help="Largest file, such as 5GB or 200MB.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print which tensor becomes which.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Open what was written by itself and compare tensors, files and outputs.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="A tensor that holds NaN is an error.")] = False,
    overwrite: Overwrite = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Tensors alone under their own names, to safetensors, npz or torch.")
    ] = False,
    mmap: Mmap = True,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint in another framework's form: safetensors, torch, tf-h5, flax, npz, gguf and others."""
    tell_passed_over(source)
    from zoo.convert import convert

    with progress_bars() as progress:
        done = convert(
            source, output, to, task=task, dtype=dtype, shard_size=_bytes(shard_size), dry_run=dry_run, verify=verify,
            strict=strict, overwrite=overwrite, raw=raw, mmap=mmap, progress=progress,
        )  # fmt: skip
    if as_json:
        write_json(done.to_json())
        return
    if dry_run:
        write_columns([(printable(origin), "->", printable(name)) for name, origin in done.names.items()])
    for why in dict.fromkeys(done.dropped.values()):
        names = [name for name, reason in done.dropped.items() if reason == why]
        shown = ", ".join(map(printable, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        say(f"left out, since {why}: {shown}")
    for name in done.nans:
        console(stderr=True).print(f"[yellow]warning:[/] {plain(name)} holds NaN")
    for note in done.notes:
        console(stderr=True).print(f"[yellow]note:[/] {plain(note)}", soft_wrap=True)
    what = f"{len(done.names)} tensors, {done.nbytes / 1e6:.1f} MB, {done.dialect} to {done.target}"
    checked = f", {done.verified} compared" if done.verified else ""
    console().print(f"{'would write' if dry_run else 'wrote'} {plain(str(output))}: {what}{checked}", soft_wrap=True)


def _bytes(size: str | None) -> int | None:
    """5GB, 200MB, 1000 … in bytes."""
    if size is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMG]?)i?B?", size.strip())
    if found is None:
        raise InputError("not a size", got=size, expected="a number with kB, MB or GB")
    return int(float(found[1]) * {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}[found[2]])
