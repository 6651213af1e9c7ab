"""Mirrored requests are counted and invisible to clients."""

import asyncio
from pathlib import Path

from tokenizers import Tokenizer

from chassis.errors import Internal
from tandem.v1 import rollout_pb2
from tests.gateway.rollout.live_gateway import CANARY, STABLE, LiveGateway, open_gateway

RUNNING = rollout_pb2.ROLLOUT_PHASE_RUNNING


async def test_mirrored_answers_are_compared_but_not_sent_to_the_client(live: LiveGateway) -> None:
    await live.set(0, 50, 100, shadow_percent=100)
    await live.wait_for_phase(RUNNING)
    assert {(await live.ask(f"user-{number}")).text for number in range(5)} == {"stable"}
    live.language.answers[CANARY] = live.language.answers[STABLE]
    assert {(await live.ask(f"user-{number}")).text for number in range(7)} == {"stable"}
    await wait_for_mirrored(live, compared=12, equal=7, dropped=0)
    assert {start.priority for start in live.language.starts if start.tag == CANARY} == {-100}
    rollout = await live.get()
    assert (rollout.shadow.counts.requests, rollout.stable.requests, rollout.canary.requests) == (12, 12, 0)
    assert rollout.shadow.first_token_s > rollout.shadow.inter_token_s > 0


async def wait_for_mirrored(live: LiveGateway, **expected: int) -> None:
    """Wait until the counts of mirrored requests are as expected."""
    await live.wait_until(lambda rollout: {name: getattr(rollout.shadow, name) for name in expected} == expected)


async def test_a_canary_that_fails_or_hangs_does_not_affect_the_real_requests(
    two_releases: Path, tokenizer: Tokenizer
) -> None:
    async with open_gateway(two_releases, tokenizer, rollout_mirror_max_running=3) as live:
        await live.set(0, 50, 100, shadow_percent=100)
        await live.wait_for_phase(RUNNING)
        live.language.errors[CANARY] = Internal("The decoder failed.")
        assert (await live.ask("user")).text == "stable"
        await wait_for_one_mirrored_error(live)
        del live.language.errors[CANARY]
        live.language.go[CANARY].clear()
        async with asyncio.timeout(20):
            assert {(await live.ask(f"user-{number}")).text for number in range(10)} == {"stable"}
        await wait_for_mirrored(live, dropped=7, compared=0)
        assert (await live.get()).shadow.counts.errors == 1


async def test_a_malformed_mirrored_answer_counts_as_an_error(live: LiveGateway) -> None:
    """An unexpected failure must be counted, too."""
    await live.set(0, 50, 100, shadow_percent=100)
    await live.wait_for_phase(RUNNING)
    live.language.malformed.add(CANARY)
    assert (await live.ask("user")).text == "stable"
    await wait_for_one_mirrored_error(live)


async def wait_for_one_mirrored_error(live: LiveGateway) -> None:
    """Wait until one mirrored request has failed."""
    await live.wait_until(lambda rollout: rollout.shadow.counts.errors == 1)
