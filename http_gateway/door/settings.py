"""Settings of the HTTP door, from flags and `TANDEM_HTTP_*` variables."""

from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from chassis.channels import ChannelTls, check_target
from chassis.network import DEFAULT_MAX_MESSAGE_BYTES, is_loopback
from chassis.settings import CommaSeparated, ProcessSettings
from http_gateway.images import ImageHosts


class HttpSettings(ProcessSettings):
    """Settings of the HTTP door."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_HTTP_", cli_prog_name="python -m http_gateway")

    # Address and access.
    listen: str = Field("127.0.0.1:8080", description="host:port to serve HTTP on; port 0 picks a free one")
    allow_plaintext: bool = Field(
        False, description="allow addresses other than loopback without TLS, of this door and of the gateway"
    )
    hosts: CommaSeparated = Field(
        (),
        description="names that requests may have in their Host header, without ports. Default: the loopback names "
        "where the address is loopback, else any",
    )
    cors_origins: CommaSeparated = Field(
        (), description="origins whose pages may call this API from a browser, such as https://chat.example.com"
    )
    operators: bool = Field(
        False,
        description="serve the operators' calls on an address other than loopback, for callers with an API key. "
        "The gateway must check keys",
    )
    public_metrics: bool = Field(
        False, description="serve /metrics on an address other than loopback, too; the metrics port always has it"
    )

    # The gateway.
    gateway: str = Field("127.0.0.1:50050", description="host:port of the gateway, or dns:///host:port of several")
    gateway_tls: bool = Field(False, description="use TLS to the gateway; implied by the next three flags")
    gateway_ca: Path | None = Field(None, description="PEM file of the CAs that sign the gateway's certificate")
    gateway_cert: Path | None = Field(None, description="PEM file of the client certificate (mutual TLS)")
    gateway_key: Path | None = Field(None, description="PEM file of that certificate's private key")
    max_message_bytes: int = Field(
        DEFAULT_MAX_MESSAGE_BYTES, ge=1, le=2**31 - 1, description="largest response message of the gateway, bytes"
    )
    model_aliases: CommaSeparated = Field(
        ("default",),
        min_length=1,
        description="values of `model` that leave the choice of the release to the gateway. Any other value pins one",
    )

    # Limits of all requests together.
    max_connections: int = Field(4096, ge=1, description="most connections at once")
    max_bodies_bytes: int = Field(
        512 * 2**20,
        ge=1,
        description="most bytes of all request bodies that arrive or are read; memory use is about four times as much",
    )

    # Limits of one request.
    max_body_bytes: int = Field(44 * 2**20, ge=1, description="largest request body, bytes")
    max_choices: int = Field(16, ge=1, le=128, description="most answers to one request (n)")
    header_timeout_s: float = Field(10, gt=0, le=3600, description="longest time for a request's headers, seconds")
    body_timeout_s: float = Field(60, gt=0, le=3600, description="longest time for a request's body, seconds")
    stall_timeout_s: float = Field(
        60, gt=0, le=3600, description="longest time in which a client may read nothing of a response, seconds"
    )
    keep_alive_s: int = Field(75, ge=1, le=3600, description="longest pause between two requests, seconds")

    # Images.
    max_image_bytes: int = Field(20 * 2**20, ge=1, description="largest image file, bytes")
    image_hosts: CommaSeparated = Field(
        (), description="hosts from which images may be fetched; none refuses every remote URL"
    )
    image_networks: CommaSeparated = Field(
        (), description="private networks (CIDR) that such hosts may be in; others are refused"
    )
    image_timeout_s: float = Field(
        10, gt=0, le=600, description="longest time to fetch the remote images of a request, seconds"
    )

    @field_validator("gateway")
    @classmethod
    def _check_gateway(cls, target: str) -> str:
        check_target(target)
        return target

    @field_validator("image_hosts")
    @classmethod
    def _check_image_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        ImageHosts(hosts, ())
        return hosts

    @field_validator("image_networks")
    @classmethod
    def _check_image_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        try:
            ImageHosts((), networks)
        except ValueError:
            raise ValueError("must be networks such as 10.0.0.0/8") from None
        return networks

    @model_validator(mode="after")
    def _check_exposure(self) -> Self:
        if self.tls_cert is None and not self.allow_plaintext and not self.is_local:
            raise ValueError("--listen is not loopback: set --tls-cert and --tls-key, or --allow-plaintext")
        is_near = is_loopback(self.gateway.rpartition("/")[2])
        if self.channel_tls is None and not self.allow_plaintext and not is_near:
            raise ValueError(
                "--gateway is not loopback, and gets the API keys of callers: set --gateway-tls, or --allow-plaintext"
            )
        return self

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the door."""
        return is_loopback(self.listen)

    @property
    def channel_tls(self) -> ChannelTls | None:
        """TLS to the gateway, None for plain text."""
        if self.gateway_tls or self.gateway_ca or self.gateway_cert or self.gateway_key:
            return ChannelTls(ca=self.gateway_ca, cert=self.gateway_cert, key=self.gateway_key)
        return None
