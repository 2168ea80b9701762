"""A clone to work in as a newcomer would, next to this one: its cloud and its reports are its own."""

import json
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]


def fresh_clone(folder: Path) -> Path:
    """A copy of the working tree without what setup made; `.venv` and `node_modules` are this one's."""
    clone = folder / "clone"
    made = (".git", ".venv", "node_modules", ".lab", "cdk.out", "lab.yaml", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(*made))
    (clone / "node_modules").symlink_to(ROOT / "node_modules")
    (clone / ".venv").mkdir()
    for path in (ROOT / ".venv").iterdir():
        if path.name != ".ready":
            (clone / ".venv" / path.name).symlink_to(path)
    (clone / ".venv" / ".ready").touch()
    (clone / "data").mkdir()
    rows = [{"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}."} for n in range(40)]
    (clone / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return clone


def own_code(clone: Path) -> dict[str, str]:
    """The variable by which programs run this clone's code with the other one's packages."""
    return {"PYTHONPATH": f"{clone}:{clone / 'constructs'}"}
