"""zoo convert: fields of a config that a form cannot say, or that what reads it has otherwise, are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import msgpack
import numpy as np
import pytest
import tiny
import torch
import transformers
from tolerances import TOLERANCES

import zoo
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
