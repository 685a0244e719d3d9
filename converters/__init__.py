"""Checkpoint formats, one file each: tensors by name out of any of them, memory-mapped and never executed."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from converters.checkpoint import DTYPES, Checkpoint, TensorInfo, read_head, refuse_impostor
from converters.folder import USUAL, is_beside, is_index, weights_in
from converters.formats import orbax, safetensors
from converters.formats.safetensors import save_safetensors
from converters.formats.tensorflow import saved_model
from converters.sharded import open_index
from zoo.errors import FormatError, SourceError, ZooError

__all__ = ["DTYPES", "Checkpoint", "TensorInfo", "open_checkpoint", "save_safetensors", "unnamed"]

FORMATS = (
    "safetensors",
    "npz",
    "torch.read",
    "hdf5.read",
    "msgpack.read",
    "gguf.read",
    "tensorflow.bundle",
    "tensorflow.saved_model",
    "onnx",
    "tensorflow.tfjs",
    "llama2c",
)
"""Every format, a module of `converters.formats` with SUFFIXES, recognises(head) and open_file(path).

They are imported when a file is not safetensors, whose users then wait for no other."""

FOLDERS: tuple[ModuleType, ...] = (saved_model, orbax)
"""Those whose checkpoints are folders, each with recognises_folder(folder)."""


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a checkpoint: reads and checks its directory of tensors, no tensor itself.

    Args:
        path: a file of any format in `FORMATS`, an index of shards (*.index.json, *.index.fp16.json), the prefix of a
            TensorFlow checkpoint, or a folder that is a checkpoint (`FOLDERS`) or holds one (see `converters.folder`).

    Returns:
        A `Checkpoint`, to be used in a `with` block.

    Raises:
        SourceError: nothing there, or nothing that is a checkpoint.
        FormatError: truncated, corrupt, of an unknown format, or shards missing.
        UnsafeFile: the file asks for code to be run, or leads out of its folder.
    """
    path = Path(path)
    try:
        return _open(path)
    except ZooError:
        raise
    except OSError as error:  # a name in the checkpoint that the system does not take, a folder that it does not show
        raise SourceError("the checkpoint cannot be opened", where=path, got=error) from error


def _open(path: Path) -> Checkpoint:
    if path.is_dir():
        for format_ in FOLDERS:
            if format_.recognises_folder(path):
                return format_.open_file(path)
        path = _in_folder(path)
    elif not path.is_file():
        from converters.formats.tensorflow import bundle as tensor_bundle

        if (prefix := tensor_bundle.prefix_of(path)) is not None:
            return tensor_bundle.open_file(prefix)
    if is_index(path.name):
        return open_index(path, _open_file)
    return _open_file(path)


def _open_file(path: Path) -> Checkpoint:
    head = read_head(path)
    refuse_impostor(path, head)
    # A name that promises safetensors is held to it; other names are shared by formats, so contents decide, and
    # where several formats begin alike (zip archives) the name decides between them.
    if path.suffix in safetensors.SUFFIXES:
        return safetensors.open_file(path)
    formats = [importlib.import_module(f"converters.formats.{name}") for name in FORMATS]
    claiming = [format_ for format_ in formats if path.suffix in format_.SUFFIXES]
    telling = [format_ for format_ in formats if format_.recognises(head)]
    for format_ in (*(one for one in telling if one in claiming), *telling, *claiming):
        return format_.open_file(path)
    raise FormatError(
        "the file is of no format that is known here",
        where=path,
        expected=", ".join(suffix for format_ in formats for suffix in format_.SUFFIXES),
        got=f"beginning {head[:16]!r}",
    )


def unnamed(folder: Path) -> str | None:
    """The one file of a folder that is a checkpoint by how it begins, whatever it is called; None if not one is."""
    formats = [importlib.import_module(f"converters.formats.{name}") for name in _TELLING]
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.stat().st_size and path.suffix not in _TEXTS and not is_beside(path.name):
            head = read_head(path)
            found += [path.name] if any(format_.recognises(head) for format_ in formats) else []
    return found[0] if len(found) == 1 else None


_TELLING = ("safetensors", "npz", "torch.read", "hdf5.read", "msgpack.read", "gguf.read")
"""Formats whose files begin as no others do."""

_TEXTS = (".json", ".txt", ".md", ".py", ".jinja", ".yaml", ".yml", ".model", ".gz")


def _in_folder(folder: Path) -> Path:
    found = weights_in(sorted(path.name for path in folder.iterdir()), folder) or unnamed(folder)
    if found is None:
        raise SourceError(
            "the folder holds no checkpoint",
            where=folder,
            expected=f"{', '.join(USUAL)}, or one file of another format",
            do="give the path of the file itself",
        )
    return folder / found
