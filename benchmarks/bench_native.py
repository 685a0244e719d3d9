"""The native engine, torch and what is used for speed today, in one run: time per call, and ratios.

    python benchmarks/bench_native.py [--threads 1] [--rounds 11] [--shapes 1x16 1x128 8x128]
        [--models bert-base minilm …] [--images resnet-50 vit-base] [--no-accuracy] [--no-record]

Text models in float32, bfloat16 and int8 beside torch eager in float32 and bfloat16 (transformers' own BertModel),
images in float32; weights are random. ONNX Runtime and OpenVINO run, too, where they are installed. With one thread
time is the process's own CPU time: all is on one core, and other processes on it do not count. With more it is the
clock's, so that nothing else should run. `of peak` is the share of what multiply-adds alone reach in float32 (peak.c)
on one core; bfloat16's is twice, int8's four times that.

Accuracy is MiniLM's, with its real weights on film reviews (those of examples/reviews.py): the cosine between each
sentence's vector in float32 and in less, and whether the same sentences are nearest to it among all.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import asked_threads, exported, interleaved, on_threads, record

THREADS = asked_threads()
on_threads(THREADS)

import numpy as np  # noqa: E402
import torch  # noqa: E402

import zoo  # noqa: E402
from zoo import registry  # noqa: E402
from zoo.native import library  # noqa: E402
from zoo.tolerances import COSINES  # noqa: E402

HALVES = {"bfloat16": 0.05, "int8": 0.5}
"""Precision -> how far a random model's numbers (of size 1 to 4) may be off: a check that it is the same model."""

SENTENCES, NEAREST = 640, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--shapes", nargs="+", default=["1x16", "1x128", "8x128"])
    parser.add_argument("--models", nargs="*", default=["bert-base", "minilm", "all-mpnet-base-v2", "gpt2"])
    parser.add_argument("--images", nargs="*", default=["resnet-50", "vit-base"])
    parser.add_argument("--no-accuracy", action="store_true")
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    library.set_threads(THREADS)
    result = {}
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            eager = random_checkpoint(name, Path(folder))
            rivals = Rivals(
                eager, {"input_ids": ids_of(2, 8), "attention_mask": np.ones((2, 8), np.int64)}, Path(folder)
            )
            native = {d: load(folder, d) for d in ("float32", *HALVES)}
            for shape in options.shapes:
                batch, length = map(int, shape.split("x"))
                feed = {"input_ids": ids_of(batch, length), "attention_mask": np.ones((batch, length), np.int64)}
                work = operations(eager.config, batch, length)
                rounds = options.rounds * max(1, min(8, 2000 // (batch * length * eager.config.hidden_size // 100)))
                result[f"{name} {shape}"] = compare(eager, native, rivals, feed, rounds, work)
                show(f"{name} {shape}", result[f"{name} {shape}"])
    for name in options.images:
        with tempfile.TemporaryDirectory() as folder:
            eager = random_checkpoint(name, Path(folder))
            feed = {"pixel_values": np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)}
            rivals = Rivals(eager, feed, Path(folder), bfloat16=False)
            result[f"{name} 1 image"] = compare(
                eager, {"float32": load(folder, "float32")}, rivals, feed, options.rounds
            )
            show(f"{name} 1 image", result[f"{name} 1 image"])
    clock = "CPU time of the process" if THREADS == 1 else "wall"
    found = {"instruction set": library.get_isa(), "threads": THREADS, "clock": clock, "models": result}
    if not options.no_accuracy:
        found["accuracy"] = accuracy()
    if not options.no_record:
        print("written to", record("native" if THREADS == 1 else f"native_{THREADS}_threads", found).name)


def compare(eager, native, rivals, feed, rounds, work=None):
    tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
    half = copy.deepcopy(eager).to(torch.bfloat16) if len(native) > 1 else None

    def run(model):
        with torch.no_grad():
            return model(**tensors).last_hidden_state.float().numpy()

    functions = {"torch eager": lambda: run(eager)}
    if half is not None:
        functions["torch eager bfloat16"] = lambda: run(half)
    for dtype, model in native.items():
        functions["native" if dtype == "float32" else f"native {dtype}"] = lambda m=model: m(**feed)[
            "last_hidden_state"
        ]
    functions |= {who: lambda f=function: f(feed) for who, function in rivals.functions.items()}
    outputs = {who: function() for who, function in functions.items()}
    for who, output in outputs.items():
        limit = HALVES.get(who.split()[-1], 1e-4) * max(1, np.abs(outputs["torch eager"]).max())
        assert np.abs(output - outputs["torch eager"]).max() < limit, f"{who} computes something else"
    best = peak()
    timed = {**functions, "peak": best} if best is not None and work is not None else functions
    clock = time.process_time if THREADS == 1 else time.perf_counter
    medians = interleaved(timed, rounds, clock=clock, apart=THREADS > 1)
    rows = {}
    for who in functions:
        seconds = medians[who]
        rows[who] = {
            "ms": round(seconds * 1e3, 2),
            "ratio to torch eager": round(seconds / medians["torch eager"], 3),
            "max abs difference": float(np.abs(outputs[who] - outputs["torch eager"]).max()),
        }
        if who.startswith("native"):
            others = {
                "native": ("onnxruntime", "openvino"),
                "native bfloat16": ("torch eager bfloat16", "openvino bfloat16"),
            }
            wanted = ("native", *others.get(who, ()), "torch eager", "torch eager bfloat16")
            rows[who]["times as fast as"] = {
                other: round(medians[other] / seconds, 2) for other in wanted if other in medians and other != who
            }
        if "peak" in timed:
            rows[who]["of peak"] = round(work / seconds / (best() / medians["peak"]), 3)
    return rows


def show(what, rows):
    for who, row in rows.items():
        faster = " ".join(f"{other}: {times}x" for other, times in row.get("times as fast as", {}).items())
        print(f"{what:18s} {who:21s} {row['ms']:9.2f} ms  of peak {row.get('of peak', '-'):5}  {faster}", flush=True)


def load(folder, dtype):
    return zoo.load(folder, backend="native", task="feature-extraction", dtype=dtype)


def ids_of(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1000, 30000, (batch, length))


def operations(config, batch: int, length: int) -> float | None:
    """Multiplications and additions of a BERT's matrix products; None of another model."""
    if config.model_type != "bert":
        return None
    width, inner = config.hidden_size, config.intermediate_size
    a_token = 2 * (4 * width * width + 2 * width * inner) + 2 * 2 * length * width
    return batch * (config.num_hidden_layers * length * a_token + 2 * width * width)


def peak():
    """A function of some milliseconds of multiply-adds, which returns how many operations those were; or None."""
    compiler = shutil.which("cc")
    if compiler is None or "avx512" not in library.get_isa() or THREADS > 1:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peak.so"
        source = Path(__file__).with_name("peak.c")
        subprocess.run([compiler, "-O2", "-mavx512f", "-shared", "-fPIC", source, "-o", path], check=True)
        loaded = ctypes.CDLL(str(path))
    loaded.peak.restype, loaded.peak.argtypes = ctypes.c_double, [ctypes.c_int64]
    return lambda: loaded.peak(1_000_000)


def random_checkpoint(name: str, folder: Path) -> torch.nn.Module:
    """A folder with random weights, and transformers' own model of it."""
    import transformers

    torch.manual_seed(0)
    config = dict(registry.find(name).config())
    config = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    model = transformers.AutoModel.from_config(config).eval()
    model.save_pretrained(folder)
    return model


class Rivals:
    """The model exported to ONNX as users of ONNX Runtime and OpenVINO do it, on those that are installed.

    Attributes:
        functions: name -> a function of NumPy inputs that gives last_hidden_state.
    """

    def __init__(self, model: torch.nn.Module, example: dict, folder: Path, bfloat16: bool = True) -> None:
        self.functions = {}
        runtimes = [name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name)]
        if not runtimes:
            return
        path = exported(model, example, folder)
        if "onnxruntime" in runtimes:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
            session = onnxruntime.InferenceSession(str(path), options)
            self.functions["onnxruntime"] = lambda feed: session.run(["last_hidden_state"], feed)[0]
        if "openvino" in runtimes:
            self.functions["openvino"] = openvino_function(path, "f32")
            if bfloat16:
                self.functions["openvino bfloat16"] = openvino_function(path, "bf16")


