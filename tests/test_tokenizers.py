"""`model.tokenizer` against transformers' AutoTokenizer: all that the files beside tokenizer.json say is applied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

import zoo
from zoo.errors import ConfigError
from zoo.tasks.text import tokenize

transformers = pytest.importorskip("transformers")

TEXTS = [
    "the Cat sat on the mats.",
    "THE LOWER café é",
    "",
    "a [MASK] cat <mask> <extra> , the <ent> cat!",
    "中国 cat <sp> the",
    "the " * 12 + "cat",
    " the cat 's x .",
]
WORDS = "the cat sat on a mat é e ##s ##t low er Cat THE . , ! ' 中 国 x s".split()


def word_piece() -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = Tokenizer(models.WordPiece({t: i for i, t in enumerate([*special, *WORDS])}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    made.add_special_tokens(special)
    return made


def byte_level() -> Tokenizer:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the", "Ġt"]
    made = Tokenizer(models.BPE({t: i for i, t in enumerate(pieces)}, [("t", "h"), ("th", "e"), ("Ġ", "t")]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    made.add_special_tokens([*special[:-1], AddedToken("<mask>", lstrip=True)])
    return made


def unigram() -> Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁the", -1.0), ("▁cat", -1.5)]
    made = Tokenizer(models.Unigram(pieces + [(c, -3.0) for c in "abcdefghijklmnopqrstuvwxyzCTH.,!é"], unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return made


def added(content: str, **flags: bool) -> dict[str, Any]:
    usual = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    return {"content": content, **usual, **flags}


BERT: dict[str, Any] = {"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]", "unk_token": "[UNK]"}
BERT |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "model_max_length": 12}
ROBERTA: dict[str, Any] = {"tokenizer_class": "RobertaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
ROBERTA |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>", "cls_token": "<s>"}
ROBERTA |= {"sep_token": "</s>", "model_max_length": 20}
GENERIC = {"tokenizer_class": "PreTrainedTokenizerFast"}
_DECODER = {
    str(i): added(t, lstrip=t == "[MASK]") for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
}
_DECODER["27"] = added("<ent>", rstrip=True, normalized=True, special=False)

# tokenizer, tokenizer_config.json, special_tokens_map.json, added_tokens.json
CASES: dict[str, tuple[Any, ...]] = {
    "as it is": (word_piece, BERT),
    "no config": (word_piece, None),
    "padding_side": (word_piece, BERT | {"padding_side": "left"}),
    "truncation_side": (word_piece, BERT | {"truncation_side": "left"}),
    "no longest": (word_piece, BERT | {"model_max_length": int(1e30)}),
    "cased": (word_piece, BERT | {"do_lower_case": False}),
    "accents kept": (word_piece, BERT | {"strip_accents": False}),
    "accents off": (word_piece, BERT | {"do_lower_case": False, "strip_accents": True}),
    "chinese": (word_piece, BERT | {"tokenize_chinese_chars": False}),
    "pad_token": (word_piece, BERT | {"pad_token": "[MASK]"}),
    "a new pad_token": (word_piece, BERT | {"pad_token": "<padding>"}),
    "extra tokens": (word_piece, BERT | {"extra_special_tokens": ["<extra>", "<ent>"]}),
    "named extra tokens": (word_piece, BERT | {"extra_special_tokens": {"image_token": "<extra>"}}),
    "a token of the model's own": (word_piece, BERT | {"image_token": "<extra>"}),
    "additional tokens": (word_piece, BERT | {"additional_special_tokens": ["<extra>", "<ent>"]}),
    "added_tokens_decoder": (word_piece, BERT | {"added_tokens_decoder": _DECODER}),
    "special_tokens_map": (word_piece, {"tokenizer_class": "BertTokenizer", "model_max_length": 12},
                           {"mask_token": added("[MASK]", lstrip=True), "pad_token": "[MASK]",
                            "additional_special_tokens": ["<ent>"]}),
    "added_tokens": (word_piece, BERT, {}, {"<ent>": 27, "<sp>": 28}),
    "split_special_tokens": (word_piece, BERT | {"split_special_tokens": True}),
    "clean_up": (word_piece, BERT | {"clean_up_tokenization_spaces": True}),
    "generic": (word_piece, BERT | GENERIC | {"do_lower_case": False, "padding_side": "left"}),
    "byte level": (byte_level, ROBERTA),
    "add_prefix_space": (byte_level, ROBERTA | {"add_prefix_space": True}),
    "generic prefix": (byte_level, ROBERTA | GENERIC | {"add_prefix_space": True}),
    "clean_up of bytes": (byte_level, ROBERTA | {"clean_up_tokenization_spaces": True}),
    "ends": (byte_level, ROBERTA | GENERIC | {"add_bos_token": True, "add_eos_token": True}),
    "unigram": (unigram, {**GENERIC, "eos_token": "</s>", "pad_token": "<pad>", "padding_side": "left",
                          "truncation_side": "left", "model_max_length": 9}),
}  # fmt: skip


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Any model that takes tokens, without files beside its weights."""
    folder = tmp_path_factory.mktemp("tokenizers")
    checkpoints.save(folder / "bert", "bert")
    return zoo.load(folder / "bert", "numpy").save(folder / "package")


