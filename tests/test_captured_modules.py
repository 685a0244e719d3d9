"""What a module's weights become when it is captured: parameters by identity, and a copy of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from tolerances import TOLERANCES
from torch import nn

import zoo
from zoo.arrays import to_numpy
from zoo.errors import CaptureError, WeightsError

BACKENDS = ("numpy", "torch", "jax", "tensorflow", "keras", "native")
X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def outputs(model: Any, **inputs: Any) -> np.ndarray:
    return to_numpy(next(iter(model(**inputs).values()))).astype(np.float64)


def truth(module: nn.Module, *inputs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found = module(*(torch.from_numpy(x) for x in inputs))
    return to_numpy(found).astype(np.float64)


def assert_same(found: np.ndarray, expected: np.ndarray, backend: str) -> None:
    assert np.abs(found - expected).max() <= TOLERANCES[backend, "float32"] * np.abs(expected).max()


class Linear(nn.Module):
    """x @ w + b, where `kept` says where w is found."""

    def __init__(self, keep: Callable[[Any], None]) -> None:
        super().__init__()
        self.own = nn.Linear(4, 4)
        keep(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.own(x) @ self.kept()


def _by_data(self: Any) -> None:
    self.alias = self.own.weight.data
    self.kept = lambda: self.alias


def _by_list(self: Any) -> None:
    self.all = [self.own.weight]
    self.kept = lambda: self.all[0]


def _by_closure(self: Any) -> None:
    weight = self.own.weight
    self.kept = lambda: weight


def _by_buffer(self: Any) -> None:
    self.register_buffer("alias", self.own.weight.data, persistent=False)
    self.kept = lambda: self.alias


def _by_second_parameter(self: Any) -> None:
    self.second = nn.Parameter(self.own.weight.data)
    self.kept = lambda: self.second


@pytest.mark.parametrize("keep", [_by_data, _by_list, _by_closure, _by_buffer, _by_second_parameter])
def test_a_constant_that_is_a_parameter_is_that_parameter(keep: Callable[[Any], None]) -> None:
    module = Linear(keep).eval()
    package = zoo.capture(module, x=torch.from_numpy(X))
    (weight,) = [p for p in package.graph.params.values() if p.name != "own.bias"]
    assert "own.weight" in (weight.name, *weight.aliases)
    assert not package.graph.constants
    assert_same(outputs(package.load("numpy"), x=X), truth(module, X), "numpy")
    other = np.eye(4, dtype=np.float32)  # both uses are of what stands under the name
    changed = zoo.Package(package.graph, {**(package.arrays or {}), weight.name: other})
    with torch.no_grad():
        module.own.weight.copy_(torch.from_numpy(other))
    assert_same(outputs(changed.load("numpy"), x=X), truth(module, X), "numpy")


def _list_of_modules(self: Any) -> None:
    self.parts = [nn.Linear(4, 4)]
    self.kept = lambda: self.parts[0].weight


def _dict(self: Any) -> None:
    self.parts = {"w": nn.Parameter(torch.randn(4, 4))}
    self.kept = lambda: self.parts["w"]


def _tensor(self: Any) -> None:
    self.w = torch.randn(4, 4, requires_grad=True)
    self.kept = lambda: self.w


def _closure(self: Any) -> None:
    w = nn.Parameter(torch.randn(4, 4))
    self.kept = lambda: w


def _view(self: Any) -> None:
    self.part = self.own.weight.detach().t()
    self.kept = lambda: self.part


def _computed(self: Any) -> None:
    self.part = self.own.weight * 2
    self.kept = lambda: self.part


@pytest.mark.parametrize(
    "keep, where",
    [
        (_list_of_modules, r"parts\[0\].weight"),
        (_dict, r"parts\['w'\]"),
        (_tensor, "w"),
        (_closure, r"\[4, 4\]"),
        (_view, "part"),
        (_computed, "part"),
    ],
)
def test_what_can_be_trained_and_is_no_parameter_is_refused(keep: Callable[[Any], None], where: str) -> None:
    with pytest.raises(CaptureError, match=where):
        zoo.capture(Linear(keep).eval(), x=torch.from_numpy(X))


def test_frozen_tensors_of_no_module_stay_constants() -> None:
    def keep(self: Any) -> None:
        self.parts = [nn.Linear(4, 4).requires_grad_(False)]
        self.kept = lambda: self.parts[0].weight

    module = Linear(keep).eval()
    package = zoo.capture(module, x=torch.from_numpy(X))
    assert len(package.graph.constants) == 1
    assert_same(outputs(package.load("jax"), x=X), truth(module, X), "jax")


def test_reparametrised_weights_are_the_parts_that_train() -> None:
    for module in (
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)),
    ):
        package = zoo.capture(module.eval(), input=torch.from_numpy(X))
        assert {p.name for p in package.graph.params.values() if p.trainable} == {
            n for n, _ in module.named_parameters()
        }
        assert_same(outputs(package.load("native"), input=X), truth(module, X), "native")


def test_one_tensor_for_two_inputs_is_two_inputs() -> None:
    class Difference(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return 2 * x - y

    x = torch.from_numpy(X)
    model = zoo.capture(Difference(), x=x, y=x).load("numpy")
    assert np.array_equal(outputs(model, x=X, y=np.ones_like(X)), 2 * X.astype(np.float64) - 1)


_KERAS = """
import sys
import numpy as np, torch, keras, zoo
from torch import nn
x = np.random.default_rng(0).standard_normal((3, 4)).astype("float32")
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5), keras.layers.BatchNormalization(),
                          keras.layers.Dropout(0.1), keras.layers.Dense(2)])
