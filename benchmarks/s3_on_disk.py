"""An S3 that is quick enough to measure uploads against: bodies go from the socket to a file, and nothing is checked.

The emulator of the tests takes some 110 MB/s, less than an instance's network. This one answers what boto3 and the
AWS CLI ask when they upload, list, read and delete; its link can be narrowed, and it serves the instance metadata
too, so that an interruption's notice comes from the same clock.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_CHUNK = 1 << 18
_ETAG = '"00000000000000000000000000000000"'


class Link:
    """A network of so many bytes per second, shared by all who send; 0: no limit."""

    def __init__(self, bytes_per_second: float = 0.0) -> None:
        self.bytes_per_second = bytes_per_second
        self._free_at = 0.0
        self._lock = threading.Lock()

    def carry(self, size: int) -> None:
        if not self.bytes_per_second:
            return
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + size / self.bytes_per_second
            wait = self._free_at - time.monotonic()
        time.sleep(max(0.0, wait))


class S3(ThreadingHTTPServer):
    """Serves on loopback once entered; any bucket exists. ``metadata``: what IMDS answers below ``meta-data/``."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.link = Link()
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.metadata: dict[str, str] = {}
        self.objects: dict[str, list[Path]] = {}  # "<bucket>/<key>": the files that make it up
        self.parts: dict[tuple[str, int], Path] = {}
        self.changed = threading.Condition()
        self._numbers = itertools.count()

    def __enter__(self) -> S3:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def receive(self, body: BinaryIO, size: int) -> Path:
        """A body on its way to the disk."""
        path = self.folder / str(next(self._numbers))
        with path.open("wb") as file:
            while size:
                chunk = body.read(min(size, _CHUNK))
                if not chunk:
                    raise ConnectionError("the client left in the middle of a body")
                size -= len(chunk)
                self.link.carry(len(chunk))
                file.write(chunk)
        return path

    def store(self, name: str, parts: list[Path]) -> None:
        with self.changed:
            self.objects[name] = parts
            self.changed.notify_all()

    def size(self, name: str) -> int:
        return sum(part.stat().st_size for part in self.objects[name])

    def clear(self) -> None:
        """Forget everything, and free the disk."""
        self.objects.clear()
        self.parts.clear()
        shutil.rmtree(self.folder)
        self.folder.mkdir()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    rbufsize = _CHUNK
    server: S3

    @property
    def _name(self) -> str:
        return unquote(urlsplit(self.path).path).lstrip("/")

    @property
    def _query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query, keep_blank_values=True)

    def do_PUT(self) -> None:
        if self._name == "latest/api/token":
            return self._answer(200, b"token")
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            return self._answer(501, b"bodies in signed chunks are not understood here")
        if self.headers.get("If-None-Match") and self._name in self.server.objects:
            self.rfile.read(int(self.headers["Content-Length"]))
            return self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        path = self.server.receive(self.rfile, int(self.headers["Content-Length"]))
        if "partNumber" in self._query:
            self.server.parts[self._query["uploadId"][0], int(self._query["partNumber"][0])] = path
        else:
            self.server.store(self._name, [path])
        return self._answer(200, etag=True)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "uploads" in self._query:
            upload = str(time.monotonic_ns())
            return self._answer(200, f"<R><UploadId>{upload}</UploadId></R>".encode())
        if "uploadId" in self._query:
            upload = self._query["uploadId"][0]
            mine = sorted(item for item in self.server.parts if item[0] == upload)
            self.server.store(self._name, [self.server.parts.pop(item) for item in mine])
            return self._answer(200, f"<R><ETag>{_ETAG}</ETag></R>".encode())
        bucket = self._name.rstrip("/")  # a multi-object delete
        for tail in body.decode().split("<Key>")[1:]:
            for part in self.server.objects.pop(f"{bucket}/{tail.split('</Key>')[0]}", []):
                part.unlink()
        return self._answer(200, b"<DeleteResult/>")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self._name.startswith("latest/meta-data/"):
            fact = self.server.metadata.get(self._name.removeprefix("latest/meta-data/"))
            return self._answer(404 if fact is None else 200, (fact or "").encode())
        if "list-type" in self._query:
            return self._answer(200, self._listing(self._name.rstrip("/"), self._query.get("prefix", [""])[0]))
        if self._name not in self.server.objects:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        return self._send(self.server.objects[self._name])

    def _send(self, parts: list[Path]) -> None:
        """The files one after the other, or the range of them that is asked for, from the disk to the socket."""
        whole = self.server.size(self._name)
        first, last = 0, whole - 1
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or last), last)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(last - first + 1))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{whole}")
        self.send_header("ETag", _ETAG)
        self.send_header("Last-Modified", self.date_time_string())
        self.end_headers()
        for part in parts if self.command != "HEAD" else ():
            size = part.stat().st_size
            begin, end = max(first, 0), min(last + 1, size)
            with part.open("rb") as file:
                while begin < end:
                    begin += os.sendfile(self.connection.fileno(), file.fileno(), begin, end - begin)
            first, last = first - size, last - size

    def _listing(self, bucket: str, prefix: str) -> bytes:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        names = sorted(name for name in self.server.objects if name.startswith(f"{bucket}/{prefix}"))
        lines = [
            f"<Contents><Key>{escape(name.removeprefix(f'{bucket}/'))}</Key><LastModified>{now}</LastModified>"
            f"<ETag>{_ETAG}</ETag><Size>{self.server.size(name)}</Size></Contents>"
            for name in names
        ]
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(lines)}</ListBucketResult>".encode()

    def _answer(self, status: int, body: bytes = b"", *, etag: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if etag:
            self.send_header("ETag", _ETAG)
            self.send_header("Last-Modified", self.date_time_string())
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def environment(server: S3) -> dict[str, str]:
    """What a process needs to take ``server`` for AWS.

    Bodies are not signed: over HTTPS neither boto3 nor the AWS CLI does that, over HTTP both would.
    """
    config = server.folder.parent / "aws-config"
    config.write_text("[default]\ns3 =\n    payload_signing_enabled = false\n")
    return {
        "AWS_CONFIG_FILE": str(config),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": server.endpoint,
    }


def put_json(server: S3, name: str, value: Any) -> None:
    """An object made by hand."""
    path = server.folder / f"by-hand-{len(server.objects)}"
    path.write_text(json.dumps(value))
    server.store(name, [path])
