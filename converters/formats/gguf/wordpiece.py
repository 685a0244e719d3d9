"""WordPiece as GGUF has it (tokenizer.ggml.model "bert") and as a tokenizer.json, both ways.

Where BERT marks what continues a word ("##ing"), llama.cpp marks what begins one ("▁play"); tokens in square brackets
are as they are. Only BERT's own way to normalise and cut text has a place there.
Sources: llama.cpp's src/llama-vocab.cpp (llm_tokenizer_wpm_session) and BertModel of convert_hf_to_gguf.py; the
tokenizer.json of the models whose tokenizer it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from converters.formats.gguf.sentencepiece import CONTROL, NORMAL, UNKNOWN, USER
from zoo.errors import FormatError

__all__ = ["from_json", "to_json"]


def from_json(said: Mapping[str, Any]) -> dict[str, Any] | None:
    """The tokenizer.ggml keys of a tokenizer.json; None where it is no WordPiece that llama.cpp has.

    Two pieces that llama.cpp would spell alike ("▁a" and "a") are none either.
    """
    model, normalizer = said["model"], said.get("normalizer") or {}
    if (
        model.get("type") != "WordPiece"
        or model.get("continuing_subword_prefix") != _MORE
        or normalizer.get("type") != "BertNormalizer"
        or not (normalizer.get("clean_text", True) and normalizer.get("handle_chinese_chars", True))
        or (said.get("pre_tokenizer") or {}).get("type") != "BertPreTokenizer"
    ):
        return None
    own = {number: piece for piece, number in model["vocab"].items()}
    special = {one["id"]: one["special"] for one in said["added_tokens"]}
    added = {one["id"]: one["content"] for one in said["added_tokens"]}
    tokens = {number: _begun(piece) for number, piece in own.items()} | added
    unknown = model["vocab"].get(model.get("unk_token"))
    kinds = {number: CONTROL if flag else USER for number, flag in special.items()} | {unknown: UNKNOWN}
    if unknown is None or sorted(tokens) != list(range(len(tokens))) or len(set(tokens.values())) != len(tokens):
        return None
    lowercase = bool(normalizer.get("lowercase", True))
    strip = normalizer.get("strip_accents")
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": [tokens[number] for number in range(len(tokens))],
        "tokenizer.ggml.token_type": [kinds.get(number, NORMAL) for number in range(len(tokens))],
        "tokenizer.ggml.unknown_token_id": unknown,
        "tokenizer.ggml.normalizer.lowercase": lowercase,
        "tokenizer.ggml.normalizer.strip_accents": lowercase if strip is None else bool(strip),
    }


def to_json(metadata: Mapping[str, Any], tokens: Sequence[str]) -> str:
    """A tokenizer.json for the tokenizers library; what the metadata lack is what llama.cpp takes for granted.

    Raises:
        FormatError: two tokens that are the same, or marks that are none of them.
    """
    kinds = list(metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens))
    marks = {
        name: metadata.get(f"tokenizer.ggml.{key}_token_id", default) for name, (key, default) in _DEFAULTS.items()
    }
    marks = {name: number for name, number in marks.items() if type(number) is int and 0 <= number < len(tokens)}
    special = {number for number, kind in enumerate(kinds) if kind in (CONTROL, UNKNOWN)} | set(marks.values())
    pieces = [
        token if number in special or kind == USER else _continued(token)
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
    ]
    if len(kinds) != len(tokens) or len(set(pieces)) != len(tokens) or "unk" not in marks:
        raise FormatError(
            "the tokenizer's lists do not belong together",
            where="tokenizer.ggml.tokens, token_type and unknown_token_id",
            expected="different tokens, a type for each, and one for what is unknown",
            got=f"{len(tokens)} tokens, {len(set(pieces))} different, {len(kinds)} types",
        )
    lowercase = bool(metadata.get("tokenizer.ggml.normalizer.lowercase", True))
    strip = metadata.get("tokenizer.ggml.normalizer.strip_accents")
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": number, "content": pieces[number], "single_word": False, "lstrip": False, "rstrip": False}
                | {"normalized": False, "special": number in special}
                for number, kind in enumerate(kinds)
                if number in special or kind == USER
            ],
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": strip,
                "lowercase": lowercase,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": _around(metadata, pieces, marks),
            "decoder": {"type": "WordPiece", "prefix": _MORE, "cleanup": True},
            "model": {
                "type": "WordPiece",
                "unk_token": pieces[marks["unk"]],
                "continuing_subword_prefix": _MORE,
                "max_input_chars_per_word": 100,
                "vocab": {piece: number for number, piece in enumerate(pieces)},
            },
        },
        ensure_ascii=False,
    )


_MORE, _BEGIN = "##", "▁"
# What llama.cpp takes where a file has no number: those of the published BERT.
_DEFAULTS = {"unk": ("unknown", 100), "bos": ("bos", 101), "sep": ("seperator", 102), "mask": ("mask", 103)}
_DEFAULTS |= {"pad": ("padding", 0)}


def _in_brackets(piece: str) -> bool:
    return piece.startswith("[") and piece.endswith("]")


def _begun(piece: str) -> str:
    """BERT's piece as llama.cpp spells it."""
    if _in_brackets(piece):
        return piece
    return piece[len(_MORE) :] if piece.startswith(_MORE) else _BEGIN + piece


def _continued(token: str) -> str:
    """llama.cpp's token as BERT spells it."""
    if _in_brackets(token):
        return token
    return token[len(_BEGIN) :] if token.startswith(_BEGIN) else _MORE + token


def _around(metadata: Mapping[str, Any], pieces: Sequence[str], marks: Mapping[str, int]) -> dict[str, Any] | None:
    """[CLS] before a text and [SEP] after it, as far as the file wants them."""
    wanted = {
        which: marks[which]
        for which in ("bos", "sep")
        if which in marks and metadata.get(f"tokenizer.ggml.add_{which}_token", True)
    }
    if not wanted:
        return None

    def mark(which: str, kind: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": pieces[wanted[which]], "type_id": kind}}] if which in wanted else []

    first, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    single = [*mark("bos", 0), first, *mark("sep", 0)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, second, *mark("sep", 1)],
        "special_tokens": {pieces[n]: {"id": pieces[n], "ids": [n], "tokens": [pieces[n]]} for n in wanted.values()},
    }