def loaded(package: Path, folder: Path, tokenizer: Tokenizer | None, *files: dict[str, Any] | None) -> Any:
    """The model with these files beside it."""
    checkpoints.copy_of(package, folder)
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in zip(("tokenizer_config", "special_tokens_map", "added_tokens"), files, strict=False):
        if content:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return zoo.load(folder, "numpy")


def assert_alike(model: Any, folder: Path) -> None:
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    own = model.graph.symbols["sequence"][1]
    length = {"max_length": own} if own and reference.model_max_length > own else {}
    expected, got = reference(TEXTS, padding=True, truncation=True, **length), tokenize(model, TEXTS)
    for name in expected.keys() & {"input_ids", "attention_mask", "token_type_ids"}:
        assert np.array_equal(got[name], expected[name]), name
    for ids in expected["input_ids"]:
        assert model.tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("case", CASES)
def test_a_tokenizer_is_that_of_transformers(case: str, package: Path, tmp_path: Path) -> None:
    make, *files = CASES[case]
    assert_alike(loaded(package, tmp_path / "m", make(), *files), tmp_path / "m")


@pytest.mark.parametrize(
    "settings",
    [
        BERT,
        BERT | {"do_lower_case": False, "tokenize_chinese_chars": False},
        BERT | {"strip_accents": False, "pad_token": "[MASK]"},
        BERT | {"additional_special_tokens": ["<extra>"], "padding_side": "left"},
    ],
)
def test_a_vocabulary_alone(settings: dict[str, Any], package: Path, tmp_path: Path) -> None:
    checkpoints.copy_of(package, tmp_path / "m")
    words = sorted(word_piece().get_vocab(False).items(), key=lambda item: item[1])
    (tmp_path / "m" / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in words), "utf-8")
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(settings))
    assert_alike(zoo.load(tmp_path / "m", "numpy"), tmp_path / "m")


def test_inputs_that_a_tokenizer_does_not_make(package: Path, tmp_path: Path) -> None:
    model = loaded(package, tmp_path / "m", word_piece(), BERT | {"model_input_names": ["input_ids", "attention_mask"]})
    assert sorted(tokenize(model, TEXTS)) == ["attention_mask", "input_ids"]


