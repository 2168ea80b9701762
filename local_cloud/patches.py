"""What the emulator lacks for this lab outside Auto Scaling and CloudFormation: ECR, EC2, SSM, IAM and the TLS flag.

Each function closes one gap (listed in docs/local-cloud.md) through hooks that are checked when it is applied.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs

from local_cloud import cloudformation_patches, events, observability_patches, zones
from local_cloud.hooks import Module

ACCOUNT = "000000000000"
SERVICE_LINKED_ROLES = {"spot.amazonaws.com": "AWSServiceRoleForEC2Spot"}
GPU_AMI_ID = "ami-0123456789abcdef0"
GPU_AMI_PARAMETERS = tuple(
    f"/aws/service/deeplearning/ami/x86_64/{name}/latest/ami-id"
    for name in (
        "base-oss-nvidia-driver-gpu-ubuntu-22.04",
        "base-oss-nvidia-driver-gpu-ubuntu-24.04",
        "base-oss-nvidia-driver-gpu-amazon-linux-2023",
    )
)


def apply() -> None:
    """Apply every patch of this module and of CloudFormation's.

    Raises:
        IncompatibleEmulatorError: a hook is missing.
    """
    ecr_absent_tag()
    ecr_delete_by_tag()
    ssm_gpu_images()
    ec2_instance_view()
    iam_resource_of_request()
    iam_resource_tags()
    iam_service_linked_roles()
    ecr_denial_names_the_repository()
    tls_everywhere()
    cloudformation_patches.apply()
    zones.apply()
    observability_patches.apply()
    events.apply()


def ecr_absent_tag() -> None:
    """DescribeImages of an absent tag is ImageNotFoundException; a 200 makes the CDK CLI skip the build."""
    ecr = Module("ministack.services.ecr")
    error = Module("ministack.core.responses").get("error_response_json")
    repositories, find, describe = ecr.get("_repositories"), ecr.get("_find_image"), ecr.get("_describe_images")

    def describe_images(data: dict[str, Any]) -> Any:
        name = data.get("repositoryName", "")
        for image in data.get("imageIds") or []:
            if name in repositories and not find(name, image):
                wanted = ", ".join(f"{key}:'{value}'" for key, value in image.items())
                message = f"The image with imageId {{{wanted}}} does not exist within the repository with name '{name}'"
                return error("ImageNotFoundException", message, 400)
        return describe(data)

    ecr.replace("_describe_images", describe_images)


def ecr_delete_by_tag() -> None:
    """BatchDeleteImage by tag takes the tag off; the image goes with its last one."""
    ecr = Module("ministack.services.ecr")
    find, delete = ecr.get("_find_image"), ecr.get("_batch_delete_image")

    def batch_delete_image(data: dict[str, Any]) -> Any:
        name, untagged, rest = data.get("repositoryName", ""), [], []
        for wanted in data.get("imageIds") or []:
            image, tag = find(name, wanted), wanted.get("imageTag")
            if "imageDigest" in wanted or image is None or image["imageTags"] == [tag]:
                rest.append(wanted)
                continue
            image["imageTags"].remove(tag)
            image["imageId"]["imageTag"] = image["imageTags"][-1]
            untagged.append({"imageDigest": image["imageDigest"], "imageTag": tag})
        status, headers, body = delete({**data, "imageIds": rest})
        if status != 200:
            return status, headers, body
        answer = json.loads(body)
        return status, headers, json.dumps({**answer, "imageIds": untagged + answer["imageIds"]}).encode()

    ecr.replace("_batch_delete_image", batch_delete_image)


def ssm_gpu_images() -> None:
    """The Deep Learning AMI's public parameters."""
    Module("ministack.services.ssm").get("_PUBLIC_AMI_PARAMETERS").update(dict.fromkeys(GPU_AMI_PARAMETERS, GPU_AMI_ID))


def ec2_instance_view() -> None:
    """DescribeInstances shows the spot lifecycle, DescribeInstanceAttribute the user data."""
    ec2 = Module("ministack.services.ec2")
    actions, instances, parameter, xml = (ec2.get(n) for n in ("_ACTION_MAP", "_instances", "_p", "_xml"))
    instance_xml, describe_attribute = ec2.get("_instance_xml"), actions["DescribeInstanceAttribute"]

    def with_lifecycle(instance: dict[str, Any]) -> str:
        text: str = instance_xml(instance)
        lifecycle = instance.get("InstanceLifecycle")
        return _before_last_item_end(text, f"<instanceLifecycle>{lifecycle}</instanceLifecycle>") if lifecycle else text

    def attribute(p: dict[str, Any]) -> Any:
        instance = instances.get(parameter(p, "InstanceId"))
        if not instance or parameter(p, "Attribute") != "userData":
            return describe_attribute(p)
        body = f"<instanceId>{instance['InstanceId']}</instanceId>"
        body += f"<userData><value>{instance.get('UserData', '')}</value></userData>"
        return xml(200, "DescribeInstanceAttributeResponse", body)

    ec2.replace("_instance_xml", with_lifecycle)
    actions["DescribeInstanceAttribute"] = attribute


def _before_last_item_end(text: str, addition: str) -> str:
    head, tail = text.rsplit("</item>", 1)
    return f"{head}{addition}</item>{tail}"


