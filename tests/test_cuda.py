"""The CUDA kernels compile for the GPUs they are meant for, and are right on the CPU, and on a GPU where there is one.

On the CPU they run thread by thread (zoo/native/tests/cuda_on_host), compiled from the same files by a C++ compiler.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from zoo.adapters import adapter, check, loaded
from zoo.adapters.check import CUDA_CASES, Case, verify_kernels
from zoo.arrays import numpy_dtype, to_numpy
from zoo.errors import MissingFramework, VerifyError, ZooError
from zoo.native import cuda
from zoo.tolerances import KERNEL_ULPS, ROUNDING

NATIVE = Path(__file__).parents[1] / "zoo" / "native"
NVCC = shutil.which("nvcc")
SOURCES = sorted((NATIVE / "src" / "cuda").glob("*.cu"))

ON_HOST = NATIVE / "tests" / "cuda_on_host"
ORDERS = {"forward": 0, "backward": 1, "shuffled": 2}
BFLOAT16 = numpy_dtype("bfloat16")

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc on the PATH: the CUDA kernels cannot be compiled")


@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_the_kernels_compile_without_a_warning(tmp_path: Path, arch: str) -> None:
    assert SOURCES
    library = tmp_path / "libzoo_cuda.so"
    command = [
        str(NVCC),
        "-std=c++17",
        f"-arch={arch}",
        "--Werror=all-warnings",
        "-Xcompiler=-fPIC,-fvisibility=hidden",
    ]
    subprocess.run([*command, "-shared", "-o", library, *SOURCES], check=True, timeout=280)
    declared = set(re.findall(r"ZOO_API int (zoo_cuda_\w+)\(", (NATIVE / "zoo_cuda.h").read_text()))
    listed = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
    assert declared and set(re.findall(r" T (zoo_cuda_\w+)", listed)) == declared


def test_the_headers_are_c(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    unit = tmp_path / "unit.c"
    unit.write_text('#include "zoo_cuda.h"\nint main(void) { return (int)sizeof(zoo_cuda_rotary_args) == 0; }\n')
    subprocess.run(
        [compiler, "-std=c99", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}", "-fsyntax-only", unit], check=True
    )


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | Path], Path]:
    """A C++ file with CUDA kernels as a library for the CPU."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")

    def compile(source: str | Path) -> Path:
        folder = tmp_path_factory.mktemp("on_host")
        if isinstance(source, str):
            (folder / "source.cpp").write_text(source)
            source = folder / "source.cpp"
        flags = ["-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden"]
        library = folder / "libon_host.so"
        subprocess.run([compiler, *flags, f"-I{ON_HOST}", "-o", library, source], check=True, timeout=280)
        return library

    return compile


@pytest.fixture(scope="module")
def library(compiled: Callable[[str | Path], Path]) -> Path:
    """The kernels for the CPU."""
    return compiled(ON_HOST / "kernels.cpp")


@pytest.fixture(scope="module")
def host(library: Path) -> Callable[[], cuda.Gpu]:
    """What makes a GPU of the CPU."""
    return functools.partial(cuda.Gpu, driver=library, kernels=library)


@pytest.fixture
def gpu(host: Callable[[], cuda.Gpu]) -> Iterator[cuda.Gpu]:
    with host() as gpu:
        yield gpu
        gpu.kernels.zoo_host_order(0)


def smaller(case: Case) -> Case:
    """The same kernel where a CPU is done in no time: as many keys and rows as show what is beside a block."""
    if case.kernel == "rotary":
        return Case(case.kernel, (2, 5, 4, 2, 64), case.dtype)
    if not case.kernel.startswith("attention"):
        rows, cols = case.sizes
        return Case(case.kernel, (min(rows, 3), min(cols, 1000)), case.dtype)
    batch, heads, kv_heads, queries, keys, width = case.sizes
    sizes = (
        min(batch, 2),
        2,
        1 if kv_heads < heads else 2,
        min(queries, 70),
        min(keys, 70 if keys == queries else 130),
    )
    return Case(case.kernel, (*sizes, width), case.dtype)


