"""A quick part of the tests beside the newest frameworks, on each Python.

    python benchmarks/check_versions.py python3.11 python3.12 python3.13 [--write] [--keep]

For each Python a virtual environment is made in build/versions with this checkout's wheel, one fixed version of torch
(an unpinned one may be a build for another machine) and the newest transformers, jax, keras, tensorflow and numpy that
pip finds beside it; constraints.txt has no part in it. `PARTS` of the tests run there against the installed wheel, not
against the checkout, and a warning is an error as ever. The environment, 2 to 6 GB, is deleted afterwards (--keep
leaves it).

--write puts what was found of these Pythons into benchmarks/results/versions.json, beside what is there of others, and
prints the table for the documentation. The exit status is 1 where a test failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

from common import RESULTS

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "versions"
RESULT = RESULTS / "versions.json"
TORCH = "torch==2.13.0"
PACKAGES = ("torch", "transformers", "jax", "keras", "tensorflow_cpu", "numpy")
TOOLS = ("gguf", "hypothesis", "jsonschema", "msgpack", "onnx", "optax", "orbax-checkpoint", "psutil")
TOOLS += ("pytest<9.2", "pytest-timeout", "pytest-xdist")
TYPES = "bert deberta-v2 gpt2 llama t5 whisper wav2vec2 vit clip resnet convnext"

PARTS: dict[str, list[str]] = {
    "imports": ["tests/test_import.py"],
    "operations": ["tests/test_ops.py", "-k", "operation or gradient or namespace or promotion"],
    "contract": ["tests/test_contract.py"],
    "capture": ["tests/test_capture.py"],
    "architectures": ["tests/test_parity.py", "-k", " or ".join(f"[{name}-" for name in TYPES.split())],
    "conversion": ["tests/test_convert.py", "-k", "bert-mlm or resnet"],
}
"""What stands in the table -> arguments of pytest."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="*", default=[sys.executable], help="interpreters; this one without any")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="only these")
    parser.add_argument("--write", action="store_true", help=f"put what was found into {RESULT.name}")
    parser.add_argument("--keep", action="store_true", help="leave the environments; the next run uses them again")
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    wheel = built()
    found = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    failed = False
    for python in options.pythons:
        name, row = checked(python, wheel, options.parts, options.keep)
        failed |= any(part["failed"] for part in row["tests"].values())
        found[name] = row
        if options.write:
            ordered = dict(sorted(found.items(), key=lambda item: [int(number) for number in item[0].split(".")]))
            RESULT.write_text(json.dumps(ordered, indent=1) + "\n")
    print(table(found))
    sys.exit(failed)


def built() -> Path:
    """The wheel of this checkout, by the build backend of the environment that runs this script."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, str(ROOT))
        (made,) = Path(folder).iterdir()
        return Path(shutil.copy(made, WORK))


def checked(python: str, wheel: Path, parts: list[str], keep: bool) -> tuple[str, dict[str, Any]]:
    """Python's minor version, and what was installed and how each part of the tests ended."""
    asked = "import sys; print('{}.{}'.format(*sys.version_info), '.'.join(map(str, sys.version_info[:3])))"
    minor, exact = subprocess.run([python, "-c", asked], check=True, capture_output=True, text=True).stdout.split()
    folder = WORK / minor
    inside = folder / "bin" / "python"
    try:
        if not inside.is_file():
            run(python, "-m", "venv", str(folder))
        run(str(inside), "-m", "pip", "install", "-q", "--upgrade", "pip")
        run(str(inside), "-m", "pip", "install", "-q", TORCH, f"{wheel}[all]", *TOOLS)
        run(str(inside), "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", str(wheel))
        row = {"python": exact, "versions": versions(inside), "tests": {}}
        for part in parts:
            row["tests"][part] = tested(inside, part)
            print(f"{minor} {part}: {row['tests'][part]}", flush=True)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return minor, row


def versions(python: Path) -> dict[str, str]:
    asked = f"from importlib.metadata import version; print(*map(version, {PACKAGES}))"
    said = subprocess.run([str(python), "-c", asked], check=True, capture_output=True, text=True).stdout.split()
    return dict(zip(PACKAGES, said, strict=True))


def tested(python: Path, part: str) -> dict[str, Any]:
    """Counts of one part; -P keeps the checkout's own packages off the path."""
    report = WORK / "report.xml"
    report.unlink(missing_ok=True)
    arguments = ["-q", "-n", "0", "-p", "no:cacheprovider", "--timeout=1800", f"--junitxml={report}", *PARTS[part]]
    done = subprocess.run([str(python), "-P", "-m", "pytest", *arguments], cwd=ROOT, env=environment(), check=False)
    if not report.is_file():
        return {"passed": 0, "failed": 1, "names": [f"pytest ended with {done.returncode}"]}
    counts: Counter[str] = Counter()
    names = []
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        kind = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        counts[kind] += 1
        if kind == "failed":
            names.append(f"{case.get('classname')}::{case.get('name')}")
    if not counts["passed"] and not counts["failed"]:
        return {"passed": 0, "failed": 1, "names": [f"no test ran; pytest ended with {done.returncode}"]}
    return {kind: counts[kind] for kind in ("passed", "failed", "skipped")} | ({"names": names} if names else {})


def table(found: dict[str, Any]) -> str:
    """Markdown: a row for each Python, a column for each package, then passed of all that ran."""
    head = ["Python", *(name.removesuffix("_cpu") for name in PACKAGES), "tests passed"]
    rows = [head, ["---"] * len(head)]
    for row in found.values():
        passed = sum(part["passed"] for part in row["tests"].values())
        failed = sum(part["failed"] for part in row["tests"].values())
        rows.append([row["python"], *row["versions"].values(), f"{passed} of {passed + failed}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def environment() -> dict[str, str]:
    """This process's, without what would pin versions or lead to the checkout."""
    gone = {"PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT", "PYTHONPATH", "VIRTUAL_ENV"}
    return {name: value for name, value in os.environ.items() if name not in gone}


def run(*command: str) -> None:
    subprocess.run(command, cwd=WORK, env=environment(), check=True, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
