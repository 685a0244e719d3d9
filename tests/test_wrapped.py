"""What training programs put around a model's tensors: prefixes, wrappers, optimizers, averages, odd names of files."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import checkpoints
import msgpack
import numpy as np
import pytest
import torch
from conftest import FIXTURES
from tolerances import TOLERANCES

import zoo
from zoo.errors import SourceError, UnsafeFile, WeightsError

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a head; not to be changed."""
    return checkpoints.save(tmp_path_factory.mktemp("wrapped") / "bert", "bert-cls")


@pytest.fixture(scope="module")
def state(bert: Path) -> State:
    return {name: torch.from_numpy(array) for name, array in checkpoints.tensors(bert).items()}


def lying(bert: Path, folder: Path, content: Any, file: str = "pytorch_model.bin") -> Path:
    """A folder with the model's config and something that torch saved."""
    folder.mkdir()
    shutil.copy(bert / "config.json", folder)
    torch.save(content, folder / file)
    return folder


def assert_same(folder: Path, bert: Path) -> Any:
    """The folder's model has the very weights; the model."""
    model, expected = zoo.load(folder, "numpy"), checkpoints.tensors(bert)
    assert set(model.params) == set(expected)
    assert all(np.array_equal(model.params[name], array) for name, array in expected.items())
    return model


def under(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in tensors.items()}


def inside(module: str, wrapper: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace(module, module + wrapper): value for name, value in tensors.items()}


def moved(tensors: Mapping[str, torch.Tensor], by: float = 1.0) -> State:
    return {name: tensor + by for name, tensor in tensors.items()}


