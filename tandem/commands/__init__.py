"""The `tandem` command, one module per sub-command.

The plain install is enough to load it. A sub-command that needs an extra imports it when it runs.
"""

import io
import sys
from typing import Annotated

import typer

import tandem
from tandem.commands import checkpoint, deploy, keys, probes, rollout
from tandem.commands.ask import ask
from tandem.commands.failures import exit_on_error
from tandem.commands.models import models
from tandem.commands.top import top
from tandem.commands.up import up

# Plain one-sentence messages instead of boxes and tracebacks.
app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(up)
app.command()(ask)
app.command()(models)
app.command()(top)
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(deploy.app, name="deploy")
app.add_typer(keys.app, name="keys")
app.add_typer(probes.app, name="probes")
app.add_typer(rollout.app, name="rollout")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(tandem.__version__)


def _print_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Tandem: ask questions about images."""


def main() -> None:
    """Run the command.

    An error is one sentence on stderr. The exit code is then 1, or 2 for a wrong command line.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Chinese still shows the rest of the answer
    with exit_on_error():
        app()
