"""`Model`: a graph with weights on a backend; the one API for all of them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.arrays import numpy_dtype, to_numpy
from zoo.errors import ConfigError, InputError
from zoo.graph.io import load_graph, save_graph
from zoo.graph.ir import Graph, Input, Ref, param_ref
from zoo.graph.passes import RNG, keyed

if TYPE_CHECKING:
    from zoo.native.fast import Fast, FastReport

__all__ = ["GRAPH_FILE", "Model", "Output", "Package"]

log = logging.getLogger(__name__)

GRAPH_FILE = "graph.json.gz"
"""What a package folder's graph is called."""


class Output(dict):
    """A model's outputs by name, in the model's order; `out.logits` is `out["logits"]`.

    Values are the backend's own arrays; `np.asarray` takes each of them.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no output {name!r}; this model has {', '.join(self)}") from None


@dataclass(eq=False)
class Package:
    """A captured model without a backend: its graph and, unless it was captured from a config alone, its weights.

    Args:
        graph: what it computes.
        arrays: weights by canonical name, or None.
        folder: where the files beside the weights (config, tokenizer) come from, if anywhere.
        config: config.json's fields, where the folder's own file does not say them.
        tokenizer: tokenizer.json's text, for where the folder has no such file.
    """

    graph: Graph
    arrays: Mapping[str, np.ndarray] | None = None
    folder: Path | None = None
    config: Mapping[str, Any] | None = None
    tokenizer: str | None = None

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write a folder that `zoo.load` takes on every backend, with neither torch nor transformers.

        The graph, its constants, the weights as model.safetensors in the tensors that the class's checkpoints have, the
        config, tokenizer, chat templates and all else that belongs to a checkpoint, and conversion.json, which lists
        these files. The folder appears complete or not at all.

        Args:
            folder: a new or empty folder.
            overwrite: it may be one that was written before: files that its conversion.json lists, unchanged since,
                give way to the new ones; all others stay.

        Raises:
            ConfigError: the package has no weights, or the folder holds something else, or what was written before and
                is not to be overwritten, or was changed.
            FormatError: a parameter is of a dtype that safetensors does not have (complex128).
            SourceError: the system refuses to write; the folder is as it was.
        """
        from converters import safetensors
        from converters.checkpoint import MemoryCheckpoint
        from converters.said_dtype import most_floats, saying_dtype
        from zoo.sources.local import copy_companions
        from zoo.weights import scattered
        from zoo.written import may_write, writing

        target = Path(folder)
        if self.arrays is None:
            raise ConfigError(
                "a package captured from a config has no weights to save",
                where=target,
                do="load the model with its weights first, then call model.save",
            )
        may_write(target, overwrite)
        with writing(target, overwrite) as (work, record):
            record |= {"to": "package", "class": self.graph.meta.get("class"), "tensors": len(self.arrays)}
            save_graph(self.graph, work / GRAPH_FILE)
            load_graph(work / GRAPH_FILE)  # what cannot be loaded is not written
            weights = scattered(self.graph, MemoryCheckpoint(self.arrays))
            safetensors.write(work / "model.safetensors", weights, {"format": "pt"})
            if self.folder is not None and self.folder.is_dir():
                copy_companions(self.folder, work)
            elif self.folder is not None:
                log.warning("%s is gone: tokenizer and the like cannot be saved from there", self.folder)
            there = read_json(work / "config.json") if (work / "config.json").is_file() else {}
            config: Mapping[str, Any] = self.config or there
            if "model_type" in config:
                config = saying_dtype(config, most_floats(weights.infos.values()))
            if config != there:
                text = json.dumps(config, indent=2, ensure_ascii=False)
                (work / "config.json").write_text(text + "\n", "utf-8")
            if self.tokenizer is not None and not (work / "tokenizer.json").is_file():
                (work / "tokenizer.json").write_text(self.tokenizer, "utf-8")
        return target

    def load(self, backend: str = "torch") -> Model:
        """The package's model on a backend."""
        from zoo.loading import model_from

        return model_from(self, backend)


