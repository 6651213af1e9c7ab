"""Work beside the requests: it ends with the block, and its bugs are told."""

import asyncio
import inspect

from structlog.testing import capture_logs

from chassis.background import in_background


async def test_work_runs_beside_the_block_and_has_let_go_of_everything_after_it() -> None:
    told: list[str] = []

    async def work(name: str) -> None:
        try:
            told.append(f"{name} begins")
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            told.append(f"{name} ends")

    async with in_background(work("one"), work("other")):
        await asyncio.sleep(0)
        assert told == ["one begins", "other begins"]
    assert told[2:] == ["one ends", "other ends"]


async def test_work_that_never_began_is_closed() -> None:
    """A start that fails at once ends before its works begin; Python would warn that nobody awaited them."""
    work = asyncio.sleep(0)
    async with in_background(work):
        pass
    assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED


async def test_a_bug_that_ends_the_work_is_in_the_log_at_once_and_ends_nothing_else() -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    with capture_logs() as lines:
        async with in_background(broken()):
            await asyncio.sleep(0)
            assert [(line["event"], line["log_level"]) for line in lines] == [("background task failed", "error")]
