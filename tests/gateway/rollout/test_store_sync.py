"""Several gateways on one store act as one."""

import asyncio
import json
import threading
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from chassis.deadline import Deadline
from chassis.errors import FailedPrecondition, Unavailable
from checkpoint.store import ModelStore
from gateway.answer.report import Report
from gateway.rollout.policy.choice import takes_canary
from gateway.rollout.policy.controller import promote, roll_back, start
from gateway.rollout.policy.plan import Step
from gateway.rollout.policy.state import Phase, State
from gateway.rollout.redis_store import RedisStore
from gateway.rollout.store import FileStore, RolloutStore
from gateway.rollout.store_sync import StoreSync
from gateway.rollout.traffic import Traffic
from gateway.stages.releases import Releases, open_release
from tests.gateway.halves import TAG
from tests.gateway.redis_server import RedisServer
from tests.gateway.rollout.plans import numbers, plan
from tests.gateway.scripted import eventually

CANARY = "tiny-v1.1.0"
PLAN = replace(plan(50, 100, seconds=0), stable=TAG, canary=CANARY)

PATIENCE_S = 20.0  # for a busy machine


def gateway(store: Path, rollouts: RolloutStore, local_copy: FileStore | None = None) -> tuple[StoreSync, Traffic]:
    """Return the rollout parts of a gateway without stages."""
    models = ModelStore(store)
    traffic = Traffic(Releases(models, open_release(models, TAG), vision=None, language=None))  # type: ignore[arg-type]
    return StoreSync(rollouts, traffic, local_copy=local_copy, tick_s=0.01), traffic


def connect(redis: RedisServer, stack: AsyncExitStack) -> RedisStore:
    """Return a store that is closed when the test ends."""
    store = RedisStore(redis.url, timeout_s=PATIENCE_S)
    stack.push_async_callback(store.close)
    return store


async def run(sync: StoreSync, stack: AsyncExitStack) -> None:
    """Run a sync until the test ends."""
    task = asyncio.create_task(sync.run())
    stack.callback(task.cancel)


def started(state: State | None, now_s: float) -> State:
    assert state is not None
    return start(state, now_s)


async def wait_for_phase(sync: StoreSync, phase: Phase) -> None:
    await eventually(lambda: sync.view.state is not None and sync.view.state.phase is phase)


async def test_five_gateways_add_up_their_counts_and_one_decides(
    store: Path, redis: RedisServer, stack: AsyncExitStack
) -> None:
    """Only together do they have enough requests."""
    gateways = [gateway(store, connect(redis, stack)) for _ in range(5)]
    with structlog.testing.capture_logs() as logs:
        for sync, _ in gateways:
            await run(sync, stack)
        await gateways[0][0].set(PLAN)
        await gateways[1][0].change(started)
        await asyncio.gather(*(wait_for_phase(sync, Phase.RUNNING) for sync, _ in gateways))
        for sync, traffic in gateways:
            state = sync.view.state
            assert state is not None
            traffic.add_counts(state.window, numbers("stable", 300) + numbers("canary", 300))
        await asyncio.gather(*(wait_for_phase(sync, Phase.PROMOTED) for sync, _ in gateways))
    decided = [line["event_kind"] for line in logs if line["event"] == "rollout decision"]
    assert [kind for kind in decided if kind != "held"] == ["set", "started", "advanced", "promoted"]
    assert {traffic.in_force for _, traffic in gateways} == {CANARY}


async def test_requests_that_wait_at_one_gateway_are_counted_at_the_others(
    store: Path, redis: RedisServer, stack: AsyncExitStack
) -> None:
    (one, traffic), (other, _) = (gateway(store, connect(redis, stack)) for _ in range(2))
    for sync in (one, other):
        await run(sync, stack)
    await one.set(PLAN)
    state = (await one.change(started)).state
    assert state is not None
    keys = (f"user-{number}" for number in range(1000))
    on_stable = next(key for key in keys if not takes_canary(key, state.id, state.weight_percent))
    async with traffic.route(on_stable, None, deadline=Deadline.after(60), report=Report()):
        await eventually(lambda: other.view.counts.number("stable", "waiting") == 1)
    await eventually(
        lambda: [other.view.counts.number("stable", number) for number in ("waiting", "requests")] == [0, 1]
    )


async def test_a_canary_that_one_gateway_cannot_read_counts_as_an_error(store: Path) -> None:
    """An operator named the release, not a client."""
    sync, traffic = gateway(store, FileStore(None))
    await sync.set(PLAN)
    state = (await sync.change(started)).state
    assert state is not None
    keys = (f"user-{number}" for number in range(1000))
    on_canary = next(key for key in keys if takes_canary(key, state.id, state.weight_percent))
    with pytest.raises(FailedPrecondition) as raised:
        async with traffic.route(on_canary, None, deadline=Deadline.after(60), report=Report()):
            pass
    assert raised.value.reason == "UNKNOWN_TAG"
    assert traffic.drain_counts().number("canary", "errors") == 1


async def test_of_a_concurrent_promotion_and_rollback_one_is_refused(
    store: Path, redis: RedisServer, stack: AsyncExitStack
) -> None:
    (one, _), (other, _) = (gateway(store, connect(redis, stack)) for _ in range(2))
    await one.set(PLAN)
    await one.change(started)

    def forward(state: State | None, now_s: float) -> State:
        assert state is not None
        return promote(state, "forward", now_s)

    def back(state: State | None, now_s: float) -> State:
        assert state is not None
        return roll_back(state, "back", now_s)

    results = await asyncio.gather(one.change(forward), other.change(back), return_exceptions=True)
    assert sum(isinstance(result, FailedPrecondition) for result in results) == 1
    last = json.loads(redis.client.hget("{tandem:rollout}:state", "state") or b"")["changes"]
    assert len(last) == 3


