"""SentencePiece's BPE as a tokenizer.json, and back: pieces with scores, as llama.cpp and llama2.c keep Llama's.

Where SentencePiece joins the two neighbours whose piece has the highest score, the tokenizers library applies merges
in order: every way to cut a piece into two pieces is a merge, and those of better pieces come first.
Sources: https://github.com/google/sentencepiece/blob/master/src/bpe_model.cc, llama.cpp's src/llama-vocab.cpp,
llama2.c's tokenizer.py, and the tokenizer.json of the models whose tokenizer it is.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zoo.errors import FormatError

__all__ = ["BYTE", "CONTROL", "NORMAL", "UNKNOWN", "UNUSED", "USER", "pieces_of", "read_llama2c", "to_json"]

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
"""SentencePiece's types of pieces."""

MAX_PIECE = 512
"""Characters of a piece; SentencePiece's own limit is 16 unless it is told otherwise."""


def to_json(
    pieces: Sequence[str],
    scores: Sequence[float],
    kinds: Sequence[int],
    *,
    prefix: bool = True,
    begin: int | None = None,
    end: int | None = None,
) -> str:
    """A tokenizer.json for the tokenizers library.

    Args:
        pieces: by number, "▁" for a space.
        scores: of each; the higher is joined first.
        kinds: of each.
        prefix: whether a text gets a space before it.
        begin, end: numbers of the pieces that are put around every text, if any.

    Raises:
        FormatError: lists that do not belong together, or a piece that is far too long.
    """
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    if not len(pieces) == len(vocabulary) == len(scores) == len(kinds) or max(map(len, pieces), default=0) > MAX_PIECE:
        raise FormatError(
            "the tokenizer's lists do not belong together",
            expected=f"different pieces of at most {MAX_PIECE} characters, a score and a type for each",
            got=f"{len(pieces)} pieces, {len(vocabulary)} different, {len(scores)} scores, {len(kinds)} types",
        )
    unknown = next((piece for piece, kind in zip(pieces, kinds, strict=True) if kind == UNKNOWN), None)
    spaces: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        spaces.insert(0, {"type": "Prepend", "prepend": "▁"})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                _added(number, pieces[number], kind != USER)
                for number, kind in enumerate(kinds)
                if kind in (UNKNOWN, CONTROL, USER)
            ],
            "normalizer": {"type": "Sequence", "normalizers": spaces},
            "pre_tokenizer": None,
            "post_processor": _around(pieces, begin, end),
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": unknown,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": BYTE in kinds,
                "ignore_merges": False,
                "vocab": vocabulary,
                "merges": [list(pair) for pair in _merges(vocabulary, scores, kinds)],
            },
        },
        ensure_ascii=False,
    )


def pieces_of(said: Mapping[str, Any]) -> tuple[list[str], list[float], list[int], bool] | None:
    """Pieces, scores, types and whether a text gets a space before it, of a tokenizer.json that is one of these.

    None where it is another kind, or where no scores give its merges. Scores are the places of the merges, since a
    tokenizer.json does not have SentencePiece's.
    """
    model = said["model"]
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        return None
    prefix = _prefix(said.get("normalizer"), said.get("pre_tokenizer"))
    by_number = {number: piece for piece, number in model["vocab"].items()}
    by_number |= {one["id"]: one["content"] for one in said["added_tokens"]}
    if prefix is None or sorted(by_number) != list(range(len(by_number))):
        return None
    pieces = [by_number[number] for number in range(len(by_number))]
    kinds = [BYTE if _is_byte(piece) else NORMAL for piece in pieces]
    for one in said["added_tokens"]:
        unknown = one["content"] == model.get("unk_token")
        kinds[one["id"]] = UNKNOWN if unknown else CONTROL if one["special"] else USER
    merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
    ranks: dict[str, int] = {}
    for pair in merges:
        ranks.setdefault("".join(pair), len(ranks))
    scores = [
        0.0 if kind not in (NORMAL, USER) else -float(ranks.get(piece, len(ranks) + number))
        for number, (piece, kind) in enumerate(zip(pieces, kinds, strict=True))
    ]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    again = list(_merges(vocabulary, scores, kinds))
    in_order = list(dict.fromkeys(map("".join, again))) == list(ranks)
    return (pieces, scores, kinds, prefix) if in_order and set(again) == set(merges) else None


