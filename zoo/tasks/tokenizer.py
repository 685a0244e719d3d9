"""The tokenizer that a checkpoint's files describe: what transformers makes of them, without transformers.

tokenizer.json says how texts are cut; tokenizer_config.json, special_tokens_map.json and added_tokens.json change that,
and name the special tokens, the sides and the lengths.
Source: transformers 5.23, tokenization_utils_base.py, tokenization_utils_tokenizers.py and its classes' constructors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from zoo.errors import ConfigError, ZooError

__all__ = ["read_settings", "read_tokenizer", "tokenizer_in", "worded"]

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_GENERIC = ("", "pretrained", "tokenizersbackend", "pythonbackend")
"""Classes, in small letters, that take tokenizer.json as it is."""


def read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with what the older files beside it say: special tokens, and the ids of added ones.

    Raises:
        ConfigError: one of the files is no JSON object.
    """
    from zoo.files import read_json

    def of(name: str) -> dict[str, Any]:
        return read_json(folder / name) if (folder / name).is_file() else {}

    settings = of("tokenizer_config.json")
    if "added_tokens_decoder" not in settings:  # what is written since holds all of it
        special = of("special_tokens_map.json")
        if isinstance(known := settings.get("extra_special_tokens"), list) and isinstance(
            more := special.get("extra_special_tokens"), list
        ):
            special["extra_special_tokens"] = known + [token for token in more if token not in known]
        settings |= special
        added = of("added_tokens.json")
        known_tokens = (*map(settings.get, _NAMED), *_extra(settings)[0])
        named = {token for token in map(_content, known_tokens) if isinstance(token, str)}
        settings["added_tokens_decoder"] = {
            index: {"content": token, "normalized": token not in named, "special": token in named}
            for token, index in added.items()
        }
    return settings


def read_tokenizer(folder: Path, settings: Mapping[str, Any], usual: str, derived: Callable[[], str | None]) -> Any:
    """A `tokenizers.Tokenizer` of the folder's files, or of what `derived` gives, with all that `settings` say; it pads
    and truncates as they do, but to no length yet.

    Args:
        usual: the class or kind of model whose tokenizer it is, where the settings name none.

    Raises:
        ConfigError: there is none of these, or a setting that cannot be applied.
    """
    import tokenizers

    kind = _kind(str(settings.get("tokenizer_class") or usual))
    tokenizer = tokenizer_in(folder, kind, settings)
    if tokenizer is None and (text := derived()) is not None:
        with worded(folder):
            tokenizer = tokenizers.Tokenizer.from_str(text)
    if tokenizer is None:
        raise ConfigError("no tokenizer this release reads", where=folder, expected="tokenizer.json or vocab.txt")
    with worded(folder / "tokenizer_config.json", "a setting of the tokenizer cannot be applied"):
        padding, truncation = tokenizer.padding or {}, tokenizer.truncation or {}
        tokenizer.encode_special_tokens = bool(settings.get("split_special_tokens"))
        with worded(folder / "tokenizer_config.json", "an added token is not one"):
            _add_tokens(tokenizer, settings)
        if (folder / "tokenizer.json").is_file():
            _put_template(tokenizer, kind, settings)
        if settings.get("clean_up_tokenization_spaces") and type(tokenizer.model).__name__ != "BPE":
            _clean_up(tokenizer)
        left = "left" if _is(kind, "pad left") else "right"
        side = _side(settings.get("padding_side") or padding.get("direction") or left, "padding_side", folder)
        pad = _content(settings.get("pad_token")) or padding.get("pad_token")
        tokenizer.enable_padding(
            direction=side,
            pad_id=(tokenizer.token_to_id(pad) if pad else None) or 0,
            pad_token=pad or "",
            pad_type_id=_of_kind("pad types", kind) or 0,  # whatever the files say: no class reads it from them
        )
        side = settings.get("truncation_side") or truncation.get("direction") or "right"
        tokenizer.enable_truncation(_NO_LIMIT, direction=_side(side, "truncation_side", folder))
    return tokenizer


