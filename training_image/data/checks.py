"""What makes a conversation one that can be learnt from. Every refusal names the file, the line and the field."""

from __future__ import annotations

from typing import Any

from training_image.data.conversation import ROLES, Conversation, DataError


def chat(messages: Any, where: str) -> Conversation:
    """``messages`` as a conversation that can be learnt from.

    Args:
        where: file and line, for the message.

    Raises:
        DataError: naming the field.
    """
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
        content = text(message.get("content"), f'{where}, field "{field}.content"')
        conversation.append({"role": role, "content": content})
    roles = [message["role"] for message in conversation]
    if "assistant" not in roles:
        raise DataError(f'{where}, field "messages": has no assistant turn, so there is nothing to learn.')
    if "user" not in roles[: roles.index("assistant")]:
        raise DataError(f'{where}, field "messages": an assistant turn comes before the first user turn.')
    return conversation


def text(value: Any, where: str) -> str:
    """``value`` if it is text that is not blank.

    Raises:
        DataError: it is not.
    """
    if not isinstance(value, str):
        kind = "missing" if value is None else f"{type(value).__name__}, not text"
        raise DataError(f"{where}: is {kind}.")
    if not value.strip():
        raise DataError(f"{where}: is empty.")
    return value
