"""zoo.capture of modules that nobody has seen before: what they compute, how they are kept, and what is refused."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from modules import Arrays, expected, floats, seeded
from tolerances import TOLERANCES
from torch import nn

import zoo
from zoo.arrays import to_numpy
from zoo.capture.huggingface.each_image import COUNTS, any_number, each_by_itself
from zoo.capture.torch_export import ReadsValues, capture_program, export
from zoo.errors import CaptureError, ConfigError, FormatError, InputError, UnsupportedOp, ZooError
from zoo.graph import Graph
from zoo.model import GRAPH_FILE, Package

BACKENDS = ("numpy", "torch", "jax", "tensorflow", "keras", "native")


class InPlace(nn.Module):
    """An MLP that writes into what it has computed, and into a copy of what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 9), nn.Linear(9, 3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, 0] = 0.5
        x[:, 1:3] *= 2
        hidden = self.act(self.up(x))
        hidden += hidden.mean(-1, keepdim=True)
        hidden.mul_(0.5).clamp_(max=2.0)
        hidden[:, -1].add_(1)
        return self.down(hidden).tanh_()


class Writes(nn.Module):
    """Writes only into what nothing else sees; reads it before, in between and after, and takes a view at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act = nn.Linear(4, 6), nn.ReLU6(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.up(x)
        before = hidden.exp()
        activated = self.act(hidden)
        activated += before
        between = hidden.sum(-1, keepdim=True)
        hidden.mul_(between > 1)
        counts = torch.zeros_like(hidden)
        counts.index_put_((torch.arange(2), torch.tensor([1, 4])), hidden[0, :2] + 1)
        counts.masked_fill_(counts == 0, -1.0).clamp_(max=3)
        table = torch.zeros(x.shape[0], 5)
        table[:, 1:-1] = hidden[:, :3]
        table[0] = 2
        table[:, -1] += between[:, 0]
        return torch.cat([hidden, activated, before, counts, between, table], -1).view(-1)


class Promoted(nn.Module):
    """What is written into keeps its dtype, which the sum would not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = x.half()
        half += x.exp()
        return half * 2


class Seen(nn.Module):
    """A view that was taken before the write shows it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        row = y[0]
        y += 1
        return y + row


class Stale(nn.Module):
    """A part that was taken before another was written into, and is read after."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        part = y[:, :2]
        y[0, 1] = 7
        return part + y[:, 2:]


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.mean = nn.AvgPool2d(2, ceil_mode=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.stem(x))
        x = self.mean(x + torch.sigmoid(self.depthwise(x)))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Recurrent(nn.Module):
    """Unrolled when it is captured: its length is fixed, its batch is not."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.cells = kind(4, 5, batch_first=True, **options)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return self.cells(x)


class Mapping(nn.Module):
    """Returns a dict whose values are a tensor, a tuple, a list, a dict and None."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> dict[str, Any]:
        y = self.proj(x) * scale
        return {"logits": y, "layers": (x, y), "extra": {"list": [y.sum(-1)], "none": None}, "absent": None}


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return x.softmax(-1), {"largest": x.amax(-1), "where": x.argmax(-1)}


