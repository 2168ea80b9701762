"""`lab local interrupt`, `kill`, `outage`, `no-capacity` and `chaos`: faults on demand in the running local cloud."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from lab.chaos.plan import Kind
from local_cloud.cloud import LocalCloud, LocalCloudError
from local_cloud.faults import NOTICE_SECONDS, UnknownFaultError

ROOT = Path(__file__).resolve().parents[1]
Instance = Annotated[str | None, typer.Argument(help="Instance id; needed if several run.")]


def _fail(message: str, code: int = 1) -> typer.Exit:
    print(message, file=sys.stderr)
    return typer.Exit(code)


def _cloud() -> LocalCloud:
    """The local cloud of this clone, of `lab local up` or of a demo that runs now."""
    cloud = LocalCloud.attach(ROOT)
    if cloud is None:
        raise _fail("No local cloud is up. Start one: lab local up")
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
    running = [instance["InstanceId"] for reservation in found for instance in reservation["Instances"]]
    if len(running) != 1:
        names = f"several: {', '.join(running)}. Name one" if running else "none"
        raise _fail(f"Which instance? There is {names}.")
    return str(running[0])


def interrupt(
    instance: Instance = None,
    seconds: Annotated[float, typer.Option(help="From the notice to the end.")] = NOTICE_SECONDS,
) -> None:
    """Interrupt a spot instance: notice now, the end two minutes later."""
    cloud = _cloud()
    name = _instance(cloud, instance)
    _do(cloud, "interrupt", instance=name, seconds=seconds)
    print(f"{name} has its notice and ends in {seconds:.0f} s.")


def kill(instance: Instance = None) -> None:
    """End an instance at once, as when its host fails."""
    cloud = _cloud()
    name = _instance(cloud, instance)
    _do(cloud, "kill", instance=name)
    print(f"{name} is gone.")


def outage(on: Annotated[bool, typer.Option("--on/--off")] = True) -> None:
    """Let S3 refuse everything that instances and Lambda functions ask of it; --off ends it."""
    _do(_cloud(), "s3", settings={"refuse": on})
    print("S3 refuses everything." if on else "S3 answers again.")


def no_capacity(on: Annotated[bool, typer.Option("--on/--off")] = True) -> None:
    """Let every launch of an instance fail; --off ends it."""
    _do(_cloud(), "no-capacity", on=on)
    print("EC2 has no capacity." if on else "EC2 has capacity again.")


def chaos(
    runs: Annotated[int, typer.Option(min=1, help="Disturbed runs, beside one that is left alone.")] = 5,
    seed: Annotated[int, typer.Option(help="The same seed plans the same faults.")] = 1,
    report: Annotated[Path | None, typer.Option("--json", help="Write what happened here.")] = None,
    base_model: Annotated[Path | None, typer.Option(help="A Transformers model folder.")] = None,
    data: Annotated[Path | None, typer.Option(help="A JSONL file.")] = None,
    only: Annotated[list[Kind] | None, typer.Option(help="Only this kind of fault; may be repeated.")] = None,
) -> None:
    """Disturb runs at random, and compare each one's adapter with that of a run that nobody disturbed."""
    import os

    from lab.chaos import chaos as series
    from lab.chaos import sample
    from lab.operator.cdk import CdkError

    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        if base_model is None:
            base_model = folder / "model"
            sample.save_model(base_model)
        variables = {key: value for key, value in os.environ.items() if key.startswith("LLM_")}
        options = series.Options(
            ROOT,
            folder,
            runs,
            seed,
            base_model,
            data or sample.write_data(folder / "train.jsonl"),
            variables,
            only or tuple(Kind),
        )
        try:
            found = series.chaos(options, lambda text: print(text, flush=True))
        except (CdkError, LocalCloudError, ValueError) as error:
            raise _fail(str(error)) from None
    if report is not None:
        report.write_text(json.dumps(found, indent=1) + "\n")
    faults = found["faults"]
    print(
        f"{faults['struck']} of {faults['planned']} planned faults struck, "
        f"{faults['struck_between_checkpoints']} between the first and the last checkpoint."
    )
    for kind, why in found["skipped"].items():
        print(f"skipped: {kind}: {why}")
    for problem in found["problems"]:
        print(problem, file=sys.stderr)
    raise typer.Exit(1 if found["problems"] else 0)
