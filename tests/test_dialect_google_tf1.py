"""Google's TF1 names and layouts, for transformers' models: where each tensor goes is written out here by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import checkpoints  # noqa: E402

import zoo  # noqa: E402
from converters.checkpoint import MemoryCheckpoint  # noqa: E402
from converters.dialects import google_tf1 as dialect  # noqa: E402
from converters.formats.tensorflow import bundle as tensor_bundle  # noqa: E402
from converters.view import View  # noqa: E402
from zoo.errors import ConfigError, WeightsError  # noqa: E402
from zoo.tolerances import CONVERTED  # noqa: E402

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "vocab_size": 61,
    "max_position_embeddings": 31,
    "type_vocab_size": 3,
}
SMALL = SIZES | {"embedding_size": 14}
T5: dict[str, Any] = {
    "d_model": 40,
    "d_kv": 6,
    "num_heads": 4,
    "d_ff": 37,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "vocab_size": 61,
    "relative_attention_num_buckets": 10,
    "relative_attention_max_distance": 128,
}
GPT2 = {"n_embd": 24, "n_head": 4, "n_layer": 2, "vocab_size": 61, "n_positions": 31}
V11 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}

# Name -> class, fields, and some tensors of each kind: Google's name, ours, whether transposed.
LAYER = "bert/encoder/layer_1"
ALBERT = "bert/encoder/transformer/group_1/inner_group_0"
OURS = "albert.encoder.albert_layer_groups.1.albert_layers.0"
MODELS: dict[str, tuple[str, dict[str, Any], list[tuple[str, str, bool]]]] = {
    "bert": (
        "BertForPreTraining",
        SIZES,
        [
            ("bert/embeddings/word_embeddings", "bert.embeddings.word_embeddings.weight", False),
            ("bert/embeddings/position_embeddings", "bert.embeddings.position_embeddings.weight", False),
            ("bert/embeddings/token_type_embeddings", "bert.embeddings.token_type_embeddings.weight", False),
            ("bert/embeddings/LayerNorm/gamma", "bert.embeddings.LayerNorm.weight", False),
            ("bert/embeddings/LayerNorm/beta", "bert.embeddings.LayerNorm.bias", False),
            (f"{LAYER}/attention/self/query/kernel", "bert.encoder.layer.1.attention.self.query.weight", True),
            (f"{LAYER}/attention/self/key/bias", "bert.encoder.layer.1.attention.self.key.bias", False),
            (f"{LAYER}/attention/self/value/kernel", "bert.encoder.layer.1.attention.self.value.weight", True),
            (f"{LAYER}/attention/output/dense/kernel", "bert.encoder.layer.1.attention.output.dense.weight", True),
            (f"{LAYER}/attention/output/LayerNorm/beta", "bert.encoder.layer.1.attention.output.LayerNorm.bias", False),
            (f"{LAYER}/intermediate/dense/kernel", "bert.encoder.layer.1.intermediate.dense.weight", True),
            (f"{LAYER}/output/dense/kernel", "bert.encoder.layer.1.output.dense.weight", True),
            (f"{LAYER}/output/LayerNorm/gamma", "bert.encoder.layer.1.output.LayerNorm.weight", False),
            ("bert/pooler/dense/kernel", "bert.pooler.dense.weight", True),
            ("cls/predictions/transform/dense/kernel", "cls.predictions.transform.dense.weight", True),
            ("cls/predictions/transform/LayerNorm/gamma", "cls.predictions.transform.LayerNorm.weight", False),
            ("cls/predictions/output_bias", "cls.predictions.bias", False),
            ("cls/seq_relationship/output_weights", "cls.seq_relationship.weight", False),
            ("cls/seq_relationship/output_bias", "cls.seq_relationship.bias", False),
        ],
    ),
    "bert-classifier": (
        "BertForSequenceClassification",
        SIZES | {"num_labels": 5},
        [("output_weights", "classifier.weight", False), ("output_bias", "classifier.bias", False)],
    ),
    "bert-squad": (
        "BertForQuestionAnswering",
        SIZES,
        [("cls/squad/output_weights", "qa_outputs.weight", False), ("cls/squad/output_bias", "qa_outputs.bias", False)],
    ),
    "albert": (
        "AlbertForPreTraining",
        SMALL | {"num_hidden_groups": 2, "inner_group_num": 2},
        [
            ("bert/embeddings/word_embeddings", "albert.embeddings.word_embeddings.weight", False),
            (
                "bert/encoder/embedding_hidden_mapping_in/kernel",
                "albert.encoder.embedding_hidden_mapping_in.weight",
                True,
            ),
            (f"{ALBERT}/attention_1/self/query/kernel", f"{OURS}.attention.query.weight", True),
            (f"{ALBERT}/attention_1/self/key/kernel", f"{OURS}.attention.key.weight", True),
            (f"{ALBERT}/attention_1/self/value/bias", f"{OURS}.attention.value.bias", False),
            (f"{ALBERT}/attention_1/output/dense/kernel", f"{OURS}.attention.dense.weight", True),
            (f"{ALBERT}/LayerNorm/gamma", f"{OURS}.attention.LayerNorm.weight", False),
            (f"{ALBERT}/LayerNorm_1/gamma", f"{OURS}.full_layer_layer_norm.weight", False),
            (f"{ALBERT}/ffn_1/intermediate/dense/kernel", f"{OURS}.ffn.weight", True),
            (f"{ALBERT}/ffn_1/intermediate/output/dense/kernel", f"{OURS}.ffn_output.weight", True),
            ("bert/pooler/dense/kernel", "albert.pooler.weight", True),
            ("cls/predictions/transform/dense/kernel", "predictions.dense.weight", True),
            ("cls/predictions/transform/LayerNorm/beta", "predictions.LayerNorm.bias", False),
            ("cls/predictions/output_bias", "predictions.bias", False),
            ("cls/seq_relationship/output_weights", "sop_classifier.classifier.weight", False),
        ],
    ),
    "electra": (
        "ElectraForPreTraining",
        SMALL,
        [
            ("electra/embeddings/word_embeddings", "electra.embeddings.word_embeddings.weight", False),
            ("electra/embeddings_project/kernel", "electra.embeddings_project.weight", True),
            (
                "electra/encoder/layer_0/attention/self/key/kernel",
                "electra.encoder.layer.0.attention.self.key.weight",
                True,
            ),
            ("discriminator_predictions/dense/kernel", "discriminator_predictions.dense.weight", True),
            ("discriminator_predictions/dense_1/kernel", "discriminator_predictions.dense_prediction.weight", True),
        ],
    ),
    "electra-generator": (
        "ElectraForMaskedLM",
        SMALL,
        [
            ("electra/embeddings/word_embeddings", "electra.embeddings.word_embeddings.weight", False),
            ("generator/embeddings_project/kernel", "electra.embeddings_project.weight", True),
            ("generator/encoder/layer_1/output/dense/kernel", "electra.encoder.layer.1.output.dense.weight", True),
            ("generator_predictions/dense/kernel", "generator_predictions.dense.weight", True),
            ("generator_predictions/LayerNorm/gamma", "generator_predictions.LayerNorm.weight", False),
            ("generator_predictions/output_bias", "generator_lm_head.bias", False),
        ],
    ),
    "t5": (
        "T5ForConditionalGeneration",
        T5,
        [
            ("shared/embedding", "shared.weight", False),
            ("encoder/block_001/layer_000/SelfAttention/q", "encoder.block.1.layer.0.SelfAttention.q.weight", True),
            (
                "encoder/block_000/layer_000/SelfAttention/relative_attention_bias",
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                True,
            ),
            (
                "encoder/block_001/layer_001/DenseReluDense/wi/kernel",
                "encoder.block.1.layer.1.DenseReluDense.wi.weight",
                True,
            ),
            ("decoder/block_002/layer_001/EncDecAttention/o", "decoder.block.2.layer.1.EncDecAttention.o.weight", True),
            ("decoder/block_002/layer_002/layer_norm/scale", "decoder.block.2.layer.2.layer_norm.weight", False),
            ("decoder/final_layer_norm/scale", "decoder.final_layer_norm.weight", False),
        ],
    ),
    "t5-1.1": (
        "T5ForConditionalGeneration",
        T5 | V11,
        [
            ("decoder/logits/kernel", "lm_head.weight", True),
            (
                "decoder/block_000/layer_002/DenseReluDense/wi_1/kernel",
                "decoder.block.0.layer.2.DenseReluDense.wi_1.weight",
                True,
            ),
        ],
    ),
}


def model(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    cls, fields, _ = MODELS[name]
    made = getattr(transformers, cls)
    config = made.config_class(**fields)
    config.architectures = [cls]
    generator = torch.Generator().manual_seed(list(MODELS).index(name))
    module = made(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    if name == "t5-1.1":  # the class ties by itself what these checkpoints have apart
        state["lm_head.weight"] = state["lm_head.weight"][::-1].copy()
    return config.to_dict(), state


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_goes_there_and_back(tmp_path: Path, name: str) -> None:
    config, state = model(name)
    memory = MemoryCheckpoint(state)
    tensor_bundle.write(tmp_path / "model.ckpt.index", View(memory, dialect.foreign(memory, config), aliases={}))
    file = tensor_bundle.open_file(tmp_path / "model.ckpt.index")
    assert dialect.recognises(file) and not dialect.recognises(memory)
    for theirs, ours, transposed in MODELS[name][2]:
        expected = state[ours].T if transposed else state[ours]
        np.testing.assert_array_equal(file.read(theirs), expected, err_msg=theirs)
    back = View(file, dialect.canonical(file, config))
    for ours, array in back.items():
        np.testing.assert_array_equal(array, state[ours], err_msg=ours)
    tied = {ours for ours in state if ".decoder." in ours and "predictions" in ours} | {
        "generator_lm_head.weight",
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        *(["lm_head.weight"] if name == "t5" else []),
    }
    assert set(back.infos) == set(state) - tied


def test_gpt2s_matrices_have_one_dim_more() -> None:
    config = transformers.GPT2Config(**GPT2)
    rng = np.random.default_rng(0)
    state = {
        key: rng.normal(size=tuple(value.shape)).astype(np.float32)
        for key, value in transformers.GPT2Model(config).state_dict().items()
    }
    memory = MemoryCheckpoint(state)
    fields = config.to_dict() | {"architectures": ["GPT2Model"]}
    view = View(memory, dialect.foreign(memory, fields))
    assert dialect.recognises(view)
    np.testing.assert_array_equal(view.read("model/h1/attn/c_attn/w"), state["h.1.attn.c_attn.weight"][None])
    np.testing.assert_array_equal(view.read("model/h0/mlp/c_fc/w"), state["h.0.mlp.c_fc.weight"][None])
    np.testing.assert_array_equal(view.read("model/h1/ln_2/g"), state["h.1.ln_2.weight"])
    np.testing.assert_array_equal(view.read("model/ln_f/b"), state["ln_f.bias"])
    np.testing.assert_array_equal(view.read("model/wpe"), state["wpe.weight"])
    back = View(view, dialect.canonical(view, fields))
    assert {key: array.tobytes() for key, array in back.items()} == {key: a.tobytes() for key, a in state.items()}


def test_optimizers_and_counters_are_dropped_and_the_unknown_kept() -> None:
    config, arrays = written("bert")
    kernel = arrays["bert/pooler/dense/kernel"]
    noise = {
        "global_step": np.array(7),
        "bert/pooler/dense/kernel/adam_m": kernel,
        "bert/pooler/dense/kernel/adam_v": kernel,
        "bert/pooler/dense/kernel/AdamWeightDecayOptimizer_1": kernel,
        "cls/predictions/output_bias/lamb_v": kernel,
        "beta1_power": np.float32(1),
    }
    plain = set(dialect.canonical(MemoryCheckpoint(arrays), config))
    assert set(dialect.canonical(MemoryCheckpoint(arrays | noise), config)) == plain
    known = dialect.canonical(MemoryCheckpoint(arrays | {"task/loss/kernel": kernel}), config)
    assert set(known) == plain | {"task/loss/kernel"}
    hub = {f"module/{name}": array for name, array in arrays.items()}
    assert set(dialect.canonical(MemoryCheckpoint(hub), config)) == plain


def test_the_base_model_has_no_prefix_and_old_names_are_taken() -> None:
    config, state = model("bert")
    config["architectures"] = ["BertModel"]
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    bare = {}
    for ours, array in state.items():
        if ours.startswith("bert."):
            name = ours.removeprefix("bert.")
            bare[next((name.replace(new, was) for new, was in old.items() if new in name), name)] = array
    bare["embeddings.position_ids"] = np.arange(31)[None]
    memory = MemoryCheckpoint(bare)
    view = View(memory, dialect.foreign(memory, config))
    back = View(view, dialect.canonical(view, config))
    assert set(back.infos) == {o.removeprefix("bert.") for o in state if o.startswith("bert.")}
    for name, array in back.items():
        np.testing.assert_array_equal(array, state[f"bert.{name}"])


def test_an_electra_is_two_models() -> None:
    config, arrays = written("electra")
    _, others = written("electra-generator")
    file = MemoryCheckpoint(others | arrays)  # the embeddings are the discriminator's
    as_generator = dict(model("electra-generator")[0])
    for fields, kept in ((config, "generator."), (as_generator, "discriminator.")):
        view = View(file, dialect.canonical(file, fields))
        own = "electra" if fields is config else "generator"
        kernel = file.read(f"{own}/encoder/layer_1/intermediate/dense/kernel")
        np.testing.assert_array_equal(view.read("electra.encoder.layer.1.intermediate.dense.weight"), kernel.T)
        assert any(name.startswith(kept) for name in view.infos)
        again = View(view, dialect.foreign(view, fields))
        assert set(again.infos) == set(file.infos)
        for name, array in again.items():
            np.testing.assert_array_equal(array, file.read(name), err_msg=name)


def test_heads_that_do_not_fit_are_refused() -> None:
    config, state = model("bert")
    loose = state | {"cls.predictions.decoder.weight": state["cls.predictions.decoder.weight"] + 1}
    with pytest.raises(WeightsError, match=r"decoder\.weight"):
        dialect.foreign(MemoryCheckpoint(loose), config)
    with pytest.raises(ConfigError, match="roberta"):
        dialect.foreign(MemoryCheckpoint(state), config | {"model_type": "roberta"})
    with pytest.raises(ConfigError, match="none of Google's"):
        dialect.canonical(MemoryCheckpoint(state), config)


@pytest.mark.parametrize(
    ("name", "cls", "activation"),
    [
        ("bert", "BertForMaskedLM", "gelu"),
        ("bert-classifier", "BertForSequenceClassification", "gelu"),
        ("bert-squad", "BertForQuestionAnswering", "gelu"),
        ("albert", "AlbertForMaskedLM", "gelu_new"),
    ],
)
def test_googles_config_becomes_hugging_faces(tmp_path: Path, name: str, cls: str, activation: str) -> None:
    config, arrays = written(name)
    file = MemoryCheckpoint(arrays, tmp_path / "model.ckpt.index")
    assert dialect.config(file) is None
    shaping = [key for key in MODELS[name][1] if key != "num_labels"]
    said = {key: config[key] for key in shaping} | {"hidden_act": "gelu", "directionality": "bidi"}
    (tmp_path / f"{config['model_type']}_config.json").write_text(json.dumps(said))
    found = dialect.config(file)
    assert found is not None
    assert (found["architectures"], found["hidden_act"]) == ([cls], activation)
    assert {key: found[key] for key in shaping} == {key: config[key] for key in shaping}
    assert "directionality" not in found and found["layer_norm_eps"] == config["layer_norm_eps"]
    if name == "bert-classifier":
        assert transformers.AutoConfig.for_model(**found).num_labels == 5


@pytest.mark.parametrize("name", ["t5", "t5-1.1", "electra", "electra-generator"])
def test_a_config_follows_from_the_shapes(name: str) -> None:
    config, arrays = written(name)
    found = dialect.config(MemoryCheckpoint(arrays))
    assert found is not None and found["architectures"] == [MODELS[name][0]]
    left_out = ("num_attention_heads", "relative_attention_max_distance", "tie_word_embeddings")
    fields = [key for key in MODELS[name][1] if key not in left_out]
    assert {key: found[key] for key in fields} == {key: config[key] for key in fields}
    assert found.get("tie_word_embeddings") == {"t5": True, "t5-1.1": False}.get(name)


def test_gpt2s_hparams(tmp_path: Path) -> None:
    (tmp_path / "hparams.json").write_text(
        json.dumps({"n_vocab": 61, "n_ctx": 31, "n_embd": 24, "n_head": 4, "n_layer": 2})
    )
    file = MemoryCheckpoint({"model/h0/attn/c_attn/w": np.zeros((1, 24, 72))}, tmp_path / "model.ckpt.index")
    assert dialect.config(file) == {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **GPT2}


def written(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A model's config and its tensors under Google's names."""
    config, state = model(name)
    memory = MemoryCheckpoint(state)
    return config, dict(View(memory, dialect.foreign(memory, config), aliases={}).items())


