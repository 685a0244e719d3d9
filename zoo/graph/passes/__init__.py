"""Graph to graph: each pass is one small function that returns a new graph computing the same."""

from zoo.graph.passes.simplify import simplify

__all__ = ["simplify"]
