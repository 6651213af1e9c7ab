"""Read and check the settings of a process: flags and environment variables."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, CliApp, CliSettingsSource, NoDecode, SettingsConfigDict, SettingsError

from chassis.logs import LogFormat, LogLevel
from chassis.network import DEFAULT_MAX_MESSAGE_BYTES, LOOPBACK_NETWORKS, Networks, split_address

# Placeholder of a flag's value in `--help`, by the one of pydantic-settings, which is a Python type.
_METAVARS = {
    "str": "TEXT",
    "SecretStr": "TEXT",
    "tuple[str,...]": "TEXT,...",
    "int": "INTEGER",
    "float": "NUMBER",
    "Path": "PATH",
}


def _split_names(value: Any) -> Any:
    """Split 'a,b' at its commas, and return a sequence unchanged."""
    if isinstance(value, str):
        return tuple(name for part in value.split(",") if (name := part.strip()))
    return value


# For settings such as '--tags a-v1.0.0,b-v1.0.0'. Without NoDecode, the environment variable would need JSON.
CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names)]


class ProcessSettings(BaseSettings):
    """Settings of every server process.

    A service adds its own fields in a subclass, with `model_config = SettingsConfigDict(env_prefix="TANDEM_VISION_")`.
    A field `drain_s` is then read from `--drain-s`, else from `TANDEM_VISION_DRAIN_S`, else it has its default.
    `--help` shows its description. A secret has a second field, `<name>_file`, the path of a file that holds it.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        env_ignore_empty=True,  # an empty variable in a Kubernetes manifest means unset, not the path ''
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,  # load_settings reports errors itself, in one line
        cli_show_env_vars=True,
        hide_input_in_errors=True,  # a value can be a secret
    )

    listen: str = Field(default="127.0.0.1:0", description="host:port to serve on. Port 0 picks a free one")
    metrics_host: str = Field(
        default="127.0.0.1",
        description="address of Prometheus metrics. They name tenants and models, so open it only to Prometheus",
    )
    metrics_port: int = Field(
        default=0, ge=-1, le=65535, description="port of Prometheus metrics. 0 picks a free one, -1 is off"
    )
    metrics_tls: bool = Field(default=False, description="serve metrics with the certificate and key of the server")
    metrics_token: Path | None = Field(
        default=None, description="file of a token that readers of metrics send as 'Authorization: Bearer <token>'"
    )
    log_format: LogFormat = Field(
        default="auto", description="form of log lines. auto means console in a terminal, else json"
    )
    log_level: LogLevel = Field(default="info", description="lowest level that is logged. The line 'ready' always is")
    drain_s: float = Field(
        default=30,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="longest wait for requests in flight after SIGTERM, seconds",
    )
    tls_cert: Path | None = Field(
        default=None, description="PEM file of the server's certificate chain, switches TLS on"
    )
    tls_key: Path | None = Field(
        default=None, validate_default=True, description="PEM file of the certificate's unencrypted private key"
    )
    tls_client_ca: Path | None = Field(
        default=None, description="PEM file of the authorities of client certificates. Requires them (mutual TLS)"
    )
    trace_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="http://host:port of an OpenTelemetry collector for traces (OTLP over gRPC). Unset is off",
    )
    trace_peers: CommaSeparated = Field(
        default=LOOPBACK_NETWORKS,
        description="networks (CIDR) of the callers whose traces are followed. Others cannot decide what is recorded",
    )
    trace_sample: float = Field(
        default=1,
        ge=0,
        le=1,
        description="recorded share of the traces started here. Those of --trace-peers follow their caller",
    )

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, value: str) -> str:
        split_address(value)
        return value

    @field_validator("trace_peers")
    @classmethod
    def _check_trace_peers(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        Networks(networks)
        return networks

    @field_validator("tls_cert", "tls_key", "tls_client_ca")
    @classmethod
    def _check_readable(cls, path: Path | None) -> Path | None:
        if path is not None:
            try:
                path.open("rb").close()
            except OSError as error:
                raise ValueError(f"the file cannot be read ({error.strerror})") from None
        return path

    @field_validator("tls_key")
    @classmethod
    def _check_key_and_certificate(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if "tls_cert" in info.data and (path is None) != (info.data["tls_cert"] is None):
            raise ValueError("give the certificate and its key together (tls_cert and tls_key)")
        return path

    @model_validator(mode="before")
    @classmethod
    def _read_secret_files(cls, values: Any) -> Any:
        """Read each secret whose `<name>_file` is set."""
        for name in cls.model_fields:
            path = values.get(f"{name}_file")
            if path is None or f"{name}_file" not in cls.model_fields or values.get(name) is not None:
                continue
            try:
                values = {**values, name: Path(path).read_text().strip()}
            except (OSError, UnicodeDecodeError):
                raise ValueError(f"the file of --{name.replace('_', '-')}-file cannot be read") from None
        return values

    @model_validator(mode="after")
    def _check_metrics_tls(self) -> Self:
        if self.metrics_tls and self.tls_cert is None:
            raise ValueError("--metrics-tls needs a certificate and key (--tls-cert and --tls-key)")
        return self

    @field_validator("tls_client_ca")
    @classmethod
    def _check_client_ca(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is not None and "tls_cert" in info.data and info.data["tls_cert"] is None:
            raise ValueError("client certificates need a server certificate, too (tls_cert and tls_key)")
        return path


class ServiceSettings(ProcessSettings):
    """Settings of every gRPC server."""

    listen: str = Field(default="127.0.0.1:0", description="host:port to serve gRPC on. Port 0 picks a free one")
    probe_listen: str | None = Field(
        default=None,
        description="host:port of health checks alone, without TLS and keys, for Kubernetes probes. Unset is off",
    )
    max_connection_age_s: float = Field(
        default=300,
        ge=1,
        le=86_400,
        description="age at which a connection takes no new request, so that its client connects anew and finds new "
        "replicas, seconds. Running answers end undisturbed",
    )
    max_connection_idle_s: float = Field(
        default=120, ge=1, le=86_400, description="time after which a connection without calls is closed, seconds"
    )
    max_connections: int = Field(
        default=4096, ge=1, description="most connections at once. The limit of open files can lower it"
    )
    max_message_bytes: int = Field(
        default=DEFAULT_MAX_MESSAGE_BYTES, ge=1, le=2**31 - 1, description="largest request message, bytes"
    )
    max_receiving_bytes: int = Field(
        default=8 * DEFAULT_MAX_MESSAGE_BYTES,
        ge=1,
        description="memory for request messages that are being received, bytes. Each takes --max-message-bytes of it "
        "until it is complete, and there is room for two at least",
    )
    receive_timeout_s: float = Field(
        default=30, gt=0, le=3600, description="longest time for one request message to arrive, seconds"
    )
    stall_timeout_s: float = Field(
        default=60, gt=0, le=3600, description="longest time in which a client may read nothing of a stream, seconds"
    )

    @field_validator("probe_listen")
    @classmethod
    def _check_probe_listen(cls, value: str | None) -> str | None:
        if value is not None:
            split_address(value)
        return value


S = TypeVar("S", bound=ProcessSettings)


def load_settings(kind: type[S], argv: Sequence[str]) -> S:
    """Read settings from flags, then the environment, then defaults.

    Args:
        kind: class of the settings.
        argv: flags, without the program's name.

    Raises:
        SystemExit: status 0 after `--help`. Status 2 for an invalid value, after one line to stderr that names the flag
            and the variable but never repeats the value.
    """
    try:
        source = CliSettingsSource[S](kind, case_sensitive=False, add_argument_method=partial(_add_flag, kind))
        settings = CliApp.run(kind, cli_args=list(argv), cli_settings_source=source)
        problem = _secret_in_flags(settings, argv)
        if problem is None:
            return settings
    except ValidationError as error:
        problem = "; ".join(_describe(kind, one["loc"], one["msg"]) for one in error.errors(include_url=False))
    except SettingsError as error:
        problem = _without_values(str(error).removeprefix("error parsing CLI: "))
    sys.stderr.write(f"error: {problem}\n")
    raise SystemExit(2)


def _secret_in_flags(settings: ProcessSettings, argv: Sequence[str]) -> str | None:
    """Return the problem of a secret among the flags.

    An address without a password is no secret.
    """
    given = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in argv if word.startswith("--")}
    for name in given & type(settings).model_fields.keys():
        value = getattr(settings, name)
        if isinstance(value, SecretStr) and _is_secret(value.get_secret_value()):
            variable = f"{type(settings).model_config['env_prefix']}{name}".upper()
            flag = f"--{name.replace('_', '-')}"
            return f"{flag} ({variable}): every user of this machine can read flags, so set the variable or {flag}-file"
    return None


def _is_secret(value: str) -> bool:
    return "://" not in value or urlsplit(value).password is not None


def _add_flag(kind: type[BaseSettings], parser: ArgumentParser, *flags: str, **options: Any) -> None:
    """Add one flag, with its default as users type it."""
    field = kind.model_fields.get(options.get("dest", ""))
    if field is not None:
        options["help"] = options["help"].replace(
            f"(default: {field.default})", f"(default: {_as_flag(field.default)})"
        )
    if "metavar" in options:
        options["metavar"] = _METAVARS.get(options["metavar"], options["metavar"])
    parser.add_argument(*flags, **options)


def _as_flag(value: object) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(value) or "none" if isinstance(value, tuple) else str(value)


def _describe(kind: type[BaseSettings], loc: tuple[int | str, ...], message: str) -> str:
    text = "this setting is required" if message == "Field required" else message.removeprefix("Value error, ")
    if not loc:
        return text
    field = str(loc[0])
    variable = f"{kind.model_config['env_prefix']}{field}".upper()
    return f"--{field.replace('_', '-')} ({variable}): {text}"


def _without_values(message: str) -> str:
    """Remove the values of unknown flags, which can be secret."""
    start, unknown, words = message.partition("unrecognized arguments: ")
    if not unknown:
        return message
    flags = [word.partition("=")[0] for word in words.split() if word.startswith("-")]
    return start + unknown + (" ".join(flags) or "a value without a flag")
