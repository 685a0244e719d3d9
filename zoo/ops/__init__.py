"""The meaning of every operation, once, for all frameworks.

Each module defines functions over a namespace `xp` (see `zoo.backends.namespace`) and registers them under torch's
names with `@op`. `OPS` is the table. A backend may put its own kernel in an op's place; the definition here is what
that kernel is tested against.
"""

from zoo.ops.table import OPS, Moves, Op, Traits, base, spelling, traits_of

from zoo.ops import (  # noqa: F401  isort: skip
    convolution,
    create,
    elementwise,
    fourier,
    index,
    linalg,
    linear,
    norm,
    pool,
    random,
    reduce,
    resize,
    shape,
    size,
)

__all__ = ["OPS", "Moves", "Op", "Traits", "base", "spelling", "traits_of"]
