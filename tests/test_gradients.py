"""Gradients for every parameter on every framework, against autograd of the transformers module in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from tolerances import GRADIENT, GRADIENT_FLOOR

from zoo.arrays import to_numpy
from zoo.backends.torch import GraphModule
from zoo.model import Model, Package

Arrays = dict[str, np.ndarray]

BATCH, LENGTH = 3, 11
SEEDS = (0, 1)

by_type = pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ("bert", "llama", "vit")]
)


def inputs(model_type: str, seed: int = 0) -> Arrays:
    return tiny.inputs(model_type, BATCH, LENGTH, seed)


@functools.cache
def weights(model_type: str, seed: int = 0) -> Arrays:
    """What the loss weighs each output's elements with: noise, and nothing where a position is padding."""
    given = inputs(model_type, seed)
    masks = tiny.output_mask(model_type, given) or {}
    with torch.no_grad():
        outputs = tiny.build(model_type)(**tensors(given))
    rng, found = np.random.default_rng(seed), {}
    for name, value in outputs.items():
        noise = rng.normal(size=value.shape) / value.numel() ** 0.5
        noise[~masks.get(name, np.ones(noise.shape[:1], bool))] = 0
        found[name] = noise.astype(np.float32)
    return found


def loss(outputs: Mapping[str, Any], factors: Mapping[str, Any]) -> Any:
    """A number that every output's every element has a part in; squares, so that gradients depend on the values."""
    return sum((factors[name] * outputs[name] * outputs[name]).sum() for name in factors)


@functools.cache
def reference(model_type: str, seed: int = 0) -> Arrays:
    module = tiny.build(model_type, torch.float64)
    given = {name: x.double() if x.is_floating_point() else x for name, x in tensors(inputs(model_type, seed)).items()}
    loss(module(**given), {name: x.double() for name, x in tensors(weights(model_type, seed)).items()}).backward()
    return {name: x.grad.numpy() for name, x in module.named_parameters() if x.grad is not None}


def tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def assert_gradients(got: Mapping[str, Any], model_type: str, seed: int = 0) -> None:
    """Each of the reference's, and no others, close in its own scale, or where that is rounding in the model's."""
    expected = reference(model_type, seed)
    assert got.keys() == expected.keys()
    largest = max(np.abs(array).max() for array in expected.values())
    small = []
    for name, array in expected.items():
        found = np.asarray(got[name], np.float64)
        assert found.shape == array.shape, name
        allowed = max(GRADIENT * np.abs(array).max(), GRADIENT_FLOOR * largest)
        off = np.abs(found - array).max()
        assert off <= allowed, f"{name} is off by {off:.2g} of {np.abs(array).max():.2g}"
        if np.abs(array).max() <= GRADIENT_FLOOR * largest:
            small.append(name)
    # a key's bias shifts all scores of a query alike, which softmax takes out again
    assert all(name.endswith(("key.bias", "k_proj.bias")) for name in small), small


@pytest.fixture
def load(captured: Callable[..., Any]) -> Callable[[str, str], Model]:
    return lambda model_type, backend: Package(*captured(model_type)).load(backend)


@pytest.mark.slow
@by_type
def test_jax(load: Callable[[str, str], Model], model_type: str) -> None:
    """jax.grad, also of a jitted function and of one whose inputs have one axis more, mapped over."""
    import jax
    import jax.numpy as jnp

    model = load(model_type, "jax")

    def of(params: Any, given: Any, factors: Any) -> Any:
        return loss(model.apply(params, **given), factors)

    gradients = jax.grad(of)(model.params, inputs(model_type), weights(model_type))
    assert_gradients(gradients, model_type)
    jitted = jax.jit(jax.grad(of))(model.params, inputs(model_type), weights(model_type))
    assert_gradients(jitted, model_type)

    given, factors = (
        jax.tree.map(lambda *xs: jnp.stack(xs), *(make(model_type, seed) for seed in SEEDS))
        for make in (inputs, weights)
    )
    outputs = jax.vmap(lambda x: model.apply(model.params, **x))(given)
    for index, seed in enumerate(SEEDS):
        for name, array in model(**inputs(model_type, seed)).items():
            assert outputs[name][index].shape == array.shape
    mapped = jax.jit(jax.vmap(jax.grad(of), (None, 0, 0)))(model.params, given, factors)
    for index, seed in enumerate(SEEDS):
        assert_gradients({name: array[index] for name, array in mapped.items()}, model_type, seed)


@by_type
@pytest.mark.parametrize("through", ["apply", "module"])
def test_tensorflow(load: Callable[[str, str], Model], model_type: str, through: str) -> None:
    """A GradientTape over variables, around the pure function and around the tf.Module."""
    import tensorflow as tf

    model = load(model_type, "tensorflow")
    given, factors = inputs(model_type), weights(model_type)
    with tf.GradientTape() as tape:
        if through == "apply":
            outputs = model.apply(model.params, **given)
        else:
            outputs = model.module(**{name: tf.constant(array) for name, array in given.items()})
        value = tf.add_n([tf.reduce_sum(factors[name] * outputs[name] ** 2) for name in factors])
    gradients = tape.gradient(value, model.params)
    assert_gradients({name: tf.convert_to_tensor(g).numpy() for name, g in gradients.items()}, model_type)


@by_type
def test_torch(load: Callable[[str, str], Model], model_type: str) -> None:
    """Autograd of the graph as an nn.Module, and of the graph on parameters passed to it."""
    model = load(model_type, "torch")
    factors = tensors(weights(model_type))
    names = list(model.params)
    value = loss(model.apply(model.params, **tensors(inputs(model_type))), factors)
    found = torch.autograd.grad(value, [model.params[name] for name in names])
    assert_gradients(dict(zip(names, map(to_numpy, found), strict=True)), model_type)

    assert isinstance(model.module, GraphModule)
    loss(model.module(**tensors(inputs(model_type))), factors).backward()
    assert_gradients({name: to_numpy(x.grad) for name, x in model.params.items() if x.grad is not None}, model_type)
