"""Command-line options of the connection to a gateway."""

import os
from pathlib import Path
from typing import Annotated

import typer

from chassis.channels import check_target
from tandem.client import DEFAULT_ADDRESS

ADDRESS_VARIABLE = "TANDEM_ADDRESS"
API_KEY_VARIABLE = "TANDEM_API_KEY"


def _check_address(address: str) -> str:
    try:
        check_target(address)
    except ValueError as error:
        raise typer.BadParameter(f"it {error}.") from error
    return address


def _read_api_key(path: str | None) -> str | None:
    if path is None:
        return os.environ.get(API_KEY_VARIABLE) or None
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter("the file cannot be read.") from error


Address = Annotated[
    str,
    typer.Option(
        envvar=ADDRESS_VARIABLE, metavar="HOST:PORT", callback=_check_address, help="host:port of the gateway."
    ),
]
Ca = Annotated[
    Path | None,
    typer.Option(
        envvar="TANDEM_CA",
        metavar="FILE",
        help="PEM file of the authority that signed the gateway's certificate. Turns encryption on.",
    ),
]
Cert = Annotated[
    Path | None, typer.Option(envvar="TANDEM_CERT", metavar="FILE", help="PEM file of your certificate (mutual TLS).")
]
Key = Annotated[
    Path | None, typer.Option(envvar="TANDEM_KEY", metavar="FILE", help="PEM file of your certificate's key.")
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key-file",
        metavar="FILE",
        callback=_read_api_key,
        help=f"File of the API key, if the gateway requires one. The variable {API_KEY_VARIABLE} can hold it instead. "
        "No flag takes a key: every user of the machine could read it.",
        show_default=False,
    ),
]
# gRPC treats an overflowing deadline as expired, so a week is the maximum.
TimeoutS = Annotated[
    float,
    typer.Option(min=0.001, max=7 * 86_400, metavar="SECONDS", help="Longest wait for the complete answer, seconds."),
]

__all__ = ["ADDRESS_VARIABLE", "DEFAULT_ADDRESS", "Address", "ApiKey", "Ca", "Cert", "Key", "TimeoutS"]
