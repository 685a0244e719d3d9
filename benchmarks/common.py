"""What the benchmarks share: pinned cores, interleaved runs, medians, a record of the machine and versions."""

from __future__ import annotations

import argparse
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


def asked_threads() -> int:
    """What `--threads` on the command line says, or 1; to be known before frameworks are imported."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_known_args()[0].threads


def on_threads(count: int) -> None:
    """Pin this process to so many cores and every framework to so many threads; call before importing any of them."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    eigen = "false" if count == 1 else "true"
    os.environ.update(
        OMP_NUM_THREADS=str(count),
        MKL_NUM_THREADS=str(count),
        TF_NUM_INTRAOP_THREADS=str(count),
        TF_NUM_INTEROP_THREADS="1",
        XLA_FLAGS=f"--xla_cpu_multi_thread_eigen={eigen} intra_op_parallelism_threads={count}",
        TF_CPP_MIN_LOG_LEVEL="3",
    )


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    rounds: int,
    warm: int = 2,
    clock: Callable[[], float] = time.perf_counter,
    apart: bool = False,
) -> dict[str, float]:
    """Median seconds of each function, run in turn so that a slow moment of the machine hits all of them.

    `time.process_time` as the clock leaves out the time that other processes take on the same core. With `apart` there
    is a moment and a call that does not count before each: the threads of the one before go on looking for work.
    """
    for function in functions.values():
        for _ in range(warm):
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            if apart:
                time.sleep(0.02)
                function()
            started = clock()
            function()
            times[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def record(name: str, result: Any) -> Path:
    """Write benchmarks/results/<name>.json with the machine and the versions beside the numbers."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(), "result": result}, indent=1) + "\n")
    return path


def onnx_session(model: Any, folder: Path, threads: int = 1) -> Any:
    """A text model of transformers on ONNX Runtime; None where onnxruntime is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import numpy as np
    import onnxruntime

    ids = np.arange(1000, 1016).reshape(2, 8)
    path = exported(model, {"input_ids": ids, "attention_mask": np.ones_like(ids)}, folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(str(path), options)


def exported(model: Any, example: Mapping[str, Any], folder: Path) -> Path:
    """A transformers model as ONNX, of NumPy inputs to last_hidden_state, as its users export it."""
    import torch

    class Hidden(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *inputs):
            return self.model(**dict(zip(example, inputs, strict=True))).last_hidden_state

    axes = {0: "batch", 1: "sequence"} if "input_ids" in example else {}
    names = [*example, "last_hidden_state"]
    torch.onnx.export(
        Hidden().eval(), tuple(torch.from_numpy(x) for x in example.values()), folder / "model.onnx", dynamo=False,
        input_names=list(example), output_names=names[-1:], dynamic_axes=dict.fromkeys(names, axes) if axes else None,
    )  # fmt: skip
    return folder / "model.onnx"


def environment() -> dict[str, Any]:
    versions = {}
    for package in ("torch", "tensorflow-cpu", "jax", "keras", "transformers", "numpy", "onnxruntime", "openvino"):
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
