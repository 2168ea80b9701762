"""One Allow statement, as every role of the lab gets it: named, and with a reason if it holds a wildcard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aws_cdk import aws_iam as iam

from lab_constructs.acknowledge import acknowledge_wildcards


def allow(
    role: iam.Role,
    sid: str,
    actions: Sequence[str],
    resources: Sequence[str],
    conditions: Mapping[str, object] | None = None,
    *,
    wildcard: str = "",
) -> None:
    """Add a statement to ``role``.

    Args:
        sid: what it is for, in words: tests delete statements by it, docs/security.md lists them by it.
        wildcard: why ``resources`` hold a ``*``, where they do; without a reason cdk-nag objects.
    """
    role.add_to_policy(
        iam.PolicyStatement(
            sid=sid,
            actions=list(actions),
            resources=list(resources),
            conditions=dict(conditions) if conditions else None,
        )
    )
    if wildcard:
        acknowledge_wildcards(role, resources, wildcard)