model.layers[0].trainable = False
class Inside(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = model
    def forward(self, inputs):
        return self.part(inputs)
for module in (model, Inside()):
    package = zoo.capture(module, inputs=torch.from_numpy(x))
    assert not [c for c in package.graph.constants.values() if c.size > 1], package.graph.constants.keys()
    trained = {p.name.rpartition(".")[2] for p in package.graph.params.values() if p.trainable}
    assert trained == {v.path for v in model.trainable_variables}, trained
    expected = keras.ops.convert_to_numpy(model(x))
    np.save(sys.argv[1], expected)
    for backend in ("numpy", "jax", "torch"):
        found = np.asarray(package.load(backend)(inputs=x)["output"].detach() if backend == "torch"
                           else package.load(backend)(inputs=x)["output"])
        assert np.abs(found - expected).max() <= float(sys.argv[2]) * np.abs(expected).max(), backend
    zeroed = zoo.Package(package.graph, {n: np.zeros_like(a) for n, a in package.arrays.items()})
    assert not zeroed.load("numpy")(inputs=x)["output"].any()
"""


def test_a_keras_model_on_torch_is_captured_with_its_parameters(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _KERAS, str(tmp_path / "y.npy"), str(TOLERANCES["keras", "float32"])],
        check=True,
        env={**os.environ, "KERAS_BACKEND": "torch"},
    )


class TestSnapshot:
    """Neither the module nor any model of a package reaches the weights of another."""

    @pytest.fixture
    def module(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.BatchNorm1d(64), nn.Linear(64, 8)).eval()

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_training_the_module_moves_nothing(self, module: nn.Module, backend: str) -> None:
        package = zoo.capture(module, input=torch.from_numpy(X))
        model, before = package.load(backend), truth(module, X)
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.mul_(3) if tensor.is_floating_point() else tensor.add_(1)
        assert_same(outputs(model, input=X), before, backend)
        assert_same(outputs(package.load(backend), input=X), before, backend)

    def test_training_a_torch_model_moves_nothing_else(self, module: nn.Module) -> None:
        package = zoo.capture(module, input=torch.from_numpy(X))
        others = {backend: package.load(backend) for backend in BACKENDS}
        model, before = package.load("torch"), truth(module, X)
        with torch.no_grad():
            for tensor in model.params.values():
                tensor.mul_(3) if tensor.is_floating_point() else tensor.add_(1)
        assert np.abs(outputs(model, input=X) - before).max() > 0.1
        assert np.array_equal(truth(module, X), before)
        for backend, other in others.items():
            assert_same(outputs(other, input=X), before, backend)
        assert_same(outputs(package.load("torch"), input=X), before, "torch")

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_arrays_handed_to_a_package_stay_the_callers(self, module: nn.Module, backend: str) -> None:
        package = zoo.capture(module, input=torch.from_numpy(X))
        arrays = {name: np.array(array) for name, array in (package.arrays or {}).items()}
        model = zoo.Package(package.graph, arrays).load(backend)
        for array in arrays.values():
            array[...] = 0
        assert_same(outputs(model, input=X), truth(module, X), backend)

    def test_an_exported_program_is_copied(self, module: nn.Module) -> None:
        program = torch.export.export(module, (torch.from_numpy(X),))
        package, before = zoo.capture(program), truth(module, X)
        with torch.no_grad():
            for tensor in program.parameters():
                tensor.zero_()
        assert_same(outputs(package.load("numpy"), input=X), before, "numpy")

    def test_loaded_files_are_mapped_by_each_model_for_itself(self, module: nn.Module, tmp_path: Path) -> None:
        zoo.capture(module, input=torch.from_numpy(X)).save(tmp_path / "p")
        first, second = zoo.load(tmp_path / "p", "torch"), zoo.load(tmp_path / "p", "torch")
        package = zoo.capture(module, input=torch.from_numpy(X))
        with torch.no_grad():
            for tensor in first.params.values():
                tensor.zero_()
        assert_same(outputs(second, input=X), truth(module, X), "torch")
        assert_same(outputs(package.load("torch"), input=X), truth(module, X), "torch")
        assert_same(outputs(zoo.load(tmp_path / "p", "numpy"), input=X), truth(module, X), "numpy")


def _compiled(module: Any) -> Any:
    return torch.compile(module, backend="eager")


class TestWrappers:
    """Wrappers are taken off, parts of a module included; a forward is called as it is declared."""

    @staticmethod
    def plain() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).eval()

    @pytest.mark.parametrize(
        "wrap",
        [
            _compiled,
            nn.DataParallel,
            torch.optim.swa_utils.AveragedModel,
            lambda module: nn.DataParallel(_compiled(module)),
            lambda module: nn.Sequential(_compiled(module[0]), module[1], nn.DataParallel(module[2])),
        ],
    )
    def test_names_and_values_are_the_modules_own(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        module = self.plain()
        wrapped = wrap(module)
        modes = {name: type(part) for name, part in wrapped.named_modules()}
        package = zoo.capture(wrapped, input=torch.from_numpy(X))
        assert list(package.graph.params) == list(module.state_dict())
        assert_same(outputs(package.load("jax"), input=X), truth(module, X), "jax")
        assert {name: type(part) for name, part in wrapped.named_modules()} == modes

    def test_distributed_data_parallel(self, tmp_path: Path) -> None:
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        try:
            module = self.plain()
            package = zoo.capture(nn.parallel.DistributedDataParallel(module), input=torch.from_numpy(X))
        finally:
            torch.distributed.destroy_process_group()
        assert list(package.graph.params) == list(module.state_dict())
        assert_same(outputs(package.load("numpy"), input=X), truth(module, X), "numpy")

    @pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
    def test_parts_on_several_processes_are_refused_by_name(self, tmp_path: Path) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import Shard, distribute_tensor

        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        try:
            mesh = init_device_mesh("cpu", (1,))
            model = zoo.capture(self.plain(), input=torch.from_numpy(X)).load()
            name = next(iter(model.params))
            before = model(input=X)["output"]
            part = distribute_tensor(model.params[name].detach() * 2, mesh, [Shard(0)])
            with pytest.raises(WeightsError, match="spread over several processes"):
                model.params[name] = part
            with pytest.raises(WeightsError, match="spread over several processes"):
                model.params = {**model.params, name: part}
            with pytest.raises(WeightsError, match="spread over several processes"):
                model.apply({**model.params, name: part}, input=X)
            assert torch.equal(model(input=X)["output"], before)
            model.params[name] = part.full_tensor()
            assert not torch.equal(model(input=X)["output"], before)
            path, _, leaf = name.rpartition(".")
            held = model.module
            setattr(held.get_submodule(path), leaf, nn.Parameter(part))
            with pytest.raises(WeightsError, match="spread"):
                model(input=X)
            other = zoo.capture(self.plain(), input=torch.from_numpy(X)).load()
            fully_shard(other.module, mesh=mesh)
            with pytest.raises(WeightsError, match="no longer what m's graph computes"):
                other(input=X)
        finally:
            torch.distributed.destroy_process_group()

    def test_adapters_around_a_frozen_model(self) -> None:
        """The shape of PEFT's: forward(*args, **kwargs), the base frozen, two small matrices beside each weight."""

        class Adapted(nn.Module):
            def __init__(self, base: nn.Linear) -> None:
                super().__init__()
                self.base_layer = base
                self.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
                self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 5, bias=False)})

            def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
                return self.base_layer(x, *args, **kwargs) + self.lora_B["default"](self.lora_A["default"](x))

        class Peft(nn.Module):
            def __init__(self, base: nn.Module) -> None:
                super().__init__()
                self.base_model = base

            def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
                return self.base_model(*args, **kwargs)

        base = self.plain().requires_grad_(False)
        base[0] = Adapted(base[0])
        module = Peft(base).eval()
        package = zoo.capture(module, input=torch.from_numpy(X))
        assert list(package.graph.params) == list(module.state_dict())
        trained = [p.name for p in package.graph.params.values() if p.trainable]
        assert trained == ["base_model.0.lora_A.default.weight", "base_model.0.lora_B.default.weight"]
        assert_same(outputs(package.load("tensorflow"), input=X), truth(module, X), "tensorflow")

    @pytest.mark.parametrize("kind", ["args", "before_args", "by_position", "kwargs"])
    def test_whatever_a_forward_is_declared_with(self, kind: str) -> None:
        class Args(nn.Module):
            def forward(self, *args: torch.Tensor) -> torch.Tensor:
                return 2 * args[0] - args[1]

        class BeforeArgs(nn.Module):
            def forward(self, x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
                return 2 * x - rest[0]

        class ByPosition(nn.Module):
            def forward(self, x: torch.Tensor, /, y: torch.Tensor) -> torch.Tensor:
                return 2 * x - y

        class Kwargs(nn.Module):
            def forward(self, **kwargs: torch.Tensor) -> torch.Tensor:
                return 2 * kwargs["x"] - kwargs["y"]

        module = {"args": Args, "before_args": BeforeArgs, "by_position": ByPosition, "kwargs": Kwargs}[kind]()
        package = zoo.capture(module, x=torch.from_numpy(X), y=torch.from_numpy(X + 1))
        assert [item.name for item in package.graph.inputs] == ["x", "y"]
        assert all(isinstance(dim, str) for item in package.graph.inputs for dim in item.shape)
        y = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
        found = outputs(package.load("numpy"), x=y[::-1].copy(), y=y)
        assert_same(found, 2 * y[::-1].astype(np.float64) - y, "numpy")

    def test_names_that_a_forward_does_not_know(self) -> None:
        class Loose(nn.Module):
            def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
                return 2 * x

        for module in (self.plain(), Loose()):
            with pytest.raises(CaptureError, match="mask"):
                zoo.capture(module, **{"x" if isinstance(module, Loose) else "input": X, "mask": X})

    def test_what_is_no_module(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            scripted = torch.jit.script(self.plain())
        for other in (lambda x: x, _compiled(torch.relu), scripted, 3, X):
            with pytest.raises(CaptureError, match=r"module|TorchScript"):
                zoo.capture(other, x=X)


def test_64_bits_that_jax_narrows_are_noted() -> None:
    pytest.importorskip("jax")
    package = zoo.capture(nn.Linear(4, 3).double(), input=torch.ones(2, 4, dtype=torch.float64))
    notes = package.load("jax").notes
    assert any("2 parameters of float64 are computed in float32" in note for note in notes), notes
    assert not any("float64" in note for note in package.load("torch").notes)