@pytest.mark.parametrize(
    "settings, named",
    [({"padding_side": "middle"}, "padding_side"), ({"truncation_side": 3}, "truncation_side"),
     ({"extra_special_tokens": [4]}, "added token")],
)  # fmt: skip
def test_settings_that_mean_nothing(settings: dict[str, Any], named: str, package: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        loaded(package, tmp_path / "m", word_piece(), BERT | settings).tokenizer  # noqa: B018


def test_a_tokenizer_that_is_none(package: Path, tmp_path: Path) -> None:
    checkpoints.copy_of(package, tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        zoo.load(tmp_path / "m", "numpy").tokenizer  # noqa: B018


def test_packed_batches_that_are_padded_on_the_left(package: Path, tmp_path: Path) -> None:
    """The native engine packs what is padded on the right; the vectors are the same."""
    settings = BERT | {"padding_side": "left"}
    native = loaded(package, tmp_path / "m", word_piece(), settings)
    other = zoo.load(tmp_path / "m", "native")
    from tolerances import TOLERANCES

    expected = native.embed(TEXTS)
    assert np.abs(other.embed(TEXTS) - expected).max() <= TOLERANCES["native", "float32"] * np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("NllbTokenizer", {"src_lang": "fra_Latn"}),
        ("NllbTokenizer", {"legacy_behaviour": True}),
        ("MBartTokenizer", {"src_lang": "fr_XX"}),
        ("MBart50Tokenizer", {"src_lang": "fr_XX"}),
    ],
)
def test_the_language_of_texts(name: str, settings: dict[str, Any], package: Path, tmp_path: Path) -> None:
    """tokenizer.json has the template of the language that was set when it was written."""
    folder = checkpoints.copy_of(package, tmp_path / "m")
    getattr(transformers, name)().save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = zoo.load(folder, "numpy").tokenizer
    ours.no_padding()
    for texts in (("Hello world",), ("Hello", "world")):
        assert ours.encode(*texts).ids == theirs(*texts).input_ids
    path.write_text(json.dumps(json.loads(path.read_text()) | {"src_lang": "no_such"}))
    with pytest.raises(ConfigError, match="no_such"):
        _ = zoo.load(folder, "numpy").tokenizer


# What a class puts around texts, whatever tokenizer.json says

