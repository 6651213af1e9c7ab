"""Open the caches of visual tokens around the life of a gateway."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway.images.memory_cache import VisualCache
from gateway.images.source import VisualTokenSource


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualCacheConfig:
    """Which visual tokens are kept, where, and for how long."""

    reuse: bool  # False has every image encoded for every request, to measure what the caches save
    memory_bytes: int
    memory_ttl_s: float
    digest_first_bytes: int  # from this size on, the vision service is asked by digest before it gets the bytes
    redis_url: str | None  # cache shared by all gateways; None is none
    redis_timeout_s: float
    redis_ttl_s: float
    redis_pause_s: float  # how long Redis is left alone after it failed several times in a row


@asynccontextmanager
async def open_visual_tokens(config: VisualCacheConfig) -> AsyncIterator[VisualTokenSource]:
    """Open the caches that are switched on; leaving closes them."""
    shared = None
    if config.redis_url is not None and config.reuse:
        # Imported here, because the Redis client takes longer to import than all the rest.
        from gateway.images.redis_cache import SharedCache

        shared = SharedCache(
            config.redis_url,
            timeout_s=config.redis_timeout_s,
            ttl_s=config.redis_ttl_s,
            pause_s=config.redis_pause_s,
        )
    try:
        yield VisualTokenSource(
            memory=VisualCache(config.memory_bytes if config.reuse else 0, ttl_s=config.memory_ttl_s),
            shared=shared,
            digest_first_bytes=config.digest_first_bytes,
            reuse=config.reuse,
        )
    finally:
        if shared is not None:
            await shared.close()
