"""The acceptance run: deploy, train, see that everything ended, destroy, see that nothing is left.

The product's own commands and AWS's own APIs, as on any day; nothing here knows more than an operator could.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError
from rich.console import Console

from lab.demo import dataset, environment
from lab.demo.report import uninterrupted
from lab.operator import aws_errors, resources
from lab.operator.cdk import Cdk, CdkError
from lab.operator.follow import Place, RunStalledError, follow, wait_until_gone
from lab.operator.progress import Progress, duration
from lab.smoke import account, checklist, plan
from lab.smoke.checklist import Checklist
from training_image.config import lab_settings
from training_image.core import contract
from training_image.core.contract import DATA_STACK, TRAINING_STACK, RunKeys
from training_image.core.errors import UserError
from training_image.core.records import now, read_outcome
from training_image.core.store import Store

STALLED_SECONDS = 1800
"""A first image pull over a cold disk takes minutes without a word; so can spot capacity."""
METRICS_SECONDS = 120
"""For CloudWatch to show what it was given."""


class RefusedError(UserError):
    """Nothing was started, or nothing is to go on. One sentence."""


@dataclass(frozen=True)
class Options:
    root: Path
    """Of the clone."""
    data: Path | None
    """Own JSONL file or folder; None: questions about AWS's API."""
    model: str | None
    """A Hub id, or a folder of a Transformers model that is uploaded; None: a small model of the Hub."""

    @property
    def folder(self) -> Path:
        return self.root / ".lab" / "smoke"

    @property
    def result(self) -> Path:
        return self.root / ".lab" / "smoke-aws.json"


def run(options: Options, console: Console) -> int:
    """The exit code: 0 only if every check passed; 2 if nothing was started."""
    region: str | None = None
    shell = dict(os.environ)  # reading lab.yaml adds its LLM_* settings
    try:
        region = lab_settings.load(options.root / "lab.yaml", plan.CONTEXT, os.environ).config.region
        session = boto3.session.Session(region_name=region or shell.get("AWS_REGION"))
        region = session.region_name
        environment.check(options.root, options.data, None)
        list_ = Checklist({"account": _account(session), "region": region, "started_at": now().isoformat()})
        _ask(list_, console)
    except UserError as error:
        console.print(str(error), markup=False)
        return 2
    except aws_errors.FAILURES as error:
        console.print(aws_errors.sentence(error, region), markup=False)
        return 2
    smoke = Smoke(options, shell, session.client, list_, Progress(console), region)
    code = smoke.go(console)
    console.print()
    list_.show(console)
    list_.write(options.result)
    console.print(f"\n{'Passed' if list_.passed else 'Failed'}. Kept in {options.result}", markup=False)
    console.print(f"{plan.LAB}-DataStack stays, at no cost worth naming; README says how to delete one for good.")
    return code


def _account(session: Any) -> str:
    return str(session.client("sts").get_caller_identity()["Account"])


def _ask(list_: Checklist, console: Console) -> None:
    cost = plan.cost()
    list_.facts["cost_usd"] = {"expected": round(cost.expected, 2), "most": round(cost.most, 2)}
    console.print(
        f"This deploys {plan.LAB}-DataStack and {plan.LAB}-TrainingStack to account {list_.facts['account']}, region "
        f"{list_.facts['region']}, trains a small model on one of {', '.join(plan.TYPES)} (spot), and destroys "
        f"{plan.LAB}-TrainingStack.\nExpected: about {cost.expected:.2f} USD and {plan.MINUTES} minutes. "
        f"Bound: {cost.most:.2f} USD ({cost.explained}).",
        markup=False,
    )
    if not sys.stdin.isatty():
        raise RefusedError("Nothing was started: this spends money, so somebody at a terminal has to agree.")
    if console.input("Type yes to spend it: ").strip() != "yes":
        raise RefusedError("Nothing was started.")


