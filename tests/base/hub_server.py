"""A Hugging Face hub on this machine: the routes that the real client asks, over local folders."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants, file_download


@dataclass
class Hub:
    """What the hub holds and how it behaves; change it while it runs.

    Attributes:
        commits: per repository its folders by commit, the last one being ``main``.
        refusal: status and ``X-Error-Code`` that every route of a repository answers with.
        closed: the same, of its files alone.
        awake: unset, nothing is answered.
        cut_after: bytes after which a weights file's connection is closed.
        asked: what was asked, ``METHOD /path``.
        endpoint: ``http://127.0.0.1:PORT``.
    """

    commits: dict[str, dict[str, Path]] = field(default_factory=dict)
    refusal: dict[str, tuple[int, str]] = field(default_factory=dict)
    closed: dict[str, tuple[int, str]] = field(default_factory=dict)
    cut_after: int | None = None
    awake: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)
    endpoint: str = ""

    def push(self, repo: str, folder: Path) -> str:
        """Make ``folder`` the newest commit of ``repo``; return the commit."""
        commit = hashlib.sha1(str(folder).encode()).hexdigest()
        self.commits.setdefault(repo, {})[commit] = folder
        return commit

    def replace_the_real_one(self, patch: pytest.MonkeyPatch, cache: Path) -> None:
        """Let the client of this process ask here, and keep what it gets under ``cache``."""
        patch.setattr(constants, "ENDPOINT", self.endpoint)
        template = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(file_download.time, "sleep", lambda seconds: None)  # between its retries

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Answer nothing within the block."""
        self.awake.clear()
        try:
            yield
        finally:
            self.awake.set()


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve an empty hub until the block ends."""
    hub = Hub()
    hub.awake.set()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *args: None  # type: ignore[method-assign]  # a client that left
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.hub.awake.wait()
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models").strip("/").split("/")
        repo, rest = "/".join(parts[:2]), parts[2:]
        if repo in self.hub.refusal:
            return self._refuse(*self.hub.refusal[repo])
        if repo not in self.hub.commits:
            return self._refuse(401, "RepoNotFound")  # what the hub says to the anonymous
        commits = self.hub.commits[repo]
        revision = rest[1] if len(rest) > 1 else "main"
        commit = list(commits)[-1] if revision == "main" else revision
        if commit not in commits:
            return self._refuse(404, "RevisionNotFound")
        if api:
            return self._api(repo, commit, commits[commit], tree=rest[:1] == ["tree"])
        if repo in self.hub.closed:
            return self._refuse(*self.hub.closed[repo])
        file = commits[commit].joinpath(*rest[2:])
        if not file.is_file():
            return self._refuse(404, "EntryNotFound")
        return self._file(commit, file)

    def _api(self, repo: str, commit: str, folder: Path, tree: bool) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
        value: Any = {"id": repo, "sha": commit, "siblings": [{"rfilename": n} for n in names]}
        if tree:
            value = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": _etag(file)}
                for name, file in zip(names, files, strict=True)
            ]
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, commit: str, file: Path) -> None:
        content = file.read_bytes()
        start = int(self.headers.get("Range", "bytes=0-")[len("bytes=") :].split("-")[0])
        headers = {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.hub.cut_after if file.suffix == ".safetensors" else None
        self._send(206 if start else 200, content[start:], headers, cut)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
