"""Question-answer pairs from botocore's own service models: which API call does what its documentation says.

Real text in quantity, on every machine that has botocore, with one right answer each. The held-out questions share
neither an operation name nor a sentence with the training questions, so that they cannot be answered from memory.
"""

from __future__ import annotations

import html
import json
import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.loaders import Loader

SEED = 42
INSTRUCTION = "Name the AWS API call."
HELD_OUT = 64
SERVICES = (
    *("athena", "autoscaling", "cloudformation", "cloudwatch", "cognito-idp", "dynamodb", "ec2", "ecr", "ecs", "eks"),
    *("elbv2", "events", "firehose", "glue", "iam", "kinesis", "kms", "lambda", "logs", "rds", "redshift", "route53"),
    *("s3", "sagemaker", "secretsmanager", "sns", "sqs", "ssm", "stepfunctions"),
)
"""Services that people know, so that the answers shown at the end mean something to them."""

_BLOCK_TAG = re.compile(r"</?(?:p|br|li|ul|ol|div|h\d)\b[^>]*>", re.IGNORECASE)
_ASIDE = re.compile(r"<(note|important|caution)\b.*?</\1>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^>]+>")
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)\s+(?=[A-Z])")
_WORDS = range(4, 31)
"""Shorter sentences ask nothing, longer ones only cost time."""


@dataclass(frozen=True)
class Operation:
    service: str
    """botocore's name, which is also the command line's: ``aws ec2 ...``."""
    title: str
    """The service's name in its documentation: ``EC2``."""
    name: str
    sentence: str
    """First sentence of the documentation."""

    @property
    def example(self) -> dict[str, list[dict[str, str]]]:
        """The pair as a chat. Our own short system line replaces the longer one that the model's template would add."""
        return {
            "messages": [
                {"role": "system", "content": INSTRUCTION},
                {"role": "user", "content": f"{self.title}: {self.sentence}"},
                {"role": "assistant", "content": f"{self.service}:{self.name}"},
            ]
        }


def first_sentence(documentation: str) -> str:
    """The first sentence of a service model's HTML, as plain text; notes and warnings are passed over."""
    text = _TAG.sub("", _BLOCK_TAG.sub(" ", _ASIDE.sub(" ", documentation)))
    return _SENTENCE_END.split(" ".join(html.unescape(text).split()), maxsplit=1)[0]


def operations(services: Iterable[str] = SERVICES) -> list[Operation]:
    """Every operation of ``services`` whose first sentence asks something and does not name the answer."""
    loader = Loader()
    found = []
    for service in sorted(services):
        model: dict[str, Any] = loader.load_service_model(service, "service-2")
        for name, operation in sorted(model["operations"].items()):
            sentence = first_sentence(operation.get("documentation", ""))
            if len(sentence.split()) in _WORDS and name.lower() not in sentence.lower():
                found.append(Operation(service, model["metadata"]["serviceId"], name, sentence))
    return found


def split(pool: list[Operation], held_out: int = HELD_OUT, seed: int = SEED) -> tuple[list[Operation], list[Operation]]:
    """Training and held-out operations, shuffled. Only operations whose name and whose sentence occur once are held
    out: ``TagResource`` exists in most services, and many sentences are copied between operations."""
    names = Counter(operation.name for operation in pool)
    sentences = Counter(operation.sentence.casefold() for operation in pool)
    shuffled = random.Random(seed).sample(pool, len(pool))  # noqa: S311 (reproducible, not secret)
    unique = [item for item in shuffled if names[item.name] == 1 and sentences[item.sentence.casefold()] == 1]
    chosen = set(unique[:held_out])
    return [item for item in shuffled if item not in chosen], unique[:held_out]


def write(folder: Path) -> tuple[int, int]:
    """Write ``train.jsonl`` and ``eval.jsonl`` to ``folder``; returns the number of examples in each."""
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = split(operations())
    for name, items in (("train", train), ("eval", held_out)):
        lines = (json.dumps(item.example, ensure_ascii=False) + "\n" for item in items)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(train), len(held_out)
