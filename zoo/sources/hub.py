"""Checkpoints of the Hugging Face hub: `hf://org/name[@revision]`, through huggingface_hub and its cache.

What huggingface_hub does not do is added here: it takes any file of the right size for the right one, so
every content is checked against the hash that the hub states; and the listing of a commit is kept, so that a
commit that is complete on disk is loaded without a request.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from converters.folder import is_index
from zoo.errors import ChecksumError, SourceError
from zoo.registry import parse_uri
from zoo.sources import NO_HASHES, Progress, cache_root, is_offline
from zoo.sources.local import digest, inside, module_folders, select, shards, write_text
from zoo.sources.pace import PATIENCE, SLOWEST, RateLimited, TooSlow, at_a_pace, retry_after

__all__ = ["cache_folder", "fetch", "stated"]

log = logging.getLogger(__name__)


def fetch(
    uri: str,
    files: Sequence[str] | None = None,
    *,
    sha256: Mapping[str, str] = NO_HASHES,
    progress: Progress | None = None,
    offline: bool | None = None,
) -> Path:
    """The snapshot folder of a repository in the hub's own cache; see `zoo.sources.fetch`.

    HF_ENDPOINT, HF_HUB_CACHE, HF_HOME and HF_HUB_OFFLINE are read at each call; tokens are left to
    huggingface_hub. A commit that is complete in the cache costs no request; a branch or tag costs one, and
    where the hub cannot be reached the commit that it named last time is taken, with a warning.

    Raises:
        SourceError: no such repository, revision or file; no access; no network and not in the cache.
        ChecksumError: a file is not the one that the hub, or `sha256`, states; a damaged one was removed, so
            that the next call downloads it again.

    Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache for the layout of the cache.
    """
    ref = parse_uri(uri)
    repo = _Repo(uri, ref.location, ref.revision or "main", cache_folder())
    if is_offline(offline):
        return _from_cache(repo, files, sha256)
    if _COMMIT.fullmatch(repo.revision) and _complete(repo, repo.revision, files):
        return _from_cache(repo, files, sha256)
    try:
        commit, listing = _ask(repo)
    except Exception as error:
        # A hub that is away must not stop what is on disk; one that says no must.
        if _unreachable(error):
            try:
                folder = _from_cache(repo, files, sha256)
            except ChecksumError:
                raise
            except SourceError:
                pass
            else:
                log.warning("the hub cannot be reached: taking %s as last seen, commit %s", uri, folder.name)
                return folder
        if isinstance(error, SourceError):
            raise
        raise _explain(error, repo) from error
    return _download(repo, commit, listing, files, sha256, progress)


def cache_folder() -> Path:
    """The hub's cache as the environment says now (huggingface_hub itself reads it once, at import)."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := os.environ.get(name):
            return Path(os.path.expandvars(value)).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(os.path.expandvars(home)).expanduser() / "hub"
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root).expanduser() / "huggingface" / "hub"


def stated(folder: Path) -> dict[str, str]:
    """File -> "sha256:..." or "git-sha1:...", as the hub stated it; empty where the folder is none of its snapshots."""
    commit, cached = folder.name, folder.parent.parent
    if folder.parent.name != "snapshots" or not cached.name.startswith("models--") or not _COMMIT.fullmatch(commit):
        return {}
    name = cached.name.removeprefix("models--").replace("--", "/", 1)
    listing = _known_listing(_Repo(f"hf://{name}", name, commit, cached.parent), commit)
    return {file: value for file, value in listing.items() if value and (folder / file).is_file()}


_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MODULES = "modules.json"
_WORKERS = 4
_TIMEOUT = 20.0  # seconds to wait for the listing
_RESTARTS = 5  # downloads of one file begun anew before it counts as failed

# File name -> "sha256:..." or "git-sha1:...", or None where the hub states no hash.
_Listing = Mapping[str, str | None]


@dataclass(frozen=True)
class _Repo:
    uri: str
    id: str
    revision: str
    cache: Path

    @property
    def folder(self) -> Path:
        return self.cache / f"models--{self.id.replace('/', '--')}"

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def listing_path(self, commit: str) -> Path:
        return cache_root() / "hub" / self.folder.name / f"{commit}.json"

    def known_commit(self) -> str | None:
        """The commit that the revision is, or was when last asked."""
        if _COMMIT.fullmatch(self.revision):
            return self.revision
        try:
            commit = (self.folder / "refs" / self.revision).read_text("utf-8").strip()
        except (OSError, ValueError):
            return None
        return commit if _COMMIT.fullmatch(commit) else None


