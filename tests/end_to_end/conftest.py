"""Fixtures of the rollout tests: releases, images, processes and Redis."""

import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from PIL import Image

from checkpoint.initial import create_checkpoint
from checkpoint.presets import RESAMPLER_PRESETS
from tests.end_to_end.rollout_world import EQUAL, OTHER, STABLE, World
from tests.gateway.redis_server import RedisServer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with two checkpoints under three tags."""
    store = tmp_path_factory.mktemp("models")
    for tag, seed in ((STABLE, 0), (OTHER, 1), (EQUAL, 0)):
        create_checkpoint(store, tag, RESAMPLER_PRESETS["tiny"], seed=seed)
    return store


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    files = [io.BytesIO() for _ in range(6)]
    for number, file in enumerate(files):
        Image.new("RGB", (64, 48), (40 * number, 90, 80)).save(file, "PNG")
    return [file.getvalue() for file in files]


@pytest.fixture
def world(models: Path) -> Iterator[World]:
    with World(models, STABLE) as world:
        yield world


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server
