"""Where the rules of `tiny` are not enough: what else a model type's config needs."""

from __future__ import annotations

from typing import Any

_RESNET: dict[str, Any] = {  # timm's, the default, would be another library's model
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 24, 32, 40],
    "depths": [1, 1, 1, 1],
    "layer_type": "bottleneck",
    "out_indices": [4],
}
_DETR: dict[str, Any] = {"use_timm_backbone": False, "backbone": None, "backbone_config": _RESNET, "dilation": False}
_THREE_LEVELS: dict[str, Any] = {**_RESNET, "out_indices": [2, 3, 4]}
_SERIES: dict[str, Any] = {"prediction_length": 6, "context_length": 12, "lags_sequence": [1, 2, 3]}
_HEADS: dict[str, Any] = {"head_dim": 16}

OVERRIDES: dict[str, dict[str, Any]] = {
    "autoformer": _SERIES | {"moving_average": 5},
    "informer": _SERIES,
    "time_series_transformer": _SERIES,
    "bit": {"num_groups": 8},
    "chameleon": {"vq_config": {"base_channels": 32}},
    "conditional_detr": _DETR,
    "dab-detr": _DETR,
    "deformable_detr": _DETR | {"backbone_config": _THREE_LEVELS, "num_feature_levels": 3},
    "detr": _DETR,
    "table-transformer": _DETR,
    "csm": {"codec_config": {"upsample_groups": 16}},
    "cvt": {"depth": [1, 1, 2], "embed_dim": [16, 32, 48], "num_heads": [1, 2, 4]},
    "emu3": {"vq_config": {"base_channels": 32}},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32, "position_embedding_type": "rotary"},
    "esmc": {"num_key_value_heads": 4},
    "funnel": {"block_sizes": [1, 1, 1], "block_repeats": [1, 1, 1]},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1]],
        "attention_layers": ["global", "local"],
        "window_size": 4,
    },
    "granite_speech5_ctc": {"encoder_config": {"context_size": 16}},
    "granite_speech5_encoder": {"context_size": 16},
    "hunyuan_v1_dense": _HEADS,
    "hunyuan_v1_moe": _HEADS,
    "hunyuan_vl": {"text_config": _HEADS},
    "hunyuan_vl_text": _HEADS,
    "janus": {"vq_config": {"base_channels": 32}},
    "mamba2": {"num_heads": 8},
    "mimi": {"upsample_groups": 16},
    "mimi_decoder": {"upsample_groups": 16},
    "mimi_encoder": {"upsample_groups": 16},
    "kyutai_speech_to_text": {"codec_config": {"upsample_groups": 16}},
    "ministral": _HEADS,
    "nemotron": _HEADS | {"num_key_value_heads": 2},
    "pocket_tts_audio_tokenizer": {"upsample_groups": 16},
    "pocket_tts_audio_tokenizer_decoder": {"upsample_groups": 16},
    "reformer": {
        "axial_pos_shape": [4, 8],
        "axial_pos_embds_dim": [16, 48],
        "attn_layers": ["local", "lsh"],
        "lsh_attn_chunk_length": 4,
        "local_attn_chunk_length": 4,
        "num_buckets": 4,
    },
    "swinv2": {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1, 1, 1], "window_size": 4},
    "swin": {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1, 1, 1], "window_size": 4},
}
