"""PyTorch: operations `anyzoo::*`, their kernels registered by the library; here schemas, fakes and gradients.

On a GPU, where torch has CUDA and our CUDA kernels were built, they take float32 and bfloat16, attention bfloat16.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from zoo.adapters import loaded, refused, scale_of
from zoo.frameworks import find_library
from zoo.native.library import ACTIVATIONS

__all__ = ["PLAIN", "attention", "define", "fits", "gated", "norm", "own_attention", "register_gpu"]

_SCHEMAS = {
    "norm": "(Tensor x, Tensor? weight, Tensor? bias, float eps, bool rms) -> Tensor",
    "add_norm": "(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, float eps, bool rms) -> (Tensor, Tensor)",
    "attention": "(Tensor q, Tensor k, Tensor v, Tensor? mask, bool causal, float scale) -> Tensor",
    "gated": "(Tensor x, Tensor y, int op) -> Tensor",
}


_KEPT = "_registered_by_anyzoo"
"""In torch's own namespace of our operations: that all of them is there, from an earlier import of this module."""


def _register() -> None:
    if hasattr(torch.ops.anyzoo, "norm"):  # and torch takes no name twice in a process
        raise refused("torch", "an earlier import of it failed half-way")
    library = ctypes.CDLL(loaded("torch"))
    library.zoo_torch_register.restype = ctypes.c_char_p
    define("anyzoo")
    folder = Path(torch.__file__).parent / "lib"
    path = next((p for p in (folder / "libtorch_cpu.so", folder / "libtorch_cpu.dylib") if p.is_file()), folder)
    problem = library.zoo_torch_register(str(path).encode())
    if problem is not None:
        raise refused("torch", problem.decode())
    with_cuda, kernels = folder / "libtorch_cuda.so", find_library("cuda")
    if torch.version.cuda is not None and with_cuda.is_file() and kernels is not None:
        register_gpu(with_cuda, kernels)


def register_gpu(libtorch: Path, kernels: Path, space: str = "anyzoo", key: str = "CUDA") -> None:
    """Our CUDA kernels for the operations of a namespace."""
    library = ctypes.CDLL(loaded("torch"))
    library.zoo_torch_register_gpu.restype = ctypes.c_char_p
    problem = library.zoo_torch_register_gpu(*(str(x).encode() for x in (libtorch, kernels, space, key)))
    if problem is not None:
        raise refused("torch", problem.decode())


def define(space: str) -> None:
    """The operations of a namespace, without kernels."""
    for name, schema in _SCHEMAS.items():
        for overload in ("", ".inference"):
            torch.library.define(f"{space}::{name}{overload}", schema, tags=(torch.Tag.pt2_compliant_tag,))


if _KEPT not in vars(torch.ops.anyzoo):
    _register()
_OPS = {name: getattr(torch.ops.anyzoo, name) for name in _SCHEMAS}
_WITH_GRADIENT = {name: op.default for name, op in _OPS.items()}
# gradients are Python's, which costs 4 µs a call where nobody asks for them
_WITHOUT = {name: op.inference for name, op in _OPS.items()}


def norm(x: Any, residual: Any, weight: Any, bias: Any, eps: float, rms: bool) -> tuple[Any, Any]:
    ops = _WITH_GRADIENT if torch.is_grad_enabled() else _WITHOUT
    if not x.is_cpu:
        x, residual = _dense(x, residual)
    if residual is None:
        return ops["norm"](x, weight, bias, eps, rms), x
    return ops["add_norm"](x, residual, weight, bias, eps, rms)


def attention(q: Any, k: Any, v: Any, mask: Any, causal: bool, scale: float | None) -> Any:
    ops = _WITH_GRADIENT if torch.is_grad_enabled() else _WITHOUT
    if not q.is_cpu and mask is not None and mask.dtype != torch.float32:
        seen = mask.dtype == torch.bool
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, float("-inf")) if seen else mask.float()
    return ops["attention"](q, k, v, mask, causal, scale_of(q, scale))


def gated(x: Any, y: Any, activation: str) -> Any:
    ops = _WITH_GRADIENT if torch.is_grad_enabled() else _WITHOUT
    if not x.is_cpu:
        x, y = _dense(x, y)
    return ops["gated"](x, y, ACTIVATIONS[activation])


def _dense(*arrays: Any) -> tuple[Any, ...]:
    """As a GPU's kernels take them: without gaps."""
    return tuple(None if x is None else x.contiguous() for x in arrays)


def fits(*arrays: Any) -> bool:
    """Whether our kernels take these arrays, and are what was measured: not where a gradient is recorded."""
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in arrays)
    return not recorded and all(x.dtype == torch.float32 and x.device.type == "cpu" for x in arrays)


own_attention = F.scaled_dot_product_attention


def _plain_norm(x: Any, residual: Any, weight: Any, bias: Any, eps: float, rms: bool) -> tuple[Any, Any]:
    total = x if residual is None else x + residual
    if rms:
        return F.rms_norm(total, x.shape[-1:], weight, eps), total
    return F.layer_norm(total, x.shape[-1:], weight, bias, eps), total


def _plain_attention(q: Any, k: Any, v: Any, mask: Any, causal: bool, scale: float | None) -> Any:
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=scale, enable_gqa=grouped)


def _plain_gated(x: Any, y: Any, activation: str) -> Any:
    if activation == "gelu_tanh":
        return F.gelu(x, approximate="tanh") * y
    return (
        F.gelu(x) if activation == "gelu" else F.silu(x) if activation == "silu" else getattr(torch, activation)(x)
    ) * y


PLAIN = {"norm": _plain_norm, "attention": _plain_attention, "gated": _plain_gated}


