"""The rollout store of several gateways, in Redis.

A compare-and-set lets exactly one of them decide.
"""

import hashlib
import json
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import structlog
from redis.exceptions import RedisError

from chassis.errors import Unavailable
from chassis.redis_client import FailureKind, RedisClient, failure_kind
from gateway.rollout.policy import Counts, filter_bits
from gateway.rollout.store import MAX_GAP_S, KeyUse, StepTotals, bad_state
from gateway.rollout.stored_format import (
    Document,
    Heartbeat,
    read_counts,
    read_document,
    read_heartbeat,
    state_value,
    to_json,
)

# A gateway without a heartbeat for so long is dead. The settings keep ticks shorter than this.
HEARTBEAT_TIMEOUT_S = 10
_COUNTS_TTL_S = 7 * 24 * 3600  # after the last request of a step
_MAX_CONNECTIONS = 8  # further calls wait

# Version and state change together, and only from the expected version.
_COMPARE_AND_SET = """
if (redis.call('HGET', KEYS[1], 'version') or '0') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'state', ARGV[3])
return 1
"""
# Writes one heartbeat, with a time that makes each differ from the last one, and removes those that are unchanged. Each
# gateway measures their age by its own monotonic clock, so no clock that is changed makes a living gateway look dead.
_HEARTBEAT = """
for index = 3, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[index]) == ARGV[index + 1] then redis.call('HDEL', KEYS[1], ARGV[index]) end
end
local now = redis.call('TIME')[1]
redis.call('HSET', KEYS[1], ARGV[1], now .. ' ' .. ARGV[2])
return redis.call('HGETALL', KEYS[1])
"""
# Adds counts, and the time since the last call to that of the step. A changed clock adds at most the largest gap.
_ADD = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local last = tonumber(redis.call('HGET', KEYS[2], 'at_ms') or now)
local elapsed = redis.call('HINCRBY', KEYS[2], 'elapsed_ms', math.min(math.max(now - last, 0), tonumber(ARGV[2])))
redis.call('HSET', KEYS[2], 'at_ms', string.format('%.0f', now))
for index = 3, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[index], ARGV[index + 1]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[1])
return {elapsed, redis.call('HGETALL', KEYS[1])}
"""
# Taken if it is free, renewed if it is the gateway's own.
_LEASE = """
local holder = redis.call('GET', KEYS[1])
if holder and (holder ~= ARGV[1] or ARGV[3] == '0') then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
# Sets the bits of a routing key in a Bloom filter. Returns whether one was unset, and the number of callers, 2 at most.
_USE_KEY = """
local is_first = 0
for index = 3, #ARGV do
  if redis.call('SETBIT', KEYS[1], ARGV[index], 1) == 0 then is_first = 1 end
end
if redis.call('SCARD', KEYS[2]) < 2 then redis.call('SADD', KEYS[2], ARGV[2]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[1])
return {is_first, redis.call('SCARD', KEYS[2])}
"""

_PROBLEMS: Mapping[FailureKind, str] = {
    "auth": "The rollout store refuses the gateway's user or password.",
    "failover": "The rollout store is read-only, or loads its data.",
    "full": "The rollout store has no memory or disk left.",
    "cluster": "The rollout store is a node of a Redis Cluster, which is not supported.",
}

_log = structlog.get_logger()


