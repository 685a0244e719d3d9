"""A hub on 127.0.0.1 that speaks as much of the Hugging Face hub's protocol as huggingface_hub asks for.

`HubServer` serves folders as repositories and can misbehave on request; the fixture `hub` starts one and points
huggingface_hub and Anyzoo at it, with caches of their own. Import it by name into a test module.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

__all__ = ["HubServer", "Request", "git_sha1", "hub"]

LARGE = (".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".gguf")  # stored as LFS, as on the hub


@dataclass(frozen=True)
class Request:
    """One request as it came: the token is what stood after "Bearer "."""

    method: str
    path: str
    token: str | None


class HubServer:
    """Repositories of models, served from folders.

    Attributes:
        requests: all that came, in order.
        gated: repository ids that only `token` opens; their listing is public, as on the hub.
        status: answer everything with this code instead.
        corrupt: names of files served with a wrong byte, hashes as they should be.
        retry_after: what answers of `status` say in that header.
        status_times: how many answers have `status`; None: all.
        drip: endings of paths whose answers come a byte at a time -> seconds between two.
        drip_heads: whether their heads do so, too.
        broken: file name -> how its body breaks off: "once" (the next try is served whole), "always" (halfway,
            whatever range is asked for), "short" (a complete answer of half the size).
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.gated: set[str] = set()
        self.token = "hf_right"
        self.status: int | None = None
        self.status_times: int | None = None
        self.retry_after: str | None = None
        self.drip: dict[str, float] = {}
        self.drip_heads = False
        self.stopped = threading.Event()
        self.corrupt: set[str] = set()
        self.broken: dict[str, str] = {}
        self._revisions: dict[str, dict[str, Path]] = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, repo: str, folder: Path, revision: str = "main") -> str:
        """Serve a folder as a revision of a repository; its commit, which follows from its content."""
        commit = hashlib.sha1(repr([(n, p.read_bytes()) for n, p in files_of(folder).items()]).encode()).hexdigest()
        self._revisions.setdefault(repo, {}).update({revision: folder, commit: folder})
        return commit

    def folder(self, repo: str, revision: str) -> tuple[str, Path] | None:
        """The commit and folder of a revision."""
        known = self._revisions[repo]
        if revision not in known:
            return None
        return next(name for name in known if re.fullmatch("[0-9a-f]{40}", name) and known[name] == known[revision]), (
            known[revision]
        )

    def repo_of(self, path: str) -> str | None:
        """The repository that a path of the API or of a file starts with."""
        return next((repo for repo in self._revisions if path == repo or path.startswith(f"{repo}/")), None)

    def count(self, method: str | None = None, ending: str = "") -> int:
        """How many requests came, of a method, whose path ends so."""
        return sum(method in (None, r.method) and r.path.endswith(ending) for r in self.requests)

    def stop(self) -> None:
        """Stop answering; the port is closed. A second call does nothing."""
        self.stopped.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A running `HubServer`; HF_ENDPOINT leads to it, all caches are below `tmp_path`, no token is set."""
    from huggingface_hub import close_session, constants

    server = HubServer()
    home = tmp_path / "hf"
    for name, value in {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "ZOO_CACHE": str(tmp_path / "zoo"),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    # Read from the environment when huggingface_hub is imported, which may have been long ago.
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    close_session()  # a client made earlier may know other proxies
    try:
        yield server
    finally:
        close_session()
        server.stop()


def files_of(folder: Path) -> dict[str, Path]:
    """A folder's files by their path relative to it."""
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}


def git_sha1(content: bytes) -> str:
    """git's hash of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.requests.append(Request(self.command, path, token))
        if self.hub.status is not None and self.hub.status_times != 0:
            if self.hub.status_times is not None:
                self.hub.status_times -= 1
            after = {} if self.hub.retry_after is None else {"Retry-After": self.hub.retry_after}
            return self._send(self.hub.status, b"down", after)
        api = path.startswith("/api/models/")
        rest = path.removeprefix("/api/models/" if api else "/")
        repo = self.hub.repo_of(rest)
        if repo is None:
            # The hub's answer for what does not exist and for what one may not see.
            return self._send(404 if token else 401, b"", {"X-Error-Code": "RepoNotFound"})
        rest = rest.removeprefix(repo).strip("/")
        if api:
            return self._list(repo, rest)
        if repo in self.hub.gated and token != self.hub.token:
            return self._send(403 if token else 401, b"", {"X-Error-Code": "GatedRepo"})
        match = re.fullmatch(r"resolve/([^/]+)/(.+)", rest)
        found = self.hub.folder(repo, match[1]) if match else None
        if match is None or found is None:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        commit, folder = found
        name = match[2]
        if name not in files_of(folder):
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        self._file(name, (folder / name).read_bytes(), commit)

    def _list(self, repo: str, rest: str) -> None:
        kind, _, revision = rest.partition("/")
        if kind == "tree":
            revision = revision.partition("/")[0]
        found = self.hub.folder(repo, revision or "main")
        if found is None:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        commit, folder = found
        siblings, tree = [], []
        for name, path in files_of(folder).items():
            content = path.read_bytes()
            oid, size = git_sha1(content), len(content)
            siblings.append({"rfilename": name, "size": size, "blobId": oid})
            tree.append({"type": "file", "path": name, "size": size, "oid": oid})
            if name.endswith(LARGE):
                lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 130}
                siblings[-1]["lfs"] = lfs
                tree[-1]["lfs"] = {"oid": lfs["sha256"], "size": size, "pointerSize": 130}
        answer = tree if kind == "tree" else {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, content: bytes, commit: str) -> None:
        size = len(content)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if name.endswith(LARGE):
            sha256 = hashlib.sha256(content).hexdigest()
            headers |= {"ETag": '"cdn"', "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(size)}
        else:
            headers["ETag"] = f'"{git_sha1(content)}"'
        if name in self.hub.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        broken = self.hub.broken.get(name) if self.command == "GET" else None
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if broken == "short":
            content = content[: size // 2]
        elif broken in ("once", "always"):
            if broken == "once":
                del self.hub.broken[name]
            return self._send(200, content[: size // 2], headers | {"Content-Length": str(size)}, close=True)
        if asked:
            start = int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
            return self._send(206, content[start:], headers)
        self._send(200, content, headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, close: bool = False) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, value)
        pause = next((s for ending, s in self.hub.drip.items() if urlsplit(self.path).path.endswith(ending)), None)
        if pause is not None and self.hub.drip_heads:
            self._drip(b"X-Slow: " + b"a" * 90_000, pause)
        self.end_headers()
        if self.command != "HEAD":
            if pause is None:
                self.wfile.write(body)
            else:
                self._drip(body, pause)
        self.close_connection = close

    def _drip(self, content: bytes, pause: float) -> None:
        self.flush_headers()
        try:
            for byte in content:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if self.hub.stopped.wait(pause):
                    return
        except OSError:
            self.close_connection = True
