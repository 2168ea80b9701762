"""What the run controller does, without AWS: examples, then properties over sequences of requests."""

from hypothesis import given
from hypothesis import strategies as st
from policy import Action, Current, Request, decide

SPEC = {
    "create_instance": True,
    "new_run": None,
    "resume": None,
    "destroy_command": "cdk destroy TrainingStack",
    "settings": {"lr": 1},
    "max_runtime_hours": 12,
    "auto_shutdown": True,
}
OTHER = {**SPEC, "settings": {"lr": 2}}
LONGER = {**SPEC, "max_runtime_hours": 24}
AGAIN = {**SPEC, "new_run": "again"}
OFF = {**SPEC, "create_instance": False}
RESUME = {**SPEC, "resume": {"run_id": "run-1a2b3c4d-1", "said": {}}}


def request(kind="Update", spec=SPEC, old=None, undoes=None, request_id="new"):
    return Request(kind, request_id, spec, old, undoes)


def run(spec=SPEC, ended=False, request_id="old"):
    return Current("run-1a-1", request_id, spec, ended)


def test_create_starts_a_run():
    assert decide(request("Create"), None).action is Action.START


def test_create_without_an_instance_starts_nothing():
    assert decide(request("Create", spec=OFF), None).action is Action.NOTHING


def test_a_second_delivery_finishes_what_the_first_began_and_never_revives_an_ended_run():
    assert decide(request("Create", request_id="x"), run(request_id="x")).action is Action.START
    assert decide(request("Create", request_id="x"), run(request_id="x", ended=True)).action is Action.NOTHING


def test_changed_settings_are_refused_while_active_in_one_sentence_with_the_way_out():
    decision = decide(request(spec=OTHER, old=SPEC), run())
    assert decision.action is Action.REFUSE
    assert "run-1a-1 is active" in decision.sentence
    assert "cdk destroy TrainingStack" in decision.sentence


def test_changed_settings_after_the_end_start_the_next_run():
    assert decide(request(spec=OTHER, old=SPEC), run(ended=True)).action is Action.START


def test_back_to_the_frozen_settings_is_no_change():
    assert decide(request(spec=SPEC, old=OTHER), run(spec=SPEC)).action is Action.NOTHING


def test_switching_the_instance_off_stops_an_active_run_and_on_again_starts_one():
    assert decide(request(spec=OFF, old=SPEC), run()).action is Action.STOP
    assert decide(request(spec=SPEC, old=OFF), run(ended=True)).action is Action.START


def test_a_rollback_ends_what_the_failed_update_started_and_nothing_else():
    rollback = request(spec=SPEC, old=OTHER, undoes="failed")
    assert decide(rollback, run(spec=OTHER, request_id="failed")).action is Action.STOP
    assert decide(rollback, run(spec=SPEC)).action is Action.NOTHING
    assert decide(rollback, run(spec=OTHER)).action is Action.NOTHING, "an earlier update started it"


def test_a_rollback_ends_a_run_even_if_what_was_deployed_before_looks_the_same():
    for before, after in ((OFF, SPEC), (LONGER, SPEC), (SPEC, AGAIN)):
        rollback = request(spec=before, old=after, undoes="failed")
        assert decide(rollback, run(spec=after, request_id="failed")).action is Action.STOP


def test_limits_change_under_an_active_run_and_nothing_else_does():
    assert decide(request(spec=LONGER, old=SPEC), run()).action is Action.LIMIT
    assert decide(request(spec={**LONGER, "settings": {"lr": 2}}, old=SPEC), run()).action is Action.REFUSE


def test_limits_of_an_ended_run_start_nothing():
    decision = decide(request(spec=LONGER, old=SPEC), run(ended=True))
    assert decision.action is Action.NOTHING
    assert "max_runtime_hours holds for the next run" in decision.sentence


def test_a_rollback_takes_limits_back():
    assert decide(request(spec=SPEC, old=LONGER, undoes="failed"), run()).action is Action.LIMIT


def test_new_run_starts_another_with_the_same_settings_once():
    assert decide(request(spec=AGAIN, old=SPEC), run(ended=True)).action is Action.START
    assert decide(request(spec=AGAIN, old=SPEC), run()).action is Action.REFUSE
    assert decide(request(spec=AGAIN, old=AGAIN), run(spec=AGAIN, ended=True)).action is Action.NOTHING
    assert decide(request(spec=SPEC, old=AGAIN), run(spec=AGAIN, ended=True)).action is Action.NOTHING, "left out again"


def test_resume_starts_the_next_run_once_and_never_under_an_active_one():
    assert decide(request("Create", spec=RESUME), None).action is Action.START
    assert decide(request(spec=RESUME, old=SPEC), run(ended=True)).action is Action.START
    assert decide(request(spec=RESUME, old=SPEC), run()).action is Action.REFUSE
    assert decide(request(spec=RESUME, old=SPEC), run(spec=RESUME, ended=True)).action is Action.NOTHING
    assert decide(request(spec=SPEC, old=RESUME), run(spec=RESUME, ended=True)).action is Action.NOTHING, (
        "left out again"
    )
    longer = {**LONGER, "resume": RESUME["resume"]}
    assert decide(request(spec=longer, old=RESUME), run(spec=RESUME)).action is Action.LIMIT


specs = st.sampled_from([SPEC, OTHER, OFF, LONGER, AGAIN, RESUME])
currents = st.none() | st.builds(run, spec=specs, ended=st.booleans(), request_id=st.sampled_from(["old", "new"]))


@given(specs, st.none() | specs, currents)
def test_a_rollback_is_never_refused_and_never_starts_anything(spec, old, current):
    assert decide(request(spec=spec, old=old, undoes="old"), current).action in (
        Action.NOTHING, Action.STOP, Action.LIMIT
    )  # fmt: skip


@given(specs, currents)
def test_a_delete_always_stops(spec, current):
    assert decide(request("Delete", spec=spec), current).action is Action.STOP


@given(specs, st.none() | specs, currents, st.sampled_from(["Create", "Update"]))
def test_no_request_starts_a_second_run_beside_an_active_one(spec, old, current, kind):
    decision = decide(request(kind, spec=spec, old=old), current)
    if decision.action is Action.START and current is not None and not current.ended:
        assert current.request_id == "new", "only the request that began this run may go on with it"


@given(specs, st.none() | specs, currents, st.sampled_from([None, "old", "new"]))
def test_limits_never_change_on_a_run_that_has_other_settings_or_has_ended(spec, old, current, undoes):
    decision = decide(request(spec=spec, old=old, undoes=undoes), current)
    if decision.action is Action.LIMIT:
        assert current is not None
        assert not current.ended
        assert current.spec["settings"] == spec["settings"]
