"""Visual tokens in memory: each picture is encoded once, however many ask for it and however often."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from chassis.errors import DeadlineExceeded
from chassis.lru import LruStore
from chassis.single_flight import Landed, SingleFlight
from gateway import metrics

Encode = Callable[[], Coroutine[Any, Any, bytes]]


@dataclass(frozen=True, slots=True)
class Found:
    """What the cache gives for a key."""

    data: bytes  # a serialized VisualTokens
    was_cached: bool  # False for the one caller whose question had it encoded


class VisualCache:
    """Serialized visual tokens by visual key, bounded by bytes. For one event loop.

    The key is a digest over everything the tokens depend on, and there is no other way in, so an entry can never be
    served across pictures, tenants or vision weights.
    """

    def __init__(self, max_bytes: int) -> None:
        """Start empty; with 0 bytes nothing is kept, but callers at the same time still share one encoding."""
        self._store: LruStore[bytes, bytes] = LruStore(max_bytes=max_bytes)
        self._flights: SingleFlight[bytes, bytes] = SingleFlight()

    @property
    def num_bytes(self) -> int:
        """Bytes of all entries."""
        return self._store.num_bytes

    @property
    def num_pinned(self) -> int:
        """Entries that are in use."""
        return self._store.num_pinned

    @asynccontextmanager
    async def use(self, key: bytes, encode: Encode) -> AsyncIterator[Found]:
        """Yield the tokens of `key`, encoded by `encode` where they are not at hand; they are not evicted while in use.

        Raises:
            whatever `encode` raises, for every caller that waits for it.
        """
        landed = None if key in self._store else await self._land(key, encode)
        with self._store.use(key) as kept:
            if landed is not None:
                yield Found(landed.result, was_cached=landed.joined)
                return
            assert kept is not None, "nothing has happened since the store had it"
            metrics.VISUAL_CACHE_REQUESTS.labels("hit").inc()
            yield Found(kept, was_cached=True)

    async def _land(self, key: bytes, encode: Encode) -> Landed[bytes]:
        """Encode, or wait for another caller's encoding."""

        async def encode_and_keep() -> bytes:
            data = await encode()
            self._keep(key, data)
            return data

        while True:
            joins = key in self._flights
            metrics.VISUAL_CACHE_REQUESTS.labels("joined" if joins else "miss").inc()
            try:
                return await self._flights.run(key, encode_and_keep)
            except DeadlineExceeded:
                if not joins:
                    raise
                # The time of whoever started it ran out; this caller still has some, and starts over.

    def _keep(self, key: bytes, data: bytes) -> None:
        num_evicted = self._store.num_evicted
        self._store.put(key, data, len(data))
        metrics.VISUAL_CACHE_EVICTIONS.inc(self._store.num_evicted - num_evicted)
        metrics.VISUAL_CACHE_BYTES.set(self._store.num_bytes)
