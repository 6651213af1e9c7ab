"""Background tasks end with their block, and their exceptions are logged."""

import asyncio
import inspect

from structlog.testing import capture_logs

from chassis.background import in_background


async def test_tasks_run_during_the_block_and_finish_cleanup_before_it_ends() -> None:
    steps: list[str] = []

    async def work(name: str) -> None:
        try:
            steps.append(f"{name} begins")
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append(f"{name} ends")

    async with in_background(work("one"), work("other")):
        await asyncio.sleep(0)
        assert steps == ["one begins", "other begins"]
    assert steps[2:] == ["one ends", "other ends"]


async def test_a_coroutine_that_never_started_is_closed() -> None:
    """Python would otherwise warn that it was never awaited."""
    work = asyncio.sleep(0)
    async with in_background(work):
        pass
    assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED


async def test_an_exception_is_logged_at_once_and_leaves_the_block_running() -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    with capture_logs() as lines:
        async with in_background(broken()):
            await asyncio.sleep(0)
            assert [(line["event"], line["log_level"]) for line in lines] == [("background task failed", "error")]
