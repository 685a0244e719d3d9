"""One spelling for attention, GELU and rows of tokens: what is written in another becomes it, and only that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tolerances import TOLERANCES

import zoo
from zoo.backends import get_backend, native
from zoo.graph.passes.canonicalize import canonicalized
from zoo.graph.passes.fuse import fused

HEADS, WIDTH, LENGTH = 3, 5, 7
LOWEST = torch.finfo(torch.float32).min


class Forward(torch.nn.Module):
    """A function with parameters: what it is given besides its inputs."""

    def __init__(self, function: Callable[..., Any], **parameters: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        self.names = tuple(parameters)
        for name, value in parameters.items():
            setattr(self, name, torch.nn.Parameter(value))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        return self.function(x, y, *(getattr(self, name) for name in self.names))


def capture_of(function: Callable[..., Any], *shape: int, **parameters: torch.Tensor) -> Any:
    torch.manual_seed(0)
    x, y = torch.randn(2, *shape), torch.randn(2, *shape)
    return zoo.capture(Forward(function, **parameters).eval(), x=x, y=y)


def right(model: Any, *shape: int) -> None:
    """The engine computes what NumPy does in float64, at another size, too."""
    rng = np.random.default_rng(1)
    for batch in (2, 3):
        feed = {name: rng.standard_normal((batch, *shape)).astype(np.float32) for name in "xy"}
        params = {name: np.asarray(array) for name, array in model.arrays.items()}
        truth = get_backend("numpy").compile_graph(model.graph)(params, feed)
        got = native.compile_graph(model.graph)(params, feed)
        for name, expected in truth.items():
            assert got[name].shape == expected.shape
            assert np.abs(got[name] - expected).max() <= TOLERANCES["native", "float32"] * np.abs(expected).max()


def counts(model: Any) -> dict[str, int]:
    return {op.partition(".")[0]: n for op, n in canonicalized(model.graph).op_counts().items()}


# --- attention ---


def _mask(y: torch.Tensor) -> torch.Tensor:
    """[batch, 1, sequence, sequence], some keys hidden for all queries, never the first."""
    return (y[:, :1, :, 0] > -0.5)[:, :, None, :] | (torch.arange(y.shape[2]) == 0)


def _added(x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    scores = x @ y.transpose(-1, -2) / math.sqrt(WIDTH)
    scores = scores + bias
    scores = scores + torch.where(_mask(y), 0.0, LOWEST)
    return scores.softmax(-1) @ y


def _where(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    scores = torch.where(_mask(y), x @ y.mT * 0.3, LOWEST)
    return torch.nn.functional.softmax(scores, dim=-1, dtype=torch.float32) @ y


def _where_not(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.where(~_mask(y), -math.inf, (0.3 * x) @ y.mT).softmax(-1) @ y


def _turned_keys(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    keys = (y + 1).permute(0, 1, 3, 2)
    return (x @ keys).softmax(-1) @ y


def _two_layers(x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return _added(_added(x, y, bias), y, bias)


BIAS = torch.randn(HEADS, LENGTH, LENGTH, generator=torch.Generator().manual_seed(0))
ATTENTION = {_added: (1, 1), _where: (1, 0), _where_not: (1, 0), _turned_keys: (1, 0), _two_layers: (2, 1)}
"""Function -> how many attentions it has, and how many sums make their masks."""


@pytest.mark.parametrize("function", ATTENTION, ids=lambda f: f.__name__)
def test_attention_that_is_written_out(function: Callable[..., Any]) -> None:
    parameters = {"bias": BIAS} if function in (_added, _two_layers) else {}
    model = capture_of(function, HEADS, LENGTH, WIDTH, **parameters)
    attentions, sums = ATTENTION[function]
    found = counts(model)
    assert found["scaled_dot_product_attention"] == attentions
    assert found.get("add", 0) == sums + (function is _turned_keys)
    assert not {"softmax", "_softmax", "matmul", "div"} & found.keys()
    right(model, HEADS, LENGTH, WIDTH)


def _shown(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weights = (x @ y.mT).softmax(-1)
    return weights @ y, weights


def _capped(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x @ y.mT).tanh().softmax(-1) @ y


def _scaled_after(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((x @ y.mT + _mask(y).float()) * 0.5).softmax(-1) @ y


def _zeros(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.where(_mask(y), x @ y.mT, 0.0).softmax(-1) @ y


def _over_queries(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x @ y.mT).softmax(-2) @ y


@pytest.mark.parametrize("function", [_shown, _capped, _scaled_after, _zeros, _over_queries], ids=lambda f: f.__name__)
def test_what_is_no_attention_stays(function: Callable[..., Any]) -> None:
    model = capture_of(function, HEADS, LENGTH, WIDTH)
    assert "scaled_dot_product_attention" not in counts(model)
    right(model, HEADS, LENGTH, WIDTH)


# --- GELU ---


def _tanh(x: torch.Tensor, y: torch.Tensor, factor: float = math.sqrt(2 / math.pi)) -> torch.Tensor:
    return 0.5 * x * (1.0 + torch.tanh(factor * (x + 0.044715 * torch.pow(x, 3.0)))) + y


def _erf(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))) + y


@pytest.mark.parametrize("function", [_tanh, _erf], ids=lambda f: f.__name__)
def test_gelu_that_is_written_out(function: Callable[..., Any]) -> None:
    model = capture_of(function, 4)
    assert counts(model) == {"gelu": 1, "add": 1}
    right(model, 4)


def _another_factor(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return _tanh(x, y, 0.8)


def _of_another(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 0.5 * y * (1.0 + torch.erf(x / math.sqrt(2.0)))


def _seen_within(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    curve = torch.erf(x / math.sqrt(2.0))
    return x * 0.5 * (1.0 + curve) + curve


@pytest.mark.parametrize("function", [_another_factor, _of_another, _seen_within], ids=lambda f: f.__name__)
def test_what_is_no_gelu_stays(function: Callable[..., Any]) -> None:
    model = capture_of(function, 4)
    assert "gelu" not in counts(model)
    right(model, 4)


# --- rows of tokens ---


def _layers(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Iterator[torch.Tensor]:
    """Rows of a layer of GPT-2's kind, and of another with what was before added."""
    rows = x.view(-1, x.shape[-1])
    yield torch.addmm(bias, rows, weight)
    yield rows + torch.nn.functional.gelu(torch.addmm(bias, rows, weight)) @ weight.T


def _back(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    first, second = _layers(x, y, weight, bias)
    return first.view(*x.shape[:2], -1) @ weight.T + second.view(x.shape) * y


def _one_stays(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
    first, second = _layers(x, y, weight, bias)
    return first.sum(0), second.view(x.shape), second.amax(0)


def _all_stay(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(_layers(x, y, weight, bias))


@pytest.mark.parametrize("function, views", [(_back, 0), (_one_stays, 2), (_all_stay, 1)], ids=["all", "some", "none"])
def test_layers_over_rows_of_tokens(function: Callable[..., Any], views: int) -> None:
    """They need no view any more; what else needs rows has one."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(4, 6, generator=generator), torch.randn(6, generator=generator)
    model = capture_of(function, 5, 4, weight=weight, bias=bias)
    assert counts(model).get("view", 0) == views
    assert fused(canonicalized(model.graph)).op_counts()["native::linear"] == 1  # the other's weight is computed
    right(model, 5, 4)
