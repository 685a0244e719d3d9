"""zoo convert --to gguf: what llama.cpp needs to load the file, to cut text as the source does, to compute the same.

tests/oracle/check_llama_cpp.py asks llama.cpp itself. Here the files are read with gguf-py, llama.cpp's own library.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
import transformers

import zoo
from zoo.errors import ConfigError, WeightsError

gguf = pytest.importorskip("gguf")
tokenizers = pytest.importorskip("tokenizers")

ROWS = 61  # of the tiny models' embeddings
UNUSED, CONTROL, USER, UNKNOWN = 5, 3, 4, 2
LINES = ("the cat sat", "The  mats, didn't it?", "caf\u00e9 [MASK] x", "", "unheard")


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return checkpoints.save(tmp_path / "llama", "llama")


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return checkpoints.save(tmp_path / "bert", "bert")


def fields(folder: Path) -> dict[str, Any]:
    """The key/values of a folder's file, as gguf-py reads them."""
    reader = gguf.GGUFReader(folder / "model.gguf")
    return {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}


def bpe(folder: Path, size: int, **options: Any) -> Any:
    """A byte-level BPE of some tokens that is no more than an alphabet of letters, in a folder; the tokenizer."""
    words = ["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyzĠ", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"]
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {word: number for number, word in enumerate(words[: size - 1])} | {"th": size - 1}, [("t", "h")], **options
        )
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["<s>", "</s>"])
    made.save(str(folder / "tokenizer.json"))
    return made


def wordpiece(folder: Path, *, lowercase: bool = True) -> Any:
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [
        "the",
        "cat",
        "sat",
        "mat",
        "##s",
        ",",
        "didn",
        "'",
        "t",
        "it",
        "?",
        "The",
        "cafe",
        "caf\u00e9",
        "x",
        "a",
        "##a",
    ]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: n for n, word in enumerate(marks + words)}, unk_token="[UNK]")
    )
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.add_special_tokens(marks)
    made.save(str(folder / "tokenizer.json"))
    return made


def settings(folder: Path, **values: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(values))


def test_the_list_is_as_long_as_the_embedding(llama: Path, tmp_path: Path) -> None:
    made = bpe(llama, 40)
    zoo.convert(llama, tmp_path / "out", "gguf", verify=True)
    found = fields(tmp_path / "out")
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == ROWS and len(set(tokens)) == ROWS
    assert tokens[:40] == [made.id_to_token(number) for number in range(40)]
    assert tokens[40:] == [f"[PAD{number}]" for number in range(40, ROWS)] and set(kinds[40:]) == {UNUSED}
    assert kinds[:2] == [CONTROL, CONTROL]
    # and from the file alone comes the tokenizer that it was
    alone = tmp_path / "alone.gguf"
    alone.write_bytes((tmp_path / "out" / "model.gguf").read_bytes())
    zoo.convert(alone, tmp_path / "back")
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "back" / "tokenizer.json"))
    assert again.get_vocab() == made.get_vocab() and again.encode("the").ids == made.encode("the").ids


def test_a_number_without_a_token_is_unused(llama: Path, tmp_path: Path) -> None:
    bpe(llama, 40)
    said = json.loads((llama / "tokenizer.json").read_text())
    said["model"]["vocab"] |= {"[PAD45]": 44, "th": 50}  # the name that 45 would get is another's
    (llama / "tokenizer.json").write_text(json.dumps(said))
    zoo.convert(llama, tmp_path / "out", "gguf")
    found = fields(tmp_path / "out")
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert (tokens[39], tokens[44], tokens[45], tokens[50]) == ("[PAD39]", "[PAD45]", "[[PAD45]]", "th")
    assert [number for number, kind in enumerate(kinds) if kind == UNUSED] == [
        number for number in range(39, ROWS) if number not in (44, 50)
    ]


