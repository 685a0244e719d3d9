"""Every model type and head of transformers, tiny, on every backend: python benchmarks/coverage [--sample N] …

Each class is measured in a process of its own with a limit on time and memory. What is found goes to a file of lines
as it comes, so a sweep that was stopped goes on where it was; `--write` puts it into zoo/coverage.json.gz.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before any framework is imported: measured processes share the cores, and say nothing but their findings.
os.environ.update(
    OMP_NUM_THREADS="1",
    TF_NUM_INTRAOP_THREADS="1",
    TF_NUM_INTEROP_THREADS="1",
    TF_CPP_MIN_LOG_LEVEL="3",
    TF_ENABLE_ONEDNN_OPTS="0",
    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    TRANSFORMERS_VERBOSITY="critical",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    JAX_PLATFORMS="cpu",
)
ROOT = Path(__file__).resolve().parents[2]
from zoo.coverage import DATA, Cell, Coverage, Row, read  # noqa: E402
from zoo.registry import entries  # noqa: E402
from zoo.tasks import TASKS  # noqa: E402

FOUND = ROOT / "build" / "coverage.jsonl"
BASE = "feature-extraction"
HEADS = tuple(task for task in TASKS if task not in (BASE, "image-feature-extraction", "pretraining"))
SEEN = Path(__file__).with_name("seen.json")
"""Model types that tests or registry entries had to do with before the first sweep."""
HELD_OUT_SEED = 3
PACKAGES = ("torch", "transformers", "jax", "tensorflow-cpu", "keras", "numpy")


def main() -> int:
    """Measure, report, write."""
    arguments = _arguments()
    jobs = list(_jobs(arguments))
    if not arguments.report:
        if arguments.only_gradients:
            known = {_key(row): row for row in _rows()}
            _sweep([known[job] for job in jobs if job in known and _lacks_gradients(known[job])], arguments)
        else:
            done = set() if arguments.again else {_key(row) for row in _lines()}
            if arguments.missing:
                done |= {_key(row) for row in _rows()}
            _sweep([Row(*job) for job in jobs if job not in done], arguments)
    rows = list(_rows())
    shown = [row for row in rows if _key(row) in jobs]
    _report(shown)
    lost = _lost(shown) if arguments.check else []
    for line in lost:
        print(f"no longer so: {line}")
    if arguments.write:
        Coverage({name: version(name) for name in PACKAGES}, tuple(rows)).write()
        print(f"wrote {DATA.relative_to(ROOT)}")
    return 1 if lost else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python benchmarks/coverage", description=__doc__)
    parser.add_argument("--types", nargs="*", default=[], help="only these model types")
    parser.add_argument("--tasks", nargs="*", default=[BASE], help='tasks to measure; "heads" for all but the base')
    parser.add_argument(
        "--registry", action="store_true", help="the heads that entries of the registry are loaded with"
    )
    parser.add_argument("--sample", type=int, help="only this many, drawn with --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", choices=("without", "only", "with"), default="with", help="of a third set aside")
    parser.add_argument("--again", action="store_true", help="measure what was measured before, too")
    parser.add_argument("--failed", action="store_true", help="measure again what did not match everywhere")
    parser.add_argument("--missing", action="store_true", help="only what zoo/coverage.json.gz has nothing of")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=int, default=200, help="processor time of each class")
    parser.add_argument("--gigabytes", type=float, default=6, help="limit of each class")
    parser.add_argument("--no-gradients", action="store_true")
    parser.add_argument("--only-gradients", action="store_true", help="of what matches and has none yet")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--write", action="store_true", help="write zoo/coverage.json.gz")
    parser.add_argument(
        "--check", action="store_true", help="exit code 1 if what zoo/coverage.json.gz calls right is not"
    )
    found = parser.parse_args()
    found.again = found.again or found.failed
    return found


def held_out(types: Iterable[str]) -> set[str]:
    """A random third of the model types that no test and no registry entry had to do with before."""
    unseen = sorted(set(types) - set(json.loads(SEEN.read_text("utf-8"))))
    return set(random.Random(HELD_OUT_SEED).sample(unseen, len(unseen) // 3))


def _jobs(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    types = arguments.types or list(MODEL_MAPPING_NAMES)
    if arguments.held_out != "with":
        aside = held_out(MODEL_MAPPING_NAMES)
        types = [t for t in types if (t in aside) == (arguments.held_out == "only")]
    tasks = [task for name in arguments.tasks for task in (HEADS if name == "heads" else (name,))]
    ours = {(entry.model_type, entry.task) for entry in entries().values()} if arguments.registry else None
    failed = {_key(row) for row in _rows() if not _right(row)} if arguments.failed else None
    jobs = []
    for task in tasks:
        for model_type in types:
            if task == BASE or _serves(CONFIG_MAPPING, model_type, task):
                jobs.append((model_type, task))
    if ours is not None:
        jobs = [job for job in jobs if job in ours]
    if failed is not None:
        jobs = [job for job in jobs if job in failed]
    if arguments.sample:
        jobs = random.Random(arguments.seed).sample(jobs, min(arguments.sample, len(jobs)))
    yield from jobs


def _serves(configs: Any, model_type: str, task: str) -> bool:
    import transformers

    try:
        config = configs[model_type]
    except (KeyError, ValueError, ImportError):
        return False
    return any(config in getattr(transformers, auto)._model_mapping for auto in TASKS[task])


# --- processes ------------------------------------------------------------------------------------------------------


def _sweep(jobs: list[Row], arguments: argparse.Namespace) -> None:
    """Measures each row, or the gradients of one that was measured."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    if not jobs:
        return
    _warm()
    FOUND.parent.mkdir(exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    running: dict[int, Row] = {}
    waiting = list(jobs)
    with Progress(*columns, transient=not sys.stdout.isatty()) as progress, FOUND.open("a", encoding="utf-8") as file:
        bar = progress.add_task("coverage", total=len(jobs))
        while waiting or running:
            while waiting and len(running) < arguments.jobs:
                job = waiting.pop(0)
                running[_start(job, arguments)] = job
            for pid, job in list(running.items()):
                row = _finished(pid, job, arguments)
                if row is not None:
                    del running[pid]
                    file.write(json.dumps(asdict(row)) + "\n")
                    file.flush()
                    progress.update(bar, advance=1, description=f"{row.model_type} {row.task}")
            time.sleep(0.1)


def _warm() -> None:
    """Import what every measured process needs: they are forks of this one. No framework but torch may compute here,
    since threads do not survive a fork."""
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    import jax  # noqa: F401
    import keras  # noqa: F401
    import tensorflow  # noqa: F401
    import transformers
    import transformers.exporters.exporter_dynamo
    from measure import BACKENDS

    from zoo.backends import get_backend
    from zoo.capture.torch_export import capture_module

    transformers.logging.set_verbosity(50)
    for backend in BACKENDS:
        get_backend(backend)
    capture_module(torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Dropout()).eval(), {"input": torch.ones(2, 3)})
    # a third of a process's time went into looking for garbage among what is imported
    gc.collect()
    gc.freeze()


