"""How a command reaches a gateway: the options that all commands which call one share."""

from pathlib import Path
from typing import Annotated

import typer

from chassis.channels import check_target
from tandem.client import DEFAULT_ADDRESS

ADDRESS_VARIABLE = "TANDEM_ADDRESS"


def _check_address(address: str) -> str:
    try:
        check_target(address)
    except ValueError as error:
        raise typer.BadParameter(f"it {error}.") from error
    return address


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
        help="PEM file of who signed the gateway's certificate; encrypts the connection.",
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
        envvar="TANDEM_API_KEY", metavar="KEY", help="API key, where the gateway asks for one.", show_default=False
    ),
]
# A week at most: gRPC takes what no clock can reach for a time that has passed.
TimeoutS = Annotated[
    float,
    typer.Option(min=0.001, max=7 * 86_400, metavar="SECONDS", help="Longest wait for the complete answer, seconds."),
]

__all__ = ["ADDRESS_VARIABLE", "DEFAULT_ADDRESS", "Address", "ApiKey", "Ca", "Cert", "Key", "TimeoutS"]
