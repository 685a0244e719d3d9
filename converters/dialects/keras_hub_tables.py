"""Names of keras-hub's backbones, a table per family; see `keras_hub`.

T5's decoder layers count on from the encoder's, so a table is made for a config.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from converters.dialects.tables import Row, Table
from converters.view import Permute
from zoo.errors import ConfigError

__all__ = ["FAMILIES", "table"]

Config = Mapping[str, Any]


def table(config: Config) -> Table:
    """The table of a model.

    Args:
        config: Hugging Face's.

    Raises:
        ConfigError: keras-hub's names of the family are not known here.
    """
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        raise ConfigError("keras-hub's names of this model are not known", expected=", ".join(FAMILIES), got=family)
    rows, prefix, heads = FAMILIES[family]
    count = next((int(config[key]) for key in heads if config.get(key)), 1)
    counts = {"heads": count, "kv": int(config.get("num_key_value_heads") or count)}
    return Table(list(rows(config)), prefix=prefix, heads=counts, computed=r"(^|\.)position_ids$")


def _dense(ours: str, theirs: str, kind: str = "dense") -> Iterator[Row]:
    yield Row(f"{ours}.weight", f"{theirs}/vars/0", kind)
    yield Row(f"{ours}.bias", f"{theirs}/vars/1", "heads_bias" if kind == "heads" else "same")


def _norm(ours: str, theirs: str) -> Iterator[Row]:
    return _dense(ours, theirs, "same")


def _attention(ours: str, names: Sequence[str], theirs: str) -> Iterator[Row]:
    """Queries, keys, values and the output, by the names that they have on our side."""
    for own, layer in zip(names, ("query_dense", "key_dense", "value_dense", "output_dense"), strict=True):
        yield from _dense(ours + own, f"{theirs}/{layer}", "heads_out" if layer == "output_dense" else "heads")


def _block(ours: str, names: Mapping[str, str], theirs: str, attention: Sequence[str]) -> Iterator[Row]:
    """keras-hub's TransformerEncoder and TransformerDecoder."""
    yield from _attention(ours, attention, f"{theirs}/_self_attention_layer")
    yield from _norm(ours + names["norm1"], f"{theirs}/_self_attention_layer_norm")
    yield from _dense(ours + names["up"], f"{theirs}/_feedforward_intermediate_dense")
    yield from _dense(ours + names["down"], f"{theirs}/_feedforward_output_dense")
    yield from _norm(ours + names["norm2"], f"{theirs}/_feedforward_layer_norm")


_BERT_BLOCK = {
    "norm1": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm2": "output.LayerNorm",
}
_BERT_ATTENTION = [*(f"attention.self.{part}" for part in ("query", "key", "value")), "attention.output.dense"]


def _bert(config: Config) -> Iterator[Row]:
    base = "bert."
    yield from _apart(f"{base}embeddings.")
    yield from _dense(f"{base}pooler.dense", "layers/dense")
    yield from _block(f"{base}encoder.layer.{{}}.", _BERT_BLOCK, "layers/transformer_encoder{_}", _BERT_ATTENTION)


def _albert(config: Config) -> Iterator[Row]:
    names = {
        "norm1": "attention.LayerNorm",
        "up": "ffn",
        "down": "ffn_output",
        "norm2": "full_layer_layer_norm",
    }
    attention = [f"attention.{part}" for part in ("query", "key", "value", "dense")]
    ours = "albert.encoder.albert_layer_groups.0.albert_layers.0."
    yield from _apart("albert.embeddings.")
    yield from _dense("albert.encoder.embedding_hidden_mapping_in", "layers/dense")
    yield from _dense("albert.pooler", "layers/dense_1")
    yield from _block(ours, names, "layers/transformer_encoder", attention)


def _apart(ours: str) -> Iterator[Row]:
    """Embeddings in layers of their own."""
    yield Row(f"{ours}word_embeddings.weight", "layers/reversible_embedding/vars/0")
    yield Row(f"{ours}position_embeddings.weight", "layers/position_embedding/vars/0")
    yield Row(f"{ours}token_type_embeddings.weight", "layers/embedding/vars/0")
    yield from _norm(f"{ours}LayerNorm", "layers/layer_normalization")


def _together(ours: str, positions: str) -> Iterator[Row]:
    """Embeddings in one layer."""
    theirs = "layers/token_and_position_embedding/"
    yield Row(f"{ours}word_embeddings.weight", f"{theirs}token_embedding/vars/0")
    yield Row(f"{ours}position_embeddings.weight", f"{theirs}position_embedding/vars/0", positions)
    yield from _norm(f"{ours}LayerNorm", "layers/layer_normalization")


def _roberta(config: Config) -> Iterator[Row]:
    yield from _together("roberta.embeddings.", "positions")
    yield from _block("roberta.encoder.layer.{}.", _BERT_BLOCK, "layers/transformer_encoder{_}", _BERT_ATTENTION)


