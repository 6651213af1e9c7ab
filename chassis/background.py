"""Run background tasks for the length of a block."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import structlog

_log = structlog.get_logger()


@asynccontextmanager
async def in_background(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run coroutines as tasks until the block ends.

    They are then cancelled, and have finished their cleanup when this returns.
    """
    tasks = [asyncio.create_task(_log_failure(coroutine)) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for coroutine in coroutines:
            coroutine.close()  # Python would warn about one that never started


async def _log_failure(coroutine: Coroutine[Any, Any, None]) -> None:
    """Await `coroutine` and log an exception at once.

    Without this, the exception would stay hidden until the process stops and awaits the task.
    """
    try:
        await coroutine
    except Exception:
        _log.exception("background task failed")
