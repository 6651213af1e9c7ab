"""One running stack on a tiny checkpoint for all tests of the client and the command."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from checkpoint.initial import create_checkpoint
from checkpoint.presets import PRESETS
from tandem.stack import Stack, StackConfig

TAG = "tiny-v1.0.0"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model store with one tiny random checkpoint."""
    store = tmp_path_factory.mktemp("models")
    create_checkpoint(store, TAG, PRESETS["tiny"], seed=0, dtype=torch.bfloat16, shards=1, container="safetensors")
    return store


@pytest.fixture(scope="session")
def stack(models: Path) -> Iterator[Stack]:
    """Yield three real processes, ready."""
    with Stack(StackConfig(models=models, release=TAG, precision="float32", threads=1, drain_s=2)) as stack:
        yield stack


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return two different pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = folder / "a.png", folder / "b.png"
    for path, colour in zip(paths, ("red", "blue"), strict=True):
        Image.new("RGB", (64, 48), colour).save(path)
    return paths
