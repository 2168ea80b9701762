"""Faults on demand, always from outside: the instance, the image and the Lambdas have no switch for any of them.

The emulator's gateway gets one more path, ``/_lab/faults``, that takes a fault as JSON; S3's share of the faults is
done to requests on their way in. Only callers other than the operator's own key meet them.
"""

from __future__ import annotations

import asyncio
import json
import re
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from local_cloud import clock
from training_image.core.errors import UserError

if TYPE_CHECKING:  # the client's side has no emulator
    from local_cloud.autoscaling import Engine
    from local_cloud.runner import Runner

PATH = "/_lab/faults"
OPERATOR_KEY = "test"
NOTICE_SECONDS = 120.0
"""Between a spot interruption's notice and its end."""
_CREDENTIAL = re.compile(r"Credential=([^/]+)/[^/]+/[^/]+/([^/]+)/aws4_request")
_UNAVAILABLE = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class UnknownFaultError(UserError, ValueError):
    """What was asked for does not exist; one sentence."""


@dataclass
class S3Fault:
    """What happens to S3 requests of instances and Lambdas. Zero values do nothing."""

    refuse: bool = False
    """503 SlowDown, to every request."""
    drop_uploads: bool = False
    """The connection ends in the middle of an upload's body."""
    latency_seconds: float = 0.0
    bytes_per_second: float = 0.0
    """Of each upload's body; 0: as fast as the machine can."""
    only_keys_with: str = ""
    """Only requests whose path contains this."""


class Faults:
    """The faults in effect."""

    def __init__(self, engine: Engine, runner: Runner) -> None:
        self._engine, self._runner = engine, runner
        self.s3 = S3Fault()

    def around(self, inner: Any) -> Any:
        """The gateway ``inner`` with the faults in front of it."""

        async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"] == PATH:
                await self._answer(receive, send)
            elif scope["type"] == "http" and self._hits(scope):
                await self._disturb(inner, scope, receive, send)
            else:
                await inner(scope, receive, send)

        return app

    # --- what can be asked for --------------------------------------------------------------------------------------
    def apply(self, request: dict[str, Any]) -> None:
        """``{"fault": name, ...}``.

        Raises:
            UnknownFaultError: no such fault or instance.
            ClockError: clocks cannot be moved on this machine.
        """
        match request:
            case {"fault": "no-capacity", "on": bool(on)}:
                self._engine.capacity = not on
            case {"fault": "kill", "instance": str(instance)}:
                self._known(instance)
                self._runner.kill(instance)
            case {"fault": "interrupt", "instance": str(instance), "seconds": int() | float() as seconds}:
                self._known(instance)
                self._runner.interrupt(instance, float(seconds))
            case {"fault": "movable-clocks", "on": bool(on)}:
                self._runner.preloaded = clock.preload(self._runner.state) if on else ""
            case {"fault": "clock", "instance": str(instance), "seconds": int() | float() as seconds}:
                self._known(instance)
                self._move_clock(instance, float(seconds))
            case {"fault": "s3", "settings": dict(settings)}:
                try:
                    self.s3 = S3Fault(**settings)
                except TypeError as error:
                    raise UnknownFaultError(str(error)) from None
            case _:
                raise UnknownFaultError(f"There is no fault {request!r}.")

    def _known(self, instance: str) -> None:
        if not self._runner.is_running(instance):
            raise UnknownFaultError(f"There is no running instance {instance!r}.")

    def _move_clock(self, instance: str, seconds: float) -> None:
        box = self._runner.state / "boxes" / instance
        if not clock.is_movable(box):
            raise UnknownFaultError(f"The clock of {instance} stands fast: it started without movable-clocks.")
        clock.move(box, seconds)

    # --- requests -----------------------------------------------------------------------------------------------------
    async def _answer(self, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        status, text = 200, ""
        try:
            await asyncio.to_thread(self.apply, json.loads(body))
        except ValueError as error:
            status, text = 400, str(error)
        await _respond(send, status, text.encode())

    def _hits(self, scope: dict[str, Any]) -> bool:
        if self.s3 == S3Fault() or self.s3.only_keys_with not in scope["path"]:
            return False
        headers = dict(scope["headers"])
        found = _CREDENTIAL.search(headers.get(b"authorization", b"").decode())
        return found is not None and found[1] != OPERATOR_KEY and found[2] == "s3"

    async def _disturb(self, inner: Any, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        fault = self.s3
        await asyncio.sleep(fault.latency_seconds)
        if fault.drop_uploads and scope["method"] in ("PUT", "POST"):
            await receive()
            # The gateway closes the connection of an answer that is shorter than it promised.
            await send({"type": "http.response.start", "status": 500, "headers": [(b"content-length", b"999")]})
            raise ConnectionAbortedError("fault: the connection ends in the middle of an upload")
        if fault.refuse:
            while (await receive()).get("more_body"):
                pass
            await _respond(send, 503, _UNAVAILABLE)
            return

        async def slowly() -> dict[str, Any]:
            message = await receive()
            if fault.bytes_per_second:
                await asyncio.sleep(len(message.get("body", b"")) / fault.bytes_per_second)
            return message

        await inner(scope, slowly, send)


async def _respond(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def ask(endpoint: str, request: dict[str, Any]) -> None:
    """Client's side: put a fault into effect at a running cloud.

    Raises:
        UnknownFaultError: the cloud refused it, in its words.
    """
    body = json.dumps(request).encode()
    call = urllib.request.Request(endpoint + PATH, data=body, method="POST")  # noqa: S310 loopback
    try:
        urllib.request.urlopen(call, timeout=30).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        raise UnknownFaultError(error.read().decode()) from None
