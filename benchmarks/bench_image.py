"""How large the training image is: ``make bench-image``, with ``IMAGE=NAME`` also one that Docker has.

The GPU variant is computed from the index's own sizes of the wheels that its lock file names; no wheel is downloaded.
A built image is measured: every layer, as it is and compressed as a registry keeps it, and how long its imports take.
The peer is the public PyTorch runtime image of the same torch version, as its registry states its size.
The target: compressed within 5 % of the locked wheels and the base. Figures go to ``benchmarks/results/image.json``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import tarfile
import tempfile
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename
from pip._internal.models.index import PyPI

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).with_name("results") / "image.json"
INDEX = PyPI.simple_url  # pip's own default
TARGET = 0.05
PYTHON = (3, 11)
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
PEER_TAGS = "https://hub.docker.com/v2/repositories/pytorch/pytorch/tags?page_size=100&name={version}-"
GZIP_LEVEL = 6  # what Docker pushes with
IMPORTS = "import time; t = time.monotonic(); import torch, transformers, peft, trl; print(time.monotonic() - t)"


def locked(variant: str) -> dict[str, tuple[str, set[str]]]:
    """Version and accepted hashes by package."""
    found: dict[str, tuple[str, set[str]]] = {}
    name = ""
    for line in (ROOT / f"training_image/requirements-{variant}.lock").read_text().splitlines():
        if match := re.match(r"([\w.-]+)==(\S+)", line):
            name = match[1]
            found[name] = (match[2], set())
        elif match := re.search(r"--hash=sha256:(\w+)", line):
            found[name][1].add(match[1])
    return found


def wheel_bytes(name: str, hashes: set[str], order: dict[Tag, int]) -> int:
    """Size of the wheel that pip would choose for the image's Python and platform."""
    request = urllib.request.Request(  # noqa: S310
        f"{INDEX}/{name}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        files = json.load(response)["files"]
    fitting = []
    for file in files:
        if file["hashes"]["sha256"] in hashes and file["filename"].endswith(".whl"):
            ranks = [order[tag] for tag in parse_wheel_filename(file["filename"])[3] if tag in order]
            if ranks:
                fitting.append((min(ranks), file["size"]))
    return int(min(fitting)[1])


def wheels(variant: str) -> dict[str, int]:
    """Bytes of every wheel of the variant that the public index has (torch's CPU build is elsewhere)."""
    tags = [
        *cpython_tags(PYTHON, platforms=PLATFORMS),
        *compatible_tags(PYTHON, interpreter="cp311", platforms=PLATFORMS),
    ]
    order = {tag: rank for rank, tag in enumerate(tags)}
    return {
        name: wheel_bytes(name, hashes, order)
        for name, (version, hashes) in locked(variant).items()
        if not version.endswith("+cpu")
    }


def peer(version: str) -> dict[str, object]:
    """Compressed bytes of the public runtime images of this torch version by tag, or why they are not known."""
    try:
        with urllib.request.urlopen(PEER_TAGS.format(version=version), timeout=20) as response:  # noqa: S310
            found = json.load(response)["results"]
    except OSError as error:
        return {"unknown": f"the registry of pytorch/pytorch could not be asked: {error}"}
    return {tag["name"]: tag["full_size"] for tag in found if tag["name"].endswith("-runtime")}


def layers(image: str) -> list[dict[str, object]]:
    """Every layer of an image that Docker has: bytes as they are, and compressed."""
    result = []
    with tempfile.TemporaryDirectory(dir=ROOT / ".lab") as directory:
        archive = Path(directory) / "image.tar"
        subprocess.run(["docker", "save", "--output", str(archive), image], check=True)
        with tarfile.open(archive) as outer:
            manifest = json.load(_member(outer, "manifest.json"))
            config = json.load(_member(outer, manifest[0]["Config"]))
            made = [entry.get("created_by", "") for entry in config["history"] if not entry.get("empty_layer")]
            for name, created_by in zip(manifest[0]["Layers"], made, strict=True):
                layer, compressed, size = _member(outer, name), _Count(), 0
                with gzip.GzipFile(fileobj=compressed, mode="wb", compresslevel=GZIP_LEVEL, mtime=0) as packed:
                    while block := layer.read(1 << 20):
                        size += len(block)
                        packed.write(block)
                result.append({"made_by": created_by[:90], "bytes": size, "compressed_bytes": compressed.total})
    return result


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    found = archive.extractfile(name)
    if found is None:
        raise FileNotFoundError(f"{name} is no file of the saved image.")
    return found


class _Count:
    """A file that only counts what is written to it."""

    def __init__(self) -> None:
        self.total = 0

    def write(self, data: bytes) -> int:
        self.total += len(data)
        return len(data)

    def flush(self) -> None:
        pass


def import_seconds(image: str) -> list[float]:
    """The trainer's imports in a fresh container, three times: the first one reads from disk."""
    command = ["docker", "run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp:exec"]  # noqa: S108
    command += ["--entrypoint", "python", image, "-c", IMPORTS]
    return [round(float(subprocess.run(command, check=True, capture_output=True).stdout), 2) for _ in range(3)]


def measured(image: str, variant: str, torch_wheel_bytes: int | None) -> dict[str, object]:
    """An image that Docker has: its layers, its imports, how far it is above the parts that it needs."""
    (ROOT / ".lab").mkdir(exist_ok=True)
    started = time.monotonic()
    found = layers(image)
    total = sum(int(str(layer["compressed_bytes"])) for layer in found)
    report: dict[str, object] = {"layers": found, "compressed_bytes": total, "import_seconds": import_seconds(image)}
    print(f"{variant} image: {total / 1e6:.0f} MB compressed (measured in {time.monotonic() - started:.0f} s)")
    known = wheels(variant)
    if torch_wheel_bytes is not None:
        known["torch"] = torch_wheel_bytes
    if "torch" in known:
        parts = sum(known.values()) + int(str(found[0]["compressed_bytes"]))
        report["over_parts"] = round(total / parts - 1, 4)
        print(f"over wheels and base: {total / parts - 1:+.1%} (target: at most {TARGET:+.0%})")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--image", help="an image that Docker has, to be measured too")
    parser.add_argument("--variant", choices=("cpu", "gpu"), default="cpu", help="which one it is")
    parser.add_argument("--torch-wheel-bytes", type=int, help="size of torch's CPU wheel, which the public index lacks")
    options = parser.parse_args()
    gpu = wheels("gpu")
    large = dict(sorted(gpu.items(), key=lambda item: -item[1])[:10])
    report: dict[str, object] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    report["at"] = datetime.now(UTC).isoformat(timespec="seconds")
    report["gpu_wheels"] = {"bytes": sum(gpu.values()), "packages": len(gpu), "largest": large}
    print(f"gpu variant: {len(gpu)} wheels, {sum(gpu.values()) / 1e9:.2f} GB compressed")
    report["public_runtime_image"] = found = peer(locked("gpu")["torch"][0])
    print(f"public PyTorch runtime image, compressed bytes: {found}")
    if options.image:
        report[f"{options.variant}_image"] = measured(options.image, options.variant, options.torch_wheel_bytes)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
