"""Whether `zoo.load` reads what transformers 4.57 wrote for torch, TensorFlow and Flax, and computes what torch did.

    <python of the project> tests/oracle/check_read.py CHECKPOINTS OUT

CHECKPOINTS is what make_checkpoints.py wrote, OUT a folder for what was found of each. Every torch/, tf/ and flax/ is
loaded as it is on numpy, which computes in float64, run on inputs.npz, and compared with torch_out.npz where that is no
padding; a few of TensorFlow's and Flax's also on every other backend. benchmarks/results/read_from_oracle.json says how
each ended, and why it did if not well:

    same as torch          every output is there, within the ceiling of zoo/tolerances.py
    same as transformers 5 what transformers 5 computes from torch's file in float64: other outputs than 4.57 has, fewer
                           tokens, or torch's own float32 is beyond the ceiling
    other weights          transformers 4.57 itself wrote other weights into this file than torch has; it says which
    not written            transformers 4.57 could not write the file
    cannot be built        transformers 5 has no such model or cannot run it, so there is no graph
    refused                zoo says why
    differs                ours to mend

It goes on where it stopped; --again does everything anew, --only takes the beginnings of folders' names. --sample N
takes one head of each of N types, by the chance of --seed, and keeps what the result has of others, marked as of an
earlier run.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
from collections import Counter
from pathlib import Path
from typing import Any

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "torch", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

import torch  # before TensorFlow: the other order has crashed

# isort: split
import make_checkpoints as oracle
import numpy as np
from check_written import versions, worst
from safetensors.torch import load_file

import zoo
from zoo.arrays import to_numpy
from zoo.tolerances import CEILINGS

FRAMEWORKS = ("torch", "tf", "flax")
EVERYWHERE = set("bert-masked-lm gpt2-causal-lm t5-seq2seq-lm vit-base resnet-base whisper-base albert-base".split())
BACKENDS = ("torch", "jax", "tensorflow", "keras")  # these there
FAR = "max relative difference"
RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "read_from_oracle.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="beginnings of folders' names, joined by commas")
    parser.add_argument("--again", action="store_true", help="also what was done before")
    parser.add_argument("--sample", type=int, default=0, help="so many types, of each one head, by chance")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = oracle.folders(options.checkpoints, options.only, options.sample, options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    todo = [name for name in chosen if options.again or not (options.out / f"{name}.json").is_file()]
    for number, name in enumerate(todo, 1):
        found = read_folder(options.checkpoints / name)
        (options.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        odd = {key: entry for key, entry in found.items() if entry["status"] != "same as torch"}
        print(f"{number} of {len(todo)} {name}: {len(found) - len(odd)} same {json.dumps(odd)[:400]}", flush=True)
        gc.collect()
    names = chosen if options.sample else oracle.folders(options.checkpoints)
    collect(options.checkpoints, options.out, names, {"sample": options.sample, "seed": options.seed})


def read_folder(folder: Path) -> dict[str, Any]:
    """ "<framework> on <backend>" -> what came of it."""
    report = json.loads((folder / "report.json").read_text())
    found: dict[str, Any] = {}
    for framework in FRAMEWORKS:
        if framework not in report["classes"]:
            continue
        made = report.get(framework, report["torch"])  # without torch's there is no other
        if not made["written"]:
            reason = str(made.get("reason")).replace(f"{folder.parent}/", "")
            found[f"{framework} on numpy"] = {"status": "not written", "reason": reason}
            continue
        everywhere = framework != "torch" and folder.name in EVERYWHERE
        for backend in ("numpy", *(BACKENDS if everywhere else ())):
            found[f"{framework} on {backend}"] = read_one(folder, framework, backend, report)
    return found


def read_one(folder: Path, framework: str, backend: str, report: dict[str, Any]) -> dict[str, Any]:
    """Load one file on one backend, and compare what it computes."""
    inputs, expected = (dict(np.load(folder / f"{name}.npz")) for name in ("inputs", "torch_out"))
    own = report[framework].get("names", {})
    odd = {key: own[key] for key in ("unmatched", "absent") if own.get(key)} if framework != "torch" else {}
    try:
        model = zoo.load(folder / framework, backend, offline=True)
        if fixed := fixed_sizes(model, inputs):  # the graph takes no other: what torch computes of as much
            inputs = {name: array[fixed.get(name, ...)] for name, array in inputs.items()}
            expected = of_transformers_5(folder, report, inputs)
        taken = {item.name: inputs[item.name] for item in model.graph.inputs if item.name in inputs}
        outputs = {name: to_numpy(value).astype(np.float64) for name, value in model(**taken).items()}
    except Exception as error:
        status = "cannot be built" if isinstance(error, zoo.errors.CaptureError) else "refused"
        status = "other weights" if odd and isinstance(error, zoo.errors.WeightsError) else status
        text = str(error).replace(f"{folder.parent}/", "")
        result = {"status": status if isinstance(error, zoo.ZooError) else "differs"}
        result["reason"] = re.sub(r"\s+", " ", f"{type(error).__name__}: {text}")[:600]
        return result | ({"of its file": odd} if odd else {})
    compared = oracle.compare(outputs, expected, inputs)
    lacking = {name: entry["reason"] for name, entry in compared["outputs"].items() if "reason" in entry}
    largest = worst(compared)
    if not lacking and largest is not None and largest <= CEILINGS["float32"]:
        note = {"reason": "the graph takes one length only, and less than was given"} if fixed else {}
        return {"status": "same as transformers 5" if fixed else "same as torch"} | note | {FAR: largest}
    result = {"status": "differs", FAR: largest, "reason": lacking or compared.get("reason")}
    if odd and not report[framework]["verified"]:
        return result | {"status": "other weights", "of its file": odd}
    against = oracle.compare(outputs, of_transformers_5(folder, report, inputs), inputs)
    same = not any("reason" in entry for entry in against["outputs"].values())
    if same and (found := worst(against)) is not None and found <= CEILINGS["float32"]:
        result |= {"status": "same as transformers 5", FAR: found}
    return result


def fixed_sizes(model: zoo.Model, inputs: dict[str, np.ndarray]) -> dict[str, tuple[slice, ...]]:
    """The part of each input that a graph takes which was captured for sizes that are smaller."""
    found = {}
    for item in model.graph.inputs:
        if item.name in inputs and len(item.shape) == inputs[item.name].ndim:
            sizes = zip(item.shape, inputs[item.name].shape, strict=True)
            cut = tuple(slice(dim) if isinstance(dim, int) and dim < size else slice(None) for dim, size in sizes)
            if any(part.stop is not None for part in cut):
                found[item.name] = cut
    return found


def of_transformers_5(folder: Path, report: dict[str, Any], inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """What torch computes today from torch's file, in float64."""
    import transformers

    model = getattr(transformers, report["classes"]["torch"]).from_pretrained(folder / "torch")
    # 5.23 ties Funnel's embedding to an output layer that it has just made: the file's own values go over them
    state, stored = model.state_dict(), load_file(folder / "torch" / "model.safetensors")
    model.load_state_dict({n: x for n, x in stored.items() if n in state and x.shape == state[n].shape}, strict=False)
    model = model.eval().double()
    wide = {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in inputs.items()}
    taken, _ = oracle._accepted(model.forward, wide)
    with torch.no_grad():
        return oracle.flatten(model(**{name: torch.from_numpy(value) for name, value in taken.items()}))


