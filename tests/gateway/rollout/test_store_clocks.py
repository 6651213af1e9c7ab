"""No changed clock ends a step, or makes a gateway look dead."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.rollout.policy.counts import Counts
from gateway.rollout.redis_store import HEARTBEAT_TIMEOUT_S, RedisStore
from gateway.rollout.store import MAX_GAP_S, FileStore, RolloutStore
from gateway.rollout.stored_format import Heartbeat
from tests.gateway.redis_server import RedisServer
from tests.gateway.rollout.plans import numbers

PATIENCE_S = 20.0  # for a busy machine


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["file", "redis"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, server: RedisServer) -> AsyncIterator[RolloutStore]:
    """Return each kind of store, empty."""
    server.client.flushall()
    is_file = request.param == "file"
    store = FileStore(tmp_path / "rollout.json") if is_file else RedisStore(server.url, timeout_s=PATIENCE_S)
    yield store
    await store.close()


async def test_the_time_of_a_step_adds_up_over_gateways_and_starts_again_with_a_step(store: RolloutStore) -> None:
    assert (await store.add("r/0", Counts())).elapsed_s == 0
    await asyncio.sleep(0.2)
    first = (await store.add("r/0", Counts())).elapsed_s
    await asyncio.sleep(0.2)
    second = (await store.add("r/0", numbers("stable", 1))).elapsed_s
    assert 0.1 < first < second < PATIENCE_S
    assert (await store.add("r/1", Counts())).elapsed_s == 0


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_clock_of_the_store_that_is_changed_ends_no_step(hours: int, server: RedisServer) -> None:
    """It told its last time an hour ago, or ahead."""
    server.client.flushall()
    store = RedisStore(server.url, timeout_s=PATIENCE_S)
    await store.add("r/0", Counts())
    key = "{tandem:rollout}:time:r/0"
    told_ms = int(server.client.hget(key, "at_ms") or 0)
    server.client.hset(key, "at_ms", str(told_ms - hours * 3_600_000))
    assert (await store.add("r/0", Counts())).elapsed_s <= MAX_GAP_S
    await asyncio.sleep(0.2)
    assert (await store.add("r/0", Counts())).elapsed_s >= 0.1  # it goes on
    await store.close()


async def test_the_time_of_a_step_survives_a_restart_of_a_single_gateway(tmp_path: Path) -> None:
    clock = iter((100.0, 107.0, 114.0, 5.0, 8.0))  # the last two of another process
    first = FileStore(tmp_path / "rollout.json", clock=lambda: next(clock))
    await first.add("r/0", Counts())
    for _ in range(2):
        await first.add("r/0", numbers("stable", 1))
    second = FileStore(tmp_path / "rollout.json", clock=lambda: next(clock))
    assert (await second.add("r/0", Counts())).elapsed_s == 14
    assert (await second.add("r/0", Counts())).elapsed_s == 17


class Gateways:
    """Two gateways on one store, with clocks that tests set."""

    def __init__(self, server: RedisServer) -> None:
        server.client.flushall()
        self.now_s = {"a": 0.0, "b": 1000.0}
        self.stores = {
            name: RedisStore(server.url, timeout_s=PATIENCE_S, clock=lambda name=name: self.now_s[name])  # type: ignore[misc]
            for name in self.now_s
        }

    async def heartbeat(self, name: str, at_s: float) -> set[str]:
        """Send a heartbeat. Return the living gateways."""
        self.now_s[name] = at_s
        living = await self.stores[name].heartbeat(Heartbeat(gateway=name, version=1, in_use=()))
        return {one.gateway for one in living}

    async def close(self) -> None:
        for store in self.stores.values():
            await store.close()


async def test_a_gateway_without_heartbeats_counts_as_dead(server: RedisServer) -> None:
    gateways = Gateways(server)
    await gateways.heartbeat("b", 1000)
    found = [await gateways.heartbeat("a", second) for second in range(15)]
    assert found[0] == {"a", "b"}
    assert found[HEARTBEAT_TIMEOUT_S - 1] == {"a", "b"}
    assert found[-1] == {"a"}
    await gateways.close()


async def test_after_a_time_without_the_store_the_others_still_live(server: RedisServer) -> None:
    """None of them could write a heartbeat.

    A gateway that takes them for dead unloads a release that they use.
    """
    gateways = Gateways(server)
    await gateways.heartbeat("b", 1000)
    assert await gateways.heartbeat("a", 1) == {"a", "b"}
    assert await gateways.heartbeat("a", 300) == {"a", "b"}
    assert await gateways.heartbeat("a", 301) == {"a", "b"}
    await gateways.close()


async def test_a_clock_of_the_store_that_is_changed_kills_no_gateway(server: RedisServer) -> None:
    gateways = Gateways(server)
    await gateways.heartbeat("b", 1000)
    name = "{tandem:rollout}:gateways"
    stored: Any = server.client.hget(name, "b")
    time_s, text = stored.decode().split(" ", 1)
    server.client.hset(name, "b", f"{int(time_s) - 3600} {text}")
    assert await gateways.heartbeat("a", 0) == {"a", "b"}
    await gateways.close()
