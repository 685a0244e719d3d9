"""`jax.export` with symbolic sizes against `jax.jit`, for the text graphs of the registry, with random weights.

    python benchmarks/check_jax_export.py [TYPE …] [--sample] [--largest 200000000]

Graphs of the model types that are named, or all. One with more parameters than `--largest` is only exported. Writes
benchmarks/results/jax_export.json: per graph the largest difference over the largest output, at each batch and length;
graphs of other types keep what is written of them.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # quicker to compile, the same arithmetic

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from common import RESULTS, record

from zoo import registry
from zoo.backends import jax as backend
from zoo.configured import GRAPHS
from zoo.graph import load_graph
from zoo.graph.ir import Graph
from zoo.tolerances import CEILINGS

SIZES = ((1, 5), (2, 9), (3, 16))
SAMPLE = (
    "albert-AlbertModel-9032f372ad.json.gz",
    "bert-BertModel-65438da1c8.json.gz",
    "esm-EsmModel-adcef16919.json.gz",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="model types, such as bert; all if none is given")
    parser.add_argument("--sample", action="store_true", help="three small graphs, nothing written")
    parser.add_argument("--largest", type=int, default=200_000_000, help="parameters of the largest graph that is run")
    options = parser.parse_args()
    index = json.loads((GRAPHS / "index.json").read_text())
    written = RESULTS / "jax_export.json"
    results: dict[str, Any] = json.loads(written.read_text())["result"] if options.types and written.is_file() else {}
    results = {file: found for file, found in results.items() if file in index}
    for file, facts in sorted(index.items(), key=lambda item: item[1]["parameters"]):
        if (options.sample and file not in SAMPLE) or facts["model_type"] not in (
            options.types or [facts["model_type"]]
        ):
            continue
        graph = load_graph(GRAPHS / file)
        if any(item.name == "input_ids" for item in graph.inputs):
            started = time.perf_counter()
            results[file] = checked(of_one_image(graph, facts["entries"][0]), facts["parameters"] <= options.largest)
            print(f"{file:60} {time.perf_counter() - started:6.1f} s  {results[file]}", flush=True)
            jax.clear_caches()
            if not options.sample:
                record("jax_export", results)
    errors = [error for found in results.values() if isinstance(found, dict) for error in found.values()]
    worst = float(np.max(errors, initial=0))
    print(f"{len(results)} graphs; the largest difference is {worst:.1e}, {CEILINGS['float32']:.0e} is accepted")
    failed = [file for file, found in results.items() if isinstance(found, str) and found != "exported"]
    if failed or not worst <= CEILINGS["float32"]:
        raise SystemExit(f"not as jax.jit has it: {failed}")


def checked(graph: Graph, run: bool) -> dict[str, float] | str:
    """The largest relative difference at each of `SIZES`, or what stands in the way."""
    names = [s for s in graph.symbols if s in {dim for item in graph.inputs for dim in item.shape}]
    bounds = [f"{s}>={low}" for s, (low, _) in graph.symbols.items() if s in names]
    bounds += [f"{s}<={high or 4096}" for s, (_, high) in graph.symbols.items() if s in names]
    scope = jax.export.SymbolicScope(bounds)
    specs = {}
    for item in graph.inputs:
        shape = jax.export.symbolic_shape(f"({', '.join(map(str, item.shape))},)", scope=scope)
        specs[item.name] = jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(item.dtype))
    params = {p.name: jax.ShapeDtypeStruct(p.shape, p.dtype) for p in graph.params.values()}
    function = backend.compile_graph(graph)
    try:
        program = jax.export.export(jax.jit(function))(params, specs)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    if not run:
        return "exported"
    random = np.random.default_rng(0)
    weights = {
        name: jnp.asarray(random.standard_normal(spec.shape, np.float32) * 0.05).astype(spec.dtype)
        for name, spec in params.items()
    }
    errors = {}
    for batch, length in SIZES:
        given = {}
        for item in graph.inputs:
            sizes = [
                d if isinstance(d, int) else batch if "batch" in d else fitting(graph, d, length) for d in item.shape
            ]
            kind = item.dtype.startswith("int")
            given[item.name] = jnp.asarray(random.integers(0, 2, sizes) if kind else random.random(sizes, np.float32))
            if item.name == "bbox":  # left of right, top above bottom: a negative width has no embedding
                given[item.name] = jnp.sort(given[item.name], -1)
            if item.name.endswith("attention_mask"):
                given[item.name] = given[item.name].at[:, 0].set(1)
        wanted, got = function(weights, given), program.call(weights, given)
        found = [
            float(jnp.abs(a - b).max() / jnp.maximum(jnp.abs(a).max(), 1e-30))
            for a, b in ((wanted[name], got[name]) for name in wanted)
        ]
        errors[f"{batch}x{length}"] = float(np.max(found))
    return errors


def of_one_image(graph: Graph, entry: str) -> Graph:
    """The graph with an image's sides as its config has them: only batch and length are to be symbols."""
    side = (registry.find(entry).config().get("vision_config") or {}).get("image_size", 224)
    return replace(
        graph,
        inputs=tuple(
            replace(item, shape=tuple(side if dim in ("height", "width") else dim for dim in item.shape))
            for item in graph.inputs
        ),
    )


def fitting(graph: Graph, symbol: str, asked: int) -> int:
    low, high = graph.symbols[symbol]
    return max(low, min(asked, high or asked))


if __name__ == "__main__":
    main()
