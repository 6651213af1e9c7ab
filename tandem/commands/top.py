"""`tandem top`: live statistics of running language services."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from rich.table import Table

from tandem.commands.engine_stats import EngineStats, Snapshot, engine_stats, read_snapshot
from tandem.commands.terminal import live_display, table_console
from tandem.errors import Unavailable

_COLUMNS = (
    *("model", "kernels", "running", "waiting", "KV used", "evictable", "prompt/s", "cache hits", "answer/s"),
    *("tokens/step", "ms/step", "drafts right", "preempted"),
)


def top(
    services: Annotated[
        list[str],
        typer.Argument(
            metavar="HOST:PORT...",
            envvar="TANDEM_METRICS",
            help="Metrics addresses of language services. Each logs its address when it is ready.",
        ),
    ],
    interval_s: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Seconds between two readings.")] = 1.0,
    once: Annotated[bool, typer.Option(help="Print one interval and exit.")] = False,
) -> None:
    """Show live statistics of language services until Ctrl-C.

    One line per model: its kernels, running and waiting sequences, the parts of the KV cache in use and evictable,
    prompt and answer tokens computed per second, the part of the prompt tokens found in the prefix cache, tokens and
    time of a step, the part of the n-gram drafts that were right, and preempted sequences.
    """
    before = _read_all(services)
    if not any(before.values()):
        raise Unavailable(
            f"No metrics at {', '.join(services)}: give the metrics_port of a language service's ready line.",
            reason="NO_METRICS",
        )
    if once:
        time.sleep(interval_s)
        table_console().print(table(before, _read_all(services)))
        return
    try:
        with live_display() as show:
            show(table(before, before))
            while True:
                time.sleep(interval_s)
                after = _read_all(services)
                show(table(before, after))
                before = after
    except KeyboardInterrupt:
        return


def table(before: Mapping[str, Snapshot | None], after: Mapping[str, Snapshot | None]) -> Table:
    """Return the table of an interval.

    Args:
        before: snapshots by address. None is a service that did not answer.
        after: later snapshots of the same services.
    """
    view = Table(box=None, pad_edge=False, header_style="bold")
    for column in _COLUMNS:
        view.add_column(column, justify="left" if column in ("model", "kernels") else "right")
    for service, snapshot in after.items():
        earlier = before.get(service)
        if snapshot is None:
            view.add_row(f"{service}: no answer")
        else:
            for stats in engine_stats(earlier or snapshot, snapshot):
                view.add_row(*_cells(stats))
    return view


def _read_all(services: Sequence[str]) -> dict[str, Snapshot | None]:
    return {service: _read(service) for service in services}


def _read(service: str) -> Snapshot | None:
    try:
        return read_snapshot(f"http://{service}/metrics")
    except (OSError, ValueError):
        return None


def _cells(stats: EngineStats) -> list[str]:
    return [
        stats.tag,
        stats.kernels,
        str(stats.running),
        str(stats.waiting),
        _percent(stats.kv_used),
        _percent(stats.kv_evictable),
        _number(stats.prompt_rate),
        _percent(stats.hit_rate),
        _number(stats.answer_rate),
        _number(stats.step_tokens),
        _number(stats.step_ms),
        _percent(stats.draft_hit_rate),
        str(stats.preemptions),
    ]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.1f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0%}"
