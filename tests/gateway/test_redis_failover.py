"""Caches and rollouts survive failovers that close no connection.

`pytest -s` prints how long they take.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import structlog

from chassis.errors import Unavailable
from gateway.images.redis_cache import RedisCache
from gateway.images.shared_redis import SharedRedis
from gateway.rollout.policy.state import Phase
from gateway.rollout.redis_store import RedisStore
from tests.gateway.images.test_entry import ENTRY, EXPECTED
from tests.gateway.redis_relay import RedisRelay
from tests.gateway.redis_server import RedisServer
from tests.gateway.rollout.plans import numbers
from tests.gateway.rollout.test_store_sync import PLAN, gateway, started, wait_for_phase
from tests.gateway.scripted import eventually

STATE = "{tandem:rollout}:state"
CACHE_KEY = b"tandem:visual-tokens:1:" + EXPECTED.visual_key.hex().encode()
PAUSE_S = 0.3
PATIENT_S = 5.0


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[RedisServer, RedisServer]]:
    """Yield a primary and its replica."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    at_once = ("--repl-diskless-sync-delay", "0")
    with RedisServer(folders[0], *at_once) as primary, RedisServer(folders[1], *at_once) as replica:
        follow(replica, primary)
        yield primary, replica


@pytest.fixture
async def relay(servers: tuple[RedisServer, RedisServer]) -> AsyncIterator[RedisRelay]:
    async with RedisRelay(servers[0]) as relay:
        yield relay


def follow(replica: RedisServer, primary: RedisServer) -> None:
    """Make a server the replica of another one."""
    replica.client.replicaof("127.0.0.1", str(primary.port))
    deadline = time.monotonic() + PATIENT_S * 4
    while replica.client.info("replication").get("master_link_status") != "up":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def swap(old: RedisServer, new: RedisServer, relay: RedisRelay) -> float:
    """Swap the roles as a failover does. Return the time."""
    new.client.replicaof("NO", "ONE")
    old.client.replicaof("127.0.0.1", str(new.port))
    relay.target = new
    return time.monotonic()


async def become_read_only(old: RedisServer, new: RedisServer, relay: RedisRelay) -> None:
    swap(old, new, relay)


async def lose_the_primary(old: RedisServer, new: RedisServer, relay: RedisRelay) -> None:
    """Make the old server a replica of nobody: MASTERDOWN."""
    old.client.config_set("replica-serve-stale-data", "no")
    new.client.replicaof("NO", "ONE")
    old.client.replicaof("127.0.0.1", "1")
    relay.target = new


async def load(old: RedisServer, new: RedisServer, relay: RedisRelay) -> None:
    """Make the old server load the new one's data slowly."""
    new.client.replicaof("NO", "ONE")
    with new.client.pipeline() as pipeline:
        for number in range(20_000):
            pipeline.set(f"filler:{number}", b"x" * 100)
        pipeline.execute()
    old.client.set("diverged", "1" * 100)  # so it must load everything
    old.client.config_set("key-load-delay", "2000")
    old.client.config_set("loading-process-events-interval-bytes", "2048")
    old.client.replicaof("127.0.0.1", str(new.port))
    await eventually(lambda: old.client.info("persistence")["loading"] == 1)
    relay.target = new


@pytest.mark.parametrize("trouble", [become_read_only, lose_the_primary, load])
async def test_a_connection_to_a_server_that_lost_its_role_is_opened_anew(
    trouble: Callable[[RedisServer, RedisServer, RedisRelay], Awaitable[None]],
    servers: tuple[RedisServer, RedisServer],
    relay: RedisRelay,
) -> None:
    old, new = servers
    store = RedisStore(relay.url, timeout_s=PATIENT_S)
    redis = SharedRedis(relay.url, timeout_s=PATIENT_S, pause_s=PAUSE_S)
    cache = RedisCache(redis, ttl_s=60)
    assert await store.take_lease("task", "me", 60)
    assert await cache.get(EXPECTED) is None
    await trouble(old, new, relay)
    assert await store.take_lease("task", "me", 60)  # at once
    assert new.client.get("{tandem:rollout}:lease:task") == b"me"
    await put_until_stored(cache, new)
    await cache.close()
    await redis.close()
    await store.close()


