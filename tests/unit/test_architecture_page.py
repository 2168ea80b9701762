"""docs/architecture.md: its picture of the rooms is the table that the imports are held to."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from tests.unit.test_layout import ROOMS, within

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def drawn() -> set[tuple[str, str]]:
    """Arrows of the picture of the rooms."""
    (section,) = re.findall(r"^## The rooms\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
    (picture,) = re.findall(r"```mermaid\n(.*?)```", section, re.DOTALL)
    arrows = set()
    for line in picture.splitlines():
        rooms = line.strip().split(" --> ")
        arrows |= set(itertools.pairwise(rooms))
    return arrows


def allowed() -> dict[str, set[str]]:
    """The table ``ROOMS`` from room to rooms: ``training_image`` means each room of it."""
    packages = {
        room: room.rpartition("/")[2] if room.startswith("constructs/") else room.replace("/", ".") for room in ROOMS
    }
    return {
        room: {other for other, name in packages.items() if other != room and within(name, ROOMS[room])}
        for room in ROOMS
    }


def reached(room: str, arrows: dict[str, set[str]]) -> set[str]:
    """All rooms that lie further along the arrows."""
    further = set(arrows[room])
    for other in arrows[room]:
        further |= reached(other, arrows)
    return further


def test_the_picture_draws_the_table_without_what_longer_ways_say():
    table = allowed()
    needed = {
        (room, other)
        for room, others in table.items()
        for other in others
        if not any(other in reached(between, table) for between in others - {other})
    }
    assert drawn() == needed


def test_every_room_has_a_row():
    rows = set(re.findall(r"`([\w/]+)/`", "".join(line for line in PAGE.splitlines(True) if line.startswith("| `"))))
    assert rows >= set(ROOMS)


def test_the_files_that_the_page_names_exist():
    for name in re.findall(r"`((?:training_image|lambda|constructs|tests|lab|stacks)/[\w/.]+)`", PAGE):
        assert (ROOT / name).exists(), name
