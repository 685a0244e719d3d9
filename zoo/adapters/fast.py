"""`zoo.load(..., fast=True)`: our kernels in a framework's graph, at the shapes where they were measured to be faster.

measured.json holds, per instruction set, framework and kernel, the speeds that benchmarks/bench_kernels.py found: the
framework's own time over ours. A node runs our kernel if at the nearest measured shape that number is at least 1, or,
where a size is not known when the graph is traced (TensorFlow's None, torch's symbols), if it is at least `BREAK_EVEN`
at every shape that may be meant.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from zoo.adapters import ACTIVATIONS, FRAMEWORKS, adapter
from zoo.errors import MissingFramework
from zoo.graph.ir import Graph
from zoo.graph.passes.fuse import gates, norms, rms_norms

__all__ = ["BREAK_EVEN", "Choice", "Fast", "FastReport"]

BREAK_EVEN = 0.95
"""The least speed, relative to the framework's own kernel, at which one of ours may stand in a graph."""

MEASURED = Path(__file__).parent / "measured.json"

Sizes = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """What computes the nodes of one kind and size.

    Args:
        kernel: as in `zoo.adapters.check.Case`, with its sizes; None for a size that is not known before the call.
        ours: whether it is our kernel.
        speed: the framework's own time over ours where it was measured; None if it was not.
        why: what the choice rests on.
    """

    kernel: str
    sizes: Sizes
    ours: bool
    speed: float | None
    why: str


@dataclass(slots=True)
class FastReport:
    """What `model.fast_report()` gives.

    Args:
        backend: the model's.
        choices: kernel and sizes -> what computes them; those met so far, so none before the first call.
        reason: why none of our kernels can be used; empty if some can.
    """

    backend: str
    choices: list[Choice] = field(default_factory=list)
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"{self.backend}: the framework's own kernels; {self.reason}"
        if not self.choices:
            return f"{self.backend}: no node with a kernel of ours has run yet"
        lines = []
        for choice in self.choices:
            sizes = "x".join("?" if size is None else str(size) for size in choice.sizes)
            speed = "" if choice.speed is None else f"{choice.speed:.2f}x"
            lines.append(f"{choice.kernel:18} {sizes:22} {'ours' if choice.ours else 'own':5} {speed:>7}  {choice.why}")
        return "\n".join(lines)


