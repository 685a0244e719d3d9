"""What models of text take, with a run of tokens for each image and sound that they see and hear.

Shape legend: B batch, T tokens.
"""

from __future__ import annotations

import inspect

import torch

from zoo.capture.huggingface.inputs.audio import frames, mels_first
from zoo.capture.huggingface.inputs.example import (
    AUDIO_TOKENS,
    IMAGE_TOKENS,
    Example,
    has_images,
    method_of,
    token_of,
)
from zoo.special_cases import special_case

__all__ = [
    "NOISY",
    "attention_mask",
    "bbox",
    "decoder_ids",
    "decoder_mask",
    "global_attention_mask",
    "image_embeds_position_mask",
    "input_ids",
    "mm_token_type_ids",
    "token_type_ids",
]

CHOICES = 3

NOISY = 4
"""Positions that a drafting model makes tokens of, at once."""


def input_ids(made: Example) -> torch.Tensor | None:
    """Text with a run of tokens in it for what the model sees and for what it hears."""
    kind = made.config.model_type
    if kind in special_case("sound in place of text"):
        return None
    if field := special_case("codebooks").get(kind):
        codes = made.config.num_codebooks + 1
        return made.ids(made.batch, made.length, codes, vocab=getattr(made.config, field))
    if kind in special_case("sounds added to text"):
        return made.ids(made.batch, feature_rows(made, "get_audio_features"))
    if is_choice(made):
        return made.ids(made.batch, CHOICES, made.length)
    ids = made.ids(made.batch, made.length)
    runs = [
        torch.full((made.batch, count), token)
        for token, count in (
            (token_of(made, IMAGE_TOKENS), _image_tokens(made)),
            (token_of(made, AUDIO_TOKENS), _audio_tokens(made)),
        )
        if count and token is not None
    ]
    if _is_shifted(made):  # the class reads where the text ends
        ids[:, -1] = made.config.eos_token_id
    return torch.cat([ids[:, :2], *runs, ids[:, 2:]], 1)


def _image_tokens(made: Example) -> int:
    """How many tokens stand for one row's image: as many as the model makes features of it."""
    if "pixel_values" not in made.inputs or token_of(made, IMAGE_TOKENS) is None:
        return 0
    return feature_rows(made, "get_image_features") or getattr(made.config, "num_query_tokens", 0)


def image_embeds_position_mask(made: Example) -> torch.Tensor:
    """Where the image's latents replace what the tokens say, from the third on."""
    count = made.config.latent_query_num
    made.inputs["input_ids"] = made.ids(made.batch, made.length + count)
    mask = torch.zeros(made.batch, made.length + count, dtype=torch.long)
    mask[:, 2 : 2 + count] = 1
    return mask


def _audio_tokens(made: Example) -> int:
    sounds = {"input_features", "input_values", "audio_input_ids"} & set(made.inputs)
    if not sounds or token_of(made, AUDIO_TOKENS) is None:
        return 0
    if method_of(made.module, "get_audio_features") is None and "audio_input_ids" in sounds:
        return made.inputs["audio_input_ids"].shape[1]
    if method_of(made.module, "get_audio_features") is None:  # Qwen2-Audio joins each two positions
        return int(getattr(made.audio, "max_source_positions", 0)) // 2
    return feature_rows(made, "get_audio_features")


