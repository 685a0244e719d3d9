"""Dims as text: what they come to, against sympy, whose printer writes them; what is no dim is refused."""

from __future__ import annotations

import pytest
import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from zoo.configured import GRAPHS
from zoo.errors import GraphError
from zoo.graph import load_graph
from zoo.graph.dims import broadcast, evaluate, symbols

SIZES = {"batch": 3, "height_2": 28, "v12.rows": 5}
NAMES = st.sampled_from(["batch", "height_2"])
EXPRESSIONS = st.recursive(
    NAMES.map(sympy.Symbol) | st.integers(1, 9).map(sympy.Integer),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] - pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] * pair[1]),
        st.tuples(inner, st.integers(0, 3)).map(lambda pair: pair[0] ** pair[1]),
        st.tuples(inner, inner).map(lambda pair: sympy.Max(*pair)),
        st.tuples(inner, inner).map(lambda pair: sympy.Min(*pair)),
        st.tuples(inner, st.integers(1, 9)).map(lambda pair: sympy.Mod(*pair)),
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(EXPRESSIONS)
def test_what_sympy_prints_comes_to_what_sympy_says(expression: sympy.Expr) -> None:
    value = expression.subs(SIZES)
    assume(abs(value) < 1 << 40)
    assert evaluate(str(expression), SIZES) == value
    assert symbols(str(expression)) == {str(symbol) for symbol in expression.free_symbols}


@pytest.mark.parametrize(
    ("dim", "value"),
    [
        (7, 7),
        ("batch", 3),
        ("v12.rows", 5),
        ("2*v12.rows", 10),
        ("((height_2//14))*((height_2//14)) + 1", 5),
        ("(((height_2 - 1)//2)) + 1", 14),
        ("FloorDiv(height_2, 3) - CleanDiv(height_2, 14)", 7),
        ("height_2/14", 2),
        ("-batch + 4", 1),
    ],
)
def test_what_torch_prints(dim: int | str, value: int) -> None:
    assert evaluate(dim, SIZES) == value


@pytest.mark.parametrize(
    "dim",
    [
        *("9**9**9", "10**18*10**18", "batch//0", "batch % 0", "height_2/3", "2**-1", "", "a b", "batch +", "1.5"),
        *("True", "'batch'", "batch()", "len(batch)", "batch[0]", "Mod(1)", "Max(*batch)", "Min(1, key=2)", "\0"),
        *("0 if batch else 1", "__import__('os').name()", "lambda: 0", "[0]", "-" * 19_000 + "1", "1+" * 30_000 + "1"),
    ],
)
def test_what_is_no_size_is_refused(dim: str) -> None:
    with pytest.raises(GraphError):
        evaluate(dim, SIZES)


def test_a_symbol_of_no_known_size_is_named() -> None:
    with pytest.raises(GraphError, match=r"width in 2[*]width"):
        evaluate("2*width", SIZES)


@pytest.mark.parametrize("kind", ["bert", "dinov2", "segformer", "swin", "whisper"])
def test_all_dims_of_packaged_graphs(kind: str) -> None:
    file = next(iter(sorted(GRAPHS.glob(f"{kind}-*.json.gz"))))
    graph = load_graph(file)
    sizes = dict.fromkeys(graph.symbols, 224)
    dims = {dim for node in graph.nodes for info in node.infos for dim in info.shape}
    assert any(isinstance(dim, str) for dim in dims)
    assert all(evaluate(dim, sizes) > 0 for dim in dims)


def test_broadcast() -> None:
    assert broadcast(("batch", 1, 4), (5, 1)) == ("batch", 5, 4)
    assert broadcast((), (2, "batch")) == (2, "batch")
