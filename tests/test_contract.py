"""What every model can do on every backend: the same steps for each, on tiny models with drawn weights."""

from __future__ import annotations

import copy
import dataclasses
import functools
import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optree
import pytest
import tensorflow as tf
import tiny
import torch
import transformers
from tolerances import TOLERANCES

import zoo
from zoo.arrays import to_numpy
from zoo.errors import ConfigError, InputError, SourceError, WeightsError
from zoo.graph.ir import Ref, map_refs

BACKENDS = ("torch", "jax", "tensorflow", "keras", "numpy", "native")
KINDS: dict[str, tuple[str, str]] = {
    "bert": ("BertForSequenceClassification", "logits"),
    "gpt2": ("GPT2LMHeadModel", "logits"),
    "t5": ("T5ForConditionalGeneration", "logits"),
    "vit": ("ViTForImageClassification", "logits"),
    "clip": ("CLIPModel", "logits_per_image"),
    "whisper": ("WhisperModel", "last_hidden_state"),
    "resnet": ("ResNetForImageClassification", "logits"),
}
"""Model type -> the class of its checkpoint, and the output that is compared."""

every_kind = pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.xdist_group(k)) for k in KINDS])
every_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Model type -> a folder as transformers writes it; every number of it is drawn."""
    root = tmp_path_factory.mktemp("checkpoints")

    @functools.cache
    def written(kind: str) -> Path:
        torch.manual_seed(0)
        module = getattr(transformers, KINDS[kind][0])(tiny.config(kind)).eval()
        with torch.no_grad():
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                if tensor.is_floating_point() and not name.endswith(("logit_scale", "position_ids")):
                    tensor += (
                        0.3 * torch.rand(tensor.shape) if "running_var" in name else 0.05 * torch.randn(tensor.shape)
                    )
        module.save_pretrained(root / kind)
        return root / kind

    return written


@functools.cache
def given(kind: str) -> dict[str, np.ndarray]:
    """Two rows of the inputs that cannot be left out; nothing is padded, as absent masks say."""
    names = {"input_ids", "decoder_input_ids", "pixel_values", "input_features"}
    return {name: array for name, array in tiny.inputs(kind, 2, 7).items() if name in names}


def reference(folder: Path, kind: str) -> np.ndarray:
    """What transformers computes of a folder in float64."""
    module = getattr(transformers, KINDS[kind][0]).from_pretrained(folder, dtype=torch.float64).eval()
    tensors = {name: torch.from_numpy(array) for name, array in given(kind).items()}
    with torch.no_grad():
        found = module(**{name: x.double() if x.is_floating_point() else x for name, x in tensors.items()})
    return found[KINDS[kind][1]].numpy()


def value(kind: str, outputs: Any) -> np.ndarray:
    return to_numpy(outputs[KINDS[kind][1]]).astype(np.float64)


def close(backend: str, got: np.ndarray, expected: np.ndarray) -> None:
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= TOLERANCES[backend, "float32"] * np.abs(expected).max()


def forms(kind: str) -> dict[str, dict[str, Any]]:
    """The same inputs as arrays of every framework and other dtypes, as lists, and in other orders of memory."""
    plain = given(kind)

    def ints(array: np.ndarray) -> np.ndarray:
        return array.astype(np.int32) if array.dtype.kind == "i" else array.astype(np.float64)

    def turned(array: np.ndarray) -> np.ndarray:
        return np.asfortranarray(array[::-1, ..., ::-1].copy())[::-1, ..., ::-1]

    makers = {
        "numpy": lambda x: x,
        "lists": lambda x: x.tolist(),
        "rows of torch": lambda x: list(torch.from_numpy(x)),
        "int32 and float64": ints,
        "other orders": turned,
        "other bytes": lambda x: x.astype(x.dtype.newbyteorder(">")),
        "torch": torch.from_numpy,
        "torch with a gradient": lambda x: torch.from_numpy(x).requires_grad_(x.dtype.kind == "f"),
        "torch int32": lambda x: torch.from_numpy(ints(x)),
        "jax": jax.numpy.asarray,
        "tensorflow": tf.constant,
        "tensorflow int32": lambda x: tf.constant(ints(x)),
        "a variable": tf.Variable,
    }
    return {form: {name: make(array) for name, array in plain.items()} for form, make in makers.items()}


@every_backend
@every_kind
def test_the_same_script_runs_everywhere(kind: str, backend: str, checkpoint, tmp_path: Path) -> None:
    folder, inputs = checkpoint(kind), given(kind)
    expected = reference(folder, kind)
    model = zoo.load(folder, backend)

    for form, arrays in forms(kind).items():
        got = model(**arrays)
        assert type(got) is zoo.Output, form
        close(backend, value(kind, got), expected)
    outputs = model(**inputs)
    first = value(kind, outputs)
    assert np.array_equal(np.asarray(outputs[KINDS[kind][1]]), first)
    close(backend, value(kind, model.apply(model.params, **inputs)), expected)
    close(backend, value(kind, model.apply({**model.params, **model.buffers}, **inputs)), expected)

    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert np.array_equal(value(kind, again(**inputs)), first)
        name = next(name for name, x in again.params.items() if name.endswith("weight"))
        again.params[name] = np.zeros(tuple(again.params[name].shape), np.float32)
        assert not np.array_equal(value(kind, again(**inputs)), first)
        assert np.array_equal(value(kind, model(**inputs)), first)

    doubled = jax.tree.map(lambda x: 2 * to_numpy(x), outputs)
    assert type(doubled) is zoo.Output and list(doubled) == list(outputs)
    assert np.array_equal(value(kind, doubled), 2 * first)

    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: value(kind, model(**inputs)), range(8)):
            assert np.array_equal(got, first)

    saved = model.save(tmp_path / "package")
    assert np.array_equal(value(kind, zoo.load(saved, backend)(**inputs)), first)
    close("torch", reference(saved, kind), expected)


# Names of inputs


class Table(torch.nn.Module):
    """Rows by number, scaled, with a buffer that is trained by nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.nn.Embedding(11, 6)
        self.norm = torch.nn.BatchNorm1d(6)
        self.head = torch.nn.Linear(6, 3)
        self.register_buffer("shift", torch.linspace(-1, 1, 6))
        with torch.no_grad():
            self.norm.running_mean.uniform_(-1, 1)
            self.norm.running_var.uniform_(0.5, 1.5)

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = (self.rows(ids) + self.shift) * attention_mask[..., None]
        return self.head(torch.relu(self.norm(x.mean(1))))


