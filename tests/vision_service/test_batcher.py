"""The batcher answers every item exactly once."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chassis.errors import Internal, ResourceExhausted, Unavailable
from chassis.vital import on_death
from vision_service.batcher import BatchConfig, Batcher


class Doubler:
    """Doubles numbers and records batches. Waits while `gate` is clear."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        assert self.gate.wait(10)
        if 13 in items:
            raise RuntimeError("unlucky")
        return [2 * item for item in items]


@pytest.fixture(scope="module")
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@asynccontextmanager
async def batching(
    run: Callable[[Sequence[int]], Sequence[int]], executor: ThreadPoolExecutor, **config: float
) -> AsyncIterator[Batcher[int, int]]:
    batcher = Batcher(run, config=BatchConfig(**config), executor=executor, lock=asyncio.Lock())  # type: ignore[arg-type]
    try:
        yield batcher
    finally:
        await batcher.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the condition changes in another thread
            await asyncio.sleep(0.001)


@given(
    items=st.lists(
        st.tuples(st.integers(0, 20), st.sampled_from(["wait", "cancel"]), st.floats(0, 0.004)), min_size=1, max_size=30
    ),
    max_batch_size=st.integers(1, 5),
    max_wait_s=st.sampled_from([0.0, 0.001]),
)
@settings(max_examples=40, deadline=None)
def test_every_item_is_answered_once(
    items: list[tuple[int, str, float]], max_batch_size: int, max_wait_s: float
) -> None:
    """Calls arrive and are cancelled at random times."""

    async def call(batcher: Batcher[int, int], item: int, fate: str, after_s: float) -> int | str:
        await asyncio.sleep(after_s)
        limit_s = 0.001 if fate == "cancel" else 10.0
        try:
            answer = await asyncio.wait_for(batcher.submit(item), limit_s)
        except (Internal, TimeoutError) as error:
            return type(error).__name__
        assert 1 <= answer.batch_size <= max_batch_size
        return answer.result

    async def scenario() -> tuple[list[int | str], list[list[int]]]:
        doubler = Doubler()
        with ThreadPoolExecutor(1) as executor:
            async with batching(
                doubler, executor, max_batch_size=max_batch_size, max_wait_s=max_wait_s, max_queue=100
            ) as batcher:
                return await asyncio.gather(*(call(batcher, *item) for item in items)), doubler.batches

    outcomes, batches = asyncio.run(scenario())
    ran = [item for batch in batches for item in batch]
    assert all(1 <= len(batch) <= max_batch_size for batch in batches)
    for (item, fate, _), outcome in zip(items, outcomes, strict=True):
        assert outcome in (2 * item, "Internal", "TimeoutError" if fate == "cancel" else None)
        assert outcome == "TimeoutError" or item in ran
    assert all(outcome != 26 for outcome in outcomes)  # a batch with 13 fails
    for item in set(ran):
        assert ran.count(item) <= [one for one, _, _ in items].count(item)


async def test_items_that_arrive_together_run_together_in_order(executor: ThreadPoolExecutor) -> None:
    doubler = Doubler()
    async with batching(doubler, executor, max_batch_size=4, max_wait_s=0.02) as batcher:
        answers = await asyncio.gather(*(batcher.submit(item) for item in range(10)))
    assert [answer.result for answer in answers] == [2 * item for item in range(10)]
    assert doubler.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [answer.batch_size for answer in answers] == [4] * 8 + [2] * 2


async def test_a_full_batch_does_not_wait(executor: ThreadPoolExecutor) -> None:
    async with batching(Doubler(), executor, max_batch_size=2, max_wait_s=60) as batcher:
        async with asyncio.timeout(30):
            await asyncio.gather(batcher.submit(1), batcher.submit(2))


async def test_a_single_item_waits_the_configured_time(executor: ThreadPoolExecutor) -> None:
    async with batching(Doubler(), executor, max_batch_size=8, max_wait_s=0.05) as batcher:
        answer = await batcher.submit(1)
    assert answer.batch_size == 1
    assert 0.04 < answer.queue_s < 10


async def test_the_next_batch_fills_while_one_runs(executor: ThreadPoolExecutor) -> None:
    doubler = Doubler()
    doubler.gate.clear()
    async with batching(doubler, executor, max_batch_size=8, max_wait_s=0) as batcher:
        first = asyncio.create_task(batcher.submit(0))
        await until(lambda: len(doubler.batches) == 1)
        rest = [asyncio.create_task(batcher.submit(item)) for item in range(1, 6)]
        await asyncio.sleep(0.01)
        doubler.gate.set()
        await asyncio.gather(first, *rest)
    assert doubler.batches == [[0], [1, 2, 3, 4, 5]]


