"""Calls of Python functions that one warm call of a model takes, on each backend that is installed.

    python benchmarks/bench_calls.py [FOLDER] [--backend NAME …]

Without a folder a tiny BERT for masked words of random weights is made, as transformers saves it: 3 layers. Counted by
`sys.setprofile`: frames of Python, by where their code lies; C functions are not. Each model is called three times
before.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import zoo
from zoo.backends import BACKENDS, installed

ROOT = Path(zoo.__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="a checkpoint for masked words")
    parser.add_argument("--backend", nargs="*", default=[name for name in BACKENDS if installed(name)])
    parser.add_argument("--where", action="store_true", help="print the functions, most called first")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or tiny(Path(made))
        for backend in options.backend:
            model = zoo.load(folder, backend=backend, task="fill-mask")
            found = counted(model)
            nodes = len(model.graph.nodes)
            graph = sum(count for (path, _), count in found.items() if path.startswith(f"{ROOT}/graph/"))
            total = sum(found.values())
            print(json.dumps({"backend": backend, "nodes": nodes, "calls": total, "in zoo/graph": graph}))
            if options.where:
                for (path, name), count in found.most_common(25):
                    print(f"  {count:5} {name} {path.removeprefix(str(ROOT.parent) + '/')}")


def counted(model: Any) -> Counter[tuple[str, str]]:
    """(file, function) -> how often one warm call calls it."""
    ids = np.random.default_rng(0).integers(5, 99, (2, 11))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    for _ in range(3):
        model(**inputs)
    found: Counter[tuple[str, str]] = Counter()

    def seen(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            found[frame.f_code.co_filename, frame.f_code.co_qualname] += 1

    sys.setprofile(seen)
    try:
        model(**inputs)
    finally:
        sys.setprofile(None)
    return found


def tiny(folder: Path) -> Path:
    """A checkpoint of a BERT for masked words, 3 layers of random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64,
    )  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
