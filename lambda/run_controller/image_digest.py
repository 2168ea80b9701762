"""Which image a run uses: by digest, because a tag could mean another image when an instance is replaced. A tag of
the run's own keeps it: the lifecycle rules of the repository pass it by."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import boto3
from botocore.exceptions import ClientError

from training_image.core import contract
from training_image.core.errors import UserError

LATEST = "latest"
FROM_MAIN = re.compile(r"main-\d{8}T\d{6}Z-[0-9a-f]{12}")
"""What the workflow tags a push to main with: UTC time and commit. Tags are immutable, so none moves to the newest."""


class NoImageError(UserError):
    """One sentence for the operator, as CloudFormation's reason."""


def pinned(uri: str) -> str:
    """``repository:tag`` as ``repository@sha256:...``; ``:latest`` is the newest that was pushed from main.

    Raises:
        NoImageError: ``latest`` was asked for, and nothing was pushed from main.
    """
    repository, separator, tag = uri.rpartition(":")
    if not separator or "@" in uri or "/" in tag:
        return uri
    ecr, name = boto3.client("ecr"), repository.split("/", 1)[1]
    if tag != LATEST:
        found = ecr.describe_images(repositoryName=name, imageIds=[{"imageTag": tag}])["imageDetails"][0]
        return f"{repository}@{found['imageDigest']}"
    pages = ecr.get_paginator("describe_images").paginate(repositoryName=name, filter={"tagStatus": "TAGGED"})
    digest = newest(image for page in pages for image in page["imageDetails"])
    if digest is None:
        raise NoImageError(
            f"image_tag is latest, and repository {name} has no image of a push to main: run the workflow "
            '"Build and Push Training Image to ECR", or leave image_tag unset.'
        )
    return f"{repository}@{digest}"


def is_there(uri: str) -> bool:
    """Whether ECR still has the image ``repository@sha256:...``."""
    repository, _, digest = uri.rpartition("@")
    ecr = boto3.client("ecr")
    try:
        ecr.describe_images(repositoryName=repository.split("/", 1)[1], imageIds=[{"imageDigest": digest}])
    except ClientError as error:
        if error.response["Error"]["Code"] == "ImageNotFoundException":
            return False
        raise
    return True


def newest(images: Iterable[dict[str, Any]]) -> str | None:
    """Digest of the image whose tag from main is the newest, whatever else it is tagged with."""
    tags = {
        tag: image["imageDigest"] for image in images for tag in image.get("imageTags", []) if FROM_MAIN.fullmatch(tag)
    }
    return str(tags[max(tags)]) if tags else None


def hold(image: str, repository: str, run_id: str) -> None:
    """Tag ``image`` as in use by the run, if it is in ``repository``; safe to repeat.

    Raises:
        NoImageError: it is not there any more.
    """
    name, _, digest = image.partition("/")[2].partition("@")
    if name != repository or not digest:
        return
    ecr = boto3.client("ecr")
    found = ecr.batch_get_image(repositoryName=name, imageIds=[{"imageDigest": digest}])["images"]
    if not found:
        raise NoImageError(f"{digest} is not in repository {name}")
    try:
        ecr.put_image(
            repositoryName=name,
            imageManifest=found[0]["imageManifest"],
            imageManifestMediaType=found[0]["imageManifestMediaType"],
            imageDigest=digest,
            imageTag=contract.image_tag(run_id),
        )
    except ClientError as error:
        # A run has one image for good, so a tag that is there is the one that is wanted.
        if error.response["Error"]["Code"] not in ("ImageAlreadyExistsException", "ImageTagAlreadyExistsException"):
            raise


def release(repository: str, run_id: str) -> None:
    """Take the run's tag off its image; safe to repeat.

    An image that nothing but runs has tagged stays as it is: ECR deletes an image together with its last tag, and the
    operator, who named it by digest, may name it again.
    """
    ecr, tag = boto3.client("ecr"), {"imageTag": contract.image_tag(run_id)}
    try:
        (image,) = ecr.describe_images(repositoryName=repository, imageIds=[tag])["imageDetails"]
    except ClientError as error:
        if error.response["Error"]["Code"] == "ImageNotFoundException":
            return
        raise
    if all(name.startswith(contract.RUN_TAG_PREFIX) for name in image["imageTags"]):
        print(f"{image['imageDigest']} has no other tag than {', '.join(image['imageTags'])}: it keeps it")
        return
    ecr.batch_delete_image(repositoryName=repository, imageIds=[tag])
