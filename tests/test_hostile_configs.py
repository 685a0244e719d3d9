"""config.json as somebody else wrote it: it reaches nothing, asks for no more than the file holds, errors name it."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import checkpoints
import pytest

import zoo
from zoo.errors import ConfigError, WeightsError, ZooError

REACHING: dict[str, Any] = {
    "_attn_implementation": "someone/kernels",
    "attn_implementation": "someone/kernels@main:flash",
    "_attn_implementation_internal": "someone/kernels",
    "attn_implementation_autoset": True,
    "_experts_implementation": "someone/experts",
    "experts_implementation": "deepgemm",
    "_experts_implementation_internal": "sonicmoe",
    "auto_map": {"AutoModel": "someone/code--modeling.Model", "AutoConfig": "someone/code--config.Config"},
    "trust_remote_code": True,
    "code_revision": "main",
    "custom_pipelines": {"x": {"impl": "pipe.Pipe", "pt": ["AutoModel"]}},
    "use_kernels": True,
    "kernel_config": {"RMSNorm": "someone/kernels:Norm"},
    "fusion_config": {"patch_embeddings": True},
    "_name_or_path": "someone/model",
    "name_or_path": "someone/model",
    "_commit_hash": "0" * 40,
    "use_pretrained_backbone": True,
    "use_timm_backbone": False,
    "pretrained": True,
    "checkpoint_path": "/etc/passwd",
    "target_lang": "eng",
    "transformers_weights": "someone.safetensors",
    "distributed_config": {"tp_size": 2},
    "adapters": {"x": "someone/adapter"},
    "per_layer_config": None,
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was tried to reach: names looked up, addresses, processes; none of it happens."""
    tried: list[str] = []

    def refused(what: str) -> Any:
        def refuse(*args: Any, **_: Any) -> Any:
            tried.append(f"{what}: {args[:2]}")
            raise OSError(f"{what} is blocked")

        return refuse

    for owner, name in (
        (socket.socket, "connect"), (socket.socket, "connect_ex"), (socket, "getaddrinfo"),
        (socket, "create_connection"), (subprocess.Popen, "__init__"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, refused(name))
    return tried


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    return {kind: checkpoints.save(root / kind, kind) for kind in ("bert", "resnet")}


def safetensors_header(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return dict(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]))


def changed(folder: Path, to: Path, **fields: Any) -> Path:
    return checkpoints.edit_config(checkpoints.copy_of(folder, to), **fields)


def test_no_field_reaches_out(folders: dict[str, Path], tmp_path: Path, asked: list[str]) -> None:
    """All at once, and wherever a config may nest."""
    fields = REACHING | {"inner": [REACHING], "more": {"deep": REACHING}}
    folder, inputs = changed(folders["bert"], tmp_path / "in", **fields), checkpoints.inputs_of("bert")
    found = zoo.load(folder, "numpy")(**inputs).last_hidden_state
    expected = checkpoints.reference(folders["bert"], "bert", inputs)["last_hidden_state"]
    assert abs(found - expected).max() <= 1e-12 * abs(expected).max()
    with pytest.raises(ConfigError):  # a BERT's layers cannot differ
        zoo.load(changed(folder, tmp_path / "layers", per_layer_config={"0": REACHING}), "numpy")
    assert not asked


def test_no_field_of_a_config_inside_reaches_out(asked: list[str]) -> None:
    from zoo.capture.huggingface import build, config_from, model_class

    parts = {"text_config": REACHING | {"num_hidden_layers": 1}, "vision_config": REACHING | {"num_hidden_layers": 1}}
    config = config_from(REACHING | {"model_type": "clip"} | parts)
    module = build(config, model_class(config, "feature-extraction"))
    for part in (config, config.text_config, config.vision_config):
        assert part._attn_implementation in (None, "sdpa") and part._experts_implementation in (None, "eager")
        assert not hasattr(part, "auto_map") and not part._name_or_path
    assert module.config is config and not asked


@pytest.mark.parametrize("model_type", ["detr", "dpt", "upernet", "mask2former", "vitmatte", "rt_detr", "omdet-turbo"])
def test_a_backbone_is_never_fetched(model_type: str, tmp_path: Path, asked: list[str]) -> None:
    from zoo.capture.huggingface import build, config_from, model_class

    for backbone in ("microsoft/resnet-50", "resnet50", "hf-hub:someone/model", "local-dir:/etc"):
        fields = {"model_type": model_type, "backbone": backbone, "use_timm_backbone": False, "backbone_config": None}
        fields |= {"use_pretrained_backbone": True}
        try:
            config = config_from(fields)
            build(config, model_class(config, "feature-extraction"))
        except ZooError as error:
            assert str(error)
        else:
            assert "/" not in backbone
    assert not asked


