"""What the command line and the demo share: consoles, progress bars, quiet frameworks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from zoo.errors import ZooError, printable
from zoo.frameworks import installed

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

    from zoo.sources import Progress

__all__ = [
    "Layouts",
    "all_right",
    "console",
    "import_frameworks",
    "plain",
    "progress_bars",
    "quiet",
    "say",
    "show_error",
]

_WIDE = 160  # columns where there is no terminal: nothing is cut in a file or a pipe


def console(*, stderr: bool = False) -> Console:
    """A console for results, or for what goes on beside them."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _WIDE
    return made


class Layouts:
    """For rich: the first of several ways to draw the same that the terminal has room for, else the last."""

    def __init__(self, *layouts: RenderableType) -> None:
        self.layouts = layouts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        endless = options.update(max_width=10_000)
        wanted = (console.measure(layout, options=endless).maximum for layout in self.layouts)
        fitting = (layout for layout, width in zip(self.layouts, wanted, strict=True) if width <= options.max_width)
        yield next(fitting, self.layouts[-1])


def plain(text: str) -> str:
    """Text for rich's consoles and tables: neither its markup nor the terminal's escapes in it mean anything."""
    from rich.markup import escape

    return escape(printable(text, lines=True))


def all_right(backends: Iterable[str], missing: Iterable[str]) -> str:
    """What was found right, each backend once, and what was not looked at."""
    said = f"all right on {', '.join(dict.fromkeys(backends))}"
    left = ", ".join(missing)
    return f"{said}; not checked: {left}" if left else said


def say(text: str = "") -> None:
    """A line of a result, without rich: no part of it is obeyed by a terminal."""
    print(printable(text, lines=True))


def show_error(error: ZooError) -> None:
    """An error on stderr: what, where, expected, got, what to try."""
    first, *rest = str(error).split("\n")
    # soft_wrap: paths and names stay whole
    console(stderr=True).print("\n".join([f"[bold red]error:[/] {plain(first)}", *map(plain, rest)]), soft_wrap=True)


def quiet() -> None:
    """Before any framework is imported: no start-up notes, and no GPU memory taken for oneself alone."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def import_frameworks(backends: Sequence[str]) -> None:
    """Import TensorFlow, if one of the backends needs it, after torch and without its notes on stderr."""
    if not {"tensorflow", "keras"} & set(backends) or not installed("tensorflow"):
        return
    quiet()
    if installed("torch"):
        import torch  # noqa: F401  # the other order has crashed
    with _captured_stderr():
        import tensorflow  # noqa: F401


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A function to pass as `zoo.load(progress=…)`, which draws a bar on stderr for each thing that is fetched."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, TimeRemainingColumn(), console=console(stderr=True), transient=True) as bars:
        tasks: dict[str, int] = {}

        def progress(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(plain(what), total=total)
            bars.update(tasks[what], completed=done, total=total)  # type: ignore[arg-type]

        yield progress


@contextmanager
def _captured_stderr() -> Iterator[None]:
    """The process's stderr kept back, and shown after all if the block fails.

    TensorFlow 2.21 writes two notes before it reads TF_CPP_MIN_LOG_LEVEL.
    """
    import tempfile

    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException:
            file.seek(0)
            os.write(kept, file.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
