"""Graphs of a few hundred bytes that ask for terabytes or years: each is refused by name, at once, before it runs."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zoo
from zoo.errors import GraphError, LimitError, ZooError
from zoo.graph.ir import DType, Graph, Input, Node, Param, Ref, ValueInfo
from zoo.model import Package

BACKENDS = ("numpy", "native", "torch", "jax", "tensorflow", "keras")
SECONDS = 5.0
MEGABYTES = 256
HUGE = 10**12
X, W = Ref("x"), Ref("p:w")


class Building:
    """Nodes one after another, each with the rank and dtype that it is said to have."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def __call__(self, op: str, *args: Any, dtype: str = "float32", rank: int = 2, **kwargs: Any) -> Ref:
        dims = () if dtype == "size" else tuple(f"d{axis}" for axis in range(rank))
        name = f"v{len(self.nodes)}"
        self.nodes.append(Node(op, args, kwargs, (name,), (ValueInfo(dtype, dims),)))
        return Ref(name)


def power(g: Building) -> Ref:
    size = g("sym.pow", g("sym_size.int", X, 0, dtype="size"), HUGE, dtype="size")
    return g("full", (size,), 1.0, rank=1)


def powers(g: Building) -> Ref:
    """Each of which is allowed."""
    size = g("sym.add", g("sym_size.int", X, 0, dtype="size"), 7, dtype="size")
    for _ in range(40):
        size = g("sym.pow", size, 3, dtype="size")
    return g("full", (size,), 1.0, rank=1)


def products(g: Building) -> Ref:
    size = g("sym.add", g("sym_size.int", X, 0, dtype="size"), 7, dtype="size")
    for _ in range(60):
        size = g("sym.mul", size, size, dtype="size")
    return g("full", (size,), 1.0, rank=1)


def doubled(g: Building) -> Ref:
    x = X
    for _ in range(40):
        x = g("cat", (x, x), 0)
    return g("sum", x, rank=0)


def kept(g: Building) -> Ref:
    """Arrays each of which is small, all of them held to the end."""
    parts = [g("full", (1 << 20,), float(number), rank=1) for number in range(1 << 10)]
    parts = [g("exp", part, rank=1) for part in parts]
    total = parts[-1]
    for part in reversed(parts[:-1]):
        total = g("add.Tensor", total, part, rank=1)
    return total


def worked(g: Building) -> Ref:
    """Small arrays, again and again."""
    x = g("full", (1 << 11, 1 << 11), 1.0)
    for _ in range(1 << 10):
        x = g("mm", x, x)
    return x


def viewed(g: Building) -> Ref:
    """A view costs nothing, and what reads it costs all that it shows."""
    return g("sum", g("expand", g("unsqueeze", g("sum", X, rank=0), 0, rank=1), (HUGE,), rank=1), rank=0)


def windows(g: Building) -> Ref:
    return g("unfold", g("full", (1 << 20,), 1.0, rank=1), 0, 1 << 18, 1)


def pooled(g: Building) -> Ref:
    return g("adaptive_avg_pool1d", g("unsqueeze", X, 0, rank=3), (999_983,), rank=3)


def pooled_max(g: Building) -> Ref:
    x = g("view", X, (1, 1, -1), rank=3)
    infos = (ValueInfo("float32", ("a", "b", "c")), ValueInfo("int64", ("a", "b", "c")))
    g.nodes.append(Node("adaptive_max_pool1d", (x, (HUGE,)), {}, ("most", "where"), infos))
    return Ref("most")


def wide(g: Building) -> Ref:
    """x [2, 8] as [1, 1, 2, 8]."""
    return g("view", X, (1, 1, 2, -1), rank=4)


def batch(g: Building) -> Ref:
    """x [2, 8] as [1, 2, 8]."""
    return g("unsqueeze", X, 0, rank=3)


def steps(g: Building, count: int) -> Ref:
    return g("arange", count, dtype="int64", rank=1)


def from_data(g: Building) -> Ref:
    """As many rows as there are positive elements, doubled and doubled."""
    x = g("masked_select", X, g("gt.Scalar", X, -1e9, dtype="bool"), rank=1)
    for _ in range(40):
        x = g("cat", (x, x), 0, rank=1)
    return g("sum", x, rank=0)


