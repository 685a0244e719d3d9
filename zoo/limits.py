"""How much a graph may take: a graph is data that somebody wrote, and a few bytes of it can ask for terabytes or years.

Counted are elements of arrays, and steps: roughly the elements that are read, multiplied or written. Large inputs and
many parameters are work that the caller has chosen, so the limits grow with both; benchmarks/bench_limits.py finds how
far below them the packaged graphs stay.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from zoo.errors import LimitError

__all__ = ["FACTOR", "Limits", "refused", "written"]

FACTOR = "ZOO_GRAPH_LIMIT"
"""The environment variable whose number multiplies every limit; "inf" takes them away."""

ELEMENTS = 1 << 23
STEPS = 1 << 32
PARTS = 1 << 16
"""What any graph may take: elements of one array, steps of all nodes, parts that one operation is computed in."""

PART = 1 << 12
"""Steps that a part takes whatever its size."""


class Limits:
    """What a graph may take with inputs of some shapes.

    Args:
        held: elements of the parameters and constants together.
        widest: the longest dim of a parameter.
        nodes: how many there are.
        given: the inputs' shapes.
    """

    def __init__(self, held: int, widest: int, nodes: int, given: Sequence[tuple[int, ...]]) -> None:
        factor = _factor()
        elements = sum(map(math.prod, given))
        longest = max([size for shape in given for size in shape] or [1])  # torch.compile knows no default
        # attention has tokens times tokens times heads; a head over words has tokens times words
        self.elements = factor * max(ELEMENTS, 64 * (held + elements * longest), 8 * elements * widest)
        self.live = 4 * self.elements
        work = 4096 * (held + 1024) * (elements + 16)
        self.steps = factor * (max(STEPS, work) + 64 * PART * nodes)
        self.parts = factor * PARTS


def refused(where: str, asked: object, limit: object) -> LimitError:
    """What to raise where more is asked for than there is."""
    return LimitError(
        "the graph asks for more than models of its size need",
        where=where,
        expected=f"at most {written(limit) if isinstance(limit, (int, float)) else limit}",
        got=asked,
        do=f"use smaller inputs; for a model whose maker you trust set {FACTOR}=10, which multiplies the limits",
    )


def written(number: float) -> str:
    """A count for people: large ones by their order."""
    return f"{int(number):,}" if number < 1 << 50 else f"{float(min(number, 1 << 1000)):.1e}"


def _factor() -> float:
    text = os.environ.get(FACTOR, "1")
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not factor >= 1:
        raise LimitError(
            "the limits of graphs are multiplied by a number", where=FACTOR, expected="1 or more", got=text
        )
    return factor
