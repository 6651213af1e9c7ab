"""Run background tasks for the length of a block."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from chassis.vital import vital


@asynccontextmanager
async def in_background(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run coroutines as tasks until the block ends.

    They are then cancelled, and have finished their cleanup when this returns. They must catch the errors that they can
    live with: any other ends the process, see `vital`.
    """
    tasks = [asyncio.create_task(_run(coroutine)) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for coroutine in coroutines:
            coroutine.close()  # Python would warn about one that never started


async def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    with suppress(Exception), vital(str(getattr(coroutine, "__qualname__", coroutine))):
        await coroutine
