"""Operations on each element: arithmetic, comparison, logic, activations, casts."""

from __future__ import annotations

import math
from typing import Any

from zoo.dtypes import DType
from zoo.ops.dtypes import is_integer, promote, result_type, to_float
from zoo.ops.shape import cat
from zoo.ops.table import Moves, op


def _unary(name: str, torch_name: str | None = None, boolean: bool = False) -> None:
    """An operation whose result keeps its argument's dtype."""
    op(torch_name or name, elementwise=True, boolean=boolean)(lambda xp, x: getattr(xp, name)(x))


def _unary_float(name: str, torch_name: str | None = None) -> None:
    """An operation that turns integers into floats first."""
    op(torch_name or name, elementwise=True)(lambda xp, x: getattr(xp, name)(to_float(xp, x)))


_unary("abs")
_unary("logical_not", boolean=True)
_unary("negative", "neg")
for _name in (
    "exp expm1 log log1p log2 sqrt rsqrt sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh "
    "erf erfc erfinv lgamma sigmoid"
).split():
    _unary_float(_name)


@op("exp2", "special_exp2", elementwise=True)
def exp2(xp: Any, x: Any) -> Any:
    return pow_(xp, 2.0, x)


@op("log10", elementwise=True)
def log10(xp: Any, x: Any) -> Any:
    x = to_float(xp, x)
    return xp.divide(xp.log(x), xp.asarray(math.log(10), xp.dtype(x)))


def _rounding(name: str) -> None:
    """Rounding leaves integers as they are."""
    op(name, elementwise=True)(lambda xp, x: x if is_integer(xp.dtype(x)) else getattr(xp, name)(x))


for _name in ("floor", "ceil", "trunc"):
    _rounding(_name)


@op("round", "round.decimals", elementwise=True)
def round_(xp: Any, x: Any, *, decimals: int = 0) -> Any:
    """Half to even."""
    if is_integer(xp.dtype(x)):
        return x
    if decimals == 0:
        return xp.round(x)
    # a power with a negative exponent is no exact number, so digits before the point are divided away
    power = xp.asarray(10.0 ** abs(decimals), xp.dtype(x))
    if decimals < 0:
        return xp.multiply(xp.round(xp.divide(x, power)), power)
    return xp.divide(xp.round(xp.multiply(x, power)), power)


@op("frac", elementwise=True)
def frac(xp: Any, x: Any) -> Any:
    return xp.subtract(x, xp.trunc(x))


@op("reciprocal", elementwise=True)
def reciprocal(xp: Any, x: Any) -> Any:
    x = to_float(xp, x)
    return xp.divide(xp.asarray(1, xp.dtype(x)), x)


@op("sign", elementwise=True)
def sign(xp: Any, x: Any) -> Any:
    """NaN has the sign 0."""
    if xp.dtype(x) == "bool":
        return x
    return xp.where(xp.not_equal(x, x), xp.asarray(0, xp.dtype(x)), xp.sign(x))


@op("signbit", elementwise=True, boolean=True)
def signbit(xp: Any, x: Any) -> Any:
    """Whether a number is below 0, or -0; what the sign of NaN is differs between machines."""
    zero = xp.asarray(0, xp.dtype(x))
    below = xp.less(x, zero)
    if is_integer(xp.dtype(x)):
        return below
    return xp.logical_or(below, xp.less(xp.divide(xp.asarray(1, xp.dtype(x)), x), zero))


@op("square", elementwise=True)
def square(xp: Any, x: Any) -> Any:
    return pow_(xp, x, 2)


@op("isnan", elementwise=True, boolean=True)
def isnan(xp: Any, x: Any) -> Any:
    return xp.not_equal(x, x)


@op("isinf", elementwise=True, boolean=True)
def isinf(xp: Any, x: Any) -> Any:
    return xp.equal(xp.abs(x), xp.asarray(math.inf, xp.dtype(x))) if not is_integer(xp.dtype(x)) else xp.not_equal(x, x)


