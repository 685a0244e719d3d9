"""What models of sound take.

Shape legend: B batch, T tokens, F frames, M mels.
"""

from __future__ import annotations

import torch

from zoo.capture.huggingface.inputs.example import AUDIO_TOKENS, Example, inner_config, token_of
from zoo.special_cases import special_case

__all__ = [
    "SAMPLES",
    "audio_ids",
    "decoder_values",
    "features_mask",
    "frames",
    "input_features",
    "input_values",
    "mels_first",
    "padding_mask",
]

SAMPLES = 7680

_FRAMES = 96

_FEATURES = ("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim", "feature_size", "input_dim",
             "n_mel_bins", "input_feat_size", "audio_embed_dim")  # fmt: skip

_CODEC = ("audio_channels", "codebook_size", "downsampling_ratios", "upsampling_ratios")


def input_values(made: Example) -> torch.Tensor | None:
    config = made.config
    if (
        config.model_type in special_case("hidden states for sound") and made.module.base_model is made.module
    ):  # without what makes these of sound
        return made.noise(made.batch, made.length, config.hidden_size)
    alone = "input_ids" not in made.accepted or made.needs("input_values")
    if not alone and (made.config.model_type in special_case("text or sound") or not _waits_for_sound(made)):
        return None
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):  # a spectrogram, as AST takes
        return made.noise(made.batch, config.max_length, config.num_mel_bins)
    if made.has("padding_mask") or any(hasattr(config, name) for name in _CODEC):  # a codec's: with its channels
        return made.noise(made.batch, getattr(config, "audio_channels", None) or 1, SAMPLES)
    return made.noise(made.batch, SAMPLES)


def decoder_values(made: Example) -> torch.Tensor:
    """A spectrogram, or what SpeechT5's bare model has instead."""
    bare = made.module.base_model is made.module
    return made.noise(made.batch, made.length - 1, made.config.hidden_size if bare else made.config.num_mel_bins)


def _waits_for_sound(made: Example) -> bool:
    return token_of(made, AUDIO_TOKENS) is not None and made.audio is not None


def mels_first(made: Example) -> bool:
    audio = made.audio
    whisper = hasattr(audio, "num_mel_bins") and hasattr(audio, "max_source_positions")
    other = hasattr(audio, "input_feat_per_channel") or hasattr(audio, "feature_projection_input_dim")
    return audio.model_type in special_case("mels first") or (whisper and not other)


def frames(made: Example) -> int:
    """As many as the table of positions has places for, or else a whole number of windows."""
    audio = made.audio
    if mels_first(made) and hasattr(audio, "max_source_positions") and not hasattr(audio, "n_window"):
        return 2 * int(audio.max_source_positions)
    if made.needs("input_values") and made.needs("input_features"):  # the same sound twice
        return SAMPLES // (getattr(made.config, "encoder_hop_length", None) or made.config.hop_length)
    step = 2 * getattr(audio, "n_window", 1)
    return -(-_FRAMES // step) * step


def input_features(made: Example) -> torch.Tensor | None:
    audio = made.audio
    kind = made.config.model_type
    either = (kind in special_case("text or sound") and made.has("input_ids")) or made.has("input_values")
    if audio is None or (either and not made.needs("input_features")):
        return None
    bins = inner_config(audio, ("d_model",) if kind in special_case("sound in place of text") else _FEATURES)
    bins = bins if isinstance(bins, int) else 128
    bins *= getattr(audio, "num_stacked_frames", None) or special_case("stacked frames").get(audio.model_type, 1)
    if hasattr(audio, "spec_size"):  # CLAP: a spectrum somewhat shorter than the image that it is stretched to
        return made.noise(made.batch, 1, audio.spec_size * (audio.spec_size // bins) - 23, bins)
    shape = (bins, frames(made)) if mels_first(made) else (frames(made), bins)
    return made.noise(made.batch, *shape)


def audio_ids(made: Example) -> torch.Tensor:
    """Sounds as whole numbers: one of each codebook, or one of each mel, at each moment."""
    if hasattr(made.config, "num_codebooks"):
        return made.ids(made.batch, 4, made.config.num_codebooks, vocab=made.config.codebook_size)
    return made.ids(made.batch, 4, made.audio.n_mel_bins, vocab=made.audio.mel_vocab_size)


def features_mask(made: Example, name: str = "input_features_mask") -> torch.Tensor | None:
    features = made.inputs.get("input_features")
    if features is None or made.config.model_type in special_case("mask of made features"):
        return None
    frames = features.shape[-1] if mels_first(made) else features.shape[1]
    return torch.ones(made.batch, frames, dtype=torch.long if name == "feature_attention_mask" else torch.bool)


def padding_mask(made: Example) -> torch.Tensor | None:
    """Of samples, where the model needs it to know their number."""
    return torch.ones(made.batch, SAMPLES, dtype=torch.long) if made.needs("padding_mask") else None
