"""Open the stores of images and visual tokens for a gateway's lifetime."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chassis.errors import FailedPrecondition
from gateway.images.memory_cache import MemoryCache
from gateway.images.source import VisualTokenSource
from gateway.images.store import ImageStore

if TYPE_CHECKING:
    from gateway.images.shared_redis import SharedRedis


_MIN_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedCacheConfig:
    """The Redis that all gateways share."""

    url: str
    prefix: str  # of every key
    timeout_s: float
    pause_s: float  # between two attempts after Redis failed several times in a row
    tokens_ttl_s: float
    secret_file: Path | None  # signs visual tokens. None does not
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
        FailedPrecondition: reason 'BAD_REDIS', the address of the shared cache is not that of a single server, or
            'BAD_SECRET', its secret cannot be used.
    """
    cache = images = None
    async with AsyncExitStack() as stack:
        if config.shared is not None:
            secret = _read_secret(config.shared.secret_file)
            redis = await stack.enter_async_context(_open_redis(config.shared))
            # Imported on demand, because the Redis client takes longer to import than everything else together.
            from gateway.images.redis_cache import RedisCache
            from gateway.images.shared_images import SharedImages

            if config.reuse_tokens:
                cache = RedisCache(redis, ttl_s=config.shared.tokens_ttl_s, secret=secret)
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


def _read_secret(path: Path | None) -> bytes | None:
    """Return the secret in a file, without surrounding white space."""
    if path is None:
        return None
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        problem = f"it cannot be read ({error.strerror})"
    else:
        if len(secret) >= _MIN_SECRET_BYTES:
            return secret
        problem = f"it has less than {_MIN_SECRET_BYTES} bytes, fill it with `openssl rand -hex 32`"
    raise FailedPrecondition(f"Fix the secret of the shared cache: {problem}.", reason="BAD_SECRET", where=path)
