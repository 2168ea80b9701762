"""The demo's questions: real, many, and held out for real."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.demo import dataset
from lab.demo.dataset import Operation


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, str]]]:
    folder = tmp_path_factory.mktemp("data")
    dataset.write(folder)
    return {path.stem: [pair(json.loads(line)) for line in path.read_text().splitlines()] for path in folder.iterdir()}


def pair(example: dict[str, list[dict[str, str]]]) -> tuple[str, str]:
    """(question, answer); the system line is the same everywhere."""
    system, user, assistant = example["messages"]
    assert [system["role"], user["role"], assistant["role"]] == ["system", "user", "assistant"]
    assert system["content"] == dataset.INSTRUCTION
    return user["content"], assistant["content"]


def test_the_questions_are_thousands_and_real(written: dict[str, list[tuple[str, str]]]) -> None:
    assert len(written["train"]) > 2000
    assert len(written["eval"]) >= 64
    answers = {answer for _, answer in written["train"] + written["eval"]}
    assert {"ec2:TerminateInstances", "s3:PutObject", "autoscaling:SetDesiredCapacity"} <= answers
    assert not [question for question, _ in written["train"] if "<" in question and ">" in question]


def test_held_out_shares_no_operation_and_no_text_with_training(written: dict[str, list[tuple[str, str]]]) -> None:
    def names(part: str) -> set[str]:
        return {answer.split(":")[1] for _, answer in written[part]}

    def texts(part: str) -> set[str]:
        return {question.split(": ", 1)[1].casefold() for question, _ in written[part]}

    assert not names("train") & names("eval")
    assert not texts("train") & texts("eval")


def test_the_same_files_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        dataset.write(tmp_path / name)
    assert (tmp_path / "a" / "train.jsonl").read_bytes() == (tmp_path / "b" / "train.jsonl").read_bytes()
    assert (tmp_path / "a" / "eval.jsonl").read_bytes() == (tmp_path / "b" / "eval.jsonl").read_bytes()


POOLS = st.lists(
    st.builds(
        Operation, st.sampled_from(["ec2", "s3"]), st.just("T"), st.sampled_from("ABCDEF"), st.sampled_from("uUvwxyz")
    ),
    unique=True,
)


@given(POOLS, st.integers(1, 5), st.integers(0, 3))
def test_split_keeps_everything_and_mixes_nothing(pool: list[Operation], held_out: int, seed: int) -> None:
    train, chosen = dataset.split(pool, held_out, seed)
    assert sorted(train + chosen, key=repr) == sorted(pool, key=repr)
    assert not {item.name for item in train} & {item.name for item in chosen}
    assert not {item.sentence.casefold() for item in train} & {item.sentence.casefold() for item in chosen}


@pytest.mark.parametrize(
    ("documentation", "sentence"),
    [
        ("<p>Shuts down the instances. This is final.</p>", "Shuts down the instances."),
        ("<note><p>Not here. Or there.</p></note> <p>Lists <code>x</code>, e.g. Amazon S3 &amp; EC2</p>",
         "Lists x, e.g. Amazon S3 & EC2"),
        ("<p>One</p><p>two.</p> Three.", "One two."),
        ("", ""),
    ],
)  # fmt: skip
def test_first_sentence_is_plain_text(documentation: str, sentence: str) -> None:
    assert dataset.first_sentence(documentation) == sentence
