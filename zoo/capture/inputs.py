"""Example inputs of transformers models: what a class's forward takes, at sizes that reach all of its parts.

A class says by the names of its parameters what it takes, and its config says how large that is. The tables here are
by those names, which transformers uses alike in all models; a name that is in no table is left out, and a model that
cannot do without it says so itself.

Shape legend: B batch, T tokens, H W an image's sides, C its channels, P patches, D a patch's values, F frames, M mels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import transformers

from zoo.errors import CaptureError

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
    made = _Example(module, getattr(torch, dtype), batch, length, torch.Generator().manual_seed(seed))
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


@dataclass
class _Example:
    """Inputs in the making."""

    module: Any
    floats: torch.dtype
    batch: int
    length: int
    generator: torch.Generator
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def accepted(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.module.forward).parameters

    @cached_property
    def config(self) -> Any:
        return self.module.config

    @cached_property
    def text(self) -> Any:
        return self.config.get_text_config() if hasattr(self.config, "get_text_config") else self.config

    @cached_property
    def vision(self) -> Any:
        """The config of what sees: the model's own where no other is inside it, None where that one is left out."""
        return _inner(self.config, ("vision_config", "image_config"))

    @cached_property
    def audio(self) -> Any:
        if self.config.model_type == "clvp":  # whose other parts hear the tokens that this one makes of sound
            return self.config.decoder_config
        return _inner(self.config, ("audio_config", "encoder_config", "speech_config", "semantic_model_config"))

    @cached_property
    def needed(self) -> set[str]:
        """What the model cannot do without, for its text, its images or its sounds."""
        methods = [self.module.forward, *(_method(self.module, name) for name in ("get_image_features",
                   "get_audio_features"))]  # fmt: skip
        found = [inspect.signature(method).parameters.values() for method in methods if method is not None]
        return {item.name for items in found for item in items if item.default is inspect.Parameter.empty}

    def has(self, *names: str) -> bool:
        return all(name in self.accepted for name in names)

    def needs(self, name: str) -> bool:
        return name in self.needed

    def noise(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.floats)

    def ids(self, *shape: int, vocab: int | None = None) -> torch.Tensor:
        """Ordinary tokens: above the special ones, which come first or are named by the config."""
        rows = vocab or getattr(self.text, "vocab_size", None) or 64
        special = {value for part in (self.config, self.text) for value in _special(part)}
        allowed = [i for i in range(min(5, rows - 3), min(rows, 160)) if i not in special] or [rows - 1]
        return torch.tensor(allowed)[torch.randint(len(allowed), shape, generator=self.generator)]


def _inner(config: Any, names: tuple[str, ...]) -> Any:
    """The config of one of these names inside this one, at any depth, or this one where no such name is."""
    level = [config]
    while level:
        for part in level:
            for name in names:
                if getattr(part, name, None) is not None or name in vars(part):
                    return getattr(part, name)
        level = [
            inner for part in level for inner in vars(part).values() if isinstance(inner, transformers.PretrainedConfig)
        ]
    return config


def _method(module: Any, name: str) -> Any:
    """A method of the model that the module puts a head on, of its own, or of that model's encoder."""
    model = getattr(module, "base_model", module)
    owners = (model, module, *(getattr(model, part, None) for part in ("encoder", "vlm")))
    return next((getattr(owner, name) for owner in owners if hasattr(owner, name)), None)


def _special(config: Any) -> list[int]:
    return [
        value
        for name, value in vars(config).items()
        if name.endswith(("token_id", "token_index")) and isinstance(value, int)
    ]


# --- text -----------------------------------------------------------------------------------------------------------


def _input_ids(made: _Example) -> torch.Tensor | None:
    """Text with a run of tokens in it for what the model sees and for what it hears."""
    kind = made.config.model_type
    if kind in _SOUND_FOR_TEXT:
        return None
    if kind in _CODEBOOKS:
        return made.ids(made.batch, made.length, made.config.num_codebooks + 1, vocab=_CODEBOOKS[kind](made.config))
    if kind in _ADDING:
        return made.ids(made.batch, _rows(made, "get_audio_features"))
    if _is_choice(made):
        return made.ids(made.batch, _CHOICES, made.length)
    ids = made.ids(made.batch, made.length)
    runs = [
        torch.full((made.batch, count), token)
        for token, count in (
            (_token(made, _IMAGE_TOKENS), _image_tokens(made)),
            (_token(made, _AUDIO_TOKENS), _audio_tokens(made)),
        )
        if count and token is not None
    ]
    if _is_shifted(made):  # the class reads where the text ends
        ids[:, -1] = made.config.eos_token_id
    return torch.cat([ids[:, :2], *runs, ids[:, 2:]], 1)


