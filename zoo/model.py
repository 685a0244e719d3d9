"""`Model`: a graph with weights on a backend; the one API for all of them."""

from __future__ import annotations

import copy
import json
import logging
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.arrays import owned, to_numpy
from zoo.configured import at_length, fixed_length
from zoo.errors import ConfigError, InputError
from zoo.files import read_json
from zoo.graph.io import load_graph, save_graph
from zoo.graph.ir import Graph
from zoo.graph.passes import RNG, keyed
from zoo.inputs import named, prepare_inputs
from zoo.lookups import Lookups
from zoo.params import Params, complete, narrowed, split
from zoo.trees import Output

if TYPE_CHECKING:
    from zoo.adapters.fast import Fast, FastReport
    from zoo.backends.base import Compiled

__all__ = ["GRAPH_FILE", "Model", "Output", "Package", "model_from", "prepare_inputs"]

log = logging.getLogger(__name__)

GRAPH_FILE = "graph.json.gz"
"""What a package folder's graph is called."""


@dataclass(eq=False)
class Package:
    """A captured model without a backend: its graph and, unless it was captured from a config alone, its weights.

    Args:
        graph: what it computes.
        arrays: weights by canonical name, or None.
        folder: where the files beside the weights (config, tokenizer) come from, if anywhere.
        config: config.json's fields, where the folder's own file does not say them.
        tokenizer: tokenizer.json's text, for where the folder has no such file.
        tokenizer_config: the same of tokenizer_config.json.
    """

    graph: Graph
    arrays: Mapping[str, np.ndarray] | None = None
    folder: Path | None = None
    config: Mapping[str, Any] | None = None
    tokenizer: str | None = None
    tokenizer_config: str | None = None

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write a folder that `zoo.load` takes on every backend, with neither torch nor transformers.

        It holds the graph with its constants, model.safetensors with the tensors that the class's checkpoints have, the
        config, tokenizer, chat templates and whatever else belongs to a checkpoint, and conversion.json, which lists
        these files. The folder appears complete or not at all.

        Args:
            folder: a new or empty folder.
            overwrite: the folder may hold an earlier package. Files that its conversion.json lists, and that are
                unchanged since, are replaced; all others stay.

        Raises:
            ConfigError: the package has no weights; or the folder holds other files, an earlier package without
                `overwrite`, or files of it that were changed.
            FormatError: a parameter is of a dtype that safetensors does not have (complex128).
            SourceError: the system refuses to write; the folder is as it was.
        """
        from converters.checkpoint import MemoryCheckpoint
        from converters.formats import safetensors
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
                if self.tokenizer_config is not None and not (work / "tokenizer_config.json").is_file():
                    (work / "tokenizer_config.json").write_text(self.tokenizer_config, "utf-8")
        return target

    def load(self, backend: str = "torch") -> Model:
        """The package's model on a backend."""
        return model_from(self, backend)