def repeated_by_data(g: Building) -> Ref:
    x = g("view", X, (-1,), rank=1)
    counts = g("add.Tensor", g("_to_copy", x, dtype="int64", rank=1), 5, dtype="int64", rank=1)
    g.nodes[1] = replace(g.nodes[1], kwargs={"dtype": DType("int64")})
    return g("repeat_interleave.self_Tensor", x, g("mul.Tensor", counts, HUGE, dtype="int64", rank=1), rank=1)


CASES: dict[str, Callable[[Building], Ref]] = {
    **{f.__name__: f for f in (power, powers, products, doubled, kept, worked, viewed, windows, pooled, pooled_max)},
    "one_hot": lambda g: g("one_hot", steps(g, 3), HUGE, dtype="int64"),
    "arange": lambda g: steps(g, HUGE),
    "arange_small_steps": lambda g: g("arange.start_step", 0.0, 1.0, 1e-12, rank=1),
    "full": lambda g: g("full", (HUGE, HUGE), 1.0),
    "full_bits": lambda g: g("full", (10**400,), 1.0, rank=1),
    "repeat": lambda g: g("repeat", X, (HUGE, 1)),
    "repeat_interleave": lambda g: g("repeat_interleave.self_int", X, HUGE, 0),
    "expand_copied": lambda g: g("exp", g("expand", batch(g), (HUGE, -1, -1), rank=3), rank=3),
    "interpolate": lambda g: g("upsample_nearest2d.vec", wide(g), (10**6, 10**6), None, rank=4),
    "bicubic": lambda g: g("upsample_bicubic2d.vec", wide(g), (10**6, 10**6), False, None, rank=4),
    "antialiased": lambda g: g("_upsample_bilinear2d_aa.vec", wide(g), (10**6, 10**6), False, None, rank=4),
    "pad": lambda g: g("constant_pad_nd", X, (HUGE, HUGE)),
    "replicate": lambda g: g("replication_pad1d", batch(g), (HUGE, HUGE), rank=3),
    "convolution": lambda g: g("conv1d", batch(g), W, None, (1,), (HUGE,), rank=3),
    "dilated": lambda g: g("conv1d", batch(g), W, None, (1,), (10**10,), (10**10,), rank=3),
    "transposed": lambda g: g("conv_transpose1d", batch(g), W, None, (HUGE,), rank=3),
    "max_pool_dilated": lambda g: g("max_pool1d", batch(g), (10**9,), (1,), (5 * 10**8,), (2,), rank=3),
    "im2col": lambda g: g("im2col", wide(g), (10**5, 10**5), (1, 1), (10**5, 10**5), (1, 1), rank=3),
    "linspace": lambda g: g("linspace", 0.0, 1.0, HUGE, rank=1),
    "eye": lambda g: g("eye", 10**6),
    "tril_indices": lambda g: g("tril_indices", 10**6, 10**6, dtype="int64"),
    "outer": lambda g: g("outer", steps(g, 10**6), steps(g, 10**6), dtype="int64"),
    "strided": lambda g: g("as_strided", X, (HUGE,), (0,), rank=1),
    "einsum": lambda g: g("einsum", "ab,cd,ef,gh,ij,kl,mn,op,qr,st,uv->acegikmoqsubdfhj", (X,) * 11, rank=16),
}
DATA: dict[str, Callable[[Building], Ref]] = {
    "from_data": from_data,
    "repeated": repeated_by_data,
    "bincount": lambda g: g("bincount", steps(g, 3), None, HUGE, dtype="int64", rank=1),
}


def graph(build: Callable[[Building], Ref], inputs: Sequence[Input] = ()) -> Graph:
    g = Building()
    out = build(g)
    given = tuple(inputs) or (Input("x", "float32", ("n", 8)),)
    params = {"w": Param("w", "float32", (4, 2, 3))}
    return Graph(given, params, {}, g.nodes, {"y": out}, {"n": (1, None)})


