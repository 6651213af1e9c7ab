import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint.initial import create_checkpoint
from checkpoint.presets import RESAMPLER_PRESETS
from tests.hub_folder import write_hub_folder

TAG = "tiny-v1.0.0"


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return model stores with one unmodified checkpoint each.

    Their folders are 'single', 'shards' and 'bin', by the kind of weight files.
    """
    root = tmp_path_factory.mktemp("pristine")
    create_checkpoint(root / "single", TAG, RESAMPLER_PRESETS["tiny"])
    create_checkpoint(root / "shards", TAG, RESAMPLER_PRESETS["tiny"], shards=3)
    create_checkpoint(root / "bin", TAG, RESAMPLER_PRESETS["tiny"], shards=3, container="bin")
    return root


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies a checkpoint to modify."""

    def copy(stored: str = "single") -> Path:
        return Path(shutil.copytree(pristine / stored / TAG, tmp_path / stored / TAG))

    return copy


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an unmodified Hub folder with sharded weights."""
    return write_hub_folder(tmp_path_factory.mktemp("hub") / "Qwen3-VL-tiny")


@pytest.fixture
def hub(released: Path, tmp_path: Path) -> Path:
    """Return a copy of the Hub folder to modify."""
    return Path(shutil.copytree(released, tmp_path / "Qwen3-VL-tiny"))
