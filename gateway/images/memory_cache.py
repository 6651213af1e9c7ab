"""Visual tokens in memory: each image is looked for and encoded once, however many ask for it and however often."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import structlog

from chassis.cache_metrics import (
    CACHE_BYTES,
    CACHE_CORRUPTED,
    CACHE_EVICTIONS,
    CACHE_NO_ROOM,
    CACHE_PINNED,
    CACHE_REQUESTS,
)
from chassis.errors import DeadlineExceeded
from chassis.lru import LruStore
from chassis.single_flight import SingleFlight
from gateway.images.entry import Entry
from tandem.v1 import gateway_pb2, vision_pb2

LEVEL = "gateway"
ENTRY_BYTES = 512  # what an entry takes beside its data, about: key, digest, table

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Found:
    """Visual tokens, and where they came from."""

    entry: Entry
    visual_key: bytes  # their own, which may be another than was asked for; then they are kept under neither
    level: gateway_pb2.CacheLevel.ValueType
    similar: vision_pb2.SimilarImage | None = None  # the image they were made of, where it is not the one asked for


Find = Callable[[], Coroutine[Any, Any, Found]]


class VisualCache:
    """Visual tokens by visual key, bounded by bytes and age. For one event loop.

    The key is a digest over everything the tokens depend on, and there is no other way in, so an entry can never be
    served across images, tenants or vision weights.
    """

    def __init__(self, max_bytes: int, *, ttl_s: float | None = None) -> None:
        """Start empty; with 0 bytes nothing is kept, but callers at the same time still share one search."""
        self._store: LruStore[bytes, Entry] = LruStore(max_bytes=max_bytes, ttl_s=ttl_s)
        self._flights: SingleFlight[bytes, Found] = SingleFlight()
        self._num_evicted = 0
        CACHE_PINNED.labels(LEVEL).set_function(lambda: self._store.num_pinned)

    @property
    def num_bytes(self) -> int:
        """Bytes of all entries."""
        return self._store.num_bytes

    @property
    def num_pinned(self) -> int:
        """Entries that are in use."""
        return self._store.num_pinned

    @asynccontextmanager
    async def use(self, key: bytes, find: Find) -> AsyncIterator[Found]:
        """Yield the tokens of `key`, got by `find` where they are not here; they are not evicted while in use.

        Raises:
            whatever `find` raises, for every caller that waits for it.
        """
        with ExitStack() as pin:
            entry = self._read(key, pin)
            if entry is not None:
                CACHE_REQUESTS.labels(LEVEL, "hit").inc()
                found = Found(entry, key, gateway_pb2.CACHE_LEVEL_GATEWAY)
            else:
                found = await self._land(key, find)
                pin.enter_context(self._store.use(key))
            yield found

    def _read(self, key: bytes, pin: ExitStack) -> Entry | None:
        """Return the entry of a key, pinned, if there is one that still holds."""
        entry = pin.enter_context(self._store.use(key))
        if entry is None or entry.is_whole:
            return entry
        # Memory does not change by itself: a bug wrote to it, or the machine is failing.
        _log.error("cached visual tokens were corrupted", visual_key=key.hex())
        CACHE_CORRUPTED.labels(LEVEL).inc()
        self._store.drop(key)
        return None

    async def _land(self, key: bytes, find: Find) -> Found:
        """Find, or wait for another caller's search."""

        async def find_and_keep() -> Found:
            found = await find()
            if found.visual_key == key:  # else they answer this time, but are another image's or encoder's
                self._keep(key, found.entry)
            return found

        while True:
            joins = key in self._flights
            CACHE_REQUESTS.labels(LEVEL, "in_flight" if joins else "miss").inc()
            try:
                landed = await self._flights.run(key, find_and_keep)
            except DeadlineExceeded:
                if not joins:
                    raise
                # The time of whoever started it ran out; this caller still has some, and starts over.
                continue
            if landed.joined and landed.result.level == gateway_pb2.CACHE_LEVEL_MISS:
                return replace(landed.result, level=gateway_pb2.CACHE_LEVEL_IN_FLIGHT)
            return landed.result

    def _keep(self, key: bytes, entry: Entry) -> None:
        if not self._store.put(key, entry, len(entry.data) + ENTRY_BYTES):
            CACHE_NO_ROOM.labels(LEVEL).inc()
        CACHE_EVICTIONS.labels(LEVEL).inc(self._store.num_evicted - self._num_evicted)
        self._num_evicted = self._store.num_evicted
        CACHE_BYTES.labels(LEVEL).set(self._store.num_bytes)
