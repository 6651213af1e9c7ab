"""`tandem checkpoint export --to tensorrt` inside this process."""

from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
from typer.testing import CliRunner

from tandem.commands.checkpoint import app
from tests.vision_service.exports import TAGS, checkpoint

pytestmark = [pytest.mark.tensorrt, pytest.mark.timeout(300)]

TAG = TAGS["resampler"]


def test_an_engine_is_built_shown_and_verified_with_its_checkpoint(tmp_path: Path) -> None:
    copytree(checkpoint("resampler"), tmp_path / TAG, ignore=ignore_patterns("exports"))
    command = ["export", TAG, "--to", "tensorrt", "--precision", "float32", "--models", str(tmp_path)]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    for shown in ("tensorrt_rtx 1.7.1.116", "[1, 3, 224, 224] to [16, 3, 224, 224]", "not measured: there is no GPU"):
        assert shown in done.output
    engines = tmp_path / TAG / "exports" / "onnx-float32" / "engines"
    assert {path.suffix for path in engines.iterdir()} == {".json", ".engine"}
    again = CliRunner().invoke(app, [*command, "--max-batch-size", "4"], catch_exceptions=False)
    assert "to [4, 3, 224, 224]" in again.output
    assert len(list(engines.glob("*.engine"))) == 1, "the engine of the same GPU is replaced"
    verified = CliRunner().invoke(app, ["verify", TAG, "--models", str(tmp_path)], catch_exceptions=False)
    assert verified.exit_code == 0, verified.output
