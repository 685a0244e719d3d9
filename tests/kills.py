"""Conversions ended by SIGKILL at random moments, and what must be true of what is left.

    python tests/kills.py [--kills 50] [--seed 0]

The old output is of another source than the new one, so that they differ; one time in three there is none. Everything
is looked at by hashes of whole folders: what is there is what one of two conversions wrote that were let finish, or
nothing if nothing was there before.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from converters import save_safetensors
from zoo import registry
from zoo.configured import graph_for

MODEL = "rxnmapper"  # an ALBERT of 3 MB, the smallest whose graph is packaged
FORMS = ("safetensors", "tf-h5", "flax")

CHILD = r"""
import os, sys, time
import zoo.loading, zoo.sources.local, zoo.weights, h5py
from converters import atomic
from zoo.convert import convert

def slowed(function, before, after=0.0):
    def slow(*args, **options):
        time.sleep(before)
        found = function(*args, **options)
        time.sleep(after)
        return found
    return slow

os.fsync = slowed(os.fsync, 0.01)
atomic._swap = slowed(atomic._swap, 0.05, 0.05)
source, out, to = sys.argv[1:]
print("ready", flush=True)
convert(source, out, to, shard_size=500_000, overwrite=True, progress=lambda *_: time.sleep(0.01))
"""


def make(folder: Path, seed: int) -> Path:
    """A folder with the model's config and random weights, in one file."""
    folder.mkdir()
    config = registry.find(MODEL).config()
    (folder / "config.json").write_text(json.dumps(config))
    random_ = np.random.default_rng(seed)
    params = graph_for(config, None, "float32").params
    arrays = {name: random_.standard_normal(param.shape, np.float32) for name, param in params.items()}
    assert all(math.prod(array.shape) for array in arrays.values())
    save_safetensors(folder / "model.safetensors", arrays, {"format": "pt"})
    return folder


def digests(folder: Path) -> dict[str, str] | None:
    """Name -> hash of every file of a folder; None if there is no such folder."""
    if not folder.exists():
        return None
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def start(source: Path, out: Path, to: str) -> subprocess.Popen[str]:
    """A slowed conversion that is about to begin."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, source, out, to], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "ready\n", child.communicate()[1]
    return child


def finish(source: Path, out: Path, to: str) -> float:
    """A slowed conversion that is let finish; the seconds it took."""
    child = start(source, out, to)
    began = time.perf_counter()
    _, errors = child.communicate()
    assert child.returncode == 0, errors
    return time.perf_counter() - began


def kill_often(folder: Path, kills: int, to: str, seed: int = 0) -> Counter[str]:
    """Kills that many conversions and checks what each leaves; how often the old output, the new or none was there.

    Raises:
        AssertionError: an output that no conversion wrote, a changed input, something left over after the last run.
    """
    random_ = random.Random(seed)
    sources = [make(folder / name, number) for number, name in enumerate("ab")]
    inputs = [digests(source) for source in sources]
    out = folder / "target" / "out"
    whole = []
    for source, name in zip(sources, ("first", "second"), strict=True):
        seconds = finish(source, out, to)
        whole.append(digests(out))
        shutil.copytree(out, folder / name)
    assert whole[0] != whole[1]
    seen: Counter[str] = Counter()
    for number in range(kills):
        shutil.rmtree(out, ignore_errors=True)
        if number % 3 < 2:
            shutil.copytree(folder / "first", out)
        before, which = digests(out), 1
        child = start(sources[which], out, to)
        time.sleep(random_.uniform(0, 1.1 * seconds))
        child.kill()
        child.communicate()
        after = digests(out)
        assert after in (before, whole[which]), f"half an output: {sorted(after or {})}"
        assert [digests(source) for source in sources] == inputs, "an input changed"
        left = [path.name for path in out.parent.iterdir() if path != out]
        assert len(left) <= 1 and all(name.startswith(".out.") for name in left), left
        seen["new" if after == whole[which] else "none" if after is None else "old"] += 1
        seen["left over"] += len(left)
    finish(sources[0], out, to)
    assert digests(out) == whole[0], "the rerun wrote something else"
    assert [path.name for path in out.parent.iterdir()] == ["out"], "something is left after the rerun"
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    total: Counter[str] = Counter()
    for number, to in enumerate(FORMS):
        kills = (options.kills + number) // len(FORMS)
        with tempfile.TemporaryDirectory() as folder:
            seen = kill_often(Path(folder), kills, to, options.seed + number)
        print(f"{to}: {kills} kills, {dict(seen)}", flush=True)
        total += seen
    print(f"{options.kills} kills: {dict(total)}; every output was whole, every input unchanged, every rerun right")


if __name__ == "__main__":
    main()