@dataclass(eq=False, repr=False)
class Model:
    """A model on a backend. Made by `zoo.load`.

    Attributes:
        name: what was loaded.
        backend: "torch", "jax", "tensorflow", "keras", "numpy" or "native".
        graph: what it computes.
        params: {checkpoint name: the backend's own array}.
        config: config.json's fields, empty for models that have none.
        folder: the files it came from, if any.
        weights: the file of weights among them, or the index of its shards.
        notes: what a user should know: outputs left out, tensors of the checkpoint not used.
    """

    name: str
    backend: str
    graph: Graph
    params: dict[str, Any]
    config: dict[str, Any]
    folder: Path | None
    notes: list[str] = field(default_factory=list)
    weights: Path | None = None
    _backend: ModuleType = field(kw_only=True)
    _fast: Fast | None = field(default=None, kw_only=True)
    _precision: str = field(default="float32", kw_only=True)
    _module: Any = field(default=None, init=False)
    _function: Callable[..., Any] | None = field(default=None, init=False)
    _training: Callable[..., Any] | None = field(default=None, init=False)
    _tokenizer: Any = field(default=None, init=False)
    _limits: dict[str, int] | None = field(default=None, init=False)
    _lengths: dict[int, Model] = field(default_factory=dict, init=False)

    def __call__(self, *, rng: Any = None, packed: bool = False, **inputs: Any) -> Output:
        """Run the model.

        Args:
            rng: with it the model runs as in training, with dropout: a seed (a number or two), or what the framework
                keeps randomness in (torch.Generator, a JAX key, tf.random.Generator, keras.random.SeedGenerator,
                numpy.random.Generator). The same key drops the same elements on every framework.
            packed: True says that what the outputs hold at padding (zeros of `attention_mask`) does not matter. The
                native engine then computes real tokens alone where the graph allows, and leaves 0 at padding; other
                backends compute all as ever.
            inputs: arrays by the model's input names (NumPy, the backend's own, or lists); `input_ids` [B, T] int,
                `pixel_values` [B, C, H, W] float and so on, as `inputs` tells. Masks and token types may be left out.

        Returns:
            The outputs by name, as the backend's arrays.

        Raises:
            InputError: a name, dtype, rank or size is wrong; the input is named.
            ConfigError: `rng` was given, and the model was not loaded for training.
        """
        if (other := self._of_length(inputs)) is not self:
            return other(rng=rng, packed=packed, **inputs)
        if self._limits is None:
            self._limits = _index_limits(self.graph)
        prepared = prepare_inputs(self.graph.inputs, self.graph.symbols, inputs)
        _check_indices(prepared, self._limits)
        return Output(self._run(self.params, prepared, rng, packed))

    def apply(self, params: Mapping[str, Any], /, *, rng: Any = None, **inputs: Any) -> dict[str, Any]:
        """The model as a pure function of parameters, inputs and, in training, a key; a plain dict of outputs.

        Under JAX it goes through `jax.jit`, `jax.grad` and `jax.vmap`; under TensorFlow and torch through their tapes.
        Inputs that may be left out are filled in. Values are not checked, so that traced arrays can pass.
        `rng` as in a call: it may be traced, too.
        """
        model = self._of_length(inputs)
        return model._run(params, fill_defaults(model.graph.inputs, inputs), rng)

    @property
    def module(self) -> Any:
        """The framework's own object over the same parameters.

        torch: the transformers module, or an nn.Module around the graph; tensorflow: a tf.Module; keras: a
        keras.Model; jax, numpy and native: the pure function `apply`.
        """
        if self._module is None:
            self._module = self._backend.module_of(self)
        return self._module

    @property
    def inputs(self) -> dict[str, str]:
        """Input names with dtype and shape: {"input_ids": "int64 [batch, sequence]"}."""
        return {i.name: f"{i.dtype} [{', '.join(map(str, i.shape))}]" for i in self.graph.inputs}

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer (a `tokenizers.Tokenizer` with its padding and truncation set)."""
        if self._tokenizer is None:
            from zoo.tasks.text import load_tokenizer

            self._tokenizer = load_tokenizer(self)
        return self._tokenizer

    def embed(
        self,
        texts: str | Sequence[str],
        batch_size: int = 32,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> np.ndarray:
        """One vector per text: float32 [len(texts), D], pooled, projected and normalised as the checkpoint says.

        Args:
            prompt: what is put before each text; "" puts nothing. Without it the prompt of `prompt_name`, or else the
                one that the checkpoint's sentence-transformers files name as the default.
            prompt_name: of the checkpoint's prompts, such as "query".

        Raises:
            ConfigError: the model has no tokenizer, gives no hidden states, or has no such prompt.
        """
        from zoo.tasks.text import embed

        listed = [texts] if isinstance(texts, str) else list(texts)
        return embed(self, listed, batch_size, prompt=prompt, prompt_name=prompt_name)

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the model as a package: graph, weights as they are now, config, tokenizer; see `Package.save`."""
        return self.package().save(folder, overwrite=overwrite)

    def package(self) -> Package:
        """The model without its backend: graph, weights as they are now, and the files beside them."""
        from zoo.tasks.text import derived_tokenizer_of

        arrays = {name: to_numpy(value) for name, value in self.params.items()}
        has_file = self.folder is not None and (self.folder / "tokenizer.json").is_file()
        tokenizer = (
            None if has_file or self.weights is None or not self.weights.is_file() else derived_tokenizer_of(self)
        )
        return Package(self.graph, arrays, self.folder, self.config or None, tokenizer)

    def fast_report(self) -> FastReport:
        """Which of our kernels run in place of the framework's own, and at which sizes: those met by calls so far.

        Raises:
            ConfigError: the model was not loaded with `fast=True`.
        """
        if self._fast is None:
            raise ConfigError("the model runs the framework's own kernels", do="zoo.load(..., fast=True)")
        return self._fast.report

    def parameter_count(self) -> int:
        """How many trainable numbers it has, tied ones once."""
        return self.graph.parameter_count()

    def __repr__(self) -> str:
        kind = self.graph.meta.get("class", "graph")
        return f"<{self.name}: {kind}, {self.parameter_count() / 1e6:.1f}M parameters, on {self.backend}>"

    def _of_length(self, inputs: Mapping[str, Any]) -> Model:
        """This model, or the same with a graph of the inputs' length, where a graph can be of one length alone."""
        own, shape = fixed_length(self.graph), getattr(inputs.get("input_ids"), "shape", None)
        if own is None:
            return self
        if shape is None and isinstance(inputs.get("input_ids"), (list, tuple)):
            shape = np.shape(inputs["input_ids"])
        if shape is None or len(shape) != 2 or not isinstance(shape[1], int) or shape[1] == own:
            return self
        if shape[1] not in self._lengths:
            from zoo.loading import at_length

            self._lengths[shape[1]] = at_length(self, shape[1])
        return self._lengths[shape[1]]

    def _run(
        self, params: Mapping[str, Any], inputs: Mapping[str, Any], rng: Any, packed: bool = False
    ) -> dict[str, Any]:
        if rng is None:
            if self._function is None:
                graph, operations = self._fast.prepared(self.graph) if self._fast is not None else (self.graph, {})
                options: dict[str, Any] = {"operations": operations} if operations else {}
                if self._precision != "float32":
                    options["precision"] = self._precision
                self._function = self._backend.compile_graph(graph, **options)
            function = getattr(self._function, "packed", self._function) if packed else self._function
            return function(params, inputs)
        if self._training is None:
            self._training = self._backend.compile_graph(keyed(self.graph))
        return self._training(params, {**inputs, RNG: self._backend.key_from(rng)})

    def _native_module(self) -> Any:
        """torch only: the transformers module over the same parameters, or None."""
        import importlib.util

        name = self.graph.meta.get("class")
        if not name or not self.config or importlib.util.find_spec("transformers") is None:
            return None
        from zoo.capture.huggingface import config_from, native_module

        module = native_module(config_from(self.config), name, self.params, self.graph.meta.get("renamed", {}))
        ours = {id(param) for param in self.params.values()}
        for param in module.parameters():
            if id(param) not in ours:
                # no tensor of the checkpoint: what is computed from it must not look like a result
                param.detach().fill_(float("nan"))
        return module


