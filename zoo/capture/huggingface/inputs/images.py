"""What models of images and videos take.

Shape legend: B batch, H W an image's sides, C its channels, P patches, D a patch's values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from zoo.capture.huggingface.inputs.audio import SAMPLES
from zoo.capture.huggingface.inputs.example import Example, has_images
from zoo.special_cases import special_case

__all__ = [
    "aspect_ratio_ids",
    "flattened_patches",
    "grid",
    "has_grid_hw",
    "hidden_patches",
    "hidden_states",
    "image_grids",
    "image_positions",
    "image_sizes",
    "merge_sizes",
    "of_images",
    "of_patches",
    "of_points",
    "other_image",
    "pixel_attention_mask",
    "pixel_values",
    "pixel_values_videos",
    "point_labels",
    "spatial_shapes",
    "token_pooling",
]

_PATCHES: dict[str, Callable[[Example, int, int, int], tuple[int, ...]]] = {
    "rows of flat patches": lambda made, count, side, depth: (made.batch, count, depth * side * side),
    "rows of flat pooled patches": lambda made, count, side, depth: (
        *(made.batch, count),
        depth * (side * made.vision.pooling_kernel_size) ** 2,
    ),
    "flat patches of all rows": lambda made, count, side, depth: (made.batch * count, depth * side * side),
    "flat pairs of patches of all rows": lambda made, count, side, depth: (made.batch * count, 2 * depth * side * side),
    "patches of all rows": lambda made, count, side, depth: (made.batch * count, depth, side, side),
    "one strip of patches": lambda made, count, side, depth: (1, depth, side, made.batch * count * side),
    "patches of twice the side, channels last": lambda made, count, side, depth: (
        *(made.batch * count, 2 * side),
        *(2 * side, depth),
    ),
    "pairs of patches, channels last": lambda made, count, side, depth: (made.batch * count, 2, side, side, depth),
}
"""The shape of images that were cut into patches before: P patches in each row, side by side, of C channels."""


def pixel_values(made: Example) -> torch.Tensor | None:
    vision, kind = made.vision, made.config.model_type
    if vision is None or (made.has("pixel_values_videos") and made.needs("pixel_values_videos")):
        return None
    channels = _channels(vision)
    if layout := special_case("patches").get(vision.model_type):
        count = _rows_columns(made)[0] * _rows_columns(made)[1]
        return made.noise(*_PATCHES[layout](made, count, vision.patch_size, channels))
    if made.has("image_grid_thw") or made.has("grid_thw") or has_grid_hw(made):
        return packed(made)
    height, width = _image_size(made)
    if kind in special_case("pairs of images"):
        return made.noise(made.batch, 2, channels, height, width)
    if kind in special_case("tiles") or made.has("pixel_attention_mask"):
        between = (1, tiles(made)) if kind in special_case("tiles of several images") else (tiles(made),)
        return made.noise(made.batch, *between, channels, height, width)
    frames = getattr(vision, "num_frames", None) or getattr(vision, "frames_per_clip", None)
    if kind in special_case("videos") or (frames and _is_video(made)):
        return made.noise(made.batch, frames or 4, channels, height, width)
    return made.noise(made.batch, channels, height, width)


def _is_video(made: Example) -> bool:
    return getattr(made.module, "main_input_name", "") == "pixel_values" and not hasattr(made.vision, "tube_size")


def pixel_values_videos(made: Example) -> torch.Tensor | None:
    """Videos only for a model of them: the others take images the same way."""
    if "pixel_values" in made.accepted or made.vision is None:
        return None
    frames = getattr(made.vision, "num_frames", None) or getattr(made.vision, "frames_per_clip", None) or 4
    return made.noise(made.batch, frames, _channels(made.vision), *_image_size(made))


def flattened_patches(made: Example) -> torch.Tensor:
    """Pix2Struct's: each patch's row and column, from 1, and its values, [B, P, 2 + D]."""
    patches = made.noise(made.batch, 6, made.vision.patch_embed_hidden_size)
    places = torch.cartesian_prod(torch.arange(1, 3), torch.arange(1, 4)).to(made.floats)
    return torch.cat([places.expand(made.batch, -1, -1), patches], 2)


def tiles(made: Example) -> int:
    """How many images a row's image is cut into: one of each part, and a small one of the whole."""
    sizes = getattr(made.config, "image_grid_pinpoints", None)
    if not sizes:
        return getattr(made.vision, "max_num_tiles", None) or 1
    side = _image_size(made)[0]
    return sizes[0][0] * sizes[0][1] // side**2 + 1


def packed(made: Example) -> torch.Tensor:
    """Rows of flattened patches of `grid`'s images, [sum of their patches, D]."""
    vision = made.vision
    depth = getattr(vision, "temporal_patch_size", None) or 1
    return made.noise(int(grid(made).prod(1).sum()), _channels(vision) * depth * vision.patch_size**2)


def has_grid_hw(made: Example) -> bool:
    """Whether images are packed: what sees could take them so, and what it is part of does."""
    return made.has("image_grid_hw") and made.vision is not made.config


def _rows_columns(made: Example) -> tuple[int, int]:
    """Rows and columns of an image's patches: twice what is merged into one token, where it is."""
    vision = made.vision
    if hasattr(vision, "pooling_kernel_size"):
        return vision.pooling_kernel_size, 2 * vision.pooling_kernel_size
    if made.has("target_sizes"):
        return 4, 8
    merge = getattr(vision, "spatial_merge_size", None) or 2
    return 2 * merge, 2 * merge


