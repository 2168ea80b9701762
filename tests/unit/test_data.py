"""Data that cannot be trained on is refused with file, line and field; the split never leaks a prompt."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_image.config.run_settings import DataSettings
from training_image.data.conversation import DataError, question
from training_image.data.readers import find_files
from training_image.data.split import load, split

GOOD = {"prompt": "two and two?", "completion": "four"}


def write(folder, name, *lines):
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", ["the line is blank"]),
        ('{"prompt": "a", ', ["not valid JSON"]),
        ("[1, 2]", ["not a JSON object"]),
        ({"text": "a"}, ['"text"', '"messages"']),
        ({"prompt": "a"}, ['field "completion"', "missing"]),
        ({"completion": "a"}, ['field "prompt"', "missing"]),
        ({"prompt": " ", "completion": "a"}, ['field "prompt"', "empty"]),
        ({"prompt": "a", "completion": 4}, ['field "completion"', "int, not text"]),
        ({"messages": []}, ['field "messages"', "not empty"]),
        ({"messages": "hi"}, ['field "messages"', "must be a list"]),
        ({"messages": ["hi"]}, ["messages[0]", "must be an object"]),
        ({"messages": [{"role": "human", "content": "a"}]}, ["messages[0].role", "'human'"]),
        ({"messages": [{"role": "user", "content": ""}]}, ["messages[0].content", "empty"]),
        ({"messages": [{"role": "user", "content": "a"}]}, ["no assistant turn"]),
        ({"messages": [{"role": "assistant", "content": "a"}]}, ["before the first user turn"]),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    write(tmp_path, "train.jsonl", GOOD, line)
    with pytest.raises(DataError) as caught:
        load(tmp_path, DataSettings())
    for part in ("train.jsonl, line 2", *said):
        assert part in str(caught.value)


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match="line 1: not UTF-8"):
        load(tmp_path, DataSettings())


def test_no_file_an_empty_file_and_only_held_out_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no \*\.jsonl"):
        load(tmp_path, DataSettings())
    write(tmp_path, "test.jsonl", GOOD)
    with pytest.raises(DataError, match=r"only held-out files \(test\.jsonl\)"):
        load(tmp_path, DataSettings())
    write(tmp_path, "train.jsonl")
    with pytest.raises(DataError, match=r"train\.jsonl is empty"):
        load(tmp_path, DataSettings())


def test_files_are_held_out_by_their_name(tmp_path):
    write(tmp_path, "a.jsonl", GOOD, GOOD)
    for name in ("eval.jsonl", "validation-2.jsonl", "Dev.jsonl", "test_new.jsonl"):
        write(tmp_path, name, GOOD)
    train_files, eval_files = find_files(tmp_path)
    assert [path.name for path in train_files] == ["a.jsonl"]
    assert len(eval_files) == 4


def test_both_shapes_become_conversations(tmp_path):
    chat = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant", "user", "assistant")]
    write(tmp_path, "train.jsonl", GOOD)
    write(tmp_path, "eval.jsonl", {"messages": chat, "id": 7})
    data = load(tmp_path, DataSettings())
    assert data.train == [[{"role": "user", "content": "two and two?"}, {"role": "assistant", "content": "four"}]]
    assert question(data.held_out[0]) == (chat[:4], "a")


def test_at_most_max_eval_examples_and_always_the_same(tmp_path):
    write(tmp_path, "train.jsonl", GOOD)
    lines = [{"prompt": str(number), "completion": "x"} for number in range(9)]
    write(tmp_path, "eval.jsonl", *lines)
    settings = DataSettings(max_eval_examples=4)
    first = load(tmp_path, settings).held_out
    write(tmp_path, "eval.jsonl", *reversed(lines))
    assert len(first) == 4
    assert load(tmp_path, settings).held_out == first


@given(
    prompts=st.lists(st.integers(0, 8), min_size=2, max_size=30).filter(lambda numbers: len(set(numbers)) > 1),
    fraction=st.floats(0.01, 0.5),
    order=st.randoms(use_true_random=False),
)
def test_no_prompt_is_on_both_sides_and_the_order_does_not_matter(prompts, fraction, order):
    examples = [
        [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": str(index)}]
        for index, number in enumerate(prompts)
    ]
    train, held_out = split(examples, fraction)
    asked, seen = ({example[0]["content"] for example in side} for side in (held_out, train))
    assert train
    assert held_out
    assert not asked & seen
    assert len(train) + len(held_out) == len(examples)
    order.shuffle(examples)
    assert {example[0]["content"] for example in split(examples, fraction)[1]} == asked


def test_one_prompt_alone_cannot_be_split():
    with pytest.raises(DataError, match="Nothing can be held out"):
        split([[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]], 0.5)


def test_checking_data_needs_no_torch():
    code = "import sys, training_image.data; sys.exit('torch' in sys.modules or 'datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
