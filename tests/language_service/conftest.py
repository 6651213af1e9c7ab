"""Fixtures with the small decoder."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from language_service.engine.paged import PagedEngine
from language_service.engine.runner import Runner
from language_service.model.decoder import Decoder
from tests.language_service.small import CONFIG, make_cache, make_decoder, make_paged_engine

MakeEngine = Callable[..., Awaitable[PagedEngine]]


@pytest.fixture(scope="session")
def decoder() -> Decoder:
    return make_decoder(CONFIG)


@pytest.fixture
async def make_engine(decoder: Decoder) -> AsyncIterator[MakeEngine]:
    """Return `make_engine(num_blocks=..., max_running=..., ...)`.

    Fails if an engine ends with a block in use.
    """
    async with AsyncExitStack() as stack:

        async def make(*, num_blocks: int = 64, model: Decoder = decoder, **limits: Any) -> PagedEngine:
            engine = make_paged_engine(Runner(model, make_cache(num_blocks, config=model.config)), **limits)
            stack.push_async_callback(_close, engine)
            return engine

        yield make


async def _close(engine: PagedEngine) -> None:
    await engine.close()
    engine.check()
    assert engine.stats().num_used_blocks == 0
