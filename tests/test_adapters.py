"""Our kernels as operations of torch, JAX and TensorFlow: values, gradients, transformations, and what does not fit."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import tiny
import torch
from tolerances import GRADIENT, TOLERANCES

import zoo
from zoo import cli
from zoo.adapters import ACTIVATIONS, FRAMEWORKS, adapter, check, fast, plain
from zoo.adapters.check import CASES, Case, verify_kernels
from zoo.arrays import to_numpy
from zoo.backends import get_backend
from zoo.errors import ConfigError, MissingFramework, VerifyError
from zoo.model import Model, prepare_inputs

ROOT = Path(__file__).parents[1]
EXACT = plain(get_backend("numpy").namespace())


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def array_of(framework: str) -> Callable[[Any], Any]:
    return {"torch": torch.from_numpy, "jax": jnp.asarray, "tensorflow": tf.constant}[framework]


def close(got: Any, truth: np.ndarray, framework: str, allowed: float | None = None) -> None:
    got = to_numpy(got)
    assert got.dtype == np.float32 and got.shape == truth.shape
    scale = max(np.abs(truth).max(), 1e-30) if truth.size else 1.0
    allowed = TOLERANCES[framework, "float32"] if allowed is None else allowed
    assert np.abs(got - truth).max(initial=0) <= allowed * scale


def wide(*arrays: Any) -> list[Any]:
    return [x if x is None or x.dtype == bool else x.astype(np.float64) for x in arrays]


NORMS = [
    ((3, 7), True, True, True, False),
    ((2, 5, 33), True, True, False, False),
    ((4, 768), False, True, True, False),
    ((6, 100), True, False, False, True),
    ((2, 3, 16), False, True, False, True),
    ((1, 1), True, True, True, False),
    ((0, 8), True, True, True, False),
]


def norm_arguments(shape: Any, residual: bool, weight: bool, bias: bool) -> tuple[Any, ...]:
    cols = shape[-1]
    parts = (numbers(*shape, seed=1), numbers(cols, seed=2), numbers(cols, seed=3))
    return numbers(*shape) + 3, *(p if has else None for p, has in zip(parts, (residual, weight, bias), strict=True))


ATTENTION = [
    ((2, 3, 9, 8), (2, 3, 11, 8), None, False),
    ((1, 4, 33, 16), (1, 2, 33, 16), None, True),
    ((2, 4, 40, 8), (2, 4, 300, 8), "pad", False),
    ((2, 2, 5, 8), (2, 2, 7, 8), "dead", False),
    ((2, 2, 20, 8), (2, 2, 20, 8), "triangle", False),
    ((2, 2, 6, 8), (2, 2, 6, 8), "bias", False),
    ((2, 2, 6, 8), (2, 2, 6, 8), "row", False),
    ((1, 2, 1, 8), (1, 1, 50, 8), "pad", False),
    ((0, 2, 3, 8), (0, 2, 3, 8), None, False),
]


def attention_arguments(q: Any, k: Any, mask: Any) -> tuple[Any, ...]:
    batch, heads, queries, _ = q
    keys = k[2]
    made: dict[Any, Any] = {
        None: None,
        "triangle": np.tri(queries, keys, dtype=bool),
        "bias": numbers(heads, queries, keys, seed=7),
        "row": numbers(batch, 1, 1, keys, seed=8),
    }
    if mask in ("pad", "dead"):
        made[mask] = np.random.default_rng(0).random((batch, 1, queries, keys)) < 0.8
        made[mask][..., 0] = True
    if mask == "dead":  # a query that sees no key
        made[mask][0, 0, 2] = False
    return numbers(*q), numbers(*k, seed=1), numbers(*k, seed=2), made[mask]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("shape", "residual", "weight", "bias", "rms"), NORMS)
def test_norm(framework: str, shape: Any, residual: bool, weight: bool, bias: bool, rms: bool) -> None:
    given = norm_arguments(shape, residual, weight, bias)
    out, total = adapter(framework).norm(*(None if x is None else array_of(framework)(x) for x in given), 1e-5, rms)
    truth, exact_total = EXACT["norm"](*wide(*given), 1e-5, rms)
    close(out, truth, framework)
    close(total, exact_total, framework)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("q", "k", "mask", "causal"), ATTENTION)
def test_attention(framework: str, q: Any, k: Any, mask: Any, causal: bool) -> None:
    given = attention_arguments(q, k, mask)
    arrays = [None if x is None else array_of(framework)(x) for x in given]
    for scale in (None, 0.3):
        truth = EXACT["attention"](*wide(*given), causal, scale)
        close(adapter(framework).attention(*arrays, causal, scale), truth, framework)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated(framework: str, activation: str) -> None:
    for shape in ((3, 50), (17,), (2, 0, 4)):
        x, y = numbers(*shape) * 3, numbers(*shape, seed=1)
        got = adapter(framework).gated(array_of(framework)(x), array_of(framework)(y), activation)
        close(got, EXACT["gated"](*wide(x, y), activation), framework)


def test_torch_takes_strided_tensors() -> None:
    ours = adapter("torch")
    x, y = torch.from_numpy(numbers(4, 6, 10)), torch.from_numpy(numbers(6, 4, 10, seed=1))
    for a, b in (
        (x.transpose(0, 1), y),
        (x[::2, ::3], y[:2, :2]),
        (x[:, :, ::2], x[:, :, 1::2]),
        (x.mT, y.permute(1, 2, 0)),
    ):
        plain_out, plain_sum = ours.PLAIN["norm"](a.double(), b.double(), None, None, 1e-5, False)
        out, total = ours.norm(a, b, None, None, 1e-5, False)
        close(out, plain_out.numpy(), "torch")
        close(total, plain_sum.numpy(), "torch")
        close(ours.gated(a, b, "silu"), ours.PLAIN["gated"](a.double(), b.double(), "silu").numpy(), "torch")
    q = torch.from_numpy(numbers(2, 8, 5, 3)).mT  # its last dim is not the inner one
    wide_mask = torch.from_numpy(numbers(1, 1, 1, 5) > -1).expand(2, 3, 5, 5)
    heads = torch.from_numpy(numbers(2, 3, 5, 8, seed=3))
    for mask in (None, wide_mask):
        for k in (heads, heads[:, :1].expand(2, 3, 5, 8)):
            truth = ours.PLAIN["attention"](heads.double(), k.double(), heads.double(), mask, False, None)
            close(ours.attention(heads, k, heads, mask, False, None), truth.numpy(), "torch")
    assert torch.isfinite(ours.attention(q, q, q, None, False, None)).all()
    truth = ours.PLAIN["attention"](q.double(), q.double(), q.double(), None, False, None)
    close(ours.attention(q, q, q, None, False, None), truth.numpy(), "torch")


GRADIENTS = [
    *(("norm", norm_arguments(s, r, w, b), (1e-5, rms)) for s, r, w, b, rms in NORMS[:5]),
    *(("attention", attention_arguments(q, k, mask), (causal, None)) for q, k, mask, causal in ATTENTION[:8]),
    *(("gated", (numbers(5, 7), numbers(5, 7, seed=1)), (name,)) for name in ACTIVATIONS),
]


@functools.cache
def exact_gradients(index: int) -> list[np.ndarray | None]:
    """torch's autograd in float64 on its own functions: of sum(results * weights)."""
    name, given, options = GRADIENTS[index]
    leaves = [
        None if x is None else torch.from_numpy(x) if x.dtype == bool else torch.from_numpy(x).double() for x in given
    ]
    for leaf in leaves:
        if leaf is not None and leaf.is_floating_point():
            leaf.requires_grad_()
    loss(adapter("torch").PLAIN[name](*leaves, *options)).backward()
    return [None if leaf is None or leaf.grad is None else leaf.grad.numpy() for leaf in leaves]


