"""Concurrency limit: order, refusals, and no lost slots."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.errors import ResourceExhausted
from gateway.admission.concurrency import ByteLimit, ConcurrencyLimit, Reservation


def make_limit(max_running: int, max_waiting: int) -> ConcurrencyLimit:
    return ConcurrencyLimit(max_running=max_running, max_waiting=max_waiting, subject="The gateway", reason="BUSY")


async def occupy(limit: ConcurrencyLimit, until: asyncio.Event, order: list[int], number: int) -> None:
    async with limit.slot():
        order.append(number)
        await until.wait()


async def test_queued_requests_start_in_order_and_one_beyond_the_queue_is_refused_at_once() -> None:
    limit, done, order = make_limit(2, 3), asyncio.Event(), list[int]()
    tasks = [asyncio.create_task(occupy(limit, done, order, number)) for number in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted) as raised:
        async with limit.slot():
            pass
    assert (raised.value.reason, raised.value.retry_after_s is not None) == ("BUSY", True)
    assert (limit.num_running, limit.num_waiting) == (2, 3)
    done.set()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]
    assert (limit.num_running, limit.num_waiting) == (0, 0)


async def test_a_slot_granted_to_a_request_cancelled_at_that_moment_goes_to_the_next() -> None:
    limit, done, order = make_limit(1, 5), asyncio.Event(), list[int]()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(limit.slot())
        first = asyncio.create_task(occupy(limit, done, order, 1))
        second = asyncio.create_task(occupy(limit, done, order, 2))
        await asyncio.sleep(0)
    first.cancel()  # its slot is granted, but it has not run yet
    done.set()
    await asyncio.wait([first, second])
    assert (order, limit.num_running, limit.num_waiting) == ([2], 0, 0)


async def test_a_raised_limit_starts_queued_requests_at_once() -> None:
    """Requests may run for minutes after a tenant's limits change."""
    limit, done, order = make_limit(1, 3), asyncio.Event(), list[int]()
    tasks = [asyncio.create_task(occupy(limit, done, order, number)) for number in range(4)]
    await asyncio.sleep(0)
    limit.resize(max_running=3, max_waiting=0)
    await asyncio.sleep(0)
    assert (order, limit.num_running, limit.num_waiting) == ([0, 1, 2], 3, 1)
    limit.resize(max_running=1, max_waiting=0)
    assert (limit.num_running, limit.num_waiting) == (3, 1)  # running requests stay
    done.set()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3]


@given(steps=st.lists(st.tuples(st.sampled_from(["enter", "cancel", "leave", "run"]), st.integers(0, 9)), max_size=60))
def test_no_order_of_events_loses_or_doubles_a_slot(steps: list[tuple[str, int]]) -> None:
    async def play() -> None:
        limit, tasks, order = make_limit(2, 3), list[tuple[asyncio.Task[None], asyncio.Event]](), list[int]()
        for event, index in steps:
            if event == "enter":
                done = asyncio.Event()
                tasks.append((asyncio.create_task(occupy(limit, done, order, 0)), done))
            elif event == "run":
                await asyncio.sleep(0)
            elif tasks:
                task, done = tasks[index % len(tasks)]
                task.cancel() if event == "cancel" else done.set()
            assert limit.num_running <= 2
            assert limit.num_waiting <= 3
        for _, done in tasks:
            done.set()
        await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)
        assert (limit.num_running, limit.num_waiting) == (0, 0)

    asyncio.run(play())


async def test_the_retry_delay_grows_with_the_queue() -> None:
    limit = make_limit(1, 0)
    async with limit.slot():
        await asyncio.sleep(1.2)
    waits = []
    for max_waiting in (0, 4):
        limit.max_waiting = max_waiting
        async with limit.slot():
            queue = [asyncio.create_task(occupy(limit, asyncio.Event(), [], 0)) for _ in range(max_waiting)]
            await asyncio.sleep(0)
            with pytest.raises(ResourceExhausted) as raised:
                await limit.slot().__aenter__()
            waits.append(raised.value.retry_after_s)
            for task in queue:
                task.cancel()
            await asyncio.gather(*queue, return_exceptions=True)
    assert waits[0] is not None
    assert waits[1] is not None
    assert waits[1] > waits[0]


def test_bytes_stay_reserved_until_their_request_ends() -> None:
    limit = ByteLimit(100)
    first, second = (Reservation([limit], lambda: 1.5) for _ in range(2))
    first.grow(60)
    with pytest.raises(ResourceExhausted) as raised:
        second.grow(41)
    assert (raised.value.reason, raised.value.retry_after_s) == ("BYTES_BUSY", 1.5)
    second.grow(40)
    assert limit.num_bytes == 100
    second.close()
    assert limit.num_bytes == 60
    first.shrink(50)
    assert limit.num_bytes == 10
    first.close()
    first.shrink(50)  # an image whose encoding ends after its request
    assert limit.num_bytes == 0


def test_bytes_refused_by_one_limit_are_reserved_in_none() -> None:
    tenant, gateway = ByteLimit(100), ByteLimit(50)
    reservation = Reservation([tenant, gateway], lambda: 1)
    with pytest.raises(ResourceExhausted):
        reservation.grow(51)
    assert (tenant.num_bytes, gateway.num_bytes, reservation.num_bytes) == (0, 0, 0)
