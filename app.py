"""Composition root: read the settings once, build the two stacks, tag them. Only this file reads the environment."""

import os
from pathlib import Path

import aws_cdk as cdk

from lab_constructs import guards
from stacks.data_stack import DataStack
from stacks.training_stack import TrainingStack
from training_image.config import lab_settings
from training_image.core import contract

ROOT = Path(__file__).parent

app = cdk.App()
lab = lab_settings.load(ROOT / "lab.yaml", app.node.get_all_context(), os.environ)
env = cdk.Environment(region=lab.config.region)

# The ids are what people type, whatever the lab and the run are called; the names in the account differ.
data = DataStack(
    app, contract.DATA_STACK, stack_name=lab.config.data_stack_name, config=lab.config, env=env,
    termination_protection=True,
)  # fmt: skip
training = TrainingStack(
    app, contract.TRAINING_STACK, stack_name=lab.config.training_stack_name, config=lab.config, settings=lab.settings,
    env=env, cli_region=os.environ.get("CDK_DEFAULT_REGION"),
)  # fmt: skip
cdk.Tags.of(app).add(contract.LAB_TAG, lab.config.lab)

# Annotations, not exceptions: they stop a deploy, and let `cdk destroy` pass while an instance costs money.
for problem in lab.lab_problems:
    cdk.Annotations.of(data).add_error(problem)
for problem in (*lab.lab_problems, *lab.run_problems):
    cdk.Annotations.of(training).add_error(problem)

guards.synth(app, training=training)
