"""Images on disk, by id and by tag: a laptop's, or an instance's own."""

from __future__ import annotations

import json
from pathlib import Path

from local_cloud.images import EngineError, digest


class Store:
    """The images of one engine, kept under ``root``."""

    def __init__(self, root: Path) -> None:
        self._images, self._tags = root / "images", root / "tags.json"

    def tags(self) -> dict[str, str]:
        """Image id of each tag, and of each ``repository@digest`` that was pulled."""
        return json.loads(self._tags.read_text()) if self._tags.exists() else {}

    def add(self, config: bytes, layer: bytes, tag: str) -> str:
        image = digest(config)
        directory = self._images / image.removeprefix("sha256:")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_bytes(config)
        (directory / "layer.tar.gz").write_bytes(layer)
        self.tag(image, tag)
        return image

    def tag(self, image: str, tag: str) -> None:
        temporary = self._tags.with_suffix(".new")
        temporary.write_text(json.dumps(self.tags() | {tag: image}))
        temporary.replace(self._tags)

    def need(self, reference: str) -> str:
        """Image id of a tag.

        Raises:
            EngineError: there is no such image.
        """
        if (image := self.tags().get(reference)) is None:
            raise EngineError(f"Error response from daemon: No such image: {reference}")
        return image

    def load(self, reference: str) -> tuple[bytes, bytes]:
        """Config and layer.

        Raises:
            EngineError: there is no such image.
        """
        directory = self._images / self.need(reference).removeprefix("sha256:")
        return (directory / "config.json").read_bytes(), (directory / "layer.tar.gz").read_bytes()
