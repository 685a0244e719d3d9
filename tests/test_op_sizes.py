"""Every operation where sizes are not numbers while a graph is traced: TensorFlow's None, the symbols of jax.export.

The calls of an operation are the nodes of one graph, whose infos are what torch's results are; a backend holds each
value to its info's rank and dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch  # before tensorflow: see DESIGN.md's traps
from op_cases import CASES, Case, Known, Size
from test_ops import (
    FIRST_ONLY,
    LACKS,
    QUICK,
    TENSOR_OPS,
    by_value,
    compare,
    excepted,
    forms,
    half,
    map_tree,
    run_torch,
    tensor_of,
    to_numpy,
)

import zoo
from zoo.backends import jax as jax_backend
from zoo.backends import tensorflow as tensorflow_backend
from zoo.backends.execute import resolve_over
from zoo.errors import UnsupportedOp
from zoo.graph.ir import Graph, Input, Node, Ref, ValueInfo

import jax  # isort: skip
import jax.export  # isort: skip
import jax.numpy as jnp  # isort: skip
import tensorflow as tf  # isort: skip

SYMBOLS = {2: "2*n", 3: "2*n+1", 4: "4*n", 5: "4*n+1", 6: "6*n", 7: "6*n+1", 8: "8*n", 9: "8*n+1"}
"""A size of a case -> the same at n = 1. Others are numbers: of 0 and 1 every capture makes no symbol."""

SIZES_AS_ARGUMENTS = "view reshape _unsafe_view _reshape_alias expand expand_copy broadcast_to".split()
"""Operations whose second argument is the sizes of the result."""

UNDECIDED: dict[str, tuple[list[int], str]] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), ([2], "whether a symbol divides another")),
    "unflatten.int": ([1], "whether a symbol divides another"),
    "im2col": ([0], "a product of sums of symbols, to be compared"),
    "adaptive_max_pool2d": ([1], "a window's size, by division"),
    "adaptive_max_pool3d": ([0], "a window's size, by division"),
    **dict.fromkeys(("diagonal_scatter",), ([2, 3, 4, 5], "the length of a diagonal, which is not that of 2 n + 1")),
    "slice_scatter": ([0, 1], "a literal slice, into which a symbol must fit"),
    **dict.fromkeys(
        (
            "upsample_bilinear2d.vec",
            "upsample_bicubic2d.vec",
            "_upsample_bilinear2d_aa.vec",
            "_upsample_bicubic2d_aa.vec",
        ),
        ([2], "of 0.7 times a size only floats know how it is rounded"),
    ),
    "_upsample_nearest_exact2d.vec": ([1], "of 0.7 times a size only floats know how it is rounded"),
}
"""Operation -> cases that symbols cannot decide, each an error, and why."""


def graph_of(name: str, cases: Sequence[Case], dims: Callable[[int, bool], int | str]) -> tuple[Graph, dict[str, Any]]:
    """Calls as a graph, and its inputs; `dims` says what an input's size is recorded as, given if it must be known."""
    inputs = [Input("n", "float32", ("n",))]
    arrays: dict[str, Any] = {"n": np.zeros(1, np.float32)}
    nodes: list[Node] = []
    outputs: dict[str, Any] = {}

    def add(array: np.ndarray, shape: tuple[int | str, ...]) -> Ref:
        inputs.append(Input(f"x{len(inputs)}", str(array.dtype), shape))
        arrays[inputs[-1].name] = array
        return Ref(inputs[-1].name)

    for number, case in enumerate(cases):
        fixed: set[int] = set()

        def note(value: Any, fixed: set[int] = fixed) -> None:
            if isinstance(value, Known):
                shape = value.tensor.shape
                fixed.update(shape if value.dims is None else [shape[dim] for dim in value.dims])

        def leaf(value: Any, fixed: set[int] = fixed) -> Any:
            if isinstance(value, Size) and value > 1:
                of = add(np.zeros(int(value), np.float32), (dims(int(value), False),))
                nodes.append(Node("sym_size.int", (of, 0), {}, (f"size{len(nodes)}",), (ValueInfo("size"),)))
                return Ref(nodes[-1].name)
            if isinstance(value, (torch.Tensor, Known)):
                tensor = tensor_of(value)
                array = to_numpy(tensor)
                keep = range(tensor.ndim) if isinstance(value, Known) and value.dims is None else ()
                keep = value.dims or keep if isinstance(value, Known) else keep
                shape = [dims(size, axis in keep or size in fixed) for axis, size in enumerate(array.shape)]
                return add(array, tuple(shape))
            return int(value) if isinstance(value, Size) else value

        map_tree(note, (case.args, tuple(case.kwargs.values())))
        args = list(case.args)
        if name in SIZES_AS_ARGUMENTS:
            args[1] = tuple(Size(size) for size in args[1])
        given, options = map_tree(leaf, tuple(args)), map_tree(leaf, case.kwargs)
        wanted = results(name, case)
        names = tuple(f"{number}.{place}" for place in range(len(wanted)))
        infos = tuple(
            ValueInfo(str(want.dtype).removeprefix("torch."), tuple(n if n < 2 else f"s{n}" for n in want.shape))
            for want in wanted
        )
        nodes.append(Node(name, given, options, names, infos))
        outputs |= {result: Ref(result) for result in names}
    return Graph(tuple(inputs), {}, {}, nodes, outputs), arrays


