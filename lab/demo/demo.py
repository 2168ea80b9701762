"""`make demo`: deploy, push data, train, let the instance end itself, destroy, and check what is left.

Only the product's own commands and AWS's own APIs are used, as anyone would use them on AWS.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Console

from lab.demo import base_model, dataset, environment, fault, report
from lab.demo.base_model import BaseModelError
from lab.demo.fault import Saboteur
from lab.demo.recheck import RecheckError, recheck
from lab.demo.summary import Facts, problems, summarize
from lab.operator import record, resources
from lab.operator.cdk import Cdk
from lab.operator.follow import Place, RunStalledError, follow, wait_until_gone
from lab.operator.progress import TITLES, Progress, Shown
from local_cloud.cloud import LocalCloud, LocalCloudError
from training_image.core.contract import DATA_STACK, TRAINING_STACK, RunKeys
from training_image.core.errors import UserError
from training_image.core.store import Store

_FAILURES = (
    BaseModelError, RunStalledError, RecheckError, LocalCloudError, UserError, BotoCoreError, ClientError,
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    root: Path
    """Of the clone."""
    data: Path | None
    """The user's own file or folder; None: the demo's questions."""
    model: Path | None
    """The user's own model folder; None: the demo's small model."""
    engine: str = "process"
    """``docker``: the image is really built, pushed, pulled and run."""

    @property
    def folder(self) -> Path:
        return self.root / ".lab" / "demo"


def run(options: Options, console: Console) -> int:
    """The whole demo; its input has been checked. Returns the exit code: 0 only if everything went as it must."""
    started = time.monotonic()
    facts, progress = Facts(engine=options.engine), Progress(console)
    cloud = LocalCloud(options.root, options.engine)
    try:
        progress.enter("Starting the local cloud")
        cloud.start()  # first of all: it holds the clone's lock, and cleans up itself when it fails
    except LocalCloudError as error:
        progress.finish(failed=True)
        console.print(str(error))
        return 1
    except KeyboardInterrupt:
        return _stopped(console, progress)
    try:
        shutil.rmtree(options.folder, ignore_errors=True)
        options.folder.mkdir(parents=True)
        try:
            _life_cycle(options, cloud, progress, facts)
            progress.finish()
        except _FAILURES as error:
            progress.finish(failed=True)
            facts.problem = str(error)
            _rescue(options, cloud, facts)
    except KeyboardInterrupt:
        return _stopped(console, progress)
    finally:
        with report.uninterrupted():
            cloud.stop()
    facts.wall_seconds = time.monotonic() - started
    instance_titles = {*TITLES.values()}
    facts.own_seconds = {title: took for title, took in progress.seconds.items() if title not in instance_titles}
    summary, found = summarize(facts), problems(facts)
    (options.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    report.show(console, summary, found, facts, options.folder)
    return 1 if found else 0


def _life_cycle(options: Options, cloud: LocalCloud, progress: Progress, facts: Facts) -> None:
    """Fills ``facts`` as they become known."""
    own_model = environment.BASE_MODEL in os.environ
    model = options.model
    if model is None and not own_model:
        progress.enter("Preparing the base model")
        model = base_model.ensure(lambda text: progress.show(Shown(text)))
    progress.enter("Bootstrapping it for the CDK")
    cloud.bootstrap()
    cdk = Cdk(options.root, options.folder, cloud.environ())
    s3, ec2, cloudformation = (cloud.client(name) for name in ("s3", "ec2", "cloudformation"))

    progress.enter("Deploying DataStack")
    cdk.run("deploy", DATA_STACK, "--require-approval", "never")
    data_stack = resources.outputs(cloudformation, DATA_STACK)
    bucket = data_stack["TrainingBucket"]
    progress.enter("Uploading data and base model")
    _upload(s3, bucket, "data/", _data(options))
    uri = f"s3://{bucket}/models/{model.resolve().name}/" if model else ""
    if model:
        files = {path.name: path for path in sorted(model.iterdir()) if path.is_file()}
        _upload(s3, bucket, f"models/{model.resolve().name}/", files)

    progress.enter("Deploying TrainingStack")
    variables = environment.run_variables(os.environ, base_model=uri, own_data=options.data is not None)
    saboteur = Saboteur(fault.from_shell(os.environ), cloud)
    saboteur.before_the_run()
    cdk.run("deploy", TRAINING_STACK, "--require-approval", "never", *saboteur.options, variables=variables)
    training_stack = resources.outputs(cloudformation, TRAINING_STACK)
    facts.run_id = training_stack["RunId"]
    keys = RunKeys(facts.run_id)
    place = Place(Store(s3, data_stack["OutputsBucket"]), keys, training_stack["AutoScalingGroupName"])
    facts.adapter_uri = f"s3://{place.store.bucket}/{keys.adapter}"
    try:
        follow(place, ec2, progress, on_heartbeat=lambda heartbeat: saboteur.at(place, heartbeat))
        facts.instances_before_destroy = wait_until_gone(ec2, progress)
    finally:
        facts.record = record.record(place.store, keys)
        _keep_logs(place, options.folder)
    if not saboteur.struck:
        facts.problem = "DEMO_FAULT never struck: the run ended before a checkpoint was durable. Raise DEMO_STEPS."
    causes = resources.termination_causes(cloud.client("autoscaling"), place.group)
    facts.ended_by = resources.ended_by(causes, facts.record.outcome)

    progress.enter("Destroying TrainingStack")
    cdk.run("destroy", TRAINING_STACK, "--force", variables=variables)
    _look(cloud, facts)
    if facts.record.succeeded and facts.record.run is not None:
        progress.enter("Loading the adapter afresh from S3")
        scratch = options.folder / "recheck"
        facts.recheck = recheck(place.store, facts.record.run, scratch, cloud.environ())
        shutil.move(scratch / "adapter", options.folder / "adapter")
        shutil.rmtree(scratch)


def _stopped(console: Console, progress: Progress) -> int:
    progress.finish(failed=True)
    console.print("Stopped: ending the local cloud, nothing is left running. `make demo` starts anew.")
    return 130


def _data(options: Options) -> dict[str, Path]:
    """The files to upload, by name."""
    if options.data is not None:
        return environment.data_files(options.data)
    dataset.write(options.folder / "data")
    return environment.data_files(options.folder / "data")


def _upload(s3: Any, bucket: str, prefix: str, files: dict[str, Path]) -> None:
    for name, path in files.items():
        s3.upload_file(str(path), bucket, prefix + name)


def _look(cloud: LocalCloud, facts: Facts) -> None:
    """What is there now."""
    facts.instances_after = len(resources.live_instances(cloud.client("ec2")))
    facts.stacks_after = resources.stacks(cloud.client("cloudformation"))


def _keep_logs(place: Place, folder: Path) -> None:
    """The attempts' logs, which would go with the local cloud."""
    record.download(place.store, f"{place.keys.prefix}attempts/", folder / "attempts")


def _rescue(options: Options, cloud: LocalCloud, facts: Facts) -> None:
    """After a failure: destroy what stands, as a user would, and say what is left."""
    try:
        _look(cloud, facts)
        if TRAINING_STACK in (facts.stacks_after or ()):
            Cdk(options.root, options.folder, cloud.environ()).run("destroy", TRAINING_STACK, "--force")
            _look(cloud, facts)
    except _FAILURES as error:
        facts.problem = f"{facts.problem}\n\nThe clean-up failed too: {error}"
