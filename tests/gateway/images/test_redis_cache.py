"""The Redis cache survives every failure of a real server."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from prometheus_client import REGISTRY

from gateway.images.entry import Entry, ExpectedTokens, TokenShape
from gateway.images.redis_cache import RedisCache
from gateway.images.shared_redis import SharedRedis
from tests.gateway.images.test_entry import ENTRY, EXPECTED, tokens_for
from tests.gateway.redis_server import RedisServer
from tests.gateway.scripted import eventually

# Both timeouts are longer than in production, because the machine of the tests is busy.
PATIENT_S = 5.0
TIMEOUT_S = 0.2  # for servers that do not answer
PAUSE_S = 0.3
BUSY_S = 3.0  # delay that a busy machine may add
REDIS_KEY = b"tandem:visual-tokens:1:" + EXPECTED.visual_key.hex().encode()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(running: RedisServer) -> RedisServer:
    """Return the server, restarted and empty."""
    running.kill()
    running.start()
    return running


@pytest.fixture
async def cache(redis: RedisServer) -> AsyncIterator[RedisCache]:
    cache = open_cache(redis)
    yield cache
    await cache.close()


@pytest.fixture
async def hasty(redis: RedisServer) -> AsyncIterator[RedisCache]:
    """Yield a cache with a short timeout."""
    cache = open_cache(redis, timeout_s=TIMEOUT_S)
    yield cache
    await cache.close()


class OpenCache(RedisCache):
    """A cache with a client of its own."""

    def __init__(self, url: str, *, timeout_s: float, ttl_s: float, **further: str) -> None:
        self._own = SharedRedis(url, timeout_s=timeout_s, pause_s=PAUSE_S, **further)
        super().__init__(self._own, ttl_s=ttl_s)

    async def close(self) -> None:
        await super().close()
        await self._own.close()


def open_cache(redis: RedisServer, *, timeout_s: float = PATIENT_S, ttl_s: float = 60, **further: str) -> RedisCache:
    return OpenCache(redis.url, timeout_s=timeout_s, ttl_s=ttl_s, **further)


async def store(cache: RedisCache, redis: RedisServer) -> None:
    """Put the entry and wait until it is stored."""
    cache.put(EXPECTED.visual_key, ENTRY)
    await eventually(lambda: redis.client.exists(REDIS_KEY) == 1, within_s=PATIENT_S)


def count(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"{name}_total", labels) or 0


def failures(operation: str, kind: str) -> float:
    return count("tandem_gateway_shared_cache_failures", operation=operation, kind=kind)


def is_breaker_open() -> bool:
    return REGISTRY.get_sample_value("tandem_gateway_shared_cache_breaker_open") == 1


async def test_gateways_share_entries(cache: RedisCache, redis: RedisServer) -> None:
    assert await cache.get(EXPECTED) is None
    await store(cache, redis)
    other = open_cache(redis)
    assert await other.get(EXPECTED) == ENTRY
    await other.close()


async def test_an_entry_has_the_configured_lifetime(redis: RedisServer) -> None:
    cache = open_cache(redis, ttl_s=60)
    await store(cache, redis)
    assert 0 < redis.client.pttl(REDIS_KEY) <= 60_000
    await cache.close()


async def test_every_expected_property_is_checked(cache: RedisCache, redis: RedisServer) -> None:
    """An entry never answers for another image or encoder."""
    others = {
        "visual_key": replace(EXPECTED, visual_key=b"K" * 32),
        "vision_digest": replace(EXPECTED, vision_digest=b"V" * 32),
        "shape": replace(EXPECTED, shape=TokenShape(4), token_width=3),
        "token_width": replace(EXPECTED, token_width=5),
    }
    for other in others.values():
        await store(cache, redis)
        assert await cache.get(other) is None
    await store(cache, redis)
    assert await cache.get(EXPECTED) == ENTRY


@pytest.mark.parametrize(
    ("value", "counter"),
    [
        pytest.param(ENTRY.pack()[:-5], "tandem_visual_cache_corrupted", id="truncated"),
        pytest.param(ENTRY.pack()[:-1] + b"!", "tandem_visual_cache_corrupted", id="changed"),
        pytest.param(b"hello", "tandem_visual_cache_corrupted", id="not an entry"),
        pytest.param(b"", "tandem_visual_cache_corrupted", id="empty"),
        pytest.param(
            Entry.of(tokens_for(replace(EXPECTED, visual_key=b"K" * 32)).SerializeToString()).pack(),
            "tandem_visual_cache_foreign",
            id="another image's",
        ),
        pytest.param(Entry.of(b"hello").pack(), "tandem_visual_cache_foreign", id="not visual tokens"),
    ],
)
async def test_an_invalid_entry_is_dropped_and_counted(
    value: bytes, counter: str, cache: RedisCache, redis: RedisServer
) -> None:
    redis.client.set(REDIS_KEY, value)
    before = count(counter, level="shared")
    assert await cache.get(EXPECTED) is None
    assert count(counter, level="shared") == before + 1
    assert not redis.client.exists(REDIS_KEY)


async def test_a_redis_key_of_another_type_is_a_miss(cache: RedisCache, redis: RedisServer) -> None:
    redis.client.lpush(REDIS_KEY, "one")
    before = failures("get", "refused")
    assert await cache.get(EXPECTED) is None
    assert failures("get", "refused") == before + 1


async def test_a_full_server_rejects_writes_and_serves_reads(cache: RedisCache, redis: RedisServer) -> None:
    await store(cache, redis)
    redis.fill()
    before = failures("set", "full")
    other = replace(EXPECTED, visual_key=b"K" * 32)
    for _ in range(10):  # more than the failures that open the breaker
        cache.put(other.visual_key, Entry.of(tokens_for(other).SerializeToString()))
    await eventually(lambda: failures("set", "full") == before + 10, within_s=PATIENT_S)
    assert await cache.get(EXPECTED) == ENTRY


async def test_a_frozen_server_costs_a_few_timeouts_until_the_breaker_opens(
    cache: RedisCache, hasty: RedisCache, redis: RedisServer
) -> None:
    await store(cache, redis)
    redis.freeze()
    before = failures("get", "timeout")
    for _ in range(5):
        started = time.perf_counter()
        assert await hasty.get(EXPECTED) is None
        assert TIMEOUT_S * 0.9 < time.perf_counter() - started < TIMEOUT_S + BUSY_S
    assert is_breaker_open()
    started = time.perf_counter()
    for _ in range(100):
        await hasty.get(EXPECTED)
    num_pauses = (time.perf_counter() - started) // PAUSE_S + 1
    assert failures("get", "timeout") - before <= 5 + num_pauses
    redis.thaw()
    await asyncio.sleep(PAUSE_S)
    await eventually_found(hasty)
    assert not is_breaker_open()


async def eventually_found(cache: RedisCache) -> None:
    """Retry until found: a thawed server may be slow once."""
    for _ in range(20):
        if await cache.get(EXPECTED) == ENTRY:
            return
        await asyncio.sleep(PAUSE_S)
    raise AssertionError("the entry was never found again")


async def test_concurrent_calls_wait_no_longer_than_one(redis: RedisServer) -> None:
    """The timeout includes the wait for a connection.

    One after the other, these calls would take six seconds.
    """
    cache = open_cache(redis, timeout_s=1.0)
    redis.freeze()
    started = time.perf_counter()
    assert await asyncio.gather(*(cache.get(EXPECTED) for _ in range(200))) == [None] * 200
    assert time.perf_counter() - started < 1.0 + BUSY_S
    await cache.close()


async def test_a_restarted_server_is_used_again(cache: RedisCache, redis: RedisServer) -> None:
    await store(cache, redis)
    redis.kill()
    for _ in range(10):
        assert await cache.get(EXPECTED) is None
        cache.put(EXPECTED.visual_key, ENTRY)
    assert is_breaker_open()
    redis.start()
    await asyncio.sleep(PAUSE_S)
    assert await cache.get(EXPECTED) is None  # it is empty now, but it answers
    assert not is_breaker_open()
    await store(cache, redis)
    assert await cache.get(EXPECTED) == ENTRY


async def test_a_cancelled_call_leaves_no_reply_for_the_next_call(cache: RedisCache, redis: RedisServer) -> None:
    """An unread reply would answer the connection's next call."""
    await store(cache, redis)
    absent = replace(EXPECTED, visual_key=b"K" * 32)
    for round_ in range(50):
        leaving = [asyncio.create_task(cache.get(EXPECTED)) for _ in range(4)]
        for _ in range(round_ % 8):
            await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        assert await cache.get(absent) is None
        assert await cache.get(EXPECTED) == ENTRY


