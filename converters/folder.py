"""Which file of a folder is the checkpoint, from the names alone: one rule for folders, hubs and wheels."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.errors import SourceError

__all__ = ["USUAL", "like", "weights_in"]

# Best first: exact and mapped before quantised and streamed.
_FORMATS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("model.safetensors", ("*.safetensors",)),
    ("pytorch_model.bin", ("*.bin", "*.pt", "*.pth", "*.ckpt")),
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
    "group*-shard*of*",  # TensorFlow.js: model.json lists them
)  # fmt: skip


def weights_in(names: Sequence[str], where: object) -> str | None:
    """The file, or the index of shards, that holds the weights; None if there is none.

    Args:
        names: the folder's files.
        where: the folder, for errors.

    Raises:
        SourceError: several, and no telling which.
    """
    for usual, patterns in _FORMATS:
        if usual in names:
            return usual
        if f"{usual}.index.json" in names:
            return f"{usual}.index.json"
        found = [name for name in names if "/" not in name and _matches(name, patterns) and not _matches(name, _OTHERS)]
        if len(found) > 1:
            raise SourceError(
                "several files of weights, and no telling which to take",
                where=where,
                expected=f"{' or '.join(USUAL)}, an index of shards, or one file",
                got=", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else ""),
                do="give the path of the file itself, or name the ones you want: files=[...]",
            )
        if found:
            return found[0]
    return None


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
