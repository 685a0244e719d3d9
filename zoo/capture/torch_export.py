"""Capture through torch.export: any nn.Module or ExportedProgram becomes a Graph.

The exported program is decomposed to core ATen except for the operations in `_WHOLE`, which every framework has a good
kernel for; bookkeeping (copies, asserts, devices, layouts) is left behind.
Source: torch.export documentation; the overloads' schemas say how arguments are named and defaulted.
"""

from __future__ import annotations

import builtins
import importlib
import itertools
import math
import operator
import os
import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy
import torch
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from zoo.arrays import to_numpy
from zoo.capture.modules import Outside, called, memory
from zoo.capture.rewrites import replaced
from zoo.capture.training import evaluated, mode, trained
from zoo.errors import CaptureError
from zoo.graph.facts import Facts
from zoo.graph.ir import DType, Graph, Input, Node, Param, Ref, ValueInfo, param_ref
from zoo.graph.passes import simplify
from zoo.ops import OPS, base, traits_of

__all__ = [
    "ReadsValues",
    "capture_module",
    "capture_program",
    "dim_name",
    "export",
    "named_leaves",
    "ties_of",
    "traceable",
]

_WHOLE = frozenset(base(name) for name, op in OPS.items() if op.traits.whole)
"""Operations that stay whole, by torch's name."""

# Results that are their first argument, once devices, layouts and memory are not part of the meaning.
_SAME = frozenset(
    "clone detach detach_ alias contiguous lift lift_fresh lift_fresh_copy detach_copy alias_copy".split()
)
_CASTS = frozenset("_to_copy to type_as".split())
_DROPPED = frozenset(
    "_assert_tensor_metadata _assert_scalar _assert_async sym_constrain_range sym_constrain_range_for_size".split()
)
_VIEWS = {"slice.Tensor": "slice_scatter", "select.int": "select_scatter"}
"""Views, and what puts a new one back into what it is a part of."""
_BOOKKEEPING = frozenset("device layout pin_memory memory_format non_blocking generator copy".split())

# Spellings of one operation, once memory is not part of the meaning.
_SPELLED = {name: op.traits.same_as for name, op in OPS.items() if op.traits.same_as}
_SPELLED |= {"concat": "cat", "concatenate": "cat"}

# Operations of torch's other libraries that decompositions leave behind.
_PRIMS = {"prims::scalar_tensor": "scalar_tensor"}

_RANDOM = re.compile(r"(rand|normal|bernoulli|multinomial|exponential|uniform|poisson|geometric|cauchy|log_normal)")

# Size arithmetic: Python's and torch's functions on SymInts, under one name each.
_SIZE_OPS: dict[Any, str] = {
    operator.add: "sym.add",
    operator.sub: "sym.sub",
    operator.mul: "sym.mul",
    operator.floordiv: "sym.floordiv",
    operator.truediv: "sym.truediv",
    operator.mod: "sym.mod",
    operator.pow: "sym.pow",
    operator.neg: "sym.neg",
    operator.eq: "sym.eq",
    operator.ne: "sym.ne",
    operator.lt: "sym.lt",
    operator.le: "sym.le",
    operator.gt: "sym.gt",
    operator.ge: "sym.ge",
    operator.and_: "sym.and",
    operator.or_: "sym.or",
    torch.sym_max: "sym.max",
    torch.sym_min: "sym.min",
    torch.sym_not: "sym.not",
    torch.sym_ite: "sym.ite",
    torch.sym_int: "sym.int",
    torch.sym_float: "sym.float",
    torch.sym_sum: "sym.sum",
    builtins.int: "sym.int",
    builtins.float: "sym.float",
    builtins.max: "sym.max",
    builtins.min: "sym.min",
    builtins.round: "sym.round",
    math.ceil: "sym.ceil",
    math.floor: "sym.floor",
    math.trunc: "sym.int",
    torch._sym_sqrt: "sym.sqrt",
}


class ReadsValues(CaptureError):
    """What the model computes depends on a number in its data: see `capture_program`."""


