"""The instance metadata service (version 2): who this instance is, and whether it is about to be taken away."""

from __future__ import annotations

import json
import os

import urllib3

from training_image.supervisor.decisions import Cause, Stop

_DEFAULT_ENDPOINT = "http://169.254.169.254"
_TOKEN_SECONDS = 21600
_TIMEOUT_SECONDS = 2.0
_HTTP_OK = 200
_HTTP_UNAUTHORIZED = 401


class Imds:
    """An instance without the service, or one where it does not answer, has simply no news: nothing here raises."""

    def __init__(self, endpoint: str | None = None) -> None:
        given = endpoint or os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _DEFAULT_ENDPOINT
        self._base = given.rstrip("/") + "/latest/"
        self._http = urllib3.PoolManager(timeout=_TIMEOUT_SECONDS, retries=False)
        self._token: str | None = None

    def get(self, path: str) -> str | None:
        """Metadata at ``path``, e.g. ``instance-id``; None where there is none."""
        try:
            self._token = self._token or self._new_token()
            headers = {"X-aws-ec2-metadata-token": self._token}
            answer = self._http.request("GET", f"{self._base}meta-data/{path}", headers=headers)
        except (urllib3.exceptions.HTTPError, ConnectionError):
            return None
        if answer.status == _HTTP_UNAUTHORIZED:
            self._token = None  # expired: the next call takes a new one
        return answer.data.decode() if answer.status == _HTTP_OK else None

    def notice(self) -> Stop | None:
        """A spot interruption or a scale-in under way."""
        if action := self.get("spot/instance-action"):
            return Stop(Cause.NOTICE, f"spot interruption: {_action(action)}")
        if self.get("autoscaling/target-lifecycle-state") == "Terminated":
            return Stop(Cause.SCALE_IN, "the Auto Scaling group ends this instance")
        return None

    def rebalance_recommended(self) -> bool:
        """Whether AWS holds this spot instance more likely than others to be interrupted."""
        return self.get("events/recommendations/rebalance") is not None

    def _new_token(self) -> str:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
        answer = self._http.request("PUT", f"{self._base}api/token", headers=headers)
        if answer.status != _HTTP_OK:
            raise ConnectionError(f"no metadata token: status {answer.status}")
        return answer.data.decode()


def _action(body: str) -> str:
    try:
        notice = json.loads(body)
        return f"{notice['action']} at {notice['time']}"
    except (ValueError, KeyError, TypeError):
        return body
