"""keras.applications' names against what Keras computes, and against the real names of its files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from dialect_files import Tiny, assert_close, assert_same, round_trip, transformers_output

import zoo
from converters.checkpoint import MemoryCheckpoint
from converters.dialects import keras_applications as dialect
from converters.view import View
from zoo.errors import ConfigError, WeightsError


def test_a_resnet_gives_keras_outputs_although_its_biases_have_no_place(tmp_path):
    tiny = Tiny("keras-resnet")
    checkpoint = tiny.checkpoint(tmp_path)
    assert dialect.recognises(checkpoint)
    config = dialect.config(checkpoint)
    assert config["depths"] == [1, 2, 1, 1] and config["hidden_sizes"] == [8, 12, 16, 20]
    assert config["downsample_in_bottleneck"] and config["num_labels"] == 7
    ours, back = round_trip(dialect, checkpoint, config)
    assert_close(transformers_output(tmp_path, ours, config, tiny.inputs), tiny.output)
    assert set(back.infos) == set(tiny.weights)
    for name, array in tiny.weights.items():  # the biases went into the means, and the eps into the variances
        if name.endswith("_conv/bias:0"):
            assert not back.read(name).any()
        elif "moving_" not in name:
            np.testing.assert_array_equal(back.read(name), array, name)


def test_what_was_written_computes_the_same(tmp_path):
    tiny = Tiny("keras-resnet")
    checkpoint = tiny.checkpoint(tmp_path)
    config = dialect.config(checkpoint)
    _, back = round_trip(dialect, checkpoint, config)
    again = View(back, dialect.canonical(back, config))
    assert_close(transformers_output(tmp_path, again, config, tiny.inputs), tiny.output)


def test_the_old_names_are_the_same_model_with_the_old_eps(tmp_path):
    tiny = Tiny("keras-resnet")
    new = View(tiny.checkpoint(tmp_path), {name.removesuffix(":0"): _same(name) for name in tiny.weights})
    old = View(new, {_old_name(name): _same(name) for name in new.infos})
    assert dialect.recognises(old)
    ours, theirs = (View(c, dialect.canonical(c, {})) for c in (old, new))
    assert set(ours.infos) == set(theirs.infos)
    for name in ours.infos:
        if name.endswith("running_var"):
            moved = ours.read(name).astype(float) - theirs.read(name)
            np.testing.assert_allclose(moved, 1e-3 - 1.001e-5, atol=np.finfo(np.float32).eps)
        else:
            np.testing.assert_array_equal(ours.read(name), theirs.read(name), name)


@pytest.mark.parametrize("kind", ["new", "mobl"])
def test_mobilenet_v2_of_both_spellings(kind):
    config = transformers.MobileNetV2Config(tf_padding=True, depth_multiplier=0.35, num_labels=9)
    with torch.device("meta"):
        model = transformers.MobileNetV2ForImageClassification(config)
    rng = np.random.default_rng(0)
    arrays = {name: rng.random(tuple(t.shape), np.float32) for name, t in model.state_dict().items()}
    kept = {name: array for name, array in arrays.items() if not name.endswith("num_batches_tracked")}
    canonical = MemoryCheckpoint(arrays)
    theirs = View(canonical, dialect.foreign(canonical, config.to_dict() | {"model_type": "mobilenet_v2"}))
    assert theirs.infos["block_3_depthwise/block_3_depthwise/depthwise_kernel:0"].shape == (3, 3, 48, 1)
    if kind == "mobl":  # as the first files that Keras published spell them
        theirs = View(theirs, {_mobl(name): _same(name) for name in theirs.infos})
        assert theirs.infos["mobl3_conv_3_depthwise/mobl3_conv_3_depthwise/depthwise_kernel:0"].shape == (3, 3, 48, 1)
    assert dialect.recognises(theirs)
    assert_same(View(theirs, dialect.canonical(theirs, {})), kept)
    derived = dialect.config(theirs)
    assert (derived["depth_multiplier"], derived["tf_padding"], derived["layer_norm_eps"]) == (0.35, True, 1e-3)


def test_the_state_of_the_optimizer_is_left_out_and_other_tensors_are_named(tmp_path):
    tiny = Tiny("keras-resnet")
    tiny.weights["optimizer_weights/Adam/m:0"] = np.ones(3, np.float32)
    dialect.canonical(tiny.checkpoint(tmp_path), {})
    tiny.weights["conv9_block1_1_conv/conv9_block1_1_conv/kernel:0"] = np.ones(3, np.float32)
    with pytest.raises(WeightsError, match="conv9_block1_1_conv"):
        dialect.canonical(tiny.checkpoint(tmp_path), {})


def test_a_resnet_with_the_stride_elsewhere_is_not_keras():
    with pytest.raises(ConfigError, match="downsample_in_bottleneck"):
        dialect.foreign(MemoryCheckpoint({}), {"model_type": "resnet", "downsample_in_bottleneck": False})


def _keras(config):
    """The model of keras.applications; ResNet's blocks for any number of them are not public."""
    import keras
    from keras.src.applications import resnet

    def stacks(x):
        for stage, depth in enumerate(config.depths):
            x = resnet.stack_residual_blocks_v1(x, 64 << stage, depth, stride1=1 + (stage > 0), name=f"conv{stage + 2}")
        return x

    options = {"weights": None, "classes": 7, "classifier_activation": None, "input_shape": (32, 32, 3)}
    if config.model_type == "resnet":
        return resnet.ResNet(stacks, False, True, **options)
    return keras.applications.MobileNetV2(alpha=config.depth_multiplier, **options)


