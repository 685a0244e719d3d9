"""Example inputs of transformers models: what a class's forward takes, at sizes that reach all of its parts.

A class says by the names of its parameters what it takes, and its config says how large that is. The table here is by
those names, which transformers uses alike in all models; a name that is not in it is left out, and a model that cannot
do without it says so itself. What no rule tells is a row of special_cases.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers

from zoo.capture.huggingface.inputs import audio, images, other, text
from zoo.capture.huggingface.inputs.example import Example, has_images
from zoo.errors import CaptureError
from zoo.special_cases import special_case

__all__ = ["example_inputs", "prepared_inputs"]


def example_inputs(
    module: transformers.PreTrainedModel, dtype: str = "float32", *, batch: int = 2, length: int = 6, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Inputs that reach all parts of the model: sizes above 1 and different, masks all ones, values from the seed.

    Args:
        dtype: of the inputs that are not whole numbers.
        batch: rows.
        length: tokens of text, besides those that stand for an image or a sound.

    Raises:
        CaptureError: nothing that the forward takes is known.
    """
    made = Example(module, getattr(torch, dtype), batch, length, torch.Generator().manual_seed(seed))
    for name, make in _MAKERS.items():
        if name in made.accepted:
            tensor = make(made)
            if tensor is not None:
                made.inputs[name] = tensor
    if not made.inputs:
        raise CaptureError(
            "no example inputs are known for this model",
            where=type(module).__name__,
            got=", ".join(made.accepted),
            do="call zoo.capture(module, name=example, …) with inputs of your own",
        )
    return {name: made.inputs[name] for name in made.accepted if name in made.inputs}


