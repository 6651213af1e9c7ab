"""Mirrored requests are counted and invisible to clients."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from tokenizers import Tokenizer

from chassis.errors import FailedPrecondition, Internal
from gateway.rollout.answer_rules import AnswerRules, read_refusals
from tandem.v1 import gateway_pb2, rollout_pb2, sampling_pb2
from tests.gateway.rollout.live_gateway import CANARY, STABLE, LiveGateway, open_gateway
from tests.gateway.scripted import eventually

MIB = 2**20
NEARLY_ALL = 99.9999
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


async def test_requests_of_the_canary_are_mirrored_to_stable(live: LiveGateway) -> None:
    await live.set(NEARLY_ALL, 100, shadow_canary_percent=100)
    await live.wait_for_phase(RUNNING)
    assert {(await live.ask(f"user-{number}")).text for number in range(5)} == {"canary"}
    live.language.answers[STABLE] = live.language.answers[CANARY]
    assert {(await live.ask(f"user-{number}")).text for number in range(7)} == {"canary"}
    rollout = await live.wait_until(lambda rollout: rollout.shadow_stable.compared == 12)
    assert (rollout.shadow_stable.equal, rollout.shadow_stable.counts.requests) == (7, 12)
    assert {start.priority for start in live.language.starts if start.tag == STABLE} == {-100}
    assert (rollout.stable.requests, rollout.canary.requests, rollout.HasField("shadow")) == (0, 12, False)


async def test_the_canarys_answer_is_worse_in_both_directions(
    two_releases: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "refusals.txt").write_text("I cannot")
    async with open_gateway(two_releases, tokenizer, rollout_refusals=tmp_path / "refusals.txt") as live:
        for tag, text in ((STABLE, "Red."), (CANARY, "I cannot.")):
            live.language.answers[tag] = tokenizer.encode(text, add_special_tokens=False).ids
        await live.set(50, 100, shadow_percent=100, shadow_canary_percent=100)
        await live.wait_for_phase(RUNNING)
        for number in range(12):
            await live.ask(f"user-{number}")
        rollout = await live.wait_until(lambda rollout: rollout.shadow.worse + rollout.shadow_stable.worse == 12)
        assert rollout.shadow.worse == rollout.stable.requests > 0
        assert rollout.shadow_stable.worse == rollout.canary.requests > 0


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
    asked = sampling_pb2.SamplingOptions(num_logprobs=0)
    assert (await live.ask("user", sampling=asked)).text == "stable"
    await wait_for_one_mirrored_error(live)


async def wait_for_one_mirrored_error(live: LiveGateway) -> None:
    """Wait until one mirrored request has failed."""
    await live.wait_until(lambda rollout: rollout.shadow.counts.errors == 1)


async def test_of_two_answers_that_differ_the_one_that_breaks_a_rule_is_worse(
    two_releases: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "refusals.txt").write_text("I cannot\n\n")
    async with open_gateway(two_releases, tokenizer, rollout_refusals=tmp_path / "refusals.txt") as live:
        await live.set(0, 50, 100, shadow_percent=100)
        await live.wait_for_phase(RUNNING)
        for stable, canary in (("Red.", "Sorry, i CANNOT say."), ("I cannot.", "Red."), ("Red.", "Blue.")):
            for tag, text in ((STABLE, stable), (CANARY, canary)):
                live.language.answers[tag] = tokenizer.encode(text, add_special_tokens=False).ids
            await live.ask("user")
            await live.wait_until(lambda rollout: rollout.shadow.counts.requests == rollout.stable.requests)
        await wait_for_mirrored(live, compared=3, equal=0, worse=1, better=1)


@pytest.mark.parametrize(
    ("constraint", "text", "is_broken"),
    [
        ({}, "anything", False),
        ({"json_schema": "{}"}, '{"a": 1}', False),
        ({"json_schema": "{}"}, '{"a": 1', True),
        ({"json_schema": "{}"}, "[" * 100_000, True),
        ({"regex": "a|bc"}, "bc", False),
        ({"regex": "a|bc"}, "abc", True),
        ({"regex": "(a+)+"}, "a" * 100_000 + "!", True),
        ({"regex": "(?=not here)"}, "anything", False),
        ({"choices": sampling_pb2.Choices(texts=["yes", "no"])}, "no", False),
        ({"choices": sampling_pb2.Choices(texts=["yes", "no"])}, "No", True),
    ],
)
def test_an_answer_must_keep_its_constraint(constraint: dict[str, Any], text: str, is_broken: bool) -> None:
    assert AnswerRules().breaks(text, sampling_pb2.SamplingOptions(**constraint)) is is_broken


def test_a_bad_file_of_refusals_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("no\n" * 1001)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    for name in ("none.txt", "many.txt", "bytes.txt"):
        with pytest.raises(FailedPrecondition) as raised:
            read_refusals(tmp_path / name)
        assert raised.value.reason == "BAD_REFUSALS"


async def test_mirrored_requests_hold_a_quarter_of_the_bytes_at_most(two_releases: Path, tokenizer: Tokenizer) -> None:
    """Real requests have the rest."""
    image = b"\x89PNG" + bytes(12 * MIB)
    chunks = [gateway_pb2.PutImageRequest(chunk=image[start : start + MIB]) for start in range(0, len(image), MIB)]

    async def holds_images(number: int) -> None:
        await eventually(
            lambda: (REGISTRY.get_sample_value("tandem_gateway_request_bytes") or 0) // len(image) == number
        )

    async with open_gateway(two_releases, tokenizer, max_request_bytes=64 * MIB) as live:
        await live.set(0, 50, 100, shadow_percent=100)
        await live.wait_for_phase(RUNNING)
        stored = await live.gateway.PutImage(iter(chunks))
        parts = [gateway_pb2.Part(image=gateway_pb2.Image(sha256=stored.sha256)), gateway_pb2.Part(text="What is it?")]
        message = gateway_pb2.Message(role=gateway_pb2.ROLE_USER, parts=parts)
        calls = []
        for num_held, num_dropped in ((2, 0), (3, 1), (4, 2)):  # of the real requests and one mirrored request
            calls.append(live.gateway.Generate(gateway_pb2.GatewayGenerateRequest(messages=[message])))
            await wait_for_mirrored(live, dropped=num_dropped)
            await holds_images(num_held)
        for call in calls:
            call.cancel()
        await holds_images(1)  # the mirrored request goes on
