"""Graphs on the native engine: what passes join computes the same, and a recorded run is right for other values."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny
from tolerances import TOLERANCES

from zoo.backends import native, numpy
from zoo.errors import ZooError
from zoo.graph.ir import Graph, Input, Node, Param, Ref, ValueInfo, refs
from zoo.graph.passes import fuse
from zoo.model import prepare_inputs
from zoo.native import kernels
from zoo.tolerances import PRODUCTS

PER_TYPE = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in tiny.TYPES]


@pytest.mark.parametrize("model_type", PER_TYPE)
def test_a_recorded_run_is_right_for_other_values(captured: Callable[..., Any], model_type: str) -> None:
    graph, params = captured(model_type)
    run = native.compile_graph(graph)
    first, second = (
        prepare_inputs(graph.inputs, graph.symbols, tiny.inputs(model_type, 2, 7, seed=seed)) for seed in (0, 1)
    )
    for name in second:  # another row is padded
        if name.endswith("attention_mask"):
            second[name] = second[name][::-1].copy()
    alone = run(params, first)  # weights as they lie; from here on they are packed
    recorded = run(params, first)
    replayed = run(params, second)
    fresh = native.compile_graph(graph)(params, second)
    again = run(params, first)
    for name in fresh:
        assert np.array_equal(replayed[name], fresh[name], equal_nan=True), name
        assert np.array_equal(recorded[name], alone[name], equal_nan=True), name
        assert np.array_equal(again[name], alone[name], equal_nan=True), name


FIRES = {
    "bert": {"native::linear": 9, "native::norm": 5, "native::attention": 2, "native::mask": 1},
    "llama": {"native::linear": 8, "native::norm": 5, "native::gated": 2, "native::attention": 2, "native::mask": 1},
    "resnet": {"native::conv": 16},
    "t5": {"native::norm": 15},
}
"""Model type -> how often each joined node stands in its graph."""


@pytest.mark.parametrize("model_type", [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in FIRES])
def test_passes_fire_and_change_nothing(
    captured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    graph, params = captured(model_type)
    joined = fuse.fused(graph)
    counts = joined.op_counts()
    assert {op: counts.get(op, 0) for op in FIRES[model_type]} == FIRES[model_type]
    assert not {"linear", "gelu", "silu", "layer_norm", "_native_batch_norm_legit_no_training"} & counts.keys()
    inputs = prepare_inputs(graph.inputs, graph.symbols, tiny.inputs(model_type, 3, 9))
    got = native.compile_graph(graph)(params, inputs)
    monkeypatch.setattr(native, "fused", lambda graph: graph)
    plain = native.compile_graph(graph)(params, inputs)
    for name in plain:
        agree(got[name], plain[name])


@pytest.mark.parametrize("training", [False, True])
def test_batch_norms_of_packaged_graphs_are_folded(training: bool) -> None:
    """They stand as `batch_norm`, with whether it trains among its arguments."""
    info = (ValueInfo("float32", (1, 4, 8, 8)),)
    nodes = [
        Node("conv2d", (Ref("image"), Ref("p:kernel")), {}, ("x",), info),
        Node("batch_norm", (Ref("x"), *[Ref("p:scale")] * 4, training, 0.1, 1e-5, False), {}, ("y",), info),
    ]
    params = {name: Param(name, "float32", shape) for name, shape in (("scale", (4,)), ("kernel", (4, 3, 1, 1)))}
    graph = Graph((Input("image", "float32", (1, 3, 8, 8)),), params, {}, nodes, {"y": Ref("y")})
    counts = fuse.convolutions(graph).op_counts()
    assert counts == ({"native::conv": 1, "batch_norm": 1} if training else {"native::conv": 1})


def residual_block() -> tuple[Graph, dict[str, np.ndarray]]:
    """A stem and a block as in a ResNet: the channels fill vectors, 3 x 3 windows move by one, sizes are free."""
    rng = np.random.default_rng(0)
    params: dict[str, np.ndarray] = {}
    nodes: list[Node] = []

    def add(op: str, *args: Any, height: str) -> Ref:
        nodes.append(Node(op, args, {}, (f"v{len(nodes)}",), (ValueInfo("float32", ("n", 32, height, height)),)))
        return Ref(nodes[-1].name)

    def layer(x: Ref, kernel: int, stride: int, channels: int, height: str) -> Ref:
        name = f"layer{len(nodes)}"
        params[f"{name}.kernel"] = rng.standard_normal((32, channels, kernel, kernel)).astype(np.float32)
        for part in ("scale", "shift", "mean", "variance"):
            params[f"{name}.{part}"] = rng.uniform(0.5, 2, 32).astype(np.float32)
        y = add("conv2d", x, Ref(f"p:{name}.kernel"), None, (stride,) * 2, (kernel // 2,) * 2, height=height)
        norm = [Ref(f"p:{name}.{part}") for part in ("scale", "shift", "mean", "variance")]
        return add("batch_norm", y, *norm, False, 0.1, 1e-5, False, height=height)

    stem = add("relu", layer(Ref("image"), 7, 2, 3, "half"), height="half")
    x = add("max_pool2d", stem, (3, 3), (2, 2), (1, 1), height="quarter")
    y = add("relu", layer(x, 3, 1, 32, "quarter"), height="quarter")
    y = add("add.Tensor", layer(y, 1, 1, 32, "quarter"), x, height="quarter")
    y = add("relu", y, height="quarter")
    described = {name: Param(name, "float32", array.shape) for name, array in params.items()}
    return Graph((Input("image", "float32", ("n", 3, "h", "w")),), described, {}, nodes, {"y": y}), params


def test_a_residual_block_is_four_nodes_that_hand_on_the_order_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, params = residual_block()
    params = unwritable(params)
    assert fuse.fused(graph).op_counts() == {"native::conv": 3, "max_pool2d": 1}
    copied = []
    copy = kernels.copy
    monkeypatch.setattr(kernels, "copy", lambda x: copied.append(x.shape) or copy(x))
    run = native.compile_graph(graph)
    run(params, {"image": np.ones((1, 3, 20, 20), np.float32)})  # the first call is not recorded
    copied.clear()
    for shape in ((2, 3, 40, 36), (1, 3, 23, 57)):
        image = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        expected = numpy.compile_graph(graph)(params, {"image": image})["y"]
        for _ in range(2):
            got = run(params, {"image": image})["y"]
            assert got.flags.c_contiguous
            agree(got, expected)
        # the image alone, when it is recorded
        assert copied == [(shape[0], *shape[2:], 3)]
        copied.clear()


ZEROS = ((0, 1, 2, 0), "constant", 0.0)


@pytest.mark.parametrize(
    ("pad", "limits", "counts"),
    [
        (ZEROS, (0.0, 6.0), {"native::conv": 1}),
        (((1, 0),), (0.0, 6.0), {"native::conv": 1}),
        (((1, -1, 0, 0),), (0.0, 6.0), {"pad": 1, "native::conv": 1}),
        (((1, 1, 1, 1), "constant", 1.0), (0.0, 6.0), {"pad": 1, "native::conv": 1}),
        (ZEROS, (-1.0, 1.0), {"native::conv": 1, "hardtanh": 1}),
    ],
)
def test_zeros_around_an_image_and_relu6_are_the_convolution_s(pad: Any, limits: Any, counts: dict[str, int]) -> None:
    info = (ValueInfo("float32", ("n", 20, "h", "w")),)
    nodes = [
        Node("pad", (Ref("image"), *pad), {}, ("wide",), info),
        Node("conv2d", (Ref("wide"), Ref("p:kernel"), None, (2, 2), (0, 1)), {}, ("x",), info),
        Node("hardtanh", (Ref("x"), *limits), {}, ("y",), info),
    ]
    params = {"kernel": np.random.default_rng(0).standard_normal((20, 4, 3, 3)).astype(np.float32)}
    described = {"kernel": Param("kernel", "float32", (20, 4, 3, 3))}
    graph = Graph((Input("image", "float32", ("n", 4, "h", "w")),), described, {}, nodes, {"y": Ref("y")})
    assert fuse.fused(graph).op_counts() == counts
    feed = {"image": np.random.default_rng(1).standard_normal((2, 4, 9, 8)).astype(np.float32)}
    agree(native.compile_graph(graph)(params, feed)["y"], numpy.compile_graph(graph)(params, feed)["y"])


def agree(got: np.ndarray, expected: np.ndarray) -> None:
    limit = TOLERANCES["native", "float32"] * np.abs(expected).max()
    assert got.shape == expected.shape and np.abs(got - expected).max() <= limit


def unwritable(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As a mapped file's are: only such weights are packed once, since nobody can change them in between."""
    views = {name: array.view() for name, array in params.items()}
    for view in views.values():
        view.flags.writeable = False
    return views


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("model_type", [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in (*FIRES, "vit")])
def test_linear_layers_in_less_than_float32(
    captured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, model_type: str, precision: str
) -> None:
    graph, params = captured(model_type)
    inputs = prepare_inputs(graph.inputs, graph.symbols, tiny.inputs(model_type, 3, 9))
    expected = native.compile_graph(graph)(params, inputs)
    params = unwritable(params)
    asked = []
    pack = kernels.pack_weight
    monkeypatch.setattr(kernels, "pack_weight", lambda weight, kind: asked.append(kind) or pack(weight, kind))
    run = native.compile_graph(graph, precision=precision)
    first, second = run(params, inputs), run(params, inputs)
    counts = fuse.fused(graph).op_counts()
    assert asked == [precision] * counts.get("native::linear", 0)
    for name, exact in expected.items():
        assert first[name].dtype == exact.dtype and np.array_equal(first[name], second[name], equal_nan=True)
        off = np.abs(first[name] - exact).max() / np.abs(exact).max()
        assert off <= PRODUCTS[precision] and (off > 0 or not asked)