def loss(results: Any) -> Any:
    results = results if isinstance(results, (tuple, list)) else (results,)
    total: Any = 0
    for i, x in enumerate(results):
        weights = numbers(*x.shape, seed=20 + i)
        if isinstance(x, torch.Tensor):
            total = total + (x * torch.from_numpy(weights).to(x.dtype)).sum()
        elif isinstance(x, jax.Array):
            total = total + (x * weights).sum()
        else:
            total = total + tf.reduce_sum(x * weights)
    return total


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("index", range(len(GRADIENTS)))
def test_gradients(framework: str, index: int) -> None:
    name, given, options = GRADIENTS[index]
    function = getattr(adapter(framework), name)
    arrays = [None if x is None else array_of(framework)(x) for x in given]
    where = [i for i, x in enumerate(given) if x is not None and x.dtype != bool]
    if framework == "torch":
        for i in where:
            arrays[i].requires_grad_()
        loss(function(*arrays, *options)).backward()
        got = [arrays[i].grad for i in where]
    elif framework == "jax":

        def of(*floats: Any) -> Any:
            full = list(arrays)
            for i, x in zip(where, floats, strict=True):
                full[i] = x
            return loss(function(*full, *options))

        got = list(jax.jit(jax.grad(of, tuple(range(len(where)))))(*(arrays[i] for i in where)))
    else:
        floats = [arrays[i] for i in where]
        with tf.GradientTape() as tape:
            tape.watch(floats)
            result = loss(function(*arrays, *options))
        got = tape.gradient(result, floats)
    for i, gradient in zip(where, got, strict=True):
        truth = exact_gradients(index)[i]
        assert truth is not None
        close(to_numpy(gradient), truth, framework, GRADIENT)


