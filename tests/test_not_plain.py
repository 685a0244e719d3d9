"""Weights that are not the model's own numbers: quantised ones, adapters and their bases, parameters held twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

import zoo
from zoo.cli import app
from zoo.errors import ConfigError, WeightsError, ZooError

Arrays = dict[str, np.ndarray]

LAYER = "bert.encoder.layer.0.output.dense"
HEADS = "bert.pooler.dense", "classifier"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a head; not to be changed."""
    return checkpoints.save(tmp_path_factory.mktemp("plain") / "bert", "bert-cls")


def refused(folder: Path, to: Path, **options: Any) -> str:
    """What loading says, strictly and not; converting says the same."""
    said = []
    for attempt in (
        lambda: zoo.load(folder, "numpy"),
        lambda: zoo.load(folder, "numpy", strict=False),
        lambda: zoo.convert(folder, to),
        lambda: zoo.convert(folder, to, "flax"),
    ):
        with pytest.raises(ZooError) as caught:
            attempt()
        assert isinstance(caught.value, (WeightsError, ConfigError))
        said.append(str(caught.value))
    assert not to.exists()
    return said[0]


def int8(arrays: Arrays, layer: str, scale: str) -> None:
    weight = arrays[f"{layer}.weight"]
    scales = np.abs(weight).max(1) / 127
    arrays[f"{layer}.weight"] = np.rint(weight / scales[:, None]).astype(np.int8)
    arrays[f"{layer}.{scale}"] = scales


def fp8(arrays: Arrays, layer: str, scale: str) -> None:
    weight = arrays[f"{layer}.weight"]
    arrays[f"{layer}.weight"] = (weight / 0.01).astype(ml_dtypes.float8_e4m3fn)
    arrays[f"{layer}.{scale}"] = np.full(1, 0.01, np.float32)


def replaced(arrays: Arrays, layer: str, **others: np.ndarray) -> None:
    """A layer's weight gone, and others in its place; __ is a dot."""
    del arrays[f"{layer}.weight"]
    arrays.update({f"{layer}.{name.replace('__', '.')}": array for name, array in others.items()})


I32 = np.ones((3, 24), np.int32)
F32 = np.ones(3, np.float32)
QUANTISED: dict[str, Callable[[Arrays, str], None]] = {
    "int8 and a scale": lambda a, n: int8(a, n, "weight.scale"),
    "int8 and a scale beside": lambda a, n: int8(a, n, "scale"),
    "bitsandbytes, 8 bits": lambda a, n: (int8(a, n, "SCB"), a.update({f"{n}.weight_format": np.zeros((), np.uint8)})),
    "bitsandbytes, 4 bits": lambda a, n: replaced(
        a, n, weight=np.ones((48, 1), np.uint8), weight__absmax=F32, weight__quant_map=F32,
        weight__quant_state__bitsandbytes__nf4=np.ones(9, np.uint8),
    ),
    "GPTQ": lambda a, n: replaced(a, n, qweight=I32, qzeros=I32, scales=F32, g_idx=np.ones(24, np.int32)),
    "AWQ": lambda a, n: replaced(a, n, qweight=I32, qzeros=I32, scales=F32),
    "compressed-tensors": lambda a, n: replaced(a, n, weight_packed=I32, weight_scale=F32, weight_shape=I32[0, :2]),
    "fp8": lambda a, n: fp8(a, n, "weight_scale"),
    "fp8 in blocks": lambda a, n: fp8(a, n, "weight_scale_inv"),
    "fp8 with a scale of the input": lambda a, n: (fp8(a, n, "weight_scale"), a.update({f"{n}.input_scale": F32})),
    "zero points": lambda a, n: (int8(a, n, "weight_scale"), a.update({f"{n}.weight_zero_point": I32[0]})),
    "int8 alone": lambda a, n: (int8(a, n, "s"), a.pop(f"{n}.s")),
    "uint8 alone": lambda a, n: a.update({f"{n}.weight": np.ones(a[f"{n}.weight"].shape, np.uint8)}),
    "quanto": lambda a, n: replaced(a, n, weight___data=np.ones((5, 24), np.int8), weight___scale=F32),
}  # fmt: skip


@pytest.mark.parametrize("layer", [LAYER, *HEADS])
@pytest.mark.parametrize("case", QUANTISED)
def test_quantised_layers_are_refused(case: str, layer: str, bert: Path, tmp_path: Path) -> None:
    """Inside a numbered layer and in a head alike: there the scales were left out as another task's."""
    folder = checkpoints.copy_of(bert, tmp_path / "q", lambda arrays: QUANTISED[case](arrays, layer))
    said = refused(folder, tmp_path / "out")
    assert "quantised" in said and layer in said