def results(name: str, case: Case) -> list[torch.Tensor]:
    found = run_torch(name, case)
    return found[:1] if name in FIRST_ONLY else found


def agrees(backend: str, name: str, cases: Sequence[Case], outputs: dict[str, Any]) -> None:
    for number, case in enumerate(cases):
        want = results(name, case)
        actual = [outputs[f"{number}.{place}"] for place in range(len(want))]
        where = f"case {number}: {case}"
        try:
            compare(backend, name, where, actual, want)
        except AssertionError:  # torch may be the one that is off
            exact = zip(run_torch(name, case, wide=True), want, strict=False)
            compare(backend, name, where, actual, [wide.to(like.dtype) for wide, like in exact])


# TensorFlow


@pytest.mark.parametrize("name", TENSOR_OPS)
def test_operation_with_unknown_dims(name: str) -> None:
    """One tf.function in which every dim is None, sizes of 0 and 1 among them, and computed sizes are scalars."""
    lacking = LACKS["tensorflow"]
    smaller = [c for form, c in forms(name) if " to " in form and not excepted(lacking, form, name)]
    cases = [case for case in CASES[name] if not half(case)] + smaller
    counter = iter(range(10**6))
    graph, arrays = graph_of(name, cases, lambda size, keep: size if keep else f"d{next(counter)}")
    agrees("tensorflow", name, cases, tensorflow_backend.compile_graph(graph)({}, arrays))


@pytest.mark.parametrize(
    ("name", "shapes", "rest"),
    [
        ("squeeze", [(2, 1, 3)], ()),
        ("squeeze.dim", [(2, 1, 3)], (1,)),
        ("squeeze.dims", [(2, 1, 3)], ((0, 1),)),
        ("chunk", [(7, 3)], (3,)),
        ("split.Tensor", [(7, 3)], (3,)),
        ("unbind.int", [(3, 2)], ()),
        ("linalg_solve", [(2, 3, 3), (2, 3)], ()),
        ("cat", [(0,), (2, 3)], ()),
        ("tril_indices", [()], (4,)),
    ],
)
def test_without_a_record_unknown_sizes_are_refused(name: str, shapes: list[Any], rest: tuple[Any, ...]) -> None:
    """How many dims or results there are, or of which kind, follows from sizes: nothing is guessed."""
    resolve = resolve_over(tensorflow_backend.namespace(), {})

    def call(*arrays: Any) -> Any:
        return resolve(name)(*((arrays,) if name == "cat" else arrays), *rest)

    arrays = [tf.zeros(shape) if shape else tf.constant(3) for shape in shapes]
    specs = [tf.TensorSpec([None] * array.shape.rank, array.dtype) for array in arrays]
    with pytest.raises(UnsupportedOp, match="needs a size that is a number"):
        tf.function(call, autograph=False, input_signature=specs)(*arrays)


# JAX


@pytest.mark.parametrize("name", TENSOR_OPS)
def test_operation_with_symbolic_sizes(name: str) -> None:
    """jax.export with a symbol in every dim of more than one element, called at the case's own sizes."""
    cases = [case for case in CASES[name] if not half(case) and not by_value(name, case)]
    undecided, _ = UNDECIDED.get(name, ([], ""))
    for number in undecided:
        with pytest.raises(UnsupportedOp):
            exported(*graph_of(name, [cases[number]], symbol))
    cases = [case for number, case in enumerate(cases) if number not in undecided]
    if cases:
        agrees("jax", name, cases, exported(*graph_of(name, cases, symbol)))


def symbol(size: int, keep: bool) -> int | str:
    return size if keep else SYMBOLS.get(size, size)


def exported(graph: Graph, arrays: dict[str, Any]) -> dict[str, Any]:
    """The outputs of the graph's program with symbolic shapes, called with the arrays."""
    scope = jax.export.SymbolicScope(("n>=1", "n<=64"))
    specs = {}
    for item in graph.inputs:
        shape = jax.export.symbolic_shape(f"({', '.join(map(str, item.shape))},)", scope=scope) if item.shape else ()
        specs[item.name] = jax.ShapeDtypeStruct(shape, jnp.asarray(arrays[item.name]).dtype)
    function = jax_backend.compile_graph(graph)
    program = jax.export.export(jax.jit(lambda inputs: function({}, inputs)))(specs)
    given = {name: jnp.asarray(array) for name, array in arrays.items()}
    return jax.jit(program.call, compiler_options=QUICK)(given)


# Whole graphs


class Squeezes(torch.nn.Module):
    """A dim of size 1 that TensorFlow loses sight of: a slice by computed sizes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ones = x.reshape(x.shape[0], x.shape[1], -1, x.shape[2])
        return ones.squeeze(2) + ones.narrow(2, x.shape[1] - x.shape[1], 1).squeeze(2)


@pytest.mark.parametrize("backend", ["torch", "numpy", "native", "jax", "tensorflow"])
def test_squeeze_follows_the_record(backend: str) -> None:
    example = torch.randn(2, 5, 8)
    model = zoo.capture(Squeezes().eval(), x=example).load(backend)
    for batch, length in ((3, 7), (2, 4)):
        x = np.random.default_rng(0).standard_normal((batch, length, 8)).astype(np.float32)
        (out,) = model(x=x).values()
        np.testing.assert_array_equal(np.asarray(out), 2 * x)
