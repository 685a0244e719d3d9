"""The checkpoints of tests/data/fixtures: six as transformers 4.57 writes them for three frameworks, one of llama2.c.

    TF_USE_LEGACY_KERAS=1 <oracle python> tests/oracle/make_fixtures.py [NAME …] [--out DIR]

Runs in the environment of requirements.txt. DIR, tests/data/fixtures without it, gets for each NAME of bert-mlm,
roberta-cls, gpt2, t5, vit and resnet (all, and llama, without one)

    torch/  config.json, model.safetensors     tf/  config.json, tf_model.h5     flax/  config.json, flax_model.msgpack
    inputs.npz                                 the second row of a text is padded at its end
    torch_out.npz, tf_out.npz, flax_out.npz    what each framework's own class computed from its own file

and bert-mlm has flax-safetensors/ beside them: the names of Flax, joined by dots, in a safetensors file.

Weights and inputs are drawn by make_checkpoints.py, by name, so a second run gives the same values. Where a
framework's outputs are not torch's, nothing is written.

llama/ is a random Llama in llama2.c's format, model.bin, with a tokenizer.bin of the pieces that SentencePiece trained
for tests/data/dialects/sentencepiece.json. text.bin is what the model writes after `<s>`, always the likeliest token;
expected.npz has its ids and the logits of every fourth. `Llama` below computes both in float64 from the bytes
of the file, in the order and with the arithmetic of llama2.c's run.c, and shares no code with anything that is tested.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"TF_USE_LEGACY_KERAS": "1", "OMP_NUM_THREADS": "1"}

import make_checkpoints as oracle
import numpy as np

DATA = Path(__file__).parents[1] / "data"
_SMALL = {"hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 37, "vocab_size": 61}
_LABELS = {"num_labels": 7}

FIXTURES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "bert-mlm": ("bert", "masked-lm", "BertForMaskedLM", {"num_hidden_layers": 3, "type_vocab_size": 2}),
    "roberta-cls": ("roberta", "sequence-classification", "RobertaForSequenceClassification", {"num_labels": 3}),
    "gpt2": ("gpt2", "causal-lm", "GPT2LMHeadModel", {"n_layer": 3}),
    "t5": ("t5", "seq2seq-lm", "T5ForConditionalGeneration", {"num_decoder_layers": 2}),
    "vit": ("vit", "image-classification", "ViTForImageClassification", _SMALL | _LABELS | {"num_channels": 3}),
    "resnet": ("resnet", "image-classification", "ResNetForImageClassification", _LABELS | {"depths": [1, 2, 1]}),
}
"""Folder -> type, head and class of make_checkpoints.py, and what its tiny config is given beside or instead."""
SIZES = {"vit": {"image_size": 20, "patch_size": 5}, "t5": {"d_model": 30, "d_kv": 5}}
SIDE = 32  # of the images of a model that takes any size

LLAMA = {"dim": 32, "hidden_dim": 44, "n_layers": 3, "n_heads": 8, "n_kv_heads": 4, "vocab_size": 440, "seq_len": 64}
TOKENS, EVERY = 60, 4  # of the text, and of them those whose logits are kept
MARGIN = 1e-3  # of the best logit to the next: float32 must come to the same text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--out", type=Path, default=DATA / "fixtures")
    options = parser.parse_args()
    oracle._prepare()
    for name in options.names or [*FIXTURES, "llama"]:
        with tempfile.TemporaryDirectory() as work:
            (make_llama if name == "llama" else make_model)(Path(work) / name)
            shutil.rmtree(options.out / name, ignore_errors=True)
            shutil.copytree(Path(work) / name, options.out / name)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{size / 1e6:.2f} MB in {options.out}")


def make_model(folder: Path) -> None:
    """One folder of a model in three frameworks."""
    name = folder.name
    kind, head, cls, fields = FIXTURES[name]
    oracle.CONFIGS[kind] = oracle.CONFIGS[kind] | fields | SIZES.get(name, {})
    case = oracle.Case(kind, head, {"torch": cls, "tf": f"TF{cls}", "flax": f"Flax{cls}"})
    folder.mkdir(parents=True)
    report = oracle.make(case, folder)
    for framework in ("torch", "tf", "flax"):
        if not report[framework]["verified"]:
            sys.exit(f"{name}: {framework} has not the outputs of torch: {report[framework]}")
        print(f"{name}: {framework}, off by {report[framework].get('max_abs_diff', 0):.1e}", flush=True)
    with np.load(folder / "inputs.npz") as file:
        inputs = {key: value for key, value in file.items() if key not in ("token_type_ids", "decoder_attention_mask")}
    if kind == "resnet":
        inputs["pixel_values"] = inputs["pixel_values"][..., :SIDE, :SIDE]
    np.savez(folder / "inputs.npz", **inputs)
    for framework in ("torch", "tf", "flax"):
        np.savez(folder / f"{framework}_out.npz", **outputs(case, framework, folder, inputs))
    for path in folder.glob("*.json"):
        path.unlink()
    if kind == "bert":
        import transformers

        flax = getattr(transformers, case.frameworks["flax"]).from_pretrained(str(folder / "flax"))
        flax.save_pretrained(folder / "flax-safetensors", safe_serialization=True)


def outputs(case: oracle.Case, framework: str, folder: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the framework's class computes from its own file: the logits, and the encoder's outputs of a T5."""
    import transformers

    model = getattr(transformers, case.frameworks[framework]).from_pretrained(str(folder / framework))
    if framework == "torch":
        import torch

        with torch.no_grad():
            found = model.eval()(**{key: torch.from_numpy(value) for key, value in inputs.items()})
    elif framework == "tf":
        import tensorflow as tf

        found = model(**{key: tf.constant(value) for key, value in inputs.items()}, training=False)
    else:
        found = model(**inputs)
    values = oracle.flatten(found)
    return {key: values[key] for key in ("logits", "encoder_last_hidden_state") if key in values}