def tokenizer_in(folder: Path, kind: str | None = None, settings: Mapping[str, Any] | None = None) -> Any:
    """The tokenizer of a folder's files, None where they hold none that the tokenizers library knows.

    tokenizer.json, a BERT vocabulary (vocab.txt), or the pieces and merges of byte-level BPE (vocab.json, merges.txt).

    Args:
        kind: the class, in small letters, whose settings are applied to tokenizer.json; None takes it as it is.

    Raises:
        ConfigError: a file that is there and cannot be read.
    """
    import tokenizers

    settings = read_settings(folder) if settings is None else settings
    names = [name for name in ("tokenizer.json", "vocab.txt", "vocab.json") if (folder / name).is_file()]
    if not names or (names[0] == "vocab.json" and not (folder / "merges.txt").is_file()):
        return None
    path = folder / names[0]
    with worded(path):
        if path.name == "vocab.txt":
            return _of_vocabulary(path, settings)
        if path.name == "vocab.json":
            made = tokenizers.ByteLevelBPETokenizer(str(path), str(folder / "merges.txt"))._tokenizer
            return _byte_level(made, kind or "", settings)
        if kind is None or kind.removesuffix("tokenizer") in _GENERIC:
            return tokenizers.Tokenizer.from_file(str(path))
        spec = json.loads(path.read_text("utf-8"))
        _rewrite(spec, kind, settings)
        return tokenizers.Tokenizer.from_str(json.dumps(spec))


@contextmanager
def worded(where: object, what: str = "the tokenizer cannot be read") -> Iterator[None]:
    """What the tokenizers library says of a file is an error of ours; a panic of its Rust code is no `Exception`."""
    try:
        yield
    except ZooError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        do = "take the tokenizer's file from the model's repository again"
        raise ConfigError(what, where=where, got=str(error)[:500] or type(error).__name__, do=do) from error


_NO_LIMIT = 2**31 - 1


def _side(side: Any, name: str, folder: Path) -> str:
    if side not in ("left", "right"):
        where = f"{folder / 'tokenizer_config.json'}, {name}"
        raise ConfigError("no such side", where=where, expected="left or right", got=side)
    return side


def _content(token: Any) -> str | None:
    """A token's text; files have it alone or with its settings."""
    return token.get("content") if isinstance(token, Mapping) else token