IDS = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])


@functools.cache
def table() -> tuple[torch.nn.Module, zoo.Package]:
    torch.manual_seed(0)
    module = Table().eval()
    package = zoo.capture(module, ids=torch.from_numpy(IDS), attention_mask=torch.ones(2, 4, dtype=torch.int64))
    inputs = tuple(
        dataclasses.replace(i, default=1 if i.name == "attention_mask" else None) for i in package.graph.inputs
    )
    package.graph.inputs = inputs
    return module, package


def load_table(backend: str) -> tuple[torch.nn.Module, zoo.Model]:
    """The module and the model, neither sharing memory with those of another test."""
    module, package = map(copy.deepcopy, table())
    return module, package.load(backend)


def by_module(module: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(IDS), torch.ones(2, 4, dtype=torch.int64)).double().numpy()


def calls(model: zoo.Model) -> dict[str, Any]:
    """Every way to call a model, by keyword."""
    found = {"call": model, "apply": functools.partial(model.apply, model.params)}
    if model.backend == "keras":
        found["module"] = lambda **inputs: model.module(inputs)
    elif model.backend in ("torch", "tensorflow"):
        found["module"] = model.module
    return found


@every_backend
def test_inputs_that_are_not_the_models_are_refused_by_name(backend: str) -> None:
    _, model = load_table(backend)
    for call in calls(model).values():
        with pytest.raises(InputError, match=r"attention_msk[\s\S]*did you mean 'attention_mask'\?"):
            call(ids=IDS, attention_msk=np.ones((2, 4), np.int64))
        with pytest.raises(InputError, match=r"missing[\s\S]*ids"):
            call(attention_mask=np.ones((2, 4), np.int64))
        with pytest.raises(InputError):
            call(ids=IDS[0])
        if backend != "keras":
            with pytest.raises(InputError, match="by name"):
                call(IDS)
        with pytest.raises(InputError):
            call(ids=IDS, attention_mask=np.ones((2, 5), np.int64))
    for call in list(calls(model).values())[:2]:
        with pytest.raises(InputError, match="dtype") as caught:
            call(ids=IDS.astype(np.float32))
        assert len(str(caught.value)) < 500
        for ids in (
            [[1, 2], [3]],
            [["a", "b"]],
            object(),
            np.ma.array(IDS, mask=IDS > 3),
            torch.empty(2, 4, device="meta"),
        ):
            with pytest.raises(InputError, match="ids"):
                call(ids=ids)


@every_backend
def test_every_way_to_call_takes_every_array(backend: str) -> None:
    module, model = load_table(backend)
    expected = by_module(module)
    for name, call in calls(model).items():
        for ids in (
            IDS,
            IDS.tolist(),
            torch.from_numpy(IDS),
            jax.numpy.asarray(IDS),
            tf.constant(IDS, tf.int32),
            IDS[::-1][::-1],
        ):
            if backend == "keras" and name == "module" and isinstance(ids, list):
                continue  # Keras takes a list for several inputs
            close(backend, to_numpy(call(ids=ids)["output"]).astype(np.float64), expected)
            close(backend, to_numpy(call(ids=ids, attention_mask=None)["output"]).astype(np.float64), expected)


@every_backend
def test_bfloat16_arrays_of_another_framework(backend: str) -> None:
    torch.manual_seed(0)
    module = torch.nn.Linear(6, 3)
    model = zoo.capture(module, input=torch.randn(4, 6)).load(backend)
    x = torch.randn(4, 6).bfloat16()
    with torch.no_grad():
        expected = module(x.float()).double().numpy()
    wide = x.float().numpy()
    for given in (
        x,
        jax.numpy.asarray(wide).astype("bfloat16"),
        tf.cast(wide, tf.bfloat16),
        x.clone().requires_grad_(),
    ):
        for call in list(calls(model).values())[:2]:
            close(backend, to_numpy(call(input=given)["output"]).astype(np.float64), expected)


