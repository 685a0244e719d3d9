"""Whether transformers 4.57 loads what `zoo convert` writes, and computes from it what torch does.

    <python of the project> tests/oracle/check_written.py --write CHECKPOINTS OUT
    <oracle python>         tests/oracle/check_written.py --read  CHECKPOINTS OUT

CHECKPOINTS is what make_checkpoints.py wrote, OUT a folder for what is converted. The first command converts every
torch/ to tf-h5 and to flax where the class exists there (a few families also in shards). The second, in the environment
of requirements.txt, loads each with the class's own from_pretrained, runs it on inputs.npz, compares with torch_out.npz
at positions that are no padding, and writes benchmarks/results/written_by_convert.json. Where the two do not agree, or
the loader misses or does not expect a tensor, transformers' own file goes through the same loader: what it has wrong
with its own file is no fault of ours. Statuses:

    same as torch            within `TOLERANCE` of make_checkpoints.py, nothing missing or unexpected
    same as torch, warns     the same, but the loader misses what computes nothing, or what torch's file does not have
    same as its own file     transformers reads its own file just as wrongly: the same outputs and the same complaints
    refused                  `zoo convert` wrote nothing and said why
    cannot be loaded         transformers cannot build this model at all, from no file
    differs                  ours to mend

Both commands go on where they stopped; --again does everything anew, --only takes the beginnings of folders' names.
--sample N takes one head of each of N types, by the chance of --seed. --merge keeps what the result has of folders that
were not done, each marked as of an earlier run.
"""

from __future__ import annotations

import argparse
import ast
import gc
import json
import logging
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FORMS = {"tf": "tf-h5", "flax": "flax"}
SUFFIXES = ("tf-h5-sharded", "flax-sharded", "tf-h5", "flax")
SHARDED = set("bert-masked-lm gpt2-causal-lm t5-seq2seq-lm albert-base resnet-base whisper-base vit-base".split())
CHUNK = 24  # folders per reading process: frameworks do not give back all that they take
RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "written_by_convert.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true", help="convert; in the project's environment")
    mode.add_argument("--read", action="store_true", help="load and compare; in the oracle's environment")
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="beginnings of folders' names, joined by commas")
    parser.add_argument("--again", action="store_true", help="also what was done before")
    parser.add_argument("--sample", type=int, default=0, help="so many types, of each one head, by chance")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--merge", action="store_true", help="keep the result of folders that were not done")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        read_all(options.checkpoints, options.out, options.worker.split(","))
        return
    import make_checkpoints as oracle

    chosen = oracle.folders(options.checkpoints, options.only, options.sample, options.seed)
    done = "written.json" if options.write else "read.json"
    todo = [name for name in chosen if options.again or not (options.out / name / done).is_file()]
    if options.write:
        write_all(options.checkpoints, options.out, todo)
        return
    for start in range(0, len(todo), CHUNK):
        chunk = ",".join(todo[start : start + CHUNK])
        command = [sys.executable, __file__, "--read", str(options.checkpoints), str(options.out), "--worker", chunk]
        code = subprocess.run(command, check=False).returncode
        print(f"== {min(start + CHUNK, len(todo))} of {len(todo)} folders read, exit code {code}", flush=True)
    sample = {"sample": options.sample, "seed": options.seed} if options.sample else {}
    collect(options.checkpoints, options.out, oracle.folders(options.checkpoints), options.merge, sample)


# --- in the project's environment ---


def write_all(checkpoints: Path, out: Path, names: list[str]) -> None:
    """Convert each folder; OUT/<folder>/written.json says what became of it, form by form."""
    for number, name in enumerate(names):
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        forms = convert_one(checkpoints / name, folder)
        written = {"versions": versions("torch", "transformers", "numpy", "h5py", "msgpack"), "forms": forms}
        (folder / "written.json").write_text(json.dumps(written, indent=1) + "\n")
        print(f"{number + 1} of {len(names)} {name}: {json.dumps(forms)[:300]}", flush=True)
        gc.collect()


