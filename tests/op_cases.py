"""The calls that every operation of the table is tried with, as data: operation name -> cases.

A case is what torch's operation takes, with `DType` for dtypes. `size(6)` is a number that a graph computes from
dims, and `known(x, 1)` says that dim 1 of `x` is known while a graph is built (with no dim named, all are), as those
of parameters are; both matter only where dims are unknown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from zoo.graph.ir import DType

__all__ = ["CASES", "Case", "Known", "Size"]

_RANDOM = torch.Generator().manual_seed(0)
_NAN, _INF = math.nan, math.inf
_F64, _F32, _F16, _BF16, _I64, _I32, _BOOL = map(DType, "float64 float32 float16 bfloat16 int64 int32 bool".split())
_END = 2**63 - 1


@dataclass(frozen=True)
class Case:
    """One call of an operation."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Known:
    """A tensor of which some dims are known while a graph is built; `dims` None means all."""

    tensor: torch.Tensor
    dims: tuple[int, ...] | None


class Size(int):
    """A number computed from dims."""


CASES: dict[str, list[Case]] = {}


def case(names: str, *args: Any, **kwargs: Any) -> None:
    for name in names.split():
        CASES.setdefault(name, []).append(Case(args, kwargs))


def known(x: torch.Tensor, *dims: int) -> Known:
    return Known(x, dims or None)


size = Size


def real(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=_RANDOM)


def near(low: float, high: float, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=_RANDOM) * (high - low) + low


def ints(low: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=_RANDOM)


def bools(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=_RANDOM) < 0.5


def apart(*shape: int) -> torch.Tensor:
    """Floats no two of which are equal."""
    return (torch.randperm(math.prod(shape), generator=_RANDOM).reshape(shape) - 3.5) * 0.25


def tensor(values: Any, dtype: Any = None) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


HALVES = (torch.float16, torch.bfloat16)
SPECIAL = tensor([_NAN, _INF, -_INF, 0.0, -0.0, 1.0, -1.0, 0.5, 100.0])

# One argument

for _name, _low, _high in (
    *((name, -3.0, 3.0) for name in "exp expm1 exp2 sin cos tan atan sinh cosh tanh asinh erf erfc sigmoid".split()),
    *((name, 0.1, 3.0) for name in "log log1p log2 log10 sqrt rsqrt".split()),
    *((name, -0.9, 0.9) for name in "asin acos atanh erfinv".split()),
    ("acosh", 1.1, 4.0),
    ("reciprocal", 0.2, 3.0),
):
    case(_name, near(_low, _high, 2, 3))
    case(_name, near(_low, _high, 3, 2).T)
    case(_name, near(_low, _high))
    case(_name, near(_low, _high, 0, 3))
    case(_name, SPECIAL)
    case(_name, ints(1, 4, 2, 3))
    case(_name, tensor([True, True]))
    for _half in HALVES:
        case(_name, near(_low, _high, 2, 3).to(_half))
for _name in "floor ceil trunc round".split():
    case(_name, near(-5, 5, 2, 3))
    case(_name, tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -0.2]))
    case(_name, SPECIAL)
    case(_name, ints(-4, 4, 2, 3))
    case(_name, near(-5, 5, 2, 3).half())
    case(_name, near(-5, 5, 2, 3).bfloat16())
case("round.decimals", near(-50, 50, 2, 3), decimals=1)
case("round.decimals", near(-5000, 5000, 2, 3), decimals=-2)
case("round.decimals", near(-5, 5, 2, 3), decimals=0)
for _name in "abs neg sign square".split():
    case(_name, real(2, 3))
    case(_name, real(3, 2).T)
    case(_name, real())
    case(_name, real(0, 3))
    case(_name, SPECIAL)
    case(_name, ints(-4, 4, 2, 3))
    case(_name, ints(-4, 4, 2, 3).int())
    case(_name, real(2, 3).half())
    case(_name, real(2, 3).bfloat16())
case("square sign", bools(2, 3))
case("frac", near(-5, 5, 2, 3))
case("special_exp2", near(-3, 3, 2, 3))
case("lgamma", near(0.1, 3, 2, 3))
case("lgamma", near(0.1, 3, 2, 3).bfloat16())
case("lgamma", ints(3, 9, 2, 3))
case("lgamma", tensor([-2.0, -1.5, -0.5, 0.0, 1.0, 2.0, 50.0]))
case("erfinv", tensor([-1.0, 1.0, 0.0, -0.999, 0.999, 1.5]))
case("signbit", tensor([-1.0, -0.0, 0.0, 1.0, _INF, -_INF]))
case("signbit", ints(-4, 4, 2, 3))
case("signbit", real(2, 3).half())
for _name in "isnan isinf isfinite logical_not".split():
    case(_name, SPECIAL)
    case(_name, ints(0, 2, 2, 3))
    case(_name, bools(2, 3))
    case(_name, SPECIAL.half())
    case(_name, SPECIAL.bfloat16())
case("bitwise_not", ints(-9, 9, 2, 3))
case("bitwise_not", bools(2, 3))
case("bitwise_not", ints(0, 9, 2, 3).to(torch.uint8))

# Activations

_ACTIVATIONS = (
    "relu relu6 gelu silu softplus log_sigmoid mish elu celu selu leaky_relu hardtanh hardsigmoid hardswish".split()
)
for _name in _ACTIVATIONS:
    case(_name, near(-6, 6, 2, 3))
    case(_name, near(-6, 6, 3, 2).T)
    case(_name, real())
    case(_name, real(0, 3))
    case(_name, tensor([-90.0, 0.0, 90.0]))
    if _name not in (
        "gelu",
        "silu",
        "mish",
    ):  # products of an infinity and 0, which torch's kernels define as they like
        case(_name, tensor([-_INF, _INF]))
    case(_name, tensor([_NAN, 1.0]))
    for _half in HALVES:
        case(_name, near(-4, 4, 2, 3).to(_half))
case("relu relu6 hardtanh", ints(-9, 9, 2, 3))
case("gelu", near(-6, 6, 2, 5), approximate="tanh")
case("gelu", near(-6, 6, 2, 5).bfloat16(), approximate="tanh")
case("softplus", near(-6, 6, 2, 3), 2.0, 5.0)
case("elu", near(-6, 6, 2, 3), 0.5, 2.0, 3.0)
case("celu", near(-6, 6, 2, 3), 0.5)
case("leaky_relu", near(-6, 6, 2, 3), 0.3)
case("hardtanh", near(-6, 6, 2, 3), -2.0, 3.0)
case("prelu", real(2, 3, 4), tensor([0.1, 0.2, 0.3]))
case("prelu", real(2, 3), tensor([0.1]))
case("prelu", real(3), tensor([0.1]))
case("rrelu_with_noise_functional", real(2, 3), torch.zeros(2, 3), 0.1, 0.3, False)
case("_prelu_kernel", real(2, 3, 4), tensor([0.1, 0.2, 0.3]).reshape(3, 1))
case("glu", real(2, 6))
case("glu", real(2, 4, 3), 1)
case("glu", real(2, 4, 3), -2)
case("glu", real(2, 6).bfloat16())

# Two arguments

_PAIRS: list[tuple[Any, Any]] = [
    (real(2, 3), near(0.5, 3, 2, 3)),
    (real(2, 1, 3), near(0.5, 3, 4, 1)),
    (real(3, 2).T, near(0.5, 3, 2, 3)),
    (real(0, 3), near(0.5, 3, 1, 3)),
    (real(2, 3), near(0.5, 3)),
    (real(), near(0.5, 3)),
    (ints(-9, 9, 2, 3), ints(1, 5, 2, 3)),
    (ints(-9, 9, 2, 3).int(), ints(1, 5, 3)),
    (ints(-9, 9, 2, 3), near(0.5, 3)),
    (ints(-9, 9, 2, 3), near(0.5, 3, 2, 3)),
    (real(2, 3), tensor(1.5, torch.float64)),
    (tensor(1.5, torch.float64), near(0.5, 3, 2, 3)),
    (real(2, 3).half(), near(0.5, 3, 3)),
    (real(2, 3).half(), tensor(1.5)),
    (real(2, 3).half(), near(0.5, 3, 3).bfloat16()),
    (ints(-9, 9, 2, 3), tensor(3, torch.int32)),
    (real(2, 3).half(), near(0.5, 3, 2, 3).half()),
    (real(2, 3).bfloat16(), near(0.5, 3, 2, 3).bfloat16()),
]
_COMPARED = " ".join(f"{name}.Tensor" for name in "eq ne lt le gt ge".split())
for _number, (_x, _y) in enumerate(_PAIRS):
    case("add.Tensor mul.Tensor div.Tensor floor_divide remainder.Tensor maximum", _x, _y)
    case("eq.Tensor lt.Tensor", _x.round(), _y.round())
    if _number % 3 and _number < len(_PAIRS) - 2:
        continue  # the rest promote as those do
    case("sub.Tensor rsub.Tensor true_divide.Tensor fmod.Tensor atan2 minimum max.other min.other", _x, _y)
    case("ne.Tensor le.Tensor gt.Tensor ge.Tensor", _x.round(), _y.round())
    case("div.Tensor_mode", _x, _y, rounding_mode="floor")
    case("div.Tensor_mode", _x, _y, rounding_mode="trunc")
case("div.Tensor_mode", real(2, 3), ints(1, 4, 3), rounding_mode=None)
case("add.Tensor mul.Tensor maximum minimum " + _COMPARED, bools(2, 3), bools(2, 3))
case("add.Tensor mul.Tensor " + _COMPARED, bools(2, 3), ints(0, 3, 3))
case("add.Tensor mul.Tensor", bools(2, 3), real(3))
case("maximum minimum " + _COMPARED, SPECIAL, SPECIAL.flip(0))
case("add.Tensor sub.Tensor mul.Tensor div.Tensor", SPECIAL, SPECIAL.flip(0))
case("fmod.Tensor remainder.Tensor", tensor([5.5, -5.5, 5.5, -5.5]), tensor([2.0, 2.0, -2.0, -2.0]))
case("fmod.Tensor remainder.Tensor floor_divide", tensor([7, -7, 7, -7]), tensor([2, 2, -2, -2]))
case("floor_divide", tensor([5.5, -5.5, 5.5, -5.5, 1.0, -1.0]), tensor([2.0, 2.0, -2.0, -2.0, 0.0, 0.0]))
case("floor_divide", tensor([1.0, 0.3]), tensor([0.1, 0.1]))
for _rounding in ("floor", "trunc"):
    case("div.Tensor_mode", tensor([7, -7, 7, -7]), tensor([2, 2, -2, -2]), rounding_mode=_rounding)
    case("div.Tensor_mode", tensor([5.5, -5.5, 5.5, -5.5]), tensor([2.0, 2.0, -2.0, -2.0]), rounding_mode=_rounding)
    case("div.Scalar_mode", ints(-9, 9, 2, 3), 2, rounding_mode=_rounding)
    case("div.Scalar_mode", real(2, 3), 0.3, rounding_mode=_rounding)
    case("div.Scalar_mode", ints(-9, 9, 2, 3), 2.5, rounding_mode=_rounding)
