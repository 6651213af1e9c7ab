"""A model store with a tiny checkpoint for real processes."""

from pathlib import Path

import pytest
import torch

from checkpoint.initial import create_checkpoint
from checkpoint.presets import PRESETS
from tests.end_to_end.cluster import TAG


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model store with one tiny random checkpoint."""
    folder = tmp_path_factory.mktemp("models")
    create_checkpoint(folder, TAG, PRESETS["tiny"], seed=0, dtype=torch.bfloat16, shards=1, container="safetensors")
    return folder
