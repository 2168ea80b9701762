"""What the acceptance run deploys and trains, and what that can cost at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from training_image.config.catalog import INSTANCES
from training_image.config.run_settings import variable
from training_image.core.contract import SCHEDULED_ACTION_MARGIN_SECONDS

LAB = "smoke"
"""A lab of its own: no name collides with one that the account has."""
TYPES = ("g4dn.xlarge", "g5.xlarge", "g6.xlarge")
MAX_SPOT_USD = 0.75
"""An hour, whatever the type: what bounds the cost."""
MAX_HOURS = 1.0
VOLUME_GB = 100
GP3_USD_PER_GB_MONTH = 0.08
IPV4_USD_PER_HOUR = 0.005
HOURS_PER_MONTH = 730
MINUTES = 25
"""Expected, from deploy to destroy: capacity, image, training, upload."""

CONTEXT = {
    "lab": LAB,
    "run": "run",
    "create_instance": "true",
    "new_run": "smoke",
    "instance_type": TYPES[0],
    "instance_types": ",".join(TYPES[1:]),
    "use_spot": "true",
    "max_spot_price": str(MAX_SPOT_USD),
    "volume_size": str(VOLUME_GB),
    "max_runtime_hours": str(MAX_HOURS),
    "max_attempts": "2",
    "auto_shutdown": "true",
    "create_oidc_provider": "false",  # global to the account, and retained: not for a test to make
}
"""For ``cdk -c``: these win over the operator's lab.yaml."""

SETTINGS = {
    variable("model", "base_model"): "HuggingFaceTB/SmolLM2-135M-Instruct",
    variable("training", "max_steps"): "20",
    variable("training", "per_device_train_batch_size"): "4",
    variable("training", "gradient_accumulation_steps"): "1",
    variable("training", "max_length"): "256",
    variable("evaluation", "max_new_tokens"): "8",
}
"""Small enough to train in a minute on a T4. Only defaults: the shell's own ``LLM_*`` variables win."""


@dataclass(frozen=True)
class Cost:
    """USD."""

    expected: float
    most: float
    explained: str


def cost() -> Cost:
    """Of the whole acceptance run. Nothing that stays behind costs money but a few megabytes in S3."""
    hours = MAX_HOURS + SCHEDULED_ACTION_MARGIN_SECONDS / 3600
    beside = VOLUME_GB * GP3_USD_PER_GB_MONTH / HOURS_PER_MONTH + IPV4_USD_PER_HOUR
    usual = min(INSTANCES[name].on_demand_usd_per_hour for name in TYPES)
    return Cost(
        expected=MINUTES / 60 * (usual + beside),
        most=hours * (MAX_SPOT_USD + beside),
        explained=(
            f"at most {hours:.2f} h (the deadline, and killer 3's margin) of a spot instance that may cost "
            f"{MAX_SPOT_USD:.2f} USD an hour, with {VOLUME_GB} GB of disk and an IPv4 address"
        ),
    )


def variables(shell: Mapping[str, str], base_model: str | None) -> dict[str, str]:
    """``LLM_*`` variables for ``cdk deploy``: defaults where the shell sets none, and ``MODEL=`` over both."""
    chosen = {name: value for name, value in SETTINGS.items() if name not in shell}
    if base_model is not None:
        chosen[variable("model", "base_model")] = base_model
    return chosen