def _extra(settings: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The special tokens beside the usual ones: those in lists, and those that have names."""
    listed = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    named = {
        key: token
        for key, token in settings.items()
        if key.endswith("_token") and key not in _NAMED and isinstance(token, str)
    }
    if isinstance(listed, Mapping):
        return [], named | dict(listed)
    return list(listed), named


def _add_tokens(tokenizer: Any, settings: Mapping[str, Any]) -> None:
    """Added and special tokens with all that is said of them; those that the vocabulary lacks get new ids."""
    from tokenizers import AddedToken

    def made(token: Any, special: bool | None = None) -> Any:
        fields = {key: value for key, value in token.items() if key in _FLAGS} if isinstance(token, Mapping) else {}
        if special is not None:
            fields["special"] = special
        return AddedToken(_content(token), **fields)

    present = {_state(token): None for token in tokenizer.get_added_tokens_decoder().values()}
    texts = {state[0] for state in present}
    listed, others = _extra(settings)
    named = {key: settings[key] for key in _NAMED if settings.get(key) is not None} | others
    specials = {_content(token) for token in named.values()}
    decoder = settings.get("added_tokens_decoder") or {}
    wanted = [made(token) for _, token in sorted(decoder.items(), key=lambda item: int(item[0]))]
    adding = [token for token in wanted if _state(token) not in present]
    texts |= {token.content for token in adding}
    for token in (*named.values(), *listed):
        if _content(token) not in texts:
            texts.add(_content(token))
            adding.append(made(token, special=True))
    for token in adding:
        token.special = token.special or token.content in specials
    tokenizer.add_tokens(adding)


def _put_template(tokenizer: Any, kind: str, settings: Mapping[str, Any]) -> None:
    """What a class puts around texts, by the tokens that the settings name, in place of what tokenizer.json says.

    Raises:
        ConfigError: the vocabulary lacks a token that the settings call for.
    """
    from tokenizers import processors

    found = _templates().get(kind)
    where = {"the file has one": True, "the file has none": False}
    if found is None or where.get(found.get("where", "")) == (tokenizer.post_processor is None):
        return
    left = (settings.get("padding_side") == "left") and found.get("pair padded left")
    template = {"single": found["single"].split(), "pair": (left or found["pair"]).split()}
    ids: dict[str, int] = {}
    made: dict[str, list[str]] = {}
    for name, parts in template.items():
        made[name] = []
        for part in parts:
            word, _, type_id = part.rpartition(":")
            if word in ("A", "B"):
                made[name].append(f"${part}")
            elif token := _token(word, found, settings):
                index = found.get("ids", {}).get(word, tokenizer.token_to_id(token))
                if index is None and word in found.get("said", {}):
                    lacks = "the vocabulary lacks a token that each text has"
                    raise ConfigError(lacks, where=f"tokenizer_config.json, {word}", got=token)
                if index is None:
                    return  # a class adds such a token, which no model has a row for
                ids[token] = index
                made[name].append(f"{token}:{type_id}")  # one string each: a token may hold spaces or colons
    if "trims" in found:  # these leave the space before a word out of its place in the text
        first, last = ((t, ids[t]) for t in (_token(w, found, settings) or "" for w in ("cls_token", "sep_token")))
        prefix = bool(settings.get("add_prefix_space", found["trims"] == "prefixed"))
        tokenizer.post_processor = processors.RobertaProcessing(last, first, True, prefix)
        return
    tokenizer.post_processor = processors.TemplateProcessing(**made, special_tokens=list(ids.items()))


def _token(word: str, found: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    """The token of a place in a template; None where the settings leave it out."""
    value = settings.get(word)
    if word in found["tokens"]:
        return _content(value) or found["tokens"][word]
    if word in found.get("said", {}):
        return None if value is None else found["said"][word].format(found["codes"].get(str(value).lower(), value))
    if word in found.get("unless", {}):
        return None if value else found["unless"][word]
    return word


@cache
def _facts() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "templates.json").read_text("utf-8"))


@cache
def _templates() -> dict[str, dict[str, Any]]:
    """By class, or by the type of a model whose files name no class, as `_kind` spells them."""
    return {_kind(name): row for row in _facts()["templates"] for name in (*row["classes"], *row["types"])}


def _kind(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").removesuffix("fast")


def _of_kind(fact: str, kind: str) -> Any:
    """What is true of the first class of those listed that a kind begins with; None where it is of none."""
    return next((said for name, said in _facts()[fact].items() if kind.startswith(name)), None)


def _is(kind: str, fact: str) -> bool:
    return kind.startswith(tuple(_facts()["kinds"][fact]))


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def _state(token: Any) -> tuple[Any, ...]:
    return (token.content, *(getattr(token, flag) for flag in _FLAGS))


def _of_vocabulary(path: Path, settings: Mapping[str, Any]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = path.read_text("utf-8").split("\n")
    unknown = _content(settings.get("unk_token")) or "[UNK]"
    vocabulary = {token.rstrip("\r"): index for index, token in enumerate(tokens) if token or index + 1 < len(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    spec = json.loads(tokenizer.to_str())
    _word_piece(spec, settings)
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    special = [name for name in ("[UNK]", "[SEP]", "[CLS]", "[PAD]", "[MASK]") if name in vocabulary]
    tokenizer.add_special_tokens(special)
    return tokenizer


def _byte_level(tokenizer: Any, kind: str, settings: Mapping[str, Any]) -> Any:
    """Byte-level BPE of its pieces and merges, with what its class puts around texts."""
    from tokenizers import pre_tokenizers, processors

    prefix = bool(settings.get("add_prefix_space"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    if _is(kind, "put ends around byte-level pieces"):
        names = [_content(settings.get(name)) or usual for name, usual in (("sep_token", "</s>"), ("cls_token", "<s>"))]
        sep, cls = ((name, tokenizer.token_to_id(name)) for name in names)
        tokenizer.post_processor = processors.RobertaProcessing(sep, cls, True, prefix)
        usual_ones = [
            name for name in ("<s>", "<pad>", "</s>", "<unk>", "<mask>") if tokenizer.token_to_id(name) is not None
        ]
        tokenizer.add_special_tokens(usual_ones)
    return tokenizer


def _rewrite(spec: dict[str, Any], kind: str, settings: Mapping[str, Any]) -> None:
    """A tokenizer.json with what a class of transformers' changes in it by its settings."""
    model = spec.get("model") or {}
    if model.get("type", "WordPiece" if "continuing_subword_prefix" in model else None) == "WordPiece":
        _word_piece(spec, settings)
    _language(spec, kind, settings)
    lower = settings.get("do_lower_case")
    if _is(kind, "take do_lower_case") and lower is not None:
        found = [part for part in _parts(spec, "normalizer", "normalizers") if part["type"] != "Lowercase"]
        found = [{"type": "Lowercase"}] * bool(lower) + found
        spec["normalizer"] = {"type": "Sequence", "normalizers": found} if found else None
    prefix = settings.get("add_prefix_space")
    if isinstance(prefix, bool):
        for part in _parts(spec, "pre_tokenizer", "pretokenizers"):
            if part["type"] == "ByteLevel":
                part["add_prefix_space"] = prefix
            elif part["type"] == "Metaspace" and (part.get("prepend_scheme") == "never") == prefix:
                part["prepend_scheme"] = "always" if prefix else "never"


def _language(spec: dict[str, Any], kind: str, settings: Mapping[str, Any]) -> None:
    """The template with the token of the language that texts are in, which the settings name."""
    said = _of_kind("languages", kind)
    if said is None:
        return
    language, end = settings.get("src_lang") or said["usual"], _content(settings.get("eos_token")) or "</s>"
    language = language if "__" in language else said["spelled"].format(language)
    vocabulary = spec["model"]["vocab"]
    listed = vocabulary.items() if isinstance(vocabulary, Mapping) else ((t, n) for n, (t, _) in enumerate(vocabulary))
    ids = {**dict(listed), **{token["content"]: token["id"] for token in spec.get("added_tokens") or ()}}
    if unknown := [token for token in (language, end) if token not in ids]:
        raise ConfigError(
            "the vocabulary lacks a token that each text has", where="tokenizer_config.json, src_lang", got=unknown[0]
        )
    last = said["place"] == "last" or (said.get("legacy", False) and settings.get("legacy_behaviour") is True)
    before, after = ([], [end, language]) if last else ([language], [end])
    texts = {"single": [_text("A", 0)], "pair": [_text("A", 0), _text("B", 0)]}
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        **{
            name: [*(_special(t, 0) for t in before), *parts, *(_special(t, 0) for t in after)]
            for name, parts in texts.items()
        },
        "special_tokens": {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in (language, end)},
    }


