"""The Keras backend on each of Keras's own: values against float64, one training step against torch, files across.

Keras has one backend per process, so this file is also the script that a process per KERAS_BACKEND runs. A stage
writes what it computed to <backend>-<stage>.npz; the tests compare that here with what never saw Keras.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from tolerances import TOLERANCES

from zoo.errors import FormatError, InputError, UnknownBackend, UnsupportedOp, WeightsError, ZooError
from zoo.graph import Graph, load_graph, save_graph

pytestmark = pytest.mark.timeout(600)  # six processes import a framework and compile: minutes on a busy machine

FRAMEWORKS = ("jax", "tensorflow", "torch")
TYPES = ("bert", "llama", "vit")
SIZES = ((2, 7), (3, 11))
ROWS, CLASSES, LEARNING_RATE = 20, 3, 0.5
TOLERANCE = TOLERANCES["keras", "float32"]


# The process of one KERAS_BACKEND


def stage_first(folder: Path) -> dict[str, np.ndarray]:
    """Everything that needs no other backend's files; leaves this backend's files for the others."""
    import keras

    from zoo.backends.keras import GraphModel, params_from

    name, found = keras.backend.backend(), {}

    def made(case: str, **options: Any) -> Any:
        graph, arrays = load_case(folder, case)
        return GraphModel(graph, params_from({key: array.copy() for key, array in arrays.items()}, graph), **options)

    for case in TYPES:
        model = made(case)
        for index in range(len(SIZES)):
            inputs = load(folder / f"{case}-{index}.npz")
            outputs = model(inputs)
            spec = model.compute_output_spec({k: keras.KerasTensor(v.shape, str(v.dtype)) for k, v in inputs.items()})
            assert {k: (tuple(v.shape), keras.backend.standardize_dtype(v.dtype)) for k, v in outputs.items()} == {
                k: (v.shape, v.dtype) for k, v in spec.items()
            }
            found |= {f"{case}-{index}/{key}": numpy(value) for key, value in outputs.items()}

    x, y = load(folder / "train.npz"), load(folder / "labels.npz")["labels"]

    # files, written after a change so that they cannot agree by being what the constructor makes
    model = made("classifier", output="logits")
    for variable in model.trainable_variables:
        variable.assign(variable.value * 1.25)
    model.save(folder / f"{name}.keras")
    model.save_weights(folder / f"{name}.weights.h5")
    found["scaled/predicted"] = model.predict(x, batch_size=7, verbose=0)  # 7, 7 and 6 rows

    # one step of plain gradient descent over all rows, compiled by XLA where there is XLA
    model = made("classifier", output="logits")
    before = values(model)
    model.compile(keras.optimizers.SGD(LEARNING_RATE), loss(), jit_compile="auto")
    model.fit(x, y, batch_size=ROWS, epochs=1, verbose=0)
    found |= {f"step/{key}": value for key, value in values(model).items()}
    assert all(np.array_equal(before[k], v) for k, v in values(model).items() if not model.graph.params[k].trainable)

    # training in several batches, the last one smaller
    model, jit = made("classifier", output="logits"), name == "jax"
    model.compile(keras.optimizers.Adam(3e-3), loss(), metrics=["accuracy"], jit_compile=jit)
    history = model.fit(x, y, batch_size=8, epochs=5, verbose=0).history["loss"]
    assert history[-1] < 0.7 * history[0], history
    assert np.isfinite(model.evaluate(x, y, batch_size=ROWS, verbose=0)).all()
    model.save(folder / f"{name}-trained.keras")
    again = keras.saving.load_model(folder / f"{name}-trained.keras")
    assert np.array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
    again.fit(x, y, batch_size=ROWS, epochs=1, verbose=0)  # with the optimizer's state
    assert int(again.optimizer.iterations) == 5 * 3 + 1

    # inside a functional model, with inputs left out, the encoder trained and then frozen
    graph, arrays = load_case(folder, "classifier")
    defaults = {"attention_mask": 1, "token_type_ids": 0}
    inputs = tuple(dataclasses.replace(item, default=defaults.get(item.name)) for item in graph.inputs)
    graph = dataclasses.replace(graph, inputs=inputs)
    encoder = GraphModel(graph, params_from(arrays, graph), output="pooled", name="encoder")
    tokens = x["input_ids"]
    full = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}
    assert np.array_equal(numpy(encoder(tokens)), numpy(encoder(full)))
    ids = keras.Input((None,), dtype="int32", name="ids")
    pooled = encoder(ids)
    assert pooled.shape == (None, 24)
    model = keras.Model({"ids": ids}, keras.layers.Dense(CLASSES)(pooled))
    data = {"ids": tokens.astype("int32")}
    for trainable in (True, False):
        encoder.trainable = trainable
        model.compile(keras.optimizers.Adam(3e-3), loss(), jit_compile=jit)
        before, head = values(encoder), numpy(model.layers[-1].kernel)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Gradients do not exist for variables .*'classifier/weight'", UserWarning)
            history = model.fit(data, y, batch_size=10, epochs=3, verbose=0).history["loss"]
        moved = {key for key, value in values(encoder).items() if not np.array_equal(before[key], value)}
        used = {key for key, p in graph.params.items() if p.trainable and not key.startswith("classifier")}
        # a key's bias shifts all scores of a query alike: its gradient is rounding, if that
        assert used - moved <= {key for key in used if key.endswith("key.bias")} if trainable else not moved
        assert not np.array_equal(head, numpy(model.layers[-1].kernel))
        assert history[-1] < history[0], history
    model.save(folder / f"{name}-functional.keras")
    again = keras.saving.load_model(folder / f"{name}-functional.keras")
    found["functional/predicted"] = model.predict(data, verbose=0)
    assert np.array_equal(again.predict(data, verbose=0), found["functional/predicted"])
    if name == "tensorflow":  # a SavedModel that needs neither Keras nor us
        model.export(folder / "exported", verbose=False)
    return found


def stage_second(folder: Path) -> dict[str, np.ndarray]:
    """Every backend's files, read by this one."""
    import keras

    from zoo.backends.keras import GraphModel

    x, found = load(folder / "train.npz"), {}
    for other in FRAMEWORKS:
        model = keras.saving.load_model(folder / f"{other}.keras")
        assert type(model) is GraphModel
        found[f"{other}/keras"] = model.predict(x, batch_size=7, verbose=0)
        fresh = GraphModel.from_config(model.get_config())
        assert not numpy(fresh(x)).any()
        fresh.load_weights(folder / f"{other}.weights.h5")
        found[f"{other}/weights"] = fresh.predict(x, batch_size=9, verbose=0)
        # without its jit_compile: what is XLA for JAX is torch.compile for torch, and takes a minute here
        model = keras.saving.load_model(folder / f"{other}-functional.keras", compile=False)
        found[f"{other}/functional"] = model.predict({"ids": x["input_ids"].astype("int32")}, verbose=0)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        loaded = tf.saved_model.load(folder / "exported")
        found["tensorflow/exported"] = loaded.serve({"ids": x["input_ids"].astype("int32")}).numpy()
    return found


