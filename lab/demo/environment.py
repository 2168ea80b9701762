"""What the demo tells the run, and what it checks before anything is started."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from training_image.config.run_settings import RunSettings, SettingsError, variable
from training_image.core.errors import UserError
from training_image.data.conversation import DataError
from training_image.data.split import load

BASE_MODEL = variable("model", "base_model")
MAX_STEPS = variable("training", "max_steps")
OWN_DATA_MAX_LENGTH = "512"
"""Tokens an example, where the data is the user's own: the demo's questions are far shorter than most."""

DEMO_SETTINGS = {
    variable("training", "use_cpu"): "true",
    MAX_STEPS: "40",
    variable("training", "per_device_train_batch_size"): "8",
    variable("training", "gradient_accumulation_steps"): "1",
    variable("training", "per_device_eval_batch_size"): "32",
    variable("training", "learning_rate"): "1e-3",
    variable("training", "max_length"): "128",
    variable("training", "warmup_steps"): "0.1",
    variable("lora", "lora_dropout"): "0",
    variable("evaluation", "max_new_tokens"): "20",
}
"""About four minutes of training on two CPU cores. Only defaults: the shell's own ``LLM_*`` variables win."""


class InputError(UserError):
    """Something the user gave cannot be used, or a program is missing. One sentence; nothing was started."""


def run_variables(shell: Mapping[str, str], *, base_model: str, own_data: bool) -> dict[str, str]:
    """The ``LLM_*`` variables to add to the shell's, none of which is set there."""
    defaults = {**DEMO_SETTINGS, BASE_MODEL: base_model}
    if own_data:
        defaults[variable("training", "max_length")] = OWN_DATA_MAX_LENGTH
    if steps := demo_steps(shell):
        defaults[MAX_STEPS] = str(steps)
    return {name: value for name, value in defaults.items() if name not in shell}


def demo_steps(shell: Mapping[str, str]) -> int | None:
    """``DEMO_STEPS`` as a number, if it is set.

    Raises:
        InputError: if it is no whole number from 1 on.
    """
    text = shell.get("DEMO_STEPS", "").strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"DEMO_STEPS is {text!r}; it must be a whole number of optimizer steps, 1 or more.")
    return int(text)


def check(root: Path, data_path: Path | None, model: Path | None) -> None:
    """Everything that can be known to be wrong before anything is started.

    Raises:
        InputError: naming what to change.
    """
    _check_node(root)
    demo_steps(os.environ)
    try:
        settings = RunSettings.load()
    except SettingsError as error:
        raise InputError(str(error)) from None
    if data_path is not None:
        _check_data(data_path, settings)
    if model is not None and not (model / "config.json").is_file():
        raise InputError(
            f"--model {model}: no config.json there. Give the folder of a Transformers model: config.json, the "
            "tokenizer's files and *.safetensors."
        )
    if model is not None and BASE_MODEL in os.environ:
        raise InputError(f"Both --model {model} and {BASE_MODEL} name a base model; give only one of them.")


def data_files(path: Path) -> dict[str, Path]:
    """The files of ``--data``, by the name that each gets in S3."""
    if path.is_file():
        return {path.name: path}
    return {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*.jsonl")) if file.is_file()}


def _check_node(root: Path) -> None:
    if shutil.which("node") is None:
        raise InputError(
            "Node.js was not found; the CDK CLI needs it. Install Node 20 or newer (https://nodejs.org), then run this "
            "again."
        )
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    major = version.lstrip("v").split(".")[0]
    if not major.isdecimal() or int(major) < 20:
        raise InputError(f"Node {version or 'here'} is too old for the CDK CLI. Install Node 20 or newer.")
    if not (root / "node_modules" / ".bin" / "cdk").exists():
        raise InputError("The CDK CLI is not installed in this clone. Run: make setup")


def _check_data(path: Path, settings: RunSettings) -> None:
    """The same loader as on the instance, on the same files."""
    if not path.exists():
        raise InputError(f"--data {path}: there is no such file or folder.")
    if path.is_file() and path.suffix != ".jsonl":
        raise InputError(f"--data {path}: not a .jsonl file. Give a file of JSON lines, or a folder with such files.")
    with tempfile.TemporaryDirectory() as folder:
        for name, file in data_files(path).items():
            link = Path(folder) / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
        try:
            load(Path(folder), settings.data)
        except DataError as error:
            raise InputError(f"--data {path}: {error}") from None
