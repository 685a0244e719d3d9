"""The graph as data: what a file may hold and what is refused, the simplifying pass, and which configs a graph fits."""

from __future__ import annotations

import copy
import gzip
import json
import math
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zoo.graph.io
from zoo.backends.numpy import compile_graph
from zoo.errors import FormatError, GraphError, UnsupportedOp, ZooError
from zoo.graph import DType, Graph, Input, Node, Param, Ref, ValueInfo, load_graph, save_graph
from zoo.graph.key import differences, shaping
from zoo.graph.passes import simplify
from zoo.graph.stored import Box, Stored

FLOATS = ValueInfo("float32", ("batch", 3))
SIZE = ValueInfo("size")


def node(op: str, result: str | tuple[str, ...], *args: Any, info: ValueInfo = FLOATS, **kwargs: Any) -> Node:
    results = (result,) if isinstance(result, str) else result
    return Node(op, args, kwargs, results, (info,) * len(results))


def example() -> Graph:
    """Every kind of thing that a file can hold."""
    return Graph(
        inputs=(Input("x", "float32", ("batch", 4)), Input("mask", "int64", ("batch", 3), default=1)),
        params={
            "fc.weight": Param("fc.weight", "float32", (3, 4), aliases=("tied.weight",)),
            "fc.bias": Param("fc.bias", "float32", (3,)),
            "steps": Param("steps", "int64", (), trainable=False),
        },
        constants={
            "c:table": np.linspace(-1, 1, 3, dtype=np.float32),
            "c:ids": np.arange(3),
        },
        nodes=[
            node("sym_size.int", "n", Ref("x"), 0, info=SIZE),
            node("linear", "h", Ref("x"), Ref("p:tied.weight"), Ref("p:fc.bias")),
            node("add.Tensor", "a", Ref("h"), Ref("c:table"), alpha=2),
            node("gelu", "g", Ref("a"), approximate="tanh"),
            node("full", "low", (Ref("n"), 3), -math.inf, dtype=DType("float32")),
            node("eq.Scalar", "hidden", Ref("mask"), 0, info=ValueInfo("bool", ("batch", 3))),
            node("where.self", "w", Ref("hidden"), Ref("low"), Ref("g")),
            node("max.dim", ("top", "at"), Ref("w"), 1, True, info=ValueInfo("float32", ("batch", 1))),
            node("add.Tensor", "ids", Ref("at"), Ref("c:ids"), info=ValueInfo("int64", ("batch", 3))),
        ],
        outputs={"logits": Ref("w"), "best.0": Ref("top"), "best.1": Ref("ids")},
        symbols={"batch": (1, None)},
        meta={"class": "Example", "config": {"fields": {"a": [1, None, "x"]}}},
        stored=(  # the first row of the weight, and the others as columns
            Stored(
                {"fc.first": (4,), "fc.others": (4, 2)},
                ("fc.weight",),
                (Box(0, 0, (4,), (0, 1), (0, 1)), Box(1, 0, (4, 2), (0, 2, 1), (4, 1, 4))),
            ),
        ),
    )


WEIGHTS = {
    "fc.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "fc.bias": np.array([0.5, -0.5, 0.25], np.float32),
    "steps": np.array(7),
}


def run(graph: Graph) -> dict[str, np.ndarray]:
    x = np.linspace(-2, 3, 20, dtype=np.float32).reshape(5, 4)
    given = {"x": x, "mask": (x[:, :3] > -1).astype(np.int64)}
    return compile_graph(graph)(WEIGHTS, {item.name: given[item.name] for item in graph.inputs})


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)


# Files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_graph(example(), tmp_path / "graph.json.gz")
    return tmp_path / "graph.json.gz"


def read(path: Path) -> dict[str, Any]:
    return json.loads(gzip.decompress(path.read_bytes()))


def write(path: Path, data: Any) -> None:
    path.write_bytes(gzip.compress(data if isinstance(data, bytes) else json.dumps(data).encode(), 1))


def test_round_trip(path: Path) -> None:
    graph, again = example(), load_graph(path)
    for name in ("inputs", "params", "nodes", "outputs", "symbols", "meta"):
        assert getattr(again, name) == getattr(graph, name), name
    assert list(again.outputs) == list(graph.outputs) and list(again.params) == list(graph.params)
    assert same(again.constants, graph.constants)
    assert same(run(again), run(graph))


