"""Prints the outcome.json of a run that the host ends: REASON SENTENCE."""

import datetime
import json
import sys

outcome = dict.fromkeys(["attempts", "resumed_from_step", "step"])
now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
print(json.dumps({"reason": sys.argv[1], "detail": sys.argv[2], "by": "box", "at": now, **outcome}))