_CODEBOOKS: dict[str, Callable[[Any], int]] = {"kyutai_speech_to_text": lambda config: config.codebook_vocab_size}
"""Models whose every moment is a token of text and one of each codebook."""

_ADDING = ("voxtral_realtime",)
"""Models that add sounds to the text, a token for each."""

_IMAGE_TOKENS = ("image_token_id", "image_token_index", "media_placeholder_token_id", "im_patch_id")
_AUDIO_TOKENS = ("audio_token_id", "audio_token_index")


def _token(made: _Example, names: tuple[str, ...]) -> int | None:
    """The token that stands for an image or a sound."""
    found = _inner(made.config, names)
    return found if isinstance(found, int) else None


def _image_tokens(made: _Example) -> int:
    """How many tokens stand for one row's image: as many as the model makes features of it."""
    if "pixel_values" not in made.inputs or _token(made, _IMAGE_TOKENS) is None:
        return 0
    return _rows(made, "get_image_features") or getattr(made.config, "num_query_tokens", 0)


def _image_embeds_position_mask(made: _Example) -> torch.Tensor:
    """Where the image's latents replace what the tokens say, from the third on."""
    count = made.config.latent_query_num
    made.inputs["input_ids"] = made.ids(made.batch, made.length + count)
    mask = torch.zeros(made.batch, made.length + count, dtype=torch.long)
    mask[:, 2 : 2 + count] = 1
    return mask


def _audio_tokens(made: _Example) -> int:
    sounds = {"input_features", "input_values", "audio_input_ids"} & set(made.inputs)
    if not sounds or _token(made, _AUDIO_TOKENS) is None:
        return 0
    if _method(made.module, "get_audio_features") is None and "audio_input_ids" in sounds:
        return made.inputs["audio_input_ids"].shape[1]
    if _method(made.module, "get_audio_features") is None:  # Qwen2-Audio joins each two positions
        return int(getattr(made.audio, "max_source_positions", 0)) // 2
    return _rows(made, "get_audio_features")


