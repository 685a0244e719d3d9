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

import numpy as np
import pytest

from zoo.arrays import numpy_dtype
from zoo.errors import MissingFramework, VerifyError, ZooError
from zoo.native import check, cuda
from zoo.native.check import CUDA_CASES, Case, verify_kernels

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
def host(compiled: Callable[[str | Path], Path]) -> Callable[[], cuda.Gpu]:
    """What makes a GPU of the CPU."""
    library = compiled(ON_HOST / "kernels.cpp")
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
    monkeypatch.setattr(cuda, "find", lambda part: None)
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
