"""Whether llama.cpp reads the GGUF files that `zoo convert` writes, and computes and tokenizes as the source does.

    <python of the project>  tests/oracle/check_llama_cpp.py --write OUT [--real SmolLM2.gguf]
    <python with xllamacpp>  tests/oracle/check_llama_cpp.py --read  OUT

The first command makes a tiny model and a tokenizer of every family of the GGUF table, converts each, and keeps what
transformers computes from the source in float64, with its own error in float32, and the ids that the tokenizers library
gives. The second, in an environment that has PyPI's xllamacpp (llama.cpp itself) and NumPy alone, loads every file and
writes benchmarks/results/gguf_in_llama_cpp.json. A case is right where

    tokens       are the same for every text, special tokens in the text included,
    numbers      (log-probabilities of the next token; BERT's last hidden states) are float64's within `LIMITS`.

llama.cpp's float32 is not everyone's: where a network has GELU it looks values up in a table of float16, and its BERT
has the tanh approximation for erf. So `LIMITS` has a line for each kind of activation, stated with its reason, and the
result says what was measured. The attention cache is kept in float32 and flash attention is off; both are float16
otherwise. Fields that the file cannot say are tried as well: each must be refused, or be right in llama.cpp.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "gguf_in_llama_cpp.json"
DATA = Path(__file__).parents[1] / "data" / "dialects"
SEED, LENGTHS, LIMIT_S = 7, (1, 6, 23), 120

LIMITS = {
    "silu": 2e-6,
    "silu, 30 layers": 2e-5,
    "gelu": 2e-3,
    "float16": 5e-3,
    "bfloat16": 3e-2,
    "q8_0": 5e-2,
}
"""Activation -> the largest difference from float64, over the largest absolute value. SiLU, softmax and norms are
float32 in llama.cpp: some tens of roundings, as torch has; over 30 layers of real weights 7e-6 were seen. GELU goes
through a table of float16 arguments, 2**-11 of each in every layer; seen: 8e-4. With matrices of 16 bits llama.cpp
rounds what they are multiplied with to the same, 2**-11 or 2**-8 of each; Q8_0 rounds both to 1/254 of the largest of
32, and there the weights' own rounding counts, too. Seen: 8e-4, 4e-3 and 3e-2."""

TEXTS = (
    "The cat sat on 123 mats, didn't it?",
    "  spaces\n\n\tand <|end|> tokens\r\n",
    "Äpfel 東京 🙂 x² 3.14",
    "</s> a [MASK] b<s>",
    "",
    " ",
    "Hello World",
    "don't DON'T I'll we'Ve 1234567 12,345.6",
    "café naïve résumé – “quotes” … ¿qué?",
    "foo_bar(x) { return x+1; } // a\tb",
    "a\u00a0b \u200b c\u3000d",
    "日本語テキスト العربية",
    "한국어 हिन्दी",
    "re\u0301sume\u0301",
)

