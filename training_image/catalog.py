"""The GPU instance types a run may ask for: one source for the stacks, the planner and the price table in the docs.

Prices are Linux on-demand in us-west-2 (us-east-1 is equal for these types), from AWS's public price list as of
``PRICES_AS_OF``. They serve as a ceiling and for estimates; AWS's own price list is what is billed.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

PRICES_AS_OF = "2025-06"
PRICE_REGION = "us-west-2"
TYPICAL_SPOT_SHARE = 0.3
"""Spot over on-demand price, as a rule of thumb ("about 70 % off"); the live price moves by zone and hour."""


@dataclass(frozen=True)
class Instance:
    name: str
    gpu: str
    gpus: int
    vram_gib: int
    """Memory of one GPU."""
    compute_capability: float
    """NVIDIA's; bfloat16 needs 8.0."""
    vcpus: int
    memory_gib: int
    on_demand_usd_per_hour: float


def _family(
    gpu: str, vram_gib: int, compute_capability: float, rows: dict[str, tuple[int, int, int, float]]
) -> dict[str, Instance]:
    return {
        name: Instance(name, gpu, gpus, vram_gib, compute_capability, vcpus, memory, price)
        for name, (gpus, vcpus, memory, price) in rows.items()
    }


# name: GPUs, vCPUs, memory in GiB, USD an hour
INSTANCES: dict[str, Instance] = {
    **_family(
        "T4",
        16,
        7.5,
        {
            "g4dn.xlarge": (1, 4, 16, 0.526),
            "g4dn.2xlarge": (1, 8, 32, 0.752),
            "g4dn.4xlarge": (1, 16, 64, 1.204),
            "g4dn.8xlarge": (1, 32, 128, 2.176),
            "g4dn.12xlarge": (4, 48, 192, 3.912),
            "g4dn.16xlarge": (1, 64, 256, 4.352),
        },
    ),
    **_family(
        "A10G",
        24,
        8.6,
        {
            "g5.xlarge": (1, 4, 16, 1.006),
            "g5.2xlarge": (1, 8, 32, 1.212),
            "g5.4xlarge": (1, 16, 64, 1.624),
            "g5.8xlarge": (1, 32, 128, 2.448),
            "g5.12xlarge": (4, 48, 192, 5.672),
            "g5.16xlarge": (1, 64, 256, 4.096),
            "g5.24xlarge": (4, 96, 384, 8.144),
            "g5.48xlarge": (8, 192, 768, 16.288),
        },
    ),
    **_family(
        "L4",
        24,
        8.9,
        {
            "g6.xlarge": (1, 4, 16, 0.8048),
            "g6.2xlarge": (1, 8, 32, 0.9776),
            "g6.4xlarge": (1, 16, 64, 1.3232),
            "g6.8xlarge": (1, 32, 128, 2.0144),
            "g6.12xlarge": (4, 48, 192, 4.6016),
            "g6.16xlarge": (1, 64, 256, 3.3968),
            "g6.24xlarge": (4, 96, 384, 6.6752),
            "g6.48xlarge": (8, 192, 768, 13.3504),
        },
    ),
    **_family(
        "L40S",
        48,
        8.9,
        {
            "g6e.xlarge": (1, 4, 32, 1.861),
            "g6e.2xlarge": (1, 8, 64, 2.24208),
            "g6e.4xlarge": (1, 16, 128, 3.00424),
            "g6e.8xlarge": (1, 32, 256, 4.52856),
            "g6e.12xlarge": (4, 48, 384, 10.49264),
            "g6e.16xlarge": (1, 64, 512, 7.57719),
            "g6e.24xlarge": (4, 96, 768, 15.06559),
            "g6e.48xlarge": (8, 192, 1536, 30.13118),
        },
    ),
    **_family(
        "V100",
        16,
        7.0,
        {
            "p3.2xlarge": (1, 8, 61, 3.06),
            "p3.8xlarge": (4, 32, 244, 12.24),
            "p3.16xlarge": (8, 64, 488, 24.48),
        },
    ),
    **_family("A100", 40, 8.0, {"p4d.24xlarge": (8, 96, 1152, 21.957642)}),
    **_family("H100", 80, 9.0, {"p5.48xlarge": (8, 192, 2048, 55.04)}),
}


def instance_problem(name: str) -> str | None:
    """Why ``name`` cannot be used, with what to type instead; ``None`` when it can."""
    instance = INSTANCES.get(name)
    if instance is None:
        near = difflib.get_close_matches(name, INSTANCES, n=3, cutoff=0.4) or ["g5.xlarge"]
        return f"{name!r} is not a GPU instance type this lab knows. Nearest: {', '.join(near)}."
    if instance.compute_capability < 7.5:
        return (
            f"{name} has {instance.gpu} GPUs (compute capability {instance.compute_capability}), which the image's "
            "torch build and the default machine image no longer support. Use g4dn (fp16) or g5 instead."
        )
    return None
