"""PyTorch: the graph's operations are torch's own, so running one is running the exported program."""

from __future__ import annotations

import functools
import operator
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from zoo.arrays import is_spread, numpy_name, to_numpy
from zoo.backends.base import Compiled, compiled, refuse
from zoo.backends.execute import Program
from zoo.errors import GraphError, WeightsError
from zoo.graph.ir import Graph, Node
from zoo.graph.key import shaping
from zoo.graph.passes import RNG, keyed
from zoo.inputs import Arrays, named, prepare_inputs
from zoo.ops import OPS
from zoo.ops.random import key_of
from zoo.trees import register_trees

__all__ = [
    "INPUTS",
    "GraphModule",
    "Held",
    "compile_graph",
    "evaluating",
    "exchanged",
    "held",
    "key_from",
    "module_of",
    "params_from",
    "parts_of",
    "replaced",
]

register_trees()


COPIES = False
"""Whether `params_from` copies, so that the checkpoint's pages are not needed any more."""

IN_PLACE = True
"""Whether training writes into the arrays that `params_from` was given."""

copied = None
widened = None  # no use for these here: see zoo.backends.base

TRAINED = "requires_grad"
"""The attribute of a parameter that says whether it is trained."""

evaluating = torch.no_grad
"""What a call without `rng` runs under."""

_ordinary = torch.inference_mode(False)
"""Tensors that are kept are made outside of inference mode: no later gradient could pass one that was made in it."""


