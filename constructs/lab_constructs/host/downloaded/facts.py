"""Prints what the rest of the setup needs of RUN.JSON, as quoted shell assignments: nothing of it is evaluated."""

import json
import shlex
import sys
from pathlib import Path

run = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
model = run["settings"]["model"]
facts = {
    "IMAGE": run["image"],
    "GPUS": run["gpus"],
    "DATA_URI": run["data_uri"],
    "BASE_MODEL": model["base_model"],
    "REVISION": model["revision"] or "main",
    "TRAINING_BUCKET": run["training_bucket"],
}
for name, value in facts.items():
    print(name + "=" + shlex.quote(str(value)))