def _word_piece(spec: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """BERT's normalizer with its settings, and its template where there is none."""
    if (spec.get("normalizer") or {}).get("type", "BertNormalizer") == "BertNormalizer":
        spec["normalizer"] = {
            "type": "BertNormalizer",
            "clean_text": True,
            **(spec.get("normalizer") or {}),
            "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
            "strip_accents": settings.get("strip_accents"),
            "lowercase": bool(settings.get("do_lower_case", True)),
        }
    vocabulary = spec["model"]["vocab"]
    first, last = (
        _content(settings.get(name)) or usual for name, usual in (("cls_token", "[CLS]"), ("sep_token", "[SEP]"))
    )
    if spec.get("post_processor") is None and first in vocabulary and last in vocabulary:
        spec["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [_special(first, 0), _text("A", 0), _special(last, 0)],
            "pair": [_special(first, 0), _text("A", 0), _special(last, 0), _text("B", 1), _special(last, 1)],
            "special_tokens": {
                token: {"id": token, "ids": [vocabulary[token]], "tokens": [token]} for token in (first, last)
            },
        }


def _special(token: str, kind: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": kind}}


def _text(name: str, kind: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": kind}}


def _parts(spec: Mapping[str, Any], name: str, listed: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, sequences laid open."""

    def within(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
        if part is None:
            return
        if part.get("type") == "Sequence":
            for inner in part[listed]:
                yield from within(inner)
        else:
            yield part

    return list(within(spec.get(name)))


def _clean_up(tokenizer: Any) -> None:
    """Decoded text without the spaces before punctuation."""
    from tokenizers import decoders

    marks = [(f" {mark}", mark) for mark in (".", "?", "!", ",")]
    marks += [(" ' ", "'"), *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re"))]
    steps = [tokenizer.decoder] if tokenizer.decoder is not None else []
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Fuse(), *(decoders.Replace(a, b) for a, b in marks)])
