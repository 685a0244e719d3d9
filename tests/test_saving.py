"""What `m.save` and `zoo convert` keep beside the weights, and that whatever is saved can be loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
from tolerances import TOLERANCES
from transformers import AutoTokenizer

import zoo
from converters import save_safetensors
from zoo.arrays import to_numpy
from zoo.errors import CaptureError, FormatError

BACKENDS = ("torch", "jax", "tensorflow", "numpy", "native")

BESIDE = (
    # what transformers' tokenizers and processors read
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json chat_template.jinja "
    "chat_template.json additional_chat_templates/rag.jinja tokenizer.model spiece.model sentencepiece.bpe.model "
    "sentencepiece.model spm.model spm_char.model source.spm target.spm vocab.json vocab.txt merges.txt bpe.codes "
    "dict.txt emoji.json byte_maps.json entity_vocab.json normalizer.json prophetnet.tokenizer target_vocab.json "
    "vocab-src.json vocab-tgt.json word_shape.json word_pronunciation.json qwen.tiktoken tekken.json "
    "generation_config.json preprocessor_config.json processor_config.json video_preprocessor_config.json "
    "audio_tokenizer_config.json "
    # sentence-transformers'
    "modules.json sentence_bert_config.json config_sentence_transformers.json 1_Pooling/config.json "
    "2_Dense/config.json 2_Dense/model.safetensors adapters_of_mine/deep/router_config.json "
    # and what lets others know what it is
    "README.md LICENSE LICENSE.txt NOTICE"
).split()

MODULES = [
    {"idx": number, "name": str(number), "path": path, "type": "sentence_transformers.models.Transformer"}
    for number, path in enumerate(["", "1_Pooling", "2_Dense", "adapters_of_mine"])
]

STRANGERS = (
    "custom.py",
    "training_args.bin",
    "notes.md",
    "2_Dense/code.py",
    "log/log",
    "0_old/notes.txt",
    "0_old/a.sh",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkpoints.save(tmp_path_factory.mktemp("source") / "bert", "bert")
    for name in (*BESIDE, *STRANGERS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name}\n")
    (folder / "modules.json").write_text(json.dumps(MODULES))
    save_safetensors(folder / "2_Dense" / "model.safetensors", {"linear.weight": np.ones((3, 2), np.float32)})
    return folder


def save(source: Path, out: Path) -> None:
    zoo.load(source, "numpy").save(out)


def capture(source: Path, out: Path) -> None:
    zoo.capture(source).save(out)


def convert(source: Path, out: Path) -> None:
    zoo.convert(source, out, "flax")


@pytest.mark.parametrize("write", [save, capture, convert])
def test_all_that_belongs_to_a_checkpoint(write: Callable[[Path, Path], None], source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(source, out)
    assert [name for name in BESIDE if not (out / name).is_file()] == []
    assert all((out / name).read_bytes() == (source / name).read_bytes() for name in BESIDE)
    assert [name for name in STRANGERS if (out / name).exists()] == []


@pytest.mark.parametrize("write", [save, convert])
def test_a_chat_template_works_on(write: Callable[[Path, Path], None], tmp_path: Path) -> None:
    """Written and read by transformers itself."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    source, out = checkpoints.save(tmp_path / "in", "bert"), tmp_path / "out"
    own = Tokenizer(models.WordLevel({"[UNK]": 0, "hi": 1, "user": 2}, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    theirs = PreTrainedTokenizerFast(tokenizer_object=own, unk_token="[UNK]")
    theirs.chat_template = {
        "default": "{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}",
        "rag": "{% for m in messages %}hi {{ m.content }}{% endfor %}",
    }
    theirs.save_pretrained(source)
    write(source, out)
    again, talk = AutoTokenizer.from_pretrained(out), [{"role": "user", "content": "hi"}]
    for name in ("default", "rag"):
        expected = theirs.apply_chat_template(talk, chat_template=name, return_dict=False)
        assert again.apply_chat_template(talk, chat_template=name, return_dict=False) == expected


def test_modules_that_lead_out_are_refused(source: Path, tmp_path: Path) -> None:
    folder = checkpoints.copy_of(source, tmp_path / "in")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("mine")
    (folder / "modules.json").write_text(json.dumps([{"path": "../secret"}]))
    with pytest.raises(zoo.errors.UnsafeFile):
        zoo.convert(folder, tmp_path / "out", "npz")
    (folder / "modules.json").write_text(json.dumps([{"path": "linked"}]))
    (folder / "linked").symlink_to(tmp_path / "secret")
    with pytest.raises(zoo.errors.UnsafeFile):
        zoo.convert(folder, tmp_path / "out", "npz")
    assert not (tmp_path / "out").exists()


def test_a_config_that_no_file_says_is_saved(source: Path, tmp_path: Path) -> None:
    """As where the registry or the file of weights itself says it."""
    folder = checkpoints.copy_of(source, tmp_path / "in")
    model = zoo.load(folder, "numpy")
    model.config["pad_token_id"] = 3
    saved = zoo.load(model.save(tmp_path / "out"), "numpy")
    assert saved.config == model.config and saved.config["pad_token_id"] == 3
    for name in checkpoints.tensors(folder):
        assert name in saved.state


SHAPES = {"some": (3,), "scalar": (), "none": (0, 2)}


class Buffers(torch.nn.Module):
    """A layer beside buffers of a dtype, of which the outputs use some and no others."""

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)
        for name, shape in SHAPES.items():
            self.register_buffer(f"used_{name}", torch.ones(shape).to(getattr(torch, dtype)))
            self.register_buffer(f"unused_{name}", torch.ones(shape).to(getattr(torch, dtype)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        for name in SHAPES:
            used = getattr(self, f"used_{name}")
            y = y + (used.real if used.is_complex() else used).to(y.dtype).sum()
        return y


@pytest.mark.parametrize(
    "dtype",
    "uint8 int8 int16 int32 int64 uint16 uint32 uint64 bool float16 bfloat16 float32 float64 complex64".split(),
)
def test_what_is_saved_is_loaded(dtype: str, tmp_path: Path) -> None:
    """Buffers of every dtype and of no elements: a generator's state is uint32, and most graphs do not use it."""
    module = Buffers(dtype)
    saved = zoo.capture(module, x=torch.ones(2, 2)).save(tmp_path / "package")
    x = np.asarray([[1, 2], [3, 4], [5, 6]], np.float32)
    expected = module.double()(torch.from_numpy(x).double()).detach().numpy()
    for backend in BACKENDS:
        model = zoo.load(saved, backend)
        (output,) = model(x=x).values()
        assert error_of(output, expected) <= TOLERANCES[backend, "float32"]
        again = zoo.load(model.save(tmp_path / backend), "numpy").state
        for name, shape in SHAPES.items():
            for array in (again[f"used_{name}"], again[f"unused_{name}"]):
                assert array.shape == shape and str(array.dtype) == dtype and np.all(array == 1)


def error_of(output: object, expected: np.ndarray) -> float:
    return float(np.abs(to_numpy(output) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    ("dtype", "error"),
    [("complex128", FormatError), ("float8_e4m3fn", CaptureError), ("float8_e5m2", CaptureError)],
)
def test_what_cannot_be_stored_is_said(dtype: str, error: type[Exception], tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    module.register_buffer("state", torch.ones(3).to(getattr(torch, dtype)))
    with pytest.raises(error, match="state"):
        zoo.capture(module, input=torch.ones(2, 2)).save(tmp_path / "package")
    assert not list(tmp_path.iterdir())


def test_a_keras_model_with_a_seed_generator(tmp_path: Path) -> None:
    """Its state is a variable of whole numbers, which no output needs outside of training."""
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "torch":
        pytest.skip(f"KERAS_BACKEND is {keras.backend.backend()}")
    inner = keras.Sequential(
        [keras.layers.Input((4,)), keras.layers.Dense(3), keras.layers.Dropout(0.5, seed=7), keras.layers.Dense(2)]
    )

    class Around(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x, training=False)

    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    package = zoo.capture(Around(), x=torch.from_numpy(x))
    assert any("int32" in param.dtype for param in package.graph.params.values())
    saved = package.save(tmp_path / "package")
    expected = to_numpy(inner(torch.from_numpy(x[:3]), training=False))
    for backend in BACKENDS:
        (output,) = zoo.load(saved, backend)(x=x[:3]).values()
        assert error_of(output, expected) <= TOLERANCES[backend, "float32"]