@pytest.mark.parametrize("index", [0, 3, 5, 7, 10, 13])
def test_torch_opcheck(index: int) -> None:
    import zoo.adapters.torch  # noqa: F401  (which registers the operations)

    name, given, options = GRADIENTS[index]
    arrays = [None if x is None else torch.from_numpy(x) for x in given]
    for x in arrays:
        if x is not None and x.is_floating_point():
            x.requires_grad_()
    if name == "norm":
        x, residual, weight, bias = arrays
        if residual is None:
            torch.library.opcheck(torch.ops.anyzoo.norm.default, (x, weight, bias, *options))
        else:
            torch.library.opcheck(torch.ops.anyzoo.add_norm.default, (x, residual, weight, bias, *options))
    elif name == "attention":
        torch.library.opcheck(torch.ops.anyzoo.attention.default, (*arrays, options[0], 0.5))
    else:
        torch.library.opcheck(torch.ops.anyzoo.gated.default, (*arrays, 2))


def kernels_in_a_row(ours: Any) -> Callable[..., Any]:
    """A function of one [B, T, 32] array that uses each kernel."""

    def function(x: Any, weight: Any) -> Any:
        out, total = ours.norm(x, x, weight, None, 1e-5, False)
        heads = out.reshape(x.shape[0], x.shape[1], 4, 8)
        q = heads.transpose(1, 2) if isinstance(x, torch.Tensor) else heads.swapaxes(1, 2)
        attended = ours.attention(q, q, q, None, True, None)
        joined = (attended.transpose(1, 2) if isinstance(x, torch.Tensor) else attended.swapaxes(1, 2)).reshape(x.shape)
        return ours.gated(joined, total, "silu")

    return function


def test_torch_compile_and_export() -> None:
    x, weight = torch.from_numpy(numbers(2, 5, 32)), torch.from_numpy(numbers(32))
    function = kernels_in_a_row(adapter("torch"))
    truth = function(x, weight)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    close(compiled(x, weight), truth.numpy(), "torch")
    longer = torch.from_numpy(numbers(3, 9, 32))
    close(compiled(longer, weight), function(longer, weight).numpy(), "torch")
    leaf = x.clone().requires_grad_()
    loss(compiled(leaf, weight)).backward()
    other = x.clone().requires_grad_()
    loss(function(other, weight)).backward()
    assert leaf.grad is not None and other.grad is not None
    close(leaf.grad, other.grad.numpy(), "torch")

    class Module(torch.nn.Module):
        def forward(self, x: Any, weight: Any) -> Any:
            return function(x, weight)

    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Module(), (x, weight), dynamic_shapes={"x": {0: batch}, "weight": None})
    assert any("anyzoo" in str(node.target) for node in program.graph.nodes)
    close(program.module()(numbers_of(5, 5, 32), weight), function(numbers_of(5, 5, 32), weight).numpy(), "torch")


