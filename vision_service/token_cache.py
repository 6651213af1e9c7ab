"""Visual tokens this process has computed, by visual key; every read proves that they are still what they were."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
import structlog
from numpy.typing import NDArray

from chassis.cache_metrics import CACHE_BYTES, CACHE_CORRUPTED, CACHE_EVICTIONS, CACHE_NO_ROOM, CACHE_PINNED
from chassis.lru import LruStore
from vision_service.metrics import LEVEL

_log = structlog.get_logger()

_ENTRY_BYTES = 512  # what an entry takes beside its embeddings, about: key, digest, shape, table


@dataclass(frozen=True, slots=True)
class VisualTokens:
    """What one image became."""

    data: bytes  # bfloat16, little-endian, row-major
    shape: tuple[int, ...]  # [K, D]
    sha256: bytes  # of data

    @classmethod
    def of(cls, bits_KD: NDArray[np.uint16]) -> Self:
        """Return bfloat16 bit patterns as visual tokens, with their digest."""
        data = bits_KD.astype("<u2", copy=False).tobytes()
        return cls(data, bits_KD.shape, hashlib.sha256(data).digest())


class TokenCache:
    """The visual tokens of all models of the process, within a budget of bytes; for one event loop.

    The visual key is a digest over everything visual tokens depend on, so no entry can answer for other weights,
    another tenant or another image.
    """

    def __init__(self, *, max_bytes: int, ttl_s: float | None) -> None:
        """Start empty; see `LruStore`."""
        self._store: LruStore[bytes, VisualTokens] = LruStore(max_bytes=max_bytes, ttl_s=ttl_s)
        self._num_evicted = 0
        self.max_bytes = max_bytes
        CACHE_PINNED.labels(LEVEL).set_function(lambda: self._store.num_pinned)

    @contextmanager
    def use(self, key: bytes) -> Iterator[VisualTokens | None]:
        """Yield the visual tokens of a key, pinned while the block runs; None where there are none that hold."""
        with self._store.use(key) as tokens:
            if tokens is not None and hashlib.sha256(tokens.data).digest() != tokens.sha256:
                # Memory does not change by itself: a bug wrote to it, or the machine is failing.
                _log.error("cached visual tokens were corrupted", visual_key=key.hex())
                CACHE_CORRUPTED.labels(LEVEL).inc()
                self._store.drop(key)
                tokens = None
            yield tokens
        CACHE_BYTES.labels(LEVEL).set(self._store.num_bytes)

    def put(self, key: bytes, tokens: VisualTokens) -> None:
        """Keep the visual tokens of a key, if they find room."""
        if not self._store.put(key, tokens, len(tokens.data) + _ENTRY_BYTES):
            CACHE_NO_ROOM.labels(LEVEL).inc()
        CACHE_EVICTIONS.labels(LEVEL).inc(self._store.num_evicted - self._num_evicted)
        self._num_evicted = self._store.num_evicted
        CACHE_BYTES.labels(LEVEL).set(self._store.num_bytes)