case("div.Scalar_mode", ints(-9, 9, 2, 3), 2, rounding_mode=None)
case("fmax fmin", SPECIAL, SPECIAL.flip(0))
case("fmax fmin", real(2, 1, 3), real(4, 1))
case("fmax fmin", ints(-4, 4, 2, 3), real(3))
case("hypot", real(2, 1, 3), real(4, 1))
case("hypot", tensor([3e30, 0.0, _INF, _NAN, _INF]), tensor([4e30, 0.0, 1.0, 1.0, _NAN]))
case("copysign.Tensor", real(2, 3), tensor([-1.0, 0.0, -0.0]))
case("copysign.Tensor", ints(-4, 4, 2, 3), real(3))
case("copysign.Scalar", real(2, 3), -2)
case("ldexp.Tensor", real(2, 3), ints(-4, 9, 3))
_SCALARS = (
    "add.Scalar sub.Scalar rsub.Scalar mul.Scalar div.Scalar floor_divide.Scalar remainder.Scalar fmod.Scalar "
    + " ".join(f"{name}.Scalar" for name in "eq ne lt le gt ge".split())
)
for _x, _number in (
    (real(2, 3), 2),
    (real(2, 3), 1.5),
    (real(), 2.5),
    (ints(-9, 9, 2, 3), 3),
    (ints(-9, 9, 2, 3), 1.5),
    (tensor(5), 2.5),
    (real(0, 2), 2.0),
    (real(2, 3).half(), 1.5),
    (real(2, 3).bfloat16(), 2),
    (ints(-9, 9, 2, 3).to(torch.int8), 3),
):
    case(_SCALARS, _x, _number)
case("add.Scalar mul.Scalar div.Scalar eq.Scalar lt.Scalar ge.Scalar", bools(2, 3), 1)
case("add.Scalar mul.Scalar div.Scalar eq.Scalar lt.Scalar ge.Scalar", bools(2, 3), 0.5)
case("eq.Scalar ne.Scalar lt.Scalar", SPECIAL, -_INF)
case("add.Tensor sub.Tensor rsub.Tensor", real(2, 3), real(3), alpha=2)
case("add.Tensor sub.Tensor rsub.Tensor", real(2, 3), real(3), alpha=0.5)
case("add.Tensor sub.Tensor rsub.Tensor", ints(0, 9, 2, 3), ints(0, 9, 3), alpha=2)
case("add.Scalar sub.Scalar rsub.Scalar", real(2, 3), 3, 2)
case("remainder.Scalar_Tensor", 7, tensor([2, 3, -4]))
case("remainder.Scalar_Tensor", 7.5, tensor([2.0, 3.0, -4.0]))
for _exponent in (2, 3, 2.0, 0.5, -0.5, 1, 1.0, 0, -1, 1.7, -2.0):
    case("pow.Tensor_Scalar", near(0.2, 3, 2, 3), _exponent)
for _exponent in (2, 2.0, 3.0, 1, 1.0, 0.5, 0):
    case("pow.Tensor_Scalar", ints(1, 5, 2, 3), _exponent)
case("pow.Tensor_Scalar", bools(2, 3), 2)
case("pow.Tensor_Scalar", bools(2, 3), 1)
case("pow.Tensor_Scalar", near(0.2, 3), 2)
case("pow.Tensor_Scalar", real(0, 3), 2)
case("pow.Tensor_Scalar", tensor([-2.0, -1.5, 0.0, -0.0]), 3)
case("pow.Tensor_Scalar", near(0.2, 3, 2, 3).half(), 2)
case("pow.Tensor_Scalar", near(0.2, 3, 2, 3).bfloat16(), 1.5)
case("pow.Tensor_Tensor", near(0.2, 3, 2, 3), real(3))
case("pow.Tensor_Tensor", ints(1, 4, 2, 3), ints(0, 4, 3))
case("pow.Tensor_Tensor", ints(1, 4, 2, 3), tensor(0.5))
case("pow.Tensor_Tensor", near(0.2, 3, 2, 3), ints(-2, 3, 3))
case("pow.Scalar", 2, real(2, 3))
case("pow.Scalar", 2, ints(0, 5, 2, 3))
case("pow.Scalar", 10000.0, ints(0, 5, 2, 3))
case("pow.Scalar", 10000.0, near(0, 1, 4))
for _limits in ((-1, 1), (-0.5, 0.5), (None, 0.5), (0, None), (1.0, -1.0)):
    case("clamp clip", near(-2, 2, 2, 3), *_limits)
case("clamp", ints(-9, 9, 2, 3), -2, 3)
case("clamp", ints(-9, 9, 2, 3), 0.5, None)
case("clamp", SPECIAL, -1.0, 1.0)
case("clamp", SPECIAL, -_INF, 1.0)
case("clamp", near(-2, 2, 2, 3).half(), -1, 1)
case("clamp", near(-2, 2, 2, 3).bfloat16(), -1, 1)
case("clamp.Tensor", real(2, 3), near(-1, 0, 3), near(0, 1, 2, 1))
case("clamp.Tensor", real(2, 3), None, tensor(0.5))
case("clamp.Tensor", ints(-9, 9, 2, 3), tensor(-2), None)
case("clamp_min clamp_max", real(2, 3), 0.1)
case("clamp_min clamp_max", ints(-9, 9, 2, 3), 2)
case("clamp_min clamp_max", ints(-9, 9, 2, 3), 0.5)
case("clamp_min.Tensor clamp_max.Tensor", real(2, 3), real(3))
case("lerp.Scalar", real(2, 3), real(3), 0.3)
case("lerp.Tensor", real(2, 3), real(3), near(0, 1, 2, 1))
case("addcmul addcdiv", real(2, 3), real(3), near(1, 2, 2, 1))
case("addcmul addcdiv", real(2, 3), real(3), near(1, 2, 2, 1), value=0.5)
case("addcmul", ints(0, 5, 2, 3), ints(0, 5, 3), ints(0, 5, 3), value=2)
for _x, _y in (
    (bools(2, 3), bools(3)),
    (real(2, 3).round(), bools(3)),
    (ints(0, 2, 2, 3), real(3).round()),
    (bools(), bools(2)),
):
    case("logical_and logical_or logical_xor", _x, _y)
_BITS = "bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor __and__.Tensor __or__.Tensor __xor__.Tensor"
case(_BITS, bools(2, 3), bools(3))
case(_BITS, ints(-9, 9, 2, 3), ints(0, 9, 3))
case(_BITS, ints(-9, 9, 2, 3), bools(3))
case(_BITS, ints(-9, 9, 2, 3).int(), ints(0, 9, 3))
case("bitwise_and.Scalar bitwise_or.Scalar bitwise_xor.Scalar __and__.Scalar __or__.Scalar", ints(-9, 9, 2, 3), 5)
case("bitwise_and.Scalar bitwise_or.Scalar bitwise_xor.Scalar __and__.Scalar __or__.Scalar", bools(2, 3), True)
_SHIFTS = "__lshift__ __rshift__".split()
for _name in _SHIFTS:
    case(f"{_name}.Scalar", ints(-9, 9, 2, 3), 2)
    case(f"{_name}.Tensor", ints(-9, 9, 2, 3), ints(0, 4, 3))
for _name in ("bitwise_left_shift", "bitwise_right_shift"):
    case(f"{_name}.Tensor_Scalar", ints(-9, 9, 2, 3), 2)
    case(f"{_name}.Tensor", ints(-9, 9, 2, 3).int(), ints(0, 4, 3))
case("where.self", bools(2, 3), real(2, 3), real(3))
case("where.self", bools(3), real(2, 1), ints(0, 5))
case("where.self", bools(2, 3), tensor(1.0, torch.float64), real(3))
case("where.self", bools(2, 3), tensor(-_INF), real(3).half())
case("where.self", bools(), ints(0, 5, 2), ints(0, 5, 2).int())
case("where.self", bools(0, 3), real(3), real(3))
case("where.ScalarOther", bools(2, 3), real(3), 0)
case("where.ScalarOther", bools(2, 3), ints(0, 5, 3), 0.5)
case("where.ScalarSelf", bools(2, 3), -_INF, real(3).bfloat16())
case("where.Scalar", bools(2, 3), 1.0, 0.0)
case("where.Scalar", bools(2, 3), 1, 0)
case("masked_fill.Scalar", real(2, 3), bools(2, 3), -_INF)
case("masked_fill.Scalar", real(2, 3).half(), bools(3), 0)
case("masked_fill.Scalar", ints(0, 5, 2, 3), bools(2, 1), -100)
case("masked_fill.Tensor", real(2, 3), bools(2, 3), tensor(2.0))

# Casts

for _dtype in (_F64, _F32, _F16, _BF16, _I64, _I32, _BOOL):
    case("_to_copy", near(-5, 5, 2, 3), dtype=_dtype)
    case("_to_copy", ints(-5, 5, 2, 3), dtype=_dtype)
    case("_to_copy", bools(2, 3), dtype=_dtype)
case("_to_copy", near(-5, 5, 2, 3).bfloat16(), dtype=_F32)
case("_to_copy", real(2, 3))
case("_to_copy", ints(0, 9, 2, 3), dtype=DType("uint8"))
case("copy", real(2, 3), ints(0, 5, 3))
case("copy", ints(0, 5, 2, 3), near(-5, 5))
case("copy", real(2, 3).half(), real(2, 3))
case("mul.Tensor add.Tensor", torch.complex(real(2, 3), real(2, 3)), torch.complex(real(3), real(3)))
case("mul.Tensor", torch.complex(real(2, 3), real(2, 3)), real(3))
case("mul.Tensor", real(2, 3), torch.complex(real(), real()).to(torch.complex128))
case("view.dtype", real(2, 3), _I32)
case("view.dtype", ints(0, 2**30, 2, 3).int(), _F32)

# Complex numbers and Fourier transforms


def waves(*shape: int) -> torch.Tensor:
    return torch.complex(real(*shape), real(*shape))


