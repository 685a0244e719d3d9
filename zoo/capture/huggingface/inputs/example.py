"""Inputs in the making: what a class takes, and what its config says of its parts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import transformers

from zoo.special_cases import special_case

__all__ = ["AUDIO_TOKENS", "IMAGE_TOKENS", "Example", "has_images", "inner_config", "method_of", "token_of"]


@dataclass
class Example:
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
        return inner_config(self.config, ("vision_config", "image_config"))

    @cached_property
    def audio(self) -> Any:
        if self.config.model_type in special_case("sound is the decoder's"):
            return self.config.decoder_config
        return inner_config(self.config, ("audio_config", "encoder_config", "speech_config", "semantic_model_config"))

    @cached_property
    def needed(self) -> set[str]:
        """What the model cannot do without, for its text, its images or its sounds."""
        methods = [self.module.forward, *(method_of(self.module, name) for name in ("get_image_features",
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


def inner_config(config: Any, names: tuple[str, ...]) -> Any:
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


def method_of(module: Any, name: str) -> Any:
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


IMAGE_TOKENS = ("image_token_id", "image_token_index", "media_placeholder_token_id", "im_patch_id")

AUDIO_TOKENS = ("audio_token_id", "audio_token_index")


def token_of(made: Example, names: tuple[str, ...]) -> int | None:
    """The token that stands for an image or a sound."""
    found = inner_config(made.config, names)
    return found if isinstance(found, int) else None


def has_images(made: Example) -> bool:
    return "pixel_values" in made.inputs
