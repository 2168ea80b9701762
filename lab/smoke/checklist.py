"""What the acceptance run has checked: printed, and kept as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    detail: str = ""
    """What was found; where it failed, what to do."""


@dataclass
class Checklist:
    """Checks in the order in which they were made. One that was never reached is no pass: see ``EXPECTED``."""

    facts: dict[str, Any] = field(default_factory=dict)
    """Account, region, run, cost: what a reader of the file wants to know."""
    checks: list[Check] = field(default_factory=list)

    def add(self, name: str, passed: bool, detail: str = "") -> bool:
        if name not in EXPECTED:
            raise ValueError(f"{name!r} is not on the list")
        self.checks.append(Check(name, passed, detail))
        return passed

    @property
    def missing(self) -> list[str]:
        made = {check.name for check in self.checks}
        return [name for name in EXPECTED if name not in made]

    @property
    def passed(self) -> bool:
        return not self.missing and all(check.passed for check in self.checks)

    def show(self, console: Console) -> None:
        for check in self.checks:
            mark = ("✓ ", "bold green") if check.passed else ("✗ ", "bold red")
            console.print(Text.assemble(mark, check.name, (f"  {check.detail}" if check.detail else "", "dim")))
        for name in self.missing:
            console.print(Text(f"- {name}  not reached", "yellow"))

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        checks = [{"name": item.name, "passed": item.passed, "detail": item.detail} for item in self.checks]
        content = {"passed": self.passed, **self.facts, "checks": checks, "not_reached": self.missing}
        path.write_text(json.dumps(content, indent=2) + "\n")


BOOTSTRAP = "account and region are bootstrapped"
DATA_STACK = "cdk deploy DataStack"
TRAINING_STACK = "cdk deploy TrainingStack"
SUCCEEDED = "the run succeeded"
ADAPTER = "the adapter is in S3"
WATCHED = "figures and log are in CloudWatch"
ITSELF = "the instance ended itself"
BOX = "volumes and network interfaces are gone"
DESTROYED = "cdk destroy TrainingStack"
NOTHING_LEFT = "nothing is left that TrainingStack made"
UNTOUCHED = "DataStack and the results are untouched"
EXPECTED = (
    *(BOOTSTRAP, DATA_STACK, TRAINING_STACK, SUCCEEDED, ADAPTER, WATCHED, ITSELF, BOX),
    *(DESTROYED, NOTHING_LEFT, UNTOUCHED),
)
