"""Tensors that some checkpoints hold although the model computes them: losing one loses nothing."""

from __future__ import annotations

import re

import numpy as np

__all__ = ["COMPUTED", "is_computed", "sinusoids"]

COMPUTED = "the model computes it"
"""Why such a tensor is dropped."""

_NAMES = re.compile(
    r"(.*\.)?(position_ids|token_type_ids|inv_freq|rotary_emb\.inv_freq|masked_bias|num_batches_tracked"
    r"|relative_position_index|attn\.bias|attention\.bias|embed_positions\.weights|rotary_emb\.(cos|sin)_cached)"
)


def is_computed(name: str) -> bool:
    """Whether a tensor of this name follows from the config, so that a checkpoint that lacks it lacks nothing."""
    return _NAMES.fullmatch(name) is not None


def sinusoids(shape: tuple[int, ...]) -> np.ndarray:
    """The table of positions [rows, width] that Marian, Pegasus and others compute: all sines, then all cosines.

    Source: Vaswani et al. 2017, section 3.5, in the order of transformers' modeling_marian.py; float32.
    """
    rows, width = shape
    angles = np.arange(rows)[:, None] / np.power(10000, 2 * (np.arange(width) // 2) / width)
    return np.concatenate([np.sin(angles[:, 0::2]), np.cos(angles[:, 1::2])], 1).astype(np.float32)
