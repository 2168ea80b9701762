"""What the Hugging Face Hub says of a base model: its commit, its files, and whether this account may read them.

No torch is imported here, and the Hub's client only where a model comes from the Hub.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from training_image.core.errors import UserError

# Before any import of the Hub's client: no calls home, and no progress bars in a log file.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

log = logging.getLogger(__name__)
MAIN = "main"
COMMIT = re.compile(r"[0-9a-f]{40}")
_PARTS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "additional_chat_templates/*.jinja")
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
"""In the order of preference. Other names hold the same weights again: consolidated.safetensors, *.pth, GGUF, ONNX."""
_TIMEOUT_SECONDS = 20.0
_PAUSES_SECONDS = (2.0, 6.0)
_READ_BYTES = 1 << 20


class UnusableModelError(UserError):
    """The base model cannot be had; the message is a sentence that says what to do."""


class UnreachableError(Exception):
    """The Hub does not answer, or only that it cannot."""


class HubFile(BaseModel):
    """One file of a commit; ``size`` in bytes. ``sha256`` is known of what Git LFS keeps: weights, large tokenizers."""

    model_config = ConfigDict(frozen=True)

    name: str
    size: int
    blob_id: str
    sha256: str | None = None

    def is_at(self, path: Path) -> bool:
        """Whether ``path`` holds exactly this file. Git's own name of a small one is its checksum."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        digest = hashlib.sha256() if self.sha256 else hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
        return digest.hexdigest() == (self.sha256 or self.blob_id)


class Listing(BaseModel):
    """What one commit of a model consists of, as far as training needs it."""

    model_config = ConfigDict(frozen=True)

    sha: str = Field(pattern=f"^{COMMIT.pattern}$")
    restricted: bool
    """Gated or private: nobody may read it unless the Hub says so today."""
    files: tuple[HubFile, ...] = Field(min_length=1)


def needed(names: Iterable[str]) -> set[str]:
    """Which files of a model training reads: configuration, tokenizer, chat template, and the weights once."""
    found = list(names)
    return _weights(found).union(*(_matching(found, pattern) for pattern in _PARTS))


def _weights(names: Iterable[str]) -> set[str]:
    return next((found for pattern in _WEIGHTS if (found := _matching(names, pattern))), set())


def _matching(names: Iterable[str], pattern: str) -> set[str]:
    """Only names at the pattern's own depth: none in ``original/`` or ``onnx/``, and no path out of the folder."""
    return {name for name in names if name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)}


def ask(name: str, revision: str, secret: str | None, token: str | None) -> Listing:
    """What ``revision`` (branch, tag or commit) of the model is now.

    Args:
        secret: ARN of the secret that ``token`` is from, for the advice.

    Raises:
        UnusableModelError: there is no such model or revision, or this account may not read it.
        UnreachableError: the Hub cannot say, after several tries.
    """
    for pause in _PAUSES_SECONDS:
        try:
            return _ask(name, revision, secret, token)
        except UnreachableError as error:
            log.info("The Hub cannot be reached (%s): trying again in %g s", error, pause)
            time.sleep(pause)
    return _ask(name, revision, secret, token)


def _ask(name: str, revision: str, secret: str | None, token: str | None) -> Listing:
    # Only here: a run that needs no Hub is spared half a second of imports.
    import httpx2
    from huggingface_hub import HfApi, errors

    def refused(reason: str) -> UnusableModelError:
        return UnusableModelError(
            f"Base model {name} could not be loaded: {reason} Check LLM_MODEL__BASE_MODEL and that you may read it."
            + access_advice(secret, token)
        )

    api, own = HfApi(), token or False  # False: nobody's token but the secret's
    try:
        info = api.model_info(name, revision=revision, files_metadata=True, timeout=_TIMEOUT_SECONDS, token=own)
        if restricted := bool(info.gated or info.private):
            api.auth_check(name, token=own)  # the description of a gated model is public, its files are not
    except errors.GatedRepoError as error:
        raise refused("It is gated, and the Hub does not let this account read it.") from error
    except errors.RepositoryNotFoundError as error:
        raise refused("The Hub has no such model, or does not let this account read it.") from error
    except errors.RevisionNotFoundError as error:
        raise refused(f"It has no revision {revision} (LLM_MODEL__REVISION).") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status >= 500 or status == 429:
            raise UnreachableError(f"it answers {status}") from error
        raise refused(_first_line(error)) from error
    except errors.HFValidationError as error:
        raise refused(_first_line(error)) from error
    except (httpx2.TransportError, errors.OfflineModeIsEnabled) as error:
        raise UnreachableError(_first_line(error) or type(error).__name__) from error
    described = {file.rfilename: file for file in info.siblings or ()}
    if not _weights(described):
        raise refused("It holds no model*.safetensors.")
    files = [_described(described[name]) for name in sorted(needed(described))]
    return Listing(sha=str(info.sha), restricted=restricted, files=tuple(files))


def access_advice(secret: str | None, token: str | None) -> str:
    """How to come to read a model that the Hub refuses; empty where the lab keeps no token."""
    if secret is None:
        return ""
    if token is None:
        return (
            " A gated or private model needs your Hugging Face token: aws secretsmanager put-secret-value "
            f"--secret-id {secret} --secret-string file://token.txt"
        )
    return " For a gated model, accept its terms on its page with the account that the lab's Hugging Face token is of."


def _described(file: Any) -> HubFile:
    lfs = file.lfs
    return HubFile(name=file.rfilename, size=file.size, blob_id=file.blob_id, sha256=lfs.sha256 if lfs else None)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
