"""The rollout store of several gateways, in Redis.

A compare-and-set lets exactly one of them decide.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import TypeAdapter, ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from chassis.errors import Unavailable
from gateway.rollout.policy import Counts, State
from gateway.rollout.store import Document, Heartbeat, bad_state

# A gateway without a heartbeat for so long is dead. The settings keep ticks shorter than this.
HEARTBEAT_TIMEOUT_S = 10
_COUNTS_TTL_S = 7 * 24 * 3600  # after the last request of a step

# Version and state change together, and only from the expected version.
_COMPARE_AND_SET = """
if (redis.call('HGET', KEYS[1], 'version') or '0') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'state', ARGV[3])
return 1
"""
# Uses the clock of Redis, the one clock that all gateways share.
_HEARTBEAT = """
local now = tonumber(redis.call('TIME')[1])
redis.call('HSET', KEYS[1], ARGV[1], now .. ' ' .. ARGV[2])
local living = {}
local all = redis.call('HGETALL', KEYS[1])
for index = 1, #all, 2 do
  local at, text = string.match(all[index + 1], '^(%d+) (.*)$')
  if now - tonumber(at) > tonumber(ARGV[3]) then
    redis.call('HDEL', KEYS[1], all[index])
  else
    table.insert(living, text)
  end
end
return living
"""
# Taken if it is free, renewed if it is the gateway's own.
_LEASE = """
local holder = redis.call('GET', KEYS[1])
if holder and (holder ~= ARGV[1] or ARGV[3] == '0') then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

_STATE = TypeAdapter(State)


class RedisStore:
    """Keeps document, counts and heartbeats under one prefix."""

    def __init__(self, url: str, *, prefix: str = "tandem:rollout", timeout_s: float = 1.0) -> None:
        """Prepare a client, which connects on the first call.

        Args:
            url: 'redis://host:port/db', or rediss:// for TLS.
            prefix: of every key. Gateways with the same prefix act as one.
            timeout_s: longest wait for one reply, seconds.
        """
        self._redis: Any = Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
        self._prefix = f"{{{prefix}}}"  # the braces keep all keys in one slot of a cluster
        self._compare_and_set_script = self._redis.register_script(_COMPARE_AND_SET)
        self._heartbeat_script = self._redis.register_script(_HEARTBEAT)
        self._lease_script = self._redis.register_script(_LEASE)

    async def read(self) -> Document:
        """Return the document."""
        with _translate_errors():
            version, state = await self._redis.hmget(f"{self._prefix}:state", "version", "state")
        if version is None:
            return Document()
        try:
            return Document(version=int(version), state=_STATE.validate_json(state or b""))
        except (ValueError, ValidationError) as error:
            raise bad_state("The rollout state in Redis") from error

    async def compare_and_set(self, expected_version: int, document: Document) -> bool:
        """Replace a document of `expected_version`. Return whether it did."""
        assert document.state is not None, "a store never returns to the time before the first rollout"
        state = _STATE.dump_json(document.state)
        with _translate_errors():
            return bool(
                await self._compare_and_set_script(
                    keys=[f"{self._prefix}:state"], args=[expected_version, document.version, state]
                )
            )

    async def add(self, window: str, counts: Counts) -> Counts:
        """Add counts of a step. Return all gateways' sums."""
        key = f"{self._prefix}:counts:{window}"
        with _translate_errors():
            async with self._redis.pipeline(transaction=True) as pipeline:
                for path, count in counts.to_paths().items():
                    pipeline.hincrby(key, path, count)
                pipeline.expire(key, _COUNTS_TTL_S)
                pipeline.hgetall(key)
                *_, total = await pipeline.execute()
        return Counts.from_paths({path.decode(): int(count) for path, count in total.items()})

    async def heartbeat(self, own: Heartbeat) -> list[Heartbeat]:
        """Report this gateway as alive. Return all living gateways."""
        arguments: list[str | int] = [own.gateway, own.model_dump_json(), HEARTBEAT_TIMEOUT_S]
        with _translate_errors():
            living = await self._heartbeat_script(keys=[f"{self._prefix}:gateways"], args=arguments)
        return [Heartbeat.model_validate_json(text) for text in living]

    async def take_lease(self, task: str, gateway: str, seconds: float, *, renew: bool = True) -> bool:
        """Take or renew a lease. Return whether it succeeded."""
        with _translate_errors():
            return bool(
                await self._lease_script(
                    keys=[f"{self._prefix}:lease:{task}"], args=[gateway, max(1, round(seconds * 1000)), int(renew)]
                )
            )

    async def remember(self, texts: Mapping[str, str], seconds: float) -> None:
        """Keep texts by key, for other gateways."""
        with _translate_errors():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for key, text in texts.items():
                    pipeline.set(f"{self._prefix}:text:{key}", text, ex=math.ceil(seconds))
                await pipeline.execute()

    async def recall(self, key: str) -> str | None:
        """Return a text that any gateway keeps, None if unknown."""
        with _translate_errors():
            text = await self._redis.get(f"{self._prefix}:text:{key}")
        return text.decode() if text is not None else None

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise Unavailable(
            "The rollout store cannot be reached. Try again.", reason="ROLLOUT_STORE_UNREACHABLE", retry_after_s=1
        ) from error
