"""JAX: the kernels as calls of XLA's foreign function interface, with gradients (XLA's own) and rules for vmap.

On a GPU, where our CUDA kernels were built, they take float32 and bfloat16, attention bfloat16.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.adapters import heads_of, loaded, plain, refused, scale_of
from zoo.backends.jax import namespace
from zoo.frameworks import find_library
from zoo.native.library import ACTIVATIONS
from zoo.ops import OPS

__all__ = ["PLAIN", "attention", "fits", "gated", "norm", "own_attention", "register_gpu", "unsuitable"]

PLAIN = plain(namespace())


_CALLS = "anyzoo"
"""What the calls' names begin with."""


def _register() -> None:
    library = ctypes.CDLL(loaded("jax"))
    _add(library, "", "cpu")
    kernels = find_library("cuda")
    if kernels is not None:
        register_gpu(kernels)


def register_gpu(kernels: Path, calls: str = _CALLS, platform: str = "CUDA") -> None:
    """Our CUDA kernels for the calls on a platform; one that is not a GPU is a test's, whose kernels need no stream."""
    library = ctypes.CDLL(loaded("jax"))
    library.zoo_jax_use_gpu.restype = ctypes.c_char_p
    problem = library.zoo_jax_use_gpu(str(kernels).encode(), platform == "cpu")
    if problem is not None:
        raise refused("jax", problem.decode())
    _add(library, "_gpu", platform, calls)


def _add(library: ctypes.CDLL, suffix: str, platform: str, calls: str = _CALLS) -> None:
    try:
        for name in ("norm", "attention", "gated"):
            handler = jax.ffi.pycapsule(getattr(library, f"zoo_jax_{name}{suffix}"))
            jax.ffi.register_ffi_target(f"{calls}_{name}", handler, platform=platform)
    except Exception as error:  # whatever XLA says about the version
        raise refused("jax", str(error)) from error


_register()


def unsuitable() -> str:
    """Why none of our kernels may stand in a graph; empty if they may.

    XLA does not know how to cut a foreign call: it gathers what lies on several devices, and each computes all of it.
    """
    return "the process has several devices, and XLA would gather their parts for a kernel of ours" * (
        jax.device_count() > 1
    )


def fits(*arrays: Any) -> bool:
    """Whether our kernels take these arrays."""
    return all(x.dtype == np.float32 for x in arrays) and jax.default_backend() == "cpu"


def own_attention(*args: Any, **options: Any) -> Any:
    return OPS["scaled_dot_product_attention"].function(namespace(), *args, **options)


def norm(x: Any, residual: Any, weight: Any, bias: Any, eps: float, rms: bool) -> tuple[Any, Any]:
    if residual is None:
        return _norm(x, None, weight, bias, eps, rms)[0], x
    return _norm(x, residual, weight, bias, eps, rms)


def attention(q: Any, k: Any, v: Any, mask: Any, causal: bool, scale: float | None) -> Any:
    heads_of(q, k, v)
    if q.dtype == jnp.bfloat16 and mask is not None:  # a GPU's, whose masks are added
        mask = jnp.where(mask, 0.0, -jnp.inf).astype(np.float32) if mask.dtype == bool else mask.astype(np.float32)
    return _attention(q, k, v, mask, causal, scale_of(q, scale))


def gated(x: Any, y: Any, activation: str) -> Any:
    return _gated(x, y, activation)


