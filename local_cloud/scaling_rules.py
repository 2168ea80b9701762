"""What Auto Scaling accepts and refuses, as pure functions in its own words."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

NO_CAPACITY = (
    "Could not launch Spot Instances. UnfulfillableCapacity - There is no capacity available that matches your "
    "request. Launching EC2 instance failed."
)


class ValidationError(ValueError):
    """A refusal in the service's words."""


@dataclass(frozen=True)
class Sizes:
    """Of a group: ``minimum <= desired <= maximum``."""

    minimum: int
    maximum: int
    desired: int


def set_desired(sizes: Sizes, desired: int) -> Sizes:
    if desired > sizes.maximum:
        raise ValidationError(
            f"New SetDesiredCapacity value {desired} is above max value {sizes.maximum} for the AutoScalingGroup."
        )
    if desired < sizes.minimum:
        raise ValidationError(
            f"New SetDesiredCapacity value {desired} is below min value {sizes.minimum} for the AutoScalingGroup."
        )
    return Sizes(sizes.minimum, sizes.maximum, desired)


def update(sizes: Sizes, minimum: int | None, maximum: int | None, desired: int | None) -> Sizes:
    """New limits; a desired capacity that is not given is moved into them, one that is given must fit."""
    low = sizes.minimum if minimum is None else minimum
    high = sizes.maximum if maximum is None else maximum
    if low < 0 or high < 0:
        raise ValidationError("Min and max size must not be negative.")
    if low > high:
        raise ValidationError("Max bound, %d, must be greater than or equal to min bound, %d" % (high, low))  # noqa: UP031
    if desired is None:
        return Sizes(low, high, min(max(sizes.desired, low), high))
    if not low <= desired <= high:
        raise ValidationError(
            f"Desired capacity:{desired} must be between the specified min size:{low} and max size:{high}"
        )
    return Sizes(low, high, desired)


def decrement(sizes: Sizes) -> Sizes:
    if sizes.desired - 1 < sizes.minimum:
        raise ValidationError(
            "Currently, desiredSize equals minSize. Terminating instance without replacement will violate group's min "
            "size constraint. Either set shouldDecrementDesiredCapacity flag to false or lower group's min size."
        )
    return Sizes(sizes.minimum, sizes.maximum, sizes.desired - 1)


def start_time(text: str, now: datetime) -> datetime:
    """Of a one-time scheduled action: a time to come."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValidationError(f"Invalid StartTime: {text}") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment <= now:
        raise ValidationError("Given start time is in the past")
    return moment


def instance_type(policy: dict[str, Any] | None, template: dict[str, Any]) -> str:
    """The first of the types that a launch may use."""
    overrides = ((policy or {}).get("LaunchTemplate") or {}).get("Overrides") or []
    return str([*(o["InstanceType"] for o in overrides), template.get("InstanceType") or "t2.micro"][0])


def subnet_of(group: dict[str, Any], subnets: dict[str, Any]) -> str | None:
    """Where the group's next instance starts: its first subnet, else the default one of its first zone that has one.

    (AWS spreads over all of them, and goes to another zone when one has no capacity.)
    """
    if group["VPCZoneIdentifier"]:
        return str(group["VPCZoneIdentifier"].split(",")[0])
    defaults = {item["AvailabilityZone"]: name for name, item in subnets.items() if item.get("DefaultForAz")}
    return next((defaults[zone] for zone in group["AvailabilityZones"] if zone in defaults), None)


def is_spot(policy: dict[str, Any] | None, template: dict[str, Any]) -> bool:
    """Whether the first instance of a group is a spot instance."""
    if policy is None:
        return (template.get("InstanceMarketOptions") or {}).get("MarketType") == "spot"
    distribution = policy.get("InstancesDistribution") or {}
    base = int(distribution.get("OnDemandBaseCapacity") or 0)
    above = distribution.get("OnDemandPercentageAboveBaseCapacity")
    return base == 0 and int(100 if above is None else above) == 0
