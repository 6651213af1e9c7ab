"""The cache of visual tokens: bounded, shared by callers at the same time, pinned while in use."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from chassis.errors import DeadlineExceeded, InvalidArgument
from gateway.visual_cache import Found, VisualCache


class Encoder:
    """Counts what it encodes; waits for `go`."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.num_started = 0
        self.num_cancelled = 0

    def of(self, data: bytes, error: Exception | None = None) -> Callable[[], Coroutine[Any, Any, bytes]]:
        async def encode() -> bytes:
            self.num_started += 1
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.num_cancelled += 1
                raise
            if error is not None:
                raise error
            return data

        return encode


async def get(cache: VisualCache, key: bytes, encode: Callable[[], Coroutine[Any, Any, bytes]]) -> Found:
    async with cache.use(key, encode) as found:
        return found


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


async def test_the_least_recently_used_makes_room(encoder: Encoder) -> None:
    encoder.go.set()
    cache = VisualCache(max_bytes=20)
    for key in (b"a", b"b", b"a", b"c"):
        await get(cache, key, encoder.of(key * 10))
    assert [(await get(cache, key, encoder.of(key * 10))).was_cached for key in (b"a", b"c", b"b")] == [
        True,
        True,
        False,
    ]


async def test_what_is_in_use_is_not_dropped(encoder: Encoder) -> None:
    encoder.go.set()
    cache = VisualCache(max_bytes=20)
    async with cache.use(b"a", encoder.of(b"a" * 10)):
        for key in (b"b", b"c", b"d"):
            await get(cache, key, encoder.of(key * 10))
        assert cache.num_pinned == 1
        assert (await get(cache, b"a", encoder.of(b"?"))).was_cached
    assert cache.num_pinned == 0


async def test_what_does_not_fit_beside_pinned_entries_is_served_but_not_kept(encoder: Encoder) -> None:
    encoder.go.set()
    cache = VisualCache(max_bytes=15)
    async with cache.use(b"a", encoder.of(b"a" * 10)):
        assert (await get(cache, b"b", encoder.of(b"b" * 10))).data == b"b" * 10
    assert cache.num_bytes == 10


async def test_callers_at_the_same_time_share_one_encoding(encoder: Encoder) -> None:
    cache = VisualCache(max_bytes=0)
    calls = [asyncio.create_task(get(cache, b"a", encoder.of(b"tokens"))) for _ in range(5)]
    await asyncio.sleep(0)
    encoder.go.set()
    found = await asyncio.gather(*calls)
    assert encoder.num_started == 1
    assert [one.was_cached for one in found].count(False) == 1
    assert {one.data for one in found} == {b"tokens"}


async def test_a_caller_that_leaves_does_not_stop_the_others(encoder: Encoder) -> None:
    cache = VisualCache(max_bytes=100)
    first = asyncio.create_task(get(cache, b"a", encoder.of(b"tokens")))
    second = asyncio.create_task(get(cache, b"a", encoder.of(b"tokens")))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    encoder.go.set()
    assert (await second).data == b"tokens"


async def test_the_last_caller_that_leaves_stops_the_encoding(encoder: Encoder) -> None:
    cache = VisualCache(max_bytes=100)
    calls = [asyncio.create_task(get(cache, b"a", encoder.of(b"tokens"))) for _ in range(2)]
    await asyncio.sleep(0.01)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await asyncio.sleep(0)
    assert encoder.num_cancelled == 1
    encoder.go.set()
    assert not (await get(cache, b"a", encoder.of(b"new"))).was_cached


async def test_an_error_reaches_all_who_wait_and_is_not_kept(encoder: Encoder) -> None:
    cache = VisualCache(max_bytes=100)
    error = InvalidArgument("broken")
    calls = [asyncio.create_task(get(cache, b"a", encoder.of(b"", error))) for _ in range(3)]
    await asyncio.sleep(0)
    encoder.go.set()
    assert [type(one) for one in await asyncio.gather(*calls, return_exceptions=True)] == [InvalidArgument] * 3
    assert (await get(cache, b"a", encoder.of(b"fine"))).data == b"fine"


async def test_the_deadline_of_whoever_came_first_does_not_end_the_others(encoder: Encoder) -> None:
    cache = VisualCache(max_bytes=100)
    first = asyncio.create_task(get(cache, b"a", encoder.of(b"", DeadlineExceeded("too late"))))
    await asyncio.sleep(0)
    second = asyncio.create_task(get(cache, b"a", encoder.of(b"tokens")))
    await asyncio.sleep(0)
    encoder.go.set()
    with pytest.raises(DeadlineExceeded):
        await first
    assert (await second).data == b"tokens"
