"""Every operation of the table on every namespace, against torch's own."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import math
import operator
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch  # before tensorflow: see DESIGN.md's traps
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import CASES, Case, Known, Size
from tolerances import TOLERANCES

from zoo.arrays import numpy_dtype
from zoo.backends import jax as jax_backend
from zoo.backends import native as native_backend
from zoo.backends import numpy as numpy_backend
from zoo.backends import tensorflow as tensorflow_backend
from zoo.backends.execute import resolve_over
from zoo.backends.namespace import BINARY, UNARY, Namespace
from zoo.backends.numpy_namespace import widest
from zoo.backends.torch import _resolve as torch_operation
from zoo.graph.ir import DType
from zoo.ops import OPS
from zoo.ops.dtypes import result_type

import jax  # isort: skip
import jax.numpy as jnp  # isort: skip
import tensorflow as tf  # isort: skip

NARROW = numpy_backend.NumpyNamespace(widen=False)
WIDE = numpy_backend.namespace()
JAX = jax_backend.namespace()
TENSORFLOW = tensorflow_backend.namespace()
RESOLVE = {
    "numpy": resolve_over(NARROW, {}),
    "wide": resolve_over(WIDE, {}),
    "native": lambda name: native_operation(name),
    "jax": resolve_over(JAX, jax_backend._OVERRIDES),
    "tensorflow": resolve_over(TENSORFLOW, tensorflow_backend._OVERRIDES),
}


def native_operation(name: str) -> Callable[..., Any]:
    """An operation as graphs run it there: a kernel as a whole where that takes the arguments, else the table's."""
    direct, table = native_backend.DIRECT.get(name), resolve_over(native_backend.namespace(), {})(name)

    def function(*args: Any, **kwargs: Any) -> Any:
        result = NotImplemented if direct is None else direct(*args, **kwargs)
        return table(*args, **kwargs) if result is NotImplemented else result

    return function


IN_32_BITS = {"int64": "int32", "float64": "float32", "complex128": "complex64"}
"""What JAX makes of the wide dtypes unless it is told otherwise."""

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""How JAX compiles what runs once."""

SIGNS = ("linalg_eigh", "linalg_svd", "linalg_qr")
"""Operations with results whose signs are anyone's; `test_factors_are_factors` has the rest."""

FIRST_ONLY = ("_embedding_bag", "_embedding_bag_forward_only")
"""Operations of whose results only the first is defined here: the others are for the gradient."""

XFAIL: dict[tuple[str, str], str] = {
    ("wide", "view.dtype"): "the bits of a float64 are not those of a float32",
    ("wide", "_grouped_mm"): "torch's own takes no float64",
}
"""(backend, operation) that cannot agree with torch, and why."""

SIZES: dict[str, tuple[Callable[..., Any], list[tuple[Any, ...]]]] = {
    "sym.add": (operator.add, [(3, 4), (3, 2.5), (2.5, 3)]),
    "sym.sub": (operator.sub, [(3, 4), (3, 2.5), (2.5, 3)]),
    "sym.mul": (operator.mul, [(3, 4), (3, 0.5), (0.5, 3), (3, 2)]),
    "sym.floordiv": (operator.floordiv, [(7, 2), (-7, 2), (7, 2.5)]),
    "sym.truediv": (operator.truediv, [(7, 2), (6, 3), (7, 0.5)]),
    "sym.mod": (operator.mod, [(7, 4), (-7, 4), (8, 4)]),
    "sym.pow": (operator.pow, [(3, 2), (2, 0.5)]),
    "sym.neg": (operator.neg, [(3,), (-2.5,)]),
    "sym.eq": (operator.eq, [(3, 3), (3, 4), (3, 3.0)]),
    "sym.ne": (operator.ne, [(3, 3), (3, 4), (3, 2.5)]),
    "sym.lt": (operator.lt, [(3, 4), (4, 3), (3, 3.5)]),
    "sym.le": (operator.le, [(3, 3), (4, 3), (3, 2.5)]),
    "sym.gt": (operator.gt, [(3, 4), (4, 3), (3, 2.5)]),
    "sym.ge": (operator.ge, [(3, 3), (3, 4), (3, 3.5)]),
    "sym.and": (operator.and_, [(True, False), (True, True)]),
    "sym.or": (operator.or_, [(True, False), (False, False)]),
    "sym.not": (operator.not_, [(True,), (False,)]),
    "sym.ite": (lambda condition, a, b: a if condition else b, [(True, 3, 4), (False, 3, 4), (False, 3, 2.5)]),
    "sym.max": (max, [(3, 4), (4, 3), (3, 5, 4)]),
    "sym.min": (min, [(3, 4), (4, 3), (3, 5, 2)]),
    "sym.sum": (sum, [((3, 4, 5),), ((3,),)]),
    "sym.int": (int, [(3,), (3.7,), (-3.7,)]),
    "sym.float": (float, [(3,), (2.5,)]),
    "sym.floor": (math.floor, [(3,), (3.7,), (-3.2,)]),
    "sym.ceil": (math.ceil, [(3,), (3.2,), (-3.7,)]),
    "sym.round": (round, [(3,), (2.5,), (3.5,), (-1.2,)]),
    "sym.sqrt": (math.sqrt, [(9,), (2,)]),
    "sym_size.int": (lambda x, dim: x.shape[dim], [(np.zeros((2, 3)), 0), (np.zeros((2, 3)), -1)]),
    "sym_numel": (lambda x: x.size, [(np.zeros((2, 3)),), (np.zeros(()),)]),
}
"""Operations on sizes: what Python says they are, and arguments."""

