"""Tiny checkpoints as transformers 4.57 writes them for torch, TensorFlow and Flax, over some 75 model types.

    TF_USE_LEGACY_KERAS=1 <oracle python> tests/oracle/make_checkpoints.py --out DIR [--only type,type]

Runs in an environment of its own (requirements.txt beside this file). transformers 5 has no TensorFlow or Flax models
any more, so these files, and what torch computed from the same weights, are what our readers are tested against.

Each (model type, head) gets a folder DIR/<type>-<head> with

    torch/  config.json, model.safetensors        tf/  config.json, tf_model.h5       flax/  config.json, msgpack
    inputs.npz, torch_out.npz                     what torch computed, by output name (nested names joined by dots)
    report.json                                   what was written, and how far its outputs are from torch's
    tf_names.json, flax_names.json                names, shapes and order in the file
    tf_map.json, flax_map.json                    for each name in the file the torch tensors with the same values,
                                                  and the axes that turn torch's layout into the file's

The maps are found by value, whatever the names, so they show which weight a loader of transformers left at its random
start ("unmatched") and which torch tensors the file has no trace of ("absent").

Each model type has a process of its own: a crash skips that type, and memory is given back. A folder with a report.json
is not made again. No two sizes of a config agree where the architecture allows it, and every weight is drawn here:
a fresh model has norm weights of 1 and biases of 0, and a reader that drops either would still agree with it.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
os.environ |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}

import numpy as np

ROWS, TOKENS, DECODER_TOKENS, CHOICES, LABELS = 2, 7, 5, 3, 9
TOLERANCE = 1e-4  # of an output's largest value; float32 in three frameworks on tiny models stays under a tenth of it


def _without(sizes: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in sizes.items() if key not in names}


_TEXT: dict[str, Any] = {
    "hidden_size": 24,  # 4 heads of 6
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "vocab_size": 61,
    "max_position_embeddings": 31,
}
_TYPED = _TEXT | {"type_vocab_size": 3}
_LLAMA = _TEXT | {"hidden_size": 48, "num_attention_heads": 8, "num_key_value_heads": 4}  # 8 heads of 6
_SEQ2SEQ: dict[str, Any] = {
    "d_model": 48,  # 4 heads of 12 in the encoder, 8 of 6 in the decoder
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 53,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "vocab_size": 61,
    "max_position_embeddings": 31,
}
_MARIAN = {"decoder_vocab_size": 61, "pad_token_id": 60, "decoder_start_token_id": 60, "scale_embedding": True}
_VISION: dict[str, Any] = {  # square: TensorFlow's and Flax's models take one number for the size
    "hidden_size": 48,  # 6 heads of 8
    "num_attention_heads": 6,
    "intermediate_size": 61,
    "num_hidden_layers": 2,
    "image_size": 40,
    "patch_size": 10,
    "num_channels": 5,
}
_AUDIO = _without(_TEXT, "max_position_embeddings") | {
    "conv_dim": (14, 14, 14),  # TensorFlow's take it to be the same in all
    "conv_kernel": (10, 6, 4),
    "conv_stride": (5, 4, 3),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 15,
    "num_codevectors_per_group": 11,
    "num_codevector_groups": 2,
    "codevector_dim": 26,
    "proj_codevector_dim": 19,
}
_STABLE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
_T5: dict[str, Any] = {
    "d_model": 40,  # 4 heads of 6 make 24
    "d_kv": 6,
    "num_heads": 4,
    "d_ff": 37,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "vocab_size": 61,
    "relative_attention_num_buckets": 10,
    "relative_attention_max_distance": 13,
}
_XLM: dict[str, Any] = {"emb_dim": 24, "n_heads": 4, "n_layers": 2, "vocab_size": 61, "max_position_embeddings": 31}
_XLM |= {"initializer_range": 0.02}  # TensorFlow's multiple choice asks for it; the config class has none
_GPT: dict[str, Any] = {"n_embd": 24, "n_head": 4, "n_layer": 2, "vocab_size": 61, "n_positions": 31}
_CONVNEXT: dict[str, Any] = {"num_channels": 5, "num_stages": 3, "hidden_sizes": [12, 20, 28], "depths": [1, 2, 1]}
_CLIP_IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}  # as published: the end is the highest id
_BEIT = _VISION | {"use_relative_position_bias": True, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]}
_BEIT |= {"pool_scales": [1, 2], "auxiliary_channels": 22, "use_mask_token": True}
_PYRAMID: dict[str, Any] = {"hidden_sizes": [8, 20, 30, 44], "depths": [1, 2, 1, 1], "num_channels": 5}

CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _TYPED,
    "roberta": _TYPED,
    "xlm-roberta": _TYPED,
    "camembert": _TEXT | {"type_vocab_size": 1},
    "distilbert": {
        "dim": 24,
        "n_heads": 4,
        "hidden_dim": 37,
        "n_layers": 2,
        "vocab_size": 61,
        "max_position_embeddings": 31,
    },
    "albert": _TYPED | {"embedding_size": 14},
    "electra": _TYPED | {"embedding_size": 14},
    "mpnet": _TEXT,
    "deberta": _TEXT
    | {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_biased_input": False,
        "max_relative_positions": 19,
        "pooler_hidden_size": 24,
        "type_vocab_size": 3,
    },
    "deberta-v2": _TEXT
    | {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "position_buckets": 5,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "pooler_hidden_size": 24,
        "type_vocab_size": 0,
    },
    "esm": _TEXT | {"position_embedding_type": "rotary", "pad_token_id": 1, "mask_token_id": 3, "token_dropout": True},
    "roformer": _TYPED | {"embedding_size": 14},
    "mobilebert": _TYPED
    | {
        "embedding_size": 14,
        "intra_bottleneck_size": 16,
        "num_feedforward_networks": 3,
        "normalization_type": "no_norm",
    },
    "funnel": {
        "d_model": 24,
        "n_head": 4,
        "d_head": 5,
        "d_inner": 37,
        "block_sizes": [1, 2],
        "num_decoder_layers": 2,
        "vocab_size": 61,
        "type_vocab_size": 3,
    },
    "xlnet": {"d_model": 24, "n_head": 4, "n_layer": 2, "d_inner": 37, "vocab_size": 61},
    "layoutlm": _TYPED | {"max_2d_position_embeddings": 43},
    "convbert": _TYPED
    | {"embedding_size": 14, "head_ratio": 2, "conv_kernel_size": 5, "num_groups": 2, "intermediate_size": 38},
    "rembert": _TYPED | {"input_embedding_size": 14, "output_embedding_size": 18},
    "flaubert": _XLM,
    "xlm": _XLM | {"n_langs": 3, "use_lang_emb": True},
    "longformer": _TYPED | {"attention_window": [4, 4]},
    "led": _without(_SEQ2SEQ, "max_position_embeddings")
    | {"attention_window": 4, "max_encoder_position_embeddings": 31, "max_decoder_position_embeddings": 29},
    "tapas": _TEXT | {"type_vocab_sizes": [3, 8, 10, 2, 11, 12, 6], "num_aggregation_labels": 4},
    "lxmert": _without(_TEXT, "num_hidden_layers")
    | {
        "type_vocab_size": 3,
        "l_layers": 2,
        "x_layers": 1,
        "r_layers": 3,
        "visual_feat_dim": 18,
        "num_qa_labels": 11,
        "num_object_labels": 13,
        "num_attr_labels": 15,
    },
    "ctrl": _GPT | {"dff": 37},
    "openai-gpt": _GPT,
    "transfo-xl": {
        "vocab_size": 61,
        "cutoffs": [20, 40],
        "d_model": 24,
        "d_embed": 20,
        "n_head": 4,
        "d_head": 5,
        "d_inner": 37,
        "div_val": 2,
        "n_layer": 2,
        "mem_len": 9,
        "clamp_len": 11,
    },
    "big_bird": _TYPED | {"attention_type": "original_full"},
    "roberta-prelayernorm": _TYPED,
    "gpt2": _GPT | {"n_inner": 37, "bos_token_id": 2, "eos_token_id": 2},
    "gptj": _GPT | {"n_inner": 37, "rotary_dim": 4, "bos_token_id": 2, "eos_token_id": 2},
    "gpt_neo": {
        "hidden_size": 24,
        "num_heads": 4,
        "num_layers": 2,
        "intermediate_size": 37,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 4,
        "vocab_size": 61,
        "max_position_embeddings": 31,
        "bos_token_id": 2,
        "eos_token_id": 2,
    },
    "llama": _LLAMA,
    "mistral": _LLAMA,  # a window longer than the text: TensorFlow's has none, Flax's is one longer than torch's
    "gemma": _LLAMA | {"hidden_size": 40, "head_dim": 6},  # 8 heads of 6 make 48, not 40
    "bloom": {"hidden_size": 48, "n_head": 8, "n_layer": 2, "vocab_size": 61},  # Flax fails at no power of two
    "opt": _without(_TEXT, "intermediate_size") | {"ffn_dim": 37, "word_embed_proj_dim": 14},
    "xglm": {
        "d_model": 24,
        "attention_heads": 4,
        "ffn_dim": 37,
        "num_layers": 2,
        "vocab_size": 61,
        "max_position_embeddings": 31,
    },
    "t5": _T5,
    "mt5": _T5,
    "longt5": _T5 | {"local_radius": 3, "encoder_attention_type": "local"},
    "bart": _SEQ2SEQ,
    "mbart": _SEQ2SEQ,
    "pegasus": _SEQ2SEQ,
    "marian": _SEQ2SEQ | _MARIAN | {"activation_function": "swish"},
    "blenderbot": _SEQ2SEQ,
    "blenderbot-small": _SEQ2SEQ,
    "whisper": _without(_SEQ2SEQ, "max_position_embeddings")
    | {
        "num_mel_bins": 10,
        "max_source_positions": 23,
        "max_target_positions": 31,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "decoder_start_token_id": 3,
        "begin_suppress_tokens": None,
        "classifier_proj_size": 15,
    },
    "speech_to_text": _without(_SEQ2SEQ, "max_position_embeddings")
    | {
        "input_feat_per_channel": 10,
        "num_conv_layers": 2,
        "conv_kernel_sizes": [5, 3],
        "conv_channels": 14,
        "max_source_positions": 43,
        "max_target_positions": 31,
    },
    "wav2vec2": _AUDIO | {"feat_extract_norm": "group"},
    "hubert": _AUDIO | _STABLE,
    "vit": _VISION,
    "vit_mae": _VISION
    | {
        "decoder_hidden_size": 36,
        "decoder_num_attention_heads": 3,
        "decoder_num_hidden_layers": 1,
        "decoder_intermediate_size": 29,
        "mask_ratio": 0.5,
    },
    "deit": _VISION | {"encoder_stride": 10},
    "beit": _BEIT,
    "dinov2": {
        "hidden_size": 48,
        "num_attention_heads": 4,
        "mlp_ratio": 3,
        "num_hidden_layers": 2,
        "image_size": 24,
        "patch_size": 4,
        "num_channels": 3,
    },
    "data2vec-vision": _BEIT | {"image_size": 48, "patch_size": 8},
    "resnet": {"num_channels": 3, "embedding_size": 14, "hidden_sizes": [16, 24, 40], "depths": [1, 2, 1]},
    "regnet": {
        "num_channels": 3,  # Flax's takes no other
        "embedding_size": 14,
        "hidden_sizes": [16, 24, 40],
        "depths": [1, 2, 1],
        "groups_width": 8,
    },
    "convnext": _CONVNEXT,
    "convnextv2": _CONVNEXT,
    "swin": {
        "image_size": 24,
        "patch_size": 2,
        "num_channels": 5,
        "embed_dim": 24,
        "depths": [2, 2],
        "num_heads": [4, 8],
        "window_size": 4,
        "mlp_ratio": 2.5,
        "encoder_stride": 4,
    },
    "swiftformer": {
        "image_size": 64,
        "num_channels": 3,
        "depths": [1, 2, 1, 1],
        "embed_dims": [8, 20, 30, 44],
        "mlp_ratio": 3,
    },
    "cvt": {
        "image_size": 64,  # TensorFlow's asks for it; the config class has none
        "num_channels": 5,
        "embed_dim": [16, 24, 40],
        "num_heads": [1, 2, 4],
        "depth": [1, 2, 3],  # at least its number each
        "mlp_ratio": [3.0, 2.0, 2.5],
    },
    "efficientformer": _PYRAMID
    | {
        "image_size": 64,
        "resolution": 2,
        "dim": 44,
        "key_dim": 6,
        "attention_ratio": 3,
        "num_attention_heads": 4,
        "mlp_expansion_ratio": 3,
        "num_meta3d_blocks": 1,
        "hidden_size": 44,  # torch's class with a teacher asks for it; the config class has none
    },
    "segformer": _PYRAMID
    | {"num_attention_heads": [1, 2, 3, 4], "mlp_ratios": [3, 2, 4, 3], "decoder_hidden_size": 18, "image_size": 64},
    "mobilevit": {
        "num_channels": 5,
        "image_size": 64,
        "patch_size": 2,
        "hidden_sizes": [24, 36, 52],
        "neck_hidden_sizes": [8, 12, 16, 20, 28, 32, 44],
        "num_attention_heads": 4,
        "mlp_ratio": 2.5,
        "expand_ratio": 3.0,
        "aspp_out_channels": 18,
        "atrous_rates": [1, 2, 3],
    },
    "clip": {
        "text_config": _TEXT | _CLIP_IDS | {"projection_dim": 20},
        "vision_config": _VISION | {"projection_dim": 20, "num_channels": 3},  # Flax's takes no other
        "projection_dim": 20,
    },
    "blip": {
        "text_config": _TEXT  # as wide as the image's: its decoder attends to text as well
        | {"hidden_size": 48, "encoder_hidden_size": 48, "projection_dim": 20, "bos_token_id": 1, "eos_token_id": 2},
        "vision_config": _VISION | {"projection_dim": 20, "num_channels": 3},
        "projection_dim": 20,
        "image_text_hidden_size": 22,
    },
    "groupvit": {
        "text_config": _TEXT | _CLIP_IDS,
        "vision_config": _without(_VISION, "num_channels")
        | {
            "depths": [1, 2, 1],
            "num_hidden_layers": 4,
            "num_group_tokens": [8, 4, 0],
            "num_output_groups": [8, 4, 4],
            "patch_size": 8,
        },
        "projection_dim": 20,
        "projection_intermediate_dim": 26,
    },
    "vision-text-dual-encoder": {
        "text_config": _TYPED,
        "vision_config": _VISION | {"num_channels": 3},  # Flax's takes no other
        "projection_dim": 20,
    },
    "sam": {
        "vision_config": {
            "hidden_size": 24,
            "output_channels": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_channels": 3,
            "image_size": 40,
            "patch_size": 8,
            "window_size": 2,
            "global_attn_indexes": [1],
            "num_pos_feats": 8,
            "mlp_dim": 37,
        },
        "prompt_encoder_config": {"hidden_size": 16, "image_size": 40, "patch_size": 8, "mask_input_channels": 12},
        "mask_decoder_config": {
            "hidden_size": 16,
            "mlp_dim": 26,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 22,
            "num_multimask_outputs": 3,
        },
    },
}

# A second shape of a type, where its checkpoints come in several: name -> (type, what differs).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec2_stable": ("wav2vec2", _STABLE),  # the only kind Flax has
    "hubert_group": ("hubert", {"feat_extract_norm": "group", "conv_bias": False, "do_stable_layer_norm": False}),
    "t5_gated": ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),  # as in T5 v1.1
    "longt5_tglobal": ("longt5", {"encoder_attention_type": "transient-global", "global_block_size": 3}),
    "albert_groups": ("albert", {"num_hidden_groups": 2}),
    "esm_absolute": ("esm", {"position_embedding_type": "absolute", "emb_layer_norm_before": True}),
    "roformer_plain": ("roformer", {"embedding_size": 24}),  # the only kind Flax has
    "transfo-xl_wide": ("transfo-xl", {"d_embed": 24}),  # its classifier takes them to be as wide as the model
    "bert_untied": ("bert", {"tie_word_embeddings": False}),
    "opt_post": ("opt", {"do_layer_norm_before": False}),  # as in opt-350m
    "resnet_basic": ("resnet", {"layer_type": "basic"}),
    "regnet_x": ("regnet", {"layer_type": "x"}),
    "flaubert_pre": ("flaubert", {"pre_norm": True}),
    "deberta-v2_conv": ("deberta-v2", {"conv_kernel_size": 3, "conv_act": "gelu", "type_vocab_size": 3}),
    "mobilebert_norm": ("mobilebert", {"normalization_type": "layer_norm", "num_feedforward_networks": 1}),
}

TRIAL = ("bert", "gpt2", "t5", "vit", "resnet", "whisper", "wav2vec2", "wav2vec2_stable")  # these first

# The name of a head, and of transformers' mapping that has its classes. The first mapping that names a class wins.
_HEADS = {
    "base": "MODEL",
    "seq2seq-lm": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM",
    "masked-lm": "MODEL_FOR_MASKED_LM",
    "causal-lm": "MODEL_FOR_CAUSAL_LM",
    "speech-seq2seq": "MODEL_FOR_SPEECH_SEQ_2_SEQ",
    "vision2seq": "MODEL_FOR_VISION_2_SEQ",
    "sequence-classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION",
    "token-classification": "MODEL_FOR_TOKEN_CLASSIFICATION",
    "question-answering": "MODEL_FOR_QUESTION_ANSWERING",
    "table-question-answering": "MODEL_FOR_TABLE_QUESTION_ANSWERING",
    "document-question-answering": "MODEL_FOR_DOCUMENT_QUESTION_ANSWERING",
    "multiple-choice": "MODEL_FOR_MULTIPLE_CHOICE",
    "next-sentence": "MODEL_FOR_NEXT_SENTENCE_PREDICTION",
    "image-classification": "MODEL_FOR_IMAGE_CLASSIFICATION",
    "audio-classification": "MODEL_FOR_AUDIO_CLASSIFICATION",
    "semantic-segmentation": "MODEL_FOR_SEMANTIC_SEGMENTATION",
    "masked-image-modeling": "MODEL_FOR_MASKED_IMAGE_MODELING",
    "text-encoding": "MODEL_FOR_TEXT_ENCODING",
    "pretraining": "MODEL_FOR_PRETRAINING",
}
# Classes no mapping has (torch's name; TensorFlow's and Flax's are looked up from it).
_EXTRA_HEADS: dict[str, dict[str, str]] = {
    "wav2vec2": {"ctc": "Wav2Vec2ForCTC"},
    "hubert": {"ctc": "HubertForCTC"},
    "gpt2": {"double-heads": "GPT2DoubleHeadsModel"},
    "openai-gpt": {"double-heads": "OpenAIGPTDoubleHeadsModel"},
    "gptj": {"question-answering": "GPTJForQuestionAnswering"},
    "beit": {"masked-image-modeling": "BeitForMaskedImageModeling"},
    "deit": {"image-classification-teacher": "DeiTForImageClassificationWithTeacher"},
    "efficientformer": {"image-classification-teacher": "EfficientFormerForImageClassificationWithTeacher"},
    "clip": {
        "text": "CLIPTextModel",
        "text-projection": "CLIPTextModelWithProjection",
        "vision": "CLIPVisionModel",
    },
    "groupvit": {"text": "GroupViTTextModel", "vision": "GroupViTVisionModel"},
    "blip": {
        "question-answering": "BlipForQuestionAnswering",
        "retrieval": "BlipForImageTextRetrieval",
        "text": "BlipTextModel",
        "vision": "BlipVisionModel",
    },
    "sam": {"vision": "SamVisionModel"},
}
_IS_DECODER = set("bert roberta xlm-roberta camembert electra rembert roformer roberta-prelayernorm big_bird".split())
_IMAGES = set("vit vit_mae deit beit dinov2 data2vec-vision resnet regnet convnext convnextv2 swin".split())
_IMAGES |= set("swiftformer cvt efficientformer segformer mobilevit clip blip groupvit sam".split())
_IMAGES |= {"vision-text-dual-encoder"}
_IMAGE_AND_TEXT = {"clip", "blip", "groupvit", "vision-text-dual-encoder"}
_TOKEN_TYPES = set("bert roberta xlm-roberta albert electra deberta roformer mobilebert funnel layoutlm".split())
_TOKEN_TYPES |= set("convbert rembert longformer lxmert big_bird roberta-prelayernorm".split())
_SEQ2SEQ_TEXT = set("led t5 mt5 longt5 bart mbart pegasus marian blenderbot blenderbot-small".split())
_AUDIO_TYPES = {"wav2vec2", "hubert"}
_FEATURE_TYPES = {"whisper", "speech_to_text"}
_STATE = {"past_key_values", "mems", "loss", "losses", "hidden_states", "attentions"}  # not outputs worth comparing


@dataclass
class Case:
    """One model type with one head; `frameworks` gives the classes by framework, "torch" always among them."""

    name: str
    head: str
    frameworks: dict[str, str]

    @property
    def model_type(self) -> str:
        return VARIANTS[self.name][0] if self.name in VARIANTS else self.name

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.head}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="where the folders go")
    parser.add_argument("--only", default="", help="model types or variants, joined by commas")
    parser.add_argument("--heads", default="", help="heads, joined by commas; all without it")
    parser.add_argument("--again", action="store_true", help="make folders that have a report again")
    parser.add_argument("--timeout", type=int, default=900, help="seconds for one model type")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    everything = [*TRIAL, *(name for name in [*CONFIGS, *VARIANTS] if name not in TRIAL)]
    names = args.only.split(",") if args.only else everything
    if unknown := set(names) - set(everything):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(everything)}")
    heads = set(args.heads.split(",")) if args.heads else None
    if args.worker:
        for name in names:
            make_all(name, heads, args.out, args.again)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (marker := args.out / f".done-{name}").exists() and not args.again and not heads:
            continue
        options = [f"--out={args.out}", f"--only={name}", f"--heads={args.heads}"] + ["--again"] * args.again
        start = time.monotonic()
        try:
            code: int | str = subprocess.run(
                [sys.executable, __file__, "--worker", *options], timeout=args.timeout, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = "timeout"
        if code == 0 and not heads:
            marker.touch()
        print(f"== {name}: {code} after {time.monotonic() - start:.0f} s", flush=True)
    summarize(args.out)


def summarize(out: Path) -> None:
    """Writes OUT/summary.json and prints a line for each framework's file that is not there or not verified."""
    reports = {path.parent.name: json.loads(path.read_text()) for path in sorted(out.glob("*/report.json"))}
    (out / "summary.json").write_text(json.dumps(reports, indent=1))
    for framework in ("tf", "flax"):
        found = {name: report[framework] for name, report in reports.items() if framework in report}
        written = sum(entry["written"] for entry in found.values())
        verified = sum(entry["verified"] for entry in found.values())
        print(f"{framework}: {len(found)} to write, {written} written, {verified} verified")
        for name, entry in found.items():
            if not entry["verified"]:
                print(f"  {name}: {(entry.get('reason') or 'differs')[:200]}")