# Parameters


@every_backend
def test_parameters_and_buffers_are_apart(backend: str) -> None:
    module, model = load_table(backend)
    assert set(model.params) == {name for name, _ in module.named_parameters()}
    assert set(model.buffers) == {name for name, _ in module.named_buffers()}
    assert set(model.state) == set(module.state_dict())
    expected = by_module(module)
    for params in (model.params, model.state, {name: to_numpy(array) for name, array in model.params.items()}):
        close(backend, to_numpy(model.apply(params, ids=IDS)["output"]).astype(np.float64), expected)
    doubled = {**model.params, "shift": 2 * to_numpy(model.buffers["shift"])}
    module.shift *= 2
    close(backend, to_numpy(model.apply(doubled, ids=IDS)["output"]).astype(np.float64), by_module(module))
    close(backend, to_numpy(model(ids=IDS)["output"]).astype(np.float64), expected)


@every_backend
def test_parameters_of_other_names_or_shapes_are_refused(backend: str, tmp_path: Path) -> None:
    _, model = load_table(backend)
    params = dict(model.params)
    wrong = {
        "head.weight": {**params, "head.weight": np.zeros((4, 6), np.float32)},
        "head.bias": {name: array for name, array in params.items() if name != "head.bias"},
        "did you mean 'head.bias'": {**params, "head.bia": params["head.bias"]},
        "norm.running_mean": {**params, "norm.running_mean": np.zeros(1, np.float32)},
    }
    for part, given in wrong.items():
        with pytest.raises(WeightsError, match=part):
            model.apply(given, ids=IDS)
        with pytest.raises(WeightsError, match=part):
            model.save(tmp_path / "package", params=given)
    assert not (tmp_path / "package").exists()
    with pytest.raises(WeightsError, match="list"):
        model.apply([1], ids=IDS)  # type: ignore[arg-type]


