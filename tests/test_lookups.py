"""Ids and positions outside their tables: an error where numbers or lengths are known, NaN where they are traced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch  # before tensorflow: see DESIGN.md's traps
from transformers import AutoModel, GPT2Config, OPTConfig, RobertaConfig

import zoo
from zoo.errors import InputError

import jax  # isort: skip
import jax.export  # isort: skip
import jax.numpy as jnp  # isort: skip
import tensorflow as tf  # isort: skip

ROWS = 40
LONGEST = 12
NO_CACHE = {"use_cache": False, "bos_token_id": 2, "eos_token_id": 2}
CONFIGS = {
    "gpt2": GPT2Config(n_embd=16, n_head=2, n_layer=1, vocab_size=ROWS, n_positions=LONGEST, **NO_CACHE),
    "roberta": RobertaConfig(
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        intermediate_size=16,
        vocab_size=ROWS,
        max_position_embeddings=LONGEST + 2,
        pad_token_id=1,
        **NO_CACHE,
    ),
    "opt": OPTConfig(
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        ffn_dim=16,
        vocab_size=ROWS,
        max_position_embeddings=LONGEST,
        word_embed_proj_dim=16,
        **NO_CACHE,
    ),
}
BACKENDS = ("torch", "jax", "tensorflow", "numpy", "native")
KINDS = {
    "list": lambda ids: ids.tolist(),
    "numpy": lambda ids: ids,
    "torch": torch.from_numpy,
    "jax": jnp.asarray,
    "tensorflow": tf.constant,
}


@pytest.fixture(scope="module")
def packages() -> dict[str, zoo.Package]:
    torch.manual_seed(0)
    example = {"input_ids": torch.full((2, 5), 3), "attention_mask": torch.ones(2, 5, dtype=torch.int64)}
    return {name: zoo.capture(AutoModel.from_config(config).eval(), **example) for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def models(packages: dict[str, zoo.Package]) -> Any:
    made: dict[tuple[str, str], zoo.Model] = {}

    def model(name: str, backend: str) -> zoo.Model:
        if (name, backend) not in made:
            made[name, backend] = packages[name].load(backend)
        return made[name, backend]

    return model


def ids(length: int = 5, value: int = 3) -> np.ndarray:
    array = np.full((2, length), 3, np.int64)
    array[1, 2] = value
    return array


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [-1, ROWS])
def test_ids_outside_the_vocabulary_are_refused(models: Any, backend: str, kind: str, value: int) -> None:
    model = models("gpt2", backend)
    given = {"input_ids": KINDS[kind](ids(value=value)), "attention_mask": np.ones((2, 5), np.int64)}
    with pytest.raises(InputError, match="outside"):
        model(**given)
    with pytest.raises(InputError, match="outside"):
        model.apply(model.params, **given)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_lengths_beyond_the_positions_are_refused(models: Any, name: str, backend: str) -> None:
    model = models(name, backend)
    mask = np.ones((2, LONGEST + 1), np.int64)
    model(input_ids=ids(LONGEST), attention_mask=mask[:, 1:])
    with pytest.raises(InputError, match=r"outside|too long"):
        model(input_ids=ids(LONGEST + 1), attention_mask=mask)
    with pytest.raises(InputError, match=r"outside|too long"):
        model.apply(model.params, input_ids=ids(LONGEST + 1), attention_mask=mask)


@pytest.mark.parametrize("value", [-1, ROWS])
@pytest.mark.parametrize("backend", ["jax", "tensorflow"])
def test_rows_of_traced_ids_outside_are_nan(models: Any, backend: str, value: int) -> None:
    """The row with such an id is NaN, the other what it was."""
    model = models("gpt2", backend)
    right = np.asarray(model(input_ids=ids(), attention_mask=np.ones((2, 5), np.int64)).last_hidden_state)
    if backend == "jax":
        traced = jax.jit(lambda x, mask: model.apply(model.params, input_ids=x, attention_mask=mask))
        out = traced(jnp.asarray(ids(value=value)), jnp.ones((2, 5), int))
    else:
        traced = tf.function(lambda x, mask: model.apply(model.params, input_ids=x, attention_mask=mask))
        out = traced(tf.constant(ids(value=value)), tf.ones((2, 5), tf.int64))
    found = np.asarray(out["last_hidden_state"])
    assert np.isnan(found[1, 2]).all()
    np.testing.assert_allclose(found[0], right[0], atol=1e-5)


def test_static_lengths_under_jit_are_refused(models: Any) -> None:
    model = models("gpt2", "jax")
    with pytest.raises(InputError, match="too long"):
        jax.jit(lambda x: model.apply(model.params, input_ids=x, attention_mask=jnp.ones_like(x)))(
            jnp.asarray(ids(LONGEST + 1))
        )


def test_symbolic_lengths_beyond_the_positions_are_nan(models: Any) -> None:
    model = models("gpt2", "jax")
    shape = jax.export.symbolic_shape("b, t", constraints=["t<=64"])
    spec = jax.ShapeDtypeStruct(shape, jnp.int32)
    call = jax.jit(lambda x, mask: model.apply(model.params, input_ids=x, attention_mask=mask)["last_hidden_state"])
    program = jax.export.export(call)(spec, spec)
    short = np.asarray(program.call(jnp.asarray(ids()), jnp.ones((2, 5), int)))
    right = np.asarray(model(input_ids=ids(), attention_mask=np.ones((2, 5), np.int64)).last_hidden_state)
    np.testing.assert_allclose(short, right, atol=1e-5)
    long = np.asarray(program.call(jnp.asarray(ids(LONGEST + 3)), jnp.ones((2, LONGEST + 3), int)))
    assert np.isnan(long[:, LONGEST:]).all()
