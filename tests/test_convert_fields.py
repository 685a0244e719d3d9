"""zoo convert: fields of a config that a form cannot say, or that what reads it has otherwise, are refused by name."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import msgpack
import numpy as np
import pytest
import tiny
import tokenizers
import torch
import transformers
from tolerances import TOLERANCES

import zoo
from converters import open_checkpoint
from converters.checkpoint import MemoryCheckpoint
from converters.dialects import transformers4
from converters.targets import TARGETS
from zoo.errors import ConfigError, VerifyError, ZooError


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return checkpoints.save(tmp_path / "llama", "llama")


def test_an_activation_that_gguf_cannot_say_is_refused(llama: Path, tmp_path: Path) -> None:
    checkpoints.edit_config(llama, hidden_act="gelu")
    with pytest.raises(ConfigError) as caught:
        zoo.convert(llama, tmp_path / "out", "gguf")
    assert all(word in str(caught.value) for word in ("gguf", "hidden_act", "'silu'", "'gelu'"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fields", [{"hidden_act": "swish"}, {"pad_token_id": 3}, {"pretraining_tp": 2}])
def test_a_field_that_changes_nothing_is_not_refused(fields: dict[str, Any], llama: Path, tmp_path: Path) -> None:
    checkpoints.edit_config(llama, **fields)
    done = zoo.convert(llama, tmp_path / "out", "gguf", verify=True)
    assert done.verified == "every tensor and the outputs"
    assert not any(name in note for name in fields for note in done.notes)


@pytest.mark.parametrize(
    ("kind", "form", "fields"),
    [
        ("bert", "keras-hub", {"hidden_act": "relu"}),
        ("bert", "keras-hub", {"layer_norm_eps": 1e-3}),
        ("bert", "keras-hub", {"is_decoder": True}),
        ("gpt2", "keras-hub", {"scale_attn_weights": False}),
        ("llama", "keras-hub", {"hidden_act": "gelu"}),
        ("vit", "big-vision", {"layer_norm_eps": 1e-2}),
        ("vit", "timm", {"hidden_act": "relu"}),
        ("vit", "torchvision", {"hidden_act": "quick_gelu"}),
        ("resnet", "torchvision", {"hidden_act": "gelu"}),
        ("resnet", "timm", {"downsample_in_bottleneck": True}),
        ("bert-mlm", "tf-checkpoint", {"layer_norm_eps": 1e-2}),
        ("gpt2", "tf-checkpoint", {"activation_function": "relu"}),
        ("gpt2", "gguf", {"scale_attn_by_inverse_layer_idx": True}),
    ],
)
def test_a_field_that_the_form_cannot_say_is_refused(
    kind: str, form: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    source = checkpoints.edit_config(checkpoints.save(tmp_path / "in", kind), **fields)
    with pytest.raises(ConfigError) as caught:
        zoo.convert(source, tmp_path / "out", form)
    ((name, value),) = fields.items()
    assert form in str(caught.value) and f"{name} {value!r}" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_field_that_the_form_has_nearly_so_is_noted(tmp_path: Path) -> None:
    """timm's norms have 1e-6, where Hugging Face's ViT has 1e-12."""
    done = zoo.convert(checkpoints.save(tmp_path / "in", "vit"), tmp_path / "out", "timm", verify=True)
    assert done.verified == "every tensor and the outputs"
    (said,) = done.notes
    assert all(word in said for word in ("layer_norm_eps", "1e-12", "1e-06", "timm", "nearly"))


# --- an output layer of its own where the config ties ---

HEADS = {"gpt2": "lm_head.weight", "bert-mlm": "cls.predictions.decoder.weight"}


def untied(folder: Path, kind: str) -> Path:
    """A checkpoint whose config ties the output layer to the embedding, and whose file has another one."""
    checkpoints.save(folder, kind)
    arrays = checkpoints.tensors(folder)
    embedding = next(name for name in arrays if name.endswith(("wte.weight", "word_embeddings.weight")))
    arrays[HEADS[kind]] = arrays[embedding][::-1].copy()
    return checkpoints.write_tensors(folder, arrays)


@pytest.mark.parametrize(
    ("kind", "form"),
    [("gpt2", "safetensors"), ("gpt2", "torch"), ("gpt2", "npz"), ("gpt2", "gguf"), ("bert-mlm", "flax")],
)
def test_an_output_layer_that_is_not_the_embedding_is_kept(kind: str, form: str, tmp_path: Path) -> None:
    source = untied(tmp_path / "in", kind)
    done = zoo.convert(source, tmp_path / "out", form, verify=True)
    assert done.verified == "every tensor and the outputs" and HEADS[kind] not in done.dropped
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    back = zoo.convert(tmp_path / "out", tmp_path / "back").folder
    assert back is not None
    assert np.array_equal(checkpoints.tensors(back)[HEADS[kind]], checkpoints.tensors(source)[HEADS[kind]])
    inputs = checkpoints.inputs_of(kind)
    expected = checkpoints.reference(back, kind, inputs)["logits"]  # by transformers, which goes by the config
    found = zoo.load(source, "numpy")(**inputs)["logits"]
    assert np.abs(found - expected).max() <= TOLERANCES["numpy", "float32"] * np.abs(expected).max()


@pytest.mark.parametrize("form", ["tf-h5", "flax", "orbax", "keras-hub"])
def test_an_output_layer_without_a_place_is_refused(form: str, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=r"lm_head\.weight"):
        zoo.convert(untied(tmp_path / "in", "gpt2"), tmp_path / "out", form)
    assert not (tmp_path / "out").exists()


def test_weights_that_the_config_ties_besides_stand_under_each_name(tmp_path: Path) -> None:
    """BART's config ties its embeddings with the same field as the output layer."""
    config = tiny.config("bart")
    torch.manual_seed(0)
    transformers.BartForConditionalGeneration(config).save_pretrained(tmp_path / "in")
    arrays = checkpoints.tensors(tmp_path / "in")
    arrays["lm_head.weight"] = arrays["model.shared.weight"][::-1].copy()
    checkpoints.write_tensors(tmp_path / "in", arrays)
    zoo.convert(tmp_path / "in", tmp_path / "out", verify=True)
    written = checkpoints.tensors(tmp_path / "out")
    for part in ("encoder", "decoder"):
        assert np.array_equal(written[f"model.{part}.embed_tokens.weight"], arrays["model.shared.weight"])