def read_llama2c(raw: bytes, count: int) -> str:
    """The tokenizer.json of llama2.c's tokenizer.bin: the longest piece's length, then score, length and text of each.

    Args:
        raw: the file, or what begins with it.
        count: how many pieces the model has.

    Raises:
        FormatError: truncated, or no text.
    """
    texts, scores = [], []
    start = 4
    for number in range(count):
        score, length = struct.unpack_from("<fi", raw, start) if start + 8 <= len(raw) else (0.0, -1)
        text = raw[start + 8 : start + 8 + max(0, length)]
        if length < 0 or len(text) < length:
            raise FormatError(
                "the tokenizer is truncated", where=f"tokenizer.bin, piece {number}", expected=f"{count} pieces"
            )
        texts.append(text.decode("utf-8", "replace"))
        scores.append(score)
        start += 8 + length
    # Written for printing: spaces as they are, the marks on lines of their own, and at first the bytes as characters.
    first = len(_MARKS)
    if texts[first : first + 256] == [chr(byte) for byte in range(256)]:
        texts[first : first + 256] = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = [*_MARKS, *(text.replace(" ", "▁") for text in texts[first:])][:count]
    kinds = [UNKNOWN, CONTROL, CONTROL, *(BYTE if _is_byte(piece) else NORMAL for piece in pieces[first:])][:count]
    return to_json(pieces, scores, kinds, begin=1)


_MARKS = ("<unk>", "<s>", "</s>")


def _merges(vocabulary: Mapping[str, int], scores: Sequence[float], kinds: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Every pair of pieces whose joint is a piece, best joints first."""
    joinable = {piece for piece, number in vocabulary.items() if kinds[number] in (NORMAL, USER)}
    for piece in sorted(joinable, key=lambda piece: (-scores[vocabulary[piece]], vocabulary[piece])):
        pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        found = [pair for pair in pairs if pair[0] in joinable and pair[1] in joinable]
        yield from sorted(found, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))


def _prefix(normalizer: Any, pre_tokenizer: Any) -> bool | None:
    """Whether a text gets a space before it; None where the tokenizer does something else to it."""
    steps = (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])
    kinds = [step.get("type") for step in steps]
    spaces = bool(steps) and steps[-1].get("pattern") == {"String": " "} and steps[-1].get("content") == "▁"
    if kinds == ["Prepend", "Replace"] and spaces and steps[0].get("prepend") == "▁" and pre_tokenizer is None:
        return True
    if kinds == ["Replace"] and spaces and (pre_tokenizer is None or pre_tokenizer.get("pattern") == {"String": " "}):
        return False
    if (
        not kinds
        and pre_tokenizer
        and pre_tokenizer.get("type") == "Metaspace"
        and not pre_tokenizer.get("split", True)
    ):
        return pre_tokenizer.get("prepend_scheme", "always") != "never"
    return None


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _added(number: int, piece: str, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": piece, **flags, "special": special}


def _around(pieces: Sequence[str], begin: int | None, end: int | None) -> dict[str, Any] | None:
    marks = [number for number in (begin, end) if number is not None]
    if not marks:
        return None
    if not all(0 <= number < len(pieces) for number in marks):
        raise FormatError("a mark of the text is no piece", expected=f"below {len(pieces)}", got=marks)

    def around(name: str, kind: int) -> list[dict[str, Any]]:
        def mark(number: int | None) -> list[dict[str, Any]]:
            return [] if number is None else [{"SpecialToken": {"id": pieces[number], "type_id": kind}}]

        return [*mark(begin), {"Sequence": {"id": name, "type_id": kind}}, *mark(end)]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {pieces[n]: {"id": pieces[n], "ids": [n], "tokens": [pieces[n]]} for n in marks},
    }
