"""Any valid ``LabConfig``, for property tests (hypothesis)."""

from typing import Any

from hypothesis import strategies as st

from training_image.config.catalog import INSTANCES, instance_problem
from training_image.config.lab_settings import LabConfig

_HEX17 = st.text("0123456789abcdef", min_size=17, max_size=17)
_NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,19}", fullmatch=True)
_TYPES = st.sampled_from([name for name in INSTANCES if instance_problem(name) is None])
_REGIONS = st.sampled_from(["us-east-1", "us-west-2", "eu-central-1", "ap-northeast-1", "mx-central-1"])


@st.composite
def _networks(draw: st.DrawFn) -> dict[str, Any]:
    region = draw(st.none() | _REGIONS)
    chosen: dict[str, Any] = {"region": region}
    chosen["create_vpc"] = draw(st.booleans())
    if not chosen["create_vpc"] and draw(st.booleans()):
        subnets = draw(st.lists(_HEX17, min_size=1, max_size=3, unique=True))
        chosen["vpc_id"] = f"vpc-{draw(_HEX17)}"
        chosen["subnet_ids"] = tuple(f"subnet-{text}" for text in subnets)
    elif draw(st.booleans()):
        chosen["availability_zone"] = (region or "us-east-1") + draw(st.sampled_from("abc"))
    return chosen


@st.composite
def _github(draw: st.DrawFn) -> dict[str, Any]:
    if not draw(st.booleans()):
        return {}
    chosen: dict[str, Any] = {
        "github_repository": draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9-]{0,9}/[A-Za-z0-9._-]{1,9}", fullmatch=True)),
        "github_branch": draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,9}", fullmatch=True)),
        "github_environment": draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True)),
        "create_oidc_provider": draw(st.booleans()),
    }
    if draw(st.booleans()):
        chosen["github_owner_id"] = draw(st.integers(1, 10**9))
        chosen["github_repository_id"] = draw(st.integers(1, 10**9))
    return chosen


_FREE: dict[str, st.SearchStrategy[Any]] = {
    "lab": _NAMES,
    "run": _NAMES,
    "create_instance": st.booleans(),
    "new_run": st.none() | st.text(min_size=1, max_size=64),
    "instance_type": _TYPES,
    "instance_types": st.lists(_TYPES, max_size=4).map(tuple),
    "use_spot": st.booleans(),
    "max_spot_price": st.none() | st.floats(0.001, 100),
    "volume_size": st.integers(100, 16384),
    "volume_throughput": st.integers(125, 1000),
    "ami_id": st.none() | _HEX17.map("ami-".__add__),
    "image_tag": st.none() | st.just("latest") | st.just("sha256:" + "0" * 64),
    "training_command": st.lists(st.text(min_size=1, max_size=9), max_size=3).map(tuple),
    "max_runtime_hours": st.floats(0.1, 336),
    "max_attempts": st.integers(1, 50),
    "auto_shutdown": st.booleans(),
    "alert_email": st.none() | st.just("me@example.org"),
    "cost_alert_threshold": st.floats(1, 10**6),
    "cost_tag_active": st.booleans(),
}
"""Keys that go with any other key."""


def lab_configs() -> st.SearchStrategy[LabConfig]:
    """Every key over its whole range; simplest, and what failures shrink to: the defaults."""
    free = st.fixed_dictionaries({}, optional=_FREE)
    return st.builds(
        lambda *parts: LabConfig(**{k: v for p in parts for k, v in p.items()}), free, _networks(), _github()
    )