def test_equal_graphs_are_equal_bytes(path: Path, tmp_path: Path) -> None:
    """Whoever saves, however often, whatever order its constants are in; and a graph that differs differs."""
    graph = load_graph(path)
    graph.constants = dict(reversed(graph.constants.items()))
    save_graph(graph, tmp_path / "again" / "other.json.gz")
    other = tmp_path / "again" / "other.json.gz"
    assert other.read_bytes() == path.read_bytes()
    graph.nodes[3] = replace(graph.nodes[3], kwargs={"approximate": "none"})
    save_graph(graph, other)
    assert other.read_bytes() != path.read_bytes()


@pytest.mark.parametrize("value", [1, 1.0, True, None, -0.0, 2**62, "%x", "", (1, (2, ())), math.inf, -math.inf])
def test_arguments_keep_value_and_type(value: Any, tmp_path: Path) -> None:
    graph = example()
    graph.nodes[3] = replace(graph.nodes[3], kwargs={"approximate": value})
    save_graph(graph, tmp_path / "g.json.gz")
    assert repr(load_graph(tmp_path / "g.json.gz").nodes[3].kwargs["approximate"]) == repr(value)


def test_nan_is_an_argument(tmp_path: Path) -> None:
    graph = example()
    graph.nodes[4] = node("full", "low", (Ref("n"), 3), math.nan)
    save_graph(graph, tmp_path / "g.json.gz")
    assert math.isnan(load_graph(tmp_path / "g.json.gz").nodes[4].args[1])


def test_an_argument_of_another_kind_is_not_stored(tmp_path: Path) -> None:
    graph = example()
    graph.nodes[3] = replace(graph.nodes[3], kwargs={"approximate": object()})
    with pytest.raises(GraphError, match="object"):
        save_graph(graph, tmp_path / "g.json.gz")
    assert not list(tmp_path.iterdir())


