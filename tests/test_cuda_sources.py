"""The CUDA kernels compile for the GPUs they are meant for. Nothing here runs them: that needs a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[1] / "zoo" / "native"
NVCC = shutil.which("nvcc")
SOURCES = sorted((NATIVE / "src" / "cuda").glob("*.cu"))

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
