"""Graphs captured for training: what drops, what a key decides, and outputs and gradients against torch's own.

The reference is the transformers module in training mode and float64, its dropout replaced by the masks that the key
gives: computed here by NumPy, and multiplied in by torch in the order in which the module asks for them.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from test_gradients import loss
from tolerances import GRADIENT, GRADIENT_FLOOR, TOLERANCES
from torch import nn

import zoo
from zoo.arrays import to_numpy
from zoo.backends import get_backend
from zoo.errors import CaptureError, ConfigError, InputError, UnsupportedOp
from zoo.graph.io import load_graph, to_json
from zoo.graph.passes import drops, evaluating, keyed
from zoo.model import GRAPH_FILE, Package
from zoo.ops.random import dropout, kept, key_of

Arrays = dict[str, np.ndarray]

FRAMEWORKS = ("torch", "jax", "tensorflow")
TYPES = ("bert", "gpt2", "t5")
SEED = 20240229


@functools.cache
def package(model_type: str, train: bool = True) -> Package:
    return zoo.capture(tiny.build(model_type), train=train, **inputs(model_type, 2, 7))


def inputs(model_type: str, batch: int = 3, length: int = 11) -> Arrays:
    return tiny.inputs(model_type, batch, length)


by_type = pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=pytest.mark.xdist_group(f"train-{name}")) for name in TYPES]
)
by_framework = pytest.mark.parametrize("backend", FRAMEWORKS)


# Evaluation


@pytest.mark.parametrize("backend", ("numpy", *FRAMEWORKS, "keras", "native"))
@pytest.mark.parametrize(
    "model_type",
    [pytest.param(name, marks=pytest.mark.xdist_group(f"train-{name}")) for name in (*TYPES, "wav2vec2")],
)
def test_without_a_key_it_is_the_graph_of_evaluation(model_type: str, backend: str) -> None:
    given = inputs(model_type)
    found, expected = (package(model_type, train).load(backend)(**given) for train in (True, False))
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert np.array_equal(to_numpy(found[name]), to_numpy(value), equal_nan=True), name


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_taking_dropout_out_leaves_the_nodes_of_evaluation(model_type: str) -> None:
    graph = package(model_type).graph
    assert sum(map(drops, graph.nodes)) > 4
    assert evaluating(graph).nodes == package(model_type, False).graph.nodes
    assert "train" not in evaluating(graph).meta


# What is dropped


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_kept_and_its_scale(p: float) -> None:
    """Binomial: the share is off by less than five standard deviations, and so are those of neighbours and keys."""
    xp, size = get_backend("numpy").namespace(), 1 << 20
    masks = [kept(xp, (key_of(seed), number), (size,), p) for seed in (0, 1, 1 << 32) for number in (0, 1)]
    for index, mask in enumerate(masks):
        assert abs(mask.mean() - (1 - p)) < 5 * (p * (1 - p) / size) ** 0.5
        both = (1 - p) ** 2
        for other in (*masks[:index], *(np.roll(mask, shift) for shift in (1, 2, 64, 1000))):
            assert abs((mask & other).mean() - both) < 5 * (both * (1 - both) / size) ** 0.5
    x = dropout(xp, np.full(size, 3.0), p, True, rng=(key_of(0), 0))
    assert set(np.unique(x)) == {0.0, 3.0 * (1 / (1 - p))}
    assert np.array_equal(x != 0, masks[0])


def test_no_key_has_the_numbers_of_another_a_few_places_apart() -> None:
    xp = get_backend("numpy").namespace()
    rows = np.array([kept(xp, (key_of(seed), 0), (4096,), 0.5) for seed in range(300)])
    assert len(np.unique(rows[:, :64], axis=0)) == 300
    # each place over the keys is a fair coin, too
    share = rows.mean(0)
    assert abs(share - 0.5).max() < 6 * 0.5 / 300**0.5
    windows = np.lib.stride_tricks.sliding_window_view(rows, 64, axis=1).reshape(-1, 64)
    packed = np.packbits(windows, axis=1).view(np.uint64).ravel()
    assert len(np.unique(packed)) == len(packed)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(), (5,), (3, 1, 4), (0, 2)])
def test_frameworks_drop_the_same(shape: tuple[int, ...], p: float) -> None:
    import jax
    import tensorflow as tf

    from zoo.backends.torch import _Int32

    key = key_of(SEED)
    xp, expected = {name: get_backend(name) for name in ("jax", "tensorflow")}, None
    expected = kept(get_backend("numpy").namespace(), (key, 3), shape, p)
    assert expected.shape == shape
    assert p not in (0, 1) or (expected == (p == 0)).all()
    found = jax.jit(lambda key: kept(xp["jax"].namespace(), (key, 3), shape, p))(key)
    assert np.array_equal(found, expected)

    @tf.function(input_signature=[tf.TensorSpec([2], tf.int32), tf.TensorSpec([None] * len(shape))])
    def traced(key: Any, x: Any) -> Any:
        space = xp["tensorflow"].namespace()
        return kept(space, (key, 3), space.shape(x), p)

    assert np.array_equal(traced(tf.constant(key), tf.zeros(shape)), expected)
    found = kept(_Int32(torch.device("cpu")), (torch.from_numpy(key), 3), shape, p)
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("backend", ("numpy", *FRAMEWORKS))
def test_channels_and_self_normalising(backend: str) -> None:
    """Dropout of channels drops whole ones; alpha dropout keeps the mean 0 and the variance 1 of what comes in."""

    class Both(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return nn.functional.dropout2d(x, 0.25, self.training), nn.functional.alpha_dropout(x, 0.25, self.training)

    x = np.random.default_rng(0).normal(size=(64, 50, 8, 8)).astype(np.float32)
    model = zoo.capture(Both(), train=True, x=x[:2, :, :4]).load(backend)
    channels, alpha = (to_numpy(value) for value in model(x=x, rng=SEED).values())
    off = (channels == 0).all((2, 3))
    assert abs(off.mean() - 0.25) < 5 * (0.25 * 0.75 / off.size) ** 0.5
    np.testing.assert_allclose(channels[~off], x[~off] / 0.75, rtol=TOLERANCES["torch", "float32"])
    assert abs(alpha.mean()) < 5 / alpha.size**0.5
    assert abs(alpha.var() - 1) < 5 * (2 / alpha.size) ** 0.5
    reference = torch.nn.functional.alpha_dropout(torch.ones(100), 0.25, True).unique()
    ones = np.unique(
        to_numpy(zoo.capture(Both(), train=True, x=x[:2, :, :4]).load(backend)(x=x * 0 + 1, rng=1)["output.1"])
    )
    np.testing.assert_allclose(ones, reference, rtol=TOLERANCES["torch", "float32"])


# Keys


def test_seeds_are_one_key_everywhere() -> None:
    import jax
    import jax.numpy as jnp
    import tensorflow as tf

    jax_key, tf_key, torch_key, numpy_key = (
        get_backend(name).key_from for name in ("jax", "tensorflow", "torch", "numpy")
    )
    for seed in (0, 7, -1, 2**31, 2**32 + 5, 2**63 + 9, (3, 4), (2**32 - 1, -2)):
        for make in (jax_key, tf_key, torch_key, numpy_key):
            assert np.array_equal(make(seed), key_of(seed)), (make, seed)
    for seed in (0, 7, -1):
        assert np.array_equal(jax.jit(jax_key)(seed), key_of(seed))
        assert np.array_equal(tf.function(tf_key)(tf.constant(seed, tf.int64)), key_of(seed))
        assert np.array_equal(torch_key(torch.tensor(seed)), key_of(seed))
    words = np.array([3, 2**32 - 1], np.uint32)
    assert np.array_equal(jax_key(jnp.asarray(words)), key_of(words))
    assert np.array_equal(jax_key(jax.random.wrap_key_data(jnp.asarray(words))), key_of(words))
    assert jax_key(jax.random.key(1, impl="rbg")).shape == (2,)
    assert np.array_equal(tf_key(tf.constant([3, -1])), key_of(words))
    for wrong in (0.5, "a", (1, 2, 3), None, ()):
        with pytest.raises(InputError, match="seed"):
            key_of(wrong)


def test_generators_give_a_new_key_each_time() -> None:
    import tensorflow as tf

    made = {
        "torch": lambda: torch.Generator().manual_seed(1),
        "tensorflow": lambda: tf.random.Generator.from_seed(1),
        "numpy": lambda: np.random.default_rng(1),
    }
    for name, make in made.items():
        key_from, first, second = get_backend(name).key_from, make(), make()
        keys = [np.asarray(key_from(first)) for _ in range(3)]
        assert all(np.array_equal(key, key_from(second)) for key in keys), name
        assert len({key.tobytes() for key in keys}) == 3, name


@pytest.mark.parametrize("backend", (*FRAMEWORKS, "numpy", "keras"))
def test_one_key_one_result(backend: str) -> None:
    model, given = package("bert").load(backend), inputs("bert")
    first, again, other = (to_numpy(model(**given, rng=rng)["last_hidden_state"]) for rng in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other, atol=0.1)


# Against torch, with the masks of the key


def masks(graph: Any, shapes: list[tuple[int, ...]], seed: int) -> list[np.ndarray]:
    """What each dropout of the graph keeps, over the share that it keeps, in order."""
    found, xp = [], get_backend("numpy").namespace()
    nodes = [node for node in graph.nodes if drops(node)]
    assert len(nodes) == len(shapes)
    for number, (node, shape) in enumerate(zip(nodes, shapes, strict=True)):
        p = node.args[1] if node.op == "dropout" else node.args[4]
        found.append(kept(xp, (key_of(seed), number), shape, p) / (1 - p))
    return found


@functools.cache
def reference(model_type: str) -> tuple[Arrays, Arrays, Arrays]:
    """Outputs, what the loss weighs them with, and gradients of the module itself."""
    module = tiny.build(model_type, torch.float64).train()
    module.set_attn_implementation("eager")  # attention whose dropout is a call of its own
    given = {name: torch.from_numpy(array) for name, array in inputs(model_type).items()}
    shapes: list[tuple[int, ...]] = []

    def recording(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        if training and p:
            shapes.append(tuple(x.shape))
        return x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "dropout", recording)
        module(**given)
        queue = iter(masks(package(model_type).graph, shapes, SEED))

        def fed(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
            return x * torch.from_numpy(next(queue)) if training and p else x

        patch.setattr(nn.functional, "dropout", fed)
        outputs = {name: value for name, value in module(**given).items() if isinstance(value, torch.Tensor)}
    assert next(queue, None) is None
    rng, keep = np.random.default_rng(0), tiny.output_mask(model_type, inputs(model_type)) or {}
    weights = {}
    for name, value in outputs.items():
        noise = rng.normal(size=value.shape) / value.numel() ** 0.5
        noise[~keep.get(name, np.ones(noise.shape[:1], bool))] = 0
        weights[name] = noise.astype(np.float32)
    loss(outputs, {name: torch.from_numpy(array).double() for name, array in weights.items()}).backward()
    slopes = {name: x.grad.numpy() for name, x in module.named_parameters() if x.grad is not None}
    return {name: value.detach().numpy() for name, value in outputs.items()}, weights, slopes


@by_type
@by_framework
def test_outputs_and_gradients_are_torchs_with_the_same_masks(model_type: str, backend: str) -> None:
    model, given = package(model_type).load(backend), inputs(model_type)
    expected, weights, slopes = reference(model_type)
    outputs, found = GRADIENTS[backend](model, given, weights)
    for name, array in expected.items():
        counted = weights[name] != 0
        off = np.abs(outputs[name] - array)[counted].max() / np.abs(array[counted]).max()
        assert off <= TOLERANCES[backend, "float32"], f"{name} is off by {off:.2g}"
    largest = max(np.abs(array).max() for array in slopes.values())
    assert found.keys() >= slopes.keys()
    for name, array in slopes.items():
        off = np.abs(found[name] - array).max()
        assert off <= max(GRADIENT * np.abs(array).max(), GRADIENT_FLOOR * largest), f"{name} is off by {off:.2g}"
    still = {name: to_numpy(value) for name, value in model(**given).items()}
    assert any(np.abs(still[name] - expected[name]).max() > 0.1 for name in expected), "dropout changed nothing"


def torch_gradients(model: Any, given: Arrays, weights: Arrays) -> tuple[Arrays, Arrays]:
    outputs = model.apply(model.params, rng=SEED, **{name: torch.from_numpy(x) for name, x in given.items()})
    value = loss(outputs, {name: torch.from_numpy(x) for name, x in weights.items()})
    names = [name for name, x in model.params.items() if x.requires_grad]
    slopes = torch.autograd.grad(value, [model.params[name] for name in names], allow_unused=True)
    return arrays(outputs), arrays({n: s for n, s in zip(names, slopes, strict=True) if s is not None})


def jax_gradients(model: Any, given: Arrays, weights: Arrays) -> tuple[Arrays, Arrays]:
    """Under jit, with the key an argument like any other."""
    import jax

    @jax.jit
    def step(params: Any, key: Any) -> Any:
        def of(params: Any) -> Any:
            outputs = model.apply(params, rng=key, **given)
            return loss(outputs, weights), outputs

        return jax.grad(of, has_aux=True)(params)

    slopes, outputs = step(model.params, key_of(SEED))
    return arrays(outputs), arrays(slopes)


def tensorflow_gradients(model: Any, given: Arrays, weights: Arrays) -> tuple[Arrays, Arrays]:
    """In a tf.function, with the seed a tensor."""
    import tensorflow as tf

    @tf.function(autograph=False)
    def step(seed: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            outputs = model.apply(model.params, rng=seed, **given)
            value = tf.add_n([tf.reduce_sum(weights[name] * outputs[name] ** 2) for name in weights])
        return outputs, tape.gradient(value, model.params)

    outputs, slopes = step(tf.constant(SEED, tf.int64))
    return arrays(outputs), arrays({n: tf.convert_to_tensor(s) for n, s in slopes.items() if s is not None})


GRADIENTS: dict[str, Callable[[Any, Arrays, Arrays], tuple[Arrays, Arrays]]] = {
    "torch": torch_gradients,
    "jax": jax_gradients,
    "tensorflow": tensorflow_gradients,
}


def arrays(values: Mapping[str, Any]) -> Arrays:
    return {name: np.asarray(to_numpy(value), np.float64) for name, value in values.items()}


@by_type
def test_the_reference_on_numpy(model_type: str) -> None:
    """In float64, too, but with the numbers that the graph was captured with in float32."""
    outputs = package(model_type).load("numpy")(**inputs(model_type), rng=SEED)
    expected, weights, _ = reference(model_type)
    for name, array in expected.items():
        counted = weights[name] != 0
        off = np.abs(outputs[name] - array)[counted].max() / np.abs(array[counted]).max()
        assert off <= TOLERANCES["numpy", "float32"], f"{name} is off by {off:.2g}"


@by_framework
def test_attention_drops_its_weights(backend: str) -> None:
    """Causal, with fewer heads for keys than for queries: against the formula in float64."""

    class Attention(nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            p = 0.4 if self.training else 0.0
            return nn.functional.scaled_dot_product_attention(
                q, k, v, dropout_p=p, is_causal=True, enable_gqa=True, scale=0.7
            )

    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, heads, 5, 3)).astype(np.float32) for heads in (4, 2, 2))
    found = to_numpy(
        zoo.capture(Attention(), train=True, q=q, k=k, v=v).load(backend)(q=q, k=k, v=v, rng=SEED)["output"]
    )
    scores = 0.7 * q.astype(np.float64) @ np.repeat(k, 2, 1).swapaxes(-1, -2)
    powers = np.exp(np.where(np.tril(np.ones((5, 5), bool)), scores, -np.inf))
    on = kept(get_backend("numpy").namespace(), (key_of(SEED), 0), (2, 4, 5, 5), 0.4)
    expected = (powers / powers.sum(-1, keepdims=True) * on / 0.6) @ np.repeat(v, 2, 1)
    assert np.abs(found - expected).max() <= TOLERANCES[backend, "float32"] * np.abs(expected).max()


def test_jax_maps_over_keys() -> None:
    import jax

    model, given = package("bert").load("jax"), inputs("bert")
    keys = jax.random.split(jax.random.key(0), 3)
    mapped = jax.vmap(lambda key: model.apply(model.params, rng=key, **given)["last_hidden_state"])(keys)
    for key, found in zip(keys, mapped, strict=True):
        expected = model(**given, rng=key)["last_hidden_state"]
        assert np.abs(found - expected).max() <= TOLERANCES["jax", "float32"] * np.abs(expected).max()


# The frameworks' own objects


def test_torch_module_drops_in_training_mode() -> None:
    model, given = package("bert").load("torch"), {n: torch.from_numpy(x) for n, x in inputs("bert").items()}
    module = model.module
    still = model(**given)["last_hidden_state"]
    assert torch.equal(module(**given)["last_hidden_state"], still)
    module.train()
    with torch.random.fork_rng(devices=[]):
        results = []
        for seed in (5, 5, 6):
            torch.manual_seed(seed)
            results.append(module(**given)["last_hidden_state"])
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2], atol=0.1)
    assert torch.equal(module(**given, rng=3)["last_hidden_state"], model(**given, rng=3)["last_hidden_state"])
    assert torch.equal(module.eval()(**given)["last_hidden_state"], still)


def test_tensorflow_module_takes_a_key(tmp_path: Path) -> None:
    import tensorflow as tf

    model, given = package("bert").load("tensorflow"), {n: tf.constant(x) for n, x in inputs("bert").items()}
    found = model.module(**given, rng=(SEED, 1))["last_hidden_state"]
    assert np.array_equal(found, model(**given, rng=(SEED, 1))["last_hidden_state"])
    assert np.array_equal(model.module(**given)["last_hidden_state"], model(**given)["last_hidden_state"])
    tf.saved_model.save(model.module, str(tmp_path), signatures=model.module.signatures())
    served = tf.saved_model.load(str(tmp_path)).signatures["serving_default"](**given)
    assert np.array_equal(served["last_hidden_state"], model(**given)["last_hidden_state"])


KERAS = """
import os, sys, numpy as np, keras
import zoo
from zoo.backends.keras import GraphModel
package, data = sys.argv[1:]
given = dict(np.load(data))
labels = given.pop("labels")
model = zoo.load(package, backend="keras", train=True)