def _ask(repo: _Repo) -> tuple[str, _Listing]:
    """The revision's commit and files, remembered for the day without a network."""
    (info,) = at_a_pace(
        [lambda: _api().model_info(repo.id, revision=repo.revision, files_metadata=True, timeout=_TIMEOUT)], 1, repo.uri
    )
    listing: dict[str, str | None] = {}
    for file in info.siblings or ():
        if file.lfs is not None:
            listing[file.rfilename] = f"sha256:{file.lfs.sha256}"
        else:
            listing[file.rfilename] = f"git-sha1:{file.blob_id}" if file.blob_id else None
    commit = info.sha
    if commit is None or not _COMMIT.fullmatch(commit):
        raise SourceError(
            "the hub's answer names no commit",
            where=repo.uri,
            got=repr(commit),
            do="check what HF_ENDPOINT leads to",
        )
    try:
        write_text(repo.listing_path(commit), json.dumps(listing))
        if repo.revision != commit:
            write_text(repo.folder / "refs" / repo.revision, commit)
    except OSError as error:
        log.warning("cannot remember the commit of %s, loading it offline will fail: %s", repo.uri, error)
    return commit, listing


def _download(
    repo: _Repo,
    commit: str,
    listing: _Listing,
    files: Sequence[str] | None,
    sha256: Mapping[str, str],
    progress: Progress | None,
) -> Path:
    lock = threading.Lock()

    def one(name: str) -> Path:
        from huggingface_hub import hf_hub_download

        extra: dict[str, Any] = {"tqdm_class": _bar(name, progress, lock)} if _takes_bar(hf_hub_download) else {}
        try:
            path = hf_hub_download(
                repo.id,
                name,
                revision=commit,
                cache_dir=repo.cache,
                endpoint=_endpoint(),
                **extra,
            )
        except Exception as error:
            raise _explain(error, repo, name) from error
        _verify(repo, commit, name, listing.get(name), sha256.get(name))
        return Path(path)

    def several(names: Sequence[str]) -> list[Path]:
        try:
            return at_a_pace([lambda name=name: one(name) for name in names], _WORKERS, repo.uri)  # type: ignore[misc]
        except TooSlow as error:
            raise _explain(error, repo) from error

    modules = []
    if files is None and _MODULES in listing:
        modules = module_folders(several([_MODULES])[0].read_bytes())
    names = select(listing, files, where=repo.uri, modules=modules)
    _check_listed(repo, names, listing, sha256)
    for index in [name for name in names if is_index(name)]:
        more = shards(several([index])[0])
        if absent := [shard for shard in more if shard not in listing]:
            raise SourceError(
                "the index names shards that the repository does not have",
                where=f"{repo.uri}: {index}",
                got=", ".join(absent),
                do="tell the repository's owner; or download its files, and load what you want by its path",
            )
        names += more
        _check_listed(repo, more, listing, sha256)
    several(list(dict.fromkeys(names)))
    return repo.snapshot(commit)


def _from_cache(repo: _Repo, files: Sequence[str] | None, sha256: Mapping[str, str]) -> Path:
    commit = repo.known_commit()
    folder = repo.snapshot(commit) if commit else None
    advice = "fetch it once with a network (unset HF_HUB_OFFLINE), or give a folder that holds it"
    if commit is None or folder is None or not folder.is_dir():
        raise SourceError("not in the cache, and offline", where=repo.uri, got=f"nothing in {repo.folder}", do=advice)
    listing = _known_listing(repo, commit)
    names = _chosen(folder, list(listing), files, repo)
    if missing := [name for name in names if not (folder / name).exists()]:
        raise SourceError(
            "not all of it is in the cache, and offline",
            where=repo.uri,
            expected=", ".join(missing),
            got=folder,
            do=advice,
        )
    for name in names:
        _verify(repo, commit, name, listing.get(name), sha256.get(name))
    return folder


def _complete(repo: _Repo, commit: str, files: Sequence[str] | None) -> bool:
    """Whether the snapshot holds all that would be taken: by the commit's listing, not by what is there."""
    folder = repo.snapshot(commit)
    if not folder.is_dir() or not repo.listing_path(commit).is_file():
        return False
    try:
        names = _chosen(folder, list(_known_listing(repo, commit)), files, repo)
    except SourceError:
        return False
    return all((folder / name).exists() for name in names)


