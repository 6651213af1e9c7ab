"""What the gateway can be told: `TANDEM_GATEWAY_*` and flags."""

import ipaddress
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from chassis.channels import ChannelTls, check_target
from chassis.network import split_address
from chassis.settings import CommaSeparated, ServiceSettings
from gateway.admission import AdmissionLimits, Role
from gateway.answer import MAX_STOP_STRINGS, Limits
from gateway.filters import Filters, ImageFilter, read_word_lists
from gateway.images import VisualCacheConfig
from gateway.rollout.wiring import RolloutConfig

_ADMISSION = AdmissionLimits()


class GatewaySettings(ServiceSettings):
    """Settings of the gateway."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_GATEWAY_", cli_prog_name="python -m gateway")

    listen: str = Field("127.0.0.1:50050", description="host:port to serve gRPC on; port 0 picks a free one")
    models: Path = Field(description="folder of the model store")
    release: str = Field(
        description="what answers: a tag, or 'vision tag,language tag' for halves of two checkpoints that fit"
    )
    vision: CommaSeparated = Field(
        ("127.0.0.1:50051",), min_length=1, description="host:port of each vision service, separated by commas"
    )
    language: CommaSeparated = Field(
        ("127.0.0.1:50052",), min_length=1, description="host:port of each language service, separated by commas"
    )
    stage_tls: bool = Field(False, description="speak TLS to the stages; implied by the three files that follow")
    stage_ca: Path | None = Field(None, description="PEM file of the authorities that may have signed the stages")
    stage_cert: Path | None = Field(None, description="PEM file of the certificate shown to the stages (mutual TLS)")
    stage_key: Path | None = Field(None, description="PEM file of that certificate's private key")
    refresh_s: float = Field(2, gt=0, le=60, description="how often the stages are asked for their models, seconds")
    keys: Path | None = Field(None, description="TOML file of tenants and the digests of their API keys")
    allow_plaintext: bool = Field(False, description="serve without TLS on other addresses than loopback")
    allow_anonymous: bool = Field(
        False, description="serve without keys and without client certificates on other addresses than loopback"
    )
    max_running: int = Field(_ADMISSION.max_running, ge=1, description="most answers given at once")
    max_waiting: int = Field(_ADMISSION.max_waiting, ge=0, description="most requests that wait for their turn")
    max_request_bytes: int = Field(
        _ADMISSION.max_request_bytes,
        ge=1,
        description="most bytes of all requests that wait or are answered; they take about four times as much memory",
    )
    max_uploads: int = Field(_ADMISSION.max_uploads, ge=1, description="most images taken by PutImage at once")
    max_images: int = Field(8, ge=0, description="most images of one request")
    max_image_bytes: int = Field(20 * 2**20, ge=1, description="largest file of one image, bytes")
    max_text_characters: int = Field(262_144, ge=1, description="most characters of one conversation")
    max_stop_strings: int = Field(
        MAX_STOP_STRINGS, ge=0, le=MAX_STOP_STRINGS, description="most stop strings of one request"
    )
    max_prompt_tokens: int = Field(
        0, ge=0, description="most tokens of a prompt, those of images among them; 0 is the model's context"
    )
    max_output_tokens: int = Field(
        0,
        ge=0,
        description="most tokens of an answer, also of one that names none; 0 leaves it to the language service",
    )
    default_deadline_s: float = Field(
        120, gt=0, le=86_400, description="time of a request that sets no deadline, seconds"
    )
    max_deadline_s: float = Field(600, gt=0, le=86_400, description="longest time any request may take, seconds")
    visual_cache: bool = Field(
        True,
        description="reuse visual tokens; off has every image encoded for every request, to measure what it costs",
    )
    visual_cache_bytes: int = Field(256 * 2**20, ge=0, description="memory for visual tokens; 0 keeps none")
    visual_cache_ttl_s: float = Field(
        86_400, gt=0, allow_inf_nan=False, description="longest time visual tokens are kept in memory, seconds"
    )
    digest_first_bytes: int = Field(
        64 * 2**10,
        ge=0,
        description="an image from this size on is sent to the vision service only if it does not know its digest",
    )
    shared_cache_url: SecretStr | None = Field(
        None, description="redis://, rediss:// or unix:// address of a cache of visual tokens shared by all gateways"
    )
    shared_cache_timeout_ms: float = Field(
        20, gt=0, le=1000, description="longest wait for one answer of the shared cache, milliseconds"
    )
    shared_cache_ttl_s: float = Field(
        86_400, ge=1, allow_inf_nan=False, description="longest time visual tokens are kept in it, seconds"
    )
    shared_cache_pause_s: float = Field(
        5, gt=0, le=3600, description="how long it is left alone after it failed five times in a row, seconds"
    )
    image_store_bytes: int = Field(256 * 2**20, ge=0, description="memory for images given by PutImage; 0 takes none")

    text_checks: bool = Field(True, description="refuse texts with control characters and questions that say nothing")
    image_probes: CommaSeparated = Field(
        (), description="safetensors files of linear probes on visual tokens, which refuse images by what they show"
    )
    word_lists: CommaSeparated = Field(
        (), description="files of words that answers must not hold, each named by its language: en.txt"
    )
    word_action: Literal["end", "mask"] = Field(
        "end", description="what becomes of such an answer: it ends before the word, or the word is masked"
    )
    rollout_file: Path | None = Field(
        None,
        description="file that keeps the rollout; beside --rollout-redis, the copy that is served while Redis is away",
    )
    rollout_redis: SecretStr | None = Field(
        None, description="redis:// address that keeps the rollout for several gateways, which then act as one"
    )
    rollout_tick_s: float = Field(
        0.2, ge=0.01, le=5, description="how often the rollout's state and numbers are looked at, seconds"
    )
    rollout_mirror_max_running: int = Field(
        8, ge=1, description="most mirrored requests at once; those beyond are not mirrored"
    )
    rollout_load_timeout_s: float = Field(
        600,
        gt=0,
        le=86_400,
        description="longest time a canary's models may take to load before it is rolled back, seconds",
    )

    @field_validator("vision", "language")
    @classmethod
    def _can_be_called(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        for target in targets:
            check_target(target)
        return targets

    @field_validator("shared_cache_url", "rollout_redis")
    @classmethod
    def _is_redis(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            # Here and not above: the Redis client takes longer to import than all the rest.
            from redis.connection import parse_url

            try:
                parse_url(url.get_secret_value())  # type: ignore[no-untyped-call]
            except ValueError:  # whose words may hold part of a password
                raise ValueError("must be redis://host:port/db, rediss://host:port/db or unix://path") from None
        return url

    @model_validator(mode="after")
    def _has_room_for_the_largest(self) -> Self:
        if self.max_request_bytes < self.max_message_bytes:
            raise ValueError("--max-request-bytes is less than --max-message-bytes: the largest request never fits")
        return self

    @property
    def limits(self) -> Limits:
        """What one request may ask for."""
        return Limits(
            max_images=self.max_images,
            max_text_characters=self.max_text_characters,
            max_stop_strings=self.max_stop_strings,
            max_prompt_tokens=self.max_prompt_tokens,
            max_output_tokens=self.max_output_tokens,
            allow_logprobs=not (self.word_lists and self.word_action == "mask"),
        )

    @property
    def admission_limits(self) -> AdmissionLimits:
        """How many requests the gateway takes at once."""
        return AdmissionLimits(
            max_running=self.max_running,
            max_waiting=self.max_waiting,
            max_request_bytes=self.max_request_bytes,
            max_uploads=self.max_uploads,
        )

    @property
    def visual_cache_config(self) -> VisualCacheConfig:
        """Which visual tokens are kept, where, and for how long."""
        return VisualCacheConfig(
            reuse=self.visual_cache,
            memory_bytes=self.visual_cache_bytes,
            memory_ttl_s=self.visual_cache_ttl_s,
            digest_first_bytes=self.digest_first_bytes,
            redis_url=self.shared_cache_url.get_secret_value() if self.shared_cache_url is not None else None,
            redis_timeout_s=self.shared_cache_timeout_ms / 1000,
            redis_ttl_s=self.shared_cache_ttl_s,
            redis_pause_s=self.shared_cache_pause_s,
        )

    @property
    def rollout_config(self) -> RolloutConfig:
        """Where rollouts are kept, and how often they are looked at."""
        return RolloutConfig(
            file=self.rollout_file,
            redis_url=self.rollout_redis.get_secret_value() if self.rollout_redis is not None else None,
            tick_s=self.rollout_tick_s,
            refresh_s=self.refresh_s,
            load_timeout_s=self.rollout_load_timeout_s,
        )

    @property
    def role_without_keys(self) -> Role:
        """What callers are where there is no key file: on loopback they are people of this machine."""
        return "operator" if _is_loopback(self.listen) else "client"

    def read_filters(self) -> Filters:
        """Read the files of the filters.

        Raises:
            FailedPrecondition: reason 'BAD_PROBE' or 'BAD_WORD_LIST'.
        """
        return Filters(
            texts=self.text_checks,
            images=ImageFilter([Path(path) for path in self.image_probes]) if self.image_probes else None,
            words=read_word_lists([Path(path) for path in self.word_lists]) if self.word_lists else None,
            action=self.word_action,
        )

    @model_validator(mode="after")
    def _is_not_open_by_accident(self) -> Self:
        if _is_loopback(self.listen):
            return self
        if self.tls_cert is None and not self.allow_plaintext:
            raise ValueError("--listen is not loopback: give --tls-cert and --tls-key, or say --allow-plaintext")
        if self.keys is None and self.tls_client_ca is None and not self.allow_anonymous:
            raise ValueError("--listen is not loopback: give --keys or --tls-client-ca, or say --allow-anonymous")
        return self

    @property
    def channel_tls(self) -> ChannelTls | None:
        """How channels to the stages are secured; None is plain text."""
        if self.stage_tls or self.stage_ca or self.stage_cert or self.stage_key:
            return ChannelTls(ca=self.stage_ca, cert=self.stage_cert, key=self.stage_key)
        return None

    def deadline_s(self, asked_s: float | None) -> float:
        """Return the time of a request whose client gave it `asked_s`, None for no limit."""
        return min(self.default_deadline_s if asked_s is None else asked_s, self.max_deadline_s)


def _is_loopback(listen: str) -> bool:
    host, _ = split_address(listen)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
