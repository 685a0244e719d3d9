"""Google's JAX models: ViT and SigLIP in npz against what Flax computes, T5X's folders by names set down by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dialect_files import Tiny, assert_close, assert_same, round_trip, transformers_output

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import zoo  # noqa: E402
from converters import open_checkpoint  # noqa: E402
from converters.checkpoint import MemoryCheckpoint  # noqa: E402
from converters.dialects import big_vision, derived_config, dialect_of, t5x  # noqa: E402
from converters.formats import npz  # noqa: E402
from converters.view import View  # noqa: E402
from zoo.errors import ConfigError, WeightsError  # noqa: E402


@pytest.mark.parametrize("name", ["vit", "flexivit", "siglip"])
def test_a_file_of_google_gives_what_flax_computes(name: str, tmp_path: Path) -> None:
    tiny = Tiny(f"big-vision-{name}")
    checkpoint = tiny.checkpoint(tmp_path, "model.npz")
    assert dialect_of(checkpoint) is big_vision
    config = derived_config(checkpoint)
    assert config is not None and config["model_type"] == ("siglip" if name == "siglip" else "vit")
    ours, back = round_trip(big_vision, checkpoint, config)
    if name == "flexivit":  # written as the older ones are, with a position of zeros for the class token
        again = View(back, big_vision.canonical(back, config))
        assert_same(again, {key: np.array(value) for key, value in ours.items()})
        assert not ours.read("vit.embeddings.position_embeddings")[:, 0].any()
    else:
        assert_same(back, tiny.weights)
    if name != "siglip":
        assert_close(transformers_output(tmp_path, ours, config, tiny.inputs), tiny.output)
        return
    npz.write(tmp_path / "model.npz", checkpoint)
    for file in ("model.safetensors", "config.json"):
        (tmp_path / file).unlink(missing_ok=True)
    found = zoo.load(tmp_path, "numpy")(**tiny.inputs)
    assert_close(np.asarray(found["logits_per_image"], np.float64), tiny.output)


@pytest.mark.parametrize("name", ["vit", "siglip"])
def test_layers_that_are_stacked(name: str, tmp_path: Path) -> None:
    """As models are saved that were trained in a scan over their layers."""
    tiny = Tiny(f"big-vision-{name}")
    usual = tiny.checkpoint(tmp_path)
    config = big_vision.config(usual)
    assert config is not None
    stacked: dict[str, np.ndarray] = {}
    for key, value in tiny.weights.items():
        if "/encoderblock_0/" in key:
            pair = value, tiny.weights[key.replace("/encoderblock_0/", "/encoderblock_1/")]
            stacked[key.replace("/encoderblock_0/", "/encoderblock/")] = np.stack(pair)
        elif "/encoderblock_1/" not in key:
            stacked[key] = value
    checkpoint = MemoryCheckpoint(stacked)
    assert big_vision.recognises(checkpoint) and big_vision.config(checkpoint) == config
    expected = View(usual, big_vision.canonical(usual, config))
    got = View(checkpoint, big_vision.canonical(checkpoint, config))
    assert_same(got, {key: np.array(value) for key, value in expected.items()})


def test_what_is_of_the_training_or_of_nothing(tmp_path: Path) -> None:
    tiny = Tiny("big-vision-vit")
    led = {f"opt/target/{key}": value for key, value in tiny.weights.items()}
    state = {"opt/state/step": np.zeros(1, np.float32)}
    checkpoint = MemoryCheckpoint(led | state)
    assert big_vision.recognises(checkpoint)
    config = big_vision.config(checkpoint)
    assert config == big_vision.config(tiny.checkpoint(tmp_path))
    assert set(View(checkpoint, big_vision.canonical(checkpoint, {})).infos) == set(
        View(tiny.checkpoint(tmp_path), big_vision.canonical(tiny.checkpoint(tmp_path), {})).infos
    )
    tiny.weights["Transformer/encoderblock_1/LayerNorm_7/scale"] = np.ones(12, np.float32)
    with pytest.raises(WeightsError, match="LayerNorm_7"):
        big_vision.canonical(tiny.checkpoint(tmp_path), {})
    with pytest.raises(ConfigError, match="bert"):
        big_vision.foreign(checkpoint, {"model_type": "bert"})
    del tiny.weights["cls"], tiny.weights["Transformer/encoderblock_1/LayerNorm_7/scale"]
    assert big_vision.config(tiny.checkpoint(tmp_path)) is None  # no model of Hugging Face's has no class token


# --- T5X ---

SIZES: dict[str, Any] = {
    "d_model": 40, "d_kv": 6, "num_heads": 4, "d_ff": 37, "num_layers": 2, "num_decoder_layers": 3, "vocab_size": 61,
    "relative_attention_num_buckets": 10,
}  # fmt: skip
NEWER = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
ENCODER = {
    "pre_attention_layer_norm/scale": "layer.0.layer_norm.weight",
    "attention/query/kernel": "layer.0.SelfAttention.q.weight",
    "attention/key/kernel": "layer.0.SelfAttention.k.weight",
    "attention/value/kernel": "layer.0.SelfAttention.v.weight",
    "attention/out/kernel": "layer.0.SelfAttention.o.weight",
    "pre_mlp_layer_norm/scale": "layer.1.layer_norm.weight",
    "mlp/wi/kernel": "layer.1.DenseReluDense.wi.weight",
    "mlp/wi_0/kernel": "layer.1.DenseReluDense.wi_0.weight",
    "mlp/wi_1/kernel": "layer.1.DenseReluDense.wi_1.weight",
    "mlp/wo/kernel": "layer.1.DenseReluDense.wo.weight",
}
DECODER = {
    "pre_self_attention_layer_norm/scale": "layer.0.layer_norm.weight",
    "self_attention/query/kernel": "layer.0.SelfAttention.q.weight",
    "self_attention/key/kernel": "layer.0.SelfAttention.k.weight",
    "self_attention/value/kernel": "layer.0.SelfAttention.v.weight",
    "self_attention/out/kernel": "layer.0.SelfAttention.o.weight",
    "pre_cross_attention_layer_norm/scale": "layer.1.layer_norm.weight",
    "encoder_decoder_attention/query/kernel": "layer.1.EncDecAttention.q.weight",
    "encoder_decoder_attention/key/kernel": "layer.1.EncDecAttention.k.weight",
    "encoder_decoder_attention/value/kernel": "layer.1.EncDecAttention.v.weight",
    "encoder_decoder_attention/out/kernel": "layer.1.EncDecAttention.o.weight",
    "pre_mlp_layer_norm/scale": "layer.2.layer_norm.weight",
    "mlp/wi/kernel": "layer.2.DenseReluDense.wi.weight",
    "mlp/wi_0/kernel": "layer.2.DenseReluDense.wi_0.weight",
    "mlp/wi_1/kernel": "layer.2.DenseReluDense.wi_1.weight",
    "mlp/wo/kernel": "layer.2.DenseReluDense.wo.weight",
}
ALONE = {
    "token_embedder/embedding": "shared.weight",
    "encoder/relpos_bias/rel_embedding": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "decoder/relpos_bias/rel_embedding": "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
    "decoder/decoder_norm/scale": "decoder.final_layer_norm.weight",
    "decoder/logits_dense/kernel": "lm_head.weight",
}


@pytest.mark.parametrize("fields", [{}, NEWER], ids=["1.0", "1.1"])
def test_a_folder_of_t5x(fields: dict[str, Any], tmp_path: Path) -> None:
    """zarr arrays as T5X lays them out; the model of it is the one that was written, config and all."""
    tensorstore = pytest.importorskip("tensorstore")
    config = transformers.T5Config(**SIZES, **fields)
    model = transformers.T5ForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    if fields:
        with torch.no_grad():  # the class ties by itself what these checkpoints have apart
            model.lm_head.weight = torch.nn.Parameter(torch.randn(61, 40, generator=generator))
        state["lm_head.weight"] = model.lm_head.weight.detach().numpy()

    folder = tmp_path / "checkpoint_1000"
    folder.mkdir()
    (folder / "checkpoint").write_bytes(b"\x81\xa7version\x03")
    names = dict(ALONE)
    for stack, table, count in (("encoder", ENCODER, 2), ("decoder", DECODER, 3)):
        for layer in range(count):
            names |= {f"{stack}/layers_{layer}/{t}": f"{stack}.block.{layer}.{o}" for t, o in table.items()}
    arrays = {theirs: state[ours] for theirs, ours in names.items() if ours in state}
    if not fields:
        del arrays["decoder/logits_dense/kernel"]
    turned = {
        f"target/{theirs}": array.T if theirs.endswith(("kernel", "rel_embedding")) else array
        for theirs, array in arrays.items()
    }
    for theirs, array in (turned | {"state/param_states/token_embedder/v": np.ones(3, np.float32)}).items():
        metadata = {
            "shape": array.shape,
            "chunks": array.shape,
            "dtype": "<f4",
            "compressor": {"id": "gzip", "level": 1},
        }
        place = {"driver": "file", "path": str(folder / theirs.replace("/", "."))}
        spec = {"driver": "zarr", "kvstore": place, "metadata": metadata, "create": True}
        tensorstore.open(spec).result().write(array).result()

    with open_checkpoint(folder) as checkpoint:
        assert dialect_of(checkpoint) is t5x
        derived = t5x.config(checkpoint)
    expected = config.to_dict()
    assert {key: derived[key] for key in SIZES} == SIZES
    assert derived["tie_word_embeddings"] is not bool(fields)
    assert derived["feed_forward_proj"] == expected["feed_forward_proj"]
    ids = {"input_ids": np.arange(3, 12)[None], "decoder_input_ids": np.arange(5)[None]}
    with torch.no_grad():
        wanted = model.double()(**{key: torch.from_numpy(value) for key, value in ids.items()}).logits.numpy()
    assert_close(np.asarray(zoo.load(folder, "numpy")(**ids)["logits"]), wanted)
    done = zoo.convert(folder, tmp_path / "out", verify=True)
    assert done.dialect == "t5x" and done.verified == "every tensor and the outputs"
    assert done.dropped["state/param_states/token_embedder/v"] == "state of the training"
