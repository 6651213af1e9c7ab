"""Start vLLM on a thread, so that the start can be cancelled."""

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

from language_service.engine.vllm_orphans import kill_with_offspring

_KILL_S = 0.05  # between two kills


class Started(Protocol):
    """What a start returns."""

    def shutdown(self) -> None:
        """End the processes. It may block."""
        ...


S = TypeVar("S", bound=Started)


async def start_on_thread(start: Callable[[], S], process_ids: Callable[[], set[int]]) -> S:
    """Run `start` on a thread and return its result.

    vLLM waits for its followers without end, and can only be stopped by the end of a process that it waits for.
    Cancelling this call kills the processes that `start` has made, and returns when the thread has ended.

    Args:
        start: blocks until processes are ready, and fails when one of them ends.
        process_ids: returns the processes of all starts.

    Raises:
        Exception: by `start`.
    """
    before = process_ids()
    starting = asyncio.create_task(asyncio.to_thread(start))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # Again and again, because the thread may make its processes only now.
        while not starting.done():
            kill_with_offspring(lambda: process_ids() - before)
            await asyncio.wait([starting], timeout=_KILL_S)
        if starting.exception() is None:
            await asyncio.to_thread(starting.result().shutdown)
        raise
