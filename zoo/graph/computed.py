"""Tensors that some checkpoints hold although the model computes them: losing one loses nothing."""

from __future__ import annotations

import re

__all__ = ["COMPUTED", "is_computed"]

COMPUTED = "the model computes it"
"""Why such a tensor is dropped."""

_NAMES = re.compile(
    r"(.*\.)?(position_ids|token_type_ids|inv_freq|rotary_emb\.inv_freq|masked_bias|num_batches_tracked"
    r"|relative_position_index|attn\.bias|attention\.bias|embed_positions\.weights|rotary_emb\.(cos|sin)_cached)"
)


def is_computed(name: str) -> bool:
    """Whether a tensor of this name follows from the config, so that a checkpoint that lacks it lacks nothing."""
    return _NAMES.fullmatch(name) is not None
