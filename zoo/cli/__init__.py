"""The command `zoo`, a file for each command: what it takes, and how its result is shown.

May import anything of zoo; nothing imports this. A new command is a file here, named below.

Exit codes: 0 all right, 1 a verification failed, 2 the command could not be carried out. Results go to stdout, all
else to stderr. No framework is imported before a command needs one.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import NoReturn

from zoo.cli import bench, capture, convert, info, inspect, listing, run, verify  # noqa: F401  # in the help's order
from zoo.cli.app import app
from zoo.console import quiet, show_error
from zoo.errors import SourceError, ZooError

__all__ = ["app", "main"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Carry out a command line (without the program's name; sys.argv by default) and exit."""
    quiet()
    for stream in (sys.stdout, sys.stderr):  # a terminal or a pipe that cannot show a character gets its number
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(args=None if arguments is None else list(arguments), prog_name="zoo")
    except ZooError as error:
        show_error(error)
        sys.exit(2)
    except BrokenPipeError:  # zoo list | head
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        show_error(SourceError("the system refused something", where=error.filename, got=error))
        sys.exit(2)
    sys.exit(0)
