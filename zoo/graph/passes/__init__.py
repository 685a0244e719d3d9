"""Graph to graph: each pass is one small function that returns a new graph computing the same."""

from zoo.graph.passes.dropout import RNG, evaluating, keyed
from zoo.graph.passes.masks import with_all_rows
from zoo.graph.passes.simplify import drops, simplify

__all__ = ["RNG", "drops", "evaluating", "keyed", "simplify", "with_all_rows"]