def test_an_output_layer_apart_that_would_be_scaled_otherwise_is_refused(tmp_path: Path) -> None:
    """T5's config scales what the output layer takes exactly where it is tied."""
    source = checkpoints.save(tmp_path / "in", "t5")
    arrays = checkpoints.tensors(source)
    arrays["lm_head.weight"] = arrays["shared.weight"][::-1].copy()
    checkpoints.write_tensors(source, arrays)
    for form in ("tf-h5", "flax"):
        with pytest.raises(ConfigError, match=r"lm_head\.weight(.|\n)*scale_decoder_outputs"):
            zoo.convert(source, tmp_path / "out", form)
    assert zoo.convert(source, tmp_path / "out", verify=True).verified == "every tensor and the outputs"


# --- TensorFlow and Flax: version 4's spelling, and what its classes ignore ---


def flat(folder: Path) -> dict[str, Any]:
    """The arrays of a Flax file, by the msgpack library."""
    found: dict[str, Any] = {}

    def walk(tree: Any, at: str) -> None:
        for key, value in tree.items():
            walk(value, f"{at}{key}/") if isinstance(value, dict) else found.update({at + key: value})

    def array(_: int, data: bytes) -> np.ndarray:
        shape, dtype, raw = msgpack.unpackb(data, raw=True)
        return np.frombuffer(raw, dtype.decode()).reshape(shape)

    walk(msgpack.unpackb((folder / "flax_model.msgpack").read_bytes(), ext_hook=array), "")
    return found


def mistral(folder: Path, **rope: Any) -> Path:
    config = tiny.config("mistral")
    config.hidden_size = 48  # 8 heads of 6, since transformers 4 takes no other
    config.rope_parameters = {"rope_type": "default", "rope_theta": 100.0} | rope
    config.sliding_window = None
    torch.manual_seed(0)
    transformers.MistralForCausalLM(config).save_pretrained(folder)
    return folder


