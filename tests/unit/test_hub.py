"""Base models from the Hub: the Hub and S3 on loopback, the Hub's real client, the real trainer offline."""

import json
import os
import subprocess

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import tiny_model
from tests.support.box import wait_for
from tests.support.fake_hub import fake_hub
from tests.support.runs import run_json
from training_image.core.contract import HUB_MIRROR, RunKeys, SupervisorExit, TrainerExit, WorkDir
from training_image.core.records import Run
from training_image.storage import hub as hub_module
from training_image.storage.hub import Listing, UnusableModelError, needed
from training_image.storage.hub_cache import HubModel
from training_image.supervisor import preparation
from training_image.supervisor.attempt import TRAINER

TOKEN = "hf_do-not-write-me-down"
WEIGHTS = bytes(range(256)) * 100
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"[1]",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"the same weights once more",
    "README.md": b"# A model",
    "original/consolidated.00.pth": b"and once more",
}
NEEDED = {"config.json", "tokenizer.json", "model.safetensors"}
MIRROR = f"{HUB_MIRROR}models--octo--model/"


def never():
    return False


@pytest.fixture
def hub(monkeypatch):
    with fake_hub() as hub:
        # HF_ENDPOINT in a process of its own; here the client has been imported already.
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hub_module, "_PAUSES_SECONDS", (0.0, 0.0))
        hub.commit(FILES)
        yield hub


class Box:
    """A fresh instance's cache, and what it does with the model."""

    def __init__(self, lab, folder):
        self.lab, self.cache = lab, folder / "hub"
        self.model = HubModel("octo/model", lab.training, self.cache, None)

    def start(self, revision="main"):
        listing = self.model.find(revision)
        self.model.fetch(listing, revision)
        return listing

    def mirror(self, revision="main"):
        self.model.mirror(self.start(revision), revision, never)

    def file(self, sha, name):
        return self.cache / "models--octo--model" / "snapshots" / sha / name

    def files(self):
        snapshots = self.cache / "models--octo--model" / "snapshots"
        return {path.relative_to(snapshots).as_posix().split("/", 1)[1] for path in snapshots.rglob("*.*")}


@pytest.fixture
def box(lab, tmp_path):
    numbers = iter(range(9))
    return lambda: Box(lab, tmp_path / f"box-{next(numbers)}")


def mirrored(lab):
    return {item.key.removeprefix(MIRROR) for item in lab.training.list(MIRROR)}


# --- what is taken ----------------------------------------------------------------------------------------------------
@given(st.lists(st.text("abm/.*[model.safetensors", min_size=1), max_size=8))
def test_nothing_outside_the_models_own_folder_is_needed(names):
    found = needed([*names, "../model.safetensors", "../../config.json", "/model.safetensors", "a/../config.json"])
    assert all("/" not in name or name.startswith("additional_chat_templates/") for name in found)
    assert found <= set(names)


