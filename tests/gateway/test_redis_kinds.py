"""Addresses of a Redis Cluster or Sentinel are refused at the start."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis as redis_client

from chassis.errors import FailedPrecondition
from gateway.images.shared_redis import SharedRedis
from gateway.rollout.redis_store import RedisStore
from tests.gateway.conftest import MakeWorld
from tests.gateway.redis_server import RedisServer

PATIENT_S = 5.0
SLOTS = ((0, 5460), (5461, 10922), (10923, 16383))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[RedisServer]]:
    """Yield the three nodes of a cluster that works."""
    with ExitStack() as stack:
        nodes: list[RedisServer] = []
        buses = [free_port() for _ in range(3)]
        for number, bus in enumerate(buses):
            folder = tmp_path / str(number)
            folder.mkdir()
            nodes.append(stack.enter_context(RedisServer(folder, "--cluster-enabled", "yes", "--cluster-port", bus)))
            run: Any = nodes[-1].client.execute_command
            run("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, buses[0])
            run("CLUSTER", "ADDSLOTSRANGE", *SLOTS[number])
        deadline = time.monotonic() + 60
        while not all(node.client.cluster("info")["cluster_state"] == "ok" for node in nodes):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield nodes


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[RedisServer]:
    """Yield a Sentinel that watches a server."""
    with RedisServer(tmp_path) as server:
        config = tmp_path / "sentinel.conf"
        config.write_text(f"sentinel monitor mymaster 127.0.0.1 {server.port} 1\n")
        with RedisServer(tmp_path, config=config) as sentinel:
            yield sentinel


async def test_a_node_of_a_cluster_is_refused(cluster: list[RedisServer]) -> None:
    assert sum(isinstance(error, redis_client.ResponseError) for error in map(write_error, cluster)) == 2  # MOVED
    for node in cluster:
        await refused(node.url, "a node of a Redis Cluster")


def write_error(node: RedisServer) -> Exception | None:
    try:
        node.client.set("name", "value")
    except redis_client.RedisError as error:
        return error
    return None


async def test_a_sentinel_is_refused(sentinel: RedisServer) -> None:
    await refused(sentinel.url, "a Redis Sentinel")


async def refused(url: str, text: str) -> None:
    store, redis = RedisStore(url, timeout_s=PATIENT_S), SharedRedis(url, timeout_s=PATIENT_S, pause_s=1)
    for check, setting in ((store.check, "--rollout-redis"), (redis.check, "--shared-cache-url")):
        with pytest.raises(FailedPrecondition) as raised:
            await check()
        assert raised.value.reason == "BAD_REDIS"
        assert raised.value.message.startswith(f"{setting} names {text}: ")
        assert raised.value.message.count(".") == 1  # one sentence
    await store.close()
    await redis.close()


@pytest.mark.parametrize("setting", ["shared_cache_url", "rollout_redis"])
async def test_a_gateway_does_not_start_with_a_node_of_a_cluster(
    setting: str, make_world: MakeWorld, tmp_path: Path
) -> None:
    node = RedisServer(tmp_path, "--cluster-enabled", "yes", "--cluster-port", free_port())
    with node, pytest.raises(FailedPrecondition, match="a node of a Redis Cluster"):
        async with make_world(**{setting: node.url, "shared_cache_timeout_ms": 1000}):
            pass


@pytest.mark.parametrize("setting", ["shared_cache_url", "rollout_redis"])
async def test_a_gateway_starts_without_its_redis(setting: str, make_world: MakeWorld, tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    async with make_world(**{setting: server.url}) as world:
        world.say("an answer")
        assert (await world.ask("What is it?")).text == "an answer"
