"""`tandem top`: the engines of running language services, live."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from rich.table import Table

from tandem.commands.pulse import Pulse, Reading, pulses, read
from tandem.commands.terminal import shown_live, table_console
from tandem.errors import Unavailable

_COLUMNS = (
    *("model", "running", "waiting", "KV used", "kept", "prompt/s", "found", "answer/s"),
    *("tokens/step", "ms/step", "guessed right", "preempted"),
)


def top(
    services: Annotated[
        list[str],
        typer.Argument(
            metavar="HOST:PORT...",
            envvar="TANDEM_METRICS",
            help="Where language services show their metrics; each says so when it is ready.",
        ),
    ],
    interval_s: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Seconds between two readings.")] = 1.0,
    once: Annotated[bool, typer.Option(help="Print one interval and end.")] = False,
) -> None:
    """Show what the engines of language services are doing; Ctrl-C ends it.

    A line for each model: sequences running and waiting, the parts of the KV cache in use and kept for prompts that
    begin alike, tokens of prompts and answers computed each second, the part of the prompts found computed, tokens and
    time of a step, the part of the tokens guessed ahead that was right, and sequences that gave way for want of blocks.
    """
    before = _read_all(services)
    if not any(before.values()):
        raise Unavailable(f"No metrics at {', '.join(services)}.", reason="NO_METRICS")
    if once:
        time.sleep(interval_s)
        table_console().print(table(before, _read_all(services)))
        return
    try:
        with shown_live() as show:
            show(table(before, before))
            while True:
                time.sleep(interval_s)
                after = _read_all(services)
                show(table(before, after))
                before = after
    except KeyboardInterrupt:
        return


def table(before: Mapping[str, Reading | None], after: Mapping[str, Reading | None]) -> Table:
    """Return the engines of some services, by address; None is one that does not answer."""
    view = Table(box=None, pad_edge=False, header_style="bold")
    for column in _COLUMNS:
        view.add_column(column, justify="left" if column == "model" else "right")
    for service, reading in after.items():
        earlier = before.get(service)
        if reading is None:
            view.add_row(f"{service}: no answer")
        else:
            for pulse in pulses(earlier or reading, reading):
                view.add_row(*_cells(pulse))
    return view


def _read_all(services: Sequence[str]) -> dict[str, Reading | None]:
    return {service: _read(service) for service in services}


def _read(service: str) -> Reading | None:
    try:
        return read(f"http://{service}/metrics")
    except (OSError, ValueError):
        return None


def _cells(pulse: Pulse) -> list[str]:
    return [
        pulse.tag,
        str(pulse.running),
        str(pulse.waiting),
        _percent(pulse.used),
        _percent(pulse.kept),
        _number(pulse.prompt_rate),
        _percent(pulse.found),
        _number(pulse.answer_rate),
        _number(pulse.step_tokens),
        _number(pulse.step_ms),
        _percent(pulse.right),
        str(pulse.preemptions),
    ]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.1f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0%}"