def _norm_fake(x: Any, weight: Any, bias: Any, eps: float, rms: bool) -> Any:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _add_norm_fake(x: Any, residual: Any, weight: Any, bias: Any, eps: float, rms: bool) -> Any:
    return _norm_fake(x, weight, bias, eps, rms), _norm_fake(x, weight, bias, eps, rms)


def _attention_fake(q: Any, k: Any, v: Any, mask: Any, causal: bool, scale: float) -> Any:
    batch, heads, queries, _ = q.shape
    return q.new_empty(batch, queries, heads, v.shape[-1]).transpose(1, 2)


def _gated_fake(x: Any, y: Any, op: int) -> Any:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _norm_gradients(grad: Any, total: Any, weight: Any, eps: float, rms: bool) -> tuple[Any, Any, Any]:
    """By x (or x + residual), weight and bias."""
    mean = 0 if rms else total.mean(-1, keepdim=True)
    centred = total - mean
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    normal = centred * scale
    inner = grad if weight is None else grad * weight
    by_x = inner - normal * (inner * normal).mean(-1, keepdim=True)
    if not rms:
        by_x = by_x - inner.mean(-1, keepdim=True)
    lead = tuple(range(grad.dim() - 1))
    return by_x * scale, (grad * normal).sum(lead), grad.sum(lead)


def _norm_context(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias, ctx.eps, ctx.rms = inputs
    ctx.biased = bias is not None
    ctx.save_for_backward(x, weight)


def _norm_backward(ctx: Any, grad: Any) -> Any:
    x, weight = ctx.saved_tensors
    by_x, by_weight, by_bias = _norm_gradients(grad, x, weight, ctx.eps, ctx.rms)
    return by_x, None if weight is None else by_weight, by_bias if ctx.biased else None, None, None


def _add_norm_context(ctx: Any, inputs: Any, output: Any) -> None:
    _, _, weight, bias, ctx.eps, ctx.rms = inputs
    ctx.biased = bias is not None
    ctx.save_for_backward(output[1], weight)


def _add_norm_backward(ctx: Any, grad: Any, grad_sum: Any) -> Any:
    total, weight = ctx.saved_tensors
    by_x, by_weight, by_bias = _norm_gradients(grad, total, weight, ctx.eps, ctx.rms)
    by_x = by_x + grad_sum
    return by_x, by_x, None if weight is None else by_weight, by_bias if ctx.biased else None, None, None


def _attention_context(ctx: Any, inputs: Any, output: Any) -> None:
    q, k, v, mask, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, mask)


def _attention_backward(ctx: Any, grad: Any) -> Any:
    q, k, v, mask = ctx.saved_tensors
    groups = q.shape[1] // k.shape[1]
    wide_k, wide_v = (x if groups == 1 else x.repeat_interleave(groups, 1) for x in (k, v))
    scores = q @ wide_k.transpose(-1, -2) * ctx.scale
    if ctx.causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~seen, float("-inf"))
    elif mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, -1)
    if mask is not None:  # a query that sees no key gives zeros, whatever the keys are
        weights = weights.masked_fill((scores == float("-inf")).all(-1, keepdim=True), 0.0)
    by_weights = grad @ wide_v.transpose(-1, -2)
    by_scores = weights * (by_weights - (by_weights * weights).sum(-1, keepdim=True))
    by_q, by_k = by_scores @ wide_k * ctx.scale, by_scores.transpose(-1, -2) @ q * ctx.scale
    by_v = weights.transpose(-1, -2) @ grad
    by_mask = None
    if mask is not None and mask.is_floating_point():
        by_mask = by_scores.sum_to_size(mask.shape)
    return by_q, _of_groups(by_k, groups), _of_groups(by_v, groups), by_mask, None, None


def _of_groups(grad: Any, groups: int) -> Any:
    return grad if groups == 1 else grad.unflatten(1, (-1, groups)).sum(2)


def _gated_context(ctx: Any, inputs: Any, output: Any) -> None:
    x, y, ctx.op = inputs
    ctx.save_for_backward(x, y)


_GELU_TANH = (0.7978845608028654, 0.044715)


def _gated_backward(ctx: Any, grad: Any) -> Any:
    x, y = ctx.saved_tensors
    name = next(name for name, number in ACTIVATIONS.items() if number == ctx.op)
    if name == "relu":
        value, slope = x.relu(), (x > 0).to(x.dtype)
    elif name == "gelu":
        share = 0.5 * (1 + torch.erf(x * 0.7071067811865476))
        value, slope = x * share, share + x * torch.exp(-0.5 * x * x) * 0.3989422804014327
    elif name == "gelu_tanh":
        a, b = _GELU_TANH
        t = torch.tanh(a * (x + b * x * x * x))
        value, slope = 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * a * (1 + 3 * b * x * x)
    else:
        s = torch.sigmoid(x)
        value, slope = (x * s, s * (1 + x * (1 - s))) if name == "silu" else (s, s * (1 - s))
    return grad * y * slope, grad * value, None


for _name, _fake, _context, _backward in (
    ("norm", _norm_fake, _norm_context, _norm_backward),
    ("add_norm", _add_norm_fake, _add_norm_context, _add_norm_backward),
    ("attention", _attention_fake, _attention_context, _attention_backward),
    ("gated", _gated_fake, _gated_context, _gated_backward),
):
    if _KEPT not in vars(torch.ops.anyzoo):
        torch.library.register_fake(f"anyzoo::{_name}", _fake)
        torch.library.register_fake(f"anyzoo::{_name}.inference", _fake)
        torch.library.register_autograd(f"anyzoo::{_name}", _backward, setup_context=_context)
setattr(torch.ops.anyzoo, _KEPT, True)