async def test_a_store_that_lost_its_data_is_restored_and_the_rollout_stays(
    store: Path, redis: RedisServer, stack: AsyncExitStack
) -> None:
    sync, traffic = gateway(store, connect(redis, stack))
    await run(sync, stack)
    await sync.set(PLAN)
    await sync.change(started)
    before = sync.view.state
    redis.client.flushall()
    await eventually(lambda: redis.client.exists("{tandem:rollout}:state") == 1)
    assert sync.view.state == before
    assert traffic.offered == (TAG, CANARY)


async def test_of_two_states_with_one_version_the_stored_one_wins(
    store: Path, redis: RedisServer, stack: AsyncExitStack
) -> None:
    """A store that lost a change may get another one.

    All gateways must adopt the stored one.
    """
    (one, _), (other, _) = (gateway(store, connect(redis, stack)) for _ in range(2))
    await one.set(PLAN)
    redis.client.flushall()
    await other.set(PLAN)
    await run(one, stack)
    await eventually(lambda: one.view.state == other.view.state)


async def test_a_command_completes_although_its_caller_is_cancelled(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else file and gateway would differ until the next start."""
    writing, go_on = threading.Event(), threading.Event()

    def slow_fsync(_descriptor: int) -> None:
        writing.set()
        assert go_on.wait(PATIENCE_S)

    monkeypatch.setattr("os.fsync", slow_fsync)
    sync, _ = gateway(store, FileStore(tmp_path / "rollout.json"))
    command = asyncio.create_task(sync.set(PLAN))
    await asyncio.to_thread(writing.wait, PATIENCE_S)
    command.cancel()
    await asyncio.wait([command])
    go_on.set()
    await wait_for_phase(sync, Phase.PREPARING)
    assert (await FileStore(tmp_path / "rollout.json").read()).state == sync.view.state


async def test_while_the_store_is_unreachable_the_rollout_stays_and_commands_fail(
    store: Path, redis: RedisServer, stack: AsyncExitStack
) -> None:
    sync, traffic = gateway(store, connect(redis, stack))
    await run(sync, stack)
    await sync.set(PLAN)
    await sync.change(started)
    redis.kill()
    await eventually(lambda: not sync.view.store_reachable)
    state = sync.view.state
    assert state is not None
    assert state.phase is Phase.RUNNING
    traffic.add_counts(state.window, numbers("canary", 5))
    with pytest.raises(Unavailable):
        await sync.change(started)
    redis.start()
    await eventually(lambda: sync.view.counts.number("canary", "requests") == 5)  # counts from before are not lost


async def test_a_gateway_whose_clock_is_ahead_ends_no_step_early(
    store: Path, redis: RedisServer, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one, traffic), (other, _) = (gateway(store, connect(redis, stack)) for _ in range(2))
    await one.set(replace(PLAN, steps=(Step(weight_percent=5, seconds=600), *PLAN.steps)))
    state = (await one.change(started)).state
    assert state is not None
    traffic.add_counts(state.window, numbers("stable", 300) + numbers("canary", 300))
    now = time.time
    monkeypatch.setattr("time.time", lambda: now() + 3600)  # of both gateways, as a step began before
    for sync in (one, other):
        await run(sync, stack)
    await eventually(lambda: other.view.counts.number("canary", "requests") == 300)
    await asyncio.sleep(1)  # many ticks
    assert [sync.view.state.step for sync in (one, other) if sync.view.state is not None] == [0, 0]


async def test_a_gateway_whose_clock_is_behind_ends_a_step_in_time(
    store: Path, redis: RedisServer, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, traffic = gateway(store, connect(redis, stack))
    await sync.set(replace(PLAN, steps=(Step(weight_percent=5, seconds=1), *PLAN.steps)))
    state = (await sync.change(started)).state
    assert state is not None
    traffic.add_counts(state.window, numbers("stable", 300) + numbers("canary", 300))
    now = time.time
    monkeypatch.setattr("time.time", lambda: now() - 3600)
    await run(sync, stack)
    began = time.monotonic()
    await eventually(lambda: sync.view.state is not None and sync.view.state.step > 0)
    assert time.monotonic() - began >= 0.9


async def test_without_its_store_a_gateway_starts_with_its_local_copy(
    store: Path, redis: RedisServer, stack: AsyncExitStack, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.json"
    first, _ = gateway(store, connect(redis, stack), FileStore(copy))
    await run(first, stack)
    await first.set(PLAN)
    await first.change(started)
    async with asyncio.timeout(PATIENCE_S):
        while (await FileStore(copy).read()).version != first.version:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    redis.kill()
    second, traffic = gateway(store, connect(redis, stack), FileStore(copy))
    with structlog.testing.capture_logs() as logs:
        await second.open()
    assert any(line["event"] == "serving the last known rollout" for line in logs)
    assert second.view.state == first.view.state
    assert traffic.offered == (TAG, CANARY)


async def test_corrupt_state_in_the_store_changes_nothing_for_running_gateways(
    store: Path, redis: RedisServer, stack: AsyncExitStack
) -> None:
    sync, _ = gateway(store, connect(redis, stack))
    await run(sync, stack)
    await sync.set(PLAN)
    before = sync.view.state
    redis.client.hset("{tandem:rollout}:state", "state", "nonsense")
    await eventually(lambda: not sync.view.store_reachable)
    assert sync.view.state == before
    with pytest.raises(FailedPrecondition) as raised:
        await sync.change(started)
    assert raised.value.reason == "BAD_ROLLOUT_STATE"
    starting, _ = gateway(store, connect(redis, stack))
    with pytest.raises(FailedPrecondition):
        await starting.open()
