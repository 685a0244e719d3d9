"""timm's and torchvision's names against what timm computes, and against transformers' own names and shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from dialect_files import Tiny, assert_close, assert_same, round_trip, transformers_output
from safetensors.numpy import load_file

import zoo
from converters.checkpoint import MemoryCheckpoint
from converters.dialects import timm, torchvision
from converters.view import View
from zoo.errors import ConfigError, WeightsError

_VIT = {
    "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 24, "image_size": 20,
    "patch_size": 5, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_labels": 7,
}  # fmt: skip
CONFIGS = {
    "vit": {"model_type": "vit", "architectures": ["ViTForImageClassification"], **_VIT},
    "deit": {"model_type": "deit", "architectures": ["DeiTForImageClassificationWithTeacher"], **_VIT},
    "dinov2": {"model_type": "dinov2", "architectures": ["Dinov2Model"], "mlp_ratio": 4, **_VIT},
}


@pytest.mark.parametrize("name", [*CONFIGS, "resnet-basic", "resnet-bottleneck"])
def test_a_file_of_timm_gives_timms_outputs(name, tmp_path):
    tiny = Tiny(f"timm-{name}")
    checkpoint = tiny.checkpoint(tmp_path)
    dialect = torchvision if "resnet" in name else timm
    assert dialect.recognises(checkpoint) and not (timm if dialect is torchvision else torchvision).recognises(
        checkpoint
    )
    config = CONFIGS.get(name) or torchvision.config(checkpoint)
    ours, back = round_trip(dialect, checkpoint, config)
    assert_same(back, tiny.weights)
    assert_close(transformers_output(tmp_path, ours, config, tiny.inputs), tiny.output)


def test_the_config_of_a_resnet_follows_from_its_tensors(tmp_path):
    found = torchvision.config(Tiny("timm-resnet-bottleneck").checkpoint(tmp_path))
    assert found == {
        "model_type": "resnet",
        "architectures": ["ResNetForImageClassification"],
        "num_labels": 7,
        "num_channels": 3,
        "embedding_size": 64,
        "hidden_sizes": [8, 12, 16, 24],
        "depths": [1, 1, 2, 1],
        "layer_type": "bottleneck",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }


@pytest.mark.parametrize(
    ("dialect", "made", "fields"),
    [
        (timm, "ViTForImageClassification", {"image_size": 48}),
        (timm, "DeiTForImageClassificationWithTeacher", {"image_size": 48}),
        (timm, "Dinov2Model", {"image_size": 42, "patch_size": 14}),
        (timm, "Dinov2WithRegistersModel", {"image_size": 42, "patch_size": 14}),
        (timm, "Dinov2WithRegistersModel", {"use_swiglu_ffn": True, "patch_size": 14, "image_size": 42}),
        (torchvision, "ViTForImageClassification", {"image_size": 48}),
        (torchvision, "MobileNetV2ForImageClassification", {"tf_padding": False, "depth_multiplier": 0.35}),
        (torchvision, "ResNetForImageClassification", {}),
    ],
)  # fmt: skip
def test_every_tensor_of_transformers_has_a_place_and_the_config_comes_back(dialect, made, fields):
    made = getattr(transformers, made)
    if made.__name__.startswith(("ViT", "DeiT", "Dino")):
        fields = {"hidden_size": 192, "num_attention_heads": 3, "num_hidden_layers": 2, **fields}
    if made.__name__.startswith("MobileNet"):
        fields = {"layer_norm_eps": 1e-5, **fields}
    if "Classification" in made.__name__:
        fields = {"num_labels": 9, **fields}
    config = made.config_class(**fields, architectures=[made.__name__])
    with torch.device("meta"):
        model = made(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in _published(model).items()}
    rng = np.random.default_rng(0)
    arrays = {name: rng.random(shape, np.float32) for name, shape in shapes.items()}
    canonical = MemoryCheckpoint(arrays)
    theirs = View(canonical, dialect.foreign(canonical, config.to_dict()))
    assert dialect.recognises(theirs)
    assert_same(View(theirs, dialect.canonical(theirs, {})), arrays)
    derived = dialect.config(theirs)
    assert derived is not None
    for key, value in made.config_class(**derived).to_dict().items():
        if key not in ("layer_norm_eps", "intermediate_size", "classifier_dropout_prob"):
            assert value == config.to_dict()[key] or list(value) == list(config.to_dict()[key]), key


def test_the_fused_projection_is_in_the_order_query_key_value(tmp_path):
    tiny = Tiny("timm-vit")
    checkpoint = tiny.checkpoint(tmp_path)
    ours = View(checkpoint, timm.canonical(checkpoint, {}))
    for i, part in enumerate(("query", "key", "value")):
        got = ours.read(f"vit.encoder.layer.1.attention.attention.{part}.weight")
        np.testing.assert_array_equal(got, tiny.weights["blocks.1.attn.qkv.weight"][12 * i : 12 * (i + 1)])


def test_what_the_model_has_no_place_for_is_named(tmp_path):
    tiny = Tiny("timm-vit")
    tiny.weights["blocks.1.attn.q_norm.weight"] = np.ones(4, np.float32)
    checkpoint = tiny.checkpoint(tmp_path)
    with pytest.raises(WeightsError, match=r"blocks\.1\.attn\.q_norm\.weight"):
        timm.canonical(checkpoint, {})
    with pytest.raises(ConfigError, match="bert"):
        timm.foreign(checkpoint, {"model_type": "bert"})


def test_a_width_whose_number_of_heads_is_not_known_gives_no_config(tmp_path):
    assert timm.config(Tiny("timm-vit").checkpoint(tmp_path)) is None


@pytest.mark.parametrize("fields", [{"use_swiglu_ffn": True}, {"use_mask_token": False}])
def test_a_dinov2_is_written_with_its_gated_mlp_and_without_a_token_for_masks(fields, tmp_path):
    sizes = {"hidden_size": 192, "num_attention_heads": 3, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    config = transformers.Dinov2Config(**sizes, **fields, architectures=["Dinov2Model"])
    torch.manual_seed(0)
    model = transformers.Dinov2Model(config).eval()
    model.save_pretrained(tmp_path / "torch")
    zoo.convert(tmp_path / "torch", tmp_path / "timm", "timm", verify=True)
    arrays = load_file(tmp_path / "timm" / "model.safetensors")
    assert ("mask_token" in arrays) == fields.get("use_mask_token", True)
    if "use_swiglu_ffn" in fields:  # the authors': gate before value, one matrix
        mlp = model.encoder.layer[0].mlp
        gate, value = (part.weight.detach().numpy() for part in (mlp.gate_proj, mlp.up_proj))
        np.testing.assert_array_equal(arrays["blocks.0.mlp.w12.weight"], np.concatenate([gate, value]))


def _published(model):
    """The state dict under the names of checkpoints, which transformers 5 turns into its own as it loads."""
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, model.state_dict())
