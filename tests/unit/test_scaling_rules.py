"""What Auto Scaling refuses, and that no accepted change leaves a group outside its limits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_cloud import scaling_rules as rules
from local_cloud.scaling_rules import Sizes, ValidationError

SMALL = st.integers(0, 4)
MAYBE = st.none() | SMALL
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@st.composite
def groups(draw: st.DrawFn) -> Sizes:
    low, desired, high = sorted(draw(st.tuples(SMALL, SMALL, SMALL)))
    return Sizes(low, high, desired)


def consistent(sizes: Sizes) -> bool:
    return 0 <= sizes.minimum <= sizes.desired <= sizes.maximum


@given(groups(), MAYBE, MAYBE, MAYBE)
def test_an_accepted_update_is_what_was_asked_and_within_limits(
    sizes: Sizes, minimum: int | None, maximum: int | None, desired: int | None
) -> None:
    try:
        after = rules.update(sizes, minimum, maximum, desired)
    except ValidationError:
        return
    assert consistent(after)
    assert minimum in (None, after.minimum)
    assert maximum in (None, after.maximum)
    assert desired in (None, after.desired)


@given(groups(), SMALL)
def test_desired_is_accepted_exactly_within_limits(sizes: Sizes, desired: int) -> None:
    if sizes.minimum <= desired <= sizes.maximum:
        assert rules.set_desired(sizes, desired).desired == desired
    else:
        with pytest.raises(ValidationError):
            rules.set_desired(sizes, desired)


def test_the_refusals_are_in_the_services_words() -> None:
    with pytest.raises(ValidationError, match=r"^New SetDesiredCapacity value 1 is above max value 0 for the AutoSc"):
        rules.set_desired(Sizes(0, 0, 0), 1)
    with pytest.raises(ValidationError, match="desiredSize equals minSize"):
        rules.decrement(Sizes(1, 1, 1))
    assert rules.decrement(Sizes(0, 1, 1)) == Sizes(0, 1, 0)


def test_an_update_of_the_limits_alone_moves_the_desired_capacity_into_them() -> None:
    assert rules.update(Sizes(0, 1, 1), None, 0, None) == Sizes(0, 0, 0)
    assert rules.update(Sizes(0, 4, 0), 2, None, None) == Sizes(2, 4, 2)


def test_a_scheduled_start_lies_ahead_in_any_zone() -> None:
    east = timezone(timedelta(hours=2))
    assert rules.start_time("2026-11-24T12:00:01Z", NOW) == NOW + timedelta(seconds=1)
    assert rules.start_time("2026-11-24T15:00:00+02:00", NOW).astimezone(east).hour == 15
    for text in ("2026-11-24T12:00:00Z", "2026-11-24T13:59:59+02:00", "soon"):
        with pytest.raises(ValidationError):
            rules.start_time(text, NOW)


@pytest.mark.parametrize(
    ("distribution", "spot"),
    [
        ({"OnDemandPercentageAboveBaseCapacity": 0, "OnDemandBaseCapacity": 0}, True),
        ({"OnDemandPercentageAboveBaseCapacity": "0"}, True),
        ({"OnDemandPercentageAboveBaseCapacity": 0, "OnDemandBaseCapacity": 1}, False),
        ({}, False),
    ],
)
def test_the_distribution_decides_between_spot_and_on_demand(distribution: dict[str, object], spot: bool) -> None:
    assert rules.is_spot({"InstancesDistribution": distribution}, {}) is spot