def _distilbert(config: Config) -> Iterator[Row]:
    names = {"norm1": "sa_layer_norm", "up": "ffn.lin1", "down": "ffn.lin2", "norm2": "output_layer_norm"}
    attention = [f"attention.{part}_lin" for part in ("q", "k", "v", "out")]
    yield from _together("distilbert.embeddings.", "same")
    yield from _block("distilbert.transformer.layer.{}.", names, "layers/transformer_encoder{_}", attention)


def _gpt2(config: Config) -> Iterator[Row]:
    """GPT-2's torch layers have kernels [in, out], and queries, keys and values in one."""
    ours, theirs = "transformer.h.{}.", "layers/transformer_decoder{_}/"
    attention = f"{theirs}_self_attention_layer/"
    parts = [f"{attention}{part}_dense/vars/" for part in ("query", "key", "value")]
    turn = (Permute((1, 0)),)
    yield Row("transformer.wte.weight", "layers/reversible_embedding/vars/0")
    yield Row("transformer.wpe.weight", "layers/position_embedding/vars/0")
    yield from _norm("transformer.ln_f", "layers/layer_normalization")
    yield Row(f"{ours}attn.c_attn.weight", tuple(f"{part}0" for part in parts), "heads", after=turn)
    yield Row(f"{ours}attn.c_attn.bias", tuple(f"{part}1" for part in parts), "heads_bias")
    yield Row(f"{ours}attn.c_proj.weight", f"{attention}output_dense/vars/0", "heads_out", after=turn)
    yield Row(f"{ours}attn.c_proj.bias", f"{attention}output_dense/vars/1")
    yield from _norm(f"{ours}ln_1", f"{theirs}_self_attention_layer_norm")
    yield from _norm(f"{ours}ln_2", f"{theirs}_feedforward_layer_norm")
    yield from _norm(f"{ours}mlp.c_fc", f"{theirs}_feedforward_intermediate_dense")
    yield from _norm(f"{ours}mlp.c_proj", f"{theirs}_feedforward_output_dense")


def _llama(config: Config) -> Iterator[Row]:
    ours, theirs = "model.layers.{}.", "layers/llama_transformer_decoder{_}/"
    attention = f"{theirs}_self_attention_layer/_"
    yield Row("model.embed_tokens.weight", "layers/reversible_embedding/vars/0")
    yield Row("lm_head.weight", "layers/reversible_embedding/vars/1", "dense")
    yield Row("model.norm.weight", "layers/llama_layer_norm/vars/0")
    yield Row(f"{ours}input_layernorm.weight", f"{theirs}_self_attention_layernorm/vars/0")
    yield Row(f"{ours}post_attention_layernorm.weight", f"{theirs}_feedforward_layernorm/vars/0")
    yield Row(f"{ours}self_attn.q_proj.weight", f"{attention}query_dense/vars/0", "heads")
    yield Row(f"{ours}self_attn.k_proj.weight", f"{attention}key_dense/vars/0", "heads", "kv")
    yield Row(f"{ours}self_attn.v_proj.weight", f"{attention}value_dense/vars/0", "heads", "kv")
    yield Row(f"{ours}self_attn.o_proj.weight", f"{attention}output_dense/vars/0", "heads_out")
    for own, layer in (("gate", "gate"), ("up", "intermediate"), ("down", "output")):
        yield Row(f"{ours}mlp.{own}_proj.weight", f"{theirs}_feedforward_{layer}_dense/vars/0", "dense")


