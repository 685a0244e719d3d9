"""Texts in, vectors out: the checkpoint's own tokenizer, pooling and normalisation, on any backend.

Dims: B texts, T tokens, D width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.arrays import to_numpy
from zoo.errors import ConfigError
from zoo.model import Model, read_json

__all__ = ["embed", "load_tokenizer", "tokenize"]


def load_tokenizer(model: Model) -> Any:
    """The tokenizer of the model's files: tokenizer.json, a BERT vocabulary (vocab.txt), or what a GGUF file says.

    Raises:
        ConfigError: the files hold neither.
    """
    from tokenizers import Tokenizer

    folder = model.folder
    if folder is None:
        raise ConfigError("the model has no files, so no tokenizer", where=model.name, do="load it from a checkpoint")
    settings = _optional(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    elif (folder / "vocab.txt").is_file():
        from tokenizers import BertWordPieceTokenizer

        lowercase = bool(settings.get("do_lower_case", True))
        tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=lowercase)._tokenizer
    elif (text := _derived(model)) is not None:
        tokenizer = Tokenizer.from_str(text)
    else:
        raise ConfigError("no tokenizer this release reads", where=folder, expected="tokenizer.json or vocab.txt")
    limit = _max_length(model, settings)
    if limit:
        tokenizer.enable_truncation(limit)
    pad = model.config.get("pad_token_id") or 0
    tokenizer.enable_padding(pad_id=pad, pad_token=tokenizer.id_to_token(pad) or "[PAD]")
    return tokenizer


def _derived(model: Model) -> str | None:
    from converters import open_checkpoint
    from converters.dialects import derived_tokenizer

    if model.weights is None:
        return None
    with open_checkpoint(model.weights) as checkpoint:
        return derived_tokenizer(checkpoint)


def tokenize(model: Model, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """The inputs of a batch, padded to its longest text: input_ids, attention_mask, token_type_ids, int64 [B, T]."""
    encodings = model.tokenizer.encode_batch(list(texts))
    columns = {
        "input_ids": [e.ids for e in encodings],
        "attention_mask": [e.attention_mask for e in encodings],
        "token_type_ids": [e.type_ids for e in encodings],
    }
    wanted = {item.name for item in model.graph.inputs}
    return {name: np.asarray(rows, np.int64) for name, rows in columns.items() if name in wanted}


def embed(model: Model, texts: list[str], batch_size: int = 32) -> np.ndarray:
    """float32 [len(texts), D]: hidden states pooled over tokens as 1_Pooling/config.json says (else their mean),
    normalised to length 1 where modules.json says so.

    Texts are taken longest first, so that a batch pads little; the result is in the order given.

    Raises:
        ConfigError: the model gives no last_hidden_state, or its pooling is of a kind not known here.
    """
    if "last_hidden_state" not in model.graph.outputs:
        raise ConfigError(
            "the model gives no hidden states to pool",
            where=model.name,
            expected="last_hidden_state",
            got=", ".join(model.graph.outputs),
            do='load it with task="feature-extraction"',
        )
    pooling, normalise = _pooling(model)
    if not texts:
        return embed(model, [""])[:0]
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    result: np.ndarray | None = None
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        inputs = tokenize(model, [texts[i] for i in rows])
        hidden_BTD = to_numpy(model(**inputs)["last_hidden_state"]).astype(np.float64)
        vectors_BD = pooling(hidden_BTD, inputs["attention_mask"])
        if normalise:
            vectors_BD = vectors_BD / np.maximum(np.linalg.norm(vectors_BD, axis=1, keepdims=True), 1e-12)
        if result is None:
            result = np.empty((len(texts), vectors_BD.shape[1]), np.float32)
        result[rows] = vectors_BD
    assert result is not None
    return result


def _mean(hidden_BTD: np.ndarray, mask_BT: np.ndarray) -> np.ndarray:
    weights = mask_BT[:, :, None].astype(hidden_BTD.dtype)
    return (hidden_BTD * weights).sum(1) / np.maximum(weights.sum(1), 1e-9)


def _first(hidden_BTD: np.ndarray, mask_BT: np.ndarray) -> np.ndarray:
    return hidden_BTD[np.arange(len(mask_BT)), mask_BT.argmax(1)]


def _last(hidden_BTD: np.ndarray, mask_BT: np.ndarray) -> np.ndarray:
    return hidden_BTD[np.arange(len(mask_BT)), mask_BT.shape[1] - 1 - mask_BT[:, ::-1].argmax(1)]


def _max(hidden_BTD: np.ndarray, mask_BT: np.ndarray) -> np.ndarray:
    return np.where(mask_BT[:, :, None] > 0, hidden_BTD, -np.inf).max(1)


# the keys of sentence-transformers' 1_Pooling/config.json
_POOLINGS = {
    "pooling_mode_mean_tokens": _mean,
    "pooling_mode_cls_token": _first,
    "pooling_mode_max_tokens": _max,
    "pooling_mode_lasttoken": _last,
}


_MODULES = ("Transformer", "Pooling", "Normalize")


def _modules(path: Path) -> list[str]:
    """The kinds of sentence-transformers' modules, in order: the last part of each one's type."""
    if not path.is_file():
        return []
    try:
        return [str(module["type"]).rpartition(".")[2] for module in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError("not a list of modules", where=path, got=error) from error


def _pooling(model: Model) -> tuple[Any, bool]:
    folder = model.folder or Path("/nonexistent")
    settings = _optional(folder / "1_Pooling" / "config.json")
    modes = [key for key, on in settings.items() if key.startswith("pooling_mode_") and on is True]
    unknown = [mode for mode in modes if mode not in _POOLINGS]
    if unknown or len(modes) > 1 or (settings and not modes):
        raise ConfigError(
            "this way of pooling is not known",
            where=folder / "1_Pooling" / "config.json",
            expected=f"one of {', '.join(_POOLINGS)}",
            got=", ".join(modes) or settings,
        )
    kinds = _modules(folder / "modules.json")
    if unknown := [kind for kind in kinds if kind not in _MODULES]:
        raise ConfigError(
            "the vectors pass through a module that is not known here",
            where=folder / "modules.json",
            expected=f"only {', '.join(_MODULES)}",
            got=", ".join(unknown),
        )
    normalise = "Normalize" in kinds
    return (_POOLINGS[modes[0]] if modes else _mean), normalise


def _max_length(model: Model, settings: dict[str, Any]) -> int | None:
    """The shortest of what the pooling settings, the tokenizer and the network allow."""
    folder = model.folder or Path("/nonexistent")
    limits = [
        _optional(folder / "sentence_bert_config.json").get("max_seq_length"),
        settings.get("model_max_length"),
        model.graph.symbols.get("sequence", (1, None))[1],
    ]
    # transformers writes 1e30 for "no limit"
    known = [int(limit) for limit in limits if limit and limit < 1e9]
    return min(known) if known else None


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
