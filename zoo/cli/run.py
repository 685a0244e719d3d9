"""`zoo run`: a text model's answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.app import AsJson, Backend, Mmap, Name, Task, app
from zoo.cli.output import tell_passed_over, write_json
from zoo.console import console, import_frameworks, plain, progress_bars
from zoo.errors import InputError

if TYPE_CHECKING:
    from zoo.model import Model


@app.command("run")
def run_model(
    name: Name,
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT…", help="Texts, each an argument.")] = None,
    backend: Backend = "torch",
    task: Task = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="How many answers.")] = 5,
    mmap: Mmap = True,
    as_json: AsJson = False,
) -> None:
    """Run a text model: embeddings and their similarities, tokens for a mask, labels, or the next token."""
    from zoo.registry import Entry, parse

    tell_passed_over(name)
    found = parse(name)
    if isinstance(found, Entry) and found.modality != "text":
        raise _not_text(name, found.modality)
    if not texts:
        raise InputError("there is no text to run the model on", where=name, do=f'zoo run {name} "a text"')
    for text in texts:
        if _is_file(text):
            said = f"taken as a text, though it is a file: {text}; for what is in it, pass its content"
            console(stderr=True).print(f"[yellow]{plain(said)}[/]")
    model = _load(name, backend, task, mmap)
    needed = [item.name for item in model.graph.inputs if item.default is None]
    if needed not in (["input_ids"], []):
        raise _not_text(name, ", ".join(needed))
    from zoo.tasks.answers import answers as answers_of

    answers = answers_of(model, texts, top_k)
    if as_json:
        write_json({"model": model.name, "backend": model.backend, **answers})
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


def _load(name: str, backend: str, task: str | None, mmap: bool) -> Model:
    from zoo.backends import get_backend
    from zoo.frameworks import backend_name, installed
    from zoo.registry import parse

    own = backend_name(backend)
    parse(name)  # a wrong name is said before a framework is imported
    if not installed(own):
        get_backend(own)
    import_frameworks([own])
    from zoo.loading import load

    with progress_bars() as progress:
        return load(name, own, task, mmap=mmap, progress=progress)


def _not_text(name: str, got: str) -> InputError:
    return InputError(
        "this command runs models that take a text and nothing else",
        where=name,
        expected="input_ids",
        got=got,
        do="call the model from Python: zoo.load(name)(…); `zoo info` lists its inputs",
    )
