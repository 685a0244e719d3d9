"""Whether keras-hub loads what `zoo convert --to keras-hub` writes, and computes what it did before.

    python tests/oracle/check_keras_hub.py

In the project's environment with keras-hub 0.32 beside it (`pip install --no-deps keras-hub kagglehub kagglesdk`). The
weights, inputs and outputs are those that make_dialect_files.py recorded of keras-hub's own tiny backbones. The weights
become a checkpoint in torch's form, that is converted to a preset, `keras_hub.models.Backbone.from_preset` opens it,
and its hidden states are compared with the recorded ones. benchmarks/results/keras_hub.json says how far each is off.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3"}
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import torch  # noqa: F401  (before TensorFlow: the other order has crashed)

# isort: split
import keras_hub
import numpy as np
from common import record
from dialect_files import Tiny

import converters.formats.safetensors
import zoo
from converters.dialects import keras_hub as dialect
from converters.view import View
from zoo.tolerances import CEILINGS

FAMILIES = "bert roberta xlm-roberta distilbert albert gpt2 llama gemma gemma2 t5 vit whisper".split()


def main() -> None:
    found = {}
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = difference(name, Path(folder))
        print(f"{name}: largest difference {found[name]:.1e} of the largest value", flush=True)
    print("written to", record("keras_hub", {"keras-hub": version("keras-hub"), "relative difference": found}).name)
    sys.exit(max(found.values()) > CEILINGS["float32"])


def difference(name: str, folder: Path) -> float:
    """Of keras-hub's outputs before and after, relative to the largest."""
    tiny = Tiny(f"keras-hub-{name}")
    written = tiny.checkpoint(folder, "model.weights.h5")
    config = dialect.config(written)
    ours = folder / "ours"
    ours.mkdir()
    (ours / "config.json").write_text(json.dumps(dict(config)))
    converters.formats.safetensors.write(
        ours / "model.safetensors", View(written, dialect.canonical(written, config)), {}
    )
    zoo.convert(ours, folder / "preset", "keras-hub")
    model = keras_hub.models.Backbone.from_preset(str(folder / "preset"))
    outputs = model.predict(inputs_of(tiny.inputs), verbose=0)
    if isinstance(outputs, dict):
        outputs = outputs.get("decoder_sequence_output", outputs.get("sequence_output"))
    outputs = np.asarray(outputs)
    assert outputs.shape == tiny.output.shape, f"{name}: {outputs.shape} for {tiny.output.shape}"
    return float(np.abs(outputs - tiny.output).max() / np.abs(tiny.output).max())


def inputs_of(given: dict[str, np.ndarray]) -> dict[str, Any]:
    """Under keras-hub's names, in its layouts."""
    if "pixel_values" in given:
        return {"images": given["pixel_values"].transpose(0, 2, 3, 1)}
    decoder = given.get("decoder_input_ids")
    theirs: dict[str, Any] = {}
    if decoder is not None:
        theirs |= {"decoder_token_ids": decoder, "decoder_padding_mask": np.ones_like(decoder)}
    if "input_features" in given:
        return theirs | {"encoder_features": given["input_features"].transpose(0, 2, 1)}
    start = "" if decoder is None else "encoder_"
    theirs |= {f"{start}token_ids": given["input_ids"], f"{start}padding_mask": given["attention_mask"]}
    return theirs | ({"segment_ids": given["token_type_ids"]} if "token_type_ids" in given else {})


if __name__ == "__main__":
    main()