_HANGUL, _COMPOSED, _SPACES = "한국어 हिन्दी", "re\u0301sume\u0301", "  spaces\n\n\tand <|end|> tokens\r\n"
_MARKS = "</s> a [MASK] b<s>"
KNOWN: dict[str, tuple[tuple[str, ...], str]] = {
    "wordpiece": ((_HANGUL,), "it keeps one part of a decomposed Hangul syllable, and takes vowel signs for accents"),
    "qwen2": ((_COMPOSED,), "it does not compose characters"),
    "tekken": ((_HANGUL, _COMPOSED), "its pattern has no combining marks inside words"),
    "gpt-4o": ((_COMPOSED,), "its pattern has no combining marks inside words"),
    "spm-always": ((_SPACES, " ", _MARKS), "it puts a space before a text that begins with one, too"),
    "spm-first": (
        (_SPACES, " ", _MARKS),
        "it puts a space before a text that begins with one, too, and after special tokens",
    ),
}
"""Tokenizer -> texts that llama.cpp itself cuts otherwise, and why; a note of the conversion says so."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true", help="make and convert; in the project's environment")
    mode.add_argument("--read", action="store_true", help="load and compare; in llama.cpp's environment")
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="beginnings of cases' names, joined by commas")
    parser.add_argument("--real", type=Path, help="a real GGUF file to read, write again, and compare with itself")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(options.out)))
    elif options.write:
        write_all(options.out, options.only, options.real)
    else:
        read_all(options.out, options.only)


# --- in the project's environment ---

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "max_position_embeddings": 64,
    "rms_norm_eps": 3e-5,
}
OWN_HEADS = SIZES | {"hidden_size": 40, "head_dim": 12}
GEMMA = OWN_HEADS | {"hidden_size": 48} | {"query_pre_attn_scalar": 12, "sliding_window": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
BERT = {key: SIZES[key] for key in ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers")}
BERT |= {"max_position_embeddings": 64, "type_vocab_size": 2}
GPT2 = {"n_embd": 48, "n_head": 6, "n_layer": 3, "n_positions": 64}
ROPE = {"rope_theta": 10000.0}

# Case -> model type, class, fields, tokenizer, rows of the embedding beyond the tokenizer's, activation's limit.
Case = tuple[str, str, dict[str, Any], str, int, str]
CASES: dict[str, Case] = {
    "llama": ("llama", "LlamaForCausalLM", SIZES, "spm-prefix", 0, "silu"),
    "llama-padded": ("llama", "LlamaForCausalLM", SIZES | {"tie_word_embeddings": True}, "spm-prefix", 20, "silu"),
    "llama-biases": (
        "llama",
        "LlamaForCausalLM",
        SIZES | {"attention_bias": True, "mlp_bias": True},
        "llama-bpe",
        5,
        "silu",
    ),
    "llama-linear": (
        "llama",
        "LlamaForCausalLM",
        SIZES | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}},
        "smollm",
        0,
        "silu",
    ),
    "llama-yarn": (
        "llama",
        "LlamaForCausalLM",
        SIZES
        | {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 16,
            }
        },
        "gpt-2",
        0,
        "silu",
    ),
    "llama-llama3": (
        "llama",
        "LlamaForCausalLM",
        SIZES
        | {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "rope_theta": 1e4,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }
        },
        "llama-bpe",
        0,
        "silu",
    ),
    **{
        f"tokenizer-{kind}": ("llama", "LlamaForCausalLM", SIZES | {"num_hidden_layers": 1}, kind, 0, "silu")
        for kind in ("dbrx", "stablelm2", "tekken", "gpt-4o", "gpt-2-around", "gpt-2-added", "spm-always", "spm-first")
    },
    "llama-no-tokenizer": ("llama", "LlamaForCausalLM", SIZES, "", 0, "silu"),
    "mistral": ("mistral", "MistralForCausalLM", OWN_HEADS | {"sliding_window": None}, "spm-prefix", 3, "silu"),
    "mixtral": (
        "mixtral",
        "MixtralForCausalLM",
        SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2},
        "spm-prefix",
        0,
        "silu",
    ),
    "qwen2": ("qwen2", "Qwen2ForCausalLM", SIZES, "qwen2", 20, "silu"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", OWN_HEADS, "qwen2", 20, "silu"),
    "qwen2_moe": (
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        SIZES | EXPERTS | {"shared_expert_intermediate_size": 40, "norm_topk_prob": False},
        "qwen2",
        0,
        "silu",
    ),
    "qwen3_moe": (
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        OWN_HEADS | EXPERTS | {"norm_topk_prob": True},
        "qwen2",
        0,
        "silu",
    ),
    "gemma": ("gemma", "GemmaForCausalLM", OWN_HEADS, "spm", 0, "gelu"),
    "gemma2": ("gemma2", "Gemma2ForCausalLM", GEMMA, "spm", 7, "gelu"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM", GEMMA | {"num_hidden_layers": 7}, "spm", 0, "gelu"),
    "phi3": ("phi3", "Phi3ForCausalLM", SIZES | {"pad_token_id": 0}, "spm-prefix", 9, "silu"),
    "gpt2": ("gpt2", "GPT2LMHeadModel", GPT2, "gpt-2", 0, "gelu"),
    "gpt2-inner": ("gpt2", "GPT2LMHeadModel", GPT2 | {"n_inner": 80, "layer_norm_epsilon": 1e-3}, "gpt-2", 8, "gelu"),
    "bert": ("bert", "BertModel", BERT, "wordpiece", 0, "gelu"),
    "bert-cased": ("bert", "BertModel", BERT | {"layer_norm_eps": 1e-3}, "wordpiece-cased", 6, "gelu"),
    "nomic_bert": ("nomic_bert", "NomicBertModel", BERT, "wordpiece", 0, "silu"),
}


# Case -> the dtype that the weights have, and are written in.
DTYPES = {f"{name}-{dtype}": dtype for name in ("llama", "gemma2", "bert") for dtype in ("float16", "bfloat16", "q8_0")}

# Fields of a config that a file may not be able to say: case -> the base's fields changed.
VARIANTS: dict[str, dict[str, Any]] = {
    "llama hidden_act gelu": {"hidden_act": "gelu"},
    "llama hidden_act relu": {"hidden_act": "relu"},
    "llama hidden_act swish": {"hidden_act": "swish"},
    "llama attention_bias": {"attention_bias": True},
    "llama mlp_bias": {"mlp_bias": True},
    "llama rms_norm_eps": {"rms_norm_eps": 0.3},
    "llama head_dim": {"head_dim": 16},
    "llama partial_rotary": {"rope_parameters": ROPE | {"rope_type": "default", "partial_rotary_factor": 0.5}},
    "llama dynamic": {"rope_parameters": ROPE | {"rope_type": "dynamic", "factor": 2.0}},
    "llama yarn-beta": {
        "head_dim": 32,
        "rope_parameters": ROPE
        | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 1.5},
    },
    "llama yarn-attention": {
        "rope_parameters": ROPE
        | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": 2.0}
    },
    "mistral sliding_window 4": {"sliding_window": 4},
    "mistral sliding_window 999": {"sliding_window": 999},
    "mistral hidden_act gelu": {"hidden_act": "gelu"},
    "mixtral sliding_window 4": {"sliding_window": 4},
    "mixtral hidden_act gelu": {"hidden_act": "gelu"},
    "qwen2 hidden_act gelu": {"hidden_act": "gelu"},
    "qwen2 windows": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
    "qwen2 yarn": {
        "rope_parameters": ROPE | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    },
    "qwen3 attention_bias": {"attention_bias": True},
    "qwen3 hidden_act relu": {"hidden_act": "relu"},
    "qwen2_moe norm_topk_prob": {"norm_topk_prob": True},
    "qwen2_moe decoder_sparse_step": {"decoder_sparse_step": 2},
    "qwen2_moe hidden_act gelu": {"hidden_act": "gelu"},
    "qwen3_moe norm_topk_prob": {"norm_topk_prob": False},
    "qwen3_moe attention_bias": {"attention_bias": True},
    "gemma hidden_activation relu": {"hidden_activation": "relu", "hidden_act": "relu"},
    "gemma hidden_act gelu": {"hidden_act": "gelu"},
    "gemma attention_bias": {"attention_bias": True},
    "gemma untied": {"tie_word_embeddings": False},
    "gemma2 no attn softcap": {"attn_logit_softcapping": None},
    "gemma2 no final softcap": {"final_logit_softcapping": None},
    "gemma2 caps": {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    "gemma2 query_pre_attn_scalar": {"query_pre_attn_scalar": 100},
    "gemma2 attention_bias": {"attention_bias": True},
    "gemma2 untied": {"tie_word_embeddings": False},
    "gemma2 layer_types": {"layer_types": ["full_attention"] * 3},
    "gemma2 hidden_activation silu": {"hidden_activation": "silu"},
    "gemma3 final softcap": {"final_logit_softcapping": 3.0},
    "gemma3 layer_types": {"layer_types": ["full_attention"] * 7},
    "gemma3 linear": {
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        }
    },
    "gemma3 local theta": {
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 777.0},
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        }
    },
    "gemma3 bidirectional": {"use_bidirectional_attention": True},
    "gemma3 untied": {"tie_word_embeddings": False},
    "phi3 sliding_window 4": {"sliding_window": 4},
    "phi3 partial_rotary": {"rope_parameters": ROPE | {"rope_type": "default", "partial_rotary_factor": 0.5}},
    "phi3 hidden_act gelu": {"hidden_act": "gelu"},
    "phi3 longrope": {
        "max_position_embeddings": 512,
        "original_max_position_embeddings": 256,
        "rope_parameters": ROPE
        | {
            "rope_type": "longrope",
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [2.0, 3.0, 4.0, 5.0],
            "original_max_position_embeddings": 256,
        },
    },
    "gpt2 activation relu": {"activation_function": "relu"},
    "gpt2 activation gelu": {"activation_function": "gelu"},
    "gpt2 scale_attn_weights": {"scale_attn_weights": False},
    "gpt2 scale_attn_by_inverse_layer_idx": {"scale_attn_by_inverse_layer_idx": True},
    "gpt2 untied": {"tie_word_embeddings": False},
    "bert hidden_act relu": {"hidden_act": "relu"},
    "bert hidden_act gelu_new": {"hidden_act": "gelu_new"},
    "bert is_decoder": {"is_decoder": True},
    "bert type_vocab_size 1": {"type_vocab_size": 1},
    "bert layer_norm_eps": {"layer_norm_eps": 0.3},
    "nomic_bert hidden_act gelu": {"hidden_act": "gelu"},
    "nomic_bert partial_rotary": {"rope_parameters": ROPE | {"rope_type": "default", "partial_rotary_factor": 0.5}},
    "nomic_bert theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
}


VARIED = {name.replace(" ", "-") for name in VARIANTS}


def all_cases() -> dict[str, Case]:
    """With the variants, under names that are folders'."""
    found = dict(CASES)
    wide = {"hidden_size": 96, "intermediate_size": 128}  # rows of whole blocks for Q8_0
    for name, dtype in DTYPES.items():
        base = CASES[name.split("-")[0]]
        found[name] = (*base[:2], base[2] | wide, *base[3:5], dtype)
    for name, fields in VARIANTS.items():
        base = CASES[name.split()[0]]
        found[name.replace(" ", "-")] = (*base[:2], base[2] | fields, *base[3:])
    return found


