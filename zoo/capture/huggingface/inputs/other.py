"""What models of time series, of decisions and of tables of regions take, and what makes actions of noise."""

from __future__ import annotations

from collections.abc import Callable

import torch

from zoo.capture.huggingface.inputs.example import Example
from zoo.capture.huggingface.inputs.images import of_patches

__all__ = ["future_values", "inputs_embeds", "noise", "series", "steps", "time_features", "visual"]


def series(kind: str = "noise") -> Callable[[Example], torch.Tensor]:
    """What was seen of one number or of several at each moment of the past."""

    def make(made: Example) -> torch.Tensor:
        config = made.config
        past = config.context_length + max(getattr(config, "lags_sequence", None) or [0])
        channels = getattr(config, "num_input_channels", None) or getattr(config, "input_size", 1)
        single = channels == 1 and not hasattr(config, "num_input_channels")
        shape = (made.batch, past) if single else (made.batch, past, channels)
        values = {"noise": made.noise, "ones": torch.ones, "zeros": torch.zeros}[kind](*shape)
        return values if kind != "zeros" else values.long()

    return make


def time_features(steps: str) -> Callable[[Example], torch.Tensor]:
    def make(made: Example) -> torch.Tensor:
        config = made.config
        past = config.context_length + max(config.lags_sequence)
        count = past if steps == "past" else config.prediction_length
        return made.noise(made.batch, count, max(config.num_time_features, 0))

    return make


def future_values(made: Example) -> torch.Tensor | None:
    config = made.config
    if not hasattr(config, "lags_sequence"):
        return None
    return made.noise(made.batch, config.prediction_length)


def steps(width: str, kind: str = "noise") -> Callable[[Example], torch.Tensor]:
    """A decision transformer's: one row for each of `length` moments."""

    def make(made: Example) -> torch.Tensor:
        size = getattr(made.config, width, 1)
        if kind == "timesteps":
            return torch.arange(made.length).repeat(made.batch, 1)
        return made.noise(made.batch, made.length, size)

    return make


def visual(width: str) -> Callable[[Example], torch.Tensor | None]:
    regions = 5

    def make(made: Example) -> torch.Tensor | None:
        size = getattr(made.config, width, None)
        return None if size is None else made.noise(made.batch, regions, size)

    return make


def noise(made: Example) -> torch.Tensor | None:
    """What decides the patches that a masked autoencoder sees, one number a patch; or what becomes actions."""
    if hasattr(made.config, "max_action_dim"):
        return made.noise(made.batch, made.config.chunk_size, made.config.max_action_dim)
    return of_patches(made)


def inputs_embeds(made: Example) -> torch.Tensor | None:
    """For a part that takes nothing else."""
    if made.inputs or made.has("input_ids"):
        return None
    return made.noise(made.batch, made.length, made.config.hidden_size)
