"""Pictures to ask about."""

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return two different pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = folder / "a.png", folder / "b.png"
    for path, colour in zip(paths, ("red", "blue"), strict=True):
        Image.new("RGB", (64, 48), colour).save(path)
    return paths