def test_tokens_that_the_embedding_has_no_row_for(llama: Path, tmp_path: Path) -> None:
    made = bpe(llama, ROWS)
    made.add_special_tokens(["<|late|>"])
    made.save(str(llama / "tokenizer.json"))
    done = zoo.convert(llama, tmp_path / "out", "gguf")
    assert any("'<|late|>'" in note for note in done.notes)
    assert len(fields(tmp_path / "out")["tokenizer.ggml.tokens"]) == ROWS
    bpe(llama, ROWS + 1)
    with pytest.raises(ConfigError, match="no row") as caught:
        zoo.convert(llama, tmp_path / "more", "gguf")
    assert "62" in str(caught.value) and "61" in str(caught.value) and not (tmp_path / "more").exists()


def test_without_a_tokenizer_it_is_said(llama: Path, run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    done = zoo.convert(llama, tmp_path / "out", "gguf", dry_run=True)
    assert any("no tokenizer" in note for note in done.notes)
    code, _, printed = run("convert", llama, tmp_path / "out", "--to", "gguf")
    assert code == 0 and "no tokenizer" in printed
    found = fields(tmp_path / "out")
    assert (found["tokenizer.ggml.model"], found["llama.vocab_size"]) == ("none", ROWS)
    # one that llama.cpp has no name for is as none, and the note says of what kind it is
    made = bpe(llama, 40)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(llama / "tokenizer.json"))
    done = zoo.convert(llama, tmp_path / "unknown", "gguf")
    assert any("Whitespace" in note for note in done.notes)
    assert fields(tmp_path / "unknown")["tokenizer.ggml.model"] == "none"
    assert not zoo.convert(llama, tmp_path / "torch", "torch").notes


@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece(lowercase: bool, bert: Path, tmp_path: Path) -> None:
    made = wordpiece(bert, lowercase=lowercase)
    settings(bert, cls_token="[CLS]", sep_token={"content": "[SEP]"}, mask_token="[MASK]", pad_token="[PAD]")
    zoo.convert(bert, tmp_path / "out", "gguf", verify=True)
    found = fields(tmp_path / "out")
    expected = {
        "model": "bert",
        "token_type_count": 2,
        "bos_token_id": 2,
        "cls_token_id": 2,
        "seperator_token_id": 3,
        "mask_token_id": 4,
        "padding_token_id": 0,
        "unknown_token_id": 1,
        "add_bos_token": True,
        "add_sep_token": True,
        "normalizer.lowercase": lowercase,
    }
    assert {key: found[f"tokenizer.ggml.{key}"] for key in expected} == expected
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert tokens[:10] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "▁the", "▁cat", "▁sat", "▁mat", "s"]
    assert kinds[:6] == [CONTROL, UNKNOWN, CONTROL, CONTROL, CONTROL, 1] and len(tokens) == ROWS
    alone = tmp_path / "alone.gguf"
    alone.write_bytes((tmp_path / "out" / "model.gguf").read_bytes())
    zoo.convert(alone, tmp_path / "back", verify=True)
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "back" / "tokenizer.json"))
    assert [again.encode(line).ids for line in LINES] == [made.encode(line).ids for line in LINES]


def test_a_vocabulary_of_bert_alone_is_enough(bert: Path, tmp_path: Path) -> None:
    made = wordpiece(bert)
    vocabulary = sorted(made.get_vocab().items(), key=lambda item: item[1])
    (bert / "tokenizer.json").unlink()
    (bert / "vocab.txt").write_text("\n".join(word for word, _ in vocabulary) + "\n")
    zoo.convert(bert, tmp_path / "out", "gguf")
    found = fields(tmp_path / "out")
    assert found["tokenizer.ggml.model"] == "bert" and found["tokenizer.ggml.tokens"][5] == "▁the"


@pytest.mark.parametrize(
    "change",
    [
        {
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": False,
                "lowercase": True,
            }
        },
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"model": {"continuing_subword_prefix": "@@"}},
        {"model": {"vocab": {"[UNK]": 0, "▁a": 1, "a": 2, "##▁a": 3}}, "added_tokens": []},
    ],
)
def test_wordpieces_that_llama_cpp_does_not_have(change: dict[str, Any], bert: Path, tmp_path: Path) -> None:
    wordpiece(bert)
    said = json.loads((bert / "tokenizer.json").read_text())
    for key, value in change.items():
        said[key] = said[key] | value if isinstance(value, dict) else value
    said["post_processor"] = None
    (bert / "tokenizer.json").write_text(json.dumps(said))
    done = zoo.convert(bert, tmp_path / "out", "gguf", dry_run=True)
    assert any("no tokenizer" in note for note in done.notes)


