"""A Redis client that survives a failover and names its failures."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Literal, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from chassis.errors import FailedPrecondition

# `failover`: the server replied that it is no primary that works: READONLY, LOADING, MASTERDOWN, NOREPLICAS or
# CLUSTERDOWN. `auth`: it refuses the user, the password or the command. `cluster`: it is a node of a cluster. `full`:
# it has no memory, or no disk (MISCONF).
FailureKind = Literal["timeout", "connection", "failover", "auth", "cluster", "full", "refused", "broken"]

_CLOSE_TIMEOUT_S = 1.0
_FAILOVER_REPLIES = ("READONLY", "MASTERDOWN", "LOADING", "NOREPLICAS")
_MODES = {"cluster": "a node of a Redis Cluster", "sentinel": "a Redis Sentinel"}
T = TypeVar("T")


def failure_kind(error: BaseException) -> FailureKind:
    """Return the kind of a failed command.

    The error's own message may contain addresses.
    """
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return "timeout"
    if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError):
        return "auth"
    if isinstance(error, ReadOnlyError | BusyLoadingError | ClusterDownError) or _has_reply(error, *_FAILOVER_REPLIES):
        return "failover"
    if isinstance(error, AskError):  # MOVED too
        return "cluster"
    if isinstance(error, OutOfMemoryError) or _has_reply(error, "OOM", "MISCONF"):
        return "full"
    if isinstance(error, RedisConnectionError | OSError):
        return "connection"
    return "refused" if isinstance(error, RedisError) else "broken"


def is_connection_stale(error: BaseException) -> bool:
    """Return whether other connections may reach a better server.

    After a failover old connections can stay open to the server that lost its role, behind a proxy for example. The
    command did not run.
    """
    return failure_kind(error) in ("failover", "auth")


class RedisClient:
    """A pool of connections to one Redis.

    For one event loop.
    """

    def __init__(self, url: str, *, timeout_s: float, max_connections: int) -> None:
        """Prepare the connections. The first command connects.

        Args:
            url: redis://, rediss:// or unix://, with optional user, password and database.
            timeout_s: longest wait for a connection, and for one reply.
            max_connections: further commands wait for one of them.
        """
        self._pool: Any = BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,  # the default pool raises when it is empty, this one waits
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),  # a command that timed out may have run
            protocol=2,  # needs no handshake, and its replies are parsed faster
            driver_info=None,
        )
        self.commands: Any = Redis.from_pool(self._pool)

    async def reconnect(self) -> None:
        """Open every connection anew, those in use after their command."""
        await self._pool.update_active_connections_for_reconnect()
        with suppress(RedisError, OSError):
            await self._pool.disconnect(inuse_connections=False)

    async def run(self, command: Callable[[], Awaitable[T]]) -> T:
        """Run a command, and repeat it once after a failover.

        New connections may reach the new primary.

        Raises:
            RedisError, OSError: it failed.
        """
        try:
            return await command()
        except RedisError as error:
            if not is_connection_stale(error):
                raise
        await self.reconnect()
        return await command()

    async def check(self, setting: str) -> FailureKind | None:
        """Return why the server cannot be used now, or None.

        Args:
            setting: the name of the address, for the error.

        Raises:
            FailedPrecondition: reason 'BAD_REDIS', the address is a node of a Redis Cluster, or a Redis Sentinel.
        """
        try:
            greeting = await self.commands.execute_command("HELLO")
        except NoPermissionError:
            return None  # the user may still have the right to the commands that are needed
        except ResponseError as error:
            kind = failure_kind(error)
            return None if kind == "refused" else kind  # a server older than 6.0 does not know the command
        except (RedisError, OSError) as error:
            return failure_kind(error)
        mode = _MODES.get(_value(greeting, b"mode"))
        if mode is not None:
            raise FailedPrecondition(
                f"{setting} names {mode}: name a server without cluster mode, or a proxy that follows the primary.",
                reason="BAD_REDIS",
            )
        return None

    async def close(self) -> None:
        """Close the connections."""
        with suppress(TimeoutError, RedisError, OSError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self.commands.aclose()  # and its pool


def _value(greeting: Any, name: bytes) -> str:
    """Return one value of the reply to HELLO."""
    pairs = greeting if isinstance(greeting, dict) else dict(zip(greeting[::2], greeting[1::2], strict=False))
    value = pairs.get(name, pairs.get(name.decode(), b""))
    return value.decode() if isinstance(value, bytes) else str(value)


def _has_reply(error: BaseException, *replies: str) -> bool:
    """Return whether the server gave one of these replies.

    Redis before 7.0 quotes the reply to a script's command within an error of the script.
    """
    text = str(error) if isinstance(error, ResponseError) else ""
    return any(text.startswith(f"{reply} ") or f"-{reply} " in text for reply in replies)