class Nested(nn.Module):
    """Takes a list and a dict."""

    def forward(self, pair: list[torch.Tensor], named: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([*pair, named["third"]], -1) * 2


class Buffers(nn.Module):
    """What a checkpoint holds, what it does not, a count, and a constant that is no buffer at all."""

    kept: torch.Tensor
    made: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
        self.register_buffer("kept", torch.linspace(0, 1, 4))
        self.register_buffer("made", torch.arange(4.0).sin(), persistent=False)
        self.register_buffer("steps", torch.tensor(7))
        self.table = torch.tensor([[1.0, -1.0, 0.5, 2.0]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear((x + self.kept) * self.made + self.table, self.weight) / self.steps


class Shared(nn.Module):
    """One array under three names, two of them used."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.middle = nn.Linear(6, 6)
        self.again = self.middle
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.again(torch.relu(self.middle(self.embedding(ids)))))


class Branching(nn.Module):
    """Another branch for long inputs, sizes in the arithmetic, and a loop over a list of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] > 5:
            x = x[:, -5:]
        for layer in self.layers:
            x = x + layer(x) / x.shape[1]
        batch, length, _ = x.shape
        x = x.reshape(batch * length, 4) + torch.arange(batch * length)[:, None]
        return x.view(batch, length, 4).transpose(1, 2).flatten(1)[:, : 2 * length]


class Names(nn.Module):
    """Arguments called what the graph calls its own values."""

    def forward(self, v0: torch.Tensor, v1: torch.Tensor, add: torch.Tensor) -> torch.Tensor:
        return (v0 - v1) * 2 + add.abs() - v0.exp()


class Selected(nn.Module):
    """Layers that each compute some of the rows, which a mask takes out and the same or another one puts back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        mask = which > 5
        result = torch.zeros_like(x)
        for chosen, layer in ((mask, self.first), (~mask, self.second)):
            rows = x[chosen]
            rows = layer(self.norm(rows)) * rows.softmax(-1) + rows.pow(2).mean(-1, keepdim=True)
            result[chosen] = rows.view(-1, 2, 2).transpose(1, 2).reshape(rows.shape[0], 4)
        result[mask] += self.first(result[mask])
        return result.masked_scatter(mask.flip(1)[..., None], torch.relu(x[mask]))


class Entities(nn.Module):
    def forward(self, input_ids: torch.Tensor, entity_ids: torch.Tensor) -> torch.Tensor:
        return torch.cat([input_ids, entity_ids], 1) * 0.5


def test_dims_that_differ_in_the_example_are_not_one() -> None:
    package = zoo.capture(Entities(), input_ids=ids(2, 6), entity_ids=ids(2, 3))
    assert [item.shape for item in package.graph.inputs] == [("batch", "sequence"), ("batch", "entity_ids_sequence")]
    inputs = {"input_ids": ids(3, 4), "entity_ids": ids(3, 7)}
    assert_outputs("numpy", package.load("numpy")(**inputs), Entities(), inputs)


class Counted(nn.Module):
    """Sizes that are lengths of tensors."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(len(x) * len(x[0]), 4).cumsum(0)
        return rows.view(len(x), -1) / len(x)


class Scanned(nn.Module):
    """States that follow from those before them, in both directions."""

    def forward(self, x: torch.Tensor, decay: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        def combine(left: Any, right: Any) -> Any:
            return left[0] * right[0], right[0] * left[1] + right[1]

        from torch._higher_order_ops.associative_scan import associative_scan  # where transformers takes it from

        forth = associative_scan(combine, (decay.sigmoid(), x), dim=1, combine_mode="generic")
        back = associative_scan(combine, (decay.sigmoid(), x), dim=1, reverse=True, combine_mode="generic")
        return forth[1], back[1]


def ids(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).integers(0, 11, shape)


# How to make a module, the example it is captured with, and other inputs it must take.
CASES: dict[str, tuple[Callable[[], nn.Module], Arrays, list[Arrays]]] = {
    "in place": (InPlace, {"x": floats(2, 4)}, [{"x": floats(5, 4)}, {"x": floats(1, 4)}]),
    "writes": (Writes, {"x": floats(3, 4)}, [{"x": floats(5, 4)}, {"x": floats(2, 4)}]),
    "stale": (Stale, {"x": floats(3, 4)}, [{"x": floats(5, 4)}]),
    "seen": (Seen, {"x": floats(3, 4)}, [{"x": floats(5, 2)}]),
    "convolutions": (
        Convolutions,
        {"x": floats(2, 3, 32, 40)},
        [{"x": floats(3, 3, 47, 33)}, {"x": floats(1, 3, 64, 64)}],
    ),
    "lstm": (
        lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
        {"x": floats(2, 3, 4)},
        [{"x": floats(5, 3, 4)}, {"x": floats(1, 3, 4)}],
    ),
    "gru": (lambda: Recurrent(nn.GRU), {"x": floats(2, 6, 4)}, [{"x": floats(7, 6, 4)}]),
    "mapping": (
        Mapping,
        {"x": floats(2, 3, 4), "scale": floats(4)},
        [{"x": floats(5, 7, 4), "scale": floats(4, seed=1)}],
    ),
    "pair": (Pair, {"x": floats(2, 3)}, [{"x": floats(4, 9)}]),
    "buffers": (Buffers, {"x": floats(2, 4)}, [{"x": floats(3, 4)}, {"x": floats(1, 4)}]),
    "shared": (Shared, {"ids": ids(2, 3)}, [{"ids": ids(4, 7)}, {"ids": ids(1, 1)}]),
    "long": (Branching, {"x": floats(2, 8, 4)}, [{"x": floats(3, 11, 4)}, {"x": floats(1, 6, 4)}]),
    "short": (Branching, {"x": floats(2, 3, 4)}, [{"x": floats(3, 5, 4)}, {"x": floats(1, 1, 4)}]),
    "selected": (
        Selected,
        {"x": floats(2, 6, 4), "which": ids(2, 6)},
        [{"x": floats(3, 5, 4), "which": ids(3, 5)}, {"x": floats(1, 3, 4), "which": np.zeros((1, 3), int)}],
    ),
    "scanned": (
        Scanned,
        {"x": floats(2, 6, 4), "decay": floats(2, 6, 4, seed=1)},
        [{"x": floats(3, n, 4), "decay": floats(3, n, 4, seed=1)} for n in (1, 2, 37)],
    ),
    "counted": (Counted, {"x": floats(2, 3, 4)}, [{"x": floats(5, 7, 4)}, {"x": floats(1, 1, 4)}]),
    "names": (
        Names,
        dict.fromkeys(("v0", "v1", "add"), floats(2, 3)),
        [dict.fromkeys(("v0", "v1", "add"), floats(3, 5))],
    ),
}

by_case = pytest.mark.parametrize("case", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in CASES])


@pytest.fixture(scope="module")
def made() -> Callable[[str], tuple[nn.Module, Package]]:
    """A case's module and its package, captured once."""
    kept: dict[str, tuple[nn.Module, Package]] = {}

    def make(case: str) -> tuple[nn.Module, Package]:
        if case not in kept:
            build, example, _ = CASES[case]
            module = seeded(build)
            kept[case] = module, zoo.capture(module, **example)
        return kept[case]

    return make


def assert_outputs(backend: str, got: dict[str, Any], module: nn.Module, inputs: Arrays) -> None:
    reference = expected(module, inputs)
    assert got.keys() == reference.keys()
    for name, array in reference.items():
        found = to_numpy(got[name])
        assert found.shape == array.shape, name
        if array.dtype.kind == "f":
            off = np.abs(found.astype(np.float64) - array).max()
            assert off <= TOLERANCES[backend, "float32"] * np.abs(array).max(), f"{name} is off by {off:.2g}"
        else:
            assert np.array_equal(found, array), name


@by_case
@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_are_those_of_the_module(made: Callable[..., Any], case: str, backend: str) -> None:
    """At the size of the example and at others, one model for all."""
    module, package = made(case)
    model = package.load(backend)
    for inputs in (CASES[case][1], *CASES[case][2]):
        assert_outputs(backend, model(**inputs), module, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_come_in_the_modules_order(made: Callable[..., Any], backend: str) -> None:
    module, package = made("mapping")
    inputs = CASES["mapping"][1]
    assert list(package.load(backend)(**inputs)) == list(expected(module, inputs))
    assert list(expected(module, inputs)) != sorted(expected(module, inputs))


@by_case
def test_a_saved_package_is_the_same_model(made: Callable[..., Any], case: str, tmp_path: Path) -> None:
    module, package = made(case)
    folder = package.save(tmp_path / "package")
    for backend in BACKENDS:
        model = zoo.load(folder, backend=backend)
        for inputs in (CASES[case][1], *CASES[case][2][:1]):
            assert_outputs(backend, model(**inputs), module, inputs)
    again = zoo.load(folder, backend="numpy").save(tmp_path / "again")
    assert {f.name: f.read_bytes() for f in again.iterdir()} == {f.name: f.read_bytes() for f in folder.iterdir()}


@by_case
def test_the_module_is_left_as_it_was(made: Callable[..., Any], case: str) -> None:
    """Captured in evaluation, whatever mode it is in; the mode, the weights and the example stay."""
    build, example, _ = CASES[case]
    for training in (True, False):
        module = seeded(build).train(training)
        state = copy.deepcopy(module.state_dict())
        given = {name: torch.from_numpy(array.copy()) for name, array in example.items()}
        package = zoo.capture(module, **given)
        assert module.training is training
        assert all(child.training is training for child in module.modules())
        assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
        assert all(np.array_equal(given[name].numpy(), array) for name, array in example.items())
        assert package.graph.nodes == made(case)[1].graph.nodes, "two captures of one module are one graph"
        assert package.graph.outputs == made(case)[1].graph.outputs


def test_a_submodule_in_a_mode_of_its_own_stays_in_it() -> None:
    """As batch norms do that are frozen while the rest is trained."""
    module = seeded(Convolutions).train()
    module.stem.eval()
    zoo.capture(module, x=floats(2, 3, 32, 40))
    assert module.training and not any(child.training for child in module.stem.modules())


def test_inputs_in_lists_and_dicts() -> None:
    """Each array has a name of its own: that of the argument and its place in it."""
    from zoo.capture.torch_export import capture_module

    pair, third = [torch.from_numpy(floats(2, 3)), torch.from_numpy(floats(2, 4))], torch.from_numpy(floats(2, 5))
    graph = capture_module(Nested().eval(), {"pair": pair, "named": {"third": third}})
    assert [item.name for item in graph.inputs] == ["pair.0", "pair.1", "named.third"]
    inputs = {"pair.0": floats(4, 3), "pair.1": floats(4, 4), "named.third": floats(4, 5)}
    for backend in BACKENDS:
        outputs = Package(graph, {}).load(backend)(**inputs)
        assert np.array_equal(to_numpy(outputs["output"]), 2 * np.concatenate(list(inputs.values()), -1))


def test_what_becomes_a_parameter(made: Callable[..., Any]) -> None:
    """The checkpoint's names, all of them and no others; what no checkpoint holds is a constant with its values."""
    module, package = made("buffers")
    graph: Graph = package.graph
    assert set(graph.params) == set(module.state_dict()) == {"weight", "kept", "steps"}
    assert {name for name, param in graph.params.items() if param.trainable} == {"weight"}
    constants = [array.ravel().tolist() for array in graph.constants.values()]
    assert sorted(constants) == sorted([module.made.tolist(), module.table[0].tolist()])
    assert graph.parameter_count() == 12


def test_shared_parameters_are_one(made: Callable[..., Any]) -> None:
    module, package = made("shared")
    graph: Graph = package.graph
    assert set(graph.params) == {"embedding.weight", "middle.weight", "middle.bias"}
    assert graph.params["embedding.weight"].aliases == ("head.weight",)
    assert graph.params["middle.weight"].aliases == ("again.weight",)
    assert graph.parameter_count() == sum(p.numel() for p in module.parameters())
    assert sorted(node.op for node, _ in graph.uses("embedding.weight")) == ["embedding", "linear"]
    assert set(package.arrays) == set(graph.params)


def test_a_shared_parameters_gradient_is_of_both_uses(made: Callable[..., Any]) -> None:
    import jax

    module, package = made("shared")
    model = package.load("jax")
    given = ids(4, 7)
    gradient = jax.grad(lambda params: (model.apply(params, ids=given)["output"] ** 2).mean())(model.params)
    exact = copy.deepcopy(module).double()
    (exact(torch.from_numpy(given)) ** 2).mean().backward()
    for name, parameter in exact.named_parameters():
        reference = parameter.grad.numpy()
        assert np.abs(gradient[name] - reference).max() <= TOLERANCES["jax", "float32"] * np.abs(reference).max()


def test_a_branch_on_a_size_bounds_that_size(made: Callable[..., Any]) -> None:
    """The branch that the example took is the graph; a size of the other branch is refused, not computed wrongly."""
    assert made("long")[1].graph.symbols["x_1"] == (6, None)
    assert made("short")[1].graph.symbols["x_1"] == (1, 5)
    for case, length in (("long", 5), ("short", 6)):
        for backend in BACKENDS:
            with pytest.raises(InputError, match="'x_1'"):
                made(case)[1].load(backend)(x=floats(2, length, 4))


def test_a_length_that_was_unrolled_is_fixed(made: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"dim 1(.|\n)*\[batch, 3, 4\](.|\n)*\[2, 5, 4\]"):
        made("lstm")[1].load("numpy")(x=floats(2, 5, 4))


def test_sizes_of_1_are_fixed_and_said_to_be() -> None:
    package = zoo.capture(Pair().eval(), x=floats(1, 3))
    assert package.graph.inputs[0].shape[0] == 1
    with pytest.raises(InputError, match="dim 0"):
        package.load("numpy")(x=floats(2, 3))


# Exported programs


def exported(module: nn.Module, inputs: Arrays) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=64)
    return torch.export.export(
        module,
        (),
        {name: torch.from_numpy(array) for name, array in inputs.items()},
        dynamic_shapes={name: {0: batch} for name in inputs},
    )


@pytest.mark.parametrize(
    ("build", "whole"), [(Writes, True), (Promoted, False), (Seen, False), (Stale, False), (InPlace, True)]
)
def test_what_nothing_else_sees_is_written_without_a_second_trace(
    build: Callable[[], nn.Module], whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = exported(seeded(build), {"x": floats(3, 4)})
    decomposed = []
    original = torch.export.ExportedProgram.run_decompositions
    monkeypatch.setattr(
        torch.export.ExportedProgram,
        "run_decompositions",
        lambda self, *args: decomposed.append(self) or original(self, *args),
    )
    graph = zoo.capture(program).graph
    assert bool(decomposed) != whole
    assert graph.nodes[-1].infos[0].dtype == ("float16" if build is Promoted else "float32")


@pytest.mark.parametrize("case", ["in place", "convolutions", "buffers"])
@pytest.mark.parametrize("stored", [False, True])
def test_exported_programs(made: Callable[..., Any], case: str, stored: bool, tmp_path: Path) -> None:
    """As torch made it, and as torch reads it from a .pt2 file."""
    module, (_, example, _) = made(case)[0], CASES[case]
    program = exported(module, example)
    if stored:
        torch.export.save(program, tmp_path / "model.pt2")
        program = torch.export.load(tmp_path / "model.pt2")
    package = zoo.capture(program)
    assert set(package.graph.params) == set(module.state_dict())
    assert package.graph.symbols["batch"] == (1, 64)
    other = {name: np.concatenate([array, array[:1] * 2]) for name, array in example.items()}
    for backend in BACKENDS:
        model = package.load(backend)
        for inputs in (example, other):
            assert_outputs(backend, model(**inputs), module, inputs)


def test_an_exported_programs_bounds_are_kept() -> None:
    package = zoo.capture(exported(Pair(), {"x": floats(2, 3)}))
    with pytest.raises(InputError, match=r"'batch'(.|\n)*1 to 64(.|\n)*65"):
        package.load("numpy")(x=floats(65, 3))


# What is refused


class OnValue(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x
        return -x


class LoopOnValue(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while x.abs().max() > 1:
            x = x / 2
        return x


class SizeOfValue(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(int(x.abs().max().item())) + x.sum()


class Item(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.mean().item()


class Raises(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("no such thing")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("module", "line"),
    [
        (OnValue(), "if x.sum() > 0:"),
        (LoopOnValue(), "while x.abs().max() > 1:"),
        (SizeOfValue(), "torch.zeros(int(x.abs().max().item()))"),
        (Item(), "x.mean().item()"),
        (Raises(), 'raise KeyError("no such thing")'),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_depends_on_values_is_refused_by_its_line(module: nn.Module, line: str) -> None:
    with pytest.raises(CaptureError) as caught:
        zoo.capture(module.train(), x=floats(3, 4))
    assert line in str(caught.value) and caught.value.do
    assert module.training, "the mode comes back after a failure, too"


def test_a_module_without_inputs_says_what_is_needed() -> None:
    with pytest.raises(CaptureError, match="example inputs"):
        zoo.capture(Pair())
    with pytest.raises(CaptureError, match=r"Pair(.|\n)*argument: 'x'"):
        zoo.capture(Pair(), y=floats(2, 3))


class Nonzero(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.nonzero(x > 0), x[x > 0]


class Sees(nn.Module):
    """Looks at one image after the other, and puts what it sees where the text has noughts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.patch, self.norm = nn.Embedding(9, 8), nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.heads, self.probe = nn.MultiheadAttention(8, 2, batch_first=True), nn.Parameter(torch.randn(1, 1, 8))

    def get_image_features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for image, (height, width) in zip(pixel_values, [(8, 12)] * len(pixel_values), strict=True):
            patches = self.norm(self.patch(image[None, :, :height, :width]).flatten(2).transpose(1, 2))
            heads = patches.unflatten(-1, (2, 4)).transpose(1, 2)
            causal = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
            attended = nn.functional.scaled_dot_product_attention(heads, heads, heads.exp(), causal)
            pooled, _ = self.heads(self.probe, patches, patches)
            found.append((attended.transpose(1, 2).flatten(2) + pooled)[0])
        return found

    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        features = torch.cat(self.get_image_features(pixel_values), dim=0)
        return self.embed(input_ids).masked_scatter((input_ids == 0)[..., None], features)


class Packs(nn.Module):
    """Takes images as rows of patches, four of each, and gives one row."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(5, 6)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        places = torch.arange(4.0)[:, None]
        return torch.cat([(self.proj(x) * places).softmax(0) for x in pixel_values.split(4)])[None]


class Compares(nn.Module):
    """Every image with every other."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return torch.stack([(pixel_values * x).sum(-1) for x in pixel_values])


def text_and_images(count: int) -> Arrays:
    text = np.tile(np.array([3, 0, 0, 0, 0, 0, 0, 5]), (count, 1))
    return {"input_ids": text, "pixel_values": floats(count, 3, 8, 12)}


def patches(count: int) -> Arrays:
    return {"pixel_values": floats(4 * count, 5)}


def rows(count: int) -> Arrays:
    return {"pixel_values": floats(count, 5)}


def of_any_number(module: nn.Module, made: Callable[[int], Arrays], apart: bool = True) -> Graph:
    """As zoo.capture.huggingface does for images whose sizes are fixed."""
    one, graphs = made(1), []
    for count in COUNTS:
        inputs = {name: torch.from_numpy(array) for name, array in made(count).items()}
        rows = {name: torch.from_numpy(array) for name, array in one.items()} if apart else inputs
        dims = {name: {} if name == "pixel_values" else {0: torch.export.Dim.AUTO} for name in inputs}
        with each_by_itself(module, rows, inputs, count):
            graphs.append(capture_program(export(module, inputs, dims)))
    return any_number(graphs, lambda name, axis, ndim: "images")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("module", "made"), [(Sees, text_and_images), (Packs, patches)])
def test_any_number_of_images(module: type[nn.Module], made: Callable[[int], Arrays], backend: str) -> None:
    torch.manual_seed(0)
    module = module().eval()
    params = {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}
    model = Package(of_any_number(module, made), params).load(backend)
    for count in (1, 2, 5):
        assert_outputs(backend, model(**made(count)), module, made(count))


def test_operations_on_images_stay_whole() -> None:
    counts = of_any_number(Sees().eval(), text_and_images).op_counts()
    assert (counts["conv2d"], counts["layer_norm"], counts["scaled_dot_product_attention"]) == (1, 1, 2)


def test_images_that_depend_on_each_other_are_refused() -> None:
    with pytest.raises(CaptureError, match="not that of each"):
        of_any_number(Compares(), rows)


def test_a_loop_over_images_is_of_their_number() -> None:
    with pytest.raises(CaptureError, match="does not do the same for each image"):
        of_any_number(Sees().eval(), text_and_images, apart=False)


class Averaged(nn.Module):
    """What it selects goes back, and is seen by more than its own row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x[x[:, 0] > 0]
        return x.masked_scatter(x[:, :1] > 0, rows - rows.mean(0))


class Unique(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.unique(x)


@pytest.fixture(scope="module")
def nonzero() -> Package:
    return zoo.capture(Nonzero(), x=floats(3, 4))


@pytest.mark.xdist_group("nonzero")
@pytest.mark.parametrize("backend", BACKENDS)
def test_results_whose_size_depends_on_values(nonzero: Package, backend: str) -> None:
    model = nonzero.load(backend)
    for inputs in ({"x": floats(3, 4)}, {"x": floats(5, 7)}, {"x": -np.ones((2, 2), np.float32)}):
        where, values = (to_numpy(x) for x in model(**inputs).values())
        assert np.array_equal(where, np.argwhere(inputs["x"] > 0))
        assert np.array_equal(values, inputs["x"][inputs["x"] > 0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mean_of_what_a_mask_selects(backend: str) -> None:
    model = zoo.capture(Averaged(), x=floats(3, 4)).load(backend)
    for x in (floats(3, 4), floats(2, 5)):
        assert_outputs(backend, model(x=x), Averaged(), {"x": x})


class Counted(nn.Module):
    """Takes as many rows as the largest of numbers that it counted itself says, one fewer than there are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.arange(x.shape[1])[None].repeat(x.shape[0], 1)
        return x.mean(1, keepdim=True).repeat(1, places.max(), 1) - x[:, 1:]


class Parts(nn.Module):
    """Drops the rows that are all zero, and sums the rest in parts as long as it counted them."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        kept = (x != 0).any(-1)
        return tuple(part.sum(0) for part in x[kept].split(kept.sum(1).tolist()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_largest_of_counted_numbers_is_a_size(backend: str) -> None:
    model = zoo.capture(Counted(), x=floats(2, 3, 4)).load(backend)
    for inputs in ({"x": floats(2, 3, 4)}, {"x": floats(5, 7, 4)}):
        assert_outputs(backend, model(**inputs), Counted(), inputs)


@pytest.fixture(scope="module")
def parts() -> Package:
    program = export(Parts(), {"x": torch.from_numpy(floats(2, 5, 4))})
    with pytest.raises(ReadsValues, match=r"kept\.sum\(1\)\.tolist\(\)"):
        capture_program(program)
    return Package(capture_program(program, reading=True), {})


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_that_are_read_can_be_sizes(parts: Package, backend: str) -> None:
    model = parts.load(backend)
    for empty in (0, 2):
        x = floats(2, 5, 4)
        x[1, 3 - empty : 3] = 0
        assert_outputs(backend, model(x=x), Parts(), {"x": x})


def test_a_jit_of_the_callers_cannot_read_sizes(nonzero: Package, parts: Package) -> None:
    import jax

    for package, inputs in ((nonzero, {"x": floats(3, 4)}), (parts, {"x": floats(2, 5, 4)})):
        model = package.load("jax")
        with pytest.raises(UnsupportedOp, match=r"depends on the data(.*\n)*.*outside of jax\.jit"):
            jax.jit(model.apply)(model.params, **inputs)


def test_an_operation_that_no_table_has() -> None:
    with pytest.raises(CaptureError, match="_unique2"):
        zoo.capture(Unique(), x=floats(3, 4))


# Packages


def test_a_package_of_a_config_has_no_weights(made: Callable[..., Any], tmp_path: Path) -> None:
    package = Package(made("pair")[1].graph)
    for action in (lambda: package.save(tmp_path / "p"), lambda: package.load("numpy")):
        with pytest.raises(ConfigError, match="no weights"):
            action()
    assert not list(tmp_path.iterdir())


def test_a_damaged_package_is_refused(made: Callable[..., Any], tmp_path: Path) -> None:
    folder = made("buffers")[1].save(tmp_path / "package")
    whole = (folder / GRAPH_FILE).read_bytes()
    (folder / GRAPH_FILE).write_bytes(whole[:-20])
    with pytest.raises(FormatError, match=GRAPH_FILE):
        zoo.load(folder, backend="numpy")
    (folder / GRAPH_FILE).write_bytes(whole)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ZooError, match="package"):
        zoo.load(folder, backend="numpy")


@pytest.mark.parametrize("backend", ["numpy", "jax", "tensorflow"])
def test_a_package_needs_no_torch(made: Callable[..., Any], backend: str, tmp_path: Path) -> None:
    """Nor transformers, nor any other framework than the backend's own: importing one is an error there."""
    module, package = made("convolutions")
    package.save(tmp_path / "package")
    inputs = CASES["convolutions"][2][0]
    np.savez(tmp_path / "inputs.npz", **inputs)
    absent = {"torch", "transformers", "jax", "tensorflow", "keras"} - {backend}
    absent -= {"keras"} if backend == "tensorflow" else set()  # tensorflow imports it
    script = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"{{name}} is not here", name=name)

sys.meta_path.insert(0, Refuse())
import numpy as np
import zoo

model = zoo.load("package", backend={backend!r})
outputs = model(**np.load("inputs.npz"))
np.savez("outputs.npz", **{{name: np.asarray(value) for name, value in outputs.items()}})
assert not {absent!r} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(tmp_path / "outputs.npz") as outputs:
        assert_outputs(backend, dict(outputs), module, inputs)
