"""What the emulator lacks for this lab outside Auto Scaling, CloudFormation and IAM.

Each function closes one gap (listed in docs/local-cloud.md) by replacing a private part of the emulator, which has the
expected version: ``cloud.py`` starts no other.
"""

from __future__ import annotations

import json
from typing import Any

from ministack.core.responses import error_response_json
from ministack.services import cloudwatch, cloudwatch_logs, ec2, ecr, eventbridge, iam, lambda_svc, ssm, sts

GPU_AMI_ID = "ami-0123456789abcdef0"
GPU_AMI_PARAMETERS = tuple(
    f"/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-{system}/latest/ami-id"
    for system in ("ubuntu-22.04", "ubuntu-24.04", "amazon-linux-2023")
)


def apply() -> None:
    """Apply every patch of this module."""
    ecr_absent_tag()
    ecr_delete_by_tag()
    ssm._PUBLIC_AMI_PARAMETERS.update(dict.fromkeys(GPU_AMI_PARAMETERS, GPU_AMI_ID))
    spot_lifecycle()
    alarms_call_functions()
    functions_bring_back_no_log_group()
    web_identity_needs_its_provider()


def ecr_absent_tag() -> None:
    """DescribeImages of an absent tag is ImageNotFoundException; a 200 makes the CDK CLI skip the build."""
    describe = ecr._describe_images

    def describe_images(data: dict[str, Any]) -> Any:
        name = data.get("repositoryName", "")
        for image in data.get("imageIds") or []:
            if name in ecr._repositories and not ecr._find_image(name, image):
                wanted = ", ".join(f"{key}:'{value}'" for key, value in image.items())
                message = f"The image with imageId {{{wanted}}} does not exist within the repository with name '{name}'"
                return error_response_json("ImageNotFoundException", message, 400)
        return describe(data)

    ecr._describe_images = describe_images


def ecr_delete_by_tag() -> None:
    """BatchDeleteImage by tag takes the tag off; the image goes with its last one."""
    delete = ecr._batch_delete_image

    def batch_delete_image(data: dict[str, Any]) -> Any:
        name, untagged, rest = data.get("repositoryName", ""), [], []
        for wanted in data.get("imageIds") or []:
            image, tag = ecr._find_image(name, wanted), wanted.get("imageTag")
            if "imageDigest" in wanted or image is None or image["imageTags"] == [tag]:
                rest.append(wanted)
                continue
            image["imageTags"].remove(tag)
            image["imageId"]["imageTag"] = image["imageTags"][-1]
            untagged.append({"imageDigest": image["imageDigest"], "imageTag": tag})
        status, headers, body = delete({**data, "imageIds": rest})
        if status == 200:
            answer = json.loads(body)
            body = json.dumps({**answer, "imageIds": untagged + answer["imageIds"]}).encode()
        return status, headers, body

    ecr._batch_delete_image = batch_delete_image


def spot_lifecycle() -> None:
    """DescribeInstances says which instances are spot instances."""
    profile = ec2._inst_iam_xml  # an optional element of each instance; this is another one

    def with_lifecycle(instance: dict[str, Any]) -> str:
        lifecycle = instance.get("InstanceLifecycle")
        element = f"<instanceLifecycle>{lifecycle}</instanceLifecycle>" if lifecycle else ""
        return f"{profile(instance)}{element}"

    ec2._inst_iam_xml = with_lifecycle


def alarms_call_functions() -> None:
    """An alarm's action may be a function; the emulator knows topics only."""
    dispatch = cloudwatch._dispatch_alarm_actions

    def with_functions(alarm: dict[str, Any], old_state: str, new_state: str, reason: str) -> None:
        dispatch(alarm, old_state, new_state, reason)
        if new_state != "ALARM" or not alarm.get("ActionsEnabled", True):
            return
        payload = {
            "source": "aws.cloudwatch",
            "alarmArn": alarm.get("AlarmArn"),
            "alarmData": {"alarmName": alarm.get("AlarmName"), "state": {"value": new_state, "reason": reason}},
        }
        for arn in alarm.get("AlarmActions") or []:
            if ":lambda:" in arn:
                eventbridge._dispatch_to_lambda(arn, json.dumps(payload))

    cloudwatch._dispatch_alarm_actions = with_functions


def functions_bring_back_no_log_group() -> None:
    """Late output of a function whose own log group has been deleted is lost, as on AWS where its role may not create
    one (none of the lab's may); the emulator writes logs without asking the role."""
    emit = lambda_svc._emit_lambda_logs

    def emit_lambda_logs(func: dict[str, Any], *arguments: Any, **options: Any) -> None:
        named = ((func.get("config") or func).get("LoggingConfig") or {}).get("LogGroup")
        if named is None or named in cloudwatch_logs._log_groups:
            emit(func, *arguments, **options)

    lambda_svc._emit_lambda_logs = emit_lambda_logs


def web_identity_needs_its_provider() -> None:
    """STS refuses a token whose issuer is no provider of the account, or whose audience that provider does not list.
    (Signature and expiry stay unchecked: GitHub's keys are out of reach.)"""
    denied = sts._web_identity_trust_denied

    def trust_denied(role_arn: str, params: dict[str, Any], use_json: bool) -> Any:
        token, provider = sts._p(params, "WebIdentityToken"), sts._p(params, "ProviderId")
        arn, claims = sts._web_identity_principal(token, provider, role_arn)
        host = arn.rsplit("oidc-provider/", 1)[-1]
        if arn not in iam._oidc_providers:
            message = f"No OpenIDConnect provider found in your account for https://{host}"
            return sts._error(400, "InvalidIdentityToken", message, ns="sts")
        if claims.get(f"{host}:aud") not in iam._oidc_providers[arn]["ClientIDList"]:
            return sts._error(400, "InvalidIdentityToken", "Incorrect token audience", ns="sts")
        return denied(role_arn, params, use_json)

    sts._web_identity_trust_denied = trust_denied
