"""Places and queues: who gets in, who waits, who is refused, and that nothing is ever lost."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.errors import ResourceExhausted
from gateway.admission.concurrency import ByteLimit, ConcurrencyLimit


def make_gate(max_running: int, max_waiting: int) -> ConcurrencyLimit:
    return ConcurrencyLimit(max_running=max_running, max_waiting=max_waiting, subject="The gateway", reason="BUSY")


async def stay(gate: ConcurrencyLimit, until: asyncio.Event, order: list[int], number: int) -> None:
    async with gate.slot():
        order.append(number)
        await until.wait()


async def test_those_who_wait_get_in_by_order_of_arrival_and_one_more_is_refused_at_once() -> None:
    gate, done, order = make_gate(2, 3), asyncio.Event(), list[int]()
    tasks = [asyncio.create_task(stay(gate, done, order, number)) for number in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted) as raised:
        async with gate.slot():
            pass
    assert (raised.value.reason, raised.value.retry_after_s is not None) == ("BUSY", True)
    assert (gate.num_running, gate.num_waiting) == (2, 3)
    done.set()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]
    assert (gate.num_running, gate.num_waiting) == (0, 0)


async def test_a_place_given_to_one_who_leaves_in_that_moment_goes_to_the_next() -> None:
    gate, done, order = make_gate(1, 5), asyncio.Event(), list[int]()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(gate.slot())
        first = asyncio.create_task(stay(gate, done, order, 1))
        second = asyncio.create_task(stay(gate, done, order, 2))
        await asyncio.sleep(0)
    first.cancel()  # its turn has come, but it has not run yet
    done.set()
    await asyncio.wait([first, second])
    assert (order, gate.num_running, gate.num_waiting) == ([2], 0, 0)


async def test_who_waits_gets_in_as_soon_as_there_are_more_places() -> None:
    """Limits of tenants change while their requests run, and the first of those may take minutes to end."""
    gate, done, order = make_gate(1, 3), asyncio.Event(), list[int]()
    tasks = [asyncio.create_task(stay(gate, done, order, number)) for number in range(4)]
    await asyncio.sleep(0)
    gate.resize(max_running=3, max_waiting=0)
    await asyncio.sleep(0)
    assert (order, gate.num_running, gate.num_waiting) == ([0, 1, 2], 3, 1)
    gate.resize(max_running=1, max_waiting=0)
    assert (gate.num_running, gate.num_waiting) == (3, 1)  # nobody is sent away
    done.set()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3]


@given(steps=st.lists(st.tuples(st.sampled_from(["enter", "cancel", "leave", "run"]), st.integers(0, 9)), max_size=60))
def test_no_order_of_coming_and_going_loses_or_doubles_a_place(steps: list[tuple[str, int]]) -> None:
    async def play() -> None:
        gate, tasks, order = make_gate(2, 3), list[tuple[asyncio.Task[None], asyncio.Event]](), list[int]()
        for what, index in steps:
            if what == "enter":
                done = asyncio.Event()
                tasks.append((asyncio.create_task(stay(gate, done, order, 0)), done))
            elif what == "run":
                await asyncio.sleep(0)
            elif tasks:
                task, done = tasks[index % len(tasks)]
                task.cancel() if what == "cancel" else done.set()
            assert gate.num_running <= 2
            assert gate.num_waiting <= 3
        for _, done in tasks:
            done.set()
        await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)
        assert (gate.num_running, gate.num_waiting) == (0, 0)

    asyncio.run(play())


async def test_the_wait_it_names_grows_with_the_queue() -> None:
    gate = make_gate(1, 0)
    async with gate.slot():
        await asyncio.sleep(1.2)
    waits = []
    for max_waiting in (0, 4):
        gate.max_waiting = max_waiting
        async with gate.slot():
            queue = [asyncio.create_task(stay(gate, asyncio.Event(), [], 0)) for _ in range(max_waiting)]
            await asyncio.sleep(0)
            with pytest.raises(ResourceExhausted) as raised:
                await gate.slot().__aenter__()
            waits.append(raised.value.retry_after_s)
            for task in queue:
                task.cancel()
            await asyncio.gather(*queue, return_exceptions=True)
    assert waits[0] is not None
    assert waits[1] is not None
    assert waits[1] > waits[0]


def test_bytes_are_held_until_their_request_ends() -> None:
    limit = ByteLimit(100)
    with limit.reserve(60, retry_after_s=1):
        with pytest.raises(ResourceExhausted) as raised, limit.reserve(41, retry_after_s=1.5):
            pass
        assert (raised.value.reason, raised.value.retry_after_s) == ("BYTES_BUSY", 1.5)
        with limit.reserve(40, retry_after_s=1):
            assert limit.num_bytes == 100
        assert limit.num_bytes == 60
    assert limit.num_bytes == 0
