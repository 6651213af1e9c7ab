"""LRU cache bounded by bytes and age, with pinned entries."""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(slots=True, eq=False)
class _Entry(Generic[V]):
    value: V
    num_bytes: int
    expires_at: float
    num_pins: int = 0


class LruStore(Generic[K, V]):
    """LRU cache with a limit in bytes. Not thread-safe.

    The limit is never exceeded: a value that does not fit beside the entries in use is not stored. An entry in use is
    not evicted. It becomes the most recently used one when its use ends.
    """

    def __init__(
        self, *, max_bytes: int, ttl_s: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start empty.

        Args:
            max_bytes: limit for all entries together. 0 stores nothing.
            ttl_s: seconds before an entry expires. None never expires.
            clock: monotonic clock, seconds.
        """
        self.max_bytes = max_bytes
        self.num_bytes = 0  # of all entries
        self.num_pinned_bytes = 0  # of the entries in use
        self.num_evicted = 0  # total entries evicted to make room
        self.num_expired = 0  # total entries dropped because of their age
        self._ttl_s = float("inf") if ttl_s is None else ttl_s
        self._clock = clock
        self._idle: OrderedDict[K, _Entry[V]] = OrderedDict()  # least recently used first
        self._pinned: dict[K, _Entry[V]] = {}

    def __len__(self) -> int:
        return len(self._idle) + len(self._pinned)

    def __contains__(self, key: K) -> bool:
        """Return whether `use` would find `key`, without using it."""
        entry = self._pinned.get(key) or self._idle.get(key)
        return entry is not None and self._clock() < entry.expires_at

    @property
    def num_pinned(self) -> int:
        """Number of entries in use."""
        return len(self._pinned)

    @contextmanager
    def use(self, key: K) -> Iterator[V | None]:
        """Yield the pinned value of `key`, or None."""
        entry = self._pin(key)
        try:
            yield None if entry is None else entry.value
        finally:
            if entry is not None:
                self._unpin(key, entry)

    def put(self, key: K, value: V, num_bytes: int) -> bool:
        """Store `value` under `key`, replacing an earlier one.

        Returns False if it does not fit.
        """
        self.drop(key)
        if self.num_pinned_bytes + num_bytes > self.max_bytes:
            return False
        while self.num_bytes + num_bytes > self.max_bytes:
            self._remove_idle(next(iter(self._idle)))
            self.num_evicted += 1
        self._idle[key] = _Entry(value, num_bytes, self._clock() + self._ttl_s)
        self.num_bytes += num_bytes
        return True

    def drop(self, key: K) -> None:
        """Remove `key`. Current users keep their value."""
        if key in self._idle:
            self._remove_idle(key)
        elif key in self._pinned:
            entry = self._pinned.pop(key)
            self.num_bytes -= entry.num_bytes
            self.num_pinned_bytes -= entry.num_bytes

    def _pin(self, key: K) -> _Entry[V] | None:
        entry = self._pinned.get(key) or self._idle.get(key)
        if entry is None:
            return None
        if self._clock() >= entry.expires_at:
            self.drop(key)
            self.num_expired += 1
            return None
        if entry.num_pins == 0:
            del self._idle[key]
            self._pinned[key] = entry
            self.num_pinned_bytes += entry.num_bytes
        entry.num_pins += 1
        return entry

    def _unpin(self, key: K, entry: _Entry[V]) -> None:
        entry.num_pins -= 1
        if entry.num_pins == 0 and self._pinned.get(key) is entry:  # else it was dropped during its use
            del self._pinned[key]
            self.num_pinned_bytes -= entry.num_bytes
            self._idle[key] = entry

    def _remove_idle(self, key: K) -> None:
        self.num_bytes -= self._idle.pop(key).num_bytes
