"""The config.json of Google's TensorFlow 1 checkpoints: from the file beside them, or from the tensors' shapes.

BERT has bert_config.json beside it, ALBERT albert_config.json, GPT-2 hparams.json. ELECTRA and T5 have nothing that
is needed: shapes say everything but ELECTRA's number of heads, which are 64 wide in each of its published sizes
(util/training_utils.py and run_pretraining.py of google-research/electra).

"gelu" in these files is not one function. ALBERT's and ELECTRA's programs compute the tanh approximation, which
Hugging Face calls "gelu_new". BERT's computed the exact one when its base and large models were published and the
approximation since (commit bee6030e of google-research/bert, 2019); nothing in a checkpoint says which. It stays
"gelu", the exact one, as in Hugging Face's own conversions. The two differ by less than 5e-4 wherever they are
applied; for a BERT that was trained later, set "hidden_act": "gelu_new".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from converters.checkpoint import Checkpoint, strict_json
from converters.dialects.fields import Fields
from zoo.errors import ConfigError

__all__ = ["READERS", "beside", "config", "t5_config"]

_FIELDS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size"),
    *("initializer_range", "embedding_size", "num_hidden_groups", "inner_group_num"),
)
_EPSILON = {"layer_norm_eps": 1e-12}  # of tf.contrib.layers.layer_norm
_GPT2 = {"n_vocab": "vocab_size", "n_ctx": "n_positions", "n_embd": "n_embd", "n_head": "n_head", "n_layer": "n_layer"}


def config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The config.json that follows; None where the file that it would follow from is not there.

    Raises:
        ConfigError: tensors are missing that it follows from.
        FormatError: the file beside the checkpoint is no JSON.
    """
    names = {name.removeprefix("module/") for name in checkpoint.infos}
    if any(name.startswith("encoder/block_000/") for name in names):
        return _t5(checkpoint)
    if "model/h0/attn/c_attn/w" in names:
        found = _beside(checkpoint, "hparams.json")
        if found is None:
            return None
        fields = {field: found[key] for key, field in _GPT2.items() if key in found}
        return {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **fields}
    if any(name.startswith("electra/") for name in names):
        return _electra(checkpoint, names)
    if any(name.startswith("bert/encoder/transformer/") for name in names):
        return _bert(checkpoint, names, "albert", "Albert")
    return _bert(checkpoint, names, "bert", "Bert")


