"""One training example: a list of messages, each with a role and its text."""

from __future__ import annotations

from training_image.core.errors import UserError

Message = dict[str, str]
Conversation = list[Message]

ROLES = ("system", "user", "assistant")


class DataError(UserError):
    """The data cannot be trained on. The message names file, line and field, and says what is expected."""


def opening(conversation: Conversation) -> Conversation:
    """All turns before the first answer: what makes two examples the same question."""
    roles = [message["role"] for message in conversation]
    return conversation[: roles.index("assistant")]


def question(conversation: Conversation) -> tuple[Conversation, str]:
    """(the turns before the last answer, the last answer): what a held-out example asks of the model."""
    last = max(index for index, message in enumerate(conversation) if message["role"] == "assistant")
    return conversation[:last], conversation[last]["content"]
