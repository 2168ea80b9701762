"""Prints when EC2 launched this instance, in epoch seconds: ``pendingTime`` of the identity DOCUMENT."""

import datetime
import json
import sys
from pathlib import Path

at = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["pendingTime"]
print(int(datetime.datetime.fromisoformat(at.replace("Z", "+00:00")).timestamp()))
