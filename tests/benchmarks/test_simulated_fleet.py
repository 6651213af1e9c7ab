"""The simulated fleet computes like the engine, and loses no request."""

import asyncio
import random
import time

import numpy as np
import pytest

from benchmarks.tools.measured_times import full_size_times
from benchmarks.tools.simulated_cell import Cell
from benchmarks.tools.simulated_gateway import CellPlan
from benchmarks.tools.simulated_replicas import BLOCK, LanguageReplica, Prompt, VisionReplica
from benchmarks.tools.simulated_time import simulate
from chassis.errors import ResourceExhausted, Unavailable
from language_service.cache import BlockPool, PrefixHashes, root_hash
from language_service.scheduling import Scheduler, SchedulerConfig, Sequence

ROOT = root_hash(model_digest=bytes(32), salt=b"")
SMALL = CellPlan(language=6, vision=3, gateways=6, images=2000, kv_blocks=600)


class PlainTimes:
    """Round numbers."""

    def step_s(self, sequences: int) -> float:
        return 0.010 + 0.001 * sequences

    def prefill_s(self, tokens: int) -> float:
        return 0.0001 * (tokens - 1)

    def encode_s(self) -> float:
        return 0.050


def replica(*, num_blocks: int = 1000, max_running: int = 8, max_waiting: int = 100) -> LanguageReplica:
    return LanguageReplica(
        "one",
        PlainTimes(),
        num_blocks=num_blocks,
        max_running=max_running,
        max_waiting=max_waiting,
        jitter=lambda: 0.0,
    )


def test_simulated_time_passes_at_once() -> None:
    async def sleep_for_hours() -> list[float]:
        loop, started = asyncio.get_running_loop(), time.monotonic()
        times = [loop.time()]
        for seconds in (3600.0, 0.001, 7200.0):
            await asyncio.sleep(seconds)
            times.append(loop.time())
        assert time.monotonic() - started < 60
        return times

    assert simulate(sleep_for_hours()) == pytest.approx([0, 3600, 3600.001, 10800.001])


def test_a_simulation_that_waits_forever_fails() -> None:
    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="waits for another"):
        simulate(wait())


def tokens_of(rng: random.Random) -> tuple[list[int], int]:
    """Return a prompt and the length of its answer."""
    start = [rng.randrange(3)] * rng.choice((16, 40, 64))
    return start + [rng.randrange(100) for _ in range(rng.randrange(1, 40))], rng.randrange(1, 40)


def run_engine(scheduler: Scheduler, prompt: list[int], answer: list[int]) -> int:
    """Return the cached tokens of a request in the engine."""
    sequence = Sequence(hashes=PrefixHashes(ROOT, block_size=BLOCK))
    sequence.add_text(prompt)
    sequence.max_tokens = len(answer)
    scheduler.add(sequence)
    for token in answer:
        sampled = False
        while not sampled:
            batch = scheduler.next_batch()
            assert batch is not None
            for chunk in batch.chunks:
                scheduler.advance(chunk)
                sampled = chunk.samples
        sequence.add_answer(token)
    scheduler.remove(sequence)
    return sequence.num_cached_tokens


@pytest.mark.parametrize("seed", range(5))
def test_a_replica_finds_the_prefixes_that_the_engine_finds(seed: int) -> None:
    """The cache is too small for all of them."""
    num_blocks = 24
    config = SchedulerConfig(block_size=BLOCK, max_running=4, max_waiting=4, max_step_tokens=512)
    scheduler = Scheduler(config, BlockPool(num_blocks))
    rng = random.Random(seed)
    requests = []
    for number in range(200):
        prompt, length = tokens_of(rng)
        requests.append((prompt, [1000 + number] * length))
    expected = [run_engine(scheduler, prompt, answer) for prompt, answer in requests]

    async def run() -> list[int]:
        one, cached = replica(num_blocks=num_blocks), []
        for prompt, answer in requests:
            hashes = PrefixHashes(ROOT, block_size=BLOCK)
            hashes.add_text([*prompt, *answer[:-1]])  # the last token is never computed
            work = one.submit(Prompt(len(prompt), hashes.hashes), len(answer))
            await work.done
            cached.append(work.cached_tokens)
        return cached

    assert simulate(run()) == expected
    assert sum(expected) > 0


