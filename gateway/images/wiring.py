"""Open the caches of visual tokens for a gateway's lifetime."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway.images.memory_cache import MemoryCache
from gateway.images.source import VisualTokenSource


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualCacheConfig:
    """Sizes, lifetimes and timeouts of the gateway's caches."""

    reuse: bool  # False encodes every image of every request, to measure the gain of the caches
    memory_bytes: int
    memory_ttl_s: float
    digest_first_bytes: int  # images from this size are asked for by digest before their bytes are sent
    redis_url: str | None  # None turns the Redis cache off
    redis_timeout_s: float
    redis_ttl_s: float
    redis_pause_s: float  # between two attempts after Redis failed several times in a row


@asynccontextmanager
async def open_token_source(config: VisualCacheConfig) -> AsyncIterator[VisualTokenSource]:
    """Open the configured caches for the block."""
    redis = None
    if config.redis_url is not None and config.reuse:
        # Imported on demand, because the Redis client takes longer to import than everything else together.
        from gateway.images.redis_cache import RedisCache

        redis = RedisCache(
            config.redis_url,
            timeout_s=config.redis_timeout_s,
            ttl_s=config.redis_ttl_s,
            pause_s=config.redis_pause_s,
        )
    try:
        yield VisualTokenSource(
            memory=MemoryCache(config.memory_bytes if config.reuse else 0, ttl_s=config.memory_ttl_s),
            redis=redis,
            digest_first_bytes=config.digest_first_bytes,
            reuse=config.reuse,
        )
    finally:
        if redis is not None:
            await redis.close()
