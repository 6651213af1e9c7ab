"""Ratings of answers, through gateways with scripted stages."""

import asyncio
import math
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer

from gateway.rollout.feedback import Feedback
from gateway.rollout.policy.choice import takes_canary
from gateway.rollout.store import FileStore
from gateway.rollout.traffic import Choice, Traffic
from tandem.v1 import gateway_pb2, rollout_pb2
from tests.gateway.redis_server import RedisServer
from tests.gateway.rollout.live_gateway import CANARY, STABLE, LiveGateway, open_gateway
from tests.gateway.rollout.test_rollouts import NEARLY_ALL, ROLLED_BACK, RUNNING, wait_for_counts
from tests.gateway.scripted import Answer, ask, error_of, read


async def ask_as(live: LiveGateway, request_id: str, key: str = "", *metadata: tuple[str, str]) -> Answer:
    call = live.gateway.Generate(
        ask("What is it?", routing_key=key), metadata=(("x-request-id", request_id), *metadata)
    )
    return await read(call)


def rate(live: LiveGateway, request_id: str, score: float = -1, *metadata: tuple[str, str], label: str = "") -> Any:
    request = gateway_pb2.FeedbackRequest(request_id=request_id, score=score, label=label)
    return live.gateway.Feedback(request, metadata=metadata)


async def test_ratings_of_both_kinds_are_counted_by_release(live: LiveGateway) -> None:
    await live.set(NEARLY_ALL, 100)
    await live.wait_for_phase(RUNNING)
    for number, score in enumerate((-1, -0.5, 0, 1)):
        await ask_as(live, f"r{number}")
        assert (await rate(live, f"r{number}", score, label="wrong-colour")).counted
    await wait_for_counts(live, rated=4, disliked=2)


async def test_only_the_first_rating_of_an_answer_counts(live: LiveGateway) -> None:
    await live.set(NEARLY_ALL, 100)
    await live.wait_for_phase(RUNNING)
    await ask_as(live, "once")
    assert [(await rate(live, "once")).counted for _ in range(3)] == [True, False, False]
    await wait_for_counts(live, rated=1, disliked=1)


@pytest.mark.parametrize(
    ("request_id", "score", "label", "reason"),
    [
        ("unknown", 1, "", "UNKNOWN_REQUEST"),
        ("", 1, "", "UNKNOWN_REQUEST"),
        ("known", 1.5, "", "BAD_SCORE"),
        ("known", math.nan, "", "BAD_SCORE"),
        ("known", math.inf, "", "BAD_SCORE"),
        ("known", 1, "two words", "BAD_LABEL"),
        ("known", 1, "x" * 65, "BAD_LABEL"),
    ],
)
async def test_a_bad_rating_is_a_typed_error(
    live: LiveGateway, request_id: str, score: float, label: str, reason: str
) -> None:
    await ask_as(live, "known")
    assert (await error_of(rate(live, request_id, score, label=label))).reason == reason


KEYS = """[[tenants]]
name = "{name}"
key_sha256 = ["{digest}"]
requests_per_minute = {rate}
"""


async def test_a_tenant_rates_its_own_answers_at_its_own_rate(
    two_releases: Path, tokenizer: Tokenizer, write_keys: Callable[..., Path]
) -> None:
    entries = [
        KEYS.format(name=name, digest=sha256(f"key-{name}".encode()).hexdigest(), rate=rate)
        for name, rate in (("acme", 2), ("other", 100))
    ]
    async with open_gateway(two_releases, tokenizer, keys=write_keys(*entries)) as live:
        acme, other = (("authorization", f"Bearer key-{name}") for name in ("acme", "other"))
        await ask_as(live, "mine", "", acme)
        assert (await error_of(rate(live, "mine", -1, other))).reason == "UNKNOWN_REQUEST"
        assert (await rate(live, "mine", -1, acme)).counted
        assert (await error_of(rate(live, "mine", -1, acme))).reason == "REQUEST_RATE"


async def test_a_rating_may_arrive_at_another_gateway(two_releases: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        shared = {"rollout_redis": server.url}
        async with (
            open_gateway(two_releases, tokenizer, **shared) as one,
            open_gateway(two_releases, tokenizer, **shared) as other,
        ):
            await one.set(NEARLY_ALL, 100)
            await one.wait_for_phase(RUNNING)
            await other.wait_for_phase(RUNNING)
            await ask_as(one, "shared")
            async with asyncio.timeout(20):
                while not server.client.keys("*:text:*"):  # noqa: ASYNC110  (told with the next tick)
                    await asyncio.sleep(0.02)
            assert (await rate(other, "shared")).counted
            assert not (await rate(one, "shared")).counted
            await wait_for_counts(one, rated=1, disliked=1)
            stored = str([server.client.hgetall(key) for key in server.client.keys("*counts*")])
            assert "anonymous" not in stored
            assert "shared" not in stored


async def test_disliked_answers_roll_a_canary_back(
    two_releases: Path, tokenizer: Tokenizer, write_keys: Callable[..., Path]
) -> None:
    """Ten tenants like stable's answers and dislike the canary's."""
    names = [f"tenant-{number}" for number in range(10)]
    entries = [KEYS.format(name=name, digest=sha256(name.encode()).hexdigest(), rate=10_000) for name in names]
    operator = KEYS.format(name="op", digest=sha256(b"op").hexdigest(), rate=10_000) + 'role = "operator"\n'
    async with open_gateway(two_releases, tokenizer, keys=write_keys(operator, *entries)) as live:
        steps = [rollout_pb2.RolloutStep(weight_percent=weight, seconds=3600) for weight in (50, 100)]
        guard = rollout_pb2.RolloutGuard(max_dislike_increase=0.05, min_requests=20, overdue_s=60)
        plan = rollout_pb2.RolloutPlan(canary=CANARY, steps=steps, guard=guard)
        as_operator = (("authorization", "Bearer op"),)
        set_request = rollout_pb2.RolloutsSetRequest(plan=plan)
        rollout = (await live.operator.Set(set_request, metadata=as_operator)).rollout
        async with asyncio.timeout(60):
            for number in range(2000):
                tenant = ("authorization", f"Bearer {names[number % 10]}")
                await ask_as(live, f"r{number}", f"user-{number}", tenant)
                on_canary = takes_canary(f"user-{number}", rollout.id, 50)
                await rate(live, f"r{number}", -1 if on_canary else 1, tenant)
                got = await live.operator.Get(rollout_pb2.RolloutsGetRequest(), metadata=as_operator)
                if got.rollout.phase == ROLLED_BACK:
                    break
        assert "The canary's feedback is beyond its bound" in got.rollout.changes[-1].reason
        assert got.rollout.in_force == STABLE


async def test_answers_that_the_store_cannot_take_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store can be away for hours."""
    monkeypatch.setattr("gateway.rollout.feedback._MAX_REMEMBERED", 10)
    feedback, kept = Feedback(Traffic(SimpleNamespace(default_name=STABLE))), KeptTexts(None)  # type: ignore[arg-type]
    feedback.open(kept)
    release = SimpleNamespace(name=STABLE)
    for number in range(50):
        feedback.remember("acme", f"r{number}", Choice(release=release, arm="stable", window="r/0"))  # type: ignore[arg-type]
    await feedback.share()
    assert len(kept.texts) == 10


class KeptTexts(FileStore):
    """A store that shows which texts it got."""

    texts: Mapping[str, str] = {}

    async def remember(self, texts: Mapping[str, str], seconds: float) -> None:
        self.texts = dict(texts)
