"""Tiny models of every model type that transformers has: rules by the names of a config's fields, exceptions by type.

A config starts as the class's own defaults, so that whatever a published model has switched on stays on; sizes
become small. Which sizes belong together is known by their names alone: the table below is the whole knowledge.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from overrides import OF_TASK, OVERRIDES
from torch import nn

__all__ = ["draw", "tiny_config"]

HIDDEN, HEADS, HEAD, LAYERS, VOCAB, LABELS = 64, 4, 16, 2, 199, 5

# What a field of this name becomes, whatever it was (a default of None stays None).
_SIZES: tuple[tuple[int, str], ...] = (
    (
        HIDDEN,
        """hidden_size d_model n_embd dim embed_dim emb_dim embedding_size embedding_dim encoder_hidden_size
        decoder_hidden_size cross_hidden_size encoder_hidden_dim decoder_hidden_dim hidden_dim projection_dim
        project_dim out_hidden_size fpn_hidden_size mask_feature_size fpn_feature_size word_embed_proj_dim
        output_hidden_size text_hidden_size audio_hidden_size backbone_hidden_size pooler_hidden_size
        upsample_initial_channel pooler_output_size input_embedding_size output_embedding_size
        projection_size text_config_hidden_size
        memory_attention_hidden_size memory_encoder_hidden_size memory_fuser_embed_dim mask_downsampler_embed_dim
        attention_hidden_size mit_hidden_size pred_hidden_size mask_dim class_embed_dim text_embed_dim
        vision_output_dim projector_input_dim projector_output_dim projector_hidden_size image_text_hidden_size
        hidden_size_global neck_hidden_size reduce_dim fusion_hidden_size output_channels vit_dim
        true_hidden_size text_projection_in_dim text_projection_out_dim output_dim
        query_dim_model codebook_dim vector_quantization_hidden_dimension latent_channels d_latents
        perceiver_resampler_hidden_size adapter_out_dim cross_attention_hidden_size lru_width
        visual_embedding_dim text_encoder_width image_embed_dim merged_hidden_size projection_hidden_size
        prediction_head_size image_token_embed_dim conv_dim_size q_dim patch_embeds_hidden_size
        patch_embed_hidden_size fpn_dim model_dim descriptor_dim descriptor_decoder_dim ext_pw_out_channel
        nemo_conv_channels depthwise_separable_out_channel encoder_embed_dim output_proj_dims feature_size_dim
        projector_out_channels encoder_channels vision_feature_dim bottleneck_hidden_size entity_emb_size
        moe_hidden_size visual_feat_dim unit_embed_dim lang_embed_dim spkr_embed_dim
        condition_dim""",
    ),
    (
        96,
        """intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff dff n_inner mlp_dim inner_dim
        moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size
        shared_intermediate_size ffn_hidden_size intermediate_size_mlp d_inner dim_ff dim_feedforward
        encoder_feedforward_dim feed_forward_size encoder_linear_units decoder_linear_units
        encoder_dim_feedforward decoder_dim_feedforward decoder_intermediate_size dense_intermediate_size
        expert_ffn_hidden_size mit_intermediate_size speech_encoder_intermediate_size t2u_encoder_ffn_dim
        t2u_decoder_ffn_dim memory_attention_feed_forward_hidden_size memory_attention_mlp_hidden_size
        perceiver_resampler_mlp_intermediate_size projection_intermediate_size memory_fuser_intermediate_dim
        alignment_intermediate_size projector_intermediate_size prompt_intermediate_size share_expert_dim
        shared_experts_intermediate_size projection_intermediate_dim projection_hidden_dim
        task_encoder_hidden_dim iou_head_hidden_dim""",
    ),
    (
        HEADS,
        """num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads
        attention_heads encoder_num_attention_heads decoder_num_attention_heads num_encoder_attention_heads
        num_decoder_attention_heads cross_num_attention_heads index_n_heads decoder_num_heads
        num_self_attention_heads num_cross_attention_heads mit_num_attention_heads prompt_num_attention_heads
        pred_num_attention_heads speech_encoder_attention_heads t2u_encoder_attention_heads
        t2u_decoder_attention_heads decoder_self_attention_heads decoder_cross_attention_heads
        linear_num_value_heads conf_num_attention_heads swa_num_attention_heads num_sliding_attention_heads
        resampler_heads resampler_n_heads linear_num_heads guided_attention_loss_num_heads""",
    ),
    (
        2,
        """num_key_value_heads kv_n_heads num_kv_heads swa_num_key_value_heads cross_num_key_value_heads
        encoder_num_key_value_heads decoder_num_key_value_heads num_key_value_attention_heads
        linear_num_key_heads num_global_key_value_heads""",
    ),
    (
        HEAD,
        """head_dim v_head_dim dim_head d_kv d_head swa_head_dim cross_head_dim index_head_dim
        linear_key_head_dim linear_value_head_dim linear_head_dim kv_channels attention_head_size
        query_pre_attn_scalar global_head_dim resampler_head_dim resampler_dim_head
        perceiver_resampler_attention_head_dim""",
    ),
    (
        LAYERS,
        """num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers layers depth
        num_encoder_layers num_decoder_layers encoder_num_hidden_layers decoder_num_hidden_layers
        mit_num_hidden_layers pred_num_hidden_layers conf_num_hidden_layers speech_encoder_layers
        t2u_encoder_layers t2u_decoder_layers decoder_num_layers text_encoder_num_layers
        memory_attention_num_layers memory_fuser_num_layers perceiver_resampler_num_layers l_layers x_layers
        r_layers num_self_attends_per_block resampler_depth num_spatial_layers num_temporal_layers
        num_auxiliary_layers num_lstm_layers speech_decoder_postnet_layers num_timestamp_prediction_layers
        posterior_encoder_num_wavenet_layers prior_encoder_num_wavenet_layers num_pooler_layers num_global_layers
        max_window_layers num_layers_per_stack num_sparse_encoder_layers num_sparse_decoder_layers
        prior_encoder_num_flows encoder_n_layers""",
    ),
    (
        VOCAB,
        """vocab_size decoder_vocab_size text_vocab_size src_vocab_size tgt_vocab_size
        text_encoder_vocab_size vocab_size_per_layer_input t2u_vocab_size entity_vocab_size char_vocab_size
        unit_hifi_gan_vocab_size input_vocab_size output_vocab_size audio_vocab_size n_tokens""",
    ),
    (4, "num_frames frames_per_clip num_experts n_routed_experts num_local_experts moe_num_experts num_nextn_experts"),
    (8, "canvas_length"),
    (128, "quantization_dim"),
    (
        64,
        """max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length max_length_positions
        max_source_positions max_target_positions max_speech_positions max_text_positions num_queries codebook_size
        num_position_embeddings max_2d_position_embeddings t2u_max_position_embeddings seq_length
        max_encoder_position_embeddings max_decoder_position_embeddings num_embeddings two_stage_num_proposals
        original_max_position_embeddings speaker_embedding_dim""",
    ),
    (128, "mamba_d_ssm"),
    (
        1,
        """n_group topk_group num_expert_group n_shared_experts num_shared_experts num_nextn_predict_layers
        first_k_dense_replace num_dense_layers moe_num_shared_experts num_mtp_layers""",
    ),
    (
        8,
        """qk_rope_head_dim q_dim_rope sliding_window local_attention attention_window_size
        sliding_window_size mamba_d_state ssm_state_size state_size time_step_rank chunk_size mamba_chunk_size
        mamba_dt_rank num_codevectors_per_group n_mel_bins_small rotary_dim""",
    ),
    (HEAD, "mamba_d_head mamba_head_dim mamba_headdim"),
    (8, "mamba_n_heads mamba_num_heads"),
    (12, "qk_nope_head_dim"),
    (20, "qk_head_dim"),
    (24, "q_lora_rank index_topk_hidden o_lora_rank"),
    (HIDDEN // 2, "num_pos_feats"),
    (32, "kv_lora_rank conv_channels subsampling_conv_channels"),
    (4, "num_filters"),
    (
        16,
        """num_mel_bins codevector_dim proj_codevector_dim base_channels model_in_dim
        speech_decoder_postnet_units duration_predictor_channels energy_predictor_channels pitch_predictor_channels
        duration_predictor_filter_channels model_in_channels model_hidden_channels kernel_predictor_hidden_channels""",
    ),
)
_TO = {name: size for size, names in _SIZES for name in names.split()}
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k", "top_k")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_LAYER_KINDS = ("layer_types", "mlp_layer_types")
_KEPT = ("num_key_value_heads",)
_DERIVED = ("_out_indices", "out_indices", "_out_features", "out_features", "stage_names")
_CONVS = ("conv_dim", "tdnn_dim")
_MROPE = [2, 3, 3]  # of half a head's dims
_LAYER_INDICES = re.compile(
    r"(_index(es)?|_indexes|_indices|layer_ids|_idxs|hook_ids|extract_layers|moe_layers|cross_attention_layers|"
    r"subsample_layers|spatial_target_layers|rope_scaling_layers)$"
)
_WIDTHS = re.compile(
    r"^(hidden_sizes|embed_dims?|encoder_hidden_sizes|neck_hidden_sizes|decoder_hidden_sizes|embed_dim_per_stage|"
    r"hidden_channels|out_channels_per_stage)$"
)
_COUNTS = re.compile(r"^(depths?|num_layers|blocks_per_stage|encoder_layers_per_stage|decoder_depths)$")
_STAGE_HEADS = re.compile(r"^(num_attention_heads|num_heads|encoder_heads|num_attention_heads_per_stage)$")


def tiny_config(model_type: str, task: str | None = None) -> transformers.PretrainedConfig:
    """The type's default config with small sizes.

    Args:
        task: what else it serves: five labels, but for a start and an end of an answer.
    """
    default = transformers.CONFIG_MAPPING[model_type]()
    small = _shrunk(default)
    _merge(small, OVERRIDES.get(model_type, {}))
    _merge(small, OF_TASK.get((model_type, task or ""), {}))
    config = type(default).from_dict(small)
    if task not in (None, "question-answering"):
        config.num_labels = LABELS
    for part in _parts(config):
        if hasattr(part, "use_cache"):
            part.use_cache = False
        if getattr(part, "pad_token_id", 0) is None:  # where a classifier of sequences finds their ends
            part.pad_token_id = 0
    return config


def _shrunk(config: transformers.PretrainedConfig) -> dict[str, Any]:
    """A config's fields, those of the configs inside it included, with small sizes."""
    fields = {name: value for name, value in config.to_dict().items() if not _is_derived(config, name, value)}
    kept = _kept_layers(fields)
    small: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            inner = getattr(config, name)
            small[name] = _shrunk(inner) if isinstance(inner, transformers.PretrainedConfig) else _shrunk_mapping(value)
        elif name == "image_size" and isinstance(value, (list, tuple)) and len(value) == 2:
            small[name] = [_image(fields, value[0]), int(_image(fields, value[0]) * value[1] / value[0])]
        elif name == "out_indices" and value:  # of stages, or of as many layers
            small[name] = list(value) if _has_stages(config) else list(range(1, len(value) + 1))
        elif isinstance(value, (list, tuple)) and value:
            small[name] = _shrunk_list(name, value, fields, kept)
        elif type(value) is not int:
            small[name] = value
        elif name in _LAYER_COUNTS:
            small[name] = len(kept)
        elif name in _EXPERTS_PER_TOKEN:
            small[name] = min(value, 2)
        elif name in ("image_size", "crop_size"):
            small[name] = _image(fields, value)
        else:
            small[name] = _TO.get(name, value) if value else 0
    if "qk_rope_head_dim" in small and "num_key_value_heads" in small:  # latent attention: a key for every query
        small["num_key_value_heads"] = HEADS
    if "qk_rope_head_dim" in small and fields.get("head_dim") == fields["qk_rope_head_dim"]:
        small["head_dim"] = small["qk_rope_head_dim"]
    if isinstance(fields.get("per_layer_config"), Mapping):
        small["per_layer_config"] = _per_layer(fields, small, kept)
    _renumber(small)
    return small


