"""Which image a run uses: by digest, because a tag could mean another image when a box is replaced."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import boto3

LATEST = "latest"
FROM_MAIN = re.compile(r"main-\d{8}T\d{6}Z-[0-9a-f]{12}")
"""What the workflow tags a push to main with: UTC time and commit. Tags are immutable, so none moves to the newest."""


class NoImageError(LookupError):
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


def newest(images: Iterable[dict[str, Any]]) -> str | None:
    """Digest of the image whose tag from main is the newest, whatever else it is tagged with."""
    tags = {
        tag: image["imageDigest"] for image in images for tag in image.get("imageTags", []) if FROM_MAIN.fullmatch(tag)
    }
    return str(tags[max(tags)]) if tags else None
