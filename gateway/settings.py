"""What the gateway can be told: `TANDEM_GATEWAY_*` and flags."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from chassis.channels import ChannelTls
from chassis.settings import CommaSeparated, ServiceSettings
from gateway.checks import MAX_STOP_STRINGS, Limits


class GatewaySettings(ServiceSettings):
    """Settings of the gateway."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_GATEWAY_")

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
    max_images: int = Field(8, ge=0, description="most pictures of one request")
    max_image_bytes: int = Field(20 * 2**20, ge=1, description="largest file of one picture, bytes")
    max_text_characters: int = Field(262_144, ge=1, description="most characters of one conversation")
    max_stop_strings: int = Field(
        MAX_STOP_STRINGS, ge=0, le=MAX_STOP_STRINGS, description="most stop strings of one request"
    )
    default_deadline_s: float = Field(120, gt=0, description="time of a request that sets no deadline, seconds")
    max_deadline_s: float = Field(600, gt=0, description="longest time any request may take, seconds")
    visual_cache_bytes: int = Field(256 * 2**20, ge=0, description="memory for visual tokens; 0 keeps none")
    image_store_bytes: int = Field(256 * 2**20, ge=0, description="memory for pictures given by PutImage; 0 takes none")

    @property
    def limits(self) -> Limits:
        """What one request may ask for."""
        return Limits(
            max_images=self.max_images,
            max_text_characters=self.max_text_characters,
            max_stop_strings=self.max_stop_strings,
        )

    @property
    def channel_tls(self) -> ChannelTls | None:
        """How channels to the stages are secured; None is plain text."""
        if self.stage_tls or self.stage_ca or self.stage_cert or self.stage_key:
            return ChannelTls(ca=self.stage_ca, cert=self.stage_cert, key=self.stage_key)
        return None

    def deadline_s(self, asked_s: float | None) -> float:
        """Return the time of a request whose client gave it `asked_s`, None for no limit."""
        return min(self.default_deadline_s if asked_s is None else asked_s, self.max_deadline_s)
