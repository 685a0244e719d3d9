"""SentencePiece's BPE as a tokenizer.json: the ids that SentencePiece itself gave, out of GGUF and llama2.c's file."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from dialect_files import FILES

from converters.formats.gguf.sentencepiece import pieces_of, read_llama2c, to_json
from converters.formats.gguf.tokenizer import tokenizer_json, tokenizer_metadata
from zoo.errors import FormatError

tokenizers = pytest.importorskip("tokenizers")

SAID: dict[str, Any] = json.loads((FILES / "sentencepiece.json").read_text("utf-8"))


def metadata(name: str, **fields: Any) -> dict[str, Any]:
    """What llama.cpp's converter writes of it."""
    made = SAID[name]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": made["pieces"],
        "tokenizer.ggml.scores": made["scores"],
        "tokenizer.ggml.token_type": made["kinds"],
        "tokenizer.ggml.add_space_prefix": name == "llama",
        **{f"tokenizer.ggml.{key}": value for key, value in fields.items()},
    }


def ids(text: str | None, begin: int | None = 1) -> list[list[int]]:
    assert text is not None
    made = tokenizers.Tokenizer.from_str(text)
    found = [made.encode(line).ids for line in SAID["texts"]]
    for line, numbers in zip(SAID["texts"], found, strict=True):
        assert made.decode(numbers) == line
        assert begin is None or numbers[0] == begin
    return [numbers if begin is None else numbers[1:] for numbers in found]


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_a_gguf_tokenizer_gives_sentencepieces_ids(name: str) -> None:
    assert ids(tokenizer_json(metadata(name))) == SAID[name]["ids"]
    assert ids(tokenizer_json(metadata(name, add_bos_token=False)), None) == SAID[name]["ids"]
    ended = tokenizer_json(metadata(name, add_eos_token=True))
    assert ended is not None
    assert tokenizers.Tokenizer.from_str(ended).encode("a cat").ids[-1] == 2


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_a_tokenizer_survives_the_metadata(name: str) -> None:
    """Scores are others, and in the same order; types, pieces and marks are the same."""
    text = tokenizer_json(metadata(name))
    assert text is not None
    found = tokenizer_metadata(text)
    assert found is not None
    for key in ("model", "tokens", "token_type", "add_space_prefix"):
        assert found[f"tokenizer.ggml.{key}"] == metadata(name)[f"tokenizer.ggml.{key}"], key
    assert found["tokenizer.ggml.add_bos_token"] and found["tokenizer.ggml.bos_token_id"] == 1
    assert not found["tokenizer.ggml.add_eos_token"] and "tokenizer.ggml.eos_token_id" not in found
    assert ids(tokenizer_json(found)) == SAID[name]["ids"]


def test_metaspace_is_the_same_tokenizer() -> None:
    """As transformers 5 saves Llama's."""
    text = tokenizer_json(metadata("llama"))
    assert text is not None
    said = json.loads(text)
    said["normalizer"] = None
    said["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    found = tokenizer_metadata(json.dumps(said))
    assert found is not None and ids(tokenizer_json(found)) == SAID["llama"]["ids"]


def test_llama2cs_tokenizer() -> None:
    raw = llama2c()
    early = llama2c(characters=True)
    assert len(early) < len(raw) and read_llama2c(early, len(SAID["llama"]["pieces"])) == read_llama2c(
        raw, len(SAID["llama"]["pieces"])
    )
    assert ids(read_llama2c(raw, len(SAID["llama"]["pieces"]))) == SAID["llama"]["ids"]
    for damaged in (b"", raw[:-1], raw[:4] + b"\xff" * 8):
        with pytest.raises(FormatError, match="truncated"):
            read_llama2c(damaged, len(SAID["llama"]["pieces"]))


def test_it_travels_with_a_model(tmp_path: Path) -> None:
    """tokenizer.bin beside a model, or behind it in the same file, becomes tokenizer.json."""
    from conftest import FIXTURES

    import zoo

    model = FIXTURES / "llama" / "model.bin"
    tokens = llama2c()
    tokens += b"".join(struct.pack("<fi", -1e6, 5) + b"%05d" % i for i in range(440 - len(SAID["llama"]["pieces"])))
    for name in ("beside", "behind"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.bin").write_bytes(model.read_bytes() + (tokens if name == "behind" else b""))
        if name == "beside":
            (folder / "tokenizer.bin").write_bytes(tokens)
        zoo.convert(folder, tmp_path / f"{name}-gguf", "gguf")
        zoo.convert(tmp_path / f"{name}-gguf" / "model.gguf", tmp_path / f"{name}-out", verify=True)
        text = (tmp_path / f"{name}-out" / "tokenizer.json").read_text("utf-8")
        assert ids(text) == SAID["llama"]["ids"]


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": ["a", "a"]},
        {"scores": [1.0]},
        {"token_type": [1]},
        {"tokens": ["a" * 100_000], "scores": [0.0], "token_type": [1]},
        {"bos_token_id": 1 << 30},
    ],
)
def test_lists_that_do_not_belong_together(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        tokenizer_json(metadata("llama", **change))


def test_others_are_left_alone() -> None:
    text = to_json(SAID["llama"]["pieces"], SAID["llama"]["scores"], SAID["llama"]["kinds"])
    said = json.loads(text)
    assert pieces_of(said) is not None
    assert pieces_of(said | {"normalizer": {"type": "NFKC"}}) is None
    assert pieces_of(said | {"model": said["model"] | {"merges": said["model"]["merges"][:-1]}}) is None
    assert pieces_of(said | {"model": said["model"] | {"byte_fallback": False}}) is None


def llama2c(characters: bool = False) -> bytes:
    """tokenizer.bin as llama2.c's tokenizer.py exports it; at first it had bytes as characters."""
    raw = struct.pack("<i", max(map(len, SAID["llama"]["pieces"])))
    for number, (piece, score) in enumerate(zip(SAID["llama"]["pieces"], SAID["llama"]["scores"], strict=True)):
        if characters and 3 <= number < 259:
            piece = chr(number - 3)
        text = {1: "\n<s>\n", 2: "\n</s>\n"}.get(number, piece).replace("▁", " ").encode()
        raw += struct.pack("<fi", score, len(text)) + text
    return raw