def step_by_step(arrivals: list[tuple[float, int]]) -> list[float]:
    """Return when each answer ends. All prompts have one token."""
    left: dict[int, int] = {}
    now, ends = 0.0, [0.0] * len(arrivals)
    waiting = sorted(range(len(arrivals)), key=lambda index: arrivals[index][0])
    while waiting or left:
        if not left:
            now = max(now, arrivals[waiting[0]][0])
        while waiting and arrivals[waiting[0]][0] <= now + 1e-9:
            index = waiting.pop(0)
            left[index] = arrivals[index][1] - 1
        now += PlainTimes().step_s(len(left))
        for index in list(left):
            left[index] -= 1
            if left[index] == 0:
                ends[index] = now
                del left[index]
    return ends


def test_steps_of_a_batch_take_as_long_as_one_after_the_other() -> None:
    """Answers of several lengths that begin together."""
    lengths = [2, 5, 5, 9, 30, 31]
    expected = step_by_step([(0.0, length) for length in lengths])

    async def run() -> list[float]:
        one = replica()
        works = [one.submit(Prompt(1, ()), length) for length in lengths]
        await asyncio.gather(*(work.done for work in works))
        return [work.ended_s for work in works]

    assert simulate(run()) == pytest.approx(expected)


def test_prefill_lets_decoding_wait() -> None:
    async def run() -> tuple[float, float, float]:
        one = replica()
        first = one.submit(Prompt(1, ()), 11)
        await asyncio.sleep(0.055)  # five of its ten steps
        second = one.submit(Prompt(1001, ()), 2)
        await asyncio.gather(first.done, second.done)
        assert second.first_token_s is not None
        return second.first_token_s, first.ended_s, second.ended_s

    first_token_s, first_s, second_s = simulate(run())
    assert first_token_s == pytest.approx(0.055 + 0.1)
    assert second_s == pytest.approx(0.155 + 0.012)
    assert first_s == pytest.approx(0.155 + 0.012 + 4 * 0.011)


def test_a_full_queue_refuses_and_a_full_cache_waits() -> None:
    async def run() -> None:
        one = replica(num_blocks=4, max_waiting=1)
        works = [one.submit(Prompt(48, ()), 16) for _ in range(2)]  # 4 blocks each
        with pytest.raises(ResourceExhausted):
            one.submit(Prompt(48, ()), 16)
        await asyncio.gather(*(work.done for work in works))
        assert works[1].queue_s > 0

    simulate(run())


def test_lost_replicas_are_noticed_late() -> None:
    async def run() -> float:
        language, vision = replica(), VisionReplica("one", PlainTimes(), cache_entries=1)
        work = language.submit(Prompt(16, ()), 1000)
        await asyncio.sleep(1.0)
        language.lose(30.0)
        vision.lose(30.0)
        results = await asyncio.gather(work.done, vision.encode(1), return_exceptions=True)
        assert all(isinstance(result, Unavailable) for result in results)
        assert not work.lost_before_first
        return asyncio.get_running_loop().time()

    assert simulate(run()) == pytest.approx(31.0)


def test_a_vision_replica_encodes_each_image_once() -> None:
    async def run() -> list[str]:
        one = VisionReplica("one", PlainTimes(), cache_entries=2)
        levels = list(await asyncio.gather(*(one.encode(image) for image in (1, 1, 2))))
        assert asyncio.get_running_loop().time() == pytest.approx(0.1)  # one after the other
        return [*levels, await one.encode(1), await one.encode(3), await one.encode(2)]

    assert simulate(run()) == ["miss", "in_flight", "miss", "vision", "miss", "miss"]


@pytest.mark.parametrize("incident", ["none", "zone", "redis", "hot", "canary"])
def test_every_request_of_a_cell_ends(incident: str) -> None:
    async def run() -> None:
        random = np.random.default_rng(0)
        cell = Cell(SMALL, full_size_times(100, 1000, random), random)
        before = await cell.play(150, 3)
        if incident == "zone":
            cell.lose_zone()
        elif incident == "redis":
            cell.redis.is_lost = True
        elif incident == "hot":
            cell.make_hot(1500, 0.5)
        elif incident == "canary":
            cell.start_rollout(1.0)
        after = await cell.play(300, 4)
        await cell.close()
        for tally in (before, after):
            assert tally.arrived == len(tally.first_token_s) + tally.failed
            assert tally.arrived > 200
        assert (before.failed + after.failed > 0) == (incident in ("zone", "canary"))
        assert 0 < after.hit_rate() < 100

    simulate(run())


def test_a_rolled_back_canary_fails_nobody_any_more() -> None:
    async def run() -> None:
        random = np.random.default_rng(0)
        cell = Cell(SMALL, full_size_times(100, 1000, random), random)
        rollout = cell.start_rollout(1.0)
        await cell.play(400, 30)
        assert rollout.phase == "rolled_back"
        after = await cell.play(150, 2)
        await cell.close()
        assert after.failed == 0

    simulate(run())