class Fast:
    """Our kernels for one model.

    Args:
        backend: the model's; where there are no kernels for it, the graph stays as it is and the report says why.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.report = FastReport(backend)
        self.module: ModuleType | None = None
        self.seen: dict[tuple[str, Sizes], Choice] = {}
        if backend not in FRAMEWORKS:
            self.report.reason = (
                "its kernels are ours in any case" if backend == "native" else f"there are none of ours for {backend}"
            )
            return
        try:
            found = adapter(backend)
        except MissingFramework as error:
            self.report.reason = str(error).replace("\n", "; ")
            return
        self.report.reason = found.unsuitable() if backend == "jax" else ""
        if not self.report.reason:
            self.module = found

    def prepared(self, graph: Graph) -> tuple[Graph, dict[str, Callable[..., Any]]]:
        """The graph with what one kernel does joined, and the functions of the nodes that chose between kernels."""
        if self.module is None:
            return graph, {}
        for run in (gates, rms_norms, norms):
            graph = run(graph)
        operations: dict[str, Callable[..., Any]] = {"native::norm": self._norm, "native::gated": self._gated}
        own = self.module.own_attention

        def attention(q: Any, k: Any, v: Any, attn_mask: Any = None, *rest: Any, **options: Any) -> Any:
            return self._attention(own, q, k, v, attn_mask, *rest, **options)

        return graph, {**operations, "scaled_dot_product_attention": attention}

    def _norm(self, x: Any, residual: Any, cols: int, weight: Any, bias: Any, eps: float, rms: bool) -> Any:
        *lead, _ = _sizes(x)
        kernel = f"{'' if residual is None else 'add_'}{'rms' if rms else 'layer'}_norm"
        args = (x, residual, weight, bias, eps, rms)
        return self._chosen("norm", kernel, (_product(lead), cols), args, 4)

    def _gated(self, x: Any, y: Any, activation: str) -> Any:
        *lead, cols = _sizes(x)
        if activation not in ACTIVATIONS:
            return self._plain("gated", x, y, activation)
        return self._chosen("gated", f"gated {activation}", (_product(lead), cols), (x, y, activation), 2)

    def _attention(
        self,
        own: Callable[..., Any],
        q: Any,
        k: Any,
        v: Any,
        mask: Any,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        sizes = [_sizes(x) for x in (q, k, v)]
        usual = all(len(s) == 4 for s in sizes) and not dropout_p and sizes[0][0] == sizes[1][0] == sizes[2][0]
        if usual and sizes[0][3] is not None:
            (batch, heads, queries, width), (_, kv_heads, keys, _) = sizes[:2]
            kernel = "attention causal" if is_causal else "attention" if mask is None else "attention masked"
            shape = (batch, heads, kv_heads, queries, keys, width)
            if self._ours(kernel, shape, (q, k, v, *_float(mask))):
                return self._call("attention", q, k, v, mask, is_causal, scale)
        return own(q, k, v, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

    def _chosen(self, function: str, kernel: str, sizes: Sizes, args: tuple[Any, ...], arrays: int) -> Any:
        ours = self._ours(kernel, sizes, [x for x in args[:arrays] if x is not None])
        return self._call(function, *args) if ours else self._plain(function, *args)

    def _ours(self, kernel: str, sizes: Sizes, arrays: Any) -> bool:
        assert self.module is not None
        if not self.module.fits(*arrays):
            return False
        key = kernel, sizes
        if key not in self.seen:
            self.seen[key] = choose(self.backend, kernel, sizes)
            self.report.choices.append(self.seen[key])
        return self.seen[key].ours

    def _call(self, function: str, *args: Any) -> Any:
        return getattr(self.module, function)(*args)

    def _plain(self, function: str, *args: Any) -> Any:
        assert self.module is not None
        return self.module.PLAIN[function](*args)


def choose(backend: str, kernel: str, sizes: Sizes) -> Choice:
    """Whose kernel runs, by what was measured."""
    points = measured().get(backend, {}).get(kernel, [])
    if not points:
        return Choice(kernel, sizes, False, None, "not measured on this instruction set")
    distances = [_distance(sizes, shape) for shape, _ in points]
    nearest = min(distances)
    near = [point for point, distance in zip(points, distances, strict=True) if distance <= nearest + 1e-9]
    shape, speed = min(near, key=lambda point: point[1])
    where = "x".join(map(str, shape))
    if None not in sizes:
        return Choice(kernel, sizes, speed >= 1, speed, f"as measured at {where}")
    return Choice(
        kernel, sizes, speed >= BREAK_EVEN, speed, f"as measured at {where}, the least of those that it may be"
    )


def _distance(sizes: Sizes, shape: Sequence[int]) -> float:
    """Between two shapes: doublings, over the sizes that are known."""
    known = ((size, other) for size, other in zip(sizes, shape, strict=True) if size is not None)
    return sum(abs(math.log2(max(size, 1) / other)) for size, other in known)


@functools.cache
def measured() -> Mapping[str, Any]:
    """framework -> kernel -> [(sizes, the framework's own time over ours)], for the instruction set in use."""
    from zoo.native.library import float32_isa

    found: Mapping[str, Any] = json.loads(MEASURED.read_text()) if MEASURED.is_file() else {}
    return found.get(float32_isa(), {})


def _sizes(x: Any) -> Sizes:
    """The dims of an array; None for one that is known only when it runs."""
    return tuple(size if type(size) is int else None for size in x.shape)


def _product(sizes: Any) -> int | None:
    return None if None in sizes else math.prod(sizes)


def _float(mask: Any) -> tuple[Any, ...]:
    """A mask of numbers as one more array that must fit; one of truth values always does."""
    return () if mask is None or "bool" in str(mask.dtype) else (mask,)
