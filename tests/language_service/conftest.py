"""Fixtures around the small decoder."""

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import pytest
import torch

from language_service.model.decoder import Decoder
from language_service.paged_engine import PagedEngine
from language_service.runner import Runner
from language_service.scheduling.scheduler import SchedulerConfig
from tests.language_service.small import CONFIG, make_cache, make_decoder

MakeEngine = Callable[..., Awaitable[PagedEngine]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: on shapes this small, handing work out costs more than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def decoder() -> Decoder:
    return make_decoder(CONFIG)


@pytest.fixture
async def make_engine(decoder: Decoder) -> AsyncIterator[MakeEngine]:
    """Return `make_engine(num_blocks=..., max_running=..., ...)`; every engine must end with no block in use."""
    async with AsyncExitStack() as stack:

        async def make(
            *, num_blocks: int = 64, max_running: int = 8, max_waiting: int = 64, max_step_tokens: int = 32
        ) -> PagedEngine:
            config = SchedulerConfig(
                block_size=4, max_running=max_running, max_waiting=max_waiting, max_step_tokens=max_step_tokens
            )
            runner = Runner(decoder, make_cache(num_blocks))
            engine = PagedEngine(runner, config, tag="test-v1.0.0", turn=threading.Lock())
            stack.push_async_callback(_close, engine)
            return engine

        yield make


async def _close(engine: PagedEngine) -> None:
    await engine.close()
    engine.check()
    assert engine.stats().num_used_blocks == 0
