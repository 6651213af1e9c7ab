"""The memory cache is bounded, verified, shared and pinned."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from chassis.errors import DeadlineExceeded, InvalidArgument
from chassis.verified_cache import ENTRY_OVERHEAD_BYTES
from gateway.images.entry import Entry
from gateway.images.memory_cache import MemoryCache, SourcedTokens
from tandem.v1 import gateway_pb2, vision_pb2

MEMORY = gateway_pb2.CACHE_LEVEL_GATEWAY
MISS = gateway_pb2.CACHE_LEVEL_MISS
IN_FLIGHT = gateway_pb2.CACHE_LEVEL_IN_FLIGHT
ENTRY = ENTRY_OVERHEAD_BYTES + 10  # of ten bytes of data


class Encoder:
    """Counts its encodings. Each waits for `go`."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.num_started = 0
        self.num_cancelled = 0

    def of(
        self,
        data: bytes,
        error: Exception | None = None,
        similar: vision_pb2.SimilarImage | None = None,
        key: bytes = b"a",
    ) -> Callable[[], Coroutine[Any, Any, SourcedTokens]]:
        async def encode() -> SourcedTokens:
            self.num_started += 1
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.num_cancelled += 1
                raise
            if error is not None:
                raise error
            return SourcedTokens(Entry.of(data), key, gateway_pb2.CACHE_LEVEL_SIMILAR if similar else MISS, similar)

        return encode


async def get(
    cache: MemoryCache, key: bytes, encode: Callable[[], Coroutine[Any, Any, SourcedTokens]]
) -> SourcedTokens:
    async with cache.use(key, encode) as found:
        return found


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


async def test_the_least_recently_used_entry_is_evicted(encoder: Encoder) -> None:
    encoder.go.set()
    cache = MemoryCache(max_bytes=2 * ENTRY)
    for key in (b"a", b"b", b"a", b"c"):
        await get(cache, key, encoder.of(key * 10, key=key))
    levels = [(await get(cache, key, encoder.of(key * 10, key=key))).level for key in (b"a", b"c", b"b")]
    assert levels == [MEMORY, MEMORY, MISS]


async def test_an_entry_in_use_is_not_evicted(encoder: Encoder) -> None:
    encoder.go.set()
    cache = MemoryCache(max_bytes=2 * ENTRY)
    async with cache.use(b"a", encoder.of(b"a" * 10)):
        for key in (b"b", b"c", b"d"):
            await get(cache, key, encoder.of(key * 10, key=key))
        assert cache.num_pinned == 1
        assert (await get(cache, b"a", encoder.of(b"?"))).level == MEMORY
    assert cache.num_pinned == 0


async def test_tokens_that_do_not_fit_beside_pinned_entries_are_served_but_not_stored(encoder: Encoder) -> None:
    encoder.go.set()
    cache = MemoryCache(max_bytes=ENTRY + 5)
    async with cache.use(b"a", encoder.of(b"a" * 10)):
        assert (await get(cache, b"b", encoder.of(b"b" * 10, key=b"b"))).entry.data == b"b" * 10
    assert cache.num_bytes == ENTRY


async def test_concurrent_callers_share_one_encoding(encoder: Encoder) -> None:
    cache = MemoryCache(max_bytes=0)
    calls = [asyncio.create_task(get(cache, b"a", encoder.of(b"tokens"))) for _ in range(5)]
    await asyncio.sleep(0)
    encoder.go.set()
    found = await asyncio.gather(*calls)
    assert encoder.num_started == 1
    assert sorted(one.level for one in found) == [MISS] + [IN_FLIGHT] * 4
    assert {one.entry.data for one in found} == {b"tokens"}


async def test_a_cancelled_caller_does_not_stop_the_others(encoder: Encoder) -> None:
    cache = MemoryCache(max_bytes=10_000)
    first = asyncio.create_task(get(cache, b"a", encoder.of(b"tokens")))
    second = asyncio.create_task(get(cache, b"a", encoder.of(b"tokens")))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    encoder.go.set()
    assert (await second).entry.data == b"tokens"


