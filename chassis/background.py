"""Work that goes on beside the requests for as long as the gateway lives."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import structlog

_log = structlog.get_logger()


@asynccontextmanager
async def in_background(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run works beside the block; they are cancelled when it ends, and have let go of everything when this returns."""
    tasks = [asyncio.create_task(_logged(work)) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for work in works:
            work.close()  # where the block ended before it began, of which Python would warn


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    """Tell of a bug when it ends the work: nobody awaits the task before the process stops."""
    try:
        await work
    except Exception:
        _log.exception("background work failed")
