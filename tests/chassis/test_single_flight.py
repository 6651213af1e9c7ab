"""Concurrent callers share one computation, cancelled with the last caller."""

import asyncio

import pytest

from chassis.errors import Internal
from chassis.single_flight import SingleFlight


class Work:
    """Work that counts its runs and waits for `gate`."""

    def __init__(self) -> None:
        self.num_started = 0
        self.num_cancelled = 0
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.num_started += 1
        number = self.num_started
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return number


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_concurrent_callers_share_one_run_and_later_ones_do_not() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    work = Work()
    tasks = [asyncio.create_task(flights.run("a", work)) for _ in range(5)]
    other = asyncio.create_task(flights.run("b", work))
    await settle()
    assert "a" in flights
    work.gate.set()
    landed = await asyncio.gather(*tasks)
    assert [one.result for one in landed] == [1] * 5
    assert [one.joined for one in landed] == [False, True, True, True, True]
    assert (await other).result == 2
    assert "a" not in flights
    assert (await flights.run("a", work)).result == 3


async def test_cancelling_one_caller_does_not_affect_the_others() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    work = Work()
    first, second = (asyncio.create_task(flights.run("a", work)) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    work.gate.set()
    assert (await second).result == 1
    assert work.num_cancelled == 0


async def test_cancelling_the_last_caller_cancels_the_work_and_the_next_caller_restarts_it() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    work = Work()
    tasks = [asyncio.create_task(flights.run("a", work)) for _ in range(2)]
    await settle()
    for task in tasks:
        task.cancel()
    again = asyncio.create_task(flights.run("a", work))  # while the work is being cancelled
    await settle()
    assert (work.num_started, work.num_cancelled) == (2, 1)
    work.gate.set()
    assert (await again).result == 2


async def test_an_error_reaches_all_callers_and_is_not_cached() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    work = Work()
    work.error = Internal("broken", reason="BROKEN")
    work.gate.set()
    outcomes = await asyncio.gather(*(flights.run("a", work) for _ in range(3)), return_exceptions=True)
    assert outcomes == [work.error] * 3
    work.error = None
    assert (await flights.run("a", work)).result == 2


async def test_an_error_without_callers_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """By default, asyncio logs exceptions that are never retrieved."""
    flights: SingleFlight[str, int] = SingleFlight()
    work = Work()
    work.error = Internal("broken", reason="BROKEN")
    task = asyncio.create_task(flights.run("a", work))
    await settle()
    work.gate.set()
    task.cancel()
    await settle()
    assert not caplog.records
