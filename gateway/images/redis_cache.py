"""Visual tokens in Redis, shared by all gateways: a help that may be slow, full or gone, and is never believed unread.

Every value proves itself when it is read (`visual_entry`). Every operation has one short time, after which the gateway
goes on without it; a breaker stops asking what keeps failing. Nothing here ever raises for a request.
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
from gateway.images.breaker import Breaker
from gateway.images.entry import DamagedError, Entry, ForeignError, Wanted

CACHE_FOREIGN = Counter(
    "tandem_visual_cache_foreign", "Entries dropped for being whole, but not those asked for.", ["level"]
)
SHARED_SECONDS = Histogram(
    "tandem_gateway_shared_cache_seconds",
    "Operations Redis answered, seconds.",
    ["operation"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25),
)
SHARED_FAILURES = Counter(
    "tandem_gateway_shared_cache_failures",
    "Operations without an answer that helps: timeout, connection, full, refused, broken, or skipped (not tried).",
    ["operation", "kind"],
)
SHARED_BREAKER_OPEN = Gauge(
    "tandem_gateway_shared_cache_breaker_open", "1 while Redis is left alone because it kept failing."
)


LEVEL = "shared"
PREFIX = b"tandem:visual-tokens:1:"

_MAX_CONNECTIONS = 32
_MAX_WRITES = 32  # under way at once; what is beyond is not written, so that a slow Redis cannot fill our memory
_MAX_FAILURES = 5  # in a row, before Redis is left alone
_CLOSE_S = 1.0

_log = structlog.get_logger()
T = TypeVar("T")


class SharedCache:
    """Packed visual tokens by visual key in one Redis. For one event loop; close it."""

    def __init__(self, url: str, *, timeout_s: float, ttl_s: float, pause_s: float) -> None:
        """Connect to nothing yet.

        Args:
            url: redis://, rediss:// or unix://, with user, password and database as Redis clients take them.
            timeout_s: longest time of one operation, waiting for a connection included.
            ttl_s: how long Redis keeps an entry.
            pause_s: how long Redis is left alone once it has failed too often.
        """
        pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
            url,
            max_connections=_MAX_CONNECTIONS,  # the default pool raises when it is empty; this one waits
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),  # another try would take the time of the encoder
            protocol=2,  # nothing to say before the first question, and values are parsed faster
            driver_info=None,
        )
        self._redis = Redis.from_pool(pool)
        self._timeout_s = timeout_s
        self._ttl_ms = round(ttl_s * 1000)
        self._breaker = Breaker(max_failures=_MAX_FAILURES, pause_s=pause_s)
        self._writes: set[asyncio.Task[object]] = set()

    async def get(self, wanted: Wanted) -> Entry | None:
        """Return the entry that is wanted, None where there is none that holds or Redis does not say in time."""
        name = _name(wanted.visual_key)
        if not self._breaker.allows():
            CACHE_REQUESTS.labels(LEVEL, "skipped").inc()
            return None
        answered, value = await self._ask("get", lambda: self._redis.get(name))
        if not isinstance(value, bytes):
            CACHE_REQUESTS.labels(LEVEL, "miss" if answered else "failed").inc()
            return None
        try:
            entry = Entry.unpack(value, wanted)
        except (DamagedError, ForeignError) as error:
            CACHE_REQUESTS.labels(LEVEL, "miss").inc()
            (CACHE_CORRUPTED if isinstance(error, DamagedError) else CACHE_FOREIGN).labels(LEVEL).inc()
            _log.warning("shared visual tokens dropped", visual_key=wanted.visual_key.hex(), problem=str(error))
            await self._ask("delete", lambda: self._redis.delete(name))
            return None
        CACHE_REQUESTS.labels(LEVEL, "hit").inc()
        return entry

    def put(self, key: bytes, entry: Entry) -> None:
        """Write an entry in the background; nobody waits for it, and it may fail."""
        if len(self._writes) >= _MAX_WRITES or not self._breaker.allows():
            SHARED_FAILURES.labels("set", "skipped").inc()
            return
        value = entry.pack()
        write = asyncio.create_task(self._ask("set", lambda: self._redis.set(_name(key), value, px=self._ttl_ms)))
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)

    async def close(self) -> None:
        """Let writes under way end, each within its own time, and close the connections."""
        if self._writes:
            await asyncio.wait(self._writes)
        with suppress(TimeoutError, RedisError, OSError):
            async with asyncio.timeout(_CLOSE_S):
                await self._redis.aclose()

    async def _ask(self, operation: str, ask: Callable[[], Awaitable[T]]) -> tuple[bool, T | None]:
        """Return whether Redis answered, and what."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await ask()
        except Exception as error:  # whatever the client makes of a broken server is no reason to fail a request
            self._note_failure(operation, _kind(error))
            return False, None
        SHARED_SECONDS.labels(operation).observe(time.perf_counter() - started)
        self._note_answer()
        return True, answer

    def _note_failure(self, operation: str, kind: str) -> None:
        SHARED_FAILURES.labels(operation, kind).inc()
        if kind in ("full", "refused"):  # that was an answer, and a quick one
            self._note_answer()
            return
        was_open = self._breaker.is_open
        self._breaker.failed()
        if self._breaker.is_open and not was_open:
            SHARED_BREAKER_OPEN.set(1)
            _log.warning("shared cache is left alone", problem=kind)

    def _note_answer(self) -> None:
        if self._breaker.is_open:
            SHARED_BREAKER_OPEN.set(0)
            _log.info("shared cache answers again")
        self._breaker.succeeded()


def _name(key: bytes) -> bytes:
    return PREFIX + key.hex().encode()


def _kind(error: Exception) -> str:
    """Return what went wrong, as it is counted. Redis's own words may hold addresses."""
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return "timeout"
    if isinstance(error, OutOfMemoryError):
        return "full"
    if isinstance(error, RedisConnectionError | OSError):
        return "connection"
    return "refused" if isinstance(error, RedisError) else "broken"
