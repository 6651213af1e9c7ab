"""Prefix cache and preemption never change an answer."""

import asyncio
from typing import Any

import pytest

from language_service.engine.interface import Engine, Prefilled, Tokens
from language_service.model.decoder import Decoder
from tests.language_service.asking import PROMPTS, Part, ask, count, expected, feed, read, start
from tests.language_service.conftest import MakeEngine
from tests.language_service.small import make_image

QUESTIONS: list[list[Part]] = [
    [[5, 6, 7, 8], make_image(1), [9, 10, 11]],
    [[5, 6, 7, 8], make_image(1), [9, 12]],
    [[5, 6, 7, 8], make_image(2), [9, 10, 11]],
    [[5, 6, 7, 8], make_image(1), make_image(2), [9]],
    [[5, 6, 7, 8]],
    [[5, 6, 7, 9], make_image(1), [9, 10, 11]],
]


async def num_cached(engine: Engine, parts: list[Part], **options: Any) -> int:
    generation = start(engine, **options)
    feed(generation, parts)
    generation.end_prompt(4)
    _, finished = await read(generation)
    return finished.usage.num_cached_prompt


async def logprobs(engine: Engine, parts: list[Part]) -> list[list[float]]:
    """Return the largest log-probabilities at each position of the answer."""
    generation = start(engine, num_logprobs=20)
    feed(generation, parts)
    generation.end_prompt(8)
    return [
        [logprob for _, logprob in sorted(event.logprobs[0].top)]
        async for event in generation
        if isinstance(event, Tokens)
    ]


async def test_answers_are_the_same_with_and_without_reuse(make_engine: MakeEngine, decoder: Decoder) -> None:
    """With shared prefixes, and prefill cut at odd places."""
    plain = await make_engine(reuse_prefixes=False)
    reusing = await make_engine(max_step_tokens=9)
    answers = [expected(decoder, parts) for parts in QUESTIONS]
    assert await asyncio.gather(*(ask(reusing, parts) for parts in QUESTIONS)) == answers
    assert [await ask(reusing, parts) for parts in QUESTIONS] == answers
    for parts in QUESTIONS:
        for row, plain_row in zip(await logprobs(reusing, parts), await logprobs(plain, parts), strict=True):
            assert row == pytest.approx(plain_row, abs=1e-4)
    assert await num_cached(reusing, QUESTIONS[0]) == 8
    assert await num_cached(plain, QUESTIONS[0]) == 0


async def test_usage_counts_cache_hits(make_engine: MakeEngine) -> None:
    engine = await make_engine()
    assert [await num_cached(engine, parts) for parts in QUESTIONS] == [0, 8, 4, 8, 0, 0]
    generation = start(engine)
    feed(generation, QUESTIONS[0])
    generation.end_prompt(4)
    first = await anext(aiter(generation))
    assert isinstance(first, Prefilled)
    assert first.num_cached_prompt == 8
    await read(generation)


async def test_another_salt_gives_no_cache_hits(make_engine: MakeEngine) -> None:
    engine = await make_engine()
    assert await num_cached(engine, QUESTIONS[0], salt=b"a") == 0
    assert await num_cached(engine, QUESTIONS[0], salt=b"b") == 0
    assert await num_cached(engine, QUESTIONS[0]) == 0
    assert await num_cached(engine, QUESTIONS[0], salt=b"a") == 8


async def test_a_follow_up_question_reuses_the_answer_before_it(make_engine: MakeEngine, decoder: Decoder) -> None:
    """The next prompt contains the answer."""
    engine = await make_engine()
    parts = QUESTIONS[0]
    answer = await ask(engine, parts, ignore_eos=True)
    follow_up: list[Part] = [*parts, [*answer, 20, 21]]
    assert await num_cached(engine, follow_up) == 20  # of 12 + 12 tokens, the last of which was never computed
    assert await ask(engine, follow_up) == expected(decoder, follow_up)


async def test_preemption_does_not_change_greedy_answers(make_engine: MakeEngine, decoder: Decoder) -> None:
    """A preempted sequence computes prompt, images and answer again."""
    for reuse_prefixes in (False, True):
        engine = await make_engine(num_blocks=14, max_running=5, max_step_tokens=8, reuse_prefixes=reuse_prefixes)
        before = count("preemptions")
        answers = await asyncio.gather(*(ask(engine, parts, max_tokens=20) for parts in PROMPTS * 2))
        assert count("preemptions") > before
        assert answers == [expected(decoder, parts, 20) for parts in PROMPTS * 2]


async def test_a_preempted_sequence_keeps_its_images(make_engine: MakeEngine, decoder: Decoder) -> None:
    """The client sends them only once."""
    for reuse_prefixes in (False, True):
        engine = await make_engine(num_blocks=15, reuse_prefixes=reuse_prefixes)
        prompts = [PROMPTS[1], PROMPTS[3]]
        before = count("preemptions")
        answers = await asyncio.gather(*(ask(engine, parts, max_tokens=18) for parts in prompts))
        assert count("preemptions") > before
        assert answers == [expected(decoder, parts, 18) for parts in prompts]


async def test_preemption_does_not_change_sampled_answers(make_engine: MakeEngine) -> None:
    """Nor the usage: tokens computed before are no cache hits."""
    options: dict[str, Any] = {"temperature": 1.0, "ignore_eos": True, "frequency_penalty": 0.5, "max_tokens": 20}
    roomy, tight = await make_engine(), await make_engine(num_blocks=14, max_running=5, max_step_tokens=8)
    alone = [await ask(roomy, parts, seed=seed, **options) for seed, parts in enumerate(PROMPTS)]
    before, found = count("preemptions"), count("tokens", kind="found")
    together = await asyncio.gather(*(ask(tight, parts, seed=seed, **options) for seed, parts in enumerate(PROMPTS)))
    assert count("preemptions") > before
    assert count("tokens", kind="found") == found
    assert together == alone