def _gemma(config: Config) -> Iterator[Row]:
    ours, theirs = "model.layers.{}.", "layers/gemma_decoder_block{_}/"
    norms = {"pre_attention_norm": "input_layernorm", "pre_ffw_norm": "post_attention_layernorm"}
    if config.get("model_type") == "gemma2":
        norms |= {
            "pre_ffw_norm": "pre_feedforward_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        }
    yield Row("model.embed_tokens.weight", "layers/reversible_embedding/vars/0")
    yield Row("model.norm.weight", "layers/rms_normalization/vars/0")
    yield from (Row(f"{ours}{own}.weight", f"{theirs}{layer}/vars/0") for layer, own in norms.items())
    yield Row(f"{ours}self_attn.q_proj.weight", f"{theirs}attention/query_dense/vars/0", "heads_first")
    yield Row(f"{ours}self_attn.k_proj.weight", f"{theirs}attention/key_dense/vars/0", "heads_first", "kv")
    yield Row(f"{ours}self_attn.v_proj.weight", f"{theirs}attention/value_dense/vars/0", "heads_first", "kv")
    yield Row(f"{ours}self_attn.o_proj.weight", f"{theirs}attention/output_dense/vars/0", "heads_out")
    for own, layer in (("gate", "gating_ffw"), ("up", "gating_ffw_2"), ("down", "ffw_linear")):
        yield Row(f"{ours}mlp.{own}_proj.weight", f"{theirs}{layer}/vars/0", "dense")


def _t5(config: Config) -> Iterator[Row]:
    depth, gated = int(config["num_layers"]), "gated" in str(config.get("feed_forward_proj", "relu"))
    yield Row("shared.weight", "layers/reversible_embedding/vars/0")
    yield Row("lm_head.weight", "layers/reversible_embedding/vars/1", "dense")
    for stack, (part, parts) in enumerate({"encoder": ["Self"], "decoder": ["Self", "EncDec"]}.items()):
        yield Row(f"{part}.final_layer_norm.weight", f"layers/t5_layer_norm{'_1' * stack}/vars/0")
        for layer in range(depth):
            number = layer + stack * depth
            ours, theirs = (
                f"{part}.block.{layer}.layer.",
                f"layers/t5_transformer_layer{f'_{number}' if number else ''}/",
            )
            for i, kind in enumerate(parts):
                attention = theirs + ("self_attention" if kind == "Self" else "cross_attention")
                for own, name in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")):
                    yield Row(
                        f"{ours}{i}.{kind}Attention.{own}.weight", f"{attention}/{name}_projector/vars/0", "dense"
                    )
                yield Row(f"{ours}{i}.layer_norm.weight", f"{attention}_layer_norm/vars/0")
            if layer == 0:
                bias = f"{ours}0.SelfAttention.relative_attention_bias.weight"
                yield Row(bias, f"{theirs}self_attention/vars/0")
            last = f"{ours}{len(parts)}."
            yield Row(f"{last}layer_norm.weight", f"{theirs}layer_norm/vars/0")
            names = {"wi_0": "input", "wi_1": "gate", "wo": "output"} if gated else {"wi": "input", "wo": "output"}
            for own, name in names.items():
                yield Row(f"{last}DenseReluDense.{own}.weight", f"{theirs}{name}_projector/vars/0", "dense")


def _vit(config: Config) -> Iterator[Row]:
    ours, theirs = "vit.encoder.layer.{}.", "layers/vi_t_encoder/encoder_layers/vi_t_encoder_block{_}/"
    patches = "layers/vi_t_patching_and_embedding/"
    attention = [*(f"attention.attention.{part}" for part in ("query", "key", "value")), "attention.output.dense"]
    yield Row("vit.embeddings.cls_token", f"{patches}vars/0")
    yield Row("vit.embeddings.position_embeddings", f"{patches}position_embedding/vars/0", "batched")
    yield from _dense("vit.embeddings.patch_embeddings.projection", f"{patches}patch_embedding", "conv")
    yield from _attention(ours, attention, f"{theirs}mha")
    yield from _norm(f"{ours}layernorm_before", f"{theirs}layer_norm_1")
    yield from _norm(f"{ours}layernorm_after", f"{theirs}layer_norm_2")
    yield from _dense(f"{ours}intermediate.dense", f"{theirs}mlp/dense_1")
    yield from _dense(f"{ours}output.dense", f"{theirs}mlp/dense_2")
    yield from _norm("vit.layernorm", "layers/vi_t_encoder/layer_norm")


def _whisper(config: Config) -> Iterator[Row]:
    names = {"norm1": "self_attn_layer_norm", "up": "fc1", "down": "fc2", "norm2": "final_layer_norm"}
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    for part, last in (("encoder", ""), ("decoder", "_1")):
        ours, theirs = f"model.{part}.layers.{{}}.", f"layers/whisper_{part}{{_}}"
        yield from _block(ours, names, theirs, [f"self_attn.{name}" for name in projections])
        yield from _norm(f"model.{part}.layer_norm", f"layers/layer_normalization{last}")
    ours, theirs = "model.decoder.layers.{}.encoder_attn", "layers/whisper_decoder{_}/_cross_attention_layer"
    yield from _attention(f"{ours}.", projections, theirs)
    yield from _norm(f"{ours}_layer_norm", f"{theirs}_norm")
    yield from _dense("model.encoder.conv1", "layers/conv1d", "conv1d")
    yield from _dense("model.encoder.conv2", "layers/conv1d_1", "conv1d")
    yield Row("model.encoder.embed_positions.weight", "layers/position_embedding/vars/0")
    embedding = "layers/token_and_position_embedding/"
    yield Row("model.decoder.embed_tokens.weight", f"{embedding}token_embedding/vars/0")
    yield Row("model.decoder.embed_positions.weight", f"{embedding}position_embedding/vars/0")


_BERT_HEADS = ("num_attention_heads",)
FAMILIES: Mapping[str, tuple[Any, str, tuple[str, ...]]] = {
    "bert": (_bert, "bert.", _BERT_HEADS),
    "roberta": (_roberta, "roberta.", _BERT_HEADS),
    "xlm-roberta": (_roberta, "roberta.", _BERT_HEADS),
    "distilbert": (_distilbert, "distilbert.", ("n_heads", "num_attention_heads")),
    "albert": (_albert, "albert.", _BERT_HEADS),
    "gpt2": (_gpt2, "transformer.", ("n_head", "num_attention_heads")),
    "llama": (_llama, "model.", _BERT_HEADS),
    "gemma": (_gemma, "model.", _BERT_HEADS),
    "gemma2": (_gemma, "model.", _BERT_HEADS),
    "t5": (_t5, "", ("num_heads",)),
    "vit": (_vit, "vit.", _BERT_HEADS),
    "whisper": (_whisper, "model.", ("encoder_attention_heads", "num_attention_heads")),
}
"""model_type -> its rows, the prefix of the base model, and which fields of the config say the number of heads."""
