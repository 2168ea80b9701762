"""Tokens from Secrets Manager, read by the process that uses them and kept in its memory only: never in the environment
(it is listed and inherited), on disk, or in a log. Standard library and boto3 only."""

from __future__ import annotations

import boto3


def read_secret(arn: str) -> str | None:
    """The secret's value without surrounding white space; None if nobody has filled it yet (with text), or it is gone.

    A refusal or an outage never reads as absent: it raises botocore's exception.
    """
    client = boto3.client("secretsmanager", region_name=arn.split(":")[3])
    try:
        value = client.get_secret_value(SecretId=arn).get("SecretString", "")
    except client.exceptions.ResourceNotFoundException:
        return None
    return str(value).strip() or None
