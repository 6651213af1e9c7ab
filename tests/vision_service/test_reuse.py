"""What is known is not computed again: the cache, shared work, digests alone, and pictures that look the same."""

import asyncio
import hashlib
import io
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from prometheus_client import REGISTRY

from chassis.errors import Internal, InvalidArgument, NotFound, TandemError
from checkpoint.presets import PRESETS
from vision_service.batcher import BatchConfig
from vision_service.decoding import DecodePool
from vision_service.hosted import Encoded, HostedVision, Picture, Shared, Source
from vision_service.images import ImageLimits
from vision_service.similar import SimilarPictures
from vision_service.token_cache import TokenCache

DIGEST = bytes(32)


@dataclass
class GatedBackend:
    """Encodes a picture as its mean; while `gate` is clear, it waits. Keeps the sizes of its batches."""

    name: str = "gated"
    device: str = "cpu"
    precision: str = "float32"
    num_parameters: int = 0
    num_weight_bytes: int = 0
    fails: bool = False
    batches: list[int] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    def encode(self, pixels_B3SS: NDArray[np.float32]) -> NDArray[np.uint16]:
        self.batches.append(len(pixels_B3SS))
        assert self.gate.wait(10)
        if self.fails:
            raise RuntimeError("broken")
        means_B = pixels_B3SS.mean((1, 2, 3), dtype=np.float32).view(np.uint32) >> 16
        return np.repeat(means_B.astype(np.uint16), 12).reshape(-1, 3, 4)


@dataclass
class Bench:
    """One model with its cache."""

    model: HostedVision
    backend: GatedBackend
    shared: Shared

    async def ask(self, image: bytes, **fields: Any) -> Encoded:
        return await self.model.encode(picture(image, **fields))


def picture(image: bytes, **fields: Any) -> Picture:
    return Picture(**{"image": image, "sha256": hashlib.sha256(image).digest(), **fields})


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "PNG")
    return file.getvalue()