def bytes_of(change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def text_of(change: Callable[[str], str]) -> Callable[[Path], None]:
    return lambda path: write(path, change(gzip.decompress(path.read_bytes()).decode()).encode())


NOT_A_GRAPH: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (bytes_of(lambda b: b[: len(b) // 2]), "truncated"),
    "truncated by a byte": (bytes_of(lambda b: b[:-1]), "truncated"),
    "empty": (bytes_of(lambda b: b""), "truncated"),
    "garbage behind": (bytes_of(lambda b: b + b"garbage"), "truncated or not gzip"),
    "a byte changed": (bytes_of(lambda b: b[:40] + bytes([b[40] ^ 255]) + b[41:]), "truncated or not gzip"),
    "not gzip": (bytes_of(gzip.decompress), "not gzip"),
    "a pickle": (bytes_of(lambda b: b"\x80\x04cos\nsystem\n(S'false'\ntR."), "not gzip"),
    "not text": (lambda path: write(path, b"\xff\xfe\xff"), "UnicodeDecodeError|JSONDecodeError"),
    "half of its JSON": (text_of(lambda s: s[: len(s) // 2]), "JSONDecodeError"),
    "a key twice": (text_of(lambda s: s.replace('"meta":', '"format":1,"meta":', 1)), "twice"),
    "an argument twice": (text_of(lambda s: s.replace('{"alpha":2}', '{"alpha":2,"alpha":3}')), "twice"),
    "NaN": (text_of(lambda s: s.replace('{"alpha":2}', '{"alpha":NaN}')), "NaN is not JSON"),
    "deep": (lambda path: write(path, b"[" * 100_000 + b"]" * 100_000), "RecursionError"),
    "a huge number": (text_of(lambda s: s.replace('"alpha":2', '"alpha":' + "9" * 10_000)), "ValueError"),
    "a list": (lambda path: write(path, []), "got: list"),
    "another version": (lambda path: write(path, read(path) | {"format": 2}), "expected: format 1(.|\n)*got: 2"),
    "a version of another kind": (lambda path: write(path, read(path) | {"format": True}), "expected: format 1"),
    "no version": (
        lambda path: write(path, {k: v for k, v in read(path).items() if k != "format"}),
        "expected: format 1",
    ),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "IsADirectory|PermissionError"),
    "missing": (lambda path: path.unlink(), "no graph file"),
}


@pytest.mark.parametrize("case", NOT_A_GRAPH)
def test_what_is_no_graph_file(path: Path, case: str) -> None:
    spoil, message = NOT_A_GRAPH[case]
    spoil(path)
    with pytest.raises(FormatError, match=message) as caught:
        load_graph(path)
    assert str(path) in str(caught.value.where) and caught.value.do


def test_a_bomb(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is unpacked than the limit; a kilobyte that unpacks to a megabyte stands for gigabytes."""
    write(path, b" " * 2**20)
    assert path.stat().st_size < 2**13
    monkeypatch.setattr(zoo.graph.io, "_LIMIT", 2**19)
    asked = []
    opened = gzip.open

    def watched(*args: Any) -> Any:
        stream = opened(*args)
        unpack = stream.read
        stream.read = lambda size=-1: asked.append(size) or unpack(size)
        return stream

    monkeypatch.setattr(gzip, "open", watched)
    with pytest.raises(FormatError, match="unpacks to more") as caught:
        load_graph(path)
    assert asked == [2**19 + 1]
    assert caught.value.where == path and str(2**19) in str(caught.value.expected) and caught.value.do


def test_a_graph_of_more_values_than_any_has_is_not_taken_apart(tmp_path):
    """58 KB of empty lists, which would take 1.5 GB as lists."""
    path = tmp_path / "many.json.gz"
    path.write_bytes(gzip.compress(b'{"format":1,"nodes":[' + b"[]," * 20_000_000 + b"[]]}"))
    assert path.stat().st_size < 60_000
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="unpacks to more"):
            load_graph(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * (60 << 20)
    finally:
        tracemalloc.stop()


def change(*keys: Any, to: Any) -> Callable[[Any], None]:
    """Puts `to` (or what it makes of the old) at a place in the JSON."""

    def apply(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = to(data[keys[-1]]) if callable(to) else to

    return apply


def nested(depth: int) -> Any:
    return [] if not depth else [nested(depth - 1)]


# which part of the JSON to change, the error, and what its text says; nodes: 1 linear, 2 add, 3 gelu, 4 full, 7 max
REFUSED: dict[str, tuple[Callable[[Any], Any], type[ZooError], str]] = {
    "unknown op": (change("nodes", 1, 0, to="linaer"), UnsupportedOp, "node 'h'(.|\n)*linaer"),
    "os.system": (change("nodes", 1, 0, to="os.system"), UnsupportedOp, "node 'h'(.|\n)*os.system"),
    "__import__": (change("nodes", 1, 0, to="__import__"), UnsupportedOp, "node 'h'(.|\n)*__import__"),
    "__class__": (change("nodes", 1, 0, to="linear.__class__"), UnsupportedOp, "node 'h'(.|\n)*__class__"),
    "an op of torch outside the table": (change("nodes", 1, 0, to="from_file"), UnsupportedOp, "from_file"),
    "another library's op": (change("nodes", 1, 0, to="quantized::linear"), UnsupportedOp, "quantized::linear"),
    "an op that is no text": (change("nodes", 1, 0, to=5), FormatError, "expected a name, got 5"),
    "too few arguments": (change("nodes", 1, 1, to=["%x"]), GraphError, "'h' \\(linear\\)(.|\n)*weight"),
    "too many arguments": (change("nodes", 3, 1, to=["%a", 1, 2]), GraphError, "'g' \\(gelu\\)(.|\n)*too many"),
    "unknown argument": (change("nodes", 3, 2, to={"shell": "=true"}), GraphError, "'g' \\(gelu\\)(.|\n)*shell"),
    "an argument given twice": (change("nodes", 1, 2, to={"x": "%x"}), GraphError, "'h' \\(linear\\)(.|\n)*multiple"),
    "the namespace as an argument": (change("nodes", 3, 2, to={"xp": "%x"}), GraphError, "multiple values"),
    "arguments that are no list": (change("nodes", 1, 1, to=5), FormatError, "not iterable"),
    "a dangling value": (change("nodes", 1, 1, 0, to="%y"), GraphError, "'h' \\(linear\\)(.|\n)*got: y"),
    "a dangling value in a list": (change("nodes", 4, 1, 0, 0, to="%m"), GraphError, "'low' \\(full\\)(.|\n)*got: m"),
    "a value used before it is there": (change("nodes", 1, 1, 0, to="%g"), GraphError, "'h' \\(linear\\)(.|\n)*got: g"),
    "a value that needs itself": (change("nodes", 1, 1, 0, to="%h"), GraphError, "'h' \\(linear\\)(.|\n)*got: h"),
    "a value defined twice": (change("nodes", 3, 3, 0, 0, to="a"), GraphError, "defined twice(.|\n)*gelu(.|\n)*got: a"),
    "one op's results alike": (change("nodes", 7, 3, 1, 0, to="top"), GraphError, "defined twice(.|\n)*got: top"),
    "a node over an input": (change("nodes", 1, 3, 0, 0, to="x"), GraphError, "defined twice(.|\n)*got: x"),
    "a node over a parameter": (change("nodes", 1, 3, 0, 0, to="p:fc.bias"), GraphError, "defined twice"),
    "a node over a constant": (change("nodes", 1, 3, 0, 0, to="c:ids"), GraphError, "defined twice"),
    "a node without results": (change("nodes", 1, 3, to=[]), GraphError, "no result(.|\n)*linear"),
    "inputs alike": (change("inputs", 1, 0, to="x"), GraphError, "defined twice(.|\n)*input 'x'"),
    "parameters alike": (change("params", 1, 0, to="fc.weight"), FormatError, "two parameters have one name"),
    "an alias that is a parameter": (change("params", 0, 4, to=["fc.bias"]), GraphError, "defined twice"),
    "an input's dtype": (change("inputs", 0, 1, to="float31"), GraphError, "input 'x'(.|\n)*float31"),
    "a parameter's dtype": (change("params", 0, 1, to="object"), GraphError, "'fc.weight'(.|\n)*got: object"),
    "a result's dtype": (change("nodes", 1, 3, 0, 1, to="O"), GraphError, "'h' \\(linear\\)(.|\n)*got: O"),
    "a dtype as an argument": (change("nodes", 4, 2, "dtype", to="@load"), GraphError, "'low' \\(full\\)(.|\n)*load"),
    "a dtype that is no text": (change("inputs", 0, 1, to=None), FormatError, "expected a name, got None"),
    "an input's negative size": (change("inputs", 0, 2, 1, to=-4), FormatError, "expected a size, got -4"),
    "a parameter's negative size": (change("params", 0, 2, 0, to=-1), FormatError, "expected a size, got -1"),
    "a result's negative size": (change("nodes", 1, 3, 0, 2, 1, to=-3), FormatError, "expected a size, got -3"),
    "a size that is a bool": (change("params", 0, 2, 0, to=True), FormatError, "expected a size, got True"),
    "a broken size": (change("params", 0, 2, 0, to=1.5), FormatError, "expected a size, got 1.5"),
    "a symbol in a parameter": (change("params", 0, 2, 0, to="batch"), FormatError, "expected a size, got 'batch'"),
    "a size beyond all memory": (change("params", 0, 2, 0, to=2**63), FormatError, "expected a size"),
    "an unknown symbol": (change("inputs", 0, 2, 0, to="rows"), GraphError, "input 'x'(.|\n)*got: rows"),
    "a symbol's range": (change("symbols", "batch", to=[-1, None]), FormatError, "expected a size, got -1"),
    "a symbol's empty range": (change("symbols", "batch", to=[5, 4]), GraphError, "batch(.|\n)*5 to 4"),
    "a default that is text": (change("inputs", 1, 3, to="1"), FormatError, "expected a number, got '1'"),
    "a default that is a list": (change("inputs", 1, 3, to=[1]), FormatError, "expected a number"),
    "an output that is nothing": (change("outputs", "logits", to="y"), GraphError, "output 'logits'(.|\n)*'y'"),
    "an output that is a number": (change("outputs", "logits", to=3), FormatError, "expected a name, got 3"),
    "no outputs": (change("outputs", to={}), GraphError, "no outputs"),
    "text without a kind": (change("nodes", 3, 2, "approximate", to="tanh"), FormatError, "'tanh' has no kind"),
    "empty text": (change("nodes", 3, 2, "approximate", to=""), FormatError, "'' has no kind"),
    "an object as an argument": (
        change("nodes", 3, 2, "approximate", to={"__reduce__": []}),
        FormatError,
        "__reduce__",
    ),
    "a number of no kind": (change("nodes", 4, 1, 1, to={"f": "1e999"}), FormatError, "1e999"),
    "deep arguments": (change("nodes", 4, 1, 0, to=nested(60)), FormatError, "deep"),
    "a missing field": (lambda data: data.pop("symbols"), FormatError, "KeyError: 'symbols'"),
    "a short record": (change("inputs", 0, to=["x", "float32"]), FormatError, "not enough values"),
    "constants that are a list": (change("constants", to=["c:ids"]), FormatError, "AttributeError"),
    "no constants": (change("constants", to={}), GraphError, "nothing defines"),
    "a constant of too few bytes": (change("constants", "c:ids", 2, to="AAAA"), FormatError, "ValueError"),
    "a constant that is not base64": (change("constants", "c:ids", 2, to="%%%%"), FormatError, "Error"),
    "a constant of an unknown dtype": (change("constants", "c:ids", 0, to="object"), FormatError, "expected a dtype"),
    "a box outside its tensor": (change("stored", 0, 2, 1, 3, 0, to=1), GraphError, "outside(.|\n)*within 8 values"),
    "a box outside its parameter": (
        change("stored", 0, 2, 1, 4, 2, to=5),
        GraphError,
        "outside(.|\n)*in 12 values",
    ),
    "a box before its tensor": (change("stored", 0, 2, 0, 3, 0, to=-1), FormatError, "expected a size, got -1"),
    "a box of no tensor": (change("stored", 0, 2, 0, 0, to=2), GraphError, "no tensor of its group"),
    "a box without values": (change("stored", 0, 2, 0, 2, 0, to=0), GraphError, "no such sizes"),
    "a box with too few strides": (change("stored", 0, 2, 0, 3, to=[0]), GraphError, "an offset and 1 strides"),
    "a box of too many axes": (
        change("stored", 0, 2, 0, to=[0, 0, [1] * 65, [0] * 66, [0] * 66]),
        GraphError,
        "no such sizes",
    ),
    "a short box": (change("stored", 0, 2, 0, to=[0, 0, [4], [0, 1]]), FormatError, "TypeError"),
    "boxes that leave values out": (
        change("stored", 0, 2, 0, 2, 0, to=3),
        GraphError,
        "'fc.first'(.|\n)*4 values(.|\n)*3",
    ),
    "boxes that repeat values": (
        change("stored", 0, 2, to=lambda old: [*old, old[0]]),
        GraphError,
        "4 values(.|\n)*got: 8",
    ),
    "a tensor of no values": (
        change("stored", 0, 0, to=lambda old: [*old, ["fc.none", [0]]]),
        GraphError,
        "'fc.none'(.|\n)*some values(.|\n)*got: 0",
    ),
    "a tensor of an unknown parameter": (change("stored", 0, 1, 0, to="fc"), GraphError, "unknown parameter"),
    "a tensor in two groups": (change("stored", to=lambda old: [*old, *old]), GraphError, "two groups"),
    "a group without boxes": (change("stored", 0, 2, to=[]), GraphError, "cover"),
    "groups that are no list": (change("stored", to=5), FormatError, "not iterable"),
    "a constant of a negative size": (change("constants", "c:ids", 1, 0, to=-1), FormatError, "expected a size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_capture_writes(path: Path, case: str) -> None:
    alter, kind, message = REFUSED[case]
    data = read(path)
    alter(data)
    write(path, data)
    with pytest.raises(ZooError, match=message) as caught:
        load_graph(path)
    assert type(caught.value) is kind
    assert "graph." in str(caught.value.where), "the file is named"
    assert caught.value.do, "there is something to do"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 2**31, 2**64, 10**30])
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(
        ["%x", "%h", "%", "@float32", "@", "=", "p:fc.bias", "batch", "size", "linear", "sym.max", "float32"]
    ),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["f", "x", "dtype"]), inner, max_size=2)
    ),
    max_leaves=8,
)


def places(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at] if at else []
    for key, item in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        found += places(item, (*at, key))
    return found


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draws=st.data())
def test_whatever_is_changed_loads_or_is_refused(path: Path, draws: st.DataObject) -> None:
    """Between one and three changes anywhere in the JSON: another value, one fewer, or one from elsewhere."""
    original = path.read_bytes()
    data = read(path)
    for _ in range(draws.draw(st.integers(1, 3))):
        *keys, last = draws.draw(st.sampled_from(places(data)))
        parent = data
        for key in keys:
            parent = parent[key]
        what = draws.draw(st.sampled_from(["replace", "remove", "copy"]))
        if what == "remove":
            del parent[last]
        elif what == "copy":
            source = data
            for key in draws.draw(st.sampled_from(places(data) or [()])):
                source = source[key]
            parent[last] = copy.deepcopy(source)
        else:
            parent[last] = draws.draw(JSON)
        if not places(data):
            break
    try:
        write(path, data)
        graph = load_graph(path)
    except ZooError as error:
        assert error.where is not None
    else:
        graph.validate()
        save_graph(graph, path.with_name("again.json.gz"))
        assert load_graph(path.with_name("again.json.gz")).nodes == graph.nodes
    finally:
        path.write_bytes(original)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), byte=st.integers(1, 255), packed=st.booleans())
def test_a_changed_byte_loads_or_is_refused(path: Path, position: int, byte: int, packed: bool) -> None:
    original = path.read_bytes()
    data = bytearray(original if packed else gzip.decompress(original))
    data[position % len(data)] ^= byte
    path.write_bytes(data) if packed else write(path, bytes(data))
    try:
        load_graph(path)
    except ZooError as error:
        assert error.where is not None
    finally:
        path.write_bytes(original)


# Validation of graphs made in memory


def test_a_graph_made_in_memory_is_validated() -> None:
    graph = example()
    graph.validate()
    graph.nodes[1] = replace(graph.nodes[1], infos=())
    with pytest.raises(GraphError, match="'h' \\(linear\\)"):
        graph.validate()
    with pytest.raises(GraphError, match="output 'logits'"):
        replace(example(), outputs={"logits": 5}).validate()
    with pytest.raises(GraphError, match="float31"):
        replace(example(), inputs=(Input("x", "float31", ("batch", 4)),)).validate()


def test_counts_and_uses() -> None:
    graph = example()
    assert graph.op_counts()["add.Tensor"] == 2 and sum(graph.op_counts().values()) == len(graph.nodes)
    assert graph.parameter_count() == 3 * 4 + 3, "the tied one once, the step counter not at all"
    assert [(n.name, position) for n, position in graph.uses("fc.weight")] == [("h", 1)]


# The simplifying pass

X, INTS = Ref("x"), ValueInfo("int64", ("batch", 3))


def graph_of(*nodes: Node, outputs: list[str], inputs: tuple[Input, ...] | None = None) -> Graph:
    base = example()
    return replace(base, nodes=list(nodes), outputs={name: Ref(name) for name in outputs}, inputs=inputs or base.inputs)


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes]


@pytest.mark.parametrize(
    "made",
    [
        node("slice.Tensor", "s", X, 1),
        node("slice.Tensor", "s", X, 0, 0),
        node("slice.Tensor", "s", X, 1, None, None),
        node("slice.Tensor", "s", X, 1, 0, 2**63 - 1),
        node("slice.Tensor", "s", X, 1, 0, 2**63 - 1, 1),
        node("add.Tensor", "s", Ref("mask"), 0),
        node("sub.Tensor", "s", Ref("mask"), 0),
    ],
    ids=lambda made: f"{made.op}{made.args[1:]}",
)
def test_identities_are_removed(made: Node) -> None:
    graph = graph_of(made, node("abs", "y", Ref("s")), outputs=["y", "s"])
    simple = simplify(graph)
    assert ops(simple) == ["abs"] and simple.outputs["s"] == made.args[0]
    assert same(run(simple), run(graph))


@pytest.mark.parametrize(
    "made",
    [
        node("slice.Tensor", "s", X, 1, 1),
        node("slice.Tensor", "s", X, 1, 0, 3),
        node("slice.Tensor", "s", X, 1, 0, -1),
        node("slice.Tensor", "s", X, 1, 0, None, 2),
        node("slice.Tensor", "s", X, 1, step=2),
        node("slice.Tensor", "s", X, 1, start=1),
        node("add.Tensor", "s", X, 0),  # -0.0 + 0 is 0.0
        node("add.Tensor", "s", Ref("mask"), 0.0),  # becomes a float
        node("add.Tensor", "s", Ref("mask"), False),
        node("add.Tensor", "s", Ref("mask"), 1),
        node("mul.Tensor", "s", X, 1),
    ],
    ids=lambda made: f"{made.op}{made.args[1:]}{dict(made.kwargs)}",
)
def test_what_only_resembles_an_identity_stays(made: Node) -> None:
    graph = graph_of(made, outputs=["s"])
    assert ops(simplify(graph)) == [made.op]
    assert same(run(simplify(graph)), run(graph))


def test_repeats_are_merged_and_all_that_follows_from_them() -> None:
    graph = graph_of(
        *(node("mul.Tensor", f"m{i}", X, 2.0) for i in range(3)),
        *(node("max.dim", (f"t{i}", f"i{i}"), Ref(f"m{i}"), 1) for i in range(3)),
        *(node("full", f"f{i}", (2, 3), math.inf, dtype=DType("float32")) for i in range(3)),
        node("add.Tensor", "y", Ref("t1"), Ref("t2")),
        node("add.Tensor", "z", Ref("f0"), Ref("f2")),
        outputs=["y", "z", "m2", "i2"],
    )
    simple = simplify(graph)
    assert ops(simple) == ["mul.Tensor", "max.dim", "full", "add.Tensor", "add.Tensor"]
    assert same(run(simple), run(graph))


def test_1_and_true_are_not_one_number() -> None:
    """Python calls them equal, and a dtype follows from which it is; nor are 0.0 and -0.0, or "a" and a value a."""
    numbers = [1, 1.0, True, 0, 0.0, -0.0, False]
    graph = graph_of(
        *(node("full", f"f{i}", (2,), number) for i, number in enumerate(numbers)),
        node("gelu", "g", X, approximate="none"),
        node("gelu", "h", X, approximate="tanh"),
        outputs=[f"f{i}" for i in range(len(numbers))] + ["g", "h"],
    )
    simple = simplify(graph)
    assert len(simple.nodes) == len(graph.nodes)
    assert same(run(simple), run(graph))


@pytest.mark.parametrize(
    "op", ["rand", "randn", "rand_like", "bernoulli.p", "dropout", "native_dropout", "multinomial"]
)
def test_two_draws_are_not_one(op: str) -> None:
    graph = graph_of(node(op, "a", X), node(op, "b", X), node("add.Tensor", "y", Ref("a"), Ref("b")), outputs=["y"])
    assert ops(simplify(graph)) == [op, op, "add.Tensor"]


def test_what_nothing_needs_is_dropped() -> None:
    graph = example()
    graph.outputs = {"best.1": graph.outputs["best.1"]}
    graph.nodes += [node("abs", "unused", Ref("w")), node("abs", "unused too", Ref("unused"))]
    simple = simplify(graph)
    assert len(simple.nodes) == len(graph.nodes) - 2
    assert same(run(simple), run(graph))
    graph.outputs = {"half": Ref("h")}
    simple = simplify(graph)
    assert ops(simple) == ["linear"] and not simple.constants
    assert simple.inputs == graph.inputs and simple.params == graph.params, "they are the model's interface"
    assert same(run(simple), run(graph))


def test_names_are_numbers_apart_from_the_inputs() -> None:
    graph = graph_of(
        node("abs", "a", Ref("v1")),
        node("add.Tensor", "b", Ref("a"), Ref("v0")),
        outputs=["b"],
        inputs=(Input("v0", "float32", ("batch", 4)), Input("v1", "float32", ("batch", 4))),
    )
    simple = simplify(graph)
    simple.validate()
    assert [n.name for n in simple.nodes] == ["v2", "v3"]
    graph = simplify(example())
    assert [name for n in graph.nodes for name in n.outputs] == [f"v{i}" for i in range(10)]


def test_simplifying_changes_no_result_and_happens_once(tmp_path: Path) -> None:
    simple = simplify(example())
    simple.validate()
    assert same(run(simple), run(example()))
    assert simplify(simple).nodes == simple.nodes


# Whether a config is that of a graph


def record(config: Any) -> dict[str, Any]:
    """What a capture remembers of a config."""
    from zoo.capture.huggingface.classes import defaults as _defaults
    from zoo.capture.huggingface.classes import plain as _plain

    fields = _plain(shaping(config.to_dict()))
    return {"fields": fields, "defaults": _defaults(type(config), fields), "aliases": dict(config.attribute_map)}


@pytest.fixture(scope="module")
def records() -> dict[str, dict[str, Any]]:
    import tiny

    return {name: record(tiny.config(name)) for name in ("bert", "qwen3", "gpt2", "clip", "llama")}


def config_of(model_type: str) -> dict[str, Any]:
    """The config.json that transformers writes."""
    import tiny

    return json.loads(tiny.config(model_type).to_json_string(use_diff=False))


@pytest.mark.parametrize("model_type", ["bert", "qwen3", "gpt2", "clip", "llama"])
def test_a_config_is_its_own(records: dict[str, Any], model_type: str) -> None:
    import tiny

    full, short = config_of(model_type), tiny.config(model_type).to_diff_dict()
    assert differences(full, records[model_type]) == []
    assert len(short) < len(full)
    assert differences(json.loads(json.dumps(short)), records[model_type]) == []
    assert json.loads(json.dumps(records[model_type])) == records[model_type], "it is kept as JSON"


def test_fields_left_out_have_the_class_defaults(records: dict[str, Any]) -> None:
    config = config_of("bert")
    for name in ("layer_norm_eps", "hidden_act", "pad_token_id", "type_vocab_size"):
        del config[name]
    assert differences(config, records["bert"]) == []
    del config["hidden_size"]
    assert differences(config, records["bert"]) == ["hidden_size: 768, the graph has 24"]


def test_fields_that_follow_from_others(records: dict[str, Any]) -> None:
    """Old configs have no layer_types; transformers derives them from the number of layers."""
    config = config_of("qwen3")
    assert len(config.pop("layer_types")) == config["num_hidden_layers"]
    assert differences(config, records["qwen3"]) == []
    assert differences(config | {"layer_types": ["full_attention", "sliding_attention"]}, records["qwen3"])


@pytest.mark.parametrize(
    ("spelling", "fits"),
    [
        ({"rope_theta": 10000.0}, True),
        ({"rope_theta": 10000}, True),
        ({}, True),
        ({"rope_theta": 10000.0, "rope_scaling": None}, True),
        ({"rope_scaling": {"type": "default"}, "rope_theta": 10000.0}, True),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, True),
        ({"rope_parameters": {"rope_theta": 10000.0}}, True),
        ({"rope_theta": 500000.0}, False),
        ({"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}, False),
        ({"rope_theta": 10000.0, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, False),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}, False),
    ],
)
def test_both_spellings_of_rotary_settings(records: dict[str, Any], spelling: dict[str, Any], fits: bool) -> None:
    config = {k: v for k, v in config_of("llama").items() if not k.startswith("rope_")} | spelling
    found = differences(config, records["llama"])
    assert (
        not found if fits else [line.split(":")[0].split(".")[0] for line in found] == ["rope_parameters"] * len(found)
    )
    assert bool(found) is not fits


@pytest.mark.parametrize("name", ["n_embd", "hidden_size"])
def test_renamed_attributes(records: dict[str, Any], name: str) -> None:
    config = config_of("gpt2")
    size = config.pop("n_embd")
    assert differences(config | {name: size}, records["gpt2"]) == []
    assert differences(config | {name: size + 8}, records["gpt2"]) == [f"n_embd: {size + 8}, the graph has {size}"]


@pytest.mark.parametrize(
    "ignored",
    [
        {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.7},
        {"initializer_range": 1.0},
        {"architectures": ["SomethingElse"], "_name_or_path": "elsewhere", "transformers_version": "4.1"},
        {"torch_dtype": "float16", "dtype": "float16"},
        {"use_cache": True, "output_attentions": False, "gradient_checkpointing": True},
        {"task_specific_params": {"a": 1}, "finetuning_task": "mnli"},
        {"bos_token_id": 77, "num_beams": 4, "max_length": 12},
        {"a_field_of_the_future": 5},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_fields_that_shape_nothing(records: dict[str, Any], ignored: dict[str, Any]) -> None:
    assert differences(config_of("bert") | ignored, records["bert"]) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"hidden_size": 32},
        {"num_hidden_layers": 3},
        {"num_attention_heads": 8},
        {"intermediate_size": 38},
        {"vocab_size": 62},
        {"max_position_embeddings": 32},
        {"type_vocab_size": 3},
        {"hidden_act": "gelu_new"},
        {"hidden_act": None},
        {"layer_norm_eps": 1e-5},
        {"pad_token_id": 3},
        {"is_decoder": True},
        {"is_decoder": 0},  # no bool: whoever wrote it meant something else
    ],
    ids=lambda fields: "-".join(f"{k}-{v}" for k, v in fields.items()),
)
def test_fields_that_shape_the_network(records: dict[str, Any], changed: dict[str, Any]) -> None:
    (name,) = changed
    (line,) = differences(config_of("bert") | changed, records["bert"])
    assert line.startswith(f"{name}: {changed[name]!r}, the graph has ")


def test_labels_count_by_number_not_by_name(records: dict[str, Any]) -> None:
    config = config_of("bert")
    named = {"id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": 0, "dog": 1}}
    assert differences(config | named, records["bert"]) == []
    named["id2label"] = {"0": "cat", "1": "dog", "2": "cow"}
    assert differences(config | named, records["bert"]) == ["num_labels: 3, the graph has 2"]


def test_configs_inside_a_config(records: dict[str, Any]) -> None:
    config = config_of("clip")
    text = config["text_config"]
    changed = config | {"text_config": text | {"hidden_act": "gelu"}}
    assert differences(changed, records["clip"]) == [
        f"text_config.hidden_act: 'gelu', the graph has {text['hidden_act']!r}"
    ]
    assert differences(config | {"text_config": text | {"dropout": 0.5}}, records["clip"]) == []