def write_all(out: Path, only: str, real: Path | None) -> None:
    """OUT/<case>/expected.npz, case.json and gguf/ of each; case.json alone says why where nothing was written."""
    for name, case in all_cases().items():
        if name.startswith(tuple(only.split(","))):
            shutil.rmtree(out / name, ignore_errors=True)
            done = write_one(out / name, case, may_refuse=name in VARIED)
            print(name, done.get("refused") or done["notes"], flush=True)
    if real is not None:
        write_real(out / "real-smollm2", real)


def write_one(folder: Path, made: Case, may_refuse: bool) -> dict[str, Any]:
    import torch
    import transformers

    import zoo

    model_type, class_name, fields, kind, padded, activation = made
    tokenizer = make_tokenizer(kind) if kind else None
    rows = (tokenizer.get_vocab_size() if tokenizer else 300) + padded
    config = transformers.AutoConfig.for_model(model_type, vocab_size=rows, **fields)
    config.architectures = [class_name]
    for which, token in (("bos", "<s>"), ("eos", "</s>")):
        if hasattr(config, f"{which}_token_id"):
            setattr(config, f"{which}_token_id", tokenizer.token_to_id(token) if tokenizer else None)
    dtype = activation if activation in DTYPES.values() else None
    source = make_model(getattr(transformers, class_name), config, folder / "source", dtype)
    if tokenizer is not None:
        tokenizer.save(str(folder / "source" / "tokenizer.json"))
    marks = {"bos_token": "<s>", "eos_token": "</s>"}
    if kind.startswith("wordpiece"):
        marks = {f"{part.lower()}_token": f"[{part}]" for part in ("UNK", "SEP", "PAD", "CLS", "MASK")}
    marks["chat_template"] = "{{ messages[0]['content'] }}"
    (folder / "source" / "tokenizer_config.json").write_text(json.dumps(marks))
    case: dict[str, Any] = {
        "activation": activation,
        "rows": rows,
        "known": KNOWN.get(kind),
        "embedding": model_type in ("bert", "nomic_bert"),
    }
    try:
        done = zoo.convert(folder / "source", folder / "gguf", "gguf", dtype=dtype, offline=True, verify=True)
        case["notes"] = list(getattr(done, "notes", []))
    except zoo.ZooError as error:
        case["may be refused"] = may_refuse
        case["refused"] = " ".join(str(error).replace(f"{folder.resolve()}/", "").split())[:400]
    prompts = [np.random.default_rng(SEED + size).integers(3, rows, size).tolist() for size in LENGTHS]
    arrays: dict[str, np.ndarray] = {}
    for dtype in (torch.float64, torch.float32):
        source = source.to(dtype)
        for number, prompt in enumerate(prompts):
            with torch.no_grad():
                found = source(torch.tensor([prompt]))[0][0]
            if not case["embedding"]:
                found = torch.log_softmax(found[-1], -1)
            arrays[f"{str(dtype)[6:]} {number}"] = found.double().numpy()
    np.savez(folder / "expected.npz", **arrays)
    case["prompts"] = prompts
    case["tokens"] = {text: tokenizer.encode(text).ids for text in TEXTS} if tokenizer else {}
    (folder / "case.json").write_text(json.dumps(case))
    return case


