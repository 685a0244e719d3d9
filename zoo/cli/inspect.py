"""`zoo inspect`: the tensors of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli.app import AsJson, app
from zoo.cli.output import tell_passed_over, write_columns, write_json
from zoo.console import say
from zoo.errors import printable


@app.command("inspect")
def inspect_file(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A file of weights, a folder, or a name.")],
    as_json: AsJson = False,
) -> None:
    """What is in a checkpoint: its tensors' names, shapes and dtypes, and how they are spelled. Loads no tensor."""
    from converters.folder import ADAPTER_CONFIG, adapter_config, adapters_in, weights_in
    from zoo.loading import fetch_checkpoint
    from zoo.registry import SourceRef, parse

    tell_passed_over(source)
    found = parse(source)
    folder = Path(found.location) if isinstance(found, SourceRef) and found.kind == "local" else None
    names = sorted(path.name for path in folder.iterdir()) if folder is not None and folder.is_dir() else []
    if folder is None or not (adapters := adapters_in(names)):
        place, _ = fetch_checkpoint(found)
        _show_checkpoint(place, as_json)
        return
    # Loading refuses such a folder: an adapter would not be applied. What is in it can be seen all the same.
    base = weights_in([name for name in names if name not in adapters], folder)
    told = adapter_config(folder / ADAPTER_CONFIG)
    files = [folder / name for name in (*adapters, *([base] if base else []))]
    if as_json:
        write_json({"path": str(folder), "adapter": told, "files": [_facts(file)[0] for file in files]})
        return
    for file in files:
        _show_checkpoint(file, as_json)
    of = f" for the base {told['base_model_name_or_path']!r}" if "base_model_name_or_path" in told else ""
    say(f"an adapter{of}: {', '.join(map(printable, adapters))}" + (f", beside {printable(base)}" if base else ""))


def _show_checkpoint(place: Path, as_json: bool) -> None:
    facts, size = _facts(place)
    if as_json:
        write_json(facts)
        return
    tensors = facts["tensors"]
    write_columns([(printable(name), info["dtype"], str(info["shape"])) for name, info in tensors.items()])
    say(f"\n{facts['path']}: {facts['format']}, {facts['dialect']}, {len(tensors)} tensors, {size / 1e6:.1f} MB")


def _facts(place: Path) -> tuple[dict[str, Any], int]:
    """What is in a checkpoint, and how many bytes its tensors have, tied ones once."""
    from converters import open_checkpoint
    from converters.dialects import dialect_of

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
        return facts, sum(info.nbytes for name, info in checkpoint.infos.items() if name not in checkpoint.aliases)