@pytest.mark.parametrize(
    ("weights", "taken"),
    [
        ({"model.safetensors", "model.fp16.gguf", "consolidated.safetensors"}, {"model.safetensors"}),
        ({"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "pytorch_model.bin"}, None),
        ({"pytorch_model-00001-of-00001.bin", "training_args.bin"}, {"pytorch_model-00001-of-00001.bin"}),
    ],
)
def test_weights_are_taken_once(weights, taken):
    assert needed(weights) == (weights - {"pytorch_model.bin"} if taken is None else taken)


def test_the_first_instance_takes_it_from_the_hub_and_mirrors_it(hub, lab, box):
    first = box()
    first.mirror()
    sha = hub.branches["main"]
    assert first.files() == NEEDED == set(hub.fetched())
    assert mirrored(lab) == {f"snapshots/{sha}/{name}" for name in NEEDED} | {"refs/main", f"manifests/{sha}.json"}
    assert lab.training.read(f"{MIRROR}refs/main") == sha.encode()
    assert (first.cache / "models--octo--model/refs/main").read_text() == sha


def test_the_next_instance_takes_it_from_the_mirror(hub, lab, box):
    box().mirror()
    hub.seen.clear()
    second = box()
    sha = second.start().sha
    assert (second.files(), hub.fetched()) == (NEEDED, [])
    assert second.file(sha, "model.safetensors").read_bytes() == WEIGHTS


def test_a_moved_branch_is_mirrored_beside_the_old_commit_and_overwrites_nothing(hub, lab, box):
    box().mirror()
    old = {item.key: item.modified for item in lab.training.list(f"{MIRROR}snapshots/")}
    new = hub.commit({**FILES, "config.json": b'{"new": 1}'})
    box().mirror()
    now = {item.key: item.modified for item in lab.training.list(f"{MIRROR}snapshots/")}
    assert old.items() < now.items()
    assert lab.training.read(f"{MIRROR}refs/main") == new.encode()


def test_a_half_mirror_is_used_as_far_as_it_goes_and_completed(hub, lab, box):
    first = box()
    calls = iter([False, False, True])
    listing = first.start()
    first.model.mirror(listing, "main", lambda: next(calls))
    assert len(mirrored(lab)) == 2, "no refs, no manifest"
    hub.seen.clear()
    box().mirror()
    assert len(hub.fetched()) == 1
    assert lab.training.read(f"{MIRROR}refs/main") == listing.sha.encode()


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_a_tampered_file_of_the_mirror_is_taken_from_the_hub_instead(name, hub, lab, box, caplog):
    box().mirror()
    sha = hub.branches["main"]
    lab.training.put(f"{MIRROR}snapshots/{sha}/{name}", b"x" * len(FILES[name]))
    hub.seen.clear()
    second = box()
    second.mirror()
    assert hub.fetched() == [name]
    assert second.file(sha, name).read_bytes() == FILES[name]
    assert f"{name} of octo/model is not the Hub's" in caplog.text


def test_a_file_smuggled_into_the_mirror_never_lies_beside_the_model(hub, lab, box):
    box().mirror()
    sha = hub.branches["main"]
    lab.training.put(f"{MIRROR}snapshots/{sha}/adapter_config.json", b"{}")
    second = box()
    second.file(sha, "x").parent.mkdir(parents=True)
    second.file(sha, "chat_template.jinja").write_text("as user data would have fetched it")
    second.start()
    assert second.files() == NEEDED


def test_what_user_data_has_fetched_is_not_fetched_again(hub, lab, box, monkeypatch):
    box().mirror()
    second = box()
    for item in lab.training.list(f"{MIRROR}snapshots/"):
        path = second.cache / "models--octo--model" / item.key.removeprefix(MIRROR)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lab.training.read(item.key))
    fetched = []
    monkeypatch.setattr(type(lab.training), "download", lambda _, files: fetched.extend(files))
    second.start()
    assert fetched == []


def test_a_mirror_that_cannot_be_written_or_read_costs_nothing(hub, lab, box, caplog):
    first = box()
    first.model._mirror = lab.training.elsewhere("no-such-bucket-anywhere")
    first.mirror()
    assert first.files() == NEEDED
    assert "could not be mirrored" in caplog.text


# --- who may, and what if nobody can say ------------------------------------------------------------------------------
def test_a_gated_model_is_refused_although_it_is_mirrored(hub, lab, box):
    hub.gated, hub.readers = True, {TOKEN}
    reader = box()
    reader.model._token = TOKEN
    reader.mirror()
    stranger = box()
    with pytest.raises(UnusableModelError, match="It is gated, and the Hub does not let this account read it"):
        stranger.start()
    assert stranger.files() == set()


@pytest.mark.parametrize(
    ("name", "revision", "said"),
    [
        ("octo/none", "main", "The Hub has no such model"),
        ("octo/model", "none", r"It has no revision none \(LLM_MODEL__REVISION\)"),
        ("a/b/c", "main", "Repo id must be in the form"),
    ],
)
def test_what_does_not_exist_is_a_sentence(name, revision, said, hub, tmp_path):
    with pytest.raises(UnusableModelError, match=f"Base model {name} could not be loaded: {said}"):
        HubModel(name, None, tmp_path, None).find(revision)


def test_a_model_without_weights_is_refused(hub, tmp_path):
    hub.commit({"config.json": b"{}"})
    with pytest.raises(UnusableModelError, match=r"holds no model\*\.safetensors"):
        HubModel("octo/model", None, tmp_path, None).find("main")


def test_while_the_hub_is_away_an_open_models_mirror_is_used(hub, lab, box, caplog):
    box().mirror()
    hub.status = 503
    second = box()
    assert second.start().sha == hub.branches["main"]
    assert second.files() == NEEDED
    assert "is used as it is" in caplog.text


def test_while_the_hub_is_away_a_gated_models_mirror_is_not_used(hub, lab, box):
    hub.gated, hub.readers = True, {TOKEN}
    reader = box()
    reader.model._token = TOKEN
    reader.mirror()
    hub.status = 503
    with pytest.raises(UnusableModelError, match="only the Hub can say whether you may read it"):
        box().start()


@pytest.mark.parametrize("lost", ["refs/main", "manifests", "all"])
def test_while_the_hub_is_away_a_mirror_that_is_not_whole_is_none(lost, hub, lab, box, monkeypatch):
    box().mirror()
    lab.training.delete([item.key for item in lab.training.list(MIRROR + ("" if lost == "all" else lost))])
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # refused, as without a way out
    with pytest.raises(UnusableModelError, match="the lab has no mirror of it"):
        box().start()


def test_while_the_hub_is_away_a_damaged_mirror_is_a_sentence(hub, lab, box):
    box().mirror()
    lab.training.put(f"{MIRROR}snapshots/{hub.branches['main']}/config.json", b"[]")
    hub.status = 500
    with pytest.raises(UnusableModelError, match=r"lacks an intact config\.json"):
        box().start()


def test_a_manifest_cannot_lead_out_of_the_folder(hub, lab, box):
    box().mirror()
    key = f"{MIRROR}manifests/{hub.branches['main']}.json"
    listing = Listing.model_validate_json(lab.training.read(key))
    bad = listing.files[0].model_copy(update={"name": "../../../config.json"})
    lab.training.put(key, listing.model_copy(update={"files": (*listing.files, bad)}).model_dump_json().encode())
    hub.status = 503
    assert {file.name for file in box().model.find("main").files} == NEEDED


# --- a run ------------------------------------------------------------------------------------------------------------
SETTINGS = {
    "model": {"base_model": "octo/model"},
    "data": {"eval_fraction": 0.2},
    "training": {"use_cpu": True, "max_steps": 1, "max_length": 64},
    "evaluation": {"max_new_tokens": 1, "samples": 1},
}


def start(lab, hub, **changes):
    lab.environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(lab.folder / "huggingface")}
    lab.start_run("hold=3", settings=SETTINGS, training_bucket=lab.training.bucket, **changes)


