"""Checkpoints that divide values among tensors otherwise than modules do: what capture records, and both ways of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import zoo
from converters import open_checkpoint, save_safetensors
from converters.checkpoint import MemoryCheckpoint
from zoo.arrays import to_numpy
from zoo.capture.huggingface import parameters_of
from zoo.capture.huggingface.conversions import conversions
from zoo.errors import CaptureError, FormatError, WeightsError
from zoo.graph import Graph, Param
from zoo.graph.ir import Ref, param_ref
from zoo.model import Package
from zoo.weights import fit, gathered, scattered

Tensors = dict[str, Any]


def rotated(tensor: Any, heads: int) -> Any:
    rows, columns = tensor.shape
    return tensor.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def interleaved(tensor: Any, axis: int) -> Any:
    shape = list(tensor.shape)
    shape[axis : axis + 1] = [2, shape[axis] // 2]
    return tensor.reshape(shape).transpose(axis, axis + 1).reshape(tensor.shape).contiguous()


def experts_apart(t: Tensors) -> Tensors:
    gates, ups = t["experts"].chunk(2, dim=1)
    return {f"{number}.gate": gate for number, gate in enumerate(gates.unbind(0))} | {
        f"{number}.up": one.squeeze(0) for number, one in enumerate(torch.chunk(ups, len(ups), dim=0))
    }


# What each makes of the tensors below; those that it leaves out keep their names.
CONVERSIONS: dict[str, Callable[[Tensors], Tensors]] = {
    "experts apart": experts_apart,
    "experts apart along the second axis": lambda t: {f"{n}": one for n, one in enumerate(t["experts"].unbind(1))},
    "joined": lambda t: {"qkv": torch.cat([t["q"], t["k"]])},
    "joined along the second axis": lambda t: {"qkv": torch.cat([t["k"], t["other"].view(4, 12)], dim=1)},
    "stacked between axes": lambda t: {"all": torch.stack(list(t["experts"].split(1)), dim=2)},
    "transposed": lambda t: {"experts": t["experts"].transpose(1, 2).contiguous(), "square": t["square"].t()},
    "permuted": lambda t: {"experts": t["experts"].permute(2, 0, 1)},
    "another shape": lambda t: {"kernel": t["q"].reshape(2, 4, 3, 2)},
    "columns of rows that do not divide": lambda t: {"kernel": t["q"].reshape(3, 16).t()},
    "rotary rows joined": lambda t: {"qkv": torch.cat([rotated(t["q"], 2), rotated(t["k"], 1)])},
    "interleaved": lambda t: {"experts": interleaved(t["experts"], 1)},
    "joined, then interleaved": lambda t: {"both": interleaved(torch.cat([t["q"], t["other"]]), 0)},
    "interleaved, then cut across": lambda t: dict(
        zip("abc", interleaved(t["q"], 0).split([3, 1, 4]), strict=True)
    ),
    "interleaved, cut across and joined": lambda t: {"all": torch.cat(interleaved(t["q"], 0).split([3, 5])[::-1])},
    "a part taken, the rest in another shape": lambda t: {
        "first": t["square"][0], "rest": t["square"][1:].reshape(5, 6, 1).select(2, 0).unsqueeze(0)
    },
    "renamed": lambda t: {"new": t["q"], "newer": t["k"].clone()},
}  # fmt: skip


def state() -> Tensors:
    shapes = {"experts": (3, 10, 4), "q": (8, 6), "k": (4, 6), "other": (8, 6), "square": (6, 6), "scalar": ()}
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def described(own: Tensors, convert: Callable[[Tensors], Tensors]) -> tuple[Graph, dict[str, str]]:
    renamed, groups = conversions(convert, own)
    params = {name: Param(name, "float32", tuple(tensor.shape)) for name, tensor in own.items()}
    return Graph((), params, {}, [], {}, stored=tuple(groups)), renamed


@pytest.mark.parametrize("name", CONVERSIONS)
def test_what_a_conversion_does_is_done_and_undone(name: str) -> None:
    own = state()
    graph, renamed = described(own, CONVERSIONS[name])
    expected = {key: tensor.numpy() for key, tensor in CONVERSIONS[name](dict(own)).items()}
    arrays = {key: tensor.numpy() for key, tensor in own.items()}
    converted = scattered(graph, MemoryCheckpoint(arrays))
    for key, array in expected.items():
        before = {after: before for before, after in renamed.items()}.get(key, key)
        assert np.array_equal(converted.read(before), array), key
    made = {param for group in graph.stored for param in group.params}
    assert made or name == "renamed"
    back = gathered(graph, MemoryCheckpoint({key: converted.read(key).copy() for key in converted.infos}))
    assert set(back.infos) == set(arrays)
    for key, array in arrays.items():
        assert np.array_equal(back.read(key), array), key


@pytest.mark.parametrize(
    "convert",
    [
        lambda t: {"k": torch.cat([t["k"], t["square"][:4]])},
        lambda t: {"k": torch.cat([t["k"], t["k"]])},
        lambda t: {"k": t["k"].t(), "again": t["k"].t()},
    ],
    ids=["some rows", "twice in one", "in two"],
)
def test_values_that_are_lost_or_repeated_have_no_way_back(convert: Callable[[Tensors], Tensors]) -> None:
    assert conversions(convert, state()) == ({}, [])


@pytest.mark.parametrize("name", CONVERSIONS)
def test_what_is_recorded_passes_the_checks_of_a_file(name: str) -> None:
    from zoo.graph.stored import check_stored

    graph, _ = described(state(), CONVERSIONS[name])
    check_stored(graph.stored, {name: param.shape for name, param in graph.params.items()})


def test_no_more_boxes_than_it_takes() -> None:
    for name, count in (("transposed", 2), ("rotary rows joined", 2), ("interleaved", 1), ("experts apart", 6)):
        graph, _ = described(state(), CONVERSIONS[name])
        assert sum(len(group.boxes) for group in graph.stored) == count, name


@pytest.mark.parametrize("seed", range(20))
def test_any_moves_one_after_the_other(seed: int) -> None:
    """Against torch itself: random moves of random parts."""

    def convert(tensors: Tensors) -> Tensors:
        rng = np.random.default_rng(seed)
        found = tensors["x"]
        for _ in range(6):
            axis = int(rng.integers(found.ndim))
            match rng.integers(5):
                case 0:
                    found = found.permute(*map(int, rng.permutation(found.ndim)))
                case 1:
                    cuts = found.split(int(rng.integers(1, found.shape[axis] + 1)), dim=axis)
                    found = torch.cat([cuts[int(at)] for at in rng.permutation(len(cuts))], dim=axis)
                case 2:
                    found = found.reshape(*map(int, rng.permutation([2, 3, 4, 5])))
                case 3:
                    found = found.reshape(*map(int, rng.permutation([6, 20])))
                case 4:
                    found = torch.stack(found.unbind(axis), dim=int(rng.integers(found.ndim)))
        return {"y": found}

    own = {"x": torch.arange(120.0).reshape(8, 15)}
    graph, _ = described(own, convert)
    converted = scattered(graph, MemoryCheckpoint({"x": own["x"].numpy()}))
    (name,) = converted.infos
    assert np.array_equal(converted.read(name).reshape(-1), convert(own)["y"].reshape(-1).numpy())
    back = gathered(graph, MemoryCheckpoint({name: converted.read(name).copy()}))
    assert np.array_equal(back.read("x"), own["x"].numpy())


@pytest.mark.parametrize(
    "convert",
    [
        lambda t: {"q": t["q"] - 1},
        lambda t: {"q": t["q"].half()},
        lambda t: {"q": t["q"][::2]},
        lambda t: {"q": torch.zeros(3, device="meta")},
    ],
    ids=["arithmetic", "another dtype", "every other row", "a tensor of its own"],
)
def test_what_does_more_than_to_move_values_is_refused(convert: Callable[[Tensors], Tensors]) -> None:
    with pytest.raises(CaptureError, match="conversion"):
        conversions(convert, state())


def experts() -> tuple[Graph, dict[str, np.ndarray]]:
    own = {"experts": state()["experts"]}
    graph, _ = described(own, experts_apart)
    return graph, {name: tensor.numpy().copy() for name, tensor in experts_apart(own).items()}


def test_every_tensor_that_lacks_or_has_another_shape_is_named() -> None:
    graph, arrays = experts()
    del arrays["1.gate"]
    arrays["2.up"] = arrays["2.up"][:-1]
    with pytest.raises(WeightsError, match=r"2\.up: expected \[5, 4\], got \[4, 4\](.|\n)*1\.gate"):
        gathered(graph, MemoryCheckpoint(arrays))


def test_tensors_of_two_dtypes_are_no_one_parameter() -> None:
    graph, arrays = experts()
    arrays["1.gate"] = arrays["1.gate"].astype(np.float16)
    with pytest.raises(FormatError, match="differ in dtype"):
        gathered(graph, MemoryCheckpoint(arrays))


def test_what_a_checkpoint_has_as_the_module_has_it_stays() -> None:
    graph, _ = experts()
    file = MemoryCheckpoint({"experts": state()["experts"].numpy()})
    assert gathered(graph, file) is file
    assert scattered(graph, MemoryCheckpoint({})).infos == {}


def test_a_package_has_the_tensors_of_a_checkpoint(tmp_path: Path) -> None:
    graph, arrays = experts()
    graph = replace(graph, outputs={"experts": Ref(param_ref("experts"))})
    Package(graph, {"experts": state()["experts"].numpy()}).save(tmp_path / "package")
    with open_checkpoint(tmp_path / "package") as file:
        assert {name: file.read(name).tolist() for name in file.infos} == {n: a.tolist() for n, a in arrays.items()}


def test_a_dialect_gives_a_parameters_name_what_the_parameter_is() -> None:
    own = {"square": state()["square"]}
    graph, _ = described(own, lambda t: {"square": t["square"].t()})
    file = MemoryCheckpoint({"square": own["square"].numpy()})
    assert np.array_equal(gathered(graph, file).read("square"), own["square"].numpy().T)
    assert gathered(graph, file, as_published=False) is file


# Model types of transformers, each for a conversion that others do not have.
PUBLISHED = {
    "mixtral": "an expert a tensor, in a module of another name",
    "ernie4_5_moe": "an expert a tensor, and a tensor renamed inside",
    "nomic_bert": "query, key and value in one",
    "gradium_phonon_tts": "the same, with rotary rows in another order",
    "inkling2": "experts' rows interleaved",
    "olmo_hybrid": "a convolution in three",
    "molmo2_text": "a table in two",
    "tipsv2_vision_model": "the names of another program",
    "nemotron_h": "an expert a tensor, and infinity in the config",
}


@pytest.fixture(scope="module")
def tiny() -> Any:
    folder = str(Path(__file__).parents[1] / "benchmarks" / "coverage")
    sys.path.insert(0, folder)
    try:
        import shrink

        yield shrink
    finally:
        sys.path.remove(folder)


@pytest.fixture
def no_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise CaptureError("to capture takes long, and tensors are compared below")

    monkeypatch.setattr("zoo.configured.graph_for", refused)


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_what_transformers_saves_is_read_and_written_bit_for_bit(
    model_type: str, tiny: Any, no_capture: None, tmp_path: Path
) -> None:
    config = tiny.tiny_config(model_type)
    module = tiny.draw(transformers.AutoModel.from_config(config)).eval()
    module.save_pretrained(tmp_path / "in")
    graph = parameters_of(config, "feature-extraction")
    assert graph.stored
    state = {name: to_numpy(tensor) for name, tensor in module.state_dict().items()}
    with gathered(graph, open_checkpoint(tmp_path / "in")) as file:
        names = fit(graph, {name: info.shape for name, info in file.infos.items()}, file.path).names
        assert names.keys() == graph.params.keys()
        for name, own in names.items():
            assert np.array_equal(file.read(own), state[graph.meta["renamed"].get(name, name)]), name
    save_safetensors(tmp_path / "plain.safetensors", state)  # under the module's own names
    (tmp_path / "config.json").write_bytes((tmp_path / "in" / "config.json").read_bytes())
    zoo.convert(tmp_path / "in", tmp_path / "npz", "npz", verify=True)
    zoo.convert(tmp_path / "npz", tmp_path / "out", verify=True)
    zoo.convert(tmp_path / "plain.safetensors", tmp_path / "own", verify=True)
    with open_checkpoint(tmp_path / "in") as first:
        for place in ("npz", "out", "own"):
            with open_checkpoint(tmp_path / place) as last:
                assert set(first.infos) == set(last.infos), place
                for name, array in first.items():
                    assert array.dtype == last.read(name).dtype
                    assert np.array_equal(array, last.read(name)), (place, name)


@pytest.mark.parametrize(("saved", "wanted"), [("AutoModel", "text-generation"), ("AutoModelForCausalLM", None)])
def test_a_head_and_its_base_model_read_each_others_checkpoints(
    saved: str, wanted: str | None, tiny: Any, tmp_path: Path
) -> None:
    config = tiny.tiny_config("mixtral")
    module = tiny.draw(getattr(transformers, saved).from_config(config))
    module.save_pretrained(tmp_path)
    state = {name.removeprefix("model."): to_numpy(tensor) for name, tensor in module.state_dict().items()}
    graph = parameters_of(config, wanted or "feature-extraction")
    with gathered(graph, open_checkpoint(tmp_path)) as file:
        found = fit(graph, {name: info.shape for name, info in file.infos.items()}, file.path)
        assert set(found.missing) == ({"lm_head.weight"} if wanted else set())
        for name, own in found.names.items():
            module_name = graph.meta["renamed"].get(name, name).removeprefix("model.")
            assert np.array_equal(file.read(own), state[module_name]), name
