"""Batches without their padding: which graphs can do without, and that real tokens come out as they do with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny
from tolerances import TOLERANCES

from zoo.backends import get_backend, native
from zoo.graph.ir import DType, Graph, Input, Node, Param, Ref, ValueInfo
from zoo.graph.passes.canonicalize import canonicalized
from zoo.model import prepare_inputs
from zoo.native import kernels
from zoo.native.packing import packed

ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "albert", "electra", "modernbert", "layoutlm")
DECODERS = ("gpt2", "gpt_neox", "llama", "qwen2", "qwen3", "mistral", "gemma3_text", "opt")
NOT = (
    *("deberta", "deberta-v2", "bloom", "t5", "bart", "marian"),
    *("clip", "siglip", "wav2vec2", "hubert", "vit", "resnet", "whisper"),
)
"""Their attention is not one product with keys, or joins heads and rows, or a row is taken at a place that values
decide, or there is no mask over tokens."""


def grouped(names: tuple[str, ...]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]


def feed_of(graph: Graph, model_type: str, lengths: tuple[int, ...], seed: int = 0) -> dict[str, Any]:
    """Inputs of rows of these lengths, padded on the right."""
    given = tiny.inputs(model_type, len(lengths), max(lengths), seed)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    given["attention_mask"] = mask
    pad = getattr(tiny.config(model_type), "pad_token_id", None) or 0
    ids = np.where(given["input_ids"] == pad, 5, given["input_ids"])
    given["input_ids"] = np.where(mask == 1, ids, pad)
    return prepare_inputs(graph.inputs, graph.symbols, given)


@pytest.mark.parametrize("model_type", grouped((*ENCODERS, *DECODERS)))
def test_real_tokens_come_out_as_with_padding(captured: Callable[..., Any], model_type: str) -> None:
    graph, params = captured(model_type)
    assert packed(canonicalized(graph)) is not None
    run = native.compile_graph(graph)
    for lengths in ((7, 1, 11, 4), (2, 9), (12, 12, 3), (1, 4, 1)):
        feed = feed_of(graph, model_type, lengths)
        real = feed["attention_mask"] == 1
        without, padded = run.packed(params, feed), run(params, feed)
        exact = get_backend("numpy").compile_graph(graph)(params, feed)
        assert list(without) == list(padded)
        for name, truth in exact.items():
            assert without[name].shape == padded[name].shape and without[name].dtype == padded[name].dtype
            per_token = truth.ndim == 3
            got, expected = ((x[real] if per_token else x) for x in (without[name], padded[name]))
            truth = truth[real] if per_token else truth
            scale = np.abs(truth).max()
            assert np.abs(got - expected).max() <= TOLERANCES["native", "float32"] * scale, name
            assert np.abs(got - truth).max() <= TOLERANCES["native", "float32"] * scale, name
            if per_token:
                assert not without[name][~real].any() and padded[name][~real].any()


@pytest.mark.parametrize("model_type", grouped(NOT))
def test_what_is_not_proven_is_not_packed(captured: Callable[..., Any], model_type: str) -> None:
    graph, params = captured(model_type)
    assert packed(canonicalized(graph)) is None
    run = native.compile_graph(graph)
    feed = prepare_inputs(graph.inputs, graph.symbols, tiny.inputs(model_type, 2, 7))
    expected = native.compile_graph(graph)(params, feed)
    got = run.packed(params, feed)
    assert all(np.array_equal(got[name], expected[name], equal_nan=True) for name in expected)


@pytest.mark.xdist_group("bert")
@pytest.mark.parametrize(
    "mask",
    [
        [[1, 1, 1, 1], [1, 1, 1, 1]],  # nothing to leave out
        [[0, 1, 1, 1], [1, 1, 1, 1]],  # on the left
        [[1, 0, 1, 1], [1, 1, 1, 0]],  # in between
        [[1, 1, 0, 0], [0, 0, 0, 0]],  # a row without tokens
    ],
)
def test_other_padding_goes_the_usual_way(captured: Callable[..., Any], mask: list[list[int]]) -> None:
    graph, params = captured("bert")
    run = native.compile_graph(graph)
    feed = feed_of(graph, "bert", (4, 4)) | {"attention_mask": np.array(mask)}
    expected, got = native.compile_graph(graph)(params, feed), run.packed(params, feed)
    assert all(np.array_equal(got[name], expected[name], equal_nan=True) for name in expected)


B, T, D, H = "batch", "sequence", 8, 2


def attending(*after: Node, output: str = "out", mask: str = "keys", ids: bool = False) -> Graph:
    """Attention of tokens [B, T, D] masked by [B, T], and nodes after it, which know its result as "out"."""
    tokens = ValueInfo("float32", (B, T, D))
    heads = ValueInfo("float32", (B, H, T, D // H))
    nodes = [
        Node("sym_size.int", (Ref("attention_mask"), 0), {}, ("b",), (ValueInfo("size"),)),
        Node("sym_size.int", (Ref("attention_mask"), 1), {}, ("t",), (ValueInfo("size"),)),
        Node("linear", (Ref("x"), Ref("p:w"), Ref("p:c")), {}, ("y",), (tokens,)),
        Node("view", (Ref("y"), (Ref("b"), Ref("t"), H, D // H)), {}, ("z",), (ValueInfo("float32", (B, T, H, 4)),)),
        Node("transpose.int", (Ref("z"), 1, 2), {}, ("q",), (heads,)),
        Node("_to_copy", (Ref("attention_mask"),), {"dtype": DType("bool")}, ("real",), (ValueInfo("bool", (B, T)),)),
        Node("unsqueeze", (Ref("real"), 1), {}, ("real1",), (ValueInfo("bool", (B, 1, T)),)),
        Node("unsqueeze", (Ref("real1"), 2), {}, ("keys",), (ValueInfo("bool", (B, 1, 1, T)),)),
        Node("ones_like", (Ref("keys"),), {}, ("all",), (ValueInfo("bool", (B, 1, 1, T)),)),
        Node("logical_or", (Ref("all"), Ref("keys")), {}, ("every key",), (ValueInfo("bool", (B, 1, 1, T)),)),
        Node("scaled_dot_product_attention", (Ref("q"), Ref("q"), Ref("q"), Ref(mask)), {}, ("a",), (heads,)),
        Node("transpose.int", (Ref("a"), 1, 2), {}, ("a1",), (ValueInfo("float32", (B, T, H, 4)),)),
        Node("view", (Ref("a1"), (Ref("b"), Ref("t"), D)), {}, ("out",), (tokens,)),
        *after,
    ]
    inputs = (Input("x", "float32", (B, T, D)), Input("attention_mask", "int64", (B, T), 1))
    params = {"w": Param("w", "float32", (D, D)), "c": Param("c", "float32", (D,))}
    return Graph(inputs, params, {}, nodes, {"result": Ref(output)}, {B: (1, None), T: (1, None)})


def mixed(graph: Graph) -> tuple[dict[str, Any], dict[str, Any], np.ndarray]:
    rng = np.random.default_rng(0)
    params = {n: rng.standard_normal(p.shape).astype(np.float32) for n, p in graph.params.items()}
    mask = (np.arange(9) < np.array([4, 9, 1])[:, None]).astype(np.int64)
    return params, {"x": rng.standard_normal((3, 9, D)).astype(np.float32), "attention_mask": mask}, mask == 1


def test_padding_that_holds_no_numbers_reaches_nothing() -> None:
    graph = attending()
    params, feed, real = mixed(graph)
    expected = native.compile_graph(graph)(params, feed)["result"]
    feed["x"][~real] = np.nan
    got = native.compile_graph(graph).packed(params, feed)["result"]
    assert np.abs(got[real] - expected[real]).max() <= TOLERANCES["native", "float32"] * np.abs(expected).max()
    assert not got[~real].any()


F32 = "float32"
MIXING = {
    "a mean over tokens": [Node("mean.dim", (Ref("out"), (1,)), {}, ("end",), (ValueInfo(F32, (B, D)),))],
    "a mean over all": [Node("mean.dim", (Ref("out"), (0, 1)), {}, ("end",), (ValueInfo(F32, (D,)),))],
    "a softmax over tokens": [Node("softmax.int", (Ref("out"), 1), {}, ("end",), (ValueInfo(F32, (B, T, D)),))],
    "a running sum": [Node("cumsum", (Ref("out"), 1), {}, ("end",), (ValueInfo(F32, (B, T, D)),))],
    "the last token": [Node("select.int", (Ref("out"), 1, -1), {}, ("end",), (ValueInfo(F32, (B, D)),))],
    "a row": [Node("select.int", (Ref("out"), 0, 0), {}, ("end",), (ValueInfo(F32, (T, D)),))],
    "tokens turned round": [Node("flip", (Ref("out"), (1,)), {}, ("end",), (ValueInfo(F32, (B, T, D)),))],
    "tokens as one row": [
        Node("view", (Ref("out"), (Ref("b"), -1)), {}, ("end",), (ValueInfo(F32, (B, "8*sequence")),))
    ],
    "a layer over tokens": [
        Node("transpose.int", (Ref("out"), 1, 2), {}, ("o1",), (ValueInfo(F32, (B, D, T)),)),
        Node("softmax.int", (Ref("o1"), -1), {}, ("end",), (ValueInfo(F32, (B, D, T)),)),
    ],
    "a convolution": [
        Node("transpose.int", (Ref("out"), 1, 2), {}, ("o1",), (ValueInfo(F32, (B, D, T)),)),
        Node("unsqueeze", (Ref("p:w"), 2), {}, ("kernel",), (ValueInfo(F32, (D, D, 1)),)),
        Node("conv1d", (Ref("o1"), Ref("kernel"), None, (1,), (0,)), {}, ("end",), (ValueInfo(F32, (B, D, T)),)),
    ],
    "tokens against tokens": [
        Node("transpose.int", (Ref("out"), 1, 2), {}, ("o1",), (ValueInfo(F32, (B, D, T)),)),
        Node("matmul", (Ref("out"), Ref("o1")), {}, ("end",), (ValueInfo(F32, (B, T, T)),)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("what", MIXING)
def test_what_mixes_tokens_is_not_packed(what: str) -> None:
    assert packed(attending()) is not None
    graph = attending(*MIXING[what], output="end")
    assert packed(graph) is None
    params, feed, _ = mixed(graph)
    expected, got = native.compile_graph(graph)(params, feed), native.compile_graph(graph).packed(params, feed)
    assert np.array_equal(got["result"], expected["result"])


def test_no_mask_is_no_packing() -> None:
    """Nor is one that no attention takes."""
    graph = attending()
    causal = [
        Node(n.op, (*n.args[:3], None, 0.0, True), {}, n.outputs, n.infos) if n.op.startswith("scaled") else n
        for n in graph.nodes
    ]
    graph.nodes = causal
    assert packed(graph) is None


def test_a_mask_that_hides_nothing_goes_the_usual_way() -> None:
    """Whether padding is hidden is seen in the mask's values: here every key is seen, whatever the input says."""
    graph = attending(mask="every key")
    assert packed(graph) is not None
    params, feed, _ = mixed(graph)
    expected, got = native.compile_graph(graph)(params, feed), native.compile_graph(graph).packed(params, feed)
    assert np.array_equal(got["result"], expected["result"]) and got["result"].all()


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("width", [4, 33])
def test_attention_within_sequences(heads: int, width: int) -> None:
    rng = np.random.default_rng(0)
    lengths = [1, 40, 0, 3, 200, 33]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    q, k, v = (rng.standard_normal((1, offsets[-1], heads, width)).astype(np.float32) for _ in range(3))
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    bias = rng.standard_normal((1, heads, 200, 200)).astype(np.float32)
    for mask, causal in ((None, False), (None, True), (bias, False), (bias > 0, False)):
        ready = None if mask is None else kernels.PreparedMask(mask)
        got = kernels.attention(q, k, v, ready, causal, offsets=offsets)
        for start, length in zip(offsets, lengths, strict=False):
            own = slice(start, start + length)
            part = None if mask is None else kernels.PreparedMask(mask[..., :length, :length])
            alone = kernels.attention(q[:, :, own], k[:, :, own], v[:, :, own], part, causal)
            assert np.abs(got[:, :, own] - alone).max(initial=0) <= TOLERANCES["native", "float32"] * np.abs(v).max()


def test_offsets_that_do_not_fit_are_an_error() -> None:
    x = np.zeros((1, 2, 6, 4), np.float32)
    for offsets in ([0, 7], [-1, 6], [0, 4, 3, 6]):
        with pytest.raises(Exception, match="zoo_attention"):
            kernels.attention(x, x, x, None, False, offsets=np.array(offsets))
    with pytest.raises(ValueError, match="within sequences"):
        kernels.attention(x, x[:, :, :5], x[:, :, :5], None, False, offsets=np.array([0, 5]))
    with pytest.raises(ValueError, match="an attention mask of"):
        mask = kernels.PreparedMask(np.eye(3, dtype=bool))
        kernels.attention(x, x, x, mask, False, offsets=np.array([0, 6]))
