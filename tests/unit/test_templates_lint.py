"""cfn-lint over the synthesised templates of every variant. (checkov has its own closure: `make checkov`.)"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lab_constructs.acknowledge import acknowledge
from tests.support.whole_app import whole_app, write_all

REGIONS = ("us-east-1", "eu-central-1")


def findings(files: list[Path]) -> list[str]:
    """What cfn-lint says about the templates, one line each."""
    program = Path(sys.executable).with_name("cfn-lint")
    result = subprocess.run(
        [program, "--format", "json", "--regions", *REGIONS, "--", *files], capture_output=True, text=True
    )
    return [
        f"{item['Rule']['Id']} {item['Message']} ({Path(item['Filename']).name}: {item['Location']['Path']})"
        for item in json.loads(result.stdout or "[]")
    ]


def test_every_variant_is_clean(tmp_path):
    assert findings(write_all(tmp_path)) == []


def test_a_wrong_template_is_found(tmp_path):
    (tmp_path / "wrong.json").write_text(
        '{"Resources": {"Bucket": {"Type": "AWS::S3::Bucket", "Properties": {"A": 1}}}}'
    )
    assert any(finding.startswith("E3002") for finding in findings([tmp_path / "wrong.json"]))


def test_an_acknowledgement_names_one_resource():
    _, data, _ = whole_app()
    with pytest.raises(TypeError, match="not one resource"):
        acknowledge(data, "A whole stack is too much.", "W3005")
