"""The real CDK CLI in front of a local cloud, as an operator types it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from local_cloud.cloud import LocalCloud

ROOT = Path(__file__).parents[2]


def cdk(cloud: LocalCloud, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """``cdk ARGUMENTS`` in a shell with ``variables``, by default the administrator's; the cloud assembly goes to
    ``folder``."""
    clean = {name: value for name, value in cloud.environ().items() if not name.startswith("LLM_")}
    return subprocess.run(
        [str(ROOT / "node_modules/.bin/cdk"), *arguments, "--no-color", "--no-notices", "--output", str(folder)],
        cwd=ROOT, env={**clean, **variables}, text=True, timeout=300,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