@pytest.mark.parametrize("order", ORDERS)
def test_kernels_are_right_in_any_order_of_threads(
    host: Callable[[], cuda.Gpu], monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    def ordered() -> cuda.Gpu:
        gpu = host()
        gpu.kernels.zoo_host_order(ORDERS[order])
        return gpu

    monkeypatch.setattr(cuda, "Gpu", ordered)
    report = verify_kernels(["cuda"], list(dict.fromkeys(map(smaller, CUDA_CASES))), rounds=0)
    report.raise_for_failure()
    assert report.gpu == "CPU"
    assert {(row.kernel, row.dtype) for row in report.rows} == {(case.kernel, case.dtype) for case in CUDA_CASES}
    report.table()
    assert report.to_json()["gpu"] == "CPU"


def test_kernels_on_the_gpu_of_this_machine() -> None:
    try:
        cuda.Gpu().__exit__()
    except MissingFramework as error:
        pytest.skip(f"no GPU to run them on: {error}".replace("\n", "; "))
    verify_kernels(["cuda"], rounds=0).raise_for_failure()


def test_a_wrong_kernel_is_found(host: Callable[[], cuda.Gpu], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "Gpu", host)
    cases = [Case("layer_norm", (2, 40)), Case("softmax", (2, 40), "bfloat16")]
    report = verify_kernels(["cuda"], cases, rounds=1)
    report.raise_for_failure()
    assert all(row.microseconds and row.own_ulps is None for row in report.rows)
    monkeypatch.setattr(check, "_softmax", lambda x: x)
    wrong = verify_kernels(["cuda"], cases, rounds=0)
    assert [row.ok for row in wrong.rows] == [True, False]
    with pytest.raises(VerifyError, match=r"softmax 2x40 on cuda: .* ulps"):
        wrong.raise_for_failure()


@pytest.mark.parametrize("cols", [1, 31, 32, 33, 127, 129, 4097])
def test_rows_of_any_length(gpu: cuda.Gpu, cols: int) -> None:
    rng = np.random.default_rng(cols)
    x = rng.standard_normal((2, cols)).astype(np.float32)
    call = cuda.softmax(gpu, x)
    call()
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    np.testing.assert_allclose(call.results()[0], e / e.sum(-1, keepdims=True), rtol=1e-5)
    call = cuda.norm(gpu, x, None, None, None, 0.0, True)
    call()
    rms = np.sqrt(np.square(x.astype(np.float64)).mean(-1, keepdims=True))
    np.testing.assert_allclose(call.results()[0], x / rms, rtol=1e-5)


def test_a_query_that_sees_no_key_gives_zeros(gpu: cuda.Gpu) -> None:
    q = np.ones((1, 3, 1, 32), np.float32).astype(BFLOAT16)
    mask = np.array([[[[True, False], [False, False], [True, True]]]])
    k, v = q[:, :2], np.arange(64, dtype=np.float32).reshape(1, 2, 1, 32).astype(BFLOAT16)
    call = cuda.attention(gpu, q, k, v, mask, False, None)
    call()
    out = call.results()[0][0, :, 0].astype(np.float32)
    np.testing.assert_array_equal(out[0], np.arange(32))
    np.testing.assert_array_equal(out[1], 0)
    np.testing.assert_array_equal(out[2], np.arange(16, 48))


def test_what_is_not_a_number_stays_so(gpu: cuda.Gpu) -> None:
    x = np.array([[1, np.nan, 2], [-np.inf, -np.inf, -np.inf], [0, -np.inf, 0]], np.float32)
    call = cuda.softmax(gpu, x)
    call()
    assert np.isnan(call.results()[0][:2]).all()
    np.testing.assert_array_equal(call.results()[0][2], [0.5, 0, 0.5])


def test_nothing_to_do_is_done(gpu: cuda.Gpu) -> None:
    for call in (
        cuda.softmax(gpu, np.zeros((0, 5), np.float32)),
        cuda.norm(gpu, np.zeros((3, 0), np.float32), None, None, None, 1e-5, False),
        cuda.gated(gpu, np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32), "silu"),
        cuda.attention(gpu, *(np.zeros((0, 2, 2, 8), BFLOAT16) for _ in "qkv"), None, False, None),
    ):
        call()
        assert call.results()[0].size == 0


def test_what_a_kernel_refuses_is_said(gpu: cuda.Gpu) -> None:
    wide = np.zeros((1, 2, 2, 160), BFLOAT16)
    with pytest.raises(ZooError, match=r"refuses these arguments(.|\n)*zoo_cuda_attention on CPU(.|\n)*'width': 160"):
        cuda.attention(gpu, wide, wide, wide, None, False, None)()
    with pytest.raises(ZooError, match=r"float32, bfloat16(.|\n)*float16"):
        cuda.softmax(gpu, np.zeros((2, 2), np.float16))
    with pytest.raises(ZooError, match=r"cuMemAlloc_v2(.|\n)*as asked for by the test"):
        gpu.empty((1 << 41,), np.dtype(np.int8))
    q = np.zeros((1, 2, 2, 8), BFLOAT16)
    call = cuda.attention(gpu, q, q, q, None, False, None)
    call.args[0].offsets = 1
    with pytest.raises(ZooError, match="refuses these arguments"):
        call()