def test_special_tokens_and_chat_templates(llama: Path, tmp_path: Path) -> None:
    made = bpe(llama, 40)
    made.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    made.add_tokens(["word"])
    made.save(str(llama / "tokenizer.json"))
    templates = [{"name": "default", "template": "{{ a }}"}, {"name": "tool", "template": "{{ b }}"}]
    settings(llama, bos_token="<s>", eos_token={"content": "b"}, pad_token="c", chat_template=templates)
    checkpoints.edit_config(llama, eos_token_id=[7, 8])
    zoo.convert(llama, tmp_path / "out", "gguf")
    found = fields(tmp_path / "out")
    expected = {
        "bos_token_id": 0,
        "eos_token_id": 3,
        "padding_token_id": 4,
        "add_bos_token": True,
        "add_eos_token": False,
    }
    assert {key: found[f"tokenizer.ggml.{key}"] for key in expected} == expected
    assert found["tokenizer.ggml.token_type"][40] == USER
    assert found["tokenizer.chat_template"] == "{{ a }}" and found["tokenizer.chat_template.tool"] == "{{ b }}"
    assert found["tokenizer.chat_templates"] == ["tool"]
    # What ends every text need not be what ends an answer; a template of its own file goes before.
    made.post_processor = tokenizers.processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    made.save(str(llama / "tokenizer.json"))
    (llama / "chat_template.jinja").write_text("{{ c }}")
    zoo.convert(llama, tmp_path / "again", "gguf")
    found = fields(tmp_path / "again")
    expected = {"eos_token_id": 1, "eot_token_id": 3, "add_eos_token": True}
    assert {key: found[f"tokenizer.ggml.{key}"] for key in expected} == expected
    assert found["tokenizer.chat_template"] == "{{ c }}"
    # without tokenizer_config.json the config's numbers stand, of several the first
    (llama / "tokenizer_config.json").unlink()
    made.post_processor = tokenizers.processors.ByteLevel()
    made.save(str(llama / "tokenizer.json"))
    zoo.convert(llama, tmp_path / "numbers", "gguf")
    found = fields(tmp_path / "numbers")
    assert (found["tokenizer.ggml.eos_token_id"], found["tokenizer.ggml.add_bos_token"]) == (7, False)


def test_special_tokens_and_chat_templates_come_back(llama: Path, tmp_path: Path) -> None:
    bpe(llama, 40)
    templates = [{"name": "default", "template": "{{ a }}"}, {"name": "tool", "template": "{{ b }}"}]
    for number, given in enumerate(("{{ a }}", templates)):
        settings(llama, bos_token="<s>", eos_token="</s>", pad_token="c", chat_template=given)
        zoo.convert(llama, tmp_path / f"out{number}", "gguf")
        alone = tmp_path / f"{number}.gguf"
        alone.write_bytes((tmp_path / f"out{number}" / "model.gguf").read_bytes())
        zoo.convert(alone, tmp_path / f"back{number}")
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / f"back{number}")
        assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "c")
        assert tokenizer.get_chat_template() == "{{ a }}"
        zoo.load(alone, "numpy").save(tmp_path / f"saved{number}")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / f"saved{number}" / name).read_text() == (tmp_path / f"back{number}" / name).read_text()
        assert (
            tokenizer("the cat").input_ids
            == tokenizers.Tokenizer.from_file(str(llama / "tokenizer.json")).encode("the cat").ids
        )


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, 1),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, 2),
        ({"pooling_mode": "cls"}, 2),
        ({"pooling_mode": "lasttoken"}, 3),
        ({"pooling_mode_max_tokens": True}, None),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, None),
    ],
)
def test_how_a_text_becomes_one_vector(said: dict[str, Any], number: int | None, bert: Path, tmp_path: Path) -> None:
    wordpiece(bert)
    (bert / "1_Pooling").mkdir()
    (bert / "1_Pooling" / "config.json").write_text(json.dumps(said))
    done = zoo.convert(bert, tmp_path / "out", "gguf")
    assert fields(tmp_path / "out").get("bert.pooling_type") == number
    assert any("1_Pooling" in note for note in done.notes) == (number is None)