@pytest.mark.xdist_group("bert")
def test_the_first_call_packs_no_weights(captured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    graph, params = captured("bert")
    inputs = prepare_inputs(graph.inputs, graph.symbols, tiny.inputs("bert", 3, 9))
    params = unwritable(params)
    packed = []
    pack = kernels.pack_weight
    monkeypatch.setattr(kernels, "pack_weight", lambda weight, kind: packed.append(weight.shape) or pack(weight, kind))
    layers = fuse.fused(graph).op_counts()["native::linear"]
    for run in (native.compile_graph(graph), native.compile_graph(graph).packed):
        counts = []
        for _ in range(3):
            run(params, inputs)
            counts.append(len(packed))
        assert counts == [0, layers, layers]
        packed.clear()
    monkeypatch.setattr(native, "AT_ONCE", 0)  # all are too large for it
    native.compile_graph(graph)(params, inputs)
    assert len(packed) == layers


def test_queries_keys_and_values_are_one_product(captured: Callable[..., Any]) -> None:
    graph, _ = captured("bert")
    joined = fuse.projections(fuse.linears(graph))
    three = [node for node in joined.nodes if len(node.outputs) == 3]
    assert len(three) == 2 and all(len(node.args[1]) == 3 for node in three)


def test_a_sum_that_others_need_stays(captured: Callable[..., Any]) -> None:
    """llama's sums of the residual stream go into the next sum, too."""
    graph, params = captured("llama")
    joined = fuse.fused(graph)
    wanted = {ref.name for node in joined.nodes for ref in refs((node.args, node.kwargs))}
    made = {name for node in joined.nodes for name in node.outputs}
    own = {item.name for item in graph.inputs} | graph.constants.keys() | {f"p:{name}" for name in params}
    assert wanted <= made | own
    assert [len(set(node.outputs)) for node in joined.nodes] == [len(node.outputs) for node in joined.nodes]


def graph_of(*nodes: Node, inputs: tuple[Input, ...], output: str) -> Graph:
    return Graph(inputs, {}, {}, list(nodes), {"out": Ref(output)}, {"n": (1, None)})


def test_a_shape_that_depends_on_values_is_never_recorded() -> None:
    info = (ValueInfo("float32", ("m",)),)
    graph = graph_of(
        Node("gt.Scalar", (Ref("x"), 0), {}, ("mask",), (ValueInfo("bool", ("n",)),)),
        Node("masked_select", (Ref("x"), Ref("mask")), {}, ("picked",), info),
        Node("exp", (Ref("picked"),), {}, ("out",), info),
        inputs=(Input("x", "float32", ("n",)),),
        output="out",
    )
    run = native.compile_graph(graph)
    for seed in range(4):
        x = np.random.default_rng(seed).standard_normal(9).astype(np.float32)
        agree(run({}, {"x": x})["out"], np.exp(x[x > 0]))


def test_other_parameters_are_other_results(captured: Callable[..., Any]) -> None:
    graph, params = captured("bert")
    run = native.compile_graph(graph)
    inputs = prepare_inputs(graph.inputs, graph.symbols, tiny.inputs("bert", 2, 7))
    before = run(params, inputs)
    doubled = {name: array * np.float32(2) for name, array in params.items()}
    after = run(doubled, inputs)
    expected = native.compile_graph(graph)(doubled, inputs)
    for name in before:
        assert np.array_equal(after[name], expected[name]) and not np.array_equal(after[name], before[name])
        assert np.array_equal(run(params, inputs)[name], before[name])


def test_threads_share_a_model(captured: Callable[..., Any]) -> None:
    graph, params = captured("bert")
    run = native.compile_graph(graph)
    feeds = [prepare_inputs(graph.inputs, graph.symbols, tiny.inputs("bert", 2, 7, seed=s)) for s in range(4)]
    expected = [native.compile_graph(graph)(params, feed) for feed in feeds]
    assert_threads_agree(run, params, feeds, expected)


def assert_threads_agree(run: Callable[..., Any], params: Any, feeds: list[Any], expected: list[Any]) -> None:
    """A thread for each of the feeds, all at once and again and again, computes what one alone does."""
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            got = run(params, feeds[index])
            if any(not np.array_equal(got[name], expected[index][name]) for name in expected[index]):
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(feeds))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_an_id_outside_the_table_is_an_error_in_a_recorded_run(captured: Callable[..., Any]) -> None:
    graph, params = captured("bert")
    run = native.compile_graph(graph)
    inputs = dict(prepare_inputs(graph.inputs, graph.symbols, tiny.inputs("bert", 2, 7)))
    run(params, inputs)
    inputs["input_ids"] = inputs["input_ids"] + 1000
    with pytest.raises(IndexError, match="rows"):
        run(params, inputs)