OPTIMIZER = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
WRAPPERS: dict[str, tuple[str, Callable[[State], Any]]] = {
    "DataParallel": ("module.", lambda s: under("module.", s)),
    "a Lightning module's attribute": ("model.", lambda s: under("model.", s)),
    "net.": ("net.", lambda s: under("net.", s)),
    "torch.compile": ("_orig_mod", lambda s: under("_orig_mod.", s)),
    "torch.compile of a part": ("_orig_mod", lambda s: inside("encoder.", "_orig_mod.", s)),
    "DeepSpeed": ("_forward_module", lambda s: under("_forward_module.", s)),
    "FSDP, layer by layer": (
        "_fsdp_wrapped_module",
        lambda s: under("_fsdp_wrapped_module.", inside("layer.0.", "_fsdp_wrapped_module.", s)),
    ),
    "checkpointed activations": (
        "_checkpoint_wrapped_module",
        lambda s: inside("layer.1.", "_checkpoint_wrapped_module.", s),
    ),
    "all of them": ("_orig_mod", lambda s: {"state_dict": under("model._orig_mod.module.", s)}),
    "state_dict": ("state_dict", lambda s: {"state_dict": s, "epoch": 3}),
    "model_state_dict": ("model_state_dict", lambda s: {"model_state_dict": s, "optimizer_state_dict": OPTIMIZER}),
    "model and optimizer": (
        "model.module.",
        lambda s: {"model": under("module.", s), "optimizer": OPTIMIZER, "step": torch.tensor(4)},
    ),
    "a sentence-transformers module": ("0.auto_model.", lambda s: under("0.auto_model.", s)),
    "DeepSpeed's model states": (
        "module.",
        lambda s: {"module": s, "optimizer": None, "param_shapes": [{n: t.shape for n, t in s.items()}]},
    ),
    "the average of torch.optim.swa_utils": (
        "module.",
        lambda s: {"n_averaged": torch.tensor(5), **under("module.", s)},
    ),
    "a base that was distributed, with a head": (
        "'module'",
        lambda s: {n if "classifier" in n else f"module.{n}": t for n, t in s.items()},
    ),
    "part of a module that was distributed": ("'module'", lambda s: inside("bert.encoder.", "module.", s)),
    "Lightning": (
        "state_dict.model.",
        lambda s: {
            "state_dict": {**under("model.", s), "criterion.weight": torch.ones(5), "metrics.total": torch.ones(1)},
            "optimizer_states": [OPTIMIZER],
            "hyper_parameters": {"args": argparse.Namespace(lr=0.1, path=Path("x")), "day": datetime.date(2026, 1, 1)},
            "callbacks": collections.defaultdict(list, {"a": np.arange(3), "best": np.float64(2)}),
            "epoch": 1,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRAPPERS)
def test_what_leads_to_all_parameters_is_taken_off_and_noted(
    case: str, bert: Path, state: State, tmp_path: Path
) -> None:
    said, wrap = WRAPPERS[case]
    model = assert_same(lying(bert, tmp_path / "c", wrap(state)), bert)
    notes = [note for note in model.notes if "read from under" in note or "taken out" in note]
    assert any(said in note for note in notes), model.notes


def test_conversion_takes_it_off_too(bert: Path, state: State, tmp_path: Path) -> None:
    wrapped = {"state_dict": under("module.", state), "optimizer": OPTIMIZER}
    done = zoo.convert(lying(bert, tmp_path / "c", wrapped), tmp_path / "out", verify=True)
    assert any("state_dict.module." in note for note in done.notes)
    assert set(done.dropped) == {"optimizer.state.0.step", "optimizer.state.0.exp_avg"}
    assert all("trainer" in why for why in done.dropped.values())
    found, expected = checkpoints.tensors(tmp_path / "out"), checkpoints.tensors(bert)
    assert found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


def test_the_command_line_says_what_it_took_off(
    run: Callable[..., tuple[int, str, str]], bert: Path, state: State, tmp_path: Path
) -> None:
    folder = lying(bert, tmp_path / "c", {"model": under("module.", state), "optimizer": OPTIMIZER})
    code, out, err = run("convert", folder, tmp_path / "out")
    assert code == 0 and "read from under 'model.module.'" in err and "optimizer.state.0.step" in out


@pytest.mark.parametrize("key", ["ema", "ema_state_dict", "model_ema", "state_dict_ema"])
def test_the_weights_are_read_rather_than_their_average(key: str, bert: Path, state: State, tmp_path: Path) -> None:
    model = assert_same(lying(bert, tmp_path / "c", {key: moved(state), "model": state}), bert)
    assert any(repr(key) in note and "average" in note for note in model.notes)


def test_an_average_alone_is_read_and_said(bert: Path, state: State, tmp_path: Path) -> None:
    model = assert_same(lying(bert, tmp_path / "c", {"ema": state, "optimizer": OPTIMIZER}), bert)
    assert any("under 'ema.'" in note for note in model.notes)


def test_several_models_and_no_telling_which(bert: Path, state: State, tmp_path: Path) -> None:
    both = {"student": state, "teacher": moved(state)}
    with pytest.raises(WeightsError, match="several times") as caught:
        zoo.load(lying(bert, tmp_path / "c", both), "numpy")
    assert "'student.'" in str(caught.value) and "'teacher.'" in str(caught.value)
    assert_same(
        lying(bert, tmp_path / "same", {"student": state, "teacher": {n: t.clone() for n, t in state.items()}}), bert
    )


def test_an_error_shows_the_names_that_the_file_has(bert: Path, state: State, tmp_path: Path) -> None:
    other = {f"my_{name.replace('.', '_')}": tensor for name, tensor in state.items()}
    with pytest.raises(WeightsError) as caught:
        zoo.load(lying(bert, tmp_path / "c", other), "numpy")
    assert "the file has" in str(caught.value) and next(iter(other)) in str(caught.value)


def test_what_lacks_behind_a_prefix_is_what_really_lacks(bert: Path, state: State, tmp_path: Path) -> None:
    headless = under("module.", {name: t for name, t in state.items() if "classifier" not in name})
    with pytest.raises(WeightsError) as caught:
        zoo.load(lying(bert, tmp_path / "c", headless), "numpy")
    line = next(line for line in str(caught.value).splitlines() if "missing" in line)
    assert line.strip() == "missing (2): classifier.weight; classifier.bias"


def test_safetensors_and_npz_with_a_prefix(bert: Path, tmp_path: Path) -> None:
    arrays = checkpoints.tensors(bert)
    folder = checkpoints.copy_of(
        bert, tmp_path / "st", lambda found: [found.update({f"module.{n}": found.pop(n)}) for n in arrays]
    )
    assert_same(folder, bert)
    (folder / "model.safetensors").unlink()
    np.savez(folder / "weights.npz", **under("net.module.", arrays))
    assert_same(folder, bert)


def train_state(tree: dict[str, Any], wrap: Callable[[Any], Any]) -> bytes:
    """A TrainState as flax.serialization.to_bytes writes it."""

    def packed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: packed(item) for key, item in value.items()}
        if isinstance(value, np.ndarray):
            data = msgpack.packb((value.shape, value.dtype.name, value.tobytes()), use_bin_type=True)
            return msgpack.ExtType(1, data)
        return value

    return msgpack.packb(packed(wrap(tree)), use_bin_type=True)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda p: {"step": 7, "params": p, "opt_state": {"0": {"count": np.array(7), "mu": p, "nu": p}, "1": {}}},
        lambda p: {"step": np.array(7), "params": {"params": p}, "opt_state": {"0": {"mu": {"params": p}}}},
        lambda p: {"state": {"params": p, "step": np.array(7)}, "ema_params": p},
    ],
    ids=["params", "params twice", "inside"],
)  # fmt: skip
def test_a_train_state_of_flax(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    source = FIXTURES / "bert-mlm" / "flax"
    flat = {}
    with zoo_checkpoint(source) as found:
        flat = {name: np.array(found.read(name)) for name in found.infos}
    tree: dict[str, Any] = {}
    for name, array in flat.items():
        *path, leaf = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = array
    folder = tmp_path / "c"
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    file = folder / "flax_model.msgpack"
    file.write_bytes(train_state(tree, wrap))
    model, usual = zoo.load(folder, "numpy"), zoo.load(source, "numpy")
    assert zoo.load(file.rename(folder / "checkpoint_10").parent, "numpy").params.keys() == model.params.keys()
    assert all(np.array_equal(model.params[name], usual.params[name]) for name in usual.params)
    assert any("trainer" in note for note in model.notes)


def zoo_checkpoint(path: Path) -> Any:
    from converters import open_checkpoint

    return open_checkpoint(path)


# Names of files


@pytest.mark.parametrize(
    ("file", "legacy"),
    [
        ("model_best.pth.tar", False),
        ("checkpoint.pth.tar", True),
        ("epoch=1-step=10.ckpt", False),
        ("model.ckpt-20", False),
        ("weights.v2", False),
        ("checkpoint_best", False),
    ],
)
def test_a_file_of_any_name(file: str, legacy: bool, bert: Path, state: State, tmp_path: Path) -> None:
    folder = lying(bert, tmp_path / "c", {"state_dict": state, "arch": "bert"}, file)
    if legacy:
        torch.save({"state_dict": state}, folder / file, _use_new_zipfile_serialization=False)
    assert_same(folder, bert)
    assert_same(folder / file, bert)


@pytest.mark.parametrize("stem", ["pytorch_model-foo.bin", "diffusion_pytorch_model.bin", "my.safetensors"])
def test_an_index_of_another_stem(stem: str, bert: Path, state: State, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "c"
    folder.mkdir()
    shutil.copy(bert / "config.json", folder)
    base, suffix = stem.rsplit(".", 1)
    names = list(state)
    files = {f"{base}-{i + 1:05d}-of-00002.{suffix}": {n: state[n] for n in names[i::2]} for i in range(2)}
    for file, part in files.items():
        (save_file if suffix == "safetensors" else torch.save)(part, folder / file)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / f"{stem}.index.json").write_text(json.dumps(index))
    assert_same(folder, bert)


def test_checkpoints_of_tensorflow_by_prefix_and_by_folder(tmp_path: Path) -> None:
    source = FIXTURES / "bert-mlm" / "torch"
    folder = tmp_path / "c"
    zoo.convert(source, folder, "tf-checkpoint")
    (folder / "conversion.json").unlink()
    for path in list(folder.glob("bert_model.ckpt*")):
        path.rename(folder / path.name.replace("bert_model.ckpt", "model.ckpt-20"))
    expected = zoo.load(source, "numpy").params
    for place in (folder, folder / "model.ckpt-20", str(folder / "model.ckpt-20")):
        found = zoo.load(place, "numpy").params
        assert all(np.array_equal(found[name], expected[name]) for name in found)
    for path in list(folder.glob("model.ckpt-20*")):
        shutil.copy(path, folder / path.name.replace("20", "10"))
    with pytest.raises(SourceError, match="several"):
        zoo.load(folder, "numpy")
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-20"\n')
    assert zoo.load(folder, "numpy").params.keys() == found.keys()


def test_an_optimizer_is_no_model(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no weights"):
        zoo.load(lying(bert, tmp_path / "c", OPTIMIZER, "optimizer.pt"), "numpy")


def test_plain_values_are_listed_and_code_is_not_run(bert: Path, state: State, tmp_path: Path) -> None:
    """Values beside the weights are allowed by the name of their class; a function never is."""
    with pytest.raises(UnsafeFile, match="Linear"):
        zoo.load(lying(bert, tmp_path / "c", {"state_dict": state, "head": torch.nn.Linear(2, 2)}), "numpy")


# What other tools wrote


LIGHTNING = {
    "epoch": 1,
    "global_step": 10,
    "pytorch-lightning_version": "2.5.0",
    "loops": {"fit_loop": {"state_dict": {}}},
    "callbacks": {"ModelCheckpoint{'monitor': 'v'}": {"best_model_score": torch.tensor(0.1), "best_model_path": "x"}},
    "optimizer_states": [OPTIMIZER],
    "lr_schedulers": [],
    "hparams_name": "kwargs",
    "hyper_parameters": {"lr": 0.001},
}


@pytest.mark.parametrize("case", ["pt-module", "lightning"])
def test_cases_of_torch(case: str, bert: Path, state: State, tmp_path: Path) -> None:
    if case == "lightning":
        content = {**LIGHTNING, "state_dict": under("model.", state)}
        folder = lying(bert, tmp_path / "c", content, "epoch=1-step=10.ckpt")
    else:
        folder = lying(bert, tmp_path / "c", under("module.", state))
    assert_same(folder, bert)
    zoo.convert(folder, tmp_path / "out", verify=True)


def test_safetensors_of_transformers_flax_and_tensorflow(tmp_path: Path) -> None:
    """The names of Flax with dots, those of TensorFlow without the class: the metadata tells which."""
    from safetensors.numpy import save_file

    inputs = dict(np.load(FIXTURES / "bert-mlm" / "inputs.npz"))
    for framework in ("flax", "tf"):
        source, folder = FIXTURES / "bert-mlm" / framework, tmp_path / framework
        folder.mkdir()
        shutil.copy(source / "config.json", folder)
        with zoo_checkpoint(source) as found:
            arrays = {name: np.array(found.read(name)) for name in found.infos}
        if framework == "flax":
            arrays = {name.replace("/", "."): array for name, array in arrays.items()}
        else:  # transformers 4.57, strip_model_name_and_prefix, of names without the HDF5 group
            arrays = {name.partition("/")[2].partition("/")[2]: array for name, array in arrays.items()}
        save_file(arrays, folder / "model.safetensors", {"format": framework})
        logits = zoo.load(folder, "numpy")(**inputs)["logits"]
        expected = np.load(FIXTURES / "bert-mlm" / f"{framework}_out.npz")["logits"].astype(np.float64)
        keep = inputs["attention_mask"] == 1
        worst = np.abs(logits[keep] - expected[keep]).max() / np.abs(expected[keep]).max()
        assert worst <= TOLERANCES["numpy", "float32"]
    own = zoo.load(FIXTURES / "bert-mlm" / "flax-safetensors", "numpy")  # as transformers 4.57 wrote it
    assert not own.notes
    expected = zoo.load(FIXTURES / "bert-mlm" / "flax", "numpy").params
    assert all(np.array_equal(own.params[name], array) for name, array in expected.items())


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["__0_0.distcp", "__1_0.distcp", ".metadata"], "format_utils dcp_to_torch"),
        (["zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_model_states.pt"], "zero_to_fp32.py"),
    ],
)
def test_parts_of_several_devices_say_how_they_are_put_together(
    files: list[str], said: str, bert: Path, tmp_path: Path
) -> None:
    shutil.copy(bert / "config.json", tmp_path)
    for file in files:
        (tmp_path / file).write_bytes(b"part")
    with pytest.raises(SourceError, match=said):
        zoo.load(tmp_path, "numpy")


