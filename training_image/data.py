"""The training data: find it, check it line by line, and split it. No torch is imported here.

Two shapes are read, from ``*.jsonl``: chat (``{"messages": [{"role", "content"}, ...]}``) and prompt-completion
(``{"prompt": "...", "completion": "..."}``), which becomes one user and one assistant turn.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training_image.settings import DataSettings

Message = dict[str, str]
Conversation = list[Message]

ROLES = ("system", "user", "assistant")
_HELD_OUT = re.compile(r"(eval|validation|valid|dev|test)", re.IGNORECASE)
_SHAPES = 'either "messages" (chat) or "prompt" and "completion"'


class DataError(ValueError):
    """The data cannot be trained on. The message names file, line and field, and says what is expected."""


@dataclass(frozen=True)
class DataSummary:
    """What a data folder holds. ``eval_examples`` is 0 when the split is left to ``data.eval_fraction``."""

    train_files: tuple[Path, ...]
    eval_files: tuple[Path, ...]
    train_examples: int
    eval_examples: int


@dataclass(frozen=True)
class Split:
    train: list[Conversation]
    held_out: list[Conversation]


def validate(folder: Path) -> DataSummary:
    """Check every line of every file in ``folder``.

    Raises:
        DataError: at the first line that cannot be used.
    """
    train_files, eval_files = find_files(folder)
    return DataSummary(
        train_files=train_files,
        eval_files=eval_files,
        train_examples=sum(1 for path in train_files for _ in read(path)),
        eval_examples=sum(1 for path in eval_files for _ in read(path)),
    )


def load(folder: Path, settings: DataSettings) -> Split:
    """Read ``folder`` and hold examples out: the files named for it, else ``settings.eval_fraction`` of the rest.

    At most ``settings.max_eval_examples`` held-out examples are returned, chosen by content, so that the same data
    gives the same ones on every machine.

    Raises:
        DataError: as ``validate``.
    """
    train_files, eval_files = find_files(folder)
    train = [conversation for path in train_files for conversation in read(path)]
    if eval_files:
        held_out = [conversation for path in eval_files for conversation in read(path)]
    else:
        train, held_out = split(train, settings.eval_fraction)
    held_out = sorted(held_out, key=_digest)[: settings.max_eval_examples]
    return Split(train=train, held_out=held_out)


def find_files(folder: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """``*.jsonl`` below ``folder``, as (training, held-out) files in the order of their names."""
    files = sorted(path for path in folder.rglob("*.jsonl") if path.is_file())
    eval_files = tuple(path for path in files if _HELD_OUT.match(path.stem))
    train_files = tuple(path for path in files if path not in eval_files)
    if not files:
        raise DataError("The data holds no *.jsonl file. Each line of one is a JSON object with " + _SHAPES + ".")
    if not train_files:
        names = ", ".join(path.name for path in eval_files)
        raise DataError(f"The data holds only held-out files ({names}). Add training data, for example train.jsonl.")
    return train_files, eval_files


def read(path: Path) -> Iterator[Conversation]:
    """The examples of one file, each checked.

    Raises:
        DataError: naming the file, the line (from 1) and the field.
    """
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield _parse(line, f"{path.name}, line {number}")
    if number == 0:
        raise DataError(f"{path.name} is empty: remove it, or put one JSON object on each line.")


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


def opening(conversation: Conversation) -> Conversation:
    """All turns before the first answer: what makes two examples the same question."""
    roles = [message["role"] for message in conversation]
    return conversation[: roles.index("assistant")]


def question(conversation: Conversation) -> tuple[Conversation, str]:
    """(the turns before the last answer, the last answer): what a held-out example asks of the model."""
    last = max(index for index, message in enumerate(conversation) if message["role"] == "assistant")
    return conversation[:last], conversation[last]["content"]


def _digest(conversation: Conversation) -> str:
    return hashlib.sha256(json.dumps(conversation, sort_keys=True).encode()).hexdigest()


def _parse(line: bytes, where: str) -> Conversation:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text (byte {error.start + 1}).") from None
    if not text.strip():
        raise DataError(f"{where}: the line is blank. Remove it: each line is one JSON object.")
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON ({error.msg} at column {error.colno}).") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: not a JSON object. It needs {_SHAPES}.")
    if "messages" in record:
        return _chat(record["messages"], where)
    if "prompt" in record or "completion" in record:
        return [
            {"role": role, "content": _text(record.get(field), f'{where}, field "{field}"')}
            for role, field in (("user", "prompt"), ("assistant", "completion"))
        ]
    fields = ", ".join(f'"{field}"' for field in record) or "none"
    raise DataError(f"{where}: fields are {fields}. It needs {_SHAPES}.")


def _chat(messages: Any, where: str) -> Conversation:
    if not isinstance(messages, list) or not messages:
        raise DataError(f'{where}, field "messages": must be a list of messages, not empty.')
    conversation: Conversation = []
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        if not isinstance(message, dict):
            raise DataError(f'{where}, field "{field}": must be an object with "role" and "content".')
        role = message.get("role")
        if role not in ROLES:
            raise DataError(f'{where}, field "{field}.role": is {role!r}, must be one of {", ".join(ROLES)}.')
        content = _text(message.get("content"), f'{where}, field "{field}.content"')
        conversation.append({"role": role, "content": content})
    roles = [message["role"] for message in conversation]
    if "assistant" not in roles:
        raise DataError(f'{where}, field "messages": has no assistant turn, so there is nothing to learn.')
    if "user" not in roles[: roles.index("assistant")]:
        raise DataError(f'{where}, field "messages": an assistant turn comes before the first user turn.')
    return conversation


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        kind = "missing" if value is None else f"{type(value).__name__}, not text"
        raise DataError(f"{where}: is {kind}.")
    if not value.strip():
        raise DataError(f"{where}: is empty.")
    return value
