"""Visual tokens are reused: cache, shared encodings, requests by digest."""

import asyncio
import hashlib
from dataclasses import replace

import pytest

from chassis.errors import Internal, InvalidArgument, NotFound, TandemError
from tests.vision_service.gated_backend import DIGEST, bench, counted, make_encoder, png, request, until
from vision_service.image_encoder import ImageRequest, Source


async def test_an_image_is_encoded_once_and_later_found_by_digest() -> None:
    async with bench() as it:
        first = await it.ask(png("red"))
        again = await it.ask(png("red"))
        by_digest = await it.ask(b"", sha256=hashlib.sha256(png("red")).digest())
        assert [one.source for one in (first, again, by_digest)] == [Source.ENCODED, Source.CACHED, Source.CACHED]
        assert first.tokens == again.tokens == by_digest.tokens
        assert first.visual_key == again.visual_key == by_digest.visual_key
        assert it.backend.batches == [1]


async def test_the_digest_of_an_unknown_image_is_not_found() -> None:
    async with bench() as it:
        with pytest.raises(NotFound) as caught:
            await it.ask(b"", sha256=DIGEST)
        assert caught.value.reason == "IMAGE_NOT_CACHED"


async def test_every_part_of_the_key_separates_entries() -> None:
    """Entries never answer for another image, tenant or encoder."""
    async with bench() as it:
        await it.ask(png("red"))
        sha256 = hashlib.sha256(png("red")).digest()
        other = make_encoder(it.backend, it.resources, digest=bytes([1]) * 32)
        for encoder, wrong in (
            (it.encoder, ImageRequest(image=b"", sha256=hashlib.sha256(png("blue")).digest())),
            (it.encoder, ImageRequest(image=b"", sha256=sha256, cache_salt=b"tenant")),
            (other, ImageRequest(image=b"", sha256=sha256)),
        ):
            with pytest.raises(NotFound):
                await encoder.encode(wrong)
        sources = [await it.ask(png("blue")), await it.ask(png("red"), cache_salt=b"tenant")]
        sources.append(await other.encode(request(png("red"))))
        assert [one.source for one in sources] == [Source.ENCODED] * 3
        assert len({one.visual_key for one in sources}) == 3
        await other.close()


async def test_a_cached_image_does_not_answer_for_other_bytes() -> None:
    """A wrong digest is rejected, even a cached one."""
    async with bench() as it:
        sha256 = hashlib.sha256(png("red")).digest()
        it.backend.gate.clear()
        honest = asyncio.create_task(it.ask(png("red")))
        await until(lambda: it.backend.batches == [1])
        with pytest.raises(InvalidArgument):
            await it.ask(png("blue"), sha256=sha256)
        it.backend.gate.set()
        assert (await honest).source is Source.ENCODED
        with pytest.raises(InvalidArgument):
            await it.ask(png("blue"), sha256=sha256)


async def test_concurrent_requests_for_one_image_share_one_encoding() -> None:
    async with bench(cache_bytes=0) as it:
        it.backend.gate.clear()
        tasks = [asyncio.create_task(it.ask(png("red"))) for _ in range(6)]
        await until(lambda: it.backend.batches == [1])
        late = asyncio.create_task(it.ask(b"", sha256=hashlib.sha256(png("red")).digest()))
        await asyncio.sleep(0.01)
        it.backend.gate.set()
        answers = await asyncio.gather(*tasks, late)
        assert it.backend.batches == [1]
        assert [one.source for one in answers] == [Source.ENCODED] + [Source.IN_FLIGHT] * 6
        assert len({one.tokens for one in answers}) == 1


async def test_a_cancelled_request_does_not_stop_the_others() -> None:
    async with bench() as it:
        it.backend.gate.clear()
        first, second = (asyncio.create_task(it.ask(png("red"))) for _ in range(2))
        await until(lambda: it.backend.batches == [1])
        first.cancel()
        it.backend.gate.set()
        assert (await second).source is Source.IN_FLIGHT


async def test_an_image_whose_requests_were_all_cancelled_is_not_encoded() -> None:
    async with bench() as it:
        it.backend.gate.clear()
        running = asyncio.create_task(it.ask(png("white")))
        await until(lambda: it.backend.batches == [1])
        cancelled = [asyncio.create_task(it.ask(png("red"))) for _ in range(3)]
        waiting = asyncio.create_task(it.ask(png("blue")))
        await asyncio.sleep(0.05)
        for task in cancelled:
            task.cancel()
        await asyncio.sleep(0)
        it.backend.gate.set()
        await asyncio.gather(running, waiting)
        assert it.backend.batches == [1, 1]


async def test_a_failure_reaches_all_its_callers_and_is_not_cached() -> None:
    async with bench() as it:
        it.backend.gate.clear()
        it.backend.fails = True
        tasks = [asyncio.create_task(it.ask(png("red"))) for _ in range(3)]
        await until(lambda: it.backend.batches == [1])
        await asyncio.sleep(0.01)
        it.backend.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Internal] * 3
        it.backend.fails = False
        assert (await it.ask(png("red"))).source is Source.ENCODED


async def test_unloading_a_tag_does_not_fail_requests_for_another_tag_with_its_weights() -> None:
    async with bench() as it:
        it.backend.gate.clear()
        other = make_encoder(it.backend, it.resources)
        running = asyncio.create_task(other.encode(request(png("white"))))
        await until(lambda: it.backend.batches == [1])
        first = asyncio.create_task(other.encode(request(png("red"))))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(it.ask(png("red")))
        await asyncio.sleep(0.05)
        await other.close()
        it.backend.gate.set()
        outcomes = await asyncio.gather(running, first, return_exceptions=True)
        assert all(isinstance(outcome, TandemError) for outcome in outcomes)
        assert (await second).source is Source.ENCODED


async def test_corrupted_tokens_are_dropped_counted_and_encoded_again() -> None:
    async with bench() as it:
        first = await it.ask(png("red"))
        bad = bytes([first.tokens.data[0] ^ 1]) + first.tokens.data[1:]
        it.resources.cache.put(first.visual_key, replace(first.tokens, data=bad))
        before = counted("tandem_visual_cache_corrupted_total")
        again = await it.ask(png("red"))
        assert (again.source, again.tokens) == (Source.ENCODED, first.tokens)
        assert counted("tandem_visual_cache_corrupted_total") == before + 1
        assert (await it.ask(png("red"))).source is Source.CACHED


async def test_the_cache_is_bounded_and_reports_its_size() -> None:
    async with bench(cache_bytes=1200) as it:  # two entries
        evicted = counted("tandem_visual_cache_evictions_total")
        for colour in ("red", "green", "blue"):
            await it.ask(png(colour))
        assert counted("tandem_visual_cache_evictions_total") == evicted + 1
        assert 0 < counted("tandem_visual_cache_bytes") <= 1200
        hits, misses = (counted("tandem_visual_cache_requests_total", result=name) for name in ("hit", "miss"))
        assert (await it.ask(png("blue"))).source is Source.CACHED
        assert (await it.ask(png("red"))).source is Source.ENCODED
        assert counted("tandem_visual_cache_requests_total", result="hit") == hits + 1
        assert counted("tandem_visual_cache_requests_total", result="miss") == misses + 1
