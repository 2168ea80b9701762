"""The GPU instance types a run may ask for: one source for the stacks, the planner and the price table in the docs.

Prices are Linux on-demand as of ``PRICES_AS_OF`` in ``PRICE_REGION`` (us-west-2 has the same, as far as known). They
serve as a ceiling and for estimates; AWS's own price list is what is billed.

Checked against the copies that Karpenter generates from AWS's APIs: prices (price list of us-east-1, 2026-07-20), GPUs,
vCPUs, memory and instance storage (DescribeInstanceTypes, 2026-07; p3, which it no longer lists: its price only). Quota
codes: the tables of "Amazon EC2 instance type quotas" in AWS's documentation.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

PRICES_AS_OF = "2026-07-20"
PRICE_REGION = "us-east-1"
TYPICAL_SPOT_SHARE = 0.3
"""Spot over on-demand price, as a rule of thumb ("about 70 % off"); the live price moves by zone and hour."""


@dataclass(frozen=True)
class Quota:
    """Of service ``ec2`` in Service Quotas, counted in vCPUs and per region. New accounts often have 0."""

    spot: str
    spot_name: str
    on_demand: str
    on_demand_name: str


G_QUOTA = Quota(
    "L-3819A6DF", "All G and VT Spot Instance Requests", "L-DB2E81BA", "Running On-Demand G and VT instances"
)
P_QUOTA = Quota("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests", "L-417A185B", "Running On-Demand P instances")
P5_QUOTA = Quota("L-C4BD4855", "All P5 Spot Instance Requests", "L-417A185B", "Running On-Demand P instances")


@dataclass(frozen=True)
class Instance:
    name: str
    gpu: str
    gpus: int
    vram_gib: int
    """Memory of one GPU, as NVIDIA names it."""
    compute_capability: float
    """NVIDIA's; bfloat16 needs 8.0."""
    vcpus: int
    memory_gib: int
    nvme_gb: int
    """Instance storage in all, used for scratch; 0: none."""
    on_demand_usd_per_hour: float
    quota: Quota


def _family(
    gpu: str, vram_gib: int, compute_capability: float, quota: Quota, rows: dict[str, tuple[int, int, int, int, float]]
) -> dict[str, Instance]:
    return {
        name: Instance(name, gpu, gpus, vram_gib, compute_capability, vcpus, memory, nvme, price, quota)
        for name, (gpus, vcpus, memory, nvme, price) in rows.items()
    }


# name: GPUs, vCPUs, memory in GiB, instance storage in GB, USD an hour
INSTANCES: dict[str, Instance] = {
    **_family("T4", 16, 7.5, G_QUOTA, {
        "g4dn.xlarge": (1, 4, 16, 125, 0.526),
        "g4dn.2xlarge": (1, 8, 32, 225, 0.752),
        "g4dn.4xlarge": (1, 16, 64, 225, 1.204),
        "g4dn.8xlarge": (1, 32, 128, 900, 2.176),
        "g4dn.12xlarge": (4, 48, 192, 900, 3.912),
        "g4dn.16xlarge": (1, 64, 256, 900, 4.352),
    }),
    **_family("A10G", 24, 8.6, G_QUOTA, {
        "g5.xlarge": (1, 4, 16, 250, 1.006),
        "g5.2xlarge": (1, 8, 32, 450, 1.212),
        "g5.4xlarge": (1, 16, 64, 600, 1.624),
        "g5.8xlarge": (1, 32, 128, 900, 2.448),
        "g5.12xlarge": (4, 48, 192, 3800, 5.672),
        "g5.16xlarge": (1, 64, 256, 1900, 4.096),
        "g5.24xlarge": (4, 96, 384, 3800, 8.144),
        "g5.48xlarge": (8, 192, 768, 7600, 16.288),
    }),
    **_family("L4", 24, 8.9, G_QUOTA, {
        "g6.xlarge": (1, 4, 16, 250, 0.8048),
        "g6.2xlarge": (1, 8, 32, 450, 0.9776),
        "g6.4xlarge": (1, 16, 64, 600, 1.3232),
        "g6.8xlarge": (1, 32, 128, 900, 2.0144),
        "g6.12xlarge": (4, 48, 192, 3760, 4.6016),
        "g6.16xlarge": (1, 64, 256, 1880, 3.3968),
        "g6.24xlarge": (4, 96, 384, 3760, 6.6752),
        "g6.48xlarge": (8, 192, 768, 7520, 13.3504),
    }),
    **_family("L40S", 48, 8.9, G_QUOTA, {
        "g6e.xlarge": (1, 4, 32, 250, 1.861),
        "g6e.2xlarge": (1, 8, 64, 450, 2.24208),
        "g6e.4xlarge": (1, 16, 128, 600, 3.00424),
        "g6e.8xlarge": (1, 32, 256, 900, 4.52856),
        "g6e.12xlarge": (4, 48, 384, 3800, 10.49264),
        "g6e.16xlarge": (1, 64, 512, 1900, 7.57719),
        "g6e.24xlarge": (4, 96, 768, 3800, 15.06559),
        "g6e.48xlarge": (8, 192, 1536, 7600, 30.13118),
    }),
    **_family("V100", 16, 7.0, P_QUOTA, {
        "p3.2xlarge": (1, 8, 61, 0, 3.06),
        "p3.8xlarge": (4, 32, 244, 0, 12.24),
        "p3.16xlarge": (8, 64, 488, 0, 24.48),
    }),
    **_family("A100", 40, 8.0, P_QUOTA, {
        "p4d.24xlarge": (8, 96, 1152, 8000, 21.957642),
    }),
    **_family("H100", 80, 9.0, P5_QUOTA, {
        "p5.4xlarge": (1, 16, 256, 3800, 6.88),
        "p5.48xlarge": (8, 192, 2048, 30400, 55.04),
    }),
}  # fmt: skip


def instance_problem(name: str) -> str | None:
    """Why ``name`` cannot be used, with what to type instead; ``None`` when it can."""
    instance = INSTANCES.get(name)
    if instance is None:
        near = difflib.get_close_matches(name, INSTANCES, n=3, cutoff=0.4) or ["g5.xlarge"]
        return f"{name!r} is not a GPU instance type this lab knows. Nearest: {', '.join(near)}."
    if instance.compute_capability < 7.5:
        return (
            f"{name} has {instance.gpu} GPUs (compute capability {instance.compute_capability}). The image's torch is "
            "built for CUDA 13, which begins at 7.5, and the default machine image's driver no longer knows them. "
            "Use g4dn (fp16) or g5 instead."
        )
    return None


def price_table() -> str:
    """The table of prices in docs/costs.md (Markdown). What ``instance_problem`` refuses is left out."""
    lines = [
        "| type | GPU | VRAM | vCPU | memory | NVMe | on-demand | spot, about |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for item in INSTANCES.values():
        if instance_problem(item.name):
            continue
        gpu, each = (item.gpu, "") if item.gpus == 1 else (f"{item.gpus} × {item.gpu}", " each")  # noqa: RUF001
        price = item.on_demand_usd_per_hour
        lines.append(
            f"| {item.name} | {gpu} | {item.vram_gib} GB{each} | {item.vcpus} | {item.memory_gib} GiB "
            f"| {item.nvme_gb} GB | {price:.2f} | {price * TYPICAL_SPOT_SHARE:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(price_table())
