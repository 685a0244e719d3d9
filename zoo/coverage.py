"""What a sweep over transformers' architectures found: which were captured, and on which framework they are right.

`benchmarks/coverage` writes the data and nothing else does: an architecture is available where a run showed it.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["DATA", "Cell", "Coverage", "Row", "coverage", "read"]

DATA = Path(__file__).parent / "coverage.json.gz"


@dataclass(frozen=True, slots=True)
class Cell:
    """One architecture on one backend. A check that was not made, or does not apply, is None.

    Args:
        runs: the graph ran.
        matches: all outputs are within `zoo.tolerances` of float64.
        error: of the worst output: largest difference from float64, relative to its largest value.
        allowed: what `matches` allows there.
        gradients: so are those of its parameters, beside float64's, or torch's where the module has none in float64.
        gradient_error: the worst of those, relative to the parameter's largest.
        batch: right at another batch size, too, without another capture.
        length: right at another length of its text, audio or image.
        reason: of the first thing that failed, in one line.
    """

    runs: bool = False
    matches: bool = False
    error: float | None = None
    allowed: float | None = None
    gradients: bool | None = None
    gradient_error: float | None = None
    batch: bool | None = None
    length: bool | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One class of transformers, built tiny.

    Args:
        model_type: transformers' `model_type`.
        task: as `zoo.load` takes it; "feature-extraction" is the base model.
        architecture: the class.
        inputs: what it was given: name -> dtype and shape.
        built: transformers itself builds and runs it.
        captured: it became a graph.
        loads: the checkpoint that transformers itself writes of it fits the graph.
        held_out: nobody looked at it before its first run.
        first: of one held out: backend -> whether it matched at that first run.
        reason: why it was not built or not captured, in one line.
        parameters: how many trainable numbers the tiny model has.
        ops: what its graph is made of, op -> count.
        seconds: of a processor: build, capture and all runs.
        cells: backend -> what was found there.
    """

    model_type: str
    task: str
    architecture: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    built: bool = False
    captured: bool = False
    loads: bool = False
    held_out: bool = False
    first: Mapping[str, bool] = field(default_factory=dict)
    reason: str = ""
    parameters: int = 0
    ops: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    cells: Mapping[str, Cell] = field(default_factory=dict)

    def on(self, backend: str) -> Cell:
        """What was found on a backend; one that never ran there has nothing."""
        return self.cells.get(backend, Cell())


@dataclass(frozen=True, slots=True)
class Coverage:
    """A whole sweep.

    Args:
        versions: distribution -> version it was run with.
        rows: by model type, then task.
    """

    versions: Mapping[str, str]
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return {"versions": dict(self.versions), "rows": [asdict(row) for row in self.rows]}

    def write(self, path: Path = DATA) -> None:
        """The same bytes for the same findings."""
        text = json.dumps(self.to_json(), ensure_ascii=False, separators=(",", ":"))
        path.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))


def read(path: Path = DATA) -> Coverage:
    """A sweep from its file; an empty one where there is no file."""
    if not path.is_file():
        return Coverage({}, ())
    found = json.loads(gzip.decompress(path.read_bytes()))
    rows = [
        Row(**{**row, "cells": {name: Cell(**cell) for name, cell in row["cells"].items()}}) for row in found["rows"]
    ]
    return Coverage(found["versions"], tuple(rows))


@cache
def coverage() -> Coverage:
    """The sweep that this version was released with."""
    return read()
