"""What the product does with each permission of its roles: role -> Sid -> action -> a function that does it.

Where the product has code for it, that code runs here. A function raises if it is refused, and may be called twice.
"""

from __future__ import annotations

import base64
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import edge
import group
from image_digest import hold, pinned

from local_cloud.cloud import ACCOUNT, REGION, LocalCloud
from tests.support.runs import run_json
from training_image.core import contract, lineage
from training_image.core.store import Store
from training_image.storage import checkpoints
from training_image.storage.secrets import read_secret

NEXT_YEAR = datetime.now(UTC) + timedelta(days=365)
OTHER = contract.RunKeys("run-other-1")
"""A run of another stack."""
NEVER = "sha256:" + "0" * 64
SLEEP_USER_DATA = "IyEvYmluL3NoCmV4ZWMgc2xlZXAgNjAwMAo="  # a shell script that sleeps


class World:
    """Both deployed stacks, as the holder of a role sees them. ``boto3`` and the environment carry its credentials."""

    def __init__(
        self, cloud: LocalCloud, data: dict[str, str], training: dict[str, str], resources: dict[str, str]
    ) -> None:
        self.cloud, self.data, self.training, self._resources = cloud, data, training, resources
        self.group = training["AutoScalingGroupName"]
        self.prefix = training["RunPrefix"].split("/", 3)[3]
        self.suffix = self.prefix.removesuffix("-").rsplit("-", 1)[1]
        self.repository = data["RepositoryUri"].split("/", 1)[1]
        self.run_id = f"{self.prefix.removeprefix('runs/')}1"
        self.keys = contract.RunKeys(self.run_id)

    def physical(self, logical_id: str) -> str:
        """Name in the account of the one resource whose logical id starts so."""
        (found,) = [name for key, name in self._resources.items() if key.startswith(logical_id)]
        return found

    @property
    def outputs(self) -> Store:
        return Store(self.client("s3"), self.data["OutputsBucket"])

    @property
    def inputs(self) -> Store:
        return Store(self.client("s3"), self.data["TrainingBucket"])

    @staticmethod
    def client(service: str) -> Any:
        return boto3.client(service)

    def controller(self) -> edge.Controller:
        spec = {
            "group": self.group,
            "outputs_bucket": self.data["OutputsBucket"],
            "stack_suffix": self.suffix,
            "image": self.data["RepositoryUri"] + ":v1",
        }
        return edge.Controller(spec, lambda: 300_000)

    def group_of_controller(self) -> group.Group:
        return group.Group(self.group)

    # --- made by the administrator ------------------------------------------------------------------------------------
    def prepare(self) -> None:
        """Objects that are read, an image that is looked up, and groups of this and of another stack."""
        events = self.cloud.client("events")
        for rule in events.list_rules()["Rules"]:  # the real auto-terminator would act on what is made up here
            events.disable_rule(Name=rule["Name"])
        s3 = self.cloud.client("s3")
        s3.put_object(Bucket=self.data["TrainingBucket"], Key="data/train.jsonl", Body=b"{}")
        ended = {**run_json(run_id=self.run_id, request_id="request", spec={}), "reason": "failed"}
        for key in (
            contract.pointer_key(self.suffix),
            self.keys.run,
            f"{self.keys.checkpoints}x",
            f"{OTHER.prefix}x",
            OTHER.run,
            OTHER.outcome,
        ):
            s3.put_object(Bucket=self.data["OutputsBucket"], Key=key, Body=json.dumps(ended).encode())
        ecr = self.cloud.client("ecr")
        ecr.create_repository(repositoryName="somebody/else")
        manifest = json.dumps({"schemaVersion": 2, "config": {"digest": NEVER}, "layers": []})
        for name in (self.repository, "somebody/else"):
            ecr.put_image(repositoryName=name, imageManifest=manifest, imageTag="v1")
        s3.put_object(Bucket=self.host_files()[0], Key="another.zip", Body=b"")
        for name, suffix in (("own", self.suffix), ("foreign", "ffffffff")):
            self._group(name, suffix)

    def host_files(self) -> tuple[str, str]:
        """Bucket and key of the archive that the launch template's user data fetches."""
        (template,) = [name for name in self._resources.values() if name.startswith("lt-")]
        version = self.cloud.client("ec2").describe_launch_template_versions(
            LaunchTemplateId=template, Versions=["$Latest"]
        )["LaunchTemplateVersions"][0]
        script = base64.b64decode(version["LaunchTemplateData"]["UserData"]).decode()
        bucket, key = re.findall("^HOST_(?:BUCKET|KEY)='(.*)'$", script, re.MULTILINE)
        return bucket, key

    def _group(self, name: str, suffix: str) -> None:
        """A group of one instance that sleeps, tagged as the stack with ``suffix`` tags it."""
        tag = {"Key": contract.STACK_TAG, "Value": suffix}
        template = self.cloud.client("ec2").create_launch_template(
            LaunchTemplateName=name,
            LaunchTemplateData={
                "ImageId": "ami-0123456789abcdef0",
                "InstanceType": "g5.xlarge",
                "UserData": SLEEP_USER_DATA,
                "TagSpecifications": [{"ResourceType": "instance", "Tags": [tag]}],
            },
        )["LaunchTemplate"]
        self.cloud.client("autoscaling").create_auto_scaling_group(
            AutoScalingGroupName=name,
            MinSize=0,
            MaxSize=1,
            DesiredCapacity=0,
            AvailabilityZones=[f"{REGION}a"],
            LaunchTemplate={"LaunchTemplateId": template["LaunchTemplateId"], "Version": "$Latest"},
            Tags=[{**tag, "PropagateAtLaunch": True}],
        )

    def box_of(self, group: str) -> str:
        """Id of the instance in ``group``; launched if there is none."""
        autoscaling = self.cloud.client("autoscaling")

        def members() -> list[dict[str, Any]]:
            found = autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[group])["AutoScalingGroups"][0]
            return [item for item in found["Instances"] if item["LifecycleState"] == "InService"]

        if not members():
            autoscaling.update_auto_scaling_group(AutoScalingGroupName=group, MinSize=0, MaxSize=1, DesiredCapacity=1)
        for _ in range(600):
            if found := members():
                return str(found[0]["InstanceId"])
            time.sleep(0.05)
        raise AssertionError(f"no box in {group}")