_HEADS = ("id2label", "label2id", "num_labels", "tie_word_embeddings", "pad_token_id", "eos_token_id", "bos_token_id")
READERS: Mapping[str, Fields] = {
    "bert": Fields(_EPSILON, (*_FIELDS, *_HEADS)),
    "albert": Fields({**_EPSILON, "hidden_act": "gelu_new"}, (*(f for f in _FIELDS if f != "hidden_act"), *_HEADS)),
    "electra": Fields({**_EPSILON, "hidden_act": "gelu_new"}, (*(f for f in _FIELDS if f != "hidden_act"), *_HEADS)),
    "gpt2": Fields(
        {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "n_inner": None}, (*_GPT2.values(), *_HEADS)
    ),
    "t5": Fields(
        {"layer_norm_epsilon": 1e-6, "relative_attention_max_distance": 128},
        (
            *("vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "num_layers", "num_decoder_layers"),
            *("relative_attention_num_buckets", "feed_forward_proj", "scale_decoder_outputs", *_HEADS),
        ),
    ),
}
"""Model type -> what Google's program, or OpenAI's, makes of the config."""


def beside(config: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The files beside the variables that the program reads, name -> fields; and notes on what it needs besides.

    Source: BertConfig of google-research/bert's and albert's modeling.py, default_hparams of openai/gpt-2's model.py,
    util/training_utils.py of google-research/electra.

    Raises:
        ConfigError: BERT's program has no such activation.
    """
    kind = config.get("model_type")
    if kind == "gpt2":
        return {"hparams.json": {key: config[field] for key, field in _GPT2.items() if field in config}}, []
    if kind == "electra":
        return {}, [
            "ELECTRA's program reads no file of sizes: give it those of config.json by --hparams, as vocab_size, "
            "embedding_size and model_hparam_overrides"
        ]
    if kind == "t5":
        return {}, ["T5's program has its sizes from a gin file, which is not written: take those of config.json"]
    act = config.get("hidden_act", "gelu")
    own = _ACTIVATIONS.get(act)
    if own is None:
        raise ConfigError(
            "Google's program has no such activation", where="hidden_act", expected=", ".join(_ACTIVATIONS), got=act
        )
    said = {field: config[field] for field in (_FIELDS if kind == "albert" else _FIELDS[:-3]) if field in config}
    return {f"{kind}_config.json": {**said, "hidden_act": own}}, []


_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu", "tanh": "tanh"}


def _bert(checkpoint: Checkpoint, names: set[str], model_type: str, cls: str) -> dict[str, Any] | None:
    said = _beside(checkpoint, f"{model_type}_config.json")
    if said is None:
        return None
    found = {"model_type": model_type, **{key: said[key] for key in _FIELDS if key in said}, **_EPSILON}
    if model_type == "albert" and found.get("hidden_act", "gelu") == "gelu":
        found["hidden_act"] = "gelu_new"
    if "cls/predictions/output_bias" in names:
        head = "ForMaskedLM"  # as Hugging Face names them; the other head of the pretraining travels along
    elif "cls/squad/output_weights" in names:
        head = "ForQuestionAnswering"
    elif "output_weights" in names:
        head = "ForSequenceClassification"
        labels = [f"LABEL_{i}" for i in range(_shape(checkpoint, "output_weights")[0])]
        found["id2label"] = {str(i): label for i, label in enumerate(labels)}
        found["label2id"] = {label: i for i, label in enumerate(labels)}
    else:
        head = "Model"
    return {"architectures": [cls + head], **found}


def _electra(checkpoint: Checkpoint, names: set[str]) -> dict[str, Any]:
    vocabulary, embedding = _shape(checkpoint, "electra/embeddings/word_embeddings")
    discriminator = any(name.startswith("electra/encoder/") for name in names)
    stack = "electra/encoder" if discriminator else "generator/encoder"
    hidden, inner = _shape(checkpoint, f"{stack}/layer_0/intermediate/dense/kernel")
    if discriminator and "discriminator_predictions/dense/kernel" in names:
        cls = "ElectraForPreTraining"
    else:
        cls = "ElectraForMaskedLM" if "generator_predictions/output_bias" in names else "ElectraModel"
    return {
        "architectures": [cls],
        "model_type": "electra",
        "vocab_size": vocabulary,
        "embedding_size": embedding,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": _count(names, rf"{stack}/layer_(\d+)/.*"),
        "num_attention_heads": max(1, hidden // 64),
        "max_position_embeddings": _shape(checkpoint, "electra/embeddings/position_embeddings")[0],
        "type_vocab_size": _shape(checkpoint, "electra/embeddings/token_type_embeddings")[0],
        "hidden_act": "gelu_new",
        **_EPSILON,
    }


def _t5(checkpoint: Checkpoint) -> dict[str, Any]:
    names = set(checkpoint.infos)
    block = "encoder/block_000/layer_000/SelfAttention"
    heads, buckets = _shape(checkpoint, f"{block}/relative_attention_bias")
    width, projected = _shape(checkpoint, f"{block}/q")
    inner = "encoder/block_000/layer_001/DenseReluDense"
    gated = f"{inner}/wi_0/kernel" in names
    return t5_config(
        vocab_size=_shape(checkpoint, "shared/embedding")[0],
        d_model=width,
        d_kv=projected // heads,
        d_ff=_shape(checkpoint, f"{inner}/{'wi_0' if gated else 'wi'}/kernel")[1],
        num_heads=heads,
        num_layers=_count(names, r"encoder/block_(\d+)/.*"),
        num_decoder_layers=_count(names, r"decoder/block_(\d+)/.*"),
        relative_attention_num_buckets=buckets,
        gated=gated,
        tied="decoder/logits/kernel" not in names,
    )


def t5_config(*, gated: bool, tied: bool, **sizes: int) -> dict[str, Any]:
    """The config of a T5 of these sizes, by its own names for them; 1.1's layers are gated, its head is apart."""
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        **sizes,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": tied,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def _beside(checkpoint: Checkpoint, name: str) -> Mapping[str, Any] | None:
    path = checkpoint.path.parent / name
    return strict_json(path.read_bytes(), path, name) if path.is_file() else None


def _count(names: set[str], pattern: str) -> int:
    return len({match[1] for match in (re.fullmatch(pattern, name) for name in names) if match})


def _shape(checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
    info = checkpoint.infos.get(name) or checkpoint.infos.get(f"module/{name}")
    if info is None or not info.shape:
        raise ConfigError(f"no tensor named {name!r}, which the config would be derived from", where=checkpoint.path)
    return info.shape