def make_model(cls: Any, config: Any, folder: Path, dtype: str | None) -> Any:
    """A model of random weights, biases and norms included, saved in the folder, in 16 bits if that is the dtype."""
    import torch

    made = cls(config).eval()
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in made.parameters():
            scale = 0.2 if parameter.ndim < 2 else 1.2 * parameter[0].numel() ** -0.5
            if parameter.ndim == 1:
                parameter += scale * torch.randn(parameter.shape, generator=generator)
            else:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    if (hasattr(made, "set_experts_implementation") and "moe" in config.model_type) or config.model_type == "mixtral":
        made.set_experts_implementation("eager")
    if dtype in ("float16", "bfloat16"):
        made.to(getattr(torch, dtype))
    made.save_pretrained(folder)
    return made


def make_tokenizer(kind: str) -> Any:
    """A tokenizer of the tokenizers library, cutting text as the published ones of that name do."""
    import tokenizers
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

    if kind.startswith("spm"):
        from converters.formats.gguf.sentencepiece import to_json

        said = json.loads((DATA / "sentencepiece.json").read_text("utf-8"))[
            "llama" if kind == "spm-prefix" else "gemma"
        ]
        prefix = kind != "spm"
        made = tokenizers.Tokenizer.from_str(
            to_json(said["pieces"], said["scores"], said["kinds"], prefix=prefix, begin=1)
        )
        if kind.endswith(("always", "first")):  # as transformers 5 saves it
            made.normalizer = normalizers.Sequence([])
            scheme = kind.rpartition("-")[2]
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        return made
    if kind.startswith("wordpiece"):
        cased = kind.endswith("cased")
        made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer(lowercase=not cased)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        made.train_from_iterator([*TEXTS] * 3, trainers.WordPieceTrainer(vocab_size=260, special_tokens=marks))
        made.post_processor = processors.TemplateProcessing(
            "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        return made
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=kind in ("llama-bpe", "tekken")))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind.startswith("gpt-2"):
        made.pre_tokenizer = level
    elif kind == "smollm":
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
    else:
        pattern = PATTERNS.get(kind) or PATTERNS["qwen2"]
        steps = [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        made.pre_tokenizer = pre_tokenizers.Sequence(steps)
        if kind == "qwen2":
            made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    marks = ["<unk>", "<s>", "</s>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=marks, initial_alphabet=alphabet)
    made.train_from_iterator([*TEXTS, "the cat and the mat sat on the token of 123 cats"] * 3, trainer)
    if kind == "llama-bpe":
        made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    if kind == "gpt-2-around":
        made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1), add_prefix_space=False)
    if kind == "gpt-2-added":
        made.add_tokens(["mats", "foo_bar", " 東京"])
    return made


