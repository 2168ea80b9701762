"""The tokens of the outside services that a training instance may need."""

import aws_cdk as cdk
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from lab_constructs.acknowledge import acknowledge


class Tokens(Construct):
    """Two secrets, created without a value; the operator fills those that are needed.

    They go with the stack, unlike the data: a token is pasted again in a minute, and should not outlive the lab.
    Each costs 0.40 USD a month.
    """

    def __init__(self, scope: Construct, construct_id: str) -> None:
        super().__init__(scope, construct_id)
        self.hugging_face_arn = self._secret("HuggingFace", "Hugging Face token for gated and private models")
        self.wandb_arn = self._secret("Wandb", "W&B API key")

    def _secret(self, construct_id: str, what: str) -> str:
        # Not the L2: it generates a random value, which would be sent to the service as if it were a token.
        secret = secretsmanager.CfnSecret(
            self,
            construct_id,
            description=(
                f"{what}. Fill it: aws secretsmanager put-secret-value --secret-id ARN --secret-string file://token.txt"
            ),
        )
        secret.apply_removal_policy(cdk.RemovalPolicy.DESTROY)
        acknowledge(
            secret,
            "The token is issued elsewhere: its owner replaces it there and here; AWS cannot.",
            "AwsSolutions-SMG4",
        )
        acknowledge(
            secret,
            "Encrypted with the account's aws/secretsmanager key; one of our own costs more than the secret, and every "
            "reader of it is in this account.",
            "CKV_AWS_149",
        )
        return secret.attr_id
