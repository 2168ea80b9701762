"""The run controller's surroundings in memory: S3, Auto Scaling, ECR, SNS, and CloudFormation's way to ask."""

import io
import json
from datetime import UTC, datetime

import edge
from botocore.exceptions import ClientError

from training_image.core import contract

SPEC = {
    "lab": "default",
    "stack_name": "TrainingStack",
    "deploy_command": "cdk deploy TrainingStack",
    "destroy_command": "cdk destroy TrainingStack",
    "stack_suffix": "1a2b3c4d",
    "run_name": "run",
    "region": "us-west-2",
    "group": "group-1",
    "create_instance": True,
    "new_run": None,
    "resume": None,
    "use_spot": True,
    "instance_types": ["g5.xlarge"],
    "gpus": 1,
    "max_runtime_hours": 2,
    "max_attempts": 5,
    "auto_shutdown": True,
    "training_command": None,
    "image": "1.dkr.ecr.us-west-2.amazonaws.com/lab/images:v1",
    "training_bucket": "in",
    "outputs_bucket": "out",
    "log_group": "training-log",
    "alert_topic": "arn:aws:sns:us-west-2:1:alerts",
    "usd_per_hour": 1.006,
    "secrets": {"hugging_face": "arn:aws:secretsmanager:us-west-2:1:secret:token"},
    "data_uri": "s3://in/data/",
    "settings": {"training": {"seed": 1}},
}


def refused(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": code}}, "call")


class FakeS3:
    def __init__(self):
        self.objects: dict[str, bytes] = {}

    def get_object(self, Bucket, Key):
        if Key not in self.objects:
            raise refused("AccessDenied")  # what S3 answers where listing is limited by prefix
        return {"Body": io.BytesIO(self.objects[Key]), "ETag": str(hash(self.objects[Key]))}

    def get_paginator(self, operation):
        assert operation == "list_objects_v2"
        return self

    def paginate(self, Bucket, Prefix, Delimiter=None):
        found = [key for key in self.objects if key.startswith(Prefix)]
        if Delimiter:
            folders = {Prefix + key.removeprefix(Prefix).split(Delimiter)[0] + Delimiter for key in found}
            return [{"CommonPrefixes": [{"Prefix": folder} for folder in sorted(folders)]}]
        return [
            {"Contents": [{"Key": key, "Size": 1, "LastModified": datetime.now(UTC), "ETag": "e"} for key in found]}
        ]

    def put_object(self, Bucket, Key, Body, IfNoneMatch=None, IfMatch=None):
        if IfNoneMatch and Key in self.objects:
            raise refused("PreconditionFailed")
        if IfMatch and IfMatch != str(hash(self.objects[Key])):
            raise refused("PreconditionFailed")
        self.objects[Key] = Body

    def runs(self):
        return {key: body for key, body in self.objects.items() if key.startswith("runs/")}

    def json(self, key):
        return json.loads(self.objects[key])


class FakeAutoScaling:
    def __init__(self):
        self.group = {"MinSize": 0, "MaxSize": 0, "DesiredCapacity": 0, "Instances": []}
        self.actions: list[dict] = []
        self.suspended: list[str] = []
        self.fails = False

    def describe_auto_scaling_groups(self, AutoScalingGroupNames):
        return {"AutoScalingGroups": [self.group]}

    def update_auto_scaling_group(self, AutoScalingGroupName, **sizes):
        if self.fails:
            raise refused("Throttling")
        self.group.update(sizes)
        if sizes["DesiredCapacity"] == 0:
            self.group["Instances"] = []

    def put_scheduled_update_group_action(self, **action):
        self.actions.append(action)

    def get_paginator(self, operation):
        assert operation == "describe_scaling_activities"
        return self

    def paginate(self, AutoScalingGroupName):
        return [{"Activities": []}]

    def suspend_processes(self, AutoScalingGroupName, ScalingProcesses):
        self.suspended += ScalingProcesses


class Fakes:
    def __init__(self):
        self.s3, self.autoscaling, self.status = FakeS3(), FakeAutoScaling(), "UPDATE_IN_PROGRESS"
        self.mails: list[str] = []
        self.bodies: list[str] = []
        self.refused_mails = 0
        self.tags = ["v1"]  # of the one image
        self.ecr_fails = False

    def client(self, name, **options):
        return {"s3": self.s3, "autoscaling": self.autoscaling}.get(name, self)

    def describe_stacks(self, StackName):
        return {"Stacks": [{"StackStatus": self.status}]}

    def publish(self, TopicArn, Subject, Message):
        assert TopicArn == SPEC["alert_topic"]
        if self.refused_mails:
            self.refused_mails -= 1
            raise refused("Throttled")
        self.mails.append(Subject)
        self.bodies.append(Message)

    def describe_images(self, repositoryName, imageIds):
        assert repositoryName in ("lab/images", contract.repository_name("default"))
        (wanted,) = imageIds
        if wanted.get("imageDigest", "sha256:abc") != "sha256:abc" or wanted.get("imageTag", "v1") not in self.tags:
            raise refused("ImageNotFoundException")
        return {"imageDetails": [{"imageDigest": "sha256:abc", "imageTags": list(self.tags)}]}

    def batch_get_image(self, repositoryName, imageIds):
        if self.ecr_fails:
            raise refused("ServerException")
        assert (repositoryName, imageIds) == (contract.repository_name("default"), [{"imageDigest": "sha256:abc"}])
        return {"images": [{"imageManifest": "{}", "imageManifestMediaType": "type"}]}

    def put_image(self, repositoryName, imageManifest, imageManifestMediaType, imageDigest, imageTag):
        assert (imageManifest, imageManifestMediaType, imageDigest) == ("{}", "type", "sha256:abc")
        if imageTag in self.tags:
            raise refused("ImageAlreadyExistsException")
        self.tags.append(imageTag)

    def batch_delete_image(self, repositoryName, imageIds):
        if self.ecr_fails:
            raise refused("ServerException")
        self.tags.remove(imageIds[0]["imageTag"])

    def create_service_linked_role(self, AWSServiceName):
        raise refused("InvalidInput")  # it exists already


def serve(kind="Create", spec=SPEC, request_id="request-1", old=None, remaining_ms=900_000):
    properties = {"Spec": json.dumps(spec)}
    event = {"RequestType": kind, "RequestId": request_id, "StackId": "stack", "ResourceProperties": properties}
    if old is not None:
        event["OldResourceProperties"] = {"Spec": json.dumps(old)}
    return edge.serve(event, lambda: remaining_ms)["RunId"]
