"""Whether `embed` gives what sentence-transformers does for a folder, whatever the folder's files say.

    python tests/oracle/check_sentences.py FOLDER

In an environment with sentence-transformers 6.2 and this project's torch, transformers and tokenizers, the checkout on
PYTHONPATH. FOLDER holds a small BERT with its tokenizer. Around it folders are made with every setting of the modules
(pooling, prompts, layers, lengths, sides); for each, both sides' vectors of the same texts are compared on the NumPy
backend. It ends with an error where one is further off than the tolerance table allows.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

import zoo

sys.path.insert(0, str(Path(__file__).parents[1]))
from tolerances import TOLERANCES

TEXTS = ["the cat", "A Cat", "", "the cat sat on the mat " * 9, "one two three", "e", "The quick brown fox."]
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
PROMPTS = {"query": "the cat: ", "document": "", "passage": "on a mat "}


def made(folder: Path, target: Path, *modules: Any, **settings: Any) -> Path:
    SentenceTransformer(modules=[Transformer(str(folder)), *modules], device="cpu", **settings).save(str(target))
    return target


def edited(target: Path, file: str, **fields: Any) -> None:
    path = target / file
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.is_file() else {}), **fields}))


def cases(folder: Path, work: Path) -> Iterator[tuple[str, Path]]:
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    for mode in (*MODES, ("cls", "mean"), MODES[::-1]):
        yield f"pooling {mode}", made(folder, work / f"p{hash(mode)}", Pooling(width, pooling_mode=mode))
    for include in (True, False):
        for mode in MODES:
            pooling = Pooling(width, pooling_mode=mode, include_prompt=include)
            name = f"prompt {mode} {include}"
            target = made(folder, work / name, pooling, Normalize(), prompts=PROMPTS, default_prompt_name="query")
            yield name, target
            if mode in ("cls", "weightedmean"):
                left = shutil.copytree(target, work / f"{name} left")
                edited(left, "tokenizer_config.json", padding_side="left", truncation_side="left")
                yield f"{name} left", left
    for number, activation in enumerate((torch.nn.Tanh(), torch.nn.Identity(), torch.nn.GELU(), torch.nn.ReLU(),
                                         torch.nn.Sigmoid(), torch.nn.SiLU(), torch.nn.Mish(), torch.nn.ELU(),
                                         torch.nn.LeakyReLU(), torch.nn.Softplus(), torch.nn.Softsign(),
                                         torch.nn.Hardswish(), torch.nn.ReLU6(), torch.nn.Hardtanh(),
                                         torch.nn.LogSigmoid(), torch.nn.Tanhshrink())):  # fmt: skip
        size = (5, width)[number % 2]
        dense = Dense(width, size, bias=number % 3 != 0, activation_function=activation, use_residual=number % 4 > 1)
        norm = LayerNorm(size)
        torch.nn.init.normal_(norm.norm.weight), torch.nn.init.normal_(norm.norm.bias)
        yield f"dense {activation}", made(folder, work / f"d{number}", Pooling(width), dense, norm, Normalize())
    plain = made(folder, work / "plain", Pooling(width, pooling_mode="max"), Normalize())
    for name, file, fields in (
        ("length", "sentence_bert_config.json", {"max_seq_length": 6}),
        ("longer than the tokenizer's", "sentence_bert_config.json", {"max_seq_length": 20}),
        ("tokenizer's length", "tokenizer_config.json", {"model_max_length": 7}),
        ("lower", "sentence_bert_config.json", {"do_lower_case": True}),
    ):
        target = shutil.copytree(plain, work / name)
        edited(target, "tokenizer_config.json", do_lower_case=False, model_max_length=11)
        edited(target, file, **fields)
        yield name, target
    legacy = shutil.copytree(plain, work / "legacy")
    (legacy / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": width, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": False,
                    "pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True})
    )  # fmt: skip
    yield "flags", legacy
    moved = shutil.copytree(plain, work / "moved")
    (moved / "1_Pooling").rename(moved / "pooling")
    modules = json.loads((moved / "modules.json").read_text())
    modules[1]["path"] = "pooling"
    (moved / "modules.json").write_text(json.dumps(modules))
    yield "another folder", moved


def main() -> None:
    wrong = []
    with tempfile.TemporaryDirectory() as work:
        for name, folder in cases(Path(sys.argv[1]), Path(work)):
            expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, batch_size=3).astype(np.float64)
            got = zoo.load(folder, "numpy").embed(TEXTS, batch_size=3)
            error = np.abs(got - expected).max() / np.abs(expected).max()
            print(f"{error:9.2g}  {name}")
            if error > TOLERANCES["numpy", "float32"]:
                wrong.append(name)
    if wrong:
        sys.exit(f"outside the tolerance: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
