"""How far a backend may be from the float64 reference: the error's largest element over the reference's largest."""

from __future__ import annotations

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
"""(backend, dtype) -> relative tolerance."""

FLOOR = 1e-6
"""The relative error that a tiny model may always have, where torch is nearly exact: eight float32 roundings.

Over 36 kinds of model no backend has more than 2.2e-6, nor more than 3.1 times what torch itself has in float32."""

SMALLEST_STD = 0.05
"""An output whose values vary less agrees with almost anything. The tiny models' lie between 0.1 and 3."""

GRADIENT = 2e-5
"""Largest error of a parameter's gradient over that gradient's largest entry, float32 against torch's in float64.

Seen: 3.1e-6."""

GRADIENT_FLOOR = 1e-6
"""The same over the model's largest gradient: what is left of gradients that are zero in theory, as of keys' biases.

Seen: 1.7e-7."""