def made(seed):
    encoder = GraphModel(model.graph, zoo.load(package, backend="keras").params, output="pooler_output", seed=seed)
    names = {n: keras.Input(x.shape[1:], dtype="int32", name=n) for n, x in given.items()}
    keras.utils.set_random_seed(0)
    return encoder, keras.Model(names, keras.layers.Dense(2)(encoder(names)))

def fitted(seed):
    encoder, whole = made(seed)
    whole.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=JIT)
    whole.optimizer.learning_rate = 3e-3
    before = whole.evaluate(given, labels, batch_size=24, verbose=0)
    history = whole.fit(given, labels, batch_size=8, epochs=8, shuffle=False, verbose=0)
    after = whole.evaluate(given, labels, batch_size=24, verbose=0)  # without the dropout's noise
    return whole, history.history["loss"], before, after

JIT = keras.backend.backend() == "jax"
encoder, _ = made(1)
numpy = keras.ops.convert_to_numpy
still = numpy(encoder(given))
assert np.array_equal(still, numpy(encoder(given, training=False)))
first, second = numpy(encoder(given, training=True)), numpy(encoder(given, training=True))
assert not np.allclose(first, still, atol=0.01) and not np.allclose(first, second, atol=0.01)
again, _ = made(1)
assert np.array_equal(numpy(again(given, training=True)), first)
whole, losses, before, after = fitted(1)
assert losses == fitted(1)[1], "the same seed trains the same"
assert losses != fitted(2)[1]
assert after < 0.8 * before, (before, after, losses)
whole.save(sys.argv[2] + ".keras")
back = keras.saving.load_model(sys.argv[2] + ".keras")
assert np.array_equal(back.predict(given, verbose=0), whole.predict(given, verbose=0))
np.save(sys.argv[2] + "." + keras.backend.backend() + ".npy", first)
"""


@pytest.fixture(scope="module")
def keras_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("keras")
    package("bert").save(folder / "package")
    given = {name: x.astype(np.int32) for name, x in inputs("bert", 24, 7).items()}
    np.savez(folder / "data.npz", **given, labels=np.arange(24) % 2)
    return folder / "package", folder / "data.npz"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_keras_fits_with_dropout(keras_files: tuple[Path, Path], framework: str) -> None:
    environment = {**os.environ, "KERAS_BACKEND": framework}
    command = [sys.executable, "-W", "ignore", "-c", KERAS, *map(str, keras_files)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


# Capture


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.norm(self.conv(x)), 0.2, self.training)


def test_norms_keep_their_running_statistics() -> None:
    module = Normed()
    module.norm.running_mean += torch.arange(4)
    before = {name: x.clone() for name, x in module.state_dict().items()}
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    model = zoo.capture(module.train(), train=True, x=x).load("torch")
    assert module.training and module.norm.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    found, still = model(x=x, rng=1)["output"], module.eval()(x)
    on = found != 0
    assert 0.5 < on.float().mean() < 1
    torch.testing.assert_close(found[on], still[on] / 0.8)


def test_statistics_that_training_changes_are_refused() -> None:
    class Functional(Normed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            norm = self.norm
            return nn.functional.batch_norm(
                x[:, :1].expand(-1, 4, -1, -1), norm.running_mean, norm.running_var, training=self.training
            )

    class Counting(Normed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.norm.num_batches_tracked.add_(1)
            return super().forward(x)

    for module, name in ((Functional(), "norm.running_mean"), (Counting(), "norm.num_batches_tracked")):
        with pytest.raises(CaptureError, match="changes buffers") as caught:
            zoo.capture(module, train=True, x=torch.zeros(2, 3, 6, 6))
        assert name in str(caught.value)
        zoo.capture(module, x=torch.zeros(2, 3, 6, 6))


def test_dropout_that_is_on_in_evaluation_is_refused() -> None:
    class Always(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(x, 0.5, True)

    x = torch.ones(2, 50)
    with pytest.raises(CaptureError, match="even in evaluation"):
        zoo.capture(Always(), x=x)
    assert set(zoo.capture(Always(), train=True, x=x).load("numpy")(x=x.numpy(), rng=1)["output"].ravel()) == {0, 2}


def test_what_python_decides_is_off_and_said(tmp_path: Path) -> None:
    module = tiny.build("wav2vec2")
    module.config.layerdrop = 0.4
    graph = zoo.capture(module, train=True, **inputs("wav2vec2", 2, 7)).graph
    assert graph.meta["train_without"] == ["layerdrop", "apply_spec_augment"]
    assert module.config.layerdrop == 0.4 and module.config.apply_spec_augment and not module.training
    module.save_pretrained(tmp_path)
    assert any("layerdrop" in note for note in zoo.load(tmp_path, "numpy", train=True).notes)


@pytest.mark.parametrize("backend", ("numpy", *FRAMEWORKS, "native"))
def test_paths_are_dropped_by_row(backend: str) -> None:
    """transformers' own modules of stochastic depth: each row keeps each path, doubled, or loses all of it."""
    from transformers.models.swin.modeling_swin import SwinDropPath

    class Paths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.paths = nn.ModuleList(SwinDropPath(p) for p in (0.5, 0.5, 0.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sum(path(x * 4**number) for number, path in enumerate(self.paths))

    module, x = Paths(), np.ones((64, 3, 2), np.float32)
    graph = zoo.capture(module, train=True, x=x[:2])
    assert not any("forward" in vars(part) for part in module.modules())
    assert sum(map(drops, graph.graph.nodes)) == 2
    model = graph.load(backend)
    assert (to_numpy(model(x=x)["output"]) == 1 + 4 + 16).all()
    if backend != "native":
        found = to_numpy(model(x=x, rng=SEED)["output"])
        assert (found == found[:, :1, :1]).all()
        assert set(np.unique(found)) == {16 + 2 * first + 8 * second for first in (0, 1) for second in (0, 1)}


# Files and errors


def test_package_keeps_dropout(tmp_path: Path) -> None:
    package("bert").save(tmp_path / "on")
    package("bert", False).save(tmp_path / "off")
    given = inputs("bert")
    assert to_json(load_graph(tmp_path / "on" / GRAPH_FILE)) == to_json(package("bert").graph)
    expected = package("bert").load("numpy")(**given, rng=1)["last_hidden_state"]
    for train in (True, False):
        assert np.array_equal(
            zoo.load(tmp_path / "on", "numpy", train=train)(**given, rng=1).last_hidden_state, expected
        )
    with pytest.raises(ConfigError, match="evaluates only"):
        zoo.load(tmp_path / "off", "numpy", train=True)


def test_checkpoint_loads_for_training(tmp_path: Path) -> None:
    """Captured from the config, under the checkpoint's names; the cache keeps it apart from the one of evaluation."""
    tiny.build("bert").save_pretrained(tmp_path)
    given = inputs("bert")
    on, off = (zoo.load(tmp_path, "torch", train=train) for train in (True, False))
    assert sum(map(drops, on.graph.nodes)) == 7
    assert not any(map(drops, off.graph.nodes))
    assert torch.equal(on(**given).last_hidden_state, off(**given).last_hidden_state)
    expected = package("bert").load("torch")(**given, rng=1).last_hidden_state
    assert torch.equal(on(**given, rng=1).last_hidden_state, expected)
    assert type(on.module).__name__ == "BertModel" and not on.module.training


def test_keys_where_nothing_drops_are_an_error() -> None:
    model, given = package("bert", False).load("numpy"), inputs("bert")
    with pytest.raises(ConfigError, match="captured for evaluation"):
        model(**given, rng=1)
    with pytest.raises(UnsupportedOp, match="evaluates only"):
        package("bert").load("native")(**given, rng=1)
    with pytest.raises(InputError, match="seed"):
        package("bert").load("numpy")(**given, rng="7")
    # a model that drops nothing in training takes a key and is the same with it
    llama = zoo.capture(tiny.build("llama"), train=True, **inputs("llama", 2, 7)).load("numpy")
    given = inputs("llama")
    assert np.array_equal(llama(**given, rng=1).last_hidden_state, llama(**given).last_hidden_state)
    assert keyed(llama.graph).inputs[-1].name == "rng"


@pytest.fixture(autouse=True)
def _no_state_left() -> Iterator[None]:
    """No test leaves torch's global generator elsewhere."""
    state = torch.random.get_rng_state()
    yield
    torch.random.set_rng_state(state)
