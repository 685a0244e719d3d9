"""T5X's names for T5 1.0, 1.1 and mT5: target/encoder/layers_0/attention/query/kernel, each dense layer [in, out].

Read only: T5X's own trainers are what wrote these, and nothing else reads them.
Sources: t5x/examples/t5/network.py and layers.py in https://github.com/google-research/t5x, which name the layers;
transformers 4's convert_t5x_checkpoint_to_pytorch.py for which torch tensor each is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from converters.checkpoint import Checkpoint
from converters.dialects.google_tf1_config import t5_config
from converters.dialects.shared import Dropped
from converters.dialects.tabled import read
from converters.dialects.tables import Row, Table
from converters.view import Concatenate, Recipe
from zoo.errors import ConfigError

__all__ = ["DROPPED", "NAME", "canonical", "config", "recognises"]

NAME = "t5x"

DROPPED: Dropped = ((r"state/.*", "state of the training"),)

_FIRST = "target/encoder/layers_0/attention/query/kernel"


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether there is a first layer under T5X's name."""
    return _FIRST in checkpoint.infos


def canonical(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """Canonical name -> recipe."""
    return read(Table([*_rows()]), checkpoint, config, DROPPED)


def config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config.json that follows from the tensors' shapes.

    Raises:
        ConfigError: tensors are missing that it follows from.
    """
    heads, buckets = _shape(checkpoint, "target/encoder/relpos_bias/rel_embedding")
    width, projected = _shape(checkpoint, _FIRST)
    gated = "target/encoder/layers_0/mlp/wi_0/kernel" in checkpoint.infos
    return t5_config(
        vocab_size=_shape(checkpoint, "target/token_embedder/embedding")[0],
        d_model=width,
        d_kv=projected // heads,
        d_ff=_shape(checkpoint, f"target/encoder/layers_0/mlp/{'wi_0' if gated else 'wi'}/kernel")[1],
        num_heads=heads,
        num_layers=_layers(checkpoint, "encoder"),
        num_decoder_layers=_layers(checkpoint, "decoder"),
        relative_attention_num_buckets=buckets,
        gated=gated,
        tied="target/decoder/logits_dense/kernel" not in checkpoint.infos,
    )


_ENCODER = (("pre_attention_layer_norm", "attention", "SelfAttention"),)
_DECODER = (
    ("pre_self_attention_layer_norm", "self_attention", "SelfAttention"),
    ("pre_cross_attention_layer_norm", "encoder_decoder_attention", "EncDecAttention"),
)


def _rows() -> Iterator[Row]:
    yield Row("shared.weight", "target/token_embedder/embedding")
    yield Row("lm_head.weight", "target/decoder/logits_dense/kernel", "dense")
    for stack, attentions in (("encoder", _ENCODER), ("decoder", _DECODER)):
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield Row(bias, f"target/{stack}/relpos_bias/rel_embedding", "dense")
        yield Row(f"{stack}.final_layer_norm.weight", f"target/{stack}/{stack}_norm/scale")
        ours, theirs = f"{stack}.block.{{}}.layer", f"target/{stack}/layers_{{}}"
        for number, (norm, attention, own) in enumerate(attentions):
            yield Row(f"{ours}.{number}.layer_norm.weight", f"{theirs}/{norm}/scale")
            for letter, part in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
                yield Row(f"{ours}.{number}.{own}.{letter}.weight", f"{theirs}/{attention}/{part}/kernel", "dense")
        last = f"{ours}.{len(attentions)}"
        yield Row(f"{last}.layer_norm.weight", f"{theirs}/pre_mlp_layer_norm/scale")
        for name in ("wi", "wi_0", "wi_1", "wo"):
            yield Row(f"{last}.DenseReluDense.{name}.weight", f"{theirs}/mlp/{name}/kernel", "dense")


def _layers(checkpoint: Checkpoint, stack: str) -> int:
    matches = (re.match(rf"target/{stack}/layers_(\d+)/", name) for name in checkpoint.infos)
    return len({match[1] for match in matches if match})


def _shape(checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
    info = checkpoint.infos.get(name)
    if info is None or len(info.shape) != 2:
        raise ConfigError(f"no matrix named {name!r}, which the config would be derived from", where=checkpoint.path)
    return info.shape
