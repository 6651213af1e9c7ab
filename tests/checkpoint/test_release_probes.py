"""Probes in a checkpoint's folder."""

import json
import shutil
from pathlib import Path

import pytest

from chassis.errors import DataLoss, FailedPrecondition
from checkpoint.manifest import MANIFEST_FILE, read_manifest
from checkpoint.release_probes import add_probes, read_release_probes
from checkpoint.verification import raise_for_problems, verify
from tests.checkpoint.probes.files import probe_line

TAG = "tiny-v1.0.0"


@pytest.fixture
def folder(store: Path, tmp_path: Path) -> Path:
    """Return a checkpoint that a test may change."""
    shutil.copytree(store / TAG, tmp_path / "models" / TAG)
    return tmp_path / "models" / TAG


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a file of probes about an image beside it."""
    (tmp_path / "bag.png").write_bytes(b"an image")
    image = [{"type": "image", "file": "bag.png"}, {"type": "text", "text": "What is it?"}]
    lines = [probe_line("a", messages=[{"role": "user", "content": image}]), probe_line("b")]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    return tmp_path / "mine.jsonl"


def test_an_added_file_changes_the_manifest_by_its_digest_only(folder: Path, source: Path) -> None:
    before = json.loads((folder / MANIFEST_FILE).read_text())
    assert not read_release_probes(folder).probes
    add_probes(folder, source)
    after = json.loads((folder / MANIFEST_FILE).read_text())
    assert after["files"].keys() - before["files"].keys() == {"probes.jsonl", "bag.png"}
    assert {name: after["files"][name] for name in before["files"]} == before["files"]
    assert {**after, "files": None} == {**before, "files": None}
    raise_for_problems(TAG, verify(folder))
    probes = read_release_probes(folder)
    assert [probe.id for probe in probes.probes] == ["a", "b"]
    assert list(probes.images.values()) == [b"an image"]


def test_probes_are_never_replaced(folder: Path, source: Path) -> None:
    add_probes(folder, source)
    with pytest.raises(FailedPrecondition) as raised:
        add_probes(folder, source)
    assert raised.value.reason == "PROBES_EXIST"


def test_an_image_must_not_replace_a_file_of_the_checkpoint(folder: Path, source: Path) -> None:
    (source.parent / "config.json").write_bytes(b"an image")
    source.write_text(source.read_text().replace("bag.png", "config.json"))
    manifest = read_manifest(folder)
    with pytest.raises(FailedPrecondition, match=r"config\.json"):
        add_probes(folder, source)
    assert read_manifest(folder) == manifest
    assert not (folder / "probes.jsonl").exists()


@pytest.mark.parametrize("name", ["probes.jsonl", "bag.png"])
def test_changed_probes_are_refused(folder: Path, source: Path, name: str) -> None:
    add_probes(folder, source)
    (folder / name).write_bytes(b"changed")
    with pytest.raises(Exception, match="probes") as raised:
        read_release_probes(folder)
    assert isinstance(raised.value, DataLoss) or name == "bag.png"
