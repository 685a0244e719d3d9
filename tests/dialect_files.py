"""Tiny models that other programs wrote, with what they compute; see tests/oracle/make_dialect_files.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open
from tolerances import SMALLEST_STD, TOLERANCES

import converters.formats.safetensors
from converters.checkpoint import Checkpoint, MemoryCheckpoint
from converters.view import View

FILES = Path(__file__).parent / "data" / "dialects"


_NOT_NEEDED = ("pooler", "mask_token", "num_batches_tracked")


class Tiny:
    """One file: `weights` by the program's names, `inputs`, `output`, `facts`."""

    def __init__(self, name: str) -> None:
        with safe_open(FILES / f"{name}.safetensors", "np") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            self.facts: dict[str, str] = file.metadata() or {}
        self.inputs = {key[3:]: value for key, value in arrays.items() if key.startswith("in:")}
        self.output = arrays["out:main"]
        self.weights = {key: value for key, value in arrays.items() if key[:3] not in ("in:", "out")}

    def checkpoint(self, folder: Path, file: str = "weights") -> Checkpoint:
        """The weights as a checkpoint that pretends to lie in a folder, beside the facts."""
        for name, text in self.facts.items():
            (folder / f"{name}.json").write_text(text)
        return MemoryCheckpoint(self.weights, folder / file)


def transformers_output(
    folder: Path, checkpoint: Checkpoint, config: Mapping[str, Any], inputs: Mapping[str, np.ndarray]
) -> np.ndarray:
    """What transformers computes, in float32, from a checkpoint under canonical names: the class's first output.

    Every weight must be found and used; only what the output does not need may be missing.
    """
    converters.formats.safetensors.write(folder / "model.safetensors", checkpoint, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(dict(config)))
    made = getattr(transformers, config["architectures"][0])
    model, found = made.from_pretrained(folder, output_loading_info=True)
    assert not [key for key in found["missing_keys"] if not any(part in key for part in _NOT_NEEDED)]
    assert not found["unexpected_keys"] and not found["mismatched_keys"]
    base = model if "pixel_values" in inputs else getattr(model, model.base_model_prefix, model)
    with torch.no_grad():
        return base(**{name: torch.as_tensor(value) for name, value in inputs.items()})[0].numpy()


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    """Both varied enough to say something, and equal within the table's tolerance."""
    assert got.shape == expected.shape and expected.std() > SMALLEST_STD
    assert np.abs(got - expected).max() <= TOLERANCES["torch", "float32"] * np.abs(expected).max()


def assert_same(got: Checkpoint, expected: Mapping[str, np.ndarray]) -> None:
    """The same names, and bit for bit the same tensors."""
    assert set(got.infos) == set(expected)
    for name, array in expected.items():
        assert got.infos[name].shape == array.shape, name
        assert got.read(name).tobytes() == np.ascontiguousarray(array).tobytes(), name


def round_trip(dialect: Any, checkpoint: Checkpoint, config: Mapping[str, Any]) -> tuple[Checkpoint, Checkpoint]:
    """A checkpoint under canonical names, and that one under the dialect's again."""
    ours = View(checkpoint, dialect.canonical(checkpoint, config))
    return ours, View(ours, dialect.foreign(ours, config), aliases={})
