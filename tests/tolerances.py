"""How far a backend may be from the float64 reference: the error's largest element over the reference's largest."""

from __future__ import annotations

TOLERANCES: dict[tuple[str, str], float] = {
    ("torch", "float32"): 1e-5,
    ("jax", "float32"): 1e-5,
    ("tensorflow", "float32"): 1e-5,
    ("keras", "float32"): 1e-5,
    ("numpy", "float32"): 1e-5,
    ("numpy", "float64"): 1e-13,
    ("tensorflow", "float64"): 1e-13,
    # three units in the last place: each backend rounds between steps where another computes on in float32
    **{(backend, "float16"): 3 * 2.0**-10 for backend in ("torch", "jax", "tensorflow", "keras", "numpy")},
    **{(backend, "bfloat16"): 3 * 2.0**-7 for backend in ("torch", "jax", "tensorflow", "keras", "numpy")},
}
"""(backend, dtype) -> relative tolerance."""
