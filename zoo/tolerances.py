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
    "FLOORS",
    "GRADIENTS",
    "KERNEL_FACTOR",
    "KERNEL_ULPS",
    "PRODUCTS",
    "ROUNDING",
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
