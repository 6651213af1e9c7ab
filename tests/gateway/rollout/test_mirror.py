"""Mirrored requests: what a candidate does with them is counted, and noticed by nobody who asks."""

import asyncio
from pathlib import Path

from tokenizers import Tokenizer

from chassis.errors import Internal
from tandem.v1 import rollout_pb2
from tests.gateway.rollout.door import CANARY, STABLE, Door, open_door

RUNNING = rollout_pb2.ROLLOUT_PHASE_RUNNING


async def test_mirrored_requests_are_compared_and_their_answers_not_shown(door: Door) -> None:
    await door.set(0, 50, 100, shadow_percent=100)
    await door.phase(RUNNING)
    assert {(await door.ask(f"user-{number}")).text for number in range(5)} == {"stable"}
    door.language.answers[CANARY] = door.language.answers[STABLE]
    assert {(await door.ask(f"user-{number}")).text for number in range(7)} == {"stable"}
    await mirrored(door, compared=12, equal=7, dropped=0)
    assert {start.priority for start in door.language.starts if start.tag == CANARY} == {-100}
    rollout = await door.get()
    assert (rollout.shadow.counts.requests, rollout.stable.requests, rollout.canary.requests) == (12, 12, 0)
    assert rollout.shadow.first_token_s > rollout.shadow.inter_token_s > 0


async def mirrored(door: Door, **expected: int) -> None:
    """Wait until these numbers of mirrored requests are reached."""
    await door.until(lambda rollout: {name: getattr(rollout.shadow, name) for name in expected} == expected)


async def test_a_candidate_that_fails_or_hangs_is_not_noticed_by_those_it_mirrors(
    two: Path, tokenizer: Tokenizer
) -> None:
    async with open_door(two, tokenizer, rollout_mirror_max_running=3) as door:
        await door.set(0, 50, 100, shadow_percent=100)
        await door.phase(RUNNING)
        door.language.errors[CANARY] = Internal("The decoder failed.")
        assert (await door.ask("user")).text == "stable"
        await one_mirrored_error(door)
        del door.language.errors[CANARY]
        door.language.go[CANARY].clear()
        async with asyncio.timeout(20):
            assert {(await door.ask(f"user-{number}")).text for number in range(10)} == {"stable"}
        await mirrored(door, dropped=7, compared=0)
        assert (await door.get()).shadow.counts.errors == 1


async def test_a_candidate_whose_answers_make_no_sense_is_counted_as_failing(door: Door) -> None:
    """As the real requests are: one that fails in a way nobody thought of must not pass for one that was never made."""
    await door.set(0, 50, 100, shadow_percent=100)
    await door.phase(RUNNING)
    door.language.nonsense.add(CANARY)
    assert (await door.ask("user")).text == "stable"
    await one_mirrored_error(door)


async def one_mirrored_error(door: Door) -> None:
    """Wait until one mirrored request has failed."""
    await door.until(lambda rollout: rollout.shadow.counts.errors == 1)