def _like(x: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _batched(call: Any, rule: Any) -> Any:
    """`call(*arrays)`, an array being None where there is none, with a rule (size, which batched, arrays) for vmap."""
    batching = jax.custom_batching.custom_vmap(call)
    batching.def_vmap(rule)
    return batching


@functools.cache
def _norm_call(eps: float, rms: bool) -> Any:
    def call(x: Any, residual: Any, weight: Any, bias: Any) -> tuple[Any, ...]:
        others = (residual, weight, bias)
        parts = sum(1 << i for i, part in enumerate(others) if part is not None)
        results = (_like(x), _like(x)) if residual is not None else (_like(x),)
        out = jax.ffi.ffi_call(f"{_CALLS}_norm", results, vmap_method="sequential")(
            x, *(part for part in others if part is not None),
            parts=np.int32(parts), eps=np.float32(eps), rms=np.int32(rms),
        )  # fmt: skip
        return out if residual is not None else (out[0], x)

    def rule(size: int, batched: Any, x: Any, residual: Any, weight: Any, bias: Any) -> Any:
        rows = [
            None if a is None else a if given else jnp.broadcast_to(a, (size, *a.shape))
            for a, given in zip((x, residual), batched[:2], strict=True)
        ]
        if not any(batched[2:]):
            return again(*rows, weight, bias), (True, True)
        # a weight of each example's own: applied outside of the kernel
        out, total = again(*rows, None, None)
        for part, given, apply in ((weight, batched[2], jnp.multiply), (bias, batched[3], jnp.add)):
            if part is not None:
                wide = part.reshape(size, *[1] * (x.ndim - 2 if batched[0] else x.ndim - 1), -1) if given else part
                out = apply(out, wide)
        return (out, total), (True, True)

    again: Any = _batched(call, rule)
    return again


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _norm(x: Any, residual: Any, weight: Any, bias: Any, eps: float, rms: bool) -> tuple[Any, Any]:
    return _norm_call(eps, rms)(x, residual, weight, bias)


def _norm_forward(x: Any, residual: Any, weight: Any, bias: Any, eps: float, rms: bool) -> Any:
    return _norm(x, residual, weight, bias, eps, rms), (x, residual, weight, bias)


def _norm_backward(eps: float, rms: bool, saved: Any, grads: Any) -> Any:
    return jax.vjp(lambda *arrays: PLAIN["norm"](*arrays, eps, rms), *saved)[1](grads)


_norm.defvjp(_norm_forward, _norm_backward)


@functools.cache
def _attention_call(causal: bool, scale: float) -> Any:
    def call(q: Any, k: Any, v: Any, mask: Any) -> Any:
        # the call takes [B, T, H, D]: models have just swapped those dims, and XLA cancels the two
        q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
        result = jax.ShapeDtypeStruct((*q.shape[:3], v.shape[3]), q.dtype)
        out = jax.ffi.ffi_call(f"{_CALLS}_attention", result, vmap_method="sequential")(
            q, k, v, *(() if mask is None else (mask,)), causal=np.int32(causal), scale=np.float32(scale)
        )
        return jnp.swapaxes(out, 1, 2)

    def rule(size: int, batched: Any, q: Any, k: Any, v: Any, mask: Any) -> Any:
        merged = [
            (a if given else jnp.broadcast_to(a, (size, *a.shape))).reshape(-1, *a.shape[-3:])
            for a, given in zip((q, k, v), batched[:3], strict=True)
        ]
        if mask is not None:
            inner = mask.shape[1:] if batched[3] else mask.shape
            inner = (1,) * (4 - len(inner)) + tuple(inner)
            mask = mask.reshape(size if batched[3] else 1, *inner)
            mask = jnp.broadcast_to(mask, (size, merged[0].shape[0] // size, *inner[1:])).reshape(-1, *inner[1:])
        out = again(*merged, mask)
        return out.reshape(size, -1, *out.shape[1:]), True

    again: Any = _batched(call, rule)
    return again


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(q: Any, k: Any, v: Any, mask: Any, causal: bool, scale: float) -> Any:
    return _attention_call(causal, scale)(q, k, v, mask)


def _attention_forward(q: Any, k: Any, v: Any, mask: Any, causal: bool, scale: float) -> Any:
    return _attention(q, k, v, mask, causal, scale), (q, k, v, mask)


def _attention_backward(causal: bool, scale: float, saved: Any, grad: Any) -> Any:
    q, k, v, mask = saved
    if mask is None or mask.dtype == bool:
        return *jax.vjp(lambda *qkv: PLAIN["attention"](*qkv, mask, causal, scale), q, k, v)[1](grad), None
    return jax.vjp(lambda *arrays: PLAIN["attention"](*arrays, causal, scale), *saved)[1](grad)


_attention.defvjp(_attention_forward, _attention_backward)


@functools.cache
def _gated_call(activation: str) -> Any:
    def call(x: Any, y: Any) -> Any:
        op = np.int32(ACTIVATIONS[activation])
        return jax.ffi.ffi_call(f"{_CALLS}_gated", _like(x), vmap_method="sequential")(x, y, op=op)

    def rule(size: int, batched: Any, x: Any, y: Any) -> Any:
        wide = [a if given else jnp.broadcast_to(a, (size, *a.shape)) for a, given in zip((x, y), batched, strict=True)]
        return again(*wide), True

    again: Any = _batched(call, rule)
    return again


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _gated(x: Any, y: Any, activation: str) -> Any:
    return _gated_call(activation)(x, y)


def _gated_forward(x: Any, y: Any, activation: str) -> Any:
    return _gated(x, y, activation), (x, y)


def _gated_backward(activation: str, saved: Any, grad: Any) -> Any:
    return jax.vjp(lambda x, y: PLAIN["gated"](x, y, activation), *saved)[1](grad)


_gated.defvjp(_gated_forward, _gated_backward)
