"""Builds the packaged graphs: one per network that a registry entry's known config describes.

    python tools/build_graphs.py                     what is missing or no longer wanted
    python tools/build_graphs.py --all               everything anew
    python tools/build_graphs.py --check [NAMES …]   capture again and compare with what is there

Entries whose networks are the same share a graph. Needs torch and transformers; reading the result needs neither.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import hashlib
import json
import os
import sys
import time
from dataclasses import replace
from typing import Any

from zoo import registry
from zoo.configured import GRAPHS, find_packaged
from zoo.errors import ZooError
from zoo.graph import Graph, load_graph, save_graph

DTYPE = "float32"
BASE = "feature-extraction"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="registry names; all that have a config if none is given")
    parser.add_argument("--all", action="store_true", help="capture again what is there already")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a graph is not what is there")
    options = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # transformers walks sets of layer types (Gemma 3, ModernBERT): their order must be the same every time
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    entries = [registry.find(name) for name in options.names] or list(registry.entries().values())
    wanted = [(entry, task) for entry in entries if entry.has_config for task in tasks_of(entry)]
    if options.check:
        return check(wanted)
    index, records = read_index()
    if not options.names:
        for found in index.values():
            found["entries"] = []
    failed = []
    for number, (entry, task) in enumerate(wanted, 1):
        config = entry.config()
        known = None if options.all else find_packaged(config, task, DTYPE)
        if known is None:
            started = time.perf_counter()
            try:
                graph = capture(config, task)
                known, record = store(graph)
            except ZooError as error:
                failed.append(f"{entry.name} {task}: {error}")
                print(f"[{number}/{len(wanted)}] {entry.name} {task}: FAILED", flush=True)
                continue
            index[known] = {**facts(graph), "entries": index.get(known, {}).get("entries", [])}
            records[known] = record
            seconds = time.perf_counter() - started
            print(f"[{number}/{len(wanted)}] {entry.name} {task}: {known} {seconds:.0f} s", flush=True)
            gc.collect()
        names = index[known]["entries"]
        if entry.name not in names:
            names.append(entry.name)
        write_index(index, records)
    if not options.names:
        remove_unwanted(index, records)
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


def tasks_of(entry: registry.Entry) -> list[str | None]:
    """What the entry is loaded as, and for encoders of text the base model, which is what embeddings need."""
    encoder = entry.modality == "text" and entry.task not in ("text-generation", "text2text-generation")
    return [entry.head, BASE] if encoder and entry.head != BASE else [entry.head]


def capture(config: dict[str, Any], task: str | None) -> Graph:
    import torch

    from zoo.capture.huggingface import capture_config, config_from

    torch.set_num_threads(1)
    return capture_config(config_from(config), task, DTYPE)


def store(graph: Graph) -> tuple[str, dict[str, Any]]:
    """Write a graph under the name that its network has; its config record goes into the index."""
    record = graph.meta["config"]
    name = file_name(graph)
    save_graph(packaged(graph), GRAPHS / name)
    try:
        load_graph(GRAPHS / name)
    except ZooError:
        (GRAPHS / name).unlink()
        raise
    return name, record


def packaged(graph: Graph) -> Graph:
    """The graph as it is shipped: the config record is kept once, in the index, and the example's sizes are not needed,
    since those that `zoo verify` usually takes fit.
    """
    return replace(graph, meta={key: value for key, value in graph.meta.items() if key not in ("config", "example")})


def file_name(graph: Graph) -> str:
    key = json.dumps([graph.meta["class"], graph.meta["dtype"], graph.meta["config"]["fields"]], sort_keys=True)
    return f"{graph.meta['model_type']}-{graph.meta['class']}-{hashlib.sha256(key.encode()).hexdigest()[:10]}.json.gz"


def facts(graph: Graph) -> dict[str, Any]:
    return {
        "model_type": graph.meta["model_type"],
        "class": graph.meta["class"],
        "task": graph.meta["task"],
        "dtype": graph.meta["dtype"],
        "parameters": graph.parameter_count(),
        "nodes": len(graph.nodes),
    }


def read_index() -> tuple[dict[str, Any], dict[str, Any]]:
    index, records = GRAPHS / "index.json", GRAPHS / "configs.json.gz"
    if not index.is_file():
        return {}, {}
    return json.loads(index.read_text()), json.loads(gzip.decompress(records.read_bytes()))


def write_index(index: dict[str, Any], records: dict[str, Any]) -> None:
    GRAPHS.mkdir(exist_ok=True)
    (GRAPHS / "index.json").write_text(json.dumps(dict(sorted(index.items())), indent=1) + "\n")
    text = json.dumps(dict(sorted(records.items())), separators=(",", ":"))
    (GRAPHS / "configs.json.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def remove_unwanted(index: dict[str, Any], records: dict[str, Any]) -> None:
    """Entries that are gone, and graphs that serve none."""
    names = registry.entries()
    for file in list(index):
        index[file]["entries"] = sorted(name for name in index[file]["entries"] if name in names)
        if not index[file]["entries"]:
            del index[file], records[file]
    for path in GRAPHS.glob("*.json.gz"):
        if path.name not in index and path.name != "configs.json.gz":
            path.unlink()
    write_index(index, records)


def check(wanted: list[tuple[registry.Entry, str | None]]) -> int:
    """Capture again; 1 if a graph is missing or differs in any byte."""
    wrong = 0
    for entry, task in wanted:
        config = entry.config()
        known = find_packaged(config, task, DTYPE)
        same = known is not None and equal(packaged(capture(config, task)), load_graph(GRAPHS / known))
        print(
            f"{entry.name} {task or 'own task'}: {'same' if same else 'DIFFERENT' if known else 'MISSING'}", flush=True
        )
        wrong += not same
    return 1 if wrong else 0


def equal(a: Graph, b: Graph) -> bool:
    """Whether two graphs are the same in every part, versions of the tools that made them aside."""

    def parts(graph: Graph) -> Any:
        meta = {k: v for k, v in graph.meta.items() if k not in ("torch", "transformers", "config")}
        constants = {k: (str(v.dtype), v.shape, v.tobytes()) for k, v in graph.constants.items()}
        return graph.inputs, graph.params, graph.nodes, graph.outputs, graph.symbols, meta, constants

    return parts(a) == parts(b)


if __name__ == "__main__":
    sys.exit(main())
