"""What is trained on and what is held out, the same on every machine."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from training_image.config.run_settings import DataSettings
from training_image.data.conversation import Conversation, DataError, opening
from training_image.data.readers import find_files, read


@dataclass(frozen=True)
class Split:
    train: list[Conversation]
    held_out: list[Conversation]


def load(folder: Path, settings: DataSettings) -> Split:
    """Read ``folder`` and hold examples out: the files named for it, else ``settings.eval_fraction`` of the rest.

    At most ``settings.max_eval_examples`` held-out examples are returned, chosen by content, so that the same data
    gives the same ones on every machine.

    Raises:
        DataError: at the first line that cannot be used.
    """
    train_files, eval_files = find_files(folder)
    train = [conversation for path in train_files for conversation in read(path)]
    if eval_files:
        held_out = [conversation for path in eval_files for conversation in read(path)]
    else:
        train, held_out = split(train, settings.eval_fraction)
    held_out = sorted(held_out, key=_digest)[: settings.max_eval_examples]
    return Split(train=train, held_out=held_out)


def split(conversations: list[Conversation], fraction: float) -> tuple[list[Conversation], list[Conversation]]:
    """(training, held-out), decided by the sha256 of each prompt, so that no prompt is on both sides.

    Raises:
        DataError: if all examples have the same prompt, so that nothing can be held out.
    """
    groups: dict[str, list[int]] = {}
    for index, conversation in enumerate(conversations):
        groups.setdefault(_digest(opening(conversation)), []).append(index)
    if len(groups) < 2:
        raise DataError(
            "Nothing can be held out for evaluation: all training examples have the same prompt. "
            "Add examples, or a file eval.jsonl."
        )
    wanted = max(1, round(len(conversations) * fraction))
    held: set[int] = set()
    for key in sorted(groups)[: len(groups) - 1]:  # one group at least stays for training
        if len(held) >= wanted:
            break
        held.update(groups[key])
    train = [conversation for index, conversation in enumerate(conversations) if index not in held]
    return train, [conversations[index] for index in sorted(held)]


def _digest(conversation: Conversation) -> str:
    return hashlib.sha256(json.dumps(conversation, sort_keys=True).encode()).hexdigest()
