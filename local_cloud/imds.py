"""The instance metadata service of one instance: IMDSv2 only, on its own port of 127.0.0.1."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN_HEADER = "x-aws-ec2-metadata-token"  # noqa: S105
TTL_HEADER = "x-aws-ec2-metadata-token-ttl-seconds"
MAX_TTL = 21600

Lookup = Callable[[str], str | None]
"""Text of a path below ``/latest/``, or None for 404."""


class Tokens:
    """Session tokens with their expiry."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._expiry = clock, dict[str, float]()

    def issue(self, ttl: int) -> str:
        token = secrets.token_urlsafe(32)
        self._expiry[token] = self._clock() + ttl
        return token

    def valid(self, token: str) -> bool:
        return self._expiry.get(token, 0.0) > self._clock()


def respond(method: str, path: str, headers: Mapping[str, str], tokens: Tokens, lookup: Lookup) -> tuple[int, str]:
    """Status and body of one request, as EC2 answers it."""
    given = {name.lower(): value for name, value in headers.items()}
    if method == "PUT" and path == "/latest/api/token":
        ttl = given.get(TTL_HEADER, "")
        if not ttl.isdigit() or not 1 <= int(ttl) <= MAX_TTL:
            return 400, "Bad Request"
        return 200, tokens.issue(int(ttl))
    if method != "GET":
        return 405, "Method Not Allowed"
    if not tokens.valid(given.get(TOKEN_HEADER, "")):
        return 401, "Unauthorized"
    text = lookup(path.removeprefix("/latest/").rstrip("/"))
    return (404, "Not Found") if text is None else (200, text)


class Metadata:
    """A running metadata service; ``close()`` ends it."""

    def __init__(self, lookup: Lookup) -> None:
        tokens = Tokens()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                status, text = respond(self.command, self.path, dict(self.headers), tokens, lookup)
                body = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_POST = _answer

            def log_message(self, format: str, *args: object) -> None:
                pass  # a poll every few seconds says nothing

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True, name="imds").start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