def collect(checkpoints: Path, out: Path, names: list[str], sample: dict[str, int]) -> None:
    """Write the result and print how many there are of each status, and every one that is not well."""
    results: dict[str, Any] = {}
    counts: dict[str, Counter[str]] = {}
    for name in names:
        path = out / f"{name}.json"
        if not path.is_file():
            continue
        for key, entry in json.loads(path.read_text()).items():
            results[f"{name} {key}"] = entry
            counts.setdefault(key, Counter())[entry["status"]] += 1
            if entry["status"] != "same as torch":
                print(f"{name} {key}: {entry['status']}: {entry.get('reason')}"[:300])
    environment: dict[str, Any] = {"python": platform.python_version(), "command": "check_read.py"}
    environment |= versions("torch", "transformers", "jax", "tensorflow-cpu", "keras", "numpy", "h5py", "msgpack")
    types = sorted({json.loads((checkpoints / name / "report.json").read_text())["type"] for name in names})
    if sample["sample"] and RESULT.is_file():
        before = json.loads(RESULT.read_text())
        kept = {
            key: entry | {"of an earlier run": True} for key, entry in before["result"].items() if key not in results
        }
        for key, entry in kept.items():
            counts.setdefault(key.partition(" ")[2], Counter())[entry["status"]] += 1
        environment["results"] = sample | {"of this run": len(results), "of an earlier run": len(kept)}
        results = dict(sorted((results | kept).items()))
        types = sorted({*types, *before["types"]})
    document = {"environment": environment, "types": types, "counts": counts, "result": results}
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    for key, found in counts.items():
        print(f"{key}: {sum(found.values())} in all; " + ", ".join(f"{n} {status}" for status, n in found.items()))


if __name__ == "__main__":
    main()
