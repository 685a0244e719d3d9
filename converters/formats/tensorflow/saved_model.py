"""The variables of a SavedModel: a folder with saved_model.pb, and a TensorFlow checkpoint in variables/.

Source: https://www.tensorflow.org/guide/saved_model. The program in saved_model.pb is not read. Names and metadata
are as `converters.formats.tensorflow.bundle` tells.
"""

from __future__ import annotations

from pathlib import Path

from converters.checkpoint import Checkpoint
from zoo.errors import SourceError

__all__ = ["SUFFIXES", "open_file", "recognises", "recognises_folder"]

SUFFIXES = (".pb",)


def recognises(head: bytes) -> bool:
    """Never: a SavedModel is a folder."""
    return False


def recognises_folder(folder: Path) -> bool:
    """Whether a folder is a SavedModel."""
    return (folder / "saved_model.pb").is_file() or (folder / "variables" / "variables.index").is_file()


def open_file(path: Path) -> Checkpoint:
    """Opens the variables of a SavedModel, reading none.

    Args:
        path: the folder, or its saved_model.pb.

    Raises:
        SourceError: there are no variables.
        FormatError: they are truncated or corrupt.
    """
    folder = path if path.is_dir() else path.parent
    index = folder / "variables" / "variables.index"
    if not index.is_file():
        raise SourceError(
            "the SavedModel has no variables beside its program",
            where=folder,
            expected="variables/variables.index",
            do="a frozen graph holds its weights as constants, which are not read: take the model it was frozen from",
        )
    from converters.formats.tensorflow import bundle as tensor_bundle

    return tensor_bundle.open_file(index)
