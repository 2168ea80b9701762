"""What the emulator lacks of CloudWatch: what a request is authorized on, and by which of its fields."""

from __future__ import annotations

import json
from typing import Any

import cbor2

from local_cloud.hooks import Module


def apply() -> None:
    """Apply every patch of this module.

    Raises:
        IncompatibleEmulatorError: a hook is missing.
    """
    logs_resource_is_the_stream()
    metrics_know_their_namespace()
    functions_bring_back_no_log_group()


def functions_bring_back_no_log_group() -> None:
    """Late output of a function whose own log group has been deleted is lost, as on AWS where its role may not create
    one (none of the lab's may); the emulator writes logs without asking the role."""
    functions = Module("ministack.services.lambda_svc")
    groups = Module("ministack.services.cloudwatch_logs").get("_log_groups")
    emit = functions.get("_emit_lambda_logs")

    def emit_lambda_logs(func: dict[str, Any], *arguments: Any, **options: Any) -> None:
        named = ((func.get("config") or func).get("LoggingConfig") or {}).get("LogGroup")
        if named is None or named in groups:
            emit(func, *arguments, **options)

    functions.replace("_emit_lambda_logs", emit_lambda_logs)


def logs_resource_is_the_stream() -> None:
    """A call that names a log stream is authorized on the stream, so that a policy on ``<group arn>:*`` admits it."""
    actions = Module("ministack.core.iam_actions")
    extract = actions.get("extract_resource_arn")

    def extract_resource_arn(service: str, method: str, path: str, headers: Any, body: bytes, *rest: Any) -> str:
        arn: str = extract(service, method, path, headers, body, *rest)
        if service != "logs" or ":log-group:" not in arn:
            return arn
        stream = json.loads(body).get("logStreamName")
        return f"{arn}:log-stream:{stream}" if isinstance(stream, str) else arn

    actions.replace("extract_resource_arn", extract_resource_arn)


def metrics_know_their_namespace() -> None:
    """The condition key ``cloudwatch:namespace`` of PutMetricData, in each of the three protocols it is spoken in."""
    actions = Module("ministack.core.iam_actions")
    tags_of = actions.get("request_tag_context")

    def context(service: str, action: str, body: bytes, params: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = tags_of(service, action, body, params)
        if action == "cloudwatch:PutMetricData":
            found = {**found, "cloudwatch:namespace": _namespace(body, params)}
        return found

    actions.replace("request_tag_context", context)


def _namespace(body: bytes, params: dict[str, Any]) -> str:
    """AWS takes the namespace of the request; one that cannot be read is nobody's."""
    query = params.get("Namespace")
    if query:
        return str(query[0] if isinstance(query, list) else query)
    try:
        fields = json.loads(body) if body[:1] == b"{" else cbor2.loads(body)
        return str(fields["Namespace"])
    except (ValueError, KeyError, TypeError, cbor2.CBORDecodeError):
        return ""
