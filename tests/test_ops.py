"""Every operation of the table on every namespace, against torch's own."""

from __future__ import annotations

import inspect
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

from zoo.backends import jax as jax_backend
from zoo.backends import numpy as numpy_backend
from zoo.backends import tensorflow as tensorflow_backend
from zoo.backends.execute import resolve_over
from zoo.backends.namespace import BINARY, UNARY, Namespace
from zoo.backends.torch import _resolve as torch_operation
from zoo.backends.torch import tensor_from
from zoo.graph.ir import DType
from zoo.ops import OPS

import jax  # isort: skip
import tensorflow as tf  # isort: skip

NARROW = numpy_backend.NumpyNamespace(widen=False)
WIDE = numpy_backend.namespace()
JAX = jax_backend.namespace()
TENSORFLOW = tensorflow_backend.namespace()
RESOLVE = {
    "numpy": resolve_over(NARROW, {}),
    "wide": resolve_over(WIDE, {}),
    "jax": resolve_over(JAX, jax_backend._OVERRIDES),
    "tensorflow": resolve_over(TENSORFLOW, tensorflow_backend._OVERRIDES),
}

IN_32_BITS = {"int64": "int32", "float64": "float32", "complex128": "complex64"}
"""What JAX makes of the wide dtypes unless it is told otherwise."""

UNKNOWN_DIM: dict[str, str] = {}
"""Operations that TensorFlow cannot compute where dims are unknown while a graph is built, and why."""

BY_VALUE = ("index.Tensor", "index_put", "masked_select", "nonzero")
"""Operations whose result's size depends on values, with masks at least: JAX cannot compile those."""

XFAIL: dict[tuple[str, str], str] = {}
"""(backend, operation) that cannot agree with torch, and why."""

SIZE_OPS = sorted(name for name in OPS if name.startswith("sym"))
TENSOR_OPS = [name for name in OPS if name not in SIZE_OPS]


@pytest.fixture(autouse=True)
def _torch_warns_of_its_own_deprecations() -> Any:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.filterwarnings("ignore", category=UserWarning, module="torch")
        yield


SIZES: dict[str, Any] = {}


def test_every_operation_is_tried() -> None:
    assert sorted(CASES) == sorted(TENSOR_OPS)
    assert sorted(SIZES) == SIZE_OPS


@pytest.mark.parametrize("name", TENSOR_OPS)
@pytest.mark.parametrize("backend", ["numpy", "wide", "jax", "tensorflow"])
def test_operation_is_torchs(backend: str, name: str, request: pytest.FixtureRequest) -> None:
    expect_failure(request, XFAIL.get((backend, name)))
    check(backend, RESOLVE[backend](name), name)


@pytest.mark.parametrize("name", TENSOR_OPS)
def test_operation_with_unknown_dims(name: str, request: pytest.FixtureRequest) -> None:
    """tf.function with every dim None and computed sizes as scalars."""
    expect_failure(request, UNKNOWN_DIM.get(name) or XFAIL.get(("tensorflow", name)))
    values: list[tf.Tensor] = []
    specs: list[tf.TensorSpec] = []

    def leaf(value: Any) -> Any:
        if isinstance(value, Size):
            values.append(tf.constant(int(value), tf.int32))
            specs.append(tf.TensorSpec([], tf.int32))
        elif isinstance(value, (torch.Tensor, Known)):
            values.append(to_tensorflow(tensor_of(value)))
            keep: Any = ()
            if isinstance(value, Known):
                keep = range(value.tensor.ndim) if value.dims is None else value.dims
            shape = [size if axis in keep else None for axis, size in enumerate(values[-1].shape)]
            specs.append(tf.TensorSpec(shape, values[-1].dtype))
        else:
            return value
        return Leaf(len(values) - 1)

    calls = [(map_tree(leaf, case.args), map_tree(leaf, case.kwargs)) for case in CASES[name]]

    @tf.function(autograph=False, input_signature=specs)
    def every_case(*values: Any) -> list[list[Any]]:
        return call_all(RESOLVE["tensorflow"](name), calls, values)

    for number, (case, actual) in enumerate(zip(CASES[name], every_case(*values), strict=True)):
        compare("tensorflow", name, number, actual, run_torch(name, case))


@pytest.mark.parametrize(
    ("backend", "name"),
    [("jax", name) for name in jax_backend._OVERRIDES] + [("tensorflow", name) for name in tensorflow_backend._OVERRIDES],
)
def test_definition_behind_an_override(backend: str, name: str) -> None:
    check(backend, resolve_over({"jax": JAX, "tensorflow": TENSORFLOW}[backend], {})(name), name)


def check(backend: str, function: Callable[..., Any], name: str) -> None:
    """Compare all cases of an operation; on JAX they are compiled as one program, which is far quicker than each step."""
    values: list[Any] = []

    def leaf(value: Any) -> Any:
        if isinstance(value, (torch.Tensor, Known)):
            values.append(ARRAY_OF[backend](tensor_of(value)))
            return Leaf(len(values) - 1)
        return int(value) if isinstance(value, Size) else value

    calls = [(map_tree(leaf, case.args), map_tree(leaf, case.kwargs)) for case in CASES[name]]

    def every_case(values: list[Any]) -> list[list[Any]]:
        return call_all(function, calls, values)

    if backend == "jax" and name not in BY_VALUE:
        every_case = jax.jit(every_case)
    for number, (case, actual) in enumerate(zip(CASES[name], every_case(values), strict=True)):
        compare(backend, name, number, actual, run_torch(name, case, wide=backend == "wide"))


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


def run_torch(name: str, case: Case, wide: bool = False) -> list[torch.Tensor]:
    """torch's own results; with `wide`, computed in float64 throughout."""

    def convert(value: Any) -> Any:
        if isinstance(value, (torch.Tensor, Known)):
            tensor = tensor_of(value)
            return tensor.to(WIDER.get(tensor.dtype, tensor.dtype)) if wide else tensor
        if isinstance(value, DType):
            dtype = getattr(torch, value.name)
            return WIDER.get(dtype, dtype) if wide else dtype
        return int(value) if isinstance(value, Size) else value

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if wide else default)
    try:
        return flat(torch_operation(name)(*map_tree(convert, case.args), **map_tree(convert, case.kwargs)))
    finally:
        torch.set_default_dtype(default)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's memory with its strides, bfloat16 included."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(numpy_backend.ml_dtypes.bfloat16)
    return tensor.numpy()


def to_wide(tensor: torch.Tensor) -> np.ndarray:
    return numpy_backend._widened(to_numpy(tensor))


def to_jax(tensor: torch.Tensor) -> jax.Array:
    return jax.numpy.asarray(to_numpy(tensor))


def to_tensorflow(tensor: torch.Tensor) -> tf.Tensor:
    return tf.constant(to_numpy(tensor))


ARRAY_OF: dict[str, Callable[[torch.Tensor], Any]] = {
    "numpy": to_numpy,
    "wide": to_wide,
    "jax": to_jax,
    "tensorflow": to_tensorflow,
}


def compare(backend: str, name: str, number: int, actual: list[Any], expected: list[torch.Tensor]) -> None:
    """Same count, shapes and dtypes, and values within the backend's tolerance of the largest expected."""
    where = f"case {number} of {name}: {CASES[name][number] if name in CASES else ''}"
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
        close(np.asarray(got), to_numpy(want), tolerance(backend, dtype), where)


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
