"""Inputs that fit a graph, drawn from a seed: what to run a model on when nobody gave anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from zoo.errors import InputError
from zoo.graph.facts import Facts
from zoo.graph.ir import Graph, Input, Node, param_ref, refs
from zoo.model import Model
from zoo.ops import traits_of

Result = TypeVar("Result")

__all__ = ["fitting", "is_mask", "sample_inputs"]


def fitting(
    model: Model,
    use: Callable[[dict[str, Any]], Result],
    seed: int = 0,
    batch: int = 3,
    length: int = 17,
    given: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], Result]:
    """Inputs that the model runs with, and what `use` makes of them: those of `sample_inputs` at the first sizes at
    which `use` raises nothing.

    A graph's symbols say less than it needs where the model computes sizes in Python: of images whose positions are
    part of it, say. It runs at the sizes of the example that it was captured with.

    Raises:
        InputError: at none of them, because of the first one's error; or what is given does not fit.
    """
    first: Exception | None = None
    for sizes in _sizes_to_try(model):
        try:
            inputs = sample_inputs(model, seed, batch, length, given, sizes)
            return inputs, use(inputs)
        except Exception as error:  # whatever a framework raises
            if given and isinstance(error, InputError):
                raise  # of what was given, not of what was drawn
            first = first or error
    line = next(iter(str(first).splitlines()), "")
    raise InputError(
        "the model does not run with inputs that are drawn for it",
        where=model.name,
        got=f"{type(first).__name__}: {line}"[:500],
        do="pass inputs of your own",
    ) from first


def _sizes_to_try(model: Model) -> Iterator[dict[str, int]]:
    yield {}
    symbols = model.graph.symbols
    if example := {name: size for name, size in (model.graph.meta.get("example") or {}).items() if name in symbols}:
        yield example
    yield {name: low for name, (low, _) in symbols.items() if not name.endswith("batch")}
    pictures = [name for name in symbols if name.endswith(("height", "width"))]
    for size in _PICTURES if pictures else ():
        yield dict.fromkeys(pictures, size)


_PICTURES = (64, 32, 128, 96, 256, 384, 512, 640)
"""Heights and widths that models are made for."""


def sample_inputs(
    model: Model,
    seed: int = 0,
    batch: int = 3,
    length: int = 17,
    given: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Inputs that fit a model's graph, drawn from a seed.

    Args:
        given: arrays that are taken as they are, by name; the sizes of the others follow.
        sizes: of the graph's symbols, where they are to be others than the usual.
    """
    asked = dict(sizes or {})
    graph, config, rng = model.graph, model.config, np.random.default_rng(seed)
    values: dict[str, Any] = dict(given or {})
    unknown = sorted(values.keys() - {item.name for item in graph.inputs})
    if unknown:
        names = ", ".join(item.name for item in graph.inputs)
        raise InputError("the model has no such input", where=", ".join(unknown), expected=names)
    found = {name: _size(name, low, high, batch, length, config) for name, (low, high) in graph.symbols.items()} | asked
    for item in graph.inputs:
        if item.name in values:
            shape = np.shape(values[item.name])
            found.update((d, n) for d, n in zip(item.shape, shape, strict=False) if isinstance(d, str))
    shapes = {i.name: tuple(found[d] if isinstance(d, str) else d for d in i.shape) for i in graph.inputs}
    masks = {i.shape: _mask(shapes[i.name]) for i in graph.inputs if is_mask(i)}
    for item in graph.inputs:
        if item.name in values:
            continue
        mask = masks.get(item.shape[:2])
        if is_mask(item):
            drawn = masks[item.shape]
        elif "int" in item.dtype:
            drawn = _ids(graph, item, shapes[item.name], mask, config, rng)
        elif item.dtype == "bool":
            drawn = rng.random(shapes[item.name]) < 0.5
        else:
            drawn = rng.standard_normal(shapes[item.name])
            drawn = drawn if mask is None else drawn * mask.reshape(mask.shape + (1,) * (drawn.ndim - mask.ndim))
        values[item.name] = drawn.astype("float32" if item.dtype == "bfloat16" else item.dtype)
    return values


