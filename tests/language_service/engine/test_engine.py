"""The engine answers right, and requests leave nothing behind."""

import asyncio
import gc
import weakref
from typing import Any

import pytest

from chassis.errors import ResourceExhausted, Unavailable
from language_service.engine.generation import PagedGeneration
from language_service.engine.interface import Finished, FinishReason, Prefilled, Tokens
from language_service.engine.runner import Runner
from language_service.model.decoder import Decoder
from tests.language_service.asking import PROMPTS, ask, expected, feed, read, start, until
from tests.language_service.conftest import MakeEngine
from tests.language_service.small import CONFIG, make_cache, make_image, make_paged_engine


async def test_greedy_answers_equal_the_reference_alone_and_together(make_engine: MakeEngine, decoder: Decoder) -> None:
    engine = await make_engine(max_step_tokens=9)  # small, so that steps mix parts of prompts with decoding
    answers = [expected(decoder, parts) for parts in PROMPTS]
    assert [await ask(engine, parts) for parts in PROMPTS] == answers
    assert await asyncio.gather(*(ask(engine, parts) for parts in PROMPTS)) == answers
    assert len({tuple(answer) for answer in answers}) == len(answers)


async def test_more_requests_than_the_cache_can_take_are_all_answered(
    make_engine: MakeEngine, decoder: Decoder
) -> None:
    engine = await make_engine(num_blocks=14, max_running=3, max_step_tokens=8)
    prompts = PROMPTS * 3
    answers = await asyncio.gather(*(ask(engine, parts) for parts in prompts))
    assert answers == [expected(decoder, parts) for parts in prompts]


async def test_an_image_may_arrive_long_after_the_text_before_it(make_engine: MakeEngine, decoder: Decoder) -> None:
    """Meanwhile its text is prefilled, and other requests run."""
    engine = await make_engine()
    parts = PROMPTS[2]
    generation = start(engine)
    feed(generation, parts[:1])
    await until(lambda: engine.stats().num_used_blocks == 1)
    assert await ask(engine, PROMPTS[0]) == expected(decoder, PROMPTS[0])
    feed(generation, parts[1:2])
    await until(lambda: engine.stats().num_used_blocks == 2)
    feed(generation, parts[2:])
    await asyncio.sleep(0.02)  # the whole prompt is computed before it is declared complete
    generation.end_prompt(12)
    tokens, finished = await read(generation)
    assert tokens == expected(decoder, parts)
    assert (finished.usage.num_prompt, finished.usage.num_visual) == (9, 5)
    assert finished.timings.prefill_ms > 0


async def test_finish_reasons(make_engine: MakeEngine, decoder: Decoder) -> None:
    engine = await make_engine()
    answer = expected(decoder, PROMPTS[0])

    async def finish(max_tokens: int, **options: Any) -> tuple[list[int], FinishReason, int]:
        generation = start(engine, **options)
        feed(generation, PROMPTS[0])
        generation.end_prompt(max_tokens)
        tokens, finished = await read(generation)
        return tokens, finished.reason, finished.usage.num_answer

    assert await finish(5) == (answer[:5], FinishReason.LENGTH, 5)
    stop = answer[3]
    before = answer[: answer.index(stop)]
    assert await finish(12, stop_token_ids=frozenset([stop])) == (before, FinishReason.STOP, len(before))
    ended = {CONFIG.eos_token_ids[0]: 100.0}
    assert await finish(5, logit_bias=ended) == ([], FinishReason.STOP, 0)
    assert await finish(3, logit_bias=ended, ignore_eos=True) == ([2, 2, 2], FinishReason.LENGTH, 3)
    tokens, reason, _ = await finish(5, logit_bias=ended, min_tokens=2)
    assert (tokens, reason) == (answer[:2], FinishReason.STOP)


async def test_a_seed_gives_the_same_answer_alone_and_together(make_engine: MakeEngine) -> None:
    engine = await make_engine(max_step_tokens=9)
    options: dict[str, Any] = {"temperature": 1.0, "seed": 7, "top_p": 0.95}
    alone = await ask(engine, PROMPTS[1], **options)
    together = await asyncio.gather(
        *(ask(engine, parts, temperature=1.5) for parts in PROMPTS), ask(engine, PROMPTS[1], **options)
    )
    assert together[-1] == alone
    assert await ask(engine, PROMPTS[1], temperature=1.0, seed=8, top_p=0.95) != alone