def numbers_of(*shape: int) -> torch.Tensor:
    return torch.from_numpy(numbers(*shape))


def test_jax_vmap_and_its_gradient() -> None:
    ours = adapter("jax")
    function = kernels_in_a_row(ours)
    xs, weight, weights = jnp.asarray(numbers(3, 2, 5, 32)), jnp.asarray(numbers(32)), jnp.asarray(numbers(3, 32))
    for axes, w in ((((0, None)), weight), ((0, 0), weights)):
        got = jax.jit(jax.vmap(function, axes))(xs, w)
        truth = np.stack([np.asarray(function(xs[i], w[i] if w.ndim > 1 else w)) for i in range(3)])
        close(got, truth, "jax")
        slopes = jax.grad(lambda xs: jax.vmap(function, axes)(xs, w).sum())(xs)  # noqa: B023
        alone = np.stack([np.asarray(jax.grad(lambda x, i=i: function(x, w[i] if w.ndim > 1 else w).sum())(xs[i])) for i in range(3)])  # fmt: skip # noqa: B023, E501
        close(slopes, alone, "jax", GRADIENT)
    q, mask = jnp.asarray(numbers(3, 2, 4, 6, 8)), jnp.asarray(numbers(3, 1, 1, 6, 6) > -0.5)
    for axes, m in (((0, None, None, 0), mask), ((0, None, None, None), mask[0])):
        got = jax.vmap(lambda q, k, v, m: ours.attention(q, k, v, m, False, None), axes)(q, q[0], q[1], m)
        each = [ours.attention(q[i], q[0], q[1], m[i] if axes[3] == 0 else m, False, None) for i in range(3)]
        close(got, np.stack([np.asarray(x) for x in each]), "jax")


def test_tensorflow_function_and_saved_model(tmp_path: Path) -> None:
    ours = adapter("tensorflow")

    class Module(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = tf.Variable(numbers(32))

        @tf.function(input_signature=[tf.TensorSpec([None, None, 32])])
        def __call__(self, x: Any) -> Any:
            out, total = ours.norm(x, x, self.weight, None, 1e-5, False)
            heads = tf.transpose(tf.reshape(out, (tf.shape(x)[0], tf.shape(x)[1], 4, 8)), (0, 2, 1, 3))
            attended = tf.transpose(ours.attention(heads, heads, heads, None, True, None), (0, 2, 1, 3))
            return ours.gated(tf.reshape(attended, tf.shape(x)), total, "gelu")

    module, x = Module(), tf.constant(numbers(2, 7, 32))
    with tf.GradientTape() as tape:
        result = loss(module(x))
    slope = tape.gradient(result, module.weight)
    leaf = torch.from_numpy(numbers(32)).requires_grad_()
    torch_x = torch.from_numpy(numbers(2, 7, 32))
    out, total = adapter("torch").norm(torch_x, torch_x, leaf, None, 1e-5, False)
    heads = out.reshape(2, 7, 4, 8).transpose(1, 2)
    attended = adapter("torch").attention(heads, heads, heads, None, True, None).transpose(1, 2).reshape(2, 7, 32)
    truth = adapter("torch").gated(attended, total, "gelu")
    close(module(x), truth.detach().numpy(), "tensorflow")
    loss(truth).backward()
    assert leaf.grad is not None
    close(slope, leaf.grad.numpy(), "tensorflow", GRADIENT)

    tf.saved_model.save(module, str(tmp_path / "saved"))
    code = f"""
import numpy as np, torch, tensorflow as tf
from zoo.adapters import adapter
adapter("tensorflow")
loaded = tf.saved_model.load({str(tmp_path / "saved")!r})
x = np.load({str(tmp_path / "x.npy")!r})
np.save({str(tmp_path / "y.npy")!r}, loaded(tf.constant(x)).numpy())
"""
    np.save(tmp_path / "x.npy", numbers(3, 4, 32))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=240)
    close(np.load(tmp_path / "y.npy"), to_numpy(module(tf.constant(numbers(3, 4, 32)))), "tensorflow")