_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UP, _LOW, _END = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_ANY = r"[^\r\n\p{L}\p{N}]?"
PATTERNS = {
    "llama-bpe": _WORD + r"\p{N}{1,3}" + _REST,
    "dbrx": _WORD + r"\p{N}{1,3}" + _REST,
    "qwen2": _WORD + r"\p{N}" + _REST,
    "stablelm2": _WORD + r"\p{N}" + _REST,
    "tekken": f"{_ANY}{_UP}*{_LOW}+|{_ANY}{_UP}+{_LOW}*|" + r"\p{N}" + _REST.replace("[\\r\\n]*|", "[\\r\\n/]*|", 1),
    "gpt-4o": f"{_ANY}{_UP}*{_LOW}+{_END}|{_ANY}{_UP}+{_LOW}*{_END}|"
    + r"\p{N}{1,3}"
    + _REST.replace("[\\r\\n]*|", "[\\r\\n/]*|", 1),
}


def write_real(folder: Path, path: Path) -> None:
    """A published file, read and written again in float32: what the file's own weights give in float64 is the truth."""
    import tokenizers

    import zoo

    shutil.rmtree(folder, ignore_errors=True)
    (folder / "alone").mkdir(parents=True)
    shutil.copyfile(path, folder / "alone" / "model.gguf")
    zoo.convert(folder / "alone", folder / "source", dtype="float32")
    done = zoo.convert(folder / "source", folder / "gguf", "gguf")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "source" / "tokenizer.json"))
    prompts = ["The capital of France is", "Once upon a time", "def main():\n    return 12345"]
    case: dict[str, Any] = {"activation": "silu, 30 layers", "known": None, "embedding": False, "notes": done.notes}
    case["prompts"] = [tokenizer.encode(prompt).ids for prompt in prompts]
    case["tokens"] = {text: tokenizer.encode(text).ids for text in (*prompts, *TEXTS)}
    arrays = {}
    for dtype, backend in (("float64", "numpy"), ("float32", "torch")):
        model = zoo.load(folder / "source", backend)
        for number, prompt in enumerate(case["prompts"]):
            logits = np.array(model(input_ids=np.array([prompt])).logits.tolist(), np.float64)[0, -1]
            arrays[f"{dtype} {number}"] = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    case["rows"] = len(logits)
    np.savez(folder / "expected.npz", **arrays)
    (folder / "case.json").write_text(json.dumps(case))


