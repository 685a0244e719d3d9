"""What the table says of its operations, held by value on each operation's cases; and that nothing else says it."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from op_cases import CASES, Known
from tolerances import TOLERANCES

import zoo
from zoo.arrays import to_numpy
from zoo.backends.execute import resolve_over
from zoo.backends.numpy_namespace import NumpyNamespace
from zoo.graph.ir import Node
from zoo.ops import OPS, Moves, Traits, base, spelling, traits_of

RESOLVE = resolve_over(NumpyNamespace(widen=False), {})
ROOT = Path(zoo.__file__).parent


def with_trait(chosen: Callable[[Traits], Any]) -> list[str]:
    return [name for name, op in OPS.items() if chosen(op.traits)]


def plain(value: Any) -> Any:
    """A case's argument as NumPy takes it."""
    if isinstance(value, (torch.Tensor, Known)):
        return to_numpy(value.tensor if isinstance(value, Known) else value)
    return tuple(map(plain, value)) if isinstance(value, (tuple, list)) else value


def calls(name: str) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    if OPS[name].traits.recorded and name not in ("chunk", "squeeze", "squeeze.dim", "squeeze.dims"):
        return
    for case in CASES[name]:
        yield [plain(arg) for arg in case.args], {key: plain(value) for key, value in case.kwargs.items()}


def results(name: str, args: Any, kwargs: Any) -> list[np.ndarray]:
    more = {"infos": ()} if OPS[name].traits.recorded else {}
    with np.errstate(all="ignore"):
        found = RESOLVE(name)(*args, **kwargs, **more)
    return [np.asarray(x) for x in (found if isinstance(found, (tuple, list)) else (found,))]


def distinct(x: np.ndarray) -> np.ndarray:
    """As many different numbers, of a dtype that holds them."""
    numbers = np.arange(1, x.size + 1).reshape(x.shape)
    return numbers if x.dtype.kind in "iu" else numbers.astype(np.complex64 if x.dtype.kind == "c" else np.float64)


