"""`zoo convert` on a checkpoint of 2 GB: speed as a ratio to `cp` in the same run, and memory.

    python benchmarks/bench_convert.py [--model xlm-roberta-large] [--rounds 3] [--sample]

The checkpoint has the shapes of a registered model and random values. `cp` (then fsync) and every conversion take
turns; each is a process of its own that has done the same imports, its source is in the page cache, as much memory as
the file needs was just freed, and what it wrote is deleted before the next.
Seconds: "all" is the whole call of zoo.convert, the graph's loading and the flushing to the disk included, but not
Python's start and the imports; "tensors" is from the moment when the first tensor is read. Memory above that after
the imports: "rss" is VmHWM, which counts mapped pages of the source; "anonymous" leaves those out (RssAnon, sampled).
--sample takes a model of 70 MB. What a kill leaves is looked at by tests/kills.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import record

from zoo import registry
from zoo.configured import graph_for

LARGE, SAMPLE = "xlm-roberta-large", "minilm-l3"
ALLOWED = (1.25, 256 << 20)
"""Memory that a conversion may use: so many times the largest tensor, and so many bytes besides."""

CHILD = r"""
import json, os, resource, subprocess, sys, threading, time
import h5py, numpy, converters, zoo.convert, zoo.loading, zoo.sources, zoo.sources.local, zoo.weights
import converters.targets, converters.dialects.hf_names

def status(key):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key))

source, out, to, size = sys.argv[1:]
# Fresh memory is slow to come in a virtual machine: for each run the same amount is at hand, just freed.
with open(out + ".scratch", "wb") as scratch:
    for _ in range(0, int(size), 1 << 22):
        scratch.write(bytes(1 << 22))
os.unlink(out + ".scratch")
if to == "cp":
    started = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", source, out], check=True)
    with open(out, "rb+") as f:
        os.fsync(f.fileno())
    print(json.dumps({"all": time.perf_counter() - started}))
    sys.exit()
before, anonymous = status("VmRSS"), status("RssAnon")
most, over, first = anonymous, threading.Event(), []

def sample():
    global most
    while not over.wait(0.005):
        most = max(most, status("RssAnon"))

thread = threading.Thread(target=sample, daemon=True)
thread.start()
def progress(what, done, total):
    if not first:
        first.append(time.perf_counter())
started = time.perf_counter()
done = zoo.convert(source, out, to, progress=progress)
ended = time.perf_counter()
over.set(); thread.join()
print(json.dumps({
    "all": ended - started, "tensors": ended - first[0], "rss": status("VmHWM") - before,
    "anonymous": most - anonymous, "child": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10,
    "nans": done.nans,
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=LARGE)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sample", action="store_true")
    parser.add_argument("--folder", type=Path, help="where to make the files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zoo-convert-", dir=options.folder) as folder:
        compare(Path(folder), SAMPLE if options.sample else options.model, options.rounds, options.sample)


def compare(folder: Path, model: str, rounds: int, sample: bool) -> None:
    size, largest = make(folder / "st", model)
    reference = digest(folder / "st" / "model.safetensors")
    for form in ("tf-h5", "flax"):
        run(folder / "st", folder / form, form, 0)
    steps = {
        "safetensors to tf-h5": ("st", "tf-h5"),
        "tf-h5 to safetensors": ("tf-h5", "safetensors"),
        "safetensors to flax": ("st", "flax"),
        "flax to safetensors": ("flax", "safetensors"),
    }
    copies: list[float] = []
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in steps}
    for _ in range(rounds):
        copies.append(run(folder / "st" / "model.safetensors", folder / "copy", "cp", size)["all"])
        (folder / "copy").unlink()
        for name, (source, to) in steps.items():
            done = run(folder / source, folder / "out", to, size)
            if to == "safetensors":
                done["identical"] = digest(folder / "out" / "model.safetensors") == reference
            found[name].append(done)
            shutil.rmtree(folder / "out")
    allowed = int(ALLOWED[0] * largest + ALLOWED[1])
    cp = statistics.median(copies)
    result: dict[str, Any] = {
        "model": model, "bytes": size, "largest tensor": largest, "memory allowed": allowed,
        "cp": {"seconds": round(cp, 3), "MB/s": round(size / cp / 1e6), "each": [round(one, 3) for one in copies]},
    }  # fmt: skip
    print(f"{model}: {size / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f} MB; cp {size / cp / 1e6:.0f} MB/s")
    for name, runs in found.items():
        result[name] = row = summary(runs, size, cp)
        print(
            f"{name:22s} {row['MB/s']:5d} MB/s = {row['speed / cp']:.2f} of cp ({row['speed / cp, tensors']:.2f} once "
            f"tensors flow); memory {row['rss'] / 1e6:.0f} MB ({row['anonymous'] / 1e6:.0f} anonymous), "
            f"allowed {allowed / 1e6:.0f}" + ("" if row.get("identical", True) else "; NOT IDENTICAL"),
            flush=True,
        )
    print("written to", record("convert_sample" if sample else "convert", result).name)


def summary(runs: list[dict[str, Any]], size: int, cp: float) -> dict[str, Any]:
    """Medians of seconds, maxima of memory."""
    seconds = {key: statistics.median(run[key] for run in runs) for key in ("all", "tensors")}
    row: dict[str, Any] = {
        "seconds": round(seconds["all"], 3), "each": [round(run["all"], 3) for run in runs],
        "seconds, tensors": round(seconds["tensors"], 3),
        "MB/s": round(size / seconds["all"] / 1e6), "speed / cp": round(cp / seconds["all"], 3),
        "speed / cp, tensors": round(cp / seconds["tensors"], 3),
    }  # fmt: skip
    row |= {key: max(run[key] for run in runs) for key in ("rss", "anonymous", "child")}
    if "identical" in runs[0]:
        row["identical"] = all(run["identical"] for run in runs)
    return row


def run(source: Path, out: Path, to: str, size: int) -> dict[str, Any]:
    """One copy or conversion in a process of its own; the source is read into the page cache first."""
    for path in source.iterdir() if source.is_dir() else [source]:
        digest(path)
    os.sync()
    command = [sys.executable, "-c", CHILD, source, out, to, str(size)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    assert not found.get("nans")
    return found


def make(folder: Path, model: str) -> tuple[int, int]:
    """A folder with a registered model's config and random float32 values; sizes of the file and its largest tensor.

    Written as the values are made, one megabyte at a time; a tied weight has the embedding's name, as transformers
    saves it.
    """
    folder.mkdir()
    config = registry.find(model).config()
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {
        next((name for name in param.aliases if "embeddings" in name), param.name): param.shape
        for param in graph_for(config, None, "float32").params.values()
    }
    header, position = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(shapes):
        size = 4 * math.prod(shapes[name])
        entry: Any = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [position, position + size]}
        header[name] = entry
        position += size
    free = shutil.disk_usage(folder).free
    if free < 5 * position:
        sys.exit(f"{folder}: {5 * position / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    random_ = np.random.default_rng(0)
    with (folder / "model.safetensors").open("xb") as out:
        out.write(len(raw).to_bytes(8, "little") + raw)
        for name in sorted(shapes):
            left = math.prod(shapes[name])
            while left:
                values = random_.standard_normal(min(left, 1 << 18), np.float32)
                out.write(values.data)
                left -= len(values)
    return position + 8 + len(raw), 4 * max(map(math.prod, shapes.values()))


def digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "blake2b").hexdigest()


if __name__ == "__main__":
    main()