def folders(checkpoints: Path, only: str = "", sample: int = 0, seed: int = 0) -> list[str]:
    """Names of what was written whole; with `sample` one head, by chance, of so many types, by chance."""
    names = [path.parent.name for path in sorted(checkpoints.glob("*/report.json"))]
    chosen = [name for name in names if name.startswith(tuple(only.split(",")))]
    if not sample:
        return chosen
    heads: dict[str, list[str]] = {}
    for name in chosen:
        heads.setdefault(json.loads((checkpoints / name / "report.json").read_text())["type"], []).append(name)
    chance = random.Random(seed)
    return sorted(chance.choice(heads[kind]) for kind in chance.sample(sorted(heads), min(sample, len(heads))))


def cases(name: str) -> Iterator[Case]:
    """The heads of a type (or variant) that TensorFlow or Flax has, each set of classes once."""
    import transformers
    from transformers.models.auto import modeling_auto, modeling_flax_auto, modeling_tf_auto

    model_type = VARIANTS[name][0] if name in VARIANTS else name

    def exists(class_name: str) -> bool:
        try:
            return not type(getattr(transformers, class_name)).__name__.startswith("Dummy")
        except (AttributeError, ImportError):
            return False

    def named(module: Any, mapping: str) -> list[str]:
        found = getattr(module, f"{mapping}_MAPPING_NAMES", {}).get(model_type, ())
        return [found] if isinstance(found, str) else list(found)

    seen: set[str] = set()
    for head, mapping in _HEADS.items():
        tf, flax = named(modeling_tf_auto, f"TF_{mapping}"), named(modeling_flax_auto, f"FLAX_{mapping}")
        for number, (tf_class, flax_class) in enumerate(itertools.zip_longest(tf, flax)):
            plain = (tf_class or "").removeprefix("TF") or flax_class.removeprefix("Flax")
            torch_class = plain if exists(plain) else next(iter(named(modeling_auto, mapping)), None)
            if torch_class is None or torch_class in seen or not exists(torch_class):
                continue
            seen.add(torch_class)
            guesses = {"tf": tf_class or f"TF{torch_class}", "flax": flax_class or f"Flax{torch_class}"}
            classes = {"torch": torch_class} | {key: value for key, value in guesses.items() if exists(value)}
            yield Case(name, head + ("" if number == 0 else f"-{number + 1}"), classes)
    for head, torch_class in _EXTRA_HEADS.get(model_type, {}).items():
        if torch_class not in seen and exists(torch_class):
            others = {"tf": f"TF{torch_class}", "flax": f"Flax{torch_class}"}
            found = {key: value for key, value in others.items() if exists(value)}
            yield Case(name, head, {"torch": torch_class} | found)


