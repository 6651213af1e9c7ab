"""Best-effort Redis cache of visual tokens, shared by all gateways.

Every entry is verified on read. Every operation has a short timeout, after which the request goes on without Redis. A
circuit breaker stops calls while Redis keeps failing. So Redis may be slow, full or gone, and no request fails.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import structlog
from prometheus_client import Counter, Gauge, Histogram
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from chassis.cache_metrics import CACHE_CORRUPTED, CACHE_REQUESTS
from gateway.images.breaker import CircuitBreaker
from gateway.images.entry import CorruptedEntryError, Entry, ExpectedTokens, ForeignTokensError

CACHE_FOREIGN = Counter(
    "tandem_visual_cache_foreign", "Entries dropped because they belong to another image or encoder.", ["level"]
)
REDIS_SECONDS = Histogram(
    "tandem_gateway_shared_cache_seconds",
    "Duration of Redis operations that succeeded, seconds.",
    ["operation"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25),
)
REDIS_FAILURES = Counter(
    "tandem_gateway_shared_cache_failures",
    "Redis operations that failed: timeout, connection, full, refused, broken, or skipped (not tried).",
    ["operation", "kind"],
)
REDIS_BREAKER_OPEN = Gauge(
    "tandem_gateway_shared_cache_breaker_open", "1 while the circuit breaker stops calls to Redis, else 0."
)


LEVEL = "shared"
KEY_PREFIX = b"tandem:visual-tokens:1:"

_MAX_CONNECTIONS = 32
_MAX_WRITES = 32  # in flight. Further writes are dropped, so that a slow Redis cannot fill the memory of the gateway
_MAX_FAILURES = 5  # consecutive failures that open the circuit breaker
_CLOSE_TIMEOUT_S = 1.0

_log = structlog.get_logger()
T = TypeVar("T")


class RedisCache:
    """Packed entries by visual key in one Redis.

    For one event loop. Call `close` at the end.
    """

    def __init__(self, url: str, *, timeout_s: float, ttl_s: float, pause_s: float) -> None:
        """Prepare the connections. The first operation connects.

        Args:
            url: redis://, rediss:// or unix://, with optional user, password and database.
            timeout_s: limit for one operation, including the wait for a connection.
            ttl_s: seconds before Redis expires an entry.
            pause_s: seconds between two attempts while the circuit breaker is open.
        """
        pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
            url,
            max_connections=_MAX_CONNECTIONS,  # the default pool raises when it is empty, this one waits
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),  # encoding the image is faster than a retry
            protocol=2,  # needs no handshake, and its replies are parsed faster
            driver_info=None,
        )
        self._redis = Redis.from_pool(pool)
        self._timeout_s = timeout_s
        self._ttl_ms = round(ttl_s * 1000)
        self._breaker = CircuitBreaker(max_failures=_MAX_FAILURES, pause_s=pause_s)
        self._writes: set[asyncio.Task[object]] = set()

    async def get(self, expected: ExpectedTokens) -> Entry | None:
        """Return the entry with the expected visual tokens.

        None is a miss, a timeout or another failure. An entry that fails its verification is deleted.
        """
        redis_key = _redis_key(expected.visual_key)
        if not self._breaker.allow():
            CACHE_REQUESTS.labels(LEVEL, "skipped").inc()
            return None
        succeeded, value = await self._execute("get", lambda: self._redis.get(redis_key))
        if not isinstance(value, bytes):
            CACHE_REQUESTS.labels(LEVEL, "miss" if succeeded else "failed").inc()
            return None
        try:
            entry = Entry.unpack(value, expected)
        except (CorruptedEntryError, ForeignTokensError) as error:
            CACHE_REQUESTS.labels(LEVEL, "miss").inc()
            (CACHE_CORRUPTED if isinstance(error, CorruptedEntryError) else CACHE_FOREIGN).labels(LEVEL).inc()
            _log.warning("redis entry dropped", visual_key=expected.visual_key.hex(), problem=str(error))
            await self._execute("delete", lambda: self._redis.delete(redis_key))
            return None
        CACHE_REQUESTS.labels(LEVEL, "hit").inc()
        return entry

    def put(self, key: bytes, entry: Entry) -> None:
        """Write an entry in the background, best effort."""
        if len(self._writes) >= _MAX_WRITES or not self._breaker.allow():
            REDIS_FAILURES.labels("set", "skipped").inc()
            return
        value = entry.pack()
        write = asyncio.create_task(
            self._execute("set", lambda: self._redis.set(_redis_key(key), value, px=self._ttl_ms))
        )
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)

    async def close(self) -> None:
        """Wait for writes in flight, then close the connections."""
        if self._writes:
            await asyncio.wait(self._writes)  # each has its own timeout
        with suppress(TimeoutError, RedisError, OSError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._redis.aclose()

    async def _execute(self, operation: str, command: Callable[[], Awaitable[T]]) -> tuple[bool, T | None]:
        """Return whether the command succeeded, and its result."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                result = await command()
        except Exception as error:  # a broken server can make the client raise anything, and no request may fail
            self._record_failure(operation, _kind(error))
            return False, None
        REDIS_SECONDS.labels(operation).observe(time.perf_counter() - started)
        self._record_reply()
        return True, result

    def _record_failure(self, operation: str, kind: str) -> None:
        REDIS_FAILURES.labels(operation, kind).inc()
        if kind in ("full", "refused"):  # Redis works: it replied, and fast
            self._record_reply()
            return
        was_open = self._breaker.is_open
        self._breaker.record_failure()
        if self._breaker.is_open and not was_open:
            REDIS_BREAKER_OPEN.set(1)
            _log.warning("redis circuit breaker opened", problem=kind)

    def _record_reply(self) -> None:
        if self._breaker.is_open:
            REDIS_BREAKER_OPEN.set(0)
            _log.info("redis circuit breaker closed")
        self._breaker.record_success()


def _redis_key(visual_key: bytes) -> bytes:
    return KEY_PREFIX + visual_key.hex().encode()


def _kind(error: Exception) -> str:
    """Return the kind of a failure, for metrics and logs.

    The error's own message may contain addresses.
    """
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return "timeout"
    if isinstance(error, OutOfMemoryError):
        return "full"
    if isinstance(error, RedisConnectionError | OSError):
        return "connection"
    return "refused" if isinstance(error, RedisError) else "broken"
