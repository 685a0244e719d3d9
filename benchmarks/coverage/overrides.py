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

_MUSE_AUDIO: dict[str, Any] = {"patch_sizes": [16, 6], "hidden_sizes": [16, 32], "depths": [1, 1]}
_OMNI: dict[str, Any] = {"vision_start_token_id": 170, "vision_end_token_id": 171}  # read, and not among the defaults
_RT_RESNET: dict[str, Any] = {**_THREE_LEVELS, "model_type": "rt_detr_resnet"}

OVERRIDES: dict[str, dict[str, Any]] = {
    "align": {"vision_config": _EFFICIENTNET, "projection_dim": 32},
    "aria": {"projector_patch_to_query_dict": {16: 8}},
    "autoformer": _SERIES | {"moving_average": 5},
    "bit": {"num_groups": 8},
    "chameleon": {
        "vq_config": {"base_channels": 32, "resolution": 64},
        "vocabulary_map": {"<image>": 198} | {f"IMGIMG{str(i).translate(_LETTERS)}Z": 100 + i for i in range(64)},
    },
    "clap": {"audio_config": {"spec_size": 64, "num_mel_bins": 32, "window_size": 2}},
    "cohere_compass": {"text_config": _COMPASS},
    "cohere_compass_text": _COMPASS,
    "conditional_detr": _DETR,
    "csm": {"codec_config": {"upsample_groups": 16}},
    "cvt": {"depth": [1, 2, 3], "embed_dim": [16, 32, 48], "num_heads": [1, 2, 4]},
    "d_fine": _OF_HGNET,
    "dab-detr": _DETR,
    "deepseek_ocr2": {
        "vision_config": {"sam_config": {"downsample_channels": [64, 64]}},
        "text_config": {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse"]},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deformable_detr": _DETR | {"backbone_config": _THREE_LEVELS, "num_feature_levels": 3},
    "deimv2": _OF_HGNET,
    "detr": _DETR,
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 96}},
    "donut-swin": _SWIN,
    "dots1": _MOE,
    "dots3_note": {"text_config": {"head_dim": 26}},
    "dots3_note_text": {"head_dim": 26},
    "efficientloftr": {"out_features": [16, 16, 32, 64], "stage_num_blocks": [1, 1, 2, 1], "num_attention_layers": 2},
    "efficientnet": _EFFICIENTNET,
    "emu3": {
        "vq_config": {"base_channels": 32},
        "vocabulary_map": {"<image>": 198, "<|extra_200|>": 197}
        | {f"<|visual token {i:06}|>": 100 + i for i in range(64)},
    },
    "ernie4_5_vl_moe": {"text_config": _mrope(3, 3, 2)},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32, "position_embedding_type": "rotary"},
    "esmc": {"num_key_value_heads": 4},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}},
    "funnel": {"block_sizes": [1, 1, 1], "block_repeats": [1, 1, 1], "architectures": ["FunnelModel"]},
    "gemma3": {"mm_tokens_per_image": 4},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "intermediate_size": [96] * 4,
        "activation_sparsity_pattern": [0.95, 0.0, 0.95, 0.0],
    },
    "gemma4": {"vision_config": {"model_type": "gemma4_vision"}, "audio_config": {"model_type": "gemma4_audio"}},
    "gemma4_unified": {
        "vision_config": {"model_type": "gemma4_unified_vision"},
        "audio_config": {"model_type": "gemma4_unified_audio"},
    },
    "glm46v": {"text_config": _MROPE},
    "glm4v": {"text_config": _MROPE},
    "glm4v_moe": {"text_config": _mrope(2, 1, 1)},
    "glm4v_moe_text": _mrope(2, 1, 1),
    "glm4v_text": _MROPE,
    "glm_image": {"text_config": _MROPE},
    "glm_image_text": _MROPE,
    "glm_ocr": {"text_config": _MROPE},
    "glm_ocr_text": _MROPE,
    "glmga": {"text_config": _MROPE},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1]],
        "attention_layers": ["global", "local"],
        "window_size": 4,
    },
    "granite4_vision": {
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[-1, 0]],
        "image_grid_pinpoints": [[128, 256]],
    },
    "granite_speech5_ctc": {"encoder_config": {"context_size": 16}},
    "granite_speech5_encoder": {"context_size": 16},
    "hgnet_v2": _HGNET,
    "hunyuan_v1_dense": _HEADS,
    "hunyuan_v1_moe": _HEADS,
    "hunyuan_vl": {"text_config": _HEADS | _MROPE},
    "hunyuan_vl_text": _HEADS | _MROPE,
    "informer": _SERIES,
    "inkling_mm_model": {"vision_config": {"num_hidden_layers": 4}},
    "janus": {"vq_config": {"base_channels": 32}},
    "kyutai_speech_to_text": {"codec_config": {"upsample_groups": 16}},
    "layoutlmv3": {"coordinate_size": 12, "shape_size": 8},
    "led": {"attention_window": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lilt": {"hidden_size": 96},
    "llama4": {"vision_config": {"intermediate_size": 256}},
    "llava_next": {"image_grid_pinpoints": [[56, 112], [112, 112]]},
    "llava_next_video": {"image_grid_pinpoints": [[56, 112], [112, 112]]},
    "llava_onevision": {"image_grid_pinpoints": [[56, 112], [112, 112]]},
    "mamba2": {"num_heads": 8},
    "mask2former": {"backbone_config": _SWIN, "feature_size": 64},
    "maskformer": {"backbone_config": _SWIN, "fpn_feature_size": 64},
    "maskformer-swin": _SWIN,
    "mimi": {"upsample_groups": 16},
    "mimi_decoder": {"upsample_groups": 16},
    "mimi_encoder": {"upsample_groups": 16},
    "ministral": _HEADS,
    "mistral4": {"qk_nope_head_dim": 8},
    "molmo2": {"vision_config": {"image_size": [56, 56]}, "adapter_config": {"vision_feature_layer": [1, 0]}},
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
    "muse_spark": {"audio_config": _MUSE_AUDIO},
    "muse_spark_audio": _MUSE_AUDIO,
    "nemotron": _HEADS | {"num_key_value_heads": 2},
    "oneformer": {"backbone_config": _SWIN, "conv_dim": 64},
    "pocket_tts_audio_tokenizer": {"upsample_groups": 16},
    "pocket_tts_audio_tokenizer_decoder": {"upsample_groups": 16},
    "pp_doclayout_v3": _OF_HGNET,
    "pp_doclayout_v4": _OF_HGNET,
    "qwen2_5_omni_thinker": _OMNI | {"text_config": _MROPE},
    "qwen2_5_vl": {"text_config": _MROPE},
    "qwen2_5_vl_text": _MROPE,
    "qwen2_vl": {"text_config": _MROPE},
    "qwen2_vl_text": _MROPE,
    "qwen3_asr": {"audio_config": {"n_window": 8}},
    "qwen3_asr_encoder": {"n_window": 8},
    "qwen3_omni_moe_thinker": _OMNI | {"text_config": _MROPE},
    "reformer": {
        "axial_pos_shape": [4, 8],
        "axial_pos_embds_dim": [16, 48],
        "attn_layers": ["local", "lsh"],
        "lsh_attn_chunk_length": 4,
        "local_attn_chunk_length": 4,
        "num_buckets": 4,
    },
    "rt_detr": {
        "backbone_config": _RT_RESNET,
        "encoder_in_channels": [24, 32, 40],
        "decoder_in_channels": [64, 64, 64],
        "encoder_layers": 1,
        "num_queries": 20,
        "num_denoising": 0,
    },
    "rt_detr_resnet": _RT_RESNET,
    "rt_detr_v2": {
        "backbone_config": _RT_RESNET,
        "encoder_in_channels": [24, 32, 40],
        "decoder_in_channels": [64, 64, 64],
        "encoder_layers": 1,
        "num_queries": 20,
        "num_denoising": 0,
    },
    "sapiens2": {
        "num_key_value_heads_per_layer": [4, 2],
        "num_first_full_attention_layers": 1,
        "num_last_full_attention_layers": 1,
    },
    "seggpt": {"image_size": [64, 32], "pretrain_image_size": 32, "merge_index": 0, "patch_size": 8},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "swin": _SWIN,
    "swinv2": _SWIN,
    "t5gemma2": {"encoder": {"mm_tokens_per_image": 4}},
    "table-transformer": _DETR,
    "textnet": {"image_size": [64, 64], "stem_out_channels": 16},
    "time_series_transformer": _SERIES,
    "timesfm": {"context_length": 64},
    "xmod": {"default_language": "en_XX"},
}
