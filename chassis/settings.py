"""Settings of a process: environment variables and flags, read once, checked before anything starts."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, CliApp, CliSettingsSource, NoDecode, SettingsConfigDict, SettingsError

from chassis.logs import LogFormat, LogLevel
from chassis.network import DEFAULT_MAX_MESSAGE_BYTES, split_address

# How `--help` writes what a flag takes, by how pydantic-settings does: by Python's type.
_TYPED = {
    "str": "TEXT",
    "SecretStr": "TEXT",
    "tuple[str,...]": "TEXT,...",
    "int": "INTEGER",
    "float": "NUMBER",
    "Path": "PATH",
}


def _split_names(value: Any) -> Any:
    """Split 'a,b' at its commas; leave what is already a sequence."""
    if isinstance(value, str):
        return tuple(name for part in value.split(",") if (name := part.strip()))
    return value


# For settings such as '--tags a-v1.0.0,b-v1.0.0'; without NoDecode the environment would have to hold JSON.
CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names)]


class ServiceSettings(BaseSettings):
    """What every server can be told. A service adds its own fields and its environment prefix.

    Write `model_config = SettingsConfigDict(env_prefix="TANDEM_VISION_")` in the subclass; a field `drain_s` is then
    read from `--drain-s`, else `TANDEM_VISION_DRAIN_S`, else its default. A description is what `--help` says of it.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        env_ignore_empty=True,  # an empty variable in a manifest means 'not set', not the path ''
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,  # load_settings tells of errors, in one line
        cli_show_env_vars=True,
        hide_input_in_errors=True,  # a value can be a secret
    )

    listen: str = Field(default="127.0.0.1:0", description="host:port to serve gRPC on; port 0 picks a free one")
    metrics_port: int = Field(
        default=0,
        ge=-1,
        le=65535,
        description="port of Prometheus metrics on the same host; 0 picks a free one, -1 is off",
    )
    log_format: LogFormat = Field(
        default="auto", description="form of log lines; auto is console in a terminal, else json"
    )
    log_level: LogLevel = Field(default="info", description="least level that is logged; 'ready' always is")
    drain_s: float = Field(
        default=30,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="longest wait for running requests after SIGTERM, seconds",
    )
    tls_cert: Path | None = Field(
        default=None, description="PEM file of the server's certificate chain; switches TLS on"
    )
    tls_key: Path | None = Field(
        default=None, validate_default=True, description="PEM file of the certificate's private key, not encrypted"
    )
    tls_client_ca: Path | None = Field(
        default=None, description="PEM file of the authorities whose client certificates are required (mutual TLS)"
    )
    trace_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="http://host:port of the OpenTelemetry collector that gets traces (OTLP over gRPC); unset is off",
    )
    trace_sample: float = Field(
        default=1, ge=0, le=1, description="part of the traces begun here that are recorded; others follow their caller"
    )
    max_message_bytes: int = Field(
        default=DEFAULT_MAX_MESSAGE_BYTES, ge=1, le=2**31 - 1, description="largest message taken, bytes"
    )

    @field_validator("listen")
    @classmethod
    def _is_address(cls, value: str) -> str:
        split_address(value)
        return value

    @field_validator("tls_cert", "tls_key", "tls_client_ca")
    @classmethod
    def _is_readable(cls, path: Path | None) -> Path | None:
        if path is not None:
            try:
                path.open("rb").close()
            except OSError as error:
                raise ValueError(f"the file cannot be read ({error.strerror})") from None
        return path

    @field_validator("tls_key")
    @classmethod
    def _key_goes_with_certificate(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if "tls_cert" in info.data and (path is None) != (info.data["tls_cert"] is None):
            raise ValueError("the certificate and its key must be given together")
        return path

    @field_validator("tls_client_ca")
    @classmethod
    def _client_ca_needs_tls(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is not None and "tls_cert" in info.data and info.data["tls_cert"] is None:
            raise ValueError("client certificates can only be checked with a server certificate (tls_cert)")
        return path


S = TypeVar("S", bound=ServiceSettings)


def load_settings(kind: type[S], argv: Sequence[str]) -> S:
    """Read settings from flags, then the environment, then defaults.

    Args:
        kind: the service's settings.
        argv: the flags, without the program's name.

    Exits with status 2, after one line to stderr that names the flag and the variable, where a value is not valid;
    values are never repeated. Exits with status 0 after `--help`.
    """
    try:
        source = CliSettingsSource[S](kind, case_sensitive=False, add_argument_method=partial(_add_flag, kind))
        return CliApp.run(kind, cli_args=list(argv), cli_settings_source=source)
    except ValidationError as error:
        problem = "; ".join(_describe(kind, one["loc"], one["msg"]) for one in error.errors(include_url=False))
    except SettingsError as error:
        problem = _without_values(str(error).removeprefix("error parsing CLI: "))
    sys.stderr.write(f"error: {problem}\n")
    raise SystemExit(2)


def _add_flag(kind: type[BaseSettings], parser: ArgumentParser, *flags: str, **options: Any) -> None:
    """Add one flag to the parser, shown in `--help` as people type it and not as Python writes it."""
    field = kind.model_fields.get(options.get("dest", ""))
    if field is not None:
        options["help"] = options["help"].replace(f"(default: {field.default})", f"(default: {_typed(field.default)})")
    if "metavar" in options:
        options["metavar"] = _TYPED.get(options["metavar"], options["metavar"])
    parser.add_argument(*flags, **options)


def _typed(value: object) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(value) or "none" if isinstance(value, tuple) else str(value)


def _describe(kind: type[BaseSettings], loc: tuple[int | str, ...], message: str) -> str:
    text = "it must be given" if message == "Field required" else message.removeprefix("Value error, ")
    if not loc:
        return text
    field = str(loc[0])
    variable = f"{kind.model_config['env_prefix']}{field}".upper()
    return f"--{field.replace('_', '-')} ({variable}): {text}"


def _without_values(message: str) -> str:
    """Keep the names of unknown flags only: what stands after a mistyped one can be a secret, too."""
    start, unknown, words = message.partition("unrecognized arguments: ")
    if not unknown:
        return message
    flags = [word.partition("=")[0] for word in words.split() if word.startswith("-")]
    return start + unknown + (" ".join(flags) or "a value without a flag")
