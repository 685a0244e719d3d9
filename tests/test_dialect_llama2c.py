"""Meta's names for Llama: a model of llama2.c writes its text, and the rows of its queries go where they belong."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tolerances import TOLERANCES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from converters.checkpoint import MemoryCheckpoint  # noqa: E402
from converters.dialects import llama2c as dialect  # noqa: E402
from converters.formats import llama2c as llama2c_format  # noqa: E402
from converters.view import View  # noqa: E402
from zoo.errors import ConfigError, WeightsError  # noqa: E402

PARAMS = {
    "dim": 24,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "norm_eps": 3e-6,
    "rope_theta": 5e5,
    "vocab_size": -1,
}


def test_a_model_of_llama2c_writes_its_text(fixtures: Path) -> None:
    """The ids, and the logits, that llama2.c's own arithmetic gives in float64: see oracle/make_fixtures.py."""
    file = llama2c_format.open_file(fixtures / "llama" / "model.bin")
    assert dialect.recognises(file)
    config = dialect.config(file)
    assert config is not None and config["tie_word_embeddings"]
    view = View(file, dialect.canonical(file, config))
    model = transformers.LlamaForCausalLM(transformers.AutoConfig.for_model(**config)).eval()
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in view.items()})
    ids = torch.tensor([[1]])
    with torch.no_grad():
        for _ in range(60):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
        logits = model(ids).logits[0, :-1:4].numpy().astype(np.float64)
    with np.load(fixtures / "llama" / "expected.npz") as expected:
        assert ids[0].tolist() == expected["ids"].tolist()
        wanted = expected["logits"].astype(np.float64)
    assert logits.shape == wanted.shape == (15, 440)
    assert np.abs(logits - wanted).max() <= TOLERANCES["torch", "float32"] * np.abs(wanted).max()
    words = vocabulary(fixtures / "llama" / "tokenizer.bin")
    text = b"".join(words[number] for number in ids[0, 1:].tolist())
    assert text == (fixtures / "llama" / "text.bin").read_bytes()


def vocabulary(path: Path) -> list[bytes]:
    """llama2.c's tokenizer.bin: the longest token's length, then score, length and bytes of each token."""
    data, at, found = path.read_bytes(), 4, []
    while at < len(data):
        length = struct.unpack_from("<fi", data, at)[1]
        found.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    return found


def test_the_rows_of_queries_and_keys_change_places() -> None:
    file = metas()
    config = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}
    view = View(file, dialect.canonical(file, config))
    for own, name, heads in (("q_proj", "wq", 4), ("k_proj", "wk", 2)):
        meta, ours = file.read(f"layers.1.attention.{name}.weight"), view.read(f"model.layers.1.self_attn.{own}.weight")
        for head in range(heads):
            for i in range(3):  # three pairs in a head of six rows
                np.testing.assert_array_equal(ours[6 * head + i], meta[6 * head + 2 * i])
                np.testing.assert_array_equal(ours[6 * head + 3 + i], meta[6 * head + 2 * i + 1])
    for own, name in (
        ("model.embed_tokens.weight", "tok_embeddings.weight"),
        ("model.norm.weight", "norm.weight"),
        ("lm_head.weight", "output.weight"),
        ("model.layers.0.input_layernorm.weight", "layers.0.attention_norm.weight"),
        ("model.layers.0.post_attention_layernorm.weight", "layers.0.ffn_norm.weight"),
        ("model.layers.0.self_attn.v_proj.weight", "layers.0.attention.wv.weight"),
        ("model.layers.0.self_attn.o_proj.weight", "layers.0.attention.wo.weight"),
        ("model.layers.0.mlp.gate_proj.weight", "layers.0.feed_forward.w1.weight"),
        ("model.layers.0.mlp.down_proj.weight", "layers.0.feed_forward.w2.weight"),
        ("model.layers.0.mlp.up_proj.weight", "layers.0.feed_forward.w3.weight"),
    ):
        np.testing.assert_array_equal(view.read(own), file.read(name), err_msg=own)
    assert len(view.infos) == len(file.infos) - 1  # rope.freqs
    again = View(view, dialect.foreign(view, config))
    assert set(again.infos) == set(file.infos) - {"rope.freqs"}
    for name, array in again.items():
        np.testing.assert_array_equal(array, file.read(name), err_msg=name)


def test_params_json_becomes_the_config(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    assert dialect.config(metas()) is None
    file = metas(tmp_path / "consolidated.00.pth")
    assert dialect.config(file) == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 24,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 61,
        "rms_norm_eps": 3e-6,
        "rope_theta": 5e5,
        "tie_word_embeddings": False,
    }
    (tmp_path / "params.json").write_text(json.dumps(PARAMS | {"dim": 48}))
    with pytest.raises(ConfigError, match=r"consolidated\.00"):
        dialect.config(file)
    (tmp_path / "params.json").write_text(json.dumps(PARAMS | {"use_scaled_rope": True}))
    with pytest.raises(ConfigError, match="scaled"):
        dialect.config(file)


def test_what_does_not_belong_is_refused() -> None:
    config = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}
    view = View(metas(), dialect.canonical(metas(), config))
    biased = {name: view.read(name) for name in view.infos}
    biased["model.layers.0.self_attn.q_proj.bias"] = np.zeros(24, np.float32)
    with pytest.raises(WeightsError, match=r"q_proj\.bias"):
        dialect.foreign(MemoryCheckpoint(biased), config)
    with pytest.raises(ConfigError, match="gpt2"):
        dialect.foreign(view, {"model_type": "gpt2"})
    with pytest.raises(ConfigError, match="num_attention_heads"):
        dialect.canonical(metas(), {})
    tied = {name: view.read(name) for name in view.infos}
    tied["lm_head.weight"] = tied["model.embed_tokens.weight"].copy()
    assert "output.weight" not in dialect.foreign(MemoryCheckpoint(tied), config)


def metas(path: Path = Path("memory")) -> MemoryCheckpoint:
    """A tiny Llama under Meta's names: 4 heads and 2 key-value heads of 6."""
    rng = np.random.default_rng(0)
    shapes: dict[str, Any] = {
        "tok_embeddings.weight": (61, 24),
        "norm.weight": (24,),
        "output.weight": (61, 24),
        "rope.freqs": (3,),
    }
    for layer in range(2):
        shapes |= {
            f"layers.{layer}.attention_norm.weight": (24,),
            f"layers.{layer}.ffn_norm.weight": (24,),
            f"layers.{layer}.attention.wq.weight": (24, 24),
            f"layers.{layer}.attention.wk.weight": (12, 24),
            f"layers.{layer}.attention.wv.weight": (12, 24),
            f"layers.{layer}.attention.wo.weight": (24, 24),
            f"layers.{layer}.feed_forward.w1.weight": (37, 24),
            f"layers.{layer}.feed_forward.w2.weight": (24, 37),
            f"layers.{layer}.feed_forward.w3.weight": (37, 24),
        }
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return MemoryCheckpoint(arrays, path)
