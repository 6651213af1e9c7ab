"""Memory cache of visual tokens with shared fetches."""

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
class SourcedTokens:
    """Visual tokens and the cache level that they came from."""

    entry: Entry
    visual_key: bytes  # of these tokens. It differs from the requested key for a similar image or a changed encoder
    level: gateway_pb2.CacheLevel.ValueType
    similar: vision_pb2.SimilarImage | None = None  # the image that was encoded, unless it is the requested one


Fetch = Callable[[], Coroutine[Any, Any, SourcedTokens]]


class MemoryCache:
    """Visual tokens by visual key, bounded by bytes and age.

    For one event loop.
    """

    def __init__(self, max_bytes: int, *, ttl_s: float | None = None) -> None:
        """Start empty.

        Args:
            max_bytes: limit for all entries together. 0 stores nothing, but concurrent requests still share a fetch.
            ttl_s: seconds before an entry expires. None never expires.
        """
        self._cache: VerifiedCache[Entry] = VerifiedCache(LEVEL, max_bytes=max_bytes, ttl_s=ttl_s)
        self._in_flight: SingleFlight[bytes, SourcedTokens] = SingleFlight()

    @property
    def num_bytes(self) -> int:
        """Bytes of all entries."""
        return self._cache.num_bytes

    @property
    def num_pinned(self) -> int:
        """Number of entries in use."""
        return self._cache.num_pinned

    @asynccontextmanager
    async def use(self, key: bytes, fetch: Fetch) -> AsyncIterator[SourcedTokens]:
        """Yield the visual tokens of `key`, pinned for the block.

        On a miss, `fetch` gets them. They are stored if their key is `key`.

        Raises:
            Exception: any error of `fetch`, for every caller that waits for it.
        """
        with ExitStack() as pins:
            entry = pins.enter_context(self._cache.use(key))
            if entry is not None:
                CACHE_REQUESTS.labels(LEVEL, "hit").inc()
                tokens = SourcedTokens(entry, key, gateway_pb2.CACHE_LEVEL_GATEWAY)
            else:
                tokens = await self._fetch_once(key, fetch)
                pins.enter_context(self._cache.pin(key))
            yield tokens

    async def _fetch_once(self, key: bytes, fetch: Fetch) -> SourcedTokens:
        """Fetch, or wait for another caller's fetch of `key`."""

        async def fetch_and_store() -> SourcedTokens:
            tokens = await fetch()
            if tokens.visual_key == key:
                self._cache.put(key, tokens.entry)
            return tokens

        while True:
            joins = key in self._in_flight
            CACHE_REQUESTS.labels(LEVEL, "in_flight" if joins else "miss").inc()
            try:
                fetched = await self._in_flight.run(key, fetch_and_store)
            except DeadlineExceeded:
                if not joins:
                    raise
                # This was the deadline of the caller that began the fetch. This caller has time left, so fetch again.
                continue
            if fetched.joined and fetched.result.level == gateway_pb2.CACHE_LEVEL_MISS:
                return replace(fetched.result, level=gateway_pb2.CACHE_LEVEL_IN_FLIGHT)
            return fetched.result
