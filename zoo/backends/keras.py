"""Keras 3: a graph as a `keras.Model` on whichever framework Keras itself runs on (KERAS_BACKEND).

A Keras model's tensors are those of Keras's own backend, so a call runs the graph with that framework's backend of
ours, and everything else (variables, fit, saving) is Keras's. Shapes of symbolic calls come from the graph's record.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from zoo.arrays import numpy_dtype, to_numpy
from zoo.backends import get_backend
from zoo.backends.base import Compiled, compiled, refuse
from zoo.errors import GraphError, InputError, MissingFramework, UnknownBackend, UnsupportedOp
from zoo.frameworks import how_to_install, installed
from zoo.graph.dims import evaluate, symbols
from zoo.graph.facts import Facts
from zoo.graph.io import from_json, to_json
from zoo.graph.ir import DTYPES, Dim, Graph, Input
from zoo.graph.passes import RNG, keyed
from zoo.inputs import Arrays, check_names
from zoo.params import HeldVariables, check_params
from zoo.trees import register_trees

try:
    import keras
except ModuleNotFoundError as error:
    raise MissingFramework(
        "Keras cannot be imported with the backend it is set to",
        got=error,
        do="set the environment variable KERAS_BACKEND to a framework that is installed: "
        + (
            ", ".join(name for name in ("jax", "tensorflow", "torch") if installed(name))
            or how_to_install("keras", "jax")
        ),
    ) from error

__all__ = [
    "INPUTS",
    "GraphModel",
    "compile_graph",
    "evaluating",
    "held",
    "key_from",
    "module_of",
    "params_from",
    "replaced",
    "widened",
]

register_trees()

COPIES = keras.backend.backend() != "torch"
"""Whether `params_from` copies, so that the checkpoint's pages are not needed any more; on torch it does not."""

IN_PLACE = keras.backend.backend() == "torch"
"""Whether training writes into the arrays that `params_from` was given."""

copied = None  # no use for these here: see zoo.backends.base

FRAMEWORKS = ("jax", "tensorflow", "torch")
"""Keras's own backends that a graph runs on."""


