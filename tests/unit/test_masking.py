"""Loss is on the assistant's words and the end token, whatever the chat template: nothing more, nothing less."""

from pathlib import Path

import pytest
import trl

from tests.support import tiny_model
from training_image.data.conversation import DataError
from training_image.train.masking import IGNORED, encode, to_dataset

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# Real templates, with the special tokens they use and the one that ends a turn.
REAL = {
    "qwen2_5": (("<|im_start|>",), "<|im_end|>"),
    "llama3": (("<|start_header_id|>", "<|end_header_id|>"), "<|eot_id|>"),
    "gemma": (("<start_of_turn>",), "<end_of_turn>"),
    "phi3": (("<|user|>", "<|assistant|>", "<|endoftext|>"), "<|end|>"),
}
SINGLE = [{"role": "user", "content": "Who?\n"}, {"role": "assistant", "content": "Zoë,\nof course."}]
MULTI = [*SINGLE, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]


def tokenizer_for(name):
    specials, end = REAL[name]
    return tiny_model.tokenizer((TEMPLATES / f"{name}.jinja").read_text(), specials, end, eos="<eos>"), end


def supervised(tokenizer, example):
    assert all(label in (IGNORED, token) for token, label in zip(example.input_ids, example.labels, strict=True))
    return tokenizer.decode([label for label in example.labels if label != IGNORED])


@pytest.mark.parametrize("name", REAL)
def test_exactly_the_answers_and_their_end_tokens_are_supervised(name):
    tokenizer, end = tokenizer_for(name)
    (single,) = encode(tokenizer, SINGLE)
    assert supervised(tokenizer, single) == f"Zoë,\nof course.{end}"
    (multi,) = encode(tokenizer, MULTI)
    assert supervised(tokenizer, multi) == f"Zoë,\nof course.{end}Yes.{end}"


@pytest.mark.parametrize("name", REAL)
def test_what_comes_before_the_answer_is_the_prompt_of_inference(name):
    tokenizer, _ = tokenizer_for(name)
    (example,) = encode(tokenizer, MULTI)
    prompt = tokenizer.apply_chat_template(MULTI[:-1], add_generation_prompt=True, return_dict=False)
    assert example.input_ids[: len(prompt)] == prompt
    assert example.labels[len(prompt)] != IGNORED


def test_a_template_that_rewrites_history_gives_one_example_for_each_answer():
    specials = ("<|im_start|>", "<think>", "</think>")
    tokenizer = tiny_model.tokenizer((TEMPLATES / "qwen3.jinja").read_text(), specials)
    first, second = encode(tokenizer, MULTI)
    assert supervised(tokenizer, first).endswith("Zoë,\nof course.<|im_end|>")
    assert supervised(tokenizer, second).endswith("Yes.<|im_end|>")
    assert "Zoë" not in supervised(tokenizer, second)


def test_a_template_that_refuses_the_turns_says_so():
    tokenizer, _ = tokenizer_for("gemma")
    with pytest.raises(DataError, match="system, user: System role not supported"):
        encode(tokenizer, [{"role": "system", "content": "Be brief."}, *SINGLE])


def test_long_examples_are_cut_and_counted_and_those_without_an_answer_left_out(caplog):
    tokenizer = tiny_model.tokenizer()
    beyond = [{"role": "user", "content": "x" * 99}, {"role": "assistant", "content": "lost"}]
    dataset = to_dataset(tokenizer, [SINGLE, beyond], max_length=30)
    assert [len(row) for row in dataset["input_ids"]] == [30]
    assert "2 of 2 examples are longer than 30 tokens" in caplog.text
    assert "1 of them were left out" in caplog.text
    with pytest.raises(DataError, match="LLM_TRAINING__MAX_LENGTH"):
        to_dataset(tokenizer, [beyond], max_length=30)
