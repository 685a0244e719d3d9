"""Checkpoint formats, one file each: tensors by name out of any of them, memory-mapped and never executed."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from converters import safetensors, torch_pickle
from converters.checkpoint import DTYPES, Checkpoint, TensorInfo, read_head, refuse_impostor
from converters.safetensors import save_safetensors
from converters.sharded import open_index
from zoo.errors import FormatError, SourceError

__all__ = ["DTYPES", "Checkpoint", "TensorInfo", "open_checkpoint", "save_safetensors"]

FORMATS: tuple[ModuleType, ...] = (safetensors, torch_pickle)
"""Every format, each with SUFFIXES, recognises(head) and open_file(path); see `converters.checkpoint`."""

IN_A_FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What is looked for in a folder, in this order; then a single *.safetensors."""


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a checkpoint: reads and checks its directory of tensors, no tensor itself.

    Args:
        path: a file of any format in `FORMATS`, an index (*.index.json) of shards, or a folder holding one of
            `IN_A_FOLDER` or a single *.safetensors.

    Returns:
        A `Checkpoint`, to be used in a `with` block.

    Raises:
        SourceError: nothing there, or nothing that is a checkpoint.
        FormatError: truncated, corrupt, of an unknown format, or shards missing.
        UnsafeFile: the file asks for code to be run, or leads out of its folder.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    if path.name.endswith(".index.json"):
        return open_index(path, _open_file)
    return _open_file(path)


def _open_file(path: Path) -> Checkpoint:
    head = read_head(path)
    refuse_impostor(path, head)
    # A name that promises safetensors is held to it; other names are shared by formats, so contents decide.
    if path.suffix not in safetensors.SUFFIXES:
        for format_ in FORMATS:
            if format_.recognises(head):
                return format_.open_file(path)
    for format_ in FORMATS:
        if path.suffix in format_.SUFFIXES:
            return format_.open_file(path)
    raise FormatError(
        "the file is of no format that is known here",
        where=path,
        expected=", ".join(suffix for format_ in FORMATS for suffix in format_.SUFFIXES),
        got=f"beginning {head[:16]!r}",
    )


def _in_folder(folder: Path) -> Path:
    for name in IN_A_FOLDER:
        if (folder / name).exists():
            return folder / name
    single = sorted(folder.glob("*.safetensors"))
    if len(single) == 1:
        return single[0]
    raise SourceError(
        "the folder holds several checkpoints" if single else "the folder holds no checkpoint",
        where=folder,
        expected=f"{', '.join(IN_A_FOLDER)}, or one *.safetensors",
        got=", ".join(p.name for p in single) or None,
        do="give the path of the file itself",
    )
