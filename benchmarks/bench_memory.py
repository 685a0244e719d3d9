"""Peak memory of loading bert-base-sized safetensors (440 MB) on each backend, beyond the framework's own.

    python benchmarks/bench_memory.py [--backends torch jax tensorflow keras numpy]

Each backend runs in a process of its own: the framework is imported and used once, its peak noted, then the model is
loaded. The file is cached by the system before. Peak is VmHWM from /proc: it includes mapped pages of the file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import record

CHILD = r"""
import json, sys, os
os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", KERAS_BACKEND="tensorflow")
backend, folder = sys.argv[1:]
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(l for l in lines if l.startswith("VmHWM")).split()[1]) * 1024
import numpy as np
import zoo
from zoo.backends import get_backend
from zoo import loading
import zoo.configured, zoo.tasks, zoo.weights, converters
module = get_backend(backend)
small = zoo.configured.find_graph(json.load(open(folder + "/config.json")), "feature-extraction")
first = next(iter(small.params))
module.params_from({first: np.zeros(small.params[first].shape[:1] + (4,), np.float32)[:8]}, small)
before = peak()
model = zoo.load(folder, backend=backend, task="feature-extraction")
loaded = peak()
print(json.dumps({"baseline": before, "peak": loaded, "params": len(model.params)}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["torch", "jax", "tensorflow", "keras", "numpy"])
    options = parser.parse_args()
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", MAKE, folder], check=True, stderr=subprocess.DEVNULL)
        size = (Path(folder) / "model.safetensors").stat().st_size
        for backend in options.backends:
            (Path(folder) / "model.safetensors").read_bytes()
            run = subprocess.run(
                [sys.executable, "-c", CHILD, backend, folder], check=True, capture_output=True, text=True
            )
            found = json.loads(run.stdout.strip().splitlines()[-1])
            ratio = (found["peak"] - found["baseline"]) / size
            result[backend] = {**found, "file": size, "peak above baseline / file": round(ratio, 3)}
            print(
                f"{backend:12s} file {size / 1e6:.0f} MB, baseline {found['baseline'] / 1e6:.0f} MB, "
                f"peak {found['peak'] / 1e6:.0f} MB: {ratio:.2f}x the file",
                flush=True,
            )
    print("written to", record("memory", result).name)


MAKE = """
import sys, torch, transformers
from zoo import registry
config = transformers.BertConfig.from_dict(registry.find("bert-base").config())
transformers.BertModel(config).save_pretrained(sys.argv[1])
"""


if __name__ == "__main__":
    main()
