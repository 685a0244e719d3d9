"""llama.cpp's names, layouts, metadata and tokenizer, against gguf-py's own table of names and transformers' models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tolerances import SMALLEST_STD, TOLERANCES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from converters.checkpoint import MemoryCheckpoint  # noqa: E402
from converters.dialects import gguf as dialect  # noqa: E402
from converters.formats.gguf import read as gguf_format  # noqa: E402
from converters.formats.gguf.tokenizer import tokenizer_json, tokenizer_metadata  # noqa: E402
from converters.view import View  # noqa: E402
from zoo.errors import CaptureError, ConfigError, FormatError, WeightsError  # noqa: E402

HEADS, KEY_HEADS = 8, 4
LLAMA: dict[str, Any] = {
    "hidden_size": 48,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "vocab_size": 61,
    "max_position_embeddings": 31,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "rms_norm_eps": 3e-5,
}
OWN_SIZE = LLAMA | {"hidden_size": 40, "head_dim": 6}
GEMMA = LLAMA | {"hidden_size": 40, "head_dim": 6, "query_pre_attn_scalar": 6, "sliding_window": 4}
BERT = {
    "hidden_size": 24,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "vocab_size": 61,
    "max_position_embeddings": 31,
    "type_vocab_size": 3,
}
GPT2 = {"n_embd": 24, "n_head": 4, "n_inner": 37, "n_layer": 2, "vocab_size": 61, "n_positions": 31}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}

# Name -> architecture in llama.cpp, model type, class, fields.
MODELS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "llama": ("llama", "llama", "LlamaForCausalLM", LLAMA | {"rope_parameters": LINEAR}),
    "llama-biases": (
        "llama",
        "llama",
        "LlamaForCausalLM",
        LLAMA | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "mistral": ("llama", "mistral", "MistralForCausalLM", OWN_SIZE | {"sliding_window": 4}),
    "qwen2": ("qwen2", "qwen2", "Qwen2ForCausalLM", LLAMA),
    "qwen3": ("qwen3", "qwen3", "Qwen3ForCausalLM", OWN_SIZE),
    "gemma": ("gemma", "gemma", "GemmaForCausalLM", OWN_SIZE),
    "gemma2": ("gemma2", "gemma2", "Gemma2ForCausalLM", GEMMA),
    "gemma3": ("gemma3", "gemma3_text", "Gemma3ForCausalLM", GEMMA | {"num_hidden_layers": 7}),
    "phi3": ("phi3", "phi3", "Phi3ForCausalLM", LLAMA | {"sliding_window": 4}),
    "gpt2": ("gpt2", "gpt2", "GPT2LMHeadModel", GPT2),
    "bert": ("bert", "bert", "BertModel", BERT),
}


def model(name: str) -> tuple[Any, dict[str, Any], dict[str, np.ndarray]]:
    """A model of random weights, its config and its tensors; biases and norms are random, too."""
    _, model_type, cls, fields = MODELS[name]
    config = transformers.AutoConfig.for_model(model_type, **fields)
    config.architectures = [cls]
    made = getattr(transformers, cls)(config).eval()
    generator = torch.Generator().manual_seed(list(MODELS).index(name))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    state = {key: value.numpy() for key, value in made.state_dict().items()}
    return made, config.to_dict(), state


def written(tmp_path: Path, name: str) -> tuple[Any, dict[str, Any], dict[str, np.ndarray], Any]:
    made, config, state = model(name)
    memory = MemoryCheckpoint(state)
    gguf_format.write(
        tmp_path / "model.gguf", View(memory, dialect.foreign(memory, config), aliases={}), dialect.metadata(config)
    )
    return made, config, state, gguf_format.open_file(tmp_path / "model.gguf")


def rotated_rows(array: np.ndarray, heads: int) -> np.ndarray:
    """Row i of the first half of a head goes to 2i, row i of its second half to 2i + 1."""
    found = np.empty_like(array)
    size = len(array) // heads
    for head in range(heads):
        for i in range(size // 2):
            found[head * size + 2 * i] = array[head * size + i]
            found[head * size + 2 * i + 1] = array[head * size + size // 2 + i]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_names_and_values_are_llama_cpps(tmp_path: Path, name: str) -> None:
    constants = pytest.importorskip("gguf.constants")
    from gguf.tensor_mapping import get_tensor_name_map

    architecture = MODELS[name][0]
    number = next(key for key, value in constants.MODEL_ARCH_NAMES.items() if value == architecture)
    table = get_tensor_name_map(number, 8)
    _, _, state, file = written(tmp_path, name)
    expected = {}
    for own, array in state.items():
        if own.startswith("pooler.") or (own == "lm_head.weight" and file.infos.get("output.weight") is None):
            continue
        foreign = table.get_name(own, try_suffixes=(".weight", ".bias"))
        assert foreign is not None, own
        if architecture == "llama" and ".q_proj." in own:
            array = rotated_rows(array, HEADS)
        elif architecture == "llama" and ".k_proj." in own:
            array = rotated_rows(array, KEY_HEADS)
        elif architecture == "gpt2" and ".c_" in own and own.endswith(".weight"):
            array = array.T
        elif architecture.startswith("gemma") and own.endswith("norm.weight"):
            array = array + np.float32(1)
        expected[foreign] = array
    assert set(file.infos) == set(expected)
    for foreign, array in expected.items():
        np.testing.assert_array_equal(file.read(foreign), array, err_msg=foreign)


@pytest.mark.parametrize("name", MODELS)
def test_a_file_alone_gives_the_same_network(tmp_path: Path, name: str) -> None:
    made, _, state, file = written(tmp_path, name)
    config = dialect.config(file)
    assert config is not None
    _, model_type, cls, _ = MODELS[name]
    assert (config["model_type"], config["architectures"]) == (model_type, [cls])
    view = View(file, dialect.canonical(file, config))
    arrays = {own: np.array(array) for own, array in view.items()}
    for own, array in arrays.items():
        if name.startswith("gemma") and own.endswith("norm.weight"):
            assert np.array_equal(array + np.float32(1), state[own] + np.float32(1)), own  # all that the model uses
        else:
            assert np.array_equal(array, state[own]), own
    again = getattr(transformers, cls)(transformers.AutoConfig.for_model(**config)).eval()
    left = again.load_state_dict({own: torch.from_numpy(array) for own, array in arrays.items()}, strict=False)
    assert not left.unexpected_keys
    assert set(left.missing_keys) <= {"lm_head.weight", "pooler.dense.weight", "pooler.dense.bias"}
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(made(ids)[0], again(ids)[0])
        assert float(made(ids)[0].std()) > 0.01


def test_base_models_and_tied_heads_keep_their_names() -> None:
    _, config, state = model("llama")
    bare = {own.removeprefix("model."): array for own, array in state.items() if own != "lm_head.weight"}
    memory = MemoryCheckpoint(bare)
    config["architectures"] = ["LlamaModel"]
    foreign = View(memory, dialect.foreign(memory, config))
    back = View(foreign, dialect.canonical(foreign, config))
    assert {own: array.tobytes() for own, array in back.items()} == {o: a.tobytes() for o, a in bare.items()}


def test_what_has_no_name_is_refused_or_kept() -> None:
    _, config, state = model("llama")
    memory = MemoryCheckpoint(state | {"score.weight": np.zeros((2, 48), np.float32)})
    with pytest.raises(WeightsError, match=r"score\.weight"):
        dialect.foreign(memory, config)
    foreign = MemoryCheckpoint(
        {
            "token_embd.weight": state["model.embed_tokens.weight"],
            "rope_freqs.weight": np.ones(3, np.float32),
            "blk.0.ffn_gate_chexps.weight": np.zeros((2, 3, 4), np.float32),
        }
    )
    assert dialect.recognises(foreign) and not dialect.recognises(memory)
    assert set(dialect.canonical(foreign, config)) == {"model.embed_tokens.weight", "blk.0.ffn_gate_chexps.weight"}
    with pytest.raises(ConfigError, match="dbrx"):
        dialect.foreign(memory, config | {"model_type": "dbrx"})
    with pytest.raises(ConfigError, match="number of heads"):
        dialect.canonical(foreign, {"model_type": "llama"})
    _, gemma, norms = model("gemma")
    half = MemoryCheckpoint({own: array.astype(np.float16) for own, array in norms.items()})
    with pytest.raises(WeightsError, match="float32"):
        dialect.foreign(half, gemma)


def test_llama_3s_frequencies_become_its_scaling() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = transformers.AutoConfig.for_model("llama", head_dim=64, rope_parameters=scaling | {"rope_theta": 5e5})
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 5e5 ** -(torch.arange(0, 64, 2) / 64)
    file = described({"rope_freqs.weight": (plain / scaled).numpy()})
    assert dialect.config(file)["rope_scaling"] == scaling  # type: ignore[index]
    assert "rope_scaling" not in dialect.config(described({"rope_freqs.weight": np.ones(32, np.float32)}))  # type: ignore[operator]
    with pytest.raises(ConfigError, match="rope_freqs"):
        dialect.config(described({"rope_freqs.weight": np.linspace(1, 9, 32, dtype=np.float32)}))
    # It is written as that tensor; a scaling that a file of divisors alone could not be told from is refused.
    own = {"model_type": "llama", "head_dim": 64, "num_attention_heads": 4, "hidden_size": 256}
    memory = MemoryCheckpoint({"model.embed_tokens.weight": np.zeros((3, 256), np.float32)})
    view = View(memory, dialect.foreign(memory, {**own, "rope_parameters": config.rope_parameters}))
    np.testing.assert_allclose(view.read("rope_freqs.weight"), (plain / scaled).numpy(), rtol=1e-6)
    with pytest.raises(ConfigError, match="llama3"):
        dialect.metadata({**own, "rope_parameters": config.rope_parameters | {"low_freq_factor": 2.0}})


def described(arrays: dict[str, np.ndarray], **values: Any) -> MemoryCheckpoint:
    """A checkpoint with the metadata of a Llama."""
    file = MemoryCheckpoint({"token_embd.weight": np.zeros((61, 48), np.float32), **arrays})
    file.metadata = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.embedding_length": 48,
        "llama.feed_forward_length": 37,
        "llama.attention.head_count": 8,
        "llama.rope.freq_base": 5e5,
        **{f"llama.{key}": value for key, value in values.items()},
    }
    return file


def test_configs_that_cannot_be_derived() -> None:
    file = described({})
    file.metadata = {**file.metadata, "general.architecture": "gemma", "gemma.expert_count": 8}
    with pytest.raises(ConfigError, match="without experts"):
        dialect.config(file)
    with pytest.raises(ConfigError, match="not known"):
        dialect.config(described({}, **{"rope.scaling.type": "longest"}))
    with pytest.raises(ConfigError, match="block_count"):
        dialect.config(described({}, block_count=-1))
    file = described({})
    file.metadata = {}
    assert dialect.config(file) is None


# Name -> llama.cpp's architecture, class, fields.
PUBLISHED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mixtral": (
        "llama",
        "MixtralForCausalLM",
        LLAMA | {"intermediate_size": 36, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen2_moe": (
        "qwen2moe",
        "Qwen2MoeForCausalLM",
        LLAMA
        | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
        | {"shared_expert_intermediate_size": 28, "norm_topk_prob": False},
    ),
    "qwen3_moe": (
        "qwen3moe",
        "Qwen3MoeForCausalLM",
        OWN_SIZE | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "norm_topk_prob": True},
    ),
    "nomic_bert": ("nomic-bert", "NomicBertModel", BERT),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_whose_modules_are_not_as_published(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers saves, with an expert a tensor or projections joined, comes back so from a file that llama.cpp
    would know; alone, that file gives the same network.
    """
    import zoo
    from converters import open_checkpoint

    constants = pytest.importorskip("gguf.constants")
    architecture, cls, fields = PUBLISHED[name]
    config = transformers.AutoConfig.for_model(name, **fields)
    config.architectures = [cls]
    made = getattr(transformers, cls)(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    if name != "nomic_bert":
        made.set_experts_implementation("eager")  # the grouped product takes rows of whole 16 bytes only

        def no_graph(*_: Any, **__: Any) -> None:
            raise CaptureError("to capture experts takes long, and outputs are compared below")

        monkeypatch.setattr("zoo.configured.graph_for", no_graph)
    made.save_pretrained(tmp_path / "in")
    zoo.convert(tmp_path / "in", tmp_path / "gguf", "gguf", verify=True)
    path = tmp_path / "gguf" / "model.gguf"
    number = next(key for key, value in constants.MODEL_ARCH_NAMES.items() if value == architecture)
    known = {constants.TENSOR_NAMES[tensor] for tensor in constants.MODEL_TENSORS[number]}
    with gguf_format.open_file(path) as file:
        assert file.metadata["general.architecture"] == architecture
        bare = {own.removesuffix(".weight").removesuffix(".bias").replace("blk.1.", "blk.{bid}.") for own in file.infos}
        assert {own for own in bare if "blk.0." not in own} <= known
        if name != "nomic_bert":
            assert file.infos["blk.1.ffn_up_exps.weight"].shape[0] == 4

    alone = tmp_path / "alone.gguf"
    alone.write_bytes(path.read_bytes())
    zoo.convert(alone, tmp_path / "out", verify=True)
    again = getattr(transformers, cls).from_pretrained(tmp_path / "out").eval()
    if name != "nomic_bert":
        again.set_experts_implementation("eager")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        wanted, found = made(ids)[0], again(ids)[0]
    assert float((wanted - found).abs().max()) <= TOLERANCES["torch", "float32"] * float(wanted.abs().max())
    assert float(wanted.std()) > SMALLEST_STD
    with open_checkpoint(tmp_path / "in") as first, open_checkpoint(tmp_path / "out") as last:
        assert set(first.infos) == set(last.infos)
        for own, array in first.items():
            assert np.array_equal(array, last.read(own)), own


def test_experts_that_llama_cpp_would_choose_otherwise() -> None:
    for fields in ({"norm_topk_prob": False}, {"decoder_sparse_step": 2}, {"mlp_only_layers": [0]}):
        config = transformers.AutoConfig.for_model("qwen3_moe", **PUBLISHED["qwen3_moe"][2] | fields)
        with pytest.raises(ConfigError, match="choose experts"):
            dialect.metadata(config.to_dict())


TEXTS = ("The cat sat on 123 mats, didn't it?", "  spaces\n\n\tand <|end|> tokens\r\n", "Äpfel 東京 🙂 x² 3.14")


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_a_tokenizer_survives_the_metadata(pre: str) -> None:
    trained = tokenizer(pre)
    metadata = tokenizer_metadata(trained.to_str())
    assert metadata is not None and metadata["tokenizer.ggml.pre"] == pre
    text = tokenizer_json(metadata)
    assert text is not None
    again = tokenizers.Tokenizer.from_str(text)
    for line in TEXTS:
        assert again.encode(line).ids == trained.encode(line).ids
        assert again.decode(again.encode(line).ids, skip_special_tokens=False) == line
    first = json.dumps("<|end|>")
    begun = tokenizer_json(metadata | {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 0})
    assert begun is not None and first in begun
    assert tokenizers.Tokenizer.from_str(begun).encode("a").ids == [0, *trained.encode("a").ids]


def test_other_tokenizers_are_left_alone() -> None:
    metadata = tokenizer_metadata(tokenizer("gpt-2").to_str())
    assert metadata is not None
    assert tokenizer_json({}) is None
    assert tokenizer_json(metadata | {"tokenizer.ggml.model": "llama"}) is None
    assert tokenizer_json(metadata | {"tokenizer.ggml.pre": "unheard-of"}) is None
    assert tokenizer_metadata(tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0})).to_str()) is None
    for damage in (
        {"tokenizer.ggml.tokens": ["a", "a"]},
        {"tokenizer.ggml.merges": ["x yz no"]},
        {"tokenizer.ggml.token_type": [1]},
        {"tokenizer.ggml.merges": ["q qqqq"]},
    ):
        with pytest.raises(FormatError):
            tokenizer_json(metadata | damage)
    with pytest.raises(FormatError):
        tokenizer_metadata("[]")


def tokenizer(pre: str) -> Any:
    """Trained on a few lines, cutting text as the published tokenizers of that name do."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    if pre == "gpt-2":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif pre == "smollm":
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    else:
        numbers = r"\p{N}{1,3}" if pre == "llama-bpe" else r"\p{N}"
        pattern = (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + numbers +
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )  # fmt: skip
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        if pre == "qwen2":
            made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    made.train_from_iterator([*TEXTS, "the cat and the mat sat on the token of 123 cats"] * 3, trainer)
    return made
