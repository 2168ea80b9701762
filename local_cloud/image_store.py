"""Images on disk, by id and by tag."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from local_cloud.images import digest


class Store:
    """Images on disk, by id and by tag: a laptop's, or a box's own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def _tags(self) -> Path:
        return self.root / "tags.json"

    def tags(self) -> dict[str, str]:
        return json.loads(self._tags.read_text()) if self._tags.exists() else {}

    def add(self, config: bytes, layer: bytes, tag: str) -> str:
        image = digest(config)
        directory = self.root / "images" / image.removeprefix("sha256:")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_bytes(config)
        (directory / "layer.tar.gz").write_bytes(layer)
        self.tag(image, tag)
        return image

    def tag(self, image: str, tag: str) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = self._tags.with_suffix(".new")
        temporary.write_text(json.dumps(self.tags() | {tag: image}))
        temporary.replace(self._tags)

    def find(self, reference: str) -> str | None:
        """Image id of a tag, of ``repository@digest`` as pulled, or of an id itself."""
        tags = self.tags()
        return (
            tags.get(reference)
            or tags.get(f"{reference}:latest")
            or (reference if reference in tags.values() else None)
        )

    def load(self, image: str) -> tuple[bytes, bytes]:
        directory = self.root / "images" / image.removeprefix("sha256:")
        return (directory / "config.json").read_bytes(), (directory / "layer.tar.gz").read_bytes()

    def inspect(self, image: str) -> dict[str, Any]:
        config, _ = self.load(image)
        names = [tag for tag, value in self.tags().items() if value == image]
        return {"Id": image, "RepoTags": names, "Config": json.loads(config)["config"]}