def stage_refuse(folder: Path) -> dict[str, np.ndarray]:
    """Keras on a backend that no graph runs on."""
    from zoo.backends.keras import GraphModel, compile_graph, params_from

    graph, arrays = load_case(folder, "bert")
    for action in (lambda: compile_graph(graph), lambda: params_from(arrays, graph), lambda: GraphModel(graph)):
        with pytest.raises(UnknownBackend, match=r"'numpy'(.|\n)*KERAS_BACKEND one of jax, tensorflow, torch"):
            action()
    return {}


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def load_case(folder: Path, case: str) -> tuple[Graph, dict[str, np.ndarray]]:
    return load_graph(folder / f"{case}.json.gz"), load(folder / f"{case}-weights.npz")


def loss() -> Any:
    import keras

    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def numpy(tensor: Any) -> np.ndarray:
    import keras

    return np.array(keras.ops.convert_to_numpy(tensor))


def values(model: Any) -> dict[str, np.ndarray]:
    return {key: numpy(variable) for key, variable in model.params.items()}


# The tests


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs, weights, inputs, float64 references, and what torch does in one step of gradient descent."""
    import tiny
    import torch

    from zoo.backends import get_backend
    from zoo.capture.torch_export import capture_module

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = tiny.build("bert")
            self.bert.encoder.layer = self.bert.encoder.layer[:1]
            self.classifier = torch.nn.Linear(24, CLASSES)
            with torch.no_grad():
                generator = torch.Generator().manual_seed(5)
                for parameter in self.classifier.parameters():
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> dict[str, Any]:
            made = self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
            return {"logits": self.classifier(made.pooler_output), "pooled": made.pooler_output}

    folder = tmp_path_factory.mktemp("keras")
    modules = {case: tiny.build(case) for case in TYPES} | {"classifier": Classifier().eval()}
    runs, weights = {}, {}
    for case, module in modules.items():
        example = tiny.inputs("bert" if case == "classifier" else case, *SIZES[0])
        graph = capture_module(module, tensors(example))
        save_graph(graph, folder / f"{case}.json.gz")
        state = {key: value.detach().numpy().copy() for key, value in module.state_dict().items()}
        weights[case] = {key: state[key] for key in graph.params}
        np.savez(folder / f"{case}-weights.npz", **weights[case])
        runs[case] = get_backend("numpy").compile_graph(graph)
    for case in TYPES:
        for index, size in enumerate(SIZES):
            inputs = tiny.inputs(case, *size, seed=3)
            np.savez(folder / f"{case}-{index}.npz", **inputs)
            np.savez(folder / f"{case}-{index}-reference.npz", **runs[case](weights[case], inputs))

    x = tiny.inputs("bert", ROWS, 9, seed=8)
    labels = x["input_ids"][:, 0] % CLASSES
    np.savez(folder / "train.npz", **x)
    np.savez(folder / "labels.npz", labels=labels)
    graph = load_graph(folder / "classifier.json.gz")
    scaled = {k: v * np.float32(1.25 if graph.params[k].trainable else 1) for k, v in weights["classifier"].items()}
    np.savez(folder / "scaled-reference.npz", predicted=runs["classifier"](scaled, x)["logits"])

    module = modules["classifier"].double()
    optimizer = torch.optim.SGD(module.parameters(), LEARNING_RATE)
    torch.nn.functional.cross_entropy(module(**tensors(x))["logits"], torch.from_numpy(labels)).backward()
    optimizer.step()
    state = {key: value.detach().numpy() for key, value in module.state_dict().items()}
    np.savez(folder / "step-reference.npz", **{key: state[key] for key in weights["classifier"]})
    return folder


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    import torch

    return {key: torch.from_numpy(array) for key, array in arrays.items()}


@pytest.fixture(scope="module")
def first(cases: Path) -> dict[str, dict[str, np.ndarray]]:
    return run_all("first", cases)


@pytest.fixture(scope="module")
def second(cases: Path, first: Any) -> dict[str, dict[str, np.ndarray]]:
    return run_all("second", cases)


def run_all(stage: str, folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """A stage on each framework, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(FRAMEWORKS, pool.map(lambda name: run(stage, name, folder), FRAMEWORKS), strict=True))


