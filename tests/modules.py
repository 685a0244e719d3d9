"""Modules with drawn weights, and what they give in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["Arrays", "expected", "floats", "seeded"]

Arrays = dict[str, np.ndarray]


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """The module with all its numbers drawn: batch norms that have seen something, and no zeros."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build()
        with torch.no_grad():
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                if "running" in name or name.endswith("bias"):
                    tensor.uniform_(0.5, 1.5)
    return module.eval()


def expected(module: nn.Module, inputs: Arrays, exact: bool = True) -> Arrays:
    """What the module itself gives, in float64 unless not `exact`, by the names that a graph has for its outputs."""
    given = {name: torch.from_numpy(array) for name, array in inputs.items()}
    if exact:
        module = copy.deepcopy(module).double()
        for part in module.modules():  # tensors that are neither parameters nor buffers
            for name, value in vars(part).items():
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    setattr(part, name, value.double())
        given = {name: x.double() if x.is_floating_point() else x for name, x in given.items()}
    with torch.no_grad():
        result = module(**given)
    return _flat(result, "" if isinstance(result, dict) else "output")


def _flat(tree: Any, path: str) -> Arrays:
    if tree is None:
        return {}
    if isinstance(tree, torch.Tensor):
        return {path: tree.numpy()}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {k: v for key, item in items for k, v in _flat(item, f"{path}.{key}" if path else str(key)).items()}