Use = Callable[[World], Any]


# --- Auto Scaling, EC2 ------------------------------------------------------------------------------------------------
def terminate_in_group(w: World, group: str = "own") -> None:
    w.client("autoscaling").terminate_instance_in_auto_scaling_group(
        InstanceId=w.box_of(group), ShouldDecrementDesiredCapacity=True
    )


def resize(w: World, group: str = "own") -> None:
    w.client("autoscaling").update_auto_scaling_group(AutoScalingGroupName=group, MinSize=0, DesiredCapacity=0)


def complete_hook(w: World, group: str = "own") -> None:
    client = w.client("autoscaling")
    try:
        client.complete_lifecycle_action(
            AutoScalingGroupName=group,
            LifecycleHookName=contract.DRAIN_HOOK_NAME,
            InstanceId="i-0123456789abcdef0",
            LifecycleActionResult="CONTINUE",
        )
    except client.exceptions.ClientError as error:
        if error.response["Error"]["Code"] != "ValidationError":  # no such action under way: it was let through
            raise


def terminate(w: World, group: str = "own") -> None:
    w.client("ec2").terminate_instances(InstanceIds=[w.box_of(group)])


def host_files(w: World, key: str | None = None) -> None:
    bucket, own = w.host_files()
    w.client("s3").get_object(Bucket=bucket, Key=key or own)


# --- CloudWatch -------------------------------------------------------------------------------------------------------
# --- ECR --------------------------------------------------------------------------------------------------------------
def ecr(operation: str, **arguments: Any) -> Use:
    """A call of ``operation`` on the lab's repository; an image or layer that does not exist is no refusal."""

    def use(w: World, repository: str | None = None) -> None:
        client = w.client("ecr")
        try:
            getattr(client, operation)(repositoryName=repository or w.repository, **arguments)
        except client.exceptions.ClientError as error:
            if "AccessDenied" in error.response["Error"]["Code"]:
                raise

    return use


def activities(w: World) -> None:
    w.client("autoscaling").describe_scaling_activities(AutoScalingGroupName=w.group)


def publish(w: World, topic: str | None = None) -> None:
    w.client("sns").publish(TopicArn=topic or w.data["AlertTopicArn"], Message="a test")


def put_metric(w: World, namespace: str = contract.METRIC_NAMESPACE) -> None:
    w.client("cloudwatch").put_metric_data(Namespace=namespace, MetricData=[{"MetricName": "Loss", "Value": 1.0}])


