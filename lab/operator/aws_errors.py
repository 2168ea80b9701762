"""What AWS's refusals mean for the person at the keyboard: one sentence each, with what to do."""

from __future__ import annotations

from botocore import exceptions

FAILURES = (exceptions.BotoCoreError, exceptions.ClientError)
"""What ``sentence`` can explain."""

_SIGN_IN = "sign in again (`aws sso login`, or take new keys), then repeat the command"
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired")
_UNKNOWN_KEYS = ("InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_REFUSED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403")


def sentence(error: Exception, region: str | None) -> str:
    """``error`` as a sentence; ``region`` is the one that was asked."""
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return (
            "Unable to locate credentials: run `aws configure` or `aws sso login`, or set AWS_PROFILE, then check with "
            "`aws sts get-caller-identity`."
        )
    if isinstance(error, exceptions.ProfileNotFound):
        return f"{error}: see `aws configure list-profiles`, and set AWS_PROFILE to one of them."
    if isinstance(error, exceptions.SSOError | exceptions.TokenRetrievalError):
        return f"Your AWS session has expired: {_SIGN_IN}."
    if isinstance(error, exceptions.NoRegionError):
        return "No region is known: set `region` in lab.yaml, or AWS_REGION, or run `aws configure`."
    if isinstance(error, exceptions.EndpointConnectionError | exceptions.ConnectTimeoutError):
        return f"AWS does not answer in region {region}: check the network, and the spelling of the region."
    if isinstance(error, exceptions.ClientError):
        return _of_client(error, region)
    return str(error)


def _of_client(error: exceptions.ClientError, region: str | None) -> str:
    code, said = (error.response.get("Error", {}).get(key, "") for key in ("Code", "Message"))
    if code in _EXPIRED:
        return f"Your AWS credentials have expired: {_SIGN_IN}."
    if code in _UNKNOWN_KEYS:
        return (
            f"AWS does not know your credentials in region {region} ({code}): see `aws sts get-caller-identity`, and "
            "check AWS_PROFILE and the region."
        )
    if code in _REFUSED:
        return f"Your credentials may not do this ({error.operation_name}): {said}"
    return f"{error.operation_name} failed: {said or code}"
