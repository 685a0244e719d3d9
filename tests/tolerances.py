"""The tests' names for `zoo.tolerances`, which is the one table."""

from zoo.tolerances import FLOOR, GRADIENT, GRADIENT_FLOOR, SMALLEST_STD, TOLERANCES

__all__ = ["FLOOR", "GRADIENT", "GRADIENT_FLOOR", "SMALLEST_STD", "TOLERANCES"]