def _layer_count(fields: Mapping[str, Any]) -> int:
    return max((fields[name] for name in _LAYER_COUNTS if type(fields.get(name)) is int), default=0)


def _kept_layers(fields: Mapping[str, Any]) -> list[int]:
    """The first layer of each kind, and two at least: every list with an entry a layer keeps these ones' entries."""
    count = _layer_count(fields)
    kinds = [[str(item) for item in fields.get(name) or ()][:count] for name in _LAYER_KINDS]
    kinds = [row for row in kinds if len(row) == count]
    kinds.append([str(sorted(_overridden(fields, layer).items())) for layer in range(count)])
    kept = {row.index(kind) for row in kinds for kind in row}
    least = max(LAYERS, len(fields.get("out_indices") or ()))
    for layer in range(count):
        if len(kept) < least:
            kept.add(layer)
    return sorted(_without_needless(kept, kinds, least)) or list(range(LAYERS))


def _without_needless(kept: set[int], kinds: list[list[str]], least: int) -> set[int]:
    """Layers whose kinds all occur in the others left out, while enough remain."""
    for layer in sorted(kept):
        others = kept - {layer}
        if len(others) >= least and all(row[layer] in {row[i] for i in others} for row in kinds if len(row) > layer):
            kept = others
    return kept


def _overridden(fields: Mapping[str, Any], layer: int) -> dict[str, Any]:
    """What one layer's config has otherwise than the rest."""
    of_layers = fields.get("per_layer_config") or {}
    return {name: value for key, part in of_layers.items() if int(key) == layer for name, value in part.items()}