@pytest.mark.parametrize(
    "name", ["embeddings.LayerNorm.weight", "encoder.layer.0.attention.self.key.weight", "pooler.dense.bias"]
)
@pytest.mark.xdist_group("bert")
def test_weights_that_contradict_the_graph_are_an_error(captured: Callable[..., Any], name: str) -> None:
    graph, params = captured("bert")
    feed = prepare_inputs(graph.inputs, graph.symbols, tiny.inputs("bert", 2, 7))
    for run in (native.compile_graph(graph), native.compile_graph(graph).packed):
        for wrong in (params[name][:-1], np.concatenate([params[name]] * 2, axis=-1)):
            for _ in range(2):  # as they lie, and packed
                with pytest.raises((ZooError, ValueError)):
                    run(params | {name: wrong}, feed)
        exact = run(params, feed)
        for wide in (params[name].astype(np.float64), unwritable({name: params[name].astype(np.float64)})[name]):
            found = run(params | {name: wide}, feed)
            assert all(np.array_equal(found[output], exact[output]) for output in exact)


@pytest.mark.xdist_group("bert")
def test_inputs_of_another_dtype_are_an_error(captured: Callable[..., Any]) -> None:
    """`Model` makes them what they should be; the function itself is given what a caller pleases."""
    info = (ValueInfo("float32", ("n", 3)),)
    graph = graph_of(
        Node("layer_norm", (Ref("x"), (3,), None, None, 1e-5), {}, ("out",), info),
        inputs=(Input("x", "float32", ("n", 3)),),
        output="out",
    )
    run = native.compile_graph(graph)
    with pytest.raises(ZooError, match="float32"):
        run({}, {"x": np.ones((2, 3))})


