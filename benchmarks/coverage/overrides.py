"""Where the rules of `shrink` are not enough: what else a model type's config needs."""

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
_EFFICIENTNET: dict[str, Any] = {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128}
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

_INDEXER: dict[str, Any] = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
    "hc_lowrank": 16,
}
_SAM2_BACKBONE: dict[str, Any] = {
    "hidden_size": 16,
    "image_size": [128, 128],
    "window_size_per_stage": [8, 4, 8, 4],
    "global_attention_blocks": [4],
}
_SAM2: dict[str, Any] = {
    "backbone_config": _SAM2_BACKBONE,
    "backbone_channel_list": [64, 48, 32, 16],
    "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
}
_VIBE: dict[str, Any] = {"num_filters": 2, "depths": [1, 1, 1, 1, 1, 1, 1]}

_LCNET: dict[str, Any] = {
    "stem_channels": [3, 8, 16],
    "block_configs": [[[3, 16, 16, 1, True]], [[3, 16, 16, 2, False]], [[3, 16, 24, 2, False]], [[3, 24, 32, 2, True]]],
    "out_indices": [1, 2, 3, 4],
}

OF_TASK: dict[tuple[str, str], dict[str, Any]] = {
    ("blip-2", "zero-shot-image-classification"): {"qformer_config": {"use_qformer_text_input": True}},
    ("deit", "image-classification"): {"architectures": ["DeiTForImageClassification"]},
    ("levit", "image-classification"): {"architectures": ["LevitForImageClassification"]},
    ("reformer", "text-generation"): {"is_decoder": True},
    ("perceiver", "image-classification"): {"architectures": ["PerceiverForImageClassificationLearned"]},
}
"""What a class with a head needs besides: which of several classes it is, where transformers asks."""

_DET: dict[str, Any] = {  # without defaults
    "neck_out_channels": 64,
    "kernel_list": [3, 2, 2],
    "scale_factor_list": [1, 2, 4, 8],
    "intraclass_block_config": {
        "reduce_channel": [1, 1, 0],
        "return_channel": [1, 1, 0],
        **{
            f"{kind}_conv{where}_{ratio}": [size(2 * half + 1, 1), [1, 1], size(half, 0)]
            for half, ratio in ((3, "longratio"), (2, "midratio"), (1, "shortratio"))
            for kind, where, size in (
                ("vertical_long_to_small", "", lambda long, small: [long, small]),
                ("horizontal_small_to_long", "", lambda long, small: [small, long]),
                ("symmetric", "_long", lambda long, _: [long, long]),
            )
        },
    },
}

_OF_RESNET: dict[str, Any] = _OF_HGNET | {"backbone_config": _RT_RESNET}

