"""A rollback needs no store: it acts now and is stored later."""

import asyncio
import os
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from chassis.errors import FailedPrecondition, Unavailable
from gateway.rollout.policy import Phase, State
from gateway.rollout.policy.controller import promote
from gateway.rollout.redis_store import RedisStore
from gateway.rollout.store import FileStore
from gateway.rollout.store_sync import StoreSync
from tests.gateway.halves import TAG
from tests.gateway.redis_server import RedisServer
from tests.gateway.rollout.lost_disk import LostDisk
from tests.gateway.rollout.plans import numbers, plan
from tests.gateway.rollout.test_store_sync import CANARY, PLAN, connect, gateway, run, started, wait_for_phase
from tests.gateway.scripted import eventually

LONG_PLAN = replace(plan(50, 100, seconds=3600), stable=TAG, canary=CANARY)
BAD = numbers("stable", 300) + numbers("canary", 300, errors=200)


async def promoted(sync: StoreSync) -> None:
    def forward(state: State | None, now_s: float) -> State:
        assert state is not None
        return promote(state, "forward", now_s)

    await sync.change(forward)


async def test_a_lost_disk_forbids_no_rollback(store: Path, tmp_path: Path, stack: AsyncExitStack) -> None:
    path = tmp_path / "rollout.json"
    sync, traffic = gateway(store, FileStore(path))
    await run(sync, stack)
    await sync.set(PLAN)
    await sync.change(started)
    disk = LostDisk(path)
    with pytest.raises(Unavailable, match="cannot be written"):
        await promoted(sync)
    assert CANARY in traffic.offered
    view = await sync.roll_back("It must leave.")
    assert view.state is not None
    assert (view.state.phase, view.is_unconfirmed, view.store_reachable) == (Phase.ROLLED_BACK, True, False)
    assert CANARY not in traffic.offered
    assert (await sync.roll_back("Again.")).is_unconfirmed  # still so, and no error
    disk.restore()
    await eventually(lambda: not sync.view.is_unconfirmed and sync.view.store_reachable)
    stored = (await FileStore(path).read()).state
    assert stored is not None
    assert (stored.phase, stored.changes[-1].reason) == (Phase.ROLLED_BACK, "It must leave.")
    assert os.listdir(tmp_path) == ["rollout.json"]


async def test_a_lost_disk_does_not_blind_the_guard(store: Path, tmp_path: Path, stack: AsyncExitStack) -> None:
    path = tmp_path / "rollout.json"
    sync, traffic = gateway(store, FileStore(path))
    await run(sync, stack)
    await sync.set(LONG_PLAN)
    state = (await sync.change(started)).state
    assert state is not None
    disk = LostDisk(path)
    traffic.add_counts(state.window, BAD)
    await wait_for_phase(sync, Phase.ROLLED_BACK)
    disk.restore()
    await eventually(lambda: not sync.view.is_unconfirmed)


async def test_without_redis_a_gateway_rolls_back_and_tells_the_others_later(
    store: Path, redis: RedisServer, stack: AsyncExitStack
) -> None:
    (one, traffic), (other, _) = (gateway(store, connect(redis, stack)) for _ in range(2))
    for sync in (one, other):
        await run(sync, stack)
    await one.set(LONG_PLAN)
    await one.change(started)
    await wait_for_phase(other, Phase.RUNNING)
    redis.kill()
    with structlog.testing.capture_logs() as logs:
        view = await one.roll_back("It must leave.")
        assert (view.is_unconfirmed, view.store_reachable) == (True, False)
        assert traffic.offered == (TAG,)
        await asyncio.sleep(0.5)  # many ticks
        redis.start()  # empty
        await wait_for_phase(other, Phase.ROLLED_BACK)
        await eventually(lambda: not one.view.is_unconfirmed)
    assert other.view.state is not None
    assert [change.event for change in other.view.state.changes] == ["set", "started", "rolled_back"]
    assert [line["event_kind"] for line in logs if line["event"] == "rollout decision"] == ["rolled_back"]
    assert len([line for line in logs if line["event"] == "rollout store unreachable"]) <= 4  # two a gateway


async def test_a_guard_without_redis_judges_its_own_requests(
    store: Path, redis: RedisServer, stack: AsyncExitStack
) -> None:
    sync, traffic = gateway(store, connect(redis, stack))
    await run(sync, stack)
    await sync.set(LONG_PLAN)
    state = (await sync.change(started)).state
    assert state is not None
    redis.kill()
    await eventually(lambda: not sync.view.store_reachable)
    traffic.add_counts(state.window, numbers("stable", 300) + numbers("canary", 300))
    await asyncio.sleep(0.2)
    assert sync.view.state is not None
    assert sync.view.state.phase is Phase.RUNNING  # a good canary stays, and never advances
    traffic.add_counts(state.window, BAD)
    await wait_for_phase(sync, Phase.ROLLED_BACK)


async def test_a_rollback_without_redis_survives_a_restart(
    store: Path, redis: RedisServer, stack: AsyncExitStack, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.json"
    hasty = RedisStore(redis.url, timeout_s=1)
    stack.push_async_callback(hasty.close)
    (first, _), (other, _) = gateway(store, hasty, FileStore(copy)), gateway(store, connect(redis, stack))
    await first.set(LONG_PLAN)
    await first.change(started)
    await other.open()
    async with AsyncExitStack() as until_it_dies:
        await run(first, until_it_dies)
        redis.freeze()
        await first.roll_back("It must leave.")
        await eventually(lambda: b"is_unconfirmed" in copy.read_bytes())
    redis.thaw()
    await other.change(lambda state, _: replace(started_state(state), step_started_s=1))  # goes on meanwhile
    second, traffic = gateway(store, connect(redis, stack), FileStore(copy))
    await second.open()
    assert traffic.offered == (TAG,)
    await run(other, stack)
    await wait_for_phase(other, Phase.ROLLED_BACK)
    assert not second.view.is_unconfirmed


def started_state(state: State | None) -> State:
    assert state is not None
    return state


async def test_a_rollback_of_a_rollout_that_others_ended_is_refused(
    store: Path, redis: RedisServer, stack: AsyncExitStack
) -> None:
    """The gateway has not heard of it yet."""
    (one, traffic), (other, _) = (gateway(store, connect(redis, stack)) for _ in range(2))
    await one.set(PLAN)
    await one.change(started)
    await promoted(other)
    with pytest.raises(FailedPrecondition) as raised:
        await one.roll_back("It must leave.")
    assert raised.value.reason == "NO_ROLLOUT"
    assert traffic.in_force == CANARY


async def test_a_rollback_beats_a_step_that_another_gateway_ends_meanwhile(
    store: Path, redis: RedisServer, stack: AsyncExitStack
) -> None:
    (one, _), (other, _) = (gateway(store, connect(redis, stack)) for _ in range(2))
    await one.set(LONG_PLAN)
    await one.change(started)
    await other.change(lambda state, _: replace(started_state(state), step=1))
    view = await one.roll_back("It must leave.")
    assert view.state is not None
    assert (view.state.phase, view.state.step, view.is_unconfirmed) == (Phase.ROLLED_BACK, 1, False)


async def test_a_gateway_that_knows_no_rollout_cannot_roll_back_without_its_store(
    store: Path, redis: RedisServer, stack: AsyncExitStack
) -> None:
    sync, _ = gateway(store, RedisStore(redis.url, timeout_s=0.5))
    redis.kill()
    with pytest.raises(Unavailable) as raised:
        await sync.roll_back("It must leave.")
    assert raised.value.reason == "ROLLOUT_STORE_UNREACHABLE"