# --- in llama.cpp's environment ---


def read_all(out: Path, only: str) -> None:
    """Each case in a process of its own: llama.cpp ends the process where an assertion fails."""
    results = {}
    for folder in sorted(path.parent for path in out.glob("*/case.json")):
        if folder.name.startswith(tuple(only.split(","))):
            command = [sys.executable, __file__, "--read", "--one", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S * 5, check=False)
            lines = done.stdout.strip().splitlines()
            if done.returncode == 0 and lines:
                results[folder.name] = json.loads(lines[-1])
            else:
                said = [
                    line for line in done.stderr.splitlines() if " E " in line or "ASSERT" in line or "Error" in line
                ]
                results[folder.name] = {"ok": False, "reason": " | ".join(said)[-600:].replace(f"{out}/", "")}
            print(folder.name, json.dumps(results[folder.name])[:400], flush=True)
    bad = [name for name, result in results.items() if not result["ok"]]
    print(f"{len(results) - len(bad)} of {len(results)} right; not: {', '.join(bad) or 'none'}")
    if not only:
        environment = {
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("xllamacpp", "numpy")},
            "command": "check_llama_cpp.py --write, then --read",
            "limits": LIMITS,
        }
        text = json.dumps({"environment": environment, "result": results}, indent=1, ensure_ascii=False)
        RESULT.write_text(text + "\n", "utf-8")


