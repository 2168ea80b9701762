"""Sets Docker's data root in daemon.json: FILE ROOT. What else stands there stays.

Docker 29 keeps images with containerd, wherever its own data lies: only its older store goes along.
"""

import json
import sys
from pathlib import Path

path, root = Path(sys.argv[1]), sys.argv[2]
config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
config["data-root"] = root
config.setdefault("features", {})["containerd-snapshotter"] = False
path.write_text(json.dumps(config, indent=1), encoding="utf-8")