def test_more_layers_than_the_file(folders: dict[str, Path], tmp_path: Path) -> None:
    for number, layers in enumerate((20_000, 10**9, 2**63)):
        folder = changed(folders["bert"], tmp_path / str(number), num_hidden_layers=layers)
        begun = time.process_time()
        with pytest.raises(ConfigError, match="num_hidden_layers") as caught:
            zoo.load(folder, "numpy")
        assert str(layers) in str(caught.value) and time.process_time() - begun < 20
        with pytest.raises(ConfigError, match="num_hidden_layers"):
            zoo.convert(folder, tmp_path / "out", "npz")
    folder = changed(folders["bert"], tmp_path / "some", num_hidden_layers=200)
    with pytest.raises(WeightsError, match="lacks"):
        zoo.load(folder, "numpy")


@pytest.mark.parametrize(
    "field", ["hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings", "type_vocab_size"]
)
def test_wider_than_the_file(field: str, folders: dict[str, Path], tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    folder = changed(folders["bert"], tmp_path / "in", **{field: 10**9})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for act in (lambda: zoo.load(folder, "numpy"), lambda: zoo.convert(folder, tmp_path / "out", "npz")):
        with pytest.raises(ConfigError, match=field):
            act()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # kB


def test_as_wide_as_the_file(folders: dict[str, Path], tmp_path: Path) -> None:
    """An embedding of more numbers than any model may have beside its file; the file's bytes are a hole."""
    words = 1 << 23
    folder = changed(folders["bert"], tmp_path / "in", vocab_size=words)
    path = folder / "model.safetensors"
    header = safetensors_header(path)
    at = 0
    for name, info in header.items():
        if name == "__metadata__":
            continue
        info["shape"] = [words, *info["shape"][1:]] if "word_embeddings" in name else info["shape"]
        info["shape"] = [words] if name == "cls.predictions.bias" else info["shape"]
        info["data_offsets"] = [at, at := at + 4 * math.prod(info["shape"])]
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    assert at > 4 << 26
    done = zoo.convert(folder, tmp_path / "out", "safetensors", dry_run=True)
    assert not done.dropped


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_attention_heads", 0), ("num_attention_heads", "four"), ("num_attention_heads", None),
        ("hidden_size", "wide"), ("hidden_size", -4), ("hidden_act", "nothing"), ("hidden_act", {}),
        ("layer_norm_eps", []), ("id2label", 5), ("id2label", {"a": "b"}), ("num_labels", 10**9), ("dtype", "float33"),
        ("architectures", 7), ("architectures", [7]), ("model_type", 7), ("model_type", ["bert"]),
        ("model_type", "../../bert"), ("rope_scaling", "x"), ("vocab_size", True),
    ],
)  # fmt: skip
def test_wrong_types_are_named(field: str, value: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(folders["bert"], tmp_path / "in", **{field: value})
    try:
        zoo.load(folder, "numpy")
    except ZooError as error:
        assert isinstance(error, (ConfigError, WeightsError)) and field in str(error)
    else:
        assert field in ("rope_scaling", "layer_norm_eps"), "only what a BERT does not read may pass"


def test_rotary_fields_of_wrong_types_are_named(tmp_path: Path) -> None:
    llama = checkpoints.save(tmp_path / "llama", "llama")
    for number, rope in enumerate((5, "x", [1], {"full_attention": 5}, {"rope_type": ["x"]}, {"rope_type": "yarn"})):
        folder = changed(llama, tmp_path / str(number), rope_parameters=rope)
        with pytest.raises(ZooError):
            zoo.convert(folder, tmp_path / "out", "gguf")


def test_images_larger_than_any(folders: dict[str, Path], tmp_path: Path) -> None:
    """A field that no weight follows from sets the size of the example that is traced."""
    folder = changed(folders["resnet"], tmp_path / "in", image_size=10**6)
    with pytest.raises(ZooError, match="image_size"):
        zoo.load(folder, "numpy")


def test_nesting(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = checkpoints.copy_of(folders["bert"], tmp_path / "in")
    config = json.loads((folder / "config.json").read_text())
    inner: dict[str, Any] = {}
    for _ in range(200):
        inner = {"a": inner}
    (folder / "config.json").write_text(json.dumps(config | {"deep": inner}))
    with pytest.raises(ConfigError, match="deep"):
        zoo.load(folder, "numpy")
