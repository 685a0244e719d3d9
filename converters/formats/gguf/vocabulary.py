"""All that a GGUF file says of a model's tokenizer, from the files beside the checkpoint; and what it cannot say.

`gguf_tokenizer` has how text is cut. Here the list is brought to the embedding's length, since llama.cpp refuses a file
where the two differ; the special tokens get their numbers, and chat templates their keys. A file without a tokenizer
says so ("none"): llama.cpp then takes numbers of tokens alone.
Sources: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; llama.cpp's src/llama-vocab.cpp for its defaults,
SpecialVocab of gguf-py and get_vocab_base of convert_hf_to_gguf.py for what stands where.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from converters.formats.gguf.sentencepiece import UNUSED
from converters.formats.gguf.tokenizer import marks_around, tokenizer_metadata, unused_name
from zoo.errors import ConfigError, FormatError

__all__ = ["FILES", "pooling", "tokenizer_config", "vocabulary"]

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "1_Pooling/config.json",
)
"""The files that are looked at."""


def vocabulary(
    texts: Mapping[str, str], config: Mapping[str, Any], rows: int | None, architecture: str
) -> tuple[dict[str, Any], list[str]]:
    """The key/values of the tokenizer, and notes on what llama.cpp will do otherwise.

    Args:
        texts: name -> text, of `FILES`.
        config: the model's config.json, for special tokens that the files do not name.
        rows: of the embedding; None leaves the list as long as it is.
        architecture: llama.cpp's name of the model.

    Raises:
        FormatError: a file that is no JSON, or no tokenizer.json.
        ConfigError: the tokenizer has tokens of its own model that the embedding has no row for.
    """
    text = texts.get("tokenizer.json")
    found = None if text is None else tokenizer_metadata(text)
    if text is None or found is None:
        why = "there is no tokenizer.json that could be written into it" if text is None else _unknown(json.loads(text))
        none = {"tokenizer.ggml.model": "none"} | _numbers(config, None)
        if rows is not None:
            none[f"{architecture}.vocab_size"] = rows
        return none, [f"the file has no tokenizer: {why}; llama.cpp loads it, and takes numbers of tokens alone"]
    said = json.loads(text)
    notes = _differences(said, found.get("tokenizer.ggml.pre"))
    if rows is not None:
        notes += _fit(found, rows, said)
    tokens: list[str] = found["tokenizer.ggml.tokens"]
    settings = _json(texts, "special_tokens_map.json") | _json(texts, "tokenizer_config.json")
    named = {**_numbers(config, len(tokens)), **_named(settings, tokens)}
    end = _key("eos")
    if named.get(end, found.get(end)) != found.get(end, named.get(end)):
        named[_key("eot")] = named[end]  # what ends an answer, beside what ends a text
    found = {**named, **found}
    notes += _around(found, said)
    if found["tokenizer.ggml.model"] != "bert" and "tokenizer.ggml.eos_token_id" not in found:
        notes.append("no end-of-sequence token is named: llama.cpp takes a number of its own (2, or 11 for BPE)")
    return found | _templates(texts, settings), notes


def pooling(texts: Mapping[str, str], architecture: str) -> tuple[dict[str, Any], list[str]]:
    """How sentence-transformers makes one vector of a text, as llama.cpp's number, and a note where it has none."""
    said = _json(texts, "1_Pooling/config.json")
    modes = [
        key.removeprefix("pooling_mode_") for key, on in said.items() if key.startswith("pooling_mode_") and on is True
    ]
    if isinstance(said.get("pooling_mode"), str):  # as sentence-transformers 6 has it
        modes = [said["pooling_mode"]]
    if not modes:
        return {}, []
    number = _POOLINGS.get(modes[0].removesuffix("_tokens").removesuffix("_token")) if len(modes) == 1 else None
    if number is None:
        return {}, [f"llama.cpp does not pool as 1_Pooling/config.json says: {', '.join(modes)}"]
    return {f"{architecture}.pooling_type": number}, []


_POOLINGS = {"mean": 1, "cls": 2, "lasttoken": 3}


def tokenizer_config(metadata: Mapping[str, Any]) -> str | None:
    """The tokenizer_config.json that a file describes: special tokens and chat templates; None where it has none."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    found: dict[str, Any] = {}
    for which in _WHICH:
        number = metadata.get(_key(which))
        if isinstance(tokens, list) and type(number) is int and 0 <= number < len(tokens):
            found[f"{which}_token"] = tokens[number]
    template = metadata.get("tokenizer.chat_template")
    names = metadata.get("tokenizer.chat_templates")
    further = [
        {"name": name, "template": metadata[f"tokenizer.chat_template.{name}"]}
        for name in (names if isinstance(names, list) else ())
        if isinstance(metadata.get(f"tokenizer.chat_template.{name}"), str)
    ]
    if isinstance(template, str):
        found["chat_template"] = [{"name": "default", "template": template}, *further] if further else template
    if not found:
        return None
    found = {"tokenizer_class": "PreTrainedTokenizerFast", **found}
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


_KEYS = {"unk": "unknown", "sep": "seperator", "pad": "padding"}  # as GGUF spells them
_WHICH = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def _key(which: str) -> str:
    return f"tokenizer.ggml.{_KEYS.get(which, which)}_token_id"


def _numbers(config: Mapping[str, Any], count: int | None) -> dict[str, Any]:
    """Special tokens by the config's numbers; of several that end a text, the first."""
    found = {}
    for which in ("bos", "eos", "pad", "sep", "cls"):
        number = config.get(f"{which}_token_id")
        if isinstance(number, list) and number:
            number = number[0]
        if type(number) is int and number >= 0 and (count is None or number < count):
            found[_key(which)] = number
    return found


