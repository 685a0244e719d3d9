"""Which file of a folder is the checkpoint, from the names alone: one rule for folders, hubs and wheels."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from converters.marks import ADAPTER_ADVICE, NOT_APPLIED
from zoo.errors import SourceError, WeightsError

__all__ = [
    "ADAPTER_CONFIG",
    "USUAL",
    "adapter_config",
    "adapters_in",
    "is_beside",
    "is_index",
    "like",
    "refuse_adapter",
    "weights_in",
]

# Best first: exact and mapped before quantised and streamed.
_FORMATS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("model.safetensors", ("*.safetensors",)),
    ("pytorch_model.bin", ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pth.tar", "*.pt.tar")),
    ("tf_model.h5", ("*.h5", "*.hdf5", "*.keras")),
    ("flax_model.msgpack", ("*.msgpack",)),
    ("", ("*.npz",)),
    ("", ("*.index",)),  # TensorFlow's checkpoints; the data lies beside the index
    ("", ("*.gguf",)),
    ("", ("*.onnx",)),
    ("model.json", ()),  # TensorFlow.js
)
USUAL = tuple(usual for usual, _ in _FORMATS if usual)
"""What libraries call a checkpoint; these are taken where there are others, too, and have an index if sharded."""

_OTHERS = (
    "graph.safetensors", "training_args.bin", "optimizer.*", "scheduler.*", "rng_state*", "tokenizer*.bin",
    "scaler.pt", "sampler*.bin", "*optim_states.pt", "zero_pp_rank_*",
    "group*-shard*of*",  # TensorFlow.js: model.json lists them
)  # fmt: skip

# Source: PEFT, AdapterHub, diffusers, mlx-lm.
_ADAPTERS = (
    "adapter_model.*", "adapter_model-*", "pytorch_adapter.bin", "pytorch_lora_weights.*", "adapters.safetensors",
    "*_adapters.safetensors", "adapters.npz",
)  # fmt: skip


def weights_in(names: Sequence[str], where: object) -> str | None:
    """The file, or the index of shards, that holds the weights; None if there is none.

    Args:
        names: the folder's files.
        where: the folder, for errors.

    Raises:
        SourceError: several, and no telling which.
        WeightsError: an adapter is there, which would not be applied.
    """
    if adapters := adapters_in(names):
        raise _refused(adapters, names, where)
    for usual, patterns in _FORMATS:
        if usual in names:
            return usual
        if f"{usual}.index.json" in names:
            return f"{usual}.index.json"
        if usual:
            patterns = (usual, *patterns)
        here = [name for name in names if "/" not in name and not _matches(name, _OTHERS)]
        found = [name for name in here if is_index(name) and _matches(name.partition(".index.")[0], patterns)]
        found = found or [name for name in here if _matches(name, patterns)]
        if len(found) > 1 and "*.index" in patterns and "checkpoint" in names and Path(str(where)).is_dir():
            return "checkpoint"  # TensorFlow's note of which is the latest
        if len(found) > 1:
            raise SourceError(
                "several files of weights, and no telling which to take",
                where=where,
                expected=f"{' or '.join(USUAL)}, an index of shards, or one file",
                got=", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else ""),
                do="download what you want and give the path of the file itself",
            )
        if found:
            return found[0]
    for pattern, what, do in _IN_PARTS:
        if any(like(name, pattern) for name in names):
            raise SourceError(what, where=where, expected="tensors put together", got=pattern, do=do)
    return None


def is_index(name: str) -> bool:
    """Whether a file's name is that of an index of shards: model.safetensors.index.json, or with a variant's name,
    model.safetensors.index.fp16.json, as transformers and diffusers spell it.
    """
    return bool(re.search(r"\.index(\.[\w-]+)?\.json$", name))


def is_beside(name: str) -> bool:
    """Whether a file's name says that it holds tensors, but no model's weights."""
    return _matches(name, _OTHERS) or _matches(name, _ADAPTERS)


_IN_PARTS = (
    (
        "*.distcp",
        "the checkpoint is in parts of torch.distributed",
        "put them together: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt",
    ),
    (
        "zero_pp_rank_*",
        "the checkpoint is in parts of DeepSpeed's ZeRO",
        "put them together with zero_to_fp32.py, which DeepSpeed writes beside its checkpoints",
    ),
)
"""Files of training on several devices, each of which has a part of every tensor."""


def adapters_in(names: Sequence[str]) -> list[str]:
    """The files that hold an adapter instead of a model's weights."""
    return [name for name in names if "/" not in name and _matches(name, _ADAPTERS)]


def refuse_adapter(file: Path) -> None:
    """Raises the same WeightsError for a file that was named itself."""
    if adapters_in([file.name]):
        raise _refused([file.name], [file.name], file.parent)


def _refused(adapters: list[str], names: Sequence[str], where: object) -> WeightsError:
    """An adapter, with what its config says of it where that can be read."""
    try:
        base = weights_in([name for name in names if not _matches(name, _ADAPTERS)], where)
    except SourceError:  # several
        base = None
    config = Path(str(where)) / ADAPTER_CONFIG
    said = adapter_config(config) if config.is_file() else {}
    kind = f" ({said['peft_type']})" if said.get("peft_type") else ""
    of = f", for the base {said['base_model_name_or_path']!r}" if said.get("base_model_name_or_path") else ""
    beside = f"; to have the base without it, give the path of {base}" if base else ""
    return WeightsError(
        NOT_APPLIED,
        where=where,
        expected="the weights of a whole model",
        got=f"{', '.join(adapters)}{kind}{of}" + (f", beside {base}" if base else ""),
        do=ADAPTER_ADVICE + beside,
    )


ADAPTER_CONFIG = "adapter_config.json"
"""What PEFT writes beside an adapter: its kind, and its base."""


def adapter_config(path: Path) -> dict[str, Any]:
    """Its fields that are text, {} if it is no JSON."""
    try:
        said = json.loads(path.read_bytes()[:_MOST])
    except (OSError, ValueError, RecursionError):
        return {}
    return {key: value for key, value in said.items() if isinstance(value, str)} if isinstance(said, dict) else {}


_MOST = 1 << 20


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(like(name, pattern) for pattern in patterns)


def like(name: str, pattern: str) -> bool:
    """Whether a name fits a pattern in which * is anything; nothing has to be compiled for it."""
    head, *parts = pattern.split("*")
    if not parts:
        return name == pattern
    *middle, tail = parts
    place, end = len(head), len(name) - len(tail)
    if place > end or not name.startswith(head) or not name.endswith(tail):
        return False
    for part in middle:
        place = name.find(part, place, end) + len(part)
        if place < len(head) + len(part):
            return False
    return True
