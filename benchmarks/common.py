"""What the benchmarks share: one pinned core, interleaved runs, medians, a record of the machine and versions."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def one_thread() -> None:
    """Pin this process to one core and every framework to one thread; call before importing any of them."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ.update(
        OMP_NUM_THREADS="1",
        MKL_NUM_THREADS="1",
        TF_NUM_INTRAOP_THREADS="1",
        TF_NUM_INTEROP_THREADS="1",
        XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
        TF_CPP_MIN_LOG_LEVEL="3",
    )


def interleaved(functions: Mapping[str, Callable[[], Any]], rounds: int, warm: int = 2) -> dict[str, float]:
    """Median seconds of each function, run in turn so that a slow moment of the machine hits all of them."""
    for function in functions.values():
        for _ in range(warm):
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def record(name: str, result: Any) -> Path:
    """Write benchmarks/results/<name>.json with the machine and the versions beside the numbers."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(), "result": result}, indent=1) + "\n")
    return path


def onnx_session(model: Any, folder: Path, threads: int = 1) -> Any:
    """The model on ONNX Runtime, exported as its users do it; None where onnxruntime is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime
    import torch

    class Hidden(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    ids = torch.randint(1000, 2000, (2, 8))
    names = ["input_ids", "attention_mask"]
    axes = {0: "batch", 1: "sequence"}
    torch.onnx.export(
        Hidden().eval(), (ids, torch.ones_like(ids)), folder / "model.onnx", input_names=names, dynamo=False,
        output_names=["last_hidden_state"], dynamic_axes=dict.fromkeys([*names, "last_hidden_state"], axes),
    )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), options)


def environment() -> dict[str, Any]:
    versions = {}
    for package in ("torch", "tensorflow-cpu", "jax", "keras", "transformers", "numpy", "onnxruntime"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "command": " ".join(Path(arg).name if i == 0 else arg for i, arg in enumerate(sys.argv)),
        "versions": versions,
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