def feature_rows(made: Example, name: str) -> int:
    """Rows of features for each of the batch that the model's own method makes of the inputs so far."""
    method = method_of(made.module, name)
    if method is None:
        return 0
    accepted = inspect.signature(method).parameters
    given = {key: value for key, value in made.inputs.items() if key in accepted or "args" in accepted}
    if made.config.model_type in special_case("cameras joined"):
        given["pixel_values"] = given["pixel_values"].flatten(0, 1)
    if "input_ids" in accepted:  # Music Flamingo counts the tokens itself, each of four frames
        given["input_ids"] = torch.full((made.batch, frames(made) // 4), token_of(made, AUDIO_TOKENS))
    with torch.no_grad():
        found = method(**given)
    for part in ("pooler_output", "last_hidden_state"):
        if getattr(found, part, None) is not None:
            found = getattr(found, part)
    if hasattr(found, "deepstack_features"):  # of each layer that takes them
        found = found.deepstack_features[0][1]
    rows = sum(item.numel() // item.shape[-1] for item in (found if isinstance(found, (list, tuple)) else [found]))
    return rows // made.batch


def token_type_ids(made: Example) -> torch.Tensor | None:
    ids = made.inputs.get("input_ids")
    kinds = getattr(made.text, "type_vocab_size", None) or 0
    sizes = getattr(made.text, "type_vocab_sizes", None)
    if sizes and ids is not None:  # TAPAS: a kind of token in each of seven ways
        return torch.zeros(*ids.shape, len(sizes), dtype=torch.long)
    if ids is not None and has_images(made) and made.needs("token_type_ids"):
        return torch.zeros_like(ids)
    return torch.zeros_like(ids) if ids is not None and kinds > 1 else None


def mm_token_type_ids(made: Example) -> torch.Tensor | None:
    ids = made.inputs.get("input_ids")
    if ids is None or not has_images(made):
        return None
    token = token_of(made, IMAGE_TOKENS)
    return torch.zeros_like(ids) if token is None else (ids == token).long()


def bbox(made: Example) -> torch.Tensor:
    ids = made.inputs["input_ids"]
    if hasattr(made.config, "dim_bbox"):
        return torch.rand(*ids.shape, made.config.dim_bbox, generator=made.generator).to(made.floats)
    corners = torch.randint(0, 40, (*ids.shape, 2, 2), generator=made.generator)
    return corners.sort(2).values.flatten(2)


def is_choice(made: Example) -> bool:
    """Whether the class takes several texts of each row, [B, choices, T], and tells which."""
    return type(made.module).__name__.endswith(("ForMultipleChoice", "DoubleHeadsModel"))


def _is_shifted(made: Example) -> bool:
    """Whether the decoder takes the encoder's text, which the class moves by one."""
    return made.config.is_encoder_decoder and type(made.module).__name__.endswith("ForSequenceClassification")


def decoder_ids(made: Example) -> torch.Tensor | None:
    if _is_shifted(made) or not (
        made.config.is_encoder_decoder
        or made.needs("decoder_input_ids")
        or made.has("self_conditioning_logits")  # tokens to refine, which are drawn if there are none
        or _is_seq2seq(made)
        or (made.has("decoder_input_ids") and hasattr(made.module, "text_decoder"))
    ):
        return None
    channels = getattr(getattr(made.config, "decoder_config", None), "num_channels", None)
    if channels:  # a token of each channel at each moment
        return made.ids(made.batch, made.length - 1, channels, vocab=made.config.decoder_config.vocab_size)
    return made.ids(made.batch, made.length - 1)


def _is_seq2seq(made: Example) -> bool:
    return "input_features" in made.inputs and made.has("decoder_attention_mask")


def attention_mask(made: Example) -> torch.Tensor | None:
    if "input_ids" in made.inputs:
        shape = made.inputs["input_ids"].shape
        return torch.ones(shape if is_choice(made) else shape[:2], dtype=torch.long)  # one for all codes of a moment
    if made.has("context_hidden_states", "noise_embeds"):  # of the context, then of what is made of noise
        return torch.ones(made.batch, made.length + NOISY, dtype=torch.long)
    if "input_values" in made.inputs and made.inputs["input_values"].ndim == 2:
        return torch.ones_like(made.inputs["input_values"], dtype=torch.long)
    if "input_features" in made.inputs and made.inputs["input_features"].ndim == 3 and not mels_first(made):
        return torch.ones(made.inputs["input_features"].shape[:2], dtype=torch.long)
    return None


def global_attention_mask(made: Example) -> torch.Tensor | None:
    """The first token sees all and is seen by all."""
    ids = made.inputs.get("input_ids")
    return None if ids is None else (torch.arange(ids.shape[1]) == 0).long().repeat(made.batch, 1)


def decoder_mask(made: Example) -> torch.Tensor | None:
    if "decoder_input_ids" not in made.inputs or "input_ids" not in made.inputs:
        return None
    if made.has("self_conditioning_logits"):  # read to decide whether there is a mask
        return None
    return torch.ones(made.inputs["decoder_input_ids"].shape[:2], dtype=torch.long)  # one for all channels of a moment