@_ordinary
def compile_graph(
    graph: Graph,
    *,
    operations: Mapping[str, Callable[..., Any]] | None = None,
    source: Graph | None = None,
    precision: str = "float32",
) -> Compiled:
    """A function (params, inputs) -> outputs on tensors; `operations` stand in for torch's own of those names, and
    `source` is the graph without them."""
    refuse("torch", precision=precision)
    given = operations or {}

    def resolve(name: str) -> Callable[..., Any]:
        return given.get(name) or _resolve(name)

    program = Program(graph, resolve, lambda dtype: getattr(torch, dtype.name), source=source, also=_further)
    constants = {name: tensor_from(array) for name, array in graph.constants.items()}

    def given_tensor(name: str, array: np.ndarray) -> torch.Tensor:
        return tensor_from(array).to(getattr(torch, graph.params[name].dtype))

    def apply(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        params = {name: given_tensor(name, p) if isinstance(p, np.ndarray) else p for name, p in params.items()}
        device = next(iter(params.values())).device if params else torch.device("cpu")
        placed = constants if device.type == "cpu" else {name: c.to(device) for name, c in constants.items()}
        inputs = {name: _placed(value, device) for name, value in inputs.items()}
        # what is compiled is all the Python that runs then
        watch = None if torch.compiler.is_compiling() else program.watched(inputs)
        return program.run(params, inputs, placed, watch, device=device)

    return compiled(apply)


def _further(node: Node) -> Sequence[str]:
    """What makes a tensor without one among its arguments is told where: torch.device as a context does not reach
    operations that are called as these are.
    """
    try:
        schema = getattr(_resolve(node.op), "_schema", None)
    except (KeyError, AttributeError):  # which the program says
        return ()
    names = {} if schema is None else {argument.name: str(argument.type) for argument in schema.arguments}
    return ("device",) if "device" in names and not any("Tensor" in kind for kind in names.values()) else ()


@_ordinary
def params_from(arrays: Mapping[str, np.ndarray], graph: Graph) -> dict[str, torch.Tensor]:
    """Parameters, and tensors for buffers, over the checkpoint's own memory: nothing is copied, and a change to one is
    never written to disk.
    """
    tensors = {name: tensor_from(array) for name, array in arrays.items()}
    return {name: torch.nn.Parameter(x) if graph.trains(name) else x for name, x in tensors.items()}


@_ordinary
def replaced(old: torch.Tensor, value: Any) -> torch.Tensor:
    """What stands for an array in a place of another: of its dtype, on its device, and a parameter if that was one.

    It is a copy, unless it is such a parameter already.
    """
    if not isinstance(value, torch.Tensor):
        value = tensor_from(np.array(to_numpy(value)))
    same = (value.dtype, value.device) == (old.dtype, old.device)
    if same and isinstance(old, torch.nn.Parameter) and isinstance(value, torch.nn.Parameter):
        return value
    value = value.detach().to(old.device, old.dtype, copy=True)
    return torch.nn.Parameter(value, old.requires_grad) if isinstance(old, torch.nn.Parameter) else value


def key_from(rng: Any) -> torch.Tensor:
    """A call's key, int32 [2], of a seed (a number or two) or of a torch.Generator, from which it is drawn."""
    if isinstance(rng, torch.Generator):
        return torch.randint(-(2**31), 2**31, (2,), generator=rng, device=rng.device).to(torch.int32)
    return torch.from_numpy(key_of(rng.tolist() if isinstance(rng, torch.Tensor) else rng))


@_ordinary
def module_of(model: Any) -> torch.nn.Module:
    """The transformers module itself where transformers knows the class, else an nn.Module around the graph.

    Either is in evaluation mode, as transformers' own loading leaves it.
    """
    return model._native_module() or GraphModule(model.graph, model.state).eval()


class GraphModule(torch.nn.Module):
    """A graph as an nn.Module: parameters at their canonical names, forward(**inputs) -> dict of outputs.

    It is a tree of modules as the dots in the names say, so `state_dict` has the names of the checkpoint. It can be
    compiled, pickled, copied and moved to another device. It computes in the graph's dtype and refuses parameters of
    another. In training mode a graph captured for training drops by torch's global generator, or by `rng`.

    Raises:
        InputError: at a call, an input is unknown, missing, or of a wrong dtype or shape.
        WeightsError: at a call, a parameter is gone, or has another shape or dtype than the graph.
    """

    def __init__(self, graph: Graph, params: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.graph = graph
        self._compile()
        for name, tensor in params.items():
            _place(self, name, tensor if graph.trains(name) else tensor.detach())

    def _compile(self) -> None:
        self._dtypes = {name: getattr(torch, param.dtype) for name, param in self.graph.params.items()}
        self._apply_graph = compile_graph(self.graph)
        self._apply_keyed = compile_graph(keyed(self.graph)) if self.graph.meta.get("train") else None

    def forward(self, *unnamed: Any, rng: Any = None, **inputs: Any) -> dict[str, Any]:
        graph = self.graph
        named(graph.inputs, unnamed)
        params = {name: _held(self, name) for name in graph.params}
        for name, param in graph.params.items():
            tensor = params[name]
            if tensor is None or tensor.shape != param.shape or tensor.dtype != self._dtypes[name]:
                raise _misfit(graph, params)
        prepared = prepare_inputs(graph.inputs, graph.symbols, inputs, INPUTS)
        if self._apply_keyed is None or not self.training:
            return self._apply_graph(params, prepared)
        return self._apply_keyed(params, {**prepared, RNG: key_from(torch.default_generator if rng is None else rng)})

    def extra_repr(self) -> str:
        return f"{self.graph.meta.get('class', 'graph')}: {len(self.graph.nodes)} nodes"

    def __getstate__(self) -> dict[str, Any]:
        compiled = ("_apply_graph", "_apply_keyed")
        return {name: value for name, value in super().__getstate__().items() if name not in compiled}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._compile()


def held(module: torch.nn.Module, graph: Graph) -> Held:
    """What the module holds."""
    return Held(module, graph)


class Held:
    """What a module holds, by the names that a graph has for it.

    Args:
        module: as `module_of` made it; its modules are remembered, to see what is put in their places.
    """

    def __init__(self, module: torch.nn.Module, graph: Graph) -> None:
        self.module, self.graph = module, graph
        renamed = graph.meta.get("renamed", {})
        self.paths = {name: renamed.get(name, name) for name in graph.params}
        self.ties = {
            name: [alias for alias in param.aliases if _held(module, alias) is not None]
            for name, param in graph.params.items()
            if param.aliases
        }
        self.parts, self.config = parts_of(module, bool(graph.meta.get("train"))), _fields(module)

    def read(self, names: Sequence[str], whole: bool = False) -> dict[str, torch.Tensor]:
        """The module's tensors; with `whole` all else that the graph rests on is compared, too.

        Raises:
            WeightsError: tensors are gone or of other shapes, tied ones apart, or modules exchanged; they are named.
        """
        found = {name: _held(self.module, self.paths[name]) for name in names}
        wrong = [
            f"{self.paths[name]}: {'gone' if tensor is None else 'spread' if is_spread(tensor) else list(tensor.shape)}"
            for name, tensor in found.items()
            if tensor is None or tensor.shape != self.graph.params[name].shape or is_spread(tensor)
        ]
        for name in names if whole else ():
            for alias in self.ties.get(name, ()):
                if not _alike(found[name], _held(self.module, alias)):
                    wrong.append(f"{alias}: no longer {self.paths[name]}")
        wrong += self._exchanged() if whole and not wrong else []
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise WeightsError(
                "m.module was changed and is no longer what m's graph computes",
                where=type(self.module).__name__,
                got="; ".join(wrong[:5]) + more,
                do="call and save m.module itself, merge adapters back first, or capture the changed module",
            )
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Put a tensor at each of its places in the module."""
        for path in (self.paths[name], *self.ties.get(name, ())):
            _place(self.module, path, tensor)

    def _exchanged(self) -> list[str]:
        wrong = exchanged(self.parts, parts_of(self.module, bool(self.graph.meta.get("train"))))
        fields = _fields(self.module)
        if not wrong and fields != self.config:
            changed = {n: v for n, v in fields.items() if n[:1] != "_" and v != self.config.get(n, fields)}
            changed = {**changed, **dict.fromkeys(self.config.keys() - fields.keys())}
            if not str(self.graph.meta.get("class")).endswith("ForSequenceClassification"):  # which look for padding
                changed = {name: value for name, value in changed.items() if name not in _OF_TOKENIZERS}
            was = shaping({name: self.config.get(name) for name in changed})  # labels count by their number alone
            wrong = [
                f"config.{name}: {value!r} for {was.get(name)!r}"
                for name, value in shaping(changed).items()
                if name not in was or value != was[name]
            ]
        return wrong


_OF_TOKENIZERS = ("pad_token_id", "eos_token_id")
"""Fields of a config that trainers take from a tokenizer, and that generation alone reads after a model is built."""


def _fields(module: torch.nn.Module) -> dict[str, Any]:
    """What a module's config says, and the configs within; {} without one."""
    config = getattr(module, "config", None)
    if not hasattr(config, "to_dict"):
        return {}
    return {n: dict(vars(v)) if hasattr(v, "to_dict") else v for n, v in vars(config).items()}


class Part(NamedTuple):
    """What of a module its parameters do not say."""

    kind: type
    names: frozenset[str]
    forward: Any
    hooks: tuple[Any, ...]
    fields: dict[str, Any]


def parts_of(module: torch.nn.Module, train: bool = True) -> dict[str, Part]:
    """Each module's type, the names of its own tensors, what runs around its forward, and its plain attributes.

    Args:
        train: False leaves out what decides how much is dropped.
    """
    return {path: _part(part, train) for path, part in module.named_modules()}


def _part(module: torch.nn.Module, train: bool) -> Part:
    own = vars(module)
    drops = isinstance(module, torch.nn.modules.dropout._DropoutNd)
    fields = {
        name: value
        for name, value in own.items()
        if name[0] != "_"
        and (type(value) in _PLAIN or (type(value) is tuple and all(type(item) in _PLAIN for item in value)))
        and name not in _IN_TRAINING
        and "cache" not in name
        and (train or not (drops or "drop" in name))
    }
    if isinstance(module, torch.nn.Embedding):
        fields.pop("padding_idx", None)  # of gradients alone, and gone when rows are added
    forward = own.get("forward") or getattr(type(module), "forward", None)
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    kind = type(module)
    if torch.nn.utils.parametrize.is_parametrized(module):  # each has a class of its own
        kind = kind.__bases__[0]
    return Part(kind, frozenset((*module._parameters, *module._buffers)), forward, hooks, fields)


_PLAIN = {int, float, bool, str, type(None), types.FunctionType, types.BuiltinFunctionType}
_IN_TRAINING = {"training", "gradient_checkpointing", "forward", "name_or_path"}


def exchanged(before: Mapping[str, Part], now: Mapping[str, Part]) -> list[str]:
    """How two modules differ in more than their parameters' values, by paths. A plain nn.Module computes nothing."""
    if now == before:
        return []
    wrong = []
    for path in {**before, **now}:
        was, part = before.get(path, _NOTHING), now.get(path, _NOTHING)
        of = path or "m.module"
        if was.names != part.names:
            differing = ", ".join(sorted(was.names ^ part.names))
            wrong.append(f"{of}: {differing}, {'new' if part.names > was.names else 'changed'}")
        elif was.kind is not part.kind:
            if was.kind is not torch.nn.Module and not {was.kind, part.kind} <= _IDLE:
                wrong.append(f"{of}: {_kind(part.kind)} for {_kind(was.kind)}")
        elif was.forward != part.forward:
            wrong.append(f"{of}: another forward")
        elif was.hooks != part.hooks:
            wrong.append(f"{of}: other forward hooks")
        elif was.fields != part.fields:
            fields = [name for name, value in was.fields.items() if part.fields.get(name, was) != value]
            wrong += [f"{of}.{name}: {part.fields.get(name)!r} for {was.fields[name]!r}" for name in fields]
    return wrong


_IDLE = {torch.nn.Dropout, torch.nn.Identity}
"""Modules that compute nothing in evaluation: one may stand for another."""

_NOTHING = Part(type(None), frozenset(), None, (), {})


def _kind(part: type) -> str:
    return "nothing" if part is type(None) else part.__name__


def _alike(tensor: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if tensor is other or tensor is None or other is None:
        return tensor is other
    if tensor.shape != other.shape:
        return False
    return tensor.data_ptr() == other.data_ptr() or torch.equal(tensor, other)


def _held(module: torch.nn.Module, name: str) -> torch.Tensor | None:
    """A module's parameter or buffer at a dotted name, or None.

    By the modules' own tables: a name of a checkpoint may be that of a module as well, or of one of its methods.
    """
    *path, leaf = name.split(".")
    for part in path:
        below = module._modules.get(part)
        if below is None:
            return None
        module = below
    found = module._parameters.get(leaf)
    return module._buffers.get(leaf) if found is None else found


def _place(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put a tensor at a dotted name, as what is there already; modules on the way are made where there are none."""
    *path, leaf = name.split(".")
    for part in path:
        if module._modules.get(part) is None:
            module._modules[part] = torch.nn.Module()
        module = module._modules[part]
    if leaf in module._parameters or (leaf not in module._buffers and isinstance(tensor, torch.nn.Parameter)):
        module._parameters[leaf] = tensor
    else:
        module._buffers[leaf] = tensor.detach()


def _misfit(graph: Graph, params: Mapping[str, torch.Tensor | None]) -> WeightsError:
    wrong, dtypes = [], set()
    for name, param in graph.params.items():
        tensor = params[name]
        if tensor is None or tensor.shape != param.shape:
            wrong.append(f"{name}: {'gone' if tensor is None else list(tensor.shape)}, not {list(param.shape)}")
        elif tensor.dtype != getattr(torch, param.dtype):
            wrong.append(f"{name}: {tensor.dtype}, not torch.{param.dtype}")
            dtypes.add(str(tensor.dtype).removeprefix("torch."))
    return WeightsError(
        "the module's parameters are not those of its graph",
        got="; ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""),
        do=f'a graph computes in one dtype: zoo.load(..., dtype="{dtypes.pop()}")' if len(dtypes) == 1 else None,
    )


def _placed(value: Any, device: torch.device) -> torch.Tensor:
    tensor = tensor_from(value) if isinstance(value, np.ndarray) else torch.as_tensor(value)
    return tensor.to(device)


INPUTS = Arrays(
    own=lambda x: isinstance(x, torch.Tensor),
    shape=lambda x: tuple(x.shape),
    cast=lambda x, dtype: x.to(getattr(torch, dtype)),
    full=lambda shape, value, dtype: torch.full(tuple(shape), value, dtype=getattr(torch, dtype)),
)
"""What a call's inputs need of torch."""


def tensor_from(array: np.ndarray) -> torch.Tensor:
    """The array's memory as a tensor, bfloat16 included."""
    if numpy_name(array.dtype) == "bfloat16":
        return tensor_from(array.view(np.uint16)).view(torch.bfloat16)
    if array.ndim and min(array.strides) < 0:
        array = array.copy()  # torch steps forwards only
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        # the memory is a private mapping or another's array; torch warns that it might be written to
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


class _Sizes:
    """What the size operations need of a namespace, on ints and SymInts."""

    @staticmethod
    def size_equal(a: Any, b: Any) -> Any:
        return a == b

    @staticmethod
    def size_where(condition: Any, a: Any, b: Any) -> Any:
        return torch.sym_ite(condition, a, b)

    @staticmethod
    def size_max(a: Any, b: Any) -> Any:
        return torch.sym_max(a, b)

    @staticmethod
    def size_min(a: Any, b: Any) -> Any:
        return torch.sym_min(a, b)

    @staticmethod
    def size_int(a: Any) -> Any:
        return torch.sym_int(a)

    @staticmethod
    def shape(x: Any) -> Any:
        return x.shape

    @staticmethod
    def logical_not(a: Any) -> Any:
        return torch.sym_not(a)

    @staticmethod
    def cast(a: Any, dtype: str) -> Any:
        return torch.sym_float(a)


class _Int32:
    """What the definition of dropout needs of a namespace."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def asarray(self, x: Any, dtype: str) -> Any:
        return torch.tensor(x, dtype=getattr(torch, dtype), device=self.device)

    def arange(self, start: Any, stop: Any, step: Any, dtype: str) -> Any:
        return torch.arange(start, stop, step, dtype=getattr(torch, dtype), device=self.device)

    def full(self, shape: Any, value: Any, dtype: str) -> Any:
        return torch.full(shape, value, dtype=getattr(torch, dtype), device=self.device)

    def slice(self, x: Any, axis: int, start: Any, stop: Any) -> Any:
        return x.narrow(axis, start, stop - start)

    def cast(self, x: Any, dtype: str) -> Any:
        return x.to(getattr(torch, dtype))

    dtype = staticmethod(lambda x: str(x.dtype).removeprefix("torch."))
    shape = staticmethod(lambda x: x.shape)
    ndim = staticmethod(lambda x: x.ndim)
    add, subtract, multiply = map(staticmethod, (torch.add, torch.subtract, torch.multiply))
    bitwise_and, bitwise_xor = staticmethod(torch.bitwise_and), staticmethod(torch.bitwise_xor)
    right_shift, greater_equal = staticmethod(torch.bitwise_right_shift), staticmethod(torch.greater_equal)
    reshape = staticmethod(torch.reshape)


def _dropout(name: str) -> Callable[..., Any]:
    definition = OPS[name].function
    return lambda x, p, train, *, rng=None: definition(_Int32(x.device), x, p, train, rng=rng)


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    rng: Any = None,
) -> Any:
    if rng is None:
        return torch.ops.aten.scaled_dot_product_attention.default(
            query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    # torch's kernels draw what they drop themselves
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = _dropout("dropout")(torch.ops.aten._safe_softmax(scores, -1), dropout_p, True, rng=rng)
    return weights @ value


def _grouped_matmul(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """What transformers registers under its own name, which a packaged graph must run without."""
    parts = list(x.tensor_split(ends.cpu().long()))
    products = [part @ matrix for part, matrix in zip(parts, weight, strict=False)]
    return torch.cat([*products, parts[-1].new_zeros(len(parts[-1]), weight.shape[2])])


_WITHOUT_DERIVATIVE: dict[str, Callable[..., Any]] = {
    "copy": lambda x, src: src.to(x.dtype).expand(x.shape),
    "view_as_complex_copy": torch.view_as_complex,
}
"""What an export makes of operations that have a derivative, and which itself has none -> one that has."""


def _whole_spectrum(x: torch.Tensor, dim: Sequence[int], normalization: int, size: int) -> torch.Tensor:
    """torch's own reads behind a spectrum that is shorter than the size says."""
    if not torch.compiler.is_compiling() and x.shape[dim[-1]] != size // 2 + 1:
        got = f"{x.shape[dim[-1]]} frequencies for {size} numbers"
        raise GraphError("half a spectrum has another size than its numbers need", expected=size // 2 + 1, got=got)
    return torch.ops.aten._fft_c2r.default(x, dim, normalization, size)


_CHECKED: dict[str, Callable[..., Any]] = {
    "_fft_c2r": _whole_spectrum,
    "new_empty_strided": lambda x, size, stride, dtype=None: x.new_empty(size, dtype=dtype),
}
"""Operations of torch's whose memory follows from other arguments than their results' sizes."""


def _resolve(name: str) -> Callable[..., Any]:
    if name in _CHECKED:
        return _CHECKED[name]
    if name.startswith("sym.") or name == "sym_size.int":
        return functools.partial(OPS[name].function, _Sizes)
    if name in ("view", "_unsafe_view"):
        return torch.ops.aten.reshape.default  # copies were dropped, so a view may no longer be possible
    if name in ("dropout", "feature_dropout", "alpha_dropout"):
        return _dropout(name)
    if name == "scaled_dot_product_attention":
        return _attention
    if name == "transformers::grouped_mm_fallback":
        return _grouped_matmul
    if name in _WITHOUT_DERIVATIVE:
        return _WITHOUT_DERIVATIVE[name]
    space, _, rest = name.rpartition("::")
    base, _, overload = rest.partition(".")
    return operator.attrgetter(f"{base}.{overload or 'default'}")(getattr(torch.ops, space or "aten"))
