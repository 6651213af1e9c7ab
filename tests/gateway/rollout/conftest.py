"""A gateway of two releases, and a Redis server."""

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from checkpoint.manifest import read_manifest, write_manifest
from checkpoint.release_probes import add_probes
from tests.gateway.redis_server import RedisServer
from tests.gateway.rollout.live_gateway import CANARY, STABLE, LiveGateway, open_gateway

MakeGateway = Callable[..., Any]


@pytest.fixture(scope="module")
def two_releases(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with one checkpoint under two tags."""
    folder = tmp_path_factory.mktemp("two_releases")
    for tag in (STABLE, CANARY):
        shutil.copytree(store / STABLE, folder / tag)
        write_manifest(read_manifest(store / STABLE).model_copy(update={"tag": tag}), folder / tag)
    return folder


@pytest.fixture
async def live(two_releases: Path, tokenizer: Tokenizer) -> AsyncIterator[LiveGateway]:
    async with open_gateway(two_releases, tokenizer) as live:
        yield live


@pytest.fixture
def make_gateway(two_releases: Path, tokenizer: Tokenizer, tmp_path: Path) -> MakeGateway:
    """Return a function that opens a gateway with probes."""

    def make(probes: str, **settings: Any) -> Any:
        store = tmp_path / "store"
        shutil.copytree(two_releases, store)
        (tmp_path / "mine.jsonl").write_text(probes)
        if probes:
            add_probes(store / CANARY, tmp_path / "mine.jsonl")
        return open_gateway(store, tokenizer, **settings)

    return make


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack
