"""Exports under the patches of transformers, and with what follows from fixed inputs computed beforehand."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from zoo.capture.huggingface.each_image import is_traced
from zoo.capture.torch_export import traceable

__all__ = ["export_patched", "fixing"]


def export_patched(module: Any, inputs: Mapping[str, Any], dynamic: Any) -> torch.export.ExportedProgram:
    """torch.export under the patches of transformers.exporters, which take out what the tracer cannot follow."""
    from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter

    exporter = DynamoExporter()
    settings = DynamoConfig(dynamic=True, dynamic_shapes=dynamic, strict=False)
    with _packed_attention(module), traceable(module):
        program, _ = exporter.export_program(module, dict(inputs), settings)
    return program


@contextmanager
def fixing(module: Any, fixed: Mapping[str, Any]) -> Any:
    """The module called with these arguments, too; what it computes of them alone, or of the single whole numbers that
    it keeps as buffers (a codec's strides), is computed while it is traced.
    """
    forward = module.forward
    numbers = [
        (owner, name, owner._buffers.pop(name))
        for owner in module.modules()
        for name in owner._non_persistent_buffers_set
        if (buffer := owner._buffers.get(name)) is not None and buffer.ndim == 0 and not buffer.is_floating_point()
    ]
    for owner, name, buffer in numbers:
        owner.__dict__[name] = buffer

    def called(**inputs: Any) -> Any:
        with _Known():
            return forward(**inputs, **fixed)

    module.forward = called
    try:
        yield
    finally:
        del module.forward
        for owner, name, buffer in numbers:
            del owner.__dict__[name]
            owner._buffers[name] = buffer


class _Known(TorchFunctionMode):
    """Calls on tensors with values, none of them traced, are made outside of the trace: their results have values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = pytree.tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        traced = any(is_traced(leaf) for leaf in leaves)
        if traced or not (tensors or func in (torch.arange, torch.linspace, torch.tensor, torch.as_tensor)):
            return func(*args, **(kwargs or {}))
        with unset_fake_temporarily(), disable_proxy_modes_tracing():
            return func(*args, **(kwargs or {}))


_PACKED = "flash_packed"  # the classes hand over whole sequences and their bounds to what is called flash


@contextmanager
def _packed_attention(module: Any) -> Any:
    """Images and sounds packed into one sequence attend through a mask that keeps them apart.

    The classes' own loop over them cannot be traced, and transformers' patch for it holds only for parts of one length
    and leaves out GLM-OCR's norms of queries and keys.
    """
    from transformers.exporters import exporter_dynamo, utils
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    takes = [m for m in module.modules() if "cu_seqlens" in inspect.signature(m.forward).parameters]
    configs = {id(m.config): m.config for m in takes if hasattr(m, "config")}
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    patches = utils._PATCHES["dynamo"]
    utils._PATCHES["dynamo"] = [p for p in patches if p[2] is not exporter_dynamo._patch_chunked_vision_attention]
    ALL_ATTENTION_FUNCTIONS.register(_PACKED, _attention_within)
    for config in configs.values():
        config._attn_implementation_internal = _PACKED
    try:
        yield
    finally:
        utils._PATCHES["dynamo"] = patches
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]


def _attention_within(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each part of a packed sequence, [1, heads, T, D] -> [1, T, heads, D].

    Args:
        cu_seq_lens_q: where the parts begin, and the end of the last.
    """
    part = torch.bucketize(torch.arange(query.shape[2], device=query.device), cu_seq_lens_q, right=True)
    result = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=part[:, None] == part,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return result.transpose(1, 2), None
