"""The `lab` command. Conveniences only: everything it does can be done with `cdk` and `aws`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from lab import faults_cli
from local_cloud.cloud import LocalCloud, LocalCloudError

if TYPE_CHECKING:
    from lab.operator.deployed import Outputs

ROOT = Path(__file__).resolve().parents[1]
_EXPORTED = ("AWS_", "CDK_", "LAB_")

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
local = typer.Typer(no_args_is_help=True, help="The embedded cloud: the whole product on this machine, no AWS account.")
app.add_typer(local, name="local")


def main() -> None:
    """Entry point of the `lab` command."""
    signal.signal(signal.SIGTERM, _interrupt)
    app()


def _say_version(asked: bool) -> None:
    if asked:
        print(f"lab {importlib.metadata.version('llm-tuning-lab')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What every command has in common: nothing but ``--version``."""


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """A terminated demo cleans up like one stopped with Ctrl-C."""
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> typer.Exit:
    print(message, file=sys.stderr)
    return typer.Exit(code)


def _marker() -> Path:
    """Exists while `lab local up` has a cloud running: what tells it from one that a killed demo left."""
    return ROOT / ".lab" / "up"


def _running() -> LocalCloud | None:
    return LocalCloud.attach(ROOT) if _marker().exists() else None


Context = Annotated[list[str] | None, typer.Option("-c", help="key=value, as for cdk: -c run=mine")]


@app.command()
def output(
    name: Annotated[str | None, typer.Argument(help="Without it: all of them.")] = None, context: Context = None
) -> None:
    """Print a value of the deployed lab, bare: aws s3 sync data "s3://$(lab output training_bucket)/data/"."""
    with _deployed(context) as found:
        if name is not None:
            print(found.value(name))
            return
        for key, value in found.everything().items():
            print(f"{key} = {value}")


@app.command()
def stop(context: Context = None) -> None:
    """Ask the active run for a checkpoint and its end, and say what became of it.

    The same with cdk alone: cdk deploy TrainingStack -c create_instance=false
    """
    from lab import stop as stopping

    with _deployed(context) as found:
        try:
            stopping.stop(found, print)
        except KeyboardInterrupt:
            raise _fail("The request stands: the run saves a checkpoint and ends. Wait for it: lab stop", 130) from None


@app.command()
def resume(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="Id of a run that ended without success.")],
    context: Context = None,
) -> None:
    """Continue a run that was stopped, expired or failed, from its newest checkpoint, under new limits.

    The same with cdk alone: cdk deploy TrainingStack -c resume=RUN
    """
    from lab import resume as resuming
    from training_image.config import lab_settings

    words = context or []
    with _deployed(words) as found:
        loaded = lab_settings.load(ROOT / "lab.yaml", _pairs(words), os.environ)
        if not loaded.config.create_instance:
            raise _fail("create_instance is false, so nothing would start: add -c create_instance=true", 1)
        resuming.check(found, run_id, loaded.settings.model_dump(mode="json", exclude_unset=True), print)
        command = resuming.command(ROOT, run_id, words)
        print(shlex.join(["cdk", *command[1:]]), flush=True)
        code = resuming.deploy(ROOT, command)
    raise typer.Exit(code)


@contextlib.contextmanager
def _deployed(context: list[str] | None) -> Iterator[Outputs]:
    """The deployed lab's values; what goes wrong with them is one sentence and exit code 1."""
    from lab.operator import aws_errors
    from lab.operator import deployed as outputs
    from training_image.core.errors import UserError

    region = None
    try:
        found, region, problems = outputs.load(ROOT, _pairs(context or []))
        for problem in problems:
            print(f"warning: {problem}", file=sys.stderr)
        yield found
    except UserError as error:
        raise _fail(str(error), 1) from None
    except aws_errors.FAILURES as error:
        raise _fail(aws_errors.sentence(error, region), 1) from None


@app.command("smoke-aws")
def smoke_aws(
    data: Annotated[Path | None, typer.Option(help="Your own JSONL file, or a folder with such files.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id, or a Transformers model folder.")] = None,
) -> None:
    """The acceptance run in your account, for under a dollar: asks first, checks everything, destroys what it made."""
    from lab.smoke import smoke

    raise typer.Exit(smoke.run(smoke.Options(ROOT, data, model), Console(highlight=False)))


def _pairs(words: list[str]) -> dict[str, str]:
    """``-c key=value`` as a mapping."""
    for word in words:
        if "=" not in word:
            raise _fail(f"-c {word}: write key=value, for example -c run=mine", 2)
    return dict(word.split("=", 1) for word in words)


@local.command()
def demo(
    data: Annotated[Path | None, typer.Option(help="Your own JSONL file, or a folder with such files.")] = None,
    model: Annotated[Path | None, typer.Option(help="Your own base model: a Transformers model folder.")] = None,
    engine: Annotated[
        Literal["process", "docker"],
        typer.Option(envvar="ENGINE", help="docker: really build, push, pull and run the image."),
    ] = "process",
) -> None:
    """The whole life cycle, for real: deploy, train a small model, let the box end itself, destroy. About ten minutes.

    DEMO_STEPS sets the number of training steps; LLM_* variables of your shell reach the trainer. DEMO_FAULT lets one
    thing go wrong: silent-exit-0, no-upload, kill-supervisor or kill-machine.
    """
    from lab.demo import demo as life_cycle
    from lab.demo import environment, fault

    try:
        environment.check(ROOT, data, model)
        fault.from_shell(os.environ)
    except environment.InputError as error:
        raise _fail(str(error), 2) from None
    if _running():
        raise _fail("`lab local up` has a local cloud running. End it first: lab local down", 2)
    raise typer.Exit(life_cycle.run(life_cycle.Options(ROOT, data, model, engine), Console(highlight=False)))


for command in (faults_cli.interrupt, faults_cli.kill, faults_cli.outage, faults_cli.no_capacity, faults_cli.chaos):
    local.command(command.__name__.replace("_", "-"))(command)


@local.command()
def up() -> None:
    """Start the embedded cloud in the background, bootstrapped for `cdk`."""
    if not _running():
        cloud = LocalCloud(ROOT)
        try:
            cloud.start()
            _bootstrap(cloud)
        except LocalCloudError as error:
            raise _fail(str(error), 1) from None
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


@local.command()
def env() -> None:
    """Print the shell commands that point `cdk` and `aws` at the running local cloud."""
    cloud = _running()
    if cloud is None:
        raise _fail("No local cloud is up. Start one: lab local up", 1)
    print("unset AWS_PROFILE AWS_DEFAULT_PROFILE AWS_SESSION_TOKEN")
    for name, value in sorted(cloud.environ().items()):
        if name.startswith(_EXPORTED):
            print(f"export {name}={shlex.quote(value)}")


@local.command()
def down() -> None:
    """End the embedded cloud and everything that runs in it."""
    cloud = LocalCloud.attach(ROOT)
    _marker().unlink(missing_ok=True)
    if cloud is None:
        print("No local cloud is up.")
        return
    cloud.stop()
    print("The local cloud is down; nothing of it runs.")
