"""Small files: JSON that somebody wrote, and files of caches, of which whoever reads one sees all or the one before."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from zoo.errors import ConfigError

__all__ = ["read_json", "write_whole"]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ConfigError: no such file, not JSON, or not an object.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()  # an escape may be half of a UTF-16 pair
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("the file cannot be read as JSON", where=path, got=error) from error
    if not isinstance(found, dict):
        raise ConfigError("the file does not hold a JSON object", where=path, got=type(found).__name__)
    return found


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step, flushed to the disk; processes that write the same file do not meet.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