def test_rotary_positions_are_spelled_as_the_reader_of_the_form_spells_them(tmp_path: Path) -> None:
    """transformers 4 takes 10000 where it finds no rope_theta, and only it reads what is written for TensorFlow."""
    source = mistral(tmp_path / "in")
    assert "rope_theta" not in json.loads((source / "config.json").read_text())
    done = zoo.convert(source, tmp_path / "out", "tf-h5", verify=True)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["rope_theta"] == 100.0 and "rope_parameters" not in written and not done.notes
    zoo.convert(source, tmp_path / "same")
    assert json.loads((tmp_path / "same" / "config.json").read_text())["rope_parameters"]["rope_theta"] == 100.0


def test_what_the_class_of_the_form_ignores_is_said(llama: Path, tmp_path: Path) -> None:
    """Flax's Llama has 10000 in its code; verification computes what it computes."""
    checkpoints.edit_config(llama, rope_parameters={"rope_type": "default", "rope_theta": 100.0})
    done = zoo.convert(llama, tmp_path / "out", "flax")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rope_theta"] == 100.0
    (said,) = done.notes
    assert all(word in said for word in ("rope_theta", "100.0", "10000.0", "flax"))
    with pytest.raises(VerifyError, match="rope_theta"):
        zoo.verify_conversion(llama, tmp_path / "out")
    with pytest.raises(VerifyError, match="rope_theta"):
        zoo.convert(llama, tmp_path / "other", "flax", verify=True)


def test_a_class_that_never_ties_gets_the_output_layer_besides(llama: Path, tmp_path: Path) -> None:
    """Flax's Llama has an output layer of its own, whatever the config says."""
    arrays = checkpoints.tensors(llama)
    del arrays["lm_head.weight"]
    checkpoints.write_tensors(checkpoints.edit_config(llama, tie_word_embeddings=True), arrays)
    zoo.convert(llama, tmp_path / "out", "flax", verify=True)
    written = flat(tmp_path / "out")
    assert np.array_equal(written["lm_head/kernel"], arrays["model.embed_tokens.weight"].T)
    zoo.convert(tmp_path / "out", tmp_path / "back")
    assert checkpoints.tensors(tmp_path / "back").keys() == arrays.keys()


# --- what verification notices ---

FORMS = {
    "safetensors": "llama",
    "torch": "llama",
    "npz": "llama",
    "tf-h5": "bert-mlm",
    "flax": "bert-mlm",
    "keras": "bert-mlm",
    "keras-model": "bert-mlm",
    "keras-hub": "gpt2",
    "gguf": "llama",
    "tf-checkpoint": "bert-mlm",
    "timm": "vit",
    "big-vision": "vit",
    **({"orbax": "bert-mlm"} if importlib.util.find_spec("tensorstore") else {}),
}
_FIELDS = {"llama": "rms_norm_eps", "bert-mlm": "layer_norm_eps", "gpt2": "layer_norm_epsilon", "vit": "layer_norm_eps"}


def tokenizer(folder: Path) -> None:
    """A word-level tokenizer beside a checkpoint, made by the tokenizers library."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, "[UNK]"))
    made.save(str(folder / "tokenizer.json"))


def rewritten(form: str, folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    """The weights of a converted folder written anew, with other arrays or names."""
    target = TARGETS[form]
    with open_checkpoint(folder) as opened:
        arrays = {name: np.array(array) for name, array in opened.items()}
        metadata = dict(opened.metadata)
    change(arrays)
    path = folder / target.file
    for old in [path] if path.exists() else folder.glob(f"{target.file}*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    keep = metadata if form in ("gguf", "keras-model", "tf-h5") else dict(target.metadata)
    importlib.import_module(f"converters.formats.{target.format}").write(path, MemoryCheckpoint(arrays), keep)


def other_eps(path: Path) -> None:
    """An archive of Keras whose graph has other norms."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert b"1e-12" in members["config.json"]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data.replace(b"1e-12", b"0.125") if name == "config.json" else data)


