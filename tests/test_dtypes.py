"""bfloat16 and float16 on every backend: what a load makes of a checkpoint's dtype, and how exact the result is."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers

import zoo
from zoo.arrays import to_numpy
from zoo.errors import ConfigError
from zoo.model import Package
from zoo.tolerances import PRODUCTS, tolerance

Arrays = dict[str, np.ndarray]

BACKENDS = ("torch", "jax", "tensorflow", "keras", "native")
HALVES = ("bfloat16", "float16")
TYPES = ("bert", "llama", "vit")


@functools.cache
def case(model_type: str, dtype: str) -> tuple[Package, Arrays, Arrays, np.ndarray | slice, float]:
    """The package in a dtype, inputs, float64's outputs on the rounded weights, what counts, and torch's own error."""
    config, kind = tiny.config(model_type), getattr(torch, dtype)
    own, exact = (transformers.AutoModel.from_config(config, dtype=d).eval() for d in (kind, torch.float64))
    own.load_state_dict(tiny.build(model_type).state_dict())
    exact.load_state_dict(own.state_dict())
    raw = tiny.inputs(model_type, 3, 11)
    given = {name: torch.from_numpy(x) for name, x in raw.items()}
    given = {name: x.to(kind) if x.is_floating_point() else x for name, x in given.items()}
    mask = (tiny.output_mask(model_type, raw) or {}).get("last_hidden_state", slice(None))
    with torch.no_grad():
        truth = exact(**{n: x.double() if x.is_floating_point() else x for n, x in given.items()}).last_hidden_state
        error = off(to_numpy(own(**given).last_hidden_state), truth.numpy(), mask)
    package = zoo.capture(own, **given)
    return package, {name: to_numpy(x) for name, x in given.items()}, {"last": truth.numpy()}, mask, error


def off(found: np.ndarray, truth: np.ndarray, mask: np.ndarray | slice) -> float:
    return float(np.abs(found.astype(np.float64) - truth)[mask].max() / np.abs(truth[mask]).max())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("model_type", [pytest.param(t, marks=pytest.mark.xdist_group(f"half-{t}")) for t in TYPES])
def test_as_exact_as_torch_in_the_same_dtype(model_type: str, dtype: str, backend: str) -> None:
    package, given, truth, mask, own = case(model_type, dtype)
    model = package.load(backend)
    assert {str(to_numpy(x).dtype) for name, x in model.params.items() if model.graph.params[name].trainable} == {dtype}
    found = to_numpy(model(**given)["last_hidden_state"])
    assert str(found.dtype) == dtype
    error = off(found, truth["last"], mask)
    assert error <= tolerance(backend, dtype, own), f"off by {error:.2g}, torch by {own:.2g}"


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
def test_the_checkpoints_own_dtype(tmp_path: Path, dtype: str) -> None:
    tiny.build("bert", getattr(torch, dtype)).save_pretrained(tmp_path)
    for backend in BACKENDS:
        model = zoo.load(tmp_path, backend, dtype="auto")
        assert {str(to_numpy(x).dtype) for x in model.params.values()} == {dtype}
        assert model.graph.meta["dtype"] == dtype
    assert {str(x.dtype) for x in zoo.load(tmp_path, "numpy").params.values()} == {"float32"}
    package = zoo.capture(tmp_path, dtype="auto")
    package.save(tmp_path / "package")
    assert zoo.load(tmp_path / "package", "torch", dtype="auto").graph.meta["dtype"] == dtype
    with pytest.raises(ConfigError, match="no model is loaded in this dtype"):
        zoo.load(tmp_path, dtype="float64")


def test_int8_is_the_native_engines(tmp_path: Path) -> None:
    tiny.build("bert").save_pretrained(tmp_path)
    given = tiny.inputs("bert", 3, 11)
    exact = zoo.load(tmp_path, "native")(**given)["last_hidden_state"]
    found = {}
    for dtype in ("bfloat16", "int8"):
        model = zoo.load(tmp_path, "native", dtype=dtype)
        found[dtype] = model(**given)["last_hidden_state"]
        assert found[dtype].dtype == np.float32 and {str(x.dtype) for x in model.params.values()} == {"float32"}
        assert 0 < off(found[dtype], exact, slice(None)) <= PRODUCTS[dtype]
        model.save(tmp_path / dtype)
        again = zoo.load(tmp_path / dtype, "native")(**given)["last_hidden_state"]
        assert np.array_equal(again, exact)
    again = zoo.load(tmp_path / "int8", "native", dtype="int8")(**given)["last_hidden_state"]
    assert np.array_equal(again, found["int8"])
    for backend in ("torch", "numpy"):
        with pytest.raises(ConfigError, match=r"only the native engine[\s\S]*int8"):
            zoo.load(tmp_path, backend, dtype="int8")
    zoo.capture(tmp_path, dtype="bfloat16").save(tmp_path / "half")
    with pytest.raises(ConfigError, match="another dtype"):
        zoo.load(tmp_path / "half", "native", dtype="int8")
    assert zoo.load(tmp_path / "half", "native", dtype="bfloat16").graph.meta["dtype"] == "bfloat16"


@pytest.mark.parametrize("kind", ["Bart", "Marian", "PLBart"])
@pytest.mark.parametrize("overflows", [False, True])
def test_float16_is_clamped_where_its_values_ask_for_it(kind: str, overflows: bool, tmp_path: Path) -> None:
    """As the module itself looks at its values and decides, bit for bit on torch."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=61, d_model=24, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, pad_token_id=1,
        decoder_attention_heads=4, encoder_ffn_dim=37, decoder_ffn_dim=53, max_position_embeddings=40,
        decoder_start_token_id=2, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    module = getattr(transformers, f"{kind}Model")(config).eval().half()
    if overflows:
        with torch.no_grad():
            module.encoder.layers[0].final_layer_norm.weight.fill_(6e4)
    module.save_pretrained(tmp_path / "m")
    rng = np.random.default_rng(0)
    inputs = {name: rng.integers(3, 61, (2, 7 - 2 * i)) for i, name in enumerate(("input_ids", "decoder_input_ids"))}
    with torch.no_grad():
        expected = module(**{name: torch.from_numpy(ids) for name, ids in inputs.items()})
    found = zoo.load(tmp_path / "m", "torch", dtype="float16")(**inputs)
    hidden = expected["encoder_last_hidden_state"]
    assert torch.isfinite(hidden).all() and (hidden.abs().max() > 60000) == overflows
    for name in ("encoder_last_hidden_state", "last_hidden_state"):
        assert torch.equal(torch.nan_to_num(found[name].detach()), torch.nan_to_num(expected[name])), name