async def put_until_stored(cache: RedisCache, redis: RedisServer) -> None:
    """Write as requests do until a write arrives."""
    async with asyncio.timeout(PATIENT_S * 4):
        while not redis.client.exists(CACHE_KEY):
            cache.put(EXPECTED.visual_key, ENTRY)
            await asyncio.sleep(0.01)


async def test_a_connection_that_lost_its_password_is_opened_anew(tmp_path: Path) -> None:
    """A proxy may change servers within a connection."""
    with RedisServer(tmp_path, password="secret") as server:
        async with RedisRelay(server) as relay:
            store = RedisStore(relay.url, timeout_s=PATIENT_S)
            redis = SharedRedis(relay.url, timeout_s=PATIENT_S, pause_s=PAUSE_S)
            cache = RedisCache(redis, ttl_s=60)
            assert await store.take_lease("task", "me", 60)
            assert await cache.get(EXPECTED) is None
            await relay.move_upstreams()
            assert await store.take_lease("task", "me", 60)
            await put_until_stored(cache, server)
            await cache.close()
            await redis.close()
            await store.close()


async def test_a_rollback_is_taken_at_once_after_a_failover(
    store: Path, servers: tuple[RedisServer, RedisServer], relay: RedisRelay
) -> None:
    old, new = servers
    rollouts = RedisStore(relay.url, timeout_s=PATIENT_S)
    redis = SharedRedis(relay.url, timeout_s=PATIENT_S, pause_s=PAUSE_S)
    cache = RedisCache(redis, ttl_s=60)
    sync, _ = gateway(store, rollouts)
    running = asyncio.create_task(sync.run())
    await sync.set(PLAN)
    await sync.change(started)
    await cache.get(EXPECTED)
    await eventually(lambda: new.client.hget(STATE, "version") == b"2")
    with structlog.testing.capture_logs() as logs:
        swapped = swap(old, new, relay)
        view = await sync.roll_back("It must leave.")
        taken = time.monotonic()
        await put_until_stored(cache, new)
        writes = time.monotonic()
        await asyncio.sleep(1)  # many ticks
    assert view.state is not None
    assert (view.state.phase, view.is_unconfirmed) == (Phase.ROLLED_BACK, False)
    assert b'"phase":"rolled_back"' in (new.client.hget(STATE, "state") or b"")
    assert sync.view.store_reachable
    assert len([line for line in logs if line["log_level"] in ("warning", "error")]) <= 2  # one for each change
    taken_ms, written_ms = 1000 * (taken - swapped), 1000 * (writes - swapped)
    print(f"\nfrom the swap: rollback taken after {taken_ms:.1f} ms, cache written after {written_ms:.1f} ms")
    running.cancel()
    await asyncio.wait([running])
    await cache.close()
    await redis.close()
    await rollouts.close()


async def test_a_guard_goes_on_after_a_failover(
    store: Path, servers: tuple[RedisServer, RedisServer], relay: RedisRelay
) -> None:
    """Its counts are stored, and its canary is judged."""
    old, new = servers
    rollouts = RedisStore(relay.url, timeout_s=PATIENT_S)
    sync, traffic = gateway(store, rollouts)
    running = asyncio.create_task(sync.run())
    await sync.set(PLAN)
    state = (await sync.change(started)).state
    assert state is not None
    swap(old, new, relay)
    traffic.add_counts(state.window, numbers("stable", 300) + numbers("canary", 300, errors=200))
    await wait_for_phase(sync, Phase.ROLLED_BACK)
    await eventually(lambda: b'"phase":"rolled_back"' in (new.client.hget(STATE, "state") or b""))
    running.cancel()
    await asyncio.wait([running])
    await rollouts.close()


async def test_a_replica_that_stays_one_says_so(servers: tuple[RedisServer, RedisServer]) -> None:
    _, replica = servers
    store = RedisStore(replica.url, timeout_s=PATIENT_S)
    with pytest.raises(Unavailable, match="read-only") as raised:
        await store.take_lease("task", "me", 60)
    assert raised.value.reason == "ROLLOUT_STORE_UNREACHABLE"
    await store.close()