def new_stream(logical_id: str) -> Use:
    """A stream of another name in the log group with this logical id."""
    return lambda w: w.client("logs").create_log_stream(
        logGroupName=w.physical(logical_id), logStreamName=uuid.uuid4().hex
    )


def log_line(logical_id: str) -> Use:
    def use(w: World) -> None:
        group, logs = w.physical(logical_id), w.cloud.client("logs")
        if not logs.describe_log_streams(logGroupName=group, logStreamNamePrefix="kept")["logStreams"]:
            logs.create_log_stream(logGroupName=group, logStreamName="kept")
        event = {"timestamp": int(time.time() * 1000), "message": "step 1"}
        w.client("logs").put_log_events(logGroupName=group, logStreamName="kept", logEvents=[event])

    return use


def logging_to(logical_id: str) -> dict[str, Use]:
    return {"logs:CreateLogStream": new_stream(logical_id), "logs:PutLogEvents": log_line(logical_id)}


def hold_image(w: World) -> None:
    hold(pinned(w.data["RepositoryUri"] + ":v1"), w.repository, w.run_id)


def log_in(w: World) -> None:
    w.client("ecr").get_authorization_token()


def assume(w: World) -> None:
    for kind in ("deploy", "file-publishing", "image-publishing", "lookup"):
        arn = f"arn:aws:iam::{ACCOUNT}:role/cdk-hnb659fds-{kind}-role-{ACCOUNT}-{REGION}"
        w.client("sts").assume_role(RoleArn=arn, RoleSessionName="test")


PULL = {
    "ecr:BatchCheckLayerAvailability": ecr("batch_check_layer_availability", layerDigests=[NEVER]),
    "ecr:BatchGetImage": ecr("batch_get_image", imageIds=[{"imageTag": "v1"}]),
    "ecr:GetDownloadUrlForLayer": ecr("get_download_url_for_layer", layerDigest=NEVER),
}
PUSH = {
    **PULL,
    "ecr:DescribeImages": ecr("describe_images", imageIds=[{"imageTag": "v1"}]),
    "ecr:InitiateLayerUpload": ecr("initiate_layer_upload"),
    "ecr:UploadLayerPart": ecr("upload_layer_part", uploadId="x", partFirstByte=0, partLastByte=0, layerPartBlob=b"x"),
    "ecr:CompleteLayerUpload": ecr("complete_layer_upload", uploadId="x", layerDigests=[NEVER]),
    "ecr:PutImage": ecr("put_image", imageManifest="{}", imageTag="v2"),
}

