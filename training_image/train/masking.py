"""From conversations to tokens and labels: the model's own chat template, loss on the assistant's tokens only.

Chat templates seldom mark the assistant's part themselves, so it is found by rendering: what a turn adds to its prompt
(which ends with the generation prompt) is what the model has to write, up to and including the end token.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training_image.data.conversation import Conversation, DataError

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100
"""Label of a token that carries no loss."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class _Rendered:
    text: str
    spans: tuple[tuple[int, int], ...]
    """Character ranges of the assistant's text, each with its end token."""


def encode(tokenizer: Any, conversation: Conversation) -> list[Example]:
    """Tokens and labels of ``conversation``: one example, or one for each assistant turn where the template renders
    a turn differently once another follows (Qwen3 drops its thinking block), so that each is seen as at inference.

    Raises:
        DataError: if the model's chat template cannot take the conversation.
    """
    return [_tokenize(tokenizer, rendered) for rendered in _render(tokenizer, conversation)]


def to_dataset(tokenizer: Any, conversations: list[Conversation], max_length: int) -> Dataset:
    """Columns ``input_ids`` and ``labels``, cut at the right to ``max_length`` tokens.

    An example whose answer lies wholly beyond the cut teaches nothing and is left out. Both are counted in the log.

    Raises:
        DataError: if no example is left.
    """
    from datasets import Dataset

    examples = [example for conversation in conversations for example in encode(tokenizer, conversation)]
    cut = [Example(example.input_ids[:max_length], example.labels[:max_length]) for example in examples]
    kept = [example for example in cut if any(label != IGNORED for label in example.labels[1:])]
    longer = sum(len(example.input_ids) > max_length for example in examples)
    if longer:
        _log.warning(
            "%d of %d examples are longer than %d tokens (training.max_length) and were cut; %d of them were left out, "
            "because nothing of the answer remained.",
            longer,
            len(examples),
            max_length,
            len(cut) - len(kept),
        )
    if not kept:
        raise DataError(
            f"No training example has an answer within {max_length} tokens. Raise LLM_TRAINING__MAX_LENGTH."
        )
    return Dataset.from_dict(
        {"input_ids": [example.input_ids for example in kept], "labels": [example.labels for example in kept]}
    )


def prompt_text(tokenizer: Any, conversation: Conversation) -> str:
    """``conversation`` as the model sees it when asked for the next turn."""
    return _apply(tokenizer, conversation, add_generation_prompt=True)


def _render(tokenizer: Any, conversation: Conversation) -> list[_Rendered]:
    turns = [
        _turn(tokenizer, conversation[: index + 1])
        for index, message in enumerate(conversation)
        if message["role"] == "assistant"
    ]
    last = turns[-1]
    if all(last.text.startswith(turn.text[: turn.spans[0][1]]) for turn in turns):
        return [_Rendered(last.text, tuple(turn.spans[0] for turn in turns))]
    return turns


def _turn(tokenizer: Any, conversation: Conversation) -> _Rendered:
    """``conversation``, which ends with an assistant turn, with the span of that turn."""
    prompt = prompt_text(tokenizer, conversation[:-1])
    text = _apply(tokenizer, conversation, add_generation_prompt=False)
    if not text.startswith(prompt):
        raise DataError("The model's chat template renders an answer differently from its prompt, so it has no mask.")
    return _Rendered(text, ((len(prompt), _end_of_answer(tokenizer, text, conversation[-1]["content"].strip())),))


def _end_of_answer(tokenizer: Any, text: str, answer: str) -> int:
    """Where the end token after ``answer`` ends; what templates write behind it (a line break, an end of text) is not
    the model's to say. Without an end token the answer's own end."""
    after = text.rfind(answer) + len(answer)
    # Not `all_special_tokens`: that leaves out Gemma's <end_of_turn>.
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    found = [(text.find(token, after), len(token)) for token in tokens]
    start, length = min((item for item in found if item[0] >= 0), default=(after, 0))
    return start + length


def _apply(tokenizer: Any, conversation: Conversation, *, add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in conversation)
        raise DataError(f"The model's chat template refuses a conversation of the turns {roles}: {error}.") from error
    return text


def _tokenize(tokenizer: Any, rendered: _Rendered) -> Example:
    encoded = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
    labels = [
        token if any(begin <= start and end <= stop for begin, stop in rendered.spans) else IGNORED
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
    return Example(encoded["input_ids"], labels)