OVERRIDES: dict[str, dict[str, Any]] = {
    "align": {"vision_config": _EFFICIENTNET, "projection_dim": 32},
    "aria": {"projector_patch_to_query_dict": {16: 8}},
    "autoformer": _SERIES | {"moving_average": 5},
    "beit": {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]},
    "bit": {"num_groups": 8},
    "blip-2": {"image_token_index": 198},
    "blt": {"encoder_hash_byte_group_vocab": 199},
    "chameleon": {
        "image_token_id": 198,
        "vq_config": {"base_channels": 32, "resolution": 64},
        "vocabulary_map": {"<image>": 198} | {f"IMGIMG{str(i).translate(_LETTERS)}Z": 100 + i for i in range(64)},
    },
    "clap": {"audio_config": {"spec_size": 64, "num_mel_bins": 32, "window_size": 2, "patch_embeds_hidden_size": 8}},
    "clvp": {"text_config": {"num_attention_heads": 2}, "speech_config": {"num_attention_heads": 2}},
    "cohere_compass": {"text_config": _COMPASS},
    "cohere_compass_text": _COMPASS,
    "conditional_detr": _DETR,
    "csm": {"codec_config": {"upsample_groups": 16}},
    "cvt": {"depth": [1, 2, 3], "embed_dim": [16, 32, 48], "num_heads": [1, 2, 4]},
    "d_fine": _OF_HGNET,
    "dab-detr": _DETR,
    "dac": {"encoder_hidden_size": 4, "decoder_hidden_size": 32},
    "data2vec-vision": {"num_hidden_layers": 4, "out_indices": [0, 1, 2, 3]},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_ocr2": {
        "vision_config": {"sam_config": {"downsample_channels": [64, 64]}},
        "text_config": {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse"]},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deformable_detr": _DETR | {"backbone_config": _THREE_LEVELS, "num_feature_levels": 3},
    "deimv2": _OF_HGNET,
    "depth_anything": {"reassemble_hidden_size": 64},
    "depth_pro": {
        "patch_size": 28,
        "intermediate_hook_ids": [1, 0],
        "intermediate_feature_dims": [16, 16],
        "scaled_images_feature_dims": [32, 32, 16],
    }
    | {f"{part}_model_config": {"model_type": "dinov2", "image_size": 28} for part in ("image", "patch", "fov")},
    "detr": _DETR,
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 96}},
    "donut-swin": _SWIN,
    "dots1": _MOE,
    "dots3_note": {
        "text_config": {"head_dim": 26},
        "vision_config": {"adapter_in_dim": 64, "adapter_out_dim": 64, "num_experts_per_tok": 1},
        "audio_config": {"adapter_input_size": 64, "adapter_out_dim": 64},
    },
    "dots3_note_text": {"head_dim": 26},
    "dpt": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    "efficientloftr": {
        "out_features": [16, 16, 32, 64],
        "stage_num_blocks": [1, 1, 2, 1],
        "num_attention_layers": 2,
        "num_key_value_heads": 4,
        "rope_parameters": {"partial_rotary_factor": 2.0},
    },
    "efficientnet": _EFFICIENTNET,
    "embedding_gemma2": {
        "vision_config": {"model_type": "gemma4_vision"},
        "audio_config": {"model_type": "gemma4_audio"},
    },
    "emu3": {
        "image_token_id": 198,
        "vq_config": {"base_channels": 32, "hidden_size": 128, "embed_dim": 4, "latent_channels": 4},
        "vocabulary_map": {"<image>": 198, "<|extra_200|>": 197}
        | {f"<|visual token {i:06}|>": 100 + i for i in range(64)},
    },
    "ernie4_5_vl_moe": {"text_config": _mrope(3, 3, 2)},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32, "position_embedding_type": "rotary"},
    "esmc": {"num_key_value_heads": 4},
    "flint": {"mlp_only_layers": [0]},
    "focalnet": {"embed_dim": 16, "depths": [1, 1, 1, 1]},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}, "audio_config": {"max_position_embeddings": 128}},
    "fun_asr_nano_encoder": {"max_position_embeddings": 128},
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
        "vision_config": {"model_type": "gemma4_unified_vision", "mm_embed_dim": 64},
        "audio_config": {"model_type": "gemma4_unified_audio", "audio_embed_dim": 64},
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
    "granite_speech5_ctc": {"encoder_config": {"context_size": 16, "num_key_value_heads": 4, "num_hidden_layers": 3}},
    "granite_speech5_encoder": {"context_size": 16, "num_key_value_heads": 4, "num_hidden_layers": 3},
    "grounding-dino": {"backbone_config": _SWIN | {"out_indices": [2, 3, 4]}, "num_queries": 10},
    "hgnet_v2": _HGNET,
    "hiera": {"image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]},
    "hunyuan_v1_dense": _HEADS,
    "hunyuan_v1_moe": _HEADS,
    "hunyuan_vl": {"text_config": _HEADS | _MROPE},
    "hunyuan_vl_text": _HEADS | _MROPE,
    "informer": _SERIES,
    "inkling_mm_model": {"vision_config": {"num_hidden_layers": 4}},
    "instructblip": {"image_token_index": 198},
    "instructblipvideo": {"video_token_index": 198, "image_token_index": 198},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "janus": {"vq_config": {"base_channels": 32}},
    "kosmos-2": {"latent_query_num": 8},
    "kosmos-2.5": {"latent_query_num": 8},
    "kyutai_speech_to_text": {"codec_config": {"upsample_groups": 16}},
    "layoutlmv3": {"coordinate_size": 12, "shape_size": 8, "input_size": 64},
    "led": {"attention_window": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lilt": {"hidden_size": 96},
    "llama4": {"vision_config": {"intermediate_size": 256}},
    "llava_next": {"image_grid_pinpoints": [[56, 112], [112, 112]]},
    "llava_next_video": {"image_grid_pinpoints": [[56, 112], [112, 112]]},
    "llava_onevision": {"image_grid_pinpoints": [[56, 112], [112, 112]]},
    "longformer": {"attention_window": 4},
    "lw_detr": {"projector_scale_factors": [1.0], "backbone_config": {"out_indices": [1, 2]}, "num_queries": 8},
    "mamba2": {"num_heads": 8},
    "markuplm": {"max_depth": 4},
    "mask2former": {"backbone_config": _SWIN, "feature_size": 64},
    "maskformer": {"backbone_config": _SWIN, "fpn_feature_size": 64},
    "maskformer-swin": _SWIN,
    "mgp-str": {"num_bpe_labels": 99, "num_wordpiece_labels": 98},
    "mimi": {"upsample_groups": 16},
    "mimi_decoder": {"upsample_groups": 16},
    "mimi_encoder": {"upsample_groups": 16},
    "minicpm_ocr": {"image_token_id": 198},
    "minicpmv4_6": {"image_token_id": 198},
    "minicpmv4_7": {"image_token_id": 198},
    "ministral": _HEADS,
    "mistral4": {"qk_nope_head_dim": 8},
    "mllama": {"vision_config": {"vision_output_dim": 128}},
    "mm-grounding-dino": {"backbone_config": _SWIN | {"out_indices": [2, 3, 4]}, "num_queries": 10},
    "mobilebert": {"embedding_size": 32},
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "molmo2": {
        "image_patch_id": 190,
        "vision_config": {"image_size": [56, 56]},
        "adapter_config": {"vision_feature_layer": [1, 0]},
    },
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "muse_glimmer": {"out_hidden_size": 256},
    "muse_spark": {"out_hidden_size": 256, "audio_config": _MUSE_AUDIO},
    "muse_spark_audio": _MUSE_AUDIO,
    "nemotron": _HEADS | {"num_key_value_heads": 2},
    "nemotron_h_omni": {
        "image_token_id": 198,
        "vision_config": {"video_temporal_patch_size": 2},
        "vision_hidden_size": 64,
    },
    "nemotron3_5_transcribe_asr_audio": {"num_key_value_heads": 4},
    "nemotron3_diarization": {"audio_config": {"num_key_value_heads": 4}},
    "nemotron3_diarization_audio": {"num_key_value_heads": 4},
    "neucodec": {"encoder_hidden_size": 8, "num_key_value_heads": 4},
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "oneformer": {"backbone_config": _SWIN, "conv_dim": 64},
    "paddleocr_vl": {"text_config": _MROPE},
    "pe_audio": {"audio_config": {"dac_config": {"encoder_hidden_size": 4, "decoder_hidden_size": 32}}},
    "pe_audio_encoder": {"dac_config": {"encoder_hidden_size": 4, "decoder_hidden_size": 32}},
    "pocket_tts_audio_tokenizer": {"upsample_groups": 16},
    "pocket_tts_audio_tokenizer_decoder": {"upsample_groups": 16},
    "pp_doclayout_v2": _OF_HGNET | {"class_thresholds": [0.5] * 5, "class_order": [0, 1, 2, 3, 4]},
    "pp_doclayout_v3": _OF_HGNET | {"x4_feat_dim": 16},
    "pp_doclayout_v4": _OF_HGNET,
    "pp_formulanet": {
        "vision_config": {"post_conv_in_channels": 64, "post_conv_mid_channels": 32, "post_conv_out_channels": 64}
    },
    "pp_ocrv5_mobile_rec": {"head_out_channels": 99},
    "pp_ocrv5_server_det": _DET | {"backbone_config": _HGNET | {"out_indices": [1, 2, 3, 4]}},
    "pp_ocrv5_server_rec": {
        "head_out_channels": 99,
        "backbone_config": _HGNET | {"stem_strides": [2, 1, 1, 1, 1], "out_indices": [1, 2, 3, 4]},
    },
    "pp_ocrv6_medium_det": _DET | {"backbone_config": _LCNET},
    "pp_ocrv6_small_det": {
        "backbone_config": _LCNET,
        "layer_list_out_channels": [16, 16, 24, 32],
        "neck_out_channels": 16,
    },
    "pp_ocrv6_small_rec": {"backbone_config": _LCNET, "head_out_channels": 99},
    "pp_ocrv6_tiny_rec": {"backbone_config": _LCNET, "head_out_channels": 99},
    "prompt_depth_anything": {"reassemble_hidden_size": 64},
    "qwen2_5_omni_thinker": _OMNI | {"text_config": _MROPE, "audio_config": {"n_window": 8}},
    "qwen2_5_vl": {"text_config": _MROPE},
    "qwen2_5_vl_text": _MROPE,
    "qwen2_vl": {"text_config": _MROPE},
    "qwen2_vl_text": _MROPE,
    "qwen3_omni_moe_thinker": _OMNI | {"text_config": _MROPE},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "axial_pos_shape": [4, 8],
        "axial_pos_embds_dim": [16, 48],
        "attn_layers": ["local", "lsh"],
        "lsh_attn_chunk_length": 4,
        "local_attn_chunk_length": 4,
        "num_buckets": 4,
    },
    "rf_detr": {"num_queries": 8},
    "roc_bert": {
        "pronunciation_vocab_size": 99,
        "pronunciation_embed_dim": 16,
        "shape_vocab_size": 99,
        "shape_embed_dim": 16,
    },
    "rt_detr": _OF_RESNET,
    "rt_detr_resnet": _RT_RESNET,
    "rt_detr_v2": _OF_RESNET,
    "sam2": {"vision_config": _SAM2, "prompt_encoder_config": {"image_size": 128}},
    "sam2_hiera_det_model": _SAM2_BACKBONE,
    "sam2_vision_model": _SAM2,
    "sam3_lite_text": {"text_config": {"num_hidden_layers": 3}},
    "sam3_lite_text_text_model": {"num_hidden_layers": 3},
    "sam3_tracker": {"vision_config": {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}},
    "sapiens2": {
        "num_key_value_heads_per_layer": [4, 2],
        "num_first_full_attention_layers": 1,
        "num_last_full_attention_layers": 1,
        "head_config": {
            "upsample_out_channels": [16],
            "upsample_kernel_sizes": [4],
            "conv_out_channels": [16],
            "conv_kernel_sizes": [1],
        },
    },
    "seggpt": {"image_size": [64, 32], "pretrain_image_size": 32, "merge_index": 0, "patch_size": 8},
    "shieldgemma2": {"mm_tokens_per_image": 4, "yes_token_index": 20, "no_token_index": 21},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "swin": _SWIN,
    "swin2sr": {"image_size": 16, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4},
    "swinv2": _SWIN,
    "t5": {"decoder_start_token_id": 0},
    "t5gemma2": {"encoder": {"mm_tokens_per_image": 4}},
    "t5gemma2_encoder": {"text_config": {"dropout_rate": 0.0}, "mm_tokens_per_image": 4},
    "table-transformer": _DETR,
    "textnet": {"image_size": [64, 64], "stem_out_channels": 16},
    "time_series_transformer": _SERIES,
    "timesfm": {"context_length": 64},
    "timesfm2_5": {"context_length": 64},
    "tipsv2_dpt": {"num_hidden_layers": 4},
    "tvp": {"max_img_size": 128, "visual_prompt_size": 8},
    "unlimited_ocr": {"vision_config": {"sam_config": {"downsample_channels": [64, 64]}}},
    "uvdoc": {"backbone_config": {"out_indices": [1, 2, 3, 4, 5, 6]}},
    "vibevoice_acoustic_tokenizer": _VIBE,
    "vibevoice_acoustic_tokenizer_decoder": _VIBE,
    "vibevoice_acoustic_tokenizer_encoder": _VIBE,
    "vipllava": {"vision_feature_layers": [-1, -2, -3, 0, 1], "vision_feature_layer": [-1, -2, -3, 0, 1]},
    "vits": {
        "upsample_initial_channel": 16,
        "flow_size": 16,
        "spectrogram_bins": 33,
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3]],
    },
    "voxtral": {"audio_token_id": 198, "audio_config": {"intermediate_size": 256}},
    "wav2vec2-bert": {"vocab_size": 199},
    "wav2vec2-conformer": {"vocab_size": 199},
    "xcodec": {"acoustic_model_config": {"encoder_hidden_size": 4, "decoder_hidden_size": 32}},
    "xcodec2": {"encoder_hidden_size": 8, "num_key_value_heads": 4},
    "xmod": {"default_language": "en_XX"},
    "yolos": {"image_size": [64, 96]},
    "zoedepth": {"bottleneck_features": 64},
}
