"""What a text model says of texts, by its own task: `zoo run` shows it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.arrays import to_numpy
from zoo.errors import ConfigError, InputError
from zoo.files import read_json
from zoo.tasks.text import tokenize

if TYPE_CHECKING:
    from zoo.model import Model

__all__ = ["answers"]


def answers(model: Model, texts: list[str], top_k: int) -> dict[str, Any]:
    """What a text model says of each text: an embedding, or the best labels or tokens with their probabilities.

    Returns:
        {"results": one dict per text, with "text" and "embedding" or "answers"}, and "similarities" (cosine, [N, N])
        beside embeddings.

    Raises:
        InputError: a text has no mask to fill.
        ConfigError: the model's outputs are none that this knows.
    """
    if "last_hidden_state" in model.graph.outputs:
        vectors = model.embed(texts).astype(np.float64)
        lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        results = [{"text": text, "embedding": row.tolist()} for text, row in zip(texts, vectors, strict=True)]
        return {"results": results, "similarities": (vectors / lengths @ (vectors / lengths).T).tolist()}
    if "logits" not in model.graph.outputs:
        raise ConfigError(
            "this command does not know what to make of the model's outputs",
            where=model.name,
            expected="last_hidden_state or logits",
            got=", ".join(model.graph.outputs),
        )
    task = model.graph.meta.get("task", "")
    masked = "MaskedLM" in str(model.graph.meta.get("class")) or task == "fill-mask"
    if masked:
        token, mask_id = _mask_token(model)
        texts = [text.replace("[MASK]", token).replace("<mask>", token) for text in texts]
    inputs = tokenize(model, texts)
    probabilities = _softmax(to_numpy(model(**inputs)["logits"]).astype(np.float64))
    ids = inputs["input_ids"]
    kept = inputs.get("attention_mask", np.ones_like(ids))
    labels = {int(key): label for key, label in (model.config.get("id2label") or {}).items()}
    results = []
    for row, text in enumerate(texts):
        groups = []
        if probabilities.ndim == 2:
            groups.append(_top("", probabilities[row], top_k, lambda i: labels.get(i, f"LABEL_{i}")))
        elif masked:
            places = np.flatnonzero(ids[row] == mask_id)
            if not places.size:
                raise InputError("the text has no mask to fill", where=text, expected=token, do=f"write {token} in it")
            for number, place in enumerate(places, 1):
                where = f"{token} {number}" if len(places) > 1 else ""
                groups.append(_top(where, probabilities[row, place], top_k, lambda i: _token(model, i)))
        elif task == "token-classification":
            for place in np.flatnonzero(kept[row]):
                where = _token(model, int(ids[row, place]))
                groups.append(_top(where, probabilities[row, place], 1, lambda i: labels.get(i, f"LABEL_{i}")))
        elif task == "text-generation":
            last = len(kept[row]) - 1 - int(kept[row][::-1].argmax())
            groups.append(_top("next token", probabilities[row, last], top_k, lambda i: _token(model, i)))
        else:
            raise ConfigError("this command does not run models of this task", where=model.name, got=task)
        results.append({"text": text, "answers": groups})
    return {"results": results}


def _mask_token(model: Model) -> tuple[str, int]:
    """The tokenizer's mask, as its files say, else the usual spelling that it knows."""
    spelled = []
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        path = (model.folder or Path()) / file
        token = read_json(path).get("mask_token") if model.folder and path.is_file() else None
        spelled.append(token.get("content") if isinstance(token, dict) else token)
    for token in (*spelled, "[MASK]", "<mask>"):
        if token and (index := model.tokenizer.token_to_id(token)) is not None:
            return token, index
    raise ConfigError("the tokenizer has no mask token", where=model.name)


def _token(model: Model, index: int) -> str:
    return str(model.tokenizer.id_to_token(index)).replace("▁", " ").replace("Ġ", " ")


def _top(where: str, probabilities: Any, count: int, label: Any) -> dict[str, Any]:
    best = probabilities.argsort()[::-1][:count]
    return {"where": where, "top": [{"label": label(int(i)), "score": float(probabilities[i])} for i in best]}


def _softmax(logits: Any) -> Any:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