def _chosen(folder: Path, listing: list[str], files: Sequence[str] | None, repo: _Repo) -> list[str]:
    path = folder / _MODULES
    modules = module_folders(inside(folder, _MODULES).read_bytes()) if files is None and path.exists() else []
    names = select(listing, files, where=f"{repo.uri} in {folder}", modules=modules)
    for index in [name for name in names if is_index(name)]:
        if (folder / index).exists():
            names += shards(folder / index)
    for name in names:
        inside(folder, name)
    return list(dict.fromkeys(names))


def _known_listing(repo: _Repo, commit: str) -> dict[str, str | None]:
    """The commit's files as the hub once listed them, else those that another program left in the cache."""
    try:
        listing = json.loads(repo.listing_path(commit).read_text("utf-8"))
        if isinstance(listing, dict) and all(isinstance(stated, (str, NoneType)) for stated in listing.values()):
            return listing
    except (OSError, ValueError, RecursionError):
        pass
    folder = repo.snapshot(commit)
    present = sorted(path for path in folder.rglob("*") if path.is_file())
    found: dict[str, str | None] = {path.relative_to(folder).as_posix(): _blob_hash(path) for path in present}
    for index in [name for name in found if is_index(name) and "/" not in name]:
        found.update({shard: None for shard in shards(folder / index) if shard not in found})
    return found


def _blob_hash(path: Path) -> str | None:
    """The hash in the name of the blob that a snapshot's link leads to; large files are named by sha256."""
    name = Path(os.readlink(path)).name if path.is_symlink() else ""
    return f"sha256:{name}" if _SHA256.fullmatch(name) else None


def _check_listed(repo: _Repo, names: list[str], listing: _Listing, sha256: Mapping[str, str]) -> None:
    """Compare the registry's hashes with the hub's before a byte is downloaded."""
    for name in names:
        stated = (listing.get(name) or "").removeprefix("sha256:")
        if name in sha256 and _SHA256.fullmatch(stated) and stated != sha256[name]:
            raise _changed(repo, name, sha256[name], stated)


def _verify(repo: _Repo, commit: str, name: str, stated: str | None, known: str | None) -> None:
    path = repo.snapshot(commit) / name
    kind, _, expected = (stated or _blob_hash(path) or "").partition(":")
    if kind in ("sha256", "git-sha1"):
        got = digest(path, "sha256" if kind == "sha256" else "git-sha1")
        if got != expected:
            _remove(path, repo.cache)
            raise ChecksumError(
                f"{name} is damaged in the cache or was damaged on the way",
                where=f"{repo.uri}: {path}",
                expected=f"{kind} {expected}",
                got=f"{kind} {got}",
                do="load it again: the damaged file was removed and will be downloaded anew",
            )
    if known is not None and (got := digest(path)) != known:
        if not expected:
            _remove(path, repo.cache)  # nothing else vouches for it, so it may well be damage
        raise _changed(repo, name, known, got)


def _changed(repo: _Repo, name: str, known: str, got: str) -> ChecksumError:
    return ChecksumError(
        f"{name} is not the file that the registry knows",
        where=repo.uri,
        expected=f"sha256 {known}",
        got=f"sha256 {got}",
        do=f"the repository changed; to take it as it is now, load it as hf://{repo.id}",
    )


def _remove(path: Path, cache: Path) -> None:
    """Remove a snapshot's link and what it leads to inside the cache: the blob, or a shared one."""
    while path.parent.resolve().is_relative_to(cache.resolve()):
        target = path.parent / os.readlink(path) if path.is_symlink() else None
        path.unlink(missing_ok=True)
        if target is None:
            return
        path = target


def _endpoint() -> str | None:
    return (os.environ.get("HF_ENDPOINT") or "").rstrip("/") or None


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=_endpoint(), library_name="anyzoo")


def _takes_bar(function: Any) -> bool:
    # Not in every release since 1.0.
    import inspect

    return "tqdm_class" in inspect.signature(function).parameters


