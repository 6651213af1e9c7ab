"""Best-effort Redis cache of visual tokens, shared by all gateways.

Every entry is verified on read.
"""

import asyncio

import structlog
from prometheus_client import Counter

from chassis.cache_metrics import CACHE_CORRUPTED, CACHE_REQUESTS
from gateway.images.entry import CorruptedEntryError, Entry, ExpectedTokens, ForeignTokensError
from gateway.images.shared_redis import REDIS_FAILURES, SharedRedis

CACHE_FOREIGN = Counter(
    "tandem_visual_cache_foreign", "Entries dropped because they belong to another image or encoder.", ["level"]
)


LEVEL = "shared"

_MAX_WRITES = 32  # in flight. Further writes are dropped, so that a slow Redis cannot fill the memory of the gateway

_log = structlog.get_logger()


class RedisCache:
    """Packed entries by visual key in one Redis.

    For one event loop. Call `close` at the end.
    """

    def __init__(self, redis: SharedRedis, *, ttl_s: float, secret: bytes | None = None) -> None:
        """Start without writes in flight.

        Args:
            redis: runs the commands.
            ttl_s: seconds before Redis expires an entry.
            secret: of all gateways, which signs their entries. None believes every writer of Redis.
        """
        self._redis = redis
        self._secret = secret
        self._ttl_ms = round(ttl_s * 1000)
        self._writes: set[asyncio.Task[object]] = set()

    async def get(self, expected: ExpectedTokens) -> Entry | None:
        """Return the entry with the expected visual tokens.

        None is a miss, a timeout or another failure. An entry that fails its verification is deleted.
        """
        redis, redis_key = self._redis, self._redis_key(expected.visual_key)
        if not redis.allow():
            CACHE_REQUESTS.labels(LEVEL, "skipped").inc()
            return None
        succeeded, value = await redis.execute("get", lambda: redis.commands.get(redis_key))
        if not isinstance(value, bytes):
            CACHE_REQUESTS.labels(LEVEL, "miss" if succeeded else "failed").inc()
            return None
        try:
            entry = Entry.unpack(value, expected, self._secret)
        except (CorruptedEntryError, ForeignTokensError) as error:
            CACHE_REQUESTS.labels(LEVEL, "miss").inc()
            (CACHE_CORRUPTED if isinstance(error, CorruptedEntryError) else CACHE_FOREIGN).labels(LEVEL).inc()
            _log.warning("redis entry dropped", visual_key=expected.visual_key.hex(), problem=str(error))
            await redis.execute("delete", lambda: redis.commands.delete(redis_key))
            return None
        CACHE_REQUESTS.labels(LEVEL, "hit").inc()
        return entry

    def put(self, key: bytes, entry: Entry) -> None:
        """Write an entry in the background, best effort."""
        redis, redis_key = self._redis, self._redis_key(key)
        if len(self._writes) >= _MAX_WRITES or not redis.allow():
            REDIS_FAILURES.labels("set", "skipped").inc()
            return
        value = entry.pack(self._secret)
        write = asyncio.create_task(redis.execute("set", lambda: redis.commands.set(redis_key, value, px=self._ttl_ms)))
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)

    async def close(self) -> None:
        """Wait for writes in flight."""
        if self._writes:
            await asyncio.wait(self._writes)  # each has its own timeout

    def _redis_key(self, visual_key: bytes) -> bytes:
        # Signed entries have names of their own, so gateways without the secret do not drop them.
        version = b"1" if self._secret is None else b"2"
        return self._redis.prefix + b":visual-tokens:" + version + b":" + visual_key.hex().encode()