class Model:
    """A model on a backend. Made by `zoo.load`.

    It can be pickled and copied. A pickle holds the arrays (of an unchanged mapped file: its path, size and time) and
    nothing compiled. A deep copy has arrays of its own.

    Attributes:
        name: what was loaded.
        backend: "torch", "jax", "tensorflow", "keras", "numpy" or "native".
        graph: what it computes.
        params: {checkpoint name: the backend's own array}, those that training changes. It is what `module` holds:
            either sees what the other replaces. Arrays that are put in are copied, unless they cannot change (JAX's)
            or are a torch.nn.Parameter; on JAX, where it is a plain dict, when the model is next used.
        buffers: the other arrays by checkpoint name: running statistics, counters, fixed tables.
        config: config.json's fields, empty for models that have none.
        folder: the files it came from, if any.
        weights: the file of weights among them, or the index of its shards.
        notes: what a user should know: outputs that are left out, tensors of the checkpoint that are not used.
    """

    def __init__(
        self,
        name: str,
        backend: str,
        graph: Graph,
        params: Mapping[str, Any],
        config: dict[str, Any],
        folder: Path | None,
        notes: list[str] | None = None,
        weights: Path | None = None,
        *,
        _backend: ModuleType,
        _fast: Fast | None = None,
        _precision: str = "float32",
    ) -> None:
        self.name, self.backend, self.graph = name, backend, graph
        self.config, self.folder, self.notes, self.weights = config, folder, notes or [], weights
        self._backend, self._fast, self._precision = _backend, _fast, _precision
        self._module: Any = None
        self._function: Compiled | None = None
        self._training: Compiled | None = None
        self._tokenizer: Any = None
        self._lookups: Lookups | None = None
        self._lengths: dict[int, Model] = {}
        self._seen: list[Any] = []
        self._whole: dict[str, Any] = {}
        self._params, self._buffers = map(self._tied, split(graph, params))

    def _tied(self, arrays: dict[str, Any]) -> dict[str, Any]:
        replace = self._backend.replaced
        return arrays if replace is None else Params(arrays, self.graph.params, replace)

    @property
    def params(self) -> dict[str, Any]:
        """{checkpoint name: the backend's own array}, those that training changes."""
        self._refresh(self._params)
        return self._params

    @params.setter
    def params(self, given: Mapping[str, Any]) -> None:
        arrays = complete(self.graph, given, self.state, self._backend.INPUTS.own)
        for kept, new in zip((self._params, self._buffers), split(self.graph, arrays), strict=True):
            if isinstance(kept, Params):
                kept.update({name: value for name, value in new.items() if value is not kept[name]})
        if not isinstance(self._params, Params):
            self._params, self._buffers = split(self.graph, arrays)
            self._refresh(self._params)
            self._refresh(self._buffers)

    def _refresh(self, arrays: dict[str, Any]) -> None:
        """What the module holds now; in a plain dict, own arrays in place of others that were put in."""
        if isinstance(arrays, Params):
            arrays.refresh()
            return
        for name, value in arrays.items():
            if name in self.graph.params and not self._backend.INPUTS.own(value):
                arrays[name] = self._backend.copied(value, self.graph.params[name].dtype)

    @property
    def buffers(self) -> dict[str, Any]:
        """{checkpoint name: the backend's own array}, those that training leaves: statistics, counters, tables."""
        self._refresh(self._buffers)
        return self._buffers

    @property
    def state(self) -> dict[str, Any]:
        """Parameters and buffers together, in the graph's order: a new dict."""
        return dict(self._state())

    def _state(self) -> dict[str, Any]:
        """The same, put together and checked once as long as the arrays are the same."""
        for arrays in (self._params, self._buffers):
            if not isinstance(arrays, Params):  # which asks its module by itself
                self._refresh(arrays)
        values = [*self._params.values(), *self._buffers.values()]
        if len(values) != len(self._seen) or not all(map(operator.is_, values, self._seen)):
            self._whole = complete(self.graph, {**self._buffers, **self._params}, {}, self._backend.INPUTS.own)
            self._seen = values
        return self._whole

    def __call__(self, *unnamed: Any, rng: Any = None, packed: bool = False, **inputs: Any) -> Output:
        """Run the model.

        On torch no gradient is recorded, unless `rng` is given: that is what `module` and `apply` are for. TensorFlow's
        tapes and JAX's transformations see calls.

        Args:
            rng: with it the model runs as in training, with dropout: a seed (a number or two), or what the framework
                keeps randomness in (torch.Generator, a JAX key, tf.random.Generator, keras.random.SeedGenerator,
                numpy.random.Generator). The same key drops the same elements on every framework.
            packed: True leaves out padding (zeros of `attention_mask`): the native engine computes real tokens alone,
                where the graph allows, and sets outputs at padding to 0. Other backends compute the padded batch.
            inputs: arrays by the model's input names (any framework's, or lists); `input_ids` [B, T] int,
                `pixel_values` [B, C, H, W] float and so on, as `inputs` tells. Masks and token types may be left out.

        Returns:
            The outputs by name, as the backend's arrays.

        Raises:
            InputError: a name, dtype, rank or size is wrong; the input is named.
            WeightsError: `params` or `module` no longer fit the graph; the parameters or modules are named.
            ConfigError: `rng` was given, and the model was not loaded for training.
        """
        named(self.graph.inputs, unnamed)
        model = self._of_length(inputs)
        prepared = prepare_inputs(model.graph.inputs, model.graph.symbols, inputs, self._backend.INPUTS)
        model._check_lookups(prepared)
        with self._backend.evaluating() if rng is None else nullcontext():
            return Output(model._run(self._state(), prepared, rng, packed))

    def apply(self, params: Mapping[str, Any], /, *unnamed: Any, rng: Any = None, **inputs: Any) -> dict[str, Any]:
        """The model as a pure function of parameters, inputs and, in training, a key; a plain dict of outputs.

        Under JAX it goes through `jax.jit`, `jax.grad` and `jax.vmap`; under TensorFlow and torch through their tapes.
        Names, dtypes and shapes of inputs are checked as in a call, and what may be left out is filled in. Traced
        values cannot be checked: rows that they look up outside a table are NaN. `rng` as in a call: it may be
        traced, too.

        Args:
            params: `m.params` or the like; buffers may be among them, and are the model's own where they are not.

        Raises:
            InputError, ConfigError: as in a call.
            WeightsError: names or shapes in `params` are not the graph's; all are listed.
        """
        named(self.graph.inputs, unnamed)
        model = self._of_length(inputs)
        prepared = prepare_inputs(model.graph.inputs, model.graph.symbols, inputs, self._backend.INPUTS)
        if self.backend != "torch":  # its operations look at indices themselves, and may be compiled around this
            model._check_lookups(prepared)
        return model._run(complete(self.graph, params, self._state(), self._backend.INPUTS.own), prepared, rng)

    @property
    def module(self) -> Any:
        """The framework's own object over the same parameters.

        torch: the transformers module, or an nn.Module around the graph; tensorflow: a tf.Module; keras: a
        keras.Model; jax, numpy and native: the pure function `apply`.

        On torch a parameter that is replaced there is replaced in `params`, calls and `save`, too. If the module no
        longer computes what the graph does (a LoRA adapter that is not merged, a head of another shape), these raise
        WeightsError.
        """
        if self._module is None:
            self._module = self._backend.module_of(self)
            if self._backend.held is not None:
                held = self._backend.held(self._module, self.graph)
                for arrays in (self._params, self._buffers):
                    if isinstance(arrays, Params):
                        arrays.held = held
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
            InputError: something among the texts is none.
            ConfigError: the model has no tokenizer, gives no hidden states, or has no such prompt.
        """
        from zoo.tasks.text import embed

        listed = [texts] if isinstance(texts, str) or not isinstance(texts, Iterable) else list(texts)
        if wrong := [text for text in listed if not isinstance(text, str)]:
            raise InputError(
                "not a text", where="texts", expected="a str, or a list of them", got=type(wrong[0]).__name__
            )
        return embed(self, listed, batch_size, prompt=prompt, prompt_name=prompt_name)

    def save(
        self, folder: str | os.PathLike[str], params: Mapping[str, Any] | None = None, *, overwrite: bool = False
    ) -> Path:
        """Write the model as a package: graph, weights and buffers, config, tokenizer; see `Package.save`.

        Args:
            params: weights to write in place of the model's own, as `apply` takes them; by default those of now.

        Raises:
            WeightsError: names or shapes in `params` are not the graph's, or `module` is no longer a module of the
                graph; all are listed.
        """
        return self._package(params).save(folder, overwrite=overwrite)

    def package(self, params: Mapping[str, Any] | None = None) -> Package:
        """The model without its backend: graph, weights (or `params`) as they are now, and the files beside them.

        What becomes of the model later does not reach it.
        """
        found = self._package(params)
        found.arrays = {name: owned(array) for name, array in (found.arrays or {}).items()}
        return found

    def _package(self, params: Mapping[str, Any] | None) -> Package:
        """The same over the model's memory."""
        from zoo.tasks.text import derived_texts_of

        state = self._state()
        if params is not None:
            state = complete(self.graph, params, state, self._backend.INPUTS.own)
        arrays = self._arrays(state)
        has_file = self.folder is not None and (self.folder / "tokenizer.json").is_file()
        texts = (
            (None, None) if has_file or self.weights is None or not self.weights.is_file() else derived_texts_of(self)
        )
        return Package(self.graph, arrays, self.folder, self.config or None, *texts)

    def fast_report(self) -> FastReport:
        """Which of our kernels run in place of the framework's own, at the sizes that calls had so far.

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
            self._lengths[shape[1]] = self._with_graph(at_length(self, shape[1]))
        return self._lengths[shape[1]]

    def _with_graph(self, graph: Graph) -> Model:
        """A model that runs another graph; it is called with this one's parameters."""
        arrays = {name: value for name, value in self._state().items() if name in graph.params}
        facts = (self.name, self.backend, graph, arrays, self.config, self.folder, self.notes, self.weights)
        return Model(*facts, _backend=self._backend, _fast=self._fast, _precision=self._precision)

    def __getstate__(self) -> dict[str, Any]:
        from converters.checkpoint import mapped

        arrays = self._arrays(self._state())
        return {**self._facts(), "arrays": {name: mapped(array) or array for name, array in arrays.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from converters.checkpoint import Mapped
        from zoo.backends import get_backend

        module, graph = get_backend(state["backend"]), state["graph"]
        files: dict[Path, memoryview] = {}
        arrays = {name: a.read(files) if isinstance(a, Mapped) else a for name, a in state["arrays"].items()}
        fast = None
        if state["fast"]:
            from zoo.adapters.fast import Fast

            fast = Fast(state["backend"])
        params = module.params_from(arrays, graph)
        for name in state["frozen"]:
            setattr(params[name], module.TRAINED, False)
        own = [state[name] for name in ("config", "folder", "notes", "weights")]
        precision = state["precision"]
        self.__init__(  # type: ignore[misc]
            state["name"], state["backend"], graph, params, *own, _backend=module, _fast=fast, _precision=precision
        )
        self._tokenizer = state["tokenizer"]

    def __deepcopy__(self, memo: dict[int, Any]) -> Model:
        facts = self._facts()
        facts |= copy.deepcopy({name: fact for name, fact in facts.items() if name != "graph"}, memo)
        made = Model.__new__(Model)
        memo[id(self)] = made
        made.__setstate__({**facts, "arrays": {n: np.array(a) for n, a in self._arrays(self._state()).items()}})
        return made

    def _arrays(self, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """As NumPy's, in memory of the model's. What the framework narrowed is as it was loaded, or as wide."""
        back = self._backend.widened
        if back is None:
            return {name: to_numpy(value) for name, value in state.items()}
        return {name: back(value, self.graph.params[name].dtype) for name, value in state.items()}

    def _facts(self) -> dict[str, Any]:
        """All that a model is but its arrays."""
        names = ("name", "backend", "graph", "config", "folder", "notes", "weights")
        trained = self._backend.TRAINED
        return {
            **{name: getattr(self, name) for name in names},
            "frozen": [name for name, value in self.params.items() if trained and not getattr(value, trained)],
            "precision": self._precision,
            "fast": self._fast is not None,
            "tokenizer": self._tokenizer,
        }

    def _run(
        self, params: Mapping[str, Any], inputs: Mapping[str, Any], rng: Any, packed: bool = False
    ) -> dict[str, Any]:
        if rng is None:
            if self._function is None:
                graph, operations = self._fast.prepared(self.graph) if self._fast is not None else (self.graph, {})
                options: dict[str, Any] = {"operations": operations, "source": self.graph} if operations else {}
                if self._precision != "float32":
                    options["precision"] = self._precision
                self._function = self._backend.compile_graph(graph, **options)
            function = self._function.packed if packed else self._function
            return function(params, inputs)
        if self._training is None:
            self._training = self._backend.compile_graph(keyed(self.graph))
        return self._training(params, {**inputs, RNG: self._backend.key_from(rng)})

    def _check_lookups(self, inputs: Mapping[str, Any]) -> None:
        if self._lookups is None:
            self._lookups = Lookups(self.graph)
        # where a call computes at once, its operations look at indices themselves
        self._lookups.check(inputs, values=self.backend not in ("torch", "numpy", "native"))

    def _native_module(self) -> Any:
        """torch only: the transformers module over the same parameters, or None."""
        import importlib.util

        name = self.graph.meta.get("class")
        if not name or not self.config or importlib.util.find_spec("transformers") is None:
            return None
        from zoo.capture.huggingface import config_from, native_module

        state = self.state
        module = native_module(config_from(self.config), name, state, self.graph.meta.get("renamed", {}))
        ours = {param.data_ptr() for param in state.values()}
        for param in module.parameters():
            if param.data_ptr() not in ours:
                # no tensor of the checkpoint: what is computed from it must not look like a result
                param.detach().fill_(float("nan"))
        return module


def model_from(package: Package, backend: str) -> Model:
    """A package's model on a backend; whatever is done to it, the package and its other models stay what they are."""
    from zoo.backends import get_backend
    from zoo.frameworks import backend_name

    module = get_backend(backend)
    if package.arrays is None:
        raise ConfigError("the package has no weights", do="load a checkpoint with zoo.load")
    own = (lambda array: np.array(array, order="C")) if module.IN_PLACE else owned
    arrays = {name: own(np.asarray(array)) for name, array in package.arrays.items()}
    params = module.params_from(arrays, package.graph)
    name = package.graph.meta.get("class", "captured module")
    config = dict(package.config or {})
    notes = narrowed(package.graph, params)
    return Model(name, backend_name(backend), package.graph, params, config, package.folder, notes, _backend=module)