SIZE_OPS = sorted(name for name in OPS if name.startswith("sym"))
TENSOR_OPS = [name for name in OPS if name not in SIZE_OPS]


@pytest.fixture(autouse=True)
def _torch_warns_of_its_own_deprecations() -> Any:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.filterwarnings("ignore", category=UserWarning, module="torch")
        yield


def test_every_operation_is_tried() -> None:
    assert sorted(CASES) == sorted(TENSOR_OPS)
    assert sorted(SIZES) == SIZE_OPS


@pytest.mark.parametrize("name", TENSOR_OPS)
@pytest.mark.parametrize("backend", ["numpy", "wide", "native", "jax", "tensorflow"])
def test_operation_is_torchs(backend: str, name: str, request: pytest.FixtureRequest) -> None:
    expect_failure(request, XFAIL.get((backend, name)))
    check(backend, RESOLVE[backend](name), name)


def half(case: Case) -> bool:
    """Whether the first argument is of half precision: that has nothing to do with dims."""
    first = case.args[0] if case.args else None
    return isinstance(first, (torch.Tensor, Known)) and tensor_of(first).dtype in (torch.float16, torch.bfloat16)


# The same calls in other forms


FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "float16": lambda x: x.to(torch.float16) if x.dtype == torch.float32 else x,
    "bfloat16": lambda x: x.to(torch.bfloat16) if x.dtype == torch.float32 else x,
    "int64": lambda x: x.nan_to_num(1, 3, -3).round().to(torch.int64) if x.dtype == torch.float32 else x,
    "bool": lambda x: x > 0 if x.dtype == torch.float32 else x,
    "strided": lambda x: torch.stack([x, x], -1)[..., 1],
    "turned": lambda x: x.permute(tuple(range(x.ndim))[::-1]).contiguous().permute(tuple(range(x.ndim))[::-1]),
    "special": lambda x: planted(x) if x.is_floating_point() else x,
}
"""Name of a form -> what becomes of each tensor of a call."""

_CONVOLUTIONS = tuple(name for name in OPS if name.startswith("conv") and name[4:5] in "123_o")
_COMPLEX = ("complex", "view_as_complex", "view_as_complex_copy", "polar")
_TRANSFORMS = ("_fft_c2c", "_fft_r2c", "_fft_c2r")
_IN_MEMORY = dict.fromkeys(("as_strided", "as_strided_copy", "_reshape_alias"), "the order in memory is part of it")
_BOUNDED = ("bucketize.Tensor", "bucketize.Scalar", "searchsorted.Tensor", "searchsorted.Scalar")
_STATISTICS = (
    "var.correction var.dim std.correction std.dim var_mean.correction layer_norm native_layer_norm group_norm "
    "native_group_norm instance_norm batch_norm _cdist_forward _pdist_forward scaled_dot_product_attention"
).split()
_UNCHECKED = (
    "scatter_add index_add index_copy index_put _unsafe_index_put index_reduce put take_along_dim diagonal_scatter "
    "_embedding_bag _embedding_bag_forward_only transformers::grouped_mm_fallback _grouped_mm "
    "repeat_interleave.self_Tensor _weight_norm"
).split()
UNDEFINED: dict[str, dict[str, str]] = {
    "float16": {
        **dict.fromkeys(_COMPLEX, "no backend has complex numbers of half precision"),
        **dict.fromkeys(("mul.Tensor",), "no backend has complex numbers of half precision"),
        "view.dtype": "another width",
        "layer_norm": "one element less its own mean, of which torch leaves a rounding",
    },
    "special": {
        **dict.fromkeys(
            _CONVOLUTIONS, "an infinite weight times the zeros around an image, which kernels may leave out"
        ),
        **dict.fromkeys(_TRANSFORMS, "infinities cancel in an order of the transform's own"),
        **dict.fromkeys(("gelu", "silu", "mish", "glu"), "products of an infinity and 0"),
        **dict.fromkeys(("histc", "bincount"), "no bin holds NaN"),
        **dict.fromkeys(("div.Tensor", "einsum", "bilinear"), "infinities cancel in an order of the kernel's own"),
        **dict.fromkeys(("_to_copy", "copy"), "no whole number is NaN"),
        **dict.fromkeys(("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"), "a position that is no number"),
        **dict.fromkeys(
            (n for n in OPS if n.startswith("upsample_trilinear")), "an axis of the same size, times 1 and 0"
        ),
        **dict.fromkeys((n for n in OPS if "_aa" in n), "weights of 0 beyond the reach of the kernel"),
        **dict.fromkeys(_BOUNDED, "boundaries must be sorted"),
        **dict.fromkeys(_STATISTICS, "infinities cancel in an order of the kernel's own"),
        **dict.fromkeys((n for n in OPS if n.startswith(("linalg_", "cholesky"))), "no matrix holds NaN"),
    },
    "to 0": {
        **_IN_MEMORY,
        **dict.fromkeys(_CONVOLUTIONS, "no channels, or a kernel of nothing"),
        **dict.fromkeys(_UNCHECKED, "torch does not check indices into nothing"),
        **dict.fromkeys(("pixel_unshuffle", "pixel_shuffle"), "torch leaves the shape of nothing as it was"),
        **dict.fromkeys(("unflatten.int", "repeat_interleave.Tensor"), "any size fits nothing"),
        **dict.fromkeys(
            ("median", "nanmedian", "bincount", "_pdist_forward", "_cdist_forward"),
            "of nothing torch has what it likes",
        ),
        "scaled_dot_product_attention": "no heads",
        "linear": "no elements to multiply",
    },
    "to 1": {
        **_IN_MEMORY,
        **dict.fromkeys(_CONVOLUTIONS, "a kernel beyond its image"),
        **dict.fromkeys(_UNCHECKED, "torch does not check all indices"),
        **dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices"), "a window of nothing but padding"),
        **dict.fromkeys(("silu", "mish"), "less than the smallest normal number"),
    },
    "strided": {
        **_IN_MEMORY,
        **dict.fromkeys(("_embedding_bag", "_embedding_bag_forward_only"), "torch takes indices to lie side by side"),
    },
    "turned": _IN_MEMORY,
    "bool": {
        "view.dtype": "another width",
        "lgamma": "the logarithm of 1, all that is left",
        "div.Tensor": "a complex number over 0",
        "pow.Tensor_Tensor": "whole numbers have no negative powers",
    },
    "int64": {
        **dict.fromkeys(_CONVOLUTIONS, "no network has them"),
        "lgamma": "the logarithm of 1, all that is left",
        "view.dtype": "another width",
        "div.Tensor": "a complex number over 0",
        **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), "torch averages whole numbers in whole numbers"),
        **dict.fromkeys(("kthvalue", "median.dim", "nanmedian.dim", "topk", "sort", "argsort"), "which of equal ones"),
        "addcmul": "a factor that is no whole number",
        **dict.fromkeys(("pow.Scalar", "pow.Tensor_Tensor"), "whole numbers have no negative powers"),
    },
}
"""Form -> operation -> why torch's result in that form is no rule."""