def _per_layer(fields: Mapping[str, Any], small: Mapping[str, Any], kept: list[int]) -> dict[str, dict[str, Any]]:
    """The kept layers' own values, as large beside the small config's as they were beside the default's."""
    parts: dict[str, dict[str, Any]] = {str(new): _overridden(fields, old) for new, old in enumerate(kept)}
    for part in parts.values():
        for name, value in part.items():
            if type(value) is int and type(fields[name]) is int:
                part[name] = max(1, round(small[name] * value / fields[name]))
    return {layer: part for layer, part in parts.items() if part}


def _is_derived(config: transformers.PretrainedConfig, name: str, value: Any) -> bool:
    """Whether the field is a size that the class makes of others."""
    if name in _DERIVED:  # where stages are layers, there are fewer of them now
        return name != "out_indices" or (len(value) < 2 and not _has_stages(config))
    if type(value) not in (int, list) or name in _KEPT:
        return False
    declared = {field.name: field.default for field in dataclasses.fields(config)}
    if any(name in pair and not declared.keys().isdisjoint(pair) for pair in config.attribute_map.items()):
        return False  # another name of one that is declared
    return name not in declared or (declared[name] is None and type(value) is int)


def _has_stages(config: transformers.PretrainedConfig) -> bool:
    return isinstance(getattr(config, "depths", None), (list, tuple))