def make_llama(folder: Path) -> None:
    """model.bin, tokenizer.bin and expected.npz; another seed where two logits come too close."""
    folder.mkdir(parents=True)
    words = tokenizer(folder / "tokenizer.bin")
    for seed in range(100):
        (folder / "model.bin").write_bytes(drawn(seed))
        ids, logits, margin = Llama((folder / "model.bin").read_bytes()).written(TOKENS)
        text = b"".join(words[number] for number in ids[1:])
        if margin > MARGIN and len(set(ids)) > TOKENS // 2:
            break
    else:
        sys.exit("no seed gives a text that float32 is sure to find, too")
    np.savez(folder / "expected.npz", ids=np.array(ids), logits=logits[::EVERY].astype(np.float32))
    (folder / "text.bin").write_bytes(text)
    print(f"llama: seed {seed}, {len(set(ids))} tokens of {len(ids)} differ, margin {margin:.1e}: {text!r}")


def drawn(seed: int) -> bytes:
    """A file of version 0 with random weights, as llama2.c's export.py lays one out (`legacy_export`)."""
    rng = np.random.default_rng(seed)
    dim, hidden, layers, heads, kv_heads, vocab, length = LLAMA.values()
    key = dim // heads * kv_heads

    def norm(*shape: int) -> np.ndarray:
        return 1 + 0.2 * rng.standard_normal(shape)

    def matrix(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape) * (2 / shape[-1]) ** 0.5

    angles = np.outer(np.arange(length), Llama.frequencies(dim // heads))
    parts = [0.5 * rng.standard_normal((vocab, dim)), norm(layers, dim)]
    parts += [matrix(layers, rows, dim) for rows in (dim, key, key)] + [matrix(layers, dim, dim), norm(layers, dim)]
    parts += [matrix(layers, hidden, dim), matrix(layers, dim, hidden), matrix(layers, hidden, dim), norm(dim)]
    parts += [np.cos(angles), np.sin(angles)]
    return struct.pack("<7i", *LLAMA.values()) + b"".join(part.astype("<f4").tobytes() for part in parts)


class Llama:
    """llama2.c's forward pass in float64, one position after the other; its weights are read in run.c's order."""

    def __init__(self, data: bytes) -> None:
        dim, hidden, layers, self.heads, self.kv_heads, vocab, length = struct.unpack_from("<7i", data)
        self.size = dim // self.heads
        values, at = np.frombuffer(data, "<f4", offset=28).astype(np.float64), 0

        def take(*shape: int) -> np.ndarray:
            nonlocal at
            at += int(np.prod(shape))
            return values[at - int(np.prod(shape)) : at].reshape(shape)

        key = self.size * self.kv_heads
        self.embedding, self.attention_norm = take(vocab, dim), take(layers, dim)
        self.q, self.k, self.v = take(layers, dim, dim), take(layers, key, dim), take(layers, key, dim)
        self.o, self.ffn_norm = take(layers, dim, dim), take(layers, dim)
        self.w1, self.w2, self.w3 = take(layers, hidden, dim), take(layers, dim, hidden), take(layers, hidden, dim)
        self.norm = take(dim)
        take(2, length, self.size // 2)  # tables of the rotary embedding, which run.c skips
        assert at == len(values)
        self.cache: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(layers)]

    @staticmethod
    def frequencies(size: int) -> np.ndarray:
        return 1 / 10000 ** (np.arange(0, size, 2) / size)

    def written(self, count: int) -> tuple[list[int], np.ndarray, float]:
        """The ids after `<s>` (1), each the likeliest; the logits that chose them; the smallest margin between two."""
        ids, rows, margin = [1], [], np.inf
        for position in range(count):
            rows.append(self.forward(ids[-1], position))
            second, best = np.sort(rows[-1])[-2:]
            margin = min(margin, (best - second) / best)
            ids.append(int(rows[-1].argmax()))
        return ids, np.stack(rows), margin

    def forward(self, token: int, position: int) -> np.ndarray:
        x = self.embedding[token]
        for layer, cache in enumerate(self.cache):
            x = x + self.attend(layer, cache, self.normed(x, self.attention_norm[layer]), position)
            inner = self.normed(x, self.ffn_norm[layer])
            gate = self.w1[layer] @ inner
            x = x + self.w2[layer] @ (gate / (1 + np.exp(-gate)) * (self.w3[layer] @ inner))
        return self.embedding @ self.normed(x, self.norm)

    def attend(self, layer: int, cache: list[Any], x: np.ndarray, position: int) -> np.ndarray:
        queries = self.rotated(self.q[layer] @ x, position)
        cache.append((self.rotated(self.k[layer] @ x, position), (self.v[layer] @ x).reshape(-1, self.size)))
        heads = []
        for head, query in enumerate(queries):
            group = head // (self.heads // self.kv_heads)
            scores = np.array([query @ keys[group] for keys, _ in cache]) / np.sqrt(self.size)
            weights = np.exp(scores - scores.max())
            heads.append(sum(w * values[group] for w, (_, values) in zip(weights, cache, strict=True)) / weights.sum())
        return self.o[layer] @ np.concatenate(heads)

    def rotated(self, vector: np.ndarray, position: int) -> np.ndarray:
        """Each pair of neighbours turned, [heads, size]: llama2.c's order, which is not that of transformers."""
        pairs = vector.reshape(-1, self.size // 2, 2)
        turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * position * self.frequencies(self.size))
        return np.stack([turned.real, turned.imag], -1).reshape(-1, self.size)

    @staticmethod
    def normed(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean() + 1e-5) * weight


def tokenizer(path: Path) -> list[bytes]:
    """Writes tokenizer.bin as llama2.c's tokenizer.py does, and returns the tokens' bytes."""
    said = json.loads((DATA / "dialects" / "sentencepiece.json").read_text("utf-8"))["llama"]
    words, scores = [], list(said["scores"])
    for number, piece in enumerate(said["pieces"]):
        text = {1: "\n<s>\n", 2: "\n</s>\n"}.get(number, piece).replace("▁", " ")
        words.append(text.encode())
    unused = LLAMA["vocab_size"] - len(words)
    words += [b"<unused%d>" % number for number in range(unused)]
    scores += [-1e6] * unused
    raw = struct.pack("<i", max(map(len, words)))
    for word, score in zip(words, scores, strict=True):
        raw += struct.pack("<fi", score, len(word)) + word
    path.write_bytes(raw)
    return words


if __name__ == "__main__":
    main()