_SUMS_OF_BOOLS = "index_put _unsafe_index_put index_add put bmm outer".split()
LACKS: dict[str, dict[str, dict[str, str]]] = {
    "jax": {
        "special": dict.fromkeys(
            ("transformers::grouped_mm_fallback", "_grouped_mm"), "it takes every row times every matrix, 0 for others'"
        ),
    },
    "tensorflow": {
        "bool": dict.fromkeys(_SUMS_OF_BOOLS, "no arithmetic of bools"),
        "special": {
            **dict.fromkeys((n for n in OPS if "softmax" in n), "its softmax keeps NaN to itself"),
            **dict.fromkeys((n for n in OPS if "max_pool" in n), "its pooling passes over NaN"),
            **dict.fromkeys(("scatter_reduce.two", "index_reduce"), "its scatter passes over NaN"),
        },
        "to 0": {"slice_scatter": "writing nothing into nothing is an error there"},
    },
}
"""Backend -> form -> operation -> why it has no such calls, or has them otherwise."""


def planted(x: torch.Tensor) -> torch.Tensor:
    """`x` with NaN and both infinities among its elements."""
    flat = x.flatten().clone()
    for place, value in zip((0, flat.numel() // 2, flat.numel() - 1), (math.nan, math.inf, -math.inf), strict=True):
        if flat.numel() > 2:
            flat[place] = value
    return flat.reshape(x.shape)


@functools.cache
def forms(name: str, few: bool = False) -> list[tuple[str, Case]]:
    """Three of the operation's calls (one if `few`) on other dtypes, layouts, values, sizes: what torch computes."""
    cases, found = CASES[name], []
    for case in {id(case): case for case in (cases[0], *(() if few else (cases[len(cases) // 2], cases[-1])))}.values():
        sizes: set[int] = set()
        map_tree(
            lambda v, s=sizes: s.update(tensor_of(v).shape) if isinstance(v, (torch.Tensor, Known)) else None, case.args
        )
        shorter = {
            f"{size} to {less}": functools.partial(cut, size=size, less=less)
            for size, less in itertools.product(sorted(sizes)[:3], (0, 1))
            if size > less
        }
        for form, function in {**FORMS, **shorter}.items():
            if excepted(UNDEFINED, form, name):
                continue
            changed = Case(map_tree(applied(function), case.args), map_tree(applied(function), case.kwargs))
            with contextlib.suppress(RuntimeError, IndexError, ValueError, TypeError):  # torch has no such call
                run_torch(name, changed)
                found.append((form, changed))
    return found


def excepted(table: dict[str, dict[str, str]], form: str, name: str) -> bool:
    return any(form.endswith(kind) and name in names for kind, names in table.items())


def cut(x: torch.Tensor, size: int, less: int) -> torch.Tensor:
    """`x` with every dim of `size` cut to its first `less`."""
    return x[tuple(slice(less if n == size else None) for n in x.shape)]


def applied(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
    def change(value: Any) -> Any:
        if isinstance(value, Known):
            return Known(function(value.tensor), value.dims)
        return function(value) if isinstance(value, torch.Tensor) else value

    return change


@pytest.mark.parametrize("name", TENSOR_OPS)
@pytest.mark.parametrize("backend", ["numpy", "native", "jax", "tensorflow"])
def test_operation_in_other_forms(backend: str, name: str) -> None:
    lacking, quick = LACKS.get(backend, {}), backend == "jax"  # it compiles each call
    check(
        backend,
        RESOLVE[backend](name),
        name,
        [c for form, c in forms(name, quick) if not excepted(lacking, form, name)],
    )


WITHOUT_DERIVATIVE = (
    "floor_divide",
    "floor_divide.Scalar",
    "remainder.Scalar_Tensor",
    "scatter.reduce",
    "bincount",
    "linalg_qr",
)
"""What torch itself does not differentiate, or not in every mode."""


@pytest.mark.parametrize("name", [name for name in TENSOR_OPS if name not in WITHOUT_DERIVATIVE])
def test_operation_has_a_derivative_on_torch(name: str) -> None:
    """What torch's export makes of an operation may have none where the operation has."""

    def leaf(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach().clone()
        return tensor.requires_grad_() if tensor.dtype == torch.float32 else tensor

    convert = in_torch(leaf)
    for case in CASES[name]:
        try:
            results = torch_operation(name)(*map_tree(convert, case.args), **map_tree(convert, case.kwargs))
            sums = [x.sum() for x in flat(results) if x.requires_grad]
            if sums:
                torch.autograd.backward(sums, [torch.ones_like(x) for x in sums])
        except RuntimeError as error:  # other refusals are of the case: an index too small, a mean that trains
            assert "not implemented" not in str(error) and "automatic differentiation" not in str(error)


OVERRIDES = {"jax": (JAX, jax_backend._OVERRIDES), "tensorflow": (TENSORFLOW, tensorflow_backend._OVERRIDES)}


@pytest.mark.parametrize(("backend", "name"), [(b, name) for b, (_, names) in OVERRIDES.items() for name in names])
def test_definition_behind_an_override(backend: str, name: str) -> None:
    check(backend, resolve_over(OVERRIDES[backend][0], {})(name), name)


def check(backend: str, function: Callable[..., Any], name: str, cases: list[Case] | None = None) -> None:
    """Compare cases of an operation, or all that it has; JAX compiles them as one program: far quicker."""
    cases = CASES[name] if cases is None else cases
    values: list[Any] = []

    def leaf(value: Any) -> Any:
        if isinstance(value, (torch.Tensor, Known)):
            values.append(ARRAY_OF[backend](tensor_of(value)))
            return Leaf(len(values) - 1)
        return int(value) if isinstance(value, Size) else value

    calls = [(map_tree(leaf, case.args), map_tree(leaf, case.kwargs)) for case in cases]

    def every_case(values: list[Any], calls: list[Any]) -> list[list[Any]]:
        return call_all(function, calls, values)

    results: dict[int, list[Any]] = {}
    if backend == "jax":
        compiled = [number for number, case in enumerate(cases) if not by_value(name, case)]
        program = jax.jit(lambda values: every_case(values, [calls[n] for n in compiled]), compiler_options=QUICK)
        results = dict(zip(compiled, program(values), strict=True))
    for number, case in enumerate(cases):
        actual = results[number] if number in results else every_case(values, [calls[number]])[0]
        where, expected = f"case {number}: {case}", run_torch(name, case, wide=backend == "wide")
        try:
            compare(backend, name, where, actual, expected)
        except AssertionError:  # torch may be the one that is off: by how much depends on its machine's instructions
            if backend == "wide" or ("wide", name) in XFAIL:
                raise
            exact = zip(run_torch(name, case, wide=True), expected, strict=True)
            compare(backend, name, where, actual, [wide.to(like.dtype) for wide, like in exact])


def by_value(name: str, case: Case) -> bool:
    """Whether a result's size depends on values, so that JAX cannot compile the call."""
    if name in ("nonzero", "masked_select", "bincount"):
        return True
    if name == "repeat_interleave.Tensor":
        return "output_size" not in case.kwargs
    masks = case.args[1] if name in ("index.Tensor", "index_put") else ()
    return any(mask is not None and mask.dtype == torch.bool for mask in masks)


def call_all(function: Callable[..., Any], calls: list[Any], values: Any) -> list[list[Any]]:
    def back(item: Any) -> Any:
        return values[item.index] if isinstance(item, Leaf) else item

    results = []
    for number, (args, kwargs) in enumerate(calls):
        try:
            results.append(flat(function(*map_tree(back, args), **map_tree(back, kwargs))))
        except Exception as error:
            error.add_note(f"case {number}: {args} {kwargs}")
            raise
    return results


def expect_failure(request: pytest.FixtureRequest, reason: str | None) -> None:
    if reason is not None:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))


class Leaf:
    """The place of a tensor among a function's arguments."""

    def __init__(self, index: int) -> None:
        self.index = index


def map_tree(function: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, (tuple, list)):
        return tuple(map_tree(function, item) for item in tree)
    if isinstance(tree, dict):
        return {key: map_tree(function, item) for key, item in tree.items()}
    return function(tree)


def flat(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


def tensor_of(value: Any) -> torch.Tensor:
    return value.tensor if isinstance(value, Known) else value


WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}


def in_torch(of_tensor: Callable[[torch.Tensor], Any], of_dtype: Callable[[torch.dtype], Any] = lambda x: x) -> Any:
    """What makes torch's own argument of a case's."""

    def convert(value: Any) -> Any:
        if isinstance(value, (torch.Tensor, Known)):
            return of_tensor(tensor_of(value))
        if isinstance(value, DType):
            return of_dtype(getattr(torch, value.name))
        return int(value) if isinstance(value, Size) else value

    return convert


def run_torch(name: str, case: Case, wide: bool = False) -> list[torch.Tensor]:
    """torch's own results; with `wide`, computed in float64 throughout."""

    def widened(dtype: torch.dtype) -> torch.dtype:
        return WIDER.get(dtype, dtype) if wide else dtype

    convert = in_torch(lambda tensor: tensor.to(widened(tensor.dtype)), widened)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if wide else default)
    try:
        return flat(torch_operation(name)(*map_tree(convert, case.args), **map_tree(convert, case.kwargs)))
    finally:
        torch.set_default_dtype(default)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's memory with its strides, bfloat16 included."""
    tensor = tensor.detach().resolve_conj()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(numpy_dtype("bfloat16"))
    return tensor.numpy()


def to_wide(tensor: torch.Tensor) -> np.ndarray:
    return widest(to_numpy(tensor))


def to_jax(tensor: torch.Tensor) -> jax.Array:
    return jnp.asarray(to_numpy(tensor))


def to_tensorflow(tensor: torch.Tensor) -> tf.Tensor:
    return tf.constant(to_numpy(tensor))


ARRAY_OF: dict[str, Callable[[torch.Tensor], Any]] = {
    "numpy": to_numpy,
    "wide": to_wide,
    "native": to_numpy,
    "jax": to_jax,
    "tensorflow": to_tensorflow,
    "torch": lambda tensor: tensor,
}


def compare(backend: str, name: str, where: str, actual: list[Any], expected: list[torch.Tensor]) -> None:
    """Same count, shapes and dtypes, and values within the backend's tolerance of the largest expected."""
    where = f"{name}, {where}"
    if name in FIRST_ONLY:
        expected = expected[:1]
    assert len(actual) == len(expected), where
    for got, want in zip(actual, expected, strict=True):
        dtype = str(want.dtype).removeprefix("torch.")
        if backend == "jax":
            dtype = IN_32_BITS.get(dtype, dtype)
        got_dtype = got.dtype.name if hasattr(got.dtype, "name") else str(got.dtype)
        assert tuple(got.shape) == tuple(want.shape), where
        assert got_dtype == dtype, where
        if name.startswith(("empty", "new_empty")):
            continue  # what they hold is not said
        array = np.asarray(got.numpy() if backend == "tensorflow" else got)
        if name in SIGNS:
            array, want = np.abs(array), want.abs()
        close(array, to_numpy(want), tolerance(backend, dtype), where)


def tolerance(backend: str, dtype: str) -> float:
    """Whole numbers are exact; a complex number has the tolerance of its parts."""
    dtype = {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)
    exact = not dtype.startswith(("float", "bfloat"))
    return 0 if exact else TOLERANCES["numpy" if backend == "wide" else backend, dtype]


def close(got: np.ndarray, want: np.ndarray, tolerance: float, where: str) -> None:
    if got.dtype.kind not in "fcV":
        np.testing.assert_array_equal(got, want, where)
        return
    wide = np.complex128 if got.dtype.kind == "c" else np.float64
    got, want = got.astype(wide), want.astype(wide)
    finite = np.abs(want[np.isfinite(want)])
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * finite.max(initial=0), err_msg=where)


@pytest.mark.parametrize("name", SIZES)
def test_size_operation(name: str) -> None:
    function, calls = SIZES[name]
    for args in calls:
        expected = function(*args)
        for backend, resolve in {**RESOLVE, "torch": torch_operation}.items():
            given = [ARRAY_OF[backend](torch.from_numpy(a)) if isinstance(a, np.ndarray) else a for a in args]
            actual = resolve(name)(*given)
            assert actual == expected, (backend, args)
            assert isinstance(actual, int) == isinstance(expected, int), (backend, args)


@pytest.mark.parametrize("name", SIZES)
def test_size_operation_on_unknown_sizes(name: str) -> None:
    """In a tf.function with the first number, or all of them, a scalar tensor."""
    function, calls = SIZES[name]
    for args in calls:
        tensors = args[:1] if isinstance(args[0], np.ndarray) else args
        numbers = [tf.constant(a, SIZE_DTYPES.get(type(a))) for item in tensors for a in flat(item)]
        for count in {1, len(numbers)}:
            specs = [tf.TensorSpec([None] * n.shape.rank, n.dtype) for n in numbers[:count]]
            call = tf.function(with_tensors(name, args), autograph=False, input_signature=specs)
            actual = call(*numbers[:count])
            assert actual.numpy() == function(*args), (args, count)
            assert actual.dtype == SIZE_DTYPES[type(function(*args))], (args, count)


def with_tensors(name: str, args: Any) -> Callable[..., Any]:
    """The operation as a function of the first numbers among `args`, as many as are given."""

    def call(*given: Any) -> Any:
        rest = iter(given)
        return RESOLVE["tensorflow"](name)(*map_tree(lambda a: next(rest, a), args))

    return call


SIZE_DTYPES = {int: tf.int32, float: tf.float64, bool: tf.bool}


# Gradients


def _leaf(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=_RANDOM)


_RANDOM = torch.Generator().manual_seed(1)
_BLIND = torch.tensor([[True, False, True, False], [False] * 4, [True] * 4])
_BLIND_FLOAT = torch.zeros(3, 4).masked_fill(~_BLIND, -math.inf)
_QKV = (_leaf(2, 2, 3, 4), _leaf(2, 2, 4, 4), _leaf(2, 2, 4, 4))
_SDPA = "scaled_dot_product_attention"
GRADIENTS: list[tuple[str, Case]] = [
    (name, Case(args, kwargs))
    for name, args, kwargs in (
        ("linear", (_leaf(2, 3, 4), _leaf(5, 4), _leaf(5)), {}),
        ("matmul", (_leaf(2, 3, 4), _leaf(4, 5)), {}),
        ("layer_norm", (_leaf(2, 3, 4), (4,), _leaf(4), _leaf(4), 1e-5), {}),
        ("rms_norm", (_leaf(2, 3, 4), (4,), _leaf(4), 1e-6), {}),
        ("group_norm", (_leaf(2, 4, 3), 2, _leaf(4), _leaf(4), 1e-5), {}),
        ("batch_norm", (_leaf(2, 4, 3), _leaf(4), _leaf(4), None, None, True, 0.1, 1e-5, True), {}),
        ("softmax.int", (_leaf(2, 3, 4), -1), {}),
        ("log_softmax.int", (_leaf(2, 3, 4), 1), {}),
        ("logsumexp", (_leaf(2, 3, 4), (1, 2)), {}),
        ("gelu", (_leaf(2, 5),), {}),
        ("gelu", (_leaf(2, 5),), {"approximate": "tanh"}),
        ("silu", (_leaf(2, 5),), {}),
        ("mish", (_leaf(2, 5),), {}),
        ("softplus", (_leaf(2, 5) * 30,), {}),
        ("elu", (torch.tensor([-200.0, -1.0, 1.0, 200.0]),), {}),
        ("relu", (torch.tensor([-1.0, 0.0, 1.0]),), {}),
        ("relu6", (torch.tensor([-1.0, 0.0, 1.0, 6.0, 7.0]),), {}),
        ("clamp", (torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0]), 0.0, 1.0), {}),
        ("leaky_relu", (torch.tensor([-1.0, 0.0, 1.0]),), {}),
        ("abs", (torch.tensor([-1.0, 1.0]),), {}),
        ("pow.Tensor_Scalar", (torch.tensor([-1.0, 0.0, 2.0]), 2), {}),
        ("pow.Tensor_Scalar", (_leaf(4).abs(), 1.5), {}),
        ("div.Tensor", (_leaf(2, 3), _leaf(3).abs() + 1), {}),
        ("rsqrt", (_leaf(4).abs() + 0.1,), {}),
        ("std.correction", (torch.stack([torch.ones(4), _leaf(4)]), (1,)), {"correction": 1}),
        ("linalg_vector_norm", (torch.stack([torch.zeros(4), _leaf(4)]), 2, (1,)), {}),
        ("amax", (_leaf(2, 5), (1,)), {}),
        ("prod.dim_int", (_leaf(2, 5), 1), {}),
        ("cumsum", (_leaf(2, 5), 1), {}),
        ("cumprod", (_leaf(2, 5), -1), {}),
        (_SDPA, _QKV, {}),
        (_SDPA, (*_QKV, _BLIND), {}),
        (_SDPA, (*_QKV, _BLIND_FLOAT), {}),
        (_SDPA, (*_QKV, None, 0.0, True), {"scale": 0.3}),
        ("_safe_softmax", (_leaf(3, 4) + _BLIND_FLOAT, -1), {}),
        ("embedding", (_leaf(5, 3), torch.tensor([[0, 3], [3, 1]])), {}),
        ("embedding", (_leaf(5, 3), torch.tensor([[0, 3], [3, 1]]), 3), {}),
        ("where.self", (torch.tensor([True, False]), _leaf(3, 2), _leaf(2)), {}),
        ("masked_fill.Scalar", (_leaf(3, 2), torch.tensor([True, False]), -math.inf), {}),
        ("index.Tensor", (_leaf(4, 3), (torch.tensor([0, -1, 0]), torch.tensor([2, 1, 2]))), {}),
        ("index_put", (_leaf(4, 3), (None, torch.tensor([2, 0])), _leaf(4, 2)), {}),
        ("gather", (_leaf(3, 4), 1, torch.tensor([[0, 0], [3, 1], [2, 2]])), {}),
        ("scatter_add", (_leaf(3, 4), 0, torch.tensor([[0, 0], [2, 0]]), _leaf(2, 2)), {}),
        ("topk", (_leaf(2, 5), 2), {}),
        ("slice_scatter", (_leaf(4, 3), _leaf(2, 3), 0, 1, 3), {}),
        ("roll", (_leaf(4, 3), (1,), (0,)), {}),
        ("pad", (_leaf(2, 3, 5), (2, 1), "reflect"), {}),
        ("conv1d", (_leaf(2, 4, 6), _leaf(4, 2, 3), _leaf(4), (1,), (1,), (1,), 2), {}),
        ("conv2d", (_leaf(2, 3, 6, 5), _leaf(4, 3, 3, 2), _leaf(4), (2, 1), (1, 0)), {}),
        ("conv2d", (_leaf(2, 4, 6, 6), _leaf(4, 1, 3, 3), _leaf(4), (1, 1), (1, 1), (1, 1), 4), {}),
        ("conv_transpose2d.input", (_leaf(2, 3, 3, 3), _leaf(3, 2, 2, 2), _leaf(2), (2, 2)), {}),
        ("max_pool2d", (_leaf(2, 3, 6, 5), (3, 2), (2, 2), (1, 1)), {}),
        ("avg_pool2d", (_leaf(2, 3, 6, 5), (3, 2), (2, 2), (1, 1), True, False), {}),
        ("adaptive_avg_pool2d", (_leaf(2, 3, 7, 5), (3, 2)), {}),
        ("upsample_nearest2d", (_leaf(2, 3, 3, 4), (6, 7)), {}),
        ("upsample_bilinear2d", (_leaf(2, 3, 3, 4), (6, 7), False), {}),
        ("upsample_bicubic2d", (_leaf(2, 3, 3, 4), (6, 7), True), {}),
        ("grid_sampler_2d", (_leaf(2, 3, 4, 5), _leaf(2, 3, 3, 2) * 0.5, 0, 0, False), {}),
    )
]


@pytest.mark.parametrize("backend", ["jax", "tensorflow"])
@pytest.mark.parametrize("number", range(len(GRADIENTS)), ids=lambda number: f"{GRADIENTS[number][0]}-{number}")
def test_gradient_is_torchs(backend: str, number: int) -> None:
    """Of a weighted sum of the first result, for every float array among the arguments."""
    name, case = GRADIENTS[number]
    leaves: list[torch.Tensor] = []

    def leaf(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value is not _BLIND_FLOAT:
            leaves.append(value.clone().requires_grad_())
            return Leaf(len(leaves) - 1)
        return value

    args = map_tree(leaf, case.args)

    def result(function: Callable[..., Any], convert: Callable[[torch.Tensor], Any], values: Any) -> Any:
        def back(item: Any) -> Any:
            if isinstance(item, Leaf):
                return values[item.index]
            return convert(item) if isinstance(item, torch.Tensor) else item

        return flat(function(*map_tree(back, args), **case.kwargs))[0]

    forward = result(torch_operation(name), lambda x: x, leaves)
    factors = torch.linspace(-1, 2, forward.numel()).reshape(forward.shape)
    # what is masked with -inf has no part in the sum
    expected = torch.autograd.grad((torch.where(forward.isfinite(), forward, 0) * factors).sum(), leaves)
    values = [ARRAY_OF[backend](x) for x in leaves]
    function, weights = RESOLVE[backend](name), ARRAY_OF[backend](factors)
    if backend == "jax":

        def loss(values: Any) -> Any:
            out = result(function, to_jax, values)
            return (jnp.where(jnp.isfinite(out), out, 0) * weights).sum()

        actual = jax.jit(jax.grad(loss), compiler_options=QUICK)(values)
    else:
        with tf.GradientTape() as tape:
            tape.watch(values)
            out = result(function, to_tensorflow, values)
            total = tf.reduce_sum(tf.where(tf.math.is_finite(out), out, 0.0) * weights)
        actual = [tf.convert_to_tensor(g) for g in tape.gradient(total, values)]
    for got, want in zip(actual, expected, strict=True):
        assert want.isfinite().all(), "torch's own gradient"
        close(np.asarray(got), want.numpy(), TOLERANCES[backend, "float32"], f"{name} {case}")


# Factors that are not unique


@pytest.mark.parametrize("backend", ["numpy", "wide", "native", "jax", "tensorflow"])
@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 5), (5, 3)])
def test_factors_are_factors(backend: str, shape: tuple[int, ...]) -> None:
    """What decompositions multiply to, whatever signs a framework gives the parts."""

    def factors(name: str, x: torch.Tensor, *args: Any) -> list[np.ndarray]:
        return [np.asarray(part) for part in RESOLVE[backend](name)(ARRAY_OF[backend](x), *args)]

    limit = TOLERANCES["numpy" if backend == "wide" else backend, "float64" if backend == "wide" else "float32"]
    x = torch.randn(shape, generator=_RANDOM)
    for full in (False, True):
        u, s, vh = factors("linalg_svd", x, full)
        rank = s.shape[-1]
        close(u[..., :rank] * s[..., None, :] @ vh[..., :rank, :], x.numpy(), limit, "svd")
        for unitary in (u, np.swapaxes(vh, -1, -2)):
            gram = np.swapaxes(unitary, -1, -2) @ unitary
            close(gram, np.broadcast_to(np.eye(gram.shape[-1]), gram.shape), limit, "svd")
        q, r = factors("linalg_qr", x, "complete" if full else "reduced")
        close(q @ r, x.numpy(), limit, "qr")
        assert not np.tril(r, -1).any()
    symmetric = x @ x.mT
    values, vectors = factors("linalg_eigh", symmetric)
    close(symmetric.numpy() @ vectors, vectors * values[..., None, :], limit, "eigh")


# Properties

DTYPES = [getattr(torch, name) for name in "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64".split()]
QUIET = settings(deadline=None, derandomize=True, max_examples=150)


@st.composite
def operands(draw: Any) -> Any:
    """A tensor with dims or without, or a Python number."""
    kind = draw(st.sampled_from(["array", "scalar", "number"]))
    if kind == "number":
        return draw(st.sampled_from([True, 3, 2.5]))
    shape = draw(st.sampled_from([(2, 3), (3,), (2, 1), (0, 3), (1, 1)])) if kind == "array" else ()
    return torch.ones(shape).mul(draw(st.integers(1, 5))).to(draw(st.sampled_from(DTYPES)))


@QUIET
@given(operands(), operands())
def test_promotion_is_torchs(x: Any, y: Any) -> None:
    if not isinstance(x, torch.Tensor) and not isinstance(y, torch.Tensor):
        return
    expected = torch.result_type(x, y)
    for xp, convert in ((NARROW, to_numpy), (TENSORFLOW, to_tensorflow)):
        arrays = [convert(v) if isinstance(v, torch.Tensor) else v for v in (x, y)]
        assert result_type(xp, *arrays) == str(expected).removeprefix("torch."), xp
    if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) and 0 not in (x.numel(), y.numel()):
        for name in ("add.Tensor", "mul.Tensor", "div.Tensor", "maximum"):
            want = torch_operation(name)(x, y)
            got = np.asarray(RESOLVE["numpy"](name)(to_numpy(x), to_numpy(y)))
            compare("numpy", name, f"{x} {y}", [got], [want])