def package(folder: Path, made: Graph) -> Path:
    Package(made, {"w": np.ones((4, 2, 3), np.float32)}).save(folder)
    return folder


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """A run that is not refused fails: it must not take the machine with it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    now = pages * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + (8 << 30), old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


def refuses(folder: Path, backend: str) -> LimitError:
    model = zoo.load(folder, backend)
    x = np.arange(16, dtype=np.float32).reshape(2, 8)
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LimitError) as caught:
        model(x=x)
    assert time.monotonic() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES << 10
    return caught.value


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_what_takes_too_much_is_refused(name: str, backend: str, tmp_path: Path) -> None:
    made = graph(CASES[name])
    error = refuses(package(tmp_path / name, made), backend)
    named = str(error.where).split("'")[1]
    node = next(node for node in made.nodes if named in node.outputs)
    assert str(error.where) == f"node {named!r} ({node.op})"
    assert error.expected and error.got and "ZOO_GRAPH_LIMIT" in str(error)


@pytest.mark.parametrize("backend", ["numpy", "native", "torch", "jax"])
@pytest.mark.parametrize("name", DATA)
def test_sizes_that_depend_on_data_are_refused_when_they_are_met(name: str, backend: str, tmp_path: Path) -> None:
    refuses(package(tmp_path / name, graph(DATA[name])), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_input_that_is_left_out_is_not_filled_without_bounds(backend: str, tmp_path: Path) -> None:
    inputs = (Input("x", "float32", ("n", 8)), Input("z", "float32", ("n", HUGE), 0))
    made = graph(lambda g: g("add.Tensor", g("sum", X, rank=0), g("sum", Ref("z"), rank=0), rank=0), inputs)
    error = refuses(package(tmp_path / "filled", made), backend)
    assert "'z'" in str(error.where)


@pytest.mark.parametrize("module", ["torch", "tensorflow", "keras"])
def test_modules_refuse_as_their_models_do(module: str, tmp_path: Path) -> None:
    folder = package(tmp_path / "module", graph(doubled))
    model = zoo.load(folder, module).module
    x = np.ones((2, 8), np.float32)
    given = {"x": torch.from_numpy(x)} if module == "torch" else {"x": x}
    with pytest.raises(LimitError, match="cat"):
        model(given) if module == "keras" else model(**given)


def test_the_limit_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An array a little above what any graph may have, and its half."""

    def large(g: Building) -> Ref:
        return g("sum", g("exp", g("full", (9_000_000,), 0.0, rank=1), rank=1), rank=0)

    folder = package(tmp_path / "large", graph(large))
    refuses(folder, "numpy")
    for factor in ("2", "inf"):
        monkeypatch.setenv("ZOO_GRAPH_LIMIT", factor)
        out = zoo.load(folder, "numpy")(x=np.zeros((2, 8), np.float32))
        assert float(out["y"]) == 9_000_000
    monkeypatch.setenv("ZOO_GRAPH_LIMIT", "many")
    with pytest.raises(LimitError, match="ZOO_GRAPH_LIMIT"):
        zoo.load(folder, "numpy")(x=np.zeros((2, 8), np.float32))


def test_larger_inputs_may_have_larger_results(tmp_path: Path) -> None:
    """Each with each, as attention has it: the limit follows what the caller passes."""
    folder = package(tmp_path / "pairs", graph(lambda g: g("matmul", X, g("t", X))))
    out = zoo.load(folder, "torch")(x=np.ones((4000, 8), np.float32))
    assert tuple(out["y"].shape) == (4000, 4000)


def test_the_command_line_refuses(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, out, err = run("verify", package(tmp_path / "package", graph(products)), "--backend", "numpy")
    assert code and "sym.mul" in out + err


@pytest.mark.parametrize("backend", ["numpy", "native", "torch", "jax"])
def test_half_a_spectrum_has_the_size_that_its_numbers_need(backend: str, tmp_path: Path) -> None:
    """torch's own kernel reads behind the end of a shorter one."""
    made = graph(lambda g: g("_fft_c2r", g("complex", X, X, dtype="complex64"), (1,), 0, HUGE))
    with pytest.raises(ZooError):
        zoo.load(package(tmp_path / "spectrum", made), backend)(x=np.ones((2, 8), np.float32))


def test_strides_reserve_no_memory(tmp_path: Path) -> None:
    made = graph(lambda g: g("new_empty_strided", X, (2, 3), (HUGE, 1)))
    out = zoo.load(package(tmp_path / "strides", made), "torch")(x=np.ones((2, 8), np.float32))
    assert tuple(out["y"].shape) == (2, 3)


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_nodes_that_do_not_fit_each_other_are_named(backend: str, tmp_path: Path) -> None:
    made = graph(lambda g: g("mm", X, X))
    with pytest.raises(GraphError, match=r"node .*mm"):
        zoo.load(package(tmp_path / "misfit", made), backend)(x=np.ones((2, 8), np.float32))
