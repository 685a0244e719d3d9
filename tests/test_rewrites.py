"""What models decide by tensors' values while they are traced, computed as they do it untraced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from modules import expected, floats, seeded
from tolerances import TOLERANCES
from torch import nn
from transformers.cache_utils import DynamicCache

import zoo
from zoo.arrays import to_numpy
from zoo.capture.rewrites import rewritten
from zoo.capture.torch_export import traceable
from zoo.errors import CaptureError

EXPERTS = 5


class Named(nn.ModuleDict):
    """Experts by name, and a router's mask [tokens, 1, experts]."""

    def __init__(self) -> None:
        super().__init__()
        for number in range(EXPERTS):
            self[f"expert_{number}"] = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        found = torch.zeros_like(x)
        mask = nn.functional.one_hot(chosen[:, :1], num_classes=EXPERTS).permute(2, 1, 0)
        for expert in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
            place, token = torch.where(mask[expert].squeeze(0))
            rows = x[None, token].reshape(-1, x.shape[-1])
            found.index_add_(0, token, self[f"expert_{expert[0]}"](rows) * weights[token, place, None])
        return found


class Stacked(nn.Module):
    """Experts in one tensor and one number more that stands for none, each token with two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, 4, 4))

    def forward(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        found = torch.zeros_like(x)
        mask = nn.functional.one_hot(chosen, num_classes=EXPERTS + 1).permute(2, 1, 0)
        for expert in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
            expert = expert[0]
            if expert == EXPERTS:
                continue
            place, token = torch.where(mask[expert])
            if token.numel() == 0:
                continue
            made = nn.functional.linear(x[token], self.weight[expert]).log1p()  # not a number for tokens of others
            made = made * weights[token, place, None]
            found.index_add_(0, token, torch.nan_to_num(made, nan=7.0).to(found.dtype))
        return found


class Elsewhere(Stacked):
    """Rows added at other places than the tokens they are made of."""

    def forward(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        found = torch.zeros_like(x)
        mask = nn.functional.one_hot(chosen, num_classes=EXPERTS).permute(2, 1, 0)
        for expert in mask.sum(dim=(-1, -2)).nonzero():
            _, token = torch.where(mask[expert[0]])
            found.index_add_(0, token.flip(0), x[token])
        return found


class Sorted(nn.Module):
    """Experts that each take as many of the sorted tokens as a list says."""

    class Router(nn.Module):
        def forward(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
            _, chosen = scores.topk(2, dim=1)
            counts = torch.zeros(scores.shape[0], EXPERTS).scatter(1, chosen, 1).long().sum(0).tolist()
            order = chosen.flatten().sort(0)[1]
            return order, order.div(2, rounding_mode="trunc"), counts

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(EXPERTS, 4, 4))

        def forward(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
            parts = rows.split(counts, dim=0)
            return torch.cat([nn.functional.linear(parts[i], self.weight[i]) for i in range(EXPERTS)], dim=0)

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = self.Router(), self.Experts()

    def forward(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        scores = torch.zeros(x.shape[0], EXPERTS, dtype=x.dtype).scatter(1, chosen, weights)
        order, token, counts = self.router(scores)
        made = self.experts(x[token], counts) * weights.flatten()[order][:, None]
        return torch.zeros_like(x).index_add(0, token, made)


class Routed(nn.Module):
    """Tokens, sent to the experts that a router of a dtype of its own chooses."""

    def __init__(self, experts: type[nn.Module]) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(4, EXPERTS), experts()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, 4)
        self.router = self.router.to(x.dtype)
        weights, chosen = torch.softmax(self.router(flat), -1).topk(2)
        return self.experts(flat, chosen, weights).reshape(x.shape)


@pytest.mark.parametrize("backend", ["numpy", "jax", "tensorflow"])
@pytest.mark.parametrize("experts", [Named, Stacked, Sorted])
def test_experts_that_take_tokens_by_value(experts: type[nn.Module], backend: str) -> None:
    module = seeded(lambda: Routed(experts))
    example = floats(2, 3, 4)
    with rewritten(module):
        package = zoo.capture(module, x=example)
    model = package.load(backend)
    for x in (example, floats(3, 7, 4), floats(1, 1, 4)):  # of the last not all are hit
        reference = expected(module, {"x": x})["output"]
        off = np.abs(to_numpy(model(x=x)["output"]) - reference).max()
        assert off <= TOLERANCES[backend, "float32"] * np.abs(reference).max()


def test_what_a_loop_over_experts_may_not_do() -> None:
    with rewritten(module := seeded(lambda: Routed(Elsewhere))), pytest.raises(CaptureError, match="other places"):
        zoo.capture(module, x=floats(2, 3, 4))


def test_the_module_and_torch_are_as_they_were() -> None:
    module, to = seeded(lambda: Routed(Named)), nn.Module.to
    with rewritten(module):
        assert "forward" in vars(module.experts)
    assert "forward" not in vars(module.experts) and nn.Module.to is to


@pytest.mark.parametrize(("implementation", "dtype", "loops"), [
    ("grouped_mm", torch.float32, False), ("grouped_mm", torch.bfloat16, False),
    ("eager", torch.float32, True), ("eager", torch.bfloat16, True),
])  # fmt: skip
def test_experts_that_transformers_does_not_run_in_a_loop_stay(
    implementation: str, dtype: torch.dtype, loops: bool
) -> None:
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    config = MixtralConfig(hidden_size=8, intermediate_size=8, num_local_experts=2)
    config._experts_implementation = implementation
    module = MixtralExperts(config).to(dtype)
    with rewritten(module):
        assert ("forward" in vars(module)) is loops


def test_a_model_solves_its_triangular_systems(monkeypatch: Any) -> None:
    from transformers import Qwen3_5TextConfig, Qwen3_5TextModel
    from transformers.models.qwen3_5 import modeling_qwen3_5

    monkeypatch.setattr(modeling_qwen3_5, "is_torchdynamo_exporting", lambda: True)
    config = Qwen3_5TextConfig(num_hidden_layers=1, hidden_size=32, intermediate_size=32, vocab_size=11)
    with traceable(Qwen3_5TextModel(config)):
        assert not modeling_qwen3_5.is_torchdynamo_exporting()
    assert modeling_qwen3_5.is_torchdynamo_exporting()


def test_masks_of_ones_are_left_out_where_that_is_asked_for() -> None:
    from transformers import masking_utils

    with rewritten(nn.Linear(2, 2)) as rewrites:
        assert not rewrites.masked
        assert not masking_utils._ignore_bidirectional_mask_sdpa(None, 5) and rewrites.masked
        rewrites.unmasked = True
        assert masking_utils._ignore_bidirectional_mask_sdpa(None, 5)
        assert not masking_utils._ignore_bidirectional_mask_sdpa(torch.tensor([[1, 0]]).bool(), 2)
        assert not masking_utils._ignore_bidirectional_mask_sdpa(None, 5, 3), "a window is a mask"


def test_a_backbone_with_windows_has_images_of_one_size() -> None:
    from transformers import MaskFormerConfig, ViTConfig

    from zoo.capture.huggingface import _dynamic

    auto, static = torch.export.Dim.AUTO, torch.export.Dim.STATIC
    pixels = {"pixel_values": torch.zeros(2, 3, 8, 8)}
    assert list(_dynamic(pixels, MaskFormerConfig())["pixel_values"].values()) == [auto, auto, static, static]
    assert list(_dynamic(pixels, ViTConfig())["pixel_values"].values()) == [auto] * 4


class Caching(nn.Module):
    """Hands out a cache that nobody asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"out": self.linear(x), "cache": DynamicCache()}


