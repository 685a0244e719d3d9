"""Our own Keras models as Keras saves them: vars/ and the canonical name, in torch's layout.

A .keras archive holds the model's graph, too, so that keras.saving.load_model makes the whole model of it (once
zoo.backends.keras, which registers its class, is imported); a .weights.h5 is for `load_weights` of a model.
Source: what `zoo.backends.keras.GraphModel` saves; keras/src/saving/serialization_lib.py for its config.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from converters.checkpoint import Checkpoint, strict_json
from converters.view import Concatenate, Recipe
from zoo.errors import ConfigError
from zoo.graph.io import from_json, to_json
from zoo.graph.ir import Graph

__all__ = ["NAME", "archive_texts", "canonical", "config", "foreign", "graph", "recognises"]

NAME = "keras"

_GROUP = "vars/"


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether every tensor lies in the one group of variables, under a name instead of Keras's numbers."""
    names = checkpoint.infos
    return bool(names) and all(name.startswith(_GROUP) and not name[len(_GROUP) :].isdigit() for name in names)


def canonical(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """Canonical name -> recipe, for every tensor of the file."""
    return {name.removeprefix(_GROUP): Recipe(name) for name in checkpoint.infos}


def config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The config.json that follows from the graph in a .keras archive; None where there is no graph.

    Raises:
        FormatError: the archive's config is damaged, or its graph is.
    """
    held = graph(checkpoint)
    if held is None:
        return None
    meta = held.meta
    if "model_type" not in meta:
        return None
    fields = meta.get("config", {}).get("fields", {})
    return {**fields, "model_type": meta["model_type"], "architectures": [meta["class"]]}


def graph(checkpoint: Checkpoint) -> Graph | None:
    """The graph in a .keras archive, which Keras runs; None where there is none.

    Raises:
        FormatError: the archive's config is damaged, or its graph is.
    """
    text = checkpoint.metadata.get("config.json")
    if text is None:
        return None
    said = strict_json(text.encode(), checkpoint.path, "config.json").get("config")
    held = said.get("graph") if isinstance(said, dict) else None
    return from_json(held, f"{checkpoint.path}, config.json") if isinstance(held, str) else None


def archive_texts(graph: Graph) -> dict[str, str]:
    """The texts of an archive that Keras makes a `GraphModel` of.

    Raises:
        ConfigError: the model could not be captured, so there is no graph.
    """
    if not graph.nodes:
        raise ConfigError(
            "a .keras file holds the model's graph, and this model could not be captured",
            where=graph.meta.get("class"),
            do="convert to keras, which is weights alone, or to another form",
        )
    config = {
        "module": "zoo.backends.keras",
        "class_name": "GraphModel",
        "config": {"name": "graph_model", "trainable": True, "output": None, "graph": to_json(graph)},
        "registered_name": "anyzoo>GraphModel",
    }
    return {"metadata.json": json.dumps({"keras_version": "3.15.1"}), "config.json": json.dumps(config)}


def foreign(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Recipe | Concatenate]:
    """Name -> recipe, for `load_weights` of `zoo.load(..., backend="keras").module`."""
    return {_GROUP + name: Recipe(name) for name in checkpoint.infos}
