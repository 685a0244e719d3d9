"""The tokenizer inside a GGUF file as a tokenizer.json, and back.

llama.cpp's model "gpt2" is byte-level BPE, "llama" SentencePiece's BPE (`sentencepiece`), "bert" WordPiece
(`converters.formats.gguf.wordpiece`). Of the first, what a text is cut into before the merges apply stands in
tokenizer.ggml.pre, as the name of a published tokenizer, and so does whether a word that is a token is left whole.
Sources: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, llama.cpp's src/llama-vocab.cpp for what each name
means, and the tokenizer.json of the models that are so called for how the tokenizers library says the same.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from converters.formats.gguf import sentencepiece as spm_tokenizer
from converters.formats.gguf import wordpiece as gguf_wordpiece
from zoo.errors import FormatError

__all__ = ["marks_around", "tokenizer_json", "tokenizer_metadata", "unused_name"]


def tokenizer_json(metadata: Mapping[str, Any]) -> str | None:
    """A tokenizer.json for the tokenizers library; None where the file holds another kind of tokenizer, or none.

    Args:
        metadata: of a GGUF file, or what `tokenizer_metadata` gave.

    Raises:
        FormatError: lists of tokens, types and merges that do not belong together.
    """
    metadata = _without_filling(metadata)
    tokens, merges = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.merges")
    if metadata.get("tokenizer.ggml.model") == "llama" and tokens:
        return _sentencepiece(metadata, list(tokens))
    if metadata.get("tokenizer.ggml.model") == "bert" and tokens:
        return gguf_wordpiece.to_json(metadata, list(tokens))
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if metadata.get("tokenizer.ggml.model") != "gpt2" or not tokens or merges is None or pre not in _PRE:
        return None
    kinds = list(metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = [_pair(merge) for merge in merges]
    if len(vocabulary) != len(tokens) or len(kinds) != len(tokens) or not all(map(_is_pair, pairs)):
        raise FormatError(
            "the tokenizer's lists do not belong together",
            where="tokenizer.ggml.tokens, token_type and merges",
            expected="different tokens, a type for each, and merges of two parts",
            got=f"{len(tokens)} tokens, {len(vocabulary)} different, {len(kinds)} types, {len(merges)} merges",
        )
    unknown = [pair for pair in pairs if not {*pair, "".join(pair)} <= vocabulary.keys()]
    if unknown:
        raise FormatError("merges of tokens that are not in the vocabulary", got=str(unknown[:4]))
    normalizer, steps, whole = _PRE[pre]
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                _added(number, tokens[number], special=kind != _USER)
                for number, kind in enumerate(kinds)
                if kind in (_CONTROL, _USER)
            ],
            "normalizer": normalizer,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0],
            "post_processor": _post_processor(metadata, tokens),
            "decoder": _byte_level(use_regex=True, add_prefix_space=True),
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": whole,
                "vocab": vocabulary,
                "merges": pairs,
            },
        },
        ensure_ascii=False,
    )


def tokenizer_metadata(text: str) -> dict[str, Any] | None:
    """The tokenizer.ggml keys of a tokenizer.json; None where llama.cpp has no name for what it does.

    Raises:
        FormatError: the text is no tokenizer.json.
    """
    try:
        found = json.loads(text)
        model, added = found["model"], found["added_tokens"]
        if (spm := spm_tokenizer.pieces_of(found)) is not None:
            return _marked(_sentencepiece_metadata(found, *spm), found)
        if model.get("type") == "WordPiece":
            pieces = gguf_wordpiece.from_json(found)
            return None if pieces is None else _marked(pieces, found)
        if model.get("type") != "BPE" or model.get("byte_fallback"):
            return None
        tokens = {number: token for token, number in model["vocab"].items()}
        tokens |= {one["id"]: one["content"] for one in added}
        special = {one["id"]: one["special"] for one in added}
        merges = [_merge(pair) for pair in model["merges"]]
        steps = found["pre_tokenizer"] or {}
        said = found["normalizer"], steps.get("pretokenizers", [steps]), bool(model.get("ignore_merges"))
        pre = next((name for name, known in _PRE.items() if _same(known, said)), None)
        plain = not any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"))
        if pre is None or not plain or len(set(tokens.values())) != len(tokens) or max(tokens, default=0) >= 1 << 22:
            return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError("the text is no tokenizer.json", got=f"{type(error).__name__}: {error}") from error
    kinds = {number: _CONTROL if flag else _USER for number, flag in special.items()}
    taken, count = set(tokens.values()), max(tokens, default=-1) + 1
    listed = [tokens.get(number) or unused_name(number, taken) for number in range(count)]
    said_so = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": listed,
        "tokenizer.ggml.token_type": [
            kinds.get(number, _NORMAL) if number in tokens else _UNUSED for number in range(count)
        ],
        "tokenizer.ggml.merges": merges,
    }
    return _marked(said_so, found)


def marks_around(said: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The special tokens that a tokenizer.json puts before a text and after it."""
    step = said.get("post_processor") or {}
    before: list[str] = []
    after: list[str] = []
    for one in step.get("processors", [step]):
        if one.get("type") == "TemplateProcessing":
            single = one["single"]
            text = next((place for place, item in enumerate(single) if "Sequence" in item), len(single))
            before += [item["SpecialToken"]["id"] for item in single[:text]]
            after += [item["SpecialToken"]["id"] for item in single[text + 1 :]]
        elif one.get("type") in ("BertProcessing", "RobertaProcessing"):
            before.append(one["cls"][0])
            after.append(one["sep"][0])
    return before, after