def make_all(name: str, heads: set[str] | None, out: Path, again: bool) -> None:
    """Makes the folders of one type in this process."""
    _prepare()
    for case in cases(name):
        folder = out / case.folder
        if (heads and case.head not in heads) or ((folder / "report.json").exists() and not again):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        start = time.monotonic()
        report = make(case, folder)
        (folder / "report.json").write_text(json.dumps(report, indent=1))
        words = []
        for framework in ("torch", "tf", "flax"):
            if entry := report.get(framework):
                done = entry.get("verified", entry["written"])
                words.append(f"{framework} {'ok' if done else 'FAILED ' + str(entry.get('reason'))[:150]}")
        print(f"{case.folder}: {'; '.join(words)} ({time.monotonic() - start:.1f} s)", flush=True)


def _prepare() -> None:
    import tensorflow as tf
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    torch.set_num_threads(1)


def make(case: Case, folder: Path) -> dict[str, Any]:
    """Writes one case's files into an empty folder and returns its report."""
    import torch
    from safetensors.numpy import load_file
    from safetensors.torch import save_file

    report: dict[str, Any] = {"type": case.model_type, "head": case.head, "classes": case.frameworks}
    try:
        model = build(case)
        inputs = make_inputs(case, model.config)
        model.save_pretrained(folder / "torch", safe_serialization=True)
        (folder / "torch" / "generation_config.json").unlink(missing_ok=True)
        np.savez(folder / "inputs.npz", **inputs)
        with torch.no_grad():
            taken, _ = _accepted(model.forward, inputs)
            cacheless, _ = _accepted(model.forward, {"use_cache": False})  # BartForCausalLM fails with a cache
            outputs = flatten(model(**{key: torch.from_numpy(value) for key, value in taken.items()}, **cacheless))
        np.savez(folder / "torch_out.npz", **outputs)
        weights = load_file(folder / "torch" / "model.safetensors")
        # The other frameworks' loaders do not find every weight from the one it is tied to (ALBERT's decoder/bias).
        full = {key: value.clone().contiguous() for key, value in model.state_dict().items()}
        shutil.copytree(folder / "torch", folder / "source")
        save_file(full, folder / "source" / "model.safetensors", metadata={"format": "pt"})
        finite = all(np.isfinite(value).all() for value in outputs.values())
        report["torch"] = {"written": True, "verified": finite, "scale": {k: _scale(v) for k, v in outputs.items()}}
    except Exception as error:
        report["torch"] = {"written": False, "verified": False} | _failure(error)
        return report
    for framework, write in (("tf", write_tf), ("flax", write_flax)):
        if framework in case.frameworks:
            report[framework] = {"written": False, "verified": False}
            try:
                write(case, folder, inputs, outputs, weights, report[framework])
            except Exception as error:
                report[framework] |= _failure(error)
    shutil.rmtree(folder / "source", ignore_errors=True)
    return report


