"""What the operator would read: the messages that arrive at a topic."""

import json
from typing import Any


class Mailbox:
    """A queue that is subscribed to a topic, in place of an e-mail address. ``mails`` are those read so far.

    Args:
        sqs: boto3 client.
        sns: boto3 client.
    """

    def __init__(self, sqs: Any, sns: Any, topic_arn: str) -> None:
        self._sqs = sqs
        self.mails: list[dict[str, Any]] = []
        self._url = sqs.create_queue(QueueName="mailbox")["QueueUrl"]
        names = {"QueueUrl": self._url, "AttributeNames": ["QueueArn"]}
        queue = sqs.get_queue_attributes(**names)["Attributes"]["QueueArn"]
        # Without it a delivery is refused, and nobody is told.
        statement = {
            "Effect": "Allow",
            "Principal": {"Service": "sns.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": queue,
            "Condition": {"ArnEquals": {"aws:SourceArn": topic_arn}},
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        sqs.set_queue_attributes(QueueUrl=self._url, Attributes={"Policy": policy})
        sns.subscribe(TopicArn=topic_arn, Protocol="sqs", Endpoint=queue)

    def subjects(self) -> list[str]:
        """Of all mails that have arrived up to now."""
        while found := self._sqs.receive_message(QueueUrl=self._url, MaxNumberOfMessages=10).get("Messages"):
            for message in found:
                self.mails.append(json.loads(message["Body"]))
                self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"])
        return [mail["Subject"] for mail in self.mails]
