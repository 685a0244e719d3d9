"""How long a process takes until something is there: medians of processes run in turn.

    python benchmarks/bench_startup.py [--rounds 21]

`import zoo` and `zoo list`; the first embedding of a sentence by MiniLM on the native engine, by ONNX Runtime with
`tokenizers` (where both can be had) and by transformers; `import zoo` and bert-base loaded on the native engine, and
called once with 16 tokens. Files are in the system's cache, and Anyzoo is where an installation puts it, with compiled
Python files: an editable one looks for each module in a table first. Two clocks: from the start of the process until it
says that it is ready, and the processor time that it took by then, which other processes of the machine cannot stretch
by having it wait.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

import numpy as np
from common import onnx_session, record

import zoo
from converters import save_safetensors
from zoo import registry
from zoo.configured import find_graph

READY = "; import time; print(time.process_time(), flush=True); import os; os._exit(0)"

ONNX = """
import sys, numpy as np, onnxruntime, tokenizers
folder = sys.argv[1]
tokenizer = tokenizers.Tokenizer.from_file(sys.argv[2])
session = onnxruntime.InferenceSession(folder + "/model.onnx")
found = tokenizer.encode("a cat sat on the mat")
feed = {"input_ids": np.array([found.ids]), "attention_mask": np.array([found.attention_mask])}
session.run(None, feed)[0].mean(1)
"""
TRANSFORMERS = """
import sys, torch, transformers
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
model = transformers.AutoModel.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    model(**tokenizer("a cat sat on the mat", return_tensors="pt")).last_hidden_state.mean(1)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    minilm = zoo.load("minilm", backend="native").folder
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        python, bert = installed(folder), str(bert_base(folder))
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "pycache")
        processes = {
            "bare interpreter": ["pass" + READY],
            "import numpy": ["import numpy" + READY],
            "import zoo": ["import zoo" + READY],
            "zoo list": ["import sys; from zoo.cli import app; app(['list'], standalone_mode=False)" + READY],
            "import zoo, bert-base on native": [f"import zoo; zoo.load({bert!r}, backend='native')" + READY],
            "first call of bert-base, native": [
                f"import zoo; zoo.load({bert!r}, backend='native')(input_ids=[list(range(1000, 1016))])" + READY
            ],
            "first embedding, native": [
                "import zoo; zoo.load('minilm', backend='native').embed('a cat sat on the mat')" + READY
            ],
        }
        if exported(minilm, folder):
            code = ONNX + READY.removeprefix("; ")
            processes["first embedding, onnxruntime"] = [code, str(folder), str(minilm / "tokenizer.json")]
        processes["first embedding, transformers"] = [TRANSFORMERS + READY.removeprefix("; "), str(minilm)]
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in processes}
        for number in range(options.rounds + 1):
            for name, arguments in processes.items():
                if "transformers" in name and number > 5:
                    continue
                found = until_ready(python, arguments)
                if number:  # the first compiles and fills the caches
                    times[name].append(found)
    result = {
        name: {
            "ms": round(statistics.median(wall for wall, _ in found) * 1e3, 1),
            "processor ms": round(statistics.median(own for _, own in found) * 1e3, 1),
            "least processor ms": round(min(own for _, own in found) * 1e3, 1),
        }
        for name, found in times.items()
    }
    for name, row in result.items():
        print(f"{name:32s} {row['ms']:8.1f} ms  {row['processor ms']:8.1f} ms on the processor")
    if not options.no_record:
        print("written to", record("startup", result).name)


def until_ready(python: Path, arguments: list[str]) -> tuple[float, float]:
    """Seconds until a process said that it is ready, and those it had spent on a processor."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [python, "-c", *arguments], cwd=python.parent, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    said = list(process.stdout)
    wall = time.perf_counter() - started
    if process.wait():
        raise RuntimeError(f"the process failed: {arguments[0]}")
    return wall, float(said[-1])


def installed(folder: Path) -> Path:
    """The interpreter of an environment with Anyzoo as a wheel installs it, beside the packages of this one."""
    place, root, packages = folder / "environment", Path(__file__).parents[1], Path(sysconfig.get_path("platlib"))
    venv.create(place, with_pip=False)
    site = Path(sysconfig.get_path("platlib", vars={"base": str(place), "platbase": str(place)}))
    for package in ("zoo", "converters"):
        ignored = shutil.ignore_patterns("__pycache__", "src", "tests")
        shutil.copytree(root / package, site / package, ignore=ignored)
    shutil.copytree(packages / "zoo", site / "zoo", dirs_exist_ok=True)  # what was built, and the registry
    (site / "others.pth").write_text(f"{packages}\n")  # a folder named so adds no .pth files of its own
    return place / "bin" / "python"


def bert_base(folder: Path) -> Path:
    """A checkpoint of bert-base, all zeros: what loading takes does not depend on the numbers."""
    config = registry.find("bert-base").config()
    graph = find_graph(config, "feature-extraction")
    assert graph is not None
    place = folder / "bert-base"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(dict(config) | {"architectures": ["BertModel"]}))
    arrays = {param.name: np.zeros(param.shape, param.dtype) for param in graph.params.values()}
    save_safetensors(place / "model.safetensors", arrays, {"format": "pt"})
    return place


def exported(minilm: Path, folder: Path) -> bool:
    """Whether there is MiniLM for ONNX Runtime, now in the folder."""
    import transformers

    return onnx_session(transformers.AutoModel.from_pretrained(minilm).eval(), folder) is not None


if __name__ == "__main__":
    main()
