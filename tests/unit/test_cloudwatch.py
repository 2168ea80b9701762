"""What of an attempt reaches CloudWatch, and that nothing there can disturb a run."""

import logging
from dataclasses import replace

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.box import REGION, wait_for
from training_image.core.contract import Phase
from training_image.core.records import Status
from training_image.supervisor import cloudwatch
from training_image.supervisor.cloudwatch import CloudWatch, gpu_figures, log_events, training_figures

STATUS = Status(Phase.TRAINING, step=7, loss=1.5, tokens_per_second=900.0, eta_seconds=3)


def messages(text: bytes, *, last: bool = False) -> list[str]:
    return [event["message"] for event in log_events(text, 1, last=last)[0]]


# --- figures ----------------------------------------------------------------------------------------------------------
def test_figures_of_a_training_instance():
    assert training_figures(STATUS, 4, 2) == {
        "Step": 7, "DurableStep": 4, "Attempt": 2, "Loss": 1.5, "TokensPerSecond": 900
    }  # fmt: skip


def test_what_is_not_known_yet_is_not_published():
    assert training_figures(Status(), None, 1) == {"Attempt": 1}
    assert training_figures(Status(Phase.TRAINING, step=0), None, 1) == {"Step": 0, "Attempt": 1}


def test_an_old_loss_is_not_repeated_while_the_instance_evaluates():
    assert "Loss" not in training_figures(replace(STATUS, phase=Phase.EVALUATING_AFTER), 7, 1)
    assert "TokensPerSecond" not in training_figures(replace(STATUS, phase=Phase.EVALUATING_AFTER), 7, 1)


def test_gpus_are_busy_on_average_and_as_full_as_the_fullest():
    assert gpu_figures("90, 1000, 10000\n50, 9000, 10000\n") == {"GpuUtilization": 70, "GpuMemoryUsed": 90}


@pytest.mark.parametrize("listing", ["", "[N/A], 3, 10\n", "NVIDIA-SMI has failed because\n", "1, 2, 0\n"])
def test_a_driver_that_does_not_answer_publishes_nothing(listing):
    assert gpu_figures(listing) == {}


def test_every_figure_has_a_unit():
    figures = training_figures(STATUS, 4, 2) | gpu_figures("90, 1000, 10000")
    assert set(figures) == set(cloudwatch.UNITS)


# --- log lines --------------------------------------------------------------------------------------------------------
def test_a_line_is_sent_when_it_is_whole():
    assert messages(b"one\ntwo") == ["one"]
    assert log_events(b"one\ntwo", 1, last=False)[1] == len(b"one\n")
    assert messages(b"one\ntwo", last=True) == ["one", "two"]


def test_of_a_progress_bar_the_last_state_is_sent():
    assert messages(b"\r 10%\r 50%\r100%\nnext\r\n") == ["100%", "next"]


def test_blank_lines_are_no_events_but_are_taken():
    assert log_events(b"\n  \n\r\n", 1, last=False) == ([], 6)


def test_bytes_that_are_no_text_do_not_stop_the_log():
    assert messages(b"\xff\xfe ok\n") == ["�� ok"]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20), max_size=60))
def test_no_line_is_lost_or_sent_twice_however_many_fit_a_request(lines):
    text, sent = "".join(f"{line}\n" for line in lines).encode() + b"rest", []
    cloudwatch_limit, cloudwatch._MAX_EVENTS = cloudwatch._MAX_EVENTS, 7
    try:
        while True:
            events, taken = log_events(text, 1, last=True)
            if not taken:
                break
            assert len(events) <= 7
            sent += [event["message"] for event in events]
            text = text[taken:]
    finally:
        cloudwatch._MAX_EVENTS = cloudwatch_limit
    assert sent == [line.rstrip() for line in [*lines, "rest"] if line.strip()]


# --- a service that refuses -------------------------------------------------------------------------------------------
class Refusing:
    """Every call fails until ``open``; then they are counted."""

    def __init__(self) -> None:
        self.open = False
        self.lines: list[str] = []
        self.metrics = 0
        self.refused = 0

    def _call(self) -> None:
        if not self.open:
            self.refused += 1
            raise ConnectionError("no route")

    def create_log_stream(self, **_):
        self._call()

    def put_log_events(self, *, logEvents, **_):
        self._call()
        self.lines += [event["message"] for event in logEvents]

    def put_metric_data(self, **_):
        self._call()
        self.metrics += 1


def test_an_outage_is_said_once_and_afterwards_nothing_is_missing(tmp_path, monkeypatch, caplog):
    service = Refusing()
    monkeypatch.setattr(cloudwatch, "_client", lambda _: service)
    monkeypatch.setattr(cloudwatch, "TICKS_PER_METRICS", 1)
    file = tmp_path / "log"
    file.write_bytes(b"first\n" + b"x" * 100_000 + b"\n")
    publisher = CloudWatch(
        stack_name="s", log_group="g", log_stream="r/1", figures=lambda: {"Step": 1.0}, log_file=file, interval=0.01
    )
    with caplog.at_level(logging.WARNING):
        publisher.start()
        wait_for(lambda: service.refused > 6, "several refusals")
        service.open = True
        wait_for(lambda: service.metrics, "metrics")
        with file.open("ab") as more:
            more.write(b"last, without an end")
        publisher.close()
    assert service.lines[0] == "first"
    assert "".join(service.lines[1:-1]) == "x" * 100_000, "a line too long for one event goes in parts"
    assert service.lines[-1] == "last, without an end"
    said = [record.getMessage() for record in caplog.records]
    assert sorted(message.split("(")[0] for message in said) == [
        "CloudWatch did not take the log ", "CloudWatch did not take the metrics "
    ]  # fmt: skip


# --- the real supervisor ----------------------------------------------------------------------------------------------
@pytest.fixture
def aws(lab):
    """Clients of the services that the instance publishes to."""
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": REGION}
    return {name: boto3.client(name, endpoint_url=lab.endpoint, **keys) for name in ("logs", "cloudwatch")}


def test_a_run_is_to_be_read_in_cloudwatch(lab, aws):
    group = f"log-of-{lab.keys.run_id}"
    aws["logs"].create_log_group(logGroupName=group)
    lab.start_run(stack_name=group, log_group=group)
    assert lab.run_box() == 0
    events = aws["logs"].get_log_events(logGroupName=group, logStreamName=f"{lab.keys.run_id}/1", startFromHead=True)
    text = [event["message"] for event in events["events"]]
    assert any("Attempt 1 of 3" in line for line in text), "from the first line"
    assert any("Attempt 1 is over: 6 steps" in line for line in text), "to the last"
    metrics = aws["cloudwatch"].list_metrics(Namespace="LLMTuningLab", Dimensions=[{"Name": "Stack", "Value": group}])[
        "Metrics"
    ]
    assert {"Step", "DurableStep", "Attempt"} <= {metric["MetricName"] for metric in metrics}


def test_a_log_group_that_is_gone_does_not_disturb_the_run(lab):
    lab.start_run(stack_name="s", log_group="never-made")
    assert lab.run_box() == 0
    assert lab.outcome()["reason"] == "succeeded"
    assert lab.log().count("CloudWatch did not take the log") <= 1


def test_a_run_without_a_log_group_publishes_nothing(lab, aws):
    lab.start_run(stack_name=lab.keys.run_id)
    assert lab.run_box() == 0
    dimension = {"Name": "Stack", "Value": lab.keys.run_id}
    assert aws["cloudwatch"].list_metrics(Namespace="LLMTuningLab", Dimensions=[dimension])["Metrics"] == []