def corruptions(form: str, kind: str, folder: Path) -> dict[str, Callable[[], Any]]:
    """What may go wrong between writing and handing over, by name."""

    def weight(arrays: dict[str, np.ndarray]) -> None:
        name = max((n for n in arrays if arrays[n].dtype == np.float32), key=lambda n: (arrays[n].ndim == 2, n))
        arrays[name].reshape(-1).view(np.uint32)[-1] ^= 1

    def renamed(arrays: dict[str, np.ndarray]) -> None:
        name = sorted(arrays)[-1]
        arrays[name[:-1] + "_"] = arrays.pop(name)

    def exchanged(arrays: dict[str, np.ndarray]) -> None:
        names = sorted(arrays)
        one, other = next(
            (a, b)
            for a in names
            for b in names
            if a < b and arrays[a].shape == arrays[b].shape and not np.array_equal(arrays[a], arrays[b])
        )
        arrays[one], arrays[other] = arrays[other], arrays[one]

    def field() -> None:
        checkpoints.edit_config(folder, **{_FIELDS[kind]: 0.25})

    def nested() -> None:
        path = folder / "config.json"
        written = json.loads(path.read_text())
        written["config"]["num_heads"] *= 2
        path.write_text(json.dumps(written))

    found: dict[str, Callable[[], Any]] = {
        "a weight": lambda: rewritten(form, folder, weight),
        "a name": lambda: rewritten(form, folder, renamed),
        "two names": lambda: rewritten(form, folder, exchanged),
        "a field": nested if form == "keras-hub" else field,
        "a tokenizer": lambda: (folder / "tokenizer.json").write_text("{}"),
        "no tokenizer": lambda: (folder / "tokenizer.json").unlink(),
        "no config": lambda: (folder / "config.json").unlink(),
    }
    if form == "keras-model":
        found["the graph"] = lambda: other_eps(folder / "model.keras")
    if kind in ("llama", "bert-mlm"):
        tied = kind == "bert-mlm"
        found["a tie"] = lambda: checkpoints.edit_config(folder, tie_word_embeddings=not tied)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_verification_notices_what_was_changed_since(form: str, tmp_path: Path) -> None:
    """Every change is noticed, and none where there is none."""
    kind = FORMS[form]
    source = checkpoints.save(tmp_path / "in", kind)
    tokenizer(source)
    zoo.convert(source, tmp_path / "out", form)
    assert "and the outputs" in zoo.verify_conversion(source, tmp_path / "out")
    again = shutil.copytree(tmp_path / "out", tmp_path / "again")
    rewritten(form, again, lambda arrays: None)
    assert "and the outputs" in zoo.verify_conversion(source, again)  # to write anew is no change
    unnoticed = []
    for name in corruptions(form, kind, tmp_path):
        folder = shutil.copytree(tmp_path / "out", tmp_path / name)
        corruptions(form, kind, folder)[name]()
        try:
            zoo.verify_conversion(source, folder)
            unnoticed.append(name)
        except ZooError:
            pass
    assert unnoticed == []


def test_verification_needs_a_conversion(llama: Path) -> None:
    with pytest.raises(ConfigError, match=r"conversion\.json"):
        zoo.verify_conversion(llama, llama)


def test_what_the_classes_of_transformers_4_ignore_is_in_the_table() -> None:
    """As tests/oracle/find_fields.py found it by running them."""
    found = json.loads((Path(__file__).parents[1] / "benchmarks/results/fields_of_transformers4.json").read_text())
    lacking = []
    for key, fields in found["result"].items():
        variant, _, framework = key.split("/")
        kind = found["types"].get(variant, variant)
        for name, what in fields.items():
            if re.match("off by (1|0.7) ", fields[""]) or not ("ignored" in what or "differs" in what):
                continue  # TensorFlow's roformer, and Flax' basic ResNet of a file of torch, are others from the start
            if kind in ("t5", "mt5") and what.startswith("True for False") and name == "tie_word_embeddings":
                continue  # weights that are untied: tied, torch takes the output layer's for both
            if (kind, name) == ("esm", "mask_token_id"):
                continue  # of any value: TensorFlow counts masked tokens of rows with padding otherwise
            config = {"model_type": kind, "architectures": ["ElectraForCausalLM" if kind == "electra" else ""]}
            fixed = transformers4.understood(framework, config)
            spelled = {"rope_theta": "rope_parameters", "rope_scaling": "rope_parameters"}.get(name, name)
            never_tied = name == "tie_word_embeddings" and (framework, kind) in transformers4.UNTIED
            if spelled not in fixed and not never_tied:
                lacking.append(f"{key} {name}: {what}")
    assert len(found["result"]) > 100 and lacking == []