# Google's name of the file -> the constructor's arguments that it must name: what it leaves out is bert-base's.
BESIDE = {
    "bert-cls": "bert_config.json",
    "albert": "albert_config.json",
    "gpt2": "hparams.json",
}


@pytest.mark.parametrize("kind", BESIDE)
def test_the_programs_own_config_is_written(kind: str, tmp_path: Path) -> None:
    """Google's programs read no config.json: without a file of their own they have no sizes at all."""
    model_type = kind.partition("-")[0]
    folder = tmp_path / "m"
    if kind == "bert-cls":
        checkpoints.save(folder, kind)
    elif kind == "albert":
        made = transformers.AlbertConfig(**SMALL, num_hidden_groups=1, inner_group_num=1)
        transformers.AlbertForMaskedLM(made).save_pretrained(folder)
    else:
        transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)).save_pretrained(folder)
    result = zoo.convert(folder, tmp_path / "tf", "tf-checkpoint", verify=True)
    said = json.loads((tmp_path / "tf" / BESIDE[kind]).read_text())
    config = json.loads((folder / "config.json").read_text())
    if kind == "gpt2":
        names = {"n_vocab": "vocab_size", "n_ctx": "n_positions", "n_embd": "n_embd", "n_head": "n_head"}
        assert said == {own: config[name] for own, name in {**names, "n_layer": "n_layer"}.items()}
    else:  # transformers' own converter of these checkpoints reads the file so
        cls = {"bert": transformers.BertConfig, "albert": transformers.AlbertConfig}[model_type]
        read = cls.from_json_file(tmp_path / "tf" / BESIDE[kind]).to_dict()
        sizes = [name for name in SMALL | {"num_hidden_groups": 1, "inner_group_num": 1} if name in config]
        assert {name: read[name] for name in sizes} == {name: config[name] for name in sizes} and len(sizes) >= 7
        assert said.keys() >= {*sizes, "hidden_act", "initializer_range", "hidden_dropout_prob"}
        assert said["hidden_act"] == "gelu"  # what both programs call either form of it
        assert "model_type" not in said
    listed = json.loads((tmp_path / "tf" / "conversion.json").read_text())["files"]
    assert BESIDE[kind] in listed and not any("reads no file" in note for note in result.notes)
    os.remove(tmp_path / "tf" / "config.json")
    ids = np.arange(1, 8)[None]
    alone = zoo.load(tmp_path / "tf", "numpy", None if kind != "bert-cls" else "text-classification")
    whole = zoo.load(folder, "numpy")
    first = next(iter(whole.graph.outputs))
    left, right = alone(input_ids=ids)[first], whole(input_ids=ids)[first]
    assert np.abs(left - right).max() <= CONVERTED[""] * np.abs(right).max()


