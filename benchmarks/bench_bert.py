"""bert-base on torch eager, JAX (jit) and TensorFlow, one thread: time per call as ratios to torch, in one run.

    python benchmarks/bench_bert.py [--rounds 15] [--shapes 1x128 8x128]

torch is transformers' own eager BertModel. Weights are random; the graph is the packaged one of bert-base. The first
call of each shape, in which JAX and TensorFlow compile, is told in seconds of the processor.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from common import interleaved, on_threads, record

on_threads(1)

import numpy as np  # noqa: E402
import torch  # noqa: E402

import zoo  # noqa: E402
from zoo import registry  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shapes", nargs="+", default=["1x128", "8x128"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        native = random_checkpoint(Path(folder))
        models = {b: zoo.load(folder, backend=b, task="feature-extraction") for b in ("torch", "jax", "tensorflow")}
        result = {}
        for shape in options.shapes:
            batch, length = map(int, shape.split("x"))
            ids = np.random.default_rng(0).integers(1000, 30000, (batch, length))
            mask = np.ones_like(ids)
            tensors = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

            def eager(tensors=tensors):
                with torch.no_grad():
                    return native(**tensors).last_hidden_state

            def run(name, ids=ids, mask=mask):
                with torch.no_grad():
                    return np.asarray(models[name](input_ids=ids, attention_mask=mask)["last_hidden_state"])

            functions = {"torch eager": eager, **{name: (lambda n=name: run(n)) for name in models}}
            outputs, first = {}, {}
            for name, function in functions.items():
                started = time.process_time()
                outputs[name] = np.asarray(function())
                first[name] = time.process_time() - started
            medians = interleaved(functions, options.rounds)
            base = medians["torch eager"]
            result[shape] = {
                name: {
                    "ms": round(seconds * 1e3, 1),
                    "ratio to torch eager": round(seconds / base, 3),
                    "first call s": round(first[name], 2),
                    "max abs difference": float(np.abs(outputs[name] - outputs["torch eager"]).max()),
                }
                for name, seconds in medians.items()
            }
            for name, row in result[shape].items():
                print(
                    f"{shape:6s} {name:12s} {row['ms']:8.1f} ms  {row['ratio to torch eager']:.3f}x, "
                    f"first call {row['first call s']:.2f} s",
                    flush=True,
                )
    print("written to", record("bert", result).name)


def random_checkpoint(folder: Path) -> torch.nn.Module:
    """A bert-base folder with random weights, and transformers' own model of it."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig.from_dict(registry.find("bert-base").config())
    model = transformers.BertModel(config).eval()
    model.save_pretrained(folder)
    return model


if __name__ == "__main__":
    main()