def _start(job: Row, arguments: argparse.Namespace) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        from measure import measure, with_gradients

        row = with_gradients(job) if job.captured else measure(*_key(job), gradients=not arguments.no_gradients)
        path = _result(os.getpid())
        path.write_text(json.dumps(asdict(row)), encoding="utf-8")
        code = 0
    finally:
        os._exit(code)


def _result(pid: int) -> Path:
    return FOUND.with_name(f"coverage.{pid}.json")


def _finished(pid: int, job: Row, arguments: argparse.Namespace) -> Row | None:
    seconds = _seconds(pid)
    done, status = os.waitpid(pid, os.WNOHANG)
    reason = ""
    if not done:
        if seconds > arguments.seconds:
            reason = f"took more than {arguments.seconds} s of the processor"
        elif _memory(pid) > arguments.gigabytes * 2**30:
            reason = f"took more than {arguments.gigabytes:g} GB of memory"
        else:
            return None
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    path = _result(pid)
    try:
        if not reason and path.is_file():
            return _row(json.loads(path.read_text("utf-8")))
    finally:
        path.unlink(missing_ok=True)
    if not reason:
        reason = f"the process ended with signal {status & 127}" if status & 127 else "the process ended early"
    if not job.captured:
        return Row(*_key(job), built=True, reason=reason, seconds=round(seconds, 1))
    from measure import without_gradients

    return without_gradients(job, reason)