def iam_resource_of_request() -> None:
    """The resource a request is authorized on, where the emulator says ``*``: one described repository, and the group
    of the instance that an Auto Scaling call names."""
    actions = Module("ministack.core.iam_actions")
    extract, query = actions.get("extract_resource_arn"), actions.get("_query_param")
    repository_arn = Module("ministack.services.ecr").get("_repo_arn")
    groups = Module("ministack.services.autoscaling").get("_asgs")

    def extract_resource_arn(
        service: str, method: str, path: str, headers: Any, body: bytes, params: Any, region: str, account: str
    ) -> str:
        arn: str = extract(service, method, path, headers, body, params, region, account)
        if arn == "*" and service == "ecr":
            names = _json(body).get("repositoryNames") or []
            return str(repository_arn(names[0])) if len(names) == 1 else arn
        if arn == "*" and service == "autoscaling" and (instance := query(params, "InstanceId")):
            for group in list(groups.values()):
                if any(member["InstanceId"] == instance for member in group["Instances"]):
                    return str(group["AutoScalingGroupARN"])
        return arn

    actions.replace("extract_resource_arn", extract_resource_arn)


def _json(body: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(body or b"{}"))
    except ValueError:
        return {}


def iam_resource_tags() -> None:
    """``aws:ResourceTag`` and the services' own spelling, for EC2 instances and Auto Scaling groups."""
    evaluator = Module("ministack.core.iam_evaluator")
    enforce = evaluator.get("enforce")
    ec2_tags = Module("ministack.services.ec2").get("_tags")
    group_tags = Module("ministack.services.autoscaling").get("_tags")

    def tags_of(service: str, arn: str) -> list[dict[str, str]]:
        store = {"ec2": ec2_tags, "autoscaling": group_tags}.get(service)
        return list(store.get(arn.rsplit("/", 1)[-1], [])) if store is not None else []

    def enforce_with_tags(
        key: str, action: str, service: str, region: str, resource_arn: str = "*", service_context: Any = None
    ) -> Any:
        context = dict(service_context or {})
        for tag in tags_of(service, resource_arn):
            for prefix in ("aws", service):
                context[f"{prefix}:resourcetag/{tag['Key']}".lower()] = tag["Value"]
        return enforce(key, action, service, region, resource_arn=resource_arn, service_context=context)

    evaluator.replace("enforce", enforce_with_tags)


def iam_service_linked_roles() -> None:
    """iam:CreateServiceLinkedRole is authorized on the role's ARN, with ``iam:AWSServiceName`` as condition key."""
    actions, evaluator = Module("ministack.core.iam_actions"), Module("ministack.core.iam_evaluator")
    extract, enforce = actions.get("extract_resource_arn"), evaluator.get("enforce")
    path = ":role/aws-service-role/"

    def extract_resource_arn(service: str, method: str, url: str, headers: Any, body: bytes, *rest: Any) -> str:
        fields = parse_qs((body or b"").decode(errors="replace")) if service == "iam" else {}
        if fields.get("Action") == ["CreateServiceLinkedRole"]:
            name = fields["AWSServiceName"][0]
            return f"arn:aws:iam::{ACCOUNT}{path}{name}/{SERVICE_LINKED_ROLES.get(name, 'AWSServiceRole')}"
        return str(extract(service, method, url, headers, body, *rest))

    def enforce_with_service(
        key: str, action: str, service: str, region: str, resource_arn: str = "*", service_context: Any = None
    ) -> Any:
        context = dict(service_context or {})
        if action == "iam:CreateServiceLinkedRole" and path in resource_arn:
            context["iam:awsservicename"] = resource_arn.split(path)[1].split("/")[0]
        return enforce(key, action, service, region, resource_arn=resource_arn, service_context=context)

    actions.replace("extract_resource_arn", extract_resource_arn)
    evaluator.replace("enforce", enforce_with_service)
    iam = Module("ministack.services.iam")
    handlers, error = iam.get("_IAM_HANDLERS"), iam.get("_error")
    create = handlers["CreateServiceLinkedRole"]

    def create_service_linked_role(p: dict[str, Any]) -> Any:
        status, headers, body = create(p)
        if b"EntityAlreadyExists" in body:
            return error(400, "InvalidInput", "Service role name has been taken in this account.", ns="iam")
        return status, headers, body

    handlers["CreateServiceLinkedRole"] = create_service_linked_role


def ecr_denial_names_the_repository() -> None:
    """A refused ECR call names its resource, as on AWS: the name says which stack is missing."""
    actions = Module("ministack.core.iam_actions")
    respond, sentence = actions.get("access_denied_response"), actions.get("identity_denial_message")

    def denial(service: str, action: str, principal: str, *rest: Any, **named: Any) -> Any:
        arn = named.get("resource_arn", "*")
        if service == "ecr" and arn != "*" and not named.get("message") and not named.get("error_code"):
            named["message"] = sentence(action, principal, arn, named.get("explicit_deny", False))
        return respond(service, action, principal, *rest, **named)

    actions.replace("access_denied_response", denial)


def tls_everywhere() -> None:
    """Requests count as TLS (``aws:SecureTransport``), so that TLS-only bucket policies can be deployed on loopback."""
    app = Module("ministack.app")
    pin = app.get("pin_request_origin")

    def pin_as_secure(source_ip: str, secure_transport: bool) -> Any:
        return pin(source_ip, True)

    app.replace("pin_request_origin", pin_as_secure)