@pytest.mark.parametrize("nested", [False, True])
def test_averages_without_names_are_refused_by_their_lists(
    nested: bool, bert: Path, state: State, tmp_path: Path
) -> None:
    """torch_ema's list has the order of a module's parameters, which no name or shape proves."""
    ema = {"decay": 0.99, "num_updates": 3, "shadow_params": list(state.values()), "collected_params": None}
    with pytest.raises(WeightsError, match=r"by number[\s\S]*shadow_params[\s\S]*copy_to"):
        zoo.load(lying(bert, tmp_path / "c", {"ema": ema} if nested else ema), "numpy")
    beside = lying(bert, tmp_path / "d", {"model": state, "ema": ema})
    assert_same(beside, bert)
    assert any("average" in note for note in zoo.load(beside, "numpy").notes)


def test_flattened_parameters_say_how_they_are_saved_whole(bert: Path, tmp_path: Path) -> None:
    flat = {"_fsdp_wrapped_module._flat_param": torch.ones(100)}
    with pytest.raises(WeightsError, match="full_state_dict"):
        zoo.load(lying(bert, tmp_path / "c", flat), "numpy")


def test_deepspeeds_model_states_beside_its_optimizers(bert: Path, state: State, tmp_path: Path) -> None:
    folder = lying(bert, tmp_path / "c", {"module": state}, "mp_rank_00_model_states.pt")
    (folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"part")
    assert_same(folder, bert)