def openvino_function(path: Path, precision: str):
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": THREADS, "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(str(path), "CPU", hints)
    request = compiled.create_infer_request()
    return lambda feed: request.infer(feed)[compiled.output(0)].copy()


def accuracy():
    """MiniLM's vectors of real sentences in less than float32, beside those in float32."""
    sys.path.append(str(Path(__file__).parents[1] / "examples"))
    import reviews

    texts, _ = reviews._sentences()
    texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:SENTENCES]]
    vectors = {
        d: zoo.load("minilm", backend="native", dtype=d).embed(texts).astype(np.float64) for d in ("float32", *HALVES)
    }
    ranked = {dtype: ranking(x) for dtype, x in vectors.items()}
    found = {"model": "minilm", "sentences": f"{len(texts)} of {reviews.SOURCE}"}
    for dtype in HALVES:
        cosines = (vectors[dtype] * vectors["float32"]).sum(1)
        pairs = list(zip(ranked[dtype], ranked["float32"], strict=True))
        found[dtype] = {
            "smallest cosine to float32": round(float(cosines.min()), 6),
            "mean cosine to float32": round(float(cosines.mean()), 6),
            "same nearest sentence": round(float(np.mean([a[0] == b[0] for a, b in pairs])), 4),
            f"shared of the {NEAREST} nearest": round(
                float(np.mean([len({*a[:NEAREST]} & {*b[:NEAREST]}) / NEAREST for a, b in pairs])), 4
            ),
        }
        print(dtype, found[dtype], flush=True)
        assert cosines.min() >= COSINES[dtype], f"{dtype}: further from float32 than may be"
    return found


def ranking(vectors: np.ndarray) -> np.ndarray:
    """For each vector the others, the nearest first."""
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -np.inf)
    return np.argsort(-similar, axis=1)


if __name__ == "__main__":
    main()