def test_a_later_attempt_keeps_the_commit_of_the_first(hub, lab):
    first = hub.branches["main"]
    start(lab, hub)
    box = lab.holding(3)
    wait_for(lambda: lab.training.read(f"{MIRROR}refs/main"), "the mirror")
    hub.commit({**FILES, "config.json": b'{"moved": 1}'})
    box.terminate()
    assert lab.ended(box) == SupervisorExit.INSTANCE_LEAVING
    lab.start_run(settings=SETTINGS, training_bucket=lab.training.bucket)
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    assert lab.outcome()["attempts"] == 2
    assert json.loads(lab.work.base_model.read_text())["sha"] == first
    assert lab.store.read_json(lab.keys.base_model)["sha"] == first
    assert lab.training.read(f"{MIRROR}refs/main") == first.encode(), "an old commit is not what main is"


def test_a_model_that_may_not_be_read_ends_the_run_before_the_trainer_starts(hub, lab):
    hub.gated = True
    start(lab, hub)
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    assert (lab.outcome()["reason"], "It is gated" in lab.outcome()["detail"]) == ("failed", True)
    assert lab.heartbeat()["step"] is None


def test_the_token_goes_to_the_hub_and_nowhere_else(hub, lab):
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    secrets = boto3.client("secretsmanager", endpoint_url=lab.endpoint, region_name="us-east-1", **keys)
    arn = secrets.create_secret(Name=lab.keys.run_id, SecretString=TOKEN)["ARN"]
    hub.gated, hub.readers = True, {TOKEN}
    start(lab, hub, secrets={"hugging_face": arn})
    box = lab.holding(3)
    wait_for(lambda: lab.training.read(f"{MIRROR}refs/main"), "the mirror")
    box.terminate()
    lab.ended(box)
    assert {token for _, _, token in hub.seen} == {f"Bearer {TOKEN}"}
    written = [path for path in lab.folder.rglob("*") if path.is_file()]
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    stored = [(store, item.key) for store in (lab.store, lab.training) for item in store.list("")]
    assert not [key for store, key in stored if TOKEN.encode() in store.read(key)]


def test_the_real_trainer_trains_it_offline(hub, lab, monkeypatch):
    base = lab.folder / "base"
    base.mkdir()
    tiny_model.save_model(base)
    sha = hub.commit({path.name: path.read_bytes() for path in base.iterdir()})
    lines = "".join(f'{{"prompt": "Say {n}", "completion": "abc"}}\n' for n in range(9))
    lab.training.put("data/train.jsonl", lines.encode())
    work, home = WorkDir(lab.folder / "w"), lab.folder / "home"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    run = run_json(settings=SETTINGS, data_uri=lab.data_uri, training_bucket=lab.training.bucket)
    preparation.clear(work)
    work.run.write_text(json.dumps(run))
    preparation.prepare(lab.store, RunKeys("r"), Run.read(run), work)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LLM_", "AWS_"))}
    done = subprocess.run(
        [*TRAINER, str(work.root)],
        env={**inherited, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(home)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == TrainerExit.DONE, done.stdout
    assert f"`octo/model` at commit `{sha}`" in (work.adapter / "README.md").read_text()
