"""TensorFlow: the kernels as its operations `Zoo*`, with TensorFlow's own gradients.

A SavedModel that holds one loads after this module was imported.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from zoo.adapters import heads_of, loaded, plain, refused, scale_of
from zoo.backends.tensorflow import namespace
from zoo.native.library import ACTIVATIONS
from zoo.ops import OPS

__all__ = ["PLAIN", "attention", "fits", "gated", "norm", "own_attention"]

PLAIN = plain(namespace())


def _register() -> Any:
    path = loaded("tensorflow")
    try:
        ops = tf.load_op_library(path)
    except (tf.errors.OpError, RuntimeError) as error:
        raise refused("tensorflow", str(error)) from error
    library = ctypes.CDLL(path)
    library.zoo_tensorflow_problem.restype = ctypes.c_char_p
    problem = library.zoo_tensorflow_problem().decode()
    if problem:
        raise refused("tensorflow", problem)
    library.zoo_tensorflow_single_thread(int(tf.config.threading.get_intra_op_parallelism_threads() == 1))
    return ops


_OPS = _register()


def fits(*arrays: Any) -> bool:
    """Whether our kernels take these arrays."""
    return all(x.dtype == tf.float32 for x in arrays) and not tf.config.list_physical_devices("GPU")


def own_attention(*args: Any, **options: Any) -> Any:
    return OPS["scaled_dot_product_attention"].function(namespace(), *args, **options)


def norm(x: Any, residual: Any, weight: Any, bias: Any, eps: float, rms: bool) -> tuple[Any, Any]:
    x, *others = _tensors(x, residual, weight, bias)
    parts = sum(1 << i for i, part in enumerate(others) if part is not None)
    given = [part for part in others if part is not None]

    def ours(x: Any, *given: Any) -> Any:
        if residual is None:
            return _OPS.zoo_norm(x, given, parts, eps, rms)
        return tuple(_OPS.zoo_add_norm(x, given, parts, eps, rms))

    def meant(x: Any, *given: Any) -> Any:
        rest = iter(given)
        out = PLAIN["norm"](x, *(None if part is None else next(rest) for part in others), eps, rms)
        return out[0] if residual is None else out

    result = _differentiable(ours, meant)(x, *given)
    return (result, x) if residual is None else result


def attention(q: Any, k: Any, v: Any, mask: Any, causal: bool, scale: float | None) -> Any:
    q, k, v, mask = _tensors(q, k, v, mask)
    heads_of(q, k, v)
    factor = scale_of(q, scale)

    def ours(*arrays: Any) -> Any:
        # the operation takes [B, T, H, D]: models have just swapped those dims, and Grappler cancels the two
        swapped = (tf.transpose(x, (0, 2, 1, 3)) for x in arrays[:3])
        masks = arrays[3:] or ([mask] if mask is not None else [])
        return tf.transpose(_OPS.zoo_attention(*swapped, masks, causal, factor), (0, 2, 1, 3))

    def meant(*arrays: Any) -> Any:
        return PLAIN["attention"](*arrays[:3], arrays[3] if arrays[3:] else mask, causal, scale)

    slopes = mask is not None and mask.dtype == tf.float32
    return _differentiable(ours, meant)(q, k, v, *([mask] if slopes else []))


def gated(x: Any, y: Any, activation: str) -> Any:
    x, y = _tensors(x, y)
    return _differentiable(
        lambda x, y: _OPS.zoo_gated(x, y, ACTIVATIONS[activation]), lambda x, y: PLAIN["gated"](x, y, activation)
    )(x, y)


def _tensors(*arrays: Any) -> list[Any]:
    return [None if x is None else tf.convert_to_tensor(x) for x in arrays]


def _differentiable(ours: Callable[..., Any], meant: Callable[..., Any]) -> Callable[..., Any]:
    """`ours`, whose gradient is that of `meant`."""

    @tf.custom_gradient
    def function(*arrays: Any) -> Any:
        def backward(*grads: Any) -> Sequence[Any]:
            apart = [tf.identity(x) for x in arrays]  # one array may stand for several: each has a part of its gradient
            with tf.GradientTape() as tape:
                tape.watch(apart)
                results = meant(*apart)
            return list(tape.gradient(results, apart, grads if len(grads) > 1 else grads[0]))

        return ours(*arrays), backward

    return function
