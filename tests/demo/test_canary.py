"""`make demo-canary` in short."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.demo.test_probes import MODELS


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_the_better_release_is_promoted_and_the_worse_one_leaves_unseen(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "demo.canary", "--models", str(MODELS), "--callers", "2"]
    command += ["--svg", str(tmp_path / "canary.svg")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=490, cwd=MODELS.parent)
    assert (done.returncode, done.stderr) == (0, "")
    ends = [line for line in done.stdout.splitlines() if "Callers got" in line]
    assert "tandem-demo-v1.1.0 was promoted" in ends[0]
    assert "tandem-demo-v1.0.0 left" in ends[1]
    assert "Callers got 0 wrong answers from it." in ends[1]
    assert (tmp_path / "canary.svg").read_text().startswith("<svg")