@pytest.mark.parametrize("leaf", ["scale_weight", "amax", "any_name"])
def test_what_lies_beside_float8_is_never_left_out(leaf: str, bert: Path, tmp_path: Path) -> None:
    def change(arrays: Arrays) -> None:
        arrays[f"{LAYER}.weight"] = arrays[f"{LAYER}.weight"].astype(ml_dtypes.float8_e4m3fn)
        arrays[f"{LAYER}.{leaf}"] = F32

    folder = checkpoints.copy_of(bert, tmp_path / "q", change)
    for strict in (True, False):
        with pytest.raises(WeightsError, match="quantised"):
            zoo.load(folder, "numpy", strict=strict)


SCALES = {
    "at the top": f"scales.{LAYER}",
    "at the top, of the weight": f"scales.{LAYER}.weight",
    "at the top, without the base": f"scales.{LAYER.removeprefix('bert.')}",
    "at the top, under a name of ours": f"notes.{LAYER}",
    "at the top, an extreme": f"quant.{LAYER}.amax",
    "one level deeper": f"{LAYER}.quantizer.scale",
    "two levels deeper": f"{LAYER}.w.q.s",
    "beside the layer": f"{LAYER}_s",
    "beside the weight": f"{LAYER}.weight_s",
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("wrapper", ["", "net."])
@pytest.mark.parametrize("where", SCALES)
def test_scales_of_float8_are_found_wherever_they_stand(
    where: str, wrapper: str, strict: bool, bert: Path, tmp_path: Path
) -> None:
    """The weights would load unscaled, 7.3e-3 off in one layer of a tiny BERT."""

    def change(arrays: Arrays) -> None:
        arrays[f"{LAYER}.weight"] = (arrays[f"{LAYER}.weight"] / 0.01).astype(ml_dtypes.float8_e4m3fn)
        own = {f"{wrapper}{name}": array for name, array in arrays.items()}
        inside = SCALES[where].startswith(LAYER)
        arrays.clear()
        arrays.update(own | {f"{wrapper if inside else ''}{SCALES[where]}": np.full(1, 0.01, np.float32)})

    folder = checkpoints.copy_of(bert, tmp_path / "q", change)
    with pytest.raises(WeightsError, match="quantised") as caught:
        zoo.load(folder, "numpy", strict=strict)
    assert SCALES[where] in str(caught.value)
    with pytest.raises(WeightsError, match="quantised"):
        zoo.convert(folder, tmp_path / "out")


def test_float8_alone_is_a_plain_cast_and_said(bert: Path, tmp_path: Path) -> None:
    """A copy of the weights elsewhere in the file (a momentum encoder's) is no scale, and neither are positions."""

    def change(arrays: Arrays) -> None:
        weight = arrays[f"{LAYER}.weight"]
        narrow = weight.astype(ml_dtypes.float8_e4m3fn)
        arrays |= {f"{LAYER}.weight": narrow, f"teacher_m.{LAYER}.weight": narrow.astype(np.float32)}
        arrays["bert.embeddings.position_ids"] = np.arange(31)[None]

    def widened(arrays: Arrays) -> None:
        arrays[f"{LAYER}.weight"] = arrays[f"{LAYER}.weight"].astype(ml_dtypes.float8_e4m3fn).astype(np.float32)

    folder = checkpoints.copy_of(bert, tmp_path / "q", change)
    model = zoo.load(folder, "numpy")
    (note,) = (note for note in model.notes if "plain cast" in note)
    assert LAYER in note
    wide = zoo.load(checkpoints.copy_of(bert, tmp_path / "wide", widened), "numpy")
    ids = np.arange(1, 8)[None]
    assert np.array_equal(model(input_ids=ids).logits, wide(input_ids=ids).logits)
    result = zoo.convert(folder, tmp_path / "out", dtype="float32", verify=True)
    assert note in result.notes
    assert not any("plain cast" in note for note in wide.notes)


def test_scales_that_may_be_another_parts_can_be_left_out(bert: Path, tmp_path: Path) -> None:
    """`quant.query.amax` names no layer; a head with whole numbers of its own explains its scales itself."""
    apart = checkpoints.copy_of(bert, tmp_path / "x", lambda arrays: arrays.update({"quant.query.amax": F32}))
    with pytest.raises(WeightsError, match=r"quantised[\s\S]*quant\.query\.amax"):
        zoo.load(apart, "numpy")
    (note,) = zoo.load(apart, "numpy", strict=False).notes
    assert "quant.query.amax" in note
    head = {"lm_head.weight": np.ones((3, 3), np.int8), "lm_head.weight_scale": F32}
    own = checkpoints.copy_of(bert, tmp_path / "y", lambda arrays: arrays.update(head))
    assert len(zoo.load(own, "numpy").notes) == 2


def test_a_module_inside_the_base_is_no_other_tasks_head(bert: Path, tmp_path: Path) -> None:
    names = "bert.encoder.final_layer_norm", "qa_outputs", "bert.embeddings_project", "classifier_norm"
    extra = {f"{name}.weight": F32 for name in names}
    folder = checkpoints.copy_of(bert, tmp_path / "x", lambda arrays: arrays.update(extra))
    notes = zoo.load(folder, "numpy").notes
    inner, head, child, top = (next(note for note in notes if name in note) for name in names)
    assert "no module bert.encoder.final_layer_norm" in inner and "this task does not have" in head
    assert "no class of bert has a module bert.embeddings_project" in child
    assert "no class of bert has a module classifier_norm" in top
    for form in ("npz", "safetensors", "torch"):
        said = zoo.convert(folder, tmp_path / form, form).notes
        assert [name for name in names if any(name in note for note in said)] == [names[0], *names[2:]]
    dropped = zoo.convert(folder, tmp_path / "flax", "flax").dropped
    assert [why for name, why in dropped.items() if "embeddings_project" in name] == [child.partition(": ")[2]]


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_a_config_that_says_quantised_is_refused_by_its_method(key: str, bert: Path, tmp_path: Path) -> None:
    folder = checkpoints.edit_config(
        checkpoints.copy_of(bert, tmp_path / "q"), **{key: {"quant_method": "gptq", "bits": 4}}
    )
    said = refused(folder, tmp_path / "out")
    assert key in said and "gptq" in said and "4 bits" in said


def lora(arrays: Arrays, layer: str) -> None:
    arrays[f"{layer}.lora_A.default.weight"] = np.ones((2, 24), np.float32)
    arrays[f"{layer}.lora_B.default.weight"] = np.ones((24, 2), np.float32)


def based(arrays: Arrays, layer: str) -> None:
    lora(arrays, layer)
    for leaf in ("weight", "bias"):
        arrays[f"{layer}.base_layer.{leaf}"] = arrays.pop(f"{layer}.{leaf}")


ADAPTED: dict[str, Callable[[Arrays, str], Any]] = {
    "LoRA beside": lora,
    "LoRA and its base": based,
    "DoRA": lambda a, n: (lora(a, n), a.update({f"{n}.lora_magnitude_vector.default.weight": F32})),
    "IA3": lambda a, n: a.update({f"{n}.ia3_l.default": F32}),
    "LoHa": lambda a, n: a.update({f"{n}.hada_w1_a.default": F32}),
    "modules_to_save": lambda a, n: a.update({f"{n}.modules_to_save.default.weight": a[f"{n}.weight"] + 1}),
    "P-tuning": lambda a, n: a.update({"prefix_encoder.embedding.weight": F32}),
    "prompts": lambda a, n: a.update({"bert.embeddings.soft_prompt.weight": F32}),
    "of an embedding": lambda a, n: a.update({"bert.embeddings.word_embeddings.lora_embedding_A.default": F32}),
}


@pytest.mark.parametrize("layer", [LAYER, *HEADS])
@pytest.mark.parametrize("case", ADAPTED)
@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_adapters_in_the_file_are_refused(prefix: str, case: str, layer: str, bert: Path, tmp_path: Path) -> None:
    def change(arrays: Arrays) -> None:
        ADAPTED[case](arrays, layer)
        for name in list(arrays):
            arrays[prefix + name] = arrays.pop(name)

    folder = checkpoints.copy_of(bert, tmp_path / "a", change)
    for attempt in (lambda: zoo.load(folder, "numpy"), lambda: zoo.convert(folder, tmp_path / "out")):
        with pytest.raises(WeightsError, match="adapter") as caught:
            attempt()
        assert "merge_and_unload" in str(caught.value)


def test_an_adapter_outside_the_wrapper_is_refused(bert: Path, tmp_path: Path) -> None:
    def change(arrays: Arrays) -> None:
        lora(arrays, f"adapter.{LAYER}")
        for name in list(arrays):
            if not name.startswith("adapter."):
                arrays[f"model.{name}"] = arrays.pop(name)

    with pytest.raises(WeightsError, match="adapter"):
        zoo.load(checkpoints.copy_of(bert, tmp_path / "a", change), "numpy")


def adapter(folder: Path, file: str = "adapter_model.safetensors") -> Path:
    """A folder with an adapter as PEFT writes it."""
    folder.mkdir(exist_ok=True)
    tensors: Arrays = {}
    lora(tensors, f"base_model.model.{LAYER}")
    save_file(tensors, folder / file)
    config = {"peft_type": "LORA", "base_model_name_or_path": "somebody/base", "r": 2}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "file", ["adapter_model.safetensors", "adapters.safetensors", "pytorch_lora_weights.safetensors"]
)
def test_an_adapter_beside_its_base_is_refused(file: str, bert: Path, tmp_path: Path) -> None:
    folder = adapter(checkpoints.copy_of(bert, tmp_path / "a"), file)
    said = refused(folder, tmp_path / "out")
    assert file in said and "somebody/base" in said and "LORA" in said and "merge_and_unload" in said
    # The base alone, for whoever names it: what the message says to do.
    model = zoo.load(folder / "model.safetensors", "numpy")
    assert [note for note in model.notes if file in note and "not applied" in note]
    zoo.convert(folder / "model.safetensors", tmp_path / "base")
    assert not (tmp_path / "base" / "adapter_config.json").exists()
    model.save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "adapter_config.json").exists()


