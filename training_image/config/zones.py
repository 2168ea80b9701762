"""How many availability zones a stack may count on, by region: a template that knows no account cannot ask AWS.

One too many fails the deploy (``Fn::Select`` beyond the list), one too few only leaves a pool of spot capacity unused:
so this is what every account sees, and two where nothing is known. As of 2026-11, from AWS's list of zones and public
lists of what accounts are given: us-west-1 and ap-northeast-1 show each account one zone less than AWS has.
"""

from __future__ import annotations

ZONES: dict[str, int] = {
    "us-east-1": 6,
    "us-west-2": 4,
    "ap-northeast-2": 4,
    "us-west-1": 2,
    **dict.fromkeys(
        (
            "us-east-2", "ca-central-1", "sa-east-1", "eu-central-1", "eu-west-1", "eu-west-2", "eu-west-3",
            "eu-north-1", "ap-northeast-1", "ap-northeast-3", "ap-south-1", "ap-southeast-1", "ap-southeast-2",
        ),
        3,
    ),
}  # fmt: skip


def zone_count(region: str | None) -> int:
    """Zones that every account has in ``region``; 2 for a region that is not known here, or not known yet (None)."""
    return ZONES.get(region or "", 2)