def _bar(name: str, progress: Progress | None, lock: threading.Lock) -> type:
    """What huggingface_hub takes for a tqdm class, telling `progress` instead of drawing."""

    class Bar:
        format_dict: dict[str, Any] = {}

        def __init__(self, *_: Any, desc: str = "", total: int | None = None, initial: int = 0, **__: Any) -> None:
            self.n, self.total, self.restarts = initial, total, 0
            # Xet opens a second bar per file, for bytes on the wire: only those of the file are told.
            self.told = progress is not None and not desc.endswith("downloading bytes")

        def update(self, n: float | None = 1) -> None:
            # http_get starts over, without end, with a server that ignores ranges and breaks off each time.
            if n is not None and n < 0:
                self.restarts += 1
                if self.restarts >= _RESTARTS:
                    raise ConnectionError(f"the transfer of {name} broke off {self.restarts} times")
            self.n += int(n or 0)
            if self.told and progress is not None:
                with lock:
                    progress(name, self.n, self.total)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def close(self, *_: Any, **__: Any) -> None:
            pass

        clear = refresh = reset = set_description = set_description_str = set_postfix = set_postfix_str = close

    return Bar


def _unreachable(error: BaseException) -> bool:
    """Whether the hub is away: no network, or an answer that speaks of the server and not of the request."""
    if isinstance(error, (TooSlow, RateLimited)):
        return True
    status = _status(error)
    if status is not None:
        return status >= 500 or status in (408, 429)
    # huggingface_hub's HTTP library changed twice (requests, httpx, httpx2): know its errors by their module.
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, (ConnectionError, TimeoutError)) or module.startswith(("http", "requests"))


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _explain(error: BaseException, repo: _Repo, name: str | None = None) -> SourceError:
    """huggingface_hub's error as ours, with what to do about it."""
    from huggingface_hub import errors, get_token

    # It wraps what happened in "not in the local cache either".
    while isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    where = f"{repo.uri}: {name}" if name else repo.uri
    endpoint = _api().endpoint
    token = (
        "the token that was sent has no access; use another one: set HF_TOKEN or run `hf auth login`"
        if get_token()
        else "no token was sent: set HF_TOKEN or run `hf auth login`"
    )
    status = 429 if isinstance(error, RateLimited) else _status(error)
    got: object = f"HTTP {status} from {endpoint}" if status else f"{type(error).__name__}: {error}"
    if status == 429:
        seconds = error.seconds if isinstance(error, RateLimited) else retry_after(getattr(error, "response", None))
        what = "the hub asks for fewer requests: its rate limit is reached"
        do = "wait some minutes" if seconds is None else f"wait {seconds:g} seconds (Retry-After)"
        do += ", then load it again; what was complete is kept"
    elif isinstance(error, TooSlow):
        what, do = "the transfer is too slow to go on", "load it again; check network and proxy"
        got = f"{error}, below {SLOWEST} bytes a second for {PATIENCE:g} seconds"
    elif isinstance(error, errors.GatedRepoError):
        what, do = "the repository is gated", f"accept its terms at {endpoint}/{repo.id}; {token}"
    elif isinstance(error, errors.RevisionNotFoundError):
        what, do = (
            f"the repository has no revision {repo.revision!r}",
            f"see {endpoint}/{repo.id}/commits/main for those it has, or leave @{repo.revision} out",
        )
    elif isinstance(error, errors.RepositoryNotFoundError) or (status == 404 and name is None):
        what, do = "no such repository, or it is private", f"check the name; if it is private: {token}"
    elif isinstance(error, errors.EntryNotFoundError) or status == 404:
        what, do = "the repository has no such file", "load it again: its listing may have changed meanwhile"
    elif status in (401, 403):
        what, do = "the hub refused access", token
    elif isinstance(error, errors.OfflineModeIsEnabled):
        what, do = "huggingface_hub is in offline mode", "unset HF_HUB_OFFLINE and start Python again"
    elif status is not None and status >= 500:
        what, do = "the hub has trouble of its own", "try again later"
    elif isinstance(error, errors.HFValidationError):
        what, do = "not the name of a repository", "hf://org/name or hf://org/name@revision"
    elif _unreachable(error):
        what, do = (
            f"the hub at {endpoint} cannot be reached",
            "check network, proxy and HF_ENDPOINT; HF_HUB_OFFLINE=1 uses only what is in the cache",
        )
    else:
        what, do = "the download failed", "load it again; what was complete is kept"
    return SourceError(what, where=where, got=got, do=do)
