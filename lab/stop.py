"""`lab stop`: asks the active run for a checkpoint and its end, waits, and says what became of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from lab.operator.deployed import OutputError, Outputs
from training_image.core.contract import RunKeys
from training_image.core.records import StopRequest, now, read_heartbeat, read_outcome, update_control

WAIT_SECONDS = 900.0
"""An instance answers within two minutes; where there is none, or it hangs, the auto-terminator ends the run."""
POLL_SECONDS = 2.0


def stop(outputs: Outputs, say: Callable[[str], None], wait_seconds: float = WAIT_SECONDS) -> None:
    """Ask, wait for the run's outcome, and say it. May be repeated: the first request stands.

    Raises:
        OutputError: there is no run, it has ended before, or it has not within ``wait_seconds``.
    """
    run_id = outputs.value("run_id")
    if run_id == "none":
        raise OutputError("There is no run to stop: none was started (create_instance: false).")
    store, keys = outputs.results(), RunKeys(run_id)
    if outcome := read_outcome(store, keys):
        raise OutputError(f"There is no run to stop: {run_id} ended as {outcome.reason} ({outcome.sentence}).")
    request = StopRequest(now(), detail="`lab stop` was typed")
    update_control(store, keys, lambda control: replace(control, stop=control.stop or request))
    say(f"Run {run_id} has been asked to save a checkpoint and end. Ctrl-C leaves it to that.")
    end = time.monotonic() + wait_seconds
    last = None
    while (outcome := read_outcome(store, keys)) is None:
        if time.monotonic() > end:
            raise OutputError(
                f"Run {run_id} has not ended yet; the request stands, and the auto-terminator sees to it. Wait again: "
                "lab stop. End it now: " + outputs.command("cdk destroy TrainingStack")
            )
        beat = read_heartbeat(store, keys)
        seen = f"{beat.phase}, step {beat.step or 0}" if beat.phase else "no instance has reported yet"
        if seen != last:
            say(f"  {seen}")
            last = seen
        time.sleep(POLL_SECONDS)
    say(f"Run {run_id} ended as {outcome.reason}: {outcome.sentence}.")
    if outcome.succeeded:
        say(f"Fetch the adapter: aws s3 sync s3://{store.bucket}/{keys.adapter} adapter/")
    else:
        say(f"Continue it: {outputs.command(f'lab resume {run_id}')}")
    say(f"Remove the rest of the stack: {outputs.command('cdk destroy TrainingStack')}")
