"""Background tasks end with their block, and their exceptions end the process."""

import asyncio
import inspect

from structlog.testing import capture_logs

from chassis.background import in_background
from chassis.vital import on_death


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


async def test_an_exception_is_logged_at_once_and_ends_the_process() -> None:
    """The block runs on: the process drains."""

    async def broken() -> None:
        raise ZeroDivisionError

    ended: list[bool] = []
    on_death(lambda: ended.append(True))
    try:
        with capture_logs() as lines:
            async with in_background(broken()):
                await asyncio.sleep(0)
                (line,) = lines
                assert (line["log_level"], line["part"].rpartition(".")[2]) == ("critical", "broken")
                assert ended == [True]
    finally:
        on_death(None)


async def test_the_end_of_a_block_ends_no_process() -> None:
    ended: list[bool] = []
    on_death(lambda: ended.append(True))
    try:
        async with in_background(asyncio.Event().wait()):  # type: ignore[arg-type]
            await asyncio.sleep(0)
    finally:
        on_death(None)
    assert ended == []
