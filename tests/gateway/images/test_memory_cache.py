"""The cache of visual tokens: bounded, proved on read, shared by callers at the same time, pinned while in use."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from chassis.errors import DeadlineExceeded, InvalidArgument
from chassis.verified_cache import ENTRY_OVERHEAD_BYTES
from gateway.images.entry import Entry
from gateway.images.memory_cache import MemoryCache, SourcedTokens
from tandem.v1 import gateway_pb2, vision_pb2

HERE = gateway_pb2.CACHE_LEVEL_GATEWAY
MISS = gateway_pb2.CACHE_LEVEL_MISS
IN_FLIGHT = gateway_pb2.CACHE_LEVEL_IN_FLIGHT
ENTRY = ENTRY_OVERHEAD_BYTES + 10  # of ten bytes of data


class Encoder:
    """Counts what it encodes; waits for `go`."""

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


async def test_the_least_recently_used_makes_room(encoder: Encoder) -> None:
    encoder.go.set()
    cache = MemoryCache(max_bytes=2 * ENTRY)
    for key in (b"a", b"b", b"a", b"c"):
        await get(cache, key, encoder.of(key * 10, key=key))
    levels = [(await get(cache, key, encoder.of(key * 10, key=key))).level for key in (b"a", b"c", b"b")]
    assert levels == [HERE, HERE, MISS]


async def test_what_is_in_use_is_not_dropped(encoder: Encoder) -> None:
    encoder.go.set()
    cache = MemoryCache(max_bytes=2 * ENTRY)
    async with cache.use(b"a", encoder.of(b"a" * 10)):
        for key in (b"b", b"c", b"d"):
            await get(cache, key, encoder.of(key * 10, key=key))
        assert cache.num_pinned == 1
        assert (await get(cache, b"a", encoder.of(b"?"))).level == HERE
    assert cache.num_pinned == 0


async def test_what_does_not_fit_beside_pinned_entries_is_served_but_not_kept(encoder: Encoder) -> None:
    encoder.go.set()
    cache = MemoryCache(max_bytes=ENTRY + 5)
    async with cache.use(b"a", encoder.of(b"a" * 10)):
        assert (await get(cache, b"b", encoder.of(b"b" * 10, key=b"b"))).entry.data == b"b" * 10
    assert cache.num_bytes == ENTRY


async def test_callers_at_the_same_time_share_one_encoding(encoder: Encoder) -> None:
    cache = MemoryCache(max_bytes=0)
    calls = [asyncio.create_task(get(cache, b"a", encoder.of(b"tokens"))) for _ in range(5)]
    await asyncio.sleep(0)
    encoder.go.set()
    found = await asyncio.gather(*calls)
    assert encoder.num_started == 1
    assert sorted(one.level for one in found) == [MISS] + [IN_FLIGHT] * 4
    assert {one.entry.data for one in found} == {b"tokens"}


async def test_a_caller_that_leaves_does_not_stop_the_others(encoder: Encoder) -> None:
    cache = MemoryCache(max_bytes=10_000)
    first = asyncio.create_task(get(cache, b"a", encoder.of(b"tokens")))
    second = asyncio.create_task(get(cache, b"a", encoder.of(b"tokens")))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    encoder.go.set()
    assert (await second).entry.data == b"tokens"


async def test_the_last_caller_that_leaves_stops_the_encoding(encoder: Encoder) -> None:
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


async def test_an_error_reaches_all_who_wait_and_is_not_kept(encoder: Encoder) -> None:
    cache = MemoryCache(max_bytes=10_000)
    error = InvalidArgument("broken")
    calls = [asyncio.create_task(get(cache, b"a", encoder.of(b"", error))) for _ in range(3)]
    await asyncio.sleep(0)
    encoder.go.set()
    assert [type(one) for one in await asyncio.gather(*calls, return_exceptions=True)] == [InvalidArgument] * 3
    assert (await get(cache, b"a", encoder.of(b"fine"))).entry.data == b"fine"


async def test_the_deadline_of_whoever_came_first_does_not_end_the_others(encoder: Encoder) -> None:
    cache = MemoryCache(max_bytes=10_000)
    first = asyncio.create_task(get(cache, b"a", encoder.of(b"", DeadlineExceeded("too late"))))
    await asyncio.sleep(0)
    second = asyncio.create_task(get(cache, b"a", encoder.of(b"tokens")))
    await asyncio.sleep(0)
    encoder.go.set()
    with pytest.raises(DeadlineExceeded):
        await first
    assert (await second).entry.data == b"tokens"


async def test_an_entry_is_given_out_for_its_time_and_no_longer(encoder: Encoder) -> None:
    encoder.go.set()
    cache = MemoryCache(max_bytes=10_000, ttl_s=3600)
    await get(cache, b"a", encoder.of(b"tokens"))
    assert (await get(cache, b"a", encoder.of(b"?"))).level == HERE
    cache = MemoryCache(max_bytes=10_000, ttl_s=0.02)
    await get(cache, b"a", encoder.of(b"tokens"))
    await asyncio.sleep(0.05)
    assert (await get(cache, b"a", encoder.of(b"new"))).entry.data == b"new"


async def test_an_entry_whose_bytes_changed_in_memory_is_encoded_again(encoder: Encoder) -> None:
    encoder.go.set()
    cache = MemoryCache(max_bytes=10_000)
    kept = await get(cache, b"a", encoder.of(b"tokens"))
    object.__setattr__(kept.entry, "data", b"tokenz")  # what no code of ours does
    assert (await get(cache, b"a", encoder.of(b"tokens"))).level == MISS
    assert (await get(cache, b"a", encoder.of(b"?"))).entry.data == b"tokens"


async def test_tokens_of_a_similar_image_answer_this_time_and_are_never_kept_under_this_key(
    encoder: Encoder,
) -> None:
    encoder.go.set()
    cache = MemoryCache(max_bytes=10_000)
    similar = vision_pb2.SimilarImage(image_sha256=bytes(32), similarity=0.97)
    assert (await get(cache, b"a", encoder.of(b"other's", similar=similar, key=b"b"))).similar == similar
    assert (cache.num_bytes, cache.num_pinned) == (0, 0)
    assert (await get(cache, b"a", encoder.of(b"own"))).level == MISS


async def test_those_who_join_see_where_the_tokens_came_from(encoder: Encoder) -> None:
    """Only what was encoded for another request is theirs by joining; a similar image's tokens stay that."""
    cache = MemoryCache(max_bytes=0)
    similar = vision_pb2.SimilarImage(image_sha256=bytes(32), similarity=0.97)
    calls = [asyncio.create_task(get(cache, b"a", encoder.of(b"tokens", similar=similar, key=b"b"))) for _ in range(3)]
    await asyncio.sleep(0)
    encoder.go.set()
    found = await asyncio.gather(*calls)
    assert {one.level for one in found} == {gateway_pb2.CACHE_LEVEL_SIMILAR}
    assert all(one.similar == similar for one in found)
