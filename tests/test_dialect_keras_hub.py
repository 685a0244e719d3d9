"""keras-hub's presets against what its backbones compute."""

from __future__ import annotations

import json

import numpy as np
import pytest
import transformers
from dialect_files import Tiny, assert_close, assert_same, round_trip, transformers_output

import zoo
from converters.checkpoint import MemoryCheckpoint
from converters.dialects import keras_hub as dialect
from converters.view import Recipe, View
from zoo.errors import ConfigError, WeightsError

FAMILIES = (
    *("bert", "roberta", "xlm-roberta", "distilbert", "albert", "gpt2", "llama", "gemma", "gemma2", "t5", "vit"),
    "whisper",
)  # fmt: skip
_DEFAULTS = ("name", "trainable", "dtype", "dropout", "dropout_rate", "attention_dropout")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_preset_gives_keras_hubs_outputs_and_comes_back(name, tmp_path):
    tiny = Tiny(f"keras-hub-{name}")
    checkpoint = tiny.checkpoint(tmp_path, "model.weights.h5")
    assert dialect.recognises(checkpoint)
    config = dialect.config(checkpoint)
    assert config["model_type"] == name
    ours, back = round_trip(dialect, checkpoint, config)
    assert_same(back, tiny.weights)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    folder = tmp_path / "ours"
    folder.mkdir()
    fields = config | (tokens if name == "whisper" else {})  # its defaults are beyond a vocabulary this small
    assert_close(transformers_output(folder, ours, fields, tiny.inputs), tiny.output)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_presets_config_comes_back(name, tmp_path):
    tiny = Tiny(f"keras-hub-{name}")
    written = json.loads(tiny.facts["config"])
    found = dialect.foreign_config(dialect.config(tiny.checkpoint(tmp_path, "model.weights.h5")))
    assert {key: found[key] for key in ("module", "class_name", "registered_name")} == {
        key: written[key] for key in ("module", "class_name", "registered_name")
    }
    own, theirs = found["config"], written["config"]
    assert {key: value for key, value in own.items() if key in theirs and key not in _DEFAULTS} == {
        key: theirs[key] for key in own if key in theirs and key not in _DEFAULTS
    }


def test_the_config_says_what_the_backbone_computes(tmp_path):
    kinds = {
        name: dialect.config(Tiny(f"keras-hub-{name}").checkpoint(tmp_path, "model.weights.h5"))
        for name in ("bert", "roberta", "gpt2", "gemma")
    }
    assert kinds["bert"]["hidden_act"] == "gelu_new"  # where Google's and Hugging Face's config says "gelu"
    assert kinds["roberta"]["hidden_act"] == "gelu"
    assert kinds["roberta"]["max_position_embeddings"] == 14 + 2
    assert kinds["gpt2"]["activation_function"] == "gelu_new"
    assert kinds["gemma"]["intermediate_size"] == 10 // 2


def test_older_files_say_layer_checkpoint_dependencies(tmp_path):
    tiny = Tiny("keras-hub-bert")
    checkpoint = tiny.checkpoint(tmp_path, "model.weights.h5")
    older = View(
        checkpoint,
        {name.replace("layers/", "_layer_checkpoint_dependencies/", 1): Recipe(name) for name in tiny.weights},
    )
    assert dialect.recognises(older)
    got, expected = (View(c, dialect.canonical(c, {})) for c in (older, checkpoint))
    assert_same(got, {name: expected.read(name) for name in expected.infos})


def test_a_llama_whose_preset_has_no_output_layer_is_tied(tmp_path):
    tiny = Tiny("keras-hub-llama")
    del tiny.weights["layers/reversible_embedding/vars/1"]
    checkpoint = tiny.checkpoint(tmp_path, "model.weights.h5")
    config = dialect.config(checkpoint)
    assert config["tie_word_embeddings"]
    _, back = round_trip(dialect, checkpoint, config)
    assert_same(back, tiny.weights)


def test_token_types_and_heads_that_keras_hub_lacks_are_refused(tmp_path):
    tiny = Tiny("keras-hub-roberta")
    checkpoint = tiny.checkpoint(tmp_path, "model.weights.h5")
    config = dialect.config(checkpoint)
    ours, _ = round_trip(dialect, checkpoint, config)
    arrays = {name: np.array(ours.read(name)) for name in ours.infos}
    types = "embeddings.token_type_embeddings.weight"
    assert arrays[types].shape == (1, 16) and not arrays[types].any()
    with pytest.raises(WeightsError, match="token types"):
        dialect.foreign(MemoryCheckpoint(arrays | {types: np.ones((1, 16), np.float32)}), config)
    with pytest.raises(WeightsError, match=r"lm_head\.dense\.weight"):
        dialect.foreign(MemoryCheckpoint(arrays | {"lm_head.dense.weight": np.ones((16, 16), np.float32)}), config)


def test_weights_without_a_preset_are_not_keras_hubs(tmp_path):
    tiny = Tiny("keras-hub-bert")
    tiny.facts = {}
    checkpoint = tiny.checkpoint(tmp_path, "model.weights.h5")
    assert not dialect.recognises(checkpoint) and dialect.config(checkpoint) is None
    with pytest.raises(ConfigError, match=r"config\.json"):
        dialect.canonical(checkpoint, {})
    with pytest.raises(ConfigError, match="opt"):
        dialect.foreign_config({"model_type": "opt"})


def test_what_a_backbone_lacks_is_refused_by_the_fields_name():
    llama = {"model_type": "llama", "num_attention_heads": 4}
    scaled = {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}
    with pytest.raises(ConfigError, match=r"config\.json, rope_parameters"):
        dialect.foreign_config(llama | scaled)
    with pytest.raises(ConfigError, match=r"config\.json, num_decoder_layers"):
        dialect.foreign_config({"model_type": "t5", "num_layers": 3, "num_decoder_layers": 2})
    with pytest.raises(ConfigError, match=r"config\.json, qkv_bias"):
        dialect.foreign_config({"model_type": "vit", "image_size": 8, "patch_size": 4, "qkv_bias": False})


GEMMA = {"gemma": transformers.GemmaForCausalLM, "gemma2": transformers.Gemma2ForCausalLM}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("gemma", {"rms_norm_eps": 1e-3}), ("gemma2", {"rms_norm_eps": 1e-3}), ("gemma2", {"query_pre_attn_scalar": 6})],
)
def test_what_gemmas_blocks_do_not_take_from_the_preset_is_refused(kind, fields, tmp_path):
    """keras-hub 0.32 hands its blocks neither the eps nor, further on, how the query is scaled."""
    sizes = {"hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 61}
    sizes |= {"num_hidden_layers": 2, "intermediate_size": 10, "query_pre_attn_scalar": 4}
    model = GEMMA[kind](GEMMA[kind].config_class(**sizes | fields))
    model.save_pretrained(tmp_path / "in")
    ((name, value),) = fields.items()
    with pytest.raises(ConfigError, match=f"keras-hub cannot say {name}") as caught:
        zoo.convert(tmp_path / "in", tmp_path / "out", "keras-hub")
    assert f"{name} {value!r}" in str(caught.value) and not (tmp_path / "out").exists()


def test_a_preset_of_gemma_with_two_eps_is_refused(tmp_path):
    tiny = Tiny("keras-hub-gemma")
    preset = json.loads(tiny.facts["config"])
    preset["config"]["layer_norm_epsilon"] = 1e-3
    tiny.facts["config"] = json.dumps(preset)
    with pytest.raises(ConfigError, match="layer_norm_epsilon"):
        dialect.config(tiny.checkpoint(tmp_path, "model.weights.h5"))
