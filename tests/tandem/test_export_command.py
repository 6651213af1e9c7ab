"""`tandem checkpoint export` and `choose-backend` inside this process."""

import re
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
from typer.testing import CliRunner

from chassis.errors import FailedPrecondition
from tandem.commands.checkpoint import app
from tests.vision_service.exports import TAGS, checkpoint

TAG = TAGS["resampler"]
IMAGE = Path(__file__).parents[2] / "demo" / "images" / "bag-and-bottle.png"


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def models(tmp_path: Path) -> Path:
    copytree(checkpoint("resampler"), tmp_path / TAG, ignore=ignore_patterns("exports"))
    return tmp_path


def test_an_export_is_made_shown_verified_and_measured(models: Path) -> None:
    command = ("export", TAG, "--to", "onnx", "--precision", "float32", "--models", models, "--image", IMAGE)
    shown = run(*command)
    assert re.search(r"largest error +\d\.\d\de-0\d of the largest magnitude \(allowed 0\.0001\), 6 images", shown)
    assert re.search(r"digest +[0-9a-f]{64}", shown)
    assert re.search(r"exports/onnx-float32/model\.onnx .* as in the manifest", run("verify", TAG, "--models", models))
    with pytest.raises(FailedPrecondition, match="--replace"):
        run(*command)
    chosen = run("choose-backend", TAG, "--precision", "float32", "--models", models)
    assert chosen.count("recorded") == 1
    assert re.search(r"openvino +- +.*no export for openvino", chosen)