async def test_a_full_queue_rejects_at_once_and_accepts_again_when_a_slot_is_free(executor: ThreadPoolExecutor) -> None:
    doubler = Doubler()
    doubler.gate.clear()
    async with batching(doubler, executor, max_batch_size=1, max_wait_s=0, max_queue=2) as batcher:
        running = asyncio.create_task(batcher.submit(0))
        await until(lambda: len(doubler.batches) == 1)
        waiting = [asyncio.create_task(batcher.submit(item)) for item in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted) as rejected:
            batcher.submit(3).send(None)  # runs up to the first await
        assert rejected.value.reason == "QUEUE_FULL"
        assert rejected.value.retry_after_s is not None
        assert rejected.value.retry_after_s > 0

        waiting[0].cancel()  # a cancelled call frees its slot
        await asyncio.sleep(0)
        late = asyncio.create_task(batcher.submit(4))
        doubler.gate.set()
        answers = await asyncio.gather(running, waiting[1], late)
    assert [answer.result for answer in answers] == [0, 4, 8]
    assert doubler.batches == [[0], [2], [4]]


async def test_a_cancelled_item_never_runs(executor: ThreadPoolExecutor) -> None:
    doubler = Doubler()
    doubler.gate.clear()
    async with batching(doubler, executor, max_batch_size=4, max_wait_s=0) as batcher:
        first = asyncio.create_task(batcher.submit(0))
        await until(lambda: len(doubler.batches) == 1)
        tasks = [asyncio.create_task(batcher.submit(item)) for item in (1, 2, 3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        doubler.gate.set()
        await asyncio.gather(first, *tasks, return_exceptions=True)
    assert doubler.batches == [[0], [1, 3]]


async def test_cancelling_a_call_does_not_disturb_its_running_batch(executor: ThreadPoolExecutor) -> None:
    doubler = Doubler()
    doubler.gate.clear()
    async with batching(doubler, executor, max_batch_size=2, max_wait_s=1) as batcher:
        cancelled, waiting = (asyncio.create_task(batcher.submit(item)) for item in (1, 2))
        await until(lambda: len(doubler.batches) == 1)
        cancelled.cancel()
        doubler.gate.set()
        assert (await waiting).result == 4
        assert cancelled.cancelled() or cancelled.cancelling()


async def test_a_failing_batch_fails_only_its_own_callers(executor: ThreadPoolExecutor) -> None:
    async with batching(Doubler(), executor, max_batch_size=2, max_wait_s=0.02) as batcher:
        outcomes = await asyncio.gather(*(batcher.submit(item) for item in (13, 1, 2, 3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes[:2]] == [Internal, Internal]
    assert [getattr(outcome, "result", None) for outcome in outcomes[2:]] == [4, 6]
    assert "unlucky" not in str(outcomes[0])


async def test_the_death_of_the_task_fails_all_callers_and_ends_the_process(executor: ThreadPoolExecutor) -> None:
    """Otherwise they would wait while the service looks healthy."""
    ended: list[bool] = []
    on_death(lambda: ended.append(True))

    def die(items: Sequence[int]) -> Sequence[int]:
        raise SystemExit

    try:
        async with batching(die, executor, max_batch_size=1, max_wait_s=0) as batcher:
            outcomes = await asyncio.gather(*(batcher.submit(item) for item in (1, 2)), return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [Internal, Unavailable]
            with pytest.raises(Unavailable):
                await batcher.submit(3)
    finally:
        on_death(None)
    assert ended == [True]


async def test_a_missing_result_fails_the_whole_batch(
    executor: ThreadPoolExecutor,
) -> None:
    async with batching(lambda items: items[1:], executor, max_batch_size=3, max_wait_s=0.01) as batcher:
        outcomes = await asyncio.gather(*(batcher.submit(item) for item in (1, 2, 3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Internal] * 3


async def test_closing_fails_all_waiting_calls(executor: ThreadPoolExecutor) -> None:
    doubler = Doubler()
    doubler.gate.clear()
    async with batching(doubler, executor, max_batch_size=1, max_wait_s=0) as batcher:
        tasks = [asyncio.create_task(batcher.submit(item)) for item in (1, 2)]
        await until(lambda: len(doubler.batches) == 1)
        await batcher.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Unavailable, Unavailable]
        with pytest.raises(Unavailable):
            await batcher.submit(3)
    doubler.gate.set()


async def test_batchers_with_one_lock_run_one_after_the_other(executor: ThreadPoolExecutor) -> None:
    """While the other model computes, the next batch grows."""
    first, second, lock = Doubler(), Doubler(), asyncio.Lock()
    first.gate.clear()
    config = BatchConfig(max_wait_s=0)
    one = Batcher(first, config=config, executor=executor, lock=lock)
    other = Batcher(second, config=config, executor=executor, lock=lock)
    running = asyncio.create_task(one.submit(1))
    await until(lambda: len(first.batches) == 1)
    tasks = []
    for item in (1, 2, 3):
        tasks.append(asyncio.create_task(other.submit(item)))
        await asyncio.sleep(0.002)
    assert second.batches == []
    first.gate.set()
    await asyncio.gather(running, *tasks)
    assert second.batches == [[1, 2, 3]]
    await one.close()
    await other.close()
