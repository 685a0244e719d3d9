"""Running a graph on the kernels: in Python the first time for inputs of some shapes, from a tape after that.

The first call of all is not recorded: it may be the only one, and weights need not be packed for it.
"""

from __future__ import annotations

import operator
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from zoo.backends.bounds import Watch
from zoo.backends.execute import Program
from zoo.graph.ir import Graph, refs
from zoo.native.kernels import copy
from zoo.native.tape import Scratch, Tape, owner, recording, unowned
from zoo.ops import OPS, traits_of

__all__ = ["Taped", "same"]

KEPT = 12
"""Tapes that are kept, the least recently used goes first."""
KEPT_BYTES = 1 << 29


class _AnotherShape(Exception):
    """A recorded operation's result has not the recorded shape."""


class Taped:
    """A graph that runs from tapes.

    Args:
        graph: what to run.
        direct: op -> a function whose work is done by recorded kernels, or NotImplemented for arguments it leaves.
        resolve: op name -> the function for everything else; raises KeyError for an op that is not known.
    """

    def __init__(
        self, graph: Graph, direct: Mapping[str, Callable[..., Any]], resolve: Callable[[str], Callable[..., Any]]
    ) -> None:
        self.graph = graph
        self.program = Program(graph, lambda op: resolve(op) if op in OPS else direct[op])
        places = self.program.places
        self.direct = [direct.get(node.op) for node in graph.nodes]
        self.read = [
            frozenset(places[ref.name] for ref in refs((node.args[traits_of(node.op).by_shape :], node.kwargs)))
            for node in graph.nodes
        ]
        self.lock = threading.Lock()
        self.tapes: OrderedDict[Any, list[Tape]] = OrderedDict()
        self.params: list[Any] = []
        self.replayable = True
        self.idle: list[Scratch] = []

    def __call__(
        self, params: Mapping[str, Any], inputs: Mapping[str, np.ndarray], watch: Watch | None = None
    ) -> dict[str, np.ndarray]:
        """Outputs by name, of inputs that were checked; `watch` where some nodes have to be when they are run."""
        if watch is not None:  # their sizes depend on data
            self.replayable = False
        key = tuple((name, array.shape, array.dtype) for name, array in inputs.items())
        given = list(params.values())
        first, tape = self._borrow(key, given)
        if first:
            return self._owned(params, inputs, Scratch(), watch)
        if tape is None:
            tape = Tape() if self.replayable else None
            outputs = self._record(params, inputs, tape, watch=watch)
            if not self.replayable or tape is None:
                return outputs
            outputs = {name: array.copy() for name, array in outputs.items()}
        else:
            try:
                outputs = tape.run(inputs)
            except _AnotherShape:  # a shape depends on values: nothing can be recorded
                self.replayable = False
                return self._record(params, inputs, None, watch=watch)
        self._give_back(key, tape, given)
        return outputs

    def once(
        self, params: Mapping[str, Any], inputs: Mapping[str, np.ndarray], watch: Watch | None = None
    ) -> dict[str, np.ndarray]:
        """A run that is not recorded, for inputs whose values decide about shapes; the outputs are the caller's."""
        try:
            scratch = self.idle.pop()
        except IndexError:
            scratch = Scratch()
        outputs = self._owned(params, inputs, scratch, watch)
        if scratch.memory.bytes <= KEPT_BYTES:
            self.idle.append(scratch)
        return outputs

    def _owned(
        self, params: Mapping[str, Any], inputs: Mapping[str, np.ndarray], scratch: Scratch, watch: Watch | None
    ) -> dict[str, np.ndarray]:
        """Outputs of a run in memory that others get afterwards; they are not in it themselves."""
        found = self._record(params, inputs, None, scratch, watch)
        return {name: array if owner(array) is None else array.copy() for name, array in found.items()}

    def _borrow(self, key: Any, params: list[Any]) -> tuple[bool, Tape | None]:
        """Whether the call before had other parameters, or there was none; and a tape that no other thread uses."""
        with self.lock:
            if not same(params, self.params):
                self.tapes.clear()  # they hold the old parameters' addresses
                self.params = params
                return True, None
            idle = self.tapes.get(key)
            return False, idle.pop() if idle else None

    def _give_back(self, key: Any, tape: Tape, params: list[Any]) -> None:
        with self.lock:
            if not same(params, self.params):
                return
            self.tapes.setdefault(key, []).append(tape)
            self.tapes.move_to_end(key)
            while len(self.tapes) > 1 and (
                len(self.tapes) > KEPT or sum(t.bytes() for idle in self.tapes.values() for t in idle) > KEPT_BYTES
            ):
                self.tapes.popitem(last=False)

    def _record(
        self,
        params: Mapping[str, Any],
        inputs: Mapping[str, np.ndarray],
        tape: Tape | None,
        scratch: Scratch | None = None,
        watch: Watch | None = None,
    ) -> dict[str, np.ndarray]:
        program = self.program
        if tape is not None:
            tape.inputs = inputs = {name: array.copy() for name, array in inputs.items()}
        values = program.values(params, inputs, self.graph.constants)
        # what the inputs' values (not only their shapes) reach: the rest is computed once
        varying = {program.places[name] for name in inputs if name in program.places}

        def call(position: int, args: Any, kwargs: Any) -> Any:
            nonlocal tape
            varies, direct = not varying.isdisjoint(self.read[position]), self.direct[position]
            if watch is not None:
                watch.before(self.graph.nodes[position], tuple(args), kwargs)
            if varies and self.graph.nodes[position].infos[0].dtype == "size":
                self.replayable, tape = False, None
            with recording(tape if varies and tape is not None else scratch):
                result = NotImplemented if direct is None else direct(*args, **kwargs)
            if result is NotImplemented:
                function = program.steps[position][0]
                with recording(None):
                    result = function(*args, **kwargs)
                if varies and tape is not None:
                    result = _again(tape, function, tuple(args), kwargs, result)
            if varies:
                varying.update(program.steps[position][-2])
            return result

        program.advance(values, 0, len(program.steps), call=call)
        outputs = {name: np.asarray(array) for name, array in program.outputs(values).items()}
        if tape is not None:
            with recording(tape):  # in an order of memory of their own, they are quickly copied by the kernel alone
                outputs = {name: x if x.flags.c_contiguous else copy(x) for name, x in outputs.items()}
            tape.finish(outputs)
        return outputs