def same(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for rounding, which may differ with an element's place."""
    assert got.shape == expected.shape and got.dtype == expected.dtype
    wide = np.complex128 if got.dtype.kind == "c" else np.float64
    tolerance = TOLERANCES.get(("numpy", str(got.dtype)), TOLERANCES["numpy", "float32"])
    np.testing.assert_allclose(got.astype(wide), expected.astype(wide), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", with_trait(lambda t: t.elementwise))
def test_elementwise(name: str) -> None:
    """Elements in another order, in one dim, give the same results in that order."""
    tried = 0
    for args, kwargs in calls(name):
        arrays = [x for x in (*args, *kwargs.values()) if isinstance(x, np.ndarray) and x.ndim]
        shape = np.broadcast_shapes(*(x.shape for x in arrays))
        found = results(name, args, kwargs)
        assert all(x.shape == shape for x in found)
        if not arrays or math.prod(shape) < 2:
            continue
        order = np.random.default_rng(0).permutation(math.prod(shape))

        def shuffled(x: Any, shape: Any = shape, order: Any = order) -> Any:
            return np.broadcast_to(x, shape).ravel()[order] if isinstance(x, np.ndarray) and x.ndim else x

        again = results(name, map(shuffled, args), {key: shuffled(value) for key, value in kwargs.items()})
        for before, after in zip(found, again, strict=True):
            same(after, before.ravel()[order])
        tried += 1
    assert tried


@pytest.mark.parametrize("name", with_trait(lambda t: t.elementwise))
def test_boolean(name: str) -> None:
    kinds = {x.dtype.kind for args, kwargs in calls(name) for x in results(name, args, kwargs)}
    assert (kinds == {"b"}) == OPS[name].traits.boolean


@pytest.mark.parametrize("name", with_trait(lambda t: t.moves))
def test_moves(name: str) -> None:
    moves, tried = OPS[name].traits.moves, 0
    for args, kwargs in calls(name):
        if moves is Moves.JOIN:
            offsets = np.cumsum([0, *(x.size for x in args[0])])
            args[0] = tuple(distinct(x) + offset for x, offset in zip(args[0], offsets, strict=False))
            given = np.concatenate([x.ravel() for x in args[0]])
        elif moves is Moves.CHOOSE:
            choices = args[1:] if base(name) == "where" else [args[0], args[2]]
            found = results(name, args, kwargs)[0]
            assert np.any([np.isclose(found.astype(float), np.asarray(x, float)) for x in choices], 0).all()
            tried += found.size > 1
            continue
        else:
            args[0] = distinct(args[0])
            given = args[0].ravel()
        found = results(name, args, kwargs)
        values = np.concatenate([x.ravel() for x in found])
        if moves is Moves.RESHAPE:
            assert np.array_equal(values, given)
        elif moves in (Moves.PERMUTE, Moves.JOIN):
            assert np.array_equal(np.sort(values), np.sort(given))
        elif moves is Moves.REPEAT:
            assert not values.size or set(values) == set(given)
        else:
            assert moves is Moves.TAKE
            assert set(values) <= set(given)
        tried += given.size > 1
    assert tried


@pytest.mark.parametrize("name", with_trait(lambda t: t.along))
def test_along(name: str) -> None:
    """What is turned round along another dim gives results turned round there; dims that reduce go or become 1."""
    op, tried = OPS[name], 0
    for args, kwargs in calls(name):
        x = args[0]
        if not x.ndim:
            continue
        dims = op.dims(Node(name, tuple(args), kwargs, (), ()), x.ndim)
        found = results(name, args, kwargs)
        for result in found if op.traits.reduces else ():
            assert result.ndim in (x.ndim, x.ndim - len(set(dims)))
            assert result.ndim < x.ndim or all(result.shape[dim] == 1 for dim in dims)
        others = set(range(x.ndim)) - set(dims)
        tried += not others  # all of them meet
        for other in others:
            again = results(name, [np.flip(x, other), *args[1:]], kwargs)
            for before, after in zip(found, again, strict=True):
                place = other if before.ndim == x.ndim else other - sum(dim < other for dim in dims)
                assert before.shape[place] == x.shape[other]
                same(after, np.flip(before, place))
            tried += x.shape[other] > 1
    assert tried


@pytest.mark.parametrize("name", with_trait(lambda t: t.writes))
def test_writes(name: str) -> None:
    for args, kwargs in calls(name):
        (found,) = results(name, args, kwargs)
        assert (found.shape, found.dtype) == (args[0].shape, args[0].dtype)


@pytest.mark.parametrize("name", with_trait(lambda t: t.by_shape and not t.size))
def test_by_shape(name: str) -> None:
    for args, kwargs in calls(name):
        (found,) = results(name, args, kwargs)
        (again,) = results(name, [np.logical_not(args[0]).astype(args[0].dtype), *args[1:]], kwargs)
        assert np.array_equal(found, again)


@pytest.mark.parametrize("name", with_trait(lambda t: t.draws))
def test_draws(name: str) -> None:
    x = np.ones((4, 64), np.float32)
    keys = [np.array([seed, 1], np.int32) for seed in (1, 1, 2)]
    first, again, other = (results(name, (x, 0.5, True), {"rng": (key, 0)})[0] for key in keys)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_sizes() -> None:
    special = {
        "sym_size.int": (np.zeros((2, 3)), 1),
        "sym_numel": (np.zeros((2, 3)),),
        "sym.ite": (True, 3, 4),
        "sym.sum": ((3, 4),),
        "sym.max": (3, 4),
        "sym.min": (3, 4),
        "sym.not": (True,),
    }
    for name in with_trait(lambda t: t.size):
        count = len(OPS[name].signature.parameters) - 1
        assert isinstance(RESOLVE(name)(*special.get(name, (4, 2)[:count])), (int, float))
    assert with_trait(lambda t: t.size) == [name for name in OPS if name.startswith("sym")]


@pytest.mark.parametrize("name", with_trait(lambda t: t.same_as))
def test_same(name: str) -> None:
    for args, kwargs in calls(name):
        for one, other in zip(results(name, args, kwargs), results(spelling(name), args, kwargs), strict=True):
            assert np.array_equal(one, other)


def test_what_stays_whole_is_torchs() -> None:
    for name in with_trait(lambda t: t.whole):
        assert hasattr(torch.ops.aten, base(name)), name


def test_recorded_functions_take_infos() -> None:
    for name, op in OPS.items():
        assert ("infos" in inspect.signature(op.function).parameters) == op.traits.recorded, name


def test_of_an_operation_that_is_not_in_the_table_nothing_is_known() -> None:
    assert traits_of("native::norm") == Traits()


# --- nobody else lists operations -------------------------------------------------------------------------------------

TABLES = {
    "backends/jax.py": "what its namespace calls otherwise",
    "backends/keras.py": "what its namespace calls otherwise",
    "backends/namespace.py": "the namespace's own names",
    "backends/native.py": "the kernels' functions",
    "backends/numpy_namespace.py": "what NumPy calls otherwise",
    "backends/tensorflow.py": "what its namespace calls otherwise",
    "backends/torch.py": "torch's own in an operation's place",
    "graph/passes/fuse.py": "the kernels' activations",
    "capture/huggingface/conversions.py": "rules for torch's operations on a checkpoint's tensors, which are no graph",
    "adapters/__init__.py": "the kernels' names",
    "native/library.py": "the kernels' names, in the order of their numbers",
}
"""Files with tables of functions, not of facts -> what they are of."""


def listed(tree: ast.AST) -> Iterator[tuple[int, list[str]]]:
    """The texts that stand in one set, list, dict or split text."""
    for node in ast.walk(tree):
        items: list[Any] = []
        if isinstance(node, (ast.Set, ast.Tuple, ast.List)):
            items = node.elts
        elif isinstance(node, ast.Dict):
            items = node.keys
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "split":
            text = node.func.value
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield node.lineno, text.value.split()
        found = [item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)]
        if found:
            yield node.lineno, found


def test_facts_stand_in_the_table_alone() -> None:
    names = {*OPS, *map(base, OPS)}
    for path in ROOT.rglob("*.py"):
        place = path.relative_to(ROOT).as_posix()
        if place.startswith("ops/") or place in TABLES:
            continue
        for line, texts in listed(ast.parse(path.read_text("utf-8"))):
            ops = [text for text in texts if text in names]
            assert len(ops) <= 4 or 2 * len(ops) <= len(texts), f"{place}:{line} lists operations: {' '.join(ops)}"


def test_tables_of_functions_name_operations() -> None:
    from zoo.backends import jax, native, tensorflow
    from zoo.backends import torch as torch_backend
    from zoo.capture.huggingface import conversions
    from zoo.graph.passes import fuse

    for table in (jax._OVERRIDES, tensorflow._OVERRIDES, torch_backend._WITHOUT_DERIVATIVE):
        assert table.keys() <= OPS.keys()
    assert {name for name in native.DIRECT if not name.startswith("native::")} <= OPS.keys()
    assert {*fuse.ACTIVATIONS, *fuse._BATCH_NORMS} <= OPS.keys()
    moved = {name for name in conversions._RULES if base(name) not in set(map(base, OPS))}
    assert all(hasattr(torch.ops.aten, name) for name in moved)
