"""Images for questions."""

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def image_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return two different images."""
    folder = tmp_path_factory.mktemp("images")
    paths = folder / "a.png", folder / "b.png"
    for path, colour in zip(paths, ("red", "blue"), strict=True):
        Image.new("RGB", (64, 48), colour).save(path)
    return paths
