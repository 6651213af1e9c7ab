"""Open the stores of images and visual tokens for a gateway's lifetime."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.images.memory_cache import MemoryCache
from gateway.images.source import VisualTokenSource
from gateway.images.store import ImageStore

if TYPE_CHECKING:
    from gateway.images.shared_redis import SharedRedis


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedCacheConfig:
    """The Redis that all gateways share."""

    url: str
    prefix: str  # of every key
    timeout_s: float
    pause_s: float  # between two attempts after Redis failed several times in a row
    tokens_ttl_s: float
    image_bytes: int  # limit for the uploaded images of all gateways. 0 shares none
    image_ttl_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesConfig:
    """Sizes, lifetimes and timeouts of the gateway's stores."""

    store_bytes: int  # limit for all uploaded images
    max_image_bytes: int  # limit for each
    reuse_tokens: bool  # False encodes every image of every request, to measure the gain of the caches
    tokens_bytes: int
    tokens_ttl_s: float
    digest_first_bytes: int  # images from this size are asked for by digest before their bytes are sent
    shared: SharedCacheConfig | None


@asynccontextmanager
async def open_images(config: ImagesConfig) -> AsyncIterator[tuple[ImageStore, VisualTokenSource]]:
    """Open the stores of images and visual tokens.

    Raises:
        FailedPrecondition: reason 'BAD_REDIS', the address of the shared cache is not that of a single server.
    """
    cache = images = None
    async with AsyncExitStack() as stack:
        if config.shared is not None:
            redis = await stack.enter_async_context(_open_redis(config.shared))
            # Imported on demand, because the Redis client takes longer to import than everything else together.
            from gateway.images.redis_cache import RedisCache
            from gateway.images.shared_images import SharedImages

            if config.reuse_tokens:
                cache = RedisCache(redis, ttl_s=config.shared.tokens_ttl_s)
                stack.push_async_callback(cache.close)
            if config.shared.image_bytes:
                images = SharedImages(redis, max_bytes=config.shared.image_bytes, ttl_s=config.shared.image_ttl_s)
        yield (
            ImageStore(max_bytes=config.store_bytes, max_image_bytes=config.max_image_bytes, shared=images),
            VisualTokenSource(
                memory=MemoryCache(config.tokens_bytes if config.reuse_tokens else 0, ttl_s=config.tokens_ttl_s),
                redis=cache,
                digest_first_bytes=config.digest_first_bytes,
                reuse=config.reuse_tokens,
            ),
        )


@asynccontextmanager
async def _open_redis(config: SharedCacheConfig) -> AsyncIterator["SharedRedis"]:
    from gateway.images.shared_redis import SharedRedis

    redis = SharedRedis(config.url, prefix=config.prefix, timeout_s=config.timeout_s, pause_s=config.pause_s)
    try:
        await redis.check()
        yield redis
    finally:
        await redis.close()