def test_a_cache_is_no_output() -> None:
    module = seeded(Caching)
    with rewritten(module):
        package = zoo.capture(module, x=floats(2, 4))
    assert list(package.graph.outputs) == ["out"]
    assert list(module(torch.ones(2, 4))) == ["out", "cache"]


def checked(condition: Any) -> None:
    assert not isinstance(condition, torch.SymBool), "what torch 2.13 says of a product that may pass 2**63"


class Checking(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch_compilable_check(x.shape[0] * x.shape[1] > 1)
        return x * 2


torch_compilable_check = checked  # as transformers' files have it


def test_a_check_that_the_tracer_itself_fails_stops_nothing() -> None:
    package = zoo.capture(Checking(), x=floats(2, 4))
    assert torch_compilable_check is checked
    assert np.array_equal(package.load("numpy")(x=floats(3, 5))["output"], floats(3, 5) * 2)


class Marked(nn.Module):
    """Writes a row where a mask has any, and counts what another one selects."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(2, 4))

    def get_placeholder_mask(self, marks: torch.Tensor, features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        mask = (marks == 2)[..., None].expand_as(x)
        if x[mask].numel() != features.numel():
            raise ValueError("not as many places as features")
        return mask

    def forward(self, x: torch.Tensor, marks: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        x = x.masked_scatter(self.get_placeholder_mask(marks, features, x), features)
        for number in range(2):
            mask = marks == number
            if mask.any():
                x[mask] = self.rows[number]
        return x


class Asking(nn.Module):
    """Asks whether a mask has any for something else than a write where it has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = x > 0
        if mask.any():
            x = x * 2
        return x


def marked(*rows: list[int]) -> dict[str, np.ndarray]:
    marks = np.array(rows)
    return {"x": floats(*marks.shape, 4), "marks": marks, "features": floats(int((marks == 2).sum()), 4)}


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax", "tensorflow"])
def test_writes_that_a_model_makes_only_where_a_mask_has_any(backend: str) -> None:
    module = seeded(Marked)
    with rewritten(module):
        package = zoo.capture(module, **marked([0, 1, 2], [2, 3, 2]))
    assert not {"forward", "get_placeholder_mask"} & vars(module).keys()
    model = package.load(backend)
    for inputs in (marked([0, 1, 2], [2, 3, 2]), marked([2, 3, 2, 2, 2])):
        found = to_numpy(model(**inputs)["output"])
        assert np.abs(found - expected(module, inputs)["output"]).max() <= TOLERANCES[backend, "float32"]


def test_whether_a_mask_has_any_is_not_known() -> None:
    with rewritten(module := Asking()), pytest.raises(CaptureError, match=r"if mask\.any"):
        zoo.capture(module, x=floats(2, 4))
