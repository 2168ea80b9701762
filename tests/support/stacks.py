"""Templates of the two stacks, built in process, and views of them."""

import json
from pathlib import Path

import aws_cdk as cdk
from aws_cdk.assertions import Template

from stacks.data_stack import DataStack
from stacks.training_stack import TrainingStack
from training_image.config.lab_settings import LabConfig
from training_image.config.run_settings import RunSettings

ROOT = Path(__file__).parents[2]
FLAGS = json.loads((ROOT / "cdk.json").read_text())["context"]


def data_template(config: LabConfig | None = None) -> Template:
    return Template.from_stack(DataStack(cdk.App(context=FLAGS), "DataStack", config=config or LabConfig()))


def training_template(config: LabConfig | None = None, settings: RunSettings | None = None) -> Template:
    app = cdk.App(context=FLAGS)
    stack = TrainingStack(
        app, "TrainingStack", config=config or LabConfig(), settings=settings or RunSettings.model_construct()
    )
    return Template.from_stack(stack)


def only(template: Template, kind: str) -> dict:
    """The one resource of its kind."""
    (found,) = template.find_resources(kind).values()
    return found