_WORDS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]", "a", "b", "ab", "c"]
_BERTS = {
    "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]",
}  # fmt: skip
_OTHERS = {
    "bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>",
    "pad_token": "<pad>", "mask_token": "<mask>",
}  # fmt: skip
_ENDS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_SOUND = {"eos_token": "</s>", "language": "English", "task": "transcribe"}
_MORE = ["[QUESTION]", ".", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>", "__eng__", "en_XX"]


_CUT_ANEW = (
    "HerbertTokenizer",
    "LayoutLMv3Tokenizer",
    "CLIPTokenizer",
    "CodeLlamaTokenizer",
    "GemmaTokenizer",
    "SeamlessM4TTokenizer",
)
"""Classes that cut as real files of theirs say, not as this file does: what they put around is compared."""

_OF_PAGES = ("LayoutLMv2Tokenizer", "LayoutLMv3Tokenizer", "LayoutXLMTokenizer", "MarkupLMTokenizer", "UdopTokenizer")


def _cut(how: str) -> Any:
    if how == "WordPiece":
        made = Tokenizer(models.WordPiece({word: i for i, word in enumerate([*_WORDS, *_MORE])}, unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    elif how == "BPE":
        words = [*_WORDS[:10], *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", *_MORE[:1], *_MORE[2:]]
        made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [("a", "b")]))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        made = Tokenizer(models.Unigram([(word, -float(i)) for i, word in enumerate([*_WORDS, "▁", *_MORE])], unk_id=3))
        made.pre_tokenizer = pre_tokenizers.Metaspace()
    return made


@pytest.mark.parametrize("template", [False, True])
@pytest.mark.parametrize(
    ("model_type", "name", "how", "tokens"),
    [
        ("bert", "BertTokenizer", "WordPiece", _BERTS),
        ("distilbert", "DistilBertTokenizer", "WordPiece", _BERTS),
        ("electra", "ElectraTokenizer", "WordPiece", _BERTS),
        ("mpnet", "MPNetTokenizer", "WordPiece", _OTHERS),
        ("roberta", "RobertaTokenizer", "BPE", _OTHERS),
        ("bart", "BartTokenizer", "BPE", _OTHERS),
        ("longformer", "LongformerTokenizer", "BPE", _OTHERS),
        ("deberta", "DebertaTokenizer", "BPE", _BERTS),
        ("xlm-roberta", "XLMRobertaTokenizer", "Unigram", _OTHERS),
        ("camembert", "CamembertTokenizer", "Unigram", _OTHERS),
        ("albert", "AlbertTokenizer", "Unigram", _BERTS),
        ("deberta-v2", "DebertaV2Tokenizer", "Unigram", _BERTS),
        ("t5", "T5Tokenizer", "Unigram", _OTHERS),
        ("funnel", "FunnelTokenizer", "WordPiece", _BERTS),
        ("splinter", "SplinterTokenizer", "WordPiece", {**_BERTS, "question_token": "[QUESTION]"}),
        ("splinter", "SplinterTokenizer", "WordPiece", {**_BERTS, "padding_side": "left"}),
        ("layoutlmv2", "LayoutLMv2Tokenizer", "WordPiece", _BERTS),
        ("herbert", "HerbertTokenizer", "BPE", _OTHERS),
        ("luke", "LukeTokenizer", "BPE", _OTHERS),
        ("layoutlmv3", "LayoutLMv3Tokenizer", "BPE", _OTHERS),
        ("layoutxlm", "LayoutXLMTokenizer", "Unigram", _OTHERS),
        ("markuplm", "MarkupLMTokenizer", "BPE", {**_OTHERS, "tags_dict": {}}),
        ("mluke", "MLukeTokenizer", "Unigram", _OTHERS),
        ("rembert", "RemBertTokenizer", "Unigram", _BERTS),
        ("clip", "CLIPTokenizer", "BPE", _ENDS),
        ("udop", "UdopTokenizer", "Unigram", _OTHERS),
        ("lasr_ctc", "LasrTokenizer", "Unigram", _ENDS),
        ("xglm", "XGLMTokenizer", "Unigram", _OTHERS),
        ("xlnet", "XLNetTokenizer", "Unigram", _OTHERS),
        ("nougat", "NougatTokenizer", "BPE", _ENDS),
        ("code_llama", "CodeLlamaTokenizer", "BPE", _ENDS),
        ("code_llama", "CodeLlamaTokenizer", "BPE", {**_ENDS, "add_bos_token": False, "add_eos_token": True}),
        ("llama", "LlamaTokenizer", "BPE", {**_ENDS, "add_bos_token": True, "add_eos_token": True}),
        ("gemma", "GemmaTokenizer", "BPE", {**_ENDS, "add_bos_token": True, "add_eos_token": True}),
        ("cohere", "CohereTokenizer", "BPE", {**_ENDS, "add_bos_token": True, "add_eos_token": True}),
        ("gpt_neox", "GPTNeoXTokenizer", "BPE", {**_ENDS, "add_bos_token": True}),
        ("whisper", "WhisperTokenizer", "BPE", {"eos_token": "</s>"}),
        ("whisper", "WhisperTokenizer", "BPE", {**_SOUND, "predict_timestamps": True}),
        ("whisper", "WhisperTokenizer", "BPE", _SOUND),
        ("mbart", "MBartTokenizer", "Unigram", _OTHERS),
        ("mbart50", "MBart50Tokenizer", "Unigram", _OTHERS),
        ("seamless_m4t", "SeamlessM4TTokenizer", "BPE", {**_OTHERS, "src_lang": "eng", "tgt_lang": "eng"}),
    ],
)
def test_what_a_class_puts_around_texts(
    model_type: str, name: str, how: str, tokens: dict[str, str], template: bool, tmp_path: Path
) -> None:
    from zoo.tasks.tokenizer import read_settings, read_tokenizer

    made = _cut(how)
    named = [token for key, token in tokens.items() if key.endswith("_token") and isinstance(token, str)]
    made.add_special_tokens(list(dict.fromkeys([*named, "[MASK]"])))
    if template:
        made.post_processor = processors.TemplateProcessing(
            single="[PAD] $A", pair="[PAD] $A [PAD] $B:1", special_tokens=[("[PAD]", made.token_to_id("[PAD]"))]
        )
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    for changed in (None, "cls_token", "sep_token", "eos_token", "bos_token"):
        settings = {"tokenizer_class": name, **tokens, **({changed: "[MASK]"} if changed else {})}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        ours = read_tokenizer(tmp_path, read_settings(tmp_path), model_type, lambda: None)
        for texts in (("ab a",), ("",), ("ab a", "b c"), ("c b a", "b")):
            if name in _CUT_ANEW:
                if name not in _OF_PAGES:
                    _ = theirs("ab")  # some put the template there at a call
                around = Tokenizer.from_str(ours.to_str())
                around.post_processor = theirs.backend_tokenizer.post_processor
                ids, type_ids = around.encode(*texts).ids, around.encode(*texts).type_ids
            elif name in _OF_PAGES:  # they want boxes with the words
                expected = theirs.backend_tokenizer.encode(*texts)
                ids, type_ids = expected.ids, expected.type_ids
            else:
                found = theirs(*texts, return_token_type_ids=True)
                ids, type_ids = found["input_ids"], found["token_type_ids"]
            assert ours.encode(*texts).ids == ids, (changed, texts)
            assert ours.encode(*texts).type_ids == type_ids, (changed, texts)


def test_a_language_that_the_vocabulary_lacks_is_refused(tmp_path: Path) -> None:
    _cut("BPE").save(str(tmp_path / "tokenizer.json"))
    from zoo.tasks.tokenizer import read_settings, read_tokenizer

    settings = {"tokenizer_class": "WhisperTokenizer", "eos_token": "</s>", "language": "french"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="language") as caught:
        read_tokenizer(tmp_path, read_settings(tmp_path), "whisper", lambda: None)
    assert "<|fr|>" in str(caught.value)


@pytest.mark.parametrize(("model_type", "name"), [("pegasus", "Pegasus"), ("big_bird", "BigBird"), ("esmc", "Esmc")])
def test_classes_that_want_a_vocabulary_of_their_own(model_type: str, name: str, tmp_path: Path) -> None:
    from zoo.tasks.tokenizer import read_settings, read_tokenizer

    tokens = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    words = ["<pad>", "</s>", "<unk>", "<mask_1>", "<mask_2>", "<s>", "[CLS]", "[SEP]", "[MASK]", "▁", "a", "b"]
    if name == "Esmc":  # its letters are its own
        made, tokens = transformers.EsmcTokenizer().backend_tokenizer, {}
    else:
        scores = [(word, 0.0 if i < 9 else -float(i)) for i, word in enumerate([*words, *map(str, range(200))])]
        made = Tokenizer(models.Unigram(scores, unk_id=2))
        made.pre_tokenizer = pre_tokenizers.Metaspace()
    if name == "Pegasus":
        tokens["mask_token"] = "<mask_2>"
    if name == "BigBird":
        tokens |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "bos_token": "<s>", "mask_token": "[MASK]"}
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": f"{name}Tokenizer", **tokens}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = read_tokenizer(tmp_path, read_settings(tmp_path), model_type, lambda: None)
    for texts in (("a b",), ("",), ("a", "b")):
        found = theirs(*texts, return_token_type_ids=True)
        assert ours.encode(*texts).ids == found["input_ids"], texts
        assert ours.encode(*texts).type_ids == found["token_type_ids"], texts
