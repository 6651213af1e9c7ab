"""`tandem models`: list the releases that the gateway serves."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from tandem.client import Client, ReleaseInfo
from tandem.commands.connection import DEFAULT_ADDRESS, Address, ApiKey, Ca, Cert, Key, TimeoutS
from tandem.commands.terminal import table_console


def models(
    json_output: Annotated[
        bool, typer.Option("--json", help="Print a JSON array with one object per release.")
    ] = False,
    address: Address = DEFAULT_ADDRESS,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    api_key: ApiKey = None,
    timeout_s: TimeoutS = 10.0,
) -> None:
    """List the releases that the gateway serves."""
    with Client(address, ca=ca, cert=cert, key=key, api_key=api_key, timeout_s=timeout_s) as client:
        releases = client.models()
    if json_output:
        typer.echo(json.dumps([dataclasses.asdict(release) for release in releases]))
    else:
        table_console().print(models_table(releases), "", defaults_table(releases), sep="\n")


def models_table(releases: list[ReleaseInfo]) -> Table:
    """Return one row per release, the default one marked."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")  # fits 80 characters
    table.add_column("release", no_wrap=True)
    table.add_column("state")
    table.add_column("precision")
    for column in ("vision", "language", "visual tokens", "context"):
        table.add_column(column, justify="right")
    for info in releases:
        state = Text("ready", "green") if info.ready else Text("not ready", "red")
        halves = dict.fromkeys((info.vision.precision, info.language.precision))  # one name if they agree
        table.add_row(
            Text.assemble(str(info.release), (" (default)", "dim") if info.is_default else ""),
            state,
            " + ".join(filter(None, halves)),
            short_count(info.vision.num_parameters),
            short_count(info.language.num_parameters),
            str(info.num_visual_tokens) if info.num_visual_tokens else f"≤ {info.max_visual_tokens:,}",
            f"{info.context_length:,}",
        )
    return table


def defaults_table(releases: list[ReleaseInfo]) -> Table:
    """Return the kind and the sampling defaults of each release."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("release", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("sampling, if a request names none")
    for info in releases:
        table.add_row(str(info.release), info.kind, sampling_text(dataclasses.asdict(info.default_sampling)))
    return table


def sampling_text(defaults: Mapping[str, float | None]) -> str:
    """Return a release's sampling defaults: 'temperature 0.7, top_k 20'.

    Args:
        defaults: options by name. None is the service's own default.
    """
    given = {name: value for name, value in defaults.items() if value is not None}
    if not given.get("temperature"):  # the other options then have no effect, except for penalties
        given = {name: value for name, value in given.items() if name == "repetition_penalty"}
        return ", ".join(["greedy", *(f"{name} {value:g}" for name, value in given.items())])
    return ", ".join(f"{name} {value:g}" for name, value in given.items())


def short_count(count: int) -> str:
    """Return a parameter count in short form: 6.7 B."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= 0.9995 * size:  # 999,999 rounds to 1 M, not to 1000 K
            return f"{count / size:.3g} {letter}"
    return str(count)