def test_what_is_missing_is_said(host: Callable[[], cuda.Gpu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingFramework, match="no driver of an NVIDIA GPU"):
        cuda.Gpu(driver=tmp_path / "libcuda.so.1", kernels=tmp_path / "libzoo_cuda.so")
    with pytest.raises(MissingFramework, match=r"no such NVIDIA GPU(.|\n)*number 1"):
        host(ordinal=1)  # type: ignore[call-arg]
    monkeypatch.setattr(cuda, "find_library", lambda part: None)
    with pytest.raises(MissingFramework, match=r"not built(.|\n)*nvcc"):
        cuda.Gpu()


BROKEN = """
#include "cuda_runtime.h"

__global__ void turned(float* x, bool barrier) {
    __shared__ float rows[64];
    rows[threadIdx.x] = x[threadIdx.x];
    if (barrier) __syncthreads();
    x[threadIdx.x] = rows[63 - threadIdx.x];
}
__global__ void parted(float* x) {
    if (threadIdx.x < 16) __syncthreads();
    else __syncwarp();
    x[threadIdx.x] = 0;
}
template <class... A>
int run(void (*kernel)(A...), A... args) {
    void* pointers[] = {&args...};
    return cudaLaunchKernel(kernel, 1, 64, pointers, 0, nullptr);
}
#define API extern "C" __attribute__((visibility("default")))
API int turn(float* x, bool barrier) { return run(turned, x, barrier); }
API int part(float* x) { return run(parted, x); }
API void in_order(int order) { on_host::order = (on_host::Order)order; }
"""


def test_the_cpu_finds_a_barrier_that_is_missing(compiled: Callable[[str | Path], Path]) -> None:
    library = ctypes.CDLL(str(compiled(BROKEN)))
    rng = np.random.default_rng(0)
    for order in ORDERS.values():
        library.in_order(order)
        for barrier in (True, False):
            x = rng.standard_normal(64).astype(np.float32)
            turned = x[::-1].copy()
            assert library.turn(x.ctypes.data_as(ctypes.c_void_p), barrier) == 0
            assert np.array_equal(x, turned) == barrier
    assert library.part(np.zeros(64, np.float32).ctypes.data_as(ctypes.c_void_p)) != 0


@pytest.fixture(scope="module")
def on_torch(library: Path) -> Iterator[Any]:
    """The adapter's operations for CUDA tensors, over CPU tensors."""
    ctypes.CDLL(str(library))
    ours = adapter("torch")
    ours.define("anyzoo_on_host")
    assert ours.register_gpu(library, library, "anyzoo_on_host", "CPU") is None
    with torch.inference_mode():
        yield torch.ops.anyzoo_on_host


def wide(*tensors: Any) -> tuple[Any, ...]:
    return tuple(x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in tensors)


def near(got: torch.Tensor, truth: torch.Tensor) -> None:
    """Within a few units of the dtype's last place, at the largest number."""
    unit = ROUNDING[str(got.dtype).removeprefix("torch.")] * truth.abs().amax()
    assert got.shape == truth.shape
    assert (got.double() - truth).abs().amax() <= KERNEL_ULPS * unit
    assert truth.std() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operations_of_torch(on_torch: Any, dtype: torch.dtype) -> None:
    plain = adapter("torch").PLAIN
    x, y, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((2, 3, 40), (2, 3, 40), (40,), (40,)))
    for rms in (False, True):
        given = (weight, None if rms else bias)
        out = on_torch.norm(x, *given, 1e-5, rms)
        assert out.dtype == dtype
        near(out, plain["norm"](*wide(x, None, *given), 1e-5, rms)[0])
        out, total = on_torch.add_norm(x, y, *given, 1e-5, rms)
        truth, exact_total = plain["norm"](*wide(x, y, *given), 1e-5, rms)
        near(total, exact_total)
        near(out, truth)
    near(on_torch.gated(x, y, 4), plain["gated"](*wide(x, y), "silu"))


def test_attention_of_torch(on_torch: Any) -> None:
    q, k, v = (torch.randn(2, t, h, 48).bfloat16().transpose(1, 2) for t, h in ((70, 4), (90, 2), (90, 2)))
    for mask in (None, torch.zeros(2, 1, 1, 90).masked_fill(torch.rand(2, 1, 1, 90) < 0.3, float("-inf"))):
        out = on_torch.attention(q, k, v, mask, False, 0.2)
        assert out.transpose(1, 2).is_contiguous()
        near(out, adapter("torch").PLAIN["attention"](*wide(q, k, v, mask), False, 0.2))