def grid(made: Example) -> torch.Tensor:
    """Each image's frames, rows and columns of patches, int64 [B, 3]."""
    return torch.tensor([[1, *_rows_columns(made)]]).repeat(made.batch, 1)


def image_positions(made: Example) -> torch.Tensor:
    """Column and row of each patch, int64 [B, P, 2]."""
    rows, columns = _rows_columns(made)
    found = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(1)
    return found.repeat(made.batch, 1, 1)


def _image_size(made: Example) -> tuple[int, int]:
    """The side that the config says, or else one that every stride divides."""
    vision = made.vision
    if made.has("prompt_pixel_values"):  # one above the other
        return vision.image_size[0] // 2, vision.image_size[1]
    if hasattr(vision, "scaled_images_ratios"):  # a patch at the smallest of the scales
        return (int(vision.patch_size / min(vision.scaled_images_ratios)),) * 2
    parts = (vision, getattr(vision, "backbone_config", None), getattr(vision, "encoder", None))
    for part in parts:
        if part is not None and getattr(part, "model_type", "") in special_case("positions interpolated"):
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


def image_sizes(made: Example) -> torch.Tensor | None:
    pixels = made.inputs.get("pixel_values")
    if pixels is None or not made.needs("image_sizes"):
        return None
    sizes = getattr(made.config, "image_grid_pinpoints", None)
    return torch.tensor([sizes[0] if sizes else pixels.shape[-2:]]).repeat(made.batch, 1)


def _pixel_mask(made: Example) -> torch.Tensor | None:
    pixels = made.inputs.get("pixel_values")
    return None if pixels is None else torch.ones(*pixels.shape[:-3], *pixels.shape[-2:], dtype=torch.long)


def pixel_attention_mask(made: Example) -> torch.Tensor | None:
    pixels = made.inputs.get("pixel_values")
    if pixels is None or made.has("spatial_shapes") or made.config.model_type in special_case("mask of whole images"):
        return None if pixels is None else torch.ones(pixels.shape[:2], dtype=torch.bool)
    return _pixel_mask(made)


def other_image(name: str) -> Callable[[Example], torch.Tensor]:
    """An image of the size that another part's config says."""

    def make(made: Example) -> torch.Tensor:
        part = getattr(made.config, name)
        return made.noise(made.batch, _channels(part), part.image_size, part.image_size)

    return make


def aspect_ratio_ids(made: Example) -> torch.Tensor:
    """The last of the ratios, which has all tiles."""
    return torch.full((made.batch, 1), len(made.vision.supported_aspect_ratios))


def of_images(shape: Callable[[Example], tuple[int, ...]]) -> Callable[[Example], torch.Tensor | None]:
    """Ones, where there are images."""
    return lambda made: torch.ones(*shape(made), dtype=torch.long) if has_images(made) else None


def spatial_shapes(made: Example) -> torch.Tensor:
    return torch.tensor([_rows_columns(made)]).repeat(made.batch, 1)


def token_pooling(made: Example) -> torch.Tensor:
    """The four patches of each token, counted over all images, int64 [B * P / 4, 4]."""
    rows, columns = _rows_columns(made)
    patches = torch.arange(made.batch * rows * columns).view(made.batch, rows // 2, 2, columns // 2, 2)
    return patches.transpose(2, 3).reshape(-1, 4)


def image_grids(made: Example) -> torch.Tensor:
    """Rows and columns of tokens of the whole image, and none of its parts."""
    rows, columns = _rows_columns(made)
    return torch.tensor([[rows // 2, columns // 2, 0, 0]]).repeat(made.batch, 1)


def merge_sizes(made: Example) -> torch.Tensor | None:
    return torch.full((made.batch,), 2) if has_images(made) else None


def hidden_states(made: Example) -> torch.Tensor | None:
    """What a part takes of the part before it."""
    if made.has("grid_thw"):
        return packed(made)
    if made.config.model_type in special_case("sound as samples of channels"):
        return made.noise(made.batch, made.config.channels, SAMPLES)
    if made.config.model_type in special_case("sound as latents"):
        return made.noise(made.batch, made.config.hidden_size, 4)
    return None


def hidden_patches(made: Example) -> torch.Tensor | None:
    """Which patches a class that learns by filling them in does not see, [B, P]; others may leave it out."""
    numbers = of_patches(made) if type(made.module).__name__.endswith("ForMaskedImageModeling") else None
    return None if numbers is None else numbers < 0.5


def of_patches(made: Example) -> torch.Tensor | None:
    """A number from 0 to 1 for each patch of the image, [B, P]."""
    if "pixel_values" not in made.inputs or not isinstance(getattr(made.config, "patch_size", None), int):
        return None
    height, width = made.inputs["pixel_values"].shape[-2:]
    patches = (height // made.config.patch_size) * (width // made.config.patch_size)
    return torch.rand(made.batch, patches, generator=made.generator).to(made.floats)


def of_points(made: Example) -> torch.Tensor:
    """Three points in each of two groups, x and y in pixels, [B, 2, 3, 2]."""
    return torch.rand(made.batch, 2, 3, 2, generator=made.generator).mul(8).to(made.floats)


def point_labels(made: Example) -> torch.Tensor | None:
    """Whether each point is of the object, [B, 2, 3]."""
    if "input_points" not in made.inputs:
        return None
    return torch.randint(2, made.inputs["input_points"].shape[:-1], generator=made.generator)
