"""What the code blocks of README and docs/ name: models of the hub under their own names, and folders of the reader.

All weights are tiny and random. Sizes that a reader sees (vocabulary, width of a vector) are those of the real models.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import zoo

__all__ = ["FILES", "REPOSITORIES"]

_WORDS = (
    "the a an is are was it of to and in i film this that movie great dull wonderful boring cat kitten tax return due "
    "may paris france capital good bad never saw such what how do you fix my internet restart router ."
).split()
_SMALL = {"num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 512}
_SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}  # BERT's own numbers


def bert_base(folder: Path) -> None:
    """google-bert/bert-base-uncased with two thin layers."""
    _write(folder, "BertForMaskedLM", transformers.BertConfig(hidden_size=32, **_SMALL))


def minilm(folder: Path) -> None:
    """sentence-transformers/all-MiniLM-L6-v2 with one layer: vectors of 384 numbers."""
    config = transformers.BertConfig(hidden_size=384, vocab_size=1500, **_SMALL | {"num_hidden_layers": 1})
    _write(folder, "BertModel", config)
    kinds = ("Transformer", "Pooling", "Normalize")
    paths = ("", "1_Pooling", "2_Normalize")
    _json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
        ],
    )
    _json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True})
    _json(folder / "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False})


def classifier(folder: Path) -> None:
    """A BERT that somebody trained to tell good reviews from bad ones."""
    labels = {0: "bad", 1: "good"}
    config = transformers.BertConfig(
        hidden_size=32,
        initializer_range=0.2,
        id2label=labels,
        label2id={label: number for number, label in labels.items()},
        **_SMALL,
    )
    _write(folder, "BertForSequenceClassification", config)


def llama(folder: Path) -> None:
    """A decoder, for GGUF."""
    sizes = {"hidden_size": 32, "num_key_value_heads": 2, "vocab_size": 30522, "tie_word_embeddings": False}
    _write(folder, "LlamaForCausalLM", transformers.LlamaConfig(**_SMALL | sizes))


def _converted(make: Callable[[Path], None], to: str) -> Callable[[Path], None]:
    """The same in another form."""

    def written(folder: Path) -> None:
        source = folder.with_name(f".{folder.name}.source")
        make(source)
        zoo.convert(source, folder, to)

    return written


def _gguf(path: Path) -> None:
    _converted(llama, "gguf")(folder := path.with_name(f".{path.name}.folder"))
    (file,) = folder.glob("*.gguf")
    file.replace(path)


def _tensors(path: Path) -> None:
    """An archive of arrays that belongs to no model of transformers."""
    rng = np.random.default_rng(0)
    np.savez(
        path, **{"dense/kernel": rng.normal(size=(8, 4)).astype(np.float32), "dense/bias": np.zeros(4, np.float32)}
    )


REPOSITORIES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "google-bert/bert-base-uncased": ("bert-base", bert_base),
    "sentence-transformers/all-MiniLM-L6-v2": ("minilm", minilm),
    "org/reviews": ("org/reviews", classifier),
}
"""Repository on the hub -> what pages call it, and what writes its files."""

FILES: dict[str, Callable[[Path], None]] = {
    "reviews": classifier,
    "tf_reviews": _converted(classifier, "tf-h5"),
    "flax_reviews": _converted(classifier, "flax"),
    "decoder": llama,
    "decoder.gguf": _gguf,
    "tensors.npz": _tensors,
}
"""Name in the reader's own folder -> what writes it."""


def _write(folder: Path, name: str, config: transformers.PretrainedConfig) -> None:
    config.architectures = [name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        getattr(transformers, name)(config).eval().save_pretrained(folder)
    vocabulary = dict(_SPECIAL)
    for word in [*_WORDS, *map(chr, range(97, 123)), *(f"##{chr(letter)}" for letter in range(97, 123))]:
        vocabulary.setdefault(word, 1000 + len(vocabulary))
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = [("[CLS]", 101), ("[SEP]", 102)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", marks)
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    _json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "BertTokenizer", "mask_token": "[MASK]", "pad_token": "[PAD]", "model_max_length": 512},
    )


def _json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")
