"""The real CDK CLI, as a user types it: output to a log file, its end shown when it fails."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from training_image.core.errors import UserError

_TAIL_LINES = 25


class CdkError(UserError):
    """A ``cdk`` command failed; the message holds the command, the end of its output, and where the rest is."""


USUAL_NAMES = {"lab": "default", "run": "run"}
"""They name the stacks, whatever ``lab.yaml`` says."""


class Cdk:
    """The CLI in this clone; ``context`` goes with every command as ``-c key=value``."""

    def __init__(
        self, root: Path, logs: Path, environ: Mapping[str, str], context: Mapping[str, str] = USUAL_NAMES
    ) -> None:
        self._root = root
        self._logs = logs
        self._environ = environ
        self._context = [word for key, value in context.items() for word in ("-c", f"{key}={value}")]

    def run(self, command: str, stack: str, *options: str, variables: Mapping[str, str] | None = None) -> None:
        """Run ``cdk <command> <stack>`` to its end, with ``variables`` added to its environment.

        Raises:
            CdkError: if it fails. When this is interrupted, the CLI and all that it started are ended first.
        """
        words = ["cdk", command, stack, *options]
        log = self._logs / f"cdk-{command}-{stack}.log"
        quiet = ["--no-color", "--no-notices", "--output", str(self._logs / "cdk.out")]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(self._root / "node_modules" / ".bin" / "cdk"), *words[1:], *self._context, *quiet],
                cwd=self._root,
                env={**self._environ, **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that all of it can be ended together
            )
            try:
                code = process.wait()
            except BaseException:
                _end(process)
                raise
        if code:
            tail = telling_part(log.read_text(errors="replace"))
            raise CdkError(f"`{' '.join(words)}` failed (exit code {code}):\n\n{tail}\n\nAll of its output: {log}")


def telling_part(output: str) -> str:
    """The end of the CLI's output, from where it says what failed: events of a rollback stand before that."""
    lines = output.rstrip().splitlines()
    named = [number for number, line in enumerate(lines) if line.startswith(("Failed resources:", "[Error at "))]
    start = named[0] if named else len(lines) - _TAIL_LINES
    return "\n".join(lines[max(0, start) :][:_TAIL_LINES])


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
