"""A module as it is traced for training: dropout on, and nothing that a graph could not repeat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from zoo.errors import CaptureError
from zoo.graph.ir import Graph
from zoo.graph.passes import drops

__all__ = ["evaluated", "mode", "trained"]


@contextmanager
def mode(module: torch.nn.Module, train: bool) -> Iterator[list[str]]:
    """Evaluation mode, or training mode for capture; what the module was before, after it.

    In training, norms with running statistics stay in evaluation: they use theirs and leave them as they are. Paths
    are dropped by dropout of ones, one per row, instead of by random numbers of their own. What Python decides at each
    step (layers left out, spectrograms masked) is off; the names of what was on are given.
    """
    modes = {part: part.training for part in module.modules()}
    held = [
        (holder, name, getattr(holder, name))
        for holder in {id(h): h for part in modes for h in (part, getattr(part, "config", None))}.values()
        for name in _IN_PYTHON
        if train and getattr(holder, name, False)
    ]
    paths = [part for part in modes if train and type(part).__name__.endswith("DropPath")]
    try:
        module.train(train)
        for part in modes:
            if isinstance(getattr(part, "running_mean", None), torch.Tensor):
                part.training = False
        for part in paths:
            part.forward = _drop_path.__get__(part)
        for holder, name, value in held:
            setattr(holder, name, type(value)(0))
        yield list(dict.fromkeys(name for _, name, _ in held))
    finally:
        for holder, name, value in held:
            setattr(holder, name, value)
        for part in paths:
            del part.forward
        for part, training in modes.items():
            part.training = training


_IN_PYTHON = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop", "apply_spec_augment")


def trained(graph: Graph, program: torch.export.ExportedProgram, without: Sequence[str] = ()) -> Graph:
    """The graph, known to be for training; `without` names what the module does in training and the graph does not.

    Raises:
        CaptureError: training it would change more than its parameters.
    """
    changed = [str(spec.target) for spec in program.graph_signature.output_specs if spec.kind.name == "BUFFER_MUTATION"]
    for node in graph.nodes:
        if node.op in ("batch_norm", "instance_norm") and len(node.args) > 5 and node.args[3] and node.args[5]:
            changed.append(node.args[3].name)
    if changed:
        raise CaptureError(
            "in training the model changes buffers, which a graph does not",
            where=", ".join(changed[:5]),
            do="train it on torch, or write those parts so that they only read them",
        )
    graph.meta["train"] = True
    if without:
        graph.meta["train_without"] = list(without)
    return graph


def evaluated(graph: Graph) -> Graph:
    """The graph, known to draw nothing.

    Raises:
        CaptureError: it has dropout that is on although the module was in evaluation mode.
    """
    node = next(filter(drops, graph.nodes), None)
    if node is not None:
        raise CaptureError(
            "the model drops at random even in evaluation",
            where=f"node {node.name!r} ({node.op})",
            do="capture it with train=True, and pass rng with each call",
        )
    return graph


def _drop_path(self: Any, hidden_states: torch.Tensor, *rest: Any) -> torch.Tensor:
    """Stochastic depth (https://arxiv.org/abs/1603.09382), as transformers' and timm's modules of this name have it."""
    if not self.drop_prob:
        return hidden_states
    ones = hidden_states.new_ones((hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1))
    return hidden_states * torch.nn.functional.dropout(ones, self.drop_prob, self.training)