def compile_graph(
    graph: Graph,
    *,
    operations: Mapping[str, Callable[..., Any]] | None = None,
    source: Graph | None = None,
    precision: str = "float32",
) -> Compiled:
    """A function (params, inputs) -> outputs on tensors of Keras's backend; `params` may be Keras variables.

    Raises:
        UnknownBackend: KERAS_BACKEND is none of `FRAMEWORKS`.
    """
    refuse("keras", operations, precision)
    native = _native().compile_graph(graph)

    def apply(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        return native({name: _plain(p) for name, p in params.items()}, inputs)

    return compiled(apply)


def params_from(arrays: Mapping[str, np.ndarray], graph: Graph) -> dict[str, keras.Variable]:
    """One `keras.Variable` per parameter; its path is the canonical name with "/" for ".".

    On torch, and on JAX until the first update, the variables lie over the arrays' own memory where that is possible.

    Raises:
        UnknownBackend: KERAS_BACKEND is none of `FRAMEWORKS`.
    """
    value = _tensor_maker()
    return {name: _variable(name, value(array), graph.trains(name)) for name, array in arrays.items()}


TRAINED = "trainable"
"""The attribute of a variable that says whether it is trained."""


def replaced(old: keras.Variable, value: Any) -> keras.Variable:
    """The variable itself, of that value: its model's functions hold it."""
    value = _plain(value)
    old.assign(value if _native().INPUTS.own(value) else to_numpy(value).astype(numpy_dtype(old.dtype)))
    return old


def widened(variable: keras.Variable, dtype: str) -> np.ndarray:
    """A variable for a file in which it has `dtype`: as it was loaded where Keras's backend narrowed it."""
    back = getattr(_native(), "widened", None)
    return to_numpy(variable) if back is None else back(_plain(variable), dtype)


def evaluating() -> Any:
    """What a call without `rng` runs under."""
    return _native().evaluating()


def _plain(x: Any) -> Any:
    """A variable's value: it is asked for at each call, as Keras puts tracers in its place while JAX traces."""
    return x.value if isinstance(x, keras.Variable) else x


INPUTS = Arrays(
    own=lambda x: isinstance(x, keras.Variable) or _native().INPUTS.own(x),
    shape=lambda x: _native().INPUTS.shape(_plain(x)),
    cast=lambda x, dtype: _native().INPUTS.cast(_plain(x), dtype),
    full=lambda shape, value, dtype: _native().INPUTS.full(shape, value, dtype),
    ranked=lambda x, rank: _native().INPUTS.ranked(_plain(x), rank),
)
"""What a call's inputs need of Keras: what they need of the framework that it runs on."""


def key_from(rng: Any) -> Any:
    """A call's key, int32 [2], of a keras.random.SeedGenerator, or of what Keras's own backend has keys from."""
    return _native().key_from(rng.next() if isinstance(rng, keras.random.SeedGenerator) else rng)


def module_of(model: Any) -> GraphModel:
    """The model as a `keras.Model` over the model's own variables."""
    return GraphModel(model.graph, {**getattr(model, "buffers", {}), **model.params})


def held(module: GraphModel, graph: Graph) -> HeldVariables:
    """What the module holds."""
    return HeldVariables(lambda: module.params)


class NotQuantised(UnsupportedOp, NotImplementedError):
    """A graph was to be quantised by Keras; inside another model Keras says so and leaves it as it is."""


@keras.saving.register_keras_serializable(package="anyzoo")
class GraphModel(keras.Model):
    """A graph as a Keras model: fit, predict, save and use inside other models, on each of `FRAMEWORKS`.

    A call takes a dict of tensors by input name, or one tensor where the graph has a single required input; inputs
    with a default may be left out. It returns a dict of outputs, or with `output` that output alone. Dtype policies
    do not reach inside: the casts are part of the graph. A graph captured for training drops where `training` is
    true, as in `fit`, by a keras.random.SeedGenerator of the model's own; on any other `training` changes nothing.
    To load a saved one, import zoo, before or after Keras: it registers "anyzoo>GraphModel".

    Args:
        graph: what to run; it is saved as part of the model's config, as data.
        params: variables by canonical name, from `params_from`; without them all weights are zero, to be loaded.
        output: the one output to return.
        seed: of what is dropped in training; None draws one.
        name, trainable: as for any Keras layer.
        frozen: parameters that do not train although the graph's do, besides those of `params` that do not.

    Raises:
        WeightsError: parameters are missing, unexpected or misshaped; all are listed.
        InputError: the graph has no such output; at a call, an input is missing, unknown or of a wrong shape.
        UnknownBackend: KERAS_BACKEND is none of `FRAMEWORKS`.
    """

    def __init__(
        self,
        graph: Graph,
        params: Mapping[str, keras.Variable] | None = None,
        *,
        output: str | None = None,
        seed: int | None = None,
        name: str | None = None,
        trainable: bool = True,
        frozen: Sequence[str] = (),
    ) -> None:
        super().__init__(name=name, dtype=_float_dtype(graph), autocast=False)
        if output is not None and output not in graph.outputs:
            raise InputError("the graph has no such output", expected=", ".join(graph.outputs), got=output)
        if params is None:
            params = params_from({p.name: np.zeros(p.shape, _numpy(p.dtype)) for p in graph.params.values()}, graph)
        else:
            check_params(graph, {name: tuple(variable.shape) for name, variable in params.items()}, self.name)
        self.graph = graph
        self.supports_jit = not _sizes_depend_on_data(graph)
        self._output = output
        self._apply_graph = compile_graph(graph)
        self._seed, self._apply_keyed = seed, None
        if graph.meta.get("train"):
            self._apply_keyed = compile_graph(keyed(graph))
            self.seed_generator = keras.random.SeedGenerator(seed)
        # in the graph's order, whoever made the dict: an optimizer's state is saved by position
        self.params = {name: params[name] for name in graph.params}
        self.build(None)
        still = {*frozen, *self._frozen()}
        self.trainable = trainable  # after the variables are known, so that it reaches each of those that train
        for name in still & self.params.keys():
            self.params[name].trainable = False

    def build(self, input_shape: Any = None) -> None:
        """Nothing is left to build: the graph fixes every weight's shape."""

    def get_build_config(self) -> None:
        """None: the constructor makes every weight."""
        return None

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Outputs by name, or the one chosen; `inputs` as in the class's description."""
        given = _by_name(self.graph, inputs)
        sizes = _bind(self.graph, {name: keras.ops.shape(x) for name, x in given.items()})
        arrays = {}
        for item in self.graph.inputs:
            dtype, x = _held(item.dtype), given.get(item.name)
            if x is None:
                x = keras.ops.full(_filled_shape(item, sizes), item.default, dtype)
            arrays[item.name] = x if keras.backend.standardize_dtype(x.dtype) == dtype else keras.ops.cast(x, dtype)
        if not training or self._apply_keyed is None:
            return self._chosen(self._apply_graph(self.params, arrays))
        return self._chosen(self._apply_keyed(self.params, {**arrays, RNG: key_from(self.seed_generator)}))

    def compute_output_spec(self, inputs: Any, training: bool = False) -> Any:
        """The outputs' dtypes and shapes as the graph records them; a size that is not known is None."""
        given = _by_name(self.graph, inputs)
        sizes = _bind(self.graph, {name: tuple(x.shape) for name, x in given.items()})
        infos = Facts(self.graph).infos
        specs = {}
        for name, ref in self.graph.outputs.items():
            shape = tuple(_evaluated(dim, sizes) for dim in infos[ref.name].shape)
            specs[name] = keras.KerasTensor(shape, _held(infos[ref.name].dtype))
        return self._chosen(specs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Shapes of the outputs for a dict of shapes, or for one shape."""
        if isinstance(input_shape, Mapping):
            spec = self.compute_output_spec({name: keras.KerasTensor(shape) for name, shape in input_shape.items()})
        else:
            spec = self.compute_output_spec(keras.KerasTensor(input_shape))
        return {name: s.shape for name, s in spec.items()} if isinstance(spec, dict) else spec.shape

    def save_own_variables(self, store: Any) -> None:
        """Weights under their canonical names."""
        for name, variable in self.params.items():
            store[name] = widened(variable, self.graph.params[name].dtype)

    def load_own_variables(self, store: Any) -> None:
        """Weights by canonical name; WeightsError lists whatever is missing, unexpected or misshaped."""
        arrays = {name: store[name] for name in store.keys()}  # noqa: SIM118 (a store is no mapping)
        check_params(self.graph, {name: tuple(array.shape) for name, array in arrays.items()}, self.name)
        for name, variable in self.params.items():
            variable.assign(arrays[name])

    def get_config(self) -> dict[str, Any]:
        """Name, trainable, what of it does not train, output, and the graph with its constants as JSON text."""
        return {
            "name": self.name,
            "trainable": self.trainable,
            "frozen": self._frozen(),
            "output": self._output,
            "seed": self._seed,
            "graph": to_json(self.graph),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> GraphModel:
        """The model of a config, its weights zero; the graph is checked and nothing in it is executed.

        Raises:
            FormatError: the config's graph is damaged or of another version.
            GraphError, UnsupportedOp: it is a graph, but one that no capture writes.
        """
        rest = dict(config)
        return cls(from_json(rest.pop("graph"), "the graph in a Keras config"), **rest)

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """NotQuantised: Keras quantises its own layers, and a graph has none."""
        raise NotQuantised(
            "Keras cannot quantise a graph: it has none of Keras's layers",
            where=self.name,
            do='zoo.load(..., backend="native", dtype="int8"), or quantise on Keras what is around it',
        )

    def export(
        self,
        filepath: Any,
        format: str = "tf_saved_model",
        verbose: Any = None,
        input_signature: Any = None,
        **kwargs: Any,
    ) -> None:
        """As keras.Model.export; without a signature its inputs are the graph's, of any size where the graph has a
        symbol. All inputs are then passed, those with a default, too.

        Raises:
            UnknownBackend: Keras runs on torch, where it exports no SavedModel of inputs by name, or on JAX, and inputs
                share a size that is not known.
        """
        if format == "tf_saved_model" and keras.backend.backend() == "torch":
            raise UnknownBackend(
                "Keras on torch exports no SavedModel with inputs by name",
                where=self.name,
                expected="KERAS_BACKEND tensorflow or jax",
                do='load it there, or use the tf.Module of zoo.load(..., backend="tensorflow")',
            )
        if input_signature is None:
            dims = [dim for item in self.graph.inputs for dim in item.shape[1:] if isinstance(dim, str)]
            shared = [dim for dim in dict.fromkeys(dims) if dims.count(dim) > 1]
            if shared and keras.backend.backend() == "jax":
                raise UnknownBackend(
                    "Keras on JAX exports the sizes of each input apart, and these belong to several",
                    where=self.name,
                    got=", ".join(shared),
                    do="set KERAS_BACKEND to tensorflow, or pass input_signature with numbers for them",
                )
            input_signature = [
                {
                    item.name: keras.InputSpec(
                        dtype=_held(item.dtype),
                        shape=tuple(dim if isinstance(dim, int) else None for dim in item.shape),
                        name=item.name,
                    )
                    for item in self.graph.inputs
                }
            ]
        super().export(filepath, format=format, verbose=verbose, input_signature=input_signature, **kwargs)

    def _frozen(self) -> list[str]:
        """The parameters that the graph trains and that were frozen here."""
        return [
            name
            for name, variable in self.params.items()
            if self.graph.params[name].trainable and not variable.trainable
        ]

    @property
    def _default_save_signature(self) -> Any:
        """What tf.saved_model traces of a model inside another; Keras would take it to have one float input."""
        if keras.backend.backend() != "tensorflow":
            return None
        import tensorflow as tf

        spec = {
            i.name: tf.TensorSpec([d if isinstance(d, int) else None for d in i.shape], i.dtype, i.name)
            for i in self.graph.inputs
        }
        return tf.function(lambda inputs: self(inputs), autograph=False, input_signature=[spec])

    def _chosen(self, outputs: dict[str, Any]) -> Any:
        return outputs if self._output is None else outputs[self._output]


def _native() -> ModuleType:
    """Our backend for the framework that Keras runs on."""
    name = keras.backend.backend()
    if name not in FRAMEWORKS:
        raise UnknownBackend(
            f"a graph does not run on Keras's backend {name!r}",
            expected=f"KERAS_BACKEND one of {', '.join(FRAMEWORKS)}",
            do="set the environment variable KERAS_BACKEND before keras is imported",
        )
    return get_backend(name)


def _tensor_maker() -> Callable[[np.ndarray], Any]:
    """How an array becomes a tensor: without a copy where the framework can, and bfloat16 included."""
    native = _native()
    if keras.backend.backend() == "torch":
        return native.tensor_from
    if keras.backend.backend() == "jax":
        return native.put
    return keras.ops.convert_to_tensor


def _variable(name: str, value: Any, trainable: bool) -> keras.Variable:
    """A variable with a path that torch, TensorFlow and HDF5 all accept: the dots, which they do not, are slashes."""
    *scopes, leaf = name.replace("/", "_").split(".")
    with contextlib.ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable(value, trainable=trainable, autocast=False, name=leaf)


def _by_name(graph: Graph, inputs: Any) -> dict[str, Any]:
    required = [item.name for item in graph.inputs if item.default is None]
    if isinstance(inputs, Mapping):
        given = dict(inputs)
    elif len(required) == 1 and not isinstance(inputs, (list, tuple)):
        given = {required[0]: inputs}
    else:
        raise InputError(
            "the inputs have no names",
            expected=", ".join(i.name for i in graph.inputs),
            got=type(inputs).__name__,
            do="pass a dict",
        )
    check_names(graph.inputs, given)
    return {name: value for name, value in given.items() if value is not None}


def _bind(graph: Graph, shapes: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Each symbol's size: a number, a scalar tensor, or None where it is not known."""
    sizes: dict[str, Any] = {}
    for item in graph.inputs:
        shape = shapes.get(item.name)
        if shape is None:
            continue
        fits = len(shape) == len(item.shape)
        for dim, size in zip(item.shape, shape, strict=False):
            known = dim if isinstance(dim, int) else sizes.get(dim)
            fits &= not isinstance(known, int) or not isinstance(size, int) or known == size
            if isinstance(dim, str) and not isinstance(known, int) and (known is None or isinstance(size, int)):
                sizes[dim] = size
        if not fits:
            dims = [dim if isinstance(dim, int) else f"{dim}={sizes.get(dim)}" for dim in item.shape]
            raise InputError(
                "an input has a wrong shape",
                where=f"input {item.name!r}",
                expected=f"[{', '.join(map(str, dims))}]",
                got=list(shape),
            )
    return sizes


def _filled_shape(item: Input, sizes: Mapping[str, Any]) -> tuple[Any, ...]:
    unknown = [dim for dim in item.shape if isinstance(dim, str) and sizes.get(dim) is None]
    if unknown:
        raise InputError(
            "an input was left out whose shape does not follow from the others",
            where=f"input {item.name!r}",
            expected=list(item.shape),
            got=f"no size for {', '.join(unknown)}",
            do=f"pass {item.name}",
        )
    return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in item.shape)


def _evaluated(dim: Dim, sizes: Mapping[str, Any]) -> int | None:
    """A dim as a number; None where it is an expression over a size that is not known, or beyond plain arithmetic."""
    numbers = {}
    for name, size in sizes.items():
        with contextlib.suppress(AttributeError, TypeError):  # None, and a tensor that is traced
            numbers[name] = size.__index__()
    try:
        return evaluate(dim, numbers)
    except GraphError:
        return None


def _sizes_depend_on_data(graph: Graph) -> bool:
    """Whether a result's shape follows from values, which XLA cannot compile: torch names such sizes u0, u1, …"""
    for dim in {dim for node in graph.nodes for info in node.infos for dim in info.shape if isinstance(dim, str)}:
        try:
            names = symbols(dim)
        except GraphError:
            continue
        if any(name[:1] == "u" and name[1:].isdigit() for name in names - graph.symbols.keys()):
            return True
    return False


def _held(dtype: str) -> str:
    """The dtype that Keras's backend holds a `dtype` in: JAX without x64 has nothing of 64 bits."""
    if dtype == "size":
        return "int32"
    if keras.backend.backend() == "jax":
        import jax

        if not jax.config.jax_enable_x64:
            return {"int64": "int32", "float64": "float32", "complex128": "complex64"}.get(dtype, dtype)
    return dtype


def _float_dtype(graph: Graph) -> str:
    """The dtype of most of the weights: the model's own policy, for what Keras derives from it."""
    floats = [p.dtype for p in graph.params.values() if p.dtype in ("float32", "float64", "float16", "bfloat16")]
    return max(dict.fromkeys(floats), key=floats.count, default="float32")


def _numpy(dtype: str) -> Any:
    if dtype not in DTYPES:
        raise GraphError("unknown dtype", expected=f"one of {', '.join(DTYPES)}", got=dtype)
    return numpy_dtype(dtype)