def export(
    module: torch.nn.Module, inputs: Mapping[str, Any], dynamic_shapes: Any = "auto"
) -> torch.export.ExportedProgram:
    """torch.export with every dim of every input dynamic where the model allows it.

    Args:
        module: in the mode to capture, see `zoo.capture.training.mode`.
        inputs: example inputs by the forward's names; dims of size 0 or 1 are taken as fixed by torch.export.
        dynamic_shapes: torch.export's own argument; "auto" lets every dim vary that can.

    Raises:
        CaptureError: torch.export refused; the message holds its expression and advice.
    """
    inputs = _apart(inputs)
    if isinstance(dynamic_shapes, str):
        dynamic_shapes = pytree.tree_map(_all_auto, dict(inputs))
    try:
        # a path of contractions that is sought by size makes all sizes of an einsum fixed
        plain_einsum = torch.backends.opt_einsum.flags(enabled=False)
        with torch.no_grad(), plain_einsum, traceable(module), warnings.catch_warnings():
            # nn.RNNBase keeps its parameters in a list too, which tracing replaces and puts back
            warnings.filterwarnings("ignore", r"The tensor attributes.*_flat_weights", UserWarning)
            # tracing looks at what was computed from parameters beforehand; that is refused below, by its name
            warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor that is not a leaf", UserWarning)
            return torch.export.export(module, (), dict(inputs), dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:  # torch.export raises whatever the traced code raises
        raise CaptureError(
            "torch.export cannot turn this module into a graph",
            where=type(module).__name__,
            got=f"{type(error).__name__}{_culprit(error)}: {_first_lines(error)}",
            do="remove Python control flow that depends on tensor values, or pass inputs that avoid it",
        ) from error


def _apart(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs, none of them the same object as another: a trace would take both for the last of them."""
    seen: set[int] = set()

    def own(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        again = id(value) in seen
        seen.add(id(value))
        return value.clone() if again else value

    return pytree.tree_map(own, dict(inputs))


@contextmanager
def traceable(module: torch.nn.Module) -> Iterator[None]:
    """Other meanings, while the module is traced, of what would make its sizes plain numbers of the example.

    `len` of a tensor is its first size, as dynamic as that, and a scan takes steps that no length decides, in the files
    of the module's classes; those that scan, or solve triangular systems, row by row when they are exported do so no
    more: the operations are the same numbers, and rows take minutes to trace.
    """
    found = {cls.__module__ for part in module.modules() for cls in type(part).__mro__}
    files = [sys.modules[name] for name in sorted(found) if not name.startswith(("torch.", "builtins", "_"))]
    with ExitStack() as stack:
        for file in files:
            if "len" not in vars(file):
                stack.enter_context(replaced(file, "len", _length))
            if "is_torchdynamo_exporting" in vars(file):
                stack.enter_context(replaced(file, "is_torchdynamo_exporting", lambda: False))
            if check := vars(file).get("torch_compilable_check"):
                stack.enter_context(replaced(file, "torch_compilable_check", _lenient(check)))
        scans = importlib.import_module("torch._higher_order_ops.associative_scan")
        stack.enter_context(replaced(scans, "associative_scan", _scan))
        stack.enter_context(_tracing())
        yield


def _lenient(check: Callable[..., None]) -> Callable[..., None]:
    """A check that the tracer learns sizes from, if it can: torch 2.13 fails one of a product that may pass 2**63."""

    def lenient(*args: Any, **kwargs: Any) -> None:
        with suppress(AssertionError):
            check(*args, **kwargs)

    return lenient


@contextmanager
def _tracing() -> Iterator[None]:
    """No cache of shapes: with symbolic sizes as keys its entries take longer than to compute the shapes again. A
    `torch.vmap` that a failed trace of its steps left open is closed.
    """
    depth = torch._C._functorch.get_dynamic_layer_stack_depth()
    try:
        with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
            yield
    finally:
        torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)


def _length(x: Any) -> Any:
    return x.shape[0] if isinstance(x, torch.Tensor) and x.ndim else len(x)


_DOUBLINGS = 16
"""A graph scans up to 2 to the power of this many places."""


def _scan(combine_fn: Any, xs: Any, dim: int, reverse: bool = False, combine_mode: str = "pointwise") -> Any:
    """torch's associative_scan of any length: every place takes in what stands 1, 2, 4, … places before it.

    Source: W. D. Hillis, G. L. Steele: Data parallel algorithms. Communications of the ACM 29 (1986).
    """
    leaves, spec = pytree.tree_flatten(xs)
    leaves = [leaf.movedim(dim, 0).flip(0) if reverse else leaf.movedim(dim, 0) for leaf in leaves]
    length = leaves[0].shape[0]
    torch._check(length <= 2**_DOUBLINGS)
    places = torch.arange(length, device=leaves[0].device)
    combine = torch.vmap(combine_fn)
    for doubling in range(_DOUBLINGS):
        before = places - 2**doubling
        left = [leaf.index_select(0, before.clamp(min=0)) for leaf in leaves]
        both = pytree.tree_leaves(combine(pytree.tree_unflatten(left, spec), pytree.tree_unflatten(leaves, spec)))
        leaves = [
            torch.where((before >= 0).view(-1, *[1] * (old.ndim - 1)), new, old)
            for old, new in zip(leaves, both, strict=True)
        ]
    leaves = [leaf.flip(0).movedim(0, dim) if reverse else leaf.movedim(0, dim) for leaf in leaves]
    return pytree.tree_unflatten(leaves, spec)


def capture_module(
    module: torch.nn.Module,
    inputs: Mapping[str, Any],
    dynamic_shapes: Any = "auto",
    *,
    train: bool = False,
    frozen: Collection[str] = (),
) -> Graph:
    """Capture `module` as a Graph: `export`, then `capture_program`; tied parameters are found by identity.

    Raises:
        CaptureError: as those do, and of inputs that the module does not know.
    """
    with mode(module, train) as without, called(module, inputs) as loose:
        program = export(module, inputs, dynamic_shapes)
    graph = capture_program(program, ties_of(module), train=train, without=without, module=module, frozen=frozen)
    facts = Facts(graph)
    read = facts.users.keys() | facts.outputs
    for item in graph.inputs:
        if item.name.partition(".")[0] in loose and item.name not in read:
            raise CaptureError(
                "the module does nothing with an input",
                where=item.name,
                do="check the name: its forward takes whatever it is given",
            )
    return graph


def capture_program(
    program: torch.export.ExportedProgram,
    ties: Mapping[str, str] | None = None,
    *,
    train: bool = False,
    without: Sequence[str] = (),
    reading: bool = False,
    module: torch.nn.Module | None = None,
    frozen: Collection[str] = (),
) -> Graph:
    """The Graph of an ExportedProgram.

    A program that holds only operations of the table, and writes in place only into tensors that nothing else sees, is
    taken as it is; any other is decomposed first, which takes longer than exporting it did.

    Args:
        program: from torch.export, this torch's version; may have been loaded from a .pt2 archive.
        ties: parameter name to the canonical name of the parameter it is tied to.
        train: it was exported in training mode, and its dropout is to be kept.
        without: what the module does in training and the program does not, for the record.
        reading: whole numbers that the model reads from its data may be sizes, which not every backend can do.
        module: what was exported, to say where in it a tensor is.
        frozen: the parameters that training leaves as they are.

    Raises:
        ReadsValues: such a number is read, and `reading` is not asked for.
        CaptureError: an operation or argument has no meaning in a graph; the node is named.
    """
    if not _expressible(program):
        try:
            with _tracing():
                program = program.run_decompositions(_decompositions())
        except Exception as error:
            raise CaptureError(
                "the exported program cannot be decomposed",
                got=f"{type(error).__name__}: {_first_lines(error)}",
            ) from error
    translation = _Translation(program, dict(ties or {}), reading, module, frozen)
    graph = simplify(translation.graph())
    unknown = {name: translation.sources[name] for name in graph.op_counts() if name not in OPS}
    drawn = {name: line for name, line in unknown.items() if _RANDOM.match(name)}
    if unknown:
        raise CaptureError(
            "the model draws random numbers"
            if drawn
            else "the model uses operations whose meaning is not in the table",
            got="; ".join(f"{name} at `{line}`" for name, line in (drawn or unknown).items()),
            do="hand them in as an input" if drawn else "report them, or write the model without them",
        )
    return trained(graph, program, without) if train else evaluated(graph)


class _Translation:
    """One walk over an exported program's nodes."""

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        ties: dict[str, str],
        reading: bool,
        module: torch.nn.Module | None,
        frozen: Collection[str],
    ) -> None:
        self.program, self.ties, self.reading, self.module, self.frozen = program, ties, reading, module, frozen
        self.owners = {memory(tensor): name for name, tensor in reversed(program.state_dict.items())}
        learned = {str(spec.target) for spec in program.graph_signature.input_specs if spec.kind == InputKind.PARAMETER}
        self.outside = Outside({name: tensor for name, tensor in program.state_dict.items() if name in learned})
        self.inputs: list[Input] = []
        self.params: dict[str, Param] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.nodes: list[Node] = []
        self.sources: dict[str, str] = {}  # operation -> the line of the model that first uses it
        self.values: dict[str, Any] = {}  # fx node name -> Ref, or a tuple of Refs for a list of results
        self.writes = _writes(program)
        self.symbols: dict[str, str] = {}  # torch's symbol -> ours
        self.ranges: dict[str, tuple[int, int | None]] = {}
        self.examples: dict[str, int] = {}  # our symbol -> its size in the example

    def graph(self) -> Graph:
        specs = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs if hasattr(spec.arg, "name")}
        self.input_names = self._input_names()
        input_names = iter(self.input_names)
        nodes = list(self.program.graph.nodes)
        for node in nodes:
            if node.op == "placeholder" and specs[node.name].kind == InputKind.USER_INPUT:
                name = next(input_names)
                if node.meta.get("val") is not None:
                    self._bind_symbols(name, node.meta["val"])
        input_names = iter(self.input_names)
        live = _live(nodes)
        for node in nodes:
            if node.op == "placeholder":
                self._placeholder(node, specs[node.name], input_names)
            elif node.op == "call_function" and node in live:
                self._call(node)
            elif node.op == "get_attr":
                self._attribute(node)
            elif node.op == "output":
                outputs = self._outputs(node)
        return Graph(
            inputs=tuple(self.inputs),
            params=self.params,
            constants=self.constants,
            nodes=self.nodes,
            outputs=outputs,
            symbols=self.ranges,
            meta={
                "frontend": "torch.export",
                "torch": torch.__version__.split("+")[0],
                "example": {name: size for name, size in self.examples.items() if name in self.ranges},
            },
        )

    def _input_names(self) -> list[str]:
        """The user inputs' names in the order of the placeholders: "x", or "x.0" inside a list."""
        spec = self.program.call_spec.in_spec
        args, kwargs = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
        positional = [
            spec.arg.name for spec in self.program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT
        ]
        names: dict[int, str] = {}
        for tree in args:
            for index in pytree.tree_leaves(tree):
                names[index] = positional[index]
        for name, tree in kwargs.items():
            names.update({index: path for path, index in named_leaves(tree, name)})
        return [names[index] for index in range(spec.num_leaves)]

    def _bind_symbols(self, name: str, value: Any) -> None:
        if not isinstance(value, torch.Tensor):
            return
        for axis, size in enumerate(value.shape):
            if _fixed(size) is None and str(size) not in self.symbols and str(size).isidentifier():
                self.symbols[str(size)] = self._new_symbol(name, axis, value.ndim, size)

    def _new_symbol(self, name: str, axis: int, ndim: int, size: torch.SymInt) -> str:
        """Our name for a dynamic dim; dims of the same meaning share one, though a trace may not tie them: not those
        that differ in the example, as the entities of a text from its tokens.
        """
        ours, shared = dim_name(name, axis, ndim, self.input_names)
        example = size.node.hint
        if ours in self.ranges and not (shared and example == self.examples.get(ours, example)):
            ours = f"{name.replace('.', '_')}_{ours}"
        if isinstance(example, int):
            self.examples.setdefault(ours, example)
        low, high = self._range(size)
        known_low, known_high = self.ranges.get(ours, (1, None))
        highs = [bound for bound in (high, known_high) if bound is not None]
        self.ranges[ours] = (max(low, known_low), min(highs) if highs else None)
        return ours

    def _range(self, size: torch.SymInt) -> tuple[int, int | None]:
        bounds = self.program.range_constraints.get(size.node.expr)
        if bounds is None:
            return 1, None
        # torch.export never traces a dynamic size of 0 or 1, and says 2; the graphs do not depend on it
        low = 1 if int(bounds.lower) <= 2 else int(bounds.lower)
        return low, int(bounds.upper) if bounds.upper.is_Integer and bounds.upper < 2**62 else None

    def _placeholder(self, node: torch.fx.Node, spec: Any, input_names: Any) -> None:
        value = node.meta.get("val")
        if spec.kind == InputKind.USER_INPUT:
            name = next(input_names)
            if isinstance(value, torch.Tensor):
                self.inputs.append(Input(name, _dtype(value.dtype), self._shape(value, name)))
                self.values[node.name] = Ref(name)
            else:
                self.values[node.name] = value  # a number or None given at capture is part of the graph
            return
        target = spec.target
        if spec.kind == InputKind.PARAMETER or (spec.kind == InputKind.BUFFER and spec.persistent):
            canonical = self.ties.get(target, target)
            real = value.dtype.is_floating_point or value.dtype.is_complex  # Keras has seeds among parameters
            trainable = spec.kind == InputKind.PARAMETER and real and canonical not in self.frozen
            if canonical not in self.params:
                aliases = tuple(sorted(alias for alias, to in self.ties.items() if to == canonical))
                shape = tuple(int(d) for d in value.shape)
                self.params[canonical] = Param(canonical, _dtype(value.dtype), shape, trainable, aliases)
            self.values[node.name] = Ref(param_ref(target))
        elif spec.kind in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            tensor = self.program.constants.get(target, self.program.state_dict.get(target))
            self.values[node.name] = self._lifted(target, tensor)
        else:
            raise CaptureError("an input of this kind has no place in a graph", where=node.name, got=spec.kind)

    def _lifted(self, name: str, tensor: Any) -> Ref:
        """What the trace took for a constant: the parameter that it is, if it is one, or a constant.

        Raises:
            CaptureError: it is neither; see `Outside`.
        """
        if isinstance(tensor, torch.Tensor) and (place := memory(tensor)) is not None:
            if place in self.owners:
                return Ref(param_ref(self.owners[place]))
            self.outside.check(name, tensor, self.module)
        return Ref(self._constant(name, tensor))

    def _constant(self, name: str, tensor: Any) -> str:
        if not isinstance(tensor, torch.Tensor) or tensor.is_meta:
            raise CaptureError(
                "a constant of the model has no values",
                where=name,
                got=type(tensor).__name__,
                do="capture from a module that is not on the meta device",
            )
        array = to_numpy(tensor).copy()
        for known, other in self.constants.items():
            if other.dtype == array.dtype and other.shape == array.shape and other.tobytes() == array.tobytes():
                return known
        self.constants[f"c:{name}"] = array
        return f"c:{name}"

    def _attribute(self, node: torch.fx.Node) -> None:
        found: Any = self.program.graph_module
        for part in str(node.target).split("."):
            found = getattr(found, part)
        if isinstance(found, torch.Tensor):
            self.values[node.name] = self._lifted(str(node.target), found)
        else:
            self.values[node.name] = found  # a submodule of a higher-order operation, refused where it is used

    def _call(self, node: torch.fx.Node) -> None:
        target = node.target
        if target is operator.getitem:
            results, index = node.args
            self.values[node.name] = self.values[results.name][index]
            return
        if target in _SIZE_OPS:
            args = [self._arg(arg, node) for arg in node.args]
            self._emit(node, _SIZE_OPS[target], args, {})
            return
        if not isinstance(target, torch._ops.OpOverload):
            if node.users:
                raise CaptureError(
                    "an operation of this kind has no place in a graph",
                    where=node.name,
                    got=f"{getattr(target, '__name__', target)} at `{_source(node)}`",
                    do="higher-order operations (cond, map, while_loop) and custom Python functions are not captured",
                )
            return
        name = target._schema.name.removeprefix("aten::")
        if name in _DROPPED:
            return
        if name in _SAME or _is_inactive_dropout(node):
            self.values[node.name] = self._arg(node.args[0], node)
            return
        if name in _CASTS:
            self._cast(node)
            return
        if name == "native_dropout":  # what decomposing makes of dropout; its mask is for a backward pass
            (x, p, _), out, value = node.args, f"n:{node.name}", node.meta["val"]
            self.nodes.append(Node("dropout", (self._arg(x, node), p, True), {}, (out,), (self._info(value[0]),)))
            self.values[node.name] = (Ref(out), None)
            return
        if name in ("_local_scalar_dense", "item"):
            known = self._scalar(node.args[0])
            if known is not None:
                self.values[node.name] = known
                return
            if self.reading and isinstance(node.meta["val"], (int, torch.SymInt)):
                self._emit(node, "sym.int", [self._arg(node.args[0], node)], {})
                return
        if name in ("_local_scalar_dense", "item"):
            raise ReadsValues(
                "the model reads a tensor's value to decide what to compute",
                where=node.name,
                got=f"{name} at `{_source(node)}`",
                do="keep what is computed in tensors, and results in new ones",
            )
        written = self.writes.get(node)
        if target._schema.is_mutable and not written:
            raise CaptureError(
                "the model changes a tensor in place in a way that cannot be expressed",
                where=node.name,
                got=f"{name} at `{_source(node)}`",
                do="keep what is computed in tensors, and results in new ones",
            )
        if name in ("split", "chunk") and (sizes := _part_sizes(node)):
            dim = _argument(node, 2, "dim", 0)
            self._emit(node, "split_with_sizes", [self._arg(node.args[0], node), sizes, dim], {})
            return
        kwargs = {
            key: self._arg(value, node)
            for key, value in node.kwargs.items()
            if key not in _BOOKKEEPING and value is not None
        }
        self._emit(node, _op_name(target), [self._arg(arg, node) for arg in node.args], kwargs)
        if written:
            self._write(node, written)

    def _write(self, node: torch.fx.Node, written: _Write) -> None:
        """Whoever names the tensor, or the part of it that was written into, sees what was written from here on."""
        value = self.values[node.name]
        for place, view in enumerate(written.views):
            self.values[view.name] = value
            whole = view.args[0]
            if self._shape(view.meta["val"]) != self._shape(whole.meta["val"]):  # a slice of all is no part
                args = [self.values[whole.name], value, *(self._arg(arg, view) for arg in view.args[1:])]
                result = f"n:{node.name}.in.{place}"
                op = _VIEWS[_op_name(view.target)]
                self.nodes.append(Node(op, tuple(args), {}, (result,), (self._info(whole.meta["val"]),)))
                value = Ref(result)
        for earlier in written.names:
            self.values[earlier.name] = value

    def _cast(self, node: torch.fx.Node) -> None:
        """Moves and casts of all spellings: a cast where the dtype changes, nothing where it does not."""
        source = self._arg(node.args[0], node)
        dtype = node.meta["val"].dtype
        if dtype == node.args[0].meta["val"].dtype:
            self.values[node.name] = source
        else:
            self._emit(node, "_to_copy", [source], {"dtype": DType(_dtype(dtype))})

    def _emit(self, node: torch.fx.Node, op: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        value = node.meta.get("val")
        if isinstance(value, (tuple, list)):
            names = tuple(f"n:{node.name}.{i}" for i in range(len(value)))
            self.values[node.name] = tuple(Ref(name) for name in names)
            infos = tuple(self._info(item) for item in value)
        else:
            names, infos = (f"n:{node.name}",), (self._info(value),)
            self.values[node.name] = Ref(names[0])
        if op == "view":  # a -1 that is a known size is one on every backend
            args = (args[0], tuple(self._known(size, dim) for size, dim in zip(args[1], infos[0].shape, strict=True)))
        self.sources.setdefault(op, _source(node))
        self.nodes.append(Node(op, tuple(args), dict(kwargs), names, infos))

    @staticmethod
    def _known(size: Any, dim: int | str) -> Any:
        return dim if size == -1 and isinstance(dim, int) else size

    def _scalar(self, node: Any) -> Any:
        """The number or size that an integer zero-dim tensor was computed from, or None: then it depends on data."""
        if isinstance(node, (int, float)):
            return node
        if not isinstance(node, torch.fx.Node) or not isinstance(node.target, torch._ops.OpOverload):
            return None
        name = node.target._schema.name.removeprefix("aten::")
        if name == "scalar_tensor" or (name == "full" and not node.args[0]):
            return self._arg(node.args[-1], node)
        if name in _SAME or name in _CASTS:
            return self._scalar(node.args[0])
        if name == "max" and len(node.args) == 1:
            return self._largest(node.args[0])
        if name in ("add", "sub", "mul") and not node.kwargs:
            operands = [self._scalar(arg) for arg in node.args]
            if None not in operands:
                return self._size(node, f"sym.{name}", *operands)
        return None

    def _largest(self, node: Any) -> Any:
        """The largest of whole numbers that were counted from nought, one less than how many there are; or None."""
        while isinstance(node, torch.fx.Node) and isinstance(node.target, torch._ops.OpOverload):
            name = node.target._schema.name.removeprefix("aten::")
            if name == "arange":
                counted = node.target._overloadname == "default" or (len(node.args) == 2 and node.args[0] == 0)
                end = self._arg(node.args[-1], node) if counted else None
                return self._size(node, "sym.sub", end, 1) if isinstance(end, (int, Ref)) else None
            if name not in _SAME | _CASTS and not traits_of(_op_name(node.target)).keeps_values:
                return None
            node = node.args[0]
        return None

    def _size(self, node: torch.fx.Node, op: str, *operands: Any) -> Ref:
        """A size computed along with a node, whose own result is a tensor."""
        size = f"n:{node.name}.size"
        if not any(size in known.outputs for known in self.nodes):
            self.nodes.append(Node(op, operands, {}, (size,), (ValueInfo("size"),)))
        return Ref(size)

    def _arg(self, arg: Any, node: torch.fx.Node) -> Any:
        if isinstance(arg, torch.fx.Node):
            return self.values[arg.name]
        if isinstance(arg, torch.dtype):
            return DType(_dtype(arg))
        if isinstance(arg, (tuple, list)):
            return tuple(self._arg(item, node) for item in arg)
        if isinstance(arg, (torch.device, torch.layout, torch.memory_format)):
            return None
        if arg is None or isinstance(arg, (bool, int, float, str)):
            return arg
        raise CaptureError(
            "an argument of this kind cannot be stored in a graph",
            where=node.name,
            got=f"{type(arg).__name__}: {arg!r}",
        )

    def _info(self, value: Any) -> ValueInfo:
        if isinstance(value, torch.Tensor):
            return ValueInfo(_dtype(value.dtype), self._shape(value))
        return ValueInfo("size")

    def _shape(self, value: torch.Tensor, own: str | None = None) -> tuple[int | str, ...]:
        """Dims as numbers or expressions; an input's dim that is no plain symbol gets a symbol of its own."""
        dims: list[int | str] = []
        for axis, size in enumerate(value.shape):
            fixed = _fixed(size)
            if fixed is not None:
                dims.append(fixed)
            elif str(size) in self.symbols:
                dims.append(self.symbols[str(size)])
            elif own is not None:
                dims.append(self._new_symbol(own, axis, value.ndim, size))
            else:
                free = size.node.expr.free_symbols
                renamed = {s: sympy.Symbol(self.symbols[str(s)]) for s in free if str(s) in self.symbols}
                dims.append(str(size.node.expr.xreplace(renamed)))
        return tuple(dims)

    def _outputs(self, node: torch.fx.Node) -> dict[str, Any]:
        specs = self.program.graph_signature.output_specs
        results = [
            value for value, spec in zip(node.args[0], specs, strict=True) if spec.kind == OutputKind.USER_OUTPUT
        ]
        spec = self.program.call_spec.out_spec
        tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
        outputs = {}
        for path, index in named_leaves(tree, "" if isinstance(tree, Mapping) else "output"):
            value = results[index]
            if isinstance(value, torch.fx.Node):
                outputs[path] = self.values[value.name]
        return outputs


def named_leaves(tree: Any, path: str) -> list[tuple[str, Any]]:
    """(name, leaf) pairs: mapping keys and list positions joined by dots."""
    if isinstance(tree, Mapping):
        items: Any = tree.items()
    elif isinstance(tree, (tuple, list)):
        items = enumerate(tree)
    else:
        return [(path, tree)]
    return [pair for key, item in items for pair in named_leaves(item, f"{path}.{key}" if path else str(key))]


def _fixed(size: Any) -> int | None:
    """The size as a number, if the trace made it one."""
    return size if isinstance(size, int) else size.node.maybe_as_int()


def dim_name(name: str, axis: int, ndim: int, others: Sequence[str]) -> tuple[str, bool]:
    """The field's name for a dynamic dim of an input, and whether inputs with a dim of that name agree in it."""
    untied = name.startswith(("input_features", "feature", "input_values", "noise"))
    text = name.endswith(("ids", "mask", "embeds", "bbox")) and ndim >= 2 and not untied
    if axis == 0:
        # texts and images of one call may differ in number, as in CLIP
        apart = not text and any(other.endswith("ids") for other in others)
        return (f"{name}_batch" if apart else "batch"), text
    if text and axis == 1:
        if name.startswith("decoder_"):
            return "decoder_sequence", True
        texts = [other.removesuffix("input_ids") for other in others if other.endswith("_input_ids")]
        for prefix in texts:  # a second text has a length of its own, as what InstructBLIP's Q-Former reads
            if name.startswith(prefix):
                return f"{prefix}sequence", True
        return ("samples" if "input_values" in others and "input_ids" not in others else "sequence"), True
    known = {
        "pixel_values": ("channels", "height", "width"),
        "input_values": ("samples",),
        "input_features": ("features", "frames"),
    }.get(name, ())
    return (known[axis - ndim], False) if ndim - axis <= len(known) else (f"{name.replace('.', '_')}_{axis}", False)


def ties_of(module: torch.nn.Module) -> dict[str, str]:
    """Names of shared parameters and persistent buffers -> the first name each is registered under.

    Shared are objects that are the same, and different ones over the same memory.
    """
    first: dict[Any, str] = {}
    ties = {}
    for source in (module.named_parameters, module.named_buffers):
        for name, tensor in source(remove_duplicate=False):
            keys = [key for key in (id(tensor), memory(tensor)) if key is not None]
            known = [first[key] for key in keys if key in first]
            if known:
                ties[name] = known[0]
            for key in keys:
                first.setdefault(key, known[0] if known else name)
    return ties


def _decompositions() -> Any:
    table = torch.export.default_decompositions()
    for overload in list(table.keys()):
        if overload._schema.name.split("::")[1] in _WHOLE:
            table.pop(overload)
    return table


def _live(nodes: Sequence[torch.fx.Node]) -> set[torch.fx.Node]:
    """The nodes that the outputs come from, or that change something; what only asserts read is not among them."""
    live: set[torch.fx.Node] = set()
    for node in reversed(nodes):
        changes = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        if node.op == "output" or changes or node in live:
            live.add(node)
            live.update(node.all_input_nodes)
    return live


def _part_sizes(node: torch.fx.Node) -> tuple[int, ...] | None:
    """How long the parts of a split are, if no size is dynamic: a backend may not know that a dim is static."""
    dim = _argument(node, 2, "dim", 0)
    sizes = [_fixed(part.shape[dim]) for part in node.meta["val"]]
    return None if None in sizes else tuple(sizes)  # type: ignore[arg-type]


def _argument(node: torch.fx.Node, index: int, name: str, default: Any) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _expressible(program: torch.export.ExportedProgram) -> bool:
    """Whether every operation of the program is in the table as it stands, with no write that something else sees."""
    writes = _writes(program)
    nodes = list(program.graph.nodes)
    live = _live(nodes)
    for node in nodes:
        if node not in live:
            continue
        if node.op == "get_attr":
            return False
        if node.op != "call_function" or node.target is operator.getitem or node.target in _SIZE_OPS:
            continue
        if not isinstance(node.target, torch._ops.OpOverload):
            return False
        name = node.target._schema.name.removeprefix("aten::")
        if name in _SAME or name in _CASTS or name in _DROPPED or _is_inactive_dropout(node):
            continue
        if name in ("item", "_local_scalar_dense"):
            continue
        if (node.target._schema.is_mutable and node not in writes) or _op_name(node.target) not in OPS:
            return False
    return True


@dataclass(frozen=True)
class _Write:
    """An operation in place that can be a new result.

    Args:
        names: the nodes that name the tensor.
        views: what is written into, if it is a part of the tensor: a part of a part first.
    """

    names: tuple[torch.fx.Node, ...]
    views: tuple[torch.fx.Node, ...]


def _writes(program: torch.export.ExportedProgram) -> dict[torch.fx.Node, _Write]:
    """The operations in place that can be new results.

    That is so where the tensor was computed in the program and other views of it, taken before, are not read after:
    then all that read it before the write read the old result, and all after it the new one.
    """
    order = {node: place for place, node in enumerate(program.graph.nodes)}
    found: dict[torch.fx.Node, _Write] = {}
    for node in order:
        if not _is_plain_write(node):
            continue
        tensor, views = node.args[0], []
        while isinstance(tensor.target, torch._ops.OpOverload) and _op_name(tensor.target) in _VIEWS:
            views.append(tensor)
            tensor = tensor.args[0]
        before = found.get(tensor, _Write((), ()))
        if before.views:
            continue
        names = (*before.names, tensor)
        fresh = isinstance(names[0].target, torch._ops.OpOverload) and not _may_alias(names[0])
        own = {node, *views, *names}
        others = (user for name in (*names, *views) for user in name.users if order[user] < order[node])
        if fresh and not any(_is_read_after(user, order[node], order, own) for user in others if user not in own):
            found[node] = _Write(names, tuple(views))
    return found


def _is_read_after(view: torch.fx.Node, place: int, order: Mapping[torch.fx.Node, int], own: Any) -> bool:
    """Whether a result that shares memory with what is written into at `place` is read after that."""
    if not _may_alias(view):
        return False
    return any(
        order[user] > place or (order[user] < place and user not in own and _is_read_after(user, place, order, own))
        for user in view.users
    )


def _is_plain_write(node: torch.fx.Node) -> bool:
    """Whether what it writes is, as in the table, the result of an operation of the tensor's own shape and dtype."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return False
    known = traits_of(_op_name(node.target))
    operands = [arg for arg in node.all_input_nodes if isinstance(arg.meta.get("val"), torch.Tensor)]
    # torch keeps the dtype of what is written into, which the operation itself would promote
    kept = all(arg.meta["val"].dtype in (operands[0].meta["val"].dtype, torch.bool) for arg in operands)
    return known.writes or (known.elementwise and not known.boolean and kept)


def _may_alias(node: torch.fx.Node) -> bool:
    """Whether a result shares memory with an argument."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.op != "output"
    return _is_inactive_dropout(node) or any(item.alias_info is not None for item in node.target._schema.returns)


def _op_name(target: torch._ops.OpOverload) -> str:
    """torch's name with the overload, as graphs spell it: "add.Tensor", "linear", "library::operation"."""
    space, name = target._schema.name.split("::")
    if target._schema.is_mutable:  # see _writes
        name = name.removesuffix("_")
    full = name if target._overloadname in ("", "default") else f"{name}.{target._overloadname}"
    return _SPELLED.get(full, full) if space == "aten" else _PRIMS.get(f"{space}::{full}", f"{space}::{full}")


def _is_inactive_dropout(node: torch.fx.Node) -> bool:
    name = node.target._schema.name
    if name not in ("aten::dropout", "aten::feature_dropout", "aten::alpha_dropout"):
        return False
    return node.args[2] is False or node.args[1] == 0


def _all_auto(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return dict.fromkeys(range(value.ndim), torch.export.Dim.AUTO)
    return None


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first_lines(error: BaseException, count: int = 3) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:count])[:600]


def _culprit(error: BaseException) -> str:
    """The line of the model that was being traced: the innermost one that is neither torch's, Python's nor ours."""
    others = (os.path.dirname(torch.__file__), os.path.dirname(os.path.dirname(__file__)), "<")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        of_python = frame.filename.startswith(sysconfig.get_path("stdlib")) and "-packages" not in frame.filename
        if not of_python and not frame.filename.startswith(others):
            return f" at `{frame.line}` ({os.path.basename(frame.filename)}:{frame.lineno})"
    return ""


def _source(node: torch.fx.Node) -> str:
    """The line of the model that a node comes from: the innermost that is not torch's own."""
    lines = (node.meta.get("stack_trace") or "").splitlines()
    torchs = f'File "{os.path.dirname(torch.__file__)}'
    found = [
        code.strip()
        for place, code in itertools.pairwise(lines)
        if place.strip().startswith("File ") and not place.strip().startswith((torchs, 'File "<'))
    ]
    return found[-1] if found else "an unknown line"
