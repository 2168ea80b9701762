"""docs/security.md is in step with the templates: every statement, every star, every accepted finding."""

import re
from functools import cache
from typing import Any

import pytest

from lab_constructs import guards
from tests.support.stacks import ROOT
from tests.support.whole_app import VARIANTS, templates, whole_app

DOCUMENT = (ROOT / "docs" / "security.md").read_text()
NO_RESOURCE = {
    "autoscaling:DescribeAutoScalingGroups",
    "autoscaling:DescribeScalingActivities",
    "cloudwatch:PutMetricData",
    "ec2:DescribeInstances",
    "ecr:GetAuthorizationToken",
    "ssm:UpdateInstanceInformation",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
}
"""Actions for which AWS offers no resource type; docs/security.md names the page that says so for each."""


@cache
def all_templates() -> tuple[dict[str, Any], ...]:
    """The templates of the variant with every option and of the default one."""
    return tuple(
        template
        for variant in ("everything", "default")
        for template in templates(whole_app(VARIANTS[variant])[0]).values()
    )


def identity_statements() -> list[dict[str, Any]]:
    return [statement for template in all_templates() for _, statement in guards.allowed(template)]


def actions(statement: dict[str, Any]) -> set[str]:
    return {statement["Action"]} if isinstance(statement["Action"], str) else set(statement["Action"])


def section(title: str) -> str:
    """Text of the section with this heading, up to the next one of its level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found, f"docs/security.md has no section {title!r}"
    return found[1]


def test_every_statement_has_a_name_and_a_row():
    sids = {statement.get("Sid", f"without a Sid: {actions(statement)}") for statement in identity_statements()}
    documented = set(re.findall(r"^\| `([A-Za-z]+)` \|", section("Roles and their permissions"), re.MULTILINE))
    assert sids == documented


def test_a_star_stands_alone_only_where_aws_offers_no_resource():
    used = set()
    for statement in identity_statements():
        assert not any("*" in action for action in actions(statement)), statement
        if "*" in ([statement["Resource"]] if isinstance(statement["Resource"], str) else statement["Resource"]):
            used |= actions(statement)
    assert used <= NO_RESOURCE, f"AWS offers resources for {used - NO_RESOURCE}"
    assert used >= NO_RESOURCE, f"not used any more: {NO_RESOURCE - used}"


@pytest.mark.parametrize("action", sorted(NO_RESOURCE))
def test_every_star_names_the_page_of_aws_that_says_so(action):
    rows = [row for row in section("`*` as a resource").splitlines() if row.startswith(f"| `{action}`")]
    assert len(rows) == 1
    assert "Actions, resources, and condition keys for" in rows[0]


def test_every_accepted_finding_is_listed():
    accepted = set()
    app, _, _ = whole_app(VARIANTS["everything"])
    for construct in app.node.find_all():
        for entry in construct.node.metadata:
            if entry.type == "aws:cdk:acknowledged-rules":
                accepted |= set(re.findall(r"AwsSolutions-([A-Z]+[0-9]+)", " ".join(entry.data)))
    for template in all_templates():
        for resource in template["Resources"].values():
            metadata = resource.get("Metadata", {})
            accepted |= {item["id"] for item in metadata.get("checkov", {}).get("skip", [])}
            accepted |= set(metadata.get("cfn-lint", {}).get("config", {}).get("ignore_checks", []))
    documented = set(re.findall(r"`([A-Z]+[A-Z0-9_]*[0-9]+)`", section("Accepted findings")))
    assert accepted == documented