def run_one(folder: Path) -> dict[str, Any]:
    case = json.loads((folder / "case.json").read_text())
    if "refused" in case:
        return {"ok": case["may be refused"], "refused": case["refused"]}
    path = folder / "gguf" / "model.gguf"
    if not case["tokens"]:  # the server wants a tokenizer
        return {"ok": loads(path) == case["rows"], "loaded": "by the library alone", "notes": case["notes"]}
    server = serve(path, case["embedding"])
    expected = np.load(folder / "expected.npz")
    worst, own = 0.0, 0.0
    same_top = True
    for number, prompt in enumerate(case["prompts"]):
        wanted, torchs = expected[f"float64 {number}"], expected[f"float32 {number}"]
        found = (hidden_states if case["embedding"] else log_probabilities)(server, prompt, case["rows"])
        assert found.shape == wanted.shape and np.isfinite(found).all(), (found.shape, wanted.shape)
        scale = np.abs(wanted).max()
        worst = max(worst, float(np.abs(found - wanted).max() / scale))
        own = max(own, float(np.abs(torchs - wanted).max() / scale))
        same_top &= bool((found.argmax(-1) == wanted.argmax(-1)).all())
    limit = LIMITS[case["activation"]]
    result: dict[str, Any] = {"largest difference": worst, "limit": limit, "torch float32": own, "same top": same_top}
    wrong, (known, why) = {}, case["known"] or ((), "")
    for text, ids in case["tokens"].items():
        got = post(server, "/tokenize", content=text, add_special=True, parse_special=True)["tokens"]
        if (got == ids) == (text in known):
            wrong[text] = {"tokenizers": ids, "llama.cpp": got}
    result |= {"texts": len(case["tokens"]), "tokenized otherwise": wrong, "known": dict.fromkeys(known, why)}
    rounded = case["activation"] in DTYPES.values()  # where two may change places
    return {"ok": not wrong and worst <= limit and (same_top or rounded)} | result | {"notes": case["notes"]}


def loads(path: Path) -> int:
    """How many tokens a model has that llama.cpp's library loads from a file, by its C interface.

    The parameters are a struct whose size is the library's own business; it is passed on the stack, where more room
    than it takes does no harm.
    """
    import ctypes

    import xllamacpp.xllamacpp as extension

    class Params(ctypes.Structure):
        _fields_ = [("room", ctypes.c_byte * 1024)]

    library = ctypes.CDLL(extension.__file__)
    library.llama_model_default_params.restype = Params
    library.llama_model_load_from_file.argtypes = [ctypes.c_char_p, Params]
    for name in ("llama_model_load_from_file", "llama_model_get_vocab"):
        getattr(library, name).restype = ctypes.c_void_p
    for name in ("llama_model_get_vocab", "llama_vocab_n_tokens"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    model = library.llama_model_load_from_file(bytes(path), library.llama_model_default_params())
    return library.llama_vocab_n_tokens(library.llama_model_get_vocab(model)) if model else -1


def serve(path: Path, embedding: bool) -> Any:
    """llama.cpp's server in this process, on a port of its own."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.port = 64, 1, 0
    params.warmup = params.fit_params = False
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    if embedding:
        params.embedding, params.embd_normalize = True, -1
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_NONE
    return xllamacpp.Server(params)


def post(server: Any, where: str, **body: Any) -> Any:
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.listening_address + where, json.dumps(body).encode(), head)
    with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
        return json.load(answer)


def log_probabilities(server: Any, prompt: list[int], rows: int) -> np.ndarray:
    """Of the token after the prompt: [rows].

    The answer has them only where what is sampled is whole characters, so a letter is made the likeliest; that is done
    to a copy of the logits.
    """
    letter = post(server, "/tokenize", content="a", add_special=False)["tokens"][-1]
    asked = {"prompt": prompt, "n_predict": 1, "n_probs": rows, "temperature": 0, "cache_prompt": False}
    said = post(server, "/completion", **asked, ignore_eos=True, logit_bias=[[letter, 1e4]])
    found = np.full(rows, np.nan)
    for token in said["completion_probabilities"][0]["top_logprobs"]:
        found[token["id"]] = token["logprob"]
    return found


def hidden_states(server: Any, prompt: list[int], _: int) -> np.ndarray:
    """[len(prompt), features]."""
    return np.array(post(server, "/embeddings", content=prompt, embd_normalize=-1)[0]["embedding"])


if __name__ == "__main__":
    main()
