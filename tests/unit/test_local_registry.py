"""What the local cloud's registry does with tags, as ECR does; and that a run's tag on its image works with it."""

import json

import image_digest
import pytest
from botocore.exceptions import ClientError
from ministack.services import ecr

from local_cloud import patches
from training_image.core.contract import image_tag

NAME = "lab/images"


class Registry:
    """One repository with immutable tags, by the API calls of boto3's client."""

    def __init__(self):
        self.create_repository(repositoryName=NAME, imageTagMutability="IMMUTABLE")

    def __getattr__(self, operation):
        def call(**arguments):
            status, _, body = getattr(ecr, f"_{operation}")(arguments)
            answer = json.loads(body)
            if status != 200:
                raise ClientError({"Error": {"Code": answer["__type"], "Message": answer["message"]}}, operation)
            return answer

        return call

    def push(self, *tags):
        """Digest of an image with these tags; pushed without one if there are none."""
        manifest = json.dumps({"config": {"digest": f"of {tags}"}})
        for tag in tags or [""]:
            found = self.put_image(repositoryName=NAME, imageManifest=manifest, **({"imageTag": tag} if tag else {}))
        return found["image"]["imageId"]["imageDigest"]

    def images(self):
        found = self.describe_images(repositoryName=NAME)["imageDetails"]
        return {image["imageDigest"]: set(image["imageTags"]) for image in found}

    def delete(self, **wanted):
        return self.batch_delete_image(repositoryName=NAME, imageIds=[wanted])


@pytest.fixture
def registry(monkeypatch):
    for name in ("_batch_delete_image", "_describe_images"):
        monkeypatch.setattr(ecr, name, getattr(ecr, name))
    patches.ecr_absent_tag()
    patches.ecr_delete_by_tag()
    ecr.reset()
    found = Registry()
    monkeypatch.setattr(image_digest.boto3, "client", lambda name: found)
    yield found
    ecr.reset()


def uri(digest):
    return f"123456789012.dkr.ecr.us-east-1.amazonaws.com/{NAME}@{digest}"


def test_deleting_by_tag_takes_the_tag_off_and_the_image_goes_with_the_last(registry):
    image = registry.push("a", "b")
    answer = registry.delete(imageTag="a")
    assert answer == {"imageIds": [{"imageDigest": image, "imageTag": "a"}], "failures": []}
    assert registry.images() == {image: {"b"}}
    registry.delete(imageTag="b")
    assert registry.images() == {}


def test_deleting_by_digest_takes_all_tags_and_an_absent_tag_is_a_failure_in_the_answer(registry):
    image = registry.push("a", "b")
    assert registry.delete(imageTag="c")["failures"][0]["failureCode"] == "ImageNotFound"
    registry.delete(imageDigest=image)
    assert registry.images() == {}


def test_a_run_holds_its_image_and_lets_it_go_however_often_it_is_asked(registry):
    image, other = registry.push("lab-1"), registry.push("lab-2")
    for _ in range(2):
        image_digest.hold(uri(image), NAME, "run-1a2b3c4d-1")
    assert registry.images() == {image: {"lab-1", image_tag("run-1a2b3c4d-1")}, other: {"lab-2"}}
    for _ in range(2):
        image_digest.release(NAME, "run-1a2b3c4d-1")
    assert registry.images() == {image: {"lab-1"}, other: {"lab-2"}}


def test_an_image_that_only_runs_have_tagged_is_not_deleted_with_the_tag(registry, capsys):
    """Named by its digest, and named so again by the next deploy."""
    image = registry.push()
    for run in ("a-1", "b-1"):
        image_digest.hold(uri(image), NAME, run)
    for run in ("a-1", "b-1"):
        image_digest.release(NAME, run)
    assert registry.images() == {image: {"run-a-1", "run-b-1"}}
    assert f"{image} has no other tag than run-a-1, run-b-1" in capsys.readouterr().out


def test_an_image_elsewhere_is_nobodys_to_tag_and_a_lost_one_is_an_error(registry):
    image = registry.push("lab-1")
    image_digest.hold(uri(image), "lab/others", "a-1")
    assert registry.images() == {image: {"lab-1"}}
    with pytest.raises(image_digest.NoImageError, match="sha256:0 is not in repository lab/images"):
        image_digest.hold(uri("sha256:0"), NAME, "a-1")
