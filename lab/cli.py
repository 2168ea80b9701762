"""The `lab` command. Conveniences only: everything it does can be done with `cdk` and `aws`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from lab.chaos.plan import Kind
from local_cloud import cli as local_cloud
from local_cloud.cloud import LocalCloudError

if TYPE_CHECKING:
    from lab.operator.deployed import Outputs

ROOT = Path(__file__).resolve().parents[1]

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
app.add_typer(local_cloud.app, name="local")


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


@local_cloud.app.command()
def demo(
    data: Annotated[Path | None, typer.Option(help="Your own JSONL file, or a folder with such files.")] = None,
    model: Annotated[Path | None, typer.Option(help="Your own base model: a Transformers model folder.")] = None,
    engine: Annotated[
        Literal["process", "docker"],
        typer.Option(envvar="ENGINE", help="docker: really build, push, pull and run the image."),
    ] = "process",
) -> None:
    """The whole life cycle, for real: deploy, train a small model, see the instance end itself, destroy. Ten minutes.

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
    if local_cloud.running():
        raise _fail("`lab local up` has a local cloud running. End it first: lab local down", 2)
    raise typer.Exit(life_cycle.run(life_cycle.Options(ROOT, data, model, engine), Console(highlight=False)))


@local_cloud.app.command()
def chaos(
    runs: Annotated[int, typer.Option(min=1, help="Disturbed runs, beside one that is left alone.")] = 5,
    seed: Annotated[int, typer.Option(help="The same seed plans the same faults.")] = 1,
    report: Annotated[Path | None, typer.Option("--json", help="Write what happened here.")] = None,
    base_model: Annotated[Path | None, typer.Option(help="A Transformers model folder.")] = None,
    data: Annotated[Path | None, typer.Option(help="A JSONL file.")] = None,
    only: Annotated[list[Kind] | None, typer.Option(help="Only this kind of fault; may be repeated.")] = None,
) -> None:
    """Disturb runs at random, and compare each one's adapter with that of a run that nobody disturbed."""
    from lab.chaos import chaos as series
    from lab.chaos import sample
    from lab.operator.cdk import CdkError
    from lab.operator.follow import RunStalledError

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
        except (CdkError, LocalCloudError, RunStalledError, ValueError) as error:
            raise _fail(str(error), 1) from None
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