def _shrunk_mapping(value: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _MROPE if key == "mrope_section" else _shrunk_mapping(item) if isinstance(item, Mapping) else item
        for key, item in value.items()
    }


def _shrunk_list(name: str, value: Any, fields: Mapping[str, Any], kept: list[int]) -> list[Any]:
    layers = len(kept)
    if name in _LAYER_KINDS and len(value) >= _layer_count(fields):
        return [value[layer] for layer in kept]
    if all(type(item) is int for item in value):
        if name in _CONVS:
            return [16 for _ in value]
        if _WIDTHS.match(name):
            return [16 * (i + 1) for i in range(len(value))]
        if _STAGE_HEADS.match(name):
            return [2 for _ in value]
        if _COUNTS.match(name):
            return [min(item, 2) for item in value]
        if _layer_count(fields) and _LAYER_INDICES.search(name) and any(item >= layers for item in value):
            return [layers - 1]
    if len(value) == _layer_count(fields) > layers:
        return [value[layer] for layer in kept]
    return list(value)


def _image(fields: Mapping[str, Any], value: int) -> int:
    """64 pixels where patches fit, else four patches a side, or two in the last of the stages that halve them."""
    patch = fields.get("patch_size")
    patch = patch[0] if isinstance(patch, (list, tuple)) else patch
    if not isinstance(patch, int) or patch == 1:
        return min(value, 64)
    stages = fields.get("depths")
    side = patch * 2 ** len(stages) if isinstance(stages, (list, tuple)) else 4 * patch
    return 64 if side < 64 and 64 % patch == 0 else side