def unused_name(number: int, taken: Collection[str]) -> str:
    """What a number without a token is called, as convert_hf_to_gguf.py has it."""
    name = f"[PAD{number}]"
    while name in taken:
        name = f"[{name}]"
    return name


_NORMAL, _CONTROL, _USER = spm_tokenizer.NORMAL, spm_tokenizer.CONTROL, spm_tokenizer.USER
_UNUSED = spm_tokenizer.UNUSED


def _marked(found: dict[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """With llama.cpp's flag and number for what stands at each end of every text: one token, or none."""
    last = "sep" if found["tokenizer.ggml.model"] == "bert" else "eos"
    for which, around in zip(("bos", last), marks_around(said), strict=True):
        known = [token for token in around if token in found["tokenizer.ggml.tokens"]]
        found[f"tokenizer.ggml.add_{which}_token"] = bool(known)
        if known:
            key = "seperator" if which == "sep" else which  # as GGUF spells it
            found[f"tokenizer.ggml.{key}_token_id"] = found["tokenizer.ggml.tokens"].index(known[0])
    return found


def _without_filling(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same without the unused tokens that only make the list as long as the embedding."""
    tokens, kinds = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not isinstance(kinds, list) or len(tokens) != len(kinds):
        return metadata
    count = len(tokens)
    while count and kinds[count - 1] == _UNUSED and tokens[count - 1] == f"[PAD{count - 1}]":
        count -= 1
    if count == len(tokens):
        return metadata
    lists = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.scores")
    return {**metadata, **{key: metadata[key][:count] for key in lists if isinstance(metadata.get(key), list)}}


def _sentencepiece(metadata: Mapping[str, Any], pieces: list[str]) -> str | None:
    """llama.cpp puts the first mark before a text and a space after it, unless it is told otherwise."""

    def mark(which: str, default: bool) -> int | None:
        number = metadata.get(f"tokenizer.ggml.{which}_token_id", {"bos": 1, "eos": 2}[which])
        return number if metadata.get(f"tokenizer.ggml.add_{which}_token", default) else None

    scores, kinds = (metadata.get(f"tokenizer.ggml.{key}") for key in ("scores", "token_type"))
    if scores is None or kinds is None:
        return None
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    begin, end = mark("bos", True), mark("eos", False)
    return spm_tokenizer.to_json(pieces, list(scores), list(kinds), prefix=prefix, begin=begin, end=end)


def _sentencepiece_metadata(
    found: Mapping[str, Any], pieces: list[str], scores: list[float], kinds: list[int], prefix: bool
) -> dict[str, Any]:
    said = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    unknown = found["model"].get("unk_token")
    if unknown in pieces:
        said["tokenizer.ggml.unknown_token_id"] = pieces.index(unknown)
    return said


def _byte_level(*, use_regex: bool, add_prefix_space: bool = False) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _cased(after: str) -> str:
    """Words that begin again at an upper-case letter; `after` follows each."""
    first = r"[^\r\n\p{L}\p{N}]?"
    return f"{first}{_UPPER}*{_LOWER}+{after}|{first}{_UPPER}+{_LOWER}*{after}|"


# Name -> normalizer, the steps of the pre-tokenizer, and whether a word that is a token as a whole is not made of
# merges. The first of equal ones is written.
_PRE: Mapping[str, tuple[Any, list[dict[str, Any]], bool]] = {
    "gpt-2": (None, [_byte_level(use_regex=True)], False),
    "smollm": (None, [{"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)], False),
    "llama-bpe": (None, [_split(_WORD + r"\p{N}{1,3}" + _TAIL), _byte_level(use_regex=False)], True),
    "dbrx": (None, [_split(_WORD + r"\p{N}{1,3}" + _TAIL), _byte_level(use_regex=False)], False),
    "qwen2": ({"type": "NFC"}, [_split(_WORD + r"\p{N}" + _TAIL), _byte_level(use_regex=False)], False),
    "stablelm2": (None, [_split(_WORD + r"\p{N}" + _TAIL), _byte_level(use_regex=False)], False),
    "tekken": (None, [_split(_cased("") + r"\p{N}" + _SLASH), _byte_level(use_regex=False)], True),
    "gpt-4o": (
        None,
        [_split(_cased(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?") + r"\p{N}{1,3}" + _SLASH), _byte_level(use_regex=False)],
        False,
    ),
    # What llama.cpp does where a file has no name or "default".
    "default": (
        None,
        [
            *map(_split, (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
            _byte_level(use_regex=False),
        ],
        False,
    ),
}


def _pair(merge: Any) -> list[str]:
    """The two parts: neither holds a space, which is spelled "Ġ"."""
    return merge.split(" ") if isinstance(merge, str) else list(merge)


def _is_pair(pair: list[str]) -> bool:
    return len(pair) == 2 and all(pair)


def _added(number: int, token: str, *, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": token, **flags, "special": special}


def _post_processor(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    bytes_ = _byte_level(use_regex=True) | {"trim_offsets": False}
    first = metadata.get("tokenizer.ggml.bos_token_id")
    if not metadata.get("tokenizer.ggml.add_bos_token") or type(first) is not int or not 0 <= first < len(tokens):
        return bytes_
    begin = {"SpecialToken": {"id": tokens[first], "type_id": 0}}
    text, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    again = {"SpecialToken": {"id": tokens[first], "type_id": 1}}
    template = {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, again, second],
        "special_tokens": {tokens[first]: {"id": tokens[first], "ids": [first], "tokens": [tokens[first]]}},
    }
    return {"type": "Sequence", "processors": [bytes_, template]}


def _merge(pair: Any) -> str:
    """Two parts with a space between them; one inside a part (the tokenizers library allows it) is spelled "Ġ"."""
    return pair if isinstance(pair, str) else " ".join(part.replace(" ", "Ġ") for part in pair)


def _same(known: tuple[Any, list[dict[str, Any]], bool], said: tuple[Any, Any, bool]) -> bool:
    """Whether a tokenizer.json does that; what only shapes offsets does not count, and defaults may be left out."""

    def bare(steps: Any) -> Any:
        defaults = {"ByteLevel": {"use_regex": True}, "Split": {"invert": False}}
        return [
            {k: v for k, v in (defaults.get(step.get("type"), {}) | step).items() if k != "trim_offsets"}
            for step in steps
        ]

    return known[0] == said[0] and known[2] == said[2] and bare(known[1]) == bare(said[1])
