"""A base model of the Hugging Face Hub on its way to the instance, by the lab's mirror in the training bucket.

The Hub decides what a revision is, who may read it, and which bytes belong to it; the mirror only saves the way. So the
Hub is asked each time, and a file that is not what it describes is not used, wherever it came from. Mirror and
instance have the layout of Hugging Face's own cache:

    models/hub/models--<organisation>--<name>/refs/<revision>           a commit; last, so what it names is whole
                                             /snapshots/<commit>/...    what training needs of it, never overwritten
                                             /manifests/<commit>.json   sizes and checksums as the Hub gave them (ours)
"""

from __future__ import annotations

import glob
import logging
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import ValidationError

from training_image.core.contract import HUB_MIRROR
from training_image.core.store import MissingObject, Store, remove_others
from training_image.storage import hub
from training_image.storage.hub import HubFile, Listing, UnreachableError, UnusableModelError
from training_image.storage.secrets import read_secret

log = logging.getLogger(__name__)
_LOST_S3 = (ClientError, BotoCoreError, Boto3Error, MissingObject)


class HubModel:
    """One model of the Hub, for one instance.

    Args:
        mirror: the training bucket; None: no mirror is read or written.
        cache: Hugging Face's cache on this instance, ``$HF_HOME/hub``.
        token_secret: ARN of the secret with the Hub's token, which is held in this process and goes nowhere else.
    """

    def __init__(self, name: str, mirror: Store | None, cache: Path, token_secret: str | None) -> None:
        folder = "models--" + name.replace("/", "--")
        self.name = name
        self._mirror = mirror
        self._prefix = f"{HUB_MIRROR}{folder}/"
        self._cache = cache
        self._folder = cache / folder
        self._secret = token_secret
        self._token = read_secret(token_secret) if token_secret else None
        self._reachable = True

    # --- which commit -------------------------------------------------------------------------------------------------
    def find(self, revision: str) -> Listing:
        """What ``revision`` is now, as the Hub says; while it cannot be reached, as the mirror says, unless the model
        is gated or private.

        Raises:
            UnusableModelError: there is no such model, this account may not read it, or nobody can say.
        """
        try:
            return hub.ask(self.name, revision, self._secret, self._token)
        except UnreachableError as error:
            reason, self._reachable = str(error), False
        try:
            listing = self._recall(revision)
        except _LOST_S3 as error:
            log.warning("The mirror of %s cannot be read: %s", self.name, error)
            listing = None
        cannot = f"Base model {self.name} could not be loaded: the Hub cannot be reached ({reason})"
        if listing is None:
            raise UnusableModelError(
                f"{cannot}, and the lab has no mirror of it. Start the run again when the Hub can be reached, or set "
                "LLM_MODEL__BASE_MODEL to an s3:// prefix that holds the model."
            )
        if listing.restricted:
            raise UnusableModelError(
                f"{cannot}, and only the Hub can say whether you may read it, because it is gated or private. Start "
                "the run again when the Hub can be reached."
            )
        log.warning("The Hub cannot be reached (%s): the lab's mirror of %s is used as it is", reason, self.name)
        return listing

    def _recall(self, revision: str) -> Listing | None:
        """What the mirror holds in full of ``revision``."""
        if self._mirror is None:
            return None
        sha = revision
        if not hub.COMMIT.fullmatch(revision):
            sha = (self._mirror.read(self._ref(revision)) or b"").decode().strip()
        try:
            found = Listing.model_validate_json(self._mirror.read(self._manifest(sha)) or b"")
        except ValidationError:
            return None
        kept = hub.needed(file.name for file in found.files)  # no name that leads out of the folder is among these
        return found.model_copy(update={"files": tuple(file for file in found.files if file.name in kept)})

    # --- its files ----------------------------------------------------------------------------------------------------
    def fetch(self, listing: Listing, revision: str) -> None:
        """Put the commit into the cache, where Transformers finds it offline, by ``revision`` too.

        Taken are, in this order: what lies there already, the mirror's files, the Hub's; each only if it verifies.

        Raises:
            UnusableModelError: some of it cannot be had.
        """
        snapshot = self._folder / "snapshots" / listing.sha
        snapshot.mkdir(parents=True, exist_ok=True)
        self._take_from_mirror(listing, snapshot)
        lacking = _unverified(listing, snapshot)
        for path in (snapshot / file.name for file in lacking):
            if path.exists():
                log.warning("%s of %s is not the Hub's, and is not used", path.name, self.name)
            path.resolve().unlink(missing_ok=True)  # the Hub's client keeps what a link here leads to
            path.unlink(missing_ok=True)
        if lacking:
            self._download(listing, lacking)
            if still := _unverified(listing, snapshot):
                raise UnusableModelError(f"The Hub's {still[0].name} of {self.name} is not the file that it describes.")
        # Whatever else lies there, Transformers could take for an adapter or a chat template.
        remove_others(snapshot, {snapshot / file.name for file in listing.files})
        reference = self._folder / "refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(listing.sha)
        size = sum(file.size for file in listing.files) / 1e6
        files = f"{len(listing.files)} file(s), {len(lacking)} of them from the Hub"
        log.info("base model: %s at %s, %.1f MB in %s", self.name, listing.sha, size, files)

    def _take_from_mirror(self, listing: Listing, snapshot: Path) -> None:
        if self._mirror is None:
            return
        prefix = self._snapshot(listing.sha)
        sizes = {file.name: file.size for file in listing.files}
        try:
            stored = {item: item.key.removeprefix(prefix) for item in self._mirror.list(prefix)}
            self._mirror.sync({item: snapshot / name for item, name in stored.items() if sizes.get(name) == item.size})
        except _LOST_S3 as error:
            log.warning("The mirror of %s cannot be read: %s", self.name, error)

    def _download(self, listing: Listing, files: Collection[HubFile]) -> None:
        names = [file.name for file in files]
        if not self._reachable:
            raise UnusableModelError(
                f"The lab's mirror of {self.name} lacks an intact {names[0]}, and the Hub cannot be reached. Start the "
                "run again when it can be."
            )
        from huggingface_hub import snapshot_download

        patterns = [glob.escape(name) for name in names]
        snapshot_download(
            self.name, revision=listing.sha, cache_dir=self._cache, allow_patterns=patterns, token=self._token or False
        )

    # --- the mirror ---------------------------------------------------------------------------------------------------
    def mirror(self, listing: Listing, revision: str | None, stopped: Callable[[], bool]) -> None:
        """Put what the cache holds into the mirror, so that the next instance need not fetch it from the Hub.

        It never fails a run, overwrites no file, and makes way for the last checkpoint when ``stopped``; what is
        lacking then is the next instance's to add.

        Args:
            revision: branch or tag to set to this commit; None: set none, because it may be an older run's commit.
        """
        if self._mirror is None or not self._reachable:
            return
        prefix, snapshot = self._snapshot(listing.sha), self._folder / "snapshots" / listing.sha
        try:
            stored = {item.key: item.size for item in self._mirror.list(prefix)}
            for file in listing.files:
                if stopped():
                    return
                key = prefix + file.name
                if key not in stored:
                    self._mirror.upload([(key, snapshot / file.name)])
                elif stored[key] != file.size:
                    log.warning("s3://%s/%s is damaged: delete it, and it will be mirrored", self._mirror.bucket, key)
                    return
            self._mirror.create_json(self._manifest(listing.sha), listing.model_dump(mode="json"))
            reference = listing.sha.encode()
            if revision is not None and self._mirror.read(self._ref(revision)) != reference:
                self._mirror.put(self._ref(revision), reference)
                log.info("Base model %s is mirrored in the training bucket", self.name)
        except Exception as error:
            log.warning("Base model %s could not be mirrored in the training bucket: %s", self.name, error)

    def _ref(self, revision: str) -> str:
        return f"{self._prefix}refs/{revision}"

    def _snapshot(self, sha: str) -> str:
        return f"{self._prefix}snapshots/{sha}/"

    def _manifest(self, sha: str) -> str:
        return f"{self._prefix}manifests/{sha}.json"


def _unverified(listing: Listing, snapshot: Path) -> list[HubFile]:
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock: a shard on each core
        intact = list(pool.map(lambda file: file.is_at(snapshot / file.name), listing.files))
    return [file for file, good in zip(listing.files, intact, strict=True) if not good]
