"""Our kernels inside the frameworks, checked on this machine: against float64, and against the framework's own.

Those for NVIDIA GPUs are checked without a framework, as "cuda", in float32 and bfloat16.

Errors are in units of the last place (ulps) of the largest number of a row: what stands beside a large number is
computed from numbers of that size, and none of the ways to compute it does better.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.adapters import FRAMEWORKS, adapter, plain
from zoo.arrays import numpy_dtype, to_numpy
from zoo.backends import get_backend
from zoo.errors import MissingFramework, VerifyError
from zoo.frameworks import backend_name, how_to_install, installed
from zoo.native import cuda
from zoo.tolerances import KERNEL_FACTOR, KERNEL_ULPS, ROUNDING

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

__all__ = ["CASES", "CUDA", "CUDA_CASES", "Case", "KernelReport", "KernelRow", "verify_kernels"]

CUDA = "cuda"
"""What the kernels for NVIDIA GPUs go by among the frameworks."""


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel at a shape.

    Args:
        kernel: its name, with what makes it another computation: "add_layer_norm", "attention causal", "gated silu".
        sizes: of norms (rows, cols), of attention (batch, heads, heads of keys, queries, keys, width), of gated
            (rows, cols), of softmax (rows, cols), of rotary (batch, tokens, heads, heads of keys, width).
        dtype: of the arrays.
    """

    kernel: str
    sizes: tuple[int, ...]
    dtype: str = "float32"

    def arguments(self) -> tuple[str, tuple[Any, ...], tuple[Any, ...]]:
        """The adapter's function, its arrays (None where there is none), and its other arguments.

        Queries, keys and values are [B, T, H, D], as a model's projections give them.
        """
        rng = np.random.default_rng(list(self.sizes))

        def numbers(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(np.float32).astype(numpy_dtype(self.dtype))

        name, _, how = self.kernel.partition(" ")
        if name == "attention":
            batch, heads, kv_heads, queries, keys, width = self.sizes
            q, k, v = (numbers(batch, n, h, width) for n, h in ((queries, heads), (keys, kv_heads), (keys, kv_heads)))
            mask = None
            if how == "masked":  # the last keys of each row are padding, as in a batch of texts
                mask = np.ones((batch, 1, queries, keys), bool)
                for row in range(batch):
                    mask[row, :, :, keys - keys // 4 - row % 3 :] = False
            return "attention", (q, k, v, mask), (how == "causal", None)
        if name == "rotary":
            batch, tokens, heads, kv_heads, width = self.sizes
            angles = np.outer(np.arange(tokens), 10000.0 ** -np.tile(np.arange(0, width, 2) / width, 2))
            turns = (np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
            return "rotary", (numbers(batch, tokens, (heads + 2 * kv_heads) * width), *turns), (heads, kv_heads)
        rows, cols = self.sizes
        if name == "softmax":
            return "softmax", (numbers(rows, cols) * 4,), ()
        if name == "gated":
            return "gated", (numbers(rows, cols), numbers(rows, cols)), (how,)
        residual = numbers(rows, cols) if name.startswith("add_") else None
        bias = None if name.endswith("rms_norm") else numbers(cols)
        return "norm", (numbers(rows, cols) + 1, residual, numbers(cols), bias), (1e-5, name.endswith("rms_norm"))


_NORMS = ((1, 768), (16, 768), (128, 768), (1024, 768), (4096, 768), (16, 4096), (128, 4096))
_HEADS = (
    (1, 12, 12, 16, 16, 64),
    (1, 12, 12, 128, 128, 64),
    (8, 12, 12, 128, 128, 64),
    (1, 12, 12, 512, 512, 64),
    (32, 12, 12, 32, 32, 32),
    (1, 32, 8, 128, 128, 128),
)
_ONE_QUERY = ((1, 12, 12, 1, 512, 64), (1, 32, 8, 1, 2048, 128))
_GATES = ((1, 3072), (16, 3072), (128, 3072), (1024, 3072), (128, 11008))

CASES = (
    *(
        Case(kernel, sizes)
        for kernel in ("layer_norm", "add_layer_norm", "rms_norm", "add_rms_norm")
        for sizes in _NORMS
    ),
    *(Case(f"attention{how}", sizes) for how in ("", " causal", " masked") for sizes in _HEADS),
    *(Case(f"attention{how}", sizes) for how in ("", " masked") for sizes in _ONE_QUERY),
    *(Case(f"gated {how}", sizes) for how in ("silu", "gelu", "gelu_tanh") for sizes in _GATES),
)
"""What `zoo verify --kernels` goes through."""

CUDA_CASES = (
    *(
        Case(case.kernel, case.sizes, dtype)
        for case in CASES
        for dtype in ("float32", "bfloat16")
        if dtype == "bfloat16" or not case.kernel.startswith("attention")
    ),
    *(Case("softmax", sizes, dtype) for sizes in ((1536, 128), (12288, 512)) for dtype in ("float32", "bfloat16")),
    *(
        Case("rotary", sizes, dtype)
        for sizes in ((1, 128, 32, 8, 128), (8, 512, 32, 8, 128))
        for dtype in ("float32", "bfloat16")
    ),
)
"""What it goes through on an NVIDIA GPU."""


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One kernel in one framework at one shape.

    Args:
        backend: the framework, or "cuda".
        kernel: as in `Case`, and `sizes` and `dtype`.
        ulps: our largest error against float64; None where it failed.
        own_ulps: that of the framework's own kernel.
        microseconds: our time of one call, `own_microseconds` the framework's own; None if they were not measured.
        ratio: the framework's own time over ours: above 1 ours is faster.
        reason: why it is not right; empty if it is.
    """

    backend: str
    kernel: str
    sizes: tuple[int, ...]
    dtype: str = "float32"
    ulps: float | None = None
    own_ulps: float | None = None
    microseconds: float | None = None
    own_microseconds: float | None = None
    ratio: float | None = None
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether our kernel is right."""
        return not self.reason

    @property
    def at_least_as_accurate(self) -> bool:
        """Whether our error is no larger than the framework's own."""
        return self.ulps is not None and self.own_ulps is not None and self.ulps <= self.own_ulps


@dataclass(slots=True)
class KernelReport:
    """What `verify_kernels` found.

    Args:
        rows: one per framework, kernel and shape.
        missing: framework -> why its kernels were not checked.
        isa: the instruction set of our kernels.
        gpu: the name of the GPU, if its kernels were checked.
    """

    isa: str
    rows: list[KernelRow] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    gpu: str = ""

    @property
    def ok(self) -> bool:
        """Whether every kernel is right, and there is one."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    def raise_for_failure(self) -> None:
        """Nothing if all is right.

        Raises:
            VerifyError: naming the first kernel that is not.
        """
        wrong = [row for row in self.rows if not row.ok]
        if wrong:
            first = wrong[0]
            others = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            sizes = "x".join(map(str, first.sizes))
            raise VerifyError(f"{first.kernel} {sizes} on {first.backend}: {first.reason}{others}", where=first.backend)
        if not self.rows:
            raise VerifyError(
                "no kernel was checked", got=self.missing, do=how_to_install("torch") + ", or another framework's extra"
            )

    def to_json(self) -> dict[str, Any]:
        """The report as JSON knows it."""
        rows = [asdict(row) | {"ok": row.ok, "at_least_as_accurate": row.at_least_as_accurate} for row in self.rows]
        return {"isa": self.isa, "gpu": self.gpu, "ok": self.ok, "rows": rows, "missing": self.missing}

    def table(self) -> RenderableType:
        """The report for a terminal, by rich; without times where the terminal is narrow."""
        from zoo.console import Layouts

        return Layouts(self._table(True), self._table(False))

    def _table(self, wide: bool) -> Table:
        from rich.table import Table

        from zoo.console import plain

        where = ", ".join(filter(None, (self.isa, self.gpu)))
        table = Table(title=f"our kernels ({where}) and the frameworks' own", title_justify="left")
        texts = ("backend", "kernel", "sizes", "dtype")
        numbers = ("ulps", "own", "µs", "own", "speed") if wide else ("ulps", "own", "speed")
        for column in texts:
            table.add_column(column, no_wrap=column != "sizes", overflow="fold")
        for column in numbers:
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("", min_width=2, overflow="fold")
        for row in self.rows:
            measured = (row.ulps, row.own_ulps, *((row.microseconds, row.own_microseconds) if wide else ()))
            cells = ["" if x is None else f"{x:.1f}" for x in measured]
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
            if not row.ok:
                verdict = f"[red]{plain(row.reason)}[/]"
            else:
                best = row.own_ulps is None or row.at_least_as_accurate
                verdict = "[green]ok[/]" if best else "[green]ok[/], own is closer"
            table.add_row(row.backend, row.kernel, "x".join(map(str, row.sizes)), row.dtype, *cells, ratio, verdict)
        for name, why in self.missing.items():
            table.add_row(name, *[""] * (len(texts) + len(numbers) - 1), plain(why), style="dim")
        return table

    def checked(self) -> str:
        """What was found right, and what was not looked at: for the line under a table."""
        from zoo.console import all_right

        return all_right((row.backend for row in self.rows), self.missing)


def verify_kernels(
    backends: Sequence[str] | None = None,
    cases: Sequence[Case] | None = None,
    *,
    rounds: int = 15,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[str], None] | None = None,
) -> KernelReport:
    """Check every kernel that we have for a framework on this machine, and those for NVIDIA GPUs.

    An error is accepted up to `zoo.tolerances.KERNEL_ULPS`, and beyond that up to `KERNEL_FACTOR` times that of the
    framework's own kernel: both are rounding, in another order.
    Speeds are reported, not judged: a machine that does something else besides is not a miss.

    Args:
        backends: of "torch", "jax", "tensorflow" and "cuda"; None takes all that are there and lists the others as
            missing.
        cases: which kernels at which shapes; None takes `CASES`, on a GPU `CUDA_CASES`.
        rounds: of calls in turn of which the fastest count; 0 measures no speed.
        clock: what speeds are measured by; `time.process_time` where one thread works and others share its core. On
            a GPU it is the driver's.
        progress: called with what comes next.

    Raises:
        MissingFramework, UnknownBackend: one asked for by name is not there, or has no adapter.
        VerifyError: we have no kernels for a backend asked for.
    """
    from zoo.native.library import float32_isa

    known = (*FRAMEWORKS, CUDA)  # torch before tensorflow: the other order has crashed
    asked = known if backends is None else [name if name == CUDA else backend_name(name) for name in backends]
    for name in asked:
        if name not in known:
            raise VerifyError("we have no kernels for this backend", expected=", ".join(known), got=name)
    report = KernelReport(float32_isa())
    for name in (name for name in known if name in asked):
        checked = _on_gpu(report, rounds) if name == CUDA else _in_framework(name, rounds, clock)
        with contextlib.ExitStack() as stack:
            try:
                check = stack.enter_context(checked)
            except MissingFramework as error:
                if backends is not None:
                    raise
                report.missing[name] = str(error)
                continue
            for case in cases or (CUDA_CASES if name == CUDA else CASES):
                if progress is not None:
                    progress(f"{name}: {case.kernel} {'x'.join(map(str, case.sizes))}")
                report.rows.append(check(case))
    return report


_Check = Callable[[Case], KernelRow]


@contextlib.contextmanager
def _in_framework(name: str, rounds: int, clock: Callable[[], float]) -> Iterator[_Check]:
    if not installed(name):
        raise MissingFramework(f"{name} is not installed", do=how_to_install(name))
    module = adapter(name)
    with _RUNNERS[name]() as runner:
        yield lambda case: _check(name, module, runner, case, rounds, clock)


@contextlib.contextmanager
def _on_gpu(report: KernelReport, rounds: int) -> Iterator[_Check]:
    with cuda.Gpu() as gpu:
        report.gpu = gpu.name
        yield lambda case: _check_on_gpu(gpu, case, rounds)


def _truth(function: str, arrays: tuple[Any, ...], options: tuple[Any, ...]) -> tuple[np.ndarray, ...]:
    """What the kernel means, in float64."""
    wide = (x if x is None or x.dtype == bool else x.astype(np.float64) for x in arrays)
    kernels = {**plain(get_backend("numpy").namespace()), "softmax": _softmax, "rotary": _rotary}
    return _tuple(_of_model(function, kernels, np.swapaxes)(*wide, *options))


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _rotary(qkv: np.ndarray, cos: np.ndarray, sin: np.ndarray, heads: int, kv_heads: int) -> tuple[np.ndarray, ...]:
    rows = qkv.reshape(*qkv.shape[:2], heads + 2 * kv_heads, -1).swapaxes(1, 2)
    size = cos.shape[-1]
    front = rows[..., :size]
    first, second = np.split(front, 2, -1)
    turned = front * cos[..., None, :, :] + np.concatenate((-second, first), -1) * sin[..., None, :, :]
    turned = np.concatenate((turned, rows[..., size:]), -1)
    return turned[:, :heads], turned[:, heads : heads + kv_heads], rows[:, heads + kv_heads :]


def _check_on_gpu(gpu: cuda.Gpu, case: Case, rounds: int) -> KernelRow:
    function, arrays, options = case.arguments()
    try:
        call = getattr(cuda, function)(gpu, *arrays, *options)
        call()
        got = call.results()
        ulps = _ulps(got, _truth(function, arrays, options)[: len(got)], case.dtype)
        reason = "" if ulps <= KERNEL_ULPS else f"{ulps:.1f} ulps, at most {KERNEL_ULPS:g} are right"
        seconds = None
        if rounds:
            count = max(1, min(100, int(1e-3 / max(gpu.seconds(call, 1), 1e-7))))
            seconds = min(gpu.seconds(call, count) for _ in range(rounds))
    except Exception as error:
        return KernelRow(CUDA, case.kernel, case.sizes, case.dtype, reason=f"{type(error).__name__}: {error}")
    finally:
        gpu.free()
    microseconds = None if seconds is None else seconds * 1e6
    return KernelRow(CUDA, case.kernel, case.sizes, case.dtype, ulps, microseconds=microseconds, reason=reason)


def _check(name: str, module: Any, runner: Any, case: Case, rounds: int, clock: Callable[[], float]) -> KernelRow:
    function, arrays, options = case.arguments()
    truth = _truth(function, arrays, options)
    given = [x if x is None else runner.array(x) for x in arrays]
    candidates = [_of_model(function, kernels, runner.swapped) for kernels in (vars(module), module.PLAIN)]
    ours, own = (runner.prepared(candidate, given, options) for candidate in candidates)
    try:
        ulps = _ulps(_tuple(ours()), truth, case.dtype)
    except Exception as error:
        return KernelRow(name, case.kernel, case.sizes, case.dtype, reason=f"{type(error).__name__}: {error}")
    own_ulps = _ulps(_tuple(own()), truth, case.dtype)
    reason = ""
    if not ulps <= max(KERNEL_ULPS, KERNEL_FACTOR * own_ulps):
        reason = f"{ulps:.1f} ulps, where the framework's own kernel has {own_ulps:.1f}"
    times = _times([runner.repeated(f, given, options) for f in candidates], rounds, clock)
    seconds, own_seconds = (None if t is None else t / runner.REPEATS for t in times)
    return KernelRow(
        name,
        case.kernel,
        case.sizes,
        case.dtype,
        ulps,
        own_ulps,
        None if seconds is None else seconds * 1e6,
        None if own_seconds is None else own_seconds * 1e6,
        None if seconds is None or own_seconds is None else own_seconds / seconds,
        reason,
    )


def _of_model(function: str, kernels: Mapping[str, Any], swapped: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel as it stands in a model: attention's arrays have their heads behind the positions, before and after."""
    kernel = kernels[function]
    if function != "attention":
        return kernel

    def attention(q: Any, k: Any, v: Any, *rest: Any) -> Any:
        return swapped(kernel(*(swapped(x, 1, 2) for x in (q, k, v)), *rest), 1, 2)

    return attention


def _times(
    calls: Sequence[Callable[[], Any]], rounds: int, clock: Callable[[], float]
) -> Sequence[float] | tuple[None, None]:
    """Seconds of a call of each, the fastest of short runs in turn: what else runs on the machine only ever adds."""
    if not rounds:
        return None, None
    counts = []
    for call in calls:
        call()
        started = clock()
        call()
        counts.append(max(1, min(100, int(1e-3 / max(clock() - started, 1e-7)))))
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, count, times in zip(calls, counts, found, strict=True):
            started = clock()
            for _ in range(count):
                call()
            times.append((clock() - started) / count)
    return [min(times) for times in found]


def _ulps(got: tuple[Any, ...], truth: tuple[Any, ...], dtype: str) -> float:
    """The largest error, in ulps of each row's largest number in `dtype`."""
    worst = 0.0
    for x, exact in zip(got, truth, strict=True):
        array = to_numpy(x)
        if array.shape != exact.shape:
            raise VerifyError("a kernel's result has another shape", expected=list(exact.shape), got=list(array.shape))
        unit = np.spacing(np.abs(exact).max(-1, keepdims=True).astype(np.float32)).astype(np.float64)
        unit *= ROUNDING[dtype] / ROUNDING["float32"]
        error = np.abs(array - exact) / unit
        worst = max(worst, float(error.max())) if not np.isnan(error).any() else math.inf
    return worst


def _tuple(x: Any) -> tuple[Any, ...]:
    return tuple(x) if isinstance(x, (tuple, list)) else (x,)


class _Torch:
    """Eager, without gradients."""

    REPEATS = 1

    def array(self, x: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(x)

    def swapped(self, x: Any, a: int, b: int) -> Any:
        return x.transpose(a, b)

    def prepared(self, function: Any, given: list[Any], options: tuple[Any, ...]) -> Callable[[], Any]:
        return lambda: function(*given, *options)

    repeated = prepared


class _Jax:
    """Under jit; timed in a loop on its own result, which nothing can be moved out of or joined across."""

    REPEATS = 8

    def array(self, x: np.ndarray) -> Any:
        import jax.numpy as jnp

        return jnp.asarray(x)

    def swapped(self, x: Any, a: int, b: int) -> Any:
        return x.swapaxes(a, b)

    def prepared(self, function: Any, given: list[Any], options: tuple[Any, ...]) -> Callable[[], Any]:
        import jax

        compiled = jax.jit(lambda *arrays: function(*arrays, *options))
        return lambda: jax.block_until_ready(compiled(*given))

    def repeated(self, function: Any, given: list[Any], options: tuple[Any, ...]) -> Callable[[], Any]:
        import jax

        def several(*arrays: Any) -> Any:
            first = _tuple(function(*arrays, *options))
            return jax.lax.fori_loop(
                1, self.REPEATS, lambda _, made: _tuple(function(made[0], *arrays[1:], *options)), first
            )

        return self.prepared(several, given, ())


class _Tensorflow:
    """In a tf.function; timed several times in one, each on the result of the one before."""

    REPEATS = 8

    def array(self, x: np.ndarray) -> Any:
        import tensorflow as tf

        return tf.constant(x)

    def swapped(self, x: Any, a: int, b: int) -> Any:
        import tensorflow as tf

        return tf.transpose(x, [{a: b, b: a}.get(i, i) for i in range(4)])

    def prepared(self, function: Any, given: list[Any], options: tuple[Any, ...]) -> Callable[[], Any]:
        import tensorflow as tf

        compiled = tf.function(lambda *arrays: function(*arrays, *options), autograph=False)
        return lambda: compiled(*given)

    def repeated(self, function: Any, given: list[Any], options: tuple[Any, ...]) -> Callable[[], Any]:
        def several(first: Any, *others: Any) -> Any:
            results = (first,)
            for _ in range(self.REPEATS):
                results = _tuple(function(results[0], *others, *options))
            return results

        return self.prepared(several, given, ())


@contextlib.contextmanager
def _torch() -> Iterator[_Torch]:
    import torch

    with torch.no_grad():
        yield _Torch()


_RUNNERS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "torch": _torch,
    "jax": lambda: contextlib.nullcontext(_Jax()),
    "tensorflow": lambda: contextlib.nullcontext(_Tensorflow()),
}
