"""The embedded cloud's own commands, which the `lab` command mounts as `lab local`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from local_cloud.cloud import LocalCloud, LocalCloudError
from local_cloud.faults import NOTICE_SECONDS, UnknownFaultError

ROOT = Path(__file__).resolve().parents[1]
_EXPORTED = ("AWS_", "CDK_", "LAB_")
_NONE_UP = "No local cloud is up. Start one: lab local up"

app = typer.Typer(no_args_is_help=True, help="The embedded cloud: the whole product on this machine, no AWS account.")
Instance = Annotated[str | None, typer.Argument(help="Instance id; needed if several run.")]


def _fail(message: str, code: int = 1) -> typer.Exit:
    print(message, file=sys.stderr)
    return typer.Exit(code)


def _marker() -> Path:
    """Exists while `lab local up` has a cloud running: what tells it from one that a killed demo left."""
    return ROOT / ".lab" / "up"


def running() -> LocalCloud | None:
    """The cloud that `lab local up` has started, if it runs."""
    return LocalCloud.attach(ROOT) if _marker().exists() else None


@app.command()
def up() -> None:
    """Start the embedded cloud in the background, bootstrapped for `cdk`."""
    if not running():
        cloud = LocalCloud(ROOT)
        try:
            cloud.start()
            _bootstrap(cloud)
        except LocalCloudError as error:
            raise _fail(str(error)) from None
        except KeyboardInterrupt:
            raise _fail("Stopped; nothing is left running.", 130) from None
        _marker().touch()
    print('The local cloud is up. Point this shell at it:  eval "$(lab local env)"')
    print("Then use cdk and aws as on AWS, e.g.:  cdk deploy DataStack    End it:  lab local down")


def _bootstrap(cloud: LocalCloud) -> None:
    try:
        cloud.bootstrap()
    except BaseException:
        cloud.stop()
        raise


@app.command()
def env() -> None:
    """Print the shell commands that point `cdk` and `aws` at the running local cloud."""
    cloud = running()
    if cloud is None:
        raise _fail(_NONE_UP)
    print("unset AWS_PROFILE AWS_DEFAULT_PROFILE AWS_SESSION_TOKEN")
    for name, value in sorted(cloud.environ().items()):
        if name.startswith(_EXPORTED):
            print(f"export {name}={shlex.quote(value)}")


@app.command()
def down() -> None:
    """End the embedded cloud and everything that runs in it."""
    cloud = LocalCloud.attach(ROOT)
    _marker().unlink(missing_ok=True)
    if cloud is None:
        print("No local cloud is up.")
        return
    cloud.stop()
    print("The local cloud is down; nothing of it runs.")


# --- faults -----------------------------------------------------------------------------------------------------------
def _cloud() -> LocalCloud:
    """The local cloud of this clone, of `lab local up` or of a demo that runs now."""
    cloud = LocalCloud.attach(ROOT)
    if cloud is None:
        raise _fail(_NONE_UP)
    return cloud


def _do(cloud: LocalCloud, fault: str, **details: object) -> None:
    try:
        cloud.fault(fault, **details)
    except UnknownFaultError as error:
        raise _fail(str(error)) from None


def _instance(cloud: LocalCloud, given: str | None) -> str:
    if given:
        return given
    states = [{"Name": "instance-state-name", "Values": ["running"]}]
    found = cloud.client("ec2").describe_instances(Filters=states)["Reservations"]
    names = [instance["InstanceId"] for reservation in found for instance in reservation["Instances"]]
    if len(names) != 1:
        there_is = f"several: {', '.join(names)}. Name one" if names else "none"
        raise _fail(f"Which instance? There is {there_is}.")
    return str(names[0])


@app.command()
def interrupt(
    instance: Instance = None,
    seconds: Annotated[float, typer.Option(help="From the notice to the end.")] = NOTICE_SECONDS,
) -> None:
    """Interrupt a spot instance: notice now, the end two minutes later."""
    cloud = _cloud()
    name = _instance(cloud, instance)
    _do(cloud, "interrupt", instance=name, seconds=seconds)
    print(f"{name} has its notice and ends in {seconds:.0f} s.")


@app.command()
def kill(instance: Instance = None) -> None:
    """End an instance at once, as when its host fails."""
    cloud = _cloud()
    name = _instance(cloud, instance)
    _do(cloud, "kill", instance=name)
    print(f"{name} is gone.")


@app.command()
def outage(on: Annotated[bool, typer.Option("--on/--off")] = True) -> None:
    """Let S3 refuse everything that instances and Lambda functions ask of it; --off ends it."""
    _do(_cloud(), "s3", settings={"refuse": on})
    print("S3 refuses everything." if on else "S3 answers again.")


@app.command("no-capacity")
def no_capacity(on: Annotated[bool, typer.Option("--on/--off")] = True) -> None:
    """Let every launch of an instance fail; --off ends it."""
    _do(_cloud(), "no-capacity", on=on)
    print("EC2 has no capacity." if on else "EC2 has capacity again.")
