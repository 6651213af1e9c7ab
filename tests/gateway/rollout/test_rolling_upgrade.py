"""Gateways of two versions share a rollout, whichever is newer."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from chassis.background import in_background
from gateway.rollout.policy import Counts, Phase
from gateway.rollout.redis_store import RedisStore
from gateway.rollout.store import FileStore, StepTotals
from gateway.rollout.store_sync import StoreSync
from gateway.rollout.stored_format import Document, Heartbeat, read_document, read_heartbeat, state_value
from gateway.rollout.traffic import Traffic
from tests.gateway.halves import TAG
from tests.gateway.redis_server import RedisServer
from tests.gateway.rollout.plans import numbers, plan
from tests.gateway.rollout.test_store_sync import CANARY, connect, gateway, run, started, wait_for_phase
from tests.gateway.rollout.test_stored_format import FILE, STATE
from tests.gateway.scripted import eventually

PLAN = replace(plan(20, 50, 100, seconds=0.2), stable=TAG, canary=CANARY)
GATEWAYS = "{tandem:rollout}:gateways"
# One unknown part in each place that a later version may extend.
NEWER = (
    (("paused",), {"until": 9}),
    (("looks", "spent"), 0.5),
    (("plan", "owner"), "somebody"),
    (("plan", "guard", "max_rudeness_increase"), 0.01),
    (("plan", "steps", 1, "region"), "north"),
)


class NewerStore(RedisStore):
    """The store as the next version writes and reads it.

    Its gateways report, count and remember more than this version knows.
    """

    async def read(self) -> Document:
        document = await super().read()
        return Document(version=document.version, state=document.state)  # nothing is unknown to it

    async def heartbeat(self, own: Heartbeat) -> list[Heartbeat]:
        living = await super().heartbeat(own)
        beat = own.model_dump(mode="json")
        beat |= {"build": "9.0", "waiting": beat["waiting"] | {"third": 1}}
        time_s, _ = await self._client.commands.time()
        await self._client.commands.hset(GATEWAYS, own.gateway, f"{time_s} {json.dumps(beat)}")
        return living

    async def add(self, window: str, counts: Counts) -> StepTotals:
        await self._client.commands.hincrby(f"{{tandem:rollout}}:counts:{window}", "canary/rude", 1)
        return await super().add(window, counts)

    async def compare_and_set(self, expected_version: int, document: Document) -> bool:
        known = [(path, value) for path, value in NEWER if path[:2] != ("plan", "guard")]
        return await super().compare_and_set(
            expected_version, Document(version=document.version, state=document.state, unknown=tuple(known))
        )


def with_newer_parts(state: str) -> Any:
    value = json.loads(state)
    for path, part in NEWER:
        parent = value
        for name in path[:-1]:
            parent = parent[name]
        parent[path[-1]] = part
    return value


def bad_entries(kind: str) -> float:
    return REGISTRY.get_sample_value("tandem_rollout_bad_entries_total", {"kind": kind}) or 0


def test_unknown_parts_of_a_state_are_counted_and_written_back() -> None:
    before = bad_entries("state")
    document = read_document(7, with_newer_parts(STATE))
    assert bad_entries("state") == before + len(NEWER)
    assert document.state == read_document(7, json.loads(STATE)).state
    assert state_value(document) == with_newer_parts(STATE)


def test_unknown_kinds_of_changes_and_findings_are_left_out_of_the_history() -> None:
    value = json.loads(STATE)
    value["changes"][1]["findings"].append({**value["changes"][1]["findings"][0], "metric": "rudeness"})
    value["changes"].append({**value["changes"][0], "number": 5, "event": "paused"})
    value["changes"].append({**value["changes"][0], "number": 6, "by": "somebody"})
    before = bad_entries("change")
    document = read_document(7, value)
    assert bad_entries("change") == before + 3
    assert document.state is not None
    assert [change.number for change in document.state.changes] == [3, 4, 6]
    assert len(document.state.changes[1].findings) == 2


@pytest.mark.parametrize("damage", [{"phase": "paused"}, {"plan": None}, {"step": -1}, {"changes": []}])
def test_a_state_without_a_part_it_needs_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        read_document(7, {**json.loads(STATE), **damage})


async def test_a_file_of_a_newer_version_is_read_and_keeps_its_unknown_parts(tmp_path: Path) -> None:
    path = tmp_path / "rollout.json"
    newer = json.loads(FILE)
    newer["document"]["state"] = with_newer_parts(STATE)
    newer["counts"]["canary/mean"] = 0.5
    path.write_text(json.dumps({**newer, "checksum": "1"}))
    store = FileStore(path)
    document = await store.read()
    assert document.state is not None
    await store.compare_and_set(7, document.followed_by(replace(document.state, step=0)))
    assert json.loads(path.read_text())["document"]["state"] == {**with_newer_parts(STATE), "step": 0}


def test_a_heartbeat_that_cannot_be_read_counts_as_one_that_lags_behind() -> None:
    """Else a release that it uses would be unloaded."""
    before = bad_entries("heartbeat")
    assert read_heartbeat("a", b'{"gateway":"a","version":[9]}') == Heartbeat(gateway="a", version=0, in_use=())
    assert read_heartbeat("b", b"\xff{") == Heartbeat(gateway="b", version=0, in_use=())
    assert bad_entries("heartbeat") == before + 2


def test_a_heartbeat_with_unknown_parts_is_read() -> None:
    newer = {"gateway": "a", "version": 7, "in_use": ["r"], "waiting": {"stable": 2, "third": 1}, "build": "9.0"}
    probing = {"counts": [], "lost": [], "problem": "", "judge": "somebody"}
    assert read_heartbeat("a", json.dumps(newer)) == Heartbeat(
        gateway="a", version=7, in_use=("r",), waiting={"stable": 2}
    )
    found = read_heartbeat("a", json.dumps({**newer, "probing": probing}))
    assert found.probing is not None
    assert read_heartbeat("a", json.dumps({**newer, "probing": 5})).probing is None


async def test_a_newer_gateway_does_not_silence_the_guard(
    store: Path, redis: RedisServer, stack: AsyncExitStack
) -> None:
    sync, traffic = gateway(store, connect(redis, stack))
    await sync.set(PLAN)
    state = (await sync.change(started)).state
    assert state is not None
    redis.client.hset(GATEWAYS, "newer", '1700000000 {"gateway":"newer","version":9,"in_use":[],"build":"9.0"}')
    redis.client.hset(GATEWAYS, "damaged", "nonsense")
    newer: Any = {"canary/rude": "5", "canary/mean": "0.5", "canary/\xff": "many"}
    redis.client.hset(f"{{tandem:rollout}}:counts:{state.window}", mapping=newer)
    await run(sync, stack)
    traffic.add_counts(state.window, numbers("stable", 300) + numbers("canary", 300, errors=200))
    await wait_for_phase(sync, Phase.ROLLED_BACK)
    assert guard_age_s() < 5
    assert bad_entries("count") > 0


def guard_age_s() -> float:
    age_s = REGISTRY.get_sample_value("tandem_rollout_guard_age_seconds")
    assert age_s is not None
    return age_s


async def test_an_older_gateway_leaves_steps_to_newer_ones_and_rolls_back(
    store: Path, redis: RedisServer, stack: AsyncExitStack
) -> None:
    """It does not know all bounds of the canary."""
    sync, traffic = gateway(store, connect(redis, stack))
    await sync.set(PLAN)
    state = (await sync.change(started)).state
    assert state is not None
    value = json.loads(redis.client.hget("{tandem:rollout}:state", "state") or b"")
    value["plan"]["guard"]["max_rudeness_increase"] = 0.01
    redis.client.hset("{tandem:rollout}:state", "state", json.dumps(value))
    await run(sync, stack)
    traffic.add_counts(state.window, numbers("stable", 300) + numbers("canary", 300))
    await asyncio.sleep(1)  # the step is over
    assert sync.view.state is not None
    assert sync.view.state.step == 0
    traffic.add_counts(state.window, numbers("stable", 300) + numbers("canary", 900, errors=500))
    await wait_for_phase(sync, Phase.ROLLED_BACK)
    value = json.loads(redis.client.hget("{tandem:rollout}:state", "state") or b"")
    assert (value["phase"], value["plan"]["guard"]["max_rudeness_increase"]) == ("rolled_back", 0.01)


class Fleet:
    """Gateways on one store, which are updated one by one."""

    def __init__(self, store: Path, redis: RedisServer) -> None:
        self._store, self._redis = store, redis
        self._lives: list[AsyncExitStack] = []
        self.gateways: list[tuple[StoreSync, Traffic]] = []

    async def start(self, kind: type[RedisStore]) -> None:
        life = AsyncExitStack()
        rollouts = kind(self._redis.url, timeout_s=20)
        life.push_async_callback(rollouts.close)
        self.gateways.append(gateway(self._store, rollouts))
        self._lives.append(life)
        await life.enter_async_context(in_background(self.gateways[-1][0].run()))

    async def update(self) -> None:
        """Replace the oldest gateway by a newer one."""
        await self._lives.pop(0).aclose()
        del self.gateways[0]
        await self.start(NewerStore)
        await wait_for_phase(self.gateways[-1][0], Phase.RUNNING)

    async def close(self) -> None:
        for life in self._lives:
            await life.aclose()

    def count(self, which: int, counts: Counts) -> None:
        sync, traffic = self.gateways[which]
        assert sync.view.state is not None
        traffic.add_counts(sync.view.state.window, counts)

    async def all_see(self, requests: int) -> None:
        """Wait until every gateway knows of so many canary requests."""
        await eventually(
            lambda: all(sync.view.counts.number("canary", "requests") == requests for sync, _ in self.gateways)
        )


@pytest.fixture
async def fleet(store: Path, redis: RedisServer) -> AsyncIterator[Fleet]:
    fleet = Fleet(store, redis)
    yield fleet
    await fleet.close()


@pytest.mark.parametrize("num_errors", [0, 90])
async def test_gateways_are_updated_one_by_one_during_a_rollout(num_errors: int, fleet: Fleet) -> None:
    """All of them count, and together they decide."""
    for _ in range(3):
        await fleet.start(RedisStore)
    await fleet.gateways[0][0].set(replace(PLAN, steps=(replace(PLAN.steps[0], requests=601), *PLAN.steps[1:])))
    await fleet.gateways[0][0].change(started)
    await asyncio.gather(*(wait_for_phase(sync, Phase.RUNNING) for sync, _ in fleet.gateways))
    for total in (100, 300, 500):
        fleet.count(0, numbers("stable", 100) + numbers("canary", 100))
        await fleet.all_see(total)
        await fleet.update()
        fleet.count(-1, numbers("stable", 100) + numbers("canary", 100))
        await fleet.all_see(total + 100)
    fleet.count(0, numbers("stable", 100) + numbers("canary", 100, errors=num_errors))
    if num_errors:
        await asyncio.gather(*(wait_for_phase(sync, Phase.ROLLED_BACK) for sync, _ in fleet.gateways))
    else:
        await eventually(lambda: all(step_of(sync) == 1 for sync, _ in fleet.gateways))


def step_of(sync: StoreSync) -> int:
    return sync.view.state.step if sync.view.state is not None else 0