WRITTEN = {
    "resnet": transformers.ResNetConfig(
        embedding_size=64, hidden_sizes=[256, 512], depths=[2, 1], num_labels=7, downsample_in_bottleneck=True
    ),
    "mobilenet_v2": transformers.MobileNetV2Config(
        depth_multiplier=0.35, image_size=32, tf_padding=True, layer_norm_eps=1e-3, hidden_act="relu6", num_labels=7
    ),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_keras_loads_what_is_written_and_computes_the_same(kind, tmp_path):
    """By order, as its load_weights does, from a name that it takes for this layout."""
    torch.manual_seed(0)
    model = transformers.AutoModelForImageClassification.from_config(WRITTEN[kind]).eval()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():  # every statistic and offset another one
            tensor += 0.1 * (torch.rand_like(tensor) if name.endswith("running_var") else torch.randn_like(tensor))
    model.save_pretrained(tmp_path / "in")
    zoo.convert(tmp_path / "in", tmp_path / "out", "keras-applications")
    theirs = _keras(WRITTEN[kind])
    theirs.load_weights(next((tmp_path / "out").glob("*.h5")))
    pixels = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels)).logits.numpy()
    assert_close(theirs.predict(pixels.transpose(0, 2, 3, 1), verbose=0), expected)


def _same(name):
    from converters.view import Recipe

    return Recipe(name)


def _old_name(name):
    import re

    layer = name.split("/")[0]
    old = {"conv1_conv": "conv1", "conv1_bn": "bn_conv1"}.get(layer, layer)
    match = re.fullmatch(r"conv(\d)_block(\d+)_(\d)_(conv|bn)", layer)
    if match:
        branch = {"0": "1", "1": "2a", "2": "2b", "3": "2c"}[match[3]]
        old = f"{'res' if match[4] == 'conv' else 'bn'}{match[1]}{'abcdef'[int(match[2]) - 1]}_branch{branch}"
    return f"{old}/{name.rpartition('/')[2]}"


def _mobl(name):
    import re

    layer, _, variable = name.partition("/")[0], "", name.rpartition("/")[2]
    match = re.fullmatch(r"(?:block_(\d+)|expanded_conv)_(expand|depthwise|project)(_BN)?", layer)
    if match:
        number = match[1] or "0"
        layer = f"{'bn' if match[3] else 'mobl'}{number}_conv_{number}_{'bn_' if match[3] else ''}{match[2]}"
    layer = {"predictions": "Logits"}.get(layer, layer)
    return f"{layer}/{layer}/{variable}"
