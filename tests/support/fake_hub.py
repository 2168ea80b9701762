"""The Hugging Face Hub on loopback, as far as its client asks for one model: description, access, tree, files."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_BYTES = 1000
"""Files from this size on are in Git LFS."""


def described(name: str, body: bytes) -> dict[str, Any]:
    """A file as the Hub describes it; LFS files have a Git blob too, that of their pointer."""
    blob = hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
    sha256 = hashlib.sha256(body).hexdigest()
    return {"name": name, "size": len(body), "blob": blob, "sha256": sha256 if len(body) >= LFS_BYTES else None}


class FakeHub:
    """One model, ``octo/model``. What a test may change: ``branches``, ``gated``, ``readers``, ``status``."""

    name = "octo/model"

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.gated = False
        self.readers: set[str] = set()
        self.status = 200
        self.seen: list[tuple[str, str, str | None]] = []
        """Method, path and Authorization of each request."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                token = self.headers.get("Authorization")
                path = unquote(urlsplit(self.path).path)
                hub.seen.append((self.command, path, token))
                status, headers, body = hub.answer(path, token)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """A new commit that ``branch`` is moved to."""
        sha = hashlib.sha1(repr(sorted(files.items())).encode(), usedforsecurity=False).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def fetched(self) -> list[str]:
        """Names of the files whose bytes were asked for."""
        return [path.split("/", 5)[5] for method, path, _ in self.seen if method == "GET" and "/resolve/" in path]

    def answer(self, path: str, token: str | None) -> tuple[int, dict[str, str], bytes]:
        if self.status != 200:
            return self.status, {}, b""
        readable = not self.gated or (token or "").removeprefix("Bearer ") in self.readers
        gated = 403 if token else 401, {"X-Error-Code": "GatedRepo"}, b""
        match path.strip("/").split("/"):
            case ["api", "models", "octo", "model", "auth-check"]:
                return (200, {}, b"{}") if readable else gated
            case ["api", "models", "octo", "model", "revision", revision]:
                return self._information(revision)
            case ["api", "models", "octo", "model", "tree", sha]:
                return (200, {}, json.dumps([self._entry(**item) for item in self._files(sha)]).encode())
            case ["octo", "model", "resolve", sha, *name]:
                body = self.commits[sha]["/".join(name)]
                item = described("", body)
                headers = {"X-Repo-Commit": sha, "ETag": f'"{item["sha256"] or item["blob"]}"'}
                return (200, headers, body) if readable else gated
        return 404, {"X-Error-Code": "RepoNotFound"}, b""

    def _information(self, revision: str) -> tuple[int, dict[str, str], bytes]:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        siblings = [
            {"rfilename": item["name"], "size": item["size"], "blobId": item["blob"]}
            | ({"lfs": {"sha256": item["sha256"], "size": item["size"], "pointerSize": 1}} if item["sha256"] else {})
            for item in self._files(sha)
        ]
        found = {"id": self.name, "sha": sha, "private": False, "siblings": siblings}
        return 200, {}, json.dumps({**found, "gated": "manual" if self.gated else False}).encode()

    def _files(self, sha: str) -> list[dict[str, Any]]:
        return [described(name, body) for name, body in self.commits[sha].items()]

    @staticmethod
    def _entry(name: str, size: int, blob: str, sha256: str | None) -> dict[str, Any]:
        lfs = {"lfs": {"oid": sha256, "size": size, "pointerSize": 1}} if sha256 else {}
        return {"type": "file", "path": name, "size": size, "oid": blob, **lfs}


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