case("complex", real(2, 3), real(2, 3))
case("complex", real(2, 1).double(), real(3).double())
case("view_as_real view_as_real_copy", waves(2, 3))
case("view_as_real", waves())
case("view_as_complex view_as_complex_copy", real(2, 3, 2))
case("polar", near(0, 2, 2, 3), real(2, 3))
case("polar", near(0, 2, 2, 3).double(), real(2, 3).double())
case("real imag angle _conj conj _conj_physical conj_physical", waves(2, 3))
case("angle", tensor([-1.0, 0.0, 1.0, _NAN, -_INF]))
case("angle", ints(-2, 3, 4))
case("real conj", real(2, 3))
case("abs neg exp reciprocal", waves(2, 3))
case("sum.dim_IntList", waves(2, 3), (1,))
case("div.Tensor sub.Tensor", waves(2, 3), waves(3))
case("div.Tensor eq.Tensor", waves(2, 3), real(3))
case("matmul mm", waves(2, 3), waves(3, 2))
for _scaling in (0, 1, 2):
    for _size in (8, 7, 1):
        case("_fft_c2c", waves(2, _size), (1,), _scaling, True)
        case("_fft_c2c", waves(_size, 2), (0,), _scaling, False)
        case("_fft_r2c", real(2, _size), (1,), _scaling, True)
        case("_fft_c2r", waves(2, _size // 2 + 1), (1,), _scaling, _size)
    case("_fft_c2c", waves(2, 5, 4, 3), (1, 3), _scaling, True)
    case("_fft_r2c", real(5, 4, 3), (0, 2), _scaling, True)
    case("_fft_r2c", real(2, 6), (1,), _scaling, False)
    case("_fft_c2r", waves(4, 5, 3), (0, 1), _scaling, size(8))
case("_fft_c2c", real(3, 2, 4).double().mT.to(torch.complex128), (0, 2), 0, True)
for _size in (1, 4, 5):
    case("fft_fftfreq fft_rfftfreq", _size)
case("fft_fftfreq fft_rfftfreq", 6, 0.5, dtype=_F64)

# Making arrays

for _shape in ((2, 3), (), (0, 3), (size(2), size(3))):
    case("full", _shape, 2)
    case("full", _shape, 2.5)
    case("full", _shape, True)
    case("full", _shape, -_INF, dtype=_F16)
    case("full", _shape, 3, dtype=_BF16)
    case("full", _shape, 0.0, dtype=_BOOL)
    case("zeros ones", _shape)
    case("zeros ones", _shape, dtype=_I64)
    case("empty.memory_format", _shape)
    case("new_full", ints(0, 5, 2), _shape, 3)
    case("new_full", real(2), _shape, 3, dtype=_I64)
    case("new_zeros new_ones new_empty", ints(0, 5, 2), _shape)
    case("new_zeros new_ones new_empty", real(2).half(), _shape, dtype=_BOOL)
case("full", (2,), size(5))
case("empty_permuted", (2, 3), (1, 0))
case("empty_permuted", (2, 3), (1, 0), dtype=_I64)
case("new_empty_strided", ints(0, 5, 2), (2, 3), (3, 1))
for _x in (real(2, 3), ints(0, 5, 2, 3), bools(2, 3), real(), real(0, 3), real(2, 3).bfloat16()):
    case("full_like", _x, 1)
    case("full_like", _x, 2.0, dtype=_F16)
    case("zeros_like ones_like empty_like", _x)
    case("zeros_like ones_like empty_like", _x, dtype=_I32)
    case("fill.Scalar", _x, 1)
    case("fill.Tensor", _x, tensor(1.0))
for _number in (2, 2.5, True):
    case("scalar_tensor", _number)
    case("scalar_tensor", _number, dtype=_I64)
    case("scalar_tensor", _number, dtype=_BF16)
case("scalar_tensor", size(4), dtype=_I64)
case("scalar_tensor", -_INF, dtype=_F16)
case("arange", 5)
case("arange", size(5))
case("arange", 0)
case("arange", 2.5)
case("arange", 5, dtype=_F32)
case("arange.start", 2, 7)
case("arange.start", 2.0, 4.5)
case("arange.start_step", 0, 5)
case("arange.start_step", 0, size(7), 2)
case("arange.start_step", size(2), size(7), 1, dtype=_F32)
case("arange.start_step", 7, 0, -2)
case("arange.start_step", 0.0, 1.0, 0.25)
case("arange.start_step", 0, 1, 0.3)
case("arange.start_step", 0.5, 3.5, 0.5, dtype=_F64)
case("arange.start_step", 0, 64, 2, dtype=_BF16)
case("linspace", 0, 1, 5)
case("linspace", -1.0, 2.5, 4, dtype=_F64)
case("linspace", 3, 7, 1)
case("linspace", 0, 9, 4, dtype=_I64)
case("eye", 3)
case("eye", size(3), dtype=_BOOL)
case("eye.m", 2, 4)
for _x in (real(3, 4), real(2, 3, 3), ints(0, 5, 3, 4), bools(4, 3), real(0, 3), real(3, 3).half()):
    case("tril triu", _x)
    case("tril triu", _x, 1)
    case("tril triu", _x, -1)
for _name in ("tril_indices", "triu_indices"):
    case(_name, 3, 4)
    case(_name, 4, 3, -1)
    case(_name, 2, 2, 5, dtype=_I32)
    case(_name, 0, 2)

# Folding dims

_FLOATS = (real(2, 3, 4), real(3, 2).T, real(), real(2, 3).half(), real(2, 3).bfloat16())
for _x in (*_FLOATS, ints(-4, 4, 2, 3), bools(2, 3)):
    case("sum prod", _x)
    if _x.is_floating_point():
        case("mean", _x)
    case("max min any all", _x)
    if _x.dtype != torch.bool:
        case("argmax argmin", _x)
case("sum prod any all", real(0, 3))
case("mean", real(0, 3))
case("max min amax amin", tensor([1.0, _NAN, 2.0]))
case("amax amin any all", bools(2, 3))
for _dim, _keep in ((0, False), (-1, True), (1, False)):
    case("prod.dim_int", real(2, 3, 4), _dim, _keep)
    case("any.dim all.dim", bools(2, 3, 4), _dim, _keep)
    case("any.dim all.dim", ints(0, 2, 2, 3), _dim, _keep)
    case("max.dim min.dim argmax argmin", apart(2, 3, 4), _dim, _keep)
    case("max.dim min.dim argmax argmin", torch.randperm(6, generator=_RANDOM).reshape(2, 3), _dim, _keep)
    case("argmax argmin", apart(2, 3).half(), _dim, _keep)
    case("argmax argmin", apart(2, 3).bfloat16(), _dim, _keep)
for _dims in ((0,), (-1,), (0, 2), (1, -1), ()):
    for _keep in (False, True):
        case("sum.dim_IntList mean.dim amax amin", real(2, 3, 4), _dims, _keep)
        case("any.dims all.dims", bools(2, 3, 4), _dims, _keep)
        case("linalg_vector_norm", real(2, 3, 4), 2, _dims or None, _keep)
        case("norm.ScalarOpt_dim", real(2, 3, 4), 2, _dims, _keep)
        case("logsumexp", real(2, 3, 4), _dims or (0, 1, 2), _keep)
        case("var.dim std.dim", real(2, 3, 4), _dims, True, _keep)
        case("var.correction std.correction var_mean.correction", real(2, 3, 4), _dims, keepdim=_keep)
case("sum.dim_IntList", real(2, 3), None)
case("sum.dim_IntList", ints(0, 5, 2, 3), (0,))
case("sum.dim_IntList", bools(2, 3), (1,))
case("sum.dim_IntList", bools(2, 3), (1,), dtype=_F32)
case("sum.dim_IntList", ints(0, 5, 2, 3).int(), (0,))
case("sum.dim_IntList", real(0, 3), (0,))
case("sum.dim_IntList mean.dim", near(0, 1, 4, 300).half(), (1,))
case("sum.dim_IntList mean.dim", near(0, 1, 4, 300).bfloat16(), (1,))
case("sum.dim_IntList mean.dim", real(), (0,))
case("mean.dim", ints(0, 5, 2, 3), (0,), dtype=_F32)
case("mean.dim", real(2, 3).half(), (-1,), True, dtype=_F32)
case("sum mean prod", real(2, 3).half(), dtype=_F32)
case("prod.dim_int", ints(1, 4, 2, 3), 1)
case("amax", tensor([[1.0, _NAN], [2.0, 3.0]]), (1,))
case("amax amin", ints(-9, 9, 2, 3), (1,), True)
case("any.dim all.dim argmax argmin max.dim min.dim", tensor(1.5), 0)
case("any", tensor([0.0, _NAN]))
case("any.dim all.dim", bools(0, 3), 0)
case("argmax argmin max.dim min.dim", tensor([[1.0, _NAN, 2.0], [3.0, 1.0, -1.0]]), 1)
case("argmax argmin", apart(2, 3), None, True)
case("argmax argmin", tensor([1, 3, 3, 1]), 0)
case("var.correction std.correction", real(2, 3), (1,), correction=0)
case("var.correction", real(2, 3), None, correction=1, keepdim=True)
case("var.correction", real(2, 3), (1,), correction=0.5)
case("var.dim std.dim", real(2, 3), (-1,), False)
case("var.correction", real(2, 1), (1,))
case("var.correction std.correction var_mean.correction", near(0, 1, 4, 40).bfloat16(), (1,), correction=0)
for _order in (0, 1, 2, 3, 0.5, _INF, -_INF):
    case("linalg_vector_norm", real(2, 3), _order, (1,))
    case("norm.ScalarOpt_dim", real(2, 3), _order, (1,), True)
case("linalg_vector_norm", real(2, 3))
case("linalg_vector_norm", near(100, 300, 2, 8).half(), 2, (-1,), True)
case("linalg_vector_norm", real(2, 3).half(), 2, (-1,), dtype=_F32)
case("linalg_vector_norm", real(2, 3).bfloat16(), 2, (-1,), True)
case("norm.ScalarOpt_dim", real(2, 3), None, (1,))
case("logsumexp", tensor([[-_INF, -_INF], [_INF, 1.0], [-_INF, 2.0], [1000.0, 1000.0], [_NAN, 1.0]]), (1,))
case("logsumexp", ints(0, 5, 2, 3), (1,))
case("logsumexp", real(2, 3).bfloat16(), (1,))
for _dim in (0, -1, 1):
    case("softmax.int log_softmax.int _safe_softmax", real(2, 3, 4), _dim)
    case("_softmax _log_softmax", real(2, 3, 4), _dim, False)
    case("cumsum cumprod", real(2, 3, 4), _dim)
    case("cumsum cumprod", ints(1, 3, 2, 3), _dim)
    for _half in HALVES:
        case("softmax.int log_softmax.int", real(2, 3).to(_half), _dim)
case("softmax.int log_softmax.int cumsum cumprod", real(), 0)
case("softmax.int log_softmax.int cumsum cumprod", real(0, 3), 1)
case("softmax.int log_softmax.int", real(3, 2).T, -1)
case("softmax.int log_softmax.int", tensor([[-_INF, -_INF], [-_INF, 1.0], [1000.0, 999.0]]), -1)
case("softmax.int log_softmax.int", real(2, 3).half(), -1, _F32)
case("softmax.int log_softmax.int", ints(0, 5, 2, 3), -1, _F32)
case("_safe_softmax", tensor([[-_INF, -_INF], [-_INF, 1.0]]), -1)
case("_softmax _log_softmax", real(2, 3).bfloat16(), -1, False)
case("cumsum cumprod", bools(2, 3), 1)
case("cumsum", bools(2, 3), 1, dtype=_F32)
case("cumsum", real(2, 3).half(), -1)
case("cumsum", ints(0, 3, 2, 3).int(), -1)

for _name in ("cummax", "cummin"):
    for _dim in (0, 1, -1):
        case(_name, real(2, 3, 4), _dim)
        case(_name, ints(0, 4, 3, 5), _dim)
    case(_name, tensor([1.0, 3.0, _NAN, 2.0, _NAN, 4.0]), 0)
    case(_name, tensor([_INF, -_INF, 0.0, _INF, -_INF]), 0)
    case(_name, bools(3, 4), 1)
    case(_name, ints(0, 255, 9).to(torch.uint8), 0)
    case(_name, real(), 0)
    case(_name, real(0, 3), 1)
    case(_name, real(2, 9).bfloat16(), 1)
for _dim in (0, 1, -1):
    case("logcumsumexp", real(2, 3, 4), _dim)
case("logcumsumexp", tensor([-_INF, -_INF, 1.0, 1000.0, 999.0]), 0)
case("logcumsumexp", real(), 0)
case("logcumsumexp", real(2, 9).half(), 1)

# Products

for _half in (torch.float32, *HALVES):
    _w, _b = known(real(4, 3).to(_half)), known(real(4).to(_half))
    case("linear", real(2, 3).to(_half), _w)
    case("linear", real(2, 5, 3).to(_half), _w, _b)
    case("linear", real(3).to(_half), _w, _b)
    case("linear", real(2, 0, 3).to(_half), _w, _b)
    case("linear", real(2, 3, 5).to(_half).mT, _w)
    case("matmul mm", real(2, 3).to(_half), real(3, 4).to(_half))
    case("matmul bmm", real(2, 3, 4).to(_half), real(2, 4, 5).to(_half))
    case("addmm", real(4).to(_half), real(2, 3).to(_half), real(3, 4).to(_half))
case("linear", real(2, 5, 3), real(4, 3), real(4))
case("linear", real(2, 5, 3), real(3))
case("matmul", real(2, 1, 3, 4), real(5, 4, 2))
case("matmul", real(2, 3, 4), real(4, 5))
case("matmul", real(2, 3, 4), real(4))
case("matmul", real(3), real(2, 3, 4))
case("matmul dot", real(3), real(3))
case("matmul mv", real(2, 3), real(3))
case("matmul mm", ints(0, 5, 2, 3), ints(0, 5, 3, 2))
case("matmul mm", real(2, 0), real(0, 3))
case("matmul mm", real(3, 2).T, real(4, 3).T)
case("bmm", real(0, 2, 3), real(0, 3, 2))
case("mv", real(2, 3).bfloat16(), real(3).bfloat16())
case("dot", ints(0, 5, 3), ints(0, 5, 3))
case("outer", real(2), real(3))
case("outer", ints(0, 5, 2), real(3))
case("addmm", real(2, 4), real(2, 3), real(3, 4), beta=0.5, alpha=2)
case("addmm", real(2, 4), real(2, 3), real(3, 4), beta=0)
case("addmm", ints(0, 5, 4), ints(0, 5, 2, 3), ints(0, 5, 3, 4), beta=2, alpha=3)
case("baddbmm", real(2, 3, 5), real(2, 3, 4), real(2, 4, 5))
case("baddbmm", real(1, 3, 5), real(2, 3, 4), real(2, 4, 5), beta=0.5, alpha=2)
case("baddbmm", real(2, 3, 5), real(2, 3, 4), real(2, 4, 5), beta=0, alpha=0.5)
case("addmv", real(2), real(2, 3), real(3))
case("addmv", real(2), real(2, 3), real(3), beta=0.5, alpha=2)
case("bilinear", real(2, 5, 3), real(2, 5, 4), known(real(6, 3, 4)), known(real(6)))
case("bilinear", real(2, 3), real(2, 4), known(real(6, 3, 4)))
for _equation, *_shapes in (
    ("bij, bjk -> bik", (2, 3, 4), (2, 4, 5)),
    ("bhld,lrd->bhlr", (2, 2, 3, 4), (3, 5, 4)),
    ("...i,ij->...j", (2, 3, 4), (4, 5)),
    ("ij,kj", (2, 3), (4, 3)),
    ("bAi,bAi->A", (2, 3, 4), (2, 3, 4)),
    ("ii->i", (3, 3)),
    ("i,j,k->kij", (2,), (3,), (4,)),
):
    case("einsum", _equation, tuple(real(*shape) for shape in _shapes))
case("einsum", "ij,jk->ik", (real(2, 3).bfloat16(), real(3, 4).bfloat16()))

case("addbmm", real(3, 5), real(2, 3, 4), real(2, 4, 5))
case("addbmm", real(5), real(2, 3, 4), real(2, 4, 5), beta=0.5, alpha=2)
for _ends in ([2, 2, 5], [0, 4, 5], [1, 2, 3], [0, 0, 0]):
    case("transformers::grouped_mm_fallback", known(real(5, 4), 1), known(real(3, 4, 6)), tensor(_ends, torch.int32))
case("transformers::grouped_mm_fallback", known(real(5, 4), 1), known(real(2, 6, 4).mT), tensor([3, 5]))
case("_grouped_mm", known(real(16, 16), 1), known(real(3, 16, 8)), offs=tensor([4, 4, 16], torch.int32))
case("_grouped_mm", real(2, 16, 16), real(2, 16, 8))
for _p in (0.0, 1.0, 2.0, 3.0, _INF):
    case("_cdist_forward", real(2, 3, 4), real(5, 4), _p, None)
    case("_cdist_forward", real(3, 4), real(3, 4), _p, 2)
    case("_pdist_forward", known(real(4, 3)), _p)

# Linear algebra


def definite(*shape: int) -> torch.Tensor:
    x = real(*shape)
    return x @ x.mT + torch.eye(shape[-1])


case("linalg_inv linalg_det linalg_slogdet linalg_eigvalsh linalg_svdvals linalg_cholesky", definite(3, 3))
case("linalg_inv linalg_det linalg_slogdet linalg_eigvalsh linalg_svdvals linalg_cholesky", definite(2, 1, 4, 4))
case("linalg_inv linalg_cholesky", definite(2, 4, 4).double())
case("linalg_inv linalg_det linalg_slogdet", real(2, 3, 3) + 2 * torch.eye(3))
case("linalg_cholesky", torch.tril(definite(2, 4, 4)) + torch.triu(real(4, 4), 1))
case("linalg_cholesky", torch.triu(definite(2, 4, 4)) + torch.tril(real(4, 4), -1), upper=True)
case("linalg_eigvalsh", torch.triu(definite(4, 4)), "U")
case("linalg_svdvals", real(2, 3, 5))
case("linalg_solve", definite(3, 3), real(3))
case("linalg_solve", definite(2, 3, 3), real(2, 3))
case("linalg_solve", definite(2, 3, 3), real(2, 3, 5))
case("linalg_solve", definite(3, 3), real(2, 3, 5))
case("linalg_solve", definite(2, 3, 3), real(2, 5, 3), left=False)
for _upper in (False, True):
    for _unit in (False, True):
        _corner = (real(2, 3, 3) * 0.3 + torch.eye(3)).mT
        case("linalg_solve_triangular", _corner, real(2, 3, 4), upper=_upper, unitriangular=_unit)
        case("linalg_solve_triangular", _corner, real(5, 3), upper=_upper, left=False, unitriangular=_unit)
    _factor = torch.linalg.cholesky(definite(2, 3, 3), upper=_upper)
    case("cholesky_solve", real(2, 3, 4), _factor, _upper)
for _case in ((2, 4, 4), (3, 3)):
    case("linalg_eigh", definite(*_case))
    case("linalg_eigh", definite(*_case), "U")
for _shape in ((4, 4), (2, 3, 5), (5, 3)):
    for _full in (False, True):
        case("linalg_svd", real(*_shape), _full and _shape == (4, 4))
        case("linalg_qr", real(*_shape), "complete" if _full else "reduced")
    case("linalg_qr", real(*_shape), "r")

# Attention: [B, H, T, D]; a mask row of nothing but -inf gives zeros

_MASK = tensor([[True, False, True, False, True], [False] * 5, [True] * 5])


def _qkv(dtype: torch.dtype = torch.float32, queries: int = 3, keys: int = 5, heads: int = 4, shared: int = 4) -> tuple:
    shapes = ((2, heads, queries, 8), (2, shared, keys, 8), (2, shared, keys, 6 if shared == heads else 8))
    return tuple(known(real(*shape).to(dtype), 1, 3) for shape in shapes)


_SDPA = "scaled_dot_product_attention"
for _dtype in (torch.float32, *HALVES):
    case(_SDPA, *_qkv(_dtype))
    case(_SDPA, *_qkv(_dtype), _MASK)
    case(_SDPA, *_qkv(_dtype), real(2, 1, 3, 5).to(_dtype))
    case(_SDPA, *_qkv(_dtype), None, 0.0, True)
    case(_SDPA, *_qkv(_dtype, shared=2), enable_gqa=True)
case(_SDPA, *_qkv(), _MASK.expand(2, 1, 3, 5), scale=0.3)
case(_SDPA, *_qkv(), torch.where(_MASK, 0.0, -_INF))
case(_SDPA, *_qkv(), torch.where(_MASK, real(2, 4, 3, 5), -_INF))
case(_SDPA, *_qkv(), torch.where(_MASK, 0.0, torch.finfo(torch.float32).min))
case(_SDPA, *_qkv(), bools(2, 4, 3, 5))
case(_SDPA, *_qkv(), None, 0.0, False, scale=1.0)
case(_SDPA, *_qkv(queries=5, keys=5), None, 0.0, True, scale=0.5)
case(_SDPA, *_qkv(queries=6, keys=3), None, 0.0, True)
case(_SDPA, *_qkv(shared=1), _MASK, enable_gqa=True)
case(_SDPA, *_qkv(shared=2), None, 0.0, True, enable_gqa=True, scale=0.7)
case(_SDPA, real(3, 8), real(5, 8), real(5, 8))
case(_SDPA, real(2, 3, 8), real(2, 5, 8), real(2, 5, 8), _MASK)
case(_SDPA, real(2, 4, 8, 3).mT, real(2, 4, 8, 5).mT, real(2, 4, 5, 8))

# Normalisation

for _dtype in (torch.float32, *HALVES):
    _w, _b = known(near(0.5, 1.5, 6).to(_dtype)), known(real(6).to(_dtype))
    case("layer_norm", real(2, 3, 6).to(_dtype), (6,), _w, _b, 1e-5)
    case("layer_norm", (real(2, 3, 6) + 20).to(_dtype), (6,), _w, None, 1e-12, False)
    case("native_layer_norm", real(2, 3, 6).to(_dtype), (6,), _w, _b, 1e-5)
    case("rms_norm", real(2, 3, 6).to(_dtype), (6,), _w, 1e-6)
    case("rms_norm", (real(2, 3, 6) * 0.01).to(_dtype), (6,), None, None)
    case("group_norm", real(2, 6, 5).to(_dtype), 3, _w, _b, 1e-5)
    case("native_group_norm", real(2, 6, 4).to(_dtype), _w, _b, 2, 6, 4, 2, 1e-5)
    case("batch_norm", real(2, 6, 5).to(_dtype), _w, _b, _b, _w, False, 0.1, 1e-5, True)
    case("instance_norm", real(2, 6, 5).to(_dtype), _w, _b, None, None, True, 0.1, 1e-5, True)
_w, _b = known(near(0.5, 1.5, 6)), known(real(6))
case("layer_norm", real(2, 3, 6), (6,))
case("layer_norm", real(2, 3, 6), (3, 6), known(real(3, 6)), known(real(3, 6)))
case("layer_norm", real(2, 6, 3).mT, (6,), _w, _b)
case("layer_norm", real(2, 0, 6), (6,), _w, _b)
case("layer_norm", real(2, 1), (1,))
case("native_layer_norm", real(2, 3, 6), (3, 6), None, None, 1e-5)
case("rms_norm", real(2, 3, 6), (3, 6))
case("rms_norm", real(2, 3, 6).double(), (6,))
case("group_norm", real(2, 6, 3, 4), 2)
case("group_norm", real(2, 6), 3, _w, _b)
case("group_norm", real(2, 6, 3, 4), 1, _w, None, 1e-6)
case("native_group_norm", real(2, 6, 3, 4), None, None, 2, 6, 12, 3, 1e-5)
case("batch_norm", real(3, 6), _w, _b, _b, _w, False, 0.1, 1e-5, False)
case("batch_norm", real(2, 6, 3, 4), None, None, _b, _w, False, 0.1, 1e-3, True)
case("batch_norm", real(2, 6, 3), _w, _b, None, None, True, 0.1, 1e-5, True)
case("instance_norm", real(2, 6, 3, 4), None, None, None, None, True, 0.1, 1e-5, True)
case("instance_norm", real(2, 6, 4), _w, _b, _b, _w, False, 0.1, 1e-5, True)
case("_native_batch_norm_legit_no_training", real(2, 6, 3), _w, _b, _b, _w, 0.1, 1e-5)
case("_native_batch_norm_legit_no_training", real(2, 6, 3, 2), None, None, _b, _w, 0.1, 1e-5)

# Convolutions; channels are known, as their kernels are


def _image(*shape: int) -> Known:
    return known(real(*shape), 1)


case("conv1d", _image(2, 4, 9), known(real(6, 4, 3)), known(real(6)))
case("conv1d", _image(2, 4, 9), known(real(6, 4, 3)), None, (2,), (1,), (1,), 1)
case("conv1d", _image(2, 4, 9), known(real(4, 1, 3)), known(real(4)), (1,), (2,), (2,), 4)
case("conv1d", known(real(4, 9), 0), known(real(6, 4, 3)), None, (1,), (1,))
case("conv1d", _image(2, 4, 9), known(real(6, 2, 4)), known(real(6)), (3,), (2,), (1,), 2)
case("conv2d", _image(2, 4, 7, 8), known(real(6, 4, 3, 2)), known(real(6)))
case("conv2d", _image(2, 4, 7, 8), known(real(6, 4, 3, 3)), None, (2, 1), (1, 0), (1, 2))
case("conv2d", _image(2, 4, 7, 8), known(real(8, 1, 3, 3)), known(real(8)), (1, 1), (1, 1), (1, 1), 4)
case("conv2d", _image(2, 4, 7, 8), known(real(4, 1, 3, 3)), None, (1, 2), (1, 1), (1, 1), 4)
case("conv2d", _image(2, 4, 9, 9), known(real(4, 1, 3, 3)), None, (1, 1), (2, 2), (2, 2), 4)
case("conv2d", _image(2, 4, 9, 9), known(real(4, 1, 3, 3)), None, (2, 2), (1, 1), (1, 1), 4)
case("conv2d", _image(2, 4, 7, 8), known(real(6, 2, 3, 3)), known(real(6)), (2, 2), (1, 1), (1, 1), 2)
case("conv2d", known(real(4, 7, 8), 0), known(real(6, 4, 1, 1)), known(real(6)))
case("conv2d", known(real(2, 7, 8, 4).permute(0, 3, 1, 2), 1), known(real(6, 4, 2, 2)), None, (2,))
case("conv3d", _image(1, 2, 4, 5, 6), known(real(3, 2, 2, 3, 2)), known(real(3)))
case("conv3d", _image(1, 2, 4, 5, 6), known(real(3, 2, 2, 2, 2)), None, (2, 1, 2), (1, 0, 1))
case("conv1d.padding", _image(2, 4, 9), known(real(6, 4, 4)), None, (1,), "same")
case("conv1d.padding", _image(2, 4, 9), known(real(6, 4, 3)), None, (2,), "valid")
case("conv2d.padding", _image(2, 4, 7, 8), known(real(6, 4, 3, 4)), known(real(6)), (1, 1), "same", (2, 1))
case("conv3d.padding", _image(1, 2, 4, 5, 6), known(real(3, 2, 2, 3, 2)), None, (1, 1, 1), "same")
case("conv_transpose1d", _image(2, 4, 5), known(real(4, 3, 3)), known(real(3)))
case("conv_transpose1d", _image(2, 4, 5), known(real(4, 3, 4)), None, (2,), (1,), (1,), 1, (1,))
case("conv_transpose1d", known(real(4, 5), 0), known(real(4, 3, 4)), None, (2,))
case("conv_transpose1d", _image(2, 4, 5), known(real(4, 3, 2)), None, (1,), (3,), (0,), 1, (3,))
case("conv_transpose1d", _image(2, 4, 7), known(real(4, 3, 2)), None, (1,), (2,))
case("conv_transpose2d.input", _image(2, 4, 3, 4), known(real(4, 3, 2, 2)), known(real(3)), (2, 2))
case("conv_transpose2d.input", _image(2, 4, 3, 4), known(real(4, 2, 3, 3)), None, (2, 3), (1, 0), (1, 2), 2, (2, 1))
case("conv_transpose3d.input", _image(1, 2, 2, 3, 2), known(real(2, 3, 2, 2, 2)), known(real(3)), (2, 1, 2))
case("convolution", _image(2, 4, 9), known(real(6, 4, 3)), known(real(6)), (2,), (1,), (1,), False, (0,), 1)
case("convolution", _image(2, 4, 7, 8), known(real(6, 2, 3, 3)), None, (1, 1), (1, 1), (1, 1), False, (0, 0), 2)
case("convolution", _image(2, 4, 5), known(real(4, 3, 4)), None, (2,), (1,), (1,), True, (1,), 1)

# Pooling

case("max_pool1d", _image(2, 3, 9), (3,))
case("max_pool1d", _image(2, 3, 9), (3,), (2,), (1,), (1,), True)
case("max_pool1d", _image(2, 3, 9), (3,), (2,), (1,), (2,), False)
case("max_pool1d", known(real(3, 9), 0), (2,))
for _name in ("max_pool2d", "max_pool2d_with_indices"):
    case(_name, _image(2, 3, 7, 8), (2, 2))
    case(_name, _image(2, 3, 7, 8), (3, 3), (2, 2), (1, 1))
    case(_name, _image(2, 3, 7, 8), (3, 2), (2, 3), (1, 0), (1, 1), True)
    case(_name, _image(2, 3, 8, 8), (3, 3), (2, 2), (1, 1), (2, 2), True)
    case(_name, known(real(3, 7, 8), 0), (2, 2), (1, 2))
    case(_name, known(-near(1, 2, 1, 1, 5, 5), 1), (2, 2), (2, 2), (1, 1), (1, 1), True)
case("max_pool2d", known(ints(-9, 9, 2, 3, 6, 6), 1), (3, 3), (2, 2), (1, 1))
case("max_pool3d max_pool3d_with_indices", _image(1, 2, 4, 5, 6), (2, 2, 2))
case("max_pool3d_with_indices", _image(1, 2, 4, 5, 6), (3, 2, 2), (2, 1, 2), (1, 0, 1), (1, 1, 1), True)
case("max_pool3d_with_indices", known(real(2, 4, 5, 6), 0), (2, 2, 3), (1, 2, 2), (1, 1, 1), (2, 1, 1))
case("max_pool3d", _image(1, 2, 4, 5, 6), (3, 2, 2), (2, 1, 2), (1, 0, 1), (1, 1, 1), True)
for _args in (
    ((3,),),
    ((3,), (2,), (1,)),
    ((3,), (2,), (1,), True),
    ((3,), (2,), (1,), True, False),
    ((2,), (2,), (1,), True, True),
):
    case("avg_pool1d", _image(2, 3, 8), *_args)
    case("avg_pool1d", _image(2, 3, 5), *_args)
case("avg_pool1d", known(real(3, 8), 0), (2,))
for _ceil in (False, True):
    for _include in (False, True):
        case("avg_pool2d", _image(2, 3, 7, 8), (3, 2), (2, 3), (1, 1), _ceil, _include)
        case("avg_pool2d", _image(2, 3, 5, 5), (2, 2), (2, 2), (1, 1), _ceil, _include)
        case("avg_pool3d", _image(1, 2, 4, 5, 6), (2, 3, 2), (2, 2, 2), (1, 1, 0), _ceil, _include)
case("avg_pool2d", _image(2, 3, 7, 8), (2, 2))
case("avg_pool2d", _image(2, 3, 7, 8), (3, 3), (2, 2), (1, 1), False, True, 5)
case("avg_pool2d", known(real(3, 7, 8), 0), (3, 3), (1, 1))
case("avg_pool3d", _image(1, 2, 4, 5, 6), (2, 2, 2), (), 0, False, True, 3)
for _target in (1, 2, 3, 5, 8):
    case("adaptive_avg_pool1d", _image(2, 3, 8), (_target,))
case("adaptive_avg_pool1d", known(real(3, 8), 0), (3,))
for _name in ("adaptive_avg_pool2d", "_adaptive_avg_pool2d"):
    case(_name, _image(2, 3, 7, 8), (1, 1))
    case(_name, _image(2, 3, 7, 8), (3, 4))
    case(_name, _image(2, 3, 4, 5), (6, 7))
    case(_name, known(real(3, 7, 8), 0), (7, 2))
for _name in ("adaptive_avg_pool3d", "_adaptive_avg_pool3d"):
    case(_name, _image(1, 2, 4, 5, 6), (2, 3, 1))
case("adaptive_max_pool1d", apart(2, 3, 8), (3,))
case("adaptive_max_pool1d", apart(3, 8), (1,))
case("adaptive_max_pool1d", tensor([[[1.0, 2.0, 2.0, _NAN, 5.0, _NAN]]]), (3,))
case("adaptive_max_pool2d", apart(2, 3, 7, 8), (3, 4))
case("adaptive_max_pool2d", apart(3, 5, 5), (2, 7))
case("adaptive_max_pool3d", apart(1, 2, 4, 5, 3), (2, 3, 2))

# Resizing

for _target in (3, 5, 8, 10, 1):
    case("upsample_nearest1d", _image(2, 3, 5), (_target,))
    case("upsample_linear1d", _image(2, 3, 5), (_target,), False)
    case("upsample_linear1d", _image(2, 3, 5), (_target,), True)
case("upsample_nearest1d", _image(2, 3, 5), (size(10),), 2.0)
case("upsample_nearest1d", _image(2, 3, 5), (7,), 1.5)
case("upsample_nearest1d.vec", _image(2, 3, 5), None, (1.5,))
case("upsample_nearest1d.vec", _image(2, 3, 5), (size(7),), None)
case("upsample_linear1d", _image(2, 3, 5), (7,), False, 1.5)
case("upsample_linear1d.vec", _image(2, 3, 5), None, False, (1.5,))
case("upsample_linear1d.vec", _image(2, 3, 5), (size(8),), True, None)
case("upsample_nearest2d", _image(2, 3, 4, 5), (6, 10))
case("upsample_nearest2d", _image(2, 3, 4, 5), (8, 10), 2.0, 2.0)
case("upsample_nearest2d.vec", _image(2, 3, 4, 5), None, (2.0, 2.0))
case("upsample_nearest2d.vec", _image(2, 3, 4, 5), (size(3), size(9)), None)
case("upsample_nearest2d", _image(2, 3, 4, 5).tensor.bfloat16(), (8, 10))
for _target in (3, 5, 8, 10, 1):
    case("_upsample_nearest_exact1d", _image(2, 3, 5), (_target,))
case("_upsample_nearest_exact1d", _image(2, 3, 5), (7,), 1.5)
case("_upsample_nearest_exact1d.vec", _image(2, 3, 5), None, (1.5,))
case("_upsample_nearest_exact2d", _image(2, 3, 4, 5), (6, 10))
case("_upsample_nearest_exact2d.vec", _image(2, 3, 4, 5), (size(3), size(9)), None)
case("_upsample_nearest_exact2d.vec", _image(2, 3, 4, 5), None, (2.0, 0.7))
case("_upsample_nearest_exact3d", _image(1, 2, 3, 2, 4), (5, 4, 2))
case("_upsample_nearest_exact3d.vec", _image(1, 2, 3, 2, 4), None, (1.5, 2.0, 1.0))
case("upsample_nearest3d", _image(1, 2, 3, 2, 4), (5, 4, 2))
case("upsample_nearest3d.vec", _image(1, 2, 3, 2, 4), None, (1.5, 2.0, 1.0))
case("upsample_trilinear3d", _image(1, 2, 3, 2, 4), (5, 4, 2), False)
case("upsample_trilinear3d", _image(1, 2, 3, 2, 4), (5, 4, 2), True)
case("upsample_trilinear3d.vec", _image(1, 2, 3, 2, 4), None, False, (1.5, 2.0, 1.0))
for _name in ("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"):
    for _align in (False, True):
        case(_name, _image(2, 3, 6, 7), (4, 3), _align)
        case(_name, _image(2, 3, 6, 7), (9, 14), _align)
        case(f"{_name}.vec", _image(2, 3, 6, 7), (size(5), size(9)), _align, None)
    case(_name, _image(2, 3, 6, 7), (6, 7), False)
    case(_name, _image(2, 3, 6, 7), (12, 17), False, 2.0, 2.5)
    case(f"{_name}.vec", _image(2, 3, 6, 7), None, False, (1.5, 0.7))
    case(_name, known(real(1, 2, 5, 6).double(), 1), (7, 4), False)
for _padding in (0, 1, 2):
    for _align in (False, True):
        case("grid_sampler_2d", _image(2, 3, 4, 5), known(near(-1.7, 1.7, 2, 3, 2, 2), 3), 0, _padding, _align)
        case("grid_sampler_2d", _image(1, 2, 4, 5), known(near(-1.7, 1.7, 1, 3, 2, 2), 3), 1, _padding, _align)
        case("grid_sampler_2d", _image(1, 2, 4, 5), known(near(-1.7, 1.7, 1, 3, 2, 2), 3), 2, _padding, _align)
        for _mode in (0, 1):
            _grid = known(near(-1.7, 1.7, 2, 3, 2, 1, 3), 4)
            case("grid_sampler_3d grid_sampler", _image(2, 3, 4, 5, 2), _grid, _mode, _padding, _align)
case("grid_sampler", _image(2, 3, 4, 5), known(near(-1.7, 1.7, 2, 3, 2, 2), 3), 0, 0, False)

# Moving elements

case("view reshape _unsafe_view", real(2, 6), (3, 4))
case("view reshape _unsafe_view", real(2, 6), (size(2), 2, -1))
case("view reshape _unsafe_view", real(2, 3, 4), (size(6), -1))
case("view reshape", real(0, 6), (0, 2, 3))
case("view reshape", real(0, 6), (-1, 3))
case("view reshape", real(), (1, 1))
case("view reshape", real(1, 1), ())
case("view reshape", real(3, 2).T, (3, 2))
case("_reshape_alias", real(2, 6), (3, 4), (4, 1))
case("flatten.using_ints", real(2, 3, 4))
case("flatten.using_ints", real(2, 3, 4), 1)
case("flatten.using_ints", real(2, 3, 4), 0, -2)
case("flatten.using_ints", real())
case("flatten.using_ints", real(0, 3))
case("unflatten.int", real(2, 6), 1, (2, 3))
case("unflatten.int", real(2, 6), -1, (size(3), -1))
case("permute permute_copy", real(2, 3, 4), (2, 0, 1))
case("permute permute_copy", real(2, 3, 4), (0, -1, 1))
case("permute", real(), ())
case("transpose.int", real(2, 3, 4), 0, 2)
case("transpose.int", real(2, 3, 4), -1, -2)
case("transpose.int", real(), 0, -1)
case("t numpy_T", real(2, 3))
case("t numpy_T", real(3))
case("mT", real(2, 3))
case("mT", real(2, 3, 4))
case("movedim.int", real(2, 3, 4), 0, -1)
case("movedim.int", real(2, 3, 4), 2, 0)
case("movedim.intlist", real(2, 3, 4), (0, 1), (1, 2))
case("movedim.intlist", real(2, 3, 4, 5), (-1, 0), (0, -1))
for _dim in (0, 1, -1, -2):
    case("unsqueeze unsqueeze_copy", real(2, 3), _dim)
case("unsqueeze", real(), 0)
case("squeeze", known(real(2, 1, 3, 1)))
case("squeeze", known(real()))
case("squeeze.dim", known(real(2, 1, 3)), 1)
case("squeeze.dim", real(2, 1, 3), 0)
case("squeeze.dim", known(real(2, 1)), -1)
case("squeeze.dim", real(), 0)
case("squeeze.dims", known(real(1, 2, 1, 3)), (0, -2))
case("squeeze.dims", known(real(1, 2, 1, 3)), (0, 1))
case("expand expand_copy", real(2, 1, 3), (2, 4, 3))
case("expand expand_copy broadcast_to", real(1, 3), (size(2), size(4), 3))
case("expand expand_copy", real(2, 1), (-1, size(3)))
case("expand", real(), (2, 3))
case("expand", real(1, 3), (0, 3))
case("expand broadcast_to", real(2, 3), (2, 3))
case("expand_as", real(1, 3), real(2, 3))
case("view_as reshape_as", real(2, 6), real(3, 4))
case("broadcast_tensors", (real(2, 1), real(3), real()))
case("broadcast_tensors", (ints(0, 5, 2, 1), bools(1, 3)))
case("repeat", real(2, 3), (2, 1))
case("repeat", real(2, 3), (size(3), 2, 1))
case("repeat", real(2, 3), (0, 2))
case("repeat", real(), (2,))
case("tile", real(2, 3), (2,))
case("tile", real(2, 3), (2, 1, 2))
case("repeat_interleave.self_int", real(2, 3), 2)
case("repeat_interleave.self_int", real(2, 3), size(3), 1)
case("repeat_interleave.self_int", real(2, 3), 2, -2)
for _indexing in ("ij", "xy"):
    case("meshgrid.indexing", (real(2), real(3), real(1)), indexing=_indexing)
    case("meshgrid.indexing", (real(), real(3)), indexing=_indexing)
    case("meshgrid.indexing", (real(4),), indexing=_indexing)
case("meshgrid", (real(2), real(3)))
case("cat", (real(2, 3), real(1, 3)))
case("cat", (real(2, 3), real(2, 1)), -1)
case("cat", (real(2, 3), ints(0, 5, 2, 3)), 1)
case("cat", (real(2, 3).half(), real(2, 3).bfloat16()), 1)
case("cat", (known(tensor([])), real(2, 3)), 0)
case("cat", (real(0, 3), real(2, 3)), 0)
case("cat", (bools(2), bools(3)))
case("cat", (real(2, 3),), 1)
case("cat", (known(tensor([])), known(tensor([]))))
case("stack", (real(2, 3), real(2, 3)))
case("stack", (real(2, 3), ints(0, 5, 2, 3)), -1)
case("stack", (real(), real()), 0)
case("stack", (real(2), real(2), real(2)), 1)
_SLICES = "slice.Tensor slice_copy.Tensor"
for _range in (
    (0, 1, 4),
    (0, 0, _END),
    (0, -3, _END),
    (0, 0, -1),
    (0, None, 2),
    (0, 2, None),
    (0, 1, 100),
    (0, -100, 2),
    (0, 4, 2),
    (0, 3, 3),
    (-2, 1, 5, 2),
    (0, 1, _END, 3),
    (1, -2, -1),
    (-1, 0, 2),
    (0, size(1), size(4)),
    (0, size(2), _END),
    (0, -2, size(5)),
    (0, size(1), size(6), size(2)),
):
    case(_SLICES, real(6, 3), *_range)
case(_SLICES, ints(0, 5, 4))
case("narrow", real(6, 3), 0, 1, 3)
case("narrow", real(6, 3), -1, size(1), size(2))
for _index in (0, 2, -1, -2, size(1)):
    case("select.int select_copy.int", real(4, 3), 0, _index)
    case("select.int select_copy.int", real(4, 3), -1, _index)
case("select.int", real(4), 0, -1)
case("split_with_sizes split_with_sizes_copy split.sizes", real(6, 3), (1, 2, 3))
case("split_with_sizes split_with_sizes_copy split.sizes", real(2, 6), (2, 0, 4), -1)
case("split_with_sizes", real(2, 6), (size(2), size(4)), 1)
case("split.Tensor split_copy.Tensor", known(real(7, 3)), 3)
case("split.Tensor split_copy.Tensor", known(real(2, 6)), 2, -1)
case("split.Tensor", known(real(0, 3)), 2)
case("chunk", known(real(7, 3)), 3)
case("chunk", known(real(2, 6)), 2, -1)
case("chunk", known(real(2, 5)), 4, 1)
case("unbind.int", known(real(3, 2)))
case("unbind.int", known(real(2, 3)), -1)
case("flip", real(2, 3, 4), (0,))
case("flip", real(2, 3, 4), (-1, 0))
case("flip", ints(0, 5, 3), (0,))
case("roll", real(4, 3), (1,), (0,))
case("roll", real(4, 3), (-1, 2), (0, 1))
case("roll", real(4, 3), (5,))
case("roll", real(4, 3), (1, 1), (-1, -1))
case("roll", known(real(0, 3)), (1,), (0,))
case("roll", bools(4), (6,), (0,))
case("constant_pad_nd", real(2, 3), (1, 2))
case("constant_pad_nd", real(2, 3), (1, 2, 0, 1), 5.5)
case("constant_pad_nd", real(4, 5), (-1, 2, 1, -2), -1.0)
case("constant_pad_nd", real(4, 5), (-1, -1))
case("constant_pad_nd", ints(0, 5, 2, 3), (1, 0), 7)
case("constant_pad_nd", bools(2, 3), (1, 1))
case("constant_pad_nd", real(2, 3), (0, size(2)), -_INF)
case("constant_pad_nd", real(2, 3), (0, 0))
case("constant_pad_nd", real(2, 3).half(), (0, 1), 0.5)
case("pad", real(2, 3), (1, 2))
case("pad", real(2, 3), (1, 2), "constant", 3.0)
for _mode in ("reflect", "replicate", "circular"):
    case("pad", real(2, 3, 5), (2, 1), _mode)
    case("pad", real(2, 3, 5, 4), (2, 1, 0, 3), _mode)
case("reflection_pad1d replication_pad1d", real(2, 3, 5), (2, 1))
case("reflection_pad1d replication_pad1d", real(3, 5), (0, 4))
case("reflection_pad2d replication_pad2d", real(2, 3, 5, 4), (2, 1, 0, 3))
case("reflection_pad3d replication_pad3d", real(1, 2, 4, 5, 4), (2, 1, 0, 3, 1, 1))
case("replication_pad1d", real(2, 3, 5), (-1, 2))
case("unfold", real(2, 9), 1, 3, 2)
case("unfold", real(9, 2), 0, 4, 4)
case("unfold", real(2, 9), -1, 9, 1)
case("unfold", real(2, 3, 8), -1, 2, 1)
case("im2col", real(2, 3, 6, 7), (2, 3), (1, 1), (0, 0), (1, 1))
case("im2col", real(2, 3, 6, 7), (3, 2), (2, 1), (1, 2), (2, 3))
case("im2col", real(3, 4, 4), (2, 2), (1, 1), (0, 0), (2, 2))
case("pixel_shuffle", real(2, 8, 3, 4), 2)
case("pixel_shuffle", real(9, 2, 2), 3)
case("pixel_unshuffle", real(2, 2, 4, 6), 2)
for _offset in (0, 1, -1, 2, -2):
    case("diagonal diagonal_copy", real(3, 4), _offset)
    case("diagonal diagonal_copy", real(2, 4, 3), _offset, 1, -1)
case("diagonal", real(2, 3, 4), 0, 2, 0)
case("as_strided as_strided_copy", real(4, 6), (3, 2), (6, 1))
case("as_strided as_strided_copy", real(24), (2, 3, 4), (4, 8, 1), 0)
case("as_strided as_strided_copy", real(4, 6), (2, 5, 3), (6, 1, 1), 2)
case("as_strided", real(4, 6), (), (), 5)

# Indices

case("embedding", known(real(5, 3)), ints(0, 5, 2, 4))
case("embedding", known(real(5, 3)), ints(0, 5, 4).int(), 1)
case("embedding", known(real(5, 3)), tensor(2))
case("embedding", known(real(5, 3).bfloat16()), ints(0, 5, 2, 0), -1, False, False)
case("index_select", real(4, 3), 0, tensor([3, 0, 0]))
case("index_select", real(4, 3), -1, tensor([2, 1]).int())
case("index_select", real(4, 3), 1, tensor(2))
case("index_select", real(4, 3), 0, tensor([], dtype=torch.int64))
case("index_select", real(), 0, tensor([0]))
for _dim in (0, 1, -1):
    case("gather", real(3, 4), _dim, ints(0, 3, 2, 3))
    case("gather", ints(0, 9, 3, 4), _dim, ints(0, 3, 3, 4))
case("gather", real(2, 3, 4), 1, ints(0, 3, 2, 5, 4))
case("gather", real(2, 3, 4), -1, ints(0, 4, 1, 3, 2))
case("gather", real(3), 0, ints(0, 3, 5))
case("gather", real(), 0, tensor(0))
case("gather", real(3, 4), 0, ints(0, 3, 0, 4))
case("take_along_dim", real(3, 4), ints(0, 4, 3, 2), 1)
case("take_along_dim", real(3, 4), ints(0, 3, 1, 4), -2)
case("take_along_dim", known(real(1, 4)), ints(0, 4, 3, 2), 1)
case("take_along_dim", real(3, 4), ints(0, 12, 5))
for _x, _indices in (
    (real(4, 3), (ints(0, 4, 5),)),
    (real(4, 3), (ints(-4, 4, 2, 2),)),
    (real(4, 3), (None, ints(-3, 3, 2))),
    (real(4, 3), (ints(0, 4, 2, 1), ints(-3, 3, 3))),
    (real(4, 3, 5), (ints(0, 4, 2), None, ints(0, 5, 2))),
    (real(4, 3, 5), (None, ints(0, 3, 2), ints(0, 5, 2))),
    (real(4, 3, 5), (None, ints(0, 3, 2, 2))),
    (real(4, 3, 5, 2), (None, ints(0, 3, 2), None, ints(0, 2, 3, 1))),
    (real(4, 3, 5, 2), (None, ints(0, 3, 2, 1), ints(0, 5, 4), None)),
    (ints(0, 9, 4, 3), (tensor(2), ints(0, 3, 2))),
    (real(4, 3), (ints(0, 4, 0),)),
    (real(4, 3), (ints(0, 4, 2).int(), ints(0, 3, 2))),
):
    case("index.Tensor _unsafe_index.Tensor", _x, _indices)
case("index.Tensor", real(4, 3), (tensor([True, False, True, True]),))
case("index.Tensor", real(2, 3), (tensor([[True, False, True], [False, True, True]]),))
case("index.Tensor", real(2, 3), (None, tensor([True, False, True])))
case("index.Tensor", real(2, 3, 2), (tensor([[True, False, True], [False, True, True]]), ints(0, 2, 4)))
_PUT = "index_put _unsafe_index_put"
for _accumulate in (False, True):
    case(_PUT, real(4, 3), (tensor([2, -4]),), real(2, 3), _accumulate)
    case(_PUT, real(4, 3), (tensor([2, 0]),), real(), _accumulate)
    case(_PUT, real(4, 3), (tensor([2, 0]),), real(3), _accumulate)
    case(_PUT, real(4, 3), (None, tensor([2, 0])), real(4, 2), _accumulate)
    case(_PUT, real(4, 3), (None, tensor([2, 0])), real(4, 1), _accumulate)
    case(_PUT, real(4, 3), (tensor([2, 0]), tensor([1, -1])), real(2), _accumulate)
    case(_PUT, real(4, 3, 5), (None, tensor([2, 0])), real(2, 5), _accumulate)
    case(_PUT, real(4, 3, 5), (None, tensor([2, 0]), tensor([1, 3])), real(4, 2), _accumulate)
    case(_PUT, real(4, 3, 5), (None, tensor([[2], [0]]), tensor([1, 3, 4])), real(3), _accumulate)
    case(_PUT, real(4, 3, 5), (tensor([2, 0]), None, tensor([1, 3])), real(2, 3), _accumulate)
    case(_PUT, real(4, 3, 5), (tensor([2, 0]), None, tensor([1, 3])), real(3), _accumulate)
    case(_PUT, ints(0, 9, 4, 3), (tensor([2, 0]),), ints(0, 9, 2, 3), _accumulate)
case(_PUT, real(4), (tensor([1, 1, 2]),), real(3), True)
for _accumulate in (False, True):
    case("index_put", real(4, 3), (tensor([True, False, True, False]),), tensor(7.0), _accumulate)
    case("index_put", real(4, 3), (tensor([True, False, True, False]),), real(2, 3), _accumulate)
    case("index_put", real(2, 3), (tensor([[True, False, True], [False, True, True]]),), real(4), _accumulate)
    case("index_put", real(2, 3), (None, tensor([True, False, True])), real(2, 2), _accumulate)
case("masked_select", real(2, 3), tensor([[True, False, True], [False, True, True]]))
case("masked_select", real(2, 3), tensor([True, False, True]))
case("masked_select", real(3), tensor([[True, False, True], [False, True, True]]))
case("nonzero", tensor([[1, 0, 2], [0, 3, 0]]))
case("nonzero", bools(2, 3, 2))
case("nonzero", tensor([0.0, 1.5, -2.0]))
for _dim in (0, 1, -1):
    case("scatter.src", real(3, 4), _dim, tensor([[0, 1, 2], [2, 0, 1]]), real(2, 3))
    case("scatter.value", real(3, 4), _dim, tensor([[0, 1, 2], [2, 0, 1]]), 1.5)
    case("scatter_add", real(3, 4), _dim, ints(0, 3, 2, 3), real(3, 4))
    for _reduce in ("sum", "prod", "mean", "amax", "amin"):
        for _self in (True, False):
            case("scatter_reduce.two", real(3, 4), _dim, ints(0, 3, 2, 3), real(2, 4), _reduce, include_self=_self)
    case("scatter.reduce", real(3, 4), _dim, ints(0, 3, 2, 3), real(2, 4), reduce="add")
    case("scatter.reduce", real(3, 4), _dim, ints(0, 3, 2, 3), real(2, 4), reduce="multiply")
case("scatter.src", real(2, 3, 4), 1, tensor([[[2, 1, 0, 2]], [[0, 0, 1, 1]]]), real(2, 1, 4))
case("scatter.value", ints(0, 9, 3, 4), 1, tensor([[0], [3], [2]]), 7)
case("scatter.value", torch.zeros(3, 4, dtype=torch.bool), 1, tensor([[0], [3], [2]]), True)
case("scatter.value", real(), 0, tensor(0), 2.0)
case("scatter_add", real(), 0, tensor(0), real())
case("scatter_add", ints(0, 9, 5), 0, ints(0, 5, 7), ints(0, 9, 7))
for _reduce in ("sum", "prod", "amax", "amin"):
    case("scatter_reduce.two", ints(-9, 9, 5), 0, ints(0, 5, 7), ints(-9, 9, 7), _reduce, include_self=False)
    case("scatter_reduce.two", bools(5), 0, ints(0, 5, 7), bools(7), _reduce, include_self=False)
for _dim in (0, 1, -2):
    case("index_add", real(4, 4), _dim, tensor([2, 0, 2]), real(3, 4) if _dim != 1 else real(4, 3))
    case("index_add", real(4, 4), _dim, tensor([2, 0]), real(2, 4) if _dim != 1 else real(4, 2), alpha=2)
    case("index_copy", real(4, 4), _dim, tensor([2, 0]), real(2, 4) if _dim != 1 else real(4, 2))
case("masked_scatter", real(2, 3), bools(2, 3), real(6))
case("masked_scatter", real(2, 3), tensor([True, False, True]), real(2, 2))
case("masked_scatter", real(2, 3, 2), bools(2, 3, 1), real(3, 4))
case("masked_scatter", ints(0, 5, 2, 3), bools(2, 3), ints(0, 5, 9))
case("slice_scatter", real(4, 3), real(2, 3), 0, 1, 3)
case("slice_scatter", real(4, 3), real(4, 2), -1, -2, _END)
case("slice_scatter", real(6, 3), real(2, 3), 0, 1, _END, 3)
case("slice_scatter", real(4, 3), real(4, 3))
case("slice_scatter", real(4, 3), real(2, 3), 0, size(1), size(3))
case("slice_scatter", real(4, 3), real(4, 1), 1, 1, 2)
for _index in (0, 2, -1):
    case("select_scatter", real(4, 3), real(3), 0, _index)
    case("select_scatter", real(4, 3), real(4), -1, _index)
case("select_scatter", real(4, 3), real(4), 1, size(2))
for _dim in (0, 1, -1):
    for _descending in (False, True):
        case("sort argsort", apart(3, 4), _dim, _descending)
        case("sort.stable argsort.stable", ints(0, 3, 3, 5), stable=True, dim=_dim, descending=_descending)
for _descending in (False, True):
    case("sort.stable argsort.stable", tensor([1.0, _NAN, -_INF, 0.5]), stable=True, descending=_descending)
    case("sort.stable argsort.stable", tensor([True, False, True, False]), stable=True, descending=_descending)
    case("sort argsort", apart(2, 5).half(), -1, _descending)
    case("sort argsort", apart(2, 5).bfloat16(), -1, _descending)
case("sort argsort", apart(3, 4))
case("sort argsort", real())
case("sort argsort", real(0, 3))
for _dim in (0, 1, -1):
    for _largest in (True, False):
        case("topk", apart(3, 4), 2, _dim, _largest)
        case("topk", torch.randperm(12, generator=_RANDOM).reshape(3, 4), 2, _dim, _largest, True)
case("topk", apart(3, 4), 4)
case("topk", apart(3, 4), size(2))
case("topk", real(), 1)
case("topk", tensor([1.0, _NAN, 3.0, 2.0]), 2)
case("topk", apart(3, 4).half(), 2)
case("topk", apart(3, 4).bfloat16(), 2)
for _dim in (0, -1):
    case("kthvalue", apart(3, 4), 2, _dim)
    case("kthvalue", apart(3, 4), 3, _dim, True)
for _name in ("median", "nanmedian"):
    case(_name, apart(3, 4))
    case(_name, apart(5))
    case(_name, ints(0, 9, 7))
    case(_name, real())
    case(_name, tensor([1.0, _NAN, 3.0, 2.0]))
    case(f"{_name}.dim", tensor([[1.0, _NAN, 3.0, 2.0], [4.0, 3.0, 1.0, _INF]]), 1)
    case(f"{_name}.dim", tensor([[_NAN, 1.0], [2.0, 0.5]]), 0, True)
    for _dim in (0, -1):
        case(f"{_name}.dim", apart(3, 4), _dim)
        case(f"{_name}.dim", torch.randperm(15, generator=_RANDOM).reshape(3, 5), _dim, True)
    case(f"{_name}.dim", apart(3, 4).bfloat16(), 1)
case("bincount", ints(0, 6, 20))
case("bincount", ints(0, 6, 20), None, 9)
case("bincount", ints(0, 6, 20).int(), real(20), 3)
case("bincount", ints(0, 6, 20), real(20).double())
case("bincount", tensor([], torch.int64))
case("bincount", tensor([], torch.int64), None, 3)
case("repeat_interleave.Tensor", tensor([2, 0, 3, 1]))
case("repeat_interleave.Tensor", tensor([2, 0, 3, 1]).int(), output_size=6)
case("repeat_interleave.Tensor", tensor([2, 0, 3, 1]), output_size=size(6))
case("repeat_interleave.Tensor", tensor([], torch.int64))
case("repeat_interleave.self_Tensor", real(4, 3), tensor([2, 0, 3, 1]), 0, output_size=6)
case("repeat_interleave.self_Tensor", real(2, 3), tensor([2, 0, 3]), -1, output_size=size(5))
case("repeat_interleave.self_Tensor", real(2, 3), tensor([2]), 1, output_size=6)
case("repeat_interleave.self_Tensor", real(2, 3), tensor(2), output_size=12)
for _n in (0, 1, 2):
    case("diff", real(3, 5), _n)
    case("diff", ints(0, 9, 5, 3), _n, 0, ints(0, 9, 1, 3), ints(0, 9, 2, 3))
case("diff", bools(3, 5), 1, 0)
case("diff", bools(3, 5), 1, 1, bools(3, 1))
case("_weight_norm", real(3, 4, 2), real(3, 1, 1))
case("_weight_norm", real(3, 4, 2), real(1, 1, 2), 2)
case("_weight_norm", real(3, 4), real(), -1)
for _reduce in ("prod", "mean", "amax", "amin"):
    for _self in (True, False):
        case("index_reduce", real(4, 3), 0, tensor([2, 0, 2]), real(3, 3), _reduce, include_self=_self)
        case("index_reduce", real(3, 4), -1, tensor([2, 0, 2]), real(3, 3), _reduce, include_self=_self)
case("put", real(3, 4), tensor([2, 0, -1]), real(3))
case("put", real(3, 4), tensor([[2, 0], [2, 2]]), real(2, 2), True)
for _offset in (0, 1, -1):
    case("diagonal_scatter", real(4, 4), real(4 - abs(_offset)), _offset)
    case("diagonal_scatter", real(2, 4, 4), real(2, 4 - abs(_offset)), _offset, -1, 1)
_BAGS = "_embedding_bag _embedding_bag_forward_only"
for _mode in (0, 1, 2):
    _table, _offsets = known(real(9, 4)), tensor([0, 3, 3, 6])
    case(_BAGS, _table, ints(0, 9, 8), _offsets, False, _mode)
    case(_BAGS, _table, ints(0, 9, 8), tensor([0, 3, 8]), False, _mode, False, None, True)
    case(_BAGS, _table, tensor([1, 2, 1, 3, 1]), tensor([0, 2, 4]), False, _mode, False, None, False, 1)
case(_BAGS, _table, ints(0, 9, 8), _offsets, False, 0, False, real(8))
case("one_hot", ints(0, 5, 2, 3), 5)
case("one_hot", tensor(2), 4)
for _x in (near(-1, 5, 2, 3), tensor([0.0, 1.0, 4.0, _NAN, _INF]), ints(-1, 6, 2, 3), real()):
    for _right in (False, True):
        case("bucketize.Tensor", _x, tensor([0.0, 1.0, 2.5, 4.0]), right=_right)
        case("searchsorted.Tensor", tensor([0.0, 1.0, 2.5, 4.0]), _x.float(), right=_right)
case("bucketize.Tensor", ints(-1, 6, 2, 3), tensor([0, 1, 3]), out_int32=True)
case("bucketize.Scalar", 2, tensor([0, 1, 3]))
case("bucketize.Scalar", 1.0, tensor([0.0, 1.0, 3.0]), right=True)
case("searchsorted.Tensor", tensor([[0.0, 1.0, 2.0], [5.0, 6.0, 7.0]]), tensor([[0.5, 2.0], [6.0, 9.0]]))
case("searchsorted.Tensor", tensor([0.0, 1.0, 2.0]), tensor([1.0, 2.0]), side="right", out_int32=True)
case("searchsorted.Tensor", tensor([2.0, 0.0, 1.0]), tensor([1.0, 2.5]), sorter=tensor([1, 2, 0]))
case("searchsorted.Scalar", tensor([0.0, 1.0, 2.5, 4.0]), 1.0)
case("searchsorted.Scalar", tensor([0, 1, 3]), 1, right=True, out_int32=True)
case("histc", near(-1, 5, 20), 5, 0, 4)
case("histc", ints(0, 6, 20).float(), 6, 0, 5)
case("histc", near(-1, 5, 20), 4)
case("histc", torch.full((3,), 2.0), 4)

# Nothing is drawn when a model is evaluated

case("dropout alpha_dropout feature_dropout", real(2, 3), 0.5, False)
case("dropout", real(2, 3), 0.0, True)
