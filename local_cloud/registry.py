"""Push and pull over the Docker registry protocol: real blobs and manifests in the emulator's ``/v2/``.

An ECR host name is reached at AWS_ENDPOINT_URL, with the name kept as Host header. The emulator's registry is open to
anyone, so the login that ECR would demand is demanded by ``docker.py``.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from email.message import Message

from local_cloud.docker_engine import ECR_HOST
from local_cloud.images import EngineError, digest

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def split_reference(reference: str) -> tuple[str, str, str]:
    """``host/repository:tag`` or ``host/repository@sha256:...`` as host, repository and tag or digest.

    Raises:
        EngineError: the host is not ECR's.
    """
    host, _, path = reference.partition("/")
    if not ECR_HOST.fullmatch(host):
        raise EngineError(f"Error response from daemon: the process engine reaches ECR only, not {host!r}")
    repository, _, wanted = path.partition("@" if "@" in path else ":")
    return host, repository, wanted


class Registry:
    """One ECR host."""

    def __init__(self, host: str) -> None:
        self._host = host

    def _call(self, method: str, path: str, body: bytes | None = None, kind: str = "") -> tuple[bytes, Message]:
        url = os.environ.get("AWS_ENDPOINT_URL", f"https://{self._host}").rstrip("/") + path
        headers = {"Host": self._host} | ({"Content-Type": kind} if kind else {})
        request = urllib.request.Request(url, data=body, method=method, headers=headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
                return response.read(), response.headers
        except urllib.error.HTTPError as error:
            raise EngineError(_sentence(error.code, error.read())) from None
        except OSError as error:
            raise EngineError(f'Error response from daemon: Get "https://{self._host}/v2/": {error}') from None

    def push(self, repository: str, tag: str, config: bytes, layer: bytes) -> str:
        """Upload what is missing, then the manifest; returns its digest."""
        for blob in (layer, config):
            self._upload(repository, blob)
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "size": len(config), "digest": digest(config)},
            "layers": [{"mediaType": LAYER_TYPE, "size": len(layer), "digest": digest(layer)}],
        }
        raw = json.dumps(manifest).encode()
        self._call("PUT", f"/v2/{repository}/manifests/{tag}", raw, MANIFEST_TYPE)
        return digest(raw)

    def _upload(self, repository: str, blob: bytes) -> None:
        try:
            self._call("HEAD", f"/v2/{repository}/blobs/{digest(blob)}")
        except EngineError:
            _, headers = self._call("POST", f"/v2/{repository}/blobs/uploads/", b"")
            location = urllib.parse.urlsplit(headers["Location"])
            query = f"{location.query}&" if location.query else ""
            self._call("PUT", f"{location.path}?{query}digest={digest(blob)}", blob, "application/octet-stream")

    def pull(self, repository: str, wanted: str) -> tuple[bytes, bytes, str]:
        """Config, layer and manifest digest; every blob is checked against its digest."""
        raw, _ = self._call("GET", f"/v2/{repository}/manifests/{wanted}")
        manifest = json.loads(raw)
        if wanted.startswith("sha256:") and digest(raw) != wanted:
            raise EngineError(f"manifest verification failed for digest {wanted}")
        if len(manifest["layers"]) != 1:
            raise EngineError("the process engine runs images that it built itself (one layer) only")
        config, layer = (self._blob(repository, item["digest"]) for item in (manifest["config"], *manifest["layers"]))
        return config, layer, digest(raw)

    def _blob(self, repository: str, wanted: str) -> bytes:
        blob, _ = self._call("GET", f"/v2/{repository}/blobs/{wanted}")
        if digest(blob) != wanted:
            raise EngineError(f"filesystem layer verification failed for digest {wanted}")
        return blob


def _sentence(status: int, body: bytes) -> str:
    try:
        error = json.loads(body)["errors"][0]
        return f"{str(error['code']).lower().replace('_', ' ')}: {error['message']}"
    except (ValueError, KeyError, IndexError):
        return f"received unexpected HTTP status: {status}"
