"""Availability zones: as many as AWS shows in the region, and instances in the subnets or zones that a group names."""

from __future__ import annotations

from typing import Any

from local_cloud.hooks import Module
from training_image.config.zones import zone_count

EMULATED = 3
"""What the emulator itself shows in every region."""


def apply() -> None:
    """CloudFormation's Fn::GetAZs lists at least the zones that the catalog of zones promises.

    Raises:
        IncompatibleEmulatorError: a hook is missing.
    """
    engine = Module("ministack.services.cloudformation.engine")
    resolve = engine.get("_resolve_refs")

    def resolve_refs(value: Any, *context: Any, **named: Any) -> Any:
        found = resolve(value, *context, **named)
        if isinstance(value, dict) and set(value) == {"Fn::GetAZs"} and found:
            region = found[0][:-1]
            return [f"{region}{letter}" for letter in "abcdef"[: max(EMULATED, zone_count(region))]]
        return found

    engine.replace("_resolve_refs", resolve_refs)


def subnet_of(group: dict[str, Any], subnets: dict[str, Any]) -> str | None:
    """Where the group's next instance starts: its first subnet, else the default one of its first zone that has one.

    (AWS spreads over all of them, and goes to another zone when one has no capacity.)
    """
    if group["VPCZoneIdentifier"]:
        return str(group["VPCZoneIdentifier"].split(",")[0])
    defaults = {item["AvailabilityZone"]: name for name, item in subnets.items() if item.get("DefaultForAz")}
    return next((defaults[zone] for zone in group["AvailabilityZones"] if zone in defaults), None)
