"""Settings of the Redis servers that gateways share."""

from pathlib import Path

from pydantic import Field, SecretStr, field_validator

from chassis.settings import ServiceSettings
from gateway.images import SharedCacheConfig


class RedisSettings(ServiceSettings):
    """Settings of the shared cache and the rollout store."""

    redis_prefix: str = Field(
        "tandem",
        pattern=r"^[A-Za-z0-9._:-]{1,64}$",
        description="start of every key in Redis; gateways with the same one share caches and the rollout",
    )
    shared_cache_url: SecretStr | None = Field(
        None,
        description="redis://, rediss:// or unix:// address of a cache of visual tokens and uploaded images, shared by "
        "all gateways",
    )
    shared_cache_url_file: Path | None = Field(None, description="file of that address, if it holds a password")
    shared_cache_timeout_ms: float = Field(
        20, gt=0, le=1000, description="timeout of one call to the shared cache, milliseconds"
    )
    shared_cache_ttl_s: float = Field(
        86_400, ge=1, allow_inf_nan=False, description="time visual tokens stay in the shared cache, seconds"
    )
    shared_cache_pause_s: float = Field(
        5, gt=0, le=3600, description="pause of the shared cache after five failures in a row, seconds"
    )
    shared_cache_secret_file: Path | None = Field(
        None,
        description="file with a secret of at least 32 bytes, the same for all gateways; it signs visual tokens in the "
        "shared cache, and others are not believed",
    )
    shared_image_bytes: int = Field(
        256 * 2**20,
        ge=0,
        description="memory of the shared cache for images uploaded by PutImage; 0 shares none",
    )
    shared_image_ttl_s: float = Field(
        3600, ge=1, allow_inf_nan=False, description="time uploaded images stay in the shared cache, seconds"
    )
    rollout_redis: SecretStr | None = Field(
        None, description="redis:// address of the rollout state, for several gateways that act as one"
    )
    rollout_redis_file: Path | None = Field(None, description="file of that address, if it holds a password")

    @field_validator("shared_cache_url", "rollout_redis")
    @classmethod
    def _check_redis_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            # Imported here, because the Redis client is slow to import.
            from redis.connection import parse_url

            try:
                parse_url(url.get_secret_value())  # type: ignore[no-untyped-call]
            except ValueError:  # its message may contain part of the password
                raise ValueError(
                    "must be redis://host:port/db, rediss://host:port/db or unix://path of one server, no cluster, no "
                    "Sentinel"
                ) from None
        return url

    @property
    def shared_cache_config(self) -> SharedCacheConfig | None:
        """Configuration of the shared cache, None without one."""
        if self.shared_cache_url is None:
            return None
        return SharedCacheConfig(
            url=self.shared_cache_url.get_secret_value(),
            prefix=self.redis_prefix,
            timeout_s=self.shared_cache_timeout_ms / 1000,
            pause_s=self.shared_cache_pause_s,
            tokens_ttl_s=self.shared_cache_ttl_s,
            secret_file=self.shared_cache_secret_file,
            image_bytes=self.shared_image_bytes,
            image_ttl_s=self.shared_image_ttl_s,
        )