_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.mark.parametrize(
    ("pattern", "whole", "name"),
    [
        (_WORDS + r"\p{N}{1,3}" + _REST, True, "llama-bpe"),
        (_WORDS + r"\p{N}{1,3}" + _REST, False, "dbrx"),
        (_WORDS + r"\p{N}" + _REST, False, "stablelm2"),
        (_WORDS + r"\p{N}" + _REST, True, None),
        ("", False, "gpt-2"),
        ("", True, None),
    ],
)
def test_whether_whole_words_are_merged_counts(
    pattern: str, whole: bool, name: str | None, llama: Path, tmp_path: Path
) -> None:
    made = bpe(llama, 40, ignore_merges=whole)
    if pattern:
        level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, level])
    made.save(str(llama / "tokenizer.json"))
    done = zoo.convert(llama, tmp_path / "out", "gguf")
    assert fields(tmp_path / "out").get("tokenizer.ggml.pre") == name
    assert any("no tokenizer" in note for note in done.notes) == (name is None)


def test_a_damaged_tokenizer_is_an_error(llama: Path, tmp_path: Path) -> None:
    (llama / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(zoo.ZooError, match=r"tokenizer\.json"):
        zoo.convert(llama, tmp_path / "out", "gguf")
    (llama / "tokenizer.json").unlink()
    bpe(llama, 40)
    (llama / "tokenizer_config.json").write_text("[1")
    with pytest.raises(zoo.ZooError, match=r"tokenizer_config\.json"):
        zoo.convert(llama, tmp_path / "out", "gguf")
    settings(llama, chat_template={"default": 3}, bos_token=["<s>"], eos_token={"content": None})
    zoo.convert(llama, tmp_path / "out", "gguf")


def test_llama_3s_scaling_is_a_tensor(llama: Path, tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 8192, "rope_theta": 5e5}
    checkpoints.edit_config(llama, head_dim=6, rope_parameters=scaling)
    zoo.convert(llama, tmp_path / "out", "gguf", verify=True)
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    [stored] = [tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight"]
    config = transformers.AutoConfig.for_model("llama", head_dim=6, rope_parameters=scaling)
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 5e5 ** -(torch.arange(0, 6, 2) / 6)
    np.testing.assert_allclose(stored, (plain / scaled).numpy(), rtol=1e-6)
    alone = tmp_path / "alone.gguf"
    alone.write_bytes((tmp_path / "out" / "model.gguf").read_bytes())
    zoo.convert(alone, tmp_path / "back", verify=True)
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert back["rope_scaling"]["factor"] == pytest.approx(8.0, rel=1e-4)


@pytest.mark.parametrize(
    ("model_type", "cls", "changes", "words"),
    [
        ("mistral", "MistralForCausalLM", {"sliding_window": 8}, "sliding_window"),
        ("mixtral", "MixtralForCausalLM", {"sliding_window": 8, "num_local_experts": 2}, "sliding_window"),
        ("phi3", "Phi3ForCausalLM", {"sliding_window": 8, "pad_token_id": 0}, "sliding_window"),
        ("qwen3", "Qwen3ForCausalLM", {"attention_bias": True}, r"attn_q\.bias"),
        ("gemma", "GemmaForCausalLM", {"tie_word_embeddings": False, "head_dim": 6}, r"output\.weight"),
        (
            "qwen2",
            "Qwen2ForCausalLM",
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial",
        ),
        (
            "qwen2",
            "Qwen2ForCausalLM",
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0}},
            "dynamic",
        ),
        (
            "llama",
            "LlamaForCausalLM",
            {
                "head_dim": 32,
                "rope_parameters": {
                    "rope_theta": 1e4,
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 16,
                    "truncate": False,
                },
            },
            "truncate",
        ),
    ],
)
def test_what_llama_cpp_would_do_otherwise_is_refused(
    model_type: str, cls: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """Each was seen in llama.cpp: another result, or a file that it refuses."""
    made = small(model_type, cls, changes)
    made.save_pretrained(tmp_path / "in")
    with pytest.raises((ConfigError, WeightsError), match=words):
        zoo.convert(tmp_path / "in", tmp_path / "out", "gguf", dry_run=True)


@pytest.mark.parametrize("window", [None, 31, 4096])
def test_a_window_that_no_text_is_longer_than_is_no_matter(window: int | None, tmp_path: Path) -> None:
    small("mistral", "MistralForCausalLM", {"sliding_window": window}).save_pretrained(tmp_path / "in")
    done = zoo.convert(tmp_path / "in", tmp_path / "out", "gguf", verify=True)
    assert not any("sliding_window" in note for note in done.notes)


def test_berts_gelu_is_the_approximation_in_llama_cpp(bert: Path, tmp_path: Path) -> None:
    done = zoo.convert(bert, tmp_path / "out", "gguf", dry_run=True)
    assert any("hidden_act" in note and "gelu" in note for note in done.notes)


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "q8_0"])
def test_gemma_in_16_bits(dtype: str | None, tmp_path: Path) -> None:
    """As it is published; its norms are stored with 1 added, in float32, which 16 bits could not hold."""
    changes = {"head_dim": 6, "query_pre_attn_scalar": 6, "sliding_window": 8}
    made = small("gemma2", "Gemma2ForCausalLM", changes)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.linspace(-0.9, 0.9, parameter.numel()))
    made.to(torch.bfloat16).save_pretrained(tmp_path / "in")
    zoo.convert(tmp_path / "in", tmp_path / "out", "gguf", dtype=dtype, verify=True)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    norm = made.model.norm.weight.detach().float().numpy()
    assert np.array_equal(stored["output_norm.weight"].data, norm + np.float32(1))


