"""Tiny models of timm, keras.applications and keras-hub with what they compute, for the tests of their dialects.

Each file of tests/data/dialects is a safetensors file: the model's tensors under its program's own names, inputs as
"in:name", outputs as "out:name", and in the metadata what the model says of itself. Needs timm, torchvision, keras and
keras-hub, in an environment of their own (keras-hub and torchvision in one process are no trouble, transformers is):

    KERAS_BACKEND=jax python tests/oracle/make_dialect_files.py [timm | keras_applications | keras_hub]

and, in the environment of requirements.txt, for Flax, whose own numbering of layers is what Google's files have, and
SentencePiece:

    python tests/oracle/make_dialect_files.py big_vision sentencepiece
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

OUT = Path(__file__).resolve().parents[1] / "data" / "dialects"


def timm() -> None:
    import torch
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet
    from timm.models.vision_transformer import VisionTransformer

    sizes = {
        "img_size": 20,
        "patch_size": 5,
        "embed_dim": 12,
        "depth": 2,
        "num_heads": 3,
        "num_classes": 7,
        "mlp_ratio": 2,
    }
    widths = {"num_classes": 7, "channels": (2, 3, 4, 6)}
    models = {
        "vit": VisionTransformer(**sizes),
        "deit": VisionTransformerDistilled(**sizes),
        "dinov2": VisionTransformer(**sizes | {"num_classes": 0, "mlp_ratio": 4}, init_values=1.0),
        "resnet-basic": ResNet(BasicBlock, (1, 2, 1, 1), **widths),
        "resnet-bottleneck": ResNet(Bottleneck, (1, 1, 2, 1), **widths),
    }
    generator = torch.Generator().manual_seed(0)
    for name, model in models.items():
        model.eval()
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                if tensor.is_floating_point():
                    tensor += 0.6 * torch.rand(tensor.shape, generator=generator) - 0.3
        size = 24 if "resnet" in name else 20
        pixels = torch.randn(2, 3, size, size, generator=generator)
        with torch.no_grad():
            found = model.forward_features(pixels) if name == "dinov2" else model(pixels)
        save(f"timm-{name}", model.state_dict(), {"pixel_values": pixels}, {"main": found}, {})


def keras_applications() -> None:
    from keras.src.applications import resnet

    def stacks(x: Any) -> Any:
        for stage, (width, depth) in enumerate(((2, 1), (3, 2), (4, 1), (5, 1))):
            x = resnet.stack_residual_blocks_v1(x, width, depth, stride1=1 + (stage > 0), name=f"conv{stage + 2}")
        return x

    model = resnet.ResNet(
        stacks, False, True, weights=None, classes=7, classifier_activation=None, input_shape=(32, 32, 3), name="tiny"
    )
    randomise(model)
    weights = {f"{v.path.split('/')[0]}/{v.path}:0": np.asarray(v) for v in model.variables if "seed" not in v.path}
    pixels = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    logits = model.predict(pixels, verbose=0)
    save("keras-resnet", weights, {"pixel_values": pixels.transpose(0, 3, 1, 2)}, {"main": logits}, {})


def keras_hub() -> None:
    import h5py
    import keras_hub

    models = keras_hub.models
    encoder = {
        "vocabulary_size": 17, "num_layers": 2, "num_heads": 4, "hidden_dim": 16, "intermediate_dim": 10,
        "max_sequence_length": 14,
    }  # fmt: skip
    decoder = {
        "vocabulary_size": 17, "num_layers": 2, "num_query_heads": 4, "num_key_value_heads": 2, "hidden_dim": 16,
        "intermediate_dim": 10,
    }  # fmt: skip
    t5 = {key: encoder[key] for key in encoder if key != "max_sequence_length"} | {"key_value_dim": 6}
    gemma2 = {
        "use_post_ffw_norm": True, "use_post_attention_norm": True, "attention_logit_soft_cap": 5.0,
        "final_logit_soft_cap": 3.0, "use_sliding_window_attention": True, "sliding_window_size": 4,
    }  # fmt: skip
    backbones = {
        "bert": models.BertBackbone(**encoder),
        "roberta": models.RobertaBackbone(**encoder),
        "xlm-roberta": models.XLMRobertaBackbone(**encoder),
        "distilbert": models.DistilBertBackbone(**encoder),
        "albert": models.AlbertBackbone(**encoder, embedding_dim=6),
        "gpt2": models.GPT2Backbone(**encoder),
        "llama": models.LlamaBackbone(**decoder),
        "gemma": models.GemmaBackbone(**decoder, head_dim=6),
        "gemma2": models.GemmaBackbone(**decoder, head_dim=6, **gemma2),
        "t5": models.T5Backbone(**t5),
        "vit": models.ViTBackbone(
            image_shape=(20, 20, 3), patch_size=5, num_layers=2, num_heads=4, hidden_dim=16, mlp_dim=10
        ),
        "whisper": models.WhisperBackbone(
            vocabulary_size=17, num_layers=2, num_heads=4, hidden_dim=16, intermediate_dim=10, num_mels=5,
            max_encoder_sequence_length=20, max_decoder_sequence_length=14,
        ),
    }  # fmt: skip
    rng = np.random.default_rng(2)
    ids = rng.integers(4, 16, size=(2, 9))
    every = np.ones_like(ids)
    for name, model in backbones.items():
        randomise(model)
        if name == "vit":
            pixels = rng.normal(size=(2, 20, 20, 3)).astype(np.float32)
            inputs, theirs = {"pixel_values": pixels.transpose(0, 3, 1, 2)}, {"images": pixels}
        elif name == "whisper":
            features = rng.normal(size=(2, 20, 5)).astype(np.float32)
            inputs = {"input_features": features.transpose(0, 2, 1), "decoder_input_ids": ids}
            theirs = {"encoder_features": features, "decoder_token_ids": ids, "decoder_padding_mask": every}
        elif name == "t5":
            inputs = {"input_ids": ids, "attention_mask": every, "decoder_input_ids": ids[:, 2:]}
            theirs = {"encoder_token_ids": ids, "encoder_padding_mask": every, "decoder_token_ids": ids[:, 2:]}
            theirs["decoder_padding_mask"] = every[:, 2:]
        else:
            inputs, theirs = {"input_ids": ids, "attention_mask": every}, {"token_ids": ids, "padding_mask": every}
            if name in ("bert", "albert"):
                kinds = np.repeat([(np.arange(9) >= 4).astype(ids.dtype)], 2, axis=0)
                inputs["token_type_ids"], theirs["segment_ids"] = kinds, kinds
        found = model.predict(theirs, verbose=0)
        main = found
        if isinstance(found, dict):
            main = found["decoder_sequence_output" if name in ("t5", "whisper") else "sequence_output"]
        with tempfile.TemporaryDirectory() as folder:
            model.save_to_preset(folder)
            preset = Path(folder, "config.json").read_text()
            weights: dict[str, np.ndarray] = {}
            with h5py.File(Path(folder, "model.weights.h5")) as file:
                file.visititems(partial(keep, weights))
        save(f"keras-hub-{name}", weights, inputs, {"main": main}, {"config": preset})


def big_vision() -> None:
    """Google's ViT and SigLIP, written down in Flax once more, after the papers' and repositories' description."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict

    heads, width, inner = 3, 12, 20

    class MlpBlock(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.gelu(nn.Dense(inner)(x))
            return nn.Dense(width)(x)

    class Block(nn.Module):
        old: bool = False

        @nn.compact
        def __call__(self, x: Any) -> Any:
            attention, norm, mlp = (
                ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3") if self.old else (None,) * 3
            )
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(heads, name=attention)(y, y)
            return x + MlpBlock(name=mlp)(nn.LayerNorm(name=norm)(x))

    class Positions(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return x + self.param("pos_embedding", nn.initializers.normal(1.0), (1, *x.shape[1:]))

    class Encoder(nn.Module):
        old: bool = False

        @nn.compact
        def __call__(self, x: Any) -> Any:
            if self.old:
                x = Positions(name="posembed_input")(x)
            for layer in range(2):
                x = Block(self.old, name=f"encoderblock_{layer}")(x)
            return nn.LayerNorm(name="encoder_norm")(x)

    class MAPHead(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            probe = self.param("probe", nn.initializers.normal(1.0), (1, 1, width))
            y = nn.MultiHeadDotProductAttention(heads)(jnp.tile(probe, [len(x), 1, 1]), x)
            return (y + MlpBlock()(nn.LayerNorm()(y)))[:, 0]

    def patches(pixels: Any) -> Any:
        x = nn.Conv(width, (5, 5), strides=(5, 5), padding="VALID", name="embedding")(pixels)
        return x.reshape(len(x), -1, width)

    class ViT(nn.Module):
        old: bool

        @nn.compact
        def __call__(self, pixels: Any) -> Any:
            x, cls = patches(pixels), self.param("cls", nn.initializers.normal(1.0), (1, 1, width))
            if not self.old:  # positions are of the patches alone here
                x = x + self.param("pos_embedding", nn.initializers.normal(1.0), (1, *x.shape[1:]))
            x = jnp.concatenate([jnp.tile(cls, [len(x), 1, 1]), x], axis=1)
            return nn.Dense(7, name="head")(Encoder(self.old, name="Transformer")(x)[:, 0])

    class Image(nn.Module):
        @nn.compact
        def __call__(self, pixels: Any) -> Any:
            x = patches(pixels)
            x = x + self.param("pos_embedding", nn.initializers.normal(1.0), (1, *x.shape[1:]))
            return MAPHead()(Encoder(name="Transformer")(x))

    class Text(nn.Module):
        @nn.compact
        def __call__(self, ids: Any) -> Any:
            x = nn.Embed(17, width)(ids)
            x = x + self.param("pos_embedding", nn.initializers.normal(1.0), (1, *x.shape[1:]))
            return nn.Dense(width, name="head")(Encoder()(x)[:, -1])

    class SigLIP(nn.Module):
        @nn.compact
        def __call__(self, pixels: Any, ids: Any) -> Any:
            towers = Image(name="img")(pixels), Text(name="txt")(ids)
            image, text = (z / jnp.linalg.norm(z, axis=1, keepdims=True) for z in towers)
            scale, bias = (self.param(name, nn.initializers.normal(1.0), (1,)) for name in "tb")
            return image @ text.T * jnp.exp(scale) + bias

    rng = np.random.default_rng(4)
    pixels = rng.normal(size=(2, 20, 20, 3)).astype(np.float32)
    ids = rng.integers(2, 16, size=(2, 6))
    shown = {"pixel_values": pixels.transpose(0, 3, 1, 2)}
    for name, model, given, inputs in (
        ("vit", ViT(old=True), (pixels,), shown),
        ("flexivit", ViT(old=False), (pixels,), shown),
        ("siglip", SigLIP(), (pixels, ids), shown | {"input_ids": ids}),
    ):
        state = model.init(jax.random.key(0), *given)
        state = jax.tree.map(lambda leaf: leaf + rng.uniform(-0.3, 0.3, leaf.shape).astype(np.float32), state)
        weights = flatten_dict(state["params"] if name == "vit" else state, sep="/")
        save(f"big-vision-{name}", weights, inputs, {"main": model.apply(state, *given)}, {})


def sentencepiece() -> None:
    """A small tokenizer like Llama's, and what SentencePiece makes of some texts."""
    import sentencepiece as spm

    lines = [
        "The cat sat on 123 mats, didn't it?",
        "Once upon a time, there was a little girl named Lily.",
        "She loved to play outside in the sunshine, and she had 42 friends.",
        "Äpfel sind rund, 東京 is large; 3.14 is not.",
    ] * 20
    texts = [
        *dict.fromkeys(lines),
        "  two  spaces\n\tand a tab",
        "🙂 unseen ∑ signs",
        "",
        " led",
        "aaaa bbbb",
        "Thecat",
    ]
    made: dict[str, Any] = {"texts": texts}
    with tempfile.TemporaryDirectory() as folder:
        for name, prefix in (("llama", True), ("gemma", False)):
            spm.SentencePieceTrainer.train(
                sentence_iterator=iter(lines), model_prefix=f"{folder}/{name}", model_type="bpe", vocab_size=420,
                byte_fallback=True, split_digits=True, normalization_rule_name="identity",
                remove_extra_whitespaces=False, add_dummy_prefix=prefix, character_coverage=0.98,
                allow_whitespace_only_pieces=True, minloglevel=2,
            )  # fmt: skip
            model = spm.SentencePieceProcessor(model_file=f"{folder}/{name}.model")
            kinds = (("is_unknown", 2), ("is_control", 3), ("is_byte", 6), ("is_unused", 5))
            numbers = range(model.get_piece_size())
            made[name] = {
                "pieces": [model.id_to_piece(number) for number in numbers],
                "scores": [model.get_score(number) for number in numbers],
                "kinds": [next((k for test, k in kinds if getattr(model, test)(number)), 1) for number in numbers],
                "ids": [model.encode(text) for text in texts],
            }
    (OUT / "sentencepiece.json").write_text(json.dumps(made, ensure_ascii=False) + "\n", "utf-8")


def keep(weights: dict[str, np.ndarray], path: str, item: Any) -> None:
    if hasattr(item, "shape"):
        weights[path] = item[()]


def randomise(model: Any) -> None:
    rng = np.random.default_rng(3)
    model.set_weights([(w + 0.6 * rng.random(w.shape) - 0.3).astype(w.dtype) for w in model.get_weights()])


def save(
    name: str,
    weights: Mapping[str, Any],
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> None:
    arrays = dict(weights)
    arrays |= {f"in:{key}": value for key, value in inputs.items()}
    arrays |= {f"out:{key}": value for key, value in outputs.items()}
    made = {key: np.array(value, order="C", ndmin=0) for key, value in arrays.items()}
    OUT.mkdir(parents=True, exist_ok=True)
    save_file(made, OUT / f"{name}.safetensors", {key: json.dumps(json.loads(text)) for key, text in facts.items()})


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "jax")
    makers = (timm, keras_applications, keras_hub, big_vision, sentencepiece)
    for maker in makers:
        if maker.__name__ in sys.argv[1:] or len(sys.argv) == 1:
            maker()