def prepared_inputs(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The inputs and what transformers computes of their values before it exports a model: positions of packed
    images, boundaries of their attention. A graph captured with these takes the tensors among them as inputs; numbers
    become part of it.
    """
    from transformers.exporters.utils import prepare_for_export

    # a head does not say that it has positions to prepare, as the model in it does
    parts = (module, getattr(module, "base_model", module))
    part = next((part for part in parts if hasattr(part, "get_rope_index")), module)
    with torch.no_grad():
        _, prepared, _ = prepare_for_export(part, dict(inputs))
    if "input_ids" in inputs and getattr(prepared.get("position_ids"), "ndim", 2) == 1:
        del prepared["position_ids"]  # of patches: the model's own argument is about its text
    return dict(prepared)


# What other inputs are made of comes first: an image before the tokens that stand for it.
_MAKERS: dict[str, Callable[[Example], torch.Tensor | None]] = {
    "pixel_values": images.pixel_values,
    "prompt_pixel_values": images.pixel_values,
    "prompt_masks": images.pixel_values,
    "pixel_values_videos": images.pixel_values_videos,
    "flattened_patches": images.flattened_patches,
    "high_res_pixel_values": images.other_image("high_res_vision_config"),
    "image_grid_thw": lambda made: images.grid(made) if has_images(made) else None,
    "grid_thw": images.grid,
    "image_grid_hw": lambda made: images.grid(made)[:, 1:] if images.has_grid_hw(made) else None,
    "hidden_states": images.hidden_states,
    "image_sizes": images.image_sizes,
    "image_position_ids": lambda made: images.image_positions(made) if has_images(made) else None,
    "pixel_position_ids": images.image_positions,
    "target_sizes": images.spatial_shapes,
    "image_token_pooling": images.token_pooling,
    "image_grids": images.image_grids,
    "image_merge_sizes": images.merge_sizes,
    "merge_sizes": images.merge_sizes,
    "aspect_ratio_ids": images.aspect_ratio_ids,
    "aspect_ratio_mask": images.of_images(lambda made: (made.batch, 1, images.tiles(made))),
    "pixel_attention_mask": images.pixel_attention_mask,
    "spatial_shapes": images.spatial_shapes,
    "input_features": audio.input_features,
    "audio_mel": audio.input_features,
    "audio_input_ids": audio.audio_ids,
    "chunk_sample_lengths": lambda made: torch.full((made.batch,), 160 * audio.frames(made)),
    "input_features_mask": audio.features_mask,
    "feature_attention_mask": lambda made: audio.features_mask(made, "feature_attention_mask"),
    "audio_mel_mask": lambda made: torch.zeros(made.batch, audio.frames(made), dtype=torch.bool),  # True is padding
    "input_values": audio.input_values,
    "padding_mask": audio.padding_mask,
    "qformer_input_ids": lambda made: made.ids(made.batch, made.length),
    "input_ids": text.input_ids,
    "image_embeds_position_mask": text.image_embeds_position_mask,
    "attention_mask": text.attention_mask,
    "token_type_ids": text.token_type_ids,
    "mm_token_type_ids": text.mm_token_type_ids,
    "bbox": text.bbox,
    "global_attention_mask": text.global_attention_mask,
    "mc_token_ids": lambda made: torch.randint(made.length, (made.batch, text.CHOICES), generator=made.generator),
    "image_attention_mask": lambda made: (  # which images each token sees
        torch.ones(*made.inputs["input_ids"].shape, 1, dtype=torch.long)
        if made.config.model_type in special_case("tiles")
        else None
    ),
    "cross_attention_mask": images.of_images(lambda made: (*made.inputs["input_ids"].shape, 1, images.tiles(made))),
    "entity_ids": lambda made: made.ids(made.batch, 2, vocab=made.config.entity_vocab_size),
    "entity_position_ids": lambda made: torch.arange(4).view(2, 2).repeat(made.batch, 1, 1),
    "input_shape_ids": lambda made: made.ids(made.batch, made.length, vocab=made.config.shape_vocab_size),
    "input_pronunciation_ids": lambda made: made.ids(
        made.batch, made.length, vocab=made.config.pronunciation_vocab_size
    ),
    "xpath_tags_seq": lambda made: made.ids(made.batch, made.length, made.config.max_depth, vocab=99),
    "xpath_subs_seq": lambda made: made.ids(made.batch, made.length, made.config.max_depth, vocab=99),
    "visual_feats": other.visual("visual_feat_dim"),
    "visual_pos": other.visual("visual_pos_dim"),
    "visual_embeds": other.visual("visual_embedding_dim"),
    "state": lambda made: made.noise(made.batch, made.config.max_state_dim) if made.needs("state") else None,
    "query_embeds": lambda made: made.noise(made.batch, 5, made.config.hidden_size),
    "encoder_hidden_states": lambda made: (
        made.noise(made.batch, 7, made.config.encoder_hidden_size) if made.has("query_embeds") else None
    ),
    "decoder_input_ids": text.decoder_ids,
    "decoder_attention_mask": text.decoder_mask,
    "past_values": other.series(),
    "past_observed_mask": other.series("ones"),
    "past_values_padding": other.series("zeros"),
    "freq": lambda made: torch.ones(made.batch, 1, dtype=torch.long),
    "past_time_features": other.time_features("past"),
    "future_time_features": other.time_features("future"),
    "future_values": other.future_values,
    "states": other.steps("state_dim"),
    "actions": lambda made: other.steps("act_dim")(made) if hasattr(made.config, "act_dim") else None,
    "timestep": lambda made: torch.rand(made.batch, generator=made.generator).to(made.floats),
    "rewards": other.steps("none"),
    "returns_to_go": other.steps("none"),
    "timesteps": other.steps("none", "timesteps"),
    "input_points": images.of_points,
    "input_labels": images.point_labels,
    "latents": lambda made: made.noise(made.batch, made.config.hidden_size, 4),
    "inputs": lambda made: made.noise(made.batch, made.length, made.config.d_model) if made.needs("inputs") else None,
    "decoder_input_values": audio.decoder_values,
    "task_inputs": lambda made: made.ids(made.batch, made.config.task_seq_len),
    "action_embeds": lambda made: made.noise(made.batch, 4, made.config.dit_config.hidden_size),
    "noise_embeds": lambda made: made.noise(made.batch, text.NOISY, made.config.hidden_size),
    "context_hidden_states": lambda made: made.noise(made.batch, made.length, made.config.hidden_size),
    "noise": other.noise,
    "bool_masked_pos": images.hidden_patches,
    "inputs_embeds": other.inputs_embeds,
}
