"""What a trainer's exit means: stated as laws, not as a table copied from the code."""

from hypothesis import given
from hypothesis import strategies as st

from training_image.core.contract import Reason, SupervisorExit, TrainerExit
from training_image.supervisor.decisions import Cause, Stop, may_end_at_once, verdict

ENDING = {Cause.CONTROL: Reason.STOPPED, Cause.DEADLINE: Reason.EXPIRED}
stops = st.sampled_from(list(Cause)).map(lambda cause: Stop(cause, "because", ENDING.get(cause)))
exits = st.none() | st.sampled_from(list(TrainerExit)).map(int) | st.integers(-15, 255)
cases = st.fixed_dictionaries(
    {
        "trainer_exit": exits,
        "succeeded": st.booleans(),
        "stop": st.none() | stops,
        "attempt": st.integers(1, 5),
        "max_attempts": st.just(5),
    }
)


@given(cases)
def test_the_run_ends_exactly_when_an_outcome_is_written(case):
    judged = verdict(**case)
    assert (judged.reason is not None) == (judged.exit_code == SupervisorExit.RUN_ENDED)


@given(cases)
def test_success_needs_exit_code_done_and_a_marker_that_holds(case):
    if verdict(**case).reason is Reason.SUCCEEDED:
        assert case["trainer_exit"] == TrainerExit.DONE
        assert case["succeeded"]


@given(cases)
def test_a_fenced_attempt_never_writes_an_outcome(case):
    judged = verdict(**case | {"stop": Stop(Cause.FENCED, "newer")})
    assert judged.reason is None
    assert judged.exit_code == SupervisorExit.INSTANCE_LEAVING


@given(cases, st.sampled_from([Cause.SIGNAL, Cause.NOTICE, Cause.SCALE_IN]))
def test_an_instance_that_is_taken_away_never_fails_the_run_for_it(case, cause):
    judged = verdict(**case | {"stop": Stop(cause, "leave")})
    if judged.reason is Reason.FAILED:
        assert case["trainer_exit"] in (TrainerExit.BAD_INPUT, TrainerExit.OUT_OF_MEMORY)
    else:
        assert judged.reason in (None, Reason.SUCCEEDED)


@given(cases)
def test_a_crash_is_tried_again_until_the_last_attempt(case):
    judged = verdict(**case | {"trainer_exit": 1, "succeeded": False, "stop": None})
    assert (judged.reason is Reason.FAILED) == (case["attempt"] == case["max_attempts"])
    assert judged.exit_code != SupervisorExit.INSTANCE_LEAVING


def test_only_a_trainer_that_has_nothing_unsaved_is_ended_at_once():
    endable = {"loading", "evaluating_before", "evaluating_after"}
    for phase in (None, "training", "saving", "a phase of somebody's own trainer", *endable):
        assert may_end_at_once(phase) == (phase in endable)


def test_done_without_a_marker_is_a_crash():
    judged = verdict(trainer_exit=0, succeeded=False, stop=None, attempt=1, max_attempts=3)
    assert judged.reason is None
    assert judged.exit_code not in set(SupervisorExit)


def test_an_unasked_stop_is_a_crash():
    judged = verdict(trainer_exit=TrainerExit.STOPPED, succeeded=False, stop=None, attempt=1, max_attempts=3)
    assert judged.exit_code not in set(SupervisorExit)


@given(st.sampled_from([Cause.CONTROL, Cause.DEADLINE]), exits.filter(lambda code: code not in (0, 11, 12)))
def test_a_requested_end_gives_its_reason_even_if_the_trainer_had_to_be_killed(cause, code):
    stop = Stop(cause, "end", ENDING[cause])
    judged = verdict(trainer_exit=code, succeeded=False, stop=stop, attempt=1, max_attempts=3)
    assert judged.reason is ENDING[cause]
