"""Finds the files of a data folder and reads them, each line checked.

Two shapes are read, from ``*.jsonl``: chat (``{"messages": [{"role", "content"}, ...]}``) and prompt-completion
(``{"prompt": "...", "completion": "..."}``), which becomes one user and one assistant turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from training_image.data.checks import chat, text
from training_image.data.conversation import Conversation, DataError

_HELD_OUT = re.compile(r"(eval|validation|valid|dev|test)", re.IGNORECASE)
_SHAPES = 'either "messages" (chat) or "prompt" and "completion"'


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


def _parse(line: bytes, where: str) -> Conversation:
    try:
        content = line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text (byte {error.start + 1}).") from None
    if not content.strip():
        raise DataError(f"{where}: the line is blank. Remove it: each line is one JSON object.")
    try:
        record = json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON ({error.msg} at column {error.colno}).") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: not a JSON object. It needs {_SHAPES}.")
    if "messages" in record:
        return chat(record["messages"], where)
    if "prompt" in record or "completion" in record:
        return [
            {"role": role, "content": text(record.get(field), f'{where}, field "{field}"')}
            for role, field in (("user", "prompt"), ("assistant", "completion"))
        ]
    fields = ", ".join(f'"{field}"' for field in record) or "none"
    raise DataError(f"{where}: fields are {fields}. It needs {_SHAPES}.")