def convert_one(source: Path, folder: Path) -> dict[str, Any]:
    """Form -> {} or why there is none, for each framework that has the class."""
    import zoo
    from zoo.convert import convert

    classes = json.loads((source / "report.json").read_text())["classes"]
    weights = source / "torch" / "model.safetensors"
    forms: dict[str, Any] = {}
    for framework, to in FORMS.items():
        if framework not in classes:
            continue
        limits = {to: None} | ({f"{to}-sharded": weights.stat().st_size // 3} if source.name in SHARDED else {})
        for form, limit in limits.items():
            try:
                convert(source / "torch", folder / form, to, shard_size=limit, offline=True)
                forms[form] = {}
            except Exception as error:
                kind = "refused" if isinstance(error, zoo.ZooError) else "crashed"
                forms[form] = {kind: f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"}
    return forms


# --- in the oracle's environment ---


def read_all(checkpoints: Path, out: Path, names: list[str]) -> None:
    """Load what was written of each folder; OUT/<folder>/read.json says what came of it, form by form."""
    import make_checkpoints as oracle

    oracle._prepare()
    import transformers

    transformers.logging.set_verbosity_warning()
    for name in names:
        written = json.loads((out / name / "written.json").read_text())
        report = json.loads((checkpoints / name / "report.json").read_text())
        found = {}
        for form, outcome in written["forms"].items():
            framework = "tf" if form.startswith("tf") else "flax"
            if outcome:
                found[form] = {"ok": False, "status": "refused" if "refused" in outcome else "differs"}
                found[form] |= {"reason": next(iter(outcome.values()))}
            else:
                found[form] = read_one(framework, checkpoints / name, out / name / form, report)
            print(f"{name} {form}: {json.dumps(found[form])[:400]}", flush=True)
        own = versions("transformers", "tensorflow-cpu", "tf_keras", "flax", "jax", "numpy", "h5py")
        (out / name / "read.json").write_text(json.dumps({"versions": own, "forms": found}, indent=1) + "\n")


def read_one(framework: str, source: Path, folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """What the framework's own loader says of our file, and how far its model's outputs are from torch's."""
    import make_checkpoints as oracle
    import numpy as np

    inputs, expected = (dict(np.load(source / f"{name}.npz")) for name in ("inputs", "torch_out"))
    class_name = report["classes"][framework]
    ours = attempt(framework, class_name, folder, inputs)
    result: dict[str, Any] = {"ok": False, "status": "differs", "max relative difference": None}
    result |= {key: ours.get(key, []) for key in ("missing", "unexpected")} | {"reason": ours.get("reason")}
    if "outputs" in ours:
        against = oracle.compare(ours["outputs"], expected, inputs)
        result |= {"max relative difference": worst(against), "reason": against.get("reason")}
        if against["verified"] and not result["missing"] and not result["unexpected"]:
            return result | {"ok": True, "status": "same as torch"}
    theirs = attempt(framework, class_name, source / framework, inputs)
    if "outputs" not in ours:
        cannot = "outputs" not in theirs and (theirs["reason"] == ours["reason"] or not report[framework]["written"])
        return result | {"status": "cannot be loaded" if cannot else "differs", "of its own file": theirs.get("reason")}
    if "outputs" in theirs:
        apart = oracle.compare(ours["outputs"], theirs["outputs"], inputs)
        result["max relative difference from its own file"] = worst(apart)
        complaints = all(ours[key] == theirs[key] for key in ("missing", "unexpected"))
        if apart["verified"] and complaints:
            return result | {"ok": True, "status": "same as its own file"}
        if against["verified"] and not result["unexpected"]:
            result |= {"ok": True, "status": "same as torch, warns"}
        result["of its own file"] = {key: theirs[key] for key in ("missing", "unexpected")}
    return result


def attempt(framework: str, class_name: str, folder: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    """Load and run: the outputs, and the weights that the loader missed or did not use; or the reason why not."""
    import make_checkpoints as oracle
    import transformers

    if not folder.is_dir():
        return {"reason": "there is no such file"}
    try:
        load = {"tf": load_tf, "flax": load_flax}[framework]
        outputs, missing, unexpected = load(getattr(transformers, class_name), folder, inputs)
        return {"outputs": oracle.flatten(outputs), "missing": missing, "unexpected": unexpected}
    except Exception as error:
        text = str(error).replace(str(folder), "FOLDER")
        return {"reason": re.sub(r"\s+", " ", f"{type(error).__name__}: {text}")[:600]}


def load_tf(model_class: Any, folder: Path, inputs: dict[str, Any]) -> tuple[Any, list[str], list[str]]:
    import make_checkpoints as oracle
    import numpy as np
    import tensorflow as tf

    tf.keras.backend.clear_session()
    tf.keras.utils.set_random_seed(0)  # what the loader leaves at its random start is then the same for both files
    model, info = model_class.from_pretrained(str(folder), output_loading_info=True)
    taken, _ = oracle._accepted(model.call, inputs)
    tensors = {k: tf.constant(v.astype(np.int32) if v.dtype == np.int64 else v) for k, v in taken.items()}
    missing = [*info["missing_keys"], *map(str, info["mismatched_keys"])]
    return model(**tensors, training=False), sorted(missing), sorted(info["unexpected_keys"])


def load_flax(model_class: Any, folder: Path, inputs: dict[str, Any]) -> tuple[Any, list[str], list[str]]:
    import make_checkpoints as oracle
    import numpy as np

    with Said("transformers.modeling_flax_utils") as said:
        model = model_class.from_pretrained(str(folder))
    taken, _ = oracle._accepted(model.__call__, inputs)
    tensors = {k: v.astype(np.int32) if v.dtype == np.int64 else v for k, v in taken.items()}
    missing = said.keys(r"were not initialized .*?: (\{.*?\})\n")
    return model(**tensors), missing, said.keys(r"were not used when initializing \w+: (\{.*?\})\n")


class Said(logging.Handler):
    """What a logger says inside the block: Flax's loader tells its missing and unexpected keys in no other way."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._logger = logging.getLogger(name)
        self._text = ""

    def __enter__(self) -> Said:
        self._logger.addHandler(self)
        return self

    def __exit__(self, *exc: object) -> None:
        self._logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._text += record.getMessage() + "\n"

    def keys(self, pattern: str) -> list[str]:
        found = (ast.literal_eval(group) for group in re.findall(pattern, self._text, re.DOTALL))
        return sorted("/".join(key) for keys in found for key in keys)


def worst(compared: dict[str, Any]) -> float | None:
    """The largest difference of an output over its largest value; None where no output could be compared."""
    measured = [entry for entry in compared["outputs"].values() if "max_abs_diff" in entry]
    return max((entry["max_abs_diff"] / (entry["scale"] or 1.0) for entry in measured), default=None)


def collect(checkpoints: Path, out: Path, names: list[str], merge: bool, sample: dict[str, int]) -> None:
    """Write the result and print how many there are of each status, and every one that is not well."""
    results: dict[str, Any] = {}
    counts: dict[str, Counter[str]] = {}
    environments: dict[str, Any] = {}
    for name, form, entry in _read(out, names, environments):
        results[f"{name}-{form}"] = entry
        counts.setdefault(form, Counter())[entry["status"]] += 1
        if not entry["ok"]:
            print(f"{name} {form}: {entry['status']}: {entry.get('reason')}"[:300])
    environment: dict[str, Any] = {"python": platform.python_version()}
    environment["command"] = "check_written.py --write, then --read"
    if merge and RESULT.is_file():
        before = json.loads(RESULT.read_text())["result"]
        kept = {key: entry | {"of an earlier run": True} for key, entry in before.items() if key not in results}
        for key, entry in kept.items():
            counts[next(form for form in SUFFIXES if key.endswith(f"-{form}"))][entry["status"]] += 1
        environment["results"] = sample | {"of this run": len(results), "of an earlier run": len(kept)}
        results = dict(sorted((results | kept).items()))
    document = {"environment": environment | environments, "counts": counts, "result": results}
    text = json.dumps(document, indent=1).replace(f"{checkpoints}/", "")  # where they lie is nobody's business
    RESULT.write_text(text + "\n")
    for form, found in counts.items():
        print(f"{form}: {sum(found.values())} in all; " + ", ".join(f"{n} {status}" for status, n in found.items()))


def _read(out: Path, names: list[str], environments: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name in names:
        found = {}
        for part in ("written", "read"):
            path = out / name / f"{part}.json"
            found[part] = json.loads(path.read_text()) if path.is_file() else {"versions": {}, "forms": {}}
            environments[part] = found[part]["versions"] or environments.get(part)
        crash = {"ok": False, "status": "differs", "reason": "the reading process ended before it"}
        for form in found["written"]["forms"]:
            yield name, form, found["read"]["forms"].get(form, crash)


def versions(*packages: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


if __name__ == "__main__":
    main()
