"""Fine-tuning MiniLM on film reviews with each framework: accuracy on held-out sentences over several seeds.

    python benchmarks/bench_finetune.py [--seeds 0 1 2] [--frameworks torch jax]

Runs examples/finetune_*.py, one process each. torch is transformers' own module with torch's own dropout; the others
run the graph. One seed means the same sentences in the same order and the same first weights everywhere; with JAX and
TensorFlow not the same dropout, since each example makes its keys in its framework's way.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import record

EXAMPLES = Path(__file__).parents[1] / "examples"
FRAMEWORKS = ("torch", "jax", "tensorflow", "keras")
SCRIPT = """
import importlib, json, sys, time
found = importlib.import_module("finetune_" + sys.argv[1]).finetune(int(sys.argv[2]))
print("RESULT", json.dumps([float(found[0]), float(found[1]), list(map(float, found[2])), time.process_time()]))
"""
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "KERAS_BACKEND": "jax",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--frameworks", nargs="+", default=FRAMEWORKS)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, each on one thread")
    options = parser.parse_args()
    pairs = [(framework, seed) for seed in options.seeds for framework in options.frameworks]
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = []
        for found in pool.map(lambda pair: run(*pair), pairs):
            runs.append(found)
            print({key: value for key, value in found.items() if key != "losses"}, flush=True)
    summary = {}
    for framework in options.frameworks:
        found = [row["accuracy"] for row in runs if row["framework"] == framework]
        summary[framework] = {"mean accuracy": round(statistics.mean(found), 4), "of each seed": found}
        print(framework, summary[framework])
    summary["commonest class"] = [row["commonest class"] for row in runs if row["framework"] == options.frameworks[0]]
    if tuple(options.frameworks) == FRAMEWORKS:
        print("written to", record("finetune", {"summary": summary, "runs": runs}).name)


def run(framework: str, seed: int) -> dict:
    """One example in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, framework, str(seed)]
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(EXAMPLES)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    accuracy, commonest, losses, cpu = json.loads(line.removeprefix("RESULT "))
    return {
        "framework": framework,
        "seed": seed,
        "accuracy": round(accuracy, 4),
        "commonest class": round(commonest, 4),
        "cpu seconds": round(cpu, 1),
        "losses": [round(loss, 4) for loss in losses],
    }


if __name__ == "__main__":
    main()
