"""Published torch checkpoints whose tensors are not those of the modules of transformers 5.

Mixtures of experts are published with a tensor for each expert's matrix; the modules have one [experts, out, in] for
all, gate and up joined. Nomic's BERT is published with query, key and value joined, which its module has apart.
Source: transformers/conversion_mapping.py (5.23), which does the same while loading.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from converters.checkpoint import Checkpoint
from converters.view import Concatenate, Recipe, Reshape, Rows
from zoo.errors import WeightsError

__all__ = ["NAME", "canonical", "foreign", "rearranged", "recognises"]

NAME = "hf-torch"

# Model type -> where its experts are published, and the names of their gate, up and down projections.
_EXPERTS = {
    "mixtral": ("block_sparse_moe", ("w1", "w3", "w2")),
    "qwen2_moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
    "qwen3_moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
}
_JOINED = "encoder.layers.{}.attn.Wqkv.weight"
_APART = tuple(f"layers.{{}}.self_attn.{part}_proj.weight" for part in "qkv")
_IS_JOINED = re.compile(r"encoder\.layers\.(\d+)\.attn\.Wqkv\.weight")
_IS_APART = re.compile(r"layers\.(\d+)\.self_attn\.([qkv])_proj\.weight")
_IS_EXPERT = re.compile(r".*\.experts\.0\.\w+\.weight")


def rearranged(config: Mapping[str, Any]) -> bool:
    """Whether a model is published otherwise than its module has it."""
    return config.get("model_type") in (*_EXPERTS, "nomic_bert")


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether a tensor is there that a module of transformers 5 has joined with others, or split."""
    return any(_IS_EXPERT.fullmatch(name) or _IS_JOINED.fullmatch(name) for name in checkpoint.infos)


def canonical(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """The module's name -> recipe; of models that are published as their modules are, each tensor itself.

    Raises:
        WeightsError: an expert lacks a matrix.
    """
    kind = str(config.get("model_type"))
    found: dict[str, Recipe | Concatenate] = {}
    if kind in _EXPERTS:
        place, parts = _EXPERTS[kind]
        pattern = re.compile(rf"(.*)\.{place}\.experts\.\d+\.(?:{'|'.join(parts)})\.weight")
        gate = re.compile(rf"(.*)\.{place}\.gate\.weight")
        for name in checkpoint.infos:
            if match := pattern.fullmatch(name):
                if f"{match[1]}.mlp.experts.down_proj" not in found:
                    found |= _joined(checkpoint, match[1], place, parts)
            else:
                found[f"{match[1]}.mlp.gate.weight" if (match := gate.fullmatch(name)) else name] = Recipe(name)
        return found
    for name, info in checkpoint.infos.items():
        match = _IS_JOINED.fullmatch(name)
        if kind != "nomic_bert" or match is None:
            found[name] = Recipe(name)
            continue
        rows = info.shape[0] // 3
        for part, own in enumerate(_APART):
            found[own.format(match[1])] = Recipe(name, (Rows(part * rows, (part + 1) * rows),))
    return found


def foreign(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """The published name -> recipe, of the module's tensors."""
    kind = str(config.get("model_type"))
    place, parts = _EXPERTS.get(kind, ("mlp", ()))
    found: dict[str, Recipe | Concatenate] = {}
    for name, info in checkpoint.infos.items():
        lead, _, leaf = name.rpartition(".mlp.experts.")
        apart = _IS_APART.fullmatch(name) if kind == "nomic_bert" else None
        if parts and leaf in ("gate_up_proj", "down_proj") and len(info.shape) == 3:
            found |= _split(
                name, info.shape, f"{lead}.{place}.experts", parts[2:] if leaf == "down_proj" else parts[:2]
            )
        elif parts and name.endswith(".mlp.gate.weight"):
            found[name.replace(".mlp.gate.", f".{place}.gate.")] = Recipe(name)
        elif apart is None:
            found[name] = Recipe(name)
        elif apart[2] == "q":
            found[_JOINED.format(apart[1])] = Concatenate(tuple(Recipe(own.format(apart[1])) for own in _APART))
    return found


def _joined(checkpoint: Checkpoint, lead: str, place: str, parts: tuple[str, ...]) -> dict[str, Concatenate]:
    """The experts of one layer as two tensors."""
    start = f"{lead}.{place}.experts."
    count = len({name[len(start) :].partition(".")[0] for name in checkpoint.infos if name.startswith(start)})
    names = {part: [f"{start}{expert}.{part}.weight" for expert in range(count)] for part in parts}
    if lacking := [name for own in names.values() for name in own if name not in checkpoint.infos]:
        raise WeightsError("an expert lacks a matrix", where=checkpoint.path, expected=", ".join(lacking))
    gate, up, down = (names[part] for part in parts)
    inner, width = checkpoint.infos[gate[0]].shape
    pairs = [Recipe(name) for pair in zip(gate, up, strict=True) for name in pair]
    return {
        f"{lead}.mlp.experts.gate_up_proj": Concatenate(tuple(pairs), (Reshape((count, 2 * inner, width)),)),
        f"{lead}.mlp.experts.down_proj": Concatenate(tuple(map(Recipe, down)), (Reshape((count, width, inner)),)),
    }


def _split(name: str, shape: tuple[int, ...], start: str, parts: tuple[str, ...]) -> dict[str, Recipe]:
    """One tensor of all experts as a matrix for each, or two."""
    experts, rows = shape[0], shape[1] // len(parts)
    flat = Reshape((experts * shape[1], shape[2]))
    places = ((expert, number) for expert in range(experts) for number in range(len(parts)))
    found = {}
    for expert, number in places:
        first = (expert * len(parts) + number) * rows
        found[f"{start}.{expert}.{parts[number]}.weight"] = Recipe(name, (flat, Rows(first, first + rows)))
    return found