def same(params: list[Any], others: list[Any]) -> bool:
    """Whether two lists hold the same arrays."""
    return len(params) == len(others) and all(map(operator.is_, params, others))


def _again(tape: Tape, function: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """Record a function of NumPy's: its results are copied to where they were the first time. A view needs nothing."""
    several = isinstance(result, (tuple, list))
    given = [x for x in _arrays((args, kwargs)) if x.size]
    fixed = [x if isinstance(x, np.ndarray) else np.asarray(x) for x in (result if several else (result,))]
    if all(any(np.may_share_memory(x, y) for y in given) for x in fixed):
        return result
    # a result that shares memory with an argument must not be written over
    fixed = [x.copy() if any(np.may_share_memory(x, y) for y in given) else x for x in fixed]
    fixed = [x if x.flags.writeable else x.copy() for x in fixed]

    def run() -> None:
        new = function(*held[0], **held[1])
        for to, value in zip(fixed, new if several else (new,), strict=True):
            if np.shape(value) != to.shape:
                raise _AnotherShape
            np.copyto(to, value)

    held = _map(unowned, args), _map(unowned, kwargs)
    tape.segments.append((run, ()))
    return type(result)(fixed) if several else fixed[0]


def _arrays(tree: Any) -> list[np.ndarray]:
    if isinstance(tree, np.ndarray):
        return [tree]
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    return [x for item in tree for x in _arrays(item)] if isinstance(tree, (tuple, list)) else []


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, (tuple, list)):
        return tuple(_map(function, item) for item in tree)
    if isinstance(tree, dict):
        return {key: _map(function, item) for key, item in tree.items()}
    return function(tree)
