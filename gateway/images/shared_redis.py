"""Best-effort commands to the Redis that all gateways share.

Every command has a short timeout. A circuit breaker stops commands while Redis keeps failing. So Redis may be slow,
full or gone, and no request fails.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog
from prometheus_client import Counter, Gauge, Histogram

from chassis.redis_client import FailureKind, RedisClient, failure_kind, is_connection_stale
from gateway.images.breaker import CircuitBreaker

REDIS_SECONDS = Histogram(
    "tandem_gateway_shared_cache_seconds",
    "Duration of Redis operations that succeeded, seconds.",
    ["operation"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25),
)
REDIS_FAILURES = Counter(
    "tandem_gateway_shared_cache_failures",
    "Redis operations that failed: timeout, connection, auth, failover (not the primary, or loading), cluster, full, "
    "refused, broken, or skipped (not tried).",
    ["operation", "kind"],
)
REDIS_BREAKER_OPEN = Gauge(
    "tandem_gateway_shared_cache_breaker_open", "1 while the circuit breaker stops calls to Redis, else 0."
)

LONGEST_TIMEOUT_S = 1.0  # for commands with much data
_MAX_CONNECTIONS = 32
_MAX_FAILURES = 5  # consecutive failures that open the circuit breaker

_log = structlog.get_logger()
T = TypeVar("T")


class SharedRedis:
    """Runs commands of several caches. For one event loop."""

    def __init__(self, url: str, *, prefix: str = "tandem", timeout_s: float, pause_s: float) -> None:
        """Prepare the connections. The first command connects.

        Args:
            url: redis://, rediss:// or unix://, with optional user, password and database.
            prefix: of every key.
            timeout_s: limit for one command, including the wait for a connection, unless `execute` is told another one.
            pause_s: seconds between two attempts while the circuit breaker is open, and between two changes of all
                connections.
        """
        self.prefix = prefix.encode()
        # `execute` has the shorter limits.
        self._client = RedisClient(url, timeout_s=max(timeout_s, LONGEST_TIMEOUT_S), max_connections=_MAX_CONNECTIONS)
        self.commands: Any = self._client.commands
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._next_reconnect_s = 0.0
        self._breaker = CircuitBreaker(max_failures=_MAX_FAILURES, pause_s=pause_s)

    async def check(self) -> None:
        """Log why Redis cannot be used yet, if so.

        Raises:
            FailedPrecondition: reason 'BAD_REDIS', the address is not that of a single server.
        """
        problem = await self._client.check("--shared-cache-url")
        if problem is not None:
            _log.error("redis of the shared cache cannot be used", setting="--shared-cache-url", problem=problem)

    def allow(self) -> bool:
        """Return whether a command is allowed now."""
        return self._breaker.allow()

    async def execute(
        self, operation: str, command: Callable[[], Awaitable[T]], *, timeout_s: float | None = None
    ) -> tuple[bool, T | None]:
        """Return whether the command succeeded, and its result.

        Args:
            operation: its name in metrics.
            command: sends it.
            timeout_s: limit for this command. None is the usual one.
        """
        started = time.perf_counter()
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s):
                result = await command()
        except Exception as error:  # a broken server can make the client raise anything, and no request may fail
            self._record_failure(operation, failure_kind(error))
            if is_connection_stale(error):
                await self._reconnect()
            return False, None
        REDIS_SECONDS.labels(operation).observe(time.perf_counter() - started)
        self._record_reply()
        return True, result

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _reconnect(self) -> None:
        """Open all connections anew, at most once per pause.

        A server that stays a replica still answers reads.
        """
        if time.monotonic() >= self._next_reconnect_s:
            self._next_reconnect_s = time.monotonic() + self._pause_s
            await self._client.reconnect()

    def _record_failure(self, operation: str, kind: FailureKind) -> None:
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