class Smoke:
    """One acceptance run; ``go`` is called once."""

    def __init__(
        self,
        options: Options,
        shell: Mapping[str, str],
        client: Callable[[str], Any],
        list_: Checklist,
        progress: Progress,
        region: str | None,
    ) -> None:
        self._options = options
        self._shell = shell
        self._client = client
        self._list = list_
        self._progress = progress
        self._region = region
        path = f"{Path(sys.executable).parent}:{shell.get('PATH', os.defpath)}"
        environ = {**shell, "PATH": path} | ({"AWS_REGION": region} if region else {})
        self._cdk = Cdk(options.root, options.folder, environ, plan.CONTEXT)
        self._cloudformation = client("cloudformation")
        self._variables: dict[str, str] = {}
        self._before: set[str] | None = None  # what the lab had before TrainingStack; None: it was not deployed

    def go(self, console: Console) -> int:
        """Every check as far as it comes; TrainingStack is destroyed whatever happens."""
        shutil.rmtree(self._options.folder, ignore_errors=True)
        self._options.folder.mkdir(parents=True)
        try:
            self._life_cycle()
            self._progress.finish()
        except KeyboardInterrupt:
            self._rescue(console, "Stopped.")
            return 130
        except (UserError, RunStalledError) as error:
            self._rescue(console, str(error))
        except aws_errors.FAILURES as error:
            self._rescue(console, aws_errors.sentence(error, self._region))
        return 0 if self._list.passed else 1

    def _rescue(self, console: Console, why: str) -> None:
        self._progress.finish(failed=True)
        self._list.facts["problem"] = why
        console.print(why, markup=False)
        if self._before is None:
            return
        console.print(f"Destroying {plan.LAB}-TrainingStack, so that nothing costs money ...")
        with uninterrupted():
            try:
                self._destroy()
                self._look_for_leftovers(self._before)
            except (CdkError, *aws_errors.FAILURES) as error:
                console.print(f"{error}\nIt may still cost money: {self._by_hand()}", markup=False)

    def _by_hand(self) -> str:
        return f"cdk destroy TrainingStack -c lab={plan.LAB}, or delete the stack in the console."

    # --- the acts -----------------------------------------------------------------------------------------------------
    def _life_cycle(self) -> None:
        self._progress.enter("Looking at the account")
        self._check_account()
        self._progress.enter("Deploying DataStack")
        self._cdk.run("deploy", DATA_STACK, "--require-approval", "never")
        data = resources.outputs(self._cloudformation, f"{plan.LAB}-{DATA_STACK}")
        self._list.add(checklist.DATA_STACK, True, data["OutputsBucket"])
        self._progress.enter("Uploading data")
        self._variables = self._upload(data["TrainingBucket"])
        as_deployed = self._state_of(DATA_STACK)

        self._progress.enter("Deploying TrainingStack")
        self._before = account.tagged(self._client, plan.LAB)
        self._cdk.run("deploy", TRAINING_STACK, "--require-approval", "never", variables=self._variables)
        training = resources.outputs(self._cloudformation, f"{plan.LAB}-{TRAINING_STACK}")
        keys = RunKeys(training["RunId"])
        self._list.facts["run_id"] = keys.run_id
        self._list.add(checklist.TRAINING_STACK, True, keys.run_id)
        place = Place(Store(self._client("s3"), data["OutputsBucket"]), keys, training["AutoScalingGroupName"])
        self._see_it_end(place, training["TrainingLog"])

        self._progress.enter("Destroying TrainingStack")
        self._destroy()
        self._progress.enter("Looking for leftovers")
        self._look_for_leftovers(self._before)
        same = self._state_of(DATA_STACK) == as_deployed
        kept = place.store.list(keys.adapter)
        found = "" if same else f"{plan.LAB}-{DATA_STACK} has changed"
        self._list.add(checklist.UNTOUCHED, same and bool(kept), found or f"s3://{place.store.bucket}/{keys.prefix}")

    def _check_account(self) -> None:
        stacks = resources.stacks(self._cloudformation)
        if f"{plan.LAB}-{TRAINING_STACK}" in stacks:
            raise RefusedError(f"An acceptance run is deployed already. End it first: {self._by_hand()}")
        place = f"aws://{self._list.facts['account']}/{self._region}"
        bootstrapped = "CDKToolkit" in stacks
        if not self._list.add(checklist.BOOTSTRAP, bootstrapped, "" if bootstrapped else f"cdk bootstrap {place}"):
            raise RefusedError(f"{place} is not bootstrapped for the CDK. Once: cdk bootstrap {place}")

    def _upload(self, bucket: str) -> dict[str, str]:
        """Data, and the model if it is a folder; returns the run's variables."""
        s3, data, model = self._client("s3"), self._options.data, self._options.model
        if data is None:
            data = self._options.folder / "data"
            dataset.write(data)
        files = {f"data/{name}": path for name, path in environment.data_files(data).items()}
        if model is not None and Path(model).is_dir():
            folder = Path(model).resolve()
            prefix = f"models/{folder.name}/"
            files |= {prefix + path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
            model = f"s3://{bucket}/{prefix}"
        for key, path in files.items():
            s3.upload_file(str(path), bucket, key)
        return plan.variables(self._shell, model)

    def _see_it_end(self, place: Place, log_group: str) -> None:
        ec2 = self._client("ec2")
        follow(place, ec2, self._progress, stalled_seconds=STALLED_SECONDS)
        outcome = read_outcome(place.store, place.keys)
        said = f"{outcome.reason}: {outcome.sentence}" if outcome else "no outcome"
        self._list.add(checklist.SUCCEEDED, outcome is not None and outcome.succeeded, said)
        adapter = [item.key for item in place.store.list(place.keys.adapter) if item.key.endswith("safetensors")]
        self._list.add(checklist.ADAPTER, bool(adapter), ", ".join(adapter))
        live = wait_until_gone(ec2, self._progress, group=place.group)
        causes = resources.termination_causes(self._client("autoscaling"), place.group)
        by = resources.ended_by(causes, outcome)
        self._list.add(checklist.ITSELF, live == 0 and by == "instance", f"{live} left, ended by {by or 'nobody'}")
        self._progress.enter("Looking at what is left of it")
        suffix = place.keys.run_id.rsplit("-", 2)[1]
        left = account.until_none(lambda: account.of_instance(ec2, suffix))
        self._list.add(checklist.BOX, not left, ", ".join(sorted(left)))
        self._list.add(checklist.WATCHED, *self._watched(log_group, place.keys))

    def _watched(self, log_group: str, keys: RunKeys) -> tuple[bool, str]:
        """Whether CloudWatch shows the run. It takes a while to list a metric that is new."""
        cloudwatch, logs = self._client("cloudwatch"), self._client("logs")
        stack = {"Name": "Stack", "Value": f"{plan.LAB}-{TRAINING_STACK}"}
        names: list[str] = []
        for _ in range(METRICS_SECONDS // 5):
            found = cloudwatch.list_metrics(Namespace=contract.METRIC_NAMESPACE, Dimensions=[stack])["Metrics"]
            if names := sorted(item["MetricName"] for item in found):
                break
            time.sleep(5)
        try:
            events = logs.get_log_events(logGroupName=log_group, logStreamName=f"{keys.run_id}/1", limit=1)["events"]
        except ClientError as error:
            return False, str(error)
        return bool(names and events), f"{', '.join(names) or 'no metric'}; {'a log' if events else 'no log'}"

    def _destroy(self) -> None:
        began = time.monotonic()
        self._cdk.run("destroy", TRAINING_STACK, "--force", variables=self._variables)
        gone = f"{plan.LAB}-{TRAINING_STACK}" not in resources.stacks(self._cloudformation)
        self._list.add(checklist.DESTROYED, gone, f"in {duration(time.monotonic() - began)}" if gone else "still there")

    def _look_for_leftovers(self, before: set[str]) -> None:
        left = account.until_none(lambda: account.tagged(self._client, plan.LAB) - before)
        self._list.add(checklist.NOTHING_LEFT, not left, ", ".join(sorted(left)))

    def _state_of(self, stack: str) -> tuple[str, str]:
        """Status and time of the last change."""
        (found,) = self._cloudformation.describe_stacks(StackName=f"{plan.LAB}-{stack}")["Stacks"]
        return found["StackStatus"], str(found.get("LastUpdatedTime", found["CreationTime"]))
