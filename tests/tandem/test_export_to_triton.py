"""`tandem checkpoint export --to triton-repository` inside this process."""

from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
from typer.testing import CliRunner

from chassis.errors import FailedPrecondition
from tandem.commands.checkpoint import app
from tests.vision_service.exports import TAGS, checkpoint

TAG = TAGS["resampler"]


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return result.exit_code, result.output


@pytest.fixture
def models(tmp_path: Path) -> Path:
    copytree(checkpoint("resampler"), tmp_path / TAG, ignore=ignore_patterns("exports"))
    return tmp_path


def test_a_version_is_added_with_the_onnx_export_it_needs(models: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    command = ("export", TAG, repository, "--to", "triton-repository", "--precision", "float32", "--models", models)
    options = ("--triton-platform", "python", "--instances", "2", "--instance-kind", "cpu", "--max-wait-ms", "1.5")
    code, output = run(*command, *options)
    assert code == 0, output
    assert f"added version 1000000 of tiny to {repository}" in output.replace("\n", "")
    assert (models / TAG / "exports" / "onnx-float32" / "export.json").exists()
    assert {path.name for path in (repository / "tiny" / "1000000").iterdir()} >= {"model.py", "model.onnx"}
    config = (repository / "tiny" / "config.pbtxt").read_text()
    assert "count: 2" in config
    assert "KIND_CPU" in config
    assert "max_queue_delay_microseconds: 1500" in config
    code, output = run(*command, *options)
    assert code == 0, "the same version is added again"
    with pytest.raises(FailedPrecondition, match="other settings"):
        run(*command, "--triton-platform", "onnxruntime")


def test_the_folder_of_the_repository_is_asked_for() -> None:
    code, output = run("export", TAG, "--to", "triton-repository", "--models", checkpoint("resampler").parent)
    assert code == 2
    assert "FOLDER" in output
