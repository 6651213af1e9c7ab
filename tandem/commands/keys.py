"""`tandem keys`: make API keys for a gateway's key file."""

import re
from typing import Annotated, Literal

import typer

from chassis.api_keys import TENANT_NAME, key_sha256, new_key

app = typer.Typer(no_args_is_help=True, help="Make API keys for a gateway's key file.")


@app.callback()
def keys() -> None:
    """Make API keys for a gateway's key file."""


@app.command()
def new(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Name of the key's user, for logs and metrics.")],
    role: Annotated[
        Literal["client", "tester", "operator"],
        typer.Option(help="A tester may also pin a canary, an operator may also change rollouts."),
    ] = "client",
) -> None:
    """Make a key.

    The key is printed to stderr, only this once. Lines with its digest for the key file are printed to stdout:

    tandem keys new acme >> keys.toml
    """
    if not re.fullmatch(TENANT_NAME, tenant):
        raise typer.BadParameter("it is 1 to 64 letters, digits, '.', '_' and '-'.", param_hint="TENANT")
    key = new_key()
    typer.echo(key, err=True)
    typer.echo(f'[[tenants]]\nname = "{tenant}"\nrole = "{role}"\nkey_sha256 = ["{key_sha256(key)}"]\n')
