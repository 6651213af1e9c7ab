"""A store of two releases, and a gateway between stages that can hold both."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from checkpoint.manifest import read_manifest, write_manifest
from tests.gateway.rollout.door import CANARY, STABLE, Door, open_door


@pytest.fixture(scope="module")
def two(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store that has the same checkpoint under two tags."""
    folder = tmp_path_factory.mktemp("two")
    for tag in (STABLE, CANARY):
        shutil.copytree(store / STABLE, folder / tag)
        write_manifest(read_manifest(store / STABLE).model_copy(update={"tag": tag}), folder / tag)
    return folder


@pytest.fixture
async def door(two: Path, tokenizer: Tokenizer) -> AsyncIterator[Door]:
    async with open_door(two, tokenizer) as door:
        yield door