async def test_a_server_with_another_protocol_is_a_miss(redis: RedisServer) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        cache = OpenCache(f"redis://127.0.0.1:{port}", timeout_s=PATIENT_S, ttl_s=60)
        assert await cache.get(EXPECTED) is None
        await cache.close()


async def test_a_frozen_server_does_not_delay_closing(redis: RedisServer) -> None:
    cache = open_cache(redis, timeout_s=TIMEOUT_S)
    redis.freeze()
    cache.put(EXPECTED.visual_key, ENTRY)
    started = time.perf_counter()
    await cache.close()
    assert time.perf_counter() - started < TIMEOUT_S + BUSY_S


async def test_a_wrong_password_is_counted_as_such_and_logged_at_the_start(tmp_path: Path) -> None:
    with RedisServer(tmp_path, password="secret") as server:
        redis = SharedRedis(server.url.replace("secret", "wrong"), timeout_s=PATIENT_S, pause_s=PAUSE_S)
        with structlog.testing.capture_logs() as logs:
            await redis.check()
        assert [(line["log_level"], line["problem"]) for line in logs] == [("error", "auth")]
        assert "wrong" not in str(logs)
        before = failures("get", "auth")
        cache = RedisCache(redis, ttl_s=60)
        assert await cache.get(EXPECTED) is None
        assert failures("get", "auth") == before + 1
        await redis.close()


async def test_a_missing_password_is_counted_as_such(tmp_path: Path) -> None:
    with RedisServer(tmp_path, password="secret") as server:
        cache = OpenCache(f"redis://127.0.0.1:{server.port}", timeout_s=PATIENT_S, ttl_s=60)
        before = failures("get", "auth")
        assert await cache.get(EXPECTED) is None
        assert failures("get", "auth") == before + 1
        await cache.close()


async def test_caches_with_different_prefixes_share_nothing(cache: RedisCache, redis: RedisServer) -> None:
    await store(cache, redis)
    other = open_cache(redis, prefix="staging")
    assert await other.get(EXPECTED) is None
    other.put(EXPECTED.visual_key, ENTRY)
    name = b"staging:visual-tokens:1:" + EXPECTED.visual_key.hex().encode()
    await eventually(lambda: redis.client.exists(name) == 1, within_s=PATIENT_S)
    await other.close()


def test_expected_tokens_have_no_unchecked_property() -> None:
    """Add a check above for every new property."""
    assert set(ExpectedTokens.__dataclass_fields__) == {"visual_key", "vision_digest", "shape", "token_width"}
