"""cdk-nag's AwsSolutions pack over both stacks in every variant.

The pack is registered here and not in app.py: an unacknowledged finding fails synth, and so would block a destroy.
"""

import contextlib
import json
from pathlib import Path

import aws_cdk as cdk
import pytest
from cdk_nag import AwsSolutionsChecks

from tests.support.stacks import ROOT
from tests.support.whole_app import VARIANTS, whole_app


def findings(app: cdk.App) -> list[str]:
    """Every finding that nobody has acknowledged."""
    cdk.Validations.of(app).add_plugins(AwsSolutionsChecks(app))
    with contextlib.suppress(RuntimeError):  # its message has no end; the report says the same
        app.synth()
    report = json.loads((Path(app.outdir) / "validation-report.json").read_text())
    return [
        f"{violation['ruleName']} at {construct['constructPath']}: {violation['description']}"
        for plugin in report["pluginReports"]
        for violation in plugin["violations"]
        for construct in violation["violatingConstructs"]
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_finding_is_left_unacknowledged(variant):
    app, _, _ = whole_app(VARIANTS[variant])
    assert findings(app) == []


def test_a_new_wildcard_is_found():
    app, _, training = whole_app()
    training.node.find_child("Compute").role.add_to_policy(
        cdk.aws_iam.PolicyStatement(actions=["s3:GetObject"], resources=["arn:aws:s3:::elsewhere/*"])
    )
    assert [finding.split(" at ")[0] for finding in findings(app)] == [
        "AwsSolutions-IAM5[Resource::arn:aws:s3:::elsewhere/*]"
    ]


def test_every_acknowledgement_is_one_finding_with_a_reason_and_none_covers_a_whole_stack():
    app, data, training = whole_app(VARIANTS["everything"])
    for construct in app.node.find_all():
        for entry in construct.node.metadata:
            if entry.type != cdk.Validations.ACKNOWLEDGED_RULES_METADATA_KEY:
                continue
            for finding, reason in entry.data.items():
                if "AwsSolutions" not in finding:  # CDK's own
                    continue
                assert construct not in (app, data, training), f"{finding} is acknowledged for a whole stack"
                assert len(reason.split()) >= 5, f"{finding}: {reason!r} is no reason"


def test_app_py_registers_no_pack_that_could_block_a_destroy():
    assert "add_plugins" not in (ROOT / "app.py").read_text()
