"""Processes killed under load: which requests fail, and how.

Two replicas of both stages, two gateways and a Redis serve steady streams of questions. Each test kills some of these
processes. Every request must end within its deadline, with an answer or a typed error, and only unavoidable failures
are allowed. The short form, with twelve streams, runs with the quick tests. The steady form, with fifty, needs an idle
machine.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from chassis.errors import Code
from tests.end_to_end.cluster import Cluster
from tests.end_to_end.load import DEADLINE_S, GRACE_S, LoadGenerator, Outcome, count_outcomes
from tests.gateway.redis_server import RedisServer

pytestmark = [pytest.mark.timeout(600)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Size of a load, counted in requests."""

    streams: int
    before: int  # requests that end before the kill
    after: int  # requests that end after the kill


SHORT, STEADY = Size(streams=12, before=12, after=30), Size(streams=50, before=60, after=120)


@pytest.fixture(
    params=[
        pytest.param(SHORT, marks=pytest.mark.slow, id="short"),
        pytest.param(STEADY, marks=pytest.mark.load, id="steady"),
    ]
)
def size(request: pytest.FixtureRequest) -> Size:
    size: Size = request.param
    return size


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def cluster(store: Path, redis: RedisServer) -> Iterator[Cluster]:
    with Cluster(store, replicas=2, gateways=2, gateway_flags=["--shared-cache-url", redis.url]) as cluster:
        yield cluster


@asynccontextmanager
async def under_load(cluster: Cluster, size: Size) -> AsyncIterator[LoadGenerator]:
    """Run a load around the block, then check every outcome."""
    load = LoadGenerator({name: cluster.address(name) for name in cluster.gateways}, streams=size.streams)
    running = asyncio.create_task(load.run())
    try:
        await load.wait_for_outcomes(size.before)
        yield load
        await load.wait_for_outcomes(len(load.outcomes) + size.after)
        load.stop()
        async with asyncio.timeout(DEADLINE_S + GRACE_S):
            await running
    finally:
        running.cancel()
        cluster.restart_killed()
    slowest_s = max(one.seconds for one in load.outcomes)
    print(f"\n{len(load.outcomes)} requests: {count_outcomes(load.outcomes)}; slowest {slowest_s:.1f} s")
    assert not cluster.unexpected_errors()
    for one in load.outcomes:
        assert one.seconds < DEADLINE_S + GRACE_S
        if one.error is not None:
            assert one.error.code in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED), one.error
            assert one.error.reason not in ("UNKNOWN", "INTERNAL")


def failures(load: LoadGenerator, select: Callable[[Outcome], bool] = lambda _: True) -> list[Outcome]:
    return [one for one in load.outcomes if one.error is not None and select(one)]


async def check_health(cluster: Cluster) -> None:
    """Check that the cluster serves a short load without failures."""
    load = LoadGenerator({name: cluster.address(name) for name in cluster.gateways}, streams=10)
    running = asyncio.create_task(load.run())
    await load.wait_for_outcomes(20)
    load.stop()
    await running
    assert not failures(load), count_outcomes(load.outcomes)


@pytest.fixture(autouse=True)
async def healthy_cluster(cluster: Cluster) -> None:
    """Start each test with all processes running.

    This also checks that a restarted process fails no request once it is ready.
    """
    await check_health(cluster)


@pytest.mark.parametrize("victim", ["vision-0", "language-0"])
async def test_the_loss_of_one_replica_fails_only_its_started_answers(
    cluster: Cluster, size: Size, victim: str
) -> None:
    """Their errors say how many tokens came before."""
    async with under_load(cluster, size) as load:
        cluster.kill(victim)
        at = time.monotonic()
    assert len([one for one in load.ended_after(at) if one.error is None]) >= size.after // 12
    for one in failures(load):
        assert victim.startswith("language")
        assert one.began_at < at
        assert one.error is not None
        assert int(one.error.metadata["completion_tokens"]) >= 1
        assert one.text


async def test_the_loss_of_the_vision_stage_fails_no_question_without_images(cluster: Cluster, size: Size) -> None:
    async with under_load(cluster, size) as load:
        cluster.kill("vision-0", "vision-1")
        at = time.monotonic()
    assert not failures(load, lambda one: not one.with_image)
    assert failures(load)
    assert {one.error.reason for one in failures(load) if one.error} == {"VISION_UNREACHABLE"}
    assert len([one for one in load.ended_after(at) if one.error is None]) >= size.after // 12


async def test_the_loss_of_the_language_stage_is_reported_quickly(cluster: Cluster, size: Size) -> None:
    async with under_load(cluster, size) as load:
        cluster.kill("language-0", "language-1")
        at = time.monotonic()
    assert {one.error.reason for one in failures(load) if one.error} == {"LANGUAGE_UNREACHABLE"}
    assert not failures(load, lambda one: one.ended_at < at)
    late = [one for one in load.ended_after(at) if one.began_at > at]
    assert max(one.seconds for one in late) < 5, "a certain error must come quickly"


async def test_the_loss_of_one_gateway_fails_no_request_of_the_other(cluster: Cluster, size: Size) -> None:
    async with under_load(cluster, size) as load:
        cluster.kill("gateway-0")
        at = time.monotonic()
    assert not failures(load, lambda one: one.gateway == "gateway-1")
    assert not failures(load, lambda one: one.ended_at < at)
    assert len([one for one in load.ended_after(at) if one.error is None]) >= size.after // 12


async def test_the_loss_of_redis_fails_no_request(cluster: Cluster, size: Size, redis: RedisServer) -> None:
    """Redis is a cache, so its loss costs only time."""
    async with under_load(cluster, size) as load:
        redis.kill()
    assert not failures(load)
    redis.start()