@pytest.mark.parametrize(
    "stage", ["opened", "text added", "waiting", "image added", "prompt ended", "prefilling", "decoding", "ended"]
)
async def test_cancelling_frees_everything_at_every_stage(make_engine: MakeEngine, stage: str) -> None:
    engine = await make_engine(num_blocks=1024, max_running=2, max_step_tokens=9)
    neighbour = asyncio.create_task(ask(engine, PROMPTS[1], max_tokens=40, ignore_eos=True))
    generation = start(engine, ignore_eos=True)
    if stage == "waiting":
        blocker = start(engine, ignore_eos=True)
        blocker.add_text([1])
        blocker.end_prompt(200)
        await until(lambda: engine.stats().num_running == 2)
    if stage != "opened":
        generation.add_text([5, 6, 7, 8, 9])
    if stage == "text added":
        await until(lambda: engine.stats().num_running == 2)
    if stage in ("image added", "prompt ended", "decoding", "ended"):
        feed(generation, [make_image(0)])
    if stage in ("prompt ended", "decoding", "ended"):
        generation.end_prompt(100 if stage != "ended" else 3)
    if stage == "prefilling":
        assert isinstance(generation, PagedGeneration)
        generation.add_text([5] * 3000)  # in chunks of eight, while the neighbour decodes
        await until(lambda: generation.sequence.num_computed > 40)
        assert generation.sequence.num_computed < 3000
    if stage == "decoding":
        await anext(aiter(generation))
    if stage == "ended":
        await read(generation)
    if stage == "waiting":
        assert engine.stats().num_waiting == 1
        blocker.cancel()
    generation.cancel()
    generation.cancel()
    engine.check()
    stats = engine.stats()
    assert stats.num_running + stats.num_waiting <= 1  # the neighbour, if it still runs
    assert await neighbour == await ask(engine, PROMPTS[1], max_tokens=40, ignore_eos=True)


async def test_a_stalled_prompt_does_not_block_other_requests(make_engine: MakeEngine, decoder: Decoder) -> None:
    """Its answer comes when the rest of its prompt arrives."""
    engine = await make_engine(max_running=1)
    stalled = start(engine)
    feed(stalled, PROMPTS[2][:2])
    await until(lambda: engine.stats().num_running == 1)
    assert await asyncio.wait_for(ask(engine, PROMPTS[0]), 5) == expected(decoder, PROMPTS[0])
    feed(stalled, PROMPTS[2][2:])
    stalled.end_prompt(12)
    assert (await read(stalled))[0] == expected(decoder, PROMPTS[2])


async def test_a_full_queue_refuses_at_once(make_engine: MakeEngine) -> None:
    engine = await make_engine(max_running=1, max_waiting=2)
    running = start(engine)
    running.add_text([1])
    await until(lambda: engine.stats().num_running == 1)
    waiting = [start(engine) for _ in range(2)]
    with pytest.raises(ResourceExhausted) as caught:
        start(engine)
    assert (caught.value.reason, caught.value.retry_after_s) == ("QUEUE_FULL", 1)
    waiting[0].cancel()
    start(engine).cancel()
    for generation in (running, waiting[1]):
        generation.cancel()


async def test_prefilled_is_the_first_event_and_has_the_times_of_the_prompt(make_engine: MakeEngine) -> None:
    engine = await make_engine(max_step_tokens=9)
    for bias, tokens in (({}, 1), ({2: 100.0}, 0)):
        generation = start(engine, logit_bias=bias)
        feed(generation, PROMPTS[1])
        generation.end_prompt(3)
        events = [event async for event in generation]
        assert [type(event) for event in events] == [Prefilled, *[Tokens] * 3 * tokens, Finished]
        first, last = events[0], events[-1]
        assert isinstance(first, Prefilled)
        assert isinstance(last, Finished)
        assert 0 < first.prefill_ms == last.timings.prefill_ms
        assert first.queue_ms == last.timings.queue_ms


async def test_closing_fails_unfinished_requests_and_refuses_new_ones(make_engine: MakeEngine) -> None:
    engine = await make_engine()
    generation = start(engine, ignore_eos=True)
    generation.add_text([1])
    generation.end_prompt(200)
    await anext(aiter(generation))
    await engine.close()
    with pytest.raises(Unavailable):
        await read(generation)
    with pytest.raises(Unavailable):
        start(engine)


async def test_a_closed_engine_is_garbage_collected(decoder: Decoder) -> None:
    """That frees its weights and its cache."""
    engine = make_paged_engine(
        Runner(decoder, make_cache(8)), tag="gone-v1.0.0", max_running=2, max_waiting=2, max_step_tokens=8
    )
    await ask(engine, [[1, 2, 3]], max_tokens=2)
    await engine.close()
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None


async def test_each_token_has_its_logprobs(make_engine: MakeEngine) -> None:
    engine = await make_engine()
    generation = start(engine, num_logprobs=3)
    generation.add_text([5, 6, 7])
    generation.end_prompt(4)
    seen = 0
    async for event in generation:
        if not isinstance(event, Tokens):
            continue
        assert len(event.logprobs) == len(event.token_ids)
        for token, logprobs in zip(event.token_ids, event.logprobs, strict=True):
            assert logprobs.top[0][0] == token
            assert logprobs.top[0][1] == pytest.approx(logprobs.chosen)
            assert len(logprobs.top) == 3
            seen += 1
    assert seen == 4