def test_sizes_that_config_json_leaves_out_are_said(tmp_path: Path) -> None:
    """Google's default of type_vocab_size is 16, transformers' is 2."""
    folder = checkpoints.save(tmp_path / "m", "bert-cls")
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("type_vocab_size") == 2
    (folder / "config.json").write_text(json.dumps(config))
    zoo.convert(folder, tmp_path / "tf", "tf-checkpoint", verify=True)
    assert json.loads((tmp_path / "tf" / "bert_config.json").read_text())["type_vocab_size"] == 2


def test_an_activation_that_the_program_lacks_is_refused(tmp_path: Path) -> None:
    folder = checkpoints.edit_config(checkpoints.save(tmp_path / "m", "bert-cls"), hidden_act="silu")
    with pytest.raises(ConfigError, match="no such activation"):
        zoo.convert(folder, tmp_path / "tf", "tf-checkpoint")
    assert not (tmp_path / "tf").exists()


def test_a_width_that_the_program_has_in_its_code_is_refused(tmp_path: Path) -> None:
    """GPT-2's layers are four times as wide inside, whatever hparams.json says."""
    folder = checkpoints.save(tmp_path / "m", "gpt2")
    with pytest.raises(ConfigError, match="n_inner"):
        zoo.convert(folder, tmp_path / "tf", "tf-checkpoint")


@pytest.mark.parametrize(("kind", "word"), [("t5", "gin"), ("electra", "model_hparam_overrides")])
def test_programs_that_read_no_file_are_noted(kind: str, word: str, tmp_path: Path) -> None:
    made = transformers.T5Config(**T5) if kind == "t5" else transformers.ElectraConfig(**SMALL)
    cls = transformers.T5ForConditionalGeneration if kind == "t5" else transformers.ElectraForPreTraining
    cls(made).save_pretrained(tmp_path / "m")
    notes = zoo.convert(tmp_path / "m", tmp_path / "tf", "tf-checkpoint", dry_run=True).notes
    assert any(word in note for note in notes)