def run(stage: str, framework: str, folder: Path) -> dict[str, np.ndarray]:
    """A stage in a process of its own; its assertions fail here."""
    environment = os.environ | {"KERAS_BACKEND": framework, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
    # what XLA compiles here runs for milliseconds: compile fast
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    command = [sys.executable, "-W", "error::UserWarning", __file__, stage, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, f"{stage} on {framework}:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return load(folder / f"{framework}-{stage}.npz")


def assert_close(got: np.ndarray, reference: np.ndarray) -> None:
    assert got.shape == reference.shape
    assert np.abs(got - reference).max() <= TOLERANCE * np.abs(reference).max()


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
class TestOn:
    @pytest.mark.parametrize("case", TYPES)
    def test_outputs_are_those_in_float64(self, cases: Path, first: Any, framework: str, case: str) -> None:
        for index in range(len(SIZES)):
            reference = load(cases / f"{case}-{index}-reference.npz")
            found = {k.split("/")[1]: v for k, v in first[framework].items() if k.startswith(f"{case}-{index}/")}
            assert found.keys() == reference.keys()
            for key, array in reference.items():
                assert_close(found[key], array)

    def test_a_step_of_training_is_that_of_torch_autograd_in_float64(
        self, cases: Path, first: Any, framework: str
    ) -> None:
        start = load(cases / "classifier-weights.npz")
        for key, array in load(cases / "step-reference.npz").items():
            assert_close(first[framework][f"step/{key}"], array)
            if "key.bias" not in key and np.issubdtype(array.dtype, np.floating):
                assert np.abs(array - start[key]).max() > 100 * TOLERANCE * np.abs(array).max(), f"{key} hardly moved"

    @pytest.mark.parametrize("kind", ["keras", "weights"])
    @pytest.mark.parametrize("writer", FRAMEWORKS)
    def test_files_are_read_whoever_wrote_them(
        self, cases: Path, second: Any, framework: str, writer: str, kind: str
    ) -> None:
        assert_close(second[framework][f"{writer}/{kind}"], load(cases / "scaled-reference.npz")["predicted"])

    @pytest.mark.parametrize("writer", FRAMEWORKS)
    def test_a_functional_model_around_a_graph_is_read_whoever_wrote_it(
        self, first: Any, second: Any, framework: str, writer: str
    ) -> None:
        assert_close(second[framework][f"{writer}/functional"], first[writer]["functional/predicted"])


@pytest.mark.slow
def test_a_saved_model_serves(first: Any, second: Any) -> None:
    assert_close(second["tensorflow"]["tensorflow/exported"], first["tensorflow"]["functional/predicted"])


def test_kerass_other_backends_are_refused(cases: Path) -> None:
    run("refuse", "numpy", cases)


class TestInProcess:
    """In this process, on whatever KERAS_BACKEND says, beside the other frameworks."""

    @pytest.fixture
    def model(self, cases: Path) -> Any:
        import torch  # noqa: F401  isort: skip (before TensorFlow)
        import keras

        from zoo.backends import get_backend

        if keras.backend.backend() not in FRAMEWORKS:
            pytest.skip(f"KERAS_BACKEND is {keras.backend.backend()}")
        backend = get_backend("keras")
        graph, arrays = load_case(cases, "bert")
        holder = type("Model", (), {"graph": graph, "params": backend.params_from(arrays, graph)})
        return backend.module_of(holder)

    def test_outputs_are_those_in_float64(self, cases: Path, model: Any) -> None:
        from zoo.backends.keras import compile_graph

        inputs = load(cases / "bert-1.npz")
        for key, array in load(cases / "bert-1-reference.npz").items():
            assert_close(numpy(model(inputs)[key]), array)
            assert_close(numpy(compile_graph(model.graph)(model.params, inputs)[key]), array)

    def test_variables_are_named_and_trainable_as_the_parameters(self, model: Any) -> None:
        assert list(model.params) == list(model.graph.params)
        assert [v.path.replace("/", ".") for v in model.params.values()] == list(model.graph.params)
        assert len(model.weights) == len(model.params)
        expected = {id(model.params[p.name]) for p in model.graph.params.values() if p.trainable}
        assert {id(v) for v in model.trainable_variables} == expected

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x: x.pop("input_ids"), "no input_ids"),
            (lambda x: x.update(pixels=x["input_ids"]), "unknown pixels"),
            (lambda x: x.update(attention_mask=x["attention_mask"][:, :5]), r"\[batch=3, sequence=11\](.|\n)*\[3, 5\]"),
            (lambda x: x.update(attention_mask=x["attention_mask"][0]), r"'attention_mask'(.|\n)*\[11\]"),
        ],
    )
    def test_wrong_inputs_are_named(self, cases: Path, model: Any, change: Any, message: str) -> None:
        inputs = load(cases / "bert-1.npz")
        change(inputs)
        with pytest.raises(InputError, match=message):
            model(inputs)

    def test_wrong_weights_are_all_listed(self, model: Any) -> None:
        from zoo.backends.keras import GraphModel

        params, (lost, bent, *_) = dict(model.params), model.graph.params
        params["other"] = params.pop(lost)
        params[bent] = params["other"]
        with pytest.raises(WeightsError) as caught:
            GraphModel(model.graph, params)
        assert all(part in str(caught.value) for part in (f"no {lost}", f"{bent} [", "unexpected other"))
        with pytest.raises(InputError, match="last_hidden_state"):
            GraphModel(model.graph, model.params, output="logits")

    def test_a_config_is_data_and_checked(self, model: Any) -> None:
        from zoo.backends.keras import GraphModel

        config = json.loads(json.dumps(model.get_config()))
        again = GraphModel.from_config(config)
        assert again.get_config() == config and again.graph.nodes == model.graph.nodes
        assert all(np.array_equal(array, again.graph.constants[k]) for k, array in model.graph.constants.items())
        data = json.loads(config["graph"])
        broken: list[tuple[type[ZooError], dict[str, Any]]] = [
            (FormatError, data | {"format": 99}),
            (FormatError, {k: v for k, v in data.items() if k != "nodes"}),
            (FormatError, data | {"constants": {"c:x": ["float32", [3], "AAAA"]}}),
            (ZooError, data | {"constants": {"c:x": ["object", [1], "AAAAAAAAAAA="]}}),
            (ZooError, data | {"constants": {}}),
            (UnsupportedOp, data | {"nodes": [["os.system", *data["nodes"][0][1:]], *data["nodes"][1:]]}),
        ]
        for error, changed in broken:
            with pytest.raises(error):
                GraphModel.from_config(config | {"graph": json.dumps(changed)})
        with pytest.raises(FormatError):
            GraphModel.from_config(config | {"graph": "{"})


if __name__ == "__main__":
    stage, folder = globals()[f"stage_{sys.argv[1]}"], Path(sys.argv[2])
    np.savez(folder / f"{os.environ['KERAS_BACKEND']}-{sys.argv[1]}.npz", **stage(folder))
