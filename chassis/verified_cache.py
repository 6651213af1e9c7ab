"""In-memory cache of visual tokens that verifies every entry on read."""

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from chassis.cache_metrics import CACHE_BYTES, CACHE_CORRUPTED, CACHE_EVICTIONS, CACHE_NO_ROOM, CACHE_PINNED
from chassis.lru import LruStore

ENTRY_OVERHEAD_BYTES = 512  # rough size of an entry beside its data: key, digest, shape, table

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class HashedData:
    """Bytes with the digest that verifies them."""

    data: bytes
    sha256: bytes  # of data

    @property
    def is_intact(self) -> bool:
        """Whether the bytes still match their digest."""
        return sha256_of(self.data) == self.sha256


V = TypeVar("V", bound=HashedData)


class VerifiedCache(Generic[V]):
    """LRU cache by visual key, bounded by bytes and age.

    It belongs to one event loop. The visual key is a digest over everything the visual tokens depend on. So an entry
    never answers for another image, another tenant or other vision weights.

    The cache keeps the metrics of `chassis.cache_metrics` for its level, except the number of requests.
    """

    def __init__(self, level: str, *, max_bytes: int, ttl_s: float | None) -> None:
        """Start empty.

        Args:
            level: name of this cache in metrics and logs.
            max_bytes: limit for all entries together. 0 stores nothing.
            ttl_s: seconds before an entry expires. None never expires.
        """
        self.max_bytes = max_bytes
        self._level = level
        self._store: LruStore[bytes, V] = LruStore(max_bytes=max_bytes, ttl_s=ttl_s)
        CACHE_PINNED.labels(level).set_function(lambda: self._store.num_pinned)
        CACHE_BYTES.labels(level).set_function(lambda: self._store.num_bytes)

    @property
    def num_bytes(self) -> int:
        """Bytes of all entries."""
        return self._store.num_bytes

    @property
    def num_pinned(self) -> int:
        """Number of entries in use."""
        return self._store.num_pinned

    @contextmanager
    def use(self, key: bytes) -> Iterator[V | None]:
        """Yield the pinned entry of `key`, or None.

        A corrupted entry is dropped, counted and logged, and is a miss.
        """
        with self._store.use(key) as entry:
            if entry is not None and not entry.is_intact:
                # Memory does not change by itself: a bug wrote to it, or the hardware fails.
                _log.error("cache entry corrupted", cache=self._level, visual_key=key.hex())
                CACHE_CORRUPTED.labels(self._level).inc()
                self._store.drop(key)
                entry = None
            yield entry

    def pin(self, key: bytes) -> AbstractContextManager[object]:
        """Pin the entry of `key` without reading it."""
        return self._store.use(key)

    def put(self, key: bytes, entry: V) -> None:
        """Store `entry` if it fits beside the pinned entries."""
        num_evicted = self._store.num_evicted
        if not self._store.put(key, entry, len(entry.data) + ENTRY_OVERHEAD_BYTES):
            CACHE_NO_ROOM.labels(self._level).inc()
        CACHE_EVICTIONS.labels(self._level).inc(self._store.num_evicted - num_evicted)


def sha256_of(data: bytes) -> bytes:
    """Return the SHA-256 of `data`, 32 bytes."""
    return hashlib.sha256(data).digest()