def config(case: Case) -> Any:
    """The tiny config of a case, flags of its head included."""
    from transformers import AutoConfig, VisionTextDualEncoderConfig

    # A start and an end; ALBERT's sentence order.
    labels = 2 if case.head.endswith(("question-answering", "pretraining")) else LABELS
    values = {"num_labels": labels} | CONFIGS[case.model_type] | VARIANTS.get(case.name, ("", {}))[1]
    if case.head.startswith("causal-lm") and case.model_type in _IS_DECODER:
        values["is_decoder"] = True
    if case.model_type == "vision-text-dual-encoder":
        parts = [
            AutoConfig.for_model(kind, **values[f"{part}_config"])
            for part, kind in (("vision", "vit"), ("text", "bert"))
        ]
        made = VisionTextDualEncoderConfig.from_vision_text_configs(*parts, projection_dim=values["projection_dim"])
    else:
        made = AutoConfig.for_model(case.model_type, **values)
    if getattr(made, "pad_token_id", 0) is None:  # to classify, these look for the last token that is no padding
        made.pad_token_id = 0
    return made


def build(case: Case) -> Any:
    """The torch model in eval mode; its values depend on the case alone."""
    import torch
    import transformers

    seed = int(hashlib.sha256(case.folder.encode()).hexdigest()[:8], 16)
    torch.manual_seed(seed)
    if case.model_type == "transfo-xl":  # it calls type_as(dtype=...), which torch does not have
        type_as = torch.Tensor.type_as
        torch.Tensor.type_as = lambda self, *args, dtype=None: self.to(dtype) if dtype else type_as(self, *args)
    made = config(case)
    torch_class = getattr(transformers, case.frameworks["torch"])
    wanted = torch_class.config_class
    if not isinstance(made, wanted):  # a part of a composite model
        part = "text_config" if case.head.startswith("text") else "vision_config"
        made = getattr(made, part)
    made._attn_implementation = "eager"
    model = torch_class(made).eval()
    generator = torch.Generator().manual_seed(seed)
    seen: set[int] = set()  # a tied weight is drawn once, in place
    with torch.no_grad():
        for path, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad and id(parameter) not in seen:  # no gradient: a table of sinusoids
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(_draw(module, f"{path}.{name}", parameter, noise))
                seen.add(id(parameter))
            for name, buffer in module.named_buffers(recurse=False):
                if name == "running_mean":
                    buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
                elif name == "running_var":
                    buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
                elif name == "final_logits_bias":
                    buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
    return model


