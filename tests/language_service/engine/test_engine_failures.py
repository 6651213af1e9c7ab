"""After an error, only affected requests fail."""

import asyncio

import pytest
import torch

from chassis.errors import Internal, Unavailable
from chassis.vital import on_death
from language_service.engine import paged as paged_engine
from language_service.model.decoder import Decoder
from language_service.sampling.options import SamplingOptions
from language_service.scheduling.sequence import Chunk
from tests.language_service.asking import PROMPTS, ask, count, expected, feed, read, start, until
from tests.language_service.conftest import MakeEngine
from tests.language_service.small import CONFIG


async def test_a_failed_step_fails_only_the_requests_in_it(make_engine: MakeEngine, decoder: Decoder) -> None:
    """Visual tokens of a wrong width break the forward pass.

    The servicer would refuse them.
    """
    engine = await make_engine()
    generation = start(engine)
    feed(generation, [torch.zeros(5, CONFIG.width + 1)])
    with pytest.raises(Internal) as caught:
        await read(generation)
    assert caught.value.reason == "STEP_FAILED"
    with pytest.raises(Internal):
        generation.add_text([1])  # adding to a failed request raises its error
    assert engine.stats().num_used_blocks == 0
    assert await ask(engine, PROMPTS[0]) == expected(decoder, PROMPTS[0])


async def test_an_accounting_error_fails_all_requests_and_the_engine_continues(
    make_engine: MakeEngine, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise no request would ever be answered again."""
    engine = await make_engine(num_blocks=8, max_running=1)
    for method in ("next_batch", "advance"):
        generation, waiting = start(engine), start(engine)
        monkeypatch.setattr(engine._scheduler, method, lambda *_, **__: [][0])
        generation.add_text([1])
        for each in (generation, waiting):
            with pytest.raises(Internal) as caught:
                await read(each)
            assert caught.value.reason == "ENGINE_FAILED"
            each.cancel()
        assert engine.stats().num_used_blocks == 0
        assert await ask(engine, PROMPTS[0]) == expected(decoder, PROMPTS[0])


async def test_an_idle_engine_detects_wrong_accounting(
    make_engine: MakeEngine, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also long after the last request ended."""
    monkeypatch.setattr(paged_engine, "_CHECK_EVERY_S", 0.05)
    engine = await make_engine()
    assert await ask(engine, PROMPTS[0]) == expected(decoder, PROMPTS[0])
    await asyncio.sleep(0.01)
    before = count("failed_steps")
    with engine._condition:
        engine._scheduler.pool._free.pop()
    await until(lambda: count("failed_steps") > before)
    engine.check()
    assert await ask(engine, PROMPTS[0]) == expected(decoder, PROMPTS[0])


async def test_the_death_of_the_engines_thread_fails_all_requests_and_ends_the_process(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise they would wait while the service looks healthy."""
    ended: list[bool] = []
    on_death(lambda: ended.append(True))
    try:
        engine = await make_engine(max_running=1)
        running, waiting = start(engine), start(engine)

        def die(**_: bool) -> None:
            raise SystemExit

        monkeypatch.setattr(engine._scheduler, "next_batch", die)
        running.add_text([1])
        for each in (running, waiting):
            with pytest.raises(Unavailable) as caught:
                await asyncio.wait_for(read(each), 10)
            assert caught.value.reason == "ENGINE_DEAD"
        with pytest.raises(Unavailable) as caught:
            start(engine)
        assert caught.value.reason == "ENGINE_DEAD"
        assert ended == [True]
        await asyncio.to_thread(engine._thread.join, 60)
        assert not engine._thread.is_alive()
    finally:
        on_death(None)


async def test_numbers_that_are_not_finite_harm_no_other_request(make_engine: MakeEngine, decoder: Decoder) -> None:
    """Neither in the same step, nor in the same blocks."""
    engine = await make_engine(num_blocks=16)
    neighbour = asyncio.create_task(ask(engine, PROMPTS[1]))
    for _ in range(3):
        generation = start(engine)
        feed(generation, [[5] * 6, torch.full((5, CONFIG.width), float("inf")), [6]])
        generation.end_prompt(12)
        with pytest.raises(Internal) as caught:
            await read(generation)
        assert caught.value.reason == "NOT_FINITE"
    assert await neighbour == expected(decoder, PROMPTS[1])
    for parts in PROMPTS:
        assert await ask(engine, parts) == expected(decoder, parts)


async def test_a_request_that_finished_before_an_accounting_error_is_answered(
    make_engine: MakeEngine, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not among the requests that the restart fails."""
    engine = await make_engine()
    done, failed = (engine.open(SamplingOptions(), salt=b"", priority=0) for _ in range(2))
    advance = engine._scheduler.advance

    def fail_on_one(chunk: Chunk, num_accepted: int = 0) -> None:
        if chunk.sequence is failed.sequence:
            raise IndexError
        advance(chunk, num_accepted)

    monkeypatch.setattr(engine._scheduler, "advance", fail_on_one)
    with engine._condition:  # so that both are in one step
        for generation in (done, failed):
            feed(generation, PROMPTS[0])
            generation.end_prompt(1)
    with pytest.raises(Internal, match="started over"):
        await read(failed)
    assert (await asyncio.wait_for(read(done), 5))[0] == expected(decoder, PROMPTS[0], 1)