def _transparent(node: Node) -> bool:
    """Whether each id stays what it is, or is replaced: an embedding's table limits those on the other side, too."""
    return traits_of(node.op).moves is not None or node.op == "_to_copy"


def is_mask(item: Input) -> bool:
    """Whether an input says which tokens, [B, T], are none."""
    return item.name.endswith("attention_mask") and len(item.shape) == 2


def _mask(shape: tuple[int, ...]) -> np.ndarray:
    """Ones; zeros in the last third of the last of several rows, and in a gap of the first of three or more.

    Without the gap a causal model could ignore its mask and still be right wherever the mask is 1.
    """
    rows, length = shape
    mask = np.ones(shape, np.int64)
    if rows > 1 and length > 2:
        mask[-1, length - length // 3 :] = 0
    if rows > 2 and length > 5:
        mask[0, 1:3] = 0
    return mask


def _size(name: str, low: int, high: int | None, batch: int, length: int, config: Mapping[str, Any]) -> int:
    vision = config.get("vision_config") or config
    image = vision.get("image_size") or 224
    height, width = (image, image) if isinstance(image, int) else image
    known = {
        "decoder_sequence": max(length - 3, 2),  # another length, so that mixed-up axes fail
        "samples": 400 * length,
        "frames": 12 * length,
        "bbox_2": 4,
        "features": config.get("num_mel_bins") or 80,
        "channels": vision.get("num_channels") or 3,
        "height": height,
        "width": width,
    }
    wanted = batch if name.endswith("batch") else known.get(name, length)
    return min(max(wanted, low), high if high is not None else wanted)


def _ids(
    graph: Graph,
    item: Input,
    shape: tuple[int, ...],
    mask: np.ndarray | None,
    config: Mapping[str, Any],
    rng: np.random.Generator,
) -> np.ndarray:
    """Whole numbers within the table that they index; tokens are ordinary ones, ended and padded as the config says."""
    rows = _table_rows(graph, item.name)
    if not item.name.endswith("input_ids"):
        drawn = rng.integers(0, rows or 2, shape)
        # a box's corners: left of right, top above bottom
        return np.sort(drawn, -1) if item.name == "bbox" else drawn
    text = config.get("text_config") or config
    rows = rows or text.get("vocab_size") or 2
    special = {
        value for part in (config, text) for key, value in part.items()
        if key.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    }  # fmt: skip
    allowed = np.setdiff1d(np.arange(min(4, rows // 2), rows), sorted(special))
    drawn = rng.choice(allowed if allowed.size else np.arange(rows), shape)
    if mask is None:
        return drawn
    end, pad = text.get("eos_token_id"), text.get("pad_token_id") or 0
    if isinstance(end, int) and 0 <= end < rows:
        drawn[np.arange(len(mask)), mask.shape[1] - 1 - mask[:, ::-1].argmax(1)] = end
    return np.where(mask == 1, drawn, pad if 0 <= pad < rows else 0)


def _table_rows(graph: Graph, name: str) -> int | None:
    """Rows of the smallest embedding table that an input indexes."""
    makers = Facts(graph).makers
    tables = {param_ref(own): p.shape[0] for p in graph.params.values() if p.shape for own in (p.name, *p.aliases)}
    found = []
    for node in graph.nodes:
        if node.op.partition(".")[0] != "embedding":
            continue
        table, pending = node.args[0], list(refs(node.args[1:2]))
        seen: set[str] = set()
        while pending:
            ref = pending.pop()
            if ref.name == name and table.name in tables:
                found.append(tables[table.name])
            maker = makers.get(ref.name)
            if ref.name not in seen and maker is not None and _transparent(maker):
                pending.extend(refs((maker.args, maker.kwargs)))
            seen.add(ref.name)
    return min(found, default=None)