async def test_cancelling_the_last_caller_stops_the_encoding(encoder: Encoder) -> None:
    cache = MemoryCache(max_bytes=10_000)
    calls = [asyncio.create_task(get(cache, b"a", encoder.of(b"tokens"))) for _ in range(2)]
    await asyncio.sleep(0.01)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await asyncio.sleep(0)
    assert encoder.num_cancelled == 1
    encoder.go.set()
    assert (await get(cache, b"a", encoder.of(b"new"))).level == MISS


async def test_an_error_reaches_all_waiting_callers_and_is_not_cached(encoder: Encoder) -> None:
    cache = MemoryCache(max_bytes=10_000)
    error = InvalidArgument("broken")
    calls = [asyncio.create_task(get(cache, b"a", encoder.of(b"", error))) for _ in range(3)]
    await asyncio.sleep(0)
    encoder.go.set()
    assert [type(one) for one in await asyncio.gather(*calls, return_exceptions=True)] == [InvalidArgument] * 3
    assert (await get(cache, b"a", encoder.of(b"fine"))).entry.data == b"fine"


async def test_the_deadline_of_the_first_caller_does_not_end_the_others(encoder: Encoder) -> None:
    cache = MemoryCache(max_bytes=10_000)
    first = asyncio.create_task(get(cache, b"a", encoder.of(b"", DeadlineExceeded("too late"))))
    await asyncio.sleep(0)
    second = asyncio.create_task(get(cache, b"a", encoder.of(b"tokens")))
    await asyncio.sleep(0)
    encoder.go.set()
    with pytest.raises(DeadlineExceeded):
        await first
    assert (await second).entry.data == b"tokens"


async def test_an_entry_expires(encoder: Encoder) -> None:
    encoder.go.set()
    cache = MemoryCache(max_bytes=10_000, ttl_s=3600)
    await get(cache, b"a", encoder.of(b"tokens"))
    assert (await get(cache, b"a", encoder.of(b"?"))).level == MEMORY
    cache = MemoryCache(max_bytes=10_000, ttl_s=0.02)
    await get(cache, b"a", encoder.of(b"tokens"))
    await asyncio.sleep(0.05)
    assert (await get(cache, b"a", encoder.of(b"new"))).entry.data == b"new"


async def test_an_entry_corrupted_in_memory_is_encoded_again(encoder: Encoder) -> None:
    encoder.go.set()
    cache = MemoryCache(max_bytes=10_000)
    stored = await get(cache, b"a", encoder.of(b"tokens"))
    object.__setattr__(stored.entry, "data", b"tokenz")  # no code of ours does this
    assert (await get(cache, b"a", encoder.of(b"tokens"))).level == MISS
    assert (await get(cache, b"a", encoder.of(b"?"))).entry.data == b"tokens"


async def test_tokens_of_a_similar_image_are_not_stored_under_this_images_key(
    encoder: Encoder,
) -> None:
    encoder.go.set()
    cache = MemoryCache(max_bytes=10_000)
    similar = vision_pb2.SimilarImage(image_sha256=bytes(32), similarity=0.97)
    assert (await get(cache, b"a", encoder.of(b"other's", similar=similar, key=b"b"))).similar == similar
    assert (cache.num_bytes, cache.num_pinned) == (0, 0)
    assert (await get(cache, b"a", encoder.of(b"own"))).level == MISS


async def test_joining_callers_see_the_source_of_the_tokens(encoder: Encoder) -> None:
    """Tokens of a similar image are reported as similar."""
    cache = MemoryCache(max_bytes=0)
    similar = vision_pb2.SimilarImage(image_sha256=bytes(32), similarity=0.97)
    calls = [asyncio.create_task(get(cache, b"a", encoder.of(b"tokens", similar=similar, key=b"b"))) for _ in range(3)]
    await asyncio.sleep(0)
    encoder.go.set()
    found = await asyncio.gather(*calls)
    assert {one.level for one in found} == {gateway_pb2.CACHE_LEVEL_SIMILAR}
    assert all(one.similar == similar for one in found)
