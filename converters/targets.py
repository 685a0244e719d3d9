"""The forms that a checkpoint can be converted to: a format, the dialect that belongs in it, and its file name."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from converters.checkpoint import Checkpoint
from converters.dialects import keras_graph
from converters.view import Recipe, View
from zoo.errors import ConfigError
from zoo.graph.ir import Graph

__all__ = ["ALIASES", "TARGETS", "Target", "find_target"]

NO_TEXTS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Target:
    """A form to write.

    Args:
        name: as `zoo convert --to` takes it.
        format: module of `converters.formats` that writes it.
        dialect: module of `converters.dialects`, or None for canonical names and layouts.
        file: what the file is called in a model's folder.
        sharded: whether its readers take it in several files with an index.
        with_graph: whether it holds the model's graph beside the weights.
        dtypes: what floating-point tensors can be converted to on the way.
        metadata: what its readers expect to be told in the file.
        shard_metadata: the same for one of several files, where that differs.
    """

    name: str
    format: str
    dialect: str | None
    file: str
    sharded: bool = False
    with_graph: bool = False
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    metadata: Mapping[str, str] = field(default_factory=dict)
    shard_metadata: Mapping[str, str] | None = None

    def view(self, checkpoint: Checkpoint, config: Mapping[str, Any]) -> Checkpoint:
        """A canonical checkpoint in the names and layouts of this form; closed together with it.

        Raises:
            FormatError, WeightsError: this form has no such class, or no place for some tensors.
        """
        dialect = self.dialect_module()
        if dialect is None:
            return checkpoint
        widen = getattr(dialect, "widened", None)
        if widen is not None:
            checkpoint = widen(checkpoint, config)
        return View(checkpoint, dialect.foreign(checkpoint, config), aliases={})

    def knows(self, config: Mapping[str, Any]) -> Callable[[str], bool] | None:
        """Whether the form has a place for a tensor of a canonical name; None if it takes any."""
        knows = getattr(self.dialect_module(), "knows", None)
        return None if knows is None else knows(config)

    def config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """What belongs into config.json beside this form."""
        derive = getattr(self.dialect_module(), "foreign_config", None)
        return config if derive is None else derive(config)

    @property
    def with_tokenizer(self) -> bool:
        """Whether its file holds the tokenizer, too."""
        return hasattr(self.dialect_module(), "notes")

    def notes(self, config: Mapping[str, Any], texts: Mapping[str, str], checkpoint: Checkpoint) -> list[str]:
        """What this form's readers will do otherwise than the source's; arguments as for `write`."""
        dialect = self.dialect_module()
        return dialect.notes(config, texts, checkpoint) if dialect is not None and self.with_tokenizer else []

    def understood(self, checkpoint: Checkpoint, config: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The config of what this form's readers compute, in Hugging Face's fields; None if they honour config.json.

        Args:
            checkpoint: a view of this form that is to be written, or what was written, opened.
            config: what belongs into config.json beside it.
        """
        own = getattr(self.dialect_module(), "understood", None)
        return None if own is None else own(checkpoint, config)

    def graph(self, checkpoint: Checkpoint) -> Graph | None:
        """The graph that a file of this form holds beside the weights, for its readers to run."""
        own = getattr(self.dialect_module(), "graph", None)
        return None if own is None else own(checkpoint)

    def beside(self, config: Mapping[str, Any]) -> tuple[Mapping[str, str], list[str]]:
        """The files beside the weights that this form's own readers have, by name; and notes on those that lack.

        Raises:
            ConfigError: a field that a file cannot say.
        """
        own = getattr(self.dialect_module(), "beside", None)
        files, notes = ({}, []) if own is None else own(config)
        return {name: json.dumps(fields, indent=2) + "\n" for name, fields in files.items()}, notes

    @property
    def says_config(self) -> bool:
        """Whether its readers do take config.json, though they may ignore a field of it."""
        return self.dialect is None or getattr(self.dialect_module(), "SAYS_CONFIG", False)

    def unties(self, config: Mapping[str, Any]) -> bool:
        """Whether its readers have tied weights of this model apart, each with a tensor of its own."""
        own = getattr(self.dialect_module(), "unties", None)
        return own is not None and own(config)

    def described(self, checkpoint: Checkpoint, config: Mapping[str, Any]) -> Checkpoint:
        """A view of this form with what its file will say beside the tensors, but for a tokenizer."""
        derive = getattr(self.dialect_module(), "metadata", None)
        found = View(checkpoint, {name: Recipe(name) for name in checkpoint.infos}, checkpoint.aliases)
        found.metadata = MappingProxyType({**self.metadata, **({} if derive is None else derive(config, None))})
        return found

    def stored(self, checkpoint: Checkpoint, dtype: str | None) -> dict[str, str]:
        """Tensor -> the dtype that it is to be stored in.

        Args:
            checkpoint: a view of this form.
            dtype: one of `dtypes`; None keeps each tensor's own, unless this form's readers take no other than theirs.

        Raises:
            ConfigError: this form has no such dtype.
        """
        if dtype is not None and dtype not in self.dtypes:
            raise ConfigError(
                "this form does not store tensors so", where=self.name, expected=", ".join(self.dtypes), got=dtype
            )
        choose = getattr(self.dialect_module(), "stored_as", None)
        return {
            name: (dtype or info.dtype) if choose is None else choose(info, dtype)
            for name, info in checkpoint.infos.items()
        }

    def in_shards(self, checkpoint: Checkpoint) -> tuple[Checkpoint, dict[str, str]]:
        """A view of this form with the names that its shards use, and those -> the names that the index uses."""
        rename = getattr(self.dialect_module(), "shard_names", None)
        if rename is None:
            return checkpoint, {name: name for name in checkpoint.infos}
        names = {stored: (index, name) for name in checkpoint.infos for index, stored in [rename(name)]}
        view = View(checkpoint, {stored: Recipe(name) for stored, (_, name) in names.items()})
        return view, {stored: index for stored, (index, _) in names.items()}

    def write(
        self,
        path: Path,
        checkpoint: Checkpoint,
        config: Mapping[str, Any],
        graph: Graph,
        texts: Mapping[str, str] = NO_TEXTS,
        quantised: Collection[str] = (),
        shard: bool = False,
    ) -> None:
        """Write a view of this form to a path that does not exist yet.

        Args:
            graph: of what the tensors are the parameters.
            texts: of the tokenizer's files, by name, for forms that hold the tokenizer too.
            quantised: the tensors that are to be stored as Q8_0.
            shard: whether it is one of several files.

        Raises:
            ConfigError: the form holds the model's graph, and there is none.
        """
        metadata: Mapping[str, Any] = self.metadata
        if shard and self.shard_metadata is not None:
            metadata = self.shard_metadata
        derive = getattr(self.dialect_module(), "metadata", None)
        if derive is not None:
            metadata = {**metadata, **derive(config, texts, checkpoint)}
        if self.with_graph:
            metadata = {**metadata, **keras_graph.archive_texts(graph)}
        if quantised:
            metadata = {**metadata, "ggml_types": dict.fromkeys(quantised, "Q8_0")}
        import_module(f"converters.formats.{self.format}").write(path, checkpoint, metadata)

    def dialect_module(self) -> ModuleType | None:
        """The module of its dialect."""
        return None if self.dialect is None else import_module(f"converters.dialects.{self.dialect}")


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(
            "safetensors",
            "safetensors",
            None,
            "model.safetensors",
            sharded=True,
            metadata={"format": "pt"},
        ),
        Target("torch", "torch.write", None, "pytorch_model.bin", sharded=True),
        Target(
            "tf-h5",
            "hdf5.write",
            "hf_tf",
            "tf_model.h5",
            sharded=True,
            metadata={"backend": "tensorflow", "keras_version": "2.19.0"},
            shard_metadata={"shard": "true"},
        ),
        Target("flax", "msgpack.read", "hf_flax", "flax_model.msgpack", sharded=True),
        Target("npz", "npz", None, "model.npz"),
        Target("gguf", "gguf.read", "gguf", "model.gguf", dtypes=("float32", "bfloat16", "float16", "q8_0")),
        Target("tf-checkpoint", "tensorflow.bundle", "google_tf1", "bert_model.ckpt"),
        Target("orbax", "orbax", "hf_flax", "checkpoint"),
        Target("keras", "hdf5.write", "keras_graph", "model.weights.h5"),
        Target("keras-model", "hdf5.keras_archive", "keras_graph", "model.keras", with_graph=True),
        Target("keras-hub", "hdf5.write", "keras_hub", "model.weights.h5"),
        Target(
            "keras-applications",
            "hdf5.write",
            "keras_applications",
            "model.h5",  # Keras 3 takes "….weights.h5" for its own layout
            metadata={"backend": "tensorflow", "keras_version": "2.19.0"},
        ),
        Target("big-vision", "npz", "big_vision", "model.npz"),
        Target("torchvision", "safetensors", "torchvision", "model.safetensors"),
        Target("timm", "safetensors", "timm", "model.safetensors"),
    )
}
"""Every form, by name."""

ALIASES: Mapping[str, str] = {
    "pytorch": "torch",
    "bin": "torch",
    "tf": "tf-h5",
    "tensorflow": "tf-h5",
    "h5": "tf-h5",
    "msgpack": "flax",
    "numpy": "npz",
    "tf1": "tf-checkpoint",
}
"""Other names of them."""


def find_target(name: str) -> Target:
    """The form of a name or alias.

    Raises:
        ConfigError: there is none.
    """
    found = TARGETS.get(ALIASES.get(name, name))
    if found is None:
        raise ConfigError("no such form to convert to", got=name, expected=", ".join(TARGETS))
    return found