USES: dict[str, dict[str, dict[str, Use]]] = {
    "box": {
        "ReadsData": {"s3:GetObject": lambda w: w.inputs.read("data/train.jsonl")},
        "ListsData": {"s3:ListBucket": lambda w: w.inputs.list("data/")},
        "MirrorsModels": {"s3:PutObject": lambda w: w.inputs.put(f"{contract.HUB_MIRROR}models--a--b/refs/main", b"")},
        "ReadsOwnRuns": {"s3:GetObject": lambda w: w.outputs.read_json(contract.pointer_key(w.suffix))},
        "ReadsEarlierRuns": {"s3:GetObject": lambda w: list(lineage.ancestors(w.outputs, OTHER.run_id))},
        "WritesOwnRuns": {"s3:PutObject": lambda w: w.outputs.put_json(w.keys.heartbeat, {})},
        "PrunesOwnCheckpoints": {"s3:DeleteObject": lambda w: w.outputs.delete([f"{w.keys.checkpoints}x"])},
        "ListsRuns": {"s3:ListBucket": lambda w: checkpoints.published(w.outputs, w.keys)},
        "EndsItself": {
            "autoscaling:TerminateInstanceInAutoScalingGroup": terminate_in_group,
            "autoscaling:UpdateAutoScalingGroup": resize,
            "autoscaling:CompleteLifecycleAction": complete_hook,
        },
        "ReadsTokens": {"secretsmanager:GetSecretValue": lambda w: read_secret(w.data["HuggingFaceTokenSecretArn"])},
        "LogsInToRegistry": {"ecr:GetAuthorizationToken": log_in},
        "PullsImage": PULL,
        "ReadsHostFiles": {"s3:GetObject": host_files},
        "PutsMetrics": {"cloudwatch:PutMetricData": put_metric},
        "WritesTrainingLog": logging_to("ObservabilityTrainingLog"),
    },
    "controller": {
        "WritesOwnLog": logging_to("RunLog"),
        "Runs": {
            "s3:GetObject": lambda w: w.controller().current("request"),
            "s3:PutObject": lambda w: w.controller()._store.put_json(w.keys.control, {}),
        },
        # On AWS a key that is absent answers 403 to this role, and the list decides; here it answers 404 at once.
        "ListsRuns": {"s3:ListBucket": lambda w: lineage.run_ids(w.controller()._store)},
        "ReadsEarlierRuns": {"s3:GetObject": lambda w: w.controller()._store.read(OTHER.outcome)},
        "Scales": {
            "autoscaling:UpdateAutoScalingGroup": lambda w: w.group_of_controller().close(),
            "autoscaling:PutScheduledUpdateGroupAction": lambda w: w.group_of_controller().arm(NEXT_YEAR),
            "autoscaling:SuspendProcesses": lambda w: w.client("autoscaling").suspend_processes(
                AutoScalingGroupName=w.group, ScalingProcesses=["AZRebalance"]
            ),
        },
        "SeesGroups": {
            "autoscaling:DescribeAutoScalingGroups": lambda w: w.group_of_controller().instances(),
            "autoscaling:DescribeScalingActivities": activities,
        },
        "SendsAlerts": {"sns:Publish": publish},
        "PinsImage": {"ecr:DescribeImages": lambda w: pinned(w.data["RepositoryUri"] + ":v1")},
        "HoldsImage": {
            "ecr:BatchGetImage": hold_image,
            "ecr:PutImage": hold_image,
            "ecr:BatchDeleteImage": ecr("batch_delete_image", imageIds=[{"imageTag": "run-gone-1"}]),
        },
        "SeesRollback": {"cloudformation:DescribeStacks": lambda w: edge._rolling_back(w.training["StackId"])},
        "SpotRole": {"iam:CreateServiceLinkedRole": lambda w: group.ensure_spot_role()},
    },
    "terminator": {
        "WritesOwnLog": logging_to("SafetyLog"),
        "ReadsRuns": {"s3:GetObject": lambda w: w.outputs.read_json(w.keys.run)},
        "WritesOutcomes": {"s3:PutObject": lambda w: w.outputs.put_json(w.keys.outcome, {"reason": "failed"})},
        "ListsRuns": {"s3:ListBucket": lambda w: w.outputs.list(w.keys.prefix)},
        "SeesInstances": {
            "autoscaling:DescribeAutoScalingGroups": lambda w: w.group_of_controller().instances(),
            "autoscaling:DescribeScalingActivities": activities,
            "ec2:DescribeInstances": lambda w: w.client("ec2").describe_instances(),
        },
        "TakesCapacity": {"autoscaling:UpdateAutoScalingGroup": lambda w: resize(w, w.group)},
        "EndsInstances": {"ec2:TerminateInstances": terminate},
        "SendsAlerts": {"sns:Publish": publish},
    },
    "push": {"LogsInToRegistry": {"ecr:GetAuthorizationToken": log_in}, "PushesImages": PUSH},
    "deploy": {"AssumesBootstrapRoles": {"sts:AssumeRole": assume}},
}

ROLES = {
    "ComputeRole": "box",
    "RunRole": "controller",
    "SafetyRole": "terminator",
    "GithubPushRole": "push",
    "GithubDeployRole": "deploy",
}
"""What a role's logical id starts with -> its name here."""

UNTRIED = {
    ("box", "SessionManager"): "the emulator has no Session Manager; the actions are those that the SSM agent needs",
}
"""Statements that only AWS itself can exercise, with the reason. Kept as small as possible."""


def cases() -> Iterator[tuple[str, str, str]]:
    """Role, Sid and action of every use."""
    for role, statements in USES.items():
        for sid, actions in statements.items():
            for action in actions:
                yield role, sid, action


def table_of(documents: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Sid -> actions of the Allow statements of policy documents."""
    found: dict[str, set[str]] = {}
    for document in documents:
        for statement in document["Statement"]:
            if statement["Effect"] == "Allow":
                actions = statement["Action"]
                found[statement.get("Sid", "a statement without a Sid")] = set(
                    [actions] if isinstance(actions, str) else actions
                )
    return found
