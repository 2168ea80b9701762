"""The lab's two buckets: what goes into training, and what comes out."""

import aws_cdk as cdk
from aws_cdk import aws_s3 as s3
from constructs import Construct

from lab_constructs.acknowledge import acknowledge


class Storage(Construct):
    """Training data in, results out: encrypted, versioned, private, TLS only, and kept when the stack is deleted.

    A first deploy that is rolled back takes the empty buckets along instead of leaving two more at each try.

    Args:
        checkpoint_days: days until checkpoints expire; a run that still needs one after that has been forgotten.
        noncurrent_days: days that overwritten and deleted versions can still be restored.
        cool_down_days: days until results move to infrequent access, which costs half to keep.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        checkpoint_days: int = 30,
        noncurrent_days: int = 30,
        cool_down_days: int = 60,
    ) -> None:
        super().__init__(scope, construct_id)
        noncurrent = cdk.Duration.days(noncurrent_days)
        self.training_bucket = self._bucket("Training", [self._hygiene(noncurrent)])
        self.outputs_bucket = self._bucket(
            "Outputs",
            [
                self._hygiene(noncurrent),
                # Deleted ones are kept for a day only, because the instance deletes half a gigabyte every five minutes.
                s3.LifecycleRule(
                    id="checkpoints",
                    prefix="checkpoints/",
                    expiration=cdk.Duration.days(checkpoint_days),
                    noncurrent_version_expiration=cdk.Duration.days(1),
                ),
                # Results are moved, never expired: an adapter is what the money was spent on.
                s3.LifecycleRule(
                    id="old-results",
                    prefix="runs/",
                    transitions=[
                        s3.Transition(
                            storage_class=s3.StorageClass.INFREQUENT_ACCESS,
                            transition_after=cdk.Duration.days(cool_down_days),
                        )
                    ],
                ),
            ],
        )

    def _bucket(self, construct_id: str, rules: list[s3.LifecycleRule]) -> s3.Bucket:
        keep = cdk.RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE
        bucket = s3.Bucket(
            self,
            construct_id,
            encryption=s3.BucketEncryption.S3_MANAGED,
            versioned=True,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            enforce_ssl=True,
            removal_policy=keep,
            lifecycle_rules=rules,
        )
        if bucket.policy is not None:
            bucket.policy.apply_removal_policy(keep)  # a bucket that is kept stays TLS only
        acknowledge(
            bucket,
            "Access logs would need a third bucket that nobody reads; who needs them turns on CloudTrail data events.",
            "AwsSolutions-S1",
            "CKV_AWS_18",
        )
        return bucket

    @staticmethod
    def _hygiene(noncurrent: cdk.Duration) -> s3.LifecycleRule:
        return s3.LifecycleRule(
            id="hygiene",
            abort_incomplete_multipart_upload_after=cdk.Duration.days(1),
            noncurrent_version_expiration=noncurrent,
        )
