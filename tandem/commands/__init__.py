"""The `tandem` command: one module a sub-command."""

import io
import sys
from typing import Annotated

import typer

import tandem
from tandem.commands import checkpoint, keys, rollout
from tandem.commands.ask import ask
from tandem.commands.failures import told_plainly
from tandem.commands.models import models
from tandem.commands.top import top
from tandem.commands.up import up

# Plain messages, one sentence each, rather than boxes and tracebacks.
app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(up)
app.command()(ask)
app.command()(models)
app.command()(top)
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(keys.app, name="keys")
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
    """Run the command; an error is one sentence on stderr and exit code 1, or 2 where the command line is wrong."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no Chinese shows the rest of the answer
    with told_plainly():
        app()
