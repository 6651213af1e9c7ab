"""A routing key counts once over all gateways of a store."""

import asyncio
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from chassis.deadline import Deadline
from chassis.errors import Internal, Unavailable
from gateway.answer.report import Report
from gateway.rollout import shared_evidence
from gateway.rollout.policy.choice import takes_canary
from gateway.rollout.policy.evidence import MAX_AIMED_SHARE
from gateway.rollout.shared_evidence import SharedEvidence
from gateway.rollout.store import KeyUse
from gateway.rollout.traffic import Traffic
from tests.gateway.redis_server import RedisServer
from tests.gateway.rollout.test_store_sync import PATIENCE_S, PLAN, connect, gateway, started

NUM_GATEWAYS = 4


async def use(traffic: Traffic, key: str, caller: str, *, fails: bool = False) -> None:
    """Send one request, which may count as an error."""
    with suppress(Internal):
        async with traffic.route(key, None, deadline=Deadline.after(60), report=Report(), caller=caller):
            if fails:
                raise Internal("It fails.", reason="LANGUAGE_FAILED")


async def test_a_key_is_new_to_one_of_several_gateways(redis: RedisServer, stack: AsyncExitStack) -> None:
    stores = [connect(redis, stack) for _ in range(NUM_GATEWAYS)]
    uses = await asyncio.gather(*(store.use_key("r", "key", "one") for store in stores))
    assert sorted(use.is_first for use in uses) == [False, False, False, True]
    assert not any(use.has_other_callers for use in uses)
    assert await stores[0].use_key("r", "another", "other") == KeyUse(is_first=True, has_other_callers=True)
    assert await stores[1].use_key("next", "key", "one") == KeyUse(is_first=True, has_other_callers=False)


async def test_the_keys_of_a_rollout_take_four_mebibytes_and_expire(redis: RedisServer, stack: AsyncExitStack) -> None:
    store = connect(redis, stack)
    for number in range(200):
        await store.use_key("r", f"key {number}", f"caller {number}")
    assert redis.client.strlen("{tandem:rollout}:keys:r") <= 4 * 2**20
    assert redis.client.scard("{tandem:rollout}:callers:r") == 2
    for name in redis.client.scan_iter():
        assert 0 < redis.client.ttl(name) <= 7 * 24 * 3600


async def test_a_known_key_cannot_be_used_at_another_gateway(
    store: Path, redis: RedisServer, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every later request of a key can be aimed."""
    monkeypatch.setattr(shared_evidence, "LIMIT_S", PATIENCE_S)
    gateways = []
    for _ in range(NUM_GATEWAYS):
        rollouts = connect(redis, stack)
        gateways.append(gateway(store, rollouts))
        gateways[-1][1].share_keys(rollouts.use_key)
    await gateways[0][0].set(PLAN)
    state = (await gateways[0][0].change(started)).state
    assert state is not None
    for sync, _ in gateways[1:]:
        await sync.open()
    keys = (f"key {number}" for number in range(1000))
    on_stable = [key for key in keys if not takes_canary(key, state.id, 50)]
    for _, traffic in gateways:
        await use(traffic, on_stable.pop(), "honest")
    for number, key in enumerate(on_stable):
        for index, (_, traffic) in enumerate(gateways):
            # After the first gateway, the attacker knows the release of the key.
            await use(traffic, key, f"hostile {number % 3}", fails=index > 0)
    counts = [traffic.drain_counts() for _, traffic in gateways]
    requests = sum(one.number("stable", "requests") for one in counts)
    errors = sum(one.number("stable", "errors") for one in counts)
    assert requests >= len(on_stable)
    assert errors <= MAX_AIMED_SHARE * requests


async def test_a_store_that_hangs_or_fails_delays_few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then every gateway knows its own keys alone."""
    monkeypatch.setattr(shared_evidence, "LIMIT_S", 0.01)
    asked: list[str] = []

    async def hang(rollout_id: str, routing_key: str, caller: str) -> KeyUse:
        asked.append(routing_key)
        await asyncio.Event().wait()
        raise AssertionError

    async def fail(rollout_id: str, routing_key: str, caller: str) -> KeyUse:
        asked.append(routing_key)
        raise Unavailable("It is gone.", reason="ROLLOUT_STORE_UNREACHABLE")

    for use_key in (hang, fail):
        evidence = SharedEvidence()
        evidence.share(use_key)
        asked.clear()
        monkeypatch.setattr(shared_evidence, "_PAUSE_S", 3600)
        for number in range(50):
            assert await evidence.counts("stable", "r", f"key {number}", "one")
        assert asked == ["key 0"]
        await evidence.counts("stable", "r", "key 0", "two")
        assert not await evidence.counts("stable", "r", "key 0", "two")