def test_an_adapter_alone_is_refused(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    said = refused(folder, tmp_path / "out")
    assert "adapter_model.safetensors" in said and "somebody/base" in said
    assert "somebody/base" in refused(folder / "adapter_model.safetensors", tmp_path / "out")
    (folder / "adapter_config.json").unlink()
    shutil.move(folder / "adapter_model.safetensors", folder / "model.safetensors")
    assert "lora_A" in refused(folder, tmp_path / "out")


def test_what_is_in_an_adapters_folder_can_be_seen(bert: Path, tmp_path: Path) -> None:
    """Loading refuses it; `zoo inspect` is how to find out why."""
    alone, beside = adapter(tmp_path / "a"), adapter(checkpoints.copy_of(bert, tmp_path / "b"))
    for folder, bases in ((alone, []), (beside, ["model.safetensors"])):
        shown = CliRunner().invoke(app, ["inspect", str(folder)])
        assert shown.exit_code == 0 and "lora_A" in shown.output and "somebody/base" in shown.output
        told = json.loads(CliRunner().invoke(app, ["inspect", str(folder), "--json"]).stdout)
        assert told["adapter"]["peft_type"] == "LORA"
        assert [Path(file["path"]).name for file in told["files"]] == ["adapter_model.safetensors", *bases]
        assert any("lora_B" in name for name in told["files"][0]["tensors"])


def test_the_config_of_an_adapter_that_is_gone_is_said_and_not_copied(bert: Path, tmp_path: Path) -> None:
    folder = adapter(checkpoints.copy_of(bert, tmp_path / "a"))
    (folder / "adapter_model.safetensors").unlink()
    assert "adapter_config.json" in zoo.load(folder, "numpy").notes[-1]
    zoo.convert(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_a_parameter_held_twice(bert: Path, tmp_path: Path) -> None:
    """With the base model's prefix and without: equal, one of them is read; else nobody knows which is meant."""
    name = f"{LAYER}.weight"
    short = name.removeprefix("bert.")
    same = checkpoints.copy_of(bert, tmp_path / "same", lambda a: a.update({short: a[name].copy()}))
    assert np.array_equal(zoo.load(same, "numpy").params[name], checkpoints.tensors(bert)[name])
    assert zoo.convert(same, tmp_path / "out").dropped[short] == "it is the same as another tensor, which is written"
    other = checkpoints.copy_of(bert, tmp_path / "other", lambda a: a.update({short: a[name] + 1}))
    for attempt in (lambda: zoo.load(other, "numpy"), lambda: zoo.convert(other, tmp_path / "out2")):
        with pytest.raises(WeightsError, match="twice") as caught:
            attempt()
        assert short in str(caught.value) and name in str(caught.value)


def test_what_other_heads_have_is_still_left_out(bert: Path, tmp_path: Path) -> None:
    extra = {
        "cls.predictions.transform.dense.weight": np.ones((24, 24), np.float32),
        "qa_outputs.bias": np.ones(2, np.float32),
        "bert.embeddings.position_ids": np.arange(31)[None],
    }
    folder = checkpoints.copy_of(bert, tmp_path / "c", lambda arrays: arrays.update(extra))
    assert sum(any(name in note for name in extra) for note in zoo.load(folder, "numpy").notes) == 3
    assert "qa_outputs.bias" in zoo.convert(folder, tmp_path / "out").names


def test_an_adapter_beside_its_base_names_the_base(bert: Path, tmp_path: Path) -> None:
    """As PEFT saves one into the folder of the model."""
    folder = shutil.copytree(bert, tmp_path / "both")
    parts = {f"base_model.model.{LAYER}.lora_{part}.weight": F32[None] for part in "AB"}
    save_file(parts, folder / "adapter_model.safetensors", {"format": "pt"})
    said = {"base_model_name_or_path": "lora-base", "peft_type": "LORA", "r": 1, "target_modules": ["dense"]}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    assert "lora-base" in refused(folder, tmp_path / "out")


def test_a_heads_scale_is_named(bert: Path, tmp_path: Path) -> None:
    folder = checkpoints.copy_of(bert, tmp_path / "q", lambda arrays: int8(arrays, "classifier", "weight.scale"))
    assert "classifier.weight.scale" in refused(folder, tmp_path / "out")
