"""Clients try to roll a healthy canary back."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from tokenizers import Tokenizer

from chassis.errors import Internal
from gateway.rollout.policy.evidence import MAX_AIMED_SHARE
from tandem.v1 import rollout_pb2
from tests.gateway.conftest import tokenizer
from tests.gateway.rollout.conftest import two_releases
from tests.gateway.rollout.live_gateway import CANARY, STABLE, LiveGateway, open_gateway
from tests.gateway.scripted import ask, error_of

__all__ = ["tokenizer", "two_releases"]

RUNNING, ROLLED_BACK = rollout_pb2.ROLLOUT_PHASE_RUNNING, rollout_pb2.ROLLOUT_PHASE_ROLLED_BACK
ATTACKS = 60  # the guard looks after 20 requests of each release


@pytest.fixture
async def live(two_releases: Path, tokenizer: Tokenizer) -> AsyncIterator[LiveGateway]:
    """Yield a gateway with a canary at 50 %."""
    async with open_gateway(two_releases, tokenizer) as live:
        await live.set(50, 100, overdue_s=1)
        await live.wait_for_phase(RUNNING)
        yield live


async def counted(live: LiveGateway) -> tuple[int, int]:
    """Return the canary's counted requests and errors."""
    await asyncio.sleep(0.2)  # ticks of the gateway
    rollout = await live.get()
    assert rollout.phase == RUNNING
    return rollout.canary.requests, rollout.canary.errors


async def test_deadlines_that_no_release_can_meet_are_no_errors(live: LiveGateway) -> None:
    for tag in (STABLE, CANARY):
        live.language.go[tag].clear()
    calls = [live.gateway.Generate(ask("What is it?"), timeout=0.3) for _ in range(ATTACKS)]
    for call in calls:
        assert (await error_of(call.read())).code.name == "DEADLINE_EXCEEDED"
    assert (await counted(live))[1] == 0


async def test_answers_that_nobody_reads_are_not_overdue(live: LiveGateway) -> None:
    """A message that waits for its client stops the clock."""
    for tag in (STABLE, CANARY):
        live.language.answers[tag] = [65] * 100_000  # more than a connection buffers
    calls = [live.gateway.Generate(ask("What is it?", routing_key=f"key {number}")) for number in range(4)]
    await asyncio.sleep(3)  # seconds, of which one makes a request overdue that its release delays
    assert await counted(live) == (0, 0)
    for call in calls:
        call.cancel()


async def test_a_known_key_cannot_be_used_again_and_again(live: LiveGateway) -> None:
    """Its first request could not be aimed, all others could."""
    on_canary = [f"key {number}" for number in range(300) if (await live.ask(f"key {number}")).text == "canary"]
    assert len(on_canary) > 100
    before = await counted(live)
    live.language.errors[CANARY] = Internal("A request of the attacker fails.", reason="LANGUAGE_FAILED")
    for number in range(ATTACKS):
        await error_of(live.gateway.Generate(ask("What is it?", routing_key=on_canary[number % 9])).read())
    requests, errors = await counted(live)
    assert errors <= MAX_AIMED_SHARE * requests
    assert requests - before[0] <= MAX_AIMED_SHARE * requests


async def test_a_canary_that_fails_everybody_still_leaves(live: LiveGateway) -> None:
    live.language.errors[CANARY] = Internal("It fails.", reason="LANGUAGE_FAILED")

    async def one(number: int) -> None:
        call = live.gateway.Generate(ask("What is it?", routing_key=f"user {number}"))
        try:
            async for _ in call:
                pass
        except grpc.RpcError:
            pass

    for start in range(0, 400, 40):
        await asyncio.gather(*(one(start + number) for number in range(40)))
        if (await live.get()).phase == ROLLED_BACK:
            break
    await live.wait_for_phase(ROLLED_BACK)
