"""Our kernels as operations of a framework: one module per framework with the same functions, none imported here.

    norm(x, residual, weight, bias, eps, rms)    (norm of x + residual over the last dim, x + residual); [..., cols]
    attention(q, k, v, mask, causal, scale)      [B, H, T, D], [B, G, S, D], [B, G, S, E] -> [B, H, T, E], as torch's
    gated(x, y, activation)                      activation(x) * y

All take float32; residual, weight, bias and mask may be None, and scale, for 1 / sqrt(D). Each has its gradient, and
what the framework itself would compute is `PLAIN[name]` with the same arguments.
"""

from __future__ import annotations

import functools
import importlib
import math
from types import ModuleType
from typing import Any

from zoo.errors import MissingFramework
from zoo.ops import OPS

__all__ = ["ACTIVATIONS", "FRAMEWORKS", "adapter", "plain"]

FRAMEWORKS = ("torch", "jax", "tensorflow")

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu", "sigmoid")
"""What `gated` takes."""


@functools.cache
def adapter(framework: str) -> ModuleType:
    """A framework's adapter, its operations registered.

    Raises:
        MissingFramework: the library was not built, or does not fit the framework that is installed.
    """
    return importlib.import_module(f"zoo.adapters.{framework}")


def loaded(framework: str) -> str:
    """The path of an adapter's library; the engine that it needs is loaded.

    Raises:
        MissingFramework: it was not built.
    """
    from zoo.frameworks import find_library, how_to_install
    from zoo.native.library import library

    library()
    path = find_library(framework)
    if path is None:
        raise MissingFramework(f"the adapter for {framework} is not built", do=how_to_install("native"))
    return str(path)


def refused(framework: str, why: str) -> MissingFramework:
    """The error of an adapter that does not fit."""
    return MissingFramework(
        f"the adapter does not fit the {framework} that is installed", got=why, do="install anyzoo again"
    )


def heads_of(*arrays: Any) -> None:
    """ValueError unless all are [B, H, T, D]."""
    if any(len(x.shape) != 4 for x in arrays):
        raise ValueError(f"attention takes arrays of four dims, not {', '.join(str(tuple(x.shape)) for x in arrays)}")


def scale_of(q: Any, scale: float | None) -> float:
    return 1 / math.sqrt(q.shape[-1]) if scale is None else scale


def plain(xp: Any) -> dict[str, Any]:
    """The kernels' meaning, from the op table over a namespace."""

    def norm(x: Any, residual: Any, weight: Any, bias: Any, eps: float, rms: bool) -> tuple[Any, Any]:
        total = x if residual is None else xp.add(x, residual)
        args = (weight, eps) if rms else (weight, bias, eps)
        return OPS["rms_norm" if rms else "layer_norm"].function(xp, total, (x.shape[-1],), *args), total

    def attention(q: Any, k: Any, v: Any, mask: Any, causal: bool, scale: float | None) -> Any:
        attend = OPS["scaled_dot_product_attention"].function
        return attend(xp, q, k, v, mask, 0.0, causal, scale=scale, enable_gqa=True)

    def gated(x: Any, y: Any, activation: str) -> Any:
        name, _, approximate = activation.partition("_")
        return xp.multiply(OPS[name].function(xp, x, **({"approximate": approximate} if approximate else {})), y)

    return {"norm": norm, "attention": attention, "gated": gated}
