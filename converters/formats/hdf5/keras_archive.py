"""Writing Keras 3's .keras archives: a zip of metadata.json, config.json and model.weights.h5, each stored as it is.

Neither Keras nor its backend is needed. What reads them is `converters.formats.hdf5.read`.
Source: keras/src/saving/saving_lib.py.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from converters.checkpoint import BLOCK, NO_METADATA, Checkpoint
from converters.formats.hdf5 import write as h5_write
from converters.formats.hdf5.read import MAX_TEXT
from zoo.errors import FormatError

__all__ = ["write"]

TEXTS = ("metadata.json", "config.json")
"""The archive's texts, by their names; Keras's own order."""


def write(path: Path, checkpoint: Checkpoint, metadata: Mapping[str, str] = NO_METADATA) -> None:
    """Writes a .keras archive, holding one block of one tensor at a time in memory.

    HDF5 is written to a file beside the archive first, so this takes twice the room while it lasts.

    Args:
        path: a new file.
        checkpoint: its tensors, under the paths that the model's own variables have; dtypes as for HDF5.
        metadata: the texts of `TEXTS`.

    Raises:
        FormatError: a text is missing or too long to be read again, or what HDF5 refuses.
        MissingFramework: h5py is not installed.
    """
    for name in TEXTS:
        size = len(metadata.get(name, "").encode())
        if not 0 < size <= MAX_TEXT:
            raise FormatError(f"{name} is missing or too long", where=path, expected=f"1 to {MAX_TEXT} bytes", got=size)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        weights = Path(folder) / "model.weights.h5"
        h5_write.write(weights, checkpoint)
        with path.open("xb") as out, zipfile.ZipFile(out, "w") as archive:
            for name in TEXTS:
                archive.writestr(zipfile.ZipInfo(name), metadata[name])
            with archive.open(zipfile.ZipInfo(weights.name), "w", force_zip64=True) as member, weights.open("rb") as h5:
                shutil.copyfileobj(h5, member, BLOCK)
