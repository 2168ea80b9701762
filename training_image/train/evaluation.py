"""Held-out evaluation: loss, perplexity, exact match, and answers to look at. The same input gives the same result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence

from training_image.config.run_settings import RunSettings
from training_image.data.conversation import Conversation, question
from training_image.train.masking import IGNORED, Example, encode, prompt_text
from training_image.train.model import supervised_nll

T = TypeVar("T")


class StopRequested(Exception):
    """The supervisor asked for a stop while there was no step to end."""


@dataclass(frozen=True)
class Sample:
    prompt: str
    expected: str
    answer: str


@dataclass(frozen=True)
class EvalResult:
    examples: int
    loss: float
    """Mean negative log-likelihood of a supervised token, in nats; every token counts the same."""
    perplexity: float
    exact_match: float
    """Share (0 to 1) of examples whose generated last answer equals the expected one, apart from surrounding space."""
    samples: list[Sample]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Conversation],
    settings: RunSettings,
    should_stop: Callable[[], bool] = lambda: False,
) -> EvalResult:
    """Evaluate ``model`` on held-out ``conversations``; it is left in the mode (training or not) it came in.

    Raises:
        StopRequested: as soon as ``should_stop`` says so; it is asked between batches.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            loss = held_out_loss(model, tokenizer, conversations, settings, should_stop)
            answers = generate_answers(model, tokenizer, conversations, settings, should_stop)
    finally:
        model.train(was_training)
    samples = [
        Sample(prompt=prompt[-1]["content"], expected=expected.strip(), answer=answer)
        for (prompt, expected), answer in zip(map(question, conversations), answers, strict=True)
    ]
    return EvalResult(
        examples=len(samples),
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),  # e^710 is no longer a float
        exact_match=sum(sample.answer == sample.expected for sample in samples) / len(samples),
        samples=samples[: settings.evaluation.samples],
    )


def held_out_loss(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Conversation],
    settings: RunSettings,
    should_stop: Callable[[], bool],
) -> float:
    """Token-weighted mean loss over all assistant turns, cut at ``training.max_length`` as in training."""
    limit = settings.training.max_length
    examples = [
        Example(example.input_ids[:limit], example.labels[:limit])
        for conversation in conversations
        for example in encode(tokenizer, conversation)
    ]
    total, tokens = 0.0, 0
    for batch in _batches(sorted(examples, key=_length), settings, should_stop):
        input_ids = _pad([example.input_ids for example in batch], tokenizer.pad_token_id, "right").to(model.device)
        labels = _pad([example.labels for example in batch], IGNORED, "right").to(model.device)
        count = int((labels[:, 1:] != IGNORED).sum())
        if count:
            total += supervised_nll(model, input_ids, labels).item()
            tokens += count
    return total / tokens if tokens else math.nan


def generate_answers(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Conversation],
    settings: RunSettings,
    should_stop: Callable[[], bool],
) -> list[str]:
    """The model's own last answer to each conversation, greedy, stripped, in the order given."""
    prompts: list[list[int]] = tokenizer(
        [prompt_text(tokenizer, question(conversation)[0]) for conversation in conversations], add_special_tokens=False
    )["input_ids"]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    for indices in _batches(order, settings, should_stop):
        input_ids = _pad([prompts[index] for index in indices], tokenizer.pad_token_id, "left")
        width = input_ids.shape[1]
        lengths = torch.tensor([len(prompts[index]) for index in indices])
        mask = (torch.arange(width) >= width - lengths[:, None]).long()
        output = model.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=settings.evaluation.max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=_end_tokens(model, tokenizer),
        )
        for index, text in zip(
            indices, tokenizer.batch_decode(output[:, width:], skip_special_tokens=True), strict=True
        ):
            answers[index] = text.strip()
    return answers


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Chat models often end a turn with another token than the tokenizer's end of text; the config lists both."""
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [*listed, tokenizer.eos_token_id] if token is not None})


def _batches(items: Sequence[T], settings: RunSettings, should_stop: Callable[[], bool]) -> Iterator[Sequence[T]]:
    size = settings.training.per_device_eval_batch_size
    for start in range(0, len(items), size):
        if should_stop():
            raise StopRequested
        yield items[start : start + size]


def _length(example: Example) -> int:
    return len(example.input_ids)


def _pad(rows: list[list[int]], value: int, side: str) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value, padding_side=side)
