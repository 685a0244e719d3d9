"""How far the packaged graphs stay below the limits of what a graph may take, and what looking costs.

    python benchmarks/check_limits.py --check     # exit code 1 if one comes near, or has nodes that cannot be seen into
    python benchmarks/check_limits.py --write     # into benchmarks/results
    python benchmarks/check_limits.py --calls     # cold and warm calls of a tiny BERT, with and without looking

Each graph is measured without being run (zoo/backends/bounds.py) at the sizes that it was captured with, at batches of
64, at 64 x 512 tokens or 64 images of 1024 x 1024, at 8192 tokens, and at the smallest sizes that it takes. Sizes are
kept within the ranges of the graph's symbols; images that a graph does not take at one size are tried at others.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
ROOT = Path(__file__).parents[1]
sys.path[1:1] = [str(ROOT / "tests")]

from zoo.backends.bounds import Bounds  # noqa: E402
from zoo.graph.io import load_graph  # noqa: E402
from zoo.graph.ir import Graph  # noqa: E402

SHARE = 0.25
"""Of a limit: what a packaged graph may take."""
PICTURES = (1024, 224, 256, 384, 512, 64)
KINDS = ("elements", "live", "steps", "parts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--graphs", type=Path, default=ROOT / "zoo" / "graphs")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--calls", action="store_true")
    given = parser.parse_args()
    if given.calls:
        print(calls())
        return
    rows: list[dict[str, Any]] = []
    files = sorted(path for path in given.graphs.glob("*.json.gz") if path.name != "configs.json.gz")
    for path in files:
        bounds = Bounds(load_graph(path))
        for name, sizes in situations(bounds.graph):
            rows.append({"graph": path.name.removesuffix(".json.gz"), "at": name, **measured(bounds, sizes)})
    unseen = sorted({row["graph"] for row in rows if row["unseen"] and row["at"] != "smallest"})
    worst = {kind: max(rows, key=lambda row: row[kind]) for kind in KINDS}
    for kind, row in worst.items():
        print(f"{kind:9s} {row[kind]:8.4f} of the limit: {row['graph']} at {row['at']}")
    seconds = [row["seconds"] for row in rows]
    took = f"{statistics.median(seconds) * 1e3:.1f} ms each, {max(seconds):.3f} s at most"
    print(f"{len(files)} graphs, {len(rows)} runs; {took}")
    print("nodes that cannot be seen into:", ", ".join(unseen) or "none")
    if given.write:
        from common import record

        facts = {kind: {key: row[key] for key in ("graph", "at", kind)} for kind, row in worst.items()}
        total = {"graphs": len(files), "runs": len(rows), "median_ms": statistics.median(seconds) * 1e3}
        print("written to", record("limits", {**total, "unseen": unseen, "worst": facts}).name)
    sys.exit(given.check and (bool(unseen) or any(worst[kind][kind] > SHARE for kind in KINDS)))


def situations(graph: Graph) -> Iterator[tuple[str, dict[str, int]]]:
    """Names and sizes of the graph's symbols."""
    example = graph.meta.get("example") or {}

    def sizes(batch: int | None, tokens: int | None, picture: int | None) -> dict[str, int]:
        found = {}
        for name, (low, high) in graph.symbols.items():
            wanted = batch if "batch" in name else picture if name.endswith(("height", "width")) else tokens
            size = example.get(name, max(low, 2)) if wanted is None else wanted
            found[name] = min(max(size, low), high or size)
        return found

    yield "capture", sizes(None, None, 224)
    yield "batches of 64", sizes(64, None, 224)
    yield "64 x 512 or 1024 x 1024", sizes(64, 512, 1024)
    yield "8192 tokens", sizes(2, 8192, 1024)
    yield "smallest", sizes(1, 1, 1)


def measured(bounds: Bounds, sizes: dict[str, int]) -> dict[str, Any]:
    """Shares of the limits, at the first size of images at which every node can be seen into."""
    pictures = [name for name in sizes if name.endswith(("height", "width"))]
    found: dict[str, Any] = {}
    for size in (None, *PICTURES) if pictures else (None,):
        tried = sizes if size is None else {**sizes, **dict.fromkeys(pictures, size)}
        shapes = {
            item.name: tuple(tried[dim] if isinstance(dim, str) else dim for dim in item.shape)
            for item in bounds.graph.inputs
        }
        start = time.perf_counter()
        need, unseen = bounds.need(shapes)
        seconds = time.perf_counter() - start
        limits = bounds.limits(shapes)
        found = {kind: getattr(need, kind) / getattr(limits, kind) for kind in KINDS}
        found |= {"seconds": seconds, "unseen": len(unseen)}
        if not unseen:
            break
    return found


def calls() -> str:
    """First calls of a new shape and further ones, each with and without looking; medians, in turn."""
    import checkpoints
    import numpy as np

    import zoo

    lines = []
    folder = checkpoints.save(Path(os.environ.get("TMPDIR", "/tmp")) / f"limits-{os.getpid()}", "bert")
    real = Bounds.check
    for backend in ("torch", "native", "numpy"):
        model = zoo.load(folder, backend)
        model(input_ids=np.ones((1, 3), np.int64))
        times: dict[tuple[str, bool], list[float]] = {
            (kind, on): [] for kind in ("cold", "warm") for on in (True, False)
        }
        for number in range(24):
            looking = number % 2 == 0
            Bounds.check = real if looking else (lambda self, inputs: None)  # type: ignore[method-assign, assignment]
            ids = np.ones((2, 5 + number), np.int64)
            times["cold", looking].append(timed(lambda: model(input_ids=ids)))  # noqa: B023
            for _ in range(3):
                model(input_ids=ids)
            times["warm", looking].append(min(timed(lambda: model(input_ids=ids)) for _ in range(20)))  # noqa: B023
        Bounds.check = real  # type: ignore[method-assign]
        for kind in ("cold", "warm"):
            on, off = (statistics.median(times[kind, looking]) for looking in (True, False))
            lines.append(f"{backend:7s} {kind} {on * 1e3:7.3f} ms with, {off * 1e3:7.3f} ms without: {on / off:.3f}")
    return "\n".join(lines)


def timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
