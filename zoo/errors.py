"""Every error Anyzoo raises on purpose.

Each says what happened, where, what was expected, what was found and what to do; all are children of `ZooError`.
"""

from __future__ import annotations

import re

__all__ = [
    "CaptureError",
    "ChecksumError",
    "ConfigError",
    "FormatError",
    "GraphError",
    "InputError",
    "LimitError",
    "MissingFramework",
    "OutsideError",
    "RegistryError",
    "SourceError",
    "UnknownBackend",
    "UnknownModel",
    "UnsafeFile",
    "UnsupportedOp",
    "VerifyError",
    "WeightsError",
    "ZooError",
    "printable",
]

# Control characters, which a terminal obeys; what turns the direction of text or breaks lines; halves of UTF-16 pairs.
_UNPRINTABLE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, *, lines: bool = False) -> str:
    """Text out of a file as a terminal may show it: escapes, controls and lone surrogates spelled out (\\x1b, \\ud800).

    Args:
        text: anything.
        lines: keeps line breaks and tabs, which are spelled out otherwise.
    """
    shown = _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)
    return shown if lines else shown.replace("\n", "\\n").replace("\t", "\\t")


class ZooError(Exception):
    """Base of all errors raised by Anyzoo. Its text can be shown on a terminal whatever a file put into it.

    Args:
        what: one sentence: what went wrong.
        where: the file, node, tensor or input concerned.
        expected: what should have been there.
        got: what was there.
        do: what the user can do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        got: object = None,
        do: str | None = None,
    ) -> None:
        self.what, self.where, self.expected, self.got, self.do = what, where, expected, got, do
        lines = [printable(what, lines=True)]
        for label, value in (("where", where), ("expected", expected), ("got", got), ("try", do)):
            if value is not None:
                lines.append(f"  {label}: {printable(str(value), lines=True)}")
        super().__init__("\n".join(lines))

    def __reduce__(self):
        return _rebuild, (type(self), self.what, self.where, self.expected, self.got, self.do)


def _rebuild(kind, what, where, expected, got, do):
    return kind(what, where=where, expected=expected, got=got, do=do)


class RegistryError(ZooError):
    """registry.json itself is wrong."""


class UnknownModel(ZooError, LookupError):
    """No model of that name; the error suggests near names."""


class UnknownBackend(ZooError, LookupError):
    """No backend of that name."""


class MissingFramework(ZooError, ImportError):
    """The backend's framework is not installed; the error names the extra to install."""


class SourceError(ZooError, OSError):
    """Bytes could not be had from a hub, a wheel or a folder."""


class ChecksumError(SourceError):
    """A file's sha256 is not the one expected."""


class UnsafeFile(ZooError):
    """A file asks for something that loading must never do: leave its folder, run code."""


class FormatError(ZooError, ValueError):
    """A checkpoint or graph file is truncated, corrupt or not of the format it claims."""


class ConfigError(ZooError, ValueError):
    """A model's config is missing, unreadable or contradicts its graph."""


class GraphError(ZooError, ValueError):
    """A graph is not well formed; the error names the node."""


class LimitError(GraphError):
    """Running a graph would take more memory or work than a model of its size needs; the error names the node."""


class UnsupportedOp(GraphError):
    """A graph holds an operation that the op table or a backend does not have."""


class CaptureError(ZooError):
    """A model could not be turned into a graph; the error names the op or the expression."""


class WeightsError(ZooError, ValueError):
    """Tensors are missing, unexpected or of the wrong shape; all of them are listed."""


class InputError(ZooError, ValueError):
    """A call's inputs have a wrong name, dtype, rank or size."""


class OutsideError(InputError, IndexError):
    """An id, a position or another index is outside what it points into."""


class VerifyError(ZooError):
    """Outputs or gradients differ between backends by more than the tolerance table allows."""
