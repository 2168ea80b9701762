"""The wall clock of an instance, set from outside: libfaketime, preloaded into each of the instance's processes.

Only the wall clock moves. The monotonic clock and the times of files stay, as on a machine whose clock is set.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

VARIABLES = (
    "LD_PRELOAD",
    "FAKETIME_TIMESTAMP_FILE",
    "FAKETIME_CACHE_DURATION",
    "FAKETIME_DONT_FAKE_MONOTONIC",
    "NO_FAKE_STAT",
)
"""What a container of the instance has too: it shares the machine's clock."""
_PLACES = ("/usr/lib/*/faketime", "/usr/lib64/faketime", "/usr/lib/faketime", "/usr/local/lib/faketime")
_SOURCE = Path(__file__).with_name("real_sleep.c")


class ClockError(ValueError):
    """Clocks cannot be moved on this machine; one sentence."""


def preload(directory: Path) -> str:
    """What to preload into a process whose clock is to be moved; compiles our part of it into ``directory``.

    Raises:
        ClockError: libfaketime or a C compiler is missing.
    """
    found = [path for place in _PLACES for path in Path("/").glob(f"{place[1:]}/libfaketime.so.1")]
    if not found:
        raise ClockError("libfaketime is not installed (Debian's package libfaketime)")
    sleep = directory / "real_sleep.so"
    if not sleep.exists():
        try:
            command = ["cc", "-shared", "-fPIC", "-o", str(sleep), str(_SOURCE)]
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ClockError(f"no C compiler, which libfaketime's correction needs ({error})") from None
    return f"{sleep}:{found[0]}"


def environment(box: Path, preloaded: str) -> dict[str, str]:
    """What each process of the instance needs."""
    move(box, 0)
    return dict(zip(VARIABLES, (preloaded, str(_file(box)), "1", "1", "1"), strict=True))


def move(box: Path, seconds: float) -> None:
    """Let the instance's clock be ``seconds`` ahead of the real one from now on, negative: behind; its processes see it
    within a second."""
    new = _file(box).with_suffix(".new")
    new.write_text(f"{seconds:+.0f}\n")
    new.rename(_file(box))


def is_movable(box: Path) -> bool:
    return _file(box).exists()


def _file(box: Path) -> Path:
    return box / "run" / "clock"
