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

_HGNET: dict[str, Any] = {
    "model_type": "hgnet_v2",
    "embedding_size": 16,
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [16, 24, 32, 40],
    "stem_channels": [3, 8, 16],
    "stage_in_channels": [16, 16, 24, 32],
    "stage_mid_channels": [8, 8, 8, 8],
    "stage_out_channels": [16, 24, 32, 40],
    "stage_num_blocks": [1, 1, 2, 1],
    "stage_numb_of_layers": [2, 2, 2, 2],
}
_OF_HGNET: dict[str, Any] = {
    "backbone_config": _HGNET,
    "encoder_in_channels": [24, 32, 40],
    "decoder_in_channels": [64, 64, 64],
    "encoder_layers": 1,
    "num_queries": 20,
    "num_denoising": 0,
}
_SWIN: dict[str, Any] = {
    "image_size": 96,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 1, 1, 1],
    "num_heads": [2, 2, 2, 2],
    "window_size": 3,
}


def _mrope(*sections: int, **more: Any) -> dict[str, Any]:
    """Rotary positions of three axes, which share half of the dims that turn."""
    return {"rope_parameters": {"mrope_section": list(sections)}, **more}


_MROPE = _mrope(2, 3, 3)
_EFFICIENTNET: dict[str, Any] = {"width_coefficient": 0.1, "depth_coefficient": 0.4, "hidden_dim": 128}
_COMPASS: dict[str, Any] = {
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("sliding_attention", "full_attention")
    },
}
_MOE: dict[str, Any] = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}
_LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")

OVERRIDES: dict[str, dict[str, Any]] = {
    "autoformer": _SERIES | {"moving_average": 5},
    "informer": _SERIES,
    "time_series_transformer": _SERIES,
    "bit": {"num_groups": 8},
    "conditional_detr": _DETR,
    "dab-detr": _DETR,
    "deformable_detr": _DETR | {"backbone_config": _THREE_LEVELS, "num_feature_levels": 3},
    "detr": _DETR,
    "table-transformer": _DETR,
    "csm": {"codec_config": {"upsample_groups": 16}},
    "emu3": {"vq_config": {"base_channels": 32}},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32, "position_embedding_type": "rotary"},
    "esmc": {"num_key_value_heads": 4},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1]],
        "attention_layers": ["global", "local"],
        "window_size": 4,
    },
    "granite_speech5_ctc": {"encoder_config": {"context_size": 16}},
    "granite_speech5_encoder": {"context_size": 16},
    "hunyuan_v1_dense": _HEADS,
    "hunyuan_v1_moe": _HEADS,
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
    "align": {"vision_config": _EFFICIENTNET, "projection_dim": 128},
    "efficientnet": _EFFICIENTNET,
    "aria": {"projector_patch_to_query_dict": {16: 8}},
    "chameleon": {
        "vq_config": {"base_channels": 32},
        "vocabulary_map": {"<image>": 198} | {f"IMGIMG{str(i).translate(_LETTERS)}Z": 100 + i for i in range(64)},
    },
    "clap": {"audio_config": {"spec_size": 64, "num_mel_bins": 32, "window_size": 2}},
    "cohere_compass_text": _COMPASS,
    "cohere_compass": {"text_config": _COMPASS},
    "cvt": {"depth": [1, 2, 3], "embed_dim": [16, 32, 48], "num_heads": [1, 2, 4]},
    "d_fine": _OF_HGNET,
    "deimv2": _OF_HGNET,
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": _MOE,
    "deepseek_ocr2": {"text_config": {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse"]}},
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 96}},
    "efficientloftr": {"out_features": [16, 16, 32, 64], "stage_num_blocks": [1, 1, 2, 1], "num_attention_layers": 2},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}},
    "funnel": {"block_sizes": [1, 1, 1], "block_repeats": [1, 1, 1], "architectures": ["FunnelModel"]},
    "gemma3": {"mm_tokens_per_image": 4},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "donut-swin": _SWIN,
    "swin": _SWIN,
    "swinv2": _SWIN,
    "maskformer-swin": _SWIN,
    "glm46v": {"text_config": _MROPE},
    "glm4v": {"text_config": _MROPE},
    "glmga": {"text_config": _MROPE},
    "glm_ocr": {"text_config": _MROPE},
    "glm_image": {"text_config": _MROPE},
    "glm4v_text": _MROPE,
    "glm_ocr_text": _MROPE,
    "glm_image_text": _MROPE,
    "qwen2_vl": {"text_config": _MROPE},
    "qwen2_5_vl": {"text_config": _MROPE},
    "qwen2_vl_text": _MROPE,
    "qwen2_5_vl_text": _MROPE,
    "glm4v_moe": {"text_config": _mrope(2, 1, 1)},
    "glm4v_moe_text": _mrope(2, 1, 1),
    "ernie4_5_vl_moe": {"text_config": _mrope(3, 3, 2)},
    "hunyuan_vl": {"text_config": _HEADS | _MROPE},
    "hunyuan_vl_text": _HEADS | _MROPE,
    "pp_doclayout_v3": _OF_HGNET,
    "pp_doclayout_v4": _OF_HGNET,
    "hgnet_v2": _HGNET,
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
}