def call_norm(f: Any, ours: Any, x: Any, residual: Any = None, weight: Any = None) -> Any:
    return ours.norm(
        f(x), None if residual is None else f(residual), None if weight is None else f(weight), None, 1e-5, False
    )


def call_attention(f: Any, ours: Any, q: Any, k: Any, v: Any = None, mask: Any = None) -> Any:
    return ours.attention(f(q), f(k), f(k if v is None else v), None if mask is None else f(mask), False, None)


HEADS = numbers(2, 1, 2, 4)
HALF = numbers(2, 3).astype(np.float16)
BAD: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "a residual of another shape": ("residual", lambda f, o: call_norm(f, o, numbers(2, 3), numbers(3, 2))),
    "a weight of another size": ("weight", lambda f, o: call_norm(f, o, numbers(2, 3), None, numbers(4))),
    "no dims": ("dim", lambda f, o: call_norm(f, o, numbers())),
    "half precision": ("float", lambda f, o: call_norm(f, o, HALF)),
    "three dims": ("four dims", lambda f, o: call_attention(f, o, numbers(2, 3, 4), numbers(2, 3, 4))),
    "keys of another width": ("fit", lambda f, o: call_attention(f, o, HEADS, numbers(2, 1, 2, 5), HEADS)),
    "heads that do not divide": (
        "multiple",
        lambda f, o: call_attention(f, o, numbers(1, 3, 2, 4), numbers(1, 2, 2, 4)),
    ),
    "another batch": ("batch", lambda f, o: call_attention(f, o, HEADS, numbers(3, 1, 2, 4))),
    "a mask that does not broadcast": (
        "mask",
        lambda f, o: call_attention(f, o, HEADS, HEADS, None, np.ones((3, 1, 2, 2), bool)),
    ),
    "gated of two shapes": ("shape", lambda f, o: o.gated(f(numbers(2, 3)), f(numbers(6)), "relu")),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_is_an_error(framework: str, what: str) -> None:
    message, call = BAD[what]
    with pytest.raises(Exception) as caught:  # each framework has its own kinds
        to_numpy(call(array_of(framework), adapter(framework)))
    assert not isinstance(caught.value, AssertionError)
    assert message in str(caught.value)


def fast_model(captured: Callable[..., Any], model_type: str, backend: str, faster: bool) -> tuple[Model, Model]:
    """The tiny model with the backend's own kernels, and with ours wherever they fit."""
    graph, params = captured(model_type)
    module = get_backend(backend)
    models = []
    for ours in (None, fast.Fast(backend)):
        models.append(
            Model("tiny", backend, graph, module.params_from(params, graph), {}, None, _backend=module, _fast=ours)
        )
    return models[0], models[1]


def everywhere(speed: float) -> Any:
    """A table of measurements in which every kernel has one speed."""
    kernels = {case.kernel: [[list(case.sizes), speed]] for case in CASES}
    return lambda: dict.fromkeys(FRAMEWORKS, kernels)


FUSED = {
    "bert": {"attention masked", "layer_norm", "add_layer_norm"},
    "llama": {"attention masked", "rms_norm", "add_rms_norm", "gated silu"},
}


@pytest.mark.parametrize("backend", FRAMEWORKS)
@pytest.mark.parametrize("model_type", [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in FUSED])
def test_fast_models_compute_the_same(
    captured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, backend: str, model_type: str
) -> None:
    inputs = tiny.inputs(model_type, 2, 9)
    monkeypatch.setattr(fast, "measured", everywhere(2.0))
    own, ours = fast_model(captured, model_type, backend, True)
    with torch.no_grad():
        truth, got = own(**inputs), ours(**inputs)
    for name in truth:
        close(to_numpy(got[name]), to_numpy(truth[name]), backend)
    report = ours.fast_report()
    used = {choice.kernel for choice in report.choices if choice.ours}
    assert used >= FUSED[model_type], str(report)
    assert "2.00x" in str(report)
    monkeypatch.setattr(fast, "measured", everywhere(0.5))
    _, slow = fast_model(captured, model_type, backend, False)
    with torch.no_grad():
        close(to_numpy(slow(**inputs)[name]), to_numpy(truth[name]), backend)
    assert not any(choice.ours for choice in slow.fast_report().choices) and slow.fast_report().choices


