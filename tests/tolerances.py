"""How far a backend may be from the float64 reference: the error's largest element over the reference's largest."""

from __future__ import annotations

TOLERANCES: dict[tuple[str, str], float] = {
    ("torch", "float32"): 1e-5,
    ("jax", "float32"): 1e-5,
    ("tensorflow", "float32"): 1e-5,
    ("keras", "float32"): 1e-5,
}
"""(backend, dtype) -> relative tolerance."""
