"""The store of several gateways: Redis, where a compare-and-set lets exactly one of them decide."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from chassis.errors import Unavailable
from gateway.rollout.policy import Counts, State
from gateway.rollout.store import Document, Presence, bad_state

_COUNTS_KEPT_S = 7 * 24 * 3600  # after the last request of a step
SILENT_AFTER_S = 10  # a gateway that has not told of itself for so long is gone; the settings keep ticks shorter

# Version and state change together or not at all, and only from the version that was read.
_SWAP = """
if (redis.call('HGET', KEYS[1], 'version') or '0') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'state', ARGV[3])
return 1
"""
# By the clock of Redis, the one clock all gateways share.
_REPORT = """
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


class RedisStore:
    """Keeps the document, the counts of each step and who is there under keys with one prefix."""

    def __init__(self, url: str, *, prefix: str = "tandem:rollout", timeout_s: float = 1.0) -> None:
        """Connect with the first call.

        Args:
            url: 'redis://host:port/db', or rediss:// for TLS.
            timeout_s: longest wait for one answer, seconds.
            prefix: of every key; gateways with the same one act as one. The braces keep them in one cluster slot.
        """
        self._redis: Any = Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
        self._prefix = f"{{{prefix}}}"
        self._swap = self._redis.register_script(_SWAP)
        self._report = self._redis.register_script(_REPORT)

    async def read(self) -> Document:
        """Return what is kept."""
        with _reaching():
            version, state = await self._redis.hmget(f"{self._prefix}:state", "version", "state")
        if version is None:
            return Document()
        try:
            return Document(version=int(version), state=State.model_validate_json(state or b""))
        except (ValueError, ValidationError) as error:
            raise bad_state("The rollout state in Redis cannot be read") from error

    async def swap(self, expected_version: int, document: Document) -> bool:
        """Keep `document` if what is kept has `expected_version`; say whether it did."""
        assert document.state is not None, "a store never goes back to before the first rollout"
        arguments: list[str | int] = [expected_version, document.version, document.state.model_dump_json()]
        with _reaching():
            return bool(await self._swap(keys=[f"{self._prefix}:state"], args=arguments))

    async def add(self, window: str, counts: Counts) -> Counts:
        """Add to the counts of a window; return the sums of all gateways."""
        key = f"{self._prefix}:counts:{window}"
        with _reaching():
            async with self._redis.pipeline(transaction=True) as pipeline:
                for name, count in counts.items():
                    pipeline.hincrby(key, name, count)
                pipeline.expire(key, _COUNTS_KEPT_S)
                pipeline.hgetall(key)
                *_, total = await pipeline.execute()
        return Counts({name.decode(): int(count) for name, count in total.items()})

    async def report(self, presence: Presence) -> list[Presence]:
        """Tell of this gateway; return all that told of themselves within the last seconds."""
        arguments: list[str | int] = [presence.gateway, presence.model_dump_json(), SILENT_AFTER_S]
        with _reaching():
            living = await self._report(keys=[f"{self._prefix}:gateways"], args=arguments)
        return [Presence.model_validate_json(text) for text in living]

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()


@contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise Unavailable(
            "The store of the rollout cannot be reached.", reason="ROLLOUT_STORE_UNREACHABLE", retry_after_s=1
        ) from error