def photo(kind: str = "PNG", seed: int = 0, **options: Any) -> bytes:
    """Return a smooth picture as a file of some kind."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC).save(file, kind, **options)
    return file.getvalue()


def host(backend: GatedBackend, shared: Shared, *, digest: bytes = DIGEST, tag: str = "another-v1.0.0") -> HostedVision:
    return HostedVision(
        tag=tag,
        config=PRESETS["tiny"],
        digest=digest,
        backend=backend,
        shared=shared,
        batching=BatchConfig(max_wait_s=0),
    )


@asynccontextmanager
async def bench(*, cache_bytes: int = 1 << 20, threshold: float | None = None) -> AsyncIterator[Bench]:
    backend = GatedBackend()
    backend.gate.set()
    similar = None if threshold is None else SimilarPictures(threshold=threshold, max_entries=64)
    decoding = DecodePool(num_threads=2, max_pending=64, limits=ImageLimits(), with_thumbnails=similar is not None)
    with ThreadPoolExecutor(1) as forward:
        cache = TokenCache(max_bytes=cache_bytes, ttl_s=None)
        shared = Shared(decoding=decoding, forward=forward, turn=asyncio.Lock(), cache=cache, similar=similar)
        model = host(backend, shared, tag="some-v1.0.0")
        yield Bench(model, backend, shared)
        backend.gate.set()
        await model.close()
    decoding.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another thread
            await asyncio.sleep(0.001)


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {"level": "vision", **labels}) or 0.0


async def test_a_picture_is_encoded_once_and_later_named_by_its_digest() -> None:
    async with bench() as it:
        first = await it.ask(png("red"))
        again = await it.ask(png("red"))
        by_digest = await it.ask(b"", sha256=hashlib.sha256(png("red")).digest())
        assert [one.source for one in (first, again, by_digest)] == [Source.ENCODED, Source.CACHED, Source.CACHED]
        assert first.tokens == again.tokens == by_digest.tokens
        assert first.visual_key == again.visual_key == by_digest.visual_key
        assert it.backend.batches == [1]


async def test_a_digest_nobody_sent_the_picture_of_is_not_found() -> None:
    async with bench() as it:
        with pytest.raises(NotFound) as caught:
            await it.ask(b"", sha256=DIGEST)
        assert caught.value.reason == "IMAGE_NOT_CACHED"


async def test_every_part_of_the_key_keeps_answers_apart() -> None:
    """Another picture, tenant or encoder never gets what is cached, by digest or by bytes."""
    async with bench() as it:
        await it.ask(png("red"))
        sha256 = hashlib.sha256(png("red")).digest()
        other = host(it.backend, it.shared, digest=bytes([1]) * 32)
        for model, wrong in (
            (it.model, Picture(image=b"", sha256=hashlib.sha256(png("blue")).digest())),
            (it.model, Picture(image=b"", sha256=sha256, cache_salt=b"tenant")),
            (other, Picture(image=b"", sha256=sha256)),
        ):
            with pytest.raises(NotFound):
                await model.encode(wrong)
        sources = [await it.ask(png("blue")), await it.ask(png("red"), cache_salt=b"tenant")]
        sources.append(await other.encode(picture(png("red"))))
        assert [one.source for one in sources] == [Source.ENCODED] * 3
        assert len({one.visual_key for one in sources}) == 3
        await other.close()


async def test_a_known_picture_does_not_vouch_for_other_bytes() -> None:
    """Who sends bytes gets an answer about them, even where the digest they claim is cached or under way."""
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


async def test_the_same_picture_at_the_same_time_is_encoded_once_for_all() -> None:
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


async def test_one_who_leaves_takes_nothing_from_the_others() -> None:
    async with bench() as it:
        it.backend.gate.clear()
        first, second = (asyncio.create_task(it.ask(png("red"))) for _ in range(2))
        await until(lambda: it.backend.batches == [1])
        first.cancel()
        it.backend.gate.set()
        assert (await second).source is Source.IN_FLIGHT


async def test_a_picture_everybody_left_never_reaches_the_model() -> None:
    async with bench() as it:
        it.backend.gate.clear()
        running = asyncio.create_task(it.ask(png("white")))
        await until(lambda: it.backend.batches == [1])
        leavers = [asyncio.create_task(it.ask(png("red"))) for _ in range(3)]
        stayer = asyncio.create_task(it.ask(png("blue")))
        await asyncio.sleep(0.05)
        for task in leavers:
            task.cancel()
        await asyncio.sleep(0)
        it.backend.gate.set()
        await asyncio.gather(running, stayer)
        assert it.backend.batches == [1, 1]


async def test_a_failure_reaches_all_its_callers_and_is_not_kept() -> None:
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


async def test_unloading_a_tag_does_not_fail_who_asked_under_another_of_the_same_weights() -> None:
    async with bench() as it:
        it.backend.gate.clear()
        other = host(it.backend, it.shared)
        running = asyncio.create_task(other.encode(picture(png("white"))))
        await until(lambda: it.backend.batches == [1])
        first = asyncio.create_task(other.encode(picture(png("red"))))
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
        it.shared.cache.put(first.visual_key, replace(first.tokens, data=bad))
        before = counted("tandem_visual_cache_corrupted_total")
        again = await it.ask(png("red"))
        assert (again.source, again.tokens) == (Source.ENCODED, first.tokens)
        assert counted("tandem_visual_cache_corrupted_total") == before + 1
        assert (await it.ask(png("red"))).source is Source.CACHED


async def test_the_cache_keeps_to_its_budget_and_says_so() -> None:
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


async def test_another_file_of_the_same_photo_is_answered_with_its_tokens_and_says_so() -> None:
    async with bench(threshold=0.95) as it:
        first = await it.ask(photo())
        copy = await it.ask(photo("JPEG", quality=70))
        assert (copy.source, copy.tokens) == (Source.SIMILAR, first.tokens)
        assert copy.similar is not None
        assert copy.similar.image_sha256 == hashlib.sha256(photo()).digest()
        assert 0.95 <= copy.similar.similarity <= 1
        # Equal keys mean equal embeddings: the copy's own key stays free for the copy's own tokens.
        assert copy.visual_key == first.visual_key
        with pytest.raises(NotFound):
            await it.ask(b"", sha256=hashlib.sha256(photo("JPEG", quality=70)).digest())
        assert (await it.ask(photo(seed=1))).source is Source.ENCODED


async def test_tenants_and_encoders_never_share_similar_pictures() -> None:
    async with bench(threshold=0.5) as it:
        await it.ask(photo(), cache_salt=b"one")
        assert (await it.ask(photo("BMP"), cache_salt=b"other")).source is Source.ENCODED
        model = host(it.backend, it.shared, digest=bytes([1]) * 32)
        assert (await model.encode(picture(photo("BMP"), cache_salt=b"one"))).source is Source.ENCODED
        await model.close()


async def test_a_similar_picture_whose_tokens_left_the_cache_does_not_answer() -> None:
    async with bench(threshold=0.95, cache_bytes=600) as it:  # one entry
        await it.ask(photo())
        await it.ask(png("red"))
        copy = await it.ask(photo("BMP"))
        assert (copy.source, it.backend.batches) == (Source.ENCODED, [1, 1, 1])
        assert (await it.ask(photo("JPEG"))).source is Source.SIMILAR  # by the copy, which is here


async def test_it_is_off_unless_asked_for() -> None:
    async with bench() as it:
        await it.ask(photo())
        assert (await it.ask(photo("BMP"))).source is Source.ENCODED