def test_the_dtype_of_an_optimizer_is_not_the_checkpoints(bert: Path, state: State, tmp_path: Path) -> None:
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    states = {"state": {0: {name: torch.cat([tensor.float().flatten()] * 2) for name, tensor in state.items()}}}
    folder = lying(bert, tmp_path / "c", {"model": half, "optimizer": states})
    assert str(zoo.load(folder, "numpy", dtype="auto").graph.meta["dtype"]) == "bfloat16"


def test_a_train_state_in_orbax(tmp_path: Path) -> None:
    pytest.importorskip("tensorstore")
    from converters.checkpoint import MemoryCheckpoint
    from converters.formats import orbax

    source = FIXTURES / "bert-mlm" / "flax"
    with zoo_checkpoint(source) as found:
        arrays = {name: np.array(found.read(name)) for name in found.infos}
    expected = zoo.load(source, "numpy").params
    for number, (params, others) in enumerate((("params/", ""), ("state/params/", "state/"))):
        tree = {
            **under(params, arrays),
            **under(f"{others}opt_state/0/mu/", arrays),
            f"{others}step": np.array(3),
        }
        folder = tmp_path / str(number)
        folder.mkdir()
        orbax.write(folder / "checkpoint", MemoryCheckpoint(tree))
        shutil.copy(source / "config.json", folder)
        model = zoo.load(folder, "numpy")
        assert all(np.array_equal(model.params[name], expected[name]) for name in expected)
        assert any("trainer" in note for note in model.notes)


@pytest.mark.parametrize(("family", "form"), [("resnet", "torchvision"), ("vit", "timm")])
def test_another_program_s_names_inside_a_wrapper(family: str, form: str, tmp_path: Path) -> None:
    """What ImageNet's training scripts write: the names of torchvision under `module.` under `state_dict`."""
    source = FIXTURES / family / "torch"
    zoo.convert(source, tmp_path / "named", form)
    with zoo_checkpoint(tmp_path / "named") as found:
        tensors = {name: torch.from_numpy(np.array(found.read(name))) for name in found.infos}
    content = {"arch": "net", "state_dict": under("module.", tensors), "best_acc1": torch.tensor(1.0)}
    model = zoo.load(lying(source, tmp_path / "c", content, "model_best.pth.tar"), "numpy")
    expected = zoo.load(source, "numpy").params
    kept = [name for name in expected if not name.endswith("num_batches_tracked")]
    assert kept and all(np.array_equal(model.params[name], expected[name]) for name in kept)
    assert any("state_dict.module." in note for note in model.notes)