@op("isfinite", elementwise=True, boolean=True)
def isfinite(xp: Any, x: Any) -> Any:
    if is_integer(xp.dtype(x)):
        return xp.equal(x, x)
    return xp.equal(xp.subtract(x, x), xp.asarray(0, xp.dtype(x)))


# Arithmetic of two arguments


@op("add.Tensor", "add.Scalar", elementwise=True)
def add(xp: Any, x: Any, y: Any, alpha: Any = 1) -> Any:
    x, y = promote(xp, x, y)
    if xp.dtype(x) == "bool":
        return xp.logical_or(x, y)
    return xp.add(x, _scaled(xp, y, alpha))


@op("sub.Tensor", "sub.Scalar", elementwise=True)
def sub(xp: Any, x: Any, y: Any, alpha: Any = 1) -> Any:
    x, y = promote(xp, x, y)
    return xp.subtract(x, _scaled(xp, y, alpha))


@op("diff")
def diff(xp: Any, x: Any, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Any:
    """Differences of neighbours along `dim`, `n` times; of truth values whether they differ."""
    dim %= xp.ndim(x)
    if n:
        x = cat(xp, [part for part in (prepend, x, append) if part is not None], dim)
    minus = xp.not_equal if xp.dtype(x) == "bool" else xp.subtract
    for _ in range(n):
        x = minus(xp.slice(x, dim, 1, None), xp.slice(x, dim, 0, -1))
    return x


@op("rsub.Tensor", "rsub.Scalar", elementwise=True)
def rsub(xp: Any, x: Any, y: Any, alpha: Any = 1) -> Any:
    x, y = promote(xp, x, y)
    return xp.subtract(y, _scaled(xp, x, alpha))


@op("mul.Tensor", "mul.Scalar", elementwise=True)
def mul(xp: Any, x: Any, y: Any) -> Any:
    x, y = promote(xp, x, y)
    return xp.logical_and(x, y) if xp.dtype(x) == "bool" else xp.multiply(x, y)


@op("div.Tensor", "div.Scalar", "true_divide.Tensor", elementwise=True)
def div(xp: Any, x: Any, y: Any) -> Any:
    x, y = (to_float(xp, v) for v in promote(xp, x, y))
    return xp.divide(x, y)


@op("div.Tensor_mode", "div.Scalar_mode", elementwise=True)
def div_mode(xp: Any, x: Any, y: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is None:
        return div(xp, x, y)
    if rounding_mode == "floor":
        return floor_divide(xp, x, y)
    x, y = promote(xp, x, y)
    if is_integer(xp.dtype(x)):
        quotient = xp.floor_divide(xp.abs(x), xp.abs(y))
        return xp.multiply(quotient, xp.multiply(xp.sign(x), xp.sign(y)))
    return xp.trunc(xp.divide(x, y))


@op("floor_divide", "floor_divide.Scalar", elementwise=True)
def floor_divide(xp: Any, x: Any, y: Any) -> Any:
    x, y = promote(xp, x, y)
    if is_integer(xp.dtype(x)):
        return xp.floor_divide(x, y)
    # floor(x / y) can round up to a whole number that the exact quotient stays under; torch corrects by the remainder
    rest = remainder(xp, x, y)
    quotient = xp.divide(xp.subtract(x, rest), y)
    exact = xp.round(quotient)
    zero = xp.asarray(0, xp.dtype(x))
    return xp.where(xp.equal(y, zero), xp.divide(x, y), exact)


@op("remainder.Tensor", "remainder.Scalar", "remainder.Scalar_Tensor", elementwise=True)
def remainder(xp: Any, x: Any, y: Any) -> Any:
    """The result has the divisor's sign."""
    x, y = promote(xp, x, y)
    return xp.remainder(x, y)


@op("fmod.Tensor", "fmod.Scalar", elementwise=True)
def fmod(xp: Any, x: Any, y: Any) -> Any:
    """The result has the dividend's sign."""
    x, y = promote(xp, x, y)
    rest = xp.remainder(xp.abs(x), xp.abs(y))
    negative = xp.less(x, xp.asarray(0, xp.dtype(x)))
    return xp.where(negative, xp.negative(rest), rest)


@op("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", elementwise=True)
def pow_(xp: Any, x: Any, y: Any) -> Any:
    exponent = y if isinstance(y, (int, float)) else None
    x, y = promote(xp, x, y)
    # as torch's own kernel: these are exact or faster as products and roots
    if exponent == 2:
        return xp.multiply(x, x)
    if exponent == 3:
        return xp.multiply(x, xp.multiply(x, x))
    if exponent == 0.5:
        return xp.sqrt(x)
    if exponent == -0.5:
        return xp.rsqrt(x)
    return xp.power(x, y)


@op("atan2", elementwise=True)
def atan2(xp: Any, x: Any, y: Any) -> Any:
    x, y = (to_float(xp, v) for v in promote(xp, x, y))
    return xp.atan2(x, y)


@op("maximum", "max.other", elementwise=True)
def maximum(xp: Any, x: Any, y: Any) -> Any:
    return xp.maximum(*promote(xp, x, y))


@op("minimum", "min.other", elementwise=True)
def minimum(xp: Any, x: Any, y: Any) -> Any:
    return xp.minimum(*promote(xp, x, y))


@op("fmax", elementwise=True)
def fmax(xp: Any, x: Any, y: Any) -> Any:
    """As maximum, but a number wins over NaN."""
    x, y = promote(xp, x, y)
    return xp.where(xp.not_equal(x, x), y, xp.where(xp.not_equal(y, y), x, xp.maximum(x, y)))


@op("fmin", elementwise=True)
def fmin(xp: Any, x: Any, y: Any) -> Any:
    """As minimum, but a number wins over NaN."""
    x, y = promote(xp, x, y)
    return xp.where(xp.not_equal(x, x), y, xp.where(xp.not_equal(y, y), x, xp.minimum(x, y)))


@op("hypot", elementwise=True)
def hypot(xp: Any, x: Any, y: Any) -> Any:
    """The larger is taken out of the root: its square may overflow."""
    x, y = promote(xp, x, y)
    x, y = xp.abs(x), xp.abs(y)
    top, low = xp.maximum(x, y), xp.minimum(x, y)
    zero, one = xp.asarray(0, xp.dtype(x)), xp.asarray(1, xp.dtype(x))
    infinite = xp.logical_or(isinf(xp, x), isinf(xp, y))
    ratio = xp.divide(low, xp.where(xp.logical_or(infinite, xp.equal(top, zero)), one, top))
    root = xp.multiply(top, xp.sqrt(xp.add(one, xp.multiply(ratio, ratio))))
    return xp.where(infinite, xp.asarray(math.inf, xp.dtype(x)), root)


@op("copysign.Tensor", "copysign.Scalar", elementwise=True)
def copysign(xp: Any, x: Any, y: Any) -> Any:
    x, y = (to_float(xp, v) for v in promote(xp, x, y))
    size = xp.abs(x)
    return xp.where(signbit(xp, y), xp.negative(size), size)


@op("ldexp.Tensor", elementwise=True)
def ldexp(xp: Any, x: Any, exponent: Any) -> Any:
    x = to_float(xp, x)
    return xp.multiply(x, xp.cast(pow_(xp, 2.0, exponent), xp.dtype(x)))


@op("clamp", "clamp.Tensor", "clip", elementwise=True)
def clamp(xp: Any, x: Any, min: Any = None, max: Any = None) -> Any:
    dtype = result_type(xp, *(v for v in (x, min, max) if v is not None))
    x = xp.asarray(x, dtype)
    # not maximum and minimum: at a limit torch's gradient is wholly that of x, and NaN stays, a limit's too
    if min is not None:
        low = xp.asarray(min, dtype)
        x = xp.where(_beyond(xp, xp.less(x, low), min), low, x)
    if max is not None:
        high = xp.asarray(max, dtype)
        x = xp.where(_beyond(xp, xp.greater(x, high), max), high, x)
    return x


def _beyond(xp: Any, outside: Any, limit: Any) -> Any:
    return outside if isinstance(limit, (int, float)) else xp.logical_or(outside, xp.not_equal(limit, limit))


@op("clamp_min", "clamp_min.Tensor", elementwise=True)
def clamp_min(xp: Any, x: Any, min: Any) -> Any:
    return clamp(xp, x, min, None)


@op("clamp_max", "clamp_max.Tensor", elementwise=True)
def clamp_max(xp: Any, x: Any, max: Any) -> Any:
    return clamp(xp, x, None, max)


@op("lerp.Scalar", "lerp.Tensor", elementwise=True)
def lerp(xp: Any, x: Any, end: Any, weight: Any) -> Any:
    """From the nearer end, as torch's kernel: each end is met exactly."""
    x, end, weight = promote(xp, x, end, weight)
    gap, one = xp.subtract(end, x), xp.asarray(1, xp.dtype(x))
    near = xp.less(xp.abs(weight), xp.asarray(0.5, xp.dtype(x)))
    from_end = xp.subtract(end, xp.multiply(gap, xp.subtract(one, weight)))
    return xp.where(near, xp.add(x, xp.multiply(weight, gap)), from_end)


@op("addcmul", elementwise=True)
def addcmul(xp: Any, x: Any, a: Any, b: Any, *, value: Any = 1) -> Any:
    return add(xp, x, mul(xp, mul(xp, a, b), value))


@op("addcdiv", elementwise=True)
def addcdiv(xp: Any, x: Any, a: Any, b: Any, *, value: Any = 1) -> Any:
    return add(xp, x, mul(xp, div(xp, a, b), value))


# Comparison and logic


def _comparison(torch_name: str, name: str) -> None:
    @op(f"{torch_name}.Tensor", f"{torch_name}.Scalar", elementwise=True, boolean=True)
    def function(xp: Any, x: Any, y: Any) -> Any:
        return getattr(xp, name)(*promote(xp, x, y))


for _torch_name, _name in (
    ("eq", "equal"),
    ("ne", "not_equal"),
    ("lt", "less"),
    ("le", "less_equal"),
    ("gt", "greater"),
    ("ge", "greater_equal"),
):
    _comparison(_torch_name, _name)


def _logical(name: str) -> None:
    @op(name, elementwise=True, boolean=True)
    def function(xp: Any, x: Any, y: Any) -> Any:
        return getattr(xp, name)(xp.cast(x, "bool"), xp.cast(y, "bool"))


def _bitwise(name: str, overloads: str, of_operator: str) -> None:
    """The operation and Python's operator for it."""

    def function(xp: Any, x: Any, y: Any) -> Any:
        x, y = promote(xp, x, y)
        if xp.dtype(x) == "bool":
            return getattr(xp, "not_equal" if name == "xor" else f"logical_{name}")(x, y)
        return getattr(xp, f"bitwise_{name}")(x, y)

    for overload in overloads.split():
        op(f"bitwise_{name}.{overload}", elementwise=True)(function)
    for overload in of_operator.split():
        op(f"__{name}__.{overload}", elementwise=True, same_as=f"bitwise_{name}.{overload}")(function)


for _name in ("logical_and", "logical_or"):
    _logical(_name)
_bitwise("and", "Tensor Scalar", "Tensor Scalar")
_bitwise("or", "Tensor Scalar", "Tensor Scalar")
_bitwise("xor", "Tensor Scalar", "Tensor")


@op("logical_xor", elementwise=True, boolean=True)
def logical_xor(xp: Any, x: Any, y: Any) -> Any:
    return xp.not_equal(xp.cast(x, "bool"), xp.cast(y, "bool"))


@op("bitwise_not", elementwise=True)
def bitwise_not(xp: Any, x: Any) -> Any:
    return xp.logical_not(x) if xp.dtype(x) == "bool" else xp.bitwise_not(x)


@op(
    "__lshift__.Scalar",
    "__lshift__.Tensor",
    "bitwise_left_shift.Tensor",
    "bitwise_left_shift.Tensor_Scalar",
    elementwise=True,
)
def left_shift(xp: Any, x: Any, y: Any) -> Any:
    return xp.left_shift(*promote(xp, x, y))


@op(
    "__rshift__.Scalar",
    "__rshift__.Tensor",
    "bitwise_right_shift.Tensor",
    "bitwise_right_shift.Tensor_Scalar",
    elementwise=True,
)
def right_shift(xp: Any, x: Any, y: Any) -> Any:
    return xp.right_shift(*promote(xp, x, y))


@op("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar", elementwise=True, moves=Moves.CHOOSE)
def where(xp: Any, condition: Any, x: Any, y: Any) -> Any:
    x, y = promote(xp, x, y)
    return xp.where(xp.cast(condition, "bool"), x, y)


@op("masked_fill.Scalar", "masked_fill.Tensor", elementwise=True, moves=Moves.CHOOSE)
def masked_fill(xp: Any, x: Any, mask: Any, value: Any) -> Any:
    return xp.where(xp.cast(mask, "bool"), xp.asarray(value, xp.dtype(x)), x)


# Casts


@op("_to_copy", elementwise=True)
def to_copy(xp: Any, x: Any, *, dtype: DType | None = None) -> Any:
    return x if dtype is None else xp.cast(x, dtype.name)


@op("copy", writes=True)
def copy(xp: Any, x: Any, src: Any) -> Any:
    """The values of `src` in the shape and dtype of `x`."""
    return xp.broadcast_to(xp.cast(src, xp.dtype(x)), xp.shape(x))


# Activations


@op("relu", elementwise=True, whole=True)
def relu(xp: Any, x: Any) -> Any:
    """At 0 the gradient is 0, and NaN stays."""
    zero = xp.asarray(0, xp.dtype(x))
    return xp.where(xp.less_equal(x, zero), zero, x)


@op("relu6", elementwise=True, whole=True)
def relu6(xp: Any, x: Any) -> Any:
    return hardtanh(xp, x, 0, 6)


@op("gelu", elementwise=True, whole=True)
def gelu(xp: Any, x: Any, *, approximate: str = "none") -> Any:
    """https://arxiv.org/abs/1606.08415; "tanh" is its approximation in the paper's section 2."""
    one, half = xp.asarray(1, xp.dtype(x)), xp.asarray(0.5, xp.dtype(x))
    if approximate == "tanh":
        cubic = xp.multiply(xp.asarray(0.044715, xp.dtype(x)), xp.multiply(x, xp.multiply(x, x)))
        inner = xp.multiply(xp.asarray(math.sqrt(2 / math.pi), xp.dtype(x)), xp.add(x, cubic))
        return xp.multiply(xp.multiply(half, x), xp.add(one, xp.tanh(inner)))
    scaled = xp.multiply(x, xp.asarray(math.sqrt(0.5), xp.dtype(x)))
    return xp.multiply(xp.multiply(half, x), xp.add(one, xp.erf(scaled)))


@op("silu", elementwise=True, whole=True)
def silu(xp: Any, x: Any) -> Any:
    return xp.multiply(x, xp.sigmoid(x))


@op("softplus", elementwise=True, whole=True)
def softplus(xp: Any, x: Any, beta: float = 1, threshold: float = 20) -> Any:
    scaled = xp.multiply(x, xp.asarray(beta, xp.dtype(x)))
    soft = xp.divide(_log1p_exp(xp, scaled), xp.asarray(beta, xp.dtype(x)))
    return xp.where(xp.greater(scaled, xp.asarray(threshold, xp.dtype(x))), x, soft)


@op("log_sigmoid", elementwise=True)
def log_sigmoid(xp: Any, x: Any) -> Any:
    return xp.negative(_log1p_exp(xp, xp.negative(x)))


@op("mish", elementwise=True, whole=True)
def mish(xp: Any, x: Any) -> Any:
    return xp.multiply(x, xp.tanh(_log1p_exp(xp, x)))


@op("elu", elementwise=True, whole=True)
def elu(xp: Any, x: Any, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Any:
    zero = xp.asarray(0, xp.dtype(x))
    grown = xp.expm1(xp.multiply(xp.minimum(x, zero), xp.asarray(input_scale, xp.dtype(x))))
    below = xp.multiply(xp.asarray(alpha, xp.dtype(x)), grown)
    return xp.multiply(xp.asarray(scale, xp.dtype(x)), xp.where(xp.greater(x, zero), x, below))


@op("celu", elementwise=True, whole=True)
def celu(xp: Any, x: Any, alpha: float = 1) -> Any:
    return elu(xp, x, alpha, 1, 1 / alpha)


@op("selu", elementwise=True, whole=True)
def selu(xp: Any, x: Any) -> Any:
    """The constants are those of https://arxiv.org/abs/1706.02515."""
    return elu(xp, x, 1.6732632423543772, 1.0507009873554805)


@op("leaky_relu", elementwise=True, whole=True)
def leaky_relu(xp: Any, x: Any, negative_slope: float = 0.01) -> Any:
    zero = xp.asarray(0, xp.dtype(x))
    return xp.where(xp.greater(x, zero), x, xp.multiply(x, xp.asarray(negative_slope, xp.dtype(x))))


@op("rrelu_with_noise_functional")
def rrelu(xp: Any, x: Any, noise: Any, lower: float = 0.125, upper: float = 1 / 3, training: bool = False) -> Any:
    """The mean of the slopes that training draws; the second result is the noise, of which nothing is used."""
    if training:
        raise NotImplementedError("rrelu in a graph captured for training")
    return leaky_relu(xp, x, (lower + upper) / 2), noise


@op("prelu", "_prelu_kernel")
def prelu(xp: Any, x: Any, weight: Any) -> Any:
    if xp.ndim(weight) == 1 and xp.ndim(x) > 1:
        weight = xp.reshape(weight, (-1,) + (1,) * (xp.ndim(x) - 2))
    return xp.where(xp.greater(x, xp.asarray(0, xp.dtype(x))), x, xp.multiply(x, weight))


@op("hardtanh", elementwise=True, whole=True)
def hardtanh(xp: Any, x: Any, min_val: float = -1, max_val: float = 1) -> Any:
    """At a limit the gradient is 0, and NaN stays."""
    low, high = xp.asarray(min_val, xp.dtype(x)), xp.asarray(max_val, xp.dtype(x))
    x = xp.where(xp.less_equal(x, low), low, x)
    return xp.where(xp.greater_equal(x, high), high, x)


@op("hardsigmoid", elementwise=True, whole=True)
def hardsigmoid(xp: Any, x: Any) -> Any:
    shifted = xp.add(x, xp.asarray(3, xp.dtype(x)))
    return xp.divide(hardtanh(xp, shifted, 0, 6), xp.asarray(6, xp.dtype(x)))


@op("hardswish", elementwise=True, whole=True)
def hardswish(xp: Any, x: Any) -> Any:
    return xp.multiply(x, hardsigmoid(xp, x))


@op("glu", along="dim", whole=True)
def glu(xp: Any, x: Any, dim: int = -1) -> Any:
    dim %= xp.ndim(x)
    half = xp.shape(x)[dim] // 2
    return xp.multiply(xp.slice(x, dim, 0, half), xp.sigmoid(xp.slice(x, dim, half, None)))


def _scaled(xp: Any, y: Any, alpha: Any) -> Any:
    return y if isinstance(alpha, (int, float)) and alpha == 1 else xp.multiply(y, xp.asarray(alpha, xp.dtype(y)))


def _log1p_exp(xp: Any, x: Any) -> Any:
    """log(1 + exp(x)) without overflow."""
    zero = xp.asarray(0, xp.dtype(x))
    return xp.add(xp.maximum(x, zero), xp.log1p(xp.exp(xp.negative(xp.abs(x)))))
