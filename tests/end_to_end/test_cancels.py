"""Cancelled requests leak nothing, and full queues lose no request.

`TANDEM_CANCELS=10000 pytest tests/end_to_end/test_cancels.py` runs more requests.
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


async def settled_resources(cluster: Cluster) -> dict[str, dict[str, float]]:
    """Return the resources in use when they no longer change.

    Cancelled requests unwind and sockets close with a delay.
    """
    last, same_since = cluster.resources(), time.monotonic()
    deadline = time.monotonic() + 60
    while time.monotonic() - same_since < 3:
        assert time.monotonic() < deadline, "the resources in use keep changing"
        await asyncio.sleep(0.25)
        now = cluster.resources()
        if now != last:
            last, same_since = now, time.monotonic()
    return last


async def cancel_at_random(client: AsyncClient, number: int, rng: random.Random) -> str:
    """Ask a question and cancel it at a random moment.

    Returns how it ended: "answered", "cancelled", "cancelled during the answer", or the reason of an error.
    """
    images = [image(number)] * rng.choice((0, 0, 1, 2))
    stream = client.generate(f"Question {number}?", images=images, max_tokens=rng.randrange(1, 40), ignore_eos=True)
    num_pieces = rng.choice((None, 1, 3, 10))
    closing = asyncio.create_task(_close_later(stream, rng.uniform(0, 0.4)))
    seen = 0
    try:
        async for _ in stream:
            seen += 1
            if seen == num_pieces:
                return "cancelled during the answer"
    except Cancelled:
        return "cancelled"
    except TandemError as error:
        return error.reason
    finally:
        closing.cancel()
    return "answered"


async def _close_later(stream: AsyncTextStream, seconds: float) -> None:
    await asyncio.sleep(seconds)
    stream.close()


async def cancel_many(cluster: Cluster, count: int, seed: int) -> dict[str, int]:
    """Run and cancel `count` requests, and count their ends."""
    ends: dict[str, int] = {}
    numbers = iter(range(seed, seed + count))
    async with AsyncClient(cluster.address("gateway-0"), timeout_s=60) as client:

        async def stream() -> None:
            for number in numbers:
                end = await cancel_at_random(client, number, random.Random(number))
                ends[end] = ends.get(end, 0) + 1

        await asyncio.gather(*(stream() for _ in range(STREAMS)))
    return ends


async def test_cancelled_requests_leak_no_resources(cluster: Cluster) -> None:
    await cancel_many(cluster, 100, seed=1_000_000)  # the first requests create threads, connections and caches
    before = await settled_resources(cluster)
    ends = await cancel_many(cluster, NUM_CANCELS, seed=0)
    print(ends)
    assert ends.pop("cancelled", 0) + ends.pop("cancelled during the answer", 0) > NUM_CANCELS / 4
    assert set(ends) <= {"answered", "QUEUE_FULL", "GATEWAY_BUSY"}
    after = await settled_resources(cluster)
    assert after == before
    for name, resources in after.items():
        used = {metric: resources[metric] for metric in resources if metric not in ("tandem_tasks", "process_open_fds")}
        # There are no other clients, and reading the metrics is no gRPC call.
        assert not any(used.values()), (name, used)


async def test_many_images_at_once_are_all_answered_or_asked_to_retry(cluster: Cluster) -> None:
    async def ask(client: AsyncClient, number: int) -> str:
        try:
            answer = await client.ask("What?", images=[image(2_000_000 + number)], max_tokens=4, ignore_eos=True)
        except ResourceExhausted as error:
            return "asked to retry" if error.retry_after_s else "no retry delay"
        assert answer.usage.visual_tokens == 32
        return "answered"

    async with AsyncClient(cluster.address("gateway-0"), timeout_s=100) as client:
        ends = await asyncio.gather(*(ask(client, number) for number in range(IMAGES_AT_ONCE)))
    print({end: ends.count(end) for end in set(ends)})
    assert set(ends) <= {"answered", "asked to retry"}
    assert ends.count("answered") >= 64  # the length of the vision stage's queue


async def test_requests_that_retry_after_the_given_delay_are_answered(cluster: Cluster) -> None:
    """So the retry delay fits the length of the queue."""

    async def ask_with_retries(client: AsyncClient, number: int) -> int:
        for attempt in range(1, 50):
            try:
                await client.ask("What?", images=[image(3_000_000 + number)], max_tokens=2, ignore_eos=True)
            except ResourceExhausted as error:
                await asyncio.sleep(error.retry_after_s or 0)
            else:
                return attempt
        raise AssertionError("never answered")

    async with AsyncClient(cluster.address("gateway-0"), timeout_s=100) as client:
        attempts = await asyncio.gather(*(ask_with_retries(client, number) for number in range(IMAGES_AT_ONCE)))
    assert len(attempts) == IMAGES_AT_ONCE


async def test_a_deadline_reaches_every_stage(cluster: Cluster) -> None:
    async with AsyncClient(cluster.address("gateway-0")) as client:
        with pytest.raises(TandemError) as raised:
            await client.ask("Go on.", max_tokens=900, ignore_eos=True, timeout_s=0.2)
    assert raised.value.code == Code.DEADLINE_EXCEEDED
    resources = await settled_resources(cluster)
    assert not any(resources[name]["tandem_rpc_in_flight"] for name in resources)
