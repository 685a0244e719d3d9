"""Our kernels inside torch, JAX and TensorFlow against the framework's own.

    python benchmarks/bench_kernels.py [--backends torch jax tensorflow] [--threads 1] [--rounds 40] [--no-table]

Every framework and number of threads has a process of its own, pinned to as many cores. A speed is the framework's own
time over ours, each the fastest of short runs in turn: the process's CPU time with one thread, so that what else runs
on the machine does not count, and wall time with more. Writes benchmarks/results/kernels.json, and from it
zoo/adapters/measured.json, by which `zoo.load(..., fast=True)` goes: the least that was measured of a kernel at a
shape.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from common import record

MEASURED = Path(__file__).parents[1] / "zoo" / "adapters" / "measured.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["torch", "jax", "tensorflow"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--no-table", action="store_true", help="do not write anything")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.backends[0], options.threads[0], options.rounds)))
        return
    result = {}
    for backend in options.backends:
        for threads in options.threads:
            command = [sys.executable, __file__, "--one", "--backends", backend, "--threads", str(threads)]
            done = subprocess.run(
                [*command, "--rounds", str(options.rounds)], stdout=subprocess.PIPE, text=True, check=True,
                env=os.environ | environment_for(threads),
            )  # fmt: skip
            report = json.loads(done.stdout.splitlines()[-1])
            result[f"{backend}, {threads} thread{'s' * (threads > 1)}"] = report
            for row in report["rows"]:
                sizes = "x".join(map(str, row["sizes"]))
                times = f"{row['microseconds']:9.1f} µs {row['own_microseconds']:9.1f}"
                print(f"{backend:10} {threads} {row['kernel']:18} {sizes:20} {times} {row['ratio']:6.2f}x", flush=True)
    if options.no_table:
        return
    print("written to", record("kernels", result).name)
    write_table(result)


def environment_for(threads: int) -> dict[str, str]:
    single = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": single if threads == 1 else "",
    }


def measure(backend: str, threads: int, rounds: int) -> dict:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    if backend == "torch":
        import torch

        torch.set_num_threads(threads)
    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    from zoo.adapters.check import verify_kernels

    clock = time.process_time if threads == 1 else time.perf_counter
    report = verify_kernels([backend], rounds=rounds, clock=clock)
    report.raise_for_failure()  # no speed is written of what is not right
    return report.to_json()


def write_table(result: dict) -> None:
    """measured.json: instruction set -> framework -> kernel -> [[sizes, speed]]; other instruction sets stay."""
    table = json.loads(MEASURED.read_text()) if MEASURED.is_file() else {}
    speeds: dict[tuple, float] = {}
    for who, report in result.items():
        for row in report["rows"]:
            key = report["isa"], who.split(",")[0], row["kernel"], tuple(row["sizes"])
            speeds[key] = min(row["ratio"], speeds.get(key, row["ratio"]))
    for isa in {key[0] for key in speeds}:
        table[isa] = {}
    for (isa, backend, kernel, sizes), speed in speeds.items():
        table[isa].setdefault(backend, {}).setdefault(kernel, []).append([list(sizes), round(speed, 2)])
    lines = ["{"]
    for i, isa in enumerate(sorted(table)):
        lines += [f' "{isa}": {{']
        for j, backend in enumerate(table[isa]):
            lines += [f'  "{backend}": {{']
            kernels = table[isa][backend]
            for k, kernel in enumerate(kernels):
                lines += [f'   "{kernel}": {json.dumps(kernels[kernel])}{"," * (k + 1 < len(kernels))}']
            lines += ["  }" + "," * (j + 1 < len(table[isa]))]
        lines += [" }" + "," * (i + 1 < len(table))]
    MEASURED.write_text("\n".join([*lines, "}"]) + "\n")


if __name__ == "__main__":
    main()
