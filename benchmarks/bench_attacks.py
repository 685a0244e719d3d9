"""Seconds and memory until each hostile file of the tests is refused: at most 2 seconds and 64 MB are allowed.

    python benchmarks/bench_attacks.py

Every file is opened, and its tensors are read, in a process of its own, forked from one that has done the imports.
Memory is the peak of resident memory above that at the start; formats that are parsed in a further process (torch's,
HDF5) add what that process needs above what it needs for a good file of the format.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[1:1] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1] / "tests" / "attacks")]

import bundle_files  # noqa: E402
import gguf_files  # noqa: E402
import h5_files  # noqa: E402
import safetensors_files  # noqa: E402
import torch_files  # noqa: E402
from common import record  # noqa: E402

from converters import open_checkpoint  # noqa: E402
from zoo.errors import ZooError  # noqa: E402

SECONDS, MEMORY = 2.0, 64 << 20

Write = Callable[[Path], Path]


def main() -> None:
    result: dict[str, Any] = {}
    for format_, (good, cases) in attacks().items():
        usual = measured(good)
        assert usual["error"] is None, (format_, usual)
        rows = {name: measured(write) for name, write in cases}
        for row in rows.values():
            row["memory"] += max(0, row.pop("child") - usual["child"])
        slowest = max(rows, key=lambda name: rows[name]["seconds"])
        largest = max(rows, key=lambda name: rows[name]["memory"])
        over = [n for n, row in rows.items() if row["seconds"] > SECONDS or row["memory"] > MEMORY]
        wrong = [name for name, row in rows.items() if not row["right"]]
        result[format_] = {
            "files": len(rows),
            "seconds": {"most": rows[slowest]["seconds"], "of": slowest},
            "memory": {"most": rows[largest]["memory"], "of": largest},
            "over the limits": {name: rows[name] for name in over},
            "without an error of ours that names the file": {name: rows[name] for name in wrong},
        }
        print(
            f"{format_:12s} {len(rows):3d} files: {rows[slowest]['seconds']:.2f} s ({slowest}), "
            f"{rows[largest]['memory'] / 1e6:.1f} MB ({largest}); over: {over or 'none'}; wrong: {wrong or 'none'}",
            flush=True,
        )
    print("written to", record("attacks", result).name)


def measured(write: Write) -> dict[str, Any]:
    """What opening one file took, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder))
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.write(writer, json.dumps(opened(path)).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            raw = pipe.read()
        os.waitpid(child, 0)
        return json.loads(raw) if raw else {"seconds": 0, "memory": 0, "child": 0, "error": "died", "right": False}


def opened(path: Path) -> dict[str, Any]:
    before, error, right = status("VmRSS"), None, False
    started = time.perf_counter()
    try:
        with open_checkpoint(path) as checkpoint:
            for _, array in checkpoint.items():
                array.tobytes()
    except ZooError as caught:
        error, right = type(caught).__name__, path.stem in str(caught)
    except BaseException as caught:
        error = repr(caught)
    seconds = time.perf_counter() - started
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    memory = max(0, status("VmHWM") - before)
    return {"seconds": round(seconds, 3), "memory": memory, "child": child, "error": error, "right": right}


def status(key: str) -> int:
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key))


def raw(name: str, data: bytes) -> Write:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def attacks() -> dict[str, tuple[Write, list[tuple[str, Write]]]]:
    """Format -> a good file, and (name, attack) for each."""
    found = {
        "safetensors": (
            raw("a.safetensors", safetensors_files.GOOD),
            [(name, raw("a.safetensors", data)) for name, (data, _) in safetensors_files.BROKEN.items()],
        ),
        "gguf": (raw("a.gguf", gguf_files.GOOD), [(n, raw("a.gguf", d)) for n, (d, _) in gguf_files.BROKEN.items()]),
        "torch": (
            lambda folder: torch_files.write_zip(folder / "a.pt", torch_files.pickled({})),
            list(of_torch()),
        ),
        "h5": (lambda folder: h5_files.write(folder / "a.h5", good_h5), list(of_h5())),
        "tensor_bundle": (
            lambda folder: bundle_files.save(folder, bundle_files.GOOD),
            [(name, of_bundle(data)) for name, (data, _) in bundle_files.BROKEN.items()],
        ),
    }
    for format_, file, table in (
        ("msgpack", "a.msgpack", "HOSTILE"),
        ("onnx", "a.onnx", "BROKEN"),
        ("llama2c", "a.bin", "HOSTILE"),
    ):
        module = importlib.import_module(f"test_format_{format_}")
        good = {"msgpack": lambda m: m.GOOD, "llama2c": lambda m: m.sizes() + m.BODY, "onnx": good_onnx}[format_]
        cases = [(name, raw(file, data)) for name, (data, *_) in getattr(module, table).items()]
        found[format_] = raw(file, good(module)), cases
    npz = importlib.import_module("test_format_npz")
    found["npz"] = (
        lambda folder: npz.archive(folder / "a.npz", {"a.npy": npz.member()}),
        [
            (name, lambda folder, data=data: npz.archive(folder / "a.npz", {"good.npy": npz.member(), "bad.npy": data}))
            for name, (data, _) in npz.HOSTILE.items()
        ],
    )
    return found


def of_torch() -> Iterator[tuple[str, Write]]:
    bombs = {
        **torch_files.RESOURCE_BOMBS,
        "slow hash": torch_files.slow_hash(60),
        "os.system": torch_files.pickled({"a": torch_files.Call(os.system, "true")}),
        "eval": torch_files.pickled(torch_files.Call(eval, "1")),
        "nothing": b"",
    }
    for name, data in bombs.items():
        yield f"zip: {name}", lambda folder, data=data: torch_files.write_zip(folder / "a.pt", data)
        yield f"legacy: {name}", lambda folder, data=data: torch_files.write_legacy(folder / "a.pt", data)


def of_h5() -> Iterator[tuple[str, Write]]:
    for name, make in h5_files.UNSAFE.items():
        yield name, lambda folder, make=make: h5_files.write(folder / "a.h5", make)
    for name, (make, _) in h5_files.BROKEN.items():
        yield name, lambda folder, make=make: h5_files.write(folder / "a.h5", make)
    bomb = h5_files.deflated_zeros(1 << 30)
    yield "chunk of a gigabyte", lambda folder: h5_files.with_chunk(folder / "a.h5", bomb)


def of_bundle(data: Any) -> Write:
    return lambda folder: bundle_files.save(folder, data if isinstance(data, bytes) else data())


def good_h5(f: Any) -> None:
    f["a"] = h5_files.NUMBERS


def good_onnx(module: Any) -> bytes:
    return module.raw_model(module.raw_tensor([1], data=module.field(9, bytes(4))))


if __name__ == "__main__":
    main()
