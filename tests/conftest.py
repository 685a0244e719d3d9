"""What every test process sets up before a framework is imported, and what several test files share."""

from __future__ import annotations

import functools
import gc
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

# Read when a framework is imported; the processes that tests start inherit them.
_OWN_CACHE = "ZOO_CACHE" not in os.environ
for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "JAX_PLATFORMS": "cpu",
    # quicker to compile, the same arithmetic; test_parity.py compiles one model as users do, and so does the demo
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    # of the three that graphs run on the one that compiles nothing; test_keras.py starts a process for each
    "KERAS_BACKEND": "torch",
}.items():
    os.environ.setdefault(_name, _value)
if _OWN_CACHE:
    os.environ["ZOO_CACHE"] = tempfile.mkdtemp(prefix="zoo-cache-")

try:
    import torch  # before TensorFlow: the other order has crashed
except ImportError:
    pass
else:
    torch.set_num_threads(1)

import numpy as np  # noqa: E402
import pytest  # noqa: E402

FIXTURES = Path(__file__).parent / "data" / "fixtures"  # made by oracle/make_fixtures.py


SKIPS = (
    # what a machine may lack
    r"no nvcc on the PATH",
    r"no GPU to run them on",
    r"no Chromium is installed",
    r"this machine has no (avx2|avx512|avx512_vnni|avx512_bf16)",
    r"nothing is read-only for root",
    r"the kernel here has (no seccomp|only )",
    r"no such walls on this system",
    # files that are not ours to keep here: benchmarks/check_real_weights.py fetches them and runs these tests
    r"no real weights here",
    r"unpack .* into a folder and name it in ZOO_REAL_WEIGHTS",
    r"pip could not download",  # no network
)
"""Why a test may be skipped in CI (--no-other-skips), as regular expressions. Whatever else skips there fails."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-other-skips", action="store_true", help="a skip for a reason that is not in SKIPS fails")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.config.getoption("--no-other-skips") and not hasattr(report, "wasxfail"):
        _allowed(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module that skips itself, because it cannot import what it needs."""
    report = yield
    if collector.config.getoption("--no-other-skips"):
        _allowed(report)
    return report


def _allowed(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.outcome != "skipped":
        return
    said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not any(re.search(reason, said) for reason in SKIPS):
        report.outcome, report.longrepr = "failed", f"{said}\n(skipped for a reason that SKIPS in conftest.py has not)"


def pytest_collection_finish(session: pytest.Session) -> None:
    """A group's tests run one after another in one process, or else each captures its model anew."""
    if getattr(session.config.option, "loadgroup", False):
        for item in session.items:
            if item.get_closest_marker("xdist_group") and "@" not in item.nodeid:
                raise pytest.UsageError(f"{item.nodeid} has lost its group: this pytest-xdist does not fit this pytest")


@pytest.fixture(scope="session", autouse=True)
def _own_cache() -> Iterator[None]:
    """The session's cache folder goes when the session ends."""
    yield
    if _OWN_CACHE:
        shutil.rmtree(os.environ["ZOO_CACHE"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _looked_through() -> None:
    """What is there by now, four frameworks' modules above all, is not looked through for garbage again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """What a test draws from torch, a module's first parameters say, is the same in every run and in any order."""
    if "torch" in sys.modules:
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Tiny checkpoints that other programs wrote, and what those compute from them."""
    return FIXTURES


@pytest.fixture(autouse=True)
def as_wide_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is cut for a terminal, though readline tells processes that are started here of one with 80 columns."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A command line in this process: exit code, stdout, stderr."""
    from zoo import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Makes a sweep the one that comes with the installation."""
    from zoo import catalogue, coverage

    def use(sweep: Any) -> None:
        monkeypatch.setattr(coverage, "read", lambda: sweep)
        forget()

    def forget() -> None:
        for cached in (coverage.coverage, catalogue.swept, catalogue._by_type):
            cached.cache_clear()

    yield use
    forget()


@pytest.fixture
def sweep(use: Callable[[Any], None]) -> Any:
    """The made-up one of `sweep.py`."""
    from sweep import SWEEP

    use(SWEEP)
    return SWEEP


@pytest.fixture
def no_sweep(use: Callable[[Any], None]) -> None:
    """An installation without one."""
    from zoo.coverage import Coverage

    use(Coverage({}, ()))


@pytest.fixture(scope="session")
def captured() -> Callable[[str], tuple[Any, dict[str, np.ndarray]]]:
    """model type -> graph and weights of its tiny model, captured once per process.

    Tests that use it belong to `pytest.mark.xdist_group(model_type)`, so that one process has all of a type.
    """
    return _captured


@functools.cache
def _captured(model_type: str) -> tuple[Any, dict[str, np.ndarray]]:
    import tiny

    from zoo.capture.huggingface import _dynamic
    from zoo.capture.huggingface.classes import quiet as _quiet
    from zoo.capture.torch_export import capture_module

    module = tiny.build(model_type)
    inputs = {name: torch.from_numpy(array) for name, array in tiny.inputs(model_type, 2, 7).items()}
    with _quiet():
        graph = capture_module(module, inputs, _dynamic(inputs, module.config))
    state = module.state_dict()
    return graph, {name: state[name].numpy() for name in graph.params}