def test_a_choice_rests_on_the_nearest_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"torch": {"layer_norm": [[[1, 768], 0.5], [[128, 768], 1.5], [[4096, 768], 0.97]]}}
    monkeypatch.setattr(fast, "measured", lambda: table)
    assert fast.choose("torch", "layer_norm", (100, 768)).ours
    assert not fast.choose("torch", "layer_norm", (1, 700)).ours
    assert not fast.choose("torch", "layer_norm", (4000, 768)).ours
    assert not fast.choose("torch", "layer_norm", (None, 768)).ours  # it may be the row that is slower
    assert not fast.choose("torch", "add_layer_norm", (100, 768)).ours
    table["torch"]["layer_norm"][0][1] = 0.96
    assert fast.choose("torch", "layer_norm", (None, 768)).ours


def test_the_measured_table_is_of_the_cases() -> None:
    table = json.loads(fast.MEASURED.read_text())
    assert table
    cases = {(case.kernel, case.sizes) for case in CASES}
    for frameworks in table.values():
        assert set(frameworks) <= set(FRAMEWORKS)
        for kernels in frameworks.values():
            assert {(kernel, tuple(sizes)) for kernel, points in kernels.items() for sizes, _ in points} == cases


def test_gradients_are_the_frameworks_own_where_torch_records_them(
    captured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast, "measured", everywhere(2.0))
    own, ours = fast_model(captured, "bert", "torch", True)
    inputs = tiny.inputs("bert", 2, 9)
    name = next(iter(own.graph.outputs))
    tensors = {key: torch.from_numpy(array) for key, array in inputs.items()}
    for call in (lambda m: m.apply(m.params, **inputs), lambda m: m.module(**tensors)):
        for model in (own, ours):
            for parameter in model.params.values():
                parameter.grad = None
            (call(model)[name] ** 2).sum().backward()
        assert not ours.fast_report().choices
        assert any(parameter.grad is not None for parameter in own.params.values())
        for parameter in own.params:
            if own.params[parameter].grad is not None:
                assert torch.equal(own.params[parameter].grad, ours.params[parameter].grad)


