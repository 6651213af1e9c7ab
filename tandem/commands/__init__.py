"""The `tandem` command: one module a sub-command."""

import sys
from typing import Annotated

import typer

import tandem
from tandem.commands import checkpoint
from tandem.commands.ask import ask
from tandem.commands.models import models
from tandem.commands.up import up
from tandem.errors import TandemError

# Plain messages, one sentence each, rather than boxes and tracebacks.
app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(up)
app.command()(ask)
app.command()(models)
app.add_typer(checkpoint.app, name="checkpoint")


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
    """Tandem: ask questions about pictures."""


def main() -> None:
    """Run the command; an error is one sentence on stderr and exit code 1, or 2 where the command line is wrong."""
    try:
        app()
    except TandemError as error:
        _fail(_sentence(error))
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}." if error.filename else f"{error}.")


def _sentence(error: TandemError) -> str:
    message = error.message[:1].upper() + error.message[1:].removesuffix(".")
    if error.reason == "UNREACHABLE":
        return f"{message}; start one with `tandem up`."
    return f"{message} (request id {error.request_id})." if error.request_id else f"{message}."


def _fail(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")
    raise SystemExit(1)