def test_what_torch_hands_over_wrongly_is_said(on_torch: Any) -> None:
    x, q = torch.randn(4, 6), torch.randn(1, 2, 3, 8).bfloat16()
    for call, why in (
        (lambda: on_torch.norm(x.t(), None, None, 1e-5, False), "dense arrays of one shape and dtype"),
        (lambda: on_torch.norm(x.double(), None, None, 1e-5, False), "float32 or bfloat16"),
        (lambda: on_torch.norm(x, x[:, 0], None, 1e-5, False), "weight and bias have a number"),
        (lambda: on_torch.norm(x, x[0].bfloat16(), None, 1e-5, False), "weight and bias have a number"),
        (lambda: on_torch.add_norm(x, x[:2], None, None, 1e-5, False), "dense arrays of one shape and dtype"),
        (lambda: on_torch.gated(x, x.bfloat16(), 4), "dense arrays of one shape"),
        (lambda: on_torch.gated(x, x, 99), "refuses these sizes"),
        (lambda: on_torch.attention(q.float(), q, q, None, False, 1.0), "bfloat16 of four dims"),
        (lambda: on_torch.attention(q, q[..., :4], q, None, False, 1.0), "do not go together"),
        (lambda: on_torch.attention(q, q, q, torch.ones(3, 3).bool(), False, 1.0), "mask on a GPU is float32"),
        (lambda: on_torch.attention(q, q, q, torch.ones(2, 1), False, 1.0), "does not broadcast"),
    ):
        with pytest.raises(RuntimeError, match=why):
            call()


@pytest.fixture
def on_jax(library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The adapter whose calls on the CPU run what they would on a GPU."""
    ours = adapter("jax")
    ours.register_gpu(library, "anyzoo_on_host", "cpu")
    monkeypatch.setattr(ours, "_CALLS", "anyzoo_on_host")
    calls = (ours._norm_call, ours._attention_call, ours._gated_call)
    for call in calls:
        call.cache_clear()
    yield ours
    for call in calls:
        call.cache_clear()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_calls_of_jax(on_jax: Any, dtype: str) -> None:
    plain = adapter("torch").PLAIN
    x, y, weight, bias = (
        torch.randn(*shape).to(getattr(torch, dtype)) for shape in ((2, 3, 40), (2, 3, 40), (40,), (40,))
    )
    a, b, w, c = (jnp.asarray(to_numpy(t)) for t in (x, y, weight, bias))
    for rms in (False, True):
        given, beside = ((w, None), (weight, None)) if rms else ((w, c), (weight, bias))
        normed = functools.partial(jax.jit(on_jax.norm, static_argnames=("eps", "rms")), eps=1e-5, rms=rms)
        out, total = normed(a, b, *given)
        truth, exact_total = plain["norm"](*wide(x, y, *beside), 1e-5, rms)
        near(of_jax(out), truth)
        near(of_jax(total), exact_total)
        near(of_jax(on_jax.norm(a, None, *given, 1e-5, rms)[0]), plain["norm"](*wide(x, None, *beside), 1e-5, rms)[0])
    near(of_jax(jax.jit(lambda a, b: on_jax.gated(a, b, "gelu"))(a, b)), plain["gated"](*wide(x, y), "gelu"))
    batched = jax.vmap(lambda a: on_jax.gated(a, a, "silu"))(a)
    near(of_jax(batched), plain["gated"](*wide(x, x), "silu"))


def test_attention_of_jax(on_jax: Any) -> None:
    q, k, v = (torch.randn(2, h, t, 48).bfloat16() for t, h in ((70, 4), (90, 2), (90, 2)))
    seen = torch.rand(2, 1, 1, 90) < 0.7
    for mask in (None, seen, torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))):
        arrays = [None if t is None else jnp.asarray(to_numpy(t)) for t in (q, k, v, mask)]
        truth = adapter("torch").PLAIN["attention"](*wide(q, k, v, mask), False, 0.2)
        near(of_jax(on_jax.attention(*arrays, False, 0.2)), truth)
    with pytest.raises(jax.errors.JaxRuntimeError, match="bfloat16 of four dims"):
        on_jax.attention(*(x.astype(np.float32) for x in arrays), False, 0.2)


def of_jax(array: Any) -> torch.Tensor:
    if array.dtype == jnp.bfloat16:
        return torch.from_numpy(np.array(array).view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def test_a_call_of_jax_for_a_gpu_without_a_stream(on_jax: Any, library: Path) -> None:
    ctypes.CDLL(loaded("jax")).zoo_jax_use_gpu(str(library).encode(), 0)
    with pytest.raises(jax.errors.JaxRuntimeError, match="XLA has no stream for it"):
        on_jax.gated(jnp.ones((2, 3)), jnp.ones((2, 3)), "silu")