def _renumber(small: dict[str, Any]) -> None:
    """Special tokens beyond the small vocabulary move to its end, each to a place of its own."""
    free = VOCAB - 1
    for name, value in small.items():
        if name.endswith(("token_id", "token_index")) and isinstance(value, int) and value >= VOCAB - 20:
            small[name] = free
            free -= 1


def _merge(fields: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Changes into fields, in depth; a config of another type than there is starts from that type's tiny one."""
    for name, value in changes.items():
        if not isinstance(value, Mapping):
            fields[name] = value
            continue
        there = fields.get(name)
        kind = value.get("model_type")
        if kind is not None and (not isinstance(there, dict) or there.get("model_type") != kind):
            fields[name] = _shrunk(transformers.CONFIG_MAPPING[kind]())
            _merge(fields[name], OVERRIDES.get(kind, {}))
        elif not isinstance(there, dict):
            fields[name] = {}
        _merge(fields[name], value)


def _parts(config: Any) -> list[Any]:
    inner = [value for value in vars(config).values() if isinstance(value, transformers.PretrainedConfig)]
    return [config, *(part for value in inner for part in _parts(value))]


def draw(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight from a seed, of a scale at which outputs neither vanish nor explode and no bias is zero."""
    generator = torch.Generator().manual_seed(seed)
    seen: set[int] = set()
    with torch.no_grad():
        for owner in module.modules():
            for name, tensor in owner.named_parameters(recurse=False):
                if id(tensor) in seen or not tensor.numel() or not tensor.requires_grad:
                    continue
                seen.add(id(tensor))
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(_value(owner, name, tensor, noise))
            for name, buffer in owner.named_buffers(recurse=False):
                if name.startswith("embed") and not buffer.any() and buffer.is_floating_point():  # a codebook
                    buffer.copy_(torch.randn(buffer.shape, generator=generator))
                elif name == "running_mean":
                    buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
                elif name == "running_var":
                    buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return module


def _value(owner: nn.Module, name: str, old: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    if isinstance(owner, nn.Embedding):
        return noise
    if name.endswith("bias"):
        return old + 0.2 * noise
    if isinstance(owner, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)):  # some are born near zero
        return 1 + 0.2 * noise
    if old.ndim < 2 or name.endswith("A_log"):  # norms around what a fresh one has; decays, time steps, scales
        return old + 0.2 * noise
    if isinstance(owner, (nn.modules.conv._ConvNd, nn.Linear)):
        fan = old[0].numel()
    else:
        fan = max(old.shape[-2:])
    return noise / fan**0.5
