"""As much of a model hub as huggingface_hub asks for: repositories of small files in memory, over HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit


class Hub(ThreadingHTTPServer):
    """Repositories by name: what is in them, and the paths of every commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.commits: list[tuple[str, list[str]]] = []
        self.unknown: list[str] = []

    @property
    def endpoint(self) -> str:
        """What ``HF_ENDPOINT`` is set to."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve an empty hub while the block runs."""
    with Hub() as hub:
        thread = Thread(target=hub.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        """Answer as GET, without a body."""
        self.do_GET()

    def do_GET(self) -> None:
        """Send a file, or what is known of a repository."""
        match urlsplit(self.path).path.strip("/").split("/"):
            case ["api", "models", owner, name, *rest] if f"{owner}/{name}" in self.server.files:
                files = self.server.files[f"{owner}/{name}"]
                entries = [{"type": "file", "path": path, "size": len(x), "oid": _sha(x)} for path, x in files.items()]
                siblings = [{"rfilename": path} for path in files]
                about = {"_id": "0", "id": f"{owner}/{name}", "sha": self._commit, "siblings": siblings, "tags": []}
                self._answer(entries if rest[:1] == ["tree"] else about)
            case [owner, name, "resolve", _, *path] if f"{owner}/{name}" in self.server.files:
                self._file(self.server.files[f"{owner}/{name}"].get("/".join(path)))
            case [owner, name, "resolve", *_] | ["api", "models", owner, name, *_]:
                self._answer({"error": f"no {owner}/{name}"}, 404, {"X-Error-Code": "RepoNotFound"})
            case _:
                self._unknown()

    def do_POST(self) -> None:
        """Create a repository, take files."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        match urlsplit(self.path).path.strip("/").split("/"):
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                repository = f"{asked.get('organization') or 'me'}/{asked['name']}"
                self.server.files.setdefault(repository, {})
                self._answer({"url": f"{self.server.endpoint}/{repository}", "name": repository})
            case ["api", "validate-yaml"]:
                self._answer({"errors": [], "warnings": []})
            case ["api", "models", _, _, "preupload", _]:
                paths = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
                self._answer({"files": modes})
            case ["api", "models", owner, name, "commit", _]:
                lines = [json.loads(line) for line in body.splitlines()]
                new = [line["value"] for line in lines if line["key"] == "file"]
                assert {line["key"] for line in lines} <= {"header", "file"}
                files = self.server.files[f"{owner}/{name}"]
                files.update({file["path"]: base64.b64decode(file["content"]) for file in new})
                self.server.commits.append((f"{owner}/{name}", sorted(file["path"] for file in new)))
                url = f"{self.server.endpoint}/{owner}/{name}/commit/{self._commit}"
                self._answer({"commitUrl": url, "commitOid": self._commit, "success": True})
            case _:
                self._unknown()

    @property
    def _commit(self) -> str:
        return f"{len(self.server.commits):040x}"

    def _file(self, content: bytes | None) -> None:
        if content is None:
            self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        else:
            self._send(content, 200, {"ETag": f'"{_sha(content)}"'})

    def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"X-Repo-Commit": self._commit, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _unknown(self) -> None:
        self.server.unknown.append(f"{self.command} {self.path}")
        self._answer({"error": "unknown"}, 404)


def _sha(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
