"""Settings of the gateway, from flags and `TANDEM_GATEWAY_*` variables."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from chassis.channels import ChannelTls, check_target
from chassis.errors import InvalidArgument
from chassis.network import is_loopback
from chassis.settings import CommaSeparated
from checkpoint.probes import check_grader
from gateway.admission import AdmissionLimits, Role
from gateway.answer import MAX_STOP_STRINGS, Limits
from gateway.filters import FilterSet, ImageFilter, read_word_lists
from gateway.images import ImagesConfig
from gateway.redis_settings import RedisSettings
from gateway.rollout.wiring import RolloutConfig
from gateway.stages import Routing

_ADMISSION = AdmissionLimits()


class GatewaySettings(RedisSettings):
    """Settings of the gateway."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_GATEWAY_", cli_prog_name="python -m gateway")

    # The release to serve.
    models: Path = Field(description="folder of the model store")
    release: str = Field(description="release to serve: one tag, or 'vision tag,language tag' of two that fit together")

    # Address and access.
    listen: str = Field("127.0.0.1:50050", description="host:port to serve gRPC on; port 0 picks a free one")
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="processes that share the address and the limits; above 1, rollouts need --rollout-redis",
    )
    keys: Path | None = Field(None, description="TOML file of tenants with the SHA-256 of their API keys")
    allow_plaintext: bool = Field(False, description="allow an address other than loopback without TLS")
    allow_anonymous: bool = Field(
        False, description="allow an address other than loopback without API keys and client certificates"
    )

    # The stages.
    vision: CommaSeparated = Field(
        ("127.0.0.1:50051",), min_length=1, description="host:port of each vision service, separated by commas"
    )
    language: CommaSeparated = Field(
        ("127.0.0.1:50052",), min_length=1, description="host:port of each language service, separated by commas"
    )
    stage_tls: bool = Field(False, description="use TLS to the stages; implied by the next three flags")
    stage_ca: Path | None = Field(None, description="PEM file of the CAs that sign the stages' certificates")
    stage_cert: Path | None = Field(None, description="PEM file of the client certificate for the stages (mutual TLS)")
    stage_key: Path | None = Field(None, description="PEM file of that certificate's private key")
    routing: Routing = Field(
        "prefix",
        description="replica for a request: the one that holds its image or conversation, unless it is loaded, or the "
        "least busy one",
    )
    refresh_s: float = Field(
        2, gt=0, le=60, description="interval between checks of the stages' models and the key file, seconds"
    )

    # Limits of all requests together.
    max_running: int = Field(_ADMISSION.max_running, ge=1, description="most requests answered at once")
    max_waiting: int = Field(_ADMISSION.max_waiting, ge=0, description="most requests in the queue")
    max_request_bytes: int = Field(
        _ADMISSION.max_request_bytes,
        ge=1,
        description="most bytes of all waiting and running requests, of uploads, and of images that requests name by "
        "digest, until they are encoded; memory use is about four times as much",
    )
    max_uploads: int = Field(_ADMISSION.max_uploads, ge=1, description="most PutImage calls at once")
    tenant_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of each of these limits that one tenant of --keys may use, so that others get through",
    )

    # Limits of one request.
    max_images: int = Field(8, ge=0, description="most images per request")
    max_image_bytes: int = Field(20 * 2**20, ge=1, description="largest image file, bytes")
    max_text_characters: int = Field(262_144, ge=1, description="most characters per conversation")
    max_stop_strings: int = Field(
        MAX_STOP_STRINGS, ge=0, le=MAX_STOP_STRINGS, description="most stop strings per request"
    )
    max_prompt_tokens: int = Field(
        0, ge=0, description="most tokens per prompt, visual tokens included; 0 allows the model's whole context"
    )
    max_output_tokens: int = Field(
        0,
        ge=0,
        description="most tokens per answer, and the default of a request that sets none; "
        "0 leaves both to the language service",
    )
    default_deadline_s: float = Field(120, gt=0, le=86_400, description="deadline of a request that sets none, seconds")
    max_deadline_s: float = Field(600, gt=0, le=86_400, description="longest deadline of any request, seconds")

    # Caches of images and visual tokens.
    image_store_bytes: int = Field(
        256 * 2**20, ge=0, description="memory for images uploaded by PutImage; 0 refuses uploads"
    )
    visual_cache: bool = Field(
        True, description="reuse visual tokens; off encodes every image for every request, to measure the cost"
    )
    visual_cache_bytes: int = Field(256 * 2**20, ge=0, description="memory for visual tokens; 0 keeps none")
    visual_cache_ttl_s: float = Field(
        86_400, gt=0, allow_inf_nan=False, description="time visual tokens stay in memory, seconds"
    )
    digest_first_bytes: int = Field(
        64 * 2**10,
        ge=0,
        description="smallest image for which the vision service is asked by digest before it gets the bytes",
    )

    # Filters.
    text_checks: bool = Field(True, description="refuse texts with control characters and questions without words")
    image_classifiers: CommaSeparated = Field(
        (), description="safetensors files of linear classifiers on visual tokens, which refuse images by content"
    )
    word_lists: CommaSeparated = Field(
        (), description="files of words to keep out of answers, each named by its language: en.txt"
    )
    word_action: Literal["end", "mask"] = Field(
        "end", description="action at such a word: end the answer before it, or mask it"
    )

    # Rollouts.
    rollout_file: Path | None = Field(
        None, description="file of the rollout state; with --rollout-redis, the copy used while Redis is down"
    )
    rollout_tick_s: float = Field(
        0.2, ge=0.01, le=5, description="interval between checks of the rollout's state and counts, seconds"
    )
    rollout_trusts_callers: bool = Field(
        False, description="count every request in rollouts, also those by which a caller could aim at one release"
    )
    rollout_mirror_max_running: int = Field(
        8, ge=1, description="most mirrored requests at once; requests beyond are not mirrored"
    )
    rollout_load_timeout_s: float = Field(
        600, gt=0, le=86_400, description="time a canary's models may take to load before a rollback, seconds"
    )
    rollout_probes: Path | None = Field(
        None, description="file of probes that both releases answer before a rollout, beside those in their folders"
    )
    rollout_refusals: Path | None = Field(None, description="file of phrases that refuse a question, one a line")
    rollout_grader: str | None = Field(
        None, description="grpc://host:port or command line of the grader of probes with the judge grader"
    )

    @field_validator("vision", "language")
    @classmethod
    def _check_targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        for target in targets:
            check_target(target)
        return targets

    @field_validator("rollout_grader")
    @classmethod
    def _check_grader(cls, target: str | None) -> str | None:
        if target is not None:
            try:
                check_grader(target)
            except InvalidArgument as error:
                raise ValueError(error.message) from None
        return target

    @model_validator(mode="after")
    def _check_request_bytes(self) -> Self:
        if self.max_request_bytes < self.max_message_bytes:
            raise ValueError(
                "--max-request-bytes must be at least --max-message-bytes, or the largest request never fits"
            )
        return self

    @model_validator(mode="after")
    def _check_exposure(self) -> Self:
        if is_loopback(self.listen):
            return self
        if self.tls_cert is None and not self.allow_plaintext:
            raise ValueError("--listen is not loopback: set --tls-cert and --tls-key, or --allow-plaintext")
        if self.keys is None and self.tls_client_ca is None and not self.allow_anonymous:
            raise ValueError("--listen is not loopback: set --keys or --tls-client-ca, or --allow-anonymous")
        return self

    @property
    def limits(self) -> Limits:
        """Limits of one request."""
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
        """Limits of all requests together."""
        return AdmissionLimits(
            max_running=self.max_running,
            max_waiting=self.max_waiting,
            max_request_bytes=self.max_request_bytes,
            max_message_bytes=self.max_message_bytes,
            max_uploads=self.max_uploads,
            tenant_share=self.tenant_share if self.keys is not None else 1,
        )

    @property
    def images_config(self) -> ImagesConfig:
        """Configuration of the stores of images and visual tokens."""
        return ImagesConfig(
            store_bytes=self.image_store_bytes,
            max_image_bytes=self.max_image_bytes,
            reuse_tokens=self.visual_cache,
            tokens_bytes=self.visual_cache_bytes,
            tokens_ttl_s=self.visual_cache_ttl_s,
            digest_first_bytes=self.digest_first_bytes,
            shared=self.shared_cache_config,
        )

    @property
    def rollout_config(self) -> RolloutConfig:
        """Configuration of the rollout store and its checks."""
        return RolloutConfig(
            file=self.rollout_file,
            num_workers=self.workers,
            redis_url=self.rollout_redis.get_secret_value() if self.rollout_redis else None,
            redis_prefix=self.redis_prefix,
            tick_s=self.rollout_tick_s,
            refresh_s=self.refresh_s,
            load_timeout_s=self.rollout_load_timeout_s,
            probes_file=self.rollout_probes,
            grader=self.rollout_grader,
        )

    @property
    def role_without_keys(self) -> Role:
        """Role of every caller without a key file.

        On loopback it is the operator, because callers have access to this machine.
        """
        return "operator" if is_loopback(self.listen) else "client"

    @property
    def channel_tls(self) -> ChannelTls | None:
        """TLS of the stages' channels, None for plain text."""
        if self.stage_tls or self.stage_ca or self.stage_cert or self.stage_key:
            return ChannelTls(ca=self.stage_ca, cert=self.stage_cert, key=self.stage_key)
        return None

    def read_filters(self) -> FilterSet:
        """Read the files of the filters.

        Raises:
            FailedPrecondition: reason 'BAD_CLASSIFIER' or 'BAD_WORD_LIST'.
        """
        return FilterSet(
            text_checks=self.text_checks,
            image_filter=ImageFilter([Path(path) for path in self.image_classifiers])
            if self.image_classifiers
            else None,
            word_list=read_word_lists([Path(path) for path in self.word_lists]) if self.word_lists else None,
            word_action=self.word_action,
        )

    def timeout_s(self, client_timeout_s: float | None) -> float:
        """Return the timeout of a request.

        Args:
            client_timeout_s: time left to the client's deadline, None without a deadline.
        """
        timeout_s = self.default_deadline_s if client_timeout_s is None else client_timeout_s
        return min(timeout_s, self.max_deadline_s)
