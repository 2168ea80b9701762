"""What an e-mail says: what happened, what it has cost at most, what to type next."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.runs import a_run
from training_image.core import notices
from training_image.core.contract import Actor, Reason
from training_image.core.records import Outcome
from training_image.core.usage import Usage, usage

START = datetime(2026, 1, 1, tzinfo=UTC)
RUN = a_run(
    deadline="2026-01-01T13:00:00+01:00",
    spec={
        "use_spot": True,
        "usd_per_hour": 1.006,
        "deploy_command": "cdk deploy TrainingStack",
        "destroy_command": "cdk destroy TrainingStack -c run=x",
    },
)
USED = Usage(2, 3.5)


def activity(description: str, hours: float, status: str = "Successful") -> dict:
    return {"Description": description, "StartTime": START + timedelta(hours=hours), "StatusCode": status}


def test_hours_of_all_instances_are_added_up_and_earlier_runs_do_not_count():
    activities = [
        activity("Launching a new EC2 instance: i-3", 4),
        activity("Terminating EC2 instance: i-2", 3, "InProgress"),
        activity("Launching a new EC2 instance: i-2", 1),
        activity("Launching a new EC2 instance.  Status Reason: no capacity", 0.5, "Failed"),
        activity("Terminating EC2 instance: i-1", -1),
        activity("Launching a new EC2 instance: i-1", -2),
    ]
    assert usage(activities, START, START + timedelta(hours=5)) == Usage(2, 3.0)


def test_the_start_says_the_deadline_in_utc_the_price_and_how_to_follow():
    notice = notices.started(RUN)
    assert notice.subject == "TrainingStack: run run-1a2b3c4d-1 has started"
    for part in ("spot", "g5.xlarge", "2026-01-01 12:00 UTC", "$1.01", "s3://out/runs/run-1a2b3c4d-1/heartbeat.json"):
        assert part in notice.body


def test_success_says_how_to_fetch_the_adapter_and_what_it_cost():
    notice = notices.ended(RUN, Outcome(Reason.SUCCEEDED, "60 steps on 900 examples", Actor.INSTANCE), USED)
    assert notice.subject.endswith("succeeded")
    for part in (
        "60 steps",
        "2 instance(s), 3.50 hours, at most $3.52",
        "s3://out/runs/run-1a2b3c4d-1/adapter/ adapter/",
    ):
        assert part in notice.body
    assert notice.body.rstrip().endswith("cdk destroy TrainingStack -c run=x")


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.SUCCEEDED])
def test_every_other_end_says_where_to_look(reason):
    notice = notices.ended(RUN, Outcome(reason, None, Actor.TERMINATOR), USED)
    assert "auto-terminator ended it" in notice.body
    assert "s3://out/runs/run-1a2b3c4d-1/" in notice.body
    assert "cdk deploy TrainingStack -c resume=run-1a2b3c4d-1" in notice.body


def test_the_start_says_which_run_it_continues():
    assert "It continues run run-1a2b3c4d-7. It waits" in notices.started(replace(RUN, resume="run-1a2b3c4d-7")).body
    assert "continues" not in notices.started(RUN).body


def test_a_resume_says_from_where():
    assert "from the checkpoint of step 40" in notices.resumed(RUN, 2, 40, USED).body
    assert "began again" in notices.resumed(RUN, 2, None, USED).body
    assert notices.resumed(RUN, 2, 40, USED).name != notices.resumed(RUN, 3, 40, USED).name


def test_an_interruption_asks_for_nothing():
    assert "Nothing to do" in notices.interrupted(RUN, "i-1", USED).body


@given(st.text(max_size=200))
def test_a_subject_is_what_sns_accepts(name):
    notice = notices.still_there(name, ["i-1"], "why")
    assert len(notice.subject) <= 100
    assert notice.subject.isascii()