def fixed_length(graph: Graph) -> int | None:
    """How many tokens the texts have that a graph of a transformers model takes; None where any number will do."""
    shapes = (item.shape for item in graph.inputs if item.name == "input_ids" and "model_type" in graph.meta)
    return next((shape[1] for shape in shapes if len(shape) == 2 and isinstance(shape[1], int)), None)


def prepare_inputs(
    declared: Sequence[Input], symbols: Mapping[str, tuple[int, int | None]], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The inputs checked against the graph, with those that may be absent filled in.

    Raises:
        InputError: naming the input, what it should be and what it was.
    """
    names = [item.name for item in declared]
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise InputError("the model has no such input", where=", ".join(unknown), expected=", ".join(names))
    lacking = [item.name for item in declared if item.default is None and given.get(item.name) is None]
    if lacking:
        raise InputError("an input is missing", where=", ".join(lacking), expected=", ".join(names))
    arrays = {}
    sizes: dict[str, tuple[int, str]] = {}
    for item in declared:
        value = given.get(item.name)
        if value is None:
            continue
        array = value if hasattr(value, "shape") and hasattr(value, "dtype") else _array(item, value)
        arrays[item.name] = _checked(item, array, symbols, sizes)
    return fill_defaults(declared, arrays)


def fill_defaults(declared: Sequence[Input], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with absent optional inputs added, filled with their default; their sizes follow from the others."""
    sizes = {
        dim: given[item.name].shape[axis]
        for item in declared
        if item.name in given
        for axis, dim in enumerate(item.shape)
        if isinstance(dim, str)
    }
    filled = dict(given)
    for item in declared:
        if item.name in given:
            continue
        shape = tuple(sizes.get(dim) if isinstance(dim, str) else dim for dim in item.shape)
        if item.default is None or None in shape:
            raise InputError("an input is missing", where=item.name, expected=f"{item.dtype} {list(item.shape)}")
        filled[item.name] = np.full(shape, item.default, item.dtype)
    return {item.name: filled[item.name] for item in declared}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ConfigError: no such file, not JSON, or not an object.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()  # an escape may be half of a UTF-16 pair
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("the file cannot be read as JSON", where=path, got=error) from error
    if not isinstance(found, dict):
        raise ConfigError("the file does not hold a JSON object", where=path, got=type(found).__name__)
    return found


def _index_limits(graph: Graph) -> dict[str, int]:
    """Input name -> rows of the table it is looked up in, for inputs that are ids."""
    names = {item.name for item in graph.inputs}
    rows = {param_ref(n): p.shape[0] for p in graph.params.values() for n in (p.name, *p.aliases) if p.shape}
    limits: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "embedding" and all(isinstance(arg, Ref) for arg in node.args[:2]):
            table, ids = node.args[0].name, node.args[1].name
            if ids in names and table in rows:
                limits[ids] = min(rows[table], limits.get(ids, rows[table]))
    return limits


def _check_indices(inputs: Mapping[str, Any], limits: Mapping[str, int]) -> None:
    """Ids outside their table are an error on torch, and some row or other on JAX; here they are an error at once."""
    for name, limit in limits.items():
        ids = inputs.get(name)
        if isinstance(ids, np.ndarray) and ids.size and not (ids.min() >= 0 and ids.max() < limit):
            raise InputError(
                "an id is outside the model's table",
                where=name,
                expected=f"0 to {limit - 1}",
                got=f"{ids.min()} to {ids.max()}",
                do="use the tokenizer that the model was trained with",
            )


def _checked(
    item: Input, array: Any, symbols: Mapping[str, tuple[int, int | None]], sizes: dict[str, tuple[int, str]]
) -> Any:
    shape, dtype = tuple(array.shape), _dtype_name(array)
    wanted = f"{item.dtype} [{', '.join(map(str, item.shape))}]"
    got = f"{dtype} {list(shape)}"
    if len(shape) != len(item.shape):
        raise InputError("an input has the wrong number of dims", where=item.name, expected=wanted, got=got)
    if _kind(dtype) not in _ACCEPTED[_kind(item.dtype)]:
        raise InputError("an input has the wrong dtype", where=item.name, expected=wanted, got=got)
    for axis, (size, dim) in enumerate(zip(shape, item.shape, strict=True)):
        if isinstance(dim, int):
            if size != dim:
                raise InputError(
                    f"dim {axis} of an input has the wrong size", where=item.name, expected=wanted, got=got
                )
            continue
        low, high = symbols.get(dim, (1, None))
        if size < low or (high is not None and size > high):
            bounds = f"at least {low}" if high is None else f"{low} to {high}"
            raise InputError(f"{dim!r} of an input is out of range", where=item.name, expected=bounds, got=size)
        known, other = sizes.setdefault(dim, (size, item.name))
        if known != size:
            raise InputError(
                f"two inputs disagree about {dim!r}",
                where=f"{other} and {item.name}",
                expected=f"{wanted} with {dim} = {known}",
                got=got,
            )
    if isinstance(array, np.ndarray) and dtype != item.dtype:
        return array.astype(numpy_dtype(item.dtype))
    return _cast(array, item.dtype) if dtype != item.dtype else array


def _array(item: Input, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError as error:  # rows of different lengths
        wanted = f"{item.dtype} [{', '.join(map(str, item.shape))}]"
        raise InputError("an input is not an array", where=item.name, expected=wanted, got=error) from None


def _cast(array: Any, dtype: str) -> Any:
    """A framework's array in another dtype of the same kind, in the framework's own way."""
    kind = type(array).__module__.split(".")[0]
    if kind == "torch":
        import torch

        return array.to(getattr(torch, dtype))
    if kind == "tensorflow":
        import tensorflow as tf

        return tf.cast(array, dtype)
    if kind.startswith("jax"):
        return array  # int64 does not exist there; the kinds agree, and that is what counts
    return np.asarray(array).astype(numpy_dtype(dtype))


def _dtype_name(array: Any) -> str:
    dtype = array.dtype
    return getattr(dtype, "name", None) or str(dtype).removeprefix("torch.")


def _kind(dtype: str) -> str:
    if dtype == "bool":
        return "bool"
    return next((kind for kind in ("int", "float", "complex") if kind in dtype), dtype)


_ACCEPTED = {"int": ("int", "bool"), "bool": ("bool", "int"), "float": ("float",), "complex": ("complex", "float")}
