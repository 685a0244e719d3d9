"""Google's TensorFlow 1 checkpoints: BERT, ALBERT, ELECTRA, GPT-2 (OpenAI's) and T5, under their variables' names.

Kernels of dense layers are [in, out]; tables, biases and the matrices called output_weights are torch's already.
An ELECTRA checkpoint holds two models. The discriminator is "electra", unless the config names ElectraForMaskedLM,
which is the generator; the other of the two is kept as "generator." or "discriminator.". They share embeddings.
Sources: the variables in google-research/bert, albert and electra (modeling.py, run_*.py), openai/gpt-2 (src/model.py)
and the T5 checkpoints; load_tf_weights_in_* of transformers 4 for which torch tensor each is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from converters.checkpoint import Checkpoint
from converters.dialects.google_tf1_config import READERS, beside, config
from converters.dialects.shared import Dropped
from converters.dialects.tabled import read, write
from converters.dialects.tables import Row, Table
from converters.view import Concatenate, Recipe
from zoo.errors import ConfigError

__all__ = ["DROPPED", "NAME", "beside", "canonical", "config", "foreign", "recognises", "understood"]

NAME = "google-tf1"

DROPPED: Dropped = (
    (r"(.*/)?(adam_[mv]|lamb_[mv]|Adam(_1)?|AdamWeightDecayOptimizer(_\d+)?)|.*_slot_\w+", "state of the optimizer"),
    (r"(.*/)?(global_step|beta[12]_power|temperature|(current_)?loss_scale|good_steps)", "state of the training"),
    (r"(.*\.)?position_ids|(transformer\.)?h\.\d+\.attn\.(masked_)?bias", "the model computes it"),
)


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether a variable is there that each of these models has, under Google's name."""
    return _family(checkpoint.infos) is not None


