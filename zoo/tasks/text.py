"""Texts in, vectors out: the checkpoint's own tokenizer, pooling and normalisation, on any backend.

Dims: B texts, T tokens, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from zoo.arrays import to_numpy
from zoo.errors import ConfigError
from zoo.model import Model, read_json

__all__ = ["derived_tokenizer_of", "embed", "load_tokenizer", "tokenize", "tokenizer_in"]


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
    if (found := tokenizer_in(folder)) is not None:
        tokenizer = found
    elif (text := derived_tokenizer_of(model)) is not None:
        with _ours(model.weights):
            tokenizer = Tokenizer.from_str(text)
    else:
        raise ConfigError("no tokenizer this release reads", where=folder, expected="tokenizer.json or vocab.txt")
    limit = _max_length(model, settings)
    pad = model.config.get("pad_token_id") or 0
    with _ours(folder):
        if limit:
            tokenizer.enable_truncation(limit)
        tokenizer.enable_padding(pad_id=pad, pad_token=tokenizer.id_to_token(pad) or "[PAD]")
    return tokenizer


def tokenizer_in(folder: Path) -> Any:
    """The tokenizer of a folder's files, None where they hold none that the tokenizers library knows.

    tokenizer.json, a BERT vocabulary (vocab.txt), or the pieces and merges of byte-level BPE (vocab.json, merges.txt).

    Raises:
        ConfigError: a file that is there and cannot be read.
    """
    import tokenizers

    settings = _optional(folder / "tokenizer_config.json")
    names = [name for name in ("tokenizer.json", "vocab.txt", "vocab.json") if (folder / name).is_file()]
    if not names or (names[0] == "vocab.json" and not (folder / "merges.txt").is_file()):
        return None
    path = folder / names[0]
    with _ours(path):
        if path.name == "tokenizer.json":
            return tokenizers.Tokenizer.from_file(str(path))
        if path.name == "vocab.json":
            return tokenizers.ByteLevelBPETokenizer(str(path), str(folder / "merges.txt"))._tokenizer
        return tokenizers.BertWordPieceTokenizer(
            str(path),
            lowercase=bool(settings.get("do_lower_case", True)),
            strip_accents=settings.get("strip_accents"),
            handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
        )._tokenizer


@contextmanager
def _ours(where: object, what: str = "the tokenizer cannot be read") -> Iterator[None]:
    """What the tokenizers library says of a file is an error of ours; a panic of its Rust code is no `Exception`."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        do = "take the tokenizer's file from the model's repository again"
        raise ConfigError(what, where=where, got=str(error)[:500] or type(error).__name__, do=do) from error


def derived_tokenizer_of(model: Model) -> str | None:
    """tokenizer.json's text out of the file of weights (GGUF), or None."""
    from converters import open_checkpoint
    from converters.dialects import derived_tokenizer

    if model.weights is None:
        return None
    with open_checkpoint(model.weights) as checkpoint:
        return derived_tokenizer(checkpoint)


def tokenize(model: Model, texts: Sequence[str]) -> dict[str, Any]:
    """The inputs of a batch, padded to its longest text: input_ids, attention_mask, token_type_ids, int64 [B, T]."""
    tokenizer = model.tokenizer
    with _ours(model.folder, "the tokenizer cannot take these texts"):
        encodings = tokenizer.encode_batch(list(texts))
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
        hidden_BTD = to_numpy(model(packed=True, **inputs)["last_hidden_state"])
        vectors_BD = np.zeros((len(rows), hidden_BTD.shape[2]))
        for vector_D, hidden_TD, mask_T in zip(vectors_BD, hidden_BTD, inputs["attention_mask"], strict=True):
            if mask_T.any():
                vector_D[:] = pooling(hidden_TD[mask_T > 0].astype(np.float64))
        if normalise:
            vectors_BD = vectors_BD / np.maximum(np.linalg.norm(vectors_BD, axis=1, keepdims=True), 1e-12)
        if result is None:
            result = np.empty((len(texts), vectors_BD.shape[1]), np.float32)
        result[rows] = vectors_BD
    assert result is not None
    return result


# The keys of sentence-transformers' 1_Pooling/config.json; of one text's real tokens, [T, D] -> [D].
_POOLINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "pooling_mode_mean_tokens": lambda hidden_TD: hidden_TD.mean(0),
    "pooling_mode_cls_token": lambda hidden_TD: hidden_TD[0],
    "pooling_mode_max_tokens": lambda hidden_TD: hidden_TD.max(0),
    "pooling_mode_lasttoken": lambda hidden_TD: hidden_TD[-1],
}


_MODULES = ("Transformer", "Pooling", "Normalize")


def _modules(path: Path) -> list[str]:
    """The kinds of sentence-transformers' modules, in order: the last part of each one's type."""
    if not path.is_file():
        return []
    try:
        return [str(module["type"]).rpartition(".")[2] for module in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
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
    return _POOLINGS[modes[0] if modes else "pooling_mode_mean_tokens"], normalise


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
