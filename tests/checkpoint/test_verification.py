from collections.abc import Callable
from pathlib import Path

import pytest

from chassis.errors import DataLoss
from checkpoint.manifest import read_manifest, write_manifest
from checkpoint.verification import raise_for_problems, verify

Copy = Callable[..., Path]


def problems(folder: Path) -> dict[str, str]:
    return {check.subject: check.problem for check in verify(folder) if check.problem}


@pytest.mark.parametrize("stored", ["single", "shards", "bin"])
def test_a_whole_checkpoint_has_no_problems(checkpoint: Copy, stored: str) -> None:
    folder = checkpoint(stored)
    checks = verify(folder)
    assert {check.subject for check in checks} == {*read_manifest(folder).files, "vision half", "language half"}
    raise_for_problems(folder.name, checks)


def test_one_run_names_every_wrong_file(checkpoint: Copy) -> None:
    folder = checkpoint("shards")
    with (folder / "model-00002-of-00003.safetensors").open("r+b") as file:
        file.truncate(1000)
    (folder / "chat_template.jinja").unlink()
    (folder / "extra.safetensors").touch()  # a loader might read it as weights
    (folder / "notes").symlink_to("moved away")
    assert problems(folder) == {
        "model-00002-of-00003.safetensors": "was changed",
        "chat_template.jinja": "is missing",
        "extra.safetensors": "is not named by the manifest",
        "notes": "is not named by the manifest",
    }


def test_halves_are_hashed_even_if_all_files_are_right(checkpoint: Copy) -> None:
    # An edited manifest can agree with the files, but not with the half that another tag shares.
    folder = checkpoint()
    manifest = read_manifest(folder)
    write_manifest(
        manifest.model_copy(update={"vision": manifest.vision.model_copy(update={"digest": bytes(32)})}), folder
    )
    assert problems(folder) == {"vision half": "has another digest"}


def test_problems_become_one_error(checkpoint: Copy) -> None:
    folder = checkpoint()
    (folder / "config.json").write_text("{}")
    with pytest.raises(
        DataLoss, match=r"^Checkpoint tiny-v1\.0\.0 is not what its manifest says: config\.json was changed\.$"
    ):
        raise_for_problems(folder.name, verify(folder))
