"""Tiny checkpoints as transformers writes them, what transformers computes from them in float64, and tampered copies.

Configs and inputs are those of `tiny`; heads are added here. Every parameter and running statistic is moved away from
the value of a fresh model, so that one which is dropped or mistaken for another changes the outputs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
import transformers
from safetensors.numpy import load_file, save_file

__all__ = [
    "KINDS",
    "copy_of",
    "edit_config",
    "inputs_of",
    "main_output",
    "reference",
    "save",
    "tensors",
    "write_tensors",
]

KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("bert", "BertModel", {}),
    "bert-mlm": ("bert", "BertForMaskedLM", {}),
    "bert-cls": ("bert", "BertForSequenceClassification", {"num_labels": 5}),
    "llama": ("llama", "LlamaForCausalLM", {}),
    "vit": ("vit", "ViTForImageClassification", {"num_labels": 5}),
    "t5": ("t5", "T5ForConditionalGeneration", {"num_layers": 1, "num_decoder_layers": 1}),
    "wav2vec2": ("wav2vec2", "Wav2Vec2ForCTC", {"num_hidden_layers": 1}),
    "resnet": ("resnet", "ResNetForImageClassification", {"num_labels": 5}),
    "gpt2": ("gpt2", "GPT2LMHeadModel", {}),
}
"""Kind -> `tiny`'s model type, transformers' class, and what its config has besides."""


def save(folder: Path, kind: str, *, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """Write a checkpoint of that kind with `save_pretrained`, which takes the options; the folder."""
    model_type, class_name, fields = KINDS[kind]
    config = tiny.config(model_type)
    for name, value in fields.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, class_name)(config)
    _move(model, torch.Generator().manual_seed(list(KINDS).index(kind)))
    model.to(dtype).save_pretrained(folder, **options)
    return folder


def inputs_of(kind: str, batch: int = 2, length: int = 7) -> dict[str, np.ndarray]:
    """The inputs of a checkpoint's model; see `tiny.inputs`."""
    return tiny.inputs(KINDS[kind][0], batch, length)


def main_output(kind: str) -> str:
    """The output that is compared: the first, which depends on every parameter (BERT's pooler aside)."""
    return "last_hidden_state" if kind == "bert" else "logits"


def reference(
    folder: Path, kind: str, inputs: Mapping[str, np.ndarray], dtype: torch.dtype = torch.float64
) -> dict[str, np.ndarray]:
    """What transformers' own `from_pretrained` of the folder computes, as float64, by output name."""
    model = getattr(transformers, KINDS[kind][1]).from_pretrained(folder, dtype=dtype).eval()
    tensors = {name: torch.as_tensor(value) for name, value in inputs.items()}
    with torch.no_grad():
        found = model(
            **{name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
        )
    return {name: value.double().numpy() for name, value in found.items() if isinstance(value, torch.Tensor)}


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a folder's model.safetensors."""
    return load_file(folder / "model.safetensors")


def write_tensors(folder: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Put other tensors into a folder's model.safetensors; the folder."""
    save_file(
        {name: np.ascontiguousarray(a) for name, a in arrays.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder


def copy_of(folder: Path, to: Path, change: Callable[[dict[str, np.ndarray]], Any] | None = None) -> Path:
    """A copy of a checkpoint whose dict of tensors `change` may alter in place; the new folder."""
    shutil.copytree(folder, to)
    if change is not None:
        arrays = tensors(to)
        change(arrays)
        write_tensors(to, arrays)
    return to


def edit_config(folder: Path, **fields: Any) -> Path:
    """Set fields of a folder's config.json; the folder."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


@torch.no_grad()
def _move(model: torch.nn.Module, generator: torch.Generator) -> None:
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 0.3 if parameter.ndim < 2 else 0.7 * parameter[0].numel() ** -0.5
        parameter += scale * noise
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer += 0.3 * torch.randn(buffer.shape, generator=generator)
        if name.endswith("running_var"):
            buffer += torch.rand(buffer.shape, generator=generator)