def _named(settings: Mapping[str, Any], tokens: list[str]) -> dict[str, int]:
    """Special tokens by their texts in tokenizer_config.json."""
    found = {}
    for which in _WHICH:
        token = settings.get(f"{which}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token in tokens:
            found[_key(which)] = tokens.index(token)
    return found


def _around(found: Mapping[str, Any], said: Mapping[str, Any]) -> Iterator[str]:
    """What llama.cpp cannot put around a text, or puts there anyhow."""
    before, after = marks_around(said)
    for around in (before, after):
        if len(around) > 1 or not set(around) <= set(found["tokenizer.ggml.tokens"]):
            yield f"around a text llama.cpp puts one token at each end; tokenizer.json has {', '.join(around)}"
    if found["tokenizer.ggml.model"] == "bert" and not (before and after):
        yield "llama.cpp puts [CLS] and [SEP] around every text; tokenizer.json does not"


def _fit(found: dict[str, Any], rows: int, said: Mapping[str, Any]) -> list[str]:
    """Brings the lists to the number of rows: unused tokens are added, those without a row left out."""
    tokens: list[str] = found["tokenizer.ggml.tokens"]
    left_out = tokens[rows:]
    if left_out:
        own = set(said["model"]["vocab"].values())
        if any(number in own for number in range(rows, len(tokens))):
            raise ConfigError(
                "the tokenizer has tokens that the embedding has no row for",
                where="tokenizer.json",
                expected=f"{rows} tokens",
                got=f"{len(tokens)}: {', '.join(map(repr, left_out[:4]))} ...",
                do="put the model's own tokenizer.json beside it",
            )
        del tokens[rows:]
    taken = set(tokens)
    for number in range(len(tokens), rows):
        tokens.append(unused_name(number, taken))
    for key, filling in (("token_type", UNUSED), ("scores", -1e4)):
        values = found.get(f"tokenizer.ggml.{key}")
        if values is not None:
            found[f"tokenizer.ggml.{key}"] = [*values, *[filling] * (rows - len(values))][:rows]
    if not left_out:
        return []
    return [f"tokens that the embedding has no row for are left out of the file: {', '.join(map(repr, left_out))}"]


def _templates(texts: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Chat templates: the one without a name, and those that have one."""
    given: Any = texts.get("chat_template.jinja") or settings.get("chat_template")
    given = given or _json(texts, "chat_template.json").get("chat_template")
    if isinstance(given, str):
        return {"tokenizer.chat_template": given}
    found: dict[str, Any] = {}
    names = []
    for one in given if isinstance(given, list) else ():
        name, template = (one.get("name"), one.get("template")) if isinstance(one, dict) else (None, None)
        if isinstance(name, str) and isinstance(template, str):
            if name == "default":
                found["tokenizer.chat_template"] = template
            else:
                names.append(name)
                found[f"tokenizer.chat_template.{name}"] = template
    return found | ({"tokenizer.chat_templates": names} if names else {})


def _differences(said: Mapping[str, Any], pre: str | None) -> list[str]:
    """What of a tokenizer that llama.cpp has it does otherwise."""
    notes = []
    strips = [one["content"] for one in said["added_tokens"] if one.get("lstrip") or one.get("rstrip")]
    if strips and said["model"].get("type") != "WordPiece":  # where spaces do not count
        notes.append(
            f"llama.cpp keeps the spaces beside {', '.join(map(repr, strips))}, which tokenizer.json takes away"
        )
    if words := [one["content"] for one in said["added_tokens"] if one.get("single_word")]:
        notes.append(f"llama.cpp finds {', '.join(map(repr, words))} inside words, too")
    normalizer = said.get("normalizer") or {}
    strip = normalizer.get("strip_accents")
    if normalizer.get("type") == "BertNormalizer" and (normalizer.get("lowercase") if strip is None else strip):
        notes.append("where accents are taken away, llama.cpp takes parts of Korean and Indic letters, too")
    if normalizer.get("type") == "NFC":
        notes.append("llama.cpp does not bring text to Unicode's composed form (NFC) before it cuts it")
    step = said.get("pre_tokenizer") or {}
    if step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never":
        notes.append("llama.cpp puts a space before a text that begins with one, too")
        if step.get("prepend_scheme") == "first":
            notes.append("llama.cpp puts a space after every special token inside a text, too")
    if pre in ("tekken", "gpt-4o"):
        notes.append(
            "llama.cpp's pattern cuts words at combining marks, of letters that are not composed and Indic ones"
        )
    return notes


def _unknown(said: Mapping[str, Any]) -> str:
    parts = {"model": said["model"].get("type")}
    for part in ("normalizer", "pre_tokenizer"):
        step = said.get(part) or {}
        inner = step.get("normalizers") or step.get("pretokenizers") or [step]
        parts[part.replace("_", "-")] = "+".join(str(one.get("type")) for one in inner)
    return f"llama.cpp has no name for what tokenizer.json does ({', '.join(f'{k} {v}' for k, v in parts.items())})"


def _json(texts: Mapping[str, str], name: str) -> dict[str, Any]:
    text = texts.get(name)
    try:
        found = {} if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError("the file is no JSON", where=name, got=f"{type(error).__name__}: {error}") from error
    if not isinstance(found, dict):
        raise FormatError("the file is no JSON object", where=name, got=type(found).__name__)
    return found