@every_backend
def test_trained_parameters_are_saved(backend: str, tmp_path: Path) -> None:
    module, model = load_table(backend)
    trained = {name: to_numpy(array) + 1 for name, array in model.params.items()}
    saved = model.save(tmp_path / "package", params=trained)
    before = by_module(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 1
    again = zoo.load(saved, "numpy")
    close("numpy", again(ids=IDS)["output"], by_module(module))
    close(backend, to_numpy(model(ids=IDS)["output"]).astype(np.float64), before)


@every_backend
def test_what_is_put_among_the_parameters_shows_everywhere(backend: str, tmp_path: Path) -> None:
    module, model = load_table(backend)
    ways = calls(model)  # made before, so that they must see what comes
    for name, change in {"head.weight": 2.0, "rows.weight": 0.5, "shift": 3.0, "norm.running_mean": 2.0}.items():
        holder = model.params if name in model.params else model.buffers
        holder[name] = change * to_numpy(holder[name])
        with torch.no_grad():
            module.state_dict()[name].mul_(change)
    expected = by_module(module)
    close(backend, to_numpy(model(ids=IDS)["output"]).astype(np.float64), expected)
    close(backend, to_numpy(model.apply(model.params, ids=IDS)["output"]).astype(np.float64), expected)
    if "module" in ways:
        close(backend, to_numpy(ways["module"](ids=IDS)["output"]).astype(np.float64), expected)
    close("numpy", zoo.load(model.save(tmp_path / "package"), "numpy")(ids=IDS)["output"], expected)
    with pytest.raises(WeightsError, match=r"head\.bias"):
        model.params["head.bias"] = np.zeros(4, np.float32)
        model(ids=IDS)


@pytest.mark.parametrize("backend", ["tensorflow", "keras"])
def test_a_variable_that_is_replaced_in_a_module_is_named(backend: str) -> None:
    _, model = load_table(backend)
    module = model.module
    if backend == "keras":
        module.params["head.bias"] = module.params["norm.bias"]
    else:
        at = next(i for i, variable in enumerate(module.weights) if variable is model.params["head.bias"])
        module.weights[at] = tf.Variable(np.ones(3, np.float32))
    with pytest.raises(WeightsError, match=r"head\.bias"):
        model(ids=IDS)


@every_backend
def test_all_parameters_are_replaced_at_once(backend: str) -> None:
    module, model = load_table(backend)
    _ = model.module
    model.params = {name: 2 * to_numpy(array) for name, array in model.params.items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= 2
    for call in calls(model).values():
        close(backend, to_numpy(call(ids=IDS)["output"]).astype(np.float64), by_module(module))
    with pytest.raises(WeightsError, match=r"no head\.bias"):
        model.params = {"head.weight": model.params["head.weight"]}


def test_jax_gradients_and_optax_take_the_parameters(checkpoint) -> None:
    import optax

    _, model = load_table("jax")
    assert "norm.num_batches_tracked" in model.buffers

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        loss, slopes = jax.value_and_grad(lambda p: (model.apply(p, ids=IDS)["output"] ** 2).mean())(params)
        updates, state = optimizer.update(slopes, state)
        return optax.apply_updates(params, updates), state, loss

    optimizer = optax.adam(1e-2)
    params, state = model.params, optimizer.init(model.params)
    losses = []
    for _ in range(3):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[2] < losses[1] < losses[0]
    model.params = params
    assert float((model(ids=IDS)["output"] ** 2).mean()) < losses[2]

    model, inputs = zoo.load(checkpoint("resnet"), "jax"), given("resnet")
    slopes = jax.eval_shape(jax.grad(lambda p: model.apply(p, **inputs)["logits"].sum()), model.params)
    assert {name: slope.shape for name, slope in slopes.items()} == {n: p.shape for n, p in model.params.items()}


@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow", "numpy", "native"])
def test_a_parameter_or_buffer_that_was_taken_out_is_missed(backend: str) -> None:
    for holder, name in (("params", "head.bias"), ("buffers", "shift")):
        _, model = load_table(backend)
        if backend == "jax":  # a plain dict, looked at when the model is next used
            del getattr(model, holder)[name]
            with pytest.raises(WeightsError, match=f"no {name}"):
                model(ids=IDS)
        else:
            with pytest.raises(WeightsError, match=f"where: {name}"):
                del getattr(model, holder)[name]
            model(ids=IDS)


@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow", "numpy", "native"])
def test_arrays_that_change_between_calls_of_apply(backend: str) -> None:
    module, model = load_table(backend)
    params = {name: np.array(to_numpy(array), np.float64) for name, array in model.params.items()}
    close(backend, to_numpy(model.apply(params, ids=IDS)["output"]).astype(np.float64), by_module(module))
    for name, parameter in module.named_parameters():
        params[name] *= 2
        parameter.data *= 2
    close(backend, to_numpy(model.apply(params, ids=IDS)["output"]).astype(np.float64), by_module(module))


# torch's modules


def test_a_call_on_torch_records_nothing_and_its_module_does() -> None:
    module, model = load_table("torch")
    out = model(ids=IDS)
    assert not out.output.requires_grad and np.asarray(out.output).shape == (2, 3)
    for found in (model.apply(model.params, ids=IDS), model.module(ids=torch.from_numpy(IDS))):
        for parameter in model.params.values():
            parameter.grad = None
        module.zero_grad()
        found["output"].square().sum().backward()
        module(torch.from_numpy(IDS), torch.ones(2, 4, dtype=torch.int64)).square().sum().backward()
        for name, parameter in module.named_parameters():
            wanted = parameter.grad
            assert (model.params[name].grad - wanted).abs().max() <= TOLERANCES["torch", "float32"] * wanted.abs().max()


@pytest.mark.parametrize("first", ["call", "apply", "module", "load"])
def test_what_inference_mode_makes_first_can_be_differentiated_later(first: str) -> None:
    class Turned(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(4))
            self.register_buffer("angles", torch.arange(4.0), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight * self.angles

    x = torch.randn(3, 4)
    package = zoo.capture(Turned(), x=x)
    with torch.inference_mode():
        model = package.load("torch")
        if first != "load":
            calls(model)[first](x=x)
        _ = model.module if first == "module" else None
    for call in (functools.partial(model.apply, model.params), model.module):
        model.params["weight"].grad = None
        call(x=x)["output"].sum().backward()
        assert torch.allclose(model.params["weight"].grad, x.sum(0) * torch.arange(4.0))


def test_a_graph_as_a_module_is_one_like_any_other(tmp_path: Path) -> None:
    original, model = load_table("torch")
    module, ids = model.module, torch.from_numpy(IDS)
    expected = by_module(original)

    def same(found: torch.nn.Module) -> bool:
        return np.array_equal(found(ids=ids)["output"].detach().double().numpy(), expected)

    assert list(module.state_dict()) == list(original.state_dict())
    assert {n for n, _ in module.named_parameters()} == {n for n, _ in original.named_parameters()}
    assert module.get_parameter("norm.weight") is model.params["norm.weight"]
    assert same(pickle.loads(pickle.dumps(module))) and same(copy.deepcopy(module))
    torch.save(module, tmp_path / "module.pt")
    assert same(torch.load(tmp_path / "module.pt", weights_only=False))
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    close("torch", compiled(ids=ids)["output"].detach().double().numpy(), expected)
    close("torch", compiled(ids=torch.cat([ids, ids]))["output"][2:].detach().double().numpy(), expected)
    copied = copy.deepcopy(module)
    copied.load_state_dict({name: 2 * tensor for name, tensor in original.state_dict().items()})
    assert not same(copied) and same(module)
    with pytest.raises(WeightsError, match="bfloat16"):
        copied.bfloat16()(ids=ids)
    assert len(repr(module)) < 1000


def test_a_graph_as_a_module_can_be_exported_and_captured_again() -> None:
    original, model = load_table("torch")
    ids, expected = torch.from_numpy(IDS), by_module(original)
    program = torch.export.export(model.module, (), {"ids": ids}, strict=False)
    close("torch", program.module()(ids=ids)["output"].detach().double().numpy(), expected)
    again = zoo.capture(model.module, ids=ids).load("numpy")
    close("numpy", again(ids=np.concatenate([IDS, IDS]))["output"][2:], expected)
    assert set(again.state) == set(model.state)
    rows = torch.vmap(lambda row: model.apply(model.params, ids=row[None])["output"][0])(ids)
    close("torch", rows.detach().double().numpy(), expected)


def test_a_name_that_is_a_module_and_a_parameter_at_once() -> None:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor([2.0, 3.0]))
            self.bias = torch.nn.Parameter(torch.tensor([5.0, 7.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale + self.bias

    x = torch.randn(3, 2)
    package = zoo.capture(Both(), x=x)
    to = {"scale": "a", "bias": "a.type"}
    graph = package.graph
    params = {to[n]: dataclasses.replace(p, name=to[n]) for n, p in graph.params.items()}

    def renamed(tree: Any) -> Any:
        return map_refs(lambda ref: Ref(f"p:{to[ref.name[2:]]}" if ref.name.startswith("p:") else ref.name), tree)

    nodes = [dataclasses.replace(node, args=renamed(node.args), kwargs=renamed(node.kwargs)) for node in graph.nodes]
    graph = dataclasses.replace(graph, params=params, nodes=nodes)
    model = zoo.Package(graph, {to[name]: array for name, array in package.arrays.items()}).load("torch")
    assert list(model.module.state_dict()) == ["a", "a.type"]
    assert torch.equal(model.module(x=x)["output"], x * torch.tensor([2.0, 3.0]) + torch.tensor([5.0, 7.0]))


class Adapted(torch.nn.Module):
    """A linear layer with a low-rank update beside it, as PEFT puts it in the layer's place."""

    def __init__(self, base_layer: torch.nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = torch.nn.Linear(base_layer.in_features, 2, bias=False)
        self.lora_B = torch.nn.Linear(2, base_layer.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def agrees_with_its_module(model: zoo.Model, kind: str, folder: Path) -> None:
    """Calls, parameters and what is saved are the module's."""
    tensors = {name: torch.from_numpy(array) for name, array in given(kind).items()}
    with torch.no_grad():
        expected = value(kind, model.module(**tensors))
    close("torch", value(kind, model(**given(kind))), expected)
    close("torch", value(kind, model.apply(model.params, **given(kind))), expected)
    close("torch", value(kind, zoo.load(model.save(folder), "numpy")(**given(kind))), expected)
    close("torch", value(kind, pickle.loads(pickle.dumps(model))(**given(kind))), expected)


def test_what_is_replaced_in_a_transformers_module_shows(checkpoint, tmp_path: Path) -> None:
    model = zoo.load(checkpoint("bert"))
    before, module = value("bert", model(**given("bert"))), model.module
    layer = module.bert.encoder.layer[0].attention.self
    query = layer.query

    layer.query = Adapted(query)
    for look in (lambda: model(**given("bert")), lambda: model.params, lambda: model.save(tmp_path / "no")):
        with pytest.raises(WeightsError, match=r"layer\.0\.attention\.self\.query"):
            look()
    with torch.no_grad():
        merged = query.weight + layer.query.lora_B.weight @ layer.query.lora_A.weight
    query.weight = torch.nn.Parameter(merged)
    layer.query = query
    agrees_with_its_module(model, "bert", tmp_path / "merged")

    module.classifier = torch.nn.Linear(module.classifier.in_features, module.classifier.out_features)
    assert model.params["classifier.weight"] is module.classifier.weight
    agrees_with_its_module(model, "bert", tmp_path / "head")
    assert not np.array_equal(value("bert", model(**given("bert"))), before)

    module.load_state_dict({name: 0.5 * x for name, x in module.state_dict().items()}, assign=True)
    agrees_with_its_module(model, "bert", tmp_path / "assigned")
    module.to(torch.float64).to(torch.float32)
    model.params["classifier.bias"] = np.full(module.classifier.bias.shape, 3.0)
    assert module.classifier.bias.tolist() == [3.0] * len(module.classifier.bias)
    agrees_with_its_module(model, "bert", tmp_path / "put")


def _seven_labels(module: Any) -> None:
    module.classifier = torch.nn.Linear(module.classifier.in_features, 7)


def _deep(module: Any) -> None:
    module.classifier = torch.nn.Sequential(module.classifier)


def _more_words(module: Any) -> None:
    module.resize_token_embeddings(module.config.vocab_size + 3)


def _fewer_layers(module: Any) -> None:
    module.bert.encoder.layer = module.bert.encoder.layer[:1]


def _other_activation(module: Any) -> None:
    module.bert.encoder.layer[0].intermediate.intermediate_act_fn = torch.nn.ReLU()


def _another_part(module: Any) -> None:
    module.value_head = torch.nn.Linear(2, 2)


@pytest.mark.parametrize("change", [_seven_labels, _deep, _more_words, _fewer_layers, _other_activation, _another_part])
def test_a_module_of_another_structure_is_refused_by_name(change: Any, checkpoint, tmp_path: Path) -> None:
    model = zoo.load(checkpoint("bert"))
    change(model.module)
    for look in (lambda: model(**given("bert")), lambda: model.save(tmp_path / "no"), lambda: pickle.dumps(model)):
        with pytest.raises(WeightsError, match=r"classifier|word_embeddings|layer|value_head"):
            look()
    assert not (tmp_path / "no").exists()


def test_tied_weights_that_a_module_takes_apart(checkpoint, tmp_path: Path) -> None:
    model = zoo.load(checkpoint("gpt2"))
    module = model.module
    module.load_state_dict({name: 2 * x for name, x in module.state_dict().items()}, assign=True)
    agrees_with_its_module(model, "gpt2", tmp_path / "equal")
    model.params["transformer.wte.weight"] = 0.5 * model.params["transformer.wte.weight"]
    assert module.lm_head.weight is module.transformer.wte.weight
    agrees_with_its_module(model, "gpt2", tmp_path / "put")
    module.lm_head.weight = torch.nn.Parameter(2 * module.lm_head.weight.detach())
    with pytest.raises(WeightsError, match=r"lm_head\.weight"):
        model(**given("gpt2"))


# Trees


def test_outputs_are_trees() -> None:
    _, model = load_table("jax")
    out = model(ids=IDS)
    assert type(jax.block_until_ready(out)) is zoo.Output and len(jax.tree.leaves(out)) == 1
    jitted = jax.jit(lambda ids: model(ids=ids))(IDS)
    assert type(jitted) is zoo.Output
    close("jax", np.asarray(jitted.output, np.float64), np.asarray(out.output, np.float64))
    assert [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(out)] == ["['output']"]
    close("jax", np.asarray(jax.jit(model)(ids=IDS).output, np.float64), np.asarray(out.output, np.float64))
    rows = jax.vmap(lambda ids: model(ids=ids[None]))(IDS)
    assert type(rows) is zoo.Output and rows.output.shape == (2, 1, 3)


@every_backend
def test_outputs_in_the_trees_of_every_library(backend: str) -> None:
    _, model = load_table(backend)
    out = model(ids=IDS)
    plain = to_numpy(out.output)
    maps = (jax.tree.map, optree.tree_map, torch.utils._pytree.tree_map, tf.nest.map_structure)
    for tree_map in maps:
        found = tree_map(lambda x: 2 * to_numpy(x), out)
        assert type(found) is zoo.Output and np.array_equal(found.output, 2 * plain), tree_map
    copies = [copy.copy(out), copy.deepcopy(out), out.copy(), pickle.loads(pickle.dumps(out))]
    for found in copies:
        assert type(found) is zoo.Output and np.array_equal(to_numpy(found.output), plain)
    for tree_map in maps:
        found = tree_map(to_numpy, model.params)
        assert isinstance(found, dict) and set(found) == set(model.params)


def test_outputs_of_several_names_keep_their_order() -> None:
    out = zoo.Output(b=np.zeros(1), a=np.ones(1))
    for tree_map in (jax.tree.map, optree.tree_map, torch.utils._pytree.tree_map):
        assert list(tree_map(lambda x: x, out)) == ["b", "a"]


def test_parameters_on_torch_go_through_torch_func() -> None:
    module, model = load_table("torch")
    ids = torch.from_numpy(IDS)

    def loss(params: Any) -> Any:
        return torch.func.functional_call(model.module, params, (), {"ids": ids})["output"].square().sum()

    slopes = torch.func.grad(loss)(model.params)
    module(ids, torch.ones(2, 4, dtype=torch.int64)).square().sum().backward()
    for name, parameter in module.named_parameters():
        off = (slopes[name] - parameter.grad).abs().max()
        assert off <= TOLERANCES["torch", "float32"] * parameter.grad.abs().max()
    assert type(model.params | {}) is dict and type({**model.params}) is dict


# TensorFlow, outside of a call


def test_tensorflow_takes_sizes_that_are_not_known(tmp_path: Path) -> None:
    module, model = load_table("tensorflow")
    expected = by_module(module)
    for call in calls(model).values():
        for dtype in (tf.int32, tf.int64):
            for spec in (
                tf.TensorSpec([None, None], dtype),
                tf.TensorSpec(None, dtype),
                tf.TensorSpec([None, 4], dtype),
            ):
                traced = tf.function(lambda ids, call=call: call(ids=ids)["output"], input_signature=[spec])
                close("tensorflow", traced(tf.constant(IDS, dtype)).numpy().astype(np.float64), expected)
        rows = tf.data.Dataset.from_tensor_slices(IDS.astype(np.int32)).batch(2)
        (mapped,) = rows.map(lambda ids, call=call: call(ids=ids)["output"])
        close("tensorflow", mapped.numpy().astype(np.float64), expected)


def test_a_saved_model_takes_what_its_module_did(tmp_path: Path) -> None:
    module, model = load_table("tensorflow")
    expected = by_module(module)
    tf.saved_model.save(model.module, str(tmp_path / "saved"), signatures=model.module.signatures())
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    for dtype in (tf.int32, tf.int64):
        ids, ones = tf.constant(IDS, dtype), tf.ones((2, 4), dtype)
        for inputs in ({"ids": ids}, {"ids": ids, "attention_mask": ones}):
            close("tensorflow", loaded(**inputs)["output"].numpy().astype(np.float64), expected)
    ids = tf.constant(IDS, tf.int64)
    served = loaded.signatures["serving_default"](ids=ids, attention_mask=tf.ones_like(ids))["output"]
    close("tensorflow", served.numpy().astype(np.float64), expected)
    served = loaded.signatures["required"](ids=ids)["output"]
    close("tensorflow", served.numpy().astype(np.float64), expected)


# Pickles and files


def test_models_are_equal_in_a_spawned_process(checkpoint) -> None:
    models = [load_table(backend)[1] for backend in BACKENDS]
    models += [zoo.load(checkpoint("bert"), backend) for backend in ("torch", "numpy", "native")]
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        for model in models:
            inputs = given("bert") if "input_ids" in model.inputs else {"ids": IDS}
            found = pool.apply(model, kwds=inputs)
            for name, array in model(**inputs).items():
                assert np.array_equal(to_numpy(found[name]), to_numpy(array)), (model, name)


@pytest.mark.parametrize("backend", ["torch", "numpy", "native"])
def test_a_pickle_refers_to_a_mapped_file_that_is_as_it_was(backend: str, checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("bert"), tmp_path / "c"))
    weights = folder / "model.safetensors"
    model = zoo.load(folder, backend)
    before = value("bert", model(**given("bert")))
    small = pickle.dumps(model)
    assert np.array_equal(value("bert", pickle.loads(small)(**given("bert"))), before)

    whole = pickle.dumps(zoo.load(folder, backend, mmap=False))
    sizes = sum(to_numpy(array).nbytes for array in model.state.values())
    assert len(whole) - len(small) > 0.9 * sizes

    if backend == "torch":
        with torch.no_grad():
            model.params["classifier.bias"].data.add_(1)  # what torch keeps no count of
        again = pickle.loads(pickle.dumps(model))
        assert np.array_equal(value("bert", again(**given("bert"))), value("bert", model(**given("bert"))))
        assert not np.array_equal(value("bert", again(**given("bert"))), before)
        model.params["classifier.bias"].data.sub_(1)
        assert not np.array_equal(value("bert", again(**given("bert"))), before)

    os.utime(weights, ns=(1, 1))
    with pytest.raises(SourceError, match=r"model\.safetensors"):
        pickle.loads(small)
    weights.unlink()
    with pytest.raises(SourceError, match="mmap=False"):
        pickle.loads(small)
    assert np.array_equal(value("bert", pickle.loads(whole)(**given("bert"))), before)


@every_backend
def test_a_file_that_is_not_mapped_may_be_cut(backend: str, checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("vit"), tmp_path / "c"))
    model = zoo.load(folder, backend, mmap=False)
    expected = value("vit", zoo.load(checkpoint("vit"), backend)(**given("vit")))
    os.truncate(folder / "model.safetensors", 100)
    assert np.array_equal(value("vit", model(**given("vit"))), expected)


def test_what_else_can_be_pickled(checkpoint) -> None:
    _, package = table()
    for again in (pickle.loads(pickle.dumps(package)), copy.deepcopy(package)):
        assert np.array_equal(again.load("numpy")(ids=IDS)["output"], package.load("numpy")(ids=IDS)["output"])
    graph = pickle.loads(pickle.dumps(package.graph))
    assert graph.nodes == package.graph.nodes and graph.params == package.graph.params
    fast = zoo.load(checkpoint("bert"), "torch", fast=True)
    before = value("bert", fast(**given("bert")))
    for report in (pickle.loads(pickle.dumps(fast.fast_report())), copy.deepcopy(fast.fast_report())):
        assert str(report) == str(fast.fast_report())
    again = pickle.loads(pickle.dumps(fast))
    assert np.array_equal(value("bert", again(**given("bert"))), before)
    assert str(again.fast_report()) == str(fast.fast_report())


def test_frozen_parameters_stay_so_in_copies() -> None:
    _, model = load_table("torch")
    model.params["rows.weight"].requires_grad_(False)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert [name for name, p in again.params.items() if not p.requires_grad] == ["rows.weight"]
        assert not again.module.rows.weight.requires_grad and again.module.head.weight.requires_grad


def test_a_tokenizer_goes_with_its_model(checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("bert"), tmp_path / "c"))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    model, texts = zoo.load(folder, "numpy", "feature-extraction"), ["a b c d e f", "g h"]
    model.tokenizer.enable_truncation(4)
    before = model.embed(texts)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert np.array_equal(again.embed(texts), before)
        again.tokenizer.no_truncation()
        assert not np.array_equal(again.embed(texts), before) and np.array_equal(model.embed(texts), before)


# Whose memory the arrays are


@every_backend
def test_what_is_put_in_is_a_copy(backend: str) -> None:
    _, model = load_table(backend)
    shape = to_numpy(model.params["head.weight"]).shape
    one, other = np.full(shape, 0.5, np.float32), np.full(shape, 0.25, np.float32)
    model.params["head.weight"] = one
    expected = to_numpy(model(ids=IDS)["output"]).copy()
    one[:] = 7.0
    assert np.array_equal(to_numpy(model(ids=IDS)["output"]), expected)
    model.params = {**model.params, "head.weight": other}
    other[:] = 0.5
    assert not np.array_equal(to_numpy(model(ids=IDS)["output"]), expected)
    assert np.array_equal(to_numpy(model.params["head.weight"]), np.full(shape, 0.25, np.float32))


def test_tensors_that_are_put_in_are_copied_and_parameters_taken() -> None:
    _, model = load_table("torch")
    given = torch.ones_like(model.params["head.weight"])
    model.params["head.weight"] = given.detach()
    given.detach().zero_()
    assert model.params["head.weight"].detach().ne(0).all()
    own = torch.nn.Parameter(given.detach())
    model.params["head.weight"] = own
    assert model.params["head.weight"] is own


@every_backend
def test_a_package_is_a_snapshot_of_its_model(backend: str) -> None:
    _, model = load_table(backend)
    package = model.package()
    before = {name: np.array(array) for name, array in package.arrays.items()}
    if backend == "torch":
        with torch.no_grad():
            for tensor in model.params.values():
                tensor.add_(1)
    else:
        for name in list(model.params):
            model.params[name] = to_numpy(model.params[name]) + 1
    assert all(np.array_equal(package.arrays[name], array) for name, array in before.items())


class _Wide(torch.nn.Module):
    """Numbers of 64 bits that 32 do not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0, 1, 9, dtype=torch.float64).reshape(3, 3) / 3)
        self.register_buffer("count", torch.tensor([2**40 + 1, -(2**50)]))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (x.double() @ self.weight).float(), self.count + 0


@every_backend
def test_numbers_of_64_bits_are_saved_as_they_were_loaded(backend: str, tmp_path: Path) -> None:
    module = _Wide()
    model = zoo.capture(module, x=torch.ones(2, 3)).load(backend)
    for number, one in enumerate((model, pickle.loads(pickle.dumps(model)), copy.deepcopy(model))):
        again = zoo.load(one.save(tmp_path / str(number)), "torch")
        assert torch.equal(again.state["weight"], module.weight)
        assert torch.equal(again.state["count"], module.count)
    model.params["weight"] = 2 * to_numpy(model.params["weight"])
    saved = model.package().arrays
    assert saved["weight"].dtype == np.float64 and np.array_equal(saved["count"], module.count.numpy())


# What a graph cannot see of a module


def _doubled(part: Any, given: Any, output: Any) -> Any:
    return 2 * output


def _hooked(module: Any) -> None:
    module.classifier.register_forward_hook(_doubled)


def _hooked_before(module: Any) -> None:
    module.classifier.register_forward_pre_hook(lambda part, given: (2 * given[0],))


def _other_forward(module: Any) -> None:
    module.classifier.forward = lambda x: 2 * torch.nn.functional.linear(x, module.classifier.weight)


def _other_eps(module: Any) -> None:
    module.bert.embeddings.LayerNorm.eps = 0.5


def _other_scale(module: Any) -> None:
    module.bert.encoder.layer[0].attention.self.scaling = 9.0


def _normed(module: Any) -> None:
    torch.nn.utils.parametrizations.weight_norm(module.classifier)


def _pruned(module: Any) -> None:
    from torch.nn.utils import prune

    prune.l1_unstructured(module.classifier, "weight", 0.5)


UNSEEN = {
    "classifier.*hook": _hooked,
    "classifier.*(hook)s?": _hooked_before,
    "classifier.*forward": _other_forward,
    r"LayerNorm\.eps": _other_eps,
    "scaling": _other_scale,
    "classifier": _normed,
    "classifier.+": _pruned,
}


@pytest.mark.filterwarnings("ignore:The tensor attribute self.classifier.weight was assigned:UserWarning")  # pruning
@pytest.mark.parametrize("named", UNSEEN)
def test_what_the_graph_cannot_see_of_a_module_is_refused_by_name(named: str, checkpoint, tmp_path: Path) -> None:
    folder, inputs = checkpoint("bert"), given("bert")
    model = zoo.load(folder)
    UNSEEN[named](model.module)
    for look in (lambda: model(**inputs), lambda: model.params, lambda: model.save(tmp_path / "no")):
        with pytest.raises(WeightsError, match=named):
            look()
    with pytest.raises(ConfigError, match=named):
        zoo.load(model.module)
    module = model.module.eval()
    tensors = {name: torch.as_tensor(array) for name, array in inputs.items()}
    with torch.no_grad():
        expected = module(**tensors).logits.double().numpy()
    for backend in ("torch", "numpy"):  # a capture holds what is there
        close(backend, value("bert", zoo.capture(module, **tensors).load(backend)(**inputs)), expected)


def test_settings_that_evaluation_does_not_read_may_change(checkpoint) -> None:
    model = zoo.load(checkpoint("bert"))
    before = value("bert", model(**given("bert")))
    module = model.module
    module.dropout.p, module.config.use_cache = 0.9, False
    module.config.id2label = {index: f"name {index}" for index in module.config.id2label}
    module.train()
    assert np.array_equal(value("bert", model(**given("bert"))), before)
    module.config.hidden_act = "relu"
    with pytest.raises(WeightsError, match="hidden_act"):
        model(**given("bert"))
