"""How far from float64 a backend may be: the one table that `zoo verify`, the demo and the tests go by.

Errors are relative: the largest error of an output over the largest absolute value of its float64 reference. What is
right depends on the model (a deep one rounds more often), so the yardstick is PyTorch's own error on the same inputs
in the same dtype; the numbers here say how many times that a backend may have, and bound it from both sides.
"""

from __future__ import annotations

__all__ = [
    "CEILINGS",
    "CONVERTED",
    "COSINES",
    "FACTORS",
    "FLOOR",
    "FLOORS",
    "GRADIENT",
    "GRADIENTS",
    "GRADIENT_FLOOR",
    "KERNEL_FACTOR",
    "KERNEL_ULPS",
    "PRODUCTS",
    "ROUNDING",
    "SMALLEST_STD",
    "TOLERANCES",
    "VACUOUS",
    "gradient_tolerance",
    "tolerance",
]

FACTORS: dict[tuple[str, str], float] = {
    (backend, dtype): 4.0
    for backend in ("torch", "jax", "tensorflow", "keras", "numpy", "native")
    for dtype in ("float32", "bfloat16", "float16")
}
"""(backend, dtype) -> how many times PyTorch's own error is accepted."""

FLOORS: dict[str, float] = {"float32": 2e-6, "bfloat16": 1.6e-2, "float16": 2e-3}
"""Dtype -> an error that is always accepted: a few units of rounding, for models where PyTorch has hardly any."""

CEILINGS: dict[str, float] = {"float32": 1e-4, "bfloat16": 1e-1, "float16": 2e-2}
"""Dtype -> the largest error that is ever accepted, PyTorch's own included; the only bound where PyTorch is missing."""

CONVERTED: dict[str, float] = {**CEILINGS, "q8_0": CEILINGS["bfloat16"], "": 1e-12}
"""Dtype that weights were rounded to -> how far the outputs in float64 may be from those of the weights as they were.

Q8_0 rounds to 1/254 of the largest of 32 weights, bfloat16 each to 1/512 of itself. With the weights untouched ("") the
sums may still be taken in another order, since arrays lie in memory as their file has them: 1.4e-15 was seen."""

GRADIENTS: dict[tuple[str, str], float] = {
    (backend, dtype): relative
    for backend in ("torch", "jax", "tensorflow")
    for dtype, relative in (("float32", 1e-4), ("bfloat16", 1e-1), ("float16", 2e-2))
}
"""(backend, dtype) -> difference of a parameter's gradient from PyTorch's or float64's, over the largest there.

Against float64 `FACTORS` times PyTorch's own error is accepted beyond that, up to a hundred times what stands here."""

ROUNDING: dict[str, float] = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
"""Dtype -> one unit in the last place at 1: what a value may change by where a form of checkpoint adds to it."""

KERNEL_ULPS = 4.0
"""The error that one of our float32 kernels may always have, in units of the last place of a row's largest number."""

KERNEL_FACTOR = 2.0
"""How many times the error of the framework's own kernel is accepted beyond that; most are below 1.3."""

PRODUCTS: dict[str, float] = {"float32": 1e-5, "bfloat16": 2e-2, "int8": 1e-1}
"""What the native engine's linear layers multiply in -> the relative error accepted of a tiny model's outputs.

Seen: 1.4e-2 in bfloat16, 6.9e-2 in int8, both in a pooler's output; 1.0e-2 and 2.7e-2 in the hidden states."""

COSINES: dict[str, float] = {"bfloat16": 0.9999, "int8": 0.995}
"""The same -> the least cosine accepted between a sentence's vector and the one in float32."""

VACUOUS = 1e-5
"""An output that varies by less, relative to its largest value, is constant: two backends' agreeing says nothing."""


# --- tiny models and single operations, whose errors are a few roundings ----------------------------------------------

TOLERANCES: dict[tuple[str, str], float] = {
    ("torch", "float32"): 1e-5,
    ("jax", "float32"): 1e-5,
    ("tensorflow", "float32"): 1e-5,
    ("keras", "float32"): 1e-5,
    ("numpy", "float32"): 1e-5,
    ("native", "float32"): 1e-5,
    ("numpy", "float64"): 1e-13,
    ("native", "float64"): 1e-13,
    ("tensorflow", "float64"): 1e-13,
    # three units in the last place: each backend rounds between steps where another computes on in float32
    **{(backend, "float16"): 3 * 2.0**-10 for backend in ("torch", "jax", "tensorflow", "keras", "numpy", "native")},
    **{(backend, "bfloat16"): 3 * 2.0**-7 for backend in ("torch", "jax", "tensorflow", "keras", "numpy", "native")},
}
"""(backend, dtype) -> relative error accepted of an operation, or of a tiny model, against float64 or torch."""

FLOOR = 1e-6
"""The relative error that a tiny model may always have, where torch is nearly exact: eight float32 roundings.

Over 36 kinds of model no backend has more than 2.2e-6, nor more than 3.1 times what torch itself has in float32."""

SMALLEST_STD = 0.05
"""An output whose values vary less agrees with almost anything. The tiny models' lie between 0.1 and 3."""

GRADIENT = 2e-5
"""Largest error of a tiny model's parameter's gradient over that gradient's largest entry, float32 against float64.

Seen: 3.1e-6."""

GRADIENT_FLOOR = 1e-6
"""The same over the model's largest gradient: what is left of gradients that are zero in theory, as of keys' biases.

Seen: 1.7e-7."""


def tolerance(backend: str, dtype: str, yardstick: float | None) -> float:
    """The relative error accepted of a backend.

    Args:
        backend: whose error it is; PyTorch's is bounded by the ceiling alone, being its own yardstick.
        dtype: of the computation.
        yardstick: PyTorch's relative error, or None where it is not known.
    """
    if backend == "torch" or yardstick is None:
        return CEILINGS[dtype]
    return min(max(FLOORS[dtype], FACTORS[backend, dtype] * yardstick), CEILINGS[dtype])


def gradient_tolerance(backend: str, dtype: str, yardstick: float | None = None) -> float:
    """The relative difference accepted of a parameter's gradient.

    Args:
        backend: whose gradient it is.
        dtype: of the computation.
        yardstick: PyTorch's relative error against float64, or None where PyTorch's gradient is what one is compared
            with. Where a ReLU's input is zero but for rounding, one rounding more or less is a hundredth of a gradient.
    """
    least = GRADIENTS[backend, dtype]
    return least if yardstick is None else min(max(least, FACTORS[backend, dtype] * yardstick), 100 * least)
