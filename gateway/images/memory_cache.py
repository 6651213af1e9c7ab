"""Memory cache of visual tokens: concurrent requests for one image share one search."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from chassis.cache_metrics import CACHE_REQUESTS
from chassis.errors import DeadlineExceeded
from chassis.single_flight import SingleFlight
from chassis.verified_cache import VerifiedCache
from gateway.images.entry import Entry
from tandem.v1 import gateway_pb2, vision_pb2

LEVEL = "gateway"


@dataclass(frozen=True, slots=True)
class Found:
    """Visual tokens, and the cache level or stage they came from."""

    entry: Entry
    visual_key: bytes  # key of these tokens. A similar image has another key, then neither key is cached
    level: gateway_pb2.CacheLevel.ValueType
    similar: vision_pb2.SimilarImage | None = None  # the image they were made from, unless it is the requested one


Find = Callable[[], Coroutine[Any, Any, Found]]


class VisualCache:
    """Visual tokens by visual key, bounded by bytes and age. For one event loop."""

    def __init__(self, max_bytes: int, *, ttl_s: float | None = None) -> None:
        """Start empty.

        Args:
            max_bytes: limit for all entries together. 0 stores nothing, but concurrent requests still share a search.
            ttl_s: seconds before an entry expires. None never expires.
        """
        self._cache: VerifiedCache[Entry] = VerifiedCache(LEVEL, max_bytes=max_bytes, ttl_s=ttl_s)
        self._flights: SingleFlight[bytes, Found] = SingleFlight()

    @property
    def num_bytes(self) -> int:
        """Bytes of all entries."""
        return self._cache.num_bytes

    @property
    def num_pinned(self) -> int:
        """Number of entries in use."""
        return self._cache.num_pinned

    @asynccontextmanager
    async def use(self, key: bytes, find: Find) -> AsyncIterator[Found]:
        """Yield the visual tokens of `key`, pinned for the block.

        On a miss, `find` gets them.

        Raises:
            Exception: any error of `find`, for every caller that waits for it.
        """
        with ExitStack() as pins:
            entry = pins.enter_context(self._cache.use(key))
            if entry is not None:
                CACHE_REQUESTS.labels(LEVEL, "hit").inc()
                found = Found(entry, key, gateway_pb2.CACHE_LEVEL_GATEWAY)
            else:
                found = await self._find_once(key, find)
                pins.enter_context(self._cache.pin(key))
            yield found

    async def _find_once(self, key: bytes, find: Find) -> Found:
        """Run `find`, or wait for another caller's search of the same key."""

        async def find_and_store() -> Found:
            found = await find()
            if found.visual_key == key:  # else they belong to a similar image or to another encoder
                self._cache.put(key, found.entry)
            return found

        while True:
            joins = key in self._flights
            CACHE_REQUESTS.labels(LEVEL, "in_flight" if joins else "miss").inc()
            try:
                landed = await self._flights.run(key, find_and_store)
            except DeadlineExceeded:
                if not joins:
                    raise
                # The deadline was that of the caller who started the search. This caller has time left: search again.
                continue
            if landed.joined and landed.result.level == gateway_pb2.CACHE_LEVEL_MISS:
                return replace(landed.result, level=gateway_pb2.CACHE_LEVEL_IN_FLIGHT)
            return landed.result
