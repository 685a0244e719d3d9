"""`zoo verify`: a model's outputs, our kernels or a checkpoint's files, compared with what they should be."""

from __future__ import annotations

from typing import Annotated

import typer

from zoo.cli.app import AsJson, DType, Mmap, Task, app
from zoo.cli.output import tell, tell_passed_over
from zoo.console import console, import_frameworks, progress_bars
from zoo.errors import InputError


@app.command("verify")
def verify_model(
    name: Annotated[str | None, typer.Argument(help="What `zoo run` takes as NAME; none with --kernels.")] = None,
    backends: Annotated[str, typer.Option("--backend", "-b", help="all, or names with commas.")] = "all",
    task: Task = None,
    gradients: Annotated[bool, typer.Option("--gradients", help="Compare gradients too.")] = False,
    dtype: DType = "float32",
    batch: Annotated[int, typer.Option(min=1, help="Rows of the inputs.")] = 3,
    length: Annotated[int, typer.Option(min=1, help="Tokens of the inputs.")] = 17,
    seed: Annotated[int, typer.Option(help="Of the inputs.")] = 0,
    kernels: Annotated[bool, typer.Option("--kernels", help="Check our kernels, not a model.")] = False,
    files: Annotated[bool, typer.Option("--files", help="Compare the files with every checksum of them.")] = False,
    mmap: Mmap = True,
    as_json: AsJson = False,
) -> None:
    """Compare a model's outputs on several backends with float64; exit code 1 if one is wrong.

    With --kernels: our kernels inside torch, JAX and TensorFlow, against float64 and against the framework's own, and
    those for an NVIDIA GPU ("cuda") against float64. With --files: the checkpoint's files are read, nothing is run, and
    each is compared with its sha256 (of the registry, the hub, the wheel) and with the checksums that it holds itself.
    """
    from zoo.frameworks import BACKENDS, backend_name
    from zoo.registry import parse
    from zoo.verify import verify

    asked = None if backends == "all" else [part.strip() for part in backends.split(",")]
    tell_passed_over(name)
    if kernels:
        _verify_kernels(name, asked, as_json)
        return
    if files:
        _verify_files(name, as_json)
        return
    wanted = asked and [backend_name(part) for part in asked]
    if name is None:
        raise InputError("there is no model to verify", do="zoo verify NAME, or zoo verify --kernels")
    parse(name)  # a wrong name is said before frameworks are imported
    import_frameworks(wanted or list(BACKENDS))
    with progress_bars() as progress:
        report = verify(
            name, wanted, task=task, gradients=gradients, seed=seed, batch=batch, length=length, dtype=dtype,
            mmap=mmap, progress=progress,
        )  # fmt: skip
    tell(report, as_json, report.checked())


def _verify_kernels(name: str | None, wanted: list[str] | None, as_json: bool) -> None:
    from zoo.adapters import FRAMEWORKS
    from zoo.adapters.check import CUDA, verify_kernels
    from zoo.frameworks import backend_name

    if name is not None:
        raise InputError("kernels are checked without a model", got=name, do="zoo verify --kernels")
    import_frameworks([backend_name(part) for part in wanted or FRAMEWORKS if part != CUDA])
    with console(stderr=True).status("") as status:
        report = verify_kernels(wanted, progress=status.update)
    tell(report, as_json, report.checked())


def _verify_files(name: str | None, as_json: bool) -> None:
    from zoo.checksums import check_files

    if name is None:
        raise InputError("there is no model whose files to verify", do="zoo verify NAME --files")
    with progress_bars() as progress:
        report = check_files(name, progress=progress)
    compared = sum(bool(row.compared) for row in report.rows)
    tell(report, as_json, f"all right: {compared} of {len(report.rows)} files could be compared")