def canonical(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """Canonical name -> recipe.

    Raises:
        ConfigError: no variable tells which of the models this is.
    """
    family = _family(checkpoint.infos)
    if family is None:
        raise ConfigError("none of Google's models", where=checkpoint.path, expected=", ".join(_MARKS))
    lead = "module/" if any(name.startswith("module/") for name in checkpoint.infos) else ""  # TF Hub's
    generator = _is_generator(config) and any("generator/encoder/" in name for name in checkpoint.infos)
    return read(_table(family, config, lead, generator), checkpoint, config, DROPPED)


def foreign(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """Google's name -> recipe; an output layer equal to the embedding is left out.

    Raises:
        ConfigError: the config's model type is none of these.
        WeightsError: tensors that these programs have no variable for; all are named.
    """
    family = config.get("model_type")
    if family not in _MARKS:
        raise ConfigError("none of Google's models", expected=", ".join(_MARKS), got=family)
    return write(_table(family, config, "", _is_generator(config)), checkpoint, _TIES[family], DROPPED)


def understood(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of what the program computes that such variables are of."""
    return READERS[str(config.get("model_type"))].understood(config)


_MARKS = {
    "bert": r"(module/)?bert/encoder/layer_0/attention/self/query/kernel",
    "albert": r"(module/)?bert/encoder/transformer/group_0/inner_group_0/attention_1/self/query/kernel",
    "electra": r"(module/)?electra/embeddings/word_embeddings",
    "gpt2": r"model/h0/attn/c_attn/w",
    "t5": r"encoder/block_000/layer_000/SelfAttention/q",
}
_TIES = {
    "bert": (
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    "albert": (
        ("predictions.decoder.weight", "albert.embeddings.word_embeddings.weight"),
        ("predictions.decoder.bias", "predictions.bias"),
    ),
    "electra": (("generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"),),
    "gpt2": (("lm_head.weight", "transformer.wte.weight"),),
    "t5": (
        ("encoder.embed_tokens.weight", "shared.weight"),
        ("decoder.embed_tokens.weight", "shared.weight"),
        ("lm_head.weight", "shared.weight"),
    ),
}
_PREFIXES = {"bert": "bert.", "albert": "albert.", "electra": "electra.", "gpt2": "transformer."}

_LAYER = {
    "attention.self.query": "attention/self/query",
    "attention.self.key": "attention/self/key",
    "attention.self.value": "attention/self/value",
    "attention.output.dense": "attention/output/dense",
    "intermediate.dense": "intermediate/dense",
    "output.dense": "output/dense",
}
_ALBERT_LAYER = {
    "attention.query": "attention_1/self/query",
    "attention.key": "attention_1/self/key",
    "attention.value": "attention_1/self/value",
    "attention.dense": "attention_1/output/dense",
    "ffn": "ffn_1/intermediate/dense",
    "ffn_output": "ffn_1/intermediate/output/dense",
}


def _family(names: Iterable[str]) -> str | None:
    return next((kind for kind, mark in _MARKS.items() if any(re.fullmatch(mark, name) for name in names)), None)


def _is_generator(config: Mapping[str, Any]) -> bool:
    return "ElectraForMaskedLM" in (config.get("architectures") or ())


def _table(family: str, config: Mapping[str, Any], lead: str, generator: bool) -> Table:
    if family == "bert":
        rows = [*_bert()]
    elif family == "albert":
        rows = [*_albert()]
    elif family == "electra":
        rows = [*_electra(generator)]
    elif family == "gpt2":
        rows = [*_gpt2()]
    else:
        rows = [*_t5(config)]
    led = [Row(row.ours, lead + row.theirs, row.kind) for row in rows if isinstance(row.theirs, str)]
    return Table(led, prefix=_PREFIXES.get(family, ""))


def _dense(ours: str, theirs: str) -> Iterator[Row]:
    yield Row(f"{ours}.weight", f"{theirs}/kernel", "dense")
    yield Row(f"{ours}.bias", f"{theirs}/bias")


def _norm(ours: str, theirs: str) -> Iterator[Row]:
    yield Row(f"{ours}.weight", f"{theirs}/gamma")
    yield Row(f"{ours}.bias", f"{theirs}/beta")
    yield Row(f"{ours}.gamma", f"{theirs}/gamma")  # old torch checkpoints
    yield Row(f"{ours}.beta", f"{theirs}/beta")


def _classifier(ours: str, theirs: str) -> Iterator[Row]:
    """What the programs multiply by transposed: [labels, in], as torch has it."""
    yield Row(f"{ours}.weight", f"{theirs}output_weights")
    yield Row(f"{ours}.bias", f"{theirs}output_bias")


def _embeddings(ours: str, theirs: str) -> Iterator[Row]:
    for table in ("word", "position", "token_type"):
        yield Row(f"{ours}.embeddings.{table}_embeddings.weight", f"{theirs}/embeddings/{table}_embeddings")
    yield from _norm(f"{ours}.embeddings.LayerNorm", f"{theirs}/embeddings/LayerNorm")


def _layers(ours: str, theirs: str) -> Iterator[Row]:
    ours, theirs = f"{ours}.encoder.layer.{{}}", f"{theirs}/encoder/layer_{{}}"
    for own, name in _LAYER.items():
        yield from _dense(f"{ours}.{own}", f"{theirs}/{name}")
    for part in ("attention.output", "output"):
        yield from _norm(f"{ours}.{part}.LayerNorm", f"{theirs}/{part.replace('.', '/')}/LayerNorm")


def _bert() -> Iterator[Row]:
    yield from _embeddings("bert", "bert")
    yield from _layers("bert", "bert")
    yield from _dense("bert.pooler.dense", "bert/pooler/dense")
    yield from _dense("cls.predictions.transform.dense", "cls/predictions/transform/dense")
    yield from _norm("cls.predictions.transform.LayerNorm", "cls/predictions/transform/LayerNorm")
    yield Row("cls.predictions.bias", "cls/predictions/output_bias")
    yield Row("cls.predictions.decoder.bias", "cls/predictions/output_bias")
    yield from _classifier("cls.seq_relationship", "cls/seq_relationship/")
    yield from _classifier("qa_outputs", "cls/squad/")
    yield from _classifier("classifier", "")


def _albert() -> Iterator[Row]:
    yield from _embeddings("albert", "bert")
    yield from _dense("albert.encoder.embedding_hidden_mapping_in", "bert/encoder/embedding_hidden_mapping_in")
    ours = "albert.encoder.albert_layer_groups.{}.albert_layers.{}"
    theirs = "bert/encoder/transformer/group_{}/inner_group_{}"
    for own, name in _ALBERT_LAYER.items():
        yield from _dense(f"{ours}.{own}", f"{theirs}/{name}")
    yield from _norm(f"{ours}.attention.LayerNorm", f"{theirs}/LayerNorm")
    yield from _norm(f"{ours}.full_layer_layer_norm", f"{theirs}/LayerNorm_1")
    yield from _dense("albert.pooler", "bert/pooler/dense")
    yield from _dense("predictions.dense", "cls/predictions/transform/dense")
    yield from _norm("predictions.LayerNorm", "cls/predictions/transform/LayerNorm")
    yield Row("predictions.bias", "cls/predictions/output_bias")
    yield Row("predictions.decoder.bias", "cls/predictions/output_bias")
    yield from _classifier("sop_classifier.classifier", "cls/seq_relationship/")
    yield from _classifier("classifier", "")


def _electra(generator: bool) -> Iterator[Row]:
    # The model that the config means is "electra." in torch, whatever it is called here.
    own, other = ("generator", "electra") if generator else ("electra", "generator")
    yield from _embeddings("electra", "electra")
    yield from _embeddings("generator", "generator")  # where the two were trained with embeddings of their own
    for ours, theirs in (("electra", own), ("discriminator" if generator else "generator", other)):
        yield from _dense(f"{ours}.embeddings_project", f"{theirs}/embeddings_project")
        yield from _layers(ours, theirs)
    yield from _dense("discriminator_predictions.dense", "discriminator_predictions/dense")
    yield from _dense("discriminator_predictions.dense_prediction", "discriminator_predictions/dense_1")
    yield from _dense("generator_predictions.dense", "generator_predictions/dense")
    yield from _norm("generator_predictions.LayerNorm", "generator_predictions/LayerNorm")
    yield Row("generator_lm_head.bias", "generator_predictions/output_bias")


def _gpt2() -> Iterator[Row]:
    yield Row("transformer.wte.weight", "model/wte")
    yield Row("transformer.wpe.weight", "model/wpe")
    for ours, theirs in (("h.{}.ln_1", "h{}/ln_1"), ("h.{}.ln_2", "h{}/ln_2"), ("ln_f", "ln_f")):
        yield Row(f"transformer.{ours}.weight", f"model/{theirs}/g")
        yield Row(f"transformer.{ours}.bias", f"model/{theirs}/b")
    for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        ours, theirs = f"transformer.h.{{}}.{part}", f"model/h{{}}/{part.replace('.', '/')}"
        yield Row(f"{ours}.weight", f"{theirs}/w", "pointwise")
        yield Row(f"{ours}.bias", f"{theirs}/b")


def _t5(config: Mapping[str, Any]) -> Iterator[Row]:
    """Numbers have three digits here, so every layer has rows of its own."""
    yield Row("shared.weight", "shared/embedding")
    yield Row("lm_head.weight", "decoder/logits/kernel", "dense")
    encoder = config.get("num_layers", 6)  # the class's default
    for stack, count in (("encoder", encoder), ("decoder", config.get("num_decoder_layers") or encoder)):
        # Both names of the norms are read; the first is written.
        for name in ("final_layer_norm", "rms_norm"):
            yield Row(f"{stack}.final_layer_norm.weight", f"{stack}/{name}/scale")
        parts = ("SelfAttention", "DenseReluDense") if stack == "encoder" else _T5_DECODER
        for block in range(count):
            for layer, part in enumerate(parts):
                ours, theirs = f"{stack}.block.{block}.layer.{layer}", f"{stack}/block_{block:03}/layer_{layer:03}"
                for name in ("layer_norm", "rms_norm"):
                    yield Row(f"{ours}.layer_norm.weight", f"{theirs}/{name}/scale")
                if part == "DenseReluDense":
                    for name in ("wi", "wi_0", "wi_1", "wo"):
                        yield Row(f"{ours}.{part}.{name}.weight", f"{theirs}/{part}/{name}/kernel", "dense")
                    continue
                for name in "qkvo":
                    yield Row(f"{ours}.{part}.{name}.weight", f"{theirs}/{part}/{name}", "dense")
                bias = "relative_attention_bias"  # [heads, buckets]; a table [buckets, heads] in torch
                yield Row(f"{ours}.{part}.{bias}.weight", f"{theirs}/{part}/{bias}", "dense")


_T5_DECODER = ("SelfAttention", "EncDecAttention", "DenseReluDense")