class RedisStore:
    """Keeps document, counts and heartbeats under one prefix."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "tandem",
        timeout_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a client, which connects on the first call.

        Args:
            url: 'redis://host:port/db', or rediss:// for TLS.
            prefix: of every key. Gateways with the same prefix act as one.
            timeout_s: longest wait for one reply, seconds.
            clock: monotonic seconds.
        """
        self._client = RedisClient(url, timeout_s=timeout_s, max_connections=_MAX_CONNECTIONS)
        self._clock = clock
        self._prefix = f"{{{prefix}:rollout}}"
        self._watched_s = 0.0  # time of this gateway with a working store
        self._watched_at_s: float | None = None
        # By gateway, the last stored heartbeat and `_watched_s` when it was first seen.
        self._seen: dict[bytes, tuple[bytes, float]] = {}
        register = self._client.commands.register_script
        self._compare_and_set_script, self._heartbeat_script = register(_COMPARE_AND_SET), register(_HEARTBEAT)
        self._add_script, self._lease_script = register(_ADD), register(_LEASE)
        self._use_key_script = register(_USE_KEY)

    async def check(self) -> None:
        """Log why the store cannot be used yet, if so.

        Raises:
            FailedPrecondition: reason 'BAD_REDIS', the address is not that of a single server.
        """
        problem = await self._client.check("--rollout-redis")
        if problem is not None:
            _log.error("redis of the rollout store cannot be used", setting="--rollout-redis", problem=problem)

    async def read(self) -> Document:
        """Return the document."""
        version, state = await self._run(
            lambda: self._client.commands.hmget(f"{self._prefix}:state", "version", "state")
        )
        if version is None:
            return Document()
        try:
            return read_document(int(version), json.loads(state or b""))
        except ValueError as error:
            raise bad_state("The rollout state in Redis") from error

    async def compare_and_set(self, expected_version: int, document: Document) -> bool:
        """Replace a document of `expected_version`. Return whether it did."""
        assert document.state is not None, "a store never returns to the time before the first rollout"
        arguments = [expected_version, document.version, to_json(state_value(document))]
        return bool(await self._script(self._compare_and_set_script, ["state"], arguments))

    async def add(self, window: str, counts: Counts) -> StepTotals:
        """Add counts of a step. Return all gateways' sums."""
        arguments: list[Any] = [_COUNTS_TTL_S, round(MAX_GAP_S * 1000)]
        for path, count in counts.to_paths().items():
            arguments += path, count
        elapsed_ms, totals = await self._script(self._add_script, [f"counts:{window}", f"time:{window}"], arguments)
        stored = {path.decode(errors="replace"): count.decode(errors="replace") for path, count in _pairs(totals)}
        return StepTotals(counts=Counts.from_paths(read_counts(stored)), elapsed_s=int(elapsed_ms) / 1000)

    async def heartbeat(self, own: Heartbeat) -> list[Heartbeat]:
        """Report this gateway as alive. Return all living gateways."""
        dead = [
            (name, value)
            for name, (value, seen_s) in self._seen.items()
            if self._watched_s - seen_s > HEARTBEAT_TIMEOUT_S
        ]
        arguments: list[Any] = [own.gateway, own.model_dump_json(), *(part for pair in dead for part in pair)]
        stored = dict(_pairs(await self._script(self._heartbeat_script, ["gateways"], arguments)))
        self._watch()
        self._seen = {
            name: last if (last := self._seen.get(name)) is not None and last[0] == value else (value, self._watched_s)
            for name, value in stored.items()
        }
        return [
            read_heartbeat(name.decode(errors="replace"), value.partition(b" ")[2]) for name, value in stored.items()
        ]

    def _watch(self) -> None:
        """Let the time go on in which others can report.

        While the store was unreachable, they could not write one.
        """
        now_s = self._clock()
        if self._watched_at_s is not None:
            self._watched_s += min(now_s - self._watched_at_s, HEARTBEAT_TIMEOUT_S / 2)
        self._watched_at_s = now_s

    async def take_lease(self, task: str, gateway: str, seconds: float, *, renew: bool = True) -> bool:
        """Take or renew a lease. Return whether it succeeded."""
        arguments = [gateway, max(1, round(seconds * 1000)), int(renew)]
        return bool(await self._script(self._lease_script, [f"lease:{task}"], arguments))

    async def use_key(self, rollout_id: str, routing_key: str, caller: str) -> KeyUse:
        """Remember a key's use. Return what was known before it.

        The keys of a rollout take 4 MiB. Callers are stored by digest.
        """
        digest = hashlib.sha256(caller.encode()).hexdigest()
        is_first, num_callers = await self._script(
            self._use_key_script,
            [f"keys:{rollout_id}", f"callers:{rollout_id}"],
            [_COUNTS_TTL_S, digest, *filter_bits(routing_key)],
        )
        return KeyUse(is_first=bool(is_first), has_other_callers=num_callers > 1)

    async def remember(self, texts: Mapping[str, str], seconds: float) -> None:
        """Keep texts by key, for other gateways."""

        async def set_all() -> None:
            async with self._client.commands.pipeline(transaction=False) as pipeline:
                for key, text in texts.items():
                    pipeline.set(f"{self._prefix}:text:{key}", text, ex=math.ceil(seconds))
                await pipeline.execute()

        await self._run(set_all)

    async def recall(self, key: str) -> str | None:
        """Return a text that any gateway keeps, None if unknown."""
        text = await self._run(lambda: self._client.commands.get(f"{self._prefix}:text:{key}"))
        return text.decode() if text is not None else None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _script(self, script: Any, names: Sequence[str], arguments: Sequence[Any]) -> Any:
        keys = [f"{self._prefix}:{name}" for name in names]
        return await self._run(lambda: script(keys=keys, args=arguments))

    async def _run(self, command: Callable[[], Awaitable[Any]]) -> Any:
        with _translate_errors():
            return await self._client.run(command)


def _pairs(flat: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Return the pairs of a hash from a script."""
    return zip(flat[::2], flat[1::2], strict=True)


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        message = _PROBLEMS.get(failure_kind(error), "The rollout store cannot be reached.")
        raise Unavailable(f"{message} Try again.", reason="ROLLOUT_STORE_UNREACHABLE", retry_after_s=1) from error
