"""Visual tokens in memory: each picture is encoded once, however many ask for it and however often."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from chassis.errors import DeadlineExceeded
from gateway import metrics

Encode = Callable[[], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Found:
    """What the cache gives for a key."""

    data: bytes  # a serialized VisualTokens
    was_cached: bool  # False for the one caller whose question had it encoded


@dataclass(slots=True)
class _Entry:
    data: bytes
    num_pins: int = 0


@dataclass(slots=True)
class _Flight:
    """One encoding under way."""

    task: asyncio.Task[bytes]
    num_waiting: int = 0


class VisualCache:
    """An LRU of serialized visual tokens by visual key, bounded by bytes. For one event loop.

    The key is a digest over everything the tokens depend on, and there is no other way in, so an entry can never be
    served across pictures, tenants or vision weights.
    """

    def __init__(self, max_bytes: int) -> None:
        """Start empty; with 0 bytes nothing is kept, but callers at the same time still share one encoding."""
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()  # least recently used first
        self._flights: dict[bytes, _Flight] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of all entries."""
        return self._num_bytes

    @property
    def num_pinned(self) -> int:
        """Entries that are in use."""
        return sum(entry.num_pins > 0 for entry in self._entries.values())

    @asynccontextmanager
    async def use(self, key: bytes, encode: Encode) -> AsyncIterator[Found]:
        """Yield the tokens of `key`, encoded by `encode` where they are not at hand; no eviction while in use.

        Raises:
            whatever `encode` raises, for every caller that waits for it.
        """
        found = await self._find(key, encode)
        entry = self._entries.get(key)  # None where it did not fit
        if entry is not None:
            entry.num_pins += 1
        try:
            yield found
        finally:
            if entry is not None:
                entry.num_pins -= 1

    async def _find(self, key: bytes, encode: Encode) -> Found:
        while True:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                metrics.VISUAL_CACHE_REQUESTS.labels("hit").inc()
                return Found(entry.data, was_cached=True)
            joins = key in self._flights
            metrics.VISUAL_CACHE_REQUESTS.labels("joined" if joins else "miss").inc()
            try:
                return Found(await self._join(key, encode), was_cached=joins)
            except DeadlineExceeded:
                if not joins:
                    raise
                # The time of whoever started it ran out; this caller still has some, and starts over.

    async def _join(self, key: bytes, encode: Encode) -> bytes:
        """Wait for the encoding of `key`, started here if nobody has; the last one to leave cancels it."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(self._fly(key, encode)))
        flight.num_waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.num_waiting -= 1
            if flight.num_waiting == 0 and not flight.task.done():
                flight.task.cancel()
                self._land(key, flight)  # at once, so that nobody joins what was cancelled

    async def _fly(self, key: bytes, encode: Encode) -> bytes:
        flight = self._flights[key]
        try:
            data = await encode()
            self._insert(key, data)
        finally:
            self._land(key, flight)
        return data

    def _land(self, key: bytes, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _insert(self, key: bytes, data: bytes) -> None:
        """Keep `data` if entries not in use make room for it."""
        unpinned = [(old, entry) for old, entry in self._entries.items() if entry.num_pins == 0]
        if len(data) + self._num_bytes - sum(len(entry.data) for _, entry in unpinned) > self._max_bytes:
            return
        for old, entry in unpinned:
            if self._num_bytes + len(data) <= self._max_bytes:
                break
            del self._entries[old]
            self._num_bytes -= len(entry.data)
            metrics.VISUAL_CACHE_EVICTIONS.inc()
        self._entries[key] = _Entry(data)
        self._num_bytes += len(data)
        metrics.VISUAL_CACHE_BYTES.set(self._num_bytes)
