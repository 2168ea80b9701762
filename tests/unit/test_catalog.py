"""The instance catalog: sane as data, and the same in README and on the page of costs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from training_image.config.catalog import (
    INSTANCES,
    PRICE_REGION,
    PRICES_AS_OF,
    TYPICAL_SPOT_SHARE,
    instance_problem,
    price_table,
)

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COSTS = (ROOT / "docs" / "costs.md").read_text()
EXTRAS_USD_PER_HOUR = 0.03
"""Disk and public address, as the page of costs says."""


def between(text: str, marker: str) -> list[str]:
    (found,) = re.findall(f"<!-- {marker}:begin -->\n(.*?)\n<!-- {marker}:end -->", text, re.DOTALL)
    return found.splitlines()


def cells(text: str, marker: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in between(text, marker)[2:]]


def test_the_page_of_costs_has_exactly_this_table():
    assert between(COSTS, "prices") == price_table().splitlines(), "python -m training_image.config.catalog prints it"


@pytest.mark.parametrize("text", [README, COSTS], ids=["README", "costs"])
def test_prices_say_of_when_and_where_they_are(text):
    assert PRICES_AS_OF in text
    assert PRICE_REGION in text
    assert f"about {1 - TYPICAL_SPOT_SHARE:.0%} off".replace("%", " %") in text


def test_readme_has_six_types_with_the_prices_of_the_whole_table():
    whole = {row[0]: row for row in cells(COSTS, "prices")}
    usual = cells(README, "usual")
    assert len({row[0] for row in usual}) == 6
    for name, gpu, vram, on_demand, spot, use in usual:
        assert [name, gpu, vram] == whole[name][:3]
        assert [on_demand, spot] == whole[name][-2:]
        assert use


@pytest.mark.parametrize("row", cells(COSTS, "typical"), ids=lambda row: row[1])
def test_typical_costs_are_hours_times_prices(row):
    _, name, hours, spot, on_demand = row
    price = INSTANCES[name].on_demand_usd_per_hour
    for cell, hourly in ((spot, price * TYPICAL_SPOT_SHARE), (on_demand, price)):
        for said, some in zip(cell.removeprefix("$").split("–"), hours.split("–"), strict=True):  # noqa: RUF001
            assert float(said) == pytest.approx(float(some) * (hourly + EXTRAS_USD_PER_HOUR), abs=0.05)


def test_readme_quotes_the_typical_run_of_the_default_type():
    (row,) = [row for row in cells(COSTS, "typical") if row[1] == "g5.xlarge"]
    assert f"takes {row[2]} hours: **{row[3]}**" in README


def test_it_can_be_printed():
    command = [sys.executable, "-m", "training_image.config.catalog"]
    printed = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == price_table()


def test_every_family_of_the_requirements_is_there():
    assert {name.split(".")[0] for name in INSTANCES} == {"g4dn", "g5", "g6", "g6e", "p3", "p4d", "p5"}


@pytest.mark.parametrize("name", INSTANCES)
def test_a_row_is_plausible(name):
    item = INSTANCES[name]
    assert item.name == name
    assert item.gpus in {1, 4, 8}
    assert item.vcpus * 2 <= item.memory_gib
    assert 0.1 < item.on_demand_usd_per_hour / item.gpus < 10, "USD an hour and GPU"
    assert (item.nvme_gb == 0) == name.startswith("p3."), "all but p3 have instance storage"


def test_within_a_family_more_costs_more():
    for name, item in INSTANCES.items():
        for other in INSTANCES.values():
            larger = other.vcpus >= item.vcpus and other.gpus >= item.gpus and other.memory_gib >= item.memory_gib
            if name.split(".")[0] == other.name.split(".")[0] and larger:
                assert other.on_demand_usd_per_hour >= item.on_demand_usd_per_hour, (name, other.name)


def test_each_family_counts_against_its_quota():
    quotas = {name.split(".")[0]: item.quota for name, item in INSTANCES.items()}
    assert {quotas[family].spot for family in ("g4dn", "g5", "g6", "g6e")} == {"L-3819A6DF"}
    assert {quotas[family].on_demand for family in ("g4dn", "g5", "g6", "g6e")} == {"L-DB2E81BA"}
    assert (quotas["p4d"].spot, quotas["p5"].spot) == ("L-7212CCBC", "L-C4BD4855")
    assert quotas["p4d"].on_demand == quotas["p5"].on_demand == "L-417A185B"


def test_the_page_of_failures_names_every_quota():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    for item in INSTANCES.values():
        assert {item.quota.spot, item.quota.on_demand} <= set(re.findall(r"L-[0-9A-F]{8}", page)), item.name


def test_p3_is_refused_for_a_reason_that_holds_and_not_priced():
    problem = str(instance_problem("p3.2xlarge"))
    assert "torch is built for CUDA 13, which begins at 7.5" in problem
    assert "Use g4dn (fp16) or g5 instead" in problem
    lock = (ROOT / "training_image/requirements-gpu.lock").read_text()
    assert re.search(r"^cuda-toolkit==13\.", lock, re.MULTILINE), "else the sentence is wrong"
    assert "p3." not in price_table()