def _seconds(pid: int) -> float:
    """Of the processor that a process has had: others on the machine do not count against it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> int:
    """Bytes that a process has to itself, of what it does not share with the one it was forked from."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


# --- findings -------------------------------------------------------------------------------------------------------


def _row(found: dict[str, Any]) -> Row:
    return Row(**{**found, "cells": {name: Cell(**cell) for name, cell in found["cells"].items()}})


def _lines() -> Iterator[Row]:
    """Everything that was found since the data was last written, in the order it came."""
    if FOUND.is_file():
        for line in FOUND.read_text("utf-8").splitlines():
            yield _row(json.loads(line))


def _rows() -> Iterator[Row]:
    """The last finding of each class; of one held out what its first run showed stays with it."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    aside = held_out(MODEL_MAPPING_NAMES)
    found = {_key(row): row for row in read().rows}
    for row in _lines():
        before = found.get(_key(row))
        if row.task == BASE and row.model_type in aside:
            matches = {backend: cell.matches for backend, cell in row.cells.items()}
            row = replace(row, held_out=True, first=before.first if before else matches)
        found[_key(row)] = row
    for _, row in sorted(found.items()):
        yield row


def _key(row: Row) -> tuple[str, str]:
    return row.model_type, row.task


def _lost(rows: list[Row]) -> list[str]:
    """What an earlier sweep found right and this one does not."""
    before = {_key(row): row for row in read().rows}
    return [
        f"{row.model_type} {row.task} matches on {backend}: {row.reason or row.on(backend).reason}"
        for row in rows
        for backend, cell in before.get(_key(row), row).cells.items()
        if cell.matches and not row.on(backend).matches
    ]


def _lacks_gradients(row: Row) -> bool:
    from measure import COMPARED

    return any(row.on(name).matches and row.on(name).gradients is None for name in COMPARED)


def _right(row: Row) -> bool:
    return bool(row.cells) and all(cell.matches and not cell.reason for cell in row.cells.values())


def _report(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for row in rows:
        reasons = [row.reason] if row.reason else []
        reasons += [f"{name}: {cell.reason}" for name, cell in row.cells.items() if cell.reason]
        if reasons:
            console.print(f"{row.model_type} {row.task}: {' | '.join(reasons)}", markup=False, highlight=False)
    built = [row for row in rows if row.built]
    captured = [row for row in built if row.captured]
    console.print(f"{len(rows)} classes; transformers runs {len(built)}; captured {_share(captured, built)}")
    console.print(f"checkpoints that load: {_share([row for row in captured if row.loads], captured)}")
    table = Table("backend", "matches", "gradients", "another batch", "another length")
    for backend in dict.fromkeys(name for row in captured for name in row.cells):
        cells = [row.on(backend) for row in captured]
        lengths = [cell for cell in cells if cell.length is not None]
        batches = [cell for cell in cells if cell.batch is not None]
        gradients = [cell for cell in cells if cell.gradients is not None]
        table.add_row(
            backend,
            _share([row for row in built if row.on(backend).matches], built),
            _share([cell for cell in gradients if cell.gradients], gradients),
            _share([cell for cell in batches if cell.batch], batches),
            _share([cell for cell in lengths if cell.length], lengths),
        )
    console.print(table)
    aside = [row for row in built if row.held_out]
    for backend in ("jax", "tensorflow"):
        first = [row for row in aside if row.first.get(backend)]
        console.print(f"held out, matching on {backend} at the first run: {_share(first, aside)}")
    both = [row for row in built if row.on("jax").matches and row.on("tensorflow").matches]
    console.print(f"processor time: {sum(row.seconds for row in rows) / 3600:.1f} h")
    console.print(f"match on both JAX and TensorFlow: {len({row.model_type for row in both})} model types")


def _share(part: list[Any], whole: list[Any]) -> str:
    return f"{len(part)} of {len(whole)} ({100 * len(part) / max(len(whole), 1):.1f} %)"


if __name__ == "__main__":
    sys.exit(main())