def _draw(module: Any, path: str, old: Any, noise: Any) -> Any:
    """A parameter's value from unit noise: outputs keep a scale near 1."""
    from torch import nn

    kind, name = type(module).__name__, path.rpartition(".")[2]
    if name.endswith("bias") and noise.ndim == 1:
        return 0.2 * noise
    if "Norm" in kind:  # around what a fresh one has: 1, or 0 where the module adds the 1 itself
        return old + 0.2 * noise
    if name == "original0":  # weight_norm's lengths, [1, 1, kernel]: those of a weight drawn as below
        return (1 + 0.3 * noise).abs() * (module.original1.shape[0] / noise.numel()) ** 0.5
    if name == "logit_scale":
        return 1.5 + 0.3 * noise
    if any(part in name for part in ("lambda", "gamma", "layer_scale")):
        return 1 + 0.2 * noise
    if isinstance(module, nn.Embedding):
        return 0.5 * noise
    if noise.ndim < 2 or ("weight" not in name and name != "original1"):
        return 0.3 * noise  # class tokens, positions
    fan_in = noise.shape[0] if kind == "Conv1D" else noise[0].numel()
    return noise * (2.0 / fan_in) ** 0.5


def make_inputs(case: Case, made: Any) -> dict[str, np.ndarray]:
    """Seeded inputs by the names of torch's forward: ids and masks int64, all else float32, images [B, C, H, W].

    The last row of text is padded at its end. Text for multiple choice is [B, choices, T]."""
    rng = np.random.default_rng(int(hashlib.sha256(case.folder.encode()).hexdigest()[:8], 16))
    kind, result = case.model_type, {}
    if kind in _AUDIO_TYPES:
        return {"input_values": rng.normal(size=(ROWS, 1201)).astype(np.float32)}
    if kind in _FEATURE_TYPES:
        frames = 46 if kind == "whisper" else 33
        shape = (ROWS, 10, frames) if kind == "whisper" else (ROWS, frames, 10)
        result["input_features"] = rng.normal(size=shape).astype(np.float32)
        if "audio-classification" not in case.head:
            result["decoder_input_ids"] = rng.integers(4, made.vocab_size - 1, size=(ROWS, DECODER_TOKENS))
        return result
    text_only, vision_only = case.head.startswith("text"), case.head == "vision"
    if kind in _IMAGES and not (text_only and kind in _IMAGE_AND_TEXT):
        vision = getattr(made, "vision_config", made)
        size = vision.image_size if isinstance(getattr(vision, "image_size", None), int) else 64
        size = 64 if kind in ("resnet", "regnet", "convnext", "convnextv2", "cvt") else size
        result["pixel_values"] = rng.normal(size=(ROWS, vision.num_channels, size, size)).astype(np.float32)
        if kind == "vit_mae":
            result["noise"] = rng.random(size=(ROWS, (size // vision.patch_size) ** 2)).astype(np.float32)
        if case.head == "masked-image-modeling":
            patches = (size // vision.patch_size) ** 2
            result["bool_masked_pos"] = rng.integers(0, 2, size=(ROWS, patches)).astype(bool)
        if kind == "sam" and not vision_only:
            result["input_points"] = (size * rng.random(size=(ROWS, 1, 3, 2))).astype(np.float32)
            result["input_labels"] = np.array([[[1, 0, 1]], [[0, 1, 1]]])
        if kind not in _IMAGE_AND_TEXT or vision_only:
            return result
    text = getattr(made, "text_config", made)
    choices = (CHOICES,) if case.head in ("multiple-choice", "double-heads") else ()
    shape = (ROWS, *choices, TOKENS)
    ids, mask = rng.integers(4, text.vocab_size - 1, size=shape), np.ones(shape, dtype=np.int64)
    mask[-1, ..., TOKENS - 2 :] = 0
    ends = mask.sum(-1) - 1
    if kind in ("clip", "groupvit"):  # they pool at the highest id
        np.put_along_axis(ids, ends[..., None], text.vocab_size - 1, -1)
    elif kind in _SEQ2SEQ_TEXT:  # bart's classifier at the end of the text
        np.put_along_axis(ids, ends[..., None], text.eos_token_id, -1)
    pad = next((v for v in (getattr(text, n, None) for n in ("pad_token_id", "pad_index")) if v is not None), 0)
    result |= {"input_ids": np.where(mask == 1, ids, pad)}
    if kind != "transfo-xl" and (kind, case.head) != ("openai-gpt", "double-heads"):  # torch's takes none there
        result["attention_mask"] = mask
    if kind in _TOKEN_TYPES:
        result["token_type_ids"] = np.broadcast_to(np.arange(TOKENS) // 3, shape).copy() % text.type_vocab_size
    if kind == "tapas":
        kinds = [np.minimum(rng.integers(0, n, size=shape), n - 1) for n in made.type_vocab_sizes]
        result["token_type_ids"] = np.stack(kinds, -1)
    if kind == "layoutlm":
        corners = rng.integers(0, made.max_2d_position_embeddings, size=(*shape, 2, 2))
        result["bbox"] = np.sort(corners, axis=-2).reshape(*shape, 4)  # x0, y0, x1, y1
    if kind == "lxmert":
        result["visual_feats"] = rng.normal(size=(ROWS, 6, made.visual_feat_dim)).astype(np.float32)
        result["visual_pos"] = rng.random(size=(ROWS, 6, 4)).astype(np.float32)
    if kind == "xlm":
        result["langs"] = np.full(shape, 2)
    if kind in ("longformer", "led"):
        result["global_attention_mask"] = np.zeros(shape, dtype=np.int64)
        result["global_attention_mask"][..., 0] = 1
    if case.head == "double-heads":
        result["mc_token_ids"] = ends
    if kind == "blip" and case.head == "question-answering":
        result["decoder_input_ids"] = rng.integers(4, text.vocab_size - 1, size=(ROWS, DECODER_TOKENS))
    if kind in _SEQ2SEQ_TEXT and "encoding" not in case.head and "causal-lm" not in case.head:
        mask = np.ones((ROWS, DECODER_TOKENS), dtype=np.int64)
        mask[-1, -2:] = 0
        ids = rng.integers(4, made.vocab_size - 1, size=mask.shape)
        result |= {"decoder_input_ids": np.where(mask == 1, ids, pad), "decoder_attention_mask": mask}
        if case.head == "sequence-classification":  # bart makes the decoder's ids from the encoder's
            del result["decoder_input_ids"], result["decoder_attention_mask"]
    return result


def write_tf(case: Case, folder: Path, inputs: dict, expected: dict, weights: dict, report: dict[str, Any]) -> None:
    """Writes tf/ and its names and map, and fills the report."""
    import tensorflow as tf
    import transformers

    tf_class = getattr(transformers, case.frameworks["tf"])
    tf.keras.backend.clear_session()
    model, info = tf_class.from_pretrained(str(folder / "source"), from_pt=True, output_loading_info=True)
    report |= {key: sorted(map(str, value)) for key, value in info.items()}
    model.save_pretrained(folder / "tf", safe_serialization=False)
    (folder / "tf" / "generation_config.json").unlink(missing_ok=True)
    report["written"] = True
    names, arrays = h5_names(folder / "tf" / "tf_model.h5")
    (folder / "tf_names.json").write_text(json.dumps(names, indent=1))
    report["names"] = _write_map(folder / "tf_map.json", arrays, weights)
    taken, report["inputs_not_taken"] = _accepted(model.call, inputs)
    tensors = {k: tf.constant(v.astype(np.int32) if v.dtype == np.int64 else v) for k, v in taken.items()}
    report |= compare(flatten(model(**tensors, training=False)), expected, inputs)
    tf.keras.backend.clear_session()
    again = tf_class.from_pretrained(str(folder / "tf"))  # TensorFlow's own reader skips top_level_model_weights
    report["reads_back"] = compare(flatten(again(**tensors, training=False)), expected, inputs)["verified"]


def write_flax(case: Case, folder: Path, inputs: dict, expected: dict, weights: dict, report: dict[str, Any]) -> None:
    """Writes flax/ and its names and map, and fills the report."""
    import transformers
    from flax.serialization import msgpack_restore
    from flax.traverse_util import flatten_dict, unflatten_dict
    from transformers.modeling_flax_pytorch_utils import load_pytorch_checkpoint_in_flax_state_dict

    flax_class = getattr(transformers, case.frameworks["flax"])
    model = flax_class.from_pretrained(str(folder / "source"), from_pt=True)
    source = str(folder / "source" / "model.safetensors")
    found = flatten_dict(load_pytorch_checkpoint_in_flax_state_dict(model, source, False))
    params = flatten_dict(dict(model.params))
    report["missing_keys"] = sorted("/".join(key) for key in set(params) - set(found))
    report["unexpected_keys"] = sorted("/".join(key) for key in set(found) - set(params))
    # The loader does not know that ResNet's basic layers are called layer_0, not 0: filled in here.
    filled = {}
    for key in set(params) - set(found):
        plain = tuple(re.sub(r"^layer_(?=\d+$)", "", part) for part in key)
        if plain[-1] == "scale":
            plain = (*plain[:-1], "kernel")  # what it makes of the weight of a norm it does not know
        if plain in found:
            filled[key] = found[plain]
    report["filled_in"] = sorted("/".join(key) for key in filled)
    if filled:
        model.params = unflatten_dict(params | filled)
    model.save_pretrained(folder / "flax", safe_serialization=False)
    (folder / "flax" / "generation_config.json").unlink(missing_ok=True)
    report["written"] = True
    tree = msgpack_restore((folder / "flax" / "flax_model.msgpack").read_bytes())
    arrays = {"/".join(key): np.asarray(value) for key, value in flatten_dict(tree).items()}
    names = {name: {"shape": list(value.shape), "dtype": str(value.dtype)} for name, value in arrays.items()}
    (folder / "flax_names.json").write_text(json.dumps(names, indent=1))
    report["names"] = _write_map(folder / "flax_map.json", arrays, weights)
    model.params = _as_arrays(tree)
    taken, report["inputs_not_taken"] = _accepted(model.__call__, inputs)
    tensors = {k: v.astype(np.int32) if v.dtype == np.int64 else v for k, v in taken.items()}
    report |= compare(flatten(model(**tensors)), expected, inputs)


def _as_arrays(tree: Any) -> Any:
    import jax

    return jax.tree.map(jax.numpy.asarray, tree)


def h5_names(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The layout of a Keras h5 file: the root's attributes, each group's weight_names in order with their shapes, and
    groups that layer_names does not list. Then the arrays, by group and name joined by "::"."""
    import h5py

    def plain(value: Any) -> Any:
        items = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        decode = lambda item: item.decode() if isinstance(item, bytes) else item  # noqa: E731
        return [decode(item) for item in items] if isinstance(items, list) else decode(items)

    arrays: dict[str, np.ndarray] = {}
    with h5py.File(path, "r") as file:
        layers = plain(file.attrs["layer_names"])
        groups: dict[str, Any] = {}
        for group in [*layers, *(name for name in file if name not in layers)]:
            attributes = {key: plain(value) for key, value in file[group].attrs.items()}
            weights = attributes.pop("weight_names", [])
            for name in weights:
                arrays[f"{group}::{name}"] = np.asarray(file[group][name])
            entries = [{"name": n, "shape": list(arrays[f"{group}::{n}"].shape)} for n in weights]
            dtypes = sorted({str(arrays[f"{group}::{n}"].dtype) for n in weights})
            groups[group] = {"weight_names": entries, "dtypes": dtypes, "attrs": attributes}
        return {
            "attrs": {key: plain(value) for key, value in file.attrs.items()},
            "layer_names": layers,
            "groups": groups,
            "top_level_model_weights": "top_level_model_weights" in file,
            "groups_not_in_layer_names": [name for name in file if name not in layers],
        }, arrays


def _write_map(path: Path, arrays: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """Writes which torch tensors hold a file's values, under which permutation of the axes, and returns a summary.

    Axes of length 1 are left out of the permutation ("squeezed" says so)."""

    def digest(value: np.ndarray) -> bytes:
        return hashlib.sha256(np.sort(value.astype(np.float32), axis=None).tobytes()).digest()

    by_values: dict[bytes, list[str]] = {}
    for name, value in weights.items():
        by_values.setdefault(digest(value), []).append(name)
    result: dict[str, Any] = {}
    used: set[str] = set()
    for name, value in arrays.items():
        candidates = by_values.get(digest(value), [])
        entry: dict[str, Any] = {"torch": candidates, "shape": list(value.shape)}
        if candidates:
            used.update(candidates)
            source, target = np.squeeze(weights[candidates[0]]), np.squeeze(value)
            entry |= {"torch_shape": list(weights[candidates[0]].shape), "squeezed": source.ndim != value.ndim}
            entry["axes"] = next(
                (
                    list(axes)
                    for axes in itertools.permutations(range(source.ndim))
                    if source.transpose(axes).shape == target.shape and np.array_equal(source.transpose(axes), target)
                ),
                None if source.size != 1 else [],
            )
            if entry["axes"] is None:
                entry["reshaped"] = bool(np.array_equal(source.reshape(-1), target.reshape(-1)))
        result[name] = entry
    path.write_text(json.dumps(result, indent=1))
    return {
        "tensors": len(arrays),
        "unmatched": [name for name, entry in result.items() if not entry["torch"]],
        "absent": sorted(set(weights) - used),
    }


def flatten(outputs: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """A model's outputs as float32 arrays by name, nested names joined by dots, without key-value caches."""
    if outputs is None or isinstance(outputs, str):
        return {}
    if hasattr(outputs, "items"):
        parts = (flatten(v, f"{prefix}.{k}" if prefix else k) for k, v in outputs.items() if k not in _STATE)
    elif isinstance(outputs, list | tuple):
        parts = (flatten(value, f"{prefix}.{number}") for number, value in enumerate(outputs))
    else:
        array = np.asarray(outputs.detach() if hasattr(outputs, "detach") else outputs)
        return {prefix: array.astype(np.float32)} if array.dtype.kind in "fiub" else {}
    return {key: value for part in parts for key, value in part.items()}


def compare(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], inputs: dict) -> dict[str, Any]:
    """How far outputs are from torch's, at positions that are no padding. The worst output speaks for all."""
    outputs: dict[str, Any] = {}
    for name, wanted in expected.items():
        if name not in actual:
            outputs[name] = {"reason": "no such output"}
            continue
        got, note = actual[name], None
        if got.shape != wanted.shape and got.ndim == 4 and (back := got.transpose(0, 3, 1, 2)).shape == wanted.shape:
            got, note = back, "NHWC"
        if got.shape != wanted.shape:
            outputs[name] = {"reason": f"shape {list(got.shape)}, torch's {list(wanted.shape)}"}
            continue
        for mask in (inputs.get("attention_mask"), inputs.get("decoder_attention_mask")):
            if mask is not None and mask.shape == wanted.shape[: mask.ndim]:
                got, wanted = got[mask == 1], wanted[mask == 1]
                break
        difference = float(np.abs(got - wanted).max()) if wanted.size else 0.0
        outputs[name] = {"max_abs_diff": difference, "scale": _scale(wanted)} | ({"layout": note} if note else {})
    measured = {name: entry for name, entry in outputs.items() if "max_abs_diff" in entry}
    result: dict[str, Any] = {"outputs": outputs, "extra_outputs": sorted(set(actual) - set(expected))}
    if not measured:
        return result | {
            "verified": False,
            "reason": f"no output to compare: torch {list(expected)}, got {list(actual)}",
        }

    def relative(name: str) -> float:
        ratio = measured[name]["max_abs_diff"] / (measured[name]["scale"] or 1.0)
        return ratio if np.isfinite(ratio) else float("inf")

    worst = max(measured, key=relative)
    result |= measured[worst] | {"worst_output": worst, "verified": relative(worst) < TOLERANCE}
    if not result["verified"]:
        result["reason"] = (
            f"{worst} differs from torch's by {measured[worst]['max_abs_diff']:.2g} of {result['scale']:.2g}"
        )
    return result


def _scale(array: np.ndarray) -> float:
    return float(np.abs(array).max()) if array.size else 0.0


def _accepted(function: Any, inputs: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The inputs a model's forward has a name for, and the names of the others."""
    names = set(inspect.signature(function).parameters)
    return {k: v for k, v in inputs.items() if k in names}, sorted(k for k in inputs if k not in names)


def _failure(error: Exception) -> dict[str, str]:
    where = "".join(traceback.format_tb(error.__traceback__)[-3:])
    return {"reason": re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:600], "trace": where}


if __name__ == "__main__":
    main()
