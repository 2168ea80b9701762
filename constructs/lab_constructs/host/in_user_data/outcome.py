"""Prints the outcome.json of a run that the host ends: REASON SENTENCE."""

import datetime
import json
import sys

now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
print(json.dumps({"schema": 2, "reason": sys.argv[1], "detail": sys.argv[2], "by": "instance", "at": now}))