@st.composite
def slices(draw: Any) -> tuple[Any, ...]:
    shape = draw(st.lists(st.integers(0, 5), min_size=1, max_size=3))
    ends = st.one_of(st.none(), st.integers(-7, 7))
    return shape, draw(st.integers(-len(shape), len(shape) - 1)), draw(ends), draw(ends), draw(st.integers(1, 3))


@QUIET
@given(slices())
def test_slicing_is_torchs(drawn: tuple[Any, ...]) -> None:
    shape, *args = drawn
    same_everywhere("slice.Tensor", torch.arange(math.prod(shape)).reshape(shape), *args)


@st.composite
def lookups(draw: Any) -> tuple[Any, ...]:
    """A shape, and for some of its dims index arrays that broadcast with each other."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    chosen = draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)).filter(any))
    lead = draw(st.sampled_from([[(2,)], [(2, 3), (3,)], [(2, 1), (1, 3), ()], [(0,), (1,)]]))
    indices = []
    for size, picked in zip(shape, chosen, strict=True):
        dims = draw(st.sampled_from(lead))
        numbers = st.lists(st.integers(-size, size - 1), min_size=math.prod(dims), max_size=math.prod(dims))
        indices.append(torch.tensor(draw(numbers), dtype=torch.int64).reshape(dims) if picked else None)
    return shape, tuple(indices)


@QUIET
@given(lookups())
def test_indexing_is_torchs(drawn: tuple[Any, ...]) -> None:
    shape, indices = drawn
    x = torch.arange(math.prod(shape)).reshape(shape)
    same_everywhere("index.Tensor", x, indices)
    picked = torch_operation("index.Tensor")(x, indices)
    # written positions that repeat would be in no certain order: add
    same_everywhere("index_put", x, indices, torch.ones_like(picked), True)


@st.composite
def shapes(draw: Any) -> tuple[list[int], list[int]]:
    """Two shapes of as many elements, one dim of the second perhaps -1."""
    primes = draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=5))
    cuts = sorted(draw(st.lists(st.integers(0, len(primes)), max_size=3)))
    ends = [0, *cuts, len(primes)]
    target = [math.prod(primes[a:b]) for a, b in itertools.pairwise(ends)]
    if draw(st.booleans()):
        target[draw(st.integers(0, len(target) - 1))] = -1
    return primes, target


@QUIET
@given(shapes(), st.randoms(use_true_random=False))
def test_views_are_torchs(drawn: tuple[list[int], list[int]], random: Any) -> None:
    shape, target = drawn
    x = torch.arange(math.prod(shape)).reshape(shape)
    same_everywhere("view", x, tuple(target))
    order = random.sample(range(-len(shape), 0), len(shape))
    same_everywhere("permute", x, tuple(order))
    same_everywhere("expand", x, (2, *(-1 for _ in shape)))


def same_everywhere(name: str, *args: Any) -> None:
    """Equal to torch on NumPy and on TensorFlow (JAX would compile each shape)."""
    want = torch_operation(name)(*args)
    for backend in ("numpy", "tensorflow"):
        converted = map_tree(lambda a, b=backend: ARRAY_OF[b](a) if isinstance(a, torch.Tensor) else a, args)
        got = RESOLVE[backend](name)(*converted)
        np.testing.assert_array_equal(np.asarray(got), want.numpy(), f"{backend} {name} {args}")


# The namespaces themselves


@pytest.mark.parametrize("xp", [NARROW, JAX, TENSORFLOW], ids=lambda xp: type(xp).__name__)
def test_namespace_has_exactly_the_bases_methods(xp: Namespace) -> None:
    own = {name for name in dir(type(xp)) if not name.startswith("_")}
    base = {name for name in dir(Namespace) if not name.startswith("_")}
    assert own == base | {*UNARY, *BINARY}
    for name in sorted(base):
        method, declared = getattr(type(xp), name), getattr(Namespace, name)
        assert inspect.signature(method) == inspect.signature(declared), name
        abstract = "NotImplementedError" in declared.__code__.co_names
        assert method is not declared or not abstract, f"{name} is missing"


def test_erf_of_the_reference() -> None:
    grid = np.concatenate([np.linspace(-7, 7, 20011), np.logspace(-300, 2, 999), [0.0, -0.0, np.inf, -np.inf]])
    expected = np.array([math.erf(x) for x in grid])
    np.testing.assert_allclose(WIDE.erf(grid), expected, rtol=4 * np.finfo(np.float64).eps, atol=0)  # type: ignore[attr-defined]
    assert np.isnan(WIDE.erf(np.array([np.nan]))).all()  # type: ignore[attr-defined]
    assert WIDE.erf(np.zeros((2, 0, 3), np.float32)).shape == (2, 0, 3)  # type: ignore[attr-defined]
    assert np.signbit(WIDE.erf(np.array(-0.0)))  # type: ignore[attr-defined]