def _rows(made: _Example, name: str) -> int:
    """Rows of features for each of the batch that the model's own method makes of the inputs so far."""
    method = _method(made.module, name)
    if method is None:
        return 0
    accepted = inspect.signature(method).parameters
    given = {key: value for key, value in made.inputs.items() if key in accepted or "args" in accepted}
    if made.config.model_type == "pi0":  # whose forward joins the cameras
        given["pixel_values"] = given["pixel_values"].flatten(0, 1)
    if "input_ids" in accepted:  # Music Flamingo counts the tokens itself, each of four frames
        given["input_ids"] = torch.full((made.batch, _frames(made) // 4), _token(made, _AUDIO_TOKENS))
    with torch.no_grad():
        found = method(**given)
    for part in ("pooler_output", "last_hidden_state"):
        if getattr(found, part, None) is not None:
            found = getattr(found, part)
    if hasattr(found, "deepstack_features"):  # of each layer that takes them
        found = found.deepstack_features[0][1]
    rows = sum(item.numel() // item.shape[-1] for item in (found if isinstance(found, (list, tuple)) else [found]))
    return rows // made.batch


def _token_type_ids(made: _Example) -> torch.Tensor | None:
    ids = made.inputs.get("input_ids")
    kinds = getattr(made.text, "type_vocab_size", None) or 0
    sizes = getattr(made.text, "type_vocab_sizes", None)
    if sizes and ids is not None:  # TAPAS: a kind of token in each of seven ways
        return torch.zeros(*ids.shape, len(sizes), dtype=torch.long)
    if ids is not None and _has_images(made) and made.needs("token_type_ids"):
        return torch.zeros_like(ids)
    return torch.zeros_like(ids) if ids is not None and kinds > 1 else None


def _mm_token_type_ids(made: _Example) -> torch.Tensor | None:
    ids = made.inputs.get("input_ids")
    if ids is None or not _has_images(made):
        return None
    token = _token(made, _IMAGE_TOKENS)
    return torch.zeros_like(ids) if token is None else (ids == token).long()


def _has_images(made: _Example) -> bool:
    return "pixel_values" in made.inputs


def _bbox(made: _Example) -> torch.Tensor:
    ids = made.inputs["input_ids"]
    if hasattr(made.config, "dim_bbox"):
        return torch.rand(*ids.shape, made.config.dim_bbox, generator=made.generator).to(made.floats)
    corners = torch.randint(0, 40, (*ids.shape, 2, 2), generator=made.generator)
    return corners.sort(2).values.flatten(2)


_CHOICES = 3


def _is_choice(made: _Example) -> bool:
    """Whether the class takes several texts of each row, [B, choices, T], and tells which."""
    return type(made.module).__name__.endswith(("ForMultipleChoice", "DoubleHeadsModel"))


def _is_shifted(made: _Example) -> bool:
    """Whether the decoder takes the encoder's text, which the class moves by one."""
    return made.config.is_encoder_decoder and type(made.module).__name__.endswith("ForSequenceClassification")


def _decoder_ids(made: _Example) -> torch.Tensor | None:
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


def _is_seq2seq(made: _Example) -> bool:
    return "input_features" in made.inputs and made.has("decoder_attention_mask")


def _attention_mask(made: _Example) -> torch.Tensor | None:
    if "input_ids" in made.inputs:
        shape = made.inputs["input_ids"].shape
        return torch.ones(shape if _is_choice(made) else shape[:2], dtype=torch.long)  # one for all codes of a moment
    if made.has("context_hidden_states", "noise_embeds"):  # of the context, then of what is made of noise
        return torch.ones(made.batch, made.length + _NOISY, dtype=torch.long)
    if "input_values" in made.inputs and made.inputs["input_values"].ndim == 2:
        return torch.ones_like(made.inputs["input_values"], dtype=torch.long)
    if "input_features" in made.inputs and made.inputs["input_features"].ndim == 3 and not _mels_first(made):
        return torch.ones(made.inputs["input_features"].shape[:2], dtype=torch.long)
    return None


_NOISY = 4
"""Positions that a drafting model makes tokens of, at once."""


def _global_attention_mask(made: _Example) -> torch.Tensor | None:
    """The first token sees all and is seen by all."""
    ids = made.inputs.get("input_ids")
    return None if ids is None else (torch.arange(ids.shape[1]) == 0).long().repeat(made.batch, 1)


def _decoder_mask(made: _Example) -> torch.Tensor | None:
    if "decoder_input_ids" not in made.inputs or "input_ids" not in made.inputs:
        return None
    if made.has("self_conditioning_logits"):  # read to decide whether there is a mask
        return None
    return torch.ones(made.inputs["decoder_input_ids"].shape[:2], dtype=torch.long)  # one for all channels of a moment


# --- images ---------------------------------------------------------------------------------------------------------

_INTERPOLATING = ("dinov2",)
"""Model types that stretch their table of positions to any image, except that one of just its size takes it as it is:
the example must be of another, or the graph would hold for that one alone."""

_PAIRS = ("efficientloftr", "lightglue", "superglue")
_VIDEOS = ("instructblipvideo", "tvp", "xclip")
_TILED = ("granite4_vision", "idefics", "idefics2", "idefics3", "llava_next", "llava_next_video", "llava_onevision",
          "mllama", "smolvlm")  # fmt: skip
"""Model types whose `pixel_values` have one more dim than an image's, by what it counts."""

_PATCHES: dict[str, Callable[[_Example, int, int, int], tuple[int, ...]]] = {
    **dict.fromkeys(
        ("fuyu", "gemma4_vision", "molmo2_vision", "siglip2_vision_model"),
        lambda made, count, side, depth: (made.batch, count, depth * side * side),
    ),
    **dict.fromkeys(
        ("kimi_k25_vision", "paddleocr_vl_vision"),
        lambda made, count, side, depth: (made.batch * count, depth, side, side),
    ),
    **dict.fromkeys(
        ("minicpm_ocr_vision", "minicpmv4_6_vision", "minicpmv4_7_vision"),
        lambda made, count, side, depth: (1, depth, side, made.batch * count * side),
    ),
    **dict.fromkeys(
        ("muse_glimmer_vision", "muse_spark_vision"),
        lambda made, count, side, depth: (made.batch * count, 2 * depth * side * side),
    ),
    "gemma4_unified_vision": lambda made, count, side, depth: (
        *(made.batch, count),
        depth * (side * made.vision.pooling_kernel_size) ** 2,
    ),
    "inkling2_vision": lambda made, count, side, depth: (made.batch * count, 2 * side, 2 * side, depth),
    "inkling_vision": lambda made, count, side, depth: (made.batch * count, 2, side, side, depth),
    "neomme": lambda made, count, side, depth: (made.batch * count, depth * side * side),
}
"""Vision parts whose images are cut into patches before: the shape of P patches in each row, side by side, of C."""


def _pixel_values(made: _Example) -> torch.Tensor | None:
    vision, kind = made.vision, made.config.model_type
    if vision is None or (made.has("pixel_values_videos") and made.needs("pixel_values_videos")):
        return None
    channels = _channels(vision)
    if vision.model_type in _PATCHES:
        count = _rows_columns(made)[0] * _rows_columns(made)[1]
        return made.noise(*_PATCHES[vision.model_type](made, count, vision.patch_size, channels))
    if made.has("image_grid_thw") or made.has("grid_thw") or _has_grid_hw(made):
        return _packed(made)
    height, width = _image_size(made)
    if kind in _PAIRS:
        return made.noise(made.batch, 2, channels, height, width)
    if kind in _TILED or made.has("pixel_attention_mask"):
        between = (1, _tiles(made)) if kind == "mllama" else (_tiles(made),)
        return made.noise(made.batch, *between, channels, height, width)
    frames = getattr(vision, "num_frames", None) or getattr(vision, "frames_per_clip", None)
    if kind in _VIDEOS or (frames and _is_video(made)):
        return made.noise(made.batch, frames or 4, channels, height, width)
    return made.noise(made.batch, channels, height, width)


def _is_video(made: _Example) -> bool:
    return getattr(made.module, "main_input_name", "") == "pixel_values" and not hasattr(made.vision, "tube_size")


def _pixel_values_videos(made: _Example) -> torch.Tensor | None:
    """Videos only for a model of them: the others take images the same way."""
    if "pixel_values" in made.accepted or made.vision is None:
        return None
    frames = getattr(made.vision, "num_frames", None) or getattr(made.vision, "frames_per_clip", None) or 4
    return made.noise(made.batch, frames, _channels(made.vision), *_image_size(made))


def _flattened_patches(made: _Example) -> torch.Tensor:
    """Pix2Struct's: each patch's row and column, from 1, and its values, [B, P, 2 + D]."""
    patches = made.noise(made.batch, 6, made.vision.patch_embed_hidden_size)
    places = torch.cartesian_prod(torch.arange(1, 3), torch.arange(1, 4)).to(made.floats)
    return torch.cat([places.expand(made.batch, -1, -1), patches], 2)


def _tiles(made: _Example) -> int:
    """How many images a row's image is cut into: one of each part, and a small one of the whole."""
    sizes = getattr(made.config, "image_grid_pinpoints", None)
    if not sizes:
        return getattr(made.vision, "max_num_tiles", None) or 1
    side = _image_size(made)[0]
    return sizes[0][0] * sizes[0][1] // side**2 + 1


def _packed(made: _Example) -> torch.Tensor:
    """Rows of flattened patches of `_grid`'s images, [sum of their patches, D]."""
    vision = made.vision
    depth = getattr(vision, "temporal_patch_size", None) or 1
    return made.noise(int(_grid(made).prod(1).sum()), _channels(vision) * depth * vision.patch_size**2)


def _has_grid_hw(made: _Example) -> bool:
    """Whether images are packed: what sees could take them so, and what it is part of does."""
    return made.has("image_grid_hw") and made.vision is not made.config


def _rows_columns(made: _Example) -> tuple[int, int]:
    """Rows and columns of an image's patches: twice what is merged into one token, where it is."""
    vision = made.vision
    if hasattr(vision, "pooling_kernel_size"):
        return vision.pooling_kernel_size, 2 * vision.pooling_kernel_size
    if made.has("target_sizes"):
        return 4, 8
    merge = getattr(vision, "spatial_merge_size", None) or 2
    return 2 * merge, 2 * merge


def _grid(made: _Example) -> torch.Tensor:
    """Each image's frames, rows and columns of patches, int64 [B, 3]."""
    return torch.tensor([[1, *_rows_columns(made)]]).repeat(made.batch, 1)


def _image_positions(made: _Example) -> torch.Tensor:
    """Column and row of each patch, int64 [B, P, 2]."""
    rows, columns = _rows_columns(made)
    found = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(1)
    return found.repeat(made.batch, 1, 1)


def _image_size(made: _Example) -> tuple[int, int]:
    """The side that the config says, or else one that every stride divides."""
    vision = made.vision
    if made.has("prompt_pixel_values"):  # one above the other
        return vision.image_size[0] // 2, vision.image_size[1]
    if hasattr(vision, "scaled_images_ratios"):  # a patch at the smallest of the scales
        return (int(vision.patch_size / min(vision.scaled_images_ratios)),) * 2
    parts = (vision, getattr(vision, "backbone_config", None), getattr(vision, "encoder", None))
    for part in parts:
        if part is not None and getattr(part, "model_type", "") in _INTERPOLATING:
            return 8 * part.patch_size, 10 * part.patch_size
    sizes = [
        getattr(part, name, None)
        for part in parts
        for name in ("image_size", "crop_size", "input_size", "max_img_size")
    ]
    size = next((size for size in sizes if size), 128)
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _channels(vision: Any) -> int:
    return getattr(vision, "num_channels", None) or getattr(vision, "in_channels", None) or 3


def _image_sizes(made: _Example) -> torch.Tensor | None:
    pixels = made.inputs.get("pixel_values")
    if pixels is None or not made.needs("image_sizes"):
        return None
    sizes = getattr(made.config, "image_grid_pinpoints", None)
    return torch.tensor([sizes[0] if sizes else pixels.shape[-2:]]).repeat(made.batch, 1)


def _pixel_mask(made: _Example) -> torch.Tensor | None:
    pixels = made.inputs.get("pixel_values")
    return None if pixels is None else torch.ones(*pixels.shape[:-3], *pixels.shape[-2:], dtype=torch.long)


def _pixel_attention_mask(made: _Example) -> torch.Tensor | None:
    pixels = made.inputs.get("pixel_values")
    if pixels is None or made.has("spatial_shapes") or made.config.model_type in ("granite_docling", "pi0"):
        return None if pixels is None else torch.ones(pixels.shape[:2], dtype=torch.bool)
    return _pixel_mask(made)


def _other_image(name: str) -> Callable[[_Example], torch.Tensor]:
    """An image of the size that another part's config says."""

    def make(made: _Example) -> torch.Tensor:
        part = getattr(made.config, name)
        return made.noise(made.batch, _channels(part), part.image_size, part.image_size)

    return make


def _aspect_ratio_ids(made: _Example) -> torch.Tensor:
    """The last of the ratios, which has all tiles."""
    return torch.full((made.batch, 1), len(made.vision.supported_aspect_ratios))


def _of_images(shape: Callable[[_Example], tuple[int, ...]]) -> Callable[[_Example], torch.Tensor | None]:
    """Ones, where there are images."""
    return lambda made: torch.ones(*shape(made), dtype=torch.long) if _has_images(made) else None


def _spatial_shapes(made: _Example) -> torch.Tensor:
    return torch.tensor([_rows_columns(made)]).repeat(made.batch, 1)


def _token_pooling(made: _Example) -> torch.Tensor:
    """The four patches of each token, counted over all images, int64 [B * P / 4, 4]."""
    rows, columns = _rows_columns(made)
    patches = torch.arange(made.batch * rows * columns).view(made.batch, rows // 2, 2, columns // 2, 2)
    return patches.transpose(2, 3).reshape(-1, 4)


def _image_grids(made: _Example) -> torch.Tensor:
    """Rows and columns of tokens of the whole image, and none of its parts."""
    rows, columns = _rows_columns(made)
    return torch.tensor([[rows // 2, columns // 2, 0, 0]]).repeat(made.batch, 1)


def _merge_sizes(made: _Example) -> torch.Tensor | None:
    return torch.full((made.batch,), 2) if _has_images(made) else None


def _hidden_states(made: _Example) -> torch.Tensor | None:
    """What a part takes of the part before it."""
    if made.has("grid_thw"):
        return _packed(made)
    if made.config.model_type == "vibevoice_acoustic_tokenizer_encoder":
        return made.noise(made.batch, made.config.channels, _SAMPLES)
    if made.config.model_type == "vibevoice_acoustic_tokenizer_decoder":
        return made.noise(made.batch, made.config.hidden_size, 4)
    return None


def _inputs_embeds(made: _Example) -> torch.Tensor | None:
    """For a part that takes nothing else."""
    if made.inputs or made.has("input_ids"):
        return None
    return made.noise(made.batch, made.length, made.config.hidden_size)


# --- sound ----------------------------------------------------------------------------------------------------------

_SAMPLES = 7680
_FRAMES = 96
_MELS_FIRST = ("glmasr_encoder", "qwen3_asr_encoder", "voxtral_realtime_encoder", "qwen2_5_omni_audio_encoder",
               "qwen3_omni_moe_audio_encoder", "clvp_decoder", "dots3_note_audio_encoder")  # fmt: skip
"""Audio parts that take mels before frames; those with a table of `max_source_positions` do, too."""

_TEXT_OR_SOUND = ("csm", "seamless_m4t", "seamless_m4t_v2")
"""Models that take one or the other."""

_SOUND_FOR_TEXT = ("pop2piano",)
"""Models that take sounds, as wide as they are, in place of the text that their class could take."""

_UNMASKED = ("granite_speech", "granite_speech_plus")
"""Models whose mask is not of the features that they take, but of those that they make."""

_STACKED = {"granite_speech5_encoder": 4}
"""How many frames are one, where the config does not say."""

_FEATURES = ("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim", "feature_size", "input_dim",
             "n_mel_bins", "input_feat_size", "audio_embed_dim")  # fmt: skip
_CODEC = ("audio_channels", "codebook_size", "downsampling_ratios", "upsampling_ratios")


def _input_values(made: _Example) -> torch.Tensor | None:
    config = made.config
    if config.model_type == "speecht5" and made.module.base_model is made.module:  # without what makes these of sound
        return made.noise(made.batch, made.length, config.hidden_size)
    alone = "input_ids" not in made.accepted or made.needs("input_values")
    if not alone and (made.config.model_type in _TEXT_OR_SOUND or not _waits_for_sound(made)):
        return None
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):  # a spectrogram, as AST takes
        return made.noise(made.batch, config.max_length, config.num_mel_bins)
    if made.has("padding_mask") or any(hasattr(config, name) for name in _CODEC):  # a codec's: with its channels
        return made.noise(made.batch, getattr(config, "audio_channels", None) or 1, _SAMPLES)
    return made.noise(made.batch, _SAMPLES)


def _decoder_values(made: _Example) -> torch.Tensor:
    """A spectrogram, or what SpeechT5's bare model has instead."""
    bare = made.module.base_model is made.module
    return made.noise(made.batch, made.length - 1, made.config.hidden_size if bare else made.config.num_mel_bins)


def _waits_for_sound(made: _Example) -> bool:
    return _token(made, _AUDIO_TOKENS) is not None and made.audio is not None


def _mels_first(made: _Example) -> bool:
    audio = made.audio
    whisper = hasattr(audio, "num_mel_bins") and hasattr(audio, "max_source_positions")
    other = hasattr(audio, "input_feat_per_channel") or hasattr(audio, "feature_projection_input_dim")
    return audio.model_type in _MELS_FIRST or (whisper and not other)


def _frames(made: _Example) -> int:
    """As many as the table of positions has places for, or else a whole number of windows."""
    audio = made.audio
    if _mels_first(made) and hasattr(audio, "max_source_positions") and not hasattr(audio, "n_window"):
        return 2 * int(audio.max_source_positions)
    if made.needs("input_values") and made.needs("input_features"):  # the same sound twice
        return _SAMPLES // (getattr(made.config, "encoder_hop_length", None) or made.config.hop_length)
    step = 2 * getattr(audio, "n_window", 1)
    return -(-_FRAMES // step) * step


def _input_features(made: _Example) -> torch.Tensor | None:
    audio = made.audio
    kind = made.config.model_type
    either = (kind in _TEXT_OR_SOUND and made.has("input_ids")) or made.has("input_values")
    if audio is None or (either and not made.needs("input_features")):
        return None
    bins = _inner(audio, ("d_model",) if kind in _SOUND_FOR_TEXT else _FEATURES)
    bins = bins if isinstance(bins, int) else 128
    bins *= getattr(audio, "num_stacked_frames", None) or _STACKED.get(audio.model_type, 1)
    if hasattr(audio, "spec_size"):  # CLAP: a spectrum somewhat shorter than the image that it is stretched to
        return made.noise(made.batch, 1, audio.spec_size * (audio.spec_size // bins) - 23, bins)
    shape = (bins, _frames(made)) if _mels_first(made) else (_frames(made), bins)
    return made.noise(made.batch, *shape)


def _audio_ids(made: _Example) -> torch.Tensor:
    """Sounds as whole numbers: one of each codebook, or one of each mel, at each moment."""
    if hasattr(made.config, "num_codebooks"):
        return made.ids(made.batch, 4, made.config.num_codebooks, vocab=made.config.codebook_size)
    return made.ids(made.batch, 4, made.audio.n_mel_bins, vocab=made.audio.mel_vocab_size)


def _features_mask(made: _Example, name: str = "input_features_mask") -> torch.Tensor | None:
    features = made.inputs.get("input_features")
    if features is None or made.config.model_type in _UNMASKED:
        return None
    frames = features.shape[-1] if _mels_first(made) else features.shape[1]
    return torch.ones(made.batch, frames, dtype=torch.long if name == "feature_attention_mask" else torch.bool)


def _padding_mask(made: _Example) -> torch.Tensor | None:
    """Of samples, where the model needs it to know their number."""
    return torch.ones(made.batch, _SAMPLES, dtype=torch.long) if made.needs("padding_mask") else None


# --- other things ---------------------------------------------------------------------------------------------------


def _series(kind: str = "noise") -> Callable[[_Example], torch.Tensor]:
    """What was seen of one number or of several at each moment of the past."""

    def make(made: _Example) -> torch.Tensor:
        config = made.config
        past = config.context_length + max(getattr(config, "lags_sequence", None) or [0])
        channels = getattr(config, "num_input_channels", None) or getattr(config, "input_size", 1)
        single = channels == 1 and not hasattr(config, "num_input_channels")
        shape = (made.batch, past) if single else (made.batch, past, channels)
        values = {"noise": made.noise, "ones": torch.ones, "zeros": torch.zeros}[kind](*shape)
        return values if kind != "zeros" else values.long()

    return make


def _time_features(steps: str) -> Callable[[_Example], torch.Tensor]:
    def make(made: _Example) -> torch.Tensor:
        config = made.config
        past = config.context_length + max(config.lags_sequence)
        count = past if steps == "past" else config.prediction_length
        return made.noise(made.batch, count, max(config.num_time_features, 0))

    return make


def _future_values(made: _Example) -> torch.Tensor | None:
    config = made.config
    if not hasattr(config, "lags_sequence"):
        return None
    return made.noise(made.batch, config.prediction_length)


def _steps(width: str, kind: str = "noise") -> Callable[[_Example], torch.Tensor]:
    """A decision transformer's: one row for each of `length` moments."""

    def make(made: _Example) -> torch.Tensor:
        size = getattr(made.config, width, 1)
        if kind == "timesteps":
            return torch.arange(made.length).repeat(made.batch, 1)
        return made.noise(made.batch, made.length, size)

    return make


def _visual(width: str) -> Callable[[_Example], torch.Tensor | None]:
    regions = 5

    def make(made: _Example) -> torch.Tensor | None:
        size = getattr(made.config, width, None)
        return None if size is None else made.noise(made.batch, regions, size)

    return make


def _of_points(made: _Example) -> torch.Tensor:
    """Three points in each of two groups, x and y in pixels, [B, 2, 3, 2]."""
    return torch.rand(made.batch, 2, 3, 2, generator=made.generator).mul(8).to(made.floats)


def _point_labels(made: _Example) -> torch.Tensor | None:
    """Whether each point is of the object, [B, 2, 3]."""
    if "input_points" not in made.inputs:
        return None
    return torch.randint(2, made.inputs["input_points"].shape[:-1], generator=made.generator)


def _noise(made: _Example) -> torch.Tensor | None:
    """What decides the patches that a masked autoencoder sees, one number a patch; or what becomes actions."""
    if hasattr(made.config, "max_action_dim"):
        return made.noise(made.batch, made.config.chunk_size, made.config.max_action_dim)
    return _of_patches(made)


def _hidden_patches(made: _Example) -> torch.Tensor | None:
    """Which patches a class that learns by filling them in does not see, [B, P]; others may leave it out."""
    numbers = _of_patches(made) if type(made.module).__name__.endswith("ForMaskedImageModeling") else None
    return None if numbers is None else numbers < 0.5


def _of_patches(made: _Example) -> torch.Tensor | None:
    """A number from 0 to 1 for each patch of the image, [B, P]."""
    if "pixel_values" not in made.inputs or not isinstance(getattr(made.config, "patch_size", None), int):
        return None
    height, width = made.inputs["pixel_values"].shape[-2:]
    patches = (height // made.config.patch_size) * (width // made.config.patch_size)
    return torch.rand(made.batch, patches, generator=made.generator).to(made.floats)


# What other inputs are made of comes first: an image before the tokens that stand for it.
_MAKERS: dict[str, Callable[[_Example], torch.Tensor | None]] = {
    "pixel_values": _pixel_values,
    "prompt_pixel_values": _pixel_values,
    "prompt_masks": _pixel_values,
    "pixel_values_videos": _pixel_values_videos,
    "flattened_patches": _flattened_patches,
    "high_res_pixel_values": _other_image("high_res_vision_config"),
    "image_grid_thw": lambda made: _grid(made) if _has_images(made) else None,
    "grid_thw": _grid,
    "image_grid_hw": lambda made: _grid(made)[:, 1:] if _has_grid_hw(made) else None,
    "hidden_states": _hidden_states,
    "image_sizes": _image_sizes,
    "image_position_ids": lambda made: _image_positions(made) if _has_images(made) else None,
    "pixel_position_ids": _image_positions,
    "target_sizes": _spatial_shapes,
    "image_token_pooling": _token_pooling,
    "image_grids": _image_grids,
    "image_merge_sizes": _merge_sizes,
    "merge_sizes": _merge_sizes,
    "aspect_ratio_ids": _aspect_ratio_ids,
    "aspect_ratio_mask": _of_images(lambda made: (made.batch, 1, _tiles(made))),
    "pixel_attention_mask": _pixel_attention_mask,
    "spatial_shapes": _spatial_shapes,
    "input_features": _input_features,
    "audio_mel": _input_features,
    "audio_input_ids": _audio_ids,
    "chunk_sample_lengths": lambda made: torch.full((made.batch,), 160 * _frames(made)),
    "input_features_mask": _features_mask,
    "feature_attention_mask": lambda made: _features_mask(made, "feature_attention_mask"),
    "audio_mel_mask": lambda made: torch.zeros(made.batch, _frames(made), dtype=torch.bool),  # True is padding
    "input_values": _input_values,
    "padding_mask": _padding_mask,
    "qformer_input_ids": lambda made: made.ids(made.batch, made.length),
    "input_ids": _input_ids,
    "image_embeds_position_mask": _image_embeds_position_mask,
    "attention_mask": _attention_mask,
    "token_type_ids": _token_type_ids,
    "mm_token_type_ids": _mm_token_type_ids,
    "bbox": _bbox,
    "global_attention_mask": _global_attention_mask,
    "mc_token_ids": lambda made: torch.randint(made.length, (made.batch, _CHOICES), generator=made.generator),
    "image_attention_mask": lambda made: (  # which images each token sees
        torch.ones(*made.inputs["input_ids"].shape, 1, dtype=torch.long) if made.config.model_type in _TILED else None
    ),
    "cross_attention_mask": _of_images(lambda made: (*made.inputs["input_ids"].shape, 1, _tiles(made))),
    "entity_ids": lambda made: made.ids(made.batch, 2, vocab=made.config.entity_vocab_size),
    "entity_position_ids": lambda made: torch.arange(4).view(2, 2).repeat(made.batch, 1, 1),
    "input_shape_ids": lambda made: made.ids(made.batch, made.length, vocab=made.config.shape_vocab_size),
    "input_pronunciation_ids": lambda made: made.ids(
        made.batch, made.length, vocab=made.config.pronunciation_vocab_size
    ),
    "xpath_tags_seq": lambda made: made.ids(made.batch, made.length, made.config.max_depth, vocab=99),
    "xpath_subs_seq": lambda made: made.ids(made.batch, made.length, made.config.max_depth, vocab=99),
    "visual_feats": _visual("visual_feat_dim"),
    "visual_pos": _visual("visual_pos_dim"),
    "visual_embeds": _visual("visual_embedding_dim"),
    "state": lambda made: made.noise(made.batch, made.config.max_state_dim) if made.needs("state") else None,
    "query_embeds": lambda made: made.noise(made.batch, 5, made.config.hidden_size),
    "encoder_hidden_states": lambda made: (
        made.noise(made.batch, 7, made.config.encoder_hidden_size) if made.has("query_embeds") else None
    ),
    "decoder_input_ids": _decoder_ids,
    "decoder_attention_mask": _decoder_mask,
    "past_values": _series(),
    "past_observed_mask": _series("ones"),
    "past_values_padding": _series("zeros"),
    "freq": lambda made: torch.ones(made.batch, 1, dtype=torch.long),
    "past_time_features": _time_features("past"),
    "future_time_features": _time_features("future"),
    "future_values": _future_values,
    "states": _steps("state_dim"),
    "actions": lambda made: _steps("act_dim")(made) if hasattr(made.config, "act_dim") else None,
    "timestep": lambda made: torch.rand(made.batch, generator=made.generator).to(made.floats),
    "rewards": _steps("none"),
    "returns_to_go": _steps("none"),
    "timesteps": _steps("none", "timesteps"),
    "input_points": _of_points,
    "input_labels": _point_labels,
    "latents": lambda made: made.noise(made.batch, made.config.hidden_size, 4),
    "inputs": lambda made: made.noise(made.batch, made.length, made.config.d_model) if made.needs("inputs") else None,
    "decoder_input_values": _decoder_values,
    "task_inputs": lambda made: made.ids(made.batch, made.config.task_seq_len),
    "action_embeds": lambda made: made.noise(made.batch, 4, made.config.dit_config.hidden_size),
    "noise_embeds": lambda made: made.noise(made.batch, _NOISY, made.config.hidden_size),
    "context_hidden_states": lambda made: made.noise(made.batch, made.length, made.config.hidden_size),
    "noise": _noise,
    "bool_masked_pos": _hidden_patches,
    "inputs_embeds": _inputs_embeds,
}
