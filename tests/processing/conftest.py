"""Checkpoints of both families, and their processors."""

from pathlib import Path

import pytest

from checkpoint.initial import create_checkpoint
from checkpoint.presets import PRESETS
from tandem import Processor

QWEN_TAG = "qwen-v1.0.0"


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of the Qwen3-VL family."""
    root = tmp_path_factory.mktemp("qwen")
    create_checkpoint(root, QWEN_TAG, PRESETS["tiny-qwen3-vl"])
    return root / QWEN_TAG


@pytest.fixture(scope="session")
def resampler_folder(store: Path) -> Path:
    """Return a checkpoint of the resampler family."""
    (folder,) = store.iterdir()
    return folder


@pytest.fixture(scope="session")
def resampler(resampler_folder: Path) -> Processor:
    return Processor.from_pretrained(resampler_folder)


@pytest.fixture(scope="session")
def qwen(qwen_folder: Path) -> Processor:
    return Processor.from_pretrained(qwen_folder)
