import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chassis.errors import DataLoss, FailedPrecondition
from checkpoint.manifest import file_sha256, read_manifest, read_verified, tokenizer_digest, write_manifest

Copy = Callable[..., Path]


def test_a_manifest_names_every_other_file(checkpoint: Copy) -> None:
    folder = checkpoint("shards")
    named = read_manifest(folder).files
    assert named == {path.name: file_sha256(path) for path in folder.iterdir() if path.name != "manifest.json"}


def test_a_manifest_is_read_as_it_was_written(checkpoint: Copy) -> None:
    folder = checkpoint()
    before = (folder / "manifest.json").read_bytes()
    write_manifest(read_manifest(folder), folder)
    assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("vision"),
        lambda manifest: manifest.update(more=1),
        lambda manifest: manifest["vision"].update(digest="00"),
        lambda manifest: manifest["language"].update(digest="z" * 64),
        lambda manifest: manifest["files"].update({"../outside": "0" * 64}),
        lambda manifest: manifest["files"].update({"/etc/passwd": "0" * 64}),
        lambda manifest: manifest.update(tag="other-v1.0.0"),
    ],
)
def test_an_invalid_manifest_is_refused(checkpoint: Copy, change: Callable[[dict[str, Any]], object]) -> None:
    folder = checkpoint()
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FailedPrecondition, match=r"manifest\.json") as caught:
        read_manifest(folder)
    assert caught.value.reason == "BAD_CHECKPOINT"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]"])
def test_a_manifest_that_is_not_json_is_refused(checkpoint: Copy, content: bytes) -> None:
    folder = checkpoint()
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(FailedPrecondition, match=r"manifest\.json"):
        read_manifest(folder)


def test_the_tokenizer_digest_is_that_of_the_file(checkpoint: Copy) -> None:
    folder = checkpoint()
    assert tokenizer_digest(folder) == hashlib.sha256((folder / "tokenizer.json").read_bytes()).digest()


def test_a_changed_tokenizer_has_no_digest(checkpoint: Copy) -> None:
    folder = checkpoint()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(DataLoss, match=r"tokenizer\.json"):
        tokenizer_digest(folder)


def test_a_file_missing_from_the_manifest_is_not_read(checkpoint: Copy) -> None:
    folder = checkpoint()
    (folder / "extra.txt").write_text("extra")
    with pytest.raises(FailedPrecondition, match=r"does not name extra\.txt"):
        read_verified(folder, read_manifest(folder), "extra.txt")
