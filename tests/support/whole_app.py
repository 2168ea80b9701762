"""Both stacks in one app, tagged as app.py tags them, for what must hold for the whole of them.

Run as a program, it writes every variant's templates into a directory.
"""

import json
import sys
from pathlib import Path
from typing import Any

import aws_cdk as cdk

from stacks.data_stack import DataStack
from stacks.training_stack import TrainingStack
from tests.support.stacks import FLAGS
from training_image.config.lab_settings import LabConfig
from training_image.config.run_settings import RunSettings
from training_image.core import contract

VARIANTS = {
    "default": LabConfig(),
    "everything": LabConfig(
        lab="second",
        run="other",
        instance_type="g5.xlarge",
        instance_types=("g6.xlarge",),
        use_spot=False,
        availability_zone="us-east-1a",
        ami_id="ami-0123456789abcdef0",
        image_tag="v1",
        training_command=("python", "-V"),
        auto_shutdown=False,
        alert_email="me@example.org",
        cost_tag_active=True,
        github_repository="me/lab",
        github_owner_id=1,
        github_repository_id=2,
    ),
    "default-vpc": LabConfig(create_vpc=False, max_spot_price=0.5, create_instance=False),
    "own-vpc": LabConfig(
        create_vpc=False,
        vpc_id="vpc-0123456789abcdef0",
        subnet_ids=("subnet-0123456789abcdef0", "subnet-0123456789abcdef1"),
        github_repository="me/lab",
        create_oidc_provider=False,
    ),
}
"""One default, one with every option, one for each other network."""


def whole_app(
    config: LabConfig | None = None, settings: RunSettings | None = None
) -> tuple[cdk.App, DataStack, TrainingStack]:
    """The app, not yet synthesised."""
    config = config or LabConfig()
    app = cdk.App(context=FLAGS)
    env = cdk.Environment(region=config.region)
    data = DataStack(app, "DataStack", config=config, env=env, stack_name=config.data_stack_name)
    training = TrainingStack(
        app, "TrainingStack", config=config, settings=settings or RunSettings.model_construct(), env=env,
        stack_name=config.training_stack_name,
    )  # fmt: skip
    cdk.Tags.of(app).add(contract.LAB_TAG, config.lab)
    return app, data, training


def templates(app: cdk.App) -> dict[str, dict[str, Any]]:
    """Stack id -> resolved template."""
    directory = Path(app.synth().directory)
    found = [stack for stack in app.node.children if isinstance(stack, cdk.Stack)]
    return {stack.node.id: json.loads((directory / stack.template_file).read_text()) for stack in found}


def write_all(directory: Path) -> list[Path]:
    """Every template of every variant as ``<variant>-<stack>.json``."""
    files = []
    for variant, config in VARIANTS.items():
        for stack, template in templates(whole_app(config)[0]).items():
            files.append(directory / f"{variant}-{stack}.json")
            files[-1].write_text(json.dumps(template, indent=1))
    return files


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
