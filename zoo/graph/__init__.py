"""The graph: a model as data. Imports no framework."""

from zoo.graph.io import load_graph, save_graph
from zoo.graph.ir import Dim, DType, Graph, Input, Node, Param, Ref, ValueInfo

__all__ = ["DType", "Dim", "Graph", "Input", "Node", "Param", "Ref", "ValueInfo", "load_graph", "save_graph"]