def test_longrope_is_two_tensors_and_a_note(tmp_path: Path) -> None:
    scaling = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16}
    scaling |= {"short_factor": [1.0, 1.1, 1.2], "long_factor": [2.0, 3.0, 4.0]}
    changes = {"pad_token_id": 0, "rope_parameters": scaling, "original_max_position_embeddings": 16}
    small("phi3", "Phi3ForCausalLM", changes).save_pretrained(tmp_path / "in")
    done = zoo.convert(tmp_path / "in", tmp_path / "out", "gguf")
    assert any("long_factor" in note for note in done.notes)
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    stored = {tensor.name: tensor.data.tolist() for tensor in reader.tensors if "rope" in tensor.name}
    assert stored == {
        "rope_factors_short.weight": np.float32([1.0, 1.1, 1.2]).tolist(),
        "rope_factors_long.weight": [2.0, 3.0, 4.0],
    }
    found = fields(tmp_path / "out")
    assert found["phi3.rope.scaling.original_context_length"] == 16
    config = transformers.AutoConfig.from_pretrained(tmp_path / "in")
    _, factor = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["longrope"](config, "cpu")
    assert found["phi3.rope.scaling.attn_factor"] == pytest.approx(factor, rel=1e-6)


def test_a_byte_put_in_or_taken_out_is_found(llama: Path, tmp_path: Path) -> None:
    """Wherever it is: the tensors behind it would be read one byte off."""
    zoo.convert(llama, tmp_path / "out", "gguf")
    path = tmp_path / "out" / "model.gguf"
    whole = path.read_bytes()
    begin = gguf.GGUFReader(path).data_offset
    for place in (begin, begin + 1, (begin + len(whole)) // 2, len(whole)):
        for damaged in (whole[:place] + b"\0" + whole[place:], whole[: place - 1] + whole[place:]):
            path.write_bytes(damaged)
            with pytest.raises(zoo.ZooError, match=r"model\.gguf"):
                zoo.load(path, "numpy")


def small(model_type: str, cls: str, changes: dict[str, Any]) -> Any:
    sizes = {"hidden_size": 48, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 36}
    sizes |= {"num_hidden_layers": 1, "vocab_size": ROWS, "max_position_embeddings": 31}
    config = transformers.AutoConfig.for_model(model_type, **sizes | {"bos_token_id": 1, "eos_token_id": 2} | changes)
    config.architectures = [cls]
    return getattr(transformers, cls)(config)