def test_a_missing_adapter_breaks_nothing(captured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(framework: str) -> Any:
        raise MissingFramework("the adapter is not built")

    monkeypatch.setattr(fast, "adapter", missing)
    own, ours = fast_model(captured, "bert", "torch", True)
    inputs = tiny.inputs("bert", 2, 9)
    with torch.no_grad():
        for name, value in own(**inputs).items():
            assert torch.equal(value, ours(**inputs)[name])
    assert "not built" in str(ours.fast_report())
    for backend in ("numpy", "native"):
        assert fast.Fast(backend).report.reason
    with pytest.raises(ConfigError, match="own kernels"):
        own.fast_report()


def test_load_fast(tmp_path: Path, captured: Callable[..., Any]) -> None:
    from zoo.model import Package

    graph, params = captured("bert")
    Package(graph, params).save(tmp_path / "pkg")
    model = zoo.load(tmp_path / "pkg", backend="torch", fast=True)
    with torch.no_grad():
        model(**prepare_inputs(graph.inputs, graph.symbols, tiny.inputs("bert", 2, 9)))
    assert model.fast_report().choices
    model.save(tmp_path / "again")  # the graph that is saved is the model's, without our nodes
    zoo.load(tmp_path / "again", backend="numpy")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_kernel_is_right_at_every_shape(framework: str) -> None:
    report = verify_kernels([framework], rounds=0)
    assert len(report.rows) == len(CASES)
    report.raise_for_failure()


def test_verify_kernels_finds_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [Case("add_layer_norm", (4, 32)), Case("attention masked", (2, 4, 2, 6, 9, 8)), Case("gated silu", (3, 50))]
    report = verify_kernels(FRAMEWORKS, cases, rounds=1)
    assert report.ok and len(report.rows) == 9
    assert all(row.ulps is not None and row.ratio is not None and row.ratio > 0 for row in report.rows)
    json.dumps(report.to_json(), allow_nan=False)
    ours = adapter("torch")
    right = ours.norm
    monkeypatch.setattr(ours, "norm", lambda *args: tuple(x * (1 + 1e-5) for x in right(*args)))
    broken = verify_kernels(["torch"], cases, rounds=0)
    assert [row.ok for row in broken.rows] == [False, True, True]
    with pytest.raises(VerifyError, match="add_layer_norm 4x32 on torch"):
        broken.raise_for_failure()
    monkeypatch.setattr(ours, "norm", lambda *args: 1 / 0)
    assert "ZeroDivisionError" in verify_kernels(["torch"], cases, rounds=0).rows[0].reason
    with pytest.raises(VerifyError, match="no kernels"):
        verify_kernels(["keras"])


def test_the_command_that_verifies_kernels(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main(["verify", *arguments])
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    cases = [Case("rms_norm", (4, 32)), Case("attention", (1, 2, 2, 5, 5, 8))]
    monkeypatch.setattr(check, "verify_kernels", functools.partial(verify_kernels, cases=cases, rounds=1))
    code, out, _ = run("--kernels", "--backend", "torch", "--json")
    assert code == 0 and [row["kernel"] for row in json.loads(out)["rows"]] == ["rms_norm", "attention"]
    code, out, _ = run("--kernels", "--backend", "torch")
    assert code == 0 and "1x2x2x5x5x8" in out and "all right" in out
    ours = adapter("torch")
    right = ours.attention
    monkeypatch.setattr(ours, "attention", lambda *args: right(*args) + 1e-4)
    code, out, err = run("--kernels", "--backend", "torch")
    assert code == 1 and "attention 1x2x2x5x5x8 on torch" in err
    assert run("--kernels", "bert-base")[0] == run()[0] == 2


_AGAIN = """
import sys
import torch
def use():
    import zoo
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8)).eval()
    x = torch.randn(3, 4)
    package = zoo.capture(module, input=x)
    for backend in ("torch", "jax"):
        model = zoo.load(package, backend, fast=True)
        found = torch.from_numpy(__import__("numpy").array(model(input=x.numpy())["output"]))
        assert (found - module(x)).abs().max() < float(sys.argv[1]) * module(x).abs().max()
        model.fast_report()
use()
for name in [name for name in sys.modules if name.partition(".")[0] in ("zoo", "converters")]:
    del sys.modules[name]
use()
import importlib, zoo.adapters.torch
importlib.reload(zoo.adapters.torch)
"""


def test_zoo_can_be_imported_again() -> None:
    """torch takes an operation's name once in a process."""
    arguments = [sys.executable, "-W", "ignore", "-c", _AGAIN, str(TOLERANCES["jax", "float32"])]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_several_devices_keep_their_parts(tmp_path: Path) -> None:
    """XLA would gather what a foreign call takes: the graph stays the framework's own there."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import jax, numpy as np, tiny, zoo
from jax.sharding import Mesh, NamedSharding, PartitionSpec
tiny.build("bert").save_pretrained({str(tmp_path)!r})
own, fast = (zoo.load({str(tmp_path)!r}, "jax", fast=fast) for fast in (False, True))
ids = np.arange(64).reshape(4, 16) % 50
batch = NamedSharding(Mesh(np.array(jax.devices()), ("batch",)), PartitionSpec("batch"))
run = jax.jit(lambda params, ids: fast.apply(params, input_ids=ids)["last_hidden_state"])
out = run(fast.params, jax.device_put(ids, batch))
assert len(out.sharding.device_set) == 2 and out.addressable_shards[0].data.shape[0] == 2, out.sharding
assert "several devices" in fast.fast_report().reason
assert "all-gather" not in run.lower(fast.params, jax.device_put(ids, batch)).compile().as_text()
print(float(np.abs(np.asarray(out) - np.asarray(own(input_ids=ids).last_hidden_state)).max()))
"""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= TOLERANCES["jax", "float32"]
