"""Complex numbers and discrete Fourier transforms.

Source: torch.fft's documentation; the normalizations are 0 none, 1 by the root of the size, 2 by the size.
"""

from __future__ import annotations

import math
from typing import Any

from zoo.dtypes import DType
from zoo.errors import GraphError
from zoo.ops.dtypes import FLOAT, is_complex, promote, to_float
from zoo.ops.size import known
from zoo.ops.table import op


@op("complex", elementwise=True)
def complex_(xp: Any, real: Any, imag: Any) -> Any:
    shape = xp.shape(xp.add(real, imag))
    return xp.complex(xp.broadcast_to(real, shape), xp.broadcast_to(imag, shape))


@op("view_as_real", "view_as_real_copy")
def view_as_real(xp: Any, x: Any) -> Any:
    return xp.stack([xp.real(x), xp.imag(x)], -1)


@op("view_as_complex", "view_as_complex_copy")
def view_as_complex(xp: Any, x: Any) -> Any:
    real, imag = (xp.take(x, i, -1) for i in (0, 1))
    return xp.complex(real, imag)


@op("polar", elementwise=True)
def polar(xp: Any, x: Any, angle: Any) -> Any:
    x, angle = promote(xp, x, angle)
    return complex_(xp, xp.multiply(x, xp.cos(angle)), xp.multiply(x, xp.sin(angle)))


@op("real", elementwise=True)
def real(xp: Any, x: Any) -> Any:
    return xp.real(x) if is_complex(xp.dtype(x)) else x


@op("imag", elementwise=True)
def imag(xp: Any, x: Any) -> Any:
    return xp.imag(x)


@op("_conj", "conj", "_conj_physical", "conj_physical", elementwise=True)
def conj(xp: Any, x: Any) -> Any:
    return xp.conj(x) if is_complex(xp.dtype(x)) else x


@op("angle", elementwise=True)
def angle(xp: Any, x: Any) -> Any:
    """The argument of a complex number; of a real one 0 or pi, and NaN stays."""
    if is_complex(xp.dtype(x)):
        return xp.atan2(xp.imag(x), xp.real(x))
    x = to_float(xp, x)
    zero = xp.asarray(0, xp.dtype(x))
    flat = xp.where(xp.less(x, zero), xp.asarray(math.pi, xp.dtype(x)), zero)
    return xp.where(xp.equal(x, x), flat, x)


@op("_fft_c2c")
def fft_c2c(xp: Any, x: Any, dim: Any, normalization: int, forward: bool) -> Any:
    axes = [d % xp.ndim(x) for d in dim]
    return _normalized(xp, _along(xp, x, axes, forward), [xp.shape(x)[a] for a in axes], normalization)


@op("_fft_r2c")
def fft_r2c(xp: Any, x: Any, dim: Any, normalization: int, onesided: bool) -> Any:
    """Of real numbers; `onesided` keeps only the frequencies up to half the rate of the last of `dim`."""
    axes = [d % xp.ndim(x) for d in dim]
    sizes = [xp.shape(x)[a] for a in axes]
    x = xp.complex(x, xp.full(xp.shape(x), 0, xp.dtype(x)))
    x = xp.fft(x, axes[-1], True)
    if onesided:
        x = xp.slice(x, axes[-1], 0, sizes[-1] // 2 + 1)
    return _normalized(xp, _along(xp, x, axes[:-1], True), sizes, normalization)


@op("_fft_c2r")
def fft_c2r(xp: Any, x: Any, dim: Any, normalization: int, last_dim_size: Any) -> Any:
    """The real numbers whose one-sided spectrum is given, `last_dim_size` of them along the last of `dim`."""
    axes = [d % xp.ndim(x) for d in dim]
    sizes = [*(xp.shape(x)[a] for a in axes[:-1]), last_dim_size]
    x = _along(xp, x, axes[:-1], False)
    half = last_dim_size // 2 + 1
    if known(xp.shape(x)[axes[-1]]) and known(half) and xp.shape(x)[axes[-1]] != half:
        got = f"{xp.shape(x)[axes[-1]]} frequencies for {last_dim_size} numbers"
        raise GraphError("half a spectrum has another size than its numbers need", expected=half, got=got)
    mirrored = xp.flip(xp.conj(xp.slice(x, axes[-1], 1, last_dim_size - half + 1)), (axes[-1],))
    x = xp.concat([xp.slice(x, axes[-1], 0, half), mirrored], axes[-1])
    return _normalized(xp, xp.real(xp.fft(x, axes[-1], False)), sizes, normalization)


@op("fft_fftfreq")
def fftfreq(xp: Any, n: Any, d: float = 1.0, *, dtype: DType | None = None) -> Any:
    name = dtype.name if dtype else FLOAT
    half = (n - 1) // 2 + 1
    steps = xp.concat([xp.arange(0, half, 1, "int64"), xp.arange(-(n // 2), 0, 1, "int64")], 0)
    return xp.divide(xp.cast(steps, name), xp.asarray(n * d, name))


@op("fft_rfftfreq")
def rfftfreq(xp: Any, n: Any, d: float = 1.0, *, dtype: DType | None = None) -> Any:
    name = dtype.name if dtype else FLOAT
    return xp.divide(xp.cast(xp.arange(0, n // 2 + 1, 1, "int64"), name), xp.asarray(n * d, name))


def _along(xp: Any, x: Any, axes: list[int], forward: bool) -> Any:
    for axis in axes:
        x = xp.fft(x, axis, forward)
    return x


def _normalized(xp: Any, x: Any, sizes: list[Any], normalization: int) -> Any:
    if normalization == 0:
        return x
    wide = "float64" if xp.dtype(x) in ("float64", "complex128") else "float32"
    count = xp.asarray(math.prod(sizes), wide)
    return xp.divide(x, xp.cast(xp.sqrt(count) if normalization == 1 else count, xp.dtype(x)))