@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning", "ignore:.*_at_fork")  # JAX's, where it is imported
@pytest.mark.xdist_group("bert")
def test_a_fork_after_a_model_was_used(captured: Callable[..., Any]) -> None:
    graph, params = captured("bert")
    run = native.compile_graph(graph)
    feed = prepare_inputs(graph.inputs, graph.symbols, tiny.inputs("bert", 3, 7))
    feed["attention_mask"] = (np.arange(7) < np.array([7, 2, 5])[:, None]).astype(np.int64)
    expected = [run(params, feed), run.packed(params, feed)]
    child = os.fork()
    if child == 0:
        again = [run(params, feed), run.packed(params, feed)]
        equal = all(np.array_equal(a[k], b[k]) for a, b in zip(again, expected, strict=True) for k in b)
        os._exit(0 if equal else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.xdist_group("bert")
def test_threads_share_a_model_without_padding(captured: Callable[..., Any]) -> None:
    graph, params = captured("bert")
    run = native.compile_graph(graph).packed
    feeds = []
    for seed in range(4):
        feed = prepare_inputs(graph.inputs, graph.symbols, tiny.inputs("bert", 3, 9, seed=seed))
        lengths = np.random.default_rng(seed).integers(1, 10, 3)
        feeds.append(feed | {"attention_mask": (np.arange(9) < lengths[:, None]).astype(np.int64)})
    expected = [native.compile_graph(graph).packed(params, feed) for feed in feeds]
    assert_threads_agree(run, params, feeds, expected)
