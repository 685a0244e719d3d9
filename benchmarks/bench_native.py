"""The native engine and torch eager, one thread, in one run: bert-base and MiniLM, time per call as ratios to torch.

    python benchmarks/bench_native.py [--rounds 15] [--shapes 1x16 1x128 8x128] [--models bert-base minilm]

torch is transformers' own eager BertModel. Weights are random. ONNX Runtime runs, too, where it is installed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import interleaved, one_thread, onnx_session, record

one_thread()

import numpy as np  # noqa: E402
import torch  # noqa: E402

import zoo  # noqa: E402
from zoo import registry  # noqa: E402
from zoo.native import library  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shapes", nargs="+", default=["1x16", "1x128", "8x128"])
    parser.add_argument("--models", nargs="+", default=["bert-base", "minilm"])
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    library.set_threads(1)
    result = {}
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            eager = random_checkpoint(name, Path(folder))
            native = zoo.load(folder, backend="native", task="feature-extraction")
            runtime = onnx_session(eager, Path(folder))
            for shape in options.shapes:
                result[f"{name} {shape}"] = compare(eager, native, runtime, shape, options.rounds)
                for who, row in result[f"{name} {shape}"].items():
                    print(
                        f"{name:10s} {shape:6s} {who:12s} {row['ms']:9.2f} ms  {row['ratio to torch eager']:.3f}x",
                        flush=True,
                    )
    if not options.no_record:
        print("written to", record("native", {"instruction set": library.get_isa(), "models": result}).name)


def compare(eager, native, runtime, shape, rounds):
    batch, length = map(int, shape.split("x"))
    ids = np.random.default_rng(0).integers(1000, 30000, (batch, length))
    mask = np.ones_like(ids)
    feed = {"input_ids": ids, "attention_mask": mask}
    tensors = {name: torch.from_numpy(array) for name, array in feed.items()}

    def run_eager():
        with torch.no_grad():
            return eager(**tensors).last_hidden_state.numpy()

    functions = {"torch eager": run_eager, "native": lambda: native(**feed)["last_hidden_state"]}
    if runtime is not None:
        functions["onnxruntime"] = lambda: runtime.run(["last_hidden_state"], feed)[0]
    outputs = {who: function() for who, function in functions.items()}
    for who, output in outputs.items():
        assert np.abs(output - outputs["torch eager"]).max() < 1e-4, f"{who} computes something else"
    medians = interleaved(functions, rounds)
    base = medians["torch eager"]
    return {
        who: {
            "ms": round(seconds * 1e3, 2),
            "ratio to torch eager": round(seconds / base, 3),
            "max abs difference": float(np.abs(outputs[who] - outputs["torch eager"]).max()),
        }
        for who, seconds in medians.items()
    }


def random_checkpoint(name: str, folder: Path) -> torch.nn.Module:
    """A folder with random weights, and transformers' own model of it."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig.from_dict(registry.find(name).config())
    model = transformers.BertModel(config).eval()
    model.save_pretrained(folder)
    return model


if __name__ == "__main__":
    main()
