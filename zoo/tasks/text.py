"""Texts in, vectors out: the checkpoint's own tokenizer, pooling and layers, on any backend.

Dims: B texts, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.arrays import to_numpy
from zoo.errors import ConfigError
from zoo.tasks.sentence import Sentences, read_sentences
from zoo.tasks.tokenizer import read_settings, read_tokenizer, tokenizer_in, worded

if TYPE_CHECKING:
    from zoo.model import Model

__all__ = ["derived_texts_of", "embed", "load_tokenizer", "tokenize", "tokenizer_in"]


def load_tokenizer(model: Model) -> Any:
    """The tokenizer of the model's files: tokenizer.json, a BERT vocabulary (vocab.txt), or what a GGUF file says,
    with what tokenizer_config.json, special_tokens_map.json and sentence-transformers' files set.

    Raises:
        ConfigError: the files hold neither, or a setting that cannot be applied.
    """
    folder = model.folder
    if folder is None:
        raise ConfigError("the model has no files, so no tokenizer", where=model.name, do="load it from a checkpoint")
    settings = read_settings(folder)
    usual = model.config.get("tokenizer_class") or model.config.get("model_type", "")
    tokenizer = read_tokenizer(folder, settings, usual, lambda: derived_texts_of(model)[0])
    sentences = read_sentences(folder)
    if sentences.lower:
        _lower(tokenizer)
    limit = _max_length(model, settings, sentences)
    if limit:
        tokenizer.enable_truncation(limit, direction=tokenizer.truncation["direction"])
    else:
        tokenizer.no_truncation()
    if not tokenizer.padding["pad_token"]:  # nothing names one
        pad = model.config.get("pad_token_id") or 0
        tokenizer.enable_padding(
            **{**tokenizer.padding, "pad_id": pad, "pad_token": tokenizer.id_to_token(pad) or "[PAD]"}
        )
    return tokenizer


def derived_texts_of(model: Model) -> tuple[str | None, str | None]:
    """tokenizer.json's text and tokenizer_config.json's out of the file of weights (GGUF), each None if it has none."""
    from converters import open_checkpoint
    from converters.dialects import derived_tokenizer, derived_tokenizer_config

    if model.weights is None:
        return None, None
    with open_checkpoint(model.weights) as checkpoint:
        return derived_tokenizer(checkpoint), derived_tokenizer_config(checkpoint)


def tokenize(model: Model, texts: Sequence[str]) -> dict[str, Any]:
    """The inputs of a batch, padded to its longest text: input_ids, attention_mask, token_type_ids, int64 [B, T]."""
    tokenizer = model.tokenizer
    with worded(model.folder, "the tokenizer cannot take these texts"):
        encodings = tokenizer.encode_batch(list(texts))
    columns = {
        "input_ids": [e.ids for e in encodings],
        "attention_mask": [e.attention_mask for e in encodings],
        "token_type_ids": [e.type_ids for e in encodings],
    }
    wanted = {item.name for item in model.graph.inputs}
    if model.folder is not None and (names := read_settings(model.folder).get("model_input_names")):
        wanted &= {"input_ids", "attention_mask", *names}
    return {name: np.asarray(rows, np.int64) for name, rows in columns.items() if name in wanted}


def embed(
    model: Model, texts: list[str], batch_size: int = 32, *, prompt: str | None = None, prompt_name: str | None = None
) -> np.ndarray:
    """float32 [len(texts), D]: hidden states pooled and passed on as sentence-transformers' files say, else their mean.

    Texts are taken longest first, so that a batch pads little; the result is in the order given.

    Args:
        prompt: what is put before each text; None takes the one of `prompt_name`, or the checkpoint's default.
        prompt_name: of the checkpoint's prompts.

    Raises:
        ConfigError: the model gives no last_hidden_state, or its files ask for something not known here.
    """
    if "last_hidden_state" not in model.graph.outputs:
        raise ConfigError(
            "the model gives no hidden states to pool",
            where=model.name,
            expected="last_hidden_state",
            got=", ".join(model.graph.outputs),
            do='load it with task="feature-extraction"',
        )
    sentences = read_sentences(model.folder, _width(model))
    before = sentences.prompt(prompt, prompt_name)
    if not texts:
        return embed(model, [""], prompt=prompt, prompt_name=prompt_name)[:0]
    of_prompt = 0 if sentences.include_prompt or not before else _prompt_length(model, before)
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    result: np.ndarray | None = None
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        inputs = tokenize(model, [before + texts[i] for i in rows])
        mask_BT = inputs.get("attention_mask")
        if mask_BT is None:  # the graph takes none; the padding is known all the same
            encodings = model.tokenizer.encode_batch([before + texts[i] for i in rows])
            mask_BT = np.array([e.attention_mask for e in encodings])
        hidden_BTD = to_numpy(model(packed=True, **inputs)["last_hidden_state"]).astype(np.float64)
        vectors_BD = np.stack(
            [
                sentences.pool(hidden_TD, mask_T, of_prompt)
                for hidden_TD, mask_T in zip(hidden_BTD, mask_BT, strict=True)
            ]
        )
        for layer in sentences.layers:
            vectors_BD = layer(vectors_BD)
        if result is None:
            result = np.empty((len(texts), vectors_BD.shape[1]), np.float32)
        result[rows] = vectors_BD
    assert result is not None
    return result


def _prompt_length(model: Model, prompt: str) -> int:
    """How many tokens a prompt has in front of a text: all but a special one at its end."""
    with worded(model.folder, "the tokenizer cannot take this prompt"):
        ids = model.tokenizer.encode(prompt).ids
    added = model.tokenizer.get_added_tokens_decoder()
    return len(ids) - bool(ids and ids[-1] in added and added[ids[-1]].special)


def _width(model: Model) -> int | None:
    ref = model.graph.outputs["last_hidden_state"]
    for node in model.graph.nodes:
        if ref.name in node.outputs:
            width = node.infos[node.outputs.index(ref.name)].shape[-1]
            return width if isinstance(width, int) else None
    return None


def _lower(tokenizer: Any) -> None:
    """Texts are lowercased before all else, unless they are anyway."""
    from tokenizers import normalizers

    said = "" if tokenizer.normalizer is None else str(tokenizer.normalizer.__getstate__())
    if "Lowercase" in said or '"lowercase":true' in said:
        return
    rest = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rest])


def _max_length(model: Model, settings: dict[str, Any], sentences: Sentences) -> int | None:
    """How many tokens are left of a text: what sentence-transformers' file says, else what tokenizer and config do; as
    many as the network takes at most.
    """
    limits: list[Any] = [model.graph.symbols.get("sequence", (1, None))[1]]
    if sentences.max_length is not None:
        limits.append(sentences.max_length)
    else:
        limits.append(settings.get("model_max_length"))
        if sentences.modules:
            limits.append(model.config.get("max_position_embeddings"))
    # transformers writes 1e30 for "no limit", and XLNet's config -1
    known = [int(limit) for limit in limits if isinstance(limit, (int, float)) and 0 < limit < 1e9]
    return min(known) if known else None
