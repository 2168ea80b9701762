"""A host without AWS: the boot script and the files it fetches run as they lie, with stubs of all that they call."""

from __future__ import annotations

import io
import json
import subprocess
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab_constructs import compute
from tests.support import runs
from training_image.core import contract

RUN_ID = "run-12345678-1"
KEYS = contract.RunKeys(RUN_ID)
BUCKET, ASSETS, ARCHIVE = "outputs", "assets", "host.zip"
INSTANCE = "i-0123456789abcdef0"
LAUNCHED = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)

FAULT = """#!/bin/bash
echo "${0##*/} $*" >>"$STUBS/calls"
for word in "${0##*/}" "$@"; do
  for fault in "$STUBS/faults/$word" "$STUBS/faults/$word.once"; do
    if [ -f "$fault" ]; then
      cat "$fault" >&2
      [ "${fault%.once}" = "$fault" ] || rm "$fault"
      exit 254
    fi
  done
done
"""
AWS = r"""
S3=$STUBS/s3
case "$1 $2" in
  's3 cp')
    shift 2
    [ "$1" != --only-show-errors ] || shift
    if [[ $1 == s3://* ]]; then
      [ -f "$S3/${1#s3://}" ] || { echo 'fatal error: (404) Not Found' >&2; exit 1; }
      if [ "$2" = - ]; then cat "$S3/${1#s3://}"; else cp "$S3/${1#s3://}" "$2"; fi
    else
      mkdir -p "$(dirname "$S3/${2#s3://}")" && cp "$1" "$S3/${2#s3://}"
    fi ;;
  s3api*)
    [[ "$*" =~ --bucket\ ([^ ]+)\ --key\ ([^ ]+) ]] && object=$S3/${BASH_REMATCH[1]}/${BASH_REMATCH[2]}
    case $2 in
      head-object) [ -f "$object" ] ;;
      get-object) cp "$object" "${!#}" ;;
      put-object)
        [ ! -f "$object" ] || { echo PreconditionFailed >&2; exit 254; }
        [[ "$*" =~ --body\ ([^ ]+) ]] && cp "${BASH_REMATCH[1]}" "$object" ;;
    esac ;;
esac
"""
STUBS = {
    "aws": AWS,
    "curl": f"""
case "${{!#}}" in
  */api/token) echo token ;;
  */instance-id) echo {INSTANCE} ;;
  */document) echo '{{"pendingTime": "{LAUNCHED:%Y-%m-%dT%H:%M:%SZ}"}}' ;;
esac
""",
    "docker": "",
    "id": "[ $# = 1 ] || exit 1\necho 0\n",
    "mountpoint": '[ -e "$STUBS/mounted" ]\n',
    "poweroff": "",
    "runuser": "",
    "sleep": "",
    "systemctl": '[ "$1" != is-active ] || [ -e "$STUBS/active" ]\n',
    "useradd": "",
}


def archive(folder: Path = compute.DOWNLOADED) -> bytes:
    """``folder`` as the CDK publishes it."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.iterdir()):
            if path.is_file():
                file.write(path, path.name)
    return packed.getvalue()


def run_json(**changes: Any) -> dict[str, Any]:
    own = {
        "group": "the-group",
        "image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/lab@sha256:0",
        "gpus": 1,
        "data_uri": "s3://training/data/",
        "training_bucket": "training",
        "settings": {"model": {"base_model": "org/model", "revision": None}},
    }
    return runs.run_json(**(own | changes))


class StubHost:
    def __init__(self, folder: Path) -> None:
        self.root, self._stubs = folder / "root", folder / "stubs"
        self.lib = self.root / "usr/local/lib/llm-tuning-lab"
        for path in (self.root, self._stubs / "bin", self._stubs / "faults"):
            path.mkdir(parents=True)
        for name, text in STUBS.items():
            stub = self._stubs / "bin" / name
            stub.write_text(FAULT + text)
            stub.chmod(0o755)
        self.put(BUCKET, contract.pointer_key("12345678"), {"run_id": RUN_ID})
        self.put(BUCKET, KEYS.run, run_json())
        self.put(ASSETS, ARCHIVE, archive())

    # --- what AWS has -------------------------------------------------------------------------------------------------
    def put(self, bucket: str, key: str, body: Any) -> None:
        path = self._stubs / "s3" / bucket / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body if isinstance(body, bytes) else json.dumps(body).encode())

    def get(self, key: str) -> str | None:
        path = self._stubs / "s3" / BUCKET / key
        return path.read_text() if path.exists() else None

    def outcome(self) -> dict[str, Any] | None:
        text = self.get(KEYS.outcome)
        return None if text is None else json.loads(text)

    # --- what happens -------------------------------------------------------------------------------------------------
    def fault(self, word: str, message: str = "", *, once: bool = False) -> None:
        """Each command, or the first, with this word among its words says ``message`` and fails."""
        (self._stubs / "faults" / f"{word}{'.once' if once else ''}").write_text(message)

    def set(self, *names: str) -> None:
        """``mounted``: there is an instance store; ``active``: the training unit runs."""
        for name in names:
            (self._stubs / name).touch()

    def run(self, program: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/bash", program, *words],
            env={
                "PATH": f"{self._stubs / 'bin'}:/usr/bin:/bin",
                "DESTDIR": str(self.root),
                "STUBS": str(self._stubs),
                **variables,
            },
            capture_output=True,
            text=True,
            timeout=60,
            umask=0o022,
        )

    def boot(self) -> int:
        """Run the boot script; its exit code."""
        script = self._stubs / "user-data"
        script.write_text(
            compute.render_user_data(
                outputs_bucket=BUCKET,
                stack_suffix="12345678",
                region="us-east-1",
                host_bucket=ASSETS,
                host_key=ARCHIVE,
            )
        )
        return self.run(script).returncode

    # --- what was done ------------------------------------------------------------------------------------------------
    @property
    def calls(self) -> list[str]:
        """Command lines in order, of the programs that are stubs here."""
        path = self._stubs / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def forget(self) -> None:
        (self._stubs / "calls").unlink(missing_ok=True)

    @property
    def log(self) -> str:
        return (self.root / "var/log/training-setup.log").read_text()

    @property
    def ending(self) -> list[str]:
        """How the instance was ended: of the calls that end something, the words that say how, in order."""
        words = ("terminate-instance-in-auto-scaling-group", "update-auto-scaling-group", "complete-lifecycle-action")
        found = []
        for call in self.calls:
            parts = call.split()
            if parts[0] == "poweroff":
                found.append("poweroff")
            found += [part for part in parts if part in words]
        return found


def readable(path: Path) -> bool:
    """By everybody: Session Manager's user reads it."""
    return bool(path.stat().st_mode & 0o004)
