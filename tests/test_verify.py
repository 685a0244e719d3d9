"""`zoo.verify`: what is right passes, what is wrong is caught and named, what says nothing does not pass."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import zoo
from zoo import tolerances
from zoo.backends import BACKENDS, installed
from zoo.errors import InputError, MissingFramework, UnknownBackend, VerifyError
from zoo.ops import OPS
from zoo.samples import sample_inputs
from zoo.tolerances import gradient_tolerance
from zoo.verify import compare_gradients, verify

ROWS, WIDTH = 43, 12
FRAMEWORKS = ["torch", "jax", "tensorflow"]


class Tiny(nn.Module):
    """Embeds, attends under the mask, normalises; gives hidden states [B, T, D] and one score a row [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(ROWS, WIDTH)
        self.mix = nn.Linear(WIDTH, 3 * WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.score = nn.Linear(WIDTH, 1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.embeddings(input_ids)
        q, k, v = self.mix(x)[:, None].chunk(3, -1)
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask[:, None, None].bool())
        hidden = self.norm(x + nn.functional.gelu(y[:, 0]))
        return {"last_hidden_state": hidden, "score": self.score(hidden[:, 0])[:, 0]}


def save(module: nn.Module, folder: Path) -> Path:
    ids = torch.arange(10).reshape(2, 5)
    return zoo.capture(module, input_ids=ids, attention_mask=torch.ones(2, 5, dtype=torch.long)).save(folder)


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save(Tiny(), tmp_path_factory.mktemp("verify") / "tiny")


@pytest.fixture(scope="session")
def report(package: Path) -> zoo.Report:
    return verify(package, gradients=True)


def test_every_backend_is_right(report: zoo.Report) -> None:
    assert report.ok, [row.reason for row in report.failures]
    here = [name for name in BACKENDS if installed(name)]
    assert [(r.backend, r.output) for r in report.rows] == [
        (name, output) for name in here for output in ("last_hidden_state", "score")
    ]
    report.raise_for_failure()


def test_errors_are_measured_not_assumed(report: zoo.Report) -> None:
    """float32 differs from float64 by rounding: an error of nothing would mean that nothing was computed in float32."""
    by_backend = {row.backend: row for row in report.rows if row.output == "last_hidden_state"}
    for name in FRAMEWORKS:
        row = by_backend[name]
        assert 0 < row.relative <= row.tolerance
        assert row.max_abs > 0 and row.seconds > 0 and row.scale > 0.1
        assert row.max_abs == pytest.approx(abs(row.got - row.expected))
    assert by_backend["numpy"].relative == 0
    assert by_backend["torch"].versus_torch == 0
    assert by_backend["numpy"].versus_torch == pytest.approx(by_backend["torch"].relative, rel=1e-5)


def test_gradients_of_every_framework(report: zoo.Report) -> None:
    assert [row.backend for row in report.gradients] == FRAMEWORKS
    for row in report.gradients:
        assert row.ok and row.reference == "torch" and row.parameters == 7
    assert report.gradients[1].relative > 0


def test_gradients_are_those_of_the_stated_loss(package: Path) -> None:
    from zoo.verify import GRADIENTS_OF, loss_weights

    model = zoo.load(package, "torch")
    feed = sample_inputs(model)
    weights = loss_weights(np.zeros((3, 17, WIDTH)), feed["attention_mask"][:, :, None], 0)
    found = GRADIENTS_OF["torch"](model, feed, "last_hidden_state", weights)
    with torch.no_grad():
        bias = model.params["norm.bias"]
        step = torch.zeros_like(bias)
        step[4] = 1e-2
        inputs = {name: torch.from_numpy(array) for name, array in feed.items()}

        def loss(shift: torch.Tensor) -> float:
            params = model.params | {"norm.bias": bias + shift}
            output = model.apply(params, **inputs)["last_hidden_state"].double().numpy()
            return float((output**2 * weights).sum())

        slope = (loss(step) - loss(-step)) / 2e-2  # exact for a square, but for rounding
    assert found["norm.bias"][4] == pytest.approx(slope, rel=1e-3)
    assert np.array_equal(weights != 0, np.broadcast_to(feed["attention_mask"][:, :, None] == 1, weights.shape))


def test_a_broken_backend_is_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.backends import jax as backend

    monkeypatch.setitem(backend._OVERRIDES, "layer_norm", _wrong_norm)
    report = verify(package, ["numpy", "jax"])
    assert not report.ok
    assert {row.backend for row in report.failures} == {"jax"}
    with pytest.raises(VerifyError, match="on jax") as caught:
        report.raise_for_failure()
    assert caught.value.where.startswith("last_hidden_state[")
    assert caught.value.got != pytest.approx(caught.value.expected, rel=1e-2)


def test_a_wrong_gradient_is_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs that are right do not excuse a gradient that is not."""
    import jax

    from zoo.backends import jax as backend

    @jax.custom_jvp
    def gelu(x: Any) -> Any:
        return jax.nn.gelu(x, approximate=False)

    gelu.defjvp(lambda primals, tangents: (gelu(*primals), 1.5 * tangents[0]))
    monkeypatch.setitem(backend._OVERRIDES, "gelu", lambda x, *, approximate="none": gelu(x))
    report = verify(package, ["torch", "jax"], gradients=True)
    assert all(row.ok for row in report.rows)
    (failure,) = report.failures
    assert failure.backend == "jax" and failure.parameter.startswith("mix.")
    with pytest.raises(VerifyError, match="on jax") as caught:
        report.raise_for_failure()
    assert caught.value.where.startswith("gradient of mix.")


def test_a_backend_that_fails_is_a_failure(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.backends import jax as backend

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(backend._OVERRIDES, "layer_norm", refuse)
    report = verify(package, ["jax", "torch"])
    (failure,) = report.failures
    assert failure.backend == "jax" and "no such kernel" in failure.reason and "layer_norm" in failure.reason
    assert [row.backend for row in report.rows if row.ok] == ["torch", "torch"]


def test_a_broken_torch_does_not_excuse_the_others(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's error is the yardstick, so it must be bounded itself, and must not stretch the tolerance for others."""
    from zoo.backends import torch as backend

    original = backend._resolve

    def resolve(name: str) -> Any:
        if name == "layer_norm":
            return lambda *args, **options: original(name)(*args, **options) + 0.01
        return original(name)

    monkeypatch.setattr(backend, "_resolve", resolve)
    report = verify(package, ["torch", "numpy"])
    assert {row.backend for row in report.failures} == {"torch"}
    assert all(row.tolerance <= tolerances.CEILINGS["float32"] for row in report.rows)


def test_zoo_verify_stays_a_function(package: Path) -> None:
    """`zoo.capture` and `zoo.verify` are functions whatever modules of these names were imported before."""
    import zoo.capture.torch_export
    import zoo.verify

    assert callable(zoo.verify) and callable(zoo.capture) and zoo.verify is verify


@pytest.mark.parametrize("value", [0.0, 0.7], ids=["zero", "constant"])
def test_agreeing_on_nothing_is_a_failure(value: float, tmp_path: Path) -> None:
    module = Tiny()
    with torch.no_grad():
        module.norm.weight.zero_()
        module.norm.bias.fill_(value)
    report = verify(save(module, tmp_path / "vacuous"), ["torch"])
    hidden = report.rows[0]
    assert not report.ok and not hidden.ok
    assert hidden.relative <= hidden.tolerance and "nothing to compare" in hidden.reason


def test_values_that_are_not_finite(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.backends import jax as backend

    monkeypatch.setitem(backend._OVERRIDES, "layer_norm", lambda x, *rest, **options: jnp.where(x > 1, jnp.nan, x))
    report = verify(package, ["jax"])
    row = next(row for row in report.rows if row.output == "last_hidden_state")
    assert not row.ok and "not finite" in row.reason and np.isnan(row.got) and np.isfinite(row.expected)
    json.loads(json.dumps(report.to_json(), allow_nan=False))


def test_padding_is_not_compared(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last row's last third is padding: what a backend makes of it is its own affair, but of nothing else."""
    from zoo.backends import jax as backend

    norm, definition = backend._OVERRIDES.get("layer_norm"), OPS["layer_norm"].function

    def spoil(row: int) -> Any:
        def spoiled(x: Any, *rest: Any, **options: Any) -> Any:
            right = norm(x, *rest, **options) if norm else definition(backend._XP, x, *rest, **options)
            return right.at[row, -1].set(9.0)

        return spoiled

    monkeypatch.setitem(backend._OVERRIDES, "layer_norm", spoil(-1))
    assert verify(package, ["jax"]).ok
    monkeypatch.setitem(backend._OVERRIDES, "layer_norm", spoil(0))
    assert not verify(package, ["jax"]).ok


def test_inputs_fit_the_graph(package: Path) -> None:
    model = zoo.load(package, "numpy")
    feed = sample_inputs(model, batch=4, length=9)
    ids, mask = feed["input_ids"], feed["attention_mask"]
    assert ids.shape == mask.shape == (4, 9)
    assert ids.dtype == np.int64 and ids.min() >= 0 and ids.max() < ROWS
    assert mask[0].tolist() == [1, 0, 0] + [1] * 6  # a gap, which no causal model can ignore
    assert mask[1:3].all() and mask[3].tolist() == [1] * 6 + [0] * 3
    assert np.array_equal(ids, sample_inputs(model, batch=4, length=9)["input_ids"])
    assert not np.array_equal(ids, sample_inputs(model, seed=1, batch=4, length=9)["input_ids"])


def test_own_inputs(package: Path) -> None:
    ids = np.full((1, 4), 7)
    report = verify(package, ["torch"], inputs={"input_ids": ids})
    assert report.inputs == {"input_ids": "int64 [1, 4]", "attention_mask": "int64 [1, 4]"}
    with pytest.raises(InputError, match="pixels"):
        verify(package, ["torch"], inputs={"pixels": ids})


def test_a_loaded_model_is_verified_as_it_is_now(package: Path) -> None:
    model = zoo.load(package, "torch")
    with torch.no_grad():
        model.params["norm.bias"].add_(3.0)
    before, after = verify(package, ["jax"]).rows[0], verify(model, ["jax"]).rows[0]
    assert after.ok and after.expected != before.expected


def test_backends_that_are_not_there(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo import backends

    monkeypatch.setitem(backends.BACKENDS, "tensorflow", ("no_such_framework",))
    report = verify(package)
    assert report.ok and "tensorflow" not in {row.backend for row in report.rows}
    assert "anyzoo[tensorflow]" in report.missing["tensorflow"]
    with pytest.raises(MissingFramework, match=r"anyzoo\[tensorflow\]"):
        verify(package, ["torch", "tensorflow"])
    with pytest.raises(UnknownBackend):
        verify(package, ["torhc"])


def test_report_as_text_and_json(report: zoo.Report) -> None:
    from rich.console import Console

    console = Console(width=200, file=io.StringIO())
    console.print(report.table())
    text = console.file.getvalue()
    assert all(word in text for word in ("jax", "last_hidden_state", "score", "gradients", "ok"))
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["ok"] is True
    assert {row["backend"] for row in data["rows"]} == {row.backend for row in report.rows}
    assert data["gradients"][1]["parameter"] == report.gradients[1].parameter


def test_the_table_of_tolerances() -> None:
    floor, ceiling = tolerances.FLOORS["float32"], tolerances.CEILINGS["float32"]
    assert tolerances.tolerance("jax", "float32", 0.0) == floor
    assert tolerances.tolerance("jax", "float32", 1e-5) == tolerances.FACTORS["jax", "float32"] * 1e-5
    assert tolerances.tolerance("jax", "float32", 1.0) == ceiling
    assert tolerances.tolerance("torch", "float32", 1.0) == ceiling
    assert tolerances.tolerance("tensorflow", "float32", None) == ceiling
    assert {dtype for _, dtype in tolerances.FACTORS} == set(tolerances.FLOORS) == set(tolerances.CEILINGS)


def _wrong_norm(x: Any, shape: Any, weight: Any, *rest: Any, **options: Any) -> Any:
    """Forgets the bias and adds eps outside the root."""
    x = x - x.mean(-1, keepdims=True)
    return x / (jnp.sqrt(jnp.square(x).mean(-1, keepdims=True)) + 0.1) * weight


def test_gradients_against_exact_ones_have_torchs_error_as_their_yardstick() -> None:
    exact = {"w": np.array([1.0, -2.0]), "b": np.zeros(1)}

    def off(by: float) -> dict[str, np.ndarray]:
        return {"w": np.array([1.0, -2.0 + 2 * by], np.float32), "b": np.zeros(1, np.float32)}

    slopes = {"torch": off(1e-3), "jax": off(3e-3), "tensorflow": off(5e-3)}
    rows = list(compare_gradients(slopes, "float32", exact))
    assert [row.ok for row in rows] == [True, True, False]
    assert {row.reference for row in rows} == {"float64"}
    assert rows[1].tolerance == pytest.approx(4e-3, rel=1e-3)
    ceiling = 100 * gradient_tolerance("torch", "float32")
    (torchs,) = compare_gradients({"torch": off(2 * ceiling)}, "float32", exact)
    assert not torchs.ok and torchs.tolerance == ceiling
    rows = list(compare_gradients({"torch": off(1e-6), "jax": off(3e-5), "tensorflow": off(2e-4)}, "float32", exact))
    assert [row.ok for row in rows] == [True, True, False]
    assert [row.ok for row in compare_gradients(slopes, "float32")] == [True, False, False]
