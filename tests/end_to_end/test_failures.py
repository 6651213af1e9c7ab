"""Processes killed mid-load: every request ends in time with an answer or a typed error, and only where it must fail.

Two replicas of both stages, two gateways and a Redis serve steady streams; each test kills something of it. Fifty
streams need the machine alone; a dozen, for some seconds, show the same to every change.
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
from tests.end_to_end.load import DEADLINE_S, GRACE_S, Ended, Load, reasons
from tests.gateway.redis_server import RedisServer

pytestmark = [pytest.mark.timeout(600)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much load; requests are counted and not timed, for machines differ."""

    streams: int
    before: int  # requests that end before something is killed
    after: int  # and after it


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
async def loaded(cluster: Cluster, size: Size) -> AsyncIterator[Load]:
    """Run a load before and after the block; then check what holds for every request."""
    load = Load({name: cluster.address(name) for name in cluster.gateways}, streams=size.streams)
    running = asyncio.create_task(load.run())
    try:
        await load.until_ended(size.before)
        yield load
        await load.until_ended(len(load.ended) + size.after)
        load.stop()
        async with asyncio.timeout(DEADLINE_S + GRACE_S):
            await running
    finally:
        running.cancel()
        cluster.revive()
    print(
        f"\n{len(load.ended)} requests: {reasons(load.ended)}; longest {max(one.seconds for one in load.ended):.1f} s"
    )
    assert not cluster.bugs()
    for one in load.ended:
        assert one.seconds < DEADLINE_S + GRACE_S
        if one.error is not None:
            assert one.error.code in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED), one.error
            assert one.error.reason not in ("UNKNOWN", "INTERNAL")


def failed(load: Load, which: Callable[[Ended], bool] = lambda _: True) -> list[Ended]:
    return [one for one in load.ended if one.error is not None and which(one)]


async def answers_again(cluster: Cluster) -> None:
    """Check that the cluster is whole: a short load without a single failure."""
    load = Load({name: cluster.address(name) for name in cluster.gateways}, streams=10)
    running = asyncio.create_task(load.run())
    await load.until_ended(20)
    load.stop()
    await running
    assert not failed(load), reasons(load.ended)


@pytest.fixture(autouse=True)
async def whole(cluster: Cluster) -> None:
    """Let each test begin with everything running, and check that what is ready again costs no request from then on."""
    await answers_again(cluster)


@pytest.mark.parametrize("victim", ["vision-0", "language-0"])
async def test_one_of_two_replicas(cluster: Cluster, size: Size, victim: str) -> None:
    """Only answers that had begun there may end, with how far they had come."""
    async with loaded(cluster, size) as load:
        cluster.kill(victim)
        at = time.monotonic()
    assert len([one for one in load.since(at) if one.error is None]) >= size.after // 12
    for one in failed(load):
        assert victim.startswith("language")
        assert one.began_at < at
        assert one.error is not None
        assert int(one.error.metadata["completion_tokens"]) >= 1
        assert one.text


async def test_the_whole_vision_stage(cluster: Cluster, size: Size) -> None:
    """Questions without images need it not, so they must not notice."""
    async with loaded(cluster, size) as load:
        cluster.kill("vision-0", "vision-1")
        at = time.monotonic()
    assert not failed(load, lambda one: not one.with_image)
    assert failed(load)
    assert {one.error.reason for one in failed(load) if one.error} == {"VISION_UNREACHABLE"}
    assert len([one for one in load.since(at) if one.error is None]) >= size.after // 12


async def test_the_whole_language_stage(cluster: Cluster, size: Size) -> None:
    async with loaded(cluster, size) as load:
        cluster.kill("language-0", "language-1")
        at = time.monotonic()
    assert {one.error.reason for one in failed(load) if one.error} == {"LANGUAGE_UNREACHABLE"}
    assert not failed(load, lambda one: one.ended_at < at)
    late = [one for one in load.since(at) if one.began_at > at]
    assert max(one.seconds for one in late) < 5, "an error that is certain must not take long"


async def test_one_of_two_gateways(cluster: Cluster, size: Size) -> None:
    async with loaded(cluster, size) as load:
        cluster.kill("gateway-0")
        at = time.monotonic()
    assert not failed(load, lambda one: one.gateway == "gateway-1")
    assert not failed(load, lambda one: one.ended_at < at)
    assert len([one for one in load.since(at) if one.error is None]) >= size.after // 12


async def test_redis(cluster: Cluster, size: Size, redis: RedisServer) -> None:
    """It is a cache: without it there is more to do, and nothing else."""
    async with loaded(cluster, size) as load:
        redis.kill()
    assert not failed(load)
    redis.start()
