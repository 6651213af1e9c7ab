"""Uploaded images in the Redis that all gateways share.

So a client may upload to one gateway and ask another. An image is found with the salt of its tenant only. Its bytes are
verified by their digest, so nothing in Redis can stand in for another image.
"""

import asyncio
import hashlib
from typing import Any

import structlog
from prometheus_client import Counter

from chassis.verified_cache import sha256_of
from gateway.images.shared_redis import LONGEST_TIMEOUT_S, REDIS_FAILURES, SharedRedis

SHARED_IMAGES = Counter(
    "tandem_gateway_shared_images", "Images by digest that other gateways may have: hit, miss, corrupted.", ["result"]
)

_DOMAIN = b"tandem shared image 1\n"

# Keeps images and their sizes, oldest first in the index. Removes the oldest ones until all fit.
_PUT = """
local prefix, name, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
redis.call('SET', prefix .. name, ARGV[4], 'PX', ARGV[5])
local now = redis.call('TIME')
redis.call('ZADD', KEYS[1], now[1] * 1000000 + now[2], name)
local before = tonumber(redis.call('HGET', KEYS[2], name) or '0')
redis.call('HSET', KEYS[2], name, #ARGV[4])
local total = redis.call('HINCRBY', KEYS[2], 'total', #ARGV[4] - before)
while total > limit do
  local oldest = redis.call('ZPOPMIN', KEYS[1])[1]
  if not oldest then break end
  redis.call('DEL', prefix .. oldest)
  total = redis.call('HINCRBY', KEYS[2], 'total', -tonumber(redis.call('HGET', KEYS[2], oldest) or '0'))
  redis.call('HDEL', KEYS[2], oldest)
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return total
"""

_log = structlog.get_logger()


class SharedImages:
    """Images by salt and SHA-256 in one Redis.

    For one event loop.
    """

    def __init__(self, redis: SharedRedis, *, max_bytes: int, ttl_s: float) -> None:
        """Send nothing yet.

        Args:
            redis: runs the commands.
            max_bytes: limit for all images of all gateways together. The oldest ones leave.
            ttl_s: seconds before Redis expires an image.
        """
        self._redis = redis
        self._max_bytes = max_bytes
        self._ttl_ms = round(ttl_s * 1000)
        self._prefix = redis.prefix + b":images:1:"
        self._put: Any = redis.commands.register_script(_PUT)

    async def put(self, sha256: bytes, image: bytes, salt: bytes) -> None:
        """Store an image before this returns, best effort."""
        if len(image) > self._max_bytes or not self._redis.allow():
            REDIS_FAILURES.labels("put_image", "skipped").inc()
            return
        arguments = [self._prefix, _name(sha256, salt), self._max_bytes, image, self._ttl_ms]
        keys = [self._prefix + b"index", self._prefix + b"sizes"]
        await self._redis.execute(
            "put_image", lambda: self._put(keys=keys, args=arguments), timeout_s=LONGEST_TIMEOUT_S
        )

    async def get(self, sha256: bytes, salt: bytes) -> bytes | None:
        """Return an image, None if unknown or Redis fails."""
        if not self._redis.allow():
            return None
        key = self._prefix + _name(sha256, salt)
        _, image = await self._redis.execute(
            "get_image", lambda: self._redis.commands.get(key), timeout_s=LONGEST_TIMEOUT_S
        )
        if not isinstance(image, bytes):
            SHARED_IMAGES.labels("miss").inc()
            return None
        if await asyncio.to_thread(sha256_of, image) != sha256:
            SHARED_IMAGES.labels("corrupted").inc()
            _log.warning("shared image dropped", sha256=sha256.hex())
            return None
        SHARED_IMAGES.labels("hit").inc()
        return image


def _name(sha256: bytes, salt: bytes) -> bytes:
    """Return the name of a tenant's image.

    It needs the salt, so it tells nobody which image it is.
    """
    return hashlib.sha256(_DOMAIN + len(salt).to_bytes(8) + salt + sha256).hexdigest().encode()
