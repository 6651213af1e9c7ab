"""`make demo` on the tiny checkpoint."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_tour_asks_three_questions_and_shows_the_cache_hit(store: Path, image_files: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "demo.tour", "--models", str(store), "--release", "tiny-v1.0.0"]
    command += ["--images", str(image_files[0].parent)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=90, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("image 1 encoded") == 2
    assert done.stdout.count("image 1 cached") == 1
    assert "The last question's image was a cache hit" in done.stdout
    assert done.stdout.endswith("All three services have stopped.\n")
    assert "\x1b" not in done.stdout
