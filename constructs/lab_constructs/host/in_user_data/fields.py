"""Prints a run's group and limits as quoted shell assignments: RUN.JSON CONTROL.JSON."""

# The limits of control.json lie over those of run.json (records.in_force); those that cannot be read change nothing.
# Nothing is evaluated: the shell sees quoted words only. Python 3.8, standard library: this is the machine image's.

import contextlib
import datetime
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any


def utc(text: str) -> datetime.datetime:
    when = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    if when.tzinfo is None or not 2000 <= when.year < 2200:
        raise ValueError("no time of a run: " + text)
    return when.astimezone(datetime.timezone.utc)


run: Any = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
control: Any = None
with contextlib.suppress(OSError, ValueError, RecursionError):
    control = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
control = control if isinstance(control, dict) else {}
limits = control.get("limits")
limits = limits if isinstance(limits, dict) else {}

deadline, auto_shutdown = utc(run["deadline"]), run["auto_shutdown"]
with contextlib.suppress(KeyError, AttributeError, TypeError, ValueError, OverflowError):
    deadline = utc(limits["deadline"])
if isinstance(limits.get("auto_shutdown"), bool):
    auto_shutdown = limits["auto_shutdown"]
if isinstance(control.get("stop"), dict):
    auto_shutdown = True  # who stops a run has reviewed it
values = {
    "GROUP": run["group"],
    "AUTO_SHUTDOWN": str(auto_shutdown).lower(),
    "DEADLINE": deadline.strftime("%Y-%m-%d %H:%M:%S UTC"),
    "EXPIRED": str(deadline.timestamp() <= time.time()).lower(),
}
for name, value in values.items():
    print(name + "=" + shlex.quote(value))
