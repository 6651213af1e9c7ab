"""Clients that leave at any moment, over all stages, leave nothing behind; and many images at once lose nobody.

`TANDEM_CANCELS=10000 pytest tests/end_to_end/test_cancels.py` is the long form.
"""

import asyncio
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chassis.errors import Code
from tandem.client.aio import AsyncClient, AsyncTextStream
from tandem.errors import Cancelled, ResourceExhausted, TandemError
from tests.end_to_end.cluster import Cluster, image

NUM_CANCELS = int(os.environ.get("TANDEM_CANCELS", "1000"))
STREAMS = 50
IMAGES_AT_ONCE = 200

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 + NUM_CANCELS)]


@pytest.fixture(scope="module")
def cluster(store: Path) -> Iterator[Cluster]:
    with Cluster(store, replicas=2) as cluster:
        yield cluster


async def settled(cluster: Cluster) -> dict[str, dict[str, float]]:
    """Return what the processes hold once it no longer changes: what is cancelled unwinds, and sockets linger."""
    last, same_since = cluster.held(), time.monotonic()
    deadline = time.monotonic() + 60
    while time.monotonic() - same_since < 3:
        assert time.monotonic() < deadline, "what is held keeps changing"
        await asyncio.sleep(0.25)
        now = cluster.held()
        if now != last:
            last, same_since = now, time.monotonic()
    return last


async def leave_somewhere(client: AsyncClient, number: int, draw: random.Random) -> str:
    """Ask something and leave after a while, or after some of the answer; return how it ended."""
    images = [image(number)] * draw.choice((0, 0, 1, 2))
    stream = client.generate(f"Question {number}?", images=images, max_tokens=draw.randrange(1, 40), ignore_eos=True)
    num_pieces = draw.choice((None, 1, 3, 10))
    leaving = asyncio.create_task(_leave_later(stream, draw.uniform(0, 0.4)))
    seen = 0
    try:
        async for _ in stream:
            seen += 1
            if seen == num_pieces:
                return "left amid the answer"
    except Cancelled:
        return "left"
    except TandemError as error:
        return error.reason
    finally:
        leaving.cancel()
    return "answered"


async def _leave_later(stream: AsyncTextStream, seconds: float) -> None:
    await asyncio.sleep(seconds)
    stream.close()


async def cancel_many(cluster: Cluster, count: int, seed: int) -> dict[str, int]:
    """Run `count` requests that leave, some dozens at a time; return how they ended."""
    ends: dict[str, int] = {}
    numbers = iter(range(seed, seed + count))
    async with AsyncClient(cluster.address("gateway-0"), timeout_s=60) as client:

        async def stream() -> None:
            for number in numbers:
                end = await leave_somewhere(client, number, random.Random(number))
                ends[end] = ends.get(end, 0) + 1

        await asyncio.gather(*(stream() for _ in range(STREAMS)))
    return ends


async def test_requests_that_are_cancelled_anywhere_leave_nothing(cluster: Cluster) -> None:
    await cancel_many(cluster, 100, seed=1_000_000)  # threads, connections and caches that come with first requests
    before = await settled(cluster)
    ends = await cancel_many(cluster, NUM_CANCELS, seed=0)
    print(ends)
    assert ends.pop("left", 0) + ends.pop("left amid the answer", 0) > NUM_CANCELS / 4
    assert set(ends) <= {"answered", "QUEUE_FULL", "GATEWAY_BUSY"}
    after = await settled(cluster)
    assert after == before
    for name, held in after.items():
        idle = {metric: held[metric] for metric in held if metric not in ("tandem_tasks", "process_open_fds")}
        # The scrape that asks is no gRPC call, and nobody else is there.
        assert not any(idle.values()), (name, idle)


async def test_many_images_at_once_are_all_answered_or_told_to_come_again(cluster: Cluster) -> None:
    async def ask(client: AsyncClient, number: int) -> str:
        try:
            answer = await client.ask("What?", images=[image(2_000_000 + number)], max_tokens=4, ignore_eos=True)
        except ResourceExhausted as error:
            return "told to come again" if error.retry_after_s else "told nothing"
        assert answer.usage.visual_tokens == 32
        return "answered"

    async with AsyncClient(cluster.address("gateway-0"), timeout_s=100) as client:
        ends = await asyncio.gather(*(ask(client, number) for number in range(IMAGES_AT_ONCE)))
    print({end: ends.count(end) for end in set(ends)})
    assert set(ends) <= {"answered", "told to come again"}
    assert ends.count("answered") >= 64  # what the vision stage's queue takes


async def test_a_request_that_is_told_to_come_again_and_does_is_answered(cluster: Cluster) -> None:
    """The delay it is told must be one after which coming again makes sense."""

    async def insist(client: AsyncClient, number: int) -> int:
        for attempt in range(1, 50):
            try:
                await client.ask("What?", images=[image(3_000_000 + number)], max_tokens=2, ignore_eos=True)
            except ResourceExhausted as error:
                await asyncio.sleep(error.retry_after_s or 0)
            else:
                return attempt
        raise AssertionError("never answered")

    async with AsyncClient(cluster.address("gateway-0"), timeout_s=100) as client:
        attempts = await asyncio.gather(*(insist(client, number) for number in range(IMAGES_AT_ONCE)))
    assert len(attempts) == IMAGES_AT_ONCE


async def test_a_deadline_reaches_every_stage(cluster: Cluster) -> None:
    async with AsyncClient(cluster.address("gateway-0")) as client:
        with pytest.raises(TandemError) as raised:
            await client.ask("Go on.", max_tokens=900, ignore_eos=True, timeout_s=0.2)
    assert raised.value.code == Code.DEADLINE_EXCEEDED
    held = await settled(cluster)
    assert not any(held[name]["tandem_rpc_in_flight"] for name in held)
