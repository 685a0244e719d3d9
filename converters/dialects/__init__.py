"""Dialects: how each framework or program spells and lays out the tensors of a model, and back to canonical names.

Canonical names are those of the torch checkpoint. A dialect is one file of this package. It holds

    NAME: str                                   what `zoo inspect` and `--to` call it
    def recognises(checkpoint) -> bool          whether a checkpoint is spelled so, from its format and names
    def canonical(checkpoint, config) -> dict[str, Recipe | Concatenate]
                                                canonical name -> how it is made of the checkpoint's tensors
    def foreign(checkpoint, config) -> dict[str, Recipe | Concatenate]
                                                where it can be written: the other way, from canonical tensors
    def config(checkpoint) -> dict | None       where it can tell: the config.json of a checkpoint that has none
    def tokenizer(checkpoint) -> str | None     where it can tell: the tokenizer.json of a checkpoint that has none
    def tokenizer_settings(checkpoint) -> str | None
                                                where it can tell: its tokenizer_config.json
    def metadata(config, texts, checkpoint) -> dict
                                                where its format holds any: what to write about the model beside tensors
    def notes(config, texts, checkpoint) -> list[str]
                                                where its readers will do something otherwise: what to tell the user
    def widened(checkpoint, config) -> Checkpoint
                                                where it adds to values: those in a dtype that can hold the sums
    def stored_as(info, dtype) -> str           where its readers want another dtype of a tensor than was asked for
    def foreign_config(config) -> dict          where its readers want another config.json than Hugging Face's
    def understood(checkpoint, config) -> dict  where its readers do not honour all of config.json: see `fields`
    SAYS_CONFIG: bool                           whether they take config.json at all
    def unties(config) -> bool                  whether they have an output layer of their own where the config ties it
    DROPPED: tuple[tuple[str, str], ...]        patterns of its own names that are no weights, each with the reason

`config` is the model's config.json. What a dialect does not know keeps its own name, for `zoo.weights.fit` to accept
or refuse by name: nothing is lost silently.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any

from converters.checkpoint import Checkpoint
from converters.dialects import (
    big_vision,
    gguf,
    google_tf1,
    hf_flax,
    hf_tf,
    keras_applications,
    keras_graph,
    keras_hub,
    llama2c,
    onnx,
    t5x,
    timm,
    torchvision,
)
from converters.dialects.shared import why_dropped
from converters.view import Recipe, Reshape, View
from zoo.graph.computed import COMPUTED, is_computed

__all__ = [
    "DIALECTS",
    "canonical",
    "derived_config",
    "derived_tokenizer",
    "derived_tokenizer_config",
    "dialect_of",
    "dropped",
]

DIALECTS: tuple[ModuleType, ...] = (
    hf_tf,
    t5x,
    big_vision,
    hf_flax,
    gguf,
    llama2c,
    google_tf1,
    keras_graph,
    keras_hub,
    keras_applications,
    torchvision,
    timm,
    onnx,
)
"""Every dialect but the one that is canonical already, in the order in which they are tried."""

NO_SHAPES: Mapping[str, tuple[int, ...]] = MappingProxyType({})


def dialect_of(checkpoint: Checkpoint) -> ModuleType | None:
    """The dialect that a checkpoint is spelled in; None for the canonical one."""
    return next((dialect for dialect in DIALECTS if dialect.recognises(checkpoint)), None)


def derived_config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The config.json that follows from a checkpoint's own metadata or tensors, where its dialect can tell."""
    dialect = dialect_of(checkpoint)
    derive = getattr(dialect, "config", None)
    return None if derive is None else derive(checkpoint)


def derived_tokenizer(checkpoint: Checkpoint) -> str | None:
    """The tokenizer.json that follows from a checkpoint's own metadata, where its dialect can tell."""
    derive = getattr(dialect_of(checkpoint), "tokenizer", None)
    return None if derive is None else derive(checkpoint)


def derived_tokenizer_config(checkpoint: Checkpoint) -> str | None:
    """The tokenizer_config.json that follows from a checkpoint's own metadata, where its dialect can tell."""
    derive = getattr(dialect_of(checkpoint), "tokenizer_settings", None)
    return None if derive is None else derive(checkpoint)


def dropped(dialect: ModuleType | None, names: Iterable[str], used: Collection[str]) -> dict[str, str]:
    """Tensor -> why, for those that a dialect makes nothing of, on either side."""
    patterns = getattr(dialect, "DROPPED", ())
    found = {}
    for name in names:
        if name not in used:
            otherwise = COMPUTED if is_computed(name) else "another tensor holds the same"
            found[name] = why_dropped(name, patterns) or otherwise
    return found


def canonical(
    checkpoint: Checkpoint, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] = NO_SHAPES
) -> Checkpoint:
    """The checkpoint under canonical names, in torch's layouts; itself if that is what it is.

    Some classes of transformers are published in another program's names (TIPSv2 in timm's): where the model expects
    every name, it is canonical, whatever else it resembles.

    Args:
        checkpoint: closed with what is returned.
        config: the model's config.json.
        shapes: what the model expects, by every spelling of a name; tensors that differ in axes of size 1 alone get
            these (a scalar that TensorFlow keeps as a vector of one, say).

    Raises:
        FormatError: two tensors that must be one (a tied weight stored twice) differ.
    """
    dialect = dialect_of(checkpoint)
    if dialect is None or all(name in shapes or is_computed(name) for name in checkpoint.infos):
        return checkpoint
    recipes = dialect.canonical(checkpoint, config)
    for name, recipe in recipes.items():
        if isinstance(recipe, Recipe) and name in shapes:
            found = recipe.shape(checkpoint.infos[recipe.source].shape)
            if found != shapes[name] and _without_ones(found) == _without_ones(shapes[name]):
                recipes[name] = Recipe(recipe.source, (*recipe.steps, Reshape(shapes[name])))
    return View(checkpoint, recipes)


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    return [size for size in shape if size != 1]
